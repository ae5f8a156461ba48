#include "titans.h"

#include "vector.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void carve(es_titans *t)
{
    size_t d = (size_t)t->d;
    t->m = es_arena_take(&t->arena, d * d, sizeof(float));
    t->s = es_arena_take(&t->arena, d * d, sizeof(float));
    t->mu = es_arena_take(&t->arena, d, sizeof(float));
    t->scale = es_arena_take(&t->arena, d, sizeof(float));
    t->q = es_arena_take(&t->arena, d, sizeof(float));
    t->y = es_arena_take(&t->arena, d, sizeof(float));
    t->t = es_arena_take(&t->arena, d, sizeof(float));
}

static int make(es_titans **out, int d, const es_titans_options *o, es_error *err)
{
    *out = NULL;
    es_titans *t = es_calloc(1, sizeof *t);
    if (!t)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a memory module");
    t->o = *o;
    t->o.theta = fmin(fmax(o->theta, 0), 0.5);
    t->d = d;
    carve(t);
    size_t size = t->arena.used;
    t->arena = (es_arena){0};
    int rc = es_arena_open(&t->arena, size, err);
    if (rc) {
        free(t);
        return rc;
    }
    carve(t);
    t->hook = (es_hook){.layer = o->layer, .forward = es_titans_forward, .backward = es_titans_backward, .user = t};
    *out = t;
    return ES_OK;
}

int es_titans_new(es_titans **out, int d, const es_titans_options *o, const float *neutral, int n, es_error *err)
{
    if (n < 2)
        return es_fail(err, ES_ERR_USAGE, "the memory's keys need at least two neutral tokens");
    int rc = make(out, d, o, err);
    if (rc)
        return rc;
    es_titans *t = *out;
    double square = 0;
    for (int i = 0; i < d; i++) {
        double sum = 0, sum2 = 0;
        for (int r = 0; r < n; r++) {
            double x = neutral[(size_t)r * (size_t)d + (size_t)i];
            sum += x;
            sum2 += x * x;
        }
        double mean = sum / n, variance = sum2 / n - mean * mean;
        t->mu[i] = (float)mean;
        t->scale[i] = (float)(1 / sqrt(fmax(variance, 1e-12)));
        square += sum2 / n;
    }
    t->rms = (float)sqrt(square);
    return ES_OK;
}

int es_titans_copy(es_titans **out, const es_titans *t, es_error *err)
{
    int rc = make(out, t->d, &t->o, err);
    if (rc)
        return rc;
    memcpy((*out)->arena.base, t->arena.base, t->arena.size);
    (*out)->rms = t->rms;
    (*out)->writes = t->writes;
    return ES_OK;
}

void es_titans_free(es_titans *t)
{
    if (t)
        es_arena_close(&t->arena);
    free(t);
}

/* Returns the length before it was made 1. */
static float key(const es_titans *t, const float *h, float *k)
{
    size_t d = (size_t)t->d;
    for (size_t i = 0; i < d; i++)
        k[i] = (h[i] - t->mu[i]) * t->scale[i];
    float norm = fmaxf(sqrtf(es_vector()->dot(k, k, d)), 1e-12f);
    for (size_t i = 0; i < d; i++)
        k[i] /= norm;
    return norm;
}

void es_titans_key(const es_titans *t, const float *h, float *k)
{
    key(t, h, k);
}

void es_titans_read(const es_titans *t, const float *k, float *y)
{
    size_t d = (size_t)t->d;
    for (size_t i = 0; i < d; i++)
        y[i] = es_vector()->dot(t->m + i * d, k, d);
}

double es_titans_write(es_titans *t, const float *k, const float *v, int n)
{
    size_t d = (size_t)t->d;
    double loss = 0;
    for (size_t i = 0; i < d * d; i++)
        t->s[i] *= (float)t->o.eta;
    for (size_t r = 0; r < (size_t)n; r++) {
        es_titans_read(t, k + r * d, t->y); /* M stays until the chunk has been read */
        for (size_t i = 0; i < d; i++) {
            float off = t->y[i] - v[r * d + i];
            loss += (double)off * off / n;
            if (off != 0)
                es_vector()->axpy(t->s + i * d, (float)(-2 * t->o.theta * off / n), k + r * d, d);
        }
    }
    for (size_t i = 0; i < d * d; i++)
        t->m[i] = (float)(1 - t->o.alpha) * t->m[i] + t->s[i];
    t->writes++;
    return loss;
}

void es_titans_forward(void *titans, float *h, const int *pos, int T, int d)
{
    es_titans *t = titans;
    for (int r = 0; r < T; r++)
        if (pos[r] > 0) {
            float *row = h + (size_t)r * (size_t)d;
            key(t, row, t->q);
            es_titans_read(t, t->q, t->y);
            es_vector()->axpy(row, (float)t->o.gate * t->rms, t->y, (size_t)d);
        }
}

/* With x = (h - mu) / sd, q = x / |x| and a = gate rms M' dh: dh += (a - q (q . a)) / |x| / sd. */
void es_titans_backward(void *titans, const float *h_in, float *dh, const int *pos, int T, int d)
{
    es_titans *t = titans;
    size_t n = (size_t)d;
    for (int r = 0; r < T; r++) {
        if (pos[r] == 0)
            continue;
        float *row = dh + (size_t)r * n, norm = key(t, h_in + (size_t)r * n, t->q), *a = t->t;
        memset(a, 0, n * sizeof *a);
        for (size_t i = 0; i < n; i++)
            if (row[i] != 0)
                es_vector()->axpy(a, (float)t->o.gate * t->rms * row[i], t->m + i * n, n);
        float along = es_vector()->dot(t->q, a, n);
        for (size_t i = 0; i < n; i++)
            row[i] += (a[i] - t->q[i] * along) / norm * t->scale[i];
    }
}
