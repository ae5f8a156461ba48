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

#endif
