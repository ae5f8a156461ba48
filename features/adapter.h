/* adapter (internal): the parameters, shared by adapter.c (forms, files) and the learner (gradients, steps). */
#ifndef ES_ADAPTER_H
#define ES_ADAPTER_H

#include "features.h"

typedef struct es_adapter_entry { /* one adapted matrix: W' = W + B A, B = D^T M when constrained */
    int layer;
    es_site site;
    int n_in;
    size_t a, b;    /* offsets in param: b's come first: A [rank, n_in]; M [K, rank], or B [d, rank] when not constrained */
    size_t mean;    /* offset in mean_input: [n_in] */
    float *full;    /* B [d, rank]: of its own when constrained, inside param otherwise */
} es_adapter_entry;

typedef struct es_adapter_sink { /* where the hook's backward leaves the parameters' gradients (+=); grad NULL: nowhere */
    float *grad;              /* [slots][n_param] */
    const int *start, *slot;  /* of the batch's sequences, as es_batch and es_grad have them */
} es_adapter_sink;

struct es_adapter {
    es_adapter_options o;
    char model_hash[65];
    int d, n_layer, K, layer; /* layer: the dictionary's, -1 without one; K: features of the basis, 0 without one */
    bool has_basis;
    es_basis basis;
    float *D;                 /* [K, d] unit rows */
    float *param;             /* bias: c [K]; gain: s [K]; map: c [K], M [K, K]; lora: the entries' M (or B) one after another, then their A */
    size_t n_param, n_learned; /* the first n_learned are: all, or with fixed inputs those before A */
    int n_entry;
    es_adapter_entry *entry;
    float *mean_input;        /* lora: the entries' xbar; gain, map: mean f, mean u [K] (adapter_hook.c); zeros until a learner has measured them */
    size_t n_mean;
    float *v;                 /* bias: D^T c [d] */
    float *coefficient;       /* [K] */
    es_lowrank *lowrank;      /* [n_entry] what es_adapter_patch lends */
    es_addend addend;
    float *enc, *enc_bias, *threshold; /* gain, map: [K, d], [K], [K] */
    float *input, *through;   /* gain, map: scratch of the hook [K] */
    float scale;              /* gain, map: of the hook that was lent last */
    es_hook hook;
    es_adapter_sink sink;
    es_pool *pool;            /* one thread: for the small products of refresh */
    es_arena arena;           /* everything above but basis and pool */
    int steps;
};

static inline bool es_adapter_hooks(const es_adapter *a) /* gain, map */
{
    return a->o.form == ES_FORM_GAIN || a->o.form == ES_FORM_MAP;
}

/* gain, map: fills enc, enc_bias and threshold from the dictionary; refuses those that the form cannot read. */
int es_adapter_encoder(es_adapter *a, const es_dictionary *s, es_error *err);
/* gain, map: out[K] = f or u of a row h [d]. */
void es_adapter_input(const es_adapter *a, const float *h, float *out);
/* gain, map: the adapter's own hook, which follows its parameters. */
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
/* The weighted mean loss over all learning experiences where the adapter stands, and its gradient by the parameters ([n_param], may
 * be NULL): what a step would start from. For checks by finite differences. */
int es_learner_gradient(es_learner *l, double *loss, float *gradient, es_error *err);

#endif
