/* Every family beside transformers, on the tiny models that tests/golden/make_families.py wrote: logits, and the gradient at a hooked
 * residual; from the folder, and from a GGUF with the same weights. */
#include "model.h"
#include "support.h"
#include "weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HOOK = 1, N = 24, D = 24, VOCAB = TINY_VOCAB };

typedef struct golden {
    const char *name;
    int32_t ids[N], target[N];
    float weight[N], logits[N * VOCAB], residual[N * D], gradient[N * D];
} golden;

static const char *folder_of(const char *name)
{
    static char path[1024];
    char part[128];
    snprintf(part, sizeof part, "families/%s", name);
    snprintf(path, sizeof path, "%s", test_golden(part));
    return path;
}

static void read_golden(golden *g, const char *name)
{
    char path[1100];
    es_safetensors *s = NULL;
    es_error err;
    snprintf(path, sizeof path, "%s/golden.safetensors", folder_of(name));
    assert_ok(es_safetensors_open(&s, path, &err), &err);
    g->name = name;
    memcpy(g->ids, es_safetensors_find(s, "ids")->data, sizeof g->ids);
    memcpy(g->target, es_safetensors_find(s, "target")->data, sizeof g->target);
    assert_ok(es_safetensors_f32(s, "weight", 1, (size_t[]){N}, g->weight, &err), &err);
    assert_ok(es_safetensors_f32(s, "logits", 2, (size_t[]){N, VOCAB}, g->logits, &err), &err);
    assert_ok(es_safetensors_f32(s, "residual", 2, (size_t[]){N, D}, g->residual, &err), &err);
    assert_ok(es_safetensors_f32(s, "gradient", 2, (size_t[]){N, D}, g->gradient, &err), &err);
    es_safetensors_free(s);
}

/* The largest difference as a share of the golden logits' range. */
static double worst(const float *got, const float *want, size_t n)
{
    double most = 0, low = want[0], high = want[0];
    for (size_t i = 0; i < n; i++) {
        if (!(fabs((double)got[i] - want[i]) <= most))
            most = fabs((double)got[i] - want[i]);
        low = fmin(low, want[i]);
        high = fmax(high, want[i]);
    }
    return most / (high - low);
}

static void keep_residual(void *user, int layer, int pos0, const float *h, int T, int d)
{
    (void)layer;
    memcpy((float *)user + (size_t)pos0 * (size_t)d, h, sizeof *h * (size_t)T * (size_t)d);
}

static void check_trainer(const es_model *m, const golden *g, const es_kernels *k, const char *how)
{
    es_trainer *t = NULL;
    es_error err;
    static float logits[N * VOCAB], grad[N * D], residual[N * D], logprob[N];
    uint8_t wanted[N];
    int start[2] = {0, N};
    memset(wanted, 1, sizeof wanted);
    es_trainer_options o = {.max_tokens = N, .backward = true, .threads = 2, .kernels = k, .logit_bytes = 1};
    assert_ok(es_trainer_open(&t, m, &o, &err), &err);
    es_batch b = {.ids = g->ids, .n = N, .start = start, .n_seq = 1, .target = g->target, .wanted = wanted};
    es_watch watch = {.layer = HOOK, .fn = keep_residual, .user = residual};
    assert_ok(es_trainer_forward(t, &b, NULL, NULL, &watch, 1, logprob, NULL, &err), &err);
    float *resid[16] = {[HOOK] = grad};
    assert_ok(es_trainer_logits_rows(t, 0, N, logits, &err), &err);
    assert_ok(es_trainer_backward(t, &b, NULL, g->weight, NULL, NULL, &(es_grad){.resid = resid}, HOOK, NULL, &err), &err);
    double gg = 0, gw = 0, ww = 0;
    for (int i = 0; i < N * D; i++) {
        gg += (double)grad[i] * grad[i];
        gw += (double)grad[i] * g->gradient[i];
        ww += (double)g->gradient[i] * g->gradient[i];
    }
    double cosine = gw / sqrt(gg * ww), off = worst(logits, g->logits, N * VOCAB);
    print_message("%-8s %-14s logits %.1e of their range, residual %.1e, gradient's cosine 1 - %.1e, length %.6f\n", g->name, how, off,
                  worst(residual, g->residual, N * D), 1 - cosine, sqrt(gg / ww));
    assert_true(off < 1e-4 && worst(residual, g->residual, N * D) < 1e-4);
    assert_true(cosine > 0.99999 && fabs(sqrt(gg / ww) - 1) < 1e-3);
    es_trainer_free(t);
}

/* In pieces through the cache: each last token's logits as in the whole. */
static void check_context(const es_model *m, const golden *g, bool exact)
{
    es_context *c = NULL;
    es_error err;
    es_context_options o = {.n_ctx = N, .threads = 2, .exact = exact};
    assert_ok(es_context_open(&c, m, &o, &err), &err);
    for (int at = 0, n; at < N; at += n) {
        n = at == 3 ? 9 : 1;
        assert_ok(es_context_feed(c, g->ids + at, n, NULL, &err), &err);
        double off = worst(es_context_logits(c), g->logits + (size_t)(at + n - 1) * VOCAB, VOCAB);
        if (!(off < (exact ? 1e-4 : 1e-3)))
            fail_msg("%s: token %d through the cache is off by %g of the logits' range", g->name, at + n - 1, off);
    }
    es_context_free(c);
}

/* ---- every weight's gradient: along itself, the loss changes as it says --------------------------------------------------------- */

static double loss(es_trainer *t, const golden *g)
{
    uint8_t wanted[N];
    int start[2] = {0, N};
    float logprob[N];
    double sum = 0;
    es_error err;
    memset(wanted, 1, sizeof wanted);
    es_batch b = {.ids = g->ids, .n = N, .start = start, .n_seq = 1, .target = g->target, .wanted = wanted};
    assert_ok(es_trainer_forward(t, &b, NULL, NULL, NULL, 0, logprob, NULL, &err), &err);
    for (int i = 0; i < N; i++)
        sum += (double)g->weight[i] * logprob[i];
    return sum;
}

static void check_array(es_trainer *t, const golden *g, float *x, const float *grad, size_t n, const char *what)
{
    float *was = malloc(n * sizeof *x);
    double norm = 0, side[2], step = 2e-3;
    memcpy(was, x, n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        norm += (double)grad[i] * grad[i];
    norm = sqrt(norm);
    assert_true(norm > 1e-3);
    for (int s = 0; s < 2; s++) {
        for (size_t i = 0; i < n; i++)
            x[i] = was[i] + (float)((s ? -step : step) * grad[i] / norm);
        side[s] = loss(t, g);
    }
    memcpy(x, was, n * sizeof *x);
    double got = (side[0] - side[1]) / (2 * step);
    if (fabs(got - norm) > 0.01 * norm + 5e-3)
        fail_msg("%s, %s: differences say %g, the gradient %g", g->name, what, got, norm);
    free(was);
}

static void check_weights(es_model *base, const golden *g)
{
    es_model *m = NULL;
    es_trainer *t = NULL;
    es_error err;
    char what[80];
    uint8_t wanted[N];
    int start[2] = {0, N};
    memset(wanted, 1, sizeof wanted);
    assert_ok(es_model_thaw(&m, base, 0, &err), &err);
    es_trainer_options o = {.max_tokens = N, .backward = true, .threads = 2};
    assert_ok(es_trainer_open(&t, m, &o, &err), &err);
    size_t n;
    float *x = es_model_numbers(m, &n, NULL), *grad = calloc(n, sizeof *grad);
    loss(t, g);
    es_batch b = {.ids = g->ids, .n = N, .start = start, .n_seq = 1, .target = g->target, .wanted = wanted};
    assert_ok(es_trainer_backward(t, &b, NULL, g->weight, NULL, NULL, &(es_grad){.weights = grad}, -1, NULL, &err), &err);
    for (int l = 0; l < m->info.n_layer; l++) {
        for (int i = 0; i < ES_N_NORMS; i++) {
            snprintf(what, sizeof what, "%s of layer %d", es_norm_name((es_norm)i), l);
            int width = es_norm_width(m, (es_norm)i);
            size_t at = width ? (size_t)(m->layer[l].norm[i] - x) : 0;
            if (width)
                check_array(t, g, x + at, grad + at, (size_t)width, what);
        }
        for (int s = 0; s < ES_N_SITES; s++) {
            const es_weight *w = &m->layer[l].site[s];
            size_t at = (size_t)((const float *)w->data - x);
            snprintf(what, sizeof what, "%s of layer %d", es_site_name((es_site)s), l);
            check_array(t, g, x + at, grad + at, (size_t)w->n_out * (size_t)w->n_in, what);
        }
    }
    size_t embd = (size_t)((const float *)m->token_embd.data - x);
    check_array(t, g, x + embd, grad + embd, (size_t)VOCAB * D, "embedding");
    free(grad);
    es_trainer_free(t);
    es_model_free(m);
}

static void check_family(const char *name, es_model *m, const char *how)
{
    static golden g;
    char label[64];
    read_golden(&g, name);
    assert_int_equal(m->info.d_model, D);
    assert_int_equal(m->info.n_vocab, VOCAB);
    snprintf(label, sizeof label, "%s, scalar", how);
    check_trainer(m, &g, es_kernels_scalar(), label);
    check_trainer(m, &g, es_kernels_cpu(), how);
    check_context(m, &g, true);
    check_context(m, &g, false);
}

static void from_folder(const char *name)
{
    es_model *m = NULL;
    es_error err;
    char a[65], b[65];
    static golden g;
    assert_ok(es_model_open(&m, folder_of(name), &err), &err);
    check_family(name, m, "folder");
    read_golden(&g, name);
    check_weights(m, &g);
    assert_ok(es_model_hash(m, a, &err), &err);
    es_model_free(m);
    assert_ok(es_model_open(&m, folder_of(name), &err), &err);
    assert_ok(es_model_hash(m, b, &err), &err);
    assert_string_equal(a, b);
    es_model_free(m);
}

static void test_llama(void **s) { (void)s; from_folder("llama"); }
static void test_llama3(void **s) { (void)s; from_folder("llama3"); }
static void test_qwen3(void **s) { (void)s; from_folder("qwen3"); }
static void test_olmo2(void **s) { (void)s; from_folder("olmo2"); }
static void test_olmo3(void **s) { (void)s; from_folder("olmo3"); }
static void test_gemma2(void **s) { (void)s; from_folder("gemma2"); }
static void test_gemma3(void **s) { (void)s; from_folder("gemma3"); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama), cmocka_unit_test(test_llama3), cmocka_unit_test(test_qwen3),  cmocka_unit_test(test_olmo2),
        cmocka_unit_test(test_olmo3), cmocka_unit_test(test_gemma2), cmocka_unit_test(test_gemma3),
    };
    return cmocka_run_group_tests_name("families", tests, NULL, NULL);
}
