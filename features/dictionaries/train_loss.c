#include "train_loss.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct work {
    const es_sae_problem *p;
    const es_sae_numbers *w, *f, *g; /* f: frozen */
    size_t d, F, B;
    double *z, *z0;        /* [B, F] of w, of f */
    uint8_t *open;         /* [B, F] kept, or past its gate */
    double *value;         /* [B, F] activations */
    double *dvalue;        /* [B, F] dL/dvalue */
    double *dz, *dgate;    /* [B, F] dL/d((x - b_dec) enc), and of it what goes to b_enc */
    double *e;             /* [d] */
    double loss;
} work;

static double dot(const double *a, const double *b, size_t n)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += a[i] * b[i];
    return s;
}

static void axpy(double *y, double a, const double *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

static void encode(const work *k, const es_sae_numbers *w, double *z)
{
    for (size_t t = 0; t < k->B; t++)
        for (size_t j = 0; j < k->F; j++) {
            double s = w->b_enc[j];
            for (size_t i = 0; i < k->d; i++)
                s += (k->p->x[t * k->d + i] - w->b_dec[i]) * w->enc[j * k->d + i];
            z[t * k->F + j] = s;
        }
}

static int falling(const void *pa, const void *pb)
{
    double a = *(const double *)pa, b = *(const double *)pb;
    return (a < b) - (a > b);
}

/* Marks the k largest of z[n] that are above 0 and that `of` (n_of in a row, repeated) names; of may be NULL. scratch [n]. */
static void mark_largest(const double *z, size_t n, size_t k, const bool *of, size_t n_of, uint8_t *mark, double *scratch)
{
    size_t m = 0;
    for (size_t i = 0; i < n; i++)
        if (z[i] > 0 && (!of || of[i % n_of]))
            scratch[m++] = z[i];
    qsort(scratch, m, sizeof *scratch, falling);
    double least = m > k ? scratch[k - 1] : 0;
    size_t left = m < k ? m : k;
    for (size_t i = 0; i < n && k > 0; i++) {
        mark[i] = left && z[i] > 0 && z[i] >= least && (!of || of[i % n_of]);
        left -= mark[i];
    }
}

static double smooth_step(double u) /* the integral of K */
{
    return fmin(1, fmax(0, u + 0.5));
}

static void activate(work *k)
{
    const es_sae_problem *p = k->p;
    size_t n = k->B * k->F;
    if (p->recipe == ES_TRAIN_BATCHTOPK || p->recipe == ES_TRAIN_MATRYOSHKA)
        mark_largest(k->z0, n, (size_t)p->k * k->B, NULL, 1, k->open, k->dz);
    else if (p->recipe == ES_TRAIN_TOPK)
        for (size_t t = 0; t < k->B; t++)
            mark_largest(k->z0 + t * k->F, k->F, (size_t)p->k, NULL, 1, k->open + t * k->F, k->dz);
    for (size_t i = 0; i < n; i++) {
        size_t j = i % k->F;
        double z = k->z[i], z0 = k->z0[i];
        switch (p->recipe) {
        case ES_TRAIN_JUMPRELU: {
            double theta0 = k->f->theta[j];
            k->open[i] = z0 > theta0;
            k->value[i] = (k->open[i] ? z : 0) + theta0 * (smooth_step((z0 - k->w->theta[j]) / p->bandwidth) - smooth_step((z0 - theta0) / p->bandwidth));
            break;
        }
        case ES_TRAIN_GATED:
            k->open[i] = z0 > 0;
            k->value[i] = k->open[i] ? fmax(0, exp(k->w->r_mag[j]) * (z - k->w->b_enc[j]) + k->w->b_mag[j]) : 0;
            break;
        case ES_TRAIN_STANDARD:
            k->open[i] = z0 > 0;
            k->value[i] = k->open[i] ? z : 0;
            break;
        default:
            k->value[i] = k->open[i] ? z : 0;
        }
    }
}

/* 1/B |x - xhat|^2 where the first n features reconstruct. */
static void reconstruct(work *k, size_t n)
{
    double share = 1 / (double)k->B;
    for (size_t t = 0; t < k->B; t++) {
        for (size_t i = 0; i < k->d; i++)
            k->e[i] = k->p->x[t * k->d + i] - k->w->b_dec[i];
        for (size_t j = 0; j < n; j++)
            axpy(k->e, -k->value[t * k->F + j], k->w->dec + j * k->d, k->d);
        k->loss += share * dot(k->e, k->e, k->d);
        if (!k->g)
            continue;
        axpy(k->g->b_dec, -2 * share, k->e, k->d);
        for (size_t j = 0; j < n; j++) {
            k->dvalue[t * k->F + j] -= 2 * share * dot(k->e, k->w->dec + j * k->d, k->d);
            axpy(k->g->dec + j * k->d, -2 * share * k->value[t * k->F + j], k->e, k->d);
        }
    }
}

static void penalise(work *k)
{
    const es_sae_problem *p = k->p;
    double share = 1 / (double)k->B;
    for (size_t i = 0; i < k->B * k->F && p->recipe == ES_TRAIN_JUMPRELU; i++) {
        size_t j = i % k->F;
        double theta0 = k->f->theta[j];
        k->loss += p->sparsity * share
                   * (k->open[i] + smooth_step((k->z0[i] - k->w->theta[j]) / p->bandwidth) - smooth_step((k->z0[i] - theta0) / p->bandwidth));
        if (k->g && fabs((k->z0[i] - k->w->theta[j]) / p->bandwidth) < 0.5)
            k->g->theta[j] -= (p->sparsity * share + theta0 * k->dvalue[i]) / p->bandwidth;
    }
    for (size_t i = 0; i < k->B * k->F && p->recipe == ES_TRAIN_STANDARD; i++) {
        const double *row = k->w->dec + i % k->F * k->d;
        double norm = sqrt(dot(row, row, k->d));
        k->loss += p->sparsity * share * k->value[i] * norm;
        if (!k->g)
            continue;
        if (k->open[i])
            k->dvalue[i] += p->sparsity * share * norm;
        axpy(k->g->dec + i % k->F * k->d, p->sparsity * share * k->value[i] / norm, row, k->d);
    }
    for (size_t t = 0; t < k->B && p->recipe == ES_TRAIN_GATED; t++) {
        for (size_t i = 0; i < k->d; i++)
            k->e[i] = p->x[t * k->d + i] - k->f->b_dec[i];
        for (size_t j = 0; j < k->F; j++)
            if (k->open[t * k->F + j]) {
                axpy(k->e, -k->z[t * k->F + j], k->f->dec + j * k->d, k->d);
                k->loss += p->sparsity * share * k->z[t * k->F + j];
            }
        k->loss += share * dot(k->e, k->e, k->d);
        for (size_t j = 0; j < k->F && k->g; j++)
            if (k->open[t * k->F + j])
                k->dgate[t * k->F + j] += share * (p->sparsity - 2 * dot(k->e, k->f->dec + j * k->d, k->d));
    }
}

/* dL/dvalue to dL/dz and what the gate and the magnitudes have of their own. */
static void through_activation(work *k)
{
    const es_sae_problem *p = k->p;
    for (size_t i = 0; i < k->B * k->F; i++) {
        size_t j = i % k->F;
        if (p->recipe == ES_TRAIN_GATED) {
            k->dz[i] = k->dgate[i];
            if (k->value[i] <= 0)
                continue;
            double scale = exp(k->w->r_mag[j]);
            k->dz[i] += scale * k->dvalue[i];
            k->g->b_mag[j] += k->dvalue[i];
            k->g->r_mag[j] += k->dvalue[i] * scale * (k->z[i] - k->w->b_enc[j]);
        } else {
            k->dz[i] = k->dgate[i] = k->open[i] ? k->dvalue[i] : 0;
        }
    }
}

/* The dead features' part; adds to dz and dgate, so comes after through_activation. */
static int auxiliary(work *k, es_error *err)
{
    const es_sae_problem *p = k->p;
    if (!p->dead || p->aux_k < 1)
        return ES_OK;
    uint8_t *mark = es_calloc(k->F, sizeof *mark);
    double *scratch = es_calloc(k->F + k->d, sizeof *scratch), *error0 = scratch + k->F, share = p->aux_weight / p->aux_tokens;
    work at0 = *k; /* the frozen reconstruction */
    at0.w = k->f;
    at0.z = k->z0;
    at0.value = es_calloc(k->B * k->F, sizeof *at0.value);
    at0.dz = k->dvalue; /* scratch: its numbers have gone into dz */
    int rc = mark && scratch && at0.value ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory");
    if (!rc)
        activate(&at0);
    for (size_t t = 0; t < (size_t)p->aux_tokens && !rc; t++) {
        const double *z = k->z + t * k->F;
        for (size_t i = 0; i < k->d; i++)
            error0[i] = p->x[t * k->d + i] - k->f->b_dec[i];
        for (size_t j = 0; j < k->F; j++)
            axpy(error0, -at0.value[t * k->F + j], k->f->dec + j * k->d, k->d);
        memcpy(k->e, error0, k->d * sizeof *k->e);
        mark_largest(k->z0 + t * k->F, k->F, (size_t)p->aux_k, p->dead, k->F, mark, scratch);
        for (size_t j = 0; j < k->F; j++)
            if (mark[j])
                axpy(k->e, -z[j], k->w->dec + j * k->d, k->d);
        k->loss += share * dot(k->e, k->e, k->d);
        for (size_t j = 0; j < k->F && k->g; j++)
            if (mark[j]) {
                double g = -2 * share * dot(k->e, k->w->dec + j * k->d, k->d);
                k->dz[t * k->F + j] += g;
                k->dgate[t * k->F + j] += g;
                axpy(k->g->dec + j * k->d, -2 * share * z[j], k->e, k->d);
            }
    }
    free(mark);
    free(scratch);
    free(at0.value);
    return rc;
}

static void through_encoder(work *k)
{
    for (size_t t = 0; t < k->B; t++)
        for (size_t j = 0; j < k->F; j++) {
            double g = k->dz[t * k->F + j];
            k->g->b_enc[j] += k->dgate[t * k->F + j];
            for (size_t i = 0; i < k->d && g != 0; i++) {
                k->g->enc[j * k->d + i] += g * (k->p->x[t * k->d + i] - k->w->b_dec[i]);
                k->g->b_dec[i] -= g * k->w->enc[j * k->d + i];
            }
        }
}

static void clear(const es_sae_problem *p, const es_sae_numbers *g)
{
    size_t F = (size_t)p->F, d = (size_t)p->d;
    memset(g->enc, 0, F * d * sizeof(double));
    memset(g->dec, 0, F * d * sizeof(double));
    memset(g->b_enc, 0, F * sizeof(double));
    memset(g->b_dec, 0, d * sizeof(double));
    if (p->recipe == ES_TRAIN_JUMPRELU)
        memset(g->theta, 0, F * sizeof(double));
    if (p->recipe == ES_TRAIN_GATED) {
        memset(g->r_mag, 0, F * sizeof(double));
        memset(g->b_mag, 0, F * sizeof(double));
    }
}

int es_sae_loss(const es_sae_problem *p, const es_sae_numbers *w, const es_sae_numbers *frozen, double *loss, const es_sae_numbers *grad, es_error *err)
{
    work k = {.p = p, .w = w, .f = frozen ? frozen : w, .g = grad, .d = (size_t)p->d, .F = (size_t)p->F, .B = (size_t)p->B};
    size_t n = k.B * k.F;
    double **all[] = {&k.z, &k.z0, &k.value, &k.dvalue, &k.dz, &k.dgate};
    bool ok = (k.open = es_calloc(n, 1)) && (k.e = es_calloc(k.d, sizeof *k.e));
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        ok = (*all[i] = es_calloc(n, sizeof(double))) && ok;
    int rc = ok ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory");
    if (!rc) {
        if (grad)
            clear(p, grad);
        encode(&k, w, k.z);
        encode(&k, k.f, k.z0);
        activate(&k);
        for (int i = 0; i < (p->recipe == ES_TRAIN_MATRYOSHKA ? p->n_prefix : 1); i++)
            reconstruct(&k, p->recipe == ES_TRAIN_MATRYOSHKA ? (size_t)p->prefix[i] : k.F);
        penalise(&k);
        if (grad)
            through_activation(&k);
        rc = auxiliary(&k, err);
        if (grad)
            through_encoder(&k);
        *loss = k.loss;
    }
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(*all[i]);
    free(k.open);
    free(k.e);
    return rc;
}
