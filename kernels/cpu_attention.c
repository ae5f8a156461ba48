/* Attention of the CPU table. A strip of query rows meets its keys a tile at a time: scores [rows, keys] in the part's scratch, two
 * products by BLAS with exponentials between, and for each row a running maximum and sum, so that no more than a tile of scores is
 * ever in memory (FlashAttention, Dao et al. 2022, arXiv 2205.14135, algorithm 1). The heads that share a key head are rows of one
 * strip, so keys and values are read once for all of them. A single token (decoding) shares out the cache by position instead. Keys
 * and values in half precision are widened a tile at a time. */
#include <cblas.h>
#include <stdatomic.h>
#include <string.h>

#include "internal.h"

enum {
    STRIP_FLOATS = 128 << 10, /* scores that stay in the second-level cache */
    STRIP_ROWS = 128, /* and with it 1,024 keys in a tile */
    STRIP_ROWS_HALF = 192, /* 15 % faster where keys have to be widened, unless that leaves too few strips to share out */
    LEAST_KEYS = 64,
    ALONE_KEYS = 1 << 10, /* keys times heads below which one thread is quicker than two */
};

typedef struct attention_job {
    es_pool *pool;
    const es_attn *a;
    const float *q, *k, *v, *dout;
    const uint16_t *k_half, *v_half; /* instead of k and v */
    float *out, *dq, *dk, *dv;
    int block, blocks; /* query tokens in a strip, strips of a key head */
    int keys;          /* in a tile */
    _Atomic int next;  /* strips are taken, the longest first */
} attention_job;

static void multiply(bool ta, bool tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb, float beta,
                    float *c, int ldc)
{
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, m, n, k, alpha, a, lda, b, ldb, beta, c,
                ldc);
}

/* The rows (token, head of the group) of key head g, from x[T, n_head * D] to packed[tokens * group, D] and back. */
static void pack(const es_attn *a, int g, int t0, int t1, const float *x, float *packed)
{
    const size_t width = (size_t)(a->n_head / a->n_kv) * (size_t)a->head_dim, row = width * (size_t)a->n_kv;
    for (int t = t0; t < t1; t++, packed += width)
        memcpy(packed, x + (size_t)t * row + (size_t)g * width, width * sizeof *x);
}

static void unpack(const es_attn *a, int g, int t0, int t1, const float *packed, float *x)
{
    const size_t width = (size_t)(a->n_head / a->n_kv) * (size_t)a->head_dim, row = width * (size_t)a->n_kv;
    for (int t = t0; t < t1; t++, packed += width)
        memcpy(x + (size_t)t * row + (size_t)g * width, packed, width * sizeof *x);
}

/* ---- forward --------------------------------------------------------------------------------------------------------------- */

/* Query tokens of a strip and keys of a tile, so that the scores stay in cache and all of it in the scratch; false: nothing does. */
static bool cut(attention_job *j)
{
    const es_attn *a = j->a;
    const size_t group = (size_t)(a->n_head / a->n_kv), D = (size_t)a->head_dim;
    const int most = j->k_half && a->n_kv > 1 ? STRIP_ROWS_HALF : STRIP_ROWS;
    int tokens = most / (int)group < 1 ? 1 : most / (int)group, keys = STRIP_FLOATS / (tokens * (int)group);
    keys = keys < 1 ? 1 : keys;
    for (;;) {
        const size_t rows = (size_t)tokens * group, floats = rows * (2 * D + 2 + (size_t)keys) + (j->k_half ? (size_t)keys * D : 0);
        if (floats * sizeof(float) <= ES_SCRATCH)
            break;
        if (keys > LEAST_KEYS)
            keys /= 2;
        else if (tokens > 1)
            tokens /= 2;
        else
            return false;
    }
    j->block = tokens;
    j->blocks = (a->T + tokens - 1) / tokens;
    j->keys = keys;
    return true;
}

/* Rows of keys or values from number `at` on, as floats that are *ld apart. */
static const float *tile_of(const attention_job *j, const float *whole, const uint16_t *half, size_t at, int n, float *wide, int *ld)
{
    const int row = j->a->n_kv * j->a->head_dim;
    *ld = half ? j->a->head_dim : row;
    if (!half)
        return whole + at;
    es_cpu_simd->from_half(half + at, (size_t)row, n, j->a->head_dim, wide);
    return wide;
}

/* The scores s[rows, n] of the keys from position `from` on become e^(score - max), 0 where a row does not see the key. max and sum are
 * each row's over all tiles so far; when max rises what o and sum hold shrinks. whole: there is but this tile, and s becomes the
 * probabilities. */
static void weigh(const es_attn *a, int t0, int rows, int from, float *s, int n, float *max, float *sum, float *o, bool whole)
{
    const int group = a->n_head / a->n_kv, D = a->head_dim;
    for (int r = 0; r < rows; r++, s += n, o += D) {
        const int pos = a->pos0 + t0 + r / group, first = es_attn_first(a, pos) > from ? es_attn_first(a, pos) - from : 0;
        const int end = pos + 1 - from < n ? pos + 1 - from : n;
        if (first >= end) {
            memset(s, 0, (size_t)n * sizeof *s);
            continue;
        }
        const float most = es_cpu_simd->max(s + first, end - first);
        if (most > max[r] && sum[r] != 0) {
            float shrink = max[r] - most;
            es_cpu_simd->exp_shift(&shrink, 1, 0);
            sum[r] *= shrink;
            for (int i = 0; i < D; i++)
                o[i] *= shrink;
        }
        max[r] = most > max[r] || sum[r] == 0 ? most : max[r];
        sum[r] += es_cpu_simd->exp_shift(s + first, end - first, max[r]);
        const float inverse = 1 / sum[r];
        memset(s, 0, (size_t)first * sizeof *s);
        for (int j = first; whole && j < end; j++)
            s[j] *= inverse;
        memset(s + end, 0, (size_t)(n - end) * sizeof *s);
    }
}

static void attention_part(void *user, int part, int parts)
{
    (void)parts;
    attention_job *j = user;
    const es_attn *a = j->a;
    const int group = a->n_head / a->n_kv, D = a->head_dim, most = j->block * group;
    float *q = es_pool_scratch(j->pool, part), *o = q + (size_t)most * (size_t)D, *max = o + (size_t)most * (size_t)D, *sum = max + most,
          *s = sum + most, *wide = s + (size_t)most * (size_t)j->keys;
    for (int i; (i = atomic_fetch_add(&j->next, 1)) < j->blocks * a->n_kv;) {
        const int g = i % a->n_kv, t0 = (j->blocks - 1 - i / a->n_kv) * j->block, t1 = t0 + j->block < a->T ? t0 + j->block : a->T;
        const int rows = (t1 - t0) * group, low = es_attn_first(a, a->pos0 + t0), n = a->pos0 + t1 - low;
        const bool whole = n <= j->keys;
        pack(a, g, t0, t1, j->q, q);
        memset(sum, 0, (size_t)rows * sizeof *sum);
        memset(max, 0, (size_t)rows * sizeof *max);
        for (int from = 0; from < n; from += j->keys) {
            const int m = n - from < j->keys ? n - from : j->keys;
            const size_t at = (size_t)(low + from) * (size_t)(a->n_kv * D) + (size_t)(g * D);
            int ld;
            const float *k = tile_of(j, j->k, j->k_half, at, m, wide, &ld);
            multiply(false, true, rows, m, D, a->scale, q, D, k, ld, 0, s, m);
            if (a->cap > 0)
                es_cpu_simd->soft_cap(s, (size_t)rows * (size_t)m, a->cap);
            weigh(a, t0, rows, low + from, s, m, max, sum, o, whole);
            const float *v = tile_of(j, j->v, j->v_half, at, m, wide, &ld);
            multiply(false, false, rows, D, m, 1, s, m, v, ld, from > 0 ? 1 : 0, o, D);
        }
        for (int r = 0; !whole && r < rows; r++)
            for (int c = 0; c < D; c++)
                o[(size_t)r * (size_t)D + (size_t)c] /= sum[r];
        unpack(a, g, t0, t1, o, j->out);
    }
}

/* One token over the keys of positions from .. to-1: for each head [max, sum, sum of e^(score - max) v], which lie one behind the other
 * in `left`, with room for tiles of scores after them. */
static void attend_range(const attention_job *j, const es_attn *a, int from, int to, float *left)
{
    const size_t row = (size_t)a->n_kv * (size_t)a->head_dim, heads = (size_t)a->n_head, D = (size_t)a->head_dim;
    float *max = left, *sum = max + heads, *o = sum + heads, *s = o + heads * D;
    const int keys = STRIP_FLOATS / a->n_head < 1 ? 1 : STRIP_FLOATS / a->n_head;
    memset(left, 0, heads * (D + 2) * sizeof *left);
    for (int n; from < to; from += n) {
        n = to - from < keys ? to - from : keys;
        if (j->k_half)
            es_cpu_simd->attend_scores_half(a, j->q, j->k_half + (size_t)from * row, n, s);
        else
            es_cpu_simd->attend_scores(a, j->q, j->k + (size_t)from * row, n, s);
        if (a->cap > 0)
            es_cpu_simd->soft_cap(s, heads * (size_t)n, a->cap);
        for (size_t h = 0; h < heads; h++) {
            const float most = es_cpu_simd->max(s + h * (size_t)n, n);
            if (most > max[h] && sum[h] != 0) {
                float shrink = max[h] - most;
                es_cpu_simd->exp_shift(&shrink, 1, 0);
                sum[h] *= shrink;
                for (size_t i = 0; i < D; i++)
                    o[h * D + i] *= shrink;
            }
            max[h] = most > max[h] || sum[h] == 0 ? most : max[h];
            sum[h] += es_cpu_simd->exp_shift(s + h * (size_t)n, n, max[h]);
        }
        if (j->v_half)
            es_cpu_simd->attend_values_half(a, s, j->v_half + (size_t)from * row, n, o);
        else
            es_cpu_simd->attend_values(a, s, j->v + (size_t)from * row, n, o);
    }
}

static bool range_fits(const es_attn *a)
{
    const size_t heads = (size_t)a->n_head, keys = STRIP_FLOATS / heads < 1 ? 1 : STRIP_FLOATS / heads;
    return heads * ((size_t)a->head_dim + 2 + keys) * sizeof(float) <= ES_SCRATCH;
}

/* Each part attends to a range of positions; the caller then brings the ranges together. The keys of a part's range are read through
 * once, in order. */
static void decode_part(void *user, int part, int parts)
{
    const attention_job *j = user;
    const int low = es_attn_first(j->a, j->a->pos0);
    int from, to;
    es_share(j->a->pos0 + 1 - low, 16, part, parts, &from, &to);
    attend_range(j, j->a, low + from, low + to, es_pool_scratch(j->pool, part));
}

static void decode(es_pool *p, attention_job *j)
{
    const es_attn *a = j->a;
    const size_t D = (size_t)a->head_dim;
    int parts = es_pool_threads(p);
    if ((a->pos0 + 1) * a->n_head < ALONE_KEYS) {
        parts = 1;
        decode_part(j, 0, 1);
    } else {
        es_pool_run(p, decode_part, j);
    }
    for (int h = 0; h < a->n_head; h++) {
        float most = 0, sum = 0, *out = j->out + (size_t)h * D;
        for (int part = 0, first = 1; part < parts; part++) {
            const float *max = es_pool_scratch(p, part), *sums = max + a->n_head;
            if (sums[h] != 0 && (first || max[h] > most))
                most = max[h], first = 0;
        }
        memset(out, 0, D * sizeof *out);
        for (int part = 0; part < parts; part++) {
            const float *max = es_pool_scratch(p, part), *sums = max + a->n_head, *o = sums + a->n_head + (size_t)h * D;
            if (sums[h] == 0)
                continue;
            float shrink = max[h] - most;
            es_cpu_simd->exp_shift(&shrink, 1, 0);
            sum += sums[h] * shrink;
            for (size_t i = 0; i < D; i++)
                out[i] += shrink * o[i];
        }
        for (size_t i = 0; i < D; i++)
            out[i] /= sum;
    }
}

/* false: a head, or the heads of a group, of a hundred thousand numbers, for which there is no room */
static bool attend(es_pool *p, attention_job *j)
{
    if (j->a->T == 1 && range_fits(j->a))
        decode(p, j);
    else if (cut(j))
        es_pool_run(p, attention_part, j);
    else
        return false;
    return true;
}

void es_cpu_attention(es_pool *p, const es_attn *a, const float *q, const float *k, const float *v, float *out)
{
    attention_job j = {.pool = p, .a = a, .q = q, .k = k, .v = v, .out = out};
    if (a->T > 0 && !attend(p, &j))
        es_kernels_scalar()->attention(p, a, q, k, v, out);
}

/* ---- several sequences, keys and values in half precision ---------------------------------------------------------------------- */

typedef struct several {
    es_pool *pool;
    const es_attn *a;
    int n_seq;
    const float *q;
    const uint16_t *const *k, *const *v;
    float *out;
    _Atomic int next;
} several;

/* A token each of many sequences: a sequence is one part's alone. */
static void several_part(void *user, int part, int parts)
{
    (void)parts;
    several *j = user;
    float *left = es_pool_scratch(j->pool, part);
    for (int s; (s = atomic_fetch_add(&j->next, 1)) < j->n_seq;) {
        const es_attn *a = &j->a[s];
        const size_t D = (size_t)a->head_dim, width = (size_t)a->n_head * D;
        attention_job one = {.q = j->q + (size_t)s * width, .k_half = j->k[s], .v_half = j->v[s]};
        attend_range(&one, a, es_attn_first(a, a->pos0), a->pos0 + 1, left);
        const float *sum = left + a->n_head, *o = sum + a->n_head;
        for (size_t i = 0; i < width; i++)
            j->out[(size_t)s * width + i] = o[i] / sum[i / D];
    }
}

void es_cpu_attention_half(es_pool *p, const es_attn *a, int n_seq, const float *q, const uint16_t *const *k, const uint16_t *const *v, float *out)
{
    bool tokens = n_seq > 1;
    for (int s = 0; s < n_seq; s++)
        tokens = tokens && a[s].T == 1 && range_fits(&a[s]);
    if (tokens) {
        several j = {.pool = p, .a = a, .n_seq = n_seq, .q = q, .k = k, .v = v, .out = out};
        es_pool_run(p, several_part, &j);
        return;
    }
    for (int s = 0; s < n_seq; s++) {
        attention_job j = {.pool = p, .a = &a[s], .q = q, .k_half = k[s], .v_half = v[s], .out = out};
        const size_t width = (size_t)a[s].n_head * (size_t)a[s].head_dim * (size_t)a[s].T;
        if (a[s].T > 0 && !attend(p, &j))
            es_kernels_scalar()->attention_half(p, &a[s], 1, q, &k[s], &v[s], out);
        q += width;
        out += width;
    }
}

typedef struct halving {
    const float *x;
    uint16_t *y;
    size_t n;
} halving;

static void halve_part(void *user, int part, int parts)
{
    const halving *j = user;
    const size_t from = j->n / 64 * (size_t)part / (size_t)parts * 64, to = part + 1 == parts ? j->n : j->n / 64 * (size_t)(part + 1) / (size_t)parts * 64;
    es_cpu_simd->to_half(j->x + from, j->y + from, to - from);
}

void es_cpu_to_half(es_pool *p, const float *x, uint16_t *y, size_t n)
{
    halving j = {x, y, n};
    if (n < 32 << 10) /* done before another thread has heard of it */
        halve_part(&j, 0, 1);
    else
        es_pool_run(p, halve_part, &j);
}

/* ---- backward ---------------------------------------------------------------------------------------------------------------- */

/* The strip's probabilities from its packed queries: rows of n floats, for the keys from position `low` on, where k points; keys that
 * a row does not see get 0. slope (NULL: none) receives d capped / d score. */
static void probabilities(const es_attn *a, int t0, int t1, const float *packed, const float *k, int low, float *s, float *slope, int n)
{
    const int group = a->n_head / a->n_kv, D = a->head_dim, rows = (t1 - t0) * group;
    multiply(false, true, rows, n, D, a->scale, packed, D, k, a->n_kv * D, 0, s, n);
    if (a->cap > 0)
        es_cpu_simd->soft_cap(s, (size_t)rows * (size_t)n, a->cap);
    for (size_t i = 0; slope && i < (size_t)rows * (size_t)n; i++)
        slope[i] = 1 - s[i] / a->cap * (s[i] / a->cap);
    for (int r = 0; r < rows; r++, s += n) {
        const int pos = a->pos0 + t0 + r / group, first = es_attn_first(a, pos) - low, end = pos + 1 - low, seen = end - first;
        const float sum = es_cpu_simd->exp_shift(s + first, seen, es_cpu_simd->max(s + first, seen)), inverse = 1 / sum;
        memset(s, 0, (size_t)first * sizeof *s);
        for (int j = first; j < end; j++)
            s[j] *= inverse;
        memset(s + end, 0, (size_t)(n - end) * sizeof *s);
    }
}

/* Query tokens whose score rows of n floats, `strips` of them for each, stay in cache; 0 when not one fits into the scratch. Backward
 * has whole rows of scores: what it is given is a few hundred tokens long. */
static int strip_tokens(const es_attn *a, int strips, int n)
{
    const size_t group = (size_t)(a->n_head / a->n_kv), row = (size_t)strips * (size_t)n + 3 * (size_t)a->head_dim;
    size_t tokens = STRIP_FLOATS / (group * (size_t)strips * (size_t)n);
    if (tokens > STRIP_ROWS / group)
        tokens = STRIP_ROWS / group;
    if (tokens < 1)
        tokens = 1;
    return tokens * group * row * sizeof(float) <= ES_SCRATCH ? (int)tokens : 0;
}

/* Formulas: scalar.c. One part has a key head to itself, since every strip adds to that head's dk and dv. */
static void attention_back_part(void *user, int part, int parts)
{
    (void)parts;
    attention_job *j = user;
    const es_attn *a = j->a;
    const int group = a->n_head / a->n_kv, D = a->head_dim, row = a->n_kv * D;
    float *scratch = es_pool_scratch(j->pool, part);
    for (int g; (g = atomic_fetch_add(&j->next, 1)) < a->n_kv;) {
        for (int t = 0; t < a->T; t++) {
            memset(j->dk + g * D + (size_t)t * (size_t)row, 0, (size_t)D * sizeof *j->dk);
            memset(j->dv + g * D + (size_t)t * (size_t)row, 0, (size_t)D * sizeof *j->dv);
        }
        for (int t0 = 0, t1; t0 < a->T; t0 = t1) {
            t1 = t0 + j->block < a->T ? t0 + j->block : a->T;
            const int rows = (t1 - t0) * group, low = es_attn_first(a, t0), n = t1 - low;
            const size_t skip = (size_t)low * (size_t)row + (size_t)(g * D);
            const float *k = j->k + skip, *v = j->v + skip;
            float *dk = j->dk + skip, *dv = j->dv + skip;
            const size_t packed = (size_t)rows * (size_t)D, strip = (size_t)rows * (size_t)n;
            float *q = scratch, *dout = q + packed, *dq = dout + packed, *prob = dq + packed, *ds = prob + strip, *slope = a->cap > 0 ? ds + strip : NULL;
            pack(a, g, t0, t1, j->q, q);
            pack(a, g, t0, t1, j->dout, dout);
            probabilities(a, t0, t1, q, k, low, prob, slope, n);
            multiply(true, false, n, D, rows, 1, prob, n, dout, D, 1, dv, row);
            multiply(false, true, rows, n, D, 1, dout, D, v, row, 0, ds, n);
            for (int r = 0; r < rows; r++)
                es_cpu_simd->softmax_back(prob + (size_t)r * (size_t)n, ds + (size_t)r * (size_t)n, n, a->scale);
            for (size_t i = 0; slope && i < strip; i++)
                ds[i] *= slope[i];
            multiply(false, false, rows, D, n, 1, ds, n, k, row, 0, dq, D);
            multiply(true, false, n, D, rows, 1, ds, n, q, D, 1, dk, row);
            unpack(a, g, t0, t1, dq, j->dq);
        }
    }
}

void es_cpu_attention_back(es_pool *p, const es_attn *a, const float *q, const float *k, const float *v, const float *dout, float *dq,
                           float *dk, float *dv)
{
    attention_job j = {.pool = p, .a = a, .q = q, .k = k, .v = v, .dout = dout, .dq = dq, .dk = dk, .dv = dv};
    if (a->T <= 0)
        return;
    j.block = strip_tokens(a, a->cap > 0 ? 3 : 2, a->T);
    if (j.block == 0) {
        es_kernels_scalar()->attention_back(p, a, q, k, v, dout, dq, dk, dv);
        return;
    }
    es_pool_run(p, attention_back_part, &j);
}
