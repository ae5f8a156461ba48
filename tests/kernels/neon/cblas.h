/* Stand-in for OpenBLAS where it is not to be had for the processor tests are built for: the one product the CPU table uses. */
#ifndef STANDIN_CBLAS_H
#define STANDIN_CBLAS_H

enum CBLAS_ORDER { CblasRowMajor = 101 };
typedef enum CBLAS_TRANSPOSE { CblasNoTrans = 111, CblasTrans = 112 } CBLAS_TRANSPOSE;

/* C[m,n] = alpha op(A) op(B) + beta C */
void cblas_sgemm(enum CBLAS_ORDER order, CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc);
void openblas_set_num_threads(int n);
char *openblas_get_config(void);
char *openblas_get_corename(void);

#endif
