/* Ops on rows and single numbers, and those on a row of logits. */
#include "suite.h"

static const int ts[] = {1, 3, 9}, ds[] = {1, 31, 64, 513, 1200};

static void test_rmsnorm(void)
{
    for (int i = 0; i < LENGTH(ts); i++)
        for (int j = 0; j < LENGTH(ds); j++) {
            int T = ts[i], d = ds[j];
            size_t n = (size_t)T * (size_t)d;
            float *x = noise(n, 3), *w = noise((size_t)d, 1), *dy = noise(n, 1), *dx = noise(n, 1), *dw = noise((size_t)d, 1), *y = host(n * sizeof *y);
            float *gx = UP(x, n), *gw = UP(w, d), *gdy = UP(dy, n), *gdx = UP(dx, n), *gdw = UP(dw, d), *gy = room(n * sizeof *gy);
            k->rmsnorm(pool, gx, gw, gy, T, d, 1e-5f);
            ref->rmsnorm(NULL, x, w, y, T, d, 1e-5f);
            near_to("rmsnorm", gy, y, n, 2e-6);
            k->rmsnorm_back(pool, gx, gw, gdy, gdx, T, d, 1e-5f);
            ref->rmsnorm_back(NULL, x, w, dy, dx, T, d, 1e-5f);
            near_to("rmsnorm_back", gdx, dx, n, 1e-5); /* d = 1: all but nothing is left */
            k->rmsnorm_weight_back(pool, gx, gdy, gdw, T, d, 1e-5f);
            ref->rmsnorm_weight_back(NULL, x, dy, dw, T, d, 1e-5f);
            near_to("rmsnorm_weight_back", gdw, dw, (size_t)d, 3e-6);
            k->rmsnorm(pool, gx, gw, gx, T, d, 1e-5f); /* in place, as q and k are */
            near_to("rmsnorm in place", gx, y, n, 2e-6);
        }
    /* more rows than the workspace holds factors for */
    int T = 17000, d = 2;
    size_t n = (size_t)T * 2;
    float *x = noise(n, 1), *dy = noise(n, 1), dw[2] = {0, 0};
    float *gdw = UP(dw, 2);
    k->rmsnorm_weight_back(pool, UP(x, n), UP(dy, n), gdw, T, d, 1e-5f);
    ref->rmsnorm_weight_back(NULL, x, dy, dw, T, d, 1e-5f);
    near_sized("rmsnorm_weight_back of many", gdw, dw, 2, 1e-5, sqrt(T));
}

static void test_rope(void)
{
    static const int dims[] = {2, 16, 64, 6};
    for (int i = 0; i < LENGTH(dims); i++)
        for (int neox = 0; neox < 2; neox++)
            for (int back = 0; back < 2; back++) {
                int T = 5, heads = 3, dim = dims[i], n_pos = 40;
                size_t n = (size_t)(T * heads * dim), table = (size_t)(n_pos * dim / 2);
                float *x = noise(n, 1), *c = noise(table, 1), *s = noise(table, 1);
                int32_t *pos = below((size_t)T, n_pos);
                float *gx = UP(x, n);
                k->rope(pool, gx, UP(pos, T), UP(c, table), UP(s, table), T, heads, dim, neox, back);
                ref->rope(NULL, x, pos, c, s, T, heads, dim, neox, back);
                near_to("rope", gx, x, n, 1e-6);
            }
}

static void test_glu(void)
{
    static const size_t ns[] = {1, 255, 257, 20000};
    for (int i = 0; i < LENGTH(ns); i++) {
        size_t n = ns[i];
        float *gate = noise(n, 4), *up_ = noise(n, 1), *dy = noise(n, 1), *y = host(n * 4), *dg = host(n * 4), *du = host(n * 4);
        gate[0] = -60;
        if (n > 5)
            gate[1] = 60, gate[2] = 1e15f, gate[3] = -1e15f, gate[4] = 0;
        float *gg = UP(gate, n), *gu = UP(up_, n), *gdy = UP(dy, n), *gy = room(n * 4), *gdg = room(n * 4), *gdu = room(n * 4);
        k->swiglu(pool, gg, gu, gy, n);
        ref->swiglu(NULL, gate, up_, y, n);
        near_to("swiglu", gy, y, n, 1e-6);
        k->swiglu_back(pool, gg, gu, gdy, gdg, gdu, n);
        ref->swiglu_back(NULL, gate, up_, dy, dg, du, n);
        near_to("swiglu_back gate", gdg, dg, n, 1e-6);
        near_to("swiglu_back up", gdu, du, n, 1e-6);
        k->geglu(pool, gg, gu, gy, n);
        ref->geglu(NULL, gate, up_, y, n);
        near_to("geglu", gy, y, n, 2e-6);
        k->geglu_back(pool, gg, gu, gdy, gdg, gdu, n);
        ref->geglu_back(NULL, gate, up_, dy, dg, du, n);
        for (size_t e = 2; e < 4 && n > 5; e++) /* where the reference overflows to a NaN, the slope is 1 or 0 */
            dg[e] = gate[e] > 0 ? dy[e] * up_[e] : 0;
        near_to("geglu_back gate", gdg, dg, n, 3e-6);
        near_to("geglu_back up", gdu, du, n, 3e-6);
    }
}

static void test_each(void)
{
    size_t n = 3001;
    float *x = noise(n, 40), *y = noise(n, 1), *m = noise(n, 1), *v = noise(n, 1), *g = noise(n, 1);
    for (size_t i = 0; i < n; i++)
        v[i] = fabsf(v[i]);
    float *gx = UP(x, n), *gy = UP(y, n), *gm = UP(m, n), *gv = UP(v, n), *gg = UP(g, n);
    k->axpy(pool, -0.3f, gx, gy, n);
    ref->axpy(NULL, -0.3f, x, y, n);
    near_to("axpy", gy, y, n, 1e-6);
    k->soft_cap(pool, gx, n, 30);
    ref->soft_cap(NULL, x, n, 30);
    near_to("soft_cap", gx, x, n, 1e-6);
    k->soft_cap_back(pool, gx, gy, n, 30);
    ref->soft_cap_back(NULL, x, y, n, 30);
    near_to("soft_cap_back", gy, y, n, 1e-5);
    for (size_t some = 0; some <= n; some = some < 2 ? some + 1 : some == n ? n + 1 : n) {
        double *gsum = room(sizeof *gsum), want, got;
        k->sum_squares(pool, gg, some, gsum);
        ref->sum_squares(NULL, g, some, &want);
        got = *(const double *)DOWN(gsum, 1);
        CHECK(fabs(got - want) <= 1e-12 * want);
    }
    k->adam(pool, gx, gg, gm, gv, n, 0.9f, 0.999f, 0.01f, 1e-8f, 0.99f);
    ref->adam(NULL, x, g, m, v, n, 0.9f, 0.999f, 0.01f, 1e-8f, 0.99f);
    near_to("adam x", gx, x, n, 1e-6);
    near_to("adam m", gm, m, n, 1e-6);
    near_to("adam v", gv, v, n, 1e-6);
}

static void test_to_half(void)
{
    float x[] = {0, -0.0f, 1, -2.5f, 65504, 65519, 65520, -1e30f, 1e-8f, 6e-8f, INFINITY, NAN, 0.1f};
    uint16_t want[LENGTH(x)];
    ref->to_half(NULL, x, want, LENGTH(x));
    uint16_t *gy = room(sizeof want);
    k->to_half(pool, UP(x, LENGTH(x)), gy, LENGTH(x));
    const uint16_t *got = DOWN(gy, LENGTH(x));
    for (int i = 0; i < LENGTH(x); i++)
        if (isnan(x[i]))
            CHECK((got[i] & 0x7c00) == 0x7c00 && (got[i] & 0x3ff));
        else
            CHECK(got[i] == want[i]);
}

static void test_rows_by_number(void)
{
    int n = 7, d = 33, N = 20;
    size_t all = (size_t)n * (size_t)d, big = (size_t)N * (size_t)d;
    int32_t index[] = {3, 0, 19, 7, 8, 11, 2}, ids[] = {4, 4, 0, 19, 4, 0, 7};
    int pos[] = {0, 1, 2, 3, 0, 1, 2};
    float *x = noise(big, 1), *out = host(all * 4), *to = noise(big, 1), *h = noise(all, 1), *v = noise((size_t)d, 1), *dv = noise((size_t)d, 1);
    float *gx = UP(x, big), *gout = room(all * 4), *gto = UP(to, big), *gh = UP(h, all), *gv = UP(v, d), *gdv = UP(dv, d);
    int32_t *gi = UP(index, n), *gids = UP(ids, n), *gpos = UP(pos, n);
    k->gather_rows(pool, gx, gi, n, d, gout);
    ref->gather_rows(NULL, x, index, n, d, out);
    near_to("gather_rows", gout, out, all, 0);
    k->scatter_rows(pool, gh, gi, n, d, gto);
    ref->scatter_rows(NULL, h, index, n, d, to);
    near_to("scatter_rows", gto, to, big, 0);
    k->add_vector(pool, gh, gpos, 2, 1.5f, gv, n, d);
    ref->add_vector(NULL, h, pos, 2, 1.5f, v, n, d);
    near_to("add_vector", gh, h, all, 1e-6);
    k->add_vector_back(pool, gh, gpos, 1, -0.5f, n, d, gdv);
    ref->add_vector_back(NULL, h, pos, 1, -0.5f, n, d, dv);
    near_to("add_vector_back", gdv, dv, (size_t)d, 1e-6);
    for (int way = 0; way < 8; way++) { /* with and without bias, threshold, factor */
        float *u = noise(all, 1), *f = noise(all, 1), *by = noise((size_t)d, 1), *bias = noise((size_t)d, 1), *least = noise((size_t)d, 0.2f);
        float *gu = UP(u, all), *gf, *gby = UP(by, d), *gbias = UP(bias, d), *gleast = UP(least, d);
        k->gate(pool, gu, way & 1 ? gbias : NULL, way & 2 ? gleast : NULL, way & 4 ? gby : NULL, gpos, n, d);
        ref->gate(NULL, u, way & 1 ? bias : NULL, way & 2 ? least : NULL, way & 4 ? by : NULL, pos, n, d);
        near_to("gate", gu, u, all, 1e-6);
        gf = UP(f, all);
        k->gate_back(pool, gu, gby, gf, n, d);
        ref->gate_back(NULL, u, by, f, n, d);
        near_to("gate_back", gu, u, all, 1e-6);
        near_to("gate_back's gradient", gf, f, all, 1e-6);
    }
    k->embed_back(pool, gh, gids, n, d, 2, gx, N);
    ref->embed_back(NULL, h, ids, n, d, 2, x, N);
    near_to("embed_back", gx, x, big, 1e-6);
    for (int i = 0; i < n_types; i++) {
        int width = es_type_get((int)all_types[i])->block == 1 ? 75 : 512;
        es_weight w = random_weight(all_types[i], N, width), gw = on_card(&w);
        float *rows = host((size_t)(n * width) * 4), *grows = room((size_t)(n * width) * 4);
        k->embed(pool, &gw, gids, n, 3, grows);
        ref->embed(NULL, &w, ids, n, 3, rows);
        near_to(es_type_get((int)all_types[i])->name, grows, rows, (size_t)(n * width), 3e-7);
    }
}

static void test_log_softmax(void)
{
    static const int vs[] = {1, 2, 700, 5000};
    for (int i = 0; i < LENGTH(vs); i++) {
        int V = vs[i], T = 4;
        size_t n = (size_t)V * (size_t)T;
        float *x = noise(n, 5), *pick = host(16), *sum = host(16), *d = noise(4, 1);
        x[0] = 80;
        if (V > 2)
            x[V + 1] = -INFINITY;
        int32_t *target = below(4, V);
        float *gx = UP(x, n), *gpick = room(16), *gsum = room(16);
        int32_t *gt = UP(target, 4);
        k->log_softmax_pick(pool, gx, gt, T, V, gpick, gsum);
        ref->log_softmax_pick(NULL, x, target, T, V, pick, sum);
        near_to("log_softmax_pick", gpick, pick, 4, 1e-6);
        near_to("logsum", gsum, sum, 4, 1e-6);
        k->log_softmax_pick_back(pool, gx, gt, gsum, UP(d, 4), T, V);
        ref->log_softmax_pick_back(NULL, x, target, sum, d, T, V);
        near_to("log_softmax_pick_back", gx, x, n, 1e-5);
    }
    float bad[] = {1, NAN, 2, NAN}; /* a NaN must not be lost */
    int32_t target = 0;
    for (int V = 2; V <= 4; V++) {
        float *gpick = room(4), *gsum = room(4);
        k->log_softmax_pick(pool, UP(bad, V), UP(&target, 1), 1, V, gpick, gsum);
        CHECK(isnan(*(float *)DOWN(gsum, 1)));
    }
}

static void check_top(const float *x, int n, int kk)
{
    int32_t *index = host((size_t)kk * 4), *gindex = room((size_t)kk * 4);
    float *value = host((size_t)kk * 4), *gvalue = room((size_t)kk * 4), sum, *gsum = room(4);
    k->top(pool, UP(x, n), n, kk, gindex, gvalue, gsum);
    ref->top(NULL, x, n, kk, index, value, &sum);
    const int32_t *got = DOWN(gindex, kk);
    const float *v = DOWN(gvalue, kk);
    for (int i = 0; i < kk; i++)
        if (got[i] != index[i] || !(v[i] == value[i]))
            FAIL("top %d of %d: place %d is %d (%g), not %d (%g)", kk, n, i, got[i], v[i], index[i], value[i]);
    if (isfinite(sum))
        near_sized("top's logsum", gsum, &sum, 1, 1e-6, 1);
    else
        CHECK(*(float *)DOWN(gsum, 1) == sum);
}

static void test_top(void)
{
    check_top(noise(1, 1), 1, 1);
    check_top(noise(50, 1), 50, 50);
    check_top(noise(5000, 3), 5000, 40);
    check_top(noise(3000, 3), 3000, 1024);
    float *x = noise(4000, 1);
    for (int i = 0; i < 4000; i++)
        x[i] = roundf(x[i] * 2) / (i % 2 ? 3 : 1); /* many are equal, in all their bits; and 0 and -0 are */
    x[17] = NAN, x[18] = -INFINITY;
    check_top(x, 4000, 300);
    check_top(x, 4000, 1);
    float *wide = noise(14401, 1); /* in pieces, the last of them of one number; equal ones in several */
    for (int i = 0; i < 14401; i++)
        wide[i] = roundf(wide[i] * 2) / (i % 2 ? 3 : 1);
    wide[14400] = 50, wide[3] = NAN;
    check_top(wide, 14401, 300);
    check_top(wide, 14401, 1);
    check_top(noise(60000, 3), 60000, 64);
    for (int i = 0; i < 14401; i++)
        wide[i] = i % 3 ? -INFINITY : NAN;
    check_top(wide, 14401, 5);
    es_error err; /* what cannot be is an error */
    float *gx = UP(x, 4);
    k->top(pool, gx, 4, 5, (int32_t *)gx, gx, NULL);
    CHECK(k->sync(pool, &err) == ES_ERR_USAGE);
    k->top(pool, gx, 4000, ES_TOP_MAX + 1, (int32_t *)gx, gx, NULL);
    CHECK(k->sync(pool, &err) == ES_ERR_USAGE);
    k->top(pool, gx, 4, 2, (int32_t *)room(8), room(8), NULL); /* without the sum */
    synced();
}

/* One token's rotation and way to the cache, at a position that the card finds. */
static void test_rotate_append(void)
{
    enum { HEADS = 5, KV = 2, D = 24, AT = 7, ROWS = 9 };
    for (int neox = 0; neox < 2; neox++) {
        float *q = noise(HEADS * D, 1), *kk = noise(KV * D, 1), *v = noise(KV * D, 1), *cos_t = noise(ROWS * D / 2, 1), *sin_t = noise(ROWS * D / 2, 1);
        int pos = AT, *gpos = UP(&pos, 1);
        uint16_t *keys = host(KV * D * 2), *values = host(KV * D * 2), *gkeys = room(ROWS * KV * D * 2), *gvalues = room(ROWS * KV * D * 2);
        float *gq = UP(q, HEADS * D), *gk = UP(kk, KV * D), *gv;
        v[3] = 1e9f, v[4] = -1e9f, v[5] = NAN;
        gv = UP(v, KV * D);
        es_cuda_rotate_append(pool, gq, gk, gv, gpos, UP(cos_t, ROWS * D / 2), UP(sin_t, ROWS * D / 2), HEADS, KV, D, neox, gkeys, gvalues);
        ref->rope(NULL, q, &pos, cos_t, sin_t, 1, HEADS, D, neox, false);
        ref->rope(NULL, kk, &pos, cos_t, sin_t, 1, KV, D, neox, false);
        ref->to_half(NULL, kk, keys, KV * D);
        ref->to_half(NULL, v, values, KV * D);
        near_to("q", gq, q, HEADS * D, 1e-6);
        float *want = host(KV * D * 4), *is = host(KV * D * 4);
        es_f16_to_f32(keys, want, KV * D);
        es_f16_to_f32(DOWN(gkeys + AT * KV * D, KV * D), is, KV * D);
        for (int i = 0; i < KV * D; i++)
            CHECK(fabsf(is[i] - want[i]) <= 1e-3f * fabsf(want[i]) + 1e-6f); /* on one side of a rounding or the other */
        es_f16_to_f32(values, want, KV * D);
        es_f16_to_f32(DOWN(gvalues + AT * KV * D, KV * D), is, KV * D);
        for (int i = 0; i < KV * D; i++)
            CHECK(is[i] == want[i] || (isnan(is[i]) && isnan(want[i])));
    }
}

const suite_test rows_tests[] = {
    {"rmsnorm", test_rmsnorm}, {"rope", test_rope}, {"glu", test_glu}, {"each", test_each}, {"to_half", test_to_half},
    {"rows_by_number", test_rows_by_number}, {"log_softmax", test_log_softmax}, {"top", test_top}, {"rotate_append", test_rotate_append}, {NULL, NULL},
};
