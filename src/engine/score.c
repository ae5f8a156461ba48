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
