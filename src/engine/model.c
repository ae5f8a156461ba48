#include "device.h"
#include "model.h"
#include "folder.h"
#include "tokenizer.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- opening ---- */

static void copy_str(char *out, size_t size, const char *s, size_t n)
{
    snprintf(out, size, "%.*s", (int)(n < size ? n : size - 1), n ? s : "");
}

/* The key NAME of the file's architecture, "llama.NAME" in a llama. */
static const char *key_of(const es_model *m, const char *name, char key[128])
{
    snprintf(key, 128, "%s.%s", m->info.architecture, name);
    return key;
}

static int get_int(const es_model *m, const char *name, bool must, int64_t max, int *out, es_error *err)
{
    char key[128];
    int64_t v = *out;
    int rc = es_gguf_int(&m->gguf, key_of(m, name, key), must, 1, max, &v, err);
    *out = (int)v;
    return rc;
}

static int get_float(const es_model *m, const char *name, bool must, float *out, es_error *err)
{
    char key[128];
    return es_gguf_float(&m->gguf, key_of(m, name, key), must, out, err);
}

int es_model_check(const es_model *m, es_error *err)
{
    const es_model_info *i = &m->info;
    const es_facts *f = &m->facts;
    if (i->n_head % i->n_kv != 0)
        return es_fail(err, ES_ERR_FORMAT, "%s: %d heads cannot share %d key-value heads evenly", i->path, i->n_head, i->n_kv);
    if (i->head_dim < 2 || i->head_dim % 2 != 0 || i->head_dim > ES_MAX_HEAD_DIM)
        return es_fail(err, ES_ERR_FORMAT, "%s: a head size of %d is not supported: it should be even and at most %d", i->path, i->head_dim,
                       ES_MAX_HEAD_DIM);
    if (!(i->rope_base > 0) || !isfinite(i->rope_base))
        return es_fail(err, ES_ERR_FORMAT, "%s: the rope base is %g, not a positive number", i->path, (double)i->rope_base);
    if (!(i->norm_eps >= 0 && i->norm_eps <= 1))
        return es_fail(err, ES_ERR_FORMAT, "%s: the norms' epsilon is %g, outside 0 to 1", i->path, (double)i->norm_eps);
    if (!(f->attn_scale > 0 && f->attn_cap >= 0 && f->final_cap >= 0) || !isfinite(f->attn_scale + f->attn_cap + f->final_cap))
        return es_fail(err, ES_ERR_FORMAT, "%s: an attention scale of %g or soft caps of %g and %g make no sense", i->path,
                       (double)f->attn_scale, (double)f->attn_cap, (double)f->final_cap);
    return ES_OK;
}

static int read_sizes(es_model *m, es_error *err)
{
    const es_gguf *g = &m->gguf;
    es_model_info *i = &m->info;
    const char *s = NULL;
    char key[128], known[256];
    size_t n = 0;
    int rc;

    copy_str(i->path, sizeof i->path, g->map.path, strlen(g->map.path));
    i->file_bytes = g->map.size;
    if ((rc = es_gguf_str(g, "general.architecture", true, &s, &n, err)) != ES_OK)
        return rc;
    copy_str(i->architecture, sizeof i->architecture, s, n);
    const es_family *family = strlen(i->architecture) == n ? es_family_by_name(i->architecture) : NULL;
    es_family_list(known, sizeof known);
    if (!family)
        return es_fail(err, ES_ERR_FORMAT, "%s: has the architecture '%s'; known are %s", i->path, i->architecture, known);
    n = 0;
    if ((rc = es_gguf_str(g, "general.name", false, &s, &n, err)) != ES_OK)
        return rc;
    copy_str(i->name, sizeof i->name, s, n);

    if ((rc = get_int(m, "block_count", true, ES_MAX_LAYERS, &i->n_layer, err)) != ES_OK ||
        (rc = get_int(m, "embedding_length", true, ES_MAX_WIDTH, &i->d_model, err)) != ES_OK ||
        (rc = get_int(m, "feed_forward_length", true, ES_MAX_WIDTH, &i->d_ff, err)) != ES_OK ||
        (rc = get_int(m, "context_length", true, ES_MAX_CONTEXT, &i->n_ctx, err)) != ES_OK ||
        (rc = get_int(m, "attention.head_count", true, ES_MAX_HEADS, &i->n_head, err)) != ES_OK)
        return rc;
    i->n_kv = i->n_head;
    if ((rc = get_int(m, "attention.head_count_kv", false, i->n_head, &i->n_kv, err)) != ES_OK)
        return rc;
    int value_dim, rope_dim;
    i->head_dim = i->d_model / i->n_head;
    if (!es_gguf_find(g, key_of(m, "attention.key_length", key)) && i->d_model % i->n_head != 0)
        return es_fail(err, ES_ERR_FORMAT, "%s: a width of %d is not a multiple of %d heads, and no key_length is given", i->path,
                       i->d_model, i->n_head);
    if ((rc = get_int(m, "attention.key_length", false, ES_MAX_HEAD_DIM, &i->head_dim, err)) != ES_OK)
        return rc;
    value_dim = rope_dim = i->head_dim;
    if ((rc = get_int(m, "attention.value_length", false, ES_MAX_HEAD_DIM, &value_dim, err)) != ES_OK ||
        (rc = get_int(m, "rope.dimension_count", false, ES_MAX_HEAD_DIM, &rope_dim, err)) != ES_OK)
        return rc;
    if (value_dim != i->head_dim || rope_dim != i->head_dim)
        return es_fail(err, ES_ERR_FORMAT, "%s: head size %d, value size %d, rope over %d: only one even size for all three is "
                       "supported", i->path, i->head_dim, value_dim, rope_dim);
    int64_t experts = 0;
    if ((rc = es_gguf_int(g, key_of(m, "expert_count", key), false, 0, INT32_MAX, &experts, err)) != ES_OK)
        return rc;
    if (experts > 0)
        return es_fail(err, ES_ERR_FORMAT, "%s: is a mixture of %d experts, which is not supported", i->path, (int)experts);

    i->rope_base = 10000.0f;
    es_facts *f = &m->facts;
    *f = (es_facts){.family = family, .paired_rope = family->paired_rope, .attn_cap = family->attn_cap, .final_cap = family->final_cap};
    f->embed_scale = family->scaled_embedding ? sqrtf((float)i->d_model) : 1;
    f->attn_scale = 1 / sqrtf((float)(i->n_layer == family->wide_layers ? i->d_model / i->n_head : i->head_dim));
    if ((rc = get_float(m, "rope.freq_base", false, &i->rope_base, err)) != ES_OK ||
        (rc = get_float(m, "attention.layer_norm_rms_epsilon", true, &i->norm_eps, err)) != ES_OK ||
        (rc = get_float(m, "attention.scale", false, &f->attn_scale, err)) != ES_OK ||
        (rc = get_float(m, "attn_logit_softcapping", false, &f->attn_cap, err)) != ES_OK ||
        (rc = get_float(m, "final_logit_softcapping", false, &f->final_cap, err)) != ES_OK)
        return rc;
    return es_model_check(m, err);
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
    es_rope_scaling s = {.factor = 1, .low = 1, .high = 32, .window_base = m->facts.family->window_rope_base};
    const char *kind = NULL;
    char key[128];
    size_t n = 0;
    int rc, original = m->info.n_ctx;
    if ((rc = es_gguf_str(&m->gguf, key_of(m, "rope.scaling.type", key), false, &kind, &n, err)) != ES_OK ||
        (rc = get_float(m, "rope.scaling.factor", false, &s.factor, err)) != ES_OK ||
        (rc = get_float(m, "rope.scaling.yarn_beta_fast", false, &s.high, err)) != ES_OK ||
        (rc = get_float(m, "rope.scaling.yarn_beta_slow", false, &s.low, err)) != ES_OK ||
        (rc = get_float(m, "rope.freq_base_swa", false, &s.window_base, err)) != ES_OK ||
        (rc = get_int(m, "rope.scaling.original_context_length", false, ES_MAX_CONTEXT, &original, err)) != ES_OK)
        return rc;
    s.original = (float)original;
    if (n == 6 && !memcmp(kind, "linear", 6))
        s.kind = ES_ROPE_LINEAR;
    else if (n == 4 && !memcmp(kind, "yarn", 4))
        s.kind = ES_ROPE_YARN;
    else if (n && !(n == 4 && !memcmp(kind, "none", 4)))
        return es_fail(err, ES_ERR_FORMAT, "%s: rope scaling of type '%.*s' is not supported (none, linear and yarn are)", m->info.path,
                       (int)(n < 40 ? n : 40), kind);
    if (es_gguf_find_tensor(&m->gguf, "rope_freqs.weight") && /* Llama 3.1 and later stretch each frequency by its own factor */
        (rc = get_vector(m, "rope_freqs.weight", m->info.head_dim / 2, &s.divisor, err)) != ES_OK)
        return rc;
    return es_rope_open(m, &s, err);
}

void es_model_set_windows(es_model *m, int window)
{
    int every = m->facts.family->full_every;
    for (int l = 0; l < m->info.n_layer; l++)
        m->layer[l].window = every && (l + 1) % every ? window : 0;
}

static int read_layers(es_model *m, es_error *err)
{
    int window = 0, rc = get_int(m, "attention.sliding_window", false, ES_MAX_CONTEXT, &window, err);
    if (rc != ES_OK)
        return rc;
    m->layer = es_calloc((size_t)m->info.n_layer, sizeof *m->layer);
    if (!m->layer)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to open it", m->info.path);
    es_model_set_windows(m, window);
    for (int l = 0; l < m->info.n_layer && rc == ES_OK; l++) {
        char name[64];
        es_layer *layer = &m->layer[l];
        for (int i = 0; i < ES_N_NORMS && rc == ES_OK; i++) {
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, es_norm_name((es_norm)i));
            if (es_norm_width(m, (es_norm)i))
                rc = get_vector(m, name, es_norm_width(m, (es_norm)i), &layer->norm[i], err);
        }
        for (int s = 0; s < ES_N_SITES && rc == ES_OK; s++) {
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, es_site_name((es_site)s));
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
    char key[128];
    int rc;
    if (!embd)
        return es_fail(err, ES_ERR_FORMAT, "%s: the tensor token_embd.weight is missing", i->path);
    n_vocab = (int64_t)embd->ne[1]; /* at most 2^31 - 1: the reader checked */
    i->n_vocab = (int)n_vocab;
    if ((rc = es_gguf_int(&m->gguf, key_of(m, "vocab_size", key), false, n_vocab, n_vocab, &n_vocab, err)) != ES_OK ||
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
            return es_fail(err, ES_ERR_FORMAT, "%s: the tensor %s has no place in a %s model of %d layers as it is known here",
                           i->path, m->gguf.tensor[t].name, i->architecture, i->n_layer);
    return ES_OK;
}

int es_model_set_sampling(es_model *m, const char *where, float temperature, float top_k, float top_p, float penalty, es_error *err)
{
    es_sampling *s = &m->sampling;
    *s = es_sampling_default();
    const struct {
        const char *name;
        float value, most;
    } given[] = {{"temperature", temperature, 10}, {"top_k", top_k, 1e6f}, {"top_p", top_p, 1}, {"repetition penalty", penalty, 10}};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++)
        if (!(given[i].value <= given[i].most))
            return es_fail(err, ES_ERR_FORMAT, "%s: %s: a %s of %g makes no sense", m->info.path, where, given[i].name, (double)given[i].value);
    s->temperature = temperature >= 0 ? temperature : s->temperature;
    s->top_k = top_k >= 0 ? (int)top_k : s->top_k;
    s->top_p = top_p > 0 ? top_p : s->top_p;
    s->repeat_penalty = penalty > 0 ? penalty : s->repeat_penalty;
    return ES_OK;
}

static int read_sampling(es_model *m, es_error *err)
{
    float temperature = -1, top_p = -1, penalty = -1;
    int64_t top_k = -1;
    const es_gguf *g = &m->gguf;
    int rc = es_gguf_float(g, "general.sampling.temp", false, &temperature, err);
    rc = rc ? rc : es_gguf_int(g, "general.sampling.top_k", false, 0, INT32_MAX, &top_k, err);
    rc = rc ? rc : es_gguf_float(g, "general.sampling.top_p", false, &top_p, err);
    rc = rc ? rc : es_gguf_float(g, "general.sampling.penalty_repeat", false, &penalty, err);
    return rc ? rc : es_model_set_sampling(m, "general.sampling", temperature, (float)top_k, top_p, penalty, err);
}

size_t es_model_cache_bytes(const es_model *m, int n_ctx)
{
    const es_model_info *i = &m->info;
    size_t n = (size_t)(n_ctx > 0 ? n_ctx : i->n_ctx > 0 && i->n_ctx < ES_DEFAULT_CONTEXT ? i->n_ctx : ES_DEFAULT_CONTEXT);
    return n * (size_t)i->n_layer * (size_t)i->n_kv * (size_t)i->head_dim * 2 * sizeof(uint16_t); /* each bounded when read: under 2^63 */
}

static int check_memory(const es_model *m, int n_ctx, size_t memory, es_error *err)
{
    size_t cache = es_model_cache_bytes(m, n_ctx), need = SIZE_MAX;
    char what[sizeof m->info.path + 120];
    snprintf(what, sizeof what, "%.280s, with %.2f GB of weights and %.2f GB of keys and values,", m->info.path, (double)m->info.file_bytes / 1e9, (double)cache / 1e9);
    es_add(m->info.file_bytes, cache, &need);
    return es_memory_check(need, memory, what, err);
}

static int open_model(es_model **out, const char *path, bool limited, int n_ctx, size_t memory, es_error *err)
{
    *out = NULL;
    es_model *m = es_calloc(1, sizeof *m);
    if (!m)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to open it", path);
    struct stat st;
    bool folder = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    int rc = folder ? es_folder_open(m, path, err) : es_gguf_open(&m->gguf, path, err);
    if (rc == ES_OK && !folder)
        rc = read_sizes(m, err);
    if (rc == ES_OK && limited)
        rc = check_memory(m, n_ctx, memory, err);
    if (rc == ES_OK && !folder)
        rc = read_weights(m, err);
    if (rc == ES_OK && !folder)
        rc = es_tokenizer_open(&m->tokenizer, &m->gguf, m->info.n_vocab, err);
    if (rc == ES_OK && !folder)
        rc = read_sampling(m, err);
    if (rc != ES_OK) {
        es_model_free(m);
        return rc;
    }
    *out = m;
    return ES_OK;
}

int es_model_open(es_model **out, const char *path, es_error *err)
{
    return open_model(out, path, false, 0, 0, err);
}

int es_model_open_within(es_model **out, const char *path, int n_ctx, size_t memory, es_error *err)
{
    return open_model(out, path, true, n_ctx, memory, err);
}

/* ---- what others ask ---- */

int es_model_hash(es_model *m, char out[65], es_error *err)
{
    if (!m->hash[0] && m->n_shard) {
        int rc = es_folder_hash(m, m->hash, err);
        if (rc)
            return rc;
    }
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

es_sampling es_model_sampling(const es_model *m, es_sampling asked)
{
    const es_sampling *own = &m->sampling;
    asked.temperature = asked.temperature < 0 ? own->temperature : asked.temperature;
    asked.top_k = asked.top_k < 0 ? own->top_k : asked.top_k;
    asked.top_p = asked.top_p < 0 ? own->top_p : asked.top_p;
    asked.repeat_penalty = asked.repeat_penalty < 0 ? own->repeat_penalty : asked.repeat_penalty;
    return asked;
}

es_weight es_model_site(const es_model *m, int layer, es_site s)
{
    return m->layer[layer].site[s];
}

const float *es_model_post_norm(const es_model *m, int layer)
{
    return m->layer[layer].norm[ES_NORM_FFN_POST];
}

const float *es_model_attention_post_norm(const es_model *m, int layer)
{
    return m->layer[layer].norm[ES_NORM_ATTN_POST];
}

es_weight es_model_head(const es_model *m)
{
    return m->head;
}
