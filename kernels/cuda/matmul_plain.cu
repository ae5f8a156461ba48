// Products with weights of the plain types and of Q8_0.
#define ES_MATMUL_KERNELS
#include "matmul.cuh"

static const es_type_ops f32 = ES_TYPE_OPS(ES_F32), f16 = ES_TYPE_OPS(ES_F16), bf16 = ES_TYPE_OPS(ES_BF16), q8_0 = ES_TYPE_OPS(ES_Q8_0);

const es_type_ops *es_type_ops_plain(int type)
{
    return type == ES_F32 ? &f32 : type == ES_F16 ? &f16 : type == ES_BF16 ? &bf16 : type == ES_Q8_0 ? &q8_0 : NULL;
}
