/* Screening: what passes a limit, by products on bfloat16, is what plain loops find, but for those within rounding of the limit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "screen.h"

static void check(int N, int K, int T, int threads)
{
    es_error err;
    es_rng rng;
    es_pool *pool;
    es_hits hits[8] = {{0}};
    float *w = es_calloc((size_t)(N * K), sizeof *w), *x = es_calloc((size_t)(T * K), sizeof *x), *limit = es_calloc((size_t)N, sizeof *limit);
    uint8_t *seen = es_calloc((size_t)(N * T), 1);
    es_rng_seed(&rng, (uint64_t)(N + K + T));
    for (int i = 0; i < N * K; i++)
        w[i] = es_rng_normal(&rng) / sqrtf((float)K);
    for (int i = 0; i < T * K; i++)
        x[i] = es_rng_normal(&rng);
    for (int i = 0; i < N; i++)
        limit[i] = i % 5 == 0 ? INFINITY : 0.5f + 0.5f * es_rng_normal(&rng);
    assert_int_equal(es_pool_open(&pool, threads, &err), 0);
    if (!es_screen(pool, w, N, K, x, T, limit, hits)) {
        assert_true(K % 2 == 1 || es_kernels_half() == es_kernels_cpu());
    } else {
        int last_column[8][300];
        memset(last_column, -1, sizeof last_column);
        for (int part = 0; part < threads; part++)
            for (size_t i = 0; i < hits[part].n; i++) {
                const es_hit *h = &hits[part].e[i];
                double exact = 0;
                for (int k = 0; k < K; k++)
                    exact += (double)w[h->column * K + k] * (double)x[h->row * K + k];
                assert_float_equal(h->value, exact, 0.03);
                assert_true(h->value > limit[h->column]);
                assert_int_equal(seen[h->row * N + h->column]++, 0);
                assert_true(h->column > last_column[part][h->row]);
                last_column[part][h->row] = h->column;
            }
        for (int t = 0; t < T; t++)
            for (int n = 0; n < N; n++) {
                double exact = 0;
                for (int k = 0; k < K; k++)
                    exact += (double)w[n * K + k] * (double)x[t * K + k];
                if (exact > (double)limit[n] + 0.03)
                    assert_int_equal(seen[t * N + n], 1);
            }
    }
    for (int i = 0; i < 8; i++)
        free(hits[i].e);
    es_pool_free(pool);
    free(w);
    free(x);
    free(limit);
    free(seen);
}

static void finds_what_plain_loops_find(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 3; threads++) {
        check(100, 48, 37, threads);
        check(33, 2, 13, threads);
        check(7, 30, 1, threads);
        check(257, 576, 130, threads);
        check(64, 33, 40, threads); /* odd: refused */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(finds_what_plain_loops_find)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
