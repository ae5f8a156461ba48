// Products of tokens with a (quantised) weight.
//
// Up to ES_CUDA_ROWS tokens: each row of the weight is read once and multiplied as it is unpacked, in f32; the limit is the weight's bytes
// over the bandwidth. More tokens: tiles of rows are written out to the workspace, as bfloat16 for the tensor cores or as f32, and go
// through a product of two plain matrices; the limit is that product. Reading a tile back costs 1/T of the product's work.
#include "matmul.cuh"

static const es_type_ops *ops_of(int type)
{
    const es_type_ops *o = es_type_ops_plain(type);
    o = o ? o : es_type_ops_nibble(type);
    return o ? o : es_type_ops_k(type);
}

static es_product kind_of(const es_stream *s, bool exact)
{
    if (exact && !s->o.exact_too)
        return ES_PRODUCT_F32;
    return s->o.precision == ES_CUDA_BF16 ? ES_PRODUCT_BF16 : s->o.precision == ES_CUDA_TF32 ? ES_PRODUCT_TF32 : ES_PRODUCT_F32;
}

// How the workspace is shared: `tokens` of the activations rounded to bfloat16 (none when they are used as f32), and `rows` of the weight.
struct plan {
    es_product kind;
    int tokens, rows, row; // row: elements of a weight's row
    char *weights;         // behind the activations
};

// width: of a row of activations. false when not even one row of each fits: then the pool has failed.
static bool plan_for(es_stream *s, es_product kind, int T, int width, int K, int N, plan *out)
{
    const size_t each = kind == ES_PRODUCT_BF16 ? 2 : 4, all = s->o.workspace, row = each * (size_t)K, token = 2 * (size_t)width;
    size_t tokens = (size_t)T;
    if (kind == ES_PRODUCT_BF16 && tokens * token > all / 2)
        tokens = all / 2 / token;
    const size_t used = kind == ES_PRODUCT_BF16 ? es_align256(tokens * token) : 0, rows = used < all ? (all - used) / row : 0;
    if (!tokens || !rows) {
        es_stream_fail(s, ES_ERR_LIMIT, "a weight of width %d wants a larger workspace than %zu bytes", K, all);
        return false;
    }
    *out = plan{kind, (int)tokens, (int)(rows < (size_t)N ? rows : (size_t)N), K, s->work + used};
    return true;
}

static const void *tile_of(es_stream *s, const es_weight *w, const plan *p, int n, int rows)
{
    const char *from = (const char *)w->data + (size_t)n * es_row_bytes(w->type, w->n_in);
    if (w->type == ES_F32 && p->kind != ES_PRODUCT_BF16)
        return from;
    if (w->type == ES_BF16 && p->kind == ES_PRODUCT_BF16)
        return from;
    if (p->kind == ES_PRODUCT_BF16)
        ops_of(w->type)->to_bf16(s, from, (__nv_bfloat16 *)p->weights, rows, w->n_in);
    else
        ops_of(w->type)->to_f32(s, from, (float *)p->weights, rows, w->n_in);
    return p->weights;
}

static const void *rounded(es_stream *s, const plan *p, const float *x, size_t n)
{
    if (p->kind != ES_PRODUCT_BF16)
        return x;
    es_to_bf16(s, x, (__nv_bfloat16 *)s->work, n);
    return s->work;
}

static bool known(es_stream *s, const es_weight *w)
{
    if (ops_of(w->type))
        return true;
    es_stream_fail(s, ES_ERR_USAGE, "weights of type %d cannot be used on a card", (int)w->type);
    return false;
}

static void many(es_stream *s, const es_weight *w, const float *x, int T, float *y, bool accumulate, es_product kind)
{
    const int N = w->n_out, K = w->n_in;
    plan p;
    if (!plan_for(s, kind, T, K, K, N, &p))
        return;
    for (int t = 0; t < T; t += p.tokens) {
        const int tokens = T - t < p.tokens ? T - t : p.tokens;
        const void *xt = rounded(s, &p, x + (size_t)t * K, (size_t)tokens * K);
        for (int n = 0; n < N; n += p.rows) {
            const int rows = N - n < p.rows ? N - n : p.rows;
            es_product_do(s, kind, false, true, tokens, rows, K, 1, xt, K, tile_of(s, w, &p, n, rows), K, accumulate ? 1.0f : 0.0f,
                          y + (size_t)t * N + n, N);
        }
    }
}

static void products(es_pool *pool, const es_weight *const *w, int n, const float *x, int T, float *const *y, bool accumulate, bool exact)
{
    es_stream *s = es_stream_of(pool);
    for (int i = 0; i < n; i++)
        if (!known(s, w[i]))
            return;
    if (T < 1)
        return;
    if (T > ES_CUDA_ROWS) {
        for (int i = 0; i < n; i++)
            if (w[i]->n_out > 0)
                many(s, w[i], x, T, y[i], accumulate, kind_of(s, exact));
        return;
    }
    for (int i = 0; i < n;) { // neighbours of one type and width in one go
        es_rows_set set = {};
        const es_weight *first = w[i];
        for (; i < n && set.count < ES_SET && w[i]->type == first->type && w[i]->n_in == first->n_in; i++) {
            set.w[set.count] = (const uint8_t *)w[i]->data;
            set.y[set.count] = y[i];
            set.n_out[set.count++] = w[i]->n_out;
        }
        ops_of(first->type)->rows(s, &set, x, first->n_in, T, accumulate);
    }
}

static void matmul(es_pool *p, const es_weight *w, const float *x, int T, float *y, bool accumulate, bool exact)
{
    products(p, &w, 1, x, T, &y, accumulate, exact);
}

static void matmuls(es_pool *p, const es_weight *const *w, int n, const float *x, int T, float *const *y, bool exact)
{
    products(p, w, n, x, T, y, false, exact);
}

// dx[T,K] = dy[T,N] W: a sum over the tiles of rows.
static void matmul_back(es_pool *pool, const es_weight *w, const float *dy, int T, float *dx, bool accumulate)
{
    es_stream *s = es_stream_of(pool);
    const int N = w->n_out, K = w->n_in;
    const es_product kind = kind_of(s, false);
    plan p;
    if (T < 1 || K < 1 || !known(s, w))
        return;
    if (N < 1) {
        if (!accumulate)
            es_cuda_table()->clear(pool, dx, sizeof(float) * (size_t)T * K);
        return;
    }
    if (!plan_for(s, kind, T, N, K, N, &p))
        return;
    for (int t = 0; t < T; t += p.tokens) {
        const int tokens = T - t < p.tokens ? T - t : p.tokens;
        const char *dyt = (const char *)rounded(s, &p, dy + (size_t)t * N, (size_t)tokens * N);
        const size_t each = kind == ES_PRODUCT_BF16 ? 2 : 4;
        for (int n = 0; n < N; n += p.rows) {
            const int rows = N - n < p.rows ? N - n : p.rows;
            es_product_do(s, kind, false, false, tokens, K, rows, 1, dyt + (size_t)n * each, N, tile_of(s, w, &p, n, rows), K,
                          accumulate || n > 0 ? 1.0f : 0.0f, dx + (size_t)t * K, K);
        }
    }
}

static void embed(es_pool *pool, const es_weight *w, const int32_t *ids, int T, float scale, float *out)
{
    es_stream *s = es_stream_of(pool);
    if (T > 0 && known(s, w))
        ops_of(w->type)->embed(s, w->data, ids, T, w->n_in, scale, out);
}

void es_matmul_ops(es_kernels *k)
{
    k->matmul = matmul;
    k->matmuls = matmuls;
    k->matmul_back = matmul_back;
    k->embed = embed;
}
