/* family (internal): what sets one architecture apart from another, as facts. forward.c and backward.c ask for these facts and never for a
 * name, so a new family is a new row here. How to add one: FAMILIES.md. */
#ifndef ES_FAMILY_H
#define ES_FAMILY_H

#include "base.h"

typedef enum es_qk_norm { ES_QK_PLAIN, ES_QK_HEAD, ES_QK_WHOLE } es_qk_norm; /* a norm on each head of q and k, or on the whole rows */

typedef struct es_family {
    const char *name;  /* in a GGUF: general.architecture, the prefix of its keys */
    const char *model_type; /* in a config.json */
    bool paired_rope;  /* a GGUF has q and k laid out for rope on pairs (2i, 2i+1); otherwise, and in safetensors always, (i, i + head_dim/2) */
    bool pre_norm;     /* attention and feed-forward read norm(x) */
    bool post_norm;    /* what they give is normed before it is added to x */
    es_qk_norm qk_norm;
    bool gelu;         /* the gate's function: GELU (tanh form) instead of SiLU */
    bool scaled_embedding; /* embeddings are multiplied by sqrt(d_model) */
    bool norm_plus_one;    /* safetensors hold a norm's weight less 1; a GGUF holds it whole */
    int full_every;    /* where a window is given: layers full_every - 1, 2 full_every - 1, ... see all tokens, the others a window; 0: no windows */
    float window_rope_base; /* rope base of layers with a window; 0: the model's */
    float attn_cap, final_cap; /* soft caps when the file does not say; 0: none */
    int wide_layers;   /* at this many layers (the 27B models) queries are scaled by 1/sqrt(d_model / n_head), not 1/sqrt(head_dim); a GGUF does not say */
} es_family;

const es_family *es_family_by_name(const char *name);             /* NULL: not known */
const es_family *es_family_by_model_type(const char *model_type); /* NULL: not known */
/* "llama, qwen3, ..." for messages */
void es_family_list(char *out, size_t n);

#endif
