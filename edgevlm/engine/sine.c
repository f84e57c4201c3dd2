/* Sine and cosine by a fixed sequence of operations: libm's own differ from system to system. */
#include "sine.h"

#include <stdint.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

/* The quarter turns are taken off with pi/2 in three parts. The first two have 30 bits, so that their products with up
 * to 2^23 turns are exact; then Taylor's series up to x^17, whose next term is below 1e-18. */
void ev_sine_cosine(double x, double *sine, double *cosine) {
    const double half_pi_1 = 0x1.921fb540p+0, half_pi_2 = 0x1.10b46118p-30, half_pi_3 = 0x1.313198a2e0370p-61;
    const double turns = (double)(int32_t)(x * (2 / 3.14159265358979323846) + (x < 0 ? -0.5 : 0.5));
    const double first = x - turns * half_pi_1, second = turns * half_pi_2, third = turns * half_pi_3;
    const double nearly = first - second, main = nearly - third;
    const double rest = ((nearly - main) - third) + ((first - nearly) - second);
    const double square = main * main;
    double sine_tail = 1.0 / 355687428096000.0, cosine_tail = 1.0 / 20922789888000.0;
    sine_tail = sine_tail * square - 1.0 / 1307674368000.0;
    sine_tail = sine_tail * square + 1.0 / 6227020800.0;
    sine_tail = sine_tail * square - 1.0 / 39916800.0;
    sine_tail = sine_tail * square + 1.0 / 362880.0;
    sine_tail = sine_tail * square - 1.0 / 5040.0;
    sine_tail = sine_tail * square + 1.0 / 120.0;
    cosine_tail = cosine_tail * square - 1.0 / 87178291200.0;
    cosine_tail = cosine_tail * square + 1.0 / 479001600.0;
    cosine_tail = cosine_tail * square - 1.0 / 3628800.0;
    cosine_tail = cosine_tail * square + 1.0 / 40320.0;
    cosine_tail = cosine_tail * square - 1.0 / 720.0;
    cosine_tail = cosine_tail * square + 1.0 / 24.0;
    const double cube = square * main;
    const double s = main - ((square * (0.5 * rest - cube * sine_tail) - rest) + cube * (1.0 / 6.0));
    const double half = 0.5 * square, top = 1.0 - half;
    const double c = top + (((1.0 - top) - half) + (square * square * cosine_tail - main * rest));
    switch ((int32_t)turns & 3) {
    case 0: *sine = s, *cosine = c; break;
    case 1: *sine = c, *cosine = -s; break;
    case 2: *sine = -s, *cosine = -c; break;
    default: *sine = -c, *cosine = s; break;
    }
}
