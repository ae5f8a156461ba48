#include "memory_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void test_fill(es_rng *rng, float *x, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = scale * es_rng_normal(rng);
}

static es_weight weight(es_rng *rng, es_type type, int n_out, int n_in)
{
    size_t n = (size_t)n_out * n_in;
    float *x = es_calloc(n, sizeof *x);
    test_fill(rng, x, n, 1.5f / sqrtf((float)n_in));
    void *data = x;
    if (type == ES_F16) {
        data = es_calloc(n, 2);
        es_f32_to_f16(x, data, n);
        free(x);
    }
    return (es_weight){.type = type, .n_out = n_out, .n_in = n_in, .data = data};
}

static float *norm(es_rng *rng)
{
    float *w = es_calloc(TINY_D, sizeof *w);
    test_fill(rng, w, TINY_D, 0.2f);
    for (int i = 0; i < TINY_D; i++)
        w[i] += 1;
    return w;
}

es_model *test_memory_model(int n_ctx, uint64_t seed)
{
    es_rng rng;
    es_rng_seed(&rng, seed);
    es_model *m = es_calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->info = (es_model_info){.n_layer = TINY_LAYERS, .d_model = TINY_D, .n_head = TINY_HEADS, .n_kv = TINY_KV, .head_dim = TINY_HEAD_DIM,
                              .d_ff = TINY_FF, .n_vocab = TINY_VOCAB, .n_ctx = n_ctx, .rope_base = 100, .norm_eps = 1e-5f};
    m->layer = es_calloc(TINY_LAYERS, sizeof *m->layer);
    for (int l = 0; l < TINY_LAYERS; l++) {
        es_weight *w = m->layer[l].site;
        m->layer[l].attn_norm = norm(&rng);
        m->layer[l].ffn_norm = norm(&rng);
        w[ES_SITE_Q] = weight(&rng, ES_F32, TINY_HEADS * TINY_HEAD_DIM, TINY_D);
        w[ES_SITE_K] = weight(&rng, ES_F16, TINY_KV * TINY_HEAD_DIM, TINY_D);
        w[ES_SITE_V] = weight(&rng, ES_F16, TINY_KV * TINY_HEAD_DIM, TINY_D);
        w[ES_SITE_O] = weight(&rng, ES_F32, TINY_D, TINY_HEADS * TINY_HEAD_DIM);
        w[ES_SITE_GATE] = weight(&rng, ES_F32, TINY_FF, TINY_D);
        w[ES_SITE_UP] = weight(&rng, ES_F32, TINY_FF, TINY_D);
        w[ES_SITE_DOWN] = weight(&rng, ES_F32, TINY_D, TINY_FF);
    }
    m->token_embd = weight(&rng, ES_F32, TINY_VOCAB, TINY_D);
    m->head = weight(&rng, ES_F32, TINY_VOCAB, TINY_D);
    m->final_norm = norm(&rng);
    m->rope_inv = es_calloc(TINY_HEAD_DIM / 2, sizeof(float));
    for (int i = 0; i < TINY_HEAD_DIM / 2; i++)
        m->rope_inv[i] = powf(m->info.rope_base, -2.0f * i / TINY_HEAD_DIM);
    return m;
}

void test_memory_model_free(es_model *m)
{
    if (!m)
        return;
    for (int l = 0; l < TINY_LAYERS; l++) {
        for (int s = 0; s < ES_N_SITES; s++)
            free((void *)m->layer[l].site[s].data);
        free((void *)m->layer[l].attn_norm);
        free((void *)m->layer[l].ffn_norm);
    }
    free(m->layer);
    free((void *)m->token_embd.data);
    free((void *)m->head.data);
    free((void *)m->final_norm);
    free(m->rope_inv);
    free(m);
}

const char *test_model_path(void)
{
    static char path[1200];
    const char *given = getenv("ESPALIER_TEST_MODEL"), *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    const char *file = "espalier/models/SmolLM2-135M-Instruct.Q4_1.gguf";
    if (given && *given)
        snprintf(path, sizeof path, "%s", given);
    else if (data && *data)
        snprintf(path, sizeof path, "%s/%s", data, file);
    else
        snprintf(path, sizeof path, "%s/.local/share/%s", home ? home : "", file);
    return access(path, R_OK) == 0 ? path : NULL;
}
