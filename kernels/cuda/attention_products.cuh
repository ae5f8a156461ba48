// attention_products.cu: attention by strips of scores and products on tensor cores. false: not for this pool, or not worth it; nothing was done.
#ifndef ES_ATTENTION_PRODUCTS_CUH
#define ES_ATTENTION_PRODUCTS_CUH

#include "device.cuh"

// k and v: f32, or half precision.
bool es_attention_by_products(es_stream *s, const es_attn *a, const float *q, const void *k, const void *v, bool half, float *out);
bool es_attention_back_by_products(es_stream *s, const es_attn *a, const float *q, const float *k, const float *v, const float *dout, float *dq,
                                   float *dk, float *dv);

#endif
