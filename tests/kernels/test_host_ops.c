/* The ops around memory, of every table of the processor. Linear ones are tested as pairs: <forward(x), y> = <x, backward(y)>, and against what
 * they are made of. Also what is said of cards where there is none. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "es_cuda.h"
#include "internal.h"
#include "sparse.h"

static es_rng rng;
static es_pool *pool;
static const es_kernels *tables[3];
#define EACH_TABLE for (int table = 0; table < 3; table++)
#define K tables[table]

static float *noise(size_t n)
{
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = es_rng_normal(&rng);
    return x;
}

static double dot(const float *a, const float *b, size_t n)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += (double)a[i] * b[i];
    return s;
}

static void close_to(double got, double want)
{
    if (!(fabs(got - want) <= 1e-4 * (fabs(want) + 1)))
        fail_msg("%g, not %g", got, want);
}

static void test_memory(void **state)
{
    (void)state;
    EACH_TABLE {
        es_error err;
        void *p, *q, *none = &err;
        assert_int_equal(K->alloc(NULL, &p, 100, &err), 0);
        assert_int_equal(K->alloc(NULL, &q, 0, &err), 0); /* nothing is something that can be released */
        assert_int_equal((uintptr_t)p % 64, 0);
        assert_int_equal(K->alloc(NULL, &none, SIZE_MAX / 2, &err), ES_ERR_MEMORY);
        assert_null(none);
        assert_non_null(strstr(err.text, "MB"));
        float x[25], y[25] = {0};
        for (int i = 0; i < 25; i++)
            x[i] = (float)i;
        K->upload(NULL, p, x, 100);
        K->copy(NULL, y, p, 100);
        assert_memory_equal(x, y, 100);
        K->clear(NULL, p, 40);
        K->download(NULL, y, p, 100);
        assert_true(y[9] == 0 && y[10] == 10);
        K->upload(NULL, q, x, 0);
        assert_int_equal(K->sync(NULL, &err), 0);
        K->release(NULL, p);
        K->release(NULL, q);
        K->release(NULL, NULL);
    }
}

static void test_rows(void **state)
{
    (void)state;
    enum { N = 5, D = 7, ALL = 9 };
    const int32_t index[N] = {8, 0, 3, 4, 1};
    EACH_TABLE {
        float *x = noise(ALL * D), *out = noise(N * D), *back = noise(ALL * D), *was = malloc(sizeof(float) * ALL * D);
        memcpy(was, back, sizeof(float) * ALL * D);
        K->gather_rows(NULL, x, index, N, D, out);
        for (int i = 0; i < N; i++)
            assert_memory_equal(out + i * D, x + index[i] * D, sizeof(float) * D);
        K->scatter_rows(NULL, out, index, N, D, back);
        for (int i = 0; i < ALL; i++) {
            bool moved = i == 8 || i == 0 || i == 3 || i == 4 || i == 1;
            assert_memory_equal(back + i * D, (moved ? x : was) + i * D, sizeof(float) * D);
        }
        K->axpy(NULL, -1, x, x, ALL * D);
        assert_true(dot(x, x, ALL * D) == 0);
        free(x), free(out), free(back), free(was);
    }
}

static void test_embed(void **state)
{
    (void)state;
    enum { N = 6, D = 32, T = 5 };
    const int32_t ids[T] = {2, 0, 2, 5, 2};
    EACH_TABLE {
        float *w = noise(N * D), *dh = noise(T * D), *dw = calloc(N * D, sizeof *dw), *out = noise(T * D);
        es_weight weight = {ES_F32, N, D, w};
        K->embed(NULL, &weight, ids, T, 3, out);
        for (int t = 0; t < T; t++)
            for (int i = 0; i < D; i++)
                assert_true(out[t * D + i] == 3 * w[ids[t] * D + i]);
        K->embed_back(NULL, dh, ids, T, D, 3, dw, N);
        close_to(dot(out, dh, T * D), dot(w, dw, N * D));
        uint8_t blocks[N * 18]; /* a quantised one */
        for (size_t i = 0; i < sizeof blocks; i++)
            blocks[i] = (uint8_t)es_rng_below(&rng, 64);
        float want[D];
        weight = (es_weight){ES_Q4_0, N, D, blocks};
        K->embed(NULL, &weight, ids, T, 1, out);
        es_dequant(ES_Q4_0, blocks + 5 * 18, want, D);
        assert_memory_equal(out + 3 * D, want, sizeof want);
        free(w), free(dh), free(dw), free(out);
    }
}

static void test_gradients(void **state)
{
    (void)state;
    enum { T = 6, D = 11 };
    const int pos[T] = {0, 1, 2, 0, 1, 2};
    EACH_TABLE {
        float *v = noise(D), *h = calloc(T * D, sizeof *h), *dh = noise(T * D), *dv = calloc(D, sizeof *dv);
        K->add_vector(NULL, h, pos, 1, 2, v, T, D);
        K->add_vector_back(NULL, dh, pos, 1, 2, T, D, dv);
        close_to(dot(h, dh, T * D), dot(v, dv, D));
        assert_true(h[0] == 0 && h[3 * D] == 0 && h[4 * D] == 2 * v[0]);

        /* L = sum dh * by * f, f = u + bias where above the threshold: dL/dby sums gate_back's f, dL/du is its dp */
        float *u = noise(T * D), *f = calloc(T * D, sizeof *f), *dp = calloc(T * D, sizeof *dp), *by = noise(D), least[D], dby[D] = {0};
        for (int i = 0; i < D; i++)
            least[i] = 0.1f * (float)i - 0.5f;
        memcpy(f, u, T * D * sizeof *f);
        memcpy(dp, dh, T * D * sizeof *dp);
        K->gate(NULL, f, v, least, NULL, pos, T, D);
        double loss = 0, by_back = 0;
        for (int i = 0; i < T * D; i++) {
            const float x = u[i] + v[i % D];
            assert_true(f[i] == (pos[i / D] && x > least[i % D] ? x : 0));
            loss += (double)f[i] * by[i % D] * dh[i];
        }
        float *through = calloc(T * D, sizeof *through);
        memcpy(through, u, T * D * sizeof *through);
        K->gate(NULL, through, v, least, by, pos, T, D);
        close_to(dot(through, dh, T * D), loss);
        float *fires = calloc(T * D, sizeof *fires);
        memcpy(fires, f, T * D * sizeof *fires);
        K->gate_back(NULL, f, by, dp, T, D);
        K->add_vector_back(NULL, f, pos, 0, 1, T, D, dby);
        for (int i = 0; i < D; i++)
            by_back += (double)dby[i] * by[i];
        close_to(by_back, loss); /* linear in by */
        for (int i = 0; i < T * D; i++)
            assert_true(dp[i] == (fires[i] != 0 ? by[i % D] * dh[i] : 0));
        free(u), free(f), free(dp), free(by), free(through), free(fires);

        float *x = noise(T * D), *w = noise(D), *dw = calloc(D, sizeof *dw), *y = noise(T * D);
        K->rmsnorm(pool, x, w, y, T, D, 1e-5f); /* linear in w */
        K->rmsnorm_weight_back(NULL, x, dh, dw, T, D, 1e-5f);
        close_to(dot(y, dh, T * D), dot(w, dw, D));

        float a[3] = {0.3f, -2, 9}, lower[3], upper[3], slope[3] = {1, 1, 1}, at[3];
        for (int i = 0; i < 3; i++)
            at[i] = a[i], lower[i] = a[i] - 1e-2f, upper[i] = a[i] + 1e-2f;
        K->soft_cap(pool, at, 3, 5), K->soft_cap(pool, lower, 3, 5), K->soft_cap(pool, upper, 3, 5);
        K->soft_cap_back(NULL, at, slope, 3, 5);
        for (int i = 0; i < 3; i++)
            assert_true(fabs(slope[i] - (upper[i] - lower[i]) / 2e-2) < 1e-3);
        free(v), free(h), free(dh), free(dv), free(x), free(w), free(dw), free(y);
    }
}

static void test_top(void **state)
{
    (void)state;
    enum { N = 300 };
    EACH_TABLE {
        float x[N], value[N], logsum, low[2] = {-INFINITY, NAN};
        int32_t index[N];
        for (int i = 0; i < N; i++)
            x[i] = (float)es_rng_below(&rng, 40);
        x[7] = NAN; /* counts as -infinity: the last of all */
        for (int k = 1; k <= N; k += 23) /* up to all */ {
            K->top(NULL, x, N, k, index, value, &logsum);
            for (int i = 0; i < k; i++) {
                const float own = isnan(x[index[i]]) ? -INFINITY : x[index[i]];
                int before = 0; /* how many come before it */
                for (int j = 0; j < N; j++)
                    before += !isnan(x[j]) && (x[j] > own || (x[j] == own && j < index[i]));
                assert_int_equal(before, i);
                assert_true(value[i] == own);
            }
        }
        double sum = 0;
        for (int i = 0; i < N; i++)
            sum += isnan(x[i]) ? 0 : exp(x[i]);
        close_to(logsum, log(sum));
        K->top(NULL, low, 2, 2, index, value, &logsum);
        assert_true(index[0] == 0 && index[1] == 1 && isinf(value[1]) && isinf(logsum) && logsum < 0);
        K->top(NULL, x, N, 3, index, value, NULL);
    }
}

/* By the paper's formulas, in double, three steps with corrections. */
static void test_adam(void **state)
{
    (void)state;
    EACH_TABLE {
        double x = 0.5, m = 0, v = 0;
        float fx = 0.5f, fm = 0, fv = 0;
        for (int t = 1; t <= 3; t++) {
            const double g = 0.3 * t - 0.5, c1 = 1 - pow(0.9, t), c2 = 1 - pow(0.999, t);
            m = 0.9 * m + 0.1 * g, v = 0.999 * v + 0.001 * g * g;
            x -= 0.01 * 0.1 * x; /* decay apart from the gradient (Loshchilov & Hutter 2019) */
            x -= 0.01 * (m / c1) / (sqrt(v / c2) + 1e-8);
            const float fg = (float)g;
            K->adam(NULL, &fx, &fg, &fm, &fv, 1, 0.9f, 0.999f, (float)(0.01 * sqrt(c2) / c1), (float)(1e-8 * sqrt(c2)), 1 - 0.001f);
        }
        assert_true(fabs(fx - x) < 1e-6);
    }
}

/* ---- a dictionary's reference: against the plain sum of what it says, and its gradients as pairs ------------------------------------------------- */

static void test_sparse(void **state)
{
    (void)state;
    enum { T = 9, F = 40, D = 6, KEEP = 3, CAP = T * F };
    const es_sparse_kernels *s = es_sparse_scalar();
    float *x = noise(T * D), *enc = noise(F * D), *bias = noise(F), *dec = noise(F * D), *b = noise(D);
    float z[T * F], threshold[F], value[CAP];
    int32_t token[CAP], feature[CAP], token_start[T + 1], count[2], by_feature[CAP], feature_start[F + 1];
    es_entries l = {CAP, token, feature, value, token_start, count, by_feature, feature_start};
    for (int f = 0; f < F; f++)
        threshold[f] = 0.1f * (float)(f % 7);
    for (int t = 0; t < T; t++)
        for (int f = 0; f < F; f++)
            z[t * F + f] = (float)(dot(x + t * D, enc + f * D, D) + bias[f]);
    for (int keep = ES_KEEP_ABOVE; keep <= ES_KEEP_BATCH; keep++) {
        es_encoder e = {(es_keep)keep, F, D, KEEP, enc, bias, threshold};
        s->encode(NULL, &e, x, T, &l);
        int n = 0;
        for (int t = 0; t < T; t++) {
            assert_int_equal(token_start[t], n);
            for (int f = 0; f < F; f++) {
                int larger = 0; /* in its row, or of all */
                for (int i = keep == ES_KEEP_TOKEN ? t * F : 0; i < (keep == ES_KEEP_TOKEN ? t * F + F : T * F); i++)
                    larger += z[i] > z[t * F + f];
                bool stays = keep == ES_KEEP_ABOVE ? z[t * F + f] > threshold[f] : z[t * F + f] > 0 && larger < (keep == ES_KEEP_TOKEN ? KEEP : T * KEEP);
                if (!stays)
                    continue;
                assert_true(n < count[0] && token[n] == t && feature[n] == f && value[n] == z[t * F + f]);
                n++;
            }
        }
        assert_int_equal(n, count[0]);
        assert_int_equal(n, count[1]);
        assert_int_equal(token_start[T], n);
    }
    s->index(NULL, &l, T, F);
    assert_int_equal(feature_start[F], count[0]);
    for (int f = 0; f < F; f++)
        for (int i = feature_start[f]; i < feature_start[f + 1]; i++)
            assert_true(feature[by_feature[i]] == f && (i == feature_start[f] || by_feature[i] > by_feature[i - 1]));

    float out[T * D], grad[CAP], *g = noise(T * D), dw[F * D], dbias[F];
    s->decode(NULL, &l, dec, NULL, T, D, out);
    s->value_back(NULL, &l, g, dec, T, D, 2, grad);
    close_to(dot(value, grad, (size_t)count[0]), 2 * dot(out, g, T * D)); /* decode is linear in the values ... */
    memset(dw, 0, sizeof dw), memset(dbias, 0, sizeof dbias);
    s->feature_back(NULL, &l, g, value, F, D, 2, dw, dbias);
    close_to(dot(dw, dec, F * D), 2 * dot(out, g, T * D)); /* ... and in the rows */
    double all = 0, sums = 0;
    for (int i = 0; i < count[0]; i++)
        all += 2 * value[i];
    for (int f = 0; f < F; f++)
        sums += dbias[f];
    close_to(sums, all);
    float with[T * D];
    s->decode(NULL, &l, dec, b, T, D, with);
    close_to(with[D + 1] - out[D + 1], b[1]);
    s->unit_rows(NULL, dec, F, D);
    s->project_rows(NULL, dec, dw, F, D);
    for (int f = 0; f < F; f++) {
        close_to(dot(dec + f * D, dec + f * D, D), 1);
        close_to(dot(dw + f * D, dec + f * D, D), 0);
    }
    l.cap = 4;
    es_encoder e = {ES_KEEP_BATCH, F, D, KEEP, enc, bias, NULL};
    s->encode(NULL, &e, x, T, &l);
    assert_true(count[0] == 4 && count[1] == T * KEEP);
    free(x), free(enc), free(bias), free(dec), free(b), free(g);
}

static void test_no_card(void **state)
{
    (void)state;
    if (es_cuda_count() > 0)
        skip();
    es_error err;
    es_cuda *c = (es_cuda *)&err;
    char line[300];
    assert_int_equal(es_cuda_open(0, &c, &err), ES_ERR_MISSING);
    assert_null(c);
    es_cuda_describe(NULL, line, sizeof line);
    assert_true(strncmp(line, "cuda: ", 6) == 0 && strlen(line) > 10);
    es_cuda_close(NULL);
}

int main(void)
{
    es_rng_seed(&rng, 3);
    tables[0] = es_kernels_scalar(), tables[1] = es_kernels_cpu(), tables[2] = es_kernels_half();
    if (es_pool_open(&pool, 1, NULL) != 0)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory), cmocka_unit_test(test_rows), cmocka_unit_test(test_embed), cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_top),    cmocka_unit_test(test_adam), cmocka_unit_test(test_sparse), cmocka_unit_test(test_no_card),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    es_pool_free(pool);
    return failed;
}
