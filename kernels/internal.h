/* What the files of kernels/ share and nobody else sees (the op test aside). */
#ifndef ES_KERNELS_INTERNAL_H
#define ES_KERNELS_INTERNAL_H

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

/* Scratch of one part of a pool: fixed, so that no op allocates and none can fail. Each op cuts its tiles to fit. */
enum { ES_SCRATCH = 2 << 20 };
/* 64-byte aligned, ES_SCRATCH bytes, uninitialised. Only part `part` of the running job may touch it, or the parts agree on who
 * writes where; the caller, and the parts of its next job, may read it after es_pool_run has returned. */
void *es_pool_scratch(es_pool *p, int part);

/* ---- what the CPU table asks of an instruction set --------------------------------------------------------------------- */

/* T rows of activations rounded to integers of 15 bits, per block of 32 elements: x ~ scale * q. The fast products then differ from
 * exact ones by little more than rounding errors. int_x86.h has the order of the pieces. */
typedef struct es_rounded {
    const int16_t *q;    /* [T, quads, 128], quads = K/128 rounded up */
    const float *scales; /* [T, quads, 12]: (scale, scale * sum(q)) of four blocks, and four times scale * sum(second half of q) */
} es_rounded;
enum { ES_ROUND_BLOCK = 32 };

typedef struct es_simd {
    const char *name;
    void (*dequant)(es_type type, const void *src, float *dst, size_t n);

    /* y[t, n] (+)= W[n] . x[t] for rows n in [from, to) and any T (made for a small one); W is read once for a few tokens. */
    void (*rows)(const es_weight *w, int from, int to, const float *x, int T, float *y, bool accumulate);
    /* The same on rounded activations, for few tokens. Types of blocks of 32 or 256 only. */
    void (*rows_rounded)(const es_weight *w, int from, int to, const es_rounded *x, int T, float *y, bool accumulate);
    void (*round)(const float *x, int K, int16_t *q, float *scales);
    /* And for many: `tile` tokens of rounded activations make a tile (of tile_bytes(K); the last may have fewer tokens) and meet
     * panels of `panel` rows of weights, which are made in scratch[panel_bytes(K)], 64-byte aligned as the tiles are.
     * tile is 0, and these and the two above are NULL, where rounding would win nothing. More than most_tokens: BLAS is quicker. */
    int tile, panel, most_tokens;
    size_t (*tile_bytes)(int K), (*panel_bytes)(int K);
    void (*round_tile)(const float *x, int K, int T, void *out);
    void (*rows_panels)(const es_weight *w, int from, int to, const void *tiles, int T, float *y, bool accumulate, void *scratch);

    /* As in the op table, on one thread. */
    void (*rmsnorm)(const float *x, const float *w, float *y, int T, int d, float eps);
    void (*rmsnorm_back)(const float *x, const float *w, const float *dy, float *dx, int T, int d, float eps);
    void (*rope)(float *x, const int *pos, const float *cos_t, const float *sin_t, int T, int n_head, int head_dim, bool neox, bool back);
    void (*swiglu)(const float *gate, const float *up, float *y, size_t n);
    void (*swiglu_back)(const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n);
    void (*geglu)(const float *gate, const float *up, float *y, size_t n);
    void (*geglu_back)(const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n);
    void (*soft_cap)(float *x, size_t n, float cap);
    void (*log_softmax_pick)(const float *logits, const int32_t *target, int T, int V, float *logprob, float *logsum);
    void (*log_softmax_pick_back)(float *logits, const int32_t *target, const float *logsum, const float *dlogprob, int T, int V);

    float (*max)(const float *x, int n); /* n > 0 */
    /* x[i] = exp(x[i] - shift); gives the sum. */
    float (*exp_shift)(float *x, int n, float shift);
    /* ds[i] = p[i] * (dp[i] - sum p dp) * scale, onto dp. */
    void (*softmax_back)(const float *p, float *dp, int n, float scale);
    /* One query token q[n_head, D] and the keys or values of n positions: s[n_head, n] = scale q.k; out[n_head, D] += s v. */
    void (*attend_scores)(const es_attn *a, const float *q, const float *k, int n, float *s);
    void (*attend_values)(const es_attn *a, const float *s, const float *v, int n, float *out);
    /* The same on half precision; and n numbers to it, and rows of n numbers, `stride` apart, from it (to rows of y without gaps). */
    void (*attend_scores_half)(const es_attn *a, const float *q, const uint16_t *k, int n, float *s);
    void (*attend_values_half)(const es_attn *a, const float *s, const uint16_t *v, int n, float *out);
    void (*to_half)(const float *x, uint16_t *y, size_t n);
    void (*from_half)(const uint16_t *x, size_t stride, int rows, int n, float *y);
} es_simd;

/* NULL when the compiler's target or the processor at run time lacks it. */
const es_simd *es_simd_plain(void), *es_simd_avx2(void), *es_simd_avx512(void), *es_simd_neon(void);
/* For tests: makes the CPU table use s from now on; no op may be running. */
void es_kernels_cpu_use(const es_simd *s);
extern const es_simd *es_cpu_simd; /* what the CPU table uses; set once es_kernels_cpu() was called */

/* cpu_attention.c */
void es_cpu_attention(es_pool *p, const es_attn *a, const float *q, const float *k, const float *v, float *out);
void es_cpu_attention_half(es_pool *p, const es_attn *a, int n_seq, const float *q, const uint16_t *const *k, const uint16_t *const *v, float *out);
void es_cpu_to_half(es_pool *p, const float *x, uint16_t *y, size_t n);
void es_cpu_attention_back(es_pool *p, const es_attn *a, const float *q, const float *k, const float *v, const float *dout, float *dq,
                           float *dk, float *dv);

/* host_ops.c: the ops around memory, which are the same for every table of the processor. */
int es_host_alloc(es_pool *p, void **out, size_t bytes, es_error *err);
void es_host_release(es_pool *p, void *memory);
void es_host_copy(es_pool *p, void *to, const void *from, size_t bytes);
void es_host_clear(es_pool *p, void *memory, size_t bytes);
int es_host_sync(es_pool *p, es_error *err);
void es_host_axpy(es_pool *p, float alpha, const float *x, float *y, size_t n);
void es_host_sum_squares(es_pool *p, const float *x, size_t n, double *out);
void es_host_gather_rows(es_pool *p, const float *x, const int32_t *index, int n, int d, float *out);
void es_host_scatter_rows(es_pool *p, const float *x, const int32_t *index, int n, int d, float *out);
void es_host_embed(es_pool *p, const es_weight *w, const int32_t *ids, int T, float scale, float *out);
void es_host_embed_back(es_pool *p, const float *dh, const int32_t *ids, int T, int d, float scale, float *dw, int n_rows);
void es_host_add_vector(es_pool *p, float *h, const int *pos, int min_pos, float scale, const float *v, int T, int d);
void es_host_add_vector_back(es_pool *p, const float *dh, const int *pos, int min_pos, float scale, int T, int d, float *dv);
void es_host_gate(es_pool *p, float *u, const float *bias, const float *threshold, const float *by, const int *pos, int T, int K);
void es_host_gate_back(es_pool *p, float *f, const float *by, float *dp, int T, int K);
void es_host_rmsnorm_weight_back(es_pool *p, const float *x, const float *dy, float *dw, int T, int d, float eps);
void es_host_soft_cap_back(es_pool *p, const float *y, float *dx, size_t n, float cap);
void es_host_top(es_pool *p, const float *x, int n, int k, int32_t *index, float *value, float *logsum);
void es_host_adam(es_pool *p, float *x, const float *g, float *m, float *v, size_t n, float b1, float b2, float rate, float eps, float keep);
#define ES_HOST_OPS                                                                                                                    \
    .alloc = es_host_alloc, .release = es_host_release, .upload = es_host_copy, .download = es_host_copy, .copy = es_host_copy,         \
    .clear = es_host_clear, .sync = es_host_sync, .axpy = es_host_axpy, .sum_squares = es_host_sum_squares, .gather_rows = es_host_gather_rows,                             \
    .scatter_rows = es_host_scatter_rows, .embed = es_host_embed, .embed_back = es_host_embed_back, .add_vector = es_host_add_vector,   \
    .add_vector_back = es_host_add_vector_back, .rmsnorm_weight_back = es_host_rmsnorm_weight_back,                                     \
    .gate = es_host_gate, .gate_back = es_host_gate_back,                                                                               \
    .soft_cap_back = es_host_soft_cap_back, .top = es_host_top, .adam = es_host_adam

/* A pool that stands for a stream of an accelerator: `device` is its, freed by close(device) with the pool. One thread, no scratch. */
int es_pool_open_device(es_pool **out, void *device, void (*close)(void *device), es_error *err);
void *es_pool_device(const es_pool *p); /* NULL: a pool of the processor's */

/* ---- pieces of blocks (quant.c has the layouts) ------------------------------------------------------------------------------ */

extern const int8_t es_iq4_nl[16]; /* what IQ4_NL's nibbles stand for */

/* Of Q4_K and Q5_K: scale and minimum (6 bits each) of sub-block j < 8, from 12 bytes. Byte j has scale j and byte 4 + j minimum j
 * in its low 6 bits, j < 4; byte 4 + j, j >= 4, has the low 4 bits of both, whose high 2 bits are on top of bytes j - 4 and j. */
static inline void es_scale_min(const uint8_t *s, int j, int *scale, int *min)
{
    *scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    *min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
}

/* Of Q3_K: the scale (-32 .. 31) of 16 elements, j < 16, from 12 bytes. Nibble j of the first 8 bytes (low nibbles, then high ones)
 * has the low 4 bits; pair j / 4 of bits of byte 8 + j % 4 the high 2. */
static inline int es_scale_q3_k(const uint8_t *s, int j)
{
    return ((s[j % 8] >> j / 8 * 4 & 15) | (s[8 + j % 4] >> j / 4 * 2 & 3) << 4) - 32;
}

/* ---- small helpers -------------------------------------------------------------------------------------------------------- */

static inline size_t es_row_bytes(es_type type, int n)
{
    const es_type_info *t = es_type_get((int)type);
    return (size_t)n / (size_t)t->block * (size_t)t->bytes;
}

/* [*from, *to): part's share of n things, cut at multiples of `unit`. */
static inline void es_share(int n, int unit, int part, int parts, int *from, int *to)
{
    int64_t units = (n + (int64_t)unit - 1) / unit;
    int64_t a = units * part / parts * unit, b = units * (part + 1) / parts * unit;
    *from = (int)(a < n ? a : n);
    *to = (int)(b < n ? b : n);
}

#endif
