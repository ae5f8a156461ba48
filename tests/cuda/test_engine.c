/* The engine itself, on models of random weights that need no file: contexts, recorded tokens and trainers, on the card and by the scalar reference. What
 * reads files, adapters and dictionaries is tested on the shim only (tests/cuda/device). */
#include "suite.h"

#include "engine.h"

static es_model *random_model(es_type type, const char *family)
{
    const bool wide = es_type_get((int)type)->block == 256;
    es_model_info shape = {.n_layer = 2, .d_model = wide ? 256 : 64, .n_head = 4, .n_kv = 2, .head_dim = wide ? 64 : 16, .d_ff = wide ? 256 : 96, .n_vocab = 300,
                           .n_ctx = 256, .rope_base = 10000, .norm_eps = 1e-5f};
    es_error err;
    es_model *m;
    snprintf(shape.architecture, sizeof shape.architecture, "%s", family);
    if (es_model_random(&m, &shape, type, 3, &err) || es_model_use_card(m, card, &(es_card_options){.workspace = 1 << 20, .exact = true}, &err))
        FAIL("%s", err.text);
    return m;
}

/* The largest difference as a share of want's range. */
static void close_to(const char *label, const char *what, const float *got, const float *want, size_t n, double bound)
{
    double most = 0, low = want[0], high = want[0];
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)got[i] - want[i]);
        most = d <= most ? most : d;
        low = fmin(low, want[i]);
        high = fmax(high, want[i]);
    }
    if (!(most <= bound * (high - low)) || !(high > low))
        FAIL("%s: %s is off by %.2g of its range %.2g", label, what, most / (high - low), high - low);
}

static void contexts_of(es_model *m, const char *label, const int32_t *ids, bool exact)
{
    es_error err;
    es_context *c[2];
    for (int i = 0; i < 2; i++) {
        const es_context_options o = {.n_ctx = 96, .threads = 1, .exact = exact, .n_seq = 2, .kernels = i ? NULL : es_kernels_scalar()};
        if (es_context_open(&c[i], m, &o, &err))
            FAIL("%s", err.text);
    }
    CHECK(es_context_on_card(c[1]));
    static const int cut[] = {0, 40, 41, 42, 43, 60, 61};
    for (int k_ = 0; k_ + 1 < LENGTH(cut); k_++) {
        for (int i = 0; i < 2; i++)
            if (es_context_feed(c[i], ids + cut[k_], cut[k_ + 1] - cut[k_], NULL, &err))
                FAIL("%s", err.text);
        CHECK(es_context_on_card(c[1])); /* nothing was given up on the way */
        close_to(label, "logits", es_context_logits(c[1]), es_context_logits(c[0]), 300, exact ? 5e-4 : 4e-3);
    }
    for (int i = 0; i < 2; i++) {
        es_context_select(c[i], 1);
        if (es_context_share(c[i], 0, 20, &err) || es_context_feed(c[i], ids, 3, NULL, &err) ||
            es_context_step(c[i], (int[]){1, 0}, (int32_t[]){5, 6}, 2, NULL, &err))
            FAIL("%s", err.text);
    }
    close_to(label, "logits after a step of two", es_context_logits(c[1]), es_context_logits(c[0]), 300, exact ? 5e-4 : 4e-3);
    es_context_free(c[0]);
    es_context_free(c[1]);
}

typedef struct passed { float logprob[48], grad[48 * 256], a[4 * 256], b[4 * 256], v[256]; } passed;

static void pass_of(es_model *m, const es_kernels *table, const int32_t *ids, passed *out)
{
    es_error err;
    es_trainer *t;
    const int d = es_model_get_info(m)->d_model, start[] = {0, 20, 48};
    uint8_t wanted[48];
    float slope[48], *resid[2] = {out->grad, NULL}, *a[] = {out->a}, *b[] = {out->b}, *v[] = {out->v};
    memset(out, 0, sizeof *out);
    for (int i = 0; i < 48; i++)
        wanted[i] = i % 3 != 1, slope[i] = wanted[i] ? 0.1f * (float)(i % 5) - 0.2f : 0;
    static float numbers[8 * 256];
    for (int i = 0; i < LENGTH(numbers); i++)
        numbers[i] = 0.05f * (float)(i * 37 % 19 - 9);
    const es_lowrank low = {.layer = 1, .site = ES_SITE_V, .rank = 4, .scale = 0.5f, .a = numbers, .b = numbers + 4 * 256};
    const es_addend add = {.layer = 0, .scale = 1, .v = numbers, .min_pos = 1};
    const es_patch patch = {.lowrank = &low, .n_lowrank = 1, .addend = &add, .n_addend = 1};
    const es_batch batch = {.ids = ids, .n = 48, .start = start, .n_seq = 2, .target = ids + 1, .wanted = wanted};
    const es_grad g = {.resid = resid, .a = a, .b = b, .addend = v};
    if (es_trainer_open(&t, m, &(es_trainer_options){.max_tokens = 48, .backward = true, .threads = 1, .logit_bytes = 1, .kernels = table}, &err) ||
        es_trainer_forward(t, &batch, NULL, &patch, NULL, 0, out->logprob, NULL, &err) ||
        es_trainer_backward(t, &batch, &patch, slope, NULL, NULL, &g, 0, NULL, &err))
        FAIL("%s", err.text);
    (void)d;
    es_trainer_free(t);
}

static void one_model(es_type type, const char *family)
{
    static passed got, want;
    int32_t ids[64];
    char label[64];
    es_model *m = random_model(type, family);
    snprintf(label, sizeof label, "%s %s", family, es_type_get((int)type)->name);
    for (int i = 0; i < 64; i++)
        ids[i] = (int32_t)es_rng_below(&rng, 300);
    if (type == ES_Q4_1)
        contexts_of(m, label, ids, true);
    contexts_of(m, label, ids, false);
    pass_of(m, es_kernels_scalar(), ids, &want);
    pass_of(m, NULL, ids, &got);
    const size_t d = (size_t)es_model_get_info(m)->d_model;
    close_to(label, "log-probability", got.logprob, want.logprob, 48, 5e-4);
    close_to(label, "the residual's gradient", got.grad, want.grad, 48 * d, 1e-3);
    close_to(label, "the gradient of A", got.a, want.a, 4 * d, 1e-3);
    close_to(label, "the gradient of B", got.b, want.b, LENGTH(got.b), 1e-3);
    close_to(label, "the addend's gradient", got.v, want.v, d, 1e-3);
    es_model_free(m);
}

static void test_types(void)
{
    for (int i = 0; i < n_types; i++)
        one_model(all_types[i], "llama");
}

static void test_families(void)
{
    static const char *const family[] = {"qwen3", "olmo2", "gemma2", "gemma3"};
    for (int i = 0; i < LENGTH(family); i++)
        one_model(ES_Q4_1, family[i]);
}

const suite_test engine_tests[] = {{"types", test_types}, {"families", test_families}, {0}};
