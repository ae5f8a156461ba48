/* What attention and the MLP give, beside transformers' forward hooks on the tiny models of every family (tests/golden/make_points.py): asked for, watched
 * in a pass and watched through the cache. To look changes nothing of what is computed. */
#include "model.h"
#include "safetensors.h"
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 24, WIDE = 64, LOOKS = 6 };

static const char *const families[] = {"llama", "llama3", "qwen3", "olmo2", "olmo3", "gemma2", "gemma3"};
static const char *const names[ES_N_POINTS] = {NULL, "attention", "attention_out", "mlp_out"};

typedef struct look { int layer, width, rows; es_point point; float want[N * WIDE], got[N * WIDE]; } look;

typedef struct fixture {
    es_model *m;
    int32_t ids[N];
    look look[LOOKS];
    es_watch watch[LOOKS];
} fixture;

static void keep(void *user, int layer, int pos0, const float *h, int T, int d)
{
    look *l = user;
    assert_int_equal(layer, l->layer);
    assert_int_equal(d, l->width);
    memcpy(l->got + pos0 * d, h, sizeof *h * (size_t)(T * d));
    l->rows += T;
}

static fixture *make(const char *family)
{
    fixture *f = calloc(1, sizeof *f);
    char path[1100], name[64];
    es_error err;
    es_safetensors *s = NULL;
    snprintf(path, sizeof path, "families/%s", family);
    assert_ok(es_model_open(&f->m, test_golden(path), &err), &err);
    snprintf(path, sizeof path, "families/%s/golden.safetensors", family);
    assert_ok(es_safetensors_open(&s, test_golden(path), &err), &err);
    memcpy(f->ids, es_safetensors_find(s, "ids")->data, sizeof f->ids);
    es_safetensors_free(s);
    snprintf(path, sizeof path, "families/%s/points.safetensors", family);
    assert_ok(es_safetensors_open(&s, test_golden(path), &err), &err);
    for (int i = 0; i < LOOKS; i++) {
        look *l = &f->look[i];
        l->layer = i % 2 ? es_model_get_info(f->m)->n_layer - 1 : 1;
        l->point = (es_point)(1 + i / 2);
        l->width = es_point_width(f->m, l->point);
        snprintf(name, sizeof name, "%s.%d", names[l->point], l->layer);
        assert_ok(es_safetensors_f32(s, name, 2, (size_t[]){N, (size_t)l->width}, l->want, &err), &err);
        f->watch[i] = (es_watch){.layer = l->layer, .fn = keep, .user = l, .point = l->point};
    }
    es_safetensors_free(s);
    return f;
}

static void free_fixture(fixture *f)
{
    es_model_free(f->m);
    free(f);
}

static void check(fixture *f, const char *family, const char *how, double bound)
{
    for (int i = 0; i < LOOKS; i++) {
        look *l = &f->look[i];
        double most = 0, largest = 0;
        assert_int_equal(l->rows, N);
        for (int k = 0; k < N * l->width; k++) {
            most = fmax(most, fabs((double)l->got[k] - l->want[k]));
            largest = fmax(largest, fabs((double)l->want[k]));
        }
        if (!(most <= bound * largest))
            fail_msg("%s, %s: %s of layer %d is off by %.2g of the largest value", family, how, names[l->point], l->layer, most / largest);
        l->rows = 0;
        memset(l->got, 0, sizeof l->got);
    }
}

static void trainer_of(es_trainer **t, const fixture *f, const es_kernels *k, bool backward)
{
    es_error err;
    es_trainer_options o = {.max_tokens = N, .backward = backward, .threads = 2, .kernels = k};
    assert_ok(es_trainer_open(t, f->m, &o, &err), &err);
}

static void test_trainer(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        for (int how = 0; how < 4; how++) {
            fixture *f = make(families[i]);
            const es_kernels *k = how & 1 ? es_kernels_cpu() : es_kernels_scalar();
            int n_vocab = es_model_get_info(f->m)->n_vocab;
            float *plain = calloc((size_t)(2 * N * n_vocab), sizeof *plain), *seen = plain + N * n_vocab;
            es_batch b = {.ids = f->ids, .n = N, .start = (int[]){0, N}, .n_seq = 1};
            es_trainer *t;
            es_error err;
            trainer_of(&t, f, k, how & 2);
            assert_ok(es_trainer_forward(t, &b, NULL, NULL, NULL, 0, NULL, NULL, &err), &err);
            assert_ok(es_trainer_logits_rows(t, 0, N, plain, &err), &err);
            assert_ok(es_trainer_forward(t, &b, NULL, NULL, f->watch, LOOKS, NULL, NULL, &err), &err);
            assert_ok(es_trainer_logits_rows(t, 0, N, seen, &err), &err);
            check(f, families[i], "watched", 1e-4);
            assert_memory_equal(plain, seen, sizeof *plain * (size_t)(N * n_vocab));
            for (int j = 0; j < LOOKS; j++) {
                look *l = &f->look[j];
                assert_ok(es_trainer_point(t, &b, l->layer, l->point, l->got, NULL, &err), &err);
                l->rows = N;
            }
            check(f, families[i], "asked for", 1e-4);
            es_trainer_free(t);
            free(plain);
            free_fixture(f);
        }
}

static void test_context(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        for (int exact = 0; exact < 2; exact++) {
            fixture *f = make(families[i]);
            es_context_options o = {.n_ctx = N, .threads = 2, .exact = exact};
            es_context *c[2];
            es_error err;
            for (int k = 0; k < 2; k++)
                assert_ok(es_context_open(&c[k], f->m, &o, &err), &err);
            es_context_set_watch(c[1], f->watch, LOOKS);
            for (int at = 0, n; at < N; at += n) {
                n = at == 3 ? 9 : 1;
                for (int k = 0; k < 2; k++)
                    assert_ok(es_context_feed(c[k], f->ids + at, n, NULL, &err), &err);
                assert_memory_equal(es_context_logits(c[0]), es_context_logits(c[1]), sizeof(float) * (size_t)es_model_get_info(f->m)->n_vocab);
            }
            check(f, families[i], exact ? "through an exact cache" : "through the cache", exact ? 1e-4 : 1e-2); /* keys and values have 11 bits */
            for (int k = 0; k < 2; k++)
                es_context_free(c[k]);
            free_fixture(f);
        }
}

/* A patch's low-rank update of the output matrices is part of what they give. */
static void test_patched(void **state)
{
    (void)state;
    fixture *f = make("llama");
    const int d = es_model_get_info(f->m)->d_model, ff = es_model_get_info(f->m)->d_ff;
    float a[WIDE], b[WIDE];
    for (int i = 0; i < WIDE; i++)
        a[i] = b[i] = 0.1f * (float)(i % 7 - 3);
    assert_true(ff <= WIDE && d <= WIDE);
    const es_lowrank low[] = {{1, ES_SITE_O, 1, 1, a, b, false}, {1, ES_SITE_DOWN, 1, 1, a, b, false}};
    const es_patch patch = {.lowrank = low, .n_lowrank = 2};
    es_batch batch = {.ids = f->ids, .n = N, .start = (int[]){0, N}, .n_seq = 1};
    es_trainer *t;
    es_error err;
    trainer_of(&t, f, es_kernels_scalar(), false);
    look *l[2] = {&f->look[2], &f->look[4]}, residual[2] = {{.layer = 0, .width = d}, {.layer = 1, .width = d}};
    assert_true(l[0]->point == ES_POINT_ATTENTION_OUT && l[1]->point == ES_POINT_MLP_OUT && l[0]->layer == 1 && l[1]->layer == 1);
    es_watch w[4] = {f->watch[2], f->watch[4], {0, keep, &residual[0], ES_POINT_RESIDUAL}, {1, keep, &residual[1], ES_POINT_RESIDUAL}};
    assert_ok(es_trainer_forward(t, &batch, NULL, &patch, w, 4, NULL, NULL, &err), &err);
    double moved = 0;
    for (int i = 0; i < N * d; i++) {
        assert_float_equal(residual[0].got[i] + l[0]->got[i] + l[1]->got[i], residual[1].got[i], 1e-4);
        moved = fmax(moved, fabs((double)l[0]->got[i] - l[0]->want[i]));
    }
    assert_true(moved > 1e-2);
    es_trainer_free(t);
    free_fixture(f);
}

/* Entries behind the norm, in families that have one: what DOWN's adds to the residual lies along B's column, and the loss changes as their gradients say. */
typedef struct behind { es_trainer *t; es_batch batch; es_patch patch; int32_t target[N]; uint8_t wanted[N]; float dlogprob[N]; } behind;

static double loss_of(behind *h)
{
    float logprob[N];
    double sum = 0;
    es_error err;
    assert_ok(es_trainer_forward(h->t, &h->batch, NULL, &h->patch, NULL, 0, logprob, NULL, &err), &err);
    for (int i = 0; i < N; i++)
        sum += h->wanted[i] ? (double)h->dlogprob[i] * (double)logprob[i] : 0;
    return sum;
}

static void as_differences(behind *h, float *x, int n, const float *grad, const char *what)
{
    float *saved = calloc((size_t)n, sizeof *saved);
    double norm = 0;
    memcpy(saved, x, sizeof *x * (size_t)n);
    for (int i = 0; i < n; i++)
        norm += (double)grad[i] * (double)grad[i];
    norm = sqrt(norm);
    assert_true(norm > 1e-3);
    for (int turn = 0; turn < 3; turn++) {
        double want = 0, length = 0, step = 4e-3, up;
        for (int i = 0; i < n; i++) {
            double d = turn ? sin(i * 1.7 + turn) : (double)grad[i] / norm;
            length += d * d;
            want += d * (double)grad[i];
        }
        length = sqrt(length);
        for (int side = 0; side < 2; side++) {
            for (int i = 0; i < n; i++)
                x[i] = saved[i] + (float)((side ? -step : step) * (turn ? sin(i * 1.7 + turn) : (double)grad[i] / norm) / length);
            double value = loss_of(h);
            if (side == 0)
                up = value;
            else if (fabs((up - value) / (2 * step) - want / length) > 0.01 * norm + 2e-3)
                fail_msg("%s: differences say %g, the gradient %g (its norm %g)", what, (up - value) / (2 * step), want / length, norm);
        }
    }
    memcpy(x, saved, sizeof *x * (size_t)n);
    free(saved);
}

static void test_behind(void **state)
{
    (void)state;
    static const char *const with_norm[] = {"gemma2", "gemma3", "olmo2"};
    for (int i = 0; i < 3; i++)
        for (int kernels = 0; kernels < 2; kernels++) {
            fixture *f = make(with_norm[i]);
            const es_model_info *m = es_model_get_info(f->m);
            const int d = m->d_model, in[2] = {m->n_head * m->head_dim, m->d_ff};
            float *a[2], *b[2], *ga[2], *gb[2], *before = calloc((size_t)(N * d), sizeof *before), *after = calloc((size_t)(N * d), sizeof *after);
            es_lowrank low[2];
            es_error err;
            behind h = {.batch = {.ids = f->ids, .n = N, .start = (int[]){0, N}, .n_seq = 1}};
            h.batch.target = h.target;
            h.batch.wanted = h.wanted;
            for (int k = 0; k < 2; k++) {
                a[k] = calloc((size_t)in[k], sizeof(float));
                b[k] = calloc((size_t)d, sizeof(float));
                ga[k] = calloc((size_t)in[k], sizeof(float));
                gb[k] = calloc((size_t)d, sizeof(float));
                for (int j = 0; j < in[k]; j++)
                    a[k][j] = 0.3f * (float)sin(j * 0.9 + k);
                for (int j = 0; j < d; j++)
                    b[k][j] = 0.3f * (float)cos(j * 1.3 + k);
                low[k] = (es_lowrank){.layer = 1, .site = k ? ES_SITE_DOWN : ES_SITE_O, .rank = 1, .scale = 0.7f, .a = a[k], .b = b[k], .behind = true};
            }
            for (int t = 0; t < N; t++) {
                h.target[t] = (f->ids[t] + 3) % m->n_vocab;
                h.wanted[t] = t % 5 != 4;
                h.dlogprob[t] = (float)sin(t * 2.1);
            }
            trainer_of(&h.t, f, kernels ? es_kernels_cpu() : es_kernels_scalar(), true);
            look residual = {.layer = 1, .width = d};
            const es_watch w = {1, keep, &residual, ES_POINT_RESIDUAL};
            assert_ok(es_trainer_forward(h.t, &h.batch, NULL, NULL, &w, 1, NULL, NULL, &err), &err);
            memcpy(before, residual.got, sizeof *before * (size_t)(N * d));
            const es_patch down = {.lowrank = low + 1, .n_lowrank = 1};
            assert_ok(es_trainer_forward(h.t, &h.batch, NULL, &down, &w, 1, NULL, NULL, &err), &err);
            memcpy(after, residual.got, sizeof *after * (size_t)(N * d));
            double moved = 0;
            for (int t = 0; t < N; t++) {
                double along = 0, square = 0;
                for (int j = 0; j < d; j++) {
                    along += ((double)after[t * d + j] - (double)before[t * d + j]) * (double)b[1][j];
                    square += (double)b[1][j] * (double)b[1][j];
                }
                for (int j = 0; j < d; j++)
                    assert_float_equal(after[t * d + j] - before[t * d + j], along / square * (double)b[1][j], 2e-4);
                moved = fmax(moved, fabs(along));
            }
            assert_true(moved > 1e-2);
            h.patch = (es_patch){.lowrank = low, .n_lowrank = 2};
            loss_of(&h);
            es_grad g = {.a = ga, .b = gb};
            assert_ok(es_trainer_backward(h.t, &h.batch, &h.patch, h.dlogprob, NULL, NULL, &g, 1, NULL, &err), &err);
            for (int k = 0; k < 2; k++) {
                as_differences(&h, a[k], in[k], ga[k], k ? "A of down" : "A of o");
                as_differences(&h, b[k], d, gb[k], k ? "B of down" : "B of o");
            }
            for (int k = 0; k < 2; k++) {
                free(a[k]);
                free(b[k]);
                free(ga[k]);
                free(gb[k]);
            }
            free(before);
            free(after);
            es_trainer_free(h.t);
            free_fixture(f);
        }
}

static void test_refused(void **state)
{
    (void)state;
    fixture *f = make("llama");
    es_batch b = {.ids = f->ids, .n = N, .start = (int[]){0, N}, .n_seq = 1};
    es_trainer *t;
    es_error err;
    trainer_of(&t, f, es_kernels_scalar(), false);
    float *out = f->look[0].got;
    assert_error(es_trainer_point(t, &b, -1, ES_POINT_MLP_OUT, out, NULL, &err), &err, "layer -1");
    assert_error(es_trainer_point(t, &b, 4, ES_POINT_ATTENTION, out, NULL, &err), &err, "layer 4");
    assert_error(es_trainer_point(t, &b, 0, ES_N_POINTS, out, NULL, &err), &err, "layer 0");
    es_trainer_free(t);
    free_fixture(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_trainer), cmocka_unit_test(test_context), cmocka_unit_test(test_patched), cmocka_unit_test(test_behind), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests_name("points", tests, NULL, NULL);
}
