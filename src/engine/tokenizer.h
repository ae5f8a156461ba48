/* tokenizer: byte-level BPE from a GGUF's metadata (engine only; what others call is in engine.h). */
#ifndef ES_TOKENIZER_H
#define ES_TOKENIZER_H

#include "engine.h"
#include "gguf.h"

typedef struct es_tokenizer es_tokenizer;

/* Copies what it needs; n_vocab: rows of the embedding, which the vocabulary must match. */
int es_tokenizer_open(es_tokenizer **out, const es_gguf *g, int n_vocab, es_error *err);
void es_tokenizer_free(es_tokenizer *t); /* the last holder's call frees */
es_tokenizer *es_tokenizer_share(es_tokenizer *t); /* one holder more */
/* The control or user-defined token of that exact name, -1 when there is none. */
int32_t es_tokenizer_special(const es_tokenizer *t, const char *name);

#endif
