/* Dictionaries of other sites than the residual: harvested in one pass, trained, read in the running model, and refused where directions in the residual
 * are wanted. */
#include "dictionary.h"
#include "features.h"
#include "fires.h"
#include "harvest.h"
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static es_model *model;
static char *text_path, *harvest_dir;
static const int layers[] = {1, 2};
static const es_hook_kind sites[] = {ES_HOOK_MLP_OUT, ES_HOOK_RESIDUAL, ES_HOOK_ATTENTION, ES_HOOK_ATTENTION_OUT};
enum { N_SITES = 4, CONTEXT = 40 };

static es_harvest_options options(void)
{
    es_harvest_options o = es_harvest_default();
    o.layer = layers;
    o.n_layer = 2;
    o.site = sites;
    o.n_site = N_SITES;
    o.context = CONTEXT;
    o.threads = 1;
    o.exact = true;
    return o;
}

static int set_up(void **state)
{
    (void)state;
    tiny_options o = tiny_default();
    o.head_dim = 8; /* so that the heads side by side are narrower than the residual */
    model = open_tiny(&o);
    es_buf b = {0};
    for (int i = 0; i < 120; i++)
        es_buf_printf(&b, "{\"text\":\"Document %d says %s and %d more things about %s.\"}\n", i, i % 3 ? "little" : "a lot of words", i * i, i % 2 ? "the sea" : "a hill");
    text_path = strdup(test_path("some.jsonl"));
    test_write(text_path, b.data, b.len);
    es_buf_free(&b);
    harvest_dir = strdup(test_path("harvest"));
    es_harvest_options h = options();
    es_error err;
    assert_ok(es_harvest(model, (const char *const *)&text_path, 1, harvest_dir, &h, NULL, &err), &err);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    es_model_free(model);
    free(text_path);
    free(harvest_dir);
    return 0;
}

static void stores_what_the_model_computes(void **state)
{
    (void)state;
    es_error err;
    es_trainer *t;
    assert_ok(es_trainer_open(&t, model, &(es_trainer_options){.max_tokens = CONTEXT, .threads = 1}, &err), &err);
    for (int i = 0; i < 2 * N_SITES; i++) {
        const es_hook_place place = {layers[i / N_SITES], sites[i % N_SITES]};
        es_harvest_reader h;
        es_point point;
        assert_true(es_hook_point(place.hook, &point));
        assert_ok(es_harvest_reader_open_at(&h, harvest_dir, place, &err), &err);
        assert_int_equal(h.d, es_point_width(model, point));
        assert_true(h.n_id > 2 * 2048); /* more than a batch */
        for (size_t s = 0; s < h.n_sequence; s += 7) {
            const es_harvest_sequence *q = &h.sequence[s];
            float want[CONTEXT * 64], got[CONTEXT * 64];
            es_batch b = {.ids = h.id + q->id, .n = (int)q->n, .start = (int[]){0, (int)q->n}, .n_seq = 1};
            assert_true(h.d <= 64);
            assert_ok(es_trainer_point(t, &b, place.layer, point, want, NULL, &err), &err);
            es_harvest_reader_rows(&h, q->row, q->n - 1, got);
            for (int k = 0; k < ((int)q->n - 1) * h.d; k++)
                assert_true(fabsf(got[k] - want[k + h.d]) <= fabsf(want[k + h.d]) / 1000 + 1e-4f);
        }
        es_harvest_reader_close(&h);
    }
    es_trainer_free(t);
}

/* A harvest of the residual alone is what it was before there were sites; one with sites is not gone on with without them, nor the other way round. */
static void old_harvests_still_are(void **state)
{
    (void)state;
    es_error err;
    es_harvest_options o = options();
    es_buf json = {0};
    char *plain = strdup(test_path("plain"));
    o.n_site = 1;
    o.site = (const es_hook_kind[]){ES_HOOK_RESIDUAL};
    assert_ok(es_harvest(model, (const char *const *)&text_path, 1, plain, &o, NULL, &err), &err);
    test_read(&json, test_path("plain/harvest.json"));
    assert_null(strstr(json.data, "sites"));
    es_buf_free(&json);
    o.n_site = 0;
    assert_ok(es_harvest(model, (const char *const *)&text_path, 1, plain, &o, NULL, &err), &err);
    assert_error(es_harvest(model, (const char *const *)&text_path, 1, harvest_dir, &o, NULL, &err), &err, "sites");
    o = options();
    assert_error(es_harvest(model, (const char *const *)&text_path, 1, plain, &o, NULL, &err), &err, "sites");
    es_harvest_reader h;
    assert_error(es_harvest_reader_open_at(&h, plain, (es_hook_place){1, ES_HOOK_MLP_OUT}, &err), &err, "layer-01-mlp_out");
    assert_error(es_harvest_reader_open_at(&h, plain, (es_hook_place){1, ES_HOOK_ATTENTION}, &err), &err, "no site z");
    o.site = (const es_hook_kind[]){ES_HOOK_MLP_IN};
    o.n_site = 1;
    assert_error(es_harvest(model, (const char *const *)&text_path, 1, test_path("x"), &o, NULL, &err), &err, "cannot be harvested");
    o.site = (const es_hook_kind[]){ES_HOOK_ATTENTION, ES_HOOK_ATTENTION};
    o.n_site = 2;
    assert_error(es_harvest(model, (const char *const *)&text_path, 1, test_path("x"), &o, NULL, &err), &err, "twice");
    free(plain);
}

static void names(void **state)
{
    (void)state;
    static const struct { const char *name; es_hook_kind hook; const char *folder, *hook_name; } all[] = {
        {"resid", ES_HOOK_RESIDUAL, "layer-07", "blocks.7.hook_resid_post"}, {"resid_post", ES_HOOK_RESIDUAL, "layer-07", "blocks.7.hook_resid_post"},
        {"attn", ES_HOOK_ATTENTION_OUT, "layer-07-attn_out", "blocks.7.hook_attn_out"}, {"mlp", ES_HOOK_MLP_OUT, "layer-07-mlp_out", "blocks.7.hook_mlp_out"},
        {"z", ES_HOOK_ATTENTION, "layer-07-z", "blocks.7.attn.hook_z"}, {"mlp_in", ES_HOOK_MLP_IN, "layer-07-mlp_in", "blocks.7.hook_mlp_in"},
    };
    es_hook_kind h;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char folder[32], hook[80];
        assert_true(es_hook_site_named(all[i].name, &h) && h == all[i].hook);
        es_hook_place_name((es_hook_place){7, h}, folder);
        es_hook_place_hook((es_hook_place){7, h}, hook, sizeof hook);
        assert_string_equal(folder, all[i].folder);
        assert_string_equal(hook, all[i].hook_name);
    }
    assert_false(es_hook_site_named("", &h) || es_hook_site_named("residual", &h));
}

/* relu(x) and relu(-x) of every coordinate: what it reads comes back whole. */
static es_dictionary *whole(es_hook_place place, int d, const char *name)
{
    float *enc = es_calloc((size_t)(2 * d * d), sizeof *enc), *zero = es_calloc((size_t)(3 * d), sizeof *zero);
    char hook[80];
    es_error err;
    es_dictionary *s = NULL;
    for (int j = 0; j < 2 * d; j++)
        enc[j * d + j / 2] = j % 2 ? -1 : 1;
    es_hook_place_hook(place, hook, sizeof hook);
    json_t *meta = json_pack("{s:s, s:s}", "model_name", "tiny", "hook_name", hook);
    assert_ok(es_dictionary_save(test_path("%s", name), d, 2 * d, enc, enc, zero, zero, 0, false, meta, &err), &err);
    assert_ok(es_dictionary_open(&s, test_path("%s", name), &err), &err);
    json_decref(meta);
    free(enc);
    free(zero);
    return s;
}

static void measured(void **state)
{
    (void)state;
    for (int i = 0; i < N_SITES; i++) {
        es_error err;
        es_dictionary_stats st;
        es_point point;
        const es_hook_place place = {1, sites[i]};
        es_hook_point(place.hook, &point);
        es_dictionary *s = whole(place, es_point_width(model, point), "whole");
        assert_int_equal(es_dictionary_get_info(s)->hook, place.hook);
        assert_int_equal(es_dictionary_point(s), point);
        assert_ok(es_dictionary_measure(model, s, (const char *const *)&text_path, 1, 3000, 1, &st, NULL, &err), &err);
        assert_true(st.fvu < 1e-6 && st.mean_cosine > 0.99999);
        assert_float_equal(st.l0, es_point_width(model, point), 0.5);
        if (place.hook == ES_HOOK_RESIDUAL || place.hook == ES_HOOK_MLP_OUT) {
            assert_float_equal(st.ce_patched, st.ce, 1e-4);
            assert_true(fabs(st.ce_zero - st.ce) > 1e-3); /* something was taken away */
            assert_float_equal(st.recovered, 1, 0.02);
        } else {
            assert_true(isnan(st.ce) && isnan(st.recovered));
        }
        es_dictionary_free(s);
    }
}

/* Trained on every site in one call, in one home: what they say of themselves, and that texts can be read with each as the trainer gives its activations. */
static void trained_and_read(void **state)
{
    (void)state;
    es_error err;
    es_hook_place place[N_SITES];
    for (int i = 0; i < N_SITES; i++)
        place[i] = (es_hook_place){2, sites[i]};
    es_dictionary_training o = es_dictionary_training_default();
    o.n_features = 48;
    o.k = 6;
    o.aux_k = 8;
    o.batch = 256;
    o.tokens = 4000;
    o.threads = 1;
    char *dir = strdup(test_path("trained"));
    assert_ok(es_dictionary_train_places(harvest_dir, place, N_SITES, dir, &o, NULL, &err), &err);
    for (int i = 0; i < N_SITES; i++) {
        char folder[1200], name[32], hook[80];
        es_dictionary *s = NULL;
        es_firing *f = NULL;
        es_hook_place_name(place[i], name);
        es_hook_place_hook(place[i], hook, sizeof hook);
        snprintf(folder, sizeof folder, "%s/%s", dir, name);
        assert_ok(es_dictionary_open(&s, folder, &err), &err);
        const es_dictionary_info *info = es_dictionary_get_info(s);
        assert_true(info->hook == place[i].hook && info->layer == 2);
        assert_string_equal(info->hook_name, hook);
        assert_ok(es_dictionary_check_model(s, model, &err), &err);
        assert_ok(es_firing_open(&f, model, s, 1, &err), &err);
        static const char text[] = "Document 9 says little and 81 more things about the sea.";
        assert_ok(es_firing_read(f, text, strlen(text), false, NULL, &err), &err);
        const es_ids *ids = es_firing_ids(f);
        const es_sparse *got = es_firing_acts(f, NULL);
        es_sparse want = {0};
        es_trainer *t;
        es_pool *pool;
        float *x = calloc(ids->n * (size_t)info->d, sizeof *x);
        assert_ok(es_trainer_open(&t, model, &(es_trainer_options){.max_tokens = 256, .threads = 1}, &err), &err);
        assert_ok(es_pool_open(&pool, 1, &err), &err);
        es_batch b = {.ids = ids->id, .n = (int)ids->n, .start = (int[]){0, (int)ids->n}, .n_seq = 1};
        assert_ok(es_trainer_point(t, &b, 2, es_dictionary_point(s), x, NULL, &err), &err);
        assert_ok(es_dictionary_encode(s, pool, x, b.n, &want, &err), &err);
        assert_int_equal(got->n_rows, b.n);
        assert_true(want.start[b.n] > 20);
        assert_int_equal(got->start[b.n], want.start[b.n]);
        assert_memory_equal(got->index, want.index, want.start[b.n] * sizeof *want.index);
        assert_memory_equal(got->value, want.value, want.start[b.n] * sizeof *want.value);
        es_sparse_free(&want);
        es_pool_free(pool);
        es_trainer_free(t);
        free(x);
        es_firing_free(f);

        es_atlas *a = NULL;
        es_feature_card card;
        es_atlas_options ao = es_atlas_default();
        ao.threads = 1;
        assert_ok(es_atlas_build(model, s, harvest_dir, test_path("atlas-%s", name), &ao, NULL, &err), &err);
        assert_ok(es_atlas_open(&a, test_path("atlas-%s", name), &err), &err);
        double most = 0;
        for (int j = 0; j < 48; j++)
            most = fmax(most, es_atlas_density(a)[j]);
        assert_true(most > 0.01);
        assert_ok(es_atlas_card(a, 0, &card, &err), &err);
        assert_true(card.n_promoted > 0 && card.has_logits);
        es_atlas_free(a);
        es_dictionary_free(s);
    }
    free(dir);
}

static void refused_where_directions_are_wanted(void **state)
{
    (void)state;
    es_error err;
    es_dictionary *s = whole((es_hook_place){1, ES_HOOK_MLP_OUT}, es_model_get_info(model)->d_model, "looks");
    es_basis b = {.name = "b", .layer = 1};
    es_adapter *a = NULL;
    es_adapter_options ao = es_adapter_default(s, model);
    assert_ok(es_basis_add(&b, 3, -1, 1, &err), &err);
    assert_ok(es_dictionary_check_model(s, model, &err), &err);
    assert_error(es_dictionary_check_steers(s, &err), &err, "for looking");
    assert_error(es_adapter_new(&a, model, s, &b, &ao, &err), &err, "for looking");
    float gradient[64];
    es_experiences e = {0};
    assert_error(es_attribute(model, s, &e, 1, gradient, NULL, &err), &err, "for looking");
    es_basis random = {0};
    assert_error(es_basis_random(&random, model, s, NULL, 4, 1, &err), &err, "for looking");
    es_basis_free(&b);
    es_dictionary_free(s);
    s = whole((es_hook_place){1, ES_HOOK_MLP_IN}, es_model_get_info(model)->d_model, "looks-in");
    assert_error(es_dictionary_check_model(s, model, &err), &err, "the MLP's input");
    es_dictionary_free(s);
    s = whole((es_hook_place){1, ES_HOOK_MLP_OUT}, 32, "narrow");
    assert_error(es_dictionary_check_model(s, model, &err), &err, "width");
    es_dictionary_free(s);
}

/* Of heads side by side a feature writes W_O times its row, times the weight of the norm behind; and a name that means another point is refused. */
static void directions_of_heads(void **state)
{
    (void)state;
    es_error err;
    es_model *m = NULL;
    assert_ok(es_model_open(&m, test_golden("families/gemma3"), &err), &err);
    const int q = es_point_width(m, ES_POINT_ATTENTION), d = es_model_get_info(m)->d_model;
    assert_true(q != d);
    es_dictionary *s = whole((es_hook_place){2, ES_HOOK_ATTENTION}, q, "heads");
    es_pool *pool;
    es_weight w = es_model_site(m, 2, ES_SITE_O);
    const float *norm = es_model_attention_post_norm(m, 2);
    float *row = calloc((size_t)q, sizeof *row), *got = calloc((size_t)(4 * d), sizeof *got);
    assert_ok(es_dictionary_check_model(s, m, &err), &err);
    assert_true(norm && es_dictionary_has_directions(s, m));
    assert_ok(es_pool_open(&pool, 1, &err), &err);
    assert_ok(es_dictionary_directions(s, m, pool, 3, 4, got, &err), &err);
    for (int i = 0; i < d; i++) {
        es_dequant(w.type, (const uint8_t *)w.data + (size_t)i * (size_t)q * (size_t)es_type_get(w.type)->bytes / (size_t)es_type_get(w.type)->block, row, (size_t)q);
        for (int j = 0; j < 4; j++)
            assert_float_equal(got[j * d + i], norm[i] * row[(3 + j) / 2] * ((3 + j) % 2 ? -1 : 1), 1e-5);
    }
    free(row);
    free(got);
    es_pool_free(pool);
    es_dictionary_free(s);
    static const struct { const char *hook; bool post; } other[] = {{"model.layers.2.mlp.output", true}, {"model.layers.2.post_feedforward_layernorm.output", false}};
    for (int i = 0; i < 2; i++) {
        const es_model *of = other[i].post ? m : model;
        int width = es_model_get_info(of)->d_model;
        float *zero = calloc((size_t)(8 * width), sizeof *zero);
        json_t *meta = json_pack("{s:s, s:s}", "model_name", "x", "hook_name", other[i].hook);
        for (int k = 0; k < 2 * width; k++)
            zero[k] = 1;
        assert_ok(es_dictionary_save(test_path("other-%d", i), width, 2, zero, zero, zero + 4 * width, zero + 4 * width, 0, false, meta, &err), &err);
        assert_ok(es_dictionary_open(&s, test_path("other-%d", i), &err), &err);
        assert_int_equal(es_dictionary_get_info(s)->hook, ES_HOOK_MLP_OUT);
        assert_error(es_dictionary_check_model(s, other[i].post ? m : model, &err), &err, "not what its layer adds");
        es_dictionary_free(s);
        json_decref(meta);
        free(zero);
    }
    es_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stores_what_the_model_computes), cmocka_unit_test(old_harvests_still_are), cmocka_unit_test(names), cmocka_unit_test(measured),
        cmocka_unit_test(trained_and_read), cmocka_unit_test(refused_where_directions_are_wanted), cmocka_unit_test(directions_of_heads),
    };
    return cmocka_run_group_tests_name("sites", tests, set_up, tear_down);
}
