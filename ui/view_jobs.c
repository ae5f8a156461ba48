/* Jobs: what runs in the background, how far it is, and how to stop it. */
#include "ui_internal.h"

#include <stdio.h>
#include <stdlib.h>

static ui_list *state(const es_ui *u)
{
    return u->state[UI_JOBS];
}

static int open_jobs(es_ui *u, void **out)
{
    (void)u;
    *out = calloc(1, sizeof(ui_list));
    return *out ? 0 : -1;
}

static void close_jobs(es_ui *u, void *s)
{
    (void)u;
    free(s);
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
    if (at >= u->v->n_job || !u->v->job[at].running) {
        ui_say(u, UI_PLAIN, "this one does not run");
        return UI_REDRAW;
    }
    es_studio_job_cancel(u->studio, u->v->job[at].id);
    ui_say(u, UI_PLAIN, "asked to stop");
    return UI_REDRAW;
}

static const ui_key keys[] = {
    UI_LIST_KEYS(key_move),
    {'x', 0, "cancel; what can resume will", key_cancel},
    {UI_DELETE, 0, NULL, key_cancel},
    {0},
};

static void hint(const es_ui *u, es_buf *out)
{
    es_buf_str(out, u->v->n_job ? "x cancels   ? help" : "? help");
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

static void draw(es_ui *u, ui_box b)
{
    ui_list *l = state(u);
    const es_view *v = u->v;
    if (v->n_job == 0) {
        ui_put(u, b, 2, 2, UI_DIM, "Nothing runs in the background.");
        ui_put_cut(u, b, 3, 2, b.w - 3, UI_DIM, "Learning, suggestions and evaluations show here, with their progress and time left.");
        return;
    }
    int wide = b.w >= 100 ? 30 : 10, what = b.w - wide - 50;
    ui_put(u, b, 0, 1, UI_DIM, "job");
    ui_put(u, b, 0, 12, UI_DIM, "of");
    ui_put(u, b, 0, 13 + what, UI_DIM, "done");
    ui_put(u, b, 0, 13 + what + wide + 13, UI_DIM, "rate        left");
    ui_box in = ui_inside(b, 1, 0, 0, 0);
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
}

const ui_view ui_jobs = {
    .name = "Jobs", .letter = 'j', .keys = keys, .help = {"What runs in the background. A list of what was done stays until the program ends."},
    .open = open_jobs, .close = close_jobs, .hint = hint, .draw = draw,
};
