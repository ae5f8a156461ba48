/* backward: forward.c from its end to its start. A matrix W is mostly frozen, so only the gradient of its input passes: dx = dy W.
 * A thawed model's has dW += dy^T x besides.
 * A low-rank update y += s B (A x) has, with u = A x and du = s B^T dy (rows: du = s dy B):
 *   dB += s dy^T u,  dA += du^T x,  dx += du A. */
#include "forward.h"


float *es_weight_grad(const es_pass *p, const es_grad *g, const void *of)
{
    return g && g->weights ? g->weights + ((const float *)of - (const float *)p->model->own.base) : NULL;
}

static void matrix_back(const es_pass *p, int layer, es_site site, int n, const float *x, const float *dy, const es_grad *g)
{
    const es_weight *w = &p->model->layer[layer].site[site];
    float *dw = es_weight_grad(p, g, w->data);
    if (dw)
        p->k->gemm(p->pool, true, false, w->n_out, w->n_in, n, 1, dy, w->n_out, x, w->n_in, 1, dw, w->n_in);
}

/* dx += the gradient through the norm of rows x[n, d_model]; without such a norm dy itself. */
static void norm_back(const es_pass *p, int layer, es_norm which, int n, const float *x, const float *dy, float *dx, const es_grad *g)
{
    const float *weight = p->model->layer[layer].norm[which];
    int d = p->model->info.d_model;
    if (!weight) {
        p->k->axpy(p->pool, 1, dy, dx, (size_t)n * d);
        return;
    }
    float *dw = es_weight_grad(p, g, weight);
    if (dw)
        p->k->rmsnorm_weight_back(p->pool, x, dy, dw, n, d, p->model->info.norm_eps);
    p->k->rmsnorm_back(p->pool, x, weight, dy, dx, n, d, p->model->info.norm_eps);
}

/* The gradient of what a half of the block gave, from that of the residual it was added to: dh itself where there is no post norm. */
static const float *branch_back(const es_pass *p, int layer, es_norm which, int n, const float *x, const float *dh, float *dbranch, const es_grad *g)
{
    if (!p->model->layer[layer].norm[which])
        return dh;
    p->k->clear(p->pool, dbranch, sizeof *dbranch * n * p->model->info.d_model);
    norm_back(p, layer, which, n, x, dh, dbranch, g);
    return dbranch;
}

/* dx in place through the norm of q or k, x[n, heads*head_dim] what entered it. copy: scratch as large as dx. */
static void qk_norm_back(const es_pass *p, int layer, es_norm which, int n, int heads, const float *x, float *dx, float *copy, const es_grad *g)
{
    const float *weight = p->model->layer[layer].norm[which];
    int width = es_norm_width(p->model, which), row = heads * p->model->info.head_dim;
    if (!weight)
        return;
    float *dw = es_weight_grad(p, g, weight), eps = p->model->info.norm_eps;
    p->k->copy(p->pool, copy, dx, sizeof *dx * n * row);
    p->k->clear(p->pool, dx, sizeof *dx * n * row);
    if (dw)
        p->k->rmsnorm_weight_back(p->pool, x, copy, dw, n * (row / width), width, eps);
    p->k->rmsnorm_back(p->pool, x, weight, copy, dx, n * (row / width), width, eps);
}

void es_glu_back(const es_pass *p, const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n)
{
    (p->model->facts.family->gelu ? p->k->geglu_back : p->k->swiglu_back)(p->pool, gate, up, dy, dgate, dup, n);
}

/* Whether an entry of the block at `site` wants the gradient of its own numbers. */
static bool wants(const es_grad *g, int i)
{
    return g && ((g->a && g->a[i]) || (g->b && g->b[i]));
}

static int slot_of(const es_grad *g, int seq)
{
    return g->seq_slot ? g->seq_slot[seq] : 0;
}

/* Calls for each run of neighbouring sequences that share a slot: rows [*first, *end), next sequence returned. */
static int next_run(const es_grad *g, const es_rows *r, int seq, int *first, int *end)
{
    int next = seq + 1;
    while (next < r->n_seq && (!g || slot_of(g, next) == slot_of(g, seq)))
        next++;
    *first = r->start[seq];
    *end = r->start[next];
    return next;
}

/* For the entries on this site, given the site's input x and the gradient dy of its output: their own gradients, and dx += (unless
 * dx is NULL). */
static void lowrank_backward(const es_pass *p, int layer, es_site site, const es_rows *r, const float *x, const float *dy, float *dx,
                             const es_grad *g, bool behind)
{
    int n_in = p->model->layer[layer].site[site].n_in, n_out = p->model->layer[layer].site[site].n_out;
    if (!(p->site_mask[layer] & 1u << site))
        return;
    for (int i = 0; i < p->patch->n_lowrank; i++) {
        const es_lowrank *e = &p->lowrank[i];
        if (e->layer != layer || e->site != site || e->scale == 0 || es_lowrank_behind(p->model, e) != behind || (!dx && !wants(g, i)))
            continue;
        int rank = e->rank, step = p->low_cap / rank, first, end;
        for (int seq = 0; seq < r->n_seq;) {
            int slot = wants(g, i) ? slot_of(g, seq) : 0;
            seq = next_run(wants(g, i) ? g : NULL, r, seq, &first, &end);
            for (int t = first; t < end; t += step) {
                int rows = end - t < step ? end - t : step;
                const float *xt = x + (size_t)t * n_in, *dyt = dy + (size_t)t * n_out;
                if (dx || (g->a && g->a[i]))
                    p->k->gemm(p->pool, false, false, rows, rank, n_out, e->scale, dyt, n_out, e->b, rank, 0, p->dlow, rank);
                if (wants(g, i) && g->b && g->b[i]) {
                    float *db = g->b[i] + (size_t)slot * n_out * rank;
                    p->k->gemm(p->pool, false, true, rows, rank, n_in, 1, xt, n_in, e->a, n_in, 0, p->low, rank);
                    p->k->gemm(p->pool, true, false, n_out, rank, rows, e->scale, dyt, n_out, p->low, rank, 1, db, rank);
                }
                if (wants(g, i) && g->a && g->a[i]) {
                    float *da = g->a[i] + (size_t)slot * rank * n_in;
                    p->k->gemm(p->pool, true, false, rank, n_in, rows, 1, p->dlow, rank, xt, n_in, 1, da, n_in);
                }
                if (dx)
                    p->k->gemm(p->pool, false, false, rows, n_in, rank, 1, p->dlow, rank, e->a, n_in, 1, dx + (size_t)t * n_in, n_in);
            }
        }
    }
}

/* Sites of the block whose entries want gradients, as a mask. */
static unsigned wanted_sites(const es_pass *p, int layer, const es_grad *g)
{
    unsigned mask = 0;
    for (int i = 0; p->site_mask[layer] && i < p->patch->n_lowrank; i++) {
        const es_lowrank *e = &p->patch->lowrank[i];
        if (e->layer == layer && e->scale != 0 && wants(g, i))
            mask |= 1u << e->site;
    }
    return mask;
}

void es_block_backward(const es_pass *p, int layer, const es_rows *r, const es_acts *a, const es_back *w, float *dh,
                       const es_grad *g, bool propagate)
{
    const es_model_info *m = &p->model->info;
    const es_layer *l = &p->model->layer[layer];
    const es_kernels *k = p->k;
    int n = r->n, ff = m->d_ff, q_width = m->n_head * m->head_dim, kv_width = m->n_kv * m->head_dim;
    const unsigned qkv = 1u << ES_SITE_Q | 1u << ES_SITE_K | 1u << ES_SITE_V, gate_up = 1u << ES_SITE_GATE | 1u << ES_SITE_UP;
    unsigned want = wanted_sites(p, layer, g), here = p->site_mask[layer];
    bool learns = g && g->weights;
    propagate = propagate || learns; /* its own norm's gradient needs as much */
    bool to_qkv = propagate || (want & qkv), to_o = to_qkv || (want & 1u << ES_SITE_O), to_gate = to_o || (want & gate_up);

    /* out = mid + norm(down(f(gate) * up)) */
    const float *dy = branch_back(p, layer, ES_NORM_FFN_POST, n, a->ff_out, dh, w->dbranch, g);
    if (learns || here & 1u << ES_SITE_DOWN)
        es_glu(p, a->gate, a->up, p->act, (size_t)n * ff);
    if (to_gate)
        k->matmul_back(p->pool, &l->site[ES_SITE_DOWN], dy, n, w->dact, false);
    matrix_back(p, layer, ES_SITE_DOWN, n, p->act, dy, g);
    lowrank_backward(p, layer, ES_SITE_DOWN, r, p->act, dy, to_gate ? w->dact : NULL, g, false);
    lowrank_backward(p, layer, ES_SITE_DOWN, r, p->act, dh, to_gate ? w->dact : NULL, g, true);
    if (!to_gate)
        return;

    /* gate, up = W norm(mid) */
    es_glu_back(p, a->gate, a->up, w->dact, w->dgate, w->dup, (size_t)n * ff);
    const float *in = learns || here & gate_up ? es_normed(p, layer, ES_NORM_FFN, a->mid, n) : NULL;
    if (to_o) {
        k->matmul_back(p->pool, &l->site[ES_SITE_GATE], w->dgate, n, w->dnorm, false);
        k->matmul_back(p->pool, &l->site[ES_SITE_UP], w->dup, n, w->dnorm, true);
    }
    matrix_back(p, layer, ES_SITE_GATE, n, in, w->dgate, g);
    matrix_back(p, layer, ES_SITE_UP, n, in, w->dup, g);
    lowrank_backward(p, layer, ES_SITE_GATE, r, in, w->dgate, to_o ? w->dnorm : NULL, g, false);
    lowrank_backward(p, layer, ES_SITE_UP, r, in, w->dup, to_o ? w->dnorm : NULL, g, false);
    if (!to_o)
        return;
    norm_back(p, layer, ES_NORM_FFN, n, a->mid, w->dnorm, dh, g); /* dh was d out = d mid's direct part */

    /* mid = x + norm(o(attention)) */
    dy = branch_back(p, layer, ES_NORM_ATTN_POST, n, a->att_out, dh, w->dbranch, g);
    if (to_qkv)
        k->matmul_back(p->pool, &l->site[ES_SITE_O], dy, n, w->datt, false);
    matrix_back(p, layer, ES_SITE_O, n, a->att, dy, g);
    lowrank_backward(p, layer, ES_SITE_O, r, a->att, dy, to_qkv ? w->datt : NULL, g, false);
    lowrank_backward(p, layer, ES_SITE_O, r, a->att, dh, to_qkv ? w->datt : NULL, g, true);
    if (!to_qkv)
        return;

    for (int s = 0; s < r->n_seq; s++) {
        es_attn shape = es_attention_shape(p->model, layer, r, s);
        size_t at_q = (size_t)r->start[s] * q_width, at_kv = (size_t)r->start[s] * kv_width;
        if (shape.T > 0)
            k->attention_back(p->pool, &shape, a->q + at_q, a->k + at_kv, a->v + at_kv, w->datt + at_q, w->dq + at_q, w->dk + at_kv,
                              w->dv + at_kv);
    }
    es_rotate(p, layer, r, w->dq, m->n_head, true);
    es_rotate(p, layer, r, w->dk, m->n_kv, true);
    qk_norm_back(p, layer, ES_NORM_Q, n, m->n_head, a->q_in, w->dq, w->datt, g);
    qk_norm_back(p, layer, ES_NORM_K, n, m->n_kv, a->k_in, w->dk, w->datt, g);

    /* q, k, v = W norm(x) */
    in = learns || here & qkv ? es_normed(p, layer, ES_NORM_ATTN, a->x, n) : NULL;
    if (propagate) {
        k->matmul_back(p->pool, &l->site[ES_SITE_Q], w->dq, n, w->dnorm, false);
        k->matmul_back(p->pool, &l->site[ES_SITE_K], w->dk, n, w->dnorm, true);
        k->matmul_back(p->pool, &l->site[ES_SITE_V], w->dv, n, w->dnorm, true);
    }
    matrix_back(p, layer, ES_SITE_Q, n, in, w->dq, g);
    matrix_back(p, layer, ES_SITE_K, n, in, w->dk, g);
    matrix_back(p, layer, ES_SITE_V, n, in, w->dv, g);
    lowrank_backward(p, layer, ES_SITE_Q, r, in, w->dq, propagate ? w->dnorm : NULL, g, false);
    lowrank_backward(p, layer, ES_SITE_K, r, in, w->dk, propagate ? w->dnorm : NULL, g, false);
    lowrank_backward(p, layer, ES_SITE_V, r, in, w->dv, propagate ? w->dnorm : NULL, g, false);
    if (propagate)
        norm_back(p, layer, ES_NORM_ATTN, n, a->x, w->dnorm, dh, g);
}

/* As hook_forward of forward.c. */
static void hook_backward(const es_pass *p, int i, const float *in, const es_rows *r, float *dh)
{
    const es_hook *e = &p->patch->hook[i];
    int d = p->model->info.d_model;
    size_t bytes = sizeof *dh * r->n * d;
    if (!p->card) {
        e->backward(e->user, in, dh, r->pos, r->n, d);
        return;
    }
    if (e->numbers) {
        es_hook_backward(p, &p->on.hook[i], in, r, dh, p->hook_grad ? p->hook_grad[i] : NULL);
        return;
    }
    float *host_in = p->host_rows, *host_dh = p->host_rows + (size_t)r->n * d;
    p->k->download(p->pool, host_in, in, bytes);
    p->k->download(p->pool, host_dh, dh, bytes);
    e->backward(e->user, host_in, host_dh, r->pos, r->n, d);
    p->k->upload(p->pool, dh, host_dh, bytes);
}

void es_residual_backward(const es_pass *p, int layer, const es_rows *r, float *dh, const es_grad *g)
{
    int d = p->model->info.d_model, kept = 0;
    if (!p->patch)
        return;
    for (int i = 0; i < p->patch->n_hook; i++)
        kept += p->patch->hook[i].backward != NULL;
    for (int i = p->patch->n_hook - 1; i >= 0; i--) {
        const es_hook *e = &p->patch->hook[i];
        if (!e->backward)
            continue;
        kept--;
        if (e->layer == layer)
            hook_backward(p, i, p->hook_in + (size_t)kept * p->hook_rows * d, r, dh);
    }
    for (int i = 0; g && g->addend && i < p->patch->n_addend; i++) {
        const es_addend *e = &p->addend[i];
        if (e->layer != layer || e->scale == 0 || !g->addend[i])
            continue;
        for (int s = 0, first, end; s < r->n_seq;) {
            float *dv = g->addend[i] + (size_t)slot_of(g, s) * d;
            s = next_run(g, r, s, &first, &end);
            p->k->add_vector_back(p->pool, dh + (size_t)first * d, r->pos_on + first, e->min_pos, e->scale, end - first, d, dv);
        }
    }
}
