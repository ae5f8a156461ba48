/* Texts from files. */
#include <stdlib.h>
#include <string.h>

#include "fires.h"

enum { TEXT_LIMIT = 64 << 20 };

static int add_text(es_texts *t, const char *s, size_t n, es_error *err)
{
    if (t->n == t->cap) {
        int cap = t->cap ? 2 * t->cap : 64;
        char **more = realloc(t->text, (size_t)cap * sizeof *more);
        if (!more)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory for the texts");
        t->text = more;
        t->cap = cap;
    }
    t->text[t->n] = strndup(s, n);
    return t->text[t->n++] ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for the texts");
}

static int take_text(void *user, size_t line, json_t *v, es_error *err)
{
    (void)line;
    es_texts *t = user;
    const char *s = json_string_value(json_object_get(v, "text"));
    if (!s)
        return es_fail(err, ES_ERR_FORMAT, "has no \"text\"");
    if (t->limit && t->n >= t->limit)
        return 1;
    return *s ? add_text(t, s, strlen(s), err) : ES_OK;
}

int es_texts_read(es_texts *t, const char *path, bool lines, es_error *err)
{
    size_t len = strlen(path);
    int before = t->n;
    if (len > 6 && !strcmp(path + len - 6, ".jsonl")) {
        int rc = es_jsonl_each(path, take_text, t, err);
        if (rc < 0)
            return rc;
    } else {
        es_buf b = {0};
        int rc = es_file_read(&b, path, TEXT_LIMIT, err);
        if (rc == ES_OK && !lines)
            rc = b.len ? add_text(t, b.data, b.len, err) : ES_OK;
        for (size_t at = 0; rc == ES_OK && lines && at < b.len;) {
            const char *s = b.data + at, *stop = memchr(s, '\n', b.len - at);
            size_t n = stop ? (size_t)(stop - s) : b.len - at;
            if (n && (!t->limit || t->n < t->limit))
                rc = add_text(t, s, n, err);
            at += n + 1;
        }
        es_buf_free(&b);
        if (rc != ES_OK)
            return rc;
    }
    return t->n > before ? ES_OK : es_fail(err, ES_ERR_FORMAT, "%s: holds no text", path);
}

void es_texts_free(es_texts *t)
{
    for (int i = 0; i < t->n; i++)
        free(t->text[i]);
    free(t->text);
    *t = (es_texts){0};
}
