/* forward: a transformer block, line by line.
 *
 *   x ── norm ── q,k,v ── rotate q,k ── attention ── o ──(+)── mid ── norm ── gate,up ── f(gate)*up ── down ──(+)── out
 *   └────────────────────────────────────────────────────┘    └────────────────────────────────────────────────────┘
 *
 * That is llama's. Other families (family.h) have norms elsewhere: after o and down instead of before q and gate, or both; on q and k.
 * Each of the seven matrices may carry low-rank updates from the patch: y = W x + sum scale * B (A x). */
#include "forward.h"

#include <math.h>
#include <string.h>

int es_embed(const es_pass *p, const int32_t *ids, int n, float *out, es_error *err)
{
    const es_weight *w = &p->model->token_embd;
    for (int t = 0; t < n; t++)
        if (ids[t] < 0 || ids[t] >= w->n_out)
            return es_fail(err, ES_ERR_USAGE, "token %d is %d, but the vocabulary has %d", t, ids[t], w->n_out);
    if (p->card)
        p->k->upload(p->pool, p->ids, ids, sizeof *ids * n);
    p->k->embed(p->pool, w, p->card ? p->ids : ids, n, p->model->facts.embed_scale, out);
    return ES_OK;
}

/* ---- the patch ------------------------------------------------------------------------------------------------------ */

int es_pass_set_patch(es_pass *p, const es_patch *patch, int from_layer, int max_hooks, es_error *err)
{
    int n_layer = p->model->info.n_layer, hooks_back = 0;
    p->patch = NULL;
    memset(p->site_mask, 0, n_layer);
    if (!patch)
        return ES_OK;
    for (int i = 0; i < patch->n_lowrank; i++) {
        const es_lowrank *e = &patch->lowrank[i];
        if (e->scale == 0)
            continue;
        if (e->layer < from_layer || e->layer >= n_layer || (unsigned)e->site >= ES_N_SITES)
            return es_fail(err, ES_ERR_USAGE, "patch: a low-rank update on layer %d, site %d; this pass runs layers %d to %d", e->layer,
                           (int)e->site, from_layer, n_layer - 1);
        if (e->rank < 1 || e->rank > ES_LOW_MIN || !e->a || !e->b)
            return es_fail(err, ES_ERR_USAGE, "patch: a low-rank update of rank %d (1 to %d go)", e->rank, ES_LOW_MIN);
        p->site_mask[e->layer] |= (uint8_t)(1u << e->site);
    }
    for (int i = 0; i < patch->n_addend; i++)
        if (patch->addend[i].scale != 0 && (patch->addend[i].layer < from_layer - 1 || patch->addend[i].layer >= n_layer))
            return es_fail(err, ES_ERR_USAGE, "patch: an addend after layer %d; this pass sees residuals %d to %d", patch->addend[i].layer,
                           from_layer - 1, n_layer - 1);
    for (int i = 0; i < patch->n_hook; i++) {
        if (patch->hook[i].layer < from_layer - 1 || patch->hook[i].layer >= n_layer)
            return es_fail(err, ES_ERR_USAGE, "patch: a hook after layer %d; this pass sees residuals %d to %d", patch->hook[i].layer,
                           from_layer - 1, n_layer - 1);
        hooks_back += patch->hook[i].backward != NULL;
    }
    if (p->hook_in && hooks_back > max_hooks)
        return es_fail(err, ES_ERR_LIMIT, "patch: %d hooks with a backward, %d were planned for (max_hooks)", hooks_back, max_hooks);
    p->patch = patch;
    p->lowrank = patch->lowrank;
    p->addend = patch->addend;
    return ES_OK;
}

bool es_lowrank_behind(const es_model *m, const es_lowrank *e)
{
    return e->behind && m->facts.family->post_norm && (e->site == ES_SITE_O || e->site == ES_SITE_DOWN);
}

/* y += scale * B (A x) for the entries on this site, those behind its norm or the others, a block of rows at a time when the scratch cannot hold A x for all. */
static void lowrank_forward(const es_pass *p, int layer, es_site site, const float *x, int n, float *y, bool behind)
{
    int n_in = p->model->layer[layer].site[site].n_in, n_out = p->model->layer[layer].site[site].n_out;
    for (int i = 0; i < p->patch->n_lowrank; i++) {
        const es_lowrank *e = &p->lowrank[i];
        if (e->layer != layer || e->site != site || e->scale == 0 || es_lowrank_behind(p->model, e) != behind)
            continue;
        int step = p->low_cap / e->rank;
        for (int t = 0; t < n; t += step) {
            int rows = n - t < step ? n - t : step;
            p->k->gemm(p->pool, false, true, rows, e->rank, n_in, 1, x + (size_t)t * n_in, n_in, e->a, n_in, 0, p->low, e->rank);
            p->k->gemm(p->pool, false, true, rows, n_out, e->rank, e->scale, p->low, e->rank, e->b, e->rank, 1, y + (size_t)t * n_out, n_out);
        }
    }
}

static const es_kernels *products(const es_pass *p, es_site site)
{
    return p->feed_forward && site >= ES_SITE_GATE ? p->feed_forward : p->k;
}

/* y = W x + the patch's updates of W; accumulate: += */
static void linear(const es_pass *p, int layer, es_site site, const float *x, int n, float *y, bool accumulate)
{
    products(p, site)->matmul(p->pool, &p->model->layer[layer].site[site], x, n, y, accumulate, p->exact);
    if (p->site_mask[layer] & 1u << site)
        lowrank_forward(p, layer, site, x, n, y, false);
}

/* The same for n sites in a row, from `first` on, that read one x. */
static void linears(const es_pass *p, int layer, es_site first, int n_sites, const float *x, int n, float *const *y)
{
    const es_weight *w[ES_MATMULS];
    for (int i = 0; i < n_sites; i++)
        w[i] = &p->model->layer[layer].site[first + i];
    products(p, first)->matmuls(p->pool, w, n_sites, x, n, y, p->exact);
    for (int i = 0; i < n_sites; i++)
        if (p->site_mask[layer] & 1u << (first + i))
            lowrank_forward(p, layer, first + i, x, n, y[i], false);
}

/* With a card: rows h[n, d] in host memory, until the next call. NULL: the card was lost. */
static const float *rows_down(const es_pass *p, const float *h, int n, int d)
{
    p->k->download(p->pool, p->host_rows, h, sizeof *h * n * d);
    return es_cuda_lost(p->card) ? NULL : p->host_rows;
}

size_t es_seen_width(const es_model *m)
{
    size_t most = 0;
    for (int p = 0; p < ES_N_POINTS; p++) {
        size_t d = (size_t)es_point_width(m, (es_point)p);
        most = d > most ? d : most;
    }
    return most;
}

int es_moment(int layer, es_point p)
{
    return layer * ES_N_POINTS + (p == ES_POINT_RESIDUAL ? ES_N_POINTS : p) - 1;
}

static bool watched(es_watching w, int layer, es_point point)
{
    for (int i = 0; i < w.n; i++)
        if (w.watch[i].layer == layer && w.watch[i].point == point)
            return true;
    return false;
}

/* Shows the rows of a point to those who watch it. */
static void see(const es_pass *p, int layer, es_point point, const es_rows *r, const float *h, es_watching w)
{
    const int d = es_point_width(p->model, point), moment = es_moment(layer, point);
    for (int i = 0; p->at_pos && i < w.n; i++) /* being recorded: they see it when the token is done */
        if (w.watch[i].layer == layer && w.watch[i].point == point)
            p->k->copy(p->pool, p->seen_on + (size_t)i * es_seen_width(p->model), h, sizeof *h * (size_t)d);
    if (p->at_pos || (p->seen && moment <= *p->seen))
        return;
    const float *rows = p->card ? NULL : h;
    for (int i = 0; i < w.n; i++)
        if (w.watch[i].layer == layer && w.watch[i].point == point) {
            if (!rows && !(rows = rows_down(p, h, r->n, d)))
                return;
            w.watch[i].fn(w.watch[i].user, layer, r->pos[0], rows, r->n, d);
        }
    if (p->seen && !(p->card && es_cuda_lost(p->card)))
        *p->seen = moment;
}

/* The i-th hook. Its functions work on host memory: with a card the rows come down and what it made of them goes up, unless it has numbers. */
static void hook_forward(const es_pass *p, int i, const es_rows *r, float *h)
{
    const es_hook *e = &p->patch->hook[i];
    int d = p->model->info.d_model;
    if (!p->card) {
        e->forward(e->user, h, r->pos, r->n, d);
        return;
    }
    if (e->numbers) {
        es_hook_forward(p, &p->on.hook[i], r, h);
        return;
    }
    if (!rows_down(p, h, r->n, d))
        return;
    e->forward(e->user, p->host_rows, r->pos, r->n, d);
    p->k->upload(p->pool, h, p->host_rows, sizeof *h * r->n * d);
}

void es_residual_forward(const es_pass *p, int layer, const es_rows *r, float *h, es_watching w)
{
    int d = p->model->info.d_model;
    if (p->patch) {
        for (int i = 0; i < p->patch->n_addend; i++) {
            const es_addend *e = &p->addend[i];
            if (e->layer == layer && e->scale != 0)
                p->k->add_vector(p->pool, h, r->pos_on, e->min_pos, e->scale, e->v, r->n, d);
        }
        float *keep = p->hook_in;
        for (int i = 0; i < p->patch->n_hook; i++) {
            const es_hook *e = &p->patch->hook[i];
            if (e->layer == layer) {
                if (keep && e->backward)
                    p->k->copy(p->pool, keep, h, sizeof *h * r->n * d);
                hook_forward(p, i, r, h);
            }
            if (keep && e->backward)
                keep += (size_t)p->hook_rows * d;
        }
    }
    see(p, layer, ES_POINT_RESIDUAL, r, h, w);
}

/* ---- the block ------------------------------------------------------------------------------------------------------- */

const float *es_normed(const es_pass *p, int layer, es_norm which, const float *x, int n)
{
    const float *weight = p->model->layer[layer].norm[which];
    if (!weight)
        return x;
    p->k->rmsnorm(p->pool, x, weight, p->norm, n, p->model->info.d_model, p->model->info.norm_eps);
    return p->norm;
}

/* x += norm(branch), which stays in p->norm */
static void add_normed(const es_pass *p, int layer, es_norm which, const float *branch, int n, float *x)
{
    p->k->axpy(p->pool, 1, es_normed(p, layer, which, branch, n), x, (size_t)n * p->model->info.d_model);
}

/* The norm of q or k, x[n, heads*head_dim] in place: on each head by itself, or on the whole row. keep: x as it was. */
static void qk_norm(const es_pass *p, int layer, es_norm which, int n, int heads, float *x, float *keep)
{
    const float *weight = p->model->layer[layer].norm[which];
    int width = es_norm_width(p->model, which), row = heads * p->model->info.head_dim;
    if (!weight)
        return;
    if (keep)
        p->k->copy(p->pool, keep, x, sizeof *x * n * row);
    p->k->rmsnorm(p->pool, x, weight, x, n * (row / width), width, p->model->info.norm_eps);
}

void es_rotate(const es_pass *p, int layer, const es_rows *r, float *x, int n_head, bool back)
{
    const es_rope_table *t = &p->rope[p->model->layer[layer].window > 0];
    p->k->rope(p->pool, x, r->pos_on, t->cos, t->sin, r->n, n_head, p->model->info.head_dim, !p->model->facts.paired_rope, back);
}

es_attn es_attention_shape(const es_model *m, int layer, const es_rows *r, int s)
{
    int T = r->start[s + 1] - r->start[s];
    return (es_attn){.T = T, .pos0 = T > 0 ? r->pos[r->start[s]] : 0, .n_head = m->info.n_head, .n_kv = m->info.n_kv,
                     .head_dim = m->info.head_dim, .scale = m->facts.attn_scale, .cap = m->facts.attn_cap, .window = m->layer[layer].window};
}

/* A sequence's new rows join what the cache has of it in this layer; *k and *v: position 0 there. */
static void remember(const es_pass *p, int layer, const es_rows *r, int s, const es_acts *a, void **k, void **v)
{
    const es_cache *c = r->cache;
    size_t width = (size_t)p->model->info.n_kv * p->model->info.head_dim, first = r->start[s], n = (r->start[s + 1] - first) * width;
    size_t size = c->half ? sizeof(uint16_t) : sizeof(float), at = layer * c->layer * size, new = r->pos[first] * width * size;
    *k = (char *)c->k[s] + at;
    *v = (char *)c->v[s] + at;
    for (int i = 0; i < 2; i++) {
        const float *x = (i ? a->v : a->k) + first * width;
        char *to = (char *)(i ? *v : *k) + new;
        if (c->half)
            p->k->to_half(p->pool, x, (uint16_t *)(void *)to, n);
        else
            p->k->copy(p->pool, to, x, n * size);
    }
}

/* One token of one sequence, so that a recorded pass serves all its positions: q and k are not rotated yet. */
static void attend_at(const es_pass *p, int layer, const es_rows *r, const es_acts *a)
{
    const es_model_info *m = &p->model->info;
    const es_cache *c = r->cache;
    const es_attn shape = es_attention_shape(p->model, layer, r, 0);
    const es_rope_table *t = &p->rope[p->model->layer[layer].window > 0];
    uint16_t *k = (uint16_t *)c->k[0] + (size_t)layer * c->layer, *v = (uint16_t *)c->v[0] + (size_t)layer * c->layer;
    es_cuda_rotate_append(p->pool, a->q, a->k, a->v, r->pos_on, t->cos, t->sin, m->n_head, m->n_kv, m->head_dim, !p->model->facts.paired_rope, k, v);
    es_cuda_attention_at(p->pool, &shape, p->at_pos, a->q, k, v, r->pos_on, a->att);
}

/* Rotation and attention, each sequence for itself: over its rows or, with a cache, over all that it has there. */
static void attend(const es_pass *p, int layer, const es_rows *r, const es_acts *a)
{
    const es_model_info *m = &p->model->info;
    const es_cache *c = r->cache;
    size_t q_width = (size_t)m->n_head * m->head_dim, kv_width = (size_t)m->n_kv * m->head_dim;
    int n = 0;
    if (p->at_pos) {
        attend_at(p, layer, r, a);
        return;
    }
    es_rotate(p, layer, r, a->q, m->n_head, false);
    es_rotate(p, layer, r, a->k, m->n_kv, false);
    for (int s = 0; s < r->n_seq; s++) {
        size_t first = r->start[s];
        es_attn shape = es_attention_shape(p->model, layer, r, s);
        void *k = a->k + first * kv_width, *v = a->v + first * kv_width;
        if (shape.T == 0)
            continue;
        if (c)
            remember(p, layer, r, s, a, &k, &v);
        if (c && c->half) {
            c->shape[n] = shape;
            c->k_half[n] = k;
            c->v_half[n++] = v;
        } else
            p->k->attention(p->pool, &shape, a->q + first * q_width, k, v, a->att + first * q_width);
    }
    if (n)
        p->k->attention_half(p->pool, c->shape, n, a->q, c->k_half, c->v_half, a->att);
}

void es_glu(const es_pass *p, const float *gate, const float *up, float *y, size_t n)
{
    (p->model->facts.family->gelu ? p->k->geglu : p->k->swiglu)(p->pool, gate, up, y, n);
}

/* Whether a layer's norm and the products behind it are one step: of a recorded token, where no update of those sites reads the norm. */
static bool norm_at_once(const es_pass *p, int layer, es_norm norm, es_site first, int n_sites)
{
    const unsigned sites = ((1u << n_sites) - 1) << first;
    return p->at_pos && p->model->layer[layer].norm[norm] && !(p->site_mask[layer] & sites);
}

static bool glu_at_once(const es_pass *p, int layer)
{
    const es_weight *gate = &p->model->layer[layer].site[ES_SITE_GATE], *up = &p->model->layer[layer].site[ES_SITE_UP];
    return norm_at_once(p, layer, ES_NORM_FFN, ES_SITE_GATE, 2) && gate->type == up->type && gate->n_out == up->n_out;
}

static void normed_linears(const es_pass *p, int layer, es_norm norm, es_site first, int n_sites, const float *x, int n, float *const *y)
{
    const es_weight *w[ES_MATMULS];
    if (!norm_at_once(p, layer, norm, first, n_sites)) {
        linears(p, layer, first, n_sites, es_normed(p, layer, norm, x, n), n, y);
        return;
    }
    for (int i = 0; i < n_sites; i++)
        w[i] = &p->model->layer[layer].site[first + i];
    es_cuda_normed_matmuls(p->pool, w, n_sites, x, p->model->layer[layer].norm[norm], p->model->info.norm_eps, y, p->exact);
}

void es_block_forward(const es_pass *p, int layer, const es_rows *r, const es_acts *a, float *out, es_watching w)
{
    const es_model_info *m = &p->model->info;
    const es_family *family = p->model->facts.family;
    int n = r->n, d = m->d_model, ff = m->d_ff;
    /* Without a norm behind them the halves are added where they are multiplied: who wants to see one has it made once more, into p->norm, so that
     * what is added has the same bits with a watch and without. */
    const bool att_again = !family->post_norm && watched(w, layer, ES_POINT_ATTENTION_OUT), ff_again = !family->post_norm && watched(w, layer, ES_POINT_MLP_OUT);

    /* Attention: each token asks (q) all tokens up to itself in its sequence (k) and reads a mean of what they offer (v). */
    normed_linears(p, layer, ES_NORM_ATTN, ES_SITE_Q, 3, a->x, n, (float *[]){a->q, a->k, a->v});
    qk_norm(p, layer, ES_NORM_Q, n, m->n_head, a->q, a->q_in);
    qk_norm(p, layer, ES_NORM_K, n, m->n_kv, a->k, a->k_in);
    attend(p, layer, r, a);
    see(p, layer, ES_POINT_ATTENTION, r, a->att, w);
    if (a->mid != a->x)
        p->k->copy(p->pool, a->mid, a->x, sizeof *a->x * n * d);
    if (family->post_norm) {
        linear(p, layer, ES_SITE_O, a->att, n, a->att_out, false);
        add_normed(p, layer, ES_NORM_ATTN_POST, a->att_out, n, a->mid);
        if (p->site_mask[layer] & 1u << ES_SITE_O)
            lowrank_forward(p, layer, ES_SITE_O, a->att, n, a->mid, true);
    } else
        linear(p, layer, ES_SITE_O, a->att, n, a->mid, true);
    if (att_again)
        linear(p, layer, ES_SITE_O, a->att, n, p->norm, false);
    see(p, layer, ES_POINT_ATTENTION_OUT, r, p->norm, w);

    /* Feed-forward: each token on its own, through d_ff gated units. */
    const bool at_once = glu_at_once(p, layer);
    const float *in = at_once ? NULL : es_normed(p, layer, ES_NORM_FFN, a->mid, n);
    if (out != a->mid)
        p->k->copy(p->pool, out, a->mid, sizeof *out * n * d);
    for (int t = 0; t < n; t += p->ff_rows) { /* gate and up are kept only when all rows fit in one turn */
        int rows = n - t < p->ff_rows ? n - t : p->ff_rows;
        size_t at = (size_t)t * d;
        if (at_once)
            es_cuda_normed_glu(p->pool, &p->model->layer[layer].site[ES_SITE_GATE], &p->model->layer[layer].site[ES_SITE_UP], a->mid,
                               p->model->layer[layer].norm[ES_NORM_FFN], m->norm_eps, family->gelu, p->act, p->exact);
        else {
            linears(p, layer, ES_SITE_GATE, 2, in + at, rows, (float *[]){a->gate, a->up});
            es_glu(p, a->gate, a->up, p->act, (size_t)rows * ff);
        }
        linear(p, layer, ES_SITE_DOWN, p->act, rows, (family->post_norm ? a->ff_out : out) + at, !family->post_norm);
        if (family->post_norm && p->site_mask[layer] & 1u << ES_SITE_DOWN)
            lowrank_forward(p, layer, ES_SITE_DOWN, p->act, rows, out + at, true);
        if (ff_again) /* over the rows that were just read */
            linear(p, layer, ES_SITE_DOWN, p->act, rows, p->norm + at, false);
    }
    if (family->post_norm)
        add_normed(p, layer, ES_NORM_FFN_POST, a->ff_out, n, out);
    see(p, layer, ES_POINT_MLP_OUT, r, p->norm, w);
}

void es_logits(const es_pass *p, const float *h, int n, float *norm, float *logits, bool exact)
{
    const es_model *m = p->model;
    p->k->rmsnorm(p->pool, h, m->final_norm, norm, n, m->info.d_model, m->info.norm_eps);
    p->k->matmul(p->pool, &m->head, norm, n, logits, false, exact);
    if (m->facts.final_cap > 0)
        p->k->soft_cap(p->pool, logits, (size_t)n * m->info.n_vocab, m->facts.final_cap);
}
