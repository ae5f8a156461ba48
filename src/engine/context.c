/* context: the incremental forward. Keys and values of all past tokens stay in the cache, so a new token costs one row through
 * each block. A prompt goes through in chunks, between which the caller may cancel; the cache's length moves only at the end of a
 * feed, so whatever a failed one left behind lies past the length and is overwritten by the next.
 *
 * A context may hold several sequences, each with a cache of its own; a step appends a token to many of them and reads the weights
 * once for all. The cache is in half precision, but f32 where all is exact: a token then attends to what was computed. */
#include "context.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK = 128, CHUNK_ON_CARD = 1024 }; /* a card is idle with fewer rows, and unpacks the weights once a chunk */

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

/* h: host memory; a: the ops' memory, which is h on the processor. */
static void layout(es_context *c, es_arena *h, es_arena *a)
{
    const bool card = h != a;
    const size_t chunk = card ? ((size_t)c->n_ctx < CHUNK ? CHUNK : (size_t)c->n_ctx < CHUNK_ON_CARD ? (size_t)c->n_ctx : CHUNK_ON_CARD) : CHUNK;
    c->chunk = (int)chunk;
    const es_model_info *m = &c->model->info;
    size_t d = m->d_model, ff = m->d_ff, q = (size_t)m->n_head * m->head_dim, kv = (size_t)m->n_kv * m->head_dim;
    size_t n_ctx = c->n_ctx, n_seq = c->n_seq;
    c->cache.half = !c->o.exact;
    c->cache.layer = n_ctx * kv;
    c->slot = es_arena_take(h, n_seq, sizeof *c->slot);
    for (size_t s = 0; s < n_seq; s++) {
        es_slot x = {0};
        x.ids = es_arena_take(h, n_ctx, sizeof *x.ids);
        x.k = es_arena_take(a, m->n_layer * n_ctx * kv, c->cache.half ? sizeof(uint16_t) : sizeof(float));
        x.v = es_arena_take(a, m->n_layer * n_ctx * kv, c->cache.half ? sizeof(uint16_t) : sizeof(float));
        x.logits = es_arena_take(h, m->n_vocab, sizeof(float));
        x.logits_on = card ? es_arena_take(a, m->n_vocab, sizeof(float)) : x.logits;
        if (c->slot)
            c->slot[s] = x;
    }
    c->step_logits = n_seq > 1 ? es_arena_take(a, n_seq * m->n_vocab, sizeof(float)) : NULL;
    es_rope_layout(c->model, n_ctx, a, c->pass.rope);
    c->site_mask = es_arena_take(h, m->n_layer, 1);
    c->acts.x = es_arena_take(a, chunk * d, sizeof(float));
    c->acts.mid = c->acts.x;
    c->acts.q = es_arena_take(a, chunk * q, sizeof(float));
    c->acts.k = es_arena_take(a, chunk * kv, sizeof(float));
    c->acts.v = es_arena_take(a, chunk * kv, sizeof(float));
    c->acts.att = es_arena_take(a, chunk * q, sizeof(float));
    if (c->model->facts.family->post_norm)
        c->acts.att_out = c->acts.ff_out = es_arena_take(a, chunk * d, sizeof(float));
    c->acts.gate = es_arena_take(a, chunk * ff, sizeof(float));
    c->acts.up = es_arena_take(a, chunk * ff, sizeof(float));
    c->pass.norm = es_arena_take(a, chunk * d, sizeof(float));
    c->pass.act = es_arena_take(a, chunk * ff, sizeof(float));
    c->pass.ff_rows = (int)chunk;
    c->pass.low_cap = ES_LOW_MIN;
    c->pass.low = es_arena_take(a, c->pass.low_cap, sizeof(float));
    c->pos = es_arena_take(h, chunk, sizeof *c->pos);
    c->pos_on = card ? es_arena_take(a, chunk, sizeof *c->pos) : c->pos;
    c->start = es_arena_take(h, n_seq + 1, sizeof *c->start);
    c->cache.k = es_arena_take(h, n_seq, sizeof *c->cache.k);
    c->cache.v = es_arena_take(h, n_seq, sizeof *c->cache.v);
    c->cache.k_half = es_arena_take(h, n_seq, sizeof *c->cache.k_half);
    c->cache.v_half = es_arena_take(h, n_seq, sizeof *c->cache.v_half);
    c->cache.shape = es_arena_take(h, n_seq, sizeof *c->cache.shape);
    c->candidate = es_arena_take(h, m->n_vocab, sizeof *c->candidate);
    if (card) {
        c->pass.ids = es_arena_take(a, chunk, sizeof *c->pass.ids);
        c->pass.host_rows = es_arena_take(h, (chunk > ES_SEEN ? chunk : ES_SEEN) * es_seen_width(c->model), sizeof(float));
        c->pass.seen_on = es_arena_take(a, ES_SEEN * es_seen_width(c->model), sizeof(float));
        c->top_on = es_arena_take(a, 2 * ES_TOP_MAX, sizeof *c->top_on);
        c->top = es_arena_take(h, 2 * ES_TOP_MAX, sizeof *c->top);
    }
}

static void measure(const es_model *m, const es_context_options *o, bool card, size_t *host, size_t *on)
{
    es_context c = {.model = m, .o = *o, .n_ctx = context_size(m, o), .n_seq = context_sequences(o)};
    es_arena h = {0}, a = {0};
    layout(&c, &h, card ? &a : &h);
    *host = h.used;
    *on = a.used;
}

/* Memory, pool and tables, on the model's card when it has one. What a failure leaves, es_context_free takes away. */
static int set_up(es_context *c, es_error *err)
{
    const es_context_options *o = &c->o;
    const es_cuda_pool_options po = {.high_priority = true, .precision = o->exact ? ES_CUDA_F32 : ES_CUDA_BF16};
    size_t host, on;
    int code = es_pass_open(&c->pass, c->model, o->kernels, o->threads, &po, err);
    if (code)
        return code;
    measure(c->model, o, c->pass.card != NULL, &host, &on);
    code = es_arena_open(&c->arena, host, err);
    if (!code && c->pass.card)
        code = es_pass_take(&c->pass, &c->on, on, err);
    if (code)
        return code;
    layout(c, &c->arena, c->pass.card ? &c->on : &c->arena);
    c->now = &c->slot[0];
    c->pass.exact = o->exact;
    c->pass.site_mask = c->site_mask;
    return es_pass_fill_rope(&c->pass, c->n_ctx, err);
}

size_t es_context_bytes(const es_model *m, const es_context_options *o)
{
    size_t host, on;
    measure(m, o, es_on_card(m) && !o->kernels, &host, &on);
    return host + on;
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
    int code = set_up(c, err);
    if (code) {
        es_context_free(c);
        return code;
    }
    *out = c;
    return ES_OK;
}

bool es_context_on_card(const es_context *c)
{
    return c->pass.card != NULL;
}

static void tear_down(es_context *c)
{
    if (c->pass.card)
        es_pass_release(&c->pass, &c->on);
    es_pass_close(&c->pass);
}

void es_context_free(es_context *c)
{
    if (!c)
        return;
    tear_down(c);
    es_arena_close(&c->arena);
    es_arena_close(&c->before);
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

static int fall_back(es_context *c, es_error *err);

const float *es_context_logits(const es_context *c)
{
    es_slot *s = c->now;
    if (s->behind) {
        c->pass.k->download(c->pass.pool, s->logits, s->logits_on, sizeof *s->logits * (size_t)c->model->info.n_vocab);
        if (c->pass.k->sync(c->pass.pool, NULL)) /* lost meanwhile: feeding again gives them */
            fall_back((es_context *)(uintptr_t)c, NULL);
        c->now->behind = false;
    }
    return c->now->logits;
}

void es_context_set_patch(es_context *c, const es_patch *p)
{
    c->has_patch = p != NULL;
    c->patch = p ? *p : (es_patch){0};
    c->pass.on.current = false;
    c->recorded = NULL;
}

void es_context_set_watch(es_context *c, const es_watch *w, int n)
{
    c->watch = w;
    c->n_watch = n;
    c->recorded = NULL;
}

/* The residual in acts.x, a row a token, through all blocks. */
static void blocks(es_context *c, int n, int n_seq)
{
    es_rows rows = {.n = n, .pos = c->pos, .pos_on = c->pos_on, .start = c->start, .n_seq = n_seq, .cache = &c->cache};
    const es_watching w = {c->watch, c->n_watch};
    es_residual_forward(&c->pass, -1, &rows, c->acts.x, w);
    for (int l = 0; l < c->model->info.n_layer; l++) {
        es_block_forward(&c->pass, l, &rows, &c->acts, c->acts.x, w);
        es_residual_forward(&c->pass, l, &rows, c->acts.x, w);
    }
}

/* Runs ids, a row each, through the blocks; the residual ends in acts.x. pos, start and cache are set. */
static int run(es_context *c, const int32_t *ids, int n, int n_seq, es_error *err)
{
    if (c->pass.card)
        c->pass.k->upload(c->pass.pool, c->pos_on, c->pos, sizeof *c->pos * (size_t)n);
    int code = es_embed(&c->pass, ids, n, c->acts.x, err);
    if (code)
        return code;
    blocks(c, n, n_seq);
    return ES_OK;
}

/* ids[0..n), n <= c->chunk, at positions pos0 .. pos0+n-1 of the sequence. */
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

/* What a call begins with: the patch, and a thawed model's numbers. */
static int get_ready(es_context *c, es_error *err)
{
    if (!c->pass.pool)
        return es_fail(err, ES_ERR_DEVICE, "the card was lost, and what it held could not be computed again here");
    int code = es_pass_refresh(&c->pass, c->model, err);
    code = code ? code : es_pass_set_patch(&c->pass, c->has_patch ? &c->patch : NULL, 0, 0, err);
    return code ? code : es_pass_upload_patch(&c->pass, err);
}

static int no_room(const es_context *c, int n, const es_slot *s, es_error *err)
{
    return es_fail(err, ES_ERR_LIMIT, "%d tokens more than the %d in the context do not fit its %d", n, s->length, c->n_ctx);
}

static bool cancelled(const volatile bool *cancel)
{
    return cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED);
}

/* Whether a token's pass is the same run of kernels whatever the token: nothing of it is done here. */
static bool can_record(const es_context *c)
{
    for (int i = 0; c->has_patch && i < c->patch.n_hook; i++)
        if (!c->patch.hook[i].numbers)
            return false;
    return c->pass.card && c->cache.half && !c->no_record && c->n_watch <= ES_SEEN;
}

/* What the watches of a recorded token see was put aside there: it comes down once for all of them. */
static int show_seen(es_context *c, es_error *err)
{
    const size_t wide = es_seen_width(c->model);
    if (!c->n_watch)
        return ES_OK;
    c->pass.k->download(c->pass.pool, c->pass.host_rows, c->pass.seen_on, sizeof(float) * (size_t)c->n_watch * wide);
    int code = c->pass.k->sync(c->pass.pool, err);
    const int last = es_moment(c->model->info.n_layer - 1, ES_POINT_RESIDUAL);
    for (int moment = es_moment(-1, ES_POINT_RESIDUAL); moment <= last && !code; moment++)
        for (int i = 0; i < c->n_watch; i++)
            if (es_moment(c->watch[i].layer, c->watch[i].point) == moment)
                c->watch[i].fn(c->watch[i].user, c->watch[i].layer, c->pos[0], c->pass.host_rows + (size_t)i * wide, 1, es_point_width(c->model, c->watch[i].point));
    return code;
}

/* One token on a card, from a recording that is made once and then only started. */
static int feed_recorded(es_context *c, int32_t id, es_error *err)
{
    const es_kernels *k = c->pass.k;
    es_pool *pool = c->pass.pool;
    es_slot *s = c->now;
    const es_weight *w = &c->pass.model->token_embd;
    if (id < 0 || id >= w->n_out)
        return es_fail(err, ES_ERR_USAGE, "token 0 is %d, but the vocabulary has %d", id, w->n_out);
    c->pos[0] = s->length;
    c->start[0] = 0;
    c->start[1] = 1;
    c->cache.k[0] = s->k;
    c->cache.v[0] = s->v;
    k->upload(pool, c->pos_on, c->pos, sizeof *c->pos);
    k->upload(pool, c->pass.ids, &id, sizeof id);
    if (c->recorded == s)
        es_cuda_step_again(pool);
    else {
        es_cuda_step_begin(pool);
        c->pass.at_pos = c->n_ctx;
        k->embed(pool, w, c->pass.ids, 1, c->model->facts.embed_scale, c->acts.x);
        blocks(c, 1, 1);
        es_logits(&c->pass, c->acts.x, 1, c->pass.norm, s->logits_on, c->pass.exact);
        c->pass.at_pos = 0;
        es_cuda_step_end(pool);
    }
    int code = k->sync(pool, err);
    c->recorded = code ? NULL : s;
    return code ? code : show_seen(c, err);
}

static int feed(es_context *c, const int32_t *ids, int n, const volatile bool *cancel, es_error *err)
{
    const es_model_info *m = &c->model->info;
    es_slot *s = c->now;
    if (n < 1)
        return es_fail(err, ES_ERR_USAGE, "nothing to feed");
    if (n > c->n_ctx - s->length)
        return no_room(c, n, s, err);
    int code = get_ready(c, err);
    if (code)
        return code;
    if (n == 1 && can_record(c)) {
        if (cancelled(cancel))
            return es_fail(err, ES_ERR_CANCELLED, "cancelled");
        code = feed_recorded(c, ids[0], err);
        if (!code) {
            s->behind = true;
            s->ids[s->length++] = ids[0];
        }
        if (code != ES_ERR_DEVICE || es_cuda_lost(c->pass.card))
            return code;
        c->no_record = true; /* it is there, but does not record this: step by step, then */
    }
    int chunks = (n + c->chunk - 1) / c->chunk, done = 0, last = 0;
    for (int i = 0; i < chunks; i++) { /* chunks of equal size, so that none is a straggler */
        if (cancelled(cancel))
            return es_fail(err, ES_ERR_CANCELLED, "cancelled");
        last = (n - done + chunks - i - 1) / (chunks - i);
        if ((code = feed_chunk(c, ids + done, last, s->length + done, err)))
            return code;
        done += last;
    }
    es_logits(&c->pass, c->acts.x + (size_t)(last - 1) * m->d_model, 1, c->pass.norm, s->logits_on, c->pass.exact);
    if ((code = c->pass.k->sync(c->pass.pool, err)))
        return code;
    s->behind = c->pass.card != NULL;
    memcpy(s->ids + s->length, ids, sizeof *ids * n);
    s->length += n;
    return ES_OK;
}

/* The card is gone, and with it all that it held; ids are here. The context goes on with the processor: every sequence is fed again under the patch
 * that is set, so that what a patch changed in between is taken as if it had been there from the start. */
static int fall_back(es_context *c, es_error *err)
{
    int now = (int)(c->now - c->slot), code;
    es_slot *was = c->slot;
    if (c->before.base)
        return ES_ERR_DEVICE;
    c->before = c->arena;
    c->arena = (es_arena){0};
    tear_down(c);
    c->pass = (es_pass){0};
    c->recorded = NULL;
    code = set_up(c, err);
    const int n_watch = c->n_watch;
    c->n_watch = 0; /* they have seen all that */
    for (int i = 0; i < c->n_seq && !code; i++) {
        c->now = &c->slot[i];
        code = was[i].length ? feed(c, was[i].ids, was[i].length, NULL, err) : ES_OK;
    }
    c->n_watch = n_watch;
    if (c->slot)
        c->now = &c->slot[now];
    return code;
}

int es_context_feed(es_context *c, const int32_t *ids, int n, const volatile bool *cancel, es_error *err)
{
    int code = feed(c, ids, n, cancel, err);
    if (code != ES_ERR_DEVICE || !c->pass.card)
        return code;
    code = fall_back(c, err);
    return code ? code : feed(c, ids, n, cancel, err);
}

/* One after the other, so that each has the logits that it would have alone, to the bit: a product rounds otherwise with more rows. */
static int step_exactly(es_context *c, const int *seq, const int32_t *ids, int n, es_error *err)
{
    const int now = (int)(c->now - c->slot); /* a number: the slots move when a card is lost */
    int code = ES_OK;
    for (int i = 0; i < n && !code; i++) {
        c->now = &c->slot[seq[i]];
        code = es_context_feed(c, ids + i, 1, NULL, err);
        for (int j = i - 1; code && j >= 0; j--)
            c->slot[seq[j]].length--;
    }
    c->now = &c->slot[now];
    return code;
}

static int step(es_context *c, const int *seq, const int32_t *ids, int n, const volatile bool *cancel, es_error *err)
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
    int code = get_ready(c, err);
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
    float *logits = n > 1 ? c->step_logits : c->slot[seq[0]].logits_on;
    es_logits(&c->pass, c->acts.x, n, c->pass.norm, logits, false);
    for (int i = 0; i < n && n > 1; i++)
        c->pass.k->copy(c->pass.pool, c->slot[seq[i]].logits_on, logits + i * n_vocab, n_vocab * sizeof *logits);
    if ((code = c->pass.k->sync(c->pass.pool, err)))
        return code;
    for (int i = 0; i < n; i++) {
        es_slot *s = &c->slot[seq[i]];
        s->behind = c->pass.card != NULL;
        s->ids[s->length++] = ids[i];
    }
    return ES_OK;
}

int es_context_step(es_context *c, const int *seq, const int32_t *ids, int n, const volatile bool *cancel, es_error *err)
{
    int code = step(c, seq, ids, n, cancel, err);
    if (code != ES_ERR_DEVICE || !c->pass.card)
        return code;
    code = fall_back(c, err);
    return code ? code : step(c, seq, ids, n, cancel, err);
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
            c->pass.k->copy(c->pass.pool, (char *)c->now->k + at, (const char *)s->k + at, rows);
            c->pass.k->copy(c->pass.pool, (char *)c->now->v + at, (const char *)s->v + at, rows);
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
