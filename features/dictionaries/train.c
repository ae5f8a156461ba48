/* Training a BatchTopK dictionary (Bussmann, Leask & Nanda 2024) on a harvest.
 *
 * A batch of B tokens keeps its k*B largest pre-activations, whoever they belong to. Only the encoder's forward is a dense product;
 * decoding and all gradients touch the kept entries alone: with e = x - xhat and entries (t, j, v),
 *     loss = 1/B sum |e_t|^2,   dv = -2/B e_t . w_dec_j,   dw_dec_j = -2/B sum_t v e_t,   dw_enc_j = sum_t dv (x_t - b_dec).
 * Decoder rows stay unit vectors: the part of the gradient along the row is taken out, and the row is renormalised after Adam's step.
 * Features that have been silent long ("dead") learn to reconstruct what is left over, e (Gao et al. 2024, auxiliary loss).
 * Inputs are scaled to a mean norm of sqrt(d) while training; the factor is folded back when the dictionary is written. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dictionary.h"
#include "safetensors.h"
#include "train.h"
#include "vector.h"

es_dictionary_training es_dictionary_training_default(void)
{
    return (es_dictionary_training){
        .n_features = 6144, .k = 32, .batch = 2048, .tokens = 5000000, .aux_k = 128, .aux_weight = 1.0 / 32, .dead_tokens = 200000,
        .warmup = 0.03, .decay = 0.25, .seed = 1, .checkpoint_seconds = 120, .half = true,
    };
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

size_t es_train_row(const training *t, uint64_t place)
{
    if (t->fresh && place >= t->fresh_from && place - t->fresh_from < t->fresh)
        return t->n_row - t->fresh + (size_t)permuted(place - t->fresh_from, t->fresh, mix(t->o.seed));
    return (size_t)permuted(place % t->n_row, t->n_row, mix(t->o.seed * 0x9e3779b97f4a7c15u + place / t->n_row + 1));
}

/* ---- memory ------------------------------------------------------------------------------------------------------------------------ */

static int entries_room(entries *l, size_t n, es_error *err)
{
    if (n <= l->cap)
        return ES_OK;
    free(l->token);
    free(l->feature);
    free(l->value);
    free(l->grad);
    free(l->by_feature);
    l->cap = n;
    l->token = es_calloc(n, sizeof *l->token);
    l->feature = es_calloc(n, sizeof *l->feature);
    l->value = es_calloc(n, sizeof *l->value);
    l->grad = es_calloc(n, sizeof *l->grad);
    l->by_feature = es_calloc(n, sizeof *l->by_feature);
    if (l->token && l->feature && l->value && l->grad && l->by_feature)
        return ES_OK;
    l->cap = 0;
    return es_fail(err, ES_ERR_MEMORY, "not enough memory for a batch's %zu activations", n);
}

static void entries_free(entries *l)
{
    free(l->token);
    free(l->feature);
    free(l->value);
    free(l->grad);
    free(l->by_feature);
    free(l->token_start);
    free(l->feature_start);
}

static void close_training(training *t)
{
    es_train_card_close(t);
    es_harvest_reader_close(&t->h);
    es_pool_free(t->pool);
    float *all[] = {t->enc,     t->dec,     t->b_enc,   t->b_dec,   t->enc_m, t->enc_v,    t->dec_m,      t->dec_v,    t->b_enc_m,
                    t->b_enc_v, t->b_dec_m, t->b_dec_v, t->age,     t->x,     t->e,        t->pre,        t->select,   t->aux_e,
                    t->dead_enc, t->part_b_dec, t->part_row};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    for (int i = 0; i < MAX_THREADS; i++)
        free(t->list[i].e);
    entries_free(&t->main);
    entries_free(&t->aux);
    free(t->dead);
    free(t);
}

static int take_memory(training *t, es_error *err)
{
    size_t n = t->F * t->d, threads = (size_t)es_pool_threads(t->pool);
    struct { float **p; size_t n; } all[] = {
        {&t->enc, n}, {&t->dec, n}, {&t->enc_m, n}, {&t->enc_v, n}, {&t->dec_m, n}, {&t->dec_v, n}, {&t->dead_enc, n}, {&t->b_enc, t->F},
        {&t->b_enc_m, t->F}, {&t->b_enc_v, t->F}, {&t->age, t->F}, {&t->b_dec, t->d}, {&t->b_dec_m, t->d}, {&t->b_dec_v, t->d},
        {&t->x, t->B * t->d}, {&t->e, t->B * t->d}, {&t->pre, TILE * t->F}, {&t->aux_e, t->A * t->d}, {&t->part_b_dec, threads * t->d},
        {&t->part_row, threads * 2 * t->d},
    };
    bool ok = true;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        ok = (*all[i].p = es_calloc(all[i].n, sizeof(float))) && ok;
    t->dead = es_calloc(t->F, sizeof *t->dead);
    t->main.token_start = es_calloc(t->B + 1, sizeof(size_t));
    t->aux.token_start = es_calloc(t->A + 1, sizeof(size_t));
    t->main.feature_start = es_calloc(t->F + 1, sizeof(size_t));
    t->aux.feature_start = es_calloc(t->F + 1, sizeof(size_t));
    if (!ok || !t->dead || !t->main.token_start || !t->aux.token_start || !t->main.feature_start || !t->aux.feature_start)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to train %zu features of width %zu (%zu MB)", t->F, t->d, n * 28 >> 20);
    return ES_OK;
}

/* ---- start ------------------------------------------------------------------------------------------------------------------------- */

/* b_dec: geometric median of a sample (Weiszfeld); decoder rows: random unit vectors (rows that start as sampled inputs share the
 * data's few large directions, overshoot and took longer); encoder: the same rows. */
static int start_parameters(training *t, es_error *err)
{
    size_t d = t->d, n = t->n_row < SAMPLE ? t->n_row : SAMPLE, used = 0;
    float *sample = es_calloc(n * d, sizeof *sample);
    double *sum = es_calloc(d, sizeof *sum), norms = 0;
    if (!sample || !sum) {
        free(sample);
        free(sum);
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to train");
    }
    const es_vector_ops *ops = es_vector();
    for (size_t i = 0; i < n; i++) {
        float *row = sample + used * d;
        es_harvest_reader_rows(&t->h, es_train_row(t, i), 1, row);
        float norm = sqrtf(ops->dot(row, row, d));
        if (norm > t->h.norm_limit)
            continue;
        norms += (double)norm;
        used++;
    }
    n = used;
    int rc = ES_OK;
    if (!(norms > 0) || !isfinite(norms))
        rc = es_fail(err, ES_ERR_FORMAT, "the harvest's activations are all zero or not numbers");
    t->scale = (float)(sqrt((double)d) * (double)n / norms);
    for (size_t i = 0; i < n * d; i++)
        sample[i] *= t->scale;
    for (int round = 0; round < 10 && !rc; round++) {
        double weights = 0;
        memset(sum, 0, d * sizeof *sum);
        for (size_t i = 0; i < n; i++) {
            double distance = 0;
            for (size_t k = 0; k < d; k++) {
                double v = (double)sample[i * d + k] - (double)t->b_dec[k];
                distance += v * v;
            }
            double w = round ? 1 / fmax(sqrt(distance), 1e-6) : 1; /* the first round gives the mean */
            weights += w;
            for (size_t k = 0; k < d; k++)
                sum[k] += w * (double)sample[i * d + k];
        }
        for (size_t k = 0; k < d; k++)
            t->b_dec[k] = (float)(sum[k] / weights);
    }
    es_rng r;
    es_rng_seed(&r, t->o.seed);
    for (size_t j = 0; j < t->F && !rc; j++) {
        float *w = t->dec + j * d;
        double norm = 0;
        for (size_t k = 0; k < d; k++) {
            w[k] = es_rng_normal(&r);
            norm += (double)w[k] * (double)w[k];
        }
        for (size_t k = 0; k < d; k++)
            w[k] /= (float)sqrt(norm);
        memcpy(t->enc + j * d, w, d * sizeof *w);
    }
    free(sample);
    free(sum);
    return rc;
}

/* ---- one step ---------------------------------------------------------------------------------------------------------------------- */

static void load_part(void *user, int part, int parts)
{
    training *t = user;
    const es_vector_ops *ops = es_vector();
    for (size_t i = (size_t)part; i < t->B; i += (size_t)parts) {
        float *x = t->x + i * t->d;
        es_harvest_reader_rows(&t->h, es_train_row(t, t->tokens + i), 1, x);
        bool sink = sqrtf(ops->dot(x, x, t->d)) > t->h.norm_limit; /* stands where b_dec is, and so teaches nothing */
        for (size_t k = 0; k < t->d; k++)
            x[k] = sink ? 0 : x[k] * t->scale - t->b_dec[k];
    }
}

static void keep(kept_list *l, kept new)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 65536;
        kept *p = realloc(l->e, cap * sizeof *p);
        if (!p) {
            l->failed = true;
            return;
        }
        l->e = p;
        l->cap = cap;
    }
    l->e[l->n++] = new;
}

static void scan_part(void *user, int part, int parts)
{
    training *t = user;
    kept_list *l = &t->list[part];
    const float *bias = t->b_enc;
    float cut = t->cut;
    int from = t->tile_n * part / parts, to = t->tile_n * (part + 1) / parts;
    for (int i = from; i < to; i++) {
        const float *pre = t->pre + (size_t)i * t->F;
        size_t j = 0;
        for (; j + 16 <= t->F; j += 16) { /* most groups hold nothing */
            int any = 0;
            for (size_t k = 0; k < 16; k++)
                any |= pre[j + k] + bias[j + k] > cut;
            if (any)
                for (size_t k = j; k < j + 16; k++)
                    if (pre[k] + bias[k] > cut)
                        keep(l, (kept){t->tile_first + i, (int32_t)k, pre[k] + bias[k]});
        }
        for (; j < t->F; j++)
            if (pre[j] + bias[j] > cut)
                keep(l, (kept){t->tile_first + i, (int32_t)j, pre[j] + bias[j]});
    }
}

/* The value v such that `rank` of the n values are larger (0: the largest). Reorders them. */
static float nth_largest(float *a, size_t n, size_t rank)
{
    ptrdiff_t lo = 0, hi = (ptrdiff_t)n - 1, k = (ptrdiff_t)rank;
    while (lo < hi) {
        float pivot = a[lo + (hi - lo) / 2];
        ptrdiff_t i = lo, j = hi;
        while (i <= j) {
            while (a[i] > pivot)
                i++;
            while (a[j] < pivot)
                j--;
            if (i <= j) {
                float swap = a[i];
                a[i++] = a[j];
                a[j--] = swap;
            }
        }
        if (k <= j)
            hi = j;
        else if (k >= i)
            lo = i;
        else
            break;
    }
    return a[k];
}

static size_t candidates(const training *t)
{
    size_t n = 0;
    for (int i = 0; i < es_pool_threads(t->pool); i++)
        n += t->list[i].n;
    return n;
}

static int select_room(training *t, size_t n, es_error *err)
{
    if (n <= t->select_cap)
        return ES_OK;
    free(t->select);
    t->select_cap = n + n / 4;
    t->select = es_calloc(t->select_cap, sizeof *t->select);
    if (t->select)
        return ES_OK;
    t->select_cap = 0;
    return es_fail(err, ES_ERR_MEMORY, "not enough memory for %zu candidates", n);
}

/* All pre-activations above t->cut, into the parts' lists. */
static int scan(training *t, es_error *err)
{
    const es_kernels *k = es_kernels_cpu();
    for (int i = 0; i < es_pool_threads(t->pool); i++)
        t->list[i].n = 0;
    for (size_t first = 0; first < t->B; first += TILE) {
        t->tile_first = (int)first;
        t->tile_n = (int)(t->B - first < TILE ? t->B - first : TILE);
        k->gemm(t->pool, false, true, t->tile_n, (int)t->F, (int)t->d, 1, t->x + first * t->d, (int)t->d, t->enc, (int)t->d, 0, t->pre, (int)t->F);
        if (first == 0 && t->cut == 0) { /* no idea of the cut yet: what keeps three times as many of the first tile */
            size_t n = 0, rows = (size_t)(t->tile_n < 64 ? t->tile_n : 64), want = rows * (size_t)t->o.k * 3;
            int rc = select_room(t, rows * t->F, err);
            if (rc)
                return rc;
            for (size_t i = 0; i < rows; i++)
                for (size_t j = 0; j < t->F; j++)
                    t->select[n++] = t->pre[i * t->F + j] + t->b_enc[j];
            t->cut = want < n ? fmaxf(0, nth_largest(t->select, n, want)) : 0;
        }
        es_pool_run(t->pool, scan_part, t);
        for (int i = 0; i < es_pool_threads(t->pool); i++)
            if (t->list[i].failed)
                return es_fail(err, ES_ERR_MEMORY, "not enough memory for a batch's activations");
    }
    return ES_OK;
}

/* Orders l's entries by token (the lists are, part by part of each tile) and indexes them by feature. */
static void index_entries(entries *l, size_t rows, size_t F)
{
    memset(l->feature_start, 0, (F + 1) * sizeof(size_t));
    memset(l->token_start, 0, (rows + 1) * sizeof(size_t));
    for (size_t i = 0; i < l->n; i++) {
        l->feature_start[l->feature[i] + 1]++;
        l->token_start[l->token[i] + 1]++;
    }
    for (size_t j = 0; j < F; j++)
        l->feature_start[j + 1] += l->feature_start[j];
    for (size_t i = 0; i < rows; i++)
        l->token_start[i + 1] += l->token_start[i];
    for (size_t i = 0; i < l->n; i++) /* feature_start[j] walks to the end of j ... */
        l->by_feature[l->feature_start[l->feature[i]]++] = i;
    for (size_t j = F; j > 0; j--)    /* ... and is moved back */
        l->feature_start[j] = l->feature_start[j - 1];
    l->feature_start[0] = 0;
}

/* What the newest batch counts in the figures shown: a mean over some twenty steps. */
double es_train_share(const training *t)
{
    return fmax(0.05, 1 / ((double)t->steps + 1));
}

/* As SAELens and dictionary_learning: a running mean of the smallest kept value. */
void es_train_threshold(training *t, double smallest)
{
    t->threshold = t->steps ? t->threshold + fmax(0.01, 4 / ((double)t->steps + 4)) * (smallest - t->threshold) : smallest;
}

int es_train_out_of_bounds(const training *t, es_error *err)
{
    return es_fail(err, ES_ERR_FORMAT, "training went out of bounds at step %llu (the error is no number): try a smaller learning rate",
                   (unsigned long long)t->steps);
}

static int batch_topk(training *t, es_error *err)
{
    size_t want = (size_t)t->o.k * t->B;
    int rc = scan(t, err);
    while (!rc && candidates(t) < want && t->cut > 1e-30f) { /* rare: the batch is unlike the one before */
        t->cut = t->cut > 1e-6f ? t->cut * 0.5f : 1e-30f;
        rc = scan(t, err);
    }
    size_t n = candidates(t), at = 0;
    if (!rc)
        rc = select_room(t, n, err);
    if (!rc)
        rc = entries_room(&t->main, n < want ? n : want, err);
    if (rc)
        return rc;
    for (int i = 0; i < es_pool_threads(t->pool); i++)
        for (size_t a = 0; a < t->list[i].n; a++)
            t->select[at++] = t->list[i].e[a].value;
    float least = n > want ? nth_largest(t->select, n, want - 1) : t->cut, smallest = INFINITY;
    size_t over = 0;
    t->main.n = 0;
    /* by token: the parts of one tile hold its rows in order */
    size_t place[MAX_THREADS] = {0};
    int parts = es_pool_threads(t->pool);
    for (size_t first = 0; first < t->B; first += TILE)
        for (int i = 0; i < parts; i++)
            for (; place[i] < t->list[i].n && t->list[i].e[place[i]].token < (int32_t)(first + TILE); place[i]++) {
                const kept *e = &t->list[i].e[place[i]];
                over += (double)e->value > t->threshold;
                if (e->value < least || t->main.n >= want)
                    continue;
                t->main.token[t->main.n] = e->token;
                t->main.feature[t->main.n] = e->feature;
                t->main.value[t->main.n++] = e->value;
                smallest = fminf(smallest, e->value);
            }
    index_entries(&t->main, t->B, t->F);
    if (t->main.n) {
        es_train_threshold(t, (double)smallest);
        t->cut = 0.8f * smallest;
    }
    double l0 = (double)over / (double)t->B;
    t->l0 += (l0 - t->l0) * es_train_share(t);
    return ES_OK;
}

/* e = x - xhat and dLoss/dvalue, a token at a time. */
static void decode_part(void *user, int part, int parts)
{
    training *t = user;
    const es_vector_ops *ops = es_vector();
    double total = 0;
    size_t from = t->B * (size_t)part / (size_t)parts, to = t->B * ((size_t)part + 1) / (size_t)parts, d = t->d;
    for (size_t i = from; i < to; i++) {
        float *e = t->e + i * d;
        memcpy(e, t->x + i * d, d * sizeof *e);
        for (size_t a = t->main.token_start[i]; a < t->main.token_start[i + 1]; a++)
            ops->axpy(e, -t->main.value[a], t->dec + (size_t)t->main.feature[a] * d, d);
        for (size_t a = t->main.token_start[i]; a < t->main.token_start[i + 1]; a++)
            t->main.grad[a] = -2 / (float)t->B * ops->dot(e, t->dec + (size_t)t->main.feature[a] * d, d);
        total += (double)ops->dot(e, e, d);
    }
    t->part_error[part] = total;
}

/* Dead features reconstruct the error of the batch's first A tokens with the aux_k of them that fire most on each. */
static int auxiliary(training *t, es_error *err)
{
    size_t d = t->d, want = (size_t)t->o.aux_k < (t->n_dead + 1) / 2 ? (size_t)t->o.aux_k : (t->n_dead + 1) / 2;
    t->aux.n = 0;
    if (t->n_dead == 0 || want == 0)
        return ES_OK;
    int rc = entries_room(&t->aux, t->A * (size_t)t->o.aux_k, err);
    if (!rc)
        rc = select_room(t, t->F, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < t->n_dead; i++)
        memcpy(t->dead_enc + i * d, t->enc + (size_t)t->dead[i] * d, d * sizeof(float));
    es_kernels_cpu()->gemm(t->pool, false, true, (int)t->A, (int)t->n_dead, (int)d, 1, t->x, (int)d, t->dead_enc, (int)d, 0, t->pre, (int)t->n_dead);
    const es_vector_ops *ops = es_vector();
    float weight = (float)(t->o.aux_weight * 2 / (double)t->A);
    for (size_t i = 0; i < t->A; i++) {
        float *pre = t->pre + i * t->n_dead, *e = t->aux_e + i * d;
        for (size_t a = 0; a < t->n_dead; a++)
            t->select[a] = pre[a] += t->b_enc[t->dead[a]];
        float least = fmaxf(nth_largest(t->select, t->n_dead, want - 1), 1e-12f);
        size_t first = t->aux.n;
        for (size_t a = 0; a < t->n_dead && t->aux.n - first < want; a++)
            if (pre[a] >= least) {
                t->aux.token[t->aux.n] = (int32_t)i;
                t->aux.feature[t->aux.n] = t->dead[a];
                t->aux.value[t->aux.n++] = pre[a];
            }
        memcpy(e, t->e + i * d, d * sizeof *e);
        for (size_t a = first; a < t->aux.n; a++)
            ops->axpy(e, -t->aux.value[a], t->dec + (size_t)t->aux.feature[a] * d, d);
        for (size_t a = first; a < t->aux.n; a++)
            t->aux.grad[a] = -weight * ops->dot(e, t->dec + (size_t)t->aux.feature[a] * d, d);
    }
    index_entries(&t->aux, t->A, t->F);
    return ES_OK;
}

static void add_gradient(const training *t, const entries *l, const float *error, size_t j, float factor, float *g_enc, float *g_dec, float *g_bias)
{
    const es_vector_ops *ops = es_vector();
    size_t d = t->d;
    for (size_t p = l->feature_start[j]; p < l->feature_start[j + 1]; p++) {
        size_t a = l->by_feature[p], i = (size_t)l->token[a];
        ops->axpy(g_dec, factor * l->value[a], error + i * d, d);
        ops->axpy(g_enc, l->grad[a], t->x + i * d, d);
        *g_bias += l->grad[a];
    }
}

static void update_part(void *user, int part, int parts)
{
    training *t = user;
    const es_vector_ops *ops = es_vector();
    size_t d = t->d, from = t->F * (size_t)part / (size_t)parts, to = t->F * ((size_t)part + 1) / (size_t)parts;
    float *g_enc = t->part_row + (size_t)part * 2 * d, *g_dec = g_enc + d, *g_b_dec = t->part_b_dec + (size_t)part * d;
    memset(g_b_dec, 0, d * sizeof *g_b_dec);
    for (size_t j = from; j < to; j++) {
        float *enc = t->enc + j * d, *dec = t->dec + j * d, g_bias = 0;
        memset(g_enc, 0, 2 * d * sizeof *g_enc);
        add_gradient(t, &t->main, t->e, j, -2 / (float)t->B, g_enc, g_dec, &g_bias);
        if (g_bias != 0) /* b_dec is taken off the encoder's input */
            ops->axpy(g_b_dec, -g_bias, enc, d);
        if (t->aux.n)
            add_gradient(t, &t->aux, t->aux_e, j, (float)(-t->o.aux_weight * 2 / (double)t->A), g_enc, g_dec, &g_bias);
        t->age[j] = t->main.feature_start[j + 1] > t->main.feature_start[j] ? 0 : t->age[j] + (float)t->B;
        ops->axpy(g_dec, -ops->dot(g_dec, dec, d), dec, d);
        ops->adam(dec, g_dec, t->dec_m + j * d, t->dec_v + j * d, d, 0.9f, 0.999f, t->rate, t->eps);
        ops->adam(enc, g_enc, t->enc_m + j * d, t->enc_v + j * d, d, 0.9f, 0.999f, t->rate, t->eps);
        ops->adam(&t->b_enc[j], &g_bias, &t->b_enc_m[j], &t->b_enc_v[j], 1, 0.9f, 0.999f, t->rate, t->eps);
        float norm = sqrtf(ops->dot(dec, dec, d));
        for (size_t k = 0; norm > 0 && k < d; k++)
            dec[k] /= norm;
    }
    size_t first = t->B * (size_t)part / (size_t)parts, last = t->B * ((size_t)part + 1) / (size_t)parts;
    for (size_t i = first; i < last; i++)
        ops->axpy(g_b_dec, -2 / (float)t->B, t->e + i * d, d);
}

static double base_rate(const training *t)
{
    return t->o.learning_rate > 0 ? t->o.learning_rate : 8e-4 * sqrt(6144.0 / (double)t->F);
}

double es_train_rate(const training *t)
{
    double base = base_rate(t);
    double at = (double)t->tokens / (double)t->o.tokens, rate = base;
    if (t->o.warmup > 0 && at < t->o.warmup)
        rate = base * (at + (double)t->B / (double)t->o.tokens) / (t->o.warmup + (double)t->B / (double)t->o.tokens);
    if (t->o.decay > 0 && at > 1 - t->o.decay)
        rate = base * (1 - at) / t->o.decay;
    return fmax(rate, base * 0.01);
}

static int step(training *t, es_error *err)
{
    es_pool_run(t->pool, load_part, t);
    int rc = batch_topk(t, err);
    if (rc)
        return rc;
    es_pool_run(t->pool, decode_part, t);
    t->n_dead = 0;
    if (t->o.aux_k > 0)
        for (size_t j = 0; j < t->F; j++)
            if (t->age[j] >= (float)t->o.dead_tokens)
                t->dead[t->n_dead++] = (int32_t)j;
    rc = auxiliary(t, err);
    if (rc)
        return rc;

    double error = 0, variance = 0;
    for (int i = 0; i < es_pool_threads(t->pool); i++)
        error += t->part_error[i];
    float *mean = t->part_row; /* not yet in use */
    const es_vector_ops *ops = es_vector();
    memset(mean, 0, t->d * sizeof *mean);
    for (size_t i = 0; i < t->B; i++) {
        variance += (double)ops->dot(t->x + i * t->d, t->x + i * t->d, t->d);
        ops->axpy(mean, 1 / (float)t->B, t->x + i * t->d, t->d);
    }
    variance -= (double)t->B * (double)ops->dot(mean, mean, t->d);
    if (!isfinite(error))
        return es_train_out_of_bounds(t, err);
    double fvu = variance > 0 ? error / variance : 0;
    t->fvu += (fvu - t->fvu) * es_train_share(t);

    double n = (double)t->steps + 1, c1 = 1 - pow(0.9, n), c2 = sqrt(1 - pow(0.999, n));
    t->rate = (float)(es_train_rate(t) * c2 / c1);
    t->eps = (float)(1e-8 * c2);
    es_pool_run(t->pool, update_part, t);
    for (int i = 1; i < es_pool_threads(t->pool); i++)
        ops->axpy(t->part_b_dec, 1, t->part_b_dec + (size_t)i * t->d, t->d);
    ops->adam(t->b_dec, t->part_b_dec, t->b_dec_m, t->b_dec_v, t->d, 0.9f, 0.999f, t->rate, t->eps);
    t->tokens += t->B;
    t->steps++;
    return ES_OK;
}

/* ---- checkpoint ----------------------------------------------------------------------------------------------------------------------- */

enum { N_STATE = 13 };

static void state_specs(const training *t, es_tensor_spec s[N_STATE])
{
    size_t F = t->F, d = t->d;
    es_tensor_spec all[N_STATE] = {
        {"enc", ES_TENSOR_F32, 2, {F, d}, t->enc},       {"dec", ES_TENSOR_F32, 2, {F, d}, t->dec},       {"enc_m", ES_TENSOR_F32, 2, {F, d}, t->enc_m},
        {"enc_v", ES_TENSOR_F32, 2, {F, d}, t->enc_v},   {"dec_m", ES_TENSOR_F32, 2, {F, d}, t->dec_m},   {"dec_v", ES_TENSOR_F32, 2, {F, d}, t->dec_v},
        {"b_enc", ES_TENSOR_F32, 1, {F}, t->b_enc},      {"b_enc_m", ES_TENSOR_F32, 1, {F}, t->b_enc_m},  {"b_enc_v", ES_TENSOR_F32, 1, {F}, t->b_enc_v},
        {"b_dec", ES_TENSOR_F32, 1, {d}, t->b_dec},      {"b_dec_m", ES_TENSOR_F32, 1, {d}, t->b_dec_m},  {"b_dec_v", ES_TENSOR_F32, 1, {d}, t->b_dec_v},
        {"age", ES_TENSOR_F32, 1, {F}, t->age},
    };
    memcpy(s, all, sizeof all);
}

/* What must be the same for a run to go on. */
static void settings_text(const training *t, char *out, size_t size)
{
    const es_dictionary_training *o = &t->o;
    snprintf(out, size, "F=%d k=%d batch=%d rate=%g tokens=%llu aux=%d,%g dead=%llu warmup=%g decay=%g seed=%llu layer=%d model=%s", o->n_features, o->k,
             o->batch, o->learning_rate, (unsigned long long)o->tokens, o->aux_k, o->aux_weight, (unsigned long long)o->dead_tokens, o->warmup, o->decay,
             (unsigned long long)o->seed, t->h.layer, t->h.model_hash);
}

static int save_checkpoint(training *t, const char *path, es_error *err)
{
    int fetched = t->card ? es_train_card_fetch(t, err) : ES_OK;
    if (fetched)
        return fetched;
    es_tensor_spec s[N_STATE];
    char settings[400], counts[200];
    state_specs(t, s);
    settings_text(t, settings, sizeof settings);
    snprintf(counts, sizeof counts, "%llu %llu %zu %llu %zu %.17g %.9g %.9g %.17g %.17g", (unsigned long long)t->tokens, (unsigned long long)t->steps,
             t->n_row, (unsigned long long)t->fresh_from, t->fresh, t->threshold, (double)t->scale, (double)t->cut, t->fvu, t->l0);
    json_t *metadata = json_pack("{s:s, s:s, s:s}", "format", "espalier-training-1", "settings", settings, "counts", counts);
    es_buf bytes = {0};
    int rc = metadata ? es_safetensors_write(&bytes, s, N_STATE, metadata, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory for a checkpoint");
    json_decref(metadata);
    if (!rc)
        rc = es_file_write(path, bytes.data, bytes.len, err);
    es_buf_free(&bytes);
    return rc;
}

static int load_checkpoint(training *t, const char *path, es_error *err)
{
    es_safetensors *f;
    int rc = es_safetensors_open(&f, path, err);
    if (rc)
        return rc;
    char settings[400];
    settings_text(t, settings, sizeof settings);
    const char *format = es_safetensors_metadata(f, "format"), *was = es_safetensors_metadata(f, "settings"), *counts = es_safetensors_metadata(f, "counts");
    unsigned long long tokens, steps, fresh_from;
    size_t rows, fresh;
    double scale, cut;
    if (!format || strcmp(format, "espalier-training-1") != 0 || !was || !counts
        || sscanf(counts, "%llu %llu %zu %llu %zu %lf %lf %lf %lf %lf", &tokens, &steps, &rows, &fresh_from, &fresh, &t->threshold, &scale, &cut, &t->fvu,
                  &t->l0) != 10)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: is not a checkpoint of a training", path);
    else if (strcmp(was, settings) != 0)
        rc = es_fail(err, ES_ERR_MISMATCH, "%s: belongs to a training with other settings (%s; now %s): use those, or remove it", path, was, settings);
    else if (rows < 1 || rows > t->h.n_row || fresh > rows || !isfinite(scale) || !(scale > 0) || !isfinite(t->threshold))
        rc = es_fail(err, ES_ERR_MISMATCH, "%s: belongs to a harvest of %zu tokens; this one has %zu", path, rows, t->h.n_row);
    es_tensor_spec s[N_STATE];
    state_specs(t, s);
    for (int i = 0; i < N_STATE && !rc; i++) {
        float *into = (float *)(uintptr_t)s[i].data; /* our own memory, named by the same table that saves it */
        rc = es_safetensors_f32(f, s[i].name, s[i].n_dims, s[i].dim, into, err);
        for (size_t a = 0; !rc && a < s[i].dim[0] * (s[i].n_dims == 2 ? s[i].dim[1] : 1); a++)
            if (!isfinite(into[a]))
                rc = es_fail(err, ES_ERR_FORMAT, "%s: \"%s\" holds a value that is no number", path, s[i].name);
    }
    es_safetensors_free(f);
    if (!rc) {
        t->tokens = tokens;
        t->steps = steps;
        t->n_row = t->h.n_row;
        t->fresh_from = rows < t->n_row ? tokens : fresh_from;
        t->fresh = rows < t->n_row ? t->n_row - rows : fresh;
        t->scale = (float)scale;
        t->cut = (float)cut;
    }
    return rc;
}

/* ---- the run --------------------------------------------------------------------------------------------------------------------------- */

/* x' = s x was reconstructed as sum v' w + b'. In the model's units: v = v'/s with the same unit rows, so encoder rows stay, and both
 * biases and the threshold are divided by s. */
static int finish(training *t, const char *dir, es_error *err)
{
    for (size_t j = 0; j < t->F; j++)
        t->b_enc[j] /= t->scale;
    for (size_t k = 0; k < t->d; k++)
        t->b_dec[k] /= t->scale;
    char hook[64];
    snprintf(hook, sizeof hook, "blocks.%d.hook_resid_post", t->h.layer);
    json_t *files = json_array(), *file;
    size_t i;
    json_array_foreach(json_object_get(t->h.info, "files"), i, file)
        json_array_append(files, json_object_get(file, "name"));
    json_t *metadata = json_pack("{s:s, s:s, s:i, s:n, s:i, s:b, s:s, s:I, s:I, s:i, s:f, s:I, s:I, s:o}", "model_name", t->h.model_name, "hook_name", hook,
                                 "hook_layer", t->h.layer, "hook_head_index", "context_size", t->h.context, "prepend_bos", 0,
                                 "espalier_model_sha256", t->h.model_hash, "tokens", (json_int_t)t->tokens, "distinct_tokens", (json_int_t)t->n_row,
                                 "batchtopk_k", t->o.k, "learning_rate", base_rate(t), "batch", (json_int_t)t->o.batch, "seed",
                                 (json_int_t)t->o.seed, "harvested_from", files);
    if (!metadata)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to write the dictionary");
    int rc = es_dictionary_save(dir, (int)t->d, (int)t->F, t->enc, t->dec, t->b_enc, t->b_dec, (float)(t->threshold / (double)t->scale), t->o.half,
                                metadata, err);
    json_decref(metadata);
    return rc;
}

static int run(training *t, const char *checkpoint, const es_progress *progress, es_error *err)
{
    double last = es_seconds(), shown = 0, began = last;
    uint64_t before = t->tokens;
    while (t->tokens < t->o.tokens) {
        int rc = ES_OK;
        double now = es_seconds();
        if (es_progress_cancelled(progress)) {
            rc = save_checkpoint(t, checkpoint, err);
            return rc ? rc
                      : es_fail(err, ES_ERR_CANCELLED, "training was cancelled after %llu tokens; the same command goes on with it",
                                (unsigned long long)t->tokens);
        }
        if (t->o.checkpoint_seconds > 0 && now - last > t->o.checkpoint_seconds) {
            rc = save_checkpoint(t, checkpoint, err);
            last = now;
        }
        if (!rc)
            rc = t->card ? es_train_card_step(t, err) : step(t, err);
        if (rc)
            return rc;
        if (now - shown > 0.2) {
            char what[120];
            size_t dead = 0;
            for (size_t j = 0; j < t->F; j++)
                dead += t->age[j] >= (float)t->o.dead_tokens;
            snprintf(what, sizeof what, "train, fvu=%.4f l0=%.1f dead=%.1f%%, %.0f tokens/s", t->fvu, t->l0, 100 * (double)dead / (double)t->F,
                     (double)(t->tokens - before) / (es_seconds() - began));
            es_progress_report(progress, what, (double)t->tokens, (double)t->o.tokens, "tokens");
            shown = now;
        }
    }
    return ES_OK;
}

int es_dictionary_train(const char *harvest_dir, int layer, const char *dir, const es_dictionary_training *o, const es_progress *progress,
                        es_error *err)
{
    char folder[1100], checkpoint[1200], weights[1200];
    if (o->n_features < 1 || o->n_features > 1 << 20 || o->k < 1 || o->k > o->n_features || o->batch < 1 || o->batch > 1 << 16 || o->tokens < 1
        || o->aux_k < 0 || o->aux_k > o->n_features || strlen(dir) > 1000)
        return es_fail(err, ES_ERR_USAGE, "training: features, k <= features, batch and tokens must be positive (batch at most 65536)");
    snprintf(folder, sizeof folder, "%s/checkpoint", dir);
    snprintf(checkpoint, sizeof checkpoint, "%s/state.safetensors", folder);
    snprintf(weights, sizeof weights, "%s/sae_weights.safetensors", dir);
    bool resumed = access(checkpoint, F_OK) == 0;
    if (!resumed && access(weights, F_OK) == 0)
        return es_fail(err, ES_ERR_USAGE, "%s: there is a finished dictionary already: give another folder", dir);
    training *t = es_calloc(1, sizeof *t);
    if (!t)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to train");
    t->o = *o;
    int rc = es_harvest_reader_open(&t->h, harvest_dir, layer, err);
    if (!rc) {
        t->d = (size_t)t->h.d;
        t->F = (size_t)o->n_features;
        t->B = (size_t)o->batch;
        t->n_row = t->h.n_row;
        t->A = t->B < 256 ? t->B : 256;
        rc = es_pool_open(&t->pool, o->threads < MAX_THREADS ? o->threads : MAX_THREADS, err);
    }
    if (!rc)
        rc = take_memory(t, err);
    if (!rc)
        rc = es_dir_make(folder, err);
    if (!rc)
        rc = resumed ? load_checkpoint(t, checkpoint, err) : start_parameters(t, err);
    if (!rc && o->card)
        rc = es_train_card_open(t, err);
    if (!rc)
        rc = run(t, checkpoint, progress, err);
    if (!rc && t->card)
        rc = es_train_card_fetch(t, err);
    if (!rc)
        rc = finish(t, dir, err);
    if (!rc) {
        unlink(checkpoint);
        rmdir(folder);
    }
    close_training(t);
    return rc;
}
