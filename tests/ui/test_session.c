/* A session of labelling with nothing stood in for: 200 features through the keys of the workbench into a workspace, and all of it taken back after a restart. */
#include <locale.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dictionary.h"
#include "support.h"
#include "ui_internal.h"

enum { F = 400, LABELS = 200, PATIENCE = 120 };

static es_error err;

static void make_dictionary(const char *model, const char *folder)
{
    es_model *m = NULL;
    es_rng rng;
    char hash[65];
    assert_ok(es_model_open(&m, model, &err), &err);
    int d = es_model_get_info(m)->d_model;
    assert_ok(es_model_hash(m, hash, &err), &err);
    es_model_free(m);
    float *w = calloc((size_t)F * (size_t)d, sizeof *w), *zero = calloc(F + (size_t)d, sizeof *zero);
    es_rng_seed(&rng, 4);
    for (int i = 0; i < F * d; i++)
        w[i] = es_rng_normal(&rng) / sqrtf((float)d);
    json_t *meta = json_pack("{s:s, s:s, s:s}", "model_name", "Tiny", "hook_name", "blocks.1.hook_resid_post", "espalier_model_sha256", hash);
    assert_ok(es_dictionary_save(folder, d, F, w, w, zero, zero, 0.05f, false, meta, &err), &err);
    json_decref(meta);
    free(w);
    free(zero);
}

typedef struct bench { es_studio *studio; es_ui *u; } bench;

static void open_all(bench *b, const char *model, const char *folder, const char *workspace)
{
    es_studio_options o = es_studio_default();
    o.model = model;
    o.dictionary = folder;
    o.workspace = workspace;
    o.author = "tester";
    o.learn = false;
    assert_ok(es_studio_open(&b->studio, &o, &err), &err);
    assert_ok(ui_open(&b->u, b->studio, &(es_ui_options){.unicode = true, .colour = true, .author = "tester"}, &err), &err);
    assert_ok(ui_screen_open(b->u, "xterm-256color", 24, 80, &err), &err);
    for (double end = es_seconds() + PATIENCE; b->u->names.n == 0 && es_seconds() < end;) {
        struct pollfd p = {.fd = es_studio_fd(b->studio), .events = POLLIN};
        poll(&p, 1, 50);
        es_studio_ack(b->studio);
        ui_take_view(b->u);
    }
    assert_int_equal(b->u->names.n, F);
    ui_show(b->u, UI_FEATURES);
}

static void close_all(bench *b)
{
    ui_screen_close(b->u);
    ui_close(b->u);
    es_studio_close(b->studio);
}

static void keys(bench *b, const char *s)
{
    ui_feed(b->u, s, strlen(s));
    ui_draw(b->u);
}

static void expect(bench *b, int feature, const char *text, const char *tags, int rating)
{
    es_label l;
    int rc = es_workspace_label_get(es_studio_workspace(b->studio), es_studio_dictionary_hash(b->studio), feature, &l, &err);
    if (!text) {
        assert_int_equal(rc, ES_ERR_MISSING);
        assert_null(ui_label(b->u, feature));
        return;
    }
    assert_ok(rc, &err);
    assert_string_equal(l.text, text);
    assert_string_equal(l.tags, tags);
    assert_int_equal(l.rating, rating);
    assert_string_equal(l.author, "tester");
    assert_string_equal(ui_label(b->u, feature), text);
    es_label_free(&l);
}

static void two_hundred(void **state)
{
    (void)state;
    char model[1024], folder[1024], workspace[1024], text[40], line[80];
    snprintf(model, sizeof model, "%s", test_path("tiny.gguf"));
    snprintf(folder, sizeof folder, "%s", test_path("dictionary"));
    snprintf(workspace, sizeof workspace, "%s", test_path("workspace.db"));
    make_tiny_gguf(model, NULL);
    make_dictionary(model, folder);
    bench b;
    open_all(&b, model, folder, workspace);
    keys(&b, "lfirst of all\r"); /* feature 0; then each time the next that has no label */
    for (int i = 1; i < LABELS; i++) {
        keys(&b, "n");
        snprintf(line, sizeof line, "lkind %d of word\r", i);
        keys(&b, line);
        if (i % 10 == 5)
            keys(&b, "Ttone polite\r4");
        if (i % 10 == 7)
            keys(&b, "\x1b[A.\x1b[B"); /* the one above says the same */
        ui_take_view(b.u);
    }
    es_workspace *w = es_studio_workspace(b.studio);
    const char *hash = es_studio_dictionary_hash(b.studio);
    assert_int_equal(es_workspace_label_count(w, hash), LABELS);
    expect(&b, 0, "first of all", "", 0);
    for (int i = 1; i < LABELS; i++) {
        int said = i % 10 == 6 ? i + 1 : i; /* '.' on the one above its successor */
        snprintf(text, sizeof text, "kind %d of word", said);
        expect(&b, i, text, i % 10 == 5 ? "tone polite" : "", i % 10 == 5 ? 4 : 0);
    }
    expect(&b, LABELS, NULL, NULL, 0);

    /* Several at once are one step. */
    keys(&b, "gg   Tbatch\r");
    expect(&b, 1, "kind 1 of word", "batch", 0);
    keys(&b, "\x1b");
    ui_input_flush(&b.u->input, (ui_emit *)(void (*)(void))ui_event_handle, b.u);
    close_all(&b);

    /* Taken back step by step in another run: the batch, then every label, tag, rating and repetition. */
    open_all(&b, model, folder, workspace);
    w = es_studio_workspace(b.studio);
    hash = es_studio_dictionary_hash(b.studio);
    int steps = LABELS + 2 * (LABELS / 10) + LABELS / 10;
    keys(&b, "u");
    expect(&b, 1, "kind 1 of word", "", 0);
    for (int i = 0; i < steps; i++) {
        assert_true(es_workspace_label_count(w, hash) > 0);
        keys(&b, "u");
    }
    assert_int_equal(es_workspace_label_count(w, hash), 0);
    for (int i = 0; i < LABELS; i++)
        expect(&b, i, NULL, NULL, 0);
    keys(&b, "u");
    assert_non_null(strstr(b.u->message, "no change of a label"));

    /* And done again. */
    for (int i = 0; i < steps + 1; i++)
        keys(&b, "\x12");
    assert_int_equal(es_workspace_label_count(w, hash), LABELS);
    expect(&b, 1, "kind 1 of word", "batch", 0);
    expect(&b, 199, "kind 199 of word", "", 0);
    assert_ok(es_workspace_check(w, &err), &err);
    close_all(&b);
}

int main(void)
{
    setlocale(LC_ALL, "C.UTF-8");
    const struct CMUnitTest tests[] = {cmocka_unit_test(two_hundred)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
