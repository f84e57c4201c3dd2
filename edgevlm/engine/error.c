#include <stdarg.h>
#include <stdio.h>

#include "internal.h"

static _Thread_local char last_error[512];

ev_status ev_fail(ev_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}

const char *ev_last_error(void) { return last_error; }

int32_t ev_abi_version(void) { return EV_ABI_VERSION; }
