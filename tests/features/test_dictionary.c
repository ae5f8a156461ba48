/* Dictionaries against SAELens' own encodings (tests/golden/make_sae.py), and against folders that were spoilt. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "features.h"
#include "safetensors.h"

enum { D = 24, F = 40, T = 7 };

static char root[64];

static void golden(char *out, size_t size, const char *name)
{
    const char *dir = getenv("ESPALIER_TEST_DIR");
    snprintf(out, size, "%s/golden/sae/%s", dir ? dir : "tests", name);
}

static const char *const cases[] = {"standard", "standard-no-b-dec", "standard-layer-norm", "standard-average", "topk", "topk-rescaled", "jumprelu",
                                    "jumprelu-constant-norm"};

static void read_golden(const char *name, float *x, float *acts, float *xhat)
{
    char folder[600], path[700];
    es_error err = {0};
    es_safetensors *g;
    golden(folder, sizeof folder, name);
    snprintf(path, sizeof path, "%s/golden.safetensors", folder);
    if (es_safetensors_open(&g, path, &err))
        fail_msg("%s", err.text);
    assert_int_equal(es_safetensors_f32(g, "x", 2, (size_t[]){T, D}, x, &err), 0);
    assert_int_equal(es_safetensors_f32(g, "acts", 2, (size_t[]){T, F}, acts, &err), 0);
    assert_int_equal(es_safetensors_f32(g, "xhat", 2, (size_t[]){T, D}, xhat, &err), 0);
    es_safetensors_free(g);
}

static void encodes_and_decodes_as_saelens(void **state)
{
    (void)state;
    es_pool *pool;
    es_error err = {0};
    assert_int_equal(es_pool_open(&pool, 2, &err), 0);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        float x[T * D], want[T * F], want_x[T * D], got_x[T * D], largest = 0, largest_x = 0;
        char folder[600];
        es_dictionary *s;
        read_golden(cases[c], x, want, want_x);
        golden(folder, sizeof folder, cases[c]);
        if (es_dictionary_open(&s, folder, &err))
            fail_msg("%s", err.text);
        const es_dictionary_info *i = es_dictionary_get_info(s);
        assert_int_equal(i->layer, 3);
        assert_int_equal(i->d, D);
        assert_int_equal(i->n_features, F);
        assert_string_equal(i->name, cases[c]);
        assert_string_equal(i->model_hash, "");
        for (int a = 0; a < T * F; a++)
            largest = fmaxf(largest, fabsf(want[a]));
        for (int a = 0; a < T * D; a++)
            largest_x = fmaxf(largest_x, fabsf(want_x[a]));
        for (int way = 0; way < 2; way++) { /* all rows in one call (a matrix product), and one row a call (dot products) */
            float got[T * F] = {0}, worst = 0;
            es_sparse acts = {0};
            for (int t = 0; t < T; t += way ? 1 : T) {
                assert_int_equal(es_dictionary_encode(s, pool, x + t * D, way ? 1 : T, &acts, &err), 0);
                assert_int_equal(acts.n_rows, way ? 1 : T);
                for (int r = 0; r < acts.n_rows; r++)
                    for (size_t a = acts.start[r]; a < acts.start[r + 1]; a++) {
                        got[(t + r) * F + acts.index[a]] = acts.value[a];
                        assert_true(acts.value[a] > 0);
                        if (a > acts.start[r])
                            assert_true(acts.value[a] <= acts.value[a - 1]);
                    }
                assert_int_equal(es_dictionary_decode(s, &acts, x + t * D, got_x + t * D, &err), 0);
            }
            for (int a = 0; a < T * F; a++)
                worst = fmaxf(worst, fabsf(got[a] - want[a]));
            if (!(worst < 1e-4f * largest))
                fail_msg("%s: encoding differs by %g of %g", cases[c], (double)worst, (double)largest);
            worst = 0;
            for (int a = 0; a < T * D; a++)
                worst = fmaxf(worst, fabsf(got_x[a] - want_x[a]));
            if (!(worst < 1e-4f * largest_x))
                fail_msg("%s: decoding differs by %g of %g", cases[c], (double)worst, (double)largest_x);
            es_sparse_free(&acts);
        }
        const int some[] = {7, 0, 39, 12};
        float few[T * 4];
        assert_int_equal(es_dictionary_encode_some(s, pool, x, T, some, 4, few, &err), 0);
        for (int t = 0; t < T; t++)
            for (int k = 0; k < 4; k++)
                assert_true(fabsf(few[t * 4 + k] - want[t * F + some[k]]) < 1e-4f * largest);
        const int bad = F;
        assert_int_equal(es_dictionary_encode_some(s, pool, x, T, &bad, 1, few, &err), ES_ERR_USAGE);
        es_dictionary_free(s);
    }
    es_pool_free(pool);
}

static void tells_neighbours_and_rows(void **state)
{
    (void)state;
    char folder[600];
    es_error err = {0};
    es_dictionary *s;
    golden(folder, sizeof folder, "jumprelu");
    assert_int_equal(es_dictionary_open(&s, folder, &err), 0);
    const float *dec = es_dictionary_decoder(s);
    int near[5];
    float cosine[5];
    es_dictionary_neighbours(s, 11, 5, near, cosine);
    double best = -2;
    int at = -1;
    for (int j = 0; j < F; j++) {
        double xy = 0, xx = 0, yy = 0;
        for (int i = 0; i < D; i++) {
            double a = (double)dec[11 * D + i], b = (double)dec[j * D + i];
            xy += a * b;
            xx += a * a;
            yy += b * b;
        }
        if (j != 11 && xy / sqrt(xx * yy) > best) {
            best = xy / sqrt(xx * yy);
            at = j;
        }
    }
    assert_int_equal(near[0], at);
    assert_float_equal(cosine[0], best, 1e-5);
    for (int i = 1; i < 5; i++)
        assert_true(cosine[i] <= cosine[i - 1] && near[i] != 11);

    /* encoder row, bias and threshold give the activation by hand */
    float x[T * D], acts[T * F], xhat[T * D], row[D], bias, threshold;
    read_golden("jumprelu", x, acts, xhat);
    es_dictionary_encoder(s, 5, row, &bias, &threshold);
    for (int t = 0; t < T; t++) {
        double p = (double)bias;
        for (int i = 0; i < D; i++)
            p += (double)row[i] * (double)(x[t * D + i] - es_dictionary_decoder_bias(s)[i]);
        assert_float_equal(p > (double)threshold && p > 0 ? p : 0, acts[t * F + 5], 1e-3);
    }
    es_dictionary_free(s);
}

static void not_a_number_activates_nothing(void **state)
{
    (void)state;
    char folder[600];
    es_error err = {0};
    float x[D];
    for (int i = 0; i < D; i++)
        x[i] = i == 3 ? NAN : 1;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        es_dictionary *s;
        es_sparse acts = {0};
        golden(folder, sizeof folder, cases[c]);
        assert_int_equal(es_dictionary_open(&s, folder, &err), 0);
        assert_int_equal(es_dictionary_encode(s, NULL, x, 1, &acts, &err), 0);
        assert_int_equal(acts.start[1], 0);
        assert_int_equal(es_dictionary_encode(s, NULL, x, 0, &acts, &err), 0);
        assert_int_equal(acts.n_rows, 0);
        es_sparse_free(&acts);
        es_dictionary_free(s);
    }
}

/* ---- folders that are wrong ------------------------------------------------------------------------------------------------------ */

static void put(const char *folder, const char *name, const void *bytes, size_t n)
{
    char path[300];
    es_error err;
    snprintf(path, sizeof path, "%s/%s", root, folder);
    assert_int_equal(es_dir_make(path, &err), 0);
    snprintf(path, sizeof path, "%s/%s/%s", root, folder, name);
    assert_int_equal(es_file_write(path, bytes, n, &err), 0);
}

static void copy_weights(const char *folder, const char *from)
{
    char path[700];
    es_buf b = {0};
    es_error err;
    golden(path, sizeof path, from);
    strncat(path, "/sae_weights.safetensors", sizeof path - strlen(path) - 1);
    assert_int_equal(es_file_read(&b, path, 1 << 20, &err), 0);
    put(folder, "sae_weights.safetensors", b.data, b.len);
    es_buf_free(&b);
}

static void expect(const char *folder, int code, const char *text)
{
    char path[300];
    es_error err = {0};
    es_dictionary *s = (es_dictionary *)&err;
    snprintf(path, sizeof path, "%s/%s", root, folder);
    int rc = es_dictionary_open(&s, path, &err);
    if (rc != code || (code && (s || !strstr(err.text, text))))
        fail_msg("got %d \"%s\", wanted %d \"%s\"", rc, err.text, code, text);
    if (!rc)
        es_dictionary_free(s);
}

#define BASE "\"d_in\":24,\"d_sae\":40,\"metadata\":{\"hook_name\":\"blocks.3.hook_resid_post\"}"

static void refuses_bad_folders(void **state)
{
    (void)state;
    static const struct { const char *cfg; int code; const char *text; } bad[] = {
        {"{", ES_ERR_FORMAT, "cfg.json"},
        {"[1]", ES_ERR_FORMAT, "not a JSON object"},
        {"{}", ES_ERR_FORMAT, "d_in"},
        {"{\"architecture\":\"jumprelu\",\"d_in\":-1,\"d_sae\":40}", ES_ERR_FORMAT, "d_in"},
        {"{\"architecture\":\"jumprelu\",\"d_in\":24,\"d_sae\":1e30}", ES_ERR_FORMAT, "d_sae"},
        {"{\"architecture\":\"jumprelu\",\"d_in\":24,\"d_sae\":4000000000}", ES_ERR_FORMAT, "d_sae"},
        {"{\"architecture\":\"abstopk\"," BASE "}", ES_ERR_FORMAT, "\"abstopk\" is not supported"},
        {"{\"architecture\":\"gated\"," BASE "}", ES_ERR_MISSING, "b_gate"},
        {"{\"architecture\":\"jumprelu_transcoder\"," BASE "}", ES_ERR_FORMAT, "d_out"},
        {"{\"architecture\":\"jumprelu\",\"normalize_activations\":\"covariance_whitening\"," BASE "}", ES_ERR_FORMAT, "unless it is folded"},
        {"{\"architecture\":\"jumprelu\",\"normalize_activations\":\"whitening\"," BASE "}", ES_ERR_FORMAT, "whitening"},
        {"{\"architecture\":\"jumprelu\",\"reshape_activations\":\"heads\"," BASE "}", ES_ERR_FORMAT, "heads"},
        {"{\"architecture\":\"jumprelu\",\"d_in\":24,\"d_sae\":40,\"hook_layer\":12345678}", ES_ERR_FORMAT, "layer 12345678"},
        {"{\"architecture\":\"topk\"," BASE "}", ES_ERR_FORMAT, "needs k"},
        {"{\"architecture\":\"topk\",\"k\":41," BASE "}", ES_ERR_FORMAT, "needs k"},
        {"{\"architecture\":\"jumprelu\",\"d_in\":25,\"d_sae\":40,\"hook_name\":\"blocks.3.hook_resid_post\"}", ES_ERR_FORMAT, "W_dec [40, 25]"},
        {"{\"architecture\":\"jumprelu\",\"d_in\":65536,\"d_sae\":1048576,\"hook_name\":\"blocks.3.hook_resid_post\"}", ES_ERR_FORMAT, "W_dec"},
        {"{\"architecture\":\"jumprelu\"," BASE "}", 0, ""},
        /* keys before 6.0 */
        {"{\"d_in\":24,\"d_sae\":40,\"hook_point\":\"blocks.3.hook_resid_pre\",\"activation_fn_str\":\"relu\"}", 0, ""},
        {"{\"d_in\":24,\"d_sae\":40,\"hook_name\":\"blocks.3.hook_resid_post\",\"activation_fn_str\":\"topk\",\"activation_fn_kwargs\":{\"k\":4}}", 0, ""},
    };
    copy_weights("bad", "jumprelu");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put("bad", "cfg.json", bad[i].cfg, strlen(bad[i].cfg));
        expect("bad", bad[i].code, bad[i].text);
    }
    expect("nowhere", ES_ERR_MISSING, "nowhere/cfg.json");
    put("bad", "cfg.json", "{\"architecture\":\"jumprelu\"," BASE "}", strlen("{\"architecture\":\"jumprelu\"," BASE "}"));
    copy_weights("bad", "standard"); /* has no threshold */
    expect("bad", ES_ERR_MISSING, "threshold");
}

/* It encodes activations from files; what it would read in a model is unknown, and said so when it comes to a model. */
static void opens_without_a_known_hook(void **state)
{
    (void)state;
    static const char *const cfg[] = {
        "{\"architecture\":\"jumprelu\",\"d_in\":24,\"d_sae\":40}", "{\"architecture\":\"jumprelu\",\"d_in\":24,\"d_sae\":40,\"metadata\":{\"hook_name\":null}}",
        "{\"architecture\":\"jumprelu\",\"d_in\":24,\"d_sae\":40,\"hook_name\":\"blocks.3.hook_resid_mid\"}",
        "{\"architecture\":\"jumprelu\",\"d_in\":24,\"d_sae\":40,\"hook_name\":\"blocks.3.hook_mlp_out\\u001b[2J\"}",
    };
    copy_weights("hookless", "jumprelu");
    for (size_t i = 0; i < sizeof cfg / sizeof *cfg; i++) {
        char path[300];
        es_error err = {0};
        es_dictionary *s;
        put("hookless", "cfg.json", cfg[i], strlen(cfg[i]));
        snprintf(path, sizeof path, "%s/hookless", root);
        if (es_dictionary_open(&s, path, &err))
            fail_msg("%s", err.text);
        assert_int_equal(es_dictionary_get_info(s)->hook, ES_HOOK_UNKNOWN);
        es_dictionary_free(s);
    }
}

static void refuses_weights_that_are_no_numbers(void **state)
{
    (void)state;
    char path[700];
    es_buf b = {0};
    es_error err;
    golden(path, sizeof path, "jumprelu/sae_weights.safetensors");
    assert_int_equal(es_file_read(&b, path, 1 << 20, &err), 0);
    const float nan = NAN;
    memcpy(b.data + b.len - 4, &nan, 4);
    put("nan", "sae_weights.safetensors", b.data, b.len);
    put("nan", "cfg.json", "{\"architecture\":\"jumprelu\"," BASE "}", strlen("{\"architecture\":\"jumprelu\"," BASE "}"));
    expect("nan", ES_ERR_FORMAT, "not a number");
    b.len -= 40; /* cut short */
    put("nan", "sae_weights.safetensors", b.data, b.len);
    expect("nan", ES_ERR_FORMAT, "sae_weights.safetensors");
    es_buf_free(&b);
}

static int make_root(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "/tmp/espalier-dictionary-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    (void)state;
    char command[200];
    snprintf(command, sizeof command, "rm -rf %s", root);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(encodes_and_decodes_as_saelens), cmocka_unit_test(tells_neighbours_and_rows),
        cmocka_unit_test(not_a_number_activates_nothing), cmocka_unit_test(refuses_bad_folders), cmocka_unit_test(opens_without_a_known_hook),
        cmocka_unit_test(refuses_weights_that_are_no_numbers),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
