/* The pool under stress; run it under ThreadSanitizer too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "internal.h"

typedef struct count {
    int parts, times[64], total; /* plain, not atomic: each part has its own element */
    es_pool *pool;
    uint64_t work;
} count;

static void count_part(void *user, int part, int parts)
{
    count *c = user;
    c->times[part]++;
    if (part == 0)
        c->parts = parts;
    for (volatile uint64_t i = 0; i < c->work * (uint64_t)(part + 1); i++)
        ;
    if (c->pool)
        memset(es_pool_scratch(c->pool, part), part, 4096);
}

static void run_many(es_pool *pool, int jobs, int sleep_every, uint64_t work)
{
    count c = {.pool = pool, .work = work};
    const int threads = es_pool_threads(pool);
    for (int i = 1; i <= jobs; i++) {
        es_pool_run(pool, count_part, &c);
        assert_int_equal(c.parts, threads);
        for (int p = 0; p < threads; p++)
            assert_int_equal(c.times[p], i);
        if (sleep_every && i % sleep_every == 0)
            nanosleep(&(struct timespec){.tv_nsec = 300000}, NULL); /* long enough for the workers to fall asleep */
    }
}

static void test_each_part_once(void **state)
{
    (void)state;
    static const int threads[] = {1, 2, 3, 8};
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        es_pool *pool;
        assert_int_equal(es_pool_open(&pool, threads[i], NULL), 0);
        assert_int_equal(es_pool_threads(pool), threads[i]);
        run_many(pool, 2000, 0, 0);
        run_many(pool, 100, 1, 0);
        run_many(pool, 200, 7, 3000);
        es_pool_free(pool);
    }
}

static void test_open_and_close(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++) {
        es_pool *pool;
        assert_int_equal(es_pool_open(&pool, 1 + i % 5, NULL), 0);
        if (i % 2)
            run_many(pool, i, 0, 0);
        es_pool_free(pool);
    }
    es_pool_free(NULL);
    es_pool *pool;
    assert_int_equal(es_pool_open(&pool, 0, NULL), 0);
    assert_true(es_pool_threads(pool) >= 1);
    es_pool_free(pool);
}

static void test_without_a_pool(void **state)
{
    (void)state;
    count c = {0};
    es_pool_run(NULL, count_part, &c);
    assert_int_equal(c.parts, 1);
    assert_int_equal(c.times[0], 1);
    assert_int_equal(es_pool_threads(NULL), 1);
}

/* Two pools at once, as a chat and a worker have them, both in BLAS. */
static void *multiply(void *user)
{
    es_pool *pool;
    float *a = user, c[64 * 64];
    if (es_pool_open(&pool, 2, NULL) != 0)
        return (void *)"no pool";
    const es_kernels *cpu = es_kernels_cpu();
    const char *bad = NULL;
    for (int i = 0; i < 200 && !bad; i++) {
        cpu->gemm(pool, false, false, 64, 64, 64, 1, a, 64, a, 64, 0, c, 64);
        for (int k = 0; k < 64 * 64; k++)
            if (c[k] != 64)
                bad = "wrong product";
    }
    es_pool_free(pool);
    return (void *)(uintptr_t)bad;
}

static void test_two_pools(void **state)
{
    (void)state;
    float ones[64 * 64];
    for (int i = 0; i < 64 * 64; i++)
        ones[i] = 1;
    pthread_t other;
    void *bad;
    assert_int_equal(pthread_create(&other, NULL, multiply, ones), 0);
    assert_null(multiply(ones));
    pthread_join(other, &bad);
    assert_null(bad);
}

/* ---- giving way ---- */

typedef struct priorities {
    int part[4], caller; /* niceness of who did it; of who opened the pool */
} priorities;

static int niceness(void)
{
    return getpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid));
}

static void note_niceness(void *user, int part, int parts)
{
    priorities *p = user;
    assert_int_equal(parts, 4);
    p->part[part] = niceness();
    nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL); /* so that the others take a part each */
}

static void *give_way(void *user)
{
    priorities *p = user;
    es_pool *pool;
    es_thread_give_way();
    p->caller = niceness();
    if (es_pool_open(&pool, 4, NULL) != 0)
        return (void *)"no pool";
    es_pool_run(pool, note_niceness, p);
    es_pool_free(pool);
    return NULL;
}

/* A thread that gives way, and the pool that it opens, come after others; other threads stay as they are. */
static void test_giving_way(void **state)
{
    (void)state;
    priorities p = {.part = {-99, -99, -99, -99}}, own = p;
    pthread_t other;
    void *bad;
    es_pool *pool;
    const int before = niceness();
    if (before > 9)
        skip();
    assert_int_equal(pthread_create(&other, NULL, give_way, &p), 0);
    pthread_join(other, &bad);
    assert_null(bad);
    assert_true(p.caller > before);
    for (int i = 0; i < 4; i++)
        assert_int_equal(p.part[i], p.caller);
    assert_int_equal(es_pool_open(&pool, 4, NULL), 0);
    es_pool_run(pool, note_niceness, &own);
    es_pool_free(pool);
    for (int i = 0; i < 4; i++)
        assert_int_equal(own.part[i], before);
}

/* An idle pool sleeps: its threads together use next to no processor time. */
static void test_idle_costs_nothing(void **state)
{
    (void)state;
    es_pool *pool;
    assert_int_equal(es_pool_open(&pool, 4, NULL), 0);
    run_many(pool, 10, 0, 0);
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    struct timespec a, b;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    double used = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) * 1e-9;
    assert_true(used < 0.02);
    es_pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_part_once), cmocka_unit_test(test_open_and_close),    cmocka_unit_test(test_without_a_pool),
        cmocka_unit_test(test_two_pools),      cmocka_unit_test(test_idle_costs_nothing),
        cmocka_unit_test(test_giving_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
