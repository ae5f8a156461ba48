/* context (internal): what context.c and sample.c share. */
#ifndef ES_CONTEXT_H
#define ES_CONTEXT_H

#include "forward.h"

typedef struct es_candidate {
    float logit;
    int32_t id;
} es_candidate;

struct es_context {
    const es_model *model;
    es_context_options o;
    es_arena arena;
    es_pass pass;
    es_patch patch; /* a copy of the borrowed struct; its arrays are the caller's */
    bool has_patch;
    const es_watch *watch;
    int n_watch;

    int n_ctx, length;
    int32_t *ids;        /* [n_ctx] */
    float *k_all, *v_all; /* [n_layer][n_ctx, n_kv*head_dim] */
    uint8_t *site_mask;

    es_acts acts; /* of the chunk that is being fed, CHUNK rows; k and v point into the cache */
    int *pos;
    float *logits; /* [n_vocab] */

    es_candidate *candidate; /* [n_vocab], sampling's scratch */
};

#endif
