/* eval, experiences: the measures against plain scoring, the files against bad input. */
#include "fixture.h"

static es_model *model;
static es_dictionary *dictionary;

static void experiences(void **s)
{
    (void)s;
    es_error err;
    es_experiences l = {0}, again = {0};
    const char *path = test_path("experiences.jsonl");
    const char *good = "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"q \\u00e9\"}],\"preferred\":\"a\",\"rejected\":null,"
                       "\"source\":\"me\",\"time\":\"2025-01-01T00:00:00Z\",\"weight\":0.5,\"id\":7}\n\n"
                       "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"rejected\":\"b\"}\n";
    test_write(path, good, strlen(good));
    assert_ok(es_experiences_load(&l, path, &err), &err);
    assert_int_equal(l.n, 2);
    assert_string_equal(l.item[0].message[1].content, "q \xc3\xa9");
    assert_true(l.item[0].rejected == NULL && l.item[0].weight == 0.5 && l.item[0].id == 7 && l.item[1].weight == 1);
    for (int i = 0; i < 2; i++) {
        json_t *j = es_experience_to_json(&l.item[i]);
        assert_ok(es_experience_from_json(&again, j, &err), &err);
        json_t *k = es_experience_to_json(&again.item[i]);
        assert_true(json_equal(j, k));
        json_decref(j);
        json_decref(k);
    }
    es_experiences_free(&again);
    static const char *const bad[][2] = {
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}]}", "preferred"},
        {"{\"messages\":[],\"preferred\":\"a\"}", "messages"},
        {"{\"preferred\":\"a\"}", "messages"},
        {"{\"messages\":[{\"role\":\"user\"}],\"preferred\":\"a\"}", "content"},
        {"{\"messages\":[{\"role\":\"robot\",\"content\":\"q\"}],\"preferred\":\"a\"}", "role"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"q\"}],\"preferred\":\"a\"}", "user"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":3}],\"preferred\":\"a\"}", "content"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"preferred\":[1]}", "preferred"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"q\\u0000\"}],\"preferred\":\"a\"}", NULL},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"preferred\":\"a\",\"weight\":-1}", "weight"},
        {"[1,2]", "object"},
        {"not json", NULL},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        es_buf b = {0};
        es_buf_printf(&b, "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"rejected\":\"b\"}\n%s\n", bad[i][0]);
        test_write(path, b.data, b.len);
        assert_error(es_experiences_load(&l, path, &err), &err, bad[i][1]);
        assert_non_null(strstr(err.text, ":2")); /* the line is named */
        assert_int_equal(l.n, 2);               /* what was there before stays */
        es_buf_free(&b);
    }
    test_write(path, "\n", 1);
    assert_error(es_experiences_load(&l, path, &err), &err, "no experiences");
    assert_error(es_experiences_load(&l, test_path("absent"), &err), &err, "absent");
    es_experiences_free(&l);
}

/* Mean log-probability of a reply by es_score on the whole sequence. */
static double plain_mean(const es_experience *x, const char *reply)
{
    es_error err;
    es_ids ids = {0}, close = {0};
    assert_ok(es_chat_render(model, x->message, (size_t)x->n_message, true, &ids, &err), &err);
    size_t prompt = ids.n;
    assert_ok(es_tokenize(model, reply, strlen(reply), false, &ids, &err), &err);
    assert_ok(es_chat_close(model, &close, &err), &err);
    es_ids_add(&ids, close.id[0]);
    float *lp = calloc(ids.n, sizeof *lp);
    assert_ok(es_score(model, ids.id, (int)ids.n, NULL, 1, lp, NULL, &err), &err);
    double sum = 0;
    for (size_t i = prompt; i < ids.n; i++)
        sum += lp[i];
    double mean = sum / (double)(ids.n - prompt);
    free(lp);
    es_ids_free(&ids);
    es_ids_free(&close);
    return mean;
}

static void margin(void **s)
{
    (void)s;
    es_error err;
    es_experiences e = fix_experiences();
    es_margin m;
    double per[5], sum = 0;
    assert_ok(es_eval_margin(model, NULL, &e, 1, 0, &m, per, NULL, &err), &err);
    assert_int_equal(m.pairs, 3);
    for (int i = 0; i < 3; i++) {
        double want = plain_mean(&e.item[i], e.item[i].preferred) - plain_mean(&e.item[i], e.item[i].rejected);
        assert_true(fabs(per[i] - want) < 1e-4);
        sum += want / 3;
    }
    assert_true(isnan(per[3]) && isnan(per[4]));
    assert_true(fabs(m.margin - sum) < 1e-4 && fabs(m.preferred - m.rejected - m.margin) < 1e-9);
    e.item += 3; /* no pair */
    e.n = 2;
    assert_error(es_eval_margin(model, NULL, &e, 1, 0, &m, NULL, NULL, &err), &err, "pair");
    e.item -= 3;
    e.n = 5;
    es_experiences_free(&e);
}

static void neutral(void **s)
{
    (void)s;
    es_error err;
    static const char *const text[] = {"the first of two texts", "and the second, which is a little longer than the first"};
    es_neutral r, doubled;
    assert_ok(es_eval_neutral(model, NULL, text, 2, 1, &r, NULL, &err), &err);
    assert_true(r.kl == 0 || fabs(r.kl) < 1e-6);
    assert_true(r.nll == r.nll_base && r.nll > 0);
    es_adapter *a = NULL;
    es_basis b = fix_basis(6, 50);
    es_adapter_options o = es_adapter_default(dictionary, model);
    o.form = ES_FORM_BIAS;
    assert_ok(es_adapter_new(&a, model, dictionary, &b, &o, &err), &err);
    for (size_t i = 0; i < a->n_param; i++)
        a->param[i] = 0.3f;
    es_adapter_refresh(a);
    es_patch patch;
    assert_ok(es_adapter_patch(a, 1, &patch, &err), &err);
    assert_ok(es_eval_neutral(model, &patch, text, 2, 1, &r, NULL, &err), &err);
    assert_ok(es_adapter_patch(a, 2, &patch, &err), &err);
    assert_ok(es_eval_neutral(model, &patch, text, 2, 1, &doubled, NULL, &err), &err);
    assert_true(r.kl > 0 && doubled.kl > 2 * r.kl); /* grows like the square */
    assert_int_equal(r.tokens, doubled.tokens);
    es_ids ids = {0};
    assert_ok(es_tokenize(model, text[0], strlen(text[0]), false, &ids, &err), &err);
    assert_ok(es_tokenize(model, text[1], strlen(text[1]), false, &ids, &err), &err);
    assert_int_equal(r.tokens, (int)ids.n - 2);
    es_ids_free(&ids);
    es_adapter_free(a);
    es_basis_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(experiences), cmocka_unit_test(margin), cmocka_unit_test(neutral),
    };
    model = open_tiny(NULL);
    dictionary = fix_dictionary(model, "dictionary", 3);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    es_dictionary_free(dictionary);
    es_model_free(model);
    return failed;
}
