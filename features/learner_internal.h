/* learner (internal): what its files share. learner_open.c: memory, anchors; learner_white.c: fixed inputs; learner_items.c: experiences come
 * in; learner.c: gradients, guards, the step, the books. */
#ifndef ES_LEARNER_INTERNAL_H
#define ES_LEARNER_INTERNAL_H

#include "adapter.h"
#include "linear.h"
#include "pack.h"

enum { LEARNER_SLOTS = 16, LEARNER_NORMS = 1 << 16 }; /* experiences in a batch; norms kept for their median */

typedef struct es_item { /* an experience */
    es_sequence seq[2];     /* preferred, rejected; n 0: absent */
    double weight;
    bool held;
    float *grad, *momentum; /* [n_learned] of this step's gradient; Adam's, of this experience alone. One block; NULL when held */
    float *wish;            /* [K] what a plain gradient step of this experience alone would do to the coefficients */
    bool has_wish;
    double *influence;      /* [K] */
} es_item;

struct es_learner {
    es_model *m;
    es_adapter *a;
    es_learner_options o;
    const es_kernels *k;
    es_trainer *trainer;
    es_pack pack, anchors;
    es_sequence *anchor;
    int n_anchor;
    float *anchor_p;         /* [anchors.n, n_vocab] base probabilities */
    double *anchor_entropy, *anchor_mass; /* [anchors.n] sum p log p; sum p, which rounding leaves near 1 */
    float *logits;           /* [n_vocab] */

    es_item **item;
    int n, cap, n_held;
    int *order, n_order, at; /* learning items in this epoch's order (batch > 0) */
    int *chosen, n_chosen;   /* of this step */
    es_rng rng;

    float *old, *delta, *total; /* [n_learned] before the step; the step; the gradient */
    float *second, *rate;       /* [n_learned] Adam's second moment; this step's rate of each parameter; or NULL */
    double *rest, *old_coefficient, *coefficient_sum; /* [K] */
    float *new_coefficient, *dc; /* [K], [d] */
    int updates;                /* Adam's t */
    double longest;             /* metric: the longest |D u| so far */
    double *cholesky, *u;       /* metric: of D D^T + lambda I [K,K]; [K] */
    float *inverse, *swap;      /* metric, lora: (D D^T + lambda I)^-1 [K,K]; [K, rank] */
    float *slot_a, *slot_b;     /* gradients as the engine gives them: per entry [LEARNER_SLOTS][rank, n_in], [LEARNER_SLOTS][d, rank]; bias: slot_b [LEARNER_SLOTS][d] */
    float **grad_a, **grad_b;   /* [n_entry] into them */
    float *grad_v[1];
    size_t slot_a_size, slot_b_size; /* floats in all */
    double *mean_sum;           /* [n_mean] sums of inputs over reply tokens */
    double mean_tokens;
    float *site_input;          /* [cap, largest n_in] */
    float *norms;               /* |h| at the dictionary's layer, of reply tokens */
    int n_norms;
    double median;
    es_arena arena;
};

static inline bool es_learner_is_adam(const es_learner *l)
{
    return l->o.optimiser == ES_OPTIMISER_ADAM;
}

static inline es_sequence *es_item_reply(es_item *e, int i) /* NULL: absent */
{
    return e->seq[i].n ? &e->seq[i] : NULL;
}

void es_item_free(es_item *e);
/* Mean KL(base || adapted) over the anchors' tokens; 0 without the guard. */
int es_learner_anchors_kl(es_learner *l, double *kl, const volatile bool *cancel, es_error *err);

#endif
