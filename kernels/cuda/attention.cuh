// What attention's two directions share. The work is cut by key-value heads: the query heads of a group read the same keys, so a block takes
// R rows of queries, row i being head i % group of the group for token i / group, and reads each key and value once for all of them.
// Scores live in shared memory a tile at a time; no T x T matrix is in memory.
#ifndef ES_ATTENTION_CUH
#define ES_ATTENTION_CUH

#include "device.cuh"

enum { ES_MAX_D = 512, ES_POSITIONS = 64 /* of a tile */, ES_LANES = 8 /* that make one score */ };

struct es_attend { // a shape, without the sequence's own
    int n_head, n_kv, D, group, window;
    float scale, cap;
};

static inline es_attend es_attend_of(const es_attn *a)
{
    return es_attend{a->n_head, a->n_kv, a->head_dim, a->n_head / a->n_kv, a->window, a->scale, a->cap};
}

// A thread has one element of a head's D, or two when D is above 256.
static inline int es_attend_threads(int D)
{
    return D <= 64 ? 64 : D <= 128 ? 128 : 256;
}

static inline bool es_attend_can(es_stream *s, const es_attn *a)
{
    if (a->head_dim >= 1 && a->head_dim <= ES_MAX_D)
        return true;
    es_stream_fail(s, ES_ERR_LIMIT, "heads of %d numbers: at most %d go on a card", a->head_dim, (int)ES_MAX_D);
    return false;
}

static __device__ __forceinline__ int es_first_seen(const es_attend &a, int pos)
{
    return a.window > 0 && pos >= a.window ? pos + 1 - a.window : 0;
}

static __device__ __forceinline__ float4 es_load4(const float *p) { return *(const float4 *)p; }
static __device__ __forceinline__ float4 es_load4(const __half *p)
{
    union { uint2 word; __half h[4]; } u;
    u.word = *(const uint2 *)p;
    return make_float4(__half2float(u.h[0]), __half2float(u.h[1]), __half2float(u.h[2]), __half2float(u.h[3]));
}

// Eight numbers of a key or a value in half precision, as they lie: 16 bytes, read at once.
struct es_eight { uint4 word; };
static __device__ __forceinline__ es_eight es_load8(const __half *p) { return es_eight{*(const uint4 *)p}; }
static __device__ __forceinline__ float es_number(const es_eight &x, int i) // i: known when it is compiled
{
    const unsigned word = i < 2 ? x.word.x : i < 4 ? x.word.y : i < 6 ? x.word.z : x.word.w;
    union { unsigned short bits; __half half; } u;
    u.bits = (unsigned short)(i % 2 ? word >> 16 : word);
    return __half2float(u.half);
}

// sum[r] = q[r] . k for N rows q[r * D] in shared memory, by the 8 lanes of a group; every lane of the warp must come here.
template <int N, class KV> static __device__ __forceinline__ void es_dots(const float *q, const KV *k, int D, bool inside, float *sum)
{
    const int sub = threadIdx.x % ES_LANES;
#pragma unroll
    for (int r = 0; r < N; r++)
        sum[r] = 0;
    if (inside && D % 32 == 0) {
        for (int i = 4 * sub; i < D; i += 4 * ES_LANES) {
            const float4 y = es_load4(k + i);
#pragma unroll
            for (int r = 0; r < N; r++) {
                const float4 x = *(const float4 *)(q + r * D + i);
                sum[r] += x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
            }
        }
    } else if (inside) {
        for (int i = sub; i < D; i += ES_LANES) {
            const float y = es_as_float(k[i]);
#pragma unroll
            for (int r = 0; r < N; r++)
                sum[r] += q[r * D + i] * y;
        }
    }
#pragma unroll
    for (int r = 0; r < N; r++)
        for (int step = ES_LANES / 2; step > 0; step >>= 1)
            sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], step);
}

static __device__ __forceinline__ float es_score(const es_attend &a, float dot)
{
    const float s = a.scale * dot;
    return a.cap > 0 ? a.cap * tanhf(s / a.cap) : s;
}

#endif
