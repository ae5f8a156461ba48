/* forward (internal): one transformer block, forward and backward, shared by the context (rows appended to a KV cache) and the
 * trainer (whole sequences from position 0). Read forward.c from the top; backward.c is its mirror image. */
#ifndef ES_FORWARD_H
#define ES_FORWARD_H

#include "engine.h"
#include "model.h"

/* The tokens of one pass, a row each. Sequence s is rows start[s] .. start[s+1]. With a cache there is one sequence and its rows
 * follow pos0 cached ones; in a batch pos0 is 0. */
typedef struct es_rows {
    int n;
    const int *pos;   /* [n] position within its sequence */
    const int *start; /* [n_seq + 1] */
    int n_seq;
    int pos0;
} es_rows;

/* What one block computes on its way, all [n, width]. Without a backward pass x, mid and the next block's x are one buffer
 * that is updated in place, and the blocks share the rest. k and v: the rows of the new tokens; with a cache, pos0 older rows
 * lie before them. */
typedef struct es_acts {
    float *x;         /* d_model: the residual that enters */
    float *q, *k, *v; /* n_head*head_dim, n_kv*head_dim twice; q and k rotated */
    float *att;       /* n_head*head_dim: what attention read, before the output matrix */
    float *mid;       /* d_model: the residual after attention */
    float *gate, *up; /* d_ff */
} es_acts;

/* What a pass works with. Several passes may use one model; a pass belongs to one thread. */
typedef struct es_pass {
    const es_model *model;
    const es_kernels *k;
    es_pool *pool;
    bool exact;
    const float *rope_cos, *rope_sin; /* [positions, head_dim/2] */
    const es_patch *patch;            /* NULL: the plain model */
    uint8_t *site_mask;               /* [n_layer]: bit s is set when a low-rank entry that acts sits on site s of the layer */
    float *norm;                      /* [n, d_model] scratch: a normalised input */
    float *act;                       /* [ff_rows, d_ff] scratch: silu(gate) * up */
    int ff_rows;                      /* rows that the feed-forward part takes at once; at least n when gate and up are kept */
    float *low, *dlow;                /* [low_cap] scratch: A x of low-rank entries, and its gradient (NULL: forward only) */
    int low_cap;
    float *hook_in;                   /* NULL, or [hooks with a backward][hook_rows * d_model]: their inputs, kept for it */
    int hook_rows;
} es_pass;

enum { ES_LOW_MIN = 8192 }; /* the largest rank a low-rank entry may have: low_cap is at least this */

/* cos and sin of position * rope_inv[i] (RoFormer, Su et al. 2021, eq. 15), [n_pos, head_dim/2]. */
void es_rope_tables(const es_model *m, int n_pos, float *cos_t, float *sin_t);

float es_attention_scale(const es_model_info *m); /* 1/sqrt(head_dim) */

/* Checks the patch against the model (layers, sites, ranks; entries with scale 0 are not looked at) and sets p->patch and
 * p->site_mask. from_layer: entries below it are an error, but for addends and hooks at from_layer - 1. */
int es_pass_set_patch(es_pass *p, const es_patch *patch, int from_layer, int max_hooks, es_error *err);

/* Rows of the embedding table, out[n, d_model]. Fails when an id is outside of the vocabulary. */
int es_embed(const es_model *m, const int32_t *ids, int n, float *out, es_error *err);

/* Block `layer`: a->x to out (which may be a->x), filling a on the way. */
void es_block_forward(const es_pass *p, int layer, const es_rows *r, const es_acts *a, float *out);
/* The patch's addends and hooks on the residual h[n, d_model] after `layer`, then the watches. */
void es_residual_forward(const es_pass *p, int layer, const es_rows *r, float *h, const es_watch *watch, int n_watch);

/* Where a block's backward pass puts its work; all [n, width]. */
typedef struct es_back {
    float *dnorm;              /* d_model */
    float *dq, *dk, *dv, *datt;
    float *dact, *dgate, *dup; /* d_ff */
} es_back;

/* dh: in, the gradient of the residual that leaves the block; out, of the one that enters, if propagate. Without propagate only
 * as much is computed as the low-rank entries of this block that want a gradient need (all, when g->weights is set). g may be NULL. */
void es_block_backward(const es_pass *p, int layer, const es_rows *r, const es_acts *a, const es_back *w, float *dh,
                       const es_grad *g, bool propagate);
/* Where the gradient of something that lies among the model's own numbers goes; NULL: nowhere. */
float *es_weight_grad(const es_pass *p, const es_grad *g, const void *of);
/* dw[d] += the gradient of a norm's weight, from its input x and the gradient dy of its output, [n, d] each. */
void es_norm_weight_back(const float *x, const float *dy, float *dw, int n, int d, float eps);
/* Back through the hooks and addends after `layer`; dh in place. */
void es_residual_backward(const es_pass *p, int layer, const es_rows *r, float *dh, const es_grad *g);

#endif
