/* What lies over a view: the help made from the key tables, and two replies side by side. */
#include "ui_internal.h"

#include <stdio.h>
#include <string.h>

/* ---- help ---- */

static int help_line(es_ui *u, ui_box b, int at, ui_style s, const char *keys, const char *text)
{
    int y = at - u->help.top;
    if (y >= 0 && y < b.h) {
        if (keys)
            ui_put_cut(u, b, y, 1, 18, UI_KEY, keys);
        ui_put_cut(u, b, y, keys ? 20 : 0, b.w - (keys ? 20 : 0), s, text);
    }
    return at + 1;
}

static int help_keys(es_ui *u, ui_box b, int at, const ui_key *k)
{
    while (k && k->key) { /* of all modes: the help is also for finding out what there is */
        char shown[64] = "", name[24] = "";
        const char *help = k->help;
        int n = 0;
        ui_result (*act)(es_ui *, int) = k->act;
        do {
            char before[sizeof name];
            memcpy(before, name, sizeof name);
            ui_key_name(k->key, u->o.unicode, name, sizeof name);
            if (strcmp(before, name) && n++ < 4 && strlen(shown) + strlen(name) < sizeof shown - 2) {
                if (*shown)
                    strcat(shown, " ");
                strcat(shown, name);
            }
            k++;
        } while (k->key && !k->help && k->act == act);
        if (help)
            at = help_line(u, b, at, UI_PLAIN, shown, help);
    }
    return at;
}

/* All lines from u->help.top on; returns how many there are in all. */
static int help_lines(es_ui *u, ui_box in)
{
    const ui_view *v = ui_views[u->view];
    int at = 0;
    for (int i = 0; i < 4 && v->help[i]; i++)
        at = help_line(u, in, at, UI_DIM, NULL, v->help[i]);
    for (int i = 0; v->more_help && v->more_help(i); i++)
        at = help_line(u, in, at, UI_DIM, NULL, v->more_help(i));
    if (v->help[0])
        at++;
    at = help_keys(u, in, at, v->keys) + 1;
    at = help_line(u, in, at, UI_BOLD, NULL, "Everywhere");
    at = help_keys(u, in, at, ui_keys_everywhere()) + 1;
    at = help_line(u, in, at, UI_BOLD, NULL, "Typing");
    at = help_line(u, in, at, UI_PLAIN, "Alt-Enter Ctrl-J", "a new line, where a text can have several");
    at = help_line(u, in, at, UI_PLAIN, "Up Down", "earlier lines");
    at = help_line(u, in, at, UI_PLAIN, "Ctrl-A Ctrl-E", "start, end of the line; Ctrl-left and Ctrl-right by words");
    at = help_line(u, in, at, UI_PLAIN, "Ctrl-W -U -K -Y", "delete a word, to the start, to the end; put back");
    at = help_line(u, in, at, UI_PLAIN, "Ctrl-X", "delete all that is typed; Ctrl-Y puts it back") + 1;
    at = help_line(u, in, at, UI_BOLD, NULL, "Commands");
    char usage[48];
    const char *text;
    for (int i = 0; (text = ui_command_line(i, usage, sizeof usage)); i++, at++) {
        int y = at - u->help.top;
        if (y >= 0 && y < in.h) {
            ui_put_cut(u, in, y, 1, 29, UI_KEY, usage);
            ui_put_cut(u, in, y, 31, in.w - 31, UI_PLAIN, text);
        }
    }
    return at;
}

void ui_help_draw(es_ui *u, ui_box b)
{
    char title[80];
    snprintf(title, sizeof title, "Keys: %s", ui_views[u->view]->name);
    int w = b.w < 84 ? b.w : 84;
    ui_box in = ui_frame(u, (ui_box){b.y, b.x + (b.w - w) / 2, b.h, w}, title);
    u->help.rows = help_lines(u, (ui_box){0, 0, 0, 0}); /* count first */
    u->help.page = in.h;
    if (u->help.top > u->help.rows - in.h)
        u->help.top = u->help.rows > in.h ? u->help.rows - in.h : 0;
    help_lines(u, in);
    const char *more = u->help.top + in.h < u->help.rows ? " more: PgDn " : " Esc closes ";
    ui_put_right(u, (ui_box){b.y + b.h - 1, in.x, 1, in.w}, 0, UI_DIM, more);
}

/* ---- side by side ---- */

bool ui_sides_open(const es_ui *u)
{
    return u->v && u->v->n_side > 0 && !u->sides.closed;
}

ui_result ui_sides_key(es_ui *u, const ui_event *e)
{
    int page = u->sides.page > 1 ? u->sides.page - 1 : 1, by = 0;
    switch (e->key) {
    case UI_ESC:
    case 'q':
        u->sides.closed = true;
        es_studio_sides_close(u->studio);
        return UI_REDRAW;
    case 'c':
        ui_compare_prompt(u);
        return UI_REDRAW;
    case 'j':
    case UI_DOWN:
    case UI_WHEEL_DOWN: by = 1; break;
    case 'k':
    case UI_UP:
    case UI_WHEEL_UP: by = -1; break;
    case UI_PAGE_DOWN: by = page; break;
    case UI_PAGE_UP: by = -page; break;
    case UI_HOME: by = -1000000; break;
    case UI_END: by = 1000000; break;
    default: return UI_IGNORED;
    }
    for (int i = 0; i < 2; i++) {
        int most = u->sides.rows[i] > u->sides.page ? u->sides.rows[i] - u->sides.page : 0, to = u->sides.top[i] + by;
        u->sides.top[i] = to < 0 ? 0 : to > most ? most : to;
    }
    return UI_REDRAW;
}

void ui_sides_draw(es_ui *u, ui_box b)
{
    const es_view *v = u->v;
    int n = v->n_side < 2 ? v->n_side : 2;
    bool beside = b.w >= 60;
    for (int i = 0; i < n; i++) {
        const es_side *s = &v->side[i];
        ui_box part = b;
        if (beside) {
            part.w = (b.w - 1) / n;
            part.x = b.x + i * (part.w + 1);
        } else {
            part.h = b.h / n;
            part.y = b.y + i * part.h;
        }
        char title[200];
        snprintf(title, sizeof title, "%s%s", s->title ? s->title : "", s->streaming ? ui_sign(u, " …", " ...") : "");
        ui_rule(u, part, 0, title);
        char count[40];
        snprintf(count, sizeof count, " %d tokens ", s->tokens);
        if (s->tokens > 0 && ui_width(u->o.unicode, title, strlen(title)) + (int)strlen(count) + 5 < part.w)
            ui_put_right(u, (ui_box){part.y, part.x, 1, part.w - 1}, 0, UI_DIM, count);
        ui_box in = ui_inside(part, 1, 1, 0, 1);
        ui_layout *l = &u->sides.layout[i];
        const char *text = s->text ? s->text : "";
        ui_layout_make(l, u->o.unicode, text, (size_t)s->n, in.w, true);
        u->sides.rows[i] = l->n;
        u->sides.page = in.h;
        if (s->n == 0)
            ui_put(u, in, 0, 0, UI_DIM, s->streaming ? "thinking" : "waits for the other");
        int most = l->n > in.h ? l->n - in.h : 0, top = u->sides.top[i] < most ? u->sides.top[i] : most;
        if (s->streaming)
            top = most;
        for (int y = 0; y < in.h && s->n && top + y < l->n; y++)
            ui_draw_row(u, in, y, 0, UI_PLAIN, l, top + y, text, NULL, NULL, 0, 0);
        ui_scrollbar(u, ui_inside(part, 1, 0, 0, 0), top, in.h, l->n);
    }
    if (beside && n == 2)
        ui_wall(u, b, (b.w - 1) / 2);
}
