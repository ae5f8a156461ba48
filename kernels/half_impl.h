/* Keys and values in half precision: conversion, and the attention of one token over them. Included after rows_impl.h by the file of
 * an instruction set; W floats are a vector, as there. A number is widened once for all heads that share it. */

#ifdef __aarch64__
#include <arm_neon.h>
#endif

/* Half precision ends here; what is larger is cut to it, so that one large key does not make an infinity. A NaN stays one. */
#define HALF_MOST 65504.0f

INLINE vec load_half(const uint16_t *p)
{
#if W == 16
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
#elif W == 8
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
#elif defined(__aarch64__)
    return (vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
    float f[W];
    es_f16_to_f32(p, f, W);
    return load(f);
#endif
}

INLINE void store_half(uint16_t *p, vec v)
{
    v = vec_max(splat(-HALF_MOST), vec_min(splat(HALF_MOST), v));
#if W == 16
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif W == 8
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
#else
    float f[W];
    store(f, v);
    es_f32_to_f16(f, p, W);
#endif
}

static void to_half(const float *x, uint16_t *y, size_t n)
{
    size_t i = 0;
    uint16_t tail[W];
    for (; i + W <= n; i += W)
        store_half(y + i, load(x + i));
    if (i < n) {
        store_half(tail, load_tail(x + i, n - i));
        memcpy(y + i, tail, (n - i) * sizeof *y);
    }
}

static void from_half(const uint16_t *x, size_t stride, int rows, int n, float *y)
{
    for (int r = 0; r < rows; r++, x += stride, y += n) {
        int i = 0;
        for (; i + W <= n; i += W)
            store(y + i, load_half(x + i));
        es_f16_to_f32(x + i, y + i, (size_t)(n - i));
    }
}

/* The sums of four vectors. */
INLINE void total4(vec a, vec b, vec c, vec d, float out[4])
{
#if W >= 8
#if W == 16
#define HALVES(v) _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1))
#else
#define HALVES(v) (__m256) v
#endif
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(HALVES(a), HALVES(b)), _mm256_hadd_ps(HALVES(c), HALVES(d)));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
#undef HALVES
#else
    out[0] = total(a), out[1] = total(b), out[2] = total(c), out[3] = total(d);
#endif
}

/* The scores of `heads` query heads that share a key head with four keys, `row` apart: into s[head * n + key], of which `keys` are kept. */
INLINE void four_scores(const float *q, const uint16_t *k, size_t row, int D, const int heads, float scale, float *s, size_t n, int keys)
{
    vec sum[4][4];
    for (int h = 0; h < heads; h++)
        for (int j = 0; j < 4; j++)
            sum[h][j] = (vec){0};
    int c = 0;
    for (; c + W <= D; c += W) {
        vec key[4];
        for (int j = 0; j < 4; j++)
            key[j] = load_half(k + (size_t)j * row + c);
        for (int h = 0; h < heads; h++) {
            vec query = load(q + (size_t)h * (size_t)D + c);
            for (int j = 0; j < 4; j++)
                sum[h][j] += query * key[j];
        }
    }
    for (int h = 0; h < heads; h++) {
        float four[4];
        total4(sum[h][0], sum[h][1], sum[h][2], sum[h][3], four);
        for (int i = c; i < D; i++)
            for (int j = 0; j < keys; j++) {
                float f;
                es_f16_to_f32(k + (size_t)j * row + i, &f, 1);
                four[j] += q[(size_t)h * (size_t)D + i] * f;
            }
        for (int j = 0; j < keys; j++)
            s[(size_t)h * n + (size_t)j] = scale * four[j];
    }
}

/* The scores of all heads with the four keys at k, `step` apart, of which `keys` are kept. */
INLINE void scores_of(const es_attn *a, const float *q, const uint16_t *k, size_t step, int keys, float *s, size_t n)
{
    const int D = a->head_dim, group = a->n_head / a->n_kv;
    for (int h = 0, m; h < a->n_head; h += m, q += m * D, s += (size_t)m * n) {
        const int left = group - h % group; /* heads of this group yet to come */
        const uint16_t *key = k + h / group * D;
        m = left < 4 ? left : 4;
        switch (m) {
        case 1: four_scores(q, key, step, D, 1, a->scale, s, n, keys); break;
        case 2: four_scores(q, key, step, D, 2, a->scale, s, n, keys); break;
        case 3: four_scores(q, key, step, D, 3, a->scale, s, n, keys); break;
        default: four_scores(q, key, step, D, 4, a->scale, s, n, keys); break;
        }
    }
}

static void attend_scores_half(const es_attn *a, const float *q, const uint16_t *k, int n, float *s)
{
    const size_t row = (size_t)a->n_kv * (size_t)a->head_dim;
    int j = 0;
    for (; j + 4 <= n; j += 4, k += 4 * row) {
        for (size_t i = 0; i < 4 * row; i += 32)
            __builtin_prefetch(k + 8 * row + i);
        scores_of(a, q, k, row, 4, s + j, (size_t)n);
    }
    for (; j < n; j++, k += row) /* the last few by themselves */
        scores_of(a, q, k, 0, 1, s + j, (size_t)n);
}

/* out[head][0 .. vectors*W) += sum over m positions of p[head * n + j] * v[j], the sums in registers. */
INLINE void add_values_half(const float *p, size_t n, const uint16_t *v, size_t row, int m, float *out, int D, const int heads, const int vectors)
{
    vec acc[4][4];
    for (int h = 0; h < heads; h++)
        for (int c = 0; c < vectors; c++)
            acc[h][c] = load(out + (size_t)h * (size_t)D + c * W);
    for (int j = 0; j < m; j++, v += row) {
        vec value[4];
        for (int c = 0; c < vectors; c++)
            value[c] = load_half(v + c * W);
        for (int h = 0; h < heads; h++)
            for (int c = 0; c < vectors; c++)
                acc[h][c] += p[(size_t)h * n + (size_t)j] * value[c];
    }
    for (int h = 0; h < heads; h++)
        for (int c = 0; c < vectors; c++)
            store(out + (size_t)h * (size_t)D + c * W, acc[h][c]);
}

enum { VALUE_VECTORS = W == 16 ? 4 : 2 }; /* what the registers hold sums for, with four heads (16 of 16 floats) or three (6 of 8) */

INLINE void values_of(const float *p, size_t n, const uint16_t *v, size_t row, int m, float *out, int D, const int heads)
{
    int c = 0;
    for (; c + VALUE_VECTORS * W <= D; c += VALUE_VECTORS * W)
        add_values_half(p, n, v + c, row, m, out + c, D, heads, VALUE_VECTORS);
    for (; c + W <= D; c += W)
        add_values_half(p, n, v + c, row, m, out + c, D, heads, 1);
    for (; c < D; c++)
        for (int j = 0; j < m; j++) {
            float f;
            es_f16_to_f32(v + (size_t)j * row + c, &f, 1);
            for (int h = 0; h < heads; h++)
                out[h * D + c] += p[(size_t)h * n + (size_t)j] * f;
        }
}

static void attend_values_half(const es_attn *a, const float *s, const uint16_t *v, int n, float *out)
{
    enum { TILE = 32 }; /* positions whose values stay in the first-level cache while all heads use them */
    const int D = a->head_dim, group = a->n_head / a->n_kv;
    const size_t row = (size_t)a->n_kv * (size_t)D, N = (size_t)n;
    for (int j = 0; j < n; j += TILE, v += TILE * row) {
        const int positions = n - j < TILE ? n - j : TILE;
        for (size_t i = 0; i < (size_t)positions * row; i += 32)
            __builtin_prefetch(v + TILE * row + i);
        for (int h = 0, m; h < a->n_head; h += m) {
            const int left = group - h % group; /* heads of this group yet to come */
            const uint16_t *value = v + h / group * D;
            const float *p = s + (size_t)h * N + (size_t)j;
            float *o = out + (size_t)h * (size_t)D;
            m = left < 4 ? left : 4;
            switch (m) {
            case 1: values_of(p, N, value, row, positions, o, D, 1); break;
            case 2: values_of(p, N, value, row, positions, o, D, 2); break;
            case 3: values_of(p, N, value, row, positions, o, D, 3); break;
            default: values_of(p, N, value, row, positions, o, D, 4); break;
            }
        }
    }
}

#undef HALF_MOST
#define HALF_OPS                                                                                                  \
    .to_half = to_half, .from_half = from_half, .attend_scores_half = attend_scores_half, .attend_values_half = attend_values_half
