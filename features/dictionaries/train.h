/* A dictionary in training: what the loop (train.c), its state (train_state.c) and a step (train_select.c, train_step.c; on a card train_card.c) share; also for tests and
 * benches, which make steps on rows of their own.
 *
 * Only screening is a product of all tokens with all features; it may be in bfloat16, since what passes is computed again in f32. Decoding and all
 * gradients touch the kept entries alone. Decoder rows stay unit vectors (but for the standard recipe, whose penalty has their norms): the
 * part of the gradient along the row is taken out, and the row is renormalised after Adam's step. */
#ifndef ES_TRAIN_H
#define ES_TRAIN_H

#include "harvest.h"
#include "screen.h"
#include "train_loss.h"
#include "vector.h"

enum { ES_TRAIN_TILE = 512, ES_TRAIN_PARTS = 256 };

typedef struct es_train_rows { /* where activations come from; borrowed */
    size_t n;
    int d;
    void (*read)(const void *user, size_t row, float *out); /* [d]; from several threads */
    const void *user;
    float norm_limit; /* longer rows teach nothing; INFINITY: none are */
} es_train_rows;

typedef struct es_train_parameter { /* n 0: the recipe has none */
    const char *name;
    size_t n, columns; /* numbers; of a row */
    float *w, *m, *v;  /* and Adam's moments */
} es_train_parameter;
enum { ES_P_ENC, ES_P_DEC, ES_P_B_ENC, ES_P_B_DEC, ES_P_THETA, ES_P_R_MAG, ES_P_B_MAG, ES_TRAIN_PARAMETERS };

typedef struct es_train_entries { /* by token, then feature */
    size_t n, cap;
    bool more;             /* gate and extra are there */
    int32_t *token, *feature;
    float *value;          /* activation; 0: past its gate (gated) or near its threshold (jumprelu), but not active */
    float *z;              /* pre-activation */
    float *grad;           /* dL / d((x - b_dec) . enc) */
    float *extra;          /* jumprelu: dL/dtheta; gated: dL/dvalue */
    size_t *by_feature;    /* [n]: places ordered by feature */
    size_t *token_start;   /* [tokens + 1] */
    size_t *feature_start; /* [F + 1] into by_feature */
} es_train_entries;

typedef struct es_train {
    es_dictionary_training o;
    es_train_rows rows;
    es_pool *pool;
    size_t d, F, B;
    uint64_t fresh_from; /* from this place on come ... */
    size_t fresh;        /* ... the last `fresh` rows, once each, before all rows again: the harvest has grown since the checkpoint */
    bool queue;          /* rows are no store but come one batch after another: row i is that of place queue_from + i, for two batches from there on */
    uint64_t queue_from; /* whoever gives them sets it before each step: to tokens */
    float scale;         /* what inputs are multiplied by: their mean norm becomes sqrt(d) */
    es_train_parameter p[ES_TRAIN_PARAMETERS];
    float *age;          /* [F] tokens since the feature was last active */
    uint64_t tokens, steps;
    double threshold;    /* batchtopk, matryoshka: running mean of the smallest kept value */
    double coefficient;  /* the penalty's weight before its warm-up */
    float cut;           /* topk and its kin: what is screened for is above it; 0: not known yet */
    double fvu, l0, near; /* running means; near: -1 before it was measured */
    /* the batch */
    int n_prefix;
    size_t prefix[ES_PREFIXES_MAX]; /* rising, the last F: one, unless matryoshka */
    float *x;            /* [B, d] scaled input less b_dec */
    float *e;            /* [n_prefix, B, d] the sum of the errors of this prefix and those after it */
    float *gate_e;       /* [B, d] gated: what the gates' own reconstruction leaves */
    float *pre;          /* [TILE, F] screened */
    float *screen;       /* [F] what must be passed */
    int tile_first, tile_n;
    es_hits list[ES_TRAIN_PARTS]; /* what passed, a part's: rows are tokens, columns features */
    es_hit *candidate;   /* [n_candidate] by token, then feature */
    size_t *candidate_start; /* [B + 1] */
    size_t n_candidate, candidate_cap;
    float bound;         /* of approximate values: below it nothing can be kept */
    float *select;       /* [select_cap] */
    size_t select_cap;
    float *part_select;  /* [threads, F] */
    float part_least[ES_TRAIN_PARTS];
    es_train_entries main, aux;
    float *aux_e;        /* [A, d] */
    size_t A;            /* tokens of a batch that the auxiliary loss looks at */
    int32_t *dead;
    size_t n_dead;
    float *dead_enc;     /* [F, d] their encoder rows, gathered */
    float *part_b_dec;   /* [threads, d] */
    float *part_row;     /* [threads, 2, d] */
    double part_error[ES_TRAIN_PARTS];
    float rate, eps;     /* of this step, bias corrections included */
    float penalty;       /* of this step, its warm-up included */
    struct es_train_card *card; /* o.card, from the first step on. The numbers of p are there, and come back when they are fetched */
} es_train;

/* ---- train_state.c ---- */
int es_train_check(const es_dictionary_training *o, int d, es_error *err); /* that the options make sense together */
/* Checks o against the rows and takes all memory but the entries', which grow with what a batch keeps. o is copied, rows too. */
int es_train_open(es_train **out, const es_dictionary_training *o, const es_train_rows *rows, es_error *err);
void es_train_close(es_train *t);
size_t es_train_bytes(const es_dictionary_training *o, int d, int threads); /* of it, with the entries as they usually are */
size_t es_train_checkpoint_bytes(const es_dictionary_training *o, int d);
/* b_dec, the scale and the first weights. ES_ERR_FORMAT where the rows are all zero or no numbers. */
int es_train_start(es_train *t, es_error *err);
int es_train_save(const es_train *t, const char *path, const char *about, es_error *err); /* about: what the rows are of; must be the same to go on */
int es_train_load(es_train *t, const char *path, const char *about, es_error *err);
/* Writes the dictionary in the units of the rows; t is of no use afterwards. metadata: as es_dictionary_save's. */
int es_train_write(es_train *t, const char *dir, json_t *metadata, es_error *err);
size_t es_train_row(const es_train *t, uint64_t place); /* which row is read at a place in the order: a new permutation an epoch */
bool es_train_take(const es_train *t, uint64_t at, float *x); /* row es_train_row(at), scaled, to x[d]. False: an attention sink, x is zeros and teaches nothing */

/* ---- train.c: what a training from a harvest and one from a stream share ---- */
typedef struct es_train_home { char folder[1100], checkpoint[1200], weights[1200]; } es_train_home; /* of a dictionary in the making: of its checkpoint, state, weights */
int es_train_home_of(es_train_home *h, const char *dir, es_error *err);
bool es_train_finished(const es_train_home *h);
void es_train_drop_checkpoint(const es_train_home *h); /* of a finished one: the state, what a kill left of one, and the folder */
typedef struct es_train_about { /* what the rows are, for cfg.json; borrowed */
    es_hook_place at;
    const char *model_name, *model_hash;
    int context;
    size_t distinct; /* tokens */
    json_t *files;   /* their names */
} es_train_about;
int es_train_finish(es_train *t, const char *dir, const es_train_about *a, es_error *err); /* writes the dictionary; t is of no use afterwards */
void es_train_settings(const es_train_about *a, char *out, size_t size); /* `about` of es_train_save and es_train_load */
void es_train_name(es_hook_place at, char *out, size_t size); /* for reports: "train layer 14 mlp_out" */
void es_train_report(es_train *t, const char *name, double tokens_per_second, const es_progress *progress);

/* ---- train_select.c: t->x to t->main ---- */
int es_train_select(es_train *t, es_error *err);
float es_train_nth_largest(float *a, size_t n, size_t rank); /* the value v such that `rank` of the n are larger (0: the largest); reorders them */
int es_train_entries_room(es_train_entries *l, size_t n, es_error *err);
int es_train_select_room(es_train *t, size_t n, es_error *err);
void es_train_smallest(es_train *t, float smallest); /* takes in a batch's smallest kept value; as SAELens and dictionary_learning: a running mean */
void es_train_index(es_train_entries *l, size_t rows, size_t F); /* token_start, feature_start and by_feature */

/* ---- train_step.c ---- */
/* One batch. ES_ERR_FORMAT where the error is no number. */
int es_train_step(es_train *t, es_error *err);
double es_train_base_rate(const es_train *t);
double es_train_dead(const es_train *t);  /* share of features that have been silent too long */
/* The mean over (up to 256, spread over the dictionary) features of the largest cosine of their decoder row with another's. */
int es_train_near(es_train *t, double *out, es_error *err);
void es_train_rate(es_train *t);          /* sets rate and eps of this step */
int es_train_out_of_bounds(const es_train *t, es_error *err);
double es_train_running_share(const es_train *t); /* what the newest batch counts in the figures shown: a mean over some twenty steps */

/* ---- train_card.c: steps on o.card; es_train_step, _near, _save and _write call these ---- */
/* The first step takes the card's memory, and the numbers go there. ES_ERR_MEMORY; ES_ERR_DEVICE when the card is lost: t is of no use any more. */
int es_train_card_step(es_train *t, es_error *err);
int es_train_card_fetch(const es_train *t, es_error *err); /* numbers and moments come back. As all below: nothing to do without t->card */
int es_train_card_fetch_decoder(const es_train *t, es_error *err); /* the decoder's rows alone */
void es_train_card_close(es_train *t);

static inline bool es_train_by_batch(es_recipe r)
{
    return r == ES_TRAIN_BATCHTOPK || r == ES_TRAIN_MATRYOSHKA;
}
static inline bool es_train_penalised(es_recipe r)
{
    return r == ES_TRAIN_JUMPRELU || r == ES_TRAIN_GATED || r == ES_TRAIN_STANDARD;
}

#endif
