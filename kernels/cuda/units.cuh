// Quantised blocks as bytes, for products with activations of 16 bits by __dp4a (matmul.cuh). A unit is 64 elements of a row, which one lane takes: two runs of 32
// whose numbers are words of four signed bytes, and for each 16 elements w = d q + m. Scales are read once for all of them, and quants in words.
// Types of quant.c that have none of it (Q2_K, Q3_K, IQ4_NL, Q5_0, Q5_1) go by chunks of floats (blocks.cuh).
#ifndef ES_UNITS_CUH
#define ES_UNITS_CUH

#include "blocks.cuh"

struct es_unit {
    uint32_t q[16];   // of the first run of 32, then of the second
    float d[4], m[4]; // of each 16 elements
    int run[2];       // where they are: elements 32 run .. of the row
};

enum { ES_UNIT = 64 };

template <int T> struct es_units { enum { THERE = 0 }; };

// N words from p, which is aligned to 2 bytes: cut from those of the aligned memory. Of what lies behind them only what is asked for is read.
template <int N> static __device__ __forceinline__ void es_words(const uint8_t *p, uint32_t *out)
{
    const int off = (int)((size_t)p & 2);
    uint32_t w[N + 1];
#pragma unroll
    for (int i = 0; i < N; i++)
        w[i] = es_word4(p - off + 4 * i);
    w[N] = off ? *(const uint16_t *)(p + 4 * N - 2) : 0;
#pragma unroll
    for (int i = 0; i < N; i++)
        out[i] = __funnelshift_r(w[i], w[i + 1], 8 * off);
}

static __device__ __forceinline__ void es_words16(const uint8_t *p, uint32_t *out) // 8 words, p aligned to 16 bytes
{
    const uint4 a = *(const uint4 *)p, b = *(const uint4 *)(p + 16);
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

// Types of 32 elements: a unit is two blocks.
template <class B> struct es_small_units {
    enum { THERE = 1 };
    static __device__ __forceinline__ void unit(const uint8_t *row, int u, es_unit *out)
    {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint8_t *b = row + (size_t)(2 * u + i) * B::BYTES;
            float d, m;
            B::block(b, out->q + 8 * i, &d, &m);
            out->d[2 * i] = out->d[2 * i + 1] = d;
            out->m[2 * i] = out->m[2 * i + 1] = m;
            out->run[i] = 2 * u + i;
        }
    }
};

// 16 bytes of nibbles: elements 0 .. 15 in the low ones.
static __device__ __forceinline__ void es_nibbles(const uint8_t *p, uint32_t *q)
{
    uint32_t w[4];
    es_words<4>(p, w);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        q[i] = w[i] & 0x0f0f0f0fu;
        q[4 + i] = w[i] >> 4 & 0x0f0f0f0fu;
    }
}

struct es_q4_0_block {
    enum { BYTES = 18 };
    static __device__ __forceinline__ void block(const uint8_t *b, uint32_t *q, float *d, float *m)
    {
        es_nibbles(b + 2, q);
        *d = es_half_at(b);
        *m = -8 * *d;
    }
};
template <> struct es_units<ES_Q4_0> : es_small_units<es_q4_0_block> {};

struct es_q4_1_block {
    enum { BYTES = 20 };
    static __device__ __forceinline__ void block(const uint8_t *b, uint32_t *q, float *d, float *m)
    {
        es_nibbles(b + 4, q);
        *d = es_half_at(b);
        *m = es_half_at(b + 2);
    }
};
template <> struct es_units<ES_Q4_1> : es_small_units<es_q4_1_block> {};

struct es_q8_0_block {
    enum { BYTES = 34 };
    static __device__ __forceinline__ void block(const uint8_t *b, uint32_t *q, float *d, float *m)
    {
        es_words<8>(b + 2, q);
        *d = es_half_at(b);
        *m = 0;
    }
};
template <> struct es_units<ES_Q8_0> : es_small_units<es_q8_0_block> {};

// Q4_K and Q5_K: unit p of a block is its sub-blocks 2p and 2p + 1, in the low and the high nibbles of 32 bytes.
static __device__ __forceinline__ void es_k_scales(const uint8_t *b, int p, es_unit *out)
{
    const uint32_t halves = es_word4(b), w0 = es_word4(b + 4), w1 = es_word4(b + 8), w2 = es_word4(b + 12);
    const int shift = 16 * (p & 1);
    // two scales and two minima, a byte each, as es_scale_and_min has them
    const uint32_t low = w0 >> shift, middle = w1 >> shift, high = w2 >> shift;
    const uint32_t s = p < 2 ? low & 0x3f3fu : (high & 0x0f0fu) | (low >> 2 & 0x3030u);
    const uint32_t n = p < 2 ? middle & 0x3f3fu : (high >> 4 & 0x0f0fu) | (middle >> 2 & 0x3030u);
    union { uint16_t bits; __half h; } d, dmin;
    d.bits = (uint16_t)halves;
    dmin.bits = (uint16_t)(halves >> 16);
    const float fd = __half2float(d.h), fm = -__half2float(dmin.h);
    out->d[0] = out->d[1] = fd * (float)(s & 255);
    out->d[2] = out->d[3] = fd * (float)(s >> 8 & 255);
    out->m[0] = out->m[1] = fm * (float)(n & 255);
    out->m[2] = out->m[3] = fm * (float)(n >> 8 & 255);
}

template <> struct es_units<ES_Q4_K> {
    enum { THERE = 1 };
    static __device__ __forceinline__ void unit(const uint8_t *row, int u, es_unit *out)
    {
        const uint8_t *b = row + (size_t)(u / 4) * 144;
        uint32_t w[8];
        es_words16(b + 16 + 32 * (u % 4), w);
        es_k_scales(b, u % 4, out);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            out->q[i] = w[i] & 0x0f0f0f0fu;
            out->q[8 + i] = w[i] >> 4 & 0x0f0f0f0fu;
        }
        out->run[0] = 2 * u;
        out->run[1] = 2 * u + 1;
    }
};

template <> struct es_units<ES_Q5_K> {
    enum { THERE = 1 };
    static __device__ __forceinline__ void unit(const uint8_t *row, int u, es_unit *out)
    {
        const uint8_t *b = row + (size_t)(u / 4) * 176;
        uint32_t w[8], high[8];
        es_words16(b + 48 + 32 * (u % 4), w);
        es_words16(b + 16, high);
        es_k_scales(b, u % 4, out);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t h = high[i] >> 2 * (u % 4);
            out->q[i] = (w[i] & 0x0f0f0f0fu) | (h & 0x01010101u) << 4;
            out->q[8 + i] = (w[i] >> 4 & 0x0f0f0f0fu) | (h >> 1 & 0x01010101u) << 4;
        }
        out->run[0] = 2 * u;
        out->run[1] = 2 * u + 1;
    }
};

// Unit 2h + p of a block: elements 128 h + 32 p .. and the same 64 further on, from the low and the high nibbles of 32 bytes.
template <> struct es_units<ES_Q6_K> {
    enum { THERE = 1 };
    static __device__ __forceinline__ void unit(const uint8_t *row, int u, es_unit *out)
    {
        const uint8_t *b = row + (size_t)(u / 4) * 210;
        const int h = u / 2 % 2, p = u % 2;
        const int8_t *s = (const int8_t *)b + 192 + 8 * h + 2 * p;
        const float d = es_half_at(b + 208);
        uint32_t w[8], high[8];
        es_words<8>(b + 64 * h + 32 * p, w);
        es_words<8>(b + 128 + 32 * h, high);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t two = high[i] >> 2 * p;
            out->q[i] = (w[i] & 0x0f0f0f0fu) | (two & 0x03030303u) << 4;
            out->q[8 + i] = (w[i] >> 4 & 0x0f0f0f0fu) | (two >> 4 & 0x03030303u) << 4;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            out->d[i] = d * (float)s[i];
            out->d[2 + i] = d * (float)s[4 + i];
            out->m[i] = -32 * out->d[i];
            out->m[2 + i] = -32 * out->d[2 + i];
        }
        out->run[0] = u / 4 * 8 + 4 * h + p;
        out->run[1] = out->run[0] + 2;
    }
};

#endif
