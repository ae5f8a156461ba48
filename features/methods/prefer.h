/* prefer: a stated preference becomes experiences. */
#ifndef ES_PREFER_H
#define ES_PREFER_H

#include "distil.h"

typedef struct es_prefer_options {
    const es_experiences *own; /* the person's: their questions are asked first, and the teacher's advantage is measured on their replies; may be NULL */
    int pairs;                 /* at most; 0: 6 */
    int max_new;               /* tokens of a reply; 0: 96 */
    int n_ctx, threads;
} es_prefer_options;

/* The model answers questions (of own, then ordinary ones) without and, with the preference as a system message, with it, at temperature 0; where the
 * replies differ they become a pair in out, source "prefer: ...". This is context distillation (Askell et al. 2021) through pairs instead of
 * through token distributions: what a learner of pairs learns best from. advantage: of the model with the preference in its context over itself
 * without, on own's replies (es_teacher_advantage); ES_ERR_REFUSED with its number when there is none, or when no reply changes. */
int es_prefer_pairs(es_model *m, const char *preference, const es_prefer_options *o, es_experiences *out, es_advantage *advantage, const es_progress *progress,
                    es_error *err);
/* The preference that an experience came from, within its source; NULL: it came from something else. */
const char *es_prefer_of(const es_experience *e);

/* Another reply to this conversation than `not` (neither begins with the other), as text, into out: at most max_new tokens, drawn as `how` says, at a temperature of at least 0.7, from
 * the model with a (NULL: without) in it. A few tries; ES_ERR_MISSING when it always says the same. */
int es_reply_again(es_model *m, es_context *c, es_adapter *a, const es_message *message, int n_message, const char *not, int max_new, const es_sampling *how,
                   es_rng *rng, es_buf *out, const volatile bool *cancel, es_error *err);

/* The same experiences by the token losses instead: on-policy context distillation. */
typedef struct es_onpolicy es_onpolicy;
/* loss: an es_distil_loss. max_new 0: 96. */
int es_onpolicy_open(es_onpolicy **out, es_model *m, int loss, int max_new, int n_ctx, int threads, uint64_t seed, es_error *err);
void es_onpolicy_free(es_onpolicy *p);
/* Draws replies to those of e that a preference was stated for, together, which is faster; es_onpolicy_add then takes the one of its experience.
 * For additions that follow before a changes; the list stays where it is until then. */
int es_onpolicy_ahead(es_onpolicy *p, es_adapter *a, const es_experiences *e, const volatile bool *cancel, es_error *err);
/* Draws a reply to e's conversation from a (as it stands, temperature 1, the preference not in its context), lets the base model with the
 * preference score it, and adds that to l in e's place: what e itself holds as replies is not used. */
int es_onpolicy_add(es_onpolicy *p, es_learner *l, es_adapter *a, const es_experience *e, const volatile bool *cancel, es_error *err);

#endif
