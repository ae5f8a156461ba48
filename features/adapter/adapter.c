/* adapter: what the model may learn. bias: h' = h + D c after each dictionary's layer; gain, map: adapter_hook.c. lora: W' = W + D M A on every
 * matrix that writes the residual in a band of layers, so that whatever is added stays in the span of the basis; or W' = W + B A without that
 * constraint, the peer it is compared with. Files: adapter_file.c. */
#include "adapter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const es_site SITES[] = {ES_SITE_O, ES_SITE_DOWN}; /* the matrices that write the residual */
enum { N_SITES = 2 };

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

/* Through whose D a layer of the band writes: the highest place not above it. */
static int place_of(const es_adapter *a, int layer)
{
    int i = a->n_place - 1;
    while (i > 0 && a->place[i].layer > layer)
        i--;
    return i;
}

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
    for (int i = 0; i < a->n_entry; i++) {
        es_site site = SITES[i % N_SITES];
        int layer = a->o.first_layer + i / N_SITES, place = place_of(a, layer);
        const es_adapter_place *p = &a->place[place];
        size_t n_in = (size_t)es_site_n_in(m, site), at = a->n_param, mean = a->n_mean, rows = (size_t)(a->o.constrained ? p->K : a->d);
        float *full = a->o.constrained ? es_arena_take(r, (size_t)a->d * (size_t)rank, sizeof *full) : NULL;
        a->n_param += rows * (size_t)rank;
        a->n_mean += n_in;
        if (a->entry)
            a->entry[i] = (es_adapter_entry){.layer = layer, .place = place, .site = site, .n_in = (int)n_in, .first = p->first, .rows = (int)rows,
                                             .b = at, .mean = mean, .full = full};
    }
    a->n_learned = a->n_param;
    for (int i = 0; i < a->n_entry; i++) {
        if (a->entry)
            a->entry[i].a = a->n_param;
        a->n_param += (size_t)rank * (size_t)es_site_n_in(m, SITES[i % N_SITES]);
    }
    const es_adapter_place *last = &a->place[a->n_place - 1];
    size_t K = (size_t)a->K, hooked = es_adapter_hooks(a) ? K : 0, squares = last->square + (size_t)last->K * (size_t)last->K;
    if (!lora)
        a->n_param = a->o.form == ES_FORM_MAP ? K + squares : K;
    if (hooked)
        a->n_mean = K;
    if (!lora || !a->o.fixed_inputs)
        a->n_learned = a->n_param;
    a->param = es_arena_take(r, a->n_param, sizeof *a->param);
    a->mean_input = es_arena_take(r, a->n_mean, sizeof *a->mean_input);
    a->D = es_arena_take(r, (size_t)a->K * (size_t)a->d, sizeof *a->D);
    a->v = es_arena_take(r, a->o.form == ES_FORM_BIAS ? (size_t)a->n_place * (size_t)a->d : 0, sizeof *a->v);
    a->enc = es_arena_take(r, hooked * (size_t)a->d, sizeof *a->enc);
    a->enc_bias = es_arena_take(r, hooked, sizeof *a->enc_bias);
    a->threshold = es_arena_take(r, hooked, sizeof *a->threshold);
    a->input = es_arena_take(r, hooked, sizeof *a->input);
    a->through = es_arena_take(r, hooked, sizeof *a->through);
    a->coefficient = es_arena_take(r, (size_t)a->K, sizeof *a->coefficient);
    for (int i = 0; a->entry && !a->o.constrained && i < a->n_entry; i++)
        a->entry[i].full = a->param + a->entry[i].b;
}

static int check_part(const es_adapter *a, const es_part *p, es_error *err)
{
    const es_dictionary_info *s = es_dictionary_get_info(p->dictionary);
    const es_basis *b = p->basis;
    int rc = es_dictionary_check_steers(p->dictionary, err);
    if (rc)
        return rc;
    if (s->d != a->d)
        return es_fail(err, ES_ERR_MISMATCH, "dictionary %s has width %d, the model %d", s->name, s->d, a->d);
    if (s->layer < 0 || s->layer >= a->n_layer)
        return es_fail(err, ES_ERR_MISMATCH, "dictionary %s reads layer %d, the model has 0 to %d", s->name, s->layer, a->n_layer - 1);
    if (b->model_hash[0] && strcmp(b->model_hash, a->model_hash))
        return es_fail(err, ES_ERR_MISMATCH, "basis %s was made for the model %.12s, this one is %.12s", b->name, b->model_hash, a->model_hash);
    if (b->dictionary_hash[0] && strcmp(b->dictionary_hash, s->hash))
        return es_fail(err, ES_ERR_MISMATCH, "basis %s was made from the dictionary %.12s, not from %s (%.12s)", b->name, b->dictionary_hash, s->name, s->hash);
    for (int i = 0; i < a->n_part; i++)
        if (!strcmp(a->part[i].basis.dictionary_hash, s->hash))
            return es_fail(err, ES_ERR_USAGE, "adapter: the dictionary %s is in two parts: put their features into one basis", s->name);
    return ES_OK;
}

/* Takes in one part, behind those of lower layers; D, which is not laid out yet, comes later. */
static int add_part(es_adapter *a, const es_part *from, es_error *err)
{
    const es_dictionary_info *s = es_dictionary_get_info(from->dictionary);
    int rc = check_part(a, from, err);
    if (rc)
        return rc;
    es_adapter_part *p = &a->part[a->n_part];
    rc = es_basis_copy(&p->basis, from->basis, err);
    if (rc)
        return rc;
    p->first = a->K;
    snprintf(p->basis.dictionary_hash, sizeof p->basis.dictionary_hash, "%s", s->hash);
    a->n_part++;
    if (a->n_place && a->place[a->n_place - 1].layer != s->layer) {
        const es_adapter_place *below = &a->place[a->n_place - 1];
        a->place[a->n_place] = (es_adapter_place){.square = below->square + (size_t)below->K * (size_t)below->K};
    }
    a->n_place += !a->n_place || a->place[a->n_place - 1].layer != s->layer;
    es_adapter_place *place = &a->place[a->n_place - 1];
    if (!place->K) {
        place->layer = s->layer;
        place->first = a->K;
    }
    place->K += p->basis.n;
    a->K += p->basis.n;
    if (a->o.form == ES_FORM_MAP && place->K > ES_MAP_MAX)
        return es_fail(err, ES_ERR_LIMIT, "adapter: a map over %d features would have %lld parameters; at most %d features go", place->K,
                       (long long)place->K * (place->K + 1LL), (int)ES_MAP_MAX);
    return ES_OK;
}

/* order[n]: the parts by their layers, those of one layer as they came. */
static void by_layer(const es_part *part, int n, int *order)
{
    for (int i = 0; i < n; i++) {
        int at = i, layer = es_dictionary_get_info(part[i].dictionary)->layer;
        for (; at > 0 && es_dictionary_get_info(part[order[at - 1]].dictionary)->layer > layer; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
}

/* D of a part, and what the form reads of its dictionary. */
static int fill_part(es_adapter *a, const es_adapter_part *p, const es_dictionary *s, es_error *err)
{
    float *D = NULL;
    int rc = es_basis_matrix(&p->basis, s, &D, err);
    if (rc)
        return rc;
    memcpy(es_adapter_rows(a, p->first), D, sizeof *D * (size_t)p->basis.n * (size_t)a->d);
    free(D);
    return es_adapter_hooks(a) ? es_adapter_encoder(a, p, s, err) : ES_OK;
}

int es_adapter_shape(es_adapter **out, es_model *m, const es_part *part, int n, const es_adapter_options *o, es_error *err)
{
    const es_model_info *info = es_model_get_info(m);
    int order[ES_PARTS_MAX] = {0};
    *out = NULL;
    if (n < 1 || n > ES_PARTS_MAX)
        return es_fail(err, ES_ERR_USAGE, "adapter: %d parts (1 to %d go)", n, (int)ES_PARTS_MAX);
    es_adapter *a = es_calloc(1, sizeof *a);
    if (!a)
        return es_fail(err, ES_ERR_MEMORY, "no memory for an adapter");
    a->o = *o;
    if (o->form != ES_FORM_LORA) {
        a->o.constrained = true;
        a->o.fixed_inputs = false;
    }
    a->d = info->d_model;
    a->n_layer = info->n_layer;
    int rc = es_model_hash(m, a->model_hash, err);
    if (!rc && (unsigned)o->form > ES_FORM_LORA)
        rc = es_fail(err, ES_ERR_USAGE, "adapter: unknown form %d", (int)o->form);
    for (int i = 0; !rc && a->o.constrained && i < n; i++)
        if (!part[i].basis || !part[i].dictionary)
            rc = es_fail(err, ES_ERR_USAGE, "adapter: the form %s%s needs a basis and its dictionary", es_form_name(o->form),
                         o->form == ES_FORM_LORA ? " within a basis" : "");
    if (!rc && o->form == ES_FORM_LORA && (o->first_layer < 0 || o->last_layer < o->first_layer || o->last_layer >= info->n_layer))
        rc = es_fail(err, ES_ERR_USAGE, "adapter: layers %d to %d, the model has 0 to %d", o->first_layer, o->last_layer, info->n_layer - 1);
    if (!rc && o->form == ES_FORM_LORA && (o->rank < 1 || o->rank > ES_ADAPTER_RANK_MAX))
        rc = es_fail(err, ES_ERR_USAGE, "adapter: rank %d (1 to %d go)", o->rank, (int)ES_ADAPTER_RANK_MAX);
    if (!rc && a->o.constrained)
        by_layer(part, n, order);
    for (int i = 0; !rc && a->o.constrained && i < n; i++)
        rc = add_part(a, &part[order[i]], err);
    if (!rc && !a->o.constrained) { /* no features, but the layer where |h| is measured */
        a->place[0].layer = part[0].dictionary ? es_dictionary_get_info(part[0].dictionary)->layer : -1;
        a->n_place = 1;
    }
    if (!rc) {
        carve(a, m); /* measures */
        size_t size = a->arena.used;
        a->arena = (es_arena){0};
        rc = es_arena_open(&a->arena, size, err);
    }
    if (!rc)
        carve(a, m);
    rc = rc ? rc : es_pool_open(&a->pool, 1, err);
    for (int i = 0; !rc && i < a->n_part; i++)
        rc = fill_part(a, &a->part[i], part[order[i]].dictionary, err);
    if (rc) {
        es_adapter_free(a);
        return rc;
    }
    *out = a;
    return ES_OK;
}

int es_adapter_new_parts(es_adapter **out, es_model *m, const es_part *part, int n, const es_adapter_options *o, es_error *err)
{
    int rc = es_adapter_shape(out, m, part, n, o, err);
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

int es_adapter_new(es_adapter **out, es_model *m, const es_dictionary *s, const es_basis *b, const es_adapter_options *o, es_error *err)
{
    es_part part = {s, b};
    return es_adapter_new_parts(out, m, &part, 1, o, err);
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
    memset(c->hook, 0, sizeof c->hook);
    c->sink = (es_hook_sink){0};
    int rc = ES_OK;
    for (c->n_part = 0; !rc && c->n_part < a->n_part; c->n_part += !rc)
        rc = es_basis_copy(&c->part[c->n_part].basis, &a->part[c->n_part].basis, err);
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

int es_adapter_layer_of(const es_adapter *a, int k)
{
    int i = a->n_place - 1;
    while (i > 0 && a->place[i].first > k)
        i--;
    return a->place[i].layer;
}

const float *es_adapter_matrix(const es_adapter *a)
{
    return a->K ? a->D : NULL;
}

void es_adapter_free(es_adapter *a)
{
    if (!a)
        return;
    for (int i = 0; i < a->n_part; i++)
        es_basis_free(&a->part[i].basis);
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
    return a->n_part ? &a->part[0].basis : NULL;
}

int es_adapter_parts(const es_adapter *a)
{
    return a->n_part;
}

const es_basis *es_adapter_part_basis(const es_adapter *a, int i, int *first)
{
    if (first)
        *first = a->part[i].first;
    return &a->part[i].basis;
}

int es_adapter_features(const es_adapter *a)
{
    return a->K;
}

int es_adapter_part_of(const es_adapter *a, int k, int *feature)
{
    int i = a->n_part - 1;
    while (i > 0 && a->part[i].first > k)
        i--;
    if (feature)
        *feature = a->part[i].basis.feature[k - a->part[i].first];
    return i;
}

int es_adapter_layers(const es_adapter *a)
{
    return a->n_part ? a->n_place : 0;
}

int es_adapter_layer(const es_adapter *a, int i, int *first, int *n)
{
    *first = a->place[i].first;
    *n = a->place[i].K;
    return a->place[i].layer;
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
    int above = es_adapter_lowest(a) + 1;
    return a->o.form == ES_FORM_LORA ? a->o.first_layer : above < a->n_layer ? above : a->n_layer - 1;
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
        for (int i = 0; i < a->n_place; i++) {
            const es_adapter_place *p = &a->place[i];
            k->gemm(a->pool, true, false, a->d, 1, p->K, 1, es_adapter_rows(a, p->first), a->d, a->param + p->first, 1, 0, a->v + (size_t)i * (size_t)a->d, 1);
        }
        return;
    }
    for (int i = 0; a->o.constrained && i < a->n_entry; i++) { /* B = D^T M */
        const es_adapter_entry *e = &a->entry[i];
        k->gemm(a->pool, true, false, a->d, a->o.rank, e->rows, 1, es_adapter_rows(a, e->first), a->d, a->param + e->b, a->o.rank, 0, e->full, a->o.rank);
    }
}

void es_adapter_read(const es_adapter *a, const float *param, float *coefficient)
{
    if (a->o.form == ES_FORM_BIAS) {
        memcpy(coefficient, param, sizeof *param * (size_t)a->K);
        return;
    }
    for (int at = 0; es_adapter_hooks(a) && at < a->n_place; at++) {
        size_t first = (size_t)a->place[at].first, K = (size_t)a->place[at].K, map = (size_t)a->K + a->place[at].square;
        for (size_t i = 0; i < K; i++) {
            if (a->o.form == ES_FORM_GAIN) {
                coefficient[first + i] = param[first + i] * a->mean_input[first + i];
                continue;
            }
            double sum = param[first + i];
            for (size_t j = 0; j < K; j++)
                sum += (double)param[map + i * K + j] * a->mean_input[first + j];
            coefficient[first + i] = (float)sum;
        }
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
            for (int c = 0; c < e->rows; c++)
                coefficient[e->first + c] += param[e->b + (size_t)c * rank + r] * (float)u;
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
        for (int i = 0; i < a->n_place; i++)
            a->addend[i] = (es_addend){.layer = a->place[i].layer, .scale = scale, .v = a->v + (size_t)i * (size_t)a->d};
        out->addend = a->addend;
        out->n_addend = a->n_place;
        return ES_OK;
    }
    if (es_adapter_hooks(a)) {
        out->hook = es_adapter_hook(a, scale);
        out->n_hook = scale != 0 ? a->n_place : 0;
        return ES_OK;
    }
    for (int i = 0; i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        a->lowrank[i] = (es_lowrank){.layer = e->layer, .site = e->site, .rank = a->o.rank, .scale = scale, .a = a->param + e->a, .b = e->full, .behind = true};
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
        for (int i = 0; i < a->n_place; i++)
            memcpy(out + d * (size_t)a->place[i].layer, a->v + (size_t)i * d, sizeof *out * d);
        return ES_OK;
    }
    bool measured = false;
    for (size_t i = 0; i < a->n_mean; i++)
        measured |= a->mean_input[i] != 0;
    if (!measured)
        return es_fail(err, ES_ERR_USAGE, "adapter: it has not learned from anything, so its mean directions are unknown");
    if (es_adapter_hooks(a)) {
        for (int at = 0; at < a->n_place; at++)
            for (int i = a->place[at].first; i < a->place[at].first + a->place[at].K; i++)
                for (size_t j = 0; j < d; j++)
                    out[d * (size_t)a->place[at].layer + j] += a->coefficient[i] * a->D[(size_t)i * d + j];
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
