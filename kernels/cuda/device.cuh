// What the files of this folder share: a card, a pool's stream on it, how kernels are started, and sums over warps and blocks.
//
// Every kernel is written for a block that is a multiple of 32 threads, keeps all its shared memory in the one dynamic array
// (ES_SHARED), and lets every thread of a warp reach every shuffle. That is what tests/cuda/shim needs to run it on a processor.
#ifndef ES_DEVICE_CUH
#define ES_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <pthread.h>

#include <math.h> // before the C headers, which may then be inside extern "C"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "es_cuda.h"
#include "internal.h"
}

enum { ES_TOLD = 4 };

struct es_cuda {
    int index, sms, major, minor;
    char name[128];
    size_t memory;
    bool soon; // kernels may be put in place early (ES_LAUNCH_SOON)
    cudaMemPool_t pool; // what alloc takes from, in a stream's order; NULL: the driver has none, and giving memory back waits for all the card does
    bool lost; // written by any thread of the card's, with __atomic stores
    pthread_mutex_t telling; // of what follows
    char told[ES_TOLD][300]; // told[i % ES_TOLD] for i in [told_from, told_to): nobody had them yet
    unsigned told_from, told_to;
};

struct es_blas; // blas.cu: a cuBLAS handle, or none

struct es_stream { // what a pool of a card has
    es_cuda *card;
    es_cuda_pool_options o;
    cudaStream_t stream;
    es_blas *blas;
    bool use_blas;
    char *work; // workspace, o.workspace bytes
    char *pinned;
    size_t pinned_used;
    cudaEvent_t mark, from, to;
    cudaGraphExec_t step;
    bool recording;
    int code; // the first failure since sync
    es_error error;
};
enum { ES_PINNED = 1 << 20, ES_WORK_MIN = 1 << 16 };

static inline es_stream *es_stream_of(es_pool *p)
{
    return (es_stream *)es_pool_device(p);
}

// Makes the card current for this thread and says whether the stream may be used: false after a failure.
bool es_stream_ready(es_stream *s);
// Notes a failure; `what` names the call.
void es_stream_check(es_stream *s, cudaError_t e, const char *what);
void es_stream_fail(es_stream *s, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

// Starts a kernel. A kernel with template arguments goes in brackets: ES_LAUNCH(s, (rows<4>), ...).
#ifdef ES_SHIM
#define ES_LAUNCH(s, kernel, grid, block, smem, ...)                                                                                  \
    do {                                                                                                                              \
        if (es_stream_ready(s)) {                                                                                                     \
            shim_launch(#kernel, (s)->stream, grid, block, smem, kernel, __VA_ARGS__);                                                \
            es_stream_check(s, cudaGetLastError(), #kernel);                                                                          \
        }                                                                                                                             \
    } while (0)
#define ES_LAUNCH_SOON ES_LAUNCH
#define ES_SHARED(type, name) type *name = (type *)shim_shared()
static inline void es_turn(void) {}
#else
#define ES_LAUNCH(s, kernel, grid, block, smem, ...)                                                                                  \
    do {                                                                                                                              \
        if (es_stream_ready(s)) {                                                                                                     \
            auto es_kernel = kernel;                                                                                                  \
            es_kernel<<<grid, block, smem, (s)->stream>>>(__VA_ARGS__);                                                               \
            es_stream_check(s, cudaGetLastError(), #kernel);                                                                          \
        }                                                                                                                             \
    } while (0)
// The same for a kernel that begins with es_turn(): from compute capability 9.0 on its blocks are put in place while the kernel before it still runs, and wait
// there, which saves a small kernel most of what starting it takes (CUDA's programmatic dependent launch). With -DES_NO_SOON as any other.
#ifdef ES_NO_SOON
#define ES_LAUNCH_SOON ES_LAUNCH
#else
#define ES_LAUNCH_SOON(s, kernel, grid, block, smem, ...)                                                                             \
    do {                                                                                                                              \
        if (es_stream_ready(s))                                                                                                       \
            es_stream_check(s, es_launch_soon(s, kernel, grid, block, smem, __VA_ARGS__), #kernel);                                   \
    } while (0)
template <class... P, class... A>
static cudaError_t es_launch_soon(es_stream *s, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, const A &...args)
{
    cudaLaunchConfig_t c = {};
    cudaLaunchAttribute soon = {};
    soon.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    soon.val.programmaticStreamSerializationAllowed = 1;
    c.gridDim = grid;
    c.blockDim = block;
    c.dynamicSmemBytes = smem;
    c.stream = s->stream;
    c.attrs = &soon;
    c.numAttrs = s->card->soon ? 1 : 0;
    return cudaLaunchKernelEx(&c, kernel, static_cast<P>(args)...);
}
#endif
// The first thing such a kernel does: lets the next one be put in place, and waits until all before it is done and written.
static __device__ __forceinline__ void es_turn(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
    cudaGridDependencySynchronize();
#endif
}
#define ES_SHARED(type, name)                                                                                                         \
    extern __shared__ __align__(16) unsigned char es_shared[];                                                                        \
    type *name = (type *)es_shared
#endif

// ---- products (blas.cu, gemm.cu) ---------------------------------------------------------------------------------------------------

typedef enum es_product { ES_PRODUCT_F32, ES_PRODUCT_TF32, ES_PRODUCT_BF16 } es_product;
es_blas *es_blas_open(es_stream *s); // NULL: there is no cuBLAS, and the kernels of gemm.cu do
void es_blas_close(es_blas *b);
bool es_blas_there(void);
struct es_batch_of { // products of one shape, whose matrices lie so many elements apart; 0: the same one for all
    int count;
    size_t a, b, c;
};
// Row-major C[m,n] = alpha op(A) op(B) + beta C, C in f32; A and B in bfloat16 with ES_PRODUCT_BF16, else in f32.
bool es_blas_product(es_stream *s, es_product kind, bool ta, bool tb, int m, int n, int k, float alpha, const void *a, int lda,
                     const void *b, int ldb, float beta, float *c, int ldc, es_batch_of batch);
// The same by cuBLAS where it is there, else by a kernel.
void es_product_do(es_stream *s, es_product kind, bool ta, bool tb, int m, int n, int k, float alpha, const void *a, int lda,
                   const void *b, int ldb, float beta, float *c, int ldc, es_batch_of batch = {1, 0, 0, 0});
void es_to_bf16(es_stream *s, const float *x, __nv_bfloat16 *y, size_t n); // rows.cu

// ---- the parts of the table, one a file ---------------------------------------------------------------------------------------------

void es_device_ops(es_kernels *k);
void es_gemm_ops(es_kernels *k);
void es_rows_ops(es_kernels *k);
void es_matmul_ops(es_kernels *k);
void es_attention_ops(es_kernels *k);
void es_attention_back_ops(es_kernels *k);
void es_loss_ops(es_kernels *k);

// ---- small things --------------------------------------------------------------------------------------------------------------------

static inline int es_ceil_div(size_t n, size_t by)
{
    return (int)((n + by - 1) / by);
}

// Blocks of a kernel whose threads step through n elements by the whole grid: enough for all, no more than fill the card.
static inline int es_grid_for(const es_stream *s, size_t n, int threads)
{
    size_t blocks = (n + (size_t)threads - 1) / (size_t)threads, most = (size_t)s->card->sms * 16;
    return (int)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

static inline size_t es_align256(size_t n)
{
    return (n + 255) & ~(size_t)255;
}

#define ES_EACH(i, n) for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < (n); i += (size_t)gridDim.x * blockDim.x)

static __device__ __forceinline__ float es_warp_sum(float v)
{
    for (int step = 16; step > 0; step >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

static __device__ __forceinline__ float es_warp_max(float v)
{
    for (int step = 16; step > 0; step >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}

// Over all threads of the block, in every thread. red: 32 floats of shared memory that nothing else uses.
static __device__ __forceinline__ float es_block_sum(float v, float *red)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    v = es_warp_sum(v);
    __syncthreads(); // the last use of red is over
    if (lane == 0)
        red[warp] = v;
    __syncthreads();
    return es_warp_sum(lane < warps ? red[lane] : 0);
}

static __device__ __forceinline__ float es_block_max(float v, float *red)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    v = es_warp_max(v);
    __syncthreads();
    if (lane == 0)
        red[warp] = v;
    __syncthreads();
    return es_warp_max(lane < warps ? red[lane] : -INFINITY);
}

static __device__ __forceinline__ float es_as_float(float x) { return x; }
static __device__ __forceinline__ float es_as_float(__half x) { return __half2float(x); }
static __device__ __forceinline__ float es_as_float(__nv_bfloat16 x) { return __bfloat162float(x); }

#endif
