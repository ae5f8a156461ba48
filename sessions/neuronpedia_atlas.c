/* neuronpedia: dashboards of an export into an atlas. Their tokens are texts, ours are ids: each text becomes the token of the model that has these bytes, or else
 * the first one of those that the tokenizer makes of it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "atlas_file.h"
#include "atlas_write.h"
#include "neuronpedia_files.h"

enum { WINDOW = 24, TOP = 20, EACH = 4, SPREAD = EACH * ES_ATLAS_INTERVALS, RECORD_TOKENS = 1 << 16 }; /* as an atlas' defaults; tokens of a record that are looked at */

typedef struct kept { /* an example: its window, values in 255ths of its largest */
    float max;
    uint8_t n, peak, interval;
    uint8_t value[WINDOW];
    int32_t id[WINDOW];
} kept;

typedef struct dashboard {
    bool known;               /* a record of the feature itself was there */
    float density, max, lo, hi;
    double histogram[ES_ATLAS_BINS];
    uint32_t logits[ES_ATLAS_BINS];
    int n_up, n_down;
    int32_t up[ES_ATLAS_TOKENS], down[ES_ATLAS_TOKENS];
    float up_v[ES_ATLAS_TOKENS], down_v[ES_ATLAS_TOKENS];
    int n_top, n_spread;
    kept *top, *spread;       /* [TOP], [SPREAD]: made when the first comes */
} dashboard;

typedef struct vocabulary { int32_t *slot; size_t mask; } vocabulary; /* open addressing; 1 + id */

typedef struct maker {
    const es_model *m;
    vocabulary words;
    np_origin origin;
    int n_features;
    dashboard *of;            /* [n_features] */
    es_ids ids;               /* scratch */
    es_neuronpedia_dashboards *out;
    /* the card being written */
    es_example example[TOP], spread[SPREAD];
    float value[TOP + SPREAD][WINDOW];
} maker;

/* ---- texts of tokens -------------------------------------------------------------------------------------------------------------------------- */

static size_t hash_of(const char *s, size_t n)
{
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (uint8_t)s[i]) * 1099511628211u;
    return (size_t)(h ^ h >> 29);
}

static int vocabulary_open(vocabulary *v, const es_model *m, es_error *err)
{
    size_t V = (size_t)es_model_get_info(m)->n_vocab, size = 1;
    while (size < 2 * V)
        size *= 2;
    v->slot = es_calloc(size, sizeof *v->slot);
    v->mask = size - 1;
    if (!v->slot)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for the model's tokens");
    for (size_t id = 0; id < V; id++) {
        size_t n, k, at;
        const char *s = es_token_bytes(m, (int32_t)id, &n), *t;
        for (at = hash_of(s, n) & v->mask; v->slot[at]; at = (at + 1) & v->mask)
            if ((t = es_token_bytes(m, v->slot[at] - 1, &k)) && k == n && !memcmp(s, t, n))
                break;
        if (!v->slot[at]) /* of several with the same bytes the first */
            v->slot[at] = (int32_t)id + 1;
    }
    return ES_OK;
}

static int32_t look_up(const maker *k, const char *s, size_t n)
{
    size_t have;
    for (size_t at = hash_of(s, n) & k->words.mask; k->words.slot[at]; at = (at + 1) & k->words.mask) {
        const char *t = es_token_bytes(k->m, k->words.slot[at] - 1, &have);
        if (have == n && !memcmp(s, t, n))
            return k->words.slot[at] - 1;
    }
    return -1;
}

/* The token of a text as they have it: as it is, or with the marks that tokenizers write for a space and a new line. Where there is none: -1, or (near) the first
 * of those that the tokenizer makes of it. A token that is half a character comes as U+FFFD, from which nobody can tell which it was. */
static int32_t token_of(maker *k, const char *s, bool near)
{
    static const struct mark { const char *mark, *means; } marks[] = {{"\xe2\x96\x81", " "}, {"\xc4\xa0", " "}, {"\xc4\x8a", "\n"}, {"\xe2\x86\xb5", "\n"}}; /* ▁ Ġ Ċ ↵ */
    size_t n = strlen(s);
    int32_t id = look_up(k, s, n);
    if (id >= 0 || !n)
        return id;
    es_buf plain = {0};
    while (*s) {
        size_t m = 0;
        while (m < sizeof marks / sizeof *marks && strncmp(s, marks[m].mark, strlen(marks[m].mark)) != 0)
            m++;
        bool is = m < sizeof marks / sizeof *marks;
        es_buf_add(&plain, is ? marks[m].means : s, 1);
        s += is ? strlen(marks[m].mark) : 1;
    }
    id = plain.failed ? -1 : look_up(k, plain.data, plain.len);
    k->ids.n = 0;
    if (id < 0 && near && !plain.failed && es_tokenize_text(k->m, plain.data, plain.len, &k->ids, NULL) == ES_OK && k->ids.n) {
        id = k->ids.id[0];
        k->out->changed++;
    }
    es_buf_free(&plain);
    return id;
}

static int take_tokens(maker *k, json_t *texts, json_t *values, int32_t *id, float *v)
{
    int n = 0;
    for (size_t i = 0; i < json_array_size(texts) && n < ES_ATLAS_TOKENS; i++) {
        const char *s = json_string_value(json_array_get(texts, i));
        int32_t token = s ? token_of(k, s, false) : -1;
        if (token < 0)
            continue;
        id[n] = token;
        float x = (float)json_number_value(json_array_get(values, i));
        v[n++] = isfinite(x) && fabsf(x) < 60000 ? x : 0; /* half precision */
    }
    return n;
}

/* ---- a feature's record ----------------------------------------------------------------------------------------------------------------------- */

static double number_of(json_t *v)
{
    double x = json_number_value(v);
    return isfinite(x) && fabs(x) < 1e30 ? x : 0;
}

static void take_feature(maker *k, dashboard *d, json_t *v)
{
    json_t *heights = json_object_get(v, "freq_hist_data_bar_heights"), *middles = json_object_get(v, "freq_hist_data_bar_values");
    json_t *logits = json_object_get(v, "logits_hist_data_bar_heights"), *at = json_object_get(v, "logits_hist_data_bar_values");
    double max = number_of(json_object_get(v, "maxActApprox")), density = number_of(json_object_get(v, "frac_nonzero")), most = 0;
    d->known = true;
    d->max = max > 0 ? (float)max : 0;
    d->density = density > 0 && density <= 1 ? (float)density : 0;
    for (size_t i = 0; i < json_array_size(middles); i++)
        most = fmax(most, number_of(json_array_get(middles, i)));
    if (most > 0 && d->max <= 0)
        d->max = (float)most;
    for (size_t i = 0; d->max > 0 && i < json_array_size(middles); i++) {
        double x = number_of(json_array_get(middles, i)), height = number_of(json_array_get(heights, i));
        int bin = (int)(x / (double)d->max * ES_ATLAS_BINS);
        d->histogram[bin < 0 ? 0 : bin < ES_ATLAS_BINS ? bin : ES_ATLAS_BINS - 1] += height > 0 ? height : 0;
    }
    size_t n = json_array_size(at);
    if (n > 1) {
        double lo = number_of(json_array_get(at, 0)), hi = number_of(json_array_get(at, n - 1)), half = (hi - lo) / (double)(n - 1) / 2;
        d->lo = (float)(lo - half); /* theirs are the middles */
        d->hi = (float)(hi + half);
        for (size_t i = 0; hi > lo && i < n; i++) {
            int bin = (int)((number_of(json_array_get(at, i)) - (double)d->lo) / (double)(d->hi - d->lo) * ES_ATLAS_BINS);
            double height = number_of(json_array_get(logits, i));
            d->logits[bin < 0 ? 0 : bin < ES_ATLAS_BINS ? bin : ES_ATLAS_BINS - 1] += height > 0 && height < 1e9 ? (uint32_t)height : 0;
        }
        if (!(d->hi >= d->lo))
            d->lo = d->hi = 0;
    }
    d->n_up = take_tokens(k, json_object_get(v, "pos_str"), json_object_get(v, "pos_values"), d->up, d->up_v);
    d->n_down = take_tokens(k, json_object_get(v, "neg_str"), json_object_get(v, "neg_values"), d->down, d->down_v);
}

/* ---- an activation's record -------------------------------------------------------------------------------------------------------------------- */

/* The window around a place of a record, as an atlas cuts it. False: nothing of it is active, or has a token. */
static bool cut(maker *k, json_t *tokens, json_t *values, size_t peak, kept *e)
{
    size_t n = json_array_size(tokens);
    size_t from = peak > WINDOW * 2 / 3 ? peak - WINDOW * 2 / 3 : 0;
    if (from + WINDOW > n)
        from = n > WINDOW ? n - WINDOW : 0;
    float v[WINDOW];
    e->n = 0;
    e->max = 0;
    bool has_peak = false;
    for (size_t t = from; t < n && t < from + WINDOW; t++) {
        const char *s = json_string_value(json_array_get(tokens, t));
        int32_t id = s ? token_of(k, s, true) : -1;
        if (id < 0)
            continue;
        has_peak = has_peak || t == peak;
        if (t == peak)
            e->peak = e->n;
        double x = number_of(json_array_get(values, t));
        v[e->n] = x > 0 ? (float)x : 0;
        e->max = fmaxf(e->max, v[e->n]);
        e->id[e->n++] = id;
    }
    for (int t = 0; t < e->n && e->max > 0; t++) {
        long x = lrintf(v[t] / e->max * 255);
        e->value[t] = (uint8_t)(v[t] <= 0 ? 0 : x < 1 ? 1 : x);
    }
    return has_peak && e->max > 0;
}

/* Among at most `most`, the one with the smallest maximum gives way. */
static int offer(kept **list, int *n, int most, const kept *e, es_error *err)
{
    if (!*list && !(*list = es_calloc((size_t)most, sizeof **list)))
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for the examples");
    int at = *n;
    if (at == most) {
        at = 0;
        for (int i = 1; i < most; i++)
            at = (*list)[i].max < (*list)[at].max ? i : at;
        if ((*list)[at].max >= e->max)
            return ES_OK;
    } else {
        ++*n;
    }
    (*list)[at] = *e;
    return ES_OK;
}

static int take_activation(maker *k, dashboard *d, json_t *v, const char *where, es_error *err)
{
    json_t *tokens = json_object_get(v, "tokens"), *values = json_object_get(v, "values"), *place = json_object_get(v, "qualifyingTokenIndex"), *lo = json_object_get(v, "binMin");
    json_t *hi = json_object_get(v, "binMax");
    size_t n = json_array_size(tokens), peak = 0;
    if (!n || json_array_size(values) != n || n > RECORD_TOKENS)
        return es_fail(err, ES_ERR_FORMAT, "%s: an activation's \"tokens\" and \"values\" are lists of the same length", where);
    bool drawn = json_is_number(lo) && json_is_number(hi) && json_number_value(lo) >= 0 && json_number_value(hi) > json_number_value(lo);
    for (size_t t = 1; t < n; t++)
        peak = number_of(json_array_get(values, t)) > number_of(json_array_get(values, peak)) ? t : peak;
    if (drawn && json_is_integer(place) && json_integer_value(place) >= 0 && (size_t)json_integer_value(place) < n && number_of(json_array_get(values, (size_t)json_integer_value(place))) > 0)
        peak = (size_t)json_integer_value(place);
    kept e = {0};
    if (!cut(k, tokens, values, peak, &e)) {
        k->out->empty++;
        return ES_OK;
    }
    k->out->examples++;
    if (!drawn)
        return offer(&d->top, &d->n_top, TOP, &e, err);
    /* theirs may be of any number of intervals, so it is the one that the middle falls into; features come before activations, so the maximum is known */
    double whole = fmax((double)d->max, (double)e.max), middle = (json_number_value(lo) + json_number_value(hi)) / 2;
    int interval = whole > 0 ? (int)(middle / whole * ES_ATLAS_INTERVALS) : 0;
    e.interval = (uint8_t)(interval < 0 ? 0 : interval < ES_ATLAS_INTERVALS ? interval : ES_ATLAS_INTERVALS - 1);
    int of = 0;
    for (int i = 0; i < d->n_spread; i++)
        of += d->spread[i].interval == e.interval;
    return of < EACH ? offer(&d->spread, &d->n_spread, SPREAD, &e, err) : ES_OK;
}

/* ---- records ----------------------------------------------------------------------------------------------------------------------------------- */

static int dashboard_of(maker *k, json_t *v, json_t *feature, dashboard **out, const char *where, es_error *err)
{
    json_t *index = json_object_get(v, "index");
    long long f = -1;
    int rc = ES_OK;
    *out = NULL;
    if (!np_feature_of(index ? index : json_object_get(feature, "index"), &f))
        return es_fail(err, ES_ERR_FORMAT, "%s: a record without the \"index\" of its feature", where);
    if (!np_is_of(&k->origin, np_text_of(v, "modelId", np_text_of(feature, "modelId", "")), np_text_of(v, "layer", np_text_of(feature, "layer", "")), &rc, where, err))
        return rc;
    if (f < 0 || f >= k->n_features)
        return es_fail(err, ES_ERR_FORMAT, "%s: is about feature %lld, and the dictionary has 0 to %d: is it of another one?", where, f, k->n_features - 1);
    *out = &k->of[f];
    return ES_OK;
}

static int take_record(void *user, json_t *v, const char *where, es_error *err)
{
    maker *k = user;
    dashboard *d;
    json_t *list = json_object_get(v, "activations"), *x;
    size_t i;
    if (!json_is_object(v))
        return es_fail(err, ES_ERR_FORMAT, "%s: a record is a JSON object", where);
    bool activation = json_object_get(v, "tokens") != NULL;
    if (!activation && !json_object_get(v, "frac_nonzero") && !json_object_get(v, "maxActApprox"))
        return json_object_get(v, "description") ? ES_OK : es_fail(err, ES_ERR_FORMAT, "%s: is no feature or activation of Neuronpedia", where);
    int rc = dashboard_of(k, v, NULL, &d, where, err);
    if (rc || !d)
        return rc;
    if (activation)
        return take_activation(k, d, v, where, err);
    take_feature(k, d, v);
    json_array_foreach(list, i, x) { /* one feature with all that is known of it */
        if (rc || !json_is_object(x))
            break;
        rc = take_activation(k, d, x, where, err);
    }
    return rc;
}

/* ---- cards -------------------------------------------------------------------------------------------------------------------------------------- */

static int falling(const void *x, const void *y)
{
    const kept *a = x, *b = y;
    if (a->interval != b->interval)
        return b->interval - a->interval;
    return (a->max < b->max) - (a->max > b->max);
}

static void wide(maker *k, int row, es_example *out, const kept *e)
{
    for (int t = 0; t < e->n; t++)
        k->value[row][t] = (float)e->value[t] / 255 * e->max;
    *out = (es_example){.n = e->n, .peak = e->peak, .id = e->id, .value = k->value[row], .max = e->max, .interval = e->interval};
}

/* Mean and 99th percentile of active values, by the histogram: within a bin evenly. */
static void figures(const dashboard *d, es_feature_card *c)
{
    double all = 0, sum = 0, upto = 0, width = (double)c->max / ES_ATLAS_BINS;
    for (int i = 0; i < ES_ATLAS_BINS; i++) {
        all += d->histogram[i];
        sum += d->histogram[i] * (i + 0.5) * width;
    }
    c->mean = all > 0 ? (float)(sum / all) : 0;
    c->p99 = 0;
    for (int i = 0; i < ES_ATLAS_BINS && all > 0 && c->p99 <= 0; i++) {
        if (d->histogram[i] > 0 && upto + d->histogram[i] >= 0.99 * all)
            c->p99 = (float)((i + (0.99 * all - upto) / d->histogram[i]) * width);
        upto += d->histogram[i];
    }
}

static int card_of(void *user, int feature, es_feature_card *c, es_error *err)
{
    (void)err;
    maker *k = user;
    dashboard *d = &k->of[feature];
    if (d->n_top)
        qsort(d->top, (size_t)d->n_top, sizeof *d->top, falling);
    if (d->n_spread)
        qsort(d->spread, (size_t)d->n_spread, sizeof *d->spread, falling);
    for (int i = 0; i < d->n_top; i++)
        wide(k, i, &k->example[i], &d->top[i]);
    for (int i = 0; i < d->n_spread; i++)
        wide(k, TOP + i, &k->spread[i], &d->spread[i]);
    c->max = d->n_top ? fmaxf(d->max, d->top[0].max) : d->max;
    c->density = (double)d->density;
    double scale = 0; /* frequencies instead of counts: what they are of a million */
    for (int i = 0; i < ES_ATLAS_BINS; i++)
        scale += d->histogram[i];
    scale = scale > 0 && scale <= 1.5 ? 1e6 : 1;
    for (int i = 0; i < ES_ATLAS_BINS; i++)
        c->histogram[i] = (uint32_t)fmin(llround(d->histogram[i] * scale), UINT32_MAX);
    figures(d, c);
    c->n_promoted = d->n_up;
    c->n_suppressed = d->n_down;
    memcpy(c->promoted, d->up, sizeof c->promoted);
    memcpy(c->suppressed, d->down, sizeof c->suppressed);
    memcpy(c->promoted_logit, d->up_v, sizeof c->promoted_logit);
    memcpy(c->suppressed_logit, d->down_v, sizeof c->suppressed_logit);
    c->logit_lo = d->lo;
    c->logit_hi = d->hi;
    memcpy(c->logits, d->logits, sizeof c->logits);
    c->example = k->example;
    c->n_example = d->n_top;
    c->spread = k->spread;
    c->n_spread = d->n_spread;
    return ES_OK;
}

/* How many tokens they were made from, which no record says: the active ones of a feature by its density, the middle of what the features say. */
static int by_size(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static uint64_t tokens_read(const maker *k)
{
    double *say = es_calloc((size_t)k->n_features + 1, sizeof *say);
    size_t n = 0;
    for (int f = 0; say && f < k->n_features; f++) {
        double all = 0;
        for (int i = 0; i < ES_ATLAS_BINS; i++)
            all += k->of[f].histogram[i];
        if (k->of[f].density > 0 && all > 1.5)
            say[n++] = all / (double)k->of[f].density;
    }
    if (n)
        qsort(say, n, sizeof *say, by_size);
    double tokens = n ? say[n / 2] : 0;
    free(say);
    return tokens >= 1 && tokens < 1e15 ? (uint64_t)llround(tokens) : 1;
}

int es_neuronpedia_atlas(es_model *m, const es_dictionary *s, const char *path, const char *source, const char *atlas, es_neuronpedia_dashboards *out, es_error *err)
{
    char hash[65];
    *out = (es_neuronpedia_dashboards){0};
    maker *k = es_calloc(1, sizeof *k);
    if (!k)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for an atlas");
    *k = (maker){.m = m, .origin = {.source = source}, .n_features = es_dictionary_get_info(s)->n_features, .out = out};
    int rc = es_dictionary_check_model(s, m, err);
    rc = rc ? rc : es_model_hash(m, hash, err);
    k->of = rc ? NULL : es_calloc((size_t)k->n_features, sizeof *k->of);
    if (!rc && !k->of)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for %d dashboards", k->n_features);
    rc = rc ? rc : vocabulary_open(&k->words, m, err);
    rc = rc ? rc : np_read(path, "features", take_record, k, err);
    char part[1300];
    struct stat st;
    snprintf(part, sizeof part, "%s/activations", path);
    if (!rc && stat(part, &st) == 0 && S_ISDIR(st.st_mode))
        rc = np_read(path, "activations", take_record, k, err);
    for (int f = 0; !rc && f < k->n_features; f++)
        out->features += k->of[f].known || k->of[f].n_top > 0;
    if (!rc && !out->features)
        rc = es_fail(err, ES_ERR_MISSING, "%s: holds no dashboard", path);
    const es_atlas_source w = {.n_features = k->n_features, .n_vocab = es_model_get_info(m)->n_vocab, .layer = es_dictionary_get_info(s)->layer, .examples = TOP, .window = WINDOW,
                               .tokens = rc ? 0 : tokens_read(k), .dictionary_hash = es_dictionary_get_info(s)->hash, .model_hash = hash, .card = card_of, .user = k};
    rc = rc ? rc : es_atlas_write(atlas, &w, err);
    for (int f = 0; k->of && f < k->n_features; f++) {
        free(k->of[f].top);
        free(k->of[f].spread);
    }
    free(k->of);
    free(k->words.slot);
    es_ids_free(&k->ids);
    free(k);
    return rc;
}
