/* A small model that decodes, written once and run on either table: what the engine's forward pass is to do. Its prompt goes through at once; each
 * further token is a recorded step, whose token and position are uploaded within it. */
#include "suite.h"

enum { LAYERS = 2, D = 64, HEADS = 4, KV = 2, HEAD = 16, FF = 96, VOCAB = 300, CONTEXT = 24, PROMPT = 5, TOKENS = 12 };

typedef struct layer { es_weight q, k, v, o, gate, up, down; float *norm_a, *norm_f; } layer;
typedef struct model { es_weight embd; layer layer[LAYERS]; float *norm, *cos, *sin; } model;

typedef struct run { /* all in the table's memory */
    const es_kernels *k;
    es_pool *pool;
    model m;
    float *x, *in, *q, *key, *value, *att, *gate, *up, *logits, *best, *logsum;
    uint16_t *keys[LAYERS], *values[LAYERS];
    int32_t *ids, *pos, *which;
} run;

static model random_model(void)
{
    model m = {.embd = random_weight(ES_Q8_0, VOCAB, D), .norm = noise(D, 0.1f), .cos = noise(CONTEXT * HEAD / 2, 1), .sin = noise(CONTEXT * HEAD / 2, 1)};
    for (int i = 0; i < LAYERS; i++)
        m.layer[i] = (layer){random_weight(ES_Q4_1, HEADS * HEAD, D), random_weight(ES_Q4_0, KV * HEAD, D), random_weight(ES_Q5_0, KV * HEAD, D),
                             random_weight(ES_F16, D, HEADS * HEAD), random_weight(ES_Q4_1, FF, D), random_weight(ES_Q5_1, FF, D),
                             random_weight(ES_IQ4_NL, D, FF), noise(D, 1), noise(D, 1)};
    for (int i = 0; i < CONTEXT * HEAD / 2; i++)
        m.cos[i] = cosf((float)i), m.sin[i] = sinf((float)i);
    return m;
}

static model upload_model(const model *h)
{
    model m = {.embd = on_card(&h->embd), .norm = UP(h->norm, D), .cos = UP(h->cos, CONTEXT * HEAD / 2), .sin = UP(h->sin, CONTEXT * HEAD / 2)};
    for (int i = 0; i < LAYERS; i++) {
        const layer *l = &h->layer[i];
        m.layer[i] = (layer){on_card(&l->q), on_card(&l->k), on_card(&l->v), on_card(&l->o), on_card(&l->gate), on_card(&l->up), on_card(&l->down),
                             UP(l->norm_a, D), UP(l->norm_f, D)};
    }
    return m;
}

static run open_run(const es_kernels *table, es_pool *p, model m)
{
    run r = {.k = table, .pool = p, .m = m};
    struct { void **at; size_t bytes; } all[] = {
        {(void **)&r.x, PROMPT * D * 4}, {(void **)&r.in, PROMPT * D * 4}, {(void **)&r.q, PROMPT * HEADS * HEAD * 4}, {(void **)&r.key, PROMPT * KV * HEAD * 4},
        {(void **)&r.value, PROMPT * KV * HEAD * 4}, {(void **)&r.att, PROMPT * HEADS * HEAD * 4}, {(void **)&r.gate, PROMPT * FF * 4}, {(void **)&r.up, PROMPT * FF * 4},
        {(void **)&r.logits, VOCAB * 4}, {(void **)&r.best, 16}, {(void **)&r.logsum, 4}, {(void **)&r.ids, PROMPT * 4}, {(void **)&r.pos, PROMPT * 4}, {(void **)&r.which, 16},
        {(void **)&r.keys[0], CONTEXT * KV * HEAD * 2}, {(void **)&r.keys[1], CONTEXT * KV * HEAD * 2}, {(void **)&r.values[0], CONTEXT * KV * HEAD * 2},
        {(void **)&r.values[1], CONTEXT * KV * HEAD * 2},
    };
    for (int i = 0; i < LENGTH(all); i++)
        *all[i].at = table == k ? room(all[i].bytes) : host(all[i].bytes);
    return r;
}

/* Tokens ids[0..n) at positions pos0 ..; the last one's logits. */
static void feed(run *r, const int32_t *ids, int n, int pos0)
{
    int32_t pos[PROMPT];
    for (int i = 0; i < n; i++)
        pos[i] = pos0 + i;
    r->k->upload(r->pool, r->ids, ids, sizeof *ids * (size_t)n);
    r->k->upload(r->pool, r->pos, pos, sizeof *pos * (size_t)n);
    r->k->embed(r->pool, &r->m.embd, r->ids, n, 8, r->x);
    for (int i = 0; i < LAYERS; i++) {
        const layer *l = &r->m.layer[i];
        const size_t at = (size_t)pos0 * KV * HEAD, rows = (size_t)n * KV * HEAD;
        r->k->rmsnorm(r->pool, r->x, l->norm_a, r->in, n, D, 1e-5f);
        r->k->matmuls(r->pool, (const es_weight *[]){&l->q, &l->k, &l->v}, 3, r->in, n, (float *[]){r->q, r->key, r->value}, true);
        r->k->rope(r->pool, r->q, r->pos, r->m.cos, r->m.sin, n, HEADS, HEAD, true, false);
        r->k->rope(r->pool, r->key, r->pos, r->m.cos, r->m.sin, n, KV, HEAD, true, false);
        r->k->to_half(r->pool, r->key, r->keys[i] + at, rows);
        r->k->to_half(r->pool, r->value, r->values[i] + at, rows);
        const es_attn a = {.T = n, .pos0 = pos0, .n_head = HEADS, .n_kv = KV, .head_dim = HEAD, .scale = 0.25f, .window = i ? 7 : 0};
        const uint16_t *keys = r->keys[i], *values = r->values[i];
        r->k->attention_half(r->pool, &a, 1, r->q, &keys, &values, r->att);
        r->k->matmul(r->pool, &l->o, r->att, n, r->x, true, true);
        r->k->rmsnorm(r->pool, r->x, l->norm_f, r->in, n, D, 1e-5f);
        r->k->matmul(r->pool, &l->gate, r->in, n, r->gate, false, true);
        r->k->matmul(r->pool, &l->up, r->in, n, r->up, false, true);
        r->k->swiglu(r->pool, r->gate, r->up, r->gate, (size_t)n * FF);
        r->k->matmul(r->pool, &l->down, r->gate, n, r->x, true, true);
    }
    r->k->rmsnorm(r->pool, r->x + (size_t)(n - 1) * D, r->m.norm, r->in, 1, D, 1e-5f);
    r->k->matmul(r->pool, &r->m.embd, r->in, 1, r->logits, false, true);
    r->k->top(r->pool, r->logits, VOCAB, 4, r->which, r->best, r->logsum);
}

static void test_decode(void)
{
    model h = random_model();
    run plain = open_run(ref, NULL, h), ours = open_run(k, pool, upload_model(&h));
    int32_t *ids = below(PROMPT, VOCAB), next = 0, got[4];
    synced();
    for (int i = 0, at = 0; i < TOKENS; i++) {
        const int n = i ? 1 : PROMPT;
        feed(&plain, i ? &next : ids, n, at);
        if (i)
            es_cuda_step_begin(pool);
        feed(&ours, i ? &next : ids, n, at);
        if (i)
            es_cuda_step_end(pool);
        at += n;
        near_to("logits", ours.logits, plain.logits, VOCAB, 1e-3); /* a key or value on the other side of a rounding to half */
        k->download(pool, got, ours.which, sizeof got);
        synced();
        CHECK(got[0] == plain.which[0]);
        next = plain.which[i % 4]; /* not only the best, or it would say one word for ever */
    }
}

const suite_test model_tests[] = {{"decode", test_decode}, {NULL, NULL}};
