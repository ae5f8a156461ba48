/* What dictionaries are trained with: the reference's gradients against finite differences and against SAELens' (sae_training.json), and the fast
 * step's against the reference's. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "train.h"

enum { ARRAYS = 7 };
static const char *const array_name[ARRAYS] = {"enc", "dec", "b_enc", "b_dec", "theta", "r_mag", "b_mag"};

static size_t array_size(int a, int F, int d)
{
    return (size_t)(a < 2 ? F * d : a == 3 ? d : F);
}

static double *array_of(const es_sae_numbers *w, int a)
{
    double *all[ARRAYS] = {w->enc, w->dec, w->b_enc, w->b_dec, w->theta, w->r_mag, w->b_mag};
    return all[a];
}

static es_sae_numbers numbers_new(int F, int d)
{
    double *p[ARRAYS];
    for (int a = 0; a < ARRAYS; a++)
        assert_non_null(p[a] = es_calloc(array_size(a, F, d), sizeof(double)));
    return (es_sae_numbers){p[0], p[1], p[2], p[3], p[4], p[5], p[6]};
}

static void numbers_free(es_sae_numbers *w)
{
    for (int a = 0; a < ARRAYS; a++)
        free(array_of(w, a));
}

static bool has(es_recipe r, int a)
{
    return a < 4 || (a == 4 && r == ES_TRAIN_JUMPRELU) || (a > 4 && r == ES_TRAIN_GATED);
}

/* ---- finite differences --------------------------------------------------------------------------------------------------------------- */

enum { D = 5, F = 12, B = 7 };
static const int prefixes[] = {3, 7, F};

static void random_numbers(es_sae_numbers *w, es_rng *r)
{
    for (int a = 0; a < ARRAYS; a++)
        for (size_t i = 0; i < array_size(a, F, D); i++)
            array_of(w, a)[i] = a == 4 ? 0.3 + 0.4 * es_rng_uniform(r) : (a < 2 ? 0.6 : 0.2) * (double)es_rng_normal(r);
}

static double loss_at(const es_sae_problem *p, const es_sae_numbers *w, const es_sae_numbers *frozen)
{
    es_error err;
    double loss;
    assert_int_equal(es_sae_loss(p, w, frozen, &loss, NULL, &err), 0);
    return loss;
}

static void gradients_are_those_of_the_loss(void **state)
{
    (void)state;
    es_rng r;
    es_rng_seed(&r, 3);
    double x[B * D];
    bool dead[F] = {0};
    for (int i = 0; i < B * D; i++)
        x[i] = (double)es_rng_normal(&r);
    for (int j = 5; j < F; j++)
        dead[j] = true;
    for (int recipe = 0; recipe < ES_RECIPES; recipe++)
        for (int aux = 0; aux < 2; aux++) {
            es_sae_problem p = {.recipe = (es_recipe)recipe, .d = D, .F = F, .B = B, .k = 3, .x = x, .sparsity = 0.2, .bandwidth = 0.5, .prefix = prefixes, .n_prefix = 3,
                                .dead = aux ? dead : NULL, .aux_k = 2, .aux_tokens = 4, .aux_weight = 0.3};
            es_sae_numbers w = numbers_new(F, D), at = numbers_new(F, D), g = numbers_new(F, D);
            random_numbers(&at, &r);
            for (int a = 0; a < ARRAYS; a++)
                memcpy(array_of(&w, a), array_of(&at, a), array_size(a, F, D) * sizeof(double));
            double loss;
            es_error err;
            assert_int_equal(es_sae_loss(&p, &at, NULL, &loss, &g, &err), 0);
            assert_float_equal(loss, loss_at(&p, &at, &at), 1e-12);
            for (int a = 0; a < ARRAYS; a++) {
                size_t not_zero = 0;
                for (size_t i = 0; i < array_size(a, F, D) && has(p.recipe, a); i++) {
                    double *v = &array_of(&w, a)[i], was = *v, h = 1e-5;
                    *v = was + h;
                    double up = loss_at(&p, &w, &at);
                    *v = was - h;
                    double down = loss_at(&p, &w, &at), seen = (up - down) / (2 * h), want = array_of(&g, a)[i];
                    *v = was;
                    not_zero += want != 0;
                    if (fabs(seen - want) > 1e-6 * (1 + fabs(want)))
                        fail_msg("%s, aux %d: %s[%zu] has gradient %g, finite difference %g", es_recipe_name(p.recipe), aux, array_name[a], i, want, seen);
                }
                if (has(p.recipe, a) && not_zero == 0)
                    fail_msg("%s: %s has no gradient at all", es_recipe_name(p.recipe), array_name[a]);
            }
            numbers_free(&w);
            numbers_free(&at);
            numbers_free(&g);
        }
}

/* ---- SAELens -------------------------------------------------------------------------------------------------------------------------- */

static void start_array(json_t *start, const char *name, double *out, size_t n)
{
    json_t *s = json_object_get(start, name);
    double scale = json_number_value(json_array_get(s, 0)), phase = json_number_value(json_array_get(s, 1)), shift = json_number_value(json_array_get(s, 2));
    for (size_t i = 0; i < n; i++)
        out[i] = scale * sin(0.7 * (double)i + phase + 0.003 * (double)i * (double)i) + shift;
}

static int whole(json_t *v, const char *name)
{
    return (int)json_integer_value(json_object_get(v, name));
}

static void gradients_are_those_of_saelens(void **state)
{
    (void)state;
    char path[600];
    es_error err;
    json_t *golden, *start;
    snprintf(path, sizeof path, "%s/golden/sae_training.json", getenv("ESPALIER_TEST_DIR"));
    if (es_json_file(&golden, path, &err))
        fail_msg("%s", err.text);
    start = json_object_get(golden, "start");
    int d = whole(golden, "d"), f = whole(golden, "F"), b = whole(golden, "B"), prefix[8], n_prefix = (int)json_array_size(json_object_get(golden, "prefixes"));
    bool dead[64] = {0};
    assert_true(f <= 64 && n_prefix <= 8);
    for (size_t i = 0; i < json_array_size(json_object_get(golden, "dead")); i++)
        dead[json_integer_value(json_array_get(json_object_get(golden, "dead"), i))] = true;
    for (int i = 0; i < n_prefix; i++)
        prefix[i] = (int)json_integer_value(json_array_get(json_object_get(golden, "prefixes"), (size_t)i));
    double *x = es_calloc((size_t)(b * d), sizeof *x);
    start_array(start, "x", x, (size_t)(b * d));
    for (int recipe = 0; recipe < ES_RECIPES; recipe++) {
        json_t *want = json_object_get(json_object_get(golden, "recipes"), es_recipe_name((es_recipe)recipe));
        assert_non_null(want);
        es_sae_problem p = {.recipe = (es_recipe)recipe, .d = d, .F = f, .B = b, .k = whole(golden, "k"), .x = x,
                            .sparsity = json_number_value(json_object_get(golden, "sparsity")), .bandwidth = json_number_value(json_object_get(golden, "bandwidth")),
                            .prefix = prefix, .n_prefix = n_prefix, .dead = recipe < 3 ? dead : NULL, .aux_k = whole(golden, "aux_k"), .aux_tokens = b,
                            .aux_weight = json_number_value(json_object_get(golden, "aux_weight"))};
        es_sae_numbers w = numbers_new(f, d), g = numbers_new(f, d);
        for (int a = 0; a < ARRAYS; a++)
            start_array(start, array_name[a], array_of(&w, a), array_size(a, f, d));
        double loss, most = 0;
        assert_int_equal(es_sae_loss(&p, &w, NULL, &loss, &g, &err), 0);
        assert_float_equal(loss, json_number_value(json_object_get(want, "loss")), 1e-6 * loss);
        for (int a = 0; a < ARRAYS; a++) {
            json_t *array = json_object_get(want, array_name[a]);
            assert_int_equal(json_array_size(array), has(p.recipe, a) ? array_size(a, f, d) : 0);
            for (size_t i = 0; i < json_array_size(array); i++) {
                double v = json_number_value(json_array_get(array, i)), away = fabs(array_of(&g, a)[i] - v) / (1 + fabs(v));
                most = fmax(most, away);
                if (away > 1e-6)
                    fail_msg("%s: %s[%zu] has gradient %.9g, SAELens %.9g", es_recipe_name(p.recipe), array_name[a], i, array_of(&g, a)[i], v);
            }
        }
        print_message("%-10s loss %.6f, largest difference of a gradient %.1e\n", es_recipe_name(p.recipe), loss, most);
        numbers_free(&w);
        numbers_free(&g);
    }
    free(x);
    json_decref(golden);
}

/* ---- the fast step -------------------------------------------------------------------------------------------------------------------- */

enum { FAST_D = 32, FAST_F = 90, FAST_B = 150 };

static void read_row(const void *user, size_t row, float *out)
{
    memcpy(out, (const float *)user + row * FAST_D, FAST_D * sizeof *out);
}

/* Everything away from where it starts, so that no term of a gradient is zero by symmetry. */
static void move_away(es_train *t, es_rng *r)
{
    for (size_t i = 0; i < t->F * t->d; i++)
        t->p[ES_P_ENC].w[i] += 0.05f * es_rng_normal(r);
    for (size_t i = 0; i < t->d; i++)
        t->p[ES_P_B_DEC].w[i] += 0.1f * es_rng_normal(r);
    for (size_t j = 0; j < t->F; j++) {
        t->p[ES_P_B_ENC].w[j] += 0.1f * es_rng_normal(r);
        if (t->p[ES_P_THETA].n)
            t->p[ES_P_THETA].w[j] = 0.5f + 0.5f * (float)es_rng_uniform(r);
        if (t->p[ES_P_R_MAG].n) {
            t->p[ES_P_R_MAG].w[j] = 0.2f * es_rng_normal(r);
            t->p[ES_P_B_MAG].w[j] = 0.2f * es_rng_normal(r);
        }
        t->age[j] = j % 4 == 0 ? 1e6f : 0;
        float scale = t->o.recipe == ES_TRAIN_STANDARD ? 0.5f + (float)es_rng_uniform(r) : 1; /* the only one whose rows need not be unit */
        for (size_t k = 0; k < t->d; k++)
            t->p[ES_P_DEC].w[j * t->d + k] *= scale;
    }
}

static es_sae_numbers as_double(const es_train *t)
{
    es_sae_numbers w = numbers_new(FAST_F, FAST_D);
    static const int which[ARRAYS] = {ES_P_ENC, ES_P_DEC, ES_P_B_ENC, ES_P_B_DEC, ES_P_THETA, ES_P_R_MAG, ES_P_B_MAG};
    for (int a = 0; a < ARRAYS; a++)
        for (size_t i = 0; i < t->p[which[a]].n; i++)
            array_of(&w, a)[i] = (double)t->p[which[a]].w[i];
    return w;
}

/* The part of the gradient along unit rows is taken out. */
static void project(const es_sae_numbers *w, es_sae_numbers *g)
{
    for (int j = 0; j < FAST_F; j++) {
        double along = 0;
        for (int k = 0; k < FAST_D; k++)
            along += g->dec[j * FAST_D + k] * w->dec[j * FAST_D + k];
        for (int k = 0; k < FAST_D; k++)
            g->dec[j * FAST_D + k] -= along * w->dec[j * FAST_D + k];
    }
}

static void check_step(es_recipe recipe, const float *rows, int threads)
{
    es_error err;
    es_rng r;
    es_rng_seed(&r, 11 + (uint64_t)recipe);
    es_dictionary_training o = es_dictionary_training_default();
    o.recipe = recipe;
    o.n_features = FAST_F;
    o.k = 6;
    o.batch = FAST_B;
    o.tokens = 1000000;
    o.aux_k = 5;
    o.dead_tokens = 1000;
    o.sparsity = 0.3;
    o.sparsity_warmup = 0;
    o.bandwidth = 0.4;
    o.threads = threads;
    es_train_rows source = {400, FAST_D, read_row, rows, INFINITY};
    es_train *t;
    if (es_train_open(&t, &o, &source, &err) || es_train_start(t, &err))
        fail_msg("%s", err.text);
    move_away(t, &r);
    es_sae_numbers w = as_double(t), g = numbers_new(FAST_F, FAST_D);
    double *x = es_calloc(FAST_B * FAST_D, sizeof *x), loss;
    bool dead[FAST_F];
    int prefix[ES_PREFIXES_MAX], n_dead = 0;
    for (int j = 0; j < FAST_F; j++)
        n_dead += dead[j] = j % 4 == 0;
    for (int i = 0; i < t->n_prefix; i++)
        prefix[i] = (int)t->prefix[i];
    for (size_t i = 0; i < FAST_B; i++)
        for (size_t k = 0; k < FAST_D; k++)
            x[i * FAST_D + k] = (double)(rows[es_train_row(t, i) * FAST_D + k] * t->scale);
    es_sae_problem p = {.recipe = recipe, .d = FAST_D, .F = FAST_F, .B = FAST_B, .k = o.k, .x = x, .sparsity = o.sparsity, .bandwidth = o.bandwidth, .prefix = prefix,
                        .n_prefix = t->n_prefix, .dead = dead, .aux_k = o.aux_k < (n_dead + 1) / 2 ? o.aux_k : (n_dead + 1) / 2, .aux_tokens = (int)t->A, .aux_weight = o.aux_weight};
    assert_int_equal(es_sae_loss(&p, &w, NULL, &loss, &g, &err), 0);
    if (recipe != ES_TRAIN_STANDARD)
        project(&w, &g);
    if (es_train_step(t, &err))
        fail_msg("%s", err.text);
    static const int which[ARRAYS] = {ES_P_ENC, ES_P_DEC, ES_P_B_ENC, ES_P_B_DEC, ES_P_THETA, ES_P_R_MAG, ES_P_B_MAG};
    double most = 0;
    for (int a = 0; a < ARRAYS; a++) {
        double size = 0, away = 0;
        for (size_t i = 0; i < t->p[which[a]].n; i++) { /* after one step Adam's first moment is 0.1 of the gradient */
            double want = array_of(&g, a)[i], have = 10 * (double)t->p[which[a]].m[i];
            size += want * want;
            away += (want - have) * (want - have);
        }
        if (t->p[which[a]].n == 0)
            continue;
        assert_true(size > 0);
        most = fmax(most, sqrt(away / size));
        if (!(sqrt(away / size) < 1e-4))
            fail_msg("%s, %d threads: the gradient of %s is away by %.2g of its size", es_recipe_name(recipe), threads, array_name[a], sqrt(away / size));
    }
    print_message("%-10s largest relative difference of an array %.1e, %zu entries\n", es_recipe_name(recipe), most, t->main.n);
    for (size_t j = 0; j < FAST_F && recipe != ES_TRAIN_STANDARD; j++)
        assert_float_equal(es_vector()->dot(t->p[ES_P_DEC].w + j * FAST_D, t->p[ES_P_DEC].w + j * FAST_D, FAST_D), 1, 1e-5);
    es_train_close(t);
    numbers_free(&w);
    numbers_free(&g);
    free(x);
}

static void a_step_has_the_gradients_of_the_reference(void **state)
{
    (void)state;
    es_rng r;
    es_rng_seed(&r, 5);
    float *rows = es_calloc(400 * FAST_D, sizeof *rows);
    for (int i = 0; i < 400 * FAST_D; i++)
        rows[i] = 3 * es_rng_normal(&r) + 1;
    for (int recipe = 0; recipe < ES_RECIPES; recipe++)
        for (int threads = 1; threads <= 3; threads += 2)
            check_step((es_recipe)recipe, rows, threads);
    free(rows);
}

static void sums_of_rows(void **state)
{
    (void)state;
    enum { N = 53, ROWS = 11 };
    float rows[ROWS * N], a[9], y[N], want[N];
    int32_t index[9] = {3, 0, 10, 3, 7, 1, 9, 2, 5};
    size_t at[9] = {8, 1, 0, 4, 7, 2, 2, 5, 3};
    es_rng r;
    es_rng_seed(&r, 1);
    for (int i = 0; i < ROWS * N; i++)
        rows[i] = es_rng_normal(&r);
    for (int i = 0; i < 9; i++)
        a[i] = es_rng_normal(&r);
    for (int through = 0; through < 2; through++)
        for (size_t n = 0; n <= 9; n++) {
            for (int i = 0; i < N; i++)
                y[i] = want[i] = (float)i;
            for (size_t p = 0; p < n; p++) {
                size_t q = through ? at[p] : p;
                for (int i = 0; i < N; i++)
                    want[i] += -2 * a[q] * rows[index[q] * N + i];
            }
            es_vector()->axpys(y, a, -2, rows, index, through ? at : NULL, n, N);
            for (int i = 0; i < N; i++)
                assert_float_equal(y[i], want[i], 1e-4);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_those_of_the_loss),
        cmocka_unit_test(gradients_are_those_of_saelens),
        cmocka_unit_test(a_step_has_the_gradients_of_the_reference),
        cmocka_unit_test(sums_of_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
