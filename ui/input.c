/* Bytes from the terminal to events. Our own decoder rather than curses': it never blocks, does not care how sequences are split over
 * reads, takes a pasted megabyte in one piece, and tests can feed it without a terminal. */
#include "ui_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GROUND, ESCAPE, CSI, SS3, LINUX_F, OSC, OSC_ESCAPE, UTF8, PASTING };
enum { PASTE_MAX = 16 << 20 };

static void send(int key, ui_emit *emit, void *user)
{
    emit(user, &(ui_event){.key = key});
}

/* Parameters of ESC [ a ; b ... into p; returns how many. */
static int parameters(const unsigned char *s, int n, int *p, int max)
{
    int k = 0, value = 0;
    for (int i = 0; i <= n && k < max; i++) {
        if (i < n && s[i] >= '0' && s[i] <= '9') {
            value = value < 100000 ? value * 10 + (s[i] - '0') : value;
        } else {
            p[k++] = value;
            value = 0;
        }
    }
    return k;
}

/* xterm's modifier parameter is 1 + shift 1, alt 2, ctrl 4. */
static int modified(int key, int m)
{
    m = m > 0 ? m - 1 : 0;
    return key | (m & 2 ? UI_ALT : 0) | (m & 4 ? UI_CTRL : 0);
}

static void csi(ui_input *in, ui_emit *emit, void *user)
{
    int final = in->seq[in->n - 1], p[4] = {0};
    const unsigned char *s = in->seq;
    int n = in->n - 1;
    bool mouse = n > 0 && s[0] == '<';
    if (mouse)
        s++, n--;
    int k = parameters(s, n, p, 4);
    if (mouse) {
        int key = p[0] == 64 ? UI_WHEEL_UP : p[0] == 65 ? UI_WHEEL_DOWN : p[0] == 0 && final == 'M' ? UI_CLICK : 0;
        if (key && k >= 3)
            emit(user, &(ui_event){.key = key, .x = p[1] - 1, .y = p[2] - 1});
        return;
    }
    static const struct { char final; int key; } plain[] = {
        {'A', UI_UP}, {'B', UI_DOWN}, {'C', UI_RIGHT}, {'D', UI_LEFT}, {'H', UI_HOME}, {'F', UI_END}, {'Z', UI_BACK_TAB},
        {'P', UI_F1}, {'Q', UI_F1 + 1}, {'R', UI_F1 + 2}, {'S', UI_F1 + 3},
    };
    static const struct { int number, key; } tilde[] = {
        {1, UI_HOME}, {2, UI_INSERT}, {3, UI_DELETE}, {4, UI_END}, {5, UI_PAGE_UP}, {6, UI_PAGE_DOWN}, {7, UI_HOME}, {8, UI_END},
        {11, UI_F1}, {12, UI_F1 + 1}, {13, UI_F1 + 2}, {14, UI_F1 + 3}, {15, UI_F1 + 4}, {17, UI_F1 + 5}, {18, UI_F1 + 6}, {19, UI_F1 + 7},
        {20, UI_F1 + 8}, {21, UI_F1 + 9}, {23, UI_F1 + 10}, {24, UI_F12},
    };
    if (final == '~') {
        if (p[0] == 200) {
            in->state = PASTING;
            es_buf_clear(&in->paste);
            return;
        }
        if (p[0] == 27 && k >= 3 && p[2] == 13) { /* modifyOtherKeys: some terminal's Alt- or Ctrl-Enter */
            send(UI_ENTER | UI_ALT, emit, user);
            return;
        }
        for (size_t i = 0; i < sizeof tilde / sizeof *tilde; i++)
            if (tilde[i].number == p[0])
                send(modified(tilde[i].key, k > 1 ? p[1] : 0), emit, user);
        return;
    }
    if (final == 'u' && p[0] == 13) { /* the kitty protocol's Enter with a modifier */
        send(UI_ENTER | UI_ALT, emit, user);
        return;
    }
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (plain[i].final == final)
            send(modified(plain[i].key, k > 1 ? p[1] : 0), emit, user);
}

/* The answer to the question for the background colour: "11;rgb:RRRR/GGGG/BBBB". */
static void osc(ui_input *in, ui_emit *emit, void *user)
{
    unsigned r, g, b;
    char text[sizeof in->seq + 1];
    memcpy(text, in->seq, (size_t)in->n);
    text[in->n] = 0;
    if (sscanf(text, "11;rgb:%4x/%4x/%4x", &r, &g, &b) != 3)
        return;
    int digits = (int)strcspn(text + 7, "/");
    double full = (double)((1u << (4 * (digits < 1 ? 1 : digits > 4 ? 4 : digits))) - 1);
    double luma = (0.299 * r + 0.587 * g + 0.114 * b) / full;
    emit(user, &(ui_event){.key = UI_BACKGROUND, .x = luma > 0.5});
}

static void ground(ui_input *in, unsigned char c, int alt, ui_emit *emit, void *user)
{
    if (c == 27 && !alt) {
        in->state = ESCAPE;
    } else if (c >= 0xc2 && c <= 0xf4) {
        in->state = UTF8;
        in->seq[0] = c;
        in->seq[1] = (unsigned char)(alt != 0); /* kept behind the first byte; the character's own bytes start again at 2 */
        in->n = 2;
    } else if (c >= 0x80) {
        send(0xfffd | alt, emit, user);
    } else if (c == '\n') {
        send(UI_CONTROL('j') | alt, emit, user);
    } else if (c == 8) {
        send(UI_BACKSPACE | alt, emit, user);
    } else {
        send(c | alt, emit, user);
    }
}

static void utf8(ui_input *in, unsigned char c, ui_emit *emit, void *user)
{
    int first = in->seq[0], need = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1, alt = in->seq[1] ? UI_ALT : 0;
    if ((c & 0xc0) != 0x80) {
        in->state = GROUND;
        send(0xfffd | alt, emit, user);
        ground(in, c, 0, emit, user);
        return;
    }
    in->seq[in->n++] = c;
    if (in->n - 2 < need)
        return;
    in->state = GROUND;
    int cp = need == 1 ? first & 0x1f : need == 2 ? first & 0x0f : first & 0x07;
    for (int i = 2; i < in->n; i++)
        cp = cp << 6 | (in->seq[i] & 0x3f);
    bool valid = cp >= (need == 1 ? 0x80 : need == 2 ? 0x800 : 0x10000) && cp <= 0x10ffff && !(cp >= 0xd800 && cp <= 0xdfff);
    send((valid ? cp : 0xfffd) | alt, emit, user);
}

/* Inside a paste everything is text until ESC [ 201 ~. Returns the bytes taken. */
static size_t pasting(ui_input *in, const char *s, size_t n, ui_emit *emit, void *user)
{
    static const char end[] = "\x1b[201~";
    size_t m = sizeof end - 1, before = in->paste.len;
    es_buf_add(&in->paste, s, n);
    if (in->paste.failed || in->paste.len > PASTE_MAX) { /* drop what is too much, keep looking for the end */
        size_t keep = m - 1;
        if (in->paste.data && in->paste.len > keep && !in->paste.failed) {
            memmove(in->paste.data, in->paste.data + in->paste.len - keep, keep);
            in->paste.len = keep;
            before = 0;
        }
    }
    if (!in->paste.data)
        return n;
    size_t from = before > m ? before - m : 0;
    char *at = memmem(in->paste.data + from, in->paste.len - from, end, m);
    if (!at)
        return n;
    size_t length = (size_t)(at - in->paste.data), taken = length + m - before;
    in->state = GROUND;
    emit(user, &(ui_event){.key = UI_PASTE, .paste = in->paste.data, .n = length});
    es_buf_free(&in->paste);
    return taken < n ? taken : n;
}

void ui_input_feed(ui_input *in, const char *bytes, size_t n, ui_emit *emit, void *user)
{
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)bytes[i];
        if (in->state == PASTING) {
            i += pasting(in, bytes + i, n - i, emit, user);
            continue;
        }
        i++;
        switch (in->state) {
        case GROUND:
            ground(in, c, 0, emit, user);
            break;
        case UTF8:
            utf8(in, c, emit, user);
            break;
        case ESCAPE:
            in->n = 0;
            in->state = GROUND;
            if (c == '[')
                in->state = CSI;
            else if (c == 'O')
                in->state = SS3;
            else if (c == ']')
                in->state = OSC;
            else if (c == 27) {
                send(UI_ESC, emit, user);
                in->state = ESCAPE;
            } else
                ground(in, c, UI_ALT, emit, user);
            break;
        case CSI:
            if (c == 27) { /* a new sequence begins: the old one was cut */
                in->state = ESCAPE;
                break;
            }
            if (in->n == 0 && c == '[') {
                in->state = LINUX_F;
                break;
            }
            if (in->n < (int)sizeof in->seq)
                in->seq[in->n++] = c;
            if (c >= 0x40 && c <= 0x7e) {
                bool whole = in->seq[in->n - 1] == c;
                in->state = GROUND;
                if (whole)
                    csi(in, emit, user);
            }
            break;
        case SS3:
            in->state = GROUND;
            in->seq[0] = c;
            in->n = 1;
            csi(in, emit, user);
            break;
        case LINUX_F: /* the Linux console's F1 to F5: ESC [ [ A */
            in->state = GROUND;
            if (c >= 'A' && c <= 'E')
                send(UI_F1 + c - 'A', emit, user);
            break;
        case OSC:
            if (c == 7 || c == 27) {
                osc(in, emit, user);
                in->state = c == 27 ? OSC_ESCAPE : GROUND;
            } else if (in->n < (int)sizeof in->seq) {
                in->seq[in->n++] = c;
            }
            break;
        case OSC_ESCAPE:
            in->state = GROUND;
            if (c != '\\')
                ground(in, c, UI_ALT, emit, user);
            break;
        default:
            in->state = GROUND;
        }
    }
}

bool ui_input_waits(const ui_input *in)
{
    return in->state != GROUND && in->state != PASTING;
}

void ui_input_flush(ui_input *in, ui_emit *emit, void *user)
{
    int state = in->state;
    if (!ui_input_waits(in))
        return;
    in->state = GROUND;
    if (state == ESCAPE)
        send(UI_ESC, emit, user);
    else if (state == CSI && in->n == 0)
        send('[' | UI_ALT, emit, user);
    else if (state == SS3)
        send('O' | UI_ALT, emit, user);
    else if (state == UTF8)
        send(0xfffd, emit, user);
}

void ui_input_free(ui_input *in)
{
    es_buf_free(&in->paste);
}

void ui_key_name(int key, bool unicode, char *out, size_t n)
{
    static const struct { int key; const char *name, *fancy; } names[] = {
        {UI_UP, "Up", "↑"}, {UI_DOWN, "Down", "↓"}, {UI_LEFT, "Left", "←"}, {UI_RIGHT, "Right", "→"}, {UI_HOME, "Home", NULL},
        {UI_END, "End", NULL}, {UI_PAGE_UP, "PgUp", NULL}, {UI_PAGE_DOWN, "PgDn", NULL}, {UI_INSERT, "Ins", NULL}, {UI_DELETE, "Del", NULL},
        {UI_BACK_TAB, "Shift-Tab", NULL}, {UI_ENTER, "Enter", NULL}, {UI_TAB, "Tab", NULL}, {UI_ESC, "Esc", NULL}, {UI_BACKSPACE, "Backspace", NULL},
        {' ', "Space", NULL}, {UI_WHEEL_UP, "wheel", NULL}, {UI_WHEEL_DOWN, "wheel", NULL},
    };
    const char *prefix = key & UI_ALT ? "Alt-" : key & UI_CTRL ? "Ctrl-" : "";
    int k = key & ~(UI_ALT | UI_CTRL);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].key == k) {
            snprintf(out, n, "%s%s", prefix, unicode && names[i].fancy ? names[i].fancy : names[i].name);
            return;
        }
    if (k >= UI_F1 && k <= UI_F12)
        snprintf(out, n, "%sF%d", prefix, k - UI_F1 + 1);
    else if (k < 32)
        snprintf(out, n, "Ctrl-%c", k + 64);
    else
        snprintf(out, n, "%s%c", prefix, k < 127 ? k : '?');
}
