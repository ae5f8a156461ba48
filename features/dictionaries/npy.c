#include "npy.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct { const char *descr; es_tensor_type type; size_t bytes; } types[] = {
    {"f4", ES_TENSOR_F32, 4}, {"f2", ES_TENSOR_F16, 2}, {"f8", ES_TENSOR_F64, 8}, {"V2", ES_TENSOR_BF16, 2}, {"i4", ES_TENSOR_I32, 4},
    {"i8", ES_TENSOR_I64, 8}, {"u4", ES_TENSOR_U32, 4}, {"u8", ES_TENSOR_U64, 8}, {"i2", ES_TENSOR_I16, 2}, {"u2", ES_TENSOR_U16, 2},
    {"i1", ES_TENSOR_I8, 1}, {"u1", ES_TENSOR_U8, 1}, {"b1", ES_TENSOR_BOOL, 1},
};
enum { N_TYPES = sizeof types / sizeof *types };

/* The header is a Python literal, of which this little is needed: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } */
typedef struct scan { const char *p, *end; } scan;

static void blanks(scan *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\t'))
        s->p++;
}

static bool sign(scan *s, char c)
{
    blanks(s);
    if (s->p == s->end || *s->p != c)
        return false;
    s->p++;
    return true;
}

static bool word(scan *s, const char *w)
{
    size_t n = strlen(w);
    blanks(s);
    if ((size_t)(s->end - s->p) < n || memcmp(s->p, w, n) != 0)
        return false;
    s->p += n;
    return true;
}

static bool quoted(scan *s, char *out, size_t size)
{
    blanks(s);
    if (s->p == s->end || (*s->p != '\'' && *s->p != '"'))
        return false;
    char quote = *s->p++;
    size_t n = 0;
    while (s->p < s->end && *s->p != quote && *s->p != '\\' && n + 1 < size)
        out[n++] = *s->p++;
    out[n] = 0;
    return sign(s, quote);
}

/* A tuple of sizes. false: none, or one that is too large. */
static bool shape(scan *s, es_npy *out)
{
    if (!sign(s, '('))
        return false;
    out->n_dims = 0;
    while (!sign(s, ')')) {
        blanks(s);
        size_t v = 0;
        if (out->n_dims == ES_TENSOR_DIMS || s->p == s->end || !isdigit((unsigned char)*s->p))
            return false;
        for (; s->p < s->end && isdigit((unsigned char)*s->p); s->p++)
            if (!es_mul(v, 10, &v) || !es_add(v, (size_t)(*s->p - '0'), &v))
                return false;
        out->dim[out->n_dims++] = v;
        if (!sign(s, ',')) {
            if (!sign(s, ')'))
                return false;
            break;
        }
    }
    return true;
}

static int read_type(es_npy *out, const char *descr, size_t *bytes, const char *what, es_error *err)
{
    char order = descr[0];
    if (strchr(descr, 'O'))
        return es_fail(err, ES_ERR_FORMAT, "%s: holds Python objects (%.20s), which would have to be run to be read: save numbers", what, descr);
    if (order == '>')
        return es_fail(err, ES_ERR_FORMAT, "%s: is big-endian (%.20s): save it again with .astype('<f4')", what, descr);
    if (order == '<' || order == '|' || order == '=')
        for (int i = 0; i < N_TYPES; i++)
            if (!strcmp(descr + 1, types[i].descr)) {
                out->type = types[i].type;
                *bytes = types[i].bytes;
                return ES_OK;
            }
    return es_fail(err, ES_ERR_FORMAT, "%s: the type \"%.20s\" is unknown", what, descr);
}

int es_npy_parse(es_npy *out, const uint8_t *bytes, size_t have, size_t size, const char *what, es_error *err)
{
    *out = (es_npy){0};
    if (have < 10 || memcmp(bytes, "\x93NUMPY", 6) != 0)
        return es_fail(err, ES_ERR_FORMAT, "%s: no npy file", what);
    if (bytes[6] < 1 || bytes[6] > 3)
        return es_fail(err, ES_ERR_FORMAT, "%s: npy version %u is unknown", what, bytes[6]);
    size_t at = bytes[6] == 1 ? 10 : 12, length = (size_t)bytes[8] | (size_t)bytes[9] << 8;
    if (have < at)
        return es_fail(err, ES_ERR_FORMAT, "%s: no npy file", what);
    if (at == 12)
        length |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
    if (length > ES_NPY_HEADER_MAX - at || length > have - at)
        return es_fail(err, ES_ERR_FORMAT, "%s: its npy header would take %zu bytes (limit: %d, file: %zu)", what, length, (int)ES_NPY_HEADER_MAX, size);
    out->header = at + length;
    scan s = {(const char *)bytes + at, (const char *)bytes + at + length};
    bool descr = false, order = false, dims = false, ok = sign(&s, '{');
    char key[24], type[24] = "";
    while (ok && !sign(&s, '}')) {
        ok = quoted(&s, key, sizeof key) && sign(&s, ':');
        if (ok && !strcmp(key, "descr") && !descr) {
            blanks(&s);
            if (s.p < s.end && *s.p == '[')
                return es_fail(err, ES_ERR_FORMAT, "%s: has records, not numbers", what);
            ok = descr = quoted(&s, type, sizeof type);
        } else if (ok && !strcmp(key, "fortran_order") && !order) {
            out->fortran = word(&s, "True");
            ok = order = out->fortran || word(&s, "False");
        } else if (ok && !strcmp(key, "shape") && !dims) {
            ok = dims = shape(&s, out);
        } else {
            ok = false;
        }
        if (ok && !sign(&s, ',')) {
            ok = sign(&s, '}');
            break;
        }
    }
    blanks(&s);
    if (!ok || !descr || !order || !dims || s.p != s.end)
        return es_fail(err, ES_ERR_FORMAT, "%s: its npy header is damaged", what);
    size_t each = 0;
    int rc = read_type(out, type, &each, what, err);
    if (rc)
        return rc;
    out->n = 1;
    bool fits = true;
    for (int i = 0; i < out->n_dims; i++)
        fits = fits && es_mul(out->n, out->dim[i], &out->n);
    if (!fits || !es_mul(out->n, each, &out->bytes))
        return es_fail(err, ES_ERR_FORMAT, "%s: its shape is too large", what);
    if (out->bytes != size - out->header)
        return es_fail(err, ES_ERR_FORMAT, "%s: has %zu bytes of data where its shape needs %zu", what, size - out->header, out->bytes);
    return ES_OK;
}

void es_npy_header(es_buf *out, es_tensor_type type, int n_dims, const size_t *dim)
{
    es_buf head = {0};
    const char *descr = "f4";
    for (int i = 0; i < N_TYPES; i++)
        if (types[i].type == type)
            descr = types[i].descr;
    es_buf_printf(&head, "{'descr': '%c%s', 'fortran_order': False, 'shape': (", descr[0] == 'V' ? '|' : '<', descr);
    for (int i = 0; i < n_dims; i++)
        es_buf_printf(&head, i == 0 ? "%zu," : i + 1 < n_dims ? " %zu," : " %zu", dim[i]);
    es_buf_str(&head, "), }");
    while ((10 + head.len + 1) % 64)
        es_buf_str(&head, " ");
    es_buf_str(&head, "\n");
    es_buf_add(out, "\x93NUMPY\x01\x00", 8);
    es_buf_add(out, (uint8_t[]){(uint8_t)head.len, (uint8_t)(head.len >> 8)}, 2);
    es_buf_add(out, head.data, head.len);
    out->failed |= head.failed;
    es_buf_free(&head);
}
