// Attention of many tokens on tensor cores, for pools of lower precision: scores of a strip of query rows against all keys they see, made by a
// product of plain matrices in TF32, become probabilities in place, and a second product reads the values. The strip is as tall as the workspace
// allows, so no T x T matrix is in memory. As many heads as fit go side by side: one batch of products is one query head of every group.
// Limits: TF32 products, the strip's way to memory and back, some 4 bytes a score each time, and for short sequences starting all of it.
#include "attention.cuh"
#include "attention_products.cuh"

enum { THREADS = 256 };

// Row t of the strip, head h of those side by side: s[h][t][keys] become probabilities over the keys seen; what is not seen becomes 0. first: the first
// key of the strip; t0: the position of its first row.
static __global__ void probabilities(es_attend a, float *s, int rows, int keys, int first, int t0)
{
    ES_SHARED(float, red);
    float *row = s + ((size_t)blockIdx.y * rows + blockIdx.x) * keys;
    const int pos = t0 + blockIdx.x, from = es_first_seen(a, pos) - first, until = pos + 1 - first;
    float max = -INFINITY, sum = 0;
    for (int j = from + (int)threadIdx.x; j < until; j += THREADS)
        max = fmaxf(max, row[j] = es_score(a, row[j]));
    max = es_block_max(max, red);
    for (int j = from + (int)threadIdx.x; j < until; j += THREADS)
        sum += row[j] = expf(row[j] - max);
    sum = es_block_sum(sum, red);
    for (int j = threadIdx.x; j < keys; j += THREADS)
        row[j] = j >= from && j < until ? row[j] / sum : 0;
}

// The same for the backward pass: s holds q.k and dp dout.v; they become p and the gradient of q.k.
static __global__ void gradients(es_attend a, float *s, float *dp, int rows, int keys, int first, int t0)
{
    ES_SHARED(float, red);
    const size_t at = ((size_t)blockIdx.y * rows + blockIdx.x) * keys;
    float *row = s + at, *grad = dp + at, max = -INFINITY, sum = 0, along = 0;
    const int pos = t0 + blockIdx.x, from = es_first_seen(a, pos) - first, until = pos + 1 - first;
    for (int j = from + (int)threadIdx.x; j < until; j += THREADS)
        max = fmaxf(max, es_score(a, row[j]));
    max = es_block_max(max, red);
    for (int j = from + (int)threadIdx.x; j < until; j += THREADS) {
        const float e = expf(es_score(a, row[j]) - max);
        sum += e;
        along += e * grad[j];
    }
    sum = es_block_sum(sum, red);
    along = es_block_sum(along, red) / sum; // sum of p dp
    for (int j = threadIdx.x; j < keys; j += THREADS) {
        const bool seen = j >= from && j < until;
        const float score = seen ? es_score(a, row[j]) : 0, p = seen ? expf(score - max) / sum : 0;
        grad[j] = seen ? a.scale * p * (grad[j] - along) * (a.cap > 0 ? 1 - score / a.cap * (score / a.cap) : 1) : 0;
        row[j] = p;
    }
}

// Keys or values from half precision, a head behind another: out[head][n, D].
static __global__ void widen_heads(const __half *x, size_t step, size_t n, int D, float *out)
{
    x += (size_t)blockIdx.y * D;
    out += (size_t)blockIdx.y * n * D;
    ES_EACH(e, n * D) out[e] = __half2float(x[e / D * step + e % D]);
}

struct strip { int rows, first, keys; };

// Rows [t, t + rows) of T and the keys they see.
static strip strip_at(const es_attn *a, int t, int most)
{
    const int rows = a->T - t < most ? a->T - t : most, first = es_attn_first(a, a->pos0 + t);
    return strip{rows, first, a->pos0 + t + rows - first};
}

enum {
    WORTH = 64 /* tokens */, SHORTEST = 16 /* rows of a strip */, SHORT = 128 /* rows below which fewer heads go side by side */,
    TALL = 512 /* rows of a strip at most: what is below the diagonal in a strip is done for nothing */,
};

struct plan { int heads, rows; }; // key-value heads side by side, rows of a strip; heads 0: it cannot be done here

// copies: of the scores. wide: bytes a key-value head takes of the workspace besides.
static plan plan_for(const es_stream *s, const es_attn *a, size_t wide, int copies)
{
    if (s->o.precision == ES_CUDA_F32 || a->T < WORTH)
        return plan{0, 0};
    for (int heads = a->n_kv;; heads = (heads + 1) / 2) {
        const size_t row = sizeof(float) * (size_t)copies * heads * (size_t)(a->n_head / a->n_kv) * (size_t)(a->pos0 + a->T), used = wide * heads;
        size_t rows = used < s->o.workspace ? (s->o.workspace - used) / row : 0;
        rows = rows < (size_t)a->T ? rows : (size_t)a->T;
        if (heads > 1 && rows < SHORT && rows < (size_t)a->T)
            continue;
        if (rows < SHORTEST)
            return plan{0, 0};
        return plan{heads, (int)(rows < TALL ? rows : (size_t)TALL)};
    }
}

// A query head of every group in one batch, as many batches as a group has heads; or, with fewer groups than that, a group's heads in one batch.
struct batches {
    int turns, count; // batches, products of each
    size_t q, key, score, q_apart, key_apart, score_apart; // what the next batch begins at, and how far its own lie apart
};

// n: groups. apart: from a key-value head to the next. each: scores of a head, laid out [group][n].
static batches batches_of(int n, int group, size_t D, size_t apart, size_t each)
{
    const size_t over = group * D, line = each * n;
    return n >= group ? batches{group, n, D, 0, line, over, apart, each} : batches{n, group, over, apart, each, D, 0, line};
}

bool es_attention_by_products(es_stream *s, const es_attn *a, const float *q, const void *k, const void *v, bool half, float *out)
{
    const es_attend shape = es_attend_of(a);
    const int D = a->head_dim, group = shape.group, ldq = a->n_head * D;
    const size_t all = (size_t)(a->pos0 + a->T), head = half ? all * D : 0; // numbers of a head that was widened
    const plan room = plan_for(s, a, 2 * sizeof(float) * head, 1);
    if (!room.heads)
        return false;
    for (int h = 0; h < a->n_kv; h += room.heads) {
        const int n = a->n_kv - h < room.heads ? a->n_kv - h : room.heads;
        const float *kh = (const float *)k + (size_t)h * D, *vh = (const float *)v + (size_t)h * D;
        int ld = a->n_kv * D;
        size_t apart = (size_t)D;
        float *scores = (float *)s->work + 2 * head * n; // [group][n][rows][keys]
        if (half) {
            float *wide[] = {(float *)s->work, (float *)s->work + head * n};
            const void *from[] = {k, v};
            for (int i = 0; i < 2; i++) {
                dim3 grid(es_grid_for(s, head, THREADS), n);
                ES_LAUNCH(s, widen_heads, grid, THREADS, 0, (const __half *)from[i] + (size_t)h * D, (size_t)ld, all, D, wide[i]);
            }
            kh = wide[0];
            vh = wide[1];
            ld = D;
            apart = head;
        }
        for (int t = 0; t < a->T; t += room.rows) {
            const strip p = strip_at(a, t, room.rows);
            const size_t each = (size_t)p.rows * p.keys, at = ((size_t)t * a->n_head + (size_t)h * group) * D, key = (size_t)p.first * ld;
            const batches b = batches_of(n, group, (size_t)D, apart, each);
            for (int i = 0; i < b.turns; i++)
                es_product_do(s, ES_PRODUCT_TF32, false, true, p.rows, p.keys, D, 1, q + at + i * b.q, ldq, kh + key + i * b.key, ld, 0, scores + i * b.score, p.keys,
                              es_batch_of{b.count, b.q_apart, b.key_apart, b.score_apart});
            dim3 grid(p.rows, group * n);
            ES_LAUNCH(s, probabilities, grid, THREADS, 32 * sizeof(float), shape, scores, p.rows, p.keys, p.first, a->pos0 + t);
            for (int i = 0; i < b.turns; i++)
                es_product_do(s, ES_PRODUCT_TF32, false, false, p.rows, D, p.keys, 1, scores + i * b.score, p.keys, vh + key + i * b.key, ld, 0, out + at + i * b.q, ldq,
                              es_batch_of{b.count, b.score_apart, b.key_apart, b.q_apart});
        }
    }
    return true;
}

// dv_j += p_j g, dk_j += ds_j q: sums over a group's heads and over strips, one after another, so that the order is the same each time.
bool es_attention_back_by_products(es_stream *s, const es_attn *a, const float *q, const float *k, const float *v, const float *dout, float *dq,
                                   float *dk, float *dv)
{
    const es_attend shape = es_attend_of(a);
    const int D = a->head_dim, group = shape.group, ld = a->n_kv * D, ldq = a->n_head * D;
    const plan room = plan_for(s, a, 0, 2);
    if (!room.heads)
        return false;
    const size_t all = sizeof(float) * (size_t)a->T * ld;
    es_stream_check(s, cudaMemsetAsync(dk, 0, all, s->stream), "clear");
    es_stream_check(s, cudaMemsetAsync(dv, 0, all, s->stream), "clear");
    for (int h = 0; h < a->n_kv; h += room.heads)
        for (int t = 0; t < a->T; t += room.rows) {
            const int n = a->n_kv - h < room.heads ? a->n_kv - h : room.heads;
            const strip p = strip_at(a, t, room.rows);
            const size_t at = ((size_t)t * a->n_head + (size_t)h * group) * D, each = (size_t)p.rows * p.keys, key = (size_t)p.first * ld + (size_t)h * D;
            float *scores = (float *)s->work, *ds = scores + each * group * n; // [group][n][rows][keys]
            const batches b = batches_of(n, group, (size_t)D, (size_t)D, each);
            for (int i = 0; i < b.turns; i++) {
                const es_batch_of in = {b.count, b.q_apart, b.key_apart, b.score_apart};
                es_product_do(s, ES_PRODUCT_TF32, false, true, p.rows, p.keys, D, 1, q + at + i * b.q, ldq, k + key + i * b.key, ld, 0, scores + i * b.score, p.keys, in);
                es_product_do(s, ES_PRODUCT_TF32, false, true, p.rows, p.keys, D, 1, dout + at + i * b.q, ldq, v + key + i * b.key, ld, 0, ds + i * b.score, p.keys, in);
            }
            dim3 grid(p.rows, group * n);
            ES_LAUNCH(s, gradients, grid, THREADS, 32 * sizeof(float), shape, scores, ds, p.rows, p.keys, p.first, t);
            for (int i = 0; i < b.turns; i++)
                es_product_do(s, ES_PRODUCT_TF32, false, false, p.rows, D, p.keys, 1, ds + i * b.score, p.keys, k + key + i * b.key, ld, 0, dq + at + i * b.q, ldq,
                              es_batch_of{b.count, b.score_apart, b.key_apart, b.q_apart});
            for (int g = 0; g < group; g++) { // a group's heads add to the same keys and values
                const es_batch_of back = {n, each, (size_t)group * D, (size_t)D};
                const size_t head = at + (size_t)g * D, score = each * n * g;
                es_product_do(s, ES_PRODUCT_TF32, true, false, p.keys, D, p.rows, 1, ds + score, p.keys, q + head, ldq, 1, dk + key, ld, back);
                es_product_do(s, ES_PRODUCT_TF32, true, false, p.keys, D, p.rows, 1, scores + score, p.keys, dout + head, ldq, 1, dv + key, ld, back);
            }
        }
    return true;
}
