/* sparsity.safetensors: as sae-lens wrote it, out and in again, and files that are none. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "dictionaries.h"
#include "safetensors.h"
#include "support.h"

static es_error err;

static void golden(void **state)
{
    (void)state;
    json_t *want = NULL;
    char path[1200];
    float got[7];
    snprintf(path, sizeof path, "%s/expected.json", test_golden("sparsity"));
    assert_ok(es_json_file(&want, path, &err), &err);
    assert_ok(es_sparsity_read(test_golden("sparsity"), got, 7, &err), &err);
    for (size_t i = 0; i < 7; i++)
        assert_true(fabs(got[i] - json_real_value(json_array_get(want, i))) <= 1e-5 * json_real_value(json_array_get(want, i)));
    assert_true(got[0] == 0);
    assert_error(es_sparsity_read(test_golden("sparsity"), got, 6, &err), &err, "[7]");
    assert_error(es_sparsity_read(test_golden("steering"), got, 7, &err), &err, "is not there");
    json_decref(want);
    /* written here: what sae-lens' formula gives */
    float x[3] = {0, 0.25f, 3e-7f};
    es_safetensors *s;
    size_t n = 3;
    assert_ok(es_dir_make(test_path("out"), &err), &err);
    assert_ok(es_sparsity_write(test_path("out"), x, 3, &err), &err);
    assert_ok(es_safetensors_open(&s, test_path("out/sparsity.safetensors"), &err), &err);
    assert_ok(es_safetensors_f32(s, "sparsity", 1, &n, got, &err), &err);
    for (int i = 0; i < 3; i++)
        assert_float_equal(got[i], log10(x[i] + 1e-10), 1e-6);
    es_safetensors_free(s);
    assert_ok(es_sparsity_read(test_path("out"), got, 3, &err), &err);
    for (int i = 0; i < 3; i++)
        assert_float_equal(got[i], x[i], 1e-6 * x[i] + 1e-15);
}

static void bad(void **state)
{
    (void)state;
    float got[2], x[2] = {-1, 0.5f};
    const char *folder = test_path("bad"), *path = test_path("bad/sparsity.safetensors");
    es_tensor_spec t = {"sparsity", ES_TENSOR_F32, 1, {2}, x};
    assert_ok(es_dir_make(folder, &err), &err);
    assert_ok(es_safetensors_write_file(path, &t, 1, NULL, &err), &err);
    assert_error(es_sparsity_read(folder, got, 2, &err), &err, "no logarithm of a share");
    x[1] = NAN;
    assert_ok(es_safetensors_write_file(path, &t, 1, NULL, &err), &err);
    assert_error(es_sparsity_read(folder, got, 2, &err), &err, "no logarithm");
    x[1] = -INFINITY; /* never active, without the epsilon */
    assert_ok(es_safetensors_write_file(path, &t, 1, NULL, &err), &err);
    assert_ok(es_sparsity_read(folder, got, 2, &err), &err);
    assert_true(got[1] == 0);
    t.name = "density";
    assert_ok(es_safetensors_write_file(path, &t, 1, NULL, &err), &err);
    assert_error(es_sparsity_read(folder, got, 2, &err), &err, "sparsity");
    test_write(path, "xx", 2);
    assert_error(es_sparsity_read(folder, got, 2, &err), &err, "sparsity.safetensors");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden), cmocka_unit_test(bad)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
