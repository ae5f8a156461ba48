#include "prefer.h"
#include "everyday.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char PREFIX[] = "prefer: ";

/* Draws a reply; its last token ends it where it ended by itself. */
static int draw(es_model *m, es_context *c, const es_message *message, int n, int max_new, const es_sampling *how, es_rng *rng, es_ids *prompt, es_ids *out,
                const volatile bool *cancel, es_error *err)
{
    int rc = es_chat_render(m, message, (size_t)n, true, prompt, err);
    rc = rc ? rc : es_context_truncate(c, 0, err);
    if (!rc && (int)prompt->n + max_new > es_context_size(c))
        rc = es_fail(err, ES_ERR_LIMIT, "a question of %zu tokens leaves no room for a reply in %d", prompt->n, es_context_size(c));
    rc = rc ? rc : es_context_feed(c, prompt->id, (int)prompt->n, cancel, err);
    for (int i = 0; !rc && i < max_new; i++) {
        int32_t id = es_sample(c, how, rng);
        if (es_ids_add(out, id))
            rc = es_fail(err, ES_ERR_MEMORY, "no memory for a reply");
        if (rc || es_token_ends(m, id))
            break;
        rc = es_context_feed(c, &id, 1, cancel, err);
    }
    return rc;
}

/* A cut may end inside a character. */
static void whole(es_buf *text)
{
    if (!text->data)
        return;
    text->len = es_utf8_whole(text->data, text->len);
    text->data[text->len] = 0;
}

/* A reply as text. */
static int reply_by(es_model *m, es_context *c, const es_message *message, int n, int max_new, const es_sampling *how, es_rng *rng, es_buf *out,
                    const volatile bool *cancel, es_error *err)
{
    es_ids prompt = {0}, ids = {0};
    es_buf_clear(out);
    int rc = draw(m, c, message, n, max_new, how, rng, &prompt, &ids, cancel, err);
    for (size_t i = 0; !rc && i < ids.n; i++) {
        size_t len = 0;
        const char *bytes = es_token_bytes(m, ids.id[i], &len);
        es_buf_add(out, bytes, es_token_is_control(m, ids.id[i]) || es_token_ends(m, ids.id[i]) ? 0 : len);
    }
    whole(out);
    es_ids_free(&prompt);
    es_ids_free(&ids);
    return rc || !out->failed ? rc : es_fail(err, ES_ERR_MEMORY, "no memory for a reply");
}

/* Replies at temperature 0 to two conversations about each of n questions, the question alone and after the preference: into said[2 n]. */
static int replies(es_model *m, es_context *c, const char *preference, const char *const *question, int n, int max_new, es_buf *said, const volatile bool *cancel,
                   es_error *err)
{
    es_ids prompt[ES_STREAMS] = {0};
    es_reply reply[ES_STREAMS] = {0};
    int rc = ES_OK;
    for (int i = 0; !rc && i < 2 * n; i++) {
        es_message message[2] = {{"system", preference}, {"user", question[i / 2]}};
        rc = es_chat_render(m, message + !(i % 2), 1 + (size_t)(i % 2), true, &prompt[i], err);
        if (!rc && (int)prompt[i].n + max_new > es_context_size(c))
            rc = es_fail(err, ES_ERR_LIMIT, "a question of %zu tokens leaves no room for a reply in %d", prompt[i].n, es_context_size(c));
        reply[i] = (es_reply){.prompt = prompt[i].id, .n_prompt = (int)prompt[i].n, .max_new = max_new, .sampling = {.temperature = 0, .top_p = 1, .repeat_penalty = 1}};
    }
    rc = rc ? rc : es_generate(c, reply, 2 * n, NULL, NULL, cancel, err);
    for (int i = 0; i < 2 * n; i++) {
        es_buf_clear(&said[i]);
        rc = rc ? rc : es_reply_text(m, &reply[i], &said[i], err);
        whole(&said[i]);
        es_ids_free(&prompt[i]);
        es_ids_free(&reply[i].ids);
    }
    return rc;
}

static bool blank(const es_buf *b)
{
    return !b->data || !b->data[strspn(b->data, " \n\t")];
}

int es_reply_again(es_model *m, es_context *c, es_adapter *a, const es_message *message, int n_message, const char *not, int max_new, const es_sampling *how,
                   es_rng *rng, es_buf *out, const volatile bool *cancel, es_error *err)
{
    es_sampling warm = *how;
    es_patch patch;
    warm.temperature = how->temperature < 0.7f ? 0.7f : how->temperature;
    int rc = a ? es_adapter_patch(a, 1, &patch, err) : ES_OK;
    if (rc)
        return rc;
    es_context_set_patch(c, a ? &patch : NULL);
    bool other = false;
    for (int tries = 0; !rc && !other && tries < 4; tries++) {
        rc = reply_by(m, c, message, n_message, max_new, &warm, rng, out, cancel, err);
        size_t n = strlen(not);
        other = !rc && !blank(out) && strncmp(out->data, not, out->len < n ? out->len : n); /* one that only ends elsewhere teaches nothing */
    }
    es_context_set_patch(c, NULL);
    return rc || other ? rc : es_fail(err, ES_ERR_MISSING, "the model says nothing else");
}

/* The last question of each of own's experiences, once each, then ordinary ones: at most n. */
static int questions(const es_experiences *own, const char **out, int n)
{
    int have = 0;
    for (int i = own ? own->n - 1 : -1; i >= 0 && have < n; i--) {
        const es_experience *e = &own->item[i];
        const char *q = e->n_message ? e->message[e->n_message - 1].content : NULL;
        for (int j = 0; q && j < have; j++)
            if (!strcmp(out[j], q))
                q = NULL;
        if (q)
            out[have++] = q;
    }
    for (int i = 0; i < ES_EVERYDAY && have < n; i++)
        out[have++] = es_everyday_item[i].question;
    return have;
}

static int advantage_of(es_model *m, const char *preference, const es_prefer_options *o, es_advantage *out, const volatile bool *cancel, es_error *err)
{
    es_teacher_options t = {.preference = preference, .max_prompt = 128, .max_reply = 96, .masked = -1, .threads = o->threads};
    es_teacher *teacher = NULL;
    es_experience *own = es_calloc((size_t)o->own->n, sizeof *own); /* borrowed: what the person said, not what another preference made */
    int n = 0, rc = own ? es_teacher_open(&teacher, m, &t, err) : es_fail(err, ES_ERR_MEMORY, "no memory for experiences");
    for (int i = 0; own && i < o->own->n; i++)
        if (!es_prefer_of(&o->own->item[i]))
            own[n++] = o->own->item[i];
    rc = rc || !n ? rc : es_teacher_advantage(teacher, own, n, out, cancel, err);
    es_teacher_free(teacher);
    free(own);
    return rc ? rc : es_advantage_require(out, err);
}

int es_prefer_pairs(es_model *m, const char *preference, const es_prefer_options *o, es_experiences *out, es_advantage *advantage, const es_progress *progress,
                    es_error *err)
{
    enum { ASK = 12 };
    const char *question[ASK];
    int want = o->pairs > 0 && o->pairs < ASK ? o->pairs : 6, max_new = o->max_new > 0 ? o->max_new : 96, before = out->n;
    es_context_options co = {.n_ctx = o->n_ctx, .threads = o->threads, .n_seq = ES_STREAMS};
    es_context *c = NULL;
    es_buf said[ES_STREAMS] = {0};
    const volatile bool *cancel = progress ? progress->cancel : NULL;
    es_buf source = {0};
    *advantage = (es_advantage){0};
    int n = questions(o->own, question, ASK), rc = ES_OK;
    if (o->own && o->own->n)
        rc = advantage_of(m, preference, o, advantage, cancel, err);
    rc = rc ? rc : es_context_open(&c, m, &co, err);
    es_buf_printf(&source, "%s%s", PREFIX, preference);
    if (!rc && source.failed)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for a preference");
    for (int i = 0, at_once; !rc && i < n && out->n - before < want; i += at_once) {
        at_once = want - (out->n - before) < ES_STREAMS / 2 ? want - (out->n - before) : ES_STREAMS / 2;
        at_once = n - i < at_once ? n - i : at_once;
        es_progress_report(progress, "asking with the preference and without", out->n - before, want, "pairs");
        rc = replies(m, c, preference, question + i, at_once, max_new, said, cancel, err);
        for (int j = 0; !rc && j < at_once; j++) {
            const es_buf *plain = &said[2 * j], *preferred = &said[2 * j + 1];
            if (blank(preferred) || !plain->data || !strcmp(plain->data, preferred->data))
                continue;
            es_message message = {"user", question[i + j]};
            es_experience e = {.message = &message, .n_message = 1, .preferred = preferred->data, .rejected = plain->data, .source = source.data, .weight = 1};
            rc = es_experience_copy(out, &e, err);
        }
    }
    if (!rc && out->n - before < 2)
        rc = es_fail(err, ES_ERR_REFUSED, "\"%.60s\" changes nothing in what the model says (%d of %d replies)", preference, out->n - before, n);
    es_buf_free(&source);
    for (int i = 0; i < ES_STREAMS; i++)
        es_buf_free(&said[i]);
    es_context_free(c);
    return rc;
}

const char *es_prefer_of(const es_experience *e)
{
    size_t n = sizeof PREFIX - 1;
    return e->source && !strncmp(e->source, PREFIX, n) && e->source[n] ? e->source + n : NULL;
}

/* ---- by token losses --------------------------------------------------------------------------------------------------------------- */

typedef struct drawn { /* a reply that waits for es_onpolicy_add */
    const es_experience *of;
    es_ids prompt, ids;
} drawn;

struct es_onpolicy {
    es_model *m;
    drawn *ahead;
    int n_ahead;
    es_context *c;
    es_distil_loss loss;
    int max_new, threads;
    char *preference; /* the teacher's */
    es_teacher *teacher;
    es_rng rng;
};

int es_onpolicy_open(es_onpolicy **out, es_model *m, int loss, int max_new, int n_ctx, int threads, uint64_t seed, es_error *err)
{
    es_context_options co = {.n_ctx = n_ctx, .threads = threads, .n_seq = ES_STREAMS};
    es_onpolicy *p = es_calloc(1, sizeof *p);
    *out = NULL;
    if (!p)
        return es_fail(err, ES_ERR_MEMORY, "no memory to draw replies");
    p->m = m;
    p->loss = (es_distil_loss)loss;
    p->max_new = max_new > 0 ? max_new : 96;
    p->threads = threads;
    es_rng_seed(&p->rng, seed);
    int rc = es_context_open(&p->c, m, &co, err);
    if (rc)
        es_onpolicy_free(p);
    else
        *out = p;
    return rc;
}

static void forget_drawn(es_onpolicy *p)
{
    for (int i = 0; i < p->n_ahead; i++) {
        es_ids_free(&p->ahead[i].prompt);
        es_ids_free(&p->ahead[i].ids);
    }
    free(p->ahead);
    p->ahead = NULL;
    p->n_ahead = 0;
}

void es_onpolicy_free(es_onpolicy *p)
{
    if (!p)
        return;
    forget_drawn(p);
    es_teacher_free(p->teacher);
    es_context_free(p->c);
    free(p->preference);
    free(p);
}

static int teacher_of(es_onpolicy *p, const char *preference, es_error *err)
{
    if (p->teacher && !strcmp(p->preference, preference))
        return ES_OK;
    es_teacher_free(p->teacher);
    free(p->preference);
    p->teacher = NULL;
    if (!(p->preference = strdup(preference)))
        return es_fail(err, ES_ERR_MEMORY, "no memory for a preference");
    es_teacher_options o = {.preference = p->preference, .max_prompt = 128, .max_reply = p->max_new, .masked = -1, .threads = p->threads};
    return es_teacher_open(&p->teacher, p->m, &o, err);
}

static const es_sampling as_it_is = {.temperature = 1, .top_p = 1, .repeat_penalty = 1};

int es_onpolicy_ahead(es_onpolicy *p, es_adapter *a, const es_experiences *e, const volatile bool *cancel, es_error *err)
{
    es_reply *reply = es_calloc((size_t)e->n + 1, sizeof *reply);
    es_patch patch;
    forget_drawn(p);
    p->ahead = es_calloc((size_t)e->n + 1, sizeof *p->ahead);
    int rc = reply && p->ahead ? es_adapter_patch(a, 1, &patch, err) : es_fail(err, ES_ERR_MEMORY, "no memory to draw replies");
    for (int i = 0; !rc && i < e->n; i++) {
        const es_experience *x = &e->item[i];
        drawn *d = &p->ahead[p->n_ahead];
        if (!es_prefer_of(x))
            continue;
        d->of = x;
        rc = es_chat_render(p->m, x->message, (size_t)x->n_message, true, &d->prompt, err);
        es_reply *r = &reply[p->n_ahead++];
        *r = (es_reply){.prompt = d->prompt.id, .n_prompt = (int)d->prompt.n, .max_new = p->max_new, .sampling = as_it_is};
        r->sampling.seed = es_rng_next(&p->rng);
        if (!rc && r->n_prompt + p->max_new > es_context_size(p->c))
            rc = es_fail(err, ES_ERR_LIMIT, "a question of %d tokens leaves no room for a reply in %d", r->n_prompt, es_context_size(p->c));
    }
    if (!rc) {
        es_context_set_patch(p->c, &patch);
        rc = es_generate(p->c, reply, p->n_ahead, NULL, NULL, cancel, err);
        es_context_set_patch(p->c, NULL);
    }
    for (int i = 0; i < p->n_ahead; i++)
        p->ahead[i].ids = reply[i].ids;
    free(reply);
    if (rc)
        forget_drawn(p);
    return rc;
}

/* The reply drawn ahead, once; otherwise one that is drawn now. */
static int draw_one(es_onpolicy *p, const es_experience *e, const es_patch *patch, es_ids *prompt, es_ids *ids, const volatile bool *cancel, es_error *err)
{
    for (int i = 0; i < p->n_ahead; i++)
        if (p->ahead[i].of == e) {
            *prompt = p->ahead[i].prompt;
            *ids = p->ahead[i].ids;
            p->ahead[i] = (drawn){0};
            return ES_OK;
        }
    es_context_set_patch(p->c, patch);
    int rc = draw(p->m, p->c, e->message, e->n_message, p->max_new, &as_it_is, &p->rng, prompt, ids, cancel, err);
    es_context_set_patch(p->c, NULL);
    return rc;
}

int es_onpolicy_add(es_onpolicy *p, es_learner *l, es_adapter *a, const es_experience *e, const volatile bool *cancel, es_error *err)
{
    const char *preference = es_prefer_of(e);
    es_patch patch;
    es_sequence s = {0};
    es_target target = {0};
    if (!preference)
        return es_fail(err, ES_ERR_USAGE, "an experience that no preference was stated for has no teacher");
    int rc = teacher_of(p, preference, err);
    rc = rc ? rc : es_adapter_patch(a, 1, &patch, err);
    for (int tries = 0; !rc && s.n_reply <= ES_DISTIL_MASKED; tries++) { /* a reply may end inside what is masked */
        es_ids prompt = {0}, ids = {0};
        es_sequence_free(&s);
        rc = draw_one(p, e, &patch, &prompt, &ids, cancel, err);
        if (!rc && tries == 8)
            rc = es_fail(err, ES_ERR_LIMIT, "the model ends its replies within %d tokens: there is nothing that could be scored", ES_DISTIL_MASKED);
        int skip = prompt.n > 128 ? (int)prompt.n - 128 : 0;
        rc = rc ? rc : es_sequence_ids(&s, prompt.id + skip, (int)prompt.n - skip, ids.id, (int)ids.n, err);
        es_ids_free(&prompt);
        es_ids_free(&ids);
    }
    rc = rc ? rc : es_teacher_score(p->teacher, e->message, e->n_message, &s, p->loss, NULL, 0, &target, cancel, err);
    rc = rc ? rc : es_learner_add_target(l, &s, &target, e->weight, e->source, cancel, err);
    es_sequence_free(&s);
    es_target_free(&target);
    return rc;
}
