#include "support.h"

static void opens_tiny(void **state)
{
    (void)state;
    static const es_type types[] = {ES_F32, ES_F16, ES_Q4_0, ES_Q4_1, ES_Q8_0, ES_Q6_K};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        tiny_options o = tiny_default();
        o.type = types[i];
        o.untied = i % 2;
        if (o.type == ES_Q6_K) {
            o.d_model = 256;
            o.d_ff = 256;
        }
        es_model *m = open_tiny(&o);
        const es_model_info *k = es_model_get_info(m);
        assert_int_equal(k->n_layer, 4);
        assert_int_equal(k->d_model, o.d_model);
        assert_int_equal(k->n_vocab, TINY_VOCAB);
        assert_int_equal(k->tied_head, !o.untied);
        es_model_free(m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(opens_tiny)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
