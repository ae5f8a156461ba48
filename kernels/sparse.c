/* The reference of sparse.h: plain loops, sums in double. It does make the T x F matrix, a token's row or a batch at a time. */
#include "sparse.h"

#include <math.h>
#include <stdlib.h>

#include "internal.h"

static double dot(const float *a, const float *b, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++)
        s += (double)a[i] * b[i];
    return s;
}

typedef struct kept {
    int32_t token, feature;
    float value;
} kept;

static int by_value(const void *pa, const void *pb)
{
    const kept *a = pa, *b = pb;
    if (a->value != b->value)
        return a->value > b->value ? -1 : 1;
    return a->token != b->token ? (a->token > b->token) - (a->token < b->token) : (a->feature > b->feature) - (a->feature < b->feature);
}

static int by_place(const void *pa, const void *pb)
{
    const kept *a = pa, *b = pb;
    return a->token != b->token ? (a->token > b->token) - (a->token < b->token) : (a->feature > b->feature) - (a->feature < b->feature);
}

/* What the rule lets through by itself: of ABOVE, all of it; of the others, what is above 0. */
static size_t candidates(const es_encoder *e, const float *x, int t, kept *to)
{
    size_t n = 0;
    for (int f = 0; f < e->F; f++) {
        const float z = (float)(dot(x + (size_t)t * (size_t)e->d, e->enc + (size_t)f * (size_t)e->d, e->d) + (e->bias ? e->bias[f] : 0));
        if (z > (e->keep == ES_KEEP_ABOVE && e->threshold ? e->threshold[f] : 0))
            to[n++] = (kept){t, f, z};
    }
    return n;
}

static void encode(es_pool *p, const es_encoder *e, const float *x, int T, const es_entries *out)
{
    (void)p;
    kept *all = malloc(((size_t)T * (size_t)e->F + 1) * sizeof *all);
    size_t n = 0;
    for (int t = 0; all && t < T; t++) {
        const size_t first = n;
        n += candidates(e, x, t, all + n);
        if (e->keep == ES_KEEP_TOKEN && n - first > (size_t)e->k) {
            qsort(all + first, n - first, sizeof *all, by_value);
            n = first + (size_t)e->k;
        }
    }
    if (e->keep == ES_KEEP_BATCH && n > (size_t)T * (size_t)e->k) {
        qsort(all, n, sizeof *all, by_value);
        n = (size_t)T * (size_t)e->k;
    }
    if (n) /* n > 0: all is not NULL */
        qsort(all, n, sizeof *all, by_place);
    out->count[1] = all ? (int32_t)n : INT32_MAX; /* no memory: as if there were no room */
    n = n < (size_t)out->cap ? n : (size_t)out->cap;
    out->count[0] = (int32_t)n;
    for (int t = 0; t <= T; t++)
        out->token_start[t] = 0;
    for (size_t i = 0; i < n; i++) {
        out->token[i] = all[i].token;
        out->feature[i] = all[i].feature;
        out->value[i] = all[i].value;
        out->token_start[all[i].token + 1]++;
    }
    for (int t = 0; t < T; t++)
        out->token_start[t + 1] += out->token_start[t];
    free(all);
}

static void index_features(es_pool *p, const es_entries *l, int T, int F)
{
    (void)p, (void)T;
    for (int f = 0; f <= F; f++)
        l->feature_start[f] = 0;
    for (int i = 0; i < l->count[0]; i++)
        l->feature_start[l->feature[i] + 1]++;
    for (int f = 0; f < F; f++)
        l->feature_start[f + 1] += l->feature_start[f];
    for (int i = 0; i < l->count[0]; i++) /* feature_start[f] walks to the end of f ... */
        l->by_feature[l->feature_start[l->feature[i]]++] = i;
    for (int f = F; f > 0; f--) /* ... and is moved back */
        l->feature_start[f] = l->feature_start[f - 1];
    l->feature_start[0] = 0;
}

static void decode(es_pool *p, const es_entries *l, const float *dec, const float *bias, int T, int d, float *out)
{
    (void)p;
    for (int t = 0; t < T; t++)
        for (int i = 0; i < d; i++) {
            double s = bias ? bias[i] : 0;
            for (int e = l->token_start[t]; e < l->token_start[t + 1]; e++)
                s += (double)l->value[e] * dec[(size_t)l->feature[e] * (size_t)d + (size_t)i];
            out[(size_t)t * (size_t)d + (size_t)i] = (float)s;
        }
}

static void value_back(es_pool *p, const es_entries *l, const float *rows, const float *dec, int T, int d, float scale, float *grad)
{
    (void)p, (void)T;
    for (int e = 0; e < l->count[0]; e++)
        grad[e] = (float)(scale * dot(rows + (size_t)l->token[e] * (size_t)d, dec + (size_t)l->feature[e] * (size_t)d, d));
}

static void feature_back(es_pool *p, const es_entries *l, const float *rows, const float *weight, int F, int d, float scale, float *dw, float *dbias)
{
    (void)p;
    for (int f = 0; f < F; f++)
        for (int e = l->feature_start[f]; e < l->feature_start[f + 1]; e++) {
            const int at = l->by_feature[e];
            const float w = scale * weight[at];
            for (int i = 0; rows && i < d; i++)
                dw[(size_t)f * (size_t)d + (size_t)i] += w * rows[(size_t)l->token[at] * (size_t)d + (size_t)i];
            if (dbias)
                dbias[f] += w;
        }
}

static void split(es_pool *p, const es_entries *l, const es_prefixes *by, int T, int32_t *token, int32_t *token_start)
{
    (void)p;
    for (int t = 0; t < T; t++)
        for (int g = 0, e = l->token_start[t]; g < by->n; g++) {
            token_start[t * by->n + g] = e;
            for (; e < l->token_start[t + 1] && l->feature[e] < by->end[g]; e++)
                token[e] = t * by->n + g;
        }
    token_start[T * by->n] = l->token_start[T];
}

static void prefix_errors(es_pool *p, const float *x, const es_prefixes *by, int T, int d, float *rows, float *last, float *sum)
{
    (void)p;
    for (size_t t = 0; t < (size_t)T; t++)
        for (size_t i = 0; i < (size_t)d; i++) {
            double error = x[t * (size_t)d + i], above = 0;
            float *at = rows + t * (size_t)by->n * (size_t)d + i;
            for (int g = 0; g < by->n; g++)
                at[g * d] = (float)(error -= at[g * d]);
            last[t * (size_t)d + i] = (float)error;
            for (int g = by->n - 1; g >= 0; g--)
                at[g * d] = (float)(above += at[g * d]);
            sum[t * (size_t)d + i] = (float)above;
        }
}

static void project_rows(es_pool *p, const float *w, float *g, int n, int d)
{
    (void)p;
    for (int r = 0; r < n; r++, w += d, g += d) {
        const double along = dot(g, w, d);
        for (int i = 0; i < d; i++)
            g[i] = (float)(g[i] - along * w[i]);
    }
}

static void unit_rows(es_pool *p, float *w, int n, int d)
{
    (void)p;
    for (int r = 0; r < n; r++, w += d) {
        const double size = sqrt(dot(w, w, d));
        for (int i = 0; size > 0 && i < d; i++)
            w[i] = (float)(w[i] / size);
    }
}

static const es_sparse_kernels table = {
    .name = "scalar",
    .encode = encode,
    .index = index_features,
    .decode = decode,
    .value_back = value_back,
    .feature_back = feature_back,
    .split = split,
    .prefix_errors = prefix_errors,
    .project_rows = project_rows,
    .unit_rows = unit_rows,
};

const es_sparse_kernels *es_sparse_scalar(void)
{
    return &table;
}
