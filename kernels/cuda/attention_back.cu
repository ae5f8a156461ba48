// Attention backward, in two passes that each write what they own, so that nothing is added by two blocks and every run gives the same
// bits: dq by blocks of queries, dk and dv by blocks of keys. Probabilities are computed anew from the log-sums (scalar.c has the equations).
// Limit: f32 multiply-adds without tensor cores.
#include "attention.cuh"
#include "attention_products.cuh"

void es_attention_stats(es_stream *s, const es_attn *a, const float *q, const float *k, const float *v, const float *dout, float *logsum,
                        float *delta);

enum { QUERIES = 8, KEYS = 8, TURN = 32 /* rows of queries that a block of keys takes at once */ };

// What score and probability of a pair give: ds / d(q.k) and p.
static __device__ __forceinline__ float score_gradient(const es_attend &a, float dot, float dp, float logsum, float delta, float *prob)
{
    const float s = es_score(a, dot), p = expf(s - logsum);
    *prob = p;
    return a.scale * p * (dp - delta) * (a.cap > 0 ? 1 - s / a.cap * (s / a.cap) : 1);
}

// Grid: rows of queries / QUERIES, key-value heads.
template <int EACH>
static __global__ void queries_back(es_attend a, int T, const float *q, const float *k, const float *v, const float *dout, const float *logsum,
                                    const float *delta, float *dq)
{
    ES_SHARED(float, qs);             // [QUERIES][D]
    const int D = a.D, threads = blockDim.x, row0 = blockIdx.x * QUERIES, rows = T * a.group, head0 = blockIdx.y * a.group;
    float *gs = qs + QUERIES * D;     // [QUERIES][D]: dout
    float *ds = gs + QUERIES * D;     // [QUERIES][ES_POSITIONS]
    const int last = row0 + QUERIES < rows ? row0 + QUERIES - 1 : rows - 1, end = last / a.group + 1;
    const size_t step = (size_t)a.n_kv * D;
    k += (size_t)blockIdx.y * D;
    v += (size_t)blockIdx.y * D;
    for (int e = threadIdx.x; e < QUERIES * D; e += threads) {
        const int row = row0 + e / D;
        const size_t at = ((size_t)(row / a.group) * a.n_head + head0 + row % a.group) * D + e % D;
        qs[e] = row < rows ? q[at] : 0;
        gs[e] = row < rows ? dout[at] : 0;
    }
    float sum[EACH][QUERIES] = {};
    __syncthreads();
    for (int p0 = es_first_seen(a, row0 / a.group) / ES_POSITIONS * ES_POSITIONS; p0 < end; p0 += ES_POSITIONS) {
        for (int j = threadIdx.x / ES_LANES; j < ES_POSITIONS; j += threads / ES_LANES) {
            const int p = p0 + j;
            float dot[QUERIES], dp[QUERIES];
            es_dots<QUERIES>(qs, k + (size_t)p * step, D, p < end, dot);
            es_dots<QUERIES>(gs, v + (size_t)p * step, D, p < end, dp);
            if (threadIdx.x % ES_LANES == 0)
#pragma unroll
                for (int r = 0; r < QUERIES; r++) {
                    const int row = row0 + r, pos = row / a.group;
                    const bool seen = row < rows && p <= pos && p >= es_first_seen(a, pos);
                    const size_t at = (size_t)pos * a.n_head + head0 + row % a.group;
                    float prob;
                    ds[r * ES_POSITIONS + j] = seen ? score_gradient(a, dot[r], dp[r], logsum[at], delta[at], &prob) : 0;
                }
        }
        __syncthreads();
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            const int d = threadIdx.x + e * threads;
            if (d >= D)
                continue;
            for (int j = 0; j < ES_POSITIONS && p0 + j < end; j++) {
                const float x = k[(size_t)(p0 + j) * step + d];
#pragma unroll
                for (int r = 0; r < QUERIES; r++)
                    sum[e][r] += ds[r * ES_POSITIONS + j] * x;
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        const int d = threadIdx.x + e * threads;
#pragma unroll
        for (int r = 0; r < QUERIES; r++) {
            const int row = row0 + r;
            if (d < D && row < rows)
                dq[((size_t)(row / a.group) * a.n_head + head0 + row % a.group) * D + d] = sum[e][r];
        }
    }
}

// Grid: T / KEYS, key-value heads. The keys' rows lie in shared memory; all query rows that see one of them pass by.
template <int EACH>
static __global__ void keys_back(es_attend a, int T, const float *q, const float *k, const float *v, const float *dout, const float *logsum,
                                 const float *delta, float *dk, float *dv)
{
    ES_SHARED(float, ks);            // [KEYS][D]
    const int D = a.D, threads = blockDim.x, key0 = blockIdx.x * KEYS, head0 = blockIdx.y * a.group;
    float *vs = ks + KEYS * D;       // [KEYS][D]
    float *ds = vs + KEYS * D;       // [TURN][KEYS]
    float *ps = ds + TURN * KEYS;    // [TURN][KEYS]
    const size_t step = (size_t)a.n_kv * D, head = (size_t)blockIdx.y * D;
    for (int e = threadIdx.x; e < KEYS * D; e += threads) {
        const int key = key0 + e / D;
        const size_t at = (size_t)key * step + head + e % D;
        ks[e] = key < T ? k[at] : 0;
        vs[e] = key < T ? v[at] : 0;
    }
    // tokens that see one of the keys: from the first key's on; a window ends behind the last key's
    const int last = a.window > 0 && key0 + KEYS - 1 + a.window < T ? key0 + KEYS - 1 + a.window : T, rows = last * a.group;
    float sum_k[EACH][KEYS] = {}, sum_v[EACH][KEYS] = {};
    __syncthreads();
    for (int row0 = key0 * a.group; row0 < rows; row0 += TURN) {
        for (int i = threadIdx.x / ES_LANES; i < TURN; i += threads / ES_LANES) {
            const int row = row0 + i, pos = row / a.group;
            const size_t at = (size_t)pos * a.n_head + head0 + row % a.group;
            float dot[KEYS], dp[KEYS];
            es_dots<KEYS>(ks, q + at * D, D, row < rows, dot);
            es_dots<KEYS>(vs, dout + at * D, D, row < rows, dp);
            if (threadIdx.x % ES_LANES == 0)
#pragma unroll
                for (int j = 0; j < KEYS; j++) {
                    const int p = key0 + j;
                    float prob = 0, slope = 0;
                    if (row < rows && p < T && p <= pos && p >= es_first_seen(a, pos))
                        slope = score_gradient(a, dot[j], dp[j], logsum[at], delta[at], &prob);
                    ds[i * KEYS + j] = slope;
                    ps[i * KEYS + j] = prob;
                }
        }
        __syncthreads();
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            const int d = threadIdx.x + e * threads;
            if (d >= D)
                continue;
            for (int i = 0; i < TURN && row0 + i < rows; i++) {
                const int row = row0 + i;
                const size_t at = ((size_t)(row / a.group) * a.n_head + head0 + row % a.group) * D + d;
                const float x = q[at], g = dout[at];
#pragma unroll
                for (int j = 0; j < KEYS; j++) {
                    sum_k[e][j] += ds[i * KEYS + j] * x;
                    sum_v[e][j] += ps[i * KEYS + j] * g;
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        const int d = threadIdx.x + e * threads;
#pragma unroll
        for (int j = 0; j < KEYS; j++)
            if (d < D && key0 + j < T) {
                const size_t at = (size_t)(key0 + j) * step + head + d;
                dk[at] = sum_k[e][j];
                dv[at] = sum_v[e][j];
            }
    }
}

template <int EACH>
static void start(es_stream *s, const es_attn *a, const float *q, const float *k, const float *v, const float *dout, float *dq, float *dk, float *dv)
{
    const es_attend shape = es_attend_of(a);
    const int threads = es_attend_threads(a->head_dim), D = a->head_dim;
    float *logsum = (float *)s->work, *delta = logsum + (size_t)a->T * a->n_head;
    es_attention_stats(s, a, q, k, v, dout, logsum, delta);
    dim3 by_query(es_ceil_div((size_t)a->T * shape.group, QUERIES), a->n_kv), by_key(es_ceil_div(a->T, KEYS), a->n_kv);
    ES_LAUNCH(s, (queries_back<EACH>), by_query, threads, QUERIES * (2 * D + ES_POSITIONS) * sizeof(float), shape, a->T, q, k, v, dout,
              (const float *)logsum, (const float *)delta, dq);
    ES_LAUNCH(s, (keys_back<EACH>), by_key, threads, (2 * KEYS * D + 2 * TURN * KEYS) * sizeof(float), shape, a->T, q, k, v, dout,
              (const float *)logsum, (const float *)delta, dk, dv);
}

static void attention_back(es_pool *p, const es_attn *a, const float *q, const float *k, const float *v, const float *dout, float *dq, float *dk,
                           float *dv)
{
    es_stream *s = es_stream_of(p);
    if (a->T < 1 || !es_attend_can(s, a) || !es_stream_ready(s) || es_attention_back_by_products(s, a, q, k, v, dout, dq, dk, dv))
        return;
    if (2 * sizeof(float) * (size_t)a->T * a->n_head > s->o.workspace) {
        es_stream_fail(s, ES_ERR_LIMIT, "attention over %d tokens and %d heads wants a larger workspace than %zu bytes", a->T, a->n_head,
                       s->o.workspace);
        return;
    }
    (a->head_dim <= 256 ? start<1> : start<2>)(s, a, q, k, v, dout, dq, dk, dv);
}

void es_attention_back_ops(es_kernels *k)
{
    k->attention_back = attention_back;
}
