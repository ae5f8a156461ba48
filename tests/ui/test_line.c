/* The line editor and the input decoder, without a screen. */
#include "screen.h"

#include <locale.h>

typedef struct seen { ui_event e[64]; int n; es_buf paste; } seen;

static void see(void *user, const ui_event *e)
{
    seen *s = user;
    if (e->key == UI_PASTE)
        es_buf_add(&s->paste, e->paste, e->n);
    if (s->n < 64)
        s->e[s->n++] = *e;
}

static void decoded(const char *bytes, size_t n, const int *key, int n_key)
{
    for (size_t cut = 1; cut <= n; cut++) { /* however the bytes are split over reads */
        ui_input in = {0};
        seen s = {0};
        for (size_t i = 0; i < n; i += cut)
            ui_input_feed(&in, bytes + i, n - i < cut ? n - i : cut, see, &s);
        assert_int_equal(s.n, n_key);
        for (int i = 0; i < n_key; i++)
            assert_int_equal(s.e[i].key, key[i]);
        assert_false(ui_input_waits(&in));
        es_buf_free(&s.paste);
        ui_input_free(&in);
    }
}
#define DECODED(bytes, ...) decoded(bytes, sizeof bytes - 1, (const int[]){__VA_ARGS__}, (int)(sizeof((const int[]){__VA_ARGS__}) / sizeof(int)))

static void input(void **unused)
{
    (void)unused;
    DECODED("a\r\x7f\x08", 'a', UI_ENTER, UI_BACKSPACE, UI_BACKSPACE);
    DECODED("é日😀", 0xe9, 0x65e5, 0x1f600);
    DECODED("\x1b[A\x1bOB\x1b[1;5C\x1b[1;3D", UI_UP, UI_DOWN, UI_RIGHT | UI_CTRL, UI_LEFT | UI_ALT);
    DECODED("\x1bOP\x1b[11~\x1b[[B\x1b[24~", UI_F1, UI_F1, UI_F1 + 1, UI_F12);
    DECODED("\x1b\r\x1b" "1\x1bé", UI_ENTER | UI_ALT, '1' | UI_ALT, 0xe9 | UI_ALT);
    DECODED("\x1b[Z\x1b[5~\x1b[3~\x1b[H\x1b[4~", UI_BACK_TAB, UI_PAGE_UP, UI_DELETE, UI_HOME, UI_END);
    DECODED("\xff\xc3x\xc0z", 0xfffd, 0xfffd, 'x', 0xfffd, 'z');
    DECODED("\xed\xa0\x80\xe0\x80\x80", 0xfffd, 0xfffd); /* a surrogate, an overlong form */
    DECODED("\x1b[<64;3;4M\x1b[<0;5;6M\x1b[<0;5;6mq", UI_WHEEL_UP, UI_CLICK, 'q');
    DECODED("\x1b]11;rgb:ffff/ffff/eeee\x1b\\x\x1b]11;rgb:00/00/00\x07y", UI_BACKGROUND, 'x', UI_BACKGROUND, 'y');
    DECODED("\x1b[?1;2c\x1b[99~\x1b[1;2;3;4;5;6;7;8;9xz", 'z'); /* answers and keys we do not know are eaten whole */
    DECODED("\x1b[200~a\x1b[Ab\r\x1b[201~c", UI_PASTE, 'c');
    DECODED("\x1b[200~\x1b[201~c", UI_PASTE, 'c');
}

static void escape_alone(void **unused)
{
    (void)unused;
    ui_input in = {0};
    seen s = {0};
    ui_input_feed(&in, "\x1b", 1, see, &s);
    assert_int_equal(s.n, 0);
    assert_true(ui_input_waits(&in));
    ui_input_flush(&in, see, &s);
    assert_int_equal(s.n, 1);
    assert_int_equal(s.e[0].key, UI_ESC);
    assert_false(ui_input_waits(&in));
}

static void paste_as_it_is(void **unused)
{
    (void)unused;
    for (size_t cut = 1; cut < 12; cut++) {
        const char bytes[] = "\x1b[200~one\x1b[201\rtwo\x1b\x1b[201~";
        ui_input in = {0};
        seen s = {0};
        for (size_t i = 0; i < sizeof bytes - 1; i += cut)
            ui_input_feed(&in, bytes + i, sizeof bytes - 1 - i < cut ? sizeof bytes - 1 - i : cut, see, &s);
        assert_int_equal(s.n, 1);
        assert_string_equal(s.paste.data, "one\x1b[201\rtwo\x1b");
        es_buf_free(&s.paste);
        ui_input_free(&in);
    }
}

static void keys(ui_line *l, const char *bytes)
{
    ui_input in = {0};
    seen s = {0};
    ui_input_feed(&in, bytes, strlen(bytes), see, &s);
    for (int i = 0; i < s.n; i++)
        ui_line_key(l, &s.e[i]);
    es_buf_free(&s.paste);
    ui_input_free(&in);
}

static void editing(void **unused)
{
    (void)unused;
    ui_line l = {.recalled = -1, .multi = true};
    keys(&l, "hello world");
    keys(&l, "\x17there"); /* Ctrl-W */
    assert_string_equal(ui_line_text(&l), "hello there");
    keys(&l, "\x01oh \x05!"); /* Ctrl-A, Ctrl-E */
    assert_string_equal(ui_line_text(&l), "oh hello there!");
    keys(&l, "\x1b[1;5D\x1b[1;5D\x1b[3~J"); /* two words left, delete, insert */
    assert_string_equal(ui_line_text(&l), "oh Jello there!");
    keys(&l, "\x0b"); /* Ctrl-K */
    assert_string_equal(ui_line_text(&l), "oh J");
    keys(&l, "\x01\x19"); /* Ctrl-A, Ctrl-Y */
    assert_string_equal(ui_line_text(&l), "ello there!oh J");
    keys(&l, "\x05\x15"); /* Ctrl-E, Ctrl-U */
    assert_string_equal(ui_line_text(&l), "");
    keys(&l, "one\x1b\rtwo"); /* Alt-Enter */
    assert_string_equal(ui_line_text(&l), "one\ntwo");
    assert_int_equal(ui_line_rows(&l, true, 20), 2);
    keys(&l, "\x1b[A!"); /* up, in the text */
    assert_string_equal(ui_line_text(&l), "one!\ntwo");
    assert_int_equal(ui_line_key(&l, &(ui_event){.key = UI_ENTER}), UI_LINE_ENTER);
    ui_line_free(&l);
}

static void whole_characters(void **unused)
{
    (void)unused;
    ui_line l = {.recalled = -1};
    keys(&l, "ae\xcc\x81\xcc\xa3日"); /* e with two marks is one character */
    keys(&l, "\x1b[D\x7f");
    assert_string_equal(ui_line_text(&l), "a日");
    keys(&l, "\x7f\x1b[C\x7f");
    assert_string_equal(ui_line_text(&l), "");
    keys(&l, "\x7f\x1b[3~\x1b[D");
    assert_string_equal(ui_line_text(&l), "");
    ui_line_free(&l);
}

static void remembering(void **unused)
{
    (void)unused;
    ui_history h = {0};
    ui_line l = {.recalled = -1, .history = &h};
    ui_history_add(&h, "first");
    ui_history_add(&h, "second");
    ui_history_add(&h, "second");
    ui_history_add(&h, "");
    assert_int_equal(h.n, 2);
    keys(&l, "draft\x1b[A");
    assert_string_equal(ui_line_text(&l), "second");
    keys(&l, "\x1b[A\x1b[A");
    assert_string_equal(ui_line_text(&l), "first");
    keys(&l, "\x1b[B\x1b[B");
    assert_string_equal(ui_line_text(&l), "draft");
    for (int i = 0; i < 500; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d", i);
        ui_history_add(&h, text);
    }
    assert_true(h.n <= 200);
    assert_string_equal(h.item[h.n - 1], "499");
    ui_line_free(&l);
    ui_history_free(&h);
}

static void pasting(void **unused)
{
    (void)unused;
    ui_line l = {.recalled = -1, .multi = true};
    const char text[] = "a\r\nb\rc\xff\xc3";
    keys(&l, "[]\x1b[D");
    assert_int_equal(ui_line_key(&l, &(ui_event){.key = UI_PASTE, .paste = text, .n = sizeof text - 1}), UI_LINE_CHANGED);
    assert_string_equal(ui_line_text(&l), "[a\nb\nc]");
    size_t n = UI_LINE_MAX + 1;
    char *big = malloc(n);
    assert_non_null(big);
    memset(big, 'x', n);
    assert_int_equal(ui_line_key(&l, &(ui_event){.key = UI_PASTE, .paste = big, .n = n}), UI_LINE_MOVED); /* refused, nothing lost */
    assert_string_equal(ui_line_text(&l), "[a\nb\nc]");
    free(big);
    ui_line_free(&l);
    ui_line one = {.recalled = -1};
    ui_line_key(&one, &(ui_event){.key = UI_PASTE, .paste = "a\nb", .n = 3});
    assert_string_equal(ui_line_text(&one), "a b");
    ui_line_free(&one);
}

int main(void)
{
    setlocale(LC_ALL, "C.UTF-8");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(input), cmocka_unit_test(escape_alone), cmocka_unit_test(paste_as_it_is), cmocka_unit_test(editing),
        cmocka_unit_test(whole_characters), cmocka_unit_test(remembering), cmocka_unit_test(pasting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
