/* The windows of text that labels are made of and tested on, as a language model sees them. Internal to autolabel. */
#ifndef ES_AUTOLABEL_WINDOWS_H
#define ES_AUTOLABEL_WINDOWS_H

#include "autolabel.h"

enum { ES_WINDOW_MAX = 64 }; /* tokens: of longer examples those around the strongest */
typedef struct es_window { int n; int32_t *id; float *value; float max; } es_window; /* value: activation of the feature at each token; one block */
typedef struct es_windows { es_window *item; int n; void *memory; } es_windows;
void es_windows_free(es_windows *w);

/* A feature's examples: its card's, each in a copy, strongest first. */
int es_windows_of_card(es_windows *out, const es_feature_card *c, es_error *err);

/* Windows of whatever features, encoded: where is a feature silent? */
typedef struct es_window_pool { es_windows w; es_sparse acts; int *row; } es_window_pool; /* row[i]: where window i's rows begin in acts */
int es_window_pool_open(es_window_pool *p, es_model *m, const es_dictionary *s, es_atlas *a, int n, uint64_t seed, int threads, const es_progress *progress, es_error *err);
void es_window_pool_free(es_window_pool *p);
bool es_window_is_silent(const es_window_pool *p, int i, int feature); /* at every token but the first */

/* The text of a window with the marked tokens between << and >> (mark NULL: none), on one line; appended. Valid UTF-8 comes out whatever the tokens hold. */
void es_window_text(es_buf *out, const es_model *m, const es_window *w, const bool *mark);
void es_window_marks(const es_window *w, bool *mark); /* mark[w->n]: tokens at 0.3 of the window's strongest or more */
/* A token a line, numbered from 1. */
void es_window_tokens(es_buf *out, const es_model *m, const es_window *w);

#endif
