/* What the files of dictionaries share: one description of a dictionary, which each format's reader fills and each writer writes, and the table of formats.
 * Adding a format is one file with a reader (and a writer), and a line in dictionary_formats.c. */
#ifndef ES_DICTIONARY_H
#define ES_DICTIONARY_H

#include "arrays.h"
#include "dictionaries.h"

enum { ES_FEATURES_MAX = 1 << 20, ES_WIDTH_MAX = 1 << 16 };

typedef enum es_norm { ES_NORM_NONE, ES_NORM_CONSTANT, ES_NORM_LAYER } es_norm;

/* A dictionary as its files have it. With p = (x - b_dec apply_b_dec_to_input) enc^T + b_enc and x normalised as `norm` says:
 * standard relu(p); jumprelu relu(p) [p > threshold]; topk relu(top_k(p)); gated [x enc^T + b_gate > 0] relu(x enc^T exp(r_mag) + b_mag).
 * xhat = f dec + b_dec (+ x skip). */
typedef struct es_weights {
    es_dictionary_info info; /* all but the hash */
    char file[1300];         /* with the weights: what the hash is of */
    es_norm norm;
    es_arrays arrays;        /* what the matrices point into */
    es_matrix enc, dec, skip; /* [F, d], [F, d_out], [d, d_out] (none: data NULL) */
    es_numbers b_enc, b_dec, threshold, b_gate, b_mag, r_mag; /* those that the architecture has */
} es_weights;
void es_weights_free(es_weights *w); /* what it owns, not the struct */

typedef struct es_place { /* where a dictionary is looked for */
    char folder[1024];
    char file[256];  /* "" when a folder was named */
    char whole[4096]; /* the folder's absolute path: names of folders above it tell things too */
} es_place;
bool es_place_has(const es_place *p, const char *name);
/* The first folder from the end whose name begins with `start` (or, inside, holds it): what follows that in the name; NULL: none. */
const char *es_place_part(const es_place *p, const char *start, bool inside, char *out, size_t size);

typedef struct es_dictionary_kind {
    const char *name, *what;
    bool (*recognises)(const es_place *p);
    int (*read)(es_weights *out, const es_place *p, es_error *err); /* *out is zeros but for info.folder, info.name; freed by the caller also after an error */
    int (*write)(const es_weights *w, const char *folder, es_error *err); /* NULL: not written */
} es_dictionary_kind;
extern const es_dictionary_kind es_saelens, es_gemma_scope, es_gemma_scope_2, es_dictionary_learning, es_llama_scope;

/* Reads the dictionary at path (a folder or a file) without its hash. */
int es_weights_read(es_weights *out, const char *path, es_error *err);

/* For readers. */
int es_weights_sizes(es_weights *w, size_t d, size_t d_out, size_t F, es_error *err); /* takes them into info, or says that they make no sense */
/* The matrices under these names: enc_T: W_enc is stored [d, F]; dec_T: W_dec is stored [d_out, F]. */
int es_weights_matrices(es_weights *w, const char *enc, bool enc_T, const char *dec, bool dec_T, es_error *err);
/* "blocks.15.hook_resid_post" (TransformerLens) or "model.layers.15.output" (Hugging Face) into info.hook and layer. false: another one: ES_HOOK_UNKNOWN,
 * with which activations from files can still be encoded. */
bool es_weights_hook(es_weights *w, const char *hook);
void es_copy_string(char *out, size_t size, json_t *v); /* "" for what is no string */

/* For writers. */
/* b_enc with b_dec folded in, and a threshold for each feature: the jumprelu dictionary without b_dec taken off the input that equals a standard or jumprelu
 * one; ES_ERR_USAGE for others, `format` named. The vectors are the caller's to free (es_numbers.v). */
int es_weights_plain(const es_weights *w, const char *format, es_numbers *b_enc, es_numbers *threshold, es_error *err);
typedef struct es_named { /* an array to be written: a matrix, stored [rows, cols] or, transposed, [cols, rows]; or a vector */
    const char *name;
    const es_matrix *matrix; bool transposed;
    const es_numbers *numbers; bool one; /* one: only the first number, as a scalar */
} es_named;
int es_named_safetensors(const char *path, const es_named *a, size_t n, es_error *err);
int es_named_npz(const char *path, const es_named *a, size_t n, es_error *err);
int es_write_json(const char *folder, const char *name, json_t *v, es_error *err); /* v is taken over; NULL: no memory */
const char *es_weights_hook_name(const es_weights *w, char *out, size_t size); /* in TransformerLens' words */

typedef struct es_trained { /* what training leaves; borrowed. b_enc: of the gated architecture its gates' bias; arrays that an architecture lacks are NULL */
    es_architecture architecture;
    int d, F, k;             /* k: topk only */
    const float *enc, *dec;  /* [F, d] */
    const float *b_enc, *b_dec, *threshold, *b_mag, *r_mag; /* [F], b_dec [d] */
} es_trained;
/* Writes FOLDER/cfg.json and sae_weights.safetensors (SAELens 6), b_dec taken off the input. metadata: JSON object that becomes cfg.json's "metadata"; borrowed. */
int es_dictionary_save_trained(const char *folder, const es_trained *a, bool half, json_t *metadata, es_error *err);
/* The same, of a jumprelu dictionary. enc, dec: [F, d]; threshold: one number for all. */
int es_dictionary_save(const char *folder, int d, int F, const float *enc, const float *dec, const float *b_enc, const float *b_dec, float threshold,
                       bool half, json_t *metadata, es_error *err);

#endif
