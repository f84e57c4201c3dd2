#ifndef EV_AFFINITY_H
#define EV_AFFINITY_H

#include <stdint.h>

enum { EV_MAX_CPUS = 64 };

/* Sets the bits of the fast CPUs among the first EV_MAX_CPUS and returns how many they are; 0 when the system does not say, or
 * when all are alike. */
int32_t ev_fast_cpus(uint64_t *mask);
/* The same from a measure of each of EV_MAX_CPUS, 0 or less where it is not known: fast is what has at least
 * `least_percent` of the fastest. */
int32_t ev_fast_of(const long *speeds, int32_t least_percent, uint64_t *mask);
/* Asks that the calling thread stay on the CPUs of `mask`: a hint, refused silently. */
void ev_stay_on(uint64_t mask);

#endif
