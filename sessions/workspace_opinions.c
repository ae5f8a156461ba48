/* What each annotator says of a feature, and how what is shown is put together from it. */
#include "workspace.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool es_author_automatic(const char *author)
{
    return !strcmp(author, "auto") || !strncmp(author, "auto:", 5) || !strcmp(author, "starter");
}

void ws_opinion_free(ws_opinion *o)
{
    free(o->text);
    free(o->tags);
    free(o->note);
    o->text = o->tags = o->note = NULL;
}

void ws_opinions_free(ws_opinion *o, int n)
{
    for (int i = 0; i < n; i++)
        ws_opinion_free(&o[i]);
    free(o);
}

bool ws_same_text(const char *a, const char *b)
{
    a += strspn(a, " \t\r\n");
    b += strspn(b, " \t\r\n");
    for (;;) {
        bool gap_a = strchr(" \t\r\n", *a) != NULL, gap_b = strchr(" \t\r\n", *b) != NULL; /* the end counts as one */
        if (gap_a && gap_b) {
            a += strspn(a, " \t\r\n");
            b += strspn(b, " \t\r\n");
            if (!*a || !*b)
                return !*a && !*b;
        }
        unsigned char x = (unsigned char)*a, y = (unsigned char)*b;
        x = x >= 'A' && x <= 'Z' ? x | 32 : x;
        y = y >= 'A' && y <= 'Z' ? y | 32 : y;
        if (x != y)
            return false;
        a++;
        b++;
    }
}

/* ---- reading ------------------------------------------------------------------------------------------------------------------------- */

#define COLUMNS "author, text, tags, rating, skipped, note, confidence, change, time"

static int number(sqlite3_stmt *q, int i)
{
    return sqlite3_column_type(q, i) == SQLITE_NULL ? -1 : sqlite3_column_int(q, i);
}

static int take(sqlite3_stmt *q, ws_opinion *o, es_error *err)
{
    *o = (ws_opinion){.text = ws_text(q, 1), .tags = ws_text(q, 2), .note = ws_text(q, 5), .rating = number(q, 3), .skipped = number(q, 4), .confidence = number(q, 6),
                      .change = sqlite3_column_int64(q, 7)};
    ws_copy(o->author, sizeof o->author, q, 0);
    ws_copy(o->time, sizeof o->time, q, 8);
    if ((!o->text && sqlite3_column_type(q, 1) != SQLITE_NULL) || (!o->tags && sqlite3_column_type(q, 2) != SQLITE_NULL) ||
        (!o->note && sqlite3_column_type(q, 5) != SQLITE_NULL)) {
        ws_opinion_free(o);
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a label");
    }
    return ES_OK;
}

int ws_opinion_get(es_workspace *w, int64_t dictionary, int feature, const char *author, ws_opinion *out, es_error *err)
{
    *out = (ws_opinion){.rating = -1, .skipped = -1, .confidence = -1};
    sqlite3_stmt *q = ws_query(w, err, "SELECT " COLUMNS " FROM opinion WHERE dictionary = ? AND feature = ? AND author = ?", "iis", dictionary, (int64_t)feature, author);
    if (!q)
        return w->failed;
    int rc = ws_step(w, q, err);
    if (rc > 0) {
        int failed = take(q, out, err);
        rc = failed ? failed : rc;
    }
    sqlite3_finalize(q);
    return rc;
}

int ws_opinions_of(es_workspace *w, int64_t dictionary, int feature, ws_opinion **out, int *n, es_error *err)
{
    char preferred[64];
    es_buf list = {0};
    es_workspace_label_preferred(w, preferred);
    sqlite3_stmt *q = ws_query(w, err,
                               "SELECT " COLUMNS " FROM opinion WHERE dictionary = ?1 AND feature = ?2 ORDER BY CASE"
                               " WHEN author = (SELECT author FROM label_choice WHERE dictionary = ?1 AND feature = ?2) THEN 0 WHEN author = ?3 THEN 1"
                               " WHEN author = 'starter' THEN 4 WHEN author = 'auto' OR substr(author, 1, 5) = 'auto:' THEN 3 ELSE 2 END, change DESC, time DESC, author",
                               "iis", dictionary, (int64_t)feature, preferred);
    int rc = q ? ES_OK : w->failed;
    while (q && (rc = ws_step(w, q, err)) > 0) {
        ws_opinion o;
        rc = take(q, &o, err);
        if (rc)
            break;
        es_buf_add(&list, &o, sizeof o);
        if (list.failed) {
            ws_opinion_free(&o);
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for the labels of a feature");
            break;
        }
    }
    sqlite3_finalize(q);
    *out = (ws_opinion *)(void *)list.data;
    *n = (int)(list.len / sizeof **out);
    if (rc) {
        ws_opinions_free(*out, *n);
        *out = NULL;
        *n = 0;
    }
    return rc;
}

/* ---- what is shown -------------------------------------------------------------------------------------------------------------------- */

static bool conflict(es_workspace *w, int64_t dictionary, int feature, const ws_opinion *o, int n)
{
    const char *first = NULL;
    bool differ = false;
    for (int i = 0; i < n; i++) {
        if (es_author_automatic(o[i].author) || !o[i].text || !*o[i].text)
            continue;
        differ = differ || (first && !ws_same_text(first, o[i].text));
        first = first ? first : o[i].text;
    }
    int64_t chosen = 0;
    return differ && ws_int(w, &chosen, NULL, "SELECT 1 FROM label_choice WHERE dictionary = ? AND feature = ?", "ii", dictionary, (int64_t)feature) != ES_OK;
}

/* The search row, where words of it changed. */
static int search_put(es_workspace *w, int64_t dictionary, int feature, const char *text, const char *tags, es_error *err)
{
    int64_t row = ws_search_row(dictionary, feature), same = 0;
    if (ws_int(w, &same, NULL, "SELECT label = ? AND tags = ? FROM search WHERE rowid = ?", "ssi", text, tags, row) == ES_OK && same)
        return ES_OK;
    int rc = ws_run(w, err, "UPDATE search SET label = ?, tags = ? WHERE rowid = ?", "ssi", text, tags, row);
    if (!rc && sqlite3_changes(w->db) == 0)
        rc = ws_run(w, err, "INSERT INTO search(rowid, label, tags, tokens) VALUES(?,?,?,'')", "iss", row, text, tags);
    return rc;
}

/* The score of the text that is shown, into the label's row: what lists, filters and the queue read. */
static int score_put(es_workspace *w, int64_t dictionary, const char *hash, int feature, const char *text, es_error *err)
{
    es_label_score s;
    int rc = *text ? es_workspace_score_get(w, hash, feature, text, &s, err) : ES_ERR_MISSING;
    if (rc == ES_ERR_MISSING)
        return ws_run(w, err, "UPDATE label SET score = NULL, tested = 0 WHERE dictionary = ? AND feature = ?", "ii", dictionary, (int64_t)feature);
    if (!rc)
        rc = ws_run(w, err, "UPDATE label SET score = ?, tested = ? WHERE dictionary = ? AND feature = ?", "diii", s.value, (int64_t)s.n, dictionary, (int64_t)feature);
    return rc;
}

int ws_label_show(es_workspace *w, int64_t dictionary, int feature, es_error *err)
{
    ws_opinion *o = NULL;
    int n = 0, rc = ws_opinions_of(w, dictionary, feature, &o, &n, err);
    if (rc)
        return rc;
    const char *text = NULL, *tags = NULL, *note = NULL, *author = n ? o[0].author : "", *time = n ? o[0].time : "";
    int rating = -1, skipped = -1, confidence = -1;
    for (int i = 0; i < n; i++) {
        if (!text && o[i].text) {
            text = o[i].text;
            author = o[i].author;
            time = o[i].time;
            confidence = o[i].confidence; /* how sure they are of this text */
        }
        tags = tags ? tags : o[i].tags;
        note = note ? note : o[i].note;
        rating = rating >= 0 ? rating : o[i].rating;
        skipped = skipped >= 0 ? skipped : o[i].skipped;
    }
    for (int i = 0; i < n && !text && confidence < 0; i++)
        confidence = o[i].confidence;
    text = text ? text : "";
    tags = tags ? tags : "";
    if (n == 0)
        rc = ws_run(w, err, "DELETE FROM label WHERE dictionary = ? AND feature = ?", "ii", dictionary, (int64_t)feature);
    else
        rc = ws_run(w, err,
                    "INSERT OR REPLACE INTO label(dictionary, feature, text, tags, rating, skipped, author, time, note, confidence, opinions, conflict)"
                    " VALUES(?,?,?,?,?,?,?,?,?,?,?,?)",
                    "iissiisssiii", dictionary, (int64_t)feature, text, tags, (int64_t)(rating > 0 ? rating : 0), (int64_t)(skipped > 0), author, time, note ? note : "",
                    (int64_t)(confidence > 0 ? confidence : 0), (int64_t)n, (int64_t)conflict(w, dictionary, feature, o, n));
    if (!rc)
        rc = search_put(w, dictionary, feature, text, tags, err);
    if (!rc && n) {
        char hash[65] = "";
        sqlite3_stmt *q = ws_query(w, err, "SELECT hash FROM dictionary WHERE id = ?", "i", dictionary);
        if (q && ws_step(w, q, err) > 0)
            ws_copy(hash, sizeof hash, q, 0);
        sqlite3_finalize(q);
        rc = score_put(w, dictionary, hash, feature, text, err);
    }
    ws_opinions_free(o, n);
    return rc;
}

/* ---- changes --------------------------------------------------------------------------------------------------------------------------- */

static bool has_tag(const char *tags, const char *tag, size_t n)
{
    for (const char *p = tags; p && *p;) {
        size_t k = strcspn(p, " ");
        if (k == n && !memcmp(p, tag, n))
            return true;
        p += k + (p[k] == ' ');
    }
    return false;
}

/* One space between tags, none twice, those of `without` left out. */
static void tidy_tags(es_buf *out, const char *tags, const char *without)
{
    es_buf left = {0};
    for (const char *p = without ? without : ""; *p;) { /* as separated by one space as the rest */
        size_t n = strcspn(p, " \t\r\n");
        if (n) {
            es_buf_str(&left, left.len ? " " : "");
            es_buf_add(&left, p, n);
        }
        p += n + (p[n] != 0);
    }
    for (const char *p = tags; *p;) {
        size_t n = strcspn(p, " \t\r\n");
        if (n && !has_tag(out->data, p, n) && !has_tag(left.data, p, n)) {
            es_buf_str(out, out->len ? " " : "");
            es_buf_add(out, p, n);
        }
        p += n + (p[n] != 0);
    }
    es_buf_add(out, "", 0);
    out->failed = out->failed || left.failed;
    es_buf_free(&left);
}

static int check(const es_label_edit *e, const char *author, es_error *err)
{
    const char *text[] = {e->text, e->tags, e->add_tags, e->remove_tags};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        if (text[i] && (!ws_utf8(text[i]) || strlen(text[i]) > ES_LABEL_BYTES))
            return es_fail(err, ES_ERR_USAGE, "a label must be UTF-8 text of at most %d bytes", ES_LABEL_BYTES);
    if (e->note && (!ws_utf8(e->note) || strlen(e->note) > ES_NOTE_BYTES))
        return es_fail(err, ES_ERR_USAGE, "a note must be UTF-8 text of at most %d bytes", ES_NOTE_BYTES);
    if (!ws_utf8(author) || strlen(author) > ES_AUTHOR_BYTES)
        return es_fail(err, ES_ERR_USAGE, "an author's name must be UTF-8 text of at most %d bytes", ES_AUTHOR_BYTES);
    if (e->rating > 5)
        return es_fail(err, ES_ERR_USAGE, "a rating is 0 to 5, not %d", e->rating);
    if (e->confidence > 100)
        return es_fail(err, ES_ERR_USAGE, "a confidence is 0 to 100 per cent, not %d", e->confidence);
    return ES_OK;
}

/* A text as it is after the change. To say "none" where nobody said anything is to say nothing. */
static const char *after(const char *said, const char *own, const char *shown)
{
    return !said || (!*said && !own && !(shown && *shown)) ? own : said;
}

static int after_number(int said, int own, int shown)
{
    return said < 0 || (said == 0 && own < 0 && shown <= 0) ? own : said;
}

static bool same(const char *a, const char *b)
{
    return a == b || (a && b && !strcmp(a, b));
}

static int record(es_workspace *w, const ws_edit *how, int feature, const ws_opinion *was, bool there, const ws_opinion *now, es_error *err)
{
    int rc = ws_run(w, err,
                    "INSERT INTO label_change(batch, dictionary, feature, author, undoable, time, before_author, before_text, before_tags, before_rating, before_skipped,"
                    " before_note, before_confidence, before_change, before_time, text, tags, rating, skipped, note, confidence)"
                    " VALUES(?,?,?,?,?,?,?,?,?,nullif(?,-1),nullif(?,-1),?,nullif(?,-1),nullif(?,-1),?,?,?,nullif(?,-1),nullif(?,-1),?,nullif(?,-1))",
                    "iiisissssiisiisssiisi", how->batch, how->dictionary, (int64_t)feature, now->author, (int64_t)how->undoable, now->time, there ? now->author : NULL,
                    was->text, was->tags, (int64_t)was->rating, (int64_t)was->skipped, was->note, (int64_t)was->confidence, there ? was->change : (int64_t)-1,
                    there ? was->time : NULL, now->text, now->tags, (int64_t)now->rating, (int64_t)now->skipped, now->note, (int64_t)now->confidence);
    int64_t change = same(was->text, now->text) && there ? was->change : sqlite3_last_insert_rowid(w->db);
    if (!rc)
        rc = ws_run(w, err,
                    "INSERT OR REPLACE INTO opinion(dictionary, feature, author, text, tags, rating, skipped, note, confidence, change, time)"
                    " VALUES(?,?,?,?,?,nullif(?,-1),nullif(?,-1),?,nullif(?,-1),?,?)",
                    "iisssiisiis", how->dictionary, (int64_t)feature, now->author, now->text, now->tags, (int64_t)now->rating, (int64_t)now->skipped, now->note,
                    (int64_t)now->confidence, change, now->time);
    return rc ? rc : ws_label_show(w, how->dictionary, feature, err);
}

static int change(es_workspace *w, const ws_edit *how, int feature, const es_label_edit *e, bool *changed, const ws_opinion *own, bool there, es_error *err)
{
    char hash[65] = "";
    es_label shown = {0};
    es_buf tags = {0};
    sqlite3_stmt *q = ws_query(w, err, "SELECT hash FROM dictionary WHERE id = ?", "i", how->dictionary);
    int rc = q ? ws_step(w, q, err) : w->failed;
    if (rc > 0)
        ws_copy(hash, sizeof hash, q, 0);
    sqlite3_finalize(q);
    rc = rc < 0 ? rc : es_workspace_label_get(w, hash, feature, &shown, err);
    if (rc && rc != ES_ERR_MISSING)
        return rc;
    ws_opinion now = *own;
    snprintf(now.author, sizeof now.author, "%s", how->author ? how->author : "");
    if (how->time)
        snprintf(now.time, sizeof now.time, "%s", how->time);
    else
        ws_now(now.time);
    const char *from = e->tags ? e->tags : shown.tags ? shown.tags : "";
    if (e->tags || e->add_tags || e->remove_tags) {
        es_buf both = {0};
        es_buf_printf(&both, "%s %s", from, e->add_tags ? e->add_tags : "");
        tidy_tags(&tags, both.data ? both.data : "", e->remove_tags);
        tags.failed = tags.failed || both.failed;
        es_buf_free(&both);
    }
    now.text = (char *)(uintptr_t)after(e->text, own->text, shown.text);
    now.tags = (char *)(uintptr_t)after(tags.data, own->tags, shown.tags);
    now.note = (char *)(uintptr_t)after(e->note, own->note, shown.note);
    now.rating = after_number(e->rating, own->rating, shown.rating);
    now.confidence = after_number(e->confidence, own->confidence, shown.confidence);
    now.skipped = after_number(e->skip, own->skipped, shown.skipped);
    if (!e->tags && (e->add_tags || e->remove_tags) && tags.data && same(tags.data, shown.tags ? shown.tags : ""))
        now.tags = own->tags; /* what is there is there, whoever said it */
    rc = tags.failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory for a label") : ES_OK;
    *changed = !same(now.text, own->text) || !same(now.tags, own->tags) || !same(now.note, own->note) || now.rating != own->rating || now.confidence != own->confidence ||
               now.skipped != own->skipped;
    if (!rc && *changed)
        rc = record(w, how, feature, own, there, &now, err);
    es_label_free(&shown);
    es_buf_free(&tags);
    return rc;
}

int ws_label_change(es_workspace *w, const ws_edit *how, int feature, const es_label_edit *e, bool *changed, es_error *err)
{
    const char *author = how->author ? how->author : "";
    ws_opinion own;
    *changed = false;
    if (feature < 0 || feature >= 1 << WS_FEATURE_BITS || (how->n_features > 0 && feature >= how->n_features))
        return es_fail(err, ES_ERR_USAGE, "there is no feature %d (the dictionary has %d)", feature, how->n_features);
    int rc = check(e, author, err);
    if (rc)
        return rc;
    int there = ws_opinion_get(w, how->dictionary, feature, author, &own, err);
    if (there < 0)
        return there;
    rc = change(w, how, feature, e, changed, &own, there > 0, err);
    ws_opinion_free(&own);
    return rc;
}

int ws_batch_next(es_workspace *w, int64_t *batch, es_error *err) /* batches grow with ids, so the newest row knows the largest */
{
    return ws_int(w, batch, err, "SELECT coalesce((SELECT batch FROM label_change ORDER BY id DESC LIMIT 1), 0) + 1", "");
}

int es_workspace_label_edit(es_workspace *w, const char *dictionary, const int *feature, int n, const es_label_edit *e, const char *author, int *changed, es_error *err)
{
    int count = 0;
    ws_enter(w);
    int rc = ws_begin(w, err);
    if (!rc) {
        ws_edit how = {.author = author, .undoable = true};
        rc = ws_dictionary_id(w, dictionary, true, &how.dictionary, &how.n_features, err);
        if (!rc)
            rc = ws_batch_next(w, &how.batch, err);
        for (int i = 0; i < n && !rc; i++) {
            bool one = false;
            rc = ws_label_change(w, &how, feature[i], e, &one, err);
            count += one;
        }
        rc = ws_end(w, rc, err);
    }
    ws_leave(w);
    if (changed)
        *changed = rc ? 0 : count;
    return rc;
}

/* ---- second opinions -------------------------------------------------------------------------------------------------------------------- */

void es_labels_free(es_label *l, int n)
{
    for (int i = 0; i < n; i++)
        es_label_free(&l[i]);
    free(l);
}

static char *text_of(char **s) /* taken over; "" for what is unsaid */
{
    char *t = *s ? *s : strdup("");
    *s = NULL;
    return t;
}

int es_workspace_label_opinions(es_workspace *w, const char *dictionary, int feature, es_label **out, int *n, es_error *err)
{
    *out = NULL;
    *n = 0;
    ws_enter(w);
    int64_t id = 0;
    ws_opinion *o = NULL;
    int count = 0, rc = ws_dictionary_id(w, dictionary, false, &id, NULL, err);
    if (!rc)
        rc = ws_opinions_of(w, id, feature, &o, &count, err);
    else if (rc == ES_ERR_MISSING)
        rc = ES_OK;
    es_label *l = rc ? NULL : calloc((size_t)count + 1, sizeof *l);
    if (!rc && !l)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for the labels of a feature");
    for (int i = 0; i < count && !rc; i++) {
        l[i] = (es_label){.feature = feature, .text = text_of(&o[i].text), .tags = text_of(&o[i].tags), .note = text_of(&o[i].note), .rating = o[i].rating > 0 ? o[i].rating : 0,
                          .confidence = o[i].confidence > 0 ? o[i].confidence : 0, .skipped = o[i].skipped > 0, .opinions = 1, .score = NAN};
        memcpy(l[i].author, o[i].author, sizeof l[i].author);
        memcpy(l[i].time, o[i].time, sizeof l[i].time);
        es_label_score s;
        if (!l[i].text || !l[i].tags || !l[i].note) {
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for the labels of a feature");
        } else if (*l[i].text && es_workspace_score_get(w, dictionary, feature, l[i].text, &s, NULL) == ES_OK) {
            l[i].score = s.value;
            l[i].tested = s.n;
        }
    }
    ws_opinions_free(o, count);
    ws_leave(w);
    if (rc) {
        es_labels_free(l, l ? count : 0);
        return rc;
    }
    *out = l;
    *n = count;
    return ES_OK;
}

static int choose(es_workspace *w, int64_t dictionary, int feature, const char *author, es_error *err)
{
    char was[64] = "", now[32];
    int64_t batch = 0, there = 0;
    if (*author && ws_int(w, &there, err, "SELECT 1 FROM opinion WHERE dictionary = ? AND feature = ? AND author = ?", "iis", dictionary, (int64_t)feature, author) != ES_OK)
        return es_fail(err, ES_ERR_MISSING, "%.64s said nothing of feature %d", author, feature);
    sqlite3_stmt *q = ws_query(w, err, "SELECT author FROM label_choice WHERE dictionary = ? AND feature = ?", "ii", dictionary, (int64_t)feature);
    int rc = q ? ws_step(w, q, err) : w->failed;
    if (rc > 0)
        ws_copy(was, sizeof was, q, 0);
    sqlite3_finalize(q);
    if (rc < 0 || !strcmp(was, author))
        return rc < 0 ? rc : ES_OK;
    ws_now(now);
    rc = ws_batch_next(w, &batch, err);
    if (!rc)
        rc = ws_run(w, err, "INSERT INTO label_change(batch, dictionary, feature, author, undoable, time, before_choice, choice) VALUES(?,?,?,'',1,?,?,?)", "iiisss",
                    batch, dictionary, (int64_t)feature, now, was, author);
    if (!rc && *author)
        rc = ws_run(w, err, "INSERT OR REPLACE INTO label_choice(dictionary, feature, author) VALUES(?,?,?)", "iis", dictionary, (int64_t)feature, author);
    else if (!rc)
        rc = ws_run(w, err, "DELETE FROM label_choice WHERE dictionary = ? AND feature = ?", "ii", dictionary, (int64_t)feature);
    return rc ? rc : ws_label_show(w, dictionary, feature, err);
}

int es_workspace_label_choose(es_workspace *w, const char *dictionary, int feature, const char *author, es_error *err)
{
    ws_enter(w);
    int rc = ws_begin(w, err);
    if (!rc) {
        int64_t id = 0;
        rc = ws_dictionary_id(w, dictionary, false, &id, NULL, err);
        rc = rc == ES_ERR_MISSING ? es_fail(err, rc, "nothing is known of that dictionary") : rc ? rc : choose(w, id, feature, author, err);
        rc = ws_end(w, rc, err);
    }
    ws_leave(w);
    return rc;
}

void es_workspace_label_preferred(es_workspace *w, char out[64])
{
    ws_state_get(w, "label_preferred", out, 64);
}

int es_workspace_label_prefer(es_workspace *w, const char *author, es_error *err)
{
    if (!ws_utf8(author) || strlen(author) > ES_AUTHOR_BYTES)
        return es_fail(err, ES_ERR_USAGE, "an author's name must be UTF-8 text of at most %d bytes", ES_AUTHOR_BYTES);
    es_buf many = {0}; /* features of which more than one said something: only they can look different */
    ws_enter(w);
    int rc = ws_begin(w, err);
    if (!rc) {
        rc = ws_state_set(w, "label_preferred", author, err);
        sqlite3_stmt *q = rc ? NULL : ws_query(w, err, "SELECT dictionary, feature FROM opinion GROUP BY dictionary, feature HAVING count(*) > 1", "");
        if (!rc)
            rc = q ? ES_OK : w->failed;
        while (q && (rc = ws_step(w, q, err)) > 0) {
            int64_t row[2] = {sqlite3_column_int64(q, 0), sqlite3_column_int64(q, 1)};
            es_buf_add(&many, row, sizeof row);
        }
        sqlite3_finalize(q);
        if (!rc && many.failed)
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory");
        const int64_t *row = (const int64_t *)(const void *)many.data;
        for (size_t i = 0; i < many.len / sizeof *row && !rc; i += 2)
            rc = ws_label_show(w, row[i], (int)row[i + 1], err);
        rc = ws_end(w, rc, err);
    }
    ws_leave(w);
    es_buf_free(&many);
    return rc;
}
