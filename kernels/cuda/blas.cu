// cuBLAS, found at run time: the program starts and its other kernels work where there is none. Types come from its header, functions
// from dlsym. The shim of the tests has its own file in the place of this one.
#include <cublas_v2.h>
#include <dlfcn.h>
#include <pthread.h>

#include "device.cuh"

struct es_blas {
    cublasHandle_t handle;
    void *work;
};

static struct {
    void *library;
    cublasStatus_t (*create)(cublasHandle_t *);
    cublasStatus_t (*destroy)(cublasHandle_t);
    cublasStatus_t (*set_stream)(cublasHandle_t, cudaStream_t);
    cublasStatus_t (*set_workspace)(cublasHandle_t, void *, size_t);
    cublasStatus_t (*gemm)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void *, const void *, cudaDataType,
                           int, const void *, cudaDataType, int, const void *, void *, cudaDataType, int, cublasComputeType_t,
                           cublasGemmAlgo_t);
    cublasStatus_t (*gemms)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void *, const void *, cudaDataType,
                            int, long long, const void *, cudaDataType, int, long long, const void *, void *, cudaDataType, int, long long,
                            int, cublasComputeType_t, cublasGemmAlgo_t);
} blas;
static pthread_once_t once = PTHREAD_ONCE_INIT;

template <class F> static bool find(F *out, const char *name)
{
    *out = (F)dlsym(blas.library, name);
    return *out != NULL;
}

static void load(void)
{
    // The toolkit's own major version first; then older ones with the same calls; then whatever is installed under the plain name.
    static const char *const names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so",
                                        "/usr/local/cuda/lib64/libcublas.so.13", "/usr/local/cuda/lib64/libcublas.so.12",
                                        "/usr/local/cuda/lib64/libcublas.so"};
    for (size_t i = 0; !blas.library && i < sizeof names / sizeof *names; i++)
        blas.library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!blas.library)
        return;
    if (find(&blas.create, "cublasCreate_v2") && find(&blas.destroy, "cublasDestroy_v2") && find(&blas.set_stream, "cublasSetStream_v2") &&
        find(&blas.set_workspace, "cublasSetWorkspace_v2") && find(&blas.gemm, "cublasGemmEx") &&
        find(&blas.gemms, "cublasGemmStridedBatchedEx"))
        return;
    dlclose(blas.library);
    blas.library = NULL;
}

bool es_blas_there(void)
{
    pthread_once(&once, load);
    return blas.library != NULL;
}

enum { BLAS_WORK = 32 << 20 }; // what cuBLAS recommends for Hopper; its own allocation would fail inside a recorded step

es_blas *es_blas_open(es_stream *s)
{
    if (!es_blas_there())
        return NULL;
    es_blas *b = (es_blas *)es_calloc(1, sizeof *b);
    if (!b)
        return NULL;
    if (blas.create(&b->handle) == CUBLAS_STATUS_SUCCESS && blas.set_stream(b->handle, s->stream) == CUBLAS_STATUS_SUCCESS &&
        cudaMalloc(&b->work, BLAS_WORK) == cudaSuccess && blas.set_workspace(b->handle, b->work, BLAS_WORK) == CUBLAS_STATUS_SUCCESS)
        return b;
    cudaGetLastError();
    es_blas_close(b);
    return NULL;
}

void es_blas_close(es_blas *b)
{
    if (!b)
        return;
    if (b->handle)
        blas.destroy(b->handle);
    cudaFree(b->work);
    free(b);
}

// cuBLAS counts by columns: a row-major C is its C^T = op(B)^T op(A)^T, and a row-major matrix is the transposed one as it lies.
bool es_blas_product(es_stream *s, es_product kind, bool ta, bool tb, int m, int n, int k, float alpha, const void *a, int lda,
                     const void *b, int ldb, float beta, float *c, int ldc, es_batch_of batch)
{
    if (!s->blas)
        return false;
    cudaDataType type = kind == ES_PRODUCT_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    cublasComputeType_t compute = kind == ES_PRODUCT_TF32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    const cublasOperation_t op_a = ta ? CUBLAS_OP_T : CUBLAS_OP_N, op_b = tb ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasStatus_t status =
        batch.count == 1 ? blas.gemm(s->blas->handle, op_b, op_a, n, m, k, &alpha, b, type, ldb, a, type, lda, &beta, c, CUDA_R_32F, ldc, compute,
                                     CUBLAS_GEMM_DEFAULT)
                         : blas.gemms(s->blas->handle, op_b, op_a, n, m, k, &alpha, b, type, ldb, (long long)batch.b, a, type, lda,
                                      (long long)batch.a, &beta, c, CUDA_R_32F, ldc, (long long)batch.c, batch.count, compute,
                                      CUBLAS_GEMM_DEFAULT);
    if (status == CUBLAS_STATUS_SUCCESS)
        return true;
    if (status == CUBLAS_STATUS_NOT_SUPPORTED)
        return false; // a shape or an alignment that it will not take: a kernel does
    es_stream_check(s, cudaGetLastError(), "a product of cuBLAS");
    es_stream_fail(s, ES_ERR_DEVICE, "card %d (%s): cuBLAS says %d", s->card->index, s->card->name, (int)status);
    return true;
}
