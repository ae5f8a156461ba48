/* A matrix of activations that somebody saved, [tokens, width], as rows in f32. */
#include "arrays.h"
#include "dictionaries.h"
#include "npy.h"

#include <stdlib.h>

struct es_activations {
    es_map map;
    es_matrix m;
};

int es_activations_open(es_activations **out, const char *path, size_t *rows, int *d, es_error *err)
{
    es_npy h;
    *out = NULL;
    es_activations *a = es_calloc(1, sizeof *a);
    if (!a)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", path);
    int rc = es_map_open(&a->map, path, err);
    if (!rc)
        rc = es_npy_parse(&h, a->map.data, a->map.size, a->map.size, path, err);
    if (!rc && h.n_dims != 2)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: has %d dimensions; a matrix of activations has two: [tokens, width]", path, h.n_dims);
    if (!rc && h.type != ES_TENSOR_F32 && h.type != ES_TENSOR_F16 && h.type != ES_TENSOR_F64 && h.type != ES_TENSOR_BF16)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: holds %s; F16, F32, F64 and BF16 are read", path, es_tensor_type_name(h.type));
    if (!rc && (h.dim[1] < 1 || h.dim[1] > 1 << 16))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: activations of width %zu make no sense", path, h.dim[1]);
    if (rc) {
        es_activations_free(a);
        return rc;
    }
    a->m = (es_matrix){.type = h.type, .data = a->map.data + h.header, .rows = h.dim[0], .cols = h.dim[1], .by_row = !h.fortran, .mapped = true, .scale = 1};
    *rows = h.dim[0];
    *d = (int)h.dim[1];
    *out = a;
    return ES_OK;
}

void es_activations_read(const es_activations *a, size_t first, size_t n, float *out)
{
    es_matrix_rows(&a->m, first, n, out);
}

void es_activations_free(es_activations *a)
{
    if (!a)
        return;
    es_map_close(&a->map);
    free(a);
}
