/* A text as features: the residual after the dictionary's layer, encoded. And reading texts from files. */
#include "app.h"

#include <stdlib.h>
#include <string.h>

enum { WINDOW = 1024, TEXT_LIMIT = 64 << 20 };

typedef struct capture {
    float *h; /* [rows, d] */
    size_t rows;
} capture;

static void take_rows(void *user, int layer, int pos0, const float *h, int T, int d)
{
    (void)layer;
    capture *c = user;
    for (int t = 0; t < T; t++)
        if ((size_t)(pos0 + t) < c->rows)
            memcpy(c->h + ((size_t)pos0 + (size_t)t) * (size_t)d, h + (size_t)t * (size_t)d, (size_t)d * sizeof *h);
}

/* The residual after `layer` for each token, in windows of the context that begin anew. */
static int residuals(const es_model *m, const es_ids *ids, int layer, float *out, es_error *err)
{
    const es_model_info *info = es_model_get_info(m);
    int window = info->n_ctx < WINDOW ? info->n_ctx : WINDOW;
    if (ids->n < (size_t)window)
        window = (int)ids->n;
    es_context_options o = {.n_ctx = window, .threads = the_app.threads, .exact = true};
    es_context *c = NULL;
    int rc = es_context_open(&c, m, &o, err);
    for (size_t at = 0; rc == ES_OK && at < ids->n; at += (size_t)window) {
        int n = ids->n - at < (size_t)window ? (int)(ids->n - at) : window;
        capture cap = {out + at * (size_t)info->d_model, (size_t)n};
        es_watch w = {.layer = layer, .fn = take_rows, .user = &cap};
        es_context_set_watch(c, &w, 1);
        rc = es_context_truncate(c, 0, err);
        if (rc == ES_OK)
            rc = es_context_feed(c, ids->id + at, n, &app_cancel, err);
    }
    es_context_free(c);
    return rc;
}

int app_encode(const app_features *f, const es_model *m, const es_ids *ids, es_sparse *out, es_error *err)
{
    size_t cells, d = (size_t)es_model_get_info(m)->d_model;
    float *h = NULL;
    es_pool *pool = NULL;
    if (ids->n == 0)
        return es_fail(err, ES_ERR_USAGE, "there is no text to encode");
    if (ids->n > 1 << 24 || !es_mul(ids->n, d, &cells) || !(h = es_calloc(cells, sizeof *h)))
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for the activations of %zu tokens", ids->n);
    int rc = residuals(m, ids, es_dictionary_get_info(f->dictionary)->layer, h, err);
    if (rc == ES_OK)
        rc = es_pool_open(&pool, the_app.threads, err);
    if (rc == ES_OK)
        rc = es_dictionary_encode(f->dictionary, pool, h, (int)ids->n, out, err);
    es_pool_free(pool);
    free(h);
    return rc;
}

/* ---- texts ----------------------------------------------------------------------------------------------------------------- */

static int add_text(app_texts *t, const char *s, size_t n, es_error *err)
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
    app_texts *t = user;
    const char *s = json_string_value(json_object_get(v, "text"));
    if (!s)
        return es_fail(err, ES_ERR_FORMAT, "has no \"text\"");
    if (t->limit && t->n >= t->limit)
        return 1;
    return *s ? add_text(t, s, strlen(s), err) : ES_OK;
}

int app_texts_read(app_texts *t, const char *path, bool lines, es_error *err)
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
        for (const char *s = b.data, *end = b.data + b.len; rc == ES_OK && lines && s < end;) {
            const char *stop = memchr(s, '\n', (size_t)(end - s));
            size_t n = (size_t)((stop ? stop : end) - s);
            if (n && (!t->limit || t->n < t->limit))
                rc = add_text(t, s, n, err);
            s += n + 1;
        }
        es_buf_free(&b);
        if (rc != ES_OK)
            return rc;
    }
    return t->n > before ? ES_OK : es_fail(err, ES_ERR_FORMAT, "%s: holds no text", path);
}

void app_texts_free(app_texts *t)
{
    for (int i = 0; i < t->n; i++)
        free(t->text[i]);
    free(t->text);
    *t = (app_texts){0};
}
