#include "fires.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct es_firing {
    es_model *m;
    const es_dictionary *s;
    es_trainer *trainer;
    es_pool *pool;
    float *h;       /* [ES_FIRING_TOKENS, d] */
    es_ids ids;
    es_sparse acts;
    int skip;
};

int es_firing_open(es_firing **out, es_model *m, const es_dictionary *s, int threads, es_error *err)
{
    es_firing *f = *out = es_calloc(1, sizeof *f);
    if (!f)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to read texts");
    f->m = m;
    f->s = s;
    f->h = es_calloc((size_t)ES_FIRING_TOKENS * (size_t)es_point_width(m, es_dictionary_point(s)), sizeof *f->h);
    int rc = f->h ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory to read texts");
    if (!rc)
        rc = es_pool_open(&f->pool, threads, err);
    if (!rc)
        rc = es_trainer_open(&f->trainer, m, &(es_trainer_options){.max_tokens = ES_FIRING_TOKENS, .threads = threads}, err);
    if (rc) {
        es_firing_free(f);
        *out = NULL;
    }
    return rc;
}

void es_firing_free(es_firing *f)
{
    if (!f)
        return;
    es_trainer_free(f->trainer);
    es_pool_free(f->pool);
    free(f->h);
    es_ids_free(&f->ids);
    es_sparse_free(&f->acts);
    free(f);
}

const es_ids *es_firing_ids(const es_firing *f)
{
    return &f->ids;
}

const es_sparse *es_firing_acts(const es_firing *f, int *skip)
{
    if (skip)
        *skip = f->skip;
    return &f->acts;
}

int es_firing_read(es_firing *f, const char *text, size_t n, bool lead, const volatile bool *cancel, es_error *err)
{
    int32_t first = es_token_bos(f->m) >= 0 ? es_token_bos(f->m) : es_token_eos(f->m);
    int rc = ES_OK;
    f->ids.n = 0;
    if (lead && es_token_first(f->m) < 0 && first >= 0 && es_ids_add(&f->ids, first))
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a text");
    rc = es_tokenize_text(f->m, text, n, &f->ids, err);
    if (!rc && f->ids.n == 0)
        rc = es_fail(err, ES_ERR_USAGE, "there is no text to encode");
    if (rc)
        return rc;
    int trained = es_model_get_info(f->m)->n_ctx;
    size_t most = trained > 0 && trained < ES_FIRING_TOKENS ? (size_t)trained : ES_FIRING_TOKENS;
    f->ids.n = f->ids.n > most ? most : f->ids.n;
    const int start[2] = {0, (int)f->ids.n};
    es_batch b = {.ids = f->ids.id, .n = (int)f->ids.n, .start = start, .n_seq = 1};
    f->skip = f->ids.n > 1;
    rc = es_trainer_point(f->trainer, &b, es_dictionary_get_info(f->s)->layer, es_dictionary_point(f->s), f->h, cancel, err);
    return rc ? rc : es_dictionary_encode(f->s, f->pool, f->h, b.n, &f->acts, err);
}

float es_surprise(const es_feature_card *c, uint64_t atlas_tokens, float max, int n)
{
    double all = 0, reach = 0, bin = (double)c->bin_width, least = atlas_tokens ? 0.5 / (double)atlas_tokens : 1e-12;
    for (int i = 0; i < ES_ATLAS_BINS; i++) {
        double from = i * bin, share = bin > 0 ? fmin(1, fmax(0, (from + bin - (double)max) / bin)) : 0;
        all += c->histogram[i];
        reach += share * c->histogram[i];
    }
    double q = fmax(all > 0 ? c->density * reach / all : 0, least);
    double none = n * log1p(-fmin(q, 1 - 1e-12)); /* log of the chance that no token reaches it */
    return (float)(-log2(-expm1(none)));
}

typedef struct ordering { es_fire_order by; } ordering;

static int compare(const void *x, const void *y, void *user)
{
    const es_fire *a = x, *b = y;
    es_fire_order by = ((const ordering *)user)->by;
    if (by == ES_FIRE_TOKEN && a->token != b->token)
        return a->token - b->token;
    float p = by == ES_FIRE_SURPRISE ? a->surprise : a->max, q = by == ES_FIRE_SURPRISE ? b->surprise : b->max;
    return p < q ? 1 : p > q ? -1 : a->feature - b->feature;
}

int es_firing_list(const es_firing *f, es_atlas *a, es_fire_order order, es_fire **out, int *n, es_error *err)
{
    size_t F = (size_t)es_dictionary_get_info(f->s)->n_features;
    int32_t *at = es_calloc(F, sizeof *at); /* 1 + its place in the list */
    int rows = f->acts.n_rows, count = rows - f->skip, rc = ES_OK;
    size_t most = f->acts.start[rows] - f->acts.start[f->skip];
    *n = 0;
    *out = es_calloc((most < F ? most : F) + 1, sizeof **out);
    if (!at || !*out)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for the features of a text");
    for (int t = f->skip; t < rows && !rc; t++)
        for (size_t i = f->acts.start[t]; i < f->acts.start[t + 1]; i++) {
            int j = f->acts.index[i];
            float v = f->acts.value[i];
            if (!at[j]) {
                (*out)[*n] = (es_fire){.feature = j, .token = t};
                at[j] = ++*n;
            }
            es_fire *x = &(*out)[at[j] - 1];
            x->times++;
            x->mean += v / (float)count;
            if (v > x->max) {
                x->max = v;
                x->token = t;
            }
        }
    for (int i = 0; i < *n && !rc; i++) {
        es_feature_card c;
        es_fire *x = &(*out)[i];
        x->surprise = NAN;
        if (a && !(rc = es_atlas_card(a, x->feature, &c, err)))
            x->surprise = es_surprise(&c, es_atlas_tokens(a), x->max, count);
    }
    if (!rc)
        qsort_r(*out, (size_t)*n, sizeof **out, compare, &(ordering){a || order != ES_FIRE_SURPRISE ? order : ES_FIRE_MAX});
    free(at);
    if (rc) {
        free(*out);
        *out = NULL;
        *n = 0;
    }
    return rc;
}

/* Adds each feature's mean over a text's tokens, and its square, to sums. */
static int add_text(es_firing *f, const char *text, float *mean, double *sum, double *square, const es_progress *progress, es_error *err)
{
    int rc = es_firing_read(f, text, strlen(text), false, progress ? progress->cancel : NULL, err);
    if (rc)
        return rc;
    int count = f->acts.n_rows - f->skip;
    size_t from = f->acts.start[f->skip], to = f->acts.start[f->acts.n_rows];
    for (size_t i = from; i < to; i++)
        mean[f->acts.index[i]] += f->acts.value[i] / (float)count;
    for (size_t i = from; i < to; i++) { /* each once: what was added is taken away */
        int j = f->acts.index[i];
        sum[j] += (double)mean[j];
        square[j] += (double)mean[j] * (double)mean[j];
        mean[j] = 0;
    }
    return ES_OK;
}

int es_contrast(es_firing *f, char *const *a, int n_a, char *const *b, int n_b, float *score, const es_progress *progress, es_error *err)
{
    size_t F = (size_t)es_dictionary_get_info(f->s)->n_features;
    float *mean = es_calloc(F, sizeof *mean);
    double *sum = es_calloc(4 * F, sizeof *sum); /* of a's means, of their squares, of b's */
    int rc = mean && sum ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory");
    if (!rc && (n_a < 1 || n_b < 1))
        rc = es_fail(err, ES_ERR_USAGE, "there is no text in the %s set", n_a < 1 ? "first" : "second");
    for (int i = 0; i < n_a + n_b && !rc; i++) {
        double *to = sum + (i < n_a ? 0 : 2 * F);
        if (es_progress_cancelled(progress))
            rc = es_fail(err, ES_ERR_CANCELLED, "cancelled after %d texts", i);
        else
            rc = add_text(f, i < n_a ? a[i] : b[i - n_a], mean, to, to + F, progress, err);
        es_progress_report(progress, "encoding", i + 1, n_a + n_b, "texts");
    }
    double largest = 0;
    for (int pass = 0; pass < 2 && !rc; pass++)
        for (size_t j = 0; j < F; j++) {
            double ma = sum[j] / n_a, mb = sum[2 * F + j] / n_b, va = sum[F + j] / n_a - ma * ma, vb = sum[3 * F + j] / n_b - mb * mb;
            double sd = sqrt(fmax(0, (va + vb) / 2));
            if (pass == 0)
                largest = fmax(largest, sd);
            else
                score[j] = largest > 0 || ma != mb ? (float)((ma - mb) / (sd + 0.02 * largest + 1e-9)) : 0;
        }
    free(mean);
    free(sum);
    return rc;
}
