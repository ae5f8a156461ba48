/* Named arrays of a file, whatever kind of file it is: safetensors, npz, or what torch.save wrote of a state_dict. Big arrays stay where they lie in the
 * mapped file (deflated ones are unpacked into memory); rows of matrices are converted to f32 when they are asked for. */
#ifndef ES_ARRAYS_H
#define ES_ARRAYS_H

#include "safetensors.h"
#include "zip.h"

typedef struct es_array { /* borrowed from its es_arrays */
    const char *name;
    es_tensor_type type;
    int n_dims;
    size_t dim[ES_TENSOR_DIMS], n, bytes;
    bool fortran;        /* the first index runs fastest */
    bool mapped;         /* data lies in the file's mapping, not in memory of its own */
    const uint8_t *data; /* little-endian, perhaps unaligned */
} es_array;

typedef struct es_arrays {
    char what[1024]; /* the file, for messages */
    es_array *item;
    size_t n, cap;
    es_safetensors *tensors; /* what the items point into, owned */
    es_zip *zip;
    void **owned;
    size_t n_owned, cap_owned;
} es_arrays;

/* Each opens *a (zeroed by the caller) from a file; close it also after an error. Everything is checked before any of it is used (safetensors.h, zip.h,
 * npy.h, pickle.h say what is refused). */
int es_arrays_safetensors(es_arrays *a, const char *path, es_error *err);
int es_arrays_npz(es_arrays *a, const char *path, es_error *err);
int es_arrays_torch(es_arrays *a, const char *path, es_error *err);
void es_arrays_close(es_arrays *a);
const es_array *es_arrays_find(const es_arrays *a, const char *name); /* NULL: none */
/* For the openers: adds one, or a block of memory to be freed with them. */
int es_arrays_add(es_arrays *a, const es_array *x, es_error *err);
int es_arrays_own(es_arrays *a, void *memory, es_error *err); /* freed at once when it fails */

/* ---- matrices ---- */

typedef struct es_matrix { /* [rows, cols]; data NULL: there is none */
    es_tensor_type type;   /* F32, F16, BF16 or F64 */
    const uint8_t *data;
    size_t rows, cols;
    bool by_row;           /* a row's numbers lie together; else a column's do */
    bool mapped;
    float scale;           /* what its numbers are multiplied by when they are read */
} es_matrix;
/* The array `name` as [rows, cols]; transposed: it is stored as [cols, rows]. ES_ERR_MISSING, ES_ERR_FORMAT with both shapes. */
int es_arrays_matrix(const es_arrays *a, const char *name, bool transposed, size_t rows, size_t cols, es_matrix *out, es_error *err);
/* Rows [first, first + n) as f32, out[n, cols]. */
void es_matrix_rows(const es_matrix *m, size_t first, size_t n, float *out);
/* Of the same rows the columns [c0, c1), out[c1 - c0, n]: for !by_row, where each lies together. */
void es_matrix_columns(const es_matrix *m, size_t first, size_t n, size_t c0, size_t c1, float *out);
/* The numbers themselves where they can be used as they lie: F32, aligned, scale 1; else NULL. */
const float *es_matrix_f32(const es_matrix *m);
/* Gives the pages that were read back to the file's cache: they count no longer as this process's memory. */
void es_matrix_release(const es_matrix *m);
void es_matrix_release_lines(const es_matrix *m, size_t first, size_t n); /* of some rows, or columns where those lie together */
/* The type in which a matrix is written so that nothing is lost; F64 becomes F32, which is all that is ever used of it. */
es_tensor_type es_matrix_type(const es_matrix *m);
size_t es_matrix_bytes(const es_matrix *m, es_tensor_type type);
/* Puts the whole, as `type`, row after row or column after column. Same type and order, scale 1: the very bytes. */
int es_matrix_put(const es_matrix *m, es_tensor_type type, bool by_row, const es_put *out, es_error *err);

/* ---- vectors ---- */

typedef struct es_numbers { /* f32 in memory, owned; type: as it was stored, and is written again. v NULL: there are none */
    float *v;
    size_t n;
    es_tensor_type type;
} es_numbers;
/* The array `name` of n numbers; a single one stands for all when `spread`. Not finite ones are ES_ERR_FORMAT. */
int es_arrays_numbers(const es_arrays *a, const char *name, size_t n, bool spread, es_numbers *out, es_error *err);
int es_numbers_new(es_numbers *out, size_t n, float value, es_error *err);
int es_numbers_put(const es_numbers *v, es_tensor_type type, const es_put *out, es_error *err);
/* A single whole number. false: there is none of that name, or it is no whole number. */
bool es_arrays_integer(const es_arrays *a, const char *name, long long *out);

#endif
