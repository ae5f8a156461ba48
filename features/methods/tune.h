/* tune: learning by gradient without the constraint: low-rank updates of a base model, or all weights of a thawed one. What the
 * methods lora, full, self and distil share. Lean: gradients are summed as they come, nothing is kept for each experience but its
 * tokens. One thread at a time. */
#ifndef ES_TUNE_H
#define ES_TUNE_H

#include "method.h"
#include "pack.h"
#include "weights.h"

typedef struct es_tune es_tune;

typedef struct es_tune_options {
    bool weights;                 /* all weights of the model that open was given; sites, layers, rank and alpha are not looked at */
    unsigned sites;               /* mask of 1u << es_site; 0: all seven */
    int first_layer, last_layer;  /* the band; last_layer -1: the last */
    int rank;
    double alpha;                 /* y += alpha / rank * B (A x), as PEFT has it: A from U(-1/sqrt(n_in), 1/sqrt(n_in)), B zero */
    double rate, beta1, beta2, epsilon;
    double decay;                 /* decoupled (AdamW, Loshchilov & Hutter 2019): p -= rate * decay * p. Norms are left out; 0: none */
    double clip;                  /* gradients longer than this are shortened to it; 0: never */
    double beta;                  /* of the pair loss */
    double anchor;                /* weight of mean KL(base || adapted) on anchor texts, added to the loss; 0: none */
    const char *const *anchor_text; int n_anchor; /* NULL: the built-in ones. Borrowed */
    int anchor_batch;             /* texts a step, drawn at random; 0: 2 */
    int max_prompt, max_reply;    /* tokens kept of each */
    int max_tokens;               /* in one pass; 0: as many as some 600 MB of activations hold, at most 1024 */
    size_t memory;                /* bytes it may take; 0: what the machine has available. More is refused with both numbers */
    int threads;
    uint64_t seed;                /* of A, of the order of experiences, of anchors, of samples */
} es_tune_options;
/* weights: Adam over everything at 1e-5. Otherwise rank 32, alpha 32, all sites of all layers at 1e-4. No decay, clip 1. */
es_tune_options es_tune_default(bool weights);
es_tune_options es_method_tune(const es_method_options *o, bool weights); /* with what a method's options say */

/* base: what losses are measured from. own: NULL for low-rank updates; with o->weights the thawed model that is moved. Both borrowed. */
int es_tune_open(es_tune **out, es_model *base, es_model *own, const es_tune_options *o, es_error *err);
void es_tune_free(es_tune *t);
uint64_t es_tune_parameters(const es_tune *t);
size_t es_tune_bytes(const es_tune *t); /* taken now, the model itself not counted */
int es_tune_steps(const es_tune *t);

/* Keeps the experience's tokens and its replies' base log-probabilities. On an error nothing was added. */
int es_tune_add(es_tune *t, const es_experience *e, const volatile bool *cancel, es_error *err);
int es_tune_count(const es_tune *t);
/* A step on the weighted mean of the experiences' losses (es_learner_open's comment; pack.h), `batch` of them in a random order that
 * takes each once an epoch; 0: all. loss: without the anchor term. kl: on the anchors drawn, before the step (0 without anchors). guard: "clip" or NULL. A loss or a
 * gradient that is not a number is ES_ERR_LIMIT. On any error, a cancel included, parameters and moments are as before. */
int es_tune_step(es_tune *t, int batch, es_step_report *out, const volatile bool *cancel, es_error *err);

/* A loss of one's own on sequences of one's own (not kept). Losses, slopes and gradients are summed as they are given, so a mean
 * brings its own division. The sum over everything is the step's loss. */
typedef struct es_tune_loss {
    es_sequence *const *seq; /* the last n_reply tokens of each count; .now is set to their mean log-probability before the step.
                                .resid may be NULL: it is made where it is needed */
    int n;
    /* slope[s][i]: dLoss/dlogprob of reply token i (0 .. n_reply-1) of sequence s; slope * logprob counts as loss. NULL: none. */
    const float *const *slope;
    /* Called once per reply token, in any order: p[n_vocab], the softmax of its logits; adds dLoss/dlogits to dl[n_vocab] and returns
     * the token's loss. NULL: none. Slower than slope: a call a token. */
    double (*token)(void *user, int s, int i, const float *p, float *dl);
    void *user;
} es_tune_loss;
/* The anchor term, where there is one, is added as in es_tune_step. margin in the report is 0. */
int es_tune_step_on(es_tune *t, const es_tune_loss *loss, es_step_report *out, const volatile bool *cancel, es_error *err);
/* .now of each: mean log-probability of its reply tokens, adapted or (base) not. */
int es_tune_score(es_tune *t, es_sequence *const *seq, int n, bool base, const volatile bool *cancel, es_error *err);

typedef struct es_asked { /* a conversation that a reply is wanted to; borrowed */
    const es_message *message;
    int n_message;
} es_asked;
/* Replies of at most max_new tokens to n conversations, drawn together at temperature 1 (nothing cut, no penalty) from the adapted model, as
 * sequences whose n_reply tokens are the drawn ones, the end of turn included when it came. The prompts' last max_prompt tokens are kept. */
int es_tune_sample(es_tune *t, const es_asked *asked, int n, int max_new, es_sequence *out, const volatile bool *cancel, es_error *err);

/* Low-rank updates only: the patch follows the parameters, borrowed; and a copy of its own for es_variant (release set). */
int es_tune_view(es_tune *t, es_variant *out, es_error *err);
int es_tune_copy(es_tune *t, es_variant *out, es_error *err);

/* Mean KL(base || adapted) over the tokens of all anchor texts, whether o->anchor asks for them or not. */
int es_tune_anchor_kl(es_tune *t, double *kl, const volatile bool *cancel, es_error *err);

/* Mean gain (pack.h) over the experiences, where the parameters stand. */
int es_tune_gain(es_tune *t, double *gain, const volatile bool *cancel, es_error *err);

/* On a card the parameters, their gradient and Adam's moments stay there from step to step, where it has the room. Whoever reads a thawed model's numbers in host memory
 * calls settle first: they come down, with the moments, if they are not there already; values and moment, view and copy of low-rank updates do so themselves.
 * A card that is lost takes the steps since with it: one call fails with ES_ERR_DEVICE, and learning goes on from the last copy on the processor. */
int es_tune_settle(es_tune *t, es_error *err);

/* For checkpoints: Adam's first (0) and second (1) moment, in es_tune_values' order, and the steps behind them. */
float *es_tune_moment(es_tune *t, int which);
void es_tune_set_steps(es_tune *t, int steps);

/* The loss where it stands, over all experiences and without anchors, and its gradient by the parameters ([es_tune_parameters], in
 * es_tune_values' order, may be NULL): for checks by finite differences. */
int es_tune_gradient(es_tune *t, double *loss, float *gradient, es_error *err);
float *es_tune_values(es_tune *t); /* the parameters themselves: low-rank: per layer and site A then B */

#endif
