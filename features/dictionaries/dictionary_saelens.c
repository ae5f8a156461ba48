/* SAELens 6: cfg.json and sae_weights.safetensors; and the flat keys of the versions before. Source: sae_lens/saes, loading/pretrained_sae_loaders.py. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dictionary.h"

static bool recognises(const es_place *p)
{
    return es_place_has(p, "cfg.json") && (!p->file[0] || !strcmp(p->file, "cfg.json") || !strcmp(p->file, "sae_weights.safetensors"));
}

static json_t *field(json_t *cfg, const char *key)
{
    json_t *v = json_object_get(cfg, key);
    return v ? v : json_object_get(json_object_get(cfg, "metadata"), key);
}

static const struct { const char *name; es_architecture architecture; bool transcoder, skip; } architectures[] = {
    {"standard", ES_SAE_STANDARD, false, false}, {"topk", ES_SAE_TOPK, false, false}, {"jumprelu", ES_SAE_JUMPRELU, false, false},
    {"gated", ES_SAE_GATED, false, false}, {"transcoder", ES_SAE_STANDARD, true, false}, {"skip_transcoder", ES_SAE_STANDARD, true, true},
    {"jumprelu_transcoder", ES_SAE_JUMPRELU, true, false}, {"jumprelu_skip_transcoder", ES_SAE_JUMPRELU, true, true},
};
enum { N_ARCHITECTURES = sizeof architectures / sizeof *architectures };

/* cfg.json into info; *k: its json, to be looked at when the sizes are known. */
static int take_config(es_weights *w, json_t *cfg, const char *path, es_error *err)
{
    es_dictionary_info *i = &w->info;
    json_t *d = json_object_get(cfg, "d_in"), *d_out = json_object_get(cfg, "d_out"), *f = json_object_get(cfg, "d_sae"), *v;
    char architecture[64], reshape[40];
    if (!json_is_object(cfg))
        return es_fail(err, ES_ERR_FORMAT, "%s: is not a JSON object", path);
    es_copy_string(architecture, sizeof architecture, json_object_get(cfg, "architecture"));
    es_copy_string(reshape, sizeof reshape, json_object_get(cfg, "reshape_activations"));
    es_copy_string(i->model_name, sizeof i->model_name, field(cfg, "model_name"));
    es_copy_string(i->model_hash, sizeof i->model_hash, field(cfg, "espalier_model_sha256"));
    es_copy_string(i->hook_out, sizeof i->hook_out, field(cfg, "hook_name_out"));
    v = field(cfg, "hook_name");
    es_copy_string(i->hook_name, sizeof i->hook_name, v ? v : field(cfg, "hook_point"));
    v = json_object_get(cfg, "normalize_activations"); /* true and false before 5.0 */
    if (json_is_true(v))
        snprintf(i->normalize_activations, sizeof i->normalize_activations, "expected_average_only_in");
    else
        es_copy_string(i->normalize_activations, sizeof i->normalize_activations, v);
    v = json_object_get(cfg, "apply_b_dec_to_input");
    i->apply_b_dec_to_input = !v || json_is_true(v);
    i->rescale_acts_by_decoder_norm = json_is_true(json_object_get(cfg, "rescale_acts_by_decoder_norm"));
    json_t *k = json_object_get(cfg, "k"), *activation = json_object_get(cfg, "activation_fn_str");
    if (!k) { /* keys before 6.0 */
        k = json_object_get(json_object_get(cfg, "activation_fn_kwargs"), "k");
        activation = activation ? activation : json_object_get(cfg, "activation_fn");
        if (json_is_string(activation) && strcmp(json_string_value(activation), "topk") == 0)
            snprintf(architecture, sizeof architecture, "topk");
    }
    if (!*architecture)
        snprintf(architecture, sizeof architecture, "standard");
    int a = 0;
    while (a < N_ARCHITECTURES && strcmp(architectures[a].name, architecture) != 0)
        a++;
    if (!json_is_integer(d) || json_integer_value(d) < 1 || json_integer_value(d) > ES_WIDTH_MAX || !json_is_integer(f) || json_integer_value(f) < 1
        || json_integer_value(f) > ES_FEATURES_MAX)
        return es_fail(err, ES_ERR_FORMAT, "%s: d_in and d_sae must be sizes (at most %d and %d)", path, (int)ES_WIDTH_MAX, (int)ES_FEATURES_MAX);
    if (a == N_ARCHITECTURES)
        return es_fail(err, ES_ERR_FORMAT, "%s: architecture \"%s\" is not supported (standard, topk, jumprelu, gated and their transcoders are)", path, architecture);
    if (architectures[a].transcoder && (!json_is_integer(d_out) || json_integer_value(d_out) < 1 || json_integer_value(d_out) > ES_WIDTH_MAX))
        return es_fail(err, ES_ERR_FORMAT, "%s: a transcoder needs d_out, at most %d", path, (int)ES_WIDTH_MAX);
    if (*reshape && strcmp(reshape, "none") != 0 && strcmp(reshape, "hook_z") != 0)
        return es_fail(err, ES_ERR_FORMAT, "%s: reshape_activations \"%s\" is not supported", path, reshape);
    i->architecture = architectures[a].architecture;
    i->transcoder = architectures[a].transcoder;
    i->skip = architectures[a].skip;
    i->d = (int)json_integer_value(d);
    i->d_out = i->transcoder ? (int)json_integer_value(d_out) : i->d;
    i->n_features = (int)json_integer_value(f);
    if (i->transcoder)
        i->apply_b_dec_to_input = false;
    v = field(cfg, "hook_layer");
    if (*i->hook_name) {
        es_weights_hook(w, i->hook_name);
    } else if (json_is_integer(v)) {
        if (json_integer_value(v) < -1 || json_integer_value(v) > 9999)
            return es_fail(err, ES_ERR_FORMAT, "%s: layer %lld makes no sense", path, (long long)json_integer_value(v));
        i->layer = (int)json_integer_value(v);
    } else {
        i->hook = ES_HOOK_UNKNOWN;
    }
    if (i->architecture == ES_SAE_TOPK && (!json_is_integer(k) || json_integer_value(k) < 1 || json_integer_value(k) > i->n_features))
        return es_fail(err, ES_ERR_FORMAT, "%s: a topk dictionary needs k between 1 and d_sae", path);
    i->k = i->architecture == ES_SAE_TOPK ? (int)json_integer_value(k) : 0;
    const char *n = i->normalize_activations;
    w->norm = strcmp(n, "constant_norm_rescale") == 0 ? ES_NORM_CONSTANT : strcmp(n, "layer_norm") == 0 ? ES_NORM_LAYER : ES_NORM_NONE;
    if (w->norm == ES_NORM_NONE && *n && strcmp(n, "none") != 0 && strcmp(n, "expected_average_only_in") != 0)
        return es_fail(err, ES_ERR_FORMAT, "%s: normalize_activations \"%s\" is not supported%s", path, n,
                       strcmp(n, "covariance_whitening") == 0 ? " unless it is folded (SAELens' fold_activation_whitening)" : "");
    return ES_OK;
}

/* expected_average_only_in: SAELens folds its factor when it saves what is to be used, and applies none when it runs. A checkpoint of a training has it
 * beside the weights, unfolded: W_enc s, W_dec / s, b_dec / s. */
static int fold_average(es_weights *w, const es_place *p, es_error *err)
{
    char path[1300];
    json_t *v;
    if (strcmp(w->info.normalize_activations, "expected_average_only_in") != 0 || !es_place_has(p, "activation_scaler.json"))
        return ES_OK;
    snprintf(path, sizeof path, "%s/activation_scaler.json", p->folder);
    int rc = es_json_file(&v, path, err);
    if (rc)
        return rc;
    double s = json_number_value(json_object_get(v, "scaling_factor"));
    json_decref(v);
    if (!(s > 1e-20) || !(s < 1e20))
        return es_fail(err, ES_ERR_FORMAT, "%s: there is no scaling_factor over 0", path);
    w->enc.scale = (float)s;
    w->dec.scale = (float)(1 / s);
    for (size_t i = 0; i < w->b_dec.n; i++)
        w->b_dec.v[i] /= (float)s;
    w->b_dec.type = ES_TENSOR_F32;
    snprintf(w->info.normalize_activations, sizeof w->info.normalize_activations, "none");
    return ES_OK;
}

/* Before 6.0 a dictionary could have a factor for each feature's output, of ones unless it was fine-tuned. */
static int check_factor(const es_weights *w, es_error *err)
{
    es_numbers v;
    if (!es_arrays_find(&w->arrays, "scaling_factor"))
        return ES_OK;
    int rc = es_arrays_numbers(&w->arrays, "scaling_factor", (size_t)w->info.n_features, true, &v, err);
    for (size_t i = 0; i < v.n && !rc; i++)
        if (fabsf(v.v[i] - 1) > 1e-6f)
            rc = es_fail(err, ES_ERR_FORMAT, "%s: it has a fine-tuned scaling_factor, which is not supported", w->arrays.what);
    free(v.v);
    return rc;
}

static int read_folder(es_weights *w, const es_place *p, es_error *err)
{
    char path[1300];
    json_t *cfg;
    snprintf(path, sizeof path, "%s/cfg.json", p->folder);
    int rc = es_json_file(&cfg, path, err);
    if (rc)
        return rc;
    rc = take_config(w, cfg, path, err);
    json_decref(cfg);
    snprintf(w->file, sizeof w->file, "%s/sae_weights.safetensors", p->folder);
    if (!rc)
        rc = es_arrays_safetensors(&w->arrays, w->file, err);
    if (!rc)
        rc = es_weights_matrices(w, "W_enc", true, "W_dec", false, err);
    size_t d_out = (size_t)w->info.d_out, F = (size_t)w->info.n_features;
    const es_arrays *a = &w->arrays;
    if (!rc)
        rc = es_arrays_numbers(a, "b_dec", d_out, false, &w->b_dec, err);
    if (!rc && w->info.architecture == ES_SAE_GATED) {
        if (!(rc = es_arrays_numbers(a, "b_gate", F, false, &w->b_gate, err)) && !(rc = es_arrays_numbers(a, "b_mag", F, false, &w->b_mag, err)))
            rc = es_arrays_numbers(a, "r_mag", F, false, &w->r_mag, err);
    } else if (!rc) {
        bool none = w->info.architecture == ES_SAE_STANDARD && !es_arrays_find(a, "b_enc");
        rc = none ? es_numbers_new(&w->b_enc, F, 0, err) : es_arrays_numbers(a, "b_enc", F, false, &w->b_enc, err);
    }
    if (!rc && w->info.architecture == ES_SAE_JUMPRELU)
        rc = es_arrays_numbers(a, "threshold", F, true, &w->threshold, err);
    if (!rc && w->info.skip) /* [d_out, d] */
        rc = es_arrays_matrix(a, "W_skip", true, (size_t)w->info.d, d_out, &w->skip, err);
    if (!rc)
        rc = check_factor(w, err);
    return rc ? rc : fold_average(w, p, err);
}

static int write_folder(const es_weights *w, const char *folder, es_error *err)
{
    const es_dictionary_info *i = &w->info;
    char path[1300], hook[160];
    int a = 0;
    while (architectures[a].architecture != i->architecture || architectures[a].transcoder != i->transcoder || architectures[a].skip != i->skip)
        if (++a == N_ARCHITECTURES)
            return es_fail(err, ES_ERR_USAGE, "%s: SAELens has no such transcoder", i->name);
    es_named t[8] = {{.name = "W_enc", .matrix = &w->enc, .transposed = true}, {.name = "W_dec", .matrix = &w->dec}, {.name = "b_dec", .numbers = &w->b_dec}};
    size_t n = 3;
    if (i->architecture == ES_SAE_GATED) {
        t[n++] = (es_named){.name = "b_gate", .numbers = &w->b_gate};
        t[n++] = (es_named){.name = "b_mag", .numbers = &w->b_mag};
        t[n++] = (es_named){.name = "r_mag", .numbers = &w->r_mag};
    } else {
        t[n++] = (es_named){.name = "b_enc", .numbers = &w->b_enc};
    }
    if (i->architecture == ES_SAE_JUMPRELU)
        t[n++] = (es_named){.name = "threshold", .numbers = &w->threshold};
    if (i->skip)
        t[n++] = (es_named){.name = "W_skip", .matrix = &w->skip, .transposed = true};
    snprintf(path, sizeof path, "%s/sae_weights.safetensors", folder);
    int rc = es_named_safetensors(path, t, n, err);
    if (rc)
        return rc;
    const char *norm = w->norm == ES_NORM_NONE ? "none" : i->normalize_activations;
    json_t *metadata = json_pack("{s:s, s:s, s:s}", "sae_lens_version", "6.0.0", "model_name", i->model_name, "hook_name",
                                 i->hook == ES_HOOK_UNKNOWN || !strncmp(i->hook_name, "blocks.", 7) ? i->hook_name : es_weights_hook_name(w, hook, sizeof hook));
    if (metadata && *i->model_hash)
        json_object_set_new(metadata, "espalier_model_sha256", json_string(i->model_hash));
    if (metadata && *i->hook_out)
        json_object_set_new(metadata, "hook_name_out", json_string(i->hook_out));
    json_t *cfg = json_pack("{s:s, s:i, s:i, s:s, s:s, s:b, s:s, s:s, s:o}", "architecture", architectures[a].name, "d_in", i->d, "d_sae", i->n_features, "dtype",
                            "float32", "device", "cpu", "apply_b_dec_to_input", i->apply_b_dec_to_input, "normalize_activations", norm, "reshape_activations",
                            i->hook == ES_HOOK_ATTENTION ? "hook_z" : "none", "metadata", metadata);
    if (cfg && i->architecture == ES_SAE_TOPK) {
        json_object_set_new(cfg, "k", json_integer(i->k));
        json_object_set_new(cfg, "rescale_acts_by_decoder_norm", json_boolean(i->rescale_acts_by_decoder_norm));
    }
    if (cfg && i->transcoder)
        json_object_set_new(cfg, "d_out", json_integer(i->d_out));
    return es_write_json(folder, "cfg.json", cfg, err);
}

const es_dictionary_kind es_saelens = {
    .name = "saelens", .what = "SAELens 6 and before: cfg.json, sae_weights.safetensors", .recognises = recognises, .read = read_folder, .write = write_folder,
};
