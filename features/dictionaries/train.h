/* train (internal): the state of a training, shared by train.c (the run, and steps on the processor) and train_card.c (steps on a card). */
#ifndef ES_TRAIN_H
#define ES_TRAIN_H

#include "dictionary.h"
#include "harvest.h"

enum { TILE = 512, MAX_THREADS = 256, SAMPLE = 8192 };

typedef struct kept { int32_t token, feature; float value; } kept;

typedef struct kept_list { kept *e; size_t n, cap; bool failed; } kept_list;

/* Kept entries ordered by token, with what the feature pass needs. */
typedef struct entries {
    size_t n, cap;
    int32_t *token, *feature;
    float *value, *grad;  /* grad: dLoss/dvalue */
    size_t *by_feature;   /* [n]: places ordered by feature */
    size_t *token_start;  /* [B + 1] */
    size_t *feature_start; /* [F + 1] into by_feature */
} entries;

typedef struct training {
    es_dictionary_training o;
    es_harvest_reader h;
    es_pool *pool;
    size_t d, F, B, n_row;
    uint64_t fresh_from; /* from this place on come ... */
    size_t fresh;        /* ... the last `fresh` rows, once each, before all rows again: the harvest has grown since the checkpoint */
    float scale;  /* what inputs are multiplied by */
    /* parameters and Adam's moments */
    float *enc, *dec, *b_enc, *b_dec;
    float *enc_m, *enc_v, *dec_m, *dec_v, *b_enc_m, *b_enc_v, *b_dec_m, *b_dec_v;
    float *age;   /* [F] tokens since the feature was last kept */
    double threshold;
    uint64_t tokens, steps;
    float cut;    /* candidates are pre-activations above it */
    /* the batch */
    float *x, *e; /* [B, d]: scaled input less b_dec; error */
    float *pre;   /* [TILE, F] */
    float *select; /* [cap] */
    size_t select_cap;
    kept_list list[MAX_THREADS];
    entries main, aux;
    float *aux_e;          /* [A, d] */
    size_t A;              /* tokens of a batch that the auxiliary loss looks at */
    int32_t *dead;
    size_t n_dead;
    float *dead_enc;       /* [F, d] their encoder rows, gathered */
    float *part_b_dec;     /* [threads, d] */
    float *part_row;       /* [threads, 2, d] */
    double part_error[MAX_THREADS];
    int tile_first, tile_n;
    float rate, eps;       /* of this step, bias corrections included */
    double fvu, l0;        /* running means */
    struct train_card *card; /* NULL: the processor does the steps */
} training;

/* Row `place` of the order of reading, a permutation of the harvest's rows an epoch. train.c, as all of these */
size_t es_train_row(const training *t, uint64_t place);
double es_train_rate(const training *t);       /* Adam's rate at this step, warmup and decay included */
double es_train_share(const training *t);      /* what the newest batch counts in the figures shown */
void es_train_threshold(training *t, double smallest); /* takes in a batch's smallest kept value */
int es_train_out_of_bounds(const training *t, es_error *err);

/* Steps on t->o.card: its memory is taken and the parameters go there. ES_ERR_MEMORY, ES_ERR_DEVICE. train_card.c */
int es_train_card_open(training *t, es_error *err);
int es_train_card_step(training *t, es_error *err);
int es_train_card_fetch(training *t, es_error *err); /* parameters and moments come back, for a checkpoint or the end */
void es_train_card_close(training *t);

#endif
