#include "folder.h"
#include "tokenizer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { PATH = 1200, NAME = 96, CHUNK = 1 << 14 };

/* ---- config.json ----------------------------------------------------------------------------------------------------------- */

typedef struct config {
    json_t *root;
    const char *path;
} config;

/* A number that is at least `min` and at most `max`; absent or null: *out stays, unless `must`. */
static int number(const config *c, const json_t *in, const char *key, bool must, double min, double max, double *out, es_error *err)
{
    const json_t *v = json_object_get(in, key);
    if (!v || json_is_null(v))
        return must ? es_fail(err, ES_ERR_FORMAT, "%s: \"%s\" is missing in config.json", c->path, key) : ES_OK;
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= min && x <= max))
        return es_fail(err, ES_ERR_FORMAT, "%s: \"%s\" in config.json should be a number from %g to %g", c->path, key, min, max);
    *out = x;
    return ES_OK;
}

static int whole(const config *c, const char *key, bool must, int max, int *out, es_error *err)
{
    double x = *out;
    int rc = number(c, c->root, key, must, 1, max, &x, err);
    *out = (int)x;
    return rc || *out == x ? rc : es_fail(err, ES_ERR_FORMAT, "%s: \"%s\" in config.json is not a whole number", c->path, key);
}

static int real(const config *c, const json_t *in, const char *key, float *out, es_error *err)
{
    double x = *out;
    int rc = number(c, in, key, false, 0, 1e9, &x, err);
    *out = (float)x;
    return rc;
}

static int read_sizes(es_model *m, const config *c, es_error *err)
{
    es_model_info *i = &m->info;
    es_facts *f = &m->facts;
    char known[256];
    const char *type = json_string_value(json_object_get(c->root, "model_type")), *act = json_string_value(json_object_get(c->root, "hidden_act"));
    const es_family *family = type ? es_family_by_model_type(type) : NULL;
    es_family_list(known, sizeof known);
    if (!family)
        return es_fail(err, ES_ERR_FORMAT, "%s: has the model_type '%.60s'; known are %s", c->path, type ? type : "", known);
    if (!family->gelu && act && strcmp(act, "silu") != 0)
        return es_fail(err, ES_ERR_FORMAT, "%s: gates with '%.60s'; this family is known with silu", c->path, act);
    snprintf(i->architecture, sizeof i->architecture, "%s", family->name);
    int rc;
    if ((rc = whole(c, "num_hidden_layers", true, ES_MAX_LAYERS, &i->n_layer, err)) || (rc = whole(c, "hidden_size", true, ES_MAX_WIDTH, &i->d_model, err)) ||
        (rc = whole(c, "intermediate_size", true, ES_MAX_WIDTH, &i->d_ff, err)) || (rc = whole(c, "vocab_size", true, INT32_MAX, &i->n_vocab, err)) ||
        (rc = whole(c, "max_position_embeddings", true, ES_MAX_CONTEXT, &i->n_ctx, err)) ||
        (rc = whole(c, "num_attention_heads", true, ES_MAX_HEADS, &i->n_head, err)))
        return rc;
    i->n_kv = i->n_head;
    i->head_dim = i->d_model / i->n_head;
    i->norm_eps = 1e-6f;
    if ((rc = whole(c, "num_key_value_heads", false, i->n_head, &i->n_kv, err)) || (rc = whole(c, "head_dim", false, ES_MAX_HEAD_DIM, &i->head_dim, err)) ||
        (rc = real(c, c->root, "rms_norm_eps", &i->norm_eps, err)))
        return rc;
    *f = (es_facts){.family = family, .embed_scale = family->scaled_embedding ? sqrtf((float)i->d_model) : 1};
    float scalar = (float)i->head_dim;
    if ((rc = real(c, c->root, "query_pre_attn_scalar", &scalar, err)) || (rc = real(c, c->root, "attn_logit_softcapping", &f->attn_cap, err)) ||
        (rc = real(c, c->root, "final_logit_softcapping", &f->final_cap, err)))
        return rc;
    f->attn_scale = 1 / sqrtf(scalar);
    return ES_OK;
}

static int read_rope(es_model *m, const config *c, es_error *err)
{
    es_rope_scaling s = {.factor = 1, .low = 1, .high = 32, .original = (float)m->info.n_ctx, .window_base = m->facts.family->window_rope_base};
    m->info.rope_base = 10000;
    const json_t *all = json_object_get(c->root, "rope_parameters"); /* transformers 5; before, rope_theta and rope_scaling */
    const json_t *full = json_object_get(all, "full_attention"), *local = json_object_get(all, "sliding_attention");
    full = full ? full : all ? all : json_object_get(c->root, "rope_scaling");
    const json_t *kind_of = json_object_get(full, "rope_type") ? json_object_get(full, "rope_type") : json_object_get(full, "type");
    const char *kind = json_is_string(kind_of) ? json_string_value(kind_of) : "default";
    int rc;
    if ((rc = real(c, c->root, "rope_theta", &m->info.rope_base, err)) || (rc = real(c, full, "rope_theta", &m->info.rope_base, err)) ||
        (rc = real(c, c->root, "rope_local_base_freq", &s.window_base, err)) || (rc = real(c, local, "rope_theta", &s.window_base, err)) ||
        (rc = es_model_check(m, err)))
        return rc;
    if (!strcmp(kind, "linear"))
        s.kind = ES_ROPE_LINEAR;
    else if (!strcmp(kind, "llama3"))
        s.kind = ES_ROPE_LLAMA3;
    else if (!strcmp(kind, "yarn"))
        s.kind = ES_ROPE_YARN;
    else if (strcmp(kind, "default") != 0)
        return es_fail(err, ES_ERR_FORMAT, "%s: rope of type '%.60s' is not supported (default, linear, llama3 and yarn are)", c->path, kind);
    bool yarn = s.kind == ES_ROPE_YARN;
    if ((s.kind != ES_ROPE_PLAIN && (rc = real(c, full, "factor", &s.factor, err))) ||
        (rc = real(c, full, "original_max_position_embeddings", &s.original, err)) ||
        (rc = real(c, full, yarn ? "beta_slow" : "low_freq_factor", &s.low, err)) ||
        (rc = real(c, full, yarn ? "beta_fast" : "high_freq_factor", &s.high, err)) ||
        (yarn && (rc = real(c, full, "attention_factor", &s.gain, err))))
        return rc;
    return es_rope_open(m, &s, err);
}

static int read_windows(es_model *m, const config *c, es_error *err)
{
    const json_t *types = json_object_get(c->root, "layer_types");
    int window = 0, rc = whole(c, "sliding_window", false, ES_MAX_CONTEXT, &window, err);
    if (rc)
        return rc;
    es_model_set_windows(m, window);
    if (json_is_array(types) && json_array_size(types) != (size_t)m->info.n_layer)
        return es_fail(err, ES_ERR_FORMAT, "%s: \"layer_types\" in config.json names %zu layers of %d", c->path, json_array_size(types), m->info.n_layer);
    for (int l = 0; json_is_array(types) && l < m->info.n_layer; l++) {
        const char *type = json_string_value(json_array_get(types, (size_t)l));
        bool local = type && !strcmp(type, "sliding_attention");
        if (!local && (!type || strcmp(type, "full_attention") != 0))
            return es_fail(err, ES_ERR_FORMAT, "%s: layer %d has attention of type '%.60s', which is not known", c->path, l, type ? type : "");
        m->layer[l].window = local ? window : 0;
    }
    return ES_OK;
}

/* ---- weights ------------------------------------------------------------------------------------------------------------------- */

typedef struct loader {
    es_model *m;
    const char *path;
    es_arena held;  /* first only measured */
    json_t *used;   /* names that have their place */
    float *chunk;   /* [CHUNK] */
    bool fill;      /* the second round: numbers are moved */
} loader;

static const es_tensor *find(const es_model *m, const char *name)
{
    const es_tensor *t = NULL;
    for (size_t i = 0; i < m->n_shard && !t; i++)
        t = es_safetensors_find(m->shard[i], name);
    return t;
}

static int check_tensor(const loader *l, const es_tensor *t, const char *name, int n_out, int n_in, es_error *err)
{
    if (!t)
        return es_fail(err, ES_ERR_FORMAT, "%s: the tensor %s is missing", l->path, name);
    bool fits = n_out ? t->n_dims == 2 && t->dim[0] == (size_t)n_out && t->dim[1] == (size_t)n_in : t->n_dims == 1 && t->dim[0] == (size_t)n_in;
    if (!fits)
        return es_fail(err, ES_ERR_FORMAT, "%s: the tensor %s does not have the shape that config.json says (%d x %d)", l->path, name, n_out ? n_out : 1, n_in);
    for (size_t at = 0; at < t->n; at += CHUNK) {
        size_t n = t->n - at < CHUNK ? t->n - at : CHUNK;
        if (!es_tensor_f32(t, at, n, l->chunk))
            return es_fail(err, ES_ERR_FORMAT, "%s: the tensor %s has type %s; F32, F16, BF16 and F64 are read", l->path, name, es_tensor_type_name(t->type));
        for (size_t i = 0; i < n; i++)
            if (!isfinite(l->chunk[i]))
                return es_fail(err, ES_ERR_FORMAT, "%s: the tensor %s holds NaN or infinity: the file is damaged", l->path, name);
    }
    return ES_OK;
}

/* A matrix, where the file has it when its type and place allow; n_out 0: a vector, always f32, `plus` added to each number. */
static int take(loader *l, const char *name, int n_out, int n_in, float plus, es_weight *out, es_error *err)
{
    const es_tensor *t = find(l->m, name);
    int rc = l->fill ? ES_OK : check_tensor(l, t, name, n_out, n_in, err);
    if (rc)
        return rc;
    if (!l->fill) {
        if (json_object_set_new(l->used, name, json_true()) != 0)
            return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to open it", l->path);
        l->m->info.n_params += t->n;
        l->m->info.file_bytes += t->bytes;
    }
    *out = (es_weight){.type = t->type == ES_TENSOR_F16 ? ES_F16 : t->type == ES_TENSOR_BF16 ? ES_BF16 : ES_F32, .n_out = n_out ? n_out : 1,
                       .n_in = n_in, .data = t->data};
    bool mapped = t->type == ES_TENSOR_F16 || t->type == ES_TENSOR_BF16 || t->type == ES_TENSOR_F32;
    if (n_out && mapped && (uintptr_t)t->data % (size_t)es_type_get((int)out->type)->bytes == 0)
        return ES_OK;
    float *to = es_arena_take(&l->held, t->n, sizeof *to);
    *out = (es_weight){.type = ES_F32, .n_out = out->n_out, .n_in = n_in, .data = to};
    if (l->fill) {
        es_tensor_f32(t, 0, t->n, to);
        for (size_t i = 0; plus != 0 && i < t->n; i++)
            to[i] += plus;
    }
    return ES_OK;
}

static int take_vector(loader *l, const char *name, int n, const float **out, es_error *err)
{
    es_weight w = {0};
    int rc = take(l, name, 0, n, l->m->facts.family->norm_plus_one ? 1 : 0, &w, err);
    *out = w.data;
    return rc;
}

static int take_all(loader *l, es_error *err)
{
    static const char *const sites[ES_N_SITES] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                                  "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"};
    static const char *const norms[ES_N_NORMS] = {"input_layernorm", "pre_feedforward_layernorm", "post_attention_layernorm",
                                                  "post_feedforward_layernorm", "self_attn.q_norm", "self_attn.k_norm"};
    es_model *m = l->m;
    const es_model_info *i = &m->info;
    char name[NAME];
    int rc = take(l, "model.embed_tokens.weight", i->n_vocab, i->d_model, 0, &m->token_embd, err);
    rc = rc ? rc : take_vector(l, "model.norm.weight", i->d_model, &m->final_norm, err);
    m->head = m->token_embd;
    if (!rc && !i->tied_head)
        rc = take(l, "lm_head.weight", i->n_vocab, i->d_model, 0, &m->head, err);
    for (int k = 0; !rc && k < i->n_layer; k++) {
        for (int n = 0; !rc && n < ES_N_NORMS; n++) {
            /* Without post norms the norm before the feed-forward is called after what it follows. */
            bool after = n == ES_NORM_FFN && !m->facts.family->post_norm;
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", k, norms[after ? ES_NORM_ATTN_POST : n]);
            if (es_norm_width(m, (es_norm)n))
                rc = take_vector(l, name, es_norm_width(m, (es_norm)n), &m->layer[k].norm[n], err);
        }
        for (int s = 0; !rc && s < ES_N_SITES; s++) {
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", k, sites[s]);
            rc = take(l, name, es_site_n_out(m, (es_site)s), es_site_n_in(m, (es_site)s), 0, &m->layer[k].site[s], err);
        }
    }
    return rc;
}

/* A bias that is silently left out would make another model. */
static int check_rest(const loader *l, es_error *err)
{
    static const char buffer[] = ".rotary_emb.inv_freq"; /* old files have these, which are not weights */
    for (size_t i = 0; i < l->m->n_shard; i++)
        for (size_t k = 0; k < es_safetensors_count(l->m->shard[i]); k++) {
            const char *name = es_safetensors_at(l->m->shard[i], k)->name;
            size_t n = strlen(name);
            bool inv_freq = n >= sizeof buffer && !strcmp(name + n - (sizeof buffer - 1), buffer);
            if (!inv_freq && !(l->m->info.tied_head && !strcmp(name, "lm_head.weight")) && !json_object_get(l->used, name))
                return es_fail(err, ES_ERR_FORMAT, "%s: the tensor %.80s has no place in a %s model of %d layers as it is known here", l->path, name,
                               l->m->info.architecture, l->m->info.n_layer);
        }
    return ES_OK;
}

static int read_weights(es_model *m, const config *c, es_error *err)
{
    loader l = {.m = m, .path = c->path, .used = json_object(), .chunk = es_calloc(CHUNK, sizeof(float))};
    int rc = l.used && l.chunk ? ES_OK : es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to open it", c->path);
    m->info.tied_head = !find(m, "lm_head.weight") || json_is_true(json_object_get(c->root, "tie_word_embeddings"));
    rc = rc ? rc : take_all(&l, err);
    rc = rc ? rc : check_rest(&l, err);
    rc = rc ? rc : es_memory_check(l.held.used, 0, "the weights that are not F32, F16 or BF16 in the file", err);
    rc = rc ? rc : es_arena_open(&m->held, l.held.used, err);
    if (!rc) {
        l.held = m->held;
        l.fill = true;
        rc = take_all(&l, err);
    }
    json_decref(l.used);
    free(l.chunk);
    return rc;
}

/* ---- how it likes to talk ------------------------------------------------------------------------------------------------------- */

static float said(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? (float)json_number_value(v) : -1;
}

static int read_sampling(es_model *m, es_error *err)
{
    char file[PATH];
    struct stat st;
    json_t *o = NULL;
    snprintf(file, sizeof file, "%s/generation_config.json", m->info.path);
    int rc = stat(file, &st) == 0 ? es_json_file(&o, file, err) : ES_OK;
    rc = rc ? rc : es_model_set_sampling(m, "generation_config.json", said(o, "temperature"), said(o, "top_k"), said(o, "top_p"), said(o, "repetition_penalty"), err);
    json_decref(o);
    return rc;
}

/* ---- the folder ------------------------------------------------------------------------------------------------------------------- */

static int open_shards(es_model *m, const char *path, es_error *err)
{
    char file[PATH];
    struct stat st;
    char **name = NULL;
    size_t n = 1;
    snprintf(file, sizeof file, "%s/model.safetensors.index.json", path);
    bool sharded = stat(file, &st) == 0;
    int rc = sharded ? es_safetensors_shards(&name, &n, file, err) : ES_OK;
    if (rc)
        return rc;
    m->shard = es_calloc(n + 1, sizeof *m->shard);
    m->shard_name = name;
    m->n_shard = n;
    if (!m->shard)
        rc = es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to open it", path);
    for (size_t i = 0; !rc && i < n; i++) {
        snprintf(file, sizeof file, "%s/%s", path, sharded ? name[i] : "model.safetensors");
        rc = es_safetensors_open(&m->shard[i], file, err);
    }
    return rc;
}

int es_folder_open(es_model *m, const char *path, es_error *err)
{
    char file[PATH];
    config c = {.path = m->info.path};
    snprintf(m->info.path, sizeof m->info.path, "%s", path);
    size_t n = strlen(m->info.path);
    while (n > 1 && m->info.path[n - 1] == '/')
        m->info.path[--n] = '\0';
    const char *slash = strrchr(m->info.path, '/');
    snprintf(m->info.name, sizeof m->info.name, "%.*s", (int)sizeof m->info.name - 1, slash && slash[1] ? slash + 1 : m->info.path);
    snprintf(file, sizeof file, "%s/config.json", m->info.path);
    int rc = es_json_file(&c.root, file, err);
    if (rc)
        return rc == ES_ERR_MISSING ? es_fail(err, rc, "%s: is a folder without config.json, not a model", path) : rc;
    rc = read_sizes(m, &c, err);
    rc = rc ? rc : read_rope(m, &c, err);
    if (!rc && !(m->layer = es_calloc((size_t)m->info.n_layer, sizeof *m->layer)))
        rc = es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to open it", path);
    rc = rc ? rc : read_windows(m, &c, err);
    rc = rc ? rc : open_shards(m, m->info.path, err);
    rc = rc ? rc : read_weights(m, &c, err);
    rc = rc ? rc : read_sampling(m, err);
    rc = rc ? rc : es_tokenizer_open_folder(&m->tokenizer, m->info.path, m->info.n_vocab, err);
    json_decref(c.root);
    return rc;
}

int es_folder_hash(const es_model *m, char out[65], es_error *err)
{
    char file[PATH], one[65];
    es_buf all = {0};
    int rc = ES_OK;
    for (size_t i = 0; !rc && i <= m->n_shard; i++) {
        const char *name = i == 0 ? "config.json" : m->shard_name ? m->shard_name[i - 1] : "model.safetensors";
        snprintf(file, sizeof file, "%s/%s", m->info.path, name);
        rc = es_sha256_file(one, file, err);
        if (!rc)
            es_buf_add(&all, one, 64);
    }
    if (!rc && all.failed)
        rc = es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", m->info.path);
    if (!rc)
        es_sha256_bytes(out, all.data, all.len);
    es_buf_free(&all);
    return rc;
}
