/* Figures of a dictionary on text: how much of what it reads it leaves out, and what that costs the model. What the MLP adds is the last thing that a layer
 * adds, so its reconstruction changes the residual after it by the difference; within a layer, at attention, cross-entropy is not measured.
 *
 * The first token of each sequence and the attention sinks (see es_norm_limit) are left as they are and count nowhere. Cross-entropy
 * is that of every token whose predictor is not the first one: with the residual as it is, replaced by its reconstruction, and
 * replaced by zero. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harvest.h"
#include "vector.h"

enum { BATCH = 1024, CONTEXT = 256 };

typedef struct measure {
    const es_dictionary *s;
    size_t d, F;
    int layer;
    es_point point;
    es_trainer *below, *above;
    es_pool *pool;
    float norm_limit;
    /* a batch */
    int32_t id[BATCH], target[BATCH];
    uint8_t wanted[BATCH], counted[BATCH];
    int start[BATCH + 1], n_seq;
    float *x, *y;  /* [BATCH, d] */
    float *h, *patched; /* [BATCH, d_model] the residual after the layer, as it is and with another x; of the residual's site h is x. Without `above`: NULL */
    float *logprob, *norm;
    es_sparse acts;
    /* sums */
    double *sum_x, square, error, cosine, l0;
    uint64_t *fired, tokens, predicted;
    double ce[3];
} measure;

/* One of the three passes over the layers above: adds the cross-entropy of the wanted tokens. */
static int pass(measure *m, const es_batch *b, const float *resid, int which, const volatile bool *cancel, es_error *err)
{
    int rc = es_trainer_forward(m->above, b, resid, NULL, NULL, 0, m->logprob, cancel, err);
    for (int t = 0; t < b->n && !rc; t++)
        if (m->wanted[t])
            m->ce[which] -= (double)m->logprob[t];
    return rc;
}

/* patched = the residual with y (NULL: zero) in the place of x where a token counts. */
static void splice(measure *m, int n, const float *y)
{
    const size_t d = m->d;
    for (int t = 0; t < n; t++)
        for (size_t k = (size_t)t * d; k < ((size_t)t + 1) * d; k++) {
            const float in = y ? y[k] : 0;
            m->patched[k] = !m->counted[t] ? m->h[k] : m->point == ES_POINT_RESIDUAL ? in : m->h[k] + (in - m->x[k]);
        }
}

static int batch(measure *m, const volatile bool *cancel, es_error *err)
{
    int n = m->start[m->n_seq];
    size_t d = m->d;
    es_batch b = {.ids = m->id, .n = n, .start = m->start, .n_seq = m->n_seq, .target = m->target, .wanted = m->wanted};
    if (n == 0)
        return ES_OK;
    int rc = es_trainer_point(m->below, &b, m->layer, m->point, m->x, cancel, err);
    if (!rc && m->above && m->point != ES_POINT_RESIDUAL)
        rc = es_trainer_residual(m->below, &b, m->layer, m->h, cancel, err);
    if (rc)
        return rc;
    es_sequence_norms(m->x, d, m->start, m->n_seq, m->norm, &m->norm_limit); /* the limit from the first batch */
    memset(m->counted, 0, sizeof m->counted);
    memset(m->wanted, 0, sizeof m->wanted);
    for (int s = 0; s < m->n_seq; s++)
        for (int t = m->start[s] + 1; t < m->start[s + 1]; t++) {
            m->counted[t] = m->norm[t] <= m->norm_limit;
            if (t + 1 < m->start[s + 1]) {
                m->wanted[t] = 1;
                m->target[t] = m->id[t + 1];
                m->predicted++;
            }
        }
    rc = es_dictionary_encode(m->s, m->pool, m->x, n, &m->acts, err);
    if (!rc)
        rc = es_dictionary_decode(m->s, &m->acts, m->x, m->y, err);
    if (rc)
        return rc;
    for (int t = 0; t < n; t++) {
        const float *x = m->x + (size_t)t * d;
        float *y = m->y + (size_t)t * d;
        if (!m->counted[t])
            continue;
        double xx = 0, yy = 0, xy = 0;
        for (size_t k = 0; k < d; k++) {
            double a = (double)x[k], c = (double)y[k];
            m->sum_x[k] += a;
            xx += a * a;
            yy += c * c;
            xy += a * c;
        }
        m->square += xx;
        m->error += xx + yy - 2 * xy;
        m->cosine += xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : 0;
        m->l0 += (double)(m->acts.start[t + 1] - m->acts.start[t]);
        for (size_t a = m->acts.start[t]; a < m->acts.start[t + 1]; a++)
            m->fired[m->acts.index[a]]++;
        m->tokens++;
    }
    if (m->above) {
        rc = pass(m, &b, m->h, 0, cancel, err);
        for (int which = 1; which < 3 && !rc; which++) {
            splice(m, n, which == 1 ? m->y : NULL);
            rc = pass(m, &b, m->patched, which, cancel, err);
        }
    }
    m->n_seq = 0;
    return rc;
}

static int run(measure *m, es_model *model, const es_documents *docs, uint64_t max_tokens, const es_progress *progress, es_error *err)
{
    es_ids ids = {0};
    int rc = ES_OK;
    for (size_t i = 0; i < docs->n && !rc && (!max_tokens || m->tokens < max_tokens); i++) {
        if (es_progress_cancelled(progress)) {
            rc = es_fail(err, ES_ERR_CANCELLED, "cancelled after %llu tokens", (unsigned long long)m->tokens);
            break;
        }
        rc = es_documents_ids(docs, i, model, &ids, err);
        for (size_t at = 0; at < ids.n && !rc; at += CONTEXT) {
            int n = (int)(ids.n - at < CONTEXT ? ids.n - at : CONTEXT);
            if (n < 3)
                continue;
            if (m->start[m->n_seq] + n > BATCH) {
                rc = batch(m, progress ? progress->cancel : NULL, err);
                es_progress_report(progress, "measure", (double)m->tokens, (double)max_tokens, "tokens");
                if (rc || (max_tokens && m->tokens >= max_tokens))
                    break;
            }
            int from = m->start[m->n_seq];
            memcpy(m->id + from, ids.id + at, (size_t)n * sizeof *m->id);
            m->start[++m->n_seq] = from + n;
        }
    }
    es_ids_free(&ids);
    if (!rc && (!max_tokens || m->tokens < max_tokens))
        rc = batch(m, progress ? progress->cancel : NULL, err);
    if (!rc && m->tokens == 0)
        rc = es_fail(err, ES_ERR_USAGE, "the files hold no text to measure on");
    return rc;
}

int es_dictionary_measure(es_model *model, const es_dictionary *s, const char *const *file, int n_file, uint64_t max_tokens, int threads,
                          es_dictionary_stats *out, const es_progress *progress, es_error *err)
{
    const es_dictionary_info *info = es_dictionary_get_info(s);
    const es_model_info *mi = es_model_get_info(model);
    *out = (es_dictionary_stats){.ce = NAN, .ce_patched = NAN, .ce_zero = NAN, .recovered = NAN};
    int rc = es_dictionary_check_model(s, model, err);
    if (rc)
        return rc;
    measure *m = es_calloc(1, sizeof *m);
    if (!m)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to measure");
    m->s = s;
    m->d = (size_t)info->d;
    m->F = (size_t)info->n_features;
    m->layer = info->layer;
    m->point = es_dictionary_point(s);
    const bool ce = m->layer + 1 < mi->n_layer && (m->point == ES_POINT_RESIDUAL || m->point == ES_POINT_MLP_OUT), apart = ce && m->point != ES_POINT_RESIDUAL;
    m->x = es_calloc(BATCH * m->d, sizeof(float));
    m->y = es_calloc(BATCH * m->d, sizeof(float));
    m->logprob = es_calloc(BATCH, sizeof(float));
    m->norm = es_calloc(BATCH, sizeof(float));
    m->sum_x = es_calloc(m->d, sizeof(double));
    m->fired = es_calloc(m->F, sizeof *m->fired);
    m->h = apart ? es_calloc(BATCH * m->d, sizeof(float)) : m->x;
    m->patched = ce ? es_calloc(BATCH * m->d, sizeof(float)) : NULL;
    es_documents docs = {0};
    if (!m->x || !m->h || (ce && !m->patched) || !m->y || !m->logprob || !m->norm || !m->sum_x || !m->fired)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to measure");
    if (!rc)
        rc = es_documents_open(&docs, file, n_file, 1, err);
    if (!rc)
        rc = es_pool_open(&m->pool, threads, err);
    if (!rc)
        rc = es_trainer_open(&m->below, model, &(es_trainer_options){.max_tokens = BATCH, .threads = threads}, err);
    if (!rc && ce) /* there is nothing above the last layer but the head: no cross-entropy then */
        rc = es_trainer_open(&m->above, model, &(es_trainer_options){.max_tokens = BATCH, .from_layer = m->layer + 1, .threads = threads}, err);
    if (!rc)
        rc = run(m, model, &docs, max_tokens, progress, err);
    if (!rc) {
        double n = (double)m->tokens, mean2 = 0;
        for (size_t k = 0; k < m->d; k++)
            mean2 += m->sum_x[k] / n * (m->sum_x[k] / n);
        out->tokens = m->tokens;
        out->fvu = m->error / (m->square - n * mean2);
        out->l0 = m->l0 / n;
        out->mean_cosine = m->cosine / n;
        for (size_t j = 0; j < m->F; j++) {
            out->dead += m->fired[j] == 0 ? 1 / (double)m->F : 0;
            out->dense += (double)m->fired[j] > 0.1 * n ? 1 / (double)m->F : 0;
        }
        if (m->above && m->predicted) {
            out->ce = m->ce[0] / (double)m->predicted;
            out->ce_patched = m->ce[1] / (double)m->predicted;
            out->ce_zero = m->ce[2] / (double)m->predicted;
            out->recovered = (out->ce_zero - out->ce_patched) / (out->ce_zero - out->ce);
        }
    }
    es_documents_close(&docs);
    es_trainer_free(m->below);
    es_trainer_free(m->above);
    es_pool_free(m->pool);
    es_sparse_free(&m->acts);
    if (apart)
        free(m->h);
    free(m->patched);
    free(m->x);
    free(m->y);
    free(m->logprob);
    free(m->norm);
    free(m->sum_x);
    free(m->fired);
    free(m);
    return rc;
}
