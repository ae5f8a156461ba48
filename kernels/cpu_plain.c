/* The CPU table's row ops for any processor: vectors of four floats, which the compiler maps to what there is. */
#include "internal.h"

#define W 4
#include "rows_impl.h"
#include "half_impl.h"

enum { STEP = 512 }; /* elements dequantised at once; a multiple of every block */

static void rows(const es_weight *w, int from, int to, const float *x, int T, float *y, bool accumulate)
{
    const int K = w->n_in;
    const size_t N = (size_t)w->n_out;
    for (int n = from; n < to; n++) {
        const char *row = (const char *)w->data + (size_t)n * es_row_bytes(w->type, K);
        for (int k = 0; k < K; k += STEP) {
            float block[STEP];
            int step = K - k < STEP ? K - k : STEP;
            es_dequant(w->type, row + es_row_bytes(w->type, k), block, (size_t)step);
            for (int t = 0; t < T; t++) {
                float *out = &y[(size_t)t * N + (size_t)n];
                float s = dot(x + (size_t)t * (size_t)K + k, block, step);
                *out = k > 0 || accumulate ? *out + s : s;
            }
        }
    }
}

const es_simd *es_simd_plain(void)
{
    static const es_simd simd = {.name = "portable", .dequant = es_dequant, .rows = rows, ROW_OPS, HALF_OPS};
    return &simd;
}
