/* Which CPUs are the fast ones of a machine with several kinds of cores. */
#include "affinity.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The number in a file of a CPU's directory; -1 when there is none. */
static long read_number(int32_t cpu, const char *name) {
    char text[96];
    snprintf(text, sizeof text, "/sys/devices/system/cpu/cpu%d/%s", cpu, name);
    const int file = open(text, O_RDONLY | O_CLOEXEC);
    if (file < 0) return -1;
    const ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    long number = 0;
    for (ssize_t i = 0; i < size && text[i] >= '0' && text[i] <= '9'; ++i) number = number * 10 + (text[i] - '0');
    return number > 0 ? number : -1;
}

/* The kernel's own measure of a core, work per clock included, tells little cores of a high frequency from big ones; the
 * frequency is for systems that do not have it. */
static const struct {
    const char *name;
    int32_t least_percent;
} measures[] = {{"cpu_capacity", 50}, {"cpufreq/cpuinfo_max_freq", 76}};

int32_t ev_fast_cpus(uint64_t *mask) {
    *mask = 0;
    for (size_t i = 0; i < sizeof measures / sizeof *measures; ++i) {
        long speeds[EV_MAX_CPUS];
        for (int32_t cpu = 0; cpu < EV_MAX_CPUS; ++cpu) speeds[cpu] = read_number(cpu, measures[i].name);
        const int32_t n_fast = ev_fast_of(speeds, measures[i].least_percent, mask);
        if (n_fast) return n_fast;
    }
    return 0;
}

int32_t ev_fast_of(const long *speeds, int32_t least_percent, uint64_t *mask) {
    long fastest = 0;
    int32_t n_known = 0, n_fast = 0;
    for (int32_t cpu = 0; cpu < EV_MAX_CPUS; ++cpu) {
        if (speeds[cpu] > 0) ++n_known;
        if (speeds[cpu] > fastest) fastest = speeds[cpu];
    }
    *mask = 0;
    for (int32_t cpu = 0; cpu < EV_MAX_CPUS; ++cpu)
        if (speeds[cpu] > 0 && speeds[cpu] * 100 >= fastest * least_percent) {
            *mask |= 1ull << cpu;
            ++n_fast;
        }
    if (n_fast == n_known) *mask = 0;
    return n_fast == n_known ? 0 : n_fast;
}

void ev_stay_on(uint64_t mask) { syscall(SYS_sched_setaffinity, 0, sizeof mask, &mask); }
