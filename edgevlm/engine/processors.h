#ifndef EV_PROCESSORS_H
#define EV_PROCESSORS_H

#include <stdint.h>

/* CPUs that the machine has, whether this process may use them or not; 0 when the system does not say. */
int32_t ev_machine_cpus(void);
/* CPUs that this thread may run on, no more than the CPU quota of the process's control groups is worth; at least 1. */
int32_t ev_usable_cpus(void);
/* CPUs' worth of time, rounded up, that the control groups of `proc` (as /proc) leave to its process: the least of its own
 * groups and all around them, of both versions. 0: no limit. `fallback` stands for /sys/fs/cgroup. */
int32_t ev_quota_cpus(const char *proc, const char *fallback);

#endif
