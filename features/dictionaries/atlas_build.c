/* Building an atlas: one pass over a harvest with a heap of best windows a feature, then the promoted tokens, then the file. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "atlas_file.h"
#include "atlas_spread.h"
#include "atlas_write.h"
#include "coactive.h"
#include "harvest.h"
#include "vector.h"

enum { FINE = 256, ROWS = 2048, HEAD_ROWS = 64 };

es_atlas_options es_atlas_default(void)
{
    return (es_atlas_options){.examples = 20, .window = 24, .spread = 4};
}

typedef struct window { /* an example in the making */
    float max;
    uint32_t context;     /* hash of the tokens around the peak: the same passage is kept once */
    uint64_t id;          /* first id, in the harvest */
    uint8_t n, peak;
} window;

typedef struct feature_stats {
    double sum;
    uint64_t count;
    float max, range;     /* fine bins cover (0, range]; range doubles when a value is larger */
    uint32_t fine[FINE];
    int n;                /* windows kept */
} feature_stats;

typedef struct build {
    const es_dictionary *s;
    es_model *m;
    const es_atlas_options *o;
    es_harvest_reader h;
    es_pool *pool;
    size_t F, d;
    feature_stats *f;
    window *w;            /* [F, examples] */
    uint8_t *value;       /* [F, examples, window] */
    es_spread *spread;    /* NULL: no random places are wanted */
    es_coactive *coactive;
    int32_t *correlated;  /* [F, ES_ATLAS_CORRELATED] */
    float *pearson, *together;
    uint64_t tokens;
    /* the rows being read */
    float *x;
    es_sparse acts;
    uint8_t *sink;        /* [ROWS + context] */
    /* one sequence, by feature: a list of its activations in the order of tokens */
    int32_t *head, *tail; /* [F], -1: none */
    int32_t *touched;
    struct act { int32_t token, next; float v; } *act;
    size_t cap_act;
    /* promoted tokens */
    int V;
    float *rows, *logits; /* [HEAD_ROWS, d_model], [HEAD_ROWS, V] */
    int first_row, n_row;
    struct tokens { float lo, hi; uint32_t logits[ES_ATLAS_BINS]; int n_up, n_down; int32_t up[ES_ATLAS_TOKENS], down[ES_ATLAS_TOKENS]; float up_v[ES_ATLAS_TOKENS], down_v[ES_ATLAS_TOKENS]; } *tokens_of;
} build;

static void count_value(feature_stats *f, float v)
{
    f->sum += (double)v;
    f->count++;
    f->max = fmaxf(f->max, v);
    if (f->range <= 0)
        f->range = exp2f(ceilf(log2f(v)));
    while (v > f->range) {
        for (int i = 0; i < FINE / 2; i++)
            f->fine[i] = f->fine[2 * i] + f->fine[2 * i + 1];
        memset(f->fine + FINE / 2, 0, FINE / 2 * sizeof *f->fine);
        f->range *= 2;
    }
    int bin = (int)ceilf(v / f->range * FINE) - 1;
    f->fine[bin < 0 ? 0 : bin >= FINE ? FINE - 1 : bin]++;
}

static uint32_t context_hash(const int32_t *id, int n, int peak)
{
    uint32_t h = 2166136261u;
    for (int t = peak - 5 < 0 ? 0 : peak - 5; t < n && t <= peak + 2; t++)
        h = (h ^ (uint32_t)id[t]) * 16777619u;
    return h;
}

/* Where a window around a token begins: a third of it after the token, where the sequence has it. */
static int window_from(int peak, int window_n, int n)
{
    int from = peak - window_n * 2 / 3;
    if (from + window_n > n)
        from = n - window_n;
    return from < 0 ? 0 : from;
}

/* The activations of feature j in a window of the sequence being read, in 255ths of max. */
static void window_values(const build *b, size_t j, int from, int length, float max, uint8_t *value)
{
    memset(value, 0, (size_t)b->o->window);
    for (int32_t a = b->head[j]; a >= 0; a = b->act[a].next) {
        int t = b->act[a].token - from;
        if (t >= 0 && t < length) {
            int v = (int)lrintf(b->act[a].v / max * 255);
            value[t] = (uint8_t)(v < 1 ? 1 : v > 255 ? 255 : v);
        }
    }
}

/* Offers the strongest place of feature j in a sequence. */
static void offer(build *b, const es_harvest_sequence *q, size_t j, int peak, float max)
{
    feature_stats *f = &b->f[j];
    int examples = b->o->examples, window_n = b->o->window, n = (int)q->n, at = -1;
    window *w = b->w + j * (size_t)examples;
    const int32_t *id = b->h.id + q->id;
    if (f->n == examples) {
        at = 0;
        for (int i = 1; i < examples; i++)
            if (w[i].max < w[at].max)
                at = i;
        if (w[at].max >= max)
            return;
    }
    uint32_t context = context_hash(id, n, peak);
    for (int i = 0; i < f->n; i++)
        if (w[i].context == context) {
            if (w[i].max >= max)
                return;
            at = i;
            break;
        }
    if (at < 0)
        at = f->n++;
    int from = window_from(peak, window_n, n), length = n - from < window_n ? n - from : window_n;
    w[at] = (window){.max = max, .context = context, .id = q->id + (uint64_t)from, .n = (uint8_t)length, .peak = (uint8_t)(peak - from)};
    window_values(b, j, from, length, max, b->value + (j * (size_t)examples + (size_t)at) * (size_t)window_n);
}

static uint32_t priority(uint64_t place, uint64_t j) /* a hash: which places are drawn */
{
    uint64_t x = place * 0x9e3779b97f4a7c15u ^ (j + 1) * 0xd1b54a32d192ed03u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(x >> 32);
}

/* Offers all places of feature j in a sequence for the draw from intervals. */
static void offer_places(build *b, const es_harvest_sequence *q, size_t j)
{
    int window_n = b->o->window, n = (int)q->n;
    for (int32_t a = b->head[j]; a >= 0; a = b->act[a].next) {
        int peak = b->act[a].token;
        uint8_t *value;
        es_place_at *p = es_spread_offer(b->spread, j, b->act[a].v, b->f[j].range, priority(q->id + (uint64_t)peak, j), &value);
        if (!p)
            continue;
        int from = window_from(peak, window_n, n), length = n - from < window_n ? n - from : window_n;
        float max = 0;
        for (int32_t k = b->head[j]; k >= 0; k = b->act[k].next)
            if (b->act[k].token >= from && b->act[k].token < from + length)
                max = fmaxf(max, b->act[k].v);
        *p = (es_place_at){.priority = priority(q->id + (uint64_t)peak, j), .v = b->act[a].v, .max = max, .id = q->id + (uint64_t)from,
                           .n = (uint8_t)length, .peak = (uint8_t)(peak - from)};
        window_values(b, j, from, length, max, value);
    }
}

/* row0: place of the sequence's first row among those encoded. */
static int add_sequence(build *b, const es_harvest_sequence *q, size_t row0, es_error *err)
{
    int skip = b->h.skip, rows = (int)q->n - skip;
    size_t need = b->acts.start[row0 + (size_t)rows] - b->acts.start[row0];
    if (need > b->cap_act) {
        struct act *p = realloc(b->act, need * 2 * sizeof *p);
        if (!p)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory for the atlas");
        b->act = p;
        b->cap_act = need * 2;
    }
    int32_t n = 0;
    int n_touched = 0;
    for (int t = 0; t < rows; t++) {
        size_t row = row0 + (size_t)t;
        if (b->sink[row])
            continue;
        b->tokens++;
        int rc = es_coactive_add(b->coactive, q->row + (uint64_t)t, b->acts.index + b->acts.start[row], b->acts.value + b->acts.start[row],
                                 b->acts.start[row + 1] - b->acts.start[row], err);
        if (rc)
            return rc;
        for (size_t a = b->acts.start[row]; a < b->acts.start[row + 1]; a++) {
            int32_t j = b->acts.index[a];
            float v = b->acts.value[a];
            count_value(&b->f[j], v);
            b->act[n] = (struct act){t + skip, -1, v};
            if (b->head[j] < 0) {
                b->head[j] = n;
                b->touched[n_touched++] = j;
            } else {
                b->act[b->tail[j]].next = n;
            }
            b->tail[j] = n++;
        }
    }
    for (int i = 0; i < n_touched; i++) {
        int32_t j = b->touched[i];
        int32_t best = b->head[j];
        for (int32_t a = best; a >= 0; a = b->act[a].next)
            if (b->act[a].v > b->act[best].v)
                best = a;
        offer(b, q, (size_t)j, b->act[best].token, b->act[best].v);
        if (b->spread)
            offer_places(b, q, (size_t)j);
        b->head[j] = -1;
    }
    return ES_OK;
}

static int read_harvest(build *b, const es_progress *progress, es_error *err)
{
    const es_vector_ops *ops = es_vector();
    int rc = ES_OK;
    double total = b->o->max_tokens && b->o->max_tokens < b->h.n_row ? (double)b->o->max_tokens : (double)b->h.n_row;
    for (size_t i = 0; i < b->h.n_sequence && !rc && (!b->o->max_tokens || b->tokens < b->o->max_tokens);) {
        if (es_progress_cancelled(progress))
            return es_fail(err, ES_ERR_CANCELLED, "the atlas was cancelled after %llu tokens", (unsigned long long)b->tokens);
        size_t rows = 0, first = i;
        while (i < b->h.n_sequence) {
            size_t n = b->h.sequence[i].n - (size_t)b->h.skip;
            if (rows && rows + n > ROWS)
                break;
            if (n > ROWS)
                return es_fail(err, ES_ERR_LIMIT, "a sequence of %zu tokens is too long for an atlas", n);
            es_harvest_reader_rows(&b->h, b->h.sequence[i].row, n, b->x + rows * b->d);
            rows += n;
            i++;
        }
        for (size_t t = 0; t < rows; t++)
            b->sink[t] = sqrtf(ops->dot(b->x + t * b->d, b->x + t * b->d, b->d)) > b->h.norm_limit;
        rc = es_dictionary_encode(b->s, b->pool, b->x, (int)rows, &b->acts, err);
        for (size_t row = 0; first < i && !rc; first++) {
            rc = add_sequence(b, &b->h.sequence[first], row, err);
            row += b->h.sequence[first].n - (size_t)b->h.skip;
        }
        es_progress_report(progress, "atlas: examples", (double)b->tokens, total, "tokens");
    }
    return rc;
}

/* Keeps the largest of what is offered, in falling order. */
static void offer_token(int *n, int32_t *id, float *v, int32_t new, float value)
{
    int i = *n;
    if (i == ES_ATLAS_TOKENS && !(value > v[i - 1]))
        return;
    if (i < ES_ATLAS_TOKENS)
        ++*n;
    else
        i--;
    for (; i > 0 && value > v[i - 1]; i--) {
        v[i] = v[i - 1];
        id[i] = id[i - 1];
    }
    v[i] = value;
    id[i] = new;
}

void es_atlas_logits(const float *logit, int n, float *lo, float *hi, uint32_t out[ES_ATLAS_BINS])
{
    *lo = INFINITY;
    *hi = -INFINITY;
    for (int v = 0; v < n; v++) {
        *lo = fminf(*lo, logit[v]);
        *hi = fmaxf(*hi, logit[v]);
    }
    memset(out, 0, ES_ATLAS_BINS * sizeof *out);
    float width = *hi - *lo;
    for (int v = 0; v < n; v++) {
        int bin = width > 0 ? (int)((logit[v] - *lo) / width * ES_ATLAS_BINS) : 0;
        out[bin < ES_ATLAS_BINS ? bin : ES_ATLAS_BINS - 1]++;
    }
}

static void promote_part(void *user, int part, int parts)
{
    build *b = user;
    for (int i = part; i < b->n_row; i += parts) {
        const float *logit = b->logits + (size_t)i * (size_t)b->V;
        struct tokens *t = &b->tokens_of[b->first_row + i];
        es_atlas_logits(logit, b->V, &t->lo, &t->hi, t->logits);
        for (int v = 0; v < b->V; v++) {
            offer_token(&t->n_up, t->up, t->up_v, v, logit[v]);
            offer_token(&t->n_down, t->down, t->down_v, v, -logit[v]);
        }
    }
}

/* Logits that a unit of the feature adds: (decoder row * final norm's weight) . unembedding; the norm's division is left out. */
static int promote(build *b, const es_progress *progress, es_error *err)
{
    const float *norm = es_model_final_norm(b->m);
    es_weight head = es_model_head(b->m);
    const es_kernels *k = es_kernels_cpu();
    const size_t width = (size_t)es_model_get_info(b->m)->d_model;
    for (size_t first = 0; first < b->F; first += HEAD_ROWS) {
        if (es_progress_cancelled(progress))
            return es_fail(err, ES_ERR_CANCELLED, "the atlas was cancelled");
        b->first_row = (int)first;
        b->n_row = (int)(b->F - first < HEAD_ROWS ? b->F - first : HEAD_ROWS);
        int rc = es_dictionary_directions(b->s, b->m, b->pool, b->first_row, b->n_row, b->rows, err);
        if (rc)
            return rc;
        for (size_t i = 0; i < (size_t)b->n_row * width; i++)
            b->rows[i] *= norm[i % width];
        k->matmul(b->pool, &head, b->rows, b->n_row, b->logits, false, true);
        es_pool_run(b->pool, promote_part, b);
        es_progress_report(progress, "atlas: promoted tokens", (double)first, (double)b->F, "features");
    }
    return ES_OK;
}

/* ---- cards ------------------------------------------------------------------------------------------------------------------------- */

/* 50 bins of (0, max] from the fine ones, by the share of each that falls into them; sums are kept. */
static void coarse(const feature_stats *f, uint32_t out[ES_ATLAS_BINS])
{
    uint64_t before = 0;
    double fine = (double)f->range / FINE;
    for (int i = 0; i < ES_ATLAS_BINS; i++) {
        double edge = (double)f->max * (i + 1) / ES_ATLAS_BINS, sum = 0;
        for (int k = 0; k < FINE; k++) {
            double low = k * fine, high = fmin(low + fine, fmax((double)f->max, low + 1e-30)); /* the last bin ends at max */
            sum += (double)f->fine[k] * fmin(1, fmax(0, (edge - low) / (high - low)));
        }
        uint64_t upto = i + 1 == ES_ATLAS_BINS ? f->count : (uint64_t)llrint(sum);
        upto = upto < before ? before : upto;
        out[i] = (uint32_t)(upto - before);
        before = upto;
    }
}

static float quantile(const feature_stats *f, double share)
{
    double want = share * (double)f->count, sum = 0;
    for (int k = 0; k < FINE; k++) {
        double n = (double)f->fine[k];
        if (n > 0 && sum + n >= want)
            return fminf(f->max, (float)((k + (want - sum) / n) * (double)f->range / FINE));
        sum += n;
    }
    return f->max;
}

static int falling(const void *a, const void *b)
{
    const window *const *x = a, *const *y = b;
    if ((*x)->max != (*y)->max)
        return (*x)->max > (*y)->max ? -1 : 1;
    return ((*x)->id > (*y)->id) - ((*x)->id < (*y)->id);
}

/* A card's examples and random places, their activations as floats again. */
typedef struct card_room {
    const build *b;
    es_example example[ES_ATLAS_MAX_EXAMPLES], spread[ES_ATLAS_MAX_SPREAD];
    float value[ES_ATLAS_MAX_EXAMPLES + ES_ATLAS_MAX_SPREAD][ES_ATLAS_MAX_WINDOW];
} card_room;

static const float *wide(float *out, const uint8_t *value, int n, float max)
{
    for (int t = 0; t < n; t++)
        out[t] = (float)value[t] / 255 * max;
    return out;
}

static void card_examples(card_room *r, size_t j, es_feature_card *out)
{
    const build *b = r->b;
    const feature_stats *f = &b->f[j];
    const window *order[ES_ATLAS_MAX_EXAMPLES], *w = b->w + j * (size_t)b->o->examples;
    for (int i = 0; i < f->n; i++)
        order[i] = &w[i];
    qsort(order, (size_t)f->n, sizeof *order, falling);
    for (int i = 0; i < f->n; i++) {
        const window *e = order[i];
        const uint8_t *value = b->value + (j * (size_t)b->o->examples + (size_t)(e - w)) * (size_t)b->o->window;
        r->example[i] = (es_example){.n = e->n, .peak = e->peak, .id = b->h.id + e->id, .value = wide(r->value[i], value, e->n, e->max), .max = e->max};
    }
    out->example = r->example;
    out->n_example = f->n;
}

/* The random places, interval by interval from the top. */
static void card_places(card_room *r, size_t j, es_feature_card *out)
{
    const build *b = r->b;
    const es_place_at *place[ES_ATLAS_MAX_SPREAD];
    const uint8_t *value[ES_ATLAS_MAX_SPREAD];
    int n = 0;
    for (int i = ES_ATLAS_INTERVALS - 1; b->spread && i >= 0; i--) {
        int some = es_spread_interval(b->spread, j, i, b->f[j].max, place + n, value + n);
        for (int k = n; k < n + some; k++)
            r->spread[k] = (es_example){.n = place[k]->n, .peak = place[k]->peak, .id = b->h.id + place[k]->id, .max = place[k]->max, .interval = i,
                                        .value = wide(r->value[ES_ATLAS_MAX_EXAMPLES + k], value[k], place[k]->n, place[k]->max)};
        n += some;
    }
    out->spread = r->spread;
    out->n_spread = n;
}

static int card_of(void *user, int feature, es_feature_card *out, es_error *err)
{
    (void)err;
    card_room *r = user;
    const build *b = r->b;
    size_t j = (size_t)feature;
    const feature_stats *f = &b->f[j];
    const struct tokens *t = &b->tokens_of[j];
    out->density = b->tokens ? (double)f->count / (double)b->tokens : 0;
    out->max = f->max;
    out->mean = f->count ? (float)(f->sum / (double)f->count) : 0;
    out->p99 = f->count ? quantile(f, 0.99) : 0;
    if (f->count)
        coarse(f, out->histogram);
    out->n_promoted = t->n_up;
    out->n_suppressed = t->n_down;
    for (int i = 0; i < ES_ATLAS_TOKENS; i++) {
        out->promoted[i] = t->up[i];
        out->promoted_logit[i] = t->up_v[i];
        out->suppressed[i] = t->down[i];
        out->suppressed_logit[i] = -t->down_v[i];
    }
    card_examples(r, j, out);
    card_places(r, j, out);
    out->has_logits = true;
    out->logit_lo = t->lo;
    out->logit_hi = t->hi;
    memcpy(out->logits, t->logits, sizeof out->logits);
    const int32_t *other = b->correlated + j * ES_ATLAS_CORRELATED;
    for (int n = 0; n < ES_ATLAS_CORRELATED && other[n] >= 0; out->n_correlated = ++n) {
        out->correlated[n] = other[n];
        out->pearson[n] = b->pearson[j * ES_ATLAS_CORRELATED + (size_t)n];
        out->together[n] = b->together[j * ES_ATLAS_CORRELATED + (size_t)n];
    }
    return ES_OK;
}

static int write_file(const build *b, const char *path, es_error *err)
{
    card_room *r = es_calloc(1, sizeof *r);
    if (!r)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to write the atlas");
    r->b = b;
    const es_atlas_source s = {.n_features = (int)b->F, .n_vocab = b->V, .layer = es_dictionary_get_info(b->s)->layer, .examples = b->o->examples, .window = b->o->window,
                               .tokens = b->tokens, .dictionary_hash = es_dictionary_get_info(b->s)->hash, .model_hash = b->h.model_hash, .card = card_of, .user = r};
    int rc = es_atlas_write(path, &s, err);
    free(r);
    return rc;
}

static int take_memory(build *b, es_error *err)
{
    size_t n = b->F * (size_t)b->o->examples;
    b->f = es_calloc(b->F, sizeof *b->f);
    b->w = es_calloc(n, sizeof *b->w);
    b->value = es_calloc(n, (size_t)b->o->window);
    b->x = es_calloc(ROWS * b->d, sizeof *b->x);
    b->sink = es_calloc(ROWS, 1);
    b->head = es_calloc(b->F, sizeof *b->head);
    b->tail = es_calloc(b->F, sizeof *b->tail);
    b->touched = es_calloc(b->F, sizeof *b->touched);
    b->rows = es_calloc(HEAD_ROWS * (size_t)es_model_get_info(b->m)->d_model, sizeof *b->rows);
    b->logits = es_calloc((size_t)HEAD_ROWS * (size_t)b->V, sizeof *b->logits);
    b->tokens_of = es_calloc(b->F, sizeof *b->tokens_of);
    if (!b->f || !b->w || !b->value || !b->x || !b->sink || !b->head || !b->tail || !b->touched || !b->rows || !b->logits || !b->tokens_of)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for an atlas of %zu features", b->F);
    memset(b->head, -1, b->F * sizeof *b->head);
    int rc = b->o->spread ? es_spread_open(&b->spread, b->F, b->o->spread, b->o->window, err) : ES_OK;
    return rc ? rc : es_coactive_open(&b->coactive, (int)b->F, 0, err);
}

static int correlate(build *b, es_error *err)
{
    size_t n = b->F * ES_ATLAS_CORRELATED;
    b->correlated = es_calloc(n, sizeof *b->correlated);
    b->pearson = es_calloc(n, sizeof *b->pearson);
    b->together = es_calloc(n, sizeof *b->together);
    if (!b->correlated || !b->pearson || !b->together)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for an atlas of %zu features", b->F);
    int rc = es_coactive_top(b->coactive, b->pool, ES_ATLAS_CORRELATED, b->correlated, b->pearson, b->together, err);
    es_coactive_free(b->coactive); /* the largest piece of memory goes before the next step wants its own */
    b->coactive = NULL;
    return rc;
}

static int check_ids(const build *b, es_error *err)
{
    for (size_t i = 0; i < b->h.n_id; i++)
        if (b->h.id[i] < 0 || b->h.id[i] >= b->V)
            return es_fail(err, ES_ERR_FORMAT, "%s: id %zu is outside of the vocabulary", b->h.ids.path, i);
    return ES_OK;
}

int es_atlas_build(es_model *m, const es_dictionary *s, const char *harvest_dir, const char *path, const es_atlas_options *o,
                   const es_progress *progress, es_error *err)
{
    const es_dictionary_info *info = es_dictionary_get_info(s);
    char hash[65];
    if (o->examples < 1 || o->examples > ES_ATLAS_MAX_EXAMPLES || o->window < 2 || o->window > ES_ATLAS_MAX_WINDOW || o->spread < 0 ||
        o->spread > ES_ATLAS_MAX_SPREAD / ES_ATLAS_INTERVALS)
        return es_fail(err, ES_ERR_USAGE, "an atlas takes 1 to %d examples of 2 to %d tokens, and at most %d from an interval", (int)ES_ATLAS_MAX_EXAMPLES,
                       (int)ES_ATLAS_MAX_WINDOW, ES_ATLAS_MAX_SPREAD / ES_ATLAS_INTERVALS);
    int rc = es_dictionary_check_model(s, m, err);
    if (!rc)
        rc = es_model_hash(m, hash, err);
    build *b = rc ? NULL : es_calloc(1, sizeof *b);
    if (rc || !b)
        return rc ? rc : es_fail(err, ES_ERR_MEMORY, "not enough memory for an atlas");
    *b = (build){.s = s, .m = m, .o = o, .F = (size_t)info->n_features, .d = (size_t)info->d, .V = es_model_get_info(m)->n_vocab};
    rc = es_harvest_reader_open_at(&b->h, harvest_dir, (es_hook_place){info->layer, info->hook}, err);
    if (!rc && strcmp(b->h.model_hash, hash) != 0)
        rc = es_fail(err, ES_ERR_MISMATCH, "harvest %s was made with the model %s; this one is %s", harvest_dir, b->h.model_hash, hash);
    if (!rc && (size_t)b->h.d != b->d)
        rc = es_fail(err, ES_ERR_MISMATCH, "harvest %s has width %d, the dictionary %zu", harvest_dir, b->h.d, b->d);
    if (!rc)
        rc = check_ids(b, err);
    if (!rc)
        rc = es_pool_open(&b->pool, o->threads, err);
    if (!rc)
        rc = take_memory(b, err);
    if (!rc)
        rc = read_harvest(b, progress, err);
    if (!rc)
        rc = correlate(b, err);
    if (!rc)
        rc = promote(b, progress, err);
    if (!rc)
        rc = write_file(b, path, err);
    es_harvest_reader_close(&b->h);
    es_pool_free(b->pool);
    es_sparse_free(&b->acts);
    es_spread_free(b->spread);
    es_coactive_free(b->coactive);
    void *all[] = {b->f, b->w, b->value, b->x, b->sink, b->head, b->tail, b->touched, b->act, b->rows, b->logits, b->tokens_of, b->correlated, b->pearson, b->together};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(b);
    return rc;
}
