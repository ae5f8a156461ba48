/* base: errors, checked sizes, files, strings, JSON, random numbers. Everything above builds on this and nothing here
 * knows of models. Library code never exits, aborts, prints or reads the environment. */
#ifndef ES_BASE_H
#define ES_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

/* ---- errors ----------------------------------------------------------------------------------------------------- */

enum { /* every function that can fail returns 0 or one of these */
    ES_OK = 0,
    ES_ERR_USAGE = -1,     /* the caller's arguments make no sense */
    ES_ERR_IO = -2,        /* the operating system said no */
    ES_ERR_FORMAT = -3,    /* a file is not what it claims to be */
    ES_ERR_MEMORY = -4,    /* not enough memory */
    ES_ERR_MISMATCH = -5,  /* made from another model, dictionary or basis */
    ES_ERR_CANCELLED = -6, /* the caller's cancel flag was raised */
    ES_ERR_MISSING = -7,   /* a named thing is not there */
    ES_ERR_LIMIT = -8,     /* over a stated limit (context length, guard) */
    ES_ERR_DEVICE = -9,    /* the accelerator, or its driver, failed or is not there */
    ES_ERR_REFUSED = -10,  /* nothing is wrong, but what was measured speaks against doing it (a teacher without an advantage) */
};

typedef struct es_error {
    int code;
    char text[480]; /* one line, no newline, control bytes made visible: what, where, what to do */
} es_error;

/* Fills *err (which may be NULL) and returns code, so that `return es_fail(err, ES_ERR_IO, "...")` reads well.
 * Bytes that a terminal would act on (ESC, C1, newlines) are written as \xNN. */
int es_fail(es_error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Puts "prefix: " before the text that *err holds; returns err->code. */
int es_fail_prefix(es_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- checked sizes and memory ------------------------------------------------------------------------------------ */

/* true and *out set when the result fits; false on overflow. Every size that comes from a file goes through these. */
bool es_mul(size_t a, size_t b, size_t *out);
bool es_add(size_t a, size_t b, size_t *out);

/* Zeroed memory for n elements of size bytes; 64-byte aligned; NULL on overflow or when there is none. Free with free(). */
void *es_calloc(size_t n, size_t size);

/* One block for one lifetime: sized first (measure mode: base NULL, only counts), then carved. */
typedef struct es_arena {
    char *base;
    size_t size, used;
} es_arena;
int es_arena_open(es_arena *a, size_t size, es_error *err); /* zeroed, 64-byte aligned */
void *es_arena_take(es_arena *a, size_t n, size_t size);    /* 64-byte aligned; in measure mode counts and returns NULL;
                                                               NULL as well when the arena is full (a bug in the caller) */
void es_arena_close(es_arena *a);

/* Bytes that could be taken without swapping (Linux's MemAvailable); SIZE_MAX where nobody says. */
size_t es_memory_available(void);
size_t es_disk_free(const char *path); /* bytes where path is, or will be; SIZE_MAX where nobody says */
/* ES_ERR_MEMORY, both numbers named, when `what` needs more than limit bytes (0: what is available). */
int es_memory_check(size_t bytes, size_t limit, const char *what, es_error *err);

/* ---- growable byte string ------------------------------------------------------------------------------------------ */

typedef struct es_buf {
    char *data; /* always NUL-terminated once anything was added; may hold NULs */
    size_t len, cap;
    bool failed; /* an allocation failed: later additions do nothing; check once at the end */
} es_buf;
void es_buf_add(es_buf *b, const void *bytes, size_t n);
void es_buf_str(es_buf *b, const char *s);
void es_buf_printf(es_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void es_buf_clear(es_buf *b); /* length 0, memory kept */
void es_buf_free(es_buf *b);

/* ---- text ------------------------------------------------------------------------------------------------------------ */

/* Bytes of the longest prefix of s[0..n) that is whole, valid UTF-8 (an incomplete last character is left out). */
size_t es_utf8_whole(const char *s, size_t n);
/* Appends s to out with U+FFFD for what is no UTF-8, and for NUL: for JSON and others that take nothing else. */
void es_utf8_mend(es_buf *out, const char *s, size_t n);
void es_buf_json_line(es_buf *out, const json_t *v, size_t flags); /* v (NULL: no memory, out->failed) on a line of its own, compact; flags as json_dumps takes them besides */
json_t *es_json_mended(const char *s, size_t n); /* such a text as a JSON string; NULL: no memory */
/* Appends s to out so that a terminal only shows it: invalid bytes and control characters (C0 but \n and \t when
 * keep_space, DEL, C1, bidi overrides) become visible escapes like \x1b. */
void es_text_show(es_buf *out, const char *s, size_t n, bool keep_space);
/* A shape as "[3, 4]", cut where out[size] ends. */
void es_shape_text(char *out, size_t size, int n_dims, const size_t *dim);
/* Columns a valid UTF-8 string takes on a terminal (utf8proc widths; combining 0, wide 2). */
int es_text_width(const char *s, size_t n);

/* ---- files ------------------------------------------------------------------------------------------------------------ */

typedef struct es_map { /* a file mapped read-only */
    const uint8_t *data;
    size_t size;
    char path[1024];
} es_map;
int es_map_open(es_map *m, const char *path, es_error *err);
void es_map_close(es_map *m);

int es_file_read(es_buf *out, const char *path, size_t limit, es_error *err); /* "-" reads stdin; over limit is an error */
/* Writes path.tmp-PID, syncs, renames: path holds the old content or the new, never a mixture. Pipes and devices are written in
 * place. */
int es_file_write(const char *path, const void *bytes, size_t n, es_error *err);
/* The same of what fn puts, piece by piece, for content that need not lie in memory at once. fn's error leaves the old content; a
 * put that failed (false) is reported by the call itself. */
typedef struct es_sink es_sink;
bool es_sink_put(es_sink *s, const void *bytes, size_t n);
int es_file_write_by(const char *path, int (*fn)(void *user, es_sink *out, es_error *err), void *user, es_error *err);
int es_file_move(const char *from, const char *path, es_error *err); /* a rename on one file system, replacing path, that survives a power cut */
int es_dir_make(const char *path, es_error *err); /* with its parents, mode 0700 */

/* SHA-256 as 64 lower-case hex digits and a NUL. */
int es_sha256_file(char out[65], const char *path, es_error *err);
void es_sha256_bytes(char out[65], const void *bytes, size_t n);

/* ---- JSON (jansson underneath) ---------------------------------------------------------------------------------------- */

/* Depth, size and duplicate keys are checked. The error names path and line. */
int es_json_file(json_t **out, const char *path, es_error *err);
int es_json_parse(json_t **out, const char *text, size_t n, const char *what, es_error *err);
/* Each non-empty line of a JSONL file ("-" is stdin), in order; stops when fn returns non-zero and returns that.
 * The error of a bad line names the file and the line number ("file:line: "); an error that fn fills (negative, not
 * cancelled) gets the same prefix, so fn need not. The value is borrowed during the call. */
int es_jsonl_each(const char *path, int (*fn)(void *user, size_t line, json_t *value, es_error *err), void *user, es_error *err);

/* ---- random numbers (xoshiro256**, seeded by splitmix64) --------------------------------------------------------------- */

typedef struct es_rng { uint64_t s[4]; } es_rng;
void es_rng_seed(es_rng *r, uint64_t seed);
uint64_t es_rng_next(es_rng *r);
double es_rng_uniform(es_rng *r); /* in [0,1) */
float es_rng_normal(es_rng *r);   /* mean 0, variance 1 */
uint64_t es_rng_below(es_rng *r, uint64_t n); /* unbiased; n > 0 */

/* ---- time, progress, cancelling ------------------------------------------------------------------------------------------ */

double es_seconds(void); /* monotonic */
/* The calling thread, and those that it starts from now on (a pool's), get the processors after others who want them; little then, but not
 * nothing. For good. On Linux; elsewhere nothing happens. */
void es_thread_give_way(void);

/* A long job calls report now and then (at most some 10 times a second matters) and stops with ES_ERR_CANCELLED soon after
 * *cancel becomes true. Any member may be NULL. done/total in the job's own unit, named by unit. */
typedef struct es_progress {
    void (*report)(void *user, const char *what, double done, double total, const char *unit);
    void *user;
    const volatile bool *cancel; /* written by another thread with __atomic stores */
} es_progress;
void es_progress_report(const es_progress *p, const char *what, double done, double total, const char *unit);
bool es_progress_cancelled(const es_progress *p);

#endif
