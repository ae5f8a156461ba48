/* Scores of windows on a tiny model; the golden ones are in test_score_golden.c. */
#include "model.h"
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CTX = 32, N = 101 };

static void test_windows(void **state)
{
    (void)state;
    tiny_options small = tiny_default();
    small.n_ctx = CTX;
    es_model *m = open_tiny(&small);
    es_error err;
    es_rng rng;
    int32_t ids[N];
    float got[N], out[CTX];
    uint8_t wanted[CTX];
    memset(wanted, 1, sizeof wanted);
    es_rng_seed(&rng, 3);
    for (int i = 0; i < N; i++)
        ids[i] = (int32_t)es_rng_below(&rng, TINY_VOCAB);
    assert_ok(es_score(m, ids, N, NULL, 1, got, NULL, &err), &err);
    assert_true(isnan(got[0]));
    es_trainer *t;
    es_trainer_options o = {.max_tokens = CTX, .threads = 1};
    assert_ok(es_trainer_open(&t, m, &o, &err), &err);
    /* Windows start at 0, 16, 32, ... and each adds what the last one did not reach. */
    for (int first = 0, done = 1; done < N; first += CTX / 2) {
        int n = N - first < CTX ? N - first : CTX;
        wanted[n - 1] = first + n < N;
        es_batch b = {.ids = ids + first, .n = n, .start = (int[]){0, n}, .n_seq = 1, .target = ids + first + 1, .wanted = wanted};
        if (first + n == N)
            wanted[n - 1] = 0; /* nothing comes after the last */
        assert_ok(es_trainer_forward(t, &b, NULL, NULL, NULL, 0, out, NULL, &err), &err);
        for (; done < first + n; done++)
            assert_float_equal(got[done], out[done - 1 - first], 1e-4);
    }
    es_trainer_free(t);

    assert_ok(es_score(m, ids, 1, NULL, 1, got, NULL, &err), &err);
    assert_true(isnan(got[0]));
    assert_ok(es_score(m, ids, 0, NULL, 1, got, NULL, &err), &err);
    assert_ok(es_score(m, ids, 2, NULL, 1, got, NULL, &err), &err);
    assert_true(got[1] < 0);
    ids[1] = TINY_VOCAB;
    assert_error(es_score(m, ids, 2, NULL, 1, got, NULL, &err), &err, "vocabulary");
    bool cancel = true;
    ids[1] = 0;
    assert_int_equal(es_score(m, ids, 2, NULL, 1, got, &(es_progress){.cancel = &cancel}, &err), ES_ERR_CANCELLED);
    es_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_windows)};
    return cmocka_run_group_tests_name("score", tests, NULL, NULL);
}
