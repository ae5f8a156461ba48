/* Types of weights: sizes, conversion to f32, half precision. Block layouts are those of ggml (ggml-common.h, MIT licence). */
#include <stdio.h>
#include <string.h>

#include "internal.h"

static const es_type_info infos[] = {
    [ES_F32] = {"F32", 1, 4},       [ES_F16] = {"F16", 1, 2},       [ES_BF16] = {"BF16", 1, 2},     [ES_Q4_0] = {"Q4_0", 32, 18},
    [ES_Q4_1] = {"Q4_1", 32, 20},   [ES_Q5_0] = {"Q5_0", 32, 22},   [ES_Q5_1] = {"Q5_1", 32, 24},   [ES_Q8_0] = {"Q8_0", 32, 34},
    [ES_Q2_K] = {"Q2_K", 256, 84},  [ES_Q3_K] = {"Q3_K", 256, 110}, [ES_Q4_K] = {"Q4_K", 256, 144}, [ES_Q5_K] = {"Q5_K", 256, 176},
    [ES_Q6_K] = {"Q6_K", 256, 210}, [ES_IQ4_NL] = {"IQ4_NL", 32, 18},
};

const es_type_info *es_type_get(int type)
{
    if (type < 0 || type >= (int)(sizeof infos / sizeof *infos) || !infos[type].name)
        return NULL;
    return &infos[type];
}

void es_type_list(char *out, size_t n)
{
    const int count = (int)(sizeof infos / sizeof *infos);
    int last = count - 1; /* the last one has a name: the table ends there */
    size_t at = 0;
    for (int i = 0; i < count && at < n; i++)
        if (infos[i].name)
            at += (size_t)snprintf(out + at, n - at, "%s%s", i == 0 ? "" : i == last ? " and " : ", ", infos[i].name);
}

/* ---- half precision (IEEE 754 binary16) --------------------------------------------------------------------------------- */

static float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ff, bits;
    float f;
    if (exponent == 31) { /* infinity, NaN */
        bits = sign | 0x7f800000 | fraction << 13;
    } else if (exponent) {
        bits = sign | (exponent + 112) << 23 | fraction << 13;
    } else { /* zero, subnormal: fraction * 2^-24 is exact in f32 */
        f = (float)fraction * 0x1p-24f;
        memcpy(&bits, &f, sizeof bits);
        bits |= sign;
    }
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint16_t float_to_half(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000, a = bits & 0x7fffffff;
    if (a > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff)); /* NaN stays NaN */
    if (a >= 0x477ff000)
        return (uint16_t)(sign | 0x7c00); /* 65520 and more round to infinity */
    if (a < 0x38800000) { /* below 2^-14, subnormal: adding 0.5 rounds to a multiple of 2^-24, which is then the integer at the bottom */
        float x;
        memcpy(&x, &a, sizeof x);
        x += 0.5f;
        memcpy(&a, &x, sizeof a);
        return (uint16_t)(sign | (a - 0x3f000000));
    }
    a += 0xfff + (a >> 13 & 1); /* round to nearest even at bit 13 */
    return (uint16_t)(sign | ((a - 0x38000000) >> 13));
}

void es_f16_to_f32(const uint16_t *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = half_to_float(src[i]);
}

void es_f32_to_f16(const float *src, uint16_t *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = float_to_half(src[i]);
}

/* ---- quantised blocks ------------------------------------------------------------------------------------------------------ */

static float half_at(const uint8_t *b)
{
    return half_to_float((uint16_t)(b[0] | b[1] << 8));
}

static uint32_t word_at(const uint8_t *b)
{
    return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

const int8_t es_iq4_nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* f16 d; 16 bytes: element j in the low half of byte j, j + 16 in its high half. x = d (q - 8). */
static void block_q4_0(const uint8_t *b, float *x)
{
    float d = half_at(b);
    for (int j = 0; j < 16; j++) {
        x[j] = d * (float)((b[2 + j] & 15) - 8);
        x[j + 16] = d * (float)((b[2 + j] >> 4) - 8);
    }
}

/* f16 d, f16 m; nibbles as above. x = d q + m. */
static void block_q4_1(const uint8_t *b, float *x)
{
    float d = half_at(b), m = half_at(b + 2);
    for (int j = 0; j < 16; j++) {
        x[j] = d * (float)(b[4 + j] & 15) + m;
        x[j + 16] = d * (float)(b[4 + j] >> 4) + m;
    }
}

/* f16 d; 4 bytes: bit j is the fifth bit of element j; nibbles as above. x = d (q - 16). */
static void block_q5_0(const uint8_t *b, float *x)
{
    float d = half_at(b);
    uint32_t high = word_at(b + 2);
    for (int j = 0; j < 16; j++) {
        x[j] = d * (float)((int)((b[6 + j] & 15) | (high >> j & 1) << 4) - 16);
        x[j + 16] = d * (float)((int)(b[6 + j] >> 4 | (high >> (j + 16) & 1) << 4) - 16);
    }
}

/* f16 d, f16 m; fifth bits and nibbles as above. x = d q + m. */
static void block_q5_1(const uint8_t *b, float *x)
{
    float d = half_at(b), m = half_at(b + 2);
    uint32_t high = word_at(b + 4);
    for (int j = 0; j < 16; j++) {
        x[j] = d * (float)((b[8 + j] & 15) | (high >> j & 1) << 4) + m;
        x[j + 16] = d * (float)(b[8 + j] >> 4 | (high >> (j + 16) & 1) << 4) + m;
    }
}

/* f16 d; nibbles as above, which choose from a table. x = d table[q]. */
static void block_iq4_nl(const uint8_t *b, float *x)
{
    float d = half_at(b);
    for (int j = 0; j < 16; j++) {
        x[j] = d * (float)es_iq4_nl[b[2 + j] & 15];
        x[j + 16] = d * (float)es_iq4_nl[b[2 + j] >> 4];
    }
}

/* f16 d; 32 signed bytes. x = d q. */
static void block_q8_0(const uint8_t *b, float *x)
{
    float d = half_at(b);
    for (int j = 0; j < 32; j++)
        x[j] = d * (float)(int8_t)b[2 + j];
}

/* The types of 256 elements (K): a sub-block of 16 or 32 elements has a scale of its own, and some a minimum, in units of the
 * block's d and dmin. i counts sub-blocks of 32.
 *
 * scales[16]: low nibble the scale, high nibble the minimum of 16 elements; qs[64]: two bits an element, byte l of a half's 32 serves
 * elements l, l + 32, l + 64, l + 96; f16 d, f16 dmin. x = d scale q - dmin min. */
static void block_q2_k(const uint8_t *b, float *x)
{
    float d = half_at(b + 80), dmin = half_at(b + 82);
    for (int i = 0; i < 8; i++, x += 32) {
        const uint8_t *qs = b + 16 + i / 4 * 32;
        for (int l = 0; l < 32; l++) {
            int s = b[2 * i + l / 16];
            x[l] = d * (float)(s & 15) * (float)(qs[l] >> i % 4 * 2 & 3) - dmin * (float)(s >> 4);
        }
    }
}

/* hmask[32]: bit i of byte l is the third bit of element l of sub-block i; qs[64]: two bits, as in Q2_K; scales[12]: es_scale_q3_k;
 * f16 d. x = d scale (q - 4). */
static void block_q3_k(const uint8_t *b, float *x)
{
    float d = half_at(b + 108);
    for (int i = 0; i < 8; i++, x += 32) {
        const uint8_t *qs = b + 32 + i / 4 * 32;
        for (int l = 0; l < 32; l++) {
            int q = (qs[l] >> i % 4 * 2 & 3) | (b[l] >> i & 1) << 2;
            x[l] = d * (float)es_scale_q3_k(b + 96, 2 * i + l / 16) * (float)(q - 4);
        }
    }
}

/* f16 d, f16 dmin; scales[12]: es_scale_min; qs[128]: 32 bytes for two sub-blocks, the first in the low nibbles.
 * x = d scale q - dmin min. */
static void block_q4_k(const uint8_t *b, float *x)
{
    float d = half_at(b), dmin = half_at(b + 2);
    for (int i = 0; i < 8; i++, x += 32) {
        const uint8_t *qs = b + 16 + i / 2 * 32;
        int scale, min;
        es_scale_min(b + 4, i, &scale, &min);
        for (int l = 0; l < 32; l++)
            x[l] = d * (float)scale * (float)(qs[l] >> i % 2 * 4 & 15) - dmin * (float)min;
    }
}

/* As Q4_K, with qh[32] before qs: bit i of byte l is the fifth bit of element l of sub-block i. */
static void block_q5_k(const uint8_t *b, float *x)
{
    float d = half_at(b), dmin = half_at(b + 2);
    const uint8_t *qh = b + 16;
    for (int i = 0; i < 8; i++, x += 32) {
        const uint8_t *qs = b + 48 + i / 2 * 32;
        int scale, min;
        es_scale_min(b + 4, i, &scale, &min);
        for (int l = 0; l < 32; l++)
            x[l] = d * (float)scale * (float)((qs[l] >> i % 2 * 4 & 15) | (qh[l] >> i & 1) << 4) - dmin * (float)min;
    }
}

/* 256 elements in two halves of 128. ql[128]: low 4 bits; qh[64]: high 2 bits; scales[16]: one signed byte for 16 elements;
 * f16 d. x = d scale (q - 32). Within a half, byte l of ql and qh serves elements l, l + 32, l + 64, l + 96. */
static void block_q6_k(const uint8_t *b, float *x)
{
    const uint8_t *ql = b, *qh = b + 128;
    const int8_t *scale = (const int8_t *)b + 192;
    float d = half_at(b + 208);
    for (int half = 0; half < 2; half++, ql += 64, qh += 32, scale += 8, x += 128)
        for (int l = 0; l < 32; l++) {
            int s = l / 16;
            x[l] = d * (float)scale[s] * (float)(((ql[l] & 15) | (qh[l] & 3) << 4) - 32);
            x[l + 32] = d * (float)scale[s + 2] * (float)(((ql[l + 32] & 15) | (qh[l] >> 2 & 3) << 4) - 32);
            x[l + 64] = d * (float)scale[s + 4] * (float)((ql[l] >> 4 | (qh[l] >> 4 & 3) << 4) - 32);
            x[l + 96] = d * (float)scale[s + 6] * (float)((ql[l + 32] >> 4 | qh[l] >> 6 << 4) - 32);
        }
}

void es_dequant(es_type type, const void *src, float *dst, size_t n)
{
    void (*block)(const uint8_t *, float *) = NULL;
    switch (type) {
    case ES_F32: memcpy(dst, src, n * sizeof *dst); return;
    case ES_F16:
        for (size_t i = 0; i < n; i++)
            dst[i] = half_at((const uint8_t *)src + 2 * i);
        return;
    case ES_BF16: /* the upper half of an f32 */
        for (size_t i = 0; i < n; i++) {
            uint16_t upper;
            memcpy(&upper, (const uint8_t *)src + 2 * i, sizeof upper);
            uint32_t bits = (uint32_t)upper << 16;
            memcpy(dst + i, &bits, sizeof bits);
        }
        return;
    case ES_Q4_0: block = block_q4_0; break;
    case ES_Q4_1: block = block_q4_1; break;
    case ES_Q5_0: block = block_q5_0; break;
    case ES_Q5_1: block = block_q5_1; break;
    case ES_Q8_0: block = block_q8_0; break;
    case ES_Q2_K: block = block_q2_k; break;
    case ES_Q3_K: block = block_q3_k; break;
    case ES_Q4_K: block = block_q4_k; break;
    case ES_Q5_K: block = block_q5_k; break;
    case ES_Q6_K: block = block_q6_k; break;
    case ES_IQ4_NL: block = block_iq4_nl; break;
    }
    const uint8_t *b = src;
    size_t size = (size_t)infos[type].block, bytes = (size_t)infos[type].bytes;
    for (size_t i = 0; i < n / size; i++)
        block(b + i * bytes, dst + i * size);
}
