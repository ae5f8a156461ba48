/* forward: a llama block, line by line.
 *
 *   x ── norm ── q,k,v ── rotate q,k ── attention ── o ──(+)── mid ── norm ── gate,up ── silu(gate)*up ── down ──(+)── out
 *   └────────────────────────────────────────────────────┘    └───────────────────────────────────────────────────────┘
 *
 * Each of the seven matrices may carry low-rank updates from the patch: y = W x + sum scale * B (A x). */
#include "forward.h"

#include <math.h>
#include <string.h>

void es_rope_tables(const es_model *m, int n_pos, float *cos_t, float *sin_t)
{
    int half = m->info.head_dim / 2;
    for (int pos = 0; pos < n_pos; pos++)
        for (int i = 0; i < half; i++) {
            double angle = (double)pos * m->rope_inv[i];
            cos_t[(size_t)pos * half + i] = (float)cos(angle);
            sin_t[(size_t)pos * half + i] = (float)sin(angle);
        }
}

float es_attention_scale(const es_model_info *m)
{
    return 1 / sqrtf((float)m->head_dim);
}

int es_embed(const es_model *m, const int32_t *ids, int n, float *out, es_error *err)
{
    const es_weight *w = &m->token_embd;
    int d = w->n_in;
    const es_type_info *type = es_type_get(w->type);
    size_t row_bytes = (size_t)d / type->block * type->bytes;
    for (int t = 0; t < n; t++)
        if (ids[t] < 0 || ids[t] >= w->n_out)
            return es_fail(err, ES_ERR_USAGE, "token %d is %d, but the vocabulary has %d", t, ids[t], w->n_out);
    for (int t = 0; t < n; t++)
        es_dequant(w->type, (const char *)w->data + row_bytes * ids[t], out + (size_t)t * d, d);
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
    return ES_OK;
}

/* y += scale * B (A x) for the entries on this site, a block of rows at a time when the scratch cannot hold A x for all. */
static void lowrank_forward(const es_pass *p, int layer, es_site site, const float *x, int n, float *y)
{
    int n_in = p->model->layer[layer].site[site].n_in, n_out = p->model->layer[layer].site[site].n_out;
    for (int i = 0; i < p->patch->n_lowrank; i++) {
        const es_lowrank *e = &p->patch->lowrank[i];
        if (e->layer != layer || e->site != site || e->scale == 0)
            continue;
        int step = p->low_cap / e->rank;
        for (int t = 0; t < n; t += step) {
            int rows = n - t < step ? n - t : step;
            p->k->gemm(p->pool, false, true, rows, e->rank, n_in, 1, x + (size_t)t * n_in, n_in, e->a, n_in, 0, p->low, e->rank);
            p->k->gemm(p->pool, false, true, rows, n_out, e->rank, e->scale, p->low, e->rank, e->b, e->rank, 1, y + (size_t)t * n_out, n_out);
        }
    }
}

/* y = W x + the patch's updates of W; accumulate: += */
static void linear(const es_pass *p, int layer, es_site site, const float *x, int n, float *y, bool accumulate)
{
    p->k->matmul(p->pool, &p->model->layer[layer].site[site], x, n, y, accumulate, p->exact);
    if (p->site_mask[layer] & 1u << site)
        lowrank_forward(p, layer, site, x, n, y);
}

void es_residual_forward(const es_pass *p, int layer, const es_rows *r, float *h, const es_watch *watch, int n_watch)
{
    int d = p->model->info.d_model;
    if (p->patch) {
        for (int i = 0; i < p->patch->n_addend; i++) {
            const es_addend *e = &p->patch->addend[i];
            if (e->layer != layer || e->scale == 0)
                continue;
            for (int t = 0; t < r->n; t++)
                if (r->pos[t] >= e->min_pos)
                    for (int j = 0; j < d; j++)
                        h[(size_t)t * d + j] += e->scale * e->v[j];
        }
        float *keep = p->hook_in;
        for (int i = 0; i < p->patch->n_hook; i++) {
            const es_hook *e = &p->patch->hook[i];
            if (e->layer == layer) {
                if (keep && e->backward)
                    memcpy(keep, h, sizeof *h * r->n * d);
                e->forward(e->user, h, r->pos, r->n, d);
            }
            if (keep && e->backward)
                keep += (size_t)p->hook_rows * d;
        }
    }
    for (int i = 0; i < n_watch; i++)
        if (watch[i].layer == layer)
            watch[i].fn(watch[i].user, layer, r->pos0, h, r->n, d);
}

/* ---- the block ------------------------------------------------------------------------------------------------------- */

void es_block_forward(const es_pass *p, int layer, const es_rows *r, const es_acts *a, float *out)
{
    const es_model_info *m = &p->model->info;
    const es_layer *w = &p->model->layer[layer];
    const es_kernels *k = p->k;
    int n = r->n, d = m->d_model, ff = m->d_ff, q_width = m->n_head * m->head_dim, kv_width = m->n_kv * m->head_dim;

    /* Attention: each token asks (q) all tokens up to itself in its sequence (k) and reads a mean of what they offer (v). */
    k->rmsnorm(p->pool, a->x, w->attn_norm, p->norm, n, d, m->norm_eps);
    linear(p, layer, ES_SITE_Q, p->norm, n, a->q, false);
    linear(p, layer, ES_SITE_K, p->norm, n, a->k, false);
    linear(p, layer, ES_SITE_V, p->norm, n, a->v, false);
    k->rope(p->pool, a->q, r->pos, p->rope_cos, p->rope_sin, n, m->n_head, m->head_dim, false, false);
    k->rope(p->pool, a->k, r->pos, p->rope_cos, p->rope_sin, n, m->n_kv, m->head_dim, false, false);
    for (int s = 0; s < r->n_seq; s++) {
        int first = r->start[s];
        es_attn shape = {.T = r->start[s + 1] - first, .pos0 = r->pos0, .n_head = m->n_head, .n_kv = m->n_kv, .head_dim = m->head_dim,
                         .scale = es_attention_scale(m)};
        ptrdiff_t kv_first = (ptrdiff_t)(first - r->pos0) * kv_width; /* position 0 of the sequence: in a cache, before a->k */
        if (shape.T > 0)
            k->attention(p->pool, &shape, a->q + (size_t)first * q_width, a->k + kv_first, a->v + kv_first, a->att + (size_t)first * q_width);
    }
    if (a->mid != a->x)
        memcpy(a->mid, a->x, sizeof *a->x * n * d);
    linear(p, layer, ES_SITE_O, a->att, n, a->mid, true);

    /* Feed-forward: each token on its own, through d_ff gated units. */
    k->rmsnorm(p->pool, a->mid, w->ffn_norm, p->norm, n, d, m->norm_eps);
    if (out != a->mid)
        memcpy(out, a->mid, sizeof *out * n * d);
    for (int t = 0; t < n; t += p->ff_rows) { /* gate and up are kept only when all rows fit in one turn */
        int rows = n - t < p->ff_rows ? n - t : p->ff_rows;
        linear(p, layer, ES_SITE_GATE, p->norm + (size_t)t * d, rows, a->gate, false);
        linear(p, layer, ES_SITE_UP, p->norm + (size_t)t * d, rows, a->up, false);
        k->swiglu(p->pool, a->gate, a->up, p->act, (size_t)rows * ff);
        linear(p, layer, ES_SITE_DOWN, p->act, rows, out + (size_t)t * d, true);
    }
}
