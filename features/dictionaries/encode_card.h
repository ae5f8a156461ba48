/* encode_card (internal): encoding on a card. The encoder goes there once, at the first batch that is worth the way; rows go up, active features come down.
 * Whatever goes wrong there, the processor encodes instead: for good when the card was lost or its memory does not do, which the person is told
 * (es_cuda_tell). Single rows of a small dictionary are not worth the way: some twenty kernels and two waits take a tenth of a millisecond. */
#ifndef ES_ENCODE_CARD_H
#define ES_ENCODE_CARD_H

#include "dictionaries.h"

typedef struct es_encode_card es_encode_card;

/* s, borrowed, is what it encodes for; of o what concerns the card. Nothing is taken there yet. Any thread may then encode. */
int es_encode_card_open(es_encode_card **out, const es_dictionary *s, const es_dictionary_options *o, es_error *err);
void es_encode_card_free(es_encode_card *c);
/* Rows [0, T) of x into out, whose start[0] is 0. false: the processor is to do it, and what out->start holds then means nothing. c NULL: false. */
bool es_encode_card_does(es_encode_card *c, es_pool *p, const float *x, int T, es_sparse *out);

/* What it uses of dictionary.c. */
/* Encoder rows [first, first + n), a gate's or a rescaled topk's factor multiplied in (into bias too); threshold: at least 0. */
void es_dictionary_encoder_rows(const es_dictionary *s, int first, int n, float *out, float *bias, float *threshold);
bool es_dictionary_changes_input(const es_dictionary *s);
/* Rows as the encoder sees them: x itself, or, in not NULL, made there. */
const float *es_dictionary_input(const es_dictionary *s, const float *x, int n, float *in);
int es_sparse_room(es_sparse *s, size_t rows, size_t n, es_error *err);

#endif
