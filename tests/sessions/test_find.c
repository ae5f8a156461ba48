/* Finding features by the filter language, on a tiny model with a dictionary, an atlas and labels; then the same, dashboards, maps and contrasts through a
 * studio's looking threads. */
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dictionary.h"
#include "features.h"
#include "sessions.h"
#include "support.h"

enum { D = 64, F = 120, LAYER = 1 };

static es_error err;
static es_model *model;
static es_dictionary *dictionary;
static es_atlas *atlas;
static es_workspace *workspace;
static char *model_path, *folder, *labels_path;
static es_finder finder;
static es_basis basis = {.name = "mine", .layer = LAYER};

static void make_dictionary(void)
{
    float *w = calloc((size_t)F * D, sizeof *w), zero[F + D] = {0};
    char hash[65];
    es_rng r;
    es_rng_seed(&r, 3);
    for (int j = 0; j < F; j++) {
        double norm = 0;
        for (int i = 0; i < D; i++) { /* every tenth close to the one before */
            w[j * D + i] = es_rng_normal(&r) * (j % 10 == 1 ? 0.3f : 1) + (j % 10 == 1 ? 8 * w[(j - 1) * D + i] : 0);
            norm += (double)w[j * D + i] * (double)w[j * D + i];
        }
        for (int i = 0; i < D; i++)
            w[j * D + i] /= (float)sqrt(norm);
    }
    assert_ok(es_model_hash(model, hash, &err), &err);
    json_t *meta = json_pack("{s:s, s:s, s:s}", "model_name", "Tiny", "hook_name", "blocks.1.hook_resid_post", "espalier_model_sha256", hash);
    assert_ok(es_dictionary_save(folder, D, F, w, w, zero, zero, 0.8f, false, meta, &err), &err);
    json_decref(meta);
    free(w);
}

static int set_up(void **state)
{
    (void)state;
    char text[1024], atlas_path[1100];
    model_path = strdup(test_path("tiny.gguf"));
    folder = strdup(test_path("dictionary"));
    labels_path = strdup(test_path("labels.jsonl"));
    make_tiny_gguf(model_path, NULL);
    assert_ok(es_model_open(&model, model_path, &err), &err);
    make_dictionary();
    assert_ok(es_dictionary_open(&dictionary, folder, &err), &err);
    snprintf(text, sizeof text, "%s", test_path("text.jsonl"));
    es_buf b = {0};
    for (int i = 0; i < 40; i++)
        es_buf_printf(&b, "{\"text\":\"Line %d of %d, and %c%c%c then some more words to read here.\"}\n", i, i * 37 % 91, 'a' + i % 26, 'a' + i * 7 % 26, 'A' + i % 20);
    test_write(text, b.data, b.len);
    es_buf_free(&b);
    const int layer = LAYER;
    const char *file = text, *harvest = test_path("harvest");
    es_harvest_options ho = es_harvest_default();
    ho.layer = &layer;
    ho.n_layer = 1;
    ho.context = 40;
    ho.threads = 1;
    assert_ok(es_harvest(model, &file, 1, harvest, &ho, NULL, &err), &err);
    snprintf(atlas_path, sizeof atlas_path, "%s/atlas.esa", folder);
    es_atlas_options ao = es_atlas_default();
    ao.threads = 1;
    assert_ok(es_atlas_build(model, dictionary, harvest, atlas_path, &ao, NULL, &err), &err);
    assert_ok(es_atlas_open(&atlas, atlas_path, &err), &err);
    static const char lines[] =
        "{\"feature\":3,\"text\":\"polite requests\",\"tags\":[\"tone\"],\"rating\":4}\n"
        "{\"feature\":4,\"text\":\"impolite answers\",\"tags\":[\"tone\",\"bad\"],\"rating\":2}\n"
        "{\"feature\":9,\"text\":\"Überschriften und Zahlen\",\"tags\":[]}\n"
        "{\"feature\":20,\"text\":\"numbers\",\"tags\":[\"topic\"],\"rating\":5}\n"
        "{\"feature\":21,\"text\":\"\",\"tags\":[],\"skipped\":true}\n";
    test_write(labels_path, lines, sizeof lines - 1);
    assert_ok(es_workspace_open(&workspace, test_path("workspace.db"), &err), &err);
    assert_ok(es_workspace_use_dictionary(workspace, dictionary, atlas, model, labels_path, NULL, &err), &err);
    assert_ok(es_basis_add(&basis, 20, -1, 1, &err), &err);
    assert_ok(es_basis_add(&basis, 7, -1, 1, &err), &err);
    snprintf(basis.dictionary_hash, sizeof basis.dictionary_hash, "%s", es_dictionary_get_info(dictionary)->hash);
    es_basis saved = basis;
    snprintf(saved.name, sizeof saved.name, "kept");
    saved.n = 1;
    int version;
    assert_ok(es_workspace_basis_save(workspace, &saved, &version, &err), &err);
    finder = (es_finder){.workspace = workspace, .hash = es_dictionary_get_info(dictionary)->hash, .model = model, .dictionary = dictionary, .atlas = atlas,
                         .basis = &basis, .n_features = F, .threads = 1};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    es_finder_free(&finder);
    es_basis_free(&basis);
    es_workspace_close(workspace);
    es_atlas_free(atlas);
    es_dictionary_free(dictionary);
    es_model_free(model);
    free(model_path);
    free(folder);
    free(labels_path);
    return 0;
}

/* The features found, as "3 4 9"; found stays for a look. */
static es_found found;
static const char *find_by(const char *query, es_find_order order)
{
    static char text[4096];
    es_found_free(&found);
    assert_ok(es_find(&finder, query, order, &found, NULL, &err), &err);
    text[0] = 0;
    for (int i = 0, n = 0; i < found.n && n < 4000; i++)
        n += snprintf(text + n, sizeof text - (size_t)n, "%s%d", i ? " " : "", found.feature[i]);
    return text;
}
static const char *find(const char *query) { return find_by(query, ES_FIND_BEST); }

static void words_and_labels(void **state)
{
    (void)state;
    find("");
    assert_int_equal(found.n, F);
    assert_string_equal(find("polite "), "3 4");          /* the word, then inside of one */
    assert_string_equal(find("pol"), "3 4");              /* a beginning while it is typed */
    assert_string_equal(find("olit"), "3 4");             /* only inside */
    assert_string_equal(find("polite req"), "3");
    assert_string_equal(find("uberschriften"), "9");      /* without the accent */
    assert_string_equal(find("tag:tone"), "3 4");
    assert_string_equal(find("tag:tone -tag:bad"), "3");
    assert_string_equal(find("is:labelled"), "3 4 9 20");
    assert_string_equal(find("is:skipped"), "21");
    find("is:unlabelled");
    assert_int_equal(found.n, F - 4);
    find("-is:unlabelled");
    assert_int_equal(found.n, 4);
    assert_string_equal(find("42"), "42");
    assert_string_equal(find("999"), "");
    assert_string_equal(find("-polite is:labelled"), "4 9 20");
    assert_string_equal(find("\"polite requests\""), "3");
    assert_string_equal(find_by("is:labelled", ES_FIND_LABEL), "4 20 3 9");
    assert_string_equal(find("no-such:thing \" ' ; DROP TABLE label; --"), "");
}

static void figures_and_bases(void **state)
{
    (void)state;
    const float *density = es_atlas_density(atlas), *max = es_atlas_max(atlas);
    es_found none; /* of what is refused: nothing to free */
    assert_string_equal(find("rating>=4"), "3 20");
    assert_string_equal(find("rating:2..4"), "3 4");
    assert_string_equal(find("rating=2"), "4");
    assert_string_equal(find("-rating>1 is:labelled"), "9");
    find("density>0.05");
    int want = 0;
    for (int j = 0; j < F; j++)
        want += density[j] > 0.05f;
    assert_int_equal(found.n, want);
    assert_true(want > 0 && want < F);
    find_by("max:1..2", ES_FIND_MAX);
    want = 0;
    for (int j = 0; j < F; j++)
        want += max[j] >= 1 && max[j] <= 2;
    assert_int_equal(found.n, want);
    for (int i = 1; i < found.n; i++)
        assert_true(max[found.feature[i]] <= max[found.feature[i - 1]]);
    find_by("", ES_FIND_DENSITY);
    for (int i = 1; i < found.n; i++)
        assert_true(density[found.feature[i]] <= density[found.feature[i - 1]]);
    assert_string_equal(find("is:basis"), "7 20");
    assert_string_equal(find("basis:kept"), "20");
    assert_string_equal(find("basis:kept@1 -is:labelled"), "");
    assert_error(es_find(&finder, "basis:absent", ES_FIND_BEST, &none, NULL, &err), &err, "absent");
    static const char *const wrong[] = {"density<", "density<x", "density:1", "density:1..", "rating>1x", "like:", "like:x", "promotes:", "-like:3"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_error(es_find(&finder, wrong[i], ES_FIND_BEST, &none, NULL, &err), &err, NULL);
    assert_error(es_find(&finder, "like:5000", ES_FIND_BEST, &none, NULL, &err), &err, "no feature");
    assert_error(es_find(&finder, "is:labelled", ES_FIND_TOKEN, &none, NULL, &err), &err, "text:");
    es_buf long_one = {0};
    for (int i = 0; i < 40; i++)
        es_buf_str(&long_one, "max>1 ");
    assert_error(es_find(&finder, long_one.data, ES_FIND_BEST, &none, NULL, &err), &err, "at most 32");
    es_buf_free(&long_one);
    bool stop = true;
    assert_int_equal(es_find(&finder, "max>1", ES_FIND_BEST, &none, &stop, &err), ES_ERR_CANCELLED);
    es_finder bare = {.n_features = F, .hash = ""};
    assert_error(es_find(&bare, "density<1", ES_FIND_BEST, &none, NULL, &err), &err, "atlas");
    assert_error(es_find(&bare, "words", ES_FIND_BEST, &none, NULL, &err), &err, "workspace");
    assert_error(es_find(&bare, "text:a", ES_FIND_BEST, &none, NULL, &err), &err, "model");
    es_finder_free(&bare);
}

static void tokens_directions_texts(void **state)
{
    (void)state;
    es_feature_card c;
    /* a token that feature 5 promotes most: all that are found have it among theirs, by rank */
    assert_ok(es_atlas_card(atlas, 5, &c, &err), &err);
    int32_t id = -1;
    size_t n = 0;
    const char *bytes = NULL;
    for (int i = 0; i < c.n_promoted && id < 0; i++) {
        bytes = es_token_bytes(model, c.promoted[i], &n);
        if (n == 1 && bytes[0] > ' ' && bytes[0] < 127 && bytes[0] != '"' && bytes[0] != '*')
            id = c.promoted[i];
    }
    assert_true(id >= 0);
    char query[64];
    snprintf(query, sizeof query, "promotes:%c", bytes[0]);
    find(query);
    bool has5 = false;
    int best = 0;
    for (int i = 0; i < found.n; i++) {
        int rank = -1;
        assert_ok(es_atlas_card(atlas, found.feature[i], &c, &err), &err);
        for (int k = 0; k < c.n_promoted && rank < 0; k++) {
            const char *t = es_token_bytes(model, c.promoted[k], &n);
            while (n && *t == ' ')
                t++, n--;
            if (n == 1 && !strncasecmp(t, bytes, 1))
                rank = k;
        }
        assert_true(rank >= best); /* there, and no better than the one before */
        best = rank;
        has5 |= found.feature[i] == 5;
    }
    assert_true(has5 && found.n < F);
    int with = found.n;
    snprintf(query, sizeof query, "-promotes:%c", bytes[0]);
    find(query);
    assert_int_equal(found.n, F - with);
    /* like: feature 11 was made close to 10 */
    find("like:10");
    assert_int_equal(found.feature[0], 11);
    assert_string_equal(found.measure, "cosine");
    assert_int_equal(found.n, F - 1);
    int near[3];
    float cosine[3];
    es_dictionary_neighbours(dictionary, 10, 3, near, cosine);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(found.feature[i], near[i]);
        assert_float_equal(found.value[i], cosine[i], 1e-5);
    }
    assert_string_equal(find("is:labelled like:10 max>0 rating>0 rating<4"), "4");
    /* a text */
    find("text:\"Line 7 of 9\"");
    assert_true(found.n > 3 && found.value && found.surprise && found.token && found.n_text > 3);
    for (int i = 1; i < found.n; i++)
        assert_true(found.value[i] <= found.value[i - 1]);
    int all = found.n;
    find_by("text:\"Line 7 of 9\"", ES_FIND_TOKEN);
    assert_int_equal(found.n, all);
    for (int i = 1; i < found.n; i++)
        assert_true(found.token[i] > found.token[i - 1] || (found.token[i] == found.token[i - 1] && found.value[i] <= found.value[i - 1]));
    find_by("text:\"Line 7 of 9\" is:unlabelled", ES_FIND_SURPRISE);
    assert_true(found.n <= all);
    for (int i = 0; i < found.n; i++) {
        assert_true(isfinite(found.surprise[i]) && (i == 0 || found.surprise[i] <= found.surprise[i - 1]));
        assert_true(found.token[i] > 0 && found.token[i] < found.n_text);
    }
    find("text:\"say \\\"so\\\"\"");
    assert_true(found.n > 0);
    es_found_free(&found);
}

/* ---- through a studio ---------------------------------------------------------------------------------------------------------- */

static bool news(es_studio *s, double until)
{
    struct pollfd fd = {es_studio_fd(s), POLLIN, 0};
    if (poll(&fd, 1, 20) > 0)
        es_studio_ack(s);
    return es_seconds() < until;
}

static void a_studio_looks(void **state)
{
    (void)state;
    es_studio_options o = es_studio_default();
    char maps[1024];
    snprintf(maps, sizeof maps, "%s", test_path("maps"));
    o.model = model_path;
    o.dictionary = folder;
    o.workspace = test_path("studio.db");
    o.labels = labels_path;
    const char *starter = test_path("starter.json");
    es_buf json = {0};
    es_buf_printf(&json, "{\"format\":\"espalier-basis\",\"version\":1,\"name\":\"starter\",\"revision\":3,\"model_hash\":\"%s\",\"dictionary_hash\":\"%s\",\"dictionary\":\"d\",\"layer\":1,"
                  "\"features\":[{\"feature\":3,\"lo\":-2,\"hi\":2},{\"feature\":4,\"lo\":-2,\"hi\":2}]}",
                  es_dictionary_get_info(dictionary)->model_hash, es_dictionary_get_info(dictionary)->hash);
    test_write(starter, json.data, json.len);
    es_buf_free(&json);
    o.starter_basis = starter;
    o.maps = maps;
    o.learn = false;
    o.threads = 1;
    o.n_ctx = 256;
    es_studio *s;
    double until = es_seconds() + 60;
    assert_ok(es_studio_open(&s, &o, &err), &err);
    int32_t peak[4];
    es_dashboard d;
    char error[240];
    assert_int_equal(es_studio_peaks(s, 3, peak, 4) > 0, 0); /* not yet */
    while (!*es_studio_dictionary_hash(s) && news(s, until))
        ;
    int n;
    while ((n = es_studio_peaks(s, 3, peak, 4)) < 0 && news(s, until))
        ;
    es_feature_card c;
    assert_ok(es_atlas_card(atlas, 3, &c, &err), &err);
    assert_true(n > 0 && peak[0] == c.example[0].id[c.example[0].peak]);
    while (!es_studio_dashboard(s, 3, &d) && news(s, until))
        ;
    assert_true(d.feature == 3 && d.n_neuron == ES_DASHBOARD_LIST && d.has_logits && d.logit_hi == c.logit_hi);
    es_card_copy copy; /* random places are copied too */
    assert_ok(es_studio_card(s, 3, &copy, &err), &err);
    assert_int_equal(copy.card.n_spread, c.n_spread);
    for (int i = 0; i < c.n_spread; i++)
        assert_memory_equal(copy.card.spread[i].id, c.spread[i].id, (size_t)c.spread[i].n * sizeof(int32_t));
    es_buf text = {0};
    int end[64];
    assert_ok(es_studio_window_text(s, c.example[0].id, c.example[0].n, &text, end), &err);
    assert_int_equal(end[c.example[0].n - 1], text.len);
    assert_int_equal(es_utf8_whole(text.data, text.len), text.len);
    es_buf_free(&text);
    es_card_copy_free(&copy);
    /* labels are read in by the worker: ask until they are there */
    es_found f;
    for (;;) {
        es_studio_find(s, "tag:tone", ES_FIND_BEST);
        while (!es_studio_found(s, &f, error) && news(s, until))
            ;
        assert_string_equal(error, "");
        if (f.n == 2 || es_seconds() > until)
            break;
        es_found_free(&f);
        news(s, until);
    }
    assert_true(f.n == 2 && f.feature[0] == 3 && f.feature[1] == 4);
    es_found_free(&f);
    /* then whoever had read the labels before is told, and the starter basis is among the saved ones */
    es_view *seen;
    while ((seen = es_studio_view(s))->labels_read == 0 && news(s, until))
        es_view_free(seen);
    assert_int_equal(seen->labels_read, 1);
    es_view_free(seen);
    es_basis_line *line = NULL;
    assert_ok(es_workspace_basis_list(es_studio_workspace(s), es_studio_dictionary_hash(s), &line, &n, &err), &err);
    assert_true(n == 1 && !strcmp(line[0].name, "starter") && line[0].n == 2);
    free(line);
    assert_false(es_studio_found(s, &f, error)); /* each once */
    for (int i = 0; i < 50; i++) /* only the newest counts */
        es_studio_find(s, i < 49 ? "is:unlabelled" : "density<", ES_FIND_BEST);
    do
        while (!es_studio_found(s, &f, error) && news(s, until))
            ;
    while (f.n > 0 && (es_found_free(&f), es_seconds() < until));
    assert_non_null(strstr(error, "not a number"));
    assert_int_equal(f.n, 0);
    es_found_free(&f);
    /* a contrast, and one whose file is not there */
    const char *a = test_path("a.txt"), *b = test_path("b.txt");
    test_write(a, "Line 1 of 2\nLine 3 of 4\n", 24);
    test_write(b, "words\nmore words\n", 17);
    es_studio_contrast(s, a, b);
    while (!es_studio_found(s, &f, error) && news(s, until))
        ;
    assert_string_equal(error, "");
    assert_true(f.n > 1 && f.value[0] > 0 && f.value[f.n - 1] < 0 && !strcmp(f.measure, "score"));
    es_found_free(&f);
    es_studio_contrast(s, test_path("absent.txt"), b);
    while (!es_studio_found(s, &f, error) && news(s, until))
        ;
    assert_non_null(strstr(error, "absent.txt"));
    es_found_free(&f);
    /* the map: made once, kept, and read the next time */
    const float *xy = NULL;
    double done;
    while (es_studio_map(s, &xy, &done) == ES_MAP_MAKING && news(s, until))
        ;
    assert_int_equal(es_studio_map(s, &xy, &done), ES_MAP_READY);
    es_layout_options lo = es_layout_default();
    float kept[2 * F];
    char path[1400];
    snprintf(path, sizeof path, "%s/%.16s.esm", maps, es_dictionary_get_info(dictionary)->hash);
    assert_ok(es_layout_read(path, dictionary, &lo, kept, &err), &err);
    assert_memory_equal(kept, xy, sizeof kept);
    es_view *v = es_studio_view(s);
    int jobs = 0;
    for (int i = 0; i < v->n_job; i++)
        jobs += (!strcmp(v->job[i].kind, "map") && !v->job[i].failed) || (!strcmp(v->job[i].kind, "contrast"));
    assert_int_equal(jobs, 3);
    es_view_free(v);
    es_studio_find(s, "like:3", ES_FIND_BEST); /* closing while it looks */
    es_studio_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_and_labels), cmocka_unit_test(figures_and_bases), cmocka_unit_test(tokens_directions_texts), cmocka_unit_test(a_studio_looks),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
