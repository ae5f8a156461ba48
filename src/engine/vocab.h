/* vocab: a vocabulary as a file describes it, on its way to a tokenizer (engine only). Everything handed in is a stranger's: each call checks it and
 * fails with one line that names the file, the place and the token. Words are borrowed until es_vocab_close. */
#ifndef ES_VOCAB_H
#define ES_VOCAB_H

#include "tokenizer.h"

typedef struct es_word { /* a token as the file writes it; n 0: the file has none of that id */
    const char *s;
    uint32_t n;
} es_word;

typedef struct es_vocab {
    es_tokenizer *t; /* being made; NULL once handed over */
    const char *path, *tokens_name, *merges_name; /* borrowed, for messages: "tokenizer.ggml.tokens" */
    es_error *err;
    es_word *word;   /* [n_vocab] */
    uint32_t *slot;  /* hash table of word: index + 1 */
    size_t mask;
    char *both;      /* room for a merge's two halves */
} es_vocab;

/* t's characters, prefix and pre are the caller's to set before es_vocab_decode. */
int es_vocab_open(es_vocab *v, int n_vocab, const char *path, const char *tokens_name, const char *merges_name, es_error *err);
int es_vocab_word(es_vocab *v, int id, const char *s, size_t n, int type);
int32_t es_vocab_find(const es_vocab *v, const char *s, size_t n); /* id of a token as written, -1: none */
int es_vocab_fail(const es_vocab *v, int id, const char *what);
/* Once every word is in: what the tokens stand for. */
int es_vocab_decode(es_vocab *v);
/* Then one of these: scores (best is highest), or n merges, the best first. */
int es_vocab_scores(es_vocab *v, const float *score);
int es_vocab_merges(es_vocab *v, size_t n);
int es_vocab_merge(es_vocab *v, size_t i, const char *left, size_t n_left, const char *right, size_t n_right);
/* Then the special tokens and what ends a turn by its name; *out is the tokenizer. */
int es_vocab_finish(es_vocab *v, es_tokenizer **out);
void es_vocab_close(es_vocab *v); /* frees what was not handed over */

#endif
