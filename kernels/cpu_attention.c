/* Attention of the CPU table. Several query rows at a time meet all their keys in a strip of scores [rows, keys] in the part's
 * scratch: two products by BLAS with a softmax between. The heads that share a key head are rows of one strip, so keys and
 * values are read once for all of them. A single token (decoding) shares out the cache by position instead. */
#include <cblas.h>
#include <stdatomic.h>
#include <string.h>

#include "internal.h"

enum {
    STRIP_FLOATS = 128 << 10, /* scores that stay in the second-level cache */
    STRIP_ROWS = 128,
    ALONE_KEYS = 16 << 10, /* keys times heads below which one thread is quicker than two */
};

typedef struct attention_job {
    es_pool *pool;
    const es_attn *a;
    const float *q, *k, *v, *dout;
    float *out, *dq, *dk, *dv;
    int block, blocks; /* query tokens in a strip, strips of a key head */
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

/* Query tokens whose score rows of n floats, `strips` of them for each, stay in cache; 0 when not one fits into the scratch. */
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

/* ---- forward --------------------------------------------------------------------------------------------------------------- */

static void attention_part(void *user, int part, int parts)
{
    (void)parts;
    attention_job *j = user;
    const es_attn *a = j->a;
    const int group = a->n_head / a->n_kv, D = a->head_dim;
    float *scratch = es_pool_scratch(j->pool, part);
    for (int i; (i = atomic_fetch_add(&j->next, 1)) < j->blocks * a->n_kv;) {
        const int g = i % a->n_kv, t0 = (j->blocks - 1 - i / a->n_kv) * j->block, t1 = t0 + j->block < a->T ? t0 + j->block : a->T;
        const int rows = (t1 - t0) * group, low = es_attn_first(a, a->pos0 + t0), n = a->pos0 + t1 - low;
        const size_t skip = (size_t)low * (size_t)(a->n_kv * D) + (size_t)(g * D);
        float *q = scratch, *o = q + (size_t)rows * (size_t)D, *s = o + (size_t)rows * (size_t)D;
        pack(a, g, t0, t1, j->q, q);
        probabilities(a, t0, t1, q, j->k + skip, low, s, NULL, n);
        multiply(false, false, rows, D, n, 1, s, n, j->v + skip, a->n_kv * D, 0, o, D);
        unpack(a, g, t0, t1, o, j->out);
    }
}

/* One token: each part attends to a range of positions and leaves, for each head, [max, sum, sum of e^(score - max) v] in its
 * scratch; the caller then brings the ranges together. The keys of a part's range are read through once, in order. */
static void decode_part(void *user, int part, int parts)
{
    const attention_job *j = user;
    const es_attn *a = j->a;
    const size_t row = (size_t)a->n_kv * (size_t)a->head_dim, heads = (size_t)a->n_head;
    const int low = es_attn_first(a, a->pos0);
    int from, to;
    es_share(a->pos0 + 1 - low, 16, part, parts, &from, &to);
    from += low, to += low;
    const int n = to - from;
    float *max = es_pool_scratch(j->pool, part), *sum = max + heads, *o = sum + heads, *s = o + heads * (size_t)a->head_dim;
    if (n == 0) {
        memset(sum, 0, heads * sizeof *sum);
        return;
    }
    es_cpu_simd->attend_scores(a, j->q, j->k + (size_t)from * row, n, s);
    if (a->cap > 0)
        es_cpu_simd->soft_cap(s, heads * (size_t)n, a->cap);
    for (size_t h = 0; h < heads; h++) {
        max[h] = es_cpu_simd->max(s + h * (size_t)n, n);
        sum[h] = es_cpu_simd->exp_shift(s + h * (size_t)n, n, max[h]);
    }
    es_cpu_simd->attend_values(a, s, j->v + (size_t)from * row, n, o);
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

void es_cpu_attention(es_pool *p, const es_attn *a, const float *q, const float *k, const float *v, float *out)
{
    attention_job j = {.pool = p, .a = a, .q = q, .k = k, .v = v, .out = out};
    if (a->T <= 0)
        return;
    const size_t decode_floats = (size_t)a->n_head * ((size_t)a->head_dim + 2 + (size_t)a->pos0 + 1);
    if (a->T == 1 && decode_floats * sizeof(float) <= ES_SCRATCH) {
        decode(p, &j);
        return;
    }
    j.block = strip_tokens(a, 1, a->pos0 + a->T);
    if (j.block == 0) { /* a context of a hundred thousand and more */
        es_kernels_scalar()->attention(p, a, q, k, v, out);
        return;
    }
    j.blocks = (a->T + j.block - 1) / j.block;
    es_pool_run(p, attention_part, &j);
}

/* ---- backward ---------------------------------------------------------------------------------------------------------------- */

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
