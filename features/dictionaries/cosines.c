/* How near each feature's decoder row is to its nearest neighbour's. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quality.h"
#include "vector.h"

enum { LOOKED = 1024, AGAINST = 2048 }; /* features of a product */

/* Unit rows [first, first + n); rows of zeros stay zeros. */
static void unit_rows(const es_dictionary *s, int first, int n, float *out)
{
    size_t d = (size_t)es_dictionary_get_info(s)->d_out;
    const es_vector_ops *ops = es_vector();
    es_dictionary_rows(s, first, n, out);
    for (int j = 0; j < n; j++) {
        float *row = out + (size_t)j * d, length = sqrtf(ops->dot(row, row, d));
        for (size_t i = 0; i < d && length > 0; i++)
            row[i] /= length;
    }
}

static int by_value(const void *a, const void *b)
{
    const float *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* Sums up best[n] of those that have a length; sorts it. */
static void summarise(es_cosines *out, float *best, int n)
{
    qsort(best, (size_t)n, sizeof *best, by_value);
    out->looked_at = n;
    for (int i = 0; i < n; i++) {
        int bin = (int)(best[i] * ES_COSINE_BINS);
        out->histogram[bin < 0 ? 0 : bin >= ES_COSINE_BINS ? ES_COSINE_BINS - 1 : bin]++;
        out->mean += (double)best[i] / n;
        out->over_90 += best[i] > 0.9f ? 1.0 / n : 0;
    }
    if (n) {
        out->median = (double)best[n / 2];
        out->p95 = (double)best[(size_t)n * 95 / 100];
        out->p99 = (double)best[(size_t)n * 99 / 100];
    }
}

/* best[i]: the largest cosine of feature which[i], whose unit rows are a [n, d], with any other. */
static int nearest(const es_dictionary *s, es_pool *pool, const int *which, const float *a, int n, float *best, float *rows, float *products,
                   double done, double all, const es_progress *progress, es_error *err)
{
    const es_dictionary_info *info = es_dictionary_get_info(s);
    int d = info->d_out, F = info->n_features;
    for (int i = 0; i < n; i++)
        best[i] = -1;
    for (int first = 0; first < F; first += AGAINST) {
        int some = F - first < AGAINST ? F - first : AGAINST;
        unit_rows(s, first, some, rows);
        es_kernels_cpu()->gemm(pool, false, true, n, some, d, 1, a, d, rows, d, 0, products, some);
        for (int i = 0; i < n; i++) {
            const float *c = products + (size_t)i * (size_t)some;
            float most = best[i];
            for (int j = 0; j < some; j++)
                most = c[j] > most && first + j != which[i] ? c[j] : most;
            best[i] = most;
        }
        if (first / AGAINST % 16 == 15)
            es_dictionary_release(s);
        es_progress_report(progress, "comparing decoder rows", (done + (double)n * (first + some) / F), all, "features");
        if (es_progress_cancelled(progress))
            return es_fail(err, ES_ERR_CANCELLED, "cancelled while decoder rows were compared");
    }
    return ES_OK;
}

int es_cosines_measure(const es_dictionary *s, int sample, uint64_t seed, int threads, es_cosines *out, const es_progress *progress, es_error *err)
{
    const es_dictionary_info *info = es_dictionary_get_info(s);
    size_t d = (size_t)info->d_out;
    int F = info->n_features, n = sample > 0 && sample < F ? sample : F, kept = 0, rc = ES_OK;
    *out = (es_cosines){0};
    int *which = es_calloc((size_t)F, sizeof *which);
    float *a = es_calloc(LOOKED * d, sizeof *a), *rows = es_calloc(AGAINST * d, sizeof *rows), *products = es_calloc(LOOKED, AGAINST * sizeof *products);
    float *best = es_calloc((size_t)n, sizeof *best), *tile = es_calloc(LOOKED, sizeof *tile);
    es_pool *pool = NULL;
    if (!which || !a || !rows || !products || !best || !tile)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to compare %d decoder rows", n);
    rc = rc ? rc : es_pool_open(&pool, threads, err);
    es_rng rng;
    es_rng_seed(&rng, seed);
    for (int i = 0; i < F && !rc; i++) { /* the first n of a shuffled order */
        int j = i > 0 && n < F ? (int)es_rng_below(&rng, (uint64_t)i + 1) : i;
        which[i] = which[j];
        which[j] = i;
    }
    for (int first = 0; first < n && !rc; first += LOOKED) {
        int some = n - first < LOOKED ? n - first : LOOKED;
        for (int i = 0; i < some; i++)
            unit_rows(s, which[first + i], 1, a + (size_t)i * d);
        rc = nearest(s, pool, which + first, a, some, tile, rows, products, first, n, progress, err);
        for (int i = 0; i < some && !rc; i++)
            if (es_vector()->dot(a + (size_t)i * d, a + (size_t)i * d, d) > 0)
                best[kept++] = tile[i];
    }
    es_dictionary_release(s);
    if (!rc)
        summarise(out, best, kept);
    es_pool_free(pool);
    free(which);
    free(a);
    free(rows);
    free(products);
    free(best);
    free(tile);
    return rc;
}
