/* Jobs: what runs in the background, how far it is, and how to stop it. */
#include "view_jobs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

ui_jobs_state *ui_jobs_of(const es_ui *u)
{
    return u->state[UI_JOBS];
}

static ui_list *state(const es_ui *u)
{
    return &ui_jobs_of(u)->list;
}

static int open_jobs(es_ui *u, void **out)
{
    (void)u;
    *out = calloc(1, sizeof(ui_jobs_state));
    return *out ? 0 : -1;
}

static void close_jobs(es_ui *u, void *s)
{
    ui_jobs_state *j = s;
    (void)u;
    if (j) {
        ui_making_free(&j->making);
        ui_layout_free(&j->detail);
    }
    free(j);
}

static ui_result key_move(es_ui *u, int key)
{
    ui_list_key(state(u), key);
    return UI_REDRAW;
}

static ui_result key_cancel(es_ui *u, int key)
{
    int at = state(u)->at;
    (void)key;
    if (at >= u->v->n_job || (!u->v->job[at].running && !u->v->job[at].cancelled)) {
        ui_say(u, UI_PLAIN, "this one does not run");
        return UI_REDRAW;
    }
    es_studio_job_cancel(u->studio, u->v->job[at].id);
    ui_say(u, UI_PLAIN, u->v->job[at].running ? "asked to stop" : "forgotten; its folder stays as it is");
    return UI_REDRAW;
}

static ui_result key_again(es_ui *u, int key)
{
    int at = state(u)->at;
    (void)key;
    if (at >= u->v->n_job || u->v->job[at].running || !u->v->job[at].cancelled)
        ui_say(u, UI_PLAIN, "nothing here was stopped");
    else
        es_studio_make_again(u->studio, u->v->job[at].id);
    return UI_REDRAW;
}

static const ui_key keys[] = {
    UI_LIST_KEYS(key_move),
    {'x', 0, "cancel; what can resume will (again: forget it)", key_cancel},
    {UI_DELETE, 0, NULL, key_cancel},
    {'n', 0, "train a dictionary, or store activations, from texts", ui_key_make},
    {'r', 0, "go on with a training that was stopped", key_again},
    {0},
};

static void hint(const es_ui *u, es_buf *out)
{
    const es_view *v = u->v;
    int at = state(u)->at;
    if (ui_jobs_of(u)->making.open) {
        ui_making_hint(u, out);
        return;
    }
    es_buf_str(out, at < v->n_job && v->job[at].running ? "x cancels   " : at < v->n_job && v->job[at].cancelled ? "r goes on   x forgets   " : "");
    es_buf_str(out, "n new training   ? help");
}

static void span(char *out, size_t n, double seconds)
{
    if (!(seconds >= 0) || seconds > 360000)
        snprintf(out, n, "-");
    else if (seconds < 100)
        snprintf(out, n, "%.0f s", seconds);
    else if (seconds < 6000)
        snprintf(out, n, "%.0f min", seconds / 60);
    else
        snprintf(out, n, "%.1f h", seconds / 3600);
}

/* All of what the chosen job says: a training's figures are longer than a row has room for. */
static void draw_detail(es_ui *u, ui_box b)
{
    ui_jobs_state *s = ui_jobs_of(u);
    const char *text = u->v->job[s->list.at].what;
    ui_rule(u, b, 0, NULL);
    ui_layout_make(&s->detail, u->o.unicode, text, strlen(text), b.w - 2, false);
    for (int y = 0; y + 1 < b.h && y < s->detail.n; y++)
        ui_draw_row(u, b, y + 1, 1, UI_PLAIN, &s->detail, y, text, NULL, NULL, 0, 0);
}

static void draw_list(es_ui *u, ui_box b)
{
    ui_list *l = state(u);
    const es_view *v = u->v;
    if (v->n_job == 0) {
        ui_put(u, b, 2, 2, UI_DIM, "Nothing runs in the background.");
        ui_put_cut(u, b, 3, 2, b.w - 3, UI_DIM, "Learning, suggestions and evaluations show here, with their progress and time left.");
        ui_put_cut(u, b, 5, 2, b.w - 3, UI_DIM, "n trains a dictionary of one's own on texts, beside the chat.");
        return;
    }
    int wide = b.w >= 100 ? 30 : 10, what = b.w - wide - 50;
    ui_put(u, b, 0, 1, UI_DIM, "job");
    ui_put(u, b, 0, 12, UI_DIM, "of");
    ui_put(u, b, 0, 13 + what, UI_DIM, "done");
    ui_put(u, b, 0, 13 + what + wide + 13, UI_DIM, "rate        left");
    int detail = b.h > 10 ? 3 : 0;
    ui_box in = ui_inside(b, 1, 0, detail, 0);
    ui_list_fit(l, v->n_job, in.h);
    for (int y = 0; y < in.h && l->top + y < l->n; y++) {
        const es_job *j = &v->job[l->top + y];
        ui_style s = l->top + y == l->at ? UI_SELECTED : UI_PLAIN;
        char text[64], left[32];
        if (s == UI_SELECTED)
            ui_row_fill(u, ui_inside(in, 0, 1, 0, 0), y, s);
        ui_put_cut(u, in, y, 1, 10, s, j->kind);
        ui_put_cut(u, in, y, 12, what, s, j->what);
        int x = 13 + what;
        double share = j->total > 0 ? j->done / j->total : 0, rate = j->seconds > 0 ? j->done / j->seconds : 0;
        if (!j->running) {
            span(text, sizeof text, j->seconds);
            ui_printf(u, in, y, x, j->failed ? UI_BAD : s == UI_SELECTED ? s : UI_DIM, "%s after %s", j->failed ? "failed" : j->cancelled ? "cancelled" : "done", text);
            continue;
        }
        ui_bar(u, in, y, x, wide, s == UI_SELECTED ? s : UI_ACCENT, share);
        x += wide + 1;
        if (j->total > 0)
            snprintf(text, sizeof text, "%.0f/%.0f", j->done, j->total);
        else
            snprintf(text, sizeof text, "%.0f", j->done);
        ui_put_cut(u, in, y, x, 11, s, text);
        if (rate > 0)
            snprintf(text, sizeof text, "%.3g %s/s", rate, j->unit);
        else
            snprintf(text, sizeof text, "-");
        ui_put_cut(u, in, y, x + 12, 11, s, text);
        span(left, sizeof left, rate > 0 && j->total > 0 ? (j->total - j->done) / rate : -1);
        ui_put_cut(u, in, y, x + 24, 9, s, left);
    }
    ui_scrollbar(u, in, l->top, in.h, l->n);
    if (detail)
        draw_detail(u, (ui_box){b.y + b.h - detail, b.x, detail, b.w});
}

static void draw(es_ui *u, ui_box b)
{
    draw_list(u, b);
    if (ui_jobs_of(u)->making.open)
        ui_making_draw(u, b);
}

const ui_view ui_jobs = {
    .name = "Jobs", .letter = 'j', .keys = keys, .help = {"What runs in the background. A list of what was done stays until the program ends.",
                                                                  "A training says fvu (what is left unexplained), l0 (active features a token), dead (silent ones),",
                                                                  "near (mean largest cosine of a decoder row with another)."},
    .open = open_jobs, .close = close_jobs, .typed = ui_making_typed, .hint = hint, .draw = draw,
};
