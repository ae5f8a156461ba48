/* adapters: experiences, bases of chosen features, the feature-constrained adapter, and what it does to held-out and neutral text.
 * d = width of the residual, K = features of a basis. Equations: the design's learning notes; what is quoted names its source. */
#ifndef ES_ADAPTERS_H
#define ES_ADAPTERS_H

#include "dictionaries.h"

/* ==== experiences ================================================================================================================= */

typedef struct es_experience {
    int64_t id;                /* 0 when it is not from a workspace */
    es_message *message; int n_message; /* ends with a user turn */
    char *preferred, *rejected; /* either may be NULL */
    char *source, *time;        /* may be NULL */
    double weight;              /* 1 unless weighted; 0 leaves it out */
} es_experience;
typedef struct es_experiences { es_experience *item; int n, cap; } es_experiences;
/* {"messages":[{"role","content"}...],"preferred","rejected","source","time"}; at least one reply. Appends a deep copy. */
int es_experience_from_json(es_experiences *l, json_t *value, es_error *err);
int es_experiences_load(es_experiences *l, const char *path, es_error *err); /* JSONL; the error names the line */
json_t *es_experience_to_json(const es_experience *e);
int es_experience_copy(es_experiences *l, const es_experience *e, es_error *err);
void es_experience_clear(es_experience *e); /* frees what it owns and leaves it empty; not the struct */
void es_experiences_free(es_experiences *l);

/* ==== basis ========================================================================================================================== */

/* A direction that someone else made, as an entry of a basis beside features: a row of D like theirs. It has no encoder: the form map reads the residual's
 * component along it, the form gain does not take it. */
typedef struct es_basis_vector {
    int number;       /* where features have theirs: negative, from ES_VECTOR_LAST to ES_VECTOR_FIRST; made of its name and its file's hash */
    char name[64];    /* UTF-8 without control characters; not a number */
    int layer;        /* of the file's rows this is the one for the residual after it; the basis acts where its dictionary reads */
    float length;     /* the file's own, before it was made a unit */
    char hash[65];    /* SHA-256 of the file */
    int d;
    float *unit;      /* [d], owned */
} es_basis_vector;
enum { ES_VECTOR_FIRST = -2, ES_VECTOR_LAST = -99999, ES_VECTORS_MAX = 256 }; /* -1 is nobody's number */

typedef struct es_basis {
    char name[64];
    int version;
    char model_hash[65], dictionary_hash[65], dictionary[256]; /* dictionary: its name, for messages */
    int layer, n;
    int *feature;     /* [n]; negative: a vector's number */
    float *lo, *hi;   /* bounds of each coefficient; a sign is a one-sided bound (lo = 0 or hi = 0) */
    int n_vector;
    es_basis_vector *vector; /* those that are in it, in any order */
} es_basis;
void es_basis_free(es_basis *b); /* the arrays, not the struct */
int es_basis_add(es_basis *b, int feature, float lo, float hi, es_error *err); /* a feature already in it gets the new bounds */
/* The same of a vector, which is copied; its number is chosen here. One of that name becomes this one, in the same place. */
int es_basis_add_vector(es_basis *b, const es_basis_vector *v, float lo, float hi, es_error *err);
/* Entry k of another basis, feature or vector, with these bounds. */
int es_basis_take(es_basis *b, const es_basis *from, int k, float lo, float hi, es_error *err);
int es_basis_copy(es_basis *out, const es_basis *b, es_error *err);
bool es_basis_remove(es_basis *b, int feature); /* or a vector by its number */
const es_basis_vector *es_basis_vector_of(const es_basis *b, int number); /* NULL: that is no vector of it */
const es_basis_vector *es_basis_vector_named(const es_basis *b, const char *name);
/* A steering vector's direction for the residual after `layer`, from a file of another tool: a GGUF control vector (direction.LAYER, as llama.cpp and repeng
 * write them), or persona-style a tensor [layers + 1, d] whose row LAYER + 1 it is, in a .pt or a .safetensors (alone, or named "vector"); [d]: the one for
 * any layer. name: NULL: the file's. The caller frees unit. ES_ERR_FORMAT, ES_ERR_MISMATCH (width), ES_ERR_MISSING (layer; those that are there named). */
int es_steering_read(es_basis_vector *out, const char *path, int layer, int d, const char *name, es_error *err);
json_t *es_basis_to_json(const es_basis *b); /* {"format":"espalier-basis","version":1,...} */
int es_basis_from_json(es_basis *out, json_t *value, es_error *err);
/* D as K rows [K, d]: unit decoder rows, and vectors; caller frees. */
int es_basis_matrix(const es_basis *b, const es_dictionary *s, float **out, es_error *err);

typedef struct es_basis_report {
    double condition, effective_rank;   /* of the Gram matrix; effective rank = exp(entropy of its normalised eigenvalues) (Roy & Vetterli 2007) */
    double max_overlap; int overlap_a, overlap_b; /* largest |cosine| between two columns, and whose */
    double energy;                      /* share of the experiences' gradient energy inside span(D); NAN without gradients */
    double random_mean, random_min, random_max; /* the same for 20 random bases of the same size */
} es_basis_report;
/* gradient: [n, d] rows (one an experience, from es_attribute); may be NULL. a (may be NULL): random bases are drawn from the
 * features that are alive in it. */
int es_basis_measure(const es_basis *b, const es_dictionary *s, const es_atlas *a, const float *gradient, int n, uint64_t seed,
                     es_basis_report *out, es_error *err);

/* ==== adapter =========================================================================================================================== */

/* An adapter is of one form and one or several parts, each a dictionary with a basis. Parts lie by their dictionaries' layers (those of one layer in the
 * order given), and so do the coefficients, part after part. bias, gain, map: each part acts after its dictionary's layer. lora: a layer of the band writes
 * through the D of the highest dictionary that is not above it, and through the lowest one's where all are. Of dictionaries of one layer D is what they
 * have together (gain and map: the residual is read before any of them has acted).
 * bias, gain, map: on the residual after the dictionary's layer, by D c, by D (s * f) with f the activations of the basis' features, or by
 * D (c + M u) with u their activations before the threshold; gain and map leave a sequence's first token alone. lora: on matrices.
 * gain needs a dictionary whose features fire each by itself (not topk); neither gain nor map take one that normalises each token. */
typedef enum es_form { ES_FORM_BIAS, ES_FORM_GAIN, ES_FORM_MAP, ES_FORM_LORA } es_form;
enum { ES_MAP_MAX = 512, ES_PARTS_MAX = 16 }; /* features that a map may have at one layer, of K + K K parameters; parts of an adapter */
const char *es_form_name(es_form f);
bool es_form_named(const char *name, es_form *out); /* false: there is no such form */

typedef struct es_adapter es_adapter;

typedef struct es_adapter_options {
    es_form form;
    int first_layer, last_layer; /* lora: band of layers whose attention output and MLP down are adapted; the others: ignored */
    int rank;                    /* lora: r */
    bool constrained;            /* lora: B = D M. false: B is free (plain LoRA on the same matrices; no basis, no coefficients) */
    bool fixed_inputs;           /* lora: A stays as it began (es_learner_whiten may whiten it); only M (or B) is learned */
    uint64_t seed;               /* of A's random start */
} es_adapter_options;
/* Form lora, constrained; band: the dictionary's layer to the last one (both matrices of a layer write its output residual). Of several parts: s of the
 * lowest layer. */
es_adapter_options es_adapter_default(const es_dictionary *s, const es_model *m);

int es_adapter_new(es_adapter **out, es_model *m, const es_dictionary *s, const es_basis *b, const es_adapter_options *o, es_error *err);
typedef struct es_part { const es_dictionary *dictionary; const es_basis *basis; } es_part;
/* The same with n parts (1 to ES_PARTS_MAX); a dictionary is in one of them only. */
int es_adapter_new_parts(es_adapter **out, es_model *m, const es_part *part, int n, const es_adapter_options *o, es_error *err);
int es_adapter_copy(es_adapter **out, const es_adapter *a, es_error *err);
void es_adapter_free(es_adapter *a);
const es_adapter_options *es_adapter_get_options(const es_adapter *a);
const es_basis *es_adapter_basis(const es_adapter *a); /* of the first part; NULL when unconstrained */
int es_adapter_parts(const es_adapter *a);             /* 0 when unconstrained */
/* The basis of part i; its coefficients are *first .. *first + n - 1 (first may be NULL). */
const es_basis *es_adapter_part_basis(const es_adapter *a, int i, int *first);
int es_adapter_features(const es_adapter *a);          /* K: coefficients of all parts */
/* What coefficient k is of: its part, and its feature there (feature may be NULL). */
int es_adapter_part_of(const es_adapter *a, int k, int *feature);
uint64_t es_adapter_parameters(const es_adapter *a);
int es_adapter_steps(const es_adapter *a); /* learning steps behind it */
/* Fills *out with borrowed arrays that live as long as the adapter and follow its parameters; scale multiplies everything. One
 * scale at a time: the arrays are the adapter's own, so a thread that speaks takes a copy of the adapter. */
int es_adapter_patch(es_adapter *a, float scale, es_patch *out, es_error *err);
int es_adapter_lowest_layer(const es_adapter *a); /* es_trainer's from_layer */
/* Feature coordinates [K]: mean over the learner's input set of what the adapter adds along column i. bias: c itself. lora: the sum over
 * its matrices of (M A xbar)_i, xbar: the mean input of that matrix over the reply tokens of the experiences, in the base model. gain:
 * s_i times the mean f_i over them; map: (c + M u)_i of the mean u. */
const float *es_adapter_coefficients(const es_adapter *a);
/* One safetensors file; metadata holds form, hashes, basis, coefficients, steps. Loading is refused with both hashes when the model or
 * dictionary differs (s may be NULL for an unconstrained one). */
int es_adapter_to_bytes(const es_adapter *a, es_buf *out, es_error *err);
size_t es_adapter_shared_bytes(const es_adapter *a); /* how many of them, at the end, are its fixed inputs */
int es_adapter_from_bytes(es_adapter **out, es_model *m, const es_dictionary *s, const void *bytes, size_t n, const char *what, es_error *err);
int es_adapter_load(es_adapter **out, es_model *m, const es_dictionary *s, const char *path, es_error *err);
/* The same with several dictionaries at hand, in any order and more than are wanted; one that is missing is ES_ERR_MISMATCH, named with those at hand. */
int es_adapter_from_bytes_parts(es_adapter **out, es_model *m, const es_dictionary *const *s, int n_s, const void *bytes, size_t n, const char *what, es_error *err);
int es_adapter_load_parts(es_adapter **out, es_model *m, const es_dictionary *const *s, int n_s, const char *path, es_error *err);
/* The SHA-256 of each dictionary that a file wants, in its parts' order; *n 0: none. Reads its metadata only. */
int es_adapter_wants(const char *path, char hash[ES_PARTS_MAX][65], int *n, es_error *err);
int es_adapter_save(const es_adapter *a, const char *path, es_error *err);
/* The table itself, borrowed: bias: c [K]; gain: s [K]; map: c [K], then M [K, K], a row for each feature that is added to, a column for
 * each that is read (with several layers an M for each, of its features). NULL: form lora. */
const float *es_adapter_table(const es_adapter *a);
/* Where the residual is read: layer i of es_adapter_layers, its coefficients *first .. *first + *n - 1. */
int es_adapter_layers(const es_adapter *a);
int es_adapter_layer(const es_adapter *a, int i, int *first, int *n);
int es_adapter_layer_of(const es_adapter *a, int k); /* the dictionary's layer of coefficient k */
const float *es_adapter_matrix(const es_adapter *a); /* D [K, d_model], borrowed; NULL when unconstrained */
/* Mean residual change [d_model] after each layer of the band, for control vectors: out[n_layer * d], zero where none. */
int es_adapter_directions(const es_adapter *a, float *out, es_error *err);

/* ---- gradient attribution --------------------------------------------------------------------------------------------------------------- */

/* Per experience the mean over reply tokens of dLoss/dh at the dictionary's layer (pairs: the pair loss; else supervised), negated, so
 * that a positive product with a decoder row means "more of this feature lowers the loss". gradient: [n, d], caller's. */
int es_attribute(es_model *m, const es_dictionary *s, const es_experiences *e, int threads, float *gradient,
                 const es_progress *progress, es_error *err);
/* The `size` features of largest |mean_e p_e| (score into score[], may be NULL); bounds +-p99 from the atlas (may be NULL: +-1e3 of scale).
 * signs: one-sided bounds from the sign of the mean. */
int es_basis_suggest(es_basis *b, es_model *m, const es_dictionary *s, const es_atlas *a, const float *gradient, int n, int size, bool signs,
                     float *score, es_error *err);
/* `size` features that are alive in the atlas (NULL: any), at random, with the same bounds: what a choice is compared with. */
int es_basis_random(es_basis *b, es_model *m, const es_dictionary *s, const es_atlas *a, int size, uint64_t seed, es_error *err);

/* ==== evaluation ===------------------------------------------------------------------------------------------------------------------------------- */

typedef struct es_margin { int pairs; double preferred, rejected, margin; } es_margin; /* mean over pairs of mean log-probability a token */
int es_eval_margin(es_model *m, const es_patch *patch, const es_experiences *e, int threads, int max_reply, es_margin *out, double *per_pair /* [n] or NULL */,
                   const es_progress *progress, es_error *err);
typedef struct es_neutral { int tokens; double nll_base, nll, kl; } es_neutral; /* a token; kl = KL(base || adapted) over the vocabulary */
/* texts are raw documents, a sequence each, cut at 256 tokens. */
int es_eval_neutral(es_model *m, const es_patch *patch, const char *const *text, int n, int threads, es_neutral *out, const es_progress *progress, es_error *err);

#endif
