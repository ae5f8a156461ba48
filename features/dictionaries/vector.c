#include "vector.h"

#include <math.h>
#include <stdatomic.h>

typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));

/* The bodies are a macro because a helper function would be lowered for the plain target before it is inlined. */
#define VARIANT(suffix, attribute)                                                                                              \
    attribute static float dot_##suffix(const float *a, const float *b, size_t n)                                               \
    {                                                                                                                           \
        v16 s0 = {0}, s1 = {0};                                                                                                 \
        size_t i = 0;                                                                                                           \
        for (; i + 32 <= n; i += 32) {                                                                                          \
            s0 += *(const v16 *)(a + i) * *(const v16 *)(b + i);                                                                \
            s1 += *(const v16 *)(a + i + 16) * *(const v16 *)(b + i + 16);                                                      \
        }                                                                                                                       \
        s0 += s1;                                                                                                               \
        float s = 0;                                                                                                            \
        for (int k = 0; k < 16; k++)                                                                                            \
            s += s0[k];                                                                                                         \
        for (; i < n; i++)                                                                                                      \
            s += a[i] * b[i];                                                                                                   \
        return s;                                                                                                               \
    }                                                                                                                           \
    attribute static void axpy_##suffix(float *y, float a, const float *x, size_t n)                                            \
    {                                                                                                                           \
        size_t i = 0;                                                                                                           \
        for (; i + 16 <= n; i += 16)                                                                                            \
            *(v16 *)(y + i) += a * *(const v16 *)(x + i);                                                                       \
        for (; i < n; i++)                                                                                                      \
            y[i] += a * x[i];                                                                                                   \
    }                                                                                                                           \
    attribute static void axpys_##suffix(float *y, const float *a, float s, const float *rows, const int32_t *index, const size_t *at, size_t n_rows, \
                                         size_t n)                                                                              \
    {                                                                                                                           \
        size_t r = 0;                                                                                                           \
        for (; r + 4 <= n_rows; r += 4) {                                                                                       \
            size_t p[4];                                                                                                        \
            for (int k = 0; k < 4; k++)                                                                                         \
                p[k] = at ? at[r + (size_t)k] : r + (size_t)k;                                                                  \
            const float a0 = s * a[p[0]], a1 = s * a[p[1]], a2 = s * a[p[2]], a3 = s * a[p[3]];                                 \
            const float *x0 = rows + (size_t)index[p[0]] * n, *x1 = rows + (size_t)index[p[1]] * n,                             \
                        *x2 = rows + (size_t)index[p[2]] * n, *x3 = rows + (size_t)index[p[3]] * n;                             \
            size_t i = 0;                                                                                                       \
            for (; i + 16 <= n; i += 16)                                                                                        \
                *(v16 *)(y + i) += (a0 * *(const v16 *)(x0 + i) + a1 * *(const v16 *)(x1 + i))                                  \
                                   + (a2 * *(const v16 *)(x2 + i) + a3 * *(const v16 *)(x3 + i));                               \
            for (; i < n; i++)                                                                                                  \
                y[i] += (a0 * x0[i] + a1 * x1[i]) + (a2 * x2[i] + a3 * x3[i]);                                                  \
        }                                                                                                                       \
        for (; r < n_rows; r++) {                                                                                               \
            const size_t p = at ? at[r] : r;                                                                                    \
            axpy_##suffix(y, s * a[p], rows + (size_t)index[p] * n, n);                                                         \
        }                                                                                                                       \
    }                                                                                                                           \
    attribute static void adam_##suffix(float *restrict w, const float *restrict g, float *restrict m, float *restrict v, size_t n, float b1, \
                                        float b2, float rate, float eps)                                                        \
    {                                                                                                                           \
        for (size_t i = 0; i < n; i++) {                                                                                        \
            m[i] = b1 * m[i] + (1 - b1) * g[i];                                                                                 \
            v[i] = b2 * v[i] + (1 - b2) * g[i] * g[i];                                                                          \
            w[i] -= rate * m[i] / (sqrtf(v[i]) + eps);                                                                          \
        }                                                                                                                       \
    }                                                                                                                           \
    static const es_vector_ops ops_##suffix = {#suffix, dot_##suffix, axpy_##suffix, axpys_##suffix, adam_##suffix};

VARIANT(plain, )
#ifdef __x86_64__
VARIANT(avx2, __attribute__((target("avx2,fma"))))
VARIANT(avx512, __attribute__((target("avx512f,avx2,fma,prefer-vector-width=512"))))
#endif

const es_vector_ops *es_vector(void)
{
    static _Atomic(const es_vector_ops *) chosen;
    const es_vector_ops *o = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (o)
        return o;
    o = &ops_plain;
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        o = &ops_avx512;
    else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        o = &ops_avx2;
#endif
    atomic_store_explicit(&chosen, o, memory_order_relaxed);
    return o;
}
