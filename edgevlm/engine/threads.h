/* A pool of threads that run one function together and wait for each other: spin shortly, then sleep. */
#ifndef EV_THREADS_H
#define EV_THREADS_H

#include <stdint.h>

typedef struct ev_pool ev_pool;
typedef void (*ev_task)(void *argument, int32_t thread, int32_t n_threads);

/* The caller is thread 0. Returns NULL when the threads cannot be made. */
ev_pool *ev_pool_new(int32_t n_threads);
int32_t ev_pool_threads(const ev_pool *pool);
/* Calls task(argument, i, n) once on each of the n threads and returns when all have finished. */
void ev_pool_run(ev_pool *pool, ev_task task, void *argument);
void ev_pool_free(ev_pool *pool);

/* The half-open share of `count` items that belongs to `thread`: shares differ by at most one item. */
static inline void ev_share(int32_t count, int32_t thread, int32_t n_threads, int32_t *begin, int32_t *end) {
    const int32_t base = count / n_threads, extra = count % n_threads;
    *begin = thread * base + (thread < extra ? thread : extra);
    *end = *begin + base + (thread < extra);
}

#endif
