// Products with weights of the types of 256 elements.
#define ES_MATMUL_KERNELS
#include "matmul.cuh"

static const es_type_ops q2_k = ES_TYPE_OPS(ES_Q2_K), q3_k = ES_TYPE_OPS(ES_Q3_K), q4_k = ES_TYPE_OPS(ES_Q4_K), q5_k = ES_TYPE_OPS(ES_Q5_K),
                         q6_k = ES_TYPE_OPS(ES_Q6_K);

const es_type_ops *es_type_ops_k(int type)
{
    return type == ES_Q2_K ? &q2_k : type == ES_Q3_K ? &q3_k : type == ES_Q4_K ? &q4_k : type == ES_Q5_K ? &q5_k : type == ES_Q6_K ? &q6_k : NULL;
}
