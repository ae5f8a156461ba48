/* Drift: what learning did to each coefficient, which experiences did it, and the way back. */
#include "ui_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FEATURES = 1, SNAPSHOTS = 2, WIDE = 130 };

typedef struct drift {
    unsigned mode;
    ui_list list, snapshots; /* snapshots: newest first, the base model last */
    bool several, as_chosen; /* order: what moved most, or as in the basis */
    int *order, n_order;     /* positions in the basis, in the order of the rows */
    int selected;            /* a feature, so that the selection stays on it when the order changes */
    int64_t pending;
} drift;

static drift *state(const es_ui *u)
{
    return u->state[UI_DRIFT];
}

static int open_drift(es_ui *u, void **out)
{
    (void)u;
    drift *d = calloc(1, sizeof *d);
    if (d)
        d->mode = FEATURES;
    *out = d;
    return d ? 0 : -1;
}

static void close_drift(es_ui *u, void *s)
{
    (void)u;
    free(((drift *)s)->order);
    free(s);
}

/* Coefficients [n_basis] to show: while a round runs those of its last step, otherwise those in use. NULL: none. */
static const float *now(const es_ui *u)
{
    const es_view *v = u->v;
    bool runs = (v->learning == ES_LEARN_STEPPING || v->learning == ES_LEARN_CHECKING) && v->n_step > 0 && v->history;
    return runs ? v->history + (size_t)(v->n_step - 1) * (size_t)v->n_basis : v->coefficient;
}

static int by_coefficient(const void *a, const void *b, void *user)
{
    const float *c = user;
    int i = *(const int *)a, j = *(const int *)b;
    float x = fabsf(c[i]), y = fabsf(c[j]);
    return x < y ? 1 : x > y ? -1 : i - j;
}

static void update(es_ui *u)
{
    drift *d = state(u);
    const es_view *v = u->v;
    if (d->n_order != v->n_basis) {
        int *order = realloc(d->order, (size_t)(v->n_basis ? v->n_basis : 1) * sizeof *order);
        if (!order)
            return;
        d->order = order;
        d->n_order = v->n_basis;
    }
    for (int i = 0; i < d->n_order; i++)
        d->order[i] = i;
    if (!d->as_chosen && now(u))
        qsort_r(d->order, (size_t)d->n_order, sizeof *d->order, by_coefficient, (void *)(uintptr_t)now(u));
    d->list.n = d->n_order;
    for (int i = 0; i < d->n_order && d->list.at > 0; i++) /* the first row stays the first row */
        if (v->basis_feature[d->order[i]] == d->selected)
            d->list.at = i;
}

/* Position in the basis of the selected row, -1 when there is none. */
static int position(const es_ui *u)
{
    const drift *d = state(u);
    return d->list.at >= 0 && d->list.at < d->n_order && d->n_order == u->v->n_basis ? d->order[d->list.at] : -1;
}

static unsigned mode(const es_ui *u)
{
    return state(u)->mode;
}

/* The snapshot of a row of the list; NULL is the base model. */
static const es_snapshot_line *snapshot_at(const es_ui *u, int row)
{
    int i = u->v->n_snapshot - 1 - row;
    return i >= 0 ? &u->v->snapshots[i] : NULL;
}

/* ---- keys ---- */

static ui_result key_move(es_ui *u, int key)
{
    drift *d = state(u);
    ui_list_key(d->mode == SNAPSHOTS ? &d->snapshots : &d->list, key);
    if (position(u) >= 0)
        d->selected = u->v->basis_feature[position(u)];
    return UI_REDRAW;
}

static ui_result key_order(es_ui *u, int key)
{
    drift *d = state(u);
    (void)key;
    d->as_chosen = !d->as_chosen;
    d->list.at = d->list.top = 0;
    update(u);
    ui_say(u, UI_PLAIN, d->as_chosen ? "in the order of the basis" : "what moved most first");
    return UI_REDRAW;
}

static ui_result key_snapshots(es_ui *u, int key)
{
    drift *d = state(u);
    (void)key;
    d->mode = d->mode == SNAPSHOTS ? FEATURES : SNAPSHOTS;
    if (d->mode == SNAPSHOTS) {
        d->snapshots.at = u->v->n_snapshot; /* the one in use */
        for (int i = 0; i < u->v->n_snapshot; i++)
            if (snapshot_at(u, i)->id == u->v->snapshot)
                d->snapshots.at = i;
    }
    return UI_REDRAW;
}

static void rollback_now(es_ui *u)
{
    es_studio_rollback(u->studio, state(u)->pending);
    state(u)->mode = FEATURES;
}

static ui_result key_rollback(es_ui *u, int key)
{
    drift *d = state(u);
    (void)key;
    if (d->mode != SNAPSHOTS) {
        key_snapshots(u, 0);
        ui_say(u, UI_PLAIN, "choose where to go back to, then R; the base model is the last row");
        return UI_REDRAW;
    }
    const es_snapshot_line *s = snapshot_at(u, d->snapshots.at);
    d->pending = s ? s->id : 0;
    if (d->pending == u->v->snapshot) {
        ui_say(u, UI_PLAIN, "that is what is in use; j and k choose another");
        return UI_REDRAW;
    }
    char text[120];
    if (s)
        snprintf(text, sizeof text, "Go back to snapshot #%lld?", (long long)s->id);
    else
        snprintf(text, sizeof text, "Go back to the base model? Snapshots and experiences stay.");
    ui_ask(u, text, rollback_now);
    return UI_REDRAW;
}

static ui_result key_open(es_ui *u, int key)
{
    (void)key;
    if (position(u) >= 0)
        ui_open_feature(u, u->v->basis_feature[position(u)]);
    return UI_REDRAW;
}

static ui_result key_several(es_ui *u, int key)
{
    (void)key;
    state(u)->several = !state(u)->several;
    return UI_REDRAW;
}

static ui_result key_cancel(es_ui *u, int key)
{
    (void)key;
    es_studio_learn_cancel(u->studio);
    return UI_REDRAW;
}

static const ui_key keys[] = {
    UI_LIST_KEYS(key_move),
    {UI_ENTER, FEATURES, "open the feature's dashboard", key_open},
    {UI_RIGHT, FEATURES, NULL, key_open},
    {'o', FEATURES, "order: what moved most, or as in the basis", key_order},
    {'m', FEATURES, "plot the three that moved most as well", key_several},
    {'s', 0, "snapshots, and back to the features", key_snapshots},
    {'R', 0, "roll back to a snapshot or to the base model", key_rollback},
    {UI_ENTER, SNAPSHOTS, NULL, key_rollback},
    {'c', 0, "ask base and adapted the same, side by side", ui_key_compare},
    {'a', 0, "answer with or without the adapter", ui_key_adapter},
    {'L', 0, "learn now", ui_key_learn},
    {'p', 0, "pause or resume learning", ui_key_pause},
    {'X', 0, "give up the learning that runs", key_cancel},
    {UI_ESC, SNAPSHOTS, "back to the features", key_snapshots},
    {0},
};

static void hint(const es_ui *u, es_buf *out)
{
    if (state(u)->mode == SNAPSHOTS)
        es_buf_str(out, "R rolls back to it   Esc features   c compare   ? help");
    else
        es_buf_str(out, "Enter dashboard  m more lines  s snapshots  R roll back  c compare  ? help");
}

/* ---- drawing ---- */

static void draw_list(es_ui *u, ui_box b)
{
    drift *d = state(u);
    const es_view *v = u->v;
    int spark = b.w >= 100 ? 24 : 16, right = b.w - 30 - spark;
    float most = 1e-9f;
    const float *value = now(u);
    for (int i = 0; i < v->n_basis; i++)
        most = value && fabsf(value[i]) > most ? fabsf(value[i]) : most;
    ui_put_cut(u, b, 0, 8, right - 9, UI_DIM, "label, or its tokens");
    ui_put(u, b, 0, right, UI_DIM, value == v->coefficient ? "     now" : "this step");
    ui_put(u, b, 0, right + 22, UI_DIM, "over steps");
    ui_put(u, b, 0, right + 23 + spark, UI_DIM, " s/n");
    ui_put(u, b, 0, 1, UI_DIM, "number");
    ui_box in = ui_inside(b, 1, 0, 0, 0);
    ui_list_fit(&d->list, v->n_basis, in.h);
    for (int y = 0; y < in.h && d->list.top + y < v->n_basis; y++) {
        int row = d->list.top + y, i = row < d->n_order ? d->order[row] : row, f = v->basis_feature[i];
        ui_style s = row == d->list.at ? UI_SELECTED : UI_PLAIN, dim = s == UI_PLAIN ? UI_DIM : s;
        if (s == UI_SELECTED)
            ui_row_fill(u, ui_inside(in, 0, 1, 0, 0), y, s);
        const char *label = ui_label(u, f);
        float c = value ? value[i] : 0;
        ui_printf(u, in, y, 1, s, "%6d", f);
        ui_put_cut(u, in, y, 8, right - 9, label ? s : dim, label ? label : ui_tokens(u, f));
        ui_printf(u, in, y, right, s, "%+8.3f", (double)c);
        ui_bar_signed(u, in, y, right + 9, 11, (double)(c / most));
        if (v->n_step > 0 && v->history)
            ui_spark(u, in, y, right + 22, spark, s == UI_SELECTED ? s : UI_ACCENT, v->history + i, v->n_step, v->n_basis);
        if (v->snr && isfinite(v->snr[i]))
            ui_printf(u, in, y, right + 22 + spark, dim, "%5.1f", (double)v->snr[i]);
    }
    ui_scrollbar(u, in, d->list.top, in.h, v->n_basis);
}

/* The directions that are learned along, and how far the adapter in use went; returns the rows it took. */
static int draw_directions(es_ui *u, ui_box b)
{
    const es_view *v = u->v;
    es_buf text = {0};
    for (int i = 0; i < v->n_direction; i++) {
        const es_direction_line *l = &v->direction[i];
        if (!l->used)
            continue;
        es_buf_printf(&text, "%s%s ", text.len ? ", " : "along ", l->name);
        if (l->snapshot && l->snapshot == v->snapshot)
            es_buf_printf(&text, "%+.4f of |h|", l->amplitude);
        else
            es_buf_str(&text, "(not learned yet)");
    }
    if (text.data && b.h > 3)
        ui_put_cut(u, b, 0, 1, b.w - 1, UI_ACCENT, text.data);
    int rows = text.data && b.h > 3;
    es_buf_free(&text);
    return rows;
}

static void draw_plot(es_ui *u, ui_box b)
{
    drift *d = state(u);
    const es_view *v = u->v;
    ui_series line[4];
    int which[4], n = 0;
    int at = position(u);
    if (at < 0)
        return;
    const float *value = now(u);
    if (d->several && value) { /* the three that moved most, under the selected one */
        for (int k = 0; k < 3; k++) {
            int best = -1;
            for (int i = 0; i < v->n_basis; i++) {
                bool had = i == at;
                for (int j = 0; j < n; j++)
                    had = had || which[j] == i;
                if (!had && (best < 0 || fabsf(value[i]) > fabsf(value[best])))
                    best = i;
            }
            if (best >= 0)
                which[n++] = best;
        }
    }
    which[n++] = at;
    static const ui_style style[3] = {UI_LINE2, UI_LINE3, UI_GOOD};
    for (int i = 0; i < n; i++)
        line[i] = (ui_series){v->history + which[i], v->n_step, v->n_basis, i == n - 1 ? UI_ACCENT : style[i]};
    char title[200];
    int f = v->basis_feature[at];
    const char *name = ui_name(u, f);
    snprintf(title, sizeof title, "%d %.*s over %d step%s", f, (int)ui_fit(u->o.unicode, name, strlen(name), b.w - 24 > 0 ? b.w - 24 : 0), name, v->n_step, v->n_step == 1 ? "" : "s");
    ui_rule(u, b, 0, title);
    b = ui_inside(b, 1, 1, 0, 0);
    if (n > 1 && b.h > 4) {
        int x = 9;
        for (int i = n - 1; i >= 0 && x < b.w; i--) {
            x = ui_put(u, b, b.h - 1, x, line[i].style, ui_sign(u, "━ ", "- "));
            x = ui_printf(u, b, b.h - 1, x, UI_DIM, "%d  ", v->basis_feature[which[i]]);
        }
        b.h--;
    }
    if (v->n_step < 2) {
        ui_put(u, b, 0, 2, UI_DIM, "drawn from the second step on");
        return;
    }
    ui_plot(u, b, line, n, v->mark_step, v->n_mark);
}

typedef struct part { int64_t id; float value; } part;

static int by_size(const void *a, const void *b)
{
    float x = fabsf(((const part *)a)->value), y = fabsf(((const part *)b)->value);
    return x < y ? 1 : x > y ? -1 : 0;
}

static void preview(const es_ui *u, int64_t id, es_buf *out)
{
    for (int i = 0; i < u->v->n_experience; i++)
        if (u->v->experience[i].id == id) {
            const es_experience *e = &u->v->experience[i].e;
            if (e->n_message)
                ui_oneline(out, e->message[e->n_message - 1].content, strlen(e->message[e->n_message - 1].content));
            return;
        }
    es_buf_str(out, "(removed)");
}

static void draw_influence(es_ui *u, ui_box b)
{
    const es_view *v = u->v;
    int at = position(u);
    ui_rule(u, b, 0, "What moved it");
    b = ui_inside(b, 1, 1, 0, 1);
    if (at < 0)
        return;
    if (!v->n_influence || !v->influence) {
        ui_put_cut(u, b, 0, 0, b.w, UI_DIM, v->snapshot ? "nothing is recorded for this snapshot" : "the base model: nothing has");
        return;
    }
    part *p = calloc((size_t)v->n_influence, sizeof *p);
    if (!p)
        return;
    float rest = v->influence[(size_t)v->n_influence * (size_t)v->n_basis + (size_t)at], sum = rest, most = fabsf(rest);
    for (int i = 0; i < v->n_influence; i++) {
        p[i] = (part){v->influence_experience[i], v->influence[(size_t)i * (size_t)v->n_basis + (size_t)at]};
        sum += p[i].value;
        most = fabsf(p[i].value) > most ? fabsf(p[i].value) : most;
    }
    qsort(p, (size_t)v->n_influence, sizeof *p, by_size);
    int room = b.h - 2, shown = v->n_influence <= room ? v->n_influence : room - 1, y = 0;
    int bar = b.w >= 50 ? 11 : 7;
    most = most > 0 ? most : 1;
    for (int i = 0; i < shown; i++, y++) {
        es_buf text = {0};
        ui_printf(u, b, y, 0, UI_PLAIN, "%+7.3f", (double)p[i].value);
        ui_bar_signed(u, b, y, 8, bar, (double)(p[i].value / most));
        int x = ui_printf(u, b, y, 9 + bar, UI_ACCENT, "#%lld ", (long long)p[i].id);
        preview(u, p[i].id, &text);
        if (text.data)
            ui_put_cut(u, b, y, x, b.w - x, UI_PLAIN, text.data);
        es_buf_free(&text);
    }
    if (shown < v->n_influence && shown >= 0) {
        float others = 0;
        for (int i = shown; i < v->n_influence; i++)
            others += p[i].value;
        ui_printf(u, b, y, 0, UI_PLAIN, "%+7.3f", (double)others);
        ui_printf(u, b, y++, 9 + bar, UI_DIM, "%d others", v->n_influence - shown);
    }
    ui_printf(u, b, y, 0, UI_PLAIN, "%+7.3f", (double)rest);
    ui_bar_signed(u, b, y, 8, bar, (double)(rest / most));
    ui_put_cut(u, b, y++, 9 + bar, b.w - 9 - bar, UI_DIM, "no single experience");
    ui_printf(u, b, y, 0, UI_BOLD, "%+7.3f", (double)sum);
    ui_put_cut(u, b, y, 9 + bar, b.w - 9 - bar, UI_BOLD, "the whole change");
    free(p);
}

static void draw_snapshots(es_ui *u, ui_box b)
{
    drift *d = state(u);
    const es_view *v = u->v;
    ui_put(u, b, 0, 1, UI_DIM, "snapshot  time      steps  from    gain      KL  gate");
    ui_box in = ui_inside(b, 1, 0, 0, 0);
    ui_list_fit(&d->snapshots, v->n_snapshot + 1, in.h);
    for (int y = 0; y < in.h && d->snapshots.top + y <= v->n_snapshot; y++) {
        int row = d->snapshots.top + y;
        const es_snapshot_line *l = snapshot_at(u, row);
        ui_style s = row == d->snapshots.at ? UI_SELECTED : UI_PLAIN, dim = s == UI_PLAIN ? UI_DIM : s;
        if (s == UI_SELECTED)
            ui_row_fill(u, ui_inside(in, 0, 1, 0, 0), y, s);
        bool used = (l ? l->id : 0) == v->snapshot;
        ui_put(u, in, y, 0, s == UI_PLAIN ? UI_GOOD : s, used ? ui_sign(u, "▶", ">") : " ");
        if (!l) {
            ui_put(u, in, y, 1, s, "base");
            ui_put(u, in, y, 11, dim, "the model as it came");
            continue;
        }
        const char *t = strchr(l->time, 'T');
        ui_printf(u, in, y, 1, s, "#%lld", (long long)l->id);
        ui_printf(u, in, y, 11, dim, "%.5s", t ? t + 1 : l->time);
        ui_printf(u, in, y, 20, s, "%6d %5d  %+6.3f %7.4f", l->steps, l->experiences, l->gain, l->kl);
        ui_put(u, in, y, 50, s == UI_SELECTED ? s : l->passed ? UI_GOOD : UI_BAD, l->passed ? "passed" : "failed");
        ui_put_cut(u, in, y, 58, in.w - 60, dim, l->note);
    }
    ui_scrollbar(u, in, d->snapshots.top, in.h, v->n_snapshot + 1);
}

/* Coefficients of the chosen snapshot beside those in use. */
static void draw_difference(es_ui *u, ui_box b)
{
    drift *d = state(u);
    const es_view *v = u->v;
    const es_snapshot_line *s = snapshot_at(u, d->snapshots.at);
    char title[100];
    if (s)
        snprintf(title, sizeof title, "Snapshot #%lld beside what is in use", (long long)s->id);
    else
        snprintf(title, sizeof title, "The base model beside what is in use");
    ui_rule(u, b, 0, title);
    b = ui_inside(b, 1, 1, 0, 1);
    if (s && (s->n != v->n_basis || strcmp(s->basis, v->basis_name) || s->basis_version != v->basis_version)) {
        ui_printf(u, b, 0, 0, UI_DIM, "it belongs to basis %.60s, version %d, with %d features", s->basis, s->basis_version, s->n);
        return;
    }
    part *p = calloc((size_t)(v->n_basis ? v->n_basis : 1), sizeof *p);
    if (!p)
        return;
    for (int i = 0; i < v->n_basis; i++)
        p[i] = (part){i, (v->coefficient ? v->coefficient[i] : 0) - (s && s->coefficient ? s->coefficient[i] : 0)};
    qsort(p, (size_t)v->n_basis, sizeof *p, by_size);
    float most = v->n_basis && p[0].value != 0 ? fabsf(p[0].value) : 1;
    ui_put(u, b, 0, 0, UI_DIM, "    then     now  difference");
    for (int y = 1; y < b.h && y <= v->n_basis; y++) {
        int i = (int)p[y - 1].id, f = v->basis_feature[i];
        float now = v->coefficient ? v->coefficient[i] : 0;
        ui_printf(u, b, y, 0, UI_PLAIN, "%+8.3f%+8.3f  %+8.3f", (double)(now - p[y - 1].value), (double)now, (double)p[y - 1].value);
        ui_bar_signed(u, b, y, 27, 11, (double)(p[y - 1].value / most));
        int x = ui_printf(u, b, y, 40, UI_ACCENT, "%d ", f);
        ui_put_cut(u, b, y, x, b.w - x, UI_PLAIN, ui_name(u, f));
    }
    free(p);
}

static void draw(es_ui *u, ui_box b)
{
    drift *d = state(u);
    const es_view *v = u->v;
    if (v->n_basis == 0 || (v->n_step == 0 && v->n_snapshot == 0)) {
        static const char *const lines[] = {
            "Nothing was learned yet.",
            "",
            "Rate a reply with + or -, or correct one (e in Chat): the model learns from",
            "it in the background. Here you will see the coefficient of each feature move,",
            "which of your experiences moved it, and the snapshots you can go back to.",
        };
        for (int i = 0; i < 5; i++)
            ui_put_cut(u, b, 2 + i, 2, b.w - 3, i ? UI_PLAIN : UI_BOLD, lines[i]);
        if (v->n_basis == 0 && v->n_features > 0)
            ui_put_cut(u, b, 8, 2, b.w - 3, UI_WARN, "There is no basis in use: choose one first in Basis (F3).");
        return;
    }
    char title[240];
    int n = snprintf(title, sizeof title, "%.40s, version %d: %d steps, ", v->basis_name, v->basis_version, v->n_step);
    if (v->snapshot)
        n += snprintf(title + n, sizeof title - (size_t)n, "snapshot #%lld in use%s", (long long)v->snapshot, v->adapter_on ? "" : " but switched off");
    else
        n += snprintf(title + n, sizeof title - (size_t)n, "base model in use");
    double loss = v->n_step > 0 && v->step_loss ? (double)v->step_loss[v->n_step - 1] : NAN, kl = v->n_step > 0 && v->step_kl ? (double)v->step_kl[v->n_step - 1] : NAN;
    if (isfinite(loss)) /* not kept over a restart */
        n += snprintf(title + n, sizeof title - (size_t)n, "; loss %.3f", loss);
    if (isfinite(kl))
        snprintf(title + n, sizeof title - (size_t)n, "%s KL %.4f", isfinite(loss) ? "," : ";", kl);
    ui_put_cut(u, b, 0, 1, b.w - 2, UI_BOLD, title);
    b = ui_inside(b, 1, 0, 0, 0);
    int top = b.h * 45 / 100;
    if (d->mode == SNAPSHOTS) {
        draw_snapshots(u, (ui_box){b.y, b.x, top, b.w});
        draw_difference(u, (ui_box){b.y + top, b.x, b.h - top, b.w});
        return;
    }
    ui_box list, plot, influence;
    if (b.w >= WIDE) {
        int left = b.w / 2;
        list = (ui_box){b.y, b.x, b.h, left};
        plot = (ui_box){b.y, b.x + left + 1, b.h / 2, b.w - left - 1};
        influence = (ui_box){b.y + b.h / 2, b.x + left + 1, b.h - b.h / 2, b.w - left - 1};
        ui_wall(u, b, left);
    } else {
        int left = b.w * 54 / 100;
        list = (ui_box){b.y, b.x, top, b.w};
        plot = (ui_box){b.y + top, b.x, b.h - top, left};
        influence = (ui_box){b.y + top, b.x + left, b.h - top, b.w - left};
    }
    draw_list(u, ui_inside(list, draw_directions(u, list), 0, 0, 0));
    if (v->n_step > 0 && v->history)
        draw_plot(u, plot);
    else {
        ui_rule(u, plot, 0, "Steps");
        ui_put_cut(u, ui_inside(plot, 1, 0, 0, 2), 0, 0, plot.w - 3, UI_DIM, "drawn as learning goes on");
    }
    draw_influence(u, influence);
}

const ui_view ui_drift = {
    .name = "Drift", .letter = 'd', .keys = keys,
    .help = {"Coefficients say how much of each feature the model adds to its residual; s/n: how far", "the experiences agree about it. Marks under the plot: where an experience came in.",
             "Influence adds up to the change; what no experience accounts for has its own line."},
    .open = open_drift, .close = close_drift, .update = update, .mode = mode, .hint = hint, .draw = draw,
};
