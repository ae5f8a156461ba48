/* labels: who says what of which feature. Each annotator's opinion is kept apart; what is shown of a feature is put together from them, part by part.
 * How far annotators agree, how good a label is (the blind test), which feature is most worth looking at next, merging the labels of several people. */
#ifndef ES_LABELS_H
#define ES_LABELS_H

#include "features.h"

typedef struct es_workspace es_workspace;

/* ---- opinions -------------------------------------------------------------------------------------------------------------------------
 * An opinion is what one annotator says of one feature: text, tags, rating, confidence, a note, whether to skip it; each of them may be unsaid. Shown is of
 * each part the first that is said, the opinions in this order: of the annotator chosen for this feature (es_workspace_label_choose); of the one preferred
 * everywhere (es_workspace_label_prefer); of people, the newest text first; automatic ones ("auto" or "auto:..."); "starter". An empty text says that
 * there is no label; it is not the same as saying nothing. */

typedef struct es_label {
    int feature;
    char *text, *tags; /* tags separated by spaces; "" when none; owned: es_label_free */
    char *note;        /* lines; "" when none; owned */
    char author[64], time[32]; /* whose the text is; ISO 8601, UTC */
    int rating;        /* 0 none, 1..5: how well the feature is worth having */
    int confidence;    /* 0 none, 1..100 per cent: how sure the annotator is of the text */
    bool skipped;
    int opinions;      /* annotators that said something */
    bool conflict;     /* people's texts differ, and none was chosen */
    double score;      /* of the text shown, 0..1 (es_label_score); NAN: not tested */
    int tested;        /* answers behind the score */
} es_label;
void es_label_free(es_label *l); /* the strings */
bool es_author_automatic(const char *author); /* no person: "auto", "auto:..." or "starter" */

typedef struct es_label_edit { /* a change of an opinion; NULL or negative: as it is */
    const char *text, *tags, *note;
    const char *add_tags, *remove_tags; /* after tags; to or from those that are shown */
    int rating, confidence, skip;
} es_label_edit;
#define ES_LABEL_EDIT ((es_label_edit){.rating = -1, .confidence = -1, .skip = -1})
enum { ES_LABEL_BYTES = 4096, ES_NOTE_BYTES = 65536, ES_AUTHOR_BYTES = 63 };

/* The same change to n features as one step of undo. Every change is kept (author, time, before, after). *changed (may be NULL): of how many features
 * something changed. ES_ERR_USAGE: no such feature, too long, not UTF-8, out of range; then nothing is changed. */
int es_workspace_label_edit(es_workspace *w, const char *dictionary, const int *feature, int n, const es_label_edit *e, const char *author, int *changed,
                            es_error *err);
/* Undoes the newest step not yet undone, or redoes the newest undone one after which nothing was changed. *feature: the first it touched; *n (may be NULL): how
 * many. ES_ERR_MISSING when there is none. */
int es_workspace_label_step_back(es_workspace *w, const char *dictionary, int *feature, int *n, es_error *err);
int es_workspace_label_redo(es_workspace *w, const char *dictionary, int *feature, int *n, es_error *err);
/* All opinions of a feature in the order above; unsaid parts are "" and 0. Each counts opinions 1. es_labels_free. */
int es_workspace_label_opinions(es_workspace *w, const char *dictionary, int feature, es_label **out, int *n, es_error *err);
void es_labels_free(es_label *l, int n);
/* Whose opinion is shown of this feature: a step that can be undone. "": no longer chosen. ES_ERR_MISSING: that annotator said nothing of it. */
int es_workspace_label_choose(es_workspace *w, const char *dictionary, int feature, const char *author, es_error *err);
/* Whose are shown everywhere where none is chosen, "": nobody's in particular. Kept with the workspace. */
int es_workspace_label_prefer(es_workspace *w, const char *author, es_error *err);
void es_workspace_label_preferred(es_workspace *w, char out[64]);
/* Distinct tags that are shown, each with its NUL, by falling use: what completion offers. */
int es_workspace_label_tags(es_workspace *w, const char *dictionary, es_buf *out, es_error *err);

/* ---- merging --------------------------------------------------------------------------------------------------------------------------- */

typedef struct es_merge { int read, added, changed, same, older; } es_merge; /* lines; older: of an annotator whose newer word is here */
/* Labels of files as label export writes them: each line's opinion goes to its author (or `author` where it names none), with its own time; where that
 * author's is here already, the newer stays. One step of undo for all files; all or nothing. Refused with both hashes: lines of another dictionary. */
int es_workspace_label_merge(es_workspace *w, const char *dictionary, int n_features, const char *const *path, int n_path, const char *author, es_merge *out,
                             es_error *err);
/* Features of which people say different things (case and spaces apart) and none is chosen: [{"feature","shown","labels":[{"author","text",...}]}]. */
int es_workspace_label_conflicts(es_workspace *w, const char *dictionary, json_t **out, es_error *err);

/* ---- agreement ------------------------------------------------------------------------------------------------------------------------- */

/* Cohen's kappa of two raters over n units with categories as numbers (Cohen 1960): (observed - expected) / (1 - expected), with the large-sample standard
 * error of Fleiss, Cohen and Everitt (1969) and kappa -+ 1.96 of it. NAN where it is not defined: no units, or both always say the same one thing. */
typedef struct es_kappa { int n; double observed, expected, kappa, error, lo, hi; } es_kappa;
void es_kappa_of(es_kappa *out, const int *a, const int *b, int n); /* without memory: NAN as well */

/* Two annotators. tags: over the features that both tagged; a unit is a feature and a tag that either uses on any of them, the categories are has it and has
 * it not (the flattened 0/1 matrices of multi-label annotation). Units of one feature hang together, so lo and hi are the 2.5th and 97.5th percentile of
 * 1,000 resamples of features (seed 1), and error is NAN. text: over the features that both labelled; the category is the text, case and spaces apart. */
typedef struct es_agreement {
    char a[64], b[64];
    int tagged, labelled, same; /* features that both tagged; labelled; labelled with the same text */
    es_kappa tags, text;
    struct es_agreement_tag { char tag[64]; es_kappa kappa; } *tag; /* each tag alone, over the same features, most used first; owned */
    int n_tag;
} es_agreement;
/* Every pair of annotators who share a feature, people first. *out: es_agreements_free. */
int es_workspace_agreement(es_workspace *w, const char *dictionary, es_agreement **out, int *n, es_error *err);
void es_agreements_free(es_agreement *a, int n);

/* ---- scores ---------------------------------------------------------------------------------------------------------------------------- */

/* How well a label's text tells where its feature fires. Kept by feature and text: a label that comes back has its score again. */
typedef struct es_label_score {
    char kind[24];         /* "blind"; of language models "detection", "detection_f1", "fuzzing", "fuzzing_f1", "simulation" (autolabel.h) */
    char judge[64], time[32]; /* who answered: an annotator, or "auto:MODEL" */
    double value, lo, hi;  /* 0..1 (simulation, a correlation: -1..1), and a 95 % interval; all the same where there is none */
    int n;                 /* answers */
    int hit, miss, rejection, alarm; /* blind: active said active, active said not, inactive said not, inactive said active */
} es_label_score;
/* value, lo, hi and n from the four counts: balanced accuracy (hit rate + rejection rate) / 2; the interval from Wilson's of the two rates, put together by
 * square and add (Newcombe 1998, Statistics in Medicine 17:873). One kind of window only: the rate of that kind. */
void es_label_score_of(es_label_score *s);
int es_workspace_score_add(es_workspace *w, const char *dictionary, int feature, const char *text, const es_label_score *s, es_error *err); /* time: now */
/* What counts as the score of the text: people's blind tests together; without, automatic blind tests together; without, the newest of detection, else of
 * fuzzing, else of another kind. ES_ERR_MISSING: none. */
int es_workspace_score_get(es_workspace *w, const char *dictionary, int feature, const char *text, es_label_score *out, es_error *err);

/* ---- the blind test ---------------------------------------------------------------------------------------------------------------------- */

/* Ten windows of text, five of which activate the feature where it fired that often: examples of its own from the atlas, one from each fifth of (0, its largest
 * activation] where one is known (an atlas of version 1 knows the strongest only), from a tenth of it on. The others do not, and up to three of them are near
 * misses: examples of features that fire together with it or have the nearest decoder directions. Shuffled by the seed; the same seed gives the same test. */
enum { ES_BLIND = 10, ES_BLIND_TOKENS = 64 };
typedef struct es_blind_window {
    int n; int32_t id[ES_BLIND_TOKENS];
    bool active, near, unsound; /* unsound: not to be had in a test */
    int source;      /* the feature whose example it is */
    float activation; /* largest of the tested feature; 0 when it does not fire */
    float quantile;  /* share of the feature's active values that are no larger */
} es_blind_window;
typedef struct es_blind { int feature, n, n_active; uint64_t seed; es_blind_window window[ES_BLIND]; } es_blind;

/* Two steps, for an atlas that others use too: candidates from the atlas; then the model reads those of other features, to know whether this one fires on
 * them (a window begins anew, after the token that begins a text). ES_ERR_MISSING: it never fired, so there is nothing to test. */
typedef struct es_blind_pool es_blind_pool;
int es_blind_gather(es_blind_pool **out, es_atlas *a, const es_dictionary *s, int feature, uint64_t seed, es_error *err);
int es_blind_make(es_blind *out, es_blind_pool *p, const es_model *m, const es_dictionary *s, int threads, const volatile bool *cancel, es_error *err);
void es_blind_pool_free(es_blind_pool *p);
/* answer: bit i: window i is said to activate it. Fills all but judge and time. */
void es_blind_score(const es_blind *b, unsigned answer, es_label_score *out);
/* The model itself answers: how likely it is to give the label as its answer to what the text contains, and yes where the log-probability is above its mean
 * over the windows. (Asked whether a label fits, a small model says yes to all or at random.) odds (may be NULL): [n], less their mean. */
int es_blind_judge(const es_blind *b, const es_model *m, const char *label, int threads, unsigned *answer, double *odds, const volatile bool *cancel, es_error *err);

/* ---- what to look at next -------------------------------------------------------------------------------------------------------------- */

/* value = effect x use x doubt, of every feature that is not skipped and has no person's text.
 * effect, 0..1: without suggestions the share of features whose logit effect is smaller, where that is the mean activation times half the difference of the
 *   means of its ten most promoted and ten most suppressed logits; with suggestions (es_basis_suggest on the experiences' gradient) half of that, and for the
 *   suggested ones one half and half their score relative to the largest.
 * use, 0..1: log(1 + density / 1e-5) / log(1 + 0.1 / 1e-5): how much text a label would explain; beyond one token in ten it falls as 0.1 / density, since
 *   what fires everywhere says little. A feature that never fired: 0.
 * doubt, 0..1: 1 without a text; of an automatic text with score s the entropy in bits of max(s, 1/2); 0.88 where it was not tested (s = 0.7). */
typedef struct es_next { int feature; double value, effect, use, doubt; } es_next;
typedef struct es_next_options { const int *suggested; const float *score; int n_suggested; } es_next_options; /* zeroed: none */
/* The max most valuable, best first. ES_ERR_MISSING when the dictionary's rows were not made (es_workspace_use_dictionary) with an atlas. */
int es_workspace_next(es_workspace *w, const char *dictionary, const es_next_options *o, es_next *out, int max, int *n, es_error *err);

#endif
