/* A dictionary's ops. */
#include "suite.h"

#include "sparse.h"

static es_entries host_entries(int cap, int T, int F)
{
    es_entries l = {cap, host((size_t)cap * 4), host((size_t)cap * 4), host((size_t)cap * 4), host((size_t)(T + 1) * 4), host(8),
                    host((size_t)cap * 4), host((size_t)(F + 1) * 4)};
    return l;
}

static es_entries card_entries(int cap, int T, int F)
{
    es_entries l = {cap, room((size_t)cap * 4), room((size_t)cap * 4), room((size_t)cap * 4), room((size_t)(T + 1) * 4), room(8),
                    room((size_t)cap * 4), room((size_t)(F + 1) * 4)};
    return l;
}

static void same_ints(const char *what, const int32_t *device, const int32_t *want, int n)
{
    const int32_t *got = DOWN(device, n);
    for (int i = 0; i < n; i++)
        if (got[i] != want[i])
            FAIL("%s: number %d of %d is %d, not %d", what, i, n, got[i], want[i]);
}

static void same_entries(const char *what, const es_entries *g, const es_entries *l, int T)
{
    same_ints(what, g->count, l->count, 2);
    same_ints(what, g->token_start, l->token_start, T + 1);
    same_ints(what, g->token, l->token, l->count[0]);
    same_ints(what, g->feature, l->feature, l->count[0]);
    near_to(what, g->value, l->value, (size_t)l->count[0], 1e-5);
}

typedef struct problem {
    int T, F, d, k;
    float *x, *enc, *bias, *threshold, *gx, *genc, *gbias, *gthreshold;
} problem;

static problem make(int T, int F, int d, int kk)
{
    problem p = {.T = T, .F = F, .d = d, .k = kk};
    size_t nx = (size_t)T * (size_t)d, nf = (size_t)F * (size_t)d;
    p.x = noise(nx, 1), p.enc = noise(nf, 1), p.bias = noise((size_t)F, 0.5f), p.threshold = noise((size_t)F, 1);
    for (int f = 0; f < F; f++)
        p.threshold[f] = fabsf(p.threshold[f]) + 0.5f * sqrtf((float)d);
    p.gx = UP(p.x, nx), p.genc = UP(p.enc, nf), p.gbias = UP(p.bias, F), p.gthreshold = UP(p.threshold, F);
    return p;
}

static es_entries check_encode(const problem *p, es_keep keep, int cap, es_entries *reference)
{
    es_encoder e = {keep, p->F, p->d, p->k, p->enc, p->bias, p->threshold}, g = {keep, p->F, p->d, p->k, p->genc, p->gbias, p->gthreshold};
    *reference = host_entries(cap, p->T, p->F);
    es_entries on = card_entries(cap, p->T, p->F);
    es_sparse_scalar()->encode(NULL, &e, p->x, p->T, reference);
    es_cuda_sparse()->encode(pool, &g, p->gx, p->T, &on);
    char what[64];
    snprintf(what, sizeof what, "encode, rule %d, %d tokens, %d features", (int)keep, p->T, p->F);
    same_entries(what, &on, reference, p->T);
    return on;
}

/* On a pool of its own. */
static void use_workspace(size_t bytes, void (*then)(void))
{
    es_pool *before = pool;
    const es_cuda_pool_options o = {.workspace = bytes};
    es_error err;
    if (es_cuda_pool_open(&pool, card, &o, &err))
        FAIL("%s", err.text);
    then();
    free_all();
    es_pool_free(pool);
    pool = before;
}

static void encode_all(void)
{
    static const int shapes[][4] = {{1, 1, 3, 1}, {7, 90, 16, 3}, {20, 300, 24, 5}, {33, 130, 9, 2}, {3, 500, 8, 40}};
    for (int i = 0; i < LENGTH(shapes); i++) {
        const int T = shapes[i][0], F = shapes[i][1], kk = shapes[i][3];
        problem p = make(T, F, shapes[i][2], kk);
        es_entries l;
        check_encode(&p, ES_KEEP_ABOVE, T * F / 2 + 1, &l);
        check_encode(&p, ES_KEEP_TOKEN, T * kk, &l);
        check_encode(&p, ES_KEEP_BATCH, T * kk, &l);
        free_all();
    }
}

static void test_encode(void)
{
    use_workspace(1 << 20, encode_all);
}

static void token_tiles(void)
{
    problem p = make(120, 300, 24, 5);
    es_entries l;
    check_encode(&p, ES_KEEP_TOKEN, 600, &l);
}

static void list_tiles(void) /* the histogram alone takes 256 KiB; what is left holds tiles of 64 features */
{
    problem p = make(20, 300, 24, 5);
    es_entries l;
    check_encode(&p, ES_KEEP_ABOVE, 1900, &l);
    CHECK(l.count[1] < 1900);
    p = make(20, 700, 24, 5);
    check_encode(&p, ES_KEEP_BATCH, 100, &l);
    /* Features in the worst order, each larger than all before it, so that the cut never helps and the list fills up. */
    for (int f = 0; f < p.F; f++)
        p.bias[f] = (float)f * 20;
    k->upload(pool, p.gbias, p.bias, sizeof(float) * (size_t)p.F);
    check_encode(&p, ES_KEEP_BATCH, 100, &l);
    /* And then nothing more, so that what the full list was cut down to is the result. */
    for (int f = 6 * 64; f < p.F; f++)
        p.bias[f] = -1e6f;
    k->upload(pool, p.gbias, p.bias, sizeof(float) * (size_t)p.F);
    check_encode(&p, ES_KEEP_BATCH, 100, &l);
}

static void equal_values(void) /* of equal ones, the earlier token and the lower feature; and all of them when few are above 0 */
{
    problem p = make(6, 200, 4, 7);
    memset(p.enc, 0, sizeof(float) * 800);
    for (int f = 0; f < p.F; f++)
        p.bias[f] = f % 3 == 0 ? 1 : f % 3 == 1 ? -1 : NAN;
    k->upload(pool, p.genc, p.enc, sizeof(float) * 800);
    k->upload(pool, p.gbias, p.bias, sizeof(float) * 200);
    es_entries l;
    check_encode(&p, ES_KEEP_TOKEN, 42, &l);
    CHECK(l.count[0] == 42 && l.feature[6] == 18);
    check_encode(&p, ES_KEEP_BATCH, 42, &l);
    CHECK(l.count[0] == 42 && l.token[41] == 0);
    for (int f = 3; f < p.F; f++)
        p.bias[f] = -1;
    k->upload(pool, p.gbias, p.bias, sizeof(float) * 200);
    check_encode(&p, ES_KEEP_TOKEN, 42, &l);
    check_encode(&p, ES_KEEP_BATCH, 42, &l);
    CHECK(l.count[0] == 6);
    p.bias[0] = -1;
    k->upload(pool, p.gbias, p.bias, sizeof(float) * 200);
    check_encode(&p, ES_KEEP_TOKEN, 42, &l);
    check_encode(&p, ES_KEEP_BATCH, 42, &l);
    CHECK(l.count[0] == 0);
}

static void test_tiles(void)
{
    use_workspace(1 << 16, token_tiles);
    use_workspace((256 << 10) + (44 << 10), list_tiles);
    use_workspace(1 << 20, equal_values);
}

static void too_many(void)
{
    problem p = make(9, 100, 5, 3);
    es_encoder e = {ES_KEEP_ABOVE, p.F, p.d, p.k, p.genc, p.gbias, NULL};
    es_entries on = card_entries(10, p.T, p.F);
    es_cuda_sparse()->encode(pool, &e, p.gx, p.T, &on);
    int32_t count[2];
    k->download(pool, count, on.count, 8); /* which ten it kept may differ from time to time */
    synced();
    CHECK(count[0] == 10 && count[1] > 10);
    e.F = 1 << 20;
    es_cuda_sparse()->encode(pool, &e, p.gx, 1 << 13, &on);
    es_error err;
    CHECK(k->sync(pool, &err) == ES_ERR_LIMIT);
}

static void test_too_many(void)
{
    use_workspace(1 << 20, too_many);
    problem p = make(9, 100, 5, 3); /* a workspace without room for the histogram is an error too */
    es_encoder e = {ES_KEEP_BATCH, p.F, p.d, p.k, p.genc, p.gbias, NULL};
    es_entries on = card_entries(27, p.T, p.F);
    es_error err;
    es_cuda_sparse()->encode(pool, &e, p.gx, p.T, &on);
    CHECK(k->sync(pool, &err) == ES_ERR_LIMIT && strstr(err.text, "workspace"));
}

/* A step of training: what a kept entry's value, its feature's rows and the bias get. */
static void training_step(void)
{
    const es_sparse_kernels *ours = es_cuda_sparse(), *plain = es_sparse_scalar();
    problem p = make(40, 150, 33, 4);
    const int T = p.T, F = p.F, d = p.d;
    size_t nf = (size_t)F * (size_t)d, nx = (size_t)T * (size_t)d;
    es_entries l, g = check_encode(&p, ES_KEEP_BATCH, T * p.k, &l);
    plain->index(NULL, &l, T, F);
    ours->index(pool, &g, T, F);
    same_ints("feature_start", g.feature_start, l.feature_start, F + 1);
    same_ints("by_feature", g.by_feature, l.by_feature, l.count[0]);
    k->copy(pool, g.value, UP(l.value, l.count[0]), sizeof(float) * (size_t)l.count[0]); /* from here on the same numbers */

    float *dec = noise(nf, 1), *bias = noise((size_t)d, 1), *out = host(nx * 4), *gdec = UP(dec, nf), *gbias = UP(bias, d), *gout = room(nx * 4);
    plain->unit_rows(NULL, dec, F, d);
    ours->unit_rows(pool, gdec, F, d);
    near_to("unit_rows", gdec, dec, nf, 1e-6);
    plain->decode(NULL, &l, dec, bias, T, d, out);
    ours->decode(pool, &g, gdec, gbias, T, d, gout);
    near_to("decode", gout, out, nx, 1e-6);
    plain->decode(NULL, &l, dec, NULL, T, d, out);
    ours->decode(pool, &g, gdec, NULL, T, d, gout);
    near_to("decode without bias", gout, out, nx, 1e-6);
    float *grad = host((size_t)l.cap * 4), *ggrad = room((size_t)l.cap * 4);
    plain->value_back(NULL, &l, out, dec, T, d, -0.5f, grad);
    ours->value_back(pool, &g, gout, gdec, T, d, -0.5f, ggrad);
    near_to("value_back", ggrad, grad, (size_t)l.count[0], 3e-6);
    float *dw = noise(nf, 1), *db = noise((size_t)F, 1), *gdw = UP(dw, nf), *gdb = UP(db, F);
    plain->feature_back(NULL, &l, p.x, grad, F, d, 0.1f, dw, db);
    ours->feature_back(pool, &g, p.gx, ggrad, F, d, 0.1f, gdw, gdb);
    near_to("feature_back", gdw, dw, nf, 3e-6);
    near_to("feature_back bias", gdb, db, (size_t)F, 3e-6);
    plain->feature_back(NULL, &l, NULL, grad, F, d, 0.1f, NULL, db);
    ours->feature_back(pool, &g, NULL, ggrad, F, d, 0.1f, NULL, gdb);
    near_to("feature_back bias alone", gdb, db, (size_t)F, 3e-6);
    /* the same by groups: one without a feature, and one that few tokens have */
    const es_prefixes by = {4, {20, 20, 90, F}};
    es_entries lg = l, gg = g;
    lg.token = host((size_t)l.cap * 4), lg.token_start = host((size_t)(T * by.n + 1) * 4);
    gg.token = room((size_t)l.cap * 4), gg.token_start = room((size_t)(T * by.n + 1) * 4);
    plain->split(NULL, &l, &by, T, lg.token, lg.token_start);
    ours->split(pool, &g, &by, T, gg.token, gg.token_start);
    same_ints("split tokens", gg.token, lg.token, l.count[0]);
    same_ints("split starts", gg.token_start, lg.token_start, T * by.n + 1);
    for (int i = 0; i < l.count[0]; i++)
        CHECK(lg.token[i] / by.n == l.token[i] && l.feature[i] < by.end[lg.token[i] % by.n] && (lg.token[i] % by.n == 0 || l.feature[i] >= by.end[lg.token[i] % by.n - 1]));
    float *rows = host(nx * 4 * 4), *last = host(nx * 4), *sum = host(nx * 4), *grows = room(nx * 4 * 4), *glast = room(nx * 4), *gsum = room(nx * 4);
    plain->decode(NULL, &lg, dec, NULL, T * by.n, d, rows);
    ours->decode(pool, &gg, gdec, NULL, T * by.n, d, grows);
    plain->prefix_errors(NULL, p.x, &by, T, d, rows, last, sum);
    ours->prefix_errors(pool, p.gx, &by, T, d, grows, glast, gsum);
    near_to("prefix errors", grows, rows, nx * 4, 3e-6);
    near_to("the last prefix's", glast, last, nx, 3e-6);
    near_to("the sum of them", gsum, sum, nx, 3e-6);
    for (size_t i = 0; i < nx; i++) /* x less all that is decoded */
        CHECK(fabs(last[i] - (p.x[i] - (double)out[i])) < 1e-4 * (1 + fabs((double)p.x[i]) + fabs((double)out[i])));
    plain->value_back(NULL, &lg, rows, dec, T * by.n, d, -0.5f, grad);
    ours->value_back(pool, &gg, grows, gdec, T * by.n, d, -0.5f, ggrad);
    near_to("value_back by groups", ggrad, grad, (size_t)l.count[0], 3e-6);
    plain->feature_back(NULL, &lg, rows, l.value, F, d, 0.1f, dw, NULL);
    ours->feature_back(pool, &gg, grows, g.value, F, d, 0.1f, gdw, NULL);
    near_to("feature_back by groups", gdw, dw, nf, 3e-6);
    plain->project_rows(NULL, dec, dw, F, d);
    ours->project_rows(pool, gdec, gdw, F, d);
    near_to("project_rows", gdw, dw, nf, 3e-6);
}

static void test_training(void)
{
    use_workspace(1 << 20, training_step);
}

/* On tensor cores the choice may differ where values are near one another; what is kept must still be what it says it is. */
static void test_bf16(void)
{
    es_pool *before = pool;
    const es_cuda_pool_options o = {.precision = ES_CUDA_BF16, .workspace = 1 << 20};
    es_error err;
    if (es_cuda_pool_open(&pool, card, &o, &err))
        FAIL("%s", err.text);
    problem p = make(20, 300, 64, 5);
    for (int keep = ES_KEEP_TOKEN; keep <= ES_KEEP_BATCH; keep++) {
        es_encoder g = {(es_keep)keep, p.F, p.d, p.k, p.genc, p.gbias, NULL};
        es_entries on = card_entries(100, p.T, p.F);
        es_cuda_sparse()->encode(pool, &g, p.gx, p.T, &on);
        const int32_t *count = DOWN(on.count, 2), *token = DOWN(on.token, 100), *feature = DOWN(on.feature, 100);
        const float *value = DOWN(on.value, 100);
        CHECK(count[0] == 100);
        for (int i = 0; i < 100; i++) {
            double z = p.bias[feature[i]];
            for (int j = 0; j < p.d; j++)
                z += (double)p.x[token[i] * p.d + j] * p.enc[feature[i] * p.d + j];
            CHECK(fabs(z - value[i]) < 0.01 * sqrt(p.d) * 3);
            CHECK(i == 0 || token[i] > token[i - 1] || (token[i] == token[i - 1] && feature[i] > feature[i - 1]));
        }
    }
    free_all();
    es_pool_free(pool);
    pool = before;
}

const suite_test sparse_tests[] = {
    {"encode", test_encode}, {"tiles", test_tiles}, {"too_many", test_too_many}, {"training", test_training}, {"bf16", test_bf16}, {NULL, NULL},
};
