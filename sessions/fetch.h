/* fetch: one file over HTTP or HTTPS. The server is not trusted: what it says of sizes is checked, where it
 * sends one to is checked, and only a hash that is known beforehand makes the bytes believed. */
#ifndef ES_FETCH_H
#define ES_FETCH_H

#include "base.h"

typedef struct es_fetch_options {
    const char *sha256;    /* 64 lower-case hex digits that the file must have; NULL: any */
    const char *token;     /* a bearer token for the URL's own scheme, host and port; follows no redirect elsewhere; NULL: none */
    const char *ca_file;   /* certificates to trust; NULL: the system's */
    uint64_t max_bytes;    /* of the file; 0: what the disk has room for */
    int tries;             /* in a row that bring nothing new; 0: 5 */
    int stall_seconds;     /* with under 1 kB a second for so long the connection counts as dead; 0: 30 */
    const es_progress *progress;
} es_fetch_options;

typedef struct es_fetch_result {
    char sha256[65];
    uint64_t bytes, kept;  /* the file's size; how many of them an earlier call had brought */
    bool there;            /* nothing was fetched: path existed, with the wanted hash when there is one */
    bool checked;          /* against a hash: the caller's, or for a file of the hub the one that the hub names */
    bool stated;           /* the server said how long the file is, or it was checked */
} es_fetch_result;

/* Puts what the URL names at path. It grows in path.part (with path.part.json: what is needed to go on) and gets its name when it is
 * whole and its hash is right, so path is never half a file. A call that was cut, cancelled or killed is gone on with by the next: a
 * Range with If-Range, so that a file that changed meanwhile starts anew. A file at path is never replaced. Errors: ES_ERR_IO for net
 * and disk, ES_ERR_MISSING, ES_ERR_FORMAT when it is not the wanted file (then what came is removed), ES_ERR_LIMIT for its size. */
int es_fetch(const char *url, const char *path, const es_fetch_options *o, es_fetch_result *out, es_error *err);
/* The last part of a URL's path, decoded: a plain file name that is no hidden one. ES_ERR_USAGE when it has none. */
int es_fetch_name(const char *url, char *out, size_t size, es_error *err);

#endif
