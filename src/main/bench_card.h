/* bench_card: the engine's work on a card, beside what the card can do. It needs the engine and nothing else, so that tests/gpu.sh can build it. */
#ifndef ES_MAIN_BENCH_CARD_H
#define ES_MAIN_BENCH_CARD_H

#include "engine.h"

typedef struct bench_card_row {
    const char *name, *what, *unit; /* unit: of rate */
    double rate, share;             /* share: of the limit named by `of`; NAN: of none */
    const char *of;                 /* "copy", "bf16 product", "decoding alone" */
} bench_card_row;

/* Models of random weights, decoding, prompts, harvest, a step of adaptation, and decoding beside it. seconds: begins nothing new after them.
 * small: shapes that a test can wait for. row is called for each figure as it comes, first for the two limits, which are measured too. */
int bench_card(es_cuda *card, double seconds, bool small, void (*row)(void *user, const bench_card_row *r), void *user, es_error *err);

/* ---- pieces of it, for comparisons ---- */

/* Tokens a second of one sequence, and of a prompt of n tokens (the best of three); m has its card. */
int bench_card_decode(const es_model *m, int tokens, double *rate, es_error *err);
int bench_card_prompt(const es_model *m, int n, double *rate, es_error *err);

/* Steps of learning on a batch of sequences, of which the last quarter is learned from: forward and backward in bfloat16, Adam on the card. */
typedef struct bench_card_steps bench_card_steps;
typedef enum bench_card_learning {
    BENCH_CONSTRAINED, /* as the adapter with inputs of its own: B of rank-32 updates of o and down above the middle layer, from cached residuals */
    BENCH_LORA,        /* A and B of rank-32 updates of all seven matrices of all layers */
} bench_card_learning;
int bench_card_steps_open(bench_card_steps **out, const es_model *m, bench_card_learning what, int sequences, int length, es_error *err);
int bench_card_step(bench_card_steps *s, double *seconds, es_error *err);
void bench_card_steps_close(bench_card_steps *s);

#endif
