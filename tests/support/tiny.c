/* A tiny llama as a GGUF file in memory, and its quantisers. */
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { T_U32 = 4, T_I32 = 5, T_F32 = 6, T_STRING = 8, T_ARRAY = 9 }; /* GGUF value types */

static void die(const char *what)
{
    fprintf(stderr, "tiny model: %s\n", what);
    exit(1);
}

static void *need(void *p)
{
    if (!p)
        die("no memory");
    return p;
}

/* ---- quantisers: plain rounding, no search ---- */

static uint16_t half(float x)
{
    uint16_t h;
    es_f32_to_f16(&x, &h, 1);
    return h;
}

static float unhalf(uint16_t h)
{
    float x;
    es_f16_to_f32(&h, &x, 1);
    return x;
}

static int clamp(float x, int low, int high)
{
    int i = (int)lrintf(x);
    return i < low ? low : i > high ? high : i;
}

static float max_abs(const float *x, int n)
{
    float m = 0;
    for (int i = 0; i < n; i++)
        m = fmaxf(m, fabsf(x[i]));
    return m;
}

static void block_q4_0(es_buf *out, const float *x)
{
    uint16_t d = half(max_abs(x, 32) / 7.5f);
    float s = unhalf(d) > 0 ? 1 / unhalf(d) : 0;
    uint8_t q[16];
    for (int i = 0; i < 16; i++)
        q[i] = (uint8_t)(clamp(x[i] * s + 8, 0, 15) | clamp(x[i + 16] * s + 8, 0, 15) << 4);
    es_buf_add(out, &d, 2);
    es_buf_add(out, q, 16);
}

static void block_q4_1(es_buf *out, const float *x)
{
    float low = x[0], high = x[0];
    for (int i = 1; i < 32; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
    }
    uint16_t d = half((high - low) / 15), m = half(low);
    float s = unhalf(d) > 0 ? 1 / unhalf(d) : 0;
    uint8_t q[16];
    for (int i = 0; i < 16; i++)
        q[i] = (uint8_t)(clamp((x[i] - unhalf(m)) * s, 0, 15) | clamp((x[i + 16] - unhalf(m)) * s, 0, 15) << 4);
    es_buf_add(out, &d, 2);
    es_buf_add(out, &m, 2);
    es_buf_add(out, q, 16);
}

/* Half d (and m); 32 fifth bits; nibbles. */
static void block_q5(es_buf *out, const float *x, bool offset)
{
    float low = x[0], high = x[0];
    for (int i = 1; i < 32; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
    }
    uint16_t d = half(offset ? (high - low) / 31 : max_abs(x, 32) / 15.5f), m = half(offset ? low : 0);
    float s = unhalf(d) > 0 ? 1 / unhalf(d) : 0;
    uint8_t q[16] = {0};
    uint32_t fifth = 0;
    for (int i = 0; i < 32; i++) {
        int v = clamp((x[i] - unhalf(m)) * s + (offset ? 0 : 16), 0, 31);
        q[i % 16] |= (uint8_t)((v & 15) << i / 16 * 4);
        fifth |= (uint32_t)(v >> 4) << i;
    }
    es_buf_add(out, &d, 2);
    if (offset)
        es_buf_add(out, &m, 2);
    es_buf_add(out, &fifth, 4);
    es_buf_add(out, q, 16);
}

static void block_iq4_nl(es_buf *out, const float *x)
{
    static const int8_t table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    uint16_t d = half(max_abs(x, 32) / 113);
    float s = unhalf(d) > 0 ? 1 / unhalf(d) : 0;
    uint8_t q[16] = {0};
    for (int i = 0; i < 32; i++) {
        int best = 0;
        for (int k = 1; k < 16; k++)
            if (fabsf(x[i] * s - table[k]) < fabsf(x[i] * s - table[best]))
                best = k;
        q[i % 16] |= (uint8_t)(best << i / 16 * 4);
    }
    es_buf_add(out, &d, 2);
    es_buf_add(out, q, 16);
}

static void block_q8_0(es_buf *out, const float *x)
{
    uint16_t d = half(max_abs(x, 32) / 127);
    float s = unhalf(d) > 0 ? 1 / unhalf(d) : 0;
    int8_t q[32];
    for (int i = 0; i < 32; i++)
        q[i] = (int8_t)clamp(x[i] * s, -127, 127);
    es_buf_add(out, &d, 2);
    es_buf_add(out, q, 32);
}

static void block_q6_k(es_buf *out, const float *x)
{
    uint8_t ql[128] = {0}, qh[64] = {0};
    int8_t scale[16];
    uint16_t d = half(max_abs(x, 256) / 31 / 127);
    float fd = unhalf(d) > 0 ? unhalf(d) : 1;
    for (int g = 0; g < 16; g++) { /* 16 values share a scale */
        scale[g] = (int8_t)clamp(max_abs(x + 16 * g, 16) / 31 / fd, 1, 127);
        for (int i = 0; i < 16; i++) {
            int at = 16 * g + i, q = clamp(x[at] / (fd * scale[g]) + 32, 0, 63);
            int h = at / 128, in = at % 128, row = in / 32, l = in % 32; /* ggml's order: two halves of four rows of 32 */
            ql[64 * h + l + 32 * (row & 1)] |= (uint8_t)((q & 15) << (row < 2 ? 0 : 4));
            qh[32 * h + l] |= (uint8_t)((q >> 4) << 2 * row);
        }
    }
    es_buf_add(out, ql, sizeof ql);
    es_buf_add(out, qh, sizeof qh);
    es_buf_add(out, scale, sizeof scale);
    es_buf_add(out, &d, 2);
}

/* What the types with minima share: sub-blocks of `size` elements, q of `bits` bits, scale and minimum of at most `most`. */
static void fit_minima(const float *x, int size, int bits, int most, uint16_t dm[2], uint8_t *scale, uint8_t *min, uint8_t *q)
{
    float span[16], low[16], widest = 0, lowest = 0;
    const int top = (1 << bits) - 1;
    for (int g = 0; g < 256 / size; g++) {
        float high = 0;
        low[g] = 0;
        for (int i = 0; i < size; i++) {
            low[g] = fminf(low[g], x[size * g + i]);
            high = fmaxf(high, x[size * g + i]);
        }
        span[g] = high - low[g];
        widest = fmaxf(widest, span[g]);
        lowest = fminf(lowest, low[g]);
    }
    dm[0] = half(widest / (float)(top * most));
    dm[1] = half(-lowest / (float)most);
    float d = unhalf(dm[0]) > 0 ? unhalf(dm[0]) : 1, dmin = unhalf(dm[1]) > 0 ? unhalf(dm[1]) : 1;
    for (int g = 0; g < 256 / size; g++) {
        scale[g] = (uint8_t)clamp(span[g] / (float)top / d, 1, most);
        min[g] = (uint8_t)clamp(-low[g] / dmin, 0, most);
        for (int i = size * g; i < size * (g + 1); i++)
            q[i] = (uint8_t)clamp((x[i] + dmin * min[g]) / (d * scale[g]), 0, top);
    }
}

static void block_q2_k(es_buf *out, const float *x)
{
    uint16_t dm[2];
    uint8_t scale[16], min[16], q[256], qs[64] = {0};
    fit_minima(x, 16, 2, 15, dm, scale, min, q);
    for (int g = 0; g < 16; g++)
        scale[g] |= (uint8_t)(min[g] << 4);
    for (int i = 0; i < 256; i++) /* two halves; a byte serves four elements that are 32 apart */
        qs[i / 128 * 32 + i % 32] |= (uint8_t)(q[i] << i % 128 / 32 * 2);
    es_buf_add(out, scale, 16);
    es_buf_add(out, qs, 64);
    es_buf_add(out, dm, 4);
}

static void block_q3_k(es_buf *out, const float *x)
{
    uint8_t hmask[32] = {0}, qs[64] = {0}, scales[12] = {0};
    uint16_t d = half(max_abs(x, 256) / 3.5f / 31);
    float fd = unhalf(d) > 0 ? unhalf(d) : 1;
    for (int g = 0; g < 16; g++) {
        int scale = clamp(max_abs(x + 16 * g, 16) / 3.5f / fd, 1, 31), stored = scale + 32;
        scales[g % 8] |= (uint8_t)((stored & 15) << g / 8 * 4);
        scales[8 + g % 4] |= (uint8_t)(stored >> 4 << g / 4 * 2);
        for (int i = 16 * g; i < 16 * (g + 1); i++) {
            int q = clamp(x[i] / (fd * (float)scale) + 4, 0, 7);
            qs[i / 128 * 32 + i % 32] |= (uint8_t)((q & 3) << i % 128 / 32 * 2);
            hmask[i % 32] |= (uint8_t)(q >> 2 << i / 32);
        }
    }
    es_buf_add(out, hmask, 32);
    es_buf_add(out, qs, 64);
    es_buf_add(out, scales, 12);
    es_buf_add(out, &d, 2);
}

/* Q4_K and Q5_K. */
static void block_q45_k(es_buf *out, const float *x, int bits)
{
    uint16_t dm[2];
    uint8_t scale[8], min[8], q[256], packed[12], qh[32] = {0}, qs[128] = {0};
    fit_minima(x, 32, bits, 63, dm, scale, min, q);
    for (int j = 0; j < 4; j++) {
        packed[j] = (uint8_t)(scale[j] | scale[j + 4] >> 4 << 6);
        packed[j + 4] = (uint8_t)(min[j] | min[j + 4] >> 4 << 6);
        packed[j + 8] = (uint8_t)((scale[j + 4] & 15) | (min[j + 4] & 15) << 4);
    }
    for (int i = 0; i < 256; i++) {
        qs[i / 64 * 32 + i % 32] |= (uint8_t)((q[i] & 15) << i / 32 % 2 * 4);
        qh[i % 32] |= (uint8_t)(q[i] >> 4 << i / 32);
    }
    es_buf_add(out, dm, 4);
    es_buf_add(out, packed, 12);
    if (bits == 5)
        es_buf_add(out, qh, 32);
    es_buf_add(out, qs, 128);
}

static uint16_t bfloat(float x) /* to nearest, ties away from 0 */
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x8000) >> 16);
}

void test_quantize(es_buf *out, es_type type, const float *x, size_t n)
{
    const es_type_info *t = es_type_get(type);
    if (!t || n % (size_t)t->block != 0)
        die("not a whole number of blocks");
    for (size_t i = 0; i < n; i += (size_t)t->block) {
        uint16_t h = type == ES_F16 ? half(x[i]) : bfloat(x[i]);
        switch (type) {
        case ES_F32: es_buf_add(out, x + i, 4); break;
        case ES_F16:
        case ES_BF16: es_buf_add(out, &h, 2); break;
        case ES_Q4_0: block_q4_0(out, x + i); break;
        case ES_Q4_1: block_q4_1(out, x + i); break;
        case ES_Q5_0: block_q5(out, x + i, false); break;
        case ES_Q5_1: block_q5(out, x + i, true); break;
        case ES_IQ4_NL: block_iq4_nl(out, x + i); break;
        case ES_Q8_0: block_q8_0(out, x + i); break;
        case ES_Q2_K: block_q2_k(out, x + i); break;
        case ES_Q3_K: block_q3_k(out, x + i); break;
        case ES_Q4_K: block_q45_k(out, x + i, 4); break;
        case ES_Q5_K: block_q45_k(out, x + i, 5); break;
        case ES_Q6_K: block_q6_k(out, x + i); break;
        }
    }
}

/* ---- keys and tensors ---- */

static tiny_kv *new_kv(tiny_file *f, const char *key)
{
    f->kv = need(realloc(f->kv, (f->n_kv + 1) * sizeof *f->kv));
    tiny_kv *kv = &f->kv[f->n_kv++];
    *kv = (tiny_kv){.key_len = strlen(key)};
    es_buf_str(&kv->key, key);
    f->said_kv = f->n_kv;
    return kv;
}

void tiny_set(tiny_kv *kv, uint32_t type, const void *value, size_t n)
{
    kv->type = type;
    es_buf_clear(&kv->value);
    es_buf_add(&kv->value, value, n);
}

tiny_kv *tiny_add_kv(tiny_file *f, const char *key, uint32_t type, const void *value, size_t n)
{
    tiny_kv *kv = new_kv(f, key);
    tiny_set(kv, type, value, n);
    return kv;
}

tiny_kv *tiny_find_kv(tiny_file *f, const char *key)
{
    for (size_t i = 0; i < f->n_kv; i++)
        if (f->kv[i].key.len == strlen(key) && memcmp(f->kv[i].key.data, key, strlen(key)) == 0)
            return &f->kv[i];
    die("no such key");
    return NULL;
}

tiny_tensor *tiny_find_tensor(tiny_file *f, const char *name)
{
    for (size_t i = 0; i < f->n_tensor; i++)
        if (strcmp(f->tensor[i].name.data, name) == 0)
            return &f->tensor[i];
    die("no such tensor");
    return NULL;
}

static void free_kv(tiny_kv *kv)
{
    es_buf_free(&kv->key);
    es_buf_free(&kv->value);
}

static void free_tensor(tiny_tensor *t)
{
    es_buf_free(&t->name);
    es_buf_free(&t->data);
}

void tiny_drop_kv(tiny_file *f, const char *key)
{
    tiny_kv *kv = tiny_find_kv(f, key);
    free_kv(kv);
    memmove(kv, kv + 1, (size_t)(f->kv + f->n_kv - kv - 1) * sizeof *kv);
    f->said_kv = --f->n_kv;
}

void tiny_drop_tensor(tiny_file *f, const char *name)
{
    tiny_tensor *t = tiny_find_tensor(f, name);
    free_tensor(t);
    memmove(t, t + 1, (size_t)(f->tensor + f->n_tensor - t - 1) * sizeof *t);
    f->said_tensor = --f->n_tensor;
    for (size_t i = 0, end = 0; i < f->n_tensor; i++) { /* the others move up */
        f->tensor[i].offset = end;
        end = (end + f->tensor[i].data.len + f->alignment - 1) / f->alignment * f->alignment;
    }
}

void tiny_set_u32(tiny_file *f, const char *key, uint32_t v)
{
    tiny_set(tiny_find_kv(f, key), T_U32, &v, 4);
}

static void add_str(es_buf *b, const char *s, size_t n)
{
    uint64_t len = n;
    es_buf_add(b, &len, 8);
    es_buf_add(b, s, n);
}

void tiny_set_str(tiny_file *f, const char *key, const char *s)
{
    tiny_kv *kv = tiny_find_kv(f, key);
    tiny_set(kv, T_STRING, "", 0);
    add_str(&kv->value, s, strlen(s));
}

void tiny_set_entry(tiny_file *f, const char *key, size_t i, const char *s, size_t n)
{
    tiny_kv *kv = tiny_find_kv(f, key);
    es_buf b = {0};
    size_t at = 12;
    uint64_t len, count;
    memcpy(&count, kv->value.data + 4, 8);
    if (i >= count)
        die("no such entry");
    for (size_t k = 0; k < i; k++) {
        memcpy(&len, kv->value.data + at, 8);
        at += 8 + len;
    }
    memcpy(&len, kv->value.data + at, 8);
    es_buf_add(&b, kv->value.data, at);
    add_str(&b, s, n);
    es_buf_add(&b, kv->value.data + at + 8 + len, kv->value.len - at - 8 - len);
    es_buf_free(&kv->value);
    kv->value = b;
}

static void add_u32(tiny_file *f, const char *key, uint32_t v)
{
    tiny_add_kv(f, key, T_U32, &v, 4);
}

static void add_f32(tiny_file *f, const char *key, float v)
{
    tiny_add_kv(f, key, T_F32, &v, 4);
}

static void add_text(tiny_file *f, const char *key, const char *s)
{
    new_kv(f, key);
    tiny_set_str(f, key, s);
}

static tiny_kv *add_array(tiny_file *f, const char *key, uint32_t type, uint64_t count)
{
    tiny_kv *kv = tiny_add_kv(f, key, T_ARRAY, &type, 4);
    es_buf_add(&kv->value, &count, 8);
    return kv;
}

tiny_tensor *tiny_add_tensor(tiny_file *f, const char *name, es_type type, size_t ne0, size_t ne1, const float *x)
{
    size_t end = 0;
    if (f->n_tensor) {
        const tiny_tensor *last = &f->tensor[f->n_tensor - 1];
        end = (last->offset + last->data.len + f->alignment - 1) / f->alignment * f->alignment;
    }
    f->tensor = need(realloc(f->tensor, (f->n_tensor + 1) * sizeof *f->tensor));
    tiny_tensor *t = &f->tensor[f->n_tensor++];
    *t = (tiny_tensor){.name_len = strlen(name), .ne = {ne0, ne1}, .n_dims = ne1 > 1 ? 2 : 1, .type = type, .offset = end};
    es_buf_str(&t->name, name);
    test_quantize(&t->data, type, x, ne0 * ne1);
    f->said_tensor = f->n_tensor;
    return t;
}

/* ---- the file's bytes ---- */

static void pack_header(es_buf *b, const tiny_file *f)
{
    es_buf_add(b, f->magic, 4);
    es_buf_add(b, &f->version, 4);
    es_buf_add(b, &f->said_tensor, 8);
    es_buf_add(b, &f->said_kv, 8);
    for (size_t i = 0; i < f->n_kv; i++) {
        const tiny_kv *kv = &f->kv[i];
        es_buf_add(b, &kv->key_len, 8);
        es_buf_add(b, kv->key.data, kv->key.len);
        es_buf_add(b, &kv->type, 4);
        es_buf_add(b, kv->value.data, kv->value.len);
    }
    for (size_t i = 0; i < f->n_tensor; i++) {
        const tiny_tensor *t = &f->tensor[i];
        es_buf_add(b, &t->name_len, 8);
        es_buf_add(b, t->name.data, t->name.len);
        es_buf_add(b, &t->n_dims, 4);
        for (uint32_t d = 0; d < t->n_dims && d < 16; d++) {
            uint64_t ne = d < 8 ? t->ne[d] : 1;
            es_buf_add(b, &ne, 8);
        }
        es_buf_add(b, &t->type, 4);
        es_buf_add(b, &t->offset, 8);
    }
    while (b->len % f->alignment != 0)
        es_buf_add(b, "", 1);
}

size_t tiny_header(const tiny_file *f)
{
    es_buf b = {0};
    pack_header(&b, f);
    size_t n = b.len;
    es_buf_free(&b);
    return n;
}

void tiny_pack(es_buf *out, const tiny_file *f)
{
    es_buf b = {0};
    pack_header(&b, f);
    size_t start = b.len;
    for (size_t i = 0; i < f->n_tensor; i++) { /* data in the order of the list; a spoilt offset spoils only what is said */
        while ((b.len - start) % f->alignment != 0)
            es_buf_add(&b, "", 1);
        es_buf_add(&b, f->tensor[i].data.data, f->tensor[i].data.len);
    }
    if (b.failed)
        die("no memory");
    es_buf_add(out, b.data, b.len);
    es_buf_free(&b);
}

void tiny_write(const char *path, const tiny_file *f)
{
    es_buf b = {0};
    tiny_pack(&b, f);
    test_write(path, b.data, b.len);
    es_buf_free(&b);
}

void tiny_free(tiny_file *f)
{
    for (size_t i = 0; i < f->n_kv; i++)
        free_kv(&f->kv[i]);
    for (size_t i = 0; i < f->n_tensor; i++)
        free_tensor(&f->tensor[i]);
    free(f->kv);
    free(f->tensor);
    free(f);
}

/* ---- the model ---- */

/* "_" stands for GPT-2's mark of a space. */
static const char *const merge_list[TINY_MERGES] = {
    "_ t", "h e", "i n", "_ a", "r e", "o n", "_t he", "e r", "_ s", "a t", "_ o", "n d", "e n", "_ w", "o u", "_ c",
    "i s", "i t", "_ b", "e s", "_ f", "o r", "_ p", "in g", "_a nd", "a l", "_ h", "_t o", "_o f", "a r", "_ m", "a n",
    "_ in", "_ d", "l e", "_i s", "_ y", "_y ou", "i c", "_ l", "l l", "e d", "_ n", "o m", "_ _", "__ __", "_ i", "v e",
    "_w h", "_b e", "_ re", "_f or", "_t h", "_th at", "i on", "_ g", "c h", "u t", "_w it", "_wit h", "\n \n", "s t", "_h e", "he r"};

/* Byte b as GPT-2's alphabet writes it. */
static void add_byte(es_buf *out, int b)
{
    int cp = b;
    if (b <= 32)
        cp = 256 + b;
    else if (b >= 127 && b <= 160)
        cp = 256 + 33 + b - 127;
    else if (b == 173)
        cp = 256 + 33 + 34;
    char s[2] = {(char)(0xc0 | cp >> 6), (char)(0x80 | (cp & 63))};
    if (cp < 128)
        s[0] = (char)cp;
    es_buf_add(out, s, cp < 128 ? 1 : 2);
}

static void add_tokenizer(tiny_file *f)
{
    static const char *const control[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    add_text(f, "tokenizer.ggml.model", "gpt2");
    add_text(f, "tokenizer.ggml.pre", "smollm");
    tiny_kv *kv = add_array(f, "tokenizer.ggml.tokens", T_STRING, TINY_VOCAB);
    es_buf b = {0};
    for (int i = 0; i < 3; i++)
        add_str(&kv->value, control[i], strlen(control[i]));
    for (int i = 0; i < 256; i++) {
        es_buf_clear(&b);
        add_byte(&b, i);
        add_str(&kv->value, b.data, b.len);
    }
    for (int what = 0; what < 2; what++) { /* the merged tokens, then the merges */
        if (what == 1)
            kv = add_array(f, "tokenizer.ggml.merges", T_STRING, TINY_MERGES);
        for (int i = 0; i < TINY_MERGES; i++) {
            es_buf_clear(&b);
            for (const char *s = merge_list[i]; *s; s++)
                if (*s == ' ' && what == 1)
                    es_buf_str(&b, " ");
                else if (*s != ' ')
                    add_byte(&b, *s == '_' ? ' ' : *s);
            add_str(&kv->value, b.data, b.len);
        }
    }
    es_buf_free(&b);
    kv = add_array(f, "tokenizer.ggml.token_type", T_I32, TINY_VOCAB);
    for (int32_t i = 0, type; i < TINY_VOCAB; i++) {
        type = i < 3 ? 3 : 1;
        es_buf_add(&kv->value, &type, 4);
    }
    add_u32(f, "tokenizer.ggml.bos_token_id", 1);
    add_u32(f, "tokenizer.ggml.eos_token_id", 2);
    add_text(f, "tokenizer.chat_template",
             "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
             "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}");
}

static float *normals(es_rng *rng, size_t n, float mean, float sd)
{
    float *x = need(malloc(n * sizeof *x));
    for (size_t i = 0; i < n; i++)
        x[i] = mean + sd * es_rng_normal(rng);
    return x;
}

static void add_normal(tiny_file *f, es_rng *rng, const char *name, es_type type, int n_in, int n_out, float mean, float sd)
{
    float *x = normals(rng, (size_t)n_in * (size_t)n_out, mean, sd);
    tiny_add_tensor(f, name, type, (size_t)n_in, (size_t)n_out, x);
    free(x);
}

tiny_options tiny_default(void)
{
    return (tiny_options){.n_layer = 4, .d_model = 64, .n_head = 4, .n_kv = 2, .d_ff = 128, .n_ctx = 512, .type = ES_F32, .seed = 1};
}

tiny_file *tiny_build(const tiny_options *options)
{
    tiny_options o = options ? *options : tiny_default();
    int hd = o.head_dim ? o.head_dim : o.d_model / o.n_head, d = o.d_model;
    tiny_file *f = need(calloc(1, sizeof *f));
    memcpy(f->magic, "GGUF", 4);
    f->version = 3;
    f->alignment = 32;
    add_text(f, "general.architecture", "llama");
    add_text(f, "general.name", "Tiny");
    add_u32(f, "general.alignment", 32);
    add_u32(f, "llama.block_count", (uint32_t)o.n_layer);
    add_u32(f, "llama.context_length", (uint32_t)o.n_ctx);
    add_u32(f, "llama.embedding_length", (uint32_t)d);
    add_u32(f, "llama.feed_forward_length", (uint32_t)o.d_ff);
    add_u32(f, "llama.attention.head_count", (uint32_t)o.n_head);
    add_u32(f, "llama.attention.head_count_kv", (uint32_t)o.n_kv);
    add_u32(f, "llama.attention.key_length", (uint32_t)hd);
    add_u32(f, "llama.attention.value_length", (uint32_t)hd);
    add_f32(f, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    add_f32(f, "llama.rope.freq_base", 10000.0f);
    add_u32(f, "llama.rope.dimension_count", (uint32_t)hd);
    add_u32(f, "llama.vocab_size", TINY_VOCAB);
    add_tokenizer(f);

    es_rng rng;
    es_rng_seed(&rng, o.seed);
    float in_d = 1 / sqrtf((float)d), in_h = 1 / sqrtf((float)(o.n_head * hd)), in_ff = 1 / sqrtf((float)o.d_ff);
    add_normal(f, &rng, "token_embd.weight", o.type, d, TINY_VOCAB, 0, 2 * in_d);
    for (int l = 0; l < o.n_layer; l++) {
        const struct {
            const char *name;
            int n_in, n_out;
            float sd;
        } site[] = {{"attn_q", d, o.n_head * hd, 1.5f * in_d}, {"attn_k", d, o.n_kv * hd, 1.5f * in_d},
                    {"attn_v", d, o.n_kv * hd, in_d},          {"attn_output", o.n_head * hd, d, 0.5f * in_h},
                    {"ffn_gate", d, o.d_ff, in_d},             {"ffn_up", d, o.d_ff, in_d},
                    {"ffn_down", o.d_ff, d, 0.7f * in_ff}};
        char name[64];
        snprintf(name, sizeof name, "blk.%d.attn_norm.weight", l);
        add_normal(f, &rng, name, ES_F32, d, 1, 1, 0.1f);
        snprintf(name, sizeof name, "blk.%d.ffn_norm.weight", l);
        add_normal(f, &rng, name, ES_F32, d, 1, 1, 0.1f);
        for (size_t s = 0; s < sizeof site / sizeof *site; s++) {
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, site[s].name);
            add_normal(f, &rng, name, o.type, site[s].n_in, site[s].n_out, 0, site[s].sd);
        }
    }
    add_normal(f, &rng, "output_norm.weight", ES_F32, d, 1, 1, 0.1f);
    if (o.untied)
        add_normal(f, &rng, "output.weight", o.type, d, TINY_VOCAB, 0, 2 * in_d);
    return f;
}

void make_tiny_gguf(const char *path, const tiny_options *o)
{
    tiny_file *f = tiny_build(o);
    tiny_write(path, f);
    tiny_free(f);
}

es_model *open_tiny(const tiny_options *o)
{
    static int count;
    es_model *m;
    es_error err;
    const char *path = test_path("tiny-%d.gguf", count++);
    make_tiny_gguf(path, o);
    if (es_model_open(&m, path, &err) != ES_OK)
        die(err.text);
    return m;
}
