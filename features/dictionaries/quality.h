/* quality: what a dictionary is worth beyond reconstruction. k-sparse probes on labelled texts, feature absorption, nearest decoder neighbours.
 * Definitions: Gurnee et al. 2023 (arXiv 2305.01610), Chanin et al. 2024 (arXiv 2409.14507), SAEBench (arXiv 2503.09532); docs/dictionary.md says
 * where this is smaller than theirs. */
#ifndef ES_QUALITY_H
#define ES_QUALITY_H

#include "dictionaries.h"

/* ---- probes ------------------------------------------------------------------------------------------------------------------------- */

/* Logistic regression of y (0 or 1) on the rows of x [n, d]: the mean over rows of c log(1 + exp(-s z)), z = w x + b, s = 2y - 1, c = n / (2 n_y) so that both
 * classes weigh alike, plus |w|^2 / (2n) on inputs of mean 0 and variance 1 (scikit-learn's C = 1, class_weight "balanced", after a StandardScaler); the
 * bias is free. Convex: the minimum is found by Newton steps, each by conjugate gradients. w [d] and *bias are for x as it came.
 * ES_ERR_USAGE: one of the classes has no row. */
int es_probe_fit(const float *x, const uint8_t *y, size_t n, size_t d, float *w, float *bias, es_error *err);
double es_probe_value(const float *x, const float *w, float bias, size_t d); /* z; above 0: y = 1 */
/* The k features whose mean differs most between the rows row[0..n) with y 1 and those with y 0, by |difference|, into feature[k]. Returns how many:
 * fewer where fewer are ever active; or an error. rows' features are below F. */
int es_probe_choose(const es_sparse *rows, const int *row, const uint8_t *y, int n, int F, int k, int *feature, es_error *err);
void es_probe_gather(const es_sparse *rows, const int *row, int n, const int *feature, int k, float *out); /* out[n, k]: those features of those rows */

/* ---- activations of many short texts ------------------------------------------------------------------------------------------------- */

typedef struct es_pooled { /* a row a text */
    int n;
    size_t d;
    float *x;       /* [n, d] the residual at the dictionary's layer */
    es_sparse acts; /* features, in no order */
} es_pooled;
typedef enum es_pooling { ES_POOL_MEAN, ES_POOL_LAST } es_pooling;
enum { ES_POOL_TOKENS = 128 };
/* text[n]: token ids, cut at ES_POOL_TOKENS. MEAN: over the tokens but the first and the attention sinks (es_norm_limit); LAST: the last token. A text of one
 * token has a row of zeros. Free also after an error. */
int es_pooled_make(es_pooled *out, es_model *m, const es_dictionary *s, const es_ids *text, int n, es_pooling how, int threads, const char *what,
                   const es_progress *progress, es_error *err);
void es_pooled_free(es_pooled *p);

/* ---- concept sets --------------------------------------------------------------------------------------------------------------------- */

typedef struct es_concepts { /* labelled texts; each label is a concept, told from the rest */
    char name[128];
    char **text; int *label; /* [n]; label -1: of no concept */
    uint8_t *test;           /* [n] */
    int n, cap;
    char **label_name; int n_label;
} es_concepts;
void es_concepts_free(es_concepts *c);
/* The i-th of the public sets that DIR/concepts may hold; NULL: there are no more. */
const char *es_concepts_name(int i);
/* One of them; ES_ERR_MISSING where its files are not there. At most `limit` texts (0: all), spread over the labels; files without a split of their own are
 * split 7 to 3. */
int es_concepts_public(es_concepts *out, const char *dir, const char *name, int limit, uint64_t seed, es_error *err);
/* A file of one's own: JSONL of {"text", "label"} (label null: of no concept), with "set" "train" or "test", or without and then split. */
int es_concepts_file(es_concepts *out, const char *path, int limit, uint64_t seed, es_error *err);

enum { ES_PROBE_KS = 3, ES_PROBE_K = 5 };
extern const int es_probe_k[ES_PROBE_KS]; /* 1, 2, 5 */
typedef struct es_concept_probe { /* of one concept: as many texts with it as without, in train and in test */
    int label, train, test;
    int feature[ES_PROBE_K], n_feature; /* chosen by difference of means on train */
    double accuracy[ES_PROBE_KS];       /* on test, of the logistic probe on the first k of them */
    double dense;                       /* of the one on the residual */
} es_concept_probe;
/* Probes for every concept with at least 5 texts of both kinds in train and in test, into out[c->n_label]; *n: how many. Where there are two labels that
 * take in every text, one probe tells them apart. p: the texts' activations, F features. */
int es_concepts_probe(const es_concepts *c, const es_pooled *p, int F, es_concept_probe *out, int *n, es_error *err);

/* ---- absorption --------------------------------------------------------------------------------------------------------------------------- */

enum { ES_ABSORB_MAIN = 10 };
typedef struct es_absorption { /* of one letter */
    char letter;
    int train, test, positives;  /* words; with this letter, in test, that the dense probe knows */
    double dense_f1, sparse_f1;  /* on test: of the dense probe, and of the one on the main features */
    int main[ES_ABSORB_MAIN], n_main; /* 1, and more while each raises the F1 on train by over 0.03 */
    double fraction, full;       /* means over those positives */
    int absorber;                /* the feature that stands for the main ones most often in full absorption; -1: none */
} es_absorption;

/* Absorption of one activation x [d] with features acts row `row`, by the unit direction p [d] of a probe (SAEBench's two scores):
 * x's projection is (x - b_dec) . p, which is what the features have to make up; a feature's is its activation times its decoder row . p. *fraction: 0 where the main features project at least as x does, or the 3 largest
 * projections of others with cosine to p of at least 0.1 come to less than 0.4 of x's; 1 where the main ones project nothing; else the part of those others
 * (no more than the main ones leave of x's) in the two together. *full: no main feature is active, and the feature with the largest projection has a cosine of
 * at least 0.025 and at least 0.4 of x's. *top: that feature. buf [d]. x's projection must be above 0, otherwise both are 0. */
void es_absorption_of(const es_dictionary *s, const float *x, const es_sparse *acts, int row, const float *p, const int *main, int n_main, float *buf,
                      double *fraction, bool *full, int *top);
/* Words as rows of p, letter[i] 0..25 of each and whether it is of the test part. Letters with fewer than 10 words in train or 3 in test are left out.
 * out[26]; *n: how many letters. */
int es_absorption_letters(const es_dictionary *s, const es_pooled *p, const uint8_t *letter, const uint8_t *test, es_absorption *out, int *n, es_error *err);
/* The same of the model's own words: vocabulary entries that are a space and three or more lower-case letters, at most `limit` of them, each at the end of
 * "Spell the word". ES_ERR_MISSING where the vocabulary has fewer than 200. */
int es_absorption_measure(es_model *m, const es_dictionary *s, int limit, uint64_t seed, int threads, es_absorption *out, int *n,
                          const es_progress *progress, es_error *err);

/* ---- decoder neighbours ---------------------------------------------------------------------------------------------------------------------- */

enum { ES_COSINE_BINS = 20 };
typedef struct es_cosines { /* of each looked-at feature's decoder row with its nearest neighbour's */
    int looked_at;          /* features: all, or a sample */
    double mean, median, p95, p99, over_90; /* over_90: share above 0.9 */
    uint32_t histogram[ES_COSINE_BINS];     /* of [0, 1], those below 0 in the first */
} es_cosines;
/* sample: at most so many features, drawn by seed, each against all. Rows of zeros are left out. */
int es_cosines_measure(const es_dictionary *s, int sample, uint64_t seed, int threads, es_cosines *out, const es_progress *progress, es_error *err);

#endif
