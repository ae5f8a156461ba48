/* The methods that learn freely by gradient, as a chat and an evaluation see them; full fine-tuning's gate and its checkpoints. */
#include "fixture.h"
#include "method.h"
#include "weights.h"

#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static es_model *model;
static const char *const anchors[] = {"the cat sat on the mat", "one two three four five"};

static es_method_options options(es_method_kind k)
{
    es_method_options o = es_method_default(k);
    o.threads = 2;
    o.max_prompt = 64;
    o.max_reply = 24;
    o.max_new = 12;
    o.rate = k == ES_METHOD_FULL ? 3e-4 : 3e-3;
    if (o.rank)
        o.rank = 4;
    o.anchor_text = anchors;
    o.n_anchor = 2;
    return o;
}

static es_method *open_method(es_method_kind k, const es_method_options *o)
{
    es_error err;
    es_method *m = NULL;
    assert_ok(es_method_open(&m, k, model, o, &err), &err);
    assert_int_equal(es_method_get_kind(m), k);
    return m;
}

static void add_all(es_method *m)
{
    es_error err;
    es_experiences e = fix_experiences();
    for (int i = 0; i < e.n; i++)
        assert_ok(es_method_add(m, &e.item[i], NULL, &err), &err);
    es_experiences_free(&e);
}

/* Five of one kind: what four of them teach, the one that is held out gains from. */
static void add_alike(es_method *m)
{
    es_error err;
    es_experiences e = {0};
    for (int i = 0; i < 5; i++)
        fix_experience(&e, "How are you?", "Fine.", "I am very well, thank you.");
    for (int i = 0; i < e.n; i++)
        assert_ok(es_method_add(m, &e.item[i], NULL, &err), &err);
    es_experiences_free(&e);
}

static void logits_of(const es_variant *v, float *out)
{
    es_error err;
    es_context *c = NULL;
    es_context_options o = {.n_ctx = 16, .threads = 1, .exact = true};
    int32_t ids[] = {5, 70, 90, 100, 41};
    assert_ok(es_context_open(&c, v->model, &o, &err), &err);
    es_context_set_patch(c, &v->patch);
    assert_ok(es_context_feed(c, ids, 5, NULL, &err), &err);
    memcpy(out, es_context_logits(c), TINY_VOCAB * sizeof *out);
    es_context_free(c);
}

static void viewed(es_method *m, float *out)
{
    es_error err;
    es_variant v = {0};
    assert_ok(es_method_view(m, &v, &err), &err);
    logits_of(&v, out);
}

static double distance(const float *a, const float *b)
{
    double most = 0;
    for (int i = 0; i < TINY_VOCAB; i++)
        most = fmax(most, fabs((double)a[i] - b[i]));
    return most;
}

/* Replay: at equal steps less KL on neutral text, for the methods that have it in common. */
static void replay(void **s)
{
    (void)s;
    static const es_method_kind kinds[] = {ES_METHOD_LORA, ES_METHOD_FULL, ES_METHOD_FREE};
    for (int k = 0; k < 3; k++) {
        double kl[2];
        for (int with = 0; with < 2; with++) {
            es_error err;
            es_method_options o = options(kinds[k]);
            es_step_report r;
            es_variant v = {0};
            es_neutral n;
            es_neutral_text text[2] = {{.text = anchors[0]}, {.text = anchors[1]}};
            if (kinds[k] == ES_METHOD_FREE) {
                o.white = false;
                o.replay_text = text;
                o.n_replay = 2;
            }
            o.replay = with ? 0.9 : 0;
            es_method *m = open_method(kinds[k], &o);
            add_all(m);
            for (int i = 0; i < 10; i++)
                assert_ok(es_method_step(m, &r, NULL, &err), &err);
            assert_ok(es_method_view(m, &v, &err), &err);
            if (kinds[k] == ES_METHOD_FULL) { /* other weights: its own report tells */
                kl[with] = r.kl;
                assert_true(with ? r.kl > 0 : r.kl == 0);
            } else {
                assert_ok(es_eval_neutral(model, &v.patch, anchors, 2, 1, &n, NULL, &err), &err);
                kl[with] = n.kl;
            }
            es_method_free(m);
        }
        if (kinds[k] != ES_METHOD_FULL)
            assert_true(kl[1] < 0.7 * kl[0]);
    }
}

/* Opens, learns, shows what it learned; a copy stays as it was while the method goes on. */
static void check_method(es_method_kind k)
{
    es_error err;
    es_method_options o = options(k);
    es_step_report r;
    float base[TINY_VOCAB], now[TINY_VOCAB], kept[TINY_VOCAB], later[TINY_VOCAB];
    es_variant plain = {.model = model}, copy = {0};
    es_method *m = open_method(k, &o);
    assert_true(es_method_parameters(m) > 1000 && es_method_bytes(m) > 3 * es_method_parameters(m) * sizeof(float));
    assert_string_equal(es_method_note(m), "");
    assert_error(es_method_step(m, &r, NULL, &err), &err, "nothing to learn from");
    logits_of(&plain, base);
    viewed(m, now);
    assert_true(distance(base, now) < 1e-5);
    add_all(m);

    double first = 0, last = 0;
    int steps = k == ES_METHOD_SELF ? 40 : 15;
    for (int i = 0; i < steps; i++) {
        assert_ok(es_method_step(m, &r, NULL, &err), &err);
        assert_int_equal(r.step, i + 1);
        assert_true(r.tokens > 0 && r.seconds > 0 && isfinite(r.loss));
        if (i < 5)
            first += r.loss / 5;
        if (i >= steps - 5)
            last += r.loss / 5;
    }
    if (!(last < 0.8 * first))
        fail_msg("%s: loss %g in the last steps, %g in the first", es_method_name(k), last, first);
    viewed(m, now);
    assert_true(distance(base, now) > 0.01);
    assert_ok(es_method_copy(m, &copy, &err), &err);
    logits_of(&copy, kept);
    assert_true(distance(now, kept) == 0);

    /* An error or a cancel: what answers is as before. */
    bool cancel = true;
    es_message ask = {"user", "Hm?"};
    es_experience nothing = {.message = &ask, .n_message = 1, .weight = 1};
    assert_int_equal(es_method_step(m, &r, &cancel, &err), ES_ERR_CANCELLED);
    if (k != ES_METHOD_SELF)
        assert_error(es_method_add(m, &nothing, NULL, &err), &err, "preferred or a rejected");
    viewed(m, later);
    assert_true(distance(now, later) == 0);

    assert_ok(es_method_step(m, &r, NULL, &err), &err);
    viewed(m, later);
    assert_true(distance(now, later) > 1e-6);
    logits_of(&copy, later);
    assert_true(distance(kept, later) == 0);
    es_method_free(m);
    logits_of(&copy, later); /* the copy outlives the method */
    assert_true(distance(kept, later) == 0);
    es_variant_clear(&copy);

    o.memory = 10000;
    m = NULL;
    assert_int_equal(es_method_open(&m, k, model, &o, &err), ES_ERR_MEMORY);
    assert_error(err.code, &err, "needs");
    assert_null(m);
    o = options(k);
    o.rate = INFINITY;
    assert_error(es_method_open(&m, k, model, &o, &err), &err, "out of range");
}

static void test_lora(void **s) { (void)s; check_method(ES_METHOD_LORA); }
static void test_self(void **s) { (void)s; check_method(ES_METHOD_SELF); }
static void test_full(void **s) { (void)s; check_method(ES_METHOD_FULL); }

static void test_rank(void **state)
{
    (void)state;
    es_method_options o = options(ES_METHOD_LORA);
    o.rank = 2;
    es_method *a = open_method(ES_METHOD_LORA, &o);
    o.rank = 4;
    es_method *b = open_method(ES_METHOD_LORA, &o);
    assert_true(2 * es_method_parameters(a) == es_method_parameters(b));
    es_method_free(a);
    es_method_free(b);
    assert_int_equal(es_method_default(ES_METHOD_LORA).rank, 32);
}

/* ---- checkpoints ---------------------------------------------------------------------------------------------------------------- */

static bool there(const char *folder, const char *name)
{
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return access(path, F_OK) == 0;
}

static json_t *state_of(const char *folder)
{
    es_error err;
    json_t *j = NULL;
    char path[1200];
    snprintf(path, sizeof path, "%s/full.json", folder);
    assert_ok(es_json_file(&j, path, &err), &err);
    return j;
}

static int integer(json_t *o, const char *key)
{
    return (int)json_integer_value(json_object_get(o, key));
}

static const char *folder_of(const char *name)
{
    static char path[1100];
    snprintf(path, sizeof path, "%s", test_path("%s", name));
    return path;
}

static void write_in(const char *folder, const char *name, const char *text)
{
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    test_write(path, text, strlen(text));
}

static void test_gate(void **state)
{
    (void)state;
    es_error err;
    es_step_report r;
    es_method_options o = options(ES_METHOD_FULL);
    const char *folder = folder_of("gate");
    float base[TINY_VOCAB], now[TINY_VOCAB], kept[TINY_VOCAB];
    es_variant plain = {.model = model}, copy = {0};
    logits_of(&plain, base);
    o.checkpoints = folder;
    o.checkpoint_every = 8; /* four learn, one is held out: every second step */
    o.kappa = 1e-9;
    es_method *m = open_method(ES_METHOD_FULL, &o);
    assert_string_equal(es_method_note(m), "");
    add_alike(m);
    assert_ok(es_method_step(m, &r, NULL, &err), &err);
    assert_false(there(folder, "full.json"));
    assert_ok(es_method_step(m, &r, NULL, &err), &err);
    assert_string_equal(r.guard, "not released"); /* it moved, and nothing may */
    assert_non_null(strstr(es_method_note(m), "not released: "));
    viewed(m, now);
    assert_true(distance(base, now) == 0); /* the base model answers */
    assert_ok(es_method_copy(m, &copy, &err), &err);
    assert_true(copy.model == model);
    es_variant_clear(&copy);
    json_t *j = state_of(folder);
    assert_true(json_is_null(json_object_get(j, "released")) && integer(j, "latest") == 2 && integer(j, "experiences") == 8);
    json_t *line = json_array_get(json_object_get(j, "checkpoints"), 0);
    assert_true(json_is_false(json_object_get(line, "passed")) && integer(line, "held_out") == 1);
    assert_string_equal(json_string_value(json_object_get(line, "reason")), es_method_note(m));
    json_decref(j);
    assert_true(there(folder, "step-2.safetensors"));
    es_method_free(m);

    /* Resumed under a wider gate: it goes on where it was, and shows what passes. */
    write_in(folder, "step-77.safetensors", "left by a kill");
    write_in(folder, "step-4.safetensors.tmp-123", "left by a kill");
    write_in(folder, "step-9.safetensors.mine", "not ours");
    o.kappa = 10;
    m = open_method(ES_METHOD_FULL, &o);
    assert_non_null(strstr(es_method_note(m), "resumed after 2 steps on 8 experiences"));
    assert_false(there(folder, "step-77.safetensors") || there(folder, "step-4.safetensors.tmp-123"));
    assert_true(there(folder, "step-9.safetensors.mine"));
    add_alike(m);
    for (int i = 3; i <= 4; i++) {
        assert_ok(es_method_step(m, &r, NULL, &err), &err);
        assert_int_equal(r.step, i);
    }
    assert_string_equal(r.guard, "released");
    assert_true(r.kl > 0);
    viewed(m, now);
    assert_true(distance(base, now) > 1e-3);
    assert_ok(es_method_copy(m, &copy, &err), &err);
    logits_of(&copy, kept);
    assert_true(distance(now, kept) == 0 && copy.model != model);
    assert_ok(es_method_step(m, &r, NULL, &err), &err); /* between checkpoints nothing changes for the reader */
    viewed(m, kept);
    assert_true(distance(now, kept) == 0);
    j = state_of(folder);
    assert_true(integer(j, "released") == 4 && integer(j, "latest") == 4 && json_array_size(json_object_get(j, "checkpoints")) == 2);
    json_decref(j);
    assert_true(there(folder, "step-4.safetensors") && !there(folder, "step-2.safetensors"));

    /* A checkpoint that cannot be judged or written: an error, and what answers and is kept is as before. */
    bool cancel = true;
    assert_int_equal(es_method_step(m, &r, &cancel, &err), ES_ERR_CANCELLED);
    char path[1200];
    snprintf(path, sizeof path, "%s/step-6.safetensors", folder);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_error(es_method_step(m, &r, NULL, &err), &err, "folder");
    rmdir(path);
    viewed(m, kept);
    assert_true(distance(now, kept) == 0);
    assert_true(there(folder, "step-4.safetensors"));
    es_method_free(m);
    logits_of(&copy, kept);
    assert_true(distance(now, kept) == 0);
    es_variant_clear(&copy);

    /* The next one that is refused leaves the released one where it is, through a restart too. */
    o.kappa = 1e-9;
    m = open_method(ES_METHOD_FULL, &o);
    viewed(m, kept);
    assert_true(distance(now, kept) == 0);
    add_alike(m);
    assert_ok(es_method_step(m, &r, NULL, &err), &err);
    assert_ok(es_method_step(m, &r, NULL, &err), &err);
    assert_string_equal(r.guard, "not released");
    assert_true(there(folder, "step-4.safetensors") && there(folder, "step-6.safetensors"));
    viewed(m, kept);
    assert_true(distance(now, kept) == 0);
    es_method_free(m);
    m = open_method(ES_METHOD_FULL, &o);
    viewed(m, kept);
    assert_true(distance(now, kept) == 0);
    es_method_free(m);
}

/* What was resumed learns on as if it had never stopped (but for the rounding of the moments). */
static void test_resume(void **state)
{
    (void)state;
    es_error err;
    es_step_report a, b;
    es_method_options o = options(ES_METHOD_FULL), straight = o;
    o.checkpoints = folder_of("resume");
    o.checkpoint_every = 4 * 6;
    o.kappa = straight.kappa = 10;
    straight.checkpoints = test_path("straight");
    straight.checkpoint_every = 1000;
    es_method *m = open_method(ES_METHOD_FULL, &o), *s = open_method(ES_METHOD_FULL, &straight);
    add_all(m);
    add_all(s);
    for (int i = 0; i < 6; i++) {
        assert_ok(es_method_step(m, &a, NULL, &err), &err);
        assert_ok(es_method_step(s, &b, NULL, &err), &err);
        assert_true(a.loss == b.loss);
    }
    es_method_free(m);
    m = open_method(ES_METHOD_FULL, &o);
    add_all(m);
    for (int i = 0; i < 4; i++) {
        assert_ok(es_method_step(m, &a, NULL, &err), &err);
        assert_ok(es_method_step(s, &b, NULL, &err), &err);
        assert_int_equal(a.step, 7 + i);
        if (fabs(a.loss - b.loss) > (i ? 2e-3 : 1e-6))
            fail_msg("step %d: loss %.9g resumed, %.9g straight on", a.step, a.loss, b.loss);
    }
    es_method_free(m);
    es_method_free(s);
}

static void refuse(const es_method_options *o, int code, const char *part)
{
    es_error err;
    es_method *m = NULL;
    assert_int_equal(es_method_open(&m, ES_METHOD_FULL, model, o, &err), code);
    assert_error(err.code, &err, part);
    assert_null(m);
}

static void test_foreign(void **state)
{
    (void)state;
    es_error err;
    es_step_report r;
    es_method_options o = options(ES_METHOD_FULL);
    const char *folder = folder_of("foreign");
    o.checkpoints = folder;
    o.checkpoint_every = 1;
    o.kappa = 10;
    es_method *m = open_method(ES_METHOD_FULL, &o);
    add_all(m);
    assert_ok(es_method_step(m, &r, NULL, &err), &err);
    es_method_free(m);
    es_buf json = {0};
    char path[1200];
    snprintf(path, sizeof path, "%s/full.json", folder);
    test_read(&json, path);

    tiny_options other = tiny_default();
    other.seed = 9;
    es_model *mine = model;
    model = open_tiny(&other);
    refuse(&o, ES_ERR_MISMATCH, "learned from the model");
    es_model_free(model);
    model = mine;

    write_in(folder, "full.json", "{\"latest\": ");
    refuse(&o, ES_ERR_FORMAT, "full.json");
    write_in(folder, "full.json", "{}");
    refuse(&o, ES_ERR_FORMAT, "is not the state");
    write_in(folder, "full.json", "[1]");
    refuse(&o, ES_ERR_FORMAT, "is not the state");
    char *number = strstr(json.data, "\"latest\": 1");
    assert_non_null(number);
    number[10] = '7';
    write_in(folder, "full.json", json.data);
    refuse(&o, ES_ERR_MISSING, "step-7");
    number[10] = '1';
    write_in(folder, "full.json", json.data);
    m = open_method(ES_METHOD_FULL, &o); /* none of that removed anything */
    es_method_free(m);
    write_in(folder, "step-1.safetensors", "gone bad");
    refuse(&o, ES_ERR_FORMAT, "step-1");
    o.checkpoints = test_path("foreign/full.json");
    refuse(&o, ES_ERR_IO, "in the way");
    es_buf_free(&json);
}

/* Killed at any moment, it resumes from a whole checkpoint. */
static void test_kill(void **state)
{
    (void)state;
    es_error err;
    es_step_report r;
    es_method_options o = options(ES_METHOD_FULL);
    o.checkpoints = folder_of("kill");
    o.checkpoint_every = 1;
    o.kappa = 10;
    o.threads = 1;
    es_rng rng;
    es_rng_seed(&rng, 4);
    int last = 0;
    for (int round = 0; round < 6; round++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            es_method *m = NULL;
            es_experiences e = fix_experiences();
            bool ok = es_method_open(&m, ES_METHOD_FULL, model, &o, &err) == ES_OK;
            for (int i = 0; ok && i < e.n; i++)
                ok = es_method_add(m, &e.item[i], NULL, &err) == ES_OK;
            while (ok && es_method_step(m, &r, NULL, &err) == ES_OK)
                ;
            fprintf(stderr, "child: %s\n", err.text);
            _exit(3);
        }
        while (!there(o.checkpoints, "full.json") && waitpid(child, NULL, WNOHANG) == 0)
            usleep(1000);
        usleep(20000 + (useconds_t)es_rng_below(&rng, 60000));
        int status;
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        assert_true(WIFSIGNALED(status)); /* it had not stopped by itself */
        json_t *j = state_of(o.checkpoints);
        int latest = integer(j, "latest");
        json_decref(j);
        assert_true(latest >= last && latest > 0);
        es_method *m = open_method(ES_METHOD_FULL, &o);
        add_all(m);
        assert_ok(es_method_step(m, &r, NULL, &err), &err);
        assert_int_equal(r.step, latest + 1);
        last = latest + 1;
        es_method_free(m);
    }
}

static int setup(void **state)
{
    char hash[65];
    es_error err;
    (void)state;
    model = open_tiny(NULL);
    return es_model_hash(model, hash, &err);
}

static int teardown(void **state)
{
    (void)state;
    es_model_free(model);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lora), cmocka_unit_test(replay), cmocka_unit_test(test_self),   cmocka_unit_test(test_full),    cmocka_unit_test(test_rank),
        cmocka_unit_test(test_gate), cmocka_unit_test(test_resume), cmocka_unit_test(test_foreign), cmocka_unit_test(test_kill),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
