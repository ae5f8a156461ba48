/* The CPU table's row ops for 64-bit ARM, where NEON always is there. The ops on floats are rows_impl.h's vectors of four, which become
 * NEON; here is what quantised blocks need. As in quant_x86.h, a block of any type is unpacked 32 elements at a time into 16-bit integers
 * q and floats d, m: w = d q + m, m held by 16 elements. */
#include "internal.h"

#ifdef __aarch64__

#include <arm_neon.h>

#define W 4
#include "rows_impl.h"
#include "half_impl.h"

enum {
    Q_BLOCK = 32,
    TOKENS = 4, /* that meet a row at a time */
};

typedef struct unpacked {
    int16x8_t q[4];
    float d, m[2];
} unpacked;

INLINE float half_at(const uint8_t *p)
{
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
}

/* 16 bytes less `zero` as 16-bit integers. */
INLINE void widen(uint8x16_t bytes, int zero, int16x8_t q[2])
{
    q[0] = vsubq_s16(vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes))), vdupq_n_s16((int16_t)zero));
    q[1] = vsubq_s16(vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(bytes))), vdupq_n_s16((int16_t)zero));
}

INLINE void widen_signed(int8x16_t bytes, int16x8_t q[2])
{
    q[0] = vmovl_s8(vget_low_s8(bytes));
    q[1] = vmovl_s8(vget_high_s8(bytes));
}

/* (p[j] >> shift) & mask of 16 bytes. */
INLINE uint8x16_t bits_at(const uint8_t *p, int shift, int mask)
{
    return vandq_u8(vshlq_u8(vld1q_u8(p), vdupq_n_s8((int8_t)-shift)), vdupq_n_u8((uint8_t)mask));
}

/* 16 bits as 16 bytes of 0 or 16. */
INLINE uint8x16_t fifth_bits(const uint8_t *p)
{
    static const uint8_t bit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t spread = vcombine_u8(vdup_n_u8(p[0]), vdup_n_u8(p[1]));
    return vandq_u8(vtstq_u8(spread, vld1q_u8(bit)), vdupq_n_u8(16));
}

/* Types of blocks of 32; part h of 16 elements is nibble h of 16 bytes. */
INLINE void unpack_small(const es_type type, const uint8_t *b, unpacked *u)
{
    u->d = half_at(b);
    u->m[0] = u->m[1] = type == ES_Q4_1 || type == ES_Q5_1 ? half_at(b + 2) : 0;
    for (int h = 0; h < 2; h++)
        switch (type) {
        case ES_Q4_0: widen(bits_at(b + 2, 4 * h, 15), 8, u->q + 2 * h); break;
        case ES_Q4_1: widen(bits_at(b + 4, 4 * h, 15), 0, u->q + 2 * h); break;
        case ES_Q5_0: widen(vorrq_u8(bits_at(b + 6, 4 * h, 15), fifth_bits(b + 2 + 2 * h)), 16, u->q + 2 * h); break;
        case ES_Q5_1: widen(vorrq_u8(bits_at(b + 8, 4 * h, 15), fifth_bits(b + 4 + 2 * h)), 0, u->q + 2 * h); break;
        case ES_Q8_0: widen_signed(vld1q_s8((const int8_t *)b + 2 + 16 * h), u->q + 2 * h); break;
        default: widen_signed(vqtbl1q_s8(vld1q_s8(es_iq4_nl), bits_at(b + 2, 4 * h, 15)), u->q + 2 * h); /* IQ4_NL */
        }
}

INLINE void scale_part(int16x8_t q[2], int scale)
{
    q[0] = vmulq_n_s16(q[0], (int16_t)scale);
    q[1] = vmulq_n_s16(q[1], (int16_t)scale);
}

/* Sub-block i (of 8) of a block of 256; part h of 16 elements. A scale of 32 elements goes into d, of 16 into the integers. */
INLINE void unpack_k(const es_type type, const uint8_t *b, int i, unpacked *u)
{
    const int half = i / 4, quarter = i % 4;
    int scale, min;
    u->m[0] = u->m[1] = 0;
    switch (type) {
    case ES_Q2_K:
        u->d = half_at(b + 80);
        for (int h = 0; h < 2; h++) {
            widen(bits_at(b + 16 + 32 * half + 16 * h, 2 * quarter, 3), 0, u->q + 2 * h);
            scale_part(u->q + 2 * h, b[2 * i + h] & 15);
            u->m[h] = -half_at(b + 82) * (float)(b[2 * i + h] >> 4);
        }
        break;
    case ES_Q3_K:
        u->d = half_at(b + 108);
        for (int h = 0; h < 2; h++) {
            uint8x16_t third = vshlq_n_u8(bits_at(b + 16 * h, i, 1), 2);
            widen(vorrq_u8(bits_at(b + 32 + 32 * half + 16 * h, 2 * quarter, 3), third), 4, u->q + 2 * h);
            scale_part(u->q + 2 * h, es_scale_q3_k(b + 96, 2 * i + h));
        }
        break;
    case ES_Q4_K:
    case ES_Q5_K:
        es_scale_min(b + 4, i, &scale, &min);
        u->d = half_at(b) * (float)scale;
        u->m[0] = u->m[1] = -half_at(b + 2) * (float)min;
        for (int h = 0; h < 2; h++) {
            uint8x16_t q = bits_at(b + (type == ES_Q4_K ? 16 : 48) + i / 2 * 32 + 16 * h, i % 2 * 4, 15);
            if (type == ES_Q5_K)
                q = vorrq_u8(q, vshlq_n_u8(bits_at(b + 16 + 16 * h, i, 1), 4));
            widen(q, 0, u->q + 2 * h);
        }
        break;
    default: /* Q6_K; |scale (q - 32)| <= 128 * 32 */
        u->d = half_at(b + 208);
        for (int h = 0; h < 2; h++) {
            uint8x16_t low = bits_at(b + half * 64 + (quarter & 1) * 32 + 16 * h, quarter / 2 * 4, 15);
            uint8x16_t high = bits_at(b + 128 + half * 32 + 16 * h, 2 * quarter, 3);
            widen(vorrq_u8(low, vshlq_n_u8(high, 4)), 32, u->q + 2 * h);
            scale_part(u->q + 2 * h, (int8_t)b[192 + 2 * i + h]);
        }
    }
}

/* Elements 32 i .. 32 i + 31 of a row of `type`. */
INLINE void unpack(const es_type type, const uint8_t *row, int i, unpacked *u)
{
    switch (type) {
    case ES_Q4_0:
    case ES_IQ4_NL: unpack_small(type, row + (size_t)i * 18, u); break;
    case ES_Q4_1: unpack_small(type, row + (size_t)i * 20, u); break;
    case ES_Q5_0: unpack_small(type, row + (size_t)i * 22, u); break;
    case ES_Q5_1: unpack_small(type, row + (size_t)i * 24, u); break;
    case ES_Q8_0: unpack_small(type, row + (size_t)i * 34, u); break;
    case ES_Q2_K: unpack_k(type, row + (size_t)(i / 8) * 84, i % 8, u); break;
    case ES_Q3_K: unpack_k(type, row + (size_t)(i / 8) * 110, i % 8, u); break;
    case ES_Q4_K: unpack_k(type, row + (size_t)(i / 8) * 144, i % 8, u); break;
    case ES_Q5_K: unpack_k(type, row + (size_t)(i / 8) * 176, i % 8, u); break;
    default: unpack_k(type, row + (size_t)(i / 8) * 210, i % 8, u); /* Q6_K */
    }
}

/* The 32 elements as floats. */
INLINE void unpack_float(const es_type type, const uint8_t *row, int i, float32x4_t f[8])
{
    unpacked u;
    switch (type) {
    case ES_F32:
        for (int c = 0; c < 8; c++)
            f[c] = vreinterpretq_f32_u8(vld1q_u8(row + (size_t)i * 128 + 16 * (size_t)c));
        return;
    case ES_F16:
        for (int c = 0; c < 8; c++)
            f[c] = vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(row + (size_t)i * 64 + 8 * (size_t)c)));
        return;
    case ES_BF16:
        for (int c = 0; c < 8; c++)
            f[c] = vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(row + (size_t)i * 64 + 8 * (size_t)c)), 16));
        return;
    default:
        unpack(type, row, i, &u);
        for (int c = 0; c < 8; c++) {
            int16x4_t q = c & 1 ? vget_high_s16(u.q[c / 2]) : vget_low_s16(u.q[c / 2]);
            f[c] = vfmaq_n_f32(vdupq_n_f32(u.m[c / 4]), vcvtq_f32_s32(vmovl_s16(q)), u.d);
        }
    }
}

/* ---- a row of weights times T <= TOKENS tokens; T is a constant at every call, so that the sums stay in registers ---------------- */

INLINE void row_exact(const es_type type, const int T, const uint8_t *w, int K, const float *x, float *y, size_t N, bool accumulate)
{
    float32x4_t sum[TOKENS][2];
    for (int t = 0; t < T; t++)
        sum[t][0] = sum[t][1] = vdupq_n_f32(0);
    for (int b = 0; b < K / Q_BLOCK; b++) {
        float32x4_t f[8];
        unpack_float(type, w, b, f);
        for (int t = 0; t < T; t++)
            for (int c = 0; c < 8; c++)
                sum[t][c % 2] = vfmaq_f32(sum[t][c % 2], f[c], vld1q_f32(x + (size_t)t * (size_t)K + (size_t)b * Q_BLOCK + 4 * c));
    }
    for (int t = 0; t < T; t++, x += K, y += N) {
        float s = vaddvq_f32(vaddq_f32(sum[t][0], sum[t][1]));
        for (int k = K / Q_BLOCK * Q_BLOCK; k < K; k++) { /* plain types may have any K */
            float f;
            es_dequant(type, w + es_row_bytes(type, k), &f, 1);
            s += f * x[k];
        }
        *y = accumulate ? *y + s : s;
    }
}

/* Row n times tokens [t, t + m). */
INLINE void exact_tokens(const es_type type, const es_weight *w, int n, int t, int m, const float *x, float *y, bool accumulate)
{
    const int K = w->n_in;
    const uint8_t *row = (const uint8_t *)w->data + (size_t)n * es_row_bytes(type, K);
    x += (size_t)t * (size_t)K;
    y += (size_t)t * (size_t)w->n_out + n;
    switch (m) {
    case 1: row_exact(type, 1, row, K, x, y, (size_t)w->n_out, accumulate); break;
    case 2: row_exact(type, 2, row, K, x, y, (size_t)w->n_out, accumulate); break;
    case 3: row_exact(type, 3, row, K, x, y, (size_t)w->n_out, accumulate); break;
    default: row_exact(type, 4, row, K, x, y, (size_t)w->n_out, accumulate);
    }
}

/* One function a type, and the switch that chooses it: a row stays in the nearest cache while all tokens meet it. */
#define LOOP_OF(type, tokens)                                                                \
    case type:                                                                               \
        for (int n = from; n < to; n++)                                                      \
            for (int t = 0, m; t < T; t += m) {                                              \
                m = T - t < TOKENS ? T - t : TOKENS;                                         \
                tokens(type, w, n, t, m, x, y, accumulate);                                  \
            }                                                                                \
        break;
#define BLOCK_TYPES(DO, ...)                                                                                                        \
    DO(ES_Q4_0, __VA_ARGS__) DO(ES_Q4_1, __VA_ARGS__) DO(ES_Q5_0, __VA_ARGS__) DO(ES_Q5_1, __VA_ARGS__) DO(ES_Q8_0, __VA_ARGS__)    \
    DO(ES_Q2_K, __VA_ARGS__) DO(ES_Q3_K, __VA_ARGS__) DO(ES_Q4_K, __VA_ARGS__) DO(ES_Q5_K, __VA_ARGS__) DO(ES_Q6_K, __VA_ARGS__)    \
    DO(ES_IQ4_NL, __VA_ARGS__)
#define PLAIN_TYPES(DO, ...) DO(ES_F32, __VA_ARGS__) DO(ES_F16, __VA_ARGS__) DO(ES_BF16, __VA_ARGS__)

static void rows(const es_weight *w, int from, int to, const float *x, int T, float *y, bool accumulate)
{
    switch (w->type) {
        PLAIN_TYPES(LOOP_OF, exact_tokens)
        BLOCK_TYPES(LOOP_OF, exact_tokens)
    }
}

#define DEQUANT_OF(type, ...)                                                                \
    case type:                                                                               \
        for (size_t i = 0; i < n / Q_BLOCK; i++) {                                           \
            float32x4_t f[8];                                                                \
            unpack_float(type, src, (int)i, f);                                              \
            for (int c = 0; c < 8; c++)                                                      \
                vst1q_f32(dst + i * Q_BLOCK + 4 * (size_t)c, f[c]);                          \
        }                                                                                    \
        break;

static void dequant(es_type type, const void *src, float *dst, size_t n)
{
    switch (type) {
        PLAIN_TYPES(DEQUANT_OF, )
        BLOCK_TYPES(DEQUANT_OF, )
    }
    if (n % Q_BLOCK) { /* plain types may have any n */
        const size_t done = n - n % Q_BLOCK;
        es_dequant(type, (const char *)src + es_row_bytes(type, 1) * done, dst + done, n - done);
    }
}

const es_simd *es_simd_neon(void)
{
    static const es_simd simd = {.name = "neon", .dequant = dequant, .rows = rows, ROW_OPS, HALF_OPS}; /* no rounded products yet: prompts go through BLAS, decoding through rows */
    return &simd;
}

#else

const es_simd *es_simd_neon(void)
{
    return NULL;
}

#endif
