/* What the parts of the Features view share: the list (view_features.c), the dashboard of one (dashboard.c), the map of all (map.c). */
#ifndef ES_UI_VIEW_FEATURES_H
#define ES_UI_VIEW_FEATURES_H

#include "ui_internal.h"

enum { UI_LIST_MODE = 1, UI_CARD_MODE = 2, UI_MAP_MODE = 4, UI_TEST_MODE = 8 };
enum { UI_META_CACHE = 512 };

typedef struct ui_meta {
    int feature; uint64_t made; /* names.made of when it was read */
    char tags[56], author[64]; int rating, confidence, opinions, tested; bool skipped, conflict, noted; double score; /* es_label */
} ui_meta;

typedef struct ui_dashboard { /* zeroed to start, card_of -1 */
    es_card_copy card; int card_of;
    es_dashboard more; bool more_there;
    int top, rows, page;    /* of the part that scrolls */
    bool wide;              /* examples in full, on as many rows as they take */
} ui_dashboard;

typedef struct ui_map {
    double x, y, unit;      /* the middle of the screen, and how much one dot of a cell is; unit 0: not looked at yet */
    double wide;            /* across, a dot is unit / wide: 1 to 2, so that a wide screen is used */
    bool whole;             /* all is shown as large as it goes, and stays so when the screen is resized */
    double dot_x, dot_y;    /* the cursor, in dots of the box drawn last */
    int h, w;               /* of that box */
    int feature;            /* nearest to the cursor, -1: none */
    /* words of labels, for the names of places: made again when labels change */
    uint64_t serial; bool named;
    int *labelled, n_labelled;
    int32_t (*word)[4];     /* [n_labelled] of their labels, -1 after the last */
    char **text; int *in; int n_word, cap_word; /* each word, and in how many labels it is */
} ui_map;

typedef struct ui_labelling {
    uint8_t *mark; int n_mark, cap, last; /* [cap] 1: chosen for what is done to several; how many; the one marked last, -1: none */
    struct { bool any; int feature; char *text, *tags; int rating, confidence; } said; /* of the feature labelled last, for repeating */
    es_buf tags; bool tags_read;     /* those in use, each with its NUL: for completion */
    struct { bool open, done; int feature, at, top; uint64_t asked; unsigned answer; char *label; es_label_score score; } test;
    struct { bool open; int top, rows, page; es_buf text; } page;
} ui_labelling;

typedef struct ui_features {
    es_found found; bool have;     /* the rows; without: all, by number */
    ui_list list;
    char *filter, *before;         /* in force; while typing: the one to go back to */
    char *contrast;                /* the rows are what differs between two sets of texts: their names */
    bool queue;                    /* the rows are what is most worth labelling */
    ui_labelling lab;
    char error[240];               /* why the filter found nothing */
    es_find_order order;
    bool reset;                    /* when the rows come, begin at the first */
    int keep;                      /* else stay at this feature */
    bool card_open, map_open;
    int shown;                     /* the dashboard is of this one though the rows may not have it; -1: of the chosen row */
    ui_dashboard card;
    ui_map map;
    int pending;                   /* the feature a prompt speaks of */
    ui_meta cache[UI_META_CACHE];
    int n_features;
} ui_features_state;

static inline ui_features_state *ui_features_of(const es_ui *u)
{
    return u->state[UI_FEATURES];
}
const ui_meta *ui_meta_of(es_ui *u, int feature);
bool ui_filtered(const es_ui *u); /* the rows are some of the features only */
int ui_features_selected(const es_ui *u);           /* -1: none */
int ui_features_row(const es_ui *u, int i);         /* -1: none */
int ui_features_rows(const es_ui *u);
void ui_features_go(es_ui *u, int feature);         /* to its row, where it has one */
bool ui_features_unlabelled(es_ui *u);              /* to the next one without a label; false: there is none below */
void ui_features_queue(es_ui *u);                    /* asks for the rows most worth labelling */

/* labelling.c: keys by their names in the table; each acts on the marked features, or on the chosen one when none is marked. */
ui_result ui_key_label(es_ui *u, int key), ui_key_tag(es_ui *u, int key), ui_key_rate(es_ui *u, int key), ui_key_skip(es_ui *u, int key);
ui_result ui_key_confidence(es_ui *u, int key), ui_key_note(es_ui *u, int key), ui_key_note_outside(es_ui *u, int key), ui_key_repeat(es_ui *u, int key);
ui_result ui_key_undo(es_ui *u, int key), ui_key_redo(es_ui *u, int key), ui_key_mark(es_ui *u, int key), ui_key_mark_range(es_ui *u, int key);
ui_result ui_key_mark_all(es_ui *u, int key), ui_key_whose(es_ui *u, int key), ui_key_queue(es_ui *u, int key), ui_key_next(es_ui *u, int key);
bool ui_marked(const es_ui *u, int feature);
void ui_marks_drop(es_ui *u);
void ui_labelling_free(ui_labelling *l);
int ui_labelled_draw(es_ui *u, ui_box b, int y, int feature); /* rating, tags, score, note, second opinions; returns the row after them */

/* blind.c: the blind test of a label, and the page of agreement: both fill the view until they are closed */
ui_result ui_key_test(es_ui *u, int key), ui_key_agreement(es_ui *u, int key);
bool ui_test_open(const es_ui *u);
ui_result ui_test_typed(es_ui *u, const ui_event *e);
void ui_test_draw(es_ui *u, ui_box b);
void ui_test_hint(const es_ui *u, es_buf *out);

/* dashboard.c */
void ui_dashboard_draw(es_ui *u, ui_box b, int feature);
void ui_dashboard_key(es_ui *u, int key);    /* J K PgUp PgDn ] [ e, wheel */
void ui_dashboard_free(ui_dashboard *d);

/* map.c */
void ui_map_draw(es_ui *u, ui_box b);
void ui_map_key(es_ui *u, int key);
void ui_map_open(es_ui *u, int feature);     /* with the cursor there; -1: in the middle of all */
void ui_map_free(ui_map *m);

#endif
