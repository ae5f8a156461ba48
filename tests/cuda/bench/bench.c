/* How near the kernels of the CUDA table come to what limits them, as one JSON object. The limits are measured in the same run: reading and
 * writing by a copy that does not fit the cache, and bfloat16 products by cuBLAS. A figure is the median of five; each is the time of a
 * few calls by the card's clock. cuda_bench [SECONDS]: stops to start new parts after so many (default 120). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "es_cuda.h"
#include "bench_card.h"
#include "internal.h"
#include "sparse.h"

static es_pool *pool;
static const es_kernels *k;
static es_rng rng;
static double copy_rate, product_rate; /* bytes and operations a second */
static double stop_at;
static int lines;

static void die(const char *what)
{
    fprintf(stderr, "cuda_bench: %s\n", what);
    exit(1);
}

static void *room(size_t bytes)
{
    void *p;
    es_error err;
    if (k->alloc(pool, &p, bytes, &err))
        die(err.text);
    k->clear(pool, p, bytes);
    return p;
}

/* Random floats; large arrays repeat a piece. */
static float *noise(size_t n, float scale)
{
    enum { PIECE = 1 << 16 };
    static float piece[PIECE];
    float *p = room(n * sizeof *p);
    for (int i = 0; i < PIECE; i++)
        piece[i] = scale * es_rng_normal(&rng);
    for (size_t at = 0; at < n; at += PIECE)
        k->upload(pool, p + at, piece, sizeof *p * (n - at < PIECE ? n - at : PIECE));
    return p;
}

/* Valid blocks: small scales, any quants. */
static es_weight weight(es_type type, int n_out, int n_in)
{
    const size_t row = es_row_bytes(type, n_in), piece = row * 64;
    uint8_t *bytes = malloc(piece), *p = room(row * (size_t)n_out);
    if (!bytes)
        die("no memory");
    for (size_t i = 0; i < piece; i++) /* no half or float of these bytes is an infinity or a NaN */
        bytes[i] = (uint8_t)es_rng_below(&rng, 56);
    for (int n = 0; n < n_out; n += 64)
        k->upload(pool, p + (size_t)n * row, bytes, row * (size_t)(n_out - n < 64 ? n_out - n : 64));
    free(bytes);
    return (es_weight){type, n_out, n_in, p};
}

static int by_size(const void *a, const void *b)
{
    double d = *(const double *)a - *(const double *)b;
    return (d > 0) - (d < 0);
}

/* Median seconds of one call. */
static double timed(void (*fn)(void *user), void *user, int calls)
{
    double t[5];
    es_error err;
    fn(user);
    if (k->sync(pool, &err))
        die(err.text);
    for (int i = 0; i < 5; i++) {
        es_cuda_timer_start(pool);
        for (int c = 0; c < calls; c++)
            fn(user);
        t[i] = es_cuda_timer_stop(pool) / calls;
    }
    if (k->sync(pool, &err))
        die(err.text);
    qsort(t, 5, sizeof *t, by_size);
    return t[2];
}

/* One line; bytes or operations of a call, whichever limits it. */
static void say(const char *what, double seconds, double bytes, double operations)
{
    printf("%s\n    {\"kernel\":\"%s\",\"us\":%.1f", lines++ ? "," : "", what, seconds * 1e6);
    if (bytes > 0)
        printf(",\"GB_per_s\":%.0f,\"share_of_copy\":%.3f", bytes / seconds * 1e-9, bytes / seconds / copy_rate);
    if (operations > 0)
        printf(",\"TFLOP_per_s\":%.1f,\"share_of_bf16_product\":%.3f", operations / seconds * 1e-12, operations / seconds / product_rate);
    printf("}");
    fflush(stdout);
}

static bool time_left(void)
{
    return es_seconds() < stop_at;
}

/* ---- the parts --------------------------------------------------------------------------------------------------------------------- */

typedef struct copying { void *a, *b; size_t n; } copying;
static void do_copy(void *user)
{
    copying *c = user;
    k->copy(pool, c->a, c->b, c->n);
}

enum { WEIGHTS = 6 }; /* in turns, so that none is in the cache */
typedef struct product { es_weight w[WEIGHTS]; int at, T; float *x, *y; bool back; } product;
static void do_product(void *user)
{
    product *p = user;
    const es_weight *w = &p->w[p->at++ % WEIGHTS];
    if (p->back)
        k->matmul_back(pool, w, p->y, p->T, p->x, false);
    else
        k->matmul(pool, w, p->x, p->T, p->y, false, false);
}

static product product_of(es_type type, int n_out, int n_in, int T)
{
    product p = {.T = T, .x = noise((size_t)T * (size_t)n_in, 1), .y = noise((size_t)T * (size_t)n_out, 1)};
    for (int i = 0; i < WEIGHTS; i++)
        p.w[i] = weight(type, n_out, n_in);
    return p;
}

static void free_product(product *p)
{
    for (int i = 0; i < WEIGHTS; i++)
        k->release(pool, (void *)(uintptr_t)p->w[i].data);
    k->release(pool, p->x);
    k->release(pool, p->y);
}

static void bench_products(void)
{
    static const es_type types[] = {ES_BF16, ES_Q8_0, ES_Q4_0, ES_Q4_1, ES_Q4_K, ES_Q5_K, ES_Q6_K, ES_Q2_K, ES_Q3_K, ES_IQ4_NL};
    const int N = 14336, K = 4096;
    char what[96];
    for (size_t i = 0; i < sizeof types / sizeof *types && time_left(); i++) {
        const char *name = es_type_get((int)types[i])->name;
        product p = product_of(types[i], N, K, 512);
        static const int ts[] = {1, 4, 8};
        for (int j = 0; j < 3; j++) {
            p.T = ts[j];
            snprintf(what, sizeof what, "matmul %s %dx%d, %d tokens", name, N, K, p.T);
            say(what, timed(do_product, &p, 24), (double)es_row_bytes(types[i], K) * N, 0);
        }
        p.T = 512;
        if (types[i] == ES_BF16 || types[i] == ES_Q4_K || types[i] == ES_Q6_K) {
            snprintf(what, sizeof what, "matmul %s %dx%d, %d tokens", name, N, K, p.T);
            say(what, timed(do_product, &p, 6), 0, 2.0 * N * K * p.T);
            p.back = true;
            snprintf(what, sizeof what, "matmul_back %s %dx%d, %d tokens", name, N, K, p.T);
            say(what, timed(do_product, &p, 6), 0, 2.0 * N * K * p.T);
        }
        free_product(&p);
    }
    if (!time_left())
        return;
    product small = product_of(ES_Q4_1, 576, 576, 1); /* SmolLM2's: what a small kernel costs */
    say("matmul Q4_1 576x576, 1 token", timed(do_product, &small, 200), (double)es_row_bytes(ES_Q4_1, 576) * 576, 0);
    free_product(&small);
    product many = product_of(ES_Q4_K, N, K, 2048);
    snprintf(what, sizeof what, "matmul Q4_K %dx%d, 2048 tokens", N, K);
    say(what, timed(do_product, &many, 4), 0, 2.0 * N * K * 2048);
    free_product(&many);
}

typedef struct attending { es_attn a; float *q, *k, *v, *out, *dq, *dk, *dv; const uint16_t *hk, *hv; } attending;
static void do_attention(void *user)
{
    attending *a = user;
    k->attention(pool, &a->a, a->q, a->k, a->v, a->out);
}
static void do_attention_half(void *user)
{
    attending *a = user;
    k->attention_half(pool, &a->a, 1, a->q, &a->hk, &a->hv, a->out);
}
static void do_attention_back(void *user)
{
    attending *a = user;
    k->attention_back(pool, &a->a, a->q, a->k, a->v, a->out, a->dq, a->dk, a->dv);
}

static void bench_attention(void)
{
    const int heads = 32, kv = 8, D = 128, longest = 8192;
    attending a = {.a = {.T = 1, .n_head = heads, .n_kv = kv, .head_dim = D, .scale = 0.088f}};
    const size_t nq = (size_t)2048 * heads * 128, nk = (size_t)longest * kv * 128;
    a.q = noise(nq, 1), a.k = noise(nk, 1), a.v = noise(nk, 1), a.out = noise(nq, 1), a.dq = room(nq * 4), a.dk = room(nk * 4), a.dv = room(nk * 4);
    uint16_t *hk = room(nk * 2), *hv = room(nk * 2);
    k->to_half(pool, a.k, hk, nk);
    k->to_half(pool, a.v, hv, nk);
    a.hk = hk, a.hv = hv;
    static const int contexts[] = {512, 2048, 8192};
    char what[96];
    for (int i = 0; i < 3 && time_left(); i++) {
        a.a.pos0 = contexts[i] - 1;
        const double bytes = 2.0 * contexts[i] * kv * D;
        snprintf(what, sizeof what, "attention, 1 token on %d, f32 cache", contexts[i]);
        say(what, timed(do_attention, &a, 50), bytes * 4, 0);
        snprintf(what, sizeof what, "attention, 1 token on %d, f16 cache", contexts[i]);
        say(what, timed(do_attention_half, &a, 50), bytes * 2, 0);
    }
    a.a.pos0 = 0;
    for (int T = 512; T <= 2048 && time_left(); T *= 4) {
        a.a.T = T;
        const double operations = 2.0 * 2 * heads * D * T * T / 2;
        snprintf(what, sizeof what, "attention, %d tokens", T);
        say(what, timed(do_attention, &a, 3), 0, operations);
        snprintf(what, sizeof what, "attention_back, %d tokens", T);
        say(what, timed(do_attention_back, &a, 3), 0, operations * 2.5);
    }
    void *all[] = {a.q, a.k, a.v, a.out, a.dq, a.dk, a.dv, hk, hv};
    for (int i = 0; i < 9; i++)
        k->release(pool, all[i]);
}

typedef struct rows { float *x, *w, *y; int T, d; float *logits; int32_t *index, *target; float *value, *sum; int V; } rows;
static void do_rmsnorm(void *user)
{
    rows *r = user;
    k->rmsnorm(pool, r->x, r->w, r->y, r->T, r->d, 1e-5f);
}
static void do_swiglu(void *user)
{
    rows *r = user;
    k->swiglu(pool, r->x, r->y, r->y, (size_t)r->T * (size_t)r->d);
}
static void do_pick(void *user)
{
    rows *r = user;
    k->log_softmax_pick(pool, r->logits, r->target, 64, r->V, r->value, r->sum);
}
static void do_top(void *user)
{
    rows *r = user;
    k->top(pool, r->logits, r->V, 64, r->index, r->value, r->sum);
}
static void do_step(void *user) /* as many small kernels as a token of SmolLM2 takes */
{
    rows *r = user;
    for (int i = 0; i < 450; i++)
        k->rmsnorm(pool, r->x, r->w, r->y, 1, 576, 1e-5f);
}
static void do_recorded_step(void *user)
{
    es_cuda_step_begin(pool);
    do_step(user);
    es_cuda_step_end(pool);
}

static void bench_rows(void)
{
    rows r = {.T = 4096, .d = 4096, .V = 128256};
    const size_t n = (size_t)r.T * (size_t)r.d;
    r.x = noise(n, 1), r.w = noise(4096, 1), r.y = noise(n, 1), r.logits = noise((size_t)64 * (size_t)r.V, 3);
    r.index = room(4096), r.value = room(4096), r.sum = room(4096), r.target = room(4096);
    say("rmsnorm 4096x4096", timed(do_rmsnorm, &r, 10), 2.0 * 4 * (double)n, 0);
    say("swiglu 16M", timed(do_swiglu, &r, 10), 3.0 * 4 * (double)n, 0);
    say("log_softmax_pick 64x128256", timed(do_pick, &r, 10), 4.0 * 64 * r.V, 0);
    say("top 64 of 128256", timed(do_top, &r, 10), 4.0 * r.V, 0);
    say("450 small kernels, one by one", timed(do_step, &r, 3), 0, 0);
    say("450 small kernels, recorded", timed(do_recorded_step, &r, 3), 0, 0);
    void *all[] = {r.x, r.w, r.y, r.logits, r.index, r.value, r.sum, r.target};
    for (int i = 0; i < 8; i++)
        k->release(pool, all[i]);
}

typedef struct training { es_encoder e; es_entries l; float *x, *dec, *out, *grad, *dw, *dec_m, *dec_v; int T; } training;
static void do_encode(void *user)
{
    training *t = user;
    es_cuda_sparse()->encode(pool, &t->e, t->x, t->T, &t->l);
}
static void do_train(void *user) /* a step but for the encoder's Adam, which is as the decoder's */
{
    training *t = user;
    const es_sparse_kernels *s = es_cuda_sparse();
    const size_t n = (size_t)t->e.F * (size_t)t->e.d;
    do_encode(user);
    s->index(pool, &t->l, t->T, t->e.F);
    s->decode(pool, &t->l, t->dec, NULL, t->T, t->e.d, t->out);
    k->axpy(pool, -1, t->x, t->out, (size_t)t->T * (size_t)t->e.d);
    s->value_back(pool, &t->l, t->out, t->dec, t->T, t->e.d, 1, t->grad);
    for (int i = 0; i < 2; i++) {
        k->clear(pool, t->dw, n * sizeof(float));
        s->feature_back(pool, &t->l, i ? t->x : t->out, i ? t->grad : t->l.value, t->e.F, t->e.d, 1, t->dw, NULL);
        if (!i)
            s->project_rows(pool, t->dec, t->dw, t->e.F, t->e.d);
        k->adam(pool, t->dec, t->dw, t->dec_m, t->dec_v, n, 0.9f, 0.999f, 0, 1e-8f, 1);
    }
    s->unit_rows(pool, t->dec, t->e.F, t->e.d);
}

static void bench_dictionary(void)
{
    training t = {.T = 4096, .e = {ES_KEEP_BATCH, 65536, 2048, 64, NULL, NULL, NULL}};
    const int T = t.T, F = t.e.F, d = t.e.d, cap = T * t.e.k;
    const size_t n = (size_t)F * (size_t)d;
    t.x = noise((size_t)T * (size_t)d, 1), t.dec = noise(n, 0.02f), t.e.enc = noise(n, 0.02f), t.e.bias = noise((size_t)F, 0.01f);
    t.out = room((size_t)T * (size_t)d * 4), t.grad = room((size_t)cap * 4), t.dw = room(n * 4), t.dec_m = room(n * 4), t.dec_v = room(n * 4);
    t.l = (es_entries){cap, room((size_t)cap * 4), room((size_t)cap * 4), room((size_t)cap * 4), room((size_t)(T + 1) * 4), room(8), room((size_t)cap * 4),
                       room((size_t)(F + 1) * 4)};
    const double operations = 2.0 * T * (double)F * d;
    say("dictionary encode, BatchTopK 64, d 2048, F 65536, 4096 tokens", timed(do_encode, &t, 2), 0, operations);
    say("dictionary training step of the same", timed(do_train, &t, 2), 0, operations);
    void *all[] = {t.x, t.dec, (void *)(uintptr_t)t.e.enc, (void *)(uintptr_t)t.e.bias, t.out, t.grad, t.dw, t.dec_m, t.dec_v, t.l.token, t.l.feature, t.l.value,
                   t.l.token_start, t.l.count, t.l.by_feature, t.l.feature_start};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        k->release(pool, all[i]);
}

/* The engine's rows, between those of the kernels and the dictionary's. */
static void engine_row(void *user, const bench_card_row *r)
{
    int *n = user;
    printf("%s\n    {\"name\":\"%s\",\"what\":\"%s\",\"rate\":%.4g,\"unit\":\"%s\"", (*n)++ ? "," : "", r->name, r->what, r->rate, r->unit);
    if (r->of)
        printf(",\"share\":%.3f,\"of\":\"%s\"", r->share, r->of);
    printf("}");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    es_error err;
    es_cuda *card;
    char line[256];
    stop_at = es_seconds() + (argc > 1 ? atof(argv[1]) : 120);
    es_cuda_describe(NULL, line, sizeof line);
    if (es_cuda_count() == 0) {
        fprintf(stderr, "skipped: %s\n", line);
        return 77;
    }
    const es_cuda_pool_options o = {.precision = ES_CUDA_BF16, .exact_too = true, .workspace = (size_t)256 << 20};
    if (es_cuda_open(0, &card, &err) || es_cuda_pool_open(&pool, card, &o, &err))
        die(err.text);
    k = es_cuda_table();
    es_rng_seed(&rng, 1);
    es_cuda_describe(card, line, sizeof line);
    copying c = {room((size_t)512 << 20), room((size_t)512 << 20), (size_t)512 << 20};
    copy_rate = 2.0 * (double)c.n / timed(do_copy, &c, 4);
    k->release(pool, c.a);
    k->release(pool, c.b);
    product best = product_of(ES_BF16, 8192, 8192, 8192);
    product_rate = 2.0 * 8192 * 8192 * 8192.0 / timed(do_product, &best, 3);
    free_product(&best);
    printf("{\"device\":\"%s\",\"copy_GB_per_s\":%.0f,\"bf16_product_TFLOP_per_s\":%.1f,\"kernels\":[", line, copy_rate * 1e-9, product_rate * 1e-12);
    bench_rows();
    bench_products();
    if (time_left())
        bench_attention();
    if (time_left())
        bench_dictionary();
    printf("\n],\"engine\":[");
    es_pool_free(pool);
    int rows_said = 0;
    if (time_left() && bench_card(card, stop_at - es_seconds(), false, engine_row, &rows_said, &err))
        die(err.text);
    printf("\n]}\n");
    es_cuda_close(card);
    return 0;
}
