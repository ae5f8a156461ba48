/* The Jobs view and its form, in which a training or a harvest is asked for (making.c). */
#ifndef ES_UI_VIEW_JOBS_H
#define ES_UI_VIEW_JOBS_H

#include "ui_internal.h"

enum { UI_MAKE_TEXTS, UI_MAKE_LAYERS, UI_MAKE_SITE, UI_MAKE_DO, UI_MAKE_RECIPE, UI_MAKE_FEATURES, UI_MAKE_K, UI_MAKE_TOKENS, UI_MAKE_OUT, UI_MAKE_FIELDS };

typedef struct ui_making {
    bool open, filled; /* filled: the fields have been, once */
    int at;
    ui_line line[UI_MAKE_FIELDS]; /* of those that are typed */
    bool harvest_only;
    int recipe;
    bool asked;        /* for the plan of what the fields say now */
    uint64_t serial;   /* of the view when it was */
    ui_layout plan;
} ui_making;

typedef struct ui_jobs_state { ui_list list; ui_making making; ui_layout detail; } ui_jobs_state;
ui_jobs_state *ui_jobs_of(const es_ui *u);

ui_result ui_key_make(es_ui *u, int key);                 /* opens the form */
ui_result ui_making_typed(es_ui *u, const ui_event *e);   /* UI_IGNORED while it is closed */
void ui_making_hint(const es_ui *u, es_buf *out);
void ui_making_draw(es_ui *u, ui_box b);
void ui_making_free(ui_making *m);

#endif
