/* Scores of labels: how well a text told where its feature fires, test by test. */
#include "autolabel.h"
#include "workspace.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

int es_workspace_score_add(es_workspace *w, const char *dictionary, int feature, const char *text, const es_label_score *s, es_error *err)
{
    if (!isfinite(s->value) || s->value < -1 || s->value > 1 || !isfinite(s->lo) || !isfinite(s->hi) || s->n < 0)
        return es_fail(err, ES_ERR_USAGE, "a score is a number from 0 to 1, or a correlation");
    if (!ws_utf8(text) || strlen(text) > ES_LABEL_BYTES || !*text)
        return es_fail(err, ES_ERR_USAGE, "a score is of a label's text");
    char now[32];
    ws_now(now);
    ws_enter(w);
    int64_t id = 0;
    int rc = ws_begin(w, err);
    if (!rc) {
        rc = ws_dictionary_id(w, dictionary, true, &id, NULL, err);
        if (!rc)
            rc = ws_run(w, err,
                        "INSERT INTO label_score(dictionary, feature, text, kind, judge, automatic, value, lo, hi, n, hit, miss, rejection, alarm, time)"
                        " VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                        "iisssidddiiiiis", id, (int64_t)feature, text, s->kind, s->judge, (int64_t)es_author_automatic(s->judge), s->value, s->lo, s->hi, (int64_t)s->n,
                        (int64_t)s->hit, (int64_t)s->miss, (int64_t)s->rejection, (int64_t)s->alarm, now);
        int64_t there = 0;
        if (!rc && ws_int(w, &there, NULL, "SELECT 1 FROM opinion WHERE dictionary = ? AND feature = ? LIMIT 1", "ii", id, (int64_t)feature) == ES_OK)
            rc = ws_label_show(w, id, feature, err);
        rc = ws_end(w, rc, err);
    }
    ws_leave(w);
    return rc;
}

/* The blind tests of a text by people, or by programs, taken together. */
static int blind(es_workspace *w, int64_t id, int feature, const char *text, bool automatic, es_label_score *out, es_error *err)
{
    sqlite3_stmt *q = ws_query(w, err,
                               "SELECT sum(hit), sum(miss), sum(rejection), sum(alarm), max(time), CASE WHEN count(DISTINCT judge) > 1 THEN count(DISTINCT judge) || ' judges'"
                               " ELSE max(judge) END FROM label_score WHERE dictionary = ? AND feature = ? AND text = ? AND kind = 'blind' AND automatic = ?",
                               "iisi", id, (int64_t)feature, text, (int64_t)automatic);
    int rc = q ? ws_step(w, q, err) : w->failed;
    if (rc > 0 && sqlite3_column_type(q, 4) == SQLITE_NULL) {
        rc = ES_ERR_MISSING;
    } else if (rc > 0) {
        *out = (es_label_score){.kind = "blind", .hit = sqlite3_column_int(q, 0), .miss = sqlite3_column_int(q, 1), .rejection = sqlite3_column_int(q, 2),
                                .alarm = sqlite3_column_int(q, 3)};
        ws_copy(out->time, sizeof out->time, q, 4);
        ws_copy(out->judge, sizeof out->judge, q, 5);
        es_label_score_of(out);
        rc = ES_OK;
    }
    sqlite3_finalize(q);
    return rc;
}

static int another(es_workspace *w, int64_t id, int feature, const char *text, es_label_score *out, es_error *err)
{
    sqlite3_stmt *q = ws_query(w, err,
                               "SELECT kind, judge, value, lo, hi, n, hit, miss, rejection, alarm, time FROM label_score WHERE dictionary = ? AND feature = ? AND text = ?"
                               " AND kind <> 'blind' ORDER BY kind <> 'detection', kind <> 'fuzzing', label_score.id DESC LIMIT 1",
                               "iis", id, (int64_t)feature, text);
    int rc = q ? ws_step(w, q, err) : w->failed;
    if (rc > 0) {
        *out = (es_label_score){.value = sqlite3_column_double(q, 2), .lo = sqlite3_column_double(q, 3), .hi = sqlite3_column_double(q, 4), .n = sqlite3_column_int(q, 5),
                                .hit = sqlite3_column_int(q, 6), .miss = sqlite3_column_int(q, 7), .rejection = sqlite3_column_int(q, 8), .alarm = sqlite3_column_int(q, 9)};
        ws_copy(out->kind, sizeof out->kind, q, 0);
        ws_copy(out->judge, sizeof out->judge, q, 1);
        ws_copy(out->time, sizeof out->time, q, 10);
    }
    sqlite3_finalize(q);
    return rc > 0 ? ES_OK : rc == 0 ? ES_ERR_MISSING : rc;
}

int es_workspace_score_get(es_workspace *w, const char *dictionary, int feature, const char *text, es_label_score *out, es_error *err)
{
    int64_t id = 0;
    *out = (es_label_score){0};
    ws_enter(w);
    int rc = ws_dictionary_id(w, dictionary, false, &id, NULL, err);
    if (!rc)
        rc = blind(w, id, feature, text, false, out, err);
    if (rc == ES_ERR_MISSING && id)
        rc = blind(w, id, feature, text, true, out, err);
    if (rc == ES_ERR_MISSING && id)
        rc = another(w, id, feature, text, out, err);
    ws_leave(w);
    return rc;
}

/* ---- of language models ---------------------------------------------------------------------------------------------------------------- */

bool es_label_is_automatic(const char *author) { return !strncmp(author, "auto:", 5); }

int es_workspace_label_auto(es_workspace *w, const char *dictionary, int feature, const char *text, const char *author, const es_label_score *score, int n_score, bool *stored,
                            es_error *err)
{
    es_label now = {0};
    *stored = false;
    if (!es_label_is_automatic(author))
        return es_fail(err, ES_ERR_USAGE, "'%s' is no author of automatic labels", author);
    ws_enter(w);
    int rc = es_workspace_label_get(w, dictionary, feature, &now, err);
    bool free_to = rc == ES_ERR_MISSING || (!rc && (!*now.text || es_label_is_automatic(now.author)));
    rc = rc == ES_ERR_MISSING ? ES_OK : rc;
    es_label_free(&now);
    if (!rc && free_to) {
        rc = es_workspace_label_set(w, dictionary, feature, text, NULL, -1, author, err);
        for (int i = 0; !rc && i < n_score; i++) {
            es_label_score s = score[i];
            if (!isfinite(s.value))
                continue;
            s.lo = s.hi = s.value;
            snprintf(s.judge, sizeof s.judge, "%s", author);
            rc = es_workspace_score_add(w, dictionary, feature, text, &s, err);
        }
        *stored = !rc;
    }
    ws_leave(w);
    return rc;
}

int es_workspace_scores(es_workspace *w, const char *dictionary, int feature, es_label_score *out, int max, int *n, es_error *err)
{
    *n = 0;
    ws_enter(w);
    sqlite3_stmt *q = ws_query(w, err,
                               "SELECT s.kind, s.value, s.n FROM label_score AS s JOIN dictionary AS d ON d.id = s.dictionary"
                               " JOIN label AS l ON l.dictionary = s.dictionary AND l.feature = s.feature AND l.text = s.text"
                               " WHERE d.hash = ? AND s.feature = ? AND s.kind <> 'blind' AND s.id = (SELECT max(t.id) FROM label_score AS t"
                               " WHERE t.dictionary = s.dictionary AND t.feature = s.feature AND t.text = s.text AND t.kind = s.kind) ORDER BY s.kind",
                               "si", dictionary, (int64_t)feature);
    int rc = q ? ES_OK : w->failed;
    while (q && *n < max && (rc = ws_step(w, q, err)) > 0) {
        es_label_score *s = &out[(*n)++];
        *s = (es_label_score){.value = sqlite3_column_double(q, 1), .n = sqlite3_column_int(q, 2)};
        ws_copy(s->kind, sizeof s->kind, q, 0);
    }
    sqlite3_finalize(q);
    ws_leave(w);
    return rc < 0 ? rc : ES_OK;
}
