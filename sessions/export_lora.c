/* An adapter's matrices for PEFT and for llama.cpp, and its mean directions as a tensor.
 *
 * PEFT (LoraConfig, 0.21): y = W x + lora_alpha / r * B (A x), lora_A [r, n_in], lora_B [n_out, r]. lora_alpha is r here, so that B carries the scale.
 * GGUF (llama.cpp, llama_adapter_lora_init): tensors blk.N.MATRIX.weight.lora_a (ne = n_in, r) and .lora_b (ne = r, n_out), scale adapter.lora.alpha / r. */
#include <stdio.h>
#include <stdlib.h>

#include "export_internal.h"
#include "pickle.h"

typedef struct pair { /* one matrix's update: A [r, n_in], B [n_out, r], owned */
    int layer;
    es_site site;
    size_t n_in, n_out;
    float *a, *b;
} pair;

typedef struct pairs { pair *p; int n, rank; } pairs;

static void pairs_free(pairs *l)
{
    for (int i = 0; i < l->n; i++) {
        free(l->p[i].a);
        free(l->p[i].b);
    }
    free(l->p);
    *l = (pairs){0};
}

static pair *pair_of(pairs *l, int layer, es_site site)
{
    for (int i = 0; i < l->n; i++)
        if (l->p[i].layer == layer && l->p[i].site == site)
            return &l->p[i];
    l->p[l->n] = (pair){.layer = layer, .site = site};
    return &l->p[l->n++];
}

/* Several entries on one matrix lie side by side in its pair; all pairs get the largest rank, the rest zeros. */
static int collect(pairs *l, const es_adapter *adapter, es_model *m, es_error *err)
{
    es_adapter *own = NULL;
    es_patch patch;
    int rc = es_adapter_copy(&own, adapter, err);
    if (!rc)
        rc = es_adapter_patch(own, 1, &patch, err);
    if (!rc && (!patch.n_lowrank || patch.n_addend || patch.n_hook))
        rc = es_fail(err, ES_ERR_USAGE, "this adapter has the form %s: only lora consists of low-rank matrices", es_form_name(es_adapter_get_options(adapter)->form));
    for (int e = 0; !rc && e < patch.n_lowrank; e++)
        if (patch.lowrank[e].behind && (patch.lowrank[e].site == ES_SITE_DOWN ? es_model_post_norm(m, patch.lowrank[e].layer) : es_model_attention_post_norm(m, patch.lowrank[e].layer)))
            rc = es_fail(err, ES_ERR_USAGE, "in this model a norm follows the matrices that are adapted, and the adapter adds behind it: a LoRA file, which adds before it, cannot say that (control-vector, persona, npz and json can say its mean)");
    int *used = rc ? NULL : es_calloc((size_t)patch.n_lowrank, sizeof *used);
    l->p = rc ? NULL : es_calloc((size_t)patch.n_lowrank, sizeof *l->p);
    if (!rc && (!l->p || !used))
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to export the adapter");
    for (int e = 0; !rc && e < patch.n_lowrank; e++) {
        int at = (int)(pair_of(l, patch.lowrank[e].layer, patch.lowrank[e].site) - l->p);
        used[at] += patch.lowrank[e].rank;
        l->rank = used[at] > l->rank ? used[at] : l->rank;
    }
    for (int i = 0; !rc && i < l->n; i++) {
        pair *p = &l->p[i];
        p->n_in = (size_t)es_site_n_in(m, p->site);
        p->n_out = (size_t)es_site_n_out(m, p->site);
        p->a = es_calloc((size_t)l->rank * p->n_in, sizeof *p->a);
        p->b = es_calloc((size_t)l->rank * p->n_out, sizeof *p->b);
        used[i] = 0;
        if (!p->a || !p->b)
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to export the adapter");
    }
    for (int e = 0; !rc && e < patch.n_lowrank; e++) {
        const es_lowrank *from = &patch.lowrank[e];
        pair *p = pair_of(l, from->layer, from->site);
        size_t first = (size_t)used[p - l->p], r = (size_t)from->rank, R = (size_t)l->rank;
        memcpy(p->a + first * p->n_in, from->a, r * p->n_in * sizeof *p->a);
        for (size_t o = 0; o < p->n_out; o++)
            for (size_t k = 0; k < r; k++)
                p->b[o * R + first + k] = from->scale * from->b[o * r + k];
        used[p - l->p] += from->rank;
    }
    free(used);
    es_adapter_free(own);
    if (rc)
        pairs_free(l);
    return rc;
}

/* ---- PEFT ------------------------------------------------------------------------------------------------------------------------------ */

static const char *module_of(es_site s)
{
    static const char *const name[ES_N_SITES] = {
        [ES_SITE_Q] = "self_attn.q_proj", [ES_SITE_K] = "self_attn.k_proj", [ES_SITE_V] = "self_attn.v_proj", [ES_SITE_O] = "self_attn.o_proj",
        [ES_SITE_GATE] = "mlp.gate_proj", [ES_SITE_UP] = "mlp.up_proj", [ES_SITE_DOWN] = "mlp.down_proj",
    };
    return name[s];
}

static json_t *peft_config(const pairs *l, const es_model_info *i)
{
    json_t *modules = json_array(), *layers = json_array();
    bool site[ES_N_SITES] = {0};
    for (int e = 0; e < l->n; e++) {
        const char *name = strchr(module_of(l->p[e].site), '.') + 1;
        if (!site[l->p[e].site])
            json_array_append_new(modules, json_string(name));
        site[l->p[e].site] = true;
        bool seen = false;
        for (int k = 0; k < e; k++)
            seen = seen || l->p[k].layer == l->p[e].layer;
        if (!seen)
            json_array_append_new(layers, json_integer(l->p[e].layer));
    }
    return json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:s, s:b, s:b, s:b, s:{}, s:{}, s:o, s:o}", "peft_type", "LORA", "task_type", "CAUSAL_LM",
                     "base_model_name_or_path", i->name, "r", l->rank, "lora_alpha", l->rank, "lora_dropout", 0.0, "bias", "none", "lora_bias", 0,
                     "inference_mode", 1, "fan_in_fan_out", 0, "rank_pattern", "alpha_pattern", "target_modules", modules, "layers_to_transform", layers);
}

int es_export_peft(const es_adapter *a, es_model *m, const char *folder, es_error *err)
{
    const es_model_info *i = es_model_get_info(m);
    pairs l = {0};
    char path[1300], hash[65];
    int rc = es_model_hash(m, hash, err);
    if (!rc)
        rc = collect(&l, a, m, err);
    for (int e = 0; !rc && e < l.n; e++) /* the rows of q and k are in another order in a GGUF of llama than in the model that PEFT adapts */
        if (l.p[e].site == ES_SITE_Q || l.p[e].site == ES_SITE_K)
            rc = es_fail(err, ES_ERR_USAGE, "this adapter changes %s, which lies in another order in PEFT's models", es_site_name(l.p[e].site));
    es_tensor_spec *t = rc ? NULL : es_calloc(2 * (size_t)l.n, sizeof *t);
    char(*name)[160] = rc ? NULL : es_calloc(2 * (size_t)l.n, sizeof *name);
    if (!rc && (!t || !name))
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to export the adapter");
    for (int e = 0; !rc && e < l.n; e++) {
        const pair *p = &l.p[e];
        snprintf(name[2 * e], sizeof *name, "base_model.model.model.layers.%d.%s.lora_A.weight", p->layer, module_of(p->site));
        snprintf(name[2 * e + 1], sizeof *name, "base_model.model.model.layers.%d.%s.lora_B.weight", p->layer, module_of(p->site));
        t[2 * e] = (es_tensor_spec){name[2 * e], ES_TENSOR_F32, 2, {(size_t)l.rank, p->n_in}, p->a};
        t[2 * e + 1] = (es_tensor_spec){name[2 * e + 1], ES_TENSOR_F32, 2, {p->n_out, (size_t)l.rank}, p->b};
    }
    if (!rc)
        rc = es_dir_make(folder, err);
    if (!rc) {
        json_t *metadata = json_pack("{s:s, s:s}", "format", "pt", "espalier_model_sha256", hash);
        snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
        rc = es_safetensors_write_file(path, t, 2 * (size_t)l.n, metadata, err);
        json_decref(metadata);
    }
    if (!rc) {
        json_t *cfg = peft_config(&l, i);
        char *text = cfg ? json_dumps(cfg, JSON_INDENT(2)) : NULL;
        snprintf(path, sizeof path, "%s/adapter_config.json", folder);
        rc = text ? es_file_write(path, text, strlen(text), err) : es_fail(err, ES_ERR_MEMORY, "not enough memory to export the adapter");
        free(text);
        json_decref(cfg);
    }
    free(t);
    free(name);
    pairs_free(&l);
    return rc;
}

/* ---- GGUF -------------------------------------------------------------------------------------------------------------------------------- */

static void put_dims(es_buf *b, const pair *p, const char *end, size_t ne0, size_t ne1, uint64_t offset)
{
    char name[80];
    snprintf(name, sizeof name, "blk.%d.%s.weight.%s", p->layer, es_site_name(p->site), end);
    es_gguf_text(b, name);
    put_u32(b, 2);
    put_u64(b, ne0);
    put_u64(b, ne1);
    put_u32(b, ES_F32);
    put_u64(b, offset);
}

static size_t padded(size_t n)
{
    return (n + GGUF_ALIGN - 1) / GGUF_ALIGN * GGUF_ALIGN;
}

int es_export_gguf_lora(es_buf *b, const es_adapter *a, es_model *m, es_error *err)
{
    const es_model_info *i = es_model_get_info(m);
    const es_basis *basis = es_adapter_basis(a);
    pairs l = {0};
    char hash[65];
    int rc = es_model_hash(m, hash, err);
    if (!rc)
        rc = collect(&l, a, m, err);
    if (rc)
        return rc;
    size_t R = (size_t)l.rank;
    float alpha = (float)l.rank;
    uint32_t bits;
    memcpy(&bits, &alpha, 4);
    es_buf_add(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, 2 * (uint64_t)l.n);
    put_u64(b, 6);
    es_gguf_string(b, "general.type", "adapter");
    es_gguf_string(b, "general.architecture", i->architecture);
    es_gguf_string(b, "general.name", basis ? basis->name : "espalier");
    es_gguf_string(b, "adapter.type", "lora");
    es_gguf_text(b, "adapter.lora.alpha");
    put_u32(b, GGUF_F32);
    put_u32(b, bits);
    es_gguf_string(b, "espalier.model_sha256", hash);
    uint64_t at = 0;
    for (int e = 0; e < l.n; e++) {
        const pair *p = &l.p[e];
        put_dims(b, p, "lora_a", p->n_in, R, at);
        at += padded(R * p->n_in * sizeof(float));
        put_dims(b, p, "lora_b", R, p->n_out, at);
        at += padded(R * p->n_out * sizeof(float));
    }
    static const char zeros[GGUF_ALIGN];
    es_buf_add(b, zeros, padded(b->len) - b->len);
    for (int e = 0; e < l.n; e++) {
        const pair *p = &l.p[e];
        size_t n[2] = {R * p->n_in * sizeof(float), R * p->n_out * sizeof(float)};
        es_buf_add(b, p->a, n[0]);
        es_buf_add(b, zeros, padded(n[0]) - n[0]);
        es_buf_add(b, p->b, n[1]);
        es_buf_add(b, zeros, padded(n[1]) - n[1]);
    }
    pairs_free(&l);
    return ES_OK;
}

/* ---- persona-style ---------------------------------------------------------------------------------------------------------------------- */

typedef struct some_floats { const float *v; size_t n; } some_floats;

static int put_floats(void *user, const es_put *out, es_error *err)
{
    (void)err;
    const some_floats *f = user;
    out->put(out->user, f->v, f->n * sizeof *f->v);
    return ES_OK;
}

int es_export_persona(const es_adapter *a, es_model *m, const char *path, es_error *err)
{
    const es_model_info *i = es_model_get_info(m);
    size_t d = (size_t)i->d_model, rows = (size_t)i->n_layer + 1, n = strlen(path);
    bool torch = n > 3 && !strcmp(path + n - 3, ".pt");
    if (!torch && (n < 13 || strcmp(path + n - 12, ".safetensors") != 0))
        return es_fail(err, ES_ERR_USAGE, "%s: a persona tensor is written as .pt or .safetensors", path);
    float *v = NULL, *all = es_calloc(rows * d, sizeof *all);
    int rc = all ? es_export_directions(a, m, &v, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory for the directions");
    if (!rc) {
        memcpy(all + d, v, (rows - 1) * d * sizeof *all);
        some_floats f = {all, rows * d};
        es_torch_entry e = {.type = ES_TENSOR_F32, .n_dims = 2, .dim = {rows, d}, .bytes = f.n * sizeof *all, .put = put_floats, .user = &f};
        es_tensor_spec t = {"vector", ES_TENSOR_F32, 2, {rows, d}, all};
        rc = torch ? es_torch_write(path, &e, 1, err) : es_safetensors_write_file(path, &t, 1, NULL, err);
    }
    free(v);
    free(all);
    return rc;
}
