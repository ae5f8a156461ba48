#include "match.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harvest.h"
#include "vector.h"

enum { CONTEXT = 256 };

typedef struct sums { double x, xx; } sums; /* of one feature's activations over tokens */

typedef struct matching {
    int n, F;           /* asked features of a; all of b */
    int32_t *place;     /* [a's features]: which of the asked ones, or -1 */
    sums *a, *b;        /* [n], [F] */
    double *cross;      /* [n, F]: sum of products */
    int32_t *together;  /* [n, F]: tokens with both */
    uint64_t tokens;
} matching;

static void matching_free(matching *w)
{
    free(w->place);
    free(w->a);
    free(w->b);
    free(w->cross);
    free(w->together);
}

static int matching_open(matching *w, int n_from, int n_to, const int *feature, int n, es_error *err)
{
    size_t cells = (size_t)n * (size_t)n_to;
    *w = (matching){.n = n, .F = n_to};
    if (cells > ((size_t)2 << 30) / (sizeof *w->cross + sizeof *w->together))
        return es_fail(err, ES_ERR_MEMORY, "%d features against %d take more than 2 GB: ask for fewer at a time", n, n_to);
    w->place = es_calloc((size_t)n_from, sizeof *w->place);
    w->a = es_calloc((size_t)n + 1, sizeof *w->a);
    w->b = es_calloc((size_t)n_to, sizeof *w->b);
    w->cross = es_calloc(cells + 1, sizeof *w->cross);
    w->together = es_calloc(cells + 1, sizeof *w->together);
    if (!w->place || !w->a || !w->b || !w->cross || !w->together)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to compare dictionaries");
    memset(w->place, -1, (size_t)n_from * sizeof *w->place);
    for (int i = 0; i < n; i++) {
        if (feature[i] < 0 || feature[i] >= n_from || w->place[feature[i]] >= 0)
            return es_fail(err, ES_ERR_USAGE, feature[i] < 0 || feature[i] >= n_from ? "there is no feature %d" : "feature %d is named twice", feature[i]);
        w->place[feature[i]] = i;
    }
    return ES_OK;
}

/* One token: the active features of both. */
static void add_token(matching *w, const es_sparse *x, const es_sparse *y, size_t t)
{
    for (size_t k = y->start[t]; k < y->start[t + 1]; k++) {
        double v = (double)y->value[k];
        w->b[y->index[k]].x += v;
        w->b[y->index[k]].xx += v * v;
    }
    for (size_t i = x->start[t]; i < x->start[t + 1]; i++) {
        int32_t p = w->place[x->index[i]];
        if (p < 0)
            continue;
        double v = (double)x->value[i];
        w->a[p].x += v;
        w->a[p].xx += v * v;
        for (size_t k = y->start[t]; k < y->start[t + 1]; k++) {
            size_t cell = (size_t)p * (size_t)w->F + (size_t)y->index[k];
            w->cross[cell] += v * (double)y->value[k];
            w->together[cell]++;
        }
    }
    w->tokens++;
}

static double deviation(const sums *s, double n)
{
    return sqrt(fmax(s->xx - s->x * s->x / n, 0));
}

static void best_of(const matching *w, int p, es_match *out)
{
    double n = (double)w->tokens, best = -2;
    for (int j = 0; j < w->F; j++) {
        size_t cell = (size_t)p * (size_t)w->F + (size_t)j;
        if (!w->together[cell])
            continue;
        double spread = deviation(&w->a[p], n) * deviation(&w->b[j], n);
        double r = spread > 0 ? (w->cross[cell] - w->a[p].x * w->b[j].x / n) / spread : 0;
        if (r > best) {
            best = r;
            out->to = j;
            out->together = w->together[cell];
            out->pearson = (float)r;
        }
    }
}

/* One of the asked for each feature of b: that with the largest correlation. */
static int mark_mutual(es_match *m, int n, int F, es_error *err)
{
    int32_t *first = es_calloc((size_t)F, sizeof *first); /* 1 + place */
    if (!first)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to compare dictionaries");
    for (int i = 0; i < n; i++)
        if (m[i].to >= 0 && (!first[m[i].to] || m[i].pearson > m[first[m[i].to] - 1].pearson))
            first[m[i].to] = i + 1;
    for (int i = 0; i < n; i++)
        m[i].mutual = m[i].to >= 0 && first[m[i].to] == i + 1;
    free(first);
    return ES_OK;
}

static int rows_cosine(const es_dictionary *s, const es_dictionary *t, es_match *m, int n, es_error *err)
{
    int d = es_dictionary_get_info(s)->d_out, e = es_dictionary_get_info(t)->d_out;
    float *row = es_calloc((size_t)d + (size_t)e, sizeof *row);
    if (!row)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to compare dictionaries");
    for (int i = 0; i < n; i++) {
        m[i].cosine = NAN;
        if (d != e || m[i].to < 0)
            continue;
        es_dictionary_rows(s, m[i].from, 1, row);
        es_dictionary_rows(t, m[i].to, 1, row + d);
        double dot = 0, a = 0, b = 0;
        for (int j = 0; j < d; j++) {
            dot += (double)row[j] * (double)row[d + j];
            a += (double)row[j] * (double)row[j];
            b += (double)row[d + j] * (double)row[d + j];
        }
        m[i].cosine = a > 0 && b > 0 ? (float)(dot / sqrt(a * b)) : 0;
    }
    free(row);
    return ES_OK;
}

/* ---- reading ------------------------------------------------------------------------------------------------------------------------------ */

typedef struct reading {
    const es_dictionary *from, *to;
    es_trainer *trainer;
    es_pool *pool;
    es_ids ids;
    es_sparse a, b;
    float *x, norm[CONTEXT], limit; /* x[CONTEXT, d] */
} reading;

static void reading_close(reading *r)
{
    es_trainer_free(r->trainer);
    es_pool_free(r->pool);
    es_ids_free(&r->ids);
    es_sparse_free(&r->a);
    es_sparse_free(&r->b);
    free(r->x);
}

static int reading_open(reading *r, es_model *m, int threads, es_error *err)
{
    r->x = es_calloc((size_t)CONTEXT * (size_t)es_model_get_info(m)->d_model, sizeof *r->x);
    int rc = r->x ? es_pool_open(&r->pool, threads, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory to compare dictionaries");
    return rc ? rc : es_trainer_open(&r->trainer, m, &(es_trainer_options){.max_tokens = CONTEXT, .threads = threads}, err);
}

/* The tokens of r->ids, at most CONTEXT of them. */
static int read_document(reading *r, matching *w, const volatile bool *cancel, es_error *err)
{
    const es_dictionary_info *a = es_dictionary_get_info(r->from), *b = es_dictionary_get_info(r->to);
    int T = r->ids.n < CONTEXT ? (int)r->ids.n : CONTEXT;
    if (T < 2)
        return ES_OK;
    const int start[2] = {0, T};
    es_batch batch = {.ids = r->ids.id, .n = T, .start = start, .n_seq = 1};
    int rc = es_trainer_residual(r->trainer, &batch, a->layer, r->x, cancel, err);
    if (!rc)
        rc = es_dictionary_encode(r->from, r->pool, r->x, T, &r->a, err);
    r->limit = 0; /* of each document anew */
    if (!rc)
        es_sequence_norms(r->x, (size_t)a->d, start, 1, r->norm, &r->limit);
    if (!rc && b->layer != a->layer)
        rc = es_trainer_residual(r->trainer, &batch, b->layer, r->x, cancel, err);
    if (!rc)
        rc = es_dictionary_encode(r->to, r->pool, r->x, T, &r->b, err);
    for (int t = 1; t < T && !rc; t++)
        if (r->norm[t] <= r->limit)
            add_token(w, &r->a, &r->b, (size_t)t);
    return rc;
}

int es_dictionary_match(es_model *m, const es_dictionary *from, const es_dictionary *to, const char *const *file, int n_file, uint64_t max_tokens, int threads,
                        const int *feature, int n, es_match *out, const es_progress *progress, es_error *err)
{
    matching w = {0};
    reading r = {.from = from, .to = to};
    es_documents docs = {0};
    int rc = es_dictionary_check_model(from, m, err);
    if (!rc)
        rc = es_dictionary_check_model(to, m, err);
    if (!rc)
        rc = matching_open(&w, es_dictionary_get_info(from)->n_features, es_dictionary_get_info(to)->n_features, feature, n, err);
    if (!rc)
        rc = es_documents_open(&docs, file, n_file, 1, err);
    if (!rc)
        rc = reading_open(&r, m, threads, err);
    for (size_t i = 0; i < docs.n && !rc && (!max_tokens || w.tokens < max_tokens); i++) {
        rc = es_documents_ids(&docs, i, m, &r.ids, err);
        if (!rc)
            rc = read_document(&r, &w, progress ? progress->cancel : NULL, err);
        es_progress_report(progress, "comparing", (double)w.tokens, (double)max_tokens, "tokens");
    }
    if (!rc && w.tokens < 2)
        rc = es_fail(err, ES_ERR_USAGE, "there is no text to compare the dictionaries on");
    for (int i = 0; i < n && !rc; i++) {
        out[i] = (es_match){.from = feature[i], .to = -1};
        best_of(&w, i, &out[i]);
    }
    if (!rc)
        rc = mark_mutual(out, n, w.F, err);
    if (!rc)
        rc = rows_cosine(from, to, out, n, err);
    es_documents_close(&docs);
    reading_close(&r);
    matching_free(&w);
    return rc;
}
