// Attention of many tokens on tensor cores, for pools of lower precision: scores of a strip of query rows against all keys they see, made by a
// product of plain matrices in TF32, become probabilities in place, and a second product reads the values. The strip is as tall as the workspace
// allows, so no T x T matrix is in memory. The query heads of a group are one batch, which shares the group's keys and values.
// Limits: TF32 products, and the strip's way to memory and back, some 4 bytes a score each time.
#include "attention.cuh"
#include "attention_products.cuh"

enum { THREADS = 256 };

// Row t of the strip, head g of the group: s[g][t][keys] become probabilities over the keys seen; what is not seen becomes 0. first: the first
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

// A head's keys or values from half precision: out[n, D].
static __global__ void widen_head(const __half *x, size_t step, size_t n, int D, float *out)
{
    ES_EACH(e, n) out[e] = __half2float(x[e / D * step + e % D]);
}

struct strip { int rows, first, keys; };

// Rows [t, t + rows) of T and the keys they see.
static strip strip_at(const es_attn *a, int t, int most)
{
    const int rows = a->T - t < most ? a->T - t : most, first = es_attn_first(a, a->pos0 + t);
    return strip{rows, first, a->pos0 + t + rows - first};
}

// Rows of a strip whose scores, `copies` times, fit what is left of the workspace.
static int strip_rows(const es_stream *s, const es_attn *a, size_t used, int copies)
{
    const size_t row = sizeof(float) * (size_t)copies * (size_t)(a->n_head / a->n_kv) * (size_t)(a->pos0 + a->T);
    const size_t rows = used < s->o.workspace ? (s->o.workspace - used) / row : 0;
    return (int)(rows < (size_t)a->T ? rows : (size_t)a->T);
}

enum { WORTH = 64 /* tokens */, SHORTEST = 16 /* rows of a strip */ };

bool es_attention_by_products(es_stream *s, const es_attn *a, const float *q, const void *k, const void *v, bool half, float *out)
{
    const es_attend shape = es_attend_of(a);
    const int D = a->head_dim, group = shape.group;
    const size_t head = es_align256(sizeof(float) * (size_t)(a->pos0 + a->T) * D), used = half ? 2 * head : 0;
    const int most = strip_rows(s, a, used, 1);
    if (s->o.precision == ES_CUDA_F32 || a->T < WORTH || most < SHORTEST)
        return false;
    float *scores = (float *)(s->work + used);
    for (int h = 0; h < a->n_kv; h++) {
        const float *kh = (const float *)k + (size_t)h * D, *vh = (const float *)v + (size_t)h * D;
        int ld = a->n_kv * D;
        if (half) {
            float *wide[] = {(float *)s->work, (float *)(s->work + head)};
            const void *from[] = {k, v};
            const size_t n = (size_t)(a->pos0 + a->T) * D;
            for (int i = 0; i < 2; i++)
                ES_LAUNCH(s, widen_head, es_grid_for(s, n, THREADS), THREADS, 0, (const __half *)from[i] + (size_t)h * D, (size_t)ld, n, D, wide[i]);
            kh = wide[0];
            vh = wide[1];
            ld = D;
        }
        for (int t = 0; t < a->T; t += most) {
            const strip p = strip_at(a, t, most);
            const size_t at = ((size_t)t * a->n_head + (size_t)h * group) * D, each = (size_t)p.rows * p.keys;
            es_product_do(s, ES_PRODUCT_TF32, false, true, p.rows, p.keys, D, 1, q + at, a->n_head * D, kh + (size_t)p.first * ld, ld, 0, scores, p.keys,
                          es_batch_of{group, (size_t)D, 0, each});
            dim3 grid(p.rows, group);
            ES_LAUNCH(s, probabilities, grid, THREADS, 32 * sizeof(float), shape, scores, p.rows, p.keys, p.first, a->pos0 + t);
            es_product_do(s, ES_PRODUCT_TF32, false, false, p.rows, D, p.keys, 1, scores, p.keys, vh + (size_t)p.first * ld, ld, 0, out + at, a->n_head * D,
                          es_batch_of{group, each, 0, (size_t)D});
        }
    }
    return true;
}

// dv_j += p_j g, dk_j += ds_j q: sums over a group's heads and over strips, one after another, so that the order is the same each time.
bool es_attention_back_by_products(es_stream *s, const es_attn *a, const float *q, const float *k, const float *v, const float *dout, float *dq,
                                   float *dk, float *dv)
{
    const es_attend shape = es_attend_of(a);
    const int D = a->head_dim, group = shape.group, ld = a->n_kv * D, ldq = a->n_head * D, most = strip_rows(s, a, 0, 2);
    if (s->o.precision == ES_CUDA_F32 || a->T < WORTH || most < SHORTEST)
        return false;
    const size_t all = sizeof(float) * (size_t)a->T * ld;
    es_stream_check(s, cudaMemsetAsync(dk, 0, all, s->stream), "clear");
    es_stream_check(s, cudaMemsetAsync(dv, 0, all, s->stream), "clear");
    for (int h = 0; h < a->n_kv; h++)
        for (int t = 0; t < a->T; t += most) {
            const strip p = strip_at(a, t, most);
            const size_t at = ((size_t)t * a->n_head + (size_t)h * group) * D, each = (size_t)p.rows * p.keys, key = (size_t)p.first * ld + (size_t)h * D;
            float *scores = (float *)s->work, *ds = scores + each * group;
            const es_batch_of in = {group, (size_t)D, 0, each};
            es_product_do(s, ES_PRODUCT_TF32, false, true, p.rows, p.keys, D, 1, q + at, ldq, k + key, ld, 0, scores, p.keys, in);
            es_product_do(s, ES_PRODUCT_TF32, false, true, p.rows, p.keys, D, 1, dout + at, ldq, v + key, ld, 0, ds, p.keys, in);
            dim3 grid(p.rows, group);
            ES_LAUNCH(s, gradients, grid, THREADS, 32 * sizeof(float), shape, scores, ds, p.rows, p.keys, p.first, t);
            es_product_do(s, ES_PRODUCT_TF32, false, false, p.rows, D, p.keys, 1, ds, p.keys, k + key, ld, 0, dq + at, ldq,
                          es_batch_of{group, each, 0, (size_t)D});
            for (int g = 0; g < group; g++) {
                es_product_do(s, ES_PRODUCT_TF32, true, false, p.keys, D, p.rows, 1, ds + each * g, p.keys, q + at + (size_t)g * D, ldq, 1, dk + key, ld);
                es_product_do(s, ES_PRODUCT_TF32, true, false, p.keys, D, p.rows, 1, scores + each * g, p.keys, dout + at + (size_t)g * D, ldq, 1, dv + key, ld);
            }
        }
    return true;
}
