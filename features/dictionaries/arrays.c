#include "arrays.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels.h"
#include "npy.h"
#include "pickle.h"

enum { BLOCK = 64 };

static size_t width_of(es_tensor_type t)
{
    return t == ES_TENSOR_F64 ? 8 : t == ES_TENSOR_F32 ? 4 : 2;
}

static bool is_real(es_tensor_type t)
{
    return t == ES_TENSOR_F32 || t == ES_TENSOR_F16 || t == ES_TENSOR_BF16 || t == ES_TENSOR_F64;
}

void es_arrays_close(es_arrays *a)
{
    for (size_t i = 0; i < a->n_owned; i++)
        free(a->owned[i]);
    free(a->owned);
    free(a->item);
    es_safetensors_free(a->tensors);
    es_zip_free(a->zip);
    *a = (es_arrays){0};
}

const es_array *es_arrays_find(const es_arrays *a, const char *name)
{
    for (size_t i = 0; i < a->n; i++)
        if (!strcmp(a->item[i].name, name))
            return &a->item[i];
    return NULL;
}

int es_arrays_add(es_arrays *a, const es_array *x, es_error *err)
{
    if (a->n == a->cap) {
        size_t cap = a->cap ? 2 * a->cap : 16;
        es_array *p = realloc(a->item, cap * sizeof *p);
        if (!p)
            return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory for its list of arrays", a->what);
        a->item = p;
        a->cap = cap;
    }
    a->item[a->n++] = *x;
    return ES_OK;
}

int es_arrays_own(es_arrays *a, void *memory, es_error *err)
{
    if (a->n_owned == a->cap_owned) {
        size_t cap = a->cap_owned ? 2 * a->cap_owned : 16;
        void **p = realloc(a->owned, cap * sizeof *p);
        if (!p) {
            free(memory);
            return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory for its list of arrays", a->what);
        }
        a->owned = p;
        a->cap_owned = cap;
    }
    a->owned[a->n_owned++] = memory;
    return ES_OK;
}

int es_arrays_safetensors(es_arrays *a, const char *path, es_error *err)
{
    snprintf(a->what, sizeof a->what, "%s", path);
    int rc = es_safetensors_open(&a->tensors, path, err);
    for (size_t i = 0; !rc && i < es_safetensors_count(a->tensors); i++) {
        const es_tensor *t = es_safetensors_at(a->tensors, i);
        es_array x = {.name = t->name, .type = t->type, .n_dims = t->n_dims, .n = t->n, .bytes = t->bytes, .data = t->data, .mapped = true};
        memcpy(x.dim, t->dim, sizeof x.dim);
        rc = es_arrays_add(a, &x, err);
    }
    return rc;
}

/* Headers first, all of them; only then is anything unpacked. */
int es_arrays_npz(es_arrays *a, const char *path, es_error *err)
{
    snprintf(a->what, sizeof a->what, "%s", path);
    int rc = es_zip_open(&a->zip, path, err);
    uint8_t *head = rc ? NULL : es_calloc(ES_NPY_HEADER_MAX, 1);
    if (!rc && !head)
        rc = es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", path);
    for (size_t i = 0; !rc && i < es_zip_count(a->zip); i++) {
        const es_zip_member *m = es_zip_at(a->zip, i);
        size_t got, len = strlen(m->name);
        char what[1200];
        es_npy h;
        if (len < 5 || strcmp(m->name + len - 4, ".npy") != 0) {
            rc = es_fail(err, ES_ERR_FORMAT, "%s: the member \"%.100s\" is no .npy", path, m->name);
            break;
        }
        snprintf(what, sizeof what, "%s: %.100s", path, m->name);
        rc = es_zip_peek(a->zip, m, head, ES_NPY_HEADER_MAX, &got, err);
        if (!rc)
            rc = es_npy_parse(&h, head, got, m->size, what, err);
        char *name = rc ? NULL : strndup(m->name, len - 4);
        if (!rc && !name)
            rc = es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", path);
        if (!rc)
            rc = es_arrays_own(a, name, err);
        es_array x = {.name = name, .type = h.type, .n_dims = h.n_dims, .n = h.n, .bytes = h.bytes, .fortran = h.fortran};
        memcpy(x.dim, h.dim, sizeof x.dim);
        if (!rc)
            rc = es_arrays_add(a, &x, err);
    }
    free(head);
    for (size_t i = 0; !rc && i < a->n; i++) {
        const es_zip_member *m = es_zip_at(a->zip, i);
        const uint8_t *bytes;
        void *owned;
        rc = es_zip_read(a->zip, m, &bytes, &owned, err);
        if (!rc && owned)
            rc = es_arrays_own(a, owned, err);
        if (!rc) {
            a->item[i].data = bytes + (m->size - a->item[i].bytes);
            a->item[i].mapped = !owned;
        }
    }
    return rc;
}

/* ---- matrices --------------------------------------------------------------------------------------------------------------------------- */

static int find_real(const es_arrays *a, const char *name, const es_array **out, es_error *err)
{
    *out = es_arrays_find(a, name);
    if (!*out)
        return es_fail(err, ES_ERR_MISSING, "%s: there is no array \"%s\"", a->what, name);
    if (!is_real((*out)->type))
        return es_fail(err, ES_ERR_FORMAT, "%s: \"%s\" has type %s; F32, F16, BF16 and F64 are read", a->what, name, es_tensor_type_name((*out)->type));
    return ES_OK;
}

int es_arrays_matrix(const es_arrays *a, const char *name, bool transposed, size_t rows, size_t cols, es_matrix *out, es_error *err)
{
    const es_array *x;
    int rc = find_real(a, name, &x, err);
    if (rc)
        return rc;
    size_t want[2] = {transposed ? cols : rows, transposed ? rows : cols};
    if (x->n_dims != 2 || x->dim[0] != want[0] || x->dim[1] != want[1]) {
        char have[120], wanted[60];
        es_shape_text(have, sizeof have, x->n_dims, x->dim);
        es_shape_text(wanted, sizeof wanted, 2, want);
        return es_fail(err, ES_ERR_FORMAT, "%s: there is no %s %s: it has the shape %s", a->what, name, wanted, have);
    }
    *out = (es_matrix){.type = x->type, .data = x->data, .rows = rows, .cols = cols, .by_row = transposed == x->fortran, .scale = 1,
                       .mapped = x->mapped};
    return ES_OK;
}

/* n numbers from place `first` on, as they lie, times the scale. */
static void convert(const es_matrix *m, size_t first, size_t n, float *out)
{
    es_tensor t = {.type = m->type, .n_dims = 1, .n = m->rows * m->cols, .data = m->data};
    es_tensor_f32(&t, first, n, out);
    if (m->scale != 1)
        for (size_t i = 0; i < n; i++)
            out[i] *= m->scale;
}

void es_matrix_rows(const es_matrix *m, size_t first, size_t n, float *out)
{
    if (m->by_row) {
        convert(m, first * m->cols, n * m->cols, out);
        return;
    }
    float strip[BLOCK];
    for (size_t j = 0; j < n; j += BLOCK) {
        size_t some = n - j < BLOCK ? n - j : BLOCK;
        for (size_t i = 0; i < m->cols; i++) {
            convert(m, i * m->rows + first + j, some, strip);
            for (size_t k = 0; k < some; k++)
                out[(j + k) * m->cols + i] = strip[k];
        }
    }
}

void es_matrix_columns(const es_matrix *m, size_t first, size_t n, size_t c0, size_t c1, float *out)
{
    for (size_t c = c0; c < c1; c++)
        convert(m, c * m->rows + first, n, out + (c - c0) * n);
}

const float *es_matrix_f32(const es_matrix *m)
{
    return m->type == ES_TENSOR_F32 && m->scale == 1 && (uintptr_t)m->data % sizeof(float) == 0 ? (const float *)(const void *)m->data : NULL;
}

void es_matrix_release(const es_matrix *m)
{
    es_matrix_release_lines(m, 0, m->by_row ? m->rows : m->cols);
}

void es_matrix_release_lines(const es_matrix *m, size_t first, size_t n)
{
    size_t line = (m->by_row ? m->cols : m->rows) * width_of(m->type);
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)m->data + first * line, to = from + n * line;
    from = (from + page - 1) / page * page;
    to = to / page * page;
    if (m->mapped && to > from)
        madvise((void *)from, to - from, MADV_DONTNEED); /* of a file mapped read-only nothing is lost */
}

es_tensor_type es_matrix_type(const es_matrix *m)
{
    return m->type == ES_TENSOR_F64 || m->scale != 1 ? ES_TENSOR_F32 : m->type;
}

size_t es_matrix_bytes(const es_matrix *m, es_tensor_type type)
{
    return m->rows * m->cols * width_of(type); /* fits: a reader has checked the f32 size */
}

/* n numbers as `type`. */
static bool put_numbers(const float *v, size_t n, es_tensor_type type, const es_put *out)
{
    enum { CHUNK = 4096 };
    if (type == ES_TENSOR_F32)
        return out->put(out->user, v, n * sizeof *v);
    uint16_t half[CHUNK];
    for (size_t i = 0; i < n; i += CHUNK) {
        size_t some = n - i < CHUNK ? n - i : CHUNK;
        if (type == ES_TENSOR_F16)
            es_f32_to_f16(v + i, half, some);
        else
            for (size_t j = 0; j < some; j++) { /* to nearest even; the numbers are finite */
                uint32_t b;
                memcpy(&b, v + i + j, 4);
                half[j] = (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
            }
        if (!out->put(out->user, half, 2 * some))
            return false;
    }
    return true;
}

int es_matrix_put(const es_matrix *m, es_tensor_type type, bool by_row, const es_put *out, es_error *err)
{
    size_t n = m->rows * m->cols;
    if (type == m->type && by_row == m->by_row && m->scale == 1) {
        const size_t step = 1 << 20, bytes = n * width_of(type);
        for (size_t i = 0; i < bytes && out->put(out->user, m->data + i, bytes - i < step ? bytes - i : step); i += step)
            ;
        return ES_OK; /* a put that failed is its owner's to report */
    }
    /* a few lines of what is written at a time: rows, or columns, which are then rows of the transposed matrix */
    es_matrix t = *m;
    if (!by_row) {
        t.rows = m->cols;
        t.cols = m->rows;
        t.by_row = !m->by_row;
    }
    float *line = es_calloc(BLOCK * t.cols + 1, sizeof *line);
    if (!line)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to write a matrix");
    for (size_t i = 0; i < t.rows; i += BLOCK) {
        size_t some = t.rows - i < BLOCK ? t.rows - i : BLOCK;
        es_matrix_rows(&t, i, some, line);
        if (!put_numbers(line, some * t.cols, type, out))
            break;
    }
    free(line);
    return ES_OK;
}

/* ---- vectors ------------------------------------------------------------------------------------------------------------------------------ */

int es_numbers_new(es_numbers *out, size_t n, float value, es_error *err)
{
    *out = (es_numbers){es_calloc(n + 1, sizeof(float)), n, ES_TENSOR_F32};
    if (!out->v)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for %zu numbers", n);
    for (size_t i = 0; i < n; i++)
        out->v[i] = value;
    return ES_OK;
}

int es_arrays_numbers(const es_arrays *a, const char *name, size_t n, bool spread, es_numbers *out, es_error *err)
{
    const es_array *x;
    int rc = find_real(a, name, &x, err);
    if (rc)
        return rc;
    bool one = spread && x->n == 1 && x->n_dims <= 1;
    if (!one && (x->n_dims != 1 || x->n != n)) {
        char have[120];
        es_shape_text(have, sizeof have, x->n_dims, x->dim);
        return es_fail(err, ES_ERR_FORMAT, "%s: \"%s\" is %s where [%zu] is expected", a->what, name, have, n);
    }
    rc = es_numbers_new(out, n, 0, err);
    if (rc)
        return rc;
    es_tensor t = {.type = x->type, .n_dims = 1, .n = x->n, .data = x->data};
    es_tensor_f32(&t, 0, x->n, out->v);
    for (size_t i = 1; one && i < n; i++)
        out->v[i] = out->v[0];
    out->type = x->type == ES_TENSOR_F64 ? ES_TENSOR_F32 : x->type;
    for (size_t i = 0; i < n; i++)
        if (!isfinite(out->v[i])) {
            free(out->v);
            *out = (es_numbers){0};
            return es_fail(err, ES_ERR_FORMAT, "%s: %s holds a value that is not a number or infinite", a->what, name);
        }
    return ES_OK;
}

int es_numbers_put(const es_numbers *v, es_tensor_type type, const es_put *out, es_error *err)
{
    (void)err;
    put_numbers(v->v, v->n, type, out);
    return ES_OK;
}

bool es_arrays_integer(const es_arrays *a, const char *name, long long *out)
{
    const es_array *x = es_arrays_find(a, name);
    if (!x || x->n != 1)
        return false;
    if (x->type == ES_TENSOR_I32) {
        int32_t v;
        memcpy(&v, x->data, 4);
        *out = v;
        return true;
    }
    if (x->type == ES_TENSOR_I64) {
        int64_t v;
        memcpy(&v, x->data, 8);
        *out = v;
        return true;
    }
    return false;
}
