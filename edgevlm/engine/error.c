/* The last error of each thread. A pthread key, not _Thread_local: Android knows ELF TLS only from API 29 on. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "internal.h"

enum { MESSAGE_BYTES = 512 };

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int has_key;

static void make_key(void) { has_key = !pthread_key_create(&key, free); }

static char *message(void) {
    pthread_once(&once, make_key);
    return has_key ? pthread_getspecific(key) : NULL;
}

ev_status ev_fail(ev_status status, const char *format, ...) {
    char *text = message();
    if (!text && has_key && (text = malloc(MESSAGE_BYTES)) && pthread_setspecific(key, text)) {
        free(text);
        text = NULL;
    }
    if (!text) return status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, MESSAGE_BYTES, format, arguments);
    va_end(arguments);
    return status;
}

const char *ev_last_error(void) {
    const char *text = message();
    return text ? text : "";
}

int32_t ev_abi_version(void) { return EV_ABI_VERSION; }
