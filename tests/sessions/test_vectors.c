/* A basis with vectors beside features: in the workspace, as a file, and for other tools. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sqlite3.h>

#include "dictionary.h"
#include "sessions.h"
#include "support.h"

enum { F = 32, LAYER = 1, D = 64 };

static es_error err;
static es_model *model;
static es_dictionary *dictionary;
static es_basis the_basis;

static int set_up(void **state)
{
    (void)state;
    es_rng rng;
    es_basis_vector v;
    char hash[65], path[1200];
    float *w = calloc(F * D, sizeof *w), *zero = calloc(F + D, sizeof *zero);
    es_rng_seed(&rng, 9);
    for (int i = 0; i < F * D; i++)
        w[i] = es_rng_normal(&rng) / 8;
    json_t *meta = json_pack("{s:s, s:s}", "model_name", "Tiny", "hook_name", "blocks.1.hook_resid_post");
    model = open_tiny(NULL);
    assert_ok(es_dictionary_save(test_path("dictionary"), D, F, w, w, zero, zero, 0, false, meta, &err), &err);
    assert_ok(es_dictionary_open(&dictionary, test_path("dictionary"), &err), &err);
    json_decref(meta);
    free(w);
    free(zero);
    assert_ok(es_model_hash(model, hash, &err), &err);
    the_basis = (es_basis){.name = "tone", .layer = LAYER};
    snprintf(the_basis.model_hash, 65, "%s", hash);
    snprintf(the_basis.dictionary_hash, 65, "%s", es_dictionary_get_info(dictionary)->hash);
    snprintf(path, sizeof path, "%s/persona.pt", test_golden("steering"));
    assert_ok(es_basis_add(&the_basis, 5, -1, 2, &err), &err);
    assert_ok(es_steering_read(&v, path, LAYER, D, NULL, &err), &err);
    assert_ok(es_basis_add_vector(&the_basis, &v, -3.3f, 4, &err), &err);
    free(v.unit);
    assert_ok(es_basis_add(&the_basis, 3, 0, 1, &err), &err);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    es_basis_free(&the_basis);
    es_dictionary_free(dictionary);
    es_model_free(model);
    return 0;
}

static void assert_the_basis(const es_basis *got)
{
    const es_basis_vector *v = es_basis_vector_of(got, got->feature[1]), *own = &the_basis.vector[0];
    assert_int_equal(got->n, 3);
    assert_memory_equal(got->feature, the_basis.feature, 3 * sizeof(int));
    assert_memory_equal(got->lo, the_basis.lo, 3 * sizeof(float));
    assert_memory_equal(got->hi, the_basis.hi, 3 * sizeof(float));
    assert_int_equal(got->n_vector, 1);
    assert_non_null(v);
    assert_string_equal(v->name, "persona");
    assert_string_equal(v->hash, own->hash);
    assert_true(v->layer == LAYER && v->length == own->length && v->d == D);
    assert_memory_equal(v->unit, own->unit, D * sizeof(float));
}

static void in_the_workspace(void **state)
{
    (void)state;
    const char *path = test_path("w.db");
    es_workspace *w;
    es_basis got;
    int version;
    assert_ok(es_workspace_open(&w, path, &err), &err);
    assert_ok(es_workspace_basis_save(w, &the_basis, &version, &err), &err);
    es_workspace_close(w);
    assert_ok(es_workspace_open(&w, path, &err), &err);
    assert_ok(es_workspace_basis_load(w, "tone", 0, &got, &err), &err);
    assert_the_basis(&got);
    es_basis_free(&got);
    assert_ok(es_workspace_check(w, &err), &err);
    es_workspace_close(w);
    /* a workspace that someone spoilt: half a vector, one that is gone */
    static const char *const sql[] = {"UPDATE basis_vector SET unit = substr(unit, 1, 64)", "UPDATE basis_vector SET unit = zeroblob(256)",
                                      "UPDATE basis_vector SET unit = 'text'", "UPDATE basis_vector SET name = '7'", "UPDATE basis_vector SET length = -1",
                                      "UPDATE basis_vector SET unit = x''", "DELETE FROM basis_vector"};
    for (size_t i = 0; i < sizeof sql / sizeof *sql; i++) {
        sqlite3 *db;
        assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
        assert_int_equal(sqlite3_exec(db, sql[i], NULL, NULL, NULL), SQLITE_OK);
        sqlite3_close(db);
        assert_ok(es_workspace_open(&w, path, &err), &err);
        assert_error(es_workspace_basis_load(w, "tone", 0, &got, &err), &err, i + 1 < sizeof sql / sizeof *sql ? "vector" : "damaged");
        es_workspace_close(w);
    }
}

static void as_a_file(void **state)
{
    (void)state;
    const char *path = test_path("tone.safetensors");
    es_basis got;
    float *rows = NULL;
    assert_ok(es_basis_file_write(&the_basis, model, dictionary, NULL, "ann", path, &err), &err);
    assert_ok(es_basis_file_read(&got, NULL, &rows, model, dictionary, path, &err), &err);
    assert_the_basis(&got);
    assert_memory_equal(rows + D, the_basis.vector[0].unit, D * sizeof(float));
    free(rows);
    es_basis_free(&got);
    assert_ok(es_basis_npz(&the_basis, dictionary, test_path("tone.npz"), &err), &err);
    /* out again as a control vector, and in: the same direction, as long as asked for */
    es_basis_vector v;
    assert_ok(es_basis_control_vector(&the_basis, model, dictionary, 1, 2.5f, test_path("tone.gguf"), &err), &err);
    assert_ok(es_steering_read(&v, test_path("tone.gguf"), LAYER, D, NULL, &err), &err);
    assert_true(v.length > 2.4999f && v.length < 2.5001f);
    for (int j = 0; j < D; j++)
        assert_float_equal(v.unit[j], the_basis.vector[0].unit[j], 1e-6);
    free(v.unit);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(in_the_workspace), cmocka_unit_test(as_a_file)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
