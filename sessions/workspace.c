/* workspace: opening, migrating and guarding the one SQLite file, and the helpers that every query goes through.
 *
 * Durability: WAL with synchronous=FULL, so a call that returned success survives kill -9 and a power cut. One writer: an flock'ed
 * file beside the database, held while the workspace is open; the kernel lets go of it however the process ends.
 * A stranger's file: schema functions are not trusted, triggers and views are off (we have none), the schema cannot be written. */
#include "workspace.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { APPLICATION_ID = 0x4553504C }; /* "ESPL" */

/* user_version n means: the first n of these have run. Never change one that was released; add another. */
static const char *const migrations[] = {
    "CREATE TABLE state(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE file_hash(path TEXT PRIMARY KEY, size INTEGER NOT NULL, time_ns INTEGER NOT NULL, inode INTEGER NOT NULL,"
    " hash TEXT NOT NULL) WITHOUT ROWID;"

    "CREATE TABLE dictionary(id INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE, name TEXT NOT NULL DEFAULT '',"
    " n_features INTEGER NOT NULL DEFAULT 0, rows INTEGER NOT NULL DEFAULT 0, starter INTEGER NOT NULL DEFAULT 0);"
    "CREATE TABLE feature(dictionary INTEGER NOT NULL REFERENCES dictionary(id) ON DELETE CASCADE, feature INTEGER NOT NULL,"
    " density REAL NOT NULL, PRIMARY KEY(dictionary, feature)) WITHOUT ROWID;"
    "CREATE TABLE label(dictionary INTEGER NOT NULL REFERENCES dictionary(id) ON DELETE CASCADE, feature INTEGER NOT NULL,"
    " text TEXT NOT NULL DEFAULT '', tags TEXT NOT NULL DEFAULT '', rating INTEGER NOT NULL DEFAULT 0, skipped INTEGER NOT NULL DEFAULT 0,"
    " author TEXT NOT NULL DEFAULT '', time TEXT NOT NULL, PRIMARY KEY(dictionary, feature)) WITHOUT ROWID;"
    /* before_text NULL: there was no label. batch: one import is undone as one. undoable 0: starter labels. */
    "CREATE TABLE label_change(id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, dictionary INTEGER NOT NULL REFERENCES dictionary(id) ON DELETE CASCADE,"
    " feature INTEGER NOT NULL, undoable INTEGER NOT NULL, undone TEXT,"
    " before_text TEXT, before_tags TEXT, before_rating INTEGER, before_skipped INTEGER, before_author TEXT, before_time TEXT,"
    " text TEXT NOT NULL, tags TEXT NOT NULL, rating INTEGER NOT NULL, skipped INTEGER NOT NULL, author TEXT NOT NULL, time TEXT NOT NULL);"
    "CREATE INDEX label_change_open ON label_change(dictionary, id) WHERE undone IS NULL AND undoable;"
    "CREATE VIRTUAL TABLE search USING fts5(label, tags, tokens, tokenize='unicode61 remove_diacritics 2', prefix='1 2 3');"

    "CREATE TABLE basis(id INTEGER PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL, model_hash TEXT NOT NULL,"
    " dictionary_hash TEXT NOT NULL, dictionary TEXT NOT NULL, layer INTEGER NOT NULL, time TEXT NOT NULL, UNIQUE(name, version));"
    "CREATE TABLE basis_feature(basis INTEGER NOT NULL REFERENCES basis(id) ON DELETE CASCADE, position INTEGER NOT NULL,"
    " feature INTEGER NOT NULL, lo REAL NOT NULL, hi REAL NOT NULL, PRIMARY KEY(basis, position)) WITHOUT ROWID;"

    "CREATE TABLE session(id INTEGER PRIMARY KEY, time TEXT NOT NULL, model_hash TEXT NOT NULL);"
    "CREATE TABLE experience(id INTEGER PRIMARY KEY, session INTEGER REFERENCES session(id), time TEXT NOT NULL, source TEXT,"
    " messages TEXT NOT NULL, preferred TEXT, rejected TEXT, weight REAL NOT NULL, included INTEGER NOT NULL DEFAULT 1,"
    " reason TEXT NOT NULL DEFAULT '', removed TEXT);"
    "CREATE TABLE message(id INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES session(id), role TEXT NOT NULL, content TEXT NOT NULL,"
    " edited TEXT, rating INTEGER NOT NULL DEFAULT 0, stopped INTEGER NOT NULL DEFAULT 0, dropped INTEGER NOT NULL DEFAULT 0,"
    " snapshot INTEGER NOT NULL DEFAULT 0, experience INTEGER REFERENCES experience(id), time TEXT NOT NULL);"
    "CREATE INDEX message_session ON message(session, id);"
    "CREATE TABLE judgement(id INTEGER PRIMARY KEY, message INTEGER NOT NULL REFERENCES message(id), before_rating INTEGER NOT NULL,"
    " before_edited TEXT, before_experience INTEGER REFERENCES experience(id), experience INTEGER REFERENCES experience(id),"
    " snapshot INTEGER NOT NULL, time TEXT NOT NULL, undone TEXT);"

    "CREATE TABLE snapshot(id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, time TEXT NOT NULL, basis TEXT NOT NULL, basis_version INTEGER NOT NULL,"
    " form TEXT NOT NULL, note TEXT NOT NULL, steps INTEGER NOT NULL, experiences INTEGER NOT NULL, passed INTEGER NOT NULL,"
    " gain REAL, kl REAL, coefficient BLOB NOT NULL);"
    "CREATE TABLE snapshot_data(snapshot INTEGER PRIMARY KEY REFERENCES snapshot(id) ON DELETE CASCADE, bytes BLOB NOT NULL,"
    " experience BLOB NOT NULL, influence BLOB NOT NULL);",

    /* Fixed inputs end the bytes of many snapshots: they are kept once. */
    "CREATE TABLE shared(id INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE, bytes BLOB NOT NULL);"
    "ALTER TABLE snapshot_data ADD COLUMN shared INTEGER REFERENCES shared(id);",

    "CREATE TABLE direction(name TEXT NOT NULL, dictionary TEXT NOT NULL, used INTEGER NOT NULL, bytes BLOB NOT NULL,"
    " shared INTEGER REFERENCES shared(id), amplitude REAL NOT NULL DEFAULT 0, snapshot INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(name, dictionary));",

    WS_OPINIONS_SCHEMA,

    /* Directions that others made, among a basis' features: number is what basis_feature has for it. */
    "CREATE TABLE basis_vector(basis INTEGER NOT NULL REFERENCES basis(id) ON DELETE CASCADE, number INTEGER NOT NULL, name TEXT NOT NULL,"
    " layer INTEGER NOT NULL, hash TEXT NOT NULL, length REAL NOT NULL, unit BLOB NOT NULL, PRIMARY KEY(basis, number)) WITHOUT ROWID;",
};
enum { VERSION = sizeof migrations / sizeof *migrations };

void ws_enter(es_workspace *w) { pthread_mutex_lock(&w->mutex); }
void ws_leave(es_workspace *w) { pthread_mutex_unlock(&w->mutex); }

int ws_fail(es_workspace *w, es_error *err, const char *doing)
{
    int code = sqlite3_errcode(w->db) & 0xff;
    switch (code) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return es_fail(err, ES_ERR_FORMAT, "%s: is damaged or no workspace (%s); move it away or put a copy in its place", w->path, sqlite3_errmsg(w->db));
    case SQLITE_FULL:
        return es_fail(err, ES_ERR_IO, "%s: cannot %s: the disk is full; nothing was changed", w->path, doing);
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_CANTOPEN:
        return es_fail(err, ES_ERR_IO, "%s: cannot %s: the file or its folder may not be written", w->path, doing);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return es_fail(err, ES_ERR_IO, "%s: cannot %s: another program is using the file", w->path, doing);
    case SQLITE_NOMEM:
        return es_fail(err, ES_ERR_MEMORY, "%s: cannot %s: not enough memory", w->path, doing);
    case SQLITE_TOOBIG:
        return es_fail(err, ES_ERR_LIMIT, "%s: cannot %s: a text or blob is too big", w->path, doing);
    case SQLITE_ERROR: /* our own SQL is right, so the schema is not ours */
        return es_fail(err, ES_ERR_FORMAT, "%s: cannot %s: the file is not laid out as it should be (%s)", w->path, doing, sqlite3_errmsg(w->db));
    default:
        return es_fail(err, ES_ERR_IO, "%s: cannot %s: %s", w->path, doing, sqlite3_errmsg(w->db));
    }
}

int ws_exec(es_workspace *w, const char *sql, es_error *err)
{
    return sqlite3_exec(w->db, sql, NULL, NULL, NULL) == SQLITE_OK ? ES_OK : ws_fail(w, err, "write");
}

int ws_begin(es_workspace *w, es_error *err) { return ws_exec(w, "BEGIN IMMEDIATE", err); }

int ws_end(es_workspace *w, int rc, es_error *err)
{
    if (rc == ES_OK)
        rc = ws_exec(w, "COMMIT", err);
    if (rc != ES_OK && !sqlite3_get_autocommit(w->db))
        sqlite3_exec(w->db, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

static sqlite3_stmt *query(es_workspace *w, es_error *err, const char *sql, const char *types, va_list args)
{
    sqlite3_stmt *q = NULL;
    if (sqlite3_prepare_v2(w->db, sql, -1, &q, NULL) != SQLITE_OK) {
        w->failed = ws_fail(w, err, "read");
        return NULL;
    }
    int rc = SQLITE_OK;
    for (int i = 1; types[i - 1] && rc == SQLITE_OK; i++) {
        switch (types[i - 1]) {
        case 'i': rc = sqlite3_bind_int64(q, i, va_arg(args, int64_t)); break;
        case 'd': rc = sqlite3_bind_double(q, i, va_arg(args, double)); break;
        case 's': rc = sqlite3_bind_text(q, i, va_arg(args, const char *), -1, SQLITE_STATIC); break;
        case 'b': {
            const void *p = va_arg(args, const void *);
            size_t n = va_arg(args, size_t);
            rc = sqlite3_bind_blob64(q, i, p ? p : "", n, SQLITE_STATIC);
            break;
        }
        default: break;
        }
    }
    if (rc != SQLITE_OK) {
        w->failed = ws_fail(w, err, "bind");
        sqlite3_finalize(q);
        return NULL;
    }
    return q;
}

sqlite3_stmt *ws_query(es_workspace *w, es_error *err, const char *sql, const char *types, ...)
{
    va_list args;
    va_start(args, types);
    sqlite3_stmt *q = query(w, err, sql, types, args);
    va_end(args);
    return q;
}

int ws_step(es_workspace *w, sqlite3_stmt *q, es_error *err)
{
    int rc = sqlite3_step(q);
    return rc == SQLITE_ROW ? 1 : rc == SQLITE_DONE ? 0 : ws_fail(w, err, sqlite3_stmt_readonly(q) ? "read" : "write");
}

int ws_run(es_workspace *w, es_error *err, const char *sql, const char *types, ...)
{
    va_list args;
    va_start(args, types);
    sqlite3_stmt *q = query(w, err, sql, types, args);
    va_end(args);
    if (!q)
        return w->failed;
    int rc;
    while ((rc = ws_step(w, q, err)) > 0)
        ;
    sqlite3_finalize(q);
    return rc;
}

int ws_int(es_workspace *w, int64_t *out, es_error *err, const char *sql, const char *types, ...)
{
    va_list args;
    va_start(args, types);
    sqlite3_stmt *q = query(w, err, sql, types, args);
    va_end(args);
    if (!q)
        return w->failed;
    int rc = ws_step(w, q, err);
    if (rc > 0)
        *out = sqlite3_column_int64(q, 0);
    sqlite3_finalize(q);
    return rc > 0 ? ES_OK : rc == 0 ? ES_ERR_MISSING : rc;
}

char *ws_text(sqlite3_stmt *q, int column)
{
    const char *s = (const char *)sqlite3_column_text(q, column);
    return s ? strdup(s) : NULL;
}

void ws_copy(char *out, size_t n, sqlite3_stmt *q, int column)
{
    const char *s = (const char *)sqlite3_column_text(q, column);
    size_t len = s ? strlen(s) : 0;
    if (len >= n)
        len = es_utf8_whole(s, n - 1);
    if (len)
        memcpy(out, s, len);
    out[len] = 0;
}

void ws_now(char out[32])
{
    struct timespec t;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &t);
    gmtime_r(&t.tv_sec, &tm);
    size_t n = strftime(out, 32, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out + n, 32 - n, ".%03ldZ", t.tv_nsec / 1000000 % 1000);
}

bool ws_utf8(const char *s) { return es_utf8_whole(s, strlen(s)) == strlen(s); }

/* ---- opening ------------------------------------------------------------------------------------------------------------------------ */

/* A command that runs while another one ends should not fail for it: tries for a second. */
static int take_lock(es_workspace *w, es_error *err)
{
    char path[sizeof w->path + 8], who[32] = "";
    snprintf(path, sizeof path, "%s-lock", w->path);
    w->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (w->lock < 0)
        return es_fail(err, ES_ERR_IO, "%s: cannot open the workspace: %s; its folder must be there and writable", w->path, strerror(errno));
    for (int i = 0; flock(w->lock, LOCK_EX | LOCK_NB) != 0; i++) {
        if (i >= 50 || (errno != EWOULDBLOCK && errno != EINTR)) {
            ssize_t n = pread(w->lock, who, sizeof who - 1, 0);
            who[n > 0 ? strspn(who, "0123456789") : 0] = 0;
            return es_fail(err, ES_ERR_IO, "%s: another espalier%s%s has this workspace open; close it first, or use another --home", w->path,
                           *who ? ", process " : "", who);
        }
        usleep(20000);
    }
    int n = snprintf(who, sizeof who, "%ld\n", (long)getpid());
    if (ftruncate(w->lock, 0) == 0 && pwrite(w->lock, who, (size_t)n, 0) != n) { /* only a help for the other's message */ }
    return ES_OK;
}

static int migrate(es_workspace *w, es_error *err)
{
    int64_t id = 0, version = 0, tables = 0;
    int rc = ws_int(w, &version, err, "PRAGMA user_version", "");
    if (!rc)
        rc = ws_int(w, &id, err, "PRAGMA application_id", "");
    if (!rc)
        rc = ws_int(w, &tables, err, "SELECT count(*) FROM sqlite_schema", "");
    if (rc)
        return rc;
    if (id != APPLICATION_ID && (tables > 0 || id != 0 || version != 0))
        return es_fail(err, ES_ERR_FORMAT, "%s: is the database of another program, not a workspace", w->path);
    if (version > VERSION)
        return es_fail(err, ES_ERR_FORMAT, "%s: was made by a newer espalier (layout %lld; this one knows up to %d); use that one, or another --home", w->path,
                       (long long)version, VERSION);
    if (version < 0)
        return es_fail(err, ES_ERR_FORMAT, "%s: is damaged (layout %lld)", w->path, (long long)version);
    for (int64_t v = version; v < VERSION; v++) {
        char pragma[128];
        snprintf(pragma, sizeof pragma, "PRAGMA user_version = %lld; PRAGMA application_id = %d", (long long)v + 1, APPLICATION_ID);
        rc = ws_begin(w, err);
        if (rc)
            return rc;
        rc = ws_exec(w, migrations[v], err);
        if (!rc)
            rc = ws_exec(w, pragma, err);
        rc = ws_end(w, rc, err);
        if (rc)
            return rc;
    }
    return ES_OK;
}

static int set_up(es_workspace *w, es_error *err)
{
    if (sqlite3_open_v2(w->path, &w->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX, NULL) != SQLITE_OK)
        return w->db ? ws_fail(w, err, "open it") : es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to open it", w->path);
    static const struct { int op, on; } config[] = {
        {SQLITE_DBCONFIG_DEFENSIVE, 1}, {SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0}, {SQLITE_DBCONFIG_ENABLE_TRIGGER, 0},
        {SQLITE_DBCONFIG_ENABLE_VIEW, 0}, {SQLITE_DBCONFIG_ENABLE_FKEY, 1}, {SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0},
        {SQLITE_DBCONFIG_DQS_DML, 0}, {SQLITE_DBCONFIG_DQS_DDL, 0},
    };
    for (size_t i = 0; i < sizeof config / sizeof *config; i++)
        sqlite3_db_config(w->db, config[i].op, config[i].on, NULL);
    sqlite3_busy_timeout(w->db, 3000);
    sqlite3_limit(w->db, SQLITE_LIMIT_ATTACHED, 0);
    sqlite3_extended_result_codes(w->db, 1);
    int rc = ws_exec(w, "PRAGMA cell_size_check = ON; PRAGMA temp_store = MEMORY", err);
    sqlite3_stmt *q = rc ? NULL : ws_query(w, err, "PRAGMA journal_mode = WAL", "");
    if (!q)
        return rc ? rc : w->failed;
    char mode[16];
    rc = ws_step(w, q, err);
    ws_copy(mode, sizeof mode, q, 0);
    sqlite3_finalize(q);
    if (rc < 0)
        return rc;
    if (strcmp(mode, "wal"))
        return es_fail(err, ES_ERR_IO, "%s: cannot be written (its folder or its file system does not allow a write-ahead log)", w->path);
    rc = ws_exec(w, "PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 4194304", err);
    return rc ? rc : migrate(w, err);
}

int es_workspace_open(es_workspace **out, const char *path, es_error *err)
{
    es_error own;
    err = err ? err : &own;
    *out = NULL;
    es_workspace *w = calloc(1, sizeof *w);
    if (!w)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to open it", path);
    w->lock = -1;
    if (snprintf(w->path, sizeof w->path, "%s", path) >= (int)sizeof w->path) {
        free(w);
        return es_fail(err, ES_ERR_USAGE, "%.80s...: the path is over %zu bytes", path, sizeof w->path - 1);
    }
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&w->mutex, &attr);
    pthread_mutexattr_destroy(&attr);
    struct stat st;
    int rc = ES_OK;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        rc = es_fail(err, ES_ERR_USAGE, "%s: is not a file", path);
    if (!rc)
        rc = take_lock(w, err);
    if (!rc)
        rc = set_up(w, err);
    if (rc) {
        es_workspace_close(w);
        return rc;
    }
    *out = w;
    return ES_OK;
}

int ws_reader(es_workspace **out, const es_workspace *of, es_error *err)
{
    *out = NULL;
    es_workspace *w = calloc(1, sizeof *w);
    if (!w)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to open it", of->path);
    w->lock = -1;
    memcpy(w->path, of->path, sizeof w->path);
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&w->mutex, &attr);
    pthread_mutexattr_destroy(&attr);
    if (sqlite3_open_v2(w->path, &w->db, SQLITE_OPEN_READONLY | SQLITE_OPEN_FULLMUTEX, NULL) != SQLITE_OK) {
        int rc = w->db ? ws_fail(w, err, "read it") : es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to open it", w->path);
        es_workspace_close(w);
        return rc;
    }
    sqlite3_busy_timeout(w->db, 3000);
    *out = w;
    return ES_OK;
}

void es_workspace_close(es_workspace *w)
{
    if (!w)
        return;
    sqlite3_close_v2(w->db);
    if (w->lock >= 0)
        close(w->lock);
    pthread_mutex_destroy(&w->mutex);
    free(w);
}

int es_workspace_check(es_workspace *w, es_error *err)
{
    ws_enter(w);
    int rc = ES_OK;
    sqlite3_stmt *q = ws_query(w, err, "PRAGMA integrity_check(1)", "");
    rc = q ? ws_step(w, q, err) : w->failed;
    if (rc > 0) {
        const char *s = (const char *)sqlite3_column_text(q, 0);
        rc = s && !strcmp(s, "ok") ? ES_OK : es_fail(err, ES_ERR_FORMAT, "%s: is damaged: %.200s; put a copy in its place", w->path, s ? s : "");
    }
    sqlite3_finalize(q);
    if (!rc) {
        q = ws_query(w, err, "PRAGMA foreign_key_check", "");
        rc = q ? ws_step(w, q, err) : w->failed;
        if (rc > 0) {
            const char *s = (const char *)sqlite3_column_text(q, 0);
            rc = es_fail(err, ES_ERR_FORMAT, "%s: is damaged: a row of %.60s refers to one that is not there", w->path, s ? s : "?");
        }
        sqlite3_finalize(q);
    }
    if (!rc) /* the search rows against their index */
        rc = ws_exec(w, "INSERT INTO search(search) VALUES('integrity-check')", err);
    ws_leave(w);
    return rc;
}

/* ---- files' hashes and small settings ------------------------------------------------------------------------------------------------ */

static int64_t time_ns(const struct stat *st) { return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec; }

int es_workspace_file_hash(es_workspace *w, const char *path, char out[65])
{
    struct stat st;
    char real[4096];
    out[0] = 0;
    if (!realpath(path, real) || stat(real, &st) != 0)
        return ES_ERR_MISSING;
    ws_enter(w);
    int rc = ES_ERR_MISSING;
    sqlite3_stmt *q = ws_query(w, NULL, "SELECT hash FROM file_hash WHERE path = ? AND size = ? AND time_ns = ? AND inode = ?", "siii", real,
                               (int64_t)st.st_size, time_ns(&st), (int64_t)st.st_ino);
    if (q && ws_step(w, q, NULL) > 0) {
        ws_copy(out, 65, q, 0);
        rc = strlen(out) == 64 && strspn(out, "0123456789abcdef") == 64 ? ES_OK : ES_ERR_MISSING;
    }
    sqlite3_finalize(q);
    ws_leave(w);
    return rc;
}

int es_workspace_remember_hash(es_workspace *w, const char *path, const char *hash, es_error *err)
{
    struct stat st;
    char real[4096];
    if (!realpath(path, real) || stat(real, &st) != 0)
        return es_fail(err, ES_ERR_MISSING, "%s: %s", path, strerror(errno));
    ws_enter(w);
    int rc = ws_run(w, err, "INSERT OR REPLACE INTO file_hash(path, size, time_ns, inode, hash) VALUES(?,?,?,?,?)", "siiis", real, (int64_t)st.st_size,
                    time_ns(&st), (int64_t)st.st_ino, hash);
    ws_leave(w);
    return rc;
}

int ws_state_set(es_workspace *w, const char *key, const char *value, es_error *err)
{
    ws_enter(w);
    int rc = ws_run(w, err, "INSERT OR REPLACE INTO state(key, value) VALUES(?,?)", "ss", key, value);
    ws_leave(w);
    return rc;
}

int ws_state_get(es_workspace *w, const char *key, char *out, size_t n)
{
    ws_enter(w);
    sqlite3_stmt *q = ws_query(w, NULL, "SELECT value FROM state WHERE key = ?", "s", key);
    int rc = q && ws_step(w, q, NULL) > 0 ? ES_OK : ES_ERR_MISSING;
    out[0] = 0;
    if (!rc)
        ws_copy(out, n, q, 0);
    sqlite3_finalize(q);
    ws_leave(w);
    return rc;
}

int es_workspace_basis_current(es_workspace *w, char *out, size_t n)
{
    return ws_state_get(w, "basis", out, n);
}
