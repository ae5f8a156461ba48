/* adapter: forms, patches, files, and what is refused. */
#include "fixture.h"

static es_model *model;
static es_dictionary *dictionary;

static es_adapter *make(es_form form, bool constrained)
{
    es_error err;
    es_adapter *a = NULL;
    es_basis b = fix_basis(10, 5);
    es_adapter_options o = es_adapter_default(dictionary, model);
    o.form = form;
    o.constrained = constrained;
    o.rank = 3;
    assert_ok(es_adapter_new(&a, model, dictionary, constrained ? &b : NULL, &o, &err), &err);
    es_basis_free(&b);
    es_rng rng;
    es_rng_seed(&rng, 2);
    for (size_t i = 0; i < a->n_param; i++)
        a->param[i] += 0.1f * es_rng_normal(&rng);
    for (size_t i = 0; i < a->n_mean; i++)
        a->mean_input[i] = es_rng_normal(&rng);
    a->steps = 5;
    es_adapter_refresh(a);
    return a;
}

/* Mean log-probabilities of a text under a patch. */
static void scores(const es_patch *patch, float *out, int n)
{
    es_error err;
    es_ids ids = {0};
    assert_ok(es_tokenize(model, "what the model says of this", 27, false, &ids, &err), &err);
    assert_true((int)ids.n >= n);
    assert_ok(es_score(model, ids.id, n, patch, 1, out, NULL, &err), &err);
    es_ids_free(&ids);
}

static void starts_as_nothing(void **s)
{
    (void)s;
    es_error err;
    float base[8], same[8];
    scores(NULL, base, 8);
    for (int form = 0; form < 3; form++) {
        es_basis b = fix_basis(10, 5);
        es_adapter *a = NULL;
        es_adapter_options o = es_adapter_default(dictionary, model);
        assert_int_equal(o.first_layer, FIX_LAYER);
        assert_int_equal(o.last_layer, es_model_get_info(model)->n_layer - 1);
        o.form = form == 0 ? ES_FORM_BIAS : ES_FORM_LORA;
        o.constrained = form < 2;
        assert_ok(es_adapter_new(&a, model, dictionary, &b, &o, &err), &err);
        es_patch patch;
        assert_ok(es_adapter_patch(a, 1, &patch, &err), &err);
        scores(&patch, same, 8);
        for (int i = 1; i < 8; i++)
            assert_true(fabsf(base[i] - same[i]) < 1e-6f);
        for (int i = 0; es_adapter_coefficients(a) && i < 10; i++)
            assert_true(es_adapter_coefficients(a)[i] == 0);
        es_adapter_free(a);
        a = make(o.form, o.constrained);
        assert_ok(es_adapter_patch(a, 1, &patch, &err), &err);
        scores(&patch, same, 8);
        bool differs = false;
        for (int i = 1; i < 8; i++)
            differs |= fabsf(base[i] - same[i]) > 1e-3f;
        assert_true(differs);
        assert_ok(es_adapter_patch(a, 0, &patch, &err), &err);
        scores(&patch, same, 8);
        assert_memory_equal(base + 1, same + 1, 7 * sizeof *base); /* scale 0: to the bit */
        assert_error(es_adapter_patch(a, NAN, &patch, &err), &err, "finite");
        es_adapter_free(a);
        es_basis_free(&b);
    }
}

/* What a constrained adapter adds never leaves the span of its basis. */
static void stays_in_span(void **s)
{
    (void)s;
    es_adapter *a = make(ES_FORM_LORA, true);
    es_error err;
    float *directions = calloc((size_t)(a->n_layer * a->d), sizeof *directions);
    assert_ok(es_adapter_directions(a, directions, &err), &err);
    es_basis b = fix_basis(10, 5);
    es_basis_report r;
    assert_ok(es_basis_measure(&b, dictionary, NULL, directions + FIX_LAYER * a->d, a->n_layer - FIX_LAYER, 1, &r, &err), &err);
    assert_true(r.energy > 0.9999);
    for (int j = 0; j < FIX_LAYER * a->d; j++)
        assert_true(directions[j] == 0);
    /* D^T c of the coefficients is the sum of the layers' directions */
    for (int j = 0; j < a->d; j++) {
        double sum = 0, dc = 0;
        for (int l = 0; l < a->n_layer; l++)
            sum += directions[l * a->d + j];
        for (int i = 0; i < 10; i++)
            dc += (double)a->coefficient[i] * a->D[i * a->d + j];
        assert_true(fabs(sum - dc) < 1e-3);
    }
    es_basis_free(&b);
    free(directions);
    es_adapter_free(a);
}

static void round_trip(void **s)
{
    (void)s;
    es_error err;
    for (int form = 0; form < 3; form++) {
        es_adapter *a = make(form == 0 ? ES_FORM_BIAS : ES_FORM_LORA, form < 2), *b = NULL, *c = NULL;
        const char *path = test_path("adapter-%d.safetensors", form);
        assert_ok(es_adapter_save(a, path, &err), &err);
        assert_ok(es_adapter_load(&b, model, form < 2 ? dictionary : NULL, path, &err), &err);
        assert_int_equal(b->n_param, a->n_param);
        assert_memory_equal(a->param, b->param, a->n_param * sizeof *a->param);
        assert_int_equal(es_adapter_steps(b), 5);
        if (form < 2)
            assert_memory_equal(es_adapter_coefficients(a), es_adapter_coefficients(b), 10 * sizeof(float));
        assert_ok(es_adapter_copy(&c, b, &err), &err);
        es_buf x = {0}, y = {0};
        assert_ok(es_adapter_to_bytes(a, &x, &err), &err);
        assert_ok(es_adapter_to_bytes(c, &y, &err), &err);
        assert_int_equal(x.len, y.len);
        assert_memory_equal(x.data, y.data, x.len);
        c->param[0] += 1; /* a copy of its own */
        es_adapter_refresh(c);
        assert_true(c->param[0] != b->param[0]);
        es_patch p, q;
        assert_ok(es_adapter_patch(b, 1, &p, &err), &err);
        assert_ok(es_adapter_patch(c, 1, &q, &err), &err);
        assert_true(form == 0 ? p.addend[0].v != q.addend[0].v : p.lowrank[0].b != q.lowrank[0].b && p.lowrank[0].a != q.lowrank[0].a);
        /* cut anywhere, or with a byte changed in its header: refused or read, never worse */
        es_adapter *d = NULL;
        for (size_t n = 0; n < x.len; n += n < 2000 ? 37 : 4999)
            assert_error(es_adapter_from_bytes(&d, model, dictionary, x.data, n, "cut", &err), &err, NULL);
        for (size_t n = 8; n < 2000 && n < x.len; n += 3) {
            char keep = x.data[n];
            x.data[n] ^= 0x15;
            if (es_adapter_from_bytes(&d, model, dictionary, x.data, x.len, "spoilt", &err) == ES_OK)
                es_adapter_free(d);
            x.data[n] = keep;
        }
        es_buf_free(&x);
        es_buf_free(&y);
        es_adapter_free(a);
        es_adapter_free(b);
        es_adapter_free(c);
    }
}

static void refusals(void **s)
{
    (void)s;
    es_error err;
    es_adapter *a = make(ES_FORM_LORA, true), *b = NULL;
    es_buf bytes = {0};
    assert_ok(es_adapter_to_bytes(a, &bytes, &err), &err);
    tiny_options o = tiny_default();
    o.seed = 99;
    es_model *other = open_tiny(&o);
    assert_int_equal(es_adapter_from_bytes(&b, other, dictionary, bytes.data, bytes.len, "mine", &err), ES_ERR_MISMATCH);
    char hash[65];
    assert_ok(es_model_hash(other, hash, &err), &err);
    assert_non_null(strstr(err.text, "mine"));
    assert_int_equal(es_adapter_from_bytes(&b, other, dictionary, bytes.data, bytes.len, "mine", &err), ES_ERR_MISMATCH);
    assert_non_null(strstr(err.text, hash)); /* both hashes are named */
    assert_non_null(strstr(err.text, a->model_hash));
    es_dictionary *stranger = fix_dictionary(model, "stranger", 8);
    assert_int_equal(es_adapter_from_bytes(&b, model, stranger, bytes.data, bytes.len, "mine", &err), ES_ERR_MISMATCH);
    assert_non_null(strstr(err.text, es_dictionary_get_info(stranger)->hash));
    assert_non_null(strstr(err.text, es_dictionary_get_info(dictionary)->hash));
    assert_int_equal(es_adapter_from_bytes(&b, model, NULL, bytes.data, bytes.len, "mine", &err), ES_ERR_MISMATCH);
    assert_null(b);
    assert_error(es_adapter_load(&b, model, dictionary, test_path("absent"), &err), &err, "absent");

    es_basis basis = fix_basis(4, 1);
    es_adapter_options bad = es_adapter_default(dictionary, model);
    bad.last_layer = 99;
    assert_error(es_adapter_new(&b, model, dictionary, &basis, &bad, &err), &err, "layers");
    bad = es_adapter_default(dictionary, model);
    bad.rank = 0;
    assert_error(es_adapter_new(&b, model, dictionary, &basis, &bad, &err), &err, "rank");
    bad = es_adapter_default(dictionary, model);
    assert_error(es_adapter_new(&b, model, dictionary, NULL, &bad, &err), &err, "basis");
    snprintf(basis.model_hash, sizeof basis.model_hash, "%064d", 1);
    assert_error(es_adapter_new(&b, model, dictionary, &basis, &bad, &err), &err, "model");
    es_basis_free(&basis);
    es_dictionary_free(stranger);
    es_model_free(other);
    es_buf_free(&bytes);
    es_adapter_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(starts_as_nothing), cmocka_unit_test(stays_in_span), cmocka_unit_test(round_trip), cmocka_unit_test(refusals),
    };
    model = open_tiny(NULL);
    dictionary = fix_dictionary(model, "dictionary", 3);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    es_dictionary_free(dictionary);
    es_model_free(model);
    return failed;
}
