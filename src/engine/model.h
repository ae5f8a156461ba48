/* model: what the files of engine share of an open model. Other folders see engine.h only. */
#ifndef ES_MODEL_H
#define ES_MODEL_H

#include "engine.h"
#include "family.h"
#include "gguf.h"
#include "safetensors.h"

enum { ES_MAX_LAYERS = 512, ES_MAX_WIDTH = 1 << 20, ES_MAX_HEADS = 4096, ES_MAX_CONTEXT = 1 << 24, ES_MAX_HEAD_DIM = 4096, ES_DEFAULT_CONTEXT = 2048 };

typedef struct es_tokenizer es_tokenizer;
void es_tokenizer_free(es_tokenizer *t); /* tokenizer.h; here for shape.c, which needs nothing else of it */

/* The norms that a block may have: before its two halves, after them, and on q and k. */
typedef enum es_norm {
    ES_NORM_ATTN, ES_NORM_FFN, ES_NORM_ATTN_POST, ES_NORM_FFN_POST, ES_NORM_Q, ES_NORM_K, ES_N_NORMS,
} es_norm;
const char *es_norm_name(es_norm n); /* as in GGUF */
int es_norm_width(const es_model *m, es_norm n); /* numbers in it; 0: the family has none */

typedef struct es_layer {
    const float *norm[ES_N_NORMS]; /* by es_norm; NULL: this family has none there */
    es_weight site[ES_N_SITES];    /* by es_site: W[n_out, n_in] */
    int window;                    /* tokens that attention sees, itself included; 0: all */
} es_layer;

typedef struct es_facts { /* beyond es_model_info: the family's, and what the file says of them */
    const es_family *family;
    bool paired_rope;             /* as es_family's, for the weights as they lie in memory */
    float attn_scale, attn_cap, final_cap, embed_scale;
    float rope_gain;              /* of the cosines and sines of layers without a window (YaRN); else 1 */
} es_facts;

/* How a file scales rope beyond its base: https://huggingface.co/docs/transformers/main/internal/rope_utils names the kinds. */
typedef struct es_rope_scaling {
    enum { ES_ROPE_PLAIN, ES_ROPE_LINEAR, ES_ROPE_LLAMA3, ES_ROPE_YARN } kind;
    float factor, original;       /* original: positions before scaling */
    float low, high;              /* llama3: low_freq_factor, high_freq_factor. yarn: beta_slow, beta_fast */
    float gain;                   /* yarn: attention_factor; 0: from factor */
    const float *divisor;         /* NULL, or [head_dim/2]: a GGUF's rope_freqs */
    float window_base;            /* base of layers with a window, which are never scaled */
} es_rope_scaling;
/* Fills m->rope_inv and rope_gain. ES_ERR_FORMAT, ES_ERR_MEMORY */
int es_rope_open(es_model *m, const es_rope_scaling *s, es_error *err);
/* Layers' windows by the family's pattern. */
void es_model_set_windows(es_model *m, int window);
/* s becomes the default with these four numbers, each as it is when the file does not say (negative); ES_ERR_FORMAT names the one that makes no sense. */
int es_model_set_sampling(es_model *m, const char *where, float temperature, float top_k, float top_p, float penalty, es_error *err);
/* What both kinds of file must agree with: heads, head size, base, eps. */
int es_model_check(const es_model *m, es_error *err);

struct es_model {
    es_model_info info;
    es_gguf gguf;         /* holds the map that every weight points into; or these do, of a folder: */
    es_safetensors **shard;
    char **shard_name;    /* NULL: one file, model.safetensors */
    size_t n_shard;
    es_arena held;        /* a folder's norms, and what is neither F32 nor F16 there, as F32 */
    es_layer *layer;      /* [n_layer] */
    es_weight token_embd; /* [n_vocab, d_model] */
    es_weight head;       /* [n_vocab, d_model]; the embedding when tied */
    const float *final_norm; /* [d_model] */
    es_facts facts;
    float *rope_inv; /* [2, head_dim/2] angle per position of pair i: base^(-2i/head_dim), any scaling included; row 1: layers with a window */
    es_sampling sampling;    /* what the file says of it, else the default */
    es_tokenizer *tokenizer; /* perhaps shared with other models; NULL: none */
    es_arena own;            /* thawed (weights.h): every number, one after another; matrices, then norms. The map is empty then */
    size_t n_own, n_own_matrix; /* floats */
    char hash[65];   /* "" until known */
    struct es_on *on;  /* device.h: its copy on a card; NULL: none was asked for */
    uint64_t version;  /* of a thawed model's numbers: es_model_changed */
};

#endif
