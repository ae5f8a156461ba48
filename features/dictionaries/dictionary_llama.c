/* Llama Scope: hyperparams.json and checkpoints/final.safetensors. JumpReLU with one threshold for all. The dictionary was trained on x s with
 * s = sqrt(d) / mean |x|, which is folded: W_enc s, W_dec / s_out, b_dec / s_out; the threshold, which is stored in the units of x, times s. Source:
 * SAELens' llama_scope loader. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dictionary.h"

static bool has_weights(const es_place *p)
{
    return es_place_has(p, "hyperparams.json") && es_place_has(p, "checkpoints/final.safetensors");
}

/* The folder itself, its hyperparams.json, or the weights in the folder below. */
static bool recognises(const es_place *p)
{
    if (!p->file[0] || !strcmp(p->file, "hyperparams.json"))
        return has_weights(p);
    return !strcmp(p->file, "final.safetensors") && es_place_has(p, "../hyperparams.json");
}

static bool positive(json_t *v, double *out)
{
    *out = json_number_value(v);
    return json_is_number(v) && *out > 1e-20 && *out < 1e20;
}

static int take_config(es_weights *w, const char *path, double *in, double *out, double *threshold, es_error *err)
{
    json_t *cfg;
    int rc = es_json_file(&cfg, path, err);
    if (rc)
        return rc;
    json_t *d = json_object_get(cfg, "d_model"), *F = json_object_get(cfg, "d_sae"), *norm = json_object_get(cfg, "dataset_average_activation_norm");
    json_t *t = json_object_get(cfg, "jump_relu_threshold");
    char act[40], hook_out[128];
    es_copy_string(act, sizeof act, json_object_get(cfg, "act_fn"));
    es_copy_string(w->info.hook_name, sizeof w->info.hook_name, json_object_get(cfg, "hook_point_in"));
    es_copy_string(hook_out, sizeof hook_out, json_object_get(cfg, "hook_point_out"));
    es_copy_string(w->info.model_name, sizeof w->info.model_name, json_object_get(cfg, "model_name"));
    es_copy_string(w->info.model_hash, sizeof w->info.model_hash, json_object_get(cfg, "espalier_model_sha256"));
    *threshold = json_number_value(t);
    if (!json_is_integer(d) || json_integer_value(d) < 1 || json_integer_value(d) > ES_WIDTH_MAX || !json_is_integer(F) || json_integer_value(F) < 1
        || json_integer_value(F) > ES_FEATURES_MAX)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: d_model and d_sae must be sizes (at most %d and %d)", path, (int)ES_WIDTH_MAX, (int)ES_FEATURES_MAX);
    else if (*act && strcmp(act, "jumprelu") != 0)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: act_fn \"%s\" is not supported (jumprelu is)", path, act);
    else if (!json_is_number(t) || !isfinite(*threshold))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: there is no jump_relu_threshold", path);
    else if (!positive(json_object_get(norm, "in"), in) || !positive(json_object_get(norm, "out") ? json_object_get(norm, "out") : json_object_get(norm, "in"), out))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: dataset_average_activation_norm must be {\"in\", \"out\"} over 0", path);
    es_weights_hook(w, w->info.hook_name);
    w->info.transcoder = *hook_out && strcmp(hook_out, w->info.hook_name) != 0;
    if (w->info.transcoder)
        snprintf(w->info.hook_out, sizeof w->info.hook_out, "%s", hook_out);
    w->info.apply_b_dec_to_input = json_is_true(json_object_get(cfg, "apply_decoder_bias_to_pre_encoder"));
    if (!rc) {
        w->info.d = w->info.d_out = (int)json_integer_value(d);
        w->info.n_features = (int)json_integer_value(F);
        *in = sqrt((double)w->info.d) / *in;
        *out = sqrt((double)w->info.d) / *out;
    }
    json_decref(cfg);
    return rc;
}

static int read_folder(es_weights *w, const es_place *p, es_error *err)
{
    bool below = !strcmp(p->file, "final.safetensors");
    char path[1300];
    double in, out, threshold;
    snprintf(path, sizeof path, "%s/%shyperparams.json", p->folder, below ? "../" : "");
    int rc = take_config(w, path, &in, &out, &threshold, err);
    if (rc)
        return rc;
    es_copy_string(w->info.normalize_activations, sizeof w->info.normalize_activations, NULL);
    snprintf(w->file, sizeof w->file, "%s/%sfinal.safetensors", p->folder, below ? "" : "checkpoints/");
    w->info.architecture = ES_SAE_JUMPRELU;
    rc = es_arrays_safetensors(&w->arrays, w->file, err);
    if (!rc)
        rc = es_weights_matrices(w, "encoder.weight", false, "decoder.weight", true, err);
    if (!rc)
        rc = es_arrays_numbers(&w->arrays, "encoder.bias", (size_t)w->info.n_features, false, &w->b_enc, err);
    if (!rc)
        rc = es_arrays_numbers(&w->arrays, "decoder.bias", (size_t)w->info.d, false, &w->b_dec, err);
    if (!rc)
        rc = es_numbers_new(&w->threshold, (size_t)w->info.n_features, (float)(threshold * in), err);
    if (rc)
        return rc;
    w->enc.scale = (float)in;
    w->dec.scale = (float)(1 / out);
    for (size_t i = 0; i < w->b_dec.n && out != 1; i++)
        w->b_dec.v[i] = (float)((double)w->b_dec.v[i] / out);
    if (out != 1)
        w->b_dec.type = ES_TENSOR_F32;
    return ES_OK;
}

/* Written with s = 1: the weights as they are used. */
static int write_folder(const es_weights *w, const char *folder, es_error *err)
{
    const es_dictionary_info *i = &w->info;
    es_numbers b_enc = {0}, threshold = {0};
    char path[1300], hook[160];
    if (i->d != i->d_out || i->skip)
        return es_fail(err, ES_ERR_USAGE, "%s: Llama Scope has no place for a transcoder with other widths or a skip", i->name);
    int rc = es_weights_plain(w, "Llama Scope", &b_enc, &threshold, err);
    for (size_t j = 1; j < threshold.n && !rc; j++)
        if (threshold.v[j] != threshold.v[0])
            rc = es_fail(err, ES_ERR_USAGE, "%s: Llama Scope has one threshold for all features; these have their own", i->name);
    es_named t[] = {{.name = "encoder.weight", .matrix = &w->enc}, {.name = "encoder.bias", .numbers = &b_enc},
                    {.name = "decoder.weight", .matrix = &w->dec, .transposed = true}, {.name = "decoder.bias", .numbers = &w->b_dec}};
    snprintf(path, sizeof path, "%s/checkpoints", folder);
    if (!rc)
        rc = es_dir_make(path, err);
    snprintf(path, sizeof path, "%s/checkpoints/final.safetensors", folder);
    if (!rc)
        rc = es_named_safetensors(path, t, sizeof t / sizeof *t, err);
    if (!rc) {
        es_weights_hook_name(w, hook, sizeof hook);
        double norm = sqrt((double)i->d);
        json_t *cfg = json_pack("{s:s, s:i, s:i, s:f, s:s, s:s, s:s, s:b, s:b, s:{s:f, s:f}}", "act_fn", "jumprelu", "d_model", i->d, "d_sae", i->n_features,
                                "jump_relu_threshold", (double)threshold.v[0], "norm_activation", "dataset-wise", "hook_point_in", hook, "hook_point_out",
                                *i->hook_out ? i->hook_out : hook, "use_decoder_bias", 1, "apply_decoder_bias_to_pre_encoder", 0,
                                "dataset_average_activation_norm", "in", norm, "out", norm);
        if (cfg && *i->model_name)
            json_object_set_new(cfg, "model_name", json_string(i->model_name));
        if (cfg && *i->model_hash)
            json_object_set_new(cfg, "espalier_model_sha256", json_string(i->model_hash));
        rc = es_write_json(folder, "hyperparams.json", cfg, err);
    }
    free(b_enc.v);
    free(threshold.v);
    return rc;
}

const es_dictionary_kind es_llama_scope = {
    .name = "llama-scope", .what = "Llama Scope: hyperparams.json, checkpoints/final.safetensors", .recognises = recognises, .read = read_folder,
    .write = write_folder,
};
