/* CPU features at run time: cpuid with the operating system's register state on x86-64, the auxiliary vector on arm64. */
#include "cpu.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t enabled_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

int ev_cpu_has(const char *feature) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return 0; /* OSXSAVE */
    const uint32_t leaf1 = c;
    const uint64_t state = enabled_state();
    const int ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
    if (!strcmp(feature, "fma")) return ymm && (leaf1 >> 12 & 1);
    if (!strcmp(feature, "f16c")) return ymm && (leaf1 >> 29 & 1);
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    const uint32_t leaf7b = b, leaf7c = c;
    if (!strcmp(feature, "avx2")) return ymm && (leaf7b >> 5 & 1);
    if (!strcmp(feature, "avx512f")) return zmm && (leaf7b >> 16 & 1);
    if (!strcmp(feature, "avx512dq")) return zmm && (leaf7b >> 17 & 1);
    if (!strcmp(feature, "avx512bw")) return zmm && (leaf7b >> 30 & 1);
    if (!strcmp(feature, "avx512vl")) return zmm && (leaf7b >> 31 & 1);
    if (!strcmp(feature, "avx512vnni")) return zmm && (leaf7c >> 11 & 1);
    if (!strcmp(feature, "avxvnni"))
        return ymm && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
    return 0;
}

#elif defined(__aarch64__)

extern unsigned long getauxval(unsigned long type); /* libc's; declared here so that bionic needs no header */

int ev_cpu_has(const char *feature) {
    const unsigned long hwcap = getauxval(16), hwcap2 = getauxval(26); /* AT_HWCAP, AT_HWCAP2 */
    if (!strcmp(feature, "asimd")) return (int)(hwcap >> 1 & 1);
    if (!strcmp(feature, "asimddp")) return (int)(hwcap >> 20 & 1);
    if (!strcmp(feature, "i8mm")) return (int)(hwcap2 >> 13 & 1);
    return 0;
}

#else
#error "edgevlm: no CPU detection for this architecture"
#endif
