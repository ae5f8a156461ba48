/* Every op of every table against the scalar reference, on odd shapes too; the reference's gradients against finite differences;
 * the quantised types against bytes and values of the gguf package. Arrays are allocated to the float, so that AddressSanitizer
 * sees an op that reads or writes past an edge. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "internal.h"

static es_pool *pool;
static es_rng rng;
static const es_simd *variants[4];
static int n_variants;
static const es_kernels *ref, *cpu;

static float *floats(size_t n)
{
    float *x = malloc((n ? n : 1) * sizeof *x);
    assert_non_null(x);
    return x;
}

static float *noise(size_t n, float scale)
{
    float *x = floats(n);
    for (size_t i = 0; i < n; i++)
        x[i] = scale * es_rng_normal(&rng);
    return x;
}

static float *copy(const float *x, size_t n)
{
    return memcpy(floats(n), x, n * sizeof *x);
}

/* |got - want| <= bound * |want| over the whole array, and no single element off by more than 10 * bound * its largest. usual: the
 * size an element has when terms do not cancel; |want| counts as no less. */
static void near_sized(const char *what, const float *got, const float *want, size_t n, double bound, double usual)
{
    double diff = 0, size = 0, worst = 0, most = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - want[i];
        diff += d * d;
        size += (double)want[i] * want[i];
        worst = fabs(d) > worst ? fabs(d) : worst;
        most = fabs(want[i]) > most ? fabs(want[i]) : most;
    }
    size = fmax(size, usual * usual * (double)n);
    most = fmax(most, usual);
    if (!(sqrt(diff) <= bound * sqrt(size) + 1e-12) || !(worst <= 10 * bound * most + 1e-12))
        fail_msg("%s (%s): relative error %.2g, largest %.2g of %.2g; allowed %.2g", what, es_cpu_simd->name, sqrt(diff / (size + 1e-30)), worst,
                 most, bound);
}

static void near_to(const char *what, const float *got, const float *want, size_t n, double bound)
{
    near_sized(what, got, want, n, bound, 0);
}

static double norm(const float *x, size_t n)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += (double)x[i] * x[i];
    return sqrt(s);
}

#define EACH_VARIANT for (int variant = 0; variant < n_variants && (es_kernels_cpu_use(variants[variant]), true); variant++)
#define LENGTH(a) ((int)(sizeof(a) / sizeof *(a)))

/* ---- weights ------------------------------------------------------------------------------------------------------------------ */

static const es_type types[] = {ES_F32, ES_F16, ES_BF16, ES_Q4_0, ES_Q4_1, ES_Q5_0, ES_Q5_1, ES_Q8_0,
                                ES_Q2_K, ES_Q3_K, ES_Q4_K, ES_Q5_K, ES_Q6_K, ES_IQ4_NL};

static void put_half(uint8_t *at, float f)
{
    uint16_t h;
    es_f32_to_f16(&f, &h, 1);
    memcpy(at, &h, 2);
}

static es_weight random_weight(es_type type, int n_out, int n_in)
{
    const es_type_info *t = es_type_get((int)type);
    size_t blocks = (size_t)n_out * (size_t)n_in / (size_t)t->block;
    uint8_t *data = malloc(blocks * (size_t)t->bytes);
    assert_non_null(data);
    for (size_t i = 0; i < blocks * (size_t)t->bytes; i++)
        data[i] = (uint8_t)es_rng_below(&rng, 256);
    for (size_t i = 0; i < blocks; i++) {
        uint8_t *b = data + i * (size_t)t->bytes;
        float d = 0.01f * es_rng_normal(&rng);
        switch (type) {
        case ES_F32: memcpy(b, &d, 4); break;
        case ES_BF16: memcpy(b, (const char *)&d + 2, 2); break; /* the upper half */
        case ES_F16:
        case ES_Q4_0:
        case ES_Q5_0:
        case ES_Q8_0: put_half(b, d); break;
        case ES_IQ4_NL: put_half(b, 0.1f * d); break;
        case ES_Q4_1: put_half(b, d), put_half(b + 2, -7 * d); break;
        case ES_Q5_1: put_half(b, d), put_half(b + 2, -15 * d); break;
        case ES_Q2_K: put_half(b + 80, 0.1f * d), put_half(b + 82, 0.2f * d); break;
        case ES_Q3_K: put_half(b + 108, 0.1f * d); break;
        case ES_Q4_K: put_half(b, 0.03f * d), put_half(b + 2, 0.2f * d); break;
        case ES_Q5_K: put_half(b, 0.03f * d), put_half(b + 2, 0.4f * d); break;
        case ES_Q6_K: put_half(b + 208, 0.01f * d); break;
        }
    }
    return (es_weight){type, n_out, n_in, data};
}

static void free_weight(es_weight *w)
{
    free((void *)(uintptr_t)w->data);
}

static void same_values(const float *got, const float *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(got[i] == want[i])) /* not by bytes: 0 and -0 are equal */
            fail_msg("element %zu is %.9g, not %.9g (%s)", i, got[i], want[i], es_cpu_simd->name);
}

static void test_golden_values(void **state)
{
    (void)state;
    const char *dir = getenv("ESPALIER_TEST_DIR");
    char path[1024];
    snprintf(path, sizeof path, "%s/golden/quant.bin", dir ? dir : "tests");
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("cannot open %s", path);
    uint32_t head[3];
    int sections = 0;
    while (fread(head, sizeof head, 1, f) == 1) {
        uint8_t *raw = malloc(head[2]);
        float *want = floats(head[1]), *got = floats(head[1]);
        assert_int_equal(fread(raw, 1, head[2], f), head[2]);
        assert_int_equal(fread(want, sizeof *want, head[1], f), head[1]);
        assert_non_null(es_type_get((int)head[0]));
        es_dequant((es_type)head[0], raw, got, head[1]);
        same_values(got, want, head[1]);
        EACH_VARIANT {
            memset(got, 0xff, head[1] * sizeof *got);
            es_cpu_simd->dequant((es_type)head[0], raw, got, head[1]);
            same_values(got, want, head[1]);
        }
        free(raw), free(want), free(got);
        sections++;
    }
    fclose(f);
    assert_int_equal(sections, LENGTH(types) - 1); /* F32 needs none */
}

static void test_types(void **state)
{
    (void)state;
    assert_string_equal(es_type_get(ES_Q6_K)->name, "Q6_K");
    assert_null(es_type_get(-1));
    assert_null(es_type_get(4)); /* numbers that GGUF has given up or we do not read */
    assert_null(es_type_get(15));
    assert_null(es_type_get(31));
    for (int i = 0; i < LENGTH(types); i++)
        assert_int_equal(es_row_bytes(types[i], 512), 512 / es_type_get((int)types[i])->block * es_type_get((int)types[i])->bytes);
    char list[128], tiny[8];
    es_type_list(list, sizeof list);
    assert_string_equal(list, "F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL and BF16");
    es_type_list(tiny, sizeof tiny);
    assert_string_equal(tiny, "F32, F1");
    assert_null(es_type_get(1 << 30));
}

static void test_half_precision(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) { /* every half comes back from f32 as it was */
        uint16_t in = (uint16_t)h, out;
        float f;
        es_f16_to_f32(&in, &f, 1);
        es_f32_to_f16(&f, &out, 1);
        if (isnan(f))
            assert_true((out & 0x7c00) == 0x7c00 && (out & 0x3ff));
        else
            assert_int_equal(in, out);
    }
    static const struct {
        float f;
        uint16_t h;
    } cases[] = {
        {65519.9f, 0x7bff}, {65520.0f, 0x7c00},        {-1e30f, 0xfc00},   {0x1p-25f, 0},           {0x1.8p-25f, 1},
        {0x1p-24f, 1},      {0x1.0018p0f - 0x1p-12f, 0x3c00}, {0x1.003p0f, 0x3c01}, {0x1.002p0f, 0x3c00}, {0x1.006p0f, 0x3c02},
    };
    for (int i = 0; i < LENGTH(cases); i++) {
        uint16_t h;
        es_f32_to_f16(&cases[i].f, &h, 1);
        assert_int_equal(h, cases[i].h);
    }
}

/* ---- products --------------------------------------------------------------------------------------------------------------------- */

static void check_matmul(es_type type, int N, int K, int T)
{
    es_weight w = random_weight(type, N, K);
    size_t nx = (size_t)T * (size_t)K, ny = (size_t)T * (size_t)N;
    float *x = noise(nx, 1), *dy = noise(ny, 1), *y0 = noise(ny, 1), *dx0 = noise(nx, 1);
    for (size_t i = 0; i < nx; i += 37)
        x[i] *= 300; /* outliers, as activations have them */
    float *plain = floats((size_t)N * (size_t)K);
    es_dequant(type, w.data, plain, (size_t)N * (size_t)K);
    const double size = norm(plain, (size_t)N * (size_t)K), usual = size * norm(x, nx) / sqrt((double)T * N * K),
                 usual_dx = size * norm(dy, ny) / sqrt((double)T * N * K);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        float *want = copy(y0, ny), *want_dx = copy(dx0, nx);
        ref->matmul(NULL, &w, x, T, want, accumulate, true);
        ref->matmul_back(NULL, &w, dy, T, want_dx, accumulate);
        EACH_VARIANT {
            char what[96];
            float *y = copy(y0, ny), *dx = copy(dx0, nx);
            snprintf(what, sizeof what, "matmul %s N %d K %d T %d", es_type_get((int)type)->name, N, K, T);
            cpu->matmul(pool, &w, x, T, y, accumulate, true);
            near_sized(what, y, want, ny, 3e-6, usual);
            memcpy(y, y0, ny * sizeof *y);
            cpu->matmul(pool, &w, x, T, y, accumulate, false);
            near_sized(what, y, want, ny, 4e-4, usual); /* 15 bits, and blocks with an outlier of 300 times the rest; eight bits would be at 5e-2 */
            cpu->matmul_back(pool, &w, dy, T, dx, accumulate);
            near_sized("matmul_back", dx, want_dx, nx, 3e-6, usual_dx);
            free(y), free(dx);
        }
        free(want), free(want_dx);
    }
    free(x), free(dy), free(y0), free(dx0), free(plain);
    free_weight(&w);
}

static void test_matmul(void **state)
{
    (void)state;
    static const int ts[] = {1, 2, 3, 4, 5, 7, 16, 33, 130}, ns[] = {1, 3, 17, 70, 300};
    for (int i = 0; i < LENGTH(types); i++) {
        int block = es_type_get((int)types[i])->block;
        for (int t = 0; t < LENGTH(ts); t++)
            for (int n = 0; n < LENGTH(ns) - (ts[t] > 100); n++) { /* 33 tokens do for more than a panel of rows: it is slow where emulated */
                check_matmul(types[i], ns[n], block == 256 ? 256 : block == 32 ? 96 : 77, ts[t]);
                if (n == 2)
                    check_matmul(types[i], ns[n], block == 256 ? 512 : block == 32 ? 32 : 1, ts[t]);
            }
        check_matmul(types[i], 192, 1536, 1);
        check_matmul(types[i], 64, 1536, 20);
        if (block == 32) /* whole quads of blocks, and some over */
            check_matmul(types[i], 50, 160, 2), check_matmul(types[i], 50, 576, 9);
        if (block > 1) { /* rows that leave room for few tokens at a time, and for none */
            check_matmul(types[i], 3, 16384, 40);
            check_matmul(types[i], 2, 65536, 18);
        }
    }
}

/* Weights that share an input: bit for bit what they give one by one. */
static void test_matmuls(void **state)
{
    (void)state;
    static const int ts[] = {1, 3, 8, 9, 40}, ns[3] = {33, 7, 130};
    static const es_type mixed[][3] = {{ES_Q4_1, ES_Q4_1, ES_Q4_1}, {ES_Q5_0, ES_Q8_0, ES_Q5_0}, {ES_Q4_K, ES_Q4_K, ES_Q6_K}, {ES_Q4_K, ES_F16, ES_Q8_0}};
    for (int i = 0; i < LENGTH(mixed); i++)
        for (int t = 0; t < LENGTH(ts); t++) {
            const int K = 512, T = ts[t];
            es_weight w[3];
            const es_weight *list[3] = {&w[0], &w[1], &w[2]};
            float *x = noise((size_t)T * (size_t)K, 1), *y[3], *want[3];
            for (int k = 0; k < 3; k++) {
                w[k] = random_weight(mixed[i][k], ns[k], K);
                y[k] = noise((size_t)T * (size_t)ns[k], 1);
                want[k] = floats((size_t)T * (size_t)ns[k]);
            }
            EACH_VARIANT
                for (int exact = 0; exact < 2; exact++)
                    for (int n = 1; n <= 3; n++) {
                        cpu->matmuls(pool, list, n, x, T, y, exact);
                        for (int k = 0; k < n; k++) {
                            cpu->matmul(pool, &w[k], x, T, want[k], false, exact);
                            assert_memory_equal(y[k], want[k], (size_t)T * (size_t)ns[k] * sizeof(float));
                        }
                    }
            for (int k = 0; k < 3; k++)
                free_weight(&w[k]), free(y[k]), free(want[k]);
            free(x);
        }
}

/* The largest integers that a block can hold, all of one sign, against activations that are all the largest: sums do not overflow. */
static void test_matmul_extreme(void **state)
{
    (void)state;
    enum { K = 512, N = 5, MOST = 16 };
    static const int ts[] = {1, 2, 16};
    for (int sign = -1; sign <= 1; sign += 2) {
        es_weight w = random_weight(ES_Q6_K, N, K);
        uint8_t *b = (uint8_t *)(uintptr_t)w.data;
        float x[MOST * K], y[MOST * N];
        for (size_t i = 0; i < N * K / 256; i++, b += 210) { /* q = 0 - 32, scale -128 */
            memset(b, 0, 192);
            memset(b + 192, 0x80, 16);
            put_half(b + 208, 1);
        }
        for (int i = 0; i < MOST * K; i++)
            x[i] = (float)sign * 3;
        EACH_VARIANT
            for (int t = 0; t < LENGTH(ts); t++) {
                cpu->matmul(pool, &w, x, ts[t], y, false, false);
                for (int i = 0; i < ts[t] * N; i++)
                    assert_true(fabsf(y[i] - (float)sign * 3 * 4096 * K) <= 1e-3f * 3 * 4096 * K);
            }
        free_weight(&w);
    }
}

/* Products on bfloat16: within what rounding both sides to 8 bits gives, whatever the shape; few tokens are exact. */
static void check_matmul_half(es_type type, int N, int K, int T)
{
    const es_kernels *half = es_kernels_half();
    es_weight w = random_weight(type, N, K);
    size_t nx = (size_t)T * (size_t)K, ny = (size_t)T * (size_t)N;
    float *x = noise(nx, 1), *dy = noise(ny, 1), *y0 = noise(ny, 1), *dx0 = noise(nx, 1);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        float *want = copy(y0, ny), *want_dx = copy(dx0, nx), *y = copy(y0, ny), *dx = copy(dx0, nx);
        char what[96];
        snprintf(what, sizeof what, "bfloat16 matmul %s N %d K %d T %d", es_type_get((int)type)->name, N, K, T);
        ref->matmul(NULL, &w, x, T, want, accumulate, true);
        ref->matmul_back(NULL, &w, dy, T, want_dx, accumulate);
        double bound = T < 32 ? 3e-6 : 4e-3;
        half->matmul(pool, &w, x, T, y, accumulate, true);
        near_to(what, y, want, ny, bound);
        half->matmul_back(pool, &w, dy, T, dx, accumulate);
        near_to(what, dx, want_dx, nx, bound);
        free(want), free(want_dx), free(y), free(dx);
    }
    free(x), free(dy), free(y0), free(dx0);
    free_weight(&w);
}

static void test_matmul_half(void **state)
{
    (void)state;
    if (es_kernels_half() == cpu)
        return; /* no products of its own on this processor: test_matmul has them */
    static const int ts[] = {31, 32, 47, 130}, ns[] = {2, 31, 34, 70, 300, 520};
    for (int i = 0; i < LENGTH(types); i++) {
        int block = es_type_get((int)types[i])->block;
        for (int t = 0; t < LENGTH(ts); t++)
            for (int n = 0; n < LENGTH(ns); n++)
                check_matmul_half(types[i], ns[n], block == 256 ? 512 : block == 32 ? 96 : n % 2 ? 46 : 64, ts[t]);
        check_matmul_half(types[i], 70, block == 256 ? 512 : 1024, 1100);  /* more tokens than are rounded at a time */
        check_matmul_half(types[i], 34, 16384, 40);                         /* rows that leave no room: the CPU table's way */
    }
    es_weight w = random_weight(ES_Q4_1, 34, 64); /* a NaN or an infinity shows */
    for (int bad = 0; bad < 2; bad++) {
        float *x = noise(40 * 64, 1), *y = noise(40 * 34, 1);
        x[3 * 64 + 7] = bad ? INFINITY : NAN;
        es_kernels_half()->matmul(pool, &w, x, 40, y, false, false);
        for (int i = 0; i < 40 * 34; i++)
            assert_int_equal(isfinite(y[i]) != 0, i / 34 != 3);
        free(x), free(y);
    }
    free_weight(&w);
}

/* Products on activations of 8 bits: where 127 steps either side of a block's largest number end, and what they do not do is the other table's. */
static void check_matmul_eight(es_type type, int N, int K, int T)
{
    const es_kernels *eight = es_kernels_eight();
    es_weight w[2] = {random_weight(type, N, K), random_weight(type, 23, K)};
    size_t nx = (size_t)T * (size_t)K, ny = (size_t)T * (size_t)N, n23 = (size_t)T * 23;
    float *x = noise(nx, 1), *y0 = noise(ny, 1);
    for (size_t i = 0; i < nx; i++) /* blocks of all sizes, some of zeros */
        x[i] *= (i / 32) % 7 == 3 ? 0 : expf((float)((i / 32) % 5) - 2);
    char what[96];
    snprintf(what, sizeof what, "matmul in 8 bits %s N %d K %d T %d", es_type_get((int)type)->name, N, K, T);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        float *want = copy(y0, ny), *y = copy(y0, ny);
        ref->matmul(NULL, &w[0], x, T, want, accumulate, true);
        eight->matmul(pool, &w[0], x, T, y, accumulate, true);
        near_to(what, y, want, ny, T < 32 ? 3e-6 : 1e-2);
        free(want), free(y);
    }
    const es_weight *both[] = {&w[0], &w[1]};
    float *y[2] = {noise(ny, 1), noise(n23, 1)}, *want[2] = {noise(ny, 1), noise(n23, 1)};
    eight->matmuls(pool, both, 2, x, T, y, true);
    for (int i = 0; i < 2; i++) {
        ref->matmul(NULL, &w[i], x, T, want[i], false, true);
        near_to(what, y[i], want[i], i ? n23 : ny, 1e-2);
        free(y[i]), free(want[i]);
    }
    free(x), free(y0);
    free_weight(&w[0]), free_weight(&w[1]);
}

static void test_matmul_eight(void **state)
{
    (void)state;
    if (es_kernels_eight() == es_kernels_half())
        return;
    static const int ts[] = {31, 32, 47, 130}, ns[] = {2, 16, 31, 70, 300};
    for (int i = 0; i < LENGTH(types); i++) {
        int block = es_type_get((int)types[i])->block;
        for (int t = 0; t < LENGTH(ts); t++)
            for (int n = 0; n < LENGTH(ns); n++)
                check_matmul_eight(types[i], ns[n], block == 256 ? 512 : n % 2 ? 96 : 64, ts[t]);
        check_matmul_eight(types[i], 34, 4096, 1900); /* more tokens than are rounded at a time */
    }
    es_weight w = random_weight(ES_Q4_1, 34, 64); /* a NaN or an infinity shows */
    for (int bad = 0; bad < 2; bad++) {
        float *x = noise(40 * 64, 1), *y = noise(40 * 34, 1);
        x[3 * 64 + 7] = bad ? INFINITY : NAN;
        es_kernels_eight()->matmul(pool, &w, x, 40, y, false, false);
        for (int i = 0; i < 40 * 34; i++)
            assert_int_equal(isfinite(y[i]) != 0, i / 34 != 3);
        free(x), free(y);
    }
    free_weight(&w);
}

static void test_matmul_nothing(void **state)
{
    (void)state;
    es_weight w = random_weight(ES_Q4_1, 4, 32);
    EACH_VARIANT {
        cpu->matmul(pool, &w, NULL, 0, NULL, false, false);
        cpu->matmul_back(pool, &w, NULL, 0, NULL, false);
    }
    free_weight(&w);
}

/* A NaN or an infinity among the activations must show in the result, whichever path was taken. */
static void test_matmul_nan(void **state)
{
    (void)state;
    for (int i = 0; i < LENGTH(types); i++) {
        es_weight w = random_weight(types[i], 8, 256);
        for (int bad = 0; bad < 2; bad++) {
            float *x = noise(256, 1), y[8];
            x[100] = bad ? INFINITY : NAN;
            EACH_VARIANT {
                cpu->matmul(pool, &w, x, 1, y, false, false);
                for (int n = 0; n < 8; n++)
                    assert_false(isfinite(y[n]));
            }
            free(x);
        }
        free_weight(&w);
    }
    enum { T = 13, N = 20 }; /* of many tokens, in that one's results alone */
    for (int i = 0; i < LENGTH(types); i++) {
        es_weight w = random_weight(types[i], N, 256);
        for (int bad = 0; bad < 2; bad++) {
            float *x = noise(T * 256, 1), y[T * N];
            x[9 * 256 + 100] = bad ? INFINITY : NAN;
            EACH_VARIANT {
                cpu->matmul(pool, &w, x, T, y, false, false);
                for (int n = 0; n < T * N; n++)
                    assert_int_equal(isfinite(y[n]) != 0, n / N != 9);
            }
            free(x);
        }
        free_weight(&w);
    }
    es_weight w = random_weight(ES_Q8_0, 8, 256); /* and a block of zeros is nothing special */
    float x[256] = {0}, y[8];
    EACH_VARIANT {
        cpu->matmul(pool, &w, x, 1, y, false, false);
        for (int n = 0; n < 8; n++)
            assert_true(y[n] == 0);
    }
    free_weight(&w);
}

static void test_gemm(void **state)
{
    (void)state;
    static const int shapes[][3] = {{1, 1, 1}, {3, 5, 7}, {16, 33, 64}, {130, 20, 40}, {20, 130, 90}};
    for (int i = 0; i < LENGTH(shapes); i++)
        for (int mode = 0; mode < 8; mode++) {
            int m = shapes[i][0], n = shapes[i][1], k = shapes[i][2];
            bool ta = mode & 1, tb = mode & 2;
            float beta = mode & 4 ? 0.5f : 0;
            int lda = (ta ? m : k) + 3, ldb = (tb ? k : n) + 1, ldc = n + 2;
            float *a = noise((size_t)(ta ? k : m) * (size_t)lda, 1), *b = noise((size_t)(tb ? n : k) * (size_t)ldb, 1);
            float *c0 = noise((size_t)m * (size_t)ldc, 1), *want = copy(c0, (size_t)m * (size_t)ldc);
            ref->gemm(NULL, ta, tb, m, n, k, 1.5f, a, lda, b, ldb, beta, want, ldc);
            float *c = copy(c0, (size_t)m * (size_t)ldc);
            cpu->gemm(pool, ta, tb, m, n, k, 1.5f, a, lda, b, ldb, beta, c, ldc);
            near_to("gemm", c, want, (size_t)m * (size_t)ldc, 3e-6);
            free(a), free(b), free(c0), free(want), free(c);
        }
}

/* The table for learning steps: products of many rows in bfloat16, others as above. */
static void test_gemm_half(void **state)
{
    (void)state;
    const es_kernels *half = es_kernels_half();
    static const int shapes[][3] = {{31, 64, 96}, {32, 64, 96}, {130, 64, 576}, {77, 576, 64}, {40, 33, 64}, {1100, 96, 32}, {64, 48, 70}};
    for (int i = 0; i < LENGTH(shapes); i++)
        for (int mode = 0; mode < 12; mode++) {
            int m = shapes[i][0], n = shapes[i][1], k = shapes[i][2];
            bool ta = mode & 1, tb = mode & 2;
            float beta = (float)(mode / 4) / 2; /* 0, 0.5, 1 */
            float *a = noise((size_t)m * (size_t)k, 1), *b = noise((size_t)n * (size_t)k, 1), *c0 = noise((size_t)m * (size_t)n, 1);
            float *want = copy(c0, (size_t)m * (size_t)n), *c = copy(c0, (size_t)m * (size_t)n);
            ref->gemm(NULL, ta, tb, m, n, k, 1.5f, a, ta ? m : k, b, tb ? k : n, beta, want, n);
            half->gemm(pool, ta, tb, m, n, k, 1.5f, a, ta ? m : k, b, tb ? k : n, beta, c, n);
            near_to("gemm in bfloat16", c, want, (size_t)m * (size_t)n, ta || half == cpu ? 3e-6 : 4e-3);
            free(a), free(b), free(c0), free(want), free(c);
        }
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------ */

/* The root mean square of r w dy, r = 1 / |x|: what a gradient through the norm is a difference of; of one element it is zero. */
static double norm_term(const float *x, const float *w, const float *dy, int T, int d)
{
    double s = 0;
    for (int t = 0; t < T; t++, x += d, dy += d) {
        double r = sqrt((double)d) / norm(x, (size_t)d);
        for (int i = 0; i < d; i++)
            s += r * w[i] * dy[i] * r * w[i] * dy[i];
    }
    return sqrt(s / T / d);
}

static void test_rmsnorm(void **state)
{
    (void)state;
    static const int ts[] = {1, 7, 33}, ds[] = {1, 5, 80, 576};
    for (int i = 0; i < LENGTH(ts); i++)
        for (int k = 0; k < LENGTH(ds); k++) {
            int T = ts[i], d = ds[k];
            size_t n = (size_t)T * (size_t)d;
            float *x = noise(n, 2), *w = noise((size_t)d, 1), *dy = noise(n, 1), *dx0 = noise(n, 1), *want = floats(n), *y = floats(n);
            float *want_dx = copy(dx0, n), *dx = floats(n);
            ref->rmsnorm(NULL, x, w, want, T, d, 1e-5f);
            ref->rmsnorm_back(NULL, x, w, dy, want_dx, T, d, 1e-5f);
            EACH_VARIANT {
                cpu->rmsnorm(pool, x, w, y, T, d, 1e-5f);
                near_to("rmsnorm", y, want, n, 1e-6);
                memcpy(dx, dx0, n * sizeof *dx);
                cpu->rmsnorm_back(pool, x, w, dy, dx, T, d, 1e-5f);
                near_sized("rmsnorm_back", dx, want_dx, n, 1e-6, norm_term(x, w, dy, T, d));
                memcpy(dx, x, n * sizeof *dx); /* in place */
                cpu->rmsnorm(pool, dx, w, dx, T, d, 1e-5f);
                near_to("rmsnorm in place", dx, want, n, 1e-6);
            }
            free(x), free(w), free(dy), free(dx0), free(want), free(y), free(want_dx), free(dx);
        }
}

static void test_rope(void **state)
{
    (void)state;
    static const int dims[] = {2, 32, 64, 80};
    enum { POSITIONS = 50 };
    for (int i = 0; i < LENGTH(dims); i++)
        for (int mode = 0; mode < 8; mode++) {
            int T = mode & 4 ? 33 : 1, D = dims[i], heads = 3, pos[33];
            float *c = noise((size_t)POSITIONS * (size_t)D / 2, 1), *s = noise((size_t)POSITIONS * (size_t)D / 2, 1);
            size_t n = (size_t)T * (size_t)heads * (size_t)D;
            float *x = noise(n, 1), *want = copy(x, n), *y = floats(n);
            for (int t = 0; t < T; t++)
                pos[t] = (t * 7 + 3) % POSITIONS;
            ref->rope(NULL, want, pos, c, s, T, heads, D, mode & 1, mode & 2);
            EACH_VARIANT {
                memcpy(y, x, n * sizeof *y);
                cpu->rope(pool, y, pos, c, s, T, heads, D, mode & 1, mode & 2);
                near_to("rope", y, want, n, 1e-6);
            }
            free(c), free(s), free(x), free(want), free(y);
        }
}

typedef void glu(es_pool *p, const float *gate, const float *up, float *y, size_t n);
typedef void glu_back(es_pool *p, const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n);

static glu *glu_of(const es_kernels *k, bool gelu)
{
    return gelu ? k->geglu : k->swiglu;
}

static glu_back *glu_back_of(const es_kernels *k, bool gelu)
{
    return gelu ? k->geglu_back : k->swiglu_back;
}

static void check_glu(bool gelu)
{
    static const size_t ns[] = {1, 3, 17, 1536, 20001};
    for (int i = 0; i < LENGTH(ns); i++) {
        size_t n = ns[i];
        float *g = noise(n, 10), *u = noise(n, 1), *dy = noise(n, 1), *want[3], *got[3];
        g[0] = 1000; /* far out on either side */
        g[n - 1] = -1000;
        for (int k = 0; k < 3; k++)
            want[k] = floats(n), got[k] = floats(n);
        glu_of(ref, gelu)(NULL, g, u, want[0], n);
        glu_back_of(ref, gelu)(NULL, g, u, dy, want[1], want[2], n);
        EACH_VARIANT {
            glu_of(cpu, gelu)(pool, g, u, got[0], n);
            glu_back_of(cpu, gelu)(pool, g, u, dy, got[1], got[2], n);
            for (int k = 0; k < 3; k++)
                near_to(k ? "glu_back" : "glu", got[k], want[k], n, 2e-6);
            memcpy(got[1], g, n * sizeof *g), memcpy(got[2], u, n * sizeof *u); /* gradients onto the inputs */
            glu_back_of(cpu, gelu)(pool, got[1], got[2], dy, got[1], got[2], n);
            near_to("glu_back in place", got[1], want[1], n, 2e-6);
            near_to("glu_back in place", got[2], want[2], n, 2e-6);
        }
        for (int k = 0; k < 3; k++)
            free(want[k]), free(got[k]);
        free(g), free(u), free(dy);
    }
}

static void test_glu(void **state)
{
    (void)state;
    check_glu(false);
    check_glu(true);
}

static void test_soft_cap(void **state)
{
    (void)state;
    enum { N = 20003 };
    float *x = noise(N, 40), *want = copy(x, N);
    ref->soft_cap(NULL, want, N, 30);
    EACH_VARIANT {
        float *got = copy(x, N);
        cpu->soft_cap(pool, got, N, 30);
        near_to("soft_cap", got, want, N, 2e-6);
        free(got);
    }
    free(x), free(want);
}

static void test_log_softmax(void **state)
{
    (void)state;
    static const int vs[] = {1, 2, 31, 1000, 49152};
    for (int i = 0; i < LENGTH(vs); i++) {
        int T = 5, V = vs[i];
        size_t n = (size_t)T * (size_t)V;
        float *logits = noise(n, 4), want[5], want_sum[5], got[5], got_sum[5], *grad = copy(logits, n), *y = floats(n), d[5];
        int32_t target[5];
        for (int t = 0; t < T; t++)
            target[t] = (int32_t)es_rng_below(&rng, (uint64_t)V), d[t] = es_rng_normal(&rng);
        logits[n - 1] = grad[n - 1] = 500; /* a certainty: the others' probabilities underflow */
        ref->log_softmax_pick(NULL, logits, target, T, V, want, want_sum);
        ref->log_softmax_pick_back(NULL, grad, target, want_sum, d, T, V);
        EACH_VARIANT {
            cpu->log_softmax_pick(pool, logits, target, T, V, got, got_sum);
            for (int t = 0; t < T; t++) {
                assert_true(fabsf(got[t] - want[t]) <= 1e-5f + 1e-6f * fabsf(want[t]));
                assert_true(fabsf(got_sum[t] - want_sum[t]) <= 1e-6f * fabsf(want_sum[t]) + 1e-5f);
            }
            memcpy(y, logits, n * sizeof *y);
            cpu->log_softmax_pick_back(pool, y, target, want_sum, d, T, V);
            near_to("log_softmax_pick_back", y, grad, n, 2e-6);
        }
        free(logits), free(grad), free(y);
    }
}

static void test_log_softmax_nan(void **state)
{
    (void)state;
    EACH_VARIANT
        for (int at = 0; at < 100; at++) {
            float logits[100] = {0}, logprob, logsum;
            int32_t target = 3;
            logits[at] = NAN;
            cpu->log_softmax_pick(pool, logits, &target, 1, 100, &logprob, &logsum);
            assert_true(isnan(logsum));
        }
}

/* ---- attention -------------------------------------------------------------------------------------------------------------------- */

static void check_attention(es_attn a)
{
    a.scale = 1 / sqrtf((float)a.head_dim);
    size_t nq = (size_t)a.T * (size_t)a.n_head * (size_t)a.head_dim, nk = (size_t)(a.pos0 + a.T) * (size_t)a.n_kv * (size_t)a.head_dim;
    float *q = noise(nq, 1.5f), *k = noise(nk, 1.5f), *v = noise(nk, 1), *want = floats(nq), *got = floats(nq);
    char what[96];
    snprintf(what, sizeof what, "attention T %d after %d, %d/%d heads of %d", a.T, a.pos0, a.n_head, a.n_kv, a.head_dim);
    ref->attention(NULL, &a, q, k, v, want);
    EACH_VARIANT {
        cpu->attention(pool, &a, q, k, v, got);
        near_to(what, got, want, nq, a.pos0 + a.T > 10000 ? 1e-5 : 3e-6); /* f32 sums over so many keys */
    }
    if (a.pos0 == 0) {
        float *dout = noise(nq, 1), *w[3] = {floats(nq), floats(nk), floats(nk)}, *g[3] = {floats(nq), floats(nk), floats(nk)};
        ref->attention_back(NULL, &a, q, k, v, dout, w[0], w[1], w[2]);
        EACH_VARIANT {
            cpu->attention_back(pool, &a, q, k, v, dout, g[0], g[1], g[2]);
            if (a.T > 1) /* of one key, dq and dk are zero up to rounding */
                near_to("attention_back dq", g[0], w[0], nq, 1e-5), near_to("attention_back dk", g[1], w[1], nk, 1e-5);
            near_to("attention_back dv", g[2], w[2], nk, 1e-5);
        }
        for (int i = 0; i < 3; i++)
            free(w[i]), free(g[i]);
        free(dout);
    }
    free(q), free(k), free(v), free(want), free(got);
}

/* Half precision against the f32 reference on the same numbers widened; three sequences at once, whose second is the one asked for. */
static void check_attention_half(es_attn a)
{
    a.scale = 1 / sqrtf((float)a.head_dim);
    es_attn shape[3] = {a, a, a};
    shape[0].T = a.T > 1 ? 2 : 1, shape[0].pos0 = 3, shape[2].T = 1, shape[2].pos0 = 0;
    size_t width = (size_t)a.n_head * (size_t)a.head_dim, row = (size_t)a.n_kv * (size_t)a.head_dim, rows = 0;
    float *q, *want, *got, *k[3], *v[3];
    uint16_t *kh[3], *vh[3];
    char what[96];
    for (int s = 0; s < 3; s++) {
        size_t n = (size_t)(shape[s].pos0 + shape[s].T) * row;
        k[s] = noise(n, 1.5f), v[s] = noise(n, 1), kh[s] = malloc(n * 2), vh[s] = malloc(n * 2);
        ref->to_half(NULL, k[s], kh[s], n), ref->to_half(NULL, v[s], vh[s], n);
        es_f16_to_f32(kh[s], k[s], n), es_f16_to_f32(vh[s], v[s], n);
        rows += (size_t)shape[s].T;
    }
    q = noise(rows * width, 1.5f), want = floats(rows * width), got = floats(rows * width);
    snprintf(what, sizeof what, "attention_half T %d after %d, %d/%d heads of %d", a.T, a.pos0, a.n_head, a.n_kv, a.head_dim);
    for (size_t s = 0, at = 0; s < 3; at += (size_t)shape[s++].T * width)
        ref->attention(NULL, &shape[s], q + at, k[s], v[s], want + at);
    const uint16_t *const ks[3] = {kh[0], kh[1], kh[2]}, *const vs[3] = {vh[0], vh[1], vh[2]};
    if (rows * (size_t)a.pos0 < 4096) { /* slow */
        ref->attention_half(NULL, shape, 3, q, ks, vs, got);
        near_to(what, got, want, rows * width, 1e-6);
    }
    const size_t first = (size_t)shape[0].T * width, n = (size_t)a.T * width;
    EACH_VARIANT {
        cpu->attention_half(pool, shape, 3, q, ks, vs, got);
        near_to(what, got, want, rows * width, 3e-6);
        memset(got + first, 0, n * sizeof *got);
        cpu->attention_half(pool, &shape[1], 1, q + first, ks + 1, vs + 1, got + first); /* alone: shared out otherwise */
        near_to(what, got + first, want + first, n, 3e-6);
    }
    for (int s = 0; s < 3; s++)
        free(k[s]), free(v[s]), free(kh[s]), free(vh[s]);
    free(q), free(want), free(got);
}

static void test_to_half(void **state)
{
    (void)state;
    const float odd[] = {0, -0.0f, 1, -2.5f, 65504, 65519, 65520, -1e30f, INFINITY, -INFINITY, 1e-8f, 6e-8f, 3e-5f, 0.1f, NAN, 1.0009765625f};
    for (int n = 0; n <= LENGTH(odd); n++) { /* each on each place of a vector and of a tail */
        uint16_t want[LENGTH(odd)], *got = malloc(2 * (size_t)n + 1);
        float *x = copy(odd, (size_t)n), back;
        ref->to_half(NULL, x, want, (size_t)n);
        for (int i = 0; i < n; i++) {
            es_f16_to_f32(&want[i], &back, 1);
            assert_true(isnan(odd[i]) ? isnan(back) : fabsf(back) <= 65504 && fabsf(back - fminf(fmaxf(odd[i], -65504), 65504)) <= fabsf(odd[i]) / 2048 + 3e-8f);
        }
        EACH_VARIANT {
            cpu->to_half(pool, x, got, (size_t)n);
            for (int i = 0; i < n; i++)
                if (!isnan(odd[i]))
                    assert_int_equal(got[i], want[i]);
                else
                    es_f16_to_f32(&got[i], &back, 1), assert_true(isnan(back));
        }
        free(got), free(x);
    }
    const size_t n = 100001; /* shared out */
    float *x = noise(n, 1);
    uint16_t *want = malloc(2 * n), *got = malloc(2 * n);
    ref->to_half(NULL, x, want, n);
    EACH_VARIANT {
        cpu->to_half(pool, x, got, n);
        assert_memory_equal(got, want, 2 * n);
    }
    free(x), free(want), free(got);
}

static void test_attention_half(void **state)
{
    (void)state;
    static const int ts[] = {1, 2, 7, 33}, pos0[] = {0, 1, 50, 203}, dims[] = {32, 64, 80, 33}, heads[][2] = {{4, 4}, {6, 2}, {9, 1}};
    for (int t = 0; t < LENGTH(ts); t++)
        for (int p = 0; p < LENGTH(pos0); p++)
            for (int d = 0; d < LENGTH(dims); d++)
                for (int h = 0; h < LENGTH(heads); h++)
                    check_attention_half((es_attn){ts[t], pos0[p], heads[h][0], heads[h][1], dims[d], 0, h == 1 ? 2 : 0, d == 1 ? 40 : 0});
    check_attention_half((es_attn){1, 4001, 9, 3, 64, 0, 0, 0}); /* long enough for all threads */
    check_attention_half((es_attn){50, 2500, 9, 3, 64, 0, 0, 0}); /* several tiles of keys */
    check_attention_half((es_attn){20, 2500, 4, 1, 256, 0, 30, 1700});
}

static void test_attention(void **state)
{
    (void)state;
    static const int ts[] = {1, 2, 7, 16, 33, 130}, pos0[] = {0, 1, 50}, dims[] = {32, 64, 80}, heads[][2] = {{4, 4}, {6, 2}, {3, 1}};
    for (int t = 0; t < LENGTH(ts); t++)
        for (int p = 0; p < LENGTH(pos0); p++)
            for (int d = 0; d < LENGTH(dims); d++)
                if (ts[t] < 100 || (p == 0 && d == 1))
                    for (int h = 0; h < LENGTH(heads); h++)
                        check_attention((es_attn){ts[t], pos0[p], heads[h][0], heads[h][1], dims[d], 0, 0, 0});
    check_attention((es_attn){1, 4000, 9, 3, 64, 0, 0, 0}); /* long enough for all threads */
    check_attention((es_attn){1, 2000, 9, 3, 33, 0, 0, 0});
    check_attention((es_attn){3, 900, 2, 1, 256, 0, 0, 0});
    for (int w = 1; w < 200; w = 3 * w + 1) /* windows smaller and larger than a strip, with and without a cap */
        for (int t = 0; t < LENGTH(ts); t++)
            for (int p = 0; p < LENGTH(pos0); p++)
                check_attention((es_attn){ts[t], pos0[p], 6, 2, 32, 0, w % 2 ? 2 : 0, w});
    check_attention((es_attn){130, 0, 6, 2, 32, 0, 2, 0});
    check_attention((es_attn){1, 4000, 9, 3, 64, 0, 2, 3500});
    /* more keys than a tile: a row's maximum lies in any of them; a window may leave a row nothing in a tile */
    check_attention((es_attn){50, 3000, 3, 1, 64, 0, 0, 0});
    check_attention((es_attn){130, 2000, 3, 3, 32, 0, 20, 1100});
    check_attention((es_attn){45, 2100, 4, 1, 256, 0, 0, 1050});
    check_attention((es_attn){1, 70000, 12, 1, 8, 0, 0, 0}); /* decoding, over several tiles */
}

/* ---- the reference against finite differences ------------------------------------------------------------------------------------------- */

/* Compares grad . direction with the difference quotient of loss(x) along random directions, x[n] perturbed in place. */
static void check_gradient(const char *what, float *x, size_t n, const float *grad, double (*loss)(void *), void *user)
{
    const float h = 1e-2f;
    for (int trial = 0; trial < 4; trial++) {
        float *direction = noise(n, 1), *x0 = copy(x, n);
        double analytic = 0, size = 0;
        for (size_t i = 0; i < n; i++)
            analytic += (double)grad[i] * direction[i], size += (double)grad[i] * grad[i];
        double f[4];
        static const float steps[4] = {-2, -1, 1, 2};
        for (int s = 0; s < 4; s++) {
            for (size_t i = 0; i < n; i++)
                x[i] = x0[i] + h * steps[s] * direction[i];
            f[s] = loss(user);
        }
        memcpy(x, x0, n * sizeof *x);
        double numeric = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * (double)h); /* error of order h^4 */
        if (fabs(numeric - analytic) > 2e-4 * sqrt(size) + 1e-6)
            fail_msg("gradient of %s: %g, by differences %g (size %g)", what, analytic, numeric, sqrt(size));
        free(direction), free(x0);
    }
}

typedef struct problem {
    int T, d;
    es_weight *w;
    es_attn *a;
    float *x, *y, *z, *weights, *norm, *cos_t, *sin_t;
    int pos[8];
    int32_t target[8];
    bool neox;
    size_t n_out;
} problem;

static double weighted(const problem *p, const float *out)
{
    double s = 0;
    for (size_t i = 0; i < p->n_out; i++)
        s += (double)out[i] * p->weights[i];
    return s;
}

#define LOSS(name, call)                                                                                                         \
    static double name(void *user)                                                                                               \
    {                                                                                                                            \
        problem *p = user;                                                                                                       \
        float *out = floats(p->n_out);                                                                                           \
        call;                                                                                                                    \
        double s = weighted(p, out);                                                                                             \
        free(out);                                                                                                               \
        return s;                                                                                                                \
    }
LOSS(loss_matmul, ref->matmul(NULL, p->w, p->x, p->T, out, false, true))
LOSS(loss_rmsnorm, ref->rmsnorm(NULL, p->x, p->norm, out, p->T, p->d, 1e-5f))
LOSS(loss_rope, (memcpy(out, p->x, p->n_out * sizeof *out),
                 ref->rope(NULL, out, p->pos, p->cos_t, p->sin_t, p->T, 2, p->d / 2, p->neox, false)))
LOSS(loss_swiglu, ref->swiglu(NULL, p->x, p->y, out, p->n_out))
LOSS(loss_geglu, ref->geglu(NULL, p->x, p->y, out, p->n_out))
LOSS(loss_attention, ref->attention(NULL, p->a, p->x, p->y, p->z, out))

static double loss_pick(void *user)
{
    problem *p = user;
    float logprob[8], logsum[8];
    ref->log_softmax_pick(NULL, p->x, p->target, p->T, p->d, logprob, logsum);
    return weighted(p, logprob);
}

static void test_gradients(void **state)
{
    (void)state;
    es_kernels_cpu_use(variants[0]);
    problem p = {.T = 5, .d = 24};
    size_t n = (size_t)p.T * (size_t)p.d;
    float *grad = floats(n * 4), *grad2 = floats(n * 4), *grad3 = floats(n * 4);

    p.x = noise(n, 1), p.y = noise(n, 1), p.norm = noise((size_t)p.d, 1), p.weights = noise(n * 4, 1);
    es_weight w = random_weight(ES_F16, 11, p.d);
    p.w = &w, p.n_out = (size_t)p.T * 11;
    ref->matmul_back(NULL, &w, p.weights, p.T, grad, false);
    check_gradient("matmul", p.x, n, grad, loss_matmul, &p);
    free_weight(&w);

    p.n_out = n;
    memset(grad, 0, n * sizeof *grad);
    ref->rmsnorm_back(NULL, p.x, p.norm, p.weights, grad, p.T, p.d, 1e-5f);
    check_gradient("rmsnorm", p.x, n, grad, loss_rmsnorm, &p);

    p.cos_t = noise(10 * (size_t)p.d / 4, 1), p.sin_t = noise(10 * (size_t)p.d / 4, 1);
    for (int t = 0; t < p.T; t++)
        p.pos[t] = 2 * t;
    for (int neox = 0; neox < 2; neox++) {
        p.neox = neox;
        memcpy(grad, p.weights, n * sizeof *grad);
        ref->rope(NULL, grad, p.pos, p.cos_t, p.sin_t, p.T, 2, p.d / 2, neox, true);
        check_gradient("rope", p.x, n, grad, loss_rope, &p);
    }

    ref->swiglu_back(NULL, p.x, p.y, p.weights, grad, grad2, n);
    check_gradient("swiglu gate", p.x, n, grad, loss_swiglu, &p);
    check_gradient("swiglu up", p.y, n, grad2, loss_swiglu, &p);
    ref->geglu_back(NULL, p.x, p.y, p.weights, grad, grad2, n);
    check_gradient("geglu gate", p.x, n, grad, loss_geglu, &p);
    check_gradient("geglu up", p.y, n, grad2, loss_geglu, &p);

    float logprob[8], logsum[8];
    for (int t = 0; t < p.T; t++)
        p.target[t] = 3 * t;
    p.n_out = (size_t)p.T;
    ref->log_softmax_pick(NULL, p.x, p.target, p.T, p.d, logprob, logsum);
    memcpy(grad, p.x, n * sizeof *grad);
    ref->log_softmax_pick_back(NULL, grad, p.target, logsum, p.weights, p.T, p.d);
    check_gradient("log_softmax_pick", p.x, n, grad, loss_pick, &p);
    free(p.x), free(p.y);

    es_attn plain = {p.T, 0, 6, 2, 16, 0.25f, 0, 0}, capped = {p.T, 0, 6, 2, 16, 0.25f, 2, 3}, *shapes[] = {&plain, &capped};
    p.n_out = (size_t)p.T * 96;
    p.x = noise(p.n_out, 1), p.y = noise((size_t)p.T * 32, 1), p.z = noise((size_t)p.T * 32, 1);
    for (int i = 0; i < 2; i++) {
        p.a = shapes[i];
        ref->attention_back(NULL, p.a, p.x, p.y, p.z, p.weights, grad, grad2, grad3);
        check_gradient("attention q", p.x, p.n_out, grad, loss_attention, &p);
        check_gradient("attention k", p.y, (size_t)p.T * 32, grad2, loss_attention, &p);
        check_gradient("attention v", p.z, (size_t)p.T * 32, grad3, loss_attention, &p);
    }
    free(p.x), free(p.y), free(p.z), free(p.norm), free(p.weights), free(p.cos_t), free(p.sin_t);
    free(grad), free(grad2), free(grad3);
}

/* ---- what callers rely on ----------------------------------------------------------------------------------------------------------------- */

/* The same call gives the same bits, whoever takes which rows: adapter scale 0 must not change a logit. */
static void test_repeatable(void **state)
{
    (void)state;
    es_weight w = random_weight(ES_Q4_1, 600, 576);
    float *x = noise(40 * 576, 1), *first = floats(40 * 600), *again = floats(40 * 600);
    static const int ts[] = {1, 6, 40};
    EACH_VARIANT
        for (int i = 0; i < LENGTH(ts); i++)
            for (int round = 0; round < 20; round++) {
                cpu->matmul(pool, &w, x, ts[i], round ? again : first, false, false);
                if (round)
                    assert_memory_equal(first, again, (size_t)ts[i] * 600 * sizeof *first);
            }
    free(x), free(first), free(again);
    free_weight(&w);
}

static void test_describe(void **state)
{
    (void)state;
    char line[256], tiny[8];
    es_kernels_cpu_use(variants[0]);
    es_kernels_describe(line, sizeof line);
    assert_non_null(strstr(line, variants[0]->name));
    assert_non_null(strstr(line, "OpenBLAS"));
    es_kernels_describe(tiny, sizeof tiny);
    assert_int_equal(strlen(tiny), 7);
}

int main(void)
{
    const es_simd *all[] = {es_simd_plain(), es_simd_avx2(), es_simd_avx512(), es_simd_neon()};
    for (int i = 0; i < LENGTH(all); i++)
        if (all[i])
            variants[n_variants++] = all[i];
    ref = es_kernels_scalar();
    cpu = es_kernels_cpu();
    es_rng_seed(&rng, 1);
    if (es_pool_open(&pool, 3, NULL) != 0)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),       cmocka_unit_test(test_half_precision),  cmocka_unit_test(test_golden_values),
        cmocka_unit_test(test_gradients),   cmocka_unit_test(test_matmul),          cmocka_unit_test(test_matmul_nothing),
        cmocka_unit_test(test_matmuls),     cmocka_unit_test(test_matmul_extreme),
        cmocka_unit_test(test_matmul_half),
        cmocka_unit_test(test_matmul_eight),
        cmocka_unit_test(test_matmul_nan),  cmocka_unit_test(test_gemm), cmocka_unit_test(test_gemm_half),           cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_rope),        cmocka_unit_test(test_glu), cmocka_unit_test(test_soft_cap),          cmocka_unit_test(test_log_softmax),
        cmocka_unit_test(test_log_softmax_nan), cmocka_unit_test(test_attention),   cmocka_unit_test(test_attention_half), cmocka_unit_test(test_to_half),
        cmocka_unit_test(test_repeatable),
        cmocka_unit_test(test_describe),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    es_pool_free(pool);
    return failed;
}
