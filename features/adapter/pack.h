/* pack (internal): experiences as token sequences, and batches of them. */
#ifndef ES_PACK_H
#define ES_PACK_H

#include "learner.h"

typedef struct es_sequence { /* a prompt and one reply; input n tokens, of which the last n_reply predict the reply */
    int n, n_reply;
    int32_t *ids, *target; /* [n] each, one block */
    float *resid;          /* [n, d] the residual below the adapter, or NULL */
    double base, now;      /* mean log-probability of the reply's tokens: base model, last pass */
} es_sequence;

/* The conversation in the model's template, its last max_prompt tokens; the reply's first max_reply, with the end of turn when it was
 * not cut. Loss counts the reply only. */
int es_sequence_make(es_sequence *out, const es_model *m, const es_message *message, int n_message, const char *reply, int max_prompt,
                     int max_reply, es_error *err);
/* Raw text: every token but the first is predicted. */
int es_sequence_text(es_sequence *out, const es_model *m, const char *text, int max_tokens, es_error *err);
/* A prompt and a reply that are tokens already. */
int es_sequence_ids(es_sequence *out, const int32_t *prompt, int n_prompt, const int32_t *reply, int n_reply, es_error *err);
void es_sequence_free(es_sequence *s);
size_t es_sequence_bytes(const es_sequence *s, int d);

typedef struct es_pack { /* sequences laid end to end, as es_trainer takes them */
    int cap, d, n, n_seq;
    int32_t *ids, *target;
    uint8_t *wanted;
    int *start, *slot;
    es_sequence **seq;
    float *logprob, *dlogprob;
    float *resid;         /* [cap, d] */
    es_arena arena;
} es_pack;
int es_pack_open(es_pack *p, int cap, int d, es_error *err);
void es_pack_close(es_pack *p);
void es_pack_clear(es_pack *p);
bool es_pack_add(es_pack *p, es_sequence *s, int slot); /* false: no room; copies s->resid when there is one */
es_batch es_pack_batch(const es_pack *p);
void es_pack_means(es_pack *p); /* logprob -> seq[i]->now */

/* The residual after `layer` of the base model into s->resid (allocated). */
int es_sequence_residual(es_sequence *s, es_trainer *t, int layer, int d, const volatile bool *cancel, es_error *err);

/* Neutral prose, facts, arithmetic, code: what a KL is measured on when nobody gave texts. */
const char *const *es_anchor_texts(int *n);

/* The learner's loss of one experience (features.h) from its replies' means; a NULL sequence is an absent reply. dpref, drej: its
 * derivatives by the means. */
double es_experience_loss(const es_sequence *preferred, const es_sequence *rejected, double beta, double *dpref, double *drej);
/* What the loss wants to raise: d margin, d m(+) or -d m(-). */
double es_experience_gain(const es_sequence *preferred, const es_sequence *rejected);

#endif
