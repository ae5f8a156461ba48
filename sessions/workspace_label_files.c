/* Labels in files: import, export, merging those of several people, and where these differ. */
#include "workspace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- a line ---------------------------------------------------------------------------------------------------------------------------- */

typedef struct reader {
    es_workspace *w;
    ws_edit how;
    const char *hash, *author; /* of lines that name none */
    es_merge n;
    bool merge;
} reader;

static bool number_is(json_t *v, json_int_t most)
{
    return json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) <= most;
}

static int shape(json_t *value, int n_features, es_error *err)
{
    json_t *feature = json_object_get(value, "feature"), *text = json_object_get(value, "text"), *tags = json_object_get(value, "tags");
    json_t *author = json_object_get(value, "author"), *rating = json_object_get(value, "rating"), *skipped = json_object_get(value, "skipped");
    json_t *note = json_object_get(value, "note"), *confidence = json_object_get(value, "confidence"), *time = json_object_get(value, "time");
    if (!json_is_object(value) || !json_is_integer(feature) || !json_is_string(text))
        return es_fail(err, ES_ERR_FORMAT, "a label is {\"feature\":number,\"text\":\"...\"} with \"tags\":[...] and \"author\" if you like");
    json_int_t f = json_integer_value(feature);
    if (f < 0 || f >= (n_features > 0 ? n_features : 1 << WS_FEATURE_BITS))
        return es_fail(err, ES_ERR_FORMAT, "there is no feature %lld (the dictionary has %d)", (long long)f, n_features);
    if ((rating && !number_is(rating, 5)) || (tags && !json_is_array(tags)) || (author && !json_is_string(author)) || (skipped && !json_is_boolean(skipped)))
        return es_fail(err, ES_ERR_FORMAT, "\"tags\" must be a list of words, \"author\" a text, \"rating\" 0 to 5, \"skipped\" true or false");
    if ((note && !json_is_string(note)) || (confidence && !number_is(confidence, 100)) || (time && !json_is_string(time)))
        return es_fail(err, ES_ERR_FORMAT, "\"note\" and \"time\" must be texts, \"confidence\" 0 to 100");
    if (strlen(json_string_value(text)) != json_string_length(text) || (note && strlen(json_string_value(note)) != json_string_length(note)))
        return es_fail(err, ES_ERR_FORMAT, "\"text\" holds a NUL character");
    return ES_OK;
}

static bool time_is_sound(const char *s) /* as ws_now writes it: such times can be compared as texts */
{
    static const char like[] = "0000-00-00T00:00:00.000Z";
    for (size_t i = 0; i < sizeof like; i++)
        if (like[i] == '0' ? s[i] < '0' || s[i] > '9' : s[i] != like[i])
            return false;
    return true;
}

/* An annotator's newer word stays. */
static int is_older(reader *r, int feature, const char *author, const char *time, bool *older, es_error *err)
{
    ws_opinion own;
    int there = ws_opinion_get(r->w, r->how.dictionary, feature, author, &own, err);
    *older = there > 0 && (!time || strcmp(time, own.time) < 0);
    ws_opinion_free(&own);
    return there < 0 ? there : ES_OK;
}

static int take_line(void *user, size_t line, json_t *value, es_error *err)
{
    (void)line;
    reader *r = user;
    es_buf words = {0};
    size_t k;
    json_t *tag, *tags = json_object_get(value, "tags"), *skipped = json_object_get(value, "skipped"), *rating = json_object_get(value, "rating");
    json_t *confidence = json_object_get(value, "confidence");
    int rc = shape(value, r->how.n_features, err);
    const char *of = json_string_value(json_object_get(value, "dictionary"));
    if (!rc && r->merge && of && *of && strcmp(of, r->hash))
        return es_fail(err, ES_ERR_MISMATCH, "a label of the dictionary %.64s; this one is %.64s", of, r->hash);
    json_array_foreach(tags, k, tag) {
        if (rc)
            break;
        if (!json_is_string(tag))
            rc = es_fail(err, ES_ERR_FORMAT, "\"tags\" must be a list of words");
        else
            es_buf_printf(&words, "%s%s", words.len ? " " : "", json_string_value(tag));
    }
    if (!rc && words.failed)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for a label");
    if (!rc) {
        const char *author = json_string_value(json_object_get(value, "author")), *time = json_string_value(json_object_get(value, "time"));
        int feature = (int)json_integer_value(json_object_get(value, "feature"));
        es_label_edit e = {json_string_value(json_object_get(value, "text")), tags ? (words.data ? words.data : "") : NULL, json_string_value(json_object_get(value, "note")),
                           NULL, NULL, rating ? (int)json_integer_value(rating) : -1, confidence ? (int)json_integer_value(confidence) : -1,
                           skipped ? json_is_true(skipped) : -1};
        bool older = false, changed = false;
        r->how.author = author && *author ? author : r->author;
        r->how.time = r->merge && time && time_is_sound(time) ? time : NULL;
        if (r->merge && !*e.text)
            e.text = NULL; /* a line of tags or a skip says nothing of the label */
        if (r->merge)
            rc = is_older(r, feature, r->how.author, r->how.time, &older, err);
        if (!rc && !older)
            rc = ws_label_change(r->w, &r->how, feature, &e, &changed, err);
        r->n.read++;
        r->n.older += older;
        r->n.changed += changed;
        r->n.same += !older && !changed;
    }
    es_buf_free(&words);
    return rc;
}

/* ---- import ---------------------------------------------------------------------------------------------------------------------------- */

int ws_label_file(es_workspace *w, int64_t dictionary, int n_features, const char *path, const char *author, bool undoable, int *imported, es_error *err)
{
    reader r = {.w = w, .how = {.dictionary = dictionary, .n_features = n_features, .undoable = undoable}, .author = author};
    int rc = ws_batch_next(w, &r.how.batch, err);
    if (!rc)
        rc = es_jsonl_each(path, take_line, &r, err);
    if (imported)
        *imported = rc ? 0 : r.n.read;
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
        reader r = {.w = w, .how = {.n_features = n_features, .undoable = true}, .author = author};
        rc = ws_dictionary_id(w, hash, true, &r.how.dictionary, NULL, err);
        rc = rc ? rc : ws_batch_next(w, &r.how.batch, err);
        json_array_foreach(labels, k, v)
            rc = rc ? rc : take_line(&r, k + 1, v, err);
        rc = ws_end(w, rc, err);
        *imported = rc ? 0 : r.n.read;
    }
    ws_leave(w);
    return rc;
}

int es_workspace_label_merge(es_workspace *w, const char *dictionary, int n_features, const char *const *path, int n_path, const char *author, es_merge *out,
                             es_error *err)
{
    reader r = {.w = w, .how = {.n_features = n_features, .undoable = true}, .hash = dictionary, .author = author, .merge = true};
    int64_t before = 0, after = 0;
    *out = (es_merge){0};
    ws_enter(w);
    int rc = ws_begin(w, err);
    if (!rc)
        rc = ws_dictionary_id(w, dictionary, true, &r.how.dictionary, NULL, err);
    if (!rc)
        rc = ws_batch_next(w, &r.how.batch, err);
    if (!rc)
        rc = ws_int(w, &before, err, "SELECT count(*) FROM opinion WHERE dictionary = ?", "i", r.how.dictionary);
    for (int i = 0; i < n_path && !rc; i++)
        rc = es_jsonl_each(path[i], take_line, &r, err);
    if (!rc)
        rc = ws_int(w, &after, err, "SELECT count(*) FROM opinion WHERE dictionary = ?", "i", r.how.dictionary);
    rc = ws_end(w, rc, err);
    ws_leave(w);
    if (!rc) {
        *out = r.n;
        out->added = (int)(after - before);
        out->changed -= out->added;
    }
    return rc;
}

/* ---- export ---------------------------------------------------------------------------------------------------------------------------- */

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

static json_t *opinion_json(int feature, const ws_opinion *o, const char *dictionary)
{
    json_t *v = json_pack("{s:i, s:s, s:o, s:i, s:b, s:s, s:s, s:s}", "feature", feature, "text", o->text ? o->text : "", "tags", tags_json(o->tags ? o->tags : ""), "rating",
                          o->rating > 0 ? o->rating : 0, "skipped", o->skipped > 0, "author", o->author, "time", o->time, "dictionary", dictionary);
    if (v && o->note && *o->note)
        json_object_set_new(v, "note", json_string(o->note));
    if (v && o->confidence > 0)
        json_object_set_new(v, "confidence", json_integer(o->confidence));
    return v;
}

/* Features of the dictionary for which `sql` (with the dictionary's id, also into *id, as ?1) gives a row: none of a dictionary that nobody labelled. */
static int features_of(es_workspace *w, const char *dictionary, const char *sql, int64_t *id, es_buf *out, es_error *err)
{
    int known = ws_dictionary_id(w, dictionary, false, id, NULL, err);
    if (known)
        return known == ES_ERR_MISSING ? ES_OK : known;
    sqlite3_stmt *q = ws_query(w, err, sql, "i", *id);
    int rc = q ? ES_OK : w->failed;
    while (q && (rc = ws_step(w, q, err)) > 0) {
        int f = sqlite3_column_int(q, 0);
        es_buf_add(out, &f, sizeof f);
    }
    sqlite3_finalize(q);
    return !rc && out->failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory to list the labels") : rc;
}

static bool says_anything(const ws_opinion *o)
{
    return (o->text && *o->text) || (o->tags && *o->tags) || (o->note && *o->note) || o->rating > 0 || o->skipped > 0 || o->confidence > 0;
}

int es_workspace_label_export(es_workspace *w, const char *dictionary, json_t **out, es_error *err)
{
    int64_t id = 0;
    es_buf list = {0};
    *out = json_array();
    ws_enter(w);
    int rc = features_of(w, dictionary, "SELECT DISTINCT feature FROM opinion WHERE dictionary = ? ORDER BY feature", &id, &list, err);
    const int *feature = (const int *)(const void *)list.data;
    for (size_t i = 0; i < list.len / sizeof *feature && !rc; i++) {
        ws_opinion *o = NULL;
        int n = 0;
        rc = ws_opinions_of(w, id, feature[i], &o, &n, err);
        for (int k = 0; k < n && !rc; k++) {
            json_t *v = says_anything(&o[k]) ? opinion_json(feature[i], &o[k], dictionary) : NULL;
            if (says_anything(&o[k]) && (!v || json_array_append_new(*out, v) != 0))
                rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to list the labels");
        }
        ws_opinions_free(o, n);
    }
    ws_leave(w);
    es_buf_free(&list);
    if (rc) {
        json_decref(*out);
        *out = NULL;
    }
    return rc;
}

/* ---- conflicts ------------------------------------------------------------------------------------------------------------------------- */

int es_workspace_label_conflicts(es_workspace *w, const char *dictionary, json_t **out, es_error *err)
{
    int64_t id = 0;
    es_buf list = {0};
    *out = json_array();
    ws_enter(w);
    int rc = features_of(w, dictionary, "SELECT feature FROM label WHERE dictionary = ? AND conflict ORDER BY feature", &id, &list, err);
    const int *feature = (const int *)(const void *)list.data;
    for (size_t i = 0; i < list.len / sizeof *feature && !rc; i++) {
        ws_opinion *o = NULL;
        int n = 0;
        rc = ws_opinions_of(w, id, feature[i], &o, &n, err);
        json_t *labels = json_array();
        for (int k = 0; k < n && !rc; k++)
            if (o[k].text && *o[k].text)
                json_array_append_new(labels, opinion_json(feature[i], &o[k], dictionary));
        json_t *first = json_object_get(json_array_get(labels, 0), "author");
        json_t *v = json_pack("{s:i, s:O?, s:o}", "feature", feature[i], "shown", first, "labels", labels);
        if (!rc && (!v || json_array_append_new(*out, v) != 0))
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to list the conflicts");
        ws_opinions_free(o, n);
    }
    ws_leave(w);
    es_buf_free(&list);
    if (rc) {
        json_decref(*out);
        *out = NULL;
    }
    return rc;
}
