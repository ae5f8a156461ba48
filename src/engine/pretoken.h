/* pretoken: cuts text into the pieces that BPE merges inside (engine only). */
#ifndef ES_PRETOKEN_H
#define ES_PRETOKEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct es_pretoken { /* which of the published patterns; see pretoken.c */
    bool cl100k;      /* the family of Llama 3 and Qwen 2; otherwise GPT-2's */
    int digits;       /* most digits in a piece; 0: any number */
    bool alone;       /* digits are split off first: a run of spaces before a digit stays whole */
    /* not of the cutting, but known by the same name: */
    bool whole_first; /* a piece that is a token is taken whole, whatever the merges would make of it (Llama 3) */
    bool nfc;         /* text is composed first (Qwen) */
} es_pretoken;

/* The pattern that GGUF's tokenizer.ggml.pre names; false when it is not known. */
bool es_pretoken_named(es_pretoken *p, const char *name, size_t n);
/* The pattern of a tokenizer.json that splits by exactly this regular expression; false when it is not known. */
bool es_pretoken_regex(es_pretoken *p, const char *regex, size_t n);
/* Unicode's White_Space */
bool es_pretoken_space(int32_t c);
/* Bytes of the first piece of s[0..n), n > 0. Bytes that are not UTF-8 count as symbols. */
size_t es_pretoken_next(const es_pretoken *p, const char *s, size_t n);

#endif
