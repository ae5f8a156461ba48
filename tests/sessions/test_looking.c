/* Looking at features in a real studio: the blind test of a label on its atlas, and how often features fire where there is none. */
#include <unistd.h>

#include "labels.h"
#include "with_studio.h"

/* A dictionary with an atlas, of texts in which some words come again and again. */
static char *with_atlas(void)
{
    static const char *const word[] = {"the", "of", "and", "list", "sorry", "code", "king", "river", "number", "please", "because", "letter"};
    static char folder[1100];
    char text[1100], harvest[1100], file[1200];
    es_model *m = NULL;
    es_dictionary *s = NULL;
    es_buf b = {0};
    es_rng r;
    int layer = LAYER;
    es_rng_seed(&r, 3);
    for (int i = 0; i < 80; i++) {
        es_buf_str(&b, "{\"text\":\"");
        for (int k = 0; k < 30; k++)
            es_buf_printf(&b, "%s ", word[es_rng_below(&r, 12)]);
        es_buf_str(&b, "\"}\n");
    }
    snprintf(text, sizeof text, "%s", test_path("text.jsonl"));
    snprintf(harvest, sizeof harvest, "%s", test_path("harvest"));
    snprintf(folder, sizeof folder, "%s", test_path("with-atlas"));
    test_write(text, b.data, b.len);
    es_buf_free(&b);
    make_dictionary_at(folder, "blocks.1.hook_resid_post", 2.2f); /* so that it is active on a part of the tokens */
    const char *file_of[] = {text};
    es_harvest_options ho = es_harvest_default();
    es_atlas_options ao = es_atlas_default();
    ho.layer = &layer;
    ho.n_layer = 1;
    assert_ok(es_model_open(&m, model_path, &err), &err);
    assert_ok(es_harvest(m, file_of, 1, harvest, &ho, NULL, &err), &err);
    assert_ok(es_dictionary_open(&s, folder, &err), &err);
    snprintf(file, sizeof file, "%s/atlas.esa", folder);
    assert_ok(es_atlas_build(m, s, harvest, file, &ao, NULL, &err), &err);
    es_dictionary_free(s);
    es_model_free(m);
    return folder;
}

static uint64_t before;
static bool tested(const es_view *v) { return v->blind_serial != before && !v->blind_running; }

static es_view *blind(es_studio *s, int feature, uint64_t seed)
{
    es_view *v = es_studio_view(s);
    before = v->blind_serial;
    es_view_free(v);
    es_studio_blind(s, feature, seed);
    return WAIT(s, tested);
}

static int find(es_studio *s, const char *query, es_found *out)
{
    char why[240];
    double end = es_seconds() + PATIENCE;
    es_studio_find(s, query, ES_FIND_BEST);
    while (!es_studio_found(s, out, why) && es_seconds() < end)
        usleep(5000);
    assert_string_equal(why, "");
    return out->n;
}

static void blind_test(void **state)
{
    (void)state;
    char *folder = with_atlas();
    es_studio_options o = options(fresh());
    o.dictionary = folder;
    es_studio *s = open_with(&o);
    es_found found;
    assert_true(find(s, "density>0.02", &found) > 0); /* one with enough places */
    int feature = found.feature[0];
    es_found_free(&found);

    es_view *v = blind(s, feature, 7);
    assert_string_equal(v->blind_text, "");
    assert_non_null(v->blind);
    const es_blind first = *v->blind;
    es_view_free(v);
    assert_int_equal(first.feature, feature);
    assert_true(first.n > 2 && first.n <= ES_BLIND && first.n_active > 0 && first.n_active < first.n);
    unsigned truth = 0;
    for (int i = 0; i < first.n; i++) {
        const es_blind_window *w = &first.window[i];
        assert_true(w->n > 0 && w->active == (w->activation > 0) && !w->unsound);
        truth |= (unsigned)w->active << i;
    }
    v = blind(s, feature, 7); /* the seed makes the test */
    assert_non_null(v->blind);
    assert_memory_equal(v->blind->window, first.window, sizeof first.window[0] * (size_t)first.n);
    es_view_free(v);
    v = blind(s, feature, 8);
    assert_non_null(v->blind);
    assert_int_not_equal(memcmp(v->blind->window, first.window, sizeof first.window[0] * (size_t)first.n), 0);
    es_view_free(v);

    /* A score for the label that the person tested: kept with it. */
    es_workspace *w = es_studio_workspace(s);
    const char *hash = es_studio_dictionary_hash(s);
    es_label_score score, kept;
    assert_ok(es_workspace_label_set(w, hash, feature, "a word of the list", "", 0, "tester", &err), &err);
    es_blind_score(&first, truth, &score);
    snprintf(score.judge, sizeof score.judge, "tester");
    assert_float_equal(score.value, 1, 1e-9);
    assert_ok(es_workspace_score_add(w, hash, feature, "a word of the list", &score, &err), &err);
    assert_ok(es_workspace_score_get(w, hash, feature, "a word of the list", &kept, &err), &err);
    assert_true(kept.value == 1 && kept.n == first.n && !strcmp(kept.judge, "tester"));

    /* The conversation was not touched, and what cannot be tested says why. */
    es_studio_say(s, "which way?");
    WAIT_FREE(s, two_turns);
    v = blind(s, feature, 9);
    assert_non_null(v->blind);
    es_view_free(v);
    v = es_studio_view(s);
    assert_int_equal(v->n_turn, 2);
    es_view_free(v);
    es_studio_close(s);
    s = open_ready(fresh()); /* without an atlas */
    v = blind(s, 3, 1);
    assert_null(v->blind);
    assert_non_null(strstr(v->blind_text, "atlas"));
    es_view_free(v);
    es_studio_close(s);
}

/* SAELens' sparsity.safetensors serves where there is no atlas; with one, that is believed. */
static void densities(void **state)
{
    (void)state;
    float said[F];
    es_found found;
    es_studio_options o = options(fresh());
    char *folder = strdup(test_path("with-sparsity"));
    for (int f = 0; f < F; f++)
        said[f] = (float)f / 1000;
    make_dictionary(folder, "blocks.1.hook_resid_post");
    assert_ok(es_sparsity_write(folder, said, F, &err), &err);
    o.dictionary = folder;
    es_studio *s = open_with(&o);
    const float *density = es_studio_density(s);
    assert_non_null(density);
    for (int f = 0; f < F; f++)
        assert_float_equal(density[f], said[f], 1e-6);
    assert_int_equal(find(s, "density>0.0895", &found), F - 90);
    es_found_free(&found);
    es_studio_close(s);

    s = open_ready(fresh()); /* neither */
    assert_null(es_studio_density(s));
    es_studio_close(s);

    test_write(test_path("with-sparsity/sparsity.safetensors"), "xx", 2); /* makes no sense: as if it were not there */
    o = options(fresh());
    o.dictionary = folder;
    s = open_with(&o);
    assert_null(es_studio_density(s));
    es_studio_close(s);

    char *atlas = with_atlas();
    assert_ok(es_sparsity_write(atlas, said, F, &err), &err);
    o = options(fresh());
    o.dictionary = atlas;
    s = open_with(&o);
    double off = 0;
    density = es_studio_density(s);
    for (int f = 0; f < F; f++)
        off = fmax(off, fabs((double)density[f] - said[f]));
    assert_true(off > 0.01);
    es_studio_close(s);
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(blind_test), cmocka_unit_test(densities)};
    return cmocka_run_group_tests_name("looking", tests, set_up, NULL);
}
