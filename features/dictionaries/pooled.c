/* Activations of many short texts, a row a text. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harvest.h"
#include "quality.h"
#include "vector.h"

enum { BATCH = 1024 };

typedef struct pooling {
    es_pooled *out;
    const es_dictionary *s;
    es_trainer *trainer;
    es_pool *pool;
    es_pooling how;
    int layer;
    float norm_limit;
    int32_t id[BATCH];
    int start[BATCH + 1], n_seq, first; /* first: the text of sequence 0 */
    float *x, *norm, *sum; /* [BATCH, d], [BATCH], [F] */
    int32_t *seen;         /* [F] features in sum */
    es_sparse acts;
} pooling;

void es_pooled_free(es_pooled *p)
{
    free(p->x);
    es_sparse_free(&p->acts);
    *p = (es_pooled){0};
}

static int add_row(es_sparse *s, size_t at, int n, const int32_t *seen, float *sum, es_error *err)
{
    if (at + (size_t)n > s->cap) {
        size_t cap = s->cap * 2 > at + (size_t)n ? s->cap * 2 : at + (size_t)n + 4096;
        int32_t *index = realloc(s->index, cap * sizeof *index);
        if (index)
            s->index = index;
        float *value = index ? realloc(s->value, cap * sizeof *value) : NULL;
        if (!value)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory for %zu activations", cap);
        s->value = value;
        s->cap = cap;
    }
    for (int i = 0; i < n; i++) {
        s->index[at + (size_t)i] = seen[i];
        s->value[at + (size_t)i] = sum[seen[i]];
        sum[seen[i]] = 0;
    }
    return ES_OK;
}

/* One sequence's row. A token counts when it is not the first, and no sink. */
static int take_sequence(pooling *p, int q, es_error *err)
{
    es_pooled *out = p->out;
    size_t d = out->d;
    int from = p->start[q], to = p->start[q + 1], n_seen = 0, counted = 0;
    float *row = out->x + (size_t)(p->first + q) * d;
    for (int t = from + 1; t < to; t++)
        counted += p->how == ES_POOL_LAST ? t + 1 == to : p->norm[t] <= p->norm_limit;
    for (int t = from + 1; t < to; t++) {
        if (p->how == ES_POOL_LAST ? t + 1 != to : !(p->norm[t] <= p->norm_limit))
            continue;
        es_vector()->axpy(row, 1 / (float)counted, p->x + (size_t)t * d, d);
        for (size_t a = p->acts.start[t]; a < p->acts.start[t + 1]; a++) {
            int j = p->acts.index[a];
            if (p->sum[j] == 0)
                p->seen[n_seen++] = j;
            p->sum[j] += p->acts.value[a] / (float)counted;
        }
    }
    es_sparse *s = &out->acts;
    size_t at = s->start[p->first + q];
    s->start[p->first + q + 1] = at + (size_t)n_seen;
    s->n_rows = p->first + q + 1;
    return add_row(s, at, n_seen, p->seen, p->sum, err);
}

static int take_batch(pooling *p, const volatile bool *cancel, es_error *err)
{
    size_t d = p->out->d;
    es_batch b = {.ids = p->id, .n = p->start[p->n_seq], .start = p->start, .n_seq = p->n_seq};
    int rc = b.n ? es_trainer_point(p->trainer, &b, p->layer, es_dictionary_point(p->s), p->x, cancel, err) : ES_OK;
    if (!rc && b.n) /* the limit from the first batch */
        es_sequence_norms(p->x, d, p->start, p->n_seq, p->norm, &p->norm_limit);
    if (!rc && b.n)
        rc = es_dictionary_encode(p->s, p->pool, p->x, b.n, &p->acts, err);
    for (int q = 0; q < p->n_seq && !rc; q++)
        rc = take_sequence(p, q, err);
    p->first += p->n_seq;
    p->n_seq = 0;
    return rc;
}

static int pool_all(pooling *p, const es_ids *text, int n, const char *what, const es_progress *progress, es_error *err)
{
    int rc = ES_OK;
    for (int i = 0; i < n && !rc; i++) {
        int k = text[i].n < ES_POOL_TOKENS ? (int)text[i].n : ES_POOL_TOKENS, from = p->start[p->n_seq];
        if (from + k > BATCH || p->n_seq == BATCH) {
            rc = take_batch(p, progress ? progress->cancel : NULL, err);
            es_progress_report(progress, what, i, n, "texts");
            from = 0;
        }
        if (!rc && k)
            memcpy(p->id + from, text[i].id, (size_t)k * sizeof *p->id);
        p->start[++p->n_seq] = from + k;
    }
    return rc ? rc : take_batch(p, progress ? progress->cancel : NULL, err);
}

int es_pooled_make(es_pooled *out, es_model *m, const es_dictionary *s, const es_ids *text, int n, es_pooling how, int threads, const char *what,
                   const es_progress *progress, es_error *err)
{
    const es_dictionary_info *info = es_dictionary_get_info(s);
    size_t d = (size_t)info->d, F = (size_t)info->n_features;
    *out = (es_pooled){.n = n, .d = d};
    int rc = es_dictionary_check_model(s, m, err);
    if (rc)
        return rc;
    pooling *p = es_calloc(1, sizeof *p);
    if (!p)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to read texts");
    p->out = out;
    p->s = s;
    p->how = how;
    p->layer = info->layer;
    p->x = es_calloc(BATCH * d, sizeof(float));
    p->norm = es_calloc(BATCH, sizeof(float));
    p->sum = es_calloc(F, sizeof(float));
    p->seen = es_calloc(F, sizeof(int32_t));
    out->x = es_calloc((size_t)n + 1, d * sizeof(float));
    out->acts.start = es_calloc((size_t)n + 1, sizeof(size_t));
    out->acts.cap_rows = (size_t)n + 1;
    if (!p->x || !p->norm || !p->sum || !p->seen || !out->x || !out->acts.start)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for the activations of %d texts", n);
    rc = rc ? rc : es_pool_open(&p->pool, threads, err);
    rc = rc ? rc : es_trainer_open(&p->trainer, m, &(es_trainer_options){.max_tokens = BATCH, .threads = threads}, err);
    rc = rc ? rc : pool_all(p, text, n, what, progress, err);
    es_trainer_free(p->trainer);
    es_pool_free(p->pool);
    es_sparse_free(&p->acts);
    free(p->x);
    free(p->norm);
    free(p->sum);
    free(p->seen);
    free(p);
    return rc;
}
