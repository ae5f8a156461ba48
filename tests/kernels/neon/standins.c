/* What the kernels and their tests need of libraries that are not to be had for the processor they are built for. */
#include <cblas.h>

#include "base_internal.h"

static void row_times(const float *a, int step, int n, int k, float alpha, const float *b, int ldb, float *c)
{
    for (int l = 0; l < k; l++, a += step, b += ldb)
        for (int j = 0; j < n; j++)
            c[j] += alpha * *a * b[j];
}

static void row_times_transposed(const float *a, int step, int n, int k, float alpha, const float *b, int ldb, float *c)
{
    for (int j = 0; j < n; j++, b += ldb) {
        float s[8] = {0}; /* several sums, as a real BLAS has: one alone would be less exact than the tests ask */
        for (int l = 0; l < k; l++)
            s[l % 8] += a[(long)l * step] * b[l];
        c[j] += alpha * (((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])));
    }
}

void cblas_sgemm(enum CBLAS_ORDER order, CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc)
{
    (void)order;
    for (int i = 0; i < m; i++, c += ldc) {
        for (int j = 0; j < n; j++)
            c[j] = beta == 0 ? 0 : beta * c[j];
        const float *row = ta == CblasTrans ? a + i : a + (long)i * lda;
        (tb == CblasTrans ? row_times_transposed : row_times)(row, ta == CblasTrans ? lda : 1, n, k, alpha, b, ldb, c);
    }
}

void openblas_set_num_threads(int n)
{
    (void)n;
}

char *openblas_get_config(void)
{
    return (char *)"OpenBLAS stand-in";
}

char *openblas_get_corename(void)
{
    return (char *)"plain loops";
}

/* src/base/text.c wants utf8proc; messages of errors here are ASCII. */
size_t es_show_step(const char *s, size_t n, bool keep_space, char *esc)
{
    (void)s, (void)n, (void)keep_space;
    esc[0] = 0;
    return 1;
}
