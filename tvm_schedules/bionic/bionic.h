/* Prototypes and constants of Android's C library (bionic, arm64, API 24) that the engine uses.
 *
 * Written by hand from the stable 64-bit ABI, so that the library can be built without the NDK. Only what has one fixed
 * form on every Android is here: no struct whose layout belongs to the C library. The build makes one header of each
 * standard name that includes this one. */
#ifndef EV_BIONIC_H
#define EV_BIONIC_H

#if !defined(__ANDROID__) || !defined(__aarch64__)
#error "bionic.h is for 64-bit ARM Android only"
#endif

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

typedef long ssize_t;
typedef long off_t;
typedef long pthread_t;
typedef int pthread_key_t;
typedef int pthread_once_t;
typedef struct ev_opaque_attributes pthread_attr_t;
struct timespec {
    long tv_sec, tv_nsec;
};

/* stdlib.h, string.h */
void *malloc(size_t);
void *calloc(size_t, size_t);
void *realloc(void *, size_t);
void free(void *);
int posix_memalign(void **, size_t, size_t);
void qsort(void *, size_t, size_t, int (*)(const void *, const void *));
void *memcpy(void *, const void *, size_t);
void *memmove(void *, const void *, size_t);
void *memset(void *, int, size_t);
int memcmp(const void *, const void *, size_t);
size_t strlen(const char *);
char *strdup(const char *);
int strcmp(const char *, const char *);
int strncmp(const char *, const char *, size_t);
char *strerror(int);

/* stdio.h: formatting only */
int snprintf(char *, size_t, const char *, ...) __attribute__((format(printf, 3, 4)));
int vsnprintf(char *, size_t, const char *, va_list) __attribute__((format(printf, 3, 0)));
#define SEEK_SET 0
#define SEEK_CUR 1
#define SEEK_END 2

/* errno.h */
int *__errno(void);
#define errno (*__errno())
#define EINTR 4
#define EINVAL 22

/* fcntl.h, unistd.h, sys/mman.h, sys/syscall.h, linux/futex.h: the kernel's numbers */
int open(const char *, int, ...);
int close(int);
off_t lseek(int, off_t, int);
ssize_t read(int, void *, size_t);
ssize_t write(int, const void *, size_t);
void *mmap(void *, size_t, int, int, int, off_t);
int munmap(void *, size_t);
int madvise(void *, size_t, int);
int usleep(unsigned);
int sched_yield(void);
long syscall(long, ...);
#define O_RDONLY 0
#define O_CLOEXEC 02000000
#define PROT_READ 1
#define MAP_SHARED 1
#define MAP_PRIVATE 2
#define MAP_FAILED ((void *)-1)
#define MADV_WILLNEED 3
#define MADV_DONTNEED 4
#define SYS_futex 98
#define SYS_gettid 178
#define SYS_sched_setaffinity 122
#define SYS_sched_getaffinity 123
#define FUTEX_WAIT_PRIVATE 128
#define FUTEX_WAKE_PRIVATE 129

/* time.h */
int clock_gettime(int, struct timespec *);
#define CLOCK_MONOTONIC 1

/* pthread.h */
int pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int pthread_join(pthread_t, void **);
int pthread_once(pthread_once_t *, void (*)(void));
int pthread_key_create(pthread_key_t *, void (*)(void *));
void *pthread_getspecific(pthread_key_t);
int pthread_setspecific(pthread_key_t, const void *);
#define PTHREAD_ONCE_INIT 0

/* math.h */
double ceil(double);
double exp(double);
double fabs(double);
double floor(double);
double pow(double, double);
double round(double);
double sin(double);
double cos(double);
double sqrt(double);
float expf(float);
float fabsf(float);
float floorf(float);
float logf(float);
float roundf(float);
float sqrtf(float);
long lround(double);
long lrintf(float);
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define isfinite(x) __builtin_isfinite(x)
#define isnan(x) __builtin_isnan(x)

#endif
