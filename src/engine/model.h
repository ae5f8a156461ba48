/* model: what the files of engine share of an open model. Other folders see engine.h only. */
#ifndef ES_MODEL_H
#define ES_MODEL_H

#include "engine.h"
#include "gguf.h"

typedef struct es_tokenizer es_tokenizer;

typedef struct es_layer {
    const float *attn_norm, *ffn_norm; /* [d_model] */
    es_weight site[ES_N_SITES];        /* by es_site: W[n_out, n_in]. q and k are laid out for rope on pairs (2i, 2i+1) */
} es_layer;

struct es_model {
    es_model_info info;
    es_gguf gguf;         /* holds the map that every weight points into */
    es_layer *layer;      /* [n_layer] */
    es_weight token_embd; /* [n_vocab, d_model] */
    es_weight head;       /* [n_vocab, d_model]; the embedding when tied */
    const float *final_norm; /* [d_model] */
    float *rope_inv; /* [head_dim/2] angle per position of pair i: base^(-2i/head_dim), any scaling of the file included */
    es_tokenizer *tokenizer; /* perhaps shared with other models */
    es_arena own;            /* thawed (weights.h): every number, one after another; matrices, then norms. The map is empty then */
    size_t n_own, n_own_matrix; /* floats */
    char hash[65];   /* "" until known */
};

#endif
