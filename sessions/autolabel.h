/* autolabel: labels for features from a language model, and scores that say how far they can be trusted.
 *
 * A model sees the windows of text where a feature is strongest, its tokens marked << >>, and names what they share (Bills et al. 2023; Paulo et al. 2024,
 * "Automatically interpreting millions of features": the windows are every other one of the atlas' examples, the others are held out). Scores:
 *   detection   which of the windows, held-out ones and such where the feature is silent, fit the label? balanced accuracy, and F1 (Paulo et al.)
 *   fuzzing     the same with tokens marked: those on which it fires, or in the silent windows as many at random (Paulo et al.)
 *   simulation  how active is it at each token, 0 to 10? correlation of the expected values with the activations (Bills et al.); where the
 *               probabilities of the answer's digits come back
 * Labels that people gave are never replaced. */
#ifndef ES_AUTOLABEL_H
#define ES_AUTOLABEL_H

#include "ask.h"
#include "labels.h"
#include "sessions.h"

/* ---- in the workspace ---- */

bool es_label_is_automatic(const char *author); /* "auto:MODEL" */
/* The label and its scores (value, kind and n of those that are finite), unless the feature has a label of a person: *stored says which. */
int es_workspace_label_auto(es_workspace *w, const char *dictionary, int feature, const char *text, const char *author, const es_label_score *score, int n_score, bool *stored,
                            es_error *err);
/* Those of the label that the feature has now: none when someone changed it since. */
int es_workspace_scores(es_workspace *w, const char *dictionary, int feature, es_label_score *out, int max, int *n, es_error *err);

/* ---- the work ---- */

enum { ES_SCORE_DETECTION = 1, ES_SCORE_FUZZING = 2, ES_SCORE_SIMULATION = 4, ES_LABEL_SCORES = 5 };

typedef struct es_autolabel_options {
    const char *prompts, *shipped; /* folder of a person's own prompts (may be NULL or lack some), and that of those that come with the program */
    int examples;      /* windows that the label is made of; 0: 10 */
    int tests;         /* windows of each kind that it is tested on; 0: 10 */
    int batch;         /* windows in one question; 0: 5 */
    int answer_tokens; /* room to think and to say the label; 0: 256 */
    unsigned scores;   /* ES_SCORE_... */
    bool again;        /* also features that have an automatic label */
    bool dry;          /* nothing is stored: to see what would be asked */
    uint64_t seed;     /* of the windows drawn: the same ones make the same questions, which the work file knows */
    int threads;
} es_autolabel_options;

typedef struct es_autolabel_result {
    int feature;
    const char *label;        /* NULL: none came, or nothing to go by: why */
    const char *why;          /* one line, when there is no label or it was not stored; NULL otherwise */
    bool stored;
    es_label_score score[ES_LABEL_SCORES]; int n_score;
} es_autolabel_result;

typedef struct es_autolabel { /* what it works on, all borrowed */
    es_workspace *workspace;
    es_model *model;
    const es_dictionary *dictionary;
    es_atlas *atlas;
    const char *author;       /* "auto:MODEL" */
    /* Called as each feature is done; may be NULL. */
    void (*report)(void *user, const es_autolabel_result *r);
    void *user;
} es_autolabel;

/* Labels n features; those that have a label already are passed over (reported with why). Every label is stored as soon as its scores are in. After an
 * error, a cancel or a spent budget what is done stays, and the work file has the answers of what was not. */
int es_autolabel_run(const es_autolabel *a, const int *feature, int n, es_answerer *who, es_work *work, es_budget *budget, const es_autolabel_options *o,
                     const es_progress *progress, es_error *err);

#endif
