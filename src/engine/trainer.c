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
    es_arena arena;
    es_pass pass;
    es_back back; /* also the scratch of passes that keep nothing */
    es_acts *acts; /* [n_layer], those from from_layer on, when o.backward */
    es_acts lean;  /* for passes that keep nothing: x, mid are set to the buffer in use */
    float *h;      /* [max_tokens, d_model]: the residual; after a forward, the last one */
    float *dh;
    int *pos, *start;
    uint8_t *site_mask;

    int head_rows, head_first, head_n; /* the wanted tokens whose logits lie in `logits`; head_n 0: none */
    int *wanted, n_wanted;             /* tokens whose log-probability is wanted */
    int32_t *target;                   /* [head_rows] */
    float *logits, *p_row;             /* [head_rows, n_vocab], [n_vocab] */
    float *cap_row;                    /* [n_vocab], where logits are capped: a row's, which its gradient needs */
    float *head_x, *head_norm, *head_dx, *head_dlogprob; /* rows of a chunk, gathered */
    float *pick, *logsum;              /* [max_tokens], by place in wanted */

    es_rows rows; /* of the last forward */
    bool forward_done;
};

enum { FF_ROWS = 512, HEAD_ROWS_MIN = 16, LOGIT_BYTES = 192 << 20 };

static int max_hooks(const es_trainer_options *o)
{
    return o->max_hooks > 0 ? o->max_hooks : 2;
}

static void layout(es_trainer *t, es_arena *a)
{
    const es_model_info *m = &t->model->info;
    size_t n = t->o.max_tokens, d = m->d_model, ff = m->d_ff, q = (size_t)m->n_head * m->head_dim, kv = (size_t)m->n_kv * m->head_dim;
    size_t ff_n = t->o.backward || n < FF_ROWS ? n : FF_ROWS;
    const es_family *family = t->model->facts.family;
    bool back = t->o.backward;

    t->pos = es_arena_take(a, n, sizeof *t->pos);
    t->start = es_arena_take(a, n + 1, sizeof *t->start);
    t->site_mask = es_arena_take(a, m->n_layer, 1);
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
        t->acts = es_arena_take(a, m->n_layer, sizeof *t->acts);
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
    t->wanted = es_arena_take(a, n, sizeof *t->wanted);
    t->target = es_arena_take(a, rows, sizeof *t->target);
    t->pick = es_arena_take(a, n, sizeof(float));
    t->logsum = es_arena_take(a, n, sizeof(float));
    t->logits = es_arena_take(a, rows * m->n_vocab, sizeof(float));
    t->head_x = es_arena_take(a, rows * d, sizeof(float));
    t->head_norm = es_arena_take(a, rows * d, sizeof(float));
    if (back) {
        t->p_row = es_arena_take(a, m->n_vocab, sizeof(float));
        if (t->model->facts.final_cap > 0)
            t->cap_row = es_arena_take(a, m->n_vocab, sizeof(float));
        t->head_dx = es_arena_take(a, rows * d, sizeof(float));
        t->head_dlogprob = es_arena_take(a, rows, sizeof(float));
    }
}

size_t es_trainer_bytes(const es_model *m, const es_trainer_options *o)
{
    es_trainer t = {.model = m, .o = *o};
    es_arena a = {0};
    layout(&t, &a);
    return a.used;
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
    int code = es_arena_open(&t->arena, es_trainer_bytes(m, o), err);
    if (!code)
        code = es_pool_open(&t->pass.pool, o->threads, err);
    if (code) {
        es_trainer_free(t);
        return code;
    }
    layout(t, &t->arena);
    es_rope_fill(m, o->max_tokens, t->pass.rope);
    t->pass.model = m;
    t->pass.k = o->kernels ? o->kernels : es_kernels_cpu();
    t->pass.exact = true;
    t->pass.site_mask = t->site_mask;
    *out = t;
    return ES_OK;
}

void es_trainer_free(es_trainer *t)
{
    if (!t)
        return;
    es_pool_free(t->pass.pool);
    es_arena_close(&t->arena);
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
    t->rows = (es_rows){.n = b->n, .pos = t->pos, .start = t->start, .n_seq = b->n_seq};
    return ES_OK;
}

int es_trainer_residual(es_trainer *t, const es_batch *b, int layer, float *out, const volatile bool *cancel, es_error *err)
{
    t->forward_done = false; /* the rows are this batch's now */
    if (layer < -1 || layer >= t->model->info.n_layer)
        return es_fail(err, ES_ERR_USAGE, "residual after layer %d: the model has %d layers", layer, t->model->info.n_layer);
    int code = set_rows(t, b, err);
    if (!code)
        code = es_pass_set_patch(&t->pass, NULL, 0, 0, err);
    if (!code)
        code = es_embed(t->model, b->ids, b->n, out, err);
    es_acts lean = t->lean;
    lean.x = lean.mid = out;
    for (int l = 0; !code && l <= layer; l++) {
        code = cancelled(cancel, err);
        if (!code)
            es_block_forward(&t->pass, l, &t->rows, &lean, out);
    }
    return code;
}

/* ---- the head ---------------------------------------------------------------------------------------------------------- */

/* Gathers the last residual of wanted tokens [first, first+n), norms it and makes their logits, unless they are there. */
static void head_logits(es_trainer *t, int first, int n, bool want_logits)
{
    size_t d = t->model->info.d_model;
    for (int i = 0; i < n; i++)
        memcpy(t->head_x + i * d, t->h + t->wanted[first + i] * d, sizeof(float) * d);
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
}

static int head_forward(es_trainer *t, const es_batch *b, float *logprob, const volatile bool *cancel, es_error *err)
{
    for (int first = 0; first < t->n_wanted; first += t->head_rows) {
        int n = t->n_wanted - first < t->head_rows ? t->n_wanted - first : t->head_rows, code = cancelled(cancel, err);
        if (code)
            return code;
        head_logits(t, first, n, true);
        chunk_targets(t, b, first, n);
        t->pass.k->log_softmax_pick(t->pass.pool, t->logits, t->target, n, t->model->info.n_vocab, t->pick + first, t->logsum + first);
    }
    if (logprob) {
        memset(logprob, 0, sizeof *logprob * b->n);
        for (int i = 0; i < t->n_wanted; i++)
            logprob[t->wanted[i]] = t->pick[i];
    }
    return ES_OK;
}

/* dh = the gradient of the last residual, through the head and the final norm. */
static int head_backward(es_trainer *t, const es_batch *b, const float *dlogprob,
                         void (*dlogits)(void *user, int token, const float *p, float *dl), void *user, const es_grad *g,
                         const volatile bool *cancel, es_error *err)
{
    float *dhead = es_weight_grad(&t->pass, g, t->model->head.data), *dnorm = es_weight_grad(&t->pass, g, t->model->final_norm);
    const es_model_info *m = &t->model->info;
    const es_kernels *k = t->pass.k;
    es_pool *pool = t->pass.pool;
    size_t d = m->d_model, n_vocab = m->n_vocab;
    memset(t->dh, 0, sizeof(float) * b->n * d);
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
        if (!dlogits && !t->cap_row)
            k->log_softmax_pick_back(pool, t->logits, t->target, t->logsum + first, t->head_dlogprob, n, m->n_vocab);
        for (int i = 0; (dlogits || t->cap_row) && i < n; i++) {
            /* With dlogprob = -1 the same kernel gives p - onehot, so one pass over the row serves both gradients. */
            float *row = t->logits + i * n_vocab, minus = -1, cap = t->model->facts.final_cap;
            if (t->cap_row)
                memcpy(t->cap_row, row, sizeof(float) * n_vocab);
            k->log_softmax_pick_back(pool, row, t->target + i, t->logsum + first + i, &minus, 1, m->n_vocab);
            memcpy(t->p_row, row, sizeof(float) * n_vocab);
            t->p_row[t->target[i]] += 1;
            for (size_t j = 0; j < n_vocab; j++)
                row[j] *= -t->head_dlogprob[i];
            if (dlogits)
                dlogits(user, t->wanted[first + i], t->p_row, row);
            for (size_t j = 0; t->cap_row && j < n_vocab; j++) /* d cap tanh(x / cap) / dx */
                row[j] *= 1 - t->cap_row[j] / cap * (t->cap_row[j] / cap);
        }
        if (dhead) /* head_norm: the rows that entered the head, until the next line */
            k->gemm(pool, true, false, m->n_vocab, m->d_model, n, 1, t->logits, m->n_vocab, t->head_norm, m->d_model, 1, dhead, m->d_model);
        k->matmul_back(pool, &t->model->head, t->logits, n, t->head_norm, false);
        if (dnorm)
            es_norm_weight_back(t->head_x, t->head_norm, dnorm, n, m->d_model, m->norm_eps);
        memset(t->head_dx, 0, sizeof(float) * n * d);
        k->rmsnorm_back(pool, t->head_x, t->model->final_norm, t->head_norm, t->head_dx, n, m->d_model, m->norm_eps);
        for (int i = 0; i < n; i++)
            memcpy(t->dh + t->wanted[first + i] * d, t->head_dx + i * d, sizeof(float) * d);
    }
    return ES_OK;
}

int es_trainer_logits(es_trainer *t, int token, float *out, es_error *err)
{
    size_t n_vocab = t->model->info.n_vocab;
    for (int i = 0; t->forward_done && i < t->head_n; i++)
        if (t->wanted[t->head_first + i] == token) {
            memcpy(out, t->logits + i * n_vocab, sizeof *out * n_vocab);
            return ES_OK;
        }
    return es_trainer_logits_rows(t, token, 1, out, err);
}

int es_trainer_logits_rows(es_trainer *t, int token, int n, float *out, es_error *err)
{
    const es_model_info *m = &t->model->info;
    int have = t->forward_done ? t->rows.n : 0;
    if (token < 0 || n < 1 || n > have || token > have - n)
        return es_fail(err, ES_ERR_USAGE, "logits of %d tokens from %d: the last forward had %d", n, token, have);
    es_logits(&t->pass, t->h + (size_t)token * m->d_model, n, t->pass.norm, out, true);
    return ES_OK;
}

int es_trainer_site_input(es_trainer *t, int layer, es_site site, float *out, es_error *err)
{
    const es_model_info *m = &t->model->info;
    if (!t->forward_done || !t->o.backward || layer < t->o.from_layer || layer >= m->n_layer || (site != ES_SITE_O && site != ES_SITE_DOWN))
        return es_fail(err, ES_ERR_USAGE, "input of %s in layer %d: it is not kept, or no forward was run", es_site_name(site), layer);
    const es_acts *a = &t->acts[layer];
    if (site == ES_SITE_O)
        memcpy(out, a->att, sizeof *out * t->rows.n * m->n_head * m->head_dim);
    else
        es_glu(&t->pass, a->gate, a->up, out, (size_t)t->rows.n * m->d_ff);
    return ES_OK;
}

/* ---- forward and backward ------------------------------------------------------------------------------------------------- */

int es_trainer_forward(es_trainer *t, const es_batch *b, const float *resid, const es_patch *patch, const es_watch *watch,
                       int n_watch, float *logprob, const volatile bool *cancel, es_error *err)
{
    const es_model_info *m = &t->model->info;
    int from = t->o.from_layer;
    t->forward_done = false;
    t->head_n = t->n_wanted = 0;
    if (from > 0 && !resid)
        return es_fail(err, ES_ERR_USAGE, "forward from layer %d without the residual that enters it", from);
    int code = set_rows(t, b, err);
    if (!code)
        code = es_pass_set_patch(&t->pass, patch, from, max_hooks(&t->o), err);
    if (code)
        return code;
    for (int i = 0; b->wanted && i < b->n; i++)
        if (b->wanted[i]) {
            if (!b->target || b->target[i] < 0 || b->target[i] >= m->n_vocab)
                return es_fail(err, ES_ERR_USAGE, "batch: token %d wants a target outside of the vocabulary", i);
            t->wanted[t->n_wanted++] = i;
        }

    float *h = t->o.backward ? t->acts[from].x : t->h;
    if (resid)
        memcpy(h, resid, sizeof *h * b->n * m->d_model);
    else if ((code = es_embed(t->model, b->ids, b->n, h, err)))
        return code;
    es_residual_forward(&t->pass, from - 1, &t->rows, h, watch, n_watch);
    for (int l = from; l < m->n_layer; l++) {
        if ((code = cancelled(cancel, err)))
            return code;
        es_acts acts = t->lean;
        acts.x = acts.mid = h;
        if (t->o.backward) { /* each block's residual stays where it is; the next goes to the next place */
            acts = t->acts[l];
            h = l + 1 < m->n_layer ? t->acts[l + 1].x : t->h;
        }
        es_block_forward(&t->pass, l, &t->rows, &acts, h);
        es_residual_forward(&t->pass, l, &t->rows, h, watch, n_watch);
    }
    code = head_forward(t, b, logprob, cancel, err);
    t->forward_done = !code;
    return code;
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
        code = head_backward(t, b, dlogprob, dlogits, user, g, cancel, err);
    for (int l = m->n_layer - 1; !code && l >= to_layer; l--) {
        if (g && g->resid && l >= 0 && g->resid[l])
            memcpy(g->resid[l], t->dh, sizeof(float) * b->n * m->d_model);
        es_residual_backward(&t->pass, l, &t->rows, t->dh, g);
        if (l < t->o.from_layer)
            break;
        if (!(code = cancelled(cancel, err)))
            es_block_backward(&t->pass, l, &t->rows, &t->acts[l], &t->back, t->dh, g, l > to_layer);
    }
    float *embd = !code && to_layer < 0 ? es_weight_grad(&t->pass, g, t->model->token_embd.data) : NULL;
    size_t d = (size_t)m->d_model;
    for (int i = 0; embd && i < b->n; i++)
        for (size_t j = 0; j < d && b->ids[i] >= 0 && b->ids[i] < m->n_vocab; j++) /* a residual may have come in their place */
            embd[(size_t)b->ids[i] * d + j] += t->model->facts.embed_scale * t->dh[(size_t)i * d + j];
    return code;
}
