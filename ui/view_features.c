/* Features: the list of all, filtered as one types; the dashboard of one (dashboard.c), on a wide terminal beside it; the map of all (map.c). */
#include "view_features.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LIST = UI_LIST_MODE, CARD = UI_CARD_MODE, MAP = UI_MAP_MODE, WIDE = 140 };
typedef ui_features_state features;

static const char *order_text(const es_ui *u, es_find_order o)
{
    static const char *const name[ES_FIND_ORDERS] = {"best first", "by number", "by density", "by largest activation", "labelled first", "by token", "most surprising first"};
    return o == ES_FIND_BEST && !ui_filtered(u) ? name[ES_FIND_NUMBER] : name[o];
}

static features *state(const es_ui *u)
{
    return ui_features_of(u);
}

static int open_features(es_ui *u, void **out)
{
    (void)u;
    features *f = calloc(1, sizeof *f);
    if (!f)
        return -1;
    f->card.card_of = f->keep = f->shown = f->map.feature = f->lab.last = -1;
    for (int i = 0; i < UI_META_CACHE; i++)
        f->cache[i].feature = -1;
    *out = f;
    return 0;
}

static void close_features(es_ui *u, void *s)
{
    (void)u;
    features *f = s;
    ui_dashboard_free(&f->card);
    ui_map_free(&f->map);
    ui_labelling_free(&f->lab);
    es_found_free(&f->found);
    free(f->filter);
    free(f->before);
    free(f->contrast);
    free(f);
}

static unsigned mode(const es_ui *u)
{
    return ui_test_open(u) ? UI_TEST_MODE : state(u)->card_open ? CARD : state(u)->map_open ? MAP : LIST;
}

/* ---- which rows ---- */

bool ui_filtered(const es_ui *u)
{
    const features *f = state(u);
    return f->have && ((f->filter && *f->filter) || f->contrast || f->queue);
}

static int rows(const es_ui *u)
{
    const features *f = state(u);
    return f->have ? f->found.n : u->names.n;
}

static int at_row(const es_ui *u, int i)
{
    const features *f = state(u);
    return i < 0 || i >= rows(u) ? -1 : f->have ? f->found.feature[i] : i;
}

static int selected(const es_ui *u)
{
    const features *f = state(u);
    if (f->card_open && f->shown >= 0)
        return f->shown < u->names.n ? f->shown : -1;
    return mode(u) == MAP ? f->map.feature : at_row(u, f->list.at);
}

static void all_rows(es_ui *u, int keep)
{
    features *f = state(u);
    es_found_free(&f->found);
    f->have = f->queue = false;
    f->error[0] = 0;
    f->list.n = rows(u);
    f->list.at = keep >= 0 ? keep : 0;
}

/* Asks for the rows that filter and order want; they are there at once only when that is all features by number. */
static void build(es_ui *u, bool reset)
{
    features *f = state(u);
    int keep = reset ? -1 : at_row(u, f->list.at);
    free(f->contrast);
    f->contrast = NULL;
    f->queue = false;
    if (u->names.n == 0 || ((!f->filter || !*f->filter) && (f->order == ES_FIND_BEST || f->order == ES_FIND_NUMBER))) {
        all_rows(u, keep);
        return;
    }
    f->reset = reset;
    f->keep = keep;
    es_studio_find(u->studio, f->filter ? f->filter : "", f->order);
}

static void take_rows(es_ui *u)
{
    features *f = state(u);
    es_found found;
    char error[240];
    if (!es_studio_found(u->studio, &found, error))
        return;
    if (!f->queue && (!f->contrast && (!f->filter || !*f->filter) && (f->order == ES_FIND_BEST || f->order == ES_FIND_NUMBER))) {
        es_found_free(&found); /* comes too late */
        return;
    }
    es_found_free(&f->found);
    f->found = found;
    f->have = true;
    snprintf(f->error, sizeof f->error, "%s", error);
    f->list.n = rows(u);
    f->list.at = 0;
    if (f->reset)
        f->list.top = 0;
    for (int i = 0; i < f->found.n && f->keep >= 0; i++)
        if (f->found.feature[i] == f->keep) {
            f->list.at = i;
            break;
        }
}

static void update(es_ui *u)
{
    features *f = state(u);
    if (f->n_features != u->names.n) { /* the dictionary has come */
        f->n_features = u->names.n;
        ui_dashboard_free(&f->card);
        ui_map_free(&f->map);
        f->map.unit = 0;
        f->shown = -1;
        ui_marks_drop(u);
        all_rows(u, -1);
        build(u, true);
    }
    take_rows(u);
}

const ui_meta *ui_meta_of(es_ui *u, int feature)
{
    ui_meta *m = &state(u)->cache[feature % UI_META_CACHE];
    if (m->feature == feature && m->made == u->names.made)
        return m;
    es_label l;
    es_error err;
    *m = (ui_meta){.feature = feature, .made = u->names.made, .score = NAN};
    if (es_workspace_label_get(es_studio_workspace(u->studio), u->names.hash, feature, &l, &err) == 0) {
        snprintf(m->tags, sizeof m->tags, "%s", l.tags ? l.tags : "");
        m->tags[es_utf8_whole(m->tags, strlen(m->tags))] = 0;
        memcpy(m->author, l.author, sizeof m->author);
        m->rating = l.rating;
        m->confidence = l.confidence;
        m->opinions = l.opinions;
        m->skipped = l.skipped;
        m->conflict = l.conflict;
        m->noted = l.note && *l.note;
        m->score = l.tested ? l.score : NAN;
        m->tested = l.tested;
        es_label_free(&l);
    }
    return m;
}

/* ---- keys ---- */

static void filter_change(es_ui *u, const char *text)
{
    features *f = state(u);
    free(f->filter);
    f->filter = strdup(text);
    if (f->order == ES_FIND_TOKEN || f->order == ES_FIND_SURPRISE || f->order == ES_FIND_NUMBER)
        f->order = ES_FIND_BEST; /* another text, or none; and what is best is by number where there are no words */
    build(u, true);
}

static void filter_done(es_ui *u, const char *text)
{
    features *f = state(u);
    if (!text || !f->filter || strcmp(text, f->filter)) /* the same is there, or on its way */
        filter_change(u, text ? text : f->before ? f->before : "");
}

static ui_result key_filter(es_ui *u, int key)
{
    (void)key;
    features *f = state(u);
    free(f->before);
    f->before = strdup(f->filter ? f->filter : "");
    f->card_open = false;
    ui_prompt(u, "Filter (words, tag:x, promotes:x, density<0.01; ? lists all): ", f->filter, UI_HISTORY_FILTER, filter_done, filter_change, NULL);
    return UI_REDRAW;
}

static ui_result key_sort(es_ui *u, int key)
{
    static const es_find_order plain[] = {ES_FIND_NUMBER, ES_FIND_DENSITY, ES_FIND_LABEL, ES_FIND_MAX}, some[] = {ES_FIND_BEST, ES_FIND_DENSITY, ES_FIND_LABEL, ES_FIND_MAX},
                               text[] = {ES_FIND_BEST, ES_FIND_TOKEN, ES_FIND_SURPRISE, ES_FIND_DENSITY};
    features *f = state(u);
    (void)key;
    const es_find_order *of = !ui_filtered(u) ? plain : f->found.token ? text : some;
    int at = 3;
    while (at > 0 && of[at] != f->order)
        at--;
    f->order = of[(at + 1) % 4];
    build(u, true);
    ui_say(u, UI_PLAIN, "sorted %s", order_text(u, f->order));
    return UI_REDRAW;
}

void ui_features_for_text(es_ui *u, const char *text)
{
    es_buf filter = {0};
    es_buf_str(&filter, "text:\"");
    for (const char *p = text; *p; p++) {
        if (*p == '"')
            es_buf_str(&filter, "\\");
        es_buf_add(&filter, p, 1);
    }
    es_buf_str(&filter, "\"");
    state(u)->card_open = state(u)->map_open = false;
    if (filter.data && !filter.failed)
        filter_change(u, filter.data);
    es_buf_free(&filter);
    ui_show(u, UI_FEATURES);
}

void ui_features_find(es_ui *u, const char *filter)
{
    state(u)->card_open = state(u)->map_open = false;
    filter_change(u, filter);
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

static ui_result key_like(es_ui *u, int key)
{
    char filter[40];
    (void)key;
    if (selected(u) < 0)
        return UI_REDRAW;
    snprintf(filter, sizeof filter, "like:%d", selected(u));
    state(u)->card_open = false;
    state(u)->order = ES_FIND_BEST;
    filter_change(u, filter);
    return UI_REDRAW;
}

void ui_features_contrast(es_ui *u, const char *a, const char *b)
{
    features *f = state(u);
    es_buf title = {0};
    es_buf_printf(&title, "%s against %s", a, b);
    free(f->filter);
    f->filter = NULL;
    f->order = ES_FIND_BEST;
    f->card_open = f->map_open = false;
    all_rows(u, -1);
    free(f->contrast);
    f->contrast = title.data;
    f->have = true; /* of nothing, until it comes */
    f->reset = true;
    f->keep = -1;
    es_studio_contrast(u->studio, a, b);
    ui_show(u, UI_FEATURES);
}

static ui_result key_open(es_ui *u, int key)
{
    features *f = state(u);
    (void)key;
    int feature = selected(u);
    if (feature >= 0) {
        f->shown = mode(u) == MAP ? feature : -1;
        f->card.top = 0;
        f->card_open = true;
    }
    return UI_REDRAW;
}

static ui_result key_back(es_ui *u, int key)
{
    features *f = state(u);
    if (key == UI_ESC && f->lab.n_mark) {
        ui_marks_drop(u);
    } else if (f->card_open) {
        f->card_open = false;
        f->shown = -1;
    } else if (f->map_open && key == UI_ESC) {
        f->map_open = false;
    } else if (key == UI_ESC && ((f->filter && *f->filter) || f->contrast || f->queue)) {
        filter_change(u, "");
    }
    return UI_REDRAW;
}

static ui_result key_move(es_ui *u, int key)
{
    ui_list_key(&state(u)->list, key);
    state(u)->card.top = 0; /* a wide terminal shows the dashboard beside the list */
    return UI_REDRAW;
}

static ui_result key_card_move(es_ui *u, int key)
{
    features *f = state(u);
    if (key == 'j' || key == 'k' || key == UI_UP || key == UI_DOWN) {
        f->shown = -1;
        f->card.top = 0;
        ui_list_key(&f->list, key);
    } else {
        ui_dashboard_key(u, key);
    }
    return UI_REDRAW;
}

static ui_result key_map(es_ui *u, int key)
{
    features *f = state(u);
    (void)key;
    int feature = selected(u);
    if (mode(u) == MAP) {
        f->map_open = false;
        return UI_REDRAW;
    }
    f->card_open = false;
    f->shown = -1;
    f->map_open = true;
    ui_map_open(u, feature);
    return UI_REDRAW;
}

void ui_features_map(es_ui *u)
{
    if (mode(u) != MAP)
        key_map(u, 'm');
    ui_show(u, UI_FEATURES);
}

static ui_result key_map_move(es_ui *u, int key)
{
    ui_map_key(u, key);
    return UI_REDRAW;
}

void ui_open_feature(es_ui *u, int feature)
{
    features *f = state(u);
    if (feature < 0 || feature >= u->names.n) {
        ui_say(u, UI_BAD, u->names.n ? "a feature is a number from 0 to %d" : "there is no dictionary, so no features", u->names.n - 1);
        return;
    }
    int at = f->have ? -1 : feature;
    for (int i = 0; f->have && i < f->found.n && at < 0; i++)
        if (f->found.feature[i] == feature)
            at = i;
    if (at < 0) { /* not among the rows shown: show all */
        f->order = ES_FIND_NUMBER;
        free(f->filter);
        f->filter = NULL;
        free(f->contrast);
        f->contrast = NULL;
        all_rows(u, at = feature);
    }
    f->list.n = rows(u);
    f->list.at = at;
    f->shown = -1;
    f->card.top = 0;
    f->card_open = true;
    ui_show(u, UI_FEATURES);
}

/* ---- for labelling.c ---- */

int ui_features_selected(const es_ui *u)
{
    return selected(u);
}

int ui_features_row(const es_ui *u, int i)
{
    return at_row(u, i);
}

int ui_features_rows(const es_ui *u)
{
    return rows(u);
}

void ui_features_go(es_ui *u, int feature)
{
    features *f = state(u);
    if (at_row(u, f->list.at) == feature)
        return;
    if (!f->have) {
        f->list.at = feature;
        return;
    }
    for (int i = 0; i < f->found.n; i++)
        if (f->found.feature[i] == feature) {
            f->list.at = i;
            return;
        }
}

bool ui_features_unlabelled(es_ui *u)
{
    features *f = state(u);
    for (int i = f->list.at + 1; i < rows(u); i++) {
        const char *label = ui_label(u, at_row(u, i));
        bool automatic = f->queue && label && es_author_automatic(ui_meta_of(u, at_row(u, i))->author); /* queued: in doubt */
        if ((!label || automatic) && !ui_meta_of(u, at_row(u, i))->skipped) {
            f->list.at = i;
            f->shown = -1;
            f->card.top = 0;
            return true;
        }
    }
    return false;
}

void ui_features_queue(es_ui *u)
{
    features *f = state(u);
    free(f->filter);
    free(f->contrast);
    f->filter = f->contrast = NULL;
    f->order = ES_FIND_BEST;
    f->map_open = f->card_open = false;
    f->shown = -1;
    all_rows(u, -1);
    f->have = f->queue = true; /* of nothing, until it comes */
    f->reset = true;
    f->keep = -1;
    f->list.n = f->list.at = f->list.top = 0;
    es_studio_next(u->studio);
    ui_show(u, UI_FEATURES);
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
    {'/', 0, "filter, as above", key_filter},
    {'t', 0, "which features fire on a text", key_text},
    {'=', 0, "those like this one: the nearest decoder rows", key_like},
    {'o', LIST, "order: number, density, labelled, largest; of a text: also token, surprise", key_sort},
    {UI_ENTER, LIST | MAP, "open the dashboard", key_open},
    {UI_RIGHT, LIST, NULL, key_open},
    {UI_ESC, 0, "back: to the list or map, then to all features", key_back},
    {UI_LEFT, LIST | CARD, NULL, key_back}, {'h', LIST | CARD, NULL, key_back},
    {'j', CARD, "dashboard: next, previous feature", key_card_move},
    {'k', CARD, NULL, key_card_move}, {UI_DOWN, CARD, NULL, key_card_move}, {UI_UP, CARD, NULL, key_card_move},
    {'J', CARD, "dashboard: scroll examples, intervals, relations", key_card_move},
    {'K', CARD, NULL, key_card_move}, {UI_PAGE_DOWN, CARD, NULL, key_card_move}, {UI_PAGE_UP, CARD, NULL, key_card_move},
    {UI_WHEEL_DOWN, CARD, NULL, key_card_move}, {UI_WHEEL_UP, CARD, NULL, key_card_move},
    {'e', CARD, "dashboard: examples in full, or a line each", key_card_move},
    {'m', 0, "the map of all features, and back", key_map},
    {UI_UP, MAP, "map: move the cursor; at the edge the map moves", key_map_move},
    {UI_DOWN, MAP, NULL, key_map_move}, {UI_LEFT, MAP, NULL, key_map_move}, {UI_RIGHT, MAP, NULL, key_map_move},
    {'H', MAP, "map: move by half a screen", key_map_move},
    {'J', MAP, NULL, key_map_move}, {'K', MAP, NULL, key_map_move}, {'L', MAP, NULL, key_map_move},
    {UI_PAGE_DOWN, MAP, NULL, key_map_move}, {UI_PAGE_UP, MAP, NULL, key_map_move},
    {'+', MAP, "map: nearer, farther; Home shows all", key_map_move},
    {'-', MAP, NULL, key_map_move}, {UI_HOME, MAP, NULL, key_map_move}, {UI_WHEEL_UP, MAP, NULL, key_map_move}, {UI_WHEEL_DOWN, MAP, NULL, key_map_move},
    {'l', 0, "label (Tab completes from other labels)", ui_key_label},
    {'T', 0, "tags (Tab completes); of several: those to add, -TAG takes one away", ui_key_tag},
    {'1', 0, "rate 1 to 5, 0 removes the rating", ui_key_rate},
    {'2', 0, NULL, ui_key_rate}, {'3', 0, NULL, ui_key_rate}, {'4', 0, NULL, ui_key_rate}, {'5', 0, NULL, ui_key_rate}, {'0', 0, NULL, ui_key_rate},
    {'c', 0, "how sure you are: 1 to 5, or per cent", ui_key_confidence},
    {'a', 0, "a note; E: in your editor", ui_key_note},
    {'E', 0, NULL, ui_key_note_outside},
    {'x', 0, "skip, and on to the next", ui_key_skip},
    {'.', 0, "say the same as of the last one: label, tags, rating, confidence", ui_key_repeat},
    {'u', 0, "take back the last change of a label, tag, rating ...; Ctrl-R: again", ui_key_undo},
    {UI_CONTROL('r'), 0, NULL, ui_key_redo},
    {'n', 0, "next one without a label; Enter does it in the dashboard", ui_key_next},
    {UI_ENTER, CARD, NULL, ui_key_next},
    {'N', 0, "the queue: those most worth labelling, best first", ui_key_queue},
    {' ', LIST, "mark it, for doing the same to several; Esc drops the marks", ui_key_mark},
    {'V', LIST, "mark all from the last marked to here; *: all that are listed", ui_key_mark_range},
    {'*', LIST, NULL, ui_key_mark_all},
    {'w', 0, "whose label is shown, where several people have one", ui_key_whose},
    {'B', 0, "blind test of the label: which of ten texts activate it?", ui_key_test},
    {'A', 0, "how far annotators agree", ui_key_agreement},
    {'b', 0, "add to the basis", key_basis},
    {'s', 0, "steer and compare", key_steer},
    {'S', 0, "colour the chat by it", key_shade},
    {0},
};

static void hint(const es_ui *u, es_buf *out)
{
    const features *f = state(u);
    if (ui_test_open(u))
        ui_test_hint(u, out);
    else if (f->lab.n_mark)
        es_buf_printf(out, "%d marked: T tags  l label  1-5 rate  x skip  V up to here  * all  Esc drops", f->lab.n_mark);
    else if (f->card_open)
        es_buf_str(out, "l label  T tag  1-5 rate  . same  n next  B test  b basis  = like  e full  Esc");
    else if (f->queue)
        es_buf_str(out, "Enter opens  l label  T tag  . same  x skip  n next  Esc shows all  ? help");
    else if (f->map_open)
        es_buf_str(out, "Enter opens  arrows move  + - zoom  / highlight  l label  m list  ? help");
    else if (f->contrast || (f->filter && *f->filter))
        es_buf_str(out, "Enter opens  / filter  o order  m map  Esc shows all  l label  b basis  ? help");
    else
        es_buf_str(out, "Enter opens  / filter  t by text  o order  m map  l label  b basis  ? help");
}

/* ---- drawing ---- */

/* The value a search gave, and beside a text the token and the surprise. */
static void draw_value(es_ui *u, ui_box in, int y, int row, ui_style s, ui_style dim)
{
    const es_found *f = &state(u)->found;
    if (f->value)
        ui_printf(u, in, y, 9, s, "%7.2f", (double)f->value[row]);
    if (f->surprise && isfinite(f->surprise[row]))
        ui_printf(u, in, y, 17, dim, "%6.1f", (double)f->surprise[row]);
}

static void draw_head(es_ui *u, ui_box b, int n)
{
    const features *f = state(u);
    char head[300];
    bool finding = es_studio_finding(u->studio);
    if (f->queue)
        snprintf(head, sizeof head, "most worth labelling: %d of %d", n, u->names.n);
    else if (f->contrast)
        snprintf(head, sizeof head, "%s %.200s", finding ? "reading" : "differ:", f->contrast);
    else if (f->filter && *f->filter && f->have)
        snprintf(head, sizeof head, "%d of %d match: %.200s", n, u->names.n, f->filter);
    else
        snprintf(head, sizeof head, "%d features of %.100s", n, u->v->dictionary);
    ui_put_cut(u, b, 0, 1, b.w - 24, UI_BOLD, head);
    if (f->queue)
        ui_put_right(u, ui_inside(b, 0, 1, 0, 0), 0, UI_DIM, "best first");
    else if (!f->contrast)
        ui_put_right(u, ui_inside(b, 0, 1, 0, 0), 0, UI_DIM, order_text(u, f->order));
    else
        ui_put_right(u, ui_inside(b, 0, 1, 0, 0), 0, UI_DIM, "first +, then -");
}

static void draw_list(es_ui *u, ui_box b, bool focus)
{
    features *f = state(u);
    const float *density = es_studio_density(u->studio), *most = es_studio_max(u->studio);
    int n = rows(u), tags = b.w >= 100 ? 24 : 0, text = 25;
    bool valued = f->have && f->found.value, tokens = f->have && f->found.token;
    draw_head(u, b, n);
    ui_put(u, b, 1, 1, UI_DIM, tokens ? " number   fires   bits *" : valued && !strcmp(f->found.measure, "cosine") ? " number  cosine    max *" : f->queue ? " number   worth    max *" : valued ? " number   score    max *" : " number density    max *");
    ui_put(u, b, 1, text + 1, UI_DIM, tokens ? "at the token: label, or the tokens it fires on" : "label, or the tokens it fires on");
    if (tags)
        ui_put(u, b, 1, b.w - tags, UI_DIM, "tags");
    ui_box in = ui_inside(b, 2, 0, 0, 0);
    ui_list_fit(&f->list, n, in.h);
    if (n == 0)
        ui_put_cut(u, in, 1, 2, in.w - 3, UI_DIM, *f->error ? f->error : es_studio_finding(u->studio) ? "looking" : "nothing matches; Esc shows all features");
    for (int y = 0; y < in.h && f->list.top + y < n; y++) {
        int row = f->list.top + y, feature = at_row(u, row);
        if (feature < 0 || feature >= u->names.n)
            continue;
        bool at = row == f->list.at;
        const ui_meta *m = ui_meta_of(u, feature);
        const char *label = ui_label(u, feature);
        ui_style s = at ? (focus ? UI_SELECTED : UI_BOLD) : UI_PLAIN;
        ui_style dim = at ? s : UI_DIM;
        if (at && focus)
            ui_row_fill(u, ui_inside(in, 0, 1, 0, 0), y, UI_SELECTED);
        bool in_basis;
        ui_coefficient(u, feature, &in_basis);
        ui_put(u, in, y, 0, at ? s : UI_ACCENT, in_basis ? ui_sign(u, "◆", "#") : " ");
        ui_printf(u, in, y, 1, s, "%7d", feature);
        if (valued)
            draw_value(u, in, y, row, s, dim);
        else if (density)
            ui_printf(u, in, y, 9, dim, density[feature] >= 0.0001f ? "%6.2f%%" : density[feature] > 0 ? " <.01%%" : "  dead ", 100 * (double)density[feature]);
        if (most && !tokens)
            ui_printf(u, in, y, 17, dim, "%6.1f", (double)most[feature]);
        if (ui_marked(u, feature))
            ui_put(u, in, y, 8, at ? s : UI_ACCENT, ui_sign(u, "●", "*"));
        if (m->conflict)
            ui_put(u, in, y, 23, at ? s : UI_WARN, ui_sign(u, "≠", "!"));
        if (m->rating)
            ui_printf(u, in, y, 24, at ? s : UI_ACCENT, "%d", m->rating);
        else if (m->skipped)
            ui_put(u, in, y, 24, dim, "x");
        int x = text + 1;
        char token[48];
        if (tokens && f->found.token[row] >= 0 && f->found.token[row] < f->found.n_text &&
            es_studio_token_text(u->studio, f->found.text_id[f->found.token[row]], token, sizeof token) > 0) {
            ui_put_cut(u, in, y, x, 11, at ? s : UI_ACCENT, token);
            x += 12;
        }
        int right = m->tested ? 6 : 0;
        ui_put_cut(u, in, y, x, in.w - x - 1 - tags - right, label ? s : dim, label ? label : ui_tokens(u, feature));
        if (right) /* the score of the blind test */
            ui_printf(u, in, y, in.w - tags - right, dim, "%4.2f", m->score);
        if (tags)
            ui_put_cut(u, in, y, in.w - tags, tags - 1, dim, m->tags);
    }
    ui_scrollbar(u, in, f->list.top, in.h, n);
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
    int feature = selected(u);
    if (ui_test_open(u)) {
        ui_test_draw(u, b);
    } else if (mode(u) == MAP) {
        ui_map_draw(u, b);
    } else if (f->map_open && f->shown >= 0) {
        ui_dashboard_draw(u, b, feature);
    } else if (b.w >= WIDE) {
        int left = b.w * 45 / 100;
        draw_list(u, (ui_box){b.y, b.x, b.h, left}, !f->card_open);
        ui_wall(u, b, left);
        if (feature >= 0)
            ui_dashboard_draw(u, (ui_box){b.y, b.x + left + 1, b.h, b.w - left - 1}, feature);
    } else if (f->card_open && feature >= 0) {
        ui_dashboard_draw(u, b, feature);
    } else {
        draw_list(u, b, true);
    }
}

const ui_view ui_features = {
    .name = "Features", .letter = 'f', .keys = keys,
    .help = {"Filters, all of which must hold; a value with blanks in quotes:"}, .more_help = es_find_help,
    .open = open_features, .close = close_features, .update = update, .typed = ui_test_typed, .mode = mode, .hint = hint, .draw = draw,
};
