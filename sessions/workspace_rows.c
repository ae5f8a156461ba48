/* The search rows of a dictionary: the token texts of its features, from the atlas, made once. */
#include "workspace.h"

#include <stdlib.h>

enum { CHUNK = 512 };

/* A chunk at a time, so that nobody else waits long for the workspace. */
static int fill_chunk(es_workspace *w, int64_t id, int from, int to, es_atlas *a, const es_model *m, const float *density, es_error *err)
{
    es_buf text[CHUNK] = {0};
    int rc = ES_OK;
    double effect[CHUNK];
    for (int f = from; a && f < to && !rc; f++) {
        es_feature_card card;
        rc = es_atlas_tokens_text(a, m, f, &text[f - from], err);
        if (!rc)
            rc = es_atlas_card(a, f, &card, err);
        if (!rc)
            effect[f - from] = ws_logit_effect(&card);
    }
    if (!rc) {
        ws_enter(w);
        rc = ws_begin(w, err);
        if (!rc) {
            sqlite3_stmt *row = ws_query(w, err, "INSERT OR REPLACE INTO feature(dictionary, feature, density, effect) VALUES(?,?,?,?)", "");
            sqlite3_stmt *up = ws_query(w, err, "UPDATE search SET tokens = ? WHERE rowid = ?", "");
            sqlite3_stmt *in = ws_query(w, err, "INSERT INTO search(rowid, label, tags, tokens) VALUES(?,'','',?)", "");
            rc = row && up && in ? ES_OK : w->failed;
            for (int f = from; f < to && !rc; f++) {
                const char *t = text[f - from].data ? text[f - from].data : "";
                sqlite3_bind_int64(row, 1, id);
                sqlite3_bind_int64(row, 2, f);
                sqlite3_bind_double(row, 3, density ? density[f] : 0);
                if (a)
                    sqlite3_bind_double(row, 4, effect[f - from]);
                sqlite3_bind_text(up, 1, t, -1, SQLITE_STATIC);
                sqlite3_bind_int64(up, 2, ws_search_row(id, f));
                rc = ws_step(w, row, err);
                if (!rc)
                    rc = ws_step(w, up, err);
                if (!rc && sqlite3_changes(w->db) == 0) {
                    sqlite3_bind_int64(in, 1, ws_search_row(id, f));
                    sqlite3_bind_text(in, 2, t, -1, SQLITE_STATIC);
                    rc = ws_step(w, in, err);
                    sqlite3_reset(in);
                }
                sqlite3_reset(row);
                sqlite3_reset(up);
            }
            sqlite3_finalize(row);
            sqlite3_finalize(up);
            sqlite3_finalize(in);
            rc = ws_end(w, rc, err);
        }
        ws_leave(w);
    }
    for (int i = 0; i < CHUNK; i++)
        es_buf_free(&text[i]);
    return rc;
}

int es_workspace_use_dictionary(es_workspace *w, const es_dictionary *s, es_atlas *a, const es_model *m, const char *import_path, const es_progress *progress,
                                es_error *err)
{
    const es_dictionary_info *info = es_dictionary_get_info(s);
    int64_t id = 0, rows = 0, starter = 0;
    int F = info->n_features;
    if (F >= 1 << WS_FEATURE_BITS)
        return es_fail(err, ES_ERR_LIMIT, "%s: %d features are more than the workspace can number", info->name, F);
    if (a && es_atlas_features(a) != F)
        return es_fail(err, ES_ERR_MISMATCH, "the atlas has %d features, the dictionary %d", es_atlas_features(a), F);
    ws_enter(w);
    int rc = ws_begin(w, err);
    if (!rc) {
        rc = ws_dictionary_id(w, info->hash, true, &id, NULL, err);
        if (!rc)
            rc = ws_run(w, err, "UPDATE dictionary SET name = ?, n_features = ? WHERE id = ? AND (name <> ?1 OR n_features <> ?2)", "sii", info->name, (int64_t)F, id);
        if (!rc)
            rc = ws_int(w, &rows, err, "SELECT rows FROM dictionary WHERE id = ?", "i", id);
        if (!rc)
            rc = ws_int(w, &starter, err, "SELECT starter FROM dictionary WHERE id = ?", "i", id);
        if (!rc && import_path && !starter) {
            rc = ws_label_file(w, id, F, import_path, "starter", false, NULL, err);
            if (!rc)
                rc = ws_run(w, err, "UPDATE dictionary SET starter = 1 WHERE id = ?", "i", id);
        }
        rc = ws_end(w, rc, err);
    }
    ws_leave(w);
    int want = a ? 3 : 1; /* rows made: 1 without token texts, 2 with, 3 with logit effects as well */
    if (rc || rows >= want)
        return rc;
    float *own;
    const float *density = es_dictionary_density(s, a, &own);
    for (int f = 0; f < F && !rc; f += CHUNK) {
        rc = es_progress_cancelled(progress) ? es_fail(err, ES_ERR_CANCELLED, "cancelled") :
                                               fill_chunk(w, id, f, f + CHUNK < F ? f + CHUNK : F, a, m, density, err);
        es_progress_report(progress, "making the features searchable", f, F, "features");
    }
    free(own);
    if (!rc) {
        ws_enter(w);
        rc = ws_run(w, err, "UPDATE dictionary SET rows = ? WHERE id = ?", "ii", (int64_t)want, id);
        ws_leave(w);
    }
    return rc;
}
