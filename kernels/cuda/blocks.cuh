// Quantised blocks on the card, as they lie in the file (quant.c has the layouts). They are read in chunks of 8 elements, one a lane:
// two runs of 4 elements, at e0 and e1 within the row, because the nibbles of one byte stand for elements that lie apart. So a warp reads
// 256 elements of a row in one turn, whatever the type, its loads side by side, and the activations in pieces of 16 bytes.
#ifndef ES_BLOCKS_CUH
#define ES_BLOCKS_CUH

#include "device.cuh"

struct es_chunk {
    float w[8];
    int e0, e1;
};

// Blocks are as little aligned as their size is: 2 bytes for most.
static __device__ __forceinline__ uint32_t es_word2(const uint8_t *p)
{
    const uint16_t *h = (const uint16_t *)p;
    return h[0] | (uint32_t)h[1] << 16;
}

static __device__ __forceinline__ uint32_t es_word4(const uint8_t *p)
{
    return *(const uint32_t *)p;
}

static __device__ __forceinline__ float es_half_at(const uint8_t *p)
{
    return __half2float(*(const __half *)p);
}

// Byte i < 4 of a word.
static __device__ __forceinline__ int es_byte(uint32_t word, int i)
{
    return word >> 8 * i & 255;
}

// What the blocks of type T are: elements and bytes of a block, and chunk c of a row. Plain types are blocks of 8 here, and have a single
// element as well, for rows that are no multiple of 8.
template <int T> struct es_blocks;

template <class F> struct es_plain_blocks {
    enum { BLOCK = 8, BYTES = 8 * sizeof(F), PLAIN = 1 };
    static __device__ __forceinline__ void chunk(const uint8_t *row, int c, es_chunk *out)
    {
        const F *p = (const F *)row + 8 * c;
        out->e0 = 8 * c;
        out->e1 = 8 * c + 4;
        if ((size_t)p % 16 == 0) {
            union { uint4 word[sizeof(F) / 2]; F element[8]; } u;
            for (int i = 0; i < (int)sizeof(F) / 2; i++)
                u.word[i] = ((const uint4 *)p)[i];
            for (int i = 0; i < 8; i++)
                out->w[i] = es_as_float(u.element[i]);
        } else
            for (int i = 0; i < 8; i++)
                out->w[i] = es_as_float(p[i]);
    }
    static __device__ __forceinline__ float element(const uint8_t *row, int i) { return es_as_float(((const F *)row)[i]); }
};
template <> struct es_blocks<ES_F32> : es_plain_blocks<float> {};
template <> struct es_blocks<ES_F16> : es_plain_blocks<__half> {};
template <> struct es_blocks<ES_BF16> : es_plain_blocks<__nv_bfloat16> {};

// The types of 32 elements with nibbles: chunk j of a block has bytes 4j .. 4j+3, for elements 4j .. and 16 + 4j ..
template <int BYTES_, int QUANTS> struct es_nibble_blocks {
    enum { BLOCK = 32, BYTES = BYTES_, PLAIN = 0 };
    static __device__ __forceinline__ float element(const uint8_t *, int) { return 0; } // rows are whole blocks
    static __device__ __forceinline__ const uint8_t *at(const uint8_t *row, int c, es_chunk *out, uint32_t *quants)
    {
        const uint8_t *b = row + (size_t)(c / 4) * BYTES;
        const int j = c % 4;
        out->e0 = c / 4 * 32 + 4 * j;
        out->e1 = out->e0 + 16;
        *quants = BYTES % 4 == 0 ? es_word4(b + QUANTS + 4 * j) : es_word2(b + QUANTS + 4 * j);
        return b;
    }
};

template <> struct es_blocks<ES_Q4_0> : es_nibble_blocks<18, 2> {
    static __device__ __forceinline__ void chunk(const uint8_t *row, int c, es_chunk *out)
    {
        uint32_t q;
        const uint8_t *b = at(row, c, out, &q);
        const float d = es_half_at(b);
        for (int i = 0; i < 4; i++) {
            out->w[i] = d * (float)((es_byte(q, i) & 15) - 8);
            out->w[4 + i] = d * (float)((es_byte(q, i) >> 4) - 8);
        }
    }
};

template <> struct es_blocks<ES_Q4_1> : es_nibble_blocks<20, 4> {
    static __device__ __forceinline__ void chunk(const uint8_t *row, int c, es_chunk *out)
    {
        uint32_t q;
        const uint8_t *b = at(row, c, out, &q);
        const float d = es_half_at(b), m = es_half_at(b + 2);
        for (int i = 0; i < 4; i++) {
            out->w[i] = d * (float)(es_byte(q, i) & 15) + m;
            out->w[4 + i] = d * (float)(es_byte(q, i) >> 4) + m;
        }
    }
};

template <> struct es_blocks<ES_Q5_0> : es_nibble_blocks<22, 6> {
    static __device__ __forceinline__ void chunk(const uint8_t *row, int c, es_chunk *out)
    {
        uint32_t q;
        const uint8_t *b = at(row, c, out, &q);
        const float d = es_half_at(b);
        const uint32_t low = es_word2(b + 2) >> 4 * (c % 4), high = low >> 16;
        for (int i = 0; i < 4; i++) {
            out->w[i] = d * (float)((int)((es_byte(q, i) & 15) | (low >> i & 1) << 4) - 16);
            out->w[4 + i] = d * (float)((int)(es_byte(q, i) >> 4 | (high >> i & 1) << 4) - 16);
        }
    }
};

template <> struct es_blocks<ES_Q5_1> : es_nibble_blocks<24, 8> {
    static __device__ __forceinline__ void chunk(const uint8_t *row, int c, es_chunk *out)
    {
        uint32_t q;
        const uint8_t *b = at(row, c, out, &q);
        const float d = es_half_at(b), m = es_half_at(b + 2);
        const uint32_t low = es_word4(b + 4) >> 4 * (c % 4), high = low >> 16;
        for (int i = 0; i < 4; i++) {
            out->w[i] = d * (float)((es_byte(q, i) & 15) | (low >> i & 1) << 4) + m;
            out->w[4 + i] = d * (float)(es_byte(q, i) >> 4 | (high >> i & 1) << 4) + m;
        }
    }
};

// es_iq4_nl in four words, so that no table has to be in the card's memory.
static __device__ __forceinline__ float es_iq4(int q)
{
    const uint32_t word = q < 8 ? q < 4 ? 0xbfad9881u : 0xf6eaddcfu : q < 12 ? 0x26190d01u : 0x71594535u;
    return (float)(int8_t)(word >> 8 * (q & 3));
}

template <> struct es_blocks<ES_IQ4_NL> : es_nibble_blocks<18, 2> {
    static __device__ __forceinline__ void chunk(const uint8_t *row, int c, es_chunk *out)
    {
        uint32_t q;
        const uint8_t *b = at(row, c, out, &q);
        const float d = es_half_at(b);
        for (int i = 0; i < 4; i++) {
            out->w[i] = d * es_iq4(es_byte(q, i) & 15);
            out->w[4 + i] = d * es_iq4(es_byte(q, i) >> 4);
        }
    }
};

template <> struct es_blocks<ES_Q8_0> {
    enum { BLOCK = 32, BYTES = 34, PLAIN = 0 };
    static __device__ __forceinline__ float element(const uint8_t *, int) { return 0; }
    static __device__ __forceinline__ void chunk(const uint8_t *row, int c, es_chunk *out)
    {
        const uint8_t *b = row + (size_t)(c / 4) * BYTES, *q = b + 2 + 8 * (c % 4);
        const float d = es_half_at(b);
        const uint32_t first = es_word2(q), second = es_word2(q + 4);
        out->e0 = 8 * c;
        out->e1 = 8 * c + 4;
        for (int i = 0; i < 4; i++) {
            out->w[i] = d * (float)(int8_t)es_byte(first, i);
            out->w[4 + i] = d * (float)(int8_t)es_byte(second, i);
        }
    }
};

// The types of 256 elements have 32 chunks a block: chunk j of the block.
template <int BYTES_> struct es_k_blocks {
    enum { BLOCK = 256, BYTES = BYTES_, PLAIN = 0 };
    static __device__ __forceinline__ float element(const uint8_t *, int) { return 0; }
};

// Q2_K and Q3_K: half h, bits 4p .. of bytes l .. l+3 of its 32: sub-blocks 4h + 2p and the one after it.
template <> struct es_blocks<ES_Q2_K> : es_k_blocks<84> {
    static __device__ __forceinline__ void chunk(const uint8_t *row, int c, es_chunk *out)
    {
        const uint8_t *b = row + (size_t)(c / 32) * BYTES;
        const int j = c % 32, h = j / 16, p = j / 8 % 2, l = j % 8 * 4, sub = 4 * h + 2 * p;
        const float d = es_half_at(b + 80), dmin = es_half_at(b + 82);
        const uint32_t q = es_word4(b + 16 + 32 * h + l) >> 4 * p;
        const int s0 = b[2 * sub + l / 16], s1 = b[2 * sub + 2 + l / 16];
        const float d0 = d * (float)(s0 & 15), m0 = dmin * (float)(s0 >> 4), d1 = d * (float)(s1 & 15), m1 = dmin * (float)(s1 >> 4);
        out->e0 = c / 32 * 256 + 32 * sub + l;
        out->e1 = out->e0 + 32;
        for (int i = 0; i < 4; i++) {
            out->w[i] = d0 * (float)(es_byte(q, i) & 3) - m0;
            out->w[4 + i] = d1 * (float)(es_byte(q, i) >> 2 & 3) - m1;
        }
    }
};

template <> struct es_blocks<ES_Q3_K> : es_k_blocks<110> {
    static __device__ __forceinline__ int scale(const uint8_t *s, int j) // es_scale_q3_k
    {
        return ((s[j % 8] >> j / 8 * 4 & 15) | (s[8 + j % 4] >> j / 4 * 2 & 3) << 4) - 32;
    }
    static __device__ __forceinline__ void chunk(const uint8_t *row, int c, es_chunk *out)
    {
        const uint8_t *b = row + (size_t)(c / 32) * BYTES;
        const int j = c % 32, h = j / 16, p = j / 8 % 2, l = j % 8 * 4, sub = 4 * h + 2 * p;
        const float d = es_half_at(b + 108);
        const uint32_t q = es_word2(b + 32 + 32 * h + l) >> 4 * p, high = es_word2(b + l) >> sub;
        const float d0 = d * (float)scale(b + 96, 2 * sub + l / 16), d1 = d * (float)scale(b + 96, 2 * sub + 2 + l / 16);
        out->e0 = c / 32 * 256 + 32 * sub + l;
        out->e1 = out->e0 + 32;
        for (int i = 0; i < 4; i++) {
            out->w[i] = d0 * (float)(((es_byte(q, i) & 3) | (es_byte(high, i) & 1) << 2) - 4);
            out->w[4 + i] = d1 * (float)(((es_byte(q, i) >> 2 & 3) | (es_byte(high, i) >> 1 & 1) << 2) - 4);
        }
    }
};

static __device__ __forceinline__ void es_scale_and_min(const uint8_t *s, int j, float *scale, float *min) // es_scale_min
{
    *scale = (float)(j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4);
    *min = (float)(j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4);
}

// Q4_K and Q5_K: 32 bytes for two sub-blocks, the first in the low nibbles.
template <> struct es_blocks<ES_Q4_K> : es_k_blocks<144> {
    static __device__ __forceinline__ void chunk(const uint8_t *row, int c, es_chunk *out)
    {
        const uint8_t *b = row + (size_t)(c / 32) * BYTES;
        const int j = c % 32, pair = j / 8, l = j % 8 * 4;
        const float d = es_half_at(b), dmin = es_half_at(b + 2);
        const uint32_t q = es_word4(b + 16 + 32 * pair + l);
        float s0, m0, s1, m1;
        es_scale_and_min(b + 4, 2 * pair, &s0, &m0);
        es_scale_and_min(b + 4, 2 * pair + 1, &s1, &m1);
        s0 *= d, m0 *= dmin, s1 *= d, m1 *= dmin;
        out->e0 = c / 32 * 256 + 64 * pair + l;
        out->e1 = out->e0 + 32;
        for (int i = 0; i < 4; i++) {
            out->w[i] = s0 * (float)(es_byte(q, i) & 15) - m0;
            out->w[4 + i] = s1 * (float)(es_byte(q, i) >> 4) - m1;
        }
    }
};

template <> struct es_blocks<ES_Q5_K> : es_k_blocks<176> {
    static __device__ __forceinline__ void chunk(const uint8_t *row, int c, es_chunk *out)
    {
        const uint8_t *b = row + (size_t)(c / 32) * BYTES;
        const int j = c % 32, pair = j / 8, l = j % 8 * 4;
        const float d = es_half_at(b), dmin = es_half_at(b + 2);
        const uint32_t q = es_word4(b + 48 + 32 * pair + l), high = es_word4(b + 16 + l) >> 2 * pair;
        float s0, m0, s1, m1;
        es_scale_and_min(b + 4, 2 * pair, &s0, &m0);
        es_scale_and_min(b + 4, 2 * pair + 1, &s1, &m1);
        s0 *= d, m0 *= dmin, s1 *= d, m1 *= dmin;
        out->e0 = c / 32 * 256 + 64 * pair + l;
        out->e1 = out->e0 + 32;
        for (int i = 0; i < 4; i++) {
            out->w[i] = s0 * (float)((es_byte(q, i) & 15) | (es_byte(high, i) & 1) << 4) - m0;
            out->w[4 + i] = s1 * (float)(es_byte(q, i) >> 4 | (es_byte(high, i) >> 1 & 1) << 4) - m1;
        }
    }
};

// Half h; its 64 bytes of low bits: byte l + 32 p for elements l + 32 p and l + 64 + 32 p, whose high bits are at 2 p and 4 + 2 p.
template <> struct es_blocks<ES_Q6_K> : es_k_blocks<210> {
    static __device__ __forceinline__ void chunk(const uint8_t *row, int c, es_chunk *out)
    {
        const uint8_t *b = row + (size_t)(c / 32) * BYTES;
        const int j = c % 32, h = j / 16, p = j / 8 % 2, l = j % 8 * 4;
        const int8_t *s = (const int8_t *)b + 192 + 8 * h + l / 16 + 2 * p;
        const float d = es_half_at(b + 208), d0 = d * (float)s[0], d1 = d * (float)s[4];
        const uint32_t q = es_word2(b + 64 * h + 32 * p + l), high = es_word2(b + 128 + 32 * h + l) >> 2 * p;
        out->e0 = c / 32 * 256 + 128 * h + 32 * p + l;
        out->e1 = out->e0 + 64;
        for (int i = 0; i < 4; i++) {
            out->w[i] = d0 * (float)(((es_byte(q, i) & 15) | (es_byte(high, i) & 3) << 4) - 32);
            out->w[4 + i] = d1 * (float)((es_byte(q, i) >> 4 | (es_byte(high, i) >> 4 & 3) << 4) - 32);
        }
    }
};

#endif
