/* Bases, conversations, experiences and snapshots. */
#include "workspace.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BASIS = 1 << 16, MAX_EXPERIENCES = 1 << 20 };

/* ---- bases ----------------------------------------------------------------------------------------------------------------------------- */

int es_workspace_basis_save(es_workspace *w, const es_basis *b, int *version, es_error *err)
{
    if (!b->name[0] || !ws_utf8(b->name))
        return es_fail(err, ES_ERR_USAGE, "a basis needs a name");
    char now[32];
    ws_now(now);
    int64_t next = 1;
    ws_enter(w);
    int rc = ws_begin(w, err);
    if (!rc) {
        rc = ws_int(w, &next, err, "SELECT coalesce(max(version), 0) + 1 FROM basis WHERE name = ?", "s", b->name);
        if (!rc)
            rc = ws_run(w, err, "INSERT INTO basis(name, version, model_hash, dictionary_hash, dictionary, layer, time) VALUES(?,?,?,?,?,?,?)", "sisssis", b->name,
                        next, b->model_hash, b->dictionary_hash, b->dictionary, (int64_t)b->layer, now);
        int64_t id = sqlite3_last_insert_rowid(w->db);
        for (int i = 0; i < b->n && !rc; i++)
            rc = ws_run(w, err, "INSERT INTO basis_feature(basis, position, feature, lo, hi) VALUES(?,?,?,?,?)", "iiidd", id, (int64_t)i, (int64_t)b->feature[i],
                        (double)b->lo[i], (double)b->hi[i]);
        for (int i = 0; i < b->n_vector && !rc; i++) {
            const es_basis_vector *v = &b->vector[i];
            rc = ws_run(w, err, "INSERT INTO basis_vector(basis, number, name, layer, hash, length, unit) VALUES(?,?,?,?,?,?,?)", "iisisdb", id, (int64_t)v->number, v->name,
                        (int64_t)v->layer, v->hash, (double)v->length, (const void *)v->unit, (size_t)v->d * sizeof *v->unit);
        }
        rc = ws_end(w, rc, err);
    }
    ws_leave(w);
    if (version)
        *version = rc ? 0 : (int)next;
    return rc;
}

/* The vector with this number as the basis' next entry. */
static int basis_vector(es_workspace *w, int64_t id, int number, float lo, float hi, es_basis *out, es_error *err)
{
    es_basis_vector v = {0};
    sqlite3_stmt *q = ws_query(w, err, "SELECT name, layer, hash, length, unit FROM basis_vector WHERE basis = ? AND number = ?", "ii", id, (int64_t)number);
    int rc = q ? ws_step(w, q, err) : w->failed;
    if (rc > 0) {
        size_t bytes = (size_t)sqlite3_column_bytes(q, 4);
        ws_copy(v.name, sizeof v.name, q, 0);
        v.layer = sqlite3_column_int(q, 1);
        ws_copy(v.hash, sizeof v.hash, q, 2);
        v.length = (float)sqlite3_column_double(q, 3);
        v.d = (int)(bytes / sizeof(float));
        v.unit = es_calloc((size_t)v.d + 1, sizeof *v.unit);
        if (v.unit && v.d)
            memcpy(v.unit, sqlite3_column_blob(q, 4), (size_t)v.d * sizeof *v.unit);
        rc = v.unit ? es_basis_add_vector(out, &v, lo, hi, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory for the basis %s", out->name);
        if (!rc)
            out->feature[out->n - 1] = out->vector[out->n_vector - 1].number = number;
        free(v.unit);
    } else if (rc == 0) {
        rc = es_fail(err, ES_ERR_FORMAT, "%s: the basis %s is damaged: a vector of it is not there", w->path, out->name);
    }
    sqlite3_finalize(q);
    return rc;
}

static int basis_features(es_workspace *w, int64_t id, int n, es_basis *out, es_error *err)
{
    if (n < 0 || n > MAX_BASIS)
        return es_fail(err, ES_ERR_FORMAT, "the basis %s has %d features", out->name, n);
    sqlite3_stmt *q = ws_query(w, err, "SELECT feature, lo, hi FROM basis_feature WHERE basis = ? ORDER BY position", "i", id);
    int rc = q ? ES_OK : w->failed;
    while (q && (rc = ws_step(w, q, err)) > 0 && out->n < n) {
        float lo = (float)sqlite3_column_double(q, 1), hi = (float)sqlite3_column_double(q, 2);
        int f = sqlite3_column_int(q, 0), at = out->n;
        if (!(lo <= hi) || !isfinite(lo) || !isfinite(hi))
            rc = es_fail(err, ES_ERR_FORMAT, "%s: the basis %s is damaged", w->path, out->name);
        else
            rc = f < 0 ? basis_vector(w, id, f, lo, hi, out, err) : es_basis_add(out, f, lo, hi, err);
        if (!rc && out->n == at)
            rc = es_fail(err, ES_ERR_FORMAT, "%s: the basis %s is damaged: an entry is in it twice", w->path, out->name);
        if (rc)
            break;
    }
    sqlite3_finalize(q);
    return rc < 0 ? rc : ES_OK;
}

int es_workspace_basis_load(es_workspace *w, const char *name, int version, es_basis *out, es_error *err)
{
    *out = (es_basis){0};
    int64_t id = 0, n = 0;
    ws_enter(w);
    sqlite3_stmt *q = ws_query(w, err,
                               "SELECT id, name, version, model_hash, dictionary_hash, dictionary, layer FROM basis WHERE name = ? AND (version = ? OR ?2 = 0)"
                               " ORDER BY version DESC LIMIT 1",
                               "si", name, (int64_t)version);
    int rc = q ? ws_step(w, q, err) : w->failed;
    if (rc > 0) {
        id = sqlite3_column_int64(q, 0);
        ws_copy(out->name, sizeof out->name, q, 1);
        out->version = sqlite3_column_int(q, 2);
        ws_copy(out->model_hash, sizeof out->model_hash, q, 3);
        ws_copy(out->dictionary_hash, sizeof out->dictionary_hash, q, 4);
        ws_copy(out->dictionary, sizeof out->dictionary, q, 5);
        out->layer = sqlite3_column_int(q, 6);
        rc = ES_OK;
    } else if (rc == 0) {
        rc = version ? es_fail(err, ES_ERR_MISSING, "there is no version %d of a basis \"%s\"", version, name) :
                       es_fail(err, ES_ERR_MISSING, "there is no basis \"%s\"", name);
    }
    sqlite3_finalize(q);
    if (!rc)
        rc = ws_int(w, &n, err, "SELECT count(*) FROM basis_feature WHERE basis = ?", "i", id);
    if (!rc)
        rc = basis_features(w, id, n > MAX_BASIS ? -1 : (int)n, out, err);
    ws_leave(w);
    if (rc) {
        es_basis_free(out);
        *out = (es_basis){0};
    }
    return rc;
}

int es_workspace_basis_list(es_workspace *w, const char *dictionary, es_basis_line **out, int *n, es_error *err)
{
    *out = NULL;
    *n = 0;
    int cap = 0;
    ws_enter(w);
    sqlite3_stmt *q = ws_query(w, err,
                               "SELECT name, version, (SELECT count(*) FROM basis_feature WHERE basis = id), time FROM basis"
                               " WHERE dictionary_hash = ?1 OR ?1 IS NULL ORDER BY name, version",
                               "s", dictionary);
    int rc = q ? ES_OK : w->failed;
    while (q && (rc = ws_step(w, q, err)) > 0) {
        if (*n == cap) {
            es_basis_line *more = realloc(*out, sizeof *more * (size_t)(cap = cap ? 2 * cap : 16));
            if (!more) {
                rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to list the bases");
                break;
            }
            *out = more;
        }
        es_basis_line *l = &(*out)[(*n)++];
        *l = (es_basis_line){.version = sqlite3_column_int(q, 1), .n = sqlite3_column_int(q, 2)};
        ws_copy(l->name, sizeof l->name, q, 0);
        ws_copy(l->time, sizeof l->time, q, 3);
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

/* ---- conversations ---------------------------------------------------------------------------------------------------------------------- */

int ws_session_new(es_workspace *w, const char *model_hash, int64_t *id, es_error *err)
{
    char now[32];
    ws_now(now);
    ws_enter(w);
    int rc = ws_run(w, err, "INSERT INTO session(time, model_hash) VALUES(?,?)", "ss", now, model_hash);
    *id = rc ? 0 : sqlite3_last_insert_rowid(w->db);
    ws_leave(w);
    return rc;
}

int ws_message_add(es_workspace *w, int64_t session, char role, const char *text, bool stopped, int64_t snapshot, int64_t *id, es_error *err)
{
    char now[32], r[2] = {role, 0};
    ws_now(now);
    ws_enter(w);
    int rc = ws_run(w, err, "INSERT INTO message(session, role, content, stopped, snapshot, time) VALUES(?,?,?,?,?,?)", "issiis", session, r, text,
                    (int64_t)stopped, snapshot, now);
    *id = rc ? 0 : sqlite3_last_insert_rowid(w->db);
    ws_leave(w);
    return rc;
}

int ws_message_drop(es_workspace *w, int64_t id, es_error *err)
{
    ws_enter(w);
    int rc = ws_run(w, err, "UPDATE message SET dropped = 1 WHERE id = ?", "i", id);
    ws_leave(w);
    return rc;
}

/* ---- experiences --------------------------------------------------------------------------------------------------------------------------- */

static int experience_insert(es_workspace *w, const es_experience *e, int64_t session, int64_t *id, es_error *err)
{
    char now[32];
    ws_now(now);
    json_t *list = json_array();
    for (int i = 0; list && i < e->n_message; i++)
        json_array_append_new(list, json_pack("{s:s, s:s}", "role", e->message[i].role, "content", e->message[i].content));
    if (!list || (int)json_array_size(list) != e->n_message) {
        json_decref(list);
        return es_fail(err, ES_ERR_USAGE, "an experience must be UTF-8 text");
    }
    char *messages = json_dumps(list, JSON_COMPACT);
    json_decref(list);
    int rc = messages ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for an experience");
    if (!rc)
        rc = ws_run(w, err, "INSERT INTO experience(session, time, source, messages, preferred, rejected, weight) VALUES(nullif(?,0),?,?,?,?,?,?)", "isssssd",
                    session, e->time ? e->time : now, e->source, messages, e->preferred, e->rejected, e->weight);
    *id = rc ? 0 : sqlite3_last_insert_rowid(w->db);
    free(messages);
    return rc;
}

int es_workspace_experience_add(es_workspace *w, const es_experience *e, int64_t session, int64_t *id, es_error *err)
{
    es_experiences checked = {0};
    int rc = es_experience_copy(&checked, e, err); /* refuses what the learner would refuse */
    es_experiences_free(&checked);
    if (rc)
        return rc;
    int64_t own;
    ws_enter(w);
    rc = experience_insert(w, e, session, id ? id : &own, err);
    ws_leave(w);
    return rc;
}

int es_workspace_experience_set(es_workspace *w, int64_t id, bool included, double weight, const char *reason, es_error *err)
{
    if (!isfinite(weight) || weight < 0)
        return es_fail(err, ES_ERR_USAGE, "the weight of an experience must be a number of at least 0");
    ws_enter(w);
    int rc = ws_run(w, err, "UPDATE experience SET included = ?, weight = ?, reason = coalesce(?, reason) WHERE id = ? AND removed IS NULL", "idsi", (int64_t)included,
                    weight, reason, id);
    if (!rc && sqlite3_changes(w->db) == 0)
        rc = es_fail(err, ES_ERR_MISSING, "there is no experience %lld", (long long)id);
    ws_leave(w);
    return rc;
}

int es_workspace_experience_reason(es_workspace *w, int64_t id, const char *reason, es_error *err)
{
    ws_enter(w);
    int rc = ws_run(w, err, "UPDATE experience SET reason = ? WHERE id = ? AND removed IS NULL", "si", reason, id);
    ws_leave(w);
    return rc;
}

static int experience_removed(es_workspace *w, int64_t id, bool removed, es_error *err)
{
    char now[32];
    ws_now(now);
    return ws_run(w, err, "UPDATE experience SET removed = ? WHERE id = ?", "si", removed ? now : NULL, id);
}

int es_workspace_experience_pair(es_workspace *w, int64_t id, const char *preferred, const char *rejected, const char *source, const char *reason, es_error *err)
{
    ws_enter(w);
    int rc = ws_run(w, err, "UPDATE experience SET preferred = ?, rejected = ?, source = ?, reason = ? WHERE id = ?", "ssssi", preferred, rejected, source, reason, id);
    ws_leave(w);
    return rc;
}

int es_workspace_experience_remove(es_workspace *w, int64_t id, es_error *err)
{
    ws_enter(w);
    int rc = experience_removed(w, id, true, err);
    if (!rc && sqlite3_changes(w->db) == 0)
        rc = es_fail(err, ES_ERR_MISSING, "there is no experience %lld", (long long)id);
    ws_leave(w);
    return rc;
}

void es_experience_lines_free(es_experience_line *l, int n)
{
    for (int i = 0; i < n; i++)
        es_experience_clear(&l[i].e);
    free(l);
}

/* One row through the reader that files go through: what a damaged or hostile workspace holds is checked as a file is. */
static int experience_row(es_workspace *w, sqlite3_stmt *q, es_experience_line *l, es_error *err)
{
    *l = (es_experience_line){.id = sqlite3_column_int64(q, 0)};
    es_experiences one = {0};
    json_t *o = json_object(), *messages = NULL;
    const char *text = (const char *)sqlite3_column_text(q, 1);
    int rc = text ? es_json_parse(&messages, text, strlen(text), "an experience", err) : es_fail(err, ES_ERR_FORMAT, "an experience without messages");
    static const char *const name[] = {"preferred", "rejected", "source", "time"};
    if (!rc) {
        json_object_set_new(o, "messages", messages);
        for (int i = 0; i < 4; i++)
            if (sqlite3_column_text(q, 2 + i))
                json_object_set_new(o, name[i], json_string((const char *)sqlite3_column_text(q, 2 + i)));
        json_object_set_new(o, "weight", json_real(sqlite3_column_double(q, 6)));
        rc = es_experience_from_json(&one, o, err);
    }
    json_decref(o);
    if (rc)
        return es_fail_prefix(err, "%s: experience %lld", w->path, (long long)l->id);
    l->e = one.item[0]; /* moved */
    l->e.id = l->id;
    free(one.item);
    l->included = sqlite3_column_int(q, 7) != 0;
    ws_copy(l->reason, sizeof l->reason, q, 8);
    return ES_OK;
}

int es_workspace_experience_list(es_workspace *w, es_experience_line **out, int *n, es_error *err)
{
    *out = NULL;
    *n = 0;
    int cap = 0;
    ws_enter(w);
    sqlite3_stmt *q = ws_query(w, err,
                               "SELECT id, messages, preferred, rejected, source, time, weight, included, reason FROM experience WHERE removed IS NULL ORDER BY id", "");
    int rc = q ? ES_OK : w->failed;
    while (q && (rc = ws_step(w, q, err)) > 0) {
        if (*n == cap) {
            es_experience_line *more = realloc(*out, sizeof *more * (size_t)(cap = cap ? 2 * cap : 16));
            if (!more) {
                rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for the experiences");
                break;
            }
            *out = more;
        }
        rc = experience_row(w, q, &(*out)[*n], err);
        if (rc)
            break;
        ++*n;
    }
    sqlite3_finalize(q);
    ws_leave(w);
    if (rc) {
        es_experience_lines_free(*out, *n);
        *out = NULL;
        *n = 0;
    }
    return rc;
}

int ws_judge(es_workspace *w, int64_t session, int64_t message, int rating, const char *edited, const es_experience *e, int64_t snapshot, int64_t *experience,
             es_error *err)
{
    char now[32];
    ws_now(now);
    *experience = 0;
    es_experiences checked = {0};
    int rc = e ? es_experience_copy(&checked, e, err) : ES_OK;
    es_experiences_free(&checked);
    if (rc)
        return rc;
    ws_enter(w);
    rc = ws_begin(w, err);
    if (!rc) {
        int64_t old = 0;
        rc = ws_int(w, &old, err, "SELECT coalesce(experience, 0) FROM message WHERE id = ?", "i", message);
        if (rc == ES_ERR_MISSING)
            es_fail(err, rc, "there is no message %lld", (long long)message);
        if (!rc && old)
            rc = experience_removed(w, old, true, err);
        if (!rc && e)
            rc = experience_insert(w, e, session, experience, err);
        if (!rc)
            rc = ws_run(w, err,
                        "INSERT INTO judgement(message, before_rating, before_edited, before_experience, experience, snapshot, time)"
                        " SELECT id, rating, edited, experience, nullif(?,0), ?, ? FROM message WHERE id = ?",
                        "iisi", *experience, snapshot, now, message);
        if (!rc)
            rc = ws_run(w, err, "UPDATE message SET rating = ?, edited = ?, experience = nullif(?,0) WHERE id = ?", "isii", (int64_t)rating, edited, *experience,
                        message);
        rc = ws_end(w, rc, err);
    }
    ws_leave(w);
    if (rc)
        *experience = 0;
    return rc;
}

int ws_judgement_undo(es_workspace *w, ws_undone *out, es_error *err)
{
    *out = (ws_undone){0};
    char now[32];
    ws_now(now);
    ws_enter(w);
    int rc = ws_begin(w, err);
    if (!rc) {
        int64_t id = 0;
        sqlite3_stmt *q = ws_query(w, err,
                                   "SELECT id, message, before_rating, before_edited, coalesce(before_experience, 0), coalesce(experience, 0), snapshot"
                                   " FROM judgement WHERE undone IS NULL ORDER BY id DESC LIMIT 1",
                                   "");
        rc = q ? ws_step(w, q, err) : w->failed;
        if (rc == 0)
            rc = es_fail(err, ES_ERR_MISSING, "there is no rating or correction left to undo");
        if (rc > 0) {
            id = sqlite3_column_int64(q, 0);
            *out = (ws_undone){.message = sqlite3_column_int64(q, 1), .rating = sqlite3_column_int(q, 2), .edited = ws_text(q, 3),
                               .restored = sqlite3_column_int64(q, 4), .experience = sqlite3_column_int64(q, 5), .snapshot = sqlite3_column_int64(q, 6)};
            rc = ES_OK;
        }
        sqlite3_finalize(q);
        if (!rc && out->experience)
            rc = experience_removed(w, out->experience, true, err);
        if (!rc && out->restored)
            rc = experience_removed(w, out->restored, false, err);
        if (!rc)
            rc = ws_run(w, err, "UPDATE message SET rating = ?, edited = ?, experience = nullif(?,0) WHERE id = ?", "isii", (int64_t)out->rating, out->edited,
                        out->restored, out->message);
        if (!rc)
            rc = ws_run(w, err, "UPDATE judgement SET undone = ? WHERE id = ?", "si", now, id);
        rc = ws_end(w, rc, err);
    }
    ws_leave(w);
    if (rc) {
        free(out->edited);
        *out = (ws_undone){0};
    }
    return rc;
}

/* ---- snapshots ------------------------------------------------------------------------------------------------------------------------------ */

int ws_share(es_workspace *w, const void *bytes, size_t n, int64_t *id, es_error *err)
{
    char hash[65];
    es_sha256_bytes(hash, bytes, n);
    int rc = ws_run(w, err, "INSERT OR IGNORE INTO shared(hash, bytes) VALUES(?,?)", "sb", hash, bytes, n);
    return rc ? rc : ws_int(w, id, err, "SELECT id FROM shared WHERE hash = ?", "s", hash);
}

int es_workspace_snapshot_add(es_workspace *w, const es_snapshot_line *s, const void *bytes, size_t n, size_t n_shared, const int64_t *experience,
                              const float *influence, int n_experience, int64_t *id, es_error *err)
{
    char now[32];
    int64_t shared = 0;
    ws_now(now);
    if (n_shared > n)
        return es_fail(err, ES_ERR_USAGE, "a snapshot of %zu bytes, %zu of them shared", n, n_shared);
    if (s->n < 0 || n_experience < 0)
        return es_fail(err, ES_ERR_USAGE, "a snapshot of %d coefficients and %d experiences", s->n, n_experience);
    size_t cells = influence ? ((size_t)n_experience + 1) * (size_t)s->n : 0;
    int64_t own = 0;
    ws_enter(w);
    int rc = ws_begin(w, err);
    if (!rc) {
        rc = ws_run(w, err,
                    "INSERT INTO snapshot(parent, time, basis, basis_version, form, note, steps, experiences, passed, gain, kl, coefficient)"
                    " VALUES(?,?,?,?,?,?,?,?,?,?,?,?)",
                    "ississiiiddb", s->parent, s->time[0] ? s->time : now, s->basis, (int64_t)s->basis_version, s->form, s->note, (int64_t)s->steps,
                    (int64_t)s->experiences, (int64_t)s->passed, s->gain, s->kl, (const void *)s->coefficient, sizeof(float) * (size_t)s->n);
        own = sqlite3_last_insert_rowid(w->db);
        if (!rc && n_shared)
            rc = ws_share(w, (const char *)bytes + n - n_shared, n_shared, &shared, err);
        if (!rc)
            rc = ws_run(w, err, "INSERT INTO snapshot_data(snapshot, shared, bytes, experience, influence) VALUES(?,nullif(?,0),?,?,?)", "iibbb", own, shared,
                        bytes, n - n_shared, (const void *)experience,
                        sizeof(int64_t) * (size_t)n_experience, (const void *)influence, sizeof(float) * cells);
        rc = ws_end(w, rc, err);
    }
    ws_leave(w);
    if (id)
        *id = rc ? 0 : own;
    return rc;
}

int es_workspace_snapshot_bytes(es_workspace *w, int64_t id, es_buf *out, es_error *err)
{
    ws_enter(w);
    sqlite3_stmt *q = ws_query(w, err, "SELECT d.bytes, s.bytes FROM snapshot_data d LEFT JOIN shared s ON s.id = d.shared WHERE snapshot = ?", "i", id);
    int rc = q ? ws_step(w, q, err) : w->failed;
    if (rc > 0) {
        for (int part = 0; part < 2; part++) {
            const void *p = sqlite3_column_blob(q, part);
            es_buf_add(out, p ? p : "", p ? (size_t)sqlite3_column_bytes(q, part) : 0);
        }
        rc = out->failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory for snapshot %lld", (long long)id) : ES_OK;
    } else if (rc == 0) {
        rc = es_fail(err, ES_ERR_MISSING, "there is no snapshot %lld", (long long)id);
    }
    sqlite3_finalize(q);
    ws_leave(w);
    return rc;
}

void es_snapshot_lines_free(es_snapshot_line *l, int n)
{
    for (int i = 0; i < n; i++)
        free(l[i].coefficient);
    free(l);
}

/* A blob of whole elements as an owned array; *n its length. */
static int blob(es_workspace *w, sqlite3_stmt *q, int column, size_t size, void **out, int *n, es_error *err)
{
    const void *p = sqlite3_column_blob(q, column);
    size_t bytes = p ? (size_t)sqlite3_column_bytes(q, column) : 0;
    if (bytes % size || bytes / size > 1u << 28)
        return es_fail(err, ES_ERR_FORMAT, "%s: a snapshot is damaged", w->path);
    *out = calloc(bytes / size + 1, size);
    if (!*out)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a snapshot");
    if (bytes)
        memcpy(*out, p, bytes);
    *n = (int)(bytes / size);
    return ES_OK;
}

int es_workspace_snapshot_list(es_workspace *w, es_snapshot_line **out, int *n, es_error *err)
{
    *out = NULL;
    *n = 0;
    int cap = 0;
    ws_enter(w);
    sqlite3_stmt *q = ws_query(w, err,
                               "SELECT id, parent, time, basis, basis_version, form, note, steps, experiences, passed, gain, kl, coefficient FROM snapshot ORDER BY id", "");
    int rc = q ? ES_OK : w->failed;
    while (q && (rc = ws_step(w, q, err)) > 0) {
        if (*n == cap) {
            es_snapshot_line *more = realloc(*out, sizeof *more * (size_t)(cap = cap ? 2 * cap : 16));
            if (!more) {
                rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for the snapshots");
                break;
            }
            *out = more;
        }
        es_snapshot_line *l = &(*out)[*n];
        *l = (es_snapshot_line){.id = sqlite3_column_int64(q, 0), .parent = sqlite3_column_int64(q, 1), .basis_version = sqlite3_column_int(q, 4),
                                .steps = sqlite3_column_int(q, 7), .experiences = sqlite3_column_int(q, 8), .passed = sqlite3_column_int(q, 9) != 0,
                                .gain = sqlite3_column_double(q, 10), .kl = sqlite3_column_double(q, 11)};
        ws_copy(l->time, sizeof l->time, q, 2);
        ws_copy(l->basis, sizeof l->basis, q, 3);
        ws_copy(l->form, sizeof l->form, q, 5);
        ws_copy(l->note, sizeof l->note, q, 6);
        rc = blob(w, q, 12, sizeof(float), (void **)&l->coefficient, &l->n, err);
        if (rc)
            break;
        ++*n;
    }
    sqlite3_finalize(q);
    ws_leave(w);
    if (rc) {
        es_snapshot_lines_free(*out, *n);
        *out = NULL;
        *n = 0;
    }
    return rc;
}

int es_workspace_snapshot_influence(es_workspace *w, int64_t id, int64_t **experience, float **influence, int *n_experience, int *n_coefficient, es_error *err)
{
    *experience = NULL;
    *influence = NULL;
    *n_experience = *n_coefficient = 0;
    int cells = 0;
    ws_enter(w);
    sqlite3_stmt *q = ws_query(w, err, "SELECT experience, influence FROM snapshot_data WHERE snapshot = ?", "i", id);
    int rc = q ? ws_step(w, q, err) : w->failed;
    if (rc > 0) {
        rc = blob(w, q, 0, sizeof(int64_t), (void **)experience, n_experience, err);
        if (!rc)
            rc = blob(w, q, 1, sizeof(float), (void **)influence, &cells, err);
        if (!rc && (*n_experience > MAX_EXPERIENCES || cells % (*n_experience + 1)))
            rc = es_fail(err, ES_ERR_FORMAT, "%s: snapshot %lld is damaged", w->path, (long long)id);
        if (!rc)
            *n_coefficient = cells / (*n_experience + 1);
    } else if (rc == 0) {
        rc = es_fail(err, ES_ERR_MISSING, "there is no snapshot %lld", (long long)id);
    }
    sqlite3_finalize(q);
    ws_leave(w);
    if (rc) {
        free(*experience);
        free(*influence);
        *experience = NULL;
        *influence = NULL;
        *n_experience = 0;
    }
    return rc;
}

int es_workspace_snapshot_current(es_workspace *w, int64_t *id)
{
    char value[32];
    *id = ws_state_get(w, "snapshot", value, sizeof value) ? 0 : strtoll(value, NULL, 10);
    return ES_OK;
}

int es_workspace_snapshot_use(es_workspace *w, int64_t id, es_error *err)
{
    char value[32];
    snprintf(value, sizeof value, "%lld", (long long)id);
    int64_t there = 1;
    ws_enter(w);
    int rc = id ? ws_int(w, &there, err, "SELECT 1 FROM snapshot WHERE id = ?", "i", id) : ES_OK;
    if (rc == ES_ERR_MISSING)
        es_fail(err, rc, "there is no snapshot %lld", (long long)id);
    if (!rc)
        rc = ws_state_set(w, "snapshot", value, err);
    ws_leave(w);
    return rc;
}
