/* target: what a teacher says of a reply, and the losses that bring a student nearer to it. Knows nothing of what in the student
 * moves: es_distil_token gives dLoss/dlogits of a token, whatever runs the passes takes it from there. */
#ifndef ES_TARGET_H
#define ES_TARGET_H

#include "pack.h"

/* p the student's distribution of a token, q the teacher's. On the student's own samples (on-policy). */
typedef enum es_distil_loss {
    ES_DISTIL_SAMPLED = 1, /* reverse KL by the sampled token x alone: policy gradient with advantage -(log p(x) - log q(x)), discount 0
                              (Lu & Thinking Machines Lab 2025, "On-Policy Distillation") */
    ES_DISTIL_TOP,         /* reverse KL sum P log(P/Q) over the teacher's 20 likeliest tokens and one bucket for the rest */
    ES_DISTIL_FULL,        /* forward KL sum q log(q/p) over the vocabulary (context distillation, Snell et al. 2022, Askell et al. 2021) */
} es_distil_loss;
const char *es_distil_name(es_distil_loss k); /* "sampled", "top-20", "forward" */
bool es_distil_named(const char *name, es_distil_loss *out);

enum { ES_DISTIL_TOP_N = 20, ES_DISTIL_MASKED = 4 };

typedef struct es_target { /* what a teacher says about the n_reply tokens of one sequence */
    es_distil_loss loss;
    int n, n_vocab;
    int masked;         /* the first reply tokens carry no loss: with a preference in its context a teacher likes to begin by saying so */
    float *sampled;     /* [n] log q of the token that is there */
    int32_t *top;       /* [n, top_n] the teacher's likeliest, falling; TOP only */
    float *top_logprob; /* [n, top_n] */
    int top_n;          /* ES_DISTIL_TOP_N, or the vocabulary when that is smaller */
    float *full;        /* [n, n_vocab] log q; FULL only */
} es_target;
void es_target_free(es_target *t);
int es_target_counted(const es_target *t); /* tokens that carry loss */
size_t es_target_bytes(const es_target *t);
/* From the teacher's logits [n, n_vocab], row i those of reply token i; token[n] the replies' tokens. */
int es_target_make(es_target *out, es_distil_loss loss, int n, int n_vocab, const int32_t *token, const float *logits, int masked, es_error *err);
/* The same row by row, where the logits are never all there at once: opened, then each row 0 .. n - 1. logits [n_vocab]. */
int es_target_open(es_target *t, es_distil_loss loss, int n, int n_vocab, int masked, es_error *err);
void es_target_row(es_target *t, int i, int32_t token, const float *logits);
/* Loss of reply token i, which is `token`, for the student's softmax p[n_vocab]; times scale. Adds scale dLoss/dlogits to dl[n_vocab]
 * (may be NULL). SAMPLED returns log p - log q, whose mean estimates the reverse KL; the coefficient of its gradient counts as constant. */
double es_distil_token(const es_target *t, int i, int32_t token, const float *p, double scale, float *dl);

/* An experience of another kind for the constrained learner: a reply that the student drew, and what a teacher says of it. Takes both over where it
 * succeeds. Its loss is the mean over the tokens that count; what it gains, for margins and the gate, is by how much that loss fell from the base
 * model's. SAMPLED counts as (log p - log q)^2 / 2, which has the same gradient on these tokens and is never below zero. */
int es_learner_add_target(es_learner *l, es_sequence *reply, es_target *target, double weight, const char *source, const volatile bool *cancel, es_error *err);

#endif
