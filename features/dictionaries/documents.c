/* Documents from .txt and .jsonl files as token ids. */
#include <stdlib.h>
#include <string.h>

#include "harvest.h"

enum { DOCUMENT_LIMIT = 16 << 20, MESSAGES = 256 };

void es_documents_close(es_documents *l)
{
    for (int i = 0; i < l->n_map; i++)
        es_map_close(&l->map[i]);
    free(l->map);
    free(l->item);
    *l = (es_documents){0};
}

json_t *es_documents_files(const es_documents *l)
{
    json_t *files = json_array();
    for (int i = 0; i < l->n_map && files; i++) {
        char hash[65];
        es_sha256_bytes(hash, l->map[i].data, l->map[i].size);
        const char *base = strrchr(l->map[i].path, '/');
        json_array_append_new(files, json_pack("{s:s, s:I, s:s}", "name", base ? base + 1 : l->map[i].path, "bytes", (json_int_t)l->map[i].size, "sha256", hash));
    }
    return files;
}

static int add(es_documents *l, struct es_document new, es_error *err)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 1024;
        struct es_document *p = realloc(l->item, cap * sizeof *p);
        if (!p)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory for the list of documents");
        l->item = p;
        l->cap = cap;
    }
    l->item[l->n++] = new;
    return ES_OK;
}

static bool ends(const char *s, const char *with)
{
    size_t n = strlen(s), m = strlen(with);
    return n >= m && strcmp(s + n - m, with) == 0;
}

static int add_file(es_documents *l, uint32_t file, es_error *err)
{
    const es_map *m = &l->map[file];
    const char *at = (const char *)m->data, *end = at + m->size;
    if (!ends(m->path, ".jsonl"))
        return m->size ? add(l, (struct es_document){at, m->size, file, 0}, err) : ES_OK;
    for (uint32_t line = 1; at < end; line++) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        size_t n = (size_t)((stop ? stop : end) - at);
        int rc = n > 1 ? add(l, (struct es_document){at, n, file, line}, err) : ES_OK;
        if (rc)
            return rc;
        at = stop ? stop + 1 : end;
    }
    return ES_OK;
}

int es_documents_open(es_documents *l, const char *const *file, int n_file, uint64_t seed, es_error *err)
{
    *l = (es_documents){0};
    l->map = es_calloc((size_t)(n_file > 0 ? n_file : 1), sizeof *l->map);
    int rc = l->map ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for the list of documents");
    for (int i = 0; i < n_file && !rc; i++) {
        rc = es_map_open(&l->map[i], file[i], err);
        if (!rc) {
            l->n_map = i + 1;
            rc = add_file(l, (uint32_t)i, err);
        }
    }
    if (!rc && l->n == 0)
        rc = es_fail(err, ES_ERR_USAGE, "there are no documents in %s", n_file ? file[0] : "no file");
    if (rc) {
        es_documents_close(l);
        return rc;
    }
    if (seed) {
        es_rng r;
        es_rng_seed(&r, seed);
        for (size_t i = l->n - 1; i > 0; i--) {
            size_t j = (size_t)es_rng_below(&r, i + 1);
            struct es_document t = l->item[i];
            l->item[i] = l->item[j];
            l->item[j] = t;
        }
    }
    return ES_OK;
}

static int render(json_t *v, const es_model *m, es_ids *out, es_error *err)
{
    es_message message[MESSAGES];
    size_t n = 0;
    json_t *list = json_object_get(v, "messages");
    const char *prompt = json_string_value(json_object_get(v, "prompt")), *response = json_string_value(json_object_get(v, "response"));
    if (json_is_array(list)) {
        for (; n < json_array_size(list) && n < MESSAGES; n++) {
            json_t *e = json_array_get(list, n);
            message[n] = (es_message){json_string_value(json_object_get(e, "role")), json_string_value(json_object_get(e, "content"))};
            if (!message[n].role || !message[n].content)
                return es_fail(err, ES_ERR_FORMAT, "message %zu lacks a role or a content", n + 1);
        }
    } else if (prompt && response) {
        message[n++] = (es_message){"user", prompt};
        message[n++] = (es_message){"assistant", response};
    }
    if (n == 0)
        return es_fail(err, ES_ERR_FORMAT, "a document needs \"text\", \"messages\", or \"prompt\" and \"response\"");
    return es_chat_render(m, message, n, false, out, err);
}

int es_documents_ids(const es_documents *l, size_t i, const es_model *m, es_ids *out, es_error *err)
{
    const struct es_document *d = &l->item[i];
    const char *path = l->map[d->file].path;
    out->n = 0;
    if (d->n > DOCUMENT_LIMIT)
        return es_fail(err, ES_ERR_LIMIT, "%s:%u: a document of %zu bytes is over the limit of %d", path, d->line, d->n, (int)DOCUMENT_LIMIT);
    if (d->line == 0)
        return es_tokenize_text(m, d->text, d->n, out, err);
    json_t *v;
    int rc = es_json_parse(&v, d->text, d->n, path, NULL);
    if (rc)
        return es_fail(err, rc, "%s:%u: not valid JSON", path, d->line);
    json_t *text = json_object_get(v, "text");
    rc = json_is_string(text) ? es_tokenize_text(m, json_string_value(text), json_string_length(text), out, err) : render(v, m, out, err);
    json_decref(v);
    if (rc && err)
        es_fail_prefix(err, "%s:%u", path, d->line);
    return rc;
}
