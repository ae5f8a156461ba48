/* Labels of a dictionary's features, with their whole history. */
#include "workspace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FEATURE_BITS = WS_FEATURE_BITS, MAX_TEXT = 4096 };

void es_label_free(es_label *l)
{
    free(l->text);
    free(l->tags);
    l->text = l->tags = NULL;
}

int ws_dictionary_id(es_workspace *w, const char *hash, bool make, int64_t *id, int *n_features, es_error *err)
{
    sqlite3_stmt *q = ws_query(w, err, "SELECT id, n_features FROM dictionary WHERE hash = ?", "s", hash);
    if (!q)
        return w->failed;
    int rc = ws_step(w, q, err);
    if (rc > 0) {
        *id = sqlite3_column_int64(q, 0);
        if (n_features)
            *n_features = sqlite3_column_int(q, 1);
    }
    sqlite3_finalize(q);
    if (rc)
        return rc > 0 ? ES_OK : rc;
    if (!make)
        return ES_ERR_MISSING;
    rc = ws_run(w, err, "INSERT INTO dictionary(hash) VALUES(?)", "s", hash);
    *id = sqlite3_last_insert_rowid(w->db);
    if (n_features)
        *n_features = 0;
    return rc;
}

static int64_t row_id(int64_t dictionary, int feature) { return ws_search_row(dictionary, feature); }

/* ---- one label ---------------------------------------------------------------------------------------------------------------------- */

/* 1: there is one; *out zeroed otherwise. */
static int label_read(es_workspace *w, int64_t dictionary, int feature, es_label *out, es_error *err)
{
    *out = (es_label){.feature = feature};
    sqlite3_stmt *q = ws_query(w, err, "SELECT text, tags, rating, skipped, author, time FROM label WHERE dictionary = ? AND feature = ?", "ii", dictionary,
                               (int64_t)feature);
    if (!q)
        return w->failed;
    int rc = ws_step(w, q, err);
    if (rc > 0) {
        out->text = ws_text(q, 0);
        out->tags = ws_text(q, 1);
        out->rating = sqlite3_column_int(q, 2);
        out->skipped = sqlite3_column_int(q, 3) != 0;
        ws_copy(out->author, sizeof out->author, q, 4);
        ws_copy(out->time, sizeof out->time, q, 5);
        if (!out->text || !out->tags) {
            es_label_free(out);
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for a label");
        }
    }
    sqlite3_finalize(q);
    return rc;
}

/* Writes (or, with text NULL, deletes) the label and its search row. */
static int label_write(es_workspace *w, int64_t dictionary, int feature, const char *text, const char *tags, int rating, bool skipped, const char *author,
                       const char *time, es_error *err)
{
    int rc;
    if (text)
        rc = ws_run(w, err, "INSERT OR REPLACE INTO label(dictionary, feature, text, tags, rating, skipped, author, time) VALUES(?,?,?,?,?,?,?,?)", "iissiiss",
                    dictionary, (int64_t)feature, text, tags, (int64_t)rating, (int64_t)skipped, author, time);
    else
        rc = ws_run(w, err, "DELETE FROM label WHERE dictionary = ? AND feature = ?", "ii", dictionary, (int64_t)feature);
    if (rc)
        return rc;
    rc = ws_run(w, err, "UPDATE search SET label = ?, tags = ? WHERE rowid = ?", "ssi", text ? text : "", text ? tags : "", row_id(dictionary, feature));
    if (!rc && sqlite3_changes(w->db) == 0)
        rc = ws_run(w, err, "INSERT INTO search(rowid, label, tags, tokens) VALUES(?,?,?,'')", "iss", row_id(dictionary, feature), text ? text : "",
                    text ? tags : "");
    return rc;
}

/* One space between tags, none twice. */
static int tidy_tags(es_buf *out, const char *tags)
{
    for (const char *p = tags; *p;) {
        size_t n = strcspn(p, " \t\r\n");
        bool twice = n == 0;
        for (const char *o = out->data; o && *o && !twice;) {
            size_t k = strcspn(o, " ");
            twice = k == n && !memcmp(o, p, n);
            o += k + (o[k] == ' ');
        }
        if (!twice) {
            if (out->len)
                es_buf_str(out, " ");
            es_buf_add(out, p, n);
        }
        p += n + (p[n] != 0);
    }
    es_buf_add(out, "", 0);
    return out->failed ? ES_ERR_MEMORY : ES_OK;
}

/* Inside a transaction. NULL text or tags, rating < 0, skip < 0: unchanged. */
static int label_change(es_workspace *w, int64_t dictionary, int n_features, int feature, const char *text, const char *tags, int rating, int skip,
                        const char *author, int64_t batch, bool undoable, es_error *err)
{
    if (feature < 0 || feature >= 1 << FEATURE_BITS || (n_features > 0 && feature >= n_features))
        return es_fail(err, ES_ERR_USAGE, "there is no feature %d (the dictionary has %d)", feature, n_features);
    if (rating > 5)
        return es_fail(err, ES_ERR_USAGE, "a rating is 0 to 5, not %d", rating);
    if ((text && (!ws_utf8(text) || strlen(text) > MAX_TEXT)) || (tags && (!ws_utf8(tags) || strlen(tags) > MAX_TEXT)) || (author && !ws_utf8(author)))
        return es_fail(err, ES_ERR_USAGE, "a label must be UTF-8 text of at most %d bytes", MAX_TEXT);
    es_label was;
    es_buf tidy = {0};
    int there = label_read(w, dictionary, feature, &was, err), rc = there < 0 ? there : ES_OK;
    if (!rc && tidy_tags(&tidy, tags ? tags : there ? was.tags : ""))
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for a label");
    if (!rc) {
        const char *new_text = text ? text : there ? was.text : "";
        int new_rating = rating >= 0 ? rating : was.rating, new_skip = skip >= 0 ? skip : was.skipped;
        char now[32];
        ws_now(now);
        author = author ? author : "";
        bool same = !strcmp(new_text, there ? was.text : "") && !strcmp(tidy.data, there ? was.tags : "") && new_rating == was.rating && new_skip == was.skipped;
        if (!same) {
            rc = ws_run(w, err,
                        "INSERT INTO label_change(batch, dictionary, feature, undoable, before_text, before_tags, before_rating, before_skipped, before_author,"
                        " before_time, text, tags, rating, skipped, author, time) VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                        "iiiissiissssiiss", batch, dictionary, (int64_t)feature, (int64_t)undoable, there ? was.text : NULL, there ? was.tags : NULL,
                        (int64_t)was.rating, (int64_t)was.skipped, there ? was.author : NULL, there ? was.time : NULL, new_text, tidy.data, (int64_t)new_rating,
                        (int64_t)new_skip, author, now);
            if (!rc)
                rc = label_write(w, dictionary, feature, new_text, tidy.data, new_rating, new_skip, author, now, err);
        }
    }
    es_label_free(&was);
    es_buf_free(&tidy);
    return rc;
}

static int next_batch(es_workspace *w, int64_t *batch, es_error *err)
{
    return ws_int(w, batch, err, "SELECT coalesce(max(batch), 0) + 1 FROM label_change", "");
}

static int change_one(es_workspace *w, const char *hash, int feature, const char *text, const char *tags, int rating, int skip, const char *author, es_error *err)
{
    ws_enter(w);
    int64_t dictionary = 0, batch = 0;
    int n_features = 0, rc = ws_begin(w, err);
    if (!rc) {
        rc = ws_dictionary_id(w, hash, true, &dictionary, &n_features, err);
        if (!rc)
            rc = next_batch(w, &batch, err);
        if (!rc)
            rc = label_change(w, dictionary, n_features, feature, text, tags, rating, skip, author, batch, true, err);
        rc = ws_end(w, rc, err);
    }
    ws_leave(w);
    return rc;
}

int es_workspace_label_set(es_workspace *w, const char *dictionary, int feature, const char *text, const char *tags, int rating, const char *author, es_error *err)
{
    return change_one(w, dictionary, feature, text, tags, rating, -1, author, err);
}

int es_workspace_label_skip(es_workspace *w, const char *dictionary, int feature, bool skip, const char *author, es_error *err)
{
    return change_one(w, dictionary, feature, NULL, NULL, -1, skip, author, err);
}

int es_workspace_label_get(es_workspace *w, const char *dictionary, int feature, es_label *out, es_error *err)
{
    *out = (es_label){.feature = feature};
    ws_enter(w);
    int64_t id = 0;
    int rc = ws_dictionary_id(w, dictionary, false, &id, NULL, err);
    if (!rc) {
        rc = label_read(w, id, feature, out, err);
        rc = rc > 0 ? ES_OK : rc == 0 ? ES_ERR_MISSING : rc;
    }
    ws_leave(w);
    return rc;
}

/* Puts one change back to what was before it. */
static int undo_one(es_workspace *w, int64_t dictionary, int64_t change, int *feature, es_error *err)
{
    sqlite3_stmt *q = ws_query(w, err, "SELECT feature, before_text, before_tags, before_rating, before_skipped, before_author, before_time FROM label_change WHERE id = ?",
                               "i", change);
    if (!q)
        return w->failed;
    int rc = ws_step(w, q, err);
    if (rc > 0) {
        const char *text = (const char *)sqlite3_column_text(q, 1), *tags = (const char *)sqlite3_column_text(q, 2);
        const char *author = (const char *)sqlite3_column_text(q, 5), *time = (const char *)sqlite3_column_text(q, 6);
        *feature = sqlite3_column_int(q, 0);
        rc = label_write(w, dictionary, *feature, text, tags ? tags : "", sqlite3_column_int(q, 3), sqlite3_column_int(q, 4) != 0, author ? author : "",
                         time ? time : "", err);
    }
    sqlite3_finalize(q);
    char now[32];
    ws_now(now);
    return rc ? rc : ws_run(w, err, "UPDATE label_change SET undone = ? WHERE id = ?", "si", now, change);
}

int es_workspace_label_undo(es_workspace *w, const char *hash, int *feature, es_error *err)
{
    *feature = -1;
    ws_enter(w);
    int rc = ws_begin(w, err);
    if (!rc) {
        int64_t dictionary = 0, batch = 0, id = 0;
        rc = ws_dictionary_id(w, hash, false, &dictionary, NULL, err);
        if (!rc)
            rc = ws_int(w, &batch, err, "SELECT batch FROM label_change WHERE dictionary = ? AND undone IS NULL AND undoable ORDER BY id DESC LIMIT 1", "i",
                        dictionary);
        int got = rc; /* an import of many is undone as one, newest change first */
        while (!got && !rc) {
            got = ws_int(w, &id, err,
                         "SELECT id FROM label_change WHERE dictionary = ? AND undone IS NULL AND undoable AND batch = ? ORDER BY id DESC LIMIT 1", "ii",
                         dictionary, batch);
            if (!got)
                rc = undo_one(w, dictionary, id, feature, err);
            else if (got != ES_ERR_MISSING)
                rc = got;
        }
        rc = ws_end(w, rc, err);
    }
    ws_leave(w);
    return rc == ES_ERR_MISSING ? es_fail(err, rc, "there is no change of a label left to undo") : rc;
}

int es_workspace_label_count(es_workspace *w, const char *dictionary)
{
    int64_t n = 0;
    ws_enter(w);
    ws_int(w, &n, NULL, "SELECT count(*) FROM label JOIN dictionary ON dictionary.id = label.dictionary WHERE hash = ? AND text <> ''", "s", dictionary);
    ws_leave(w);
    return (int)n;
}

int es_workspace_labels_all(es_workspace *w, const char *dictionary, int n_features, char **out, es_error *err)
{
    memset(out, 0, sizeof *out * (size_t)n_features);
    ws_enter(w);
    sqlite3_stmt *q = ws_query(w, err,
                               "SELECT feature, text FROM label JOIN dictionary ON dictionary.id = label.dictionary WHERE hash = ? AND text <> ''"
                               " AND feature >= 0 AND feature < ?",
                               "si", dictionary, (int64_t)n_features);
    int rc = q ? ES_OK : w->failed;
    while (q && (rc = ws_step(w, q, err)) > 0) {
        int f = sqlite3_column_int(q, 0);
        if (f >= 0 && f < n_features && !out[f] && !(out[f] = ws_text(q, 1))) {
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for the labels");
            break;
        }
    }
    sqlite3_finalize(q);
    ws_leave(w);
    if (rc)
        for (int i = 0; i < n_features; i++) {
            free(out[i]);
            out[i] = NULL;
        }
    return rc;
}

/* ---- import and export ---------------------------------------------------------------------------------------------------------------- */

typedef struct import {
    es_workspace *w;
    int64_t dictionary, batch;
    int n_features, n;
    const char *author;
    bool undoable;
} import;

static int import_line(void *user, size_t line, json_t *value, es_error *err)
{
    (void)line;
    import *i = user;
    json_t *feature = json_object_get(value, "feature"), *text = json_object_get(value, "text"), *tags = json_object_get(value, "tags");
    json_t *author = json_object_get(value, "author"), *rating = json_object_get(value, "rating"), *skipped = json_object_get(value, "skipped");
    if (!json_is_object(value) || !json_is_integer(feature) || !json_is_string(text))
        return es_fail(err, ES_ERR_FORMAT, "a label is {\"feature\":number,\"text\":\"...\"} with \"tags\":[...] and \"author\" if you like");
    json_int_t f = json_integer_value(feature), r = rating ? json_integer_value(rating) : -1;
    if (f < 0 || f >= (i->n_features > 0 ? i->n_features : 1 << FEATURE_BITS))
        return es_fail(err, ES_ERR_FORMAT, "there is no feature %lld (the dictionary has %d)", (long long)f, i->n_features);
    if ((rating && (!json_is_integer(rating) || r < 0 || r > 5)) || (tags && !json_is_array(tags)) || (author && !json_is_string(author)) ||
        (skipped && !json_is_boolean(skipped)))
        return es_fail(err, ES_ERR_FORMAT, "\"tags\" must be a list of words, \"author\" a text, \"rating\" 0 to 5, \"skipped\" true or false");
    if (strlen(json_string_value(text)) != json_string_length(text))
        return es_fail(err, ES_ERR_FORMAT, "\"text\" holds a NUL character");
    es_buf words = {0};
    size_t k;
    json_t *tag;
    json_array_foreach(tags, k, tag) {
        if (!json_is_string(tag)) {
            es_buf_free(&words);
            return es_fail(err, ES_ERR_FORMAT, "\"tags\" must be a list of words");
        }
        es_buf_printf(&words, "%s%s", words.len ? " " : "", json_string_value(tag));
    }
    if (words.failed)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a label");
    int rc = label_change(i->w, i->dictionary, i->n_features, (int)f, json_string_value(text), tags ? (words.data ? words.data : "") : NULL, (int)r,
                          skipped ? json_is_true(skipped) : -1, author ? json_string_value(author) : i->author, i->batch, i->undoable, err);
    es_buf_free(&words);
    i->n++;
    return rc;
}

int ws_label_file(es_workspace *w, int64_t dictionary, int n_features, const char *path, const char *author, bool undoable, int *imported, es_error *err)
{
    import i = {w, dictionary, 0, n_features, 0, author, undoable};
    int rc = next_batch(w, &i.batch, err);
    if (!rc)
        rc = es_jsonl_each(path, import_line, &i, err);
    if (imported)
        *imported = rc ? 0 : i.n;
    return rc;
}

int es_workspace_label_import(es_workspace *w, const char *hash, int n_features, const char *jsonl_path, const char *author, int *imported, es_error *err)
{
    if (imported)
        *imported = 0;
    ws_enter(w);
    int rc = ws_begin(w, err);
    if (!rc) {
        int64_t dictionary = 0;
        int known = 0;
        rc = ws_dictionary_id(w, hash, true, &dictionary, &known, err);
        if (!rc)
            rc = ws_label_file(w, dictionary, n_features > 0 ? n_features : known, jsonl_path, author, true, imported, err);
        rc = ws_end(w, rc, err);
    }
    ws_leave(w);
    return rc;
}

int es_workspace_label_import_json(es_workspace *w, const char *hash, int n_features, json_t *labels, const char *author, int *imported, es_error *err)
{
    size_t k;
    json_t *v;
    *imported = 0;
    ws_enter(w);
    int rc = ws_begin(w, err);
    if (!rc) {
        import i = {.w = w, .n_features = n_features, .author = author, .undoable = true};
        rc = ws_dictionary_id(w, hash, true, &i.dictionary, NULL, err);
        rc = rc ? rc : next_batch(w, &i.batch, err);
        json_array_foreach(labels, k, v)
            rc = rc ? rc : import_line(&i, k + 1, v, err);
        rc = ws_end(w, rc, err);
        *imported = rc ? 0 : i.n;
    }
    ws_leave(w);
    return rc;
}

static json_t *tags_json(const char *tags)
{
    json_t *list = json_array();
    for (const char *p = tags; list && *p;) {
        size_t n = strcspn(p, " ");
        if (n)
            json_array_append_new(list, json_stringn(p, n));
        p += n + (p[n] == ' ');
    }
    return list;
}

int es_workspace_label_export(es_workspace *w, const char *dictionary, json_t **out, es_error *err)
{
    *out = json_array();
    ws_enter(w);
    sqlite3_stmt *q = ws_query(w, err,
                               "SELECT feature, text, tags, rating, skipped, author, time FROM label JOIN dictionary ON dictionary.id = label.dictionary"
                               " WHERE hash = ? AND (text <> '' OR tags <> '' OR rating <> 0 OR skipped <> 0) ORDER BY feature",
                               "s", dictionary);
    int rc = q ? ES_OK : w->failed;
    while (q && (rc = ws_step(w, q, err)) > 0) {
        json_t *o = json_pack("{s:I, s:s, s:o, s:i, s:b, s:s, s:s, s:s}", "feature", (json_int_t)sqlite3_column_int64(q, 0), "text", sqlite3_column_text(q, 1), "tags",
                              tags_json((const char *)sqlite3_column_text(q, 2)), "rating", sqlite3_column_int(q, 3), "skipped", sqlite3_column_int(q, 4), "author",
                              sqlite3_column_text(q, 5), "time", sqlite3_column_text(q, 6), "dictionary", dictionary);
        if (!o || json_array_append_new(*out, o) != 0) {
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to list the labels");
            break;
        }
    }
    sqlite3_finalize(q);
    ws_leave(w);
    if (rc) {
        json_decref(*out);
        *out = NULL;
    }
    return rc;
}
