#include "bench_card.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct bench {
    es_cuda *card;
    bool small;
    double until, copy, product; /* bytes a second read and written; operations a second */
    void (*row)(void *user, const bench_card_row *r);
    void *user;
    es_error *err;
    es_rng rng;
} bench;

typedef struct shape {
    const char *name;
    es_type type;
    es_model_info info;
    bool long_too; /* prompts and harvest as well as decoding */
} shape;

#define LLAMA(layers, d, heads, kv, head, ff, vocab)                                                                                              \
    {.architecture = "llama", .n_layer = layers, .d_model = d, .n_head = heads, .n_kv = kv, .head_dim = head, .d_ff = ff, .n_vocab = vocab,        \
     .n_ctx = 8192, .rope_base = 10000, .norm_eps = 1e-5f}
static const shape SHAPES[] = {
    {"smollm2-135m Q4_1", ES_Q4_1, LLAMA(30, 576, 9, 3, 64, 1536, 49152), false},
    {"1b Q4_K", ES_Q4_K, LLAMA(16, 2048, 32, 8, 64, 8192, 128256), false},
    {"1b BF16", ES_BF16, LLAMA(16, 2048, 32, 8, 64, 8192, 128256), true},
    {"8b Q4_K", ES_Q4_K, LLAMA(32, 4096, 32, 8, 128, 14336, 128256), true},
    {"8b BF16", ES_BF16, LLAMA(32, 4096, 32, 8, 128, 14336, 128256), true},
};
static const shape TINY = {"tiny Q4_1", ES_Q4_1, LLAMA(2, 64, 4, 2, 16, 96, 300), true};

static void say(bench *b, const char *name, const char *what, const char *unit, double rate, double share, const char *of)
{
    b->row(b->user, &(bench_card_row){name, what, unit, rate, share, of});
}

/* ---- limits --------------------------------------------------------------------------------------------------------------------------- */

static int limits(bench *b)
{
    const es_kernels *k = es_cuda_table();
    const es_cuda_pool_options o = {.precision = ES_CUDA_BF16, .exact_too = true, .workspace = b->small ? 1 << 20 : (size_t)512 << 20};
    const size_t n = b->small ? 1 << 16 : (size_t)512 << 20;
    const int N = b->small ? 64 : 8192;
    es_pool *p;
    void *x = NULL, *y = NULL;
    int rc = es_cuda_pool_open(&p, b->card, &o, b->err);
    if (rc)
        return rc;
    rc = k->alloc(p, &x, n, b->err);
    rc = rc ? rc : k->alloc(p, &y, n, b->err);
    if (!rc) {
        k->clear(p, x, n);
        k->clear(p, y, n);
        for (int i = 0; i < 9; i++) { /* the first of each warms up */
            if (i == 1)
                es_cuda_timer_start(p);
            k->copy(p, y, x, n);
        }
        b->copy = 2.0 * (double)n * 8 / es_cuda_timer_stop(p);
        const es_weight w = {ES_BF16, N, N, x}; /* 128 MB of it */
        for (int i = 0; i < 6; i++) {
            if (i == 1)
                es_cuda_timer_start(p);
            k->matmul(p, &w, y, N / 4, (float *)y + (size_t)N * N / 4, false, false);
        }
        b->product = 2.0 * N * N * (N / 4) * 5 / es_cuda_timer_stop(p);
        rc = k->sync(p, b->err);
    }
    k->release(p, x);
    k->release(p, y);
    es_pool_free(p);
    if (!rc) {
        say(b, "copy", "read and written", "GB/s", b->copy * 1e-9, NAN, NULL);
        say(b, "bf16 product", "8192 x 8192 by 2048 rows", "TFLOP/s", b->product * 1e-12, NAN, NULL);
    }
    return rc;
}

/* ---- rows -------------------------------------------------------------------------------------------------------------------------------- */

static double block_operations(const es_model_info *i) /* a token's, in the matrices of the blocks */
{
    const double q = (double)i->n_head * i->head_dim, kv = (double)i->n_kv * i->head_dim, d = i->d_model;
    return 2.0 * i->n_layer * (2 * d * q + 2 * d * kv + 3 * d * i->d_ff);
}

static void random_ids(bench *b, const es_model *m, int32_t *ids, int n)
{
    for (int i = 0; i < n; i++)
        ids[i] = (int32_t)es_rng_below(&b->rng, (uint64_t)es_model_get_info(m)->n_vocab);
}

static void look(void *user, int layer, int pos0, const float *h, int T, int d)
{
    (void)layer, (void)pos0, (void)d;
    *(double *)user += (double)h[0] + T;
}

/* Tokens a second over `tokens` of them, greedily drawn, after a prompt. watched: the residual after the middle layer comes down each time. */
static int decode(bench *b, const es_model *m, int tokens, bool watched, double *rate)
{
    double sum = 0;
    const es_watch watch = {.layer = es_model_get_info(m)->n_layer / 2, .fn = look, .user = &sum};
    es_context *c;
    int32_t ids[64];
    const es_sampling greedy = {.temperature = 0, .top_p = 1, .repeat_penalty = 1};
    int rc = es_context_open(&c, m, &(es_context_options){.n_ctx = 64 + tokens + 16}, b->err);
    if (rc)
        return rc;
    random_ids(b, m, ids, 64);
    es_context_set_watch(c, &watch, watched);
    rc = es_context_feed(c, ids, 64, NULL, b->err);
    double began = 0;
    for (int i = -8; i < tokens && !rc; i++) {
        if (i == 0)
            began = es_seconds();
        const int32_t id = es_sample(c, &greedy, &b->rng);
        rc = es_context_feed(c, &id, 1, NULL, b->err);
    }
    *rate = tokens / (es_seconds() - began);
    if (!rc && !es_context_on_card(c))
        rc = es_fail(b->err, ES_ERR_DEVICE, "the card was lost");
    es_context_free(c);
    return rc;
}

static int prompt(bench *b, const es_model *m, int n, double *rate)
{
    es_context *c;
    int32_t *ids = es_calloc((size_t)n, sizeof *ids);
    int rc = ids ? es_context_open(&c, m, &(es_context_options){.n_ctx = n}, b->err) : es_fail(b->err, ES_ERR_MEMORY, "no memory");
    if (!rc) {
        random_ids(b, m, ids, n);
        double best = INFINITY;
        for (int i = 0; i < 3 && !rc; i++) {
            rc = es_context_truncate(c, 0, b->err);
            const double began = es_seconds();
            rc = rc ? rc : es_context_feed(c, ids, n, NULL, b->err);
            best = fmin(best, es_seconds() - began);
        }
        *rate = n / best;
        es_context_free(c);
    }
    free(ids);
    return rc;
}

typedef struct steps { /* passes of a trainer over one batch */
    es_trainer *t;
    es_batch b;
    int32_t *ids;
    uint8_t *wanted;
    int *start;
    float *resid, *logprob, *slope, *v, *dv;
    int from;
} steps;

static void steps_close(steps *s)
{
    es_trainer_free(s->t);
    free(s->ids);
    free(s->wanted);
    free(s->start);
    free(s->resid);
    free(s->logprob);
    free(s->slope);
    free(s->v);
    free(s->dv);
}

/* sequences of `length` tokens; learn: from the middle layer up with gradients, the last quarter of each is a reply. */
static int steps_open(bench *b, const es_model *m, int sequences, int length, bool learn, steps *s)
{
    const es_model_info *i = es_model_get_info(m);
    const size_t n = (size_t)sequences * (size_t)length, d = (size_t)i->d_model;
    *s = (steps){.from = learn ? i->n_layer / 2 : 0};
    s->ids = es_calloc(n + 1, sizeof *s->ids);
    s->wanted = es_calloc(n, 1);
    s->start = es_calloc((size_t)sequences + 1, sizeof *s->start);
    s->resid = learn ? es_calloc(n * d, sizeof *s->resid) : NULL;
    s->logprob = es_calloc(n, sizeof *s->logprob);
    s->slope = es_calloc(n, sizeof *s->slope);
    s->v = es_calloc(d, sizeof *s->v);
    s->dv = es_calloc(d, sizeof *s->dv);
    if (!s->ids || !s->wanted || !s->start || (learn && !s->resid) || !s->logprob || !s->slope || !s->v || !s->dv)
        return es_fail(b->err, ES_ERR_MEMORY, "no memory for a batch");
    random_ids(b, m, s->ids, (int)n + 1);
    for (size_t j = 0; learn && j < n * d; j++)
        s->resid[j] = j < 4096 ? es_rng_normal(&b->rng) : s->resid[j - 4096];
    for (int q = 0; q <= sequences; q++)
        s->start[q] = q * length;
    for (size_t j = 0; j < n; j++) {
        s->wanted[j] = learn && j % (size_t)length >= (size_t)length * 3 / 4;
        s->slope[j] = s->wanted[j] ? 0.01f : 0;
    }
    for (size_t j = 0; j < d; j++)
        s->v[j] = 0.01f;
    s->b = (es_batch){.ids = s->ids, .n = (int)n, .start = s->start, .n_seq = sequences, .target = s->ids + 1, .wanted = s->wanted};
    const es_trainer_options o = {.max_tokens = (int)n, .from_layer = s->from, .backward = learn, .rough = learn, .rough_on_card = true};
    return es_trainer_open(&s->t, m, &o, b->err);
}

static int one_step(steps *s, bool learn, double *sum, es_error *err)
{
    const es_watch watch = {.layer = s->from, .fn = look, .user = sum};
    const es_addend add = {.layer = s->from - 1, .scale = 1, .v = s->v};
    const es_patch patch = {.addend = &add, .n_addend = 1};
    int rc = es_trainer_forward(s->t, &s->b, s->resid, learn ? &patch : NULL, learn ? NULL : &watch, !learn, s->logprob, NULL, err);
    float *dv[] = {s->dv};
    const es_grad g = {.addend = dv};
    return rc || !learn ? rc : es_trainer_backward(s->t, &s->b, &patch, s->slope, NULL, NULL, &g, s->from - 1, NULL, err);
}

static int timed_steps(bench *b, const es_model *m, int sequences, int length, bool learn, double *seconds)
{
    steps s;
    double sum = 0, best = INFINITY;
    int rc = steps_open(b, m, sequences, length, learn, &s);
    for (int i = 0; i < 3 && !rc; i++) {
        const double began = es_seconds();
        rc = one_step(&s, learn, &sum, b->err);
        best = fmin(best, es_seconds() - began);
    }
    steps_close(&s);
    *seconds = best;
    return rc;
}

/* ---- decoding while something is learned -------------------------------------------------------------------------------------------------- */

typedef struct background { steps s; bool stop; int done, rc; es_error err; } background;

static void *learn_on(void *user)
{
    background *g = user;
    double sum = 0;
    while (!g->rc && !__atomic_load_n(&g->stop, __ATOMIC_RELAXED)) {
        g->rc = one_step(&g->s, true, &sum, &g->err);
        g->done++;
    }
    return NULL;
}

static int beside(bench *b, const es_model *m, const char *name, int tokens, int sequences, int length, double alone)
{
    background *g = es_calloc(1, sizeof *g);
    pthread_t thread;
    double rate = 0;
    if (!g)
        return es_fail(b->err, ES_ERR_MEMORY, "no memory");
    int rc = steps_open(b, m, sequences, length, true, &g->s);
    if (!rc && pthread_create(&thread, NULL, learn_on, g) == 0) {
        rc = decode(b, m, tokens, false, &rate);
        __atomic_store_n(&g->stop, true, __ATOMIC_RELAXED);
        pthread_join(thread, NULL);
        if (!rc && g->rc)
            rc = es_fail(b->err, g->rc, "%s", g->err.text);
        if (!rc)
            say(b, name, "decoding while a step of adaptation is always under way", "tokens/s", rate, rate / alone, "decoding alone");
    }
    steps_close(&g->s);
    free(g);
    return rc;
}

/* ---- a model ----------------------------------------------------------------------------------------------------------------------------------- */

static int bench_model(bench *b, const shape *s)
{
    es_model *m;
    double alone = 0, rate, seconds;
    const int tokens = b->small ? 12 : 256, n = b->small ? 40 : 2048, sequences = b->small ? 2 : 8, length = b->small ? 16 : 512;
    int rc = es_model_random(&m, &s->info, s->type, 1, b->err);
    if (rc)
        return rc;
    const es_card_options o = {.workspace = b->small ? 1 << 20 : (size_t)256 << 20};
    rc = es_model_use_card(m, b->card, &o, b->err);
    rc = rc ? rc : decode(b, m, tokens, false, &alone);
    if (!rc)
        say(b, s->name, "decoding, one sequence", "tokens/s", alone, alone * (double)es_model_decode_bytes(m) / b->copy, "copy");
    if (!rc && !(rc = decode(b, m, tokens, true, &rate)))
        say(b, s->name, "the same with the features panel listening", "tokens/s", rate, rate / alone, "decoding alone");
    if (!rc && s->long_too && !(rc = prompt(b, m, n, &rate)))
        say(b, s->name, "a prompt of 2,048 tokens", "tokens/s", rate, rate * block_operations(&s->info) / b->product, "bf16 product");
    if (!rc && s->long_too && es_seconds() < b->until && !(rc = timed_steps(b, m, sequences, length, false, &seconds)))
        say(b, s->name, "harvest, 8 x 512 tokens", "tokens/s", sequences * length / seconds,
            sequences * length / seconds * block_operations(&s->info) / b->product, "bf16 product");
    if (!rc && s->long_too && es_seconds() < b->until && !(rc = timed_steps(b, m, sequences, length, true, &seconds))) /* half the layers, there and back */
        say(b, s->name, "adaptation step above the middle layer, 8 x 512 tokens", "steps/s", 1 / seconds,
            sequences * length / seconds * block_operations(&s->info) / b->product, "bf16 product");
    if (!rc && s->long_too && es_seconds() < b->until)
        rc = beside(b, m, s->name, tokens, sequences, length, alone);
    es_model_free(m);
    return rc;
}

int bench_card(es_cuda *card, double seconds, bool small, void (*row)(void *user, const bench_card_row *r), void *user, es_error *err)
{
    bench b = {.card = card, .small = small, .until = es_seconds() + seconds, .row = row, .user = user, .err = err};
    es_rng_seed(&b.rng, 1);
    int rc = limits(&b);
    if (small)
        return rc ? rc : bench_model(&b, &TINY);
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES && !rc && es_seconds() < b.until; i++) {
        rc = bench_model(&b, &SHAPES[i]);
        if (rc == ES_ERR_MEMORY) { /* of a card too small for it: the others still fit */
            say(&b, SHAPES[i].name, "does not fit", "", 0, NAN, NULL);
            rc = ES_OK;
        }
    }
    return rc;
}

/* ---- pieces, for comparisons ------------------------------------------------------------------------------------------------------------------- */

int bench_card_decode(const es_model *m, int tokens, double *rate, es_error *err)
{
    bench b = {.err = err};
    es_rng_seed(&b.rng, 1);
    return decode(&b, m, tokens, false, rate);
}

int bench_card_prompt(const es_model *m, int n, double *rate, es_error *err)
{
    bench b = {.err = err};
    es_rng_seed(&b.rng, 1);
    return prompt(&b, m, n, rate);
}

enum { RANK = 32 };

struct bench_card_steps {
    steps s;
    es_lowrank *low;
    int n_low, step, to;
    float *fixed, *number, *grad, *first, *second, **a, **b; /* fixed: A's that do not learn. number: what learns */
    size_t n;
};

void bench_card_steps_close(bench_card_steps *s)
{
    if (!s)
        return;
    steps_close(&s->s);
    void *all[] = {s->low, s->fixed, s->number, s->grad, s->first, s->second, s->a, s->b};
    for (int i = 0; i < 8; i++)
        free(all[i]);
    free(s);
}

/* Entries of the layers from `to` up; at: NULL only counts. */
static void lay_updates(bench_card_steps *s, const es_model *m, bool lora, size_t *fixed, size_t *number)
{
    *fixed = *number = 0;
    s->n_low = 0;
    for (int l = s->to; l < es_model_get_info(m)->n_layer; l++)
        for (int site = 0; site < ES_N_SITES; site++) {
            if (!lora && site != ES_SITE_O && site != ES_SITE_DOWN)
                continue;
            const size_t n_a = RANK * (size_t)es_site_n_in(m, (es_site)site), n_b = RANK * (size_t)es_site_n_out(m, (es_site)site);
            size_t *where = lora ? number : fixed;
            if (s->low) {
                float *a = (lora ? s->number : s->fixed) + *where;
                s->a[s->n_low] = lora ? s->grad + *where : NULL;
                *where += n_a;
                s->b[s->n_low] = s->grad + *number;
                s->low[s->n_low] = (es_lowrank){.layer = l, .site = (es_site)site, .rank = RANK, .scale = 1, .a = a, .b = s->number + *number};
                *number += n_b;
            } else {
                *where += n_a;
                *number += n_b;
            }
            s->n_low++;
        }
}

static int updates_open(bench_card_steps *s, const es_model *m, bool lora, es_error *err)
{
    size_t fixed;
    es_rng rng;
    es_rng_seed(&rng, 2);
    lay_updates(s, m, lora, &fixed, &s->n);
    s->fixed = es_calloc(fixed + 1, sizeof *s->fixed);
    s->number = es_calloc(s->n, sizeof *s->number);
    s->grad = es_calloc(s->n, sizeof *s->grad);
    s->first = es_calloc(s->n, sizeof *s->first);
    s->second = es_calloc(s->n, sizeof *s->second);
    s->a = es_calloc((size_t)s->n_low, sizeof *s->a);
    s->b = es_calloc((size_t)s->n_low, sizeof *s->b);
    es_lowrank *low = es_calloc((size_t)s->n_low, sizeof *low);
    if (!s->fixed || !s->number || !s->grad || !s->first || !s->second || !s->a || !s->b || !low) {
        free(low);
        return es_fail(err, ES_ERR_MEMORY, "no memory for updates");
    }
    s->low = low;
    for (size_t i = 0; i < fixed; i++)
        s->fixed[i] = 0.02f * (2 * (float)es_rng_uniform(&rng) - 1);
    for (size_t i = 0; i < s->n; i++) /* B too, so that every gradient is there */
        s->number[i] = 0.001f * (2 * (float)es_rng_uniform(&rng) - 1);
    lay_updates(s, m, lora, &fixed, &s->n);
    const es_kept k = {.param = s->number, .grad = s->grad, .first = s->first, .second = s->second, .n = s->n};
    return es_trainer_keep(s->s.t, &k, err);
}

int bench_card_steps_open(bench_card_steps **out, const es_model *m, bench_card_learning what, int sequences, int length, es_error *err)
{
    bench b = {.err = err};
    const bool lora = what == BENCH_LORA;
    es_rng_seed(&b.rng, 1);
    bench_card_steps *s = *out = es_calloc(1, sizeof *s);
    if (!s)
        return es_fail(err, ES_ERR_MEMORY, "no memory");
    s->to = lora ? 0 : es_model_get_info(m)->n_layer / 2;
    int rc = steps_open(&b, m, sequences, length, true, &s->s);
    if (!rc && lora) { /* from the ids, all layers */
        es_trainer_free(s->s.t);
        s->s.t = NULL;
        const es_trainer_options o = {.max_tokens = s->s.b.n, .backward = true, .rough = true, .rough_on_card = true};
        rc = es_trainer_open(&s->s.t, m, &o, err);
    }
    rc = rc ? rc : updates_open(s, m, lora, err);
    if (rc) {
        bench_card_steps_close(s);
        *out = NULL;
    }
    return rc;
}

int bench_card_step(bench_card_steps *s, double *seconds, es_error *err)
{
    const double began = es_seconds();
    const es_patch patch = {.lowrank = s->low, .n_lowrank = s->n_low};
    const es_grad g = {.a = s->a, .b = s->b};
    double square;
    es_adam adam = {.rate = 1e-4, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .scale = 1, .step = ++s->step};
    es_trainer_kept_clear(s->s.t);
    int rc = es_trainer_forward(s->s.t, &s->s.b, s->to ? s->s.resid : NULL, &patch, NULL, 0, s->s.logprob, NULL, err);
    rc = rc ? rc : es_trainer_backward(s->s.t, &s->s.b, &patch, s->s.slope, NULL, NULL, &g, s->to, NULL, err);
    rc = rc ? rc : es_trainer_kept_gradient(s->s.t, NULL, &square, err);
    rc = rc ? rc : es_trainer_kept_adam(s->s.t, &adam, err);
    *seconds = es_seconds() - began;
    if (!rc && !es_trainer_keeps(s->s.t))
        rc = es_fail(err, ES_ERR_DEVICE, "the card was lost");
    if (!rc && !(square > 0 && isfinite(square)))
        rc = es_fail(err, ES_ERR_LIMIT, "a step whose gradient is %g is no measure", square);
    return rc;
}
