/* forward (internal): one transformer block, forward and backward, shared by the context (rows appended to a KV cache) and the
 * trainer (whole sequences from position 0). Read forward.c from the top; backward.c is its mirror image. */
#ifndef ES_FORWARD_H
#define ES_FORWARD_H

#include "device.h"
#include "engine.h"
#include "model.h"

/* Keys and values of all tokens of the sequences of a pass, rows of n_kv*head_dim: those of sequence s in layer l, from its position 0
 * on, lie at k[s] and v[s] plus l * layer numbers, in f32 or in half precision. A block adds its new rows. */
typedef struct es_cache {
    bool half;
    size_t layer;
    void **k, **v; /* [n_seq] */
    es_attn *shape;                  /* [n_seq] scratch of a block */
    const uint16_t **k_half, **v_half; /* [n_seq] scratch of a block */
} es_cache;

/* The tokens of one pass, a row each. Sequence s is rows start[s] .. start[s+1], at positions one after another. */
typedef struct es_rows {
    int n;
    const int *pos;   /* [n] position within its sequence */
    const int *pos_on; /* the same in the table's memory, for ops; pos itself on the processor */
    const int *start; /* [n_seq + 1] */
    int n_seq;
    const es_cache *cache; /* NULL: a sequence's rows are all of it, from position 0 on */
} es_rows;

/* What one block computes on its way, all [n, width]. Without a backward pass x, mid and the next block's x are one buffer
 * that is updated in place, and the blocks share the rest. */
typedef struct es_acts {
    float *x;         /* d_model: the residual that enters */
    float *q, *k, *v; /* n_head*head_dim, n_kv*head_dim twice; q and k rotated */
    float *q_in, *k_in; /* q and k before their norm, for the backward pass; NULL: not kept */
    float *att;       /* n_head*head_dim: what attention read, before the output matrix */
    float *att_out, *ff_out; /* d_model: what the two halves give, before their post norms; families with such norms only */
    float *mid;       /* d_model: the residual after attention */
    float *gate, *up; /* d_ff */
} es_acts;

/* What a pass works with. Several passes may use one model; a pass belongs to one thread. */
typedef struct es_rope_table {
    float *cos, *sin; /* [positions, head_dim/2] */
} es_rope_table;

/* A patch's arrays in a card's memory (device.c). On the processor none of it is used. */
typedef struct es_patch_on {
    es_lowrank *lowrank; /* [n_lowrank], [n_addend]: the patch's own entries with pointers to the card's memory */
    es_addend *addend;
    es_hook_numbers *hook; /* [n_hook]; K 0: it has none */
    float *read;         /* [3, ES_HOOK_ROWS, the largest K]: scratch of hooks */
    size_t cap_entries, cap_bytes;
    char *memory;        /* of the card */
    bool current;        /* it holds the patch that is set */
} es_patch_on;

/* What es_trainer_keep keeps (kept.c): the caller's arrays and, n numbers each, their places on the card. */
typedef struct es_kept_on {
    es_kept host;                        /* n 0: nothing is kept */
    float *param, *grad, *first, *second;
    double *square;
    bool weights;                        /* param is the model's own memory there */
    es_arena memory;
} es_kept_on;

struct es_pass {
    const es_model *model;            /* its weights lie in the table's memory */
    const es_kernels *k;
    const es_kernels *feed_forward;   /* the forward products with gate, up and down; NULL: k's */
    es_pool *pool;
    es_cuda *card;                    /* NULL: the processor. Else every pointer given to an op is to the card's memory */
    bool exact;
    es_rope_table rope[2];            /* of layers that see all tokens, and of those with a window */
    const es_patch *patch;            /* NULL: the plain model */
    const es_lowrank *lowrank;        /* the patch's, or with a card its copies there */
    const es_addend *addend;
    es_patch_on on;                   /* with a card */
    int32_t *ids;                     /* with a card: [rows] there, for the embedding */
    int at_pos;                       /* with a card: the one token of this pass finds its position in pos_on, of at most so many; 0: not so */
    es_kept_on kept;                  /* with a card */
    float *seen_on;                   /* with a card: [ES_SEEN, es_seen_width] there: what the watches of a recorded token see */
    float **hook_grad;                /* with a card: [n_hook] there, [slots][K + K K]: gradients of hooks with numbers; an entry or NULL: not wanted */
    float *host_rows;                 /* with a card: room for the rows of a pass, of any point, where hooks and watches see them */
    int *seen;                        /* NULL, or the moment that was last watched: not again when a lost card's pass is repeated */
    uint8_t *site_mask;               /* [n_layer]: bit s is set when a low-rank entry that acts sits on site s of the layer */
    float *norm;                      /* [n, d_model] scratch: a normalised input */
    float *act;                       /* [ff_rows, d_ff] scratch: silu(gate) * up */
    int ff_rows;                      /* rows that the feed-forward part takes at once; at least n when gate and up are kept */
    float *low, *dlow;                /* [low_cap] scratch: A x of low-rank entries, and its gradient (NULL: forward only) */
    int low_cap;
    float *hook_in;                   /* NULL, or [hooks with a backward][hook_rows * d_model]: their inputs, kept for it */
    int hook_rows;
};

enum { ES_HOOK_ROWS = 256, ES_SEEN = 8 };
enum { ES_LOW_MIN = 8192 }; /* the largest rank a low-rank entry may have: low_cap is at least this */

/* The tables for positions below n_pos: room for them (the second only where the model has windows), then cos and sin of
 * position * rope_inv[i]. */
void es_rope_layout(const es_model *m, size_t n_pos, es_arena *a, es_rope_table rope[2]);
void es_rope_fill(const es_model *m, int n_pos, es_rope_table rope[2]);

/* Attention of sequence s of the rows in this layer. */
es_attn es_attention_shape(const es_model *m, int layer, const es_rows *r, int s);
/* Rotates q or k, x[n, n_head*head_dim], by its positions; back: the other way round. */
void es_rotate(const es_pass *p, int layer, const es_rows *r, float *x, int n_head, bool back);
/* y = f(gate) * up with the family's f, and its gradient. */
void es_glu(const es_pass *p, const float *gate, const float *up, float *y, size_t n);
void es_glu_back(const es_pass *p, const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n);
/* What a half of the block reads: x under the norm before it, in p->norm, or x itself where the family has no such norm. */
const float *es_normed(const es_pass *p, int layer, es_norm which, const float *x, int n);
/* Logits of rows h[n, d_model] of the last residual: final norm (into norm, same shape), head, soft cap. */
void es_logits(const es_pass *p, const float *h, int n, float *norm, float *logits, bool exact);

/* Checks the patch against the model (layers, sites, ranks; entries with scale 0 are not looked at) and sets p->patch and
 * p->site_mask. from_layer: entries below it are an error, but for addends and hooks at from_layer - 1. */
int es_pass_set_patch(es_pass *p, const es_patch *patch, int from_layer, int max_hooks, es_error *err);
/* With a card: the arrays of the patch that was set go there, unless p->on.current says that they are there. ES_ERR_MEMORY. Without one: nothing. */
int es_pass_upload_patch(es_pass *p, es_error *err);

/* Of something that is kept, its place on the card: of a parameter or of its gradient; NULL: it is not kept. */
const float *es_kept_param(const es_pass *p, const float *host);
float *es_kept_grad(const es_pass *p, const float *host);
int es_kept_open(es_pass *p, const es_model *m, const es_kept *k, es_error *err);
void es_kept_close(es_pass *p);
int es_kept_up(es_pass *p, const es_model *m, es_error *err);
int es_kept_down(es_pass *p, es_error *err);
int es_kept_gradient(es_pass *p, float *out, double *square, es_error *err);
int es_kept_adam(es_pass *p, const es_adam *a, es_error *err);

/* Rows of the embedding table, scaled where the family has it so, out[n, d_model]. Fails when an id is outside of the vocabulary. */
int es_embed(const es_pass *p, const int32_t *ids, int n, float *out, es_error *err);

typedef struct es_watching { const es_watch *watch; int n; } es_watching;
/* A layer's points in the order of time, layer after layer. */
int es_moment(int layer, es_point p);
/* Block `layer`: a->x to out (which may be a->x), filling a on the way. */
void es_block_forward(const es_pass *p, int layer, const es_rows *r, const es_acts *a, float *out, es_watching w);
/* The patch's addends and hooks on the residual h[n, d_model] after `layer`, then the watches. */
void es_residual_forward(const es_pass *p, int layer, const es_rows *r, float *h, es_watching w);
bool es_lowrank_behind(const es_model *m, const es_lowrank *e); /* whether it is not part of the matrix that a norm follows */
size_t es_seen_width(const es_model *m); /* of a row of any point */
/* A hook in numbers, on a card (hook.c): in place on h[n, d_model]; and back, from the rows that entered, in, to dh in place. */
void es_hook_forward(const es_pass *p, const es_hook_numbers *e, const es_rows *r, float *h);
void es_hook_backward(const es_pass *p, const es_hook_numbers *e, const float *in, const es_rows *r, float *dh, float *grad);
size_t es_hook_gradient_size(const es_hook_numbers *e); /* of a slot */
int es_hook_slots(const es_hook_numbers *e, int n_seq); /* 0: no gradient is wanted */

/* Where a block's backward pass puts its work; all [n, width]. */
typedef struct es_back {
    float *dnorm;              /* d_model */
    float *dq, *dk, *dv, *datt;
    float *dact, *dgate, *dup; /* d_ff */
    float *dbranch;            /* d_model: the gradient below a post norm; NULL in families without */
} es_back;

/* dh: in, the gradient of the residual that leaves the block; out, of the one that enters, if propagate. Without propagate only
 * as much is computed as the low-rank entries of this block that want a gradient need (all, when g->weights is set). g may be NULL. */
void es_block_backward(const es_pass *p, int layer, const es_rows *r, const es_acts *a, const es_back *w, float *dh,
                       const es_grad *g, bool propagate);
/* Where the gradient of something that lies among the model's own numbers goes; NULL: nowhere. */
float *es_weight_grad(const es_pass *p, const es_grad *g, const void *of);
/* Back through the hooks and addends after `layer`; dh in place. */
void es_residual_backward(const es_pass *p, int layer, const es_rows *r, float *dh, const es_grad *g);

#endif
