/* The atlas of a random dictionary on a tiny model, against figures made by brute force; then spoilt files; then the figures of
 * es_dictionary_measure where they are known. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dictionary.h"
#include "features.h"
#include "harvest.h"
#include "support.h"

enum { D = 64, F = 150, LAYER = 1, EXAMPLES = 6, WINDOW = 10 };

static es_model *model;
static es_dictionary *dictionary;
static char *harvest_dir, *atlas_path, *text_path; /* test_path keeps the last 16 only */

static void make_dictionary(const char *dir, bool identity)
{
    int n = identity ? 2 * D : F;
    float *enc = calloc((size_t)n * D, sizeof *enc), *dec = calloc((size_t)n * D, sizeof *dec), *b_enc = calloc((size_t)n, sizeof *b_enc), b_dec[D] = {0};
    es_rng r;
    es_rng_seed(&r, 3);
    for (int j = 0; j < n; j++) {
        double norm = 0;
        for (int i = 0; i < D; i++) {
            dec[j * D + i] = identity ? (i == j % D ? (j < D ? 1 : -1) : 0) : es_rng_normal(&r);
            norm += (double)dec[j * D + i] * (double)dec[j * D + i];
        }
        for (int i = 0; i < D; i++)
            enc[j * D + i] = dec[j * D + i] /= (float)sqrt(norm);
    }
    char hash[65];
    es_error err = {0};
    assert_ok(es_model_hash(model, hash, &err), &err);
    json_t *meta = json_pack("{s:s, s:s, s:s}", "model_name", "Tiny", "hook_name", "blocks.1.hook_resid_post", "espalier_model_sha256", hash);
    /* feature 7 never fires */
    if (!identity)
        b_enc[7] = -1e6f;
    assert_ok(es_dictionary_save(dir, D, n, enc, dec, b_enc, b_dec, identity ? 0 : 0.8f, false, meta, &err), &err);
    json_decref(meta);
    free(enc);
    free(dec);
    free(b_enc);
}

static int set_up(void **state)
{
    (void)state;
    es_error err = {0};
    model = open_tiny(NULL);
    es_buf b = {0};
    for (int i = 0; i < 40; i++)
        es_buf_printf(&b, "{\"text\":\"Line %d of %d, and %c%c%c then some more words to read here.\"}\n", i, i * 37 % 91, 'a' + i % 26, 'a' + i * 7 % 26, 'A' + i % 20);
    text_path = strdup(test_path("text.jsonl"));
    test_write(text_path, b.data, b.len);
    es_buf_free(&b);
    make_dictionary(test_path("dictionary"), false);
    assert_ok(es_dictionary_open(&dictionary, test_path("dictionary"), &err), &err);
    harvest_dir = strdup(test_path("harvest"));
    const int layer = LAYER;
    es_harvest_options o = es_harvest_default();
    o.layer = &layer;
    o.n_layer = 1;
    o.context = 40;
    o.threads = 1;
    assert_ok(es_harvest(model, (const char *const *)&text_path, 1, harvest_dir, &o, NULL, &err), &err);
    atlas_path = strdup(test_path("atlas.esa"));
    es_atlas_options a = es_atlas_default();
    a.examples = EXAMPLES;
    a.window = WINDOW;
    a.threads = 2;
    assert_ok(es_atlas_build(model, dictionary, harvest_dir, atlas_path, &a, NULL, &err), &err);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    es_dictionary_free(dictionary);
    es_model_free(model);
    free(text_path);
    free(harvest_dir);
    free(atlas_path);
    return 0;
}

static void cards_hold_what_brute_force_finds(void **state)
{
    (void)state;
    es_error err = {0};
    es_atlas *a;
    assert_ok(es_atlas_open(&a, atlas_path, &err), &err);
    assert_int_equal(es_atlas_features(a), F);
    assert_string_equal(es_atlas_dictionary_hash(a), es_dictionary_get_info(dictionary)->hash);
    es_harvest_reader h;
    assert_ok(es_harvest_reader_open(&h, harvest_dir, LAYER, &err), &err);
    float *x = calloc(h.n_row * D, sizeof *x), *dense = calloc(h.n_row * F, sizeof *dense);
    es_harvest_reader_rows(&h, 0, h.n_row, x);
    es_sparse acts = {0};
    assert_ok(es_dictionary_encode(dictionary, NULL, x, (int)h.n_row, &acts, &err), &err);
    for (size_t t = 0; t < h.n_row; t++)
        for (size_t i = acts.start[t]; i < acts.start[t + 1]; i++)
            dense[t * F + (size_t)acts.index[i]] = acts.value[i];
    int fired = 0;
    for (int j = 0; j < F; j++) {
        double sum = 0, max = 0;
        uint64_t count = 0, in_bins = 0;
        size_t best = 0;
        for (size_t t = 0; t < h.n_row; t++) {
            double v = (double)dense[t * F + (size_t)j];
            count += v > 0;
            sum += v;
            if (v > max) {
                max = v;
                best = t;
            }
        }
        fired += count > 0;
        es_feature_card c;
        assert_ok(es_atlas_card(a, j, &c, &err), &err);
        assert_int_equal(c.feature, j);
        assert_float_equal(c.density, (double)count / (double)h.n_row, 1e-5);
        assert_float_equal(c.max, max, 1e-3);
        assert_float_equal(c.mean, count ? sum / (double)count : 0, 1e-3);
        assert_true(es_atlas_density(a)[j] == (float)c.density && es_atlas_max(a)[j] == c.max && es_atlas_p99(a)[j] == c.p99);
        assert_true(c.p99 <= c.max && (count == 0 || c.p99 >= c.mean * 0.98f));
        for (int i = 0; i < ES_ATLAS_BINS; i++)
            in_bins += c.histogram[i];
        assert_int_equal(in_bins, count);
        assert_float_equal(c.bin_width, c.max / 50, 1e-5);
        assert_int_equal(c.n_example > 0, count > 0);
        if (count == 0)
            continue;
        /* the strongest example is the strongest token, with its neighbours around it */
        const es_example *e = c.example;
        assert_float_equal(e->max, max, 1e-3);
        size_t s = 0;
        while (best >= h.sequence[s].row + h.sequence[s].n - 1)
            s++;
        assert_int_equal(e->id[e->peak], h.id[h.sequence[s].id + 1 + (best - h.sequence[s].row)]);
        for (int t = 0; t < e->n; t++) {
            int64_t row = (int64_t)best + t - e->peak;
            if (row < (int64_t)h.sequence[s].row) {
                assert_true(e->value[t] == 0); /* the first token was not harvested */
                continue;
            }
            assert_int_equal(e->id[t], h.id[h.sequence[s].id + 1 + ((size_t)row - h.sequence[s].row)]);
            assert_true(fabsf(e->value[t] - dense[(size_t)row * F + (size_t)j]) <= e->max / 200);
        }
        for (int i = 1; i < c.n_example; i++)
            assert_true(c.example[i].max <= c.example[i - 1].max);
        assert_true(c.n_example <= EXAMPLES);
    }
    assert_true(fired > F / 2);
    es_feature_card c;
    assert_ok(es_atlas_card(a, 7, &c, &err), &err); /* the silent one */
    assert_true(c.n_example == 0 && c.density == 0 && c.max == 0);
    assert_error(es_atlas_card(a, F, &c, &err), &err, "no feature");
    assert_error(es_atlas_card(a, -1, &c, &err), &err, "no feature");

    /* promoted tokens: decoder row times the final norm's weight times the unembedding */
    for (int j = 0; j < F; j += 29) {
        assert_ok(es_atlas_card(a, j, &c, &err), &err);
        assert_int_equal(c.n_promoted, ES_ATLAS_TOKENS);
        double best = -1e9, worst = 1e9;
        int up = 0, down = 0;
        for (int v = 0; v < TINY_VOCAB; v++) {
            float row[D];
            double logit = 0;
            es_model_unembed_row(model, v, row);
            for (int i = 0; i < D; i++)
                logit += (double)row[i] * (double)es_model_final_norm(model)[i] * (double)es_dictionary_decoder(dictionary)[j * D + i];
            if (logit > best)
                best = logit, up = v;
            if (logit < worst)
                worst = logit, down = v;
        }
        assert_int_equal(c.promoted[0], up);
        assert_int_equal(c.suppressed[0], down);
        assert_float_equal(c.promoted_logit[0], best, fabs(best) / 500);
        assert_float_equal(c.suppressed_logit[0], worst, fabs(worst) / 500);
        for (int i = 1; i < ES_ATLAS_TOKENS; i++)
            assert_true(c.promoted_logit[i] <= c.promoted_logit[i - 1] && c.suppressed_logit[i] >= c.suppressed_logit[i - 1]);
        es_buf text = {0};
        assert_ok(es_atlas_tokens_text(a, model, j, &text, &err), &err);
        assert_non_null(strstr(text.data, "-> "));
        for (size_t i = 0; i < text.len; i++)
            assert_true((unsigned char)text.data[i] >= ' ');
        es_buf_free(&text);
    }
    es_sparse_free(&acts);
    es_harvest_reader_close(&h);
    free(x);
    free(dense);
    es_atlas_free(a);
}

static void read_all(const char *path)
{
    es_error err = {0};
    es_atlas *a;
    if (es_atlas_open(&a, path, &err)) {
        assert_error(err.code, &err, NULL);
        return;
    }
    for (int j = 0; j < es_atlas_features(a) && j < 1000; j++) {
        es_feature_card c;
        int rc = es_atlas_card(a, j, &c, &err);
        if (rc) {
            assert_error(rc, &err, NULL);
            assert_int_equal(c.n_example, 0);
            continue;
        }
        double sum = 0;
        for (int i = 0; i < c.n_example; i++)
            for (int t = 0; t < c.example[i].n; t++)
                sum += (double)c.example[i].value[t] + c.example[i].id[t];
        assert_true(sum >= 0 || sum < 0 || isnan(sum));
    }
    es_atlas_free(a);
}

static void spoilt_files_are_refused(void **state)
{
    (void)state;
    es_error err = {0};
    es_buf b = {0};
    test_read(&b, atlas_path);
    char *path = strdup(test_path("spoilt.esa"));
    size_t index = 184 + 16 * F + 16 * 3;
    for (size_t n = 0; n < b.len; n += n < index + 64 ? 7 : 97) { /* cut short */
        test_write(path, b.data, n);
        es_atlas *a;
        int rc = es_atlas_open(&a, path, &err);
        if (n < index)
            assert_error(rc, &err, "spoilt.esa");
        if (!rc)
            es_atlas_free(a);
        read_all(path);
    }
    es_rng r;
    es_rng_seed(&r, 11);
    char *whole = malloc(b.len);
    memcpy(whole, b.data, b.len);
    for (int round = 0; round < 400; round++) {
        size_t at = (size_t)es_rng_below(&r, round % 2 ? b.len : index);
        b.data[at] = (char)(whole[at] ^ (1 << es_rng_below(&r, 8)));
        test_write(path, b.data, b.len);
        es_atlas *a;
        if (at < index) { /* the sum over the index sees every flip */
            assert_error(es_atlas_open(&a, path, &err), &err, "spoilt.esa");
        } else {
            read_all(path);
        }
        b.data[at] = whole[at];
    }
    free(whole);
    es_buf_free(&b);
    test_write(path, "", 0);
    read_all(path);
    free(path);
}

static void other_models_and_harvests_are_refused(void **state)
{
    (void)state;
    es_error err = {0};
    tiny_options o = tiny_default();
    o.seed = 2;
    es_model *other = open_tiny(&o);
    es_atlas_options a = es_atlas_default();
    assert_error(es_atlas_build(other, dictionary, harvest_dir, test_path("x.esa"), &a, NULL, &err), &err, "SHA-256");
    char hash[65];
    assert_ok(es_model_hash(other, hash, &err), &err);
    es_error named = {0};
    assert_error(es_dictionary_check_model(dictionary, other, &named), &named, hash); /* both hashes are in the line */
    assert_non_null(strstr(named.text, es_dictionary_get_info(dictionary)->model_hash));
    es_model_free(other);
    o = tiny_default();
    o.d_model = 128;
    other = open_tiny(&o);
    assert_error(es_dictionary_check_model(dictionary, other, &err), &err, "width");
    es_model_free(other);
    assert_error(es_atlas_build(model, dictionary, test_path("nowhere"), test_path("x.esa"), &a, NULL, &err), &err, "harvest.json");
}

static void figures_of_a_perfect_dictionary(void **state)
{
    (void)state;
    es_error err = {0};
    es_dictionary *perfect;
    es_dictionary_stats st;
    make_dictionary(test_path("perfect"), true); /* +-unit vectors: reconstructs anything */
    assert_ok(es_dictionary_open(&perfect, test_path("perfect"), &err), &err);
    assert_ok(es_dictionary_measure(model, perfect, (const char *const *)&text_path, 1, 0, 1, &st, NULL, &err), &err);
    assert_true(st.tokens > 500);
    assert_float_equal(st.fvu, 0, 1e-5);
    assert_float_equal(st.mean_cosine, 1, 1e-5);
    assert_float_equal(st.l0, D, 1);
    assert_float_equal(st.ce_patched, st.ce, 1e-4);
    assert_true(st.ce > 0 && fabs(st.ce_zero - st.ce) > 1e-3);
    assert_float_equal(st.recovered, 1, 1e-2);
    es_dictionary_free(perfect);
    es_dictionary_stats rough;
    assert_ok(es_dictionary_measure(model, dictionary, (const char *const *)&text_path, 1, 300, 1, &rough, NULL, &err), &err);
    assert_true(rough.tokens >= 300 && rough.tokens < 1500);
    assert_true(rough.fvu > 0.05 && rough.dead >= 1.0 / F);
    assert_true(rough.dead + rough.dense <= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cards_hold_what_brute_force_finds),
        cmocka_unit_test(spoilt_files_are_refused),
        cmocka_unit_test(other_models_and_harvests_are_refused),
        cmocka_unit_test(figures_of_a_perfect_dictionary),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
