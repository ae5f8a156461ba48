/* Models with weights of their own: what they compute, the gradients of each kind of weight against finite differences, their files. */
#include "failing.h"
#include "model.h"
#include "support.h"
#include "weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 3, N = 21, SEQ = 3 };

static es_model *base_model(bool untied, es_type type, uint64_t seed)
{
    tiny_options o = tiny_default();
    o.n_layer = LAYERS;
    o.d_model = 32;
    o.d_ff = 64;
    o.untied = untied;
    o.type = type;
    o.seed = seed;
    return open_tiny(&o);
}

static es_model *thaw(es_model *base)
{
    es_error err;
    es_model *m = NULL;
    assert_ok(es_model_thaw(&m, base, 0, &err), &err);
    return m;
}

typedef struct fixture {
    es_model *m;
    es_trainer *t;
    es_batch batch;
    int32_t ids[N], target[N];
    uint8_t wanted[N];
    int start[SEQ + 1];
    float dlogprob[N];
} fixture;

static void make(fixture *f, const es_kernels *k, bool untied)
{
    es_error err;
    es_rng rng;
    es_rng_seed(&rng, 5);
    es_model *base = base_model(untied, ES_F32, 1);
    f->m = thaw(base);
    es_model_free(base); /* the thawed one stands alone */
    es_trainer_options o = {.max_tokens = 24, .backward = true, .threads = 2, .kernels = k, .logit_bytes = 1};
    assert_ok(es_trainer_open(&f->t, f->m, &o, &err), &err);
    for (int i = 0; i < N; i++) {
        f->ids[i] = (int32_t)es_rng_below(&rng, TINY_VOCAB);
        f->target[i] = (int32_t)es_rng_below(&rng, TINY_VOCAB);
        f->wanted[i] = i % 7 != 6;
        f->dlogprob[i] = es_rng_normal(&rng);
    }
    memcpy(f->start, (int[]){0, 9, 10, N}, sizeof f->start);
    f->batch = (es_batch){.ids = f->ids, .n = N, .start = f->start, .n_seq = SEQ, .target = f->target, .wanted = f->wanted};
}

static void clear(fixture *f)
{
    es_trainer_free(f->t);
    es_model_free(f->m);
}

static double loss(fixture *f, const es_patch *patch)
{
    float logprob[N];
    double sum = 0;
    es_error err;
    assert_ok(es_trainer_forward(f->t, &f->batch, NULL, patch, NULL, 0, logprob, NULL, &err), &err);
    for (int i = 0; i < N; i++)
        sum += (double)f->dlogprob[i] * logprob[i];
    return sum;
}

static void check(fixture *f, float *x, size_t n, const float *grad, const char *what)
{
    es_rng rng;
    es_rng_seed(&rng, 99);
    double norm = 0;
    for (size_t i = 0; i < n; i++)
        norm += (double)grad[i] * grad[i];
    norm = sqrt(norm);
    if (!(norm > 1e-3))
        fail_msg("%s: its gradient is zero", what);
    float *saved = malloc(n * sizeof *x), *dir = malloc(n * sizeof *dir);
    memcpy(saved, x, n * sizeof *x);
    for (int turn = 0; turn < 3; turn++) {
        double length = 0, want = 0, side[2], h = 4e-3;
        for (size_t i = 0; i < n; i++) {
            dir[i] = turn ? es_rng_normal(&rng) : grad[i];
            length += (double)dir[i] * dir[i];
        }
        for (size_t i = 0; i < n; i++) {
            dir[i] /= (float)sqrt(length);
            want += (double)dir[i] * grad[i];
        }
        for (int s = 0; s < 2; s++) {
            for (size_t i = 0; i < n; i++)
                x[i] = saved[i] + (float)(s ? -h : h) * dir[i];
            side[s] = loss(f, NULL);
        }
        memcpy(x, saved, n * sizeof *x);
        double got = (side[0] - side[1]) / (2 * h);
        if (fabs(got - want) > 0.01 * norm + 2e-3)
            fail_msg("%s, direction %d: differences say %g, the gradient %g (its norm %g)", what, turn, got, want, norm);
    }
    free(saved);
    free(dir);
}

static void check_all(const es_kernels *k, bool untied)
{
    fixture f;
    es_error err;
    make(&f, k, untied);
    size_t n, n_matrix;
    float *x = es_model_numbers(f.m, &n, &n_matrix), *grad = calloc(n, sizeof *grad);
    assert_true(n_matrix < n && n * sizeof *x == es_model_thaw_bytes(f.m));
    loss(&f, NULL);
    es_grad g = {.weights = grad};
    assert_ok(es_trainer_backward(f.t, &f.batch, NULL, f.dlogprob, NULL, NULL, &g, -1, NULL, &err), &err);
    char what[80];
    for (int l = 0; l < LAYERS; l++) {
        for (int s = 0; s < ES_N_SITES; s++) {
            const es_weight *w = &f.m->layer[l].site[s];
            size_t at = (size_t)((const float *)w->data - x);
            snprintf(what, sizeof what, "%s of layer %d", es_site_name((es_site)s), l);
            check(&f, x + at, (size_t)w->n_out * (size_t)w->n_in, grad + at, what);
        }
        const float *norm[2] = {f.m->layer[l].norm[ES_NORM_ATTN], f.m->layer[l].norm[ES_NORM_FFN]};
        for (int i = 0; i < 2; i++) {
            snprintf(what, sizeof what, "norm %d of layer %d", i, l);
            assert_true(norm[i] >= x + n_matrix);
            check(&f, x + (norm[i] - x), 32, grad + (norm[i] - x), what);
        }
    }
    check(&f, x + (f.m->final_norm - x), 32, grad + (f.m->final_norm - x), "final norm");
    size_t embd = (size_t)((const float *)f.m->token_embd.data - x);
    check(&f, x + embd, TINY_VOCAB * 32, grad + embd, untied ? "embedding" : "tied embedding");
    assert_true((f.m->head.data == f.m->token_embd.data) == !untied);
    if (untied) {
        size_t head = (size_t)((const float *)f.m->head.data - x);
        check(&f, x + head, TINY_VOCAB * 32, grad + head, "head");
    }
    /* Gradients add up. */
    float *twice = calloc(n, sizeof *twice);
    memcpy(twice, grad, n * sizeof *grad);
    loss(&f, NULL);
    g.weights = twice;
    assert_ok(es_trainer_backward(f.t, &f.batch, NULL, f.dlogprob, NULL, NULL, &g, -1, NULL, &err), &err);
    for (size_t i = 0; i < n; i++)
        if (fabsf(twice[i] - 2 * grad[i]) > 1e-4f * (1 + fabsf(grad[i])))
            fail_msg("[%zu]: %g after two passes, %g after one", i, twice[i], grad[i]);
    /* From layer 1 up: the same there, nothing below. */
    memset(twice, 0, n * sizeof *twice);
    loss(&f, NULL);
    assert_ok(es_trainer_backward(f.t, &f.batch, NULL, f.dlogprob, NULL, NULL, &g, 1, NULL, &err), &err);
    for (int l = 0; l < LAYERS; l++)
        for (int s = 0; s < ES_N_SITES; s++) {
            const es_weight *w = &f.m->layer[l].site[s];
            size_t at = (size_t)((const float *)w->data - x);
            for (size_t i = 0; i < (size_t)w->n_out * (size_t)w->n_in; i++)
                if (l < 1 ? twice[at + i] != 0 : fabsf(twice[at + i] - grad[at + i]) > 1e-5f)
                    fail_msg("to layer 1: %s of layer %d has %g, whole %g", es_site_name((es_site)s), l, twice[at + i], grad[at + i]);
        }
    free(twice);
    free(grad);
    clear(&f);
}

static void gradients(void **s) { (void)s; check_all(es_kernels_cpu(), false); }
static void gradients_untied(void **s) { (void)s; check_all(es_kernels_cpu(), true); }
static void gradients_scalar(void **s) { (void)s; check_all(es_kernels_scalar(), false); }

/* The copy of a quantised model says what that says, in a trainer and in a context; it has weights where that has none. */
static void test_thaw(void **state)
{
    (void)state;
    es_error err = {0};
    es_model *base = base_model(false, ES_Q4_1, 1), *m = thaw(base);
    char a[65], b[65];
    assert_ok(es_model_hash(base, a, &err), &err);
    assert_ok(es_model_hash(m, b, &err), &err);
    assert_string_equal(a, b);
    int32_t ids[] = {5, 70, 90, 100, 41};
    es_context_options o = {.n_ctx = 16, .threads = 1, .exact = true};
    float want[TINY_VOCAB];
    for (int i = 0; i < 2; i++) {
        es_context *c = NULL;
        assert_ok(es_context_open(&c, i ? m : base, &o, &err), &err);
        assert_ok(es_context_feed(c, ids, 5, NULL, &err), &err);
        for (int v = 0; v < TINY_VOCAB; v++)
            if (!i)
                want[v] = es_context_logits(c)[v];
            else if (fabsf(want[v] - es_context_logits(c)[v]) > 1e-4f)
                fail_msg("logit %d: %g, thawed %g", v, want[v], es_context_logits(c)[v]);
        es_context_free(c);
    }
    es_ids l = {0};
    es_model_free(base);
    assert_ok(es_tokenize(m, "and again", 9, false, &l, &err), &err); /* the tokenizer outlives its first model */
    assert_true(l.n > 0);
    es_ids_free(&l);
    es_model *again = NULL, *other = NULL;
    assert_ok(es_model_thaw(&again, m, 0, &err), &err);
    size_t n, n2;
    float *x = es_model_numbers(m, &n, NULL), *y = es_model_numbers(again, &n2, NULL);
    assert_true(n == n2 && !memcmp(x, y, n * sizeof *x));
    x[7] = 3;
    assert_true(y[7] != 3);
    assert_ok(es_model_assign(again, m, &err), &err);
    assert_true(y[7] == 3);
    tiny_options small = tiny_default();
    other = open_tiny(&small);
    assert_error(es_model_assign(again, other, &err), &err, "same shapes");
    es_model *none = again;
    assert_int_equal(es_model_thaw(&none, m, 100, &err), ES_ERR_MEMORY);
    assert_error(err.code, &err, "needs");
    assert_null(none);
    assert_null(es_model_numbers(other, &n, NULL));
    es_model_free(other);
    es_model_free(again);
    es_model_free(m);
}

static void test_memory_runs_out(void **state)
{
    (void)state;
    if (!test_malloc_hooked())
        return;
    es_error err;
    es_model *base = base_model(false, ES_F32, 1), *m;
    char hash[65];
    assert_ok(es_model_hash(base, hash, &err), &err);
    long before = test_malloc_live();
    bool ended = false;
    for (long n = 0; !ended && n < 50; n++) {
        test_fail_malloc(n, false);
        int rc = es_model_thaw(&m, base, (size_t)1 << 30, &err);
        bool failed = test_malloc_failed();
        test_fail_malloc(-1, false);
        ended = !failed && rc == ES_OK;
        assert_true(rc == ES_OK || (rc == ES_ERR_MEMORY && !m));
        es_model_free(m);
        assert_int_equal(test_malloc_live(), before);
    }
    assert_true(ended);
    es_model_free(base);
}

static void test_frozen(void **state)
{
    (void)state;
    es_error err;
    es_model *m = base_model(false, ES_F32, 1);
    es_trainer *t = NULL;
    es_trainer_options o = {.max_tokens = 8, .backward = true, .threads = 1};
    assert_ok(es_trainer_open(&t, m, &o, &err), &err);
    int32_t ids[2] = {4, 5}, target[2] = {5, 6};
    uint8_t wanted[2] = {1, 1};
    int start[2] = {0, 2};
    float lp[2], d[2] = {1, 1}, w[4];
    es_batch b = {.ids = ids, .n = 2, .start = start, .n_seq = 1, .target = target, .wanted = wanted};
    assert_ok(es_trainer_forward(t, &b, NULL, NULL, NULL, 0, lp, NULL, &err), &err);
    assert_error(es_trainer_backward(t, &b, NULL, d, NULL, NULL, &(es_grad){.weights = w}, 0, NULL, &err), &err, "thawed");
    es_trainer_free(t);
    es_model_free(m);
}

/* ---- files ---------------------------------------------------------------------------------------------------------------- */

static void test_files(void **state)
{
    (void)state;
    es_error err;
    es_model *base = base_model(true, ES_F32, 1), *m = thaw(base), *to = thaw(base), *stranger = base_model(true, ES_F32, 2), *other = thaw(stranger);
    size_t n;
    float *x = es_model_numbers(m, &n, NULL), *y = es_model_numbers(to, &n, NULL);
    float *moment = calloc(n, sizeof *moment), *back = calloc(n, sizeof *back);
    for (size_t i = 0; i < n; i++) {
        if (x[i] != 0)
            x[i] += 0.001f * (float)(i % 7);
        moment[i] = x[i] != 0 ? 1e-12f * (float)(i % 11) : 0; /* padding is not written */
    }
    const char *path = test_path("w.safetensors");
    json_t *meta = json_pack("{s:s}", "steps", "12"), *seen = NULL;
    es_weights_more more = {"second", ES_TENSOR_BF16, moment}, into = {"second", ES_TENSOR_BF16, back};
    assert_ok(es_weights_save(m, path, ES_TENSOR_F32, &more, 1, meta, &err), &err);
    assert_ok(es_weights_load(to, path, &into, 1, &seen, &err), &err);
    assert_string_equal(json_string_value(json_object_get(seen, "steps")), "12");
    json_decref(seen);
    json_decref(meta);
    assert_true(!memcmp(x, y, n * sizeof *x));
    for (size_t i = 0; i < n; i++)
        assert_true(fabsf(back[i] - moment[i]) <= 0.004f * moment[i]);

    /* Half: as near as half can be. */
    const char *half = test_path("half.safetensors");
    assert_ok(es_weights_save(m, half, ES_TENSOR_F16, NULL, 0, NULL, &err), &err);
    assert_ok(es_weights_load(to, half, NULL, 0, NULL, &err), &err);
    for (size_t i = 0; i < n; i++)
        assert_true(fabsf(x[i] - y[i]) <= 1e-3f * fabsf(x[i]) + 1e-7f);

    /* Refused, and nothing touched. */
    float *before = malloc(n * sizeof *before);
    memcpy(before, y, n * sizeof *y);
    assert_int_equal(es_weights_load(other, path, &into, 1, NULL, &err), ES_ERR_MISMATCH);
    assert_error(err.code, &err, "was learned from");
    assert_error(es_weights_load(to, path, NULL, 0, NULL, &err), &err, "arrays where");
    assert_error(es_weights_load(to, half, &into, 1, NULL, &err), &err, "arrays where");
    es_weights_more wrong = {"first", ES_TENSOR_BF16, back};
    assert_error(es_weights_load(to, path, &wrong, 1, NULL, &err), &err, "missing");
    assert_error(es_weights_load(base, path, NULL, 0, NULL, &err), &err, "thawed");
    assert_error(es_weights_save(base, path, ES_TENSOR_F32, NULL, 0, NULL, &err), &err, "thawed");
    assert_error(es_weights_save(m, test_path("no/such"), ES_TENSOR_F32, NULL, 0, NULL, &err), &err, "cannot create");
    x[3] = NAN;
    const char *bad = test_path("nan.safetensors");
    assert_ok(es_weights_save(m, bad, ES_TENSOR_F32, NULL, 0, NULL, &err), &err);
    assert_error(es_weights_load(to, bad, NULL, 0, NULL, &err), &err, "NaN");
    tiny_options wide = tiny_default(); /* the right hash, other shapes */
    es_model *wider_base = open_tiny(&wide);
    char hash[65];
    assert_ok(es_model_hash(base, hash, &err), &err);
    es_model_set_hash(wider_base, hash);
    es_model *wider = thaw(wider_base);
    assert_error(es_weights_load(wider, half, NULL, 0, NULL, &err), &err, "arrays where");
    assert_true(!memcmp(before, y, n * sizeof *y));
    assert_error(es_weights_load(to, test_path("absent"), NULL, 0, NULL, &err), &err, "absent");

    /* Cut anywhere, and with any byte of the header spoilt, it is refused or read, never more. */
    es_buf bytes = {0};
    test_read(&bytes, half);
    const char *cut = test_path("cut.safetensors");
    for (size_t len = 0; len < bytes.len; len += 1 + bytes.len / 97) {
        test_write(cut, bytes.data, len);
        assert_true(es_weights_load(to, cut, NULL, 0, NULL, &err) < 0);
    }
    assert_true(!memcmp(before, y, n * sizeof *y));
    es_rng rng;
    es_rng_seed(&rng, 3);
    for (int i = 0; i < 200; i++) {
        size_t at = es_rng_below(&rng, 4000);
        char was = bytes.data[at];
        bytes.data[at] = (char)es_rng_below(&rng, 256);
        test_write(cut, bytes.data, bytes.len);
        es_weights_load(to, cut, NULL, 0, NULL, &err);
        bytes.data[at] = was;
    }
    es_buf_free(&bytes);
    free(before);
    free(moment);
    free(back);
    es_model_free(wider);
    es_model_free(wider_base);
    es_model_free(other);
    es_model_free(stranger);
    es_model_free(to);
    es_model_free(m);
    es_model_free(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients),    cmocka_unit_test(gradients_untied),     cmocka_unit_test(gradients_scalar), cmocka_unit_test(test_thaw),
        cmocka_unit_test(test_memory_runs_out), cmocka_unit_test(test_frozen), cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
