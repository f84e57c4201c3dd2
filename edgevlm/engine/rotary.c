/* RoPE's cosines and sines for the positions of one call, from a plan's frequencies: no table grows with the context. */
#include "internal.h"
#include "sine.h"

/* The angle is rounded to float, as transformers rounds it. */
void ev_turn_positions(ev_context *context, const float *frequencies, int32_t half, int32_t rows) {
    for (int32_t row = 0; row < rows; ++row)
        for (int32_t c = 0; c < half; ++c) {
            const float angle = (float)context->positions[row] * frequencies[c];
            double sine, cosine;
            ev_sine_cosine((double)angle, &sine, &cosine);
            context->cosines[row * half + c] = (float)cosine;
            context->sines[row * half + c] = (float)sine;
        }
}
