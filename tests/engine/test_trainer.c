/* The trainer: gradients against finite differences, and the promises of engine.h. */
#include "count_allocations.h"
#include "model.h"
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- a batch of three sequences with a loss ---------------------------------------------------------------------------- */

enum { LAYERS = 3, D = 32, FF = 64, VOCAB = TINY_VOCAB, N = 21, SEQ = 3, MAX_LOW = 16, MAX_ADD = 4, RANK = 3 };

static void fill(es_rng *rng, float *x, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = scale * es_rng_normal(rng);
}

typedef struct fixture {
    es_model *m;
    es_trainer *t;
    es_batch batch;
    int32_t ids[N], target[N];
    uint8_t wanted[N];
    int start[SEQ + 1];
    float dlogprob[N]; /* the loss is their product with the log-probabilities ... */
    float c[VOCAB];
    bool mean_c;       /* ... plus, when set, the sum over wanted tokens of sum_v c_v p_v */
    float *resid;
    es_patch patch;
    es_lowrank low[MAX_LOW];
    es_addend add[MAX_ADD];
    es_hook hook[2];
    float *low_a[MAX_LOW], *low_b[MAX_LOW], *add_v[MAX_ADD];
} fixture;

static fixture *make(const es_kernels *k, int from_layer)
{
    fixture *f = calloc(1, sizeof *f);
    es_error err;
    es_rng rng;
    es_rng_seed(&rng, 5);
    tiny_options small = tiny_default();
    small.n_layer = LAYERS;
    small.d_model = D;
    small.d_ff = FF;
    f->m = open_tiny(&small);
    /* Few logits at a time, so that the head works in two chunks. */
    es_trainer_options o = {.max_tokens = 24, .from_layer = from_layer, .backward = true, .threads = 2, .kernels = k, .logit_bytes = 1};
    assert_int_equal(es_trainer_open(&f->t, f->m, &o, &err), ES_OK);
    for (int i = 0; i < N; i++) {
        f->ids[i] = (int32_t)es_rng_below(&rng, VOCAB);
        f->target[i] = (int32_t)es_rng_below(&rng, VOCAB);
        f->wanted[i] = i % 7 != 6;
        f->dlogprob[i] = es_rng_normal(&rng);
    }
    fill(&rng, f->c, VOCAB, 3);
    memcpy(f->start, (int[]){0, 9, 10, N}, sizeof f->start);
    f->batch = (es_batch){.ids = f->ids, .n = N, .start = f->start, .n_seq = SEQ, .target = f->target, .wanted = f->wanted};
    if (from_layer > 0) {
        f->resid = calloc(N * D, sizeof(float));
        assert_int_equal(es_trainer_residual(f->t, &f->batch, from_layer - 1, f->resid, NULL, &err), ES_OK);
    }
    f->patch = (es_patch){.lowrank = f->low, .addend = f->add, .hook = f->hook};
    return f;
}

static void free_fixture(fixture *f)
{
    es_trainer_free(f->t);
    es_model_free(f->m);
    for (int i = 0; i < f->patch.n_lowrank; i++) {
        free(f->low_a[i]);
        free(f->low_b[i]);
    }
    for (int i = 0; i < f->patch.n_addend; i++)
        free(f->add_v[i]);
    free(f->resid);
    free(f);
}

static void add_low(fixture *f, int layer, es_site site, uint64_t seed)
{
    es_rng rng;
    es_rng_seed(&rng, seed);
    int i = f->patch.n_lowrank++;
    int n_in = f->m->layer[layer].site[site].n_in, n_out = f->m->layer[layer].site[site].n_out;
    f->low_a[i] = calloc(RANK * n_in, sizeof(float));
    f->low_b[i] = calloc(RANK * n_out, sizeof(float));
    fill(&rng, f->low_a[i], RANK * n_in, 0.3f);
    fill(&rng, f->low_b[i], RANK * n_out, 0.3f);
    f->low[i] = (es_lowrank){.layer = layer, .site = site, .rank = RANK, .scale = 0.7f, .a = f->low_a[i], .b = f->low_b[i]};
}

static void add_addend(fixture *f, int layer, int min_pos, uint64_t seed)
{
    es_rng rng;
    es_rng_seed(&rng, seed);
    int i = f->patch.n_addend++;
    f->add_v[i] = calloc(D, sizeof(float));
    fill(&rng, f->add_v[i], D, 0.5f);
    f->add[i] = (es_addend){.layer = layer, .scale = 1.3f, .v = f->add_v[i], .min_pos = min_pos};
}

static double loss(fixture *f)
{
    float logprob[N], logits[VOCAB];
    es_error err;
    assert_int_equal(es_trainer_forward(f->t, &f->batch, f->resid, &f->patch, NULL, 0, logprob, NULL, &err), ES_OK);
    double sum = 0;
    for (int i = 0; i < N; i++)
        sum += (double)f->dlogprob[i] * logprob[i];
    for (int i = 0; f->mean_c && i < N; i++) {
        if (!f->wanted[i])
            continue;
        assert_int_equal(es_trainer_logits(f->t, i, logits, &err), ES_OK);
        double z = 0, mean = 0;
        for (int v = 0; v < VOCAB; v++) {
            z += exp(logits[v]);
            mean += f->c[v] * exp(logits[v]);
        }
        sum += mean / z;
    }
    return sum;
}

static void mean_c_back(void *user, int token, const float *p, float *dl)
{
    fixture *f = user;
    double mean = 0;
    assert_true(f->wanted[token]);
    for (int v = 0; v < VOCAB; v++)
        mean += f->c[v] * p[v];
    for (int v = 0; v < VOCAB; v++)
        dl[v] += p[v] * (f->c[v] - (float)mean);
}

static void backward(fixture *f, const es_grad *g, int to_layer)
{
    es_error err = {0};
    loss(f);
    int code = es_trainer_backward(f->t, &f->batch, &f->patch, f->dlogprob, f->mean_c ? mean_c_back : NULL, f, g, to_layer, NULL, &err);
    if (code)
        fail_msg("backward: %s", err.text);
}

/* Along the gradient and three random directions, the loss must change as the gradient says. */
static void check(fixture *f, float *x, size_t n, const float *grad, const char *what)
{
    es_rng rng;
    es_rng_seed(&rng, 99);
    double norm = 0;
    for (size_t i = 0; i < n; i++)
        norm += (double)grad[i] * grad[i];
    norm = sqrt(norm);
    assert_true(norm > 1e-3); /* otherwise nothing would be tested */
    float *saved = malloc(n * sizeof *x), *dir = malloc(n * sizeof *dir);
    memcpy(saved, x, n * sizeof *x);
    for (int turn = 0; turn < 4; turn++) {
        double length = 0, want = 0, up, down, h = 4e-3;
        for (size_t i = 0; i < n; i++) {
            dir[i] = turn ? es_rng_normal(&rng) : grad[i];
            length += (double)dir[i] * dir[i];
        }
        for (size_t i = 0; i < n; i++) {
            dir[i] /= (float)sqrt(length);
            want += (double)dir[i] * grad[i];
            x[i] = saved[i] + (float)h * dir[i];
        }
        up = loss(f);
        for (size_t i = 0; i < n; i++)
            x[i] = saved[i] - (float)h * dir[i];
        down = loss(f);
        memcpy(x, saved, n * sizeof *x);
        double got = (up - down) / (2 * h), bound = 0.01 * norm + 2e-3;
        if (fabs(got - want) > bound)
            fail_msg("%s, direction %d: differences say %g, the gradient %g (its norm %g)", what, turn, got, want, norm);
    }
    free(saved);
    free(dir);
}

static const es_kernels *table(void **state)
{
    return *state ? es_kernels_cpu() : es_kernels_scalar();
}

/* ---- gradients ------------------------------------------------------------------------------------------------------------ */

static void check_all(fixture *f, int to_layer)
{
    float *a[MAX_LOW], *b[MAX_LOW], *v[MAX_ADD];
    char what[100];
    for (int i = 0; i < f->patch.n_lowrank; i++) {
        a[i] = calloc(RANK * FF, sizeof(float));
        b[i] = calloc(RANK * FF, sizeof(float));
    }
    for (int i = 0; i < f->patch.n_addend; i++)
        v[i] = calloc(D, sizeof(float));
    es_grad g = {.a = a, .b = b, .addend = v};
    backward(f, &g, to_layer);
    for (int i = 0; i < f->patch.n_lowrank; i++) {
        const es_weight *w = &f->m->layer[f->low[i].layer].site[f->low[i].site];
        snprintf(what, sizeof what, "A of %s, layer %d", es_site_name(f->low[i].site), f->low[i].layer);
        check(f, f->low_a[i], RANK * w->n_in, a[i], what);
        snprintf(what, sizeof what, "B of %s, layer %d", es_site_name(f->low[i].site), f->low[i].layer);
        check(f, f->low_b[i], RANK * w->n_out, b[i], what);
        free(a[i]);
        free(b[i]);
    }
    for (int i = 0; i < f->patch.n_addend; i++) {
        snprintf(what, sizeof what, "addend after layer %d", f->add[i].layer);
        check(f, f->add_v[i], D, v[i], what);
        free(v[i]);
    }
}

static void test_lowrank_each_site(void **state)
{
    fixture *f = make(table(state), 0);
    for (int s = 0; s < ES_N_SITES; s++) {
        add_low(f, 0, s, 100 + s);
        add_low(f, 2, s, 200 + s);
    }
    add_low(f, 2, ES_SITE_DOWN, 300); /* two on one site */
    check_all(f, 0);
    free_fixture(f);
}

/* Each site alone in the lowest layer: the pass stops early there, at another place for each. */
static void test_lowrank_alone(void **state)
{
    for (int s = 0; s < ES_N_SITES; s++) {
        fixture *f = make(table(state), 1);
        add_low(f, 1, s, 100 + s);
        check_all(f, 1);
        free_fixture(f);
    }
}

static void test_addend(void **state)
{
    fixture *f = make(table(state), 0);
    add_addend(f, -1, 0, 1);
    add_addend(f, 1, 3, 2);
    add_addend(f, 2, 0, 3);
    check_all(f, -1);
    free_fixture(f);
}

static void test_dlogits(void **state)
{
    fixture *f = make(table(state), 1);
    f->mean_c = true;
    add_low(f, 1, ES_SITE_DOWN, 1);
    add_addend(f, 0, 0, 2);
    check_all(f, 0);
    free_fixture(f);
}

/* h' = h + tanh(h . e) s, with ds */
typedef struct tanh_hook {
    float e[D], s[D], ds[D];
} tanh_hook;

static float dot(const float *a, const float *b, int n)
{
    float sum = 0;
    for (int i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

static void hook_forward(void *user, float *h, const int *pos, int T, int d)
{
    tanh_hook *k = user;
    (void)pos;
    for (int t = 0; t < T; t++, h += d) {
        float f = tanhf(dot(h, k->e, d));
        for (int j = 0; j < d; j++)
            h[j] += f * k->s[j];
    }
}

static void hook_backward(void *user, const float *h_in, float *dh, const int *pos, int T, int d)
{
    tanh_hook *k = user;
    (void)pos;
    for (int t = 0; t < T; t++, dh += d, h_in += d) {
        float f = tanhf(dot(h_in, k->e, d)), df = dot(dh, k->s, d) * (1 - f * f);
        for (int j = 0; j < d; j++) {
            k->ds[j] += f * dh[j];
            dh[j] += df * k->e[j];
        }
    }
}

static void test_hook(void **state)
{
    fixture *f = make(table(state), 0);
    tanh_hook k[2] = {0};
    es_rng rng;
    es_rng_seed(&rng, 8);
    for (int i = 0; i < 2; i++) {
        fill(&rng, k[i].e, D, 0.2f);
        fill(&rng, k[i].s, D, 0.5f);
        f->hook[i] = (es_hook){.layer = 1, .forward = hook_forward, .backward = hook_backward, .user = &k[i]};
    }
    f->patch.n_hook = 2;
    add_addend(f, 1, 0, 9); /* before the hooks of its layer */
    float dv[D] = {0}, *v = dv;
    es_grad g = {.addend = &v};
    backward(f, &g, 1);
    check(f, f->add_v[0], D, dv, "addend below hooks");
    check(f, k[0].s, D, k[0].ds, "first hook");
    check(f, k[1].s, D, k[1].ds, "second hook");
    free_fixture(f);
}

static void delta_forward(void *user, float *h, const int *pos, int T, int d)
{
    const float *delta = user;
    (void)pos;
    for (int i = 0; i < T * d; i++)
        h[i] += delta[i];
}

static void delta_backward(void *user, const float *h_in, float *dh, const int *pos, int T, int d)
{
    (void)user, (void)h_in, (void)dh, (void)pos, (void)T, (void)d;
}

static void test_resid(void **state)
{
    fixture *f = make(table(state), 1);
    float delta[N * D] = {0}, *grads[LAYERS];
    f->hook[0] = (es_hook){.layer = 1, .forward = delta_forward, .backward = delta_backward, .user = delta};
    f->patch.n_hook = 1;
    add_low(f, 2, ES_SITE_V, 4);
    for (int l = 0; l < LAYERS; l++)
        grads[l] = malloc(sizeof(float) * N * D);
    es_grad g = {.resid = grads};
    backward(f, &g, 0);
    check(f, f->resid, N * D, grads[0], "residual after layer 0");
    check(f, delta, N * D, grads[1], "residual after layer 1");
    for (int l = 0; l < LAYERS; l++)
        free(grads[l]);
    free_fixture(f);
}

/* ---- promises ------------------------------------------------------------------------------------------------------------- */

static void near(const float *got, const float *want, size_t n, float tolerance, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(got[i] - want[i]) <= tolerance * (1 + fabsf(want[i]))))
            fail_msg("%s: [%zu] is %g, not %g", what, i, got[i], want[i]);
}

/* Slots: each sequence's gradient by itself; together they are the whole. */
static void test_slots(void **state)
{
    fixture *f = make(table(state), 0);
    enum { A = RANK * D, B = RANK * D };
    float whole_a[A] = {0}, whole_b[B] = {0}, whole_v[D] = {0}, slot_a[3 * A] = {0}, slot_b[3 * B] = {0}, slot_v[3 * D] = {0};
    float *a = whole_a, *b = whole_b, *v = whole_v, *sa = slot_a, *sb = slot_b, *sv = slot_v;
    int seq_slot[SEQ] = {2, 0, 2};
    add_low(f, 1, ES_SITE_O, 3);
    add_addend(f, 1, 1, 4);
    backward(f, &(es_grad){.a = &a, .b = &b, .addend = &v}, 1);
    backward(f, &(es_grad){.a = &sa, .b = &sb, .addend = &sv, .seq_slot = seq_slot, .n_slot = 3}, 1);
    for (int i = 0; i < A; i++) {
        assert_true(slot_a[A + i] == 0); /* nobody's slot */
        slot_a[i] += slot_a[2 * A + i];
    }
    for (int i = 0; i < B; i++)
        slot_b[i] += slot_b[2 * B + i];
    for (int i = 0; i < D; i++)
        slot_v[i] += slot_v[2 * D + i];
    near(slot_a, whole_a, A, 1e-4f, "A");
    near(slot_b, whole_b, B, 1e-4f, "B");
    near(slot_v, whole_v, D, 1e-4f, "addend");

    /* Slot 0 is the sequence of one token alone: the same as when only it has a loss. */
    float alone_b[B] = {0}, *ab = alone_b;
    memset(slot_b, 0, sizeof slot_b);
    backward(f, &(es_grad){.b = &sb, .seq_slot = seq_slot, .n_slot = 3}, 1);
    for (int i = 0; i < N; i++)
        if (i != f->start[1])
            f->dlogprob[i] = 0;
    backward(f, &(es_grad){.b = &ab}, 1);
    near(slot_b, alone_b, B, 1e-4f, "B of one sequence");
    es_error err;
    int bad[SEQ] = {0, 3, 0};
    assert_int_equal(es_trainer_backward(f->t, &f->batch, &f->patch, f->dlogprob, NULL, NULL, &(es_grad){.b = &sb, .seq_slot = bad, .n_slot = 3},
                                         1, NULL, &err), ES_ERR_USAGE);
    free_fixture(f);
}

/* The cached residual stands for the layers below it; sequences do not see each other. */
static void test_from_layer(void **state)
{
    fixture *whole = make(table(state), 0), *upper = make(table(state), 2);
    float want[N], got[N], one[N];
    es_error err;
    add_low(whole, 2, ES_SITE_K, 1);
    add_low(upper, 2, ES_SITE_K, 1);
    assert_int_equal(es_trainer_forward(whole->t, &whole->batch, NULL, &whole->patch, NULL, 0, want, NULL, &err), ES_OK);
    assert_int_equal(es_trainer_forward(upper->t, &upper->batch, upper->resid, &upper->patch, NULL, 0, got, NULL, &err), ES_OK);
    near(got, want, N, 1e-5f, "from layer 2");
    for (int s = 0; s < SEQ; s++) {
        int first = whole->start[s], n = whole->start[s + 1] - first, start[2] = {0, n};
        es_batch b = {.ids = whole->ids + first, .n = n, .start = start, .n_seq = 1, .target = whole->target + first,
                      .wanted = whole->wanted + first};
        assert_int_equal(es_trainer_forward(whole->t, &b, NULL, &whole->patch, NULL, 0, one, NULL, &err), ES_OK);
        near(one, want + first, n, 1e-5f, "a sequence alone");
    }
    /* What sits below the first layer that runs cannot act. */
    add_low(upper, 1, ES_SITE_K, 1);
    assert_int_equal(es_trainer_forward(upper->t, &upper->batch, upper->resid, &upper->patch, NULL, 0, got, NULL, &err), ES_ERR_USAGE);
    upper->low[1].scale = 0;
    assert_int_equal(es_trainer_forward(upper->t, &upper->batch, upper->resid, &upper->patch, NULL, 0, got, NULL, &err), ES_OK);
    assert_int_equal(es_trainer_forward(upper->t, &upper->batch, NULL, &upper->patch, NULL, 0, got, NULL, &err), ES_ERR_USAGE);
    free_fixture(whole);
    free_fixture(upper);
}

static void count_rows(void *user, int layer, int pos0, const float *h, int T, int d)
{
    float *copy = user;
    assert_int_equal(layer, 1);
    assert_int_equal(pos0, 0);
    memcpy(copy, h, sizeof *h * T * d);
}

/* The three ways to the residual after a layer agree: asked for, watched, and with or without memory for backward. */
static void test_residual(void **state)
{
    fixture *f = make(table(state), 0);
    es_trainer *lean;
    es_error err;
    es_trainer_options o = {.max_tokens = N, .kernels = table(state), .threads = 1};
    assert_int_equal(es_trainer_open(&lean, f->m, &o, &err), ES_OK);
    float asked[N * D], seen[N * D], p1[N], p2[N];
    es_watch w = {.layer = 1, .fn = count_rows, .user = seen};
    assert_int_equal(es_trainer_residual(lean, &f->batch, 1, asked, NULL, &err), ES_OK);
    assert_int_equal(es_trainer_forward(f->t, &f->batch, NULL, NULL, &w, 1, p1, NULL, &err), ES_OK);
    near(seen, asked, N * D, 1e-5f, "watched");
    memset(seen, 0, sizeof seen);
    assert_int_equal(es_trainer_forward(lean, &f->batch, NULL, NULL, &w, 1, p2, NULL, &err), ES_OK);
    near(seen, asked, N * D, 1e-5f, "watched without backward");
    near(p2, p1, N, 1e-5f, "log-probabilities");
    for (int i = 0; i < N; i++)
        assert_true(f->wanted[i] ? p1[i] < 0 : p1[i] == 0);
    assert_int_equal(es_trainer_backward(lean, &f->batch, NULL, f->dlogprob, NULL, NULL, NULL, 0, NULL, &err), ES_ERR_USAGE);
    es_trainer_free(lean);
    free_fixture(f);
}

static void test_scale_zero(void **state)
{
    fixture *f = make(table(state), 0);
    float plain[N], patched[N];
    es_error err;
    add_low(f, 1, ES_SITE_Q, 1);
    add_addend(f, 0, 0, 2);
    f->low[0].scale = f->add[0].scale = 0;
    assert_int_equal(es_trainer_forward(f->t, &f->batch, NULL, NULL, NULL, 0, plain, NULL, &err), ES_OK);
    assert_int_equal(es_trainer_forward(f->t, &f->batch, NULL, &f->patch, NULL, 0, patched, NULL, &err), ES_OK);
    assert_memory_equal(plain, patched, sizeof plain);
    f->low[0].scale = 1;
    assert_int_equal(es_trainer_forward(f->t, &f->batch, NULL, &f->patch, NULL, 0, patched, NULL, &err), ES_OK);
    assert_memory_not_equal(plain, patched, sizeof plain);
    free_fixture(f);
}

static void test_logits_rows(void **state)
{
    fixture *f = make(table(state), 0);
    float logits[3 * VOCAB], one[VOCAB], p[N];
    es_error err;
    assert_int_equal(es_trainer_logits(f->t, 0, one, &err), ES_ERR_USAGE);
    assert_int_equal(es_trainer_forward(f->t, &f->batch, NULL, NULL, NULL, 0, p, NULL, &err), ES_OK);
    assert_int_equal(es_trainer_logits_rows(f->t, 17, 3, logits, &err), ES_OK);
    for (int i = 0; i < 3; i++) {
        double z = 0;
        assert_int_equal(es_trainer_logits(f->t, 17 + i, one, &err), ES_OK);
        near(one, logits + i * VOCAB, VOCAB, 1e-5f, "one row");
        for (int v = 0; v < VOCAB; v++)
            z += exp(one[v]);
        assert_float_equal(one[f->target[17 + i]] - log(z), f->wanted[17 + i] ? p[17 + i] : one[f->target[17 + i]] - log(z), 1e-4);
    }
    assert_int_equal(es_trainer_logits_rows(f->t, N - 1, 2, logits, &err), ES_ERR_USAGE);
    free_fixture(f);
}

static void test_site_input(void **state)
{
    fixture *f = make(table(state), 1);
    float x[N * FF], y[N * D], after[N * D], p[N];
    es_error err;
    es_watch w = {.layer = 1, .fn = count_rows, .user = after};
    assert_int_equal(es_trainer_site_input(f->t, 1, ES_SITE_DOWN, x, &err), ES_ERR_USAGE);
    assert_int_equal(es_trainer_forward(f->t, &f->batch, f->resid, NULL, &w, 1, p, NULL, &err), ES_OK);
    /* resid + O att + down act is what leaves the block */
    const es_kernels *k = es_kernels_scalar();
    memcpy(y, f->resid, sizeof y);
    assert_int_equal(es_trainer_site_input(f->t, 1, ES_SITE_O, x, &err), ES_OK);
    k->matmul(NULL, &f->m->layer[1].site[ES_SITE_O], x, N, y, true, true);
    assert_int_equal(es_trainer_site_input(f->t, 1, ES_SITE_DOWN, x, &err), ES_OK);
    k->matmul(NULL, &f->m->layer[1].site[ES_SITE_DOWN], x, N, y, true, true);
    near(y, after, N * D, 1e-4f, "the block's output");
    assert_int_equal(es_trainer_site_input(f->t, 0, ES_SITE_DOWN, x, &err), ES_ERR_USAGE);
    assert_int_equal(es_trainer_site_input(f->t, 1, ES_SITE_Q, x, &err), ES_ERR_USAGE);
    free_fixture(f);
}

static void test_bad_batches(void **state)
{
    fixture *f = make(table(state), 0);
    float p[N];
    es_error err;
    es_batch b = f->batch;
    bool yes = true;
    assert_int_equal(es_trainer_forward(f->t, &b, NULL, NULL, NULL, 0, p, &yes, &err), ES_ERR_CANCELLED);
    assert_int_equal(es_trainer_backward(f->t, &b, NULL, f->dlogprob, NULL, NULL, NULL, 0, NULL, &err), ES_ERR_USAGE);
    b.n = 25;
    assert_int_not_equal(es_trainer_forward(f->t, &b, NULL, NULL, NULL, 0, p, NULL, &err), ES_OK);
    b = f->batch;
    f->ids[3] = VOCAB;
    assert_int_equal(es_trainer_forward(f->t, &b, NULL, NULL, NULL, 0, p, NULL, &err), ES_ERR_USAGE);
    f->ids[3] = 0;
    f->target[0] = -1;
    assert_int_equal(es_trainer_forward(f->t, &b, NULL, NULL, NULL, 0, p, NULL, &err), ES_ERR_USAGE);
    f->target[0] = 1;
    f->start[1] = 15;
    assert_int_equal(es_trainer_forward(f->t, &b, NULL, NULL, NULL, 0, p, NULL, &err), ES_ERR_USAGE);
    f->start[1] = 9;
    add_low(f, 1, ES_SITE_Q, 1);
    f->low[0].rank = 0;
    assert_int_equal(es_trainer_forward(f->t, &b, NULL, &f->patch, NULL, 0, p, NULL, &err), ES_ERR_USAGE);
    f->low[0].rank = RANK;
    f->low[0].layer = LAYERS;
    assert_int_equal(es_trainer_forward(f->t, &b, NULL, &f->patch, NULL, 0, p, NULL, &err), ES_ERR_USAGE);
    free_fixture(f);
}

static void test_no_allocation(void **state)
{
    if (!ALLOCATIONS_COUNT)
        skip();
    fixture *f = make(table(state), 0);
    float a[RANK * D] = {0}, b[RANK * FF] = {0}, *ga = a, *gb = b, p[N];
    es_error err;
    add_low(f, 1, ES_SITE_GATE, 1);
    es_grad g = {.a = &ga, .b = &gb};
    int code = 0;
    long before = 0;
    for (int turn = 0; turn < 3; turn++) { /* the first may warm libraries up */
        if (turn == 1)
            before = allocations;
        code |= es_trainer_forward(f->t, &f->batch, NULL, &f->patch, NULL, 0, p, NULL, &err);
        code |= es_trainer_backward(f->t, &f->batch, &f->patch, f->dlogprob, NULL, NULL, &g, 1, NULL, &err);
    }
    long made = allocations - before;
    assert_int_equal(code, 0);
    assert_int_equal(made, 0);
    assert_true(before > 0); /* the count works */
    free_fixture(f);
}

/* Whichever allocation of opening fails, it says so and gives back what it had. */
static void test_no_memory(void **state)
{
    (void)state;
    if (!ALLOCATIONS_COUNT)
        skip();
    es_model *m = open_tiny(NULL);
    es_trainer *x;
    es_error err;
    int n = 0, code = ES_ERR_MEMORY;
    while (code && n < 20) {
        allocation_fails = allocations + ++n;
        code = es_trainer_open(&x, m, &(es_trainer_options){.max_tokens = 8, .threads = 2}, &err);
        allocation_fails = 0;
        assert_true(code == ES_OK || (code == ES_ERR_MEMORY && !x));
    }
    assert_true(n > 2 && n < 20);
    es_trainer_free(x);
    es_model_free(m);
}

int main(void)
{
    static int cpu = 1;
#define BOTH(f) {#f " (scalar)", f, NULL, NULL, NULL}, {#f " (cpu)", f, NULL, NULL, &cpu}
    const struct CMUnitTest tests[] = {
        BOTH(test_lowrank_each_site), BOTH(test_lowrank_alone), BOTH(test_addend), BOTH(test_dlogits), BOTH(test_hook), BOTH(test_resid),
        BOTH(test_slots), BOTH(test_from_layer), BOTH(test_residual), BOTH(test_scale_zero), BOTH(test_logits_rows), BOTH(test_site_input),
        BOTH(test_bad_batches), BOTH(test_no_allocation), cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests_name("trainer", tests, NULL, NULL);
}
