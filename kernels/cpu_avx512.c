/* The CPU table's row ops for AVX-512 with VNNI (Ice Lake, Zen 4 and later). Only this file's functions are compiled for it;
 * es_simd_avx512() asks the processor first. */
#include "internal.h"

#ifdef __x86_64__

#include <float.h>
#include <immintrin.h>
#include <limits.h>
#include <math.h>
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif

#define W 16
#include "rows_impl.h"
#include "half_impl.h"
#include "quant_x86.h"
#include "int_x86.h"

static const es_simd simd = {.name = "avx512-vnni", QUANT_OPS, INT_OPS, ROW_OPS, HALF_OPS};

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const es_simd *es_simd_avx512(void)
{
    bool there = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
    return there ? &simd : NULL;
}

#else

const es_simd *es_simd_avx512(void)
{
    return NULL;
}

#endif
