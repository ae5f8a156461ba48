/* learner: the metric of a step, G = D F D^T + lambda I for each matrix, D the directions that it writes through [rows, d]. F is I, or with
 * es_learner_natural what neutral text makes of it: the second moment of the gradient of its log-likelihood by the residual after the matrix's
 * layer, targets drawn from the model (the Fisher information; with white inputs the output half of a Kronecker-factored natural gradient,
 * Martens & Grosse 2015). F has its layer's size, so a step is shorter where the model minds more; over all layers its mean is I's. */
#include "learner_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double RIDGE = 0.1; /* of the mean of F's diagonal */

static double lambda_of(const es_learner *l)
{
    return l->o.metric_lambda > 1e-6 ? l->o.metric_lambda : 1e-6;
}

static const float *fisher_of(const es_learner *l, const es_adapter_entry *e)
{
    return l->natural.fisher ? l->natural.fisher + (size_t)(e->layer - l->a->o.first_layer) * (size_t)l->a->d * (size_t)l->a->d : NULL;
}

/* The inverse of the symmetric a[n,n], which becomes its Cholesky factor as es_linear_cholesky has it. u: [n] of scratch. */
static bool invert(double *a, int n, double ridge, double *u, float *out)
{
    if (!es_linear_cholesky(a, n, ridge))
        return false;
    for (int i = 0; i < n; i++) {
        memset(u, 0, (size_t)n * sizeof *u);
        u[i] = 1;
        es_linear_solve(a, n, u);
        for (int j = 0; j < n; j++)
            out[(size_t)i * (size_t)n + (size_t)j] = (float)u[j];
    }
    return true;
}

int es_metric_open(es_learner *l, const es_adapter_place *p, es_error *err)
{
    es_adapter *a = l->a;
    size_t K = (size_t)p->K;
    double *cholesky = l->cholesky + p->square;
    if (!K)
        return ES_OK;
    float *gram = es_calloc(K * K, sizeof *gram);
    if (!gram)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a metric of %zu features", K);
    es_linear_gram(a->pool, es_adapter_rows(a, p->first), p->K, a->d, gram);
    for (size_t i = 0; i < K * K; i++)
        cholesky[i] = gram[i];
    free(gram);
    if (!(l->inverse ? invert(cholesky, p->K, lambda_of(l), l->u, l->inverse + p->square) : es_linear_cholesky(cholesky, p->K, lambda_of(l))))
        return es_fail(err, ES_ERR_USAGE, "learner: the metric of this basis is singular; raise its lambda");
    return ES_OK;
}

void es_learner_inverse_metric(es_learner *l, const float *in, float *out)
{
    es_adapter *a = l->a;
    size_t rank = (size_t)a->o.rank;
    if (a->o.form == ES_FORM_BIAS) {
        for (int i = 0; i < a->K; i++)
            l->u[i] = in[i];
        for (int i = 0; i < a->n_place; i++)
            es_linear_solve(l->cholesky + a->place[i].square, a->place[i].K, l->u + a->place[i].first);
        for (int i = 0; i < a->K; i++)
            out[i] = (float)l->u[i];
        return;
    }
    if (!a->K && !l->natural.fisher) {
        memmove(out, in, a->n_learned * sizeof *out);
        return;
    }
    for (int i = 0; i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        int rows = a->K ? e->rows : a->d;
        const float *inverse = l->natural.fisher ? l->natural.inverse + l->natural.at[e->layer - a->o.first_layer] : l->inverse + a->place[e->place].square;
        float *swap = l->natural.fisher ? l->natural.swap : l->swap;
        l->k->gemm(a->pool, false, false, rows, a->o.rank, rows, 1, inverse, rows, in + e->b, a->o.rank, 0, swap, a->o.rank);
        memcpy(out + e->b, swap, (size_t)rows * rank * sizeof *out);
    }
}

void es_learner_metric_rows(es_learner *l, const es_adapter_entry *e, const float *b, float *out)
{
    es_adapter *a = l->a;
    const float *fisher = fisher_of(l, e), *of = b;
    if (fisher) {
        l->k->gemm(a->pool, false, false, a->d, a->o.rank, a->d, 1, fisher, a->d, b, a->o.rank, 0, l->natural.swap, a->o.rank);
        of = l->natural.swap;
    }
    l->k->gemm(a->pool, false, false, e->rows, a->o.rank, a->d, 1, es_adapter_rows(a, e->first), a->d, of, a->o.rank, 0, out, a->o.rank);
}

int es_learner_metric(es_learner *l, const float *in, float *out, es_error *err)
{
    es_adapter *a = l->a;
    size_t rank = (size_t)a->o.rank;
    float *through = es_calloc((size_t)a->d * rank, sizeof *through);
    if (!through)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a direction");
    if (!a->K && !l->natural.fisher)
        memcpy(out, in, a->n_learned * sizeof *out);
    for (int i = 0; (a->K || l->natural.fisher) && i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        if (!a->K) {
            l->k->gemm(a->pool, false, false, a->d, a->o.rank, a->d, 1, fisher_of(l, e), a->d, in + e->b, a->o.rank, 0, out + e->b, a->o.rank);
            continue;
        }
        float lambda = (float)(lambda_of(l) * (l->natural.fisher ? l->natural.size[e->layer - a->o.first_layer] : 1));
        l->k->gemm(a->pool, true, false, a->d, a->o.rank, e->rows, 1, es_adapter_rows(a, e->first), a->d, in + e->b, a->o.rank, 0, through, a->o.rank);
        es_learner_metric_rows(l, e, through, out + e->b);
        for (size_t j = 0; j < (size_t)e->rows * rank; j++)
            out[e->b + j] += lambda * in[e->b + j];
    }
    free(through);
    return ES_OK;
}

double es_learner_metric_square(es_learner *l, const float *g, float *scratch)
{
    es_learner_inverse_metric(l, g, scratch);
    return es_learner_dot(g, scratch, l->a->n_learned);
}

/* ---- from the Fisher information of neutral text ------------------------------------------------------------------------------------- */

void es_natural_free(es_natural *n)
{
    free(n->fisher);
    free(n->inverse);
    free(n->at);
    free(n->size);
    free(n->swap);
    *n = (es_natural){0};
}

/* The inverse metric of a layer whose entries write through rows [n, d]; NULL: through d itself. scratch: [n, d] and [n, n] floats. */
static bool invert_layer(es_learner *l, int at, const float *rows, int n, float *scratch, double *square, double *u)
{
    es_adapter *a = l->a;
    size_t d = (size_t)a->d;
    const float *fisher = l->natural.fisher + (size_t)at * d * d, *gram = fisher;
    double ridge = 0;
    if (rows) {
        float *g = scratch + (size_t)n * d;
        l->k->gemm(a->pool, false, false, n, a->d, a->d, 1, rows, a->d, fisher, a->d, 0, scratch, a->d);
        l->k->gemm(a->pool, false, true, n, n, a->d, 1, scratch, a->d, rows, a->d, 0, g, n);
        gram = g;
        ridge = lambda_of(l) * l->natural.size[at];
    }
    for (size_t i = 0; i < (size_t)n * (size_t)n; i++)
        square[i] = gram[i];
    return invert(square, n, ridge, u, l->natural.inverse + l->natural.at[at]);
}

static int take_fisher(es_learner *l, const es_inputs *x, int layers, es_error *err)
{
    es_natural *t = &l->natural;
    size_t d = (size_t)l->a->d;
    double mean = 0;
    for (int i = 0; i < layers; i++) {
        const float *from = es_inputs_fisher(x, l->a->o.first_layer + i);
        float *to = t->fisher + (size_t)i * d * d;
        if (!from)
            return es_fail(err, ES_ERR_MISMATCH, "the inputs have no Fisher information of layer %d", l->a->o.first_layer + i);
        memcpy(to, from, d * d * sizeof *to);
        double trace = 0;
        for (size_t j = 0; j < d; j++)
            trace += to[j * d + j];
        if (!(trace > 0) || !isfinite(trace))
            return es_fail(err, ES_ERR_LIMIT, "the Fisher information of layer %d is not a number or is zero", l->a->o.first_layer + i);
        for (size_t j = 0; j < d; j++)
            to[j * d + j] += (float)(RIDGE * trace / (double)d);
        t->size[i] = (1 + RIDGE) * trace / (double)d;
        mean += t->size[i] / layers;
    }
    for (int i = 0; i < layers; i++) {
        float *to = t->fisher + (size_t)i * d * d;
        t->size[i] /= mean;
        for (size_t j = 0; j < d * d; j++)
            to[j] = (float)(to[j] / mean);
    }
    return ES_OK;
}

int es_learner_natural(es_learner *l, const es_inputs *x, es_error *err)
{
    es_adapter *a = l->a;
    es_natural *t = &l->natural;
    size_t d = (size_t)a->d, squares = 0, widest = 0;
    int layers = a->o.last_layer - a->o.first_layer + 1;
    if (es_learner_is_adam(l) || a->o.form != ES_FORM_LORA || l->n || l->prior.n || l->shield[0] || t->fisher)
        return es_fail(err, ES_ERR_USAGE, "learner: the metric of neutral text is for the metric step of form lora, before directions, experiences and what is spared");
    t->fisher = es_calloc((size_t)layers * d * d, sizeof *t->fisher);
    t->at = es_calloc((size_t)layers, sizeof *t->at);
    t->size = es_calloc((size_t)layers, sizeof *t->size);
    for (int i = 0; t->at && i < a->n_entry; i++) {
        size_t rows = a->K ? (size_t)a->entry[i].rows : d;
        int layer = a->entry[i].layer - a->o.first_layer;
        if (i && a->entry[i - 1].layer == a->entry[i].layer)
            continue;
        t->at[layer] = squares;
        squares += rows * rows;
        widest = rows > widest ? rows : widest;
    }
    t->inverse = es_calloc(squares, sizeof *t->inverse);
    t->swap = es_calloc(d > widest ? d : widest, (size_t)a->o.rank * sizeof *t->swap);
    t->bytes = ((size_t)layers * d * d + squares + (d > widest ? d : widest) * (size_t)a->o.rank) * sizeof(float);
    float *scratch = es_calloc(widest, (d + widest) * sizeof *scratch);
    double *square = es_calloc(widest + 1, widest * sizeof *square);
    int rc = t->fisher && t->at && t->size && t->inverse && t->swap && scratch && square ? take_fisher(l, x, layers, err)
                                                                                          : es_fail(err, ES_ERR_MEMORY, "no memory for the metric of neutral text");
    for (int i = 0; !rc && i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        if (i && a->entry[i - 1].layer == e->layer)
            continue;
        if (!invert_layer(l, e->layer - a->o.first_layer, a->K ? es_adapter_rows(a, e->first) : NULL, a->K ? e->rows : a->d, scratch, square, square + widest * widest))
            rc = es_fail(err, ES_ERR_USAGE, "learner: the metric of this basis is singular in layer %d; raise its lambda", e->layer);
    }
    free(scratch);
    free(square);
    if (rc)
        es_natural_free(t);
    return rc;
}
