/* The memory module: its update and its gradients against the formulas, and the method on the tiny model. */
#include "fixture.h"
#include "method.h"
#include "titans.h"

enum { D = 12, N = 40 };
static es_model *model;

static void normals(float *x, int n, uint64_t seed)
{
    es_rng r;
    es_rng_seed(&r, seed);
    for (int i = 0; i < n; i++)
        x[i] = es_rng_normal(&r);
}

static es_titans *memory(double theta, double eta, double alpha, double gate)
{
    es_error err;
    es_titans *t;
    float neutral[N * D];
    normals(neutral, N * D, 3);
    for (int i = 0; i < N; i++)
        neutral[i * D] = 100 + 5 * neutral[i * D]; /* a large common direction */
    es_titans_options o = {.layer = 0, .theta = theta, .eta = eta, .alpha = alpha, .gate = gate};
    assert_ok(es_titans_new(&t, D, &o, neutral, N, &err), &err);
    return t;
}

static void keys_are_unit_and_spread(void **state)
{
    (void)state;
    es_titans *t = memory(0.1, 0.7, 0.05, 1);
    float h[2 * D], k[2 * D];
    normals(h, 2 * D, 9);
    h[0] += 100;
    h[D] += 100;
    double norm = 0, cosine = 0;
    for (int i = 0; i < 2; i++)
        es_titans_key(t, h + i * D, k + i * D);
    for (int i = 0; i < D; i++) {
        norm += k[i] * k[i];
        cosine += k[i] * k[D + i];
    }
    assert_float_equal(norm, 1, 1e-5);
    assert_true(fabs(cosine) < 0.9); /* raw, it would be 0.999 */
    assert_true(t->rms > 95 && t->rms < 105);
    es_titans_free(t);
}

static void a_write_is_the_formula(void **state)
{
    (void)state;
    double theta = 0.1, eta = 0.7, alpha = 0.05, M[D][D] = {{0}}, S[D][D] = {{0}};
    es_titans *t = memory(theta, eta, alpha, 1);
    for (int step = 0; step < 3; step++) {
        float h[5 * D], k[5 * D], v[5 * D];
        normals(h, 5 * D, 20 + (uint64_t)step);
        normals(v, 5 * D, 30 + (uint64_t)step);
        double loss = 0, grad[D][D] = {{0}};
        for (int r = 0; r < 5; r++) {
            es_titans_key(t, h + r * D, k + r * D);
            for (int i = 0; i < D; i++) {
                double off = -v[r * D + i];
                for (int j = 0; j < D; j++)
                    off += M[i][j] * k[r * D + j];
                loss += off * off / 5;
                for (int j = 0; j < D; j++)
                    grad[i][j] += 2 * off * k[r * D + j] / 5;
            }
        }
        assert_float_equal(es_titans_write(t, k, v, 5), loss, 1e-4 * loss);
        for (int i = 0; i < D; i++)
            for (int j = 0; j < D; j++) {
                S[i][j] = eta * S[i][j] - theta * grad[i][j];
                M[i][j] = (1 - alpha) * M[i][j] + S[i][j];
                assert_float_equal(t->m[i * D + j], M[i][j], 1e-5);
            }
    }
    es_titans_free(t);
}

static void it_remembers_and_forgets(void **state)
{
    (void)state;
    es_titans *t = memory(5, 0.7, 0, 1); /* theta is bounded: no step size makes it blow up */
    float h[3 * D], k[3 * D], v[3 * D], y[D];
    assert_float_equal(t->o.theta, 0.5, 0);
    normals(h, 3 * D, 5);
    normals(v, 3 * D, 6);
    double first = 0, last = 0;
    for (int i = 0; i < 3; i++)
        es_titans_key(t, h + i * D, k + i * D);
    for (int i = 0; i < 400; i++) {
        last = es_titans_write(t, k, v, 3);
        first = i ? first : last;
    }
    assert_true(last < 1e-4 * first);
    es_titans_read(t, k, y);
    for (int i = 0; i < D; i++)
        assert_float_equal(y[i], v[i], 0.05);
    t->o.alpha = 0.5; /* surprise nothing, forget */
    memset(t->s, 0, D * D * sizeof *t->s);
    es_titans_read(t, k, y);
    float before = y[0];
    es_titans_write(t, k, y, 1);
    es_titans_read(t, k, y);
    assert_float_equal(y[0], 0.5 * before, 1e-4);
    es_titans_free(t);
}

static void the_hook_has_its_gradient(void **state)
{
    (void)state;
    es_titans *t = memory(0.1, 0.7, 0.05, 0.3);
    float h[3 * D], out[3 * D], u[3 * D], dh[3 * D];
    const int pos[3] = {0, 1, 7};
    normals(t->m, D * D, 11);
    normals(h, 3 * D, 12);
    normals(u, 3 * D, 13); /* loss = u . h' */
    memcpy(dh, u, sizeof dh);
    es_titans_backward(t, h, dh, pos, 3, D);
    for (int i = 0; i < 3 * D; i++) {
        double loss[2], e = 1e-2;
        for (int side = 0; side < 2; side++) {
            memcpy(out, h, sizeof out);
            out[i] += (float)(side ? e : -e);
            es_titans_forward(t, out, pos, 3, D);
            loss[side] = 0;
            for (int j = 0; j < 3 * D; j++)
                loss[side] += (double)out[j] * u[j];
        }
        double slope = (loss[1] - loss[0]) / (2 * e);
        assert_float_equal(dh[i], slope, 0.01 * (1 + fabs(slope)));
    }
    memcpy(out, h, sizeof out);
    es_titans_forward(t, out, pos, 3, D);
    assert_memory_equal(out, h, D * sizeof *h); /* the first token stays */
    assert_memory_not_equal(out + D, h + D, D * sizeof *h);
    es_titans *copy;
    es_error err;
    assert_ok(es_titans_copy(&copy, t, &err), &err);
    memset(t->m, 0, D * D * sizeof *t->m);
    float other[3 * D];
    memcpy(other, h, sizeof other);
    copy->hook.forward(copy->hook.user, other, pos, 3, D);
    assert_memory_equal(other, out, sizeof out);
    es_titans_free(t);
    es_titans_free(copy);
}

static double margin(const es_variant *v, const es_experiences *l)
{
    es_error err;
    es_margin r;
    assert_ok(es_eval_margin(v->model, &v->patch, l, 1, 64, &r, NULL, NULL, &err), &err);
    return r.margin;
}

static void reading_raises_the_margin(void **state)
{
    (void)state;
    es_error err;
    es_experiences l = fix_experiences();
    es_method_options o = es_method_default(ES_METHOD_TITANS);
    o.threads = 1;
    es_method *m;
    es_variant v, copy;
    es_step_report r;
    volatile bool stop = true;
    assert_ok(es_method_open(&m, ES_METHOD_TITANS, model, &o, &err), &err);
    assert_error(es_method_step(m, &r, NULL, &err), &err, "nothing to learn from");
    for (int i = 0; i < l.n; i++)
        assert_ok(es_method_add(m, &l.item[i], NULL, &err), &err);
    assert_ok(es_method_view(m, &v, &err), &err);
    assert_int_equal(v.patch.n_hook, 0);
    double base = margin(&v, &l);
    assert_int_equal(es_method_step(m, &r, &stop, &err), ES_ERR_CANCELLED);
    assert_ok(es_method_view(m, &v, &err), &err);
    assert_int_equal(v.patch.n_hook, 0);
    assert_ok(es_method_step(m, &r, NULL, &err), &err);
    assert_null(r.guard);
    assert_true(r.tokens > 0);
    assert_ok(es_method_view(m, &v, &err), &err);
    assert_int_equal(v.patch.n_hook, 1);
    assert_int_equal(v.lowest_layer, v.patch.hook[0].layer + 1);
    double once = margin(&v, &l);
    assert_true(once > base + 0.01);
    assert_ok(es_method_copy(m, &copy, &err), &err);
    assert_float_equal(margin(&copy, &l), once, 1e-9);

    es_patch before = v.patch; /* a cancelled step leaves the memory's bytes as they were */
    const es_titans *t = before.hook[0].user;
    size_t bytes = sizeof(float) * 64 * 64;
    float *kept = malloc(bytes);
    memcpy(kept, t->m, bytes);
    assert_int_equal(es_method_step(m, &r, &stop, &err), ES_ERR_CANCELLED);
    assert_memory_equal(kept, t->m, bytes);
    free(kept);

    assert_ok(es_method_step(m, &r, NULL, &err), &err); /* everything once more */
    assert_ok(es_method_view(m, &v, &err), &err);
    assert_true(margin(&v, &l) > once);
    assert_int_equal(es_method_parameters(m), 64 * 64);
    assert_true(es_method_bytes(m) > 64 * 64 * 4 * 4);
    assert_float_equal(margin(&copy, &l), once, 1e-9);
    es_method_free(m);
    assert_float_equal(margin(&copy, &l), once, 1e-9);
    es_variant_clear(&copy);
    es_experiences_free(&l);
}

int main(void)
{
    model = open_tiny(NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_are_unit_and_spread),  cmocka_unit_test(a_write_is_the_formula),    cmocka_unit_test(it_remembers_and_forgets),
        cmocka_unit_test(the_hook_has_its_gradient), cmocka_unit_test(reading_raises_the_margin),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    es_model_free(model);
    return failed;
}
