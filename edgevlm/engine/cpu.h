#ifndef EV_CPU_H
#define EV_CPU_H

/* 1 when the CPU and the operating system both support `feature`, a name of tvm_schedules/targets.py. */
int ev_cpu_has(const char *feature);

#endif
