#include "safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#define HEADER_LIMIT ((size_t)100 << 20) /* the reference implementation's */

struct es_safetensors {
    es_map map;   /* owned when from a file */
    char what[1024];
    json_t *header; /* owns the names */
    es_tensor *tensor;
    size_t n;
    const es_tensor **by_name; /* sorted */
};

static const struct { const char *name; size_t bytes; } types[] = {
    [ES_TENSOR_BOOL] = {"BOOL", 1}, [ES_TENSOR_U8] = {"U8", 1}, [ES_TENSOR_I8] = {"I8", 1}, [ES_TENSOR_F8_E4M3] = {"F8_E4M3", 1},
    [ES_TENSOR_F8_E5M2] = {"F8_E5M2", 1}, [ES_TENSOR_I16] = {"I16", 2}, [ES_TENSOR_U16] = {"U16", 2}, [ES_TENSOR_F16] = {"F16", 2},
    [ES_TENSOR_BF16] = {"BF16", 2}, [ES_TENSOR_I32] = {"I32", 4}, [ES_TENSOR_U32] = {"U32", 4}, [ES_TENSOR_F32] = {"F32", 4},
    [ES_TENSOR_F64] = {"F64", 8}, [ES_TENSOR_I64] = {"I64", 8}, [ES_TENSOR_U64] = {"U64", 8},
};
enum { N_TYPES = sizeof types / sizeof *types };

const char *es_tensor_type_name(es_tensor_type t)
{
    return (unsigned)t < N_TYPES ? types[t].name : "?";
}

void es_safetensors_free(es_safetensors *s)
{
    if (!s)
        return;
    json_decref(s->header);
    free(s->tensor);
    free(s->by_name);
    es_map_close(&s->map);
    free(s);
}

/* A JSON number that is a whole, non-negative size. */
static bool get_size(json_t *v, size_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *out = (size_t)json_integer_value(v);
    return true;
}

static int read_tensor(const es_safetensors *s, const char *name, json_t *v, size_t data_bytes, const uint8_t *data, es_tensor *t, es_error *err)
{
    t->name = name;
    json_t *dtype = json_object_get(v, "dtype"), *shape = json_object_get(v, "shape"), *range = json_object_get(v, "data_offsets");
    if (!json_is_string(dtype) || !json_is_array(shape) || !json_is_array(range) || json_array_size(range) != 2)
        return es_fail(err, ES_ERR_FORMAT, "%s: tensor \"%.100s\" lacks a dtype, a shape or two data_offsets", s->what, name);
    int type = 0;
    while (type < N_TYPES && strcmp(types[type].name, json_string_value(dtype)) != 0)
        type++;
    if (type == N_TYPES)
        return es_fail(err, ES_ERR_FORMAT, "%s: tensor \"%.100s\" has the unknown type \"%.40s\"", s->what, name, json_string_value(dtype));
    t->type = (es_tensor_type)type;
    if (json_array_size(shape) > ES_TENSOR_DIMS)
        return es_fail(err, ES_ERR_FORMAT, "%s: tensor \"%.100s\" has %zu dimensions (at most %d)", s->what, name, json_array_size(shape), (int)ES_TENSOR_DIMS);
    t->n_dims = (int)json_array_size(shape);
    t->n = 1;
    for (int i = 0; i < t->n_dims; i++)
        if (!get_size(json_array_get(shape, (size_t)i), &t->dim[i]) || !es_mul(t->n, t->dim[i], &t->n))
            return es_fail(err, ES_ERR_FORMAT, "%s: dimension %d of tensor \"%.100s\" is no size, or the product is too large", s->what, i, name);
    size_t from, to;
    if (!get_size(json_array_get(range, 0), &from) || !get_size(json_array_get(range, 1), &to) || from > to || to > data_bytes)
        return es_fail(err, ES_ERR_FORMAT, "%s: data_offsets of tensor \"%.100s\" are reversed or leave the file's %zu bytes of data", s->what, name, data_bytes);
    if (!es_mul(t->n, types[type].bytes, &t->bytes) || t->bytes != to - from)
        return es_fail(err, ES_ERR_FORMAT, "%s: tensor \"%.100s\" has %zu bytes of data where its shape needs %zu", s->what, name, to - from, t->bytes);
    t->data = data + from;
    return ES_OK;
}

static int by_data(const void *a, const void *b)
{
    const es_tensor *x = a, *y = b;
    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones first */
}

static int by_name(const void *a, const void *b)
{
    const es_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int parse(es_safetensors *s, const uint8_t *bytes, size_t n, es_error *err)
{
    if (n < 8)
        return es_fail(err, ES_ERR_FORMAT, "%s: no safetensors file: %zu bytes, where the length of the header takes 8", s->what, n);
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--)
        length = length << 8 | bytes[i];
    if (length > HEADER_LIMIT || length > n - 8)
        return es_fail(err, ES_ERR_FORMAT, "%s: no safetensors file, or cut short: its header would take %llu bytes (file: %zu, limit: 100 MB)", s->what, (unsigned long long)length, n);
    if (length < 2 || bytes[8] != '{')
        return es_fail(err, ES_ERR_FORMAT, "%s: no safetensors file: the header is not a JSON object", s->what);
    size_t header = (size_t)length, data_bytes = n - 8 - header;
    int rc = es_json_parse(&s->header, (const char *)bytes + 8, header, s->what, err);
    if (rc)
        return rc;
    if (!json_is_object(s->header))
        return es_fail(err, ES_ERR_FORMAT, "%s: no safetensors file: the header is not a JSON object", s->what);
    s->tensor = es_calloc(json_object_size(s->header) + 1, sizeof *s->tensor);
    s->by_name = es_calloc(json_object_size(s->header) + 1, sizeof *s->by_name);
    if (!s->tensor || !s->by_name)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory for its list of tensors", s->what);
    const char *name;
    json_t *v;
    json_object_foreach(s->header, name, v) {
        if (strcmp(name, "__metadata__") == 0) {
            const char *key;
            json_t *text;
            if (!json_is_object(v))
                return es_fail(err, ES_ERR_FORMAT, "%s: __metadata__ is not an object", s->what);
            json_object_foreach(v, key, text)
                if (!json_is_string(text))
                    return es_fail(err, ES_ERR_FORMAT, "%s: __metadata__ \"%.100s\" is not a string", s->what, key);
            continue;
        }
        rc = read_tensor(s, name, v, data_bytes, bytes + 8 + header, &s->tensor[s->n], err);
        if (rc)
            return rc;
        s->n++;
    }
    qsort(s->tensor, s->n, sizeof *s->tensor, by_data);
    const uint8_t *at = bytes + 8 + header;
    for (size_t i = 0; i < s->n; i++) {
        if (s->tensor[i].data != at)
            return es_fail(err, ES_ERR_FORMAT, "%s: tensor \"%.100s\" %s", s->what, s->tensor[i].name, s->tensor[i].data > at ? "leaves a hole before its data" : "overlaps another");
        at += s->tensor[i].bytes;
        s->by_name[i] = &s->tensor[i];
    }
    if (at != bytes + n)
        return es_fail(err, ES_ERR_FORMAT, "%s: %zu bytes of data belong to no tensor", s->what, (size_t)(bytes + n - at));
    qsort(s->by_name, s->n, sizeof *s->by_name, by_name);
    return ES_OK;
}

static int parse_new(es_safetensors **out, const es_map *map, const void *bytes, size_t n, const char *what, es_error *err)
{
    *out = NULL;
    es_safetensors *s = es_calloc(1, sizeof *s);
    if (!s) {
        if (map)
            es_map_close(&(es_map){.data = map->data, .size = map->size});
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", what);
    }
    if (map)
        s->map = *map;
    snprintf(s->what, sizeof s->what, "%s", what);
    int rc = parse(s, bytes, n, err);
    if (rc)
        es_safetensors_free(s);
    else
        *out = s;
    return rc;
}

int es_safetensors_open(es_safetensors **out, const char *path, es_error *err)
{
    es_map map;
    *out = NULL;
    int rc = es_map_open(&map, path, err);
    return rc ? rc : parse_new(out, &map, map.data, map.size, path, err);
}

int es_safetensors_parse(es_safetensors **out, const void *bytes, size_t n, const char *what, es_error *err)
{
    return parse_new(out, NULL, bytes, n, what, err);
}

size_t es_safetensors_count(const es_safetensors *s)
{
    return s->n;
}

const es_tensor *es_safetensors_at(const es_safetensors *s, size_t i)
{
    return i < s->n ? &s->tensor[i] : NULL;
}

const es_tensor *es_safetensors_find(const es_safetensors *s, const char *name)
{
    es_tensor key = {.name = name};
    const es_tensor *k = &key;
    const es_tensor **hit = s->n ? bsearch(&k, s->by_name, s->n, sizeof *s->by_name, by_name) : NULL;
    return hit ? *hit : NULL;
}

const char *es_safetensors_metadata(const es_safetensors *s, const char *key)
{
    return json_string_value(json_object_get(json_object_get(s->header, "__metadata__"), key));
}

json_t *es_safetensors_metadata_all(const es_safetensors *s)
{
    return json_object_get(s->header, "__metadata__");
}

bool es_tensor_f32(const es_tensor *t, size_t first, size_t n, float *out)
{
    enum { CHUNK = 1024 };
    if (first > t->n || n > t->n - first)
        return false;
    const uint8_t *p = t->data + first * types[t->type].bytes;
    switch (t->type) {
    case ES_TENSOR_F32:
        if (n)
            memcpy(out, p, n * sizeof *out);
        return true;
    case ES_TENSOR_F16:
        for (size_t i = 0; i < n; i += CHUNK) {
            uint16_t half[CHUNK];
            size_t m = n - i < CHUNK ? n - i : CHUNK;
            memcpy(half, p + 2 * i, 2 * m);
            es_f16_to_f32(half, out + i, m);
        }
        return true;
    case ES_TENSOR_BF16:
        for (size_t i = 0; i < n; i++) {
            uint32_t bits = (uint32_t)p[2 * i] << 16 | (uint32_t)p[2 * i + 1] << 24;
            memcpy(out + i, &bits, 4);
        }
        return true;
    case ES_TENSOR_F64:
        for (size_t i = 0; i < n; i++) {
            double v;
            memcpy(&v, p + 8 * i, 8);
            out[i] = (float)v;
        }
        return true;
    default:
        return false;
    }
}

int es_safetensors_f32(const es_safetensors *s, const char *name, int n_dims, const size_t *dim, float *out, es_error *err)
{
    const es_tensor *t = es_safetensors_find(s, name);
    if (!t)
        return es_fail(err, ES_ERR_MISSING, "%s: there is no tensor \"%s\"", s->what, name);
    bool same = t->n_dims == n_dims;
    for (int i = 0; same && i < n_dims; i++)
        same = t->dim[i] == dim[i];
    if (!same) {
        char have[120], want[120];
        es_shape_text(have, sizeof have, t->n_dims, t->dim);
        es_shape_text(want, sizeof want, n_dims, dim);
        return es_fail(err, ES_ERR_FORMAT, "%s: tensor \"%s\" is %s where %s is expected", s->what, name, have, want);
    }
    if (!es_tensor_f32(t, 0, t->n, out))
        return es_fail(err, ES_ERR_FORMAT, "%s: tensor \"%s\" has type %s; F32, F16, BF16 and F64 are read", s->what, name, es_tensor_type_name(t->type));
    return ES_OK;
}

int es_safetensors_shards(char ***out, size_t *n, const char *index_path, es_error *err)
{
    json_t *root, *file;
    const char *tensor;
    *out = NULL;
    *n = 0;
    int rc = es_json_file(&root, index_path, err);
    if (rc)
        return rc;
    json_t *map = json_object_get(root, "weight_map"), *seen = json_object();
    char **list = json_is_object(map) ? es_calloc(json_object_size(map) + 1, sizeof *list) : NULL;
    if (!json_is_object(map))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: there is no \"weight_map\"", index_path);
    else if (!list || !seen)
        rc = es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", index_path);
    size_t count = 0;
    if (!rc)
        json_object_foreach(map, tensor, file) {
            const char *name = json_string_value(file);
            if (!name || !*name || strchr(name, '/') || strchr(name, '\\') || name[0] == '.') {
                rc = es_fail(err, ES_ERR_FORMAT, "%s: the shard of tensor \"%.100s\" is not a plain file name: \"%.100s\"", index_path, tensor, name ? name : "");
                break;
            }
            if (json_object_get(seen, name))
                continue;
            if (json_object_set_new(seen, name, json_true()) != 0 || !(list[count] = strdup(name))) {
                rc = es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", index_path);
                break;
            }
            count++;
        }
    json_decref(seen);
    json_decref(root);
    if (rc) {
        for (size_t i = 0; list && i < count; i++)
            free(list[i]);
        free(list);
        return rc;
    }
    *out = list;
    *n = count;
    return ES_OK;
}

typedef struct output { /* into one of them */
    es_buf *buf;
    es_sink *sink;
} output;

static void put(const output *o, const void *bytes, size_t n)
{
    if (o->buf)
        es_buf_add(o->buf, bytes, n);
    else
        es_sink_put(o->sink, bytes, n);
}

static void add_data(const output *o, const es_tensor_spec *t, size_t n)
{
    enum { CHUNK = 4096 };
    if (t->type == ES_TENSOR_F32) {
        put(o, t->data, n * sizeof(float));
        return;
    }
    uint16_t half[CHUNK];
    for (size_t i = 0; i < n; i += CHUNK) {
        size_t m = n - i < CHUNK ? n - i : CHUNK;
        if (t->type == ES_TENSOR_F16) {
            es_f32_to_f16(t->data + i, half, m);
        } else {
            for (size_t j = 0; j < m; j++) { /* round to nearest even; NaN stays NaN */
                uint32_t b;
                memcpy(&b, t->data + i + j, 4);
                half[j] = (b & 0x7fffffff) > 0x7f800000 ? (uint16_t)(b >> 16 | 0x40) : (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
            }
        }
        put(o, half, 2 * m);
    }
}

static int write_tensors(const output *o, const es_tensor_spec *t, size_t n, json_t *metadata, es_error *err)
{
    json_t *header = json_object();
    bool bad = !header;
    if (!bad && metadata)
        bad = json_object_set(header, "__metadata__", metadata) != 0;
    size_t at = 0;
    for (size_t i = 0; i < n && !bad; i++) {
        if (t[i].type != ES_TENSOR_F32 && t[i].type != ES_TENSOR_F16 && t[i].type != ES_TENSOR_BF16) {
            json_decref(header);
            return es_fail(err, ES_ERR_USAGE, "tensor \"%s\": only F32, F16 and BF16 are written", t[i].name);
        }
        json_t *shape = json_array();
        size_t bytes = types[t[i].type].bytes;
        for (int j = 0; j < t[i].n_dims; j++)
            if (json_array_append_new(shape, json_integer((json_int_t)t[i].dim[j])) != 0 || !es_mul(bytes, t[i].dim[j], &bytes))
                bad = true;
        size_t end;
        bad = bad || !es_add(at, bytes, &end);
        json_t *v = bad ? NULL : json_pack("{s:s, s:O, s:[I, I]}", "dtype", types[t[i].type].name, "shape", shape, "data_offsets", (json_int_t)at, (json_int_t)end);
        json_decref(shape);
        bad = bad || !v || json_object_set_new(header, t[i].name, v) != 0;
        if (!bad)
            at = end;
    }
    char *text = bad ? NULL : json_dumps(header, JSON_COMPACT);
    json_decref(header);
    if (!text)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a safetensors header");
    size_t length = strlen(text), padded = (length + 7) / 8 * 8; /* data begins aligned; spaces may follow the header */
    uint8_t size[8];
    for (int i = 0; i < 8; i++)
        size[i] = (uint8_t)((uint64_t)padded >> 8 * i);
    put(o, size, 8);
    put(o, text, length);
    put(o, "       ", padded - length);
    free(text);
    for (size_t i = 0; i < n; i++) {
        size_t count = 1;
        for (int j = 0; j < t[i].n_dims; j++)
            count *= t[i].dim[j];
        add_data(o, &t[i], count);
    }
    return ES_OK;
}

int es_safetensors_write(es_buf *out, const es_tensor_spec *t, size_t n, json_t *metadata, es_error *err)
{
    int rc = write_tensors(&(output){.buf = out}, t, n, metadata, err);
    return rc ? rc : out->failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory for the bytes of %zu tensors", n) : ES_OK;
}

typedef struct to_file {
    const es_tensor_spec *t;
    size_t n;
    json_t *metadata;
} to_file;

static int put_file(void *user, es_sink *out, es_error *err)
{
    const to_file *f = user;
    return write_tensors(&(output){.sink = out}, f->t, f->n, f->metadata, err);
}

int es_safetensors_write_file(const char *path, const es_tensor_spec *t, size_t n, json_t *metadata, es_error *err)
{
    return es_file_write_by(path, put_file, &(to_file){t, n, metadata}, err);
}
