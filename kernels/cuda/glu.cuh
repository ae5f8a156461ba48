// The gated units' function, for the kernels that apply it (rows.cu) and for those that do so as they multiply (matmul.cuh).
#ifndef ES_GLU_CUH
#define ES_GLU_CUH

#include "device.cuh"

// f(g) = g s and its slope; s = 1 / (1 + e^-g) for silu, 1 / (1 + e^-2u) for gelu, as scalar.c has them.
template <bool GELU> static __device__ __forceinline__ float es_gate_of(float g, float *slope)
{
    if (GELU) {
        const float u = 0.7978845608028654f * (g + 0.044715f * g * g * g), s = 1 / (1 + expf(-2 * u));
        *slope = s + 2 * g * 0.7978845608028654f * (1 + 3 * 0.044715f * g * g) * s * (1 - s);
        if (s == 0 || s == 1)
            *slope = s; // far out, where g^3 overflows
        return g * s;
    }
    const float s = 1 / (1 + expf(-g));
    *slope = s * (1 + g * (1 - s));
    return g * s;
}

#endif
