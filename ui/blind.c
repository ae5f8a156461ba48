/* The blind test of a label: ten texts, which of them activate the feature? And the page that says how far annotators agree. Both fill the Features view. */
#include "view_features.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static ui_labelling *lab(const es_ui *u)
{
    return &ui_features_of(u)->lab;
}

bool ui_test_open(const es_ui *u)
{
    return lab(u)->test.open || lab(u)->page.open;
}

/* The test that was asked for, once it is there. */
static const es_blind *test_of(const es_ui *u)
{
    const ui_labelling *l = lab(u);
    const es_blind *b = u->v->blind;
    return b && u->v->blind_serial != l->test.asked && b->feature == l->test.feature ? b : NULL;
}

ui_result ui_key_test(es_ui *u, int key)
{
    ui_labelling *l = lab(u);
    int feature = ui_features_selected(u);
    (void)key;
    if (feature < 0)
        return UI_REDRAW;
    if (!ui_label(u, feature)) {
        ui_say(u, UI_PLAIN, "%d has no label to test: l", feature);
        return UI_REDRAW;
    }
    free(l->test.label);
    l->test.label = strdup(ui_label(u, feature));
    l->test.open = l->test.label != NULL;
    l->test.done = false;
    l->test.feature = feature;
    l->test.answer = 0;
    l->test.at = l->test.top = 0;
    l->test.asked = u->v->blind_serial;
    u->message[0] = 0;
    es_studio_blind(u->studio, feature, (uint64_t)(es_seconds() * 1e3));
    return UI_REDRAW;
}

static void submit(es_ui *u, const es_blind *b)
{
    ui_labelling *l = lab(u);
    es_error err;
    es_blind_score(b, l->test.answer, &l->test.score);
    snprintf(l->test.score.judge, sizeof l->test.score.judge, "%.63s", u->o.author && *u->o.author ? u->o.author : "me");
    l->test.score.judge[es_utf8_whole(l->test.score.judge, strlen(l->test.score.judge))] = 0;
    l->test.done = true;
    l->test.at = l->test.top = 0;
    if (es_workspace_score_add(es_studio_workspace(u->studio), u->names.hash, b->feature, l->test.label, &l->test.score, &err) < 0)
        ui_say(u, UI_BAD, "%s", err.text);
    else
        ui_say(u, UI_GOOD, "%d of %d right: score %.2f (%.2f to %.2f), kept with the label", l->test.score.hit + l->test.score.rejection, l->test.score.n, l->test.score.value,
               l->test.score.lo, l->test.score.hi);
    ui_names_changed(u, b->feature);
}

static ui_result page_key(es_ui *u, int key)
{
    ui_labelling *l = lab(u);
    ui_list list = {.n = l->page.rows, .at = l->page.top, .top = l->page.top, .page = 1};
    int page = l->page.page > 1 ? l->page.page - 1 : 1;
    if (key == ':' || key == '?' || key == UI_TAB || key == UI_BACK_TAB)
        return UI_IGNORED;
    if (key == UI_PAGE_DOWN || key == UI_PAGE_UP)
        l->page.top += key == UI_PAGE_DOWN ? page : -page;
    else if (ui_list_key(&list, key))
        l->page.top = list.at;
    else
        l->page.open = false;
    l->page.top = l->page.top > 0 ? l->page.top : 0;
    return UI_REDRAW;
}

ui_result ui_test_typed(es_ui *u, const ui_event *e)
{
    ui_labelling *l = lab(u);
    const es_blind *b = test_of(u);
    int key = e->key, n = b ? b->n : 0;
    if (!l->test.open)
        return l->page.open ? page_key(u, key) : UI_IGNORED;
    if (key == ':' || key == '?' || key == UI_TAB || key == UI_BACK_TAB)
        return UI_IGNORED;
    if (key == UI_ESC || (l->test.done && (key == UI_ENTER || key == 'q'))) {
        l->test.open = false;
    } else if (l->test.done && key == 'B') {
        return ui_key_test(u, key);
    } else if (key == 'j' || key == UI_DOWN || key == UI_WHEEL_DOWN) {
        l->test.at += l->test.at + 1 < n;
    } else if (key == 'k' || key == UI_UP || key == UI_WHEEL_UP) {
        l->test.at -= l->test.at > 0;
    } else if (b && !l->test.done && key >= '0' && key <= '9' && (key + 9 - '0') % 10 < n) {
        l->test.at = (key + 9 - '0') % 10; /* 0 is the tenth */
        l->test.answer ^= 1u << l->test.at;
    } else if (b && !l->test.done && key == ' ') {
        l->test.answer ^= 1u << l->test.at;
    } else if (b && !l->test.done && key == UI_ENTER) {
        submit(u, b);
    }
    return UI_REDRAW;
}

void ui_test_hint(const es_ui *u, es_buf *out)
{
    const ui_labelling *l = lab(u);
    if (!l->test.open)
        es_buf_str(out, "j k scroll  any other key closes");
    else if (l->test.done)
        es_buf_str(out, "Enter closes  B another test  j k scroll");
    else
        es_buf_str(out, "Which activate it? Five do, as a rule. 1-9 0 yes or no  Enter that is all  Esc");
}

/* ---- drawing --------------------------------------------------------------------------------------------------------------------------------- */

/* A window's text on at most h rows. */
static void draw_text(es_ui *u, ui_box b, int y, int h, ui_style s, const es_blind_window *w)
{
    es_buf raw = {0}, text = {0};
    int end[ES_BLIND_TOKENS];
    ui_layout l = {0};
    if (es_studio_window_text(u->studio, w->id, w->n, &raw, end) >= 0)
        ui_oneline(&text, raw.data ? raw.data : "", raw.len);
    if (text.data && ui_layout_make(&l, u->o.unicode, text.data, text.len, b.w, false)) {
        for (int i = 0; i < l.n && i < h; i++) {
            if (i == h - 1 && l.n > h) { /* cut */
                ui_put_cut(u, b, y + i, 0, b.w, s, text.data + l.row[i].start);
                break;
            }
            ui_draw_row(u, b, y + i, 0, s, &l, i, text.data, NULL, NULL, 0, 0);
        }
    }
    ui_layout_free(&l);
    es_buf_free(&raw);
    es_buf_free(&text);
}

static void draw_window(es_ui *u, ui_box b, int y, int h, const es_blind *t, int i)
{
    const ui_labelling *l = lab(u);
    const es_blind_window *w = &t->window[i];
    bool said = l->test.answer >> i & 1;
    int left = 8;
    ui_printf(u, b, y, 0, i == l->test.at ? UI_SELECTED : UI_KEY, " %d ", (i + 1) % 10);
    ui_put(u, b, y, 4, said ? UI_ACCENT : UI_DIM, said ? "yes" : ui_sign(u, "·", "-"));
    if (l->test.done) {
        bool right = said == w->active;
        left = 16;
        ui_put(u, b, y, 8, right ? UI_GOOD : UI_BAD, ui_sign(u, right ? "✓" : "✗", right ? "+" : "x"));
        if (w->active)
            ui_printf(u, b, y, 10, UI_PLAIN, "%5.1f", (double)w->activation);
        else
            ui_put(u, b, y, 10, UI_DIM, w->near ? "near" : "none");
    }
    draw_text(u, ui_inside(b, 0, 1, 0, left), y, h, i == l->test.at ? UI_BOLD : UI_PLAIN, w);
}

static void draw_test(es_ui *u, ui_box b)
{
    ui_labelling *l = lab(u);
    const es_blind *t = test_of(u);
    int x = ui_printf(u, b, 0, 1, UI_BOLD, "%s %d: ", l->test.done ? "Tested" : "Blind test of", l->test.feature); /* one row, so that ten texts have two each on 24 */
    ui_put_cut(u, b, 0, x, b.w - x - 1, UI_ACCENT, l->test.label);
    ui_box in = ui_inside(b, 1, 0, 0, 0);
    if (!t) {
        ui_put_cut(u, in, 1, 2, in.w - 3, UI_DIM, u->v->blind_serial != l->test.asked && *u->v->blind_text ? u->v->blind_text : "choosing the texts, and reading some of them");
        return;
    }
    int each = in.h / t->n;
    each = each < 1 ? 1 : each > 4 ? 4 : each;
    int page = in.h / each > 0 ? in.h / each : 1;
    if (l->test.at < l->test.top)
        l->test.top = l->test.at;
    if (l->test.at >= l->test.top + page)
        l->test.top = l->test.at - page + 1;
    if (l->test.top > t->n - page)
        l->test.top = t->n > page ? t->n - page : 0;
    for (int i = 0; i < page && l->test.top + i < t->n; i++)
        draw_window(u, in, i * each, each, t, l->test.top + i);
}

static void draw_page(es_ui *u, ui_box b)
{
    ui_labelling *l = lab(u);
    ui_layout layout = {0};
    const char *text = l->page.text.data ? l->page.text.data : "";
    ui_box in = ui_inside(b, 0, 1, 0, 1);
    ui_layout_make(&layout, u->o.unicode, text, strlen(text), in.w - 1, false);
    l->page.rows = layout.n;
    l->page.page = in.h;
    if (l->page.top > layout.n - in.h)
        l->page.top = layout.n > in.h ? layout.n - in.h : 0;
    for (int y = 0; y < in.h && l->page.top + y < layout.n; y++)
        ui_draw_row(u, in, y, 0, l->page.top + y ? UI_PLAIN : UI_BOLD, &layout, l->page.top + y, text, NULL, NULL, 0, 0);
    ui_scrollbar(u, in, l->page.top, in.h, layout.n);
    ui_layout_free(&layout);
}

void ui_test_draw(es_ui *u, ui_box b)
{
    if (lab(u)->test.open)
        draw_test(u, b);
    else
        draw_page(u, b);
}

/* ---- agreement --------------------------------------------------------------------------------------------------------------------------------- */

static void add_kappa(es_buf *out, const char *what, const es_kappa *k)
{
    es_buf_printf(out, "    %-20.40s ", what);
    if (!isfinite(k->kappa))
        es_buf_str(out, k->n ? "not defined: both always say the same one thing\n" : "nothing in common\n");
    else if (isfinite(k->lo))
        es_buf_printf(out, "kappa %5.2f  (%.2f to %.2f)\n", k->kappa, k->lo, k->hi);
    else
        es_buf_printf(out, "kappa %5.2f\n", k->kappa);
}

ui_result ui_key_agreement(es_ui *u, int key)
{
    enum { TAGS = 8 };
    ui_labelling *l = lab(u);
    es_agreement *a = NULL;
    es_error err;
    int n = 0;
    (void)key;
    if (u->names.n == 0)
        return UI_REDRAW;
    if (es_workspace_agreement(es_studio_workspace(u->studio), u->names.hash, &a, &n, &err) < 0) {
        ui_say(u, UI_BAD, "%s", err.text);
        return UI_REDRAW;
    }
    es_buf *out = &l->page.text;
    es_buf_clear(out);
    es_buf_str(out, "Agreement of annotators beyond chance (Cohen's kappa: 0 chance, 1 always)\n\n");
    if (n == 0)
        es_buf_str(out, "No two annotators said something of the same feature. Others' labels come in with :merge FILE.jsonl.\n");
    for (int i = 0; i < n; i++) {
        es_buf_printf(out, "%s and %s: %d tagged by both, %d labelled by both, %d of these alike\n", *a[i].a ? a[i].a : "?", *a[i].b ? a[i].b : "?", a[i].tagged, a[i].labelled, a[i].same);
        add_kappa(out, "tags", &a[i].tags);
        add_kappa(out, "texts", &a[i].text);
        for (int k = 0; k < a[i].n_tag && k < TAGS; k++) {
            char tag[80];
            snprintf(tag, sizeof tag, "tag %s", a[i].tag[k].tag);
            add_kappa(out, tag, &a[i].tag[k].kappa);
        }
        es_buf_str(out, "\n");
    }
    es_agreements_free(a, n);
    l->page.open = !out->failed;
    l->page.top = 0;
    u->message[0] = 0;
    return UI_REDRAW;
}
