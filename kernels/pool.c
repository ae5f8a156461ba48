/* A pool of threads for jobs of microseconds, on a machine that others use too.
 *
 * The parts of a job are claimed, not assigned: when a worker comes late (its core is busy with someone else's work), the caller
 * takes its part, so nobody waits for a thread that has not started. A worker that loses its core within a part does hold up
 * the caller, for a time slice of milliseconds; when waiting took longer than the caller's own share of the work, the caller does
 * the next milliseconds' jobs alone, and longer each time that a new try ends the same way.
 *
 * state packs (job number, next unclaimed part). The caller writes fn and user, then publishes a new state; a thread that claims
 * a part by compare-and-swap therefore sees them, and they stay until that part is finished, because the caller waits for it. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

/* Looks at the state this often before a thread sleeps: some 50 us, longer than the gaps between the ops of a token and far
 * shorter than the pause between two messages. */
enum { SPINS = 2000, MAX_THREADS = 256 };
static const double LONG_WAIT = 200e-6, ALONE_MIN = 2e-3, ALONE_MAX = 64e-3; /* seconds */

struct es_pool {
    int threads;
    void (*fn)(void *user, int part, int parts);
    void *user;
    _Atomic uint64_t state; /* job << 32 | next part */
    _Atomic int left;       /* parts not yet finished */
    _Atomic int sleepers;   /* workers in cond_wait, or about to be, that nobody has woken yet: to wake one takes the caller as long
                               as a small job does, and a busy machine lets it run much later */
    _Atomic bool caller_sleeps, stop;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    double alone, alone_until; /* the caller's: length of the last spell without the workers, and when it ends */
    int started; /* workers that run, for es_pool_free */
    pthread_t *worker;
    char *scratch;
    void *device; /* an accelerator's stream, whose pool this is; else NULL */
    void (*close_device)(void *device);
};

static inline void pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static bool claim(es_pool *p, int *part)
{
    uint64_t s = atomic_load(&p->state);
    while ((int)(uint32_t)s < p->threads)
        if (atomic_compare_exchange_weak(&p->state, &s, s + 1)) {
            *part = (int)(uint32_t)s;
            return true;
        }
    return false;
}

static void finish_part(es_pool *p)
{
    if (atomic_fetch_sub(&p->left, 1) == 1 && atomic_load(&p->caller_sleeps)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_signal(&p->done);
        pthread_mutex_unlock(&p->lock);
    }
}

static bool work_waits(es_pool *p)
{
    return (int)(uint32_t)atomic_load(&p->state) < p->threads || atomic_load(&p->stop);
}

static void *work(void *user)
{
    es_pool *p = user;
    for (;;) {
        int part;
        if (claim(p, &part)) {
            p->fn(p->user, part, p->threads);
            finish_part(p);
            continue;
        }
        int spin = 0;
        while (spin < SPINS && !work_waits(p)) {
            pause_cpu();
            spin++;
        }
        if (spin == SPINS) {
            pthread_mutex_lock(&p->lock);
            atomic_fetch_add(&p->sleepers, 1); /* before the look at state: the caller publishes, then looks at sleepers */
            if (!work_waits(p))
                pthread_cond_wait(&p->wake, &p->lock); /* then, too, it looks out for more before it sleeps again */
            pthread_mutex_unlock(&p->lock);
        }
        if (atomic_load(&p->stop))
            return NULL;
    }
}

int es_pool_open(es_pool **out, int threads, es_error *err)
{
    *out = NULL;
    if (threads <= 0)
        threads = (int)sysconf(_SC_NPROCESSORS_ONLN);
    threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;

    es_pool *p = es_calloc(1, sizeof *p);
    if (!p)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a thread pool");
    p->threads = threads;
    atomic_init(&p->state, (uint64_t)threads); /* job 0: nothing to claim */
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    p->worker = es_calloc((size_t)threads, sizeof *p->worker);
    p->scratch = aligned_alloc(64, (size_t)threads * ES_SCRATCH);
    if (!p->worker || !p->scratch) {
        es_pool_free(p);
        return es_fail(err, ES_ERR_MEMORY, "no memory for the scratch of %d threads (%d MiB)", threads, threads * (ES_SCRATCH >> 20));
    }
    for (int i = 1; i < threads; i++) {
        if (pthread_create(&p->worker[p->started], NULL, work, p) != 0) {
            es_pool_free(p);
            return es_fail(err, ES_ERR_IO, "cannot start thread %d of %d; try fewer threads", i + 1, threads);
        }
        p->started++;
    }
    *out = p;
    return ES_OK;
}

int es_pool_open_device(es_pool **out, void *device, void (*close)(void *device), es_error *err)
{
    *out = NULL;
    es_pool *p = es_calloc(1, sizeof *p);
    if (!p)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a pool");
    p->threads = 1;
    p->device = device;
    p->close_device = close;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    *out = p;
    return ES_OK;
}

void *es_pool_device(const es_pool *p)
{
    return p ? p->device : NULL;
}

void es_pool_free(es_pool *p)
{
    if (!p)
        return;
    if (p->device)
        p->close_device(p->device);
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->stop, true);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->started; i++)
        pthread_join(p->worker[i], NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->done);
    free(p->worker);
    free(p->scratch);
    free(p);
}

int es_pool_threads(const es_pool *p)
{
    return p ? p->threads : 1;
}

void *es_pool_scratch(es_pool *p, int part)
{
    return p->scratch + (size_t)part * ES_SCRATCH;
}

static void wait_for_workers(es_pool *p)
{
    for (int spin = 0; spin < SPINS; spin++) {
        if (atomic_load(&p->left) == 0)
            return;
        pause_cpu();
    }
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->caller_sleeps, true); /* before the look at left: the last worker counts down, then looks at this */
    while (atomic_load(&p->left) > 0)
        pthread_cond_wait(&p->done, &p->lock);
    atomic_store(&p->caller_sleeps, false);
    pthread_mutex_unlock(&p->lock);
}

void es_pool_run(es_pool *p, void (*fn)(void *user, int part, int parts), void *user)
{
    if (!p || p->threads == 1) {
        fn(user, 0, 1);
        return;
    }
    const double start = es_seconds();
    if (start < p->alone_until) {
        for (int part = 0; part < p->threads; part++)
            fn(user, part, p->threads);
        return;
    }
    p->fn = fn;
    p->user = user;
    atomic_store(&p->left, p->threads);
    uint64_t job = (atomic_load_explicit(&p->state, memory_order_relaxed) >> 32) + 1;
    atomic_store(&p->state, job << 32 | 1); /* part 0 is the caller's */
    if (atomic_load(&p->sleepers) > 0 && atomic_exchange(&p->sleepers, 0) > 0) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
    }

    int part = 0;
    do {
        fn(user, part, p->threads);
        atomic_fetch_sub(&p->left, 1);
    } while (claim(p, &part));
    const double done = es_seconds();
    wait_for_workers(p);
    const double waited = es_seconds() - done;
    if (waited > LONG_WAIT && waited > done - start) {
        p->alone = p->alone < ALONE_MIN ? ALONE_MIN : p->alone * 2 > ALONE_MAX ? ALONE_MAX : p->alone * 2;
        p->alone_until = done + waited + p->alone;
    } else if (p->alone > 0 && done + waited > p->alone_until + p->alone) {
        p->alone = 0; /* as long together without a long wait */
    }
}
