/* From a key to the screen, on a real studio with a generated dictionary (kept in FOLDER, its map in MAPS; made where there is none): bench_screens [FEATURES [FOLDER [MAPS]]] (131,072). It makes a tiny model, a dictionary of that many
 * random directions, its atlas, a workspace with labels, and then presses keys as a person would, taking news from the studio in between as the loop does.
 * Printed: for each kind of key how long the key and the drawing took together, in ms: median, 99th percentile, largest; and how long drawings of news took,
 * behind which a key may have to wait. A fourth argument: only a session of labelling. Nothing is asserted: it is a measurement, not a test. */
#include <locale.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dictionary.h"
#include "harvest.h"
#include "support.h"
#include "ui_internal.h"

enum { D = 64, LAYER = 1, LINES = 400, LABELS = 6000, ACTIVE = 40 };

static es_error err;

static void check(int rc, const char *what)
{
    if (rc) {
        fprintf(stderr, "%s: %s\n", what, err.text);
        exit(1);
    }
}

static const char *const words[] = {"polite", "request", "apology", "number", "list", "code", "function", "comment", "river", "king", "letter", "closing", "greeting",
                                    "opinion", "doubt", "time", "place", "food", "colour", "music", "sport", "law", "money", "weather", "animal", "verb", "plural"};
enum { WORDS = sizeof words / sizeof *words };

/* ---- what there is to look at ---------------------------------------------------------------------------------------------------- */

static void make_text(const char *path, es_rng *r)
{
    es_buf b = {0};
    for (int i = 0; i < LINES; i++) {
        es_buf_str(&b, "{\"text\":\"");
        for (int k = 0; k < 9; k++)
            es_buf_printf(&b, "%s ", words[es_rng_below(r, WORDS)]);
        es_buf_str(&b, "\"}\n");
    }
    test_write(path, b.data, b.len);
    es_buf_free(&b);
}

/* The threshold that some ACTIVE of F random directions reach on a row of this length. */
static float threshold(const char *harvest, int F)
{
    es_harvest_reader h;
    check(es_harvest_reader_open(&h, harvest, LAYER, &err), "harvest");
    float *x = calloc((size_t)h.n_row * D, sizeof *x);
    es_harvest_reader_rows(&h, 0, h.n_row, x);
    double sum = 0;
    for (size_t i = 0; i < h.n_row * D; i++)
        sum += (double)x[i] * (double)x[i];
    double length = sqrt(sum / (double)h.n_row), lo = 0, hi = 8; /* of a normal deviate */
    for (int i = 0; i < 60; i++) {
        double z = (lo + hi) / 2;
        if (0.5 * erfc(z / sqrt(2)) * F > ACTIVE)
            lo = z;
        else
            hi = z;
    }
    free(x);
    es_harvest_reader_close(&h);
    return (float)(lo * length / sqrt(D));
}

static void make_dictionary(es_model *m, const char *folder, int F, float at, es_rng *r)
{
    size_t n = (size_t)F * D;
    float *w = malloc(n * sizeof *w), *zero = calloc((size_t)F + D, sizeof *zero);
    for (int j = 0; j < F; j++) { /* in families, so that a map has something to show */
        double norm = 0;
        for (int i = 0; i < D; i++) {
            float base = j % 64 ? w[(size_t)(j - j % 64) * D + (size_t)i] * 6 : 0;
            w[(size_t)j * D + (size_t)i] = base + es_rng_normal(r);
            norm += (double)w[(size_t)j * D + (size_t)i] * (double)w[(size_t)j * D + (size_t)i];
        }
        for (int i = 0; i < D; i++)
            w[(size_t)j * D + (size_t)i] /= (float)sqrt(norm);
    }
    char hash[65];
    check(es_model_hash(m, hash, &err), "model");
    json_t *meta = json_pack("{s:s, s:s, s:s}", "model_name", "Tiny", "hook_name", "blocks.1.hook_resid_post", "espalier_model_sha256", hash);
    check(es_dictionary_save(folder, D, F, w, w, zero, zero, at, true, meta, &err), "dictionary");
    json_decref(meta);
    free(w);
    free(zero);
}

static void make_labels(const char *path, int F, es_rng *r)
{
    es_buf b = {0};
    for (int i = 0; i < LABELS; i++)
        es_buf_printf(&b, "{\"feature\":%d,\"text\":\"%s %s %s\",\"tags\":[\"%s\"]}\n", (int)((int64_t)i * F / LABELS), words[es_rng_below(r, WORDS)],
                      words[es_rng_below(r, WORDS)], words[es_rng_below(r, WORDS)], words[es_rng_below(r, WORDS)]);
    test_write(path, b.data, b.len);
    es_buf_free(&b);
}

/* ---- measuring ---------------------------------------------------------------------------------------------------------------------- */

typedef struct times { double v[20000]; int n; } times;
static times news;

static int rising(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void print_times(const char *what, times *t)
{
    qsort(t->v, (size_t)t->n, sizeof *t->v, rising);
    if (t->n)
        printf("  %-34s %5d   %7.2f %7.2f %7.2f\n", what, t->n, t->v[t->n / 2] * 1e3, t->v[t->n * 99 / 100] * 1e3, t->v[t->n - 1] * 1e3);
    t->n = 0;
}

static void add(times *t, double seconds)
{
    if (t->n < (int)(sizeof t->v / sizeof *t->v))
        t->v[t->n++] = seconds;
}

/* Waits so long, taking what news comes. */
static void wait(es_ui *u, double seconds)
{
    for (double until = es_seconds() + seconds, left; (left = until - es_seconds()) > 0;) {
        struct pollfd fd = {es_studio_fd(u->studio), POLLIN, 0};
        if (poll(&fd, 1, (int)(left * 1000) + 1) <= 0)
            continue;
        double t = es_seconds();
        es_studio_ack(u->studio);
        ui_take_view(u);
        ui_draw(u);
        add(&news, es_seconds() - t);
    }
}

static void press(es_ui *u, times *t, const char *key)
{
    double began = es_seconds();
    ui_feed(u, key, strlen(key));
    ui_draw(u);
    add(t, es_seconds() - began);
    wait(u, 0.008);
}

static void escape(es_ui *u)
{
    ui_event e = {.key = UI_ESC};
    ui_event_handle(u, &e);
    ui_draw(u);
    wait(u, 0.02);
}

static void presses(es_ui *u, const char *what, const char *const *key, int n, int rounds)
{
    static times t;
    for (int r = 0; r < rounds; r++)
        for (int i = 0; i < n; i++)
            press(u, &t, key[i]);
    print_times(what, &t);
}
#define PRESSES(what, rounds, ...) presses(u, what, (const char *const[]){__VA_ARGS__}, (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)), rounds)

static void found(es_ui *u, const char *filter)
{
    double began = es_seconds();
    es_studio_find(u->studio, filter, ES_FIND_BEST);
    while (es_studio_finding(u->studio))
        usleep(200);
    printf("  found in the background: %-26s %8.1f ms\n", filter, (es_seconds() - began) * 1e3);
    wait(u, 0.05);
}

static void measure(es_ui *u)
{
    printf("%dx%d                                 keys    median     p99  largest (ms)\n", u->w, u->h);
    PRESSES("list: rows", 60, "j", "j", "j", "k");
    PRESSES("list: pages, ends", 60, "\x1b[6~", "\x1b[6~", "\x1b[5~", "G", "\x1b[H");
    for (int i = 0; i < 3; i++) {
        PRESSES("filter: typed letter by letter", 1, "/", "p", "o", "l", "i", "t", "e", " ", "r", "e", "q", "\x7f", "\x7f", "l", "a", "w", "\r");
        escape(u);
    }
    PRESSES("filter: words with many hits", 3, "/", "t", "h", "e", "\x15", "a", "\x15", "s", "\r");
    escape(u);
    PRESSES("order", 6, "o", "j", "\x1b[6~");
    wait(u, 1);
    PRESSES("dashboard: next feature", 1, "\r");
    PRESSES("dashboard: features", 40, "j", "j", "J", "\x1b[6~", "k");
    PRESSES("dashboard: examples in full", 20, "e", "J", "e");
    escape(u);
    PRESSES("jump to a feature", 20, ":", "f", "e", "a", "t", "u", "r", "e", " ", "1", "2", "3", "4", "5", "\r");
    escape(u);
    PRESSES("map: open", 1, "m");
    const float *xy;
    double done;
    static times waits;
    double began = es_seconds();
    while (es_studio_map(u->studio, &xy, &done) == ES_MAP_MAKING)
        press(u, &waits, "j"); /* while all processors make the map */
    if (waits.n) {
        print_times("while the map is being made", &waits);
        printf("  the map took %.1f s\n", es_seconds() - began);
    }
    wait(u, 0.2);
    PRESSES("map: move", 30, "\x1b[C", "\x1b[B", "H", "J", "L", "K");
    PRESSES("map: zoom", 20, "+", "+", "-", "\x1b[H");
    PRESSES("map: dashboard and back", 10, "\r", "m");
    escape(u);
    escape(u);
    print_times("drawings of news", &news);
}

/* A session: 200 features off the queue, each labelled, tagged and rated, every letter a key of its own; then all of it taken back. */
static void label_session(es_ui *u)
{
    enum { FEATURES = 200 };
    static times open, typed, saved, next, undone;
    char label[40];
    open.n = typed.n = saved.n = next.n = undone.n = 0;
    press(u, &open, "N");
    double asked = es_seconds();
    while (es_studio_finding(u->studio))
        wait(u, 0.002);
    printf("  the queue came after %.0f ms\n", (es_seconds() - asked) * 1e3);
    wait(u, 0.05);
    double began = es_seconds(), waited = 0;
    for (int i = 0; i < FEATURES; i++) {
        snprintf(label, sizeof label, "%s of kind %d", words[i % WORDS], i);
        press(u, &typed, "l");
        press(u, &typed, "\x15");
        for (const char *c = label; *c; c++)
            press(u, &typed, (char[]){*c, 0});
        press(u, &saved, "\r");
        press(u, &typed, "T");
        for (const char *c = "tone"; *c; c++)
            press(u, &typed, (char[]){*c, 0});
        press(u, &saved, "\r");
        press(u, &saved, "4");
        press(u, &next, "n");
    }
    double sum = 0;
    const times *all[] = {&open, &typed, &saved, &next};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
        for (int i = 0; i < all[k]->n; i++)
            sum += all[k]->v[i];
    waited = es_seconds() - began - sum;
    printf("%dx%d: %d features labelled, tagged and rated: %.2f s of the program's time in all (%.1f s of waiting for the next key left out)\n", u->w, u->h, FEATURES, sum, waited);
    print_times("queue: N", &open);
    print_times("letters", &typed);
    print_times("saved: label, tags, rating", &saved);
    print_times("next", &next);
    for (int i = 0; i < 3 * FEATURES; i++)
        press(u, &undone, "u");
    print_times("undo", &undone);
    escape(u);
}

static bool searchable(es_ui *u) /* the worker makes the search rows once, and says so in its state */
{
    int f, n = 0;
    char number[16];
    snprintf(number, sizeof number, "%d", u->names.n - 1);
    return es_workspace_search(es_studio_workspace(u->studio), es_studio_dictionary_hash(u->studio), number, &f, 1, &n, NULL) == 0 && n;
}

static void make_all(const char *base, const char *model_path, const char *folder, const char *labels, int F)
{
    es_rng r;
    es_rng_seed(&r, 1);
    char text[1024], harvest[1024], atlas[1100];
    snprintf(text, sizeof text, "%s/text.jsonl", base);
    snprintf(harvest, sizeof harvest, "%s/harvest", base);
    snprintf(atlas, sizeof atlas, "%s/atlas.esa", folder);
    make_tiny_gguf(model_path, NULL);
    es_model *m;
    check(es_model_open(&m, model_path, &err), "model");
    make_text(text, &r);
    es_harvest_options ho = es_harvest_default();
    const int layer = LAYER;
    const char *file = text;
    ho.layer = &layer;
    ho.n_layer = 1;
    check(es_harvest(m, &file, 1, harvest, &ho, NULL, &err), "harvest");
    make_dictionary(m, folder, F, threshold(harvest, F), &r);
    es_dictionary *s;
    check(es_dictionary_open(&s, folder, &err), "dictionary");
    es_atlas_options ao = es_atlas_default();
    check(es_atlas_build(m, s, harvest, atlas, &ao, NULL, &err), "atlas");
    es_dictionary_free(s);
    es_model_free(m);
    make_labels(labels, F, &r); /* last: it says that all is there */
}

int main(int argc, char **argv)
{
    int F = argc > 1 ? atoi(argv[1]) : 131072;
    setlocale(LC_ALL, "C.UTF-8");
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *base = argc > 2 ? argv[2] : test_path("studio");
    char model_path[1024], folder[1024], labels[1100], workspace[1024];
    check(es_dir_make(base, &err), base);
    snprintf(model_path, sizeof model_path, "%s/tiny.gguf", base);
    snprintf(folder, sizeof folder, "%s/dictionary", base);
    snprintf(labels, sizeof labels, "%s/labels.jsonl", folder);
    snprintf(workspace, sizeof workspace, "%s", test_path("workspace.db"));
    double began = es_seconds();
    if (access(labels, F_OK)) {
        make_all(base, model_path, folder, labels, F);
        printf("a dictionary of %d features of width %d, %d labels: made in %.0f s\n", F, D, LABELS, es_seconds() - began);
    }

    began = es_seconds();
    es_studio_options so = es_studio_default();
    so.model = model_path;
    so.dictionary = folder;
    so.workspace = workspace;
    so.labels = labels;
    so.learn = false;
    so.maps = argc > 3 ? argv[3] : NULL; /* a map that is there need not be made */
    es_studio *studio;
    es_ui *u;
    check(es_studio_open(&studio, &so, &err), "studio");
    check(ui_open(&u, studio, &(es_ui_options){.unicode = true, .colour = true}, &err), "workbench");
    check(ui_screen_open(u, "xterm-256color", 24, 80, &err), "screen");
    while (u->names.n == 0)
        wait(u, 0.01);
    printf("open after %.2f s\n", es_seconds() - began);
    while (!searchable(u))
        wait(u, 0.2);
    wait(u, 1);
    printf("searchable after %.1f s\n", es_seconds() - began);
    news.n = 0;
    ui_show(u, UI_FEATURES);
    ui_draw(u);
    label_session(u);
    if (argc > 4) /* that was all that was wanted */
        goto done;
    measure(u);
    ui_screen_resize(u, 50, 200);
    wait(u, 0.5);
    measure(u);
    const char *const filter[] = {"polite", "t", "is:unlabelled", "density<0.001", "promotes:a", "like:12345", "text:\"polite request\"", "oli", "max>3 is:labelled like:5"};
    for (size_t i = 0; i < sizeof filter / sizeof *filter; i++)
        found(u, filter[i]);
done:
    ui_screen_close(u);
    ui_close(u);
    es_studio_close(studio);
    return 0;
}
