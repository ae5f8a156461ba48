/* Sampling: what each setting lets through, how often, and that the same inputs give the same token. */
#include "context.h"
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = TINY_VOCAB, DRAWS = 20000 };

static es_model *model;
static es_context *c;

static int open_all(void **state)
{
    (void)state;
    es_error err;
    model = open_tiny(NULL);
    es_context_options o = {.n_ctx = 64, .threads = 1, .kernels = es_kernels_scalar()};
    assert_ok(es_context_open(&c, model, &o, &err), &err);
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    es_context_free(c);
    es_model_free(model);
    return 0;
}

/* Tokens 10..14 have probabilities 0.5, 0.25, 0.15, 0.07, 0.03, up to what the others have together, 1e-6 of it. */
static const double share[5] = {0.5, 0.25, 0.15, 0.07, 0.03};

static void set_logits(void)
{
    for (int i = 0; i < VOCAB; i++)
        c->now->logits[i] = (float)log(1e-6 / VOCAB);
    for (int i = 0; i < 5; i++)
        c->now->logits[10 + i] = (float)log(share[i]);
    c->now->length = 0;
}

static const es_sampling plain = {.temperature = 1, .top_p = 1, .repeat_penalty = 1, .repeat_window = 64};

/* Draws and compares with what is wanted (want[i] for token 10+i; sums to 1). */
static void frequencies(es_sampling s, const double *want)
{
    int seen[VOCAB] = {0};
    es_rng rng;
    es_rng_seed(&rng, 7);
    for (int i = 0; i < DRAWS; i++)
        seen[es_sample(c, &s, &rng)]++;
    for (int i = 0; i < 5; i++) {
        double sd = sqrt(want[i] * (1 - want[i]) * DRAWS);
        if (fabs(seen[10 + i] - want[i] * DRAWS) > 4 * sd + (want[i] > 0 ? 1 : 0))
            fail_msg("token %d came %d times, %.0f expected", 10 + i, seen[10 + i], want[i] * DRAWS);
    }
}

static void test_temperature(void **state)
{
    (void)state;
    set_logits();
    frequencies(plain, share);
    es_sampling s = plain;
    s.temperature = 0.5f; /* squares the shares */
    double want[5], sum = 0;
    for (int i = 0; i < 5; i++)
        sum += want[i] = share[i] * share[i];
    for (int i = 0; i < 5; i++)
        want[i] /= sum;
    frequencies(s, want);
}

static void test_top_k(void **state)
{
    (void)state;
    set_logits();
    es_sampling s = plain;
    s.top_k = 2;
    frequencies(s, (double[]){2 / 3., 1 / 3., 0, 0, 0});
    s.top_k = 1;
    frequencies(s, (double[]){1, 0, 0, 0, 0});
    s.top_k = VOCAB + 5;
    frequencies(s, share);
}

static void test_top_p(void **state)
{
    (void)state;
    set_logits();
    es_sampling s = plain;
    s.top_p = 0.8f; /* 0.5 + 0.25 are not enough, the third is still let in */
    frequencies(s, (double[]){0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0, 0});
    s.top_k = 4; /* among the four, whose shares are of 0.97 */
    frequencies(s, (double[]){0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0, 0});
    s.top_k = 2;
    frequencies(s, (double[]){2 / 3., 1 / 3., 0, 0, 0});
    s.top_k = 0;
    s.top_p = 1e-9f; /* at least one is let through */
    frequencies(s, (double[]){1, 0, 0, 0, 0});
    s.top_p = 0;
    frequencies(s, (double[]){1, 0, 0, 0, 0});

    for (int i = 0; i < VOCAB; i++) /* all alike: the first 307 of 323 make up 0.95 */
        c->now->logits[i] = 1;
    s.top_p = 0.95f;
    es_rng rng;
    es_rng_seed(&rng, 7);
    int highest = 0;
    for (int i = 0; i < DRAWS; i++) {
        int id = es_sample(c, &s, &rng);
        highest = id > highest ? id : highest;
    }
    assert_int_equal(highest, (int)(0.95f * VOCAB));
}

static void test_greedy(void **state)
{
    (void)state;
    es_sampling s = plain;
    es_rng rng, before;
    es_rng_seed(&rng, 1);
    before = rng;
    s.temperature = 0;
    set_logits();
    assert_int_equal(es_sample(c, &s, &rng), 10);
    c->now->logits[9] = c->now->logits[10]; /* a tie goes to the lower id */
    assert_int_equal(es_sample(c, &s, &rng), 9);
    assert_memory_equal(&rng, &before, sizeof rng);
    s.temperature = 1;
    s.top_k = 1;
    assert_int_equal(es_sample(c, &s, &rng), 9);
}

static void test_penalty(void **state)
{
    (void)state;
    es_sampling s = plain;
    es_rng rng;
    es_rng_seed(&rng, 1);
    s.temperature = 0;
    s.repeat_penalty = 1.5f;
    for (int i = 0; i < VOCAB; i++)
        c->now->logits[i] = -5;
    c->now->logits[10] = 3;
    c->now->logits[11] = 2.5f;
    c->now->logits[12] = 1.9f;
    c->now->length = 0;
    assert_int_equal(es_sample(c, &s, &rng), 10);
    memcpy(c->now->ids, (int32_t[]){10, 1, 10, 2}, 4 * sizeof *c->now->ids);
    c->now->length = 4;
    assert_int_equal(es_sample(c, &s, &rng), 11); /* 3 became 2 */
    s.repeat_window = 1; /* only token 2 is looked at */
    assert_int_equal(es_sample(c, &s, &rng), 10);
    s.repeat_window = 64;
    memcpy(c->now->ids, (int32_t[]){10, 10, 10, 11}, 4 * sizeof *c->now->ids);
    /* Once a token, however often it came: 2, 1.67, 1.9. Three times over would leave 10 with 0.89. */
    assert_int_equal(es_sample(c, &s, &rng), 10);
    c->now->logits[10] = c->now->logits[11] = c->now->logits[12] = -5;
    c->now->logits[10] = -1; /* a negative one is multiplied: -1.5 */
    c->now->logits[13] = -1.2f;
    assert_int_equal(es_sample(c, &s, &rng), 13);
}

/* The same seed gives the same tokens; another seed others. Logits that are not numbers are never drawn. */
static void test_deterministic(void **state)
{
    (void)state;
    set_logits();
    c->now->logits[20] = NAN;
    c->now->logits[21] = -INFINITY;
    es_sampling s = es_sampling_default();
    for (int top_k = 0; top_k < 50; top_k += 30) {
        s.top_k = top_k;
        s.temperature = 3;
        es_rng a, b, other;
        es_rng_seed(&a, 42);
        es_rng_seed(&b, 42);
        es_rng_seed(&other, 43);
        int differ = 0;
        for (int i = 0; i < 200; i++) {
            int32_t x = es_sample(c, &s, &a);
            assert_int_equal(x, es_sample(c, &s, &b));
            assert_true(x >= 0 && x < VOCAB && x != 20 && x != 21);
            differ += x != es_sample(c, &s, &other);
        }
        assert_true(differ > 10);
    }
    for (int i = 0; i < VOCAB; i++)
        c->now->logits[i] = NAN;
    es_rng a;
    es_rng_seed(&a, 1);
    assert_int_equal(es_sample(c, &s, &a), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_temperature), cmocka_unit_test(test_top_k),   cmocka_unit_test(test_top_p),
        cmocka_unit_test(test_greedy),      cmocka_unit_test(test_penalty), cmocka_unit_test(test_deterministic),
    };
    return cmocka_run_group_tests_name("sample", tests, open_all, close_all);
}
