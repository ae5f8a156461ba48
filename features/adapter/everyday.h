/* everyday (internal): ordinary questions, some with a plain answer: what a student samples replies to when it was given no prompts,
 * and neutral chat for measuring a residual's usual shape. */
#ifndef ES_EVERYDAY_H
#define ES_EVERYDAY_H

enum { ES_EVERYDAY = 32, ES_EVERYDAY_ANSWERED = 12 };
typedef struct es_everyday { const char *question, *answer; } es_everyday; /* answer: of the first ES_EVERYDAY_ANSWERED; else NULL */
extern const es_everyday es_everyday_item[ES_EVERYDAY];

#endif
