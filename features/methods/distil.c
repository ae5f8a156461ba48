#include "distil.h"

#include "method.h"
#include "worked.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 16, MEASURED = 16 };

struct es_teacher {
    es_model *base, *model;
    es_teacher_options o;
    es_trainer *trainer; /* of model */
    int room;            /* its tokens */
    es_trainer *plain;   /* of base: for what the advantage is measured from, when model is another */
    int plain_room;
    float *logits;       /* [ROWS, n_vocab] */
};

static int check_tokenizer(const es_model *a, const es_model *b, es_error *err)
{
    const es_model_info *x = es_model_get_info(a), *y = es_model_get_info(b);
    if (x->n_vocab != y->n_vocab)
        return es_fail(err, ES_ERR_MISMATCH, "the teacher %s has another tokenizer: %d tokens, the model has %d", y->name, y->n_vocab, x->n_vocab);
    for (int i = 0; i < x->n_vocab; i++) {
        size_t n, k;
        const char *s = es_token_bytes(a, i, &n), *t = es_token_bytes(b, i, &k);
        if (n != k || memcmp(s, t, n) || es_token_is_control(a, i) != es_token_is_control(b, i))
            return es_fail(err, ES_ERR_MISMATCH, "the teacher %s has another tokenizer: token %d is '%.*s', the model's is '%.*s'", y->name, i, (int)k, t,
                           (int)n, s);
    }
    return ES_OK;
}

int es_teacher_open(es_teacher **out, es_model *base, const es_teacher_options *o, es_error *err)
{
    *out = NULL;
    es_teacher *t = es_calloc(1, sizeof *t);
    if (!t)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a teacher");
    t->base = base;
    t->o = *o;
    t->model = o->model ? o->model : base;
    t->o.masked = o->masked < 0 ? ES_DISTIL_MASKED : o->masked;
    int rc = t->model != base ? check_tokenizer(base, t->model, err) : ES_OK;
    t->logits = rc ? NULL : es_calloc((size_t)ROWS * (size_t)es_model_get_info(base)->n_vocab, sizeof *t->logits);
    if (!rc && !t->logits)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for a teacher's logits");
    if (rc)
        es_teacher_free(t);
    else
        *out = t;
    return rc;
}

void es_teacher_free(es_teacher *t)
{
    if (!t)
        return;
    es_trainer_free(t->trainer);
    es_trainer_free(t->plain);
    free(t->logits);
    free(t);
}

/* A trainer of at least n tokens. */
static int make_room(es_trainer **trainer, int *room, const es_model *m, int n, int threads, es_error *err)
{
    if (*trainer && n <= *room)
        return ES_OK;
    es_trainer_free(*trainer);
    *trainer = NULL;
    *room = (n + 255) / 256 * 256;
    es_trainer_options o = {.max_tokens = *room, .logit_bytes = 1, .threads = threads};
    return es_trainer_open(trainer, m, &o, err);
}

static bool same(const es_experience *e, const es_message *message, int n)
{
    bool yes = e->n_message == n;
    for (int i = 0; yes && i < n; i++)
        yes = !strcmp(e->message[i].role, message[i].role) && !strcmp(e->message[i].content, message[i].content);
    return yes;
}

/* The teacher's context and the conversation, rendered. */
static int teacher_prompt(es_teacher *t, const es_message *message, int n_message, const es_experience *shown, int n_shown, es_ids *out, es_error *err)
{
    bool turns = !t->o.preference && t->model == t->base;
    es_worked w = {0};
    es_message *talk = NULL;
    es_experience *others = es_calloc((size_t)n_shown + 1, sizeof *others);
    int n_others = 0, n = 0, rc = others ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for a teacher's context");
    for (int i = 0; others && turns && i < n_shown; i++)
        if (!same(&shown[i], message, n_message))
            others[n_others++] = shown[i]; /* borrowed */
    rc = rc ? rc : es_worked_make(&w, t->model, t->o.preference, others, n_others, t->o.context_tokens, err);
    if (!rc) {
        es_variant v = {.prefix = w.message, .n_prefix = w.n};
        rc = es_variant_conversation(&v, message, n_message, &talk, &n, err);
        rc = rc ? rc : es_chat_render(t->model, talk, (size_t)n, true, out, err);
    }
    free(talk);
    free(others);
    es_worked_free(&w);
    return rc;
}

/* The reply of s after another prompt. */
static int with_prompt(es_sequence *out, const es_ids *prompt, const es_sequence *s, int n_ctx, es_error *err)
{
    int n = (int)prompt->n, room = n_ctx - s->n_reply;
    if (room < 1)
        return es_fail(err, ES_ERR_LIMIT, "a reply of %d tokens does not fit into the teacher's context of %d", s->n_reply, n_ctx);
    int skip = n > room ? n - room : 0;
    return es_sequence_ids(out, prompt->id + skip, n - skip, s->target + s->n - s->n_reply, s->n_reply, err);
}

int es_teacher_score(es_teacher *t, const es_message *message, int n_message, const es_sequence *s, es_distil_loss loss, const es_experience *shown,
                     int n_shown, es_target *out, const volatile bool *cancel, es_error *err)
{
    int n_vocab = es_model_get_info(t->model)->n_vocab;
    es_ids prompt = {0};
    es_sequence q = {0};
    *out = (es_target){0};
    int rc = teacher_prompt(t, message, n_message, shown, n_shown, &prompt, err);
    rc = rc ? rc : with_prompt(&q, &prompt, s, es_model_get_info(t->model)->n_ctx, err);
    rc = rc ? rc : make_room(&t->trainer, &t->room, t->model, q.n, t->o.threads, err);
    if (!rc) {
        int start[2] = {0, q.n};
        es_batch b = {.ids = q.ids, .n = q.n, .start = start, .n_seq = 1};
        rc = es_trainer_forward(t->trainer, &b, NULL, NULL, NULL, 0, NULL, cancel, err);
    }
    rc = rc ? rc : es_target_open(out, loss, q.n_reply, n_vocab, t->o.masked, err);
    for (int i = 0, n; !rc && i < q.n_reply; i += n) {
        int first = q.n - q.n_reply;
        n = q.n_reply - i < ROWS ? q.n_reply - i : ROWS;
        rc = es_trainer_logits_rows(t->trainer, first + i, n, t->logits, err);
        for (int r = 0; !rc && r < n; r++)
            es_target_row(out, i + r, q.target[first + i + r], t->logits + (size_t)r * (size_t)n_vocab);
    }
    if (rc)
        es_target_free(out);
    es_ids_free(&prompt);
    es_sequence_free(&q);
    return rc;
}

/* ---- its advantage ------------------------------------------------------------------------------------------------------------------ */

static int mean_logprob(es_trainer *t, const es_sequence *s, double *out, const volatile bool *cancel, es_error *err)
{
    int start[2] = {0, s->n};
    uint8_t *wanted = es_calloc((size_t)s->n, 1);
    float *logprob = es_calloc((size_t)s->n, sizeof *logprob);
    int rc = wanted && logprob ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory to score %d tokens", s->n);
    if (!rc) {
        memset(wanted + s->n - s->n_reply, 1, (size_t)s->n_reply);
        es_batch b = {.ids = s->ids, .n = s->n, .start = start, .n_seq = 1, .target = s->target, .wanted = wanted};
        rc = es_trainer_forward(t, &b, NULL, NULL, NULL, 0, logprob, cancel, err);
    }
    *out = 0;
    for (int i = s->n - s->n_reply; !rc && i < s->n; i++)
        *out += logprob[i] / s->n_reply;
    free(wanted);
    free(logprob);
    return rc;
}

/* Change of the mean log-probability of one reply, teacher from base. */
static int reply_gain(es_teacher *t, const es_experience *e, const char *reply, const es_experience *all, int n, double *gain, const volatile bool *cancel,
                      es_error *err)
{
    es_ids prompt = {0};
    es_sequence s = {0}, q = {0};
    double with = 0, without = 0;
    es_trainer **trainer = t->model == t->base ? &t->trainer : &t->plain;
    int *room = t->model == t->base ? &t->room : &t->plain_room;
    int rc = es_sequence_make(&s, t->base, e->message, e->n_message, reply, t->o.max_prompt, t->o.max_reply, err);
    rc = rc ? rc : teacher_prompt(t, e->message, e->n_message, all, n, &prompt, err);
    rc = rc ? rc : with_prompt(&q, &prompt, &s, es_model_get_info(t->model)->n_ctx, err);
    rc = rc ? rc : make_room(&t->trainer, &t->room, t->model, q.n, t->o.threads, err);
    rc = rc ? rc : mean_logprob(t->trainer, &q, &with, cancel, err);
    rc = rc ? rc : make_room(trainer, room, t->base, s.n, t->o.threads, err);
    rc = rc ? rc : mean_logprob(*trainer, &s, &without, cancel, err);
    *gain = with - without;
    es_ids_free(&prompt);
    es_sequence_free(&s);
    es_sequence_free(&q);
    return rc;
}

static void mean_and_error(const double *x, int n, double *mean, double *error)
{
    double sum = 0, square = 0;
    for (int i = 0; i < n; i++)
        sum += x[i];
    *mean = n ? sum / n : 0;
    for (int i = 0; i < n; i++)
        square += (x[i] - *mean) * (x[i] - *mean);
    *error = n > 1 ? sqrt(square / (n - 1) / n) : 0;
}

int es_teacher_advantage(es_teacher *t, const es_experience *e, int n, es_advantage *out, const volatile bool *cancel, es_error *err)
{
    double plus[MEASURED], both[MEASURED];
    int usable = 0, taken = 0, rc = ES_OK;
    *out = (es_advantage){0};
    for (int i = 0; i < n; i++)
        usable += e[i].preferred && e[i].weight > 0;
    for (int i = 0, seen = 0; !rc && i < n; i++) {
        if (!e[i].preferred || e[i].weight <= 0)
            continue;
        int most = usable < MEASURED ? usable : MEASURED; /* spread over the whole list */
        bool take = (long)(seen + 1) * most / usable > taken;
        seen++;
        if (!take)
            continue;
        taken++;
        double rejected = 0;
        rc = reply_gain(t, &e[i], e[i].preferred, e, n, &plus[out->replies], cancel, err);
        if (!rc && e[i].rejected) {
            rc = reply_gain(t, &e[i], e[i].rejected, e, n, &rejected, cancel, err);
            both[out->pairs++] = plus[out->replies] - rejected;
        }
        out->replies += !rc;
    }
    if (rc)
        return rc;
    mean_and_error(plus, out->replies, &out->preferred, &out->preferred_error);
    mean_and_error(both, out->pairs, &out->margin, &out->margin_error);
    bool margin = out->pairs > 0 && t->model == t->base;
    out->any = out->replies > 0 && (margin ? out->margin > out->margin_error : out->preferred > out->preferred_error);
    if (!out->replies)
        snprintf(out->reason, sizeof out->reason, "the teacher's advantage was not measured: there is no preferred reply to measure it on");
    else
        snprintf(out->reason, sizeof out->reason, "%s: %s of %d experience%s %+.4f +- %.4f nats a token, %s %+.4f",
                 out->any ? "the teacher has an advantage" : "the teacher has no advantage", margin ? "margin" : "preferred replies",
                 margin ? out->pairs : out->replies, (margin ? out->pairs : out->replies) == 1 ? "" : "s", margin ? out->margin : out->preferred,
                 margin ? out->margin_error : out->preferred_error, margin ? "preferred replies" : "margin", margin ? out->preferred : out->margin);
    return ES_OK;
}

int es_advantage_require(const es_advantage *a, es_error *err)
{
    if (a->replies && !a->any)
        return es_fail(err, ES_ERR_REFUSED, "nothing is learned from it: %s", a->reason);
    return ES_OK;
}
