/* In-context learning: nothing is learned, everything is read again with each prompt. A stated preference is the system message,
 * experiences are worked turns before the conversation, the newest last, as many as fit in the budget. */
#include "method_internal.h"
#include "worked.h"

#include <stdlib.h>
#include <string.h>

/* ---- rendering -------------------------------------------------------------------------------------------------------------- */

static int context_of(const es_model *m, const es_message *message, int n, int *tokens, es_error *err)
{
    es_ids ids = {0};
    int rc = es_chat_render(m, message, (size_t)n, false, &ids, err);
    *tokens = (int)ids.n;
    es_ids_free(&ids);
    return rc;
}

static bool is_system(const es_message *m)
{
    return !strcmp(m->role, "system");
}

static bool same_conversation(const es_experience *a, const es_experience *b)
{
    bool same = a->n_message == b->n_message;
    for (int i = 0; same && i < a->n_message; i++)
        same = !strcmp(a->message[i].role, b->message[i].role) && !strcmp(a->message[i].content, b->message[i].content);
    return same;
}

/* Appends the experience's worked turns to out[]; borrowed. */
static int worked_turns(const es_experience *e, es_message *out)
{
    int n = 0;
    for (int i = 0; i < e->n_message; i++)
        if (!is_system(&e->message[i]))
            out[n++] = e->message[i];
    out[n++] = (es_message){"assistant", e->preferred};
    return n;
}

static char *keep(char **at, const char *s)
{
    size_t n = strlen(s) + 1;
    char *copy = memcpy(*at, s, n);
    *at += n;
    return copy;
}

/* Copies the list into one block. */
static int keep_messages(es_worked *out, const es_message *list, int n, es_error *err)
{
    size_t size = (size_t)n * sizeof *list;
    for (int i = 0; i < n; i++)
        size += strlen(list[i].role) + strlen(list[i].content) + 2;
    out->message = es_calloc(1, size);
    if (!out->message)
        return es_fail(err, ES_ERR_MEMORY, "no memory for %d messages of context", n);
    char *at = (char *)(out->message + n);
    for (int i = 0; i < n; i++) {
        out->message[i].role = keep(&at, list[i].role);
        out->message[i].content = keep(&at, list[i].content);
    }
    out->n = n;
    return ES_OK;
}

int es_worked_make(es_worked *out, const es_model *m, const char *preference, const es_experience *e, int n, int budget, es_error *err)
{
    static const es_message question = {"user", "?"};
    int n_ctx = es_model_get_info(m)->n_ctx, most = 2, plain = 0, k = 0;
    *out = (es_worked){0};
    if (budget <= 0)
        budget = n_ctx / 3 < 1024 ? n_ctx / 3 : 1024;
    for (int i = 0; i < n; i++)
        most += e[i].n_message + 1;
    es_message *list = es_calloc((size_t)most, sizeof *list), *turn = es_calloc((size_t)most, sizeof *turn);
    bool *shown = es_calloc((size_t)n + 1, sizeof *shown);
    int rc = list && turn && shown ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for the context of %d experiences", n);
    rc = rc ? rc : context_of(m, &question, 1, &plain, err);
    for (int i = n - 1, used = 0; !rc && i >= 0; i--) {
        bool fit = e[i].preferred && e[i].weight > 0;
        for (int j = i + 1; fit && j < n; j++)
            fit = !(shown[j] && same_conversation(&e[i], &e[j]));
        if (!fit)
            continue;
        int count = worked_turns(&e[i], turn), tokens;
        turn[count] = question; /* so that a default system message is counted on both sides */
        rc = context_of(m, turn, count + 1, &tokens, err);
        shown[i] = !rc && used + tokens - plain <= budget;
        used += shown[i] ? tokens - plain : 0;
    }
    if (preference && *preference)
        list[k++] = (es_message){"system", preference};
    for (int i = 0; !rc && i < n; i++)
        if (shown[i]) {
            k += worked_turns(&e[i], list + k);
            out->shown++;
        }
    if (!rc && k) {
        list[k] = question;
        rc = context_of(m, list, k + 1, &out->tokens, err);
        out->tokens -= plain;
        rc = rc ? rc : keep_messages(out, list, k, err);
    }
    free(list);
    free(turn);
    free(shown);
    if (rc)
        es_worked_free(out);
    return rc;
}

void es_worked_free(es_worked *w)
{
    free(w->message);
    *w = (es_worked){0};
}

/* ---- the method ----------------------------------------------------------------------------------------------------------------- */

typedef struct context_method {
    es_model *base;
    char *preference;
    int budget;
    es_experiences seen;
    es_worked worked;
} context_method;

static void context_free(void *self)
{
    context_method *m = self;
    es_worked_free(&m->worked);
    es_experiences_free(&m->seen);
    free(m->preference);
    free(m);
}

static int context_open(void **self, es_method_kind k, es_model *base, const es_method_options *o, es_error *err)
{
    context_method *m = es_calloc(1, sizeof *m);
    (void)k;
    if (m && o->preference)
        m->preference = strdup(o->preference);
    if (!m || (o->preference && !m->preference)) {
        free(m);
        return es_fail(err, ES_ERR_MEMORY, "no memory for a method");
    }
    m->base = base;
    m->budget = o->context_tokens;
    int rc = es_worked_make(&m->worked, base, m->preference, NULL, 0, m->budget, err);
    if (rc)
        context_free(m);
    else
        *self = m;
    return rc;
}

static int context_add(void *self, const es_experience *e, const volatile bool *cancel, es_error *err)
{
    context_method *m = self;
    es_worked new;
    (void)cancel;
    int rc = es_experience_copy(&m->seen, e, err);
    if (rc)
        return rc;
    rc = es_worked_make(&new, m->base, m->preference, m->seen.item, m->seen.n, m->budget, err);
    if (rc) {
        es_experience_clear(&m->seen.item[--m->seen.n]);
        return rc;
    }
    es_worked_free(&m->worked);
    m->worked = new;
    return ES_OK;
}

static int context_view(void *self, es_variant *out, es_error *err)
{
    const context_method *m = self;
    (void)err;
    out->prefix = m->worked.message;
    out->n_prefix = m->worked.n;
    out->context_tokens = m->worked.tokens;
    return ES_OK;
}

static void release_worked(void *owned)
{
    es_worked_free(owned);
    free(owned);
}

static int context_copy(void *self, es_variant *out, es_error *err)
{
    const context_method *m = self;
    es_worked *w = es_calloc(1, sizeof *w);
    if (!w)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a copy of the context");
    int rc = m->worked.n ? keep_messages(w, m->worked.message, m->worked.n, err) : ES_OK;
    if (rc) {
        free(w);
        return rc;
    }
    out->prefix = w->message;
    out->n_prefix = w->n;
    out->context_tokens = m->worked.tokens;
    out->owned = w;
    out->release = release_worked;
    return ES_OK;
}

static size_t context_bytes(const void *self)
{
    const context_method *m = self;
    size_t sum = sizeof *m;
    for (int i = 0; i < m->worked.n; i++)
        sum += sizeof *m->worked.message + strlen(m->worked.message[i].role) + strlen(m->worked.message[i].content) + 2;
    return sum;
}

const es_method_ops es_method_context_ops = {
    .open = context_open, .free = context_free, .add = context_add, .view = context_view, .copy = context_copy, .bytes = context_bytes,
};
