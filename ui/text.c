/* From bytes to what a terminal shows: glyphs, widths, rows. Widths are the C library's, as the terminal's are; text that would move
 * the cursor about in ways terminals disagree on (joiners, variation selectors, skin tones) is shown as its parts. */
#include "ui_internal.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static size_t decode(const char *s, size_t n, utf8proc_int32_t *cp)
{
    unsigned char c = (unsigned char)*s;
    if (c < 0x80) {
        *cp = c;
        return 1;
    }
    utf8proc_ssize_t step = utf8proc_iterate((const utf8proc_uint8_t *)s, n > 4 ? 4 : (utf8proc_ssize_t)n, cp);
    if (step > 0)
        return (size_t)step;
    *cp = -1;
    return 1;
}

static bool extends(utf8proc_int32_t cp) /* adds to the character before it and takes no room */
{
    if (cp < 0x300)
        return false;
    if (cp == 0x200d || (cp >= 0xfe00 && cp <= 0xfe0f) || (cp >= 0x1f3fb && cp <= 0x1f3ff))
        return true;
    utf8proc_category_t c = utf8proc_category(cp);
    return c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_ME || cp == 0x200b || cp == 0x200c || cp == 0x2060 || cp == 0xfeff;
}

size_t ui_glyph_next(bool unicode, const char *s, size_t n, ui_glyph *g)
{
    utf8proc_int32_t cp;
    size_t used = decode(s, n, &cp);
    g->esc[0] = 0;
    g->n = 1;
    g->width = 1;
    if (cp >= 0x20 && cp < 0x7f) {
        g->ch[0] = (wchar_t)cp;
    } else if (cp < 0xa0 || (cp >= 0x200e && cp <= 0x206f) || cp == 0x61c) { /* perhaps nothing a terminal should get */
        es_buf b = {0};
        es_text_show(&b, s, used, false);
        if (b.data && (b.len != used || memcmp(b.data, s, used))) {
            size_t k = b.len < sizeof g->esc ? b.len : sizeof g->esc - 1;
            memcpy(g->esc, b.data, k);
            g->esc[k] = 0;
            g->width = (int)k;
            es_buf_free(&b);
            return used;
        }
        es_buf_free(&b);
        g->ch[0] = cp < 0 ? L'?' : (wchar_t)cp;
    } else {
        g->ch[0] = (wchar_t)cp;
    }
    if (cp >= 0x7f) {
        int w = unicode ? wcwidth((wchar_t)cp) : 1;
        if (!unicode)
            g->ch[0] = L'?';
        else if (extends(cp)) { /* nothing before it to sit on */
            g->ch[0] = L' ';
            w = 1;
            if (utf8proc_category(cp) == UTF8PROC_CATEGORY_MN) {
                g->ch[1] = (wchar_t)cp;
                g->n = 2;
            }
        } else if (w < 1) {
            g->ch[0] = 0xfffd;
            w = 1;
        }
        g->width = w;
    }
    while (used < n && (unsigned char)s[used] >= 0x80) {
        size_t step = decode(s + used, n - used, &cp);
        if (cp < 0 || !extends(cp))
            break;
        utf8proc_category_t c = utf8proc_category(cp);
        if (unicode && g->n < 5 && (c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_ME) && !(cp >= 0xfe00 && cp <= 0xfe0f) && wcwidth((wchar_t)cp) == 0)
            g->ch[g->n++] = (wchar_t)cp;
        used += step;
    }
    return used;
}

int ui_width(bool unicode, const char *s, size_t n)
{
    int width = 0;
    for (size_t at = 0; at < n;) {
        ui_glyph g;
        at += ui_glyph_next(unicode, s + at, n - at, &g);
        width += g.width;
    }
    return width;
}

size_t ui_fit(bool unicode, const char *s, size_t n, int columns)
{
    size_t at = 0;
    for (int width = 0; at < n;) {
        ui_glyph g;
        size_t step = ui_glyph_next(unicode, s + at, n - at, &g);
        if (width + g.width > columns)
            break;
        width += g.width;
        at += step;
    }
    return at;
}

size_t ui_char_next(const char *s, size_t n, size_t at)
{
    ui_glyph g;
    return at < n ? at + ui_glyph_next(true, s + at, n - at, &g) : n;
}

size_t ui_char_before(const char *s, size_t at)
{
    /* Back to a byte that begins a character which does not sit on the one before. */
    while (at > 0) {
        do
            at--;
        while (at > 0 && ((unsigned char)s[at] & 0xc0) == 0x80);
        utf8proc_int32_t cp;
        decode(s + at, strnlen(s + at, 4), &cp);
        if (at == 0 || cp < 0 || !extends(cp))
            break;
    }
    return at;
}

void ui_oneline(es_buf *out, const char *s, size_t n)
{
    bool blank = true;
    for (size_t i = 0; i < n; i++) {
        bool space = s[i] == ' ' || s[i] == '\n' || s[i] == '\t' || s[i] == '\r';
        if (!space)
            es_buf_add(out, s + i, 1);
        else if (!blank)
            es_buf_add(out, " ", 1);
        blank = space;
    }
}

uint64_t ui_hash(const char *s, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u ^ n;
    for (; n >= 8; s += 8, n -= 8) {
        uint64_t word;
        memcpy(&word, s, 8);
        h = (h ^ word) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)s[i]) * 0x100000001b3u;
    return h;
}

/* ---- rows ---- */

static void row_add(ui_layout *l, size_t start, size_t end, int indent, bool code)
{
    if (l->n == l->cap) {
        int cap = l->cap ? l->cap * 2 : 16;
        ui_row *row = realloc(l->row, (size_t)cap * sizeof *row);
        if (!row)
            return;
        l->row = row;
        l->cap = cap;
    }
    l->row[l->n++] = (ui_row){(int)start, (int)end, indent, code};
}

static void wrap(ui_layout *l, bool unicode, const char *s, size_t start, size_t end, int hang, bool code)
{
    size_t row = start, at = start, chance = 0;
    int column = 0, indent = 0;
    int width = l->width > 0 ? l->width : 1;
    while (at < end) {
        ui_glyph g;
        size_t step = ui_glyph_next(unicode, s + at, end - at, &g);
        bool space = s[at] == ' ' || s[at] == '\t';
        int w = l->mark && (l->mark[at] & UI_HIDDEN) ? 0 : s[at] == '\t' ? 4 : g.width;
        if (column + w > width - indent && at > row) {
            if (space && !code) {
                row_add(l, row, at, indent, code);
                while (at < end && (s[at] == ' ' || s[at] == '\t'))
                    at++;
                row = at;
                column = 0;
            } else {
                size_t cut = !code && chance > row ? chance : at;
                row_add(l, row, cut, indent, code);
                row = cut;
                column = 0;
                for (size_t i = cut; i < at;) {
                    size_t k = ui_glyph_next(unicode, s + i, at - i, &g);
                    column += l->mark && (l->mark[i] & UI_HIDDEN) ? 0 : s[i] == '\t' ? 4 : g.width;
                    i += k;
                }
            }
            indent = hang < width / 2 ? hang : 0;
            chance = 0;
            continue;
        }
        column += w;
        at += step;
        if (space || g.width == 2)
            chance = at;
    }
    if (row < end || row == start)
        row_add(l, row, end, indent, code);
}

/* Marks **strong** and `code` of one line, when they are closed in it. */
static void inline_marks(uint8_t *mark, const char *s, size_t start, size_t end)
{
    for (size_t i = start; i < end; i++) {
        if (s[i] == '`') {
            const char *close = memchr(s + i + 1, '`', end - i - 1);
            if (!close || close == s + i + 1)
                continue;
            size_t to = (size_t)(close - s);
            mark[i] |= UI_HIDDEN;
            for (size_t j = i + 1; j < to; j++)
                mark[j] |= UI_CODE;
            mark[to] |= UI_HIDDEN;
            i = to;
        } else if (i + 4 < end && s[i] == '*' && s[i + 1] == '*' && s[i + 2] != ' ' && s[i + 2] != '*') {
            const char *close = memmem(s + i + 3, end - i - 3, "**", 2);
            if (!close)
                continue;
            size_t to = (size_t)(close - s);
            mark[i] |= UI_HIDDEN, mark[i + 1] |= UI_HIDDEN;
            for (size_t j = i + 2; j < to; j++)
                mark[j] |= UI_STRONG;
            mark[to] |= UI_HIDDEN, mark[to + 1] |= UI_HIDDEN;
            i = to + 1;
        }
    }
}

bool ui_layout_make(ui_layout *l, bool unicode, const char *s, size_t n, int width, bool markdown)
{
    uint64_t hash = ui_hash(s, n);
    if (n > INT32_MAX)
        n = INT32_MAX;
    if (l->made && l->hash == hash && l->width == width && l->markdown == markdown)
        return false;
    l->n = 0;
    l->hash = hash;
    l->width = width;
    l->markdown = markdown;
    l->made = true;
    if (markdown && n > 0) {
        if (l->cap_mark < n) {
            free(l->mark);
            l->mark = malloc(n + n / 2);
            l->cap_mark = l->mark ? n + n / 2 : 0;
        }
        if (l->mark)
            memset(l->mark, 0, n);
    } else {
        free(l->mark);
        l->mark = NULL;
        l->cap_mark = 0;
    }
    bool fence = false;
    for (size_t start = 0; start <= n;) {
        const char *newline = start < n ? memchr(s + start, '\n', n - start) : NULL;
        size_t end = newline ? (size_t)(newline - s) : n;
        size_t text = start;
        int hang = 0;
        if (!l->mark) {
            wrap(l, unicode, s, start, end, 0, false);
        } else {
            while (text < end && s[text] == ' ')
                text++;
            if (end - text >= 3 && !memcmp(s + text, "```", 3)) {
                fence = !fence; /* the fence itself takes no row */
                if (start == 0 && end == n)
                    row_add(l, end, end, 0, true);
            } else if (fence) {
                wrap(l, unicode, s, start, end, 0, true);
            } else {
                size_t mark = text;
                while (mark < end && s[mark] == '#' && mark - text < 6)
                    mark++;
                if (mark > text && mark < end && s[mark] == ' ') {
                    memset(l->mark + text, UI_HIDDEN, mark + 1 - text);
                    memset(l->mark + mark + 1, UI_HEADING, end - mark - 1);
                } else {
                    mark = text;
                    if (mark < end && strchr("-*+", s[mark])) {
                        mark++;
                    } else {
                        while (mark < end && s[mark] >= '0' && s[mark] <= '9' && mark - text < 3)
                            mark++;
                        mark = mark > text && mark < end && (s[mark] == '.' || s[mark] == ')') ? mark + 1 : end;
                    }
                    if (mark < end && s[mark] == ' ')
                        hang = (int)(mark + 1 - start);
                }
                inline_marks(l->mark, s, start, end);
                wrap(l, unicode, s, start, end, hang, false);
            }
        }
        start = end + 1;
    }
    if (l->n == 0)
        row_add(l, 0, 0, 0, false);
    return true;
}

void ui_layout_free(ui_layout *l)
{
    free(l->row);
    free(l->mark);
    *l = (ui_layout){0};
}
