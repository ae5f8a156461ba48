/* worked (internal): experiences and a stated preference as messages before a conversation. */
#ifndef ES_WORKED_H
#define ES_WORKED_H

#include "learner.h"

typedef struct es_worked {
    es_message *message; /* n; strings are within the same block. free() it */
    int n;
    int shown;  /* experiences among them */
    int tokens; /* that they add to a rendered conversation */
} es_worked;

/* The preference (may be NULL) as the system message; then, of the experiences in order, as many worked turns (its conversation without
 * system messages, the preferred reply) as fit in `budget` tokens (0: a third of the model's context, at most 1,024), newest first to be
 * taken and last to be read. One without a preferred reply, of weight 0, or with the conversation of a newer one is left out. */
int es_worked_make(es_worked *out, const es_model *m, const char *preference, const es_experience *e, int n, int budget, es_error *err);
void es_worked_free(es_worked *w);

#endif
