// Cards, pools (a stream with its workspace), memory, recorded steps, and what becomes of errors: a failed call leaves a code and a
// text with the pool, later ops of the pool do nothing, and sync hands it over. Nothing here aborts.
#include "device.cuh"

static thread_local int current_card = -1;

static void enter(int index)
{
    if (current_card != index && cudaSetDevice(index) == cudaSuccess)
        current_card = index;
}

int es_cuda_count(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess) {
        cudaGetLastError(); // no driver, or one too old: not an error to keep
        return 0;
    }
    return n;
}

// Given back memory stays with the program up to KEPT, for the next patch; what is above goes back to the card when a stream is waited for.
enum { KEPT = 256 << 20 };

static void use_memory_pool(es_cuda *c)
{
    int there = 0;
    uint64_t keep = KEPT;
    if (cudaDeviceGetAttribute(&there, cudaDevAttrMemoryPoolsSupported, c->index) != cudaSuccess || !there ||
        cudaDeviceGetDefaultMemPool(&c->pool, c->index) != cudaSuccess ||
        cudaMemPoolSetAttribute(c->pool, cudaMemPoolAttrReleaseThreshold, &keep) != cudaSuccess) {
        cudaGetLastError();
        c->pool = NULL;
    }
}

static __global__ void nothing(void)
{
    es_turn();
}

// Whether the kernels as this card runs them were compiled with what es_turn waits by: code for an older one, made over by the driver, was not.
static bool waits_its_turn(void)
{
#ifdef ES_SHIM
    (void)nothing;
    return false;
#else
    cudaFuncAttributes a;
    if (cudaFuncGetAttributes(&a, nothing) == cudaSuccess)
        return a.ptxVersion >= 90;
    cudaGetLastError();
    return false;
#endif
}

int es_cuda_open(int index, es_cuda **out, es_error *err)
{
    *out = NULL;
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess) {
        cudaGetLastError();
        return es_fail(err, ES_ERR_MISSING, "no card can be used: %s", cudaGetErrorString(e));
    }
    if (index < 0 || index >= n)
        return es_fail(err, ES_ERR_MISSING, "there is no card %d: %d can be used", index, n);
    cudaDeviceProp prop;
    if ((e = cudaGetDeviceProperties(&prop, index)) != cudaSuccess || (e = cudaSetDevice(index)) != cudaSuccess) {
        cudaGetLastError();
        return es_fail(err, ES_ERR_DEVICE, "card %d does not answer: %s", index, cudaGetErrorString(e));
    }
    if (prop.major < 8)
        return es_fail(err, ES_ERR_MISSING, "card %d, %s, is of compute capability %d.%d; 8.0 and later can be used", index, prop.name,
                       prop.major, prop.minor);
    current_card = index;
    es_cuda *c = (es_cuda *)es_calloc(1, sizeof *c);
    if (!c)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a card");
    c->index = index;
    c->sms = prop.multiProcessorCount;
    c->major = prop.major;
    c->minor = prop.minor;
    c->memory = prop.totalGlobalMem;
    snprintf(c->name, sizeof c->name, "%.*s", (int)sizeof c->name - 1, prop.name);
    pthread_mutex_init(&c->telling, NULL);
    use_memory_pool(c);
    c->soon = waits_its_turn();
    *out = c;
    return ES_OK;
}

void es_cuda_close(es_cuda *c)
{
    if (c)
        pthread_mutex_destroy(&c->telling);
    free(c);
}

// A text that was handed over stays in its place and is not told again until later ones have taken it.
void es_cuda_tell(es_cuda *c, const char *fmt, ...)
{
    char text[sizeof c->told[0]];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    pthread_mutex_lock(&c->telling);
    bool known = c->told_to - c->told_from == ES_TOLD;
    for (int i = 0; i < ES_TOLD; i++)
        known = known || !strcmp(c->told[i], text);
    if (!known)
        memcpy(c->told[c->told_to++ % ES_TOLD], text, sizeof text);
    pthread_mutex_unlock(&c->telling);
}

bool es_cuda_told(es_cuda *c, char *out, size_t n)
{
    pthread_mutex_lock(&c->telling);
    const bool any = c->told_from != c->told_to;
    if (any)
        snprintf(out, n, "%s", c->told[c->told_from++ % ES_TOLD]);
    pthread_mutex_unlock(&c->telling);
    return any;
}

void es_cuda_describe(const es_cuda *c, char *out, size_t n)
{
    if (c) {
        size_t left, all;
        int driver = 0;
        es_cuda_memory(c, &left, &all);
        if (cudaDriverGetVersion(&driver) != cudaSuccess)
            cudaGetLastError();
        snprintf(out, n, "cuda:%d %s (compute capability %d.%d, %d SMs, %.1f GB of memory, %.1f GB free, a driver of CUDA %d.%d, %s)", c->index, c->name, c->major,
                 c->minor, c->sms, (double)c->memory / 1e9, (double)left / 1e9, driver / 1000, driver % 1000 / 10,
                 es_blas_there() ? "cuBLAS" : "no cuBLAS found: slower products");
        return;
    }
    int found = 0;
    cudaError_t e = cudaGetDeviceCount(&found);
    cudaGetLastError();
    if (e == cudaSuccess && found > 0)
        snprintf(out, n, "cuda: %d %s", found, found == 1 ? "card" : "cards");
    else
        snprintf(out, n, "cuda: no card can be used: %s", e == cudaSuccess ? "there is none" : cudaGetErrorString(e));
}

void es_cuda_memory(const es_cuda *c, size_t *free_bytes, size_t *total_bytes)
{
    *free_bytes = *total_bytes = 0;
    enter(c->index);
    if (cudaMemGetInfo(free_bytes, total_bytes) != cudaSuccess)
        cudaGetLastError();
}

bool es_cuda_lost(const es_cuda *c)
{
    return __atomic_load_n(&c->lost, __ATOMIC_RELAXED);
}

// ---- errors --------------------------------------------------------------------------------------------------------------------------

// Errors of one call, after which the card goes on. All others stay until the process ends: the card is lost to it.
static bool passing(cudaError_t e)
{
    return e == cudaErrorMemoryAllocation || e == cudaErrorInvalidValue || e == cudaErrorInvalidConfiguration ||
           e == cudaErrorGraphExecUpdateFailure || e == cudaErrorStreamCaptureUnsupported || e == cudaErrorStreamCaptureInvalidated;
}

static void lose(es_cuda *c, cudaError_t e)
{
    if (!__atomic_exchange_n(&c->lost, true, __ATOMIC_RELAXED))
        es_cuda_tell(c, "card %d (%s) was lost (%s): what it did, the processor does from now on", c->index, c->name, cudaGetErrorString(e));
}

void es_stream_fail(es_stream *s, int code, const char *fmt, ...)
{
    if (s->code)
        return;
    char text[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    s->code = es_fail(&s->error, code, "%s", text);
}

void es_stream_check(es_stream *s, cudaError_t e, const char *what)
{
    if (e == cudaSuccess)
        return;
    cudaGetLastError();
    if (!passing(e))
        lose(s->card, e);
    if (e == cudaErrorMemoryAllocation)
        es_stream_fail(s, ES_ERR_MEMORY, "the card's memory is used up (%s); lower the context, the batch or the number of models on it", what);
    else
        es_stream_fail(s, ES_ERR_DEVICE, "card %d (%s): %s: %s", s->card->index, s->card->name, what, cudaGetErrorString(e));
}

bool es_stream_ready(es_stream *s)
{
    if (s->code)
        return false;
    if (es_cuda_lost(s->card)) {
        es_stream_fail(s, ES_ERR_DEVICE, "card %d (%s) was lost", s->card->index, s->card->name);
        return false;
    }
    enter(s->card->index);
    return true;
}

static int sync(es_pool *p, es_error *err)
{
    es_stream *s = es_stream_of(p);
    if (es_stream_ready(s) && !s->recording) {
        es_stream_check(s, cudaStreamSynchronize(s->stream), "waiting for the card");
        s->pinned_used = 0;
    }
    if (!s->code)
        return ES_OK;
    int code = s->code;
    if (err)
        *err = s->error;
    s->code = ES_OK; // a lost card fails again at the next op
    return code;
}

// ---- pools ----------------------------------------------------------------------------------------------------------------------------

static void close_stream(void *device)
{
    es_stream *s = (es_stream *)device;
    enter(s->card->index);
    if (s->stream)
        cudaStreamSynchronize(s->stream);
    es_blas_close(s->blas);
    if (s->step)
        cudaGraphExecDestroy(s->step);
    cudaEvent_t events[] = {s->mark, s->from, s->to};
    for (int i = 0; i < 3; i++)
        if (events[i])
            cudaEventDestroy(events[i]);
    cudaFree(s->work);
    cudaFreeHost(s->pinned);
    if (s->stream)
        cudaStreamDestroy(s->stream);
    cudaGetLastError(); // a lost card refuses all of it
    free(s);
}

static int out_of_memory(const es_cuda *c, size_t bytes, es_error *err)
{
    size_t left, all;
    es_cuda_memory(c, &left, &all);
    return es_fail(err, ES_ERR_MEMORY, "%zu MB of the card's memory are wanted, %zu of its %zu MB are free: lower the context or the batch, or use the CPU",
                   (bytes + (1 << 20) - 1) >> 20, left >> 20, all >> 20);
}

// Memory that only ever is of one size, a pool's workspace for one, is taken from the card itself.
static cudaError_t take_from_card(const es_cuda *c, void **out, size_t bytes)
{
    cudaError_t e = cudaMalloc(out, bytes);
    if (e == cudaErrorMemoryAllocation && c->pool) {
        cudaGetLastError();
        cudaMemPoolTrimTo(c->pool, 0);
        e = cudaMalloc(out, bytes);
    }
    return e;
}

int es_cuda_pool_open(es_pool **out, es_cuda *c, const es_cuda_pool_options *o, es_error *err)
{
    *out = NULL;
    if (es_cuda_lost(c))
        return es_fail(err, ES_ERR_DEVICE, "card %d (%s) was lost", c->index, c->name);
    es_stream *s = (es_stream *)es_calloc(1, sizeof *s);
    if (!s)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a stream");
    enter(c->index);
    s->card = c;
    s->o = *o;
    s->o.workspace = es_align256(o->workspace == 0 ? (size_t)64 << 20 : o->workspace < ES_WORK_MIN ? (size_t)ES_WORK_MIN : o->workspace);
    int low = 0, high = 0;
    cudaDeviceGetStreamPriorityRange(&low, &high);
    cudaError_t e = cudaStreamCreateWithPriority(&s->stream, cudaStreamNonBlocking, o->high_priority ? high : low);
    if (e == cudaSuccess)
        e = take_from_card(c, (void **)&s->work, s->o.workspace);
    if (e == cudaSuccess)
        e = cudaMallocHost((void **)&s->pinned, ES_PINNED);
    if (e == cudaSuccess)
        e = cudaEventCreateWithFlags(&s->mark, cudaEventDisableTiming);
    if (e == cudaSuccess)
        e = cudaEventCreate(&s->from);
    if (e == cudaSuccess)
        e = cudaEventCreate(&s->to);
    if (e != cudaSuccess) {
        cudaGetLastError();
        int code = e == cudaErrorMemoryAllocation ? out_of_memory(c, s->o.workspace, err)
                                                  : es_fail(err, ES_ERR_DEVICE, "card %d (%s): %s", c->index, c->name, cudaGetErrorString(e));
        close_stream(s);
        return code;
    }
    s->blas = es_blas_open(s);
    s->use_blas = true;
    int code = es_pool_open_device(out, s, close_stream, err);
    if (code)
        close_stream(s);
    return code;
}

void es_cuda_use_blas(es_pool *pool, bool use)
{
    es_stream_of(pool)->use_blas = use;
}

void es_cuda_after(es_pool *pool, es_pool *other)
{
    es_stream *s = es_stream_of(pool), *first = es_stream_of(other);
    if (!es_stream_ready(s))
        return;
    cudaError_t e = cudaEventRecord(first->mark, first->stream);
    es_stream_check(s, e == cudaSuccess ? cudaStreamWaitEvent(s->stream, first->mark, 0) : e, "waiting for another stream");
}

void es_cuda_timer_start(es_pool *pool)
{
    es_stream *s = es_stream_of(pool);
    if (es_stream_ready(s))
        es_stream_check(s, cudaEventRecord(s->from, s->stream), "timer");
}

double es_cuda_timer_stop(es_pool *pool)
{
    es_stream *s = es_stream_of(pool);
    float ms = 0;
    if (!es_stream_ready(s))
        return 0;
    cudaError_t e = cudaEventRecord(s->to, s->stream);
    if (e == cudaSuccess)
        e = cudaEventSynchronize(s->to);
    if (e == cudaSuccess)
        e = cudaEventElapsedTime(&ms, s->from, s->to);
    es_stream_check(s, e, "timer");
    return ms * 1e-3;
}

// ---- recorded steps -------------------------------------------------------------------------------------------------------------------

void es_cuda_step_begin(es_pool *pool)
{
    es_stream *s = es_stream_of(pool);
    if (!es_stream_ready(s) || s->recording)
        return;
    if (s->pinned_used > 0) { // what earlier uploads read from: this step's go to its start
        es_stream_check(s, cudaStreamSynchronize(s->stream), "waiting for the card");
        s->pinned_used = 0;
    }
    cudaError_t e = cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal);
    es_stream_check(s, e, "recording a step");
    s->recording = e == cudaSuccess;
}

void es_cuda_step_end(es_pool *pool)
{
    es_stream *s = es_stream_of(pool);
    if (!s->recording)
        return;
    s->recording = false;
    cudaGraph_t graph = NULL;
    cudaError_t e = cudaStreamEndCapture(s->stream, &graph);
    if (s->code || e != cudaSuccess || !graph) { // an op failed while it was recorded: its own error is the one to tell
        es_stream_check(s, e, "recording a step");
        if (graph)
            cudaGraphDestroy(graph);
        return;
    }
    cudaGraphExecUpdateResultInfo info;
    if (s->step && cudaGraphExecUpdate(s->step, graph, &info) != cudaSuccess) { // another shape: a new graph
        cudaGetLastError();
        cudaGraphExecDestroy(s->step);
        s->step = NULL;
    }
    if (!s->step)
        e = cudaGraphInstantiate(&s->step, graph, 0);
    if (e == cudaSuccess)
        e = cudaGraphLaunch(s->step, s->stream);
    es_stream_check(s, e, "starting a step");
    cudaGraphDestroy(graph);
}

void es_cuda_step_again(es_pool *pool)
{
    es_stream *s = es_stream_of(pool);
    if (!es_stream_ready(s))
        return;
    if (s->step)
        es_stream_check(s, cudaGraphLaunch(s->step, s->stream), "starting a step again");
    else
        es_stream_fail(s, ES_ERR_USAGE, "there is no step to start again");
}

// ---- memory ---------------------------------------------------------------------------------------------------------------------------

// Waits for this stream alone, after which the memory is every stream's to use.
static cudaError_t take(es_stream *s, void **out, size_t bytes)
{
    if (!s->card->pool)
        return cudaMalloc(out, bytes);
    cudaError_t e = cudaMallocAsync(out, bytes, s->stream);
    if (e == cudaErrorMemoryAllocation) { // what it keeps may be what is missing, or in pieces
        cudaGetLastError();
        cudaStreamSynchronize(s->stream);
        cudaMemPoolTrimTo(s->card->pool, 0);
        e = cudaMallocAsync(out, bytes, s->stream);
    }
    return e == cudaSuccess ? cudaStreamSynchronize(s->stream) : e;
}

static int alloc(es_pool *p, void **out, size_t bytes, es_error *err)
{
    es_stream *s = es_stream_of(p);
    *out = NULL;
    if (!es_stream_ready(s)) {
        if (err)
            *err = s->error;
        return s->code;
    }
    cudaError_t e = take(s, out, bytes ? bytes : 1);
    if (e == cudaSuccess)
        return ES_OK;
    *out = NULL;
    cudaGetLastError();
    if (e == cudaErrorMemoryAllocation)
        return out_of_memory(s->card, bytes, err);
    if (!passing(e))
        lose(s->card, e);
    return es_fail(err, ES_ERR_DEVICE, "card %d (%s): %s", s->card->index, s->card->name, cudaGetErrorString(e));
}

static void release(es_pool *p, void *memory)
{
    es_stream *s = es_stream_of(p);
    if (!memory)
        return;
    enter(s->card->index);
    if (s->card->pool) // in this stream's order: neither the caller nor another stream waits
        cudaFreeAsync(memory, s->stream);
    else {
        cudaStreamSynchronize(s->stream);
        cudaFree(memory);
    }
    cudaGetLastError(); // what failed before is kept already; a lost card has no memory to give back
}

// Through pinned memory, which the card reads while the caller goes on; when that is used up, the caller waits for what is on its way.
static void upload(es_pool *p, void *to, const void *host, size_t bytes)
{
    es_stream *s = es_stream_of(p);
    for (size_t done = 0, part; done < bytes; done += part) {
        if (!es_stream_ready(s))
            return;
        part = bytes - done < ES_PINNED ? bytes - done : (size_t)ES_PINNED;
        if (s->pinned_used + part > ES_PINNED) {
            if (s->recording) {
                es_stream_fail(s, ES_ERR_LIMIT, "a recorded step uploads more than %d bytes", (int)ES_PINNED);
                return;
            }
            es_stream_check(s, cudaStreamSynchronize(s->stream), "waiting for the card");
            s->pinned_used = 0;
        }
        memcpy(s->pinned + s->pinned_used, (const char *)host + done, part);
        es_stream_check(s, cudaMemcpyAsync((char *)to + done, s->pinned + s->pinned_used, part, cudaMemcpyHostToDevice, s->stream), "upload");
        s->pinned_used += es_align256(part);
    }
}

static void download(es_pool *p, void *host, const void *from, size_t bytes)
{
    es_stream *s = es_stream_of(p);
    if (s->recording)
        es_stream_fail(s, ES_ERR_USAGE, "a recorded step cannot download");
    for (size_t done = 0, part; done < bytes && es_stream_ready(s); done += part) {
        part = bytes - done < ES_PINNED ? bytes - done : (size_t)ES_PINNED;
        if (s->pinned_used + part > ES_PINNED) {
            es_stream_check(s, cudaStreamSynchronize(s->stream), "waiting for the card");
            s->pinned_used = 0;
        }
        char *at = s->pinned + s->pinned_used;
        cudaError_t e = cudaMemcpyAsync(at, (const char *)from + done, part, cudaMemcpyDeviceToHost, s->stream);
        es_stream_check(s, e == cudaSuccess ? cudaStreamSynchronize(s->stream) : e, "download");
        s->pinned_used = 0;
        memcpy((char *)host + done, at, part);
    }
    if (s->code && bytes)
        memset(host, 0, bytes);
}

static void copy(es_pool *p, void *to, const void *from, size_t bytes)
{
    es_stream *s = es_stream_of(p);
    if (bytes && es_stream_ready(s))
        es_stream_check(s, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, s->stream), "copy");
}

static void clear(es_pool *p, void *memory, size_t bytes)
{
    es_stream *s = es_stream_of(p);
    if (bytes && es_stream_ready(s))
        es_stream_check(s, cudaMemsetAsync(memory, 0, bytes, s->stream), "clear");
}

void es_device_ops(es_kernels *k)
{
    k->alloc = alloc;
    k->release = release;
    k->upload = upload;
    k->download = download;
    k->copy = copy;
    k->clear = clear;
    k->sync = sync;
}

// ---- the table ------------------------------------------------------------------------------------------------------------------------

static es_kernels table;
static int table_state; // 0: empty, 1: being filled, 2: filled

const es_kernels *es_cuda_table(void)
{
    if (__atomic_load_n(&table_state, __ATOMIC_ACQUIRE) == 2)
        return &table;
    int none = 0;
    if (__atomic_compare_exchange_n(&table_state, &none, 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        table.name = "cuda";
        es_device_ops(&table);
        es_gemm_ops(&table);
        es_rows_ops(&table);
        es_matmul_ops(&table);
        es_attention_ops(&table);
        es_attention_back_ops(&table);
        es_loss_ops(&table);
        __atomic_store_n(&table_state, 2, __ATOMIC_RELEASE);
    }
    while (__atomic_load_n(&table_state, __ATOMIC_ACQUIRE) != 2)
        ; // another thread is filling it, which takes no time
    return &table;
}
