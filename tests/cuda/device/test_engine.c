/* The engine on a card beside the engine on the processor: every family, every type of weight, forward, cache, backward, patches, thawed models, and
 * what becomes of a card that has no memory left or is lost. The card is the shim's. */
#include "card.h"
#include "weights.h"

enum { N = 24, MORE = 40, SEQ = 3 };

typedef struct both { es_model *cpu, *card; int n_vocab, d; int32_t ids[MORE]; } both;

static both open_both(const char *path, bool exact)
{
    both b = {0};
    es_error err;
    es_rng rng;
    assert_ok(es_model_open(&b.cpu, path, &err), &err);
    assert_ok(es_model_open(&b.card, path, &err), &err);
    use_card(b.card, exact);
    const es_model_info *i = es_model_get_info(b.cpu);
    b.n_vocab = i->n_vocab;
    b.d = i->d_model;
    es_rng_seed(&rng, 5);
    for (int t = 0; t < MORE; t++)
        b.ids[t] = (int32_t)es_rng_below(&rng, (uint64_t)b.n_vocab);
    return b;
}

static void close_both(both *b)
{
    es_model_free(b->cpu);
    es_model_free(b->card);
}

/* ---- forward and backward of whole sequences ------------------------------------------------------------------------------------- */

typedef struct pass { /* what a pass gave */
    float logprob[MORE], *logits, *resid, *watched, *weights;
    float a[SEQ * 4 * 512], b[SEQ * 4 * 512], addend[SEQ * 512];
    float point[ES_N_POINTS][N * 512]; /* of the watched layer, where it is run */
} pass;

static void keep(void *user, int layer, int pos0, const float *h, int T, int d)
{
    (void)layer;
    memcpy((float *)user + (size_t)pos0 * (size_t)d, h, sizeof *h * (size_t)T * (size_t)d);
}

static pass *new_pass(const both *b)
{
    pass *p = calloc(1, sizeof *p);
    p->logits = calloc((size_t)MORE * (size_t)b->n_vocab, sizeof(float));
    p->resid = calloc((size_t)MORE * (size_t)b->d, sizeof(float));
    p->watched = calloc((size_t)MORE * (size_t)b->d, sizeof(float));
    return p;
}

static void free_pass(pass *p)
{
    free(p->logits);
    free(p->resid);
    free(p->watched);
    free(p->weights);
    free(p);
}

typedef struct how { int from, to; const es_patch *patch; bool slots, extra; void (*dlogits)(void *user, int token, const float *p, float *dl); const float *resid; } how;

static const int start[SEQ + 1] = {0, 9, 17, N}, slot[SEQ] = {1, 0, 1};

static pass *run_pass(const both *b, es_model *m, const how *h)
{
    es_trainer *t = NULL;
    es_error err;
    pass *p = new_pass(b);
    uint8_t wanted[N];
    int32_t target[N];
    float slope[N];
    for (int i = 0; i < N; i++) {
        wanted[i] = i % 5 != 2;
        target[i] = b->ids[(i + 1) % N];
        slope[i] = wanted[i] ? 0.1f * (float)(i % 7) - 0.2f : 0;
    }
    size_t n_own, n_matrix;
    float *own = es_model_numbers(m, &n_own, &n_matrix);
    p->weights = own ? calloc(n_own, sizeof(float)) : NULL;
    es_trainer_options o = {.max_tokens = N, .from_layer = h->from, .backward = true, .threads = 1, .logit_bytes = 1};
    assert_ok(es_trainer_open(&t, m, &o, &err), &err);
    es_batch batch = {.ids = b->ids, .n = N, .start = start, .n_seq = SEQ, .target = target, .wanted = wanted};
    int layer = h->to < 0 ? 0 : h->to;
    es_watch watch[ES_N_POINTS] = {{.layer = layer, .fn = keep, .user = p->watched}};
    for (int i = 1; i < ES_N_POINTS; i++) {
        assert_true(es_point_width(m, (es_point)i) <= 512);
        watch[i] = (es_watch){layer, keep, p->point[i], (es_point)i};
    }
    assert_ok(es_trainer_forward(t, &batch, h->resid, h->patch, watch, ES_N_POINTS, p->logprob, NULL, &err), &err);
    assert_ok(es_trainer_logits_rows(t, 0, N, p->logits, &err), &err);
    float *resid[64] = {NULL}, *a[2] = {p->a, NULL}, *bb[2] = {p->b, NULL}, *addend[1] = {p->addend};
    resid[layer] = p->resid;
    es_grad g = {.resid = resid, .weights = p->weights};
    if (h->patch && h->patch->n_lowrank)
        g.a = a, g.b = bb;
    if (h->patch && h->patch->n_addend)
        g.addend = addend;
    if (h->slots)
        g.seq_slot = slot, g.n_slot = 2;
    for (int times = 0; times < 2; times++) /* gradients add up */
        assert_ok(es_trainer_backward(t, &batch, h->patch, slope, h->dlogits, NULL, &g, h->to, NULL, &err), &err);
    es_trainer_free(t);
    return p;
}

static void same_pass(const both *b, const pass *got, const pass *want, const char *label, es_model *m, double bound)
{
    size_t n_own, n_matrix;
    near(label, "log-probability", got->logprob, want->logprob, N, bound);
    near(label, "logits", got->logits, want->logits, (size_t)N * (size_t)b->n_vocab, bound);
    near(label, "a watched residual", got->watched, want->watched, (size_t)N * (size_t)b->d, bound);
    for (int i = 1; i < ES_N_POINTS; i++)
        near(label, "what a half of a block gives", got->point[i], want->point[i], (size_t)N * (size_t)es_point_width(m, (es_point)i), bound);
    near(label, "the residual's gradient", got->resid, want->resid, (size_t)N * (size_t)b->d, bound);
    near(label, "the gradient of A", got->a, want->a, SEQ * 4 * 512, bound);
    near(label, "the gradient of B", got->b, want->b, SEQ * 4 * 512, bound);
    near(label, "the gradient of an addend", got->addend, want->addend, SEQ * 512, bound);
    es_model_numbers(m, &n_own, &n_matrix);
    if (got->weights)
        near(label, "the weights' gradient", got->weights, want->weights, n_own, bound);
}

static void compare(const both *b, es_model *cpu, es_model *on, const how *h, const char *label, double bound)
{
    pass *want = run_pass(b, cpu, h), *got = run_pass(b, on, h);
    same_pass(b, got, want, label, cpu, bound);
    free_pass(want);
    free_pass(got);
}

/* ---- contexts ------------------------------------------------------------------------------------------------------------------- */

static void compare_contexts(const both *b, const es_patch *patch, bool exact, const char *label, double bound)
{
    es_context *c[2];
    es_error err;
    es_context_options o = {.n_ctx = 64, .threads = 1, .exact = exact, .n_seq = 3};
    char what[80];
    for (int i = 0; i < 2; i++) {
        assert_ok(es_context_open(&c[i], i ? b->card : b->cpu, &o, &err), &err);
        assert_int_equal(es_context_on_card(c[i]), i);
        es_context_set_patch(c[i], patch);
    }
    const int cut[] = {0, 3, 4, 5, 29, 30}; /* single tokens and more than the few that are done row by row */
    for (size_t k = 0; k + 1 < sizeof cut / sizeof *cut; k++) {
        for (int i = 0; i < 2; i++)
            assert_ok(es_context_feed(c[i], b->ids + cut[k], cut[k + 1] - cut[k], NULL, &err), &err);
        snprintf(what, sizeof what, "logits after token %d", cut[k + 1]);
        near(label, what, es_context_logits(c[1]), es_context_logits(c[0]), (size_t)b->n_vocab, bound);
    }
    for (int i = 0; i < 2; i++) { /* another sequence takes the beginning of the first, a third one its own; then all step together */
        es_context_select(c[i], 1);
        assert_ok(es_context_share(c[i], 0, 20, &err), &err);
        assert_ok(es_context_feed(c[i], b->ids + 30, 2, NULL, &err), &err);
        es_context_select(c[i], 2);
        assert_ok(es_context_feed(c[i], b->ids + 7, 18, NULL, &err), &err);
        assert_ok(es_context_step(c[i], (int[]){2, 0, 1}, (int32_t[]){b->ids[1], b->ids[2], b->ids[3]}, 3, NULL, &err), &err);
        assert_ok(es_context_step(c[i], (int[]){1, 2}, (int32_t[]){b->ids[4], b->ids[5]}, 2, NULL, &err), &err);
    }
    for (int s = 0; s < 3; s++) {
        es_context_select(c[0], s);
        es_context_select(c[1], s);
        snprintf(what, sizeof what, "logits of sequence %d after steps", s);
        near(label, what, es_context_logits(c[1]), es_context_logits(c[0]), (size_t)b->n_vocab, bound);
    }
    for (int i = 0; i < 2; i++)
        es_context_free(c[i]);
}

/* ---- families and types ----------------------------------------------------------------------------------------------------------- */

static void families(void **state)
{
    (void)state;
    static const char *const name[] = {"llama", "llama3", "qwen3", "olmo2", "olmo3", "gemma2", "gemma3"};
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        char part[64], label[80];
        es_error err;
        es_model *own[2] = {0};
        snprintf(part, sizeof part, "families/%s", name[i]);
        both b = open_both(test_golden(part), true);
        how h = {.to = 1};
        compare(&b, b.cpu, b.card, &h, name[i], 2e-4);
        compare_contexts(&b, NULL, true, name[i], 2e-4);
        assert_ok(es_model_thaw(&own[0], b.cpu, 0, &err), &err);
        assert_ok(es_model_thaw(&own[1], b.card, 0, &err), &err);
        assert_ptr_equal(es_model_card(own[1]), card); /* as its base */
        h.to = -1;
        snprintf(label, sizeof label, "%s, thawed", name[i]);
        compare(&b, own[0], own[1], &h, label, 5e-4);
        es_model_free(own[0]);
        es_model_free(own[1]);
        close_both(&b);
    }
}

static void types(void **state)
{
    (void)state;
    static const es_type type[] = {ES_F32, ES_F16, ES_BF16, ES_Q4_0, ES_Q4_1, ES_Q5_0, ES_Q5_1, ES_Q8_0, ES_IQ4_NL, ES_Q2_K, ES_Q3_K, ES_Q4_K, ES_Q5_K, ES_Q6_K};
    for (size_t i = 0; i < sizeof type / sizeof *type; i++) {
        tiny_options o = tiny_default();
        bool wide = es_type_get(type[i])->block == 256;
        o.type = type[i];
        o.n_layer = 2;
        o.d_model = wide ? 256 : 64;
        o.d_ff = wide ? 256 : 96;
        o.untied = i % 2;
        const char *path = test_path("type-%d.gguf", (int)type[i]), *label = es_type_get(type[i])->name;
        make_tiny_gguf(path, &o);
        both b = open_both(path, true);
        how h = {.to = 0};
        compare(&b, b.cpu, b.card, &h, label, 5e-4);
        compare_contexts(&b, NULL, false, label, 3e-3); /* keys and values in half precision, activations of 15 bits on the processor */
        close_both(&b);
        b = open_both(path, false); /* products of many tokens in bfloat16 */
        compare_contexts(&b, NULL, false, label, 3e-2);
        close_both(&b);
    }
}

/* ---- patches ---------------------------------------------------------------------------------------------------------------------- */

static float numbers[4 * 4096];

/* h' = h + 0.1 h[0] e_1 on all tokens but the first of a sequence */
static void lean(void *user, float *h, const int *pos, int T, int d)
{
    ++*(int *)user;
    for (int t = 0; t < T; t++)
        if (pos[t])
            h[(size_t)t * (size_t)d + 1] += 0.1f * h[(size_t)t * (size_t)d] * h[(size_t)t * (size_t)d];
}

static void lean_back(void *user, const float *in, float *dh, const int *pos, int T, int d)
{
    (void)user;
    for (int t = 0; t < T; t++)
        if (pos[t])
            dh[(size_t)t * (size_t)d] += 0.2f * in[(size_t)t * (size_t)d] * dh[(size_t)t * (size_t)d + 1];
}

static void pull(void *user, int token, const float *p, float *dl)
{
    (void)user;
    for (int i = 0; i < 8; i++)
        dl[i + token % 3] += 0.3f * p[i];
}

static void patches(void **state)
{
    (void)state;
    static const char *const name[] = {"llama", "gemma2", "qwen3"};
    es_rng rng;
    es_rng_seed(&rng, 3);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        numbers[i] = 0.2f * es_rng_normal(&rng);
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        char part[64];
        int calls = 0;
        snprintf(part, sizeof part, "families/%s", name[i]);
        both b = open_both(test_golden(part), true);
        es_lowrank low[] = {{.layer = 1, .site = ES_SITE_UP, .rank = 4, .scale = 0.7f, .a = numbers, .b = numbers + 4096},
                            {.layer = 2, .site = ES_SITE_Q, .rank = 2, .scale = -0.4f, .a = numbers + 100, .b = numbers + 5000}};
        es_addend add = {.layer = 1, .scale = 1.5f, .v = numbers + 9000, .min_pos = 2};
        es_hook hook = {.layer = 1, .forward = lean, .backward = lean_back, .user = &calls};
        es_patch patch = {.lowrank = low, .n_lowrank = 2, .addend = &add, .n_addend = 1, .hook = &hook, .n_hook = 1};
        how h = {.to = 1, .patch = &patch, .slots = true, .dlogits = pull};
        compare(&b, b.cpu, b.card, &h, name[i], 5e-4);
        h.slots = false;
        h.dlogits = NULL;
        compare(&b, b.cpu, b.card, &h, name[i], 5e-4);
        h.from = 1; /* from a residual */
        h.resid = numbers;
        compare(&b, b.cpu, b.card, &h, name[i], 5e-4);
        compare_contexts(&b, &patch, true, name[i], 2e-4);
        assert_true(calls > 0);
        close_both(&b);
    }
}

/* A patch's arrays are taken anew when it is set again; scale 0 leaves every bit. */
static void patch_replaced(void **state)
{
    (void)state;
    es_error err;
    es_context *c;
    both b = open_both(test_golden("families/llama"), true);
    float *plain = calloc((size_t)b.n_vocab, sizeof *plain), *one = calloc((size_t)b.n_vocab, sizeof *one), v[64];
    assert_ok(es_context_open(&c, b.card, &(es_context_options){.n_ctx = 32}, &err), &err);
    for (int i = 0; i < 64; i++)
        v[i] = 1;
    es_addend add = {.layer = 0, .scale = 0, .v = v};
    es_patch patch = {.addend = &add, .n_addend = 1};
    for (int time = 0; time < 4; time++) {
        es_context_set_patch(c, time ? &patch : NULL);
        assert_ok(es_context_truncate(c, 0, &err), &err);
        assert_ok(es_context_feed(c, b.ids, 6, NULL, &err), &err);
        const float *logits = es_context_logits(c);
        if (time == 0)
            memcpy(plain, logits, sizeof *plain * (size_t)b.n_vocab);
        if (time == 1)
            assert_memory_equal(plain, logits, sizeof *plain * (size_t)b.n_vocab);
        if (time == 2)
            memcpy(one, logits, sizeof *one * (size_t)b.n_vocab);
        if (time > 1)
            assert_true(off(logits, plain, (size_t)b.n_vocab) > 1e-3);
        if (time == 3)
            assert_true(off(logits, one, (size_t)b.n_vocab) > 1e-3);
        add.scale = (float)time;
        v[3] += 5;
    }
    es_context_free(c);
    free(plain);
    free(one);
    close_both(&b);
}

/* A patch that outgrows its room takes another without the rest of the card being waited for; on a driver without memory in a stream's order with. */
static void patch_grows(void **state)
{
    (void)state;
    es_error err;
    for (int pools = 1; pools >= 0; pools--) {
        es_cuda *before = card;
        shim_pools(pools);
        open_card(NULL);
        both b = open_both(test_golden("families/llama"), true);
        es_context *c[2];
        for (int on = 0; on < 2; on++)
            assert_ok(es_context_open(&c[on], on ? b.card : b.cpu, &(es_context_options){.n_ctx = 64, .threads = 1}, &err), &err);
        es_lowrank low[7];
        for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
            numbers[i] = 0.02f * (float)((int)(i * 7919 % 29) - 14);
        const long waits = shim_waits();
        for (int n = 1; n <= 7; n++) {
            low[n - 1] = (es_lowrank){.layer = n % 3, .site = (es_site)(n - 1), .rank = 4, .scale = 0.3f, .a = numbers, .b = numbers + 4096};
            const es_patch patch = {.lowrank = low, .n_lowrank = n};
            for (int on = 0; on < 2; on++) {
                es_context_set_patch(c[on], &patch);
                assert_ok(es_context_feed(c[on], b.ids + n, n % 2 ? 1 : 3, NULL, &err), &err);
            }
            near("a patch that grows", "logits", es_context_logits(c[1]), es_context_logits(c[0]), (size_t)b.n_vocab, 3e-3);
        }
        assert_int_equal(shim_waits() - waits, pools ? 0 : 6);
        assert_true(es_context_on_card(c[1]));
        for (int on = 0; on < 2; on++)
            es_context_free(c[on]);
        close_both(&b);
        es_cuda_close(card);
        card = before;
        shim_pools(1);
    }
}

/* ---- a token at a time ------------------------------------------------------------------------------------------------------------ */

/* One recording serves all positions, of layers with windows too; another sequence, and another patch, are recorded anew. */
static void recorded(void **state)
{
    (void)state;
    static const char *const name[] = {"llama", "gemma2", "gemma3", "olmo3"};
    es_error err;
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        char part[64];
        es_context *c[2];
        float v[64];
        snprintf(part, sizeof part, "families/%s", name[i]);
        both b = open_both(test_golden(part), true);
        es_addend add = {.layer = 1, .scale = 2, .v = v, .min_pos = 14};
        es_patch patch = {.addend = &add, .n_addend = 1};
        pass *seen[2] = {new_pass(&b), new_pass(&b)}; /* a recorded token shows its watches what it left behind */
        const es_watch watch[2][2] = {{{.layer = 1, .fn = keep, .user = seen[0]->watched}, {.layer = 0, .fn = keep, .user = seen[0]->resid}},
                                      {{.layer = 1, .fn = keep, .user = seen[1]->watched}, {.layer = 0, .fn = keep, .user = seen[1]->resid}}};
        for (int j = 0; j < 64; j++)
            v[j] = 0.1f * (float)(j % 9);
        long before = shim_records();
        for (int on = 0; on < 2; on++) {
            es_context_options o = {.n_ctx = 200, .threads = 1, .n_seq = 2};
            assert_ok(es_context_open(&c[on], on ? b.card : b.cpu, &o, &err), &err);
            es_context_set_watch(c[on], watch[on], 2);
            assert_ok(es_context_feed(c[on], b.ids, 3, NULL, &err), &err);
        }
        for (int t = 3; t < 20; t++) {
            if (t == 10)
                for (int on = 0; on < 2; on++)
                    es_context_set_patch(c[on], &patch);
            for (int on = 0; on < 2; on++)
                assert_ok(es_context_feed(c[on], b.ids + t, 1, NULL, &err), &err);
            near(name[i], "logits of a recorded token", es_context_logits(c[1]), es_context_logits(c[0]), (size_t)b.n_vocab, 3e-3);
        }
        assert_int_equal(shim_records() - before, 2);
        near(name[i], "watched rows", seen[1]->watched, seen[0]->watched, 20 * (size_t)b.d, 3e-3);
        near(name[i], "watched rows of another layer", seen[1]->resid, seen[0]->resid, 20 * (size_t)b.d, 3e-3);
        for (int on = 0; on < 2; on++) {
            es_context_select(c[on], 1);
            assert_ok(es_context_feed(c[on], b.ids + 5, 1, NULL, &err), &err); /* the very first token by a recording */
            assert_ok(es_context_feed(c[on], b.ids + 6, 1, NULL, &err), &err);
        }
        near(name[i], "logits of another sequence", es_context_logits(c[1]), es_context_logits(c[0]), (size_t)b.n_vocab, 3e-3);
        assert_int_equal(shim_records() - before, 3);
        assert_error(es_context_feed(c[1], (int32_t[]){b.n_vocab}, 1, NULL, &err), &err, "vocabulary");
        assert_int_equal(es_context_length(c[1]), 2);
        for (int on = 0; on < 2; on++) {
            es_context_free(c[on]);
            free_pass(seen[on]);
        }
        close_both(&b);
    }
}

/* What is drawn from the few logits that come down is what is drawn from all. */
static void sampling(void **state)
{
    (void)state;
    static const es_sampling draw[] = {
        {.temperature = 0, .top_p = 1, .repeat_penalty = 1}, {.temperature = 0, .top_p = 1, .repeat_penalty = 1.3f, .repeat_window = 8},
        {.temperature = 0.8f, .top_k = 5, .top_p = 1, .repeat_penalty = 1}, {.temperature = 1.2f, .top_k = 20, .top_p = 0.8f, .repeat_penalty = 1.5f, .repeat_window = 30},
        {.temperature = 1.5f, .top_k = 40, .top_p = 0.95f, .repeat_penalty = 0.7f, .repeat_window = 30}, {.temperature = 1, .top_p = 0.9f, .repeat_penalty = 1.1f, .repeat_window = 4}};
    es_error err;
    es_context *c;
    both b = open_both(test_golden("families/llama"), true);
    assert_ok(es_context_open(&c, b.card, &(es_context_options){.n_ctx = 200}, &err), &err);
    assert_ok(es_context_feed(c, b.ids, 12, NULL, &err), &err);
    for (int t = 0; t < 60; t++) {
        es_rng one, other;
        const es_sampling *s = &draw[t % 6];
        es_rng_seed(&one, (uint64_t)t);
        other = one;
        assert_ok(es_context_feed(c, b.ids + t % MORE, 1, NULL, &err), &err);
        int32_t few = es_sample(c, s, &one);
        es_context_logits(c); /* from now on all are here */
        assert_int_equal(few, es_sample(c, s, &other));
        assert_memory_equal(&one, &other, sizeof one);
    }
    es_context_free(c);
    close_both(&b);
}

/* ---- thawed models move ------------------------------------------------------------------------------------------------------------- */

static void numbers_change(void **state)
{
    (void)state;
    es_error err;
    both b = open_both(test_golden("families/qwen3"), true);
    es_model *own[2];
    es_context *c[2];
    for (int i = 0; i < 2; i++) {
        assert_ok(es_model_thaw(&own[i], i ? b.card : b.cpu, 0, &err), &err);
        assert_ok(es_context_open(&c[i], own[i], &(es_context_options){.n_ctx = 32, .threads = 1, .exact = true}, &err), &err);
    }
    for (int time = 0; time < 3; time++) {
        for (int i = 0; i < 2; i++) {
            size_t n, n_matrix;
            float *x = es_model_numbers(own[i], &n, &n_matrix);
            for (size_t j = (size_t)time; time && j < n; j += 97)
                x[j] *= 1.3f;
            es_model_changed(own[i]);
            assert_ok(es_context_truncate(c[i], 0, &err), &err);
            assert_ok(es_context_feed(c[i], b.ids, 5 + time, NULL, &err), &err);
        }
        near("thawed", "logits", es_context_logits(c[1]), es_context_logits(c[0]), (size_t)b.n_vocab, 2e-4);
    }
    for (int i = 0; i < 2; i++) {
        es_context_free(c[i]);
        es_model_free(own[i]);
    }
    close_both(&b);
}

/* ---- failures ------------------------------------------------------------------------------------------------------------------------ */

/* The card is lost after the k-th kernel of a call, whatever k: the context goes on with the processor, and knows all it knew. */
static void lost_context(void **state)
{
    (void)state;
    es_error err;
    for (long k = 0; k < 60; k += 7) {
        both b = open_both(test_golden("families/gemma3"), true);
        es_context *c[2];
        for (int i = 0; i < 2; i++) {
            es_context_options o = {.n_ctx = 48, .threads = 1, .exact = true, .n_seq = 2};
            assert_ok(es_context_open(&c[i], i ? b.card : b.cpu, &o, &err), &err);
            assert_ok(es_context_feed(c[i], b.ids, 20, NULL, &err), &err);
            es_context_select(c[i], 1);
            assert_ok(es_context_feed(c[i], b.ids + 3, 5, NULL, &err), &err);
            es_context_select(c[i], 0);
            const int32_t *ids = es_context_ids(c[i]);
            if (i)
                shim_lose_after(k);
            if (k % 2)
                assert_ok(es_context_feed(c[i], b.ids + 20, 3, NULL, &err), &err);
            else
                assert_ok(es_context_step(c[i], (int[]){1, 0}, (int32_t[]){b.ids[20], b.ids[21]}, 2, NULL, &err), &err);
            assert_memory_equal(ids, b.ids, 20 * sizeof *ids); /* what a caller holds stays what it was */
        }
        assert_false(es_context_on_card(c[1]));
        assert_null(es_model_card(b.card));
        for (int s = 0; s < 2; s++) {
            es_context_select(c[0], s);
            es_context_select(c[1], s);
            assert_int_equal(es_context_length(c[0]), es_context_length(c[1]));
            near("lost", "logits", es_context_logits(c[1]), es_context_logits(c[0]), (size_t)b.n_vocab, 1e-4);
        }
        es_context *later; /* what is opened now works here too */
        assert_ok(es_context_open(&later, b.card, &(es_context_options){.n_ctx = 8}, &err), &err);
        assert_false(es_context_on_card(later));
        es_context_free(later);
        for (int i = 0; i < 2; i++)
            es_context_free(c[i]);
        close_both(&b);
        shim_lose_card(0);
        es_cuda_close(card);
        open_card(NULL);
    }
}

/* Between a feed and the look at its logits. */
static void lost_before_logits(void **state)
{
    (void)state;
    es_error err;
    both b = open_both(test_golden("families/llama"), true);
    es_context *c[2];
    for (int i = 0; i < 2; i++) {
        assert_ok(es_context_open(&c[i], i ? b.card : b.cpu, &(es_context_options){.n_ctx = 48, .threads = 1, .exact = true}, &err), &err);
        assert_ok(es_context_feed(c[i], b.ids, 9, NULL, &err), &err);
    }
    shim_lose_card(1);
    near("lost", "logits", es_context_logits(c[1]), es_context_logits(c[0]), (size_t)b.n_vocab, 1e-4);
    for (int i = 0; i < 2; i++)
        es_context_free(c[i]);
    close_both(&b);
    shim_lose_card(0);
    es_cuda_close(card);
    open_card(NULL);
}

static void lost_trainer(void **state)
{
    (void)state;
    es_error err;
    both b = open_both(test_golden("families/qwen3"), true);
    float *want = calloc(N, sizeof *want), *got = calloc(N, sizeof *got);
    uint8_t wanted[N];
    int one[2] = {0, N};
    memset(wanted, 1, sizeof wanted);
    es_batch batch = {.ids = b.ids, .n = N, .start = one, .n_seq = 1, .target = b.ids + 1, .wanted = wanted};
    es_trainer *t;
    es_trainer_options o = {.max_tokens = N, .backward = true, .threads = 1};
    assert_ok(es_trainer_open(&t, b.cpu, &o, &err), &err);
    assert_ok(es_trainer_forward(t, &batch, NULL, NULL, NULL, 0, want, NULL, &err), &err);
    es_trainer_free(t);
    assert_ok(es_trainer_open(&t, b.card, &o, &err), &err);
    assert_ok(es_trainer_forward(t, &batch, NULL, NULL, NULL, 0, got, NULL, &err), &err);
    near("before", "log-probability", got, want, N, 1e-4);
    shim_lose_after(5);
    es_grad g = {0};
    assert_int_equal(es_trainer_backward(t, &batch, NULL, want, NULL, NULL, &g, 0, NULL, &err), ES_ERR_DEVICE); /* its forward is gone */
    memset(got, 0, N * sizeof *got);
    assert_ok(es_trainer_forward(t, &batch, NULL, NULL, NULL, 0, got, NULL, &err), &err);
    near("after", "log-probability", got, want, N, 1e-5);
    assert_ok(es_trainer_backward(t, &batch, NULL, want, NULL, NULL, &g, 0, NULL, &err), &err);
    es_trainer_free(t);
    free(want);
    free(got);
    close_both(&b);
    shim_lose_card(0);
    es_cuda_close(card);
    open_card(NULL);
}

/* Whatever does not fit is refused, says what to lower, and takes nothing from what is there. */
static void no_memory(void **state)
{
    (void)state;
    es_error err;
    both b = open_both(test_golden("families/llama"), true);
    es_context *c, *more;
    es_trainer *t;
    assert_ok(es_context_open(&c, b.card, &(es_context_options){.n_ctx = 48}, &err), &err);
    assert_ok(es_context_feed(c, b.ids, 10, NULL, &err), &err);
    size_t used = shim_memory_used();
    float *before = malloc(sizeof *before * (size_t)b.n_vocab);
    memcpy(before, es_context_logits(c), sizeof *before * (size_t)b.n_vocab);
    for (size_t room = 0; room < 6 * WORKSPACE; room += WORKSPACE / 3) {
        shim_memory(used + room);
        int code = es_context_open(&more, b.card, &(es_context_options){.n_ctx = 4096}, &err);
        if (!code)
            es_context_free(more);
        else
            assert_error(code, &err, "lower the context or the batch");
        code = es_trainer_open(&t, b.card, &(es_trainer_options){.max_tokens = 512, .backward = true}, &err);
        if (!code)
            es_trainer_free(t);
        else
            assert_error(code, &err, "lower the context or the batch");
        assert_int_equal(shim_memory_used(), used);
    }
    shim_memory(used); /* an adapter that does not fit: the conversation stays as it was */
    float *big = calloc(4096 * 64, sizeof *big);
    es_lowrank low = {.layer = 0, .site = ES_SITE_Q, .rank = 4096, .scale = 1, .a = big, .b = big};
    es_context_set_patch(c, &(es_patch){.lowrank = &low, .n_lowrank = 1});
    assert_error(es_context_feed(c, b.ids + 10, 1, NULL, &err), &err, "the adapter's matrices");
    assert_int_equal(es_context_length(c), 10);
    es_context_set_patch(c, NULL);
    assert_memory_equal(before, es_context_logits(c), sizeof *before * (size_t)b.n_vocab);
    assert_ok(es_context_feed(c, b.ids + 10, 1, NULL, &err), &err);
    shim_memory((size_t)4 << 30);
    free(big);
    free(before);
    es_context_free(c);
    close_both(&b);
}

/* The weights themselves do not fit. */
static void no_memory_for_weights(void **state)
{
    (void)state;
    es_error err;
    both b = open_both(test_golden("families/llama"), true);
    es_context *c;
    shim_memory((1 << 16) + 4096); /* a small pool's workspace and no more */
    assert_error(es_context_open(&c, b.card, &(es_context_options){.n_ctx = 16}, &err), &err, "the weights of");
    shim_memory((size_t)4 << 30);
    assert_ok(es_context_open(&c, b.card, &(es_context_options){.n_ctx = 16}, &err), &err);
    assert_ok(es_context_feed(c, b.ids, 10, NULL, &err), &err);
    es_context_free(c);
    close_both(&b);
}

/* A table asked for by name is what is used. */
static void by_name(void **state)
{
    (void)state;
    es_error err;
    es_context *c;
    both b = open_both(test_golden("families/llama"), true);
    assert_ok(es_context_open(&c, b.card, &(es_context_options){.n_ctx = 16, .kernels = es_kernels_scalar()}, &err), &err);
    assert_false(es_context_on_card(c));
    es_context_free(c);
    assert_ok(es_model_use_card(b.card, NULL, NULL, &err), &err);
    assert_ok(es_context_open(&c, b.card, &(es_context_options){.n_ctx = 16}, &err), &err);
    assert_false(es_context_on_card(c));
    es_context_free(c);
    close_both(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(families),     cmocka_unit_test(types),        cmocka_unit_test(patches),   cmocka_unit_test(patch_replaced), cmocka_unit_test(patch_grows),
        cmocka_unit_test(recorded),     cmocka_unit_test(sampling),
        cmocka_unit_test(numbers_change), cmocka_unit_test(lost_context), cmocka_unit_test(lost_before_logits), cmocka_unit_test(lost_trainer),
        cmocka_unit_test(no_memory),    cmocka_unit_test(no_memory_for_weights), cmocka_unit_test(by_name),
    };
    return cmocka_run_group_tests(tests, open_card, close_card);
}
