/* Features: the list of all, filtered as one types, and the dashboard of one. On a wide terminal side by side. */
#include "ui_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LIST = 1, CARD = 2, CACHE = 512, WIDE = 140 };
enum { BY_INDEX, BY_DENSITY, BY_LABEL, SORTS };
static const char *const sort_name[SORTS] = {"by number", "by density", "labelled first"};

typedef struct meta { int feature; uint64_t serial; char tags[56]; int rating; bool skipped; } meta;

typedef struct features {
    int *row, n_row, cap;          /* which features, in which order; n_row < 0: all, by number */
    ui_list list;
    char *filter, *before;         /* in force; while typing: the one to go back to */
    bool from_text;                /* the rows are those that fire on the probe's text */
    uint64_t probe_serial;
    int sort;
    bool card_open;
    es_card_copy card; int card_of;
    int neighbour[8]; float cosine[8]; int n_neighbour;
    int example_top, example_page;
    int pending;                   /* the feature a prompt speaks of */
    meta cache[CACHE];
    int n_features;
} features;

static features *state(const es_ui *u)
{
    return u->state[UI_FEATURES];
}

static int open_features(es_ui *u, void **out)
{
    (void)u;
    features *f = calloc(1, sizeof *f);
    if (!f)
        return -1;
    f->n_row = -1;
    f->card_of = -1;
    for (int i = 0; i < CACHE; i++)
        f->cache[i].feature = -1;
    *out = f;
    return 0;
}

static void close_features(es_ui *u, void *s)
{
    (void)u;
    features *f = s;
    if (f->card_of >= 0)
        es_card_copy_free(&f->card);
    free(f->row);
    free(f->filter);
    free(f->before);
    free(f);
}

static unsigned mode(const es_ui *u)
{
    return state(u)->card_open ? CARD : LIST;
}

/* ---- which rows ---- */

static int rows(const es_ui *u)
{
    const features *f = state(u);
    return f->n_row < 0 ? u->names.n : f->n_row;
}

static int at_row(const es_ui *u, int i)
{
    const features *f = state(u);
    return i < 0 || i >= rows(u) ? -1 : f->n_row < 0 ? i : f->row[i];
}

static int selected(const es_ui *u)
{
    return at_row(u, state(u)->list.at);
}

static bool room(features *f, int n)
{
    if (n <= f->cap)
        return true;
    int *row = realloc(f->row, (size_t)n * sizeof *row);
    if (!row)
        return false;
    f->row = row;
    f->cap = n;
    return true;
}

typedef struct order { es_ui *u; const float *density; } order;

static int by_density(const void *a, const void *b, void *user)
{
    const order *o = user;
    float x = o->density[*(const int *)a], y = o->density[*(const int *)b];
    return x < y ? 1 : x > y ? -1 : *(const int *)a - *(const int *)b;
}

static int by_label(const void *a, const void *b, void *user)
{
    es_ui *u = ((order *)user)->u;
    const char *x = ui_label(u, *(const int *)a), *y = ui_label(u, *(const int *)b);
    if (!x != !y)
        return x ? -1 : 1;
    int c = x ? strcasecmp(x, y) : 0;
    return c ? c : *(const int *)a - *(const int *)b;
}

static void build(es_ui *u)
{
    features *f = state(u);
    int keep = selected(u), n = u->names.n;
    f->n_row = -1;
    if (f->from_text) {
        if (!room(f, u->v->n_probe ? u->v->n_probe : 1))
            return;
        f->n_row = 0;
        for (int i = 0; i < u->v->n_probe; i++)
            f->row[f->n_row++] = u->v->probe[i].feature;
    } else if (f->filter && *f->filter && n > 0) {
        es_error err;
        int found = 0;
        if (!room(f, n))
            return;
        if (es_workspace_search(es_studio_workspace(u->studio), u->names.hash, f->filter, f->row, n, &found, &err) < 0)
            ui_say(u, UI_BAD, "%s", err.text);
        f->n_row = found;
    } else if (f->sort != BY_INDEX && room(f, n)) {
        for (int i = 0; i < n; i++)
            f->row[i] = i;
        f->n_row = n;
    }
    order o = {u, es_studio_density(u->studio)};
    if (f->n_row > 0 && !f->from_text) {
        if (f->sort == BY_DENSITY && o.density)
            qsort_r(f->row, (size_t)f->n_row, sizeof *f->row, by_density, &o);
        else if (f->sort == BY_LABEL)
            qsort_r(f->row, (size_t)f->n_row, sizeof *f->row, by_label, &o);
    }
    f->list.n = rows(u);
    f->list.at = f->n_row < 0 && keep >= 0 ? keep : 0; /* the same feature where that is cheap to find */
    for (int i = 0; i < f->n_row && keep >= 0; i++)
        if (f->row[i] == keep) {
            f->list.at = i;
            break;
        }
}

static void update(es_ui *u)
{
    features *f = state(u);
    if (f->n_features != u->names.n) { /* the dictionary has come */
        f->n_features = u->names.n;
        if (f->card_of >= 0)
            es_card_copy_free(&f->card);
        f->card_of = -1;
        f->n_row = -1;
        build(u);
    }
    if (f->from_text && u->v->probe_serial != f->probe_serial) {
        f->probe_serial = u->v->probe_serial;
        build(u);
        f->list.at = f->list.top = 0;
    }
}

static const meta *meta_of(es_ui *u, int feature)
{
    meta *m = &state(u)->cache[feature % CACHE];
    if (m->feature == feature && m->serial == u->names.serial)
        return m;
    es_label l;
    es_error err;
    *m = (meta){.feature = feature, .serial = u->names.serial};
    if (es_workspace_label_get(es_studio_workspace(u->studio), u->names.hash, feature, &l, &err) == 0) {
        snprintf(m->tags, sizeof m->tags, "%s", l.tags ? l.tags : "");
        m->tags[es_utf8_whole(m->tags, strlen(m->tags))] = 0;
        m->rating = l.rating;
        m->skipped = l.skipped;
        es_label_free(&l);
    }
    return m;
}

static void card_load(es_ui *u, int feature)
{
    features *f = state(u);
    es_error err;
    if (f->card_of == feature)
        return;
    if (f->card_of >= 0)
        es_card_copy_free(&f->card);
    f->card_of = -1;
    f->example_top = 0;
    if (es_studio_card(u->studio, feature, &f->card, &err) < 0) {
        ui_say(u, UI_BAD, "%s", err.text);
        return;
    }
    f->card_of = feature;
    int want = 6 < u->names.n ? 6 : u->names.n - 1;
    f->n_neighbour = want > 0 ? es_studio_neighbours(u->studio, feature, want, f->neighbour, f->cosine) : 0;
}

/* ---- keys ---- */

static void filter_change(es_ui *u, const char *text)
{
    features *f = state(u);
    free(f->filter);
    f->filter = strdup(text);
    f->from_text = false;
    build(u);
    f->list.at = f->list.top = 0;
}

static void filter_done(es_ui *u, const char *text)
{
    features *f = state(u);
    filter_change(u, text ? text : f->before ? f->before : "");
}

static ui_result key_filter(es_ui *u, int key)
{
    (void)key;
    features *f = state(u);
    free(f->before);
    f->before = strdup(f->filter ? f->filter : "");
    f->card_open = false;
    ui_prompt(u, "Filter (words, tag:x, is:unlabelled, density<0.01): ", f->filter, UI_HISTORY_FILTER, filter_done, filter_change, NULL);
    return UI_REDRAW;
}

static ui_result key_sort(es_ui *u, int key)
{
    features *f = state(u);
    (void)key;
    f->sort = (f->sort + 1) % SORTS;
    build(u);
    f->list.at = f->list.top = 0;
    ui_say(u, UI_PLAIN, "sorted %s", sort_name[f->sort]);
    return UI_REDRAW;
}

void ui_features_for_text(es_ui *u, const char *text)
{
    features *f = state(u);
    f->from_text = true;
    f->probe_serial = u->v->probe_serial;
    f->card_open = false;
    f->n_row = 0;
    es_studio_probe(u->studio, text);
    ui_show(u, UI_FEATURES);
}

static void text_done(es_ui *u, const char *text)
{
    if (text && *text)
        ui_features_for_text(u, text);
}

static ui_result key_text(es_ui *u, int key)
{
    (void)key;
    ui_prompt(u, "Which features fire on the text: ", NULL, UI_HISTORY_TEXT, text_done, NULL, NULL);
    return UI_REDRAW;
}

static ui_result key_open(es_ui *u, int key)
{
    (void)key;
    if (selected(u) >= 0)
        state(u)->card_open = true;
    return UI_REDRAW;
}

static ui_result key_back(es_ui *u, int key)
{
    features *f = state(u);
    if (f->card_open) {
        f->card_open = false;
    } else if (key == UI_ESC && f->from_text) {
        f->from_text = false;
        build(u);
    } else if (key == UI_ESC && f->filter && *f->filter) {
        filter_change(u, "");
    }
    return UI_REDRAW;
}

static ui_result key_move(es_ui *u, int key)
{
    ui_list_key(&state(u)->list, key);
    return UI_REDRAW;
}

static ui_result key_card_move(es_ui *u, int key)
{
    features *f = state(u);
    int page = f->example_page > 1 ? f->example_page - 1 : 1;
    if (key == UI_PAGE_DOWN || key == 'J' || key == UI_WHEEL_DOWN)
        f->example_top += key == UI_PAGE_DOWN ? page : 1;
    else if (key == UI_PAGE_UP || key == 'K' || key == UI_WHEEL_UP)
        f->example_top -= key == UI_PAGE_UP ? page : 1;
    else
        ui_list_key(&f->list, key);
    f->example_top = f->example_top > 0 ? f->example_top : 0;
    return UI_REDRAW;
}

void ui_open_feature(es_ui *u, int feature)
{
    features *f = state(u);
    if (feature < 0 || feature >= u->names.n) {
        ui_say(u, UI_BAD, u->names.n ? "a feature is a number from 0 to %d" : "there is no dictionary, so no features", u->names.n - 1);
        return;
    }
    int at = -1;
    for (int i = 0; i < f->n_row && at < 0; i++)
        if (f->row[i] == feature)
            at = i;
    if (at < 0) { /* not among the rows shown: show all */
        f->from_text = false;
        f->sort = BY_INDEX;
        free(f->filter);
        f->filter = NULL;
        f->n_row = -1;
        at = feature;
    }
    f->list.n = rows(u);
    f->list.at = at;
    f->card_open = true;
    ui_show(u, UI_FEATURES);
}

static void saved(es_ui *u, int feature, int r, const es_error *err, const char *what)
{
    if (r < 0)
        ui_say(u, UI_BAD, "%s", err->text);
    else {
        ui_names_changed(u, feature);
        ui_say(u, UI_GOOD, "%d: %s", feature, what);
    }
}

static int set(es_ui *u, int feature, const char *text, const char *tags, int rating, es_error *err)
{
    return es_workspace_label_set(es_studio_workspace(u->studio), u->names.hash, feature, text, tags, rating, u->o.author ? u->o.author : "", err);
}

static void label_done(es_ui *u, const char *text)
{
    es_error err;
    if (text)
        saved(u, state(u)->pending, set(u, state(u)->pending, text, NULL, -1, &err), &err, *text ? "label saved; u takes it back" : "label removed; u takes it back");
}

static void label_complete(es_ui *u, const char *text, es_buf *out)
{
    size_t n = strlen(text);
    int found = 0;
    for (int i = 0; i < u->names.n && n > 0 && found < 50; i++) {
        const char *l = ui_label(u, i);
        if (l && !strncasecmp(l, text, n)) {
            bool twice = false;
            for (size_t at = 0; at < out->len && !twice; at += strlen(out->data + at) + 1)
                twice = !strcmp(out->data + at, l);
            if (!twice) {
                es_buf_add(out, l, strlen(l) + 1);
                found++;
            }
        }
    }
}

static ui_result key_label(es_ui *u, int key)
{
    features *f = state(u);
    (void)key;
    if ((f->pending = selected(u)) < 0)
        return UI_REDRAW;
    char label[40];
    snprintf(label, sizeof label, "Label of %d: ", f->pending);
    ui_prompt(u, label, ui_label(u, f->pending), UI_HISTORY_TEXT, label_done, NULL, label_complete);
    return UI_REDRAW;
}

static void tag_done(es_ui *u, const char *text)
{
    es_error err;
    if (text)
        saved(u, state(u)->pending, set(u, state(u)->pending, NULL, text, -1, &err), &err, "tags saved; u takes it back");
}

static ui_result key_tag(es_ui *u, int key)
{
    features *f = state(u);
    (void)key;
    if ((f->pending = selected(u)) < 0)
        return UI_REDRAW;
    char label[60];
    snprintf(label, sizeof label, "Tags of %d (separated by blanks): ", f->pending);
    ui_prompt(u, label, meta_of(u, f->pending)->tags, -1, tag_done, NULL, NULL);
    return UI_REDRAW;
}

static ui_result key_rate(es_ui *u, int key)
{
    es_error err;
    int feature = selected(u);
    char what[40];
    if (feature < 0)
        return UI_REDRAW;
    snprintf(what, sizeof what, key == '0' ? "rating removed" : "rated %c of 5", key);
    saved(u, feature, set(u, feature, NULL, NULL, key - '0', &err), &err, what);
    return UI_REDRAW;
}

static ui_result key_skip(es_ui *u, int key)
{
    es_error err;
    int feature = selected(u);
    (void)key;
    if (feature < 0)
        return UI_REDRAW;
    bool skip = !meta_of(u, feature)->skipped;
    saved(u, feature, es_workspace_label_skip(es_studio_workspace(u->studio), u->names.hash, feature, skip, u->o.author ? u->o.author : "", &err), &err,
          skip ? "skipped; u takes it back" : "no longer skipped");
    if (skip)
        ui_list_key(&state(u)->list, 'j');
    return UI_REDRAW;
}

static ui_result key_undo(es_ui *u, int key)
{
    es_error err;
    int feature = -1;
    (void)key;
    int r = es_workspace_label_undo(es_studio_workspace(u->studio), u->names.hash, &feature, &err);
    if (r == ES_ERR_MISSING) {
        ui_say(u, UI_PLAIN, "no change of a label to take back");
    } else {
        saved(u, feature, r, &err, "last change taken back");
        for (int i = 0; r == 0 && i < rows(u); i++)
            if (at_row(u, i) == feature) {
                state(u)->list.at = i;
                break;
            }
    }
    return UI_REDRAW;
}

static ui_result key_unlabelled(es_ui *u, int key)
{
    features *f = state(u);
    (void)key;
    for (int i = f->list.at + 1; i < rows(u); i++)
        if (!ui_label(u, at_row(u, i)) && !meta_of(u, at_row(u, i))->skipped) {
            f->list.at = i;
            return UI_REDRAW;
        }
    ui_say(u, UI_PLAIN, "nothing unlabelled below");
    return UI_REDRAW;
}

static ui_result key_basis(es_ui *u, int key)
{
    int feature = selected(u);
    (void)key;
    if (feature >= 0) {
        bool in;
        ui_coefficient(u, feature, &in);
        if (in)
            ui_say(u, UI_PLAIN, "%d is in the basis already; the Basis view (F3) changes its bounds", feature);
        else {
            es_studio_basis_add(u->studio, feature, 1, -1);
            ui_say(u, UI_GOOD, "%d is in the basis", feature);
        }
    }
    return UI_REDRAW;
}

static ui_result key_steer(es_ui *u, int key)
{
    (void)key;
    if (selected(u) >= 0)
        ui_steer_prompt(u, selected(u));
    return UI_REDRAW;
}

static ui_result key_shade(es_ui *u, int key)
{
    int feature = selected(u);
    (void)key;
    if (feature >= 0) {
        es_studio_shade(u->studio, feature);
        ui_show(u, UI_CHAT);
        ui_say(u, UI_PLAIN, "replies are coloured by %d; s 0 in Chat turns it off", feature);
    }
    return UI_REDRAW;
}

static const ui_key keys[] = {
    {'j', LIST, "next, previous", key_move},
    {'k', LIST, NULL, key_move}, {UI_DOWN, LIST, NULL, key_move}, {UI_UP, LIST, NULL, key_move},
    {UI_PAGE_DOWN, LIST, "pages", key_move},
    {UI_PAGE_UP, LIST, NULL, key_move}, {UI_WHEEL_DOWN, LIST, NULL, key_move}, {UI_WHEEL_UP, LIST, NULL, key_move},
    {UI_HOME, LIST, "first, last", key_move},
    {UI_END, LIST, NULL, key_move}, {'G', LIST, NULL, key_move},
    {'/', 0, "filter: words in labels, tags and tokens; tag:x is:unlabelled 1234", key_filter},
    {'t', 0, "which features fire on a text", key_text},
    {'o', LIST, "order: by number, by density, labelled first", key_sort},
    {UI_ENTER, LIST, "open the dashboard", key_open},
    {UI_RIGHT, LIST, NULL, key_open},
    {UI_ESC, 0, "back: to the list, then to all features", key_back},
    {UI_LEFT, 0, NULL, key_back}, {'h', 0, NULL, key_back},
    {'j', CARD, "dashboard: next, previous feature", key_card_move},
    {'k', CARD, NULL, key_card_move}, {UI_DOWN, CARD, NULL, key_card_move}, {UI_UP, CARD, NULL, key_card_move},
    {'J', CARD, "dashboard: scroll the examples", key_card_move},
    {'K', CARD, NULL, key_card_move}, {UI_PAGE_DOWN, CARD, NULL, key_card_move}, {UI_PAGE_UP, CARD, NULL, key_card_move},
    {UI_WHEEL_DOWN, CARD, NULL, key_card_move}, {UI_WHEEL_UP, CARD, NULL, key_card_move},
    {'l', 0, "label (Tab completes from other labels)", key_label},
    {'T', 0, "tags", key_tag},
    {'1', 0, "rate 1 to 5, 0 removes the rating", key_rate},
    {'2', 0, NULL, key_rate}, {'3', 0, NULL, key_rate}, {'4', 0, NULL, key_rate}, {'5', 0, NULL, key_rate}, {'0', 0, NULL, key_rate},
    {'x', 0, "skip, and on to the next", key_skip},
    {'n', 0, "next one without a label", key_unlabelled},
    {'u', 0, "take back the last change of a label, tag, rating or skip", key_undo},
    {'b', 0, "add to the basis", key_basis},
    {'s', 0, "steer and compare", key_steer},
    {'S', 0, "colour the chat by it", key_shade},
    {0},
};

static void hint(const es_ui *u, es_buf *out)
{
    const features *f = state(u);
    if (f->card_open)
        es_buf_str(out, "l label  T tag  1-5 rate  x skip  n unlabelled  b basis  s steer  Esc list");
    else if (f->from_text || (f->filter && *f->filter))
        es_buf_str(out, "Enter opens  / filter  Esc shows all  l label  b basis  s steer  ? help");
    else
        es_buf_str(out, "Enter opens  / filter  t by text  o order  l label  b basis  s steer  ? help");
}

/* ---- drawing ---- */

static float probe_value(const es_ui *u, int feature)
{
    for (int i = 0; i < u->v->n_probe; i++)
        if (u->v->probe[i].feature == feature)
            return u->v->probe[i].activation;
    return 0;
}

static void draw_list(es_ui *u, ui_box b, bool focus)
{
    features *f = state(u);
    const float *density = es_studio_density(u->studio);
    char head[300];
    int n = rows(u);
    if (f->from_text)
        snprintf(head, sizeof head, "%s %.200s", u->v->probe_running ? "reading" : "fire on:", u->v->probe_text ? u->v->probe_text : "");
    else if (f->filter && *f->filter)
        snprintf(head, sizeof head, "%d of %d match: %.200s", n, u->names.n, f->filter);
    else
        snprintf(head, sizeof head, "%d features of %.100s", n, u->v->dictionary);
    ui_put_cut(u, b, 0, 1, b.w - 18, UI_BOLD, head);
    if (!f->from_text)
        ui_put_right(u, ui_inside(b, 0, 1, 0, 0), 0, UI_DIM, f->filter && *f->filter && f->sort == BY_INDEX ? "best first" : sort_name[f->sort]);
    int tags = b.w >= 100 ? 24 : 0, text = 25;
    ui_put(u, b, 1, 1, UI_DIM, f->from_text ? " number   fires    max *" : " number density    max *");
    ui_put(u, b, 1, text + 1, UI_DIM, "label, or the tokens it fires on");
    if (tags)
        ui_put(u, b, 1, b.w - tags, UI_DIM, "tags");
    ui_box in = ui_inside(b, 2, 0, 0, 0);
    ui_list_fit(&f->list, n, in.h);
    if (n == 0)
        ui_put(u, in, 1, 2, UI_DIM, f->from_text ? (u->v->probe_running ? "reading the text" : "nothing fires on it") : "nothing matches; Esc shows all features");
    for (int y = 0; y < in.h && f->list.top + y < n; y++) {
        int feature = at_row(u, f->list.top + y);
        if (feature < 0 || feature >= u->names.n)
            continue;
        bool at = f->list.top + y == f->list.at;
        const meta *m = meta_of(u, feature);
        const char *label = ui_label(u, feature);
        ui_style s = at ? (focus ? UI_SELECTED : UI_BOLD) : UI_PLAIN;
        ui_style dim = at ? s : UI_DIM;
        if (at && focus)
            ui_row_fill(u, ui_inside(in, 0, 1, 0, 0), y, UI_SELECTED);
        bool in_basis;
        ui_coefficient(u, feature, &in_basis);
        ui_put(u, in, y, 0, at ? s : UI_ACCENT, in_basis ? ui_sign(u, "◆", "#") : " ");
        ui_printf(u, in, y, 1, s, "%7d", feature);
        if (f->from_text)
            ui_printf(u, in, y, 9, s, "%7.2f", (double)probe_value(u, feature));
        else if (density)
            ui_printf(u, in, y, 9, dim, density[feature] >= 0.0001f ? "%6.2f%%" : density[feature] > 0 ? " <.01%%" : "  dead ", 100 * (double)density[feature]);
        float max = ui_max(u, feature);
        if (isfinite(max))
            ui_printf(u, in, y, 17, dim, "%6.1f", (double)max);
        if (m->rating)
            ui_printf(u, in, y, 24, at ? s : UI_ACCENT, "%d", m->rating);
        else if (m->skipped)
            ui_put(u, in, y, 24, dim, "x");
        ui_put_cut(u, in, y, text + 1, in.w - text - 2 - tags, label ? s : dim, label ? label : ui_tokens(u, feature));
        if (tags)
            ui_put_cut(u, in, y, in.w - tags, tags - 1, dim, m->tags);
    }
    ui_scrollbar(u, in, f->list.top, in.h, n);
}

/* One window of text with its peak at column `middle`: examples read best when the peaks stand one below the other. */
static void draw_example(es_ui *u, ui_box b, int y, const es_example *e, float max, int middle)
{
    char text[128];
    int before = 0;
    ui_printf(u, b, y, 0, UI_DIM, "%5.1f", (double)e->max);
    ui_box in = ui_inside(b, 0, 0, 0, 6);
    for (int i = 0; i < e->peak && i < e->n; i++)
        if (es_studio_token_text(u->studio, e->id[i], text, sizeof text) > 0)
            before += ui_width(u->o.unicode, text, strlen(text));
    int x = middle - before;
    for (int i = 0; i < e->n && x < in.w; i++) {
        if (es_studio_token_text(u->studio, e->id[i], text, sizeof text) <= 0)
            continue;
        ui_style s = ui_shade(e->value[i], max);
        x = ui_put(u, in, y, x, s == UI_PLAIN && i != e->peak ? UI_PLAIN : s, text);
    }
}

static void draw_tokens(es_ui *u, ui_box b, int y, int h, const char *title, ui_style s, const int32_t *id, int n)
{
    es_buf list = {0};
    ui_token_list(u, id, n, &list);
    ui_put(u, b, y, 0, s, title);
    if (list.data) {
        ui_layout l = {0};
        ui_layout_make(&l, u->o.unicode, list.data, list.len, b.w - 11, false);
        for (int i = 0; i < l.n && i < h; i++)
            ui_draw_row(u, b, y + i, 11, UI_PLAIN, &l, i, list.data, NULL, NULL, 0, 0);
        ui_layout_free(&l);
    }
    es_buf_free(&list);
}

static void draw_card(es_ui *u, ui_box b)
{
    features *f = state(u);
    int feature = selected(u), y = 0;
    if (feature < 0)
        return;
    card_load(u, feature);
    const meta *m = meta_of(u, feature);
    const char *label = ui_label(u, feature);
    bool in_basis;
    double coef = ui_coefficient(u, feature, &in_basis);
    b = ui_inside(b, 0, 1, 0, 1);
    int x = ui_printf(u, b, y, 0, UI_ACCENT, "%d ", feature);
    ui_put_cut(u, b, y, x, b.w - x - 20, label ? UI_BOLD : UI_DIM, label ? label : "no label yet: l");
    if (in_basis) {
        char text[40];
        snprintf(text, sizeof text, "in basis %+.3f", coef);
        ui_put_right(u, b, y, UI_GOOD, text);
    }
    y++;
    if (f->card_of != feature) {
        ui_put(u, b, y, 0, UI_DIM, "no examples: this dictionary has no atlas");
        return;
    }
    const es_feature_card *c = &f->card.card;
    char text[200];
    snprintf(text, sizeof text, "fires on %.3g%% of tokens, largest %.1f, mean %.1f, 99th percentile %.1f", 100 * c->density, (double)c->max, (double)c->mean, (double)c->p99);
    ui_put_cut(u, b, y++, 0, b.w, UI_PLAIN, text);
    if (m->rating || *m->tags || m->skipped) {
        x = 0;
        if (m->rating)
            x = ui_printf(u, b, y, x, UI_ACCENT, "rated %d  ", m->rating);
        if (m->skipped)
            x = ui_put(u, b, y, x, UI_WARN, "skipped  ");
        ui_put_cut(u, b, y, x, b.w - x, UI_DIM, m->tags);
        y++;
    }
    int h = b.h >= 30 ? 6 : 4, wide = b.w / 2 - 2 < ES_ATLAS_BINS ? b.w / 2 - 2 : ES_ATLAS_BINS;
    ui_columns(u, (ui_box){b.y + y, b.x, h, wide}, UI_ACCENT, c->histogram, ES_ATLAS_BINS);
    ui_box side = ui_inside(b, 0, 0, 0, wide + 2);
    draw_tokens(u, side, y, h / 2, "promotes", UI_GOOD, c->promoted, c->n_promoted);
    draw_tokens(u, side, y + h / 2, h / 2, "suppresses", UI_WARN, c->suppressed, c->n_suppressed);
    y += h;
    char axis[80];
    snprintf(axis, sizeof axis, "0%*.1f", wide - 1, (double)c->max);
    ui_put(u, b, y, 0, UI_DIM, axis);
    x = ui_put(u, side, y, 0, UI_DIM, "near");
    x = 11;
    for (int i = 0; i < f->n_neighbour && x < side.w; i++) {
        x = ui_printf(u, side, y, x, UI_ACCENT, "%d ", f->neighbour[i]);
        const char *name = ui_name(u, f->neighbour[i]);
        char shown[60];
        snprintf(shown, sizeof shown, "%.*s", (int)ui_fit(u->o.unicode, name, strlen(name), 14), name);
        x = ui_put(u, side, y, x, UI_PLAIN, shown);
        x = ui_printf(u, side, y, x, UI_DIM, " %.2f  ", (double)f->cosine[i]);
    }
    y++;
    ui_box in = ui_inside(b, y + 1, 0, 0, 0);
    f->example_page = in.h;
    if (f->example_top > c->n_example - in.h)
        f->example_top = c->n_example > in.h ? c->n_example - in.h : 0;
    int last = f->example_top + in.h < c->n_example ? f->example_top + in.h : c->n_example;
    snprintf(text, sizeof text, c->n_example ? "Examples %d to %d of %d, strongest first" : "It never fired on the texts of the atlas", f->example_top + 1, last, c->n_example);
    ui_rule(u, b, y, text);
    int middle = (in.w - 6) * 55 / 100;
    for (int i = f->example_top; i < last; i++)
        draw_example(u, in, i - f->example_top, &c->example[i], c->max, middle);
    ui_scrollbar(u, ui_inside(in, 0, -1, 0, 0), f->example_top, in.h, c->n_example);
}

static void draw(es_ui *u, ui_box b)
{
    features *f = state(u);
    if (u->names.n == 0) {
        ui_put(u, b, 2, 2, UI_DIM, u->v->loading ? "The dictionary is being opened." : "No dictionary is loaded, so there are no features to look at.");
        if (!u->v->loading)
            ui_put_cut(u, b, 3, 2, b.w - 3, UI_DIM, "--dictionary FOLDER takes one in SAELens' format; espalier train makes one.");
        return;
    }
    if (b.w >= WIDE) {
        int left = b.w * 45 / 100;
        draw_list(u, (ui_box){b.y, b.x, b.h, left}, !f->card_open);
        ui_wall(u, b, left);
        draw_card(u, (ui_box){b.y, b.x + left + 1, b.h, b.w - left - 1});
    } else if (f->card_open) {
        draw_card(u, b);
    } else {
        draw_list(u, b, true);
    }
}

const ui_view ui_features = {
    .name = "Features", .letter = 'f', .keys = keys,
    .help = {"A filter is plain words (the last one may be a beginning), tag:NAME, is:labelled,", "is:unlabelled, density<0.01, or the number of a feature."},
    .open = open_features, .close = close_features, .update = update, .mode = mode, .hint = hint, .draw = draw,
};
