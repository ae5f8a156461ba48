/* Writing an atlas from cards, whoever makes them: what es_atlas_card gives back of the file is what came in, activations in 255ths of their window's largest. */
#ifndef ES_ATLAS_WRITE_H
#define ES_ATLAS_WRITE_H

#include "dictionaries.h"

typedef struct es_atlas_source {
    int n_features, n_vocab, layer;
    int examples, window;   /* most of a card, tokens of the longest: at most ES_ATLAS_MAX_EXAMPLES and ES_ATLAS_MAX_WINDOW (atlas_file.h) */
    uint64_t tokens;        /* that were read for it */
    const char *dictionary_hash, *model_hash; /* SHA-256 in hex */
    /* Fills feature's card, once each, in rising order; what it points to is read before the next call. Random places: the highest interval first. */
    int (*card)(void *user, int feature, es_feature_card *out, es_error *err);
    void *user;
} es_atlas_source;

/* ES_ERR_FORMAT where a card holds what the file cannot; whole or not at all. */
int es_atlas_write(const char *path, const es_atlas_source *s, es_error *err);

#endif
