/* Shared by the files of sessions only: the SQL helpers of the workspace, and what the studio keeps of its conversations. */
#ifndef ES_WORKSPACE_H
#define ES_WORKSPACE_H

#include <pthread.h>

#include <sqlite3.h>

#include "sessions.h"

struct es_workspace {
    sqlite3 *db;
    pthread_mutex_t mutex; /* recursive: held for the length of every public call */
    int lock;              /* the lock file's descriptor: one writer */
    int failed;            /* why the last ws_query gave NULL */
    char path[1024];
};

/* A second connection to an open workspace's file, for reading beside it (the write-ahead log allows that): es_workspace_close. */
int ws_reader(es_workspace **out, const es_workspace *of, es_error *err);
void ws_enter(es_workspace *w);
void ws_leave(es_workspace *w);
/* The last SQLite error as one line that names the file and says what to do. */
int ws_fail(es_workspace *w, es_error *err, const char *doing);
int ws_exec(es_workspace *w, const char *sql, es_error *err);
int ws_begin(es_workspace *w, es_error *err);        /* BEGIN IMMEDIATE */
int ws_end(es_workspace *w, int rc, es_error *err);  /* COMMIT when rc is 0, else ROLLBACK; returns the first failure */
/* A statement with its values bound: i int64_t, d double, s text or NULL, b const void * and size_t, n NULL. The texts and blobs
 * must live until it is finalized. NULL on failure: w->failed is the code. */
sqlite3_stmt *ws_query(es_workspace *w, es_error *err, const char *sql, const char *types, ...);
/* 1: a row is there; 0: no more; negative: failed. */
int ws_step(es_workspace *w, sqlite3_stmt *q, es_error *err);
int ws_run(es_workspace *w, es_error *err, const char *sql, const char *types, ...); /* to its end, rows ignored */
int ws_int(es_workspace *w, int64_t *out, es_error *err, const char *sql, const char *types, ...); /* one number; ES_ERR_MISSING: no row */
char *ws_text(sqlite3_stmt *q, int column);                           /* an owned copy; NULL for NULL or no memory */
void ws_copy(char *out, size_t n, sqlite3_stmt *q, int column);       /* cut at a whole character; "" for NULL */
void ws_now(char out[32]);
bool ws_utf8(const char *s); /* valid UTF-8 throughout */

/* A search row's number. */
enum { WS_FEATURE_BITS = 24 };
static inline int64_t ws_search_row(int64_t dictionary, int feature) { return dictionary << WS_FEATURE_BITS | feature; }
int ws_dictionary_id(es_workspace *w, const char *hash, bool make, int64_t *id, int *n_features, es_error *err);

/* ---- opinions ------------------------------------------------------------------------------------------------------------------------ */

/* opinion: what each annotator says; NULL: unsaid. change: the label_change that last set its text. label: what is shown of a feature, put together again
 * after each change. label_change, before_change NULL: that annotator had said nothing; before_author another than author: made when a feature had one label
 * (undoing takes this annotator's away and brings the other's back); choice: not NULL where the step chose whose is shown. */
#define WS_OPINIONS_SCHEMA \
    "CREATE TABLE opinion(dictionary INTEGER NOT NULL REFERENCES dictionary(id) ON DELETE CASCADE, feature INTEGER NOT NULL, author TEXT NOT NULL," \
    " text TEXT, tags TEXT, rating INTEGER, skipped INTEGER, note TEXT, confidence INTEGER, change INTEGER NOT NULL, time TEXT NOT NULL," \
    " PRIMARY KEY(dictionary, feature, author)) WITHOUT ROWID;" \
    "INSERT INTO opinion SELECT dictionary, feature, author, nullif(text, ''), nullif(tags, ''), nullif(rating, 0), nullif(skipped, 0), NULL, NULL, 0, time" \
    " FROM label;" \
    "CREATE TABLE label_choice(dictionary INTEGER NOT NULL REFERENCES dictionary(id) ON DELETE CASCADE, feature INTEGER NOT NULL, author TEXT NOT NULL," \
    " PRIMARY KEY(dictionary, feature)) WITHOUT ROWID;" \
    "CREATE TABLE label_score(id INTEGER PRIMARY KEY, dictionary INTEGER NOT NULL REFERENCES dictionary(id) ON DELETE CASCADE, feature INTEGER NOT NULL," \
    " text TEXT NOT NULL, kind TEXT NOT NULL, judge TEXT NOT NULL, automatic INTEGER NOT NULL, value REAL NOT NULL, lo REAL NOT NULL, hi REAL NOT NULL," \
    " n INTEGER NOT NULL, hit INTEGER NOT NULL, miss INTEGER NOT NULL, rejection INTEGER NOT NULL, alarm INTEGER NOT NULL, time TEXT NOT NULL);" \
    "CREATE INDEX label_score_of ON label_score(dictionary, feature);" \
    "ALTER TABLE label ADD COLUMN note TEXT NOT NULL DEFAULT '';" \
    "ALTER TABLE label ADD COLUMN confidence INTEGER NOT NULL DEFAULT 0;" \
    "ALTER TABLE label ADD COLUMN opinions INTEGER NOT NULL DEFAULT 1;" \
    "ALTER TABLE label ADD COLUMN conflict INTEGER NOT NULL DEFAULT 0;" \
    "ALTER TABLE label ADD COLUMN score REAL;" \
    "ALTER TABLE label ADD COLUMN tested INTEGER NOT NULL DEFAULT 0;" \
    "CREATE TABLE label_change_new(id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, dictionary INTEGER NOT NULL REFERENCES dictionary(id) ON DELETE CASCADE," \
    " feature INTEGER NOT NULL, author TEXT NOT NULL, undoable INTEGER NOT NULL, undone TEXT, time TEXT NOT NULL," \
    " before_author TEXT, before_text TEXT, before_tags TEXT, before_rating INTEGER, before_skipped INTEGER, before_note TEXT, before_confidence INTEGER," \
    " before_change INTEGER, before_time TEXT," \
    " text TEXT, tags TEXT, rating INTEGER, skipped INTEGER, note TEXT, confidence INTEGER, before_choice TEXT, choice TEXT);" \
    "INSERT INTO label_change_new SELECT id, batch, dictionary, feature, author, undoable, undone, time," \
    " before_author, nullif(before_text, ''), nullif(before_tags, ''), nullif(before_rating, 0), nullif(before_skipped, 0), NULL, NULL," \
    " CASE WHEN before_text IS NULL THEN NULL ELSE 0 END, before_time," \
    " nullif(text, ''), nullif(tags, ''), nullif(rating, 0), nullif(skipped, 0), NULL, NULL, NULL, NULL FROM label_change;" \
    "DROP TABLE label_change;" \
    "ALTER TABLE label_change_new RENAME TO label_change;" \
    "CREATE INDEX label_change_open ON label_change(dictionary, id) WHERE undone IS NULL AND undoable;" \
    "CREATE INDEX label_change_batch ON label_change(batch, id);" \
    "ALTER TABLE feature ADD COLUMN effect REAL;" /* logit effect (labels.h): NULL until the rows are made again, with examples at hand */

typedef struct ws_opinion {
    char *text, *tags, *note;         /* owned; NULL: unsaid */
    int rating, skipped, confidence;  /* -1: unsaid */
    int64_t change;
    char author[64], time[32];
} ws_opinion;
void ws_opinion_free(ws_opinion *o);
int ws_opinion_get(es_workspace *w, int64_t dictionary, int feature, const char *author, ws_opinion *out, es_error *err); /* 1: there is one; 0: zeroed */
int ws_opinions_of(es_workspace *w, int64_t dictionary, int feature, ws_opinion **out, int *n, es_error *err); /* in the order they are shown; ws_opinions_free */
void ws_opinions_free(ws_opinion *o, int n);
typedef struct ws_edit { /* inside a transaction */
    int64_t dictionary, batch;
    int n_features;
    const char *author, *time; /* time NULL: now */
    bool undoable;
} ws_edit;
int ws_batch_next(es_workspace *w, int64_t *batch, es_error *err);
int ws_label_change(es_workspace *w, const ws_edit *how, int feature, const es_label_edit *e, bool *changed, es_error *err);
int ws_label_show(es_workspace *w, int64_t dictionary, int feature, es_error *err); /* puts the shown label together again */
bool ws_same_text(const char *a, const char *b); /* case and spaces apart */
double ws_logit_effect(const es_feature_card *c); /* labels.h */
/* Labels of a JSONL file, inside a transaction. */
int ws_label_file(es_workspace *w, int64_t dictionary, int n_features, const char *path, const char *author, bool undoable, int *imported, es_error *err);

/* ---- small settings ------------------------------------------------------------------------------------------------------------------ */

int ws_state_set(es_workspace *w, const char *key, const char *value, es_error *err);
int ws_state_get(es_workspace *w, const char *key, char *out, size_t n); /* 0 or ES_ERR_MISSING */

/* ---- conversations ------------------------------------------------------------------------------------------------------------------- */

int ws_session_new(es_workspace *w, const char *model_hash, int64_t *id, es_error *err);
int ws_message_add(es_workspace *w, int64_t session, char role, const char *text, bool stopped, int64_t snapshot, int64_t *id, es_error *err);
int ws_message_drop(es_workspace *w, int64_t id, es_error *err); /* left out of the conversation (answered again); the row stays */

/* What a person said about a reply, in one transaction: the experience of that reply so far is taken back, the new one (NULL: none) is
 * added, rating and correction are noted, and what was there before is kept for ws_judgement_undo. */
int ws_judge(es_workspace *w, int64_t session, int64_t message, int rating, const char *edited, const es_experience *e, int64_t snapshot,
             int64_t *experience, es_error *err);
typedef struct ws_undone { int64_t message, experience /* taken back, or 0 */, restored /* put back, or 0 */, snapshot; int rating; char *edited; } ws_undone;
int ws_judgement_undo(es_workspace *w, ws_undone *out, es_error *err); /* ES_ERR_MISSING when there is none; edited is owned */

/* The id of these bytes among the shared ones. */
int ws_share(es_workspace *w, const void *bytes, size_t n, int64_t *id, es_error *err);

#endif
