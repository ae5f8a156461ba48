/* ask_local: the model that is open here answers, greedily, one question after another. Questions that begin alike share what the context holds of them. */
#include "ask.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOP = 20, CTX = 4096 };

typedef struct local {
    es_answerer base;
    const es_model *m;
    es_context *c;
    char *name, *identity;
} local;

/* The token's text as JSON takes it. */
static json_t *token_json(const es_model *m, int32_t id)
{
    size_t n;
    const char *s = es_token_bytes(m, id, &n);
    return es_json_mended(s, n);
}

/* The TOP most likely tokens with their log-probabilities. */
static json_t *alternatives(const es_model *m, const float *logits, int V)
{
    int32_t best[TOP];
    int n = 0;
    double most = -INFINITY, sum = 0;
    for (int32_t i = 0; i < V; i++) {
        most = fmax(most, (double)logits[i]);
        if (n == TOP && logits[i] <= logits[best[n - 1]])
            continue;
        int at = n < TOP ? n++ : n - 1;
        for (; at > 0 && logits[best[at - 1]] < logits[i]; at--)
            best[at] = best[at - 1];
        best[at] = i;
    }
    for (int i = 0; i < V; i++)
        sum += exp((double)logits[i] - most);
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_pack("[o,f]", token_json(m, best[i]), (double)logits[best[i]] - most - log(sum)));
    return list;
}

static int prompt_of(const local *l, const es_question *q, es_ids *ids, es_error *err)
{
    es_message message[64];
    size_t n = json_array_size(q->messages);
    if (n > 64)
        return es_fail(err, ES_ERR_LIMIT, "a question of %zu messages", n);
    for (size_t i = 0; i < n; i++) {
        json_t *v = json_array_get(q->messages, i);
        message[i] = (es_message){json_string_value(json_object_get(v, "role")), json_string_value(json_object_get(v, "content"))};
    }
    return es_chat_render(l->m, message, n, true, ids, err);
}

static int answer_one(local *l, const es_question *q, es_buf *text, es_answer *a, const es_progress *progress, es_error *err)
{
    es_ids ids = {0};
    int V = es_model_get_info(l->m)->n_vocab, n_ctx = es_context_size(l->c);
    int rc = prompt_of(l, q, &ids, err);
    if (!rc && (int)ids.n + q->max_tokens > n_ctx)
        rc = es_fail(err, ES_ERR_LIMIT, "a prompt of %zu tokens and %d to answer do not fit into the model's context of %d", ids.n, q->max_tokens, n_ctx);
    rc = rc ? rc : es_context_sync(l->c, ids.id, (int)ids.n, NULL, progress ? progress->cancel : NULL, err);
    es_sampling greedy = {.top_p = 1, .repeat_penalty = 1};
    es_rng rng;
    es_rng_seed(&rng, 1);
    a->cut = true;
    for (int i = 0; !rc && i < q->max_tokens; i++) {
        int32_t id = es_sample(l->c, &greedy, &rng);
        if (es_token_ends(l->m, id)) {
            a->cut = false;
            break;
        }
        size_t n;
        const char *s = es_token_bytes(l->m, id, &n);
        if (q->logprobs)
            json_array_append_new(a->logprobs, json_pack("{s:o, s:o}", "token", token_json(l->m, id), "top", alternatives(l->m, es_context_logits(l->c), V)));
        if (!es_token_is_control(l->m, id))
            es_buf_add(text, s, n);
        a->answer_tokens++;
        rc = es_context_feed(l->c, &id, 1, progress ? progress->cancel : NULL, err);
    }
    a->prompt_tokens = (int64_t)ids.n;
    es_ids_free(&ids);
    return rc;
}

static int local_run(es_answerer *base, const es_asking *who, const es_progress *progress, es_error *err)
{
    local *l = (local *)base;
    int rc;
    es_question q = {0};
    while ((rc = who->next(who->user, &q, err)) == 1) {
        es_buf raw = {0}, text = {0};
        es_error why = {0};
        es_answer a = {.logprobs = q.logprobs ? json_array() : NULL};
        rc = answer_one(l, &q, &raw, &a, progress, &why);
        if (rc == ES_ERR_CANCELLED || es_progress_cancelled(progress)) {
            rc = es_fail(err, ES_ERR_CANCELLED, "cancelled");
        } else {
            es_utf8_mend(&text, raw.data ? raw.data : "", raw.data ? strlen(raw.data) : 0); /* a NUL ends it */
            es_buf_add(&text, "", 0);
            a.text = text.data ? text.data : "";
            rc = text.failed || raw.failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory for an answer") :
                 rc                        ? who->done(who->user, &q, NULL, &why, err) :
                                             who->done(who->user, &q, &a, NULL, err);
        }
        json_decref(a.logprobs);
        es_buf_free(&raw);
        es_buf_free(&text);
        es_question_clear(&q);
        if (rc)
            return rc;
    }
    return rc;
}

static void local_free(es_answerer *base)
{
    local *l = (local *)base;
    es_context_free(l->c);
    free(l->name);
    free(l->identity);
    free(l);
}

int es_local_open(es_answerer **out, es_model *m, int threads, int n_ctx, es_error *err)
{
    const es_model_info *i = es_model_get_info(m);
    char hash[65];
    *out = NULL;
    local *l = es_calloc(1, sizeof *l);
    if (!l)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory");
    l->m = m;
    es_context_options o = {.n_ctx = n_ctx > 0 ? n_ctx : i->n_ctx < CTX ? i->n_ctx : CTX, .threads = threads};
    int rc = es_model_hash(m, hash, err);
    if (!rc && (asprintf(&l->name, "%s", *i->name ? i->name : "local") < 0 || asprintf(&l->identity, "local %s", hash) < 0))
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory");
    rc = rc ? rc : es_context_open(&l->c, m, &o, err);
    l->base = (es_answerer){l->name, l->identity, local_run, local_free};
    if (rc)
        local_free(&l->base);
    else
        *out = &l->base;
    return rc;
}
