/* A curated basis as one file, and its directions for other tools. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "dictionary.h"
#include "export_internal.h"

#define FORMAT "espalier-basis-file"
enum { FILE_VERSION = 1 };

static json_t *labels_of(const es_basis *b, es_workspace *w)
{
    json_t *list = json_array();
    for (int k = 0; w && k < b->n; k++) {
        es_label l;
        if (b->feature[k] < 0 || es_workspace_label_get(w, b->dictionary_hash, b->feature[k], &l, NULL) != ES_OK)
            continue;
        if (*l.text || *l.tags || l.rating)
            json_array_append_new(list, json_pack("{s:i, s:s, s:s, s:s, s:i, s:s}", "feature", b->feature[k], "text", l.text, "tags", l.tags, "author", l.author,
                                                  "rating", l.rating, "time", l.time));
        es_label_free(&l);
    }
    return list;
}

static json_t *about_basis(const es_basis *b, const char *model_name, const char *model_hash, const es_dictionary *s, es_workspace *w, const char *author)
{
    const es_dictionary_info *i = es_dictionary_get_info(s);
    char now[32] = "";
    time_t t = time(NULL);
    struct tm utc;
    if (gmtime_r(&t, &utc))
        strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return json_pack("{s:s, s:i, s:{s:s, s:s}, s:{s:s, s:s, s:s, s:s, s:i}, s:o, s:o, s:{s:s, s:s, s:s}}", "format", FORMAT, "version", FILE_VERSION, "model", "name",
                     model_name, "sha256", model_hash, "dictionary", "name", i->name, "sha256", i->hash, "format", i->format, "hook", i->hook_name, "layer",
                     i->layer, "basis", es_basis_to_json(b), "labels", labels_of(b, w), "made", "by", author, "at", now, "with", "espalier");
}

int es_basis_file_write(const es_basis *b, es_model *m, const es_dictionary *s, es_workspace *w, const char *author, const char *path, es_error *err)
{
    char hash[65];
    float *rows = NULL;
    int rc = es_model_hash(m, hash, err);
    if (!rc)
        rc = es_basis_matrix(b, s, &rows, err);
    if (rc)
        return rc;
    es_basis named = *b; /* a basis made without a model gets its name now */
    snprintf(named.model_hash, sizeof named.model_hash, "%s", hash);
    snprintf(named.dictionary_hash, sizeof named.dictionary_hash, "%s", es_dictionary_get_info(s)->hash);
    size_t K = (size_t)b->n;
    es_tensor_spec t[] = {{"directions", ES_TENSOR_F32, 2, {K, (size_t)es_dictionary_get_info(s)->d}, rows}, {"lo", ES_TENSOR_F32, 1, {K}, b->lo},
                          {"hi", ES_TENSOR_F32, 1, {K}, b->hi}};
    json_t *about = about_basis(&named, es_model_get_info(m)->name, hash, s, w, author);
    char *text = about ? json_dumps(about, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_t *metadata = text ? json_pack("{s:s}", "espalier-basis", text) : NULL;
    rc = metadata ? es_safetensors_write_file(path, t, 3, metadata, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory to write the basis, or a name in it is not UTF-8");
    json_decref(metadata);
    json_decref(about);
    free(text);
    free(rows);
    return rc;
}

/* Its directions must be those of the dictionary that it names. */
static int check_directions(const es_basis *b, const es_dictionary *s, const float *rows, const char *path, es_error *err)
{
    float *own = NULL;
    int d = es_dictionary_get_info(s)->d, rc = es_basis_matrix(b, s, &own, err);
    for (size_t k = 0; !rc && k < (size_t)b->n * (size_t)d; k++)
        if (!(fabsf(own[k] - rows[k]) < 1e-4f))
            rc = es_fail(err, ES_ERR_FORMAT, "%s: its directions are not those of feature %d in the dictionary that it names", path, b->feature[k / (size_t)d]);
    free(own);
    return rc;
}

static int check_names(const es_basis *b, json_t *about, es_model *m, const es_dictionary *s, const char *path, es_error *err)
{
    char hash[65];
    int rc = m ? es_model_hash(m, hash, err) : ES_OK;
    if (rc)
        return rc;
    if (m && strcmp(hash, b->model_hash) != 0) {
        const char *name = json_string_value(json_object_get(json_object_get(about, "model"), "name"));
        return es_fail(err, ES_ERR_MISMATCH, "%s: is of the model %s, SHA-256 %s; this one is %s, %s", path, name ? name : "?", b->model_hash, es_model_get_info(m)->name, hash);
    }
    const es_dictionary_info *i = s ? es_dictionary_get_info(s) : NULL;
    if (i && strcmp(i->hash, b->dictionary_hash) != 0)
        return es_fail(err, ES_ERR_MISMATCH, "%s: is of the dictionary %s, SHA-256 %s; this one is %s, %s", path, b->dictionary, b->dictionary_hash, i->name, i->hash);
    return ES_OK;
}

int es_basis_file_read(es_basis *out, json_t **about_out, float **directions, es_model *m, const es_dictionary *s, const char *path, es_error *err)
{
    es_safetensors *t;
    json_t *about = NULL;
    float *rows = NULL;
    *out = (es_basis){0};
    int rc = es_safetensors_open(&t, path, err);
    if (rc)
        return rc;
    const char *text = es_safetensors_metadata(t, "espalier-basis");
    const es_tensor *x = es_safetensors_find(t, "directions");
    if (!text || !x || x->n_dims != 2 || x->dim[1] < 1 || x->dim[1] > ES_WIDTH_MAX)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: is no basis: there are no directions [K, d] and no espalier-basis in it", path);
    if (!rc)
        rc = es_json_parse(&about, text, strlen(text), path, err);
    const char *format = json_string_value(json_object_get(about, "format"));
    if (!rc && (!format || strcmp(format, FORMAT) != 0 || json_integer_value(json_object_get(about, "version")) != FILE_VERSION))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: is a basis of another version (%d is read)", path, (int)FILE_VERSION);
    if (!rc && (rc = es_basis_from_json(out, json_object_get(about, "basis"), err)))
        es_fail_prefix(err, "%s", path);
    if (!rc && (size_t)out->n != x->dim[0])
        rc = es_fail(err, ES_ERR_FORMAT, "%s: has %d features but %zu directions", path, out->n, x->dim[0]);
    if (!rc && !(rows = es_calloc(x->n + 1, sizeof *rows)))
        rc = es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", path);
    if (!rc)
        rc = es_safetensors_f32(t, "directions", 2, x->dim, rows, err);
    for (size_t k = 0; !rc && k < x->n; k++)
        if (!isfinite(rows[k]))
            rc = es_fail(err, ES_ERR_FORMAT, "%s: directions hold a value that is not a number or infinite", path);
    if (!rc)
        rc = check_names(out, about, m, s, path, err);
    if (!rc && s && x->dim[1] != (size_t)es_dictionary_get_info(s)->d)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: its directions have width %zu; the dictionary's have %d", path, x->dim[1], es_dictionary_get_info(s)->d);
    if (!rc && s)
        rc = check_directions(out, s, rows, path, err);
    es_safetensors_free(t);
    if (rc)
        es_basis_free(out);
    if (!rc && directions)
        *directions = rows;
    else
        free(rows);
    if (!rc && about_out)
        *about_out = about;
    else
        json_decref(about);
    return rc;
}

int es_basis_file_labels(json_t *about, const char *dictionary_hash, es_workspace *w, int *taken, es_error *err)
{
    size_t i;
    json_t *v;
    *taken = 0;
    json_array_foreach(json_object_get(about, "labels"), i, v) {
        es_label l;
        const char *text = json_string_value(json_object_get(v, "text")), *tags = json_string_value(json_object_get(v, "tags"));
        const char *author = json_string_value(json_object_get(v, "author"));
        json_t *feature = json_object_get(v, "feature"), *rating = json_object_get(v, "rating");
        if (!json_is_integer(feature) || json_integer_value(feature) < 0 || json_integer_value(feature) > ES_FEATURES_MAX)
            return es_fail(err, ES_ERR_FORMAT, "label %zu of the basis names no feature", i);
        int f = (int)json_integer_value(feature), stars = json_is_integer(rating) && json_integer_value(rating) >= 1 && json_integer_value(rating) <= 5 ? (int)json_integer_value(rating) : -1;
        bool known = es_workspace_label_get(w, dictionary_hash, f, &l, NULL) == ES_OK;
        bool said = known && (*l.text || *l.tags);
        if (known)
            es_label_free(&l);
        if (said)
            continue; /* what a person here said stays */
        int rc = es_workspace_label_set(w, dictionary_hash, f, text, tags, stars, author && *author ? author : "?", err);
        if (rc)
            return rc;
        (*taken)++;
    }
    return ES_OK;
}

/* ---- for other tools -------------------------------------------------------------------------------------------------------------------- */

int es_basis_control_vector(const es_basis *b, es_model *m, const es_dictionary *s, int which, float strength, const char *path, es_error *err)
{
    const es_model_info *i = es_model_get_info(m);
    const es_dictionary_info *di = es_dictionary_get_info(s);
    float *rows = NULL;
    es_buf out = {0};
    char name[40], hash[65];
    if (which < 0 || which >= b->n)
        return es_fail(err, ES_ERR_USAGE, "basis %s: there is no direction %d in it", b->name, which);
    if (di->layer < 1)
        return es_fail(err, ES_ERR_USAGE, "a control vector cannot act after layer %d: its layers start at 1", di->layer);
    int rc = es_model_hash(m, hash, err);
    if (!rc)
        rc = es_basis_matrix(b, s, &rows, err);
    if (rc)
        return rc;
    size_t d = (size_t)di->d;
    float *v = rows + (size_t)which * d;
    for (size_t k = 0; k < d; k++)
        v[k] *= strength;
    es_buf_add(&out, "GGUF", 4);
    put_u32(&out, 3);
    put_u64(&out, 1);
    put_u64(&out, 6);
    es_gguf_string(&out, "general.architecture", "controlvector");
    es_gguf_string(&out, "general.name", b->name);
    es_gguf_string(&out, "controlvector.model_hint", i->architecture);
    es_gguf_text(&out, "controlvector.layer_count");
    put_u32(&out, GGUF_U32);
    put_u32(&out, 1);
    es_gguf_string(&out, "espalier.model_sha256", hash);
    es_gguf_string(&out, "espalier.dictionary_sha256", di->hash);
    snprintf(name, sizeof name, "direction.%d", di->layer);
    es_gguf_text(&out, name);
    put_u32(&out, 1);
    put_u64(&out, d);
    put_u32(&out, ES_F32);
    put_u64(&out, 0);
    static const char zeros[GGUF_ALIGN];
    es_buf_add(&out, zeros, (GGUF_ALIGN - out.len % GGUF_ALIGN) % GGUF_ALIGN);
    es_buf_add(&out, v, d * sizeof *v);
    rc = out.failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory for a control vector") : es_file_write(path, out.data, out.len, err);
    es_buf_free(&out);
    free(rows);
    return rc;
}

int es_basis_npz(const es_basis *b, const es_dictionary *s, const char *path, es_error *err)
{
    float *rows = NULL;
    es_numbers lo = {b->lo, (size_t)b->n, ES_TENSOR_F32}, hi = {b->hi, (size_t)b->n, ES_TENSOR_F32}, feature;
    int rc = es_numbers_new(&feature, (size_t)b->n, 0, err);
    if (!rc)
        rc = es_basis_matrix(b, s, &rows, err);
    for (int k = 0; !rc && k < b->n; k++)
        feature.v[k] = (float)b->feature[k]; /* whole below 2^24; negative: a vector */
    es_matrix m = {.type = ES_TENSOR_F32, .data = (const uint8_t *)rows, .rows = (size_t)b->n, .cols = (size_t)es_dictionary_get_info(s)->d, .by_row = true, .scale = 1};
    es_named t[] = {{.name = "basis", .matrix = &m}, {.name = "lo", .numbers = &lo}, {.name = "hi", .numbers = &hi}, {.name = "feature", .numbers = &feature}};
    if (!rc)
        rc = es_named_npz(path, t, 4, err);
    free(feature.v);
    free(rows);
    return rc;
}
