// Products with a weight of one type: for few tokens by reading the blocks once, for many by writing tiles of it out. The three files
// matmul_*.cu make them for their types, so that they are compiled side by side; matmul.cu chooses.
#ifndef ES_MATMUL_CUH
#define ES_MATMUL_CUH

#include "device.cuh"

enum { ES_SET = ES_MATMULS };
struct es_rows_set { // weights of one type and width that read one x
    const uint8_t *w[ES_SET];
    float *y[ES_SET];
    int n_out[ES_SET], count;
};

typedef struct es_type_ops {
    // y[i][T, n_out[i]] (+)= x[T, K] w[i]^T for T <= ES_CUDA_ROWS.
    void (*rows)(es_stream *s, const es_rows_set *set, const float *x, int K, int T, bool accumulate);
    // Rows [0, rows) of blocks, K elements each, as floats or bfloat16.
    void (*to_f32)(es_stream *s, const void *w, float *out, int rows, int K);
    void (*to_bf16)(es_stream *s, const void *w, __nv_bfloat16 *out, int rows, int K);
    // out[T, K] = scale * row ids[t] of w.
    void (*embed)(es_stream *s, const void *w, const int32_t *ids, int T, int K, float scale, float *out);
} es_type_ops;
const es_type_ops *es_type_ops_plain(int type); // NULL: not of this file
const es_type_ops *es_type_ops_nibble(int type);
const es_type_ops *es_type_ops_k(int type);

#ifdef ES_MATMUL_KERNELS
#include "blocks.cuh"

namespace {

enum { WARPS = 4, ROWS = 2 /* of a weight, for a warp: it reads x once for both */ };

__device__ __forceinline__ float4 four(const float *x, bool aligned)
{
    return aligned ? *(const float4 *)x : make_float4(x[0], x[1], x[2], x[3]);
}

// A warp takes two rows of a weight, or a share of their length when there are few rows (split: the warps of a block have the same two
// rows). TT: tokens. The limit is reading the weight once; x comes from the first cache.
template <int TYPE, int TT>
__global__ void __launch_bounds__(WARPS * 32) rows_few(es_rows_set set, const float *x, int K, size_t row_bytes, bool split, bool accumulate)
{
    typedef es_blocks<TYPE> B;
    ES_SHARED(float, part); // [WARPS][TT * ROWS], when split
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int pair = split ? blockIdx.x : blockIdx.x * WARPS + warp, which = 0;
    while (which < set.count && pair >= (set.n_out[which] + ROWS - 1) / ROWS)
        pair -= (set.n_out[which++] + ROWS - 1) / ROWS;
    if (which == set.count) // only where a block is not split: no barrier follows
        return;
    const int n = pair * ROWS, n_out = set.n_out[which];
    const bool two = n + 1 < n_out, aligned = K % 4 == 0 && (size_t)x % 16 == 0;
    const uint8_t *row0 = set.w[which] + (size_t)n * row_bytes, *row1 = two ? row0 + row_bytes : row0;
    float sum[ROWS][TT] = {};
    for (int c = lane + (split ? 32 * warp : 0); c < K / 8; c += split ? 32 * WARPS : 32) {
        es_chunk a, b;
        B::chunk(row0, c, &a);
        B::chunk(row1, c, &b);
#pragma unroll
        for (int t = 0; t < TT; t++) {
            const float4 u = four(x + (size_t)t * K + a.e0, aligned), v = four(x + (size_t)t * K + a.e1, aligned);
            sum[0][t] += a.w[0] * u.x + a.w[1] * u.y + a.w[2] * u.z + a.w[3] * u.w + a.w[4] * v.x + a.w[5] * v.y + a.w[6] * v.z + a.w[7] * v.w;
            sum[1][t] += b.w[0] * u.x + b.w[1] * u.y + b.w[2] * u.z + b.w[3] * u.w + b.w[4] * v.x + b.w[5] * v.y + b.w[6] * v.z + b.w[7] * v.w;
        }
    }
    if (B::PLAIN && (!split || warp == 0))
        for (int i = K / 8 * 8 + lane; i < K; i += 32)
            for (int t = 0; t < TT; t++) {
                sum[0][t] += B::element(row0, i) * x[(size_t)t * K + i];
                sum[1][t] += B::element(row1, i) * x[(size_t)t * K + i];
            }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int t = 0; t < TT; t++)
            sum[r][t] = es_warp_sum(sum[r][t]);
    float *y = set.y[which] + n;
    if (!split) {
        if (lane == 0)
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int t = 0; t < TT; t++)
                    if (r == 0 || two)
                        y[(size_t)t * n_out + r] = sum[r][t] + (accumulate ? y[(size_t)t * n_out + r] : 0);
        return;
    }
    if (lane == 0)
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int t = 0; t < TT; t++)
                part[warp * TT * ROWS + t * ROWS + r] = sum[r][t];
    __syncthreads();
    if (threadIdx.x < TT * ROWS) {
        const int t = threadIdx.x / ROWS, r = threadIdx.x % ROWS;
        float all = 0;
        for (int w = 0; w < WARPS; w++)
            all += part[w * TT * ROWS + threadIdx.x];
        if (r == 0 || two)
            y[(size_t)t * n_out + r] = all + (accumulate ? y[(size_t)t * n_out + r] : 0);
    }
}

template <class B> size_t bytes_of_row(int K)
{
    return (size_t)K * B::BYTES / B::BLOCK;
}

template <int TYPE, int TT> void rows_start(es_stream *s, const es_rows_set *set, const float *x, int K, bool accumulate)
{
    int pairs = 0;
    for (int i = 0; i < set->count; i++)
        pairs += (set->n_out[i] + ROWS - 1) / ROWS;
    if (!pairs)
        return;
    const bool split = pairs < s->card->sms * 8 && K >= 512; // too few warps to fill the card
    const size_t row_bytes = bytes_of_row<es_blocks<TYPE>>(K);
    ES_LAUNCH(s, (rows_few<TYPE, TT>), split ? pairs : es_ceil_div(pairs, WARPS), WARPS * 32, WARPS * TT * ROWS * sizeof(float), *set, x, K,
              row_bytes, split, accumulate);
}

template <int TYPE> void rows(es_stream *s, const es_rows_set *set, const float *x, int K, int T, bool accumulate)
{
    es_rows_set at = *set;
    for (int t = 0; t < T;) {
        const int step = T - t >= 8 ? 8 : T - t >= 4 ? 4 : T - t >= 2 ? 2 : 1;
        (step == 8 ? rows_start<TYPE, 8> : step == 4 ? rows_start<TYPE, 4> : step == 2 ? rows_start<TYPE, 2> : rows_start<TYPE, 1>)(s, &at, x,
                                                                                                                               K, accumulate);
        t += step;
        x += (size_t)step * K;
        for (int i = 0; i < at.count; i++)
            at.y[i] += (size_t)step * at.n_out[i];
    }
}

__device__ __forceinline__ void put(float *out, float x) { *out = x; }
__device__ __forceinline__ void put(__nv_bfloat16 *out, float x) { *out = __float2bfloat16(x); }

// ids NULL: rows [0, rows); else the rows ids[].
template <int TYPE, class OUT> __global__ void widen(const uint8_t *w, const int32_t *ids, OUT *out, size_t rows_, int K, size_t row_bytes, float scale)
{
    typedef es_blocks<TYPE> B;
    const int chunks = B::PLAIN ? (K + 7) / 8 : K / 8;
    ES_EACH(e, rows_ * chunks)
    {
        const size_t r = e / chunks;
        const int c = (int)(e % chunks);
        const uint8_t *row = w + (ids ? (size_t)ids[r] : r) * row_bytes;
        OUT *to = out + r * K;
        if (B::PLAIN && 8 * c + 8 > K) {
            for (int i = 8 * c; i < K; i++)
                put(to + i, scale * B::element(row, i));
            continue;
        }
        es_chunk a;
        B::chunk(row, c, &a);
        for (int i = 0; i < 4; i++) {
            put(to + a.e0 + i, scale * a.w[i]);
            put(to + a.e1 + i, scale * a.w[4 + i]);
        }
    }
}

template <int TYPE, class OUT> void widen_start(es_stream *s, const void *w, const int32_t *ids, OUT *out, int n, int K, float scale)
{
    const size_t chunks = (size_t)n * ((K + 7) / 8);
    if (chunks)
        ES_LAUNCH(s, (widen<TYPE, OUT>), es_grid_for(s, chunks, 256), 256, 0, (const uint8_t *)w, ids, out, (size_t)n, K,
                  bytes_of_row<es_blocks<TYPE>>(K), scale);
}

template <int TYPE> void to_f32(es_stream *s, const void *w, float *out, int n, int K)
{
    widen_start<TYPE>(s, w, NULL, out, n, K, 1);
}

template <int TYPE> void to_bf16(es_stream *s, const void *w, __nv_bfloat16 *out, int n, int K)
{
    widen_start<TYPE>(s, w, NULL, out, n, K, 1);
}

template <int TYPE> void embed_rows(es_stream *s, const void *w, const int32_t *ids, int T, int K, float scale, float *out)
{
    widen_start<TYPE>(s, w, ids, out, T, K, scale);
}

} // namespace

#define ES_TYPE_OPS(TYPE) {rows<TYPE>, to_f32<TYPE>, to_bf16<TYPE>, embed_rows<TYPE>}
#endif
#endif
