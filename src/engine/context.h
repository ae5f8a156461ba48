/* context (internal): what context.c and sample.c share. */
#ifndef ES_CONTEXT_H
#define ES_CONTEXT_H

#include "forward.h"

typedef struct es_candidate {
    float logit;
    int32_t id;
} es_candidate;

/* One of the sequences that a context holds. */
typedef struct es_slot {
    int length;
    int32_t *ids;   /* [n_ctx] */
    void *k, *v;    /* [n_layer][n_ctx, n_kv*head_dim]; half precision, f32 where all is exact. These and logits_on in the table's memory */
    float *logits;  /* [n_vocab] */
    float *logits_on; /* the same where the table's memory is; logits itself on the processor */
    bool behind;    /* logits have not come down yet */
} es_slot;

struct es_context {
    const es_model *model;
    es_context_options o;
    es_arena arena; /* host memory: all, or with a card what is not the ops' */
    es_arena on;    /* of the card */
    es_arena before; /* host memory from before the card was lost: ids that callers may still look at */
    es_pass pass;
    es_patch patch; /* a copy of the borrowed struct; its arrays are the caller's */
    bool has_patch;
    const es_watch *watch;
    int n_watch;
    const es_slot *recorded; /* with a card: the sequence whose single token's pass is recorded as it is now; NULL: none */
    bool no_record;          /* the card would not have it */

    int n_ctx, n_seq;
    int chunk;     /* rows that go through at once */
    es_slot *slot; /* [n_seq] */
    es_slot *now;  /* the one that calls act on */
    uint8_t *site_mask;

    es_acts acts; /* of the chunk that is being fed */
    int *pos, *start; /* [chunk], [n_seq + 1] */
    int *pos_on;      /* pos, where ops see it */
    es_cache cache;   /* of the sequences in a pass */
    float *step_logits; /* [n_seq, n_vocab]; NULL with one sequence */

    es_candidate *candidate; /* [n_vocab], sampling's scratch */
    int32_t *top_on, *top;   /* with a card: [2, ES_TOP_MAX] ids and logits of the best, there and here */
};

#endif
