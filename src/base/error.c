#include "base_internal.h"

#include <stdio.h>
#include <string.h>

/* Copies s into out[0..size) with everything a terminal acts on made visible; cuts whole characters at the end. */
static void copy_shown(char *out, size_t size, const char *s)
{
    size_t n = strlen(s), used = 0;
    while (n > 0) {
        char esc[16];
        size_t step = es_show_step(s, n, false, esc);
        const char *from = esc[0] ? esc : s;
        size_t len = esc[0] ? strlen(esc) : step;
        if (used + len + 1 > size)
            break;
        memcpy(out + used, from, len);
        used += len;
        s += step;
        n -= step;
    }
    out[used] = 0;
}

int es_fail(es_error *err, int code, const char *fmt, ...)
{
    if (!err)
        return code;
    char text[2 * sizeof err->text]; /* the arguments may lie in *err: format first, copy after */
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    err->code = code;
    copy_shown(err->text, sizeof err->text, text);
    return code;
}

int es_fail_prefix(es_error *err, const char *fmt, ...)
{
    if (!err)
        return ES_ERR_USAGE;
    char text[2 * sizeof err->text];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    size_t at = n < 0 ? 0 : (size_t)n < sizeof err->text / 2 ? (size_t)n : sizeof err->text / 2; /* leave room for the cause */
    snprintf(text + at, sizeof text - at, ": %s", err->text);
    copy_shown(err->text, sizeof err->text, text);
    return err->code;
}
