#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dictionary.h"
#include "safetensors.h"

int es_dictionary_save(const char *folder, int d, int F, const float *enc, const float *dec, const float *b_enc, const float *b_dec, float threshold,
                       bool half, json_t *metadata, es_error *err)
{
    size_t n = (size_t)d, m = (size_t)F;
    es_buf bytes = {0};
    float *w_enc = es_calloc(n * m, sizeof *w_enc), *thresholds = es_calloc(m, sizeof *thresholds);
    int rc = es_dir_make(folder, err);
    if (!rc && (!w_enc || !thresholds))
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to write a dictionary of %d features", F);
    if (!rc) {
        for (size_t j0 = 0; j0 < m; j0 += 64)
            for (size_t i = 0; i < n; i++)
                for (size_t j = j0; j < m && j < j0 + 64; j++)
                    w_enc[i * m + j] = enc[j * n + i];
        for (size_t j = 0; j < m; j++)
            thresholds[j] = threshold;
        es_tensor_type type = half ? ES_TENSOR_F16 : ES_TENSOR_F32;
        es_tensor_spec t[] = { /* the vectors are small and stay exact */
            {"W_enc", type, 2, {n, m}, w_enc},          {"W_dec", type, 2, {m, n}, dec},     {"b_enc", ES_TENSOR_F32, 1, {m}, b_enc},
            {"b_dec", ES_TENSOR_F32, 1, {n}, b_dec},    {"threshold", ES_TENSOR_F32, 1, {m}, thresholds},
        };
        rc = es_safetensors_write(&bytes, t, sizeof t / sizeof *t, NULL, err);
    }
    char path[1200];
    snprintf(path, sizeof path, "%s/sae_weights.safetensors", folder);
    if (!rc)
        rc = es_file_write(path, bytes.data, bytes.len, err);
    es_buf_free(&bytes);
    free(w_enc);
    free(thresholds);
    if (rc)
        return rc;
    json_t *versioned = json_copy(metadata); /* without a version SAELens takes the keys for those before 6.0 and the metadata for nothing */
    if (versioned)
        json_object_set_new(versioned, "sae_lens_version", json_string("6.0.0"));
    json_t *cfg = json_pack("{s:s, s:i, s:i, s:s, s:s, s:b, s:s, s:s, s:o}", "architecture", "jumprelu", "d_in", d, "d_sae", F, "dtype", "float32", "device",
                            "cpu", "apply_b_dec_to_input", 1, "normalize_activations", "none", "reshape_activations", "none", "metadata", versioned);
    char *text = cfg ? json_dumps(cfg, JSON_INDENT(2)) : NULL;
    json_decref(cfg);
    if (!text)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to write a dictionary of %d features", F);
    snprintf(path, sizeof path, "%s/cfg.json", folder);
    rc = es_file_write(path, text, strlen(text), err);
    free(text);
    return rc;
}
