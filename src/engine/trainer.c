/* trainer: batches of whole sequences, forward and backward. One block of memory, laid out by layout() below: first in measure
 * mode to size it, then for real.
 *
 * The head is 49,152 wide while a block is 1,536, so logits are made only for the tokens that are wanted, head_rows at a time.
 * The backward pass starts with the chunk whose logits are still there and makes those of the others again. */
#include "forward.h"

#include <stdlib.h>
#include <string.h>

struct es_trainer {
    const es_model *model;
    es_trainer_options o;
    es_arena arena; /* host memory: all, or with a card what is not the ops' */
    es_arena on;    /* of the card */
    es_arena grad;  /* of the card: what a backward adds up before it is the caller's; as large as any so far */
    es_pass pass;
    es_back back; /* also the scratch of passes that keep nothing */
    es_acts *acts; /* [n_layer], those from from_layer on, when o.backward */
    es_acts lean;  /* for passes that keep nothing: x, mid are set to the buffer in use */
    float *h;      /* [max_tokens, d_model]: the residual; after a forward, the last one */
    float *dh;
    int *pos, *start;
    int *pos_on;   /* pos, wanted, target and head_dlogprob where ops see them: themselves on the processor */
    int *wanted_on;
    int32_t *target_on;
    float *head_dlogprob_on, *pick_on;
    float *host_row; /* with a card: [n_vocab] a row of gradients that a caller adds to */
    uint8_t *site_mask;

    int head_rows, head_first, head_n; /* the wanted tokens whose logits lie in `logits`; head_n 0: none */
    int *wanted, n_wanted;             /* tokens whose log-probability is wanted */
    int32_t *target;                   /* [head_rows] */
    float *logits, *p_row;             /* [head_rows, n_vocab], [n_vocab] */
    float *cap_row;                    /* [n_vocab], where logits are capped: a row's, which its gradient needs */
    float *head_x, *head_norm, *head_dx, *head_dlogprob; /* rows of a chunk, gathered */
    float *head_slope;                 /* [head_rows] what head_dlogprob was, where a caller adds gradients */
    float *pick, *logsum;              /* [max_tokens], by place in wanted */

    es_rows rows; /* of the last forward */
    bool forward_done;
    int seen; /* of the pass: the moment last watched */
};

enum { FF_ROWS = 512, HEAD_ROWS_MIN = 16, LOGIT_BYTES = 192 << 20 };

static int max_hooks(const es_trainer_options *o)
{
    return o->max_hooks > 0 ? o->max_hooks : 2;
}

/* h: host memory; a: the ops' memory, which is h on the processor. */
static void layout(es_trainer *t, es_arena *h, es_arena *a)
{
    const bool card = h != a;
    const es_model_info *m = &t->model->info;
    size_t n = t->o.max_tokens, d = m->d_model, ff = m->d_ff, q = (size_t)m->n_head * m->head_dim, kv = (size_t)m->n_kv * m->head_dim;
    size_t ff_n = t->o.backward || n < FF_ROWS ? n : FF_ROWS;
    const es_family *family = t->model->facts.family;
    bool back = t->o.backward;

    t->pos = es_arena_take(h, n, sizeof *t->pos);
    t->pos_on = card ? es_arena_take(a, n, sizeof *t->pos) : t->pos;
    t->start = es_arena_take(h, n + 1, sizeof *t->start);
    t->site_mask = es_arena_take(h, m->n_layer, 1);
    if (card) {
        t->pass.ids = es_arena_take(a, n, sizeof *t->pass.ids);
        t->pass.host_rows = es_arena_take(h, n * (back ? 2 * d > q ? 2 * d : q : d > q ? d : q), sizeof(float));
    }
    es_rope_layout(t->model, n, a, t->pass.rope);
    t->h = es_arena_take(a, n * d, sizeof(float));

    t->pass.norm = es_arena_take(a, n * d, sizeof(float));
    t->pass.act = es_arena_take(a, ff_n * ff, sizeof(float));
    t->pass.ff_rows = (int)ff_n;
    t->pass.low_cap = (int)(n * 64 > ES_LOW_MIN ? n * 64 : ES_LOW_MIN);
    t->pass.low = es_arena_take(a, t->pass.low_cap, sizeof(float));
    t->lean.q = t->back.dq = es_arena_take(a, n * q, sizeof(float));
    t->lean.k = t->back.dk = es_arena_take(a, n * kv, sizeof(float));
    t->lean.v = t->back.dv = es_arena_take(a, n * kv, sizeof(float));
    t->lean.att = t->back.datt = es_arena_take(a, n * q, sizeof(float));
    t->lean.gate = t->back.dgate = es_arena_take(a, ff_n * ff, sizeof(float));
    t->lean.up = t->back.dup = es_arena_take(a, ff_n * ff, sizeof(float));
    if (family->post_norm) {
        t->lean.att_out = es_arena_take(a, n * d, sizeof(float));
        t->lean.ff_out = t->back.dbranch = t->lean.att_out;
    }
    if (back) {
        t->pass.dlow = es_arena_take(a, t->pass.low_cap, sizeof(float));
        t->pass.hook_in = es_arena_take(a, (size_t)max_hooks(&t->o) * n * d, sizeof(float));
        t->pass.hook_rows = (int)n;
        t->back.dnorm = es_arena_take(a, n * d, sizeof(float));
        t->back.dact = es_arena_take(a, ff_n * ff, sizeof(float));
        t->dh = es_arena_take(a, n * d, sizeof(float));
        t->acts = es_arena_take(h, m->n_layer, sizeof *t->acts);
        for (int l = t->o.from_layer; l < m->n_layer; l++) {
            es_acts acts = {0};
            acts.x = es_arena_take(a, n * d, sizeof(float));
            acts.q = es_arena_take(a, n * q, sizeof(float));
            acts.k = es_arena_take(a, n * kv, sizeof(float));
            acts.v = es_arena_take(a, n * kv, sizeof(float));
            acts.att = es_arena_take(a, n * q, sizeof(float));
            acts.mid = es_arena_take(a, n * d, sizeof(float));
            acts.gate = es_arena_take(a, n * ff, sizeof(float));
            acts.up = es_arena_take(a, n * ff, sizeof(float));
            if (family->qk_norm) {
                acts.q_in = es_arena_take(a, n * q, sizeof(float));
                acts.k_in = es_arena_take(a, n * kv, sizeof(float));
            }
            if (family->post_norm) {
                acts.att_out = es_arena_take(a, n * d, sizeof(float));
                acts.ff_out = es_arena_take(a, n * d, sizeof(float));
            }
            if (t->acts)
                t->acts[l] = acts;
        }
    }

    size_t bytes = t->o.logit_bytes ? t->o.logit_bytes : back ? LOGIT_BYTES : LOGIT_BYTES / 8;
    size_t rows = bytes / sizeof(float) / m->n_vocab;
    rows = rows < HEAD_ROWS_MIN ? HEAD_ROWS_MIN : rows;
    t->head_rows = (int)(rows > n ? n : rows);
    rows = t->head_rows;
    t->wanted = es_arena_take(h, n, sizeof *t->wanted);
    t->wanted_on = card ? es_arena_take(a, n, sizeof *t->wanted) : t->wanted;
    t->target = es_arena_take(h, rows, sizeof *t->target);
    t->target_on = card ? es_arena_take(a, rows, sizeof *t->target) : t->target;
    t->pick = es_arena_take(h, n, sizeof(float));
    t->pick_on = card ? es_arena_take(a, n, sizeof(float)) : t->pick;
    t->logsum = es_arena_take(a, n, sizeof(float));
    t->logits = es_arena_take(a, rows * m->n_vocab, sizeof(float));
    t->head_x = es_arena_take(a, rows * d, sizeof(float));
    t->head_norm = es_arena_take(a, rows * d, sizeof(float));
    if (back) {
        t->p_row = es_arena_take(h, m->n_vocab, sizeof(float));
        t->host_row = card ? es_arena_take(h, m->n_vocab, sizeof(float)) : NULL;
        if (t->model->facts.final_cap > 0)
            t->cap_row = es_arena_take(a, m->n_vocab, sizeof(float));
        t->head_dx = es_arena_take(a, rows * d, sizeof(float));
        t->head_dlogprob = es_arena_take(h, rows, sizeof(float));
        t->head_slope = es_arena_take(h, rows, sizeof(float));
        t->head_dlogprob_on = card ? es_arena_take(a, rows, sizeof(float)) : t->head_dlogprob;
    }
}

static void measure(const es_model *m, const es_trainer_options *o, bool card, size_t *host, size_t *on)
{
    es_trainer t = {.model = m, .o = *o};
    es_arena h = {0}, a = {0};
    layout(&t, &h, card ? &a : &h);
    *host = h.used;
    *on = a.used;
}

size_t es_trainer_bytes(const es_model *m, const es_trainer_options *o)
{
    size_t host, on;
    measure(m, o, es_on_card(m) && !o->kernels, &host, &on);
    return host + on;
}

/* Memory, pool and tables, on the model's card when it has one. What a failure leaves, es_trainer_free takes away. */
static int set_up(es_trainer *t, es_error *err)
{
    const es_trainer_options *o = &t->o;
    const bool rough = o->rough || o->rough_on_card;
    const es_cuda_pool_options po = {.precision = rough ? ES_CUDA_BF16 : ES_CUDA_F32, .exact_too = rough};
    size_t host, on;
    int code = es_pass_open(&t->pass, t->model, o->kernels, o->threads, &po, err);
    if (code)
        return code;
    if (!t->pass.card && !o->kernels && o->rough) {
        t->pass.k = es_kernels_half();
        t->pass.feed_forward = o->eight_bits ? es_kernels_eight() : NULL;
    }
    measure(t->model, o, t->pass.card != NULL, &host, &on);
    code = es_arena_open(&t->arena, host, err);
    if (!code && t->pass.card)
        code = es_pass_take(&t->pass, &t->on, on, err);
    if (code)
        return code;
    layout(t, &t->arena, t->pass.card ? &t->on : &t->arena);
    t->pass.exact = true;
    t->pass.seen = &t->seen;
    t->pass.site_mask = t->site_mask;
    return es_pass_fill_rope(&t->pass, o->max_tokens, err);
}

static void tear_down(es_trainer *t)
{
    if (t->pass.card) {
        es_kept_close(&t->pass);
        es_pass_release(&t->pass, &t->on);
        es_pass_release(&t->pass, &t->grad);
    }
    es_pass_close(&t->pass);
    es_arena_close(&t->arena);
}

int es_trainer_open(es_trainer **out, const es_model *m, const es_trainer_options *o, es_error *err)
{
    *out = NULL;
    if (o->max_tokens < 1 || o->max_tokens > 1 << 20 || o->from_layer < 0 || o->from_layer >= m->info.n_layer)
        return es_fail(err, ES_ERR_USAGE, "trainer: %d tokens from layer %d of %d cannot be", o->max_tokens, o->from_layer, m->info.n_layer);
    es_trainer *t = es_calloc(1, sizeof *t);
    if (!t)
        return es_fail(err, ES_ERR_MEMORY, "trainer: no memory");
    t->model = m;
    t->o = *o;
    int code = set_up(t, err);
    if (code) {
        es_trainer_free(t);
        return code;
    }
    *out = t;
    return ES_OK;
}

/* The card is gone: this trainer goes on with the processor. What its last forward left is gone too. */
static int fall_back(es_trainer *t, es_error *err)
{
    tear_down(t);
    t->pass = (es_pass){0};
    t->forward_done = false;
    t->head_n = t->n_wanted = 0;
    return set_up(t, err);
}

static int lost(es_error *err)
{
    return es_fail(err, ES_ERR_DEVICE, "the card was lost, and there is no memory to go on without it");
}

void es_trainer_free(es_trainer *t)
{
    if (!t)
        return;
    tear_down(t);
    free(t);
}

static int cancelled(const volatile bool *cancel, es_error *err)
{
    if (cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED))
        return es_fail(err, ES_ERR_CANCELLED, "cancelled");
    return ES_OK;
}

/* Checks the batch and lays out its rows (positions, sequence starts). */
static int set_rows(es_trainer *t, const es_batch *b, es_error *err)
{
    if (b->n < 1 || b->n_seq < 1 || b->start[0] != 0 || b->start[b->n_seq] != b->n)
        return es_fail(err, ES_ERR_USAGE, "batch: %d tokens in %d sequences do not add up", b->n, b->n_seq);
    if (b->n > t->o.max_tokens || b->n_seq > t->o.max_tokens)
        return es_fail(err, ES_ERR_LIMIT, "batch: %d tokens in %d sequences, room for %d", b->n, b->n_seq, t->o.max_tokens);
    for (int s = 0; s < b->n_seq; s++) {
        if (b->start[s] > b->start[s + 1])
            return es_fail(err, ES_ERR_USAGE, "batch: sequence %d ends before it starts", s);
        for (int i = b->start[s]; i < b->start[s + 1]; i++)
            t->pos[i] = i - b->start[s];
    }
    memcpy(t->start, b->start, sizeof *t->start * (b->n_seq + 1));
    if (t->pass.card)
        t->pass.k->upload(t->pass.pool, t->pos_on, t->pos, sizeof *t->pos * (size_t)b->n);
    t->rows = (es_rows){.n = b->n, .pos = t->pos, .pos_on = t->pos_on, .start = t->start, .n_seq = b->n_seq};
    return ES_OK;
}

static void keep_rows(void *user, int layer, int pos0, const float *h, int T, int d)
{
    (void)layer, (void)pos0;
    memcpy(user, h, sizeof *h * (size_t)T * (size_t)d);
}

static int point_rows(es_trainer *t, const es_batch *b, int layer, es_point point, float *out, const volatile bool *cancel, es_error *err)
{
    const bool residual = point == ES_POINT_RESIDUAL;
    const es_watch watch = {.layer = layer, .fn = keep_rows, .user = out, .point = point};
    t->forward_done = false; /* the rows are this batch's now */
    t->seen = es_moment(-2, ES_POINT_RESIDUAL);
    if (!t->pass.pool)
        return lost(err);
    if (layer < (residual ? -1 : 0) || layer >= t->model->info.n_layer || (unsigned)point >= ES_N_POINTS)
        return es_fail(err, ES_ERR_USAGE, "activations of layer %d: the model has %d layers", layer, t->model->info.n_layer);
    int code = es_pass_refresh(&t->pass, t->model, err);
    if (!code)
        code = set_rows(t, b, err);
    if (!code)
        code = es_pass_set_patch(&t->pass, NULL, 0, 0, err);
    float *x = t->pass.card || !residual ? t->h : out;
    if (!code)
        code = es_embed(&t->pass, b->ids, b->n, x, err);
    es_acts lean = t->lean;
    lean.x = lean.mid = x;
    for (int l = 0; !code && l <= layer; l++) {
        code = cancelled(cancel, err);
        if (!code)
            es_block_forward(&t->pass, l, &t->rows, &lean, x, (es_watching){&watch, !residual && l == layer});
    }
    if (!code && residual && t->pass.card)
        t->pass.k->download(t->pass.pool, out, x, sizeof *out * (size_t)b->n * (size_t)t->model->info.d_model);
    return code ? code : t->pass.k->sync(t->pass.pool, err);
}

int es_trainer_point(es_trainer *t, const es_batch *b, int layer, es_point point, float *out, const volatile bool *cancel, es_error *err)
{
    int code = point_rows(t, b, layer, point, out, cancel, err);
    if (code != ES_ERR_DEVICE || !t->pass.card)
        return code;
    code = fall_back(t, err);
    return code ? code : point_rows(t, b, layer, point, out, cancel, err);
}

int es_trainer_residual(es_trainer *t, const es_batch *b, int layer, float *out, const volatile bool *cancel, es_error *err)
{
    return es_trainer_point(t, b, layer, ES_POINT_RESIDUAL, out, cancel, err);
}

/* ---- the head ---------------------------------------------------------------------------------------------------------- */

/* Gathers the last residual of wanted tokens [first, first+n), norms it and makes their logits, unless they are there. */
static void head_logits(es_trainer *t, int first, int n, bool want_logits)
{
    t->pass.k->gather_rows(t->pass.pool, t->h, t->wanted_on + first, n, t->model->info.d_model, t->head_x);
    if (!want_logits || (t->head_n == n && t->head_first == first))
        return;
    es_logits(&t->pass, t->head_x, n, t->head_norm, t->logits, true);
    t->head_first = first;
    t->head_n = n;
}

static void chunk_targets(es_trainer *t, const es_batch *b, int first, int n)
{
    for (int i = 0; i < n; i++)
        t->target[i] = b->target[t->wanted[first + i]];
    if (t->pass.card)
        t->pass.k->upload(t->pass.pool, t->target_on, t->target, sizeof *t->target * (size_t)n);
}

static int head_forward(es_trainer *t, const es_batch *b, float *logprob, const volatile bool *cancel, es_error *err)
{
    for (int first = 0; first < t->n_wanted; first += t->head_rows) {
        int n = t->n_wanted - first < t->head_rows ? t->n_wanted - first : t->head_rows, code = cancelled(cancel, err);
        if (code)
            return code;
        head_logits(t, first, n, true);
        chunk_targets(t, b, first, n);
        t->pass.k->log_softmax_pick(t->pass.pool, t->logits, t->target_on, n, t->model->info.n_vocab, t->pick_on + first, t->logsum + first);
    }
    if (t->pass.card && logprob)
        t->pass.k->download(t->pass.pool, t->pick, t->pick_on, sizeof *t->pick * (size_t)t->n_wanted);
    if (logprob) {
        memset(logprob, 0, sizeof *logprob * b->n);
        for (int i = 0; i < t->n_wanted; i++)
            logprob[t->wanted[i]] = t->pick[i];
    }
    return ES_OK;
}

/* What the caller's loss adds for wanted token first + i, whose row holds p - onehot: the row becomes the gradient of its logits. */
static void callers_gradient(es_trainer *t, int first, int i, float *row, void (*dlogits)(void *user, int token, const float *p, float *dl), void *user)
{
    size_t n_vocab = t->model->info.n_vocab;
    float *dl = t->pass.card ? t->host_row : row;
    if (t->pass.card)
        t->pass.k->download(t->pass.pool, dl, row, sizeof(float) * n_vocab);
    memcpy(t->p_row, dl, sizeof(float) * n_vocab);
    t->p_row[t->target[i]] += 1;
    for (size_t j = 0; j < n_vocab; j++)
        dl[j] *= -t->head_slope[i];
    dlogits(user, t->wanted[first + i], t->p_row, dl);
    if (t->pass.card)
        t->pass.k->upload(t->pass.pool, row, dl, sizeof(float) * n_vocab);
}

/* dh = the gradient of the last residual, through the head and the final norm. */
static int head_backward(es_trainer *t, const es_batch *b, const float *dlogprob,
                         void (*dlogits)(void *user, int token, const float *p, float *dl), void *user, const es_grad *g,
                         const volatile bool *cancel, es_error *err)
{
    float *dhead = es_weight_grad(&t->pass, g, t->pass.model->head.data), *dnorm = es_weight_grad(&t->pass, g, t->pass.model->final_norm);
    const es_model_info *m = &t->model->info;
    const es_kernels *k = t->pass.k;
    es_pool *pool = t->pass.pool;
    size_t d = m->d_model, n_vocab = m->n_vocab;
    k->clear(pool, t->dh, sizeof(float) * b->n * d);
    if (!t->n_wanted)
        return ES_OK;
    /* From the last chunk, whose logits the forward left, to the first. */
    for (int first = (t->n_wanted - 1) / t->head_rows * t->head_rows; first >= 0; first -= t->head_rows) {
        int n = t->n_wanted - first < t->head_rows ? t->n_wanted - first : t->head_rows, code = cancelled(cancel, err);
        bool any = dlogits != NULL;
        if (code)
            return code;
        for (int i = 0; i < n; i++) {
            t->head_dlogprob[i] = dlogprob ? dlogprob[t->wanted[first + i]] : 0;
            any |= t->head_dlogprob[i] != 0;
        }
        if (!any)
            continue;
        head_logits(t, first, n, true);
        chunk_targets(t, b, first, n);
        t->head_n = 0; /* the logits become their gradient */
        for (int i = 0; dlogits && i < n; i++) /* with -1 the kernel gives p - onehot, which serves both gradients */
            t->head_slope[i] = t->head_dlogprob[i], t->head_dlogprob[i] = -1;
        if (t->pass.card)
            k->upload(pool, t->head_dlogprob_on, t->head_dlogprob, sizeof(float) * (size_t)n);
        if (!dlogits && !t->cap_row)
            k->log_softmax_pick_back(pool, t->logits, t->target_on, t->logsum + first, t->head_dlogprob_on, n, m->n_vocab);
        for (int i = 0; (dlogits || t->cap_row) && i < n; i++) {
            float *row = t->logits + i * n_vocab;
            if (t->cap_row)
                k->copy(pool, t->cap_row, row, sizeof(float) * n_vocab);
            k->log_softmax_pick_back(pool, row, t->target_on + i, t->logsum + first + i, t->head_dlogprob_on + i, 1, m->n_vocab);
            if (dlogits)
                callers_gradient(t, first, i, row, dlogits, user);
            if (t->cap_row)
                k->soft_cap_back(pool, t->cap_row, row, n_vocab, t->model->facts.final_cap);
        }
        if (dhead) /* head_norm: the rows that entered the head, until the next line */
            k->gemm(pool, true, false, m->n_vocab, m->d_model, n, 1, t->logits, m->n_vocab, t->head_norm, m->d_model, 1, dhead, m->d_model);
        k->matmul_back(pool, &t->pass.model->head, t->logits, n, t->head_norm, false);
        if (dnorm)
            k->rmsnorm_weight_back(pool, t->head_x, t->head_norm, dnorm, n, m->d_model, m->norm_eps);
        k->clear(pool, t->head_dx, sizeof(float) * n * d);
        k->rmsnorm_back(pool, t->head_x, t->pass.model->final_norm, t->head_norm, t->head_dx, n, m->d_model, m->norm_eps);
        k->scatter_rows(pool, t->head_dx, t->wanted_on + first, n, m->d_model, t->dh);
    }
    return ES_OK;
}

int es_trainer_logits(es_trainer *t, int token, float *out, es_error *err)
{
    size_t n_vocab = t->model->info.n_vocab;
    for (int i = 0; t->forward_done && i < t->head_n; i++)
        if (t->wanted[t->head_first + i] == token) {
            t->pass.k->download(t->pass.pool, out, t->logits + i * n_vocab, sizeof *out * n_vocab);
            return t->pass.k->sync(t->pass.pool, err);
        }
    return es_trainer_logits_rows(t, token, 1, out, err);
}

int es_trainer_logits_rows(es_trainer *t, int token, int n, float *out, es_error *err)
{
    const es_model_info *m = &t->model->info;
    int have = t->forward_done ? t->rows.n : 0;
    if (token < 0 || n < 1 || n > have || token > have - n)
        return es_fail(err, ES_ERR_USAGE, "logits of %d tokens from %d: the last forward had %d", n, token, have);
    if (!t->pass.card) {
        es_logits(&t->pass, t->h + (size_t)token * m->d_model, n, t->pass.norm, out, true);
        return ES_OK;
    }
    t->head_n = 0; /* their place is needed */
    for (int i = 0, rows; i < n; i += rows) {
        rows = n - i < t->head_rows ? n - i : t->head_rows;
        es_logits(&t->pass, t->h + (size_t)(token + i) * m->d_model, rows, t->pass.norm, t->logits, true);
        t->pass.k->download(t->pass.pool, out + (size_t)i * m->n_vocab, t->logits, sizeof *out * (size_t)rows * (size_t)m->n_vocab);
    }
    return t->pass.k->sync(t->pass.pool, err);
}

int es_trainer_site_input(es_trainer *t, int layer, es_site site, float *out, es_error *err)
{
    const es_model_info *m = &t->model->info;
    if (!t->forward_done || !t->o.backward || layer < t->o.from_layer || layer >= m->n_layer || (site != ES_SITE_O && site != ES_SITE_DOWN))
        return es_fail(err, ES_ERR_USAGE, "input of %s in layer %d: it is not kept, or no forward was run", es_site_name(site), layer);
    const es_acts *a = &t->acts[layer];
    if (site == ES_SITE_O) {
        t->pass.k->download(t->pass.pool, out, a->att, sizeof *out * t->rows.n * m->n_head * m->head_dim);
        return t->pass.k->sync(t->pass.pool, err);
    }
    es_glu(&t->pass, a->gate, a->up, t->pass.card ? t->pass.act : out, (size_t)t->rows.n * m->d_ff);
    if (t->pass.card)
        t->pass.k->download(t->pass.pool, out, t->pass.act, sizeof *out * t->rows.n * m->d_ff);
    return t->pass.k->sync(t->pass.pool, err);
}

/* ---- forward and backward ------------------------------------------------------------------------------------------------- */

static int forward(es_trainer *t, const es_batch *b, const float *resid, const es_patch *patch, const es_watch *watch,
                       int n_watch, float *logprob, const volatile bool *cancel, es_error *err)
{
    const es_model_info *m = &t->model->info;
    int from = t->o.from_layer;
    t->forward_done = false;
    t->head_n = t->n_wanted = 0;
    if (!t->pass.pool)
        return lost(err);
    if (from > 0 && !resid)
        return es_fail(err, ES_ERR_USAGE, "forward from layer %d without the residual that enters it", from);
    int code = es_pass_refresh(&t->pass, t->model, err);
    if (!code)
        code = set_rows(t, b, err);
    if (!code)
        code = es_pass_set_patch(&t->pass, patch, from, max_hooks(&t->o), err);
    t->pass.on.current = false;
    if (!code)
        code = es_pass_upload_patch(&t->pass, err);
    if (code)
        return code;
    for (int i = 0; b->wanted && i < b->n; i++)
        if (b->wanted[i]) {
            if (!b->target || b->target[i] < 0 || b->target[i] >= m->n_vocab)
                return es_fail(err, ES_ERR_USAGE, "batch: token %d wants a target outside of the vocabulary", i);
            t->wanted[t->n_wanted++] = i;
        }
    if (t->pass.card)
        t->pass.k->upload(t->pass.pool, t->wanted_on, t->wanted, sizeof *t->wanted * (size_t)t->n_wanted);

    float *h = t->o.backward ? t->acts[from].x : t->h;
    if (resid)
        t->pass.k->upload(t->pass.pool, h, resid, sizeof *h * b->n * m->d_model);
    else if ((code = es_embed(&t->pass, b->ids, b->n, h, err)))
        return code;
    const es_watching w = {watch, n_watch};
    es_residual_forward(&t->pass, from - 1, &t->rows, h, w);
    for (int l = from; l < m->n_layer; l++) {
        if ((code = cancelled(cancel, err)))
            return code;
        es_acts acts = t->lean;
        acts.x = acts.mid = h;
        if (t->o.backward) { /* each block's residual stays where it is; the next goes to the next place */
            acts = t->acts[l];
            h = l + 1 < m->n_layer ? t->acts[l + 1].x : t->h;
        }
        es_block_forward(&t->pass, l, &t->rows, &acts, h, w);
        es_residual_forward(&t->pass, l, &t->rows, h, w);
    }
    code = head_forward(t, b, logprob, cancel, err);
    code = code ? code : t->pass.k->sync(t->pass.pool, err);
    t->forward_done = !code;
    return code;
}

int es_trainer_forward(es_trainer *t, const es_batch *b, const float *resid, const es_patch *patch, const es_watch *watch,
                       int n_watch, float *logprob, const volatile bool *cancel, es_error *err)
{
    t->seen = es_moment(t->o.from_layer - 2, ES_POINT_RESIDUAL);
    int code = forward(t, b, resid, patch, watch, n_watch, logprob, cancel, err);
    if (code != ES_ERR_DEVICE || !t->pass.card)
        return code;
    code = fall_back(t, err);
    return code ? code : forward(t, b, resid, patch, watch, n_watch, logprob, cancel, err);
}

/* ---- gradients on a card: added up there, then handed over ---------------------------------------------------------------- */

typedef struct mirror { /* of es_grad, whose arrays lie on the card */
    es_grad g;
    es_arena host; /* its lists of pointers, and `row` */
    size_t bytes;  /* of the card's memory */
    float *row;    /* room to receive the largest array */
    float **hook;  /* [n_hook] of hooks with numbers: [slots][K + K K]; NULL: none is wanted */
} mirror;

/* Whether this array is kept on the card: its place there into *on. */
static bool kept(const es_trainer *t, const float *host, float **on)
{
    float *there = es_kept_grad(&t->pass, host);
    if (there && on)
        *on = there;
    return there;
}

/* Calls for each array of g that is not kept there anyway, in one order: what with the array, its twin's place among the mirror's, and its numbers. */
static void each_array(const es_trainer *t, const es_patch *patch, const es_grad *g, const es_grad *on, void (*what)(void *user, float *host, float **on, size_t n), void *user)
{
    size_t slots = g->seq_slot ? (size_t)g->n_slot : 1, d = (size_t)t->model->info.d_model;
    for (int i = 0; patch && i < patch->n_lowrank; i++) {
        const es_lowrank *e = &patch->lowrank[i];
        if (e->scale == 0)
            continue;
        const es_weight *w = &t->model->layer[e->layer].site[e->site];
        if (g->a && g->a[i] && !kept(t, g->a[i], on ? &on->a[i] : NULL))
            what(user, g->a[i], on ? &on->a[i] : NULL, slots * (size_t)e->rank * (size_t)w->n_in);
        if (g->b && g->b[i] && !kept(t, g->b[i], on ? &on->b[i] : NULL))
            what(user, g->b[i], on ? &on->b[i] : NULL, slots * (size_t)e->rank * (size_t)w->n_out);
    }
    for (int i = 0; patch && g->addend && i < patch->n_addend; i++)
        if (patch->addend[i].scale != 0 && g->addend[i])
            what(user, g->addend[i], on ? &on->addend[i] : NULL, slots * d);
    if (g->weights && !kept(t, g->weights, on ? (float **)(uintptr_t)&on->weights : NULL))
        what(user, g->weights, on ? (float **)(uintptr_t)&on->weights : NULL, t->model->n_own);
}

static void count_array(void *user, float *host, float **on, size_t n)
{
    (void)host, (void)on;
    size_t *sum = user;
    sum[0] += (n * sizeof(float) + 255) & ~(size_t)255;
    sum[1] = n > sum[1] ? n : sum[1];
}

static void place_array(void *user, float *host, float **on, size_t n)
{
    (void)host;
    *on = es_arena_take(user, (n + 63) & ~(size_t)63, sizeof(float));
}

typedef struct handing { es_trainer *t; float *row; } handing;

static void hand_over(void *user, float *host, float **on, size_t n)
{
    const handing *h = user;
    h->t->pass.k->download(h->t->pass.pool, h->row, *on, sizeof *host * n);
    for (size_t i = 0; i < n; i++)
        host[i] += h->row[i];
}

static void hand_over_hook(es_trainer *t, const es_hook_numbers *e, const float *on, float *row)
{
    const size_t slots = (size_t)es_hook_slots(e, t->rows.n_seq), K = (size_t)e->K, n = es_hook_gradient_size(e);
    t->pass.k->download(t->pass.pool, row, on, sizeof *row * slots * n);
    for (size_t s = 0; s < slots; s++, row += n) {
        float *coef = e->sink->grad + s * e->sink->n + e->coef_at, *map = e->sink->grad + s * e->sink->n + e->map_at;
        for (size_t i = 0; i < K; i++)
            coef[i] += row[i];
        for (size_t i = 0; e->map && i < K * K; i++)
            map[i] += row[K + i];
    }
}

static void mirror_close(mirror *m)
{
    es_arena_close(&m->host);
}

static int mirror_open(es_trainer *t, const es_patch *patch, const es_grad *g, mirror *m, es_error *err)
{
    size_t sum[2] = {0, 0}, n_low = patch ? (size_t)patch->n_lowrank : 0, n_add = patch ? (size_t)patch->n_addend : 0;
    size_t n_hook = patch ? (size_t)patch->n_hook : 0;
    *m = (mirror){.g = *g};
    each_array(t, patch, g, NULL, count_array, sum);
    for (size_t i = 0; i < n_hook; i++) {
        const es_hook_numbers *e = patch->hook[i].numbers;
        const size_t slots = (size_t)es_hook_slots(e, t->rows.n_seq);
        if (slots)
            count_array(sum, NULL, NULL, slots * es_hook_gradient_size(e));
    }
    size_t lists = (2 * n_low + n_add + n_hook + 1) * sizeof(float *) + 5 * 64;
    int code = es_arena_open(&m->host, lists + sum[1] * sizeof(float) + 64, err);
    if (code)
        return code;
    if (sum[0] > t->grad.size) {
        es_pass_release(&t->pass, &t->grad);
        if ((code = es_pass_take(&t->pass, &t->grad, sum[0], err))) {
            if (err)
                es_fail_prefix(err, "gradients");
            mirror_close(m);
            return code;
        }
    } else if (sum[0])
        t->pass.k->clear(t->pass.pool, t->grad.base, sum[0]);
    m->g.a = g->a ? es_arena_take(&m->host, n_low, sizeof(float *)) : NULL;
    m->g.b = g->b ? es_arena_take(&m->host, n_low, sizeof(float *)) : NULL;
    m->g.addend = g->addend ? es_arena_take(&m->host, n_add, sizeof(float *)) : NULL;
    m->row = es_arena_take(&m->host, sum[1], sizeof(float));
    t->grad.used = 0;
    each_array(t, patch, g, &m->g, place_array, &t->grad);
    m->hook = es_arena_take(&m->host, n_hook + 1, sizeof(float *));
    for (size_t i = 0; i < n_hook; i++) {
        const es_hook_numbers *e = patch->hook[i].numbers;
        const size_t slots = (size_t)es_hook_slots(e, t->rows.n_seq);
        m->hook[i] = NULL;
        if (slots)
            place_array(&t->grad, NULL, &m->hook[i], slots * es_hook_gradient_size(e));
    }
    return ES_OK;
}

/* The rows of the embedding that were read, run by run: where a residual came in their place, ids need not be of the vocabulary. */
static void embedding_back(es_trainer *t, const es_batch *b, float *embd)
{
    const int d = t->model->info.d_model, n_vocab = t->model->info.n_vocab;
    if (t->pass.card)
        t->pass.k->upload(t->pass.pool, t->pass.ids, b->ids, sizeof *b->ids * (size_t)b->n);
    const int32_t *ids = t->pass.card ? t->pass.ids : b->ids;
    for (int i = 0, end; i < b->n; i = end) {
        const bool known = b->ids[i] >= 0 && b->ids[i] < n_vocab;
        for (end = i + 1; end < b->n && known == (b->ids[end] >= 0 && b->ids[end] < n_vocab);)
            end++;
        if (known)
            t->pass.k->embed_back(t->pass.pool, t->dh + (size_t)i * d, ids + i, end - i, d, t->model->facts.embed_scale, embd, n_vocab);
    }
}

/* From the logits to to_layer; g in the table's memory. */
static int backward(es_trainer *t, const es_batch *b, const float *dlogprob, void (*dlogits)(void *user, int token, const float *p, float *dl), void *user,
                    const es_grad *g, int to_layer, const volatile bool *cancel, es_error *err)
{
    const es_model_info *m = &t->model->info;
    int code = head_backward(t, b, dlogprob, dlogits, user, g, cancel, err);
    for (int l = m->n_layer - 1; !code && l >= to_layer; l--) {
        if (g && g->resid && l >= 0 && g->resid[l])
            t->pass.k->download(t->pass.pool, g->resid[l], t->dh, sizeof(float) * b->n * m->d_model);
        es_residual_backward(&t->pass, l, &t->rows, t->dh, g);
        if (l < t->o.from_layer)
            break;
        if (!(code = cancelled(cancel, err)))
            es_block_backward(&t->pass, l, &t->rows, &t->acts[l], &t->back, t->dh, g, l > to_layer);
    }
    float *embd = !code && to_layer < 0 ? es_weight_grad(&t->pass, g, t->pass.model->token_embd.data) : NULL;
    if (embd)
        embedding_back(t, b, embd);
    return code ? code : t->pass.k->sync(t->pass.pool, err);
}

int es_trainer_backward(es_trainer *t, const es_batch *b, const es_patch *patch, const float *dlogprob,
                        void (*dlogits)(void *user, int token, const float *p, float *dl), void *user, const es_grad *g,
                        int to_layer, const volatile bool *cancel, es_error *err)
{
    const es_model_info *m = &t->model->info;
    if (!t->o.backward || !t->forward_done || b->n != t->rows.n || b->n_seq != t->rows.n_seq)
        return es_fail(err, ES_ERR_USAGE, "backward needs a forward of the same batch, in a trainer opened for it");
    if (to_layer < t->o.from_layer - 1 || to_layer >= m->n_layer)
        return es_fail(err, ES_ERR_USAGE, "backward to layer %d; forward ran layers %d to %d", to_layer, t->o.from_layer, m->n_layer - 1);
    for (int i = 0; patch && i < patch->n_hook; i++)
        if (!patch->hook[i].backward && patch->hook[i].layer >= to_layer)
            return es_fail(err, ES_ERR_USAGE, "backward: the hook after layer %d has none", patch->hook[i].layer);
    if (g && g->weights && !t->model->own.base)
        return es_fail(err, ES_ERR_USAGE, "backward: weights learn in a thawed model only");
    for (int s = 0; g && g->seq_slot && s < b->n_seq; s++)
        if (g->seq_slot[s] < 0 || g->seq_slot[s] >= g->n_slot)
            return es_fail(err, ES_ERR_USAGE, "backward: sequence %d goes to slot %d of %d", s, g->seq_slot[s], g->n_slot);

    int code = es_pass_set_patch(&t->pass, patch, t->o.from_layer, max_hooks(&t->o), err);
    if (!code)
        code = es_pass_upload_patch(&t->pass, err);
    if (code || !t->pass.card)
        return code ? code : backward(t, b, dlogprob, dlogits, user, g, to_layer, cancel, err);
    static const es_grad none;
    mirror on;
    g = g ? g : &none;
    if ((code = mirror_open(t, patch, g, &on, err)))
        return code;
    t->pass.hook_grad = on.hook;
    code = backward(t, b, dlogprob, dlogits, user, &on.g, to_layer, cancel, err);
    t->pass.hook_grad = NULL;
    if (!code) {
        handing h = {t, on.row};
        each_array(t, patch, g, &on.g, hand_over, &h);
        for (int i = 0; patch && i < patch->n_hook; i++)
            if (on.hook[i])
                hand_over_hook(t, patch->hook[i].numbers, on.hook[i], on.row);
        code = t->pass.k->sync(t->pass.pool, err);
    }
    mirror_close(&on);
    return code;
}

/* ---- numbers that stay on the card (kept.c) ------------------------------------------------------------------------------- */

int es_trainer_keep(es_trainer *t, const es_kept *k, es_error *err)
{
    return es_kept_open(&t->pass, t->model, k, err);
}

bool es_trainer_keeps(const es_trainer *t)
{
    return t->pass.kept.host.n && !es_cuda_lost(t->pass.card);
}

static int not_kept(es_error *err)
{
    return es_fail(err, ES_ERR_DEVICE, "the card was lost with what it kept");
}

int es_trainer_kept_up(es_trainer *t, es_error *err)
{
    return es_trainer_keeps(t) ? es_kept_up(&t->pass, t->model, err) : not_kept(err);
}

int es_trainer_kept_down(es_trainer *t, es_error *err)
{
    return es_trainer_keeps(t) ? es_kept_down(&t->pass, err) : not_kept(err);
}

void es_trainer_kept_clear(es_trainer *t)
{
    if (es_trainer_keeps(t))
        t->pass.k->clear(t->pass.pool, t->pass.kept.grad, t->pass.kept.host.n * sizeof(float));
}

int es_trainer_kept_gradient(es_trainer *t, float *out, double *square, es_error *err)
{
    return es_trainer_keeps(t) ? es_kept_gradient(&t->pass, out, square, err) : not_kept(err);
}

int es_trainer_kept_adam(es_trainer *t, const es_adam *a, es_error *err)
{
    return es_trainer_keeps(t) ? es_kept_adam(&t->pass, a, err) : not_kept(err);
}
