/* Threads of the pool write disjoint parts of one array, run after run; the caller reads all of it between the runs. Then
 * two callers from two threads do so at once on one pool, each with an array of its own, as two conversations do. With -DRACE every part also adds to one number without an atomic: the thread sanitizer must report it. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "threads.h"

enum { ITEMS = 1000 };

typedef struct {
    int32_t items[ITEMS];
    int32_t run, shared;
} work_sheet;

static void add_part(void *argument, int32_t part, int32_t n_parts) {
    work_sheet *sheet = argument;
    int32_t begin, end;
    ev_share(ITEMS, part, n_parts, &begin, &end);
    for (int32_t i = begin; i < end; ++i) sheet->items[i] += sheet->run;
#ifdef RACE
    ++sheet->shared;
#endif
}

/* The sum of all runs, -1 when an item is not what they add up to. */
static int64_t run_all(ev_pool *pool, int32_t n_runs) {
    work_sheet sheet = {0};
    int64_t expected = 0;
    for (sheet.run = 1; sheet.run <= n_runs; ++sheet.run) {
        const int32_t parts = 1 + sheet.run * 7 % 13;
        if (sheet.run % 3) ev_pool_run_parts(pool, parts, add_part, &sheet);
        else ev_pool_run(pool, add_part, &sheet);
        expected += sheet.run;
        for (int32_t i = 0; i < ITEMS; ++i)
            if (sheet.items[i] != (int32_t)expected) return -1;
    }
    return expected;
}

typedef struct {
    ev_pool *pool;
    int32_t n_runs;
    int64_t sum;
} caller;

static void *call(void *argument) {
    caller *self = argument;
    self->sum = run_all(self->pool, self->n_runs);
    return NULL;
}

int main(int argc, char **argv) {
    const int32_t n_runs = argc > 1 ? atoi(argv[1]) : 1000;
    int64_t expected = 0;
    for (int32_t n_threads = 1; n_threads <= 4; ++n_threads) {
        ev_pool *pool = ev_pool_new(n_threads);
        if (!pool) return 2;
        expected = run_all(pool, n_runs);
        caller other = {pool, n_runs, 0};
        pthread_t thread;
        if (pthread_create(&thread, NULL, call, &other)) return 2;
        const int64_t own = run_all(pool, n_runs);
        pthread_join(thread, NULL);
        ev_pool_free(pool);
        if (expected < 0 || own != expected || other.sum != expected) return 3;
    }
    printf("%lld\n", (long long)expected);
    return 0;
}
