#include "coactive.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LIMIT = 16 << 20 };

struct es_coactive {
    int F;
    size_t limit;
    uint32_t below;       /* tokens whose hash is at most this are kept */
    size_t n_row, cap_row, n, cap;
    size_t *start;        /* [n_row + 1] */
    uint32_t *hash;       /* [n_row] */
    int32_t *feature;     /* [n] */
    float *value;
};

int es_coactive_open(es_coactive **out, int n_features, size_t limit, es_error *err)
{
    *out = es_calloc(1, sizeof **out);
    if (*out)
        (*out)->start = es_calloc(1, sizeof(size_t));
    if (!*out || !(*out)->start) {
        es_coactive_free(*out);
        *out = NULL;
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to correlate %d features", n_features);
    }
    (*out)->F = n_features;
    (*out)->limit = limit ? limit : LIMIT;
    (*out)->below = UINT32_MAX;
    return ES_OK;
}

void es_coactive_free(es_coactive *c)
{
    if (!c)
        return;
    free(c->start);
    free(c->hash);
    free(c->feature);
    free(c->value);
    free(c);
}

uint64_t es_coactive_tokens(const es_coactive *c)
{
    return c->n_row;
}

static uint32_t hash_of(uint64_t x) /* splitmix64's finaliser */
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(x >> 32 ^ x);
}

static void halve(es_coactive *c)
{
    size_t row = 0, at = 0;
    c->below /= 2;
    for (size_t r = 0; r < c->n_row; r++) {
        size_t from = c->start[r], n = c->start[r + 1] - from;
        if (c->hash[r] > c->below)
            continue;
        memmove(c->feature + at, c->feature + from, n * sizeof *c->feature);
        memmove(c->value + at, c->value + from, n * sizeof *c->value);
        c->hash[row] = c->hash[r];
        c->start[row++] = at; /* row <= r: start[r + 1] is still there */
        at += n;
    }
    c->start[row] = at;
    c->n_row = row;
    c->n = at;
}

static bool more(void **p, size_t n, size_t size)
{
    void *q = realloc(*p, n * size);
    if (q)
        *p = q;
    return q != NULL;
}

static bool room(es_coactive *c, size_t n)
{
    if (c->n_row == c->cap_row) {
        size_t cap = c->cap_row ? 2 * c->cap_row : 1024;
        if (!more((void **)&c->start, cap + 1, sizeof *c->start) || !more((void **)&c->hash, cap, sizeof *c->hash))
            return false;
        c->cap_row = cap;
    }
    if (c->n + n > c->cap) {
        size_t cap = c->cap * 2 > c->n + n ? c->cap * 2 : c->n + n + 4096;
        if (!more((void **)&c->feature, cap, sizeof *c->feature) || !more((void **)&c->value, cap, sizeof *c->value))
            return false;
        c->cap = cap;
    }
    return true;
}

int es_coactive_add(es_coactive *c, uint64_t token, const int32_t *feature, const float *value, size_t n, es_error *err)
{
    uint32_t hash = hash_of(token + 1);
    if (n > c->limit / 2)
        return es_fail(err, ES_ERR_LIMIT, "a token with %zu active features is too dense to correlate", n);
    while (c->n + n > c->limit)
        halve(c);
    if (hash > c->below)
        return ES_OK;
    if (!room(c, n))
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to correlate %d features", c->F);
    if (n) { /* the arrays of a token without features need not be there */
        memcpy(c->feature + c->n, feature, n * sizeof *feature);
        memcpy(c->value + c->n, value, n * sizeof *value);
    }
    c->n += n;
    c->hash[c->n_row] = hash;
    c->start[++c->n_row] = c->n;
    return ES_OK;
}

typedef struct job {
    const es_coactive *c;
    const size_t *first;  /* [F + 1]: a feature's places in row and at */
    const uint32_t *row;  /* tokens on which it is active, and its value there */
    const float *at;
    const double *sum, *square;
    float *together;      /* [parts, F] */
    uint16_t *times;      /* [parts, F], as many as it holds */
    int32_t *seen;        /* [parts, F] */
    int n;
    int32_t *feature;
    float *pearson, *cosine;
} job;

static void keep(const job *w, int j, int other, double r, double c)
{
    int32_t *id = w->feature + (size_t)j * (size_t)w->n;
    float *p = w->pearson + (size_t)j * (size_t)w->n, *q = w->cosine + (size_t)j * (size_t)w->n;
    int at = w->n;
    while (at > 0 && (id[at - 1] < 0 || (float)r > p[at - 1] || ((float)r == p[at - 1] && other < id[at - 1])))
        at--;
    if (at == w->n)
        return;
    for (int k = w->n - 1; k > at; k--) {
        id[k] = id[k - 1];
        p[k] = p[k - 1];
        q[k] = q[k - 1];
    }
    id[at] = other;
    p[at] = (float)r;
    q[at] = (float)c;
}

static void top_part(void *user, int part, int parts)
{
    const job *w = user;
    const es_coactive *c = w->c;
    size_t F = (size_t)c->F;
    float *together = w->together + (size_t)part * F;
    uint16_t *times = w->times + (size_t)part * F;
    int32_t *seen = w->seen + (size_t)part * F;
    double n = (double)c->n_row;
    for (int j = part; j < c->F; j += parts) {
        int n_seen = 0;
        for (size_t k = w->first[j]; k < w->first[j + 1]; k++)
            for (size_t i = c->start[w->row[k]]; i < c->start[w->row[k] + 1]; i++) {
                int32_t other = c->feature[i];
                if (!times[other])
                    seen[n_seen++] = other;
                times[other] = (uint16_t)(times[other] < UINT16_MAX ? times[other] + 1 : UINT16_MAX);
                together[other] += w->at[k] * c->value[i];
            }
        for (int k = 0; k < n_seen; k++) {
            int o = seen[k];
            double ab = (double)together[o], da = n * w->square[j] - w->sum[j] * w->sum[j], db = n * w->square[o] - w->sum[o] * w->sum[o];
            if (o != j && times[o] > 1 && da > 0 && db > 0)
                keep(w, j, o, (n * ab - w->sum[j] * w->sum[o]) / sqrt(da * db), ab / sqrt(w->square[j] * w->square[o]));
            together[o] = 0;
            times[o] = 0;
        }
    }
}

int es_coactive_top(es_coactive *c, es_pool *p, int n, int32_t *feature, float *pearson, float *cosine, es_error *err)
{
    size_t F = (size_t)c->F, parts = (size_t)es_pool_threads(p);
    size_t *first = es_calloc(F + 2, sizeof *first);
    uint32_t *row = es_calloc(c->n + 1, sizeof *row);
    float *at = es_calloc(c->n + 1, sizeof *at), *together = es_calloc(parts * F, sizeof *together);
    double *sum = es_calloc(2 * F, sizeof *sum);
    uint16_t *times = es_calloc(parts * F, sizeof *times);
    int32_t *seen = es_calloc(parts * F, sizeof *seen);
    int rc = first && row && at && together && sum && times && seen ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory to correlate %d features", c->F);
    if (!rc) {
        for (size_t i = 0; i < F * (size_t)n; i++) {
            feature[i] = -1;
            pearson[i] = cosine[i] = 0;
        }
        for (size_t i = 0; i < c->n; i++) {
            first[c->feature[i] + 2]++;
            sum[c->feature[i]] += (double)c->value[i];
            sum[F + (size_t)c->feature[i]] += (double)c->value[i] * (double)c->value[i];
        }
        for (size_t j = 0; j < F; j++)
            first[j + 2] += first[j + 1];
        for (size_t r = 0; r < c->n_row; r++) /* first[j + 1] runs from a feature's first place to its end */
            for (size_t i = c->start[r]; i < c->start[r + 1]; i++) {
                size_t to = first[c->feature[i] + 1]++;
                row[to] = (uint32_t)r;
                at[to] = c->value[i];
            }
        job w = {c, first, row, at, sum, sum + F, together, times, seen, n, feature, pearson, cosine};
        es_pool_run(p, top_part, &w);
    }
    void *all[] = {first, row, at, together, sum, times, seen};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    return rc;
}
