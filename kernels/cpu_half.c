/* A second CPU table for learning steps: products with model weights and low-rank updates take both sides rounded to bfloat16 and add up in f32, at twice the
 * rate of f32 (AVX-512 BF16; Zen 4, Cooper Lake and later). All else, and what has few tokens, is the CPU table's own.
 *
 * vdpbf16ps adds to each of 16 lanes the product of two pairs, so pairs run along the summed dimension: activations lie as they are,
 * [rows][pairs], and weights are packed as [pairs][32 columns], a panel that stays in cache while all rows pass. */
#include "internal.h"
#include "screen.h"

#ifdef __x86_64__

#include <immintrin.h>
#include <pthread.h>
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif

enum { COLUMNS = 32, PANEL = 256, ROWS = 1024, FEWEST = 32, SCREEN_ROWS = 1020 }; /* of a panel; summed at once in matmul_back; activations at once; tokens that pay; a whole number of tiles */

/* n floats (n even) times `by` as n/2 pairs. */
static void round_row(const float *x, int n, float by, uint32_t *out)
{
    const __m512 factor = _mm512_set1_ps(by);
    int i = 0;
    for (; i + 16 <= n; i += 16)
        _mm256_storeu_si256((__m256i *)(void *)(out + i / 2), (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(factor, _mm512_loadu_ps(x + i))));
    if (i < n) {
        const __mmask16 rest = (__mmask16)((1u << (n - i)) - 1);
        _mm256_mask_storeu_epi16(out + i / 2, rest, (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(factor, _mm512_maskz_loadu_ps(rest, x + i))));
    }
}

/* c[m, 0:32] (+)= a[m, pairs] b[pairs, 32]; the columns in `mask` are written. m is a constant where this is inlined. */
static inline __attribute__((always_inline)) void tile(int m, int pairs, const uint32_t *a, int lda, const uint32_t *b, float *c, int ldc, bool add,
                                                       __mmask16 low, __mmask16 high)
{
    __m512 s[12][2];
    for (int i = 0; i < m; i++) {
        s[i][0] = add ? _mm512_maskz_loadu_ps(low, c + (size_t)i * (size_t)ldc) : _mm512_setzero_ps();
        s[i][1] = add ? _mm512_maskz_loadu_ps(high, c + (size_t)i * (size_t)ldc + 16) : _mm512_setzero_ps();
    }
    for (int p = 0; p < pairs; p++, b += COLUMNS) {
        const __m512bh w0 = (__m512bh)_mm512_load_si512(b), w1 = (__m512bh)_mm512_load_si512(b + 16);
        for (int i = 0; i < m; i++) {
            const __m512bh x = (__m512bh)_mm512_set1_epi32((int)a[(size_t)i * (size_t)lda + (size_t)p]);
            s[i][0] = _mm512_dpbf16_ps(s[i][0], x, w0);
            s[i][1] = _mm512_dpbf16_ps(s[i][1], x, w1);
        }
    }
    for (int i = 0; i < m; i++) {
        _mm512_mask_storeu_ps(c + (size_t)i * (size_t)ldc, low, s[i][0]);
        _mm512_mask_storeu_ps(c + (size_t)i * (size_t)ldc + 16, high, s[i][1]);
    }
}

static void panel_product(int T, int pairs, int columns, const uint32_t *a, const uint32_t *b, float *c, int ldc, bool add)
{
    const uint32_t mask = columns >= COLUMNS ? 0xFFFFFFFFu : (1u << columns) - 1;
    const __mmask16 low = (__mmask16)mask, high = (__mmask16)(mask >> 16);
    int t = 0;
    for (; t + 12 <= T; t += 12)
        tile(12, pairs, a + (size_t)t * (size_t)pairs, pairs, b, c + (size_t)t * (size_t)ldc, ldc, add, low, high);
    for (; t + 4 <= T; t += 4)
        tile(4, pairs, a + (size_t)t * (size_t)pairs, pairs, b, c + (size_t)t * (size_t)ldc, ldc, add, low, high);
    for (; t < T; t++)
        tile(1, pairs, a + (size_t)t * (size_t)pairs, pairs, b, c + (size_t)t * (size_t)ldc, ldc, add, low, high);
}

typedef struct half_product {
    es_pool *pool;
    const es_weight *w;
    const float *in;
    float *out;
    int T, rows; /* tokens in all; activations rounded at a time */
    bool accumulate;
    float by;    /* the activations' factor */
} half_product;

/* Scratch of a part: packed weights, 16 rows of them as floats, then the rounded activations. */
static size_t forward_fixed(int K)
{
    return (size_t)K * COLUMNS * 2 + (size_t)K * 16 * sizeof(float);
}

/* Dword i of row r becomes dword r of row i. */
static inline __attribute__((always_inline)) void transpose(__m512i r[16])
{
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) /* b[i + c]: column c of each lane, of rows i .. i + 3 */
        for (int h = 0; h < 2; h++) {
            b[i + 2 * h] = _mm512_unpacklo_epi64(a[i + h], a[i + 2 + h]);
            b[i + 2 * h + 1] = _mm512_unpackhi_epi64(a[i + h], a[i + 2 + h]);
        }
    for (int c = 0; c < 4; c++) {
        const __m512i even = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x88), odd = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xdd); /* lanes 0 and 2; 1 and 3 */
        const __m512i even2 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x88), odd2 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xdd);
        r[c] = _mm512_shuffle_i32x4(even, even2, 0x88);
        r[8 + c] = _mm512_shuffle_i32x4(even, even2, 0xdd);
        r[4 + c] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
        r[12 + c] = _mm512_shuffle_i32x4(odd, odd2, 0xdd);
    }
}

/* Rows [n, n + columns) of W as a panel's columns, through `wide`, 16 rows of floats. */
static void pack_columns(const es_weight *w, int n, int columns, uint32_t *b, float *wide)
{
    const int K = w->n_in, pairs = K / 2;
    const size_t row = es_row_bytes(w->type, K);
    for (int n16 = 0; n16 < COLUMNS; n16 += 16) { /* sixteen rows of W become columns */
        const int have = columns - n16 < 0 ? 0 : columns - n16 < 16 ? columns - n16 : 16;
        if (have)
            es_cpu_simd->dequant(w->type, (const char *)w->data + (size_t)(n + n16) * row, wide, (size_t)have * (size_t)K);
        memset(wide + (size_t)have * (size_t)K, 0, (size_t)(16 - have) * (size_t)K * sizeof *wide);
        uint32_t *narrow = (uint32_t *)(void *)wide; /* in place: pair p of a row lies at or before its floats */
        for (int i = 0; i < 16; i++)
            round_row(wide + (size_t)i * (size_t)K, K, 1, narrow + (size_t)i * (size_t)pairs);
        int p = 0;
        for (; p + 16 <= pairs; p += 16) {
            __m512i some[16];
            for (int i = 0; i < 16; i++)
                some[i] = _mm512_loadu_si512(narrow + (size_t)i * (size_t)pairs + (size_t)p);
            transpose(some);
            for (int i = 0; i < 16; i++)
                _mm512_store_si512(b + (size_t)(p + i) * COLUMNS + (size_t)n16, some[i]);
        }
        for (; p < pairs; p++)
            for (int i = 0; i < 16; i++)
                b[(size_t)p * COLUMNS + (size_t)(n16 + i)] = narrow[(size_t)i * (size_t)pairs + (size_t)p];
    }
}

static void forward_part(void *user, int part, int parts)
{
    const half_product *j = user;
    const int N = j->w->n_out, K = j->w->n_in, pairs = K / 2;
    uint32_t *b = es_pool_scratch(j->pool, part), *a = (uint32_t *)(void *)((char *)b + forward_fixed(K));
    float *wide = (float *)(void *)(b + (size_t)pairs * COLUMNS);
    int from, to;
    es_share(N, COLUMNS, part, parts, &from, &to);
    for (int first = 0; first < j->T && from < to; first += j->rows) {
        const int T = j->T - first < j->rows ? j->T - first : j->rows;
        for (int t = 0; t < T; t++)
            round_row(j->in + (size_t)(first + t) * (size_t)K, K, j->by, a + (size_t)t * (size_t)pairs);
        for (int n = from; n < to; n += COLUMNS) {
            const int columns = to - n < COLUMNS ? to - n : COLUMNS;
            pack_columns(j->w, n, columns, b, wide);
            panel_product(T, pairs, columns, a, b, j->out + (size_t)first * (size_t)N + n, N, j->accumulate);
        }
    }
}

/* false: the CPU table's way. */
static bool forward(es_pool *p, const es_weight *w, const float *x, int T, float by, float *y, bool accumulate)
{
    const size_t fixed = forward_fixed(w->n_in), row = (size_t)w->n_in * 2;
    int rows = fixed < ES_SCRATCH ? (int)((ES_SCRATCH - fixed) / row) : 0;
    rows = rows > ROWS ? ROWS : rows;
    if (T < FEWEST || w->n_in % 2 || rows < FEWEST)
        return false;
    half_product j = {p, w, x, y, T, rows, accumulate, by};
    es_pool_run(p, forward_part, &j);
    return true;
}

static void matmul(es_pool *p, const es_weight *w, const float *x, int T, float *y, bool accumulate, bool exact)
{
    if (!forward(p, w, x, T, 1, y, accumulate))
        es_kernels_cpu()->matmul(p, w, x, T, y, accumulate, exact);
}

static void matmuls(es_pool *p, const es_weight *const *w, int n, const float *x, int T, float *const *y, bool exact)
{
    for (int i = 0; i < n; i++)
        matmul(p, w[i], x, T, y[i], false, exact);
}

/* ---- screening (screen.h) ---------------------------------------------------------------------------------------------------------- */

typedef struct screening {
    es_pool *pool;
    es_weight w;
    const float *x, *limit;
    es_hits *hits;
    int T, rows;
} screening;

/* tile() without the store: of a product of m rows what is above the columns' limits. m is a constant where this is inlined. */
static inline __attribute__((always_inline)) void screen_tile(int m, int pairs, const uint32_t *a, const uint32_t *b, __m512 low, __m512 high, int row, int column,
                                                              es_hits *to)
{
    __m512 s[12][2];
    for (int i = 0; i < m; i++)
        s[i][0] = s[i][1] = _mm512_setzero_ps();
    for (int p = 0; p < pairs; p++, b += COLUMNS) {
        const __m512bh w0 = (__m512bh)_mm512_load_si512(b), w1 = (__m512bh)_mm512_load_si512(b + 16);
        for (int i = 0; i < m; i++) {
            const __m512bh x = (__m512bh)_mm512_set1_epi32((int)a[(size_t)i * (size_t)pairs + (size_t)p]);
            s[i][0] = _mm512_dpbf16_ps(s[i][0], x, w0);
            s[i][1] = _mm512_dpbf16_ps(s[i][1], x, w1);
        }
    }
    for (int i = 0; i < m; i++) {
        uint32_t above = _mm512_cmp_ps_mask(s[i][0], low, _CMP_GT_OQ) | (uint32_t)_mm512_cmp_ps_mask(s[i][1], high, _CMP_GT_OQ) << 16;
        if (!above)
            continue;
        float value[COLUMNS];
        _mm512_storeu_ps(value, s[i][0]);
        _mm512_storeu_ps(value + 16, s[i][1]);
        for (; above; above &= above - 1) {
            const int c = __builtin_ctz(above);
            es_hits_add(to, row + i, column + c, value[c]);
        }
    }
}

static void screen_part(void *user, int part, int parts)
{
    const screening *j = user;
    const int N = j->w.n_out, K = j->w.n_in, pairs = K / 2;
    uint32_t *b = es_pool_scratch(j->pool, part), *a = (uint32_t *)(void *)((char *)b + forward_fixed(K));
    float *wide = (float *)(void *)(b + (size_t)pairs * COLUMNS), limit[COLUMNS];
    int from, to;
    es_share(N, COLUMNS, part, parts, &from, &to);
    for (int first = 0; first < j->T && from < to; first += j->rows) {
        const int T = j->T - first < j->rows ? j->T - first : j->rows;
        for (int t = 0; t < T; t++)
            round_row(j->x + (size_t)(first + t) * (size_t)K, K, 1, a + (size_t)t * (size_t)pairs);
        for (int n = from; n < to; n += COLUMNS) {
            const int columns = to - n < COLUMNS ? to - n : COLUMNS;
            for (int c = 0; c < COLUMNS; c++)
                limit[c] = c < columns ? j->limit[n + c] : __builtin_inff();
            const __m512 low = _mm512_loadu_ps(limit), high = _mm512_loadu_ps(limit + 16);
            pack_columns(&j->w, n, columns, b, wide);
            int t = 0;
            for (; t + 12 <= T; t += 12)
                screen_tile(12, pairs, a + (size_t)t * (size_t)pairs, b, low, high, first + t, n, &j->hits[part]);
            for (; t < T; t++)
                screen_tile(1, pairs, a + (size_t)t * (size_t)pairs, b, low, high, first + t, n, &j->hits[part]);
        }
    }
}

static bool screen_half(es_pool *p, const float *w, int N, int K, const float *x, int T, const float *limit, es_hits *hits)
{
    const size_t fixed = forward_fixed(K), row = (size_t)K * 2;
    int rows = fixed < ES_SCRATCH ? (int)((ES_SCRATCH - fixed) / row) : 0;
    rows = rows > SCREEN_ROWS ? SCREEN_ROWS : rows;
    if (K % 2 || rows < FEWEST)
        return false;
    screening j = {p, {ES_F32, N, K, w}, x, limit, hits, T, rows};
    es_pool_run(p, screen_part, &j);
    return true;
}

/* ---- through weights backwards --------------------------------------------------------------------------------------------------------- */

/* Two rows of `columns` floats (multiples of 32) as columns/32 panels' next row of pairs. */
static void pack_pair(const float *r0, const float *r1, int columns, uint32_t *b, size_t panel)
{
    static const int16_t order[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i in_pairs = _mm512_loadu_si512(order);
    for (int c = 0; c < columns; c += 16) {
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(r1 + c), _mm512_loadu_ps(r0 + c)); /* r0's come first */
        _mm512_store_si512(b + (size_t)(c / COLUMNS) * panel + (size_t)(c % COLUMNS), _mm512_permutexvar_epi16(in_pairs, both));
    }
}

static size_t back_fixed(int width) /* packed weights, two rows as floats */
{
    return (size_t)width * PANEL * 2 + (size_t)width * 2 * sizeof(float);
}

static void back_part(void *user, int part, int parts)
{
    const half_product *j = user;
    const int N = j->w->n_out, K = j->w->n_in, block = es_type_get((int)j->w->type)->block;
    const size_t row = es_row_bytes(j->w->type, K), panel = (size_t)PANEL / 2 * COLUMNS;
    int from, to;
    es_share(K, block > COLUMNS ? block : COLUMNS, part, parts, &from, &to);
    if (from == to)
        return;
    const int width = to - from;
    uint32_t *b = es_pool_scratch(j->pool, part), *a = (uint32_t *)(void *)((char *)b + back_fixed(width));
    float *wide = (float *)(void *)((char *)b + (size_t)width * PANEL * 2);
    for (int n = 0; n < N; n += PANEL) {
        const int rows = N - n < PANEL ? N - n : PANEL, pairs = rows / 2;
        for (int r = 0; r < rows; r += 2) {
            for (int i = 0; i < 2; i++)
                es_cpu_simd->dequant(j->w->type, (const char *)j->w->data + (size_t)(n + r + i) * row + es_row_bytes(j->w->type, from),
                                     wide + (size_t)i * (size_t)width, (size_t)width);
            pack_pair(wide, wide + width, width, b + (size_t)r / 2 * COLUMNS, panel);
        }
        for (int first = 0; first < j->T; first += j->rows) {
            const int T = j->T - first < j->rows ? j->T - first : j->rows;
            for (int t = 0; t < T; t++)
                round_row(j->in + (size_t)(first + t) * (size_t)N + n, rows, j->by, a + (size_t)t * (size_t)pairs);
            for (int c = 0; c < width; c += COLUMNS)
                panel_product(T, pairs, COLUMNS, a, b + (size_t)(c / COLUMNS) * panel, j->out + (size_t)first * (size_t)K + from + c, K, j->accumulate || n > 0);
        }
    }
}

static bool backward(es_pool *p, const es_weight *w, const float *dy, int T, float by, float *dx, bool accumulate)
{
    const int parts = es_pool_threads(p), block = es_type_get((int)w->type)->block, unit = block > COLUMNS ? block : COLUMNS;
    const size_t most = ((size_t)w->n_in / (size_t)unit / (size_t)parts + 1) * (size_t)unit; /* columns of a part */
    const size_t fixed = back_fixed((int)most);
    int rows = fixed < ES_SCRATCH ? (int)((ES_SCRATCH - fixed) / ((size_t)PANEL * 2)) : 0;
    rows = rows > ROWS ? ROWS : rows;
    if (T < FEWEST || w->n_in % COLUMNS || w->n_out % 2 || rows < FEWEST)
        return false;
    half_product j = {p, w, dy, dx, T, rows, accumulate, by};
    es_pool_run(p, back_part, &j);
    return true;
}

static void matmul_back(es_pool *p, const es_weight *w, const float *dy, int T, float *dx, bool accumulate)
{
    if (!backward(p, w, dy, T, 1, dx, accumulate))
        es_kernels_cpu()->matmul_back(p, w, dy, T, dx, accumulate);
}

/* Products of many rows with a plain matrix, as of low-rank updates, are those of a weight: A B^T its forward, A B its backward one. */
static void gemm(es_pool *p, bool ta, bool tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc)
{
    const es_weight w = {ES_F32, tb ? n : k, tb ? k : n, b};
    const bool as_weight = !ta && lda == k && ldb == w.n_in && ldc == n && n >= COLUMNS && k >= COLUMNS && (beta == 0 || beta == 1);
    if (!as_weight || !(tb ? forward : backward)(p, &w, a, m, alpha, c, beta == 1))
        es_kernels_cpu()->gemm(p, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
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
    table = *es_kernels_cpu();
    table.name = "cpu-bf16";
    table.matmul = matmul;
    table.matmuls = matmuls;
    table.matmul_back = matmul_back;
    table.gemm = gemm;
}

static bool supported(void)
{
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool es_screen(es_pool *p, const float *w, int N, int K, const float *x, int T, const float *limit, es_hits *hits)
{
    return es_kernels_half() != es_kernels_cpu() && screen_half(p, w, N, K, x, T, limit, hits); /* asking opens the tables */
}

const es_kernels *es_kernels_half(void)
{
    if (!supported())
        return es_kernels_cpu();
    pthread_once(&once, open_table);
    return &table;
}

#else

bool es_screen(es_pool *p, const float *w, int N, int K, const float *x, int T, const float *limit, es_hits *hits)
{
    (void)p, (void)w, (void)N, (void)K, (void)x, (void)T, (void)limit, (void)hits;
    return false;
}

const es_kernels *es_kernels_half(void)
{
    return es_kernels_cpu();
}

#endif
