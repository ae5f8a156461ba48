#include "pack.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const ANCHORS[] = { /* neutral prose, facts, arithmetic, code */
    "The river rises in the hills to the north and flows through three towns before it reaches the sea.",
    "In 1869 the chemist arranged the known elements by their atomic weight and left gaps for those not yet found.",
    "To prepare the soil, remove the weeds, loosen the top layer, and mix in some compost before planting.",
    "A train leaves at 9:15 and travels 120 miles at 60 miles per hour, so it arrives at 11:15.",
    "The committee met on Tuesday to discuss the budget, and the minutes were sent to all members the next day.",
    "def mean(values):\n    total = sum(values)\n    return total / len(values)\n",
    "Most birds build their nests in spring, when food is easy to find and the days grow longer.",
    "She closed the book, put it back on the shelf, and went to the kitchen to see whether the bread was ready.",
    "Water boils at a lower temperature on a mountain because the pressure of the air is lower there.",
};

const char *const *es_anchor_texts(int *n)
{
    *n = (int)(sizeof ANCHORS / sizeof *ANCHORS);
    return ANCHORS;
}

static int sequence_alloc(es_sequence *s, int n, es_error *err)
{
    s->ids = es_calloc(2 * (size_t)n, sizeof *s->ids);
    if (!s->ids)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a sequence of %d tokens", n);
    s->target = s->ids + n;
    s->n = n;
    return ES_OK;
}

int es_sequence_make(es_sequence *out, const es_model *m, const es_message *message, int n_message, const char *reply, int max_prompt,
                     int max_reply, es_error *err)
{
    es_ids prompt = {0}, answer = {0}, close = {0};
    *out = (es_sequence){0};
    int rc = es_chat_render(m, message, (size_t)n_message, true, &prompt, err);
    rc = rc ? rc : es_tokenize(m, reply, strlen(reply), false, &answer, err);
    rc = rc ? rc : es_chat_close(m, &close, err);
    if (!rc && (prompt.n < 1 || max_prompt < 1 || max_reply < 1))
        rc = es_fail(err, ES_ERR_USAGE, "a sequence needs at least one token of prompt and of reply");
    if (!rc) {
        size_t skip = prompt.n > (size_t)max_prompt ? prompt.n - (size_t)max_prompt : 0;
        size_t n_prompt = prompt.n - skip, n_answer = answer.n < (size_t)max_reply ? answer.n : (size_t)max_reply;
        bool ends = n_answer == answer.n && answer.n < (size_t)max_reply && close.n > 0;
        size_t n_reply = n_answer + ends;
        if (n_reply < 1)
            rc = es_fail(err, ES_ERR_USAGE, "a reply without tokens cannot be learned from");
        else
            rc = sequence_alloc(out, (int)(n_prompt + n_reply - 1), err);
        for (size_t i = 0; !rc && i < n_prompt + n_reply; i++) {
            int32_t id = i < n_prompt ? prompt.id[skip + i] : i < n_prompt + n_answer ? answer.id[i - n_prompt] : close.id[0];
            if (i < (size_t)out->n)
                out->ids[i] = id;
            if (i > 0)
                out->target[i - 1] = id;
        }
        out->n_reply = (int)n_reply;
    }
    es_ids_free(&prompt);
    es_ids_free(&answer);
    es_ids_free(&close);
    return rc;
}

int es_sequence_text(es_sequence *out, const es_model *m, const char *text, int max_tokens, es_error *err)
{
    es_ids ids = {0};
    *out = (es_sequence){0};
    int rc = es_tokenize_text(m, text, strlen(text), &ids, err);
    if (!rc && ids.n < 2)
        rc = es_fail(err, ES_ERR_USAGE, "a text of %zu tokens cannot be scored", ids.n);
    if (!rc) {
        int n = ids.n - 1 < (size_t)max_tokens ? (int)ids.n - 1 : max_tokens;
        rc = sequence_alloc(out, n, err);
        for (int i = 0; !rc && i < n; i++) {
            out->ids[i] = ids.id[i];
            out->target[i] = ids.id[i + 1];
        }
        out->n_reply = n;
    }
    es_ids_free(&ids);
    return rc;
}

int es_sequence_ids(es_sequence *out, const int32_t *prompt, int n_prompt, const int32_t *reply, int n_reply, es_error *err)
{
    *out = (es_sequence){0};
    if (n_prompt < 1 || n_reply < 1 || n_reply > INT32_MAX - n_prompt)
        return es_fail(err, ES_ERR_USAGE, "a sequence needs at least one token of prompt and of reply");
    int n = n_prompt + n_reply - 1, rc = sequence_alloc(out, n, err);
    for (int i = 0; !rc && i <= n; i++) {
        int32_t id = i < n_prompt ? prompt[i] : reply[i - n_prompt];
        if (i < n)
            out->ids[i] = id;
        if (i > 0)
            out->target[i - 1] = id;
    }
    out->n_reply = rc ? 0 : n_reply;
    return rc;
}

void es_sequence_free(es_sequence *s)
{
    free(s->ids);
    free(s->resid);
    *s = (es_sequence){0};
}

size_t es_sequence_bytes(const es_sequence *s, int d)
{
    return (size_t)s->n * (2 * sizeof *s->ids + (s->resid ? sizeof *s->resid * (size_t)d : 0));
}

int es_sequence_residual(es_sequence *s, es_trainer *t, int layer, int d, const volatile bool *cancel, es_error *err)
{
    int start[2] = {0, s->n};
    es_batch b = {.ids = s->ids, .n = s->n, .start = start, .n_seq = 1};
    if (!s->resid)
        s->resid = es_calloc((size_t)s->n * (size_t)d, sizeof *s->resid);
    if (!s->resid)
        return es_fail(err, ES_ERR_MEMORY, "no memory for the residual of %d tokens", s->n);
    return es_trainer_residual(t, &b, layer, s->resid, cancel, err);
}

/* ---- batches ----------------------------------------------------------------------------------------------------------- */

static void pack_carve(es_pack *p)
{
    size_t n = (size_t)p->cap;
    p->ids = es_arena_take(&p->arena, n, sizeof *p->ids);
    p->target = es_arena_take(&p->arena, n, sizeof *p->target);
    p->wanted = es_arena_take(&p->arena, n, sizeof *p->wanted);
    p->start = es_arena_take(&p->arena, n + 1, sizeof *p->start);
    p->slot = es_arena_take(&p->arena, n, sizeof *p->slot);
    p->seq = es_arena_take(&p->arena, n, sizeof *p->seq);
    p->logprob = es_arena_take(&p->arena, n, sizeof *p->logprob);
    p->dlogprob = es_arena_take(&p->arena, n, sizeof *p->dlogprob);
    p->resid = es_arena_take(&p->arena, n * (size_t)p->d, sizeof *p->resid);
}

int es_pack_open(es_pack *p, int cap, int d, es_error *err)
{
    *p = (es_pack){.cap = cap, .d = d};
    pack_carve(p);
    size_t size = p->arena.used;
    p->arena = (es_arena){0};
    int rc = es_arena_open(&p->arena, size, err);
    if (!rc)
        pack_carve(p);
    return rc;
}

void es_pack_close(es_pack *p)
{
    es_arena_close(&p->arena);
    *p = (es_pack){0};
}

void es_pack_clear(es_pack *p)
{
    p->n = p->n_seq = 0;
    p->start[0] = 0;
}

bool es_pack_add(es_pack *p, es_sequence *s, int slot)
{
    if (s->n > p->cap - p->n)
        return false;
    size_t at = (size_t)p->n, n = (size_t)s->n;
    memcpy(p->ids + at, s->ids, n * sizeof *s->ids);
    memcpy(p->target + at, s->target, n * sizeof *s->target);
    if (s->resid)
        memcpy(p->resid + at * (size_t)p->d, s->resid, n * (size_t)p->d * sizeof *s->resid);
    for (int i = 0; i < s->n; i++) {
        p->wanted[at + (size_t)i] = i >= s->n - s->n_reply;
        p->dlogprob[at + (size_t)i] = 0;
    }
    p->seq[p->n_seq] = s;
    p->slot[p->n_seq] = slot;
    p->n += s->n;
    p->start[++p->n_seq] = p->n;
    return true;
}

es_batch es_pack_batch(const es_pack *p)
{
    return (es_batch){.ids = p->ids, .n = p->n, .start = p->start, .n_seq = p->n_seq, .target = p->target, .wanted = p->wanted};
}

void es_pack_means(es_pack *p)
{
    for (int i = 0; i < p->n_seq; i++) {
        double sum = 0;
        for (int t = p->start[i + 1] - p->seq[i]->n_reply; t < p->start[i + 1]; t++)
            sum += p->logprob[t];
        p->seq[i]->now = sum / p->seq[i]->n_reply;
    }
}

/* ---- losses ------------------------------------------------------------------------------------------------------------- */

double es_experience_loss(const es_sequence *preferred, const es_sequence *rejected, double beta, double *dpref, double *drej)
{
    *dpref = *drej = 0;
    if (!rejected) {
        *dpref = -1;
        return -preferred->now;
    }
    double x = beta * es_experience_gain(preferred, rejected), off = 1 / (1 + exp(x)); /* off = sigma(-x) */
    if (preferred)
        *dpref = -beta * off;
    *drej = beta * off;
    return x > 0 ? log1p(exp(-x)) : -x + log1p(exp(x));
}

double es_experience_gain(const es_sequence *preferred, const es_sequence *rejected)
{
    return (preferred ? preferred->now - preferred->base : 0) - (rejected ? rejected->now - rejected->base : 0);
}
