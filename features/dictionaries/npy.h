/* npy: numpy's arrays in files (format 1.0 to 3.0), alone and as members of an npz. Nothing in them is ever run: object arrays are refused. */
#ifndef ES_NPY_H
#define ES_NPY_H

#include "safetensors.h"
#include "zip.h"

typedef struct es_npy {
    es_tensor_type type;
    int n_dims;
    size_t dim[ES_TENSOR_DIMS];
    bool fortran;        /* the first index runs fastest */
    size_t n, bytes;     /* numbers, and their bytes */
    size_t header;       /* bytes before them */
} es_npy;

enum { ES_NPY_HEADER_MAX = 1 << 16 };

/* Reads the header at bytes[0..have) of a file of `size` bytes. ES_ERR_FORMAT, `what` and the fault named: no npy, a header over 64 KB or over the file, a
 * big-endian, object, structured or unknown type, a shape whose bytes are not what follows. A type of two raw bytes (V2) is bfloat16: ml_dtypes saves it so. */
int es_npy_parse(es_npy *out, const uint8_t *bytes, size_t have, size_t size, const char *what, es_error *err);
/* Appends the header of a C-ordered array: F32, F16, F64, I32 or BF16 (as V2). */
void es_npy_header(es_buf *out, es_tensor_type type, int n_dims, const size_t *dim);

#endif
