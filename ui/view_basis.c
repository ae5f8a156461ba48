/* Basis: the directions along which the model may learn. The list in use, what is to be said about it, suggestions, saved versions. */
#include "ui_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MINE = 1, SUGGESTED = 2, SAVED = 4 };

typedef struct basis {
    unsigned mode;
    ui_list list, suggested, saved;
    es_basis_line *line; int n_line;
    int pending, had_suggested;
} basis;

static basis *state(const es_ui *u)
{
    return u->state[UI_BASIS];
}

static int open_basis(es_ui *u, void **out)
{
    (void)u;
    basis *b = calloc(1, sizeof *b);
    if (b)
        b->mode = MINE;
    *out = b;
    return b ? 0 : -1;
}

static void close_basis(es_ui *u, void *s)
{
    (void)u;
    basis *b = s;
    free(b->line);
    free(b);
}

static unsigned mode(const es_ui *u)
{
    return state(u)->mode;
}

static void update(es_ui *u)
{
    basis *b = state(u);
    int n = u->v->n_suggested;
    if (n > 0 && b->had_suggested == 0) {
        b->mode = SUGGESTED;
        b->suggested.at = b->suggested.top = 0;
        ui_say(u, UI_GOOD, "%d features suggested from the experiences; t takes them", n);
    }
    if (n == 0 && b->mode == SUGGESTED)
        b->mode = MINE;
    b->had_suggested = n;
}

static int selected(const es_ui *u)
{
    const basis *b = state(u);
    if (b->mode == SUGGESTED)
        return b->suggested.at < u->v->n_suggested ? u->v->suggested[b->suggested.at] : -1;
    return b->mode == MINE && b->list.at < u->v->n_basis ? u->v->basis_feature[b->list.at] : -1;
}

/* ---- keys ---- */

static ui_result key_move(es_ui *u, int key)
{
    basis *b = state(u);
    ui_list_key(b->mode == SUGGESTED ? &b->suggested : b->mode == SAVED ? &b->saved : &b->list, key);
    return UI_REDRAW;
}

static ui_result key_open(es_ui *u, int key)
{
    (void)key;
    if (selected(u) >= 0)
        ui_open_feature(u, selected(u));
    return UI_REDRAW;
}

static ui_result key_add_suggested(es_ui *u, int key)
{
    (void)key;
    if (selected(u) >= 0) {
        es_studio_basis_add(u->studio, selected(u), 1, -1);
        ui_list_key(&state(u)->suggested, 'j');
    }
    return UI_REDRAW;
}

static void remove_now(es_ui *u)
{
    es_studio_basis_remove(u->studio, state(u)->pending);
}

static ui_result key_remove(es_ui *u, int key)
{
    char text[120];
    (void)key;
    int f = selected(u);
    if (f < 0)
        return UI_REDRAW;
    state(u)->pending = f;
    const char *label = ui_label(u, f);
    snprintf(text, sizeof text, "Take %d %.60s out of the basis (a new version)?", f, label ? label : "");
    ui_ask(u, text, remove_now);
    return UI_REDRAW;
}

static void bounds_done(es_ui *u, const char *text)
{
    float lo, hi;
    if (!text)
        return;
    if (sscanf(text, "%f %f", &lo, &hi) != 2 || !(lo <= hi) || !isfinite(lo) || !isfinite(hi))
        ui_say(u, UI_BAD, "bounds are two numbers, the lower one first; 0 on one side gives it a sign");
    else
        es_studio_basis_add(u->studio, state(u)->pending, lo, hi);
}

static ui_result key_bounds(es_ui *u, int key)
{
    (void)key;
    int at = state(u)->list.at;
    if (at >= u->v->n_basis)
        return UI_REDRAW;
    char label[60], value[60];
    state(u)->pending = u->v->basis_feature[at];
    snprintf(label, sizeof label, "Bounds of %d (lower upper): ", state(u)->pending);
    snprintf(value, sizeof value, "%.3g %.3g", (double)u->v->basis_lo[at], (double)u->v->basis_hi[at]);
    ui_prompt(u, label, value, -1, bounds_done, NULL, NULL);
    return UI_REDRAW;
}

/* A one-sided bound cannot be pushed the wrong way: + keeps only more of the feature, - only less, = both. */
static ui_result key_sign(es_ui *u, int key)
{
    int at = state(u)->list.at;
    if (at >= u->v->n_basis)
        return UI_REDRAW;
    float lo = u->v->basis_lo[at], hi = u->v->basis_hi[at], most = fabsf(lo) > fabsf(hi) ? fabsf(lo) : fabsf(hi);
    es_studio_basis_add(u->studio, u->v->basis_feature[at], key == '+' ? 0 : -most, key == '-' ? 0 : most);
    return UI_REDRAW;
}

static void add_done(es_ui *u, const char *text)
{
    char line[80];
    if (text && *text) {
        snprintf(line, sizeof line, "add %.60s", text);
        ui_command(u, line);
    }
}

static ui_result key_add(es_ui *u, int key)
{
    (void)key;
    ui_prompt(u, "Add feature number: ", NULL, -1, add_done, NULL, NULL);
    return UI_REDRAW;
}

static void suggest_done(es_ui *u, const char *text)
{
    char line[80];
    if (text) {
        snprintf(line, sizeof line, "suggest %.20s", text);
        ui_command(u, line);
    }
}

static ui_result key_suggest(es_ui *u, int key)
{
    (void)key;
    if (u->v->n_experience == 0)
        ui_say(u, UI_PLAIN, "suggestions come from experiences: rate or correct a reply first");
    else
        ui_prompt(u, "How many features shall the experiences' gradient suggest: ", "64", -1, suggest_done, NULL, NULL);
    return UI_REDRAW;
}

static void take_done(es_ui *u, const char *text)
{
    int n = text ? atoi(text) : 0;
    if (text && (n < 1 || n > u->v->n_suggested))
        ui_say(u, UI_BAD, "a number from 1 to %d", u->v->n_suggested);
    else if (text) {
        es_studio_basis_take_suggested(u->studio, n);
        state(u)->mode = MINE;
    }
}

static ui_result key_take(es_ui *u, int key)
{
    char value[16];
    (void)key;
    snprintf(value, sizeof value, "%d", u->v->n_suggested);
    ui_prompt(u, "Take the first how many into the basis: ", value, -1, take_done, NULL, NULL);
    return UI_REDRAW;
}

static void new_done(es_ui *u, const char *text)
{
    char line[100];
    if (text && *text) {
        snprintf(line, sizeof line, "new-basis %.80s", text);
        ui_command(u, line);
    }
}

static ui_result key_new(es_ui *u, int key)
{
    (void)key;
    ui_prompt(u, "Name of the new basis: ", NULL, -1, new_done, NULL, NULL);
    return UI_REDRAW;
}

static ui_result key_saved(es_ui *u, int key)
{
    basis *b = state(u);
    es_error err;
    (void)key;
    free(b->line);
    b->line = NULL;
    b->n_line = 0;
    if (es_workspace_basis_list(es_studio_workspace(u->studio), u->names.n ? u->names.hash : NULL, &b->line, &b->n_line, &err) < 0)
        ui_say(u, UI_BAD, "%s", err.text);
    else {
        b->mode = SAVED;
        b->saved.at = 0;
    }
    return UI_REDRAW;
}

static ui_result key_use(es_ui *u, int key)
{
    basis *b = state(u);
    (void)key;
    if (b->saved.at < b->n_line) {
        const es_basis_line *l = &b->line[b->saved.at];
        es_studio_basis_use(u->studio, l->name, l->version);
        b->mode = MINE;
    }
    return UI_REDRAW;
}

static ui_result key_back(es_ui *u, int key)
{
    (void)key;
    state(u)->mode = MINE;
    return UI_REDRAW;
}

static ui_result key_to_suggested(es_ui *u, int key)
{
    (void)key;
    if (u->v->n_suggested)
        state(u)->mode = state(u)->mode == SUGGESTED ? MINE : SUGGESTED;
    else
        ui_say(u, UI_PLAIN, "no suggestions yet; s asks for them");
    return UI_REDRAW;
}

static ui_result key_steer(es_ui *u, int key)
{
    (void)key;
    if (selected(u) >= 0)
        ui_steer_prompt(u, selected(u));
    return UI_REDRAW;
}

static const ui_key keys[] = {
    UI_LIST_KEYS(key_move),
    {UI_ENTER, MINE | SUGGESTED, "open the feature's dashboard", key_open},
    {UI_RIGHT, MINE | SUGGESTED, NULL, key_open},
    {'a', MINE, "add a feature by its number (b in Features adds too)", key_add},
    {'x', MINE, "take out", key_remove},
    {UI_DELETE, MINE, NULL, key_remove},
    {'b', MINE, "bounds of its coefficient", key_bounds},
    {'+', MINE, "only more of it, only less of it, both", key_sign},
    {'-', MINE, NULL, key_sign},
    {'=', MINE, NULL, key_sign},
    {'s', 0, "suggest: what the experiences' gradient asks for", key_suggest},
    {'w', MINE | SUGGESTED, "to the suggestions and back", key_to_suggested},
    {'t', SUGGESTED, "take the first so many", key_take},
    {'b', SUGGESTED, "take this one", key_add_suggested},
    {'n', 0, "new basis", key_new},
    {'v', 0, "saved bases and their versions", key_saved},
    {UI_ENTER, SAVED, "use this one", key_use},
    {'S', MINE | SUGGESTED, "steer and compare", key_steer},
    {UI_ESC, 0, "back to the basis in use", key_back},
    {UI_LEFT, SUGGESTED | SAVED, NULL, key_back},
    {0},
};

static void hint(const es_ui *u, es_buf *out)
{
    switch (state(u)->mode) {
    case SUGGESTED: es_buf_str(out, "t take the first so many   b take this   Enter dashboard   Esc basis   ? help"); break;
    case SAVED: es_buf_str(out, "Enter uses it   Esc back   ? help"); break;
    default: es_buf_str(out, "a add  x take out  b bounds  + - sign  s suggest  v versions  n new  ? help");
    }
}

/* ---- drawing ---- */

static void draw_report(es_ui *u, ui_box b)
{
    const es_view *v = u->v;
    const es_basis_report *r = &v->report;
    if (!v->report_ready) {
        ui_put(u, b, 0, 0, UI_DIM, v->n_basis ? "being measured" : "");
        return;
    }
    int x = ui_put(u, b, 0, 0, UI_DIM, "condition ");
    x = ui_printf(u, b, 0, x, r->condition > 30 ? UI_WARN : UI_PLAIN, "%.3g", r->condition);
    x = ui_put(u, b, 0, x, UI_DIM, "   effective rank ");
    x = ui_printf(u, b, 0, x, UI_PLAIN, "%.3g of %d", r->effective_rank, v->n_basis);
    if (v->n_basis > 1) {
        x = ui_put(u, b, 0, x, UI_DIM, "   overlap ");
        int fa = r->overlap_a, fb = r->overlap_b; /* positions or features: positions when they fit */
        if (fa >= 0 && fa < v->n_basis && fb >= 0 && fb < v->n_basis)
            fa = v->basis_feature[fa], fb = v->basis_feature[fb];
        x = ui_printf(u, b, 0, x, r->max_overlap > .7 ? UI_WARN : UI_PLAIN, "%.2f (%d, %d)", r->max_overlap, fa, fb);
    }
    if (isfinite(r->energy)) {
        int w = b.w >= 100 ? 40 : 16;
        double most = r->energy > r->random_max ? r->energy : r->random_max;
        most = most > 0 ? most : 1;
        ui_put(u, b, 1, 0, UI_DIM, "holds of the experiences' gradient");
        ui_bar(u, b, 1, 35, w, UI_ACCENT, r->energy / most);
        ui_printf(u, b, 1, 36 + w, UI_BOLD, "%.1f%%", 100 * r->energy);
        ui_put(u, b, 2, 0, UI_DIM, "20 random bases of this size hold");
        ui_bar(u, b, 2, 35, w, UI_DIM, r->random_mean / most);
        ui_printf(u, b, 2, 36 + w, UI_PLAIN, "%.1f%% (%.1f to %.1f)", 100 * r->random_mean, 100 * r->random_min, 100 * r->random_max);
    } else {
        ui_put_cut(u, b, 1, 0, b.w, UI_DIM, "with experiences: the share of their gradient it holds, beside random bases");
    }
}

static void draw_mine(es_ui *u, ui_box b)
{
    basis *s = state(u);
    const es_view *v = u->v;
    if (v->n_basis == 0) {
        static const char *const lines[] = {
            "A basis is the short list of features along which the model may learn.",
            "",
            "b   in Features (F2) adds the feature there; l labels it",
            "a   adds one here by its number",
            "s   suggests some, once you have rated or corrected replies",
            "v   lists saved bases: the starter basis is one",
        };
        for (int i = 0; i < 6; i++)
            ui_put_cut(u, b, 1 + i, 2, b.w - 3, i ? UI_PLAIN : UI_BOLD, lines[i]);
        return;
    }
    int head = 0, text = 8, right = b.w - 46;
    ui_put(u, b, head, 1, UI_DIM, "number");
    ui_put_cut(u, b, head, text, right - text, UI_DIM, right - text < 32 ? "label, or its tokens" : "label, or the tokens it fires on");
    ui_put(u, b, head, right + 1, UI_DIM, "  bounds           coefficient           s/n");
    ui_box in = ui_inside(b, 1, 0, 0, 0);
    ui_list_fit(&s->list, v->n_basis, in.h);
    for (int y = 0; y < in.h && s->list.top + y < v->n_basis; y++) {
        int i = s->list.top + y, f = v->basis_feature[i];
        ui_style st = i == s->list.at ? UI_SELECTED : UI_PLAIN, dim = st == UI_PLAIN ? UI_DIM : st;
        if (st == UI_SELECTED)
            ui_row_fill(u, ui_inside(in, 0, 1, 0, 0), y, st);
        const char *label = ui_label(u, f);
        float c = v->coefficient ? v->coefficient[i] : 0, lo = v->basis_lo[i], hi = v->basis_hi[i];
        float most = fabsf(lo) > fabsf(hi) ? fabsf(lo) : fabsf(hi);
        ui_printf(u, in, y, 1, st, "%6d", f);
        ui_put_cut(u, in, y, text, right - text, label ? st : dim, label ? label : ui_tokens(u, f));
        ui_printf(u, in, y, right + 1, dim, "%7.2f %+7.2f", (double)lo, (double)hi);
        ui_printf(u, in, y, right + 18, st, "%+8.3f", (double)c);
        ui_bar_signed(u, in, y, right + 27, 11, most > 0 ? (double)(c / most) : 0);
        if (v->snr && isfinite(v->snr[i]))
            ui_printf(u, in, y, right + 39, dim, "%5.1f", (double)v->snr[i]);
    }
    ui_scrollbar(u, in, s->list.top, in.h, v->n_basis);
}

static void draw_suggested(es_ui *u, ui_box b)
{
    basis *s = state(u);
    const es_view *v = u->v;
    float most = 0;
    for (int i = 0; i < v->n_suggested; i++)
        most = fabsf(v->suggested_score[i]) > most ? fabsf(v->suggested_score[i]) : most;
    ui_put(u, b, 0, 1, UI_DIM, "number  asked for");
    ui_put(u, b, 0, 29, UI_DIM, "label, or the tokens it fires on");
    ui_box in = ui_inside(b, 1, 0, 0, 0);
    ui_list_fit(&s->suggested, v->n_suggested, in.h);
    for (int y = 0; y < in.h && s->suggested.top + y < v->n_suggested; y++) {
        int i = s->suggested.top + y, f = v->suggested[i];
        ui_style st = i == s->suggested.at ? UI_SELECTED : UI_PLAIN;
        if (st == UI_SELECTED)
            ui_row_fill(u, ui_inside(in, 0, 1, 0, 0), y, st);
        bool in_basis;
        ui_coefficient(u, f, &in_basis);
        ui_put(u, in, y, 0, st == UI_PLAIN ? UI_ACCENT : st, in_basis ? ui_sign(u, "◆", "#") : " ");
        ui_printf(u, in, y, 1, st, "%6d %s", f, v->suggested_score[i] > 0 ? "more" : "less");
        ui_bar_signed(u, in, y, 14, 13, most > 0 ? (double)(v->suggested_score[i] / most) : 0);
        const char *label = ui_label(u, f);
        ui_put_cut(u, in, y, 29, in.w - 31, label || st == UI_SELECTED ? st : UI_DIM, ui_name(u, f));
    }
    ui_scrollbar(u, in, s->suggested.top, in.h, v->n_suggested);
}

static void draw_saved(es_ui *u, ui_box b)
{
    basis *s = state(u);
    ui_put(u, b, 0, 1, UI_DIM, "basis                     version  features  saved");
    ui_box in = ui_inside(b, 1, 0, 0, 0);
    ui_list_fit(&s->saved, s->n_line, in.h);
    if (s->n_line == 0)
        ui_put(u, in, 1, 2, UI_DIM, "none is saved yet; n makes one");
    for (int y = 0; y < in.h && s->saved.top + y < s->n_line; y++) {
        const es_basis_line *l = &s->line[s->saved.top + y];
        ui_style st = s->saved.top + y == s->saved.at ? UI_SELECTED : UI_PLAIN;
        if (st == UI_SELECTED)
            ui_row_fill(u, ui_inside(in, 0, 1, 0, 0), y, st);
        bool used = !strcmp(l->name, u->v->basis_name) && l->version == u->v->basis_version;
        ui_put_cut(u, in, y, 1, 24, st, l->name);
        ui_printf(u, in, y, 27, st, "%7d  %8d  %.16s%s", l->version, l->n, l->time, used ? "  in use" : "");
    }
    ui_scrollbar(u, in, s->saved.top, in.h, s->n_line);
}

static void draw(es_ui *u, ui_box b)
{
    const es_view *v = u->v;
    basis *s = state(u);
    if (v->n_features == 0) {
        ui_put(u, b, 2, 2, UI_DIM, v->loading ? "The dictionary is being opened." : "No dictionary is loaded, so there is nothing to make a basis of.");
        return;
    }
    char title[200];
    if (s->mode == SUGGESTED)
        snprintf(title, sizeof title, "%d suggested by the gradient of %d experiences", v->n_suggested, v->n_experience);
    else if (s->mode == SAVED)
        snprintf(title, sizeof title, "Saved bases of this dictionary");
    else if (*v->basis_name)
        snprintf(title, sizeof title, "%.60s, version %d: %d feature%s", v->basis_name, v->basis_version, v->n_basis, v->n_basis == 1 ? "" : "s");
    else
        snprintf(title, sizeof title, "No basis in use");
    ui_put_cut(u, b, 0, 1, b.w - 2, UI_BOLD, title);
    int below = v->n_basis && s->mode == MINE ? 4 : 0;
    ui_box list = ui_inside(b, 1, 0, below, 0);
    if (s->mode == SUGGESTED)
        draw_suggested(u, list);
    else if (s->mode == SAVED)
        draw_saved(u, list);
    else
        draw_mine(u, list);
    if (below) {
        ui_box report = {b.y + b.h - 4, b.x, 4, b.w};
        ui_rule(u, report, 0, "How good a basis");
        draw_report(u, ui_inside(report, 1, 1, 0, 1));
    }
}

const ui_view ui_basis = {
    .name = "Basis", .letter = 'b', .keys = keys,
    .help = {"The model learns only along these features, each within its bounds.", "Every change saves a new version; v goes back to an old one."},
    .open = open_basis, .close = close_basis, .update = update, .mode = mode, .hint = hint, .draw = draw,
};
