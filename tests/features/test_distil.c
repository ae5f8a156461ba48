/* Distillation: each loss against finite differences, the teacher's check and advantage, the method on the tiny model. */
#include "distil.h"
#include "fixture.h"
#include "method.h"
#include "prefer.h"

enum { V = 40 };
static es_model *model;

static void softmax(const float *z, float *p)
{
    double sum = 0;
    for (int i = 0; i < V; i++)
        sum += exp(z[i]);
    for (int i = 0; i < V; i++)
        p[i] = (float)(exp(z[i]) / sum);
}

static void logits(float *z, uint64_t seed)
{
    es_rng r;
    es_rng_seed(&r, seed);
    for (int i = 0; i < V; i++)
        z[i] = 2 * es_rng_normal(&r);
}

static void losses_have_their_gradients(void **state)
{
    (void)state;
    float q[V], z[V], p[V];
    int32_t token = 7;
    logits(q, 1);
    logits(z, 2);
    for (es_distil_loss k = ES_DISTIL_TOP; k <= ES_DISTIL_FULL; k++) {
        es_error err;
        es_target t;
        float dl[V] = {0};
        assert_ok(es_target_make(&t, k, 1, V, &token, q, 0, &err), &err);
        softmax(z, p);
        double loss = es_distil_token(&t, 0, token, p, 0.7, dl);
        assert_true(loss > 0);
        for (int i = 0; i < V; i++) {
            float was = z[i], e = 1e-2f;
            double side[2];
            for (int s = 0; s < 2; s++) {
                z[i] = was + (s ? e : -e);
                softmax(z, p);
                side[s] = es_distil_token(&t, 0, token, p, 0.7, NULL);
            }
            z[i] = was;
            double slope = (side[1] - side[0]) / (2 * e);
            assert_float_equal(dl[i], slope, 1e-3 + 0.01 * fabs(slope));
        }
        softmax(q, p); /* the teacher itself has nothing to learn */
        assert_float_equal(es_distil_token(&t, 0, token, p, 1, NULL), 0, 1e-5);
        es_target_free(&t);
    }
}

/* Over all tokens, at their probabilities, the sampled gradient is that of the whole reverse KL. */
static void the_sampled_gradient_is_unbiased(void **state)
{
    (void)state;
    es_error err;
    float q[V], z[V], p[V], pq[V];
    double mean[V] = {0}, kl = 0;
    logits(q, 1);
    logits(z, 2);
    softmax(z, p);
    softmax(q, pq);
    for (int32_t x = 0; x < V; x++) {
        es_target t;
        float dl[V] = {0};
        assert_ok(es_target_make(&t, ES_DISTIL_SAMPLED, 1, V, &x, q, 0, &err), &err);
        kl += p[x] * es_distil_token(&t, 0, x, p, 1, dl);
        for (int i = 0; i < V; i++)
            mean[i] += (double)p[x] * dl[i];
        es_target_free(&t);
    }
    for (int i = 0; i < V; i++)
        assert_float_equal(mean[i], p[i] * (log(p[i] / pq[i]) - kl), 1e-4);
}

static void first_tokens_are_masked(void **state)
{
    (void)state;
    es_error err;
    float q[2 * V], p[V], dl[V] = {0};
    int32_t token[2] = {1, 2};
    es_target t;
    logits(q, 1);
    logits(q + V, 3);
    logits(p, 2);
    softmax(p, p);
    assert_ok(es_target_make(&t, ES_DISTIL_FULL, 2, V, token, q, 1, &err), &err);
    assert_int_equal(es_target_counted(&t), 1);
    assert_true(es_distil_token(&t, 0, 1, p, 1, dl) == 0 && dl[0] == 0);
    assert_true(es_distil_token(&t, 1, 2, p, 1, dl) > 0);
    es_target_free(&t);
}

static void advantage_is_required(void **state)
{
    (void)state;
    es_error err;
    es_advantage a = {0};
    assert_ok(es_advantage_require(&a, &err), &err); /* not measured */
    a.replies = a.pairs = 4;
    snprintf(a.reason, sizeof a.reason, "the teacher has no advantage: margin -0.0100");
    assert_int_equal(es_advantage_require(&a, &err), ES_ERR_REFUSED);
    assert_error(err.code, &err, "-0.0100");
    a.any = true;
    assert_ok(es_advantage_require(&a, &err), &err);

    es_experiences l = fix_experiences(); /* the base model with nothing in its context has none over itself */
    es_teacher *t;
    es_teacher_options o = {.max_prompt = 64, .max_reply = 32, .masked = -1, .threads = 1};
    assert_ok(es_teacher_open(&t, model, &o, &err), &err);
    assert_ok(es_teacher_advantage(t, l.item, 1, &a, NULL, &err), &err);
    assert_float_equal(a.margin, 0, 1e-6);
    assert_false(a.any);
    es_teacher_free(t);
    es_experiences_free(&l);
}

static void the_method_steps(void **state)
{
    (void)state;
    es_error err;
    es_method_options o = es_method_default(ES_METHOD_DISTIL);
    o.preference = "Be brief.";
    o.threads = 1;
    o.max_new = 12;
    o.rank = 2;
    for (es_distil_loss k = ES_DISTIL_SAMPLED; k <= ES_DISTIL_FULL; k++) {
        es_method *m;
        es_step_report r;
        es_variant v;
        volatile bool stop = true;
        o.distil_loss = k;
        assert_ok(es_method_open(&m, ES_METHOD_DISTIL, model, &o, &err), &err);
        assert_int_equal(es_method_step(m, &r, &stop, &err), ES_ERR_CANCELLED);
        assert_ok(es_method_step(m, &r, NULL, &err), &err);
        assert_true(isfinite(r.loss) && r.tokens > 0);
        assert_ok(es_method_view(m, &v, &err), &err);
        assert_true(v.patch.n_lowrank > 0);
        es_method_free(m);
    }
    es_method *m;
    es_step_report r;
    o.preference = NULL;
    assert_ok(es_method_open(&m, ES_METHOD_DISTIL, model, &o, &err), &err);
    assert_error(es_method_step(m, &r, NULL, &err), &err, "nothing to distil");
    es_method_free(m);
}

/* A second model teaches: after some steps the student's own samples are nearer to what it would say. One with another tokenizer is refused. */
static void a_second_model_teaches(void **state)
{
    (void)state;
    es_error err;
    tiny_options other = tiny_default();
    other.seed = 7;
    es_model *teacher = open_tiny(&other);
    es_method_options o = es_method_default(ES_METHOD_DISTIL);
    o.teacher = teacher;
    o.threads = 1;
    o.max_new = 16;
    o.rank = 16;
    o.rate = 0.03;
    for (es_distil_loss k = ES_DISTIL_TOP; k <= ES_DISTIL_FULL; k++) { /* the sampled loss is too noisy for so few steps */
        es_method *m;
        es_step_report r;
        double first = 0, last = 0;
        o.distil_loss = k;
        assert_ok(es_method_open(&m, ES_METHOD_DISTIL, model, &o, &err), &err);
        for (int i = 0; i < 120; i++) {
            assert_ok(es_method_step(m, &r, NULL, &err), &err);
            first += i < 4 ? r.loss / 4 : 0;
            last += i >= 116 ? r.loss / 4 : 0;
        }
        if (!(first > 0 && last < 0.9 * first))
            fail_msg("%s: the loss went from %g to %g", es_distil_name(k), first, last);
        es_method_free(m);
    }
    es_model_free(teacher);

    tiny_file *f = tiny_build(NULL);
    const char *path = test_path("other-tokens.gguf");
    tiny_set_entry(f, "tokenizer.ggml.tokens", 4, "\xc4\x82", 2); /* bytes 1 and 2 change places */
    tiny_set_entry(f, "tokenizer.ggml.tokens", 5, "\xc4\x81", 2);
    tiny_write(path, f);
    tiny_free(f);
    assert_ok(es_model_open(&teacher, path, &err), &err);
    es_teacher *t;
    es_teacher_options to = {.model = teacher, .max_prompt = 64, .max_reply = 32, .masked = -1, .threads = 1};
    assert_int_equal(es_teacher_open(&t, model, &to, &err), ES_ERR_MISMATCH);
    es_model_free(teacher);
}

/* The constrained learner, by each token loss: the adapter's own replies, scored by the base model with the preference. */
static void a_preference_is_learned_in_a_basis(void **state)
{
    (void)state;
    es_error err;
    es_dictionary *s = fix_dictionary(model, "dictionary", 3);
    es_message ask = {"user", "How are you?"};
    es_experience e = {.message = &ask, .n_message = 1, .preferred = (char *)(uintptr_t)"Fine.", .source = (char *)(uintptr_t)"prefer: Be brief.", .weight = 1};
    assert_string_equal(es_prefer_of(&e), "Be brief.");
    for (es_distil_loss k = ES_DISTIL_SAMPLED; k <= ES_DISTIL_FULL; k++) {
        es_basis b = fix_basis(20, 100);
        es_adapter_options ao = es_adapter_default(s, model);
        es_learner_options lo = es_learner_default(ES_FORM_LORA);
        es_adapter *a;
        es_learner *l;
        es_onpolicy *p;
        es_step_report r;
        volatile bool stop = true;
        lo.kappa = lo.rho = lo.hold_out = lo.enough = 0;
        lo.threads = 1;
        lo.learning_rate = 0.02;
        ao.rank = 3;
        assert_ok(es_adapter_new(&a, model, s, &b, &ao, &err), &err);
        assert_ok(es_learner_open(&l, model, s, a, &lo, &err), &err);
        assert_ok(es_onpolicy_open(&p, model, k, 16, 128, 1, 1, &err), &err);
        assert_int_equal(es_onpolicy_add(p, l, a, &e, &stop, &err), ES_ERR_CANCELLED);
        es_experience two[3] = {e, {.message = &ask, .n_message = 1, .source = (char *)(uintptr_t)"me", .weight = 1}, e};
        es_experiences list = {.item = two, .n = 3};
        assert_int_equal(es_onpolicy_ahead(p, a, &list, &stop, &err), ES_ERR_CANCELLED);
        assert_ok(es_onpolicy_ahead(p, a, &list, NULL, &err), &err); /* of the first and the last */
        for (int i = 0; i < 3; i++)
            assert_ok(es_onpolicy_add(p, l, a, i == 1 ? &e : &two[i], NULL, &err), &err);
        assert_int_equal(es_learner_count(l), 3);
        double first = 0;
        for (int i = 0; i < 8; i++) {
            assert_ok(es_learner_step(l, &r, NULL, &err), &err);
            first = i ? first : r.loss;
        }
        if (!(first > 0 && r.loss < first))
            fail_msg("%s: the loss went from %g to %g", es_distil_name(k), first, r.loss);
        e.source = (char *)(uintptr_t)"me";
        assert_error(es_onpolicy_add(p, l, a, &e, NULL, &err), &err, "no teacher");
        e.source = (char *)(uintptr_t)"prefer: Be brief.";
        es_onpolicy_free(p);
        es_learner_free(l);
        es_adapter_free(a);
        es_basis_free(&b);
    }
    es_dictionary_free(s);
}

int main(void)
{
    model = open_tiny(NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_have_their_gradients), cmocka_unit_test(the_sampled_gradient_is_unbiased), cmocka_unit_test(first_tokens_are_masked),
        cmocka_unit_test(advantage_is_required),       cmocka_unit_test(the_method_steps),
        cmocka_unit_test(a_second_model_teaches),      cmocka_unit_test(a_preference_is_learned_in_a_basis),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    es_model_free(model);
    return failed;
}
