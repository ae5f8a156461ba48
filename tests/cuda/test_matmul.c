/* Products, for every type of weight. */
#include "suite.h"

static void check(es_type type, int N, int K, int T, double bound)
{
    es_weight w = random_weight(type, N, K), gw = on_card(&w);
    size_t nx = (size_t)T * (size_t)K, ny = (size_t)T * (size_t)N;
    float *x = noise(nx, 1), *dy = noise(ny, 1), *y0 = noise(ny, 1), *dx0 = noise(nx, 1), *plain = host((size_t)N * (size_t)K * 4);
    for (size_t i = 0; i < nx; i += 37)
        x[i] *= 300; /* outliers, as activations have them */
    es_dequant(type, w.data, plain, (size_t)N * (size_t)K);
    const double size = norm(plain, (size_t)N * (size_t)K), usual = size * norm(x, nx) / sqrt((double)T * N * K),
                 usual_dx = size * norm(dy, ny) / sqrt((double)T * N * K);
    float *gx = UP(x, nx), *gdy = UP(dy, ny);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        char what[96];
        snprintf(what, sizeof what, "matmul %s N %d K %d T %d", es_type_get((int)type)->name, N, K, T);
        float *y = same(y0, ny), *dx = same(dx0, nx), *gy = UP(y, ny), *gdx = UP(dx, nx);
        ref->matmul(NULL, &w, x, T, y, accumulate, true);
        k->matmul(pool, &gw, gx, T, gy, accumulate, true);
        near_sized(what, gy, y, ny, bound, usual);
        ref->matmul_back(NULL, &w, dy, T, dx, accumulate);
        k->matmul_back(pool, &gw, gdy, T, gdx, accumulate);
        near_sized("matmul_back", gdx, dx, nx, bound, usual_dx);
    }
    free_all();
}

static int width(es_type type, int some)
{
    int block = es_type_get((int)type)->block;
    return block == 256 ? 256 * (1 + some) : block == 32 ? 96 + 32 * some : some ? 72 : 77;
}

static void few_of(es_type type)
{
    static const int t_of[] = {1, 3, 7, 16}, n_of[] = {1, 5, 34, 9};
    for (int i = 0; i < LENGTH(t_of); i++)
        check(type, n_of[i], width(type, i % 2), t_of[i], 3e-6);
    check(type, 6, 1536, 1, 3e-6); /* few and long rows: shared by a block's warps */
    check(type, 3, 1024, 10, 3e-6);
}

static void test_few(void)
{
    for (int i = 0; i < n_types; i++)
        few_of(all_types[i]);
    check(ES_F32, 9, 1029, 2, 3e-6);
    check(ES_F16, 9, 1029, 2, 3e-6);
}

static void test_many(void)
{
    for (int i = 0; i < n_types; i++) {
        check(all_types[i], 37, width(all_types[i], 0), 19, 3e-6);
        check(all_types[i], 130, width(all_types[i], 1), 17, 3e-6); /* more rows than the workspace holds */
    }
    es_cuda_use_blas(pool, false);
    check(ES_Q4_1, 70, 96, 33, 3e-6);
    check(ES_Q6_K, 5, 256, 70, 3e-6);
    check(ES_F16, 66, 45, 18, 3e-6);
    es_cuda_use_blas(pool, true);
}

/* On bfloat16 and TF32: within what rounding both sides gives; few tokens, and exact ones, stay exact. */
static void test_precision(void)
{
    static const es_cuda_precision kinds[] = {ES_CUDA_BF16, ES_CUDA_TF32};
    es_pool *before = pool;
    for (int i = 0; i < 2; i++)
        for (int blas = 0; blas < 2; blas++) {
            const es_cuda_pool_options o = {.precision = kinds[i], .exact_too = true, .workspace = 1 << 16};
            const es_cuda_pool_options half = {.precision = kinds[i], .workspace = 1 << 16};
            es_error err;
            es_pool *lower, *both;
            if (es_cuda_pool_open(&lower, card, &o, &err) || es_cuda_pool_open(&both, card, &half, &err))
                FAIL("%s", err.text);
            es_cuda_use_blas(lower, blas);
            pool = lower;
            for (int t = 0; blas && t < n_types; t++)
                check(all_types[t], 40, width(all_types[t], 1), 20, 4e-3);
            check(ES_Q4_1, 40, blas ? 2048 : 96, 20, 4e-3); /* tokens in several parts */
            check(ES_BF16, 70, 64, 20, 4e-3);
            es_weight w = random_weight(ES_Q4_0, 30, 64), gw = on_card(&w); /* exact stays so where it may */
            float *x = noise(20 * 64, 1), *y = host(20 * 30 * 4), *gx = UP(x, 20 * 64), *gy = room(20 * 30 * 4);
            ref->matmul(NULL, &w, x, 20, y, false, true);
            pool = both;
            k->matmul(both, &gw, gx, 20, gy, false, true);
            near_to("exact on a pool of lower precision", gy, y, 20 * 30, 3e-6);
            k->matmul(both, &gw, gx, 20, gy, false, false);
            near_to("not exact", gy, y, 20 * 30, 4e-3);
            pool = before;
            free_all();
            es_pool_free(lower);
            es_pool_free(both);
        }
}

/* Large quantised weights on a pool of lower precision: activations of 16 bits. */
static void check_units(es_type type, int N, int K)
{
    es_weight w[2] = {random_weight(type, N, K), random_weight(type, 9, K)}, gw[2] = {on_card(&w[0]), on_card(&w[1])};
    const es_weight *const pgw[] = {&gw[0], &gw[1]};
    float *x = noise((size_t)16 * (size_t)K, 1);
    for (int i = 0; i < 16 * K; i += 37)
        x[i] *= 30;
    static const int t_of[] = {1, 3, 8};
    for (int t = 0; t < LENGTH(t_of); t++) {
        const int T = t_of[t];
        const size_t nx = (size_t)T * (size_t)K, ny = (size_t)T * (size_t)N;
        float *y0 = noise(ny, 1), *y = host(ny * 4), *more = host((size_t)T * 9 * 4), *gy = UP(y0, ny), *gmore = room((size_t)T * 9 * 4), *gx = UP(x, nx);
        float *const both[] = {gy, gmore};
        char what[96];
        snprintf(what, sizeof what, "matmul %s by units, %d tokens", es_type_get((int)type)->name, T);
        ref->matmul(NULL, &w[0], x, T, y, false, true);
        ref->matmul(NULL, &w[1], x, T, more, false, true);
        k->matmul(pool, &gw[0], gx, T, gy, true, false);
        for (size_t i = 0; i < ny; i++)
            y0[i] += y[i];
        near_to(what, gy, y0, ny, 2e-4);
        k->matmuls(pool, pgw, 2, gx, T, both, false);
        near_to(what, gy, y, ny, 2e-4);
        near_to(what, gmore, more, (size_t)T * 9, 2e-4);
        k->matmul(pool, &gw[0], gx, T, gy, false, true);
        near_to("exact stays so", gy, y, ny, 3e-6);
    }
    float *gy = room((size_t)N * 4); /* what is not finite stays so */
    x[K / 2] = INFINITY;
    k->matmul(pool, &gw[0], UP(x, K), 1, gy, false, false);
    CHECK(!isfinite(*(float *)DOWN(gy, 1)));
    memset(x, 0, (size_t)K * 4);
    float *zero = host((size_t)N * 4);
    memset(zero, 0, (size_t)N * 4);
    k->matmul(pool, &gw[0], UP(x, K), 1, gy, false, false);
    near_to("nothing comes of zeros", gy, zero, N, 0);
    free_all();
}

static int multiprocessors(void)
{
    char line[256];
    int n = 0;
    es_cuda_describe(card, line, sizeof line);
    const char *at = strstr(line, "capability"); /* "capability 9.0, 132 SMs" */
    CHECK(at && sscanf(at, "capability %*d.%*d, %d SMs", &n) == 1);
    return n;
}

static const es_cuda_pool_options LOWER = {.precision = ES_CUDA_BF16, .workspace = 1 << 20};

static void all_units(void)
{
    static const es_type types[] = {ES_Q4_0, ES_Q4_1, ES_Q8_0, ES_Q4_K, ES_Q5_K, ES_Q6_K};
    for (int i = 0; i < LENGTH(types); i++)
        check_units(types[i], 64 * multiprocessors() + 1, 1024); /* as large as it takes: matmul.cu, UNITS_FROM */
}

static void test_units(void)
{
    on_pool(&LOWER, all_units);
}

/* Products of a norm that is not written down, and gated units of them. */
static void check_normed(es_type type, int N, int K, double bound)
{
    es_weight w[3] = {random_weight(type, N, K), random_weight(type, N, K), random_weight(ES_Q4_1, 5, K)}, gw[3];
    float *x = noise((size_t)K, 2), *weight = noise((size_t)K, 1), *in = host((size_t)K * 4), *y[3], *gy[3], *out = host((size_t)N * 4), *gout = room((size_t)N * 4);
    float *gx = UP(x, K), *gweight = UP(weight, K);
    const es_weight *pgw[3];
    ref->rmsnorm(NULL, x, weight, in, 1, K, 1e-5f);
    for (int i = 0; i < 3; i++) {
        gw[i] = on_card(&w[i]), pgw[i] = &gw[i];
        y[i] = host((size_t)w[i].n_out * 4), gy[i] = room((size_t)w[i].n_out * 4);
        ref->matmul(NULL, &w[i], in, 1, y[i], false, true);
    }
    es_cuda_normed_matmuls(pool, pgw, 3, gx, gweight, 1e-5f, gy, false);
    for (int i = 0; i < 3; i++)
        near_to(es_type_get((int)type)->name, gy[i], y[i], (size_t)w[i].n_out, bound);
    for (int gelu = 0; gelu < 2; gelu++) {
        (gelu ? ref->geglu : ref->swiglu)(NULL, y[0], y[1], out, (size_t)N);
        es_cuda_normed_glu(pool, &gw[0], &gw[1], gx, gweight, 1e-5f, gelu, gout, false);
        near_to("gated units", gout, out, (size_t)N, 3 * bound);
    }
    free_all();
}

static void normed_by_units(void)
{
    check_normed(ES_Q4_K, 64 * multiprocessors() + 1, 1024, 1e-4);
    check_normed(ES_Q8_0, 64 * multiprocessors() + 1, 1024, 1e-4);
}

static void test_normed(void)
{
    es_error err;
    for (int i = 0; i < n_types; i++) {
        check_normed(all_types[i], 7, 768, 3e-6);  /* a block shares the rows */
        check_normed(all_types[i], 33, 256, 3e-6); /* a warp each */
    }
    check_normed(ES_F16, 9, 1056, 3e-6);
    on_pool(&LOWER, normed_by_units);
    es_weight one = random_weight(ES_Q4_0, 4, 32), other = random_weight(ES_Q4_0, 3, 32), gone = on_card(&one), gother = on_card(&other);
    float *gx = UP(noise(32, 1), 32);
    es_cuda_normed_glu(pool, &gone, &gother, gx, gx, 1e-5f, false, room(16), false);
    CHECK(k->sync(pool, &err) == ES_ERR_USAGE);
}

/* Several weights that read one x: of one type in one go, and of two. */
static void test_several(void)
{
    static const es_type kinds[][3] = {{ES_Q4_K, ES_Q4_K, ES_Q4_K}, {ES_Q4_K, ES_Q4_K, ES_Q6_K}, {ES_Q8_0, ES_Q4_1, ES_Q8_0}};
    static const int t_of[] = {1, 5, 20}, n_of[] = {37, 8, 1};
    for (int i = 0; i < LENGTH(kinds); i++)
        for (int t = 0; t < LENGTH(t_of); t++)
            for (int n = 1; n <= 3; n++) {
                es_weight w[3], gw[3];
                const es_weight *pw[3], *pgw[3];
                float *y[3], *gy[3], *x = noise((size_t)t_of[t] * 768, 1);
                for (int j = 0; j < n; j++) {
                    w[j] = random_weight(kinds[i][j], n_of[j], 768), gw[j] = on_card(&w[j]);
                    pw[j] = &w[j], pgw[j] = &gw[j];
                    y[j] = host((size_t)(t_of[t] * n_of[j]) * 4), gy[j] = room((size_t)(t_of[t] * n_of[j]) * 4);
                }
                ref->matmuls(NULL, pw, n, x, t_of[t], y, true);
                k->matmuls(pool, pgw, n, UP(x, t_of[t] * 768), t_of[t], gy, true);
                for (int j = 0; j < n; j++)
                    near_to("matmuls", gy[j], y[j], (size_t)(t_of[t] * n_of[j]), 3e-6);
                free_all();
            }
}

static void check_gemm(bool ta, bool tb, int m, int n, int kk, float beta)
{
    int lda = (ta ? m : kk) + 3, ldb = (tb ? kk : n) + 1, ldc = n + 2;
    size_t na = (size_t)(ta ? kk : m) * (size_t)lda, nb = (size_t)(tb ? n : kk) * (size_t)ldb, nc = (size_t)m * (size_t)ldc;
    float *a = noise(na, 1), *b = noise(nb, 1), *c = noise(nc, 1), *gc = UP(c, nc);
    k->gemm(pool, ta, tb, m, n, kk, 0.7f, UP(a, na), lda, UP(b, nb), ldb, beta, gc, ldc);
    ref->gemm(NULL, ta, tb, m, n, kk, 0.7f, a, lda, b, ldb, beta, c, ldc);
    near_to("gemm", gc, c, nc, 3e-6);
    free_all();
}

static void test_gemm(void)
{
    static const int sizes[][3] = {{1, 1, 1}, {5, 3, 70}, {65, 66, 17}, {64, 64, 16}, {130, 7, 33}, {2, 90, 0}};
    for (int blas = 0; blas < 2; blas++) {
        es_cuda_use_blas(pool, blas);
        for (int i = 0; i < LENGTH(sizes); i++)
            for (int t = 0; t < 4; t++)
                check_gemm(t & 1, t & 2, sizes[i][0], sizes[i][1], sizes[i][2], t == 0 ? 0 : 0.5f);
    }
    es_cuda_use_blas(pool, true);
}

static void test_nothing(void)
{
    es_weight w = random_weight(ES_Q4_0, 4, 32), gw = on_card(&w), none = {ES_Q4_0, 0, 32, gw.data};
    float *x = noise(64, 1), *gx = UP(x, 64), *zero = host(64 * 4);
    memset(zero, 0, 64 * 4);
    k->matmul(pool, &gw, gx, 0, gx, false, true);
    k->matmul_back(pool, &gw, gx, 0, gx, false);
    k->matmul(pool, &none, gx, 2, gx, false, true);
    near_to("nothing happened", gx, x, 64, 0);
    k->matmul_back(pool, &none, gx, 2, gx, false); /* a sum over nothing */
    near_to("a sum over nothing", gx, zero, 64, 0);
}

const suite_test matmul_tests[] = {
    {"few", test_few}, {"many", test_many}, {"precision", test_precision}, {"units", test_units}, {"normed", test_normed}, {"several", test_several}, {"gemm", test_gemm}, {"nothing", test_nothing}, {NULL, NULL},
};
