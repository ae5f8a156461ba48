/* Directions learned beforehand, kept by name: an adapter's bytes, whether learning goes more readily along it, and how far it has gone. */
#include <stdlib.h>
#include <string.h>

#include "workspace.h"

int es_workspace_direction_save(es_workspace *w, const char *name, const char *dictionary, const void *bytes, size_t n, size_t n_shared, es_error *err)
{
    int64_t shared = 0;
    if (n_shared > n)
        return es_fail(err, ES_ERR_USAGE, "a direction of %zu bytes, %zu of them shared", n, n_shared);
    ws_enter(w);
    int rc = ws_begin(w, err);
    if (!rc) {
        if (n_shared)
            rc = ws_share(w, (const char *)bytes + n - n_shared, n_shared, &shared, err);
        if (!rc)
            rc = ws_run(w, err,
                        "INSERT INTO direction(name, dictionary, used, bytes, shared) VALUES(?1,?2,1,?3,nullif(?4,0))"
                        " ON CONFLICT(name, dictionary) DO UPDATE SET used = 1, bytes = ?3, shared = nullif(?4,0), amplitude = 0, snapshot = 0",
                        "ssbi", name, dictionary, bytes, n - n_shared, shared);
        rc = ws_end(w, rc, err);
    }
    ws_leave(w);
    return rc;
}

int es_workspace_direction_use(es_workspace *w, const char *name, const char *dictionary, bool used, es_error *err)
{
    int64_t there = 0;
    ws_enter(w);
    int rc = ws_int(w, &there, err, "SELECT 1 FROM direction WHERE name = ? AND dictionary = ?", "ss", name, dictionary);
    if (rc == ES_ERR_MISSING)
        es_fail(err, rc, "there is no direction %.60s", name);
    if (!rc)
        rc = ws_run(w, err, "UPDATE direction SET used = ? WHERE name = ? AND dictionary = ?", "iss", (int64_t)used, name, dictionary);
    ws_leave(w);
    return rc;
}

int es_workspace_direction_went(es_workspace *w, const char *name, const char *dictionary, double amplitude, int64_t snapshot, es_error *err)
{
    ws_enter(w);
    int rc = ws_run(w, err, "UPDATE direction SET amplitude = ?, snapshot = ? WHERE name = ? AND dictionary = ?", "diss", amplitude, snapshot, name, dictionary);
    ws_leave(w);
    return rc;
}

int es_workspace_direction_bytes(es_workspace *w, const char *name, const char *dictionary, es_buf *out, es_error *err)
{
    ws_enter(w);
    sqlite3_stmt *q = ws_query(w, err, "SELECT d.bytes, s.bytes FROM direction d LEFT JOIN shared s ON s.id = d.shared WHERE name = ? AND dictionary = ?", "ss", name,
                               dictionary);
    int rc = q ? ws_step(w, q, err) : w->failed;
    if (rc > 0) {
        for (int part = 0; part < 2; part++) {
            const void *p = sqlite3_column_blob(q, part);
            es_buf_add(out, p ? p : "", p ? (size_t)sqlite3_column_bytes(q, part) : 0);
        }
        rc = out->failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory for direction %.60s", name) : ES_OK;
    } else if (rc == 0) {
        rc = es_fail(err, ES_ERR_MISSING, "there is no direction %.60s", name);
    }
    sqlite3_finalize(q);
    ws_leave(w);
    return rc;
}

int es_workspace_direction_list(es_workspace *w, const char *dictionary, es_direction_line **out, int *n, es_error *err)
{
    *out = NULL;
    *n = 0;
    int cap = 0;
    ws_enter(w);
    sqlite3_stmt *q = ws_query(w, err, "SELECT name, used, amplitude, snapshot FROM direction WHERE dictionary = ? ORDER BY name", "s", dictionary);
    int rc = q ? ES_OK : w->failed;
    while (q && (rc = ws_step(w, q, err)) > 0) {
        if (*n == cap) {
            es_direction_line *more = realloc(*out, sizeof *more * (size_t)(cap = cap ? 2 * cap : 8));
            if (!more) {
                rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to list the directions");
                break;
            }
            *out = more;
        }
        es_direction_line *l = &(*out)[(*n)++];
        *l = (es_direction_line){.used = sqlite3_column_int(q, 1) != 0, .amplitude = sqlite3_column_double(q, 2), .snapshot = sqlite3_column_int64(q, 3)};
        ws_copy(l->name, sizeof l->name, q, 0);
    }
    sqlite3_finalize(q);
    ws_leave(w);
    if (rc) {
        free(*out);
        *out = NULL;
        *n = 0;
    }
    return rc;
}
