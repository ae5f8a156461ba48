// In the place of kernels/cuda/blas.cu: the products of cuBLAS in their plainest form, sums in double. They are recorded and replayed like any
// other work of a stream, as a launch of one block.
#include "device.cuh"

bool shim_blas_there(void);

struct es_blas { int unused; };

bool es_blas_there(void) { return shim_blas_there(); }
es_blas *es_blas_open(es_stream *) { return shim_blas_there() ? new es_blas{} : NULL; }
void es_blas_close(es_blas *b) { delete b; }

static float element(es_product kind, const void *p, size_t i)
{
    float f = kind == ES_PRODUCT_BF16 ? es_as_float(((const __nv_bfloat16 *)p)[i]) : ((const float *)p)[i];
    if (kind == ES_PRODUCT_TF32) { // 10 bits of fraction, to nearest
        uint32_t u = __float_as_uint(f);
        if ((u & 0x7f800000) != 0x7f800000)
            f = __uint_as_float((u + 0xfff + (u >> 13 & 1)) & ~0x1fffu);
    }
    return f;
}

static void product(es_product kind, bool ta, bool tb, int m, int n, int k, float alpha, const void *a, int lda, const void *b, int ldb,
                    float beta, float *c, int ldc, es_batch_of batch)
{
    a = (const char *)a + blockIdx.z * batch.a * (kind == ES_PRODUCT_BF16 ? 2 : 4);
    b = (const char *)b + blockIdx.z * batch.b * (kind == ES_PRODUCT_BF16 ? 2 : 4);
    c += blockIdx.z * batch.c;
    for (int i = threadIdx.x; i < m; i += blockDim.x)
        for (int j = 0; j < n; j++) {
            double s = 0;
            for (int l = 0; l < k; l++)
                s += (double)element(kind, a, ta ? (size_t)l * lda + i : (size_t)i * lda + l) *
                     element(kind, b, tb ? (size_t)j * ldb + l : (size_t)l * ldb + j);
            float *out = &c[(size_t)i * ldc + j];
            *out = (float)(alpha * s + (beta != 0 ? (double)beta * *out : 0));
        }
}

bool es_blas_product(es_stream *s, es_product kind, bool ta, bool tb, int m, int n, int k, float alpha, const void *a, int lda,
                     const void *b, int ldb, float beta, float *c, int ldc, es_batch_of batch)
{
    if (!s->blas)
        return false;
    ES_LAUNCH(s, product, dim3(1, 1, batch.count), 32, 0, kind, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, batch);
    return true;
}
