/* adapter: files. One safetensors file; metadata (texts all) holds the form, the hashes, the shape, and
 *     version 1, one part:      "dictionary_hash", "basis"
 *     version 2, several parts: "parts", a JSON array of {"dictionary_hash","basis"} in the adapter's own order
 * so that a program which knows one part only refuses the others by their version. */
#include "adapter.h"
#include "safetensors.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const FORMAT = "espalier-adapter";

/* Adds a tensor called "layers.N.SITE.WHAT" to specs; the name lives in names. */
static void spec_entry(es_tensor_spec *t, char (*name)[64], const es_adapter_entry *e, const char *what, size_t rows, size_t columns,
                       const float *data)
{
    snprintf(*name, sizeof *name, "layers.%d.%s.%s", e->layer, es_site_name(e->site), what);
    *t = (es_tensor_spec){.name = *name, .type = ES_TENSOR_F32, .n_dims = rows ? 2 : 1, .data = data};
    t->dim[0] = rows ? rows : columns;
    t->dim[1] = columns;
}

static void set_int(json_t *o, const char *key, long long v)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", v);
    json_object_set_new(o, key, json_string(text)); /* safetensors metadata holds texts only */
}

/* One of the adapter's own, not of an entry: [columns], or [rows, columns]. */
static es_tensor_spec spec_table(const char *name, size_t rows, size_t columns, const float *data)
{
    return (es_tensor_spec){.name = name, .type = ES_TENSOR_F32, .n_dims = rows ? 2 : 1, .dim = {rows ? rows : columns, rows ? columns : 0}, .data = data};
}

/* F16 where that keeps every bit, as inputs from a file have it (inputs.c). */
static es_tensor_type inputs_type(const es_adapter *a)
{
    if (!a->o.fixed_inputs)
        return ES_TENSOR_F32;
    for (size_t i = a->n_learned; i < a->n_param; i += 512) {
        uint16_t half[512];
        float back[512];
        size_t n = a->n_param - i < 512 ? a->n_param - i : 512;
        es_f32_to_f16(a->param + i, half, n);
        es_f16_to_f32(half, back, n);
        if (memcmp(back, a->param + i, n * sizeof *back))
            return ES_TENSOR_F32;
    }
    return ES_TENSOR_F16;
}

size_t es_adapter_shared_bytes(const es_adapter *a)
{
    return a->o.fixed_inputs ? (a->n_param - a->n_learned) * (inputs_type(a) == ES_TENSOR_F16 ? 2 : 4) : 0;
}

/* The parts' bases and dictionaries, as texts. */
static int set_parts(json_t *meta, const es_adapter *a, es_error *err)
{
    json_t *list = json_array(), *basis = NULL;
    for (int i = 0; list && i < a->n_part; i++) {
        basis = es_basis_to_json(&a->part[i].basis);
        if (!basis || json_array_append_new(list, json_pack("{s:s,s:o}", "dictionary_hash", a->part[i].basis.dictionary_hash, "basis", basis)))
            break;
    }
    bool one = a->n_part == 1, all = list && json_array_size(list) == (size_t)a->n_part;
    char *text = all ? json_dumps(one ? basis : list, JSON_COMPACT) : NULL;
    if (text && one)
        json_object_set_new(meta, "dictionary_hash", json_string(a->part[0].basis.dictionary_hash));
    if (text)
        json_object_set_new(meta, one ? "basis" : "parts", json_string(text));
    int rc = text && json_object_get(meta, one ? "basis" : "parts") ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory to write an adapter's basis");
    free(text);
    json_decref(list);
    return rc;
}

/* The name of a place's M. */
static void map_name(const es_adapter *a, int place, char out[64])
{
    if (a->n_place == 1)
        snprintf(out, 64, "map");
    else
        snprintf(out, 64, "map.%d", a->place[place].layer);
}

int es_adapter_to_bytes(const es_adapter *a, es_buf *out, es_error *err)
{
    size_t n = 0, cap = 3 * (size_t)a->n_entry + 4 + ES_PARTS_MAX, K = (size_t)a->K;
    es_tensor_spec *t = es_calloc(cap, sizeof *t);
    char(*name)[64] = es_calloc(cap, sizeof *name);
    json_t *meta = json_object();
    int rc = ES_OK;
    if (!t || !name || !meta) {
        rc = es_fail(err, ES_ERR_MEMORY, "no memory to write an adapter");
        goto done;
    }
    json_object_set_new(meta, "format", json_string(FORMAT));
    set_int(meta, "version", a->n_part > 1 ? 2 : 1);
    json_object_set_new(meta, "form", json_string(es_form_name(a->o.form)));
    json_object_set_new(meta, "model_hash", json_string(a->model_hash));
    if (a->n_part && (rc = set_parts(meta, a, err)))
        goto done;
    set_int(meta, "constrained", a->o.constrained);
    if (a->o.fixed_inputs)
        set_int(meta, "fixed_inputs", 1);
    set_int(meta, "rank", a->o.rank);
    set_int(meta, "first_layer", a->o.first_layer);
    set_int(meta, "last_layer", a->o.last_layer);
    set_int(meta, "seed", (long long)(a->o.seed & (UINT64_MAX >> 2)));
    set_int(meta, "steps", a->steps);
    if (a->K)
        t[n++] = spec_table("coefficients", 0, K, a->coefficient);
    if (a->o.form != ES_FORM_LORA)
        t[n++] = spec_table(a->o.form == ES_FORM_GAIN ? "gain" : "bias", 0, K, a->param);
    for (int i = 0; a->o.form == ES_FORM_MAP && i < a->n_place; i++, n++) {
        size_t k = (size_t)a->place[i].K;
        map_name(a, i, name[n]);
        t[n] = spec_table(name[n], k, k, a->param + K + a->place[i].square);
    }
    if (es_adapter_hooks(a))
        t[n++] = spec_table("mean_input", 0, K, a->mean_input);
    for (int i = 0; i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        size_t rank = (size_t)a->o.rank, n_in = (size_t)e->n_in;
        spec_entry(&t[n], &name[n], e, a->o.constrained ? "m" : "b", (size_t)e->rows, rank, a->param + e->b);
        n++;
        spec_entry(&t[n], &name[n], e, "mean_input", 0, n_in, a->mean_input + e->mean);
        n++;
    }
    for (int i = 0; i < a->n_entry; i++, n++) { /* last, and alike in all adapters with the same fixed inputs */
        const es_adapter_entry *e = &a->entry[i];
        spec_entry(&t[n], &name[n], e, "a", (size_t)a->o.rank, (size_t)e->n_in, a->param + e->a);
        t[n].type = inputs_type(a);
    }
    rc = es_safetensors_write(out, t, n, meta, err);
done:
    json_decref(meta);
    free(name);
    free(t);
    return rc;
}

static int meta_int(const es_safetensors *f, const char *key, long long lo, long long hi, long long *out, const char *what, es_error *err)
{
    const char *text = es_safetensors_metadata(f, key);
    char *end = NULL;
    long long v = text ? strtoll(text, &end, 10) : 0;
    if (!text || end == text || *end || v < lo || v > hi)
        return es_fail(err, ES_ERR_FORMAT, "%s: \"%s\" in its metadata is not a number from %lld to %lld", what, key, lo, hi);
    *out = v;
    return ES_OK;
}

static int read_tensor(const es_safetensors *f, const char *name, size_t rows, size_t columns, float *out, const char *what, es_error *err)
{
    size_t dim[2] = {rows ? rows : columns, columns}, n = (rows ? rows : 1) * columns;
    int rc = es_safetensors_f32(f, name, rows ? 2 : 1, dim, out, err);
    for (size_t i = 0; !rc && i < n; i++)
        if (!isfinite(out[i]))
            rc = es_fail(err, ES_ERR_FORMAT, "%s: %s holds a number that is not finite", what, name);
    return rc;
}

static int read_entries(es_adapter *a, const es_safetensors *f, const char *what, es_error *err)
{
    int rc = ES_OK;
    size_t K = (size_t)a->K;
    if (a->o.form != ES_FORM_LORA)
        rc = read_tensor(f, a->o.form == ES_FORM_GAIN ? "gain" : "bias", 0, K, a->param, what, err);
    for (int i = 0; !rc && a->o.form == ES_FORM_MAP && i < a->n_place; i++) {
        size_t k = (size_t)a->place[i].K;
        char name[64];
        map_name(a, i, name);
        rc = read_tensor(f, name, k, k, a->param + K + a->place[i].square, what, err);
    }
    if (!rc && es_adapter_hooks(a))
        rc = read_tensor(f, "mean_input", 0, K, a->mean_input, what, err);
    for (int i = 0; !rc && i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        size_t rank = (size_t)a->o.rank, n_in = (size_t)e->n_in;
        es_tensor_spec t;
        char name[64];
        spec_entry(&t, &name, e, "a", rank, n_in, NULL);
        rc = read_tensor(f, name, rank, n_in, a->param + e->a, what, err);
        size_t rows = (size_t)e->rows;
        spec_entry(&t, &name, e, a->o.constrained ? "m" : "b", rows, rank, NULL);
        rc = rc ? rc : read_tensor(f, name, rows, rank, a->param + e->b, what, err);
        spec_entry(&t, &name, e, "mean_input", 0, n_in, NULL);
        rc = rc ? rc : read_tensor(f, name, 0, n_in, a->mean_input + e->mean, what, err);
    }
    return rc;
}

typedef struct wanted { /* the parts of a file */
    int n;
    es_basis basis[ES_PARTS_MAX];
    char hash[ES_PARTS_MAX][65];
} wanted;

static void wanted_free(wanted *w)
{
    for (int i = 0; i < w->n; i++)
        es_basis_free(&w->basis[i]);
    w->n = 0;
}

static int want(wanted *w, json_t *basis, const char *hash, const char *what, es_error *err)
{
    if (w->n == ES_PARTS_MAX)
        return es_fail(err, ES_ERR_FORMAT, "%s: more than %d parts", what, (int)ES_PARTS_MAX);
    int rc = es_basis_from_json(&w->basis[w->n], basis, err);
    if (!rc)
        snprintf(w->hash[w->n++], sizeof w->hash[0], "%.64s", hash ? hash : "");
    return rc;
}

/* What the metadata says of the parts; none: an adapter without a basis. w: also after an error the caller's to free. */
static int read_wanted(const es_safetensors *f, wanted *w, const char *what, es_error *err)
{
    const char *basis = es_safetensors_metadata(f, "basis"), *parts = es_safetensors_metadata(f, "parts"), *text = parts ? parts : basis;
    json_t *json = NULL;
    *w = (wanted){0};
    if (!text)
        return ES_OK;
    int rc = es_json_parse(&json, text, strlen(text), what, err);
    if (!rc && parts && (basis || json_array_size(json) < 2))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: \"parts\" in its metadata is no list of at least two", what);
    if (!rc && !parts)
        rc = want(w, json, es_safetensors_metadata(f, "dictionary_hash"), what, err);
    for (size_t i = 0; !rc && parts && i < json_array_size(json); i++) {
        json_t *part = json_array_get(json, i);
        rc = want(w, json_object_get(part, "basis"), json_string_value(json_object_get(part, "dictionary_hash")), what, err);
    }
    json_decref(json);
    return rc;
}

static int read_header(const es_safetensors *f, long long *version, es_form *form, const char *what, es_error *err)
{
    const char *format = es_safetensors_metadata(f, "format"), *named = es_safetensors_metadata(f, "form");
    if (!format || strcmp(format, FORMAT))
        return es_fail(err, ES_ERR_FORMAT, "%s is no adapter: its metadata lacks \"format\": \"%s\"", what, FORMAT);
    int rc = meta_int(f, "version", 1, 2, version, what, err);
    if (!rc && (*version == 2) != (es_safetensors_metadata(f, "parts") != NULL))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: version %lld %s \"parts\"", what, *version, *version == 2 ? "without" : "with");
    if (!rc && (!named || !es_form_named(named, form)))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: form \"%.20s\" (bias, gain, map or lora)", what, named ? named : "");
    return rc;
}

/* The dictionary of each part among the n_s at hand. */
static int match(const wanted *w, const es_dictionary *const *s, int n_s, es_part *part, const char *what, es_error *err)
{
    for (int i = 0; i < w->n; i++) {
        char have[ES_PARTS_MAX * 66] = "";
        size_t len = 0;
        part[i] = (es_part){NULL, &w->basis[i]};
        for (int j = 0; j < n_s && !part[i].dictionary; j++)
            if (s[j] && !strcmp(es_dictionary_get_info(s[j])->hash, w->hash[i]))
                part[i].dictionary = s[j];
        if (part[i].dictionary) {
            if (i && es_dictionary_get_info(part[i].dictionary)->layer < es_dictionary_get_info(part[i - 1].dictionary)->layer)
                return es_fail(err, ES_ERR_FORMAT, "%s: its parts are not in the order of their layers", what);
            continue;
        }
        for (int j = 0; j < n_s; j++)
            if (s[j] && len + 67 < sizeof have)
                len += (size_t)snprintf(have + len, sizeof have - len, "%s%.64s", len ? " " : "", es_dictionary_get_info(s[j])->hash);
        const char *hash = *w->hash[i] ? w->hash[i] : "?";
        if (!len)
            return es_fail(err, ES_ERR_MISMATCH, "%s needs its dictionary (%s)", what, hash);
        if (w->n == 1)
            return es_fail(err, ES_ERR_MISMATCH, "%s was made with the dictionary %s, this one is %s", what, hash, have);
        return es_fail(err, ES_ERR_MISMATCH, "%s was made with %d dictionaries; %s is not here, only %s", what, w->n, hash, have);
    }
    return ES_OK;
}

/* What would be allocated must lie in the file, of n bytes. */
static int check_room(const es_adapter_options *o, const wanted *w, es_model *m, size_t n, const char *what, es_error *err)
{
    size_t inputs = (size_t)es_site_n_in(m, ES_SITE_O) + (size_t)es_site_n_in(m, ES_SITE_DOWN), need = 0;
    bool lora = o->form == ES_FORM_LORA && o->last_layer >= o->first_layer;
    if (lora && (!es_mul((size_t)(o->last_layer - o->first_layer + 1), (size_t)o->rank, &need) || !es_mul(need, (o->fixed_inputs ? 2 : 4) * inputs, &need) || need > n))
        return es_fail(err, ES_ERR_FORMAT, "%s is too short for layers %d to %d at rank %d", what, o->first_layer, o->last_layer, o->rank);
    for (int i = 0; o->form == ES_FORM_MAP && i < w->n; i++) { /* a larger one is refused by shape */
        size_t k = (size_t)w->basis[i].n;
        if (k <= ES_MAP_MAX && k * k * 4 > n)
            return es_fail(err, ES_ERR_FORMAT, "%s is too short for a map over %zu features", what, k);
    }
    return ES_OK;
}

int es_adapter_from_bytes_parts(es_adapter **out, es_model *m, const es_dictionary *const *s, int n_s, const void *bytes, size_t n, const char *what, es_error *err)
{
    es_safetensors *f = NULL;
    es_part part[ES_PARTS_MAX] = {0};
    es_adapter_options o = {0};
    char hash[65];
    long long v[7] = {0};
    *out = NULL;
    int rc = es_safetensors_parse(&f, bytes, n, what, err);
    if (rc)
        return rc;
    wanted *w = es_calloc(1, sizeof *w);
    const char *made_for = es_safetensors_metadata(f, "model_hash");
    rc = w ? read_header(f, &v[0], &o.form, what, err) : es_fail(err, ES_ERR_MEMORY, "no memory for an adapter");
    rc = rc ? rc : meta_int(f, "constrained", 0, 1, &v[0], what, err);
    if (!rc && es_safetensors_metadata(f, "fixed_inputs"))
        rc = meta_int(f, "fixed_inputs", 0, 1, &v[6], what, err);
    rc = rc ? rc : meta_int(f, "rank", 0, ES_ADAPTER_RANK_MAX, &v[1], what, err);
    rc = rc ? rc : meta_int(f, "first_layer", 0, 1 << 20, &v[2], what, err);
    rc = rc ? rc : meta_int(f, "last_layer", 0, 1 << 20, &v[3], what, err);
    rc = rc ? rc : meta_int(f, "steps", 0, 1 << 30, &v[4], what, err);
    rc = rc ? rc : meta_int(f, "seed", 0, LLONG_MAX, &v[5], what, err);
    rc = rc ? rc : es_model_hash(m, hash, err);
    if (!rc && (!made_for || strcmp(made_for, hash)))
        rc = es_fail(err, ES_ERR_MISMATCH, "%s was made for the model %.64s, this one is %s", what, made_for ? made_for : "?", hash);
    rc = rc ? rc : read_wanted(f, w, what, err);
    rc = rc ? rc : match(w, s, n_s, part, what, err);
    o = (es_adapter_options){.form = o.form, .constrained = v[0], .fixed_inputs = v[6], .rank = (int)v[1], .first_layer = (int)v[2],
                             .last_layer = (int)v[3], .seed = (uint64_t)v[5]};
    rc = rc ? rc : check_room(&o, w, m, n, what, err);
    if (!rc && !w->n)
        part[0].dictionary = n_s ? s[0] : NULL;
    rc = rc ? rc : es_adapter_shape(out, m, part, w->n ? w->n : 1, &o, err);
    if (!rc && !(rc = read_entries(*out, f, what, err))) {
        (*out)->steps = (int)v[4];
        es_adapter_refresh(*out);
    } else if (*out) {
        es_adapter_free(*out);
        *out = NULL;
    }
    if (w)
        wanted_free(w);
    free(w);
    es_safetensors_free(f);
    return rc;
}

int es_adapter_from_bytes(es_adapter **out, es_model *m, const es_dictionary *s, const void *bytes, size_t n, const char *what, es_error *err)
{
    return es_adapter_from_bytes_parts(out, m, &s, 1, bytes, n, what, err);
}

int es_adapter_load_parts(es_adapter **out, es_model *m, const es_dictionary *const *s, int n_s, const char *path, es_error *err)
{
    es_map map;
    *out = NULL;
    int rc = es_map_open(&map, path, err);
    if (rc)
        return rc;
    rc = es_adapter_from_bytes_parts(out, m, s, n_s, map.data, map.size, path, err);
    es_map_close(&map);
    return rc;
}

int es_adapter_load(es_adapter **out, es_model *m, const es_dictionary *s, const char *path, es_error *err)
{
    return es_adapter_load_parts(out, m, &s, 1, path, err);
}

int es_adapter_wants(const char *path, char hash[ES_PARTS_MAX][65], int *n, es_error *err)
{
    es_safetensors *f = NULL;
    long long version;
    es_form form;
    *n = 0;
    int rc = es_safetensors_open(&f, path, err);
    if (rc)
        return rc;
    wanted *w = es_calloc(1, sizeof *w);
    rc = w ? read_header(f, &version, &form, path, err) : es_fail(err, ES_ERR_MEMORY, "no memory for an adapter");
    rc = rc ? rc : read_wanted(f, w, path, err);
    for (int i = 0; !rc && i < w->n; i++)
        memcpy(hash[i], w->hash[i], sizeof w->hash[i]);
    if (!rc)
        *n = w->n;
    if (w)
        wanted_free(w);
    free(w);
    es_safetensors_free(f);
    return rc;
}

int es_adapter_save(const es_adapter *a, const char *path, es_error *err)
{
    es_buf b = {0};
    int rc = es_adapter_to_bytes(a, &b, err);
    rc = rc ? rc : es_file_write(path, b.data, b.len, err);
    es_buf_free(&b);
    return rc;
}
