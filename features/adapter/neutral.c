/* neutral: text that should stay as it is, from a file; and the inputs that are white on a third of it, made once and kept. */
#include "adapter.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int add_line(void *user, size_t line, json_t *value, es_error *err)
{
    es_neutral_texts *t = user;
    const char *text = json_string_value(json_object_get(value, "text")), *reply = json_string_value(json_object_get(value, "reply"));
    json_t *messages = json_object_get(value, "messages");
    (void)line;
    if (json_object_get(value, "about"))
        return ES_OK;
    if (!text == !reply || (reply && !json_is_array(messages)))
        return es_fail(err, ES_ERR_FORMAT, "neutral text is {\"text\"} or {\"messages\",\"reply\"}");
    if (t->n == t->cap) {
        int cap = t->cap ? 2 * t->cap : 64;
        es_neutral_text *item = realloc(t->item, (size_t)cap * sizeof *item);
        if (!item)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory for neutral text");
        t->item = item;
        t->cap = cap;
    }
    size_t n = json_array_size(messages);
    es_message *m = text ? NULL : es_calloc(n + 1, sizeof *m);
    for (size_t i = 0; m && i < n; i++) {
        json_t *x = json_array_get(messages, i);
        m[i] = (es_message){json_string_value(json_object_get(x, "role")), json_string_value(json_object_get(x, "content"))};
        if (!m[i].role || !m[i].content) {
            free(m);
            return es_fail(err, ES_ERR_FORMAT, "message %zu lacks its role or its content", i + 1);
        }
    }
    if (!text && (!m || !n)) {
        free(m);
        return es_fail(err, ES_ERR_FORMAT, "a conversation without messages");
    }
    if (json_array_append(t->keep, value)) {
        free(m);
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for neutral text");
    }
    t->item[t->n++] = (es_neutral_text){text ? text : reply, m, text ? 0 : (int)n, json_is_true(json_object_get(value, "inputs"))};
    return ES_OK;
}

int es_neutral_load(es_neutral_texts *t, const char *path, es_error *err)
{
    *t = (es_neutral_texts){.keep = json_array()};
    return es_jsonl_each(path, add_line, t, err);
}

void es_neutral_texts_free(es_neutral_texts *t)
{
    for (int i = 0; i < t->n; i++)
        free((es_message *)t->item[i].message);
    free(t->item);
    json_decref(t->keep);
    *t = (es_neutral_texts){0};
}

es_neutral_use es_neutral_use_of(const es_neutral_text *t, int kind[2])
{
    if (t->only_inputs)
        return ES_NEUTRAL_INPUTS;
    return kind[t->n_message > 0]++ % 3 == 2 ? ES_NEUTRAL_CHOOSE : ES_NEUTRAL_MEASURE;
}

int es_neutral_pick(const es_neutral_text *text, int n, es_neutral_use use, es_neutral_text *out)
{
    int n_out = 0, kind[2] = {0};
    for (int i = 0; i < n; i++) {
        es_neutral_use is = es_neutral_use_of(&text[i], kind);
        if (is == use || (is == ES_NEUTRAL_CHOOSE && use == ES_NEUTRAL_INPUTS))
            out[n_out++] = text[i];
    }
    return n_out;
}

int es_inputs_neutral(es_inputs **out, es_model *m, const es_dictionary *s, int rank, const es_neutral_text *text, int n, int threads, const volatile bool *cancel,
                      es_error *err)
{
    es_neutral_text *picked = es_calloc((size_t)n + 1, sizeof *picked);
    *out = NULL;
    int n_picked = picked ? es_neutral_pick(text, n, ES_NEUTRAL_INPUTS, picked) : 0;
    int rc = picked ? es_inputs_make(out, m, s, rank, picked, n_picked, 1, threads, cancel, err) : es_fail(err, ES_ERR_MEMORY, "no memory for neutral texts");
    free(picked);
    return rc;
}

int es_inputs_kept(es_inputs **out, es_model *m, const es_dictionary *s, int rank, const char *neutral, const char *folder, int threads,
                   const volatile bool *cancel, es_error *err)
{
    char hash[65], texts[65], path[1400];
    es_neutral_texts t = {0};
    es_error unread;
    *out = NULL;
    int rc = es_model_hash(m, hash, err), layer = es_adapter_default(s, m).first_layer;
    rc = rc ? rc : es_sha256_file(texts, neutral, err);
    if (rc)
        return rc;
    if (snprintf(path, sizeof path, "%s/%.16s-from%d-rank%d.safetensors", folder, hash, layer, rank) >= (int)sizeof path)
        return es_fail(err, ES_ERR_USAGE, "%s: the path is too long", folder);
    if (access(path, R_OK) == 0 && es_inputs_load(out, m, path, &unread) == ES_OK) {
        if (!strcmp(es_inputs_texts(*out), texts))
            return ES_OK;
        es_inputs_free(*out); /* one of other texts is made again, as one that cannot be read is */
        *out = NULL;
    }
    rc = es_neutral_load(&t, neutral, err);
    rc = rc ? rc : es_inputs_neutral(out, m, s, rank, t.item, t.n, threads, cancel, err);
    es_neutral_texts_free(&t);
    if (!rc)
        es_inputs_set_texts(*out, texts);
    if (!rc && es_dir_make(folder, &unread) == ES_OK && es_inputs_save(*out, path, &unread) == ES_OK) { /* when it cannot be kept it is made again */
        es_inputs *made = *out;
        if (es_inputs_load(out, m, path, &unread) == ES_OK) /* as all later runs will have them, to the bit */
            es_inputs_free(made);
        else
            *out = made;
    }
    return rc;
}
