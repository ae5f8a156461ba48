/* The real model: scores of 30 texts beside transformers' on the same file, and the fast decode path beside the exact one. */
#include "model.h"
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 512, FAST_TEXTS = 8 };

static es_model *model;
static json_t *texts;

static int read_text(size_t i, int32_t *ids, float *logprob)
{
    json_t *text = json_array_get(texts, i), *id = json_object_get(text, "ids"), *want = json_object_get(text, "logprobs");
    int n = (int)json_array_size(id);
    assert_true(n > 1 && n <= MAX_TOKENS);
    for (int t = 0; t < n; t++) {
        ids[t] = (int32_t)json_integer_value(json_array_get(id, t));
        logprob[t] = (float)json_number_value(json_array_get(want, t));
    }
    return n;
}

static const char *name_of(size_t i)
{
    return json_string_value(json_object_get(json_array_get(texts, i), "name"));
}

/* Every token within 0.02. */
static void test_exact(void **state)
{
    (void)state;
    int32_t ids[MAX_TOKENS];
    float want[MAX_TOKENS], got[MAX_TOKENS], worst = 0;
    es_error err;
    assert_int_equal(json_array_size(texts), 30);
    for (size_t i = 0; i < json_array_size(texts); i++) {
        int n = read_text(i, ids, want);
        assert_ok(es_score(model, ids, n, NULL, 2, got, NULL, &err), &err);
        for (int t = 1; t < n; t++) {
            float off = fabsf(got[t] - want[t]);
            if (!(off <= 0.02f))
                fail_msg("%s, token %d: %.4f, transformers has %.4f", name_of(i), t, got[t], want[t]);
            worst = off > worst ? off : worst;
        }
    }
    print_message("largest difference from transformers: %.2g\n", worst);
}

/* Token by token through the cache, activations rounded: within 0.05 on average. */
static void test_fast(void **state)
{
    (void)state;
    int32_t ids[MAX_TOKENS];
    float want[MAX_TOKENS];
    es_error err;
    es_context *c;
    es_context_options o = {.n_ctx = MAX_TOKENS, .threads = 2};
    double sum = 0;
    int count = 0, n_vocab = model->info.n_vocab;
    assert_ok(es_context_open(&c, model, &o, &err), &err);
    for (size_t i = 0; i < FAST_TEXTS; i++) {
        size_t pick = i * 29 / (FAST_TEXTS - 1); /* from the first, prose, to the last, a chat */
        int n = read_text(pick, ids, want);
        assert_ok(es_context_truncate(c, 0, &err), &err);
        for (int t = 0; t + 1 < n; t++) {
            assert_ok(es_context_feed(c, ids + t, 1, NULL, &err), &err);
            const float *logits = es_context_logits(c);
            double z = 0;
            for (int v = 0; v < n_vocab; v++)
                z += exp(logits[v]);
            sum += fabs(logits[ids[t + 1]] - log(z) - want[t + 1]);
            count++;
        }
    }
    es_context_free(c);
    print_message("mean difference of the fast path from the exact one: %.4f over %d tokens\n", sum / count, count);
    assert_true(sum / count <= 0.05);
}

int main(void)
{
    es_error err;
    if (!test_real_model())
        test_skip("the model SmolLM2-135M-Instruct.Q4_1.gguf is not here (ESPALIER_TEST_MODEL)");
    if (es_model_open(&model, test_real_model(), &err) || es_json_file(&texts, test_golden("scores.json"), &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_exact), cmocka_unit_test(test_fast)};
    int failed = cmocka_run_group_tests_name("score-golden", tests, NULL, NULL);
    json_decref(texts);
    es_model_free(model);
    return failed;
}
