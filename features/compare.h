/* compare: methods of adaptation on the same pairs, each along its whole path, so that their harm can be read at equal effect.
 * What `espalier eval adapt` prints. Every finished run is a line in a work file; a second call goes on where the first stopped. */
#ifndef ES_COMPARE_H
#define ES_COMPARE_H

#include "features.h"

typedef enum es_method { ES_METHOD_FEATURES, ES_METHOD_LORA, ES_METHOD_RANDOM, ES_METHOD_BIAS, ES_N_METHODS } es_method;
const char *es_compare_method_name(es_method m); /* features: lora within the basis; lora: the same matrices, free; random: a random basis; bias */

enum { ES_COMPARE_SIZES = 6, ES_COMPARE_RATES = 5 };

typedef struct es_compare_options {
    const char *task;                    /* names the rows */
    const es_experiences *pairs;         /* both replies known; split by seed into held-out, dev and a pool to learn from */
    const char *const *neutral; int n_neutral; /* raw documents */
    int neutral_tokens;                  /* of them, in all */
    int size[ES_COMPARE_SIZES], n_size;  /* experiences to learn from */
    int orders, held_out, dev;           /* order k learns from its own draw of the pool */
    bool method[ES_N_METHODS];
    double rate[ES_N_METHODS][ES_COMPARE_RATES]; /* tried on dev at the first size, order 0; ends with a 0. One: taken as it is */
    double garbage;                      /* share of the learning pairs whose replies are swapped */
    int basis_size;                      /* features by the gradient of the learning pairs */
    int basis_pairs;                     /* > 0: by that of so many other pairs of the pool instead */
    int rank, first_layer, last_layer;
    int steps, batch, every;             /* a point of the path every so many steps */
    int max_prompt, max_reply, threads;
    uint64_t seed;
    const char *work;                    /* JSONL, made when it is not there */
} es_compare_options;
es_compare_options es_compare_default(const es_dictionary *s, const es_model *m);

/* a may be NULL (bases are then drawn from all features, and bounds are wide). */
int es_compare_run(es_model *m, const es_dictionary *s, const es_atlas *a, const es_compare_options *o, const es_progress *progress, es_error *err);

/* Reads a work file: *rows, an array with one object a run {"task","method","experiences","garbage","order","rate","parameters","seconds",
 * "margin","kl","dnll","margin_per_sqrt_kl" (at the path's best point: largest margin), "equal_margin","kl_at_equal","dnll_at_equal"}. equal_margin: the
 * largest that features, lora and random all reach on that task, size and order; null where a path does not reach it. */
int es_compare_rows(const char *work, json_t **rows, es_error *err);
/* The same as a Markdown table, mean and range over orders. */
int es_compare_text(json_t *rows, es_buf *out, es_error *err);

#endif
