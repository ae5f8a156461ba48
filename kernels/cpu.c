/* The CPU table. */
#include <cblas.h>
#include <pthread.h>
#include <stdio.h>

#include "internal.h"

/* ---- products ------------------------------------------------------------------------------------------------------------- */

typedef struct product {
    es_pool *pool;
    const es_weight *w;
    const float *in;
    float *out;
    int T;
    bool accumulate;
} product;

enum { MAX_PANEL = 256 }; /* rows of W dequantised at once */

/* Rows of width floats that a panel holds, 0 when not even one fits. */
static int panel_rows(int width)
{
    size_t rows = ES_SCRATCH / sizeof(float) / (size_t)width;
    return rows < MAX_PANEL ? (int)rows : MAX_PANEL;
}

/* y[:, n0:n1] = x W[n0:n1, :]^T, a panel at a time. */
static void matmul_part(void *user, int part, int parts)
{
    const product *j = user;
    const int N = j->w->n_out, K = j->w->n_in, panel = panel_rows(K);
    const size_t row = es_row_bytes(j->w->type, K);
    float *wd = es_pool_scratch(j->pool, part);
    int from, to;
    es_share(N, 16, part, parts, &from, &to);
    for (int n = from, rows; n < to; n += rows) {
        rows = to - n < panel ? to - n : panel;
        es_dequant(j->w->type, (const char *)j->w->data + (size_t)n * row, wd, (size_t)rows * (size_t)K);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, j->T, rows, K, 1, j->in, K, wd, K, j->accumulate ? 1 : 0, j->out + n, N);
    }
}

static void matmul(es_pool *p, const es_weight *w, const float *x, int T, float *y, bool accumulate, bool exact)
{
    if (T <= 0)
        return;
    if (panel_rows(w->n_in) == 0) {
        es_kernels_scalar()->matmul(p, w, x, T, y, accumulate, exact);
        return;
    }
    product j = {p, w, x, y, T, accumulate};
    es_pool_run(p, matmul_part, &j);
}

/* dx[:, k0:k1] = dy W[:, k0:k1]: parts own columns, so none adds into another's. */
static void matmul_back_part(void *user, int part, int parts)
{
    const product *j = user;
    const int N = j->w->n_out, K = j->w->n_in;
    const size_t row = es_row_bytes(j->w->type, K);
    float *wd = es_pool_scratch(j->pool, part);
    int from, to;
    es_share(K, es_type_get((int)j->w->type)->block > 32 ? es_type_get((int)j->w->type)->block : 32, part, parts, &from, &to);
    if (from == to)
        return;
    const int width = to - from, panel = panel_rows(width);
    for (int n = 0, rows; n < N; n += rows) {
        rows = N - n < panel ? N - n : panel;
        for (int r = 0; r < rows; r++)
            es_dequant(j->w->type, (const char *)j->w->data + (size_t)(n + r) * row + es_row_bytes(j->w->type, from),
                       wd + (size_t)r * (size_t)width, (size_t)width);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, j->T, width, rows, 1, j->in + n, N, wd, width,
                    j->accumulate || n > 0 ? 1 : 0, j->out + from, K);
    }
}

static void matmul_back(es_pool *p, const es_weight *w, const float *dy, int T, float *dx, bool accumulate)
{
    if (T <= 0)
        return;
    if (panel_rows(w->n_in) == 0) {
        es_kernels_scalar()->matmul_back(p, w, dy, T, dx, accumulate);
        return;
    }
    product j = {p, w, dy, dx, T, accumulate};
    es_pool_run(p, matmul_back_part, &j);
}

typedef struct plain_product {
    bool ta, tb;
    int m, n, k, lda, ldb, ldc;
    float alpha, beta;
    const float *a, *b;
    float *c;
} plain_product;

/* Parts share the longer side of C. */
static void gemm_part(void *user, int part, int parts)
{
    const plain_product *j = user;
    int from, to, m = j->m, n = j->n;
    const float *a = j->a, *b = j->b;
    float *c = j->c;
    if (m >= n) {
        es_share(m, 16, part, parts, &from, &to);
        a += j->ta ? (size_t)from : (size_t)from * (size_t)j->lda;
        c += (size_t)from * (size_t)j->ldc;
        m = to - from;
    } else {
        es_share(n, 16, part, parts, &from, &to);
        b += j->tb ? (size_t)from * (size_t)j->ldb : (size_t)from;
        c += from;
        n = to - from;
    }
    if (m > 0 && n > 0)
        cblas_sgemm(CblasRowMajor, j->ta ? CblasTrans : CblasNoTrans, j->tb ? CblasTrans : CblasNoTrans, m, n, j->k, j->alpha, a,
                    j->lda, b, j->ldb, j->beta, c, j->ldc);
}

static void gemm(es_pool *p, bool ta, bool tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb,
                 float beta, float *c, int ldc)
{
    plain_product j = {ta, tb, m, n, k, lda, ldb, ldc, alpha, beta, a, b, c};
    if (m <= 0 || n <= 0)
        return;
    if ((double)m * n * k < 65536)
        gemm_part(&j, 0, 1); /* not worth waking anyone */
    else
        es_pool_run(p, gemm_part, &j);
}

/* ---- the table --------------------------------------------------------------------------------------------------------------- */

static es_kernels table;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void open_table(void)
{
    openblas_set_num_threads(1); /* threads are the pools' business */
    table = *es_kernels_scalar();
    table.name = "cpu";
    table.matmul = matmul;
    table.matmul_back = matmul_back;
    table.gemm = gemm;
}

const es_kernels *es_kernels_cpu(void)
{
    pthread_once(&once, open_table);
    return &table;
}

void es_kernels_describe(char *out, size_t n)
{
    es_kernels_cpu();
    snprintf(out, n, "cpu: portable, %s", openblas_get_config());
}
