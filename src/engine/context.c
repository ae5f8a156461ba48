/* context: the incremental forward. Keys and values of all past tokens stay in the cache, so a new token costs one row through
 * each block. A prompt goes through in chunks, between which the caller may cancel; the cache's length moves only at the end of a
 * feed, so whatever a failed one left behind lies past the length and is overwritten by the next.
 *
 * A context may hold several sequences, each with a cache of its own; a step appends a token to many of them and reads the weights
 * once for all. The cache is in half precision, but f32 where all is exact: a token then attends to what was computed. */
#include "context.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK = 128 };

static int context_size(const es_model *m, const es_context_options *o)
{
    if (o->n_ctx > 0)
        return o->n_ctx;
    return m->info.n_ctx > 0 && m->info.n_ctx < ES_DEFAULT_CONTEXT ? m->info.n_ctx : ES_DEFAULT_CONTEXT;
}

static int context_sequences(const es_context_options *o)
{
    return o->n_seq > 1 ? o->n_seq : 1;
}

static void layout(es_context *c, es_arena *a)
{
    const es_model_info *m = &c->model->info;
    size_t d = m->d_model, ff = m->d_ff, q = (size_t)m->n_head * m->head_dim, kv = (size_t)m->n_kv * m->head_dim;
    size_t n_ctx = c->n_ctx, n_seq = c->n_seq;
    c->cache.half = !c->o.exact;
    c->cache.layer = n_ctx * kv;
    c->slot = es_arena_take(a, n_seq, sizeof *c->slot);
    for (size_t s = 0; s < n_seq; s++) {
        es_slot x = {0};
        x.ids = es_arena_take(a, n_ctx, sizeof *x.ids);
        x.k = es_arena_take(a, m->n_layer * n_ctx * kv, c->cache.half ? sizeof(uint16_t) : sizeof(float));
        x.v = es_arena_take(a, m->n_layer * n_ctx * kv, c->cache.half ? sizeof(uint16_t) : sizeof(float));
        x.logits = es_arena_take(a, m->n_vocab, sizeof(float));
        if (c->slot)
            c->slot[s] = x;
    }
    c->step_logits = n_seq > 1 ? es_arena_take(a, n_seq * m->n_vocab, sizeof(float)) : NULL;
    es_rope_layout(c->model, n_ctx, a, c->pass.rope);
    c->site_mask = es_arena_take(a, m->n_layer, 1);
    c->acts.x = es_arena_take(a, CHUNK * d, sizeof(float));
    c->acts.mid = c->acts.x;
    c->acts.q = es_arena_take(a, CHUNK * q, sizeof(float));
    c->acts.k = es_arena_take(a, CHUNK * kv, sizeof(float));
    c->acts.v = es_arena_take(a, CHUNK * kv, sizeof(float));
    c->acts.att = es_arena_take(a, CHUNK * q, sizeof(float));
    if (c->model->facts.family->post_norm)
        c->acts.att_out = c->acts.ff_out = es_arena_take(a, CHUNK * d, sizeof(float));
    c->acts.gate = es_arena_take(a, CHUNK * ff, sizeof(float));
    c->acts.up = es_arena_take(a, CHUNK * ff, sizeof(float));
    c->pass.norm = es_arena_take(a, CHUNK * d, sizeof(float));
    c->pass.act = es_arena_take(a, CHUNK * ff, sizeof(float));
    c->pass.ff_rows = CHUNK;
    c->pass.low_cap = ES_LOW_MIN;
    c->pass.low = es_arena_take(a, c->pass.low_cap, sizeof(float));
    c->pos = es_arena_take(a, CHUNK, sizeof *c->pos);
    c->start = es_arena_take(a, n_seq + 1, sizeof *c->start);
    c->cache.k = es_arena_take(a, n_seq, sizeof *c->cache.k);
    c->cache.v = es_arena_take(a, n_seq, sizeof *c->cache.v);
    c->cache.k_half = es_arena_take(a, n_seq, sizeof *c->cache.k_half);
    c->cache.v_half = es_arena_take(a, n_seq, sizeof *c->cache.v_half);
    c->cache.shape = es_arena_take(a, n_seq, sizeof *c->cache.shape);
    c->candidate = es_arena_take(a, m->n_vocab, sizeof *c->candidate);
}

size_t es_context_bytes(const es_model *m, const es_context_options *o)
{
    es_context c = {.model = m, .o = *o, .n_ctx = context_size(m, o), .n_seq = context_sequences(o)};
    es_arena a = {0};
    layout(&c, &a);
    return a.used;
}

int es_context_open(es_context **out, const es_model *m, const es_context_options *o, es_error *err)
{
    *out = NULL;
    int n_ctx = context_size(m, o);
    if (n_ctx > 1 << 20)
        return es_fail(err, ES_ERR_USAGE, "context: %d tokens, at most %d go", n_ctx, 1 << 20);
    if (o->n_seq > ES_MAX_SEQUENCES)
        return es_fail(err, ES_ERR_USAGE, "context: %d sequences, at most %d go", o->n_seq, ES_MAX_SEQUENCES);
    es_context *c = es_calloc(1, sizeof *c);
    if (!c)
        return es_fail(err, ES_ERR_MEMORY, "context: no memory");
    c->model = m;
    c->o = *o;
    c->n_ctx = n_ctx;
    c->n_seq = context_sequences(o);
    int code = es_arena_open(&c->arena, es_context_bytes(m, o), err);
    if (!code)
        code = es_pool_open(&c->pass.pool, o->threads, err);
    if (code) {
        es_context_free(c);
        return code;
    }
    layout(c, &c->arena);
    c->now = &c->slot[0];
    es_rope_fill(m, n_ctx, c->pass.rope);
    c->pass.model = m;
    c->pass.k = o->kernels ? o->kernels : es_kernels_cpu();
    c->pass.exact = o->exact;
    c->pass.site_mask = c->site_mask;
    *out = c;
    return ES_OK;
}

void es_context_free(es_context *c)
{
    if (!c)
        return;
    es_pool_free(c->pass.pool);
    es_arena_close(&c->arena);
    free(c);
}

int es_context_size(const es_context *c)
{
    return c->n_ctx;
}

int es_context_sequences(const es_context *c)
{
    return c->n_seq;
}

void es_context_select(es_context *c, int seq)
{
    if (seq >= 0 && seq < c->n_seq)
        c->now = &c->slot[seq];
}

int es_context_length(const es_context *c)
{
    return c->now->length;
}

const int32_t *es_context_ids(const es_context *c)
{
    return c->now->ids;
}

const float *es_context_logits(const es_context *c)
{
    return c->now->logits;
}

void es_context_set_patch(es_context *c, const es_patch *p)
{
    c->has_patch = p != NULL;
    c->patch = p ? *p : (es_patch){0};
}

void es_context_set_watch(es_context *c, const es_watch *w, int n)
{
    c->watch = w;
    c->n_watch = n;
}

/* Runs ids, a row each, through the blocks; the residual ends in acts.x. pos, start and cache are set. */
static int run(es_context *c, const int32_t *ids, int n, int n_seq, es_error *err)
{
    int code = es_embed(c->model, ids, n, c->acts.x, err);
    if (code)
        return code;
    es_rows rows = {.n = n, .pos = c->pos, .start = c->start, .n_seq = n_seq, .cache = &c->cache};
    es_residual_forward(&c->pass, -1, &rows, c->acts.x, c->watch, c->n_watch);
    for (int l = 0; l < c->model->info.n_layer; l++) {
        es_block_forward(&c->pass, l, &rows, &c->acts, c->acts.x);
        es_residual_forward(&c->pass, l, &rows, c->acts.x, c->watch, c->n_watch);
    }
    return ES_OK;
}

/* ids[0..n), n <= CHUNK, at positions pos0 .. pos0+n-1 of the sequence. */
static int feed_chunk(es_context *c, const int32_t *ids, int n, int pos0, es_error *err)
{
    for (int t = 0; t < n; t++)
        c->pos[t] = pos0 + t;
    c->start[0] = 0;
    c->start[1] = n;
    c->cache.k[0] = c->now->k;
    c->cache.v[0] = c->now->v;
    return run(c, ids, n, 1, err);
}

static int no_room(const es_context *c, int n, const es_slot *s, es_error *err)
{
    return es_fail(err, ES_ERR_LIMIT, "%d tokens more than the %d in the context do not fit its %d", n, s->length, c->n_ctx);
}

static bool cancelled(const volatile bool *cancel)
{
    return cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED);
}

int es_context_feed(es_context *c, const int32_t *ids, int n, const volatile bool *cancel, es_error *err)
{
    const es_model_info *m = &c->model->info;
    es_slot *s = c->now;
    if (n < 1)
        return es_fail(err, ES_ERR_USAGE, "nothing to feed");
    if (n > c->n_ctx - s->length)
        return no_room(c, n, s, err);
    int code = es_pass_set_patch(&c->pass, c->has_patch ? &c->patch : NULL, 0, 0, err);
    if (code)
        return code;
    int chunks = (n + CHUNK - 1) / CHUNK, done = 0, last = 0;
    for (int i = 0; i < chunks; i++) { /* chunks of equal size, so that none is a straggler */
        if (cancelled(cancel))
            return es_fail(err, ES_ERR_CANCELLED, "cancelled");
        last = (n - done + chunks - i - 1) / (chunks - i);
        if ((code = feed_chunk(c, ids + done, last, s->length + done, err)))
            return code;
        done += last;
    }
    es_logits(&c->pass, c->acts.x + (size_t)(last - 1) * m->d_model, 1, c->pass.norm, s->logits, c->pass.exact);
    memcpy(s->ids + s->length, ids, sizeof *ids * n);
    s->length += n;
    return ES_OK;
}

/* One after the other, so that each has the logits that it would have alone, to the bit: a product rounds otherwise with more rows. */
static int step_exactly(es_context *c, const int *seq, const int32_t *ids, int n, es_error *err)
{
    es_slot *now = c->now;
    int code = ES_OK;
    for (int i = 0; i < n && !code; i++) {
        c->now = &c->slot[seq[i]];
        code = es_context_feed(c, ids + i, 1, NULL, err);
        for (int j = i - 1; code && j >= 0; j--)
            c->slot[seq[j]].length--;
    }
    c->now = now;
    return code;
}

int es_context_step(es_context *c, const int *seq, const int32_t *ids, int n, const volatile bool *cancel, es_error *err)
{
    const size_t n_vocab = c->model->info.n_vocab;
    if (n < 1 || n > c->n_seq)
        return es_fail(err, ES_ERR_USAGE, "a step of %d of %d sequences", n, c->n_seq);
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < i; j++)
            if (seq[j] == seq[i])
                return es_fail(err, ES_ERR_USAGE, "a step takes sequence %d twice", seq[i]);
        if (seq[i] < 0 || seq[i] >= c->n_seq)
            return es_fail(err, ES_ERR_USAGE, "there is no sequence %d among %d", seq[i], c->n_seq);
        if (c->slot[seq[i]].length >= c->n_ctx)
            return no_room(c, 1, &c->slot[seq[i]], err);
    }
    if (cancelled(cancel))
        return es_fail(err, ES_ERR_CANCELLED, "cancelled");
    if (c->pass.exact)
        return step_exactly(c, seq, ids, n, err);
    int code = es_pass_set_patch(&c->pass, c->has_patch ? &c->patch : NULL, 0, 0, err);
    for (int i = 0; i < n; i++) {
        const es_slot *s = &c->slot[seq[i]];
        c->pos[i] = s->length;
        c->start[i] = i;
        c->cache.k[i] = s->k;
        c->cache.v[i] = s->v;
    }
    c->start[n] = n;
    if (code || (code = run(c, ids, n, n, err)))
        return code;
    float *logits = n > 1 ? c->step_logits : c->slot[seq[0]].logits;
    es_logits(&c->pass, c->acts.x, n, c->pass.norm, logits, false);
    for (int i = 0; i < n; i++) {
        es_slot *s = &c->slot[seq[i]];
        if (n > 1)
            memcpy(s->logits, logits + i * n_vocab, n_vocab * sizeof *logits);
        s->ids[s->length++] = ids[i];
    }
    return ES_OK;
}

int es_context_share(es_context *c, int from, int n, es_error *err)
{
    const es_model_info *m = &c->model->info;
    if (from < 0 || from >= c->n_seq || n < 0 || n > c->slot[from].length)
        return es_fail(err, ES_ERR_USAGE, "sequence %d has not %d tokens to share", from, n);
    const es_slot *s = &c->slot[from];
    size_t size = c->cache.half ? sizeof(uint16_t) : sizeof(float), rows = (size_t)n * m->n_kv * m->head_dim * size;
    if (s != c->now) {
        for (int l = 0; l < m->n_layer; l++) {
            size_t at = l * c->cache.layer * size;
            memcpy((char *)c->now->k + at, (const char *)s->k + at, rows);
            memcpy((char *)c->now->v + at, (const char *)s->v + at, rows);
        }
        memcpy(c->now->ids, s->ids, sizeof *s->ids * n);
    }
    c->now->length = n;
    return ES_OK;
}

int es_context_truncate(es_context *c, int n, es_error *err)
{
    if (n < 0 || n > c->now->length)
        return es_fail(err, ES_ERR_USAGE, "cannot keep %d of %d tokens", n, c->now->length);
    c->now->length = n;
    return ES_OK;
}

int es_context_sync(es_context *c, const int32_t *ids, int n, int *reused, const volatile bool *cancel, es_error *err)
{
    int same = 0;
    if (n < 1)
        return es_fail(err, ES_ERR_USAGE, "nothing to feed");
    if (n > c->n_ctx)
        return es_fail(err, ES_ERR_LIMIT, "%d tokens do not fit a context of %d", n, c->n_ctx);
    while (same < n - 1 && same < c->now->length && c->now->ids[same] == ids[same])
        same++;
    if (reused)
        *reused = same;
    c->now->length = same;
    return es_context_feed(c, ids + same, n - same, cancel, err);
}
