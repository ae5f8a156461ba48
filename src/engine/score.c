/* score: the log-probability of a text, token by token. */
#include "forward.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int es_score(const es_model *m, const int32_t *ids, int n, const es_patch *patch, int threads, float *logprob,
             const es_progress *progress, es_error *err)
{
    int window = m->info.n_ctx > 1 ? m->info.n_ctx : 2048;
    if (window > n)
        window = n;
    if (n < 1)
        return ES_OK;
    logprob[0] = NAN;
    if (n == 1)
        return ES_OK;

    es_trainer *t = NULL;
    uint8_t *wanted = es_calloc(window, 1);
    float *out = es_calloc(window, sizeof *out);
    int code = wanted && out ? ES_OK : es_fail(err, ES_ERR_MEMORY, "score: no memory for windows of %d tokens", window);
    es_trainer_options o = {.max_tokens = window, .threads = threads};
    if (!code)
        code = es_trainer_open(&t, m, &o, err);

    /* Row i of a window predicts token first+i+1. A later window starts half a window back and adds the tokens that are new. */
    for (int first = 0, done = 1; !code && done < n;) {
        int end = first + window < n ? first + window : n, size = end - first, start[2] = {0, size};
        memset(wanted, 0, window);
        memset(wanted + (done - 1 - first), 1, end - done);
        es_batch b = {.ids = ids + first, .n = size, .start = start, .n_seq = 1, .target = ids + first + 1, .wanted = wanted};
        code = es_trainer_forward(t, &b, NULL, patch, NULL, 0, out, progress ? progress->cancel : NULL, err);
        for (int i = done; !code && i < end; i++)
            logprob[i] = out[i - 1 - first];
        done = end;
        first = end - window / 2;
        es_progress_report(progress, "score", done, n, "tokens");
    }
    es_trainer_free(t);
    free(out);
    free(wanted);
    return code;
}

/* ---- as chat reads it ---- */

enum { EXACT_ROWS = 16 }; /* exact logits at a time */

static double log_sum_exp(const float *x, int n)
{
    double top = x[0], sum = 0;
    for (int i = 1; i < n; i++)
        top = x[i] > top ? x[i] : top;
    for (int i = 0; i < n; i++)
        sum += exp(x[i] - top);
    return top + log(sum);
}

/* KL(p || q) in nats of two rows of logits. */
static double divergence(const float *p, const float *q, int n)
{
    double zp = log_sum_exp(p, n), zq = log_sum_exp(q, n), sum = 0;
    for (int i = 0; i < n; i++)
        sum += exp(p[i] - zp) * (p[i] - zp - (q[i] - zq));
    return sum;
}

static int decode_all(const es_model *m, es_context *c, es_trainer *exact, const int32_t *ids, int n, float *logprob, float *kl, float *rows,
                      const es_progress *progress, es_error *err)
{
    int code = ES_OK;
    for (int i = 0; !code && i + 1 < n; i++) {
        code = es_context_feed(c, ids + i, 1, progress ? progress->cancel : NULL, err);
        const float *logits = es_context_logits(c);
        if (!code)
            logprob[i + 1] = (float)(logits[ids[i + 1]] - log_sum_exp(logits, m->info.n_vocab));
        int at = i % EXACT_ROWS, left = n - i;
        if (!code && kl && at == 0)
            code = es_trainer_logits_rows(exact, i, left < EXACT_ROWS ? left : EXACT_ROWS, rows, err);
        if (!code && kl)
            kl[i + 1] = (float)divergence(rows + (size_t)at * (size_t)m->info.n_vocab, logits, m->info.n_vocab);
        es_progress_report(progress, "decode", i + 2, n, "tokens");
    }
    return code;
}

int es_score_decoded(const es_model *m, const int32_t *ids, int n, const es_patch *patch, int threads, float *logprob, float *kl,
                     const es_progress *progress, es_error *err)
{
    if (n < 1)
        return ES_OK;
    logprob[0] = NAN;
    if (kl)
        kl[0] = NAN;
    if (n == 1)
        return ES_OK;
    if (m->info.n_ctx > 0 && n > m->info.n_ctx)
        return es_fail(err, ES_ERR_LIMIT, "a text of %d tokens cannot be read as a chat is: the model knows contexts of %d", n, m->info.n_ctx);
    es_context *c = NULL;
    es_trainer *exact = NULL;
    int start[2] = {0, n};
    es_context_options co = {.n_ctx = n, .threads = threads};
    es_trainer_options to = {.max_tokens = n, .threads = threads};
    es_batch b = {.ids = ids, .n = n, .start = start, .n_seq = 1};
    float *rows = kl ? es_calloc((size_t)m->info.n_vocab, EXACT_ROWS * sizeof *rows) : NULL;
    int code = kl && !rows ? es_fail(err, ES_ERR_MEMORY, "not enough memory for %d logits", m->info.n_vocab) : es_context_open(&c, m, &co, err);
    if (!code && kl)
        code = es_trainer_open(&exact, m, &to, err);
    if (!code && kl)
        code = es_trainer_forward(exact, &b, NULL, patch, NULL, 0, NULL, progress ? progress->cancel : NULL, err);
    if (!code) {
        es_context_set_patch(c, patch);
        code = decode_all(m, c, exact, ids, n, logprob, kl, rows, progress, err);
    }
    es_trainer_free(exact);
    es_context_free(c);
    free(rows);
    return code;
}
