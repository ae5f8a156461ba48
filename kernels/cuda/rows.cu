// Ops on rows and single numbers. All of them wait for memory: their limit is the bytes they read and write over the card's bandwidth,
// and for one token the time of starting a kernel.
#include "device.cuh"
#include "glu.cuh"

enum { THREADS = 256 };

// ---- norms ------------------------------------------------------------------------------------------------------------------------------

// A row is done by a warp when it is short (the norms of single heads), else by a block. Lanes: 32 or THREADS.
template <int LANES> static __device__ __forceinline__ float row_sum(float v, float *red)
{
    return LANES == 32 ? es_warp_sum(v) : es_block_sum(v, red);
}

template <int LANES>
static __global__ void norm_forward(const float *x, const float *w, float *y, int T, int d, float eps)
{
    es_turn();
    ES_SHARED(float, red);
    const int at = threadIdx.x % LANES;
    size_t t = (size_t)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    if (t >= (size_t)T) // whole warps
        return;
    x += t * d;
    y += t * d;
    float square = 0;
    for (int i = at; i < d; i += LANES)
        square += x[i] * x[i];
    const float r = 1 / sqrtf(row_sum<LANES>(square, red) / d + eps);
    for (int i = at; i < d; i += LANES)
        y[i] = x[i] * r * w[i]; // x and y may be one array: each thread reads what it writes
}

// dx_i += r w_i dy_i - x_i (r^3 / d) sum_j dy_j w_j x_j, as scalar.c derives it.
template <int LANES>
static __global__ void norm_backward(const float *x, const float *w, const float *dy, float *dx, int T, int d, float eps)
{
    ES_SHARED(float, red);
    const int at = threadIdx.x % LANES;
    size_t t = (size_t)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    if (t >= (size_t)T)
        return;
    x += t * d;
    dy += t * d;
    dx += t * d;
    float square = 0, along = 0;
    for (int i = at; i < d; i += LANES) {
        square += x[i] * x[i];
        along += dy[i] * w[i] * x[i];
    }
    const float r = 1 / sqrtf(row_sum<LANES>(square, red) / d + eps);
    const float s = row_sum<LANES>(along, red) * r * r * r / d;
    for (int i = at; i < d; i += LANES)
        dx[i] += r * w[i] * dy[i] - x[i] * s;
}

enum { SHORT_ROW = 512, RED = 32 * sizeof(float) };

static void rmsnorm(es_pool *p, const float *x, const float *w, float *y, int T, int d, float eps)
{
    es_stream *s = es_stream_of(p);
    if (T < 1)
        return;
    if (d <= SHORT_ROW && T > 1)
        ES_LAUNCH_SOON(s, (norm_forward<32>), es_ceil_div(T, THREADS / 32), THREADS, RED, x, w, y, T, d, eps);
    else
        ES_LAUNCH_SOON(s, (norm_forward<THREADS>), T, THREADS, RED, x, w, y, T, d, eps);
}

static void rmsnorm_back(es_pool *p, const float *x, const float *w, const float *dy, float *dx, int T, int d, float eps)
{
    es_stream *s = es_stream_of(p);
    if (T < 1)
        return;
    if (d <= SHORT_ROW && T > 1)
        ES_LAUNCH(s, (norm_backward<32>), es_ceil_div(T, THREADS / 32), THREADS, RED, x, w, dy, dx, T, d, eps);
    else
        ES_LAUNCH(s, (norm_backward<THREADS>), T, THREADS, RED, x, w, dy, dx, T, d, eps);
}

static __global__ void inverse_norms(const float *x, float *inverse, int T, int d, float eps)
{
    size_t t = (size_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (t >= (size_t)T)
        return;
    float square = 0;
    for (int i = threadIdx.x % 32; i < d; i += 32)
        square += x[t * d + i] * x[t * d + i];
    square = es_warp_sum(square);
    if (threadIdx.x % 32 == 0)
        inverse[t] = 1 / sqrtf(square / d + eps);
}

// Sums over rows: a block has 32 columns, its eight warps every eighth row, so the order of a sum is the same each time.
// out[i] += scale * sum_t a[t, i] b[t, i] c[t] over rows with pos[t] >= min_pos; b, c and pos may be NULL.
static __global__ void column_sums(const float *a, const float *b, const float *c, const int *pos, int min_pos, float scale, int T, int d,
                                   float *out)
{
    ES_SHARED(float, part); // [8][32]
    const int column = blockIdx.x * 32 + threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum = 0;
    if (column < d)
        for (int t = warp; t < T; t += 8)
            if (!pos || pos[t] >= min_pos) {
                const size_t at = (size_t)t * d + column;
                sum += a[at] * (b ? b[at] : 1) * (c ? c[t] : 1);
            }
    part[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && column < d) {
        for (int i = 1; i < 8; i++)
            sum += part[i * 32 + threadIdx.x];
        out[column] += scale * sum;
    }
}

static void rmsnorm_weight_back(es_pool *p, const float *x, const float *dy, float *dw, int T, int d, float eps)
{
    es_stream *s = es_stream_of(p);
    float *inverse = (float *)s->work;
    const int most = (int)(s->o.workspace / sizeof(float));
    for (int t = 0; t < T; t += most) {
        const int n = T - t < most ? T - t : most;
        const float *xt = x + (size_t)t * d, *dyt = dy + (size_t)t * d;
        ES_LAUNCH(s, inverse_norms, es_ceil_div(n, THREADS / 32), THREADS, 0, xt, inverse, n, d, eps);
        ES_LAUNCH(s, column_sums, es_ceil_div(d, 32), THREADS, THREADS * sizeof(float), xt, dyt, (const float *)inverse, (const int *)NULL, 0,
                  1.0f, n, d, dw);
    }
}

// ---- rotation ---------------------------------------------------------------------------------------------------------------------------

// The two numbers of a pair, pairs counted through all heads of 2 half numbers, and which of its head it is.
struct rope_pair { size_t a, b; int i; };
static __device__ __forceinline__ rope_pair pair_of(size_t pair, int half, bool neox)
{
    const int i = (int)(pair % half);
    const size_t base = pair / half * 2 * half;
    return rope_pair{base + (neox ? i : 2 * i), base + (neox ? i + half : 2 * i + 1), i};
}

struct rotated { float a, b; };
static __device__ __forceinline__ rotated turned(float a, float b, float c, float sine)
{
    return rotated{a * c - b * sine, a * sine + b * c};
}

static __global__ void rotate(float *x, const int *pos, const float *cos_t, const float *sin_t, size_t n, int n_head, int half, bool neox,
                              float sign)
{
    es_turn();
    ES_EACH(e, n) {
        const rope_pair at = pair_of(e, half, neox);
        const size_t table = (size_t)pos[e / half / n_head] * half + at.i;
        const rotated r = turned(x[at.a], x[at.b], cos_t[table], sign * sin_t[table]);
        x[at.a] = r.a;
        x[at.b] = r.b;
    }
}

static void rope(es_pool *p, float *x, const int *pos, const float *cos_t, const float *sin_t, int T, int n_head, int head_dim, bool neox,
                 bool back)
{
    es_stream *s = es_stream_of(p);
    const size_t n = (size_t)T * n_head * (head_dim / 2);
    if (n)
        ES_LAUNCH_SOON(s, rotate, es_grid_for(s, n, THREADS), THREADS, 0, x, pos, cos_t, sin_t, n, n_head, head_dim / 2, neox, back ? -1.0f : 1.0f);
}

static __device__ __forceinline__ __half half_of(float x) // fmaxf would turn a NaN into a number
{
    return __float2half(x > 65504 ? 65504 : x < -65504 ? -65504 : x);
}

// Pairs of q, then pairs of k, then single numbers of v.
static __global__ void rotate_append(float *q, const float *k, const float *v, const int *where, const float *cos_t, const float *sin_t, int n_head, int n_kv, int half,
                                     bool neox, __half *keys, __half *values)
{
    es_turn();
    const int pos = *where, q_pairs = n_head * half, k_pairs = n_kv * half;
    const float *c = cos_t + (size_t)pos * half, *sine = sin_t + (size_t)pos * half;
    const size_t row = (size_t)pos * 2 * k_pairs;
    ES_EACH(e, (size_t)q_pairs + 3 * k_pairs) {
        if (e >= (size_t)q_pairs + k_pairs) {
            const size_t i = e - q_pairs - k_pairs;
            values[row + i] = half_of(v[i]);
            continue;
        }
        const bool is_k = e >= (size_t)q_pairs;
        const rope_pair at = pair_of(e - (is_k ? q_pairs : 0), half, neox);
        const float *x = is_k ? k : q;
        const rotated r = turned(x[at.a], x[at.b], c[at.i], sine[at.i]);
        if (is_k) {
            keys[row + at.a] = half_of(r.a);
            keys[row + at.b] = half_of(r.b);
        } else {
            q[at.a] = r.a;
            q[at.b] = r.b;
        }
    }
}

void es_cuda_rotate_append(es_pool *p, float *q, const float *k, const float *v, const int *pos, const float *cos_t, const float *sin_t, int n_head, int n_kv, int head_dim,
                           bool neox, uint16_t *keys, uint16_t *values)
{
    es_stream *s = es_stream_of(p);
    const int half = head_dim / 2;
    ES_LAUNCH_SOON(s, rotate_append, es_grid_for(s, (size_t)(n_head + 3 * n_kv) * half, THREADS), THREADS, 0, q, k, v, pos, cos_t, sin_t, n_head, n_kv, half, neox,
                   (__half *)keys, (__half *)values);
}

// ---- gated units --------------------------------------------------------------------------------------------------------------------------

template <bool GELU> static __global__ void glu(const float *gate, const float *up, float *y, size_t n)
{
    es_turn();
    ES_EACH(i, n) {
        float slope;
        y[i] = es_gate_of<GELU>(gate[i], &slope) * up[i];
    }
}

template <bool GELU> static __global__ void glu_back(const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n)
{
    ES_EACH(i, n) {
        float slope;
        const float f = es_gate_of<GELU>(gate[i], &slope), u = up[i], d = dy[i]; // read first: outputs may lie on the inputs
        dgate[i] = d * u * slope;
        dup[i] = d * f;
    }
}

static void swiglu(es_pool *p, const float *gate, const float *up, float *y, size_t n)
{
    es_stream *s = es_stream_of(p);
    if (n)
        ES_LAUNCH_SOON(s, (glu<false>), es_grid_for(s, n, THREADS), THREADS, 0, gate, up, y, n);
}

static void geglu(es_pool *p, const float *gate, const float *up, float *y, size_t n)
{
    es_stream *s = es_stream_of(p);
    if (n)
        ES_LAUNCH_SOON(s, (glu<true>), es_grid_for(s, n, THREADS), THREADS, 0, gate, up, y, n);
}

static void swiglu_back(es_pool *p, const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n)
{
    es_stream *s = es_stream_of(p);
    if (n)
        ES_LAUNCH(s, (glu_back<false>), es_grid_for(s, n, THREADS), THREADS, 0, gate, up, dy, dgate, dup, n);
}

static void geglu_back(es_pool *p, const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n)
{
    es_stream *s = es_stream_of(p);
    if (n)
        ES_LAUNCH(s, (glu_back<true>), es_grid_for(s, n, THREADS), THREADS, 0, gate, up, dy, dgate, dup, n);
}

// ---- number by number -----------------------------------------------------------------------------------------------------------------------

static __global__ void cap_each(float *x, size_t n, float cap)
{
    ES_EACH(i, n) x[i] = cap * tanhf(x[i] / cap);
}

static __global__ void cap_back_each(const float *y, float *dx, size_t n, float cap)
{
    ES_EACH(i, n) dx[i] *= 1 - y[i] / cap * (y[i] / cap);
}

static __global__ void axpy_each(float alpha, const float *x, float *y, size_t n)
{
    es_turn();
    ES_EACH(i, n) y[i] += alpha * x[i];
}

static __global__ void bf16_each(const float *x, __nv_bfloat16 *y, size_t n)
{
    es_turn();
    ES_EACH(i, n) y[i] = __float2bfloat16(x[i]);
}

static __global__ void half_each(const float *x, __half *y, size_t n)
{
    es_turn();
    ES_EACH(i, n) y[i] = half_of(x[i]);
}

static __global__ void adam_each(float *x, const float *g, float *m, float *v, size_t n, float b1, float b2, float rate, float eps, float keep)
{
    ES_EACH(i, n) {
        m[i] = b1 * m[i] + (1 - b1) * g[i];
        v[i] = b2 * v[i] + (1 - b2) * g[i] * g[i];
        x[i] = x[i] * keep - rate * m[i] / (sqrtf(v[i]) + eps);
    }
}

// Each block's share into part[block], then one block's sum of those: the same order each time.
static __device__ __forceinline__ double block_sum_double(double v, double *red)
{
    red[threadIdx.x] = v;
    for (int step = blockDim.x / 2; step > 0; step >>= 1) {
        __syncthreads();
        if ((int)threadIdx.x < step)
            red[threadIdx.x] += red[threadIdx.x + step];
    }
    __syncthreads();
    return red[0];
}

static __global__ void square_parts(const float *x, size_t n, double *part)
{
    ES_SHARED(double, red);
    double sum = 0;
    ES_EACH(i, n) sum += (double)x[i] * x[i];
    sum = block_sum_double(sum, red);
    if (threadIdx.x == 0)
        part[blockIdx.x] = sum;
}

static __global__ void add_parts(const double *part, int n, double *out)
{
    ES_SHARED(double, red);
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        sum += part[i];
    sum = block_sum_double(sum, red);
    if (threadIdx.x == 0)
        *out = sum;
}

static void sum_squares(es_pool *p, const float *x, size_t n, double *out)
{
    es_stream *s = es_stream_of(p);
    int blocks = es_grid_for(s, n, THREADS);
    if ((size_t)blocks * sizeof(double) > s->o.workspace)
        blocks = (int)(s->o.workspace / sizeof(double));
    double *part = (double *)s->work;
    ES_LAUNCH(s, square_parts, blocks, THREADS, THREADS * sizeof(double), x, n, part);
    ES_LAUNCH(s, add_parts, 1, THREADS, THREADS * sizeof(double), (const double *)part, blocks, out);
}

static void soft_cap(es_pool *p, float *x, size_t n, float cap)
{
    es_stream *s = es_stream_of(p);
    if (n)
        ES_LAUNCH(s, cap_each, es_grid_for(s, n, THREADS), THREADS, 0, x, n, cap);
}

static void soft_cap_back(es_pool *p, const float *y, float *dx, size_t n, float cap)
{
    es_stream *s = es_stream_of(p);
    if (n)
        ES_LAUNCH(s, cap_back_each, es_grid_for(s, n, THREADS), THREADS, 0, y, dx, n, cap);
}

static void axpy(es_pool *p, float alpha, const float *x, float *y, size_t n)
{
    es_stream *s = es_stream_of(p);
    if (n)
        ES_LAUNCH_SOON(s, axpy_each, es_grid_for(s, n, THREADS), THREADS, 0, alpha, x, y, n);
}

void es_to_bf16(es_stream *s, const float *x, __nv_bfloat16 *y, size_t n)
{
    if (n)
        ES_LAUNCH_SOON(s, bf16_each, es_grid_for(s, n, THREADS), THREADS, 0, x, y, n);
}

static void to_half(es_pool *p, const float *x, uint16_t *y, size_t n)
{
    es_stream *s = es_stream_of(p);
    if (n)
        ES_LAUNCH_SOON(s, half_each, es_grid_for(s, n, THREADS), THREADS, 0, x, (__half *)y, n);
}

static void adam(es_pool *p, float *x, const float *g, float *m, float *v, size_t n, float b1, float b2, float rate, float eps, float keep)
{
    es_stream *s = es_stream_of(p);
    if (n)
        ES_LAUNCH(s, adam_each, es_grid_for(s, n, THREADS), THREADS, 0, x, g, m, v, n, b1, b2, rate, eps, keep);
}

// ---- rows by number ---------------------------------------------------------------------------------------------------------------------------

static __global__ void gather(const float *x, const int32_t *index, size_t n, int d, float *out)
{
    ES_EACH(e, n) out[e] = x[(size_t)index[e / d] * d + e % d];
}

static __global__ void scatter(const float *x, const int32_t *index, size_t n, int d, float *out)
{
    ES_EACH(e, n) out[(size_t)index[e / d] * d + e % d] = x[e];
}

static __global__ void add_rows(float *h, const int *pos, int min_pos, float scale, const float *v, size_t n, int d)
{
    es_turn();
    ES_EACH(e, n) if (pos[e / d] >= min_pos) h[e] += scale * v[e % d];
}

static __global__ void gate_each(float *u, const float *bias, const float *threshold, const float *by, const int *pos, size_t n, int K)
{
    es_turn();
    ES_EACH(e, n) {
        const int k = e % K;
        const float x = bias ? u[e] + bias[k] : u[e];
        u[e] = pos[e / K] == 0 || (threshold && !(x > threshold[k])) ? 0 : by ? x * by[k] : x;
    }
}

static __global__ void gate_back_each(float *f, const float *by, float *dp, size_t n, int K)
{
    ES_EACH(e, n) {
        const float d = dp[e];
        dp[e] = f[e] != 0 ? by[e % K] * d : 0;
        f[e] *= d;
    }
}

// One block a token. The first token of an id adds up all tokens of that id, in their order: no two blocks write one row.
static __global__ void embed_rows_back(const float *dh, const int32_t *ids, int T, int d, float scale, float *dw)
{
    ES_SHARED(float, red);
    const int id = ids[blockIdx.x];
    float seen = 0;
    for (int t = threadIdx.x; t < (int)blockIdx.x; t += blockDim.x)
        seen += ids[t] == id;
    if (es_block_sum(seen, red) > 0)
        return;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float sum = 0;
        for (int t = blockIdx.x; t < T; t++)
            if (ids[t] == id)
                sum += dh[(size_t)t * d + i];
        dw[(size_t)id * d + i] += scale * sum;
    }
}

static void gather_rows(es_pool *p, const float *x, const int32_t *index, int n, int d, float *out)
{
    es_stream *s = es_stream_of(p);
    const size_t all = (size_t)n * d;
    if (all)
        ES_LAUNCH(s, gather, es_grid_for(s, all, THREADS), THREADS, 0, x, index, all, d, out);
}

static void scatter_rows(es_pool *p, const float *x, const int32_t *index, int n, int d, float *out)
{
    es_stream *s = es_stream_of(p);
    const size_t all = (size_t)n * d;
    if (all)
        ES_LAUNCH(s, scatter, es_grid_for(s, all, THREADS), THREADS, 0, x, index, all, d, out);
}

static void add_vector(es_pool *p, float *h, const int *pos, int min_pos, float scale, const float *v, int T, int d)
{
    es_stream *s = es_stream_of(p);
    const size_t all = (size_t)T * d;
    if (all)
        ES_LAUNCH_SOON(s, add_rows, es_grid_for(s, all, THREADS), THREADS, 0, h, pos, min_pos, scale, v, all, d);
}

static void add_vector_back(es_pool *p, const float *dh, const int *pos, int min_pos, float scale, int T, int d, float *dv)
{
    es_stream *s = es_stream_of(p);
    if (T > 0)
        ES_LAUNCH(s, column_sums, es_ceil_div(d, 32), THREADS, THREADS * sizeof(float), dh, (const float *)NULL, (const float *)NULL, pos,
                  min_pos, scale, T, d, dv);
}

static void gate(es_pool *p, float *u, const float *bias, const float *threshold, const float *by, const int *pos, int T, int K)
{
    es_stream *s = es_stream_of(p);
    const size_t all = (size_t)T * K;
    if (all)
        ES_LAUNCH_SOON(s, gate_each, es_grid_for(s, all, THREADS), THREADS, 0, u, bias, threshold, by, pos, all, K);
}

static void gate_back(es_pool *p, float *f, const float *by, float *dp, int T, int K)
{
    es_stream *s = es_stream_of(p);
    const size_t all = (size_t)T * K;
    if (all)
        ES_LAUNCH(s, gate_back_each, es_grid_for(s, all, THREADS), THREADS, 0, f, by, dp, all, K);
}

static void embed_back(es_pool *p, const float *dh, const int32_t *ids, int T, int d, float scale, float *dw, int n_rows)
{
    es_stream *s = es_stream_of(p);
    (void)n_rows;
    if (T > 0)
        ES_LAUNCH(s, embed_rows_back, T, THREADS, RED, dh, ids, T, d, scale, dw);
}

void es_rows_ops(es_kernels *k)
{
    k->rmsnorm = rmsnorm;
    k->rmsnorm_back = rmsnorm_back;
    k->rmsnorm_weight_back = rmsnorm_weight_back;
    k->rope = rope;
    k->swiglu = swiglu;
    k->swiglu_back = swiglu_back;
    k->geglu = geglu;
    k->geglu_back = geglu_back;
    k->soft_cap = soft_cap;
    k->soft_cap_back = soft_cap_back;
    k->axpy = axpy;
    k->sum_squares = sum_squares;
    k->to_half = to_half;
    k->adam = adam;
    k->gather_rows = gather_rows;
    k->scatter_rows = scatter_rows;
    k->add_vector = add_vector;
    k->add_vector_back = add_vector_back;
    k->gate = gate;
    k->gate_back = gate_back;
    k->embed_back = embed_back;
}
