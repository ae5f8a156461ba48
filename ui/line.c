/* The line editor: one for the chat box, the prompts and the correction of replies. Emacs-like keys as shells have them. */
#include "ui_internal.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { HISTORY_MAX = 200 };

void ui_history_add(ui_history *h, const char *text)
{
    if (!*text || (h->n && !strcmp(h->item[h->n - 1], text)))
        return;
    char *copy = strdup(text);
    char **item = copy ? realloc(h->item, (size_t)(h->n + 1) * sizeof *item) : NULL;
    if (!item) {
        free(copy);
        return;
    }
    h->item = item;
    h->item[h->n++] = copy;
    if (h->n > HISTORY_MAX) {
        free(h->item[0]);
        memmove(h->item, h->item + 1, (size_t)--h->n * sizeof *h->item);
    }
}

void ui_history_free(ui_history *h)
{
    for (int i = 0; i < h->n; i++)
        free(h->item[i]);
    free(h->item);
    *h = (ui_history){0};
}

const char *ui_line_text(const ui_line *l)
{
    return l->text.data ? l->text.data : "";
}

void ui_line_set(ui_line *l, const char *text)
{
    es_buf_clear(&l->text);
    es_buf_str(&l->text, text);
    l->at = l->text.len;
    l->top = 0;
    l->recalled = -1;
    free(l->stash);
    l->stash = NULL;
}

void ui_line_free(ui_line *l)
{
    es_buf_free(&l->text);
    es_buf_free(&l->killed);
    ui_layout_free(&l->layout);
    free(l->stash);
    *l = (ui_line){0};
}

static bool insert(ui_line *l, const char *s, size_t n)
{
    if (n == 0 || n > UI_LINE_MAX || l->text.len + n > UI_LINE_MAX)
        return false;
    size_t old = l->text.len;
    es_buf_add(&l->text, s, n);
    if (l->text.failed) {
        l->text.failed = false; /* the old content is still there */
        return false;
    }
    char *d = l->text.data;
    if (l->at < old) {
        char *copy = malloc(n); /* s may not point into the buffer, but the tail must move over what was just added */
        if (!copy) {
            l->text.len = old;
            d[old] = 0;
            return false;
        }
        memcpy(copy, d + old, n);
        memmove(d + l->at + n, d + l->at, old - l->at);
        memcpy(d + l->at, copy, n);
        free(copy);
    }
    l->at += n;
    return true;
}

static bool cut(ui_line *l, size_t from, size_t to, bool keep)
{
    if (from >= to)
        return false;
    if (keep) {
        es_buf_clear(&l->killed);
        es_buf_add(&l->killed, l->text.data + from, to - from);
    }
    memmove(l->text.data + from, l->text.data + to, l->text.len - to + 1);
    l->text.len -= to - from;
    l->at = from;
    return true;
}

static bool word_byte(char c)
{
    return (unsigned char)c >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '\'';
}

static size_t word_left(const ui_line *l)
{
    size_t at = l->at;
    while (at > 0 && !word_byte(l->text.data[at - 1]))
        at--;
    while (at > 0 && word_byte(l->text.data[at - 1]))
        at--;
    return at;
}

static size_t word_right(const ui_line *l)
{
    size_t at = l->at;
    while (at < l->text.len && !word_byte(l->text.data[at]))
        at++;
    while (at < l->text.len && word_byte(l->text.data[at]))
        at++;
    return at;
}

static size_t line_start(const ui_line *l)
{
    size_t at = l->at;
    while (at > 0 && l->text.data[at - 1] != '\n')
        at--;
    return at;
}

static size_t line_end(const ui_line *l)
{
    size_t at = l->at;
    while (at < l->text.len && l->text.data[at] != '\n')
        at++;
    return at;
}

static int row_of(const ui_line *l, size_t at)
{
    int row = 0;
    for (int lo = 0, hi = l->layout.n; lo < hi;) { /* the last row that starts at or before the cursor */
        int middle = (lo + hi) / 2;
        if ((size_t)l->layout.row[middle].start <= at) {
            row = middle;
            lo = middle + 1;
        } else {
            hi = middle;
        }
    }
    return row;
}

/* Up and down by rows as they were last drawn; false at the first or last one. */
static bool vertical(ui_line *l, int by)
{
    if (!l->multi || l->width <= 0)
        return false;
    ui_layout_make(&l->layout, true, ui_line_text(l), l->text.len, l->width, false);
    int row = row_of(l, l->at), to = row + by;
    if (to < 0 || to >= l->layout.n)
        return false;
    const ui_row *r = &l->layout.row[row], *t = &l->layout.row[to];
    const char *s = ui_line_text(l);
    int column = ui_width(true, s + r->start, l->at - (size_t)r->start);
    l->at = (size_t)t->start + ui_fit(true, s + t->start, (size_t)(t->end - t->start), column);
    return true;
}

static bool recall(ui_line *l, int by)
{
    if (!l->history || l->history->n == 0)
        return false;
    int at = l->recalled < 0 ? l->history->n : l->recalled;
    int to = at + by;
    if (to < 0 || to > l->history->n)
        return false;
    char *stash = l->stash;
    if (l->recalled < 0)
        stash = strdup(ui_line_text(l));
    l->stash = NULL;
    ui_line_set(l, to < l->history->n ? l->history->item[to] : stash ? stash : "");
    if (to < l->history->n) {
        l->recalled = to;
        l->stash = stash;
    } else {
        free(stash);
    }
    return true;
}

/* What is pasted is text: line ends are made one kind, other control bytes are kept (and shown, never sent). */
static bool paste(ui_line *l, const char *s, size_t n)
{
    es_buf b = {0};
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '\r') {
            if (i + 1 < n && s[i + 1] == '\n')
                continue;
            es_buf_add(&b, l->multi ? "\n" : " ", 1);
        } else if (s[i] == '\n' && !l->multi) {
            es_buf_add(&b, " ", 1);
        } else if (s[i] != 0) {
            es_buf_add(&b, s + i, 1);
        }
    }
    size_t whole = 0; /* invalid UTF-8 is dropped here, so that what is sent to the model is text */
    es_buf clean = {0};
    while (b.data && whole < b.len) {
        size_t k = es_utf8_whole(b.data + whole, b.len - whole);
        es_buf_add(&clean, b.data + whole, k);
        whole += k + (k < b.len - whole ? 1 : 0);
    }
    bool ok = !b.failed && !clean.failed && clean.data && insert(l, clean.data, clean.len);
    es_buf_free(&b);
    es_buf_free(&clean);
    return ok;
}

static bool type(ui_line *l, int cp)
{
    utf8proc_uint8_t b[4];
    return insert(l, (char *)b, (size_t)utf8proc_encode_char(cp, b));
}

ui_line_result ui_line_key(ui_line *l, const ui_event *e)
{
    const char *s = ui_line_text(l);
    size_t n = l->text.len;
    bool changed = false;
    switch (e->key) {
    case UI_PASTE:
        return paste(l, e->paste, e->n) ? UI_LINE_CHANGED : UI_LINE_MOVED;
    case UI_ENTER:
        return UI_LINE_ENTER;
    case UI_ENTER | UI_ALT:
    case UI_CONTROL('j'):
        if (!l->multi)
            return UI_LINE_ENTER;
        changed = insert(l, "\n", 1);
        break;
    case UI_LEFT:
    case UI_CONTROL('b'): l->at = ui_char_before(s, l->at); break;
    case UI_RIGHT:
    case UI_CONTROL('f'): l->at = ui_char_next(s, n, l->at); break;
    case UI_LEFT | UI_CTRL:
    case UI_LEFT | UI_ALT:
    case 'b' | UI_ALT: l->at = word_left(l); break;
    case UI_RIGHT | UI_CTRL:
    case UI_RIGHT | UI_ALT:
    case 'f' | UI_ALT: l->at = word_right(l); break;
    case UI_HOME:
    case UI_CONTROL('a'): l->at = line_start(l); break;
    case UI_END:
    case UI_CONTROL('e'): l->at = line_end(l); break;
    case UI_HOME | UI_CTRL: l->at = 0; break;
    case UI_END | UI_CTRL: l->at = n; break;
    case UI_UP:
    case UI_CONTROL('p'):
        if (!vertical(l, -1) && !recall(l, -1))
            return n ? UI_LINE_MOVED : UI_LINE_IGNORED;
        return UI_LINE_CHANGED;
    case UI_DOWN:
    case UI_CONTROL('n'):
        if (!vertical(l, 1) && !recall(l, 1))
            return n ? UI_LINE_MOVED : UI_LINE_IGNORED;
        return UI_LINE_CHANGED;
    case UI_BACKSPACE: changed = cut(l, ui_char_before(s, l->at), l->at, false); break;
    case UI_DELETE:
    case UI_CONTROL('d'): changed = cut(l, l->at, ui_char_next(s, n, l->at), false); break;
    case UI_CONTROL('w'):
    case UI_BACKSPACE | UI_ALT: changed = cut(l, word_left(l), l->at, true); break;
    case 'd' | UI_ALT: changed = cut(l, l->at, word_right(l), true); break;
    case UI_CONTROL('k'): {
        size_t to = line_end(l);
        changed = cut(l, l->at, to == l->at && to < n ? to + 1 : to, true);
        break;
    }
    case UI_CONTROL('u'): changed = cut(l, line_start(l), l->at, true); break;
    case UI_CONTROL('x'):
        l->at = 0;
        changed = cut(l, 0, n, true);
        break;
    case UI_CONTROL('y'): changed = l->killed.len && insert(l, l->killed.data, l->killed.len); break;
    default:
        if (e->key < 32 || e->key == 127 || e->key > 0x10ffff)
            return UI_LINE_IGNORED;
        changed = type(l, e->key);
    }
    return changed ? UI_LINE_CHANGED : UI_LINE_MOVED;
}

int ui_line_rows(ui_line *l, bool unicode, int width)
{
    ui_layout_make(&l->layout, unicode, ui_line_text(l), l->text.len, width, false);
    l->width = width;
    return l->layout.n;
}

void ui_line_draw(es_ui *u, ui_box b, ui_line *l, bool focused)
{
    if (b.h < 1 || b.w < 2)
        return;
    int width = b.w - 1; /* the cursor may stand behind the last character */
    ui_line_rows(l, u->o.unicode, width);
    const char *s = ui_line_text(l);
    int row = row_of(l, l->at);
    if (row < l->top)
        l->top = row;
    if (row >= l->top + b.h)
        l->top = row - b.h + 1;
    if (l->top > l->layout.n - b.h)
        l->top = l->layout.n > b.h ? l->layout.n - b.h : 0;
    for (int y = 0; y < b.h && l->top + y < l->layout.n; y++)
        ui_draw_row(u, b, y, 0, UI_PLAIN, &l->layout, l->top + y, s, NULL, NULL, 0, 0);
    const ui_row *r = &l->layout.row[row];
    int x = ui_width(u->o.unicode, s + r->start, l->at - (size_t)r->start);
    if (focused)
        ui_cursor(u, b, row - l->top, x < b.w ? x : b.w - 1);
}
