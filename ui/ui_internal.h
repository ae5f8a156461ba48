/* What the parts of the workbench share, and what its tests use. Only term.c and draw.c include curses: views say what is where in
 * terms of boxes and styles. All text goes to the screen through ui_put and its kin, which show control bytes and never send them. */
#ifndef ES_UI_INTERNAL_H
#define ES_UI_INTERNAL_H

#include "ui.h"

#include <wchar.h>

typedef struct es_ui es_ui;

/* ==== events (input.c) ================================================================================================== */

enum { /* event keys: a code point, a control character, or one of these; Alt and Ctrl (of named keys) are bits */
    UI_UP = 0x110000, UI_DOWN, UI_LEFT, UI_RIGHT, UI_HOME, UI_END, UI_PAGE_UP, UI_PAGE_DOWN, UI_INSERT, UI_DELETE, UI_BACK_TAB,
    UI_PASTE, UI_WHEEL_UP, UI_WHEEL_DOWN, UI_CLICK, UI_BACKGROUND, UI_F1, UI_F12 = UI_F1 + 11,
    UI_ENTER = '\r', UI_TAB = '\t', UI_ESC = 27, UI_BACKSPACE = 127,
    UI_ALT = 0x1000000, UI_CTRL = 0x2000000,
};
#define UI_CONTROL(c) ((c) & 31)

typedef struct ui_event {
    int key;
    const char *paste; size_t n; /* UI_PASTE: the bytes, as they came */
    int y, x;                    /* UI_CLICK, wheel: the cell; UI_BACKGROUND: x is 1 when the terminal is light */
} ui_event;

typedef struct ui_input { /* zeroed to start; turns bytes into events, however the bytes are split over reads */
    unsigned char seq[64];
    int n, state;
    es_buf paste;
} ui_input;
typedef void ui_emit(void *user, const ui_event *e);
void ui_input_feed(ui_input *in, const char *bytes, size_t n, ui_emit *emit, void *user);
bool ui_input_waits(const ui_input *in);                        /* an unfinished sequence: flush it after some 40 ms */
void ui_input_flush(ui_input *in, ui_emit *emit, void *user);   /* a lone ESC was the Esc key */
void ui_input_free(ui_input *in);
void ui_key_name(int key, bool unicode, char *out, size_t n);   /* "Ctrl-E", "PgUp", "Alt-Enter", "j" */

/* ==== text (text.c) ======================================================================================================== */

typedef struct ui_glyph { /* what one character (with its combining marks) looks like */
    int width;
    int n; wchar_t ch[6]; /* one cell, or */
    char esc[16];         /* visible ASCII for what must not be sent; "" otherwise */
} ui_glyph;
/* The next glyph of s[0..n), n > 0; returns its bytes (at least 1). A newline is an escape here: wrapping deals with it before. */
size_t ui_glyph_next(bool unicode, const char *s, size_t n, ui_glyph *g);
int ui_width(bool unicode, const char *s, size_t n);
size_t ui_fit(bool unicode, const char *s, size_t n, int columns); /* bytes of the longest prefix of at most that many columns */
size_t ui_char_next(const char *s, size_t n, size_t at); /* cursor steps over whole characters with their combining marks */
size_t ui_char_before(const char *s, size_t at);
void ui_oneline(es_buf *out, const char *s, size_t n);   /* runs of white space as one blank, for previews */

typedef struct ui_row { int start, end; int indent; bool code; } ui_row; /* bytes [start, end) of the text */
enum { UI_HIDDEN = 1, UI_STRONG = 2, UI_CODE = 4, UI_HEADING = 8 };
typedef struct ui_layout { /* a text broken into rows; kept and only made again when the text or the width changed */
    ui_row *row; int n, cap;
    uint8_t *mark; size_t cap_mark; /* per byte, with markdown; NULL otherwise */
    int width; uint64_t hash; bool markdown, made;
} ui_layout;
/* Words wrap at width columns; long ones break. markdown: **bold**, `code`, fences, headings, hanging indents of list items. Unclosed
 * marks stay as typed, so that a half-streamed reply never flickers. True when it had to be made again. */
bool ui_layout_make(ui_layout *l, bool unicode, const char *s, size_t n, int width, bool markdown);
void ui_layout_free(ui_layout *l);
uint64_t ui_hash(const char *s, size_t n);

/* ==== drawing (draw.c) ======================================================================================================= */

typedef enum ui_style {
    UI_PLAIN, UI_DIM, UI_BOLD, UI_TITLE, UI_ACCENT, UI_GOOD, UI_BAD, UI_WARN, UI_KEY, UI_SELECTED, UI_BAR, UI_TAB_OFF, UI_TAB_ON, UI_LINE2, UI_LINE3,
    UI_SHADE, UI_SHADES = 6, UI_STYLES = UI_SHADE + UI_SHADES,
} ui_style;
typedef struct ui_box { int y, x, h, w; } ui_box; /* everything drawn into a box is clipped to it */

ui_box ui_inside(ui_box b, int top, int right, int bottom, int left);
int ui_put(es_ui *u, ui_box b, int y, int x, ui_style s, const char *text); /* returns the column after it */
int ui_putn(es_ui *u, ui_box b, int y, int x, ui_style s, const char *text, size_t n);
int ui_printf(es_ui *u, ui_box b, int y, int x, ui_style s, const char *fmt, ...) __attribute__((format(printf, 6, 7)));
int ui_put_cut(es_ui *u, ui_box b, int y, int x, int w, ui_style s, const char *text); /* at most w columns, the end cut with an ellipsis; returns x + w */
void ui_put_right(es_ui *u, ui_box b, int y, ui_style s, const char *text);
void ui_fill(es_ui *u, ui_box b, ui_style s);
void ui_row_fill(es_ui *u, ui_box b, int y, ui_style s);
void ui_rule(es_ui *u, ui_box b, int y, const char *title);
void ui_wall(es_ui *u, ui_box b, int x);
ui_box ui_frame(es_ui *u, ui_box b, const char *title); /* cleared, with a border; returns the inside */
void ui_bar(es_ui *u, ui_box b, int y, int x, int w, ui_style s, double share);  /* 0..1 from the left, in eighths */
void ui_bar_signed(es_ui *u, ui_box b, int y, int x, int w, double value);       /* -1..1 from the middle */
void ui_spark(es_ui *u, ui_box b, int y, int x, int w, ui_style s, const float *value, int n, int stride);
void ui_columns(es_ui *u, ui_box b, ui_style s, const uint32_t *count, int n);   /* a histogram filling the box, square-root heights */
/* Row `part` of `parts` of such a histogram, in a box of one row. */
void ui_columns_part(es_ui *u, ui_box b, ui_style s, const uint32_t *count, int n, int part, int parts);
/* Dots of braille over a box (of ASCII where there is no Unicode): cells[h * w] as Unicode orders a cell's eight dots, each in its own style. */
void ui_dots(es_ui *u, ui_box b, const uint8_t *cells, const uint8_t *style);
void ui_dot(uint8_t *cells, int w, int h, int x, int y); /* sets dot (x, y) of [2 w, 4 h]; outside: nothing */
typedef struct ui_series { const float *value; int n, stride; ui_style style; } ui_series;
/* Lines of braille (dots in ASCII) over steps 0..n-1 with an axis on the left and, below, a mark at each of mark[0..n_mark). */
void ui_plot(es_ui *u, ui_box b, const ui_series *series, int n_series, const int *mark, int n_mark);
ui_style ui_shade(float value, float max); /* UI_PLAIN, or UI_SHADE + level */
void ui_draw_row(es_ui *u, ui_box b, int y, int x, ui_style s, const ui_layout *l, int row, const char *text, const int *token_end,
                 const float *shade, int n_token, float max); /* token_end NULL: unshaded */
void ui_cursor(es_ui *u, ui_box b, int y, int x); /* where the terminal's cursor shows after this drawing */
const char *ui_sign(const es_ui *u, const char *unicode, const char *ascii);
void ui_scrollbar(es_ui *u, ui_box b, int top, int page, int n); /* in the box's last column, when not all fits */

/* ==== line editor (line.c) ===================================================================================================== */

typedef struct ui_history { char **item; int n; } ui_history;
void ui_history_add(ui_history *h, const char *text);
void ui_history_free(ui_history *h);

typedef struct ui_line {
    es_buf text;
    size_t at;              /* the cursor, a byte offset */
    bool multi;             /* Alt-Enter makes a new line */
    ui_history *history;    /* borrowed; NULL: none */
    int recalled; char *stash;
    es_buf killed;
    ui_layout layout; int width, top; /* of the last drawing */
} ui_line;
typedef enum ui_line_result { UI_LINE_IGNORED, UI_LINE_MOVED, UI_LINE_CHANGED, UI_LINE_ENTER } ui_line_result;
enum { UI_LINE_MAX = 4 << 20 }; /* bytes; more is not taken */
ui_line_result ui_line_key(ui_line *l, const ui_event *e);
void ui_line_set(ui_line *l, const char *text);
const char *ui_line_text(const ui_line *l); /* never NULL */
int ui_line_rows(ui_line *l, bool unicode, int width);
void ui_line_draw(es_ui *u, ui_box b, ui_line *l, bool focused);
void ui_line_free(ui_line *l);

/* ==== list (list.c) ============================================================================================================= */

typedef struct ui_list { int n, at, top, page; } ui_list; /* rows are drawn on demand: a million cost as much as ten */
bool ui_list_key(ui_list *l, int key);
void ui_list_fit(ui_list *l, int n, int page); /* call when drawing: keeps the selection inside and in sight */
#define UI_LIST_KEYS(act) \
    {'j', 0, "next", act}, {UI_DOWN, 0, NULL, act}, {'k', 0, "previous", act}, {UI_UP, 0, NULL, act}, \
    {UI_PAGE_DOWN, 0, "page down, page up", act}, {UI_PAGE_UP, 0, NULL, act}, {UI_HOME, 0, "first, last", act}, {UI_END, 0, NULL, act}, {'G', 0, NULL, act}

/* ==== views and keys ============================================================================================================== */

typedef enum ui_result { UI_IGNORED, UI_DONE, UI_REDRAW, UI_QUIT } ui_result; /* of a key handler; handlers never draw */

typedef struct ui_key { /* one row makes the key work and makes its line in the help */
    int key;              /* 0 ends a table */
    unsigned modes;       /* where it holds, a mask of the view's own; 0: everywhere in the view */
    const char *help;     /* NULL: another key for the row above */
    ui_result (*act)(es_ui *u, int key);
} ui_key;

typedef struct ui_view {
    const char *name;
    char letter;          /* g and this letter open it */
    const ui_key *keys;
    const char *help[4];  /* lines above the keys in the help */
    const char *(*more_help)(int i); /* and more of them, NULL at the end; may be NULL */
    int (*open)(es_ui *u, void **state);
    void (*close)(es_ui *u, void *state);
    void (*update)(es_ui *u);                        /* a new copy of the studio's view has come; may be NULL */
    ui_result (*typed)(es_ui *u, const ui_event *e); /* before the table: text fields; may be NULL */
    unsigned (*mode)(const es_ui *u);                /* may be NULL */
    void (*hint)(const es_ui *u, es_buf *out);       /* the line at the bottom when nothing else is said there */
    void (*draw)(es_ui *u, ui_box b);
} ui_view;

extern const ui_view ui_chat, ui_features, ui_basis, ui_drift, ui_experiences, ui_jobs;
enum { UI_CHAT, UI_FEATURES, UI_BASIS, UI_DRIFT, UI_EXPERIENCES, UI_JOBS, UI_VIEWS };
extern const ui_view *const ui_views[UI_VIEWS];

/* ==== the program ==================================================================================================================== */

typedef void ui_done(es_ui *u, const char *text);                          /* text NULL: given up */
typedef void ui_complete(es_ui *u, const char *text, es_buf *candidates);   /* whole replacements of the line, each with its NUL */

typedef struct ui_names { /* labels and token texts of features, read once and on demand */
    int n; char **label, **tokens; char hash[65];
    uint64_t labels_read;    /* the view's, when they were read */
    uint64_t serial;         /* counts changes */
    uint64_t made;           /* counts those after which nothing that was read holds */
} ui_names;

enum { UI_HISTORY_COMMAND, UI_HISTORY_SAY, UI_HISTORY_FILTER, UI_HISTORY_TEXT, UI_HISTORIES };

struct es_ui {
    es_studio *studio;
    es_ui_options o;
    es_view *v;
    int h, w, view;
    void *state[UI_VIEWS];
    bool leave, dirty, redraw_all, drawn, light, background_known;
    ui_input input;
    ui_names names;
    ui_history history[UI_HISTORIES];

    struct { bool open; char label[96]; ui_line line; ui_done *done, *change; ui_complete *complete; es_buf candidates; int chosen; } prompt;
    struct { bool open; char text[200]; void (*yes)(es_ui *u); } ask;
    struct { bool open; int top, rows, page; } help;
    struct { bool closed; int top[2], rows[2], page; ui_layout layout[2]; } sides; /* compare and steer, over whatever view is open */
    struct { bool open; char title[160]; ui_line line; int64_t turn; int64_t draft_turn; char *draft; void (*save)(es_ui *u, int64_t turn, const char *text); } editor;
    int prefix;
    char message[400]; ui_style message_style; double message_until;
    int pending_feature; double pending_strength; /* between two prompts */
    int cursor_y, cursor_x; bool cursor_on;
    unsigned attr[UI_STYLES]; /* draw.c: attributes and colour pair of each style */
};

int ui_open(es_ui **out, es_studio *studio, const es_ui_options *o, es_error *err); /* everything but the terminal */
void ui_close(es_ui *u);
void ui_event_handle(es_ui *u, const ui_event *e);
void ui_feed(es_ui *u, const char *bytes, size_t n); /* bytes as a terminal would send them */
void ui_take_view(es_ui *u);  /* copies the studio's newest view */
void ui_draw(es_ui *u);       /* the whole screen */
void ui_leave(es_ui *u);      /* asks first while learning */

void ui_say(es_ui *u, ui_style s, const char *fmt, ...) __attribute__((format(printf, 3, 4))); /* the bottom line, for some seconds */
void ui_show(es_ui *u, int view);
void ui_prompt(es_ui *u, const char *label, const char *initial, int history, ui_done *done, ui_done *change, ui_complete *complete);
void ui_ask(es_ui *u, const char *question, void (*yes)(es_ui *u));
void ui_edit(es_ui *u, const char *title, const char *initial, int64_t turn, void (*save)(es_ui *u, int64_t turn, const char *text));
int ui_edit_outside(es_ui *u, const char *initial, es_buf *out, es_error *err); /* in $EDITOR */
void ui_steer_prompt(es_ui *u, int feature);
void ui_compare_prompt(es_ui *u);
/* Keys that several views have, with the same meaning in each. */
ui_result ui_key_compare(es_ui *u, int key);
ui_result ui_key_pause(es_ui *u, int key);
ui_result ui_key_learn(es_ui *u, int key);
ui_result ui_key_adapter(es_ui *u, int key);
void ui_command(es_ui *u, const char *line);
void ui_command_prompt(es_ui *u);
void ui_command_complete(es_ui *u, const char *text, es_buf *candidates);
const char *ui_command_line(int i, char *usage, size_t n); /* help of the i-th command, NULL at the end */
void ui_open_feature(es_ui *u, int feature); /* its dashboard */
void ui_features_for_text(es_ui *u, const char *text);
void ui_features_find(es_ui *u, const char *filter);
void ui_features_map(es_ui *u);
void ui_features_next(es_ui *u);             /* the queue of what is most worth labelling */
void ui_features_contrast(es_ui *u, const char *file_a, const char *file_b); /* which features tell two files of texts apart */
const ui_key *ui_keys_everywhere(void);
void ui_help_draw(es_ui *u, ui_box b);
void ui_sides_draw(es_ui *u, ui_box b);
ui_result ui_sides_key(es_ui *u, const ui_event *e);
bool ui_sides_open(const es_ui *u);
bool ui_learning(const es_ui *u);
void ui_learning_text(const es_ui *u, es_buf *out);
double ui_coefficient(const es_ui *u, int feature, bool *in_basis);

/* names.c */
void ui_names_refresh(es_ui *u);                  /* when the dictionary has come or changed */
void ui_names_changed(es_ui *u, int feature);     /* its label was set */
void ui_names_changed_many(es_ui *u);             /* those of many were: all labels are read again */
const char *ui_label(es_ui *u, int feature);      /* NULL when it has none */
const char *ui_tokens(es_ui *u, int feature);     /* those it fires on most, "" when there is no atlas */
float ui_max(es_ui *u, int feature);
const char *ui_name(es_ui *u, int feature);       /* label, else tokens */
void ui_names_free(es_ui *u);
void ui_token_list(es_ui *u, const int32_t *id, int n, es_buf *out);

/* ---- the terminal (term.c) ---- */

int ui_term_open(es_ui *u, es_error *err);        /* this process's own terminal, with signal handlers */
void ui_term_close(es_ui *u);
void ui_term_suspend(es_ui *u);                   /* hands the terminal back: $EDITOR, Ctrl-Z */
void ui_term_resume(es_ui *u);
void ui_term_resize(es_ui *u);                    /* takes the size the terminal has now */
int ui_term_signal_fd(void);
void ui_term_stop(es_ui *u);                      /* Ctrl-Z: suspend, stop, resume */
/* Tests: a screen of h by w that nobody sees, of terminal type term; then resize and dump. */
int ui_screen_open(es_ui *u, const char *term, int h, int w, es_error *err);
void ui_screen_close(es_ui *u);
void ui_screen_resize(es_ui *u, int h, int w);
void ui_screen_dump(es_ui *u, es_buf *out);       /* rows as UTF-8, blanks at their ends left out */
void ui_screen_styles(es_ui *u, es_buf *out);     /* a letter a cell: . plain b bold d dim r reverse u underlined, 1-6 shaded, c other colour */
void ui_colours(es_ui *u);                        /* styles for what the terminal can show */
void ui_screen_update(es_ui *u);
void ui_screen_erase(es_ui *u);

#endif
