/* On-policy distillation into low-rank updates. A step: the student, as it is now and without anything in its context, answers a few
 * prompts; the teacher (the base model with the preference, or with the other experiences as worked turns, in its context; or a second
 * model) scores every token of the answers; one step of Adam down the loss (distil.h). Prompts are the experiences' conversations and,
 * where the teacher does not live on experiences, ordinary questions. The advantage is measured again when the experiences have changed. */
#include "distil.h"
#include "everyday.h"
#include "method_internal.h"
#include "tune.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 4 };

typedef struct distil_method {
    es_tune *tune; /* first: es_tuned_* */
    es_method_options o;
    char *preference;
    es_teacher *teacher;
    es_experiences seen;
    es_advantage advantage;
    int measured; /* of seen, when the advantage was; -1: never */
    int at;       /* place in the order of prompts */
    es_rng rng;
    int *order;   /* [prompts] */
    int n_order;
    char note[256];
} distil_method;

static void distil_free(void *self)
{
    distil_method *m = self;
    es_tune_free(m->tune);
    es_teacher_free(m->teacher);
    es_experiences_free(&m->seen);
    free(m->preference);
    free(m->order);
    free(m);
}

static int distil_open(void **self, es_method_kind k, es_model *base, const es_method_options *o, es_error *err)
{
    es_method_options usual = es_method_default(k);
    distil_method *m = es_calloc(1, sizeof *m);
    if (m && o->preference)
        m->preference = strdup(o->preference);
    if (!m || (o->preference && !m->preference)) {
        free(m);
        return es_fail(err, ES_ERR_MEMORY, "no memory for a method");
    }
    m->o = *o;
    m->o.max_new = o->max_new > 0 ? o->max_new : usual.max_new;
    m->o.batch = o->batch > 0 ? o->batch : BATCH;
    m->o.distil_loss = o->distil_loss ? o->distil_loss : usual.distil_loss;
    m->measured = -1;
    es_rng_seed(&m->rng, o->seed);
    es_tune_options t = es_method_tune(o, false);
    t.rate = o->rate > 0 ? o->rate : usual.rate;
    es_teacher_options to = {.model = o->teacher, .preference = m->preference, .context_tokens = o->context_tokens, .max_prompt = t.max_prompt,
                             .max_reply = t.max_reply, .masked = -1, .threads = o->threads};
    int rc = es_teacher_open(&m->teacher, base, &to, err);
    rc = rc ? rc : es_tune_open(&m->tune, base, NULL, &t, err);
    if (rc)
        distil_free(m);
    else
        *self = m;
    return rc;
}

static int distil_add(void *self, const es_experience *e, const volatile bool *cancel, es_error *err)
{
    distil_method *m = self;
    (void)cancel;
    int rc = es_experience_copy(&m->seen, e, err);
    if (!rc)
        m->n_order = 0;
    return rc;
}

/* ---- a step ------------------------------------------------------------------------------------------------------------------------ */

/* Prompt i: the experiences', then ordinary questions. */
static int n_prompts(const distil_method *m)
{
    return m->seen.n + (m->preference || m->o.teacher ? ES_EVERYDAY : 0);
}

static void prompt(const distil_method *m, int i, es_message *own, const es_message **message, int *n)
{
    *own = (es_message){"user", i >= m->seen.n ? es_everyday_item[i - m->seen.n].question : ""};
    *message = i < m->seen.n ? m->seen.item[i].message : own;
    *n = i < m->seen.n ? m->seen.item[i].n_message : 1;
}

/* The next prompt of a random order that takes each once. */
static int next_prompt(distil_method *m, int *out, es_error *err)
{
    int n = n_prompts(m);
    if (m->n_order != n) {
        int *order = realloc(m->order, (size_t)n * sizeof *order);
        if (!order)
            return es_fail(err, ES_ERR_MEMORY, "no memory for the order of %d prompts", n);
        m->order = order;
        m->n_order = n;
        m->at = n;
    }
    if (m->at >= n) {
        for (int i = 0; i < n; i++) {
            int j = (int)es_rng_below(&m->rng, (uint64_t)i + 1);
            m->order[i] = m->order[j];
            m->order[j] = i;
        }
        m->at = 0;
    }
    *out = m->order[m->at++];
    return ES_OK;
}

static int measure(distil_method *m, const volatile bool *cancel, es_error *err)
{
    int rc = ES_OK;
    if (m->measured != m->seen.n) {
        rc = es_teacher_advantage(m->teacher, m->seen.item, m->seen.n, &m->advantage, cancel, err);
        m->measured = rc ? -1 : m->seen.n;
        snprintf(m->note, sizeof m->note, "%s", rc ? "" : m->advantage.reason);
    }
    return rc ? rc : es_advantage_require(&m->advantage, err);
}

typedef struct batch {
    es_sequence *seq;
    es_sequence **list; /* those with tokens that count */
    es_target *target;
    int n, counted;
} batch;

static void batch_free(batch *b, int n)
{
    for (int i = 0; b->seq && i < n; i++)
        es_sequence_free(&b->seq[i]);
    for (int i = 0; b->target && i < n; i++)
        es_target_free(&b->target[i]);
    free(b->seq);
    free(b->list);
    free(b->target);
}

static double token_loss(void *user, int s, int i, const float *p, float *dl)
{
    const batch *b = user;
    const es_sequence *q = b->list[s];
    return es_distil_token(&b->target[s], i, q->target[q->n - q->n_reply + i], p, 1.0 / b->counted, dl);
}

/* The batch's next place takes the sample of `asked`, scored; one that ended inside what is masked is freed instead. */
static int score(distil_method *m, batch *b, const es_asked *asked, es_sequence *s, const volatile bool *cancel, es_error *err)
{
    es_target *t = &b->target[b->n];
    int rc = ES_OK;
    if (s->n_reply > ES_DISTIL_MASKED)
        rc = es_teacher_score(m->teacher, asked->message, asked->n_message, s, (es_distil_loss)m->o.distil_loss, m->seen.item, m->seen.n, t, cancel, err);
    if (rc || s->n_reply <= ES_DISTIL_MASKED) {
        es_sequence_free(s);
        return rc;
    }
    b->counted += es_target_counted(t);
    b->seq[b->n] = *s;
    b->list[b->n] = &b->seq[b->n];
    b->n++;
    return ES_OK;
}

/* Samples, all that are still wanted at once, and scores. For one that ended inside what is masked another prompt's is drawn, a few times. */
static int gather(distil_method *m, batch *b, const volatile bool *cancel, es_error *err)
{
    const int want = m->o.batch;
    es_message *own = es_calloc((size_t)want, sizeof *own);
    es_asked *asked = es_calloc((size_t)want, sizeof *asked);
    es_sequence *said = es_calloc((size_t)want, sizeof *said);
    int rc = own && asked && said ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for %d samples", want);
    for (int tries = 0; !rc && b->n < want && tries < 4 * want;) {
        int n = want - b->n;
        for (int i = 0, at = 0; !rc && i < n; i++)
            if (!(rc = next_prompt(m, &at, err)))
                prompt(m, at, &own[i], &asked[i].message, &asked[i].n_message);
        rc = rc ? rc : es_tune_sample(m->tune, asked, n, m->o.max_new, said, cancel, err);
        if (rc)
            break;
        tries += n;
        for (int i = 0; i < n; i++)
            if (rc)
                es_sequence_free(&said[i]);
            else
                rc = score(m, b, &asked[i], &said[i], cancel, err);
    }
    free(own);
    free(asked);
    free(said);
    return rc;
}

static int distil_step(void *self, es_step_report *out, const volatile bool *cancel, es_error *err)
{
    distil_method *m = self;
    size_t n = (size_t)m->o.batch;
    double started = es_seconds();
    if (!n_prompts(m))
        return es_fail(err, ES_ERR_USAGE, "there is nothing to distil: no preference, no teacher and no experience");
    int rc = measure(m, cancel, err);
    if (rc)
        return rc;
    batch b = {.seq = es_calloc(n, sizeof *b.seq), .list = es_calloc(n, sizeof(es_sequence *)), .target = es_calloc(n, sizeof *b.target)};
    rc = b.seq && b.list && b.target ? gather(m, &b, cancel, err) : es_fail(err, ES_ERR_MEMORY, "no memory for %zu samples", n);
    if (!rc && !b.n)
        rc = es_fail(err, ES_ERR_LIMIT, "the model ends its replies within %d tokens: there is nothing that could be scored", ES_DISTIL_MASKED);
    if (!rc) {
        es_tune_loss loss = {.seq = b.list, .n = b.n, .token = token_loss, .user = &b};
        rc = es_tune_step_on(m->tune, &loss, out, cancel, err);
    }
    out->seconds = es_seconds() - started;
    batch_free(&b, (int)n);
    return rc;
}

/* ---- what answers -------------------------------------------------------------------------------------------------------------------- */

static const char *distil_note(const void *self)
{
    return ((const distil_method *)self)->note;
}

const es_method_ops es_method_distil_ops = {
    .open = distil_open, .free = distil_free, .add = distil_add, .step = distil_step, .view = es_tuned_view, .copy = es_tuned_copy,
    .parameters = es_tuned_parameters, .bytes = es_tuned_bytes, .note = distil_note,
};
