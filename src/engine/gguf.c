#include "gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_KEY = 65535,    /* bytes, from the specification */
    MAX_COUNT = 65536,  /* keys and tensors: far above any model, low enough that a hostile count costs little */
    MIN_KV = 8 + 1 + 4 + 1,              /* bytes of the smallest key and value */
    MIN_TENSOR = 8 + 1 + 4 + 8 + 4 + 8,  /* and of the smallest tensor description */
    MAX_ALIGNMENT = 1 << 20,
};

static const int type_bytes[ES_GGUF_N_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
static const char *const type_names[ES_GGUF_N_TYPES] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array",
                                                        "u64", "i64", "f64"};

/* Names of ggml's tensor types, for the error message only. */
static const char *ggml_name(uint32_t type)
{
    static const char *const names[] = {
        "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K",
        "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M",
        "BF16"};
    return type < sizeof names / sizeof *names ? names[type] : "unknown";
}

/* ---- reading in order, with every step checked ---- */

typedef struct reader {
    const uint8_t *p, *end;
    const es_gguf *g;
    es_error *err;
    char where[96]; /* what is being read, for messages */
} reader;

static int bad(reader *r, const char *what)
{
    return es_fail(r->err, ES_ERR_FORMAT, "%s: %s (%s, byte %zu): not a usable GGUF file", r->g->map.path, what, r->where,
                   (size_t)(r->p - r->g->map.data));
}

static int take(reader *r, size_t n, const uint8_t **out)
{
    size_t left = (size_t)(r->end - r->p);
    if (n > left) {
        es_fail(r->err, ES_ERR_FORMAT, "%s: the file ends inside %s (%zu bytes needed at byte %zu, %zu left): cut short?",
                r->g->map.path, r->where, n, (size_t)(r->p - r->g->map.data), left);
        return ES_ERR_FORMAT;
    }
    *out = r->p;
    r->p += n;
    return ES_OK;
}

static uint64_t le(const uint8_t *p, int bytes)
{
    uint64_t v = 0;
    memcpy(&v, p, (size_t)bytes); /* little-endian hosts only, as the whole program */
    return v;
}

static int take_u32(reader *r, uint32_t *out)
{
    const uint8_t *p;
    int rc = take(r, 4, &p);
    if (rc == ES_OK)
        *out = (uint32_t)le(p, 4);
    return rc;
}

static int take_u64(reader *r, uint64_t *out)
{
    const uint8_t *p;
    int rc = take(r, 8, &p);
    if (rc == ES_OK)
        *out = le(p, 8);
    return rc;
}

static int take_str(reader *r, const char **s, size_t *n)
{
    uint64_t len;
    const uint8_t *p;
    int rc = take_u64(r, &len);
    if (rc == ES_OK)
        rc = take(r, len, &p);
    if (rc == ES_OK) {
        *s = (const char *)p;
        *n = len;
    }
    return rc;
}

/* ---- tables by name ---- */

static size_t hash_name(const char *s, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)s[i]) * 0x100000001b3u;
    return (size_t)(h ^ h >> 29);
}

static uint32_t *slots_new(size_t n, size_t *mask)
{
    size_t size = 8;
    while (size < 2 * n)
        size *= 2;
    *mask = size - 1;
    return es_calloc(size, sizeof(uint32_t));
}

static const es_gguf_kv *find_kv(const es_gguf *g, const char *key, size_t n, size_t *slot)
{
    size_t at = hash_name(key, n) & g->kv_mask;
    for (; g->kv_slot[at]; at = (at + 1) & g->kv_mask) {
        const es_gguf_kv *kv = &g->kv[g->kv_slot[at] - 1];
        if (kv->key_len == n && memcmp(kv->key, key, n) == 0)
            return kv;
    }
    *slot = at;
    return NULL;
}

static es_gguf_tensor *find_tensor(const es_gguf *g, const char *name, size_t *slot)
{
    size_t at = hash_name(name, strlen(name)) & g->tensor_mask;
    for (; g->tensor_slot[at]; at = (at + 1) & g->tensor_mask) {
        es_gguf_tensor *t = &g->tensor[g->tensor_slot[at] - 1];
        if (strcmp(t->name, name) == 0)
            return t;
    }
    *slot = at;
    return NULL;
}

const es_gguf_kv *es_gguf_find(const es_gguf *g, const char *key)
{
    size_t slot = 0;
    return find_kv(g, key, strlen(key), &slot);
}

es_gguf_tensor *es_gguf_find_tensor(es_gguf *g, const char *name)
{
    size_t slot = 0;
    return find_tensor(g, name, &slot);
}

/* Keys and tensor names are printable ASCII; anything else is a sign of rubbish and would go to a terminal one day. */
static bool name_ok(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (s[i] <= ' ' || s[i] >= 0x7f)
            return false;
    return n > 0;
}

/* ---- the parts of the file ---- */

static int read_value(reader *r, es_gguf_kv *kv)
{
    uint32_t type;
    int rc = take_u32(r, &type);
    if (rc != ES_OK)
        return rc;
    if (type >= ES_GGUF_N_TYPES)
        return bad(r, "unknown value type");
    kv->count = 1;
    if (type == ES_GGUF_ARRAY) {
        uint64_t count;
        kv->is_array = true;
        if ((rc = take_u32(r, &type)) != ES_OK || (rc = take_u64(r, &count)) != ES_OK)
            return rc;
        if (type >= ES_GGUF_N_TYPES)
            return bad(r, "unknown type of array elements");
        if (type == ES_GGUF_ARRAY)
            return bad(r, "an array of arrays, which this reader refuses");
        kv->count = count;
    }
    kv->type = (es_gguf_type)type;
    kv->data = r->p;
    if (type == ES_GGUF_STRING) {
        if (kv->count > (size_t)(r->end - r->p) / 8) /* each string has at least its length: bounds the loop at once */
            return bad(r, "more strings in an array than the file could hold");
        for (size_t i = 0; i < kv->count; i++) {
            const char *s;
            size_t n;
            if ((rc = take_str(r, &s, &n)) != ES_OK)
                return rc;
        }
    } else {
        size_t bytes;
        const uint8_t *p;
        if (!es_mul(kv->count, (size_t)type_bytes[type], &bytes))
            return bad(r, "an array whose size overflows");
        if ((rc = take(r, bytes, &p)) != ES_OK)
            return rc;
        if (type == ES_GGUF_BOOL)
            for (size_t i = 0; i < bytes; i++)
                if (p[i] > 1)
                    return bad(r, "a bool that is neither 0 nor 1");
    }
    kv->bytes = (size_t)(r->p - kv->data);
    return ES_OK;
}

static int read_kvs(reader *r, es_gguf *g)
{
    for (size_t i = 0; i < g->n_kv; i++) {
        es_gguf_kv kv = {0};
        snprintf(r->where, sizeof r->where, "key %zu of %zu", i + 1, g->n_kv);
        int rc = take_str(r, &kv.key, &kv.key_len);
        if (rc != ES_OK)
            return rc;
        if (kv.key_len == 0)
            return bad(r, "an empty key");
        if (kv.key_len > MAX_KEY || !name_ok(kv.key, kv.key_len))
            return bad(r, "a key that is overlong or not printable ASCII");
        snprintf(r->where, sizeof r->where, "key %.*s", (int)(kv.key_len > 80 ? 80 : kv.key_len), kv.key);
        if ((rc = read_value(r, &kv)) != ES_OK)
            return rc;
        size_t slot;
        if (find_kv(g, kv.key, kv.key_len, &slot))
            return bad(r, "the key occurs twice");
        g->kv[i] = kv;
        g->kv_slot[slot] = (uint32_t)i + 1;
    }
    return ES_OK;
}

/* offset[i]: of the tensor in the data section, checked later, when the section's start is known. */
static int read_tensor(reader *r, es_gguf *g, size_t i, uint64_t *offset)
{
    es_gguf_tensor *t = &g->tensor[i];
    const char *name;
    size_t n;
    uint32_t n_dims, type;
    snprintf(r->where, sizeof r->where, "the description of tensor %zu of %zu", i + 1, g->n_tensor);
    int rc = take_str(r, &name, &n);
    if (rc != ES_OK)
        return rc;
    if (n >= sizeof t->name || !name_ok(name, n))
        return bad(r, "a tensor name that is empty, over 64 bytes or not printable ASCII");
    memcpy(t->name, name, n);
    snprintf(r->where, sizeof r->where, "tensor %s", t->name);
    size_t slot = 0;
    if (find_tensor(g, t->name, &slot))
        return bad(r, "the tensor occurs twice");
    g->tensor_slot[slot] = (uint32_t)i + 1;
    if ((rc = take_u32(r, &n_dims)) != ES_OK)
        return rc;
    if (n_dims < 1 || n_dims > 4)
        return bad(r, "a tensor must have 1 to 4 dimensions");
    t->n_dims = (int)n_dims;
    size_t elements = 1;
    for (uint32_t d = 0; d < 4; d++) {
        uint64_t ne = 1;
        if (d < n_dims && (rc = take_u64(r, &ne)) != ES_OK)
            return rc;
        if (ne == 0 || ne > INT32_MAX)
            return bad(r, "a dimension of 0 or over 2^31");
        t->ne[d] = ne;
        if (!es_mul(elements, ne, &elements))
            return bad(r, "a size that overflows");
    }
    if ((rc = take_u32(r, &type)) != ES_OK || (rc = take_u64(r, offset)) != ES_OK)
        return rc;
    const es_type_info *info = type <= INT32_MAX ? es_type_get((int)type) : NULL;
    if (!info) {
        char known[128];
        es_type_list(known, sizeof known);
        return es_fail(r->err, ES_ERR_FORMAT, "%s: tensor %s has type %s (%u), which is not read here: use a file in %s", g->map.path,
                       t->name, ggml_name(type), type, known);
    }
    t->type = (es_type)type;
    if (t->ne[0] % (size_t)info->block != 0)
        return bad(r, "a row that is not a whole number of blocks");
    if (!es_mul(elements / (size_t)info->block, (size_t)info->bytes, &t->bytes))
        return bad(r, "a size that overflows");
    return ES_OK;
}

typedef struct span {
    uint64_t from, to;
    size_t tensor;
} span;

static int by_from(const void *a, const void *b)
{
    const span *x = a, *y = b;
    return (x->from > y->from) - (x->from < y->from);
}

/* Puts every tensor into the data section: aligned, inside the file, none over another. */
static int place_tensors(reader *r, es_gguf *g, const uint64_t *offset)
{
    size_t head = (size_t)(r->p - g->map.data), start;
    if (!es_add(head, g->alignment - 1, &start))
        return bad(r, "a size that overflows");
    start &= ~(g->alignment - 1);
    size_t section = start < g->map.size ? g->map.size - start : 0;
    span *s = es_calloc(g->n_tensor, sizeof *s);
    if (!s)
        return es_fail(r->err, ES_ERR_MEMORY, "%s: not enough memory to check its tensors", g->map.path);
    int rc = ES_OK;
    for (size_t i = 0; i < g->n_tensor && rc == ES_OK; i++) {
        es_gguf_tensor *t = &g->tensor[i];
        size_t end;
        snprintf(r->where, sizeof r->where, "tensor %s", t->name);
        if (offset[i] % g->alignment != 0)
            rc = bad(r, "an offset that is not aligned");
        else if (!es_add(offset[i], t->bytes, &end) || end > section)
            rc = es_fail(r->err, ES_ERR_FORMAT, "%s: the data of tensor %s (%zu bytes at %llu) go past the file's end: cut short?",
                         g->map.path, t->name, t->bytes, (unsigned long long)offset[i]);
        else
            t->data = g->map.data + start + offset[i];
        s[i] = (span){offset[i], offset[i] + t->bytes, i};
    }
    if (rc == ES_OK) {
        qsort(s, g->n_tensor, sizeof *s, by_from);
        for (size_t i = 1; i < g->n_tensor && rc == ES_OK; i++)
            if (s[i].from < s[i - 1].to)
                rc = es_fail(r->err, ES_ERR_FORMAT, "%s: the data of tensors %s and %s overlap: not a usable GGUF file",
                             g->map.path, g->tensor[s[i - 1].tensor].name, g->tensor[s[i].tensor].name);
    }
    free(s);
    return rc;
}

static int read_header(reader *r, es_gguf *g)
{
    const uint8_t *p;
    uint32_t version;
    uint64_t n_tensor, n_kv;
    snprintf(r->where, sizeof r->where, "the header");
    int rc = take(r, 4, &p);
    if (rc != ES_OK)
        return rc;
    if (memcmp(p, "GGUF", 4) != 0)
        return es_fail(r->err, ES_ERR_FORMAT, "%s: is not a GGUF file (it does not begin with \"GGUF\")", g->map.path);
    if ((rc = take_u32(r, &version)) != ES_OK)
        return rc;
    if (version != 0 && (version & 0xffff) == 0)
        return es_fail(r->err, ES_ERR_FORMAT, "%s: is a big-endian GGUF file, which is not read here", g->map.path);
    if (version != 2 && version != 3)
        return es_fail(r->err, ES_ERR_FORMAT, "%s: is GGUF version %u; versions 2 and 3 are read", g->map.path, version);
    g->version = (int)version;
    if ((rc = take_u64(r, &n_tensor)) != ES_OK || (rc = take_u64(r, &n_kv)) != ES_OK)
        return rc;
    size_t left = (size_t)(r->end - r->p);
    if (n_tensor > MAX_COUNT || n_tensor > left / MIN_TENSOR)
        return bad(r, "a number of tensors that cannot be");
    if (n_kv > MAX_COUNT || n_kv > left / MIN_KV)
        return bad(r, "a number of keys that cannot be");
    g->n_tensor = n_tensor;
    g->n_kv = n_kv;
    return ES_OK;
}

static int read_all(reader *r, es_gguf *g)
{
    int rc = read_header(r, g);
    if (rc != ES_OK)
        return rc;
    g->kv = es_calloc(g->n_kv, sizeof *g->kv);
    g->tensor = es_calloc(g->n_tensor, sizeof *g->tensor);
    g->kv_slot = slots_new(g->n_kv, &g->kv_mask);
    g->tensor_slot = slots_new(g->n_tensor, &g->tensor_mask);
    uint64_t *offset = es_calloc(g->n_tensor, sizeof *offset);
    if (!g->kv || !g->tensor || !g->kv_slot || !g->tensor_slot || !offset) {
        free(offset);
        return es_fail(r->err, ES_ERR_MEMORY, "%s: not enough memory for its list of tensors", g->map.path);
    }
    rc = read_kvs(r, g);
    g->alignment = 32;
    const es_gguf_kv *kv = rc == ES_OK ? es_gguf_find(g, "general.alignment") : NULL;
    if (kv) {
        uint64_t a = kv->type == ES_GGUF_U32 && !kv->is_array ? le(kv->data, 4) : 0;
        snprintf(r->where, sizeof r->where, "key general.alignment");
        if (a < 8 || a > MAX_ALIGNMENT || (a & (a - 1)) != 0)
            rc = bad(r, "the alignment must be a u32 and a power of two from 8 to 2^20");
        else
            g->alignment = a;
    }
    for (size_t i = 0; i < g->n_tensor && rc == ES_OK; i++)
        rc = read_tensor(r, g, i, &offset[i]);
    if (rc == ES_OK)
        rc = place_tensors(r, g, offset);
    free(offset);
    return rc;
}

int es_gguf_open(es_gguf *g, const char *path, es_error *err)
{
    *g = (es_gguf){0};
    int rc = es_map_open(&g->map, path, err);
    if (rc != ES_OK)
        return rc;
    reader r = {.p = g->map.data, .end = g->map.data + g->map.size, .g = g, .err = err};
    rc = read_all(&r, g);
    if (rc != ES_OK)
        es_gguf_close(g);
    return rc;
}

void es_gguf_close(es_gguf *g)
{
    free(g->kv);
    free(g->tensor);
    free(g->kv_slot);
    free(g->tensor_slot);
    es_map_close(&g->map);
    *g = (es_gguf){0};
}

/* ---- values by key ---- */

static int kv_fail(const es_gguf *g, const char *key, const es_gguf_kv *kv, const char *want, es_error *err)
{
    if (!kv)
        return es_fail(err, ES_ERR_FORMAT, "%s: the key %s is missing", g->map.path, key);
    return es_fail(err, ES_ERR_FORMAT, "%s: the key %s is %s%s, not %s", g->map.path, key, kv->is_array ? "an array of " : "",
                   type_names[kv->type], want);
}

int es_gguf_int(const es_gguf *g, const char *key, bool must, int64_t min, int64_t max, int64_t *out, es_error *err)
{
    const es_gguf_kv *kv = es_gguf_find(g, key);
    if (!kv)
        return must ? kv_fail(g, key, kv, "", err) : ES_OK;
    bool is_signed = kv->type == ES_GGUF_I8 || kv->type == ES_GGUF_I16 || kv->type == ES_GGUF_I32 || kv->type == ES_GGUF_I64;
    bool is_unsigned = kv->type == ES_GGUF_U8 || kv->type == ES_GGUF_U16 || kv->type == ES_GGUF_U32 || kv->type == ES_GGUF_U64;
    if (kv->is_array || !(is_signed || is_unsigned))
        return kv_fail(g, key, kv, "a whole number", err);
    int bytes = type_bytes[kv->type];
    uint64_t u = le(kv->data, bytes);
    if (is_unsigned && u > INT64_MAX)
        u = INT64_MAX;
    int64_t v = (int64_t)u;
    if (is_signed && bytes < 8 && u >> (8 * bytes - 1))
        v = (int64_t)u - ((int64_t)1 << 8 * bytes);
    if (v < min || v > max)
        return es_fail(err, ES_ERR_FORMAT, "%s: the key %s is %lld, outside %lld to %lld", g->map.path, key, (long long)v,
                       (long long)min, (long long)max);
    *out = v;
    return ES_OK;
}

int es_gguf_float(const es_gguf *g, const char *key, bool must, float *out, es_error *err)
{
    const es_gguf_kv *kv = es_gguf_find(g, key);
    if (!kv)
        return must ? kv_fail(g, key, kv, "", err) : ES_OK;
    if (kv->is_array || (kv->type != ES_GGUF_F32 && kv->type != ES_GGUF_F64))
        return kv_fail(g, key, kv, "a float", err);
    double d;
    if (kv->type == ES_GGUF_F32)
        memcpy(out, kv->data, sizeof *out);
    else
        memcpy(&d, kv->data, sizeof d), *out = (float)d;
    return ES_OK;
}

int es_gguf_bool(const es_gguf *g, const char *key, bool must, bool *out, es_error *err)
{
    const es_gguf_kv *kv = es_gguf_find(g, key);
    if (!kv)
        return must ? kv_fail(g, key, kv, "", err) : ES_OK;
    if (kv->is_array || kv->type != ES_GGUF_BOOL)
        return kv_fail(g, key, kv, "a bool", err);
    *out = kv->data[0];
    return ES_OK;
}

int es_gguf_str(const es_gguf *g, const char *key, bool must, const char **out, size_t *n, es_error *err)
{
    const es_gguf_kv *kv = es_gguf_find(g, key);
    if (!kv)
        return must ? kv_fail(g, key, kv, "", err) : ES_OK;
    if (kv->is_array || kv->type != ES_GGUF_STRING)
        return kv_fail(g, key, kv, "a string", err);
    const uint8_t *p = kv->data;
    *out = es_gguf_next_str(&p, n);
    return ES_OK;
}

int es_gguf_array(const es_gguf *g, const char *key, bool must, es_gguf_type type, const es_gguf_kv **out, es_error *err)
{
    const es_gguf_kv *kv = es_gguf_find(g, key);
    *out = NULL;
    if (!kv)
        return must ? kv_fail(g, key, kv, "", err) : ES_OK;
    if (!kv->is_array || kv->type != type) {
        char want[32];
        snprintf(want, sizeof want, "an array of %s", type_names[type]);
        return kv_fail(g, key, kv, want, err);
    }
    *out = kv;
    return ES_OK;
}

const char *es_gguf_next_str(const uint8_t **p, size_t *n)
{
    *n = le(*p, 8);
    const char *s = (const char *)*p + 8;
    *p += 8 + *n;
    return s;
}

/* ---- NaN and infinity ---- */

/* Whether no exponent at p, p + stride, ... is all ones: of one half, or with `two` of two halves side by side. `exponent`: its bits
 * in 16. Branch-free, so that a whole model is checked in about the time it takes to read it: the 98 MB of SmolLM2 in 15 to 30 ms,
 * which is why nothing is left to be found later. */
static bool halves_finite(const uint8_t *p, size_t n, size_t stride, bool two, uint32_t exponent)
{
    uint32_t low = 0, high = 0;
    for (size_t i = 0; i < n; i++, p += stride) {
        uint32_t v = 0;
        memcpy(&v, p, two ? 4 : 2);
        uint32_t a = v & exponent, b = v & exponent << 16;
        low = a > low ? a : low;
        high = b > high ? b : high;
    }
    return low != exponent && high != exponent << 16;
}

static bool floats_finite(const uint8_t *p, size_t n)
{
    uint32_t worst = 0, bits;
    for (size_t i = 0; i < n; i++) {
        memcpy(&bits, p + 4 * i, 4);
        bits &= 0x7f800000u;
        worst = bits > worst ? bits : worst;
    }
    return worst != 0x7f800000u;
}

/* All other numbers in a block are small integers. */
bool es_gguf_tensor_finite(const es_gguf_tensor *t)
{
    enum { F16 = 0x7c00, BF16 = 0x7f80 };
    const size_t stride = (size_t)es_type_get((int)t->type)->bytes, n = t->bytes / stride;
    const uint8_t *p = t->data;
    switch (t->type) {
    case ES_F32: return floats_finite(p, n);
    case ES_BF16: return halves_finite(p, n, stride, false, BF16);
    case ES_F16:
    case ES_Q4_0: /* half d first */
    case ES_Q5_0:
    case ES_Q8_0:
    case ES_IQ4_NL: return halves_finite(p, n, stride, false, F16);
    case ES_Q4_1: /* half d, half m or dmin first */
    case ES_Q5_1:
    case ES_Q4_K:
    case ES_Q5_K: return halves_finite(p, n, stride, true, F16);
    case ES_Q2_K: return halves_finite(p + 80, n, stride, true, F16); /* 16 + 64 bytes, half d, half dmin */
    case ES_Q3_K: return halves_finite(p + 108, n, stride, false, F16); /* 32 + 64 + 12 bytes, half d */
    case ES_Q6_K: return halves_finite(p + 208, n, stride, false, F16); /* 128 + 64 + 16 bytes, half d */
    }
    return false;
}
