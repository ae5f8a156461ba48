/* titans (internal): an associative memory of fixed size on the residual after one layer, written by surprise.
 *
 * After Behrouz, Zhong & Mirrokni 2025, "Titans: Learning to Memorize at Test Time" (arXiv 2501.00663), equations 9 to 15, with a linear
 * memory M [d, d]. For a chunk of n tokens with keys k, values v (the paper's chunk-wise form, section 3.2):
 *     l = 1/n sum |M k_t - v_t|^2      S <- eta S - theta grad l      M <- (1 - alpha) M + S      y = M q
 * The paper learns its projections and its gates in an outer loop over pretraining. Here the model is frozen and there is none, so:
 *     k = q = unit((h - mu) / sd), mu and sd of each coordinate over neutral text: raw residuals share one large direction, and their keys
 *     would all be alike;
 *     theta, eta, alpha are constants, theta bounded;
 *     what v is is the writer's business (method_titans.c);
 *     the residual becomes h + gate * rms * y, rms the usual length of h, which makes gate a share. */
#ifndef ES_TITANS_H
#define ES_TITANS_H

#include "engine.h"

typedef struct es_titans_options {
    int layer;
    double theta, eta, alpha, gate; /* theta at most 0.5: l is at most 2-smooth for unit keys, so no step overshoots */
} es_titans_options;

typedef struct es_titans {
    es_titans_options o;
    int d;
    uint64_t writes;
    float *m, *s;        /* [d, d] */
    float *mu, *scale;   /* [d]; scale: 1/sd */
    float rms;           /* root mean square of |h| */
    float *q, *y, *t;    /* [d] scratch of the hook: one thread at a time */
    es_hook hook;
    es_arena arena;
} es_titans;

/* neutral: [n, d] residuals after the layer, for mu, sd and rms. n >= 2. */
int es_titans_new(es_titans **out, int d, const es_titans_options *o, const float *neutral, int n, es_error *err);
int es_titans_copy(es_titans **out, const es_titans *t, es_error *err);
void es_titans_free(es_titans *t);
void es_titans_key(const es_titans *t, const float *h, float *k); /* [d] */
/* One chunk; returns l before it. k, v: [n, d]. */
double es_titans_write(es_titans *t, const float *k, const float *v, int n);
void es_titans_read(const es_titans *t, const float *k, float *y); /* y[d] = M k */
/* The hook: h += gate rms M key(h), but for a sequence's first token, whose residual is out of proportion. */
void es_titans_forward(void *titans, float *h, const int *pos, int T, int d);
void es_titans_backward(void *titans, const float *h_in, float *dh, const int *pos, int T, int d);

#endif
