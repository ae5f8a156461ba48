/* What es_cuda.h promises, in a build without CUDA: there is no card, and everything says why. */
#include <stdio.h>

#include "es_cuda.h"
#include "sparse.h"

static const char reason[] = "this build has no CUDA (configure with -DESPALIER_CUDA=ON where nvcc is installed)";

int es_cuda_count(void)
{
    return 0;
}

int es_cuda_open(int index, es_cuda **out, es_error *err)
{
    (void)index;
    *out = NULL;
    return es_fail(err, ES_ERR_MISSING, "%s", reason);
}

void es_cuda_close(es_cuda *c)
{
    (void)c;
}

void es_cuda_describe(const es_cuda *c, char *out, size_t n)
{
    (void)c;
    snprintf(out, n, "cuda: %s", reason);
}

void es_cuda_memory(const es_cuda *c, size_t *free_bytes, size_t *total_bytes)
{
    (void)c;
    *free_bytes = *total_bytes = 0;
}

bool es_cuda_lost(const es_cuda *c)
{
    (void)c;
    return false;
}

void es_cuda_tell(es_cuda *c, const char *fmt, ...)
{
    (void)c, (void)fmt;
}

bool es_cuda_told(es_cuda *c, char *out, size_t n)
{
    (void)c, (void)out, (void)n;
    return false;
}

int es_cuda_pool_open(es_pool **out, es_cuda *c, const es_cuda_pool_options *o, es_error *err)
{
    (void)c, (void)o;
    *out = NULL;
    return es_fail(err, ES_ERR_MISSING, "%s", reason);
}

/* No pool of this build is a card's, so no op can be asked for; the plain reference is what the table's members may then be. */
const es_kernels *es_cuda_table(void)
{
    return es_kernels_scalar();
}

void es_cuda_after(es_pool *pool, es_pool *other)
{
    (void)pool, (void)other;
}

void es_cuda_step_begin(es_pool *pool)
{
    (void)pool;
}

void es_cuda_step_end(es_pool *pool)
{
    (void)pool;
}

void es_cuda_step_again(es_pool *pool)
{
    (void)pool;
}

void es_cuda_rotate_append(es_pool *pool, float *q, const float *k, const float *v, const int *pos, const float *cos_t, const float *sin_t, int n_head, int n_kv,
                           int head_dim, bool neox, uint16_t *keys, uint16_t *values)
{
    (void)pool, (void)q, (void)k, (void)v, (void)pos, (void)cos_t, (void)sin_t, (void)n_head, (void)n_kv, (void)head_dim, (void)neox, (void)keys, (void)values;
}

void es_cuda_normed_matmuls(es_pool *pool, const es_weight *const *w, int n, const float *x, const float *norm, float eps, float *const *y, bool exact)
{
    (void)pool, (void)w, (void)n, (void)x, (void)norm, (void)eps, (void)y, (void)exact;
}

void es_cuda_normed_glu(es_pool *pool, const es_weight *gate, const es_weight *up, const float *x, const float *norm, float eps, bool gelu, float *y, bool exact)
{
    (void)pool, (void)gate, (void)up, (void)x, (void)norm, (void)eps, (void)gelu, (void)y, (void)exact;
}

void es_cuda_attention_at(es_pool *pool, const es_attn *a, int n_ctx, const float *q, const uint16_t *k, const uint16_t *v, const int *pos, float *out)
{
    (void)pool, (void)a, (void)n_ctx, (void)q, (void)k, (void)v, (void)pos, (void)out;
}

void es_cuda_use_blas(es_pool *pool, bool use)
{
    (void)pool, (void)use;
}

void es_cuda_timer_start(es_pool *pool)
{
    (void)pool;
}

double es_cuda_timer_stop(es_pool *pool)
{
    (void)pool;
    return 0;
}

const es_sparse_kernels *es_cuda_sparse(void)
{
    return es_sparse_scalar();
}
