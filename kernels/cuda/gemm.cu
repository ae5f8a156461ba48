// Products of two matrices that are both on the card. cuBLAS does them where it is installed; the kernel here does the rest: a machine
// with a driver alone, and shapes that cuBLAS refuses. Its limit is f32 multiply-adds without tensor cores (67 TFLOP/s on an H100),
// and it reaches perhaps half of that.
#include "device.cuh"

enum { TILE = 64, DEPTH = 16, THREADS = 256, EACH = 4 };

// Element (row, i) of op(A) is a[row * a_row + i * a_step], and likewise op(B)[i][column] = b[column * b_row + i * b_step].
// A block makes a 64x64 tile of C, a thread 4x4 of it.
template <class T>
static __global__ void __launch_bounds__(THREADS) product(const T *a, size_t a_row, size_t a_step, const T *b, size_t b_row, size_t b_step, int m,
                                                   int n, int k, float alpha, float beta, float *c, int ldc, es_batch_of batch)
{
    a += blockIdx.z * batch.a;
    b += blockIdx.z * batch.b;
    c += blockIdx.z * batch.c;
    ES_SHARED(float, as); // [DEPTH][TILE + 1]; the odd row spreads the banks
    float *bs = as + DEPTH * (TILE + 1);
    const int row0 = blockIdx.y * TILE, column0 = blockIdx.x * TILE, ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    float sum[EACH][EACH] = {};
    for (int k0 = 0; k0 < k; k0 += DEPTH) {
        for (int e = threadIdx.x; e < TILE * DEPTH; e += THREADS) {
            // neighbours in the thread's number read neighbours in memory, whichever way the matrix lies
            int ra = a_step == 1 ? e / DEPTH : e % TILE, ia = a_step == 1 ? e % DEPTH : e / TILE;
            int rb = b_step == 1 ? e / DEPTH : e % TILE, ib = b_step == 1 ? e % DEPTH : e / TILE;
            as[ia * (TILE + 1) + ra] = row0 + ra < m && k0 + ia < k ? es_as_float(a[(row0 + ra) * a_row + (k0 + ia) * a_step]) : 0;
            bs[ib * (TILE + 1) + rb] = column0 + rb < n && k0 + ib < k ? es_as_float(b[(column0 + rb) * b_row + (k0 + ib) * b_step]) : 0;
        }
        __syncthreads();
        for (int i = 0; i < DEPTH; i++) {
            float x[EACH], y[EACH];
            for (int e = 0; e < EACH; e++) {
                x[e] = as[i * (TILE + 1) + ty + 16 * e];
                y[e] = bs[i * (TILE + 1) + tx + 16 * e];
            }
            for (int p = 0; p < EACH; p++)
                for (int q = 0; q < EACH; q++)
                    sum[p][q] += x[p] * y[q];
        }
        __syncthreads();
    }
    for (int p = 0; p < EACH; p++)
        for (int q = 0; q < EACH; q++) {
            int row = row0 + ty + 16 * p, column = column0 + tx + 16 * q;
            if (row < m && column < n) {
                float *out = &c[(size_t)row * ldc + column];
                *out = alpha * sum[p][q] + (beta != 0 ? beta * *out : 0); // beta 0: c may be uninitialised
            }
        }
}

template <class T>
static void start(es_stream *s, bool ta, bool tb, int m, int n, int k, float alpha, const void *a, int lda, const void *b, int ldb, float beta,
                  float *c, int ldc, es_batch_of batch)
{
    const size_t one = 1, as = (size_t)lda, bs = (size_t)ldb;
    dim3 grid(es_ceil_div(n, TILE), es_ceil_div(m, TILE), batch.count);
    if (grid.y > 65535 || grid.z > 65535) {
        es_stream_fail(s, ES_ERR_LIMIT, "a product of %d rows without cuBLAS", m);
        return;
    }
    ES_LAUNCH(s, (product<T>), grid, THREADS, 2 * DEPTH * (TILE + 1) * sizeof(float), (const T *)a, ta ? one : as, ta ? as : one,
              (const T *)b, tb ? bs : one, tb ? one : bs, m, n, k, alpha, beta, c, ldc, batch);
}

void es_product_do(es_stream *s, es_product kind, bool ta, bool tb, int m, int n, int k, float alpha, const void *a, int lda,
                   const void *b, int ldb, float beta, float *c, int ldc, es_batch_of batch)
{
    if (m < 1 || n < 1 || batch.count < 1 || !es_stream_ready(s))
        return;
    if (k > 0 && s->use_blas && es_blas_product(s, kind, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, batch))
        return;
    (kind == ES_PRODUCT_BF16 ? start<__nv_bfloat16> : start<float>)(s, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, batch);
}

// Both sides are f32 here, so bfloat16 would cost a pass over each; TF32 is what a pool of lower precision gets.
static void gemm(es_pool *p, bool ta, bool tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb, float beta,
                 float *c, int ldc)
{
    es_stream *s = es_stream_of(p);
    es_product_do(s, s->o.precision == ES_CUDA_F32 ? ES_PRODUCT_F32 : ES_PRODUCT_TF32, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void es_gemm_ops(es_kernels *k)
{
    k->gemm = gemm;
}
