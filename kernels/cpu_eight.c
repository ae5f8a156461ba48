/* A third CPU table, to read much text: products of quantised weights take activations rounded to 8 bits, with a scale for 32 of them (as
 * llama.cpp does), and are sums of four bytes' products at a time: vpdpbusd, twice the rate of bfloat16 (AVX-512 VNNI). What it cannot do
 * so, types whose integers need more than 8 bits and plain ones, few tokens, gradients, is es_kernels_half()'s.
 *
 * 16 rows of weights become a panel that stays in cache, and tokens meet it twelve at a time. vpdpbusd takes unsigned by signed bytes:
 * activations are q + 128, and the sums start at -128 times the sum of a row's weights. */
#include "internal.h"

#ifdef __x86_64__

#include <immintrin.h>
#include <pthread.h>
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")
#endif

#include "unpack_x86.h"

enum { ROWS = 16, TILE = 12, RANGE = 127, FEWEST = 32 }; /* of a panel; tokens that meet it at once; steps either side of 0; tokens that pay */

typedef struct panel_block {
    int8_t q[Q_BLOCK / 4][ROWS][4];
    int32_t start[ROWS];
    float d[ROWS];
} panel_block;

/* The blocks of a panel, then pairs of m (bfloat16) of two blocks of each row; the same for a token: q + 128 of all its elements, the
 * scale of each block, pairs of scale * sum(q). m is made small, by integers about 0, so that bfloat16 does for it. */
static size_t panel_bytes(int K)
{
    const size_t blocks = (size_t)K / Q_BLOCK;
    return blocks * sizeof(panel_block) + (blocks + 1) / 2 * ROWS * sizeof(uint32_t);
}

static size_t token_bytes(int K)
{
    const size_t blocks = (size_t)K / Q_BLOCK, bytes = (size_t)K + blocks * sizeof(float) + (blocks + 1) / 2 * sizeof(uint32_t);
    return (bytes + 63) / 64 * 64;
}

/* What is taken from the integers of a type to have them about 0; negative: they are not of 8 bits. */
INLINE int centre_of(const es_type type)
{
    switch (type) {
    case ES_Q4_0:
    case ES_Q5_0:
    case ES_Q8_0:
    case ES_IQ4_NL: return 0;
    case ES_Q4_1:
    case ES_Q4_K: return 8;
    case ES_Q5_1:
    case ES_Q5_K: return 16;
    default: return -1;
    }
}

/* ---- rounding -------------------------------------------------------------------------------------------------------------------------- */

/* Two bfloat16 of each float pair. n even. */
static void put_pairs(const float *x, size_t n, uint32_t *out)
{
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 have = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : 0xFFFF;
        _mm256_mask_storeu_epi16(out + i / 2, have, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(have, x + i)));
    }
}

/* x[K] to `out`. A block that holds a NaN or an infinity gets a NaN scale, so that it does not vanish. */
static void round_token(const float *x, int K, uint8_t *out)
{
    const int blocks = K / Q_BLOCK;
    float *scale = (float *)(void *)(out + K);
    uint32_t *pairs = (uint32_t *)(void *)(scale + blocks);
    float sums[16]; /* of a few blocks at a time */
    for (int b = 0; b < blocks; b++, x += Q_BLOCK, out += Q_BLOCK) {
        const __m512 lo = _mm512_loadu_ps(x), hi = _mm512_loadu_ps(x + 16);
        const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(lo), _mm512_abs_ps(hi)));
        const __mmask16 odd = _mm512_fpclass_ps_mask(lo, 0x99) | _mm512_fpclass_ps_mask(hi, 0x99); /* NaNs and infinities */
        const __m512 by = _mm512_set1_ps(most > 1e-35f && !odd ? RANGE / most : 0);
        const __m512i q0 = _mm512_cvtps_epi32(_mm512_mul_ps(lo, by)), q1 = _mm512_cvtps_epi32(_mm512_mul_ps(hi, by)), middle = _mm512_set1_epi32(128);
        _mm_storeu_si128((__m128i *)(void *)out, _mm512_cvtepi32_epi8(_mm512_add_epi32(q0, middle)));
        _mm_storeu_si128((__m128i *)(void *)(out + 16), _mm512_cvtepi32_epi8(_mm512_add_epi32(q1, middle)));
        scale[b] = odd ? __builtin_nanf("") : most / RANGE;
        sums[b % 16] = scale[b] * (float)_mm512_reduce_add_epi32(_mm512_add_epi32(q0, q1));
        if (b == blocks - 1 && b % 2 == 0)
            sums[b % 16 + 1] = 0;
        if (b % 16 == 15 || b == blocks - 1)
            put_pairs(sums, (size_t)(b % 16 / 2 + 1) * 2, pairs + b / 16 * 8);
    }
}

/* Rows n .. n + have of w as a panel; rows that it lacks are zeros. */
INLINE void make_panel(const es_type type, const es_weight *w, int n, int have, void *out)
{
    const int blocks = w->n_in / Q_BLOCK, centre = centre_of(type);
    const size_t bytes = es_row_bytes(type, w->n_in);
    panel_block *to = out;
    float *m = (float *)(void *)(to + blocks); /* the place of the pairs that it becomes */
    for (int b = 0; b < blocks; b++, to++) {
        float second[ROWS];
        for (int r = 0; r < ROWS; r++) {
            __m256i lo = _mm256_setzero_si256(), hi = lo;
            __m128 dm = _mm_setzero_ps();
            if (r < have)
                unpack(type, (const uint8_t *)w->data + (size_t)(n + r) * bytes, b, &lo, &hi, &dm);
            const __m256i zero = _mm256_set1_epi16(r < have ? (int16_t)centre : 0);
            const __m256i q = _mm256_permute4x64_epi64(_mm256_packs_epi16(_mm256_sub_epi16(lo, zero), _mm256_sub_epi16(hi, zero)), 0xd8);
            int32_t four[Q_BLOCK / 4];
            _mm256_storeu_si256((__m256i *)(void *)four, q);
            for (int g = 0; g < Q_BLOCK / 4; g++)
                memcpy(to->q[g][r], &four[g], 4);
            to->d[r] = _mm_cvtss_f32(dm);
            second[r] = has_offset(type) ? _mm_cvtss_f32(_mm_movehdup_ps(dm)) + (float)centre * to->d[r] : 0;
        }
        __m512i sum = _mm512_setzero_si512();
        for (int g = 0; g < Q_BLOCK / 4; g++)
            sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8((char)128), _mm512_loadu_si512(to->q[g]));
        _mm512_storeu_si512(to->start, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
        if (has_offset(type)) {
            uint32_t *pairs = (uint32_t *)(void *)m + (size_t)(b / 2) * ROWS;
            const __m512i half = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(second)));
            _mm512_storeu_si512(pairs, b % 2 ? _mm512_or_si512(_mm512_loadu_si512(pairs), _mm512_slli_epi32(half, 16)) : half);
        }
    }
}

static void make(const es_weight *w, int n, int have, void *out)
{
    switch (w->type) {
    case ES_Q4_0: make_panel(ES_Q4_0, w, n, have, out); break;
    case ES_Q4_1: make_panel(ES_Q4_1, w, n, have, out); break;
    case ES_Q5_0: make_panel(ES_Q5_0, w, n, have, out); break;
    case ES_Q5_1: make_panel(ES_Q5_1, w, n, have, out); break;
    case ES_Q8_0: make_panel(ES_Q8_0, w, n, have, out); break;
    case ES_Q4_K: make_panel(ES_Q4_K, w, n, have, out); break;
    case ES_Q5_K: make_panel(ES_Q5_K, w, n, have, out); break;
    default: make_panel(ES_IQ4_NL, w, n, have, out);
    }
}

/* ---- products ----------------------------------------------------------------------------------------------------------------------------- */

/* y[t * N + 0 .. 16) (+)= a panel times T tokens, where `rows` says so. T is a constant where this is inlined. */
INLINE void panel_times(const int T, const bool offset, const panel_block *w, int blocks, const uint8_t *x, size_t stride, float *y, size_t N, bool add, __mmask16 rows)
{
    const int K = blocks * Q_BLOCK;
    __m512 sum[TILE];
    for (int t = 0; t < T; t++)
        sum[t] = add ? _mm512_maskz_loadu_ps(rows, y + (size_t)t * N) : _mm512_setzero_ps();
    for (int b = 0; b < blocks; b++, w++) {
        const __m512i start = _mm512_load_si512(w->start);
        const __m512 d = _mm512_load_ps(w->d);
        const uint8_t *at = x + (size_t)b * Q_BLOCK, *scale = x + (size_t)K + (size_t)b * sizeof(float);
        __m512i s[TILE];
        for (int t = 0; t < T; t++)
            s[t] = start;
#pragma GCC unroll 8
        for (int g = 0; g < Q_BLOCK / 4; g++) {
            const __m512i q = _mm512_load_si512(w->q[g]);
            for (int t = 0; t < T; t++)
                s[t] = _mm512_dpbusd_epi32(s[t], _mm512_set1_epi32(*(const int32_t *)(const void *)(at + (size_t)t * stride + 4 * g)), q);
        }
        for (int t = 0; t < T; t++) {
            const __m512 by = _mm512_mul_ps(d, _mm512_set1_ps(*(const float *)(const void *)(scale + (size_t)t * stride)));
            sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[t]), by, sum[t]);
        }
    }
    if (offset) {
        const uint32_t *m = (const uint32_t *)(const void *)w;
        const uint8_t *pairs = x + (size_t)K + (size_t)blocks * sizeof(float);
        for (int p = 0; p < (blocks + 1) / 2; p++, m += ROWS) {
            const __m512bh two = (__m512bh)_mm512_load_si512(m);
            for (int t = 0; t < T; t++)
                sum[t] = _mm512_dpbf16_ps(sum[t], (__m512bh)_mm512_set1_epi32(((const int32_t *)(const void *)(pairs + (size_t)t * stride))[p]), two);
        }
    }
    for (int t = 0; t < T; t++)
        _mm512_mask_storeu_ps(y + (size_t)t * N, rows, sum[t]);
}

typedef struct products {
    es_pool *pool;
    const es_weight *const *w;
    float *const *y;
    const float *x;
    int n, K, first, T; /* weights; their inputs; the tokens at hand */
    size_t panel, token;
    bool accumulate;
} products;

static uint8_t *tokens_of(const products *j, int part)
{
    return (uint8_t *)es_pool_scratch(j->pool, part) + j->panel;
}

/* Each part rounds its share of the tokens into its own scratch; in the next job all read what all have. */
static void round_part(void *user, int part, int parts)
{
    const products *j = user;
    int from, to;
    es_share(j->T, TILE, part, parts, &from, &to);
    for (int t = from; t < to; t++)
        round_token(j->x + (size_t)(j->first + t) * (size_t)j->K, j->K, tokens_of(j, part) + (size_t)(t - from) * j->token);
}

static void panel_product(const products *j, int parts, const es_weight *w, float *y, int n, const void *panel)
{
    const int blocks = j->K / Q_BLOCK;
    const size_t N = (size_t)w->n_out;
    const bool offset = has_offset(w->type);
    const __mmask16 rows = w->n_out - n < ROWS ? (__mmask16)((1u << (w->n_out - n)) - 1) : 0xFFFF;
    for (int part = 0, from, to; part < parts; part++) {
        es_share(j->T, TILE, part, parts, &from, &to);
        const uint8_t *x = tokens_of(j, part);
        float *out = y + (size_t)(j->first + from) * N + n;
        for (; from + TILE <= to; from += TILE, x += TILE * j->token, out += TILE * N) {
            if (offset)
                panel_times(TILE, true, panel, blocks, x, j->token, out, N, j->accumulate, rows);
            else
                panel_times(TILE, false, panel, blocks, x, j->token, out, N, j->accumulate, rows);
        }
        for (; from < to; from++, x += j->token, out += N)
            panel_times(1, offset, panel, blocks, x, j->token, out, N, j->accumulate, rows);
    }
}

static void product_part(void *user, int part, int parts)
{
    const products *j = user;
    void *panel = es_pool_scratch(j->pool, part);
    int panels = 0, from, to;
    for (int i = 0; i < j->n; i++)
        panels += (j->w[i]->n_out + ROWS - 1) / ROWS;
    es_share(panels, 1, part, parts, &from, &to);
    for (int i = 0, at = 0; i < j->n; i++) {
        const es_weight *w = j->w[i];
        for (int n = 0; n < w->n_out; n += ROWS, at++)
            if (at >= from && at < to) {
                make(w, n, w->n_out - n < ROWS ? w->n_out - n : ROWS, panel);
                panel_product(j, parts, w, j->y[i], n, panel);
            }
    }
}

/* false: not in 8 bits. */
static bool in_eight_bits(es_pool *p, const es_weight *const *w, int n, const float *x, int T, float *const *y, bool accumulate)
{
    if (n == 0 || T < FEWEST)
        return false;
    products j = {p, w, y, x, n, w[0]->n_in, 0, 0, (panel_bytes(w[0]->n_in) + 63) / 64 * 64, token_bytes(w[0]->n_in), accumulate};
    for (int i = 0; i < n; i++)
        if (centre_of(w[i]->type) < 0 || w[i]->n_in != j.K)
            return false;
    const int parts = es_pool_threads(p), room = j.panel < ES_SCRATCH ? (int)((ES_SCRATCH - j.panel) / j.token) / TILE * TILE : 0;
    if (room == 0)
        return false;
    for (; j.first < T; j.first += j.T) {
        j.T = (T - j.first + parts - 1) / parts < room ? T - j.first : room * parts;
        es_pool_run(p, round_part, &j);
        es_pool_run(p, product_part, &j);
    }
    return true;
}

static void matmul(es_pool *p, const es_weight *w, const float *x, int T, float *y, bool accumulate, bool exact)
{
    if (!in_eight_bits(p, &w, 1, x, T, &y, accumulate))
        es_kernels_half()->matmul(p, w, x, T, y, accumulate, exact);
}

static void matmuls(es_pool *p, const es_weight *const *w, int n, const float *x, int T, float *const *y, bool exact)
{
    if (!in_eight_bits(p, w, n, x, T, y, false))
        es_kernels_half()->matmuls(p, w, n, x, T, y, exact);
}

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static es_kernels table;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void open_table(void)
{
    table = *es_kernels_half();
    table.name = "cpu-int8";
    table.matmul = matmul;
    table.matmuls = matmuls;
}

const es_kernels *es_kernels_eight(void)
{
    if (es_kernels_half() == es_kernels_cpu() || !__builtin_cpu_supports("avx512vnni") || !__builtin_cpu_supports("f16c"))
        return es_kernels_half();
    pthread_once(&once, open_table);
    return &table;
}

#else

const es_kernels *es_kernels_eight(void)
{
    return es_kernels_half();
}

#endif
