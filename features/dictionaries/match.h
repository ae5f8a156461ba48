/* Which features of one dictionary are active where another's are: so that labels outlive the dictionary they were written for. */
#ifndef ES_MATCH_H
#define ES_MATCH_H

#include "dictionaries.h"

typedef struct es_match {
    int from, to;      /* features; to: -1 where nothing of the other dictionary was ever active together with it */
    int32_t together;  /* tokens on which both are active */
    float pearson;     /* of the two activations over all tokens read */
    float cosine;      /* of the two decoder rows; NAN where they are of other widths */
    bool mutual;       /* none of the asked features correlates more with `to` */
} es_match;

/* Of each of the n features of `from` the one of `to` whose activations correlate most with its own, over texts: files as es_harvest takes them, each
 * document's first 256 tokens, max_tokens in all (0: all). The first token of each and the attention sinks count nowhere. The dictionaries may be of
 * different layers of the model. feature[n], each named once (ES_ERR_USAGE); out[n] is the caller's.
 * Memory: 12 bytes times n times the features of `to`; ES_ERR_MEMORY above 2 GB. */
int es_dictionary_match(es_model *m, const es_dictionary *from, const es_dictionary *to, const char *const *file, int n_file, uint64_t max_tokens, int threads,
                        const int *feature, int n, es_match *out, const es_progress *progress, es_error *err);

#endif
