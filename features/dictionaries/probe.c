/* Logistic probes, on residuals and on few features. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quality.h"
#include "vector.h"

enum { NEWTON = 60, CONJUGATE = 250 };

typedef struct fit { /* rows are standardised and end with a 1: the bias is the last of d + 1 weights */
    const uint8_t *y;
    size_t n, d1;
    float *z;         /* [n, d1] */
    float *h;         /* [n] curvature of each row's loss */
    float c[2];       /* weight of a row of either class, over n */
    double ridge;
    float *w, *g, *step, *r, *dir, *hv, *trial; /* [d1] */
} fit;

static int standardise(fit *f, const float *x, size_t d, float *mean, float *scale)
{
    for (size_t j = 0; j < d; j++) {
        double sum = 0, square = 0;
        for (size_t i = 0; i < f->n; i++)
            sum += (double)x[i * d + j];
        double mu = sum / (double)f->n;
        for (size_t i = 0; i < f->n; i++)
            square += ((double)x[i * d + j] - mu) * ((double)x[i * d + j] - mu);
        double sd = sqrt(square / (double)f->n);
        mean[j] = (float)mu;
        scale[j] = sd > 0 ? (float)(1 / sd) : 0; /* what never varies tells nothing */
        if (!isfinite(mean[j]) || !isfinite(scale[j]))
            return -1;
    }
    for (size_t i = 0; i < f->n; i++) {
        for (size_t j = 0; j < d; j++)
            f->z[i * f->d1 + j] = (x[i * d + j] - mean[j]) * scale[j];
        f->z[i * f->d1 + d] = 1;
    }
    return 0;
}

/* The loss at w; with g its gradient, and h the curvatures. */
static double loss_at(fit *f, const float *w, float *g)
{
    const es_vector_ops *ops = es_vector();
    double loss = 0;
    if (g)
        memset(g, 0, f->d1 * sizeof *g);
    for (size_t i = 0; i < f->n; i++) {
        const float *z = f->z + i * f->d1;
        double c = (double)f->c[f->y[i]], m = (f->y[i] ? 1.0 : -1.0) * (double)ops->dot(z, w, f->d1);
        double wrong = m > 0 ? exp(-m) / (1 + exp(-m)) : 1 / (1 + exp(m));
        loss += c * (m > 0 ? log1p(exp(-m)) : -m + log1p(exp(m)));
        if (g) {
            ops->axpy(g, (float)(f->y[i] ? -c * wrong : c * wrong), z, f->d1);
            f->h[i] = (float)(c * wrong * (1 - wrong));
        }
    }
    for (size_t j = 0; j + 1 < f->d1; j++) {
        loss += f->ridge / 2 * (double)w[j] * (double)w[j];
        if (g)
            g[j] += (float)(f->ridge * (double)w[j]);
    }
    return loss;
}

static double dot(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

/* hv = (the loss's second derivative at w) v */
static void curvature(fit *f, const float *v)
{
    const es_vector_ops *ops = es_vector();
    memset(f->hv, 0, f->d1 * sizeof *f->hv);
    for (size_t i = 0; i < f->n; i++) {
        const float *z = f->z + i * f->d1;
        ops->axpy(f->hv, f->h[i] * ops->dot(z, v, f->d1), z, f->d1);
    }
    for (size_t j = 0; j + 1 < f->d1; j++)
        f->hv[j] += (float)(f->ridge * (double)v[j]);
    f->hv[f->d1 - 1] += 1e-12f * v[f->d1 - 1];
}

/* step = - H^-1 g, by conjugate gradients, as exactly as the gradient is small. */
static void newton_step(fit *f)
{
    size_t n = f->d1;
    memset(f->step, 0, n * sizeof *f->step);
    for (size_t j = 0; j < n; j++)
        f->r[j] = f->dir[j] = -f->g[j];
    double rr = dot(f->r, f->r, n), enough = rr * fmin(0.01, sqrt(rr));
    for (int i = 0; i < CONJUGATE && rr > enough * 1e-2; i++) {
        curvature(f, f->dir);
        double dh = dot(f->dir, f->hv, n);
        if (!(dh > 0))
            return;
        double a = rr / dh;
        for (size_t j = 0; j < n; j++) {
            f->step[j] += (float)(a * (double)f->dir[j]);
            f->r[j] -= (float)(a * (double)f->hv[j]);
        }
        double next = dot(f->r, f->r, n);
        for (size_t j = 0; j < n; j++)
            f->dir[j] = f->r[j] + (float)(next / rr) * f->dir[j];
        rr = next;
    }
}

static void descend(fit *f)
{
    double loss = loss_at(f, f->w, f->g), first = sqrt(dot(f->g, f->g, f->d1));
    for (int i = 0; i < NEWTON && sqrt(dot(f->g, f->g, f->d1)) > 1e-6 * (first + 1e-3); i++) {
        newton_step(f);
        double slope = dot(f->g, f->step, f->d1), t = 1, next = loss;
        for (int half = 0; half < 30; half++, t /= 2) {
            for (size_t j = 0; j < f->d1; j++)
                f->trial[j] = f->w[j] + (float)t * f->step[j];
            next = loss_at(f, f->trial, NULL);
            if (next <= loss + 1e-4 * t * slope)
                break;
        }
        if (!(next < loss))
            return; /* as low as rounding lets it go */
        memcpy(f->w, f->trial, f->d1 * sizeof *f->w);
        loss = loss_at(f, f->w, f->g);
    }
}

int es_probe_fit(const float *x, const uint8_t *y, size_t n, size_t d, float *w, float *bias, es_error *err)
{
    fit f = {.y = y, .n = n, .d1 = d + 1};
    size_t of[2] = {0};
    es_arena arena = {0};
    for (size_t i = 0; i < n; i++)
        of[y[i] != 0]++;
    if (!of[0] || !of[1])
        return es_fail(err, ES_ERR_USAGE, "a probe needs rows of both classes; %zu and %zu were given", of[0], of[1]);
    size_t cells;
    if (!es_mul(n, f.d1, &cells) || cells > (size_t)1 << 33)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a probe on %zu rows of width %zu", n, d);
    int rc = es_arena_open(&arena, (cells + n + 9 * f.d1) * sizeof(float) + 16 * 64, err);
    if (rc)
        return rc;
    f.z = es_arena_take(&arena, cells, sizeof(float));
    f.h = es_arena_take(&arena, n, sizeof(float));
    float **vector[] = {&f.w, &f.g, &f.step, &f.r, &f.dir, &f.hv, &f.trial}, *mean = es_arena_take(&arena, f.d1, sizeof(float)),
          *scale = es_arena_take(&arena, f.d1, sizeof(float));
    for (size_t i = 0; i < sizeof vector / sizeof *vector; i++)
        *vector[i] = es_arena_take(&arena, f.d1, sizeof(float));
    f.ridge = 1 / (double)n;
    for (int k = 0; k < 2; k++)
        f.c[k] = (float)(0.5 / (double)of[k]);
    if (standardise(&f, x, d, mean, scale)) {
        rc = es_fail(err, ES_ERR_FORMAT, "a row for a probe holds a value that is not a number or infinite");
    } else {
        descend(&f);
        double b = (double)f.w[d];
        for (size_t j = 0; j < d; j++) {
            w[j] = f.w[j] * scale[j];
            b -= (double)w[j] * (double)mean[j];
        }
        *bias = (float)b;
    }
    es_arena_close(&arena);
    return rc;
}

double es_probe_value(const float *x, const float *w, float bias, size_t d)
{
    return dot(x, w, d) + (double)bias;
}

/* ---- on few features ---------------------------------------------------------------------------------------------------------------- */

int es_probe_choose(const es_sparse *rows, const int *row, const uint8_t *y, int n, int F, int k, int *feature, es_error *err)
{
    double *difference = es_calloc((size_t)F, sizeof *difference), of[2] = {0};
    int taken = 0;
    if (!difference)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to compare %d features", F);
    for (int i = 0; i < n; i++)
        of[y[i] != 0]++;
    for (int i = 0; i < n; i++)
        for (size_t a = rows->start[row[i]]; a < rows->start[row[i] + 1]; a++)
            difference[rows->index[a]] += (double)rows->value[a] / (y[i] ? of[1] : -of[0]);
    for (; taken < k; taken++) {
        int best = -1;
        for (int j = 0; j < F; j++)
            if (difference[j] != 0 && (best < 0 || fabs(difference[j]) > fabs(difference[best])))
                best = j;
        if (best < 0)
            break;
        feature[taken] = best;
        difference[best] = 0;
    }
    free(difference);
    return taken;
}

void es_probe_gather(const es_sparse *rows, const int *row, int n, const int *feature, int k, float *out)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < k; j++) {
            float v = 0;
            for (size_t a = rows->start[row[i]]; a < rows->start[row[i] + 1]; a++)
                if (rows->index[a] == feature[j])
                    v = rows->value[a];
            out[(size_t)i * (size_t)k + (size_t)j] = v;
        }
}
