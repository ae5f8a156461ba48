/* Real weights, SmolLM2 Q4_1 and Gemma 3 270M Q4_K_M, on 50 real texts: beside transformers in f32, and no further from it, as a chat reads,
 * than llama.cpp is on the same texts (tests/golden/make_parity.py measured both). */
#include "model.h"
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXTS = 50, MAX_TOKENS = 512, EVERY = 5 }; /* decoding, with the exact distribution beside it, is slow: every fifth text */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { STEP = 10 };
#else
enum { STEP = 1 };
#endif

typedef struct text {
    int n;
    int32_t ids[MAX_TOKENS];
    float truth[MAX_TOKENS];
} text;

static void next_text(text *t, const es_buf *b, size_t *at)
{
    int32_t n;
    assert_true(*at + 4 <= b->len);
    memcpy(&n, b->data + *at, 4);
    assert_in_range(n, 2, MAX_TOKENS);
    assert_true(*at + 4 + 8 * (size_t)n <= b->len);
    t->n = n;
    memcpy(t->ids, b->data + *at + 4, 4 * (size_t)n);
    memcpy(t->truth, b->data + *at + 4 + 4 * (size_t)n, 4 * (size_t)n);
    *at += 4 + 8 * (size_t)n;
}

static double number_at(const json_t *peer, const char *key, int i)
{
    const json_t *v = json_array_get(json_object_get(peer, key), (size_t)i);
    assert_true(json_is_number(v));
    return json_number_value(v);
}

static void check(const char *path, const char *name)
{
    static text t;
    static float got[MAX_TOKENS], kl[MAX_TOKENS];
    char file[64];
    es_model *m;
    es_error err;
    es_buf b = {0};
    json_t *all;
    size_t at = 0;
    double sum = 0, worst = 0, ours[2] = {0}, theirs[2] = {0};
    int n = 0, decoded = 0;
    snprintf(file, sizeof file, "parity/%s.bin", name);
    assert_ok(es_model_open(&m, path, &err), &err);
    test_read(&b, test_golden(file));
    assert_ok(es_json_file(&all, test_golden("parity/parity.json"), &err), &err);
    const json_t *peer = json_object_get(all, name);
    for (int i = 0; i < TEXTS; i++) {
        next_text(&t, &b, &at);
        if (i % STEP)
            continue;
        assert_ok(es_score(m, t.ids, t.n, NULL, 2, got, NULL, &err), &err);
        for (int k = 1; k < t.n; k++) {
            double off = fabs((double)got[k] - t.truth[k]);
            if (!(off <= 0.01))
                fail_msg("%s, text %d, token %d: %.5f, transformers has %.5f", name, i, k, (double)got[k], (double)t.truth[k]);
            worst = off > worst ? off : worst;
            sum += off;
        }
        n += t.n - 1;
        if (i % EVERY)
            continue;
        assert_ok(es_score_decoded(m, t.ids, t.n, NULL, 2, got, kl, NULL, &err), &err);
        for (int k = 1; k < t.n; k++) {
            ours[0] += fabs((double)got[k] - t.truth[k]);
            ours[1] += kl[k];
        }
        theirs[0] += number_at(peer, "differences", i);
        theirs[1] += number_at(peer, "kls", i);
        decoded += t.n - 1;
    }
    assert_int_equal(at, b.len);
    print_message("%s, exact: %.2g a token from transformers over %d tokens, at most %.2g\n", name, sum / n, n, worst);
    print_message("%s, as a chat reads: %.5f a token over %d tokens, KL %.2g; llama.cpp %.5f, KL %.2g\n", name, ours[0] / decoded, decoded, ours[1] / decoded,
                  theirs[0] / decoded, theirs[1] / decoded);
    assert_true(sum / n <= 1e-4);
    assert_true(ours[0] <= theirs[0]);
    assert_true(ours[1] <= theirs[1]);
    json_decref(all);
    es_buf_free(&b);
    es_model_free(m);
}

static void smollm2(void **state)
{
    (void)state;
    if (!test_real_model())
        skip();
    check(test_real_model(), "smollm2");
}

static void gemma3(void **state)
{
    (void)state;
    if (!test_gemma())
        skip();
    check(test_gemma(), "gemma3");
}

int main(void)
{
    if (!test_real_model() && !test_gemma())
        test_skip("neither SmolLM2 (ESPALIER_TEST_MODEL) nor Gemma 3 270M (ESPALIER_TEST_GEMMA) is here");
    if (!test_gemma())
        print_message("Gemma 3 270M is not here (ESPALIER_TEST_GEMMA; espalier fetch gemma3-270m gets it): its part is skipped\n");
    const struct CMUnitTest tests[] = {cmocka_unit_test(smollm2), cmocka_unit_test(gemma3)};
    return cmocka_run_group_tests_name("parity", tests, NULL, NULL);
}
