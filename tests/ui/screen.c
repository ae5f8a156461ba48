#include "screen.h"

#include <unistd.h>

void screen_open_as(screen *s, fake_kind kind, int h, int w, const char *term, bool unicode, bool colour)
{
    es_error err = {0};
    *s = (screen){.studio = fake_studio(kind, 600)};
    assert_int_equal(ui_open(&s->u, s->studio, &(es_ui_options){.unicode = unicode, .colour = colour, .author = "tester"}, &err), 0);
    assert_int_equal(ui_screen_open(s->u, term, h, w, &err), 0);
}

void screen_open(screen *s, fake_kind kind, int h, int w)
{
    screen_open_as(s, kind, h, w, "xterm-256color", true, true);
}

void screen_close(screen *s)
{
    ui_screen_close(s->u);
    ui_close(s->u);
    fake_studio_free(s->studio);
    es_buf_free(&s->text);
}

static void emit(void *user, const ui_event *e)
{
    ui_event_handle(user, e);
}

void screen_keys(screen *s, const char *keys)
{
    for (const char *esc; (esc = strstr(keys, ESC)); keys = esc + strlen(ESC)) {
        ui_feed(s->u, keys, (size_t)(esc - keys));
        ui_take_view(s->u);
        ui_feed(s->u, "\x1b", 1);
        assert_true(ui_input_waits(&s->u->input));
        ui_input_flush(&s->u->input, emit, s->u);
    }
    ui_feed(s->u, keys, strlen(keys));
    ui_take_view(s->u);
}

const char *screen_text(screen *s)
{
    ui_draw(s->u);
    es_buf_clear(&s->text);
    ui_screen_dump(s->u, &s->text);
    return s->text.data;
}

bool screen_shows(screen *s, const char *text)
{
    if (strstr(screen_text(s), text))
        return true;
    fprintf(stderr, "not on the screen: %s\n%s", text, s->text.data);
    return false;
}

void screen_golden(screen *s, const char *name)
{
    const char *dir = getenv("ESPALIER_TEST_DIR"), *write = getenv("ESPALIER_GOLDEN");
    char path[1200];
    es_error err = {0};
    es_buf want = {0};
    assert_non_null(dir);
    snprintf(path, sizeof path, "%s/ui/golden/%s.txt", dir, name);
    const char *have = screen_text(s);
    if (write && !strcmp(write, "write")) {
        assert_int_equal(es_file_write(path, have, strlen(have), &err), 0);
        return;
    }
    if (es_file_read(&want, path, 1 << 20, &err) < 0)
        fail_msg("%s", err.text);
    if (strcmp(want.data ? want.data : "", have)) {
        fprintf(stderr, "---- expected (%s)\n%s---- drawn\n%s", path, want.data ? want.data : "", have);
        es_buf_free(&want);
        fail_msg("the screen differs from %s", name);
    }
    es_buf_free(&want);
}
