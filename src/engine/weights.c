#include "weights.h"
#include "device.h"
#include "tokenizer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char FORMAT[] = "espalier-weights";

/* ---- every array of a model, in the order of its numbers ------------------------------------------------------------------ */

typedef struct array {
    char name[48];
    int n_out, n_in;    /* n_out 0: a vector */
    es_weight *weight;  /* where the model keeps it: one of these two */
    const float **norm;
    size_t at;          /* its first number */
} array;

static size_t array_size(const array *a)
{
    return (size_t)(a->n_out ? a->n_out : 1) * (size_t)a->n_in;
}

static int n_arrays(const es_model *m)
{
    int norms = 0;
    for (int i = 0; i < ES_N_NORMS; i++)
        norms += es_norm_width(m, (es_norm)i) > 0;
    return m->info.n_layer * (ES_N_SITES + norms) + 2 + !m->info.tied_head;
}

static void add_array(array *list, int *n, es_weight *w, const float **norm, int n_in, const char *name, int layer)
{
    array *a = &list[(*n)++];
    *a = (array){.n_out = w ? w->n_out : 0, .n_in = w ? w->n_in : n_in, .weight = w, .norm = norm};
    if (layer >= 0)
        snprintf(a->name, sizeof a->name, "blk.%d.%s.weight", layer, name);
    else
        snprintf(a->name, sizeof a->name, "%s.weight", name);
}

/* Fills list[n_arrays(m)] for the model's own fields; false: sizes overflow. *n: numbers in all. */
static bool list_arrays(es_model *m, array *list, size_t *n, size_t *n_matrix)
{
    int count = 0, d = m->info.d_model;
    add_array(list, &count, &m->token_embd, NULL, 0, "token_embd", -1);
    if (!m->info.tied_head)
        add_array(list, &count, &m->head, NULL, 0, "output", -1);
    for (int l = 0; l < m->info.n_layer; l++)
        for (int s = 0; s < ES_N_SITES; s++)
            add_array(list, &count, &m->layer[l].site[s], NULL, 0, es_site_name((es_site)s), l);
    add_array(list, &count, NULL, &m->final_norm, d, "output_norm", -1);
    for (int l = 0; l < m->info.n_layer; l++)
        for (int i = 0; i < ES_N_NORMS; i++)
            if (es_norm_width(m, (es_norm)i) > 0)
                add_array(list, &count, NULL, &m->layer[l].norm[i], es_norm_width(m, (es_norm)i), es_norm_name((es_norm)i), l);
    size_t at = 0, size;
    *n_matrix = 0;
    for (int i = 0; i < count; i++) {
        if (!list[i].weight && !*n_matrix)
            *n_matrix = at;
        list[i].at = at;
        if (!es_mul((size_t)(list[i].n_out ? list[i].n_out : 1), (size_t)list[i].n_in, &size) || !es_add(size, 15, &size) ||
            !es_add(at, size & ~(size_t)15, &at)) /* each begins on a cache line */
            return false;
    }
    *n = at;
    return true;
}

/* NULL: no memory, or sizes that overflow. */
static array *arrays_of(es_model *m, size_t *n, size_t *n_matrix)
{
    array *list = es_calloc((size_t)n_arrays(m), sizeof *list);
    if (list && !list_arrays(m, list, n, n_matrix)) {
        free(list);
        list = NULL;
    }
    return list;
}

/* ---- thawing ---------------------------------------------------------------------------------------------------------------- */

size_t es_model_thaw_bytes(const es_model *base)
{
    size_t n = 0, n_matrix, bytes;
    array *list = arrays_of((es_model *)(uintptr_t)base, &n, &n_matrix); /* only its shapes are looked at */
    if (!list)
        return SIZE_MAX;
    free(list);
    return es_mul(n, sizeof(float), &bytes) ? bytes : SIZE_MAX;
}

int es_model_thaw(es_model **out, es_model *base, size_t limit, es_error *err)
{
    char hash[65];
    *out = NULL;
    size_t bytes = es_model_thaw_bytes(base);
    int rc = es_memory_check(bytes, limit, "a copy of the model with weights of its own", err);
    rc = rc ? rc : es_model_hash(base, hash, err);
    if (rc)
        return rc;
    es_model *m = es_calloc(1, sizeof *m);
    size_t half = (size_t)base->info.head_dim / 2;
    if (m) {
        m->info = base->info;
        m->facts = base->facts;
        m->token_embd = base->token_embd;
        m->head = base->head;
        m->layer = es_calloc((size_t)base->info.n_layer, sizeof *m->layer);
        m->rope_inv = es_calloc(2 * half, sizeof *m->rope_inv);
        m->sampling = base->sampling;
        m->tokenizer = es_tokenizer_share(base->tokenizer);
        memcpy(m->hash, hash, sizeof hash);
    }
    array *list = NULL;
    if (!m || !m->layer || !m->rope_inv)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for a model");
    else {
        memcpy(m->layer, base->layer, sizeof *m->layer * (size_t)base->info.n_layer);
        memcpy(m->rope_inv, base->rope_inv, 2 * half * sizeof *m->rope_inv);
        m->final_norm = base->final_norm;
        list = arrays_of(m, &m->n_own, &m->n_own_matrix);
        rc = list ? es_arena_open(&m->own, bytes, err) : es_fail(err, ES_ERR_MEMORY, "no memory for a model");
    }
    for (int i = 0; !rc && i < n_arrays(m); i++) {
        float *to = (float *)m->own.base + list[i].at;
        if (list[i].norm) {
            memcpy(to, *list[i].norm, array_size(&list[i]) * sizeof *to);
            *list[i].norm = to;
        } else {
            es_weight *w = list[i].weight;
            es_dequant(w->type, w->data, to, array_size(&list[i]));
            *w = (es_weight){.type = ES_F32, .n_out = w->n_out, .n_in = w->n_in, .data = to};
        }
    }
    free(list);
    if (rc) {
        es_model_free(m);
        return rc;
    }
    if (m->info.tied_head)
        m->head = m->token_embd;
    if ((rc = es_on_inherit(m, base, err))) {
        es_model_free(m);
        return rc;
    }
    *out = m;
    return ES_OK;
}

float *es_model_numbers(es_model *m, size_t *n, size_t *n_matrix)
{
    *n = m->n_own;
    if (n_matrix)
        *n_matrix = m->n_own_matrix;
    return (float *)m->own.base;
}

static bool same_shapes(const es_model *a, const es_model *b)
{
    const es_model_info *x = &a->info, *y = &b->info;
    return x->n_layer == y->n_layer && x->d_model == y->d_model && x->n_head == y->n_head && x->n_kv == y->n_kv && x->head_dim == y->head_dim &&
           x->d_ff == y->d_ff && a->facts.family == b->facts.family && x->n_vocab == y->n_vocab && x->tied_head == y->tied_head;
}

int es_model_assign(es_model *to, const es_model *from, es_error *err)
{
    if (!to->own.base || !from->own.base || !same_shapes(to, from))
        return es_fail(err, ES_ERR_USAGE, "weights are copied between thawed models of the same shapes only");
    memcpy(to->own.base, from->own.base, to->n_own * sizeof(float));
    es_model_changed(to);
    return ES_OK;
}

/* ---- files ------------------------------------------------------------------------------------------------------------------- */

enum { NAME = 96 };

static void name_of(char out[NAME], const char *prefix, const array *a)
{
    snprintf(out, NAME, "%s%s%s", prefix ? prefix : "", prefix ? ":" : "", a->name);
}

static es_tensor_spec spec_of(const char *name, es_tensor_type type, const array *a, const float *numbers)
{
    es_tensor_spec s = {.name = name, .type = type, .n_dims = a->n_out ? 2 : 1, .data = numbers + a->at};
    s.dim[0] = (size_t)(a->n_out ? a->n_out : a->n_in);
    s.dim[1] = a->n_out ? (size_t)a->n_in : 0;
    return s;
}

int es_weights_save(es_model *m, const char *path, es_tensor_type type, const es_weights_more *more, int n_more, json_t *meta, es_error *err)
{
    if (!m->own.base || n_more < 0)
        return es_fail(err, ES_ERR_USAGE, "%s: only a thawed model's weights are written", path);
    size_t n = 0, n_matrix, count = (size_t)n_arrays(m), total;
    if (!es_mul(count, (size_t)n_more + 1, &total))
        return es_fail(err, ES_ERR_USAGE, "%s: too many arrays", path);
    array *list = arrays_of(m, &n, &n_matrix);
    es_tensor_spec *spec = es_calloc(total, sizeof *spec);
    char(*name)[NAME] = es_calloc(total, NAME);
    json_t *all = meta ? json_copy(meta) : json_object();
    int rc = list && spec && name && all ? ES_OK : es_fail(err, ES_ERR_MEMORY, "%s: no memory to write it", path);
    for (size_t i = 0; !rc && i < total; i++) {
        const es_weights_more *x = i < count ? NULL : &more[i / count - 1];
        name_of(name[i], x ? x->name : NULL, &list[i % count]);
        spec[i] = spec_of(name[i], x ? x->type : type, &list[i % count], x ? x->number : (const float *)m->own.base);
    }
    if (!rc && (json_object_set_new(all, "format", json_string(FORMAT)) != 0 || json_object_set_new(all, "model_hash", json_string(m->hash)) != 0))
        rc = es_fail(err, ES_ERR_MEMORY, "%s: no memory to write it", path);
    rc = rc ? rc : es_safetensors_write_file(path, spec, total, all, err);
    json_decref(all);
    free(name);
    free(spec);
    free(list);
    return rc;
}

enum { CHUNK = 1 << 14 };

/* Whether the file has the array, in this shape, of finite numbers. chunk[CHUNK] is scratch. */
static int check_tensor(const es_safetensors *s, const char *name, const array *a, float *chunk, const char *path, es_error *err)
{
    const es_tensor *t = es_safetensors_find(s, name);
    if (!t)
        return es_fail(err, ES_ERR_FORMAT, "%s: the array %s is missing", path, name);
    es_tensor_spec want = spec_of(name, ES_TENSOR_F32, a, NULL);
    bool fits = t->n_dims == want.n_dims && t->dim[0] == want.dim[0] && (want.n_dims < 2 || t->dim[1] == want.dim[1]);
    if (!fits)
        return es_fail(err, ES_ERR_FORMAT, "%s: the array %s has another shape than the model's", path, name);
    for (size_t at = 0; at < t->n; at += CHUNK) {
        size_t k = t->n - at < CHUNK ? t->n - at : CHUNK;
        if (!es_tensor_f32(t, at, k, chunk))
            return es_fail(err, ES_ERR_FORMAT, "%s: the array %s has type %s; F32, F16, BF16 and F64 are read", path, name, es_tensor_type_name(t->type));
        for (size_t i = 0; i < k; i++)
            if (!isfinite(chunk[i]))
                return es_fail(err, ES_ERR_FORMAT, "%s: the array %s holds NaN or infinity: the file is damaged", path, name);
    }
    return ES_OK;
}

static int check_file(es_model *m, const es_safetensors *s, const char *path, size_t total, es_error *err)
{
    const char *format = es_safetensors_metadata(s, "format"), *hash = es_safetensors_metadata(s, "model_hash");
    if (!format || strcmp(format, FORMAT) != 0)
        return es_fail(err, ES_ERR_FORMAT, "%s: is not a file of weights written here", path);
    if (!hash || strcmp(hash, m->hash) != 0)
        return es_fail(err, ES_ERR_MISMATCH, "%s: was learned from the model %.12s, this one is %.12s", path, hash ? hash : "(unknown)", m->hash);
    if (es_safetensors_count(s) != total)
        return es_fail(err, ES_ERR_FORMAT, "%s: has %zu arrays where %zu are expected", path, es_safetensors_count(s), total);
    return ES_OK;
}

int es_weights_load(es_model *m, const char *path, const es_weights_more *more, int n_more, json_t **meta, es_error *err)
{
    if (meta)
        *meta = NULL;
    if (!m->own.base || n_more < 0)
        return es_fail(err, ES_ERR_USAGE, "%s: weights are read into a thawed model only", path);
    size_t n = 0, n_matrix, count = (size_t)n_arrays(m), total;
    es_safetensors *s = NULL;
    if (!es_mul(count, (size_t)n_more + 1, &total))
        return es_fail(err, ES_ERR_USAGE, "%s: too many arrays", path);
    int rc = es_safetensors_open(&s, path, err);
    if (rc)
        return rc;
    array *list = arrays_of(m, &n, &n_matrix);
    float *chunk = es_calloc(CHUNK, sizeof *chunk);
    rc = list && chunk ? check_file(m, s, path, total, err) : es_fail(err, ES_ERR_MEMORY, "%s: no memory to read it", path);
    char name[NAME];
    for (size_t i = 0; !rc && i < total; i++) {
        name_of(name, i < count ? NULL : more[i / count - 1].name, &list[i % count]);
        rc = check_tensor(s, name, &list[i % count], chunk, path, err);
    }
    if (!rc && meta && !(*meta = json_incref(es_safetensors_metadata_all(s))))
        rc = es_fail(err, ES_ERR_MEMORY, "%s: no memory to read it", path);
    for (size_t i = 0; !rc && i < total; i++) { /* nothing fails from here on */
        float *to = i < count ? (float *)m->own.base : more[i / count - 1].number;
        name_of(name, i < count ? NULL : more[i / count - 1].name, &list[i % count]);
        const es_tensor *t = es_safetensors_find(s, name);
        if (to)
            es_tensor_f32(t, 0, t->n, to + list[i % count].at);
    }
    free(chunk);
    free(list);
    es_safetensors_free(s);
    if (!rc)
        es_model_changed(m);
    return rc;
}
