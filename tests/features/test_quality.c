/* What a dictionary is worth: a probe finds the feature that was planted, absorption the feature that was planted to absorb, steering the direction that the
 * pairs ask for; probe and absorption beside numpy (tests/golden/make_quality.py). */
#include <stdio.h>
#include <unistd.h>

#include "dictionary_eval.h"
#include "fixture.h"

static json_t *golden(const char *part)
{
    es_error err;
    json_t *v = NULL, *whole;
    assert_ok(es_json_file(&whole, test_golden("quality.json"), &err), &err);
    v = json_incref(json_object_get(whole, part));
    json_decref(whole);
    assert_non_null(v);
    return v;
}

/* Rows of numbers, one after another; the caller's. */
static float *numbers(json_t *v, size_t *n)
{
    float *out = malloc(sizeof *out * 4096);
    *n = 0;
    size_t i, j;
    json_t *row, *x;
    json_array_foreach(v, i, row) {
        if (json_is_number(row))
            out[(*n)++] = (float)json_number_value(row);
        json_array_foreach(row, j, x)
            out[(*n)++] = (float)json_number_value(x);
    }
    return out;
}

static es_dictionary *dictionary_of(const char *name, int d, int F, const float *enc, const float *dec, const float *b_enc, const float *b_dec, int layer)
{
    es_error err;
    es_dictionary *s = NULL;
    char hook[64];
    snprintf(hook, sizeof hook, "blocks.%d.hook_resid_post", layer);
    float *zero = es_calloc((size_t)(F + d), sizeof *zero);
    json_t *meta = json_pack("{s:s,s:s}", "model_name", "tiny", "hook_name", hook);
    assert_ok(es_dictionary_save(test_path("%s", name), d, F, enc, dec, b_enc ? b_enc : zero, b_dec ? b_dec : zero, 0, false, meta, &err), &err);
    assert_ok(es_dictionary_open(&s, test_path("%s", name), &err), &err);
    json_decref(meta);
    free(zero);
    return s;
}

/* A sparse row for each call; rows come in order. */
static void put_row(es_sparse *s, const int *index, const float *value, int n)
{
    if (!s->cap) {
        s->cap_rows = 2048;
        s->cap = 65536;
        s->start = es_calloc(s->cap_rows, sizeof *s->start);
        s->index = es_calloc(s->cap, sizeof *s->index);
        s->value = es_calloc(s->cap, sizeof *s->value);
    }
    size_t at = s->start[s->n_rows];
    for (int i = 0; i < n; i++, at++) {
        s->index[at] = index[i];
        s->value[at] = value[i];
    }
    s->start[++s->n_rows] = at;
}

/* ---- beside numpy ------------------------------------------------------------------------------------------------------------------- */

static void probe_as_numpy(void **state)
{
    (void)state;
    es_error err;
    json_t *g = golden("probe");
    size_t cells, n, d;
    float *x = numbers(json_object_get(g, "x"), &cells), *y = numbers(json_object_get(g, "y"), &n), *want = numbers(json_object_get(g, "w"), &d), w[16], b;
    uint8_t label[256];
    assert_int_equal(cells, n * d);
    for (size_t i = 0; i < n; i++)
        label[i] = y[i] != 0;
    assert_ok(es_probe_fit(x, label, n, d, w, &b, &err), &err);
    for (size_t j = 0; j < d; j++)
        assert_float_equal(w[j], want[j], 1e-3 * (1 + fabs((double)want[j])));
    assert_float_equal(b, json_number_value(json_object_get(g, "b")), 2e-3);
    memset(label, 1, n);
    assert_error(es_probe_fit(x, label, n, d, w, &b, &err), &err, "both classes");
    x[3] = NAN;
    label[0] = 0;
    assert_error(es_probe_fit(x, label, n, d, w, &b, &err), &err, "not a number");
    free(x);
    free(y);
    free(want);
    json_decref(g);
}

static void absorption_as_numpy(void **state)
{
    (void)state;
    json_t *g = golden("absorption"), *word;
    size_t n, d, cells, i, k;
    float *dec = numbers(json_object_get(g, "decoder"), &cells), *p = numbers(json_object_get(g, "p"), &d), *b_dec = numbers(json_object_get(g, "b_dec"), &n), buf[16];
    int F = (int)(cells / d), full = 0;
    es_dictionary *s = dictionary_of("absorbing", (int)d, F, dec, dec, NULL, b_dec, 1);
    json_array_foreach(json_object_get(g, "words"), i, word) {
        float *x = numbers(json_object_get(word, "x"), &n), *a = numbers(json_object_get(word, "acts"), &n);
        int index[64], active = 0, main[16], n_main = 0, top;
        float value[64];
        json_t *m;
        for (size_t j = 0; j < n; j++)
            if (a[j] > 0) {
                index[active] = (int)j;
                value[active++] = a[j];
            }
        json_array_foreach(json_object_get(word, "main"), k, m)
            main[n_main++] = (int)json_integer_value(m);
        es_sparse acts = {0};
        put_row(&acts, index, value, active);
        double fraction;
        bool is_full;
        es_absorption_of(s, x, &acts, 0, p, main, n_main, buf, &fraction, &is_full, &top);
        assert_float_equal(fraction, json_number_value(json_object_get(word, "fraction")), 1e-4);
        assert_int_equal(is_full, json_is_true(json_object_get(word, "full")));
        full += is_full;
        es_sparse_free(&acts);
        free(x);
        free(a);
    }
    assert_true(i > 20 && full > 3);
    es_dictionary_free(s);
    free(dec);
    free(p);
    free(b_dec);
    json_decref(g);
}

/* ---- planted ------------------------------------------------------------------------------------------------------------------------- */

enum { D = 16, F = 40, PLANTED = 23, ABSORBER = 31 };

/* 200 texts of two labels and 100 of none; feature PLANTED fires on label 0's and now and then elsewhere, the others at random. mixed: labels tell nothing. */
static void plant_concept(es_concepts *c, es_pooled *p, bool mixed)
{
    es_error err;
    es_rng rng;
    es_buf b = {0};
    es_rng_seed(&rng, 3);
    for (int i = 0; i < 300; i++)
        es_buf_printf(&b, i % 3 == 2 ? "{\"text\":\"%d\",\"label\":null}\n" : "{\"text\":\"%d\",\"label\":\"%s\"}\n", i, i % 3 ? "other" : "wanted");
    test_write(test_path("set.jsonl"), b.data, b.len);
    es_buf_free(&b);
    assert_ok(es_concepts_file(c, test_path("set.jsonl"), 0, 5, &err), &err);
    assert_int_equal(c->n, 300);
    *p = (es_pooled){.n = c->n, .d = D, .x = es_calloc((size_t)c->n * D, sizeof(float))};
    for (int i = 0; i < c->n; i++) {
        int index[F], n = 0;
        float value[F];
        bool wanted = mixed ? es_rng_uniform(&rng) < 0.3 : c->label[i] >= 0 && !strcmp(c->label_name[c->label[i]], "wanted");
        for (int f = 0; f < F; f++) {
            double chance = f != PLANTED ? 0.3 : wanted ? 0.95 : 0.03;
            if (es_rng_uniform(&rng) < chance) {
                index[n] = f;
                value[n++] = (float)(0.5 + es_rng_uniform(&rng));
            }
        }
        put_row(&p->acts, index, value, n);
        for (int j = 0; j < D; j++)
            p->x[i * D + j] = es_rng_normal(&rng) + (wanted && j == 4 ? 4 : 0);
    }
}

static void probes_find_a_planted_feature(void **state)
{
    (void)state;
    es_error err;
    es_concepts c;
    es_pooled p;
    es_concept_probe probe[3];
    int n;
    plant_concept(&c, &p, false);
    assert_ok(es_concepts_probe(&c, &p, F, probe, &n, &err), &err);
    assert_int_equal(n, 2); /* a set with texts of no concept: one probe a label */
    const es_concept_probe *q = strcmp(c.label_name[probe[0].label], "wanted") ? &probe[1] : &probe[0];
    assert_int_equal(q->train, 140);
    assert_int_equal(q->test, 60);
    assert_int_equal(q->n_feature, ES_PROBE_K);
    assert_int_equal(q->feature[0], PLANTED);
    for (int k = 0; k < ES_PROBE_KS; k++)
        assert_true(q->accuracy[k] > 0.88);
    assert_true(q->dense > 0.9);
    es_concepts_free(&c);
    es_pooled_free(&p);
    plant_concept(&c, &p, true);
    assert_ok(es_concepts_probe(&c, &p, F, probe, &n, &err), &err);
    for (int i = 0; i < n; i++)
        assert_true(probe[i].accuracy[0] < 0.7 && probe[i].dense < 0.7); /* where there is nothing to find */
    es_concepts_free(&c);
    es_pooled_free(&p);
}

/* Letters a to d along axes 0 to 3, each with a feature of its own; but in every fifth word of b ABSORBER fires instead, with b's direction in it. */
static void absorption_finds_a_planted_absorber(void **state)
{
    (void)state;
    es_error err;
    es_rng rng;
    es_rng_seed(&rng, 11);
    float dec[F * D] = {0};
    for (int f = 0; f < F; f++) {
        if (f < 4)
            dec[f * D + f] = 1;
        for (int j = 8; j < D && f >= 4; j++)
            dec[f * D + j] = es_rng_normal(&rng);
    }
    for (int j = 0; j < D; j++)
        dec[ABSORBER * D + j] = j == 1 ? 0.8f : j == 6 ? 0.6f : 0;
    es_dictionary *s = dictionary_of("letters", D, F, dec, dec, NULL, NULL, 1);
    enum { WORDS = 800 };
    es_pooled p = {.n = WORDS, .d = D, .x = es_calloc((size_t)WORDS * D, sizeof(float))};
    uint8_t letter[WORDS], test[WORDS];
    int absorbed = 0, of_b = 0;
    for (int i = 0; i < WORDS; i++) {
        letter[i] = (uint8_t)(i / 2 % 4);
        test[i] = i % 2;
        bool absorbs = letter[i] == 1 && i / 8 % 5 == 4;
        int index[4] = {absorbs ? ABSORBER : letter[i], 4 + (int)es_rng_below(&rng, 20)}, n = 2;
        float value[4] = {2.5f, (float)es_rng_uniform(&rng)};
        put_row(&p.acts, index, value, n);
        for (int j = 0; j < D; j++) {
            for (int a = 0; a < n; a++)
                p.x[i * D + j] += value[a] * dec[index[a] * D + j];
            p.x[i * D + j] += 0.1f * es_rng_normal(&rng);
        }
        absorbed += absorbs && test[i];
        of_b += letter[i] == 1 && test[i];
    }
    es_absorption out[26];
    int n;
    assert_ok(es_absorption_letters(s, &p, letter, test, out, &n, &err), &err);
    assert_int_equal(n, 4);
    for (int a = 0; a < 4; a++) {
        assert_int_equal(out[a].letter, 'a' + a);
        assert_int_equal(out[a].n_main, 1);
        assert_int_equal(out[a].main[0], a);
        assert_true(out[a].dense_f1 > 0.95);
        assert_true(out[a].positives > 90);
        assert_int_equal(out[a].absorber, a == 1 ? ABSORBER : -1);
        if (a != 1) {
            assert_true(out[a].full == 0 && out[a].fraction == 0);
            assert_true(out[a].sparse_f1 > 0.95);
        }
    }
    assert_float_equal(out[1].full, (double)absorbed / of_b, 0.02);
    assert_float_equal(out[1].fraction, (double)absorbed / of_b, 0.02);
    assert_true(out[1].sparse_f1 < 0.93);
    es_pooled_free(&p);
    es_dictionary_free(s);
}

static void nearest_rows(void **state)
{
    (void)state;
    es_error err;
    es_model *m = open_tiny(NULL);
    es_dictionary *s = fix_dictionary(m, "near", 4);
    int d = es_dictionary_get_info(s)->d;
    float *dec = malloc(sizeof *dec * FIX_F * (size_t)d);
    es_dictionary_rows(s, 0, FIX_F, dec);
    for (int j = 0; j < d; j++)
        dec[7 * d + j] = 2 * dec[3 * d + j] + 0.01f * dec[9 * d + j]; /* its length does not matter */
    memset(dec + 11 * d, 0, sizeof *dec * (size_t)d); /* counts nowhere */
    es_dictionary_free(s);
    s = dictionary_of("nearer", d, FIX_F, dec, dec, NULL, NULL, 1);
    double sum = 0;
    for (int i = 0; i < FIX_F; i++) {
        double best = -1, ii = 0;
        for (int j = 0; j < FIX_F; j++) {
            double ij = 0, jj = 0;
            ii = 0;
            for (int k = 0; k < d; k++) {
                ij += (double)dec[i * d + k] * dec[j * d + k];
                ii += (double)dec[i * d + k] * dec[i * d + k];
                jj += (double)dec[j * d + k] * dec[j * d + k];
            }
            if (j != i && jj > 0 && ii > 0)
                best = fmax(best, ij / sqrt(ii * jj));
        }
        sum += ii > 0 ? best : 0;
    }
    es_cosines c;
    assert_ok(es_cosines_measure(s, 0, 1, 2, &c, NULL, &err), &err);
    assert_int_equal(c.looked_at, FIX_F - 1);
    assert_int_equal(c.histogram[ES_COSINE_BINS - 1], 2);
    assert_float_equal(c.over_90, 2.0 / (FIX_F - 1), 1e-9);
    assert_float_equal(c.mean, sum / (FIX_F - 1), 1e-5);
    assert_ok(es_cosines_measure(s, 10, 1, 1, &c, NULL, &err), &err);
    assert_in_range(c.looked_at, 9, 10);
    free(dec);
    es_dictionary_free(s);
    es_model_free(m);
}

/* ---- on the tiny model -------------------------------------------------------------------------------------------------------------------- */

static void pools_what_the_model_computes(void **state)
{
    (void)state;
    es_error err;
    es_model *m = open_tiny(NULL);
    es_dictionary *s = fix_dictionary(m, "pooled", 4);
    size_t d = (size_t)es_dictionary_get_info(s)->d;
    enum { N = 40 };
    es_ids text[N] = {0};
    for (int i = 0; i < N; i++) {
        char t[400];
        snprintf(t, sizeof t, "text %d %.*s", i, 7 * i, "of which some are rather long and go on about nothing in particular for ever and ever, while others end at once; "
                                                          "and this one is longer than what is looked at of any of them, which is one hundred and twenty-eight tokens, so "
                                                          "that its end counts for nothing");
        assert_ok(es_tokenize_text(m, t, i ? strlen(t) : 1, &text[i], &err), &err);
    }
    assert_true(text[N - 1].n > ES_POOL_TOKENS && text[0].n == 1);
    es_trainer *t = NULL;
    assert_ok(es_trainer_open(&t, m, &(es_trainer_options){.max_tokens = 256, .threads = 1}, &err), &err);
    for (int how = 0; how < 2; how++) {
        es_pooled p = {0};
        assert_ok(es_pooled_make(&p, m, s, text, N, how ? ES_POOL_LAST : ES_POOL_MEAN, 2, "reading", NULL, &err), &err);
        assert_int_equal(p.acts.n_rows, N);
        for (int i = 0; i < N; i++) {
            int n = text[i].n < ES_POOL_TOKENS ? (int)text[i].n : ES_POOL_TOKENS, start[2] = {0, n}, from = how ? n - 1 : 1;
            float *h = malloc(sizeof *h * (size_t)n * d);
            double act[FIX_F] = {0}, seen = 0;
            es_sparse a = {0};
            assert_ok(es_trainer_residual(t, &(es_batch){.ids = text[i].id, .n = n, .start = start, .n_seq = 1}, FIX_LAYER, h, NULL, &err), &err);
            assert_ok(es_dictionary_encode(s, NULL, h, n, &a, &err), &err);
            if (n == 1) { /* nothing counts */
                assert_true(p.acts.start[i] == p.acts.start[i + 1] && p.x[(size_t)i * d] == 0);
                from = n;
            }
            for (size_t j = 0; j < d && from < n; j++) {
                double mean = 0;
                for (int q = from; q < n; q++)
                    mean += (double)h[(size_t)q * d + j] / (n - from);
                assert_float_equal(p.x[(size_t)i * d + j], mean, 1e-4);
            }
            for (int q = from; q < n; q++)
                for (size_t k = a.start[q]; k < a.start[q + 1]; k++)
                    act[a.index[k]] += (double)a.value[k] / (n - from);
            for (size_t k = p.acts.start[i]; k < p.acts.start[i + 1]; k++) {
                assert_float_equal(p.acts.value[k], act[p.acts.index[k]], 1e-4);
                seen++;
            }
            for (int f = 0; f < FIX_F; f++)
                seen -= act[f] > 0;
            assert_true(seen == 0);
            es_sparse_free(&a);
            free(h);
        }
        es_pooled_free(&p);
    }
    for (int i = 0; i < N; i++)
        es_ids_free(&text[i]);
    es_trainer_free(t);
    es_dictionary_free(s);
    es_model_free(m);
}

static const es_neutral_text NEUTRAL[] = {{.text = "The river rose in the spring."}, {.text = "Nothing is said here of any of it."}, {.text = "A third one."},
                                          {.text = "And a fourth, which is longer than the third one was."}};

static es_task task_of(void)
{
    es_task t = {.name = "short", .hash = "abc"};
    static const char *const ASK[] = {"How are you?", "What is two and two?", "Name a colour.", "Where is it?", "Who?", "What now?"};
    for (int i = 0; i < 6; i++) {
        fix_experience(&t.pool, ASK[i], "Yes.", "Perhaps it is so.");
        fix_experience(i % 2 ? &t.dev : &t.held, ASK[5 - i], "Yes.", "Perhaps it is so.");
    }
    return t;
}

static es_steer_options steering(void)
{
    es_steer_options o = es_steer_default();
    o.neutral = NEUTRAL;
    o.n_neutral = sizeof NEUTRAL / sizeof *NEUTRAL;
    o.kl = 50;
    o.degenerate = 1;
    o.replies = 2;
    o.reply_tokens = 6;
    return o;
}

static void steers_along_a_planted_feature(void **state)
{
    (void)state;
    es_error err;
    es_model *m = open_tiny(NULL);
    es_dictionary *s = fix_dictionary(m, "before", 9);
    int d = es_dictionary_get_info(s)->d;
    es_task t = task_of();
    float *g = es_calloc((size_t)t.pool.n * (size_t)d, sizeof *g), *w = es_calloc((size_t)(FIX_F * d), sizeof *w), b_enc[FIX_F] = {0};
    assert_ok(es_attribute(m, s, &t.pool, 1, g, NULL, &err), &err);
    es_dictionary_rows(s, 0, FIX_F, w);
    es_dictionary_free(s);
    memset(w + PLANTED * d, 0, sizeof *w * (size_t)d);
    for (int i = 0; i < t.pool.n; i++)
        for (int j = 0; j < d; j++)
            w[PLANTED * d + j] -= g[i * d + j]; /* against what the pairs ask for: its sign must be found */
    b_enc[PLANTED] = 1e3f;                      /* it fires everywhere */
    s = dictionary_of("steers", d, FIX_F, w, w, b_enc, NULL, FIX_LAYER);
    es_steer_options o = steering();
    es_steering out;
    assert_ok(es_steer_measure(m, s, &t, &o, &out, NULL, &err), &err);
    assert_int_equal(out.n_way, ES_STEER_WAYS);
    assert_true(out.median > 0);
    const es_steered *one = &out.way[0], *many = &out.way[1], *random = &out.way[2], *gradient = &out.way[3];
    assert_int_equal(one->n_feature, 1);
    assert_int_equal(one->feature[0], PLANTED);
    assert_true(one->weight[0] < 0);
    assert_int_equal(many->n_feature, ES_STEER_FEATURES);
    assert_int_equal(many->feature[0], PLANTED);
    assert_int_equal(random->n_feature, ES_STEER_FEATURES);
    assert_int_equal(gradient->n_feature, 0);
    assert_true(one->chosen >= 0 && one->margin > 0 && one->success > 0.5);
    assert_true(one->point[0].margin > 0 && one->point[1].margin > one->point[0].margin);
    assert_true(one->point[1].kl > one->point[0].kl && one->point[0].kl > 0);
    for (int i = 0; i < one->n_point; i++) /* the planted feature is the gradient */
        assert_float_equal(one->point[i].margin, gradient->point[i].margin, 1e-3 + 0.01 * fabs(gradient->point[i].margin));
    assert_true(random->point[0].margin < one->point[0].margin);
    o.kl = one->point[0].kl * 1.5; /* a bound that the second strength is over ends the ladder there */
    assert_true(one->point[1].kl > o.kl);
    assert_ok(es_steer_measure(m, s, &t, &o, &out, NULL, &err), &err);
    assert_int_equal(out.way[0].n_point, 2);
    assert_int_equal(out.way[0].chosen, 0);
    assert_false(out.way[0].point[1].allowed);
    o.n_strength = 0;
    assert_error(es_steer_measure(m, s, &t, &o, &out, NULL, &err), &err, "strengths");
    es_task_free(&t);
    es_dictionary_free(s);
    es_model_free(m);
    free(g);
    free(w);
}

static void goes_on_where_it_was(void **state)
{
    (void)state;
    es_error err;
    es_model *m = open_tiny(NULL);
    es_dictionary *s = fix_dictionary(m, "resumed", 4);
    es_task t = task_of();
    es_buf b = {0}, first = {0}, second = {0};
    char file[512], set[512], work[512];
    for (int i = 0; i < 60; i++)
        es_buf_printf(&b, "{\"text\":\"%s number %d of many\",\"label\":\"%s\"}\n", i % 2 ? "this" : "that one", i, i % 2 ? "this" : "that");
    snprintf(file, sizeof file, "%s", test_path("held-out.jsonl"));
    snprintf(set, sizeof set, "%s", test_path("own.jsonl"));
    snprintf(work, sizeof work, "%s", test_path("work.jsonl"));
    test_write(file, b.data, b.len);
    test_write(set, b.data, b.len);
    es_dictionary_eval o = es_dictionary_eval_default();
    const char *files[] = {file}, *sets[] = {set};
    o.file = files;
    o.n_file = 1;
    o.concepts = sets;
    o.n_concepts = 1;
    o.tokens = 500;
    o.task = &t;
    o.n_task = 1;
    o.steer = steering();
    o.work = work;
    o.threads = 1;
    json_t *out = NULL, *again = NULL;
    assert_ok(es_dictionary_evaluate(m, s, &o, NULL, &out, &err), &err);
    json_t *own = json_array_get(json_object_get(json_object_get(out, "probes"), "sets"), 6);
    assert_string_equal(json_string_value(json_object_get(own, "set")), "own.jsonl");
    assert_int_equal(json_array_size(json_object_get(own, "concepts")), 1); /* two labels that take in everything: one probe */
    assert_true(json_number_value(json_object_get(own, "dense")) > 0.9);
    assert_non_null(json_object_get(json_array_get(json_object_get(json_object_get(out, "probes"), "sets"), 0), "skipped"));
    assert_non_null(json_object_get(json_object_get(out, "absorption"), "skipped")); /* the tiny vocabulary has no words */
    assert_true(json_number_value(json_object_get(json_object_get(out, "stats"), "fvu")) > 0);
    test_read(&first, work);
    assert_ok(es_dictionary_evaluate(m, s, &o, NULL, &again, &err), &err); /* nothing is left to do */
    assert_true(json_equal(out, again));
    json_decref(again);
    test_read(&second, work);
    assert_int_equal(first.len, second.len);
    test_write(work, first.data, first.len - 20); /* a kill cut the last line: that piece is measured again, to the same figures */
    assert_ok(es_dictionary_evaluate(m, s, &o, NULL, &again, &err), &err);
    assert_true(json_equal(out, again));
    json_decref(again);
    es_buf_clear(&second);
    test_read(&second, work);
    assert_int_equal(first.len, second.len);
    o.seed = 2; /* other texts, other pieces */
    o.parts = ES_PART_COSINES;
    assert_ok(es_dictionary_evaluate(m, s, &o, NULL, &again, &err), &err);
    es_buf_clear(&second);
    test_read(&second, work);
    assert_true(second.len > first.len);
    o.parts = ES_PART_STATS;
    o.n_file = 0;
    json_decref(again);
    assert_error(es_dictionary_evaluate(m, s, &o, NULL, &again, &err), &err, "needs a file");
    assert_null(again);
    json_decref(out);
    es_buf_free(&b);
    es_buf_free(&first);
    es_buf_free(&second);
    es_task_free(&t);
    es_dictionary_free(s);
    es_model_free(m);
}

/* ---- sets ------------------------------------------------------------------------------------------------------------------------------------- */

static void reads_sets(void **state)
{
    (void)state;
    es_error err;
    es_concepts c;
    static const char facts[] = "statement,label\nWater is wet.,1\n\"Paris, of all towns, is \"\"big\"\".\",1\nThe sun is cold.,0\n\"Two, three.\",0";
    assert_ok(es_dir_make(test_path("data/concepts"), &err), &err);
    test_write(test_path("data/concepts/facts_true_false.csv"), facts, sizeof facts - 1);
    assert_ok(es_concepts_public(&c, test_path("data"), "facts", 0, 1, &err), &err);
    int found = 0, yes = 0;
    assert_int_equal(c.n, 4);
    for (int i = 0; i < c.n; i++) {
        found += !strcmp(c.text[i], "Paris, of all towns, is \"big\".") || !strcmp(c.text[i], "Two, three.");
        yes += !strcmp(c.label_name[c.label[i]], "true");
    }
    assert_true(found == 2 && yes == 2);
    es_concepts_free(&c);
    test_write(test_path("data/concepts/facts_true_false.csv"), "statement,label\nno label\n", 25);
    assert_error(es_concepts_public(&c, test_path("data"), "facts", 0, 1, &err), &err, ":2:");
    test_write(test_path("data/concepts/facts_true_false.csv"), "statement,label\n\"never closed,1\n", 31);
    assert_error(es_concepts_public(&c, test_path("data"), "facts", 0, 1, &err), &err, ":2:");
    assert_int_equal(es_concepts_public(&c, test_path("data"), "languages", 0, 1, &err), ES_ERR_MISSING);
    assert_error(es_concepts_public(&c, test_path("data"), "nonsense", 0, 1, &err), &err, "nonsense");
    test_write(test_path("bad.jsonl"), "{\"text\":\"a\",\"label\":3}\n", 23);
    assert_error(es_concepts_file(&c, test_path("bad.jsonl"), 0, 1, &err), &err, "bad.jsonl:1");
    test_write(test_path("bad.jsonl"), "{\"text\":\"a\",\"label\":\"x\",\"set\":\"dev\"}\n", 37);
    assert_error(es_concepts_file(&c, test_path("bad.jsonl"), 0, 1, &err), &err, "no set");
    test_write(test_path("bad.jsonl"), "{\"text\":\"a\",\"label\":\"x\",\"set\":\"test\"}\n{\"text\":\"b\"}\n", 51);
    assert_error(es_concepts_file(&c, test_path("bad.jsonl"), 0, 1, &err), &err, "some do not");
    es_buf b = {0};
    for (int i = 0; i < 100; i++) /* 90 of x, 10 of y */
        es_buf_printf(&b, "{\"text\":\"%d\",\"label\":\"%s\"}\n", i, i % 10 ? "x" : "y");
    test_write(test_path("many.jsonl"), b.data, b.len);
    es_buf_free(&b);
    assert_ok(es_concepts_file(&c, test_path("many.jsonl"), 40, 1, &err), &err);
    int of[2] = {0}, test = 0;
    for (int i = 0; i < c.n; i++) {
        of[c.label_name[c.label[i]][0] == 'y']++;
        test += c.test[i];
    }
    assert_true(c.n == 40 && of[1] == 10 && test == 12); /* the large label gives way */
    es_concepts_free(&c);
}

/* The public sets and the real model, where both are. */
static void on_the_real_ones(void **state)
{
    (void)state;
    es_error err;
    const char *path = test_real_model(), *data = test_data(), *source = getenv("ESPALIER_SOURCE");
    char folder[1200];
    snprintf(folder, sizeof folder, "%s/data/dictionaries/smollm2-135m-l14", source ? source : "");
    if (!path || !data || access(folder, R_OK) != 0)
        skip();
    es_model *m = NULL;
    es_dictionary *s = NULL;
    json_t *out = NULL;
    assert_ok(es_model_open(&m, path, &err), &err);
    assert_ok(es_dictionary_open(&s, folder, &err), &err);
    es_dictionary_eval o = es_dictionary_eval_default();
    o.parts = ES_PART_PROBES | ES_PART_ABSORPTION;
    o.data = data;
    o.texts = 60;
    assert_ok(es_dictionary_evaluate(m, s, &o, NULL, &out, &err), &err);
    json_t *mean = json_object_get(json_object_get(out, "probes"), "mean"), *a = json_object_get(out, "absorption");
    assert_true(json_number_value(json_object_get(mean, "dense")) > 0.6);
    assert_true(json_number_value(json_object_get(mean, "k5")) > 0.55);
    assert_true(json_array_size(json_object_get(a, "letters")) > 10);
    assert_true(json_number_value(json_object_get(a, "dense_f1")) > 0.6);
    json_decref(out);
    es_dictionary_free(s);
    es_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probe_as_numpy),
        cmocka_unit_test(absorption_as_numpy),
        cmocka_unit_test(probes_find_a_planted_feature),
        cmocka_unit_test(absorption_finds_a_planted_absorber),
        cmocka_unit_test(nearest_rows),
        cmocka_unit_test(pools_what_the_model_computes),
        cmocka_unit_test(steers_along_a_planted_feature),
        cmocka_unit_test(goes_on_where_it_was),
        cmocka_unit_test(reads_sets),
        cmocka_unit_test(on_the_real_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
