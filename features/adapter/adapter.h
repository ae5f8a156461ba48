/* adapter (internal): the parameters, shared by adapter.c (forms, files) and the learner (gradients, steps). */
#ifndef ES_ADAPTER_H
#define ES_ADAPTER_H

#include "learner.h"

enum { ES_ADAPTER_RANK_MAX = 1024 };

/* D of all parts is one array of rows, and the coefficients are in the same order. Parts lie by their dictionaries' layers, so those that read one
 * layer are neighbours: together they are a place, whose D is theirs one after the other. One dictionary is one part and one place. */
typedef struct es_adapter_part { /* a dictionary's basis */
    es_basis basis;
    int first;              /* of its coefficients */
} es_adapter_part;

typedef struct es_adapter_place { /* where the residual is read; without a basis one place with no features */
    struct es_adapter *owner; /* for its hook; set where one is lent */
    int layer;              /* of its dictionaries; -1: none is known */
    int first, K;           /* its rows of D and its coefficients: first .. first + K - 1 */
    size_t square;          /* sum of K K over the places before it */
} es_adapter_place;

typedef struct es_adapter_entry { /* one adapted matrix: W' = W + B A, B = D^T M when constrained, D those of its place */
    int layer, place;
    es_site site;
    int n_in, first, rows;  /* rows of M: K of the place, or d when not constrained; the first is feature `first` of the adapter's, or 0 */
    size_t a, b;    /* offsets in param: b's come first: A [rank, n_in]; M [rows, rank], or B [d, rank] when not constrained */
    size_t mean;    /* offset in mean_input: [n_in] */
    float *full;    /* B [d, rank]: of its own when constrained, inside param otherwise */
} es_adapter_entry;

struct es_adapter {
    es_adapter_options o;
    char model_hash[65];
    int d, n_layer, K;        /* K: features of all parts, 0 without one */
    int n_part, n_place;
    es_adapter_part part[ES_PARTS_MAX];
    es_adapter_place place[ES_PARTS_MAX]; /* n_place at least 1 */
    float *D;                 /* [K, d] unit rows */
    float *param;             /* bias: c [K]; gain: s [K]; map: c [K], then M [K, K] of each place; lora: the entries' M (or B) one after another, then their A */
    size_t n_param, n_learned; /* the first n_learned are: all, or with fixed inputs those before A */
    int n_entry;
    es_adapter_entry *entry;
    float *mean_input;        /* lora: the entries' xbar; gain, map: mean f, mean u [K] (adapter_hook.c); zeros until a learner has measured them */
    size_t n_mean;
    float *v;                 /* bias: D^T c of each place [n_place, d] */
    float *coefficient;       /* [K] */
    es_lowrank *lowrank;      /* [n_entry] what es_adapter_patch lends */
    es_addend addend[ES_PARTS_MAX];
    float *enc, *enc_bias, *threshold; /* gain, map: [K, d], [K], [K] */
    float *input, *through;   /* gain, map: scratch of the hooks [K] */
    float scale;              /* gain, map: of the hooks that were lent last */
    es_hook hook[ES_PARTS_MAX];
    es_hook_numbers numbers[ES_PARTS_MAX]; /* what they do, for a card */
    es_hook_sink sink;
    es_pool *pool;            /* one thread: for the small products of refresh */
    es_arena arena;           /* everything above but bases and pool */
    int steps;
};

static inline bool es_adapter_hooks(const es_adapter *a) /* gain, map */
{
    return a->o.form == ES_FORM_GAIN || a->o.form == ES_FORM_MAP;
}

static inline int es_adapter_lowest(const es_adapter *a) /* the lowest dictionary's layer, or -1 */
{
    return a->place[0].layer;
}

static inline float *es_adapter_rows(const es_adapter *a, int first) /* D from this feature on */
{
    return a->D + (size_t)first * (size_t)a->d;
}

/* An adapter of zeros (A too); of no part's basis where it is not constrained, and then the dictionary may be NULL. adapter.c */
int es_adapter_shape(es_adapter **out, es_model *m, const es_part *part, int n, const es_adapter_options *o, es_error *err);
/* gain, map: fills a part's enc, enc_bias and threshold from its dictionary; refuses those that the form cannot read. */
int es_adapter_encoder(es_adapter *a, const es_adapter_part *p, const es_dictionary *s, es_error *err);
/* gain, map: out[K of the place] = f or u of a row h [d]. */
void es_adapter_input(const es_adapter *a, const es_adapter_place *p, const float *h, float *out);
/* gain, map: the adapter's own hooks [n_place], which follow its parameters. */
const es_hook *es_adapter_hook(es_adapter *a, float scale);
/* After a change of param or mean_input: B, v and the coefficients follow. */
void es_adapter_refresh(es_adapter *a);
/* coefficient[K] of any parameters in this adapter's shape. */
void es_adapter_read(const es_adapter *a, const float *param, float *coefficient);
/* Only B and v, for trial steps: no coefficients. */
void es_adapter_expand(es_adapter *a);

/* Takes over copies of everything another learner has cached of its experiences. Both: form lora on the same model and band, and this one
 * has no experiences yet. */
int es_learner_share(es_learner *l, const es_learner *from, es_error *err);
/* The weighted mean loss over all learning experiences where the adapter stands (with replay: plus its term, on the texts of the last step), and its gradient by the parameters ([n_param], may
 * be NULL): what a step would start from. For checks by finite differences. */
int es_learner_gradient(es_learner *l, double *loss, float *gradient, es_error *err);

#endif
