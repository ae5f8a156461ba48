/* basis: editing, JSON, and the figures of known matrices. */
#include "fixture.h"
#include "linear.h"

static es_model *model;
static es_dictionary *dictionary;

/* Eigenvalues of Q diag(w) Q^T, Q a product of reflections. */
static void eigenvalues(void **s)
{
    (void)s;
    es_rng rng;
    es_rng_seed(&rng, 9);
    static const int sizes[] = {1, 2, 3, 17, 80};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        int n = sizes[k];
        double *a = calloc((size_t)(n * n), sizeof *a), *w = calloc((size_t)n, sizeof *w), *v = calloc((size_t)n, sizeof *v);
        for (int i = 0; i < n; i++)
            a[i * n + i] = i < 3 ? 1 : i; /* with a value that repeats */
        for (int turn = 0; turn < 3; turn++) { /* a = H a H, H = I - 2 v v^T */
            double norm = 0;
            for (int i = 0; i < n; i++) {
                v[i] = es_rng_normal(&rng);
                norm += v[i] * v[i];
            }
            for (int side = 0; side < 2; side++)
                for (int i = 0; i < n; i++) {
                    double dot = 0;
                    for (int j = 0; j < n; j++)
                        dot += v[j] * (side ? a[i * n + j] : a[j * n + i]);
                    for (int j = 0; j < n; j++)
                        *(side ? &a[i * n + j] : &a[j * n + i]) -= 2 * dot / norm * v[j];
                }
        }
        assert_true(es_linear_eigenvalues(a, n, w));
        for (int i = 0; i < n; i++)
            assert_true(fabs(w[i] - (i < 3 ? 1 : i)) < 1e-9 * n);
        free(a);
        free(w);
        free(v);
    }
    double c[9] = {4, 2, 0, 2, 5, 1, 0, 1, 3}, x[3] = {8, 15, 11}; /* c (1 2 3) = x */
    assert_true(es_linear_cholesky(c, 3, 0));
    es_linear_solve(c, 3, x);
    for (int i = 0; i < 3; i++)
        assert_true(fabs(x[i] - (i + 1)) < 1e-12);
    double bad[4] = {1, 2, 2, 1};
    assert_false(es_linear_cholesky(bad, 2, 0));
}

static void editing(void **s)
{
    (void)s;
    es_error err;
    es_basis b = {0};
    assert_ok(es_basis_add(&b, 7, -1, 2, &err), &err);
    assert_ok(es_basis_add(&b, 3, 0, 1, &err), &err);
    assert_ok(es_basis_add(&b, 9, -1, 0, &err), &err);
    assert_ok(es_basis_add(&b, 7, -5, 5, &err), &err); /* new bounds */
    assert_int_equal(b.n, 3);
    assert_true(b.lo[0] == -5 && b.hi[0] == 5);
    assert_true(es_basis_remove(&b, 3));
    assert_false(es_basis_remove(&b, 3));
    assert_int_equal(b.n, 2);
    assert_int_equal(b.feature[1], 9);
    assert_error(es_basis_add(&b, -1, 0, 1, &err), &err, "feature");
    assert_error(es_basis_add(&b, 1, 2, 1, &err), &err, "bounds");
    assert_error(es_basis_add(&b, 1, NAN, 1, &err), &err, "bounds");
    assert_error(es_basis_add(&b, 1, 1, 2, &err), &err, "bounds");
    es_basis_free(&b);
    assert_int_equal(b.n, 0);
}

static void json(void **s)
{
    (void)s;
    es_error err;
    es_basis b = fix_basis(5, 0.25f), c;
    b.version = 4;
    snprintf(b.dictionary, sizeof b.dictionary, "some dictionary");
    json_t *j = es_basis_to_json(&b);
    assert_ok(es_basis_from_json(&c, j, &err), &err);
    assert_int_equal(c.n, 5);
    assert_int_equal(c.version, 4);
    assert_int_equal(c.layer, FIX_LAYER);
    assert_string_equal(c.name, "fixture");
    assert_string_equal(c.dictionary, "some dictionary");
    assert_memory_equal(b.feature, c.feature, 5 * sizeof *b.feature);
    assert_memory_equal(b.lo, c.lo, 5 * sizeof *b.lo);
    es_basis_free(&c);
    json_decref(j);
    es_basis_free(&b);

    static const char *const bad[] = {
        "[]", "{}", "{\"format\":\"espalier-basis\"}", "{\"format\":\"espalier-basis\",\"version\":3,\"layer\":1,\"features\":[]}",
        "{\"format\":\"espalier-basis\",\"version\":1,\"layer\":1}",
        "{\"format\":\"espalier-basis\",\"version\":1,\"layer\":1,\"features\":[{\"feature\":1}]}",
        "{\"format\":\"espalier-basis\",\"version\":1,\"layer\":1,\"features\":[{\"feature\":-1,\"lo\":0,\"hi\":1}]}",
        "{\"format\":\"espalier-basis\",\"version\":1,\"layer\":1,\"features\":[{\"feature\":1e3,\"lo\":0,\"hi\":1}]}",
        "{\"format\":\"espalier-basis\",\"version\":1,\"layer\":1,\"features\":[{\"feature\":1,\"lo\":1,\"hi\":0}]}",
        "{\"format\":\"espalier-basis\",\"version\":1,\"layer\":1,\"features\":[{\"feature\":1,\"lo\":0,\"hi\":1},{\"feature\":1,\"lo\":0,\"hi\":1}]}",
        "{\"format\":\"espalier-basis\",\"version\":1,\"layer\":99999999999,\"features\":[]}",
        "{\"format\":\"espalier-basis\",\"version\":1,\"layer\":1,\"name\":[],\"features\":[]}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_ok(es_json_parse(&j, bad[i], strlen(bad[i]), "bad", &err), &err);
        assert_error(es_basis_from_json(&c, j, &err), &err, NULL);
        json_decref(j);
    }
}

static void measures(void **s)
{
    (void)s;
    es_error err;
    es_basis_report r;
    es_basis b = fix_basis(16, 1);
    int d = es_model_get_info(model)->d_model;
    float *D = NULL, *gradient = calloc((size_t)(3 * d), sizeof *gradient);
    assert_ok(es_basis_matrix(&b, dictionary, &D, &err), &err);
    for (int i = 0; i < 16; i++) {
        double norm = 0;
        for (int j = 0; j < d; j++)
            norm += (double)D[i * d + j] * D[i * d + j];
        assert_true(fabs(norm - 1) < 1e-5);
    }
    /* gradients inside the span: all of the energy, and more than any random basis holds */
    for (int e = 0; e < 3; e++)
        for (int j = 0; j < d; j++)
            gradient[e * d + j] = D[e * d + j] - 0.5f * D[(e + 5) * d + j];
    assert_ok(es_basis_measure(&b, dictionary, NULL, gradient, 3, 1, &r, &err), &err);
    assert_true(fabs(r.energy - 1) < 1e-3);
    assert_true(r.random_max < 0.9 && r.random_min > 0 && r.random_min <= r.random_mean && r.random_mean <= r.random_max);
    assert_true(fabs(r.random_mean - 16.0 / d) < 0.2); /* K of d dimensions */
    assert_true(r.condition > 1 && r.condition < 1e4 && r.effective_rank > 8 && r.effective_rank <= 16);
    assert_true(r.max_overlap > 0 && r.max_overlap < 0.9);
    double overlap = 0; /* whose it is */
    const float *decoder = es_dictionary_decoder(dictionary);
    for (int j = 0; j < d; j++)
        overlap += (double)decoder[r.overlap_a * d + j] * decoder[r.overlap_b * d + j];
    assert_true(fabs(fabs(overlap) - r.max_overlap) < 1e-4);

    /* without gradients: no energy. A gradient orthogonal to the span: none of it inside */
    assert_ok(es_basis_measure(&b, dictionary, NULL, NULL, 0, 1, &r, &err), &err);
    assert_true(isnan(r.energy) && isnan(r.random_mean));
    es_basis one = fix_basis(1, 1);
    double dot = 0;
    for (int j = 0; j < d; j++)
        dot += (double)D[j] * D[d + j];
    for (int j = 0; j < d; j++)
        gradient[j] = D[d + j] - (float)dot * D[j];
    assert_ok(es_basis_measure(&one, dictionary, NULL, gradient, 1, 1, &r, &err), &err);
    assert_true(r.energy < 1e-6 && fabs(r.condition - 1) < 1e-6 && fabs(r.effective_rank - 1) < 1e-6);
    es_basis_free(&one);

    es_basis wide = {0}; /* more features than dimensions: singular, and all of the energy */
    for (int i = 0; i < FIX_F; i++)
        assert_ok(es_basis_add(&wide, i, -1, 1, &err), &err);
    assert_ok(es_basis_measure(&wide, dictionary, NULL, gradient, 1, 1, &r, &err), &err);
    assert_true(r.condition > 1e5 && r.energy > 0.999 && r.effective_rank <= d);
    es_basis_free(&wide);

    snprintf(b.dictionary_hash, sizeof b.dictionary_hash, "%064d", 7); /* another dictionary's */
    free(D);
    assert_error(es_basis_matrix(&b, dictionary, &D, &err), &err, "dictionary");
    assert_int_equal(err.code, ES_ERR_MISMATCH);
    b.dictionary_hash[0] = 0;
    b.feature[2] = FIX_F;
    assert_error(es_basis_matrix(&b, dictionary, &D, &err), &err, "feature");
    es_basis_free(&b);
    free(gradient);
}

/* Gradients made of three planted features: exactly those come first, with their signs. */
static void suggestion(void **s)
{
    (void)s;
    es_error err;
    int d = es_model_get_info(model)->d_model;
    const float *decoder = es_dictionary_decoder(dictionary);
    float *gradient = calloc((size_t)(4 * d), sizeof *gradient), score[8];
    int plant[3] = {11}, planted = 1; /* nearly orthogonal ones, so that no other feature can be nearer */
    for (int f = 0; f < FIX_F && planted < 3; f++) {
        bool apart = true;
        for (int i = 0; i < planted; i++) {
            double dot = 0;
            for (int j = 0; j < d; j++)
                dot += (double)decoder[f * d + j] * decoder[plant[i] * d + j];
            apart &= fabs(dot) < 0.05;
        }
        if (apart)
            plant[planted++] = f;
    }
    assert_int_equal(planted, 3);
    es_rng rng;
    es_rng_seed(&rng, 4);
    for (int e = 0; e < 4; e++)
        for (int j = 0; j < d; j++)
            gradient[e * d + j] = 3 * decoder[plant[0] * d + j] - 3 * decoder[plant[1] * d + j] + 3 * decoder[plant[2] * d + j] + 0.05f * es_rng_normal(&rng);
    es_basis b = {0};
    assert_ok(es_basis_suggest(&b, model, dictionary, NULL, gradient, 4, 3, true, score, &err), &err);
    int seen = 0;
    for (int i = 0; i < 3; i++) {
        if (b.feature[i] == plant[0])
            seen += score[i] > 0 && b.lo[i] == 0 && b.hi[i] > 0;
        if (b.feature[i] == plant[1])
            seen += score[i] < 0 && b.hi[i] == 0 && b.lo[i] < 0;
        if (b.feature[i] == plant[2])
            seen += score[i] > 0;
        if (i)
            assert_true(fabsf(score[i]) <= fabsf(score[i - 1]));
    }
    assert_int_equal(seen, 3);
    assert_string_equal(b.dictionary_hash, es_dictionary_get_info(dictionary)->hash);
    assert_error(es_basis_suggest(&b, model, dictionary, NULL, gradient, 4, FIX_F + 1, false, NULL, &err), &err, NULL);
    es_basis other = {0};
    assert_ok(es_basis_random(&b, model, dictionary, NULL, 10, 1, &err), &err);
    assert_ok(es_basis_random(&other, model, dictionary, NULL, 10, 2, &err), &err);
    assert_int_equal(b.n, 10);
    assert_true(memcmp(b.feature, other.feature, 10 * sizeof *b.feature) != 0);
    for (int i = 0; i < 10; i++)
        for (int j = 0; j < i; j++)
            assert_int_not_equal(b.feature[i], b.feature[j]);
    es_basis_free(&b);
    es_basis_free(&other);
    free(gradient);
}

/* The gradient of the real loss: a small step along it at the dictionary's layer lowers the loss by the predicted amount. */
static void attribution(void **s)
{
    (void)s;
    es_error err;
    es_experiences e = fix_experiences();
    int d = es_model_get_info(model)->d_model;
    float *gradient = calloc((size_t)(e.n * d), sizeof *gradient), *again = calloc((size_t)(e.n * d), sizeof *again);
    assert_ok(es_attribute(model, dictionary, &e, 1, gradient, NULL, &err), &err);
    for (int i = 0; i < e.n; i++) {
        double norm = 0;
        for (int j = 0; j < d; j++)
            norm += (double)gradient[i * d + j] * gradient[i * d + j];
        assert_true(norm > 0 && isfinite(norm));
    }
    /* a pair the other way round asks for the opposite */
    char *t = e.item[0].preferred;
    e.item[0].preferred = e.item[0].rejected;
    e.item[0].rejected = t;
    assert_ok(es_attribute(model, dictionary, &e, 1, again, NULL, &err), &err);
    double dot = 0, size = 0;
    for (int j = 0; j < d; j++) {
        dot += (double)gradient[j] * again[j];
        size += (double)gradient[j] * gradient[j];
    }
    assert_true(fabs(dot / size + 1) < 1e-3);
    assert_memory_equal(gradient + d, again + d, (size_t)d * sizeof *again);
    volatile bool cancel = true;
    es_progress p = {.cancel = &cancel};
    assert_int_equal(es_attribute(model, dictionary, &e, 1, again, &p, &err), ES_ERR_CANCELLED);
    free(gradient);
    free(again);
    es_experiences_free(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(eigenvalues), cmocka_unit_test(editing),    cmocka_unit_test(json),
        cmocka_unit_test(measures),    cmocka_unit_test(suggestion), cmocka_unit_test(attribution),
    };
    model = open_tiny(NULL);
    dictionary = fix_dictionary(model, "dictionary", 3);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    es_dictionary_free(dictionary);
    es_model_free(model);
    return failed;
}
