/* A step of the recipes batchtopk, topk and matryoshka on a card: what train_step.c does, in the ops of kernels.h and sparse.h. The batch goes up, a few figures come down; while
 * the card works, the processor reads the next batch. No matrix of tokens times features is ever whole in memory.
 *
 * Dead features' rows are gathered, go through the same ops as a small dictionary, and their gradients are put back among the others'. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "es_cuda.h"
#include "sparse.h"
#include "train.h"
#include "vector.h"

enum { LOOKED_AT = 256 }; /* tokens of a batch whose error is measured */
enum { ON_CARD = ES_P_B_DEC + 1 }; /* the parameters that the recipe has: the first of them all */

typedef struct on_card { float *w, *m, *v; } on_card;

struct es_train_card {
    es_pool *pool;
    const es_kernels *k;
    const es_sparse_kernels *s;
    es_arena memory, dead_memory; /* of the card */
    on_card p[ON_CARD];
    float *x, *e, *hat, *grad, *g, *g_bias, *g_b_dec;
    int *where; /* [B] 0; -1 where a row stands for b_dec */
    es_entries main;
    es_entries parts;      /* matryoshka: main, each prefix's part of a token by itself. Otherwise main */
    es_prefixes by;        /* n 1: not matryoshka */
    float *rows, *sum;     /* matryoshka: [B n, d] the errors that each part sees; [B, d] of all prefixes. Otherwise e */
    /* of dead features, room for cap_dead */
    size_t cap_dead;
    int32_t *dead;
    float *dead_rows, *dead_g, *dead_bias, *dead_g_bias, *aux_e, *aux_grad;
    es_entries aux;
    /* host */
    int *host_where;
    int32_t *feature_start;
    float *value, *error;
    bool loaded; /* t->x and host_where hold the next batch */
};

static void *take(es_arena *a, size_t n)
{
    return es_arena_take(a, n, sizeof(float)); /* all that is here has four bytes */
}

static void take_entries(es_arena *a, es_entries *l, size_t cap, size_t tokens, size_t features)
{
    *l = (es_entries){.cap = (int)cap, .token = take(a, cap), .feature = take(a, cap), .value = take(a, cap), .token_start = take(a, tokens + 1),
                      .count = take(a, 2), .by_feature = take(a, cap), .feature_start = take(a, features + 1)};
}

static void layout(const es_train *t, struct es_train_card *c, es_arena *a)
{
    const size_t F = t->F, d = t->d, cap = t->B * (size_t)t->o.k;
    for (int i = 0; i < ON_CARD; i++)
        c->p[i] = (on_card){take(a, t->p[i].n), take(a, t->p[i].n), take(a, t->p[i].n)};
    c->g = take(a, F * d);
    c->g_bias = take(a, F);
    c->g_b_dec = take(a, d);
    c->x = take(a, t->B * d);
    c->e = take(a, t->B * d);
    c->hat = take(a, t->B * d);
    c->where = take(a, t->B);
    c->grad = take(a, cap);
    take_entries(a, &c->main, cap, t->B, F);
    c->parts = c->main;
    c->rows = c->sum = c->e;
    if (c->by.n > 1) {
        c->rows = take(a, t->B * (size_t)c->by.n * d);
        c->sum = take(a, t->B * d);
        c->parts.token = take(a, cap);
        c->parts.token_start = take(a, t->B * (size_t)c->by.n + 1);
    }
}

static void dead_layout(const es_train *t, struct es_train_card *c, size_t n, es_arena *a)
{
    const size_t cap = t->A * (size_t)t->o.aux_k;
    c->dead = take(a, n);
    c->dead_rows = take(a, n * t->d);
    c->dead_g = take(a, n * t->d);
    c->dead_bias = take(a, n);
    c->dead_g_bias = take(a, n);
    c->aux_e = take(a, t->A * t->d);
    c->aux_grad = take(a, cap);
    take_entries(a, &c->aux, cap, t->A, n);
}

static int take_memory(struct es_train_card *c, es_arena *a, size_t bytes, const char *what, es_error *err)
{
    void *memory;
    int rc = c->k->alloc(c->pool, &memory, bytes, err);
    if (rc && err)
        es_fail_prefix(err, "%s: fewer features or a smaller batch take less", what);
    if (!rc) {
        c->k->clear(c->pool, memory, bytes);
        *a = (es_arena){.base = memory, .size = bytes};
    }
    return rc;
}

static int lost(es_error *err)
{
    return es_fail(err, ES_ERR_DEVICE, "the card was lost: the same command goes on from the last checkpoint, or with --device cpu");
}

static int fill(es_train *t, struct es_train_card *c, es_error *err)
{
    c->k = es_cuda_table();
    c->s = es_cuda_sparse();
    c->by.n = t->n_prefix;
    for (int g = 0; g < t->n_prefix; g++)
        c->by.end[g] = (int32_t)t->prefix[g];
    c->host_where = es_calloc(t->B, sizeof *c->host_where);
    c->feature_start = es_calloc(t->F + 1, sizeof *c->feature_start);
    c->value = es_calloc(t->B * (size_t)t->o.k, sizeof *c->value);
    c->error = es_calloc(LOOKED_AT * t->d, sizeof *c->error);
    if (!c->host_where || !c->feature_start || !c->value || !c->error)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to train");
    const es_cuda_pool_options o = {.precision = t->o.card_exact ? ES_CUDA_F32 : ES_CUDA_TF32, .workspace = t->o.card_workspace ? t->o.card_workspace : (size_t)256 << 20};
    es_arena size = {0};
    layout(t, c, &size);
    int rc = es_cuda_pool_open(&c->pool, t->o.card, &o, err);
    rc = rc ? rc : take_memory(c, &c->memory, size.used, "training on the card", err);
    if (rc)
        return rc;
    layout(t, c, &c->memory);
    for (int i = 0; i < ON_CARD; i++) {
        const size_t bytes = t->p[i].n * sizeof(float);
        c->k->upload(c->pool, c->p[i].w, t->p[i].w, bytes);
        c->k->upload(c->pool, c->p[i].m, t->p[i].m, bytes);
        c->k->upload(c->pool, c->p[i].v, t->p[i].v, bytes);
    }
    return c->k->sync(c->pool, err);
}

static int open_card(es_train *t, es_error *err)
{
    t->card = es_calloc(1, sizeof *t->card);
    int rc = t->card ? fill(t, t->card, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory to train");
    if (rc)
        es_train_card_close(t);
    return rc;
}

int es_train_card_fetch(const es_train *t, es_error *err)
{
    const struct es_train_card *c = t->card;
    if (!c)
        return ES_OK;
    if (es_cuda_lost(t->o.card))
        return lost(err);
    for (int i = 0; i < ON_CARD; i++) {
        const size_t bytes = t->p[i].n * sizeof(float);
        c->k->download(c->pool, t->p[i].w, c->p[i].w, bytes);
        c->k->download(c->pool, t->p[i].m, c->p[i].m, bytes);
        c->k->download(c->pool, t->p[i].v, c->p[i].v, bytes);
    }
    int rc = c->k->sync(c->pool, err);
    return rc && es_cuda_lost(t->o.card) ? lost(err) : rc;
}

int es_train_card_fetch_decoder(const es_train *t, es_error *err)
{
    const struct es_train_card *c = t->card;
    if (!c)
        return ES_OK;
    c->k->download(c->pool, t->p[ES_P_DEC].w, c->p[ES_P_DEC].w, t->p[ES_P_DEC].n * sizeof(float));
    int rc = c->k->sync(c->pool, err);
    return rc && es_cuda_lost(t->o.card) ? lost(err) : rc;
}

void es_train_card_close(es_train *t)
{
    struct es_train_card *c = t->card;
    if (!c)
        return;
    if (c->pool) {
        c->k->release(c->pool, c->memory.base);
        c->k->release(c->pool, c->dead_memory.base);
    }
    es_pool_free(c->pool);
    free(c->host_where);
    free(c->feature_start);
    free(c->value);
    free(c->error);
    free(c);
    t->card = NULL;
}

/* The batch's rows, scaled; b_dec is taken off on the card. */
static void load_part(void *user, int part, int parts)
{
    es_train *t = user;
    for (size_t i = (size_t)part; i < t->B; i += (size_t)parts)
        t->card->host_where[i] = es_train_take(t, t->tokens + i, t->x + i * t->d) ? 0 : -1;
}

static int dead_room(es_train *t, es_error *err)
{
    struct es_train_card *c = t->card;
    if (t->n_dead <= c->cap_dead)
        return ES_OK;
    size_t n = t->n_dead + t->n_dead / 4 < t->F ? t->n_dead + t->n_dead / 4 : t->F;
    es_arena size = {0};
    c->k->release(c->pool, c->dead_memory.base);
    c->dead_memory = (es_arena){0};
    c->cap_dead = 0;
    dead_layout(t, c, n, &size);
    int rc = take_memory(c, &c->dead_memory, size.used, "dead features", err);
    if (rc)
        return rc;
    dead_layout(t, c, n, &c->dead_memory);
    c->cap_dead = n;
    return ES_OK;
}

/* out = rows - what the entries decode to. */
static void error_of(const es_train *t, const es_entries *l, const float *dec, const float *rows, int T, float *out)
{
    const struct es_train_card *c = t->card;
    const size_t n = (size_t)T * t->d;
    c->s->decode(c->pool, l, dec, NULL, T, (int)t->d, c->hat);
    c->k->copy(c->pool, out, rows, n * sizeof *out);
    c->k->axpy(c->pool, -1, c->hat, out, n);
}

/* What the batch's entries leave unexplained: c->e, and of matryoshka what each prefix does. */
static void main_errors(const es_train *t)
{
    const struct es_train_card *c = t->card;
    const int B = (int)t->B, d = (int)t->d;
    if (c->by.n == 1) {
        error_of(t, &c->main, c->p[ES_P_DEC].w, c->x, B, c->e);
        return;
    }
    c->s->split(c->pool, &c->main, &c->by, B, c->parts.token, c->parts.token_start);
    c->s->decode(c->pool, &c->parts, c->p[ES_P_DEC].w, NULL, B * c->by.n, d, c->rows);
    c->s->prefix_errors(c->pool, c->x, &c->by, B, d, c->rows, c->e, c->sum);
}

static float aux_slope(const es_train *t)
{
    return (float)(-t->o.aux_weight * 2 / (double)t->A);
}

/* Forward of the auxiliary loss: entries, error, and what reaches the values. false: there is none. */
static bool auxiliary(const es_train *t)
{
    const struct es_train_card *c = t->card;
    const int n = (int)t->n_dead, d = (int)t->d, A = (int)t->A;
    int want = t->o.aux_k < (n + 1) / 2 ? t->o.aux_k : (n + 1) / 2;
    want = want < ES_TOP_MAX ? want : ES_TOP_MAX;
    if (want == 0)
        return false;
    c->k->upload(c->pool, c->dead, t->dead, sizeof *t->dead * t->n_dead);
    c->k->gather_rows(c->pool, c->p[ES_P_ENC].w, c->dead, n, d, c->dead_rows);
    c->k->gather_rows(c->pool, c->p[ES_P_B_ENC].w, c->dead, n, 1, c->dead_bias);
    const es_encoder e = {.keep = ES_KEEP_TOKEN, .F = n, .d = d, .k = want, .enc = c->dead_rows, .bias = c->dead_bias};
    c->s->encode(c->pool, &e, c->x, A, &c->aux);
    c->s->index(c->pool, &c->aux, A, n);
    c->k->gather_rows(c->pool, c->p[ES_P_DEC].w, c->dead, n, d, c->dead_rows);
    error_of(t, &c->aux, c->dead_rows, c->e, A, c->aux_e);
    c->s->value_back(c->pool, &c->aux, c->aux_e, c->dead_rows, A, d, aux_slope(t), c->aux_grad);
    return true;
}

/* The dead features' own part, added to the rows of g (and of g_bias) that are theirs. */
static void add_dead(const es_train *t, const float *rows, const float *weight, float scale, bool bias)
{
    const struct es_train_card *c = t->card;
    const int n = (int)t->n_dead, d = (int)t->d;
    c->k->gather_rows(c->pool, c->g, c->dead, n, d, c->dead_g);
    if (bias)
        c->k->gather_rows(c->pool, c->g_bias, c->dead, n, 1, c->dead_g_bias);
    c->s->feature_back(c->pool, &c->aux, rows, weight, n, d, scale, c->dead_g, bias ? c->dead_g_bias : NULL);
    c->k->scatter_rows(c->pool, c->dead_g, c->dead, n, d, c->g);
    if (bias)
        c->k->scatter_rows(c->pool, c->dead_g_bias, c->dead, n, 1, c->g_bias);
}

static void adam(const es_train *t, int which, const float *g)
{
    const on_card *p = &t->card->p[which];
    t->card->k->adam(t->card->pool, p->w, g, p->m, p->v, t->p[which].n, 0.9f, 0.999f, t->rate, t->eps, 1);
}

static void update(const es_train *t, bool aux)
{
    const struct es_train_card *c = t->card;
    const int F = (int)t->F, d = (int)t->d, B = (int)t->B;
    const size_t n = t->F * t->d;
    const float slope = -2 / (float)t->B;
    c->k->clear(c->pool, c->g, n * sizeof(float));
    c->k->clear(c->pool, c->g_bias, t->F * sizeof(float));
    c->s->feature_back(c->pool, &c->main, c->x, c->grad, F, d, 1, c->g, c->g_bias);
    if (aux)
        add_dead(t, c->x, c->aux_grad, 1, true);
    c->k->gemm(c->pool, true, false, d, 1, F, -1, c->p[ES_P_ENC].w, d, c->g_bias, 1, 0, c->g_b_dec, 1); /* b_dec is taken off the encoder's input */
    c->k->add_vector_back(c->pool, c->sum, c->where, -1, slope, B, d, c->g_b_dec); /* all prefixes have it */
    adam(t, ES_P_ENC, c->g);
    adam(t, ES_P_B_ENC, c->g_bias);
    c->k->clear(c->pool, c->g, n * sizeof(float));
    c->s->feature_back(c->pool, &c->parts, c->rows, c->main.value, F, d, slope, c->g, NULL);
    if (aux)
        add_dead(t, c->aux_e, c->aux.value, aux_slope(t), false);
    c->s->project_rows(c->pool, c->p[ES_P_DEC].w, c->g, F, d);
    adam(t, ES_P_DEC, c->g);
    c->s->unit_rows(c->pool, c->p[ES_P_DEC].w, F, d);
    adam(t, ES_P_B_DEC, c->g_b_dec);
}

/* Of the first rows of the batch: what of their variance is not explained. */
static int look_at_error(es_train *t, double variance, es_error *err)
{
    const es_vector_ops *ops = es_vector();
    double error = 0;
    const size_t rows = t->B < LOOKED_AT ? t->B : LOOKED_AT;
    for (size_t i = 0; i < rows; i++)
        error += (double)ops->dot(t->card->error + i * t->d, t->card->error + i * t->d, t->d);
    if (!isfinite(error))
        return es_train_out_of_bounds(t, err);
    t->fvu += ((variance > 0 ? error / variance : 0) - t->fvu) * es_train_running_share(t);
    return ES_OK;
}

static double variance_of(const es_train *t)
{
    const es_vector_ops *ops = es_vector();
    const size_t rows = t->B < LOOKED_AT ? t->B : LOOKED_AT;
    double square = 0, n = 0;
    float *mean = t->part_row; /* not in use here */
    memset(mean, 0, t->d * sizeof *mean);
    for (size_t i = 0; i < rows; i++) {
        if (t->card->host_where[i] < 0)
            continue;
        square += (double)ops->dot(t->x + i * t->d, t->x + i * t->d, t->d);
        ops->axpy(mean, 1, t->x + i * t->d, t->d);
        n++;
    }
    return n > 0 ? square - (double)ops->dot(mean, mean, t->d) / n : 0;
}

/* What came of the batch: which features it used, the smallest kept value, its error. */
static int take_in(es_train *t, double variance, es_error *err)
{
    struct es_train_card *c = t->card;
    int32_t count[2] = {0, 0};
    const size_t rows = t->B < LOOKED_AT ? t->B : LOOKED_AT;
    c->k->download(c->pool, count, c->main.count, sizeof count);
    c->k->download(c->pool, c->feature_start, c->main.feature_start, (t->F + 1) * sizeof *c->feature_start);
    c->k->download(c->pool, c->value, c->main.value, (size_t)(count[0] > 0 ? count[0] : 0) * sizeof *c->value);
    c->k->download(c->pool, c->error, c->e, rows * t->d * sizeof *c->error);
    int rc = c->k->sync(c->pool, err);
    if (rc || (rc = look_at_error(t, variance, err)))
        return rc;
    size_t over = 0;
    float smallest = INFINITY;
    for (int32_t i = 0; i < count[0]; i++) {
        over += (double)c->value[i] > t->threshold;
        smallest = fminf(smallest, c->value[i]);
    }
    if (!es_train_by_batch(t->o.recipe))
        over = (size_t)count[0];
    else if (count[0] > 0)
        es_train_smallest(t, smallest);
    t->l0 += ((double)over / (double)t->B - t->l0) * es_train_running_share(t);
    for (size_t j = 0; j < t->F; j++)
        t->age[j] = c->feature_start[j + 1] > c->feature_start[j] ? 0 : t->age[j] + (float)t->B;
    t->steps++;
    return ES_OK;
}

static int step(es_train *t, es_error *err)
{
    struct es_train_card *c = t->card;
    const int d = (int)t->d, B = (int)t->B;
    t->n_dead = 0;
    for (size_t j = 0; j < t->F && t->o.aux_k > 0; j++)
        if (t->age[j] >= (float)t->o.dead_tokens)
            t->dead[t->n_dead++] = (int32_t)j;
    int rc = dead_room(t, err);
    if (rc)
        return rc;
    if (!c->loaded)
        es_pool_run(t->pool, load_part, t);
    c->k->upload(c->pool, c->x, t->x, t->B * t->d * sizeof *t->x);
    c->k->upload(c->pool, c->where, c->host_where, t->B * sizeof *c->host_where);
    c->k->add_vector(c->pool, c->x, c->where, 0, -1, c->p[ES_P_B_DEC].w, B, d);
    const es_encoder e = {.keep = t->o.recipe == ES_TRAIN_TOPK ? ES_KEEP_TOKEN : ES_KEEP_BATCH, .F = (int)t->F, .d = d, .k = t->o.k, .enc = c->p[ES_P_ENC].w, .bias = c->p[ES_P_B_ENC].w};
    c->s->encode(c->pool, &e, c->x, B, &c->main);
    c->s->index(c->pool, &c->main, B, (int)t->F);
    main_errors(t);
    c->s->value_back(c->pool, &c->parts, c->rows, c->p[ES_P_DEC].w, B * c->by.n, d, -2 / (float)t->B, c->grad);
    const bool aux = auxiliary(t);
    es_train_rate(t);
    update(t, aux);
    const double variance = variance_of(t);
    t->tokens += t->B;
    es_pool_run(t->pool, load_part, t); /* the next batch, while the card works */
    c->loaded = true;
    return take_in(t, variance, err);
}

int es_train_card_step(es_train *t, es_error *err)
{
    int rc = t->card ? ES_OK : open_card(t, err);
    rc = rc ? rc : step(t, err);
    return rc && es_cuda_lost(t->o.card) ? lost(err) : rc;
}
