/* Which CPUs are the fast ones of a machine with several kinds of cores. */
#include "affinity.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static long max_frequency(int32_t cpu) {
    char text[96];
    snprintf(text, sizeof text, "/sys/devices/system/cpu/cpu%d/cpufreq/cpuinfo_max_freq", cpu);
    const int file = open(text, O_RDONLY | O_CLOEXEC);
    if (file < 0) return -1;
    const ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    long khz = 0;
    for (ssize_t i = 0; i < size && text[i] >= '0' && text[i] <= '9'; ++i) khz = khz * 10 + (text[i] - '0');
    return khz > 0 ? khz : -1;
}

int32_t ev_fast_cpus(uint64_t *mask) {
    long khz[64], fastest = 0;
    int32_t n_known = 0;
    for (int32_t cpu = 0; cpu < 64; ++cpu) {
        khz[cpu] = max_frequency(cpu);
        if (khz[cpu] > 0) ++n_known;
        if (khz[cpu] > fastest) fastest = khz[cpu];
    }
    *mask = 0;
    int32_t n_fast = 0;
    for (int32_t cpu = 0; cpu < 64; ++cpu)
        if (khz[cpu] > 0 && khz[cpu] * 4 >= fastest * 3) { /* what is slower than three quarters of the fastest counts as little */
            *mask |= 1ull << cpu;
            ++n_fast;
        }
    if (n_fast == n_known) *mask = 0;
    return n_fast == n_known ? 0 : n_fast;
}

void ev_stay_on(uint64_t mask) { syscall(SYS_sched_setaffinity, 0, sizeof mask, &mask); }
