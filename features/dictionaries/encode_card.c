/* A turn: so many rows go up, the card makes their list of active features (sparse.h: no matrix of tokens times features is ever whole), the list comes down
 * and each row of it is put in falling order here. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "encode_card.h"
#include "es_cuda.h"
#include "sparse.h"

enum { ROWS = 2048, SOME = 64 /* entries a row there is room for at first */, AGAIN = 1 /* a code of ours: no error */ };
#define UPLOAD ((size_t)32 << 20) /* bytes of the encoder that are made into f32 at once */

struct es_encode_card {
    const es_dictionary *s;
    es_cuda *card;
    size_t workspace, least;
    pthread_mutex_t lock; /* of all below */
    bool off;
    es_pool *pool;
    const es_kernels *k;
    void *encoder, *work; /* of the card */
    es_encoder e;
    int rows;             /* in a turn */
    float *x;             /* [rows, d], there */
    es_entries l;
    /* host */
    float *in;            /* [rows, d]; NULL: x is used as it is */
    int32_t *start, *feature;
    float *value;
    uint64_t *key;        /* [l.cap] */
};

int es_encode_card_open(es_encode_card **out, const es_dictionary *s, const es_dictionary_options *o, es_error *err)
{
    es_encode_card *c = es_calloc(1, sizeof *c);
    if (!c)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a dictionary");
    c->s = s;
    c->card = o->card;
    c->workspace = o->card_workspace ? o->card_workspace : (size_t)256 << 20;
    c->least = o->card_least ? o->card_least : (size_t)4 << 20;
    pthread_mutex_init(&c->lock, NULL);
    *out = c;
    return ES_OK;
}

static void let_go(es_encode_card *c)
{
    if (c->pool) {
        c->k->release(c->pool, c->encoder);
        c->k->release(c->pool, c->work);
    }
    es_pool_free(c->pool);
    c->pool = NULL;
    c->encoder = c->work = NULL;
    free(c->in);
    free(c->start);
    free(c->feature);
    free(c->value);
    free(c->key);
    c->in = c->value = NULL;
    c->start = c->feature = NULL;
    c->key = NULL;
}

void es_encode_card_free(es_encode_card *c)
{
    if (!c)
        return;
    let_go(c);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

/* ---- room -------------------------------------------------------------------------------------------------------------------------- */

/* Of the workspace a quarter at most is the list's, which the kernel keeps twice in keys of eight bytes. */
static size_t most_entries(const es_encode_card *c)
{
    return c->workspace / 4 / 16;
}

static void layout(es_encode_card *c, size_t cap, es_arena *a)
{
    size_t rows = (size_t)c->rows;
    c->x = es_arena_take(a, rows * (size_t)c->e.d, sizeof(float));
    c->l = (es_entries){.cap = (int)cap, .token = es_arena_take(a, cap, 4), .feature = es_arena_take(a, cap, 4), .value = es_arena_take(a, cap, 4),
                        .token_start = es_arena_take(a, rows + 1, 4), .count = es_arena_take(a, 2, 4)};
}

/* Room for a turn of c->rows rows with cap entries. */
static int make_room(es_encode_card *c, size_t cap, es_error *err)
{
    es_arena a = {0};
    size_t rows = (size_t)c->rows, d = (size_t)c->e.d;
    c->k->release(c->pool, c->work);
    c->work = NULL;
    layout(c, cap, &a);
    int rc = c->k->alloc(c->pool, &c->work, a.used, err);
    if (rc)
        return rc;
    a = (es_arena){.base = c->work, .size = a.used};
    layout(c, cap, &a);
    free(c->start);
    free(c->feature);
    free(c->value);
    free(c->key);
    c->start = es_calloc(rows + 1, sizeof *c->start);
    c->feature = es_calloc(cap, sizeof *c->feature);
    c->value = es_calloc(cap, sizeof *c->value);
    c->key = es_calloc(cap, sizeof *c->key);
    if (!c->in && es_dictionary_changes_input(c->s))
        c->in = es_calloc(rows * d, sizeof *c->in);
    bool ok = c->start && c->feature && c->value && c->key && (c->in || !es_dictionary_changes_input(c->s));
    return ok ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory to encode");
}

static int send_encoder(es_encode_card *c, const es_dictionary_info *i, es_error *err)
{
    size_t F = (size_t)i->n_features, d = (size_t)i->d, some = UPLOAD / sizeof(float) / d;
    some = some < 1 ? 1 : some < F ? some : F;
    es_arena a = {0}, held;
    float *enc = NULL, *bias = NULL, *threshold = NULL;
    for (int turn = 0; turn < 2; turn++) { /* counts, then has its place */
        enc = es_arena_take(&a, F * d, sizeof *enc);
        bias = es_arena_take(&a, F, sizeof *bias);
        threshold = es_arena_take(&a, F, sizeof *threshold);
        if (turn)
            break;
        int rc = c->k->alloc(c->pool, &c->encoder, a.used, err);
        if (rc)
            return rc;
        a = (es_arena){.base = c->encoder, .size = a.used};
    }
    int rc = es_arena_open(&held, some * (d + 2) * sizeof(float), err);
    if (rc)
        return rc;
    float *rows = (float *)(void *)held.base;
    for (size_t j = 0; j < F; j += some) {
        size_t n = F - j < some ? F - j : some;
        float *b = rows + n * d, *t = b + n;
        es_dictionary_encoder_rows(c->s, (int)j, (int)n, rows, b, t);
        c->k->upload(c->pool, enc + j * d, rows, n * d * sizeof *rows);
        c->k->upload(c->pool, bias + j, b, n * sizeof *b);
        c->k->upload(c->pool, threshold + j, t, n * sizeof *t);
    }
    es_arena_close(&held);
    bool topk = i->architecture == ES_SAE_TOPK;
    c->e = (es_encoder){.keep = topk ? ES_KEEP_TOKEN : ES_KEEP_ABOVE, .F = i->n_features, .d = i->d, .k = i->k, .enc = enc, .bias = bias,
                        .threshold = topk ? NULL : threshold};
    return c->k->sync(c->pool, err);
}

static int start(es_encode_card *c, es_error *err)
{
    const es_dictionary_info *i = es_dictionary_get_info(c->s);
    const es_cuda_pool_options o = {.precision = ES_CUDA_F32, .workspace = c->workspace};
    if (i->architecture == ES_SAE_TOPK && i->k > ES_TOP_MAX)
        return es_fail(err, ES_ERR_LIMIT, "it keeps %d features a token, on a card at most %d go", i->k, (int)ES_TOP_MAX);
    c->k = es_cuda_table();
    int rc = es_cuda_pool_open(&c->pool, c->card, &o, err);
    rc = rc ? rc : send_encoder(c, i, err);
    if (rc)
        return rc;
    size_t each = i->architecture == ES_SAE_TOPK ? (size_t)i->k : SOME, fit = most_entries(c) / each, rows = ROWS;
    rows = rows < fit ? rows : fit ? fit : 1;
    rows = rows < INT32_MAX / (size_t)i->n_features ? rows : INT32_MAX / (size_t)i->n_features; /* at least 2047 */
    c->rows = (int)rows;
    return make_room(c, rows * each, err);
}

/* ---- a turn ------------------------------------------------------------------------------------------------------------------------ */

typedef struct ordering {
    es_encode_card *c;
    es_sparse *out;
    size_t at; /* in out, of the turn's first entry */
    int n, t0;
} ordering;

static int rising(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Positive floats order as their bits do: a row by falling value, of equal ones the lower feature first. */
static void order_part(void *user, int part, int parts)
{
    ordering *o = user;
    es_encode_card *c = o->c;
    for (int t = part; t < o->n; t += parts) {
        size_t from = (size_t)c->start[t], n = (size_t)c->start[t + 1] - from;
        for (size_t i = from; i < from + n; i++) {
            uint32_t bits;
            memcpy(&bits, &c->value[i], sizeof bits);
            c->key[i] = (uint64_t)~bits << 32 | (uint32_t)c->feature[i];
        }
        qsort(c->key + from, n, sizeof *c->key, rising);
        for (size_t i = from; i < from + n; i++) {
            uint32_t bits = ~(uint32_t)(c->key[i] >> 32);
            memcpy(&o->out->value[o->at + i], &bits, sizeof bits);
            o->out->index[o->at + i] = (int32_t)(uint32_t)c->key[i];
        }
        o->out->start[o->t0 + t + 1] = o->at + from + n;
    }
}

static bool all_finite(const float *v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(v[i]))
            return false;
    return true;
}

/* More are active than there is room for: more room, or fewer rows in a turn. */
static int more_room(es_encode_card *c, size_t wanted, es_error *err)
{
    size_t most = most_entries(c);
    if (wanted > most && c->rows == 1)
        return es_fail(err, ES_ERR_LIMIT, "a token has %zu active features, which want a larger workspace", wanted);
    if (wanted > most)
        c->rows /= 2;
    size_t cap = wanted + wanted / 4;
    int rc = make_room(c, cap < most ? cap : most, err);
    return rc ? rc : AGAIN;
}

/* Rows [t0, t0 + n), n <= c->rows, joined to out. AGAIN: with what c->rows is now. */
static int turn(es_encode_card *c, es_pool *p, const float *x, int t0, int n, int T, es_sparse *out, es_error *err)
{
    int32_t count[2];
    size_t d = (size_t)c->e.d;
    c->k->upload(c->pool, c->x, es_dictionary_input(c->s, x + (size_t)t0 * d, n, c->in), (size_t)n * d * sizeof *x);
    es_cuda_sparse()->encode(c->pool, &c->e, c->x, n, &c->l);
    c->k->download(c->pool, count, c->l.count, sizeof count);
    c->k->download(c->pool, c->start, c->l.token_start, (size_t)(n + 1) * sizeof *c->start);
    int rc = c->k->sync(c->pool, err);
    if (rc)
        return rc;
    if (count[1] > c->l.cap)
        return more_room(c, (size_t)count[1], err);
    ordering o = {.c = c, .out = out, .at = out->start[t0], .n = n, .t0 = t0};
    rc = es_sparse_room(out, (size_t)T, o.at + (size_t)count[0], err);
    c->k->download(c->pool, c->feature, c->l.feature, (size_t)count[0] * sizeof *c->feature);
    c->k->download(c->pool, c->value, c->l.value, (size_t)count[0] * sizeof *c->value);
    rc = rc ? rc : c->k->sync(c->pool, err);
    if (rc)
        return rc;
    if (!all_finite(c->value, (size_t)count[0]))
        return es_fail(err, ES_ERR_FORMAT, "an activation is infinite"); /* the processor passes over it, and takes the next one in its place */
    if (p)
        es_pool_run(p, order_part, &o);
    else
        order_part(&o, 0, 1);
    return ES_OK;
}

static int encode(es_encode_card *c, es_pool *p, const float *x, int T, es_sparse *out, es_error *err)
{
    int rc = c->pool ? ES_OK : start(c, err);
    for (int t = 0; t < T && !rc;) {
        int n = T - t < c->rows ? T - t : c->rows;
        rc = turn(c, p, x, t, n, T, out, err);
        t += rc ? 0 : n;
        rc = rc == AGAIN ? ES_OK : rc;
    }
    return rc;
}

bool es_encode_card_does(es_encode_card *c, es_pool *p, const float *x, int T, es_sparse *out)
{
    if (!c)
        return false;
    const es_dictionary_info *i = es_dictionary_get_info(c->s);
    if ((size_t)T * (size_t)i->d < c->least / (size_t)i->n_features)
        return false;
    es_error err;
    pthread_mutex_lock(&c->lock);
    int rc = c->off ? ES_ERR_DEVICE : encode(c, p, x, T, out, &err);
    if (rc && rc != ES_ERR_FORMAT && !c->off) {
        c->off = true;
        let_go(c);
        if (!es_cuda_lost(c->card)) /* which is told by itself */
            es_cuda_tell(c->card, "dictionary %.80s is encoded on the processor: %.180s", i->name, err.text);
    }
    pthread_mutex_unlock(&c->lock);
    return rc == ES_OK;
}
