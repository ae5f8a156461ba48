/* Chat: the live model. Two modes, typing and keys, and the box to type in is always there. */
#include "ui_internal.h"

#include "method.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TYPING = 1, KEYS = 2 };

typedef struct block { /* a turn as it is laid out */
    int64_t id;
    ui_layout layout;
    int rows; /* with the lines above and below */
} block;

typedef struct chat {
    ui_line line;
    unsigned mode;
    bool panel, panel_set, choosing;  /* the side panel; digits choose a feature to shade by */
    int64_t selected;                 /* turn, 0: none */
    bool original;                    /* show what the model had said under a correction */
    bool follow; int top, rows, page; /* scrolling, in rows of the whole transcript */
    block *block; int n_block;
} chat;

static chat *state(const es_ui *u)
{
    return u->state[UI_CHAT];
}

static int open_chat(es_ui *u, void **out)
{
    chat *c = calloc(1, sizeof *c);
    if (!c)
        return -1;
    c->mode = TYPING;
    c->follow = true;
    c->line.multi = true;
    c->line.recalled = -1;
    c->line.history = &u->history[UI_HISTORY_SAY];
    *out = c;
    return 0;
}

static void close_chat(es_ui *u, void *s)
{
    (void)u;
    chat *c = s;
    for (int i = 0; i < c->n_block; i++)
        ui_layout_free(&c->block[i].layout);
    free(c->block);
    ui_line_free(&c->line);
    free(c);
}

static unsigned mode(const es_ui *u)
{
    return state(u)->mode;
}

static const es_turn *turn_by_id(const es_ui *u, int64_t id)
{
    for (int i = 0; i < u->v->n_turn; i++)
        if (u->v->turn[i].id == id)
            return &u->v->turn[i];
    return NULL;
}

static const es_turn *last_reply(const es_ui *u)
{
    for (int i = u->v->n_turn - 1; i >= 0; i--)
        if (u->v->turn[i].role == 'a')
            return &u->v->turn[i];
    return NULL;
}

/* The reply that + - e E speak of: the selected one, or the last. */
static const es_turn *target(es_ui *u)
{
    const es_turn *t = state(u)->mode == KEYS && state(u)->selected ? turn_by_id(u, state(u)->selected) : NULL;
    if (!t || t->role != 'a')
        t = last_reply(u);
    if (!t)
        ui_say(u, UI_PLAIN, "there is no reply yet");
    else if (t->streaming) {
        ui_say(u, UI_PLAIN, "the reply is still being written; Ctrl-C stops it");
        t = NULL;
    }
    return t;
}

static void update(es_ui *u)
{
    chat *c = state(u);
    if (c->selected && !turn_by_id(u, c->selected))
        c->selected = 0;
}

/* ---- keys ---- */

static ui_result key_leave_typing(es_ui *u, int key)
{
    (void)key;
    state(u)->mode = KEYS;
    state(u)->choosing = false;
    return UI_REDRAW;
}

static ui_result key_type(es_ui *u, int key)
{
    (void)key;
    chat *c = state(u);
    c->mode = TYPING;
    c->selected = 0;
    c->follow = true;
    c->choosing = false;
    return UI_REDRAW;
}

static ui_result key_escape(es_ui *u, int key)
{
    chat *c = state(u);
    (void)key;
    if (c->choosing)
        c->choosing = false;
    else if (c->selected)
        c->selected = 0, c->follow = true;
    else
        return key_type(u, key);
    return UI_REDRAW;
}

static ui_result key_rate(es_ui *u, int key)
{
    if (state(u)->mode == TYPING && !last_reply(u))
        return UI_IGNORED;
    const es_turn *t = target(u);
    if (!t)
        return UI_REDRAW;
    int sign = key == '+' ? 1 : -1;
    if (t->rating == sign)
        sign = 0;
    es_studio_rate(u->studio, t->id, sign);
    if (sign)
        ui_say(u, sign > 0 ? UI_GOOD : UI_WARN, "rated %c; the model learns from it. %s takes it back", sign > 0 ? '+' : '-', state(u)->mode == TYPING ? ":undo" : "u");
    else
        ui_say(u, UI_PLAIN, "rating taken back");
    return UI_REDRAW;
}

static void save_edit(es_ui *u, int64_t id, const char *text)
{
    const es_turn *t = turn_by_id(u, id);
    const char *before = t ? (t->edited ? t->edited : t->text) : NULL;
    size_t n = t ? (t->edited ? strlen(t->edited) : (size_t)t->n) : 0;
    if (!t)
        ui_say(u, UI_BAD, "that reply is gone; nothing was saved");
    else if (strlen(text) == n && !memcmp(text, before, n))
        ui_say(u, UI_PLAIN, "unchanged");
    else if (!text[strspn(text, " \n\t")])
        ui_say(u, UI_BAD, "an empty correction teaches nothing; - rates a reply down");
    else {
        es_studio_edit(u->studio, id, text);
        ui_say(u, UI_GOOD, "correction saved; the model learns your version. %s takes it back", state(u)->mode == TYPING ? ":undo" : "u");
    }
}

static ui_result key_edit(es_ui *u, int key)
{
    const es_turn *t = target(u);
    if (!t)
        return UI_REDRAW;
    es_buf text = {0};
    es_buf_add(&text, t->edited ? t->edited : t->text, t->edited ? strlen(t->edited) : (size_t)t->n);
    if (key == 'E' && !u->o.editor)
        ui_say(u, UI_PLAIN, "neither VISUAL nor EDITOR is set; here is the editor of the workbench");
    if (key == 'E' && u->o.editor) {
        es_buf out = {0};
        es_error err;
        int64_t id = t->id;
        if (ui_edit_outside(u, text.data ? text.data : "", &out, &err) < 0)
            ui_say(u, UI_BAD, "%s", err.text);
        else
            save_edit(u, id, out.data ? out.data : "");
        es_buf_free(&out);
    } else {
        ui_edit(u, "Your version: Enter saves, Alt-Enter new line, Ctrl-X clears, Esc cancels", text.data ? text.data : "", t->id, save_edit);
    }
    es_buf_free(&text);
    return UI_REDRAW;
}

static ui_result key_edit_typing(es_ui *u, int key)
{
    return state(u)->line.text.len ? UI_IGNORED : key_edit(u, key);
}

static ui_result key_undo(es_ui *u, int key)
{
    (void)key;
    es_studio_undo(u->studio);
    return UI_REDRAW;
}

static ui_result key_shade(es_ui *u, int key)
{
    (void)key;
    if (u->v->n_active == 0)
        ui_say(u, UI_PLAIN, u->v->n_features ? "no features yet: ask something first, or :shade N" : "no dictionary is loaded, so there are no features");
    else
        state(u)->choosing = true;
    return UI_REDRAW;
}

static ui_result key_regenerate(es_ui *u, int key)
{
    (void)key;
    if (last_reply(u))
        es_studio_regenerate(u->studio);
    else
        ui_say(u, UI_PLAIN, "there is no reply yet");
    state(u)->follow = true;
    return UI_REDRAW;
}

static void new_chat(es_ui *u)
{
    es_studio_new_chat(u->studio);
    state(u)->selected = 0;
    state(u)->follow = true;
    state(u)->mode = TYPING;
}

static ui_result key_new(es_ui *u, int key)
{
    (void)key;
    if (u->v->n_turn)
        ui_ask(u, "A new chat? What was learned stays.", new_chat);
    else
        new_chat(u);
    return UI_REDRAW;
}

static ui_result key_panel(es_ui *u, int key)
{
    chat *c = state(u);
    (void)key;
    c->panel = !(c->panel_set ? c->panel : u->w >= 100);
    c->panel_set = true;
    return UI_REDRAW;
}

static ui_result key_original(es_ui *u, int key)
{
    (void)key;
    state(u)->original = !state(u)->original;
    return UI_REDRAW;
}

static ui_result key_select(es_ui *u, int key)
{
    chat *c = state(u);
    int n = u->v->n_turn, at = n;
    for (int i = 0; i < n; i++)
        if (u->v->turn[i].id == c->selected)
            at = i;
    at += key == 'j' || key == UI_DOWN ? 1 : -1;
    if (n == 0 || at < 0)
        return UI_REDRAW;
    c->selected = at < n ? u->v->turn[at].id : 0;
    c->follow = at >= n;
    if (at >= n)
        return UI_REDRAW;
    int row = 0; /* bring it into sight */
    for (int i = 0; i < at && i < c->n_block; i++)
        row += c->block[i].rows;
    int rows = at < c->n_block ? c->block[at].rows : 1;
    if (row < c->top || rows > c->page)
        c->top = row;
    else if (row + rows > c->top + c->page)
        c->top = row + rows - c->page;
    return UI_REDRAW;
}

static ui_result key_scroll(es_ui *u, int key)
{
    chat *c = state(u);
    int page = c->page > 2 ? c->page - 2 : 1, most = c->rows > c->page ? c->rows - c->page : 0;
    switch (key) {
    case UI_PAGE_UP: c->top -= page; break;
    case UI_PAGE_DOWN: c->top += page; break;
    case UI_WHEEL_UP: c->top -= 3; break;
    case UI_WHEEL_DOWN: c->top += 3; break;
    case UI_HOME: c->top = 0; break;
    default: c->top = most; break;
    }
    c->top = c->top < 0 ? 0 : c->top;
    c->follow = c->top >= most;
    c->top = c->follow ? most : c->top;
    return UI_REDRAW;
}

static const ui_key keys[] = {
    {UI_ENTER, TYPING, "send; Alt-Enter makes a new line", key_leave_typing},
    {UI_ESC, TYPING, "to the keys below (and i or Enter back to typing)", key_leave_typing},
    {'+', TYPING | KEYS, "rate the reply; typing: when the line is empty. Again: take it back", key_rate},
    {'-', TYPING | KEYS, NULL, key_rate},
    {UI_CONTROL('e'), TYPING, "correct the last reply (when the line is empty)", key_edit_typing},
    {UI_PAGE_UP, TYPING | KEYS, "scroll", key_scroll},
    {UI_PAGE_DOWN, TYPING | KEYS, NULL, key_scroll},
    {UI_WHEEL_UP, TYPING | KEYS, NULL, key_scroll},
    {UI_WHEEL_DOWN, TYPING | KEYS, NULL, key_scroll},
    {'i', KEYS, "type", key_type},
    {UI_ENTER, KEYS, NULL, key_type},
    {'e', KEYS, "correct the reply here: the model learns your version", key_edit},
    {'E', KEYS, "correct it in $EDITOR", key_edit},
    {'k', KEYS, "choose another turn to rate or correct", key_select},
    {'j', KEYS, NULL, key_select},
    {UI_UP, KEYS, NULL, key_select},
    {UI_DOWN, KEYS, NULL, key_select},
    {'u', KEYS, "take back the newest rating or correction", key_undo},
    {'c', KEYS, "ask base and adapted the same, side by side", ui_key_compare},
    {'s', KEYS, "colour the replies by a feature of the panel", key_shade},
    {'f', KEYS, "show or hide the panel of active features", key_panel},
    {'o', KEYS, "show what the model had said under a correction", key_original},
    {'r', KEYS, "drop the last reply and answer again", key_regenerate},
    {'n', KEYS, "new chat", key_new},
    {'a', KEYS, "answer with or without the adapter", ui_key_adapter},
    {'p', KEYS, "pause or resume learning", ui_key_pause},
    {'L', KEYS, "learn now", ui_key_learn},
    {UI_HOME, KEYS, "start, end of the chat", key_scroll},
    {UI_END, KEYS, NULL, key_scroll},
    {'G', KEYS, NULL, key_scroll},
    {UI_ESC, KEYS, "back, step by step, to typing", key_escape},
    {0},
};

static void say(es_ui *u)
{
    chat *c = state(u);
    char *text = strdup(ui_line_text(&c->line));
    if (!text)
        return;
    size_t blank = strspn(text, " \n\t");
    if (!text[blank]) {
        free(text);
        return;
    }
    if (text[0] == '/' && text[1] != '/' && !strchr(text, '\n')) {
        ui_history_add(c->line.history, text);
        ui_line_set(&c->line, "");
        ui_command(u, text + 1);
    } else if (u->v->generating) {
        ui_say(u, UI_PLAIN, "the model is still answering; Ctrl-C stops it, your text stays");
    } else {
        ui_history_add(c->line.history, text);
        ui_line_set(&c->line, "");
        c->follow = true;
        u->message[0] = 0; /* the hint now says how to stop it */
        es_studio_say(u->studio, text);
    }
    free(text);
}

/* A slash command being typed completes as one behind a colon does. */
static void complete_slash(es_ui *u)
{
    chat *c = state(u);
    es_buf all = {0};
    ui_command_complete(u, ui_line_text(&c->line) + 1, &all);
    if (all.len) {
        size_t common = strlen(all.data), n = 0;
        for (size_t at = 0; at < all.len; at += strlen(all.data + at) + 1, n++)
            for (size_t k = 0; k < common; k++)
                if (all.data[at + k] != all.data[k])
                    common = k;
        es_buf line = {0};
        es_buf_printf(&line, "/%.*s", (int)common, all.data);
        if (line.data && line.len >= c->line.text.len)
            ui_line_set(&c->line, line.data);
        if (n > 1) {
            es_buf list = {0};
            for (size_t at = 0; at < all.len; at += strlen(all.data + at) + 1)
                es_buf_printf(&list, "/%s ", all.data + at);
            if (list.data)
                ui_say(u, UI_PLAIN, "%.300s", list.data);
            es_buf_free(&list);
        }
        es_buf_free(&line);
    }
    es_buf_free(&all);
}

static ui_result typed(es_ui *u, const ui_event *e)
{
    chat *c = state(u);
    if (c->choosing && e->key >= '0' && e->key <= '9') {
        int i = e->key - '1';
        c->choosing = false;
        if (i < 0)
            es_studio_shade(u->studio, -1);
        else if (i < u->v->n_active) {
            int f = u->v->active[i].feature;
            es_studio_shade(u->studio, f == u->v->shade_feature ? -1 : f);
        }
        return UI_REDRAW;
    }
    if (c->mode != TYPING) {
        if (e->key != UI_PASTE)
            return UI_IGNORED;
        key_type(u, 0); /* what is pasted is meant for the box */
    }
    bool empty = c->line.text.len == 0;
    if (e->key == UI_TAB && !empty && ui_line_text(&c->line)[0] == '/') {
        complete_slash(u);
        return UI_REDRAW;
    }
    if (empty && (e->key == ':' || e->key == '?' || ((e->key == '+' || e->key == '-') && last_reply(u)) || e->key == UI_CONTROL('e')))
        return UI_IGNORED;
    if (e->key == UI_PAGE_UP || e->key == UI_PAGE_DOWN)
        return UI_IGNORED;
    ui_line_result r = ui_line_key(&c->line, e);
    if (r == UI_LINE_ENTER)
        say(u);
    if (e->key == UI_PASTE && r == UI_LINE_MOVED && e->n)
        ui_say(u, UI_BAD, "not pasted: more than the %d MB a message may have", UI_LINE_MAX >> 20);
    return r == UI_LINE_IGNORED ? UI_IGNORED : UI_REDRAW;
}

static void hint(const es_ui *u, es_buf *out)
{
    const chat *c = state(u);
    if (c->choosing)
        es_buf_str(out, "colour by: 1-9 of the panel   0 off   :shade N any other   Esc");
    else if (c->mode == TYPING && u->v->generating)
        es_buf_str(out, "Ctrl-C stops");
    else if (c->mode == TYPING && c->line.text.len)
        es_buf_str(out, "Enter sends   Alt-Enter new line   Esc keys");
    else if (c->mode == TYPING && last_reply(u))
        es_buf_str(out, "+ - rate the reply   Ctrl-E correct it   : command   Esc more keys   ? help");
    else if (c->mode == TYPING)
        es_buf_str(out, "Enter sends   : command   Tab next view   ? help");
    else
        es_buf_str(out, "i type  + - rate  e edit  u undo  c compare  s shade  k j turn  ? help");
}

/* ---- drawing ---- */

static bool panel_open(const es_ui *u)
{
    const chat *c = state(u);
    return c->choosing || (u->w >= 60 && (c->panel_set ? c->panel : u->w >= 100));
}

static void draw_panel(es_ui *u, ui_box b)
{
    const es_view *v = u->v;
    const chat *c = state(u);
    ui_wall(u, b, 0);
    b = ui_inside(b, 0, 0, 0, 2);
    ui_put_cut(u, b, 0, 0, b.w - 5, UI_BOLD, v->n_active || !v->n_turn ? "Active in the last reply" : "Active features");
    ui_put_right(u, ui_inside(b, 0, 1, 0, 0), 0, UI_DIM, "coef");
    if (v->n_active == 0) {
        const char *why = v->n_features ? "after the first reply: what the model had in mind" : "no dictionary: chat only";
        ui_put_cut(u, b, 1, 0, b.w, UI_DIM, why);
        return;
    }
    float most = v->active[0].activation;
    for (int i = 0; i < v->n_active && i + 1 < b.h; i++) {
        const es_active *a = &v->active[i];
        bool in_basis, shaded = a->feature == v->shade_feature;
        double coef = ui_coefficient(u, a->feature, &in_basis);
        int y = i + 1, x = 0;
        if (c->choosing)
            x = i < 9 ? ui_printf(u, b, y, 0, UI_KEY, "%d ", i + 1) : 2;
        ui_bar(u, b, y, x, 4, shaded ? UI_WARN : UI_ACCENT, most > 0 ? (double)(a->activation / most) : 0);
        x = ui_printf(u, b, y, x + 5, UI_DIM, "%-5d ", a->feature);
        int right = b.w - 7;
        ui_put_cut(u, b, y, x, right - x, shaded ? UI_BOLD : ui_label(u, a->feature) ? UI_PLAIN : UI_DIM, ui_name(u, a->feature));
        if (in_basis)
            ui_printf(u, b, y, right + 1, coef > 0 ? UI_GOOD : coef < 0 ? UI_WARN : UI_DIM, "%+.2f", coef);
    }
}

static void draw_welcome(es_ui *u, ui_box b)
{
    const es_view *v = u->v;
    static const char *const lines[][2] = {
        {"Ask", "something below and press Enter. The reply streams; Ctrl-C stops it."},
        {"Rate", "it with + or -, or correct it with Ctrl-E: the model learns from that,"},
        {"", "in the background, and only along the features of its basis."},
        {"Drift", "(F4) shows what moved, and what you said that moved it; R rolls back."},
        {"?", "lists the keys of where you are; Tab: the next view; :quit leaves."},
    };
    int n = (int)(sizeof lines / sizeof *lines), y = b.h > n + 6 ? (b.h - n - 4) / 2 : 0, x = b.w >= 78 ? (b.w - 76) / 2 : 1;
    if (v->failed) {
        ui_put(u, b, y, x, UI_BAD, "The model could not be opened:");
        ui_layout l = {0};
        ui_layout_make(&l, u->o.unicode, v->status, strlen(v->status), b.w - x - 1, false);
        for (int i = 0; i < l.n; i++)
            ui_draw_row(u, b, y + 1 + i, x, UI_PLAIN, &l, i, v->status, NULL, NULL, 0, 0);
        ui_layout_free(&l);
        return;
    }
    if (v->loading)
        ui_put_cut(u, b, y, x, b.w - x, UI_ACCENT, *v->status ? v->status : "opening the model");
    else
        ui_put_cut(u, b, y, x, b.w - x, UI_BOLD, v->model);
    y += 2;
    for (int i = 0; i < n; i++) {
        ui_put(u, b, y + i, x, UI_KEY, lines[i][0]);
        ui_put_cut(u, b, y + i, x + 6, b.w - x - 6, UI_PLAIN, lines[i][1]);
    }
    if (v->n_features > 0) {
        char text[200];
        snprintf(text, sizeof text, "%d features after layer %d; basis %.40s with %d of them", v->n_features, v->layer, *v->basis_name ? v->basis_name : "(none)", v->n_basis);
        ui_put_cut(u, b, y + n + 1, x, b.w - x, UI_DIM, text);
    } else if (!v->loading) {
        ui_put_cut(u, b, y + n + 1, x, b.w - x, UI_DIM, "no dictionary: chat only, nothing is learned");
    }
}

/* The words about a reply that stand under it; "" when there are none. */
static void note(es_ui *u, const es_turn *t, es_buf *out)
{
    const char *gap = ui_sign(u, " · ", ", ");
    if (t->role != 'a')
        return;
    if (t->rating)
        es_buf_printf(out, "%s%s", out->len ? gap : "", t->rating > 0 ? "rated +" : "rated -");
    if (t->edited)
        es_buf_printf(out, "%s%s", out->len ? gap : "", state(u)->original ? "what the model said, before your correction" : "your correction");
    if (t->stopped && !t->streaming)
        es_buf_printf(out, "%sstopped", out->len ? gap : "");
    if (t->snapshot <= ES_BY_METHOD && !t->streaming)
        es_buf_printf(out, "%sby %s", out->len ? gap : "", es_method_name((es_method_kind)(ES_BY_METHOD - t->snapshot)));
    else if (t->snapshot && !t->streaming)
        es_buf_printf(out, "%sby adapter #%lld", out->len ? gap : "", (long long)t->snapshot);
}

static const char *turn_text(const es_ui *u, const es_turn *t, size_t *n, bool *own)
{
    *own = !(t->edited && !state(u)->original);
    *n = *own ? (size_t)t->n : strlen(t->edited);
    return *own ? (t->text ? t->text : "") : t->edited;
}

static bool blocks(es_ui *u, int width)
{
    chat *c = state(u);
    int n = u->v->n_turn;
    if (n > c->n_block) {
        block *b = realloc(c->block, (size_t)n * sizeof *b);
        if (!b)
            return false;
        memset(b + c->n_block, 0, (size_t)(n - c->n_block) * sizeof *b);
        c->block = b;
        c->n_block = n;
    }
    for (int i = n; i < c->n_block; i++)
        ui_layout_free(&c->block[i].layout);
    c->n_block = n;
    c->rows = 0;
    for (int i = 0; i < n; i++) {
        const es_turn *t = &u->v->turn[i];
        block *b = &c->block[i];
        size_t len;
        bool own;
        es_buf words = {0};
        const char *text = turn_text(u, t, &len, &own);
        ui_layout_make(&b->layout, u->o.unicode, text, len, width, t->role == 'a');
        note(u, t, &words);
        b->id = t->id;
        b->rows = b->layout.n + (words.len > 0) + 1;
        c->rows += b->rows;
        es_buf_free(&words);
    }
    return true;
}

static void draw_turns(es_ui *u, ui_box b)
{
    chat *c = state(u);
    int width = b.w - 4 > 100 ? 100 : b.w - 4; /* longer lines read badly */
    if (!blocks(u, width))
        return;
    c->page = b.h;
    int most = c->rows > b.h ? c->rows - b.h : 0;
    if (c->follow || c->top > most)
        c->top = most;
    int y = c->rows < b.h ? 0 : -c->top;
    for (int i = 0; i < u->v->n_turn && y < b.h; i++) {
        const es_turn *t = &u->v->turn[i];
        block *k = &c->block[i];
        if (y + k->rows <= 0) {
            y += k->rows;
            continue;
        }
        size_t len;
        bool own, chosen = c->mode == KEYS && t->id == c->selected;
        const char *text = turn_text(u, t, &len, &own);
        const float *shade = own && t->role == 'a' && u->v->shade_feature >= 0 ? t->shade : NULL;
        ui_style style = t->role == 'u' ? UI_BOLD : t->role == 's' ? UI_DIM : UI_PLAIN;
        if (chosen)
            for (int j = 0; j < k->rows - 1; j++)
                ui_put(u, b, y + j, 0, UI_ACCENT, ui_sign(u, "▌", "#"));
        if (t->role == 'u')
            ui_put(u, b, y, 1, UI_KEY, ui_sign(u, "›", ">"));
        for (int row = y < 0 ? -y : 0; row < k->layout.n && y + row < b.h; row++)
            ui_draw_row(u, b, y + row, 3, style, &k->layout, row, text, shade ? t->token_end : NULL, shade, t->n_token, u->v->shade_max);
        if (t->streaming) {
            const ui_row *last = &k->layout.row[k->layout.n - 1];
            int x = 3 + last->indent + ui_width(u->o.unicode, text + last->start, (size_t)(last->end - last->start));
            ui_put(u, b, y + k->layout.n - 1, x < b.w ? x : b.w - 1, UI_ACCENT, ui_sign(u, "▍", "_"));
        }
        es_buf words = {0};
        note(u, t, &words);
        if (words.len)
            ui_put(u, b, y + k->layout.n, 3, t->rating > 0 ? UI_GOOD : t->rating < 0 ? UI_WARN : UI_DIM, words.data);
        es_buf_free(&words);
        y += k->rows;
    }
    ui_scrollbar(u, b, c->top, b.h, c->rows);
}

static void draw(es_ui *u, ui_box b)
{
    chat *c = state(u);
    int rows = ui_line_rows(&c->line, u->o.unicode, b.w - 5);
    int most = b.h / 3 > 1 ? b.h / 3 : 1;
    rows = rows < 1 ? 1 : rows > most ? most : rows;
    ui_box top = b, box = {b.y + b.h - rows, b.x, rows, b.w};
    top.h = b.h - rows - 1;
    if (panel_open(u)) {
        int w = b.w >= 160 ? 60 : b.w >= 120 ? 44 : b.w >= 100 ? 38 : b.w / 2;
        draw_panel(u, (ui_box){top.y, top.x + top.w - w, top.h, w});
        top.w -= w;
    }
    if (u->v->n_turn == 0)
        draw_welcome(u, top);
    else
        draw_turns(u, top);
    char title[160] = "";
    if (u->v->shade_feature >= 0)
        snprintf(title, sizeof title, "coloured by %d %.100s", u->v->shade_feature, ui_name(u, u->v->shade_feature));
    ui_rule(u, (ui_box){box.y - 1, b.x, 1, b.w}, 0, title);
    if (!c->follow && c->rows > c->page)
        ui_put_right(u, (ui_box){box.y - 1, b.x, 1, b.w - 2}, 0, UI_ACCENT, " more below: PgDn ");
    ui_put(u, box, 0, 1, c->mode == TYPING ? UI_KEY : UI_DIM, ui_sign(u, "›", ">"));
    if (c->line.text.len == 0 && c->mode == KEYS)
        ui_put(u, box, 0, 3, UI_DIM, "i to type");
    bool focused = c->mode == TYPING && !u->editor.open && !u->prompt.open && !u->ask.open && !u->help.open;
    ui_line_draw(u, ui_inside(box, 0, 1, 0, 3), &c->line, focused);
}

const ui_view ui_chat = {
    .name = "Chat", .letter = 'c', .keys = keys,
    .help = {"Typing and keys are two modes: Esc leaves the line, i or Enter goes back to it.",
             "In an empty line + - rate the last reply and : ? work too; begin with a blank to type them.",
             "A line that begins with / is a command, as after a colon."},
    .open = open_chat, .close = close_chat, .update = update, .typed = typed, .mode = mode, .hint = hint, .draw = draw,
};
