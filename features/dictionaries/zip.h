/* zip: members of a zip file, as npz files and torch's .pt are, and writing them. The reader believes nothing: the central directory is checked against
 * the file's length and the local headers before a member is used, a member's CRC when it is read. Members are stored or deflated. */
#ifndef ES_ZIP_H
#define ES_ZIP_H

#include "base.h"

typedef struct es_zip es_zip;

typedef struct es_zip_member { /* borrowed from the zip */
    const char *name;
    bool deflated;
    uint32_t crc;
    size_t size, packed;     /* bytes unpacked and as they lie in the file */
    const uint8_t *data;     /* as they lie in the file */
} es_zip_member;

/* Maps the file. ES_ERR_FORMAT, file and fault named: no zip, truncated, encrypted, in parts, another method than store and deflate, a name that is a
 * path out of the folder, two of one name, overlapping members, sizes that the file cannot hold (deflate packs at most 1,032 to 1). */
int es_zip_open(es_zip **out, const char *path, es_error *err);
int es_zip_parse(es_zip **out, const void *bytes, size_t n, const char *what, es_error *err); /* bytes borrowed until the free */
void es_zip_free(es_zip *z);
size_t es_zip_count(const es_zip *z);
const es_zip_member *es_zip_at(const es_zip *z, size_t i);
const es_zip_member *es_zip_find(const es_zip *z, const char *name); /* NULL: none */

/* The first n bytes of a member (fewer when it is shorter: *got), unchecked by the CRC. */
int es_zip_peek(const es_zip *z, const es_zip_member *m, void *out, size_t n, size_t *got, es_error *err);
/* The whole member, CRC checked. Stored: *bytes points into the file and *owned is NULL. Deflated: memory is taken, *owned is the caller's to free. */
int es_zip_read(const es_zip *z, const es_zip_member *m, const uint8_t **bytes, void **owned, es_error *err);

/* ---- writing ---- */

typedef struct es_put { /* where bytes go */
    bool (*put)(void *user, const void *bytes, size_t n); /* false: it failed, stop */
    void *user;
} es_put;

typedef struct es_zip_writer {
    es_sink *out;
    uint64_t at;
    es_buf directory;
    size_t n;
} es_zip_writer;
/* A stored member of `size` bytes that fn puts; fn is called twice and must put the same (the CRC comes first in the file). Its data begins at a multiple
 * of 64 bytes, so that it can be used where it lies in a mapped file. Dates are the format's earliest: the same content gives the same file. */
int es_zip_add(es_zip_writer *w, const char *name, uint64_t size, int (*fn)(void *user, const es_put *out, es_error *err), void *user, es_error *err);
int es_zip_add_bytes(es_zip_writer *w, const char *name, const void *bytes, size_t n, es_error *err);
int es_zip_end(es_zip_writer *w, es_error *err); /* writes the directory and frees what w holds; call it also after an error */

#endif
