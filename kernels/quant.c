/* Types of weights: sizes, conversion to f32, half precision. Block layouts are those of ggml (ggml-common.h, MIT licence). */
#include <string.h>

#include "internal.h"

static const es_type_info infos[] = {
    [ES_F32] = {"F32", 1, 4},    [ES_F16] = {"F16", 1, 2},    [ES_Q4_0] = {"Q4_0", 32, 18},
    [ES_Q4_1] = {"Q4_1", 32, 20}, [ES_Q8_0] = {"Q8_0", 32, 34}, [ES_Q6_K] = {"Q6_K", 256, 210},
};

const es_type_info *es_type_get(int type)
{
    if (type < 0 || type >= (int)(sizeof infos / sizeof *infos) || !infos[type].name)
        return NULL;
    return &infos[type];
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

/* f16 d; 32 signed bytes. x = d q. */
static void block_q8_0(const uint8_t *b, float *x)
{
    float d = half_at(b);
    for (int j = 0; j < 32; j++)
        x[j] = d * (float)(int8_t)b[2 + j];
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
    case ES_Q4_0: block = block_q4_0; break;
    case ES_Q4_1: block = block_q4_1; break;
    case ES_Q8_0: block = block_q8_0; break;
    case ES_Q6_K: block = block_q6_k; break;
    }
    const uint8_t *b = src;
    size_t size = (size_t)infos[type].block, bytes = (size_t)infos[type].bytes;
    for (size_t i = 0; i < n / size; i++)
        block(b + i * bytes, dst + i * size);
}
