/* The ops on rows of floats, written once in GNU vectors of W floats. A file that includes this defines W and has selected its
 * instruction set (and included immintrin.h where W > 4); everything here is static. Tails shorter than W go through a padded buffer. */
#include <math.h>
#include <string.h>

typedef float vec __attribute__((vector_size(W * sizeof(float)), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(W * sizeof(float)), aligned(4), may_alias));

INLINE vec load(const float *p)
{
    return *(const vec *)p;
}

INLINE void store(float *p, vec v)
{
    *(vec *)p = v;
}

INLINE vec splat(float f)
{
    return f - (vec){0};
}

/* The smaller and the larger; b where one of the two is NaN (as minps and maxps have it). */
INLINE vec vec_min(vec a, vec b)
{
#if W == 16
    return (vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif W == 8
    return (vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
    ivec take = a < b;
    return (vec)((take & (ivec)a) | (~take & (ivec)b));
#endif
}

INLINE vec vec_max(vec a, vec b)
{
#if W == 16
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif W == 8
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    ivec take = a > b;
    return (vec)((take & (ivec)a) | (~take & (ivec)b));
#endif
}

/* n < W floats, the rest 0. */
INLINE vec load_tail(const float *p, size_t n)
{
    float b[W] = {0};
    memcpy(b, p, n * sizeof *p);
    return load(b);
}

INLINE void store_tail(float *p, vec v, size_t n)
{
    float b[W];
    store(b, v);
    memcpy(p, b, n * sizeof *p);
}

INLINE float total(vec v)
{
#if W == 16
    return _mm512_reduce_add_ps((__m512)v);
#elif W == 8
    __m128 s = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#else
    return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

/* e^x within 2e-7 of its value (relative) for x in [-87.3, 88.3]; x is clamped to that range, a NaN stays one.
 * x = n ln 2 + r, |r| <= ln 2 / 2; e^r by the polynomial of Cephes' expf; ln 2 in two parts so that r is exact. */
INLINE vec vec_exp(vec x)
{
    const vec magic = splat(0x1.8p23f); /* adding it rounds to an integer, which then is in the low bits */
    x = vec_max(splat(-87.3f), vec_min(splat(88.3f), x));
    vec shifted = x * 1.44269504f + magic, n = shifted - magic;
    vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    ivec power = ((ivec)shifted - (ivec)magic + 127) << 23;
    return y * (vec)power;
}

static float dot(const float *a, const float *b, int n)
{
    vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    int i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        s0 += load(a + i) * load(b + i);
        s1 += load(a + i + W) * load(b + i + W);
        s2 += load(a + i + 2 * W) * load(b + i + 2 * W);
        s3 += load(a + i + 3 * W) * load(b + i + 3 * W);
    }
    for (; i + W <= n; i += W)
        s0 += load(a + i) * load(b + i);
    if (i < n)
        s1 += load_tail(a + i, (size_t)(n - i)) * load_tail(b + i, (size_t)(n - i));
    return total((s0 + s1) + (s2 + s3));
}

/* ---- norm, rope, swiglu ---------------------------------------------------------------------------------------------------- */

static void rmsnorm(const float *x, const float *w, float *y, int T, int d, float eps)
{
    for (int t = 0; t < T; t++, x += d, y += d) {
        float r = 1 / sqrtf(dot(x, x, d) / (float)d + eps);
        for (int i = 0; i < d; i++)
            y[i] = x[i] * r * w[i];
    }
}

static void rmsnorm_back(const float *x, const float *w, const float *dy, float *dx, int T, int d, float eps)
{
    for (int t = 0; t < T; t++, x += d, dy += d, dx += d) {
        float r = 1 / sqrtf(dot(x, x, d) / (float)d + eps);
        vec sum = {0};
        int i = 0;
        for (; i + W <= d; i += W)
            sum += load(dy + i) * load(w + i) * load(x + i);
        if (i < d) {
            size_t n = (size_t)(d - i);
            sum += load_tail(dy + i, n) * load_tail(w + i, n) * load_tail(x + i, n);
        }
        float s = total(sum) * r * r * r / (float)d;
        for (i = 0; i < d; i++)
            dx[i] += r * w[i] * dy[i] - x[i] * s;
    }
}

static void rope(float *x, const int *pos, const float *cos_t, const float *sin_t, int T, int n_head, int head_dim, bool neox, bool back)
{
    const int half = head_dim / 2;
    const float sign = back ? -1 : 1;
    for (int t = 0; t < T; t++) {
        const float *restrict c = cos_t + (size_t)pos[t] * (size_t)half, *restrict s = sin_t + (size_t)pos[t] * (size_t)half;
        for (int h = 0; h < n_head; h++, x += head_dim) {
            float *restrict y = x;
            if (neox)
                for (int i = 0; i < half; i++) {
                    float a = y[i], b = y[i + half], sine = sign * s[i];
                    y[i] = a * c[i] - b * sine;
                    y[i + half] = a * sine + b * c[i];
                }
            else
                for (int i = 0; i < half; i++) {
                    float a = y[2 * i], b = y[2 * i + 1], sine = sign * s[i];
                    y[2 * i] = a * c[i] - b * sine;
                    y[2 * i + 1] = a * sine + b * c[i];
                }
        }
    }
}

INLINE vec sigmoid(vec g)
{
    return 1.0f / (1.0f + vec_exp(-g));
}

static void swiglu(const float *gate, const float *up, float *y, size_t n)
{
    size_t i = 0;
    for (; i + W <= n; i += W)
        store(y + i, load(gate + i) * sigmoid(load(gate + i)) * load(up + i));
    if (i < n) {
        vec g = load_tail(gate + i, n - i);
        store_tail(y + i, g * sigmoid(g) * load_tail(up + i, n - i), n - i);
    }
}

INLINE void swiglu_back_vec(vec g, vec u, vec d, vec *dgate, vec *dup)
{
    vec s = sigmoid(g);
    *dgate = d * u * s * (1.0f + g * (1.0f - s));
    *dup = d * g * s;
}

static void swiglu_back(const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n)
{
    vec a, b;
    size_t i = 0;
    for (; i + W <= n; i += W) {
        swiglu_back_vec(load(gate + i), load(up + i), load(dy + i), &a, &b);
        store(dgate + i, a);
        store(dup + i, b);
    }
    if (i < n) {
        swiglu_back_vec(load_tail(gate + i, n - i), load_tail(up + i, n - i), load_tail(dy + i, n - i), &a, &b);
        store_tail(dgate + i, a, n - i);
        store_tail(dup + i, b, n - i);
    }
}

INLINE vec gelu_sigmoid(vec x)
{
    return sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
}

static void geglu(const float *gate, const float *up, float *y, size_t n)
{
    size_t i = 0;
    for (; i + W <= n; i += W)
        store(y + i, load(gate + i) * gelu_sigmoid(load(gate + i)) * load(up + i));
    if (i < n) {
        vec g = load_tail(gate + i, n - i);
        store_tail(y + i, g * gelu_sigmoid(g) * load_tail(up + i, n - i), n - i);
    }
}

INLINE void geglu_back_vec(vec g, vec u, vec d, vec *dgate, vec *dup)
{
    vec s = gelu_sigmoid(g);
    *dgate = d * u * s * (1.0f + g * (1.0f - s) * (1.5957691216f * (1.0f + 0.134145f * g * g)));
    *dup = d * g * s;
}

static void geglu_back(const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n)
{
    vec a, b;
    size_t i = 0;
    for (; i + W <= n; i += W) {
        geglu_back_vec(load(gate + i), load(up + i), load(dy + i), &a, &b);
        store(dgate + i, a);
        store(dup + i, b);
    }
    if (i < n) {
        geglu_back_vec(load_tail(gate + i, n - i), load_tail(up + i, n - i), load_tail(dy + i, n - i), &a, &b);
        store_tail(dgate + i, a, n - i);
        store_tail(dup + i, b, n - i);
    }
}

/* cap tanh(x / cap), tanh(u) = 2 / (1 + e^-2u) - 1. */
static void soft_cap(float *x, size_t n, float cap)
{
    size_t i = 0;
    for (; i + W <= n; i += W)
        store(x + i, cap * (2.0f * sigmoid(load(x + i) * (2 / cap)) - 1.0f));
    if (i < n)
        store_tail(x + i, cap * (2.0f * sigmoid(load_tail(x + i, n - i) * (2 / cap)) - 1.0f), n - i);
}

/* ---- softmax ------------------------------------------------------------------------------------------------------------------ */

/* A NaN in x may be passed over here; the sum of exponentials then is NaN, which callers see. */
static float row_max(const float *x, int n)
{
    float m = x[0];
    int i = 0;
    if (n >= W) {
        vec v = load(x);
        for (i = W; i + W <= n; i += W)
            v = vec_max(load(x + i), v);
        for (int l = 0; l < W; l++)
            m = v[l] > m ? v[l] : m;
    }
    for (; i < n; i++)
        m = x[i] > m ? x[i] : m;
    return m;
}

static float exp_shift(float *x, int n, float shift)
{
    vec sum = {0};
    int i = 0;
    for (; i + W <= n; i += W) {
        vec e = vec_exp(load(x + i) - shift);
        store(x + i, e);
        sum += e;
    }
    float s = total(sum);
    if (i < n) {
        store_tail(x + i, vec_exp(load_tail(x + i, (size_t)(n - i)) - shift), (size_t)(n - i));
        for (; i < n; i++)
            s += x[i];
    }
    return s;
}

static void softmax_back(const float *p, float *dp, int n, float scale)
{
    float delta = dot(p, dp, n);
    for (int i = 0; i < n; i++)
        dp[i] = p[i] * (dp[i] - delta) * scale;
}

static void log_softmax_pick(const float *logits, const int32_t *target, int T, int V, float *logprob, float *logsum)
{
    for (int t = 0; t < T; t++, logits += V) {
        float max = row_max(logits, V);
        vec s0 = {0}, s1 = {0};
        int i = 0;
        for (; i + 2 * W <= V; i += 2 * W) {
            s0 += vec_exp(load(logits + i) - max);
            s1 += vec_exp(load(logits + i + W) - max);
        }
        double sum = (double)total(s0 + s1);
        for (; i < V; i++)
            sum += exp((double)logits[i] - max);
        logsum[t] = (float)(max + log(sum));
        logprob[t] = (float)(logits[target[t]] - max - log(sum));
    }
}

static void log_softmax_pick_back(float *logits, const int32_t *target, const float *logsum, const float *dlogprob, int T, int V)
{
    for (int t = 0; t < T; t++, logits += V) {
        float g = -dlogprob[t];
        int i = 0;
        for (; i + W <= V; i += W)
            store(logits + i, g * vec_exp(load(logits + i) - logsum[t]));
        if (i < V)
            store_tail(logits + i, g * vec_exp(load_tail(logits + i, (size_t)(V - i)) - logsum[t]), (size_t)(V - i));
        logits[target[t]] += dlogprob[t];
    }
}

/* ---- attention of one token ------------------------------------------------------------------------------------------------------ */

/* A row of keys holds all key heads: read in order, each row once. */
static void attend_scores(const es_attn *a, const float *q, const float *k, int n, float *s)
{
    const int D = a->head_dim, group = a->n_head / a->n_kv;
    const size_t row = (size_t)a->n_kv * (size_t)D;
    for (int j = 0; j < n; j++, k += row) {
        for (size_t i = 0; i < row; i += 16)
            __builtin_prefetch(k + 4 * row + i);
        for (int h = 0; h < a->n_head; h++)
            s[(size_t)h * (size_t)n + (size_t)j] = a->scale * dot(q + (size_t)h * (size_t)D, k + h / group * D, D);
    }
}

/* out[0..4W) += sum over m positions of p[j] * v[j]; the sums stay in registers. */
INLINE void add_values(const float *p, const float *v, size_t row, int m, float *out, const int vectors)
{
    vec acc[4];
    for (int c = 0; c < vectors; c++)
        acc[c] = load(out + c * W);
    for (int j = 0; j < m; j++, v += row)
        for (int c = 0; c < vectors; c++)
            acc[c] += p[j] * load(v + c * W);
    for (int c = 0; c < vectors; c++)
        store(out + c * W, acc[c]);
}

static void attend_values(const es_attn *a, const float *s, const float *v, int n, float *out)
{
    enum { TILE = 32 }; /* positions whose values stay in the first-level cache while all heads use them */
    const int D = a->head_dim, group = a->n_head / a->n_kv;
    const size_t row = (size_t)a->n_kv * (size_t)D;
    for (int j = 0; j < n; j += TILE, v += TILE * row) {
        const int m = n - j < TILE ? n - j : TILE;
        for (size_t i = 0; i < (size_t)m * row; i += 16)
            __builtin_prefetch(v + TILE * row + i);
        for (int h = 0; h < a->n_head; h++) {
            const float *p = s + (size_t)h * (size_t)n + (size_t)j, *vh = v + h / group * D;
            float *o = out + (size_t)h * (size_t)D;
            int c = 0;
            for (; c + 4 * W <= D; c += 4 * W)
                add_values(p, vh + c, row, m, o + c, 4);
            for (; c + W <= D; c += W)
                add_values(p, vh + c, row, m, o + c, 1);
            for (; c < D; c++)
                for (int i = 0; i < m; i++)
                    o[c] += p[i] * vh[(size_t)i * row + (size_t)c];
        }
    }
}

#define ROW_OPS                                                                                                                  \
    .rmsnorm = rmsnorm, .rmsnorm_back = rmsnorm_back, .rope = rope, .swiglu = swiglu, .swiglu_back = swiglu_back,                \
    .geglu = geglu, .geglu_back = geglu_back, .soft_cap = soft_cap,                                                                  \
    .log_softmax_pick = log_softmax_pick, .log_softmax_pick_back = log_softmax_pick_back, .max = row_max, .exp_shift = exp_shift, \
    .softmax_back = softmax_back, .attend_scores = attend_scores, .attend_values = attend_values
