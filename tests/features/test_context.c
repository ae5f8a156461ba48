/* The method context: what it puts before a conversation, its budget, its copy. */
#include "fixture.h"
#include "method.h"
#include "worked.h"

static es_model *model;

static int count_tokens(const es_message *message, int n)
{
    es_error err;
    es_ids ids = {0};
    assert_ok(es_chat_render(model, message, (size_t)n, false, &ids, &err), &err);
    int tokens = (int)ids.n;
    es_ids_free(&ids);
    return tokens;
}

static void worked_turns_come_newest_last(void **state)
{
    (void)state;
    es_error err;
    es_experiences l = fix_experiences();
    es_worked w;
    assert_ok(es_worked_make(&w, model, NULL, l.item, l.n, 10000, &err), &err);
    assert_int_equal(w.shown, 4); /* one has no preferred reply */
    assert_int_equal(w.n, 8);
    assert_string_equal(w.message[0].role, "user");
    assert_string_equal(w.message[0].content, "How are you?");
    assert_string_equal(w.message[1].role, "assistant");
    assert_string_equal(w.message[1].content, "Fine.");
    assert_string_equal(w.message[6].content, "Is it late?");
    assert_string_equal(w.message[7].content, "Yes.");
    assert_int_equal(w.tokens, count_tokens(w.message, w.n));
    es_worked_free(&w);
    es_experiences_free(&l);
}

static void the_budget_takes_the_newest(void **state)
{
    (void)state;
    es_error err;
    es_experiences l = fix_experiences();
    es_worked all, some;
    assert_ok(es_worked_make(&all, model, NULL, l.item, l.n, 10000, &err), &err);
    for (int budget = 1; budget <= all.tokens; budget++) {
        assert_ok(es_worked_make(&some, model, NULL, l.item, l.n, budget, &err), &err);
        assert_true(some.tokens <= budget);
        assert_int_equal(some.n, 2 * some.shown);
        if (some.n) /* the newest fits first, as it is the shortest too */
            assert_string_equal(some.message[some.n - 1].content, "Yes.");
        assert_int_equal(some.shown == all.shown, budget == all.tokens);
        es_worked_free(&some);
    }
    assert_ok(es_worked_make(&some, model, NULL, l.item, l.n, 0, &err), &err); /* a third of 512 */
    assert_true(some.tokens > 0 && some.tokens <= 170);
    es_worked_free(&some);
    es_worked_free(&all);
    es_experiences_free(&l);
}

static void what_is_not_shown(void **state)
{
    (void)state;
    es_error err;
    es_experiences l = {0};
    es_worked w;
    fix_experience(&l, "Name a colour.", "Blue", NULL);
    fix_experience(&l, "Is it late?", "Yes.", NULL);
    fix_experience(&l, "Name a colour.", "Red", "Blue"); /* a correction of the first */
    fix_experience(&l, "Shall we go?", "Now.", NULL);
    l.item[3].weight = 0;
    assert_ok(es_worked_make(&w, model, "Be brief.", l.item, l.n, 1000, &err), &err);
    assert_int_equal(w.shown, 2);
    assert_int_equal(w.n, 5);
    assert_string_equal(w.message[0].role, "system");
    assert_string_equal(w.message[0].content, "Be brief.");
    assert_string_equal(w.message[2].content, "Yes.");
    assert_string_equal(w.message[4].content, "Red");
    es_worked_free(&w);
    assert_ok(es_worked_make(&w, model, NULL, NULL, 0, 0, &err), &err);
    assert_int_equal(w.n, 0);
    assert_int_equal(w.tokens, 0);
    es_worked_free(&w);
    es_experiences_free(&l);
}

static void the_method(void **state)
{
    (void)state;
    es_error err;
    es_experiences l = fix_experiences();
    es_method_options o = es_method_default(ES_METHOD_CONTEXT);
    char said[] = "Be brief.";
    o.preference = said;
    es_method *m;
    assert_ok(es_method_open(&m, ES_METHOD_CONTEXT, model, &o, &err), &err);
    memset(said, 'x', strlen(said)); /* its own by now */
    es_variant v, copy;
    assert_ok(es_method_view(m, &v, &err), &err);
    assert_int_equal(v.n_prefix, 1);
    assert_string_equal(v.prefix[0].content, "Be brief.");
    assert_true(v.context_tokens > 0);
    assert_ptr_equal(v.model, model);
    assert_int_equal(v.patch.n_lowrank + v.patch.n_hook + v.patch.n_addend, 0);
    assert_ok(es_method_copy(m, &copy, &err), &err);
    for (int i = 0; i < 3; i++)
        assert_ok(es_method_add(m, &l.item[i], NULL, &err), &err);
    es_step_report r;
    assert_ok(es_method_step(m, &r, NULL, &err), &err);
    assert_string_equal(r.guard, "learned");
    assert_ok(es_method_view(m, &v, &err), &err);
    assert_int_equal(v.n_prefix, 7);
    assert_true(v.context_tokens > copy.context_tokens);
    assert_true(es_method_bytes(m) > 0);
    assert_int_equal(es_method_parameters(m), 0);
    assert_int_equal(copy.n_prefix, 1); /* what was copied before does not change, and outlives the method */
    es_method_free(m);
    assert_string_equal(copy.prefix[0].content, "Be brief.");
    es_variant_clear(&copy);
    assert_null(copy.prefix);
    es_experiences_free(&l);
}

static void a_conversation_with_a_prefix(void **state)
{
    (void)state;
    es_error err;
    es_message prefix[] = {{"system", "Be brief."}, {"user", "Hi"}, {"assistant", "Hi."}};
    es_message talk[] = {{"system", "You are a cook."}, {"user", "Soup?"}};
    es_variant v = {.prefix = prefix, .n_prefix = 3};
    es_message *c;
    int n;
    assert_ok(es_variant_conversation(&v, talk, 2, &c, &n, &err), &err); /* one system message of both */
    assert_int_equal(n, 4);
    assert_string_equal(c[0].content, "You are a cook.\n\nBe brief.");
    assert_string_equal(c[1].content, "Hi");
    assert_string_equal(c[3].content, "Soup?");
    free(c);
    assert_ok(es_variant_conversation(&v, talk + 1, 1, &c, &n, &err), &err);
    assert_int_equal(n, 4);
    assert_string_equal(c[0].content, "Be brief.");
    free(c);
    v.prefix++;
    v.n_prefix--;
    assert_ok(es_variant_conversation(&v, talk, 2, &c, &n, &err), &err); /* the conversation's stays first */
    assert_int_equal(n, 4);
    assert_string_equal(c[0].content, "You are a cook.");
    assert_string_equal(c[1].content, "Hi");
    assert_string_equal(c[3].content, "Soup?");
    free(c);
    v = (es_variant){0};
    assert_ok(es_variant_conversation(&v, talk, 2, &c, &n, &err), &err);
    assert_int_equal(n, 2);
    assert_string_equal(c[1].content, "Soup?");
    free(c);
}

int main(void)
{
    model = open_tiny(NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(worked_turns_come_newest_last), cmocka_unit_test(the_budget_takes_the_newest), cmocka_unit_test(what_is_not_shown),
        cmocka_unit_test(the_method),                    cmocka_unit_test(a_conversation_with_a_prefix),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    es_model_free(model);
    return failed;
}
