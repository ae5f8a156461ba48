/* Scores of labels that a language model gave, and how such a label comes into the workspace. */
#include "autolabel.h"
#include "workspace.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool es_label_is_automatic(const char *author) { return !strncmp(author, "auto:", 5); }

int es_workspace_label_auto(es_workspace *w, const char *dictionary, int feature, const char *text, const char *author, const es_label_score *score, int n_score, bool *stored,
                            es_error *err)
{
    es_label now = {0};
    char time[32];
    int64_t id = 0;
    *stored = false;
    if (!es_label_is_automatic(author))
        return es_fail(err, ES_ERR_USAGE, "'%s' is no author of automatic labels", author);
    ws_now(time);
    ws_enter(w);
    int rc = es_workspace_label_get(w, dictionary, feature, &now, err);
    bool free_to = rc == ES_ERR_MISSING || (!rc && (!*now.text || es_label_is_automatic(now.author)));
    rc = rc == ES_ERR_MISSING ? ES_OK : rc;
    es_label_free(&now);
    if (!rc && free_to) {
        rc = es_workspace_label_set(w, dictionary, feature, text, NULL, -1, author, err);
        rc = rc ? rc : es_workspace_label_get(w, dictionary, feature, &now, err); /* the same text of another model stays that one's */
        if (!rc && !(rc = ws_begin(w, err))) {
            rc = ws_dictionary_id(w, dictionary, true, &id, NULL, err);
            rc = rc ? rc : ws_run(w, err, "DELETE FROM label_score WHERE dictionary = ? AND feature = ? AND author = ?", "iis", id, (int64_t)feature, now.author);
            for (int i = 0; !rc && i < n_score; i++)
                if (isfinite(score[i].value))
                    rc = ws_run(w, err, "INSERT INTO label_score(dictionary, feature, author, kind, text, value, n, time) VALUES(?,?,?,?,?,?,?,?)", "iisssdis", id,
                                (int64_t)feature, now.author, score[i].kind, text, score[i].value, (int64_t)score[i].n, time);
            rc = ws_end(w, rc, err);
        }
        es_label_free(&now);
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
                               " JOIN label AS l ON l.dictionary = s.dictionary AND l.feature = s.feature AND l.author = s.author AND l.text = s.text"
                               " WHERE d.hash = ? AND s.feature = ? ORDER BY s.kind",
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
