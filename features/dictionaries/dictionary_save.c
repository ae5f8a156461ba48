#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dictionary.h"
#include "safetensors.h"

static json_t *config(const es_trained *a, json_t *metadata)
{
    json_t *versioned = json_copy(metadata); /* without a version SAELens takes the keys for those before 6.0 and the metadata for nothing */
    if (versioned)
        json_object_set_new(versioned, "sae_lens_version", json_string("6.0.0"));
    json_t *cfg = json_pack("{s:s, s:i, s:i, s:s, s:s, s:b, s:s, s:s, s:o}", "architecture", es_architecture_name(a->architecture), "d_in", a->d, "d_sae", a->F, "dtype",
                            "float32", "device", "cpu", "apply_b_dec_to_input", 1, "normalize_activations", "none", "reshape_activations", "none", "metadata", versioned);
    if (cfg && a->architecture == ES_SAE_TOPK) {
        json_object_set_new(cfg, "k", json_integer(a->k));
        json_object_set_new(cfg, "rescale_acts_by_decoder_norm", json_false());
    }
    return cfg;
}

int es_dictionary_save_trained(const char *folder, const es_trained *a, bool half, json_t *metadata, es_error *err)
{
    size_t n = (size_t)a->d, m = (size_t)a->F;
    es_buf bytes = {0};
    float *w_enc = es_calloc(n * m, sizeof *w_enc);
    int rc = es_dir_make(folder, err);
    if (!rc && !w_enc)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to write a dictionary of %d features", a->F);
    if (!rc) {
        for (size_t j0 = 0; j0 < m; j0 += 64)
            for (size_t i = 0; i < n; i++)
                for (size_t j = j0; j < m && j < j0 + 64; j++)
                    w_enc[i * m + j] = a->enc[j * n + i];
        es_tensor_type type = half ? ES_TENSOR_F16 : ES_TENSOR_F32;
        bool gated = a->architecture == ES_SAE_GATED;
        es_tensor_spec t[6] = { /* the vectors are small and stay exact */
            {"W_enc", type, 2, {n, m}, w_enc}, {"W_dec", type, 2, {m, n}, a->dec}, {gated ? "b_gate" : "b_enc", ES_TENSOR_F32, 1, {m}, a->b_enc},
            {"b_dec", ES_TENSOR_F32, 1, {n}, a->b_dec},
        };
        size_t count = 4;
        if (a->architecture == ES_SAE_JUMPRELU)
            t[count++] = (es_tensor_spec){"threshold", ES_TENSOR_F32, 1, {m}, a->threshold};
        if (gated) {
            t[count++] = (es_tensor_spec){"b_mag", ES_TENSOR_F32, 1, {m}, a->b_mag};
            t[count++] = (es_tensor_spec){"r_mag", ES_TENSOR_F32, 1, {m}, a->r_mag};
        }
        rc = es_safetensors_write(&bytes, t, count, NULL, err);
    }
    char path[1200];
    snprintf(path, sizeof path, "%s/sae_weights.safetensors", folder);
    if (!rc)
        rc = es_file_write(path, bytes.data, bytes.len, err);
    es_buf_free(&bytes);
    free(w_enc);
    if (rc)
        return rc;
    json_t *cfg = config(a, metadata);
    char *text = cfg ? json_dumps(cfg, JSON_INDENT(2)) : NULL;
    json_decref(cfg);
    if (!text)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to write a dictionary of %d features", a->F);
    snprintf(path, sizeof path, "%s/cfg.json", folder);
    rc = es_file_write(path, text, strlen(text), err);
    free(text);
    return rc;
}

int es_dictionary_save(const char *folder, int d, int F, const float *enc, const float *dec, const float *b_enc, const float *b_dec, float threshold,
                       bool half, json_t *metadata, es_error *err)
{
    float *thresholds = es_calloc((size_t)F, sizeof *thresholds);
    if (!thresholds)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to write a dictionary of %d features", F);
    for (int j = 0; j < F; j++)
        thresholds[j] = threshold;
    es_trained a = {.architecture = ES_SAE_JUMPRELU, .d = d, .F = F, .enc = enc, .dec = dec, .b_enc = b_enc, .b_dec = b_dec, .threshold = thresholds};
    int rc = es_dictionary_save_trained(folder, &a, half, metadata, err);
    free(thresholds);
    return rc;
}
