/* Quantised products and dequantising with 256-bit vectors, shared by the AVX2 and the AVX-512 file (which has vpdpwssd).
 *
 * Every type is unpacked 32 elements at a time into two vectors of 16-bit integers and a pair (d, m): w = d q + m. */
#include <immintrin.h>

enum {
    Q_BLOCK = 32,
    MAX_TILE = 4,
    AHEAD = 4096, /* bytes of weights asked for in advance: rows are too short for the processor's own prefetching to get going */
};

#if W == 16
#define DOT16(acc, a, b) _mm256_dpwssd_epi32(acc, a, b)
#else
#define DOT16(acc, a, b) _mm256_add_epi32(acc, _mm256_madd_epi16(a, b))
#endif

INLINE __m128 two_halves(const uint8_t *p) /* f16 p[0], p[1] as floats in the low two lanes */
{
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    return _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
}

INLINE __m128 one_half(const uint8_t *p)
{
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
}

/* Elements 32 i .. 32 i + 31 of a row of `type`: lo holds the first 16. */
INLINE void unpack(const es_type type, const uint8_t *row, int i, __m256i *lo, __m256i *hi, __m128 *dm)
{
    const __m256i low4 = _mm256_set1_epi16(15);
    if (type == ES_Q4_0 || type == ES_Q4_1) {
        const uint8_t *b = row + (size_t)i * (type == ES_Q4_0 ? 18 : 20);
        __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(b + (type == ES_Q4_0 ? 2 : 4))));
        *lo = _mm256_and_si256(bytes, low4);
        *hi = _mm256_srli_epi16(bytes, 4);
        if (type == ES_Q4_0) {
            *lo = _mm256_sub_epi16(*lo, _mm256_set1_epi16(8));
            *hi = _mm256_sub_epi16(*hi, _mm256_set1_epi16(8));
            *dm = one_half(b);
        } else {
            *dm = two_halves(b);
        }
    } else if (type == ES_Q8_0) {
        const uint8_t *b = row + (size_t)i * 34;
        *lo = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(b + 2)));
        *hi = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(b + 18)));
        *dm = one_half(b);
    } else { /* Q6_K: see es_dequant; the scale of 16 elements goes into the integers: |scale (q - 32)| <= 128 * 32 */
        const uint8_t *b = row + (size_t)(i / 8) * 210;
        const int half = i / 4 % 2, quarter = i % 4;
        const int8_t *scale = (const int8_t *)b + 192 + half * 8 + quarter * 2;
        __m256i ql = _mm256_loadu_si256((const __m256i *)(b + half * 64 + (quarter & 1) * 32));
        __m256i qh = _mm256_loadu_si256((const __m256i *)(b + 128 + half * 32));
        ql = _mm256_and_si256(quarter >= 2 ? _mm256_srli_epi16(ql, 4) : ql, _mm256_set1_epi8(15));
        qh = _mm256_and_si256(_mm256_srl_epi16(qh, _mm_cvtsi32_si128(2 * quarter)), _mm256_set1_epi8(3));
        __m256i q = _mm256_or_si256(ql, _mm256_slli_epi16(qh, 4));
        const __m256i zero = _mm256_set1_epi16(32);
        *lo = _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(q)), zero);
        *hi = _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm256_extracti128_si256(q, 1)), zero);
        *lo = _mm256_mullo_epi16(*lo, _mm256_set1_epi16(scale[0]));
        *hi = _mm256_mullo_epi16(*hi, _mm256_set1_epi16(scale[1]));
        *dm = one_half(b + 208);
    }
}

INLINE float sum8(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* The 32 elements as floats. */
INLINE void unpack_float(const es_type type, const uint8_t *row, int i, __m256 f[4])
{
    if (type == ES_F32) {
        for (int c = 0; c < 4; c++)
            f[c] = _mm256_loadu_ps((const float *)(const void *)(row + (size_t)i * 128) + 8 * c);
        return;
    }
    if (type == ES_F16) {
        for (int c = 0; c < 4; c++)
            f[c] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(row + (size_t)i * 64) + c));
        return;
    }
    __m256i q[2];
    __m128 dm;
    unpack(type, row, i, &q[0], &q[1], &dm);
    __m256 d = _mm256_broadcastss_ps(dm), m = _mm256_broadcastss_ps(_mm_movehdup_ps(dm));
    for (int c = 0; c < 4; c++) {
        __m128i half = c & 1 ? _mm256_extracti128_si256(q[c / 2], 1) : _mm256_castsi256_si128(q[c / 2]);
        __m256 v = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(half));
        f[c] = type == ES_Q4_1 ? _mm256_fmadd_ps(v, d, m) : _mm256_mul_ps(v, d);
    }
}

/* ---- tiles of R rows and T tokens: both constant at every call, so that the sums stay in registers --------------------------- */

INLINE void prefetch(const es_type type, const uint8_t *row, size_t block)
{
    const size_t bytes = type == ES_F32 ? 128 : type == ES_F16 ? 64 : type == ES_Q4_0 ? 18 : type == ES_Q4_1 ? 20 : type == ES_Q8_0 ? 34 : 27;
    _mm_prefetch((const char *)row + block * bytes + AHEAD, _MM_HINT_T0);
    if (type == ES_F32)
        _mm_prefetch((const char *)row + block * bytes + AHEAD + 64, _MM_HINT_T0);
}

INLINE void tile_rounded(const es_type type, const int R, const int T, const uint8_t *w, size_t row, int K, const int16_t *q,
                         const float *scales, float *y, size_t N, bool accumulate)
{
    __m256 acc[MAX_TILE];
    __m128 offset[MAX_TILE]; /* lane 1: sum of m * scale * sum(q) */
    const size_t blocks = (size_t)K / Q_BLOCK;
    for (int i = 0; i < R * T; i++)
        acc[i] = _mm256_setzero_ps(), offset[i] = _mm_setzero_ps();
    for (size_t b = 0; b < blocks; b++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            __m256i lo, hi;
            __m128 dm;
            prefetch(type, w + (size_t)r * row, b);
            unpack(type, w + (size_t)r * row, (int)b, &lo, &hi, &dm);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) {
                const int16_t *x = q + (size_t)t * (size_t)K + b * Q_BLOCK;
                __m256i s = DOT16(_mm256_setzero_si256(), lo, _mm256_loadu_si256((const __m256i *)x));
                s = DOT16(s, hi, _mm256_loadu_si256((const __m256i *)(x + 16)));
                __m128 pair = _mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)(scales + ((size_t)t * blocks + b) * 2)));
                pair = _mm_mul_ps(pair, dm);
                if (type == ES_Q4_1)
                    offset[r * T + t] = _mm_add_ps(offset[r * T + t], pair);
                acc[r * T + t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), _mm256_broadcastss_ps(pair), acc[r * T + t]);
            }
        }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) {
            float s = sum8(acc[r * T + t]), *out = y + (size_t)t * N + r;
            if (type == ES_Q4_1)
                s += _mm_cvtss_f32(_mm_movehdup_ps(offset[r * T + t]));
            *out = accumulate ? *out + s : s;
        }
}

INLINE void tile_exact(const es_type type, const int R, const int T, const uint8_t *w, size_t row, int K, const float *x, float *y,
                       size_t N, bool accumulate)
{
    __m256 acc[2 * MAX_TILE];
    for (int i = 0; i < 2 * R * T; i++)
        acc[i] = _mm256_setzero_ps();
    for (int b = 0; b < K / Q_BLOCK; b++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            __m256 f[4];
            prefetch(type, w + (size_t)r * row, (size_t)b);
            unpack_float(type, w + (size_t)r * row, b, f);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) {
                const float *xb = x + (size_t)t * (size_t)K + (size_t)b * Q_BLOCK;
                __m256 *a = acc + 2 * (r * T + t);
                a[0] = _mm256_fmadd_ps(f[0], _mm256_loadu_ps(xb), a[0]);
                a[1] = _mm256_fmadd_ps(f[1], _mm256_loadu_ps(xb + 8), a[1]);
                a[0] = _mm256_fmadd_ps(f[2], _mm256_loadu_ps(xb + 16), a[0]);
                a[1] = _mm256_fmadd_ps(f[3], _mm256_loadu_ps(xb + 24), a[1]);
            }
        }
    const int done = K / Q_BLOCK * Q_BLOCK; /* plain types may have any K */
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) {
            float s = sum8(_mm256_add_ps(acc[2 * (r * T + t)], acc[2 * (r * T + t) + 1])), *out = y + (size_t)t * N + r;
            for (int k = done; k < K; k++) {
                float f;
                es_dequant(type, w + (size_t)r * row + es_row_bytes(type, k), &f, 1);
                s += f * x[(size_t)t * (size_t)K + (size_t)k];
            }
            *out = accumulate ? *out + s : s;
        }
}

/* Rows [from, to) times T tokens, cut into tiles; 16 rows meet all tokens before the next 16 are read. */
#define ROWS_OF(type, name, tile, X_ARGS, X_AT)                                                                        \
    static void name(const es_weight *w, int from, int to, X_ARGS, int T, float *y, bool accumulate)                   \
    {                                                                                                                  \
        const int K = w->n_in;                                                                                         \
        const size_t row = es_row_bytes(type, K), N = (size_t)w->n_out;                                                \
        const uint8_t *data = w->data;                                                                                 \
        for (int n0 = from, n1; n0 < to; n0 = n1) {                                                                    \
            n1 = to - n0 < 16 ? to : n0 + 16;                                                                          \
            int t = 0;                                                                                                 \
            for (; t + 4 <= T; t += 4)                                                                                 \
                for (int n = n0; n < n1; n++)                                                                          \
                    tile(type, 1, 4, data + (size_t)n * row, row, K, X_AT(t), y + (size_t)t * N + n, N, accumulate);   \
            for (; t + 3 <= T; t += 3)                                                                                  \
                for (int n = n0; n < n1; n++)                                                                          \
                    tile(type, 1, 3, data + (size_t)n * row, row, K, X_AT(t), y + (size_t)t * N + n, N, accumulate);   \
            for (; t + 2 <= T; t += 2) {                                                                               \
                int n = n0;                                                                                            \
                for (; n + 2 <= n1; n += 2)                                                                            \
                    tile(type, 2, 2, data + (size_t)n * row, row, K, X_AT(t), y + (size_t)t * N + n, N, accumulate);   \
                for (; n < n1; n++)                                                                                    \
                    tile(type, 1, 2, data + (size_t)n * row, row, K, X_AT(t), y + (size_t)t * N + n, N, accumulate);   \
            }                                                                                                          \
            for (; t < T; t++) {                                                                                       \
                int n = n0;                                                                                            \
                for (; n + 4 <= n1; n += 4)                                                                            \
                    tile(type, 4, 1, data + (size_t)n * row, row, K, X_AT(t), y + (size_t)t * N + n, N, accumulate);   \
                for (; n < n1; n++)                                                                                    \
                    tile(type, 1, 1, data + (size_t)n * row, row, K, X_AT(t), y + (size_t)t * N + n, N, accumulate);   \
            }                                                                                                          \
        }                                                                                                              \
    }
#define EXACT_ARGS const float *x
#define EXACT_AT(t) x + (size_t)(t) * (size_t)K
#define ROUNDED_ARGS const es_rounded *x
#define ROUNDED_AT(t) x->q + (size_t)(t) * (size_t)K, x->scales + (size_t)(t) * (size_t)(K / Q_BLOCK) * 2

ROWS_OF(ES_F32, rows_f32, tile_exact, EXACT_ARGS, EXACT_AT)
ROWS_OF(ES_F16, rows_f16, tile_exact, EXACT_ARGS, EXACT_AT)
ROWS_OF(ES_Q4_0, rows_q4_0, tile_exact, EXACT_ARGS, EXACT_AT)
ROWS_OF(ES_Q4_1, rows_q4_1, tile_exact, EXACT_ARGS, EXACT_AT)
ROWS_OF(ES_Q8_0, rows_q8_0, tile_exact, EXACT_ARGS, EXACT_AT)
ROWS_OF(ES_Q6_K, rows_q6_k, tile_exact, EXACT_ARGS, EXACT_AT)
ROWS_OF(ES_Q4_0, rounded_q4_0, tile_rounded, ROUNDED_ARGS, ROUNDED_AT)
ROWS_OF(ES_Q4_1, rounded_q4_1, tile_rounded, ROUNDED_ARGS, ROUNDED_AT)
ROWS_OF(ES_Q8_0, rounded_q8_0, tile_rounded, ROUNDED_ARGS, ROUNDED_AT)
ROWS_OF(ES_Q6_K, rounded_q6_k, tile_rounded, ROUNDED_ARGS, ROUNDED_AT)

static void rows(const es_weight *w, int from, int to, const float *x, int T, float *y, bool accumulate)
{
    switch (w->type) {
    case ES_F32: rows_f32(w, from, to, x, T, y, accumulate); break;
    case ES_F16: rows_f16(w, from, to, x, T, y, accumulate); break;
    case ES_Q4_0: rows_q4_0(w, from, to, x, T, y, accumulate); break;
    case ES_Q4_1: rows_q4_1(w, from, to, x, T, y, accumulate); break;
    case ES_Q8_0: rows_q8_0(w, from, to, x, T, y, accumulate); break;
    case ES_Q6_K: rows_q6_k(w, from, to, x, T, y, accumulate); break;
    }
}

static void rows_rounded(const es_weight *w, int from, int to, const es_rounded *x, int T, float *y, bool accumulate)
{
    switch (w->type) {
    case ES_Q4_0: rounded_q4_0(w, from, to, x, T, y, accumulate); break;
    case ES_Q4_1: rounded_q4_1(w, from, to, x, T, y, accumulate); break;
    case ES_Q8_0: rounded_q8_0(w, from, to, x, T, y, accumulate); break;
    case ES_Q6_K: rounded_q6_k(w, from, to, x, T, y, accumulate); break;
    case ES_F32:
    case ES_F16: break; /* the caller rounds for blocks only */
    }
}

/* Rounds K floats (a multiple of 32). A block that holds a NaN or an infinity gets a NaN scale, so that it does not vanish. */
static void round_row(const float *x, int K, int16_t *q, float *scales)
{
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int b = 0; b < K / Q_BLOCK; b++, x += Q_BLOCK, q += Q_BLOCK, scales += 2) {
        __m256 v[4], max = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
        for (int c = 0; c < 4; c++) {
            v[c] = _mm256_loadu_ps(x + 8 * c);
            max = _mm256_max_ps(max, _mm256_and_ps(v[c], magnitude));
            odd = _mm256_add_ps(odd, _mm256_sub_ps(v[c], v[c])); /* 0, or NaN */
        }
        __m128 m = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps(max, 1));
        m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        m = _mm_max_ss(m, _mm_movehdup_ps(m));
        const float largest = _mm_cvtss_f32(m), scale = largest / 32767;
        const __m256 inverse = _mm256_set1_ps(scale >= FLT_MIN ? 32767 / largest : 0);
        __m256i i[4], sum = _mm256_setzero_si256();
        for (int c = 0; c < 4; c++) {
            i[c] = _mm256_cvtps_epi32(_mm256_mul_ps(v[c], inverse));
            sum = _mm256_add_epi32(sum, i[c]);
        }
        for (int c = 0; c < 2; c++) { /* packs works within 128-bit lanes: the permutation puts them in order */
            __m256i pack = _mm256_permute4x64_epi64(_mm256_packs_epi32(i[2 * c], i[2 * c + 1]), 0xd8);
            _mm256_storeu_si256((__m256i *)(q + 16 * c), pack);
        }
        __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
        scales[0] = scale + sum8(odd);
        scales[1] = scales[0] * (float)_mm_cvtsi128_si32(s);
    }
}

#define DEQUANT_OF(type)                                                                                              \
    for (size_t i = 0; i < n / Q_BLOCK; i++) {                                                                        \
        __m256 f[4];                                                                                                  \
        unpack_float(type, src, (int)i, f);                                                                           \
        for (int c = 0; c < 4; c++)                                                                                   \
            _mm256_storeu_ps(dst + i * Q_BLOCK + 8 * c, f[c]);                                                        \
    }                                                                                                                 \
    break

static void dequant(es_type type, const void *src, float *dst, size_t n)
{
    switch (type) {
    case ES_F32: memcpy(dst, src, n * sizeof *dst); break;
    case ES_F16: {
        const size_t done = n / Q_BLOCK * Q_BLOCK;
        es_dequant(type, (const char *)src + 2 * done, dst + done, n - done);
        DEQUANT_OF(ES_F16);
    }
    case ES_Q4_0: DEQUANT_OF(ES_Q4_0);
    case ES_Q4_1: DEQUANT_OF(ES_Q4_1);
    case ES_Q8_0: DEQUANT_OF(ES_Q8_0);
    case ES_Q6_K: DEQUANT_OF(ES_Q6_K);
    }
}

#define QUANT_OPS .dequant = dequant, .rows = rows, .rows_rounded = rows_rounded, .round = round_row
