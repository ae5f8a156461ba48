/* evaluate: tasks, what is measured of a way of adapting, and the protocol that puts all of them side by side on the same experiences.
 * What `espalier eval adapt` runs and prints. The measures: docs/results.md; the protocol: eval_adapt.c. */
#ifndef ES_EVALUATE_H
#define ES_EVALUATE_H

#include "method.h"

/* ---- tasks -------------------------------------------------------------------------------------------------------------------------- */

typedef struct es_task {
    char name[64];
    char about[400];     /* what the preferred side is like, in words */
    char hash[17];       /* of the file and the split: part of a run's key */
    es_experiences pool, dev, held; /* to learn from; to choose on; read once */
    es_experiences off;  /* off-domain pairs: the base model's behaviour should stay */
} es_task;

typedef struct es_task_split { int held_out, dev; uint64_t seed; } es_task_split; /* for files whose lines name no "set" */

/* JSONL of pairs. A first line {"about":...,"attribution":...} may describe it. Lines with "set" ("pool", "dev", "held" or "off") go there;
 * where no line has one, they are split by seed and there is no off-domain set. */
int es_task_load(es_task *out, const char *path, const char *name, const es_task_split *split, es_error *err);
void es_task_free(es_task *t);

typedef enum es_garbage { ES_GARBAGE_SWAP, ES_GARBAGE_SHUFFLE, ES_GARBAGE_OFF_TOPIC, ES_N_GARBAGE } es_garbage;
const char *es_garbage_name(es_garbage g); /* swap: the replies change places; shuffle: the preferred one's words do; off-topic: it is other text */
int es_garbage_by_name(const char *name);  /* -1 when there is none of that name */
/* Appends a copy of e made into garbage; other: unrelated text. */
int es_garbage_make(es_experiences *out, const es_experience *e, es_garbage g, const char *other, uint64_t seed, es_error *err);

/* ---- measures of a text ---------------------------------------------------------------------------------------------------------------- */

typedef struct es_behaviour { /* means over replies; NAN where nothing could be counted */
    int replies;
    double words, hedges, openers;     /* words a reply; hedges per 100 words; share of replies with an empty opener */
    double warmth, contractions, slang; /* polite minus rude words, contractions, slang words, per 100 words */
    double code, parses;               /* share of replies with code; of those, share that passes es_code_sane */
    double snake, annotated, docstring; /* share of names of several words in snake_case; of functions with annotations, with a docstring */
    double depth;                      /* blocks inside one another at the deepest place of a function, the function's own not counted */
    double unended, loops, empty;      /* shares of replies: cut at the limit; repeating themselves; without a word */
} es_behaviour;

enum { ES_BEHAVIOUR_FIELDS = 16 };
const char *es_behaviour_name(int field);                    /* "words", ... in the struct's order */
double es_behaviour_get(const es_behaviour *b, int field);
/* text: n replies; ended: whether each came to its end. */
void es_behaviour_of(const char *const *text, const bool *ended, int n, es_behaviour *out);
/* Brackets and quotes close, indentation only returns to a column it left, and what ends with a colon opens a block: a check of Python's
 * shape, not a parser. cut: the end is missing, so what is open there is no error. */
bool es_code_sane(const char *code, bool cut);
bool es_text_loops(const char *text); /* its last half consists of repetitions */

/* ---- what is compared ------------------------------------------------------------------------------------------------------------------ */

enum { ES_EVAL_RATES = 6, ES_EVAL_POINTS = 8, ES_EVAL_SIZES = 8, ES_EVAL_SHARES = 6 };

typedef struct es_eval_spec { /* a row of the table: a method with its options */
    char label[32];
    es_method_kind kind;
    es_method_options o;
    double rate[ES_EVAL_RATES]; int n_rate; /* tried on dev; one: taken as it is */
    int basis_pairs;            /* > 0: a basis chosen beforehand on so many other pairs of the pool */
    bool signs;                 /* ... with one-sided bounds */
    bool prior;                 /* ... and the direction those pairs ask for as a prior (es_direction_learn) */
    char preference[200];       /* what o.preference points to, when set */
} es_eval_spec;

/* "features", or "LABEL=features" for the same method under other options. Rates: 0.5, 1 and 2 times the method's default. */
int es_eval_spec_new(es_eval_spec *out, const char *text, es_error *err);
/* One option by its name in es_method_options, or rate (several with commas), form (by name; brings that form's usual rates), basis_pairs, signs. */
int es_eval_spec_set(es_eval_spec *s, const char *option, const char *value, es_error *err);
void es_eval_spec_text(const es_eval_spec *s, es_buf *out); /* all of them as "name=value ..." */

typedef es_neutral_text es_eval_text; /* neutral: a raw document, or an assistant's turn */

typedef struct es_choice { /* likelihoods of continuations of one beginning */
    char set[16];               /* "piqa", "arc", "lambada", "blimp" */
    const char *begin, *option[8]; /* begin may be "" */
    int n, right;               /* n 1: only the likelihood is looked at */
} es_choice;

typedef struct es_eval_options {
    const es_task *const *task; int n_task;
    const int *sweep_task; int n_sweep;  /* rates and steps are chosen over these tasks together; 0: each task for itself */
    const es_eval_spec *spec; int n_spec;
    int size[ES_EVAL_SIZES], n_size;
    double garbage[ES_EVAL_SHARES]; int n_garbage;
    es_garbage garbage_kind[ES_N_GARBAGE]; int n_garbage_kind;
    int orders;
    int reserve;                         /* pairs of the pool that nothing learns from, at least: those that bases are chosen on beforehand */
    int at[ES_EVAL_POINTS], n_at;        /* steps after which a path is measured, rising; the last is the most that is taken */
    double harm;                         /* on dev, a stop is allowed where the mean KL on neutral text is at most this */
    const es_eval_text *neutral; int n_neutral; /* a third is for dev */
    int raw_tokens, chat_tokens;         /* measured on; dev takes a third of that */
    const es_choice *choice; int n_choice;
    int choice_size;                     /* choices are measured after so many experiences (0: always) ... */
    int choice_orders, behaviour_orders; /* ... and in so many orders; behaviour likewise */
    int behaviour_replies, behaviour_tokens;
    int max_prompt, max_reply;           /* of measured pairs */
    es_model *teacher;                   /* distil: another model with the same tokenizer; NULL: the model itself with the experiences in its context */
    int threads;
    uint64_t seed;
    const char *work;                    /* JSONL, made when it is not there */
} es_eval_options;
es_eval_options es_eval_default(void);

/* Everything that is not in the work file yet. s and a may be NULL where no spec needs them. */
int es_eval_adapt(es_model *m, const es_dictionary *s, const es_atlas *a, const es_eval_options *o, const es_progress *progress, es_error *err);

/* ---- results (eval_rows.c, eval_plot.c) ------------------------------------------------------------------------------------------------ */

/* Reads a work file: one object a run, as documented in docs/results.md. compared: labels whose harm is read at the largest margin that all of
 * them reach in the same task, size, garbage and order (and whose margin at the largest harm that all reach). */
int es_eval_rows(const char *work, const char *const *compared, int n_compared, json_t **rows, es_error *err);
/* Means over tasks and orders with 95 % intervals: Markdown. */
int es_eval_table(json_t *rows, es_buf *out, es_error *err);
/* For each size and garbage: `label` against the best of the others compared, with bootstrap intervals over tasks and orders. */
int es_eval_ratios(json_t *rows, const char *label, const char *const *others, int n_others, uint64_t seed, json_t **out, es_error *err);
int es_eval_ratios_text(json_t *ratios, es_buf *out, es_error *err);
int es_eval_svg(json_t *rows, es_buf *out, es_error *err);
int es_eval_braille(json_t *rows, int width, int height, es_buf *out, es_error *err);

/* ---- readable (eval_readable.c) -------------------------------------------------------------------------------------------------------- */

typedef struct es_readable_feature { /* a row of a coefficient table; borrowed */
    double coefficient;
    const char *label;           /* NULL: none */
    const char *const *token; int n_token; /* promoted ones */
} es_readable_feature;
/* score[n_task]: how well the moved features' words match each task's; the largest is the guess. all: features to measure chance on. */
int es_eval_readable(const es_task *const *task, int n_task, const es_readable_feature *moved, int n_moved, const es_readable_feature *all, int n_all,
                     double *score, es_error *err);

/* ---- sequence (eval_sequence.c) -------------------------------------------------------------------------------------------------------- */

typedef struct es_sequence_options {
    const es_task *const *task; int n_task; /* traits in the order in which they are learned */
    const es_eval_spec *spec; int n_spec;   /* with the rate to take, the first of rate[] */
    int experiences, steps;      /* of each trait */
    int orders;
    const es_eval_text *neutral; int n_neutral; int raw_tokens, chat_tokens;
    int max_prompt, max_reply, threads;
    uint64_t seed;
    const char *work;
} es_sequence_options;
/* Learns the traits one after another, measuring the held-out margin of all after each; then, for each trait, the same again without its
 * experiences (undone by replay). Lines of the work file: {"is":"sequence","method","order","undone":-1 or a trait,"after":[[margins] a stage]}. */
int es_eval_sequence(es_model *m, const es_dictionary *s, const es_atlas *a, const es_sequence_options *o, const es_progress *progress, es_error *err);
/* Reads such a work file: rows with, for each trait, its margin when learned, at the end, and with each other undone; and a table of them. */
int es_sequence_rows(const char *work, json_t **rows, es_error *err);
int es_sequence_table(json_t *rows, es_buf *out, es_error *err);

/* Half width of the 95 % interval of a mean of n values (Student's t); NAN for n < 2. */
double es_eval_t95(const double *x, int n, double *mean);

#endif
