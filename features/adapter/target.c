#include "target.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *es_distil_name(es_distil_loss k)
{
    return k == ES_DISTIL_SAMPLED ? "sampled" : k == ES_DISTIL_TOP ? "top-20" : k == ES_DISTIL_FULL ? "forward" : "?";
}

bool es_distil_named(const char *name, es_distil_loss *out)
{
    for (es_distil_loss k = ES_DISTIL_SAMPLED; k <= ES_DISTIL_FULL; k++)
        if (!strcmp(name, es_distil_name(k))) {
            *out = k;
            return true;
        }
    return false;
}

/* ---- targets ---------------------------------------------------------------------------------------------------------------------- */

void es_target_free(es_target *t)
{
    free(t->sampled);
    free(t->top);
    free(t->top_logprob);
    free(t->full);
    *t = (es_target){0};
}

int es_target_counted(const es_target *t)
{
    return t->n > t->masked ? t->n - t->masked : 0;
}

size_t es_target_bytes(const es_target *t)
{
    size_t n = (size_t)t->n;
    return n * sizeof *t->sampled + (t->top ? n * (size_t)t->top_n * (sizeof *t->top + sizeof *t->top_logprob) : 0) +
           (t->full ? n * (size_t)t->n_vocab * sizeof *t->full : 0);
}

static double log_sum(const float *x, int n)
{
    double most = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++)
        most = x[i] > most ? x[i] : most;
    for (int i = 0; i < n; i++)
        sum += exp(x[i] - most);
    return most + log(sum);
}

static void take_top(es_target *t, int i, const float *logits, double lse)
{
    int32_t *id = t->top + (size_t)i * (size_t)t->top_n;
    float *lp = t->top_logprob + (size_t)i * (size_t)t->top_n;
    int have = 0;
    for (int v = 0; v < t->n_vocab; v++) {
        float x = (float)(logits[v] - lse);
        if (have == t->top_n && x <= lp[have - 1])
            continue;
        int at = have < t->top_n ? have++ : have - 1;
        for (; at > 0 && lp[at - 1] < x; at--) {
            lp[at] = lp[at - 1];
            id[at] = id[at - 1];
        }
        lp[at] = x;
        id[at] = v;
    }
}

static int target_alloc(es_target *t, es_error *err)
{
    size_t n = (size_t)t->n;
    bool top = t->loss == ES_DISTIL_TOP, full = t->loss == ES_DISTIL_FULL;
    t->sampled = es_calloc(n, sizeof *t->sampled);
    if (top) {
        t->top = es_calloc(n * (size_t)t->top_n, sizeof *t->top);
        t->top_logprob = es_calloc(n * (size_t)t->top_n, sizeof *t->top_logprob);
    }
    if (full)
        t->full = es_calloc(n * (size_t)t->n_vocab, sizeof *t->full);
    if (t->sampled && (!top || (t->top && t->top_logprob)) && (!full || t->full))
        return ES_OK;
    int n_reply = t->n;
    es_target_free(t);
    return es_fail(err, ES_ERR_MEMORY, "no memory for a teacher's distributions of %d tokens", n_reply);
}

int es_target_open(es_target *t, es_distil_loss loss, int n, int n_vocab, int masked, es_error *err)
{
    *t = (es_target){.loss = loss, .n = n, .n_vocab = n_vocab, .masked = masked,
                     .top_n = n_vocab < ES_DISTIL_TOP_N ? n_vocab : ES_DISTIL_TOP_N};
    if (loss < ES_DISTIL_SAMPLED || loss > ES_DISTIL_FULL || n < 1)
        return es_fail(err, ES_ERR_USAGE, "there is no loss %d for %d tokens", (int)loss, n);
    return target_alloc(t, err);
}

void es_target_row(es_target *t, int i, int32_t token, const float *logits)
{
    double lse = log_sum(logits, t->n_vocab);
    t->sampled[i] = (float)(logits[token] - lse);
    if (t->top)
        take_top(t, i, logits, lse);
    for (int v = 0; t->full && v < t->n_vocab; v++)
        t->full[(size_t)i * (size_t)t->n_vocab + (size_t)v] = (float)(logits[v] - lse);
}

int es_target_make(es_target *out, es_distil_loss loss, int n, int n_vocab, const int32_t *token, const float *logits, int masked, es_error *err)
{
    int rc = es_target_open(out, loss, n, n_vocab, masked, err);
    for (int i = 0; !rc && i < n; i++)
        es_target_row(out, i, token[i], logits + (size_t)i * (size_t)n_vocab);
    return rc;
}

/* ---- losses ----------------------------------------------------------------------------------------------------------------------- */

static double safe_log(double p)
{
    return log(p > 1e-30 ? p : 1e-30);
}

static double sampled(const es_target *t, int i, int32_t token, const float *p, double scale, float *dl)
{
    double ratio = safe_log(p[token]) - t->sampled[i]; /* minus the advantage */
    if (dl) {
        for (int v = 0; v < t->n_vocab; v++)
            dl[v] -= (float)(scale * ratio * p[v]);
        dl[token] += (float)(scale * ratio);
    }
    return scale * ratio;
}

/* L = sum_b P_b r_b, r_b = log(P_b/Q_b), P_b the student's mass in bucket b: dL/dz_j = p_j (r_b(j) - L). */
static double top(const es_target *t, int i, const float *p, double scale, float *dl)
{
    const int32_t *id = t->top + (size_t)i * (size_t)t->top_n;
    const float *lq = t->top_logprob + (size_t)i * (size_t)t->top_n;
    double loss = 0, P = 1, Q = 1, r[ES_DISTIL_TOP_N], rest = 0;
    for (int b = 0; b < t->top_n; b++) {
        r[b] = safe_log(p[id[b]]) - lq[b];
        loss += p[id[b]] * r[b];
        P -= p[id[b]];
        Q -= exp(lq[b]);
    }
    if (t->top_n < t->n_vocab) {
        P = fmax(P, 0);
        rest = log(fmax(P, 1e-9)) - log(fmax(Q, 1e-9)); /* below 1e-9 either is rounding */
        loss += P * rest;
    }
    if (dl) {
        double other = scale * (rest - loss);
        for (int v = 0; v < t->n_vocab; v++)
            dl[v] += (float)(other * p[v]);
        for (int b = 0; b < t->top_n; b++)
            dl[id[b]] += (float)(scale * p[id[b]] * (r[b] - rest));
    }
    return scale * loss;
}

static double forward(const es_target *t, int i, const float *p, double scale, float *dl)
{
    const float *lq = t->full + (size_t)i * (size_t)t->n_vocab;
    double loss = 0;
    for (int v = 0; v < t->n_vocab; v++) {
        double q = exp(lq[v]);
        if (q > 1e-12)
            loss += q * (lq[v] - safe_log(p[v]));
        if (dl)
            dl[v] += (float)(scale * (p[v] - q));
    }
    return scale * loss;
}

double es_distil_token(const es_target *t, int i, int32_t token, const float *p, double scale, float *dl)
{
    if (i < t->masked)
        return 0;
    return t->loss == ES_DISTIL_SAMPLED ? sampled(t, i, token, p, scale, dl) : t->loss == ES_DISTIL_TOP ? top(t, i, p, scale, dl) : forward(t, i, p, scale, dl);
}
