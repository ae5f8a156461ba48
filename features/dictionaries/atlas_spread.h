/* For the atlas: random places at which a feature is active, the same number from each interval of its activation, in one pass in which the largest
 * activation is not known yet. Each place has a random priority (a hash); places fall into eight equal bins of (0, range], each of which keeps those of
 * least priority, and when the range doubles, bins merge by two. In the end an interval takes those of least priority among the kept ones in it. */
#ifndef ES_ATLAS_SPREAD_H
#define ES_ATLAS_SPREAD_H

#include "dictionaries.h"

typedef struct es_place_at { /* a window of a harvest's ids */
    uint32_t priority;
    float v, max;  /* at `peak`; the largest in the window */
    uint64_t id;   /* first id */
    uint8_t n, peak;
} es_place_at;

typedef struct es_spread es_spread;
int es_spread_open(es_spread **out, size_t n_features, int per_interval, int window, es_error *err); /* ES_ERR_MEMORY */
void es_spread_free(es_spread *s);
/* Where a place of feature j with this activation and priority goes, with room for value[window] of 0..255; NULL: nowhere. range: a power of two that
 * only grows, at least v. */
es_place_at *es_spread_offer(es_spread *s, size_t j, float v, float range, uint32_t priority, uint8_t **value);
/* Interval i of (0, max] in ES_ATLAS_INTERVALS: at most per_interval places, the largest activation first. Returns how many. */
int es_spread_interval(const es_spread *s, size_t j, int i, float max, const es_place_at **place, const uint8_t **value);

#endif
