/* ChatML: <|im_start|>ROLE \n CONTENT <|im_end|> \n for each message. A template is data from a stranger: it is recognised by
 * what it says and rendered here; its Jinja is never run. */
#include "model.h"
#include "tokenizer.h"

#include <string.h>

typedef struct chatml {
    int32_t start, end;
    const char *system; /* default system prompt that the template gives a chat without one; NULL: none */
    size_t n_system;
} chatml;

static const char *find(const char *s, size_t n, const char *what)
{
    return n ? memmem(s, n, what, strlen(what)) : NULL;
}

/* Finds in the template a quoted '<|im_start|>system\nTEXT<|im_end|>': the prompt of SmolLM2's and Qwen 2's templates, given when
 * the first message is not the system's. The newline may be a real one or written \n. */
static void find_default_system(chatml *c, const char *s, size_t n)
{
    static const char opening[] = "<|im_start|>system";
    const char *end = s + n, *p = s;
    if (!find(s, n, "messages[0]"))
        return;
    while ((p = find(p, (size_t)(end - p), opening))) {
        const char *text = p + strlen(opening);
        size_t left = (size_t)(end - text);
        p = text;
        if (left > 1 && text[0] == '\n')
            text += 1;
        else if (left > 2 && memcmp(text, "\\n", 2) == 0)
            text += 2;
        else
            continue;
        const char *stop = find(text, (size_t)(end - text), "<|im_end|>");
        if (!stop)
            return;
        size_t len = (size_t)(stop - text);
        if (len == 0 || memchr(text, '\'', len) || memchr(text, '"', len) || memchr(text, '\\', len) || memchr(text, '{', len))
            continue; /* the literal ended before: the content comes from a message */
        c->system = text;
        c->n_system = len;
        return;
    }
}

static int recognise(const es_model *m, chatml *c, es_error *err)
{
    const char *s = NULL;
    size_t n = 0;
    *c = (chatml){.start = es_tokenizer_special(m->tokenizer, "<|im_start|>"),
                  .end = es_tokenizer_special(m->tokenizer, "<|im_end|>")};
    int rc = !m->gguf.n_kv ? ES_OK : es_gguf_str(&m->gguf, "tokenizer.chat_template", false, &s, &n, err);
    if (rc != ES_OK)
        return rc;
    if (c->start < 0 || c->end < 0) {
        if (n == 0)
            return es_fail(err, ES_ERR_FORMAT, "%s: has neither a chat template nor ChatML's tokens: it is not a chat model",
                           m->info.path);
        return es_fail(err, ES_ERR_FORMAT, "%s: has a chat template that is not known here (only ChatML is); it begins '%.*s'",
                       m->info.path, (int)(n < 60 ? n : 60), s);
    }
    if (find(s, n, "<|im_start|>") && find(s, n, "<|im_end|>"))
        find_default_system(c, s, n);
    /* else: no template or another one, but the tokens are ChatML's: plain ChatML is the best guess */
    return ES_OK;
}

static int add_turn(const es_model *m, const chatml *c, const char *role, const char *content, size_t n, es_ids *out, es_error *err)
{
    es_buf b = {0}; /* one text, so that merges across the newline are the template's own */
    es_buf_str(&b, role);
    es_buf_str(&b, "\n");
    es_buf_add(&b, content, n);
    int rc = b.failed || es_ids_add(out, c->start) != ES_OK ? ES_ERR_MEMORY : ES_OK;
    if (rc != ES_OK)
        es_fail(err, rc, "not enough memory for a message of %zu bytes", n);
    else
        rc = es_tokenize(m, b.data, b.len, false, out, err);
    es_buf_free(&b);
    return rc;
}

static int add_close(const es_model *m, const chatml *c, es_ids *out, es_error *err)
{
    if (es_ids_add(out, c->end) != ES_OK)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a message");
    return es_tokenize(m, "\n", 1, false, out, err);
}

static bool known_role(const char *role)
{
    return role && (strcmp(role, "system") == 0 || strcmp(role, "user") == 0 || strcmp(role, "assistant") == 0);
}

static int render(const es_model *m, const chatml *c, const es_message *messages, size_t n, bool add_generation, es_ids *out,
                  es_error *err)
{
    int rc = ES_OK;
    if (n > 0 && c->system && strcmp(messages[0].role, "system") != 0) {
        rc = add_turn(m, c, "system", c->system, c->n_system, out, err);
        if (rc == ES_OK)
            rc = add_close(m, c, out, err);
    }
    for (size_t i = 0; i < n && rc == ES_OK; i++) {
        rc = add_turn(m, c, messages[i].role, messages[i].content, strlen(messages[i].content), out, err);
        if (rc == ES_OK)
            rc = add_close(m, c, out, err);
    }
    if (rc == ES_OK && add_generation)
        rc = add_turn(m, c, "assistant", "", 0, out, err);
    return rc;
}

int es_chat_render(const es_model *m, const es_message *messages, size_t n, bool add_generation, es_ids *out, es_error *err)
{
    chatml c;
    int rc = recognise(m, &c, err);
    if (rc != ES_OK)
        return rc;
    for (size_t i = 0; i < n; i++) {
        if (!known_role(messages[i].role))
            return es_fail(err, ES_ERR_USAGE, "message %zu has the role '%.40s': it must be system, user or assistant", i + 1,
                           messages[i].role ? messages[i].role : "");
        if (!messages[i].content)
            return es_fail(err, ES_ERR_USAGE, "message %zu has no content", i + 1);
    }
    size_t had = out->n;
    rc = render(m, &c, messages, n, add_generation, out, err);
    if (rc != ES_OK)
        out->n = had;
    return rc;
}

int es_chat_close(const es_model *m, es_ids *out, es_error *err)
{
    chatml c;
    int rc = recognise(m, &c, err);
    size_t had = out->n;
    if (rc == ES_OK)
        rc = add_close(m, &c, out, err);
    if (rc != ES_OK)
        out->n = had;
    return rc;
}
