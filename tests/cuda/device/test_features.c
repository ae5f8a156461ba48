/* What stands on the engine, on a card beside the processor: every form of adapter, plain LoRA and all weights, harvests. The card is the shim's. */
#include "card.h"
#include "../../features/fixture.h"
#include "harvest.h"
#include "tune.h"

static es_model *model[2]; /* the processor's, the card's */
static es_dictionary *dictionary;

static int open_all(void **state)
{
    tiny_options o = tiny_default();
    o.n_layer = 3;
    o.d_ff = 96;
    open_card(state);
    for (int i = 0; i < 2; i++)
        model[i] = open_tiny(&o);
    use_card(model[1], true);
    dictionary = fix_dictionary(model[0], "dictionary", 1);
    return 0;
}

static int close_all(void **state)
{
    es_dictionary_free(dictionary);
    for (int i = 0; i < 2; i++)
        es_model_free(model[i]);
    return close_card(state);
}

/* ---- the learner ---------------------------------------------------------------------------------------------------------------- */

typedef struct learned { double loss; float *grad, *param; size_t n; } learned;

static learned learn(es_model *m, es_form form, bool constrained, bool lose)
{
    static const char *const anchors[] = {"the cat sat on the mat"};
    es_error err;
    es_adapter *a = NULL;
    es_learner *l = NULL;
    es_basis b = fix_basis(12, 100);
    es_adapter_options ao = es_adapter_default(dictionary, m);
    es_learner_options lo = es_learner_default(form);
    ao.form = form;
    ao.constrained = constrained;
    ao.rank = 3;
    lo.threads = 1;
    lo.max_prompt = 64;
    lo.max_reply = 24;
    lo.anchor = anchors;
    lo.n_anchor = 1;
    lo.exact = true;
    lo.hold_out = 0;
    assert_ok(es_adapter_new(&a, m, dictionary, constrained ? &b : NULL, &ao, &err), &err);
    assert_ok(es_learner_open(&l, m, dictionary, a, &lo, &err), &err);
    es_experiences e = fix_experiences();
    for (int i = 0; i < e.n; i++)
        assert_ok(es_learner_add(l, &e.item[i], NULL, &err), &err);
    es_rng rng;
    es_rng_seed(&rng, 9);
    for (size_t i = 0; i < a->n_param; i++)
        a->param[i] += 0.05f * es_rng_normal(&rng);
    es_adapter_refresh(a);
    learned out = {.n = a->n_param, .grad = calloc(a->n_param, sizeof(float)), .param = calloc(a->n_param, sizeof(float))};
    assert_ok(es_learner_gradient(l, &out.loss, out.grad, &err), &err);
    for (int i = 0; i < 2; i++) {
        es_step_report report;
        if (lose && i)
            shim_lose_after(40);
        int code = es_learner_step(l, &report, NULL, &err);
        if (code == ES_ERR_DEVICE && lose) /* a backward cannot be made up for: the step is repeated */
            code = es_learner_step(l, &report, NULL, &err);
        assert_ok(code, &err);
    }
    memcpy(out.param, a->param, a->n_param * sizeof(float));
    es_experiences_free(&e);
    es_learner_free(l);
    es_adapter_free(a);
    es_basis_free(&b);
    return out;
}

static void compare_learned(learned want, learned got, const char *label)
{
    assert_int_equal(want.n, got.n);
    if (!(fabs(got.loss - want.loss) < 1e-4 * fabs(want.loss) + 1e-5))
        fail_msg("%s: loss %g on the card, %g without", label, got.loss, want.loss);
    near(label, "gradient", got.grad, want.grad, want.n, 1e-3);
    near(label, "parameters after two steps", got.param, want.param, want.n, 3e-3);
    free(want.grad);
    free(want.param);
    free(got.grad);
    free(got.param);
}

static void forms(void **state)
{
    (void)state;
    static const struct { es_form form; bool constrained; const char *label; } each[] = {
        {ES_FORM_BIAS, true, "bias"}, {ES_FORM_GAIN, true, "gain"}, {ES_FORM_MAP, true, "map"}, {ES_FORM_LORA, true, "lora"}, {ES_FORM_LORA, false, "free lora"}};
    for (size_t i = 0; i < sizeof each / sizeof *each; i++)
        compare_learned(learn(model[0], each[i].form, each[i].constrained, false), learn(model[1], each[i].form, each[i].constrained, false), each[i].label);
}

/* ---- LoRA and all weights --------------------------------------------------------------------------------------------------------- */

static learned tune(es_model *m, bool weights)
{
    es_error err;
    es_tune *t = NULL;
    es_model *own = NULL;
    es_tune_options o = es_tune_default(weights);
    o.rank = 3;
    o.alpha = 6;
    o.threads = 1;
    o.max_prompt = 64;
    o.max_reply = 24;
    o.max_tokens = 200;
    if (weights)
        assert_ok(es_model_thaw(&own, m, 0, &err), &err);
    assert_ok(es_tune_open(&t, m, own, &o, &err), &err);
    es_experiences e = fix_experiences();
    for (int i = 0; i < e.n; i++)
        assert_ok(es_tune_add(t, &e.item[i], NULL, &err), &err);
    size_t n = es_tune_parameters(t);
    learned out = {.n = n, .grad = calloc(n, sizeof(float)), .param = calloc(n, sizeof(float))};
    es_rng rng;
    es_rng_seed(&rng, 2);
    float *x = es_tune_values(t);
    for (size_t i = 0; i < n; i++)
        x[i] += 0.01f * es_rng_normal(&rng);
    if (own)
        es_model_changed(own);
    assert_ok(es_tune_gradient(t, &out.loss, out.grad, &err), &err);
    es_step_report report;
    for (int i = 0; i < 2; i++)
        assert_ok(es_tune_step(t, 3, &report, NULL, &err), &err);
    double loss; /* what the moved numbers give, on whichever side they are read */
    assert_ok(es_tune_gradient(t, &loss, NULL, &err), &err);
    out.loss += 10 * loss;
    memcpy(out.param, es_tune_values(t), n * sizeof(float));
    es_experiences_free(&e);
    es_tune_free(t);
    es_model_free(own);
    return out;
}

/* Adam's first steps go by the sign: where a gradient is next to nothing both signs come, a rate apart. */
static void tunes(void **state)
{
    (void)state;
    for (int weights = 0; weights < 2; weights++) {
        learned want = tune(model[0], weights), got = tune(model[1], weights);
        const char *label = weights ? "all weights" : "lora";
        if (!(fabs(got.loss - want.loss) < 1e-3 * fabs(want.loss)))
            fail_msg("%s: loss %g on the card, %g without", label, got.loss, want.loss);
        near(label, "gradient", got.grad, want.grad, want.n, 1e-3);
        size_t apart = 0;
        for (size_t i = 0; i < want.n; i++)
            apart += fabsf(want.param[i] - got.param[i]) > 1e-5f;
        if (apart * 50 > want.n)
            fail_msg("%s: %zu of %zu parameters are apart after two steps", label, apart, want.n);
        free(want.grad);
        free(want.param);
        free(got.grad);
        free(got.param);
    }
}

/* ---- parameters and moments that stay on the card ----------------------------------------------------------------------------------- */

static es_tune *opened(es_model *m, es_model *own)
{
    es_error err;
    es_tune *t = NULL;
    es_tune_options o = es_tune_default(own != NULL);
    o.rank = 3;
    o.rate = 1e-3;
    o.decay = 0.1;
    o.clip = 0.05; /* which cuts */
    o.threads = 1;
    o.max_prompt = 64;
    o.max_reply = 24;
    o.max_tokens = 200;
    assert_ok(es_tune_open(&t, m, own, &o, &err), &err);
    es_experiences e = fix_experiences();
    for (int i = 0; i < e.n; i++)
        assert_ok(es_tune_add(t, &e.item[i], NULL, &err), &err);
    es_experiences_free(&e);
    return t;
}

static void steps(es_tune *t, int n)
{
    es_error err;
    es_step_report report;
    for (int i = 0; i < n; i++) {
        assert_ok(es_tune_step(t, 0, &report, NULL, &err), &err);
        assert_non_null(report.guard);
        assert_string_equal(report.guard, "clip");
    }
}

static void same_state(es_tune *got, es_tune *want, const char *label)
{
    const size_t n = (size_t)es_tune_parameters(want);
    size_t apart = 0;
    assert_int_equal(es_tune_steps(got), es_tune_steps(want));
    near(label, "first moments", es_tune_moment(got, 0), es_tune_moment(want, 0), n, 2e-3);
    near(label, "second moments", es_tune_moment(got, 1), es_tune_moment(want, 1), n, 4e-3);
    for (size_t i = 0; i < n; i++)
        apart += fabsf(es_tune_values(got)[i] - es_tune_values(want)[i]) > 1e-4f;
    if (apart * 25 > n)
        fail_msg("%s: %zu of %zu parameters are apart", label, apart, n);
}

/* Nothing comes down before somebody asks; what is written into the copy goes up. */
static void kept(void **state)
{
    (void)state;
    es_error err;
    es_model *own[2];
    for (int weights = 0; weights < 2; weights++) {
        const char *label = weights ? "all weights" : "lora";
        es_tune *t[2];
        for (int i = 0; i < 2; i++) {
            if (weights)
                assert_ok(es_model_thaw(&own[i], model[i], 0, &err), &err);
            t[i] = opened(model[i], weights ? own[i] : NULL);
        }
        const size_t n = (size_t)es_tune_parameters(t[0]);
        size_t all;
        float *here = weights ? es_model_numbers(own[1], &all, NULL) : NULL, *before = calloc(n, sizeof *before);
        if (weights)
            memcpy(before, here, n * sizeof *here);
        for (int i = 0; i < 2; i++)
            steps(t[i], 2);
        if (weights) {
            assert_memory_equal(here, before, n * sizeof *here);
            assert_ok(es_tune_settle(t[1], &err), &err);
            assert_true(memcmp(here, before, n * sizeof *here) != 0);
        }
        same_state(t[1], t[0], label);
        for (int i = 0; i < 2; i++) { /* by hand: the next step starts there */
            float *x = es_tune_values(t[i]), *m = es_tune_moment(t[i], 0);
            for (size_t j = 0; j < n; j += 3)
                x[j] *= 0.9f, m[j] = 0;
            if (weights)
                es_model_changed(own[i]);
            es_tune_set_steps(t[i], 5);
            steps(t[i], 1);
        }
        same_state(t[1], t[0], label);
        for (int i = 0; i < 2; i++) {
            es_tune_free(t[i]);
            es_model_free(weights ? own[i] : NULL);
        }
        free(before);
    }
}

/* Where there is no room for them, and only then, the parameters stay in host memory. */
static void no_room_to_keep(void **state)
{
    (void)state;
    char text[300];
    while (es_cuda_told(card, text, sizeof text))
        ;
    es_tune *t[2] = {opened(model[0], NULL), opened(model[1], NULL)};
    const size_t used = shim_memory_used(), kept_bytes = 4 * sizeof(float) * (size_t)es_tune_parameters(t[1]);
    es_tune_free(t[1]);
    assert_false(es_cuda_told(card, text, sizeof text));
    shim_memory(used - kept_bytes / 2);
    t[1] = opened(model[1], NULL);
    assert_true(es_cuda_told(card, text, sizeof text));
    assert_non_null(strstr(text, "moved by the processor"));
    shim_memory((size_t)4 << 30);
    for (int i = 0; i < 2; i++)
        steps(t[i], 2);
    same_state(t[1], t[0], "without room");
    es_tune_free(t[0]);
    es_tune_free(t[1]);
}

/* The steps since the copy are gone and one call says so; then it goes on. */
static void lost_kept(void **state)
{
    (void)state;
    es_error err;
    es_step_report report;
    tiny_options o = tiny_default();
    o.n_layer = 3;
    o.d_ff = 96;
    es_cuda *before = card;
    open_card(NULL);
    es_model *again = open_tiny(&o);
    use_card(again, true);
    es_tune *t[2] = {opened(model[0], NULL), opened(again, NULL)};
    steps(t[0], 1);
    steps(t[1], 1);
    es_tune_values(t[1]);
    steps(t[1], 2);
    shim_lose_after(100); /* within a pass */
    assert_int_equal(es_tune_step(t[1], 0, &report, NULL, &err), ES_ERR_DEVICE);
    assert_non_null(strstr(err.text, "2 steps of learning"));
    assert_int_equal(es_tune_steps(t[1]), 1);
    same_state(t[1], t[0], "lost");
    steps(t[0], 1);
    steps(t[1], 1);
    same_state(t[1], t[0], "after it was lost");
    es_tune_free(t[0]);
    es_tune_free(t[1]);
    es_model_free(again);
    shim_lose_card(0);
    es_cuda_close(card);
    card = before;
}

/* ---- harvest ---------------------------------------------------------------------------------------------------------------------- */

static void harvested(es_model *m, const char *dir, float *rows, size_t *n)
{
    es_error err;
    es_harvest_reader r;
    static const int layers[] = {0, 1};
    const char *text = test_path("texts.jsonl");
    static const char lines[] = "{\"text\": \"the cat sat on the mat and looked at the moon\"}\n{\"text\": \"one two three four five six seven\"}\n";
    test_write(text, lines, sizeof lines - 1);
    es_harvest_options o = {.layer = layers, .n_layer = 2, .context = 32, .skip_first = true, .seed = 1, .threads = 1, .exact = true};
    assert_ok(es_harvest(m, &text, 1, dir, &o, NULL, &err), &err);
    assert_ok(es_harvest_reader_open(&r, dir, 1, &err), &err);
    *n = r.n_row;
    assert_true(r.n_row > 10 && r.n_row < 200);
    es_harvest_reader_rows(&r, 0, r.n_row, rows);
    es_harvest_reader_close(&r);
}

static void harvest(void **state)
{
    (void)state;
    static float want[200 * 64], got[200 * 64];
    size_t n, m;
    harvested(model[0], test_path("harvest-cpu"), want, &n);
    harvested(model[1], test_path("harvest-card"), got, &m);
    assert_int_equal(n, m);
    near("harvest", "rows", got, want, n * 64, 1e-3);
}

/* Last, for the card is lost in it: each row comes once, from whichever side, and learning goes on. */
static void lost(void **state)
{
    (void)state;
    static float want[200 * 64], got[200 * 64];
    size_t n, m;
    compare_learned(learn(model[0], ES_FORM_GAIN, true, false), learn(model[1], ES_FORM_GAIN, true, true), "lost while learning");
    shim_lose_card(0);
    tiny_options o = tiny_default();
    o.n_layer = 3;
    o.d_ff = 96;
    es_cuda *before = card;
    open_card(NULL);
    es_model *again = open_tiny(&o);
    use_card(again, true);
    harvested(model[0], test_path("harvest-cpu2"), want, &n);
    shim_lose_after(12);
    harvested(again, test_path("harvest-lost"), got, &m);
    assert_null(es_model_card(again));
    assert_int_equal(n, m);
    near("harvest", "rows", got, want, n * 64, 1e-3);
    es_model_free(again);
    shim_lose_card(0);
    es_cuda_close(card);
    card = before;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(forms), cmocka_unit_test(tunes), cmocka_unit_test(kept), cmocka_unit_test(no_room_to_keep), cmocka_unit_test(lost_kept), cmocka_unit_test(harvest),
                                       cmocka_unit_test(lost)};
    return cmocka_run_group_tests(tests, open_all, close_all);
}
