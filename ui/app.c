/* The program around the views: what a key means and to whom, the frame of the screen, prompts and messages. */
#include "ui_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

const ui_view *const ui_views[UI_VIEWS] = {
    [UI_CHAT] = &ui_chat,
    [UI_FEATURES] = &ui_features,
    [UI_BASIS] = &ui_basis,
    [UI_DRIFT] = &ui_drift,
    [UI_EXPERIENCES] = &ui_experiences,
    [UI_JOBS] = &ui_jobs,
};

int ui_open(es_ui **out, es_studio *studio, const es_ui_options *o, es_error *err)
{
    es_ui *u = calloc(1, sizeof *u);
    *out = NULL;
    if (!u)
        return es_fail(err, ES_ERR_MEMORY, "no memory for the workbench");
    u->studio = studio;
    u->o = *o;
    u->prompt.line.recalled = u->editor.line.recalled = -1;
    u->sides.closed = true;
    for (int i = 0; i < UI_VIEWS; i++)
        if (ui_views[i]->open && ui_views[i]->open(u, &u->state[i]) < 0) {
            ui_close(u);
            return es_fail(err, ES_ERR_MEMORY, "no memory for the %s view", ui_views[i]->name);
        }
    u->v = es_studio_view(studio);
    if (!u->v) {
        ui_close(u);
        return es_fail(err, ES_ERR_MEMORY, "no memory for a copy of the studio's view");
    }
    ui_take_view(u);
    *out = u;
    return 0;
}

void ui_close(es_ui *u)
{
    if (!u)
        return;
    for (int i = 0; i < UI_VIEWS; i++)
        if (u->state[i] && ui_views[i]->close)
            ui_views[i]->close(u, u->state[i]);
    es_view_free(u->v);
    ui_names_free(u);
    ui_input_free(&u->input);
    ui_line_free(&u->prompt.line);
    es_buf_free(&u->prompt.candidates);
    ui_line_free(&u->editor.line);
    free(u->editor.draft);
    for (int i = 0; i < 2; i++)
        ui_layout_free(&u->sides.layout[i]);
    for (int i = 0; i < UI_HISTORIES; i++)
        ui_history_free(&u->history[i]);
    free(u);
}

void ui_take_view(es_ui *u)
{
    es_view *v = es_studio_view(u->studio);
    if (!v)
        return; /* no memory: the old copy is still true enough */
    if (strcmp(v->status, u->v ? u->v->status : "") && *v->status && !v->failed)
        ui_say(u, UI_PLAIN, "%s", v->status);
    if (u->v && u->v != v && v->snapshot > u->v->snapshot && !u->v->loading)
        ui_say(u, UI_GOOD, "learned: adapter #%lld answers now. Esc c compares it with the base; F4: what moved", (long long)v->snapshot);
    if (v->n_side && u->v && !u->v->n_side) {
        u->sides.closed = false;
        u->sides.top[0] = u->sides.top[1] = 0;
    }
    if (u->v != v)
        es_view_free(u->v);
    u->v = v;
    ui_names_refresh(u);
    for (int i = 0; i < UI_VIEWS; i++)
        if (ui_views[i]->update)
            ui_views[i]->update(u);
    u->dirty = true;
}

void ui_say(es_ui *u, ui_style s, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(u->message, sizeof u->message, fmt, args);
    va_end(args);
    u->message_style = s;
    u->message_until = es_seconds() + 8;
    u->dirty = true;
}

void ui_show(es_ui *u, int view)
{
    if (view < 0 || view >= UI_VIEWS)
        return;
    if (ui_sides_open(u)) {
        u->sides.closed = true;
        es_studio_sides_close(u->studio);
    }
    if (view != u->view)
        u->message[0] = 0; /* what was said there means little here */
    u->view = view;
    u->help.open = false;
}

bool ui_learning(const es_ui *u)
{
    return u->v->learning == ES_LEARN_PREPARING || u->v->learning == ES_LEARN_STEPPING || u->v->learning == ES_LEARN_CHECKING;
}

static void leave_now(es_ui *u)
{
    u->leave = true;
}

void ui_leave(es_ui *u)
{
    if (ui_learning(u))
        ui_ask(u, "The model is learning; what is not published yet is lost. Leave?", leave_now);
    else
        u->leave = true;
}

double ui_coefficient(const es_ui *u, int feature, bool *in_basis)
{
    for (int i = 0; i < u->v->n_basis; i++)
        if (u->v->basis_feature[i] == feature) {
            *in_basis = true;
            return u->v->coefficient ? (double)u->v->coefficient[i] : 0;
        }
    *in_basis = false;
    return 0;
}

/* ---- prompts, questions, the editor ---- */

void ui_prompt(es_ui *u, const char *label, const char *initial, int history, ui_done *done, ui_done *change, ui_complete *complete)
{
    snprintf(u->prompt.label, sizeof u->prompt.label, "%s", label);
    u->prompt.line.history = history >= 0 ? &u->history[history] : NULL;
    ui_line_set(&u->prompt.line, initial ? initial : "");
    u->prompt.done = done;
    u->prompt.change = change;
    u->prompt.complete = complete;
    es_buf_clear(&u->prompt.candidates);
    u->prompt.chosen = -1;
    u->prompt.open = true;
    u->message[0] = 0;
}

void ui_ask(es_ui *u, const char *question, void (*yes)(es_ui *u))
{
    snprintf(u->ask.text, sizeof u->ask.text, "%s", question);
    u->ask.yes = yes;
    u->ask.open = true;
}

void ui_edit(es_ui *u, const char *title, const char *initial, int64_t turn, void (*save)(es_ui *u, int64_t turn, const char *text))
{
    snprintf(u->editor.title, sizeof u->editor.title, "%s", title);
    u->editor.line.multi = true;
    bool again = u->editor.draft && u->editor.draft_turn == turn;
    ui_line_set(&u->editor.line, again ? u->editor.draft : initial);
    if (again)
        ui_say(u, UI_PLAIN, "your unsaved text of before");
    u->editor.turn = turn;
    u->editor.save = save;
    u->editor.open = true;
}

static const char *candidate(const es_ui *u, int i)
{
    const es_buf *c = &u->prompt.candidates;
    for (size_t at = 0; at < c->len; at += strlen(c->data + at) + 1)
        if (i-- == 0)
            return c->data + at;
    return NULL;
}

static void complete(es_ui *u, int by)
{
    if (!u->prompt.complete)
        return;
    es_buf *c = &u->prompt.candidates;
    ui_line *l = &u->prompt.line;
    if (u->prompt.chosen < 0) {
        es_buf_clear(c);
        u->prompt.complete(u, ui_line_text(l), c);
        const char *first = candidate(u, 0);
        if (!first)
            return;
        size_t common = strlen(first);
        for (int i = 1; candidate(u, i); i++) {
            size_t k = 0;
            while (k < common && candidate(u, i)[k] == first[k])
                k++;
            common = k;
        }
        while (common > 0 && ((unsigned char)first[common] & 0xc0) == 0x80)
            common--;
        if (!candidate(u, 1) || common > l->text.len) { /* the common beginning first, then one after the other */
            char *text = strndup(first, common);
            if (text)
                ui_line_set(l, text);
            free(text);
            if (!candidate(u, 1))
                es_buf_clear(c);
            return;
        }
    }
    int n = 0;
    while (candidate(u, n))
        n++;
    if (n == 0)
        return;
    u->prompt.chosen = u->prompt.chosen < 0 ? (by > 0 ? 0 : n - 1) : (u->prompt.chosen + by + n) % n;
    ui_line_set(l, candidate(u, u->prompt.chosen));
}

static void prompt_key(es_ui *u, const ui_event *e)
{
    ui_line *l = &u->prompt.line;
    if (e->key == UI_TAB || e->key == UI_BACK_TAB) {
        complete(u, e->key == UI_TAB ? 1 : -1);
        if (u->prompt.change)
            u->prompt.change(u, ui_line_text(l));
        return;
    }
    u->prompt.chosen = -1;
    bool empty = l->text.len == 0;
    if (e->key == UI_ESC || (e->key == UI_BACKSPACE && empty)) {
        u->prompt.open = false;
        u->prompt.done(u, NULL);
        return;
    }
    ui_line_result r = ui_line_key(l, e);
    if (r == UI_LINE_ENTER) {
        char *text = strdup(ui_line_text(l));
        u->prompt.open = false;
        if (!text)
            return;
        if (l->history)
            ui_history_add(l->history, text);
        u->prompt.done(u, text); /* may open the next prompt */
        free(text);
    } else if (r == UI_LINE_CHANGED) {
        es_buf_clear(&u->prompt.candidates);
        if (u->prompt.change)
            u->prompt.change(u, ui_line_text(l));
    }
}

static void editor_close(es_ui *u, bool save)
{
    const char *text = ui_line_text(&u->editor.line);
    free(u->editor.draft);
    u->editor.draft = NULL;
    u->editor.open = false;
    if (save) {
        u->editor.save(u, u->editor.turn, text);
        return;
    }
    u->editor.draft = strdup(text);
    u->editor.draft_turn = u->editor.turn;
    ui_say(u, UI_PLAIN, "not saved; editing the same again brings your text back");
}

static void editor_key(es_ui *u, const ui_event *e)
{
    if (e->key == UI_ESC)
        editor_close(u, false);
    else if (e->key == UI_CONTROL('s'))
        editor_close(u, true);
    else if (ui_line_key(&u->editor.line, e) == UI_LINE_ENTER)
        editor_close(u, true);
}

/* Hands the terminal to $EDITOR with the text in a private file. */
int ui_edit_outside(es_ui *u, const char *initial, es_buf *out, es_error *err)
{
    char path[1200];
    snprintf(path, sizeof path, "%s/edit-XXXXXX.txt", u->o.home ? u->o.home : "/tmp");
    int fd = mkstemps(path, 4);
    if (fd < 0)
        return es_fail(err, ES_ERR_IO, "cannot make a file to edit in %s: %s", u->o.home ? u->o.home : "/tmp", strerror(errno));
    size_t n = strlen(initial);
    if (write(fd, initial, n) != (ssize_t)n) {
        close(fd);
        unlink(path);
        return es_fail(err, ES_ERR_IO, "cannot write %s: %s", path, strerror(errno));
    }
    close(fd);
    if (u->drawn)
        ui_term_suspend(u);
    char command[600];
    snprintf(command, sizeof command, "%s \"$1\"", u->o.editor);
    pid_t child = fork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", command, "sh", path, (char *)NULL);
        _exit(127);
    }
    int status = -1;
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    if (u->drawn)
        ui_term_resume(u);
    int r;
    if (child < 0 || !WIFEXITED(status) || WEXITSTATUS(status))
        r = es_fail(err, ES_ERR_IO, "the editor '%s' failed; nothing was changed", u->o.editor);
    else
        r = es_file_read(out, path, UI_LINE_MAX, err);
    unlink(path);
    if (r == 0 && out->data && es_utf8_whole(out->data, out->len) != out->len)
        r = es_fail(err, ES_ERR_FORMAT, "the edited text is not UTF-8; nothing was changed");
    while (r == 0 && out->len && out->data[out->len - 1] == '\n')
        out->data[--out->len] = 0;
    return r;
}

/* ---- steering and comparing, from any view ---- */

static void steer_go(es_ui *u, const char *text)
{
    if (text && *text)
        es_studio_steer(u->studio, u->pending_feature, (float)u->pending_strength, text);
}

static void steer_strength(es_ui *u, const char *text)
{
    if (!text)
        return;
    char *end;
    double value = strtod(text, &end);
    if (end == text || !isfinite(value)) {
        ui_say(u, UI_BAD, "a strength is a number, such as 8 or -8");
        return;
    }
    u->pending_strength = value;
    ui_prompt(u, "Question to steer on: ", NULL, UI_HISTORY_SAY, steer_go, NULL, NULL);
}

void ui_steer_prompt(es_ui *u, int feature)
{
    char label[96], value[32];
    float max = ui_max(u, feature);
    u->pending_feature = feature;
    snprintf(label, sizeof label, "Steer along %d with strength (its largest activation is %.1f): ", feature, isfinite(max) ? (double)max : 0);
    snprintf(value, sizeof value, "%.0f", isfinite(max) && max > 0.5f ? (double)max : 8.0);
    ui_prompt(u, label, value, -1, steer_strength, NULL, NULL);
}

static void compare_go(es_ui *u, const char *text)
{
    if (text && *text)
        es_studio_compare(u->studio, text);
}

void ui_compare_prompt(es_ui *u)
{
    ui_prompt(u, "Ask both, base and adapted: ", NULL, UI_HISTORY_SAY, compare_go, NULL, NULL);
}

/* ---- keys that several views have ---- */

ui_result ui_key_compare(es_ui *u, int key)
{
    (void)key;
    ui_compare_prompt(u);
    return UI_REDRAW;
}

ui_result ui_key_pause(es_ui *u, int key)
{
    (void)key;
    es_studio_learn_pause(u->studio, u->v->learning != ES_LEARN_PAUSED);
    return UI_REDRAW;
}

ui_result ui_key_learn(es_ui *u, int key)
{
    (void)key;
    es_studio_learn_now(u->studio);
    return UI_REDRAW;
}

ui_result ui_key_adapter(es_ui *u, int key)
{
    (void)key;
    es_studio_adapter(u->studio, !u->v->adapter_on);
    return UI_REDRAW;
}

/* ---- keys of everywhere ---- */

static ui_result key_view(es_ui *u, int key)
{
    int to = key == UI_TAB ? u->view + 1 : key == UI_BACK_TAB ? u->view + UI_VIEWS - 1
             : key >= UI_F1 && key <= UI_F12 ? key - UI_F1 : (key & ~UI_ALT) - '1';
    ui_show(u, to % UI_VIEWS);
    return UI_REDRAW;
}

static ui_result key_prefix(es_ui *u, int key)
{
    u->prefix = key;
    return UI_REDRAW;
}

static ui_result key_command(es_ui *u, int key)
{
    (void)key;
    ui_command_prompt(u);
    return UI_REDRAW;
}

static ui_result key_help(es_ui *u, int key)
{
    (void)key;
    u->help.open = true;
    u->help.top = 0;
    return UI_REDRAW;
}

static ui_result key_quit(es_ui *u, int key)
{
    (void)key;
    ui_leave(u);
    return UI_REDRAW;
}

static ui_result key_stop(es_ui *u, int key)
{
    (void)key;
    if (u->v->generating || (ui_sides_open(u) && (u->v->side[0].streaming || u->v->side[1].streaming))) {
        es_studio_stop(u->studio);
        ui_say(u, UI_PLAIN, "stopped");
    } else {
        ui_say(u, UI_PLAIN, "nothing is running; q or :quit leaves");
    }
    return UI_REDRAW;
}

static ui_result key_redraw(es_ui *u, int key)
{
    (void)key;
    u->redraw_all = true;
    return UI_REDRAW;
}

static ui_result key_suspend(es_ui *u, int key)
{
    (void)key;
    if (u->drawn && ui_term_signal_fd() >= 0)
        ui_term_stop(u);
    return UI_REDRAW;
}

static const ui_key everywhere[] = {
    {UI_TAB, 0, "next view, previous view", key_view},
    {UI_BACK_TAB, 0, NULL, key_view},
    {UI_F1, 0, "F1 Chat .. F6 Jobs; also while typing", key_view},
    {UI_F1 + 1, 0, NULL, key_view}, {UI_F1 + 2, 0, NULL, key_view}, {UI_F1 + 3, 0, NULL, key_view}, {UI_F1 + 4, 0, NULL, key_view}, {UI_F1 + 5, 0, NULL, key_view},
    {'1' | UI_ALT, 0, "the same, where F-keys are taken", key_view},
    {'2' | UI_ALT, 0, NULL, key_view}, {'3' | UI_ALT, 0, NULL, key_view}, {'4' | UI_ALT, 0, NULL, key_view}, {'5' | UI_ALT, 0, NULL, key_view}, {'6' | UI_ALT, 0, NULL, key_view},
    {'g', 0, "then c f b d e j: that view; gg: first row", key_prefix},
    {':', 0, "a command (Tab completes)", key_command},
    {'?', 0, "this help", key_help},
    {UI_CONTROL('c'), 0, "stop what is being generated", key_stop},
    {UI_CONTROL('l'), 0, "draw the screen anew", key_redraw},
    {UI_CONTROL('z'), 0, "suspend", key_suspend},
    {'q', 0, "leave", key_quit},
    {0},
};

const ui_key *ui_keys_everywhere(void)
{
    return everywhere;
}

static ui_result look_up(es_ui *u, const ui_key *k, int key)
{
    unsigned mode = ui_views[u->view]->mode ? ui_views[u->view]->mode(u) : ~0u;
    for (; k && k->key; k++)
        if (k->key == key && (!k->modes || (k->modes & mode))) {
            ui_result r = k->act(u, key);
            if (r != UI_IGNORED)
                return r;
        }
    return UI_IGNORED;
}

static void tab_text(const es_ui *u, int i, char *text, size_t n);

static void click(es_ui *u, const ui_event *e) /* on the tabs */
{
    char text[40];
    for (int i = 0, x = 0; e->y == 0 && i < UI_VIEWS; i++) {
        tab_text(u, i, text, sizeof text);
        x += (int)strlen(text);
        if (e->x < x) {
            ui_show(u, i);
            return;
        }
    }
}

static bool always(int key) /* keys that no text field takes */
{
    return (key >= UI_F1 && key < UI_F1 + UI_VIEWS) || (key >= ('1' | UI_ALT) && key <= ('6' | UI_ALT)) || key == UI_CONTROL('l') ||
           key == UI_CONTROL('z') || key == UI_CONTROL('c');
}

static void prefixed(es_ui *u, int key)
{
    u->prefix = 0;
    for (int i = 0; i < UI_VIEWS; i++)
        if (ui_views[i]->letter == key) {
            ui_show(u, i);
            return;
        }
    if (key == 'g')
        look_up(u, ui_views[u->view]->keys, UI_HOME);
}

void ui_event_handle(es_ui *u, const ui_event *e)
{
    int key = e->key;
    u->dirty = true;
    if (key == UI_BACKGROUND) {
        u->background_known = true;
        u->light = e->x;
        if (u->drawn)
            ui_colours(u);
        return;
    }
    if (key == UI_CLICK) {
        if (!u->ask.open && !u->editor.open && !u->prompt.open)
            click(u, e);
        return;
    }
    if (key == UI_CONTROL('c') && !u->v->generating && (u->ask.open || u->prompt.open || u->editor.open || u->help.open))
        key = UI_ESC;
    ui_event event = *e;
    event.key = key;
    if (u->ask.open) {
        u->ask.open = false;
        if (key == 'y' || key == 'Y')
            u->ask.yes(u);
        else
            ui_say(u, UI_PLAIN, "not done");
        return;
    }
    if (always(key)) {
        if (key != UI_CONTROL('l') && key != UI_CONTROL('z') && key != UI_CONTROL('c')) {
            if (u->editor.open)
                editor_close(u, false);
            if (u->prompt.open) {
                u->prompt.open = false;
                u->prompt.done(u, NULL);
            }
        }
        if (look_up(u, ui_views[u->view]->keys, key) == UI_IGNORED)
            look_up(u, everywhere, key);
        return;
    }
    if (u->help.open) {
        ui_list l = {.n = u->help.rows, .at = u->help.top, .top = u->help.top, .page = 1};
        int page = u->help.page > 1 ? u->help.page - 1 : 1;
        if (key == UI_PAGE_DOWN || key == ' ')
            u->help.top += page;
        else if (key == UI_PAGE_UP)
            u->help.top = u->help.top > page ? u->help.top - page : 0;
        else if (ui_list_key(&l, key))
            u->help.top = l.at;
        else
            u->help.open = false;
        return;
    }
    if (u->editor.open) {
        editor_key(u, &event);
        return;
    }
    if (u->prompt.open) {
        prompt_key(u, &event);
        return;
    }
    if (ui_sides_open(u) && ui_sides_key(u, &event) != UI_IGNORED)
        return;
    if (u->prefix) {
        prefixed(u, key);
        return;
    }
    const ui_view *view = ui_views[u->view];
    ui_result r = !ui_sides_open(u) && view->typed ? view->typed(u, &event) : UI_IGNORED;
    if (r == UI_IGNORED && !ui_sides_open(u))
        r = look_up(u, view->keys, key);
    if (r == UI_IGNORED)
        r = look_up(u, everywhere, key);
    if (r == UI_IGNORED && key >= 32 && key < 127)
        ui_say(u, UI_PLAIN, "'%c' does nothing here; ? lists the keys", key);
    if (r == UI_QUIT)
        ui_leave(u);
}

static void emit(void *user, const ui_event *e)
{
    ui_event_handle(user, e);
}

void ui_feed(es_ui *u, const char *bytes, size_t n)
{
    ui_input_feed(&u->input, bytes, n, emit, u);
}

/* ---- the screen ---- */

void ui_learning_text(const es_ui *u, es_buf *out)
{
    const es_view *v = u->v;
    const char *text = v->learning_text;
    static const struct { const char *sign, *ascii, *word; } of[] = {
        [ES_LEARN_OFF] = {"", "", "learning off"},       [ES_LEARN_IDLE] = {"", "", "learning: idle"},
        [ES_LEARN_PAUSED] = {"", "", "learning paused"}, [ES_LEARN_PREPARING] = {"◐ ", "* ", "preparing"},
        [ES_LEARN_STEPPING] = {"● ", "* ", "learning"},  [ES_LEARN_CHECKING] = {"◑ ", "* ", "checking"},
        [ES_LEARN_FAILED] = {"✗ ", "! ", "learning failed"},
    };
    es_buf_str(out, ui_sign(u, of[v->learning].sign, of[v->learning].ascii));
    if (*text && v->learning != ES_LEARN_PAUSED && v->learning != ES_LEARN_FAILED) {
        es_buf_str(out, text); /* says it all */
        return;
    }
    es_buf_str(out, of[v->learning].word);
    if (*text)
        es_buf_printf(out, ": %s", text);
    else if (v->learning == ES_LEARN_STEPPING && v->n_step > 0 && v->step_loss && v->step_kl)
        es_buf_printf(out, ", step %d: loss %.3f, KL %.4f", v->n_step, (double)v->step_loss[v->n_step - 1], (double)v->step_kl[v->n_step - 1]);
}

static void tab_text(const es_ui *u, int i, char *text, size_t n)
{
    if (u->w >= 76)
        snprintf(text, n, " F%d %s ", i + 1, ui_views[i]->name);
    else
        snprintf(text, n, " %.*s ", u->w >= 56 ? 11 : 4, ui_views[i]->name);
}

static void draw_tabs(es_ui *u)
{
    ui_box b = {0, 0, 1, u->w};
    ui_row_fill(u, b, 0, UI_TAB_OFF);
    int x = 0;
    for (int i = 0; i < UI_VIEWS; i++) {
        char text[40];
        tab_text(u, i, text, sizeof text);
        x = ui_put(u, b, 0, x, i == u->view ? UI_TAB_ON : UI_TAB_OFF, text);
    }
    const char *name = "espalier ";
    if (x + 10 < u->w)
        ui_put_right(u, b, 0, UI_TAB_OFF, name);
}

static void draw_status(es_ui *u)
{
    const es_view *v = u->v;
    ui_box b = {u->h - 2, 0, 1, u->w};
    const char *gap = ui_sign(u, " │ ", " | ");
    es_buf s = {0}, learning = {0};
    ui_row_fill(u, b, 0, UI_BAR);
    es_buf_str(&s, " ");
    size_t n = strlen(v->model), fit = ui_fit(u->o.unicode, v->model, n, u->w >= 140 ? 40 : 24);
    if (!n || v->loading) {
        es_buf_printf(&s, "%s%s", v->failed ? "no model" : "loading", gap);
    } else if (u->w >= 100) {
        es_buf_add(&s, v->model, fit);
        es_buf_printf(&s, "%s%s", fit < n ? ui_sign(u, "…", ".") : "", gap);
    }
    if (v->tokens_per_second > 0)
        es_buf_printf(&s, "%.0f tok/s%s", v->tokens_per_second, gap);
    if (v->n_ctx > 0 && (u->w >= 100 || v->context_used > v->n_ctx / 2)) /* of interest when it runs out */
        es_buf_printf(&s, "ctx %d/%d%s", v->context_used, v->n_ctx, gap);
    if (*v->method && strcmp(v->method, "features") && strcmp(v->method, "none"))
        es_buf_printf(&s, "%s: %s", v->method, v->method_text);
    else if (!strcmp(v->method, "none"))
        es_buf_str(&s, "none: the base model");
    else if (v->snapshot)
        es_buf_printf(&s, "adapter #%lld%s", (long long)v->snapshot, v->adapter_on ? "" : " off");
    else
        es_buf_str(&s, "base");
    if (v->shade_feature >= 0 && u->w >= 100)
        es_buf_printf(&s, "%sshade %d %.24s", gap, v->shade_feature, ui_name(u, v->shade_feature));
    es_buf_str(&s, gap);
    ui_learning_text(u, &learning);
    if (s.data && learning.data) {
        int x = ui_put(u, b, 0, 0, UI_BAR, s.data);
        ui_put_cut(u, b, 0, x, u->w - x - 1, UI_BAR, learning.data);
    }
    es_buf_free(&s);
    es_buf_free(&learning);
}

static void draw_candidates(es_ui *u, int y)
{
    if (!u->prompt.candidates.len)
        return;
    ui_box b = {y, 0, 1, u->w};
    ui_row_fill(u, b, 0, UI_BAR);
    int x = 1, first = 0;
    if (u->prompt.chosen > 0) { /* keep the chosen one in sight */
        int width = 0;
        for (int i = u->prompt.chosen; i >= 0; i--) {
            width += (int)strlen(candidate(u, i)) + 2;
            if (width > u->w - 2)
                break;
            first = i;
        }
    }
    for (int i = first; candidate(u, i) && x < u->w; i++)
        x = ui_put(u, b, 0, x, i == u->prompt.chosen ? UI_TAB_ON : UI_BAR, candidate(u, i)) + 2;
}

static void draw_bottom(es_ui *u)
{
    ui_box b = {u->h - 1, 0, 1, u->w};
    if (u->ask.open) {
        int x = ui_put(u, b, 0, 1, UI_WARN, u->ask.text);
        x = ui_put(u, b, 0, x + 1, UI_KEY, "y");
        ui_put(u, b, 0, x, UI_PLAIN, " yes, any other key no");
        return;
    }
    if (u->prompt.open) {
        int label = ui_width(u->o.unicode, u->prompt.label, strlen(u->prompt.label));
        if (label > u->w / 2)
            label = u->w / 2;
        int width = u->w - label - 2;
        int rows = ui_line_rows(&u->prompt.line, u->o.unicode, width - 1);
        rows = rows > 6 ? 6 : rows < 1 ? 1 : rows;
        if (rows > u->h - 2)
            rows = u->h - 2 > 0 ? u->h - 2 : 1;
        b.y = u->h - rows;
        b.h = rows;
        ui_fill(u, b, UI_PLAIN);
        draw_candidates(u, b.y - 1);
        ui_put_cut(u, b, 0, 1, label, UI_KEY, u->prompt.label);
        ui_line_draw(u, (ui_box){b.y, 1 + label, rows, width}, &u->prompt.line, true);
        return;
    }
    if (u->v->failed) {
        ui_put_cut(u, b, 0, 1, u->w - 2, UI_BAD, u->v->status);
        return;
    }
    if (u->prefix) {
        ui_put(u, b, 0, 1, UI_KEY, "g  then c Chat, f Features, b Basis, d Drift, e Experiences, j Jobs, g first row");
        return;
    }
    if (u->message[0] && es_seconds() < u->message_until) {
        ui_put_cut(u, b, 0, 1, u->w - 2, u->message_style, u->message);
        return;
    }
    u->message[0] = 0;
    es_buf hint = {0};
    if (ui_sides_open(u))
        es_buf_str(&hint, "Esc closes   j/k scroll   c asks again");
    else if (ui_views[u->view]->hint)
        ui_views[u->view]->hint(u, &hint);
    if (hint.data) { /* a key before its word: "e edits" */
        ui_put_cut(u, b, 0, 1, u->w - 2, UI_DIM, hint.data);
    }
    es_buf_free(&hint);
}

static void draw_editor(es_ui *u, ui_box b)
{
    int rows = ui_line_rows(&u->editor.line, u->o.unicode, b.w - 5) + 2;
    rows = rows < 6 ? 6 : rows;
    rows = rows > b.h ? b.h : rows;
    ui_box inside = ui_frame(u, (ui_box){b.y + b.h - rows, b.x, rows, b.w}, u->editor.title);
    ui_line_draw(u, inside, &u->editor.line, !u->ask.open);
}

void ui_draw(es_ui *u)
{
    ui_screen_erase(u);
    if (u->w < 40 || u->h < 10) {
        ui_box all = {0, 0, u->h, u->w};
        char text[80];
        snprintf(text, sizeof text, "espalier needs 40x10, this is %dx%d", u->w, u->h);
        ui_put(u, all, 0, 0, UI_PLAIN, u->w >= 36 ? text : "too small");
        if (u->h > 1)
            ui_put(u, all, 1, 0, UI_PLAIN, "q leaves");
    } else {
        ui_box content = {1, 0, u->h - 3, u->w};
        draw_tabs(u);
        if (ui_sides_open(u))
            ui_sides_draw(u, content);
        else
            ui_views[u->view]->draw(u, content);
        draw_status(u);
        if (u->editor.open)
            draw_editor(u, content);
        if (u->help.open)
            ui_help_draw(u, content);
        draw_bottom(u);
    }
    ui_screen_update(u);
    u->dirty = false;
}
