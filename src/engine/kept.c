/* kept: numbers that are learned and stay on a trainer's card (engine.h, es_kept): parameters, gradient and Adam's moments. What a thawed model is made of
 * is there already, in the model's view, where every pass of that model reads it. */
#include "forward.h"

#include <math.h>
#include <string.h>

const float *es_kept_param(const es_pass *p, const float *host)
{
    const es_kept_on *k = &p->kept;
    return k->host.n && !k->weights && host >= k->host.param && host < k->host.param + k->host.n ? k->param + (host - k->host.param) : NULL;
}

float *es_kept_grad(const es_pass *p, const float *host)
{
    const es_kept_on *k = &p->kept;
    return k->host.n && host >= k->host.grad && host < k->host.grad + k->host.n ? k->grad + (host - k->host.grad) : NULL;
}

static void layout(es_kept_on *k, size_t n, es_arena *a)
{
    k->grad = es_arena_take(a, n, sizeof *k->grad);
    k->first = es_arena_take(a, n, sizeof *k->first);
    k->second = es_arena_take(a, n, sizeof *k->second);
    k->square = es_arena_take(a, 1, sizeof *k->square);
    if (!k->weights)
        k->param = es_arena_take(a, n, sizeof *k->param);
}

int es_kept_open(es_pass *p, const es_model *m, const es_kept *host, es_error *err)
{
    es_kept_on k = {.host = *host, .weights = m->own.base && (const char *)host->param == m->own.base};
    es_arena size = {0};
    if (!p->card)
        return es_fail(err, ES_ERR_MISSING, "there is no card to keep anything on");
    if (p->kept.host.n || host->n < 1 || (k.weights && host->n != m->n_own))
        return es_fail(err, ES_ERR_USAGE, "a trainer keeps one set of numbers, and of a model all");
    if (k.weights)
        k.param = (float *)(void *)p->model->own.base;
    layout(&k, host->n, &size);
    int code = es_pass_take(p, &k.memory, size.used, err); /* zeroed: there is no gradient yet */
    if (code)
        return code;
    layout(&k, host->n, &k.memory);
    p->kept = k;
    if ((code = es_kept_up(p, m, err)))
        es_kept_close(p);
    return code;
}

void es_kept_close(es_pass *p)
{
    es_pass_release(p, &p->kept.memory);
    p->kept = (es_kept_on){0};
}

int es_kept_up(es_pass *p, const es_model *m, es_error *err)
{
    const es_kept_on *k = &p->kept;
    const size_t bytes = k->host.n * sizeof(float);
    if (k->weights) {
        int code = es_pass_send_numbers(p, m, err);
        if (code)
            return code;
    } else
        p->k->upload(p->pool, k->param, k->host.param, bytes);
    p->k->upload(p->pool, k->first, k->host.first, bytes);
    p->k->upload(p->pool, k->second, k->host.second, bytes);
    return p->k->sync(p->pool, err);
}

/* The parameters come by way of the gradient's place in host memory, which holds nothing: they arrive whole or not at all. */
int es_kept_down(es_pass *p, es_error *err)
{
    const es_kept_on *k = &p->kept;
    const size_t bytes = k->host.n * sizeof(float);
    p->k->download(p->pool, k->host.grad, k->param, bytes);
    int code = p->k->sync(p->pool, err);
    if (code)
        return code;
    p->k->download(p->pool, k->host.first, k->first, bytes);
    p->k->download(p->pool, k->host.second, k->second, bytes);
    if ((code = p->k->sync(p->pool, err))) { /* zeros are a state of Adam's, half of one and half of another are none */
        memset(k->host.first, 0, bytes);
        memset(k->host.second, 0, bytes);
        return code;
    }
    memcpy(k->host.param, k->host.grad, bytes);
    return ES_OK;
}

int es_kept_gradient(es_pass *p, float *out, double *square, es_error *err)
{
    const es_kept_on *k = &p->kept;
    if (out)
        p->k->download(p->pool, out, k->grad, k->host.n * sizeof *out);
    if (square) {
        p->k->sum_squares(p->pool, k->grad, k->host.n, k->square);
        p->k->download(p->pool, square, k->square, sizeof *square);
    }
    return p->k->sync(p->pool, err);
}

/* The op has m / (sqrt(v) + eps): with the correction u of v, step m / (sqrt(u v) + eps) = step / sqrt(u) * m / (sqrt(v) + eps / sqrt(u)). */
int es_kept_adam(es_pass *p, const es_adam *a, es_error *err)
{
    const es_kept_on *k = &p->kept;
    const size_t n = k->host.n, part = a->n_decay < n ? a->n_decay : n;
    const double root = sqrt(1 / (1 - pow(a->beta2, a->step)));
    const float rate = (float)(a->rate / (1 - pow(a->beta1, a->step)) / root), eps = (float)(a->epsilon / root), b1 = (float)a->beta1, b2 = (float)a->beta2;
    if (a->scale != 1)
        p->k->axpy(p->pool, (float)(a->scale - 1), k->grad, k->grad, n); /* element by element, so the two may be one */
    if (part)
        p->k->adam(p->pool, k->param, k->grad, k->first, k->second, part, b1, b2, rate, eps, (float)(1 - a->rate * a->decay));
    if (part < n)
        p->k->adam(p->pool, k->param + part, k->grad + part, k->first + part, k->second + part, n - part, b1, b2, rate, eps, 1);
    return p->k->sync(p->pool, err);
}
