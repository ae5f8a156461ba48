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

/* llama.cpp's mean difference a token from the exact log-probabilities on this file (activations rounded to 8 bits). The fast path is
 * allowed a tenth of it. */
static const double LLAMA_CPP = 0.074, SHARE = 0.1;

static double log_probability(const float *logits, int32_t id)
{
    double z = 0;
    for (int v = 0; v < model->info.n_vocab; v++)
        z += exp(logits[v]);
    return logits[id] - log(z);
}

/* Token by token through the cache, and prompts of many lengths at once; activations and the cache rounded. */
static void test_fast(void **state)
{
    (void)state;
    enum { EVERY = 23 };
    int32_t ids[MAX_TOKENS];
    float want[MAX_TOKENS];
    es_error err;
    es_context *c, *at_once;
    es_context_options o = {.n_ctx = MAX_TOKENS, .threads = 2};
    double sum[2] = {0};
    int count[2] = {0};
    assert_ok(es_context_open(&c, model, &o, &err), &err);
    assert_ok(es_context_open(&at_once, model, &o, &err), &err);
    for (size_t i = 0; i < FAST_TEXTS; i++) {
        size_t pick = i * 29 / (FAST_TEXTS - 1); /* from the first, prose, to the last, a chat */
        int n = read_text(pick, ids, want);
        assert_ok(es_context_truncate(c, 0, &err), &err);
        for (int t = 0; t + 1 < n; t++) {
            assert_ok(es_context_feed(c, ids + t, 1, NULL, &err), &err);
            sum[0] += fabs(log_probability(es_context_logits(c), ids[t + 1]) - want[t + 1]);
            count[0]++;
            if (t % EVERY == EVERY - 1) {
                assert_ok(es_context_truncate(at_once, 0, &err), &err);
                assert_ok(es_context_feed(at_once, ids, t + 1, NULL, &err), &err);
                sum[1] += fabs(log_probability(es_context_logits(at_once), ids[t + 1]) - want[t + 1]);
                count[1]++;
            }
        }
    }
    es_context_free(c);
    es_context_free(at_once);
    for (int k = 0; k < 2; k++) {
        print_message("mean difference from the exact log-probabilities, %s: %.5f over %d tokens; llama.cpp's %.3f\n",
                      k ? "prompts at once" : "token by token", sum[k] / count[k], count[k], LLAMA_CPP);
        assert_true(sum[k] / count[k] <= SHARE * LLAMA_CPP);
    }
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
