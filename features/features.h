/* features: activations on disk, sparse-autoencoder dictionaries, atlases of examples, bases of chosen features, and the
 * feature-constrained adapter with its learner. d = width of the residual, F = features of a dictionary, K = features of a basis.
 * Equations: the design's learning notes; what is quoted from elsewhere names its source. */
#ifndef ES_FEATURES_H
#define ES_FEATURES_H

#include "engine.h"

/* ==== dictionary (SAE) ======================================================================================================= */

typedef struct es_dictionary es_dictionary;

typedef enum es_architecture { ES_SAE_STANDARD, ES_SAE_TOPK, ES_SAE_JUMPRELU, ES_SAE_GATED } es_architecture;
const char *es_architecture_name(es_architecture a);

/* What a dictionary reads. Only the residual is hooked in a running model; the others encode activations from files. */
typedef enum es_hook_kind {
    ES_HOOK_RESIDUAL, /* after a layer; after layer -1: the embedding */
    ES_HOOK_ATTENTION, /* what goes into the attention's output projection, heads side by side */
    ES_HOOK_ATTENTION_OUT, ES_HOOK_MLP_IN, ES_HOOK_MLP_OUT,
    ES_HOOK_UNKNOWN, /* the files do not say */
} es_hook_kind;
const char *es_hook_words(es_hook_kind h); /* for messages: "the residual" */

typedef struct es_dictionary_info {
    char folder[1024], name[128];
    const char *format;   /* static: "saelens", ... as es_dictionary_format names them */
    char hash[65];        /* SHA-256 of the file with the weights */
    char model_name[256], model_hash[65]; /* metadata; model_hash is "" in dictionaries made elsewhere */
    char hook_name[128];  /* "blocks.15.hook_resid_post"; "" where unknown */
    char hook_out[128];   /* transcoders: what they write; "": what they read */
    es_hook_kind hook;
    int layer;            /* the residual (or other hook) after, or of, this layer */
    es_architecture architecture;
    int d, d_out, n_features, k; /* d_out: width of what is reconstructed, d but for transcoders; k: topk only */
    bool transcoder, skip; /* skip: adds its input times a matrix to the reconstruction */
    bool apply_b_dec_to_input, rescale_acts_by_decoder_norm;
    char normalize_activations[40];
    char l0[24];          /* as its files name it: "71", "medium"; "" where unknown */
} es_dictionary_info;

/* Opens a dictionary: a folder or a file in it, of any of es_dictionary_format's formats. Below a gigabyte it is read into memory as f32; above, the
 * matrices stay in the mapped file and are converted piece by piece. ES_ERR_MISSING where there is none; ES_ERR_FORMAT with what is wrong. */
int es_dictionary_open(es_dictionary **out, const char *path, es_error *err);
typedef struct es_dictionary_options {
    bool mapped;  /* leave the matrices in the file whatever their size */
    bool no_hash; /* info.hash stays "": no pass over the whole file, for work that does not name the dictionary */
    const char *hashes; /* folder of one's own where hashes of files over 16 MB are kept, by the file's place, size and times of change; NULL: none are */
} es_dictionary_options;
int es_dictionary_open_with(es_dictionary **out, const char *path, const es_dictionary_options *o, es_error *err);
/* The i-th format's name, and a line on it; NULL: there are no more. writes: es_dictionary_convert can make it. */
const char *es_dictionary_format(int i, const char **what, bool *writes);
/* Reads the dictionary at `path` and writes it into `folder` in another format. Arrays keep their types (f64 becomes f32) and their very numbers, unless
 * the format has no place for b_dec taken off the input: it is then folded into the encoder's bias. What the format cannot say is ES_ERR_USAGE. */
int es_dictionary_convert(const char *path, const char *folder, const char *format, es_error *err);
/* Writes these features alone as a SAELens folder. A topk dictionary cannot be cut: which are among the k depends on all. */
int es_dictionary_select(const char *path, const int *feature, int n, const char *folder, es_error *err);
void es_dictionary_free(es_dictionary *s);
const es_dictionary_info *es_dictionary_get_info(const es_dictionary *s);
/* Refuses (ES_ERR_MISMATCH, both hashes named) a dictionary that says it was made from another model, that has another width, or that reads what is not
 * hooked. */
int es_dictionary_check_model(const es_dictionary *s, es_model *m, es_error *err);
bool es_dictionary_is_mapped(const es_dictionary *s);
/* Decoder rows [first, first + n) as f32, out[n, d_out]: directions. Rows that hold something that is no finite number come as zeros. */
void es_dictionary_rows(const es_dictionary *s, int first, int n, float *out);
/* All of them, [F, d_out], borrowed. NULL where they are mapped: use es_dictionary_rows. */
const float *es_dictionary_decoder(const es_dictionary *s);
const float *es_dictionary_decoder_bias(const es_dictionary *s); /* [d_out] */
/* Encoder column j as a row [d] with its bias and threshold (0 unless jumprelu or gated). A gated feature is the jumprelu one that equals it
 * (Rajamanoharan et al. 2024, appendix: the weights are shared): encoder exp(r_mag) W, bias b_mag, threshold b_mag - exp(r_mag) b_gate. */
void es_dictionary_encoder(const es_dictionary *s, int feature, float *out, float *bias, float *threshold);

typedef struct es_sparse { /* rows of (index, value); row t is [start[t], start[t+1]); within a row by falling value */
    int n_rows;
    size_t *start;
    int32_t *index;
    float *value;
    size_t cap_rows, cap; /* owned memory, reused by the next call */
} es_sparse;
void es_sparse_free(es_sparse *s);

/* x[T,d] -> active features (value > 0). Source of the formulas: SAELens 6, sae_lens/saes. Features are taken in blocks: beside the result it needs
 * memory for a block's activations, and for a block of the encoder where that is mapped. */
int es_dictionary_encode(const es_dictionary *s, es_pool *p, const float *x, int T, es_sparse *out, es_error *err);
/* Only the named features: act[T,n]. topk dictionaries count the others' competition too. */
int es_dictionary_encode_some(const es_dictionary *s, es_pool *p, const float *x, int T, const int *feature, int n, float *act, es_error *err);
/* xhat[T,d_out] = sum value * decoder row + b_dec (+ x skip). Normalisation is undone: x gives the row norms where that needs them, and is needed with a skip;
 * may be NULL otherwise. */
int es_dictionary_decode(const es_dictionary *s, const es_sparse *acts, const float *x, float *xhat, es_error *err);
/* The n features whose decoder rows have the largest cosine with feature's. */
void es_dictionary_neighbours(const es_dictionary *s, int feature, int n, int *out, float *cosine);

/* Activations [*rows, *d] in a .npy file (F16, F32, F64 or BF16, either order), mapped. ES_ERR_FORMAT: no such matrix. */
typedef struct es_activations es_activations;
int es_activations_open(es_activations **out, const char *path, size_t *rows, int *d, es_error *err);
void es_activations_read(const es_activations *a, size_t first, size_t n, float *out); /* rows [first, first + n) as f32, out[n, d] */
void es_activations_free(es_activations *a);

/* ---- harvest: text -> activation shards --------------------------------------------------------------------------------------- */

typedef struct es_harvest_options {
    const int *layer; int n_layer;  /* residual after each of these */
    int context;                    /* tokens in a sequence: documents are cut at this length (default 256) */
    uint64_t max_tokens;            /* stored tokens; 0: all */
    bool skip_first;                /* leave each sequence's first token out (its norm is ~100x the others') */
    int threads;
    uint64_t seed;                  /* documents are read in a shuffled order when not 0 */
} es_harvest_options;
es_harvest_options es_harvest_default(void);
/* files: .txt (one document a file), .jsonl with "text", or chats {"messages":[...]} / {"prompt","response"}, rendered in the model's
 * own template. Writes DIR/harvest.json, ids.bin (int32), sequences.bin, layer-NN/shard-NNNN.f16. An interrupted harvest resumes. */
int es_harvest(es_model *m, const char *const *file, int n_file, const char *dir, const es_harvest_options *o,
               const es_progress *progress, es_error *err);

/* ---- training -------------------------------------------------------------------------------------------------------------------- */

typedef struct es_dictionary_training {
    int n_features, k, batch;       /* BatchTopK: k*batch activations are kept in a batch */
    double learning_rate;           /* 0: scaled from n_features */
    uint64_t tokens;                /* tokens to see in all (epochs over the shards as needed) */
    int aux_k; double aux_weight;   /* dead features reconstruct the error (Gao et al. 2024, "Scaling and evaluating SAEs") */
    uint64_t dead_tokens;           /* a feature silent for so many tokens is dead */
    double warmup, decay;           /* shares of the run */
    uint64_t seed;
    int threads;
    double checkpoint_seconds;
    bool half;                      /* write f16 weights */
} es_dictionary_training;
es_dictionary_training es_dictionary_training_default(void);
/* Trains on a harvest's layer and writes a SAELens folder (architecture jumprelu, threshold estimated over training as BatchTopK
 * does). DIR/checkpoint holds optimiser state; an interrupted run resumes from it and ends with the same kind of result.
 * progress.report carries "fvu=.. l0=.. dead=.." in `what`. */
int es_dictionary_train(const char *harvest_dir, int layer, const char *dir, const es_dictionary_training *o,
                        const es_progress *progress, es_error *err);

typedef struct es_dictionary_stats {
    uint64_t tokens;
    double fvu, l0, dead, dense;       /* shares; dense: active on more than 10 % of tokens */
    double mean_cosine;                /* of x and its reconstruction */
    double ce, ce_patched, ce_zero, recovered; /* nats a token; recovered = (ce_zero - ce_patched)/(ce_zero - ce) */
} es_dictionary_stats;
int es_dictionary_measure(es_model *m, const es_dictionary *s, const char *const *file, int n_file, uint64_t max_tokens, int threads,
                          es_dictionary_stats *out, const es_progress *progress, es_error *err);

/* ---- atlas: what each feature looks like ----------------------------------------------------------------------------------------------- */

typedef struct es_atlas es_atlas;
enum { ES_ATLAS_BINS = 50, ES_ATLAS_TOKENS = 20 };

typedef struct es_example { /* a window of text; borrowed from the atlas */
    int n, peak;            /* tokens; index of the strongest */
    const int32_t *id;      /* [n] */
    const float *value;     /* [n] activation of the feature at each token */
    float max;
} es_example;

typedef struct es_feature_card { /* valid until the next es_atlas_card on the same atlas */
    int feature;
    double density;          /* share of tokens on which it is active */
    float max, mean, p99;    /* of the active values */
    float bin_width;
    uint32_t histogram[ES_ATLAS_BINS]; /* of active values, (0, max] */
    int n_example;
    const es_example *example;  /* top ones first, at least 20 where the feature fired that often */
    int n_promoted, n_suppressed;
    int32_t promoted[ES_ATLAS_TOKENS], suppressed[ES_ATLAS_TOKENS]; /* by decoder row . unembedding (final norm's weight applied) */
    float promoted_logit[ES_ATLAS_TOKENS], suppressed_logit[ES_ATLAS_TOKENS];
} es_feature_card;

typedef struct es_atlas_options { int examples, window, threads; uint64_t max_tokens; } es_atlas_options;
es_atlas_options es_atlas_default(void); /* 20 examples of 24 tokens */
/* Reads a harvest of the dictionary's layer (all its tokens, up to max_tokens) and writes one compressed file. */
int es_atlas_build(es_model *m, const es_dictionary *s, const char *harvest_dir, const char *path, const es_atlas_options *o,
                   const es_progress *progress, es_error *err);
int es_atlas_open(es_atlas **out, const char *path, es_error *err); /* reads the index only; cards are read on demand */
void es_atlas_free(es_atlas *a);
int es_atlas_features(const es_atlas *a);
const char *es_atlas_dictionary_hash(const es_atlas *a);
int es_atlas_card(es_atlas *a, int feature, es_feature_card *out, es_error *err);
/* The figures of every feature at once, [F] each, borrowed: for lists, sorting and guards. */
const float *es_atlas_density(const es_atlas *a);
const float *es_atlas_max(const es_atlas *a);
const float *es_atlas_p99(const es_atlas *a);
/* First n promoted tokens / tokens on which it fires most, as a short printable string (for lists and search). */
int es_atlas_tokens_text(es_atlas *a, const es_model *m, int feature, es_buf *out, es_error *err);

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

typedef struct es_basis {
    char name[64];
    int version;
    char model_hash[65], dictionary_hash[65], dictionary[256]; /* dictionary: its name, for messages */
    int layer, n;
    int *feature;
    float *lo, *hi;   /* bounds of each coefficient; a sign is a one-sided bound (lo = 0 or hi = 0) */
} es_basis;
void es_basis_free(es_basis *b); /* the arrays, not the struct */
int es_basis_add(es_basis *b, int feature, float lo, float hi, es_error *err); /* a feature already in it gets the new bounds */
bool es_basis_remove(es_basis *b, int feature);
json_t *es_basis_to_json(const es_basis *b); /* {"format":"espalier-basis","version":1,...} */
int es_basis_from_json(es_basis *out, json_t *value, es_error *err);
/* D as K rows [K, d] of unit decoder rows; caller frees. */
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

/* ---- learner --------------------------------------------------------------------------------------------------------------------------------- */

typedef struct es_learner es_learner;

typedef enum es_optimiser { ES_OPTIMISER_ADAM, ES_OPTIMISER_METRIC } es_optimiser; /* metric: form bias, or lora with fixed inputs */

typedef struct es_neutral_text { /* a document; or, with messages, the reply to them */
    const char *text;
    const es_message *message; int n_message;
} es_neutral_text;

typedef struct es_learner_options {
    es_optimiser optimiser;
    double learning_rate;    /* adam: its step. metric: length of the first step as a share of the median |h|: |D dc|, or for lora the
                                root of sum |D^T dM|^2, what is added in mean square where the inputs are white */
    int steps;               /* what a run takes when nobody says otherwise; the learner itself does not look at it */
    double momentum, decay;  /* adam: beta1, beta2 */
    double beta;             /* pair loss -log sigmoid(beta [d mean logp(+) - d mean logp(-)]), d: against the base model */
    double metric_lambda;    /* bias: (D'D + lambda I)^-1 */
    double enough;           /* below this loss a step moves nothing (guard "learned"); 0: never */
    double kappa;            /* guard: mean KL from base on anchors at most this; 0: no guard, and KL is not measured */
    double rho;              /* guard: |D c| at most rho times the median |h| at the layer */
    int batch;               /* experiences a step; 0: all */
    int max_reply, max_prompt; /* tokens kept of each (reply's beginning, prompt's end) */
    int threads;
    uint64_t seed;
    bool exact;              /* products in f32 also where the processor has fast bfloat16 ones, whose noise in the KL is about 1e-4: for checks */
    bool weighting;          /* each experience counts by what is thought of it (es_learner_decision) */
    bool shrink;             /* metric: a feature's part of a step is multiplied by max(0, 1 - 1/snr^2) of the experiences' gradients along it (positive-part James-Stein) */
    double hold_out;         /* share of the experiences kept for the gate (at least 1 when there are 4 or more) */
    const char *const *anchor; int n_anchor; /* neutral texts; NULL: built-in ones */
    double replay;           /* share of a step's weight, in [0,1): a step starts from the gradient of the experiences' mean loss plus replay / (1 - replay)
                                times the mean KL(base || adapted) on a few neutral texts, others each step; what it moves is nobody's influence. 0: off */
    const es_neutral_text *replay_text; int n_replay; /* not those that the KL guard measures on; NULL: built-in ones. Borrowed by es_learner_open only */
} es_learner_options;
es_learner_options es_learner_default(es_form form);
/* For form lora with fixed inputs: the metric step, experiences weighed. */
es_learner_options es_learner_white(void);
enum { ES_WHITE_RANK = 64 };

/* Losses of an experience, m = mean log-probability of a reply's tokens (its end-of-turn included), d from the base model:
 * both replies: -log sigma(beta [d m(+) - d m(-)]) (DPO, Rafailov et al. 2023, on means); preferred only: -m(+); rejected only:
 * -log sigma(-beta d m(-)) (NPO, Zhang et al. 2024: unlikelihood that fades out). A step descends their weighted mean.
 * Works on *a in place (borrowed). Caches each experience's residual below the adapter; says its memory through es_learner_bytes. */
int es_learner_open(es_learner **out, es_model *m, const es_dictionary *s, es_adapter *a, const es_learner_options *o, es_error *err);
void es_learner_free(es_learner *l);
int es_learner_add(es_learner *l, const es_experience *e, const volatile bool *cancel, es_error *err);
/* What reading experiences in the base model gave, kept for learners to come: those of the same model, limits and adapted layers do not read them
 * again, and learn the same to the bit. The 64 newest, about 0.8 MB each. Forms bias and lora; the others read. r outlives l, one learner at a time. */
typedef struct es_readings es_readings;
es_readings *es_readings_new(void); /* NULL: no memory */
void es_readings_free(es_readings *r);
void es_learner_recall(es_learner *l, es_readings *r);
/* Fixed inputs: A becomes L^-1 A, L L^T = C + 0.1 mean(diag C) I, C the second moment of A x on these texts in the base model, without each text's first
 * four tokens: a projection that is silent where neutral text is: documents and replies to ordinary questions alike,
 * or it is silent in one and costs in the other (the input half of a Kronecker-factored natural gradient; Martens & Grosse 2015). Before the first
 * experience and while M is zero. At least as many tokens as the rank are needed. */
int es_learner_whiten(es_learner *l, const es_neutral_text *text, int n, const volatile bool *cancel, es_error *err);
/* Directions learned beforehand: adapters with the same fixed inputs, band and rank, each with something learned; of another basis, or of none,
 * what this one can do of it counts. A step's
 * preconditioner becomes G^-1 + weight U (U^T G U)^-1 U^T, U their M's, G the metric: the experiences' agreement with a direction moves
 * the adapter along it `weight` times as readily as along anything else. one_sided: never below zero on any of them. Takes over the
 * directions' inputs A, so es_learner_whiten is not needed. Metric step only; before the first experience. */
typedef struct es_direction { const char *name; const es_adapter *adapter; } es_direction;
int es_learner_prior(es_learner *l, const es_direction *direction, int n, double weight, bool one_sided, es_error *err);
int es_learner_directions(const es_learner *l);
const char *es_learner_direction(const es_learner *l, int i);
/* Where the adapter stands along each, [es_learner_directions]: length of what is added in mean square, as a share of the median |h|. */
void es_learner_amplitudes(es_learner *l, double *out);

/* What was made of an experience at the first step that took it, with weighting: weight = trust(source) * agreement, clipped at 1.
 * surprise: base nats a token of the preferred reply; over 4, and over 1.5 times the median of those that came in together, it is taken for gibberish. agreement: cosine in the metric of what the
 * experience asks for with the prior's direction that the experiences concern most (a sign per direction when it is one-sided, else that
 * of the majority), or without a prior with the sum of the others, which is told but not used (whole gradients do not find swaps, docs/research.md); trust: Beta mean of how often its source agreed. */
typedef struct es_decision { double weight, agreement, surprise, trust; char reason[200]; } es_decision;
const es_decision *es_learner_decision(const es_learner *l, int experience); /* NULL for held-out ones */

/* Fixed inputs as a thing of their own, for every adapter of a model and a band of layers. */
typedef struct es_inputs es_inputs;
/* White on these texts (NULL: the program's own few, which are enough for small ranks only), for the band of es_adapter_default. */
int es_inputs_make(es_inputs **out, es_model *m, const es_dictionary *s, int rank, const es_neutral_text *text, int n, uint64_t seed, int threads,
                   const volatile bool *cancel, es_error *err);
void es_inputs_free(es_inputs *x);
int es_inputs_rank(const es_inputs *x);
/* a's rank at most theirs, its band within theirs, nothing learned yet: A is theirs from now on. */
int es_adapter_set_inputs(es_adapter *a, const es_inputs *x, es_error *err);
/* From now on a step is kept from what to first order raises the loss of the neutral texts that the inputs were made with (documents and replies
 * each; A-GEM, Chaudhry et al. 2019, with the gradients taken once at the base model). Metric step of form lora. */
int es_learner_spare(es_learner *l, const es_inputs *x, es_error *err);
/* One safetensors file, f16; a shape or a model that does not fit is refused. */
int es_inputs_save(const es_inputs *x, const char *path, es_error *err);
int es_inputs_load(es_inputs **out, es_model *m, const char *path, es_error *err);

typedef struct es_neutral_texts { /* JSONL: {"text"}, or {"messages":[...],"reply"}; a line with "about" is passed over */
    json_t *keep; /* holds the texts */
    es_neutral_text *item;
    int n, cap;
} es_neutral_texts;
int es_neutral_load(es_neutral_texts *t, const char *path, es_error *err); /* free also after an error */
void es_neutral_texts_free(es_neutral_texts *t);
/* Every third text of a kind is for choosing and for inputs, so that harm is measured on others. kind: zeros before the first text. */
bool es_neutral_is_dev(const es_neutral_text *t, int kind[2]);
int es_neutral_dev(const es_neutral_text *text, int n, es_neutral_text *out); /* those into out[n]; how many */
/* Inputs that are white on that third of these texts. */
int es_inputs_neutral(es_inputs **out, es_model *m, const es_dictionary *s, int rank, const es_neutral_text *text, int n, int threads, const volatile bool *cancel,
                      es_error *err);
/* The same of the file `neutral`, kept in `folder` under the model's name: made the first time (half a minute), read after that. */
int es_inputs_kept(es_inputs **out, es_model *m, const es_dictionary *s, int rank, const char *neutral, const char *folder, int threads,
                   const volatile bool *cancel, es_error *err);

int es_learner_count(const es_learner *l);
size_t es_learner_bytes(const es_learner *l);

typedef struct es_step_report {
    int step;
    double loss, margin, kl;     /* margin: mean d(preferred - rejected) mean log-probability over learning pairs; kl: on anchors, after guards */
    double norm;                 /* |D c| over the median |h| */
    double replay;               /* mean KL on this step's replayed texts, before it; 0 without */
    double backtracked;          /* 1, or the factor by which guards shortened the step (and, a little, all before it); 0: nothing moved */
    double seconds; int tokens;
    int n_moved; int moved[8]; float by[8]; /* basis positions of the coefficients that moved most in this step */
    const char *guard;           /* which guard acted, or NULL; static string */
} es_step_report;
int es_learner_step(es_learner *l, es_step_report *out, const volatile bool *cancel, es_error *err); /* on error the adapter is as before */

typedef struct es_gate_report {
    bool passed;
    int held_out;
    double gain, kl;             /* on held-out experiences (margin for pairs, mean log-probability otherwise); on anchors */
    char reason[200];
} es_gate_report;
int es_learner_gate(es_learner *l, es_gate_report *out, const volatile bool *cancel, es_error *err);

/* out[(n+1) * K]: contribution of each experience (in es_learner_add's order) to each coefficient since the learner was opened; the last
 * row is what no single experience accounts for (products of two changes, guards that project, a new input set). Columns add up to the
 * change of the coefficients. */
void es_learner_influence(const es_learner *l, float *out);
/* A copy of the adapter without these experiences' part of every step that was taken: exact bookkeeping for what their gradients moved, so
 * the others' parts stay as they are (their gradients were taken with these present; a replay without them would differ by that).
 * sparing: of their part only what leaves the others where they are: what is orthogonal, in the metric, to each other experience's part and to each
 * direction but the one that these went along most. What others ask for too then stays. Metric step of form lora. */
int es_learner_without(es_learner *l, const int *experience, int n, bool sparing, es_adapter **out, es_error *err);
/* Per coefficient signal to noise of the experiences' gradients: mean / (sd / sqrt n); NAN for fewer than 2. [K] */
void es_learner_snr(const es_learner *l, float *out);

/* ---- evaluation ---------------------------------------------------------------------------------------------------------------------------------- */

typedef struct es_margin { int pairs; double preferred, rejected, margin; } es_margin; /* mean over pairs of mean log-probability a token */
int es_eval_margin(es_model *m, const es_patch *patch, const es_experiences *e, int threads, int max_reply, es_margin *out, double *per_pair /* [n] or NULL */,
                   const es_progress *progress, es_error *err);
typedef struct es_neutral { int tokens; double nll_base, nll, kl; } es_neutral; /* a token; kl = KL(base || adapted) over the vocabulary */
/* texts are raw documents, a sequence each, cut at 256 tokens. */
int es_eval_neutral(es_model *m, const es_patch *patch, const char *const *text, int n, int threads, es_neutral *out, const es_progress *progress, es_error *err);

#endif
