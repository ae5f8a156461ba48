/* learner (internal): what its files share. learner_open.c: memory, anchors; learner_white.c: fixed inputs; learner_items.c: experiences come
 * in; learner_undo.c: and go; learner.c: gradients, guards, the step, the books. */
#ifndef ES_LEARNER_INTERNAL_H
#define ES_LEARNER_INTERNAL_H

#include "adapter.h"
#include "linear.h"
#include "pack.h"
#include "target.h"

enum { LEARNER_SLOTS = 16, LEARNER_NORMS = 1 << 16 }; /* experiences in a batch; norms kept for their median */

typedef struct es_item { /* an experience */
    es_sequence seq[2];     /* preferred, rejected; n 0: absent */
    es_target target;       /* what a teacher says of seq[0], the student's own; n 0: an experience with replies */
    double from, loss;      /* of a target: base model, last pass */
    double weight;
    bool held;
    float *grad, *momentum; /* [n_learned] of this step's gradient; Adam's, of this experience alone. One block; NULL when held */
    float *moved;           /* [n_learned] its part of where the parameters stand: what es_learner_without takes away */
    float *wish;            /* [K] what a plain gradient step of this experience alone would do to the coefficients */
    bool has_wish;
    double *influence;      /* [K] */
    char *source;           /* NULL: nobody said */
    es_decision decision;   /* made at the first step that took it: later ones see what was learned from it */
    bool decided;
} es_item;

typedef struct es_natural { /* the metric's F, of each layer from the adapter's first on (learner_metric.c); NULLs: F = I */
    float *fisher, *inverse; /* [n_layer][d, d]; (D F D^T + lambda I)^-1, at[layer] [rows, rows], without a basis F^-1 */
    size_t *at;
    double *size;            /* [n_layer] the mean of F's diagonal over that of all layers */
    float *swap;             /* [d or rows, rank] */
    size_t bytes;
} es_natural;

typedef struct es_prior { /* directions learned beforehand, as step preconditioner (learner_prior.c) */
    int n;
    double weight;
    bool one_sided;
    char (*name)[64];
    float *unit, *dual;     /* [n][n_learned]: of length 1 in the metric G; G unit */
    double *gram, *u, *v;   /* [n, n] Cholesky of <unit_i, dual_j>; [n] scratch */
    float *keep;            /* [n] shrinkage of each; NULL: none */
} es_prior;

typedef struct es_replay { /* neutral text with the base model's own targets (learner_replay.c) */
    es_sequence *seq;
    int n, at;              /* texts; the one that comes next */
    es_pack pack;           /* those of this step */
    float *p;               /* [pack.cap, n_vocab] base probabilities of its tokens */
    double *entropy, *mass; /* [pack.cap] sum p log p; sum p, which rounding leaves near 1 */
    double weight, kl;      /* of the mean KL in the loss; of the last gradient */
    float *grad, *momentum; /* [n_learned] of this step, weighted; Adam's */
} es_replay;

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
    bool gains;              /* a pass is about gains, not losses: es_learner_gains */
    float *logits;           /* [n_vocab] */

    es_item **item;
    es_readings *readings;      /* borrowed, or NULL */
    int n, cap, n_held;
    int *order, n_order, at; /* learning items in this epoch's order (batch > 0) */
    int *chosen, n_chosen;   /* of this step */
    es_rng rng;

    float *old, *delta, *total; /* [n_learned] before the step; the step; the gradient */
    float *second, *rate;       /* [n_learned] Adam's second moment; this step's rate of each parameter; or NULL */
    float *kl_at;               /* [n_learned] where the adapter stood when its KL was kl_there; NULL without the guard */
    double kl_there;            /* NAN: not measured */
    double *rest, *old_coefficient, *coefficient_sum; /* [K] */
    float *new_coefficient, *dc; /* [K], [d] */
    int updates;                /* Adam's t */
    double longest;             /* metric: the longest |D u| so far */
    double *cholesky, *u;       /* metric: of D D^T + lambda I, [K,K] of each place one after another; [K] */
    float *inverse, *swap;      /* metric, lora: (D D^T + lambda I)^-1 the same; [K, rank] */
    float *slot_a, *slot_b;     /* gradients as the engine gives them: per entry [LEARNER_SLOTS][rank, n_in], [LEARNER_SLOTS][d, rank]; bias: slot_b [n_place][LEARNER_SLOTS][d]; gain, map: slot_b [LEARNER_SLOTS][n_learned] */
    float **grad_a, **grad_b;   /* [n_entry] into them */
    float *grad_v[ES_PARTS_MAX];
    size_t slot_a_size, slot_b_size; /* floats in all */
    double *mean_sum;           /* [n_mean] sums of inputs over reply tokens */
    double mean_tokens;
    float *site_input;          /* [cap, largest n_in] */
    float *norms;               /* |h| at each place's layer, of reply tokens [n_place][LEARNER_NORMS] */
    int n_norms;                /* of each */
    double median[ES_PARTS_MAX]; /* of them; a step's length is a share of the first, the lowest layer's */
    es_natural natural;
    es_prior prior;
    float *shield[2], *shield_step[2]; /* [n_learned] the gradient of neutral documents' and replies' loss; G^-1 that; NULL: none */
    int shield_on;              /* bits: which of the two this step would raise, and is kept from */
    double shield_gram[3];      /* <shield_i, shield_step_j>: 00, 01, 11 */
    es_replay replay;
    float *keep;                /* [K or d] shrinkage of each feature's (or dimension's) part of this step */
    es_arena arena;
};

static inline bool es_learner_is_adam(const es_learner *l)
{
    return l->o.optimiser == ES_OPTIMISER_ADAM;
}

static inline float *es_learner_norms(const es_learner *l, int place)
{
    return l->norms + (size_t)place * LEARNER_NORMS;
}

static inline es_sequence *es_item_reply(es_item *e, int i) /* NULL: absent */
{
    return e->seq[i].n ? &e->seq[i] : NULL;
}

void es_item_free(es_item *e);
/* The loss of an experience where the last pass left it, and what it wants to raise (for a target: how far its loss fell). slope: as es_experience_loss. */
double es_item_loss(const es_learner *l, es_item *e, double slope[2]);
double es_item_gain(es_item *e);
/* The mean gain of the n items in which[] (none of a teacher's), by their weights; with backward each one's share of its gradient, with the sign turned, in item->grad. */
int es_learner_gains(es_learner *l, const int *which, int n, bool backward, double *gain, const volatile bool *cancel, es_error *err);
/* A target's loss of reply token i for the student's p, and dLoss/dlogits into dl (may be NULL), a mean over the tokens that count. The sampled loss
 * is (log p - log q)^2 / 2, which has the gradient of es_distil_token's: no estimate that goes below zero. */
double es_item_token(const es_item *e, int i, const float *p, double scale, float *dl);
/* e->loss from the last forward, whose row `first` is the first reply token. */
int es_item_score(es_learner *l, es_item *e, int first, es_error *err);
/* Mean KL(base || adapted) over the anchors' tokens; 0 without the guard. */
int es_learner_anchors_kl(es_learner *l, double *kl, const volatile bool *cancel, es_error *err);

/* sum a b, in short sums: floats inside, doubles outside. */
double es_learner_dot(const float *a, const float *b, size_t n);
/* Backward of the last forward of a pack under the patch, into the slots of its sequences; and a slot's gradient in the parameters' own shape,
 * out[n_learned]. dlogits, user: es_trainer_backward. */
int es_learner_backward(es_learner *l, const es_pack *p, const es_patch *patch, int n_slot, void (*dlogits)(void *user, int token, const float *p, float *dl),
                        void *user, const volatile bool *cancel, es_error *err);
void es_learner_slot_gradient(es_learner *l, int slot, float *out);

/* Replay; all of them do nothing where it is off. draw: the texts of the next step. gradient: at where the adapter stands, replay.kl and (backward)
 * replay.grad = weight dKL. */
int es_replay_open(es_learner *l, es_error *err);
void es_replay_free(es_replay *r);
size_t es_replay_bytes(const es_learner *l);
int es_replay_draw(es_learner *l, const volatile bool *cancel, es_error *err);
int es_replay_gradient(es_learner *l, bool backward, const volatile bool *cancel, es_error *err);

/* out = P in, P = S G^-1 + w U S' (U^T G U)^-1 U^T: G the metric on every column of M, U the prior's directions, S and S' the
 * shrinkage. in, out: [n_learned], possibly one where length is NULL; else *length is out's in the metric, were nothing shrunk. */
void es_learner_precondition(es_learner *l, const float *in, float *out, double *length);
/* The metric of a place's directions with F = I: its Cholesky factor and, for lora, its inverse. */
int es_metric_open(es_learner *l, const es_adapter_place *p, es_error *err);
/* out = G^-1 in, [n_learned] each, possibly one. Without a basis G = F. learner_metric.c */
void es_learner_inverse_metric(es_learner *l, const float *in, float *out);
/* out[rows, rank] = D F b for b[d, rank] at an entry with rows. */
void es_learner_metric_rows(es_learner *l, const es_adapter_entry *e, const float *b, float *out);
void es_natural_free(es_natural *n);
/* Of a layer, [d, d]; NULL: none. */
const float *es_inputs_fisher(const es_inputs *x, int layer);
/* out = G in, [n_learned] each. */
int es_learner_metric(es_learner *l, const float *in, float *out, es_error *err);
/* <G^-1 g, g>, the squared length of a gradient in the metric. scratch: [n_learned]. */
double es_learner_metric_square(es_learner *l, const float *g, float *scratch);
/* Where parameters (or a change of them) stand along the prior's directions: out[prior.n], lengths in the metric. */
void es_prior_read(es_learner *l, const float *param, double *out);
/* Takes back what a step from `from` would do against one-sided directions. */
void es_prior_clamp(es_learner *l, const float *from, float *delta);
void es_prior_free(es_prior *p);

/* Decides about the n items in which[], whose gradients are in grad; then multiplies this step's gradients by what was decided of theirs,
 * and sets what is shrunk. scratch: [n_learned]. learner_weigh.c */
int es_learner_weigh(es_learner *l, const int *which, int n, float *scratch, es_error *err);

/* d(mean loss a token)/dB of neutral text of a kind (0 documents, 1 replies), where the adapter stands: out[n_learned], unconstrained with fixed
 * inputs only. learner_white.c */
int es_learner_neutral_gradient(es_learner *l, const es_neutral_text *text, int n, int kind, float *out, const volatile bool *cancel, es_error *err);
/* Takes out of a step (descending: the step is -x) what to first order raises neutral text's loss. learner_prior.c */
void es_learner_shield_open(es_learner *l); /* shield is set: the rest follows */
void es_learner_shield(es_learner *l, float *x, bool decide);

#endif
