/* sparse: what a dictionary does with activations, as ops that a CUDA table has too. A dictionary of F features keeps few of the
 * T x F pre-activations z = x enc^T + bias: the matrix is never in memory, the kept entries are a list.
 *
 * Pointers are to the table's memory (kernels.h). Numbers fit 32 bits: T, F < 2^31, entries < 2^31. */
#ifndef ES_SPARSE_H
#define ES_SPARSE_H

#include "kernels.h"

typedef struct es_entries { /* the caller's arrays; cap entries */
    int cap;
    int32_t *token, *feature; /* [cap] ordered by token, then feature */
    float *value;             /* [cap] */
    int32_t *token_start;     /* [T + 1] */
    int32_t *count;           /* [2] how many there are, and how many there were to keep: more than cap means that the list is
                                 of no use and wants more room */
    int32_t *by_feature;      /* [cap] places in the list, ordered by feature, then token: filled by index */
    int32_t *feature_start;   /* [F + 1] */
} es_entries;

typedef enum es_keep {
    ES_KEEP_ABOVE, /* z > threshold[f] (JumpReLU, Rajamanoharan et al. 2024); NULL: z > 0 */
    ES_KEEP_TOKEN, /* each token's k largest that are above 0 (TopK, Gao et al. 2024), k <= ES_TOP_MAX */
    ES_KEEP_BATCH, /* the T*k largest of all that are above 0 (BatchTopK, Bussmann et al. 2024) */
} es_keep;

typedef struct es_encoder {
    es_keep keep;
    int F, d, k;
    const float *enc;       /* [F, d] */
    const float *bias;      /* [F]; NULL: none */
    const float *threshold; /* [F], ES_KEEP_ABOVE only */
} es_encoder;

enum { ES_PREFIX_MAX = 16 };
typedef struct es_prefixes { /* groups of features, one after the other: group g is those below end[g] that are in none before. Rising, the last F */
    int n;
    int32_t end[ES_PREFIX_MAX];
} es_prefixes;

typedef struct es_sparse_kernels {
    const char *name;
    /* The entries of x[T, d]. Of equal pre-activations the one of the earlier token, then the lower feature, is kept. A NaN is never. */
    void (*encode)(es_pool *p, const es_encoder *e, const float *x, int T, const es_entries *out);
    /* by_feature and feature_start of a list. */
    void (*index)(es_pool *p, const es_entries *l, int T, int F);
    /* out[T, d] = bias[d] (NULL: none) + sum over the token's entries of value * dec[feature]. */
    void (*decode)(es_pool *p, const es_entries *l, const float *dec, const float *bias, int T, int d, float *out);
    /* grad[i] = scale * rows[token i] . dec[feature i]: the gradient of value i when scale * rows is that of what decode gave. */
    void (*value_back)(es_pool *p, const es_entries *l, const float *rows, const float *dec, int T, int d, float scale, float *grad);
    /* dw[f] += scale * sum over the feature's entries of weight[i] * rows[token i], and, where dbias is not NULL, dbias[f] += scale * sum
     * weight[i]; rows NULL: dbias only. Needs index. */
    void (*feature_back)(es_pool *p, const es_entries *l, const float *rows, const float *weight, int F, int d, float scale, float *dw, float *dbias);
    /* Of nested dictionaries (Matryoshka, Bussmann et al. 2025), each group of features of a token is a token of its own, t n + g: what l's token [cap] and
     * token_start [T n + 1] then are. All other arrays of l, and index, stay what they are. */
    void (*split)(es_pool *p, const es_entries *l, const es_prefixes *by, int T, int32_t *token, int32_t *token_start);
    /* rows[T n, d], in: what each group decodes to; out: the errors of all prefixes that the group is in, summed, the error of prefix h being
     * x[t] - groups 0 .. h. last[T, d]: the error of all; sum[T, d]: the sum over all prefixes. */
    void (*prefix_errors)(es_pool *p, const float *x, const es_prefixes *by, int T, int d, float *rows, float *last, float *sum);
    /* Rows of w[n, d]: g -= (g . w) w, which keeps a step along unit rows; and w /= |w| (a row of zeros stays). */
    void (*project_rows)(es_pool *p, const float *w, float *g, int n, int d);
    void (*unit_rows)(es_pool *p, float *w, int n, int d);
} es_sparse_kernels;

const es_sparse_kernels *es_sparse_scalar(void); /* on host memory: the reference */
const es_sparse_kernels *es_cuda_sparse(void);   /* on a pool of es_cuda_pool_open */

#endif
