/* A map of a dictionary: each feature a point in the plane, near those whose decoder rows point the same way.
 *
 * The way of LargeVis (Tang et al. 2016, arXiv 1602.00370) and UMAP (McInnes et al. 2018, arXiv 1802.03426): a graph of nearest neighbours by cosine; its
 * weights as UMAP's (exp(-(d - rho) / sigma) with the sum log2 k, d = 1 - cosine, made symmetric by a + b - ab); a start from the rows' two principal
 * components; then steps along the gradient of UMAP's cross-entropy with the kernel 1 / (1 + A r^2), A = 1.577, five negative samples a step, the rate
 * falling to zero. Up to 16,384 features the neighbours are exact; above, they are the best of six trees of random halvings (leaves of at most 512
 * features, all pairs in each) and of two rounds over neighbours' neighbours.
 *
 * The same rows, options and build give the same map, however many threads. */
#ifndef ES_LAYOUT_H
#define ES_LAYOUT_H

#include "dictionaries.h"

typedef struct es_layout_options {
    int neighbours; /* of each feature, 2 to 64 (default 15) */
    int epochs;     /* 0: 500 up to 10,000 features, 200 above */
    uint64_t seed;
    int threads;
} es_layout_options;
es_layout_options es_layout_default(void);

/* Points xy[n, 2] of rows[n, d], which become unit vectors in place (rows of zeros stay). ES_ERR_MEMORY, ES_ERR_CANCELLED, ES_ERR_USAGE (n < 1, d < 1). */
int es_layout_rows(float *rows, int n, int d, const es_layout_options *o, float *xy, const es_progress *progress, es_error *err);
/* The same of a dictionary's decoder rows, [F, 2]. Needs 4 F d bytes and some; refused with both numbers where that is not there. */
int es_layout_make(const es_dictionary *s, const es_layout_options *o, float *xy, const es_progress *progress, es_error *err);

/* A map as a file, little-endian: es_layout_header (layout.c: magic, version, features, options, the dictionary's hash, CRC-32 of the points), then
 * f32 [F, 2]. Reading refuses another dictionary's (ES_ERR_MISMATCH) and what is damaged (ES_ERR_FORMAT). */
int es_layout_write(const char *path, const es_dictionary *s, const es_layout_options *o, const float *xy, es_error *err);
int es_layout_read(const char *path, const es_dictionary *s, const es_layout_options *o, float *xy, es_error *err);
/* The map kept in a folder under the dictionary's hash; made, and kept there, where there is none or it was made with other options. */
int es_layout_kept(const char *folder, const es_dictionary *s, const es_layout_options *o, float *xy, const es_progress *progress, es_error *err);
int es_layout_again(const char *folder, const es_dictionary *s, const es_layout_options *o, float *xy, const es_progress *progress, es_error *err); /* made in any case */

/* The k nearest rows of each by cosine, best first: id[n, k] (-1 where there are fewer), cosine[n, k]. rows as above, unit already. For tests. */
int es_layout_neighbours(const float *rows, int n, int d, int k, const es_layout_options *o, int *id, float *cosine, const es_progress *progress, es_error *err);

#endif
