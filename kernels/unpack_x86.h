/* Blocks of quantised weights as integers, with 256-bit vectors.
 *
 * Every type of blocks is unpacked 32 elements at a time into two vectors of 16-bit integers and a pair (d, m): w = d q + m. Scales of
 * sub-blocks go into d and m where they hold for 32 elements, into the integers where they hold for 16. Q2_K alone has an m for each 16.
 * The including file has immintrin.h and internal.h. */
enum { Q_BLOCK = 32 };

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

/* Bytes of a block of 256; 0: the type's blocks are smaller. */
INLINE size_t bytes_of_256(const es_type type)
{
    switch (type) {
    case ES_Q2_K: return 84;
    case ES_Q3_K: return 110;
    case ES_Q4_K: return 144;
    case ES_Q5_K: return 176;
    case ES_Q6_K: return 210;
    default: return 0;
    }
}

/* Elements 32 i .. 32 i + 31 of a row of `type`: lo holds the first 16. dm: d, m, and Q2_K's m of the second 16. See es_dequant. */
INLINE void unpack(const es_type type, const uint8_t *row, int i, __m256i *lo, __m256i *hi, __m128 *dm)
{
    if (bytes_of_256(type))
        unpack_k(type, row + (size_t)(i / 8) * bytes_of_256(type), i % 8, lo, hi, dm);
    else
        unpack_small(type, row + (size_t)i * bytes_of_32(type), lo, hi, dm);
}
