#ifndef EV_AFFINITY_H
#define EV_AFFINITY_H

#include <stdint.h>

/* Sets the bits of the fast CPUs among the first 64 and returns how many they are; 0 when the system does not say, or
 * when all are alike. */
int32_t ev_fast_cpus(uint64_t *mask);
/* Asks that the calling thread stay on the CPUs of `mask`: a hint, refused silently. */
void ev_stay_on(uint64_t mask);

#endif
