/* The inside of a studio. Two threads touch the engine: the chat thread (context, sampling, encoding) and the worker (attribution,
 * learner). Everything marked [lock] is guarded by `lock`, which nobody holds while computing; what is marked [chat] or [work] belongs
 * to that thread alone; model, dictionary and atlas are set once before `ready` and read-only afterwards (atlas: atlas_lock). */
#ifndef ES_STUDIO_INTERNAL_H
#define ES_STUDIO_INTERNAL_H

#include <pthread.h>

#include "method.h"
#include "sessions.h"
#include "workspace.h"

enum { ES_HISTORY = 512, ES_ACTIVE = 32, ES_JOBS = 32 };

typedef enum es_command_kind {
    ES_CMD_SAY, ES_CMD_NEW_CHAT, ES_CMD_REGENERATE, ES_CMD_COMPARE, ES_CMD_STEER, ES_CMD_BLIND, /* for the chat thread */
    ES_CMD_SUGGEST, ES_CMD_MEASURE, ES_CMD_PREFER, ES_CMD_DIRECTION,                            /* for the worker */
} es_command_kind;

typedef struct es_command {
    es_command_kind kind;
    int a, job;
    float x;
    char *text;
    struct es_command *next;
} es_command;

typedef struct es_queue {
    es_command *head, *tail;
} es_queue;

typedef struct es_turn_state { /* [lock] */
    int64_t id;      /* the message's id in the workspace */
    char role;
    es_buf text;
    char *edited;
    int rating;
    bool streaming, stopped;
    int64_t snapshot;
    int n_token, cap_token;
    int *token_end;
    /* active features of each token, a row a token */
    int n_row, cap_row;
    size_t *row; /* [n_row + 1] */
    int32_t *feature;
    float *value;
    size_t cap_value;
} es_turn_state;

typedef struct es_side_state { /* [lock] */
    char title[160];
    es_buf text;
    bool streaming;
    int tokens;
} es_side_state;

/* What the workspace holds of experiences and snapshots, read once after each change and shared by the views that show it. */
typedef struct es_stored {
    int refs; /* atomic */
    es_experience_line *experience;
    int n_experience;
    es_snapshot_line *snapshot;
    int n_snapshot;
    int64_t current;         /* the snapshot in use, with the features of its basis and who moved them */
    es_basis basis;
    const float *coefficient; /* [basis.n], in snapshot */
    int64_t *influence_id;
    float *influence;        /* [(n_influence + 1) * basis.n] or NULL */
    int n_influence;
    es_direction_line *direction;
    int n_direction;
} es_stored;
void es_stored_drop(es_stored *d);

/* Bytes of tokens become whole characters; what can never be one becomes U+FFFD. */
typedef struct es_whole { char byte[8]; int n; } es_whole;
void es_whole_add(es_whole *w, const char *bytes, size_t n, es_buf *out);
void es_whole_end(es_whole *w, es_buf *out);

/* Who speaks: a model, a patch, messages before the conversation. */
typedef struct es_speaker {
    es_variant v;      /* owns what it stands on */
    int64_t snapshot;  /* what a reply is marked with: a snapshot's id, or ES_BY_METHOD - kind */
    uint64_t id;       /* of this publication: never 0 */
} es_speaker;
void es_speaker_free(es_speaker *p);
bool es_speaker_whole(const es_studio *s, const es_speaker *p); /* has its own model or messages: not to be changed in the middle of a reply */

struct es_studio {
    es_studio_options o; /* strings owned */
    es_workspace *workspace;
    int64_t session;

    pthread_mutex_t swap;  /* which snapshot is in use: "is this round still wanted? then publish" against a rollback. Before lock */
    uint64_t epoch;        /* [swap] grows with each rollback; a round of an older epoch publishes nothing */
    pthread_mutex_t lock;
    pthread_cond_t chat_wake, work_wake;
    pthread_t chat_thread, work_thread;
    bool chat_started, work_started;
    int pipe[2];
    bool pipe_full;        /* one byte is in the pipe */
    bool quit;             /* also read without the lock through __atomic */
    bool ready, failed;    /* [lock] */
    bool stop;             /* a flag: the generation now running stops at the next token */
    bool cancel_work;      /* a flag: the worker's long call stops */
    uint64_t serial;
    char status[240];

    es_model *model;
    es_dictionary *dictionary;
    es_atlas *atlas;
    pthread_mutex_t atlas_lock;
    const float *density; /* es_dictionary_density, and its memory where that is not the atlas' */
    float *own_density;
    char model_name[128], dictionary_name[128], dictionary_hash[65], model_hash[65];
    int layer, d_model, n_features;
    bool steers; /* the dictionary is of the residual: else it is for looking, and nothing is learned */

    es_queue chat_queue, work_queue; /* [lock] */

    /* conversation [lock] */
    es_turn_state *turn;
    int n_turn, cap_turn;
    bool generating;
    double tokens_per_second;
    int context_used, n_ctx;
    es_active active[ES_ACTIVE];
    int n_active;
    int shade;
    es_side_state side[2];
    int n_side;
    es_blind *blind;       /* NULL: none */
    bool blind_running;
    uint64_t blind_serial;
    char blind_text[200];
    float temperature;

    /* what speaks: the worker leaves a whole adapter here, the chat thread takes it between tokens [lock] */
    es_speaker *incoming;
    bool incoming_set; /* true with incoming NULL: back to the base model */
    int64_t snapshot;  /* in use; 0: base */
    bool adapter_on;
    es_method_kind method; /* what is to answer: features speaks through snapshots, any other through what it learned for this session */
    char method_text[160]; /* how far that is */
    char *teacher;         /* distil: what was named, a preference that was stated or the file of a model; NULL: the newest preference */
    uint64_t n_speaker;

    /* [chat] */
    es_context *context;
    es_pool *pool;
    es_speaker *speaking;   /* NULL: the base model */
    es_context *own;        /* of speaking's own model, when it has one */
    es_watch watch;
    uint64_t cached;        /* the speaker whose rows the KV cache holds; 0: the base model; UINT64_MAX: of more than one */
    uint64_t again;          /* replies made again: each has a seed of its own */
    es_turn_state *listening; /* where the watch puts the active features of a fed token; NULL: nowhere */
    es_sparse sparse;
    es_rng rng;

    /* basis in use [lock] */
    es_basis basis; /* name "" when there is none */
    bool basis_auto;
    es_basis_report report;
    bool report_ready;
    uint64_t labels_read; /* counts what made many labels at once */
    int *suggested;
    float *suggested_score;
    int n_suggested;

    es_readings *readings;  /* [work] of experiences, from round to round; NULL: none */
    es_inputs *white;       /* [work] white inputs; NULL: Adam with learned ones */

    /* learning [lock] */
    es_learning_state learning;
    char learning_text[200];
    bool paused, dirty, restart; /* dirty: there is something new to learn; restart: from the base model (something was taken away) */
    float *history; /* ring-free: [n_step * basis.n], the oldest is dropped at ES_HISTORY */
    float *step_loss, *step_kl;
    int n_step;
    int *mark_step;
    int64_t *mark_experience;
    int n_mark;
    float *snr;
    int n_snr;
    es_stored *stored;
    bool stale;             /* stored is to be read again */
    pthread_mutex_t reading; /* one reader at a time; before lock */
    struct es_looks *looks; /* set before ready; NULL: there is no dictionary */
    es_atlas *shown;        /* [shown_lock] for cards: atlas_lock may be held for long */
    pthread_mutex_t shown_lock;
    struct es_maker *maker; /* studio_make.c; NULL: nothing was made yet */
    char plan_text[320];
    bool plan_ok, plan_running;
    uint64_t plan_serial;
    es_job job[ES_JOBS];
    double job_start[ES_JOBS];
    int n_job, next_job;
};

/* studio.c */
void es_studio_changed(es_studio *s);                 /* with the lock held: a new view is worth drawing */
void es_studio_say_status(es_studio *s, const char *fmt, ...) __attribute__((format(printf, 2, 3))); /* takes the lock */
void es_studio_hear_card(es_studio *s);               /* what was left to the processor becomes the status; takes the lock; after each piece of work */
bool es_studio_quitting(const es_studio *s);
void es_studio_turn_free(es_turn_state *t);
void es_studio_clear_history(es_studio *s);           /* lock held */
int es_studio_set_basis(es_studio *s, const es_basis *b, es_error *err); /* takes the lock; copies; drops history when the features differ */
int es_studio_basis_copy(es_basis *out, const es_basis *b);
void es_studio_learn_dirty(es_studio *s, bool restart); /* takes the lock */
int es_studio_job_begin(es_studio *s, const char *kind, const char *what, const char *unit); /* takes the lock; the job's id */
void es_studio_job_step(es_studio *s, int id, double done, double total, const char *what);
void es_studio_job_end(es_studio *s, int id, bool failed, bool cancelled, const char *what);
void es_studio_job_ended(es_studio *s, int id, bool failed, bool cancelled); /* the same with the lock held, with what it said last */

/* With swap held: this snapshot (a is taken over; NULL: the base model) is in use from now on, also in the workspace. */
int es_studio_publish(es_studio *s, es_adapter *a, int64_t id, es_error *err);
/* With swap held: this variant of a method answers from now on (v is taken over). Nothing is kept of it: it is learned again when it is chosen again. */
int es_studio_publish_method(es_studio *s, es_method_kind k, es_variant *v, es_error *err);
es_stored *es_studio_stored(es_studio *s); /* up to date; drop it after use; NULL: no memory */
bool es_studio_knows(es_studio *s, int64_t experience); /* the snapshot in use learned from it */

/* studio_look.c. With the dictionary open and before ready; after quit is set, before anything is freed. */
int es_looks_start(es_studio *s, es_error *err);
void es_looks_stop(es_studio *s);
bool es_looks_cancel(es_studio *s, int job); /* true: that job was one of its own */

/* studio_make.c. Once quit is set, before anything is freed */
void es_maker_stop(es_studio *s);
bool es_maker_cancel(es_studio *s, int job); /* true: that job was one of its own: stopped, or if it was already, forgotten */
void es_maker_recall(es_studio *s);          /* what another session stopped or was killed in becomes a job that can be gone on with */

/* studio_chat.c, studio_learn.c: the two threads */
void *es_studio_chat_main(void *studio);
void *es_studio_work_main(void *studio);
void es_studio_command_free(es_command *c);
void es_studio_post(es_studio *s, es_queue *q, pthread_cond_t *wake, es_command_kind kind, int a, float x, const char *text);

#endif
