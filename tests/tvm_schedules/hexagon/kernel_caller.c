/* Calls Hexagon kernels by name under qemu-hexagon, without a C library: requests on stdin, results on stdout, until
 * stdin ends. The protocol is that of ../arm64/kernel_caller.c; buffers begin at a multiple of 128 bytes and lie between
 * margins that are checked after the call (exit 66). */
typedef unsigned char u8;
typedef unsigned u32;
typedef int s32;
typedef s32 (*any_kernel)(s32, s32, s32, s32, s32, s32, s32, s32, s32, s32, s32, s32, s32, s32, s32, s32);

extern const struct {
    const char *name;
    any_kernel function;
} kernel_table[];

enum { MAX_ARGUMENTS = 16, ALIGN = 128, FILL = 0xa5, MEMORY = 64 << 20, READ = 63, WRITE = 64, EXIT = 94 };

static u8 memory[MEMORY] __attribute__((aligned(ALIGN)));

static s32 system_call(s32 number, s32 a, s32 b, s32 c) {
    register s32 r6 __asm__("r6") = number;
    register s32 r0 __asm__("r0") = a;
    register s32 r1 __asm__("r1") = b;
    register s32 r2 __asm__("r2") = c;
    __asm__ volatile("trap0(#1)" : "+r"(r0) : "r"(r1), "r"(r2), "r"(r6) : "memory");
    return r0;
}

void *memset(void *target, int value, u32 size) {
    u8 *bytes = target;
    while (size--) *bytes++ = (u8)value;
    return target;
}

void *memcpy(void *target, const void *source, u32 size) {
    u8 *to = target;
    const u8 *from = source;
    while (size--) *to++ = *from++;
    return target;
}

static void stop(int code) {
    system_call(EXIT, code, 0, 0);
    __builtin_trap();
}

/* False when the input ends before the first byte. */
static int take(void *target, u32 size) {
    u8 *bytes = target;
    for (u32 done = 0; done < size;) {
        const s32 n = system_call(READ, 0, (s32)(bytes + done), (s32)(size - done));
        if (n <= 0) {
            if (done) stop(65);
            return 0;
        }
        done += (u32)n;
    }
    return 1;
}

static void give(const void *source, u32 size) {
    const u8 *bytes = source;
    for (u32 done = 0; done < size;) {
        const s32 n = system_call(WRITE, 1, (s32)(bytes + done), (s32)(size - done));
        if (n <= 0) stop(68);
        done += (u32)n;
    }
}

static any_kernel find(const char *name) {
    for (int i = 0; kernel_table[i].name; ++i) {
        const char *a = kernel_table[i].name, *b = name;
        while (*a && *a == *b) ++a, ++b;
        if (*a == *b) return kernel_table[i].function;
    }
    stop(67);
    return 0;
}

static void check(const u8 *margin, u32 size) {
    for (u32 i = 0; i < size; ++i)
        if (margin[i] != FILL) stop(66);
}

static void serve(void) {
    for (;;) {
        u32 length, count;
        char name[64];
        if (!take(&length, sizeof length)) return;
        if (length >= sizeof name) stop(65);
        take(name, length);
        name[length] = 0;
        take(&count, sizeof count);
        if (count > MAX_ARGUMENTS) stop(65);
        s32 a[MAX_ARGUMENTS] = {0};
        u8 *data[MAX_ARGUMENTS];
        u32 sizes[MAX_ARGUMENTS];
        u32 n_buffers = 0, used = 0;
        for (u32 i = 0; i < count; ++i) {
            u8 kind;
            u32 value[2];
            take(&kind, 1);
            take(value, sizeof value);
            if (kind != 'b') {
                a[i] = (s32)value[0];
                continue;
            }
            const u32 whole = (value[0] + ALIGN - 1) / ALIGN * ALIGN;
            if (whole + 2 * ALIGN > MEMORY - used) stop(64);
            memset(memory + used, FILL, whole + 2 * ALIGN);
            data[n_buffers] = memory + used + ALIGN;
            sizes[n_buffers] = value[0];
            take(data[n_buffers], value[0]);
            a[i] = (s32)data[n_buffers++];
            used += whole + ALIGN;
        }
        const s32 result = find(name)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]);
        give(&result, sizeof result);
        for (u32 i = 0; i < n_buffers; ++i) {
            check(data[i] - ALIGN, ALIGN);
            check(data[i] + sizes[i], (ALIGN - sizes[i] % ALIGN) % ALIGN + ALIGN);
            give(data[i], sizes[i]);
        }
    }
}

void start_c(void) {
    serve();
    stop(0);
}

__asm__(".globl _start\n_start:\n{ r29 = and(r29, #-128) }\n{ jump start_c }\n");
