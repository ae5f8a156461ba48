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
 * without, on own's replies (es_teacher_advantage); ES_ERR_USAGE with its number when there is none, or when no reply changes. */
int es_prefer_pairs(es_model *m, const char *preference, const es_prefer_options *o, es_experiences *out, es_advantage *advantage, const es_progress *progress,
                    es_error *err);

#endif
