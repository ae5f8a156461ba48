/* What a language model's answer says: a label, judgements, activations; and the figures made of them. Internal to autolabel. */
#ifndef ES_AUTOLABEL_SCORES_H
#define ES_AUTOLABEL_SCORES_H

#include "base.h"

enum { ES_AUTO_LABEL_MAX = 512 }; /* bytes, as Neuronpedia takes them */

/* The label in an answer: what stands behind the last "LABEL:", else its last line that is not empty; on one line, without the quotes, stars and full stop
 * around it, cut at a whole character. Appended to out (at least a NUL); false: there is none. */
bool es_answer_label(const char *answer, es_buf *out);
/* n judgements: the last list in brackets that holds n 0s and 1s and nothing else. false: there is none. */
bool es_answer_judgements(const char *answer, int n, bool *out);
/* Lines "NUMBER: ACTIVATION", 1 to n, in an answer given token by token (es_answer.logprobs): out[n] the expected activation over the digits that could have
 * stood there, 0 to 10. false: a line is missing, or a token has no alternatives. */
bool es_answer_activations(const json_t *logprobs, int n, double *out);

typedef struct es_tally { int hit, miss, right, wrong; } es_tally; /* active and said so, active and not; silent and said so, silent and not */
void es_tally_add(es_tally *t, bool active, bool said);
double es_tally_balanced(const es_tally *t); /* mean of the shares of both that were said right; NAN: one of them is empty */
double es_tally_f1(const es_tally *t);       /* NAN: nothing was active */
/* Pearson's; NAN: under two, or one of them does not vary. */
double es_correlation(const double *x, const double *y, int n);

#endif
