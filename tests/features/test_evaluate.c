/* evaluate: tasks and their splits, garbage, measures of texts, options by name, an evaluation that is cut and resumed, and what is read from
 * its rows. */
#include "eval_internal.h"
#include "fixture.h"

static es_model *model;
static es_dictionary *dictionary;

static const char *write_task(const char *name, int n, bool sets)
{
    es_buf b = {0};
    const char *path = test_path("%s", name);
    es_buf_str(&b, "{\"about\":\"short answers\",\"attribution\":\"own\"}\n");
    for (int i = 0; i < n; i++) {
        static const char *const SET[] = {"pool", "pool", "dev", "held", "off"};
        es_buf_printf(&b, "{\"messages\":[{\"role\":\"user\",\"content\":\"Question %d?\"}],\"preferred\":\"Yes %d.\",\"rejected\":\"I would say that it is not %d.\"", i, i, i);
        if (sets)
            es_buf_printf(&b, ",\"set\":\"%s\"", SET[i % 5]);
        es_buf_str(&b, "}\n");
    }
    test_write(path, b.data, b.len);
    es_buf_free(&b);
    return path;
}

static void tasks(void **s)
{
    (void)s;
    es_error err;
    es_task t, u;
    es_task_split split = {4, 2, 7};
    assert_ok(es_task_load(&t, write_task("plain.jsonl", 12, false), "plain", &split, &err), &err);
    assert_int_equal(t.held.n, 4);
    assert_int_equal(t.dev.n, 2);
    assert_int_equal(t.pool.n, 6);
    assert_int_equal(t.off.n, 0);
    assert_string_equal(t.about, "short answers");
    split.seed = 8;
    assert_ok(es_task_load(&u, test_path("plain.jsonl"), "plain", &split, &err), &err);
    assert_string_not_equal(t.hash, u.hash); /* another split is another task */
    for (int i = 0; i < t.held.n; i++)       /* nothing is in two sets */
        for (int j = 0; j < t.pool.n; j++)
            assert_string_not_equal(t.held.item[i].preferred, t.pool.item[j].preferred);
    es_task_free(&t);
    es_task_free(&u);
    assert_ok(es_task_load(&t, write_task("sets.jsonl", 10, true), "sets", &split, &err), &err);
    assert_int_equal(t.pool.n, 4);
    assert_int_equal(t.dev.n, 2);
    assert_int_equal(t.held.n, 2);
    assert_int_equal(t.off.n, 2);
    assert_string_equal(t.held.item[0].preferred, "Yes 3.");
    es_task_free(&t);
    split.held_out = 11;
    assert_error(es_task_load(&t, test_path("plain.jsonl"), "plain", &split, &err), &err, "few");
    const char *bad = "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"preferred\":\"a\",\"rejected\":\"b\",\"set\":\"train\"}\n";
    test_write(test_path("bad.jsonl"), bad, strlen(bad));
    assert_error(es_task_load(&t, test_path("bad.jsonl"), "bad", &split, &err), &err, "train");
    bad = "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"preferred\":\"a\"}\n";
    test_write(test_path("bad.jsonl"), bad, strlen(bad));
    assert_error(es_task_load(&t, test_path("bad.jsonl"), "bad", &split, &err), &err, "both");
    assert_int_equal(t.pool.n, 0); /* freed */
}

static void garbage(void **s)
{
    (void)s;
    es_error err;
    es_experiences e = {0}, out = {0};
    fix_experience(&e, "How?", "one two three four five", "six seven");
    for (int k = 0; k < ES_N_GARBAGE; k++)
        assert_ok(es_garbage_make(&out, &e.item[0], (es_garbage)k, "other text", 3, &err), &err);
    assert_string_equal(out.item[0].preferred, "six seven");
    assert_string_equal(out.item[0].rejected, "one two three four five");
    assert_int_equal(strlen(out.item[1].preferred), strlen(e.item[0].preferred));
    assert_string_not_equal(out.item[1].preferred, e.item[0].preferred);
    assert_non_null(strstr(out.item[1].preferred, "three"));
    assert_string_equal(out.item[2].preferred, "other text");
    assert_string_equal(out.item[2].rejected, "six seven");
    assert_int_equal(es_garbage_by_name("off-topic"), ES_GARBAGE_OFF_TOPIC);
    assert_int_equal(es_garbage_by_name("gibberish"), -1);
    es_experiences_free(&e);
    es_experiences_free(&out);
}

static es_behaviour one(const char *text)
{
    es_behaviour b;
    bool ended = true;
    es_behaviour_of(&text, &ended, 1, &b);
    return b;
}

static void behaviour(void **s)
{
    (void)s;
    es_behaviour b = one("Sure! I think it might be a mapping, perhaps.");
    assert_true(b.words == 9 && b.openers == 1 && fabs(b.hedges - 100.0 * 3 / 9) < 1e-9);
    b = one("The surely thinking mighty.");
    assert_true(b.openers == 0 && b.hedges == 0); /* words, not their beginnings */
    b = one("It's fine; we don\xe2\x80\x99t mind 'quotes'.");
    assert_true(fabs(b.contractions - 100.0 * 2 / b.words) < 1e-9);
    b = one("Thank you, I'd be happy to help.");
    assert_true(b.warmth > 0);
    assert_true(one("Obviously, stupid.").warmth < 0);
    assert_true(one("Yeah, kinda cool.").slang == 100);
    assert_true(isnan(b.snake) && isnan(b.parses) && b.code == 0);

    b = one("Here:\n```python\ndef first_value(item_list: list) -> int:\n    \"\"\"Returns it.\"\"\"\n    for some_item in item_list:\n        if some_item:\n            return some_item\n```\nDone.");
    assert_true(b.code == 1 && b.parses == 1 && b.snake == 1 && b.annotated == 1 && b.docstring == 1 && b.depth == 2);
    b = one("def firstValue(itemList):\n    if not itemList:\n        return None\n    return itemList[0]\n");
    assert_true(b.snake == 0 && b.annotated == 0 && b.docstring == 0 && b.depth == 1);
    b = one("I come from the north, and def is a word.");
    assert_true(b.code == 0);

    assert_true(es_code_sane("def f(x):\n    return (x +\n  1)\n\nprint(f(2))  # ( in a comment\n", false));
    assert_true(es_code_sane("def f(): return '['\nx = \"\"\"(\n\"\"\"\nif x: pass\nelse:\n    y = {1: 2}\n", false));
    assert_true(es_code_sane("elsewhere = 1\niffy(3)\n", false));
    assert_false(es_code_sane("def f(x):\nreturn x\n", false));
    assert_false(es_code_sane("def f(x)\n    return x\n", false));
    assert_false(es_code_sane("x = (1]\n", false));
    assert_false(es_code_sane("x = 'a\ny = 2\n", false));
    assert_false(es_code_sane("if x\n    y = 1\n", false));
    assert_false(es_code_sane("def f():\n        a = 1\n    b = 2\n", false));
    assert_false(es_code_sane("def f(x):\n    return g(x", false));
    assert_true(es_code_sane("def f(x):\n    return g(x", true)); /* cut */
    assert_true(es_code_sane("def f(x):\n", true));
    assert_true(es_code_sane("", false));

    assert_true(es_text_loops("I am and I am and I am and I am and I am and I am and I am and I am and I am and"));
    assert_true(es_text_loops("The start of it is fine, but then !!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!"));
    assert_false(es_text_loops("A text of some length that goes on about one thing and then about another, and ends."));
    assert_true(one("").empty == 1);
}

static void specs(void **s)
{
    (void)s;
    es_error err;
    es_eval_spec a;
    assert_ok(es_eval_spec_new(&a, "wide=features", &err), &err);
    assert_string_equal(a.label, "wide");
    assert_true(a.kind == ES_METHOD_FEATURES && a.n_rate == 3);
    assert_ok(es_eval_spec_set(&a, "rate", "0.001,0.01", &err), &err);
    assert_ok(es_eval_spec_set(&a, "basis_size", "17", &err), &err);
    assert_ok(es_eval_spec_set(&a, "weighting", "1", &err), &err);
    assert_ok(es_eval_spec_set(&a, "preference", "be brief", &err), &err);
    assert_true(a.n_rate == 2 && a.rate[1] == 0.01 && a.o.basis_size == 17 && a.o.weighting);
    es_buf text = {0};
    es_eval_spec_text(&a, &text);
    assert_non_null(strstr(text.data, "wide=features basis_size=17 "));
    assert_non_null(strstr(text.data, "preference=be brief"));
    assert_null(strstr(text.data, "replay")); /* runs from before there was one are still the same runs */
    es_buf_free(&text);
    assert_ok(es_eval_spec_set(&a, "replay", "0.25", &err), &err);
    assert_true(a.o.replay == 0.25);
    es_eval_spec_text(&a, &text);
    assert_non_null(strstr(text.data, " replay=0.25"));
    es_buf_free(&text);
    assert_error(es_eval_spec_set(&a, "replay", "1", &err), &err, "replay");
    assert_error(es_eval_spec_set(&a, "rate", "0.1,x", &err), &err, "rate");
    assert_error(es_eval_spec_set(&a, "rank", "1.5", &err), &err, "rank");
    assert_error(es_eval_spec_set(&a, "colour", "1", &err), &err, "basis_size");
    assert_error(es_eval_spec_new(&a, "mind", &err), &err, "mind");
    assert_error(es_eval_spec_new(&a, "a b=lora", &err), &err, "letters");
    assert_ok(es_eval_spec_new(&a, "none", &err), &err);
    assert_int_equal(a.n_rate, 0);
}

/* The bench against es_eval_margin and es_eval_neutral, with caches at two depths, and a prefix against the conversation written out. */
static void bench(void **s)
{
    (void)s;
    es_error err;
    es_bench b;
    es_set pairs = {0}, text = {0};
    es_experiences e = fix_experiences();
    while (e.n > 3)
        es_experience_clear(&e.item[--e.n]);
    es_source from[6], documents[2] = {{NULL, 0, "the first of two texts"}, {NULL, 0, "and the second, which is a little longer than the first"}};
    for (int i = 0; i < 6; i++)
        from[i] = (es_source){e.item[i / 2].message, e.item[i / 2].n_message, i % 2 ? e.item[i / 2].rejected : e.item[i / 2].preferred};
    assert_ok(es_bench_open(&b, model, 64, 32, 1, NULL, &err), &err);
    assert_ok(es_set_open(&pairs, &b, from, 6, 32, true, &err), &err);
    assert_ok(es_set_open(&text, &b, documents, 2, 128, true, &err), &err);
    int last = es_model_get_info(model)->n_layer - 1;
    for (int layer = last; layer >= last - 1; layer--) { /* the second makes the caches again */
        float *v = es_calloc((size_t)es_model_get_info(model)->d_model, sizeof *v);
        v[3] = 0.4f;
        es_addend add = {.layer = layer, .scale = 1, .v = v};
        es_variant x = {.model = model, .patch = {.addend = &add, .n_addend = 1}, .lowest_layer = layer};
        es_harm harm;
        es_margin want, base;
        es_neutral neutral;
        static const char *const texts[] = {"the first of two texts", "and the second, which is a little longer than the first"};
        assert_ok(es_set_measure(&pairs, &b, &x, NULL, &err), &err);
        assert_int_equal(b.cached, layer);
        assert_ok(es_eval_margin(model, &x.patch, &e, 1, 32, &want, NULL, NULL, &err), &err);
        assert_ok(es_eval_margin(model, NULL, &e, 1, 32, &base, NULL, NULL, &err), &err);
        double margin = 0;
        for (int i = 0; i < 3; i++)
            margin += es_experience_gain(&pairs.seq[2 * i], &pairs.seq[2 * i + 1]) / 3;
        assert_true(fabs(margin - (want.margin - base.margin)) < 1e-4);
        assert_ok(es_set_measure(&text, &b, &x, &harm, &err), &err);
        assert_ok(es_eval_neutral(model, &x.patch, texts, 2, 1, &neutral, NULL, &err), &err);
        assert_true(fabs(harm.kl - neutral.kl) < 1e-4 + 1e-3 * neutral.kl);
        assert_true(fabs(harm.dnll - (neutral.nll - neutral.nll_base)) < 1e-4);
        free(v);
    }
    es_message told[] = {{"user", "Say no."}, {"assistant", "No."}, {"user", "How are you?"}};
    es_variant behind = {.model = model, .lowest_layer = last, .prefix = told, .n_prefix = 2};
    es_source whole = {told, 3, e.item[0].preferred};
    es_set direct = {0};
    assert_ok(es_set_open(&direct, &b, &whole, 1, 32, false, &err), &err);
    es_bench wide; /* the prompt may not be cut */
    es_set uncut = {0};
    assert_ok(es_bench_open(&wide, model, 512, 32, 1, NULL, &err), &err);
    assert_ok(es_set_open(&uncut, &wide, &whole, 1, 32, false, &err), &err);
    es_harm harm;
    assert_ok(es_set_measure(&pairs, &b, &behind, &harm, &err), &err);
    assert_true(fabs(pairs.seq[0].now - uncut.seq[0].base) < 1e-4);
    assert_true(harm.kl > 0);
    assert_ok(es_set_measure(&text, &b, &behind, &harm, &err), &err); /* documents have no conversation to be before */
    assert_true(harm.kl < 1e-6 && fabs(harm.dnll) < 1e-6);
    es_variant base = {.model = model, .lowest_layer = last};
    assert_true(es_variant_is_base(&base, model) && !es_variant_is_base(&behind, model));

    char *reply[2];
    bool ended[2];
    assert_ok(es_bench_replies(&b, &behind, from, 2, 5, reply, ended, &err), &err);
    free(reply[0]);
    free(reply[1]);
    es_choice c[] = {{"two", "It is", {" good", " bad indeed"}, 2, 1}, {"one", "", {"so it is"}, 1, 0}};
    double logp[16];
    int tokens[16];
    assert_ok(es_bench_choices(&b, NULL, c, 2, logp, tokens, &err), &err);
    assert_true(logp[0] < 0 && logp[1] < logp[0] / 50 && isnan(logp[2]) && logp[8] < 0 && tokens[1] > tokens[0]);
    es_set_close(&uncut, &wide);
    es_bench_close(&wide);
    es_set_close(&direct, &b);
    es_set_close(&pairs, &b);
    es_set_close(&text, &b);
    es_bench_close(&b);
    es_experiences_free(&e);
}

static const es_message ASK[] = {{"user", "Is it so?"}};

static void adapt(void **s)
{
    (void)s;
    es_error err;
    es_task task[2];
    es_task_split split = {3, 2, 7};
    assert_ok(es_task_load(&task[0], write_task("first.jsonl", 16, false), "first", &split, &err), &err);
    assert_ok(es_task_load(&task[1], write_task("second.jsonl", 30, true), "second", &split, &err), &err);
    const es_task *both[] = {&task[0], &task[1]};
    es_eval_spec spec[3];
    static const char *const NAMES[] = {"none", "features", "loose=free"};
    for (int i = 0; i < 3; i++) {
        assert_ok(es_eval_spec_new(&spec[i], NAMES[i], &err), &err);
        spec[i].o.rank = 2;
        spec[i].o.basis_size = 12;
        spec[i].n_rate = i ? 2 : 0;
        spec[i].rate[0] = 0.02;
        spec[i].rate[1] = 0.005;
    }
    spec[1].basis_pairs = 2;
    spec[1].signs = true;
    es_eval_text neutral[9];
    for (int i = 0; i < 9; i++)
        neutral[i] = i < 6 ? (es_eval_text){.text = "a neutral text of some length"} : (es_eval_text){"It is so.", ASK, 1, false};
    es_choice choice[] = {{"pair", "", {"this is so", "is so this"}, 2, 0}, {"one", "it is", {" so"}, 1, 0}};
    const char *work = test_path("work.jsonl");
    es_eval_options o = es_eval_default();
    o = (es_eval_options){.task = both, .n_task = 2, .spec = spec, .n_spec = 3, .size = {2, 4}, .n_size = 2, .garbage = {0, 0.5}, .n_garbage = 2,
                          .garbage_kind = {ES_GARBAGE_SWAP, ES_GARBAGE_OFF_TOPIC}, .n_garbage_kind = 2, .orders = 2, .at = {1, 3}, .n_at = 2, .harm = 10,
                          .neutral = neutral, .n_neutral = 9, .raw_tokens = 30, .chat_tokens = 12, .choice = choice, .n_choice = 2, .choice_size = 4, .choice_orders = 1,
                          .behaviour_orders = 1, .behaviour_replies = 1, .behaviour_tokens = 4, .max_prompt = 40, .max_reply = 16, .threads = 1, .seed = 3, .work = work};
    assert_ok(es_eval_adapt(model, dictionary, NULL, &o, NULL, &err), &err);
    es_buf first = {0}, second = {0}, text = {0};
    test_read(&first, work);
    assert_ok(es_eval_adapt(model, dictionary, NULL, &o, NULL, &err), &err);
    test_read(&second, work);
    assert_int_equal(first.len, second.len); /* nothing was run again */
    test_write(work, first.data, first.len - 30);
    assert_ok(es_eval_adapt(model, dictionary, NULL, &o, NULL, &err), &err);

    static const char *const COMPARED[] = {"features", "loose"};
    json_t *rows, *ratios;
    assert_ok(es_eval_rows(work, COMPARED, 2, &rows, &err), &err);
    assert_int_equal(json_array_size(rows), 2 * 3 * 2 * 3 * 2); /* tasks, methods, sizes, clean and two kinds, orders */
    int equal = 0, off = 0, choices = 0, replies = 0;
    size_t i;
    json_t *r;
    json_array_foreach(rows, i, r) {
        bool none = !strcmp(json_string_value(json_object_get(r, "method")), "none");
        double kl = json_number_value(json_object_get(r, "kl"));
        assert_true(none ? kl == 0 : kl > 0);
        assert_true(none || json_integer_value(json_object_get(r, "tokens")) > 0);
        assert_non_null(json_object_get(r, "kl_chat"));
        equal += json_is_number(json_object_get(r, "kl_at_equal"));
        off += json_is_number(json_object_get(r, "kl_off"));
        choices += json_is_object(json_object_get(r, "choice"));
        replies += json_is_object(json_object_get(r, "behaviour"));
    }
    assert_true(equal > 0);
    assert_int_equal(off, 36);     /* one task has an off-domain set */
    assert_int_equal(choices, 18); /* order 0, the larger size */
    assert_int_equal(replies, 36); /* order 0 */
    assert_ok(es_eval_table(rows, &text, &err), &err);
    assert_non_null(strstr(text.data, "| first | 4 | 50 % swap | `loose` |"));
    assert_non_null(strstr(text.data, "| all tasks | 2 | none | `features` |"));
    assert_non_null(strstr(text.data, "| second | 0 | none | `base` |"));
    assert_ok(es_eval_ratios(rows, "features", COMPARED + 1, 1, 1, &ratios, &err), &err);
    assert_true(json_array_size(ratios) > 0);
    assert_ok(es_eval_ratios_text(ratios, &text, &err), &err);
    assert_ok(es_eval_svg(rows, &text, &err), &err);
    assert_non_null(strstr(text.data, "<polyline"));
    assert_ok(es_eval_braille(rows, 20, 5, &text, &err), &err);
    json_decref(ratios);
    json_decref(rows);

    volatile bool cancel = true;
    es_progress p = {.cancel = &cancel};
    o.seed = 4;
    assert_int_equal(es_eval_adapt(model, dictionary, NULL, &o, &p, &err), ES_ERR_CANCELLED);
    o.size[1] = 40;
    assert_error(es_eval_adapt(model, dictionary, NULL, &o, NULL, &err), &err, "pool");
    o.n_at = 0;
    assert_error(es_eval_adapt(model, dictionary, NULL, &o, NULL, &err), &err, "sense");
    es_buf_free(&first);
    es_buf_free(&second);
    es_buf_free(&text);
    es_task_free(&task[0]);
    es_task_free(&task[1]);
}

static void add_row(es_buf *b, const char *task, const char *method, int order, double m, double kl, double dnll, double share)
{
    es_buf_printf(b, "{\"key\":\"%s%s%d%g\",\"is\":\"run\",\"task\":\"%s\",\"method\":\"%s\",\"experiences\":8,\"order\":%d,\"garbage\":%g,\"garbage_kind\":%s,\"path\":["
                     "{\"step\":1,\"margin\":%g,\"kl\":%g,\"dnll\":%g},{\"step\":2,\"margin\":%g,\"kl\":%g,\"dnll\":%g}]}\n",
                  task, method, order, share, task, method, order, share, share > 0 ? "\"swap\"" : "null", m / 2, kl / 4, dnll / 2, m, kl, dnll);
}

/* Paths whose equal margins and ratios can be told in advance: margin m, KL a margin^2, d(nll) b margin. */
static void reading(void **s)
{
    (void)s;
    es_error err;
    es_buf b = {0};
    for (int task = 0; task < 2; task++)
        for (int order = 0; order < 2; order++) {
            const char *name = task ? "t2" : "t1";
            add_row(&b, name, "own", order, 0.4, 0.02 * 0.16, 0.1 * 0.4, 0);
            add_row(&b, name, "other", order, 0.2, 0.08 * 0.04, 0.25 * 0.2, 0);
            add_row(&b, name, "own", order, 0.1, 0.02 * 0.16, 0.1 * 0.4, 0.5);
        }
    test_write(test_path("rows.jsonl"), b.data, b.len);
    static const char *const COMPARED[] = {"own", "other"};
    json_t *rows, *ratios, *r;
    assert_ok(es_eval_rows(test_path("rows.jsonl"), COMPARED, 2, &rows, &err), &err);
    r = json_array_get(rows, 0);
    assert_true(fabs(json_number_value(json_object_get(r, "equal_margin")) - 0.2) < 1e-9);
    assert_true(fabs(json_number_value(json_object_get(r, "kl_at_equal")) - 0.02 * 0.04) < 1e-9);
    assert_true(fabs(json_number_value(json_object_get(r, "dnll_at_equal")) - 0.1 * 0.2) < 1e-9);
    assert_true(fabs(json_number_value(json_object_get(r, "margin_at_equal_kl")) - 0.4) < 1e-9);
    assert_true(json_is_null(json_object_get(json_array_get(rows, 2), "equal_margin"))); /* nothing to compare with under garbage */
    assert_ok(es_eval_ratios(rows, "own", COMPARED + 1, 1, 1, &ratios, &err), &err);
    size_t i;
    int seen = 0;
    json_array_foreach(ratios, i, r) {
        const char *what = json_string_value(json_object_get(r, "what"));
        double ratio = json_number_value(json_object_get(r, "ratio")), low = json_number_value(json_object_get(r, "low"));
        if (json_number_value(json_object_get(r, "garbage")) > 0 && strcmp(what, "margin_kept"))
            continue;
        double want = !strcmp(what, "dnll_at_equal") ? 0.4 : !strcmp(what, "kl_at_equal") ? 0.25 : !strncmp(what, "margin_at_equal_kl", 18) ? 2 : !strcmp(what, "margin_at_equal_dnll") ? 2.5 : !strcmp(what, "margin_kept") ? 0.25 : NAN;
        if (isnan(want))
            continue;
        assert_true(fabs(ratio - want) < 1e-9 && fabs(low - want) < 1e-9); /* no spread: the interval is a point */
        seen++;
    }
    assert_int_equal(seen, 6);
    json_decref(rows);
    json_decref(ratios);
    es_buf_free(&b);
    double x[] = {1, 2, 3}, mean, half = es_eval_t95(x, 3, &mean);
    assert_true(mean == 2 && fabs(half - 4.303 / sqrt(3)) < 1e-9);
    assert_true(isnan(es_eval_t95(x, 1, &mean)));
}

/* Features whose labels are a task's words rank it first, by the side that their sign says; random ones rank nothing far from chance. */
static void readable(void **s)
{
    (void)s;
    es_error err;
    static const char *const ABOUT[] = {"polite and friendly", "code with underscores", "formal register"};
    static const char *const GOOD[] = {"thank you kindly", "def my_value", "it is therefore so"}, *const BAD[] = {"shut up idiot", "def myValue", "yeah dude gonna"};
    es_task task[3] = {{.name = "a"}, {.name = "b"}, {.name = "c"}};
    const es_task *all[3];
    for (int t = 0; t < 3; t++) {
        snprintf(task[t].about, sizeof task[t].about, "%s", ABOUT[t]);
        for (int i = 0; i < 12; i++)
            fix_experience(&task[t].pool, "Is it?", GOOD[t], BAD[t]);
        all[t] = &task[t];
    }
    static const char *const token[] = {" dude", " yeah"};
    const es_readable_feature noise[] = {{1, "rivers and mountains", NULL, 0}, {1, "numbers", NULL, 0}, {1, "thanking", NULL, 0}, {1, "insults such as idiot", NULL, 0},
                                         {1, "underscores in names", NULL, 0}, {1, "therefore", NULL, 0}, {1, NULL, token, 2}, {1, "polite requests", NULL, 0}};
    const es_readable_feature polite[] = {{2, "thanks and politeness", NULL, 0}, {-1, "idiots", NULL, 0}, {0.3, "rivers", NULL, 0}};
    const es_readable_feature formal[] = {{-2, NULL, token, 2}, {0.5, "mountains", NULL, 0}};
    const es_readable_feature wrong[] = {{2, NULL, token, 2}}; /* slang raised: not the formal task */
    double score[3];
    assert_ok(es_eval_readable(all, 3, polite, 3, noise, 8, score, &err), &err);
    assert_true(score[0] > score[1] && score[0] > score[2] && score[0] > 1);
    assert_ok(es_eval_readable(all, 3, formal, 2, noise, 8, score, &err), &err);
    assert_true(score[2] > score[0] && score[2] > score[1]);
    double right = score[2];
    assert_ok(es_eval_readable(all, 3, wrong, 1, noise, 8, score, &err), &err);
    assert_true(score[2] < right && score[2] < 1);
    assert_ok(es_eval_readable(all, 3, NULL, 0, noise, 8, score, &err), &err);
    assert_true(score[0] == 0 && score[1] == 0);
    for (int t = 0; t < 3; t++)
        es_task_free(&task[t]);
}

static void sequence(void **s)
{
    (void)s;
    es_error err;
    es_task task[3];
    es_task_split split = {3, 2, 7};
    assert_ok(es_task_load(&task[0], write_task("s1.jsonl", 14, false), "s1", &split, &err), &err);
    assert_ok(es_task_load(&task[1], write_task("s2.jsonl", 30, true), "s2", &split, &err), &err);
    split.seed = 9;
    assert_ok(es_task_load(&task[2], test_path("s1.jsonl"), "s3", &split, &err), &err);
    const es_task *all[] = {&task[0], &task[1], &task[2]};
    es_eval_spec spec[2];
    assert_ok(es_eval_spec_new(&spec[0], "features", &err), &err);
    assert_ok(es_eval_spec_new(&spec[1], "loose=free", &err), &err);
    spec[0].basis_pairs = 2;
    for (int i = 0; i < 2; i++) {
        spec[i].o.rank = 2;
        spec[i].o.basis_size = 12;
        spec[i].n_rate = 1;
        spec[i].rate[0] = 0.01;
    }
    es_eval_text neutral[6];
    for (int i = 0; i < 6; i++)
        neutral[i] = i % 2 ? (es_eval_text){.text = "a neutral text of some length"} : (es_eval_text){"It is so.", ASK, 1, false};
    const char *work = test_path("sequence.jsonl");
    es_sequence_options o = {.task = all, .n_task = 3, .spec = spec, .n_spec = 2, .experiences = 2, .steps = 2, .orders = 1, .neutral = neutral, .n_neutral = 6,
                             .raw_tokens = 10, .chat_tokens = 6, .max_prompt = 40, .max_reply = 16, .threads = 1, .seed = 2, .work = work};
    assert_ok(es_eval_sequence(model, dictionary, NULL, &o, NULL, &err), &err);
    es_buf first = {0}, second = {0}, text = {0};
    test_read(&first, work);
    assert_ok(es_eval_sequence(model, dictionary, NULL, &o, NULL, &err), &err);
    test_read(&second, work);
    assert_int_equal(first.len, second.len);
    json_t *rows;
    assert_ok(es_sequence_rows(work, &rows, &err), &err);
    assert_int_equal(json_array_size(rows), 6);
    for (int t = 0; t < 3; t++) {
        json_t *r = json_array_get(rows, (size_t)t);
        assert_int_equal(json_integer_value(json_object_get(r, "place")), t);
        assert_true(json_is_number(json_object_get(r, "margin_undone")) && json_is_number(json_object_get(r, "largest_change_by_undoing_another")));
    }
    assert_ok(es_sequence_table(rows, &text, &err), &err);
    assert_non_null(strstr(text.data, "| `loose` | 0 | s3 |"));
    json_decref(rows);
    o.experiences = 40;
    assert_error(es_eval_sequence(model, dictionary, NULL, &o, NULL, &err), &err, "pool");
    o.n_task = 1;
    assert_error(es_eval_sequence(model, dictionary, NULL, &o, NULL, &err), &err, "two");
    es_buf_free(&first);
    es_buf_free(&second);
    es_buf_free(&text);
    for (int t = 0; t < 3; t++)
        es_task_free(&task[t]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tasks), cmocka_unit_test(garbage), cmocka_unit_test(behaviour), cmocka_unit_test(specs),
        cmocka_unit_test(bench), cmocka_unit_test(adapt),   cmocka_unit_test(reading), cmocka_unit_test(readable), cmocka_unit_test(sequence),
    };
    model = open_tiny(NULL);
    dictionary = fix_dictionary(model, "dictionary", 3);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    es_dictionary_free(dictionary);
    es_model_free(model);
    return failed;
}
