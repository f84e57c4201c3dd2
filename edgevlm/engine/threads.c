#include "threads.h"

#include "affinity.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* About 50 microseconds: longer than the gap between two operations of one token, shorter than a user notices. */
enum { SPINS = 4000 };

struct ev_pool {
    int32_t n_threads;
    uint64_t cpus;
    ev_task task; /* written before `state` opens a run, read after a part of that run was claimed */
    void *argument;
    /* High half: number of the run, low half: parts not yet claimed. A part is claimed by lowering the low half of the
     * word as it was read, so no thread can claim a part of a run that is over. */
    _Atomic uint64_t state;
    _Atomic int32_t n_parts, unfinished;
    _Atomic uint32_t wake; /* futex word: raised for each run */
    _Atomic int32_t sleepers, stop;
    _Atomic uint32_t turn; /* futex word: 0 free, 1 a caller's task runs, 2 and other callers may wait for their turn */
    pthread_t threads[];
};

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

/* Runs one unclaimed part; 0 when there is none. */
static int run_part(ev_pool *pool) {
    uint64_t state = atomic_load_explicit(&pool->state, memory_order_acquire);
    do {
        if (!(uint32_t)state) return 0;
    } while (!atomic_compare_exchange_weak_explicit(&pool->state, &state, state - 1, memory_order_acq_rel, memory_order_acquire));
    const int32_t n_parts = atomic_load_explicit(&pool->n_parts, memory_order_relaxed);
    pool->task(pool->argument, n_parts - (int32_t)(uint32_t)state, n_parts);
    atomic_fetch_sub_explicit(&pool->unfinished, 1, memory_order_release);
    return 1;
}

static void *work(void *raw) {
    ev_pool *pool = raw;
    if (pool->cpus) ev_stay_on(pool->cpus);
    while (!atomic_load(&pool->stop)) {
        const uint32_t seen = atomic_load(&pool->wake);
        int spins = 0;
        while (spins < SPINS && !atomic_load_explicit(&pool->stop, memory_order_relaxed))
            if (run_part(pool)) spins = 0;
            else {
                relax();
                ++spins;
            }
        atomic_fetch_add(&pool->sleepers, 1);
        if (!(uint32_t)atomic_load(&pool->state) && !atomic_load(&pool->stop)) sleep_on(&pool->wake, seen);
        atomic_fetch_sub(&pool->sleepers, 1);
    }
    return NULL;
}

ev_pool *ev_pool_new(int32_t n_threads) { return ev_pool_new_on(n_threads, 0); }

ev_pool *ev_pool_new_on(int32_t n_threads, uint64_t cpus) {
    if (n_threads < 1) return NULL;
    ev_pool *pool = calloc(1, sizeof(ev_pool) + (size_t)n_threads * sizeof(pthread_t));
    if (!pool) return NULL;
    pool->cpus = cpus;
    pool->n_threads = 1;
    for (int32_t i = 1; i < n_threads; ++i) {
        if (pthread_create(&pool->threads[i], NULL, work, pool)) break;
        pool->n_threads = i + 1;
    }
    if (pool->n_threads != n_threads) {
        ev_pool_free(pool);
        return NULL;
    }
    return pool;
}

int32_t ev_pool_threads(const ev_pool *pool) { return pool->n_threads; }

static void wake_sleepers(ev_pool *pool) {
    atomic_fetch_add(&pool->wake, 1);
    if (atomic_load(&pool->sleepers)) wake_all(&pool->wake);
}

/* Callers from several threads, each with a context of its own, run one task after the other. */
static void take_turn(ev_pool *pool) {
    uint32_t free = 0;
    if (atomic_compare_exchange_strong(&pool->turn, &free, 1)) return;
    while (atomic_exchange(&pool->turn, 2)) sleep_on(&pool->turn, 2);
}

static void end_turn(ev_pool *pool) {
    if (atomic_exchange(&pool->turn, 0) == 2) wake_all(&pool->turn);
}

void ev_pool_run_parts(ev_pool *pool, int32_t n_parts, ev_task task, void *argument) {
    if (pool->n_threads == 1 || n_parts == 1) {
        for (int32_t i = 0; i < n_parts; ++i) task(argument, i, n_parts);
        return;
    }
    take_turn(pool);
    pool->task = task;
    pool->argument = argument;
    atomic_store_explicit(&pool->n_parts, n_parts, memory_order_relaxed);
    atomic_store_explicit(&pool->unfinished, n_parts, memory_order_relaxed);
    const uint64_t run = (atomic_load_explicit(&pool->state, memory_order_relaxed) >> 32) + 1;
    atomic_store(&pool->state, run << 32 | (uint32_t)n_parts);
    wake_sleepers(pool);
    while (run_part(pool)) continue;
    for (int i = 0; atomic_load_explicit(&pool->unfinished, memory_order_acquire); ++i)
        if (i < SPINS) relax();
        else sched_yield();
    end_turn(pool);
}

void ev_pool_run(ev_pool *pool, ev_task task, void *argument) { ev_pool_run_parts(pool, pool->n_threads, task, argument); }

void ev_pool_free(ev_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, 1);
    wake_sleepers(pool);
    for (int32_t i = 1; i < pool->n_threads; ++i) pthread_join(pool->threads[i], NULL);
    free(pool);
}
