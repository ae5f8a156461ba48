// Products with weights of the types of 32 elements and nibbles.
#define ES_MATMUL_KERNELS
#include "matmul.cuh"

static const es_type_ops q4_0 = ES_TYPE_OPS(ES_Q4_0), q4_1 = ES_TYPE_OPS(ES_Q4_1), q5_0 = ES_TYPE_OPS(ES_Q5_0), q5_1 = ES_TYPE_OPS(ES_Q5_1),
                         iq4_nl = ES_TYPE_OPS(ES_IQ4_NL);

const es_type_ops *es_type_ops_nibble(int type)
{
    return type == ES_Q4_0 ? &q4_0 : type == ES_Q4_1 ? &q4_1 : type == ES_Q5_0 ? &q5_0 : type == ES_Q5_1 ? &q5_1 : type == ES_IQ4_NL ? &iq4_nl : NULL;
}
