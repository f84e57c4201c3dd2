/* Random numbers of the fuzzers, and numbers that break things. */
#include <stdint.h>
#include <string.h>

static uint64_t random_state = 1;

static inline uint64_t next_random(void) {
    uint64_t value = random_state += 0x9e3779b97f4a7c15ull;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ value >> 27) * 0x94d049bb133111ebull;
    return value ^ value >> 31;
}

static inline int32_t below(int32_t n) { return (int32_t)(next_random() % (uint64_t)n); }

/* Mostly a usable value from 1 to `most`; else an extreme one or any. */
static inline int32_t number(int32_t most) {
    static const int32_t extremes[] = {0, -1, 1, 2, 65535, 65536, 1 << 24, INT32_MAX - 1, INT32_MAX, INT32_MIN};
    const int32_t kind = below(40);
    if (kind == 0) return extremes[below(10)];
    if (kind == 1) return (int32_t)next_random();
    return 1 + below(most);
}

static inline double real(double usable) {
    double any;
    const int32_t kind = below(40);
    const uint64_t bits = next_random();
    if (kind > 1) return usable;
    if (kind == 0) return (double)(below(5) - 2);
    memcpy(&any, &bits, sizeof any);
    return any;
}
