/* Plain LoRA beside PEFT and PyTorch on the tiny model: the loss, the gradients of A and B at every site, and a step of Adam. tests/golden/make_lora.py */
#include <math.h>

#include "pack.h"
#include "support.h"
#include "tune.h"

static json_t *want;

static int whole(const char *name)
{
    return (int)json_integer_value(json_object_get(want, name));
}

static double number(const char *name, size_t i)
{
    json_t *v = json_object_get(want, name);
    return json_number_value(json_is_array(v) ? json_array_get(v, i) : v);
}

static void beside_peft(void **state)
{
    (void)state;
    es_error err;
    int32_t prompt[16], reply[16];
    int n_prompt = (int)json_array_size(json_object_get(want, "prompt")), n_reply = (int)json_array_size(json_object_get(want, "reply"));
    for (int i = 0; i < n_prompt; i++)
        prompt[i] = (int32_t)number("prompt", (size_t)i);
    for (int i = 0; i < n_reply; i++)
        reply[i] = (int32_t)number("reply", (size_t)i);
    es_model *model = open_tiny(NULL);
    es_tune_options o = es_tune_default(false);
    o.rank = whole("rank");
    o.alpha = number("alpha", 0);
    o.rate = number("rate", 0);
    o.clip = 0;
    o.threads = 1;
    es_tune *t = NULL;
    assert_ok(es_tune_open(&t, model, NULL, &o, &err), &err);
    size_t n = (size_t)es_tune_parameters(t), every = (size_t)whole("every");
    assert_int_equal(n, whole("n"));
    float *v = es_tune_values(t), slope[16];
    for (size_t i = 0; i < n; i++)
        v[i] = (float)(0.05 * sin(0.7 * (double)i));
    es_sequence s;
    assert_ok(es_sequence_ids(&s, prompt, n_prompt, reply, n_reply, &err), &err);
    for (int i = 0; i < n_reply; i++)
        slope[i] = -1.0f / (float)n_reply;
    es_sequence *seq = &s;
    const float *slopes = slope;
    es_tune_loss loss = {.seq = &seq, .n = 1, .slope = &slopes};
    es_step_report r;
    assert_ok(es_tune_step_on(t, &loss, &r, NULL, &err), &err);
    assert_float_equal(r.loss, number("loss", 0), 1e-4);

    const float *first = es_tune_moment(t, 0); /* after one step: (1 - beta1) times the gradient */
    size_t at = 0, tensor = 0;
    for (int layer = 0; layer < es_model_get_info(model)->n_layer; layer++)
        for (int site = 0; site < ES_N_SITES; site++)
            for (int which = 0; which < 2; which++, tensor++) {
                size_t size = (size_t)(o.rank * (which ? es_site_n_out(model, (es_site)site) : es_site_n_in(model, (es_site)site))), end = at + size;
                double square = 0, size_want = number("norms", tensor), each = size_want / sqrt((double)size);
                for (; at < end; at++) {
                    double g = first[at] / (1 - o.beta1);
                    square += g * g;
                    if (at % every)
                        continue;
                    double peft = number("gradient", at / every), moved = v[at] - 0.05 * sin(0.7 * (double)at);
                    if (fabs(g - peft) > 1e-3 * each + 1e-3 * fabs(peft))
                        fail_msg("layer %d, %s, %c: gradient %g, PEFT has %g", layer, es_site_name((es_site)site), "AB"[which], g, peft);
                    if (fabs(peft) > 0.02 * each && fabs(v[at] - number("after", at / every)) > 1e-5)
                        fail_msg("layer %d, %s, %c: moved by %g, to %g; PyTorch to %g", layer, es_site_name((es_site)site), "AB"[which], moved, (double)v[at],
                                 number("after", at / every));
                }
                if (fabs(sqrt(square) - size_want) > 1e-3 * size_want)
                    fail_msg("layer %d, %s, %c: a gradient of length %g, PEFT's is %g", layer, es_site_name((es_site)site), "AB"[which], sqrt(square), size_want);
            }
    assert_int_equal(at, n);
    assert_int_equal(tensor, json_array_size(json_object_get(want, "norms")));
    es_sequence_free(&s);
    es_tune_free(t);
    es_model_free(model);
}

int main(void)
{
    es_error err;
    if (es_json_file(&want, test_golden("lora.json"), &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(beside_peft)};
    int failed = cmocka_run_group_tests_name("lora-golden", tests, NULL, NULL);
    json_decref(want);
    return failed;
}
