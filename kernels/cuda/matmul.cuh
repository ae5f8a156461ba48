// Products with a weight of one type: for few tokens by reading the blocks once, for many by writing tiles of it out. The three files
// matmul_*.cu make them for their types, so that they are compiled side by side; matmul.cu chooses.
#ifndef ES_MATMUL_CUH
#define ES_MATMUL_CUH

#include "device.cuh"

enum { ES_SET = ES_MATMULS };
enum es_glu { ES_GLU_NONE, ES_GLU_SILU, ES_GLU_GELU };
struct es_rows_set { // weights of one type and width that read one x
    const uint8_t *w[ES_SET];
    float *y[ES_SET];
    int n_out[ES_SET], count;
    const float *norm; // [K]: of one token only: it is rmsnorm(x), with these weights, that is read; NULL: x itself
    float eps;
    es_glu glu; // of one token and two weights only: y[0] = glu(w[0] x) (w[1] x)
};

// Activations of T tokens as integers of 16 bits, by runs of 32 with a scale each: x = scale (256 high + low), off by at most 2^-16 of a run's largest. A run that
// is not all finite has a scale of NaN.
struct es_split16 {
    const int8_t *high, *low; // [T, K]
    const float4 *run;        // [T, K / 32]: the scale; the sums of the first and of the last 16
};

typedef struct es_type_ops {
    // y[i][T, n_out[i]] (+)= x[T, K] w[i]^T for T <= ES_CUDA_ROWS.
    void (*rows)(es_stream *s, const es_rows_set *set, const float *x, int K, int T, bool accumulate);
    // The same with activations that split16 (matmul.cu) has made of x, where K is whole units; NULL: not for this type.
    void (*units)(es_stream *s, const es_rows_set *set, const es_split16 *x, int K, int T, bool accumulate);
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
#include "glu.cuh"
#include "units.cuh"

namespace {

enum { WARPS = 4 };

__device__ __forceinline__ float4 four(const float *x, bool aligned)
{
    return aligned ? *(const float4 *)x : make_float4(x[0], x[1], x[2], x[3]);
}

// Rows of a set are numbered one weight behind another, R of them a group, a group of one weight only.
template <int R> __host__ __device__ __forceinline__ int groups_of(int n_out)
{
    return (n_out + R - 1) / R;
}

// What a warp has: `have` rows, at most R, from row n of a weight on, whose results go to y; of gated units one row of each weight.
struct es_rows {
    float *y;
    int n, n_out, have;
};

// Of a group; false: behind the last one. Members of the set are taken by numbers known when this is compiled: by others, all of it would be copied to memory first.
template <int R> __device__ __forceinline__ bool find_rows(const es_rows_set &set, int group, size_t row_bytes, es_rows *out, const uint8_t **row)
{
    if (R == 2 && set.glu) {
        *out = es_rows{set.y[0], group, set.n_out[0], 2};
        row[0] = set.w[0] + (size_t)group * row_bytes;
        row[R - 1] = set.w[1] + (size_t)group * row_bytes;
        return group < set.n_out[0];
    }
    const uint8_t *w = NULL;
    *out = es_rows{NULL, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < ES_SET; i++) {
        const int groups = i < set.count ? groups_of<R>(set.n_out[i]) : 0;
        if (!w && group < groups) {
            w = set.w[i];
            *out = es_rows{set.y[i], group * R, set.n_out[i], set.n_out[i] - group * R < R ? set.n_out[i] - group * R : R};
        }
        group -= w ? 0 : groups;
    }
#pragma unroll
    for (int r = 0; r < R; r++)
        row[r] = w + (size_t)(out->n + (r < out->have ? r : 0)) * row_bytes;
    return w != NULL;
}

// Puts the sums of R rows for token t where they belong.
template <int R> __device__ __forceinline__ void put_rows(const es_rows_set &set, const es_rows &at, int t, const float *sum, bool accumulate)
{
    float *y = at.y + (size_t)t * at.n_out + at.n;
    if (R == 2 && set.glu) {
        float slope;
        *y = (set.glu == ES_GLU_GELU ? es_gate_of<true>(sum[0], &slope) : es_gate_of<false>(sum[0], &slope)) * sum[R - 1];
        return;
    }
#pragma unroll
    for (int r = 0; r < R; r++)
        if (r < at.have)
            y[r] = sum[r] + (accumulate ? y[r] : 0);
}

// square: of x, where it is to be normed.
template <int TT, int R>
__device__ __forceinline__ void add_chunks(float (*sum)[R], const es_chunk *w, const float *x, int K, bool aligned, const float *norm, float *square)
{
#pragma unroll
    for (int t = 0; t < TT; t++) {
        float4 u = four(x + (size_t)t * K + w[0].e0, aligned), v = four(x + (size_t)t * K + w[0].e1, aligned);
        if (TT == 1 && norm) {
            const float4 nu = four(norm + w[0].e0, aligned), nv = four(norm + w[0].e1, aligned);
            *square += u.x * u.x + u.y * u.y + u.z * u.z + u.w * u.w + v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
            u.x *= nu.x, u.y *= nu.y, u.z *= nu.z, u.w *= nu.w;
            v.x *= nv.x, v.y *= nv.y, v.z *= nv.z, v.w *= nv.w;
        }
#pragma unroll
        for (int r = 0; r < R; r++)
            sum[t][r] += w[r].w[0] * u.x + w[r].w[1] * u.y + w[r].w[2] * u.z + w[r].w[3] * u.w + w[r].w[4] * v.x + w[r].w[5] * v.y + w[r].w[6] * v.z +
                         w[r].w[7] * v.w;
    }
}

// A warp takes R rows of a weight, or a share of their length when there are few rows (split: the warps of a block have the same R
// rows). TT: tokens. The limit is reading the weight once; x comes from the first cache, once for the R rows.
template <int TYPE, int TT, int R>
__global__ void __launch_bounds__(WARPS * 32) rows_few(es_rows_set set, const float *x, int K, size_t row_bytes, bool split, bool accumulate)
{
    es_turn();
    typedef es_blocks<TYPE> B;
    ES_SHARED(float, part); // [WARPS][TT * R + 1], when split
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, stride = split ? 32 * WARPS : 32;
    const uint8_t *row[R];
    es_rows at;
    if (!find_rows<R>(set, split ? blockIdx.x : blockIdx.x * WARPS + warp, row_bytes, &at, row))
        return; // only where a block is not split: no barrier follows
    const bool aligned = K % 4 == 0 && (size_t)x % 16 == 0 && (size_t)set.norm % 16 == 0;
    float sum[TT][R] = {}, square = 0;
    int c = lane + (split ? 32 * warp : 0);
    if (R * TT <= 8) // two turns at once, so that the second's loads do not wait for the first's sums
        for (; c + stride < K / 8; c += 2 * stride) {
            es_chunk a[R], b[R];
#pragma unroll
            for (int r = 0; r < R; r++) {
                B::chunk(row[r], c, &a[r]);
                B::chunk(row[r], c + stride, &b[r]);
            }
            add_chunks<TT, R>(sum, a, x, K, aligned, set.norm, &square);
            add_chunks<TT, R>(sum, b, x, K, aligned, set.norm, &square);
        }
    for (; c < K / 8; c += stride) {
        es_chunk a[R];
#pragma unroll
        for (int r = 0; r < R; r++)
            B::chunk(row[r], c, &a[r]);
        add_chunks<TT, R>(sum, a, x, K, aligned, set.norm, &square);
    }
    if (B::PLAIN && (!split || warp == 0))
        for (int i = K / 8 * 8 + lane; i < K; i += 32)
            for (int t = 0; t < TT; t++) {
                float v = x[(size_t)t * K + i];
                if (TT == 1 && set.norm) {
                    square += v * v;
                    v *= set.norm[i];
                }
#pragma unroll
                for (int r = 0; r < R; r++)
                    sum[t][r] += B::element(row[r], i) * v;
            }
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int t = 0; t < TT; t++)
            sum[t][r] = es_warp_sum(sum[t][r]);
    if (TT == 1 && set.norm)
        square = es_warp_sum(square);
    if (split) {
        enum { WIDE = TT * R + 1 };
        if (lane == 0) {
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int t = 0; t < TT; t++)
                    part[warp * WIDE + t * R + r] = sum[t][r];
            part[warp * WIDE + TT * R] = square;
        }
        __syncthreads();
        if (threadIdx.x != 0)
            return;
        square = 0;
        for (int w = 0; w < WARPS; w++)
            square += part[w * WIDE + TT * R];
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int t = 0; t < TT; t++) {
                sum[t][r] = 0;
                for (int w = 0; w < WARPS; w++)
                    sum[t][r] += part[w * WIDE + t * R + r];
            }
    }
    if (lane != 0)
        return;
    const float factor = TT == 1 && set.norm ? 1 / sqrtf(square / K + set.eps) : 1;
#pragma unroll
    for (int t = 0; t < TT; t++) {
#pragma unroll
        for (int r = 0; r < R; r++)
            sum[t][r] *= factor;
        put_rows<R>(set, at, t, sum[t], accumulate);
    }
}

// The same with activations in integers: a lane takes 64 elements of each row in its turn. Sums of a run are exact in 32 bits (32 * 127 * 32768 < 2^31).
template <int TYPE, int TT, int R>
__global__ void __launch_bounds__(WARPS * 32) rows_units(es_rows_set set, es_split16 x, int K, size_t row_bytes, bool accumulate)
{
    es_turn();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint8_t *row[R];
    es_rows at;
    if (!find_rows<R>(set, blockIdx.x * WARPS + warp, row_bytes, &at, row))
        return;
    float sum[TT][R] = {};
#pragma unroll 2
    for (int u = lane; u < K / ES_UNIT; u += 32) {
        es_unit w[R];
#pragma unroll
        for (int r = 0; r < R; r++)
            es_units<TYPE>::unit(row[r], u, &w[r]);
#pragma unroll
        for (int t = 0; t < TT; t++)
#pragma unroll
            for (int i = 0; i < 2; i++) { // a run of 32
                const size_t run_at = (size_t)t * (K / 32) + w[0].run[i];
                uint32_t high[8], low[8];
                es_words16((const uint8_t *)x.high + 32 * run_at, high);
                es_words16((const uint8_t *)x.low + 32 * run_at, low);
                const float4 run = x.run[run_at];
#pragma unroll
                for (int r = 0; r < R; r++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        int h = 0, l = 0;
#pragma unroll
                        for (int j = 4 * half; j < 4 * half + 4; j++) {
                            h = __dp4a((int)w[r].q[8 * i + j], (int)high[j], h);
                            l = __dp4a((int)w[r].q[8 * i + j], (int)low[j], l);
                        }
                        sum[t][r] += w[r].d[2 * i + half] * run.x * (float)(256 * h + l) + w[r].m[2 * i + half] * (half ? run.z : run.y);
                    }
            }
    }
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int t = 0; t < TT; t++)
            sum[t][r] = es_warp_sum(sum[t][r]);
    if (lane != 0)
        return;
#pragma unroll
    for (int t = 0; t < TT; t++)
        put_rows<R>(set, at, t, sum[t], accumulate);
}

template <class B> size_t bytes_of_row(int K)
{
    return (size_t)K * B::BYTES / B::BLOCK;
}

template <int R> int groups_in(const es_rows_set *set)
{
    int groups = 0;
    if (set->glu)
        return set->n_out[0];
    for (int i = 0; i < set->count; i++)
        groups += groups_of<R>(set->n_out[i]);
    return groups;
}

template <int TYPE, int TT> void rows_start(es_stream *s, const es_rows_set *set, const float *x, int K, bool accumulate)
{
    enum { R = TT >= 4 ? 4 : 2 };
    const int groups = groups_in<R>(set);
    if (!groups)
        return;
    const bool split = groups < s->card->sms * 8 && K >= 512; // too few warps to fill the card
    const size_t row_bytes = bytes_of_row<es_blocks<TYPE>>(K);
    ES_LAUNCH_SOON(s, (rows_few<TYPE, TT, R>), split ? groups : es_ceil_div(groups, WARPS), WARPS * 32, WARPS * (TT * R + 1) * sizeof(float), *set, x, K,
                   row_bytes, split, accumulate);
}

// The next tokens of T that go in one launch, and what is behind them.
static inline int step_of(int left)
{
    return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

static inline void step_on(es_rows_set *set, int step)
{
    for (int i = 0; i < set->count; i++)
        set->y[i] += (size_t)step * set->n_out[i];
}

template <int TYPE> void rows(es_stream *s, const es_rows_set *set, const float *x, int K, int T, bool accumulate)
{
    es_rows_set at = *set;
    for (int t = 0, step; t < T; t += step) {
        step = step_of(T - t);
        (step == 8 ? rows_start<TYPE, 8> : step == 4 ? rows_start<TYPE, 4> : step == 2 ? rows_start<TYPE, 2> : rows_start<TYPE, 1>)(
            s, &at, x + (size_t)t * K, K, accumulate);
        step_on(&at, step);
    }
}

template <int TYPE, int TT, int R> void units_start(es_stream *s, const es_rows_set *set, const es_split16 *x, int K, bool accumulate)
{
    const int groups = groups_in<R>(set);
    if (groups)
        ES_LAUNCH_SOON(s, (rows_units<TYPE, TT, R>), es_ceil_div(groups, WARPS), WARPS * 32, 0, *set, *x, K, bytes_of_row<es_blocks<TYPE>>(K), accumulate);
}

template <int TYPE> void units(es_stream *s, const es_rows_set *set, const es_split16 *x, int K, int T, bool accumulate)
{
    es_rows_set at = *set;
    for (int t = 0, step; t < T; t += step) {
        const es_split16 xt = {x->high + (size_t)t * K, x->low + (size_t)t * K, x->run + (size_t)t * (K / 32)};
        step = step_of(T - t);
        const bool one = !set->glu && groups_in<2>(set) < s->card->sms * 16; // few rows: a warp for each
        if (step == 8)
            units_start<TYPE, 8, 2>(s, &at, &xt, K, accumulate);
        else if (step == 4)
            units_start<TYPE, 4, 2>(s, &at, &xt, K, accumulate);
        else if (step == 2)
            units_start<TYPE, 2, 2>(s, &at, &xt, K, accumulate);
        else if (one)
            units_start<TYPE, 1, 1>(s, &at, &xt, K, accumulate);
        else
            units_start<TYPE, 1, 2>(s, &at, &xt, K, accumulate);
        step_on(&at, step);
    }
}

template <int TYPE, bool THERE> struct units_of {
    static constexpr void (*fn)(es_stream *, const es_rows_set *, const es_split16 *, int, int, bool) = units<TYPE>;
};
template <int TYPE> struct units_of<TYPE, false> {
    static constexpr void (*fn)(es_stream *, const es_rows_set *, const es_split16 *, int, int, bool) = NULL;
};

__device__ __forceinline__ void put(float *out, float x) { *out = x; }
__device__ __forceinline__ void put(__nv_bfloat16 *out, float x) { *out = __float2bfloat16(x); }

// ids NULL: rows [0, rows); else the rows ids[].
template <int TYPE, class OUT> __global__ void widen(const uint8_t *w, const int32_t *ids, OUT *out, size_t rows_, int K, size_t row_bytes, float scale)
{
    es_turn();
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
        ES_LAUNCH_SOON(s, (widen<TYPE, OUT>), es_grid_for(s, chunks, 256), 256, 0, (const uint8_t *)w, ids, out, (size_t)n, K,
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

#define ES_TYPE_OPS(TYPE) {rows<TYPE>, units_of<TYPE, es_units<TYPE>::THERE != 0>::fn, to_f32<TYPE>, to_bf16<TYPE>, embed_rows<TYPE>}
#endif
#endif
