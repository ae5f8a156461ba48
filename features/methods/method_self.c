/* The naive baseline: optimisation on the model's own trajectories. A step draws, for each experience's prompt, a reply from the model
 * as it now is (temperature 1) and raises that reply's likelihood. What the experience preferred or rejected is not looked at, and no
 * trajectory is weighted by anything: there is no signal in it but the model itself, which grows sure of what it happened to say.
 * It is here to be measured against; what is expected of it is harm (learning.md, section 6). */
#include "method_internal.h"
#include "tune.h"

#include <stdlib.h>
#include <string.h>

typedef struct self_method {
    es_tune *tune; /* first: es_tuned_* */
    es_experiences seen;
    int batch, max_new, at; /* at: the next experience, in order */
} self_method;

static void self_free(void *self)
{
    self_method *m = self;
    es_tune_free(m->tune);
    es_experiences_free(&m->seen);
    free(m);
}

static int self_open(void **self, es_method_kind k, es_model *base, const es_method_options *o, es_error *err)
{
    (void)k;
    self_method *m = es_calloc(1, sizeof *m);
    if (!m)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a method");
    m->batch = o->batch;
    m->max_new = o->max_new > 0 ? o->max_new : 48;
    es_tune_options t = es_method_tune(o, false);
    int rc = es_tune_open(&m->tune, base, NULL, &t, err);
    if (rc)
        free(m);
    else
        *self = m;
    return rc;
}

static int self_add(void *self, const es_experience *e, const volatile bool *cancel, es_error *err)
{
    (void)cancel;
    return es_experience_copy(&((self_method *)self)->seen, e, err);
}

static int self_step(void *self, es_step_report *out, const volatile bool *cancel, es_error *err)
{
    self_method *m = self;
    double started = es_seconds();
    int n = m->batch > 0 && m->batch < m->seen.n ? m->batch : m->seen.n, rc = ES_OK, tokens = 0;
    if (!n)
        return es_fail(err, ES_ERR_USAGE, "there is nothing to learn from");
    es_sequence *said = es_calloc((size_t)n, sizeof *said), **list = es_calloc((size_t)n, sizeof *list);
    const float **slope = es_calloc((size_t)n, sizeof *slope);
    es_asked *asked = es_calloc((size_t)n, sizeof *asked);
    float *number = NULL;
    if (!said || !list || !slope || !asked)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for trajectories");
    for (int i = 0; !rc && i < n; i++) {
        const es_experience *e = &m->seen.item[(m->at + i) % m->seen.n];
        asked[i] = (es_asked){e->message, e->n_message};
        list[i] = &said[i];
    }
    rc = rc ? rc : es_tune_sample(m->tune, asked, n, m->max_new, said, cancel, err);
    for (int i = 0; !rc && i < n; i++)
        tokens += said[i].n_reply;
    if (!rc && !(number = es_calloc((size_t)tokens, sizeof *number)))
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for trajectories");
    for (int i = 0, at = 0; !rc && i < n; i++) { /* the mean over trajectories of -mean log-probability */
        slope[i] = number + at;
        for (int j = 0; j < said[i].n_reply; j++)
            number[at++] = -1.0f / (float)said[i].n_reply / (float)n;
    }
    es_tune_loss loss = {.seq = list, .n = n, .slope = slope};
    rc = rc ? rc : es_tune_step_on(m->tune, &loss, out, cancel, err);
    if (!rc) {
        m->at = (m->at + n) % m->seen.n;
        out->seconds = es_seconds() - started;
    }
    for (int i = 0; said && i < n; i++)
        es_sequence_free(&said[i]);
    free(number);
    free(asked);
    free(slope);
    free(list);
    free(said);
    return rc;
}

const es_method_ops es_method_self_ops = {
    .open = self_open, .free = self_free, .add = self_add, .step = self_step, .view = es_tuned_view, .copy = es_tuned_copy, .parameters = es_tuned_parameters,
    .bytes = es_tuned_bytes,
};
