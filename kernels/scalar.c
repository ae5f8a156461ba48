/* The reference: every op in its plainest form, sums in double. The fast tables are tested against this one, so it is written to
 * be read. It uses one thread and needs no scratch. */
#include <math.h>

#include "internal.h"

enum { MAX_BLOCK = 256, TOKENS = 32 /* a block of weights is dequantised once for this many tokens */ };

static double dot(const float *a, const float *b, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++)
        s += (double)a[i] * b[i];
    return s;
}

/* ---- products ------------------------------------------------------------------------------------------------------------ */

/* Elements per step of a row: whole blocks for the quantised types, up to MAX_BLOCK for the plain ones. */
static int step_of(const es_weight *w, int left)
{
    int block = es_type_get((int)w->type)->block;
    if (block > 1)
        return block;
    return left < MAX_BLOCK ? left : MAX_BLOCK;
}

static const char *row_of(const es_weight *w, int n, int k)
{
    return (const char *)w->data + (size_t)n * es_row_bytes(w->type, w->n_in) + es_row_bytes(w->type, k);
}

static void matmul(es_pool *p, const es_weight *w, const float *x, int T, float *y, bool accumulate, bool exact)
{
    (void)p, (void)exact;
    const int N = w->n_out, K = w->n_in;
    for (int n = 0; n < N; n++)
        for (int t0 = 0; t0 < T; t0 += TOKENS) {
            int t1 = t0 + TOKENS < T ? t0 + TOKENS : T;
            double sum[TOKENS] = {0};
            for (int k = 0, step; k < K; k += step) {
                float block[MAX_BLOCK];
                step = step_of(w, K - k);
                es_dequant(w->type, row_of(w, n, k), block, (size_t)step);
                for (int t = t0; t < t1; t++)
                    sum[t - t0] += dot(x + (size_t)t * (size_t)K + k, block, step);
            }
            for (int t = t0; t < t1; t++) {
                float *out = &y[(size_t)t * (size_t)N + n];
                *out = (float)(sum[t - t0] + (accumulate ? *out : 0));
            }
        }
}

static void matmuls(es_pool *p, const es_weight *const *w, int n, const float *x, int T, float *const *y, bool exact)
{
    for (int i = 0; i < n; i++)
        matmul(p, w[i], x, T, y[i], false, exact);
}

static void matmul_back(es_pool *p, const es_weight *w, const float *dy, int T, float *dx, bool accumulate)
{
    (void)p;
    const int N = w->n_out, K = w->n_in;
    for (int k = 0, step; k < K; k += step) {
        step = step_of(w, K - k);
        for (int t0 = 0; t0 < T; t0 += TOKENS) {
            int t1 = t0 + TOKENS < T ? t0 + TOKENS : T;
            double sum[TOKENS][MAX_BLOCK] = {{0}};
            for (int n = 0; n < N; n++) {
                float block[MAX_BLOCK];
                es_dequant(w->type, row_of(w, n, k), block, (size_t)step);
                for (int t = t0; t < t1; t++) {
                    double g = dy[(size_t)t * (size_t)N + n];
                    for (int i = 0; i < step; i++)
                        sum[t - t0][i] += g * block[i];
                }
            }
            for (int t = t0; t < t1; t++)
                for (int i = 0; i < step; i++) {
                    float *out = &dx[(size_t)t * (size_t)K + k + i];
                    *out = (float)(sum[t - t0][i] + (accumulate ? *out : 0));
                }
        }
    }
}

static void gemm(es_pool *p, bool ta, bool tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb,
                 float beta, float *c, int ldc)
{
    (void)p;
    const size_t as = (size_t)lda, bs = (size_t)ldb;
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double s = 0;
            for (int l = 0; l < k; l++)
                s += (double)(ta ? a[(size_t)l * as + i] : a[(size_t)i * as + l]) *
                     (tb ? b[(size_t)j * bs + l] : b[(size_t)l * bs + j]);
            float *out = &c[(size_t)i * (size_t)ldc + j];
            *out = (float)(alpha * s + (beta != 0 ? (double)beta * *out : 0)); /* beta 0: c may be uninitialised */
        }
}

/* ---- rows -------------------------------------------------------------------------------------------------------------------- */

static void rmsnorm(es_pool *p, const float *x, const float *w, float *y, int T, int d, float eps)
{
    (void)p;
    for (int t = 0; t < T; t++, x += d, y += d) {
        double r = 1 / sqrt(dot(x, x, d) / d + eps);
        for (int i = 0; i < d; i++)
            y[i] = (float)(x[i] * r * w[i]);
    }
}

/* y_i = x_i r w_i with r = (mean(x^2) + eps)^-1/2 and dr/dx_i = -r^3 x_i / d, so
 * dx_i = r w_i dy_i - x_i (r^3 / d) sum_j dy_j w_j x_j. */
static void rmsnorm_back(es_pool *p, const float *x, const float *w, const float *dy, float *dx, int T, int d, float eps)
{
    (void)p;
    for (int t = 0; t < T; t++, x += d, dy += d, dx += d) {
        double r = 1 / sqrt(dot(x, x, d) / d + eps), s = 0;
        for (int i = 0; i < d; i++)
            s += (double)dy[i] * w[i] * x[i];
        for (int i = 0; i < d; i++)
            dx[i] = (float)(dx[i] + r * w[i] * dy[i] - x[i] * (r * r * r / d) * s);
    }
}

static void rope(es_pool *p, float *x, const int *pos, const float *cos_t, const float *sin_t, int T, int n_head, int head_dim,
                 bool neox, bool back)
{
    (void)p;
    const int half = head_dim / 2;
    for (int t = 0; t < T; t++) {
        const float *c = cos_t + (size_t)pos[t] * (size_t)half, *s = sin_t + (size_t)pos[t] * (size_t)half;
        for (int h = 0; h < n_head; h++, x += head_dim)
            for (int i = 0; i < half; i++) {
                float *a = neox ? &x[i] : &x[2 * i], *b = neox ? &x[i + half] : &x[2 * i + 1];
                float a0 = *a, b0 = *b, sine = back ? -s[i] : s[i];
                *a = a0 * c[i] - b0 * sine;
                *b = a0 * sine + b0 * c[i];
            }
    }
}

/* silu(g) = g / (1 + e^-g). */
static void swiglu(es_pool *p, const float *gate, const float *up, float *y, size_t n)
{
    (void)p;
    for (size_t i = 0; i < n; i++)
        y[i] = (float)(gate[i] / (1 + exp(-(double)gate[i])) * up[i]);
}

/* With s = 1 / (1 + e^-g): d silu / dg = s (1 + g (1 - s)). */
static void swiglu_back(es_pool *p, const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n)
{
    (void)p;
    for (size_t i = 0; i < n; i++) {
        double g = gate[i], s = 1 / (1 + exp(-g)), u = up[i], d = dy[i]; /* read first: outputs may lie on the inputs */
        dgate[i] = (float)(d * u * s * (1 + g * (1 - s)));
        dup[i] = (float)(d * g * s);
    }
}

/* x/2 (1 + tanh u) = x / (1 + e^-2u), so with u' = du/dx and s = 1 / (1 + e^-2u): d gelu / dx = s + 2 x u' s (1 - s). */
static double gelu_sigmoid(double x)
{
    return 1 / (1 + exp(-2 * 0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

static void geglu(es_pool *p, const float *gate, const float *up, float *y, size_t n)
{
    (void)p;
    for (size_t i = 0; i < n; i++)
        y[i] = (float)(gate[i] * gelu_sigmoid(gate[i]) * up[i]);
}

static void geglu_back(es_pool *p, const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n)
{
    (void)p;
    for (size_t i = 0; i < n; i++) {
        double g = gate[i], s = gelu_sigmoid(g), slope = 0.7978845608028654 * (1 + 3 * 0.044715 * g * g), u = up[i], d = dy[i];
        dgate[i] = (float)(d * u * (s + 2 * g * slope * s * (1 - s)));
        dup[i] = (float)(d * g * s);
    }
}

static void soft_cap(es_pool *p, float *x, size_t n, float cap)
{
    (void)p;
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(cap * tanh((double)x[i] / cap));
}

/* ---- attention ---------------------------------------------------------------------------------------------------------------- */

static double attention_score(const es_attn *a, const float *q, const float *k)
{
    double s = a->scale * dot(q, k, a->head_dim);
    return a->cap > 0 ? a->cap * tanh(s / a->cap) : s;
}

/* The probabilities of one query row over keys first .. n-1 are p_j = exp(score_j - logsum): this gives logsum. Nothing of length
 * n is stored: scores are computed anew where they are needed. */
static double attention_logsum(const es_attn *a, const float *q, const float *k, int first, int n)
{
    const size_t row = (size_t)a->n_kv * (size_t)a->head_dim;
    double max = -INFINITY, sum = 0;
    for (int j = first; j < n; j++)
        max = fmax(max, attention_score(a, q, k + (size_t)j * row));
    for (int j = first; j < n; j++)
        sum += exp(attention_score(a, q, k + (size_t)j * row) - max);
    return max + log(sum);
}

/* Query head h reads key and value head h / (n_head / n_kv). */
static void attention(es_pool *p, const es_attn *a, const float *q, const float *k, const float *v, float *out)
{
    (void)p;
    const int D = a->head_dim, group = a->n_head / a->n_kv;
    const size_t row = (size_t)a->n_kv * (size_t)D;
    for (int t = 0; t < a->T; t++)
        for (int h = 0; h < a->n_head; h++, q += D, out += D) {
            const float *kh = k + h / group * D, *vh = v + h / group * D;
            const int n = a->pos0 + t + 1, first = es_attn_first(a, n - 1);
            const double logsum = attention_logsum(a, q, kh, first, n);
            for (int c = 0; c < D; c += 64) { /* the output row in pieces whose sums fit in sum[] */
                double sum[64] = {0};
                int width = D - c < 64 ? D - c : 64;
                for (int j = first; j < n; j++) {
                    double prob = exp(attention_score(a, q, kh + (size_t)j * row) - logsum);
                    for (int i = 0; i < width; i++)
                        sum[i] += prob * vh[(size_t)j * row + (size_t)(c + i)];
                }
                for (int i = 0; i < width; i++)
                    out[c + i] = (float)sum[i];
            }
        }
}

/* Half precision, read as it lies: one query row at a time over its keys, with a running maximum and sum (Milakov & Gimelshein 2018,
 * arXiv 1805.02867): what was summed so far shrinks by e^(old maximum - new). The output in pieces that fit in sum[]. */
static void attend_half(const es_attn *a, const float *q, const uint16_t *k, const uint16_t *v, int pos, float *out)
{
    const size_t row = (size_t)a->n_kv * (size_t)a->head_dim;
    for (int c = 0; c < a->head_dim; c += 64) {
        double sum[64] = {0}, weight = 0, max = -INFINITY;
        const int width = a->head_dim - c < 64 ? a->head_dim - c : 64;
        for (int j = es_attn_first(a, pos); j <= pos; j++) {
            double s = 0;
            float f;
            for (int i = 0; i < a->head_dim; i++) {
                es_f16_to_f32(k + (size_t)j * row + i, &f, 1);
                s += (double)q[i] * f;
            }
            s *= a->scale;
            s = a->cap > 0 ? a->cap * tanh(s / a->cap) : s;
            const double most = fmax(max, s), shrink = exp(max - most), prob = exp(s - most);
            max = most;
            weight = weight * shrink + prob;
            for (int i = 0; i < width; i++) {
                es_f16_to_f32(v + (size_t)j * row + c + i, &f, 1);
                sum[i] = sum[i] * shrink + prob * f;
            }
        }
        for (int i = 0; i < width; i++)
            out[c + i] = (float)(sum[i] / weight);
    }
}

static void attention_half(es_pool *p, const es_attn *a, int n_seq, const float *q, const uint16_t *const *k, const uint16_t *const *v,
                           float *out)
{
    (void)p;
    for (int s = 0; s < n_seq; s++, a++)
        for (int t = 0; t < a->T; t++)
            for (int h = 0; h < a->n_head; h++, q += a->head_dim, out += a->head_dim) {
                const int head = h / (a->n_head / a->n_kv) * a->head_dim;
                attend_half(a, q, k[s] + head, v[s] + head, a->pos0 + t, out);
            }
}

static void to_half(es_pool *p, const float *x, uint16_t *y, size_t n)
{
    (void)p;
    for (size_t i = 0; i < n; i++) {
        const float cut = x[i] > 65504 ? 65504 : x[i] < -65504 ? -65504 : x[i];
        es_f32_to_f16(&cut, &y[i], 1);
    }
}

/* o = sum_j p_j v_j and p = softmax(s), s_j = scale q.k_j. With g = dout:
 * dv_j += p_j g;  dp_j = g.v_j;  ds_j = p_j (dp_j - sum_i p_i dp_i), and sum_i p_i dp_i = g.o;
 * dq = scale sum_j ds_j k_j;  dk_j += scale ds_j q. A capped score's slope is 1 - (score / cap)^2, which ds is multiplied with. */
static void attention_back(es_pool *p, const es_attn *a, const float *q, const float *k, const float *v, const float *dout,
                           float *dq, float *dk, float *dv)
{
    (void)p;
    const int D = a->head_dim, group = a->n_head / a->n_kv;
    const size_t row = (size_t)a->n_kv * (size_t)D;
    for (size_t i = 0; i < (size_t)a->T * row; i++)
        dk[i] = dv[i] = 0;
    for (int t = 0; t < a->T; t++)
        for (int h = 0; h < a->n_head; h++, q += D, dout += D, dq += D) {
            const int n = t + 1, first = es_attn_first(a, t);
            const size_t head = (size_t)(h / group * D);
            const double logsum = attention_logsum(a, q, k + head, first, n);
            double delta = 0;
            for (int j = first; j < n; j++)
                delta += exp(attention_score(a, q, k + (size_t)j * row + head) - logsum) * dot(dout, v + (size_t)j * row + head, D);
            for (int i = 0; i < D; i++)
                dq[i] = 0;
            for (int j = first; j < n; j++) {
                const size_t at = (size_t)j * row + head;
                double score = attention_score(a, q, k + at), prob = exp(score - logsum);
                double ds = a->scale * prob * (dot(dout, v + at, D) - delta);
                if (a->cap > 0)
                    ds *= 1 - score / a->cap * (score / a->cap);
                for (int i = 0; i < D; i++) {
                    dv[at + (size_t)i] += (float)(prob * dout[i]);
                    dq[i] += (float)(ds * k[at + (size_t)i]);
                    dk[at + (size_t)i] += (float)(ds * q[i]);
                }
            }
        }
}

/* ---- the loss ------------------------------------------------------------------------------------------------------------------- */

static void log_softmax_pick(es_pool *p, const float *logits, const int32_t *target, int T, int V, float *logprob, float *logsum)
{
    (void)p;
    for (int t = 0; t < T; t++, logits += V) {
        float max = -INFINITY; /* not double: GCC 12 for 64-bit ARM crashes on a reduction that widens */
        double sum = 0;
        for (int i = 0; i < V; i++)
            max = fmaxf(max, logits[i]);
        for (int i = 0; i < V; i++)
            sum += exp((double)logits[i] - max);
        logsum[t] = (float)(max + log(sum));
        logprob[t] = (float)(logits[target[t]] - (max + log(sum)));
    }
}

static void log_softmax_pick_back(es_pool *p, float *logits, const int32_t *target, const float *logsum, const float *dlogprob,
                                  int T, int V)
{
    (void)p;
    for (int t = 0; t < T; t++, logits += V) {
        for (int i = 0; i < V; i++)
            logits[i] = (float)(-dlogprob[t] * exp((double)logits[i] - logsum[t]));
        logits[target[t]] += dlogprob[t];
    }
}

static const es_kernels table = {
    .name = "scalar",
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
    .attention = attention,
    .attention_half = attention_half,
    .to_half = to_half,
    .attention_back = attention_back,
    .log_softmax_pick = log_softmax_pick,
    .log_softmax_pick_back = log_softmax_pick_back,
};

const es_kernels *es_kernels_scalar(void)
{
    return &table;
}
