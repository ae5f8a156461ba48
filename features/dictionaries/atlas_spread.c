#include "atlas_spread.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BINS = 8 };

struct es_spread {
    size_t F;
    int per, keep, window; /* keep: in a bin, some more than an interval takes, for bins that two intervals share */
    float *range;       /* [F], 0: nothing yet */
    uint8_t *n;         /* [F, BINS] */
    es_place_at *place; /* [F, BINS, keep] */
    uint8_t *value;     /* [F, BINS, keep, window] */
};

int es_spread_open(es_spread **out, size_t n_features, int per_interval, int window, es_error *err)
{
    es_spread *s = *out = es_calloc(1, sizeof *s);
    if (s) {
        *s = (es_spread){.F = n_features, .per = per_interval, .keep = per_interval + 2, .window = window};
        size_t cells = n_features * BINS * (size_t)s->keep;
        s->range = es_calloc(n_features, sizeof *s->range);
        s->n = es_calloc(n_features * BINS, 1);
        s->place = es_calloc(cells, sizeof *s->place);
        s->value = es_calloc(cells, (size_t)window);
    }
    if (s && s->range && s->n && s->place && s->value)
        return ES_OK;
    es_spread_free(s);
    *out = NULL;
    return es_fail(err, ES_ERR_MEMORY, "not enough memory for the examples of %zu features", n_features);
}

void es_spread_free(es_spread *s)
{
    if (!s)
        return;
    free(s->range);
    free(s->n);
    free(s->place);
    free(s->value);
    free(s);
}

static size_t cell(const es_spread *s, size_t j, int bin, int k)
{
    return (j * BINS + (size_t)bin) * (size_t)s->keep + (size_t)k;
}

/* The place in a bin for this priority: a free one, that of the greatest priority when that is greater, or -1. */
static int slot(es_spread *s, size_t j, int bin, uint32_t priority)
{
    uint8_t *n = &s->n[j * BINS + (size_t)bin];
    if (*n < s->keep)
        return (*n)++;
    int worst = 0;
    for (int k = 1; k < s->keep; k++)
        if (s->place[cell(s, j, bin, k)].priority > s->place[cell(s, j, bin, worst)].priority)
            worst = k;
    return s->place[cell(s, j, bin, worst)].priority > priority ? worst : -1;
}

static void copy(es_spread *s, size_t from, size_t to)
{
    s->place[to] = s->place[from];
    memcpy(s->value + to * (size_t)s->window, s->value + from * (size_t)s->window, (size_t)s->window);
}

/* Bins 2i and 2i + 1 become bin i. */
static void widen(es_spread *s, size_t j)
{
    uint8_t *n = s->n + j * BINS;
    for (int bin = 0; bin < BINS; bin++) {
        int to = bin / 2, had = n[bin];
        if (bin == 0)
            continue;
        if (bin % 2 == 0) { /* into an empty one */
            for (int k = 0; k < had; k++)
                copy(s, cell(s, j, bin, k), cell(s, j, to, k));
            n[to] = (uint8_t)had;
        } else {
            for (int k = 0; k < had; k++) {
                int at = slot(s, j, to, s->place[cell(s, j, bin, k)].priority);
                if (at >= 0)
                    copy(s, cell(s, j, bin, k), cell(s, j, to, at));
            }
        }
        if (bin != to)
            n[bin] = 0;
    }
    s->range[j] *= 2;
}

es_place_at *es_spread_offer(es_spread *s, size_t j, float v, float range, uint32_t priority, uint8_t **value)
{
    if (s->range[j] <= 0)
        s->range[j] = range;
    while (s->range[j] < range)
        widen(s, j);
    int bin = (int)ceilf(v / s->range[j] * BINS) - 1;
    bin = bin < 0 ? 0 : bin >= BINS ? BINS - 1 : bin;
    int at = slot(s, j, bin, priority);
    if (at < 0)
        return NULL;
    size_t c = cell(s, j, bin, at);
    *value = s->value + c * (size_t)s->window;
    return &s->place[c];
}

int es_spread_interval(const es_spread *s, size_t j, int i, float max, const es_place_at **place, const uint8_t **value)
{
    int n = 0;
    float lo = max * (float)i / ES_ATLAS_INTERVALS, hi = i == ES_ATLAS_INTERVALS - 1 ? INFINITY : max * (float)(i + 1) / ES_ATLAS_INTERVALS;
    for (int bin = 0; bin < BINS; bin++)
        for (int k = 0; k < s->n[j * BINS + (size_t)bin]; k++) { /* those of least priority, in rising order of it */
            const es_place_at *p = &s->place[cell(s, j, bin, k)];
            if (!(p->v > lo && p->v <= hi) || (n == s->per && p->priority >= place[n - 1]->priority))
                continue;
            int at = n < s->per ? n++ : n - 1;
            for (; at > 0 && place[at - 1]->priority > p->priority; at--)
                place[at] = place[at - 1];
            place[at] = p;
        }
    for (int a = 1; a < n; a++) /* then the strongest first */
        for (int b = a; b > 0 && place[b]->v > place[b - 1]->v; b--) {
            const es_place_at *p = place[b];
            place[b] = place[b - 1];
            place[b - 1] = p;
        }
    for (int k = 0; k < n; k++)
        value[k] = s->value + (size_t)(place[k] - s->place) * (size_t)s->window;
    return n;
}
