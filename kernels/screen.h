/* Screening: of a product that is far larger than what is wanted of it, only what passes a limit. The product itself is never in memory. */
#ifndef ES_SCREEN_H
#define ES_SCREEN_H

#include <stdlib.h>

#include "kernels.h"

typedef struct es_hit { int32_t row, column; float value; } es_hit;
typedef struct es_hits { es_hit *e; size_t n, cap; bool failed; } es_hits; /* owned; failed: there was no memory for all */

static inline void es_hits_add(es_hits *l, int row, int column, float value)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 65536;
        es_hit *p = (es_hit *)realloc(l->e, cap * sizeof *p);
        if (!p) {
            l->failed = true;
            return;
        }
        l->e = p;
        l->cap = cap;
    }
    l->e[l->n++] = (es_hit){row, column, value};
}

/* Entries of x[T, K] w[N, K]^T that are above limit[column] [N], both sides rounded to bfloat16, added to hits[part] of each of the pool's threads. Those
 * of one row come by rising column within a part, and parts hold rising columns. false, and nothing done: the processor has no such products, or K
 * is odd or too large. */
bool es_screen(es_pool *p, const float *w, int N, int K, const float *x, int T, const float *limit, es_hits *hits);

#endif
