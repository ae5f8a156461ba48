/* engine: GGUF models, tokenizer, chat template, forward with KV cache, hooks, patches, sampling, and the backward pass above
 * a layer. The model is read-only and may be shared by threads; a context or a trainer belongs to one thread at a time.
 *
 * Layers count from 0. "The residual after layer L" is the residual stream that leaves block L, a row of d_model a token.
 * L = -1 is the embedding. */
#ifndef ES_ENGINE_H
#define ES_ENGINE_H

#include "base.h"
#include "es_cuda.h"
#include "kernels.h"

/* ---- model ---------------------------------------------------------------------------------------------------------------- */

typedef struct es_model es_model;

typedef struct es_model_info {
    char path[1024], architecture[64], name[128];
    int n_layer, d_model, n_head, n_kv, head_dim, d_ff, n_vocab, n_ctx; /* n_ctx: trained context length */
    float rope_base, norm_eps;
    bool tied_head;
    size_t file_bytes;
    uint64_t n_params;
} es_model_info;

/* A GGUF file, or a folder with config.json and safetensors (without tokenizer.json in it es_tokenize fails). Maps and validates the whole
 * (structure, shapes, types) before anything is used. */
int es_model_open(es_model **out, const char *path, es_error *err);
/* The same, but refused with the numbers (ES_ERR_MEMORY), before any weight is read from a GGUF, when its weights and the keys and values of n_ctx
 * positions (0: as a context has by default) need more than memory bytes (0: what the machine has available). */
int es_model_open_within(es_model **out, const char *path, int n_ctx, size_t memory, es_error *err);
/* A model of this shape with random weights of this type, in memory, without a tokenizer: for measuring and tests. Of shape the sizes, architecture,
 * rope_base and norm_eps count. Rows beyond the first 64 of a matrix repeat them. */
int es_model_random(es_model **out, const es_model_info *shape, es_type type, uint64_t seed, es_error *err);
size_t es_model_cache_bytes(const es_model *m, int n_ctx); /* those keys and values, in half precision */
void es_model_free(es_model *m);
const es_model_info *es_model_get_info(const es_model *m);
/* SHA-256 of the file, computed on the first call and kept (about 0.1 s for 100 MB); es_model_set_hash gives a remembered one. */
int es_model_hash(es_model *m, char out[65], es_error *err);
void es_model_set_hash(es_model *m, const char *hex);
/* Row `id` of the unembedding (the tied embedding) as f32 [d_model]: promoted tokens are decoder rows times these.
 * The final norm's weight is NOT applied; es_model_final_norm gives it [d_model]. */
void es_model_unembed_row(const es_model *m, int id, float *out);
const float *es_model_final_norm(const es_model *m);
es_weight es_model_head(const es_model *m); /* W[n_vocab, d_model] */
size_t es_model_decode_bytes(const es_model *m); /* of weights that a token read alone takes from memory: the layers' and the head's matrices */

/* ---- cards ----------------------------------------------------------------------------------------------------------------- */

typedef struct es_card_options {
    size_t workspace; /* of each context and trainer, bytes; 0: 64 MB */
    bool exact;       /* all products in f32: no bfloat16, no TF32 */
} es_card_options;

/* Contexts and trainers of m, and of models thawed from it, that are opened from now on (with no table asked for by name) work on the card: its weights go
 * there once, quantised as they are, when the first is opened. card NULL: on the processor again. Nothing is refused here; what does not fit the card's
 * memory is refused when it is opened (ES_ERR_MEMORY). A card that is lost while they work is no error of theirs: a context feeds what it held again
 * on the processor, a trainer does its pass again there, and both stay there. The card is the caller's and outlives the model. */
int es_model_use_card(es_model *m, es_cuda *card, const es_card_options *o, es_error *err);
es_cuda *es_model_card(const es_model *m); /* NULL: the processor */
void es_model_changed(es_model *m);        /* a thawed model's numbers were changed: a card's copy is made again before it is used */

/* ---- tokenizer and chat template --------------------------------------------------------------------------------------------- */

typedef struct es_ids { /* growable list of token ids */
    int32_t *id;
    size_t n, cap;
} es_ids;
int es_ids_add(es_ids *l, int32_t id); /* 0 or ES_ERR_MEMORY */
void es_ids_free(es_ids *l);

/* Byte-level BPE and SentencePiece's BPE with byte fallback, from a GGUF's metadata or a folder's tokenizer.json.
 * Appends the ids of text[0..n). special: control tokens such as <|im_start|> written in the text become their ids (for trusted
 * templates); otherwise they are ordinary text. No BOS is added. Linear in n up to a log factor, 1 MB of spaces included. Any bytes
 * may come in; a byte that the vocabulary has no token for (in SmolLM2's some control bytes) is left out, as the peers do. */
int es_tokenize(const es_model *m, const char *text, size_t n, bool special, es_ids *out, es_error *err);
/* The same of a text of its own, not of a part: begins with the token that the model wants in front of every text, if it wants one. */
int es_tokenize_text(const es_model *m, const char *text, size_t n, es_ids *out, es_error *err);
int32_t es_token_first(const es_model *m); /* that token; -1: none */
/* The bytes of a token (borrowed; may be part of a UTF-8 character; not NUL-terminated). Control tokens give their name. */
const char *es_token_bytes(const es_model *m, int32_t id, size_t *n);
bool es_token_is_control(const es_model *m, int32_t id);
int32_t es_token_bos(const es_model *m), es_token_eos(const es_model *m); /* -1 when the model has none */
bool es_token_ends(const es_model *m, int32_t id); /* eos or end-of-turn: generation stops here */

typedef struct es_message { const char *role, *content; } es_message; /* role: system, user, assistant */
/* Renders in the model's own template, recognised by its text and rendered natively, never run as Jinja: ChatML (SmolLM2, Qwen 3 without
 * thinking, OLMo 3), Llama 3, Gemma (a system message goes in front of the first turn), OLMo 2, Zephyr, Llama 2. Without a template or with another one
 * the vocabulary's tokens decide (ChatML, Llama 3, Gemma), else plain lines "User: ..."; es_chat_warning says so. Content never
 * becomes a control token. add_generation: ends with the opening of an assistant turn. A model's default system prompt is added
 * where its template adds one, and the token that begins a text where the template has it. Appends to out. */
int es_chat_render(const es_model *m, const es_message *messages, size_t n, bool add_generation, es_ids *out, es_error *err);
/* The ids that close an assistant's turn after its content (e.g. <|im_end|> \n), for multi-turn KV reuse. */
int es_chat_close(const es_model *m, es_ids *out, es_error *err);
const char *es_chat_name(const es_model *m);    /* "ChatML", "Gemma", ... */
const char *es_chat_warning(const es_model *m); /* one line that names the file, when the template is a guess; NULL: it is known. Borrowed */

/* ---- patches: what an adapter does to the forward pass -------------------------------------------------------------------------- */

typedef enum es_site { /* the linear maps of a block that a low-rank update can sit on */
    ES_SITE_Q, ES_SITE_K, ES_SITE_V, ES_SITE_O, ES_SITE_GATE, ES_SITE_UP, ES_SITE_DOWN, ES_N_SITES,
} es_site;
int es_site_n_in(const es_model *m, es_site s);
int es_site_n_out(const es_model *m, es_site s);
const char *es_site_name(es_site s); /* "attn_q" ... "ffn_down" as in GGUF */
es_weight es_model_site(const es_model *m, int layer, es_site s); /* the map itself, borrowed; layer in [0, n_layer) */
const float *es_model_post_norm(const es_model *m, int layer);   /* [d_model], what multiplies the MLP's output after its norm; NULL: nothing does */
const float *es_model_attention_post_norm(const es_model *m, int layer); /* the same of attention's */

typedef struct es_lowrank { /* y += scale * B (A x); A[rank, n_in], B[n_out, rank], row-major f32, borrowed */
    int layer;
    es_site site;
    int rank;
    float scale;
    const float *a, *b;
    bool behind; /* O and DOWN: added behind the norm that some families have there, so straight to the residual, as directions of it are meant; otherwise W's own update */
} es_lowrank;

typedef struct es_addend { /* residual after `layer` += scale * v[d_model] on every token from position min_pos on */
    int layer;
    float scale;
    const float *v;
    int min_pos; /* 0: every token */
} es_addend;

/* A differentiable function on the residual after `layer` (the forms gain and map; also steering clamps): forward works in place
 * on h[T,d]; backward turns dh (gradient of its output) into the gradient of its input in place, given the input rows h_in, and
 * may accumulate its own parameters' gradients in user. In a trainer each is called once a pass, with all rows in the batch's order. backward may be NULL in contexts that only generate. */
typedef struct es_hook_sink { /* where a hook's backward leaves its parameters' gradients (+=); grad NULL: nowhere */
    float *grad;             /* [slots][n] */
    size_t n;
    const int *start, *slot; /* of the batch's sequences, as es_batch and es_grad have them */
} es_hook_sink;

/* What a hook of the forms gain and map does, in numbers, so that a card does it without rows coming down. For each token but a sequence's first, with
 * u = enc h + bias:  gain (map NULL): f = u where u > threshold, else 0; h += scale dec^T (coef * f).   map: h += scale dec^T (coef + map u). */
typedef struct es_hook_numbers {
    int K;
    const float *enc, *dec;              /* [K, d] */
    const float *bias, *threshold, *coef; /* [K]; threshold: gain only */
    const float *map;                    /* [K, K] */
    float scale;
    const es_hook_sink *sink;            /* looked at in backward; NULL: nowhere */
    size_t coef_at, map_at;              /* where in a slot the gradients of coef and map are */
} es_hook_numbers;

typedef struct es_hook {
    int layer;
    void (*forward)(void *user, float *h, const int *pos, int T, int d);
    void (*backward)(void *user, const float *h_in, float *dh, const int *pos, int T, int d);
    void *user;
    const es_hook_numbers *numbers; /* NULL: on a card too the functions are called */
} es_hook;

/* Everything a session adds to the model; never edits weights. Entries with scale 0 are skipped, so scale 0 gives bit-identical
 * logits. Several entries may name one site. All arrays are borrowed until the call that uses the patch returns. */
typedef struct es_patch {
    const es_lowrank *lowrank; int n_lowrank;
    const es_addend *addend; int n_addend;
    const es_hook *hook; int n_hook;
} es_patch;

typedef enum es_point { /* where in or after a block activations are seen */
    ES_POINT_RESIDUAL,      /* the residual that leaves the block */
    ES_POINT_ATTENTION,     /* what goes into the attention's output matrix: the heads side by side */
    ES_POINT_ATTENTION_OUT, /* what attention adds to the residual: behind the output matrix and, in families that have one, the norm after it */
    ES_POINT_MLP_OUT,       /* what the MLP adds to it, likewise; both without a patch's entries behind that norm */
    ES_N_POINTS,
} es_point;
int es_point_width(const es_model *m, es_point p); /* of its rows: d_model, or n_head * head_dim */

/* Watching: called with the activations at a point of `layer` (the residual: after addends and hooks of that layer), rows of d = es_point_width, in
 * order. Nothing that is computed changes by it. Layers below 0 have a residual only. */
typedef struct es_watch {
    int layer;
    void (*fn)(void *user, int layer, int pos0, const float *h, int T, int d);
    void *user;
    es_point point;
} es_watch; /* pos0: position of the first row in a context; in a trainer the row in the batch, which comes in one call */

/* ---- context: incremental forward with a KV cache ---------------------------------------------------------------------------------- */

typedef struct es_context es_context;

typedef struct es_context_options {
    int n_ctx;     /* positions the cache holds; 0: min(trained, 2048) */
    int threads;   /* 0: the processors there are */
    bool exact;    /* f32 everywhere; otherwise activations may be rounded to integers, and keys and values are kept in half precision */
    const es_kernels *kernels; /* NULL: es_kernels_cpu() */
    int n_seq;     /* sequences held at once, each of n_ctx positions; 0: 1 */
} es_context_options;
enum { ES_MAX_SEQUENCES = 64 };

size_t es_context_bytes(const es_model *m, const es_context_options *o); /* the one block that open will take */
int es_context_open(es_context **out, const es_model *m, const es_context_options *o, es_error *err);
bool es_context_on_card(const es_context *c); /* false too once its card was lost */
void es_context_free(es_context *c);
int es_context_size(const es_context *c);   /* n_ctx */
int es_context_sequences(const es_context *c);
/* Which sequence the calls here and es_sample act on, the first at opening; another than 0 .. n_seq-1 is not listened to. */
void es_context_select(es_context *c, int seq);
int es_context_length(const es_context *c); /* tokens now in the cache */
const int32_t *es_context_ids(const es_context *c); /* the tokens now in the cache, borrowed */

/* Set what later feeds use; borrowed until replaced; NULL clears. On a card the arrays are copied at the first feed after this: set the patch again when
 * they have changed. A change of patch leaves the cache as it is: what it holds
 * above the patch belongs to the old one; es_context_truncate decides what is rebuilt. */
void es_context_set_patch(es_context *c, const es_patch *p);
void es_context_set_watch(es_context *c, const es_watch *w, int n);

/* Appends ids to the cache. Only the last token's logits are computed. cancel (may be NULL) is polled between chunks of at most
 * 128 tokens (on a card 1,024); on ES_ERR_CANCELLED or any other error the cache is as before the call. ES_ERR_LIMIT when it would not fit. */
int es_context_feed(es_context *c, const int32_t *ids, int n, const volatile bool *cancel, es_error *err);
const float *es_context_logits(const es_context *c); /* [n_vocab] after the last fed token; borrowed */
int es_context_truncate(es_context *c, int n, es_error *err); /* keep the first n tokens */
/* Keeps the longest common prefix of the cache and ids (at most n-1), then feeds the rest. *reused (may be NULL): tokens kept. When
 * the feed fails or is cancelled the cache holds the kept prefix; when ids cannot fit it is as before. */
int es_context_sync(es_context *c, const int32_t *ids, int n, int *reused, const volatile bool *cancel, es_error *err);

/* Appends ids[i] to sequence seq[i], for n different ones, in one pass: the weights are read once for all. Each has its logits then
 * (es_context_select). Those of an exact context are what each has alone, to the bit, at no gain in speed; otherwise they are within rounding.
 * Watches see a row each of the n sequences in one call. After an error all are as before. */
int es_context_step(es_context *c, const int *seq, const int32_t *ids, int n, const volatile bool *cancel, es_error *err);
/* The selected sequence becomes the first n tokens of sequence `from`, copied; feed what follows (a prompt's last token has to be fed for its
 * logits). */
int es_context_share(es_context *c, int from, int n, es_error *err);

/* ---- sampling ------------------------------------------------------------------------------------------------------------------------ */

typedef struct es_sampling {
    float temperature;     /* 0: greedy */
    int top_k;             /* 0: off */
    float top_p;           /* 1: off */
    float repeat_penalty;  /* 1: off; divides positive and multiplies negative logits of the last repeat_window tokens */
    int repeat_window;
    uint64_t seed;
} es_sampling;
es_sampling es_sampling_default(void); /* temperature 0.7, top_k 50, top_p 0.95, penalty 1.1 over 64, seed 0 */
es_sampling es_sampling_unset(void);   /* the same, but temperature, top_k, top_p and penalty -1: not asked for */
/* asked with those that are -1 as the model's own generation_config.json (in a GGUF general.sampling.*) has them, else the default. */
es_sampling es_model_sampling(const es_model *m, es_sampling asked);
/* A token drawn from the context's logits: penalty, temperature, top-k, top-p, in this order. The penalty looks at the tokens in the
 * cache. Scratch lives in the context. A function of (logits, tokens, rng); greedy leaves rng alone. */
int32_t es_sample(es_context *c, const es_sampling *s, es_rng *rng);

/* A reply to be drawn: what it answers and how, and then what came. */
typedef struct es_reply {
    const int32_t *prompt; /* borrowed */
    int n_prompt, max_new;
    es_sampling sampling;  /* its seed is the reply's own */
    es_ids ids;            /* the caller's to free; the token that ended it included */
    bool ended;            /* by the model: the last of ids ends it. Otherwise by max_new or a full context */
} es_reply;
enum { ES_STREAMS = 8 }; /* sequences that a context for es_generate may well have: more win little */
/* Appends what it says: without control tokens and what ended it. A cut may leave part of a character at the end. */
int es_reply_text(const es_model *m, const es_reply *r, es_buf *out, es_error *err);
/* Draws n replies under the context's patch, as many at a time as it has sequences; what it held is gone. Each is a function of its own
 * prompt, sampling and the model, within rounding; of an exact context to the bit, but that a prompt that begins as another's may be fed in
 * other pieces. done (may be NULL) is called when reply i is complete, in the order of their ends; what it returns other than 0 ends the
 * whole. After an error or a cancel, replies that were not done hold what they had. */
int es_generate(es_context *c, es_reply *reply, int n, int (*done)(void *user, int i, es_error *err), void *user, const volatile bool *cancel, es_error *err);

/* ---- batch passes: score, harvest, training ------------------------------------------------------------------------------------------- */

/* A batch of whole sequences laid end to end. start[s] .. start[s+1] are sequence s's tokens; attention stays inside it and its
 * positions count from 0. target/wanted: for token t with wanted[t], the log-probability of target[t] as the NEXT token is
 * computed (usually target[t] = ids[t+1]); wanted NULL: none. */
typedef struct es_batch {
    const int32_t *ids; /* [n] */
    int n;
    const int *start; /* [n_seq + 1] */
    int n_seq;
    const int32_t *target; /* [n] */
    const uint8_t *wanted; /* [n] */
} es_batch;

typedef struct es_trainer es_trainer; /* activations and scratch for batches of at most max_tokens tokens; exact f32 */

typedef struct es_trainer_options {
    int max_tokens;  /* in one batch */
    int from_layer;  /* first layer that will be run by forward: its input is the residual after from_layer-1. 0: from the ids */
    bool backward;   /* keep activations for backward */
    int max_hooks;   /* hooks whose inputs backward keeps, each max_tokens x d_model; 0: 2 */
    size_t logit_bytes; /* at most this for the logits of a chunk of wanted tokens (but 16 rows); 0: 100 MB, or 25 without backward.
                           backward makes the logits of all but the last chunk again */
    int threads;
    const es_kernels *kernels; /* NULL: es_kernels_cpu(), or the model's card */
    bool rough;         /* products may be rounded to bfloat16: es_kernels_half(), and on a card; for gradients and trial passes */
    bool rough_on_card; /* only there */
    bool eight_bits;    /* rough, and the feed-forward's activations to 8 bits where weights are quantised (es_kernels_eight): to read much text.
                           Attention's stay as they are: rounding them so costs more than all else (SmolLM2, the residual after layer 14: 1.2 % off
                           in the mean with the feed-forward in 8 bits, 1.8 % with all, 0.4 % with none; PyTorch in bfloat16 is 1.1 % off) */
} es_trainer_options;

size_t es_trainer_bytes(const es_model *m, const es_trainer_options *o);
int es_trainer_open(es_trainer **out, const es_model *m, const es_trainer_options *o, es_error *err);
void es_trainer_free(es_trainer *t);

/* The residual after layer `layer` of the unpatched model, [n, d_model], into out: what is cached per experience.
 * Runs layers 0..layer only. Any layer >= -1; independent of from_layer. */
int es_trainer_residual(es_trainer *t, const es_batch *b, int layer, float *out, const volatile bool *cancel, es_error *err);
/* The same at another point, [n, es_point_width]; layer >= 0, but for the residual. */
int es_trainer_point(es_trainer *t, const es_batch *b, int layer, es_point p, float *out, const volatile bool *cancel, es_error *err);

/* Runs layers from_layer .. last under the patch (may be NULL). resid: [n, d_model], the residual after from_layer-1; NULL only
 * when from_layer is 0. Addends and hooks at from_layer-1 act on resid first; an entry (scale not 0) further down is ES_ERR_USAGE. logprob[n] receives the wanted tokens' log-probabilities (others 0). watch may be NULL. */
int es_trainer_forward(es_trainer *t, const es_batch *b, const float *resid, const es_patch *patch, const es_watch *watch,
                       int n_watch, float *logprob, const volatile bool *cancel, es_error *err);
/* Logits of token t of the last forward, [n_vocab], computed on demand into out (for KL on anchors). */
int es_trainer_logits(es_trainer *t, int token, float *out, es_error *err);

/* Where gradients go. Any pointer may be NULL: that gradient is not computed. All are accumulated (+=). */
typedef struct es_grad {
    float **a, **b;    /* [n_lowrank] each [rank, n_in], [n_out, rank], in the patch's order, scale included */
    float **addend;    /* [n_addend] each [d_model] */
    float **resid;     /* [n_layer]: gradient wrt the residual after layer l, [n, d_model], overwritten; NULL entries skipped */
    const int *seq_slot; /* [n_seq] or NULL. When set, a/b/addend of sequence s go to slot seq_slot[s]: the pointers then name
                            arrays of n_slot such blocks one after another. Gives per-experience gradients in one pass. */
    int n_slot;
    float *weights;    /* of a thawed model (weights.h), in es_model_numbers' order: matrices and norms of the blocks from to_layer up,
                          the final norm, the head; with to_layer -1 the rows of the embedding too */
} es_grad;
/* Backward of the last forward with the same batch and patch (hooks must not have changed either). dlogprob[n]:
 * dLoss/dlogprob of each wanted token; NULL: zeros. Everything that sits at layers >= `to_layer` gets its gradient: the low-rank
 * maps in block to_layer, and the addends, hooks and resid entry on the residual after it; nothing below is computed. to_layer
 * >= from_layer - 1 (there only addends and hooks are). dlogits (may be NULL): extra gradient, called once per wanted
 * token with its logits' softmax p[n_vocab]; it adds dLoss/dlogits to dl[n_vocab] (distillation, KL on anchors). */
int es_trainer_backward(es_trainer *t, const es_batch *b, const es_patch *patch, const float *dlogprob,
                        void (*dlogits)(void *user, int token, const float *p, float *dl), void *user, const es_grad *g,
                        int to_layer, const volatile bool *cancel, es_error *err);

/* Numbers that a caller learns, which stay on a trainer's card between steps: param, within which the arrays of its patch's low-rank entries lie or which are
 * a thawed model's own; their gradient grad; Adam's moments. [n] each, host memory, the caller's. From keep on, passes use the copies there, and a backward adds
 * what would go within grad to the gradient there; nothing of it goes up or comes down but by the calls below. One keep a trainer.
 * keep: ES_ERR_MISSING without a card, ES_ERR_MEMORY; then all is as before, and goes on by way of host memory. */
typedef struct es_kept { float *param, *grad, *first, *second; size_t n; } es_kept;
int es_trainer_keep(es_trainer *t, const es_kept *k, es_error *err);
bool es_trainer_keeps(const es_trainer *t); /* false too once the card was lost: what has not come down by then is gone */
int es_trainer_kept_up(es_trainer *t, es_error *err);   /* param and moments go there */
int es_trainer_kept_down(es_trainer *t, es_error *err); /* and come here, over grad. On an error param is as before, the moments are or are 0 */
void es_trainer_kept_clear(es_trainer *t);              /* the gradient there becomes 0 */
int es_trainer_kept_gradient(es_trainer *t, float *out, double *square, es_error *err); /* [n], and the sum of its squares; either may be NULL */
typedef struct es_adam { /* AdamW, Loshchilov & Hutter 2019, algorithm 2; step from 1; the first n_decay numbers decay */
    double rate, beta1, beta2, epsilon, decay, scale; /* scale: of the gradient */
    int step;
    size_t n_decay;
} es_adam;
int es_trainer_kept_adam(es_trainer *t, const es_adam *a, es_error *err); /* the gradient there is scaled by it */

/* Logits of tokens token .. token+n-1 of the last forward, [n, n_vocab] into out, in one product. */
int es_trainer_logits_rows(es_trainer *t, int token, int n, float *out, es_error *err);
/* The rows [n, n_in] that entered the matrix at this site in the last forward (ES_SITE_O or ES_SITE_DOWN; a trainer with backward
 * only; layer >= from_layer). Copied into out. */
int es_trainer_site_input(es_trainer *t, int layer, es_site site, float *out, es_error *err);

/* log-probability of each token given those before it (exact). logprob[0] is NAN. Long texts are scored in windows of the trained
 * context that overlap by half. patch may be NULL. */
int es_score(const es_model *m, const int32_t *ids, int n, const es_patch *patch, int threads, float *logprob,
             const es_progress *progress, es_error *err);
/* The same as a chat reads: token by token through a cache, activations rounded. At most the trained context (ES_ERR_LIMIT). kl (may be NULL; slow):
 * the divergence, in nats, of each token's prediction from the exact one, KL(exact || this). Both [n], the first NAN. */
int es_score_decoded(const es_model *m, const int32_t *ids, int n, const es_patch *patch, int threads, float *logprob, float *kl,
                     const es_progress *progress, es_error *err);

#endif
