/* adapter: what the model may learn. bias: h' = h + D c after the dictionary's layer; gain, map: adapter_hook.c. lora: W' = W + D M A on every
 * matrix that writes the residual in a band of layers, so that whatever is added stays in the span of the basis; or W' = W + B A without that
 * constraint, the peer it is compared with. */
#include "adapter.h"
#include "safetensors.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const FORMAT = "espalier-adapter";
static const es_site SITES[] = {ES_SITE_O, ES_SITE_DOWN}; /* the matrices that write the residual */
enum { N_SITES = 2, RANK_MAX = 1024 };

const char *es_form_name(es_form f)
{
    static const char *const name[] = {[ES_FORM_BIAS] = "bias", [ES_FORM_GAIN] = "gain", [ES_FORM_MAP] = "map", [ES_FORM_LORA] = "lora"};
    return (unsigned)f < sizeof name / sizeof *name ? name[f] : "?";
}

bool es_form_named(const char *name, es_form *out)
{
    for (int f = ES_FORM_BIAS; f <= ES_FORM_LORA; f++)
        if (!strcmp(name, es_form_name((es_form)f))) {
            *out = (es_form)f;
            return true;
        }
    return false;
}

es_adapter_options es_adapter_default(const es_dictionary *s, const es_model *m)
{
    int n_layer = es_model_get_info(m)->n_layer;
    int first = s ? es_dictionary_get_info(s)->layer : n_layer / 2;
    if (first < 0)
        first = 0;
    if (first > n_layer - 1)
        first = n_layer - 1;
    return (es_adapter_options){.form = ES_FORM_LORA, .first_layer = first, .last_layer = n_layer - 1, .rank = 8, .constrained = true, .seed = 1};
}

/* ---- shape ----------------------------------------------------------------------------------------------------------- */

/* Lays the arrays out; run twice, first to measure. */
static void carve(es_adapter *a, const es_model *m)
{
    es_arena *r = &a->arena;
    bool lora = a->o.form == ES_FORM_LORA;
    int rank = a->o.rank, layers = lora ? a->o.last_layer - a->o.first_layer + 1 : 0;
    a->n_entry = layers * N_SITES;
    a->entry = es_arena_take(r, (size_t)a->n_entry, sizeof *a->entry);
    a->lowrank = es_arena_take(r, (size_t)a->n_entry, sizeof *a->lowrank);
    a->n_param = a->n_mean = 0;
    size_t rows_b = (size_t)(a->o.constrained ? a->K : a->d);
    for (int i = 0; i < a->n_entry; i++) {
        es_site site = SITES[i % N_SITES];
        size_t n_in = (size_t)es_site_n_in(m, site), at = a->n_param, mean = a->n_mean;
        float *full = a->o.constrained ? es_arena_take(r, (size_t)a->d * (size_t)rank, sizeof *full) : NULL;
        a->n_param += rows_b * (size_t)rank;
        a->n_mean += n_in;
        if (a->entry)
            a->entry[i] = (es_adapter_entry){.layer = a->o.first_layer + i / N_SITES, .site = site, .n_in = (int)n_in, .b = at, .mean = mean,
                                             .full = full};
    }
    a->n_learned = a->n_param;
    for (int i = 0; i < a->n_entry; i++) {
        if (a->entry)
            a->entry[i].a = a->n_param;
        a->n_param += (size_t)rank * (size_t)es_site_n_in(m, SITES[i % N_SITES]);
    }
    size_t K = (size_t)a->K, hooked = es_adapter_hooks(a) ? K : 0;
    if (!lora)
        a->n_param = a->o.form == ES_FORM_MAP ? K + K * K : K;
    if (hooked)
        a->n_mean = K;
    if (!lora || !a->o.fixed_inputs)
        a->n_learned = a->n_param;
    a->param = es_arena_take(r, a->n_param, sizeof *a->param);
    a->mean_input = es_arena_take(r, a->n_mean, sizeof *a->mean_input);
    a->D = es_arena_take(r, (size_t)a->K * (size_t)a->d, sizeof *a->D);
    a->v = es_arena_take(r, a->o.form == ES_FORM_BIAS ? (size_t)a->d : 0, sizeof *a->v);
    a->enc = es_arena_take(r, hooked * (size_t)a->d, sizeof *a->enc);
    a->enc_bias = es_arena_take(r, hooked, sizeof *a->enc_bias);
    a->threshold = es_arena_take(r, hooked, sizeof *a->threshold);
    a->input = es_arena_take(r, hooked, sizeof *a->input);
    a->through = es_arena_take(r, hooked, sizeof *a->through);
    a->coefficient = es_arena_take(r, (size_t)a->K, sizeof *a->coefficient);
    for (int i = 0; a->entry && !a->o.constrained && i < a->n_entry; i++)
        a->entry[i].full = a->param + a->entry[i].b;
}

/* An adapter of zeros (A too); s gives D. Takes b over (its arrays), also when it fails. */
static int shape(es_adapter **out, es_model *m, const es_dictionary *s, es_basis *b, const es_adapter_options *o, es_error *err)
{
    const es_model_info *info = es_model_get_info(m);
    *out = NULL;
    es_adapter *a = es_calloc(1, sizeof *a);
    if (!a) {
        if (b)
            es_basis_free(b);
        return es_fail(err, ES_ERR_MEMORY, "no memory for an adapter");
    }
    a->o = *o;
    if (o->form != ES_FORM_LORA) {
        a->o.constrained = true;
        a->o.fixed_inputs = false;
    }
    a->has_basis = a->o.constrained && b;
    if (a->has_basis)
        a->basis = *b;
    else if (b)
        es_basis_free(b);
    a->d = info->d_model;
    a->n_layer = info->n_layer;
    a->layer = s ? es_dictionary_get_info(s)->layer : -1;
    int rc = es_model_hash(m, a->model_hash, err);
    if (!rc && (unsigned)o->form > ES_FORM_LORA)
        rc = es_fail(err, ES_ERR_USAGE, "adapter: unknown form %d", (int)o->form);
    if (!rc && a->o.constrained && (!a->has_basis || !s))
        rc = es_fail(err, ES_ERR_USAGE, "adapter: the form %s%s needs a basis and its dictionary", es_form_name(o->form),
                     o->form == ES_FORM_LORA ? " within a basis" : "");
    if (!rc && o->form == ES_FORM_LORA && (o->first_layer < 0 || o->last_layer < o->first_layer || o->last_layer >= info->n_layer))
        rc = es_fail(err, ES_ERR_USAGE, "adapter: layers %d to %d, the model has 0 to %d", o->first_layer, o->last_layer, info->n_layer - 1);
    if (!rc && o->form == ES_FORM_LORA && (o->rank < 1 || o->rank > RANK_MAX))
        rc = es_fail(err, ES_ERR_USAGE, "adapter: rank %d (1 to %d go)", o->rank, (int)RANK_MAX);
    if (!rc && a->has_basis && es_dictionary_get_info(s)->d != a->d)
        rc = es_fail(err, ES_ERR_MISMATCH, "dictionary %s has width %d, the model %d", es_dictionary_get_info(s)->name,
                     es_dictionary_get_info(s)->d, a->d);
    if (!rc && a->has_basis && (a->layer < 0 || a->layer >= info->n_layer))
        rc = es_fail(err, ES_ERR_MISMATCH, "dictionary %s reads layer %d, the model has 0 to %d", es_dictionary_get_info(s)->name, a->layer,
                     info->n_layer - 1);
    if (!rc && a->has_basis && a->basis.model_hash[0] && strcmp(a->basis.model_hash, a->model_hash))
        rc = es_fail(err, ES_ERR_MISMATCH, "basis %s was made for the model %.12s, this one is %.12s", a->basis.name, a->basis.model_hash,
                     a->model_hash);
    if (!rc && o->form == ES_FORM_MAP && a->basis.n > ES_MAP_MAX)
        rc = es_fail(err, ES_ERR_LIMIT, "adapter: a map over %d features would have %lld parameters; at most %d features go", a->basis.n,
                     (long long)a->basis.n * (a->basis.n + 1LL), (int)ES_MAP_MAX);
    float *D = NULL;
    if (!rc && a->has_basis) {
        rc = es_basis_matrix(&a->basis, s, &D, err);
        a->K = a->basis.n;
        if (!a->basis.dictionary_hash[0])
            snprintf(a->basis.dictionary_hash, sizeof a->basis.dictionary_hash, "%s", es_dictionary_get_info(s)->hash);
    }
    if (!rc) {
        carve(a, m); /* measures */
        size_t size = a->arena.used;
        a->arena = (es_arena){0};
        rc = es_arena_open(&a->arena, size, err);
    }
    if (!rc)
        rc = es_pool_open(&a->pool, 1, err);
    if (rc) {
        free(D);
        es_adapter_free(a);
        return rc;
    }
    carve(a, m);
    if (a->K)
        memcpy(a->D, D, sizeof *D * (size_t)a->K * (size_t)a->d);
    free(D);
    rc = es_adapter_hooks(a) ? es_adapter_encoder(a, s, err) : ES_OK;
    if (rc) {
        es_adapter_free(a);
        return rc;
    }
    *out = a;
    return ES_OK;
}

static int basis_copy(es_basis *out, const es_basis *b, es_error *err)
{
    *out = *b;
    out->n = 0;
    out->feature = NULL;
    out->lo = out->hi = NULL;
    for (int i = 0; i < b->n; i++) {
        int rc = es_basis_add(out, b->feature[i], b->lo[i], b->hi[i], err);
        if (rc) {
            es_basis_free(out);
            return rc;
        }
    }
    return ES_OK;
}

int es_adapter_new(es_adapter **out, es_model *m, const es_dictionary *s, const es_basis *b, const es_adapter_options *o, es_error *err)
{
    es_basis copy = {0};
    int rc = b ? basis_copy(&copy, b, err) : ES_OK;
    *out = NULL;
    rc = rc ? rc : shape(out, m, s, b ? &copy : NULL, o, err);
    if (rc)
        return rc;
    es_adapter *a = *out;
    es_rng rng;
    es_rng_seed(&rng, o->seed);
    for (int i = 0; i < a->n_entry; i++) { /* B starts at zero, so the adapter starts as nothing */
        es_adapter_entry *e = &a->entry[i];
        float scale = 1 / sqrtf((float)e->n_in);
        for (size_t j = 0; j < (size_t)a->o.rank * (size_t)e->n_in; j++)
            a->param[e->a + j] = scale * es_rng_normal(&rng);
    }
    es_adapter_refresh(a);
    return ES_OK;
}

int es_adapter_copy(es_adapter **out, const es_adapter *a, es_error *err)
{
    *out = NULL;
    es_adapter *c = es_calloc(1, sizeof *c);
    if (!c)
        return es_fail(err, ES_ERR_MEMORY, "no memory for an adapter");
    *c = *a;
    c->arena = (es_arena){0};
    c->pool = NULL;
    c->hook = (es_hook){0};
    c->sink = (es_adapter_sink){0};
    c->basis = (es_basis){0};
    int rc = a->has_basis ? basis_copy(&c->basis, &a->basis, err) : ES_OK;
    rc = rc ? rc : es_arena_open(&c->arena, a->arena.size, err);
    rc = rc ? rc : es_pool_open(&c->pool, 1, err);
    if (rc) {
        es_adapter_free(c);
        return rc;
    }
    memcpy(c->arena.base, a->arena.base, a->arena.used);
    c->arena.used = a->arena.used;
    /* the same layout at another address */
#define MOVED(p) ((p) ? (void *)(c->arena.base + ((const char *)(p) - a->arena.base)) : NULL)
    c->entry = MOVED(a->entry);
    c->lowrank = MOVED(a->lowrank);
    c->param = MOVED(a->param);
    c->mean_input = MOVED(a->mean_input);
    c->D = MOVED(a->D);
    c->v = MOVED(a->v);
    c->enc = MOVED(a->enc);
    c->enc_bias = MOVED(a->enc_bias);
    c->threshold = MOVED(a->threshold);
    c->input = MOVED(a->input);
    c->through = MOVED(a->through);
    c->coefficient = MOVED(a->coefficient);
    for (int i = 0; i < c->n_entry; i++)
        c->entry[i].full = MOVED(a->entry[i].full);
#undef MOVED
    *out = c;
    return ES_OK;
}

void es_adapter_free(es_adapter *a)
{
    if (!a)
        return;
    if (a->has_basis)
        es_basis_free(&a->basis);
    es_pool_free(a->pool);
    es_arena_close(&a->arena);
    free(a);
}

const es_adapter_options *es_adapter_get_options(const es_adapter *a)
{
    return &a->o;
}

const es_basis *es_adapter_basis(const es_adapter *a)
{
    return a->has_basis ? &a->basis : NULL;
}

uint64_t es_adapter_parameters(const es_adapter *a)
{
    return a->n_learned;
}

int es_adapter_steps(const es_adapter *a)
{
    return a->steps;
}

int es_adapter_lowest_layer(const es_adapter *a)
{
    return a->o.form == ES_FORM_LORA ? a->o.first_layer : a->layer + 1 < a->n_layer ? a->layer + 1 : a->n_layer - 1;
}

const float *es_adapter_table(const es_adapter *a)
{
    return a->o.form == ES_FORM_LORA ? NULL : a->param;
}

const float *es_adapter_coefficients(const es_adapter *a)
{
    return a->K ? a->coefficient : NULL;
}

/* ---- what follows from the parameters -------------------------------------------------------------------------------- */

void es_adapter_expand(es_adapter *a)
{
    const es_kernels *k = es_kernels_cpu();
    if (a->o.form == ES_FORM_BIAS) {
        k->gemm(a->pool, true, false, a->d, 1, a->K, 1, a->D, a->d, a->param, 1, 0, a->v, 1);
        return;
    }
    for (int i = 0; a->o.constrained && i < a->n_entry; i++) /* B = D^T M */
        k->gemm(a->pool, true, false, a->d, a->o.rank, a->K, 1, a->D, a->d, a->param + a->entry[i].b, a->o.rank, 0, a->entry[i].full,
                a->o.rank);
}

void es_adapter_read(const es_adapter *a, const float *param, float *coefficient)
{
    if (a->o.form == ES_FORM_BIAS) {
        memcpy(coefficient, param, sizeof *param * (size_t)a->K);
        return;
    }
    size_t K = (size_t)a->K;
    for (size_t i = 0; es_adapter_hooks(a) && i < K; i++) {
        if (a->o.form == ES_FORM_GAIN) {
            coefficient[i] = param[i] * a->mean_input[i];
            continue;
        }
        double sum = param[i];
        for (size_t j = 0; j < K; j++)
            sum += (double)param[K + i * K + j] * a->mean_input[j];
        coefficient[i] = (float)sum;
    }
    if (es_adapter_hooks(a))
        return;
    memset(coefficient, 0, sizeof *coefficient * (size_t)a->K);
    int rank = a->o.rank;
    for (int i = 0; a->K && i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        const float *x = a->mean_input + e->mean;
        for (int r = 0; r < rank; r++) {
            const float *row = param + e->a + (size_t)r * e->n_in;
            double u = 0;
            for (int j = 0; j < e->n_in; j++)
                u += (double)row[j] * x[j];
            for (int c = 0; c < a->K; c++)
                coefficient[c] += param[e->b + (size_t)c * rank + r] * (float)u;
        }
    }
}

void es_adapter_refresh(es_adapter *a)
{
    es_adapter_expand(a);
    es_adapter_read(a, a->param, a->coefficient);
}

int es_adapter_patch(es_adapter *a, float scale, es_patch *out, es_error *err)
{
    if (!isfinite(scale))
        return es_fail(err, ES_ERR_USAGE, "adapter: the scale must be a finite number");
    *out = (es_patch){0};
    if (a->o.form == ES_FORM_BIAS) {
        a->addend = (es_addend){.layer = a->layer, .scale = scale, .v = a->v};
        out->addend = &a->addend;
        out->n_addend = 1;
        return ES_OK;
    }
    if (es_adapter_hooks(a)) {
        out->hook = es_adapter_hook(a, scale);
        out->n_hook = scale != 0;
        return ES_OK;
    }
    for (int i = 0; i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        a->lowrank[i] = (es_lowrank){.layer = e->layer, .site = e->site, .rank = a->o.rank, .scale = scale, .a = a->param + e->a, .b = e->full};
    }
    out->lowrank = a->lowrank;
    out->n_lowrank = a->n_entry;
    return ES_OK;
}

int es_adapter_directions(const es_adapter *a, float *out, es_error *err)
{
    size_t d = (size_t)a->d;
    memset(out, 0, sizeof *out * d * (size_t)a->n_layer);
    if (a->o.form == ES_FORM_BIAS) {
        memcpy(out + d * (size_t)a->layer, a->v, sizeof *out * d);
        return ES_OK;
    }
    bool measured = false;
    for (size_t i = 0; i < a->n_mean; i++)
        measured |= a->mean_input[i] != 0;
    if (!measured)
        return es_fail(err, ES_ERR_USAGE, "adapter: it has not learned from anything, so its mean directions are unknown");
    if (es_adapter_hooks(a)) {
        for (int i = 0; i < a->K; i++)
            for (size_t j = 0; j < d; j++)
                out[d * (size_t)a->layer + j] += a->coefficient[i] * a->D[(size_t)i * d + j];
        return ES_OK;
    }
    for (int i = 0; i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        float *to = out + d * (size_t)e->layer;
        for (int r = 0; r < a->o.rank; r++) {
            const float *row = a->param + e->a + (size_t)r * e->n_in, *x = a->mean_input + e->mean;
            double u = 0;
            for (int j = 0; j < e->n_in; j++)
                u += (double)row[j] * x[j];
            for (size_t j = 0; j < d; j++)
                to[j] += (float)u * e->full[j * a->o.rank + r];
        }
    }
    return ES_OK;
}

/* ---- files ------------------------------------------------------------------------------------------------------------ */

/* Adds a tensor called "layers.N.SITE.WHAT" to specs; the name lives in names. */
static void spec_entry(es_tensor_spec *t, char (*name)[64], const es_adapter_entry *e, const char *what, size_t rows, size_t columns,
                       const float *data)
{
    snprintf(*name, sizeof *name, "layers.%d.%s.%s", e->layer, es_site_name(e->site), what);
    *t = (es_tensor_spec){.name = *name, .type = ES_TENSOR_F32, .n_dims = rows ? 2 : 1, .data = data};
    t->dim[0] = rows ? rows : columns;
    t->dim[1] = columns;
}

static void set_int(json_t *o, const char *key, long long v)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", v);
    json_object_set_new(o, key, json_string(text)); /* safetensors metadata holds texts only */
}

/* One of the adapter's own, not of an entry: [columns], or [rows, columns]. */
static es_tensor_spec spec_table(const char *name, size_t rows, size_t columns, const float *data)
{
    return (es_tensor_spec){.name = name, .type = ES_TENSOR_F32, .n_dims = rows ? 2 : 1, .dim = {rows ? rows : columns, rows ? columns : 0}, .data = data};
}

/* F16 where that keeps every bit, as inputs from a file have it (inputs.c). */
static es_tensor_type inputs_type(const es_adapter *a)
{
    if (!a->o.fixed_inputs)
        return ES_TENSOR_F32;
    for (size_t i = a->n_learned; i < a->n_param; i += 512) {
        uint16_t half[512];
        float back[512];
        size_t n = a->n_param - i < 512 ? a->n_param - i : 512;
        es_f32_to_f16(a->param + i, half, n);
        es_f16_to_f32(half, back, n);
        if (memcmp(back, a->param + i, n * sizeof *back))
            return ES_TENSOR_F32;
    }
    return ES_TENSOR_F16;
}

size_t es_adapter_shared_bytes(const es_adapter *a)
{
    return a->o.fixed_inputs ? (a->n_param - a->n_learned) * (inputs_type(a) == ES_TENSOR_F16 ? 2 : 4) : 0;
}

int es_adapter_to_bytes(const es_adapter *a, es_buf *out, es_error *err)
{
    size_t n = 0, cap = 3 * (size_t)a->n_entry + 4, K = (size_t)a->K;
    es_tensor_spec *t = es_calloc(cap, sizeof *t);
    char(*name)[64] = es_calloc(cap, sizeof *name);
    json_t *meta = json_object(), *basis = a->has_basis ? es_basis_to_json(&a->basis) : NULL;
    char *basis_text = basis ? json_dumps(basis, JSON_COMPACT) : NULL;
    int rc = ES_OK;
    if (!t || !name || !meta || (a->has_basis && !basis_text)) {
        rc = es_fail(err, ES_ERR_MEMORY, "no memory to write an adapter");
        goto done;
    }
    json_object_set_new(meta, "format", json_string(FORMAT));
    set_int(meta, "version", 1);
    json_object_set_new(meta, "form", json_string(es_form_name(a->o.form)));
    json_object_set_new(meta, "model_hash", json_string(a->model_hash));
    if (a->has_basis) {
        json_object_set_new(meta, "dictionary_hash", json_string(a->basis.dictionary_hash));
        json_object_set_new(meta, "basis", json_string(basis_text));
    }
    set_int(meta, "constrained", a->o.constrained);
    if (a->o.fixed_inputs)
        set_int(meta, "fixed_inputs", 1);
    set_int(meta, "rank", a->o.rank);
    set_int(meta, "first_layer", a->o.first_layer);
    set_int(meta, "last_layer", a->o.last_layer);
    set_int(meta, "seed", (long long)(a->o.seed & (UINT64_MAX >> 2)));
    set_int(meta, "steps", a->steps);
    if (a->K)
        t[n++] = spec_table("coefficients", 0, K, a->coefficient);
    if (a->o.form != ES_FORM_LORA)
        t[n++] = spec_table(a->o.form == ES_FORM_GAIN ? "gain" : "bias", 0, K, a->param);
    if (a->o.form == ES_FORM_MAP)
        t[n++] = spec_table("map", K, K, a->param + K);
    if (es_adapter_hooks(a))
        t[n++] = spec_table("mean_input", 0, K, a->mean_input);
    for (int i = 0; i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        size_t rank = (size_t)a->o.rank, n_in = (size_t)e->n_in;
        spec_entry(&t[n], &name[n], e, a->o.constrained ? "m" : "b", (size_t)(a->o.constrained ? a->K : a->d), rank, a->param + e->b);
        n++;
        spec_entry(&t[n], &name[n], e, "mean_input", 0, n_in, a->mean_input + e->mean);
        n++;
    }
    for (int i = 0; i < a->n_entry; i++, n++) { /* last, and alike in all adapters with the same fixed inputs */
        const es_adapter_entry *e = &a->entry[i];
        spec_entry(&t[n], &name[n], e, "a", (size_t)a->o.rank, (size_t)e->n_in, a->param + e->a);
        t[n].type = inputs_type(a);
    }
    rc = es_safetensors_write(out, t, n, meta, err);
done:
    free(basis_text);
    json_decref(basis);
    json_decref(meta);
    free(name);
    free(t);
    return rc;
}

static int meta_int(const es_safetensors *f, const char *key, long long lo, long long hi, long long *out, const char *what, es_error *err)
{
    const char *text = es_safetensors_metadata(f, key);
    char *end = NULL;
    long long v = text ? strtoll(text, &end, 10) : 0;
    if (!text || end == text || *end || v < lo || v > hi)
        return es_fail(err, ES_ERR_FORMAT, "%s: \"%s\" in its metadata is not a number from %lld to %lld", what, key, lo, hi);
    *out = v;
    return ES_OK;
}

static int read_tensor(const es_safetensors *f, const char *name, size_t rows, size_t columns, float *out, const char *what, es_error *err)
{
    size_t dim[2] = {rows ? rows : columns, columns}, n = (rows ? rows : 1) * columns;
    int rc = es_safetensors_f32(f, name, rows ? 2 : 1, dim, out, err);
    for (size_t i = 0; !rc && i < n; i++)
        if (!isfinite(out[i]))
            rc = es_fail(err, ES_ERR_FORMAT, "%s: %s holds a number that is not finite", what, name);
    return rc;
}

static int read_entries(es_adapter *a, const es_safetensors *f, const char *what, es_error *err)
{
    int rc = ES_OK;
    size_t K = (size_t)a->K;
    if (a->o.form != ES_FORM_LORA)
        rc = read_tensor(f, a->o.form == ES_FORM_GAIN ? "gain" : "bias", 0, K, a->param, what, err);
    if (!rc && a->o.form == ES_FORM_MAP)
        rc = read_tensor(f, "map", K, K, a->param + K, what, err);
    if (!rc && es_adapter_hooks(a))
        rc = read_tensor(f, "mean_input", 0, K, a->mean_input, what, err);
    for (int i = 0; !rc && i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        size_t rank = (size_t)a->o.rank, n_in = (size_t)e->n_in;
        es_tensor_spec t;
        char name[64];
        spec_entry(&t, &name, e, "a", rank, n_in, NULL);
        rc = read_tensor(f, name, rank, n_in, a->param + e->a, what, err);
        size_t rows = (size_t)(a->o.constrained ? a->K : a->d);
        spec_entry(&t, &name, e, a->o.constrained ? "m" : "b", rows, rank, NULL);
        rc = rc ? rc : read_tensor(f, name, rows, rank, a->param + e->b, what, err);
        spec_entry(&t, &name, e, "mean_input", 0, n_in, NULL);
        rc = rc ? rc : read_tensor(f, name, 0, n_in, a->mean_input + e->mean, what, err);
    }
    return rc;
}

int es_adapter_from_bytes(es_adapter **out, es_model *m, const es_dictionary *s, const void *bytes, size_t n, const char *what, es_error *err)
{
    es_safetensors *f = NULL;
    json_t *json = NULL;
    es_basis basis = {0};
    es_adapter_options o = {0};
    char hash[65];
    long long v[7] = {0};
    *out = NULL;
    int rc = es_safetensors_parse(&f, bytes, n, what, err);
    if (rc)
        return rc;
    const char *format = es_safetensors_metadata(f, "format"), *form = es_safetensors_metadata(f, "form");
    const char *made_for = es_safetensors_metadata(f, "model_hash"), *basis_text = es_safetensors_metadata(f, "basis");
    const char *dictionary_hash = es_safetensors_metadata(f, "dictionary_hash");
    if (!format || strcmp(format, FORMAT))
        rc = es_fail(err, ES_ERR_FORMAT, "%s is no adapter: its metadata lacks \"format\": \"%s\"", what, FORMAT);
    if (!rc)
        rc = meta_int(f, "version", 1, 1, &v[0], what, err);
    if (!rc && (!form || !es_form_named(form, &o.form)))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: form \"%.20s\" (bias, gain, map or lora)", what, form ? form : "");
    rc = rc ? rc : meta_int(f, "constrained", 0, 1, &v[0], what, err);
    if (!rc && es_safetensors_metadata(f, "fixed_inputs"))
        rc = meta_int(f, "fixed_inputs", 0, 1, &v[6], what, err);
    rc = rc ? rc : meta_int(f, "rank", 0, RANK_MAX, &v[1], what, err);
    rc = rc ? rc : meta_int(f, "first_layer", 0, 1 << 20, &v[2], what, err);
    rc = rc ? rc : meta_int(f, "last_layer", 0, 1 << 20, &v[3], what, err);
    rc = rc ? rc : meta_int(f, "steps", 0, 1 << 30, &v[4], what, err);
    rc = rc ? rc : meta_int(f, "seed", 0, LLONG_MAX, &v[5], what, err);
    rc = rc ? rc : es_model_hash(m, hash, err);
    if (!rc && (!made_for || strcmp(made_for, hash)))
        rc = es_fail(err, ES_ERR_MISMATCH, "%s was made for the model %.64s, this one is %s", what, made_for ? made_for : "?", hash);
    if (!rc && basis_text) {
        rc = es_json_parse(&json, basis_text, strlen(basis_text), what, err);
        rc = rc ? rc : es_basis_from_json(&basis, json, err);
        if (!rc && !s)
            rc = es_fail(err, ES_ERR_MISMATCH, "%s needs its dictionary (%.64s)", what, dictionary_hash ? dictionary_hash : "?");
        if (!rc && (!dictionary_hash || strcmp(dictionary_hash, es_dictionary_get_info(s)->hash)))
            rc = es_fail(err, ES_ERR_MISMATCH, "%s was made with the dictionary %.64s, this one is %s", what,
                         dictionary_hash ? dictionary_hash : "?", es_dictionary_get_info(s)->hash);
    }
    if (!rc) {
        o = (es_adapter_options){.form = o.form, .constrained = v[0], .fixed_inputs = v[6], .rank = (int)v[1],
                                 .first_layer = (int)v[2], .last_layer = (int)v[3], .seed = (uint64_t)v[5]};
        /* What would be allocated must lie in the file. */
        size_t inputs = (size_t)es_site_n_in(m, ES_SITE_O) + (size_t)es_site_n_in(m, ES_SITE_DOWN), need = 0;
        bool lora = o.form == ES_FORM_LORA && o.last_layer >= o.first_layer;
        if (lora && (!es_mul((size_t)(o.last_layer - o.first_layer + 1), (size_t)o.rank, &need) || !es_mul(need, (o.fixed_inputs ? 2 : 4) * inputs, &need) || need > n))
            rc = es_fail(err, ES_ERR_FORMAT, "%s is too short for layers %d to %d at rank %d", what, o.first_layer, o.last_layer, o.rank);
        if (!rc && o.form == ES_FORM_MAP && basis.n <= ES_MAP_MAX && (size_t)basis.n * (size_t)basis.n * 4 > n) /* a larger one is refused by shape */
            rc = es_fail(err, ES_ERR_FORMAT, "%s is too short for a map over %d features", what, basis.n);
    }
    if (!rc) {
        rc = shape(out, m, s, basis_text ? &basis : NULL, &o, err);
        basis = (es_basis){0}; /* taken over */
    }
    if (!rc && !(rc = read_entries(*out, f, what, err))) {
        (*out)->steps = (int)v[4];
        es_adapter_refresh(*out);
    } else if (*out) {
        es_adapter_free(*out);
        *out = NULL;
    }
    es_basis_free(&basis);
    json_decref(json);
    es_safetensors_free(f);
    return rc;
}

int es_adapter_load(es_adapter **out, es_model *m, const es_dictionary *s, const char *path, es_error *err)
{
    es_map map;
    *out = NULL;
    int rc = es_map_open(&map, path, err);
    if (rc)
        return rc;
    rc = es_adapter_from_bytes(out, m, s, map.data, map.size, path, err);
    es_map_close(&map);
    return rc;
}

int es_adapter_save(const es_adapter *a, const char *path, es_error *err)
{
    es_buf b = {0};
    int rc = es_adapter_to_bytes(a, &b, err);
    rc = rc ? rc : es_file_write(path, b.data, b.len, err);
    es_buf_free(&b);
    return rc;
}
