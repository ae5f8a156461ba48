/* The dashboard of one feature, as SAEDashboard's: what is fixed (label, figures, histogram, tokens) and, below, what scrolls: examples, places drawn from
 * each interval of activation, relations to other features and to neurons, logits. What takes longer than a key may is asked for and drawn when it comes. */
#include "view_features.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TALL = 36, NUMBER = 6 /* columns before an example's text */ };

void ui_dashboard_free(ui_dashboard *d)
{
    if (d->card_of >= 0)
        es_card_copy_free(&d->card);
    *d = (ui_dashboard){.card_of = -1};
}

static void load(es_ui *u, ui_dashboard *d, int feature)
{
    es_error err;
    if (d->card_of != feature) {
        bool wide = d->wide;
        int top = d->top; /* who goes to another feature sets it: it may have been scrolled before it is drawn */
        ui_dashboard_free(d);
        d->wide = wide;
        d->top = top;
        if (es_studio_card(u->studio, feature, &d->card, &err) < 0)
            return;
        d->card_of = feature;
    }
    if (!d->more_there)
        d->more_there = es_studio_dashboard(u->studio, feature, &d->more) > 0;
}

void ui_dashboard_key(es_ui *u, int key)
{
    ui_dashboard *d = &ui_features_of(u)->card;
    int page = d->page > 1 ? d->page - 1 : 1;
    switch (key) {
    case 'J': case UI_WHEEL_DOWN: d->top++; break;
    case 'K': case UI_WHEEL_UP: d->top--; break;
    case UI_PAGE_DOWN: d->top += page; break;
    case UI_PAGE_UP: d->top -= page; break;
    case 'e':
        d->wide = !d->wide;
        d->top = 0;
        break;
    }
    d->top = d->top > 0 ? d->top : 0; /* drawing keeps it above the end */
}

/* ---- the part that scrolls: a list of rows, made for each drawing ------------------------------------------------------------------ */

typedef enum row_kind { R_TITLE, R_TEXT, R_EXAMPLE, R_BARS } row_kind;

typedef struct row {
    row_kind kind;
    char *text;           /* owned, or NULL */
    const char *name;     /* before a text */
    const es_example *e;
    int part;             /* of the example, or of the bars */
} row;

typedef struct sheet {
    es_ui *u;
    ui_dashboard *d;
    row *r;
    int n, cap, w;
    bool failed;
} sheet;

static row *add(sheet *s, row_kind kind)
{
    static row spare;
    if (s->n == s->cap) {
        int cap = s->cap ? 2 * s->cap : 128;
        row *r = realloc(s->r, (size_t)cap * sizeof *r);
        if (!r) {
            s->failed = true;
            spare = (row){0};
            return &spare;
        }
        s->r = r;
        s->cap = cap;
    }
    s->r[s->n] = (row){.kind = kind};
    return &s->r[s->n++];
}

static void add_title(sheet *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add_title(sheet *s, const char *fmt, ...)
{
    char text[200];
    va_list a;
    va_start(a, fmt);
    vsnprintf(text, sizeof text, fmt, a);
    va_end(a);
    char *copy = strdup(text);
    row *r = add(s, R_TITLE);
    r->text = copy;
    if (s->failed)
        free(copy);
}

/* A window's text with line ends made visible, and where each token ends in it. */
typedef struct window { es_buf text; int end[64]; int n; } window;

static void window_read(es_ui *u, const es_example *e, window *out)
{
    es_buf raw = {0};
    int end[64];
    *out = (window){.n = e->n < 64 ? e->n : 64};
    if (es_studio_window_text(u->studio, e->id, out->n, &raw, end) < 0)
        out->n = 0;
    const char *mark = ui_sign(u, "↵", "\\n");
    size_t at = 0;
    for (int t = 0; t < out->n; t++) {
        for (; at < (size_t)end[t] && at < raw.len; at++) {
            if (raw.data[at] == '\n' || raw.data[at] == '\r')
                es_buf_str(&out->text, mark);
            else if (raw.data[at] == '\t')
                es_buf_str(&out->text, " ");
            else
                es_buf_add(&out->text, raw.data + at, 1);
        }
        out->end[t] = (int)out->text.len;
    }
    es_buf_free(&raw);
    if (out->text.failed || !out->text.data)
        out->n = 0;
}

static void add_example(sheet *s, const es_example *e)
{
    int parts = 1;
    if (s->d->wide) {
        window win;
        ui_layout l = {0};
        window_read(s->u, e, &win);
        if (win.n && ui_layout_make(&l, s->u->o.unicode, win.text.data, win.text.len, s->w - NUMBER - 1, false))
            parts = l.n;
        ui_layout_free(&l);
        es_buf_free(&win.text);
    }
    for (int i = 0; i < parts; i++) {
        row *r = add(s, R_EXAMPLE);
        r->e = e;
        r->part = i;
    }
}

/* Items, each with its NUL, that flow over at most so many rows, after a name of 11 columns; what does not fit is left out whole. */
static void add_flow(sheet *s, const char *name, const es_buf *items, int most)
{
    const int room = s->w - 12, gap = 3;
    es_buf line = {0};
    int width = 0, rows = 0;
    for (size_t at = 0; at < items->len && !items->failed;) {
        const char *item = items->data + at;
        size_t n = strlen(item);
        int w = ui_width(s->u->o.unicode, item, n);
        bool breaks = width && width + gap + w > room;
        if (breaks) {
            row *r = add(s, R_TEXT);
            r->name = rows++ ? "" : name;
            r->text = s->failed ? NULL : line.data;
            if (s->failed)
                es_buf_free(&line);
            line = (es_buf){0};
            width = 0;
            if (rows == most)
                return;
        }
        es_buf_printf(&line, "%*s%s", width ? gap : 0, "", item);
        width += (width ? gap : 0) + w;
        at += n + 1;
    }
    row *r = line.data ? add(s, R_TEXT) : NULL;
    if (r) {
        r->name = rows ? "" : name;
        r->text = s->failed ? NULL : line.data;
        if (s->failed)
            es_buf_free(&line);
    }
}

static void add_item(es_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add_item(es_buf *b, const char *fmt, ...)
{
    char text[160];
    va_list a;
    va_start(a, fmt);
    vsnprintf(text, sizeof text, fmt, a);
    va_end(a);
    es_buf_add(b, text, strlen(text) + 1);
}

static void add_feature(es_ui *u, es_buf *b, int feature, double value)
{
    const char *name = ui_name(u, feature);
    int n = (int)ui_fit(u->o.unicode, name, strlen(name), 18);
    while (n > 0 && name[n - 1] == ' ')
        n--;
    add_item(b, "%d %.*s%s%.2f", feature, n, name, n ? " " : "", value);
}

static void add_relations(sheet *s, const es_feature_card *c)
{
    const es_dashboard *m = &s->d->more;
    es_buf near = {0}, with = {0}, neurons = {0};
    int most = s->w >= 100 ? 3 : 2;
    add_title(s, s->d->more_there ? "Beside it" : "Beside it: being worked out");
    for (int i = 0; s->d->more_there && i < m->n_neighbour; i++)
        add_feature(s->u, &near, m->neighbour[i], (double)m->cosine[i]);
    for (int i = 0; i < c->n_correlated; i++)
        add_feature(s->u, &with, c->correlated[i], (double)c->pearson[i]);
    for (int i = 0; s->d->more_there && i < m->n_neuron; i++)
        add_item(&neurons, "L%d.%d %+.2f", m->neuron[i].layer, m->neuron[i].neuron, (double)m->neuron[i].cosine);
    add_flow(s, "near", &near, most);
    if (!c->n_correlated)
        add_item(&with, "%s", c->has_logits ? "nothing is active together with it" : "not known: this atlas is of version 1, espalier atlas makes a newer one");
    add_flow(s, "correlated", &with, most);
    add_flow(s, "neurons", &neurons, most);
    es_buf_free(&near);
    es_buf_free(&with);
    es_buf_free(&neurons);
    if (s->d->more_there && m->has_logits) {
        add_title(s, "Logits of a unit of it on the vocabulary, %+.2f to %+.2f", (double)m->logit_lo, (double)m->logit_hi);
        for (int i = 0; i < 4; i++)
            add(s, R_BARS)->part = i;
    }
}

static void add_examples(sheet *s, const es_feature_card *c)
{
    if (!c->n_example) {
        add_title(s, "It never fired on the texts of the atlas");
        return;
    }
    add_title(s, "Strongest: %d examples, largest %.1f", c->n_example, (double)c->max);
    for (int i = 0; i < c->n_example; i++)
        add_example(s, &c->example[i]);
    es_interval in[ES_ATLAS_INTERVALS];
    es_atlas_intervals(c, in);
    for (int i = 0; i < ES_ATLAS_INTERVALS; i++) {
        add_title(s, "%.1f to %.1f: %.3g%% of active tokens%s", (double)in[i].lo, (double)in[i].hi, 100 * in[i].share, in[i].n ? ", drawn at random" : "");
        for (int k = 0; k < in[i].n; k++)
            add_example(s, &c->spread[in[i].first + k]);
    }
}

/* ---- drawing ------------------------------------------------------------------------------------------------------------------------- */

/* One window of text on one row with its peak at column `middle`: examples read best when the peaks stand one below the other. */
static void draw_line(es_ui *u, ui_box in, int y, const es_example *e, const window *win, float max, int middle)
{
    int from = e->peak > 0 && e->peak <= win->n ? win->end[e->peak - 1] : 0, x = middle - ui_width(u->o.unicode, win->text.data, (size_t)from), token = 0;
    for (size_t at = 0; at < win->text.len && x < in.w;) {
        ui_glyph g;
        size_t step = ui_glyph_next(u->o.unicode, win->text.data + at, win->text.len - at, &g);
        while (token < win->n && (size_t)win->end[token] <= at)
            token++;
        ui_style st = token < win->n ? ui_shade(e->value[token], max) : UI_PLAIN;
        ui_putn(u, in, y, x, st, win->text.data + at, step);
        x += g.width;
        at += step;
    }
}

static void draw_example(sheet *s, ui_box b, int y, const row *r)
{
    es_ui *u = s->u;
    const es_example *e = r->e;
    float max = s->d->card.card.max;
    window win;
    window_read(u, e, &win);
    ui_box in = ui_inside(b, 0, 0, 0, NUMBER);
    if (r->part == 0)
        ui_printf(u, b, y, 0, UI_DIM, "%5.1f", (double)(e->peak < e->n ? e->value[e->peak] : e->max));
    if (!s->d->wide && win.n) {
        draw_line(u, in, y, e, &win, max, in.w * 55 / 100);
    } else if (win.n) {
        ui_layout l = {0};
        if (ui_layout_make(&l, u->o.unicode, win.text.data, win.text.len, s->w - NUMBER - 1, false) && r->part < l.n)
            ui_draw_row(u, in, y, 0, UI_PLAIN, &l, r->part, win.text.data, win.end, e->value, win.n, max);
        ui_layout_free(&l);
    }
    es_buf_free(&win.text);
}

static void draw_rows(sheet *s, ui_box b)
{
    ui_dashboard *d = s->d;
    d->rows = s->n;
    d->page = b.h;
    if (d->top > s->n - b.h)
        d->top = s->n > b.h ? s->n - b.h : 0;
    for (int y = 0; y < b.h && d->top + y < s->n; y++) {
        const row *r = &s->r[d->top + y];
        switch (r->kind) {
        case R_TITLE: ui_rule(s->u, b, y, r->text ? r->text : ""); break;
        case R_TEXT:
            ui_put(s->u, b, y, 0, UI_DIM, r->name);
            ui_put_cut(s->u, b, y, 11, b.w - 11, UI_PLAIN, r->text ? r->text : "");
            break;
        case R_EXAMPLE: draw_example(s, b, y, r); break;
        case R_BARS: { /* the histogram's rows are one box, of which some may be out of sight */
            ui_box part = {b.y + y, b.x, 1, b.w < ES_ATLAS_BINS ? b.w : ES_ATLAS_BINS};
            ui_columns_part(s->u, part, UI_LINE2, d->more.logits, ES_ATLAS_BINS, r->part, 4);
            break;
        }
        }
    }
    ui_scrollbar(s->u, ui_inside(b, 0, -1, 0, 0), d->top, b.h, s->n);
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

/* Number, label, what is known of the label; returns the row after it. */
static int draw_head(es_ui *u, ui_box b, int feature, const es_feature_card *c)
{
    const char *label = ui_label(u, feature);
    bool in_basis;
    double coef = ui_coefficient(u, feature, &in_basis);
    int y = 0, x = ui_printf(u, b, y, 0, UI_ACCENT, "%d ", feature);
    char text[200];
    ui_put_cut(u, b, y, x, b.w - x - 20, label ? UI_BOLD : UI_DIM, label ? label : "no label yet: l");
    if (in_basis) {
        snprintf(text, sizeof text, "in basis %+.3f", coef);
        ui_put_right(u, b, y, UI_GOOD, text);
    }
    y++;
    if (!c) {
        ui_put(u, b, y, 0, UI_DIM, u->v->loading ? "the atlas is being opened" : "no examples: this dictionary has no atlas");
        return y + 1;
    }
    snprintf(text, sizeof text, "fires on %.3g%% of tokens, largest %.1f, mean %.1f, 99th percentile %.1f", 100 * c->density, (double)c->max, (double)c->mean, (double)c->p99);
    ui_put_cut(u, b, y++, 0, b.w, UI_PLAIN, text);
    return ui_labelled_draw(u, b, y, feature);
}

void ui_dashboard_draw(es_ui *u, ui_box b, int feature)
{
    ui_dashboard *d = &ui_features_of(u)->card;
    load(u, d, feature);
    const es_feature_card *c = d->card_of == feature ? &d->card.card : NULL;
    b = ui_inside(b, 0, 1, 0, 1);
    int y = draw_head(u, b, feature, c);
    sheet s = {.u = u, .d = d, .w = b.w};
    if (c) {
        int h = b.h >= 30 ? 6 : 4, wide = b.w / 2 - 2 < ES_ATLAS_BINS ? b.w / 2 - 2 : ES_ATLAS_BINS;
        ui_columns(u, (ui_box){b.y + y, b.x, h, wide}, UI_ACCENT, c->histogram, ES_ATLAS_BINS);
        ui_box side = ui_inside(b, 0, 0, 0, wide + 2);
        draw_tokens(u, side, y, h / 2, "promotes", UI_GOOD, c->promoted, c->n_promoted);
        draw_tokens(u, side, y + h / 2, h / 2, "suppresses", UI_WARN, c->suppressed, c->n_suppressed);
        y += h;
        char axis[80];
        snprintf(axis, sizeof axis, "0%*.1f", wide - 1, (double)c->max);
        ui_put(u, b, y++, 0, UI_DIM, axis);
        if (b.h < TALL) /* little room: what people come for first */
            add_examples(&s, c);
        add_relations(&s, c);
        if (b.h >= TALL)
            add_examples(&s, c);
    } else {
        add_relations(&s, &(es_feature_card){.feature = feature});
    }
    draw_rows(&s, ui_inside(b, y, 0, 0, 0));
    for (int i = 0; i < s.n; i++)
        free(s.r[i].text);
    free(s.r);
}
