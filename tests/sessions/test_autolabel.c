/* What an automatic label is made of: answers read, figures, windows as text, prompts, the work file and the budget; and the whole with answers that are made up
 * here. tests/cli/test_autolabel.sh has a server answer. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "autolabel_scores.h"
#include "autolabel_windows.h"
#include "dictionary.h"
#include "prompts.h"
#include "support.h"

static es_error err;

/* ---- answers ---------------------------------------------------------------------------------------------------------------------------- */

static void labels(void **state)
{
    (void)state;
    static const struct { const char *answer, *label; } c[] = {
        {"LABEL: dogs", "dogs"}, {"I think.\n\nLabel: \"**big  dogs.**\"\nthat is it", "big dogs"}, {"LABEL: a\nLABEL: b", "b"}, {"some words\nthe last line.\n\n", "the last line"},
        {"LABEL:\n  on the next line\nmore", "on the next line"}, {"LABEL: \x1b[2J red\ttape", "[2J red tape"}, {"[dogs]", "dogs"}, {"LABEL: U.S. law.", "U.S. law"},
        {"", NULL}, {" \n\n", NULL}, {"LABEL:", NULL}, {"LABEL: \"...\"", NULL}, {"na\xc3\xafve", "na\xc3\xafve"},
    };
    es_buf b = {0};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        assert_int_equal(es_answer_label(c[i].answer, &b), c[i].label != NULL);
        assert_string_equal(b.data, c[i].label ? c[i].label : "");
    }
    char longer[3000];
    for (int i = 0; i < 2998; i += 2)
        memcpy(longer + i, "\xc3\xa9", 3);
    assert_true(es_answer_label(longer, &b));
    assert_true(b.len <= ES_AUTO_LABEL_MAX && b.len > ES_AUTO_LABEL_MAX - 2 && es_utf8_whole(b.data, b.len) == b.len);
    es_buf_free(&b);
}

static void judgements(void **state)
{
    (void)state;
    bool out[5] = {0};
    static const struct { const char *answer; int n; const char *says; } c[] = {
        {"[1, 0, 1]", 3, "101"}, {"First [1,1,1] no: [0,0,1].", 3, "001"}, {"[1 0 1]", 3, "101"}, {"```\n[0,\n1]\n```", 2, "01"}, {"[1,0,1] and [x]", 3, "101"},
        {"[1,0]", 3, NULL}, {"[1,0,1,1]", 3, NULL}, {"1,0,1", 3, NULL}, {"[1,0,1", 3, NULL}, {"[1,0,2]", 3, NULL}, {"[10,1]", 2, NULL}, {"[0.5,1]", 2, NULL}, {"", 1, NULL}, {"[]", 1, NULL}, {"[[[[", 1, NULL},
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        assert_int_equal(es_answer_judgements(c[i].answer, c[i].n, out), c[i].says != NULL);
        for (int k = 0; c[i].says && k < c[i].n; k++)
            assert_int_equal(out[k], c[i].says[k] == '1');
    }
}

static json_t *rows(const char *text) /* a token a character but for digits' runs of two; a digit may also be 2 higher at a third of its probability */
{
    json_t *list = json_array();
    for (const char *p = text; *p; p++) {
        char one[3] = {p[0]}, other[3] = {(char)(p[0] + 2)};
        json_t *top = json_pack("[[s,f]]", one, log(0.6));
        if (*p >= '0' && *p <= '7')
            json_array_append_new(top, json_pack("[s,f]", other, log(0.2)));
        json_array_append_new(top, json_pack("[s,f]", "word", log(0.2)));
        json_array_append_new(list, json_pack("{s:s,s:o}", "token", one, "top", top));
    }
    return list;
}

static void activations(void **state)
{
    (void)state;
    double x[3];
    json_t *r = rows("1: 4\n2:0\n 3 : 9");
    assert_true(es_answer_activations(r, 3, x));
    assert_float_equal(x[0], 4.5, 1e-9); /* (0.6 * 4 + 0.2 * 6) / 0.8 */
    assert_float_equal(x[1], 0.5, 1e-9);
    assert_float_equal(x[2], 9, 1e-9);
    json_decref(r);
    r = rows("well:\n1: 10\n2: 3 or so\n");
    assert_true(es_answer_activations(r, 2, x));
    assert_float_equal(x[0], 10, 0); /* in two tokens: no expectation of its first half */
    assert_float_equal(x[1], 3.5, 1e-9);
    json_decref(r);
    static const char *const bad[] = {"1: 4\n3: 5\n", "1: 4", "", "1: x\n2: 3", "1: 11\n2: 3", "1: 100\n2: 3", "1:\n2: 3", "2: 3\n1: 4"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        r = rows(bad[i]);
        assert_false(es_answer_activations(r, 2, x));
        json_decref(r);
    }
    assert_false(es_answer_activations(NULL, 2, x));
    r = json_pack("[{s:s,s:[]},{s:s}]", "token", "1: 4", "top", "token", "\n2: 3");
    assert_false(es_answer_activations(r, 2, x)); /* no alternatives */
    json_decref(r);
}

static void figures(void **state)
{
    (void)state;
    es_tally t = {0};
    assert_true(isnan(es_tally_balanced(&t)) && isnan(es_tally_f1(&t)));
    for (int i = 0; i < 10; i++) /* 8 of 10 active ones are found, 4 of 10 silent ones taken for active */
        es_tally_add(&t, true, i < 8), es_tally_add(&t, false, i < 4);
    assert_float_equal(es_tally_balanced(&t), 0.7, 1e-12);
    assert_float_equal(es_tally_f1(&t), 16.0 / 22, 1e-12); /* sklearn.metrics.f1_score: 0.7272... */
    double x[] = {1, 2, 3, 4, 5}, y[] = {2, 1, 4, 3, 7}, z[] = {1, 1, 1, 1, 1};
    assert_float_equal(es_correlation(x, y, 5), 0.82416338, 1e-7); /* numpy.corrcoef */
    assert_float_equal(es_correlation(x, x, 5), 1, 1e-12);
    assert_true(isnan(es_correlation(x, z, 5)) && isnan(es_correlation(x, y, 1)) && isnan(es_correlation(NULL, NULL, 0)));
}

/* ---- windows and prompts ------------------------------------------------------------------------------------------------------------------ */

static void text_of_windows(void **state)
{
    (void)state;
    es_model *m = open_tiny(NULL);
    es_ids ids = {0};
    const char *text = "a <<b>> c\nd \xc3\xa9!";
    assert_ok(es_tokenize(m, text, strlen(text), false, &ids, &err), &err);
    float value[64] = {0};
    bool mark[64] = {0};
    es_window w = {(int)ids.n, ids.id, value, 4};
    es_buf b = {0};
    es_window_text(&b, m, &w, NULL);
    assert_string_equal(b.data, "a <\xe2\x80\xb9" "b>\xe2\x80\xba c\xe2\x86\xb5" "d \xc3\xa9!"); /* nobody else's marks */
    es_buf_clear(&b);
    int first = -1;
    for (size_t i = 0; i < ids.n; i++) { /* the character of two bytes, of which the tiny model makes two tokens: marked on its second only */
        size_t n;
        const char *s = es_token_bytes(m, ids.id[i], &n);
        if (n == 1 && s[0] == '\xa9')
            first = (int)i;
    }
    assert_true(first > 0);
    value[0] = 1.3f;
    value[1] = 0.9f;
    value[first] = 4;
    es_window_marks(&w, mark);
    assert_true(mark[0] && !mark[1] && mark[first]); /* 0.3 of 4 is 1.2 */
    es_window_text(&b, m, &w, mark);
    assert_memory_equal(b.data, "<<a>> ", 6);
    assert_int_equal(es_utf8_whole(b.data, b.len), b.len);
    assert_null(strstr(b.data, "\xef\xbf\xbd"));
    es_buf_clear(&b);
    es_window_tokens(&b, m, &w);
    assert_memory_equal(b.data, "1: a\n2: ", 8);
    size_t lines = 1;
    for (size_t i = 0; i < b.len; i++)
        lines += b.data[i] == '\n';
    assert_int_equal(lines, ids.n);
    assert_int_equal(es_utf8_whole(b.data, b.len), b.len);
    es_buf_free(&b);
    es_ids_free(&ids);
    es_model_free(m);
}

static void prompts(void **state)
{
    (void)state;
    json_t *p = NULL, *full;
    const char *own = test_path("own"), *shipped = test_path("shipped"), *wants[] = {"a", NULL};
    assert_ok(es_dir_make(own, &err), &err);
    assert_ok(es_dir_make(shipped, &err), &err);
    static const char text[] = "about it\r\n=== system\r\nBe brief.\n\n=== user\n\n  one {a}{b} {c} {\n\n=== assistant\nyes {a}\n=== user\n{a}";
    test_write(test_path("shipped/x.txt"), text, sizeof text - 1);
    assert_ok(es_prompt_load(&p, "x", own, shipped, wants, &err), &err);
    es_prompt_value v[] = {{"a", "{b}"}, {"b", "2"}};
    full = es_prompt_fill(p, v, 2);
    assert_int_equal(json_array_size(full), 4);
    assert_string_equal(json_string_value(json_object_get(json_array_get(full, 0), "content")), "Be brief.");
    assert_string_equal(json_string_value(json_object_get(json_array_get(full, 1), "content")), "  one {b}2 {c} {"); /* a value is only text */
    assert_string_equal(json_string_value(json_object_get(json_array_get(full, 2), "role")), "assistant");
    json_decref(full);
    json_decref(p);
    test_write(test_path("own/x.txt"), "=== user\nmine {a}", 17);
    assert_ok(es_prompt_load(&p, "x", own, shipped, wants, &err), &err);
    assert_int_equal(json_array_size(p), 1);
    json_decref(p);
    assert_error(es_prompt_load(&p, "y", own, shipped, wants, &err), &err, "y.txt");
    es_buf big = {0};
    for (int i = 0; i < 40; i++)
        es_buf_str(&big, "=== user\n{a}\n");
    test_write(test_path("own/x.txt"), big.data, big.len);
    assert_error(es_prompt_load(&p, "x", own, shipped, wants, &err), &err, "more than");
    es_buf_free(&big);
    /* those that come with the program */
    char folder[1200];
    snprintf(folder, sizeof folder, "%s/data/prompts", getenv("ESPALIER_SOURCE") ? getenv("ESPALIER_SOURCE") : ".");
    static const char *const names[] = {"explain", "detect", "fuzz", "simulate"};
    for (int i = 0; i < 4; i++) {
        assert_ok(es_prompt_load(&p, names[i], NULL, folder, (const char *const[]){i == 3 ? "tokens" : "examples", NULL}, &err), &err);
        json_decref(p);
    }
}

/* ---- the whole, with answers made up here --------------------------------------------------------------------------------------------------- */

typedef struct oracle { /* says what it was told to, 1 to every text, and 0 and 3 by turns to tokens */
    es_answerer base;
    int asked, fail_after;
    const char *explain;
} oracle;

static int oracle_run(es_answerer *a, const es_asking *who, const es_progress *progress, es_error *e)
{
    oracle *o = (oracle *)a;
    es_question q = {0};
    int rc;
    (void)progress;
    while ((rc = who->next(who->user, &q, e)) == 1) {
        const char *text = json_string_value(json_object_get(json_array_get(q.messages, json_array_size(q.messages) - 1), "content"));
        es_buf b = {0};
        es_answer r = {.prompt_tokens = 7, .answer_tokens = 3};
        es_error why = {0};
        bool fails = o->fail_after && o->asked++ >= o->fail_after;
        if (strstr(text, "Tokens (")) {
            int n = atoi(strstr(text, "Tokens (") + 8);
            r.logprobs = json_array();
            for (int i = 0; i < n; i++) {
                char line[32];
                snprintf(line, sizeof line, "%d: ", i + 1);
                json_array_append_new(r.logprobs, json_pack("{s:s,s:[[s,f]]}", "token", line, "top", line, -0.1));
                json_array_append_new(r.logprobs, json_pack("{s:s,s:[[s,f]]}", "token", i % 2 ? "3" : "0", "top", i % 2 ? "3" : "0", -0.1));
                json_array_append_new(r.logprobs, json_pack("{s:s,s:[[s,f]]}", "token", "\n", "top", "\n", -0.1));
            }
        } else if (strstr(text, "Texts (")) {
            int n = atoi(strstr(text, "Texts (") + 7);
            es_buf_str(&b, "[");
            for (int i = 0; i < n; i++)
                es_buf_printf(&b, "%s1", i ? "," : "");
            es_buf_str(&b, "]");
        } else {
            es_buf_str(&b, o->explain);
        }
        es_buf_add(&b, "", 0);
        r.text = b.data;
        if (fails)
            es_fail(&why, ES_ERR_IO, "no answer today");
        rc = who->done(who->user, &q, fails ? NULL : &r, fails ? &why : NULL, e);
        json_decref(r.logprobs);
        es_buf_free(&b);
        es_question_clear(&q);
        if (rc)
            return rc;
    }
    return rc;
}

static void oracle_free(es_answerer *a) { (void)a; }

enum { F = 64, D = 64, LAYER = 1 };
static es_model *model;
static es_dictionary *dictionary;
static es_atlas *atlas;

static int set_up(void **state)
{
    (void)state;
    es_rng rng;
    float *w = calloc(F * D, sizeof *w), *zero = calloc(F + D, sizeof *zero);
    es_rng_seed(&rng, 9);
    for (int i = 0; i < F * D; i++)
        w[i] = es_rng_normal(&rng) / 8;
    json_t *meta = json_pack("{s:s, s:s}", "model_name", "Tiny", "hook_name", "blocks.1.hook_resid_post");
    model = open_tiny(NULL);
    assert_ok(es_dictionary_save(test_path("dictionary"), D, F, w, w, zero, zero, 1.5f, false, meta, &err), &err);
    assert_ok(es_dictionary_open(&dictionary, test_path("dictionary"), &err), &err);
    json_decref(meta);
    free(w);
    free(zero);
    es_buf text = {0};
    static const char *const words[] = {"the cat", "sat on", "a mat", "and looked", "at the moon", "for a while", "then it", "went home"};
    for (int i = 0; i < 120; i++) {
        es_buf_str(&text, "{\"text\":\"");
        for (int k = 0; k < 16; k++)
            es_buf_printf(&text, "%s ", words[es_rng_below(&rng, 8)]);
        es_buf_str(&text, "\"}\n");
    }
    test_write(test_path("texts.jsonl"), text.data, text.len);
    es_buf_free(&text);
    es_harvest_options h = es_harvest_default();
    int layer = LAYER;
    h.layer = &layer;
    h.n_layer = 1;
    h.context = 64;
    const char *file = test_path("texts.jsonl");
    assert_ok(es_harvest(model, &file, 1, test_path("harvest"), &h, NULL, &err), &err);
    es_atlas_options o = es_atlas_default();
    assert_ok(es_atlas_build(model, dictionary, test_path("harvest"), test_path("atlas.esa"), &o, NULL, &err), &err);
    assert_ok(es_atlas_open(&atlas, test_path("atlas.esa"), &err), &err);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    es_atlas_free(atlas);
    es_dictionary_free(dictionary);
    es_model_free(model);
    return 0;
}

typedef struct seen { int n, stored, scored; es_label_score score[ES_LABEL_SCORES]; int n_score; char why[200]; } seen;

static void take(void *user, const es_autolabel_result *r)
{
    seen *s = user;
    s->n++;
    s->stored += r->stored;
    s->scored += r->n_score > 0;
    if (r->n_score) {
        memcpy(s->score, r->score, sizeof s->score);
        s->n_score = r->n_score;
    }
    if (r->why)
        snprintf(s->why, sizeof s->why, "%s", r->why);
}

/* Features of which the atlas has enough. */
static int lively(int *out, int most)
{
    int n = 0;
    for (int f = 0; f < F && n < most; f++) {
        es_feature_card c;
        if (es_atlas_card(atlas, f, &c, &err) == ES_OK && c.n_example >= 10)
            out[n++] = f;
    }
    return n;
}

static void the_whole(void **state)
{
    (void)state;
    int feature[20], n = lively(feature, 20);
    char shipped[1200];
    snprintf(shipped, sizeof shipped, "%s/data/prompts", getenv("ESPALIER_SOURCE") ? getenv("ESPALIER_SOURCE") : ".");
    assert_true(n >= 10);
    es_workspace *w;
    seen s = {0};
    oracle o = {.base = {"oracle", "oracle", oracle_run, oracle_free}, .explain = "LABEL: the first kind"};
    es_budget budget = {.price_prompt = 2, .price_answer = 10};
    es_work *work;
    es_autolabel_options options = {.shipped = shipped, .scores = ES_SCORE_DETECTION | ES_SCORE_FUZZING | ES_SCORE_SIMULATION, .seed = 3, .threads = 1};
    assert_ok(es_workspace_open(&w, test_path("whole.db"), &err), &err);
    const char *hash = es_dictionary_get_info(dictionary)->hash;
    assert_ok(es_workspace_label_set(w, hash, feature[1], "mine", "tag", 4, "ann", &err), &err);
    assert_ok(es_work_open(&work, test_path("work.jsonl"), &err), &err);
    es_autolabel a = {w, model, dictionary, atlas, "auto:oracle", take, &s};
    assert_ok(es_autolabel_run(&a, feature, n, &o.base, work, &budget, &options, NULL, &err), &err);
    assert_int_equal(s.n, n);
    assert_int_equal(s.stored, n - 1);
    assert_string_equal(s.why, "has a label of ann");
    assert_int_equal(es_workspace_label_count(w, hash), n);
    assert_true(budget.requests > n && budget.prompt_tokens == 7 * budget.requests && budget.kept == 0);
    assert_float_equal(es_budget_money(&budget), (double)budget.requests * (7 * 2 + 3 * 10) / 1e6, 1e-12);
    /* who says 1 to everything is right on half, and no more; F1 = 2/3 */
    bool found[4] = {0};
    for (int i = 0; i < s.n_score; i++) {
        const es_label_score *x = &s.score[i];
        if (!strcmp(x->kind, "detection"))
            assert_float_equal(x->value, 0.5, 1e-9), found[0] = true;
        if (!strcmp(x->kind, "detection_f1"))
            assert_float_equal(x->value, 2.0 / 3, 1e-9), found[1] = true;
        if (!strcmp(x->kind, "fuzzing"))
            assert_float_equal(x->value, 0.5, 1e-9), found[2] = true;
        if (!strcmp(x->kind, "simulation"))
            assert_true(fabs(x->value) < 1), found[3] = true;
    }
    assert_true(found[0] && found[1] && found[2] && found[3]);
    es_label l;
    assert_ok(es_workspace_label_get(w, hash, feature[1], &l, &err), &err);
    assert_string_equal(l.text, "mine");
    es_label_free(&l);
    assert_ok(es_workspace_label_get(w, hash, feature[0], &l, &err), &err);
    assert_string_equal(l.author, "auto:oracle");
    es_label_free(&l);
    es_label_score got[ES_LABEL_SCORES];
    int k;
    assert_ok(es_workspace_scores(w, hash, feature[0], got, ES_LABEL_SCORES, &k, &err), &err);
    assert_int_equal(k, 5);
    assert_ok(es_workspace_scores(w, hash, feature[1], got, ES_LABEL_SCORES, &k, &err), &err);
    assert_int_equal(k, 0);
    assert_int_equal(es_work_count(work), 0); /* what it began with */
    es_work_close(work);

    /* another label of the oracle's: the scores are the new one's, and a person's word ends them */
    o.explain = "LABEL: the second kind";
    options.again = true;
    options.scores = 0;
    s = (seen){0};
    assert_ok(es_autolabel_run(&a, feature, 1, &o.base, NULL, NULL, &options, NULL, &err), &err);
    assert_ok(es_workspace_scores(w, hash, feature[0], got, ES_LABEL_SCORES, &k, &err), &err);
    assert_int_equal(k, 0);
    bool stored;
    es_label_score one = {.kind = "detection", .value = 0.9, .n = 20};
    assert_ok(es_workspace_label_auto(w, hash, feature[0], "the second kind", "auto:other", &one, 1, &stored, &err), &err);
    assert_true(stored);
    assert_ok(es_workspace_scores(w, hash, feature[0], got, ES_LABEL_SCORES, &k, &err), &err);
    assert_true(k == 1 && got[0].value == 0.9 && got[0].n == 20);
    assert_ok(es_workspace_label_set(w, hash, feature[0], "what it is", NULL, -1, "ann", &err), &err);
    assert_ok(es_workspace_scores(w, hash, feature[0], got, ES_LABEL_SCORES, &k, &err), &err);
    assert_int_equal(k, 0);
    assert_ok(es_workspace_label_auto(w, hash, feature[0], "no", "auto:other", &one, 1, &stored, &err), &err);
    assert_false(stored);
    assert_error(es_workspace_label_auto(w, hash, 2, "x", "ann", NULL, 0, &stored, &err), &err, "no author");
    assert_error(es_autolabel_run(&a, (int[]){F}, 1, &o.base, NULL, NULL, &options, NULL, &err), &err, "no feature");
    assert_ok(es_workspace_check(w, &err), &err);
    es_workspace_close(w);
}

/* The same questions whoever asks: the work file answers all of them, also what a run that failed had. */
static void goes_on(void **state)
{
    (void)state;
    int feature[8], n = lively(feature, 8);
    char shipped[1200];
    snprintf(shipped, sizeof shipped, "%s/data/prompts", getenv("ESPALIER_SOURCE") ? getenv("ESPALIER_SOURCE") : ".");
    es_workspace *w;
    seen s = {0};
    oracle o = {.base = {"oracle", "oracle", oracle_run, oracle_free}, .explain = "LABEL: a kind"};
    es_budget few = {.max_requests = 9}, many = {0}, none = {0};
    es_work *work, *second;
    es_autolabel_options options = {.shipped = shipped, .scores = ES_SCORE_DETECTION, .seed = 3, .threads = 1};
    assert_ok(es_workspace_open(&w, test_path("on.db"), &err), &err);
    es_autolabel a = {w, model, dictionary, atlas, "auto:oracle", take, &s};
    assert_ok(es_work_open(&work, test_path("on.jsonl"), &err), &err);
    assert_error(es_work_open(&second, test_path("on.jsonl"), &err), &err, "another espalier");
    assert_int_equal(es_autolabel_run(&a, feature, n, &o.base, work, &few, &options, NULL, &err), ES_ERR_LIMIT);
    assert_int_equal(few.requests, 9);
    es_work_close(work);
    assert_ok(es_work_open(&work, test_path("on.jsonl"), &err), &err);
    assert_int_equal(es_work_count(work), 9);
    assert_ok(es_autolabel_run(&a, feature, n, &o.base, work, &many, &options, NULL, &err), &err);
    assert_true(many.kept > 0 && many.kept <= 9); /* those of features that were not done */
    es_work_close(work);
    assert_int_equal(s.stored, n);
    options.again = true;
    assert_ok(es_work_open(&work, test_path("on.jsonl"), &err), &err);
    assert_ok(es_autolabel_run(&a, feature, n, &o.base, work, &none, &options, NULL, &err), &err);
    assert_int_equal(none.requests, 0);
    es_work_close(work);
    /* answers that do not come are not labels */
    o.fail_after = 1;
    o.asked = 1;
    s = (seen){0};
    assert_ok(es_autolabel_run(&a, feature, n, &o.base, NULL, NULL, &options, NULL, &err), &err);
    assert_int_equal(s.stored, 0);
    assert_string_equal(s.why, "no answer today");
    o.fail_after = 0;
    o.explain = "the ends of common English idioms";
    s = (seen){0};
    assert_ok(es_autolabel_run(&a, feature, 1, &o.base, NULL, NULL, &options, NULL, &err), &err);
    assert_string_equal(s.why, "the answer repeats the prompt");
    o.explain = "I had to bite<< the bullet>> and";
    s = (seen){0};
    assert_ok(es_autolabel_run(&a, feature, 1, &o.base, NULL, NULL, &options, NULL, &err), &err);
    assert_string_equal(s.why, "the answer repeats the prompt");
    o.explain = "the bullet"; /* short enough to be meant */
    s = (seen){0};
    assert_ok(es_autolabel_run(&a, feature, 1, &o.base, NULL, NULL, &options, NULL, &err), &err);
    assert_int_equal(s.stored, 1);
    es_workspace_close(w);
}

/* The model that is open answers: within its context, the same each time, with probabilities that sum to at most 1. */
typedef struct one { int left, got; es_error why; double sum; char text[400]; } one;
static const char *ask_text;

static int one_next(void *user, es_question *out, es_error *e)
{
    (void)e;
    one *o = user;
    if (o->left-- <= 0)
        return 0;
    *out = (es_question){.messages = json_pack("[{s:s,s:s}]", "role", "user", "content", ask_text), .max_tokens = 6, .logprobs = true};
    return 1;
}

static int one_done(void *user, const es_question *q, const es_answer *a, const es_error *why, es_error *e)
{
    (void)q, (void)e;
    one *o = user;
    o->got += a != NULL;
    if (why)
        o->why = *why;
    json_t *top = a ? json_object_get(json_array_get(a->logprobs, 0), "top") : NULL, *x;
    size_t i;
    o->sum = 0;
    json_array_foreach(top, i, x)
        o->sum += exp(json_number_value(json_array_get(x, 1)));
    if (a)
        snprintf(o->text, sizeof o->text, "%s", a->text);
    return 0;
}

static void local_model(void **state)
{
    (void)state;
    es_answerer *l;
    one o = {.left = 2}, again = {.left = 1};
    ask_text = "what is the moon?";
    assert_ok(es_local_open(&l, model, 1, 0, &err), &err);
    assert_ok(es_ask(l, &(es_asking){one_next, one_done, &o}, NULL, NULL, NULL, &err), &err);
    assert_int_equal(o.got, 2);
    assert_true(o.sum > 0.05 && o.sum <= 1 + 1e-6);
    assert_ok(es_ask(l, &(es_asking){one_next, one_done, &again}, NULL, NULL, NULL, &err), &err);
    assert_string_equal(o.text, again.text);
    es_buf longer = {0};
    for (int i = 0; i < 2000; i++)
        es_buf_str(&longer, "moon ");
    ask_text = longer.data;
    o = (one){.left = 1};
    assert_ok(es_ask(l, &(es_asking){one_next, one_done, &o}, NULL, NULL, NULL, &err), &err);
    assert_int_equal(o.got, 0);
    assert_non_null(strstr(o.why.text, "do not fit"));
    es_buf_free(&longer);
    ask_text = "moon";
    volatile bool cancel = true;
    o = (one){.left = 1};
    assert_int_equal(es_ask(l, &(es_asking){one_next, one_done, &o}, NULL, NULL, &(es_progress){.cancel = &cancel}, &err), ES_ERR_CANCELLED);
    es_answerer_free(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(labels), cmocka_unit_test(judgements), cmocka_unit_test(activations), cmocka_unit_test(figures), cmocka_unit_test(text_of_windows),
        cmocka_unit_test(prompts), cmocka_unit_test(the_whole), cmocka_unit_test(goes_on), cmocka_unit_test(local_model),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
