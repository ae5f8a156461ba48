/* Row operations of dictionaries and their training: rows are contiguous f32, any length, any alignment. The widest variant the
 * processor has is picked once. */
#ifndef ES_VECTOR_H
#define ES_VECTOR_H

#include <stddef.h>
#include <stdint.h>

typedef struct es_vector_ops {
    const char *name;
    float (*dot)(const float *a, const float *b, size_t n);
    void (*axpy)(float *y, float a, const float *x, size_t n); /* y += a x */
    /* y += s sum_i a[p] rows[index[p]], p = at[i], or i where at is NULL; rows of n. Four at a time: y is read and written less often. */
    void (*axpys)(float *y, const float *a, float s, const float *rows, const int32_t *index, const size_t *at, size_t n_rows, size_t n);
    /* One Adam step (Kingma & Ba 2015) on n parameters: m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, w -= rate m / (sqrt(v) + eps);
     * the bias corrections are in rate and eps. */
    void (*adam)(float *w, const float *g, float *m, float *v, size_t n, float b1, float b2, float rate, float eps);
} es_vector_ops;

const es_vector_ops *es_vector(void);

#endif
