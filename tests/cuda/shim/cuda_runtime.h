// Stands in for CUDA's header when kernels/cuda/*.cu is compiled for the processor (shim.cpp says how it runs). Only what those files use.
#ifndef SHIM_CUDA_RUNTIME_H
#define SHIM_CUDA_RUNTIME_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <tuple>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) float4 { float x, y, z, w; }; // aligned as on a card, so that UBSan sees a load that is not
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// ---- inside a kernel ----

struct shim_place { dim3 thread, block, block_size, grid; };
extern shim_place shim_here; // of the thread that runs
#define threadIdx (shim_here.thread)
#define blockIdx (shim_here.block)
#define blockDim (shim_here.block_size)
#define gridDim (shim_here.grid)

void *shim_shared(void);
void shim_barrier(void);
// All lanes named by mask give a value; each gets that of lane `from(lane)`. kind: which function it was, to catch lanes in different ones.
uint64_t shim_exchange(unsigned mask, int kind, uint64_t value, int from);
unsigned shim_vote(unsigned mask, bool yes);

static inline void __syncthreads() { shim_barrier(); }
static inline void __syncwarp(unsigned mask = 0xffffffffu) { shim_exchange(mask, 1, 0, threadIdx.x % 32); }

template <class T> static inline T shim_shuffle(unsigned mask, int kind, T value, int from)
{
    static_assert(sizeof(T) <= 8, "");
    uint64_t in = 0, out;
    memcpy(&in, &value, sizeof value);
    out = shim_exchange(mask, kind, in, from);
    memcpy(&value, &out, sizeof value);
    return value;
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T v, int step) { return shim_shuffle(mask, 2, v, (int)(threadIdx.x % 32) ^ step); }
template <class T> static inline T __shfl_sync(unsigned mask, T v, int lane) { return shim_shuffle(mask, 3, v, lane % 32); }
template <class T> static inline T __shfl_down_sync(unsigned mask, T v, int step)
{
    int lane = (int)(threadIdx.x % 32);
    return shim_shuffle(mask, 4, v, lane + step < 32 ? lane + step : lane);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T v, int step)
{
    int lane = (int)(threadIdx.x % 32);
    return shim_shuffle(mask, 5, v, lane >= step ? lane - step : lane);
}
static inline unsigned __ballot_sync(unsigned mask, bool yes) { return shim_vote(mask, yes); }
static inline bool __any_sync(unsigned mask, bool yes) { return shim_vote(mask, yes) != 0; }
static inline bool __all_sync(unsigned mask, bool yes) { return shim_vote(mask, yes) == mask; }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(unsigned x) { return __builtin_ffs((int)x); }
static inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) { return (unsigned)(((uint64_t)high << 32 | low) >> (by & 31)); }
static inline int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 4; i++)
        c += (int)(int8_t)(a >> 8 * i) * (int)(int8_t)(b >> 8 * i);
    return c;
}
template <class T> static inline T __ldg(const T *p) { return *p; }

// One thread runs at a time, until it waits: an atomic is what it does.
template <class T> static inline T atomicAdd(T *p, T v) { T old = *p; *p = old + v; return old; }
template <class T> static inline T atomicMax(T *p, T v) { T old = *p; *p = old > v ? old : v; return old; }
template <class T> static inline T atomicMin(T *p, T v) { T old = *p; *p = old < v ? old : v; return old; }
template <class T> static inline T atomicOr(T *p, T v) { T old = *p; *p = old | v; return old; }
template <class T> static inline T atomicExch(T *p, T v) { T old = *p; *p = v; return old; }

// ---- outside ----

enum cudaError_t {
    cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInvalidConfiguration = 9, cudaErrorNoDevice = 100,
    cudaErrorLaunchFailure = 719, cudaErrorStreamCaptureUnsupported = 900, cudaErrorStreamCaptureInvalidated = 901, cudaErrorGraphExecUpdateFailure = 910,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
typedef struct shim_stream *cudaStream_t;
typedef struct shim_event *cudaEvent_t;
typedef struct shim_graph *cudaGraph_t, *cudaGraphExec_t;
struct cudaGraphExecUpdateResultInfo { int result; };
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
    size_t totalGlobalMem;
};

cudaError_t cudaGetLastError(void);
const char *cudaGetErrorString(cudaError_t e);
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int index);
cudaError_t cudaSetDevice(int index);
cudaError_t cudaMemGetInfo(size_t *left, size_t *all);
cudaError_t cudaDeviceGetStreamPriorityRange(int *low, int *high);
cudaError_t cudaMalloc(void **out, size_t n);
cudaError_t cudaFree(void *p);
// Memory in a stream's order. cudaFree waits for the whole card, which shim_waits counts.
typedef struct shim_pool *cudaMemPool_t;
enum cudaDeviceAttr { cudaDevAttrMemoryPoolsSupported = 115 };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int device);
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *out, int device);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t p, cudaMemPoolAttr what, void *value);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t p, size_t keep);
cudaError_t cudaMallocAsync(void **out, size_t n, cudaStream_t s);
cudaError_t cudaFreeAsync(void *p, cudaStream_t s);
cudaError_t cudaMallocHost(void **out, size_t n);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t s);
cudaError_t cudaMemsetAsync(void *p, int byte, size_t n, cudaStream_t s);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int priority);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags);
cudaError_t cudaEventCreate(cudaEvent_t *out);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t g, unsigned long long flags);
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t e, cudaGraph_t g, cudaGraphExecUpdateResultInfo *info);
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e);
cudaError_t cudaGraphDestroy(cudaGraph_t g);

// Runs body once for every thread of the grid, now or, while the stream is recorded, whenever the graph is started.
void shim_start(cudaStream_t s, dim3 grid, dim3 block, size_t shared, const char *name, std::function<void()> body);

void shim_look(const char *kernel, const void *p); // p must be of the card's memory, or NULL
template <class T> static inline void shim_look_at(const char *, const T &) {}
template <class T> static inline void shim_look_at(const char *kernel, T *const &p) { shim_look(kernel, p); }

template <class... P, class... A>
static inline void shim_launch(const char *name, cudaStream_t s, dim3 grid, dim3 block, size_t shared, void (*kernel)(P...), const A &...args)
{
    std::tuple<P...> values(static_cast<P>(args)...); // what a launch copies
    std::apply([name](const P &...value) { (shim_look_at(name, value), ...); }, values);
    shim_start(s, grid, block, shared, name, [kernel, values] { std::apply(kernel, values); });
}

#endif
