/* Every format of dictionaries against its peer's own encodings (tests/golden/make_sae.py): read, in memory and mapped, and written in the other formats. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dictionary.h"
#include "kernels.h"
#include "npy.h"

enum { D = 24, F = 40, T = 7 };

static char root[64];

static const struct {
    const char *path, *format;
    es_architecture architecture;
    es_hook_kind hook;
    int layer, d_out;
    const char *l0;
} cases[] = {
    {"standard", "saelens", ES_SAE_STANDARD, ES_HOOK_RESIDUAL, 3, D, ""},
    {"standard-layer-norm", "saelens", ES_SAE_STANDARD, ES_HOOK_RESIDUAL, 3, D, ""},
    {"jumprelu-constant-norm", "saelens", ES_SAE_JUMPRELU, ES_HOOK_RESIDUAL, 3, D, ""},
    {"topk", "saelens", ES_SAE_TOPK, ES_HOOK_RESIDUAL, 3, D, ""},
    {"topk-rescaled", "saelens", ES_SAE_TOPK, ES_HOOK_RESIDUAL, 3, D, ""},
    {"gated", "saelens", ES_SAE_GATED, ES_HOOK_RESIDUAL, 3, D, ""},
    {"gated-layer-norm", "saelens", ES_SAE_GATED, ES_HOOK_RESIDUAL, 3, D, ""},
    {"jumprelu-folded", "saelens", ES_SAE_JUMPRELU, ES_HOOK_RESIDUAL, 3, D, ""},
    {"standard-f16", "saelens", ES_SAE_STANDARD, ES_HOOK_RESIDUAL, 3, D, ""},
    {"jumprelu-bf16", "saelens", ES_SAE_JUMPRELU, ES_HOOK_RESIDUAL, 3, D, ""},
    {"standard-hook-z", "saelens", ES_SAE_STANDARD, ES_HOOK_ATTENTION, 3, D, ""},
    {"standard-unfolded", "saelens", ES_SAE_STANDARD, ES_HOOK_RESIDUAL, 3, D, ""},
    {"batchtopk", "saelens", ES_SAE_JUMPRELU, ES_HOOK_RESIDUAL, 3, D, ""},
    {"matryoshka", "saelens", ES_SAE_JUMPRELU, ES_HOOK_RESIDUAL, 3, D, ""},
    {"skip-transcoder", "saelens", ES_SAE_JUMPRELU, ES_HOOK_MLP_IN, 3, 16, ""},
    {"old-standard", "saelens", ES_SAE_STANDARD, ES_HOOK_RESIDUAL, 3, D, ""},
    {"old-topk", "saelens", ES_SAE_TOPK, ES_HOOK_RESIDUAL, 3, D, ""},
    {"gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "gemma-scope", ES_SAE_JUMPRELU, ES_HOOK_RESIDUAL, 20, D, "71"},
    {"gemma-scope-2b-pt-mlp/layer_5/width_16k/average_l0_30", "gemma-scope", ES_SAE_JUMPRELU, ES_HOOK_MLP_OUT, 5, D, "30"},
    {"gemma-scope-9b-it-att/layer_9/width_16k/average_l0_12", "gemma-scope", ES_SAE_JUMPRELU, ES_HOOK_ATTENTION, 9, D, "12"},
    {"gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "gemma-scope", ES_SAE_JUMPRELU, ES_HOOK_RESIDUAL, -1, D, "6"},
    {"gemma-scope-2b-pt-res/layer_3/width_16k/fortran", "gemma-scope", ES_SAE_JUMPRELU, ES_HOOK_RESIDUAL, 3, D, ""},
    {"gemma-scope-2b-pt-res/layer_3/width_16k/f64", "gemma-scope", ES_SAE_JUMPRELU, ES_HOOK_RESIDUAL, 3, D, ""},
    {"gemma-scope-2b-pt-res/layer_3/width_16k/bf16", "gemma-scope", ES_SAE_JUMPRELU, ES_HOOK_RESIDUAL, 3, D, ""},
    {"gemma-scope-2-270m-pt/resid_post/layer_12_width_16k_l0_medium", "gemma-scope-2", ES_SAE_JUMPRELU, ES_HOOK_RESIDUAL, 12, D, "60"},
    {"gemma-scope-2-270m-pt/attn_out/layer_9_width_16k_l0_small", "gemma-scope-2", ES_SAE_JUMPRELU, ES_HOOK_ATTENTION, 9, D, "small"},
    {"gemma-scope-2-270m-pt/mlp_out/layer_5_width_16k_l0_big", "gemma-scope-2", ES_SAE_JUMPRELU, ES_HOOK_MLP_OUT, 5, D, "big"},
    {"gemma-scope-2-270m-pt/transcoder/layer_7_width_16k_l0_small_affine", "gemma-scope-2", ES_SAE_JUMPRELU, ES_HOOK_MLP_IN, 7, D, "60"},
    {"llama-scope/Llama3_1-8B-Base-L8R-8x", "llama-scope", ES_SAE_JUMPRELU, ES_HOOK_RESIDUAL, 8, D, ""},
    {"dictionary-learning/AutoEncoder/trainer_0", "dictionary-learning", ES_SAE_STANDARD, ES_HOOK_RESIDUAL, 8, D, ""},
    {"dictionary-learning/AutoEncoderNew/trainer_0", "dictionary-learning", ES_SAE_STANDARD, ES_HOOK_RESIDUAL, 8, D, ""},
    {"dictionary-learning/AutoEncoderTopK/trainer_0", "dictionary-learning", ES_SAE_TOPK, ES_HOOK_RESIDUAL, 8, D, ""},
    {"dictionary-learning/BatchTopKSAE/trainer_0", "dictionary-learning", ES_SAE_JUMPRELU, ES_HOOK_RESIDUAL, 8, D, ""},
    {"dictionary-learning/MatryoshkaBatchTopKSAE/trainer_0", "dictionary-learning", ES_SAE_JUMPRELU, ES_HOOK_RESIDUAL, 8, D, ""},
    {"dictionary-learning/JumpReluAutoEncoder/trainer_0", "dictionary-learning", ES_SAE_JUMPRELU, ES_HOOK_RESIDUAL, 8, D, ""},
    {"dictionary-learning/GatedAutoEncoder/trainer_0", "dictionary-learning", ES_SAE_GATED, ES_HOOK_RESIDUAL, 8, D, ""},
};
enum { N_CASES = sizeof cases / sizeof *cases };

static void golden(char *out, size_t size, const char *name)
{
    const char *dir = getenv("ESPALIER_TEST_DIR");
    snprintf(out, size, "%s/golden/sae/%s", dir ? dir : "tests", name);
}

typedef struct values { float x[T * D], acts[T * F], xhat[T * D], largest, largest_x; } values;

static void read_values(const char *name, int d_out, values *v)
{
    char path[700];
    es_error err = {0};
    es_safetensors *g;
    golden(path, sizeof path, name);
    strncat(path, "/golden.safetensors", sizeof path - strlen(path) - 1);
    if (es_safetensors_open(&g, path, &err))
        fail_msg("%s", err.text);
    assert_int_equal(es_safetensors_f32(g, "x", 2, (size_t[]){T, D}, v->x, &err), 0);
    assert_int_equal(es_safetensors_f32(g, "acts", 2, (size_t[]){T, F}, v->acts, &err), 0);
    assert_int_equal(es_safetensors_f32(g, "xhat", 2, (size_t[]){T, (size_t)d_out}, v->xhat, &err), 0);
    es_safetensors_free(g);
    v->largest = v->largest_x = 0;
    for (int i = 0; i < T * F; i++)
        v->largest = fmaxf(v->largest, fabsf(v->acts[i]));
    for (int i = 0; i < T * d_out; i++)
        v->largest_x = fmaxf(v->largest_x, fabsf(v->xhat[i]));
    assert_true(v->largest > 0 && v->largest_x > 0);
}

/* Encodes and decodes the golden's rows and compares. */
static void check(const es_dictionary *s, es_pool *pool, const values *v, const char *what)
{
    int d_out = es_dictionary_get_info(s)->d_out;
    es_error err = {0};
    float got[T * F] = {0}, xhat[T * D], worst = 0, few[T * 3];
    es_sparse acts = {0};
    if (es_dictionary_encode(s, pool, v->x, T, &acts, &err))
        fail_msg("%s: %s", what, err.text);
    for (int t = 0; t < T; t++)
        for (size_t a = acts.start[t]; a < acts.start[t + 1]; a++)
            got[t * F + acts.index[a]] = acts.value[a];
    for (int i = 0; i < T * F; i++)
        worst = fmaxf(worst, fabsf(got[i] - v->acts[i]));
    if (!(worst < 1e-4f * v->largest))
        fail_msg("%s: encoding differs by %g of %g", what, (double)worst, (double)v->largest);
    if (es_dictionary_decode(s, &acts, v->x, xhat, &err))
        fail_msg("%s: %s", what, err.text);
    worst = 0;
    for (int i = 0; i < T * d_out; i++)
        worst = fmaxf(worst, fabsf(xhat[i] - v->xhat[i]));
    if (!(worst < 1e-4f * v->largest_x))
        fail_msg("%s: decoding differs by %g of %g", what, (double)worst, (double)v->largest_x);
    const int some[] = {0, 39, 17};
    assert_int_equal(es_dictionary_encode_some(s, pool, v->x, T, some, 3, few, &err), 0);
    for (int t = 0; t < T; t++)
        for (int k = 0; k < 3; k++)
            assert_true(fabsf(few[t * 3 + k] - v->acts[t * F + some[k]]) < 1e-4f * v->largest);
    es_sparse_free(&acts);
}

static void encodes_as_the_peers(void **state)
{
    (void)state;
    es_pool *pool;
    es_error err = {0};
    assert_int_equal(es_pool_open(&pool, 2, &err), 0);
    for (int c = 0; c < N_CASES; c++) {
        char path[700];
        values v;
        golden(path, sizeof path, cases[c].path);
        read_values(cases[c].path, cases[c].d_out, &v);
        float rows[2][F * D];
        for (int mapped = 0; mapped < 2; mapped++) {
            es_dictionary *s;
            es_dictionary_options o = {.mapped = mapped, .no_hash = mapped};
            if (es_dictionary_open_with(&s, path, &o, &err))
                fail_msg("%s", err.text);
            const es_dictionary_info *i = es_dictionary_get_info(s);
            assert_string_equal(i->format, cases[c].format);
            assert_int_equal(i->architecture, cases[c].architecture);
            assert_int_equal(i->hook, cases[c].hook);
            assert_int_equal(i->layer, cases[c].layer);
            assert_int_equal(i->d, D);
            assert_int_equal(i->d_out, cases[c].d_out);
            assert_int_equal(i->n_features, F);
            assert_string_equal(i->l0, cases[c].l0);
            assert_int_equal(strlen(i->hash), mapped ? 0 : 64);
            assert_int_equal(es_dictionary_is_mapped(s), mapped);
            check(s, mapped ? NULL : pool, &v, cases[c].path);
            es_dictionary_rows(s, 0, F, rows[mapped]);
            int near[2][3];
            float cosine[3];
            es_dictionary_neighbours(s, 11, 3, near[mapped], cosine);
            if (mapped)
                assert_memory_equal(rows[0], rows[1], (size_t)F * (size_t)cases[c].d_out * sizeof(float));
            es_dictionary_free(s);
        }
    }
    es_pool_free(pool);
}

/* A file of a dictionary opens what its folder opens. */
static void takes_a_file_for_its_folder(void **state)
{
    (void)state;
    static const char *const file[] = {
        "gated/cfg.json", "gated/sae_weights.safetensors", "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz",
        "gemma-scope-2-270m-pt/mlp_out/layer_5_width_16k_l0_big/params.safetensors", "llama-scope/Llama3_1-8B-Base-L8R-8x/hyperparams.json",
        "llama-scope/Llama3_1-8B-Base-L8R-8x/checkpoints/final.safetensors", "dictionary-learning/GatedAutoEncoder/trainer_0/ae.pt",
    };
    for (size_t i = 0; i < sizeof file / sizeof *file; i++) {
        char path[700], folder[700];
        es_error err = {0};
        es_dictionary *a, *b;
        golden(path, sizeof path, file[i]);
        golden(folder, sizeof folder, file[i]);
        *strrchr(folder, '/') = 0;
        char *below = strstr(folder, "/checkpoints");
        if (below)
            *below = 0;
        if (es_dictionary_open(&a, path, &err) || es_dictionary_open(&b, folder, &err))
            fail_msg("%s", err.text);
        assert_string_equal(es_dictionary_get_info(a)->hash, es_dictionary_get_info(b)->hash);
        es_dictionary_free(a);
        es_dictionary_free(b);
    }
}

static void same_numbers(const es_numbers *a, const es_numbers *b, const char *what)
{
    if (!a->v && !b->v)
        return;
    if (a->n != b->n || a->type != b->type || memcmp(a->v, b->v, a->n * sizeof(float)) != 0)
        fail_msg("%s: a vector came back changed", what);
}

static void same_matrix(const es_matrix *a, const es_matrix *b, const char *what)
{
    float *x = es_calloc(a->rows * a->cols, sizeof *x), *y = es_calloc(a->rows * a->cols, sizeof *y);
    assert_non_null(x);
    assert_non_null(y);
    if (a->rows != b->rows || a->cols != b->cols || es_matrix_type(a) != b->type)
        fail_msg("%s: a matrix came back with another shape or type", what);
    es_matrix_rows(a, 0, a->rows, x);
    es_matrix_rows(b, 0, b->rows, y);
    if (memcmp(x, y, a->rows * a->cols * sizeof *x) != 0)
        fail_msg("%s: a matrix came back changed", what);
    free(x);
    free(y);
}

/* To each other format and back: the same activations there and back, and, unless b_dec had to be folded, the same arrays to the bit. */
static void converts_there_and_back(void **state)
{
    (void)state;
    int converted = 0, identical = 0;
    for (int c = 0; c < N_CASES; c++) {
        char path[700], there[200], back[220];
        values v;
        es_error err = {0};
        golden(path, sizeof path, cases[c].path);
        read_values(cases[c].path, cases[c].d_out, &v);
        const char *format;
        for (int f = 0; (format = es_dictionary_format(f, NULL, NULL)); f++) {
            es_dictionary *s;
            snprintf(there, sizeof there, "%s/layer_%d/%d-%s", root, cases[c].layer, c, format);
            snprintf(back, sizeof back, "%s-back", there);
            int rc = es_dictionary_convert(path, there, format, &err);
            if (rc == ES_ERR_USAGE) /* the format has no place for it */
                continue;
            if (rc)
                fail_msg("%s to %s: %s", cases[c].path, format, err.text);
            if (es_dictionary_open(&s, there, &err))
                fail_msg("%s to %s: %s", cases[c].path, format, err.text);
            assert_string_equal(es_dictionary_get_info(s)->format, format);
            check(s, NULL, &v, there);
            es_dictionary_free(s);
            converted++;
            rc = es_dictionary_convert(there, back, cases[c].format, &err);
            if (rc == ES_ERR_USAGE)
                continue;
            es_weights a, b;
            if (rc || es_weights_read(&a, path, &err) || es_weights_read(&b, back, &err))
                fail_msg("%s to %s and back: %s", cases[c].path, format, err.text);
            if (a.info.apply_b_dec_to_input == b.info.apply_b_dec_to_input && a.info.architecture == b.info.architecture) {
                same_matrix(&a.enc, &b.enc, there);
                same_matrix(&a.dec, &b.dec, there);
                same_numbers(&a.b_enc, &b.b_enc, there);
                same_numbers(&a.b_dec, &b.b_dec, there);
                same_numbers(&a.b_gate, &b.b_gate, there);
                same_numbers(&a.b_mag, &b.b_mag, there);
                same_numbers(&a.r_mag, &b.r_mag, there);
                if (a.threshold.v && b.threshold.v)
                    assert_memory_equal(a.threshold.v, b.threshold.v, F * sizeof(float));
                identical++;
            }
            es_weights_free(&a);
            es_weights_free(&b);
        }
    }
    if (converted < 75 || identical < 50) /* what is refused must stay the exception */
        fail_msg("only %d conversions went through, %d of them identical on the way back", converted, identical);
}

static void refuses_what_a_format_cannot_say(void **state)
{
    (void)state;
    static const struct { const char *from, *to, *text; } bad[] = {
        {"topk", "gemma-scope", "topk"}, {"gated", "gemma-scope-2", "gates"}, {"gated", "llama-scope", "gates"},
        {"standard-layer-norm", "dictionary-learning", "normalised"}, {"jumprelu", "llama-scope", "one threshold"},
        {"topk-rescaled", "dictionary-learning", "no place"}, {"skip-transcoder", "dictionary-learning", "transcoder"},
        {"skip-transcoder", "llama-scope", "transcoder"}, {"standard", "gguf", "no format"},
        {"gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "gemma-scope-2", "embedding"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char path[700], out[200];
        es_error err = {0};
        golden(path, sizeof path, bad[i].from);
        snprintf(out, sizeof out, "%s/refused-%zu", root, i);
        int rc = es_dictionary_convert(path, out, bad[i].to, &err);
        if (rc != ES_ERR_USAGE || !strstr(err.text, bad[i].text))
            fail_msg("%s to %s: got %d \"%s\"", bad[i].from, bad[i].to, rc, err.text);
    }
}

/* More features and tokens than a block and a tile: in memory, mapped in each layout and type, jumprelu and topk, against the formula. */
static void encodes_in_blocks(void **state)
{
    (void)state;
    enum { d = 8, n = 40000, rows = 300, TOP = 7 };
    es_rng r;
    es_pool *pool;
    es_error err = {0};
    char folder[200], llama[200];
    float *w = es_calloc(n * d, sizeof *w), *wt = es_calloc(n * d, sizeof *wt), *x = es_calloc(rows * d, sizeof *x), *b_enc = es_calloc(n, sizeof *b_enc);
    float b_dec[d], *threshold = es_calloc(n, sizeof *threshold);
    assert_true(w && wt && x && b_enc && threshold);
    assert_int_equal(es_pool_open(&pool, 2, &err), 0);
    es_rng_seed(&r, 3);
    for (int i = 0; i < n * d; i++)
        w[i] = (float)((double)es_rng_below(&r, 2001) / 1000 - 1);
    for (int i = 0; i < rows * d; i++)
        x[i] = es_rng_normal(&r);
    for (int j = 0; j < n; j++) {
        b_enc[j] = es_rng_normal(&r) / 10;
        threshold[j] = 4; /* few fire */
    }
    for (int i = 0; i < d; i++)
        b_dec[i] = es_rng_normal(&r) / 10;
    for (int half = 0; half < 2; half++)
        for (int topk = 0; topk < 2; topk++) {
            snprintf(folder, sizeof folder, "%s/blocks-%d-%d", root, half, topk);
            snprintf(llama, sizeof llama, "%s/blocks-llama-%d", root, half);
            assert_int_equal(es_dir_make(folder, &err), 0);
            if (half) /* numbers that f16 holds */
                for (int i = 0; i < n * d; i++) {
                    uint16_t h;
                    es_f32_to_f16(w + i, &h, 1);
                    es_f16_to_f32(&h, w + i, 1);
                }
            for (int j = 0; j < n; j++)
                for (int i = 0; i < d; i++)
                    wt[i * n + j] = w[j * d + i];
            es_tensor_type type = half ? ES_TENSOR_F16 : ES_TENSOR_F32;
            es_tensor_spec t[] = {{"W_enc", type, 2, {d, n}, wt}, {"W_dec", type, 2, {n, d}, w}, {"b_enc", ES_TENSOR_F32, 1, {n}, b_enc},
                                  {"b_dec", ES_TENSOR_F32, 1, {d}, b_dec}, {"threshold", ES_TENSOR_F32, 1, {n}, threshold}};
            char path[300], cfg[300];
            snprintf(path, sizeof path, "%s/sae_weights.safetensors", folder);
            assert_int_equal(es_safetensors_write_file(path, t, 5, NULL, &err), 0);
            snprintf(path, sizeof path, "%s/cfg.json", folder);
            snprintf(cfg, sizeof cfg, "{\"architecture\":\"%s\",\"k\":%d,\"d_in\":%d,\"d_sae\":%d}", topk ? "topk" : "jumprelu", (int)TOP, (int)d, (int)n);
            assert_int_equal(es_file_write(path, cfg, strlen(cfg), &err), 0);
            if (!topk && es_dictionary_convert(folder, llama, "llama-scope", &err))
                fail_msg("%s", err.text);
            for (int way = 0; way < (topk ? 2 : 3); way++) { /* in memory; mapped, [d, F]; mapped, [F, d] */
                es_dictionary *s;
                es_sparse a = {0};
                if (es_dictionary_open_with(&s, way == 2 ? llama : folder, &(es_dictionary_options){.mapped = way > 0}, &err))
                    fail_msg("%s", err.text);
                assert_int_equal(es_dictionary_encode(s, pool, x, rows, &a, &err), 0);
                size_t wrong = 0, active = 0;
                for (int row = 0; row < rows; row += 13) {
                    size_t from = a.start[row], to = a.start[row + 1], hits = 0;
                    float least = topk ? a.value[to - 1] : 4;
                    if (topk)
                        assert_int_equal(to - from, TOP);
                    for (size_t k = from + 1; k < to; k++)
                        assert_true(a.value[k] <= a.value[k - 1]);
                    for (int j = 0; j < n; j++) {
                        double v = (double)b_enc[j];
                        for (int i = 0; i < d; i++)
                            v += ((double)x[row * d + i] - (double)b_dec[i]) * (double)w[j * d + i];
                        if (v > (double)least + 1e-4)
                            hits++;
                    }
                    for (size_t k = from; k < to; k++) {
                        int j = a.index[k];
                        double v = (double)b_enc[j];
                        for (int i = 0; i < d; i++)
                            v += ((double)x[row * d + i] - (double)b_dec[i]) * (double)w[j * d + i];
                        wrong += fabs(v - (double)a.value[k]) > 1e-4;
                    }
                    active += to - from;
                    if (to - from < hits || to - from > hits + 4) /* some may lie within rounding of the threshold */
                        fail_msg("half %d topk %d way %d row %d: %zu active where %zu are", half, topk, way, row, to - from, hits);
                }
                assert_int_equal(wrong, 0);
                assert_true(active > 100);
                es_sparse_free(&a);
                es_dictionary_free(s);
            }
        }
    es_pool_free(pool);
    free(w);
    free(wt);
    free(x);
    free(b_enc);
    free(threshold);
}

/* A large file's hash is computed once, and again when the file has changed or what was kept makes no sense. */
static void keeps_hashes_of_large_files(void **state)
{
    (void)state;
    enum { d = 64, n = 40000 };
    char folder[200], path[300], hashes[200], command[500], first[65];
    static const char fake[] = "00000000000000000000000000000000000000000000000000000000000000ff";
    es_error err = {0};
    es_dictionary *s;
    float *w = es_calloc(n * d, sizeof *w);
    assert_non_null(w);
    w[3] = 1;
    snprintf(folder, sizeof folder, "%s/large", root);
    snprintf(hashes, sizeof hashes, "%s/hashes", root);
    json_t *none = json_object();
    const es_dictionary_options o = {.hashes = hashes};
    for (int round = 0; round < 4; round++) {
        if (round == 0 || round == 3) { /* 3: the file has changed */
            w[4] = (float)round;
            assert_int_equal(es_dictionary_save(folder, d, n, w, w, w, w, 0, false, none, &err), 0);
        }
        if (es_dictionary_open_with(&s, folder, &o, &err))
            fail_msg("%s", err.text);
        const char *hash = es_dictionary_get_info(s)->hash;
        char own[65];
        snprintf(path, sizeof path, "%s/sae_weights.safetensors", folder);
        assert_int_equal(es_sha256_file(own, path, &err), 0);
        if (round == 0)
            memcpy(first, own, sizeof first);
        assert_string_equal(hash, round == 1 ? fake : own); /* 1: what is kept is taken */
        assert_int_equal(strcmp(own, first) != 0, round == 3);
        es_dictionary_free(s);
        snprintf(command, sizeof command, "for f in %s/*; do printf %s >$f; done", hashes, round == 0 ? fake : "nonsense");
        assert_int_equal(system(command), 0);
    }
    json_decref(none);
    free(w);
}

static void put_file(const char *folder, const char *name, const char *from, const char *text)
{
    char path[700];
    es_buf b = {0};
    es_error err = {0};
    if (from) {
        golden(path, sizeof path, from);
        assert_int_equal(es_file_read(&b, path, 1 << 20, &err), 0);
    } else {
        es_buf_str(&b, text);
    }
    snprintf(path, sizeof path, "%s/%s/%s", root, folder, name);
    char *slash = strrchr(path, '/');
    *slash = 0;
    assert_int_equal(es_dir_make(path, &err), 0);
    *slash = '/';
    assert_int_equal(es_file_write(path, b.data, b.len, &err), 0);
    es_buf_free(&b);
}

static void refused(const char *folder, int code, const char *text)
{
    char path[300];
    es_error err = {0};
    es_dictionary *s = NULL;
    snprintf(path, sizeof path, "%s/%s", root, folder);
    int rc = es_dictionary_open(&s, path, &err);
    if (rc != code || !strstr(err.text, text) || strchr(err.text, '\n') || s)
        fail_msg("%s: got %d \"%s\", wanted %d \"%s\"", folder, rc, err.text, code, text);
}

/* Files that are sound, but say what is not supported, or nothing that would do. */
static void refuses_what_it_cannot_read(void **state)
{
    (void)state;
    static const char params[] = "gemma-scope-2-270m-pt/mlp_out/layer_5_width_16k_l0_big/params.safetensors";
    static const char pt[] = "dictionary-learning/BatchTopKSAE/trainer_0/ae.pt", final[] = "llama-scope/Llama3_1-8B-Base-L8R-8x/checkpoints/final.safetensors";
    put_file("g/crosscoder/layer_7_width_16k", "params.safetensors", params, NULL);
    refused("g/crosscoder/layer_7_width_16k", ES_ERR_FORMAT, "is a crosscoder");
    put_file("g/clt/width_16k", "params.safetensors", params, NULL);
    refused("g/clt/width_16k", ES_ERR_FORMAT, "is a clt");
    put_file("g2", "params.safetensors", params, NULL);
    put_file("g2", "config.json", NULL, "{\"type\":\"crosscoder\"}");
    refused("g2", ES_ERR_FORMAT, "is a crosscoder");
    put_file("g2", "config.json", NULL, "{\"architecture\":\"topk\"}");
    refused("g2", ES_ERR_FORMAT, "\"topk\" is not supported");
    put_file("g2", "config.json", NULL, "[]");
    refused("g2", ES_ERR_FORMAT, "not a JSON object");
    put_file("l", "ae.pt", pt, NULL); /* TopK and BatchTopK have the same arrays */
    refused("l", ES_ERR_FORMAT, "its kind is unknown");
    put_file("l", "config.json", NULL, "{\"trainer\":{\"dict_class\":\"CrossCoder\"}}");
    refused("l", ES_ERR_FORMAT, "\"CrossCoder\" is not supported");
    put_file("l", "config.json", NULL, "{\"trainer\":{\"dict_class\":\"GatedAutoEncoder\"}}");
    refused("l", ES_ERR_MISSING, "decoder_bias");
    put_file("s", "checkpoints/final.safetensors", final, NULL);
    put_file("s", "hyperparams.json", NULL, "{\"d_model\":24,\"d_sae\":40}");
    refused("s", ES_ERR_FORMAT, "jump_relu_threshold");
    put_file("s", "hyperparams.json", NULL, "{\"d_model\":24,\"d_sae\":40,\"jump_relu_threshold\":1,\"dataset_average_activation_norm\":{\"in\":0}}");
    refused("s", ES_ERR_FORMAT, "dataset_average_activation_norm");
    put_file("s", "hyperparams.json", NULL, "{\"d_model\":1e9,\"d_sae\":40}");
    refused("s", ES_ERR_FORMAT, "d_model");
    put_file("s", "hyperparams.json", NULL, "{\"d_model\":25,\"d_sae\":40,\"jump_relu_threshold\":1,\"dataset_average_activation_norm\":{\"in\":5,\"out\":5}}");
    refused("s", ES_ERR_FORMAT, "[25, 40]");
    put_file("u", "cfg.json", "standard-unfolded/cfg.json", NULL);
    put_file("u", "sae_weights.safetensors", "standard-unfolded/sae_weights.safetensors", NULL);
    put_file("u", "activation_scaler.json", NULL, "{\"scaling_factor\":0}");
    refused("u", ES_ERR_FORMAT, "scaling_factor");
    refused("nothing", ES_ERR_MISSING, "no dictionary is here");
}

static void selects_features(void **state)
{
    (void)state;
    static const char *const from[] = {"gated", "jumprelu", "gemma-scope-2b-pt-res/layer_3/width_16k/bf16", "llama-scope/Llama3_1-8B-Base-L8R-8x"};
    const int some[] = {31, 2, 17, 5};
    for (size_t i = 0; i < sizeof from / sizeof *from; i++) {
        char path[700], out[200];
        values v;
        es_error err = {0};
        es_dictionary *s;
        es_sparse acts = {0};
        golden(path, sizeof path, from[i]);
        read_values(from[i], D, &v);
        snprintf(out, sizeof out, "%s/selected-%zu", root, i);
        if (es_dictionary_select(path, some, 4, out, &err) || es_dictionary_open(&s, out, &err))
            fail_msg("%s", err.text);
        assert_int_equal(es_dictionary_get_info(s)->n_features, 4);
        assert_int_equal(es_dictionary_encode(s, NULL, v.x, T, &acts, &err), 0);
        float got[T * 4] = {0};
        for (int t = 0; t < T; t++)
            for (size_t a = acts.start[t]; a < acts.start[t + 1]; a++)
                got[t * 4 + acts.index[a]] = acts.value[a];
        for (int t = 0; t < T; t++)
            for (int k = 0; k < 4; k++)
                assert_true(fabsf(got[t * 4 + k] - v.acts[t * F + some[k]]) < 1e-4f * v.largest);
        es_sparse_free(&acts);
        es_dictionary_free(s);
    }
    char path[700];
    es_error err = {0};
    golden(path, sizeof path, "topk");
    assert_int_equal(es_dictionary_select(path, some, 4, root, &err), ES_ERR_USAGE);
    golden(path, sizeof path, "gated");
    assert_int_equal(es_dictionary_select(path, (int[]){F}, 1, root, &err), ES_ERR_USAGE);
}

static void reads_matrices_of_activations(void **state)
{
    (void)state;
    const float x[6] = {1, 2, 3, 4, 5, 6}, turned[6] = {1, 3, 5, 2, 4, 6};
    float got[6];
    char path[200];
    es_error err = {0};
    es_buf b = {0};
    snprintf(path, sizeof path, "%s/x.npy", root);
    es_npy_header(&b, ES_TENSOR_F32, 2, (size_t[]){2, 3});
    es_buf_add(&b, x, sizeof x);
    for (int fortran = 0; fortran < 2; fortran++) { /* the same bytes in one order and the other */
        es_activations *a;
        size_t rows;
        int d;
        if (fortran)
            memcpy(strstr(b.data + 10, "False"), "True ", 5);
        assert_int_equal(es_file_write(path, b.data, b.len, &err), 0);
        assert_int_equal(es_activations_open(&a, path, &rows, &d, &err), 0);
        assert_int_equal(rows, 2);
        assert_int_equal(d, 3);
        es_activations_read(a, 0, 2, got);
        assert_memory_equal(got, fortran ? turned : x, sizeof x);
        es_activations_read(a, 1, 1, got);
        assert_memory_equal(got, (fortran ? turned : x) + 3, 3 * sizeof(float));
        es_activations_free(a);
    }
    es_buf_free(&b);
}

static int make_root(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "/tmp/espalier-formats-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    (void)state;
    char command[200];
    snprintf(command, sizeof command, "rm -rf %s", root);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(encodes_as_the_peers), cmocka_unit_test(encodes_in_blocks), cmocka_unit_test(keeps_hashes_of_large_files), cmocka_unit_test(takes_a_file_for_its_folder), cmocka_unit_test(converts_there_and_back),
        cmocka_unit_test(refuses_what_a_format_cannot_say), cmocka_unit_test(refuses_what_it_cannot_read), cmocka_unit_test(selects_features), cmocka_unit_test(reads_matrices_of_activations),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
