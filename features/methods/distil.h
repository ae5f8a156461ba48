/* distil: a teacher's opinion of what a student wrote: the same model with a preference or experiences in its context, or another model. */
#ifndef ES_DISTIL_H
#define ES_DISTIL_H

#include "target.h"

typedef struct es_teacher es_teacher;

typedef struct es_teacher_options {
    es_model *model;        /* NULL: the student's base model. Another one must have the same tokenizer: ES_ERR_MISMATCH */
    const char *preference; /* in its context; NULL: experiences as worked turns, where it is the base model */
    int context_tokens;     /* of worked turns; 0: as es_worked_make has it */
    int max_prompt, max_reply; /* of experiences, where the advantage is measured */
    int masked;             /* < 0: ES_DISTIL_MASKED */
    int threads;
} es_teacher_options;
/* Borrows the models and the preference. */
int es_teacher_open(es_teacher **out, es_model *base, const es_teacher_options *o, es_error *err);
void es_teacher_free(es_teacher *t);
/* Scores the reply of s, a student's sequence on this conversation, with the teacher's context before the conversation. shown: experiences
 * for worked turns, without those of this very conversation; ignored where there is a preference or a model of its own. */
int es_teacher_score(es_teacher *t, const es_message *message, int n_message, const es_sequence *s, es_distil_loss loss,
                     const es_experience *shown, int n_shown, es_target *out, const volatile bool *cancel, es_error *err);

typedef struct es_advantage {
    int replies, pairs;                   /* that it was measured on; a set of at most 16 of the experiences */
    double preferred, preferred_error;    /* change of the mean log-probability a token of preferred replies, teacher from base; standard error */
    double margin, margin_error;          /* the same of preferred minus rejected */
    bool any;                             /* by the margin, or by the preferred replies where there are no pairs or the teacher is another model: the
                                             change is over its standard error, and there was something to measure it on */
    char reason[200];
} es_advantage;
/* Experiences are held out of the context that is used on them, so this needs two of them where they are the context. */
int es_teacher_advantage(es_teacher *t, const es_experience *e, int n, es_advantage *out, const volatile bool *cancel, es_error *err);
/* ES_ERR_REFUSED with the number when there is none. */
int es_advantage_require(const es_advantage *a, es_error *err);

#endif
