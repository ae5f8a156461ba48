/* A small llama in memory with random f32 weights (the key and value matrices f16): for tests of the passes, which need no file
 * and no tokenizer. */
#ifndef ES_TEST_MEMORY_MODEL_H
#define ES_TEST_MEMORY_MODEL_H

#include "model.h"

enum { TINY_LAYERS = 3, TINY_D = 32, TINY_HEADS = 4, TINY_KV = 2, TINY_HEAD_DIM = 8, TINY_FF = 64, TINY_VOCAB = 48 };

es_model *test_memory_model(int n_ctx, uint64_t seed); /* NULL: no memory */
void test_memory_model_free(es_model *m);
void test_fill(es_rng *rng, float *x, size_t n, float scale); /* normal numbers */
const char *test_model_path(void); /* the real model's file, or NULL when the machine has none */

#endif
