/* Threads of the pool write disjoint parts of one array, run after run; the caller reads all of it between the runs.
 * With -DRACE every part also adds to one number without an atomic: the thread sanitizer must report it. */
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

int main(int argc, char **argv) {
    const int32_t n_runs = argc > 1 ? atoi(argv[1]) : 1000;
    int64_t expected = 0;
    for (int32_t n_threads = 1; n_threads <= 4; ++n_threads) {
        work_sheet sheet = {0};
        ev_pool *pool = ev_pool_new(n_threads);
        if (!pool) return 2;
        for (sheet.run = 1, expected = 0; sheet.run <= n_runs; ++sheet.run) {
            const int32_t parts = 1 + sheet.run * 7 % 13;
            if (sheet.run % 3) ev_pool_run_parts(pool, parts, add_part, &sheet);
            else ev_pool_run(pool, add_part, &sheet);
            expected += sheet.run;
            for (int32_t i = 0; i < ITEMS; ++i)
                if (sheet.items[i] != (int32_t)expected) return 3;
        }
        ev_pool_free(pool);
    }
    printf("%lld\n", (long long)expected);
    return 0;
}
