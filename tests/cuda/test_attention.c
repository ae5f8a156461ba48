/* Attention, forward and backward, in f32 and on caches in half precision. */
#include "suite.h"

typedef struct shape { int T, pos0, n_head, n_kv, D; float cap; int window; } shape;

static const shape shapes[] = {
    {1, 0, 2, 1, 16, 0, 0},     {5, 0, 4, 2, 16, 0, 0},   {1, 200, 4, 2, 64, 0, 0},   {1, 700, 3, 1, 64, 0, 0},    {3, 300, 8, 2, 32, 5, 0},
    {40, 0, 4, 1, 80, 0, 0},    {70, 3, 2, 2, 24, 2, 10}, {1, 500, 4, 1, 256, 0, 100}, {20, 60, 2, 1, 512, 0, 0},  {33, 100, 6, 2, 64, 30, 64},
    {2, 1000, 2, 1, 128, 0, 9}, {9, 0, 1, 1, 300, 0, 3},  {1, 64, 2, 2, 13, 0, 0},     {17, 127, 3, 3, 48, 0, 1},
    {1, 900, 8, 1, 128, 5, 0},  {1, 333, 6, 2, 128, 0, 50}, {1, 0, 2, 2, 64, 0, 0},  {1, 150, 5, 1, 256, 0, 0},
};

static es_attn attn(const shape *s)
{
    return (es_attn){.T = s->T, .pos0 = s->pos0, .n_head = s->n_head, .n_kv = s->n_kv, .head_dim = s->D, .scale = 1 / sqrtf((float)s->D), .cap = s->cap, .window = s->window};
}

static void test_forward(void)
{
    for (int i = 0; i < LENGTH(shapes); i++) {
        es_attn a = attn(&shapes[i]);
        size_t nq = (size_t)(a.T * a.n_head * a.head_dim), nk = (size_t)((a.pos0 + a.T) * a.n_kv * a.head_dim);
        float *q = noise(nq, 2), *kk = noise(nk, 1), *v = noise(nk, 1), *out = host(nq * 4), *gout = room(nq * 4);
        char what[64];
        snprintf(what, sizeof what, "attention, shape %d", i);
        k->attention(pool, &a, UP(q, nq), UP(kk, nk), UP(v, nk), gout);
        ref->attention(NULL, &a, q, kk, v, out);
        near_to(what, gout, out, nq, 3e-6);
    }
}

static uint16_t *halves(size_t n, float scale)
{
    float *x = noise(n, scale);
    uint16_t *h = host(n * 2);
    es_f32_to_f16(x, h, n);
    return h;
}

static void test_half(void)
{
    for (int i = 0; i < LENGTH(shapes); i++) { /* several sequences of one shape, one of them without tokens, then one of another */
        enum { N = 5 };
        es_attn a[N];
        const uint16_t *kk[N], *v[N], *gk[N], *gv[N];
        size_t nq = 0;
        for (int s = 0; s < N; s++) {
            a[s] = attn(&shapes[i]);
            a[s].T = s == 1 ? 0 : s == 2 ? 1 : a[s].T;
            a[s].pos0 = s == 2 ? a[s].pos0 / 2 : a[s].pos0;
            if (s == 4)
                a[s].window = 7;
            size_t nk = (size_t)((a[s].pos0 + a[s].T) * a[s].n_kv * a[s].head_dim);
            kk[s] = halves(nk, 1), v[s] = halves(nk, 1);
            gk[s] = UP(kk[s], nk), gv[s] = UP(v[s], nk);
            nq += (size_t)(a[s].T * a[s].n_head * a[s].head_dim);
        }
        float *q = noise(nq, 2), *out = host(nq * 4), *gout = room(nq * 4);
        char what[64];
        snprintf(what, sizeof what, "attention_half, shape %d", i);
        k->attention_half(pool, a, N, UP(q, nq), gk, gv, gout);
        ref->attention_half(NULL, a, N, q, kk, v, out);
        near_to(what, gout, out, nq, 3e-6);
    }
}

static void forward_and_half(void)
{
    test_forward();
    test_half();
}

/* With room for parts the positions are shared out among blocks. */
static void test_split(void)
{
    on_pool(&(es_cuda_pool_options){.workspace = 4 << 20}, forward_and_half);
}

static void test_backward(void)
{
    for (int i = 0; i < LENGTH(shapes); i++) {
        es_attn a = attn(&shapes[i]);
        a.T += a.pos0 > 80 ? 20 : a.pos0;
        a.pos0 = 0;
        size_t nq = (size_t)(a.T * a.n_head * a.head_dim), nk = (size_t)(a.T * a.n_kv * a.head_dim);
        float *q = noise(nq, 2), *kk = noise(nk, 1), *v = noise(nk, 1), *d = noise(nq, 1);
        float *dq = host(nq * 4), *dk = host(nk * 4), *dv = host(nk * 4), *gdq = room(nq * 4), *gdk = room(nk * 4), *gdv = room(nk * 4);
        k->attention_back(pool, &a, UP(q, nq), UP(kk, nk), UP(v, nk), UP(d, nq), gdq, gdk, gdv);
        ref->attention_back(NULL, &a, q, kk, v, d, dq, dk, dv);
        char what[64];
        snprintf(what, sizeof what, "attention_back, shape %d", i);
        near_sized(what, gdv, dv, nk, 5e-6, 1e-3);
        near_sized(what, gdk, dk, nk, 1e-5, 0.1); /* a window of 1: nothing but rounding is left of them */
        near_sized(what, gdq, dq, nq, 1e-5, 0.1);
    }
}

static void check_products(void)
{
    static const shape many[] = {{70, 0, 4, 2, 16, 0, 0}, {65, 30, 3, 1, 24, 5, 0}, {130, 0, 2, 2, 32, 0, 20}, {90, 40, 4, 1, 16, 2, 33}, {64, 10, 12, 4, 8, 0, 0}};
    for (int i = 0; i < LENGTH(many); i++) {
        es_attn a = attn(&many[i]);
        size_t nq = (size_t)(a.T * a.n_head * a.head_dim), nk = (size_t)((a.pos0 + a.T) * a.n_kv * a.head_dim);
        float *q = noise(nq, 1), *kk = noise(nk, 1), *v = noise(nk, 1), *out = host(nq * 4), *gout = room(nq * 4), *gq = UP(q, nq);
        k->attention(pool, &a, gq, UP(kk, nk), UP(v, nk), gout);
        ref->attention(NULL, &a, q, kk, v, out);
        near_to("attention by products", gout, out, nq, 2e-3);
        uint16_t *hk = halves(nk, 1), *hv = halves(nk, 1);
        const uint16_t *pk = hk, *pv = hv, *gk = UP(hk, nk), *gv = UP(hv, nk);
        k->attention_half(pool, &a, 1, gq, &gk, &gv, gout);
        ref->attention_half(NULL, &a, 1, q, &pk, &pv, out);
        near_to("attention_half by products", gout, out, nq, 2e-3);
        a.pos0 = 0;
        nk = (size_t)(a.T * a.n_kv * a.head_dim);
        float *d = noise(nq, 1), *dq = host(nq * 4), *dk = host(nk * 4), *dv = host(nk * 4), *gdq = room(nq * 4), *gdk = room(nk * 4), *gdv = room(nk * 4);
        k->attention_back(pool, &a, gq, UP(kk, nk), UP(v, nk), UP(d, nq), gdq, gdk, gdv);
        ref->attention_back(NULL, &a, q, kk, v, d, dq, dk, dv);
        near_to("attention_back by products, v", gdv, dv, nk, 2e-3);
        near_to("attention_back by products, k", gdk, dk, nk, 4e-3);
        near_to("attention_back by products, q", gdq, dq, nq, 4e-3);
    }
}

/* On a pool of lower precision, many tokens go through products in TF32, in strips. */
static void test_products(void)
{
    on_pool(&(es_cuda_pool_options){.precision = ES_CUDA_BF16, .workspace = 1 << 16}, check_products);
}

static void test_limit(void) /* what cannot be done is an error, not a crash */
{
    es_attn a = {.T = 1, .n_head = 1, .n_kv = 1, .head_dim = 513, .scale = 1};
    es_error err;
    float *x = room(513 * 4);
    k->attention(pool, &a, x, x, x, x);
    CHECK(k->sync(pool, &err) == ES_ERR_LIMIT);
    CHECK(strstr(err.text, "513"));
    CHECK(k->sync(pool, &err) == 0);
}

const suite_test attention_tests[] = {
    {"forward", test_forward}, {"half", test_half}, {"split", test_split}, {"backward", test_backward}, {"products", test_products}, {"limit", test_limit}, {NULL, NULL},
};
