/* Which features fire on a text, and which tell two sets of texts apart. */
#ifndef ES_FIRES_H
#define ES_FIRES_H

#include "dictionaries.h"

typedef struct es_firing es_firing; /* a model and a dictionary, ready to read texts; one thread at a time */

enum { ES_FIRING_TOKENS = 1024 }; /* of a text that are read */
int es_firing_open(es_firing **out, es_model *m, const es_dictionary *s, int threads, es_error *err); /* both outlive it */
void es_firing_free(es_firing *f);
/* Reads a text's first ES_FIRING_TOKENS tokens. The first token's residual is unlike all others and is left out where there are more; lead: a token that
 * begins texts (else one that ends them) is put in front where the model wants none, so that none of the text's own is left out. */
int es_firing_read(es_firing *f, const char *text, size_t n, bool lead, const volatile bool *cancel, es_error *err);
/* Of the text last read, borrowed: its tokens, and the active features of each; the first `*skip` tokens do not count. */
const es_ids *es_firing_ids(const es_firing *f);
const es_sparse *es_firing_acts(const es_firing *f, int *skip);

typedef struct es_fire {
    int feature, token, times; /* token: where it is strongest, in es_firing_ids; times: tokens on which it is active */
    float max, mean;           /* mean over all tokens that count */
    float surprise;            /* bits, see below; NAN without an atlas */
} es_fire;
typedef enum es_fire_order { ES_FIRE_MAX, ES_FIRE_TOKEN, ES_FIRE_SURPRISE } es_fire_order;
/* The features that fire on the text last read, ordered: by falling maximum; by token, and there by activation; or by falling surprise. *out is the
 * caller's to free.
 * Surprise: -log2 of the chance that at least one of that many tokens of usual text reaches this maximum, 1 - (1 - q)^n, where q is the density times the
 * share of active tokens in the atlas' histogram that reach it (within a bin evenly), and at least that of half a token of all that the atlas has read. */
int es_firing_list(const es_firing *f, es_atlas *a, es_fire_order order, es_fire **out, int *n, es_error *err);
float es_surprise(const es_feature_card *c, uint64_t atlas_tokens, float max, int n);

/* score[F]: the difference of a feature's mean activation on the texts of a and of b, in units of its standard deviation over texts (the root of the two
 * sets' mean variance, plus 0.02 of the largest so that rare features do not look certain); positive: more in a. */
int es_contrast(es_firing *f, char *const *a, int n_a, char *const *b, int n_b, float *score, const es_progress *progress, es_error *err);

/* Texts of a file, appended: the "text" of each line of a .jsonl; of another file each line, or (lines false) the whole. limit: at most so many in all; 0:
 * all. ES_ERR_FORMAT when there is none. */
typedef struct es_texts { char **text; int n, cap, limit; } es_texts;
int es_texts_read(es_texts *t, const char *path, bool lines, es_error *err);
void es_texts_free(es_texts *t);

#endif
