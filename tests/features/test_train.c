/* Training on activations made of known directions: it must find them, and a run that was stopped must end like one that was not. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "dictionaries.h"

enum { D = 32, TRUE_FEATURES = 48, ACTIVE = 3, ROWS = 20000, LAYER = 2 };

static char root[] = "/tmp/espalier-train-XXXXXX";
static float truth[TRUE_FEATURES][D];

static void write_file(const char *name, const void *bytes, size_t n)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", root, name);
    es_error err;
    assert_int_equal(es_file_write(path, bytes, n, &err), 0);
}

/* A harvest whose rows are sums of a few known unit directions, around a mean. */
static int make_harvest(void **state)
{
    (void)state;
    if (!mkdtemp(root))
        return -1;
    char path[200];
    es_error err;
    snprintf(path, sizeof path, "%s/layer-%02d", root, LAYER);
    if (es_dir_make(path, &err))
        return -1;
    es_rng r;
    es_rng_seed(&r, 7);
    for (int j = 0; j < TRUE_FEATURES; j++) {
        double norm = 0;
        for (int i = 0; i < D; i++) {
            truth[j][i] = es_rng_normal(&r);
            norm += (double)truth[j][i] * (double)truth[j][i];
        }
        for (int i = 0; i < D; i++)
            truth[j][i] /= (float)sqrt(norm);
    }
    uint16_t *half = malloc((size_t)ROWS * D * 2);
    for (int t = 0; t < ROWS; t++) {
        float x[D];
        for (int i = 0; i < D; i++)
            x[i] = 3 + 0.02f * es_rng_normal(&r);
        for (int a = 0; a < ACTIVE; a++) {
            int j = (int)es_rng_below(&r, TRUE_FEATURES);
            float v = 5 + 5 * (float)es_rng_uniform(&r);
            for (int i = 0; i < D; i++)
                x[i] += v * truth[j][i];
        }
        es_f32_to_f16(x, half + (size_t)t * D, D);
    }
    enum { SHARD = 16384, N = 101, SEQUENCES = ROWS / (N - 1) };
    snprintf(path, sizeof path, "layer-%02d/shard-0000.f16", LAYER);
    write_file(path, half, (size_t)SHARD * D * 2);
    snprintf(path, sizeof path, "layer-%02d/shard-0001.f16", LAYER);
    write_file(path, half + (size_t)SHARD * D, (size_t)(ROWS - SHARD) * D * 2);
    free(half);
    int32_t *ids = calloc(SEQUENCES * N, sizeof *ids);
    struct { uint64_t id, row; uint32_t n, document; } s[SEQUENCES];
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        s[i].id = i * N;
        s[i].row = i * (N - 1);
        s[i].n = N;
        s[i].document = i;
    }
    write_file("ids.bin", ids, SEQUENCES * N * sizeof *ids);
    write_file("sequences.bin", s, sizeof s);
    free(ids);
    char text[600];
    snprintf(text, sizeof text,
             "{\"format\":\"espalier-harvest\",\"version\":1,\"model\":{\"name\":\"none\",\"sha256\":\"%064d\"},\"files\":[],\"layers\":[%d],\"d\":%d,"
             "\"context\":%d,\"skip_first\":true,\"seed\":1,\"shard_rows\":%d,\"rows\":%d,\"ids\":%d,\"sequences\":%d,\"next_document\":1,\"complete\":true}",
             0, LAYER, D, N, SHARD, ROWS, SEQUENCES * N, SEQUENCES);
    write_file("harvest.json", text, strlen(text));
    return 0;
}

static int remove_all(void **state)
{
    (void)state;
    char command[200];
    snprintf(command, sizeof command, "rm -rf %s", root);
    return system(command);
}

static es_dictionary_training options(void)
{
    es_dictionary_training o = es_dictionary_training_default();
    o.n_features = 96;
    o.k = 3;
    o.batch = 512;
    o.tokens = 300000;
    o.learning_rate = 2e-3;
    o.dead_tokens = 20000;
    o.aux_k = 16;
    o.threads = 2;
    o.half = false;
    return o;
}

/* Left over of the variance of new rows, and features active on each. */
static void measure(const es_dictionary *s, double *left, double *l0)
{
    enum { T = 500 };
    static float x[T * D], xhat[T * D];
    es_error err = {0};
    es_sparse acts = {0};
    es_rng r;
    es_rng_seed(&r, 99);
    for (int t = 0; t < T; t++) {
        for (int i = 0; i < D; i++)
            x[t * D + i] = 3;
        for (int a = 0; a < ACTIVE; a++) {
            int j = (int)es_rng_below(&r, TRUE_FEATURES);
            for (int i = 0; i < D; i++)
                x[t * D + i] += 7 * truth[j][i];
        }
    }
    assert_int_equal(es_dictionary_encode(s, NULL, x, T, &acts, &err), 0);
    assert_int_equal(es_dictionary_decode(s, &acts, NULL, xhat, &err), 0);
    double error = 0, total = 0;
    for (int i = 0; i < T * D; i++) {
        error += pow((double)(x[i] - xhat[i]), 2);
        total += pow((double)(x[i] - 3), 2);
    }
    *left = error / total;
    *l0 = (double)acts.start[T] / T;
    es_sparse_free(&acts);
}

/* The mean over the true directions of the largest cosine with a row of the decoder. */
static double found(const es_dictionary *s)
{
    const float *dec = es_dictionary_decoder(s);
    double mean = 0;
    for (int j = 0; j < TRUE_FEATURES; j++) {
        double best = 0;
        for (int f = 0; f < es_dictionary_get_info(s)->n_features; f++) {
            double dot = 0;
            for (int i = 0; i < D; i++)
                dot += (double)truth[j][i] * (double)dec[f * D + i];
            best = dot > best ? dot : best;
        }
        mean += best / TRUE_FEATURES;
    }
    return mean;
}

/* Values near 5..10 and the mean in b_dec: in the units of the data, little must be left over. */
static void finds_known_directions(void **state)
{
    (void)state;
    static const struct { es_architecture architecture; double cosine, left, l0; } want[ES_RECIPES] = {
        [ES_TRAIN_BATCHTOPK] = {ES_SAE_JUMPRELU, 0.9, 0.12, 5}, [ES_TRAIN_TOPK] = {ES_SAE_TOPK, 0.9, 0.12, 3.01},
        [ES_TRAIN_MATRYOSHKA] = {ES_SAE_JUMPRELU, 0.9, 0.15, 5}, [ES_TRAIN_JUMPRELU] = {ES_SAE_JUMPRELU, 0.9, 0.3, 5},
        [ES_TRAIN_GATED] = {ES_SAE_GATED, 0.9, 0.25, 5}, [ES_TRAIN_STANDARD] = {ES_SAE_STANDARD, 0.9, 0.2, 6},
    };
    es_dictionary_training o = options();
    for (int recipe = 0; recipe < ES_RECIPES; recipe++) {
        char dir[200];
        es_error err = {0};
        double left, l0, untrained, unused;
        es_dictionary *s;
        o.recipe = (es_recipe)recipe;
        o.sparsity = recipe == ES_TRAIN_STANDARD ? 1 : 0; /* steered to exactly the true number, L1 shrinks too much to be a test of this */
        o.tokens = 512; /* one step: what training must improve on */
        snprintf(dir, sizeof dir, "%s/one-%d", root, recipe);
        if (es_dictionary_train(root, LAYER, dir, &o, NULL, &err) || es_dictionary_open(&s, dir, &err))
            fail_msg("%s", err.text);
        measure(s, &untrained, &unused);
        es_dictionary_free(s);
        o.tokens = 300000;
        snprintf(dir, sizeof dir, "%s/%d", root, recipe);
        if (es_dictionary_train(root, LAYER, dir, &o, NULL, &err) || es_dictionary_open(&s, dir, &err))
            fail_msg("%s: %s", es_recipe_name(o.recipe), err.text);
        const es_dictionary_info *info = es_dictionary_get_info(s);
        assert_int_equal(info->layer, LAYER);
        assert_int_equal(info->architecture, want[recipe].architecture);
        assert_string_equal(info->normalize_activations, "none");
        assert_int_equal(strlen(info->model_hash), 64);
        const float *dec = es_dictionary_decoder(s);
        for (int f = 0; f < 96; f++) {
            double norm = 0;
            for (int i = 0; i < D; i++)
                norm += (double)dec[f * D + i] * (double)dec[f * D + i];
            assert_float_equal(sqrt(norm), 1, 1e-5);
        }
        double cosine = found(s);
        measure(s, &left, &l0);
        print_message("%-10s cosine with the true directions %.3f, left over %.3f (after one step %.3f), %.2f features a token\n", es_recipe_name(o.recipe), cosine,
                      left, untrained, l0);
        assert_true(cosine > want[recipe].cosine);
        assert_true(left < want[recipe].left && left < 0.5 * untrained);
        assert_true(l0 > 1 && l0 < want[recipe].l0);
        es_dictionary_free(s);
        assert_int_equal(es_dictionary_train(root, LAYER, dir, &o, NULL, &err), ES_ERR_USAGE); /* is not overwritten */
    }
}

static volatile bool cancel;
static void cancel_half_way(void *user, const char *what, double done, double total, const char *unit)
{
    (void)user, (void)unit;
    assert_non_null(strstr(what, "fvu="));
    assert_non_null(strstr(what, "l0="));
    assert_non_null(strstr(what, "dead="));
    if (done > total * 0.4)
        __atomic_store_n(&cancel, true, __ATOMIC_RELEASE);
}

static void goes_on_where_it_was_stopped(void **state)
{
    (void)state;
    char dir[200], path[300];
    es_error err = {0};
    es_dictionary_training o = options();
    o.tokens = 500000; /* long enough for a report half way */
    o.checkpoint_seconds = 0.05;
    snprintf(dir, sizeof dir, "%s/stopped", root);
    es_progress p = {cancel_half_way, NULL, &cancel};
    int rc = es_dictionary_train(root, LAYER, dir, &o, &p, &err);
    if (rc == ES_OK)
        skip(); /* a machine so fast that it was done before the report */
    assert_int_equal(rc, ES_ERR_CANCELLED);
    snprintf(path, sizeof path, "%s/checkpoint/state.safetensors", dir);
    assert_int_equal(access(path, F_OK), 0);

    es_dictionary_training other = o;
    other.k = 4;
    assert_int_equal(es_dictionary_train(root, LAYER, dir, &other, NULL, &err), ES_ERR_MISMATCH);

    if (es_dictionary_train(root, LAYER, dir, &o, NULL, &err))
        fail_msg("%s", err.text);
    assert_int_not_equal(access(path, F_OK), 0); /* the checkpoint goes with the end */
    char whole[200];
    snprintf(whole, sizeof whole, "%s/whole", root);
    if (es_dictionary_train(root, LAYER, whole, &o, NULL, &err))
        fail_msg("%s", err.text);
    es_dictionary *a, *b;
    assert_int_equal(es_dictionary_open(&a, dir, &err), 0);
    assert_int_equal(es_dictionary_open(&b, whole, &err), 0);
    const float *x = es_dictionary_decoder(a), *y = es_dictionary_decoder(b);
    for (int i = 0; i < 96 * D; i++)
        assert_float_equal(x[i], y[i], 1e-4);
    es_dictionary_free(a);
    es_dictionary_free(b);
}

/* A run that is killed, without a word to it, goes on from its last checkpoint and ends like one that was not. */
static void goes_on_after_kill_9(void **state)
{
    (void)state;
    char dir[200], path[300], whole[300];
    es_error err = {0};
    es_dictionary_training o = options();
    const es_hook_place place = {LAYER, ES_HOOK_RESIDUAL};
    o.recipe = ES_TRAIN_JUMPRELU; /* the one with the most to remember */
    o.tokens = 400000;
    o.checkpoint_seconds = 0.02;
    snprintf(dir, sizeof dir, "%s/killed", root);
    snprintf(path, sizeof path, "%s/layer-%02d/checkpoint/state.safetensors", dir, LAYER);
    snprintf(whole, sizeof whole, "%s/layer-%02d/sae_weights.safetensors", dir, LAYER);
    int kills = 0;
    for (; kills < 3 && access(whole, F_OK) != 0; kills++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            _exit(es_dictionary_train_places(root, &place, 1, dir, &o, NULL, NULL) ? 1 : 0);
        struct stat before = {0}, now = {0};
        stat(path, &before);
        for (int i = 0; i < 3000 && waitpid(child, NULL, WNOHANG) == 0; i++) { /* until it has written a checkpoint of its own */
            usleep(2000);
            if (stat(path, &now) == 0 && now.st_ino != before.st_ino)
                break;
        }
        kill(child, SIGKILL);
        while (waitpid(child, NULL, 0) > 0)
            ;
    }
    if (access(path, F_OK) != 0)
        skip(); /* a machine so fast that it was done before the kill */
    if (es_dictionary_train_places(root, &place, 1, dir, &o, NULL, &err))
        fail_msg("%s", err.text);
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_equal(es_dictionary_train_places(root, &place, 1, dir, &o, NULL, &err), ES_ERR_USAGE); /* all done */
    snprintf(whole, sizeof whole, "%s/not-killed", root);
    snprintf(dir, sizeof dir, "%s/killed/layer-%02d", root, LAYER);
    if (es_dictionary_train(root, LAYER, whole, &o, NULL, &err))
        fail_msg("%s", err.text);
    es_dictionary *a, *b;
    assert_int_equal(es_dictionary_open(&a, dir, &err), 0);
    assert_int_equal(es_dictionary_open(&b, whole, &err), 0);
    const float *x = es_dictionary_decoder(a), *y = es_dictionary_decoder(b);
    for (int i = 0; i < 96 * D; i++)
        assert_float_equal(x[i], y[i], 1e-4);
    es_dictionary_free(a);
    es_dictionary_free(b);
}

static void refuses_a_damaged_checkpoint(void **state)
{
    (void)state;
    char dir[200];
    es_error err = {0};
    es_dictionary_training o = options();
    snprintf(dir, sizeof dir, "%s/damaged/checkpoint", root);
    assert_int_equal(es_dir_make(dir, &err), 0);
    write_file("damaged/checkpoint/state.safetensors", "not this", 8);
    snprintf(dir, sizeof dir, "%s/damaged", root);
    assert_int_equal(es_dictionary_train(root, LAYER, dir, &o, NULL, &err), ES_ERR_FORMAT);
    assert_non_null(strstr(err.text, "state.safetensors"));
    assert_int_not_equal(es_dictionary_train(root, LAYER + 1, dir, &o, NULL, &err), ES_OK); /* no such layer */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_known_directions),
        cmocka_unit_test(goes_on_where_it_was_stopped),
        cmocka_unit_test(goes_on_after_kill_9),
        cmocka_unit_test(refuses_a_damaged_checkpoint),
    };
    return cmocka_run_group_tests(tests, make_harvest, remove_all);
}
