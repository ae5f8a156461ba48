/* sparsity: the file sparsity.safetensors that SAELens keeps beside a dictionary: "sparsity" [F], log10 of the share of tokens on which each feature is
 * active, plus 1e-10 (sae_lens/training/sae_trainer.py, _log_feature_sparsity). */
#include "dictionary.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define EPSILON 1e-10

static void place(const char *folder, char out[1300])
{
    snprintf(out, 1300, "%s/sparsity.safetensors", folder);
}

int es_sparsity_write(const char *folder, const float *density, int n, es_error *err)
{
    char path[1300];
    float *x = es_calloc((size_t)n + 1, sizeof *x);
    if (!x)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for %d densities", n);
    for (int i = 0; i < n; i++)
        x[i] = (float)log10((density[i] > 0 ? (double)density[i] : 0) + EPSILON);
    es_tensor_spec t = {"sparsity", ES_TENSOR_F32, 1, {(size_t)n}, x};
    place(folder, path);
    int rc = es_safetensors_write_file(path, &t, 1, NULL, err);
    free(x);
    return rc;
}

int es_sparsity_read(const char *folder, float *density, int n, es_error *err)
{
    char path[1300];
    es_safetensors *s;
    size_t dim = (size_t)n;
    place(folder, path);
    if (access(path, F_OK) != 0)
        return es_fail(err, ES_ERR_MISSING, "%s: is not there", path);
    int rc = es_safetensors_open(&s, path, err);
    if (rc)
        return rc;
    rc = es_safetensors_f32(s, "sparsity", 1, &dim, density, err);
    es_safetensors_free(s);
    for (int i = 0; !rc && i < n; i++) {
        double share = pow(10, (double)density[i]) - EPSILON;
        if (!(density[i] <= 1e-3f)) /* also what is no number: a share of over 1 is none */
            return es_fail(err, ES_ERR_FORMAT, "%s: feature %d has the value %g, which is no logarithm of a share", path, i, (double)density[i]);
        density[i] = (float)(share < 1e-12 ? 0 : share > 1 ? 1 : share);
    }
    return rc;
}

const float *es_dictionary_density(const es_dictionary *s, const es_atlas *a, float **own)
{
    const es_dictionary_info *i = es_dictionary_get_info(s);
    *own = NULL;
    if (a && es_atlas_features(a) == i->n_features)
        return es_atlas_density(a);
    if (a || !(*own = es_calloc((size_t)i->n_features + 1, sizeof **own)) || es_sparsity_read(i->folder, *own, i->n_features, NULL) == ES_OK)
        return *own;
    free(*own); /* a file that makes no sense is no reason not to open the dictionary */
    return *own = NULL;
}
