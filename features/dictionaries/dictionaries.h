/* dictionaries: activations on disk, sparse-autoencoder dictionaries, and atlases of examples.
 * d = width of the residual, F = features of a dictionary. What is quoted names its source. */
#ifndef ES_DICTIONARIES_H
#define ES_DICTIONARIES_H

#include "engine.h"

/* ==== dictionary (SAE) ======================================================================================================= */

typedef struct es_dictionary es_dictionary;

typedef enum es_architecture { ES_SAE_STANDARD, ES_SAE_TOPK, ES_SAE_JUMPRELU, ES_SAE_GATED } es_architecture;
const char *es_architecture_name(es_architecture a);

/* What a dictionary reads. In a running model all but the MLP's input and what is unknown can be read; features steer and adapt in the residual only. */
typedef enum es_hook_kind {
    ES_HOOK_RESIDUAL, /* after a layer; after layer -1: the embedding */
    ES_HOOK_ATTENTION, /* what goes into the attention's output projection, heads side by side */
    ES_HOOK_ATTENTION_OUT, /* what attention adds to the residual: in families with a norm behind it (Gemma, OLMo 2) after that, as hook_attn_out */
    ES_HOOK_MLP_IN,
    ES_HOOK_MLP_OUT, /* what the MLP adds to it, likewise */
    ES_HOOK_UNKNOWN, /* the files do not say */
} es_hook_kind;
const char *es_hook_words(es_hook_kind h); /* for messages: "the residual" */
const char *es_hook_site(es_hook_kind h);  /* "resid_post", "z", "attn_out", "mlp_in", "mlp_out"; "" for what is unknown */
bool es_hook_site_named(const char *name, es_hook_kind *out); /* one of those, or short: "resid", "attn", "mlp"; false: none of them */
bool es_hook_point(es_hook_kind h, es_point *out); /* false: a running model does not give it */
typedef struct es_hook_place { int layer; es_hook_kind hook; } es_hook_place;
void es_hook_place_name(es_hook_place p, char out[32]); /* of its folder: "layer-14", "layer-14-mlp_out" */
void es_hook_place_hook(es_hook_place p, char *out, size_t size); /* in TransformerLens' words: "blocks.14.hook_mlp_out" */

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
    es_cuda *card; /* borrowed, and outlives the dictionary: batches worth the way are encoded there (encode_card.h); NULL: the processor does all */
    size_t card_workspace; /* bytes; 0: 256 MB */
    size_t card_least;     /* multiply-adds from which on a batch is worth the way; 0: 4 million */
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
/* How often each feature is active, [F], as far as anybody says: of its atlas (may be NULL), else of its folder's sparsity.safetensors, when that makes
 * sense, in *own, which is the caller's to free. NULL: nobody does. */
typedef struct es_atlas es_atlas;
const float *es_dictionary_density(const es_dictionary *s, const es_atlas *a, float **own);
/* How often each feature is active, density[n] as shares of tokens, in SAELens' sparsity.safetensors of a dictionary's folder (which names no dictionary: the
 * file beside the weights is believed to be theirs). Read: ES_ERR_MISSING where there is none, ES_ERR_FORMAT when it is of another width or holds no shares. */
int es_sparsity_write(const char *folder, const float *density, int n, es_error *err);
int es_sparsity_read(const char *folder, float *density, int n, es_error *err);
void es_dictionary_free(es_dictionary *s);
const es_dictionary_info *es_dictionary_get_info(const es_dictionary *s);
/* Refuses (ES_ERR_MISMATCH, both hashes named) a dictionary that says it was made from another model, that has another width, or that reads what a running
 * model does not give. */
int es_dictionary_check_model(const es_dictionary *s, es_model *m, es_error *err);
es_point es_dictionary_point(const es_dictionary *s); /* where that is, of layer info.layer */
int es_dictionary_check_steers(const es_dictionary *s, es_error *err); /* ES_ERR_MISMATCH, unless it reads the residual: others are for looking */
/* What features write in the residual, out[n, d_model]: decoder rows; of heads side by side (z) those times the output matrix, and the weight of the norm
 * behind it where there is one. Only of a dictionary that has them; the others' rows lie in another space. */
bool es_dictionary_has_directions(const es_dictionary *s, const es_model *m);
int es_dictionary_directions(const es_dictionary *s, const es_model *m, es_pool *p, int first, int n, float *out, es_error *err);
bool es_dictionary_is_mapped(const es_dictionary *s);
/* Decoder rows [first, first + n) as f32, out[n, d_out]: directions. Rows that hold something that is no finite number come as zeros. */
void es_dictionary_rows(const es_dictionary *s, int first, int n, float *out);
/* Gives the pages of mapped decoder rows that were read back to the file's cache: for those who go through all of them, now and then. */
void es_dictionary_release(const es_dictionary *s);
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
 * memory for a block's activations, and for a block of the encoder where that is mapped. On a card products are in f32 too. */
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
    const int *layer; int n_layer;  /* of each of these ... */
    const es_hook_kind *site; int n_site; /* ... what is read, of each of these; n_site 0: the residual. Not the MLP's input */
    int context;                    /* tokens in a sequence: documents are cut at this length (default 256) */
    uint64_t max_tokens;            /* stored tokens; 0: all */
    bool exact;                     /* products in f32; otherwise rougher where the processor is the faster for it (es_kernels_eight), or ... */
    bool bfloat16;                  /* ... on bfloat16 only (es_kernels_half) */
    bool skip_first;                /* leave each sequence's first token out (its norm is ~100x the others') */
    int threads;
    uint64_t seed;                  /* documents are read in a shuffled order when not 0 */
} es_harvest_options;
es_harvest_options es_harvest_default(void);
/* files: .txt (one document a file), .jsonl with "text", or chats {"messages":[...]} / {"prompt","response"}, rendered in the model's
 * own template. Writes DIR/harvest.json, ids.bin (int32), sequences.bin, layer-NN/shard-NNNN.f16 and for other sites than the residual
 * layer-NN-SITE/shard-NNNN.f16 (es_hook_place_name). An interrupted harvest resumes. */
int es_harvest(es_model *m, const char *const *file, int n_file, const char *dir, const es_harvest_options *o,
               const es_progress *progress, es_error *err);

/* ---- training -------------------------------------------------------------------------------------------------------------------- */

typedef enum es_recipe { /* what a dictionary is trained with; train_loss.h has the formulas */
    ES_TRAIN_BATCHTOPK,  /* a batch keeps its k*batch largest activations (Bussmann, Leask & Nanda 2024) */
    ES_TRAIN_TOPK,       /* each token keeps its k largest (Gao et al. 2024) */
    ES_TRAIN_MATRYOSHKA, /* BatchTopK whose first features reconstruct by themselves too (Bussmann et al. 2024) */
    ES_TRAIN_JUMPRELU,   /* a threshold a feature, learned through straight-through estimators; L0 penalty (Rajamanoharan et al. 2024) */
    ES_TRAIN_GATED,      /* gates and magnitudes apart (Rajamanoharan et al. 2024a) */
    ES_TRAIN_STANDARD,   /* ReLU, L1 of the activations times their decoder rows' norms (Bricken et al. 2023; Anthropic, April 2024) */
} es_recipe;
enum { ES_RECIPES = 6, ES_PREFIXES_MAX = 16 };
const char *es_recipe_name(es_recipe r); /* "batchtopk", ...; NULL past the last */
bool es_recipe_on_card(es_recipe r);     /* those without a penalty */

typedef struct es_dictionary_training {
    es_recipe recipe;
    es_hook_kind site;              /* of the layer: the residual, unless another is named */
    int n_features, k, batch;       /* k: active features a token, on average; the recipes with a penalty are steered towards it */
    double learning_rate;           /* 0: scaled from n_features */
    uint64_t tokens;                /* tokens to see in all (epochs over the shards as needed) */
    int aux_k; double aux_weight;   /* dead features reconstruct the error (Gao et al. 2024, "Scaling and evaluating SAEs") */
    uint64_t dead_tokens;           /* a feature silent for so many tokens is dead */
    double warmup, decay;           /* shares of the run in which the rate rises, and falls */
    double sparsity;                /* jumprelu, gated, standard: weight of the penalty, of inputs with mean norm sqrt(d). 0: steered so that k are active */
    double sparsity_warmup;         /* share of the run in which it rises */
    double bandwidth;               /* jumprelu: how near its threshold an activation teaches it */
    int prefix[ES_PREFIXES_MAX], n_prefix; /* matryoshka: rising numbers of features, the last all of them; n_prefix 0: F/16, F/8, F/4, F/2, F */
    uint64_t seed;
    int threads;
    double checkpoint_seconds;
    bool half;                      /* write f16 weights */
    es_cuda *card;                  /* borrowed; NULL: the processor. A recipe that is not on a card is ES_ERR_USAGE. On a card products are in TF32 */
    size_t card_workspace;          /* bytes; 0: 256 MB */
    bool card_exact;                /* products in f32 */
} es_dictionary_training;
es_dictionary_training es_dictionary_training_default(void);
/* Trains on a harvest's layer, at o->site, and writes a SAELens folder: topk, gated and standard as what they are; batchtopk and matryoshka as jumprelu with one threshold,
 * estimated over training, as SAELens does. DIR/checkpoint holds optimiser state; an interrupted (or killed) run resumes from it and ends with the same kind
 * of result. progress.report carries "fvu=.. l0=.. dead=.. near=.." in `what`; near: the mean over features of the largest cosine with another one's row.
 * On a card fvu is that of 256 tokens a batch, l0 counts kept activations only, and at most ES_TOP_MAX (kernels.h) dead features reconstruct a token's error. When the
 * card is lost the run ends with ES_ERR_DEVICE; the same call, on a card or not, goes on from the last checkpoint. */
int es_dictionary_train(const char *harvest_dir, int layer, const char *dir, const es_dictionary_training *o,
                        const es_progress *progress, es_error *err);
/* Several layers and sites of one harvest (o->site does not count), one after another, into DIR/ and es_hook_place_name: what is finished stays, what was
 * begun goes on. */
int es_dictionary_train_places(const char *harvest_dir, const es_hook_place *place, int n_place, const char *dir, const es_dictionary_training *o,
                               const es_progress *progress, es_error *err);

/* The same without a harvest on disk: the model is run, and its rows go through a buffer in memory, where they are mixed, to as many trainings at once as
 * there are places. Each step takes a batch at random out of the buffer, and as many new rows take its place. The text is read again, in another order,
 * when it is at its end. DIR/stream.json and each dictionary's checkpoint say how far it was: a run that was cancelled or killed goes on from there; what the
 * buffer held then is dropped, and it is filled anew with the text that follows. */
typedef struct es_stream {
    const char *const *file; int n_file; /* as es_harvest takes them */
    es_harvest_options reading;          /* its layers times sites are the places; max_tokens: of a pass over the text */
    size_t buffer;                       /* rows of each place; at least two batches */
    bool itself;                         /* of one place: the folder is the dictionary's own; otherwise each has one in it (es_hook_place_name) */
} es_stream;
enum { ES_STREAM_BUFFER = 65536 }; /* a usual size */
int es_dictionary_train_stream(es_model *m, const es_stream *from, const char *dir, const es_dictionary_training *o, const es_progress *progress, es_error *err);

typedef struct es_training_plan { /* of one layer; layers are trained one after another. Of a stream: of all its places together */
    size_t memory;       /* bytes at once, the harvest's mapped pages and a card's memory not counted */
    size_t disk;         /* bytes that the finished dictionary takes */
    size_t disk_checkpoint; /* bytes that the checkpoint takes besides while it trains */
    double tokens_per_second, seconds; /* by a few steps made for it; 0 where none were made */
    size_t memory_reading;  /* of a stream: what of them is the model's share: to run o->tokens through it */
    double seconds_reading;
} es_training_plan;
/* What a training will take. try_steps: that many steps are made, and forgotten, to tell the time (0: none). Writes nothing. */
int es_dictionary_plan_width(const es_dictionary_training *o, int d, es_training_plan *out, es_error *err); /* without the time, where there is no harvest yet */
int es_dictionary_stream_plan(es_model *m, const es_stream *from, const es_dictionary_training *o, int try_steps, es_training_plan *out, es_error *err); /* the time includes the model's */
int es_dictionary_train_plan(const char *harvest_dir, int layer, const es_dictionary_training *o, int try_steps, es_training_plan *out, es_error *err);

typedef struct es_dictionary_stats {
    uint64_t tokens;
    double fvu, l0, dead, dense;       /* shares; dense: active on more than 10 % of tokens */
    double mean_cosine;                /* of x and its reconstruction */
    double ce, ce_patched, ce_zero, recovered; /* nats a token; recovered = (ce_zero - ce_patched)/(ce_zero - ce) */
} es_dictionary_stats;
int es_dictionary_measure(es_model *m, const es_dictionary *s, const char *const *file, int n_file, uint64_t max_tokens, int threads,
                          es_dictionary_stats *out, const es_progress *progress, es_error *err);

/* ---- atlas: what each feature looks like ----------------------------------------------------------------------------------------------- */

enum { ES_ATLAS_BINS = 50, ES_ATLAS_TOKENS = 20, ES_ATLAS_INTERVALS = 5, ES_ATLAS_CORRELATED = 10 };

typedef struct es_example { /* a window of text; borrowed from the atlas */
    int n, peak;            /* tokens; index of the strongest */
    const int32_t *id;      /* [n] */
    const float *value;     /* [n] activation of the feature at each token */
    float max;
    int interval;           /* of a random place: of its activation, 0 the lowest */
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
    /* Since version 2; none in an atlas of version 1. */
    int n_spread;
    const es_example *spread;   /* places drawn at random from each interval of (0, max], the highest interval first: peak is the place, max the window's largest */
    bool has_logits;
    float logit_lo, logit_hi;   /* of its logits on the whole vocabulary */
    uint32_t logits[ES_ATLAS_BINS]; /* in equal bins of [lo, hi], the last one closed, as numpy.histogram */
    int n_correlated;
    int32_t correlated[ES_ATLAS_CORRELATED]; /* by Pearson's correlation over tokens (coactive.h), best first */
    float pearson[ES_ATLAS_CORRELATED], together[ES_ATLAS_CORRELATED]; /* together: the cosine of the two over tokens */
} es_feature_card;

typedef struct es_atlas_options {
    int examples, window, threads;
    int spread; /* places drawn from each interval, at most 12; 0: none */
    uint64_t max_tokens;
} es_atlas_options;
es_atlas_options es_atlas_default(void); /* 20 examples of 24 tokens, and 4 from each interval */
/* Reads a harvest of the dictionary's layer (all its tokens, up to max_tokens) and writes one compressed file. */
int es_atlas_build(es_model *m, const es_dictionary *s, const char *harvest_dir, const char *path, const es_atlas_options *o,
                   const es_progress *progress, es_error *err);
int es_atlas_open(es_atlas **out, const char *path, es_error *err); /* reads the index only; cards are read on demand */
void es_atlas_free(es_atlas *a);
int es_atlas_features(const es_atlas *a);
const char *es_atlas_dictionary_hash(const es_atlas *a);
uint64_t es_atlas_tokens(const es_atlas *a); /* that it was made from */
int es_atlas_card(es_atlas *a, int feature, es_feature_card *out, es_error *err);
/* The intervals of (0, max], the highest first: bounds, the share of active tokens in each, and which of the card's random places are from it. */
typedef struct es_interval { float lo, hi; double share; int first, n; } es_interval;
void es_atlas_intervals(const es_feature_card *c, es_interval out[ES_ATLAS_INTERVALS]);
/* The figures of every feature at once, [F] each, borrowed: for lists, sorting and guards. */
const float *es_atlas_density(const es_atlas *a);
const float *es_atlas_max(const es_atlas *a);
const float *es_atlas_mean(const es_atlas *a); /* of active values */
const float *es_atlas_p99(const es_atlas *a);
/* First n promoted tokens / tokens on which it fires most, as a short printable string (for lists and search). */
int es_atlas_tokens_text(es_atlas *a, const es_model *m, int feature, es_buf *out, es_error *err);

#endif
