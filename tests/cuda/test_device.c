/* Cards, memory, recorded steps, and what becomes of failures. */
#include "suite.h"

#ifdef ES_SHIM
#include "shim.h"
#endif

static void test_memory(void)
{
    size_t n = (3 << 20) / 4 + 5; /* more than goes through pinned memory at once */
    float *x = noise(n, 1), *gx = UP(x, n), *gy = room(n * 4);
    near_to("what was uploaded", gx, x, n, 0);
    k->copy(pool, gy, gx, n * 4);
    near_to("what was copied", gy, x, n, 0);
    k->clear(pool, gy, 40);
    memset(x, 0, 40);
    near_to("what was cleared", gy, x, n, 0);
    for (int i = 0; i < 3000; i++) /* many small ones go through without waiting */
        k->upload(pool, gx + i, &x[n - 1 - (size_t)i], 4);
    float *got = DOWN(gx, 3000);
    for (int i = 0; i < 3000; i++)
        CHECK(got[i] == x[n - 1 - (size_t)i]);
    k->release(pool, NULL);
}

static void test_out_of_memory(void)
{
    es_error err;
    void *p = &err;
    CHECK(k->alloc(pool, &p, (size_t)1 << 45, &err) == ES_ERR_MEMORY);
    CHECK(p == NULL && strstr(err.text, "MB") && strstr(err.text, "free"));
    CHECK(k->sync(pool, &err) == 0); /* the pool goes on */
    float one = 1, *g = UP(&one, 1);
    k->axpy(pool, 1, g, g, 1);
    CHECK(*(float *)DOWN(g, 1) == 2);
    const es_cuda_pool_options o = {.workspace = (size_t)1 << 45};
    es_pool *other = pool;
    CHECK(es_cuda_pool_open(&other, card, &o, &err) == ES_ERR_MEMORY && other == NULL);
}

static void test_open(void)
{
    es_error err;
    es_cuda *c = card;
    CHECK(es_cuda_open(es_cuda_count(), &c, &err) == ES_ERR_MISSING && c == NULL);
    CHECK(es_cuda_open(-1, &c, &err) == ES_ERR_MISSING);
    char line[200], tiny[8];
    es_cuda_describe(card, line, sizeof line);
    CHECK(strstr(line, "cuda:0") == line);
    es_cuda_describe(card, tiny, sizeof tiny);
    CHECK(strlen(tiny) == 7);
    size_t left, all;
    es_cuda_memory(card, &left, &all);
    CHECK(left > 0 && left <= all);
}

/* One step as a decoding one: what it was given is uploaded within it. Each turn has other numbers and, in the middle, another shape. */
static void test_step(void)
{
    float *w = noise(64, 1), *gw = UP(w, 64), *x = host(5 * 64 * 4), *gx = room(5 * 64 * 4), *gy = room(5 * 64 * 4), *y = host(5 * 64 * 4);
    synced();
    for (int turn = 0; turn < 6; turn++) {
        int T = turn == 3 ? 5 : 2;
        size_t n = (size_t)T * 64;
        float *fresh = noise(n, 1);
        es_cuda_step_begin(pool);
        k->upload(pool, gx, fresh, n * 4);
        k->rmsnorm(pool, gx, gw, gy, T, 64, 1e-5f);
        if (turn == 4)
            k->axpy(pool, 2, gx, gy, n);
        es_cuda_step_end(pool);
        memcpy(x, fresh, n * 4);
        ref->rmsnorm(NULL, x, w, y, T, 64, 1e-5f);
        if (turn == 4)
            ref->axpy(NULL, 2, x, y, n);
        near_to("a recorded step", gy, y, n, 2e-6);
    }
    es_error err; /* what a step cannot do */
    es_cuda_step_begin(pool);
    k->download(pool, x, gx, 4);
    es_cuda_step_end(pool);
    CHECK(k->sync(pool, &err) == ES_ERR_USAGE);
    char *much = host(2 << 20), *gmuch = room(2 << 20);
    memset(much, 1, 2 << 20);
    es_cuda_step_begin(pool);
    k->upload(pool, gmuch, much, 2 << 20);
    es_cuda_step_end(pool);
    CHECK(k->sync(pool, &err) == ES_ERR_LIMIT);
    near_to("after failed steps", gw, w, 64, 0);
}

static void test_two_pools(void) /* a learner's numbers, read by a chat */
{
    const es_cuda_pool_options o = {.high_priority = true, .workspace = 1};
    es_error err;
    es_pool *chat, *learner = pool;
    if (es_cuda_pool_open(&chat, card, &o, &err))
        FAIL("%s", err.text);
    float *x = noise(1000, 1), *gx = UP(x, 1000), *gy = room(4000);
    for (int i = 0; i < 20; i++) {
        k->axpy(learner, 1, gx, gx, 1000);
        es_cuda_after(chat, learner);
        k->copy(chat, gy, gx, 4000);
        es_cuda_after(learner, chat);
        for (int j = 0; j < 1000; j++)
            x[j] += x[j];
        float *got = host(4000);
        k->download(chat, got, gy, 4000);
        CHECK(memcmp(got, x, 4000) == 0);
    }
    CHECK(k->sync(chat, &err) == 0);
    es_pool_free(chat);
}

#ifdef ES_SHIM
static void test_lost(void)
{
    es_error err;
    float one[8] = {1, 1, 1, 1, 1, 1, 1, 1}, got[8];
    es_cuda *c;
    es_pool *p, *q;
    const es_cuda_pool_options o = {.workspace = 1};
    CHECK(es_cuda_open(0, &c, &err) == 0 && es_cuda_pool_open(&p, c, &o, &err) == 0 && es_cuda_pool_open(&q, c, &o, &err) == 0);
    void *g;
    CHECK(k->alloc(p, &g, sizeof one, &err) == 0);
    k->upload(p, g, one, sizeof one);
    shim_lose_card(1);
    k->axpy(p, 1, g, g, 8);
    k->download(p, got, g, sizeof got);
    for (int i = 0; i < 8; i++)
        CHECK(got[i] == 0);
    CHECK(k->sync(p, &err) == ES_ERR_DEVICE && strstr(err.text, "card 0"));
    CHECK(es_cuda_lost(c));
    void *none = g;
    CHECK(k->alloc(p, &none, 4, &err) == ES_ERR_DEVICE && none == NULL);
    k->axpy(q, 1, g, g, 8); /* the other pool learns of it */
    CHECK(k->sync(q, &err) == ES_ERR_DEVICE);
    es_pool *another = p;
    CHECK(es_cuda_pool_open(&another, c, &o, &err) == ES_ERR_DEVICE && another == NULL);
    k->release(p, g); /* nothing ends the program */
    es_pool_free(p);
    es_pool_free(q);
    es_cuda_close(c);
    shim_lose_card(0);
}

static void test_no_card(void)
{
    es_error err;
    es_cuda *c = card;
    char line[200];
    shim_cards(0);
    CHECK(es_cuda_count() == 0);
    CHECK(es_cuda_open(0, &c, &err) == ES_ERR_MISSING && c == NULL);
    es_cuda_describe(NULL, line, sizeof line);
    CHECK(strstr(line, "no card can be used"));
    shim_cards(1);
}

static void test_small_card(void) /* the context that does not fit names what is there; what is there goes on */
{
    es_error err;
    shim_memory(shim_memory_used() + (8 << 20));
    void *p, *more;
    CHECK(k->alloc(pool, &p, 6 << 20, &err) == 0);
    CHECK(k->alloc(pool, &more, 6 << 20, &err) == ES_ERR_MEMORY);
    CHECK(strstr(err.text, "6 MB") && strstr(err.text, "2 of its"));
    k->clear(pool, p, 6 << 20);
    synced();
    k->release(pool, p);
    shim_memory((size_t)4 << 30);
}

static void test_no_blas(void)
{
    es_error err;
    es_pool *p;
    const es_cuda_pool_options o = {.workspace = 1};
    shim_blas(0);
    CHECK(es_cuda_pool_open(&p, card, &o, &err) == 0);
    char line[200];
    es_cuda_describe(card, line, sizeof line);
    CHECK(strstr(line, "no cuBLAS"));
    float a[] = {1, 2, 3, 4}, *g = UP(a, 4), *c = room(16), want[] = {7, 10, 15, 22};
    synced();
    k->gemm(p, false, false, 2, 2, 2, 1, g, 2, g, 2, 0, c, 2);
    CHECK(k->sync(p, &err) == 0);
    near_to("a product without cuBLAS", c, want, 4, 1e-6);
    es_pool_free(p);
    shim_blas(1);
}
#endif

const suite_test device_tests[] = {
    {"memory", test_memory}, {"out_of_memory", test_out_of_memory}, {"open", test_open}, {"step", test_step}, {"two_pools", test_two_pools},
#ifdef ES_SHIM
    {"lost", test_lost}, {"no_card", test_no_card}, {"small_card", test_small_card}, {"no_blas", test_no_blas},
#endif
    {NULL, NULL},
};
