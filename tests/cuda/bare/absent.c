/* What a bare build does without: a model that no file was opened for has none of these, and without OpenBLAS the reference is the processor's table. */
#include "model.h"

void es_tokenizer_free(es_tokenizer *t)
{
    (void)t;
}

void es_gguf_close(es_gguf *g)
{
    (void)g;
}

void es_safetensors_free(es_safetensors *s)
{
    (void)s;
}

const es_kernels *es_kernels_cpu(void)
{
    return es_kernels_scalar();
}

const es_kernels *es_kernels_half(void)
{
    return es_kernels_scalar();
}

const es_kernels *es_kernels_eight(void)
{
    return es_kernels_scalar();
}
