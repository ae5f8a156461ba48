/* The CPU table's row ops for AVX2, FMA and F16C (Haswell, Zen and later). Only this file's functions are compiled for it;
 * es_simd_avx2() asks the processor first. */
#include "internal.h"

#ifdef __x86_64__

#include <float.h>
#include <immintrin.h>
#include <limits.h>
#include <math.h>
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define W 8
#include "rows_impl.h"
#include "half_impl.h"
#include "quant_x86.h"
#include "int_x86.h"

static const es_simd simd = {.name = "avx2", QUANT_OPS, INT_OPS, ROW_OPS, HALF_OPS};

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const es_simd *es_simd_avx2(void)
{
    bool there = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); /* whatever has AVX2 has F16C */
    return there ? &simd : NULL;
}

#else

const es_simd *es_simd_avx2(void)
{
    return NULL;
}

#endif
