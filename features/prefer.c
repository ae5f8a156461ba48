#include "prefer.h"
#include "everyday.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A reply at temperature 0; cut: it did not end by itself. */
static int reply(es_model *m, es_context *c, const es_message *message, int n, int max_new, es_buf *out, bool *cut, const volatile bool *cancel, es_error *err)
{
    es_ids ids = {0};
    es_sampling how = {.temperature = 0, .top_p = 1, .repeat_penalty = 1};
    es_rng rng;
    es_rng_seed(&rng, 1);
    es_buf_clear(out);
    *cut = true;
    int rc = es_chat_render(m, message, (size_t)n, true, &ids, err);
    rc = rc ? rc : es_context_truncate(c, 0, err);
    if (!rc && (int)ids.n + max_new > es_context_size(c))
        rc = es_fail(err, ES_ERR_LIMIT, "a question of %zu tokens leaves no room for a reply in %d", ids.n, es_context_size(c));
    rc = rc ? rc : es_context_feed(c, ids.id, (int)ids.n, cancel, err);
    for (int i = 0; !rc && i < max_new; i++) {
        int32_t id = es_sample(c, &how, &rng);
        size_t len = 0;
        if (es_token_ends(m, id)) {
            *cut = false;
            break;
        }
        const char *bytes = es_token_bytes(m, id, &len);
        es_buf_add(out, bytes, es_token_is_control(m, id) ? 0 : len);
        rc = es_context_feed(c, &id, 1, cancel, err);
    }
    if (!rc && out->data) { /* a cut may end inside a character */
        size_t whole = es_utf8_whole(out->data, out->len);
        out->data[whole] = 0;
        out->len = whole;
    }
    es_ids_free(&ids);
    return rc || !out->failed ? rc : es_fail(err, ES_ERR_MEMORY, "no memory for a reply");
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
    int rc = es_teacher_open(&teacher, m, &t, err);
    rc = rc ? rc : es_teacher_advantage(teacher, o->own->item, o->own->n, out, cancel, err);
    es_teacher_free(teacher);
    return rc ? rc : es_advantage_require(out, err);
}

int es_prefer_pairs(es_model *m, const char *preference, const es_prefer_options *o, es_experiences *out, es_advantage *advantage, const es_progress *progress,
                    es_error *err)
{
    enum { ASK = 12 };
    const char *question[ASK];
    int want = o->pairs > 0 && o->pairs < ASK ? o->pairs : 6, max_new = o->max_new > 0 ? o->max_new : 96, before = out->n;
    es_context_options co = {.n_ctx = o->n_ctx, .threads = o->threads};
    es_context *c = NULL;
    es_buf plain = {0}, preferred = {0};
    const volatile bool *cancel = progress ? progress->cancel : NULL;
    char source[160];
    *advantage = (es_advantage){0};
    int n = questions(o->own, question, ASK), rc = ES_OK;
    if (o->own && o->own->n)
        rc = advantage_of(m, preference, o, advantage, cancel, err);
    rc = rc ? rc : es_context_open(&c, m, &co, err);
    snprintf(source, sizeof source, "prefer: %.140s", preference);
    source[es_utf8_whole(source, strlen(source))] = 0;
    for (int i = 0; !rc && i < n && out->n - before < want; i++) {
        es_message message[2] = {{"system", preference}, {"user", question[i]}};
        bool cut[2];
        es_progress_report(progress, "asking with the preference and without", out->n - before, want, "pairs");
        rc = reply(m, c, message + 1, 1, max_new, &plain, &cut[0], cancel, err);
        rc = rc ? rc : reply(m, c, message, 2, max_new, &preferred, &cut[1], cancel, err);
        if (rc || !preferred.data || !preferred.data[strspn(preferred.data, " \n\t")] || !plain.data || !strcmp(plain.data, preferred.data))
            continue;
        es_experience e = {.message = message + 1, .n_message = 1, .preferred = preferred.data, .rejected = plain.data, .source = source, .weight = 1};
        rc = es_experience_copy(out, &e, err);
    }
    if (!rc && out->n - before < 2)
        rc = es_fail(err, ES_ERR_USAGE, "\"%.60s\" changes nothing in what the model says (%d of %d replies)", preference, out->n - before, n);
    es_buf_free(&plain);
    es_buf_free(&preferred);
    es_context_free(c);
    return rc;
}
