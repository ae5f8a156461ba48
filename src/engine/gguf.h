/* gguf: a reader of GGUF v2/v3 files (engine only). Opening checks the whole structure; after that every pointer and length
 * handed out lies inside the map. Format: ggml's docs/gguf.md. */
#ifndef ES_GGUF_H
#define ES_GGUF_H

#include "base.h"
#include "kernels.h"

typedef enum es_gguf_type {
    ES_GGUF_U8, ES_GGUF_I8, ES_GGUF_U16, ES_GGUF_I16, ES_GGUF_U32, ES_GGUF_I32, ES_GGUF_F32, ES_GGUF_BOOL, ES_GGUF_STRING,
    ES_GGUF_ARRAY, ES_GGUF_U64, ES_GGUF_I64, ES_GGUF_F64, ES_GGUF_N_TYPES,
} es_gguf_type;

typedef struct es_gguf_kv { /* borrowed from the map; numbers little-endian and unaligned */
    const char *key;
    size_t key_len;
    es_gguf_type type; /* of the value, or of an array's elements */
    bool is_array;
    size_t count;        /* elements of an array; otherwise 1 */
    const uint8_t *data; /* a string (array): length u64 and bytes, one after another */
    size_t bytes;
} es_gguf_kv;

typedef struct es_gguf_tensor {
    char name[65];
    int n_dims;
    size_t ne[4]; /* ne[0] is the contiguous one: a matrix W[n_out, n_in] has ne = {n_in, n_out}; unused dims are 1 */
    es_type type;
    const void *data; /* aligned to the file's alignment, at least 8 */
    size_t bytes;
    bool used; /* the model's bookkeeping: a tensor nobody asked for is one we do not understand */
} es_gguf_tensor;

typedef struct es_gguf {
    es_map map;
    int version;
    size_t alignment;
    es_gguf_kv *kv;
    es_gguf_tensor *tensor;
    size_t n_kv, n_tensor;
    uint32_t *kv_slot, *tensor_slot; /* open-addressing tables of index + 1 */
    size_t kv_mask, tensor_mask;
} es_gguf;

/* Errors: one line that names the file and the place. *g is closed on failure. */
int es_gguf_open(es_gguf *g, const char *path, es_error *err);
void es_gguf_close(es_gguf *g);

const es_gguf_kv *es_gguf_find(const es_gguf *g, const char *key); /* NULL: absent */
es_gguf_tensor *es_gguf_find_tensor(es_gguf *g, const char *name);

/* Values by key. Absent: *out keeps what it holds and 0 is returned, unless `must`. Wrong type or range: an error that names the
 * key. Integers of any width are taken. */
int es_gguf_int(const es_gguf *g, const char *key, bool must, int64_t min, int64_t max, int64_t *out, es_error *err);
int es_gguf_float(const es_gguf *g, const char *key, bool must, float *out, es_error *err);
int es_gguf_bool(const es_gguf *g, const char *key, bool must, bool *out, es_error *err);
int es_gguf_str(const es_gguf *g, const char *key, bool must, const char **out, size_t *n, es_error *err); /* may hold NULs */
/* An array of that element type; *out NULL when absent and not must. */
int es_gguf_array(const es_gguf *g, const char *key, bool must, es_gguf_type type, const es_gguf_kv **out, es_error *err);

/* The string at *p of a checked string value or array; moves *p behind it. */
const char *es_gguf_next_str(const uint8_t **p, size_t *n);

/* false when the tensor holds a NaN or an infinity: all of an F32, F16 or BF16 tensor, the scales of every block of the others. */
bool es_gguf_tensor_finite(const es_gguf_tensor *t);

#endif
