/* sessions: the workspace (the only user of sqlite3), the studio (a chat thread and an adapting worker around one model), and export.
 * The studio is what the workbench draws: commands go in and never block; copied views come out; one pipe says that something changed. */
#ifndef ES_SESSIONS_H
#define ES_SESSIONS_H

#include "features.h"
#include "labels.h"

/* ==== workspace: one SQLite file (WAL, foreign keys, user_version migrations, one writer) ========================================== */

/* es_workspace (labels.h) is safe to use from several threads (a mutex inside; calls are short). */

/* Creates or migrates. A newer schema, a damaged file or a second writer is refused with one clear error. */
int es_workspace_open(es_workspace **out, const char *path, es_error *err);
void es_workspace_close(es_workspace *w);
int es_workspace_check(es_workspace *w, es_error *err); /* integrity_check and foreign_key_check */
/* A remembered SHA-256 of a file of that size and time, so that opening a model need not read it. 0, or ES_ERR_MISSING. */
int es_workspace_file_hash(es_workspace *w, const char *path, char out[65]);
int es_workspace_remember_hash(es_workspace *w, const char *path, const char *hash, es_error *err);

/* ---- labels of features of a dictionary (named by its hash); more in labels.h -------------------------------------------------------- */

/* Opens a dictionary's label space: makes its search rows (token text of each feature from the atlas) once; import_path (may be NULL): starter
 * labels as JSONL {"feature","text","tags":[..],"author"} taken in when the dictionary is seen for the first time. */
int es_workspace_use_dictionary(es_workspace *w, const es_dictionary *s, es_atlas *a, const es_model *m, const char *import_path,
                                const es_progress *progress, es_error *err);
int es_workspace_label_get(es_workspace *w, const char *dictionary, int feature, es_label *out, es_error *err); /* ES_ERR_MISSING when none */
/* es_workspace_label_edit of one feature. NULL text/tags or rating < 0: unchanged. */
int es_workspace_label_set(es_workspace *w, const char *dictionary, int feature, const char *text, const char *tags, int rating,
                           const char *author, es_error *err);
int es_workspace_label_skip(es_workspace *w, const char *dictionary, int feature, bool skip, const char *author, es_error *err);
/* es_workspace_label_step_back. */
int es_workspace_label_undo(es_workspace *w, const char *dictionary, int *feature, es_error *err);
int es_workspace_label_count(es_workspace *w, const char *dictionary);
int es_workspace_label_import(es_workspace *w, const char *dictionary, int n_features, const char *jsonl_path, const char *author,
                              int *imported, es_error *err); /* all or nothing */
/* The same of an array of such objects in memory. */
int es_workspace_label_import_json(es_workspace *w, const char *dictionary, int n_features, json_t *labels, const char *author, int *imported, es_error *err);
int es_workspace_label_export(es_workspace *w, const char *dictionary, json_t **out, es_error *err); /* array: every opinion, those shown first */
/* Labels of all features at once, short form for lists: out[F] owned strings or NULL. */
int es_workspace_labels_all(es_workspace *w, const char *dictionary, int n_features, char **out, es_error *err);
/* Words as typed (any FTS5 syntax in them is just text; the last word is a prefix) over labels, tags and tokens, best first; labels count
 * more than tokens. "tag:x", "is:labelled", "is:unlabelled", "is:conflict", "by:NAME", "density<0.01", "score>0.8" (of labels that were tested),
 * a number (that feature) filter. *n: found (at most max). */
int es_workspace_search(es_workspace *w, const char *dictionary, const char *query, int *feature, int max, int *n, es_error *err);

/* ---- bases, experiences, snapshots --------------------------------------------------------------------------------------------------- */

int es_workspace_basis_save(es_workspace *w, const es_basis *b, int *version, es_error *err); /* a new version of that name */
int es_workspace_basis_load(es_workspace *w, const char *name, int version /* 0: newest */, es_basis *out, es_error *err);
int es_workspace_basis_current(es_workspace *w, char *out, size_t n); /* NAME@VERSION of the one that a studio has in use; ES_ERR_MISSING: none */
typedef struct es_basis_line { char name[64]; int version, n; char time[32]; } es_basis_line;
int es_workspace_basis_list(es_workspace *w, const char *dictionary /* NULL: all */, es_basis_line **out, int *n, es_error *err); /* free(*out) */

int es_workspace_experience_add(es_workspace *w, const es_experience *e, int64_t session, int64_t *id, es_error *err);
int es_workspace_experience_set(es_workspace *w, int64_t id, bool included, double weight, const char *reason, es_error *err);
int es_workspace_experience_reason(es_workspace *w, int64_t id, const char *reason, es_error *err); /* what was made of it; one that is gone is no error */
/* A reply that was missing, and a source that says so; one that is gone is no error. */
int es_workspace_experience_pair(es_workspace *w, int64_t id, const char *preferred, const char *rejected, const char *source, const char *reason, es_error *err);
int es_workspace_experience_remove(es_workspace *w, int64_t id, es_error *err);
typedef struct es_experience_line { int64_t id; es_experience e; bool included; char reason[160]; } es_experience_line;
int es_workspace_experience_list(es_workspace *w, es_experience_line **out, int *n, es_error *err);
void es_experience_lines_free(es_experience_line *l, int n);

typedef struct es_snapshot_line {
    int64_t id, parent;      /* parent 0: from the base model */
    char time[32], basis[64], form[16], note[160];
    int basis_version, steps, experiences, n; /* n: coefficients */
    bool passed;             /* the release gate */
    double gain, kl;
    float *coefficient;      /* [n], owned */
} es_snapshot_line;
/* The last n_shared of the bytes are kept once for all snapshots that end with the same. */
int es_workspace_snapshot_add(es_workspace *w, const es_snapshot_line *s, const void *bytes, size_t n, size_t n_shared, const int64_t *experience,
                              const float *influence /* [(n_experience+1) * s->n] */, int n_experience, int64_t *id, es_error *err);
int es_workspace_snapshot_bytes(es_workspace *w, int64_t id, es_buf *out, es_error *err);
int es_workspace_snapshot_list(es_workspace *w, es_snapshot_line **out, int *n, es_error *err); /* oldest first */
void es_snapshot_lines_free(es_snapshot_line *l, int n);
int es_workspace_snapshot_influence(es_workspace *w, int64_t id, int64_t **experience, float **influence, int *n_experience, int *n_coefficient, es_error *err);
int es_workspace_snapshot_current(es_workspace *w, int64_t *id); /* 0: base */
int es_workspace_snapshot_use(es_workspace *w, int64_t id, es_error *err);

/* Directions learned beforehand (es_adapter_to_bytes), by name and the dictionary's hash. One that is saved is in use; the last n_shared bytes as with
 * snapshots. */
typedef struct es_direction_line { char name[64]; bool used; double amplitude; int64_t snapshot; } es_direction_line; /* how far along it that snapshot went, in |h|; 0: none did */
int es_workspace_direction_save(es_workspace *w, const char *name, const char *dictionary, const void *bytes, size_t n, size_t n_shared, es_error *err);
int es_workspace_direction_use(es_workspace *w, const char *name, const char *dictionary, bool used, es_error *err);
int es_workspace_direction_went(es_workspace *w, const char *name, const char *dictionary, double amplitude, int64_t snapshot, es_error *err);
int es_workspace_direction_bytes(es_workspace *w, const char *name, const char *dictionary, es_buf *out, es_error *err);
int es_workspace_direction_list(es_workspace *w, const char *dictionary, es_direction_line **out, int *n, es_error *err); /* free(*out) */

/* ==== studio: the live model ============================================================================================================ */

typedef struct es_studio es_studio;

typedef struct es_studio_options {
    const char *model, *dictionary; /* file; folder (NULL: no features: chat only) */
    const char *workspace;          /* file */
    const char *labels;             /* starter labels JSONL or NULL */
    const char *starter_basis;      /* JSON of a basis offered as "starter", or NULL */
    const char *neutral;            /* JSONL of text that should stay as it is (es_neutral_load): what inputs are white on; NULL: Adam with learned inputs */
    const char *inputs;             /* folder where they are kept (es_inputs_kept) */
    const char *hashes;             /* folder where hashes of large dictionaries are kept, or NULL (es_dictionary_options) */
    const char *maps;               /* folder where maps of dictionaries are kept, or NULL: they are made each time (layout.h) */
    const char *system;             /* system prompt or NULL */
    const char *author;
    es_sampling sampling;           /* numbers that are -1: the model's own (es_model_sampling) */
    int max_tokens, n_ctx, threads;
    es_cuda *card;                  /* where the model works; NULL: the processor. The caller's, for longer than the studio */
    size_t memory;                  /* a model that needs more is refused; 0: what the machine has available */
    bool learn;                     /* the worker starts unpaused */
    int prefer_loss;                /* how stated preferences are learned: an es_distil_loss on the model's own replies, or 0: through pairs */
} es_studio_options;
es_studio_options es_studio_default(void);

/* Returns fast (well under 0.2 s): it checks that the files are there; the model and dictionary are opened by the chat thread (view->loading). */
int es_studio_open(es_studio **out, const es_studio_options *o, es_error *err);
void es_studio_close(es_studio *s); /* cancels, joins; whatever was shown as saved is saved */
int es_studio_fd(const es_studio *s); /* readable when a new view is worth drawing; coalesced */
void es_studio_ack(es_studio *s);     /* empties the pipe */
es_workspace *es_studio_workspace(es_studio *s);
const char *es_studio_dictionary_hash(es_studio *s); /* "" while loading or without one */

typedef struct es_turn {
    int64_t id;
    char role;               /* 'u', 'a', 's' */
    const char *text; int n; /* UTF-8 as generated (whole characters only) */
    int n_token; const int *token_end; /* byte offset after each token of an 'a' turn */
    const float *shade;      /* [n_token] activation of the shaded feature, or NULL */
    const char *edited;      /* the person's correction, or NULL */
    int rating;              /* -1, 0, +1 */
    bool streaming, stopped; /* stopped: cut by the person or by max_tokens */
    int64_t snapshot;        /* adapter that spoke; 0: base; ES_BY_METHOD or less: the method of kind ES_BY_METHOD - snapshot */
} es_turn;
enum { ES_BY_METHOD = -100 };

typedef struct es_vector_name { int number; char name[64]; } es_vector_name; /* es_basis_vector */
typedef struct es_active { int feature; float activation, mean; } es_active; /* strongest and mean over the last reply */

typedef enum es_learning_state { ES_LEARN_OFF, ES_LEARN_IDLE, ES_LEARN_PAUSED, ES_LEARN_PREPARING, ES_LEARN_STEPPING, ES_LEARN_CHECKING, ES_LEARN_FAILED } es_learning_state;

typedef struct es_job { int id; char kind[24], what[160]; double done, total; char unit[16]; double seconds; bool running, failed, cancelled; } es_job;

typedef struct es_side { const char *title; const char *text; int n; bool streaming; int tokens; } es_side; /* compare and steer */

typedef struct es_view { /* one consistent copy; every pointer lives until es_view_free */
    uint64_t serial;
    bool loading, failed, generating; char status[240]; /* one line; the error when failed */
    char model[128], dictionary[128]; int layer, d_model, n_features, n_ctx, context_used;
    double tokens_per_second;
    const es_turn *turn; int n_turn;
    const es_active *active; int n_active;    /* of the last reply, strongest first, at most 32 */
    int shade_feature; float shade_max;       /* -1: none */
    /* side by side */
    es_side side[2]; int n_side;
    /* blind test of a label (labels.h): NULL while it is made, or where there was none to make: blind_text says why */
    const es_blind *blind; bool blind_running; uint64_t blind_serial; char blind_text[200];
    /* basis in use */
    char basis_name[64]; int basis_version, n_basis; const int *basis_feature; const float *basis_lo, *basis_hi;
    const es_vector_name *vector; int n_vector; /* entries of it that are no features but vectors */
    es_basis_report report; bool report_ready;
    uint64_t labels_read; /* grows when many labels have changed other than by the caller: starter labels that were taken in */
    const int *suggested; const float *suggested_score; int n_suggested;
    /* adapter and learning */
    es_learning_state learning; char learning_text[200]; bool adapter_on; int64_t snapshot; /* in use; 0: base */
    char method[16], method_text[160];        /* what answers ("features" for the adapter), and how far it is */
    const float *coefficient;                 /* [n_basis] of the adapter in use (zeros for base) */
    const float *snr;                         /* [n_basis] or NULL */
    int n_step; const float *history;         /* [n_step * n_basis] coefficients after each learning step of this basis, oldest first (at most 512) */
    const float *step_loss, *step_kl;         /* [n_step] */
    int n_mark; const int *mark_step; const int64_t *mark_experience; /* where experiences came in */
    const es_experience_line *experience; int n_experience;
    const float *influence; const int64_t *influence_experience; int n_influence; /* [(n_influence+1) * n_basis] of the snapshot in use */
    const es_snapshot_line *snapshots; int n_snapshot;
    const es_direction_line *direction; int n_direction;
    const es_job *job; int n_job;
    /* making.h: what the plan says, or why there is none */
    char plan_text[320]; bool plan_ok, plan_running; uint64_t plan_serial;
} es_view;
es_view *es_studio_view(es_studio *s);
void es_view_free(es_view *v);

/* Commands: queued, never block; refused ones show in view->status. */
void es_studio_say(es_studio *s, const char *text);
void es_studio_stop(es_studio *s);                         /* acts within one token */
void es_studio_new_chat(es_studio *s);
void es_studio_regenerate(es_studio *s);                   /* drops the last reply and answers again */
/* An experience with a sign; 0 takes it back. Before it is learned from, the model that is in use answers again, and the two replies become a pair
 * (source "...: +" or "...: -"); where it says the same again, the sign alone is learned. */
void es_studio_rate(es_studio *s, int64_t turn, int sign);
void es_studio_edit(es_studio *s, int64_t turn, const char *text); /* a correction: experience (text preferred, the reply rejected) */
void es_studio_undo(es_studio *s);                         /* the newest rating or correction: its experience is removed, the adapter goes back */
void es_studio_compare(es_studio *s, const char *text);    /* a fresh question, no history: base in side[0], adapted in side[1]; temperature as set */
void es_studio_steer(es_studio *s, int feature, float strength, const char *text); /* side[0] unsteered, side[1] h + strength * decoder */
void es_studio_sides_close(es_studio *s);
void es_studio_shade(es_studio *s, int feature);           /* -1: off; earlier replies are encoded again */
void es_studio_blind(es_studio *s, int feature, uint64_t seed); /* makes a blind test, into view->blind */
void es_studio_temperature(es_studio *s, float t);
void es_studio_basis_use(es_studio *s, const char *name, int version);
void es_studio_basis_new(es_studio *s, const char *name);  /* empty, in use */
void es_studio_basis_add(es_studio *s, int feature, float lo, float hi); /* lo > hi: default bounds from the atlas. A new version is saved */
void es_studio_basis_remove(es_studio *s, int feature);
void es_studio_basis_suggest(es_studio *s, int size);      /* from the experiences' gradient, into view->suggested */
void es_studio_basis_take_suggested(es_studio *s, int n);  /* the first n into the basis */
void es_studio_learn_pause(es_studio *s, bool pause);
void es_studio_learn_now(es_studio *s);                    /* a round on what there is; ends a pause */
void es_studio_learn_cancel(es_studio *s);
void es_studio_experience_include(es_studio *s, int64_t id, bool included);
void es_studio_adapter(es_studio *s, bool on);             /* off: answers come from the base model; nothing is lost */
/* "features", or another of es_method_name: it learns from the same experiences in the background and then answers; what features has learned
 * stays. Refused with the names when there is none such. "distil" may name its teacher: some words of a preference that was stated, or the file of
 * a model with the same tokenizer (as it is, or beside the model in use); without, the newest stated preference, else the experiences as worked turns. */
void es_studio_method(es_studio *s, const char *name);
/* A stated preference: the model's own answers to some questions with it in its context, each paired with its answer without, become experiences
 * (source "prefer: ..."). Refused with the number where the model with the preference judges the person's own corrections no better than without. */
void es_studio_prefer(es_studio *s, const char *text);
/* A direction learned beforehand (adapt --direction): its file, which is kept in the workspace under the file's name without its ending, or the name of one
 * that is kept; off: no longer. Learning then goes more readily along it, and begins anew from the base model each round. */
void es_studio_direction(es_studio *s, const char *file_or_name, bool on);
void es_studio_rollback(es_studio *s, int64_t snapshot);   /* 0: the base model, to the byte */
void es_studio_job_cancel(es_studio *s, int id);
/* Synchronous and short: for drawing a dashboard. The card's arrays are copied; es_card_copy_free. */
typedef struct es_card_copy { es_feature_card card; void *memory; } es_card_copy;
int es_studio_card(es_studio *s, int feature, es_card_copy *out, es_error *err);
void es_card_copy_free(es_card_copy *c);
int es_studio_token_text(es_studio *s, int32_t id, char *out, size_t n); /* printable; returns its length */
/* The n nearest decoder directions of a feature with their cosines, as es_dictionary_neighbours. Returns how many. */
int es_studio_neighbours(es_studio *s, int feature, int n, int *out, float *cosine);
const float *es_studio_density(es_studio *s); /* [F] borrowed while the studio lives (es_dictionary_density); NULL while loading, and where nobody says */

/* ==== export ================================================================================================================================ */

typedef enum es_export_kind {
    ES_EXPORT_CONTROL_VECTOR, ES_EXPORT_NPZ, ES_EXPORT_JSON, ES_EXPORT_PEFT, ES_EXPORT_GGUF_LORA, ES_EXPORT_PERSONA,
} es_export_kind;
/* control-vector: GGUF as llama.cpp reads it: direction.N is added to what leaves its block N, which is our layer N (both count from 0;
 * layer 0 cannot be expressed). Exact for the form bias; for the others the mean change at each layer. npz: stored .npy members. json: features
 * with labels, coefficients, bounds, hashes and, when a snapshot has these coefficients, who moved them. peft: a folder with adapter_config.json and
 * adapter_model.safetensors, and gguf-lora: a GGUF as llama.cpp's --lora reads it: the very matrices of the form lora, B = D M where it is constrained.
 * persona: the mean changes as one tensor [layers + 1, d_model] whose row 0 is the embedding's (zeros) and row L + 1 our layer L's: a .pt that
 * torch.load(weights_only=True) reads, or a .safetensors with it under "vector".
 * s: the dictionary of an adapter of one; not looked at where there are several, which the file then lists. */
int es_export_adapter(const es_adapter *a, es_model *m, const es_dictionary *s, es_workspace *labels /* may be NULL */, es_export_kind kind,
                      const char *path, es_error *err);

/* ---- a basis as a file of its own: what a person curated, for another machine ---- */

/* One safetensors file: "directions" [K, d] (unit decoder rows), "lo" and "hi" [K] in the basis' order; metadata "espalier-basis": JSON with the hashes and
 * names of model and dictionary, the features with bounds and, where w is not NULL, labels with tags, author, rating and time; and who made the file when. */
int es_basis_file_write(const es_basis *b, es_model *m, const es_dictionary *s, es_workspace *w, const char *author, const char *path, es_error *err);
/* Reads one: *about is the metadata (json_decref; may be NULL). directions (may be NULL): [K, d], the caller's to free. m, s (may be NULL): refused with both
 * hashes when the file is of another model or another dictionary (ES_ERR_MISMATCH); the directions must be the dictionary's. */
int es_basis_file_read(es_basis *out, json_t **about, float **directions, es_model *m, const es_dictionary *s, const char *path, es_error *err);
/* Its labels into a workspace: those of features that have none there, each under its own author. *taken: how many. */
int es_basis_file_labels(json_t *about, const char *dictionary_hash, es_workspace *w, int *taken, es_error *err);
/* The directions for other tools: a GGUF with one control vector "direction.LAYER" for feature `which`; or all as "basis" [K, d] with "lo", "hi", "feature" in an npz. */
int es_basis_control_vector(const es_basis *b, es_model *m, const es_dictionary *s, int which, float strength, const char *path, es_error *err);
int es_basis_npz(const es_basis *b, const es_dictionary *s, const char *path, es_error *err);

#include "looks.h"
#include "making.h"

#endif
