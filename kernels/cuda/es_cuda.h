/* cuda: the op table on a card. C11; without CUDA in the build, stub.c gives the same functions, which say so.
 *
 * A card is opened once; each thread that works with it opens a pool of its own (a stream, its workspace and its cuBLAS handle) and
 * gives that pool to the table's ops, whose pointers are then to the card's memory (kernels.h, "memory of the table"). Pools of one card
 * run side by side and share memory; a pool belongs to one thread at a time. */
#ifndef ES_CUDA_H
#define ES_CUDA_H

#include "kernels.h"

typedef struct es_cuda es_cuda;

/* Cards that a program could use; 0 without CUDA, a driver or a card. Never fails. */
int es_cuda_count(void);
/* Card `index` of es_cuda_count(). ES_ERR_MISSING: not in this build, no driver, no such card; ES_ERR_DEVICE: the card refused. */
int es_cuda_open(int index, es_cuda **out, es_error *err);
void es_cuda_close(es_cuda *c); /* after its pools and its memory; NULL goes */
/* A line such as "cuda:0 NVIDIA H100 (compute capability 9.0, 132 SMs, 85.0 GB of memory, 84.2 GB free, a driver of CUDA 13.0, cuBLAS)"; c NULL: why there is none. */
void es_cuda_describe(const es_cuda *c, char *out, size_t n);
void es_cuda_memory(const es_cuda *c, size_t *free_bytes, size_t *total_bytes);
/* true once the driver has lost the card (any error that outlives a call): its memory is gone and every pool of it only fails. The session
 * goes on with the CPU table and what it holds in host memory. */
bool es_cuda_lost(const es_cuda *c);
/* For the person: that something was left to the processor, and why; that the card was lost is told by itself. tell keeps what is new among the last
 * few texts; told hands over the oldest that nobody had yet, once. Any thread. */
void es_cuda_tell(es_cuda *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool es_cuda_told(es_cuda *c, char *out, size_t n);

/* How products of many tokens are done: with f32 throughout, with TF32 (inputs cut to 10 bits), or with both sides rounded to bfloat16.
 * matmul with `exact` is f32 in any case, and so are products of few tokens (up to ES_CUDA_ROWS) with a weight, but for large quantised ones: on the pools of
 * lower precision these meet activations rounded to 16 bits. */
typedef enum es_cuda_precision { ES_CUDA_F32, ES_CUDA_TF32, ES_CUDA_BF16 } es_cuda_precision;
enum { ES_CUDA_ROWS = 16 };

typedef struct es_cuda_pool_options {
    bool high_priority;          /* a chat's: its kernels go first when the card is shared */
    es_cuda_precision precision; /* of products that are not exact */
    bool exact_too;              /* `exact` is ignored, as in es_kernels_half: gradients and trial passes */
    size_t workspace;            /* bytes for tiles of weights and partial results; 0: 64 MB. No op takes more than that */
} es_cuda_pool_options;
/* A pool whose ops go to a stream of the card. es_pool_free closes it. ES_ERR_MEMORY, ES_ERR_DEVICE */
int es_cuda_pool_open(es_pool **out, es_cuda *c, const es_cuda_pool_options *o, es_error *err);
/* The table. Its ops need a pool of es_cuda_pool_open. */
const es_kernels *es_cuda_table(void);

/* Ops of `pool` from now on wait until what `other` was given so far is done, without holding up the caller: an adapter's new numbers are
 * uploaded on the learner's pool and read on the chat's. Pools of one card. */
void es_cuda_after(es_pool *pool, es_pool *other);

/* A run of ops that is recorded as one CUDA graph and started with one call, which is what a decoding step of hundreds of small kernels
 * wants. begin; the ops (no alloc, release, download or sync; uploads of at most 1 MB in all); end, which starts them. The graph of the last
 * step is kept and only its parameters are changed when the new one has the same shape. Any failure shows at sync. */
void es_cuda_step_begin(es_pool *pool);
void es_cuda_step_end(es_pool *pool);
/* Starts the graph of the last step once more. What differs from time to time must be read from the card's memory: these two take a position from
 * there. n_ctx: *pos is below it. */
void es_cuda_step_again(es_pool *pool);
/* Attention of one token at *pos, whose keys and values are there already (pos0 and T of a are not looked at). */
void es_cuda_attention_at(es_pool *pool, const es_attn *a, int n_ctx, const float *q, const uint16_t *k, const uint16_t *v, const int *pos, float *out);
/* The token's heads of q are rotated in place as kernels.h has it (rope), and those of k on their way to keys[*pos * n_kv * head_dim ...]; v goes to values as it is. */
void es_cuda_rotate_append(es_pool *pool, float *q, const float *k, const float *v, const int *pos, const float *cos_t, const float *sin_t, int n_head, int n_kv,
                           int head_dim, bool neox, uint16_t *keys, uint16_t *values);
/* matmuls of one token's rmsnorm(x), which is not written down: weights norm[K]. The other: y[n_out] = glu(gate rmsnorm(x)) * (up rmsnorm(x)), both of one type and shape. */
void es_cuda_normed_matmuls(es_pool *pool, const es_weight *const *w, int n, const float *x, const float *norm, float eps, float *const *y, bool exact);
void es_cuda_normed_glu(es_pool *pool, const es_weight *gate, const es_weight *up, const float *x, const float *norm, float eps, bool gelu, float *y, bool exact);

/* ---- for tests and bench ---- */
/* false: products never go to cuBLAS but to the kernels here, as on a machine that has a driver and no cuBLAS. */
void es_cuda_use_blas(es_pool *pool, bool use);
/* Seconds between the two calls on the stream, by the card's clock. */
void es_cuda_timer_start(es_pool *pool);
double es_cuda_timer_stop(es_pool *pool);

#endif
