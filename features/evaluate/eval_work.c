/* Work files, and the sets that the protocols have in common. */
#include "eval_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DOCUMENT = 128 };

static int read_done(void *user, size_t number, json_t *value, es_error *err)
{
    const char *key = json_string_value(json_object_get(value, "key"));
    (void)number;
    if (!key || !json_string_value(json_object_get(value, "is")))
        return es_fail(err, ES_ERR_FORMAT, "not a line of an evaluation");
    json_object_set(user, key, value);
    return ES_OK;
}

int es_work_load(json_t *done, const char *path, es_error *err)
{
    es_buf text = {0};
    FILE *f = fopen(path, "re");
    if (!f)
        return ES_OK;
    fclose(f);
    int rc = es_file_read(&text, path, (size_t)256 << 20, err);
    if (!rc && text.len && text.data[text.len - 1] != '\n') {
        while (text.len && text.data[text.len - 1] != '\n')
            text.len--;
        rc = es_file_write(path, text.data, text.len, err);
    }
    if (!rc && text.len)
        rc = es_jsonl_each(path, read_done, done, err);
    es_buf_free(&text);
    return rc;
}

int es_work_keep(json_t *done, const char *path, const char *key, json_t *line, es_error *err)
{
    json_object_set_new(line, "key", json_string(key));
    char *text = json_dumps(line, JSON_COMPACT);
    FILE *f = text ? fopen(path, "ae") : NULL;
    bool ok = f && fprintf(f, "%s\n", text) > 0;
    ok = f && fclose(f) == 0 && ok;
    free(text);
    if (ok)
        ok = json_object_set(done, key, line) == 0;
    json_decref(line);
    return ok ? ES_OK : es_fail(err, ES_ERR_IO, "%s: cannot append a finished run", path);
}

int es_set_neutral(es_set *s, es_bench *b, const es_eval_text *text, int n_text, bool chat, bool dev, int tokens, es_error *err)
{
    es_source *from = es_calloc((size_t)n_text + 1, sizeof *from);
    int n = 0, have = 0, kind[2] = {0}, cut = chat ? b->max_reply : DOCUMENT, rc = from ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for neutral texts");
    for (int i = 0; !rc && i < n_text && have < tokens; i++) {
        const es_eval_text *t = &text[i];
        if (es_neutral_use_of(t, kind) != (dev ? ES_NEUTRAL_CHOOSE : ES_NEUTRAL_MEASURE) || (t->n_message > 0) != chat)
            continue;
        es_ids ids = {0};
        rc = es_tokenize_text(b->m, t->text, strlen(t->text), &ids, err);
        if (!rc && ids.n >= 2) {
            have += (int)ids.n < cut ? (int)ids.n : cut;
            from[n++] = (es_source){t->message, t->n_message, t->text};
        }
        es_ids_free(&ids);
    }
    rc = rc ? rc : es_set_open(s, b, from, n, cut, true, err);
    free(from);
    return rc;
}

int es_set_pairs(es_set *s, es_bench *b, const es_experiences *e, bool kl, es_error *err)
{
    es_source *from = es_calloc(2 * (size_t)e->n + 1, sizeof *from);
    int rc = from ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for %d pairs", e->n);
    for (int i = 0; !rc && i < e->n; i++) {
        from[2 * i] = (es_source){e->item[i].message, e->item[i].n_message, e->item[i].preferred};
        from[2 * i + 1] = (es_source){e->item[i].message, e->item[i].n_message, e->item[i].rejected};
    }
    rc = rc ? rc : es_set_open(s, b, from, 2 * e->n, b->max_reply, kl, err);
    free(from);
    return rc;
}

void es_set_margins(const es_set *s, double *margin, double *se, double *gain)
{
    int n = s->n / 2;
    double sum = 0, square = 0, up = 0;
    for (int i = 0; i < n; i++) {
        double x = es_experience_gain(&s->seq[2 * i], &s->seq[2 * i + 1]);
        sum += x;
        square += x * x;
        up += s->seq[2 * i].now - s->seq[2 * i].base;
    }
    *margin = n ? sum / n : 0;
    *gain = n ? up / n : 0;
    *se = n > 1 ? sqrt(fmax(square - sum * sum / n, 0) / (n - 1) / n) : 0;
}
