/* context: the incremental forward. Keys and values of all past tokens stay in the cache, so a new token costs one row through
 * each block. A prompt goes through in chunks, between which the caller may cancel; the cache's length moves only at the end of a
 * feed, so whatever a failed one left behind lies past the length and is overwritten by the next. */
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

static void layout(es_context *c, es_arena *a)
{
    const es_model_info *m = &c->model->info;
    size_t d = m->d_model, ff = m->d_ff, q = (size_t)m->n_head * m->head_dim, kv = (size_t)m->n_kv * m->head_dim;
    size_t n_ctx = c->n_ctx;
    c->ids = es_arena_take(a, n_ctx, sizeof *c->ids);
    c->k_all = es_arena_take(a, m->n_layer * n_ctx * kv, sizeof(float));
    c->v_all = es_arena_take(a, m->n_layer * n_ctx * kv, sizeof(float));
    es_rope_layout(c->model, n_ctx, a, c->pass.rope);
    c->site_mask = es_arena_take(a, m->n_layer, 1);
    c->acts.x = es_arena_take(a, CHUNK * d, sizeof(float));
    c->acts.mid = c->acts.x;
    c->acts.q = es_arena_take(a, CHUNK * q, sizeof(float));
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
    c->logits = es_arena_take(a, m->n_vocab, sizeof(float));
    c->candidate = es_arena_take(a, m->n_vocab, sizeof *c->candidate);
}

size_t es_context_bytes(const es_model *m, const es_context_options *o)
{
    es_context c = {.model = m, .n_ctx = context_size(m, o)};
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
    es_context *c = es_calloc(1, sizeof *c);
    if (!c)
        return es_fail(err, ES_ERR_MEMORY, "context: no memory");
    c->model = m;
    c->o = *o;
    c->n_ctx = n_ctx;
    int code = es_arena_open(&c->arena, es_context_bytes(m, o), err);
    if (!code)
        code = es_pool_open(&c->pass.pool, o->threads, err);
    if (code) {
        es_context_free(c);
        return code;
    }
    layout(c, &c->arena);
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

int es_context_length(const es_context *c)
{
    return c->length;
}

const int32_t *es_context_ids(const es_context *c)
{
    return c->ids;
}

const float *es_context_logits(const es_context *c)
{
    return c->logits;
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

/* Runs ids[0..n), n <= CHUNK, at positions pos0 .. pos0+n-1 through the blocks; the residual ends in acts.x. */
static int feed_chunk(es_context *c, const int32_t *ids, int n, int pos0, es_error *err)
{
    const es_model_info *m = &c->model->info;
    size_t kv = (size_t)m->n_kv * m->head_dim;
    int start[2] = {0, n}, code = es_embed(c->model, ids, n, c->acts.x, err);
    if (code)
        return code;
    for (int t = 0; t < n; t++)
        c->pos[t] = pos0 + t;
    es_rows rows = {.n = n, .pos = c->pos, .start = start, .n_seq = 1, .pos0 = pos0};
    es_residual_forward(&c->pass, -1, &rows, c->acts.x, c->watch, c->n_watch);
    for (int l = 0; l < m->n_layer; l++) {
        size_t at = ((size_t)l * c->n_ctx + pos0) * kv; /* the new rows of the cache: the block writes them there */
        c->acts.k = c->k_all + at;
        c->acts.v = c->v_all + at;
        es_block_forward(&c->pass, l, &rows, &c->acts, c->acts.x);
        es_residual_forward(&c->pass, l, &rows, c->acts.x, c->watch, c->n_watch);
    }
    return ES_OK;
}

int es_context_feed(es_context *c, const int32_t *ids, int n, const volatile bool *cancel, es_error *err)
{
    const es_model_info *m = &c->model->info;
    if (n < 1)
        return es_fail(err, ES_ERR_USAGE, "nothing to feed");
    if (n > c->n_ctx - c->length)
        return es_fail(err, ES_ERR_LIMIT, "%d tokens more than the %d in the context do not fit its %d", n, c->length, c->n_ctx);
    int code = es_pass_set_patch(&c->pass, c->has_patch ? &c->patch : NULL, 0, 0, err);
    if (code)
        return code;
    int chunks = (n + CHUNK - 1) / CHUNK, done = 0, last = 0;
    for (int i = 0; i < chunks; i++) { /* chunks of equal size, so that none is a straggler */
        if (cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED))
            return es_fail(err, ES_ERR_CANCELLED, "cancelled");
        last = (n - done + chunks - i - 1) / (chunks - i);
        if ((code = feed_chunk(c, ids + done, last, c->length + done, err)))
            return code;
        done += last;
    }
    es_logits(&c->pass, c->acts.x + (size_t)(last - 1) * m->d_model, 1, c->pass.norm, c->logits, c->pass.exact);
    memcpy(c->ids + c->length, ids, sizeof *ids * n);
    c->length += n;
    return ES_OK;
}

int es_context_truncate(es_context *c, int n, es_error *err)
{
    if (n < 0 || n > c->length)
        return es_fail(err, ES_ERR_USAGE, "cannot keep %d of %d tokens", n, c->length);
    c->length = n;
    return ES_OK;
}

int es_context_sync(es_context *c, const int32_t *ids, int n, int *reused, const volatile bool *cancel, es_error *err)
{
    int same = 0;
    if (n < 1)
        return es_fail(err, ES_ERR_USAGE, "nothing to feed");
    if (n > c->n_ctx)
        return es_fail(err, ES_ERR_LIMIT, "%d tokens do not fit a context of %d", n, c->n_ctx);
    while (same < n - 1 && same < c->length && c->ids[same] == ids[same])
        same++;
    if (reused)
        *reused = same;
    c->length = same;
    return es_context_feed(c, ids + same, n - same, cancel, err);
}
