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

/* ---- hooks with numbers -------------------------------------------------------------------------------------------------------------- */

enum { FEATURES = 11, HOOKED = 48, WIDTH = 64, SLOTS = 2 };

typedef struct hooked { /* user of a hook: what it is in numbers, and how often its functions were called */
    const es_hook_numbers *e;
    int calls;
} hooked;

static void read_row(const es_hook_numbers *e, const float *h, double *u)
{
    for (int k_ = 0; k_ < e->K; k_++) {
        u[k_] = e->bias[k_];
        for (int i = 0; i < WIDTH; i++)
            u[k_] += (double)e->enc[k_ * WIDTH + i] * h[i];
        if (!e->map && !(u[k_] > e->threshold[k_]))
            u[k_] = 0;
    }
}

static void host_forward(void *user, float *h, const int *pos, int T, int d)
{
    const es_hook_numbers *e = ((hooked *)user)->e;
    ((hooked *)user)->calls++;
    for (int t = 0; t < T; t++) {
        double u[FEATURES], w[FEATURES];
        if (pos[t] == 0)
            continue;
        read_row(e, h + t * d, u);
        for (int i = 0; i < e->K; i++) {
            w[i] = e->map ? e->coef[i] : e->coef[i] * u[i];
            for (int j = 0; e->map && j < e->K; j++)
                w[i] += e->map[i * e->K + j] * u[j];
        }
        for (int i = 0; i < e->K; i++)
            for (int x = 0; x < d; x++)
                h[t * d + x] += (float)(e->scale * w[i] * e->dec[i * d + x]);
    }
}

static void host_backward(void *user, const float *in, float *dh, const int *pos, int T, int d)
{
    const es_hook_numbers *e = ((hooked *)user)->e;
    const es_hook_sink *sink = e->sink;
    const int K = e->K;
    for (int t = 0, s = 0; t < T; t++) {
        double u[FEATURES], p[FEATURES], back[FEATURES];
        while (t >= sink->start[s + 1])
            s++;
        if (pos[t] == 0)
            continue;
        float *coef = sink->grad + (size_t)sink->slot[s] * sink->n + e->coef_at, *map = sink->grad + (size_t)sink->slot[s] * sink->n + e->map_at;
        read_row(e, in + t * d, u);
        for (int i = 0; i < K; i++) {
            p[i] = 0;
            for (int x = 0; x < d; x++)
                p[i] += (double)e->scale * e->dec[i * d + x] * dh[t * d + x];
        }
        for (int j = 0; j < K; j++) {
            back[j] = e->map ? 0 : u[j] != 0 ? e->coef[j] * p[j] : 0;
            coef[j] += (float)(e->map ? p[j] : u[j] * p[j]);
            for (int i = 0; e->map && i < K; i++) {
                back[j] += e->map[i * K + j] * p[i];
                map[i * K + j] += (float)(p[i] * u[j]);
            }
        }
        for (int j = 0; j < K; j++)
            for (int x = 0; x < d; x++)
                dh[t * d + x] += (float)(back[j] * e->enc[j * d + x]);
    }
}

typedef struct seen { float h[HOOKED * WIDTH]; int rows; } seen;

static void look(void *user, int layer, int pos0, const float *h, int T, int d)
{
    seen *s = user;
    CHECK(layer == 1 && pos0 == s->rows && pos0 + T <= HOOKED);
    memcpy(s->h + (size_t)pos0 * (size_t)d, h, sizeof *h * (size_t)T * (size_t)d);
    s->rows += T;
}

typedef struct hooked_pass { float grad[SLOTS * (2 * FEATURES + FEATURES * FEATURES)], resid[HOOKED * WIDTH], logprob[HOOKED], logits[300]; seen watched; int calls; } hooked_pass;

/* A gain after layer 0 and a map after layer 1, in a trainer and, token by token, in a context that is watched besides. */
static void run_hooked(es_model *m, const es_kernels *table, float scale, const int32_t *ids, float *numbers, hooked_pass *out)
{
    es_error err;
    es_trainer *t;
    es_context *c;
    const int start[] = {0, 20, 31, HOOKED}, slot[] = {1, 0, 0}, K = FEATURES, n = 2 * K + K * K;
    uint8_t wanted[HOOKED];
    float slope[HOOKED], *resid[2] = {out->resid, NULL};
    memset(out, 0, sizeof *out);
    es_hook_sink sink = {.grad = out->grad, .n = (size_t)n, .start = start, .slot = slot};
    es_hook_numbers e[2];
    hooked user[2] = {{&e[0], 0}, {&e[1], 0}};
    es_hook hook[2];
    for (int i = 0; i < 2; i++) {
        const float *at = numbers + i * (2 * K * WIDTH + 3 * K + K * K);
        e[i] = (es_hook_numbers){.K = K, .enc = at, .dec = at + K * WIDTH, .bias = at + 2 * K * WIDTH, .threshold = at + 2 * K * WIDTH + K, .coef = at + 2 * K * WIDTH + 2 * K,
                                 .map = i ? at + 2 * K * WIDTH + 3 * K : NULL, .scale = scale, .sink = &sink, .coef_at = (size_t)(i * K), .map_at = (size_t)(2 * K)};
        hook[i] = (es_hook){.layer = i, .forward = host_forward, .backward = host_backward, .user = &user[i], .numbers = &e[i]};
    }
    for (int i = 0; i < HOOKED; i++)
        wanted[i] = i % 3 != 1, slope[i] = wanted[i] ? 0.1f * (float)(i % 5) - 0.2f : 0;
    const es_patch patch = {.hook = hook, .n_hook = 2};
    const es_batch batch = {.ids = ids, .n = HOOKED, .start = start, .n_seq = 3, .target = ids + 1, .wanted = wanted};
    const es_grad g = {.resid = resid};
    if (es_trainer_open(&t, m, &(es_trainer_options){.max_tokens = HOOKED, .backward = true, .threads = 1, .kernels = table}, &err) ||
        es_trainer_forward(t, &batch, NULL, &patch, NULL, 0, out->logprob, NULL, &err) ||
        es_trainer_backward(t, &batch, &patch, slope, NULL, NULL, &g, 0, NULL, &err))
        FAIL("%s", err.text);
    es_trainer_free(t);
    const es_watch watch = {.layer = 1, .fn = look, .user = &out->watched};
    if (es_context_open(&c, m, &(es_context_options){.n_ctx = 96, .threads = 1, .kernels = table}, &err))
        FAIL("%s", err.text);
    es_context_set_patch(c, &patch);
    es_context_set_watch(c, &watch, 1);
    for (int i = 0, some; i < HOOKED; i += some) {
        some = i == 0 ? 17 : 1;
        if (es_context_feed(c, ids + i, some, NULL, &err))
            FAIL("%s", err.text);
    }
    CHECK(es_context_on_card(c) == !table);
    memcpy(out->logits, es_context_logits(c), sizeof out->logits);
    es_context_free(c);
    out->calls = user[0].calls + user[1].calls;
}

static void test_hooks(void)
{
    static hooked_pass got, want, none;
    int32_t ids[HOOKED + 1];
    es_model *m = random_model(ES_Q4_1, "llama");
    CHECK(es_model_get_info(m)->d_model == WIDTH);
    for (int i = 0; i <= HOOKED; i++)
        ids[i] = (int32_t)es_rng_below(&rng, 300);
    float *numbers = noise(2 * (2 * FEATURES * WIDTH + 3 * FEATURES + FEATURES * FEATURES), 0.15f);
    run_hooked(m, es_kernels_scalar(), 0.7f, ids, numbers, &want);
    run_hooked(m, NULL, 0.7f, ids, numbers, &got);
    run_hooked(m, es_kernels_scalar(), 0, ids, numbers, &none);
    CHECK(want.calls > 0 && got.calls == 0); /* no row came down for them */
    CHECK(want.watched.rows == HOOKED && got.watched.rows == HOOKED);
    double moved = 0;
    for (int i = 0; i < HOOKED; i++)
        moved = fmax(moved, fabs((double)want.logprob[i] - none.logprob[i]));
    CHECK(moved > 0.01);
    close_to("hooks", "log-probability", got.logprob, want.logprob, HOOKED, 5e-4);
    close_to("hooks", "the residual's gradient", got.resid, want.resid, HOOKED * WIDTH, 1e-3);
    for (int s = 0; s < SLOTS; s++) {
        const int n = 2 * FEATURES + FEATURES * FEATURES;
        close_to("hooks", "the gradient of gain", got.grad + s * n, want.grad + s * n, FEATURES, 1e-3);
        close_to("hooks", "the gradient of map", got.grad + s * n + FEATURES, want.grad + s * n + FEATURES, (size_t)(n - FEATURES), 1e-3);
    }
    close_to("hooks", "the watched rows", got.watched.h, want.watched.h, HOOKED * WIDTH, 4e-3);
    close_to("hooks", "logits", got.logits, want.logits, 300, 4e-3);
    es_model_free(m);
}

/* ---- numbers that stay on the card ----------------------------------------------------------------------------------------------- */

enum { RANK = 4, KEPT = 2 * RANK * WIDTH };

typedef struct kept_pass { float param[KEPT], grad[KEPT], first[KEPT], second[KEPT]; double square; } kept_pass;

/* Three steps of Adam on a low-rank update; on the card all numbers stay there, else the reference moves them here. */
static void run_kept(es_model *m, bool on_card, const int32_t *ids, kept_pass *out)
{
    es_error err;
    es_trainer *t;
    const int start[] = {0, HOOKED};
    uint8_t wanted[HOOKED];
    float slope[HOOKED], *a[] = {out->grad}, *b[] = {out->grad + RANK * WIDTH};
    const es_lowrank low = {.layer = 0, .site = ES_SITE_O, .rank = RANK, .scale = 2, .a = out->param, .b = out->param + RANK * WIDTH};
    const es_patch patch = {.lowrank = &low, .n_lowrank = 1};
    const es_grad g = {.a = a, .b = b};
    const es_batch batch = {.ids = ids, .n = HOOKED, .start = start, .n_seq = 1, .target = ids + 1, .wanted = wanted};
    for (int i = 0; i < HOOKED; i++)
        wanted[i] = 1, slope[i] = 0.05f * (float)(i % 7 - 3);
    if (es_trainer_open(&t, m, &(es_trainer_options){.max_tokens = HOOKED, .backward = true, .threads = 1, .kernels = on_card ? NULL : es_kernels_scalar()}, &err))
        FAIL("%s", err.text);
    const es_kept kept = {.param = out->param, .grad = out->grad, .first = out->first, .second = out->second, .n = KEPT};
    CHECK(es_trainer_keep(t, &kept, &err) == (on_card ? ES_OK : ES_ERR_MISSING) && es_trainer_keeps(t) == on_card);
    CHECK(!on_card || es_trainer_keep(t, &kept, &err) == ES_ERR_USAGE);
    static float before[KEPT];
    memcpy(before, out->param, sizeof before);
    for (int step = 1; step <= 3; step++) {
        const es_adam adam = {.rate = 0.01, .beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-3, .decay = 0.5, .scale = 0.5, .step = step, .n_decay = RANK * WIDTH};
        memset(out->grad, 0, sizeof out->grad);
        es_trainer_kept_clear(t);
        for (int pass = 0; pass < 2; pass++) /* gradients add up */
            if (es_trainer_forward(t, &batch, NULL, &patch, NULL, 0, NULL, NULL, &err) ||
                es_trainer_backward(t, &batch, &patch, slope, NULL, NULL, &g, 0, NULL, &err))
                FAIL("%s", err.text);
        if (on_card) {
            CHECK(memcmp(before, out->param, sizeof before) == 0 && out->grad[0] == 0); /* nothing has come down */
            if (es_trainer_kept_gradient(t, NULL, &out->square, &err) || es_trainer_kept_adam(t, &adam, &err))
                FAIL("%s", err.text);
            continue;
        }
        out->square = 0;
        for (int i = 0; i < KEPT; i++) {
            out->square += (double)out->grad[i] * out->grad[i];
            const double x = 0.5 * out->grad[i], mean = out->first[i] = (float)(0.9 * out->first[i] + 0.1 * x), var = out->second[i] = (float)(0.99 * out->second[i] + 0.01 * x * x);
            out->param[i] = (float)(out->param[i] * (i < RANK * WIDTH ? 1 - 0.01 * 0.5 : 1) -
                                    0.01 * (mean / (1 - pow(0.9, step))) / (sqrt(var / (1 - pow(0.99, step))) + 1e-3));
        }
    }
    if (on_card && es_trainer_kept_down(t, &err))
        FAIL("%s", err.text);
    es_trainer_free(t);
}

static void test_kept(void)
{
    static kept_pass got, want;
    int32_t ids[HOOKED + 1];
    es_model *m = random_model(ES_Q4_1, "llama");
    for (int i = 0; i <= HOOKED; i++)
        ids[i] = (int32_t)es_rng_below(&rng, 300);
    memset(&want, 0, sizeof want);
    memcpy(want.param, noise(KEPT, 0.2f), sizeof want.param);
    got = want;
    const kept_pass first = want;
    run_kept(m, false, ids, &want);
    run_kept(m, true, ids, &got);
    CHECK(fabs(got.square - want.square) < 2e-3 * want.square && want.square > 0);
    close_to("kept", "first moments", got.first, want.first, KEPT, 2e-3);
    close_to("kept", "second moments", got.second, want.second, KEPT, 4e-3);
    for (int i = 0; i < KEPT; i++)
        got.param[i] -= first.param[i], want.param[i] -= first.param[i];
    close_to("kept", "how far the parameters moved", got.param, want.param, KEPT, 1e-2);
    es_model_free(m);
}

const suite_test engine_tests[] = {{"kept", test_kept}, {"hooks", test_hooks}, {"types", test_types}, {"families", test_families}, {0}};
