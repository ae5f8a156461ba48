/* Training on activations made of known directions: it must find them, and a run that was stopped must end like one that was not. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "features.h"

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

static void finds_known_directions(void **state)
{
    (void)state;
    char dir[200];
    es_error err = {0};
    es_dictionary_training o = options();
    snprintf(dir, sizeof dir, "%s/a", root);
    if (es_dictionary_train(root, LAYER, dir, &o, NULL, &err))
        fail_msg("%s", err.text);
    es_dictionary *s;
    if (es_dictionary_open(&s, dir, &err))
        fail_msg("%s", err.text);
    const es_dictionary_info *info = es_dictionary_get_info(s);
    assert_int_equal(info->layer, LAYER);
    assert_int_equal(info->architecture, ES_SAE_JUMPRELU);
    assert_string_equal(info->normalize_activations, "none");
    assert_int_equal(strlen(info->model_hash), 64);
    const float *dec = es_dictionary_decoder(s);
    double mean = 0;
    for (int j = 0; j < TRUE_FEATURES; j++) {
        double best = 0;
        for (int f = 0; f < 96; f++) {
            double dot = 0;
            for (int i = 0; i < D; i++)
                dot += (double)truth[j][i] * (double)dec[f * D + i];
            best = dot > best ? dot : best;
        }
        mean += best / TRUE_FEATURES;
    }
    for (int f = 0; f < 96; f++) {
        double norm = 0;
        for (int i = 0; i < D; i++)
            norm += (double)dec[f * D + i] * (double)dec[f * D + i];
        assert_float_equal(sqrt(norm), 1, 1e-5);
    }
    print_message("mean cosine with the true directions: %.3f\n", mean);
    assert_true(mean > 0.9);

    /* in the units of the data: values near 5..10, the mean in b_dec, little left over */
    enum { T = 500 };
    float x[T * D], xhat[T * D];
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
    print_message("left over %.3f, %.2f features a token\n", error / total, (double)acts.start[T] / T);
    assert_true(error / total < 0.12);
    assert_true((double)acts.start[T] / T < 5);
    es_sparse_free(&acts);
    es_dictionary_free(s);

    assert_int_equal(es_dictionary_train(root, LAYER, dir, &o, NULL, &err), ES_ERR_USAGE); /* is not overwritten */
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
        cmocka_unit_test(refuses_a_damaged_checkpoint),
    };
    return cmocka_run_group_tests(tests, make_harvest, remove_all);
}
