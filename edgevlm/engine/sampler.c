/* From logits to the next token, the twin of edgevlm/sampling.py: the same token for the same logits, history and seed.
 *
 * Logits stay float32. Weights are whole numbers, round(2^38 exp(logit - largest)), so that no sum depends on its
 * order; exp is our own, a fixed sequence of float64 operations. Random numbers are SplitMix64. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

/* exp of this is below half a unit of a weight; less counts as this. */
static const double SMALLEST = -28.0;

__extension__ typedef unsigned __int128 ev_uint128;

enum { WEIGHT_BITS = 38, DIGIT_BITS = 13, DIGITS = 1 << DIGIT_BITS, MAX_VOCABULARY = 1 << 24 };

struct ev_sampler {
    int32_t vocab_size;
    ev_sampling_params params;
    uint64_t state;      /* of the random numbers */
    uint64_t *sums;      /* (DIGITS,), of one digit's weights */
    uint64_t *weights;   /* (vocab_size,) */
    float *logits;       /* (vocab_size,), what the filters leave */
};

/* Any float as an unsigned number of the same order. */
static uint32_t order_of(float value) {
    uint32_t bits;
    value += 0.0f; /* -0 is as large as 0 */
    memcpy(&bits, &value, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* exp(x) for x <= 0, as edgevlm/sampling.py `exponential`: x = n ln 2 + r, Taylor's series of r up to r^13. */
static double exponential(double x) {
    static const double inverse_factorials[] = {
        1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0, 1.0 / 40320.0, 1.0 / 5040.0,
        1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0};
    const double shift = 0x1.8p52;
    if (x < SMALLEST) x = SMALLEST;
    const double n = (x * 0x1.71547652b82fep+0 + shift) - shift;
    const double r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
    double sum = inverse_factorials[0];
    for (int i = 1; i < 14; ++i) sum = sum * r + inverse_factorials[i];
    const uint64_t bits = (uint64_t)(1023 + (int64_t)n) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return sum * power;
}

static uint64_t weight_of(float logit, float largest) {
    return (uint64_t)(exponential((double)logit - (double)largest) * (double)(1ull << WEIGHT_BITS) + 0.5);
}

static float largest_of(const float *logits, int32_t n) {
    float largest = logits[0];
    for (int32_t i = 1; i < n; ++i) largest = logits[i] > largest ? logits[i] : largest;
    return largest;
}

static void find_weights(ev_sampler *sampler, float largest) {
    for (int32_t i = 0; i < sampler->vocab_size; ++i) sampler->weights[i] = weight_of(sampler->logits[i], largest);
}

static void exclude_if(ev_sampler *sampler, uint64_t below) {
    const float excluded = -__builtin_inff();
    for (int32_t i = 0; i < sampler->vocab_size; ++i)
        if (sampler->weights[i] < below) {
            sampler->logits[i] = excluded;
            sampler->weights[i] = 0;
        }
}

/* All but the k largest are excluded; ties with the k-th stay. The k-th is found digit by digit. */
static void keep_top_k(ev_sampler *sampler, int32_t k) {
    uint32_t prefix = 0, mask = 0;
    uint64_t left = (uint64_t)k;
    if (k >= sampler->vocab_size) return;
    for (int shift = 22; shift >= 0; shift -= 11) {
        const uint32_t digit_mask = shift == 22 ? 0x3ffu : 0x7ffu;
        memset(sampler->sums, 0, DIGITS * sizeof *sampler->sums);
        for (int32_t i = 0; i < sampler->vocab_size; ++i) {
            const uint32_t order = order_of(sampler->logits[i]);
            if ((order & mask) == prefix) ++sampler->sums[order >> shift & digit_mask];
        }
        uint32_t digit = digit_mask;
        for (; sampler->sums[digit] < left; --digit) left -= sampler->sums[digit];
        prefix |= digit << shift;
        mask |= digit_mask << shift;
    }
    for (int32_t i = 0; i < sampler->vocab_size; ++i)
        if (order_of(sampler->logits[i]) < prefix) sampler->logits[i] = -__builtin_inff();
}

/* The least likely tail of mass <= (1 - top_p) of the whole is excluded; what weighs as much as the last one kept stays.
 * The first weight behind the tail is found digit by digit, from the mass of the tokens that share a digit. */
static void keep_top_p(ev_sampler *sampler, double top_p) {
    uint64_t total = 0, tail = 0, prefix = 0, mask = 0;
    for (int32_t i = 0; i < sampler->vocab_size; ++i) total += sampler->weights[i];
    uint64_t limit = (uint64_t)((1.0 - top_p) * (double)total);
    if (limit >= total) limit = total - 1;
    for (int shift = 2 * DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        memset(sampler->sums, 0, DIGITS * sizeof *sampler->sums);
        for (int32_t i = 0; i < sampler->vocab_size; ++i) {
            const uint64_t weight = sampler->weights[i];
            if ((weight & mask) == prefix) sampler->sums[weight >> shift & (DIGITS - 1)] += weight;
        }
        uint64_t digit = 0;
        for (; digit < DIGITS - 1 && tail + sampler->sums[digit] <= limit; ++digit) tail += sampler->sums[digit];
        prefix |= digit << shift;
        mask |= (uint64_t)(DIGITS - 1) << shift;
    }
    exclude_if(sampler, prefix);
}

static void keep_min_p(ev_sampler *sampler, double min_p) {
    const double least = min_p * (double)(1ull << WEIGHT_BITS);
    uint64_t below = (uint64_t)least;
    below += (double)below < least;
    exclude_if(sampler, below);
}

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t mix(uint64_t value) {
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ value >> 27) * 0x94d049bb133111ebull;
    return value ^ value >> 31;
}

static int32_t draw(ev_sampler *sampler) {
    uint64_t total = 0;
    for (int32_t i = 0; i < sampler->vocab_size; ++i) total += sampler->weights[i];
    sampler->state += 0x9e3779b97f4a7c15ull;
    const uint64_t place = (uint64_t)((ev_uint128)mix(sampler->state) * total >> 64);
    uint64_t sum = 0;
    int32_t token = 0;
    for (; token < sampler->vocab_size - 1; ++token) {
        sum += sampler->weights[token];
        if (sum > place) break;
    }
    return token;
}

ev_status ev_sampler_new(int32_t vocab_size, ev_sampler **result) {
    if (!result) return ev_fail(EV_ERROR_USAGE, "no place for the sampler was given");
    *result = NULL;
    if (vocab_size < 1 || vocab_size > MAX_VOCABULARY)
        return ev_fail(EV_ERROR_USAGE, "a vocabulary of %d is outside 1 to %d", vocab_size, MAX_VOCABULARY);
    const size_t head = (sizeof(ev_sampler) + 15) / 16 * 16, n = (size_t)vocab_size;
    char *block = malloc(head + (DIGITS + n) * sizeof(uint64_t) + n * sizeof(float));
    if (!block) return ev_fail(EV_ERROR_BACKEND, "out of memory for a sampler of %d tokens", vocab_size);
    ev_sampler *sampler = (ev_sampler *)block;
    *sampler = (ev_sampler){.vocab_size = vocab_size, .params = {.top_p = 1.0, .repetition_penalty = 1.0}};
    sampler->sums = (uint64_t *)(block + head);
    sampler->weights = sampler->sums + DIGITS;
    sampler->logits = (float *)(sampler->weights + n);
    *result = sampler;
    return EV_OK;
}

ev_status ev_sampler_begin(ev_sampler *sampler, const ev_sampling_params *params) {
    const double temperature = params->temperature, most = __builtin_inf();
    if (!(temperature == 0 || (temperature >= 1e-3 && temperature < most)))
        return ev_fail(EV_ERROR_USAGE, "temperature is %g, expected 0 (greedy) or at least 0.001", temperature);
    if (params->top_k < 0) return ev_fail(EV_ERROR_USAGE, "top_k is %d, expected >= 0 (0 turns it off)", params->top_k);
    if (!(params->top_p > 0 && params->top_p <= 1)) return ev_fail(EV_ERROR_USAGE, "top_p is %g, expected in (0, 1]", params->top_p);
    if (!(params->min_p >= 0 && params->min_p <= 1)) return ev_fail(EV_ERROR_USAGE, "min_p is %g, expected in [0, 1]", params->min_p);
    if (!(params->repetition_penalty > 0 && params->repetition_penalty < most))
        return ev_fail(EV_ERROR_USAGE, "repetition_penalty is %g, expected > 0", params->repetition_penalty);
    sampler->params = *params;
    sampler->state = mix(params->seed);
    return EV_OK;
}

static ev_status take_logits(ev_sampler *sampler, const float *logits, const int32_t *history, int32_t n_history) {
    const int32_t n = sampler->vocab_size;
    const float penalty = (float)sampler->params.repetition_penalty;
    memcpy(sampler->logits, logits, (size_t)n * sizeof *logits);
    if (sampler->params.repetition_penalty != 1.0) {
        for (int32_t i = 0; i < n_history; ++i) {
            const int32_t id = history[i];
            if (id >= 0 && id < n) sampler->logits[id] = logits[id] < 0 ? logits[id] * penalty : logits[id] / penalty;
        }
    }
    if (sampler->params.temperature != 0.0 && sampler->params.temperature != 1.0) {
        const float temperature = (float)sampler->params.temperature;
        for (int32_t i = 0; i < n; ++i) sampler->logits[i] /= temperature;
    }
    int not_numbers = 0;
    for (int32_t i = 0; i < n; ++i) not_numbers |= sampler->logits[i] != sampler->logits[i];
    return not_numbers ? ev_fail(EV_ERROR_BACKEND, "a logit is not a number") : EV_OK;
}

ev_status ev_sampler_next(ev_sampler *sampler, const float *logits, const int32_t *history, int32_t n_history, int32_t *token) {
    const ev_sampling_params *params = &sampler->params;
    const ev_status status = take_logits(sampler, logits, history, n_history);
    if (status) return status;
    const float largest = largest_of(sampler->logits, sampler->vocab_size);
    if (largest - largest != 0) return ev_fail(EV_ERROR_BACKEND, "the largest logit is not finite");
    if (params->temperature == 0.0) {
        for (*token = 0; sampler->logits[*token] != largest; ++*token) {}
        return EV_OK;
    }
    if (params->top_k > 0) keep_top_k(sampler, params->top_k);
    find_weights(sampler, largest);
    if (params->top_p < 1.0) keep_top_p(sampler, params->top_p);
    if (params->min_p > 0.0) keep_min_p(sampler, params->min_p);
    *token = draw(sampler);
    return EV_OK;
}

void ev_sampler_free(ev_sampler *sampler) { free(sampler); }
