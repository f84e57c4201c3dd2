/* Parts of one block of memory: the same code lays them out twice, first with base NULL to measure, then in the block. */
#ifndef EV_LAYOUT_H
#define EV_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

/* A cache line, and the widest vector. */
enum { EV_ALIGNMENT = 64 };

typedef struct {
    char *base;
    int64_t used;
} ev_layout;

static inline int64_t ev_aligned(int64_t bytes) { return (bytes + EV_ALIGNMENT - 1) / EV_ALIGNMENT * EV_ALIGNMENT; }

/* The next part's place, NULL while measuring. */
static inline void *ev_take(ev_layout *layout, int64_t bytes) {
    void *place = layout->base ? layout->base + layout->used : NULL;
    layout->used += ev_aligned(bytes);
    return place;
}

#endif
