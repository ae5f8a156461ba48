/* Quantised products and dequantising with 256-bit vectors, shared by the AVX2 and the AVX-512 file (which has vpdpwssd).
 *
 * Every type is unpacked 32 elements at a time into two vectors of 16-bit integers and a pair (d, m): w = d q + m.
 * The including file has immintrin.h and rows_impl.h. */
enum {
    Q_BLOCK = 32,
    TOKENS = 4,   /* that meet a row at a time */
    AHEAD = 4096, /* bytes of weights asked for in advance */
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

/* ---- a row of weights times T <= TOKENS tokens ----------------------------------------------------------------------------
 * T is a constant at every call, so that the sums stay in registers. Rows are read one after the other, as memory likes best; so
 * that additions need not wait for each other, few tokens have several sums each (`ways`). */

INLINE int ways_of(const int T)
{
    return T == 1 ? 4 : T == 2 ? 2 : 1;
}

INLINE void prefetch(const es_type type, const uint8_t *row, size_t block)
{
    const size_t bytes = type == ES_F32 ? 128 : type == ES_F16 ? 64 : type == ES_Q4_0 ? 18 : type == ES_Q4_1 ? 20 : type == ES_Q8_0 ? 34 : 27;
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)row + block * bytes + i + AHEAD, _MM_HINT_T0);
}

INLINE void add_rounded(const es_type type, const int T, const uint8_t *w, size_t b, int K, const int16_t *q, const float *scales,
                        __m256 *sum, __m128 *offset)
{
    const size_t blocks = (size_t)K / Q_BLOCK;
    __m256i lo, hi;
    __m128 dm;
    unpack(type, w, (int)b, &lo, &hi, &dm);
    for (int t = 0; t < T; t++) {
        const int16_t *x = q + (size_t)t * (size_t)K + b * Q_BLOCK;
        __m256i s = DOT16(_mm256_setzero_si256(), lo, _mm256_loadu_si256((const __m256i *)x));
        s = DOT16(s, hi, _mm256_loadu_si256((const __m256i *)(x + 16)));
        __m128 pair = _mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)(scales + ((size_t)t * blocks + b) * 2)));
        pair = _mm_mul_ps(pair, dm); /* d * scale, m * scale * sum(q) */
        if (type == ES_Q4_1)
            offset[t] = _mm_add_ps(offset[t], pair);
        sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), _mm256_broadcastss_ps(pair), sum[t]);
    }
}

INLINE void row_rounded(const es_type type, const int T, const uint8_t *w, int K, const int16_t *q, const float *scales, float *y,
                        size_t N, bool accumulate)
{
    const int ways = ways_of(T);
    const size_t blocks = (size_t)K / Q_BLOCK;
    __m256 sum[TOKENS];
    __m128 offset[TOKENS]; /* counts in lane 1 */
    for (int i = 0; i < TOKENS; i++)
        sum[i] = _mm256_setzero_ps(), offset[i] = _mm_setzero_ps();
    size_t b = 0;
    for (; b + (size_t)ways <= blocks; b += (size_t)ways)
        for (int i = 0; i < ways; i++) {
            if (i % 2 == 0)
                prefetch(type, w, b + (size_t)i);
            /* b is a multiple of ways: said so that the compiler knows the place of a part within a Q6_K block */
            add_rounded(type, T, w, (b & ~(size_t)(ways - 1)) + (size_t)i, K, q, scales, sum + i * T, offset + i * T);
        }
    for (; b < blocks; b++)
        add_rounded(type, T, w, b, K, q, scales, sum, offset);
    for (int t = 0; t < T; t++, y += N) {
        for (int i = 1; i < ways; i++)
            sum[t] = _mm256_add_ps(sum[t], sum[i * T + t]), offset[t] = _mm_add_ps(offset[t], offset[i * T + t]);
        float s = sum8(sum[t]);
        if (type == ES_Q4_1)
            s += _mm_cvtss_f32(_mm_movehdup_ps(offset[t]));
        *y = accumulate ? *y + s : s;
    }
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
#define ROWS_OF(type, name, row_times, X_ARG, X_AT)                                                                    \
    static void name(const es_weight *w, int from, int to, X_ARG, int T, float *y, bool accumulate)                    \
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
                    case 1: row_times(type, 1, row, K, X_AT, out, N, accumulate); break;                               \
                    case 2: row_times(type, 2, row, K, X_AT, out, N, accumulate); break;                               \
                    case 3: row_times(type, 3, row, K, X_AT, out, N, accumulate); break;                               \
                    default: row_times(type, 4, row, K, X_AT, out, N, accumulate); break;                              \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }
#define EXACT_ARG const float *x
#define EXACT_AT x + (size_t)t * (size_t)K
#define ROUNDED_ARG const es_rounded *x
#define ROUNDED_AT x->q + (size_t)t * (size_t)K, x->scales + (size_t)t * (size_t)(K / Q_BLOCK) * 2

ROWS_OF(ES_F32, rows_f32, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_F16, rows_f16, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q4_0, rows_q4_0, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q4_1, rows_q4_1, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q8_0, rows_q8_0, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q6_K, rows_q6_k, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q4_0, rounded_q4_0, row_rounded, ROUNDED_ARG, ROUNDED_AT)
ROWS_OF(ES_Q4_1, rounded_q4_1, row_rounded, ROUNDED_ARG, ROUNDED_AT)
ROWS_OF(ES_Q8_0, rounded_q8_0, row_rounded, ROUNDED_ARG, ROUNDED_AT)
ROWS_OF(ES_Q6_K, rounded_q6_k, row_rounded, ROUNDED_ARG, ROUNDED_AT)

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
