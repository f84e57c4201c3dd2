/* Calls kernels by name for a test on another machine: requests on stdin, results on stdout, until stdin ends.
 *
 * Request: u32 name length, name ("variant/kernel"), u32 argument count, arguments: u8 kind and u64 value, which is an
 * integer ('i'), the bits of a float ('f') or a byte count followed by that many bytes ('b'). Reply: s32 result, then
 * the bytes of every buffer. A buffer ends at a page that cannot be touched and has a checked margin before it, so that
 * an access outside it ends the process: exit 66 for a damaged margin, SIGSEGV for the page. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels.h"

enum { MAX_ARGUMENTS = 24, PAGE = 65536, MARGIN = 64, FILL = 0xa5 };

typedef int32_t (*any_kernel)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                              int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float);

typedef struct {
    uint8_t *map, *data;
    size_t mapped, size;
} buffer;

static void stop(int code, const char *what) {
    fprintf(stderr, "kernel_caller: %s\n", what);
    exit(code);
}

static void take(void *data, size_t size) {
    if (fread(data, 1, size, stdin) != size) stop(65, "truncated request");
}

/* The data ends on the last multiple of 16 bytes before the guard page. */
static buffer make_buffer(size_t size) {
    buffer result = {NULL, NULL, (MARGIN + size + 15 + PAGE - 1) / PAGE * PAGE + PAGE, size};
    result.map = mmap(NULL, result.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (result.map == MAP_FAILED) stop(64, "out of memory");
    uint8_t *end = result.map + result.mapped - PAGE;
    if (mprotect(end, PAGE, PROT_NONE)) stop(64, "mprotect failed");
    result.data = end - (size + 15) / 16 * 16;
    memset(result.map, FILL, (size_t)(end - result.map));
    return result;
}

static void check_margins(const buffer *b) {
    const uint8_t *end = b->map + b->mapped - PAGE;
    for (const uint8_t *p = b->data - MARGIN; p < b->data; ++p)
        if (*p != FILL) stop(66, "a kernel wrote before its buffer");
    for (const uint8_t *p = b->data + b->size; p < end; ++p)
        if (*p != FILL) stop(66, "a kernel wrote behind its buffer");
}

static any_kernel find(const char *path) {
    for (int32_t v = 0; v < ev_variant_count; ++v) {
        const ev_variant *variant = &ev_variant_table[v];
        const size_t length = strlen(variant->name);
        if (strncmp(path, variant->name, length) || path[length] != '/') continue;
        for (int32_t i = 0; i < variant->n_kernels; ++i)
            if (!strcmp(path + length + 1, variant->kernels[i].name)) return (any_kernel)variant->kernels[i].function;
    }
    stop(67, path);
    return NULL;
}

int main(void) {
    for (;;) {
        uint32_t length, count;
        if (fread(&length, 1, sizeof length, stdin) != sizeof length) return 0;
        char name[128] = {0};
        if (length >= sizeof name) stop(65, "name too long");
        take(name, length);
        take(&count, sizeof count);
        if (count > MAX_ARGUMENTS) stop(65, "too many arguments");
        int64_t a[MAX_ARGUMENTS] = {0};
        float number = 0;
        buffer buffers[MAX_ARGUMENTS];
        int n_buffers = 0, n_values = 0;
        for (uint32_t i = 0; i < count; ++i) {
            uint8_t kind;
            uint64_t value;
            take(&kind, 1);
            take(&value, sizeof value);
            if (kind == 'b') {
                buffer *b = &buffers[n_buffers++];
                *b = make_buffer(value);
                take(b->data, value);
                a[n_values++] = (int64_t)(uintptr_t)b->data;
            } else if (kind == 'f') {
                const uint32_t bits = (uint32_t)value;
                memcpy(&number, &bits, sizeof number);
            } else {
                a[n_values++] = (int64_t)value;
            }
        }
        const any_kernel kernel = find(name);
        const int32_t result = kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15], a[16],
                                      a[17], a[18], a[19], a[20], a[21], a[22], a[23], number);
        fwrite(&result, sizeof result, 1, stdout);
        for (int i = 0; i < n_buffers; ++i) {
            check_margins(&buffers[i]);
            fwrite(buffers[i].data, 1, buffers[i].size, stdout);
            munmap(buffers[i].map, buffers[i].mapped);
        }
        fflush(stdout);
    }
}
