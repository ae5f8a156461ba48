/* Looking: finding features, dashboards, maps. es_find is for whoever has a dictionary open; the es_studio_ functions are the workbench's: none of them
 * waits, whatever they ask for is made by two threads of its own (one for what takes moments, one for maps and contrasts), and es_studio_fd says when
 * it has come. Part of sessions.h. */
#ifndef ES_LOOKS_H
#define ES_LOOKS_H

#include "dashboard.h"
#include "fires.h"
#include "layout.h"
#include "sessions.h"

/* ==== finding ==================================================================================================================== */

/* What is looked through; members borrowed, any but n_features may be NULL: a filter that needs what is not there is refused in words. One thread at a
 * time. The rest is es_find's own, kept between calls: zeroed to start, es_finder_free in the end. */
typedef struct es_finder {
    es_workspace *workspace; const char *hash; /* labels, and the dictionary's hash there */
    es_model *model;
    const es_dictionary *dictionary;
    es_atlas *atlas;
    const float *density;  /* [n_features] es_dictionary_density; NULL: the atlas', if there is one */
    const es_basis *basis; /* the one in use */
    int n_features, threads;
    struct es_finder_kept *kept;
} es_finder;
void es_finder_free(es_finder *f); /* what is kept */

typedef enum es_find_order { ES_FIND_BEST, ES_FIND_NUMBER, ES_FIND_DENSITY, ES_FIND_MAX, ES_FIND_LABEL, ES_FIND_TOKEN, ES_FIND_SURPRISE, ES_FIND_ORDERS } es_find_order;
const char *es_find_order_name(es_find_order o); /* "best", "number", "density", "max", "label", "token", "surprise" */

typedef struct es_found { /* owned: es_found_free */
    int n;
    int *feature;        /* in order */
    const char *measure; /* static: what `value` is: "cosine", "activation", "score"; NULL: there is none */
    float *value;        /* [n] or NULL */
    float *surprise;     /* [n], bits, or NULL: of text: filters */
    int *token;          /* [n] or NULL: of text: filters, where in text_id the feature is strongest */
    int32_t *text_id; int n_text;
} es_found;
void es_found_free(es_found *f);

/* The query, words and filters that must all hold, separated by blanks; a minus before one turns it round; a value with blanks stands in quotes:
 *   WORD            labels, tags or tokens have it (the last may be a beginning); then labels and tags that have it inside a word
 *   tag:T  is:labelled  is:unlabelled  is:rated  is:skipped  is:basis  is:conflict  by:NAME
 *   score< <= > >=  of labels that were tested (labels.h)
 *   promotes:T  suppresses:T  fires:T   among its promoted or suppressed tokens, or those its examples peak on; T* is a beginning
 *   density  max  mean  p99  rating     with < <= > >= = and a number, or :LO..HI
 *   like:N          the 200 nearest decoder rows that pass the rest, by cosine
 *   text:T          what fires on this text
 *   basis:NAME      of a saved basis (NAME@VERSION: not the newest)
 *   a number alone  that feature
 * order BEST: as the query has it: words by relevance, promotes: by rank, like: by cosine, text: by activation, else by number. TOKEN and SURPRISE want a
 * text:. es_find_help(i) gives these lines for help texts, NULL at the end. ES_ERR_USAGE for a query that makes no sense, ES_ERR_CANCELLED. */
int es_find(es_finder *f, const char *query, es_find_order order, es_found *out, const volatile bool *cancel, es_error *err);
const char *es_find_help(int i);

/* ==== the studio ================================================================================================================== */

/* A dashboard beyond the card: 1 and *out when it is there; 0 when it is being made. The last that was asked for is made first. */
int es_studio_dashboard(es_studio *s, int feature, es_dashboard *out);
/* The tokens its examples peak on, each once (without examples those it promotes), at most n: how many; -1: being read. */
int es_studio_peaks(es_studio *s, int feature, int32_t *id, int n);
const float *es_studio_max(es_studio *s); /* [F], as es_studio_density */
/* A window's text in whole characters, appended: token_end[n] are the bytes after each token (a character that a later token completes is that one's).
 * Returns 0, or negative while loading. */
int es_studio_window_text(es_studio *s, const int32_t *id, int n, es_buf *text, int *token_end);

/* Finds in the background; only the newest request counts. */
void es_studio_find(es_studio *s, const char *query, es_find_order order);
void es_studio_contrast(es_studio *s, const char *file_a, const char *file_b); /* what differs between two files of texts; comes as found, "score"; a job */
void es_studio_next(es_studio *s); /* what is most worth labelling (es_workspace_next, with what the experiences ask for); comes as found, "worth" */
bool es_studio_finding(es_studio *s);
/* true once for each result: *out is the caller's. A failed one has n 0, and error (of [240]) says why; "" otherwise. */
bool es_studio_found(es_studio *s, es_found *out, char error[240]);

typedef enum es_map_state { ES_MAP_NONE, ES_MAP_MAKING, ES_MAP_READY, ES_MAP_FAILED } es_map_state;
/* The map of the dictionary: asked for by the first call (a job), kept in es_studio_options.maps. *xy: [F, 2], borrowed while the studio lives; *done: the
 * share that is done. */
es_map_state es_studio_map(es_studio *s, const float **xy, double *done);

#endif
