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
        if (!(off < (exact ? 1e-4 : 4e-3))) /* not exact: keys and values have 11 bits */
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

/* ---- the same weights as a GGUF ------------------------------------------------------------------------------------------------ */

static void set_f32(tiny_file *f, const char *arch, const char *key, float v)
{
    char name[128];
    snprintf(name, sizeof name, "%s.%s", arch, key);
    tiny_add_kv(f, name, 6, &v, 4);
}

static void set_u32(tiny_file *f, const char *arch, const char *key, int v)
{
    char name[128];
    uint32_t u = (uint32_t)v;
    snprintf(name, sizeof name, "%s.%s", arch, key);
    tiny_add_kv(f, name, 4, &u, 4);
}

/* Rows of each head (i, i + half) become (2i, 2i + 1): how a llama's q and k lie in a GGUF. */
static void pair_rows(const float *from, float *to, int rows, int row, int head_dim)
{
    for (int r = 0; r < rows; r++) {
        int i = r % head_dim, half = head_dim / 2, at = r - i + (i < half ? 2 * i : 2 * (i - half) + 1);
        memcpy(to + (size_t)at * (size_t)row, from + (size_t)r * (size_t)row, sizeof *to * (size_t)row);
    }
}

static void add_matrix(tiny_file *f, const char *name, const es_weight *w, int pair_head)
{
    size_t n = (size_t)w->n_out * (size_t)w->n_in;
    float *x = malloc(n * sizeof *x), *y = malloc(n * sizeof *y);
    es_dequant(w->type, w->data, x, n);
    if (pair_head)
        pair_rows(x, y, w->n_out, w->n_in, pair_head);
    tiny_add_tensor(f, name, ES_F32, (size_t)w->n_in, (size_t)w->n_out, pair_head ? y : x);
    free(x);
    free(y);
}

/* The folder's model m as llama.cpp's converter would write it; extra adds the family's own keys. */
static void from_gguf(const char *name, const char *arch, void (*extra)(tiny_file *f))
{
    es_model *m = NULL, *again = NULL;
    es_error err;
    char key[128];
    assert_ok(es_model_open(&m, folder_of(name), &err), &err);
    const es_model_info *i = &m->info;
    tiny_file *f = tiny_build(NULL);
    while (f->n_tensor)
        tiny_drop_tensor(f, f->tensor[0].name.data);
    for (size_t k = 0; k < f->n_kv;)
        if (f->kv[k].key.len > 6 && !memcmp(f->kv[k].key.data, "llama.", 6)) {
            snprintf(key, sizeof key, "%.*s", (int)f->kv[k].key.len, f->kv[k].key.data);
            tiny_drop_kv(f, key);
        } else
            k++;
    tiny_set_str(f, "general.architecture", arch);
    set_u32(f, arch, "block_count", i->n_layer);
    set_u32(f, arch, "context_length", i->n_ctx);
    set_u32(f, arch, "embedding_length", i->d_model);
    set_u32(f, arch, "feed_forward_length", i->d_ff);
    set_u32(f, arch, "attention.head_count", i->n_head);
    set_u32(f, arch, "attention.head_count_kv", i->n_kv);
    set_u32(f, arch, "attention.key_length", i->head_dim);
    set_u32(f, arch, "attention.value_length", i->head_dim);
    set_f32(f, arch, "attention.layer_norm_rms_epsilon", i->norm_eps);
    set_f32(f, arch, "rope.freq_base", i->rope_base);
    if (extra)
        extra(f);
    bool paired = !strcmp(arch, "llama");
    add_matrix(f, "token_embd.weight", &m->token_embd, 0);
    if (!i->tied_head)
        add_matrix(f, "output.weight", &m->head, 0);
    tiny_add_tensor(f, "output_norm.weight", ES_F32, (size_t)i->d_model, 1, m->final_norm);
    for (int l = 0; l < i->n_layer; l++) {
        for (int n = 0; n < ES_N_NORMS; n++) {
            snprintf(key, sizeof key, "blk.%d.%s.weight", l, es_norm_name((es_norm)n));
            if (es_norm_width(m, (es_norm)n))
                tiny_add_tensor(f, key, ES_F32, (size_t)es_norm_width(m, (es_norm)n), 1, m->layer[l].norm[n]);
        }
        for (int s = 0; s < ES_N_SITES; s++) {
            snprintf(key, sizeof key, "blk.%d.%s.weight", l, es_site_name((es_site)s));
            add_matrix(f, key, &m->layer[l].site[s], paired && (s == ES_SITE_Q || s == ES_SITE_K) ? i->head_dim : 0);
        }
    }
    if (!strcmp(name, "llama3")) { /* what the converter stores of Llama 3's scaling: what each frequency is divided by */
        float divisor[64];
        for (int k = 0; k < i->head_dim / 2; k++)
            divisor[k] = powf(i->rope_base, -2.0f * (float)k / (float)i->head_dim) / m->rope_inv[k];
        tiny_add_tensor(f, "rope_freqs.weight", ES_F32, (size_t)i->head_dim / 2, 1, divisor);
    }
    const char *path = test_path("%s.gguf", name);
    tiny_write(path, f);
    tiny_free(f);
    assert_ok(es_model_open(&again, path, &err), &err);
    check_family(name, again, "GGUF");
    es_model_free(again);
    es_model_free(m);
}

static void olmo3_keys(tiny_file *f)
{
    set_u32(f, "olmo2", "attention.sliding_window", 7);
    tiny_add_kv(f, "olmo2.rope.scaling.type", 8, "\4\0\0\0\0\0\0\0yarn", 12);
    set_f32(f, "olmo2", "rope.scaling.factor", 8);
    set_f32(f, "olmo2", "rope.scaling.yarn_beta_fast", 4);
    set_u32(f, "olmo2", "rope.scaling.original_context_length", 32);
}

static void gemma2_keys(tiny_file *f)
{
    set_u32(f, "gemma2", "attention.sliding_window", 7);
    set_f32(f, "gemma2", "attn_logit_softcapping", 4);
    set_f32(f, "gemma2", "final_logit_softcapping", 6);
    set_f32(f, "gemma2", "attention.scale", 1 / sqrtf(12));
}

static void gemma3_keys(tiny_file *f)
{
    set_u32(f, "gemma3", "attention.sliding_window", 7);
    tiny_add_kv(f, "gemma3.rope.scaling.type", 8, "\6\0\0\0\0\0\0\0linear", 14);
    set_f32(f, "gemma3", "rope.scaling.factor", 4);
}

static void test_gguf(void **s)
{
    (void)s;
    from_gguf("llama", "llama", NULL);
    from_gguf("llama3", "llama", NULL);
    from_gguf("qwen3", "qwen3", NULL);
    from_gguf("olmo2", "olmo2", NULL);
    from_gguf("olmo3", "olmo2", olmo3_keys);
    from_gguf("gemma2", "gemma2", gemma2_keys);
    from_gguf("gemma3", "gemma3", gemma3_keys);
}

/* ---- the same weights in other types ----------------------------------------------------------------------------------------- */

/* The folder's weights written anew as `type`, which is used where it lies. */
static void as_type(const char *name, es_tensor_type type, float bound)
{
    static golden g;
    static float logits[N * VOCAB];
    char path[1100];
    es_safetensors *s = NULL;
    es_tensor_spec spec[128];
    es_error err;
    es_buf config = {0};
    read_golden(&g, name);
    snprintf(path, sizeof path, "%s/model.safetensors", folder_of(name));
    assert_ok(es_safetensors_open(&s, path, &err), &err);
    size_t n = es_safetensors_count(s);
    assert_true(n <= 128);
    for (size_t i = 0; i < n; i++) {
        const es_tensor *t = es_safetensors_at(s, i);
        float *x = malloc(t->n * sizeof *x);
        assert_true(es_tensor_f32(t, 0, t->n, x));
        spec[i] = (es_tensor_spec){.name = t->name, .type = type, .n_dims = t->n_dims, .data = x};
        memcpy(spec[i].dim, t->dim, sizeof spec[i].dim);
    }
    assert_ok(es_safetensors_write_file(test_path("model.safetensors"), spec, n, NULL, &err), &err);
    snprintf(path, sizeof path, "%s/config.json", folder_of(name));
    test_read(&config, path);
    test_write(test_path("config.json"), config.data, config.len);
    es_model *m = NULL;
    es_trainer *t = NULL;
    assert_ok(es_model_open(&m, test_path("."), &err), &err);
    assert_int_equal(es_model_head(m).type, type == ES_TENSOR_BF16 ? ES_BF16 : type == ES_TENSOR_F16 ? ES_F16 : ES_F32);
    assert_ok(es_trainer_open(&t, m, &(es_trainer_options){.max_tokens = N, .threads = 1}, &err), &err);
    es_batch b = {.ids = g.ids, .n = N, .start = (int[]){0, N}, .n_seq = 1};
    assert_ok(es_trainer_forward(t, &b, NULL, NULL, NULL, 0, NULL, NULL, &err), &err);
    assert_ok(es_trainer_logits_rows(t, 0, N, logits, &err), &err);
    double off = worst(logits, g.logits, N * VOCAB);
    print_message("%s as %s: logits %.1e of their range\n", name, es_tensor_type_name(type), off);
    assert_true(off < bound);
    es_trainer_free(t);
    es_model_free(m);
    for (size_t i = 0; i < n; i++)
        free((float *)(uintptr_t)spec[i].data);
    es_buf_free(&config);
    es_safetensors_free(s);
}

static void test_types(void **state)
{
    (void)state;
    as_type("gemma3", ES_TENSOR_F32, 1e-4f);
    as_type("gemma3", ES_TENSOR_BF16, 3e-2f);
    as_type("gemma3", ES_TENSOR_F16, 1e-4f); /* which all of them are */
    as_type("olmo2", ES_TENSOR_F32, 1e-4f);
}

/* Most folders say rope as transformers did before its version 5, and have no layer_types. */
static void test_old_config(void **state)
{
    (void)state;
    static const struct { const char *name, *keys; } olds[] = {
        {"gemma3", "{\"rope_theta\": 1e6, \"rope_local_base_freq\": 10000.0, \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 4.0}}"},
        {"olmo3", "{\"rope_theta\": 500000, \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 8.0, \"beta_fast\": 4, \"beta_slow\": 1,"
                  " \"original_max_position_embeddings\": 32}}"},
        {"qwen3", "{\"rope_theta\": 1000000, \"rope_scaling\": null}"},
        {"gemma2", "{\"rope_theta\": 10000.0}"},
    };
    for (size_t i = 0; i < sizeof olds / sizeof *olds; i++) {
        static golden g;
        char path[1100];
        es_error err;
        es_buf bytes = {0};
        json_t *c = NULL, *old = json_loads(olds[i].keys, 0, NULL);
        es_model *m = NULL;
        read_golden(&g, olds[i].name);
        snprintf(path, sizeof path, "%s/model.safetensors", folder_of(olds[i].name));
        test_read(&bytes, path);
        test_write(test_path("model.safetensors"), bytes.data, bytes.len);
        es_buf_free(&bytes);
        snprintf(path, sizeof path, "%s/config.json", folder_of(olds[i].name));
        assert_ok(es_json_file(&c, path, &err), &err);
        json_object_del(c, "rope_parameters");
        json_object_del(c, "layer_types");
        assert_int_equal(json_object_update(c, old), 0);
        assert_int_equal(json_dump_file(c, test_path("config.json"), 0), 0);
        json_decref(old);
        json_decref(c);
        assert_ok(es_model_open(&m, test_path("."), &err), &err);
        check_trainer(m, &g, es_kernels_cpu(), "old config");
        es_model_free(m);
    }
}

/* ---- folders that are not as they should be -------------------------------------------------------------------------------------- */

static void test_faults(void **state)
{
    (void)state;
    static const struct { const char *key, *value, *says; } faults[] = {
        {"model_type", "\"mamba\"", "model_type 'mamba'"},
        {"hidden_size", "null", "\"hidden_size\" is missing"},
        {"hidden_size", "-1", "\"hidden_size\""},
        {"hidden_size", "1e300", "\"hidden_size\""},
        {"hidden_size", "24.5", "not a whole number"},
        {"hidden_size", "32", "model.embed_tokens.weight does not have the shape"},
        {"num_hidden_layers", "5", "model.layers.4.input_layernorm.weight is missing"},
        {"num_hidden_layers", "3", "has no place"},
        {"num_key_value_heads", "3", "cannot share"},
        {"head_dim", "7", "head size of 7"},
        {"rms_norm_eps", "\"x\"", "rms_norm_eps"},
        {"hidden_act", "\"relu\"", "gates with 'relu'"},
        {"rope_parameters", "{\"rope_type\": \"longrope\"}", "'longrope'"},
        {"rope_parameters", "{\"rope_type\": \"linear\", \"factor\": 0}", "rope scaling makes no sense"},
        {"rope_parameters", "{\"rope_type\": \"default\", \"rope_theta\": 0}", "rope base is 0"},
        {"layer_types", "[]", "names 0 layers of 4"},
        {"layer_types", "[\"full_attention\", \"full_attention\", 3, \"full_attention\"]", "layer 2"},
    };
    es_error err;
    char config[1100], weights[1100], path[1100];
    es_buf bytes = {0};
    snprintf(config, sizeof config, "%s/config.json", folder_of("llama"));
    snprintf(weights, sizeof weights, "%s/model.safetensors", folder_of("llama"));
    test_read(&bytes, weights);
    snprintf(path, sizeof path, "%s", test_path("model.safetensors"));
    test_write(path, bytes.data, bytes.len);
    snprintf(path, sizeof path, "%s", test_path("config.json"));
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        json_t *c = NULL, *v = json_loads(faults[i].value, JSON_DECODE_ANY, NULL);
        es_model *m = NULL;
        assert_ok(es_json_file(&c, config, &err), &err);
        assert_int_equal(json_object_set_new(c, faults[i].key, v), 0);
        assert_int_equal(json_dump_file(c, path, 0), 0);
        json_decref(c);
        int rc = es_model_open(&m, test_path("."), &err);
        print_message("%-20s %s\n", faults[i].key, err.text);
        assert_error(rc, &err, faults[i].says);
        assert_null(m);
    }
    es_model *m = NULL; /* as it should be, but the weights are cut, or hold NaN */
    es_buf good = {0};
    test_read(&good, config);
    test_write(path, good.data, good.len);
    assert_ok(es_model_open(&m, test_path("."), &err), &err);
    es_ids ids = {0};
    assert_error(es_tokenize(m, "a", 1, false, &ids, &err), &err, "no tokenizer");
    es_model_free(m);
    snprintf(path, sizeof path, "%s", test_path("model.safetensors"));
    test_write(path, bytes.data, bytes.len / 2);
    assert_true(es_model_open(&m, test_path("."), &err) < 0);
    bytes.data[bytes.len - 1] = 0x7e;
    test_write(path, bytes.data, bytes.len);
    assert_error(es_model_open(&m, test_path("."), &err), &err, "NaN");
    es_buf_free(&good);
    es_buf_free(&bytes);
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
        cmocka_unit_test(test_gguf),  cmocka_unit_test(test_types), cmocka_unit_test(test_old_config), cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests_name("families", tests, NULL, NULL);
}
