/* A pool of threads that share the parts of one task. A thread that the system has not scheduled is not waited for:
 * the others take its parts. Spin shortly, then sleep. */
#ifndef EV_THREADS_H
#define EV_THREADS_H

#include <stdint.h>

typedef struct ev_pool ev_pool;
/* One part of a task; any thread may run it, so what it writes must depend on `part` alone. */
typedef void (*ev_task)(void *argument, int32_t part, int32_t n_parts);

/* The caller is one of the threads. Returns NULL when the others cannot be made. */
ev_pool *ev_pool_new(int32_t n_threads);
/* The same; the other threads stay on the CPUs whose bits are set. */
ev_pool *ev_pool_new_on(int32_t n_threads, uint64_t cpus);
int32_t ev_pool_threads(const ev_pool *pool);
/* Calls task(argument, i, n_parts) once for each part, in any order and on any thread; returns when all have finished.
 * Callers from several threads take turns: the tasks run one after the other. A task must not run another. */
void ev_pool_run_parts(ev_pool *pool, int32_t n_parts, ev_task task, void *argument);
/* The same with as many parts as threads. */
void ev_pool_run(ev_pool *pool, ev_task task, void *argument);
void ev_pool_free(ev_pool *pool);

/* The half-open share of `count` items that belongs to `part`: shares differ by at most one item. */
static inline void ev_share(int32_t count, int32_t part, int32_t n_parts, int32_t *begin, int32_t *end) {
    const int32_t base = count / n_parts, extra = count % n_parts;
    *begin = part * base + (part < extra ? part : extra);
    *end = *begin + base + (part < extra);
}

#endif
