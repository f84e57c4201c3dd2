#include "threads.h"

#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* About 50 microseconds: longer than the gap between two operations of one token, shorter than a user notices. */
enum { SPINS = 20000 };

struct ev_pool {
    int32_t n_threads;
    ev_task task;
    void *argument;
    _Atomic uint32_t generation; /* futex word: raised for each run */
    _Atomic int32_t running;     /* workers that have not finished the present run */
    _Atomic int32_t sleepers;
    _Atomic int32_t stop;
    pthread_t threads[];
};

typedef struct {
    ev_pool *pool;
    int32_t thread;
} worker_argument;

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void sleep_on(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake_all(_Atomic uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0); }

static void wait_for_run(ev_pool *pool, uint32_t seen) {
    for (int i = 0; i < SPINS; ++i) {
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen) return;
        relax();
    }
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->generation) == seen) sleep_on(&pool->generation, seen);
    atomic_fetch_sub(&pool->sleepers, 1);
}

static void *work(void *raw) {
    worker_argument argument = *(worker_argument *)raw;
    free(raw);
    ev_pool *pool = argument.pool;
    uint32_t seen = 0;
    for (;;) {
        wait_for_run(pool, seen);
        ++seen;
        if (atomic_load(&pool->stop)) return NULL;
        pool->task(pool->argument, argument.thread, pool->n_threads);
        atomic_fetch_sub_explicit(&pool->running, 1, memory_order_release);
    }
}

ev_pool *ev_pool_new(int32_t n_threads) {
    if (n_threads < 1) return NULL;
    ev_pool *pool = calloc(1, sizeof(ev_pool) + (size_t)n_threads * sizeof(pthread_t));
    if (!pool) return NULL;
    pool->n_threads = 1;
    for (int32_t i = 1; i < n_threads; ++i) {
        worker_argument *argument = malloc(sizeof *argument);
        if (!argument) break;
        *argument = (worker_argument){pool, i};
        if (pthread_create(&pool->threads[i], NULL, work, argument)) {
            free(argument);
            break;
        }
        pool->n_threads = i + 1;
    }
    if (pool->n_threads != n_threads) {
        ev_pool_free(pool);
        return NULL;
    }
    return pool;
}

int32_t ev_pool_threads(const ev_pool *pool) { return pool->n_threads; }

static void start(ev_pool *pool) {
    atomic_store_explicit(&pool->running, pool->n_threads - 1, memory_order_relaxed);
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleepers)) wake_all(&pool->generation);
}

void ev_pool_run(ev_pool *pool, ev_task task, void *argument) {
    pool->task = task;
    pool->argument = argument;
    if (pool->n_threads > 1) start(pool);
    task(argument, 0, pool->n_threads);
    for (int i = 0; atomic_load_explicit(&pool->running, memory_order_acquire); ++i) {
        relax();
        if (i > SPINS) {
            usleep(50);
        }
    }
}

void ev_pool_free(ev_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, 1);
    start(pool);
    for (int32_t i = 1; i < pool->n_threads; ++i) pthread_join(pool->threads[i], NULL);
    free(pool);
}
