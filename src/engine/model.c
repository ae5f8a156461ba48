#include "model.h"
#include "tokenizer.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LAYERS = 512, MAX_WIDTH = 1 << 20, MAX_HEADS = 4096, MAX_CONTEXT = 1 << 24, MAX_HEAD_DIM = 4096 };

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

/* ---- opening ---- */

static void copy_str(char *out, size_t size, const char *s, size_t n)
{
    snprintf(out, size, "%.*s", (int)(n < size ? n : size - 1), n ? s : "");
}

/* Key "llama.NAME" as a whole number. */
static int get_int(const es_model *m, const char *name, bool must, int64_t max, int *out, es_error *err)
{
    char key[128];
    int64_t v = *out;
    snprintf(key, sizeof key, "llama.%s", name);
    int rc = es_gguf_int(&m->gguf, key, must, 1, max, &v, err);
    *out = (int)v;
    return rc;
}

static int read_sizes(es_model *m, es_error *err)
{
    const es_gguf *g = &m->gguf;
    es_model_info *i = &m->info;
    const char *s = NULL;
    size_t n = 0;
    int rc;

    copy_str(i->path, sizeof i->path, g->map.path, strlen(g->map.path));
    i->file_bytes = g->map.size;
    if ((rc = es_gguf_str(g, "general.architecture", true, &s, &n, err)) != ES_OK)
        return rc;
    copy_str(i->architecture, sizeof i->architecture, s, n);
    if (strcmp(i->architecture, "llama") != 0 || n != 5)
        return es_fail(err, ES_ERR_FORMAT, "%s: has the architecture '%s'; only 'llama' is supported", i->path, i->architecture);
    n = 0;
    if ((rc = es_gguf_str(g, "general.name", false, &s, &n, err)) != ES_OK)
        return rc;
    copy_str(i->name, sizeof i->name, s, n);

    if ((rc = get_int(m, "block_count", true, MAX_LAYERS, &i->n_layer, err)) != ES_OK ||
        (rc = get_int(m, "embedding_length", true, MAX_WIDTH, &i->d_model, err)) != ES_OK ||
        (rc = get_int(m, "feed_forward_length", true, MAX_WIDTH, &i->d_ff, err)) != ES_OK ||
        (rc = get_int(m, "context_length", true, MAX_CONTEXT, &i->n_ctx, err)) != ES_OK ||
        (rc = get_int(m, "attention.head_count", true, MAX_HEADS, &i->n_head, err)) != ES_OK)
        return rc;
    i->n_kv = i->n_head;
    if ((rc = get_int(m, "attention.head_count_kv", false, i->n_head, &i->n_kv, err)) != ES_OK)
        return rc;
    if (i->n_head % i->n_kv != 0)
        return es_fail(err, ES_ERR_FORMAT, "%s: %d heads cannot share %d key-value heads evenly", i->path, i->n_head, i->n_kv);
    int value_dim, rope_dim, experts = 0;
    i->head_dim = i->d_model / i->n_head;
    if (!es_gguf_find(g, "llama.attention.key_length") && i->d_model % i->n_head != 0)
        return es_fail(err, ES_ERR_FORMAT, "%s: a width of %d is not a multiple of %d heads, and no key_length is given", i->path,
                       i->d_model, i->n_head);
    if ((rc = get_int(m, "attention.key_length", false, MAX_HEAD_DIM, &i->head_dim, err)) != ES_OK)
        return rc;
    value_dim = rope_dim = i->head_dim;
    if ((rc = get_int(m, "attention.value_length", false, MAX_HEAD_DIM, &value_dim, err)) != ES_OK ||
        (rc = get_int(m, "rope.dimension_count", false, MAX_HEAD_DIM, &rope_dim, err)) != ES_OK)
        return rc;
    if (i->head_dim < 2 || i->head_dim % 2 != 0 || i->head_dim > MAX_HEAD_DIM || value_dim != i->head_dim || rope_dim != i->head_dim)
        return es_fail(err, ES_ERR_FORMAT, "%s: head size %d, value size %d, rope over %d: only one even size for all three is "
                       "supported", i->path, i->head_dim, value_dim, rope_dim);
    int64_t e = 0;
    if ((rc = es_gguf_int(g, "llama.expert_count", false, 0, INT32_MAX, &e, err)) != ES_OK)
        return rc;
    experts = (int)e;
    if (experts > 0)
        return es_fail(err, ES_ERR_FORMAT, "%s: is a mixture of %d experts, which is not supported", i->path, experts);

    i->rope_base = 10000.0f;
    i->norm_eps = 0;
    if ((rc = es_gguf_float(g, "llama.rope.freq_base", false, &i->rope_base, err)) != ES_OK ||
        (rc = es_gguf_float(g, "llama.attention.layer_norm_rms_epsilon", true, &i->norm_eps, err)) != ES_OK)
        return rc;
    if (!(i->rope_base > 0) || !isfinite(i->rope_base))
        return es_fail(err, ES_ERR_FORMAT, "%s: the key llama.rope.freq_base is %g, not a positive number", i->path,
                       (double)i->rope_base);
    if (!(i->norm_eps >= 0 && i->norm_eps <= 1))
        return es_fail(err, ES_ERR_FORMAT, "%s: the key llama.attention.layer_norm_rms_epsilon is %g, outside 0 to 1", i->path,
                       (double)i->norm_eps);
    return ES_OK;
}

/* Finds a tensor, checks its shape ([n_out, n_in]; n_out 1 for a vector), with f32 its type, and that it holds no NaN. NULL and an
 * error otherwise. */
static es_gguf_tensor *get_tensor(es_model *m, const char *name, int n_out, int n_in, bool f32, es_error *err)
{
    es_gguf_tensor *t = es_gguf_find_tensor(&m->gguf, name);
    if (!t) {
        es_fail(err, ES_ERR_FORMAT, "%s: the tensor %s is missing", m->info.path, name);
        return NULL;
    }
    if (t->ne[0] != (size_t)n_in || t->ne[1] != (size_t)n_out || t->ne[2] != 1 || t->ne[3] != 1) {
        es_fail(err, ES_ERR_FORMAT, "%s: the tensor %s is %zu x %zu x %zu x %zu and should be %d x %d", m->info.path, name, t->ne[0],
                t->ne[1], t->ne[2], t->ne[3], n_in, n_out);
        return NULL;
    }
    if (f32 && t->type != ES_F32) {
        es_fail(err, ES_ERR_FORMAT, "%s: the tensor %s is %s and should be F32", m->info.path, name, es_type_get(t->type)->name);
        return NULL;
    }
    if (!es_gguf_tensor_finite(t)) {
        es_fail(err, ES_ERR_FORMAT, "%s: the tensor %s holds NaN or infinity: the file is damaged", m->info.path, name);
        return NULL;
    }
    t->used = true;
    m->info.n_params += (uint64_t)n_in * (uint64_t)n_out;
    return t;
}

static int get_weight(es_model *m, const char *name, int n_out, int n_in, es_weight *out, es_error *err)
{
    const es_gguf_tensor *t = get_tensor(m, name, n_out, n_in, false, err);
    if (!t)
        return ES_ERR_FORMAT;
    *out = (es_weight){.type = t->type, .n_out = n_out, .n_in = n_in, .data = t->data};
    return ES_OK;
}

static int get_vector(es_model *m, const char *name, int n, const float **out, es_error *err)
{
    const es_gguf_tensor *t = get_tensor(m, name, 1, n, true, err);
    if (!t)
        return ES_ERR_FORMAT;
    *out = t->data;
    return ES_OK;
}

static int read_rope(es_model *m, es_error *err)
{
    const es_model_info *i = &m->info;
    const es_gguf *g = &m->gguf;
    const char *kind = NULL;
    size_t n = 0;
    float factor = 1;
    int half = i->head_dim / 2, rc;
    if ((rc = es_gguf_str(g, "llama.rope.scaling.type", false, &kind, &n, err)) != ES_OK ||
        (rc = es_gguf_float(g, "llama.rope.scaling.factor", false, &factor, err)) != ES_OK)
        return rc;
    bool linear = n == 6 && memcmp(kind, "linear", 6) == 0, none = n == 0 || (n == 4 && memcmp(kind, "none", 4) == 0);
    if (!linear && !none)
        return es_fail(err, ES_ERR_FORMAT, "%s: rope scaling of type '%.*s' is not supported (none and linear are)", i->path,
                       (int)(n < 40 ? n : 40), kind);
    if (none)
        factor = 1;
    if (!(factor > 0) || !isfinite(factor))
        return es_fail(err, ES_ERR_FORMAT, "%s: the key llama.rope.scaling.factor is %g, not a positive number", i->path,
                       (double)factor);
    const float *divisor = NULL; /* Llama 3.1 and later stretch each frequency by its own factor */
    if (es_gguf_find_tensor(&m->gguf, "rope_freqs.weight")) {
        if ((rc = get_vector(m, "rope_freqs.weight", half, &divisor, err)) != ES_OK)
            return rc;
        for (int k = 0; k < half; k++)
            if (!(divisor[k] > 0))
                return es_fail(err, ES_ERR_FORMAT, "%s: the tensor rope_freqs.weight holds %g: only positive factors make sense",
                               i->path, (double)divisor[k]);
    }
    m->rope_inv = es_calloc((size_t)half, sizeof *m->rope_inv);
    if (!m->rope_inv)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to open it", i->path);
    for (int k = 0; k < half; k++)
        m->rope_inv[k] = (float)(pow(i->rope_base, -2.0 * k / i->head_dim) / factor / (divisor ? divisor[k] : 1.0f));
    return ES_OK;
}

static int read_layers(es_model *m, es_error *err)
{
    int rc = ES_OK, d = m->info.d_model;
    m->layer = es_calloc((size_t)m->info.n_layer, sizeof *m->layer);
    if (!m->layer)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to open it", m->info.path);
    for (int l = 0; l < m->info.n_layer && rc == ES_OK; l++) {
        char name[64];
        es_layer *layer = &m->layer[l];
        snprintf(name, sizeof name, "blk.%d.attn_norm.weight", l);
        rc = get_vector(m, name, d, &layer->attn_norm, err);
        snprintf(name, sizeof name, "blk.%d.ffn_norm.weight", l);
        if (rc == ES_OK)
            rc = get_vector(m, name, d, &layer->ffn_norm, err);
        for (int s = 0; s < ES_N_SITES && rc == ES_OK; s++) {
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, site_names[s]);
            rc = get_weight(m, name, es_site_n_out(m, (es_site)s), es_site_n_in(m, (es_site)s), &layer->site[s], err);
        }
    }
    return rc;
}

static int read_weights(es_model *m, es_error *err)
{
    es_model_info *i = &m->info;
    const es_gguf_tensor *embd = es_gguf_find_tensor(&m->gguf, "token_embd.weight");
    int64_t n_vocab;
    int rc;
    if (!embd)
        return es_fail(err, ES_ERR_FORMAT, "%s: the tensor token_embd.weight is missing", i->path);
    n_vocab = (int64_t)embd->ne[1]; /* at most 2^31 - 1: the reader checked */
    i->n_vocab = (int)n_vocab;
    if ((rc = es_gguf_int(&m->gguf, "llama.vocab_size", false, n_vocab, n_vocab, &n_vocab, err)) != ES_OK ||
        (rc = get_weight(m, "token_embd.weight", i->n_vocab, i->d_model, &m->token_embd, err)) != ES_OK ||
        (rc = get_vector(m, "output_norm.weight", i->d_model, &m->final_norm, err)) != ES_OK)
        return rc;
    i->tied_head = !es_gguf_find_tensor(&m->gguf, "output.weight");
    m->head = m->token_embd;
    if (!i->tied_head && (rc = get_weight(m, "output.weight", i->n_vocab, i->d_model, &m->head, err)) != ES_OK)
        return rc;
    if ((rc = read_layers(m, err)) != ES_OK || (rc = read_rope(m, err)) != ES_OK)
        return rc;
    for (size_t t = 0; t < m->gguf.n_tensor; t++) /* a bias that is silently left out would make another model */
        if (!m->gguf.tensor[t].used)
            return es_fail(err, ES_ERR_FORMAT, "%s: the tensor %s has no place in a llama model of %d layers as it is known here",
                           i->path, m->gguf.tensor[t].name, i->n_layer);
    return ES_OK;
}

int es_model_open(es_model **out, const char *path, es_error *err)
{
    *out = NULL;
    es_model *m = es_calloc(1, sizeof *m);
    if (!m)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to open it", path);
    int rc = es_gguf_open(&m->gguf, path, err);
    if (rc == ES_OK)
        rc = read_sizes(m, err);
    if (rc == ES_OK)
        rc = read_weights(m, err);
    if (rc == ES_OK)
        rc = es_tokenizer_open(&m->tokenizer, &m->gguf, m->info.n_vocab, err);
    if (rc != ES_OK) {
        es_model_free(m);
        return rc;
    }
    *out = m;
    return ES_OK;
}

void es_model_free(es_model *m)
{
    if (!m)
        return;
    es_tokenizer_free(m->tokenizer);
    es_gguf_close(&m->gguf);
    es_arena_close(&m->own);
    free(m->layer);
    free(m->rope_inv);
    free(m);
}

/* ---- what others ask ---- */

const es_model_info *es_model_get_info(const es_model *m)
{
    return &m->info;
}

int es_model_hash(es_model *m, char out[65], es_error *err)
{
    if (!m->hash[0]) { /* of the mapped bytes: what is used, even if the file was replaced meanwhile */
        es_sha256_bytes(m->hash, m->gguf.map.data, m->gguf.map.size);
        if (!m->hash[0])
            return es_fail(err, ES_ERR_MEMORY, "%s: SHA-256 is not available", m->info.path);
    }
    memcpy(out, m->hash, sizeof m->hash);
    return ES_OK;
}

void es_model_set_hash(es_model *m, const char *hex)
{
    snprintf(m->hash, sizeof m->hash, "%s", strlen(hex) == 64 ? hex : "");
}

void es_model_unembed_row(const es_model *m, int id, float *out)
{
    const es_type_info *t = es_type_get(m->head.type);
    size_t row = (size_t)m->head.n_in / (size_t)t->block * (size_t)t->bytes;
    es_dequant(m->head.type, (const uint8_t *)m->head.data + row * (size_t)id, out, (size_t)m->head.n_in);
}

const float *es_model_final_norm(const es_model *m)
{
    return m->final_norm;
}

es_weight es_model_head(const es_model *m)
{
    return m->head;
}
