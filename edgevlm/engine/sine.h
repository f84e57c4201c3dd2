#ifndef EDGEVLM_SINE_H
#define EDGEVLM_SINE_H

/* Sine and cosine of |x| <= 1.3e7, within 0.6 units in the last place, the same bits on every machine. */
void ev_sine_cosine(double x, double *sine, double *cosine);

#endif
