/* learner: the prior: directions learned beforehand, along which a step is readier to go.
 *
 * In coordinates where the metric is the identity a gradient step of experiences with noise of variance s^2 in every direction, when the
 * answer is thought to lie along u with variance w s^2 more than along anything else, is (I + w u u^T) g: the mean of the posterior to first
 * order. Directions may overlap: the sum over them is a projection, w U (U^T U)^-1 U^T, as for overlapping features. */
#include "learner_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void shrink_rows(es_learner *l, float *x)
{
    const es_adapter *a = l->a;
    size_t rank = (size_t)a->o.rank;
    for (int i = 0; i < a->n_entry; i++)
        for (size_t c = 0; c < (size_t)a->entry[i].rows; c++)
            for (size_t r = 0; r < rank; r++)
                x[a->entry[i].b + c * rank + r] *= l->keep[(size_t)a->entry[i].first + c];
}

void es_learner_precondition(es_learner *l, const float *in, float *out, double *length)
{
    es_prior *p = &l->prior;
    size_t n = l->a->n_learned;
    double pull = 0;
    for (int i = 0; i < p->n; i++)
        p->u[i] = p->v[i] = es_learner_dot(p->unit + (size_t)i * n, in, n);
    if (p->n)
        es_linear_solve(p->gram, p->n, p->u);
    for (int i = 0; i < p->n; i++)
        pull += p->u[i] * p->v[i];
    es_learner_inverse_metric(l, in, out);
    double square = length ? es_learner_dot(in, out, n) : 0;
    if (l->keep)
        shrink_rows(l, out);
    for (int i = 0; i < p->n; i++) {
        const float *unit = p->unit + (size_t)i * n, by = (float)(p->weight * p->u[i] * (double)(p->keep ? p->keep[i] : 1));
        for (size_t j = 0; j < n; j++)
            out[j] += by * unit[j];
    }
    if (length) /* |G^-1 g + w U (..)^-1 U^T g|^2 = g G^-1 g + (2 w + w^2) (U^T g) (..)^-1 (U^T g) */
        *length = sqrt(fmax(square + (2 * p->weight + p->weight * p->weight) * pull, 0));
}

/* ---- neutral text is spared ----------------------------------------------------------------------------------------------- */

void es_learner_shield_open(es_learner *l)
{
    size_t n = l->a->n_learned;
    for (int i = 0; i < 2; i++)
        es_learner_inverse_metric(l, l->shield[i], l->shield_step[i]);
    l->shield_gram[0] = es_learner_dot(l->shield[0], l->shield_step[0], n);
    l->shield_gram[1] = es_learner_dot(l->shield[0], l->shield_step[1], n);
    l->shield_gram[2] = es_learner_dot(l->shield[1], l->shield_step[1], n);
}

void es_learner_shield(es_learner *l, float *x, bool decide)
{
    size_t n = l->a->n_learned;
    if (!l->shield[1])
        return;
    /* the loss of kind i changes by -<shield_i, x> */
    double u = es_learner_dot(l->shield[0], x, n), v = es_learner_dot(l->shield[1], x, n), *g = l->shield_gram, c[2] = {0};
    if (decide)
        l->shield_on = (u < 0 ? 1 : 0) | (v < 0 ? 2 : 0);
    if (l->shield_on == 3 && g[0] * g[2] - g[1] * g[1] > 1e-6 * g[0] * g[2]) {
        double det = g[0] * g[2] - g[1] * g[1];
        c[0] = (g[2] * u - g[1] * v) / det;
        c[1] = (g[0] * v - g[1] * u) / det;
    } else if (l->shield_on & 1 && g[0] > 0)
        c[0] = u / g[0];
    else if (l->shield_on & 2 && g[2] > 0)
        c[1] = v / g[2];
    for (int i = 0; i < 2; i++)
        for (size_t j = 0; c[i] != 0 && j < n; j++)
            x[j] -= (float)c[i] * l->shield_step[i][j];
}

/* ---- the prior ------------------------------------------------------------------------------------------------------------- */

void es_prior_free(es_prior *p)
{
    free(p->name);
    free(p->unit);
    free(p->dual);
    free(p->gram);
    free(p->keep);
    *p = (es_prior){0};
}

static bool same_sites(const es_adapter *a, const es_adapter *b)
{
    return a->o.form == b->o.form && a->o.fixed_inputs && b->o.fixed_inputs && a->o.rank == b->o.rank && a->n_entry == b->n_entry &&
           a->o.first_layer == b->o.first_layer && a->d == b->d && a->n_param - a->n_learned == b->n_param - b->n_learned;
}

/* The same directions at the same matrices. */
static bool same_basis(const es_adapter *a, const es_adapter *b)
{
    bool same = a->o.constrained == b->o.constrained && a->K == b->K && (!a->K || !memcmp(a->D, b->D, (size_t)a->K * (size_t)a->d * sizeof *a->D));
    for (int i = 0; same && i < a->n_entry; i++)
        same = a->entry[i].first == b->entry[i].first && a->entry[i].rows == b->entry[i].rows;
    return same;
}

/* What b has learned in the parameters of l's adapter: as it is within the same basis, else the nearest that this basis can do,
 * (D F D^T + lambda I)^-1 D F B. */
static void translate(es_learner *l, const es_adapter *b, float *out)
{
    es_adapter *a = l->a;
    size_t each = (size_t)a->d * (size_t)a->o.rank;
    if (same_basis(a, b)) {
        memcpy(out, b->param, a->n_learned * sizeof *out);
        return;
    }
    for (int i = 0; i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        if (a->o.constrained)
            es_learner_metric_rows(l, e, b->entry[i].full, out + e->b);
        else
            memcpy(out + e->b, b->entry[i].full, each * sizeof *out);
    }
    if (a->o.constrained)
        es_learner_inverse_metric(l, out, out);
}

static int take_direction(es_learner *l, int i, const es_direction *from, es_error *err)
{
    es_prior *p = &l->prior;
    const es_adapter *b = from->adapter;
    size_t n = l->a->n_learned, n_a = l->a->n_param - n;
    float *unit = p->unit + (size_t)i * n, *dual = p->dual + (size_t)i * n;
    snprintf(p->name[i], sizeof p->name[i], "%s", from->name);
    if (!same_sites(l->a, b))
        return es_fail(err, ES_ERR_MISMATCH, "direction %s was learned at another rank, in another band, or without fixed inputs", from->name);
    if (i && memcmp(b->param + b->n_learned, l->a->param + n, n_a * sizeof *b->param))
        return es_fail(err, ES_ERR_MISMATCH, "directions %s and %s have other fixed inputs: learn them from the same ones", p->name[0], from->name);
    if (!i)
        memcpy(l->a->param + n, b->param + b->n_learned, n_a * sizeof *b->param);
    translate(l, b, unit);
    int rc = es_learner_metric(l, unit, dual, err);
    double square = rc ? 0 : es_learner_dot(unit, dual, n);
    if (!rc && !(square > 0 && isfinite(square)))
        rc = es_fail(err, ES_ERR_USAGE, "direction %s has learned nothing", from->name);
    for (size_t j = 0; !rc && j < n; j++) {
        unit[j] = (float)(unit[j] / sqrt(square));
        dual[j] = (float)(dual[j] / sqrt(square));
    }
    return rc;
}

int es_learner_prior(es_learner *l, const es_direction *direction, int n, double weight, bool one_sided, es_error *err)
{
    es_adapter *a = l->a;
    es_prior *p = &l->prior;
    size_t len = a->n_learned;
    if (es_learner_is_adam(l) || a->o.form != ES_FORM_LORA || !a->o.fixed_inputs || l->n || a->steps || p->n)
        return es_fail(err, ES_ERR_USAGE, "learner: directions are for the metric step of form lora with fixed inputs, before anything was learned");
    if (n < 1 || n > 1024 || !(weight > 0) || !isfinite(weight))
        return es_fail(err, ES_ERR_USAGE, "learner: %d directions of weight %g cannot be", n, weight);
    float *inputs = es_calloc(a->n_param - len, sizeof *inputs);
    *p = (es_prior){.n = n, .weight = weight, .one_sided = one_sided};
    p->name = es_calloc((size_t)n, sizeof *p->name);
    p->unit = es_calloc((size_t)n, len * sizeof *p->unit);
    p->dual = es_calloc((size_t)n, len * sizeof *p->dual);
    p->gram = es_calloc((size_t)n * (size_t)n + 2 * (size_t)n, sizeof *p->gram);
    p->keep = l->o.shrink ? es_calloc((size_t)n, sizeof *p->keep) : NULL;
    int rc = inputs && p->name && p->unit && p->dual && p->gram && (p->keep || !l->o.shrink) ? ES_OK
                                                                                             : es_fail(err, ES_ERR_MEMORY, "no memory for %d directions", n);
    if (!rc) {
        p->u = p->gram + (size_t)n * (size_t)n;
        p->v = p->u + n;
        memcpy(inputs, a->param + len, (a->n_param - len) * sizeof *inputs);
    }
    for (int i = 0; !rc && i < n; i++)
        rc = take_direction(l, i, &direction[i], err);
    for (int i = 0; !rc && i < n; i++)
        for (int j = 0; j < n; j++)
            p->gram[i * n + j] = es_learner_dot(p->unit + (size_t)i * len, p->dual + (size_t)j * len, len);
    if (!rc && !es_linear_cholesky(p->gram, n, 1e-5))
        rc = es_fail(err, ES_ERR_LIMIT, "learner: the directions' products are not numbers");
    if (rc) {
        if (inputs)
            memcpy(a->param + len, inputs, (a->n_param - len) * sizeof *inputs);
        es_prior_free(p);
    } else
        es_adapter_refresh(a);
    free(inputs);
    return rc;
}

int es_learner_directions(const es_learner *l)
{
    return l->prior.n;
}

const char *es_learner_direction(const es_learner *l, int i)
{
    return l->prior.name[i];
}

void es_prior_read(es_learner *l, const float *param, double *out)
{
    const es_prior *p = &l->prior;
    for (int i = 0; i < p->n; i++)
        out[i] = es_learner_dot(p->dual + (size_t)i * l->a->n_learned, param, l->a->n_learned);
    if (p->n)
        es_linear_solve(p->gram, p->n, out);
}

void es_learner_amplitudes(es_learner *l, double *out)
{
    es_prior_read(l, l->a->param, out);
    for (int i = 0; i < l->prior.n; i++)
        out[i] = l->median[0] > 0 ? out[i] / l->median[0] : 0;
}

void es_prior_clamp(es_learner *l, const float *from, float *delta)
{
    es_prior *p = &l->prior;
    size_t n = l->a->n_learned;
    if (!p->n || !p->one_sided)
        return;
    es_prior_read(l, from, p->u);
    es_prior_read(l, delta, p->v);
    for (int i = 0; i < p->n; i++) {
        double to = p->u[i] + p->v[i], floor = p->u[i] < 0 ? p->u[i] : 0;
        if (to >= floor)
            continue;
        const float *unit = p->unit + (size_t)i * n, by = (float)(floor - to);
        for (size_t j = 0; j < n; j++)
            delta[j] += by * unit[j];
    }
}
