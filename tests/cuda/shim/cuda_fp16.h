#ifndef SHIM_CUDA_FP16_H
#define SHIM_CUDA_FP16_H
#include <stddef.h>
#include <stdint.h>
extern "C" void es_f16_to_f32(const uint16_t *src, float *dst, size_t n);
extern "C" void es_f32_to_f16(const float *src, uint16_t *dst, size_t n);
struct __half { uint16_t bits; };
static inline float __half2float(__half h) { float f; es_f16_to_f32(&h.bits, &f, 1); return f; }
static inline __half __float2half(float f) { __half h; es_f32_to_f16(&f, &h.bits, 1); return h; }
#endif
