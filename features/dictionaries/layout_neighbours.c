/* Nearest rows of all rows by cosine: exactly while that is a matter of seconds, else through trees of random halvings. */
#include "layout.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "vector.h"

enum { EXACT = 16384, BLOCK = 256, LEAF = 512, TREES = 6, ROUNDS = 2 };

typedef struct search {
    const float *rows;
    int n, d, k;
    int *id;
    float *cosine;
    /* a block of rows against others */
    const float *sim;  /* [n_row, n_other] */
    const int *row, *other; /* which they are; NULL: first_row + i, i */
    int first_row, n_row, n_other;
    /* a round over neighbours' neighbours: ids as they were before it */
    const int *before;
    /* a halving */
    const float *plane;
    const int *item;
    float *side;
    int n_item;
} search;

/* Puts j into i's list where it belongs. */
static void offer(search *s, int i, int j, float c)
{
    int k = s->k, *id = s->id + (size_t)i * (size_t)k;
    float *v = s->cosine + (size_t)i * (size_t)k;
    if (i == j || !(c > v[k - 1]))
        return;
    for (int t = 0; t < k && v[t] >= c; t++)
        if (id[t] == j)
            return;
    int at = k - 1;
    for (int t = 0; t < k - 1; t++) /* there already, with a cosine that rounding made a little less: that place is taken */
        if (id[t] == j)
            at = t;
    for (; at > 0 && v[at - 1] < c; at--) {
        v[at] = v[at - 1];
        id[at] = id[at - 1];
    }
    v[at] = c;
    id[at] = j;
}

static void offer_part(void *user, int part, int parts)
{
    search *s = user;
    for (int i = part; i < s->n_row; i += parts) {
        const float *sim = s->sim + (size_t)i * (size_t)s->n_other;
        int row = s->row ? s->row[i] : s->first_row + i;
        for (int j = 0; j < s->n_other; j++)
            offer(s, row, s->other ? s->other[j] : j, sim[j]);
    }
}

static int exact(search *s, es_pool *pool, const es_progress *progress, es_error *err)
{
    const es_kernels *k = es_kernels_cpu();
    float *sim = es_calloc((size_t)BLOCK * (size_t)s->n, sizeof *sim);
    int rc = sim ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for a map");
    s->sim = sim;
    s->n_other = s->n;
    for (int first = 0; first < s->n && !rc; first += BLOCK) {
        s->first_row = first;
        s->n_row = s->n - first < BLOCK ? s->n - first : BLOCK;
        k->gemm(pool, false, true, s->n_row, s->n, s->d, 1, s->rows + (size_t)first * (size_t)s->d, s->d, s->rows, s->d, 0, sim, s->n);
        es_pool_run(pool, offer_part, s);
        if (es_progress_cancelled(progress))
            rc = es_fail(err, ES_ERR_CANCELLED, "the map was cancelled");
        es_progress_report(progress, "map: nearest features", first, s->n, "features");
    }
    free(sim);
    return rc;
}

/* ---- trees --------------------------------------------------------------------------------------------------------------------------- */

static void side_part(void *user, int part, int parts)
{
    search *s = user;
    const es_vector_ops *ops = es_vector();
    for (int64_t i = (int64_t)s->n_item * part / parts; i < (int64_t)s->n_item * (part + 1) / parts; i++)
        s->side[i] = ops->dot(s->rows + (size_t)s->item[i] * (size_t)s->d, s->plane, (size_t)s->d);
}

/* item[0..n) so that the first half has the smaller values; both arrays are moved alike (Hoare's selection). */
static void halve(int *item, float *value, int n)
{
    int lo = 0, hi = n - 1, want = n / 2;
    while (lo < hi) {
        float pivot = value[lo + (hi - lo) / 2];
        int i = lo, j = hi;
        while (i <= j) {
            while (value[i] < pivot)
                i++;
            while (value[j] > pivot)
                j--;
            if (i <= j) {
                float v = value[i];
                int x = item[i];
                value[i] = value[j];
                item[i++] = item[j];
                value[j] = v;
                item[j--] = x;
            }
        }
        if (want <= j)
            hi = j;
        else if (want >= i)
            lo = i;
        else
            break;
    }
}

static void leaf(search *s, es_pool *pool, const int *item, int n, float *rows, float *sim)
{
    for (int i = 0; i < n; i++)
        memcpy(rows + (size_t)i * (size_t)s->d, s->rows + (size_t)item[i] * (size_t)s->d, (size_t)s->d * sizeof *rows);
    es_kernels_cpu()->gemm(pool, false, true, n, n, s->d, 1, rows, s->d, rows, s->d, 0, sim, n);
    s->sim = sim;
    s->row = s->other = item;
    s->n_row = s->n_other = n;
    es_pool_run(pool, offer_part, s);
    s->row = s->other = NULL;
}

typedef struct grove { es_pool *pool; es_rng rng; float *plane, *side, *rows, *sim; const es_progress *progress; double done, total; } grove;

static int grow(search *s, grove *g, int *item, int n, es_error *err)
{
    if (es_progress_cancelled(g->progress))
        return es_fail(err, ES_ERR_CANCELLED, "the map was cancelled");
    if (n <= LEAF) {
        leaf(s, g->pool, item, n, g->rows, g->sim);
        g->done += n;
        es_progress_report(g->progress, "map: nearest features", g->done, g->total, "features");
        return ES_OK;
    }
    int a = item[es_rng_below(&g->rng, (uint64_t)n)], b = item[es_rng_below(&g->rng, (uint64_t)n)];
    for (int j = 0; j < s->d; j++) /* the plane between two of them; between one and itself: through the origin */
        g->plane[j] = s->rows[(size_t)a * (size_t)s->d + (size_t)j] - (a == b ? 0 : s->rows[(size_t)b * (size_t)s->d + (size_t)j]);
    s->plane = g->plane;
    s->item = item;
    s->side = g->side;
    s->n_item = n;
    es_pool_run(g->pool, side_part, s);
    halve(item, g->side, n);
    int rc = grow(s, g, item, n / 2, err);
    return rc ? rc : grow(s, g, item + n / 2, n - n / 2, err);
}

static void round_part(void *user, int part, int parts)
{
    search *s = user;
    const es_vector_ops *ops = es_vector();
    size_t k = (size_t)s->k, d = (size_t)s->d;
    for (int64_t i = (int64_t)s->n * part / parts; i < (int64_t)s->n * (part + 1) / parts; i++)
        for (size_t a = 0; a < k; a++) {
            int near = s->before[(size_t)i * k + a];
            for (size_t b = 0; b < k && near >= 0; b++) {
                int far = s->before[(size_t)near * k + b];
                if (far >= 0 && far != (int)i)
                    offer(s, (int)i, far, ops->dot(s->rows + (size_t)i * d, s->rows + (size_t)far * d, d));
            }
        }
}

static int trees(search *s, es_pool *pool, uint64_t seed, const es_progress *progress, es_error *err)
{
    size_t n = (size_t)s->n, d = (size_t)s->d;
    grove g = {.pool = pool, .progress = progress, .total = (double)n * TREES};
    es_rng_seed(&g.rng, seed ^ 0x9e3779b97f4a7c15u);
    int *item = es_calloc(n, sizeof *item), *before = es_calloc(n * (size_t)s->k, sizeof *before);
    g.plane = es_calloc(d, sizeof(float));
    g.side = es_calloc(n, sizeof(float));
    g.rows = es_calloc(LEAF * d, sizeof(float));
    g.sim = es_calloc((size_t)LEAF * LEAF, sizeof(float));
    int rc = item && before && g.plane && g.side && g.rows && g.sim ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for a map");
    for (int t = 0; t < TREES && !rc; t++) {
        for (int i = 0; i < s->n; i++)
            item[i] = i;
        rc = grow(s, &g, item, s->n, err);
    }
    for (int r = 0; r < ROUNDS && !rc; r++) {
        memcpy(before, s->id, n * (size_t)s->k * sizeof *before);
        s->before = before;
        es_pool_run(pool, round_part, s);
        if (es_progress_cancelled(progress))
            rc = es_fail(err, ES_ERR_CANCELLED, "the map was cancelled");
    }
    void *all[] = {item, before, g.plane, g.side, g.rows, g.sim};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    return rc;
}

int es_layout_neighbours(const float *rows, int n, int d, int k, const es_layout_options *o, int *id, float *cosine, const es_progress *progress, es_error *err)
{
    search s = {.rows = rows, .n = n, .d = d, .k = k, .id = id, .cosine = cosine};
    es_pool *pool = NULL;
    if (n < 2 || k < 1 || k >= n)
        return es_fail(err, ES_ERR_USAGE, "%d neighbours of %d rows", k, n);
    for (size_t i = 0; i < (size_t)n * (size_t)k; i++) {
        id[i] = -1;
        cosine[i] = -2;
    }
    int rc = es_pool_open(&pool, o->threads, err);
    if (!rc)
        rc = n <= EXACT ? exact(&s, pool, progress, err) : trees(&s, pool, o->seed, progress, err);
    es_pool_free(pool);
    return rc;
}
