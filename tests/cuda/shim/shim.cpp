// Runs the kernels of kernels/cuda on the processor, to test their logic where there is no card.
//
// A block's threads are fibers, each with a stack of its own, run one at a time on the thread that launched. A fiber runs until it reaches a
// barrier or a shuffle whose other threads have not come; then the next one runs. So everything is deterministic, and the order of the threads
// is a parameter (shim_order): code that lacks a barrier gives another result in another order. Threads that wait for one another in different
// places, or for one that has left, are a mistake that a card might forgive: here the program says which kernel and ends.
//
// Memory of the card is memory of its own allocation, filled with NaNs, so that a test sees what was never written. It can be touched only while
// a kernel or a copy runs: host code that follows a pointer of the card's dies, and the program says so (under AddressSanitizer, which then sees
// what reaches past an end, that is left out). The other way round, a kernel is not started with a pointer that is not the card's.
// Streams do their work at once, in the thread that asks, one at a time; a stream that is recorded keeps it.
#include "cuda_runtime.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>
#include <vector>

#include "shim.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define FIBERS_TOLD 1
#endif
#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

// ---- fibers ---------------------------------------------------------------------------------------------------------------------------

static const size_t STACK = 128 << 10;
enum state { READY, AT_BARRIER, AT_SHUFFLE, LEFT };

struct fiber {
    char *stack;
    void *sp; // saved, while another runs
    state is;
    dim3 thread;
#if FIBERS_TOLD
    void *fake;
#endif
#if !defined(__x86_64__) && !defined(__aarch64__)
    ucontext_t context;
#endif
};

static std::vector<fiber> fibers;
static struct at_exit {
    ~at_exit()
    {
        for (fiber &f : fibers)
            free(f.stack);
    }
} stacks_are_freed;
static fiber scheduler, *running;
static const std::function<void()> *body;
static const char *kernel_name = "";
shim_place shim_here;
static char *shared_memory;

static void wrong(const char *what)
{
    fprintf(stderr, "shim: kernel %s, block (%u, %u, %u), thread %u: %s\n", kernel_name, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, what);
    abort();
}

#if defined(__x86_64__)
// Saves what a call must keep, swaps stacks, takes it back from the other one.
__asm__(".text\n.globl shim_switch\n.type shim_switch,@function\nshim_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n.size shim_switch,.-shim_switch\n");
extern "C" void shim_switch(void **save, void *load);
#elif defined(__aarch64__)
__asm__(".text\n.globl shim_switch\n.type shim_switch,%function\nshim_switch:\n"
        "stp x29,x30,[sp,#-160]!\nstp x19,x20,[sp,#16]\nstp x21,x22,[sp,#32]\nstp x23,x24,[sp,#48]\nstp x25,x26,[sp,#64]\n"
        "stp x27,x28,[sp,#80]\nstp d8,d9,[sp,#96]\nstp d10,d11,[sp,#112]\nstp d12,d13,[sp,#128]\nstp d14,d15,[sp,#144]\n"
        "mov x9,sp\nstr x9,[x0]\nmov sp,x1\n"
        "ldp x19,x20,[sp,#16]\nldp x21,x22,[sp,#32]\nldp x23,x24,[sp,#48]\nldp x25,x26,[sp,#64]\nldp x27,x28,[sp,#80]\n"
        "ldp d8,d9,[sp,#96]\nldp d10,d11,[sp,#112]\nldp d12,d13,[sp,#128]\nldp d14,d15,[sp,#144]\n"
        "ldp x29,x30,[sp],#160\nret\n.size shim_switch,.-shim_switch\n");
extern "C" void shim_switch(void **save, void *load);
#endif

static void switch_to(fiber *from, fiber *to, bool leaving)
{
#if FIBERS_TOLD
    static const void *main_bottom;
    static size_t main_size;
    const void *bottom = to == &scheduler ? main_bottom : to->stack;
    __sanitizer_start_switch_fiber(leaving ? NULL : &from->fake, bottom, to == &scheduler ? main_size : STACK);
#else
    (void)leaving;
#endif
#if defined(__x86_64__) || defined(__aarch64__)
    shim_switch(&from->sp, to->sp);
#else
    swapcontext(&from->context, &to->context);
#endif
#if FIBERS_TOLD
    const void *old_bottom;
    size_t old_size;
    __sanitizer_finish_switch_fiber(from->fake, &old_bottom, &old_size);
    if (from != &scheduler)
        main_bottom = old_bottom, main_size = old_size;
#endif
}

static void wait(state is)
{
    fiber *self = running;
    self->is = is;
    switch_to(self, &scheduler, false);
    shim_here.thread = self->thread;
}

#if FIBERS_TOLD
static const void *seen_bottom;
static size_t seen_size;
#endif

static void fiber_main(void)
{
#if FIBERS_TOLD
    __sanitizer_finish_switch_fiber(NULL, &seen_bottom, &seen_size);
#endif
    (*body)();
    running->is = LEFT;
    switch_to(running, &scheduler, true);
    abort();
}

static void prepare(fiber *f)
{
    if (!f->stack && !(f->stack = (char *)malloc(STACK)))
        abort();
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(f->stack, STACK); // fiber_main of a block before this never returned: its frame is still marked
#endif
    f->is = READY;
#if defined(__x86_64__)
    void **top = (void **)(((uintptr_t)f->stack + STACK) & ~(uintptr_t)15);
    *--top = NULL;               // where fiber_main would return to; keeps the stack as a call leaves it
    *--top = (void *)fiber_main; // shim_switch returns into it
    for (int i = 0; i < 6; i++)
        *--top = NULL;
    f->sp = top;
#elif defined(__aarch64__)
    char *top = (char *)(((uintptr_t)f->stack + STACK) & ~(uintptr_t)15) - 160;
    memset(top, 0, 160);
    ((void **)top)[1] = (void *)fiber_main;
    f->sp = top;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK;
    makecontext(&f->context, fiber_main, 0);
#endif
}

// ---- warps and blocks ------------------------------------------------------------------------------------------------------------------

struct warp { // a shuffle that is under way. Two sets of values: a lane can be one shuffle ahead of another, no more
    unsigned arrived, mask;
    int kind;
    uint64_t turn, value[2][32];
};
static std::vector<warp> warps;
static int order_mode;
static long launches;

void *shim_shared(void)
{
    return shared_memory;
}

void shim_barrier(void)
{
    wait(AT_BARRIER);
}

static const uint64_t *exchange(unsigned mask, int kind, uint64_t value)
{
    const unsigned thread = threadIdx.x, lane = thread % 32;
    warp *w = &warps[thread / 32];
    if (!(mask >> lane & 1))
        wrong("a lane shuffles that its own mask leaves out");
    if (w->arrived && (w->mask != mask || w->kind != kind))
        wrong("lanes of a warp are in different shuffles");
    w->mask = mask;
    w->kind = kind;
    w->arrived |= 1u << lane;
    const uint64_t *values = w->value[w->turn & 1];
    w->value[w->turn & 1][lane] = value;
    if (w->arrived == mask) {
        w->arrived = 0;
        w->turn++;
        for (unsigned i = 0; i < 32; i++)
            if (mask >> i & 1 && i != lane)
                fibers[thread / 32 * 32 + i].is = READY;
    } else
        wait(AT_SHUFFLE);
    return values;
}

uint64_t shim_exchange(unsigned mask, int kind, uint64_t value, int from)
{
    return exchange(mask, kind, value)[from];
}

unsigned shim_vote(unsigned mask, bool yes)
{
    const uint64_t *values = exchange(mask, 6, yes);
    unsigned out = 0;
    for (int i = 0; i < 32; i++)
        out |= mask >> i & 1 && values[i] ? 1u << i : 0;
    return out;
}

// The i-th of n things in the order that was asked for.
static std::vector<unsigned> order_of(unsigned n)
{
    std::vector<unsigned> out(n);
    uint64_t x = 0x9e3779b97f4a7c15ull * (uint64_t)(order_mode + 1);
    for (unsigned i = 0; i < n; i++)
        out[i] = order_mode == 1 ? n - 1 - i : i;
    for (unsigned i = n; order_mode > 1 && i > 1; i--) {
        x = x * 6364136223846793005ull + 1442695040888963407ull;
        std::swap(out[i - 1], out[(x >> 33) % i]);
    }
    return out;
}

static void run_block(unsigned threads, const std::vector<unsigned> &warp_order, const std::vector<unsigned> &lane_order)
{
    for (unsigned i = 0; i < threads; i++) {
        prepare(&fibers[i]);
        fibers[i].thread = dim3(i, 0, 0);
    }
    for (warp &w : warps)
        w = warp{};
    for (;;) {
        for (unsigned w : warp_order)
            for (bool any = true; any;) {
                any = false;
                for (unsigned lane : lane_order) {
                    fiber *f = &fibers[w * 32 + lane];
                    if (f->is != READY)
                        continue;
                    any = true;
                    running = f;
                    shim_here.thread = f->thread;
                    switch_to(&scheduler, f, false);
                }
            }
        unsigned left = 0, waiting = 0;
        for (unsigned i = 0; i < threads; i++) {
            left += fibers[i].is == LEFT;
            waiting += fibers[i].is == AT_BARRIER;
        }
        if (left == threads)
            return;
        if (left + waiting < threads)
            wrong("lanes wait in a shuffle for lanes that do not come");
        if (left)
            wrong("threads wait at a barrier for threads that have left");
        for (unsigned i = 0; i < threads; i++)
            fibers[i].is = READY;
    }
}

static void run_grid(dim3 grid, dim3 block, size_t shared, const char *name, const std::function<void()> &what)
{
    const unsigned threads = block.x;
    if (fibers.size() < threads)
        fibers.resize(threads);
    warps.resize(threads / 32);
    body = &what;
    kernel_name = name;
    shim_here.block_size = block;
    shim_here.grid = grid;
    launches++;
    const std::vector<unsigned> blocks = order_of(grid.x), warp_order = order_of(threads / 32), lane_order = order_of(32);
    shared_memory = (char *)aligned_alloc(16, (shared + 15) / 16 * 16 + 16);
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x : blocks) {
                memset(shared_memory, 0xff, shared);
                shim_here.block = dim3(x, y, z);
                run_block(threads, warp_order, lane_order);
            }
    free(shared_memory);
    shared_memory = NULL;
}

// ---- the runtime's functions -----------------------------------------------------------------------------------------------------------

struct shim_graph { std::vector<std::function<void()>> work; std::vector<int> kind; };
struct shim_stream { bool recording; shim_graph recorded; };
struct shim_event { int unused; };

static thread_local cudaError_t last = cudaSuccess;
static bool lost, blas_there = true;
static long records;
static long from_environment(const char *name, long otherwise)
{
    const char *value = getenv(name);
    return value ? atol(value) : otherwise;
}
static long lose_after = from_environment("SHIM_LOSE_AFTER", -1); // kernels until the card is lost; negative: never
static int cards = 1;
static size_t memory_all = (size_t)from_environment("SHIM_MEMORY_MB", 4096) << 20, memory_used;

// ---- the card's memory -----------------------------------------------------------------------------------------------------------------

struct piece { size_t n; char *map; size_t mapped; }; // map: pages of its own, the last of which is never opened; NULL under AddressSanitizer
static std::map<char *, piece> allocated;
static std::recursive_mutex one_at_a_time;
static int open_depth;
enum { PAGE = 4096, GUARDED = 16 << 20 /* a real model's weights stay open: closing them takes longer than many a kernel */ };

static const piece *piece_at(const void *p, char **start)
{
    auto after = allocated.upper_bound((char *)p);
    if (after == allocated.begin())
        return NULL;
    auto at = std::prev(after);
    *start = at->first;
    return (char *)p <= at->first + at->second.n ? &at->second : NULL;
}

static void protect(const piece &a, int how)
{
    if (a.map && a.n <= GUARDED && mprotect(a.map, a.mapped - PAGE, how) != 0)
        abort();
}

// While one of these lives, its thread works for the card and may touch the card's memory.
struct on_card {
    std::lock_guard<std::recursive_mutex> alone;
    on_card() : alone(one_at_a_time)
    {
        if (open_depth++ == 0)
            for (auto &a : allocated)
                protect(a.second, PROT_READ | PROT_WRITE);
    }
    ~on_card()
    {
        if (--open_depth == 0)
            for (auto &a : allocated)
                protect(a.second, PROT_NONE);
    }
};

#ifndef FIBERS_TOLD
static void touched(int, siginfo_t *info, void *)
{
    char *start; // the map is only read, and by the thread that fell
    const char *what = piece_at(info->si_addr, &start) ? "shim: host code touched the card's memory\n" : "shim: a bad address was touched\n";
    ssize_t ignored = write(2, what, strlen(what));
    (void)ignored;
    signal(SIGSEGV, SIG_DFL);
    raise(SIGSEGV);
}
#endif

static char *take_memory(size_t n, piece *a)
{
    *a = piece{n, NULL, 0};
#ifdef FIBERS_TOLD
    // Aligned as a card's memory is, and not a byte longer than asked for: reading past the end shows.
    void *p;
    return posix_memalign(&p, 256, n ? n : 1) == 0 ? (char *)p : NULL;
#else
    static const bool told = [] {
        struct sigaction how = {};
        how.sa_sigaction = touched;
        how.sa_flags = SA_SIGINFO;
        return sigaction(SIGSEGV, &how, NULL) == 0;
    }();
    (void)told;
    const size_t used = (n + 255) / 256 * 256, pages = (used + PAGE - 1) / PAGE * PAGE + (used ? 0 : PAGE);
    void *map = mmap(NULL, pages + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    a->map = (char *)map;
    a->mapped = pages + PAGE;
    if (n > GUARDED && mprotect(map, pages, PROT_READ | PROT_WRITE) != 0)
        return NULL;
    return a->map + pages - used;
#endif
}

static void give_memory(char *p, const piece &a)
{
    if (a.map)
        munmap(a.map, a.mapped);
    else
        free(p);
}

void shim_look(const char *kernel, const void *p)
{
    std::lock_guard<std::recursive_mutex> alone(one_at_a_time);
    char *start;
    if (p && !piece_at(p, &start)) {
        fprintf(stderr, "shim: kernel %s was given %p, which is not in the card's memory\n", kernel, p);
        abort();
    }
}

static void look(const char *what, const void *p, size_t n, bool wanted)
{
    char *start;
    const piece *a = piece_at(p, &start);
    const bool there = a && (const char *)p < start + a->n;
    if (n == 0 || (wanted ? there && (const char *)p + n <= start + a->n : !there))
        return;
    fprintf(stderr, "shim: %s: %p, %zu bytes, %s the card's memory\n", what, p, n, wanted ? "is not in" : "is in");
    abort();
}

static cudaError_t fail(cudaError_t e)
{
    if (e != cudaSuccess)
        last = e;
    return e;
}

static cudaError_t answer(void)
{
    return fail(lost ? cudaErrorLaunchFailure : cudaSuccess);
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t e = lost ? cudaErrorLaunchFailure : last;
    last = cudaSuccess;
    return e;
}

const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    default: return "an error";
    }
}

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = cards;
    return fail(cards ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int index)
{
    (void)index;
    *p = cudaDeviceProp{};
    snprintf(p->name, sizeof p->name, "a processor (shim)");
    p->major = 9;
    p->multiProcessorCount = 4;
    p->totalGlobalMem = memory_all;
    return answer();
}

cudaError_t cudaDriverGetVersion(int *version) { *version = 12040; return answer(); }
cudaError_t cudaSetDevice(int) { return answer(); }
cudaError_t cudaDeviceGetStreamPriorityRange(int *low, int *high) { *low = 0, *high = -5; return answer(); }

cudaError_t cudaMemGetInfo(size_t *left, size_t *all)
{
    *left = memory_used < memory_all ? memory_all - memory_used : 0;
    *all = memory_all;
    return answer();
}

cudaError_t cudaMalloc(void **out, size_t n)
{
    *out = NULL;
    if (answer() != cudaSuccess)
        return last;
    std::lock_guard<std::recursive_mutex> alone(one_at_a_time);
    piece a;
    if (n > memory_all || memory_used > memory_all - n || !(*out = take_memory(n, &a)))
        return fail(cudaErrorMemoryAllocation);
    allocated[(char *)*out] = a;
    memory_used += n;
    on_card working;
    memset(*out, 0xff, n);
    return cudaSuccess;
}

static std::atomic<long> waits;
static bool pools_there = true;
struct shim_pool { int unused; };
static shim_pool the_pool;

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int) { *value = pools_there; return answer(); }
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *out, int) { *out = &the_pool; return answer(); }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *) { return answer(); }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return answer(); }

cudaError_t cudaMallocAsync(void **out, size_t n, cudaStream_t s)
{
    return s->recording ? fail(cudaErrorStreamCaptureUnsupported) : cudaMalloc(out, n);
}

cudaError_t cudaFreeAsync(void *p, cudaStream_t s)
{
    waits -= p != NULL; // not this one
    return s->recording ? fail(cudaErrorStreamCaptureUnsupported) : cudaFree(p);
}

cudaError_t cudaFree(void *p)
{
    if (!p)
        return cudaSuccess;
    waits++;
    std::lock_guard<std::recursive_mutex> alone(one_at_a_time);
    auto at = allocated.find((char *)p);
    if (at == allocated.end()) {
        fprintf(stderr, "shim: cudaFree of what was not allocated\n");
        abort();
    }
    memory_used -= at->second.n;
    give_memory(at->first, at->second);
    allocated.erase(at);
    return answer();
}

cudaError_t cudaMallocHost(void **out, size_t n) { *out = malloc(n); return *out ? answer() : fail(cudaErrorMemoryAllocation); }
cudaError_t cudaFreeHost(void *p) { free(p); return answer(); }

static void give(cudaStream_t s, int kind, std::function<void()> what)
{
    if (s->recording) {
        s->recorded.work.push_back(what);
        s->recorded.kind.push_back(kind);
        return;
    }
    on_card working;
    what();
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t s)
{
    if (answer() == cudaSuccess) {
        std::lock_guard<std::recursive_mutex> alone(one_at_a_time);
        look("a copy's target", to, n, kind != cudaMemcpyDeviceToHost);
        look("a copy's source", from, n, kind != cudaMemcpyHostToDevice);
        give(s, 10 + kind, [=] { memcpy(to, from, n); });
    }
    return lost ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int byte, size_t n, cudaStream_t s)
{
    if (answer() == cudaSuccess) {
        std::lock_guard<std::recursive_mutex> alone(one_at_a_time);
        look("what is cleared", p, n, true);
    }
    if (answer() == cudaSuccess)
        give(s, 20, [=] { memset(p, byte, n); });
    return lost ? cudaErrorLaunchFailure : cudaSuccess;
}

void shim_start(cudaStream_t s, dim3 grid, dim3 block, size_t shared, const char *name, std::function<void()> what)
{
    {
        std::lock_guard<std::recursive_mutex> alone(one_at_a_time);
        if (lose_after >= 0 && lose_after-- == 0)
            lost = true;
    }
    if (lost)
        return;
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || !block.x || block.x > 1024 || block.x % 32 || block.y != 1 ||
        block.z != 1 || shared > 48 << 10) {
        fail(cudaErrorInvalidConfiguration);
        return;
    }
    give(s, 30, [=] { run_grid(grid, block, shared, name, what); });
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned, int) { *out = new shim_stream{}; return answer(); }
cudaError_t cudaStreamDestroy(cudaStream_t s) { delete s; return answer(); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return answer(); }
cudaError_t cudaEventCreate(cudaEvent_t *out) { *out = new shim_event{}; return answer(); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned) { return cudaEventCreate(out); }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return answer(); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return answer(); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t) { *ms = 1; return answer(); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { delete e; return answer(); }

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    return fail(lost ? cudaErrorLaunchFailure : s->recording ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode)
{
    s->recording = true;
    records++;
    s->recorded = shim_graph{};
    return answer();
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out)
{
    s->recording = false;
    *out = new shim_graph(s->recorded);
    return answer();
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t g, unsigned long long) { *out = new shim_graph(*g); return answer(); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { delete e; return answer(); }
cudaError_t cudaGraphDestroy(cudaGraph_t g) { delete g; return answer(); }

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t e, cudaGraph_t g, cudaGraphExecUpdateResultInfo *)
{
    if (e->kind != g->kind)
        return fail(cudaErrorGraphExecUpdateFailure);
    *e = *g;
    return answer();
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t)
{
    on_card working;
    for (const std::function<void()> &f : e->work) {
        if (lose_after >= 0 && lose_after-- == 0)
            lost = true;
        if (!lost)
            f();
    }
    return answer();
}

// ---- for the tests -----------------------------------------------------------------------------------------------------------------------

void shim_order(int order) { order_mode = order; }
void shim_cards(int n) { cards = n; }
void shim_memory(size_t bytes) { memory_all = bytes; }
size_t shim_memory_used(void) { return memory_used; }
void shim_lose_card(int lose) { lost = lose != 0; last = cudaSuccess; lose_after = -1; }
long shim_waits(void) { return waits; }
void shim_pools(int there) { pools_there = there != 0; }
void shim_lose_after(long n) { lose_after = n; }
void shim_blas(int there) { blas_there = there != 0; }
long shim_records(void) { return records; }
long shim_launches(void) { return launches; }
bool shim_blas_there(void) { return blas_there; }
