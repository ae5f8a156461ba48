/* hook: the forms gain and map in ops, for passes on a card (engine.h, es_hook_numbers; features/adapter/adapter_hook.c does the same a row at a time, and
 * has the formulas). u, w, v: [ES_HOOK_ROWS, K], the pass's scratch. */
#include "forward.h"

size_t es_hook_gradient_size(const es_hook_numbers *e)
{
    return (size_t)e->K * (e->map ? 1 + (size_t)e->K : 1);
}

int es_hook_slots(const es_hook_numbers *e, int n_seq)
{
    int n = 0;
    if (!e || !e->K || !e->sink || !e->sink->grad)
        return 0;
    for (int s = 0; s < n_seq; s++)
        n = e->sink->slot[s] >= n ? e->sink->slot[s] + 1 : n;
    return n;
}

/* u = what the features read of rows x: f of the form gain (times by), u of map; 0 for a sequence's first token. */
static void read_rows(const es_pass *p, const es_hook_numbers *e, const float *x, const int *pos, int rows, const float *by, float *u)
{
    const int d = p->model->info.d_model;
    p->k->gemm(p->pool, false, true, rows, e->K, d, 1, x, d, e->enc, d, 0, u, e->K);
    p->k->gate(p->pool, u, e->bias, e->map ? NULL : e->threshold, by, pos, rows, e->K);
}

void es_hook_forward(const es_pass *p, const es_hook_numbers *e, const es_rows *r, float *h)
{
    const int d = p->model->info.d_model, K = e->K;
    float *u = p->on.read, *w = u + (size_t)ES_HOOK_ROWS * (size_t)K;
    for (int t = 0; t < r->n && K > 0; t += ES_HOOK_ROWS) {
        const int rows = r->n - t < ES_HOOK_ROWS ? r->n - t : ES_HOOK_ROWS;
        const int *pos = r->pos_on + t;
        float *x = h + (size_t)t * (size_t)d;
        read_rows(p, e, x, pos, rows, e->map ? NULL : e->coef, u);
        if (e->map) {
            p->k->gemm(p->pool, false, true, rows, K, K, 1, u, K, e->map, K, 0, w, K);
            p->k->add_vector(p->pool, w, pos, 1, 1, e->coef, rows, K);
        }
        p->k->gemm(p->pool, false, false, rows, d, K, e->scale, e->map ? w : u, K, e->dec, d, 1, x, d);
    }
}

/* Rows [t, t + rows), which share a slot; grad: its, or NULL. */
static void rows_back(const es_pass *p, const es_hook_numbers *e, const float *in, const int *pos, int rows, float *dh, float *grad)
{
    const int d = p->model->info.d_model, K = e->K;
    const size_t all = (size_t)ES_HOOK_ROWS * (size_t)K;
    float *u = p->on.read, *w = u + all, *v = w + all;
    read_rows(p, e, in, pos, rows, NULL, u);
    p->k->gemm(p->pool, false, true, rows, K, d, e->scale, dh, d, e->dec, d, 0, w, K);
    if (!e->map) {
        p->k->gate_back(p->pool, u, e->coef, w, rows, K);
        if (grad)
            p->k->add_vector_back(p->pool, u, pos, 1, 1, rows, K, grad);
        p->k->gemm(p->pool, false, false, rows, d, K, 1, w, K, e->enc, d, 1, dh, d);
        return;
    }
    p->k->gate(p->pool, w, NULL, NULL, NULL, pos, rows, K);
    if (grad) {
        p->k->add_vector_back(p->pool, w, pos, 1, 1, rows, K, grad);
        p->k->gemm(p->pool, true, false, K, K, rows, 1, w, K, u, K, 1, grad + K, K);
    }
    p->k->gemm(p->pool, false, false, rows, K, K, 1, w, K, e->map, K, 0, v, K);
    p->k->gemm(p->pool, false, false, rows, d, K, 1, v, K, e->enc, d, 1, dh, d);
}

void es_hook_backward(const es_pass *p, const es_hook_numbers *e, const float *in, const es_rows *r, float *dh, float *grad)
{
    const size_t d = (size_t)p->model->info.d_model;
    for (int s = 0; s < r->n_seq;) {
        const int first = r->start[s], slot = grad ? e->sink->slot[s] : 0;
        while (s < r->n_seq && (!grad || e->sink->slot[s] == slot))
            s++;
        for (int t = first; t < r->start[s]; t += ES_HOOK_ROWS) {
            const int rows = r->start[s] - t < ES_HOOK_ROWS ? r->start[s] - t : ES_HOOK_ROWS;
            rows_back(p, e, in + (size_t)t * d, r->pos_on + t, rows, dh + (size_t)t * d, grad ? grad + (size_t)slot * es_hook_gradient_size(e) : NULL);
        }
    }
}
