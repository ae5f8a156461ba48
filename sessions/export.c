/* export: an adapter in the files of others.
 *
 * control-vector: a GGUF of architecture "controlvector" with tensors direction.N [d_model] f32, as llama.cpp reads them
 * (common_control_vector_load): N counts from 1, and llama.cpp's build_cvec adds direction.N to what leaves block il = N, where its il
 * counts from 0 as our layers do. So the residual after our layer L is direction.L, and nothing can be added after layer 0. For the form
 * bias the file is exact (at scale 1 over all layers); for lora it is the mean change that the adapter's matrices make at each layer.
 *
 * npz: a zip of stored .npy members (NPY format 1.0), which numpy.load opens without pickles.
 * json: what a person or a script wants to know: features with labels, coefficients, bounds, hashes, influence. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>

#include "export_internal.h"

int es_export_directions(const es_adapter *a, es_model *m, float **out, es_error *err)
{
    const es_model_info *i = es_model_get_info(m);
    *out = es_calloc((size_t)i->n_layer * (size_t)i->d_model, sizeof **out);
    int rc = *out ? es_adapter_directions(a, *out, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory for the directions");
    for (size_t k = 0; !rc && k < (size_t)i->n_layer * (size_t)i->d_model; k++)
        if (!isfinite((*out)[k]))
            rc = es_fail(err, ES_ERR_LIMIT, "the adapter holds numbers that are not finite: it cannot be exported");
    if (rc) {
        free(*out);
        *out = NULL;
    }
    return rc;
}

static bool nonzero(const float *x, int n)
{
    for (int i = 0; i < n; i++)
        if (x[i] != 0)
            return true;
    return false;
}

/* ---- GGUF ------------------------------------------------------------------------------------------------------------------------------ */

static int control_vector(es_buf *b, const es_adapter *a, es_model *m, const es_dictionary *s, es_error *err)
{
    const es_model_info *i = es_model_get_info(m);
    char hash[65], note[160];
    float *v = NULL;
    int rc = es_model_hash(m, hash, err), n = 0;
    if (!rc)
        rc = es_export_directions(a, m, &v, err);
    if (rc)
        return rc;
    size_t d = (size_t)i->d_model;
    if (nonzero(v, i->d_model)) {
        free(v);
        return es_fail(err, ES_ERR_USAGE, "this adapter acts after layer 0, where a control vector cannot: its layers start at 1");
    }
    for (int l = 1; l < i->n_layer; l++)
        n += nonzero(v + (size_t)l * d, i->d_model);
    if (!n) {
        free(v);
        return es_fail(err, ES_ERR_USAGE, "this adapter changes nothing yet: there is no direction to export");
    }
    bool bias = es_adapter_get_options(a)->form == ES_FORM_BIAS;
    if (bias)
        snprintf(note, sizeof note, "exact: the residual after layer N gains direction.N");
    else
        snprintf(note, sizeof note, "mean change of a %s adapter over its experiences, layer by layer", es_form_name(es_adapter_get_options(a)->form));
    es_buf_add(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, (uint64_t)n);
    int parts = es_adapter_parts(a);
    put_u64(b, parts > 1 ? (uint64_t)(6 + parts) : s ? 7 : 6);
    es_gguf_string(b, "general.architecture", "controlvector");
    es_gguf_string(b, "general.name", es_adapter_basis(a) ? es_adapter_basis(a)->name : "espalier");
    es_gguf_string(b, "controlvector.model_hint", i->architecture);
    es_gguf_text(b, "controlvector.layer_count");
    put_u32(b, GGUF_U32);
    put_u32(b, (uint32_t)n);
    es_gguf_string(b, "espalier.model_sha256", hash);
    es_gguf_string(b, "espalier.note", note);
    for (int k = 0; parts > 1 && k < parts; k++) {
        char key[48];
        snprintf(key, sizeof key, "espalier.dictionary_sha256.%d", k);
        es_gguf_string(b, key, es_adapter_part_basis(a, k, NULL)->dictionary_hash);
    }
    if (s && parts <= 1)
        es_gguf_string(b, "espalier.dictionary_sha256", es_dictionary_get_info(s)->hash);
    size_t bytes = d * sizeof(float), step = (bytes + GGUF_ALIGN - 1) / GGUF_ALIGN * GGUF_ALIGN;
    for (int l = 1, k = 0; l < i->n_layer; l++)
        if (nonzero(v + (size_t)l * d, i->d_model)) {
            char name[32];
            snprintf(name, sizeof name, "direction.%d", l);
            es_gguf_text(b, name);
            put_u32(b, 1);
            put_u64(b, d);
            put_u32(b, ES_F32);
            put_u64(b, (uint64_t)k++ * step);
        }
    static const char zeros[GGUF_ALIGN];
    es_buf_add(b, zeros, (GGUF_ALIGN - b->len % GGUF_ALIGN) % GGUF_ALIGN);
    for (int l = 1; l < i->n_layer; l++)
        if (nonzero(v + (size_t)l * d, i->d_model)) {
            es_buf_add(b, v + (size_t)l * d, bytes);
            es_buf_add(b, zeros, step - bytes);
        }
    free(v);
    return ES_OK;
}

/* ---- npz --------------------------------------------------------------------------------------------------------------------------------- */

typedef struct zip { es_buf file, directory; int n; bool failed; } zip;

/* One stored member. Dates are the format's earliest, so that the same adapter gives the same file. */
static void zip_add(zip *z, const char *name, const es_buf *data)
{
    uint32_t crc = (uint32_t)crc32_z(crc32_z(0, NULL, 0), (const Bytef *)data->data, data->len);
    size_t at = z->file.len;
    if (data->failed || data->len > UINT32_MAX / 2 || at > UINT32_MAX / 2) { /* no zip64 */
        z->failed = true;
        return;
    }
    for (int central = 0; central < 2; central++) {
        es_buf *b = central ? &z->directory : &z->file;
        put_u32(b, central ? 0x02014b50 : 0x04034b50);
        if (central)
            put_u16(b, 20); /* made by 2.0 */
        put_u16(b, 20);     /* needs 2.0 */
        put_u16(b, 0);
        put_u16(b, 0);      /* stored */
        put_u16(b, 0);
        put_u16(b, 0x21);   /* 1980-01-01 */
        put_u32(b, crc);
        put_u32(b, (uint32_t)data->len);
        put_u32(b, (uint32_t)data->len);
        put_u16(b, (uint16_t)strlen(name));
        put_u16(b, 0);
        if (central) {
            put_u16(b, 0);
            put_u16(b, 0);
            put_u16(b, 0);
            put_u32(b, 0);
            put_u32(b, (uint32_t)at);
        }
        es_buf_str(b, name);
    }
    es_buf_add(&z->file, data->data, data->len);
    z->n++;
}

static void zip_end(zip *z)
{
    size_t at = z->file.len;
    es_buf_add(&z->file, z->directory.data, z->directory.len);
    put_u32(&z->file, 0x06054b50);
    put_u16(&z->file, 0);
    put_u16(&z->file, 0);
    put_u16(&z->file, (uint16_t)z->n);
    put_u16(&z->file, (uint16_t)z->n);
    put_u32(&z->file, (uint32_t)z->directory.len);
    put_u32(&z->file, (uint32_t)at);
    put_u16(&z->file, 0);
}

/* descr: numpy's type ("<f4", "<i4", "|S64"); cols 0: one dimension. */
static void npy_add(zip *z, const char *name, const char *descr, size_t size, const void *data, size_t rows, size_t cols)
{
    es_buf b = {0}, head = {0};
    char member[80];
    snprintf(member, sizeof member, "%s.npy", name);
    es_buf_printf(&head, "{'descr': '%s', 'fortran_order': False, 'shape': (%zu,", descr, rows);
    if (cols)
        es_buf_printf(&head, " %zu", cols);
    es_buf_str(&head, "), }");
    while ((10 + head.len + 1) % 64)
        es_buf_str(&head, " ");
    es_buf_str(&head, "\n");
    es_buf_add(&b, "\x93NUMPY\x01\x00", 8);
    put_u16(&b, (uint16_t)head.len);
    es_buf_add(&b, head.data, head.len);
    es_buf_add(&b, data, size * rows * (cols ? cols : 1));
    b.failed |= head.failed;
    zip_add(z, member, &b);
    es_buf_free(&head);
    es_buf_free(&b);
}

/* Features with their coefficients and bounds, in the adapter's order; of several parts also which part and layer each is of. */
static void npz_features(zip *z, const es_adapter *a)
{
    size_t K = (size_t)es_adapter_features(a);
    int parts = es_adapter_parts(a);
    int32_t *number = es_calloc(3 * K + 1, sizeof *number);
    float *bound = es_calloc(2 * K + 1, sizeof *bound);
    z->failed |= !number || !bound;
    if (number && bound) {
        for (size_t k = 0; k < K; k++) {
            int first, feature, part = es_adapter_part_of(a, (int)k, &feature);
            const es_basis *b = es_adapter_part_basis(a, part, &first);
            number[k] = feature;
            number[K + k] = part;
            number[2 * K + k] = es_adapter_layer_of(a, (int)k);
            bound[k] = b->lo[k - (size_t)first];
            bound[K + k] = b->hi[k - (size_t)first];
        }
        npy_add(z, "feature", "<i4", 4, number, K, 0);
        if (parts > 1) {
            npy_add(z, "part", "<i4", 4, number + K, K, 0);
            npy_add(z, "layer", "<i4", 4, number + 2 * K, K, 0);
        }
        npy_add(z, "coefficient", "<f4", 4, es_adapter_coefficients(a), K, 0);
        npy_add(z, "lo", "<f4", 4, bound, K, 0);
        npy_add(z, "hi", "<f4", 4, bound + K, K, 0);
    }
    free(bound);
    free(number);
}

/* The forms' own tables. What feature k gains by a map: bias[k] + map[k] . (the activations of its layer's features before their thresholds). */
static void npz_table(zip *z, const es_adapter *a)
{
    const float *table = es_adapter_table(a);
    es_form form = es_adapter_get_options(a)->form;
    size_t K = (size_t)es_adapter_features(a);
    int layers = es_adapter_layers(a);
    if (!table || !layers)
        return;
    npy_add(z, form == ES_FORM_GAIN ? "gain" : "bias", "<f4", 4, table, K, 0);
    const float *map = table + K;
    for (int i = 0; form == ES_FORM_MAP && i < layers; i++) {
        int first, n, layer = es_adapter_layer(a, i, &first, &n);
        char name[32];
        snprintf(name, sizeof name, layers > 1 ? "map.%d" : "map", layer);
        npy_add(z, name, "<f4", 4, map, (size_t)n, (size_t)n);
        map += (size_t)n * (size_t)n;
    }
}

static int npz(es_buf *out, const es_adapter *a, es_model *m, const es_dictionary *s, es_error *err)
{
    const es_model_info *i = es_model_get_info(m);
    int parts = es_adapter_parts(a);
    zip z = {0};
    float *v = NULL;
    char dictionary[ES_PARTS_MAX][64];
    char hash[65];
    es_adapter *own = NULL; /* its patch is the adapter's own memory: of a copy */
    es_patch patch = {0};
    int rc = es_model_hash(m, hash, err);
    if (!rc && (es_adapter_get_options(a)->form == ES_FORM_BIAS || es_adapter_steps(a) > 0))
        rc = es_export_directions(a, m, &v, err);
    if (!rc)
        rc = es_adapter_copy(&own, a, err);
    if (!rc)
        rc = es_adapter_patch(own, 1, &patch, err);
    if (!rc) {
        npy_add(&z, "model_sha256", "|S64", 64, hash, 1, 0);
        for (int k = 0; k < parts; k++)
            memcpy(dictionary[k], es_adapter_part_basis(a, k, NULL)->dictionary_hash, sizeof dictionary[k]);
        if (parts > 1)
            npy_add(&z, "dictionary_sha256", "|S64", 64, dictionary, (size_t)parts, 0);
        else if (s)
            npy_add(&z, "dictionary_sha256", "|S64", 64, es_dictionary_get_info(s)->hash, 1, 0);
        if (parts)
            npz_features(&z, a);
        if (parts && (s || parts > 1) && es_adapter_matrix(a))
            npy_add(&z, "basis", "<f4", 4, es_adapter_matrix(a), (size_t)es_adapter_features(a), (size_t)i->d_model);
        npz_table(&z, a);
        if (v)
            npy_add(&z, "direction", "<f4", 4, v, (size_t)i->n_layer, (size_t)i->d_model);
        for (int e = 0; e < patch.n_lowrank; e++) { /* y += B (A x) */
            const es_lowrank *l = &patch.lowrank[e];
            char name[64];
            size_t n_in = (size_t)es_site_n_in(m, l->site), n_out = (size_t)es_site_n_out(m, l->site), r = (size_t)l->rank;
            float *scaled = es_calloc(n_out * r + 1, sizeof *scaled);
            z.failed |= !scaled;
            for (size_t k = 0; scaled && k < n_out * r; k++)
                scaled[k] = l->scale * l->b[k];
            snprintf(name, sizeof name, "blk.%d.%s.lora_a", l->layer, es_site_name(l->site));
            npy_add(&z, name, "<f4", 4, l->a, r, n_in);
            snprintf(name, sizeof name, "blk.%d.%s.lora_b", l->layer, es_site_name(l->site));
            if (scaled)
                npy_add(&z, name, "<f4", 4, scaled, n_out, r);
            free(scaled);
        }
        zip_end(&z);
        if (z.failed || z.file.failed || z.directory.failed)
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for the npz, or it is over 2 GB");
    }
    if (!rc) {
        *out = z.file;
        z.file = (es_buf){0};
    }
    es_buf_free(&z.file);
    es_buf_free(&z.directory);
    es_adapter_free(own);
    free(v);
    return rc;
}

/* ---- json -------------------------------------------------------------------------------------------------------------------------------- */

static json_t *number(float x) { return isfinite(x) ? json_real((double)x) : json_null(); }

/* The influence of the newest snapshot with these very coefficients, or NULL. */
static json_t *influence_of(es_workspace *w, const es_adapter *a, const es_basis *b)
{
    es_snapshot_line *line = NULL;
    int n = 0, n_experience = 0, K = 0;
    int64_t id = 0, *who = NULL;
    float *table = NULL;
    json_t *rows = NULL;
    if (!w || es_workspace_snapshot_list(w, &line, &n, NULL))
        return NULL;
    for (int i = 0; i < n; i++)
        if (line[i].n == b->n && !strcmp(line[i].basis, b->name) && !memcmp(line[i].coefficient, es_adapter_coefficients(a), sizeof(float) * (size_t)b->n))
            id = line[i].id;
    es_snapshot_lines_free(line, n);
    if (id && !es_workspace_snapshot_influence(w, id, &who, &table, &n_experience, &K, NULL) && table && K == b->n) {
        rows = json_array();
        for (int e = 0; e <= n_experience; e++) {
            json_t *row = json_array();
            for (int k = 0; k < K; k++)
                json_array_append_new(row, number(table[(size_t)e * (size_t)K + (size_t)k]));
            json_array_append_new(rows, json_pack("{s:o, s:o}", "experience", e < n_experience ? json_integer(who[e]) : json_null(), "by", row));
        }
    }
    free(who);
    free(table);
    return rows;
}

static int as_json(es_buf *out, const es_adapter *a, es_model *m, const es_dictionary *s, es_workspace *labels, es_error *err)
{
    const es_basis *b = es_adapter_basis(a);
    const es_adapter_options *o = es_adapter_get_options(a);
    const es_model_info *i = es_model_get_info(m);
    char hash[65];
    int rc = es_model_hash(m, hash, err);
    if (rc)
        return rc;
    json_t *features = json_array();
    int parts = es_adapter_parts(a);
    for (int k = 0; k < es_adapter_features(a); k++) {
        int first, feature, which = es_adapter_part_of(a, k, &feature);
        const es_basis *part = es_adapter_part_basis(a, which, &first);
        json_t *f = json_pack("{s:i, s:o, s:o, s:o}", "feature", feature, "coefficient", number(es_adapter_coefficients(a)[k]), "lo", number(part->lo[k - first]), "hi",
                              number(part->hi[k - first]));
        if (f && parts > 1) {
            json_object_set_new(f, "part", json_integer(which));
            json_object_set_new(f, "layer", json_integer(es_adapter_layer_of(a, k)));
        }
        const es_basis_vector *vector = es_basis_vector_of(part, feature);
        if (f && vector)
            json_object_set_new(f, "vector", json_string(vector->name));
        es_label l;
        if (labels && !vector && es_workspace_label_get(labels, part->dictionary_hash, feature, &l, NULL) == ES_OK) {
            if (*l.text)
                json_object_set_new(f, "label", json_string(l.text));
            if (*l.tags)
                json_object_set_new(f, "tags", json_string(l.tags));
            es_label_free(&l);
        }
        json_array_append_new(features, f);
    }
    json_t *v = json_pack("{s:s, s:i, s:s, s:b, s:i, s:i, s:{s:s, s:s, s:s}, s:o}", "format", "espalier-adapter", "version", 1, "form", es_form_name(o->form),
                          "constrained", o->form == ES_FORM_BIAS || o->constrained, "steps", es_adapter_steps(a), "rank", o->form == ES_FORM_LORA ? o->rank : 0,
                          "model", "name", i->name, "architecture", i->architecture, "sha256", hash, "features", features);
    if (v && s && parts <= 1)
        json_object_set_new(v, "dictionary", json_pack("{s:s, s:s, s:i}", "name", es_dictionary_get_info(s)->name, "sha256", es_dictionary_get_info(s)->hash, "layer",
                                                       es_dictionary_get_info(s)->layer));
    if (v && o->form == ES_FORM_LORA)
        json_object_set_new(v, "layers", json_pack("[i,i]", o->first_layer, o->last_layer));
    if (v && parts > 1) {
        json_t *list = json_array();
        for (int k = 0; k < parts; k++) {
            int first;
            const es_basis *part = es_adapter_part_basis(a, k, &first);
            json_array_append_new(list, json_pack("{s:s, s:s, s:i, s:i, s:o}", "dictionary", part->dictionary, "sha256", part->dictionary_hash, "layer",
                                                  es_adapter_layer_of(a, first), "first", first, "basis", es_basis_to_json(part)));
        }
        json_object_set_new(v, "parts", list);
    }
    if (v && b && parts == 1) {
        json_object_set_new(v, "basis", es_basis_to_json(b));
        json_t *rows = influence_of(labels, a, b);
        if (rows)
            json_object_set_new(v, "influence", rows);
    }
    char *text = v ? json_dumps(v, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) : NULL;
    if (text) {
        es_buf_str(out, text);
        es_buf_str(out, "\n");
    }
    free(text);
    json_decref(v);
    return text ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory to write the adapter as JSON, or a name in it is not UTF-8");
}

int es_export_adapter(const es_adapter *a, es_model *m, const es_dictionary *s, es_workspace *labels, es_export_kind kind, const char *path, es_error *err)
{
    es_buf b = {0};
    int rc = ES_ERR_USAGE;
    switch (kind) {
    case ES_EXPORT_CONTROL_VECTOR: rc = control_vector(&b, a, m, s, err); break;
    case ES_EXPORT_NPZ: rc = npz(&b, a, m, s, err); break;
    case ES_EXPORT_PEFT: return es_export_peft(a, m, path, err); /* a folder */
    case ES_EXPORT_GGUF_LORA: rc = es_export_gguf_lora(&b, a, m, err); break;
    case ES_EXPORT_PERSONA: return es_export_persona(a, m, path, err); /* as the name of the file says */
    case ES_EXPORT_JSON: rc = as_json(&b, a, m, s, labels, err); break;
    default: es_fail(err, rc, "there is no such kind of export"); break;
    }
    if (!rc && b.failed)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to export the adapter");
    if (!rc)
        rc = es_file_write(path, b.data, b.len, err);
    es_buf_free(&b);
    return rc;
}
