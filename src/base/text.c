#include "base_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* ---- growable byte string ---- */

/* Room for extra more bytes and a NUL. */
static bool reserve(es_buf *b, size_t extra)
{
    size_t need;
    if (b->failed)
        return false;
    if (!es_add(b->len, extra, &need) || !es_add(need, 1, &need) || need > PTRDIFF_MAX)
        return !(b->failed = true);
    if (need <= b->cap)
        return true;
    size_t cap = b->cap < 64 ? 64 : b->cap;
    while (cap < need)
        cap += cap / 2;
    char *data = realloc(b->data, cap);
    if (!data)
        return !(b->failed = true);
    b->data = data;
    b->cap = cap;
    return true;
}

void es_buf_add(es_buf *b, const void *bytes, size_t n)
{
    if (!reserve(b, n))
        return;
    if (n)
        memcpy(b->data + b->len, bytes, n);
    b->len += n;
    b->data[b->len] = 0;
}

void es_buf_str(es_buf *b, const char *s)
{
    es_buf_add(b, s, strlen(s));
}

void es_buf_printf(es_buf *b, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n < 0) {
        b->failed = true;
    } else if (reserve(b, (size_t)n)) {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
}

void es_buf_clear(es_buf *b)
{
    b->len = 0;
    if (b->data)
        b->data[0] = 0;
}

void es_buf_free(es_buf *b)
{
    free(b->data);
    *b = (es_buf){0};
}

/* ---- text ---- */

/* Bytes of the valid character at s, 0 when s does not start with one. */
static size_t decode(const char *s, size_t n, utf8proc_int32_t *cp)
{
    unsigned char c = (unsigned char)*s;
    if (c < 0x80) {
        *cp = c;
        return 1;
    }
    utf8proc_ssize_t step = utf8proc_iterate((const utf8proc_uint8_t *)s, n > 4 ? 4 : (utf8proc_ssize_t)n, cp);
    return step > 0 ? (size_t)step : 0;
}

size_t es_utf8_whole(const char *s, size_t n)
{
    size_t at = 0;
    while (at < n) {
        utf8proc_int32_t cp;
        size_t step = decode(s + at, n - at, &cp);
        if (step == 0)
            break;
        at += step;
    }
    return at;
}

/* Characters that move text about or end a line without being C0/C1: bidi marks, embeddings, overrides and isolates, the line
 * and paragraph separators. */
static bool reorders(utf8proc_int32_t cp)
{
    return cp == 0x61c || cp == 0x200e || cp == 0x200f || (cp >= 0x2028 && cp <= 0x202e) || (cp >= 0x2066 && cp <= 0x2069);
}

size_t es_show_step(const char *s, size_t n, bool keep_space, char *esc)
{
    utf8proc_int32_t cp;
    size_t step = decode(s, n, &cp);
    esc[0] = 0;
    if (step == 0) {
        snprintf(esc, 12, "\\x%02x", (unsigned)(unsigned char)*s);
        return 1;
    }
    if (cp < 0x20 && !(keep_space && (cp == '\n' || cp == '\t'))) {
        if (cp == '\n' || cp == '\t' || cp == '\r')
            snprintf(esc, 12, "\\%c", cp == '\n' ? 'n' : cp == '\t' ? 't' : 'r');
        else
            snprintf(esc, 12, "\\x%02x", (unsigned)cp);
    } else if (cp == 0x7f) {
        snprintf(esc, 12, "\\x7f");
    } else if ((cp >= 0x80 && cp < 0xa0) || reorders(cp)) {
        snprintf(esc, 12, "\\u%04x", (unsigned)cp);
    }
    return step;
}

void es_utf8_mend(es_buf *out, const char *s, size_t n)
{
    while (n > 0) {
        const char *nul = memchr(s, 0, n); /* valid UTF-8, but JSON's readers refuse it */
        size_t whole = es_utf8_whole(s, nul ? (size_t)(nul - s) : n);
        es_buf_add(out, s, whole);
        s += whole;
        n -= whole;
        if (n > 0) {
            es_buf_str(out, "\xef\xbf\xbd");
            s++;
            n--;
            while (n > 0 && ((unsigned char)*s & 0xC0) == 0x80) { /* the rest of the broken character */
                s++;
                n--;
            }
        }
    }
}

void es_buf_json_line(es_buf *out, const json_t *v, size_t flags)
{
    char *text = v ? json_dumps(v, JSON_COMPACT | flags) : NULL;
    if (text)
        es_buf_printf(out, "%s\n", text);
    else
        out->failed = true;
    free(text);
}

json_t *es_json_mended(const char *s, size_t n)
{
    es_buf b = {0};
    es_utf8_mend(&b, s, n);
    json_t *v = b.failed ? NULL : json_stringn(b.data ? b.data : "", b.len);
    es_buf_free(&b);
    return v;
}

void es_text_show(es_buf *out, const char *s, size_t n, bool keep_space)
{
    size_t plain = 0; /* bytes since the last escape: copied in one go */
    while (plain < n) {
        char esc[16];
        size_t step = es_show_step(s + plain, n - plain, keep_space, esc);
        if (!esc[0]) {
            plain += step;
            continue;
        }
        es_buf_add(out, s, plain);
        es_buf_str(out, esc);
        s += plain + step;
        n -= plain + step;
        plain = 0;
    }
    es_buf_add(out, s, plain);
}

int es_text_width(const char *s, size_t n)
{
    int width = 0;
    while (n > 0) {
        utf8proc_int32_t cp;
        size_t step = decode(s, n, &cp);
        if (step == 0)
            step = 1;
        else if (cp >= 0x20 && cp < 0x7f)
            width++;
        else
            width += utf8proc_charwidth(cp);
        s += step;
        n -= step;
    }
    return width;
}

void es_shape_text(char *out, size_t size, int n_dims, const size_t *dim)
{
    size_t at = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < n_dims && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%zu", i ? ", " : "", dim[i]);
    if (at < size)
        snprintf(out + at, size - at, "]");
}
