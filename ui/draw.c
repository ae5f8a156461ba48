/* Boxes of styled text, bars, sparklines and plots. Everything is clipped to its box and to the screen, so no view need count. */
#include "ui_internal.h"

#define NCURSES_NOMACROS 1
#include <math.h>
#include <ncurses.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

ui_box ui_inside(ui_box b, int top, int right, int bottom, int left)
{
    b.y += top;
    b.x += left;
    b.h -= top + bottom;
    b.w -= left + right;
    b.h = b.h > 0 ? b.h : 0;
    b.w = b.w > 0 ? b.w : 0;
    return b;
}

const char *ui_sign(const es_ui *u, const char *unicode, const char *ascii)
{
    return u->o.unicode ? unicode : ascii;
}

static bool clipped(const es_ui *u, ui_box b, int y, int x, int width)
{
    return y < 0 || y >= b.h || x < 0 || x + width > b.w || b.y + y < 0 || b.y + y >= u->h || b.x + x < 0 || b.x + x + width > u->w;
}

static void cell(es_ui *u, ui_box b, int y, int x, ui_style s, const wchar_t *ch, int n, int width)
{
    if (clipped(u, b, y, x, width))
        return;
    wchar_t text[8];
    cchar_t c;
    int k = n < 6 ? n : 6;
    memcpy(text, ch, (size_t)k * sizeof *text);
    text[k] = 0;
    unsigned a = u->attr[s];
    if (setcchar(&c, text, a & ~A_COLOR, (short)PAIR_NUMBER((int)a), NULL) == OK)
        mvadd_wch(b.y + y, b.x + x, &c);
}

static void one(es_ui *u, ui_box b, int y, int x, ui_style s, wchar_t ch)
{
    cell(u, b, y, x, s, &ch, 1, 1);
}

static int glyph(es_ui *u, ui_box b, int y, int x, ui_style s, const ui_glyph *g)
{
    if (g->esc[0])
        for (int i = 0; g->esc[i]; i++)
            one(u, b, y, x + i, s, (wchar_t)g->esc[i]);
    else if (g->width == 2 && clipped(u, b, y, x, 2))
        one(u, b, y, x, s, L' '); /* half a character does not show */
    else
        cell(u, b, y, x, s, g->ch, g->n, g->width);
    return x + g->width;
}

int ui_putn(es_ui *u, ui_box b, int y, int x, ui_style s, const char *text, size_t n)
{
    for (size_t at = 0; at < n && x < b.w;) {
        ui_glyph g;
        at += ui_glyph_next(u->o.unicode, text + at, n - at, &g);
        x = glyph(u, b, y, x, s, &g);
    }
    return x;
}

int ui_put(es_ui *u, ui_box b, int y, int x, ui_style s, const char *text)
{
    return ui_putn(u, b, y, x, s, text, strlen(text));
}

int ui_printf(es_ui *u, ui_box b, int y, int x, ui_style s, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return ui_put(u, b, y, x, s, text);
}

int ui_put_cut(es_ui *u, ui_box b, int y, int x, int w, ui_style s, const char *text)
{
    if (w <= 0)
        return x;
    size_t n = strlen(text), fit = ui_fit(u->o.unicode, text, n, w);
    if (fit == n) {
        ui_putn(u, b, y, x, s, text, n);
    } else {
        const char *dots = ui_sign(u, "…", ".");
        int end = ui_putn(u, b, y, x, s, text, ui_fit(u->o.unicode, text, n, w - 1));
        ui_put(u, b, y, end, s, dots);
    }
    return x + w;
}

void ui_put_right(es_ui *u, ui_box b, int y, ui_style s, const char *text)
{
    int width = ui_width(u->o.unicode, text, strlen(text));
    ui_put(u, b, y, width < b.w ? b.w - width : 0, s, text);
}

void ui_row_fill(es_ui *u, ui_box b, int y, ui_style s)
{
    for (int x = 0; x < b.w; x++)
        one(u, b, y, x, s, L' ');
}

void ui_fill(es_ui *u, ui_box b, ui_style s)
{
    for (int y = 0; y < b.h; y++)
        ui_row_fill(u, b, y, s);
}

void ui_rule(es_ui *u, ui_box b, int y, const char *title)
{
    wchar_t line = u->o.unicode ? L'─' : L'-';
    for (int x = 0; x < b.w; x++)
        one(u, b, y, x, UI_DIM, line);
    if (title && *title) {
        one(u, b, y, 1, UI_DIM, L' ');
        int x = ui_put_cut(u, b, y, 2, b.w - 4, UI_TITLE, title);
        int end = 2 + ui_width(u->o.unicode, title, strlen(title));
        one(u, b, y, end < x ? end : x, UI_DIM, L' ');
    }
}

void ui_wall(es_ui *u, ui_box b, int x)
{
    for (int y = 0; y < b.h; y++)
        one(u, b, y, x, UI_DIM, u->o.unicode ? L'│' : L'|');
}

ui_box ui_frame(es_ui *u, ui_box b, const char *title)
{
    bool f = u->o.unicode;
    ui_fill(u, b, UI_PLAIN);
    ui_rule(u, b, 0, NULL);
    ui_rule(u, b, b.h - 1, NULL);
    ui_wall(u, b, 0);
    ui_wall(u, b, b.w - 1);
    one(u, b, 0, 0, UI_DIM, f ? L'┌' : L'+');
    one(u, b, 0, b.w - 1, UI_DIM, f ? L'┐' : L'+');
    one(u, b, b.h - 1, 0, UI_DIM, f ? L'└' : L'+');
    one(u, b, b.h - 1, b.w - 1, UI_DIM, f ? L'┘' : L'+');
    if (title && *title) {
        one(u, b, 0, 1, UI_DIM, L' ');
        int end = 2 + ui_width(f, title, strlen(title)), x = ui_put_cut(u, b, 0, 2, b.w - 5, UI_TITLE, title);
        one(u, b, 0, end < x ? end : x, UI_DIM, L' ');
    }
    return ui_inside(b, 1, 2, 1, 2);
}

void ui_bar(es_ui *u, ui_box b, int y, int x, int w, ui_style s, double share)
{
    if (!(share > 0) || w <= 0)
        return;
    int eighths = (int)lround((share > 1 ? 1 : share) * w * 8);
    if (!u->o.unicode)
        eighths = (eighths + 4) / 8 * 8;
    for (int i = 0; i < w && eighths > 0; i++, eighths -= 8)
        one(u, b, y, x + i, s, !u->o.unicode ? L'#' : eighths >= 8 ? L'█' : (wchar_t)(L'█' + (8 - eighths)));
}

void ui_bar_signed(es_ui *u, ui_box b, int y, int x, int w, double value)
{
    int half = (w - 1) / 2;
    if (half < 1)
        return;
    one(u, b, y, x + half, UI_DIM, u->o.unicode ? L'│' : L'|');
    if (value > 0)
        ui_bar(u, b, y, x + half + 1, half, UI_ACCENT, value);
    else if (value < 0) {
        int halves = (int)lround((value < -1 ? 1 : -value) * half * 2);
        for (int i = 1; i <= half && halves > 0; i++, halves -= 2)
            one(u, b, y, x + half - i, UI_WARN, !u->o.unicode ? L'#' : halves >= 2 ? L'█' : L'▐');
    }
}

void ui_spark(es_ui *u, ui_box b, int y, int x, int w, ui_style s, const float *value, int n, int stride)
{
    static const wchar_t blocks[] = L"▁▂▃▄▅▆▇█", ascii[] = L"_.-=+*%#";
    float lo = 0, hi = 0;
    for (int i = 0; i < n; i++) {
        float v = value[(size_t)i * (size_t)stride];
        if (isfinite(v)) {
            lo = v < lo ? v : lo;
            hi = v > hi ? v : hi;
        }
    }
    int columns = n < w ? n : w;
    for (int i = 0; i < columns; i++) {
        int from = n < w ? i : (int)((int64_t)(i + 1) * n / w) - 1;
        float v = value[(size_t)from * (size_t)stride];
        int level = hi > lo && isfinite(v) ? (int)lroundf((v - lo) / (hi - lo) * 7) : 0;
        one(u, b, y, x + i, s, u->o.unicode ? blocks[level] : ascii[level]);
    }
}

void ui_columns_part(es_ui *u, ui_box b, ui_style s, const uint32_t *count, int n, int part, int parts)
{
    double max = 0;
    for (int i = 0; i < n; i++)
        max = count[i] > max ? count[i] : max;
    if (max <= 0 || n <= 0)
        return;
    for (int x = 0; x < b.w; x++) {
        int from = (int)((int64_t)x * n / b.w), to = (int)((int64_t)(x + 1) * n / b.w);
        double c = 0;
        for (int i = from; i < (to > from ? to : from + 1) && i < n; i++)
            c = count[i] > c ? count[i] : c;
        int eighths = (int)ceil(sqrt(c / max) * parts * 8);
        if (c > 0 && eighths < 1)
            eighths = 1;
        eighths -= (parts - 1 - part) * 8; /* what is left for this row, counted from the bottom */
        if (eighths > 0)
            one(u, b, 0, x, s, !u->o.unicode ? (eighths >= 4 ? L'#' : L'.') : eighths >= 8 ? L'█' : (wchar_t)(L'▁' + eighths - 1));
    }
}

void ui_columns(es_ui *u, ui_box b, ui_style s, const uint32_t *count, int n)
{
    for (int y = 0; y < b.h; y++)
        ui_columns_part(u, (ui_box){b.y + y, b.x, 1, b.w}, s, count, n, y, b.h);
}

void ui_dot(uint8_t *cells, int w, int h, int x, int y)
{
    static const uint8_t bit[4][2] = {{1, 8}, {2, 16}, {4, 32}, {64, 128}};
    if (x >= 0 && y >= 0 && x < w * 2 && y < h * 4)
        cells[(size_t)(y / 4) * (size_t)w + (size_t)(x / 2)] |= bit[y % 4][x % 2];
}

void ui_dots(es_ui *u, ui_box b, const uint8_t *cells, const uint8_t *style)
{
    for (int y = 0; y < b.h; y++)
        for (int x = 0; x < b.w; x++) {
            uint8_t c = cells[(size_t)y * (size_t)b.w + (size_t)x];
            if (c) {
                int dots = __builtin_popcount(c);
                one(u, b, y, x, (ui_style)style[(size_t)y * (size_t)b.w + (size_t)x],
                    u->o.unicode ? (wchar_t)(0x2800 + c) : dots > 5 ? L'#' : dots > 2 ? L'*' : dots > 1 ? L':' : L'.');
            }
        }
}

/* ---- plot ---- */

static void dot(uint8_t *cells, uint8_t *style, int w, int h, int x, int y, ui_style s)
{
    if (x < 0 || y < 0 || x >= w * 2 || y >= h * 4)
        return;
    ui_dot(cells, w, h, x, y);
    style[(size_t)(y / 4) * (size_t)w + (size_t)(x / 2)] = (uint8_t)s;
}

void ui_plot(es_ui *u, ui_box b, const ui_series *series, int n_series, const int *mark, int n_mark)
{
    int left = 8, w = b.w - left, h = b.h - (n_mark ? 1 : 0), n = 0;
    if (w < 4 || h < 2)
        return;
    float lo = 0, hi = 0;
    for (int k = 0; k < n_series; k++) {
        n = series[k].n > n ? series[k].n : n;
        for (int i = 0; i < series[k].n; i++) {
            float v = series[k].value[(size_t)i * (size_t)series[k].stride];
            if (isfinite(v)) {
                lo = v < lo ? v : lo;
                hi = v > hi ? v : hi;
            }
        }
    }
    if (hi - lo < 1e-12f)
        hi = lo + 1;
    uint8_t *cells = calloc((size_t)w * (size_t)h, 2), *style = cells ? cells + (size_t)w * (size_t)h : NULL;
    if (!cells)
        return;
    int zero = (int)lroundf(hi / (hi - lo) * (float)(h * 4 - 1));
    for (int x = 0; x < w * 2; x += 4)
        dot(cells, style, w, h, x, zero, UI_DIM);
    for (int k = 0; k < n_series; k++) {
        int px = -1, py = 0;
        for (int i = 0; i < series[k].n; i++) {
            float v = series[k].value[(size_t)i * (size_t)series[k].stride];
            if (!isfinite(v))
                continue;
            int x = n > 1 ? (int)((int64_t)i * (w * 2 - 1) / (n - 1)) : 0;
            int y = (int)lroundf((hi - v) / (hi - lo) * (float)(h * 4 - 1));
            if (px < 0)
                px = x, py = y;
            int dx = x - px, dy = y - py, steps = abs(dx) > abs(dy) ? abs(dx) : abs(dy);
            for (int t = 0; t <= steps; t++)
                dot(cells, style, w, h, px + (steps ? dx * t / steps : 0), py + (steps ? dy * t / steps : 0), series[k].style);
            px = x, py = y;
        }
    }
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++) {
            uint8_t c = cells[(size_t)y * (size_t)w + (size_t)x];
            if (c)
                one(u, b, y, left + x, (ui_style)style[(size_t)y * (size_t)w + (size_t)x],
                    u->o.unicode ? (wchar_t)(0x2800 + c) : style[(size_t)y * (size_t)w + (size_t)x] == UI_DIM ? L'.' : L'*');
        }
    free(cells);
    if (hi > 0)
        ui_printf(u, b, 0, 0, UI_DIM, "%+7.3g", (double)hi);
    if (lo < 0)
        ui_printf(u, b, h - 1, 0, UI_DIM, "%+7.3g", (double)lo);
    if (hi <= 0 || lo >= 0)
        ui_printf(u, b, hi <= 0 ? 0 : h - 1, 0, UI_DIM, "%7s", "0");
    else if (zero / 4 > 0 && zero / 4 < h - 1)
        ui_printf(u, b, zero / 4, 0, UI_DIM, "%7s", "0");
    for (int i = 0; i < n_mark; i++) {
        int x = n > 1 ? (int)((int64_t)mark[i] * (w * 2 - 1) / (n - 1)) / 2 : 0;
        if (x >= 0 && x < w)
            one(u, b, h, left + x, UI_GOOD, u->o.unicode ? L'▲' : L'^');
    }
}

/* ---- shaded text ---- */

ui_style ui_shade(float value, float max)
{
    if (!(value > 0) || !(max > 0))
        return UI_PLAIN;
    int level = (int)(value / max * UI_SHADES);
    return (ui_style)(UI_SHADE + (level < UI_SHADES ? level : UI_SHADES - 1));
}

void ui_draw_row(es_ui *u, ui_box b, int y, int x, ui_style s, const ui_layout *l, int row, const char *text, const int *token_end,
                 const float *shade, int n_token, float max)
{
    const ui_row *r = &l->row[row];
    int token = 0;
    if (token_end && shade) { /* the first token that ends after the row's start */
        int lo = 0, hi = n_token;
        while (lo < hi) {
            int middle = (lo + hi) / 2;
            if (token_end[middle] > r->start)
                hi = middle;
            else
                lo = middle + 1;
        }
        token = lo;
    }
    x += r->indent;
    for (int at = r->start; at < r->end && x < b.w;) {
        ui_glyph g;
        int step = (int)ui_glyph_next(u->o.unicode, text + at, (size_t)(r->end - at), &g);
        uint8_t m = l->mark ? l->mark[at] : 0;
        ui_style style = s;
        if (token_end && shade) {
            while (token < n_token && token_end[token] <= at)
                token++;
            ui_style shaded = token < n_token ? ui_shade(shade[token], max) : UI_PLAIN;
            style = shaded != UI_PLAIN ? shaded : style;
        }
        if (style == s)
            style = m & (UI_STRONG | UI_HEADING) ? UI_BOLD : m & UI_CODE || r->code ? UI_ACCENT : s;
        if (m & UI_HIDDEN) {
            ;
        } else if (text[at] == '\t') {
            x = ui_put(u, b, y, x, style, "    ");
        } else {
            x = glyph(u, b, y, x, style, &g);
        }
        at += step;
    }
}

void ui_cursor(es_ui *u, ui_box b, int y, int x)
{
    if (x >= b.w)
        x = b.w - 1;
    if (clipped(u, b, y, x, 1))
        return;
    u->cursor_y = b.y + y;
    u->cursor_x = b.x + x;
    u->cursor_on = true;
}

void ui_scrollbar(es_ui *u, ui_box b, int top, int page, int n)
{
    if (n <= page || page <= 0 || b.h < 3)
        return;
    int size = (int)((int64_t)b.h * page / n), at;
    size = size < 1 ? 1 : size;
    at = n > page ? (int)((int64_t)(b.h - size) * top / (n - page)) : 0;
    for (int y = 0; y < b.h; y++)
        one(u, b, y, b.w - 1, UI_DIM, y >= at && y < at + size ? (u->o.unicode ? L'┃' : L'#') : (u->o.unicode ? L'│' : L'|'));
}

/* ---- styles ---- */

/* Colour triples: on a background of unknown colour (middle tones that read on both), on a dark one, on a light one. */
void ui_colours(es_ui *u)
{
    static const struct { unsigned attr; short fg[3], bg[3]; } rich[UI_STYLES] = {
        [UI_DIM] = {0, {244, 245, 243}, {-1, -1, -1}},
        [UI_BOLD] = {A_BOLD, {-1, -1, -1}, {-1, -1, -1}},
        [UI_TITLE] = {A_BOLD, {-1, -1, -1}, {-1, -1, -1}},
        [UI_ACCENT] = {0, {31, 80, 25}, {-1, -1, -1}},
        [UI_GOOD] = {0, {28, 114, 28}, {-1, -1, -1}},
        [UI_BAD] = {0, {160, 203, 160}, {-1, -1, -1}},
        [UI_WARN] = {0, {130, 215, 130}, {-1, -1, -1}},
        [UI_KEY] = {A_BOLD, {31, 80, 25}, {-1, -1, -1}},
        [UI_SELECTED] = {0, {231, -1, -1}, {24, 239, 252}},
        [UI_BAR] = {0, {252, 252, 236}, {238, 237, 253}},
        [UI_TAB_OFF] = {0, {252, 252, 236}, {238, 237, 253}},
        [UI_TAB_ON] = {A_BOLD, {231, 231, 231}, {31, 31, 25}},
        [UI_LINE2] = {0, {133, 176, 91}, {-1, -1, -1}},
        [UI_LINE3] = {0, {130, 215, 130}, {-1, -1, -1}},
        [UI_SHADE] = {0, {230, 230, 232}, {58, 58, 230}},
        [UI_SHADE + 1] = {0, {230, 230, 232}, {94, 94, 229}},
        [UI_SHADE + 2] = {0, {231, 231, 232}, {130, 130, 222}},
        [UI_SHADE + 3] = {0, {232, 232, 232}, {172, 172, 215}},
        [UI_SHADE + 4] = {0, {232, 232, 232}, {208, 208, 209}},
        [UI_SHADE + 5] = {A_BOLD, {232, 232, 232}, {214, 214, 208}},
    };
    static const struct { unsigned attr; short fg, bg; } plain[UI_STYLES] = {
        [UI_DIM] = {0, -1, -1}, [UI_BOLD] = {A_BOLD, -1, -1}, [UI_TITLE] = {A_BOLD, -1, -1}, [UI_ACCENT] = {0, COLOR_CYAN, -1},
        [UI_GOOD] = {0, COLOR_GREEN, -1}, [UI_BAD] = {0, COLOR_RED, -1}, [UI_WARN] = {0, COLOR_MAGENTA, -1},
        [UI_KEY] = {A_BOLD, -1, -1}, [UI_SELECTED] = {A_REVERSE, -1, -1}, [UI_BAR] = {A_REVERSE, -1, -1},
        [UI_TAB_OFF] = {A_REVERSE, -1, -1}, [UI_TAB_ON] = {A_BOLD, COLOR_WHITE, COLOR_BLUE}, [UI_LINE2] = {0, COLOR_MAGENTA, -1},
        [UI_LINE3] = {0, COLOR_GREEN, -1},
        [UI_SHADE] = {A_UNDERLINE, -1, -1}, [UI_SHADE + 1] = {A_UNDERLINE, -1, -1}, [UI_SHADE + 2] = {A_BOLD | A_UNDERLINE, -1, -1},
        [UI_SHADE + 3] = {0, COLOR_BLACK, COLOR_YELLOW}, [UI_SHADE + 4] = {0, COLOR_BLACK, COLOR_YELLOW},
        [UI_SHADE + 5] = {A_BOLD | A_UNDERLINE, COLOR_BLACK, COLOR_YELLOW},
    };
    static const unsigned mono[UI_STYLES] = {
        [UI_DIM] = 0, [UI_BOLD] = A_BOLD, [UI_TITLE] = A_BOLD, [UI_KEY] = A_BOLD, [UI_SELECTED] = A_REVERSE, [UI_BAR] = A_REVERSE,
        [UI_TAB_OFF] = 0, [UI_TAB_ON] = A_REVERSE | A_BOLD, [UI_BAD] = A_BOLD,
        [UI_SHADE] = A_UNDERLINE, [UI_SHADE + 1] = A_UNDERLINE, [UI_SHADE + 2] = A_UNDERLINE | A_BOLD, [UI_SHADE + 3] = A_UNDERLINE | A_BOLD,
        [UI_SHADE + 4] = A_REVERSE, [UI_SHADE + 5] = A_REVERSE | A_BOLD,
    };
    bool colour = u->o.colour && has_colors() && COLORS >= 8;
    int ground = u->background_known ? (u->light ? 2 : 1) : 0;
    for (int i = 0; i < UI_STYLES; i++) {
        if (!colour) {
            u->attr[i] = mono[i];
            continue;
        }
        short fg = COLORS >= 256 ? rich[i].fg[ground] : plain[i].fg, bg = COLORS >= 256 ? rich[i].bg[ground] : plain[i].bg;
        u->attr[i] = COLORS >= 256 ? rich[i].attr : plain[i].attr;
        if (i == UI_PLAIN || (fg < 0 && bg < 0))
            continue;
        init_pair((short)(i + 1), fg, bg);
        u->attr[i] |= (unsigned)COLOR_PAIR(i + 1);
    }
}

void ui_screen_erase(es_ui *u)
{
    erase();
    if (u->redraw_all)
        clearok(stdscr, TRUE);
    u->redraw_all = false;
    u->cursor_on = false;
}

void ui_screen_update(es_ui *u)
{
    curs_set(u->cursor_on);
    if (u->cursor_on)
        move(u->cursor_y, u->cursor_x);
    refresh();
}

static void utf8_add(es_buf *out, wchar_t c)
{
    utf8proc_uint8_t b[4];
    es_buf_add(out, (char *)b, (size_t)utf8proc_encode_char((utf8proc_int32_t)c, b));
}

void ui_screen_dump(es_ui *u, es_buf *out)
{
    for (int y = 0; y < u->h; y++) {
        size_t end = out->len;
        for (int x = 0; x < u->w; x++) {
            cchar_t c;
            wchar_t ch[CCHARW_MAX + 1] = {0};
            attr_t a;
            short pair;
            if (mvin_wch(y, x, &c) != OK || getcchar(&c, ch, &a, &pair, NULL) != OK || !ch[0])
                continue; /* the right half of a wide character */
            for (int i = 0; i < CCHARW_MAX && ch[i]; i++)
                utf8_add(out, ch[i]);
            if (ch[0] != L' ' || (a & (A_REVERSE | A_UNDERLINE)))
                end = out->len;
            if (wcwidth(ch[0]) == 2)
                x++;
        }
        out->len = end;
        es_buf_str(out, "\n");
    }
}

void ui_screen_styles(es_ui *u, es_buf *out)
{
    for (int y = 0; y < u->h; y++) {
        for (int x = 0; x < u->w; x++) {
            cchar_t c;
            wchar_t ch[CCHARW_MAX + 1] = {0};
            attr_t a = 0;
            short pair = 0;
            char letter = '.';
            if (mvin_wch(y, x, &c) == OK)
                getcchar(&c, ch, &a, &pair, NULL);
            if (pair > UI_SHADE && pair <= UI_SHADE + UI_SHADES)
                letter = (char)('1' + pair - UI_SHADE - 1);
            else if (a & A_REVERSE)
                letter = 'r';
            else if (a & A_UNDERLINE)
                letter = 'u';
            else if (a & A_BOLD)
                letter = 'b';
            else if (pair == UI_DIM + 1)
                letter = 'd';
            else if (pair)
                letter = 'c';
            es_buf_add(out, &letter, 1);
        }
        es_buf_str(out, "\n");
    }
}
