/* Widths, wrapping and drawing inside boxes. */
#include "screen.h"

#include <locale.h>
#include <math.h>

static void widths(void **unused)
{
    (void)unused;
    static const struct { const char *text; int width; } c[] = {
        {"abc", 3}, {"日本", 4}, {"e\xcc\x81", 1}, {"\xcc\x81", 1}, {"\x1b[31m", 8}, {"\xff", 4}, {"\xc2\x9b", 6}, {"\u202eabc", 9},
        {"👨‍👩‍👧", 6}, {"❤️", 1}, {"👍🏽", 2}, {"\n", 2}, {"", 0}, {"a\u200bb", 2}, {"مر", 2},
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++)
        if (ui_width(true, c[i].text, strlen(c[i].text)) != c[i].width)
            fail_msg("width of case %zu is %d, not %d", i, ui_width(true, c[i].text, strlen(c[i].text)), c[i].width);
    assert_int_equal(ui_width(false, "日本", 6), 2); /* question marks */
    assert_int_equal(ui_fit(true, "a日本", 7, 4), 4);
}

static void rows(const char *text, int width, bool markdown, const char *want)
{
    ui_layout l = {0};
    es_buf b = {0};
    ui_layout_make(&l, true, text, strlen(text), width, markdown);
    for (int i = 0; i < l.n; i++) {
        es_buf_printf(&b, "%*s", l.row[i].indent, "");
        for (int j = l.row[i].start; j < l.row[i].end; j++)
            if (!l.mark || !(l.mark[j] & UI_HIDDEN))
                es_buf_add(&b, text + j, 1);
        es_buf_str(&b, "|");
    }
    assert_string_equal(b.data, want);
    assert_false(ui_layout_make(&l, true, text, strlen(text), width, markdown));
    es_buf_free(&b);
    ui_layout_free(&l);
}

static void wrapping(void **unused)
{
    (void)unused;
    rows("", 10, false, "|");
    rows("one two three", 7, false, "one two|three|");
    rows("one two  three", 7, false, "one two|three|");
    rows("abcdefghij", 4, false, "abcd|efgh|ij|");
    rows("a\n\nb\n", 10, false, "a||b||");
    rows("日本語です", 5, false, "日本|語で|す|");
    rows("x abcdefgh", 4, false, "x |abcd|efgh|");
    rows("- one two three", 9, true, "- one two|  three|");
    rows("12. one two", 10, true, "12. one |    two|");
    rows("a **bold** `co de` b", 40, true, "a bold co de b|");
    rows("a **bo", 40, true, "a **bo|"); /* half-streamed marks stay */
    rows("## Title\ntext", 40, true, "Title|text|");
    rows("```c\nint **a; `x`\n```\nend", 40, true, "int **a; `x`|end|");
    rows("```c\nint a;", 40, true, "int a;|");
    rows("abc", 0, false, "a|b|c|");
    rows("2 * 3 ** 4 ** 5", 40, true, "2 * 3 ** 4 ** 5|");
}

static void long_line(void **unused)
{
    (void)unused;
    size_t n = 1 << 20;
    char *text = malloc(n + 1);
    assert_non_null(text);
    memset(text, 'x', n);
    text[n] = 0;
    ui_layout l = {0};
    double t = es_seconds();
    ui_layout_make(&l, true, text, n, 76, true);
    assert_true(es_seconds() - t < 1);
    assert_int_equal(l.n, (n + 75) / 76);
    memset(text, '`', n); /* marks without end are not searched for again and again */
    t = es_seconds();
    ui_layout_make(&l, true, text, n, 76, true);
    memset(text, ' ', n);
    ui_layout_make(&l, true, text, n, 76, true);
    for (size_t i = 0; i + 3 < n; i += 3)
        memcpy(text + i, "**a", 3);
    ui_layout_make(&l, true, text, n, 76, true);
    assert_true(es_seconds() - t < 3);
    ui_layout_free(&l);
    free(text);
}

static void clipping(void **unused)
{
    (void)unused;
    screen s;
    screen_open(&s, FAKE_BARE, 10, 40);
    es_ui *u = s.u;
    ui_screen_erase(u);
    ui_box b = {2, 5, 2, 10};
    ui_put(u, b, 0, 0, UI_PLAIN, "0123456789abc");
    ui_put(u, b, 1, 7, UI_PLAIN, "日本"); /* the second would be cut in two */
    ui_put(u, b, 2, 0, UI_PLAIN, "below");
    ui_put(u, b, -1, 0, UI_PLAIN, "above");
    ui_put(u, b, 1, -3, UI_PLAIN, "abcdef");
    ui_put_cut(u, b, 5, 0, 3, UI_PLAIN, "out");
    ui_bar(u, b, 9, 9, 100, UI_PLAIN, 5);
    es_buf_clear(&s.text);
    ui_screen_dump(u, &s.text);
    assert_string_equal(s.text.data, "\n\n     0123456789\n     def    日\n\n\n\n\n\n\n");
    ui_screen_erase(u);
    b = (ui_box){0, 0, 10, 40};
    ui_put_cut(u, b, 0, 0, 5, UI_PLAIN, "abcdefgh");
    ui_put_cut(u, b, 1, 0, 4, UI_PLAIN, "日本語");
    ui_bar(u, b, 2, 0, 8, UI_PLAIN, 0.5);
    ui_bar_signed(u, b, 3, 0, 9, -0.5);
    float v[] = {0, 1, 2, NAN, 4, -4};
    ui_spark(u, b, 4, 0, 10, UI_PLAIN, v, 6, 1);
    ui_spark(u, b, 5, 0, 3, UI_PLAIN, v, 6, 1);
    ui_put(u, b, 6, 0, UI_PLAIN, "\x1b]0;x\x07|e\xcc\x81|");
    es_buf_clear(&s.text);
    ui_screen_dump(u, &s.text);
    assert_string_equal(s.text.data, "abcd…\n日…\n████\n  ██│\n▅▅▆▁█▁\n▅▁▁\n\\x1b]0;x\\x07|e\xcc\x81|\n\n\n\n");
    screen_close(&s);
}

static void plots(void **unused)
{
    (void)unused;
    screen s;
    screen_open(&s, FAKE_BARE, 10, 40);
    float v[64];
    for (int i = 0; i < 64; i++)
        v[i] = (float)i - 20;
    v[7] = NAN;
    int mark[] = {0, 32, 63, 900};
    ui_screen_erase(s.u);
    ui_plot(s.u, (ui_box){0, 0, 10, 40}, &(ui_series){v, 64, 1, UI_PLAIN}, 1, mark, 4);
    es_buf_clear(&s.text);
    ui_screen_dump(s.u, &s.text);
    assert_non_null(strstr(s.text.data, "+43"));
    assert_non_null(strstr(s.text.data, "-20"));
    assert_non_null(strstr(s.text.data, "▲"));
    for (int h = 0; h < 12; h++) /* no size and no number of steps is a problem */
        for (int w = 0; w < 45; w += 3)
            for (int n = 0; n < 64; n += 21)
                ui_plot(s.u, (ui_box){1, 2, h, w}, &(ui_series){v, n, 1, UI_PLAIN}, 1, mark, 4);
    screen_close(&s);
}

static void lists(void **unused)
{
    (void)unused;
    ui_list l = {0};
    ui_list_fit(&l, 0, 10);
    assert_int_equal(l.at, 0);
    ui_list_key(&l, UI_END);
    assert_int_equal(l.at, 0);
    ui_list_fit(&l, 100, 10);
    ui_list_key(&l, UI_PAGE_DOWN);
    assert_int_equal(l.at, 9);
    ui_list_key(&l, 'G');
    assert_int_equal(l.at, 99);
    assert_int_equal(l.top, 90);
    ui_list_fit(&l, 5, 10);
    assert_int_equal(l.at, 4);
    assert_int_equal(l.top, 0);
    ui_list_key(&l, 'k');
    assert_int_equal(l.at, 3);
    assert_false(ui_list_key(&l, 'z'));
}

int main(void)
{
    setlocale(LC_ALL, "C.UTF-8");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(widths), cmocka_unit_test(wrapping), cmocka_unit_test(long_line), cmocka_unit_test(clipping), cmocka_unit_test(plots), cmocka_unit_test(lists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
