/* method: every way of adapting to experiences behind one interface, so that a chat can switch between them and an evaluation can put
 * them side by side on the same experiences. What each is: method_*.c, and docs/adapting.md.
 *
 * A method takes experiences (es_method_add), learns in steps (es_method_step), and shows what now answers as an es_variant: a model,
 * a patch on it, messages before the conversation. One thread at a time; the base model is shared and never changed. */
#ifndef ES_METHOD_H
#define ES_METHOD_H

#include "learner.h"

typedef enum es_method_kind {
    ES_METHOD_NONE,     /* the base model */
    ES_METHOD_CONTEXT,  /* the experiences, or the stated preference, in the prompt */
    ES_METHOD_TITANS,   /* a memory module with surprise, momentum and forgetting */
    ES_METHOD_SELF,     /* optimisation on the model's own trajectories */
    ES_METHOD_LORA,     /* low-rank updates on every linear map (rank 32 unless said otherwise) */
    ES_METHOD_FULL,     /* all weights */
    ES_METHOD_DISTIL,   /* on-policy distillation from a teacher into low-rank updates on every linear map */
    ES_METHOD_FEATURES, /* the constrained adapter */
    ES_METHOD_RANDOM,   /* ablation: the constrained adapter within as many random features */
    ES_METHOD_FREE,     /* ablation: its matrices without the constraint */
    ES_METHOD_BIAS,     /* ablation: its form bias */
    ES_N_METHODS
} es_method_kind;
const char *es_method_name(es_method_kind k);           /* "none", "context", ... */
const char *es_method_about(es_method_kind k);          /* one line for help and lists */
int es_method_by_name(const char *name);                /* -1 when there is none of that name */

/* What answers. Borrowed from the method until its next add, step or free, unless made by es_method_copy. */
typedef struct es_variant {
    es_model *model;           /* the base model, or the method's own */
    es_patch patch;
    int lowest_layer;          /* the residual below this layer is the base model's: it may be cached. 0: run from the ids */
    const es_message *prefix;  /* put before every conversation (a system message, or worked turns) */
    int n_prefix;
    int context_tokens;        /* of every prompt that the prefix takes */
    void *owned;               /* of es_method_copy */
    void (*release)(void *owned);
} es_variant;
void es_variant_clear(es_variant *v); /* frees what it owns */
/* The prefix and a conversation as one. A system message on both sides becomes one, the prefix's after a blank line; one on either
 * side comes first. *out: n_prefix + n messages at most, the caller's to free() in one; its strings are borrowed or within it. */
int es_variant_conversation(const es_variant *v, const es_message *message, int n, es_message **out, int *n_out, es_error *err);

typedef struct es_method_options {
    const es_dictionary *s;    /* features and its ablations; others may do without */
    const es_atlas *a;         /* may be NULL */
    const es_basis *basis;     /* features; NULL: chosen by the gradient of the experiences at the first step */
    int basis_size;
    es_form form;              /* features, random: of the adapter; white is for lora */
    double rate;               /* learning rate; 0: the method's own default */
    int rank;                  /* low-rank methods; 0: the method's own default */
    int batch;                 /* experiences a step; 0: all */
    double beta;               /* of the pair loss; 0: 5 */
    double anchor;             /* weight of the mean KL on anchor texts added to the loss, for the methods that learn by gradient; 0: none */
    const char *const *anchor_text; int n_anchor; /* neutral texts; NULL: built-in ones */
    double replay;             /* share of a step's weight in [0,1) that goes to the KL on neutral text: for features and its ablations es_learner_options.replay, on
                                  `replay_text`; for the others that learn by gradient as much added to anchor. 0: none */
    const es_neutral_text *replay_text; int n_replay; /* NULL: built-in ones */
    bool white;                /* features, random, free: fixed, white input projections (es_inputs), and the metric step; rate is then
                                  the length of its first step as a share of the median |h| */
    const es_inputs *inputs;   /* with white: those; NULL: made of the program's own few texts at the first step, which are enough for small ranks only */
    bool spare;                /* with inputs: es_learner_spare */
    bool natural;              /* with inputs: es_learner_natural */
    const es_direction *direction; int n_direction; /* with white: learned beforehand (es_direction_learn), of the same kind, basis and rank */
    double prior;              /* their weight (es_learner_prior); 0: 10 */
    bool one_sided;            /* never below zero on any of them */
    bool weighting;            /* features, random, free: experiences count by what is thought of them (es_learner_decision). Others learn from
                                  experiences whose weights are given: es_experiences_weigh */
    bool shrink;               /* with white: what the experiences disagree about does not move (es_learner_options) */
    int max_prompt, max_reply; /* tokens kept; 0: the learner's defaults */
    int max_new;               /* self, distil: tokens of a sampled trajectory; 0: 48 */
    int context_tokens;        /* context, distil: of worked turns, at most; 0: a third of the model's context, at most 1,024 */
    const char *preference;    /* context, distil: the stated preference, or NULL */
    int distil_loss;           /* distil: an es_distil_loss (distil.h); 0: top-20 */
    es_model *teacher;         /* distil: NULL: the base model with the preference, or the experiences, in its context */
    const char *checkpoints;   /* full: a folder for checkpoints, which open resumes from; what answers is then the last one that
                                  passed the gate. NULL: none, and what has been learned answers at once */
    int checkpoint_every;      /* full: experiences that steps took in, each time, between checkpoints; 0: 32 */
    double checkpoint_hours;   /* full: or this long after the last, when there was a step; 0: 1 */
    double kappa;              /* full: the gate's largest mean KL on anchors; 0: the learner's default */
    size_t memory;             /* full and the low-rank methods: bytes they may take; 0: what the machine has available */
    int threads;
    uint64_t seed;
} es_method_options;
es_method_options es_method_default(es_method_kind k);

/* An adapter with white inputs that has taken one step on all the experiences: the direction they ask for, to first order. k: features,
 * random or free. */
int es_direction_learn(es_adapter **out, es_method_kind k, es_model *base, const es_method_options *o, const es_experiences *e, const volatile bool *cancel,
                       es_error *err);

/* Weighs experiences as features would under o (its directions, its basis), for methods that have no gradient of each: their weights are
 * multiplied by the decisions', which out[e->n] (may be NULL) gets. One pass over them. */
int es_experiences_weigh(es_experiences *e, es_model *base, const es_method_options *o, es_decision *out, const volatile bool *cancel, es_error *err);

typedef struct es_method es_method;

/* Borrows the model and everything in o until it is freed. */
int es_method_open(es_method **out, es_method_kind k, es_model *base, const es_method_options *o, es_error *err);
void es_method_free(es_method *m);
es_method_kind es_method_get_kind(const es_method *m);
/* Copies the experience. Both or one of the replies, as the learner takes them. */
int es_method_add(es_method *m, const es_experience *e, const volatile bool *cancel, es_error *err);
/* A step; for methods that do not learn in steps, guard is "learned" and nothing moves. On an error what answers is as before.
 * ES_ERR_REFUSED: the method will not learn from these experiences, and the text has the number that decided (distil). */
int es_method_step(es_method *m, es_step_report *out, const volatile bool *cancel, es_error *err);
int es_method_view(es_method *m, es_variant *out, es_error *err);
int es_method_copy(es_method *m, es_variant *out, es_error *err); /* on its own: for the thread that speaks; es_variant_clear frees it */
/* What would answer without these experiences (in es_method_add's order), from the stored parts of each (how: as es_learner_without has it);
 * es_variant_clear frees it.
 * ES_ERR_USAGE where a method keeps no parts: learn again without them. */
int es_method_without(es_method *m, const int *experience, int n, es_undo how, es_variant *out, const volatile bool *cancel, es_error *err);
bool es_method_keeps_parts(es_method_kind k);
uint64_t es_method_parameters(const es_method *m); /* numbers learned */
size_t es_method_bytes(const es_method *m);        /* memory it holds now */
const es_decision *es_method_decision(const es_method *m, int experience); /* what it made of one, in es_method_add's order; NULL where it does not weigh */
const char *es_method_note(const es_method *m);    /* what it last decided and why (the gate's verdict), one line, borrowed until the next call; "" */

#endif
