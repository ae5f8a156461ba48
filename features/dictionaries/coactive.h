/* Which features are active together: Pearson correlation and cosine of activations over tokens, as SAEDashboard has them.
 *
 * Tokens are kept as they come; when they would hold more than the limit of activations, every second one of them (by a hash of its number) is let go,
 * and so are those that follow: what remains is an even sample. The figures are exact over what was kept. */
#ifndef ES_COACTIVE_H
#define ES_COACTIVE_H

#include "dictionaries.h"

typedef struct es_coactive es_coactive;

/* limit: activations kept at most (8 bytes each, and 8 more while es_coactive_top runs); 0: 16 million. */
int es_coactive_open(es_coactive **out, int n_features, size_t limit, es_error *err);
void es_coactive_free(es_coactive *c);
/* One token's active features, each once. token: its number in the text, for the sample. */
int es_coactive_add(es_coactive *c, uint64_t token, const int32_t *feature, const float *value, size_t n, es_error *err);
uint64_t es_coactive_tokens(const es_coactive *c); /* kept */
/* Of each feature the n others with the largest correlation that were active together with it at least twice: feature[F, n] (-1: fewer), best first. */
int es_coactive_top(es_coactive *c, es_pool *p, int n, int32_t *feature, float *pearson, float *cosine, es_error *err);

#endif
