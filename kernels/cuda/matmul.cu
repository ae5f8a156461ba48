// Products of tokens with a (quantised) weight.
//
// Up to ES_CUDA_ROWS tokens: each row of the weight is read once and multiplied as it is unpacked, in f32; the limit is the weight's bytes
// over the bandwidth. Large quantised weights meet activations in integers of 16 bits, whose products take a third of the instructions. More tokens: tiles of rows are written out to the workspace, as bfloat16 for the tensor cores or as f32, and go
// through a product of two plain matrices; the limit is that product. Reading a tile back costs 1/T of the product's work.
#include "matmul.cuh"

enum { SPLIT_THREADS = 128 };

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

// A warp for a run of 32; grid: runs of a token, tokens. norm: rmsnorm(x) with these weights, else x itself.
static __global__ void __launch_bounds__(SPLIT_THREADS) split16(const float *x, const float *norm, float eps, int K, int8_t *high, int8_t *low, float4 *run)
{
    es_turn();
    ES_SHARED(float, red);
    const int lane = threadIdx.x % 32, r = blockIdx.x * (SPLIT_THREADS / 32) + threadIdx.x / 32;
    x += (size_t)blockIdx.y * K;
    float factor = 1;
    if (norm) { // each block for itself
        float square = 0;
        for (int i = threadIdx.x; i < K; i += SPLIT_THREADS)
            square += x[i] * x[i];
        factor = 1 / sqrtf(es_block_sum(square, red) / K + eps);
    }
    if (r >= K / 32)
        return;
    const float v = x[32 * r + lane] * (norm ? factor * norm[32 * r + lane] : 1), most = es_warp_max(fabsf(v)), scale = most / 32512;
    const bool sound = __all_sync(0xffffffffu, isfinite(v));
    const int n = sound && scale > 0 ? (int)rintf(fminf(fmaxf(v / scale, -32512), 32512)) : 0, h = (n + 128) >> 8;
    const size_t at = (size_t)blockIdx.y * K + 32 * r + lane;
    high[at] = (int8_t)h;
    low[at] = (int8_t)(n - 256 * h);
    int sum = n; // of the lane's 16
    for (int step = 8; step > 0; step >>= 1)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    const int first = __shfl_sync(0xffffffffu, sum, 0), last = __shfl_sync(0xffffffffu, sum, 16);
    if (lane == 0)
        run[at / 32] = make_float4(sound ? scale : NAN, scale * (float)first, scale * (float)last, 0);
}

enum { UNITS_FROM = 64 << 10 }; // weights a multiprocessor, from which splitting the activations beforehand pays

// Whether a set goes by units, and where the split activations are in the workspace then.
static bool by_units(es_stream *s, const es_weight *first, const es_rows_set *set, int T, es_split16 *out)
{
    const int K = first->n_in;
    const size_t numbers = (size_t)T * K;
    size_t rows = 0;
    for (int i = 0; i < set->count; i++) {
        rows += (size_t)set->n_out[i];
        if ((size_t)set->w[i] % 16)
            return false;
    }
    if (!ops_of(first->type)->units || K % 64 || rows * K < (size_t)s->card->sms * UNITS_FROM || es_align256(2 * numbers) + numbers / 32 * sizeof(float4) > s->o.workspace)
        return false;
    *out = es_split16{(const int8_t *)s->work, (const int8_t *)s->work + numbers, (const float4 *)(s->work + es_align256(2 * numbers))};
    return true;
}

// Few tokens. norm, glu: as in es_rows_set.
static void few(es_stream *s, const es_weight *const *w, int n, const float *x, int T, float *const *y, bool accumulate, bool exact, const float *norm, float eps,
                es_glu glu)
{
    bool split = false;
    for (int i = 0; i < n;) { // neighbours of one type and width in one go
        es_rows_set set = {};
        es_split16 xs;
        const es_weight *first = w[i];
        for (; i < n && set.count < ES_SET && w[i]->type == first->type && w[i]->n_in == first->n_in; i++) {
            set.w[set.count] = (const uint8_t *)w[i]->data;
            set.y[set.count] = glu ? y[0] : y[i];
            set.n_out[set.count++] = w[i]->n_out;
        }
        set.glu = glu;
        if (kind_of(s, exact) != ES_PRODUCT_F32 && by_units(s, first, &set, T, &xs)) {
            const int K = first->n_in;
            dim3 grid(es_ceil_div((size_t)K / 32, SPLIT_THREADS / 32), T);
            if (!split) // all sets read one x
                ES_LAUNCH_SOON(s, split16, grid, SPLIT_THREADS, 32 * sizeof(float), x, norm, eps, K, (int8_t *)xs.high, (int8_t *)xs.low, (float4 *)xs.run);
            split = true;
            ops_of(first->type)->units(s, &set, &xs, K, T, accumulate);
        } else {
            set.norm = norm;
            set.eps = eps;
            ops_of(first->type)->rows(s, &set, x, first->n_in, T, accumulate);
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
    if (T <= ES_CUDA_ROWS) {
        few(s, w, n, x, T, y, accumulate, exact, NULL, 0, ES_GLU_NONE);
        return;
    }
    for (int i = 0; i < n; i++)
        if (w[i]->n_out > 0)
            many(s, w[i], x, T, y[i], accumulate, kind_of(s, exact));
}

void es_cuda_normed_matmuls(es_pool *pool, const es_weight *const *w, int n, const float *x, const float *norm, float eps, float *const *y, bool exact)
{
    es_stream *s = es_stream_of(pool);
    for (int i = 0; i < n; i++)
        if (!known(s, w[i]))
            return;
    few(s, w, n, x, 1, y, false, exact, norm, eps, ES_GLU_NONE);
}

void es_cuda_normed_glu(es_pool *pool, const es_weight *gate, const es_weight *up, const float *x, const float *norm, float eps, bool gelu, float *y, bool exact)
{
    es_stream *s = es_stream_of(pool);
    const es_weight *const w[] = {gate, up};
    if (!known(s, gate))
        return;
    if (gate->type != up->type || gate->n_in != up->n_in || gate->n_out != up->n_out)
        es_stream_fail(s, ES_ERR_USAGE, "gated units of two kinds of weights");
    else
        few(s, w, 2, x, 1, &y, false, exact, norm, eps, gelu ? ES_GLU_GELU : ES_GLU_SILU);
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
