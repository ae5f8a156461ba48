/* Gemma Scope: 1 as npz (layer_20/width_16k/average_l0_71/params.npz), 2 as safetensors with a config.json that may be absent
 * (resid_post/layer_12_width_16k_l0_medium/params.safetensors). What the files do not say is read from the names of the folders.
 * Sources: Gemma Scope's tutorial, SAELens' gemma_2 and gemma_3 loaders. JumpReLU; b_dec is not taken off the input. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dictionary.h"

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

/* "layer_20" somewhere in the path, "average_l0_71" or "..._l0_medium", "embedding". */
static void take_names(es_weights *w, const es_place *p)
{
    es_dictionary_info *i = &w->info;
    char part[300], name[128] = "";
    int layer, end = 0;
    i->hook = ES_HOOK_UNKNOWN;
    i->layer = -2;
    if (es_place_part(p, "layer_", false, part, sizeof part) && sscanf(part, "%d%n", &layer, &end) == 1 && end && layer >= 0 && layer < 10000)
        i->layer = layer;
    else if (es_place_part(p, "embedding", false, part, sizeof part))
        i->layer = -1;
    if (es_place_part(p, "average_l0_", false, part, sizeof part) || es_place_part(p, "_l0_", true, part, sizeof part))
        snprintf(i->l0, sizeof i->l0, "%.23s", part);
    /* the name: the last folders, from the one that begins so */
    static const char *const first[] = {"/resid_post", "/attn_out", "/mlp_out", "/transcoder", "/layer_", "/embedding"};
    for (size_t k = 0; k < sizeof first / sizeof *first && !*name; k++) {
        const char *at = strstr(p->whole, first[k]);
        if (at)
            snprintf(name, sizeof name, "%.127s", at + 1);
    }
    for (char *c = name; *c; c++)
        if (*c == '/')
            *c = ' ';
    if (*name)
        memcpy(i->name, name, sizeof name);
}

static void take_hook(es_weights *w, es_hook_kind hook)
{
    w->info.hook = hook;
    if (w->info.layer >= -1)
        es_weights_hook_name(w, w->info.hook_name, sizeof w->info.hook_name);
    else
        w->info.hook = ES_HOOK_UNKNOWN;
}

/* The names are W_enc in 1 and w_enc in 2, and either in what others made of them. */
static const char *either(const es_arrays *a, const char *upper, const char *lower)
{
    return es_arrays_find(a, upper) ? upper : lower;
}

static int read_arrays(es_weights *w, es_error *err)
{
    es_arrays *a = &w->arrays;
    const char *enc = either(a, "W_enc", "w_enc"), *dec = either(a, "W_dec", "w_dec");
    const es_array *e = es_arrays_find(a, enc), *d = es_arrays_find(a, dec);
    if (!e || !d)
        return es_fail(err, ES_ERR_MISSING, "%s: there is no array \"%s\"", a->what, e ? dec : enc);
    if (e->n_dims != 2 || d->n_dims != 2)
        return es_fail(err, ES_ERR_FORMAT, "%s: W_enc and W_dec have %d and %d dimensions where two are expected: crosscoders and cross-layer transcoders are not supported",
                       a->what, e->n_dims, d->n_dims);
    int rc = es_weights_sizes(w, e->dim[0], d->dim[1], e->dim[1], err);
    size_t F = (size_t)w->info.n_features, d_out = (size_t)w->info.d_out;
    w->info.architecture = ES_SAE_JUMPRELU;
    snprintf(w->info.normalize_activations, sizeof w->info.normalize_activations, "none");
    if (!rc)
        rc = es_weights_matrices(w, enc, true, dec, false, err);
    if (!rc)
        rc = es_arrays_numbers(a, "b_enc", F, false, &w->b_enc, err);
    if (!rc)
        rc = es_arrays_numbers(a, "b_dec", d_out, false, &w->b_dec, err);
    if (!rc)
        rc = es_arrays_numbers(a, "threshold", F, true, &w->threshold, err);
    if (!rc && es_arrays_find(a, "affine_skip_connection")) {
        w->info.skip = true;
        rc = es_arrays_matrix(a, "affine_skip_connection", false, (size_t)w->info.d, d_out, &w->skip, err);
    }
    if (!rc && w->info.d != w->info.d_out)
        w->info.transcoder = true;
    return rc;
}

/* ---- Gemma Scope 1 -------------------------------------------------------------------------------------------------------------------------- */

static bool recognises_1(const es_place *p)
{
    return p->file[0] ? ends_with(p->file, ".npz") : es_place_has(p, "params.npz");
}

/* "gemma-scope-2b-pt-res" -> gemma-2-2b and the residual. */
static es_hook_kind repository(es_weights *w, const es_place *p)
{
    char part[300], size[40];
    if (!es_place_part(p, "gemma-scope-", false, part, sizeof part))
        return ES_HOOK_RESIDUAL;
    snprintf(size, sizeof size, "%.*s", (int)strcspn(part, "-"), part);
    snprintf(w->info.model_name, sizeof w->info.model_name, "gemma-2-%s%s", size, strstr(part, "-it") ? "-it" : "");
    if (strstr(part, "transcoder"))
        w->info.transcoder = true;
    return strstr(part, "transcoder") ? ES_HOOK_MLP_IN : strstr(part, "-mlp") ? ES_HOOK_MLP_OUT : strstr(part, "-att") ? ES_HOOK_ATTENTION : ES_HOOK_RESIDUAL;
}

static int read_1(es_weights *w, const es_place *p, es_error *err)
{
    snprintf(w->file, sizeof w->file, "%s/%s", p->folder, p->file[0] ? p->file : "params.npz");
    int rc = es_arrays_npz(&w->arrays, w->file, err);
    if (!rc)
        rc = read_arrays(w, err);
    if (rc)
        return rc;
    take_names(w, p);
    take_hook(w, repository(w, p));
    if (w->info.layer == -1) { /* trained on embeddings that the model multiplies by sqrt(d) */
        w->enc.scale = (float)(1 / sqrt((double)w->info.d));
        w->dec.scale = (float)sqrt((double)w->info.d);
    }
    return ES_OK;
}

/* The arrays of either; what a jumprelu dictionary that does not take b_dec off its input is. */
static int write_arrays(const es_weights *w, const char *folder, bool npz, es_error *err)
{
    es_numbers b_enc, threshold;
    char path[1300];
    int rc = es_weights_plain(w, npz ? "Gemma Scope" : "Gemma Scope 2", &b_enc, &threshold, err);
    es_named t[6] = {{.name = npz ? "W_enc" : "w_enc", .matrix = &w->enc, .transposed = true}, {.name = npz ? "W_dec" : "w_dec", .matrix = &w->dec},
                     {.name = "b_enc", .numbers = &b_enc}, {.name = "b_dec", .numbers = &w->b_dec}, {.name = "threshold", .numbers = &threshold}};
    size_t n = 5;
    if (w->info.skip)
        t[n++] = (es_named){.name = "affine_skip_connection", .matrix = &w->skip};
    snprintf(path, sizeof path, "%s/params.%s", folder, npz ? "npz" : "safetensors");
    if (!rc && npz && w->info.layer == -1 && w->enc.scale != 1)
        rc = es_fail(err, ES_ERR_USAGE, "%s: is a Gemma Scope dictionary of the embedding already: copy it", w->info.name);
    if (!rc)
        rc = npz ? es_named_npz(path, t, n, err) : es_named_safetensors(path, t, n, err);
    free(b_enc.v);
    free(threshold.v);
    return rc;
}

static int write_1(const es_weights *w, const char *folder, es_error *err)
{
    return write_arrays(w, folder, true, err);
}

const es_dictionary_kind es_gemma_scope = {
    .name = "gemma-scope", .what = "Gemma Scope 1: params.npz, in folders such as layer_20/width_16k/average_l0_71", .recognises = recognises_1, .read = read_1,
    .write = write_1,
};

/* ---- Gemma Scope 2 -------------------------------------------------------------------------------------------------------------------------- */

static bool recognises_2(const es_place *p)
{
    return p->file[0] ? !strcmp(p->file, "params.safetensors") || (!strcmp(p->file, "config.json") && es_place_has(p, "params.safetensors"))
                      : es_place_has(p, "params.safetensors");
}

static int refuse_kind(const es_place *p, const char *kind, es_error *err)
{
    return es_fail(err, ES_ERR_FORMAT, "%s: is a %s, which reads or writes several layers at once; sae and transcoder are supported", p->folder, kind);
}

static int take_config(es_weights *w, const es_place *p, es_error *err)
{
    char path[1300], part[300], kind[40], architecture[40], in[128];
    json_t *cfg = NULL;
    int rc = ES_OK;
    if (es_place_has(p, "config.json")) {
        snprintf(path, sizeof path, "%s/config.json", p->folder);
        rc = es_json_file(&cfg, path, err);
        if (rc)
            return rc;
    }
    es_copy_string(kind, sizeof kind, json_object_get(cfg, "type"));
    es_copy_string(architecture, sizeof architecture, json_object_get(cfg, "architecture"));
    es_copy_string(in, sizeof in, json_object_get(cfg, "hf_hook_point_in"));
    es_copy_string(w->info.hook_out, sizeof w->info.hook_out, json_object_get(cfg, "hf_hook_point_out"));
    es_copy_string(w->info.model_name, sizeof w->info.model_name, json_object_get(cfg, "model_name"));
    es_copy_string(w->info.model_hash, sizeof w->info.model_hash, json_object_get(cfg, "espalier_model_sha256"));
    json_t *l0 = json_object_get(cfg, "l0");
    if (json_is_number(l0))
        snprintf(w->info.l0, sizeof w->info.l0, "%g", json_number_value(l0));
    if (cfg && !json_is_object(cfg))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: is not a JSON object", path);
    else if (*architecture && strcmp(architecture, "jump_relu") != 0)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: architecture \"%s\" is not supported (jump_relu is)", path, architecture);
    else if (*kind && strcmp(kind, "sae") != 0 && strcmp(kind, "transcoder") != 0)
        rc = refuse_kind(p, kind, err);
    json_decref(cfg);
    if (rc)
        return rc;
    if (!*kind) {
        if (es_place_part(p, "crosscoder", false, part, sizeof part) || es_place_part(p, "clt", false, part, sizeof part))
            return refuse_kind(p, es_place_part(p, "clt", false, part, sizeof part) ? "clt" : "crosscoder", err);
        snprintf(kind, sizeof kind, "%s", es_place_part(p, "transcoder", false, part, sizeof part) ? "transcoder" : "sae");
    }
    w->info.transcoder = !strcmp(kind, "transcoder");
    if (*in) {
        if (es_weights_hook(w, in))
            es_weights_hook_name(w, w->info.hook_name, sizeof w->info.hook_name);
        else
            memcpy(w->info.hook_name, in, sizeof in);
        return ES_OK;
    }
    take_hook(w, w->info.transcoder                                              ? ES_HOOK_MLP_IN
                 : es_place_part(p, "attn_out", false, part, sizeof part)   ? ES_HOOK_ATTENTION
                 : es_place_part(p, "mlp_out", false, part, sizeof part)    ? ES_HOOK_MLP_OUT
                 : es_place_part(p, "resid_post", false, part, sizeof part) ? ES_HOOK_RESIDUAL
                                                                            : ES_HOOK_UNKNOWN);
    return ES_OK;
}

static int read_2(es_weights *w, const es_place *p, es_error *err)
{
    take_names(w, p);
    int rc = take_config(w, p, err);
    if (rc)
        return rc;
    snprintf(w->file, sizeof w->file, "%s/params.safetensors", p->folder);
    rc = es_arrays_safetensors(&w->arrays, w->file, err);
    return rc ? rc : read_arrays(w, err);
}

static int write_2(const es_weights *w, const char *folder, es_error *err)
{
    static const char *const hook[] = {
        [ES_HOOK_RESIDUAL] = "model.layers.%d.output", [ES_HOOK_ATTENTION] = "model.layers.%d.self_attn.o_proj.input",
        [ES_HOOK_ATTENTION_OUT] = "model.layers.%d.post_attention_layernorm.output", [ES_HOOK_MLP_IN] = "model.layers.%d.pre_feedforward_layernorm.output",
        [ES_HOOK_MLP_OUT] = "model.layers.%d.post_feedforward_layernorm.output", [ES_HOOK_UNKNOWN] = "",
    };
    const es_dictionary_info *i = &w->info;
    char in[80], out[80];
    int rc = write_arrays(w, folder, false, err);
    if (rc)
        return rc;
    if (i->hook != ES_HOOK_UNKNOWN && i->layer < 0)
        return es_fail(err, ES_ERR_USAGE, "%s: Gemma Scope 2 has no name for the embedding", i->name);
    snprintf(in, sizeof in, hook[i->hook], i->layer);
    snprintf(out, sizeof out, hook[i->transcoder ? ES_HOOK_MLP_OUT : i->hook], i->layer);
    json_t *cfg = json_pack("{s:s, s:s, s:i, s:s, s:s, s:b, s:s}", "hf_hook_point_in", in, "hf_hook_point_out", out, "width", i->n_features, "model_name",
                            i->model_name, "architecture", "jump_relu", "affine_connection", i->skip, "type", i->transcoder ? "transcoder" : "sae");
    if (cfg && *i->l0 && strspn(i->l0, "0123456789.") == strlen(i->l0))
        json_object_set_new(cfg, "l0", json_real(atof(i->l0)));
    if (cfg && *i->model_hash)
        json_object_set_new(cfg, "espalier_model_sha256", json_string(i->model_hash));
    return es_write_json(folder, "config.json", cfg, err);
}

const es_dictionary_kind es_gemma_scope_2 = {
    .name = "gemma-scope-2", .what = "Gemma Scope 2: params.safetensors, config.json", .recognises = recognises_2, .read = read_2, .write = write_2,
};
