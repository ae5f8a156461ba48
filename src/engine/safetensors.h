/* safetensors: named arrays in one file. The reader checks everything before any of it is used; the writer makes files that the
 * reference implementation reads. Format: 8 bytes length of the header (little-endian), a JSON header, the data without holes. */
#ifndef ES_SAFETENSORS_H
#define ES_SAFETENSORS_H

#include "base.h"

typedef enum es_tensor_type {
    ES_TENSOR_BOOL, ES_TENSOR_U8, ES_TENSOR_I8, ES_TENSOR_F8_E4M3, ES_TENSOR_F8_E5M2, ES_TENSOR_I16, ES_TENSOR_U16, ES_TENSOR_F16,
    ES_TENSOR_BF16, ES_TENSOR_I32, ES_TENSOR_U32, ES_TENSOR_F32, ES_TENSOR_F64, ES_TENSOR_I64, ES_TENSOR_U64,
} es_tensor_type;
const char *es_tensor_type_name(es_tensor_type t); /* "F32" as the header writes it */

enum { ES_TENSOR_DIMS = 8 };

typedef struct es_tensor { /* borrowed from the file */
    const char *name;
    es_tensor_type type;
    int n_dims;               /* 0: one number */
    size_t dim[ES_TENSOR_DIMS];
    size_t n;                 /* elements: the product of dim */
    const uint8_t *data;      /* little-endian; NOT aligned */
    size_t bytes;
} es_tensor;

typedef struct es_safetensors es_safetensors;

/* Maps the file. ES_ERR_FORMAT names the file and what is wrong with it. */
int es_safetensors_open(es_safetensors **out, const char *path, es_error *err);
/* The same of bytes in memory, borrowed until the free; `what` names them in errors. */
int es_safetensors_parse(es_safetensors **out, const void *bytes, size_t n, const char *what, es_error *err);
void es_safetensors_free(es_safetensors *s);
size_t es_safetensors_count(const es_safetensors *s);
const es_tensor *es_safetensors_at(const es_safetensors *s, size_t i); /* in the order of the data */
const es_tensor *es_safetensors_find(const es_safetensors *s, const char *name); /* NULL: none */
const char *es_safetensors_metadata(const es_safetensors *s, const char *key);   /* "__metadata__"; NULL: none */
json_t *es_safetensors_metadata_all(const es_safetensors *s); /* the object itself, borrowed; NULL: none */

/* The named tensor with exactly these dimensions (n_dims of them), as f32 into out; F32, F16, BF16 and F64 are converted.
 * ES_ERR_MISSING, ES_ERR_FORMAT (the shape or type, with both shapes named). */
int es_safetensors_f32(const es_safetensors *s, const char *name, int n_dims, const size_t *dim, float *out, es_error *err);
/* n elements from element `first` of a tensor of one of those types. false: another type, or out of range. */
bool es_tensor_f32(const es_tensor *t, size_t first, size_t n, float *out);

/* Shards a "*.index.json" names: every name once, in the map's order; caller frees each and the list. A name that is not a plain
 * file name beside the index (a slash, "..", empty) is refused. */
int es_safetensors_shards(char ***out, size_t *n, const char *index_path, es_error *err);

typedef struct es_tensor_spec { /* what to write; data is f32 and is stored as `type`: F32, F16 or BF16 */
    const char *name;
    es_tensor_type type;
    int n_dims;
    size_t dim[ES_TENSOR_DIMS];
    const float *data;
} es_tensor_spec;

/* Appends a whole file to out. metadata: a JSON object of strings, borrowed; may be NULL. */
int es_safetensors_write(es_buf *out, const es_tensor_spec *t, size_t n, json_t *metadata, es_error *err);
/* The same straight into a file, replaced whole or not at all (es_file_write): nothing of it is gathered in memory. */
int es_safetensors_write_file(const char *path, const es_tensor_spec *t, size_t n, json_t *metadata, es_error *err);

#endif
