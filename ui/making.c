/* The form of the Jobs view: texts, layers and the like, the plan of it, and then it begins. */
#include "view_jobs.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static ui_making *form(const es_ui *u)
{
    return &ui_jobs_of(u)->making;
}

static const struct { const char *name, *what; } field[UI_MAKE_FIELDS] = {
    [UI_MAKE_TEXTS] = {"texts", "a .jsonl or .txt file; or the folder of a harvest"},
    [UI_MAKE_LAYERS] = {"layers", "14 or 10,14"},
    [UI_MAKE_SITE] = {"site", "resid, attn, mlp, z"},
    [UI_MAKE_DO] = {"do", "Space: train, or only store activations"},
    [UI_MAKE_RECIPE] = {"recipe", "Space: the next one"},
    [UI_MAKE_FEATURES] = {"features", ""},
    [UI_MAKE_K] = {"k", "active features a token"},
    [UI_MAKE_TOKENS] = {"tokens", "in all: 500k, 2M"},
    [UI_MAKE_OUT] = {"into", "a folder; one that was begun goes on"},
};

static bool typed_in(int f)
{
    return f != UI_MAKE_DO && f != UI_MAKE_RECIPE;
}

/* What does not count when only activations are stored. */
static bool idle(const ui_making *m, int f)
{
    return m->harvest_only && (f == UI_MAKE_RECIPE || f == UI_MAKE_FEATURES || f == UI_MAKE_K);
}

static void fill(ui_making *m, const es_view *v)
{
    es_making usual;
    char text[32];
    es_making_default(&usual);
    m->filled = true;
    snprintf(text, sizeof text, "%d", v->layer);
    if (v->n_features)
        ui_line_set(&m->line[UI_MAKE_LAYERS], text);
    ui_line_set(&m->line[UI_MAKE_SITE], usual.sites);
    snprintf(text, sizeof text, "%d", usual.features);
    ui_line_set(&m->line[UI_MAKE_FEATURES], text);
    snprintf(text, sizeof text, "%d", usual.k);
    ui_line_set(&m->line[UI_MAKE_K], text);
    ui_line_set(&m->line[UI_MAKE_TOKENS], "2M");
}

ui_result ui_key_make(es_ui *u, int key)
{
    ui_making *m = form(u);
    (void)key;
    if (!m->filled)
        fill(m, u->v);
    m->open = true;
    m->asked = false;
    m->at = 0;
    u->message[0] = 0;
    return UI_REDRAW;
}

/* "6144", "500k", "2M"; 0: no such number. */
static double count_of(const char *s)
{
    char *end;
    double v = strtod(s, &end);
    while (*end == ' ')
        end++;
    double by = *end == 'k' || *end == 'K' ? 1e3 : *end == 'M' ? 1e6 : *end == 'G' ? 1e9 : 1;
    end += by > 1;
    return end == s || *end || !isfinite(v) || v < 0 || v * by > 1e12 ? 0 : v * by;
}

static int number_of(ui_making *m, int f, double most)
{
    double v = count_of(ui_line_text(&m->line[f]));
    return v <= most && v == floor(v) ? (int)v : 0;
}

/* false: some field makes no sense, which is said and gone to. What the studio knows better it says in the plan's place. */
static bool take(es_ui *u, es_making *out)
{
    ui_making *m = form(u);
    es_making_default(out);
    const struct { int field; char *to; size_t size; } text[] = {
        {UI_MAKE_TEXTS, out->texts, sizeof out->texts}, {UI_MAKE_LAYERS, out->layers, sizeof out->layers}, {UI_MAKE_SITE, out->sites, sizeof out->sites},
        {UI_MAKE_OUT, out->out, sizeof out->out},
    };
    int wrong = -1;
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        const char *s = ui_line_text(&m->line[text[i].field]);
        if ((!*s && text[i].field != UI_MAKE_SITE) || strlen(s) >= text[i].size)
            wrong = wrong < 0 ? text[i].field : wrong;
        snprintf(text[i].to, text[i].size, "%.*s", (int)text[i].size - 1, s);
    }
    out->harvest_only = m->harvest_only;
    snprintf(out->recipe, sizeof out->recipe, "%s", es_recipe_name((es_recipe)m->recipe));
    if (!m->harvest_only) {
        out->features = number_of(m, UI_MAKE_FEATURES, 1 << 20);
        out->k = number_of(m, UI_MAKE_K, 65536);
    }
    out->tokens = (uint64_t)count_of(ui_line_text(&m->line[UI_MAKE_TOKENS]));
    if (wrong < 0)
        wrong = out->features < 2 ? UI_MAKE_FEATURES : out->k < 1 ? UI_MAKE_K : out->tokens < 1 ? UI_MAKE_TOKENS : -1;
    if (wrong < 0) {
        u->message[0] = 0;
        return true;
    }
    m->at = wrong;
    ui_say(u, UI_BAD, "%s: %s", field[wrong].name, *field[wrong].what ? field[wrong].what : "a number");
    return false;
}

static bool planned(const es_ui *u)
{
    return form(u)->asked && u->v->plan_serial != form(u)->serial && !u->v->plan_running;
}

static void enter(es_ui *u)
{
    ui_making *m = form(u);
    es_making what;
    if (!take(u, &what))
        return;
    if (planned(u) && u->v->plan_ok) {
        m->open = m->asked = false;
        es_studio_make(u->studio, &what);
        ui_say(u, UI_GOOD, "begun, in the background: x stops it, and it can go on");
    } else if (!m->asked || planned(u)) {
        m->asked = true;
        m->serial = u->v->plan_serial;
        es_studio_make_plan(u->studio, &what);
    }
}

static void step(ui_making *m, int by)
{
    do
        m->at = (m->at + by + UI_MAKE_FIELDS) % UI_MAKE_FIELDS;
    while (idle(m, m->at));
}

static void choose(ui_making *m, int by)
{
    if (m->at == UI_MAKE_DO)
        m->harvest_only = !m->harvest_only;
    else
        m->recipe = (m->recipe + by + ES_RECIPES) % ES_RECIPES;
    m->asked = false;
}

ui_result ui_making_typed(es_ui *u, const ui_event *e)
{
    ui_making *m = form(u);
    if (!m->open)
        return UI_IGNORED;
    if (e->key == UI_ESC || e->key == UI_CONTROL('c'))
        m->open = false;
    else if (e->key == UI_DOWN || e->key == UI_TAB)
        step(m, 1);
    else if (e->key == UI_UP || e->key == UI_BACK_TAB)
        step(m, -1);
    else if (e->key == UI_ENTER)
        enter(u);
    else if (!typed_in(m->at) && (e->key == ' ' || e->key == UI_RIGHT || e->key == UI_LEFT))
        choose(m, e->key == UI_LEFT ? -1 : 1);
    else if (typed_in(m->at) && ui_line_key(&m->line[m->at], e) == UI_LINE_CHANGED)
        m->asked = false;
    return UI_REDRAW;
}

void ui_making_hint(const es_ui *u, es_buf *out)
{
    es_buf_str(out, planned(u) && u->v->plan_ok ? "Enter starts it  up down fields  Esc closes" : "Enter: what it will take  up down fields  Esc closes");
}

void ui_making_draw(es_ui *u, ui_box b)
{
    ui_making *m = form(u);
    int h = UI_MAKE_FIELDS + 7, w = b.w < 100 ? b.w - 2 : 98;
    h = h < b.h ? h : b.h;
    ui_box in = ui_frame(u, (ui_box){b.y + (b.h - h) / 2, b.x + (b.w - w) / 2, h, w}, "A dictionary of one's own");
    for (int f = 0; f < UI_MAKE_FIELDS; f++) {
        bool here = f == m->at;
        ui_put(u, in, f, 1, here ? UI_KEY : UI_DIM, field[f].name);
        const char *value = f == UI_MAKE_DO ? m->harvest_only ? "store activations" : "train" : f == UI_MAKE_RECIPE ? es_recipe_name((es_recipe)m->recipe) : ui_line_text(&m->line[f]);
        ui_style s = idle(m, f) ? UI_DIM : here && !typed_in(f) ? UI_SELECTED : UI_PLAIN;
        const ui_box line = {in.y + f, in.x + 11, 1, in.w - 12};
        if (typed_in(f) && !idle(m, f) && (here || *value))
            ui_line_draw(u, line, &m->line[f], here);
        else if (*value)
            ui_put_cut(u, line, 0, 0, line.w, s, value);
        int used = ui_width(u->o.unicode, value, strlen(value));
        if ((here || !*value) && used + 3 < line.w && !idle(m, f))
            ui_put_cut(u, line, 0, used + 2, line.w - used - 2, UI_DIM, field[f].what);
    }
    const char *text = !m->asked ? "Enter says what it will take." : planned(u) ? u->v->plan_text : "Trying a few steps ...";
    ui_box rest = ui_inside(in, UI_MAKE_FIELDS + 1, 1, 0, 1);
    ui_layout_make(&m->plan, u->o.unicode, text, strlen(text), rest.w, false);
    for (int y = 0; y < rest.h && y < m->plan.n; y++)
        ui_draw_row(u, rest, y, 0, !m->asked || !planned(u) ? UI_DIM : u->v->plan_ok ? UI_GOOD : UI_BAD, &m->plan, y, text, NULL, NULL, 0, 0);
}

void ui_making_free(ui_making *m)
{
    for (int f = 0; f < UI_MAKE_FIELDS; f++)
        ui_line_free(&m->line[f]);
    ui_layout_free(&m->plan);
}
