/* The CPU table: how each op is shared out among the parts of a pool. What a part then does on its rows is OpenBLAS, on one
 * thread, or the instruction set's own code (es_simd). Results do not depend on which thread did what. */
#include <cblas.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

/* ---- products ------------------------------------------------------------------------------------------------------------- */

/* Exact: up to this many tokens rows of W are dotted with x as they are unpacked; more go through panels of floats and BLAS. */
enum { SMALL_EXACT = 16 };
enum { MAX_PANEL = 256, ROWS_AT_ONCE = 16 /* at least; a multiple of every es_simd.panel */ };
/* Rounded: from so many tokens on rows become panels of integers (types of blocks of 256 take longer to make into panels). Measured on
 * Zen 4 in prompts of 512 tokens beside products on bfloat16 (cpu_half.c), which had 1.06 times the rate and a larger difference from the
 * exact, and beside panels of floats and BLAS, which had 0.6 times. */
enum { PANELS = 4, PANELS_K = 10, SELF_ROUNDED = 8 };

typedef struct product {
    es_pool *pool;
    const es_weight *const *w;
    float *const *out;
    int n; /* weights */
    const float *in;
    int T, rows; /* rows: of all weights, each rounded up to ROWS_AT_ONCE */
    bool accumulate, rounded;
    const void *tiles; /* NULL: each part rounds for itself, which is cheaper than waiting when tokens are few */
    _Alignas(64) _Atomic int next; /* the next row that nobody has taken, or the next tile; what is only read lies on other lines */
} product;

static int padded_rows(const es_weight *w)
{
    return (w->n_out + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE * ROWS_AT_ONCE;
}

/* Takes rows [*from, *to) of weight *i until none is left: a thread that is held up does not hold up the others. A part of what is
 * left is taken at a time, so that a thread reads on in one place and yet all end together. */
static bool take_rows(product *j, int parts, int *i, int *from, int *to)
{
    int at = atomic_load_explicit(&j->next, memory_order_relaxed), take;
    do {
        if (at >= j->rows)
            return false;
        take = (j->rows - at) / (3 * parts) / ROWS_AT_ONCE * ROWS_AT_ONCE;
        take = take < ROWS_AT_ONCE ? ROWS_AT_ONCE : take;
        int start = 0; /* of the weight that row `at` belongs to */
        for (*i = 0; at >= start + padded_rows(j->w[*i]); ++*i)
            start += padded_rows(j->w[*i]);
        *from = at - start;
        take = take < padded_rows(j->w[*i]) - *from ? take : padded_rows(j->w[*i]) - *from;
        *to = *from + take < j->w[*i]->n_out ? *from + take : j->w[*i]->n_out;
    } while (!atomic_compare_exchange_weak(&j->next, &at, at + take));
    return true;
}

/* Few tokens. */

static size_t rounded_bytes(int T, int K)
{
    const size_t quads = ((size_t)K + 4 * ES_ROUND_BLOCK - 1) / (4 * ES_ROUND_BLOCK);
    return (size_t)T * quads * (128 * sizeof(int16_t) + 12 * sizeof(float));
}

static void matmul_small_part(void *user, int part, int parts)
{
    product *j = user;
    const int K = j->w[0]->n_in;
    const size_t quads = ((size_t)K + 4 * ES_ROUND_BLOCK - 1) / (4 * ES_ROUND_BLOCK);
    es_rounded r = {0};
    int i, from, to;
    bool any = take_rows(j, parts, &i, &from, &to);
    if (any && j->rounded) { /* each part rounds for itself: cheaper than waiting for another to have done it */
        int16_t *q = es_pool_scratch(j->pool, part);
        float *scales = (float *)(void *)(q + (size_t)j->T * quads * 128);
        for (int t = 0; t < j->T; t++)
            es_cpu_simd->round(j->in + (size_t)t * (size_t)K, K, q + (size_t)t * quads * 128, scales + (size_t)t * quads * 12);
        r = (es_rounded){q, scales};
    }
    for (; any; any = take_rows(j, parts, &i, &from, &to))
        if (j->rounded)
            es_cpu_simd->rows_rounded(j->w[i], from, to, &r, j->T, j->out[i], j->accumulate);
        else
            es_cpu_simd->rows(j->w[i], from, to, j->in, j->T, j->out[i], j->accumulate);
}

/* Many tokens, rounded. */

static void round_part(void *user, int part, int parts)
{
    (void)part, (void)parts;
    product *j = user;
    const int K = j->w[0]->n_in, tile = es_cpu_simd->tile;
    char *tiles = (char *)(uintptr_t)j->tiles;
    for (int t; (t = atomic_fetch_add(&j->next, 1) * tile) < j->T;)
        es_cpu_simd->round_tile(j->in + (size_t)t * (size_t)K, K, j->T - t < tile ? j->T - t : tile, tiles + (size_t)(t / tile) * es_cpu_simd->tile_bytes(K));
}

static size_t panel_room(int K)
{
    return (es_cpu_simd->panel_bytes(K) + 63) / 64 * 64;
}

static void panels_part(void *user, int part, int parts)
{
    product *j = user;
    const int K = j->w[0]->n_in, tile = es_cpu_simd->tile;
    char *panel = es_pool_scratch(j->pool, part);
    const void *tiles = j->tiles;
    int i, from, to;
    bool any = take_rows(j, parts, &i, &from, &to);
    if (any && !tiles) {
        char *own = panel + panel_room(K);
        for (int t = 0; t < j->T; t += tile)
            es_cpu_simd->round_tile(j->in + (size_t)t * (size_t)K, K, j->T - t < tile ? j->T - t : tile, own + (size_t)(t / tile) * es_cpu_simd->tile_bytes(K));
        tiles = own;
    }
    for (; any; any = take_rows(j, parts, &i, &from, &to))
        es_cpu_simd->rows_panels(j->w[i], from, to, tiles, j->T, j->out[i], j->accumulate, panel);
}

/* Tokens whose tiles fit into the scratch beside a panel. */
static int panel_tokens(int K)
{
    const size_t panel = panel_room(K), tile = es_cpu_simd->tile_bytes(K);
    return panel >= ES_SCRATCH ? 0 : (int)((ES_SCRATCH - panel) / tile) * es_cpu_simd->tile;
}

static void matmul_panels(product *j)
{
    const int K = j->w[0]->n_in, T = j->T, most = panel_tokens(K);
    const float *in = j->in;
    float *out[ES_MATMULS];
    for (int t = 0; t < T; t += j->T, in += (size_t)j->T * (size_t)K) {
        j->T = T - t < most ? T - t : most;
        j->in = in;
        product part = *j;
        for (int i = 0; i < j->n; i++)
            out[i] = j->out[i] + (size_t)t * (size_t)j->w[i]->n_out;
        part.out = out;
        if (part.T > SELF_ROUNDED) { /* the caller's scratch holds the tiles, behind its panel */
            part.tiles = (char *)es_pool_scratch(j->pool, 0) + panel_room(K);
            es_pool_run(j->pool, round_part, &part);
            part.next = 0;
        }
        es_pool_run(j->pool, panels_part, &part);
    }
}

/* Many tokens, exact: y[:, n0:n1] = x W[n0:n1, :]^T, a panel of floats at a time. */

/* Rows of width floats that a panel holds, 0 when not even one fits. */
static int panel_rows(int width)
{
    size_t rows = ES_SCRATCH / sizeof(float) / (size_t)width;
    return rows < MAX_PANEL ? (int)rows : MAX_PANEL;
}

static void matmul_part(void *user, int part, int parts)
{
    product *j = user;
    const es_weight *w = j->w[0];
    const int N = w->n_out, K = w->n_in;
    int panel = panel_rows(K), share = (N + parts - 1) / parts;
    if (panel > share) /* the last panels should end together */
        panel = (share + 15) / 16 * 16 < panel ? (share + 15) / 16 * 16 : panel;
    const size_t row = es_row_bytes(w->type, K);
    float *wd = es_pool_scratch(j->pool, part);
    for (int from, to; (from = atomic_fetch_add(&j->next, panel)) < N;) {
        to = N - from < panel ? N : from + panel;
        es_cpu_simd->dequant(w->type, (const char *)w->data + (size_t)from * row, wd, (size_t)(to - from) * (size_t)K);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, j->T, to - from, K, 1, j->in, K, wd, K, j->accumulate ? 1 : 0,
                    j->out[0] + from, N);
    }
}

static int panels_from(const es_weight *w)
{
    return es_type_get((int)w->type)->block > ES_ROUND_BLOCK ? PANELS_K : PANELS;
}

static bool rounds(const es_weight *w, int T)
{
    return es_cpu_simd->tile > 0 && es_type_get((int)w->type)->block > 1 && T <= es_cpu_simd->most_tokens &&
           (T < panels_from(w) ? rounded_bytes(T, w->n_in) <= ES_SCRATCH : panel_tokens(w->n_in) >= es_cpu_simd->tile);
}

static void run_product(product *j, bool exact)
{
    const es_weight *w = j->w[0];
    j->rounded = !exact;
    for (int i = 0; i < j->n; i++)
        j->rows += padded_rows(j->w[i]), j->rounded &= rounds(j->w[i], j->T);
    if (j->rounded && j->T >= panels_from(w))
        matmul_panels(j);
    else
        es_pool_run(j->pool, j->rounded || j->T <= SMALL_EXACT || panel_rows(w->n_in) == 0 ? matmul_small_part : matmul_part, j);
}

static void matmul(es_pool *p, const es_weight *w, const float *x, int T, float *y, bool accumulate, bool exact)
{
    if (T <= 0)
        return;
    product j = {.pool = p, .w = &w, .out = &y, .n = 1, .in = x, .T = T, .accumulate = accumulate};
    run_product(&j, exact);
}

static void matmuls(es_pool *p, const es_weight *const *w, int n, const float *x, int T, float *const *y, bool exact)
{
    bool one_run = !exact && n > 1 && T > 0;
    for (int i = 0; i < n; i++)
        one_run &= rounds(w[i], T) && panels_from(w[i]) == panels_from(w[0]);
    if (one_run) {
        product j = {.pool = p, .w = w, .out = y, .n = n, .in = x, .T = T};
        run_product(&j, false);
    } else {
        for (int i = 0; i < n; i++)
            matmul(p, w[i], x, T, y[i], false, exact);
    }
}

/* dx[:, k0:k1] = dy W[:, k0:k1]: parts own columns, so none adds into another's. */
static void matmul_back_part(void *user, int part, int parts)
{
    const product *j = user;
    const es_weight *w = j->w[0];
    const int N = w->n_out, K = w->n_in, block = es_type_get((int)w->type)->block;
    const size_t row = es_row_bytes(w->type, K);
    float *wd = es_pool_scratch(j->pool, part);
    int from, to;
    es_share(K, block > 32 ? block : 32, part, parts, &from, &to);
    if (from == to)
        return;
    const int width = to - from, panel = panel_rows(width);
    for (int n = 0, rows; n < N; n += rows) {
        rows = N - n < panel ? N - n : panel;
        for (int r = 0; r < rows; r++)
            es_cpu_simd->dequant(w->type, (const char *)w->data + (size_t)(n + r) * row + es_row_bytes(w->type, from),
                                 wd + (size_t)r * (size_t)width, (size_t)width);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, j->T, width, rows, 1, j->in + n, N, wd, width,
                    j->accumulate || n > 0 ? 1 : 0, j->out[0] + from, K);
    }
}

static void matmul_back(es_pool *p, const es_weight *w, const float *dy, int T, float *dx, bool accumulate)
{
    if (T <= 0)
        return;
    if (panel_rows(w->n_in) == 0) {
        es_kernels_scalar()->matmul_back(p, w, dy, T, dx, accumulate);
        return;
    }
    product j = {.pool = p, .w = &w, .out = &dx, .n = 1, .in = dy, .T = T, .accumulate = accumulate};
    es_pool_run(p, matmul_back_part, &j);
}

typedef struct plain_product {
    bool ta, tb;
    int m, n, k, lda, ldb, ldc;
    float alpha, beta;
    const float *a, *b;
    float *c;
} plain_product;

/* Parts share the longer side of C. */
static void gemm_part(void *user, int part, int parts)
{
    const plain_product *j = user;
    int from, to, m = j->m, n = j->n;
    const float *a = j->a, *b = j->b;
    float *c = j->c;
    if (m >= n) {
        es_share(m, 16, part, parts, &from, &to);
        a += j->ta ? (size_t)from : (size_t)from * (size_t)j->lda;
        c += (size_t)from * (size_t)j->ldc;
        m = to - from;
    } else {
        es_share(n, 16, part, parts, &from, &to);
        b += j->tb ? (size_t)from * (size_t)j->ldb : (size_t)from;
        c += from;
        n = to - from;
    }
    if (m > 0 && n > 0)
        cblas_sgemm(CblasRowMajor, j->ta ? CblasTrans : CblasNoTrans, j->tb ? CblasTrans : CblasNoTrans, m, n, j->k, j->alpha, a,
                    j->lda, b, j->ldb, j->beta, c, j->ldc);
}

static void gemm(es_pool *p, bool ta, bool tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb,
                 float beta, float *c, int ldc)
{
    plain_product j = {ta, tb, m, n, k, lda, ldb, ldc, alpha, beta, a, b, c};
    if (m <= 0 || n <= 0)
        return;
    if ((double)m * n * k < 65536)
        gemm_part(&j, 0, 1); /* not worth waking anyone */
    else
        es_pool_run(p, gemm_part, &j);
}

/* ---- rows: shared out when there is enough to do ------------------------------------------------------------------------- */

/* Below this many elements a job is done before another thread has heard of it. */
enum { ALONE = 8192 };

typedef struct rows_job {
    const float *a, *b, *c;
    float *y, *z;
    const int32_t *index;
    int T, d, heads;
    size_t n;
    float eps;
    bool neox, back;
    const float *cos_t, *sin_t;
} rows_job;

static void run_rows(es_pool *p, void (*fn)(void *, int, int), rows_job *j, size_t elements)
{
    if (elements < ALONE)
        fn(j, 0, 1);
    else
        es_pool_run(p, fn, j);
}

static void rmsnorm_part(void *user, int part, int parts)
{
    const rows_job *j = user;
    int from, to;
    es_share(j->T, 1, part, parts, &from, &to);
    const size_t at = (size_t)from * (size_t)j->d;
    es_cpu_simd->rmsnorm(j->a + at, j->b, j->y + at, to - from, j->d, j->eps);
}

static void rmsnorm(es_pool *p, const float *x, const float *w, float *y, int T, int d, float eps)
{
    rows_job j = {.a = x, .b = w, .y = y, .T = T, .d = d, .eps = eps};
    run_rows(p, rmsnorm_part, &j, (size_t)T * (size_t)d);
}

static void rmsnorm_back_part(void *user, int part, int parts)
{
    const rows_job *j = user;
    int from, to;
    es_share(j->T, 1, part, parts, &from, &to);
    const size_t at = (size_t)from * (size_t)j->d;
    es_cpu_simd->rmsnorm_back(j->a + at, j->b, j->c + at, j->y + at, to - from, j->d, j->eps);
}

static void rmsnorm_back(es_pool *p, const float *x, const float *w, const float *dy, float *dx, int T, int d, float eps)
{
    rows_job j = {.a = x, .b = w, .c = dy, .y = dx, .T = T, .d = d, .eps = eps};
    run_rows(p, rmsnorm_back_part, &j, (size_t)T * (size_t)d);
}

static void rope_part(void *user, int part, int parts)
{
    const rows_job *j = user;
    int from, to;
    es_share(j->T, 1, part, parts, &from, &to);
    es_cpu_simd->rope(j->y + (size_t)from * (size_t)j->heads * (size_t)j->d, j->index + from, j->cos_t, j->sin_t, to - from, j->heads,
                      j->d, j->neox, j->back);
}

static void rope(es_pool *p, float *x, const int *pos, const float *cos_t, const float *sin_t, int T, int n_head, int head_dim,
                 bool neox, bool back)
{
    rows_job j = {.y = x, .index = pos, .cos_t = cos_t, .sin_t = sin_t, .T = T, .heads = n_head, .d = head_dim, .neox = neox, .back = back};
    run_rows(p, rope_part, &j, (size_t)T * (size_t)n_head * (size_t)head_dim);
}

static void share_flat(size_t n, int part, int parts, size_t *from, size_t *to)
{
    *from = n / 64 * (size_t)part / (size_t)parts * 64;
    *to = part + 1 == parts ? n : n / 64 * (size_t)(part + 1) / (size_t)parts * 64;
}

static void swiglu_part(void *user, int part, int parts)
{
    const rows_job *j = user;
    size_t from, to;
    share_flat(j->n, part, parts, &from, &to);
    es_cpu_simd->swiglu(j->a + from, j->b + from, j->y + from, to - from);
}

static void swiglu(es_pool *p, const float *gate, const float *up, float *y, size_t n)
{
    rows_job j = {.a = gate, .b = up, .y = y, .n = n};
    run_rows(p, swiglu_part, &j, n);
}

static void swiglu_back_part(void *user, int part, int parts)
{
    const rows_job *j = user;
    size_t from, to;
    share_flat(j->n, part, parts, &from, &to);
    es_cpu_simd->swiglu_back(j->a + from, j->b + from, j->c + from, j->y + from, j->z + from, to - from);
}

static void swiglu_back(es_pool *p, const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n)
{
    rows_job j = {.a = gate, .b = up, .c = dy, .y = dgate, .z = dup, .n = n};
    run_rows(p, swiglu_back_part, &j, n);
}

static void geglu_part(void *user, int part, int parts)
{
    const rows_job *j = user;
    size_t from, to;
    share_flat(j->n, part, parts, &from, &to);
    es_cpu_simd->geglu(j->a + from, j->b + from, j->y + from, to - from);
}

static void geglu(es_pool *p, const float *gate, const float *up, float *y, size_t n)
{
    rows_job j = {.a = gate, .b = up, .y = y, .n = n};
    run_rows(p, geglu_part, &j, n);
}

static void geglu_back_part(void *user, int part, int parts)
{
    const rows_job *j = user;
    size_t from, to;
    share_flat(j->n, part, parts, &from, &to);
    es_cpu_simd->geglu_back(j->a + from, j->b + from, j->c + from, j->y + from, j->z + from, to - from);
}

static void geglu_back(es_pool *p, const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n)
{
    rows_job j = {.a = gate, .b = up, .c = dy, .y = dgate, .z = dup, .n = n};
    run_rows(p, geglu_back_part, &j, n);
}

static void soft_cap_part(void *user, int part, int parts)
{
    const rows_job *j = user;
    size_t from, to;
    share_flat(j->n, part, parts, &from, &to);
    es_cpu_simd->soft_cap(j->y + from, to - from, j->eps);
}

static void soft_cap(es_pool *p, float *x, size_t n, float cap)
{
    rows_job j = {.y = x, .n = n, .eps = cap};
    run_rows(p, soft_cap_part, &j, n);
}

static void pick_part(void *user, int part, int parts)
{
    const rows_job *j = user;
    int from, to;
    es_share(j->T, 1, part, parts, &from, &to);
    es_cpu_simd->log_softmax_pick(j->a + (size_t)from * (size_t)j->d, j->index + from, to - from, j->d, j->y + from, j->z + from);
}

static void log_softmax_pick(es_pool *p, const float *logits, const int32_t *target, int T, int V, float *logprob, float *logsum)
{
    rows_job j = {.a = logits, .index = target, .T = T, .d = V, .y = logprob, .z = logsum};
    run_rows(p, pick_part, &j, (size_t)T * (size_t)V);
}

static void pick_back_part(void *user, int part, int parts)
{
    const rows_job *j = user;
    int from, to;
    es_share(j->T, 1, part, parts, &from, &to);
    es_cpu_simd->log_softmax_pick_back(j->y + (size_t)from * (size_t)j->d, j->index + from, j->a + from, j->b + from, to - from, j->d);
}

static void log_softmax_pick_back(es_pool *p, float *logits, const int32_t *target, const float *logsum, const float *dlogprob, int T,
                                  int V)
{
    rows_job j = {.y = logits, .index = target, .a = logsum, .b = dlogprob, .T = T, .d = V};
    run_rows(p, pick_back_part, &j, (size_t)T * (size_t)V);
}

/* ---- the table --------------------------------------------------------------------------------------------------------------- */

static const es_kernels table = {
    .name = "cpu",
    .matmul = matmul,
    .matmuls = matmuls,
    .matmul_back = matmul_back,
    .gemm = gemm,
    .rmsnorm = rmsnorm,
    .rmsnorm_back = rmsnorm_back,
    .rope = rope,
    .swiglu = swiglu,
    .swiglu_back = swiglu_back,
    .geglu = geglu,
    .geglu_back = geglu_back,
    .soft_cap = soft_cap,
    .attention = es_cpu_attention,
    .attention_half = es_cpu_attention_half,
    .to_half = es_cpu_to_half,
    .attention_back = es_cpu_attention_back,
    .log_softmax_pick = log_softmax_pick,
    .log_softmax_pick_back = log_softmax_pick_back,
};

const es_simd *es_cpu_simd;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void open_table(void)
{
    openblas_set_num_threads(1); /* threads are the pools' business */
    const es_simd *best_first[] = {es_simd_avx512(), es_simd_avx2(), es_simd_neon(), es_simd_plain()};
    for (int i = 0; !es_cpu_simd; i++)
        es_cpu_simd = best_first[i];
}

const es_kernels *es_kernels_cpu(void)
{
    pthread_once(&once, open_table);
    return &table;
}

void es_kernels_cpu_use(const es_simd *s)
{
    es_kernels_cpu();
    es_cpu_simd = s;
}

void es_kernels_describe(char *out, size_t n)
{
    es_kernels_cpu();
    const char *blas = openblas_get_config(); /* "OpenBLAS 0.3.21 NO_LAPACKE ...": name and version will do */
    int length = (int)strcspn(blas, " ");
    length += blas[length] ? 1 + (int)strcspn(blas + length + 1, " ") : 0;
    snprintf(out, n, "cpu: %s, %.*s (%s)", es_cpu_simd->name, length, blas, openblas_get_corename());
}
