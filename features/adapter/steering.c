/* steering: directions out of the files of other tools, as entries of a basis.
 *
 * GGUF control vectors (llama.cpp, repeng): general.architecture "controlvector", f32 tensors direction.N of width d. llama.cpp adds direction.N to what
 * leaves its block N, both counting from 0; there is none for block 0.
 * Persona-style (persona_vectors): one tensor [layers + 1, d], the mean differences of the hidden states, whose row 0 is the embedding's: row L + 1
 * belongs to the residual after layer L. */
#include "arrays.h"
#include "dictionary.h"
#include "adapters.h"
#include "gguf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool ends(const char *s, const char *with)
{
    size_t n = strlen(s), k = strlen(with);
    return n > k && !strcmp(s + n - k, with);
}

/* The file's name without its folder and ending, cut at a whole character. */
static void stem(const char *path, char out[64])
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path, *dot = strrchr(name, '.');
    size_t n = dot && dot > name ? (size_t)(dot - name) : strlen(name);
    if (n > 63)
        n = 63;
    n = es_utf8_whole(name, n);
    memcpy(out, name, n);
    out[n] = 0;
}

/* ---- GGUF --------------------------------------------------------------------------------------------------------------- */

/* The layers that the file has, for messages: "1-29". */
static void list_layers(const es_gguf *g, char out[80])
{
    int first = -1, last = -1, n = 0;
    for (size_t i = 0; i < g->n_tensor; i++) {
        int layer;
        char rest;
        if (sscanf(g->tensor[i].name, "direction.%d%c", &layer, &rest) != 1 || layer < 0)
            continue;
        first = n == 0 || layer < first ? layer : first;
        last = layer > last ? layer : last;
        n++;
    }
    if (n == 0)
        snprintf(out, 80, "none");
    else
        snprintf(out, 80, "%d in %d to %d", n, first, last);
}

static int from_gguf(float *out, const char *path, int layer, int d, es_error *err)
{
    es_gguf g;
    const char *architecture = NULL;
    size_t n = 0;
    char name[32], have[80];
    int rc = es_gguf_open(&g, path, err);
    if (rc)
        return rc;
    rc = es_gguf_str(&g, "general.architecture", true, &architecture, &n, err);
    if (!rc && (n != 13 || memcmp(architecture, "controlvector", 13)))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: is no control vector: its general.architecture is '%.*s'", path, n < 40 ? (int)n : 40, architecture);
    snprintf(name, sizeof name, "direction.%d", layer);
    const es_gguf_tensor *t = rc ? NULL : es_gguf_find_tensor(&g, name);
    if (!rc && !t) {
        list_layers(&g, have);
        rc = es_fail(err, ES_ERR_MISSING, "%s: has no %s; its directions: %s", path, name, have);
    }
    if (!rc && (t->type != ES_F32 || t->n_dims != 1))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: %s is no list of f32 numbers", path, name);
    if (!rc && t->ne[0] != (size_t)d)
        rc = es_fail(err, ES_ERR_MISMATCH, "%s: its directions have width %zu, the model's residual %d", path, t->ne[0], d);
    if (!rc)
        memcpy(out, t->data, (size_t)d * sizeof *out);
    es_gguf_close(&g);
    return rc;
}

/* ---- a tensor ------------------------------------------------------------------------------------------------------------- */

static int from_tensor(float *out, const char *path, int layer, int d, es_error *err)
{
    es_arrays a = {0};
    int rc = ends(path, ".safetensors") ? es_arrays_safetensors(&a, path, err) : es_arrays_torch(&a, path, err);
    const es_array *x = rc ? NULL : a.n == 1 ? &a.item[0] : es_arrays_find(&a, "vector");
    if (!rc && !x)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: holds %zu tensors and none is named \"vector\": which is meant?", path, a.n);
    bool one = x && x->n_dims == 1;
    if (!rc && !one && x->n_dims != 2)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: a steering vector is a tensor [layers + 1, d] or [d], this one has %d dimensions", path, x->n_dims);
    if (!rc && x->type != ES_TENSOR_F32 && x->type != ES_TENSOR_F16 && x->type != ES_TENSOR_BF16 && x->type != ES_TENSOR_F64)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: its numbers are of the type %s", path, es_tensor_type_name(x->type));
    size_t rows = !x || one ? 1 : x->dim[0], cols = !x ? 0 : x->dim[one ? 0 : 1], row = one ? 0 : (size_t)layer + 1;
    if (!rc && cols != (size_t)d)
        rc = es_fail(err, ES_ERR_MISMATCH, "%s: its directions have width %zu, the model's residual %d", path, cols, d);
    if (!rc && row >= rows)
        rc = es_fail(err, ES_ERR_MISSING, "%s: has no direction after layer %d: its %zu rows are of the embedding and of layers 0 to %lld", path, layer, rows, (long long)rows - 2);
    if (!rc) {
        es_matrix m = {.type = x->type, .data = x->data, .rows = rows, .cols = cols, .by_row = !x->fortran, .scale = 1};
        es_matrix_rows(&m, row, 1, out);
    }
    es_arrays_close(&a);
    return rc;
}

/* ---- either ---------------------------------------------------------------------------------------------------------------- */

static int make_unit(es_basis_vector *v, const char *path, es_error *err)
{
    double sum = 0;
    for (int j = 0; j < v->d; j++)
        sum += (double)v->unit[j] * v->unit[j];
    if (!isfinite(sum))
        return es_fail(err, ES_ERR_FORMAT, "%s: its direction after layer %d holds a value that is not a number or infinite", path, v->layer);
    v->length = (float)sqrt(sum);
    if (!(sum > 0) || !isfinite(v->length) || !isnormal(v->length))
        return es_fail(err, ES_ERR_FORMAT, "%s: its direction after layer %d is zero", path, v->layer);
    for (int j = 0; j < v->d; j++)
        v->unit[j] = (float)(v->unit[j] / sqrt(sum));
    return ES_OK;
}

int es_steering_read(es_basis_vector *out, const char *path, int layer, int d, const char *name, es_error *err)
{
    *out = (es_basis_vector){.layer = layer, .d = d};
    if (layer < 0 || d < 1 || d > ES_WIDTH_MAX)
        return es_fail(err, ES_ERR_USAGE, "%s: there is no direction after layer %d of width %d", path, layer, d);
    if (name && strlen(name) >= sizeof out->name)
        return es_fail(err, ES_ERR_USAGE, "'%.80s' is too long for a vector's name: 63 bytes go", name);
    if (name)
        snprintf(out->name, sizeof out->name, "%s", name);
    else
        stem(path, out->name);
    bool gguf = ends(path, ".gguf");
    if (!gguf && !ends(path, ".pt") && !ends(path, ".pth") && !ends(path, ".safetensors"))
        return es_fail(err, ES_ERR_USAGE, "%s: a steering vector is a .gguf control vector, or a tensor in a .pt or a .safetensors", path);
    out->unit = es_calloc((size_t)d, sizeof *out->unit);
    int rc = out->unit ? es_sha256_file(out->hash, path, err) : es_fail(err, ES_ERR_MEMORY, "no memory for a vector");
    rc = rc ? rc : gguf ? from_gguf(out->unit, path, layer, d, err) : from_tensor(out->unit, path, layer, d, err);
    rc = rc ? rc : make_unit(out, path, err);
    if (rc) {
        free(out->unit);
        out->unit = NULL;
    }
    return rc;
}
