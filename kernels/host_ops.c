/* Memory and the small ops around it, as the tables of the processor have them: host memory is their memory, and a call has done its
 * work when it returns. One plain form serves the scalar and the CPU table: these ops move a few rows beside products that take a
 * thousand times as long. Sums are in double, as in scalar.c. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

int es_host_alloc(es_pool *p, void **out, size_t bytes, es_error *err)
{
    (void)p;
    *out = bytes <= PTRDIFF_MAX - 64 ? aligned_alloc(64, (bytes + 63 + !bytes) & ~(size_t)63) : NULL;
    if (*out)
        return ES_OK;
    return es_fail(err, ES_ERR_MEMORY, "%zu MB of memory are wanted, %zu MB are free", bytes >> 20, es_memory_available() >> 20);
}

void es_host_release(es_pool *p, void *memory)
{
    (void)p;
    free(memory);
}

void es_host_copy(es_pool *p, void *to, const void *from, size_t bytes)
{
    (void)p;
    if (bytes)
        memcpy(to, from, bytes);
}

void es_host_clear(es_pool *p, void *memory, size_t bytes)
{
    (void)p;
    if (bytes)
        memset(memory, 0, bytes);
}

int es_host_sync(es_pool *p, es_error *err)
{
    (void)p, (void)err;
    return ES_OK;
}

void es_host_axpy(es_pool *p, float alpha, const float *x, float *y, size_t n)
{
    (void)p;
    for (size_t i = 0; i < n; i++)
        y[i] += alpha * x[i];
}

void es_host_sum_squares(es_pool *p, const float *x, size_t n, double *out)
{
    (void)p;
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    *out = sum;
}

void es_host_gather_rows(es_pool *p, const float *x, const int32_t *index, int n, int d, float *out)
{
    for (int i = 0; i < n; i++)
        es_host_copy(p, out + (size_t)i * (size_t)d, x + (size_t)index[i] * (size_t)d, sizeof *x * (size_t)d);
}

void es_host_scatter_rows(es_pool *p, const float *x, const int32_t *index, int n, int d, float *out)
{
    for (int i = 0; i < n; i++)
        es_host_copy(p, out + (size_t)index[i] * (size_t)d, x + (size_t)i * (size_t)d, sizeof *x * (size_t)d);
}

void es_host_embed(es_pool *p, const es_weight *w, const int32_t *ids, int T, float scale, float *out)
{
    (void)p;
    const size_t d = (size_t)w->n_in;
    for (int t = 0; t < T; t++, out += d) {
        es_dequant(w->type, (const char *)w->data + (size_t)ids[t] * es_row_bytes(w->type, w->n_in), out, d);
        for (size_t i = 0; scale != 1 && i < d; i++)
            out[i] *= scale;
    }
}

void es_host_embed_back(es_pool *p, const float *dh, const int32_t *ids, int T, int d, float scale, float *dw, int n_rows)
{
    (void)n_rows;
    for (int t = 0; t < T; t++)
        es_host_axpy(p, scale, dh + (size_t)t * (size_t)d, dw + (size_t)ids[t] * (size_t)d, (size_t)d);
}

void es_host_add_vector(es_pool *p, float *h, const int *pos, int min_pos, float scale, const float *v, int T, int d)
{
    for (int t = 0; t < T; t++)
        if (pos[t] >= min_pos)
            es_host_axpy(p, scale, v, h + (size_t)t * (size_t)d, (size_t)d);
}

void es_host_add_vector_back(es_pool *p, const float *dh, const int *pos, int min_pos, float scale, int T, int d, float *dv)
{
    for (int t = 0; t < T; t++)
        if (pos[t] >= min_pos)
            es_host_axpy(p, scale, dh + (size_t)t * (size_t)d, dv, (size_t)d);
}

void es_host_gate(es_pool *p, float *u, const float *bias, const float *threshold, const float *by, const int *pos, int T, int K)
{
    (void)p;
    for (int t = 0; t < T; t++, u += K)
        for (int k = 0; k < K; k++) {
            const float x = bias ? u[k] + bias[k] : u[k];
            u[k] = pos[t] == 0 || (threshold && !(x > threshold[k])) ? 0 : by ? x * by[k] : x;
        }
}

void es_host_gate_back(es_pool *p, float *f, const float *by, float *dp, int T, int K)
{
    (void)p;
    for (int t = 0; t < T; t++, f += K, dp += K)
        for (int k = 0; k < K; k++) {
            const float d = dp[k];
            dp[k] = f[k] != 0 ? by[k] * d : 0;
            f[k] *= d;
        }
}

/* y_i = x_i r w_i, r = (mean(x^2) + eps)^-1/2: dw_i += dy_i x_i r. */
void es_host_rmsnorm_weight_back(es_pool *p, const float *x, const float *dy, float *dw, int T, int d, float eps)
{
    (void)p;
    for (int t = 0; t < T; t++, x += d, dy += d) {
        double square = 0;
        for (int i = 0; i < d; i++)
            square += (double)x[i] * x[i];
        const double r = 1 / sqrt(square / d + eps);
        for (int i = 0; i < d; i++)
            dw[i] += (float)(dy[i] * x[i] * r);
    }
}

void es_host_soft_cap_back(es_pool *p, const float *y, float *dx, size_t n, float cap)
{
    (void)p;
    for (size_t i = 0; i < n; i++)
        dx[i] *= 1 - y[i] / cap * (y[i] / cap);
}

static float as_ordered(float x)
{
    return isnan(x) ? -INFINITY : x;
}

/* A heap of the k best so far whose root is its worst, in index[]; better: larger, or equal and earlier. */
static bool better(const float *x, int32_t a, int32_t b)
{
    const float fa = as_ordered(x[a]), fb = as_ordered(x[b]);
    return fa > fb || (fa == fb && a < b);
}

static void sift_down(const float *x, int32_t *heap, int n, int at)
{
    const int32_t moving = heap[at];
    for (int child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && better(x, heap[child], heap[child + 1]))
            child++;
        if (!better(x, moving, heap[child]))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

void es_host_top(es_pool *p, const float *x, int n, int k, int32_t *index, float *value, float *logsum)
{
    (void)p;
    for (int i = 0; i < k; i++)
        index[i] = i;
    for (int i = k / 2 - 1; i >= 0; i--)
        sift_down(x, index, k, i);
    for (int i = k; i < n; i++)
        if (better(x, i, index[0])) {
            index[0] = i;
            sift_down(x, index, k, 0);
        }
    for (int end = k - 1; end > 0; end--) { /* a heap sorted: the worst goes to the end */
        const int32_t worst = index[0];
        index[0] = index[end];
        index[end] = worst;
        sift_down(x, index, end, 0);
    }
    for (int i = 0; i < k; i++)
        value[i] = as_ordered(x[index[i]]);
    if (!logsum)
        return;
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++)
        max = fmax(max, as_ordered(x[i]));
    for (int i = 0; i < n && max > -INFINITY; i++)
        sum += exp(as_ordered(x[i]) - max);
    *logsum = (float)(max + (sum > 0 ? log(sum) : 0));
}

void es_host_adam(es_pool *p, float *x, const float *g, float *m, float *v, size_t n, float b1, float b2, float rate, float eps, float keep)
{
    (void)p;
    for (size_t i = 0; i < n; i++) {
        m[i] = b1 * m[i] + (1 - b1) * g[i];
        v[i] = b2 * v[i] + (1 - b2) * g[i] * g[i];
        x[i] = x[i] * keep - rate * m[i] / (sqrtf(v[i]) + eps);
    }
}
