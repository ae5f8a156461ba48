/* Dequantising, and products of quantised weights and f32 activations, with 256-bit vectors; shared by the AVX2 and the AVX-512 file,
 * which have rows_impl.h. */
#include "unpack_x86.h"

enum {
    TOKENS = 4,   /* that meet a row at a time */
    AHEAD = 4096, /* bytes of weights asked for in advance */
};

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
    if (type == ES_BF16) {
        for (int c = 0; c < 4; c++)
            f[c] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(row + (size_t)i * 64 + 16 * c)), 16));
        return;
    }
    __m256i q[2];
    __m128 dm;
    unpack(type, row, i, &q[0], &q[1], &dm);
    __m256 d = _mm256_broadcastss_ps(dm), m = _mm256_broadcastss_ps(_mm_movehdup_ps(dm));
    __m256 m2 = has_two_offsets(type) ? _mm256_broadcastss_ps(_mm_movehl_ps(dm, dm)) : m;
    for (int c = 0; c < 4; c++) {
        __m128i half = c & 1 ? _mm256_extracti128_si256(q[c / 2], 1) : _mm256_castsi256_si128(q[c / 2]);
        __m256 v = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(half));
        bool offset = has_offset(type) || has_two_offsets(type);
        f[c] = offset ? _mm256_fmadd_ps(v, d, c < 2 ? m : m2) : _mm256_mul_ps(v, d);
    }
}

/* ---- a row of weights times T <= TOKENS tokens ----------------------------------------------------------------------------
 * T is a constant at every call, so that the sums stay in registers. Rows are read one after the other, as memory likes best. */

INLINE void prefetch(const es_type type, const uint8_t *row, size_t block)
{
    const size_t bytes = bytes_of_32(type);
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)row + block * bytes + i + AHEAD, _MM_HINT_T0);
}

INLINE void row_exact(const es_type type, const int T, const uint8_t *w, int K, const float *x, float *y, size_t N, bool accumulate)
{
    __m256 sum[4 * TOKENS];
    for (int i = 0; i < 4 * TOKENS; i++)
        sum[i] = _mm256_setzero_ps();
    const int ways = T == 1 ? 4 : 2;
    for (int b = 0; b < K / Q_BLOCK; b++) {
        __m256 f[4];
        prefetch(type, w, (size_t)b);
        unpack_float(type, w, b, f);
        for (int t = 0; t < T; t++)
            for (int c = 0; c < 4; c++) {
                __m256 *to = &sum[t * ways + c % ways];
                *to = _mm256_fmadd_ps(f[c], _mm256_loadu_ps(x + (size_t)t * (size_t)K + (size_t)b * Q_BLOCK + 8 * c), *to);
            }
    }
    for (int t = 0; t < T; t++, x += K, y += N) {
        for (int i = 1; i < ways; i++)
            sum[t * ways] = _mm256_add_ps(sum[t * ways], sum[t * ways + i]);
        float s = sum8(sum[t * ways]);
        for (int k = K / Q_BLOCK * Q_BLOCK; k < K; k++) { /* plain types may have any K */
            float f;
            es_dequant(type, w + es_row_bytes(type, k), &f, 1);
            s += f * x[k];
        }
        *y = accumulate ? *y + s : s;
    }
}

/* Rows [from, to) times T tokens; 16 rows meet all tokens before the next 16 are read. */
#define ROWS_OF(type, name)                                                                                            \
    static void name(const es_weight *w, int from, int to, const float *x, int T, float *y, bool accumulate)           \
    {                                                                                                                  \
        const int K = w->n_in;                                                                                         \
        const size_t bytes = es_row_bytes(type, K), N = (size_t)w->n_out;                                              \
        for (int n0 = from, n1; n0 < to; n0 = n1) {                                                                    \
            n1 = to - n0 < 16 ? to : n0 + 16;                                                                          \
            for (int t = 0, m; t < T; t += m) {                                                                        \
                m = T - t < TOKENS ? T - t : TOKENS;                                                                   \
                for (int n = n0; n < n1; n++) {                                                                        \
                    const uint8_t *row = (const uint8_t *)w->data + (size_t)n * bytes;                                 \
                    float *out = y + (size_t)t * N + n;                                                                \
                    switch (m) {                                                                                       \
                    case 1: row_exact(type, 1, row, K, x + (size_t)t * (size_t)K, out, N, accumulate); break;  \
                    case 2: row_exact(type, 2, row, K, x + (size_t)t * (size_t)K, out, N, accumulate); break;  \
                    case 3: row_exact(type, 3, row, K, x + (size_t)t * (size_t)K, out, N, accumulate); break;  \
                    default: row_exact(type, 4, row, K, x + (size_t)t * (size_t)K, out, N, accumulate); break;  \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

ROWS_OF(ES_F32, rows_f32)
ROWS_OF(ES_F16, rows_f16)
ROWS_OF(ES_BF16, rows_bf16)
ROWS_OF(ES_Q4_0, rows_q4_0)
ROWS_OF(ES_Q4_1, rows_q4_1)
ROWS_OF(ES_Q5_0, rows_q5_0)
ROWS_OF(ES_Q5_1, rows_q5_1)
ROWS_OF(ES_Q8_0, rows_q8_0)
ROWS_OF(ES_Q2_K, rows_q2_k)
ROWS_OF(ES_Q3_K, rows_q3_k)
ROWS_OF(ES_Q4_K, rows_q4_k)
ROWS_OF(ES_Q5_K, rows_q5_k)
ROWS_OF(ES_Q6_K, rows_q6_k)
ROWS_OF(ES_IQ4_NL, rows_iq4_nl)

static void rows(const es_weight *w, int from, int to, const float *x, int T, float *y, bool accumulate)
{
    switch (w->type) {
    case ES_F32: rows_f32(w, from, to, x, T, y, accumulate); break;
    case ES_F16: rows_f16(w, from, to, x, T, y, accumulate); break;
    case ES_BF16: rows_bf16(w, from, to, x, T, y, accumulate); break;
    case ES_Q4_0: rows_q4_0(w, from, to, x, T, y, accumulate); break;
    case ES_Q4_1: rows_q4_1(w, from, to, x, T, y, accumulate); break;
    case ES_Q5_0: rows_q5_0(w, from, to, x, T, y, accumulate); break;
    case ES_Q5_1: rows_q5_1(w, from, to, x, T, y, accumulate); break;
    case ES_Q8_0: rows_q8_0(w, from, to, x, T, y, accumulate); break;
    case ES_Q2_K: rows_q2_k(w, from, to, x, T, y, accumulate); break;
    case ES_Q3_K: rows_q3_k(w, from, to, x, T, y, accumulate); break;
    case ES_Q4_K: rows_q4_k(w, from, to, x, T, y, accumulate); break;
    case ES_Q5_K: rows_q5_k(w, from, to, x, T, y, accumulate); break;
    case ES_Q6_K: rows_q6_k(w, from, to, x, T, y, accumulate); break;
    case ES_IQ4_NL: rows_iq4_nl(w, from, to, x, T, y, accumulate); break;
    }
}

#define DEQUANT_OF(type)                                                                                              \
    for (size_t i = 0; i < n / Q_BLOCK; i++) {                                                                        \
        __m256 f[4];                                                                                                  \
        unpack_float(type, src, (int)i, f);                                                                           \
        for (int c = 0; c < 4; c++)                                                                                   \
            _mm256_storeu_ps(dst + i * Q_BLOCK + 8 * c, f[c]);                                                        \
    }

static void dequant(es_type type, const void *src, float *dst, size_t n)
{
    switch (type) {
    case ES_F32: memcpy(dst, src, n * sizeof *dst); break;
    case ES_F16:
    case ES_BF16: {
        const size_t done = n / Q_BLOCK * Q_BLOCK;
        es_dequant(type, (const char *)src + 2 * done, dst + done, n - done);
        if (type == ES_F16) {
            DEQUANT_OF(ES_F16);
        } else {
            DEQUANT_OF(ES_BF16);
        }
        break;
    }
    case ES_Q4_0: DEQUANT_OF(ES_Q4_0); break;
    case ES_Q4_1: DEQUANT_OF(ES_Q4_1); break;
    case ES_Q5_0: DEQUANT_OF(ES_Q5_0); break;
    case ES_Q5_1: DEQUANT_OF(ES_Q5_1); break;
    case ES_Q8_0: DEQUANT_OF(ES_Q8_0); break;
    case ES_Q2_K: DEQUANT_OF(ES_Q2_K); break;
    case ES_Q3_K: DEQUANT_OF(ES_Q3_K); break;
    case ES_Q4_K: DEQUANT_OF(ES_Q4_K); break;
    case ES_Q5_K: DEQUANT_OF(ES_Q5_K); break;
    case ES_Q6_K: DEQUANT_OF(ES_Q6_K); break;
    case ES_IQ4_NL: DEQUANT_OF(ES_IQ4_NL); break;
    }
}

#define QUANT_OPS .dequant = dequant, .rows = rows
