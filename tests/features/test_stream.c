/* Training without a harvest on disk: as good as from one, of several places at once, and after a kill it goes on where the text was. */
#include "features.h"
#include "support.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static es_model *model;
static char *text_path;
static const int layers[] = {1, 2};
static const es_hook_kind sites[] = {ES_HOOK_RESIDUAL, ES_HOOK_MLP_OUT};
enum { PLACES = 4 };

static int set_up(void **state)
{
    (void)state;
    model = open_tiny(NULL);
    es_buf b = {0};
    for (int i = 0; i < 150; i++)
        es_buf_printf(&b, "{\"text\":\"Document %d says %s and %d more things about %s, %d.\"}\n", i, i % 3 ? "little" : "a lot of words", i * i, i % 2 ? "the sea" : "a hill", 7 * i);
    text_path = strdup(test_path("some.jsonl"));
    test_write(text_path, b.data, b.len);
    es_buf_free(&b);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    es_model_free(model);
    free(text_path);
    return 0;
}

static es_stream stream(void)
{
    es_stream s = {.file = (const char *const *)&text_path, .n_file = 1, .reading = es_harvest_default(), .buffer = 2048};
    s.reading.layer = layers;
    s.reading.n_layer = 2;
    s.reading.site = sites;
    s.reading.n_site = 2;
    s.reading.context = 64;
    s.reading.threads = 1;
    s.reading.exact = true;
    return s;
}

static es_dictionary_training options(void)
{
    es_dictionary_training o = es_dictionary_training_default();
    o.n_features = 96;
    o.k = 8;
    o.aux_k = 16;
    o.batch = 256;
    o.tokens = 60000;
    o.threads = 1;
    o.half = false;
    return o;
}

static void place_of(int i, char name[32])
{
    es_hook_place_name((es_hook_place){layers[i / 2], sites[i % 2]}, name);
}

static double fvu(const char *folder, int *distinct)
{
    es_error err;
    es_dictionary *s = NULL;
    es_dictionary_stats st;
    char path[1300];
    json_t *cfg = NULL;
    assert_ok(es_dictionary_open(&s, folder, &err), &err);
    assert_ok(es_dictionary_check_model(s, model, &err), &err);
    assert_ok(es_dictionary_measure(model, s, (const char *const *)&text_path, 1, 4000, 1, &st, NULL, &err), &err);
    es_dictionary_free(s);
    snprintf(path, sizeof path, "%s/cfg.json", folder);
    assert_ok(es_json_file(&cfg, path, &err), &err);
    json_t *meta = json_object_get(cfg, "metadata");
    if (distinct)
        *distinct = (int)json_integer_value(json_object_get(meta, "distinct_tokens"));
    assert_string_equal(json_string_value(json_array_get(json_object_get(meta, "harvested_from"), 0)), "some.jsonl");
    json_decref(cfg);
    return st.fvu;
}

static void as_good_as_from_a_harvest(void **state)
{
    (void)state;
    es_error err;
    es_stream s = stream();
    es_dictionary_training o = options();
    es_hook_place place[PLACES];
    char name[32], *dir = strdup(test_path("streamed")), *harvest = strdup(test_path("harvest")), *other = strdup(test_path("harvested")), *once = strdup(test_path("once"));
    for (int i = 0; i < PLACES; i++)
        place[i] = (es_hook_place){layers[i / 2], sites[i % 2]};
    assert_ok(es_dictionary_train_stream(model, &s, dir, &o, NULL, &err), &err);
    assert_int_not_equal(access(test_path("streamed/stream.json"), F_OK), 0); /* goes with the end */
    assert_ok(es_harvest(model, s.file, 1, harvest, &s.reading, NULL, &err), &err);
    assert_ok(es_dictionary_train_places(harvest, place, PLACES, other, &o, NULL, &err), &err);
    o.tokens = 256; /* one step: what training must improve on */
    assert_ok(es_dictionary_train_places(harvest, place, PLACES, once, &o, NULL, &err), &err);
    for (int i = 0; i < PLACES; i++) {
        int distinct[2];
        char a[1200], b[1200], c[1200];
        place_of(i, name);
        snprintf(a, sizeof a, "%s/%s", dir, name);
        snprintf(b, sizeof b, "%s/%s", other, name);
        snprintf(c, sizeof c, "%s/%s", once, name);
        double streamed = fvu(a, &distinct[0]), harvested = fvu(b, &distinct[1]), untrained = fvu(c, NULL);
        print_message("%-16s FVU %.4f from a stream, %.4f from a harvest, %.4f after one step\n", name, streamed, harvested, untrained);
        assert_true(streamed < 1.2 * harvested && streamed < 0.6 * untrained);
        assert_int_equal(distinct[0], distinct[1]);
    }
    assert_error(es_dictionary_train_stream(model, &s, dir, &(es_dictionary_training){0}, NULL, &err), &err, NULL);
    o.tokens = 60000;
    assert_error(es_dictionary_train_stream(model, &s, dir, &o, NULL, &err), &err, "all its dictionaries are finished");
    free(dir);
    free(harvest);
    free(other);
    free(once);
}

static volatile bool cancel;
static double first_done = -1;
static int filling, fill_limit = 1 << 30;
static void watch_progress(void *user, const char *what, double done, double total, const char *unit)
{
    const double *stop_at = user;
    assert_string_equal(unit, "tokens");
    if (!strncmp(what, "filling", 7)) {
        if (++filling >= fill_limit)
            __atomic_store_n(&cancel, true, __ATOMIC_RELEASE);
        return;
    }
    assert_true(!strncmp(what, "train layer ", 12) && strstr(what, "fvu=") && strstr(what, "l0=") && strstr(what, "dead=") && total > 0);
    if (first_done < 0)
        first_done = done;
    if (done > *stop_at)
        __atomic_store_n(&cancel, true, __ATOMIC_RELEASE);
}

static void stopped_and_refused(void **state)
{
    (void)state;
    es_error err;
    es_stream s = stream();
    es_dictionary_training o = options();
    double stop_at = 100000, never = 1e18;
    char *dir = strdup(test_path("stopped"));
    es_progress p = {watch_progress, &stop_at, &cancel};
    o.tokens = 4000000; /* more than it will see */
    s.buffer = 8192;
    fill_limit = 2;
    assert_error(es_dictionary_train_stream(model, &s, dir, &o, &p, &err), &err, "while its buffer was filled");
    fill_limit = 1 << 30;
    cancel = false;
    assert_error(es_dictionary_train_stream(model, &s, dir, &o, &p, &err), &err, "goes on with it");
    cancel = false;
    json_t *v = NULL;
    assert_ok(es_json_file(&v, test_path("stopped/stream.json"), &err), &err);
    assert_true(json_integer_value(json_object_get(v, "pass")) >= 1); /* the text is shorter than what was read */
    assert_true(json_array_size(json_object_get(v, "norm_limit")) == PLACES);
    json_decref(v);

    s.buffer = 4096;
    assert_error(es_dictionary_train_stream(model, &s, dir, &o, NULL, &err), &err, "\"buffer\"");
    s.buffer = 8192;
    s.reading.n_site = 1;
    assert_error(es_dictionary_train_stream(model, &s, dir, &o, NULL, &err), &err, "\"places\"");
    s.reading.n_site = 2;
    o.k = 4;
    assert_error(es_dictionary_train_stream(model, &s, dir, &o, NULL, &err), &err, "other settings");
    o.k = 8;
    first_done = -1; /* goes on: not from the start */
    stop_at = 0;
    p.user = &stop_at;
    assert_error(es_dictionary_train_stream(model, &s, dir, &o, &p, &err), &err, "goes on with it");
    assert_true(first_done > 100000);
    cancel = false;

    o = options();
    p.user = &never;
    s.buffer = 511;
    assert_error(es_dictionary_train_stream(model, &s, test_path("small"), &o, NULL, &err), &err, "two batches");
    s.buffer = 2048;
    s.itself = true;
    assert_error(es_dictionary_train_stream(model, &s, test_path("small"), &o, NULL, &err), &err, "one folder");
    s.itself = false;
    char *empty = strdup(test_path("empty.jsonl"));
    test_write(empty, "{\"text\":\"\"}\n", 12);
    s.file = (const char *const *)&empty;
    assert_error(es_dictionary_train_stream(model, &s, test_path("none"), &o, NULL, &err), &err, "no text");
    test_write(test_path("stopped/stream.json"), "{\"format\":\"espalier-stream\"}", 28);
    s = stream();
    s.buffer = 8192;
    assert_error(es_dictionary_train_stream(model, &s, dir, &o, NULL, &err), &err, "another \"");
    free(empty);
    free(dir);
}

static void goes_on_after_kill_9(void **state)
{
    (void)state;
    es_error err;
    es_stream s = stream();
    es_dictionary_training o = options();
    char *dir = strdup(test_path("killed")), *at = strdup(test_path("killed/stream.json")), name[32], folder[1200];
    o.tokens = 400000;
    o.checkpoint_seconds = 0.02;
    for (int kills = 0; kills < 3; kills++) {
        struct stat before = {0}, now = {0};
        stat(at, &before);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            _exit(es_dictionary_train_stream(model, &s, dir, &o, NULL, NULL) ? 1 : 0);
        bool ended = false;
        for (int i = 0; i < 5000 && !(ended = waitpid(child, NULL, WNOHANG) != 0); i++) { /* until it has written a state of its own */
            usleep(2000);
            if (stat(at, &now) == 0 && now.st_ino != before.st_ino)
                break;
        }
        if (ended)
            skip(); /* a machine so fast that it was done before the kill */
        kill(child, SIGKILL);
        while (waitpid(child, NULL, 0) > 0)
            ;
    }
    assert_int_equal(access(at, F_OK), 0);
    assert_ok(es_dictionary_train_stream(model, &s, dir, &o, NULL, &err), &err);
    assert_int_not_equal(access(at, F_OK), 0);
    for (int i = 0; i < PLACES; i++) {
        place_of(i, name);
        snprintf(folder, sizeof folder, "%s/%s", dir, name);
        double left = fvu(folder, NULL);
        print_message("%-16s FVU %.4f after three kills\n", name, left);
        assert_true(left < 0.4);
        snprintf(folder, sizeof folder, "%s/%s/checkpoint", dir, name);
        assert_int_not_equal(access(folder, F_OK), 0);
    }
    free(dir);
    free(at);
}

static void plans(void **state)
{
    (void)state;
    es_error err;
    es_stream s = stream();
    es_dictionary_training o = options();
    es_training_plan small, large, one;
    assert_ok(es_dictionary_stream_plan(model, &s, &o, 2, &small, &err), &err);
    assert_true(small.seconds > 0 && small.tokens_per_second > 0 && small.disk > 0);
    s.buffer *= 4;
    assert_ok(es_dictionary_stream_plan(model, &s, &o, 0, &large, &err), &err);
    assert_true(large.seconds == 0);
    assert_int_equal(large.memory - small.memory, (s.buffer - s.buffer / 4) * (PLACES * 64 * sizeof(uint16_t) + sizeof(uint32_t)));
    s.reading.n_layer = s.reading.n_site = 1;
    assert_ok(es_dictionary_stream_plan(model, &s, &o, 0, &one, &err), &err);
    assert_int_equal(one.disk * PLACES, large.disk);
    s.itself = true; /* and the one place into the folder itself */
    s.buffer = 2048;
    o.tokens = 2000;
    assert_ok(es_dictionary_train_stream(model, &s, test_path("itself"), &o, NULL, &err), &err);
    assert_true(fvu(test_path("itself"), NULL) < 1);
    assert_error(es_dictionary_train_stream(model, &s, test_path("itself"), &o, NULL, &err), &err, "finished");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_good_as_from_a_harvest), cmocka_unit_test(stopped_and_refused), cmocka_unit_test(goes_on_after_kill_9), cmocka_unit_test(plans),
    };
    return cmocka_run_group_tests_name("stream", tests, set_up, tear_down);
}
