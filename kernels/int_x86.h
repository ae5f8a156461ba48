/* Products of quantised weights and rounded activations with integer multiply-adds, shared by the AVX2 and the AVX-512 file.
 *
 * Activations are rounded to RANGE steps either side of 0, with a scale for 32 of them. So vpdpwssd (on AVX2 vpmaddwd and an
 * addition) sums 32 products without overflow: the largest weight, Q6_K's 128 * 32 with its scale in, times RANGE times 32 is
 * below 2^31. Eight bits would do half the multiplications at ten to a hundred times the error; a decoded token waits for memory
 * and not for those.
 *
 * Elements of a block of 32 are taken in pairs, as vpdpwssd takes them, and in the order in which nibbles come apart soonest: the
 * even ones of the first 16 (piece 0), the odd ones (1), then the same of the second 16 (2, 3). A quad is four blocks, one in each
 * 128-bit lane of a piece: of one row when there are few tokens, of four rows when a panel is made for many. AVX2 has a quad in
 * two halves.
 *
 * The including file has immintrin.h, rows_impl.h and quant_x86.h. */
enum {
    RANGE = 16383,
    LANES = W / 4,         /* blocks in a vector */
    HALVES = 4 / LANES,    /* vectors in a piece of a quad */
    TILE = W == 16 ? 8 : 4, /* tokens that meet a panel of W rows at a time: as many sums as there are registers for */
    /* On AVX2 f32 products by BLAS have the better of panels of integers at 128 tokens (392 tokens a second against 356, Zen 4, one
     * thread, prompts of 512); their panels cost more to make, which many tokens pay for. */
    MOST_TOKENS = W == 16 ? INT_MAX : 64,
};

#if W == 16
typedef __m512i wide;
#define WIDE(op) _mm512_##op
#define WIDE_SI(op) _mm512_##op##_si512
#define DOT(acc, a, b) _mm512_dpwssd_epi32(acc, a, b)
#else
typedef __m256i wide;
#define WIDE(op) _mm256_##op
#define WIDE_SI(op) _mm256_##op##_si256
#define DOT(acc, a, b) _mm256_add_epi32(acc, _mm256_madd_epi16(a, b))
#endif

typedef struct quad {
    wide piece[4][HALVES]; /* signed 16-bit integers; lane l of half h is block h * LANES + l */
    __m256 dm;             /* d and m of each block: w = d q + m */
    __m128 m2;             /* Q2_K: what m of the second 16 elements has more than m of the first */
} quad;

/* ---- unpacking -------------------------------------------------------------------------------------------------------------- */

/* 16 bytes from `at` of each pointer. */
INLINE wide lanes(const uint8_t *const *p, size_t at)
{
#if W == 16
    wide v = _mm512_castsi128_si512(load128(p[0] + at));
    v = _mm512_inserti32x4(v, load128(p[1] + at), 1);
    v = _mm512_inserti32x4(v, load128(p[2] + at), 2);
    return _mm512_inserti32x4(v, load128(p[3] + at), 3);
#else
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load128(p[0] + at)), load128(p[1] + at), 1);
#endif
}

INLINE void split_unsigned(wide bytes, wide *even, wide *odd)
{
    *even = bytes & WIDE(set1_epi16)(255);
    *odd = WIDE(srli_epi16)(bytes, 8);
}

INLINE void split_signed(wide bytes, wide *even, wide *odd)
{
    *even = WIDE(srai_epi16)(WIDE(slli_epi16)(bytes, 8), 8);
    *odd = WIDE(srai_epi16)(bytes, 8);
}

INLINE int two_bytes(const uint8_t *p)
{
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return bits;
}

INLINE int four_bytes(const uint8_t *p)
{
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    return bits;
}

/* Adds 16 to the bytes whose bit is set in the 16 bits at `at` of each pointer. */
INLINE wide add_fifth_bits(wide bytes, const uint8_t *const *p, size_t at)
{
#if W == 16
    const uint64_t low = (uint64_t)two_bytes(p[0] + at) | (uint64_t)two_bytes(p[1] + at) << 16;
    const uint64_t mask = low | (uint64_t)two_bytes(p[2] + at) << 32 | (uint64_t)two_bytes(p[3] + at) << 48;
    return _mm512_mask_add_epi8(bytes, mask, bytes, _mm512_set1_epi8(16));
#else
    const __m256i from = _mm256_setr_epi64x(0, 0x0101010101010101, 0, 0x0101010101010101), bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    __m256i spread = _mm256_shuffle_epi8(_mm256_setr_epi32(two_bytes(p[0] + at), 0, 0, 0, two_bytes(p[1] + at), 0, 0, 0), from) & bit;
    return bytes | (_mm256_cmpeq_epi8(spread, bit) & _mm256_set1_epi8(16));
#endif
}

/* The halves (d) or pairs of halves (d, m) that four blocks begin with, as pairs of floats. Inserted one by one: by way of an array
 * in memory the load waits for the stores, which took longer than all else that is done with a block. */
INLINE __m256 heads(const uint8_t *const p[4], const bool pairs)
{
    __m128i v = _mm_cvtsi32_si128(pairs ? four_bytes(p[0]) : two_bytes(p[0]));
    v = _mm_insert_epi32(v, pairs ? four_bytes(p[1]) : two_bytes(p[1]), 1);
    v = _mm_insert_epi32(v, pairs ? four_bytes(p[2]) : two_bytes(p[2]), 2);
    v = _mm_insert_epi32(v, pairs ? four_bytes(p[3]) : two_bytes(p[3]), 3);
    return _mm256_cvtph_ps(v);
}

/* (d, -) as (d, zero * -d). */
INLINE __m256 with_zero(__m256 d, float zero)
{
    const __m256 by = _mm256_setr_ps(1, -zero, 1, -zero, 1, -zero, 1, -zero);
    return _mm256_mul_ps(_mm256_moveldup_ps(d), by);
}

/* What the integers of a block are too large by. It goes into m where few tokens meet a block, and out of the integers for a panel. */
INLINE int zero_of(const es_type type)
{
    return type == ES_Q4_0 ? 8 : type == ES_Q5_0 ? 16 : 0;
}

INLINE bool counts_offset(const es_type type, const bool panel)
{
    return has_offset(type) || has_two_offsets(type) || (zero_of(type) && !panel);
}

/* Four blocks of a type of blocks of 32. */
INLINE void quad_small(const es_type type, const uint8_t *const p[4], const bool panel, quad *q)
{
    for (int h = 0; h < HALVES; h++) {
        const uint8_t *const *lane = p + h * LANES;
        wide *e0 = &q->piece[0][h], *o0 = &q->piece[1][h], *e1 = &q->piece[2][h], *o1 = &q->piece[3][h], first, second;
        const wide low = WIDE(set1_epi8)(15);
        switch (type) {
        case ES_Q4_0:
        case ES_Q4_1:
            first = lanes(lane, type == ES_Q4_0 ? 2 : 4);
            *e0 = first & WIDE(set1_epi16)(15);
            *o0 = WIDE(srli_epi16)(first, 8) & WIDE(set1_epi16)(15);
            *e1 = WIDE(srli_epi16)(first, 4) & WIDE(set1_epi16)(15);
            *o1 = WIDE(srli_epi16)(first, 12);
            break;
        case ES_Q5_0:
        case ES_Q5_1: {
            const size_t high = type == ES_Q5_0 ? 2 : 4;
            first = lanes(lane, high + 4);
            split_unsigned(add_fifth_bits(first & low, lane, high), e0, o0);
            split_unsigned(add_fifth_bits(WIDE(srli_epi16)(first, 4) & low, lane, high + 2), e1, o1);
            break;
        }
        case ES_IQ4_NL: {
            const uint8_t *const table[4] = {(const uint8_t *)es_iq4_nl, (const uint8_t *)es_iq4_nl, (const uint8_t *)es_iq4_nl, (const uint8_t *)es_iq4_nl};
            const wide values = lanes(table, 0);
            first = lanes(lane, 2);
            split_signed(WIDE(shuffle_epi8)(values, first & low), e0, o0);
            split_signed(WIDE(shuffle_epi8)(values, WIDE(srli_epi16)(first, 4) & low), e1, o1);
            break;
        }
        default: /* Q8_0 */
            first = lanes(lane, 2), second = lanes(lane, 18);
            split_signed(first, e0, o0);
            split_signed(second, e1, o1);
        }
    }
    q->dm = heads(p, has_offset(type));
    if (zero_of(type) && panel)
        for (int piece = 0; piece < 4; piece++)
            for (int h = 0; h < HALVES; h++)
                q->piece[piece][h] = WIDE(sub_epi16)(q->piece[piece][h], WIDE(set1_epi16)((int16_t)zero_of(type)));
    else if (zero_of(type))
        q->dm = with_zero(q->dm, (float)zero_of(type));
}

/* Two blocks' 16 elements each in order, as even ones and odd ones, a block a lane. */
INLINE void split_pair(__m256i a, __m256i b, __m256i *even, __m256i *odd)
{
    __m256i e = _mm256_packs_epi32(_mm256_srai_epi32(_mm256_slli_epi32(a, 16), 16), _mm256_srai_epi32(_mm256_slli_epi32(b, 16), 16));
    __m256i o = _mm256_packs_epi32(_mm256_srai_epi32(a, 16), _mm256_srai_epi32(b, 16));
    *even = _mm256_permute4x64_epi64(e, 0xd8); /* packs works within lanes */
    *odd = _mm256_permute4x64_epi64(o, 0xd8);
}

INLINE void put_half(quad *q, int piece, int half, __m256i v)
{
#if W == 16
    q->piece[piece][0] = half ? _mm512_inserti64x4(q->piece[piece][0], v, 1) : _mm512_castsi256_si512(v);
#else
    q->piece[piece][half] = v;
#endif
}

/* Any type: blocks i[] of four rows, by way of quant_x86.h's unpack. */
INLINE void quad_any(const es_type type, const uint8_t *const row[4], const int i[4], quad *q)
{
    __m128 dm[4];
    for (int h = 0; h < 2; h++) {
        __m256i lo[2], hi[2], even, odd;
        for (int k = 0; k < 2; k++)
            unpack(type, row[2 * h + k], i[2 * h + k], &lo[k], &hi[k], &dm[2 * h + k]);
        split_pair(lo[0], lo[1], &even, &odd);
        put_half(q, 0, h, even), put_half(q, 1, h, odd);
        split_pair(hi[0], hi[1], &even, &odd);
        put_half(q, 2, h, even), put_half(q, 3, h, odd);
    }
    q->dm = _mm256_set_m128(_mm_movelh_ps(dm[2], dm[3]), _mm_movelh_ps(dm[0], dm[1]));
    if (has_two_offsets(type)) {
        const __m128 m1 = _mm_shuffle_ps(_mm_movehl_ps(dm[1], dm[0]), _mm_movehl_ps(dm[3], dm[2]), 0x88);
        const __m128 m0 = _mm_shuffle_ps(_mm_movelh_ps(dm[0], dm[1]), _mm_movelh_ps(dm[2], dm[3]), 0xdd);
        q->m2 = _mm_sub_ps(m1, m0);
    }
}

/* The first or the second half of a block of 256 of Q4_K or Q5_K: four sub-blocks, nibbles of 64 bytes. */
INLINE void quad_q4_k(const es_type type, const uint8_t *b, int half, quad *q)
{
    const uint8_t *qs = b + (type == ES_Q4_K ? 16 : 48) + 64 * half;
    for (int h = 0; h < 2; h++) {
        const __m256i low = nibbles_of(qs + 32 * h, false), high = nibbles_of(qs + 32 * h, true);
        __m256i first = _mm256_permute2x128_si256(low, high, 0x20), second = _mm256_permute2x128_si256(low, high, 0x31);
        if (type == ES_Q5_K) {
            const int i = 4 * half + 2 * h;
            const __m256i by = _mm256_setr_epi32(i, i, i, i, i + 1, i + 1, i + 1, i + 1), one = _mm256_set1_epi8(1);
            const __m256i h0 = _mm256_broadcastsi128_si256(load128(b + 16)), h1 = _mm256_broadcastsi128_si256(load128(b + 32));
            first |= _mm256_slli_epi16(_mm256_srlv_epi32(h0, by) & one, 4);
            second |= _mm256_slli_epi16(_mm256_srlv_epi32(h1, by) & one, 4);
        }
        const __m256i byte = _mm256_set1_epi16(255);
        put_half(q, 0, h, first & byte), put_half(q, 1, h, _mm256_srli_epi16(first, 8));
        put_half(q, 2, h, second & byte), put_half(q, 3, h, _mm256_srli_epi16(second, 8));
    }
    uint32_t s[3], scale, min; /* es_scale_min, four at a time */
    memcpy(s, b + 4, sizeof s);
    scale = half ? (s[2] & 0x0f0f0f0f) | (s[0] >> 2 & 0x30303030) : s[0] & 0x3f3f3f3f;
    min = half ? (s[2] >> 4 & 0x0f0f0f0f) | (s[1] >> 2 & 0x30303030) : s[1] & 0x3f3f3f3f;
    const __m256i pairs = _mm256_cvtepu8_epi32(_mm_unpacklo_epi8(_mm_cvtsi32_si128((int)scale), _mm_cvtsi32_si128((int)min)));
    const __m128 d = _mm_xor_ps(two_halves(b), _mm_setr_ps(0, -0.0f, 0, 0));
    q->dm = _mm256_mul_ps(_mm256_cvtepi32_ps(pairs), _mm256_castpd_ps(_mm256_broadcastsd_pd(_mm_castps_pd(d))));
}

/* The same of Q6_K. The scales of 16 elements go into the integers. */
INLINE void quad_q6_k(const uint8_t *b, int half, quad *q)
{
    const uint8_t *ql = b + 64 * half, *qh = b + 128 + 32 * half;
    int64_t bits;
    memcpy(&bits, b + 192 + 8 * half, sizeof bits);
    const __m256i scales = _mm256_broadcastsi128_si256(_mm_cvtepi8_epi16(_mm_cvtsi64_si128(bits))); /* of first and second 16 in turn */
    for (int h = 0; h < 2; h++) { /* sub-blocks 0 and 1 are low nibbles, 2 and 3 high ones */
        const __m256i by = _mm256_setr_epi32(4 * h, 4 * h, 4 * h, 4 * h, 4 * h + 2, 4 * h + 2, 4 * h + 2, 4 * h + 2), three = _mm256_set1_epi8(3);
        for (int s = 0; s < 2; s++) {
            const __m256i raw = _mm256_set_m128i(load128(ql + 32 + 16 * s), load128(ql + 16 * s)), top = _mm256_broadcastsi128_si256(load128(qh + 16 * s));
            __m256i v = (h ? _mm256_srli_epi16(raw, 4) : raw) & _mm256_set1_epi8(15);
            v |= _mm256_slli_epi16(_mm256_srlv_epi32(top, by) & three, 4);
            v = _mm256_sub_epi8(v, _mm256_set1_epi8(32));
            const int a = 8 * h + 2 * s; /* where the scale of the first lane's block lies in `scales`; the second's is 4 bytes on */
            const int16_t w0 = (int16_t)(a | (a + 1) << 8), w1 = (int16_t)((a + 4) | (a + 5) << 8);
            const __m256i scale = _mm256_shuffle_epi8(scales, _mm256_set_m128i(_mm_set1_epi16(w1), _mm_set1_epi16(w0)));
            put_half(q, 2 * s, h, _mm256_mullo_epi16(_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), scale));
            put_half(q, 2 * s + 1, h, _mm256_mullo_epi16(_mm256_srai_epi16(v, 8), scale));
        }
    }
    q->dm = _mm256_castsi256_ps(_mm256_broadcastq_epi64(_mm_castps_si128(_mm_move_ss(_mm_setzero_ps(), one_half(b + 208)))));
}

/* Four blocks of a row lie in less than 128 bytes: there two loads and a permutation of words do what takes seven instructions and
 * more when blocks come one by one. How, for a type; and whatever else GCC should keep in registers and not load again and again. */
#if W == 16
INLINE __m512i kept(__m512i v)
{
    __asm__("" : "+v"(v));
    return v;
}

typedef struct ways {
    __m512i data, head, fifth[2]; /* words of the 128 bytes: each block's 16 bytes of nibbles, first 2 words, bits 16 times each half */
} ways;

typedef int16_t words __attribute__((vector_size(64)));

/* Lane l gets of block l the n words from byte `first` on, over and over; n = 2: one block after the other in lane 0. */
INLINE __m512i from_blocks(const int bytes, const int first, const int n)
{
    const words count = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
    const words block = n == 2 ? count >> 1 & 3 : count >> 3;
    const words byte = block * (int16_t)bytes + (int16_t)first + (count & (int16_t)(n - 1)) * 2, far = byte > 62;
    return kept((__m512i)(((far & (byte - (int16_t)(4 * bytes - 128))) | (~far & byte)) >> 1)); /* the second load ends with the blocks */
}

INLINE ways ways_of(const es_type type)
{
    const int bytes = (int)bytes_of_32(type), head = has_offset(type) ? 4 : 2;
    const bool five = type == ES_Q5_0 || type == ES_Q5_1;
    ways w = {.data = from_blocks(bytes, head + (five ? 4 : 0), 8), .head = from_blocks(bytes, 0, 2)};
    if (five)
        w.fifth[0] = from_blocks(bytes, head, 1), w.fifth[1] = from_blocks(bytes, head + 2, 1);
    return w;
}

INLINE __m512i fifth_bits_added(__m512i bytes, __m512i bits)
{
    const __m512i spread = _mm512_shuffle_epi8(bits, _mm512_set4_epi32(0x01010101, 0x01010101, 0, 0)), bit = _mm512_set1_epi64((int64_t)0x8040201008040201);
    return _mm512_mask_add_epi8(bytes, _mm512_test_epi8_mask(spread, bit), bytes, _mm512_set1_epi8(16));
}

/* Four blocks of a row from b on, as quad_small. */
INLINE void quad_together(const es_type type, const ways *by, const uint8_t *b, quad *q)
{
    const int bytes = (int)bytes_of_32(type);
    const __m512i start = kept(_mm512_loadu_si512(b)), end = kept(_mm512_loadu_si512(b + 4 * bytes - 64)), low = _mm512_set1_epi8(15);
    const __m512i raw = _mm512_permutex2var_epi16(start, by->data, end);
    if (type == ES_Q4_0 || type == ES_Q4_1) {
        const __m512i low16 = _mm512_set1_epi16(15);
        q->piece[0][0] = raw & low16;
        q->piece[1][0] = _mm512_srli_epi16(raw, 8) & low16;
        q->piece[2][0] = _mm512_srli_epi16(raw, 4) & low16;
        q->piece[3][0] = _mm512_srli_epi16(raw, 12);
    } else if (type == ES_IQ4_NL) {
        const __m512i values = _mm512_broadcast_i32x4(load128((const uint8_t *)es_iq4_nl));
        split_signed(_mm512_shuffle_epi8(values, raw & low), &q->piece[0][0], &q->piece[1][0]);
        split_signed(_mm512_shuffle_epi8(values, _mm512_srli_epi16(raw, 4) & low), &q->piece[2][0], &q->piece[3][0]);
    } else {
        const __m512i first = _mm512_permutex2var_epi16(start, by->fifth[0], end), second = _mm512_permutex2var_epi16(start, by->fifth[1], end);
        split_unsigned(fifth_bits_added(raw & low, first), &q->piece[0][0], &q->piece[1][0]);
        split_unsigned(fifth_bits_added(_mm512_srli_epi16(raw, 4) & low, second), &q->piece[2][0], &q->piece[3][0]);
    }
    q->dm = _mm256_cvtph_ps(_mm512_castsi512_si128(_mm512_permutex2var_epi16(start, by->head, end)));
    if (zero_of(type))
        q->dm = with_zero(q->dm, (float)zero_of(type));
}
#else
typedef struct ways {
    char none;
} ways;

INLINE ways ways_of(const es_type type)
{
    (void)type;
    return (ways){0};
}
#endif

/* Blocks 4 g .. 4 g + 3 of a row. The last quad may have fewer (`blocks`: the row's): then the last block stands in, and meets zeros. */
INLINE void quad_of_row(const es_type type, const ways *by, const uint8_t *row, int g, const bool whole, int blocks, quad *q)
{
    (void)by;
    switch (type) {
    case ES_Q4_K:
    case ES_Q5_K: quad_q4_k(type, row + (size_t)(g / 2) * bytes_of_256(type), g % 2, q); break;
    case ES_Q6_K: quad_q6_k(row + (size_t)(g / 2) * bytes_of_256(type), g % 2, q); break;
    case ES_Q2_K:
    case ES_Q3_K: quad_any(type, (const uint8_t *const[]){row, row, row, row}, (const int[]){4 * g, 4 * g + 1, 4 * g + 2, 4 * g + 3}, q); break;
    default: {
        const size_t bytes = bytes_of_32(type);
        row += 4 * (size_t)g * bytes;
#if W == 16
        if (whole && type != ES_Q8_0) {
            quad_together(type, by, row, q);
            break;
        }
#endif
        const uint8_t *p[4];
        for (int i = 0; i < 4; i++)
            p[i] = row + (size_t)(whole || 4 * g + i < blocks ? i : blocks - 1 - 4 * g) * bytes;
        quad_small(type, p, false, q);
    }
    }
}

/* ---- rounding ---------------------------------------------------------------------------------------------------------------- */

/* 32 floats: the pieces, and their scale, scale * sum and scale * sum of the second 16. A block that holds a NaN or an infinity gets
 * a NaN scale, so that it does not vanish. */
INLINE void round_block(const float *x, __m256i out[2], float scale[3])
{
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    const __m256i apart = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    __m256 v[4], max = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
    for (int c = 0; c < 4; c++) {
        v[c] = _mm256_loadu_ps(x + 8 * c);
        max = _mm256_max_ps(max, _mm256_and_ps(v[c], magnitude));
        odd = _mm256_add_ps(odd, _mm256_sub_ps(v[c], v[c])); /* 0, or NaN */
    }
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps(max, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    m = _mm_max_ss(m, _mm_movehdup_ps(m));
    const float largest = _mm_cvtss_f32(m), step = largest / RANGE;
    const __m256 inverse = _mm256_set1_ps(step >= FLT_MIN ? RANGE / largest : 0);
    __m128i sum[2];
    for (int s = 0; s < 2; s++) {
        const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(v[2 * s], inverse)), b = _mm256_cvtps_epi32(_mm256_mul_ps(v[2 * s + 1], inverse));
        const __m256i ab = _mm256_add_epi32(a, b);
        sum[s] = _mm_add_epi32(_mm256_castsi256_si128(ab), _mm256_extracti128_si256(ab, 1));
        const __m256i in_order = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
        out[s] = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(in_order, apart), 0xd8);
    }
    __m128i both = _mm_hadd_epi32(sum[0], sum[1]);
    both = _mm_hadd_epi32(both, both);
    const int first = _mm_cvtsi128_si32(both), second = _mm_extract_epi32(both, 1);
    scale[0] = step + sum8(odd);
    scale[1] = scale[0] * ((float)first + (float)second); /* as floats: with a NaN they are the largest integers */
    scale[2] = scale[0] * (float)second;
}

/* One token for rows_rounded: [quads][piece][block][8], and [quads][8 + 4]: scale and scale * sum of each block, then scale * second. */
static void round_row(const float *x, int K, int16_t *q, float *scales)
{
    const int blocks = K / Q_BLOCK, quads = (blocks + 3) / 4;
    for (int b = 0; b < 4 * quads; b++) {
        int16_t *to = q + (size_t)(b / 4) * 128 + b % 4 * 8;
        float *scale = scales + (size_t)(b / 4) * 12, s[3] = {0};
        __m256i out[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        if (b < blocks)
            round_block(x + (size_t)b * Q_BLOCK, out, s);
        for (int piece = 0; piece < 4; piece++)
            _mm_storeu_si128((__m128i *)(void *)(to + 32 * piece), piece % 2 ? _mm256_extracti128_si256(out[piece / 2], 1) : _mm256_castsi256_si128(out[piece / 2]));
        scale[b % 4 * 2] = s[0], scale[b % 4 * 2 + 1] = s[1], scale[8 + b % 4] = s[2];
    }
}

/* ---- few tokens: four sums at a time, of R rows and T tokens -------------------------------------------------------------- */

/* The sum of each of four vectors. */
INLINE __m128 sums_of_four(const vec s[4])
{
#if W == 16
    __m512 a = _mm512_add_ps(_mm512_unpacklo_ps((__m512)s[0], (__m512)s[1]), _mm512_unpackhi_ps((__m512)s[0], (__m512)s[1]));
    __m512 b = _mm512_add_ps(_mm512_unpacklo_ps((__m512)s[2], (__m512)s[3]), _mm512_unpackhi_ps((__m512)s[2], (__m512)s[3]));
    a = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
#else
    __m256 h = _mm256_hadd_ps(_mm256_hadd_ps((__m256)s[0], (__m256)s[1]), _mm256_hadd_ps((__m256)s[2], (__m256)s[3]));
#endif
    return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}

/* Four blocks of a token. */
typedef struct quad_x {
    wide piece[4][HALVES];
    __m256 scales; /* and scale * sum */
    __m128 second;
} quad_x;

INLINE void load_x(const es_rounded *x, size_t at, quad_x *out)
{
    for (int piece = 0; piece < 4; piece++)
        for (int h = 0; h < HALVES; h++)
            out->piece[piece][h] = WIDE_SI(loadu)((const wide *)(const void *)(x->q + at * 128 + 32 * piece + 8 * LANES * h));
    out->scales = _mm256_loadu_ps(x->scales + at * 12);
    out->second = _mm_loadu_ps(x->scales + at * 12 + 8);
}

/* *sum += w . x; offset: sums of m * scale * sum(q), in odd lanes. */
INLINE void add_quad(const es_type type, const quad *w, const quad_x *x, vec *sum, __m256 *offset)
{
    const __m256 ds = _mm256_mul_ps(w->dm, x->scales);
    for (int h = 0; h < HALVES; h++) {
        wide s = WIDE_SI(setzero)();
        for (int piece = 0; piece < 4; piece++)
            s = DOT(s, w->piece[piece][h], x->piece[piece][h]);
#if W == 16
        const vec d = (vec)_mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6), _mm512_castps256_ps512(ds));
#else
        const vec d = (vec)_mm256_permutevar8x32_ps(ds, _mm256_setr_epi32(4 * h, 4 * h, 4 * h, 4 * h, 4 * h + 2, 4 * h + 2, 4 * h + 2, 4 * h + 2));
#endif
        *sum += (vec)WIDE(cvtepi32_ps)(s) * d;
    }
    if (counts_offset(type, false))
        *offset = _mm256_add_ps(*offset, ds);
    if (has_two_offsets(type)) {
        const __m128 more = _mm_mul_ps(w->m2, x->second);
        *offset = _mm256_add_ps(*offset, _mm256_set_m128(_mm_unpackhi_ps(_mm_setzero_ps(), more), _mm_unpacklo_ps(_mm_setzero_ps(), more)));
    }
}

/* Quad g of R rows and T tokens. */
INLINE void few_quads(const es_type type, const ways *by, const int R, const int T, const uint8_t *w, size_t row, int g, const bool whole, int blocks,
                      const es_rounded *x, vec *sum, __m256 *offset)
{
    const int quads = (blocks + 3) / 4;
    const size_t bytes = 4 * bytes_of_32(type) * (size_t)R;
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)w + (size_t)g * bytes + AHEAD + i, _MM_HINT_T0);
    quad_x xs[4]; /* what several rows meet stays in registers */
    for (int t = 0; t < T; t++)
        load_x(x, (size_t)t * (size_t)quads + (size_t)g, &xs[t]);
    for (int r = 0; r < R; r++) {
        quad v;
        quad_of_row(type, by, w + (size_t)r * row, g, whole, blocks, &v);
        for (int t = 0; t < T; t++)
            add_quad(type, &v, &xs[t], &sum[t * R + r], &offset[t * R + r]);
    }
}

/* y[t * N + r] (+)= for R rows from w on, T tokens; R T <= 4, constants where this is inlined. */
INLINE void few(const es_type type, const ways *by, const int R, const int T, const uint8_t *w, size_t row, int K, const es_rounded *x, float *y, size_t N,
                bool accumulate)
{
    const int blocks = K / Q_BLOCK;
    vec sum[4];
    __m256 offset[4];
    for (int i = 0; i < 4; i++)
        sum[i] = (vec){0}, offset[i] = _mm256_setzero_ps();
    for (int g = 0; g < blocks / 4; g++)
        few_quads(type, by, R, T, w, row, g, true, blocks, x, sum, offset);
    if (blocks % 4)
        few_quads(type, by, R, T, w, row, blocks / 4, false, blocks, x, sum, offset);
    if (counts_offset(type, false))
        for (int i = 0; i < R * T; i++) {
            const __m256 odd = _mm256_blend_ps(_mm256_setzero_ps(), offset[i], 0xaa);
#if W == 16
            sum[i] += (vec)_mm512_zextps256_ps512(odd);
#else
            sum[i] += (vec)odd;
#endif
        }
    float total_of[4];
    _mm_storeu_ps(total_of, sums_of_four(sum));
    for (int i = 0; i < R * T; i++) {
        float *to = y + (size_t)(i / R) * N + (size_t)(i % R);
        *to = accumulate ? *to + total_of[i] : total_of[i];
    }
}

#define ROUNDED_OF(type, name)                                                                                                     \
    static void name(const es_weight *w, int from, int to, const es_rounded *x, int T, float *y, bool accumulate)                  \
    {                                                                                                                              \
        const int K = w->n_in, quads = (K / Q_BLOCK + 3) / 4;                                                                      \
        const size_t row = es_row_bytes(type, K), N = (size_t)w->n_out;                                                            \
        const ways by = ways_of(type);                                                                                             \
        for (int t = 0, m; t < T; t += m) {                                                                                        \
            const es_rounded xt = {x->q + (size_t)t * (size_t)quads * 128, x->scales + (size_t)t * (size_t)quads * 12};            \
            m = T - t < 4 ? T - t : 4;                                                                                             \
            for (int n = from, r; n < to; n += r) {                                                                                \
                const uint8_t *at = (const uint8_t *)w->data + (size_t)n * row;                                                    \
                float *out = y + (size_t)t * N + n;                                                                                \
                r = m == 1 && to - n >= 4 ? 4 : m == 2 && to - n >= 2 ? 2 : 1;                                                     \
                switch (m * 8 + r) {                                                                                               \
                case 12: few(type, &by, 4, 1, at, row, K, &xt, out, N, accumulate); break;                                            \
                case 9: few(type, &by, 1, 1, at, row, K, &xt, out, N, accumulate); break;                                             \
                case 18: few(type, &by, 2, 2, at, row, K, &xt, out, N, accumulate); break;                                            \
                case 17: few(type, &by, 1, 2, at, row, K, &xt, out, N, accumulate); break;                                            \
                case 25: few(type, &by, 1, 3, at, row, K, &xt, out, N, accumulate); break;                                            \
                default: few(type, &by, 1, 4, at, row, K, &xt, out, N, accumulate); break;                                            \
                }                                                                                                                  \
            }                                                                                                                      \
        }                                                                                                                          \
    }

/* ---- many tokens: W rows become a panel that stays in cache, TILE tokens meet it at a time ------------------------------------ */

/* A panel is for each block 16 pairs of all W rows, then d, m and m2 of each row. A tile is for each block 16 pairs of all TILE tokens,
 * then the three scales of each. */
enum { PANEL_FLOATS = 19 * W, TILE_FLOATS = 19 * TILE };

static size_t panel_bytes(int K)
{
    return (size_t)(K / Q_BLOCK) * PANEL_FLOATS * sizeof(float);
}

static size_t tile_bytes(int K)
{
    return (size_t)(K / Q_BLOCK) * TILE_FLOATS * sizeof(float);
}

/* Eight pairs of each of four tokens, a pair of all four tokens at a time to out, out + TILE, ... */
INLINE void put_pairs(const __m256i v[4], int32_t *out)
{
    const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]), c = _mm256_unpacklo_epi32(v[2], v[3]),
                  d = _mm256_unpackhi_epi32(v[2], v[3]);
    const __m256i pair[4] = {_mm256_unpacklo_epi64(a, c), _mm256_unpackhi_epi64(a, c), _mm256_unpacklo_epi64(b, d), _mm256_unpackhi_epi64(b, d)};
    for (int i = 0; i < 4; i++) {
        _mm_storeu_si128((__m128i *)(void *)(out + i * TILE), _mm256_castsi256_si128(pair[i]));
        _mm_storeu_si128((__m128i *)(void *)(out + (4 + i) * TILE), _mm256_extracti128_si256(pair[i], 1));
    }
}

/* x[T, K], T <= TILE, as a tile; the tokens that it lacks are zeros. */
static void round_tile(const float *x, int K, int T, void *out)
{
    for (int b = 0; b < K / Q_BLOCK; b++) {
        int32_t *pairs = (int32_t *)out + (size_t)b * TILE_FLOATS;
        float *scales = (float *)out + (size_t)b * TILE_FLOATS + 16 * TILE;
        for (int i = 0; i < TILE_FLOATS; i += 16) /* all threads read the last tiles: asked for before they are written, they come in time */
            __builtin_prefetch(pairs + 2 * TILE_FLOATS + i, 1);
        for (int t = 0; t < TILE; t += 4) {
            __m256i first[4], second[4];
            for (int i = 0; i < 4; i++) {
                __m256i q[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
                float s[3] = {0};
                if (t + i < T)
                    round_block(x + (size_t)(t + i) * (size_t)K + (size_t)b * Q_BLOCK, q, s);
                first[i] = q[0], second[i] = q[1];
                for (int k = 0; k < 3; k++)
                    scales[k * TILE + t + i] = s[k];
            }
            put_pairs(first, pairs + t);
            put_pairs(second, pairs + 8 * TILE + t);
        }
    }
}

/* W floats from quads' values in the order in which make_panel asks for rows. */
INLINE vec in_row_order(const __m128 v[4])
{
#if W == 16
    __m512 all = _mm512_insertf32x4(_mm512_castps128_ps512(v[0]), v[1], 1);
    all = _mm512_insertf32x4(_mm512_insertf32x4(all, v[2], 2), v[3], 3);
    return (vec)_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), all);
#else
    return (vec)_mm256_permutevar8x32_ps(_mm256_set_m128(v[1], v[0]), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
#endif
}

/* Block b of W rows. Vector c of the four that make a piece has row 4 l + c in lane l; a transposition of four by four dwords within
 * lanes then brings row r's pairs to dword r. */
INLINE void panel_block(const es_type type, const uint8_t *const row[W], int b, float *out)
{
    wide part[4][4]; /* [piece][vector] */
    __m128 d[4], m[4], m2[4];
    for (int c = 0; c < 4; c += HALVES) {
        const uint8_t *p[4];
        quad q;
        for (int i = 0; i < 4; i++)
            p[i] = row[i % LANES * 4 + c + i / LANES];
        if (bytes_of_256(type) == 0) {
            for (int i = 0; i < 4; i++)
                p[i] += (size_t)b * bytes_of_32(type);
            quad_small(type, p, true, &q);
        } else
            quad_any(type, p, (const int[]){b, b, b, b}, &q);
        for (int piece = 0; piece < 4; piece++)
            for (int h = 0; h < HALVES; h++)
                part[piece][c + h] = q.piece[piece][h];
        const __m128 low = _mm256_castps256_ps128(q.dm), high = _mm256_extractf128_ps(q.dm, 1);
        d[c / HALVES] = _mm_shuffle_ps(low, high, 0x88);
        m[c / HALVES] = _mm_shuffle_ps(low, high, 0xdd);
        m2[c / HALVES] = q.m2;
    }
    for (int piece = 0; piece < 4; piece++, out += 4 * W) {
        const wide *v = part[piece];
        const wide a = WIDE(unpacklo_epi32)(v[0], v[1]), b2 = WIDE(unpackhi_epi32)(v[0], v[1]), c = WIDE(unpacklo_epi32)(v[2], v[3]), e = WIDE(unpackhi_epi32)(v[2], v[3]);
        WIDE_SI(store)((wide *)(void *)out, WIDE(unpacklo_epi64)(a, c));
        WIDE_SI(store)((wide *)(void *)(out + W), WIDE(unpackhi_epi64)(a, c));
        WIDE_SI(store)((wide *)(void *)(out + 2 * W), WIDE(unpacklo_epi64)(b2, e));
        WIDE_SI(store)((wide *)(void *)(out + 3 * W), WIDE(unpackhi_epi64)(b2, e));
    }
    store(out, in_row_order(d));
    if (counts_offset(type, true))
        store(out + W, in_row_order(m));
    if (has_two_offsets(type))
        store(out + 2 * W, in_row_order(m2));
}

/* y[t * N + 0 .. rows) (+)= a panel times the T tokens of a tile. */
INLINE void panel_times_tile(const es_type type, const float *panel, const float *tile, int blocks, int T, int rows, float *y, size_t N, bool accumulate)
{
    vec sum[TILE];
    for (int t = 0; t < TILE; t++)
        sum[t] = (vec){0};
    for (int b = 0; b < blocks; b++, panel += PANEL_FLOATS, tile += TILE_FLOATS) {
        wide s[TILE];
        for (int t = 0; t < TILE; t++)
            s[t] = WIDE_SI(setzero)();
        const int32_t *pairs = (const int32_t *)(const void *)tile;
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            const wide w = WIDE_SI(load)((const wide *)(const void *)(panel + i * W));
            for (int t = 0; t < TILE; t++)
                s[t] = DOT(s[t], w, WIDE(set1_epi32)(pairs[i * TILE + t]));
        }
        const vec d = load(panel + 16 * W), m = load(panel + 17 * W), m2 = load(panel + 18 * W);
        const float *scales = tile + 16 * TILE;
        for (int t = 0; t < TILE; t++) {
            sum[t] += (vec)WIDE(cvtepi32_ps)(s[t]) * (d * splat(scales[t]));
            if (counts_offset(type, true))
                sum[t] += m * splat(scales[TILE + t]);
            if (has_two_offsets(type))
                sum[t] += m2 * splat(scales[2 * TILE + t]);
        }
    }
    for (int t = 0; t < T; t++, y += N) {
        if (accumulate)
            sum[t] += rows == W ? load(y) : load_tail(y, (size_t)rows);
        if (rows == W)
            store(y, sum[t]);
        else
            store_tail(y, sum[t], (size_t)rows);
    }
}

#define PANELS_OF(type, name)                                                                                                      \
    static void name(const es_weight *w, int from, int to, const void *tiles, int T, float *y, bool accumulate, void *scratch)     \
    {                                                                                                                              \
        const int K = w->n_in, blocks = K / Q_BLOCK;                                                                               \
        const size_t bytes = es_row_bytes(type, K), N = (size_t)w->n_out;                                                          \
        for (int n = from; n < to; n += W) {                                                                                       \
            const int rows = to - n < W ? to - n : W;                                                                              \
            const uint8_t *row[W];                                                                                                 \
            for (int r = 0; r < W; r++) /* past the end the last one stands in, and goes nowhere */                                \
                row[r] = (const uint8_t *)w->data + (size_t)(n + (r < rows ? r : rows - 1)) * bytes;                               \
            for (int b = 0; b < blocks; b++)                                                                                       \
                panel_block(type, row, b, (float *)scratch + (size_t)b * PANEL_FLOATS);                                            \
            for (int t = 0; t < T; t += TILE)                                                                                      \
                panel_times_tile(type, scratch, (const float *)tiles + (size_t)(t / TILE) * (size_t)blocks * TILE_FLOATS, blocks,  \
                                 T - t < TILE ? T - t : TILE, rows, y + (size_t)t * N + n, N, accumulate);                         \
        }                                                                                                                          \
    }

/* ---- by type ------------------------------------------------------------------------------------------------------------------ */

#define BLOCK_TYPES(each)                                                                                                          \
    each(ES_Q4_0, q4_0) each(ES_Q4_1, q4_1) each(ES_Q5_0, q5_0) each(ES_Q5_1, q5_1) each(ES_Q8_0, q8_0) each(ES_IQ4_NL, iq4_nl)    \
    each(ES_Q2_K, q2_k) each(ES_Q3_K, q3_k) each(ES_Q4_K, q4_k) each(ES_Q5_K, q5_k) each(ES_Q6_K, q6_k)
#define DEFINE_BOTH(type, name) ROUNDED_OF(type, rounded_##name) PANELS_OF(type, panels_##name)
#define CASE_ROUNDED(type, name) case type: rounded_##name(w, from, to, x, T, y, accumulate); break;
#define CASE_PANELS(type, name) case type: panels_##name(w, from, to, tiles, T, y, accumulate, scratch); break;

BLOCK_TYPES(DEFINE_BOTH)

static void rows_rounded(const es_weight *w, int from, int to, const es_rounded *x, int T, float *y, bool accumulate)
{
    switch (w->type) {
        BLOCK_TYPES(CASE_ROUNDED)
    case ES_F32:
    case ES_F16:
    case ES_BF16: break; /* the caller rounds for blocks only */
    }
}

static void rows_panels(const es_weight *w, int from, int to, const void *tiles, int T, float *y, bool accumulate, void *scratch)
{
    switch (w->type) {
        BLOCK_TYPES(CASE_PANELS)
    case ES_F32:
    case ES_F16:
    case ES_BF16: break;
    }
}

#define INT_OPS                                                                                                                \
    .rows_rounded = rows_rounded, .round = round_row, .tile = TILE, .panel = W, .most_tokens = MOST_TOKENS,                    \
    .tile_bytes = tile_bytes, .panel_bytes = panel_bytes, .round_tile = round_tile, .rows_panels = rows_panels
