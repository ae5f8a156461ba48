/* What the files of kernels/ share and nobody else sees (the op test aside). */
#ifndef ES_KERNELS_INTERNAL_H
#define ES_KERNELS_INTERNAL_H

#include "kernels.h"

/* Scratch of one part of a pool: fixed, so that no op allocates and none can fail. Each op cuts its tiles to fit. */
enum { ES_SCRATCH = 2 << 20 };
/* 64-byte aligned, ES_SCRATCH bytes, uninitialised. Only part `part` of the running job may touch it; the caller may read it
 * after es_pool_run has returned. */
void *es_pool_scratch(es_pool *p, int part);

static inline size_t es_row_bytes(es_type type, int n)
{
    const es_type_info *t = es_type_get((int)type);
    return (size_t)n / (size_t)t->block * (size_t)t->bytes;
}

/* [*from, *to): part's share of n things, cut at multiples of `unit`. */
static inline void es_share(int n, int unit, int part, int parts, int *from, int *to)
{
    int64_t units = (n + (int64_t)unit - 1) / unit;
    int64_t a = units * part / parts * unit, b = units * (part + 1) / parts * unit;
    *from = (int)(a < n ? a : n);
    *to = (int)(b < n ? b : n);
}

#endif
