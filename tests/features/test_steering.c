/* Steering vectors of other tools as entries of a basis: read from golden files, edited, in JSON, and as rows of D in every form. */
#include "fixture.h"

static es_model *model;
static es_dictionary *dictionary;
static es_error err;

static const char *golden(const char *name)
{
    static char path[4][1200];
    static int at;
    at = (at + 1) % 4;
    snprintf(path[at], sizeof path[0], "%s/%s", test_golden("steering"), name);
    return path[at];
}

/* ---- reading ------------------------------------------------------------------------------------------------------------ */

static void same(const char *file, const char *kind, int layer, const char *at)
{
    json_t *all = NULL;
    es_basis_vector v;
    assert_ok(es_json_file(&all, golden("expected.json"), &err), &err);
    json_t *want = json_object_get(json_object_get(all, kind), at), *unit = json_object_get(want, "unit");
    assert_ok(es_steering_read(&v, golden(file), layer, 64, NULL, &err), &err);
    assert_int_equal(json_array_size(unit), 64);
    assert_true(fabs(v.length - json_real_value(json_object_get(want, "length"))) < 1e-5 * v.length);
    for (size_t j = 0; j < 64; j++)
        assert_true(fabs(v.unit[j] - json_real_value(json_array_get(unit, j))) < 1e-7);
    assert_int_equal(v.layer, layer);
    assert_int_equal(strlen(v.hash), 64);
    free(v.unit);
    json_decref(all);
}

static void golden_files(void **s)
{
    (void)s;
    static const char *const files[] = {"persona.pt", "transposed.pt", "dict.pt", "persona.safetensors"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        same(files[i], "f32", 0, "0");
        same(files[i], "f32", 1, "1");
        same(files[i], "f32", 3, "3");
    }
    same("bf16.pt", "bf16", 1, "1");
    same("control.gguf", "f32", 1, "1");
    same("control.gguf", "f32", 3, "3");
    es_basis_vector v;
    assert_ok(es_steering_read(&v, golden("persona.pt"), 1, 64, NULL, &err), &err);
    assert_string_equal(v.name, "persona");
    free(v.unit);
    assert_ok(es_steering_read(&v, golden("persona.pt"), 1, 64, "kind", &err), &err);
    assert_string_equal(v.name, "kind");
    free(v.unit);
}

static void one_row(const char *path, const float *x, size_t rows, size_t cols)
{
    es_tensor_spec t = {"vector", ES_TENSOR_F32, rows ? 2 : 1, {rows ? rows : cols, cols}, x};
    assert_ok(es_safetensors_write_file(path, &t, 1, NULL, &err), &err);
}

static void bad_files(void **s)
{
    (void)s;
    es_basis_vector v;
    float x[2 * 64] = {0};
    assert_error(es_steering_read(&v, golden("persona.pt"), 2, 64, NULL, &err), &err, "is zero");
    assert_error(es_steering_read(&v, golden("persona.pt"), 4, 64, NULL, &err), &err, "embedding and of layers 0 to 3");
    assert_error(es_steering_read(&v, golden("persona.pt"), 1, 32, NULL, &err), &err, "width 64");
    assert_error(es_steering_read(&v, golden("persona.pt"), -1, 64, NULL, &err), &err, "layer -1");
    assert_error(es_steering_read(&v, golden("control.gguf"), 0, 64, NULL, &err), &err, "3 in 1 to 3");
    assert_error(es_steering_read(&v, golden("control.gguf"), 1, 48, NULL, &err), &err, "width 64");
    assert_error(es_steering_read(&v, golden("expected.json"), 1, 64, NULL, &err), &err, "a steering vector is");
    assert_error(es_steering_read(&v, golden("none.pt"), 1, 64, NULL, &err), &err, "none.pt");
    assert_error(es_steering_read(&v, es_model_get_info(model)->path, 1, 64, NULL, &err), &err, "no control vector");
    const char *path = test_path("x.safetensors");
    x[64] = NAN;
    one_row(path, x, 2, 64);
    assert_error(es_steering_read(&v, path, 0, 64, NULL, &err), &err, "not a number");
    x[64] = 3e38f;
    x[65] = 3e38f;
    one_row(path, x, 2, 64);
    assert_error(es_steering_read(&v, path, 0, 64, NULL, &err), &err, "zero"); /* longer than a float says */
    x[64] = x[65] = 1e-30f;
    one_row(path, x, 2, 64);
    assert_ok(es_steering_read(&v, path, 0, 64, NULL, &err), &err);
    assert_true(fabsf(v.unit[0] - sqrtf(0.5f)) < 1e-6f);
    free(v.unit);
    one_row(path, x + 64, 0, 64); /* [d]: of any layer */
    assert_ok(es_steering_read(&v, path, 3, 64, NULL, &err), &err);
    assert_int_equal(v.layer, 3);
    free(v.unit);
    test_write(test_path("cut.gguf"), "GGUF\3\0\0", 7);
    assert_error(es_steering_read(&v, test_path("cut.gguf"), 1, 64, NULL, &err), &err, "cut.gguf");
    test_write(test_path("cut.pt"), "PK\3\4", 4);
    assert_error(es_steering_read(&v, test_path("cut.pt"), 1, 64, NULL, &err), &err, "cut.pt");
}

/* ---- in a basis ---------------------------------------------------------------------------------------------------------- */

static es_basis mixed(void)
{
    es_basis b = {.name = "mixed", .layer = FIX_LAYER};
    es_basis_vector v;
    assert_ok(es_basis_add(&b, 7, -1, 2, &err), &err);
    assert_ok(es_steering_read(&v, golden("persona.pt"), 1, 64, "kind", &err), &err);
    assert_ok(es_basis_add_vector(&b, &v, -3, 4, &err), &err);
    free(v.unit);
    assert_ok(es_basis_add(&b, 3, 0, 1, &err), &err);
    assert_ok(es_steering_read(&v, golden("control.gguf"), 3, 64, NULL, &err), &err);
    assert_ok(es_basis_add_vector(&b, &v, -1, 0, &err), &err);
    free(v.unit);
    return b;
}

static void assert_same_basis(const es_basis *a, const es_basis *b)
{
    assert_int_equal(a->n, b->n);
    assert_int_equal(a->n_vector, b->n_vector);
    assert_memory_equal(a->feature, b->feature, (size_t)a->n * sizeof *a->feature);
    assert_memory_equal(a->lo, b->lo, (size_t)a->n * sizeof *a->lo);
    assert_memory_equal(a->hi, b->hi, (size_t)a->n * sizeof *a->hi);
    for (int k = 0; k < a->n; k++) {
        const es_basis_vector *x = es_basis_vector_of(a, a->feature[k]), *y = es_basis_vector_of(b, b->feature[k]);
        assert_true((a->feature[k] < 0) == (x != NULL) && (x == NULL) == (y == NULL));
        if (!x)
            continue;
        assert_string_equal(x->name, y->name);
        assert_string_equal(x->hash, y->hash);
        assert_true(x->layer == y->layer && x->length == y->length && x->d == y->d);
        assert_memory_equal(x->unit, y->unit, (size_t)x->d * sizeof *x->unit);
    }
}

static void editing(void **s)
{
    (void)s;
    es_basis b = mixed(), copy;
    es_basis_vector v;
    assert_int_equal(b.n, 4);
    int number = b.feature[1];
    assert_true(number <= ES_VECTOR_FIRST && number >= ES_VECTOR_LAST && b.feature[3] != number);
    assert_string_equal(es_basis_vector_of(&b, b.feature[3])->name, "control");
    assert_null(es_basis_vector_of(&b, 7));
    assert_null(es_basis_vector_named(&b, "none"));
    assert_ok(es_basis_copy(&copy, &b, &err), &err);
    assert_same_basis(&b, &copy);
    es_basis_free(&copy);
    /* one of that name is replaced where it is, and keeps its number */
    assert_ok(es_steering_read(&v, golden("persona.pt"), 3, 64, "kind", &err), &err);
    assert_ok(es_basis_add_vector(&b, &v, -9, 9, &err), &err);
    assert_int_equal(b.n, 4);
    assert_int_equal(b.n_vector, 2);
    assert_int_equal(b.feature[1], number);
    assert_memory_equal(es_basis_vector_of(&b, number)->unit, v.unit, 64 * sizeof(float));
    assert_true(b.hi[1] == 9);
    /* names and numbers that make no sense */
    static const char *const names[] = {"", "12", "-7", "a\nb", "\x1b[2J", "\xff"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(v.name, sizeof v.name, "%s", names[i]);
        assert_error(es_basis_add_vector(&b, &v, -1, 1, &err), &err, "no name");
    }
    snprintf(v.name, sizeof v.name, "long");
    v.unit[0] += 1;
    assert_error(es_basis_add_vector(&b, &v, -1, 1, &err), &err, "no unit vector");
    v.unit[0] = NAN;
    assert_error(es_basis_add_vector(&b, &v, -1, 1, &err), &err, "no unit vector");
    assert_error(es_basis_add(&b, number, -1, 1, &err), &err, "no feature");
    free(v.unit);
    assert_int_equal(b.n, 4);
    assert_true(es_basis_remove(&b, number));
    assert_false(es_basis_remove(&b, number));
    assert_int_equal(b.n, 3);
    assert_int_equal(b.n_vector, 1);
    assert_string_equal(es_basis_vector_of(&b, b.feature[2])->name, "control");
    es_basis_free(&b);
}

static void json(void **s)
{
    (void)s;
    es_basis b = mixed(), got;
    json_t *v = es_basis_to_json(&b), *back = NULL;
    assert_int_equal(json_integer_value(json_object_get(v, "version")), 2);
    char *text = json_dumps(v, JSON_COMPACT | JSON_REAL_PRECISION(9));
    assert_ok(es_json_parse(&back, text, strlen(text), "text", &err), &err);
    assert_ok(es_basis_from_json(&got, back, &err), &err);
    assert_same_basis(&b, &got); /* nine digits keep every bit of a float */
    es_basis_free(&got);
    free(text);
    json_decref(back);

    json_t *one = json_array_get(json_object_get(v, "features"), 1), *direction = json_object_get(one, "direction");
    struct { const char *key; json_t *value; const char *says; } bad[] = {
        {"vector", json_integer(3), "\"vector\""}, {"vector", json_string("control"), "twice"}, {"number", json_integer(5), "\"number\""},
        {"number", json_integer(-1), "\"number\""}, {"number", json_integer(b.feature[3]), "twice"}, {"layer", json_string("x"), "\"layer\""}, {"direction", json_array(), "direction"},
        {"direction", json_string("x"), "direction"}, {"length", json_real(0), "length 0"}, {"length", json_null(), "length"}, {"lo", json_null(), "bounds"},
        {"lo", json_real(2), "lo <= 0"}, {"direction", json_pack("[f,f]", 3.0, 4.0), "no unit"}, {"direction", json_pack("[f,s]", 1.0, "x"), "no number"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *spoilt = json_deep_copy(v);
        json_object_set_new(json_array_get(json_object_get(spoilt, "features"), 1), bad[i].key, bad[i].value);
        assert_error(es_basis_from_json(&got, spoilt, &err), &err, bad[i].says);
        json_decref(spoilt);
    }
    assert_int_equal(json_array_size(direction), 64);
    json_object_set_new(v, "version", json_integer(1)); /* a basis of the first kind has none */
    assert_error(es_basis_from_json(&got, v, &err), &err, "\"feature\"");
    json_decref(v);
    es_basis_free(&b);
}

static void rows_of_D(void **s)
{
    (void)s;
    es_basis b = mixed();
    float *D = NULL, row[64];
    assert_ok(es_basis_matrix(&b, dictionary, &D, &err), &err);
    for (int k = 0; k < 4; k++) {
        const es_basis_vector *v = es_basis_vector_of(&b, b.feature[k]);
        if (v)
            assert_memory_equal(D + 64 * k, v->unit, sizeof row);
        else
            es_dictionary_rows(dictionary, b.feature[k], 1, row);
        for (int j = 0; !v && j < 64; j++)
            assert_true(fabsf(D[64 * k + j] - row[j]) < 1e-6f);
    }
    free(D);
    es_basis_report r;
    assert_ok(es_basis_measure(&b, dictionary, NULL, NULL, 0, 1, &r, &err), &err);
    assert_true(r.effective_rank > 3 && r.effective_rank <= 4.0001);
    b.vector[0].d = 32; /* as a file of another model would have it */
    assert_error(es_basis_matrix(&b, dictionary, &D, &err), &err, "width 32");
    b.vector[0].d = 64;
    es_basis_free(&b);
}

/* ---- in an adapter -------------------------------------------------------------------------------------------------------- */

static void forms(void **s)
{
    (void)s;
    es_basis b = mixed();
    static const es_form all[] = {ES_FORM_BIAS, ES_FORM_MAP, ES_FORM_LORA};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        es_adapter_options o = es_adapter_default(dictionary, model);
        es_adapter *a, *back;
        es_buf bytes = {0}, again = {0};
        o.form = all[i];
        o.rank = 2;
        assert_ok(es_adapter_new(&a, model, dictionary, &b, &o, &err), &err);
        assert_same_basis(es_adapter_basis(a), &b);
        assert_memory_equal(es_adapter_matrix(a) + 64, es_basis_vector_named(&b, "kind")->unit, 64 * sizeof(float));
        assert_ok(es_adapter_to_bytes(a, &bytes, &err), &err);
        assert_ok(es_adapter_from_bytes(&back, model, dictionary, bytes.data, bytes.len, "bytes", &err), &err);
        assert_same_basis(es_adapter_basis(back), &b);
        assert_memory_equal(es_adapter_matrix(back), es_adapter_matrix(a), 4 * 64 * sizeof(float));
        assert_ok(es_adapter_to_bytes(back, &again, &err), &err);
        assert_true(again.len == bytes.len && !memcmp(again.data, bytes.data, bytes.len));
        es_adapter_free(back);
        es_adapter_free(a);
        es_buf_free(&bytes);
        es_buf_free(&again);
    }
    es_adapter_options o = es_adapter_default(dictionary, model);
    es_adapter *a;
    o.form = ES_FORM_GAIN;
    assert_error(es_adapter_new(&a, model, dictionary, &b, &o, &err), &err, "the vector kind is a direction without an encoder");
    es_basis_free(&b);
}

/* A bias along a vector alone moves the residual by c times it, and a learner finds it where the experiences ask for it. */
static void learns_along_a_vector(void **s)
{
    (void)s;
    es_basis b = {.name = "one", .layer = FIX_LAYER};
    es_basis_vector v;
    assert_ok(es_steering_read(&v, golden("persona.pt"), FIX_LAYER, 64, NULL, &err), &err);
    assert_ok(es_basis_add_vector(&b, &v, -50, 50, &err), &err);
    es_adapter_options o = es_adapter_default(dictionary, model);
    es_adapter *a;
    o.form = ES_FORM_BIAS;
    assert_ok(es_adapter_new(&a, model, dictionary, &b, &o, &err), &err);
    es_experiences e = fix_experiences();
    es_learner_options lo = es_learner_default(ES_FORM_BIAS);
    es_learner *l;
    assert_ok(es_learner_open(&l, model, dictionary, a, &lo, &err), &err);
    for (int i = 0; i < e.n; i++)
        assert_ok(es_learner_add(l, &e.item[i], NULL, &err), &err);
    es_step_report r;
    for (int i = 0; i < 3; i++)
        assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    float c = es_adapter_coefficients(a)[0];
    es_patch patch;
    assert_true(c != 0);
    assert_ok(es_adapter_patch(a, 1, &patch, &err), &err);
    assert_int_equal(patch.n_addend, 1);
    for (int j = 0; j < 64; j++)
        assert_true(fabsf(patch.addend[0].scale * patch.addend[0].v[j] - c * v.unit[j]) < 1e-5f * fabsf(c));
    es_learner_free(l);
    es_experiences_free(&e);
    es_adapter_free(a);
    es_basis_free(&b);
    free(v.unit);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_files), cmocka_unit_test(bad_files), cmocka_unit_test(editing), cmocka_unit_test(json),
        cmocka_unit_test(rows_of_D), cmocka_unit_test(forms), cmocka_unit_test(learns_along_a_vector),
    };
    model = open_tiny(NULL);
    dictionary = fix_dictionary(model, "dictionary", 3);
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    es_dictionary_free(dictionary);
    es_model_free(model);
    return rc;
}
