/* shape: what a model is once it is open, without the readers that open it; and a model of random numbers, which no reader opens. */
#include "device.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const site_names[ES_N_SITES] = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};

const char *es_site_name(es_site s)
{
    return (unsigned)s < ES_N_SITES ? site_names[s] : "?";
}

int es_site_n_in(const es_model *m, es_site s)
{
    const es_model_info *i = &m->info;
    return s == ES_SITE_O ? i->n_head * i->head_dim : s == ES_SITE_DOWN ? i->d_ff : i->d_model;
}

int es_site_n_out(const es_model *m, es_site s)
{
    const es_model_info *i = &m->info;
    switch (s) {
    case ES_SITE_Q: return i->n_head * i->head_dim;
    case ES_SITE_K:
    case ES_SITE_V: return i->n_kv * i->head_dim;
    case ES_SITE_GATE:
    case ES_SITE_UP: return i->d_ff;
    default: return i->d_model;
    }
}

int es_point_width(const es_model *m, es_point p)
{
    return p == ES_POINT_ATTENTION ? m->info.n_head * m->info.head_dim : m->info.d_model;
}

static const char *const norm_names[ES_N_NORMS] = {"attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm"};

const char *es_norm_name(es_norm n)
{
    return (unsigned)n < ES_N_NORMS ? norm_names[n] : "?";
}

int es_norm_width(const es_model *m, es_norm n)
{
    const es_family *f = m->facts.family;
    switch (n) {
    case ES_NORM_ATTN:
    case ES_NORM_FFN: return f->pre_norm ? m->info.d_model : 0;
    case ES_NORM_ATTN_POST:
    case ES_NORM_FFN_POST: return f->post_norm ? m->info.d_model : 0;
    case ES_NORM_Q:
    case ES_NORM_K:
        return f->qk_norm == ES_QK_HEAD ? m->info.head_dim : f->qk_norm == ES_QK_WHOLE ? (n == ES_NORM_Q ? m->info.n_head : m->info.n_kv) * m->info.head_dim : 0;
    default: return 0;
    }
}

const es_model_info *es_model_get_info(const es_model *m)
{
    return &m->info;
}

void es_model_free(es_model *m)
{
    if (!m)
        return;
    es_tokenizer_free(m->tokenizer);
    es_gguf_close(&m->gguf);
    for (size_t i = 0; i < m->n_shard; i++) {
        es_safetensors_free(m->shard ? m->shard[i] : NULL);
        if (m->shard_name)
            free(m->shard_name[i]);
    }
    free(m->shard);
    free(m->shard_name);
    es_arena_close(&m->held);
    es_arena_close(&m->own);
    es_on_free(m->on);
    free(m->layer);
    free(m->rope_inv);
    free(m);
}

size_t es_model_decode_bytes(const es_model *m)
{
    size_t bytes = 0;
    for (int l = -1; l < m->info.n_layer; l++)
        for (int s = 0; s < (l < 0 ? 1 : ES_N_SITES); s++) {
            const es_weight *w = l < 0 ? &m->head : &m->layer[l].site[s];
            const es_type_info *type = es_type_get(w->type);
            bytes += (size_t)w->n_out * ((size_t)w->n_in / (size_t)type->block * (size_t)type->bytes);
        }
    return bytes;
}

/* ---- random models -------------------------------------------------------------------------------------------------------------- */

enum { PIECE_ROWS = 64 }; /* rows that are drawn; the others are these again */

static void put_half(uint8_t *at, float f)
{
    uint16_t h;
    es_f32_to_f16(&f, &h, 1);
    memcpy(at, &h, sizeof h);
}

/* A block of any type whose numbers have a deviation of about `size`: random bits under scales that fit. */
static void random_block(es_type type, float size, es_rng *rng, uint8_t *b)
{
    const es_type_info *t = es_type_get((int)type);
    const float x = size * es_rng_normal(rng), d = (es_rng_below(rng, 2) ? size : -size);
    for (int i = 0; i < t->bytes; i++)
        b[i] = (uint8_t)es_rng_below(rng, 256);
    switch (type) {
    case ES_F32: memcpy(b, &x, 4); break;
    case ES_BF16: memcpy(b, (const char *)&x + 2, 2); break;
    case ES_F16: put_half(b, x); break;
    case ES_Q4_0: put_half(b, d / 5); break;
    case ES_Q5_0: put_half(b, d / 9); break;
    case ES_Q8_0: put_half(b, d / 74); break;
    case ES_IQ4_NL: put_half(b, d / 70); break;
    case ES_Q4_1: put_half(b, d / 5), put_half(b + 2, -1.5f * d); break;
    case ES_Q5_1: put_half(b, d / 9), put_half(b + 2, -1.7f * d); break;
    case ES_Q2_K: put_half(b + 80, d / 10), put_half(b + 82, d / 5); break;
    case ES_Q3_K: put_half(b + 108, d / 40); break;
    case ES_Q4_K: put_half(b, d / 150), put_half(b + 2, d / 20); break;
    case ES_Q5_K: put_half(b, d / 300), put_half(b + 2, d / 20); break;
    case ES_Q6_K: put_half(b + 208, d / 1300); break;
    }
}

static void random_matrix(es_arena *a, es_type type, int n_out, int n_in, es_rng *rng, es_weight *w)
{
    const es_type_info *t = es_type_get((int)type);
    const size_t row = (size_t)n_in / (size_t)t->block * (size_t)t->bytes;
    uint8_t *data = es_arena_take(a, (size_t)n_out, row);
    *w = (es_weight){type, n_out, n_in, data};
    const int drawn = n_out < PIECE_ROWS ? n_out : PIECE_ROWS;
    for (size_t at = 0; data && at < (size_t)drawn * row; at += (size_t)t->bytes)
        random_block(type, 1 / sqrtf((float)n_in), rng, data + at);
    for (int r = drawn; data && r < n_out; r++)
        memcpy(data + (size_t)r * row, data + (size_t)(r - drawn) * row, row);
}

static const float *random_norm(es_arena *a, int n, es_rng *rng)
{
    float *x = es_arena_take(a, (size_t)n, sizeof *x);
    for (int i = 0; x && i < n; i++)
        x[i] = 1 + 0.1f * es_rng_normal(rng);
    return x;
}

static void random_weights(es_model *m, es_arena *a, es_type type, uint64_t seed)
{
    const es_model_info *i = &m->info;
    es_rng rng;
    es_rng_seed(&rng, seed);
    random_matrix(a, type, i->n_vocab, i->d_model, &rng, &m->token_embd);
    m->head = m->token_embd;
    m->final_norm = random_norm(a, i->d_model, &rng);
    for (int l = 0; l < i->n_layer; l++) {
        for (int s = 0; s < ES_N_SITES; s++)
            random_matrix(a, type, es_site_n_out(m, (es_site)s), es_site_n_in(m, (es_site)s), &rng, &m->layer[l].site[s]);
        for (int n = 0; n < ES_N_NORMS; n++)
            m->layer[l].norm[n] = es_norm_width(m, (es_norm)n) > 0 ? random_norm(a, es_norm_width(m, (es_norm)n), &rng) : NULL;
    }
}

int es_model_random(es_model **out, const es_model_info *shape, es_type type, uint64_t seed, es_error *err)
{
    *out = NULL;
    const es_family *family = es_family_by_name(shape->architecture);
    const es_type_info *t = es_type_get((int)type);
    if (!family || !t || shape->d_model % t->block || shape->d_ff % t->block || shape->n_head * shape->head_dim % t->block || shape->n_layer < 1 ||
        shape->n_layer > ES_MAX_LAYERS || shape->n_kv < 1 || shape->n_head % shape->n_kv)
        return es_fail(err, ES_ERR_USAGE, "a random model of this shape and type cannot be");
    es_model *m = es_calloc(1, sizeof *m);
    if (m)
        m->layer = es_calloc((size_t)shape->n_layer, sizeof *m->layer);
    if (!m || !m->layer) {
        free(m);
        return es_fail(err, ES_ERR_MEMORY, "no memory for a model");
    }
    m->info = *shape;
    m->info.tied_head = true;
    m->facts = (es_facts){.family = family, .paired_rope = family->paired_rope, .attn_scale = 1 / sqrtf((float)shape->head_dim), .attn_cap = family->attn_cap,
                          .final_cap = family->final_cap, .embed_scale = family->scaled_embedding ? sqrtf((float)shape->d_model) : 1, .rope_gain = 1};
    m->sampling = es_sampling_default();
    const es_rope_scaling plain = {.factor = 1, .low = 1, .high = 32, .original = (float)shape->n_ctx, .window_base = family->window_rope_base};
    int rc = es_rope_open(m, &plain, err);
    es_arena size = {0};
    random_weights(m, &size, type, seed); /* counts */
    rc = rc ? rc : es_arena_open(&m->held, size.used, err);
    if (rc) {
        es_model_free(m);
        return rc;
    }
    random_weights(m, &m->held, type, seed);
    m->info.file_bytes = size.used;
    *out = m;
    return ES_OK;
}
