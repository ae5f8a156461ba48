/* Quantised products and dequantising with 256-bit vectors, shared by the AVX2 and the AVX-512 file (which has vpdpwssd).
 *
 * Every type of blocks is unpacked 32 elements at a time into two vectors of 16-bit integers and a pair (d, m): w = d q + m. Scales of
 * sub-blocks go into d and m where they hold for 32 elements, into the integers where they hold for 16. Q2_K alone has an m for each 16.
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

INLINE __m256i load256(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}

INLINE __m128i load128(const uint8_t *p)
{
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}

/* Whether w = d q + m has an m, and whether the second 16 elements have one of their own. */
INLINE bool has_offset(const es_type type)
{
    return type == ES_Q4_1 || type == ES_Q5_1 || type == ES_Q4_K || type == ES_Q5_K;
}

INLINE bool has_two_offsets(const es_type type)
{
    return type == ES_Q2_K;
}

/* (p[j] >> shift) & mask of 32 bytes. Pairs are shifted, as there is no shift of bytes; the mask drops what came from the neighbour. */
INLINE __m256i bits_at(const uint8_t *p, int shift, int mask)
{
    return _mm256_and_si256(_mm256_srl_epi16(load256(p), _mm_cvtsi32_si128(shift)), _mm256_set1_epi8((char)mask));
}

/* The low or the high nibbles of 32 bytes. */
INLINE __m256i nibbles_of(const uint8_t *p, bool high)
{
    __m256i q = load256(p);
    return _mm256_and_si256(high ? _mm256_srli_epi16(q, 4) : q, _mm256_set1_epi8(15));
}

/* 16 bytes of nibbles as 32 bytes: the low ones first. */
INLINE __m256i nibbles(const uint8_t *p)
{
    __m128i q = load128(p);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(q, 4), q), _mm256_set1_epi8(15));
}

/* 32 bits as 32 bytes of 0 or 16. */
INLINE __m256i fifth_bits(const uint8_t *p)
{
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    const __m256i from = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), from), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(spread, bit), _mm256_set1_epi8(16));
}

/* 32 bytes less `zero` as two vectors of 16 bits. */
INLINE void widen(__m256i bytes, int zero, __m256i *lo, __m256i *hi)
{
    *lo = _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(bytes)), _mm256_set1_epi16((short)zero));
    *hi = _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm256_extracti128_si256(bytes, 1)), _mm256_set1_epi16((short)zero));
}

INLINE void widen_signed(__m256i bytes, __m256i *lo, __m256i *hi)
{
    *lo = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes));
    *hi = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes, 1));
}

/* Types of blocks of 32. */
INLINE void unpack_small(const es_type type, const uint8_t *b, __m256i *lo, __m256i *hi, __m128 *dm)
{
    *dm = has_offset(type) ? two_halves(b) : one_half(b);
    switch (type) {
    case ES_Q4_0:
    case ES_Q4_1: { /* the hot types: nibbles are split after widening */
        __m256i bytes = _mm256_cvtepu8_epi16(load128(b + (type == ES_Q4_0 ? 2 : 4)));
        *lo = _mm256_and_si256(bytes, _mm256_set1_epi16(15));
        *hi = _mm256_srli_epi16(bytes, 4);
        if (type == ES_Q4_0) {
            *lo = _mm256_sub_epi16(*lo, _mm256_set1_epi16(8));
            *hi = _mm256_sub_epi16(*hi, _mm256_set1_epi16(8));
        }
        break;
    }
    case ES_Q5_0: widen(_mm256_or_si256(nibbles(b + 6), fifth_bits(b + 2)), 16, lo, hi); break;
    case ES_Q5_1: widen(_mm256_or_si256(nibbles(b + 8), fifth_bits(b + 4)), 0, lo, hi); break;
    case ES_Q8_0:
        *lo = _mm256_cvtepi8_epi16(load128(b + 2));
        *hi = _mm256_cvtepi8_epi16(load128(b + 18));
        break;
    default: { /* IQ4_NL */
        const __m256i table = _mm256_broadcastsi128_si256(load128((const uint8_t *)es_iq4_nl));
        widen_signed(_mm256_shuffle_epi8(table, nibbles(b + 2)), lo, hi);
    }
    }
}

/* Sub-block i (of 8) of a block of 256. */
INLINE void unpack_k(const es_type type, const uint8_t *b, int i, __m256i *lo, __m256i *hi, __m128 *dm)
{
    const int half = i / 4, quarter = i % 4;
    int scale[2], min[2]; /* of 16 elements each */
    switch (type) {
    case ES_Q2_K:
        for (int k = 0; k < 2; k++)
            scale[k] = b[2 * i + k] & 15, min[k] = b[2 * i + k] >> 4;
        widen(bits_at(b + 16 + 32 * half, 2 * quarter, 3), 0, lo, hi);
        *dm = _mm_mul_ps(_mm_shuffle_ps(two_halves(b + 80), two_halves(b + 80), 0x54), _mm_setr_ps(1, (float)-min[0], (float)-min[1], 0));
        break;
    case ES_Q3_K: {
        for (int k = 0; k < 2; k++)
            scale[k] = es_scale_q3_k(b + 96, 2 * i + k);
        const __m256i third = _mm256_set1_epi8((char)(1 << i));
        __m256i high = _mm256_cmpeq_epi8(_mm256_and_si256(load256(b), third), third); /* unset: q is less by 4 */
        widen_signed(_mm256_sub_epi8(bits_at(b + 32 + 32 * half, 2 * quarter, 3), _mm256_andnot_si256(high, _mm256_set1_epi8(4))), lo, hi);
        *dm = one_half(b + 108);
        break;
    }
    case ES_Q4_K:
    case ES_Q5_K: {
        __m256i q = nibbles_of(b + (type == ES_Q4_K ? 16 : 48) + i / 2 * 32, i % 2);
        if (type == ES_Q5_K)
            q = _mm256_or_si256(q, _mm256_slli_epi16(bits_at(b + 16, i, 1), 4));
        widen(q, 0, lo, hi);
        es_scale_min(b + 4, i, &scale[0], &min[0]);
        *dm = _mm_mul_ps(two_halves(b), _mm_setr_ps((float)scale[0], (float)-min[0], 0, 0));
        return; /* the scale holds for 32 elements */
    }
    default: { /* Q6_K; |scale (q - 32)| <= 128 * 32 */
        for (int k = 0; k < 2; k++)
            scale[k] = ((const int8_t *)b + 192)[half * 8 + quarter * 2 + k];
        __m256i ql = nibbles_of(b + half * 64 + (quarter & 1) * 32, quarter >= 2);
        widen(_mm256_or_si256(ql, _mm256_slli_epi16(bits_at(b + 128 + half * 32, 2 * quarter, 3), 4)), 32, lo, hi);
        *dm = one_half(b + 208);
    }
    }
    *lo = _mm256_mullo_epi16(*lo, _mm256_set1_epi16((short)scale[0]));
    *hi = _mm256_mullo_epi16(*hi, _mm256_set1_epi16((short)scale[1]));
}

/* Bytes of 32 elements, on average. */
INLINE size_t bytes_of_32(const es_type type)
{
    switch (type) {
    case ES_F32: return 128;
    case ES_F16:
    case ES_BF16: return 64;
    case ES_Q4_0:
    case ES_IQ4_NL: return 18;
    case ES_Q4_1: return 20;
    case ES_Q5_0: return 22;
    case ES_Q5_1: return 24;
    case ES_Q8_0: return 34;
    case ES_Q2_K: return 11; /* 84 / 8, and so on */
    case ES_Q3_K: return 14;
    case ES_Q4_K: return 18;
    case ES_Q5_K: return 22;
    case ES_Q6_K: return 27;
    }
    return 0;
}

/* Elements 32 i .. 32 i + 31 of a row of `type`: lo holds the first 16. dm: d, m, and Q2_K's m of the second 16. See es_dequant. */
INLINE void unpack(const es_type type, const uint8_t *row, int i, __m256i *lo, __m256i *hi, __m128 *dm)
{
    switch (type) {
    case ES_Q2_K: unpack_k(type, row + (size_t)(i / 8) * 84, i % 8, lo, hi, dm); break;
    case ES_Q3_K: unpack_k(type, row + (size_t)(i / 8) * 110, i % 8, lo, hi, dm); break;
    case ES_Q4_K: unpack_k(type, row + (size_t)(i / 8) * 144, i % 8, lo, hi, dm); break;
    case ES_Q5_K: unpack_k(type, row + (size_t)(i / 8) * 176, i % 8, lo, hi, dm); break;
    case ES_Q6_K: unpack_k(type, row + (size_t)(i / 8) * 210, i % 8, lo, hi, dm); break;
    default: unpack_small(type, row + (size_t)i * bytes_of_32(type), lo, hi, dm);
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
 * T is a constant at every call, so that the sums stay in registers. Rows are read one after the other, as memory likes best; so
 * that additions need not wait for each other, few tokens have several sums each (`ways`). */

INLINE int ways_of(const int T)
{
    return T == 1 ? 4 : T == 2 ? 2 : 1;
}

INLINE void prefetch(const es_type type, const uint8_t *row, size_t block)
{
    const size_t bytes = bytes_of_32(type);
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
        const __m256i x0 = _mm256_loadu_si256((const __m256i *)x), x1 = _mm256_loadu_si256((const __m256i *)(x + 16));
        __m256i s = DOT16(_mm256_setzero_si256(), lo, x0);
        s = DOT16(s, hi, x1);
        __m128 pair = _mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)(scales + ((size_t)t * blocks + b) * 2)));
        pair = _mm_mul_ps(pair, dm); /* d * scale, m * scale * sum(q) */
        if (has_offset(type))
            offset[t] = _mm_add_ps(offset[t], pair);
        if (has_two_offsets(type)) { /* the sums of 16 that this takes are not kept */
            const __m256i one = _mm256_set1_epi16(1);
            const __m128 m = _mm_mul_ps(dm, _mm_set1_ps(scales[((size_t)t * blocks + b) * 2]));
            const __m256 s0 = _mm256_cvtepi32_ps(_mm256_madd_epi16(x0, one)), s1 = _mm256_cvtepi32_ps(_mm256_madd_epi16(x1, one));
            sum[t] = _mm256_fmadd_ps(s0, _mm256_broadcastss_ps(_mm_movehdup_ps(m)), sum[t]);
            sum[t] = _mm256_fmadd_ps(s1, _mm256_broadcastss_ps(_mm_movehl_ps(m, m)), sum[t]);
        }
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
        if (has_offset(type))
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
ROWS_OF(ES_BF16, rows_bf16, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q4_0, rows_q4_0, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q4_1, rows_q4_1, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q5_0, rows_q5_0, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q5_1, rows_q5_1, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q8_0, rows_q8_0, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q2_K, rows_q2_k, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q3_K, rows_q3_k, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q4_K, rows_q4_k, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q5_K, rows_q5_k, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q6_K, rows_q6_k, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_IQ4_NL, rows_iq4_nl, row_exact, EXACT_ARG, EXACT_AT)
ROWS_OF(ES_Q4_0, rounded_q4_0, row_rounded, ROUNDED_ARG, ROUNDED_AT)
ROWS_OF(ES_Q4_1, rounded_q4_1, row_rounded, ROUNDED_ARG, ROUNDED_AT)
ROWS_OF(ES_Q5_0, rounded_q5_0, row_rounded, ROUNDED_ARG, ROUNDED_AT)
ROWS_OF(ES_Q5_1, rounded_q5_1, row_rounded, ROUNDED_ARG, ROUNDED_AT)
ROWS_OF(ES_Q8_0, rounded_q8_0, row_rounded, ROUNDED_ARG, ROUNDED_AT)
ROWS_OF(ES_Q2_K, rounded_q2_k, row_rounded, ROUNDED_ARG, ROUNDED_AT)
ROWS_OF(ES_Q3_K, rounded_q3_k, row_rounded, ROUNDED_ARG, ROUNDED_AT)
ROWS_OF(ES_Q4_K, rounded_q4_k, row_rounded, ROUNDED_ARG, ROUNDED_AT)
ROWS_OF(ES_Q5_K, rounded_q5_k, row_rounded, ROUNDED_ARG, ROUNDED_AT)
ROWS_OF(ES_Q6_K, rounded_q6_k, row_rounded, ROUNDED_ARG, ROUNDED_AT)
ROWS_OF(ES_IQ4_NL, rounded_iq4_nl, row_rounded, ROUNDED_ARG, ROUNDED_AT)

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

static void rows_rounded(const es_weight *w, int from, int to, const es_rounded *x, int T, float *y, bool accumulate)
{
    switch (w->type) {
    case ES_Q4_0: rounded_q4_0(w, from, to, x, T, y, accumulate); break;
    case ES_Q4_1: rounded_q4_1(w, from, to, x, T, y, accumulate); break;
    case ES_Q5_0: rounded_q5_0(w, from, to, x, T, y, accumulate); break;
    case ES_Q5_1: rounded_q5_1(w, from, to, x, T, y, accumulate); break;
    case ES_Q8_0: rounded_q8_0(w, from, to, x, T, y, accumulate); break;
    case ES_Q2_K: rounded_q2_k(w, from, to, x, T, y, accumulate); break;
    case ES_Q3_K: rounded_q3_k(w, from, to, x, T, y, accumulate); break;
    case ES_Q4_K: rounded_q4_k(w, from, to, x, T, y, accumulate); break;
    case ES_Q5_K: rounded_q5_k(w, from, to, x, T, y, accumulate); break;
    case ES_Q6_K: rounded_q6_k(w, from, to, x, T, y, accumulate); break;
    case ES_IQ4_NL: rounded_iq4_nl(w, from, to, x, T, y, accumulate); break;
    case ES_F32:
    case ES_F16:
    case ES_BF16: break; /* the caller rounds for blocks only */
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

#define QUANT_OPS .dequant = dequant, .rows = rows, .rows_rounded = rows_rounded, .round = round_row
