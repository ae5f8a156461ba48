/* Labels of a dictionary's features: what is shown of each, and its undo. What annotators say is in workspace_opinions.c. */
#include "workspace.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void es_label_free(es_label *l)
{
    free(l->text);
    free(l->tags);
    free(l->note);
    l->text = l->tags = l->note = NULL;
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

/* ---- what is shown ------------------------------------------------------------------------------------------------------------------- */

int es_workspace_label_get(es_workspace *w, const char *dictionary, int feature, es_label *out, es_error *err)
{
    *out = (es_label){.feature = feature, .score = NAN};
    ws_enter(w);
    int64_t id = 0;
    int rc = ws_dictionary_id(w, dictionary, false, &id, NULL, err);
    sqlite3_stmt *q = rc ? NULL :
                           ws_query(w, err, "SELECT text, tags, note, rating, skipped, author, time, confidence, opinions, conflict, score, tested FROM label"
                                            " WHERE dictionary = ? AND feature = ?", "ii", id, (int64_t)feature);
    if (!rc)
        rc = q ? ws_step(w, q, err) : w->failed;
    if (q && rc > 0) {
        out->text = ws_text(q, 0);
        out->tags = ws_text(q, 1);
        out->note = ws_text(q, 2);
        out->rating = sqlite3_column_int(q, 3);
        out->skipped = sqlite3_column_int(q, 4) != 0;
        ws_copy(out->author, sizeof out->author, q, 5);
        ws_copy(out->time, sizeof out->time, q, 6);
        out->confidence = sqlite3_column_int(q, 7);
        out->opinions = sqlite3_column_int(q, 8);
        out->conflict = sqlite3_column_int(q, 9) != 0;
        if (sqlite3_column_type(q, 10) != SQLITE_NULL)
            out->score = sqlite3_column_double(q, 10);
        out->tested = sqlite3_column_int(q, 11);
        rc = ES_OK;
        if (!out->text || !out->tags || !out->note) {
            es_label_free(out);
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for a label");
        }
    } else if (q && rc == 0) {
        rc = ES_ERR_MISSING;
    }
    sqlite3_finalize(q);
    ws_leave(w);
    return rc;
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

typedef struct tag_count { char *tag; int n; } tag_count;

static int by_tag(const void *a, const void *b)
{
    return strcmp(((const tag_count *)a)->tag, ((const tag_count *)b)->tag);
}

static int by_use(const void *a, const void *b)
{
    const tag_count *x = a, *y = b;
    return x->n != y->n ? y->n - x->n : strcmp(x->tag, y->tag);
}

int es_workspace_label_tags(es_workspace *w, const char *dictionary, es_buf *out, es_error *err)
{
    es_buf all = {0}; /* of tag_count */
    ws_enter(w);
    sqlite3_stmt *q = ws_query(w, err, "SELECT tags FROM label JOIN dictionary ON dictionary.id = label.dictionary WHERE hash = ? AND tags <> ''", "s", dictionary);
    int rc = q ? ES_OK : w->failed;
    while (q && (rc = ws_step(w, q, err)) > 0) {
        const char *tags = (const char *)sqlite3_column_text(q, 0);
        for (const char *p = tags ? tags : ""; *p;) {
            size_t n = strcspn(p, " ");
            tag_count c = {n ? strndup(p, n) : NULL, 1};
            if (c.tag)
                es_buf_add(&all, &c, sizeof c);
            p += n + (p[n] == ' ');
        }
    }
    sqlite3_finalize(q);
    ws_leave(w);
    tag_count *c = (tag_count *)(void *)all.data;
    size_t n = all.len / sizeof *c, distinct = 0;
    if (n)
        qsort(c, n, sizeof *c, by_tag);
    for (size_t i = 0; i < n; i++) {
        if (distinct && !strcmp(c[distinct - 1].tag, c[i].tag)) {
            c[distinct - 1].n++;
            free(c[i].tag);
        } else {
            c[distinct++] = c[i];
        }
    }
    if (distinct)
        qsort(c, distinct, sizeof *c, by_use);
    for (size_t i = 0; i < distinct; i++) {
        es_buf_add(out, c[i].tag, strlen(c[i].tag) + 1);
        free(c[i].tag);
    }
    if (!rc && (all.failed || out->failed))
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for the tags");
    es_buf_free(&all);
    return rc;
}

/* ---- changes, one after the other ------------------------------------------------------------------------------------------------------ */

int es_workspace_label_set(es_workspace *w, const char *dictionary, int feature, const char *text, const char *tags, int rating, const char *author, es_error *err)
{
    es_label_edit e = ES_LABEL_EDIT;
    e.text = text;
    e.tags = tags;
    e.rating = rating;
    return es_workspace_label_edit(w, dictionary, &feature, 1, &e, author, NULL, err);
}

int es_workspace_label_skip(es_workspace *w, const char *dictionary, int feature, bool skip, const char *author, es_error *err)
{
    es_label_edit e = ES_LABEL_EDIT;
    e.skip = skip;
    return es_workspace_label_edit(w, dictionary, &feature, 1, &e, author, NULL, err);
}

static const char *column(sqlite3_stmt *q, int i)
{
    return (const char *)sqlite3_column_text(q, i);
}

static int64_t said(sqlite3_stmt *q, int i) /* -1: unsaid */
{
    return sqlite3_column_type(q, i) == SQLITE_NULL ? -1 : sqlite3_column_int64(q, i);
}

static int opinion_put(es_workspace *w, int64_t dictionary, int feature, sqlite3_stmt *q, int from, const char *author, int64_t change, const char *time, es_error *err)
{
    return ws_run(w, err,
                  "INSERT OR REPLACE INTO opinion(dictionary, feature, author, text, tags, rating, skipped, note, confidence, change, time)"
                  " VALUES(?,?,?,?,?,nullif(?,-1),nullif(?,-1),?,nullif(?,-1),?,?)",
                  "iisssiisiis", dictionary, (int64_t)feature, author, column(q, from), column(q, from + 1), said(q, from + 2), said(q, from + 3), column(q, from + 4),
                  said(q, from + 5), change, time);
}

static int choice_put(es_workspace *w, int64_t dictionary, int feature, const char *author, es_error *err)
{
    if (!author || !*author)
        return ws_run(w, err, "DELETE FROM label_choice WHERE dictionary = ? AND feature = ?", "ii", dictionary, (int64_t)feature);
    return ws_run(w, err, "INSERT OR REPLACE INTO label_choice(dictionary, feature, author) VALUES(?,?,?)", "iis", dictionary, (int64_t)feature, author);
}

/* Puts one change back to what was before it, or does it again. */
static int travel_one(es_workspace *w, int64_t dictionary, int64_t change, bool back, int *feature, es_error *err)
{
    enum { FEATURE, AUTHOR, TIME, BEFORE_AUTHOR, BEFORE, BEFORE_CHANGE = BEFORE + 6, BEFORE_TIME, AFTER, BEFORE_CHOICE = AFTER + 6, CHOICE };
    sqlite3_stmt *q = ws_query(w, err,
                               "SELECT feature, author, time, before_author, before_text, before_tags, before_rating, before_skipped, before_note, before_confidence,"
                               " before_change, before_time, text, tags, rating, skipped, note, confidence, before_choice, choice FROM label_change WHERE id = ?",
                               "i", change);
    if (!q)
        return w->failed;
    int rc = ws_step(w, q, err);
    if (rc > 0) {
        const char *author = column(q, AUTHOR), *before = column(q, BEFORE_AUTHOR), *time = column(q, TIME);
        *feature = sqlite3_column_int(q, FEATURE);
        if (column(q, CHOICE)) {
            rc = choice_put(w, dictionary, *feature, column(q, back ? BEFORE_CHOICE : CHOICE), err);
        } else if (back) {
            bool was = said(q, BEFORE_CHANGE) >= 0;
            rc = was && before && !strcmp(before, author) ? ES_OK :
                                                            ws_run(w, err, "DELETE FROM opinion WHERE dictionary = ? AND feature = ? AND author = ?", "iis",
                                                                   dictionary, (int64_t)*feature, author);
            if (!rc && was)
                rc = opinion_put(w, dictionary, *feature, q, BEFORE, before ? before : author, said(q, BEFORE_CHANGE), column(q, BEFORE_TIME) ? column(q, BEFORE_TIME) : "", err);
        } else {
            rc = opinion_put(w, dictionary, *feature, q, AFTER, author, change, time, err);
        }
    }
    sqlite3_finalize(q);
    char now[32];
    ws_now(now);
    if (!rc)
        rc = ws_run(w, err, "UPDATE label_change SET undone = ? WHERE id = ?", "si", back ? now : NULL, change);
    return rc ? rc : ws_label_show(w, dictionary, *feature, err);
}

/* A batch (an import, a selection that was tagged) is one step: undone newest change first, redone oldest first. */
static int travel(es_workspace *w, const char *hash, bool back, int *feature, int *n, es_error *err)
{
    int count = 0;
    *feature = -1;
    ws_enter(w);
    int rc = ws_begin(w, err);
    if (!rc) {
        int64_t dictionary = 0, batch = 0, id = 0;
        rc = ws_dictionary_id(w, hash, false, &dictionary, NULL, err);
        if (!rc && back)
            rc = ws_int(w, &batch, err, "SELECT batch FROM label_change WHERE dictionary = ? AND undone IS NULL AND undoable ORDER BY id DESC LIMIT 1", "i",
                        dictionary);
        else if (!rc) /* the oldest undone one that is younger than all that stand */
            rc = ws_int(w, &batch, err,
                        "SELECT batch FROM label_change WHERE dictionary = ?1 AND undoable AND undone IS NOT NULL AND id > coalesce((SELECT max(id) FROM label_change"
                        " WHERE dictionary = ?1 AND undone IS NULL AND undoable), 0) ORDER BY id LIMIT 1",
                        "i", dictionary);
        int got = rc;
        id = back ? INT64_MAX : 0;
        while (!got && !rc) { /* from the last one on, not over those that are done */
            got = ws_int(w, &id, err,
                         back ? "SELECT id FROM label_change WHERE batch = ? AND id < ? AND dictionary = ? AND undone IS NULL AND undoable ORDER BY id DESC LIMIT 1" :
                                "SELECT id FROM label_change WHERE batch = ? AND id > ? AND dictionary = ? AND undone IS NOT NULL AND undoable ORDER BY id LIMIT 1",
                         "iii", batch, id, dictionary);
            int f = -1;
            if (!got)
                rc = travel_one(w, dictionary, id, back, &f, err);
            else if (got != ES_ERR_MISSING)
                rc = got;
            if (!got && !rc) {
                count++;
                if (back || *feature < 0) /* the first that the step touched */
                    *feature = f;
            }
        }
        rc = ws_end(w, rc, err);
    }
    ws_leave(w);
    if (n)
        *n = rc ? 0 : count;
    return rc == ES_ERR_MISSING ? es_fail(err, rc, "there is no change of a label left to %s", back ? "undo" : "redo") : rc;
}

int es_workspace_label_step_back(es_workspace *w, const char *dictionary, int *feature, int *n, es_error *err)
{
    return travel(w, dictionary, true, feature, n, err);
}

int es_workspace_label_undo(es_workspace *w, const char *dictionary, int *feature, es_error *err)
{
    return travel(w, dictionary, true, feature, NULL, err);
}

int es_workspace_label_redo(es_workspace *w, const char *dictionary, int *feature, int *n, es_error *err)
{
    return travel(w, dictionary, false, feature, n, err);
}
