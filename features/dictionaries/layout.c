/* The layout itself: from neighbours to points. neighbours.c finds them, layout_file.c keeps the result. */
#include "layout.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "vector.h"

enum { NEGATIVES = 5, PCA_ROUNDS = 12, SMALL = 10000 };
static const float kernel_a = 1.577f, clip = 4, spread = 10;

es_layout_options es_layout_default(void)
{
    return (es_layout_options){.neighbours = 15, .seed = 1};
}

/* ---- weights --------------------------------------------------------------------------------------------------------------- */

/* UMAP's smooth distances of one row: the nearest weighs 1, and all together log2 k. */
static void smooth(const int *id, const float *cosine, int k, float *weight)
{
    double rho = INFINITY, lo = 0, hi = INFINITY, sigma = 1, want = log2(k);
    for (int i = 0; i < k; i++)
        if (id[i] >= 0)
            rho = fmin(rho, 1 - (double)cosine[i]);
    for (int round = 0; round < 48; round++) {
        double sum = 0;
        for (int i = 0; i < k; i++)
            if (id[i] >= 0)
                sum += exp(-fmax(0, 1 - (double)cosine[i] - rho) / sigma);
        if (fabs(sum - want) < 1e-5)
            break;
        if (sum > want)
            hi = sigma;
        else
            lo = sigma;
        sigma = isinf(hi) ? sigma * 2 : (lo + hi) / 2;
        if (sigma < 1e-6 || sigma > 1e6)
            break;
    }
    for (int i = 0; i < k; i++)
        weight[i] = id[i] >= 0 ? (float)exp(-fmax(0, 1 - (double)cosine[i] - rho) / sigma) : 0;
}

typedef struct edge { int a, b; float every, next; } edge; /* in epochs: how often it is drawn, and when next */
typedef struct edges { edge *e; size_t n; } edges;

static float weight_of(const int *id, const float *weight, int k, int other)
{
    for (int i = 0; i < k; i++)
        if (id[i] == other)
            return weight[i];
    return 0;
}

/* Both ways of every edge of the symmetric graph that is drawn at least once. */
static int make_edges(const int *id, const float *weight, int n, int k, int epochs, edges *out, es_error *err)
{
    size_t cap = 2 * (size_t)n * (size_t)k;
    out->e = es_calloc(cap ? cap : 1, sizeof *out->e);
    if (!out->e)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for the neighbours of %d features", n);
    for (int a = 0; a < n; a++)
        for (int i = 0; i < k; i++) {
            int b = id[(size_t)a * (size_t)k + (size_t)i];
            if (b < 0)
                continue;
            float there = weight[(size_t)a * (size_t)k + (size_t)i];
            float back = weight_of(id + (size_t)b * (size_t)k, weight + (size_t)b * (size_t)k, k, a);
            if (back > 0 && b < a)
                continue; /* b has put it in */
            float w = there + back - there * back;
            if (w * (float)epochs < 1)
                continue;
            out->e[out->n++] = (edge){a, b, 1 / w, 1 / w};
            out->e[out->n++] = (edge){b, a, 1 / w, 1 / w};
        }
    return ES_OK;
}

/* ---- the start ---------------------------------------------------------------------------------------------------------------- */

typedef struct pca {
    const float *rows;
    const double *mean; /* [d] */
    int n, d, parts;
    const float *v;     /* [2, d] */
    float *xy;          /* [n, 2] */
    double *sum;        /* [parts, 2, d] */
} pca;

/* xy = (rows - mean) v, and rows^T xy into the part's sums. */
static void pca_part(void *user, int part, int parts)
{
    const pca *p = user;
    const es_vector_ops *ops = es_vector();
    size_t d = (size_t)p->d;
    double *sum = p->sum + (size_t)part * 2 * d;
    memset(sum, 0, 2 * d * sizeof *sum);
    double off[2] = {0, 0};
    for (size_t j = 0; j < d; j++)
        for (int c = 0; c < 2; c++)
            off[c] += p->mean[j] * (double)p->v[(size_t)c * d + j];
    for (int64_t i = (int64_t)p->n * part / parts; i < (int64_t)p->n * (part + 1) / parts; i++) {
        const float *x = p->rows + (size_t)i * d;
        for (int c = 0; c < 2; c++) {
            float y = ops->dot(x, p->v + (size_t)c * d, d) - (float)off[c];
            p->xy[2 * (size_t)i + (size_t)c] = y;
            for (size_t j = 0; j < d; j++)
                sum[(size_t)c * d + j] += (double)(y * x[j]);
        }
    }
}

static void orthonormal(float *v, size_t d)
{
    for (int c = 0; c < 2; c++) {
        double dot = 0, norm = 0;
        for (size_t j = 0; j < d && c; j++)
            dot += (double)v[j] * (double)v[d + j];
        for (size_t j = 0; j < d; j++) {
            float *x = &v[(size_t)c * d + j];
            *x -= c ? (float)dot * v[j] : 0;
            norm += (double)*x * (double)*x;
        }
        for (size_t j = 0; j < d; j++)
            v[(size_t)c * d + j] = norm > 0 ? v[(size_t)c * d + j] / (float)sqrt(norm) : 0;
    }
}

/* The two principal components by subspace iteration, scaled so that the farthest point is at `spread`, with a little noise that parts equal rows. */
static int start(es_pool *pool, const float *rows, int n, int d, es_rng *rng, float *xy, es_error *err)
{
    int parts = es_pool_threads(pool);
    size_t dd = (size_t)d;
    float *v = es_calloc(2 * dd, sizeof *v);
    double *mean = es_calloc(dd, sizeof *mean), *sum = es_calloc((size_t)parts * 2 * dd, sizeof *sum);
    int rc = v && mean && sum ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for a map");
    if (!rc) {
        for (size_t i = 0; i < (size_t)n; i++)
            for (size_t j = 0; j < dd; j++)
                mean[j] += (double)rows[i * dd + j] / n;
        for (size_t j = 0; j < 2 * dd; j++)
            v[j] = es_rng_normal(rng);
        pca p = {rows, mean, n, d, parts, v, xy, sum};
        for (int round = 0; round < PCA_ROUNDS; round++) {
            orthonormal(v, dd);
            es_pool_run(pool, pca_part, &p);
            for (size_t j = 0; j < 2 * dd; j++) {
                double s = 0;
                for (int k = 0; k < parts; k++)
                    s += sum[(size_t)k * 2 * dd + j];
                v[j] = (float)s;
            }
        }
        float most = 1e-12f;
        for (size_t i = 0; i < 2 * (size_t)n; i++)
            most = fmaxf(most, fabsf(xy[i]));
        for (size_t i = 0; i < 2 * (size_t)n; i++)
            xy[i] = xy[i] / most * spread + 1e-3f * es_rng_normal(rng);
    }
    free(v);
    free(mean);
    free(sum);
    return rc;
}

/* ---- steps ------------------------------------------------------------------------------------------------------------------------ */

static float clipped(float g)
{
    return g > clip ? clip : g < -clip ? -clip : g;
}

static void pull(float *a, float *b, float rate)
{
    float dx = a[0] - b[0], dy = a[1] - b[1], r2 = dx * dx + dy * dy, g = -2 * kernel_a / (1 + kernel_a * r2);
    float gx = clipped(g * dx) * rate, gy = clipped(g * dy) * rate;
    a[0] += gx;
    a[1] += gy;
    b[0] -= gx;
    b[1] -= gy;
}

static void push(float *a, const float *b, float rate)
{
    float dx = a[0] - b[0], dy = a[1] - b[1], r2 = dx * dx + dy * dy, g = 2 / ((0.001f + r2) * (1 + kernel_a * r2));
    a[0] += clipped(g * dx) * rate;
    a[1] += clipped(g * dy) * rate;
}

static int walk(edges *e, int n, int epochs, es_rng *rng, float *xy, const es_progress *progress, es_error *err)
{
    for (int epoch = 1; epoch <= epochs; epoch++) {
        float rate = 1 - (float)(epoch - 1) / (float)epochs;
        for (size_t i = 0; i < e->n; i++) {
            edge *x = &e->e[i];
            if (x->next > (float)epoch)
                continue;
            x->next += x->every;
            pull(xy + 2 * (size_t)x->a, xy + 2 * (size_t)x->b, rate);
            uint64_t bits = 0;
            for (int k = 0; k < NEGATIVES; k++) { /* 32 bits each are even enough for a place in n */
                bits = k % 2 ? bits >> 32 : es_rng_next(rng);
                size_t other = (size_t)(((bits & 0xffffffffu) * (uint64_t)n) >> 32);
                if (other != (size_t)x->a)
                    push(xy + 2 * (size_t)x->a, xy + 2 * other, rate);
            }
        }
        if (es_progress_cancelled(progress))
            return es_fail(err, ES_ERR_CANCELLED, "the map was cancelled");
        es_progress_report(progress, "map: placing the features", epoch, epochs, "rounds");
    }
    return ES_OK;
}

static void normalise(float *rows, int n, int d)
{
    const es_vector_ops *ops = es_vector();
    for (size_t i = 0; i < (size_t)n; i++) {
        float *x = rows + i * (size_t)d, norm = sqrtf(ops->dot(x, x, (size_t)d));
        for (int j = 0; j < d && norm > 0; j++)
            x[j] /= norm;
    }
}

int es_layout_rows(float *rows, int n, int d, const es_layout_options *o, float *xy, const es_progress *progress, es_error *err)
{
    if (n < 1 || d < 1 || o->neighbours < 2 || o->neighbours > 64 || o->epochs < 0)
        return es_fail(err, ES_ERR_USAGE, "a map takes at least one feature, and 2 to 64 neighbours of each");
    int k = o->neighbours < n - 1 ? o->neighbours : n - 1, epochs = o->epochs ? o->epochs : n <= SMALL ? 500 : 200;
    es_pool *pool = NULL;
    es_rng rng;
    es_rng_seed(&rng, o->seed);
    size_t cells = (size_t)n * (size_t)(k > 0 ? k : 1);
    int *id = es_calloc(cells, sizeof *id);
    float *cosine = es_calloc(cells, sizeof *cosine);
    edges e = {0};
    normalise(rows, n, d);
    int rc = id && cosine ? es_pool_open(&pool, o->threads, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory for a map of %d features", n);
    if (!rc)
        rc = start(pool, rows, n, d, &rng, xy, err);
    es_pool_free(pool);
    if (!rc && k > 0)
        rc = es_layout_neighbours(rows, n, d, k, o, id, cosine, progress, err);
    if (!rc && k > 1) {
        for (size_t i = 0; i < (size_t)n; i++)
            smooth(id + i * (size_t)k, cosine + i * (size_t)k, k, cosine + i * (size_t)k); /* in place: each is read before it is written */
        rc = make_edges(id, cosine, n, k, epochs, &e, err);
    }
    if (!rc && k > 1)
        rc = walk(&e, n, epochs, &rng, xy, progress, err);
    free(id);
    free(cosine);
    free(e.e);
    return rc;
}

int es_layout_make(const es_dictionary *s, const es_layout_options *o, float *xy, const es_progress *progress, es_error *err)
{
    const es_dictionary_info *info = es_dictionary_get_info(s);
    size_t cells, bytes, more;
    int n = info->n_features, d = info->d_out;
    if (!es_mul((size_t)n, (size_t)d, &cells) || !es_mul(cells, sizeof(float), &bytes) || !es_mul((size_t)n, (size_t)o->neighbours * 60, &more) ||
        !es_add(bytes, more, &bytes))
        return es_fail(err, ES_ERR_LIMIT, "%d features of width %d are too many for a map", n, d);
    int rc = es_memory_check(bytes, 0, "the map of this dictionary", err);
    float *rows = rc ? NULL : es_calloc(cells, sizeof *rows);
    if (!rc && !rows)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for a map of %d features", n);
    if (!rc) {
        es_dictionary_rows(s, 0, n, rows);
        rc = es_layout_rows(rows, n, d, o, xy, progress, err);
    }
    free(rows);
    return rc;
}
