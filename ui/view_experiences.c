/* Experiences: what the model was taught with, why each counts as it does, and what it moved. */
#include "ui_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LIST = 1, DETAIL = 2, WORDS = 600 };

typedef struct experiences {
    ui_list list;
    bool open;
    int top, rows, page;
} experiences;

static experiences *state(const es_ui *u)
{
    return u->state[UI_EXPERIENCES];
}

static int open_experiences(es_ui *u, void **out)
{
    (void)u;
    *out = calloc(1, sizeof(experiences));
    return *out ? 0 : -1;
}

static void close_experiences(es_ui *u, void *s)
{
    (void)u;
    free(s);
}

static unsigned mode(const es_ui *u)
{
    return state(u)->open ? DETAIL : LIST;
}

/* Newest first. */
static const es_experience_line *line_at(const es_ui *u, int row)
{
    int i = u->v->n_experience - 1 - row;
    return i >= 0 && row >= 0 ? &u->v->experience[i] : NULL;
}

static ui_result key_move(es_ui *u, int key)
{
    experiences *s = state(u);
    int page = s->page > 1 ? s->page - 1 : 1;
    if (s->open && (key == UI_PAGE_DOWN || key == UI_PAGE_UP || key == 'J' || key == 'K')) {
        s->top += key == UI_PAGE_DOWN ? page : key == UI_PAGE_UP ? -page : key == 'J' ? 1 : -1;
        s->top = s->top > s->rows - s->page ? s->rows - s->page : s->top;
        s->top = s->top < 0 ? 0 : s->top;
    } else if (ui_list_key(&s->list, key)) {
        s->top = 0;
    }
    return UI_REDRAW;
}

static ui_result key_open(es_ui *u, int key)
{
    (void)key;
    if (line_at(u, state(u)->list.at)) {
        state(u)->open = true;
        state(u)->top = 0;
    }
    return UI_REDRAW;
}

static ui_result key_back(es_ui *u, int key)
{
    (void)key;
    state(u)->open = false;
    return UI_REDRAW;
}

static ui_result key_include(es_ui *u, int key)
{
    const es_experience_line *l = line_at(u, state(u)->list.at);
    (void)key;
    if (l) {
        es_studio_experience_include(u->studio, l->id, !l->included);
        ui_say(u, UI_PLAIN, l->included ? "#%lld is left out from now on" : "#%lld counts again", (long long)l->id);
    }
    return UI_REDRAW;
}

static const ui_key keys[] = {
    UI_LIST_KEYS(key_move),
    {'J', DETAIL, "scroll", key_move},
    {'K', DETAIL, NULL, key_move},
    {UI_ENTER, LIST, "both replies, and what it moved", key_open},
    {UI_RIGHT, LIST, NULL, key_open},
    {UI_ESC, DETAIL, "back to the list", key_back},
    {UI_LEFT, DETAIL, NULL, key_back},
    {' ', 0, "leave out, or count again", key_include},
    {'x', 0, NULL, key_include},
    {'L', 0, "learn now, on what counts", ui_key_learn},
    {0},
};

static void hint(const es_ui *u, es_buf *out)
{
    if (state(u)->open)
        es_buf_str(out, "j k next   PgDn scrolls   Space leaves it out   Esc list   ? help");
    else
        es_buf_str(out, u->v->n_experience ? "Enter shows it   Space leaves it out   L learn now   ? help" : "? help");
}

static const char *kind(const es_experience *e)
{
    size_t n = e->source ? strlen(e->source) : 0;
    bool drawn = e->preferred && e->rejected && n > 3 && e->source[n - 3] == ':' && e->source[n - 2] == ' '; /* a mark, and a reply drawn to compare */
    return drawn && e->source[n - 1] == '+' ? "+pair" : drawn && e->source[n - 1] == '-' ? "-pair" : e->preferred && e->rejected ? "pair" : e->preferred ? "+" : "-";
}

static const char *question(const es_experience *e)
{
    return e->n_message && e->message[e->n_message - 1].content ? e->message[e->n_message - 1].content : "";
}

static void draw_list(es_ui *u, ui_box b)
{
    experiences *s = state(u);
    const es_view *v = u->v;
    int included = 0;
    for (int i = 0; i < v->n_experience; i++)
        included += v->experience[i].included;
    char title[80];
    snprintf(title, sizeof title, "%d experience%s, %d count", v->n_experience, v->n_experience == 1 ? "" : "s", included);
    ui_put(u, b, 0, 1, UI_BOLD, title);
    int source = b.w >= 100 ? 14 : 8, reason = b.w >= 120 ? 30 : b.w >= 100 ? 22 : 0, text = 26 + source + reason;
    ui_put(u, b, 1, 3, UI_DIM, "  # kind  weight");
    ui_put_cut(u, b, 1, 22, source, UI_DIM, "source");
    if (reason)
        ui_put(u, b, 1, 23 + source, UI_DIM, "why");
    ui_put_cut(u, b, 1, text, b.w - text, UI_DIM, "question, and the reply to learn");
    ui_box in = ui_inside(b, 2, 0, 0, 0);
    ui_list_fit(&s->list, v->n_experience, in.h);
    for (int y = 0; y < in.h && s->list.top + y < v->n_experience; y++) {
        int row = s->list.top + y;
        const es_experience_line *l = line_at(u, row);
        ui_style st = row == s->list.at ? UI_SELECTED : UI_PLAIN, dim = st == UI_PLAIN ? UI_DIM : st, plain = l->included ? st : dim;
        if (st == UI_SELECTED)
            ui_row_fill(u, ui_inside(in, 0, 1, 0, 0), y, st);
        ui_put(u, in, y, 1, st == UI_PLAIN ? UI_GOOD : st, l->included ? ui_sign(u, "✓", "*") : " ");
        ui_printf(u, in, y, 2, plain, "%4lld", (long long)l->id);
        ui_put(u, in, y, 7, plain, kind(&l->e));
        ui_printf(u, in, y, 13, plain, "%6.2f", l->e.weight);
        ui_put_cut(u, in, y, 22, source, dim, l->e.source ? l->e.source : "");
        if (reason)
            ui_put_cut(u, in, y, 23 + source, reason - 1, dim, l->reason);
        es_buf q = {0}, a = {0};
        ui_oneline(&q, question(&l->e), strlen(question(&l->e)));
        const char *reply = l->e.preferred ? l->e.preferred : l->e.rejected ? l->e.rejected : "";
        ui_oneline(&a, reply, strnlen(reply, 400));
        int half = (in.w - text - 2) / 2;
        if (q.data)
            ui_put_cut(u, in, y, text, half, plain, q.data);
        if (a.data)
            ui_put_cut(u, in, y, text + half + 1, half, dim, a.data);
        es_buf_free(&q);
        es_buf_free(&a);
    }
    ui_scrollbar(u, in, s->list.top, in.h, v->n_experience);
}

/* ---- one experience ---- */

typedef struct word { int start, end; bool common; } word;

static int split(const char *s, word *w)
{
    int n = 0, at = 0;
    while (s[at] && n < WORDS) {
        while (s[at] == ' ' || s[at] == '\n' || s[at] == '\t')
            at++;
        int start = at;
        while (s[at] && s[at] != ' ' && s[at] != '\n' && s[at] != '\t')
            at++;
        if (at > start)
            w[n++] = (word){start, at, false};
    }
    return n;
}

/* Marks the words that both have, in order (longest common subsequence). */
static void common_words(const char *a, word *x, int n, const char *b, word *y, int m)
{
    uint16_t *t = calloc((size_t)(n + 1) * (size_t)(m + 1), sizeof *t);
    if (!t)
        return;
#define AT(i, j) t[(size_t)(i) * (size_t)(m + 1) + (size_t)(j)]
#define SAME(i, j) (x[i].end - x[i].start == y[j].end - y[j].start && !memcmp(a + x[i].start, b + y[j].start, (size_t)(x[i].end - x[i].start)))
    for (int i = n - 1; i >= 0; i--)
        for (int j = m - 1; j >= 0; j--)
            AT(i, j) = SAME(i, j) ? (uint16_t)(AT(i + 1, j + 1) + 1) : AT(i + 1, j) > AT(i, j + 1) ? AT(i + 1, j) : AT(i, j + 1);
    for (int i = 0, j = 0; i < n && j < m;) {
        if (SAME(i, j))
            x[i++].common = y[j++].common = true;
        else if (AT(i + 1, j) >= AT(i, j + 1))
            i++;
        else
            j++;
    }
#undef AT
#undef SAME
    free(t);
}

/* One line after another into a box that is scrolled by state->top. */
static int row_box(const es_ui *u, ui_box b, int row)
{
    int y = row - state(u)->top;
    return y >= 0 && y < b.h ? y : -1;
}

static int text_rows(es_ui *u, ui_box b, int row, const char *text, ui_style s, const word *w, int n_word, ui_style changed)
{
    ui_layout l = {0};
    size_t n = strlen(text);
    ui_layout_make(&l, u->o.unicode, text, n, b.w - 3, false);
    int k = 0;
    for (int i = 0; i < l.n; i++, row++) {
        int y = row_box(u, b, row);
        if (y < 0)
            continue;
        int x = 2;
        for (int at = l.row[i].start; at < l.row[i].end;) {
            while (k < n_word && w[k].end <= at)
                k++;
            while (k > 0 && w[k - 1].end > at) /* rows out of sight were passed over */
                k--;
            bool inside = k < n_word && at >= w[k].start;
            int to = k < n_word ? (inside ? w[k].end : w[k].start) : l.row[i].end;
            if (to > l.row[i].end)
                to = l.row[i].end;
            x = ui_putn(u, b, y, x, inside && !w[k].common ? changed : s, text + at, (size_t)(to - at));
            at = to;
        }
    }
    ui_layout_free(&l);
    return row;
}

static int heading(es_ui *u, ui_box b, int row, ui_style s, const char *text)
{
    int y = row_box(u, b, row);
    if (y >= 0)
        ui_put_cut(u, b, y, 1, b.w - 2, s, text);
    return row + 1;
}

typedef struct moved { int feature; float by; } moved;

static int by_size(const void *a, const void *b)
{
    float x = fabsf(((const moved *)a)->by), y = fabsf(((const moved *)b)->by);
    return x < y ? 1 : x > y ? -1 : 0;
}

static int influence_rows(es_ui *u, ui_box b, int row, int64_t id)
{
    const es_view *v = u->v;
    int at = -1;
    for (int i = 0; i < v->n_influence; i++)
        if (v->influence_experience[i] == id)
            at = i;
    if (at < 0 || !v->influence)
        return heading(u, b, row, UI_DIM, "The snapshot in use did not learn from it.");
    moved *m = calloc((size_t)(v->n_basis ? v->n_basis : 1), sizeof *m);
    if (!m)
        return row;
    for (int i = 0; i < v->n_basis; i++)
        m[i] = (moved){v->basis_feature[i], v->influence[(size_t)at * (size_t)v->n_basis + (size_t)i]};
    qsort(m, (size_t)v->n_basis, sizeof *m, by_size);
    row = heading(u, b, row, UI_BOLD, "What it moved in the snapshot in use");
    float most = v->n_basis && m[0].by != 0 ? fabsf(m[0].by) : 1;
    for (int i = 0; i < v->n_basis && i < 12; i++, row++) {
        int y = row_box(u, b, row);
        if (y < 0)
            continue;
        ui_printf(u, b, y, 2, UI_PLAIN, "%+8.3f", (double)m[i].by);
        ui_bar_signed(u, b, y, 11, 15, (double)(m[i].by / most));
        int x = ui_printf(u, b, y, 28, UI_ACCENT, "%d ", m[i].feature);
        ui_put_cut(u, b, y, x, b.w - x - 2, UI_PLAIN, ui_name(u, m[i].feature));
    }
    free(m);
    return row;
}

static void draw_detail(es_ui *u, ui_box b)
{
    experiences *s = state(u);
    const es_experience_line *l = line_at(u, s->list.at);
    if (!l)
        return;
    const es_experience *e = &l->e;
    char text[400];
    snprintf(text, sizeof text, "#%lld %s, %s, weight %.2f%s%.160s", (long long)l->id, kind(e), l->included ? "counts" : "left out", e->weight, *l->reason ? ": " : "", l->reason);
    ui_put_cut(u, b, 0, 1, b.w - 2, UI_BOLD, text);
    snprintf(text, sizeof text, "from %.60s, %.40s; %d message%s", e->source ? e->source : "?", e->time ? e->time : "?", e->n_message, e->n_message == 1 ? "" : "s");
    ui_put_cut(u, b, 1, 1, b.w - 2, UI_DIM, text);
    ui_box in = ui_inside(b, 3, 0, 0, 0);
    ui_list_fit(&s->list, u->v->n_experience, in.h);
    s->page = in.h;
    word *w = calloc(2 * WORDS, sizeof *w);
    if (!w)
        return;
    int n = e->preferred ? split(e->preferred, w) : 0, m = e->rejected ? split(e->rejected, w + WORDS) : 0, row = 0;
    bool both = e->preferred && e->rejected;
    if (both)
        common_words(e->preferred, w, n, e->rejected, w + WORDS, m);
    char mark = *kind(e);
    bool stated = e->source && !strncmp(e->source, "prefer: ", 8);
    const char *learn = mark == '+' ? "+ to learn (you liked it)" : mark == '-' ? "+ to learn (the model, asked again)" : stated ? "+ to learn (with the preference)" : "+ to learn (your version)";
    const char *unlearn = mark == '+' ? "- to unlearn (the model, asked again)" : mark == '-' ? "- to unlearn (you disliked it)" : stated ? "- to unlearn (without)" : "- to unlearn (what the model said)";
    row = heading(u, in, row, UI_BOLD, "Question");
    row = text_rows(u, in, row, question(e), UI_PLAIN, NULL, 0, UI_PLAIN) + 1;
    if (e->preferred) {
        row = heading(u, in, row, UI_GOOD, both ? learn : "+ liked");
        row = text_rows(u, in, row, e->preferred, UI_PLAIN, w, both ? n : 0, UI_GOOD) + 1;
    }
    if (e->rejected) {
        row = heading(u, in, row, UI_BAD, both ? unlearn : "- disliked");
        row = text_rows(u, in, row, e->rejected, UI_PLAIN, w + WORDS, both ? m : 0, UI_BAD) + 1;
    }
    free(w);
    row = influence_rows(u, in, row, l->id);
    s->rows = row;
    if (s->top > row - in.h)
        s->top = row > in.h ? row - in.h : 0;
    ui_scrollbar(u, in, s->top, in.h, row);
}

static void draw(es_ui *u, ui_box b)
{
    if (u->v->n_experience == 0) {
        static const char *const lines[] = {
            "No experiences yet.",
            "",
            "In Chat (F1): + or - on a reply is one; a correction (e) is worth more, because it",
            "says what to say instead. Each can be left out again here.",
        };
        for (int i = 0; i < 4; i++)
            ui_put_cut(u, b, 2 + i, 2, b.w - 3, i ? UI_PLAIN : UI_BOLD, lines[i]);
        state(u)->open = false;
    } else if (state(u)->open) {
        draw_detail(u, b);
    } else {
        draw_list(u, b);
    }
}

const ui_view ui_experiences = {
    .name = "Experiences", .letter = 'e', .keys = keys,
    .help = {"A pair says what to say and what not; + and - are single replies. Weight: how much it", "counts, with the reason. What is left out stays here and can count again."},
    .open = open_experiences, .close = close_experiences, .mode = mode, .hint = hint, .draw = draw,
};
