/* kernels: the op table. One scalar reference (readable; the documentation of the fast one), one CPU table (OpenBLAS and
 * SIMD), one for CUDA (kernels/cuda). All backends pass the same op tests.
 *
 * Matrices are row-major f32 unless said otherwise. T tokens (rows), a weight W[N,K] maps rows of K to rows of N:
 * y[T,N] = x[T,K] W^T. Weights may be quantised; activations are f32. */
#ifndef ES_KERNELS_H
#define ES_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base.h"

/* ---- quantised blocks (layouts as in ggml's ggml-common.h; type numbers as in GGUF) -------------------------------------- */

typedef enum es_type {
    ES_F32 = 0, ES_F16 = 1, ES_Q4_0 = 2, ES_Q4_1 = 3, ES_Q5_0 = 6, ES_Q5_1 = 7, ES_Q8_0 = 8, ES_Q2_K = 10, ES_Q3_K = 11, ES_Q4_K = 12,
    ES_Q5_K = 13, ES_Q6_K = 14, ES_IQ4_NL = 20, ES_BF16 = 30,
} es_type;

typedef struct es_type_info {
    const char *name;
    int block;  /* elements in a block */
    int bytes;  /* bytes of a block */
} es_type_info;
const es_type_info *es_type_get(int type); /* NULL when the type is not supported */
/* "F32, F16, ... and BF16" into out[n], for messages. */
void es_type_list(char *out, size_t n);
/* Elements [0,n) of quantised data as f32; n is a multiple of the block. */
void es_dequant(es_type type, const void *src, float *dst, size_t n);
void es_f16_to_f32(const uint16_t *src, float *dst, size_t n);
void es_f32_to_f16(const float *src, uint16_t *dst, size_t n); /* round to nearest even */

enum { ES_MATMULS = 3 };
typedef struct es_weight { /* borrowed view of W[n_out, n_in] */
    es_type type;
    int n_out, n_in;
    const void *data;
} es_weight;

/* ---- threads --------------------------------------------------------------------------------------------------------------- */

/* A pool of threads; the caller is thread 0. One pool serves one caller at a time (a chat has one, a worker has another).
 * BLAS is used single-threaded inside a pool's parts, so two pools do not fight. */
typedef struct es_pool es_pool;
int es_pool_open(es_pool **out, int threads, es_error *err); /* threads <= 0: the processors there are */
void es_pool_free(es_pool *p);
int es_pool_threads(const es_pool *p);
/* fn(user, part, parts) for part in [0, parts), parts = threads; returns when all have returned. */
void es_pool_run(es_pool *p, void (*fn)(void *user, int part, int parts), void *user);

/* ---- attention's shape -------------------------------------------------------------------------------------------------------- */

/* Causal grouped-query attention for T new tokens whose positions are pos0 .. pos0+T-1; keys/values of positions
 * 0 .. pos0+T-1 lie in k and v, rows of n_kv*head_dim. */
typedef struct es_attn {
    int T, pos0, n_head, n_kv, head_dim;
    float scale;  /* of q.k: usually 1/sqrt(head_dim) */
    float cap;    /* 0: none; otherwise a score s becomes cap * tanh(s / cap) (Gemma 2, arXiv 2408.00118, section 2) */
    int window;   /* 0: none; otherwise a token sees itself and the window - 1 before it */
} es_attn;
/* The first key that the token at position pos sees. */
static inline int es_attn_first(const es_attn *a, int pos)
{
    return a->window > 0 && pos >= a->window ? pos + 1 - a->window : 0;
}

/* ---- the op table -------------------------------------------------------------------------------------------------------------- */

typedef struct es_kernels {
    const char *name;

    /* y[T,N] = x[T,K] W^T (accumulate: +=). exact: f32 activations on dequantised weights. Not exact: activations may be rounded
     * to integers per block of 32 where the weights are quantised. Scratch comes from the pool. */
    void (*matmul)(es_pool *p, const es_weight *w, const float *x, int T, float *y, bool accumulate, bool exact);
    /* y[i] = x w[i]^T for n <= ES_MATMULS weights that read one x; the same numbers as n calls of matmul. */
    void (*matmuls)(es_pool *p, const es_weight *const *w, int n, const float *x, int T, float *const *y, bool exact);
    /* dx[T,K] = dy[T,N] W  (accumulate: +=): the gradient through a frozen weight. */
    void (*matmul_back)(es_pool *p, const es_weight *w, const float *dy, int T, float *dx, bool accumulate);

    /* Plain f32 products, C[m,n] = alpha op(A) op(B) + beta C; ta/tb transpose. Row-major with leading dimensions. */
    void (*gemm)(es_pool *p, bool ta, bool tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
                 int ldb, float beta, float *c, int ldc);

    /* y = x / sqrt(mean(x^2) + eps) * w, rows of d. */
    void (*rmsnorm)(es_pool *p, const float *x, const float *w, float *y, int T, int d, float eps);
    /* dx += gradient through rmsnorm, given x and dy (w frozen). */
    void (*rmsnorm_back)(es_pool *p, const float *x, const float *w, const float *dy, float *dx, int T, int d, float eps);

    /* In place on x[T, n_head*head_dim]; row t has position pos[t]. cos/sin tables [n_pos, head_dim/2]. neox: pairs are
     * (i, i+head_dim/2); otherwise (2i, 2i+1), which is what GGUF llama weights expect. back: the inverse rotation. */
    void (*rope)(es_pool *p, float *x, const int *pos, const float *cos_t, const float *sin_t, int T, int n_head, int head_dim,
                 bool neox, bool back);

    /* y[i] = silu(gate[i]) * up[i]. */
    void (*swiglu)(es_pool *p, const float *gate, const float *up, float *y, size_t n);
    void (*swiglu_back)(es_pool *p, const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n);
    /* y[i] = gelu(gate[i]) * up[i], gelu in its tanh form: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016). */
    void (*geglu)(es_pool *p, const float *gate, const float *up, float *y, size_t n);
    void (*geglu_back)(es_pool *p, const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n);
    /* In place: x[i] = cap * tanh(x[i] / cap). */
    void (*soft_cap)(es_pool *p, float *x, size_t n, float cap);

    /* out[T, n_head*head_dim]; k, v as es_attn says. */
    void (*attention)(es_pool *p, const es_attn *a, const float *q, const float *k, const float *v, float *out);
    /* The same for n_seq sequences that have their keys and values in half precision, each in a place of its own, k[s] and v[s], and its
     * own shape a[s]. Their rows of q and out follow one another. */
    void (*attention_half)(es_pool *p, const es_attn *a, int n_seq, const float *q, const uint16_t *const *k, const uint16_t *const *v,
                           float *out);
    /* y[n] = x[n] in half precision, to the nearest; beyond its range (65504) the largest there is. A NaN stays one. */
    void (*to_half)(es_pool *p, const float *x, uint16_t *y, size_t n);
    /* pos0 must be 0. dq, dk, dv are overwritten. Recomputes the probabilities. */
    void (*attention_back)(es_pool *p, const es_attn *a, const float *q, const float *k, const float *v, const float *dout,
                           float *dq, float *dk, float *dv);

    /* For each row of logits[T,V]: logsum[t] = log sum exp; logprob[t] = logits[t, target[t]] - logsum[t]. */
    void (*log_softmax_pick)(es_pool *p, const float *logits, const int32_t *target, int T, int V, float *logprob, float *logsum);
    /* In place: logits[t,:] = dlogprob[t] * (onehot(target[t]) - softmax(logits[t,:])), given logsum. */
    void (*log_softmax_pick_back)(es_pool *p, float *logits, const int32_t *target, const float *logsum, const float *dlogprob,
                                  int T, int V);

    /* ---- what a whole model needs besides, so that it runs wherever the table's memory is ----
     * Every pointer above and below is to the table's memory (host memory for the CPU tables, the card's for CUDA) unless it says
     * "host". A call may return before its work is done; a pool's work is done in the order of its calls. Ops cannot fail one by one:
     * the pool keeps its first failure, does nothing more, and sync tells. CPU tables never fail here but in alloc. */

    /* Uninitialised, 64-byte aligned. ES_ERR_MEMORY names what was wanted and what is free. */
    int (*alloc)(es_pool *p, void **out, size_t bytes, es_error *err);
    void (*release)(es_pool *p, void *memory); /* when the pool's work so far is done; no other pool has work with it. NULL goes */
    void (*upload)(es_pool *p, void *to, const void *host, size_t bytes);   /* host may be reused on return */
    void (*download)(es_pool *p, void *host, const void *from, size_t bytes); /* has arrived on return; zeros when the pool failed */
    void (*copy)(es_pool *p, void *to, const void *from, size_t bytes); /* the two do not overlap */
    void (*clear)(es_pool *p, void *memory, size_t bytes);
    /* Waits for the pool's work. The first failure since the last call, ES_ERR_MEMORY or ES_ERR_DEVICE; 0: none. */
    int (*sync)(es_pool *p, es_error *err);

    /* y += alpha x. */
    void (*axpy)(es_pool *p, float alpha, const float *x, float *y, size_t n);
    /* *out = the sum of x[n]'s squares, added up in double. */
    void (*sum_squares)(es_pool *p, const float *x, size_t n, double *out);
    /* Row i of out[n, d] = row index[i] of x; and the other way: row index[i] of out = row i of x[n, d], no index twice. */
    void (*gather_rows)(es_pool *p, const float *x, const int32_t *index, int n, int d, float *out);
    void (*scatter_rows)(es_pool *p, const float *x, const int32_t *index, int n, int d, float *out);
    /* out[T, w.n_in] = scale * the rows ids[t] of w, which the caller has checked. Back: dw[ids[t]] += scale * dh[t], dw[n_rows, d]. */
    void (*embed)(es_pool *p, const es_weight *w, const int32_t *ids, int T, float scale, float *out);
    void (*embed_back)(es_pool *p, const float *dh, const int32_t *ids, int T, int d, float scale, float *dw, int n_rows);
    /* Rows of h[T, d] with pos[t] >= min_pos: += scale * v[d]. Back: dv += scale * the sum of these rows of dh. */
    void (*add_vector)(es_pool *p, float *h, const int *pos, int min_pos, float scale, const float *v, int T, int d);
    void (*add_vector_back)(es_pool *p, const float *dh, const int *pos, int min_pos, float scale, int T, int d, float *dv);
    /* In place on u[T, K], what features read: += bias[K] (NULL: none); rows with pos 0, and what is not above its threshold[K] (NULL: none), become 0;
     * *= by[K] (NULL: 1). Back, of one with by and a threshold: f[T, K] what it gave without by, dp that of its gradient; f *= dp, which sums up to by's
     * gradient, and dp becomes by * dp where f is not 0, else 0. */
    void (*gate)(es_pool *p, float *u, const float *bias, const float *threshold, const float *by, const int *pos, int T, int K);
    void (*gate_back)(es_pool *p, float *f, const float *by, float *dp, int T, int K);
    /* dw[d] += the gradient of rmsnorm's weight. */
    void (*rmsnorm_weight_back)(es_pool *p, const float *x, const float *dy, float *dw, int T, int d, float eps);
    /* dx[i] *= 1 - (y[i] / cap)^2: through soft_cap, y being what it gave. */
    void (*soft_cap_back)(es_pool *p, const float *y, float *dx, size_t n, float cap);
    /* The k <= ES_TOP_MAX largest of x[n] and where they were, largest first, of equal ones the lower place first; a NaN counts as
     * -infinity. logsum (may be NULL): log sum exp of all. k <= n. */
    void (*top)(es_pool *p, const float *x, int n, int k, int32_t *index, float *value, float *logsum);
    /* Adam (Kingma & Ba 2015) on x with gradient g: m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; x -= rate m / (sqrt(v) + eps).
     * Bias corrections and decay are in rate, eps and keep: x *= keep first. */
    void (*adam)(es_pool *p, float *x, const float *g, float *m, float *v, size_t n, float b1, float b2, float rate, float eps, float keep);
} es_kernels;

enum { ES_TOP_MAX = 1024 };

const es_kernels *es_kernels_scalar(void); /* single-threaded reference: ignores the pool (which may be NULL) */
const es_kernels *es_kernels_cpu(void);    /* OpenBLAS and SIMD, dispatched at run time; needs a pool */
/* The CPU table with the products of 32 and more tokens with weights (and gemm, A not transposed) on bfloat16 (sums in f32), at about twice the rate where the processor has it;
 * else the CPU table itself. A result is within about 0.4 % of its size of the exact one: for gradients and trial passes, not for measuring. */
const es_kernels *es_kernels_half(void);
/* That table with the products of 32 and more tokens with quantised weights on activations of 8 bits, at about 1.5 times its rate where the processor
 * has it; else that table. Within about 1 % of a result's size: for reading much text, where features are looked for and nothing is measured. */
const es_kernels *es_kernels_eight(void);
/* A line such as "cpu: avx512-vnni, OpenBLAS 0.3.21" for doctor and bench. */
void es_kernels_describe(char *out, size_t n);

#endif
