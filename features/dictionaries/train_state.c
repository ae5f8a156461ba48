/* A training's memory, first weights, checkpoint, and what it leaves as a dictionary. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dictionary.h"
#include "safetensors.h"
#include "train.h"

enum { SAMPLE = 8192, AUX_TOKENS = 256, START_TIMES = 8 };

const char *es_recipe_name(es_recipe r)
{
    static const char *const name[ES_RECIPES] = {"batchtopk", "topk", "matryoshka", "jumprelu", "gated", "standard"};
    return (unsigned)r < ES_RECIPES ? name[r] : NULL;
}

bool es_recipe_on_card(es_recipe r)
{
    return r == ES_TRAIN_BATCHTOPK || r == ES_TRAIN_TOPK || r == ES_TRAIN_MATRYOSHKA;
}

es_dictionary_training es_dictionary_training_default(void)
{
    return (es_dictionary_training){
        .n_features = 6144, .k = 32, .batch = 2048, .tokens = 5000000, .aux_k = 128, .aux_weight = 1.0 / 32, .dead_tokens = 200000,
        .warmup = 0.03, .decay = 0.25, .sparsity_warmup = 0.1, .bandwidth = 0.1, .seed = 1, .checkpoint_seconds = 120, .half = true,
    };
}

/* ---- memory ------------------------------------------------------------------------------------------------------------------------- */

typedef struct sized { void *to; size_t n, size; } sized; /* to: the address of the pointer */

static void parameter_sizes(const es_dictionary_training *o, size_t d, es_train_parameter p[ES_TRAIN_PARAMETERS])
{
    size_t F = (size_t)o->n_features;
    bool theta = o->recipe == ES_TRAIN_JUMPRELU, gated = o->recipe == ES_TRAIN_GATED;
    const es_train_parameter all[ES_TRAIN_PARAMETERS] = {
        [ES_P_ENC] = {.name = "enc", .n = F * d, .columns = d},
        [ES_P_DEC] = {.name = "dec", .n = F * d, .columns = d},
        [ES_P_B_ENC] = {.name = "b_enc", .n = F, .columns = 1},
        [ES_P_B_DEC] = {.name = "b_dec", .n = d, .columns = 1},
        [ES_P_THETA] = {.name = "theta", .n = theta ? F : 0, .columns = 1},
        [ES_P_R_MAG] = {.name = "r_mag", .n = gated ? F : 0, .columns = 1},
        [ES_P_B_MAG] = {.name = "b_mag", .n = gated ? F : 0, .columns = 1},
    };
    memcpy(p, all, sizeof all);
}

/* Everything of fixed size; t may be one that has only sizes in it, of which the total is wanted. */
static size_t memory_table(es_train *t, size_t threads, sized *s)
{
    size_t n = 0, F = t->F, d = t->d;
    bool gated = t->o.recipe == ES_TRAIN_GATED;
    for (int i = 0; i < ES_TRAIN_PARAMETERS; i++)
        if (t->p[i].n) {
            s[n++] = (sized){&t->p[i].w, t->p[i].n, sizeof(float)};
            s[n++] = (sized){&t->p[i].m, t->p[i].n, sizeof(float)};
            s[n++] = (sized){&t->p[i].v, t->p[i].n, sizeof(float)};
        }
    const sized rest[] = {
        {&t->age, F, sizeof(float)}, {&t->x, t->B * d, sizeof(float)}, {&t->e, (size_t)t->n_prefix * t->B * d, sizeof(float)},
        {&t->pre, ES_TRAIN_TILE * F, sizeof(float)}, {&t->screen, F, sizeof(float)}, {&t->part_select, threads * F, sizeof(float)},
        {&t->aux_e, t->A * d, sizeof(float)}, {&t->dead_enc, F * d, sizeof(float)}, {&t->dead, F, sizeof(int32_t)},
        {&t->part_b_dec, threads * d, sizeof(float)}, {&t->part_row, threads * 2 * d, sizeof(float)},
        {&t->candidate_start, t->B + 1, sizeof(size_t)}, {&t->main.token_start, t->B + 1, sizeof(size_t)}, {&t->aux.token_start, t->A + 1, sizeof(size_t)},
        {&t->main.feature_start, F + 1, sizeof(size_t)}, {&t->aux.feature_start, F + 1, sizeof(size_t)},
    };
    memcpy(s + n, rest, sizeof rest);
    n += sizeof rest / sizeof *rest;
    if (gated)
        s[n++] = (sized){&t->gate_e, t->B * d, sizeof(float)};
    return n;
}
enum { MEMORY_MAX = 3 * ES_TRAIN_PARAMETERS + 20 };

static void take_sizes(es_train *t, const es_dictionary_training *o, int d)
{
    t->o = *o;
    t->d = (size_t)d;
    t->F = (size_t)o->n_features;
    t->B = (size_t)o->batch;
    t->A = t->B < AUX_TOKENS ? t->B : AUX_TOKENS;
    t->near = -1;
    t->n_prefix = 1;
    t->prefix[0] = t->F;
    if (o->recipe == ES_TRAIN_MATRYOSHKA && o->n_prefix) {
        t->n_prefix = o->n_prefix;
        for (int i = 0; i < o->n_prefix; i++)
            t->prefix[i] = (size_t)o->prefix[i];
    } else if (o->recipe == ES_TRAIN_MATRYOSHKA) {
        t->n_prefix = 0;
        for (size_t part = 16; part >= 1; part /= 2)
            if (t->F / part > (t->n_prefix ? t->prefix[t->n_prefix - 1] : 0))
                t->prefix[t->n_prefix++] = t->F / part;
    }
    parameter_sizes(o, t->d, t->p);
    t->main.more = o->recipe == ES_TRAIN_JUMPRELU || o->recipe == ES_TRAIN_GATED;
}

size_t es_train_bytes(const es_dictionary_training *o, int d, int threads)
{
    enum { OF_ENTRY = 40, OF_CANDIDATE = 2 * sizeof(es_hit) + sizeof(float) };
    static const size_t often = 4; /* what passes the screen, to what is kept; penalties start with more */
    es_train t = {0};
    sized s[MEMORY_MAX];
    take_sizes(&t, o, d);
    size_t n = memory_table(&t, (size_t)(threads > 0 ? threads : 1), s), sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += s[i].n * s[i].size;
    size_t kept = (size_t)o->k * (size_t)o->batch * (es_train_penalised(o->recipe) ? START_TIMES : 1);
    return sum + kept * OF_ENTRY + kept * (es_train_penalised(o->recipe) ? 2 : often) * OF_CANDIDATE;
}

size_t es_train_checkpoint_bytes(const es_dictionary_training *o, int d)
{
    es_train_parameter p[ES_TRAIN_PARAMETERS];
    size_t n = (size_t)o->n_features;
    parameter_sizes(o, (size_t)d, p);
    for (int i = 0; i < ES_TRAIN_PARAMETERS; i++)
        n += 3 * p[i].n;
    return n * sizeof(float);
}

int es_train_check(const es_dictionary_training *o, int d, es_error *err)
{
    if (o->n_features < 1 || o->n_features > ES_FEATURES_MAX || d < 1 || o->k < 1 || o->k > o->n_features || o->batch < 1 || o->batch > 1 << 16 || o->tokens < 1
        || o->aux_k < 0 || o->aux_k > o->n_features || (unsigned)o->recipe >= ES_RECIPES)
        return es_fail(err, ES_ERR_USAGE, "training: features, k <= features, batch and tokens must be positive (batch at most 65536)");
    if (o->card && !es_recipe_on_card(o->recipe))
        return es_fail(err, ES_ERR_USAGE, "training: a card trains batchtopk, topk and matryoshka; the recipe %s needs --device cpu", es_recipe_name(o->recipe));
    if (o->card && o->recipe == ES_TRAIN_TOPK && o->k > ES_TOP_MAX)
        return es_fail(err, ES_ERR_USAGE, "training: on a card topk keeps at most %d activations a token; %d need --device cpu", (int)ES_TOP_MAX, o->k);
    if (!(o->sparsity >= 0) || !(o->sparsity_warmup >= 0) || !(o->bandwidth > 0))
        return es_fail(err, ES_ERR_USAGE, "training: the penalty's weight and warm-up cannot be below 0, the bandwidth must be above");
    for (int i = 0; i < o->n_prefix; i++)
        if (o->n_prefix > ES_PREFIXES_MAX || o->prefix[i] <= (i ? o->prefix[i - 1] : 0) || o->prefix[o->n_prefix - 1] != o->n_features)
            return es_fail(err, ES_ERR_USAGE, "training: prefixes must rise, at most %d of them, the last all %d features", (int)ES_PREFIXES_MAX, o->n_features);
    return ES_OK;
}

int es_train_open(es_train **out, const es_dictionary_training *o, const es_train_rows *rows, es_error *err)
{
    *out = NULL;
    int rc = es_train_check(o, rows->d, err);
    if (rc)
        return rc;
    es_train *t = es_calloc(1, sizeof *t);
    if (!t)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to train");
    take_sizes(t, o, rows->d);
    t->rows = *rows;
    rc = es_pool_open(&t->pool, o->threads < ES_TRAIN_PARTS ? o->threads : ES_TRAIN_PARTS, err);
    sized s[MEMORY_MAX];
    size_t n = rc ? 0 : memory_table(t, (size_t)es_pool_threads(t->pool), s);
    for (size_t i = 0; i < n && !rc; i++) {
        void *p = es_calloc(s[i].n, s[i].size);
        memcpy(s[i].to, &p, sizeof p);
        if (!p)
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to train %zu features of width %zu (%zu MB)", t->F, t->d,
                         es_train_bytes(o, rows->d, es_pool_threads(t->pool)) >> 20);
    }
    if (rc)
        es_train_close(t);
    else
        *out = t;
    return rc;
}

static void entries_free(es_train_entries *l)
{
    void *all[] = {l->token, l->feature, l->value, l->z, l->grad, l->extra, l->by_feature};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

void es_train_close(es_train *t)
{
    if (!t)
        return;
    es_train_card_close(t);
    sized s[MEMORY_MAX];
    size_t n = memory_table(t, 1, s);
    for (size_t i = 0; i < n; i++) {
        void *p;
        memcpy(&p, s[i].to, sizeof p);
        free(p);
    }
    for (int i = 0; i < ES_TRAIN_PARTS; i++)
        free(t->list[i].e);
    free(t->candidate);
    free(t->select);
    entries_free(&t->main);
    entries_free(&t->aux);
    es_pool_free(t->pool);
    free(t);
}

/* ---- order of reading: a permutation of the rows, a new one an epoch, without storing it --------------------------------------- */

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* A Feistel network on the smallest even number of bits that holds n, walked until it lands below n. */
static uint64_t permuted(uint64_t i, uint64_t n, uint64_t key)
{
    int half = 1;
    while (half < 31 && (1ull << 2 * half) < n)
        half++;
    uint64_t mask = (1ull << half) - 1;
    do {
        uint64_t l = i >> half, r = i & mask;
        for (uint64_t round = 0; round < 4; round++) {
            uint64_t t = l ^ (mix(r + (key ^ round * 0x9e3779b97f4a7c15u)) & mask);
            l = r;
            r = t;
        }
        i = l << half | r;
    } while (i >= n);
    return i;
}

size_t es_train_row(const es_train *t, uint64_t place)
{
    size_t n = t->rows.n;
    if (t->queue)
        return (size_t)(place - t->queue_from);
    if (t->fresh && place >= t->fresh_from && place - t->fresh_from < t->fresh)
        return n - t->fresh + (size_t)permuted(place - t->fresh_from, t->fresh, mix(t->o.seed));
    return (size_t)permuted(place % n, n, mix(t->o.seed * 0x9e3779b97f4a7c15u + place / n + 1));
}

bool es_train_take(const es_train *t, uint64_t at, float *x)
{
    t->rows.read(t->rows.user, es_train_row(t, at), x);
    const bool sink = sqrtf(es_vector()->dot(x, x, t->d)) > t->rows.norm_limit;
    for (size_t k = 0; k < t->d; k++)
        x[k] = sink ? 0 : x[k] * t->scale;
    return !sink;
}

/* ---- start ------------------------------------------------------------------------------------------------------------------------- */

/* The geometric median of rows[n, d] into m (Weiszfeld); sum: scratch [d]. */
static void geometric_median(const float *rows, size_t n, size_t d, float *m, double *sum)
{
    for (int round = 0; round < 10; round++) {
        double weights = 0;
        memset(sum, 0, d * sizeof *sum);
        for (size_t i = 0; i < n; i++) {
            double distance = 0;
            for (size_t k = 0; k < d; k++) {
                double v = (double)rows[i * d + k] - (double)m[k];
                distance += v * v;
            }
            double w = round ? 1 / fmax(sqrt(distance), 1e-6) : 1; /* the first round gives the mean */
            weights += w;
            for (size_t k = 0; k < d; k++)
                sum[k] += w * (double)rows[i * d + k];
        }
        for (size_t k = 0; k < d; k++)
            m[k] = (float)(sum[k] / weights);
    }
}

/* Random unit vectors (rows that start as sampled inputs share the data's few large directions, overshoot and took longer). */
static void random_rows(es_train *t)
{
    es_rng r;
    es_rng_seed(&r, t->o.seed);
    for (size_t j = 0; j < t->F; j++) {
        float *w = t->p[ES_P_DEC].w + j * t->d;
        double norm = 0;
        for (size_t k = 0; k < t->d; k++) {
            w[k] = es_rng_normal(&r);
            norm += (double)w[k] * (double)w[k];
        }
        for (size_t k = 0; k < t->d; k++)
            w[k] /= (float)sqrt(norm);
        memcpy(t->p[ES_P_ENC].w + j * t->d, w, t->d * sizeof *w);
    }
}

/* Recipes with a penalty start at START_TIMES k active features a token, not at half of all: as Anthropic's (January 2025), through biases (or
 * thresholds) taken from the data; the penalty does the rest. rows: scaled. */
static int start_sparse(es_train *t, const float *rows, size_t n, es_error *err)
{
    if (!es_train_penalised(t->o.recipe))
        return ES_OK;
    n = n < 64 ? n : 64;
    size_t d = t->d, want = n * (size_t)t->o.k * START_TIMES, all = n * t->F;
    int rc = es_train_select_room(t, all, err);
    float *x = t->x;
    if (rc || n > t->B)
        n = t->B < n ? t->B : n;
    if (rc)
        return rc;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < d; k++)
            x[i * d + k] = rows[i * d + k] - t->p[ES_P_B_DEC].w[k];
    all = n * t->F;
    want = n * (size_t)t->o.k * START_TIMES;
    es_kernels_cpu()->gemm(t->pool, false, true, (int)n, (int)t->F, (int)d, 1, x, (int)d, t->p[ES_P_ENC].w, (int)d, 0, t->select, (int)t->F);
    float least = want < all / 2 ? fmaxf(0, es_train_nth_largest(t->select, all, want)) : 0;
    for (size_t j = 0; j < t->F; j++)
        if (t->o.recipe == ES_TRAIN_JUMPRELU)
            t->p[ES_P_THETA].w[j] = fmaxf(least, (float)t->o.bandwidth / 2);
        else
            t->p[ES_P_B_ENC].w[j] = -least;
    return ES_OK;
}

static double first_coefficient(const es_dictionary_training *o)
{
    return o->sparsity > 0 ? o->sparsity : 1;
}

int es_train_start(es_train *t, es_error *err)
{
    size_t d = t->d, n = t->rows.n < SAMPLE ? t->rows.n : SAMPLE, used = 0;
    float *sample = es_calloc(n * d, sizeof *sample);
    double *sum = es_calloc(d, sizeof *sum), norms = 0;
    int rc = sample && sum ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory to train");
    for (size_t i = 0; i < n && !rc; i++) {
        float *row = sample + used * d;
        t->rows.read(t->rows.user, es_train_row(t, i), row);
        float norm = sqrtf(es_vector()->dot(row, row, d));
        if (norm > t->rows.norm_limit)
            continue;
        norms += (double)norm;
        used++;
    }
    if (!rc && (!(norms > 0) || !isfinite(norms)))
        rc = es_fail(err, ES_ERR_FORMAT, "the harvest's activations are all zero or not numbers");
    if (!rc) {
        t->scale = (float)(sqrt((double)d) * (double)used / norms);
        for (size_t i = 0; i < used * d; i++)
            sample[i] *= t->scale;
        geometric_median(sample, used, d, t->p[ES_P_B_DEC].w, sum);
        random_rows(t);
        t->coefficient = first_coefficient(&t->o);
        rc = start_sparse(t, sample, used, err);
    }
    free(sample);
    free(sum);
    return rc;
}

/* ---- checkpoint ----------------------------------------------------------------------------------------------------------------------- */

enum { STATE_MAX = 3 * ES_TRAIN_PARAMETERS + 1 };
typedef struct state { es_tensor_spec spec[STATE_MAX]; char name[STATE_MAX][16]; size_t n; } state;

static void add_state(state *s, const char *name, const char *what, size_t rows, size_t columns, float *data)
{
    snprintf(s->name[s->n], sizeof s->name[s->n], "%s%s", name, what);
    s->spec[s->n] = columns > 1 ? (es_tensor_spec){s->name[s->n], ES_TENSOR_F32, 2, {rows, columns}, data} : (es_tensor_spec){s->name[s->n], ES_TENSOR_F32, 1, {rows}, data};
    s->n++;
}

static void state_of(const es_train *t, state *s)
{
    s->n = 0;
    for (int i = 0; i < ES_TRAIN_PARAMETERS; i++) {
        const es_train_parameter *p = &t->p[i];
        if (!p->n)
            continue;
        add_state(s, p->name, "", p->n / p->columns, p->columns, p->w);
        add_state(s, p->name, "_m", p->n / p->columns, p->columns, p->m);
        add_state(s, p->name, "_v", p->n / p->columns, p->columns, p->v);
    }
    add_state(s, "age", "", t->F, 1, t->age);
}

/* What must be the same for a run to go on. */
static void settings_text(const es_train *t, const char *about, char *out, size_t size)
{
    const es_dictionary_training *o = &t->o;
    size_t at = (size_t)snprintf(out, size, "%s F=%d k=%d batch=%d rate=%g tokens=%llu aux=%d,%g dead=%llu warmup=%g decay=%g sparsity=%g,%g width=%g seed=%llu",
                                 es_recipe_name(o->recipe), o->n_features, o->k, o->batch, o->learning_rate, (unsigned long long)o->tokens, o->aux_k, o->aux_weight,
                                 (unsigned long long)o->dead_tokens, o->warmup, o->decay, o->sparsity, o->sparsity_warmup, o->bandwidth, (unsigned long long)o->seed);
    for (int i = 0; i < t->n_prefix && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%zu", i ? "," : " prefixes=", t->prefix[i]);
    if (at < size)
        snprintf(out + at, size - at, " %s", about);
}

int es_train_save(const es_train *t, const char *path, const char *about, es_error *err)
{
    state s;
    char settings[700], counts[240];
    state_of(t, &s);
    settings_text(t, about, settings, sizeof settings);
    snprintf(counts, sizeof counts, "%llu %llu %zu %llu %zu %.17g %.9g %.9g %.17g %.17g %.17g %.17g", (unsigned long long)t->tokens, (unsigned long long)t->steps,
             t->rows.n, (unsigned long long)t->fresh_from, t->fresh, t->threshold, (double)t->scale, (double)t->cut, t->fvu, t->l0, t->coefficient, t->near);
    int rc = es_train_card_fetch(t, err);
    if (rc)
        return rc;
    json_t *metadata = json_pack("{s:s, s:s, s:s}", "format", "espalier-training-2", "settings", settings, "counts", counts);
    es_buf bytes = {0};
    rc = metadata ? es_safetensors_write(&bytes, s.spec, s.n, metadata, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory for a checkpoint");
    json_decref(metadata);
    if (!rc)
        rc = es_file_write(path, bytes.data, bytes.len, err);
    es_buf_free(&bytes);
    return rc;
}

static int take_counts(es_train *t, const es_safetensors *f, const char *path, const char *about, es_error *err)
{
    char settings[700];
    settings_text(t, about, settings, sizeof settings);
    const char *format = es_safetensors_metadata(f, "format"), *was = es_safetensors_metadata(f, "settings"), *counts = es_safetensors_metadata(f, "counts");
    unsigned long long tokens, steps, fresh_from;
    size_t rows, fresh, n = t->rows.n;
    double scale, cut, threshold, fvu, l0, coefficient, near;
    if (!format || strcmp(format, "espalier-training-2") != 0 || !was || !counts
        || sscanf(counts, "%llu %llu %zu %llu %zu %lf %lf %lf %lf %lf %lf %lf", &tokens, &steps, &rows, &fresh_from, &fresh, &threshold, &scale, &cut, &fvu, &l0,
                  &coefficient, &near) != 12)
        return es_fail(err, ES_ERR_FORMAT, "%s: is not a checkpoint of a training", path);
    if (strcmp(was, settings) != 0)
        return es_fail(err, ES_ERR_MISMATCH, "%s: belongs to a training with other settings (%.150s; now %.150s): use those, or remove it", path, was, settings);
    if (rows < 1 || rows > n || fresh > rows || !isfinite(scale) || !(scale > 0) || !isfinite(threshold) || !isfinite(coefficient) || !(coefficient > 0) || !isfinite(cut))
        return es_fail(err, ES_ERR_MISMATCH, "%s: belongs to a harvest of %zu tokens; this one has %zu", path, rows, n);
    t->tokens = tokens;
    t->steps = steps;
    t->fresh_from = rows < n ? tokens : fresh_from;
    t->fresh = rows < n ? n - rows : fresh;
    t->scale = (float)scale;
    t->cut = (float)cut;
    t->threshold = threshold;
    t->fvu = fvu;
    t->l0 = l0;
    t->coefficient = coefficient;
    t->near = near;
    return ES_OK;
}

int es_train_load(es_train *t, const char *path, const char *about, es_error *err)
{
    es_safetensors *f;
    state s;
    int rc = es_safetensors_open(&f, path, err);
    if (rc)
        return rc;
    rc = take_counts(t, f, path, about, err);
    state_of(t, &s);
    for (size_t i = 0; i < s.n && !rc; i++) {
        const es_tensor_spec *spec = &s.spec[i];
        float *into = (float *)(uintptr_t)spec->data; /* our own memory, named by the same table that saves it */
        rc = es_safetensors_f32(f, spec->name, spec->n_dims, spec->dim, into, err);
        for (size_t a = 0; !rc && a < spec->dim[0] * (spec->n_dims == 2 ? spec->dim[1] : 1); a++)
            if (!isfinite(into[a]))
                rc = es_fail(err, ES_ERR_FORMAT, "%s: \"%s\" holds a value that is no number", path, spec->name);
    }
    es_safetensors_free(f);
    return rc;
}

/* ---- the dictionary ---------------------------------------------------------------------------------------------------------------------- */

/* Rows of the decoder become unit vectors, what went into them goes into the encoder: the same function, for relu(n z) = n relu(z). */
static void fold_norms(es_train *t)
{
    const es_vector_ops *ops = es_vector();
    for (size_t j = 0; j < t->F; j++) {
        float *enc = t->p[ES_P_ENC].w + j * t->d, *dec = t->p[ES_P_DEC].w + j * t->d, norm = sqrtf(ops->dot(dec, dec, t->d));
        if (!(norm > 0))
            continue;
        for (size_t k = 0; k < t->d; k++) {
            dec[k] /= norm;
            enc[k] *= norm;
        }
        t->p[ES_P_B_ENC].w[j] *= norm;
    }
}

/* x' = s x was reconstructed as sum f' w + b'. In the rows' units: f = f'/s with the same rows, so encoder rows stay, and all biases and
 * thresholds are divided by s. */
int es_train_write(es_train *t, const char *dir, json_t *metadata, es_error *err)
{
    static const es_architecture as[ES_RECIPES] = {
        [ES_TRAIN_BATCHTOPK] = ES_SAE_JUMPRELU, [ES_TRAIN_MATRYOSHKA] = ES_SAE_JUMPRELU, [ES_TRAIN_JUMPRELU] = ES_SAE_JUMPRELU,
        [ES_TRAIN_TOPK] = ES_SAE_TOPK, [ES_TRAIN_GATED] = ES_SAE_GATED, [ES_TRAIN_STANDARD] = ES_SAE_STANDARD,
    };
    static const int scaled[] = {ES_P_B_ENC, ES_P_B_DEC, ES_P_THETA, ES_P_B_MAG};
    int rc = es_train_card_fetch(t, err);
    if (rc)
        return rc;
    if (t->o.recipe == ES_TRAIN_STANDARD)
        fold_norms(t);
    for (size_t i = 0; i < sizeof scaled / sizeof *scaled; i++)
        for (size_t k = 0; k < t->p[scaled[i]].n; k++)
            t->p[scaled[i]].w[k] /= t->scale;
    float *threshold = t->p[ES_P_THETA].w;
    if (es_train_by_batch(t->o.recipe)) {
        threshold = t->screen; /* of a step only */
        for (size_t j = 0; j < t->F; j++)
            threshold[j] = (float)(t->threshold / (double)t->scale);
    }
    es_trained a = {as[t->o.recipe], (int)t->d, (int)t->F, t->o.k, t->p[ES_P_ENC].w, t->p[ES_P_DEC].w, t->p[ES_P_B_ENC].w, t->p[ES_P_B_DEC].w,
                    threshold, t->p[ES_P_B_MAG].w, t->p[ES_P_R_MAG].w};
    return es_dictionary_save_trained(dir, &a, t->o.half, metadata, err);
}
