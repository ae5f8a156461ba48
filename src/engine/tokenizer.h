/* tokenizer: text to ids and back (engine only; what others call is in engine.h). Two kinds of byte pair encoding: over bytes (GPT-2's, inside the
 * pieces that pretoken.c cuts) and over characters with byte fallback (SentencePiece's, in which spaces belong to tokens). vocab.c makes
 * one from what a GGUF or a tokenizer.json says; tokenizer.c uses it; chat.c knows its chat template. */
#ifndef ES_TOKENIZER_H
#define ES_TOKENIZER_H

#include "chat.h"
#include "engine.h"
#include "gguf.h"
#include "pretoken.h"

enum { ES_TOKEN_NORMAL = 1, ES_TOKEN_UNKNOWN, ES_TOKEN_CONTROL, ES_TOKEN_USER, ES_TOKEN_UNUSED, ES_TOKEN_BYTE }; /* as in GGUF */
#define ES_NO_RANK UINT32_MAX

typedef struct es_merge { /* an entry of the hash table of pairs; rank ES_NO_RANK: free */
    int32_t left, right, made;
    uint32_t rank;
} es_merge;

typedef enum es_prefix { /* a space put before plain text, so that a word there is the token it is elsewhere (SentencePiece only) */
    ES_PREFIX_NEVER,
    ES_PREFIX_FIRST,  /* where the text begins, if it does not begin with one */
    ES_PREFIX_EACH,   /* and after each special token, if there is none */
    ES_PREFIX_ALWAYS, /* and even if there is one */
} es_prefix;

typedef struct es_tokenizer {
    int n_vocab, more_holders; /* besides the first */
    bool characters;  /* symbols are characters and spaces belong to tokens; otherwise bytes, in pieces */
    /* of bytes: */
    es_pretoken pre;
    bool whole_first; /* a piece that is a token is not built from merges */
    bool nfc;         /* text is brought to Unicode's normal form C first */
    /* of characters: */
    es_prefix prefix;
    bool cut_spaces;  /* no token begins before a space and goes on after it */
    bool fuse_unknown; /* neighbouring characters without a token are one unknown token */

    char *bytes;   /* what the tokens stand for, one after another */
    uint32_t *at;  /* [n_vocab + 1] where each begins */
    uint8_t *type; /* [n_vocab] */
    uint8_t *ends; /* [n_vocab] */
    int32_t byte_id[256]; /* -1: the vocabulary has no token for that byte */
    es_merge *merges; /* NULL: two neighbours merge when their text is a token's, the best score first */
    uint64_t merge_mask;
    uint32_t *rank;   /* [n_vocab] when there are no merges: low is best */
    uint32_t *text_slot; /* hash table, by their bytes, of the tokens that text may become: id + 1. NULL: not needed */
    size_t text_mask;
    uint32_t longest; /* bytes of the longest of them */
    uint8_t *neighbours; /* [65536 / 8] bit 256 a + b: byte b follows byte a inside some token; elsewhere text can be cut. NULL: of bytes */
    int32_t *special; /* control, unknown and user-defined tokens by first byte, the longer first */
    int special_at[257];
    int32_t bos, eos, unknown;
    bool bos_first; /* every text begins with bos */
    es_chat chat;
} es_tokenizer;

/* Copies what it needs; n_vocab: rows of the embedding, which the vocabulary must match. */
int es_tokenizer_open(es_tokenizer **out, const es_gguf *g, int n_vocab, es_error *err);
/* The same from a folder's tokenizer.json, with tokenizer_config.json, chat_template.jinja and the end tokens of generation_config.json and
 * config.json, where they are. A folder without tokenizer.json: ES_OK and *out NULL. Rows of the embedding beyond the vocabulary are allowed. */
int es_tokenizer_open_folder(es_tokenizer **out, const char *folder, int n_vocab, es_error *err);
void es_tokenizer_free(es_tokenizer *t); /* the last holder's call frees */
es_tokenizer *es_tokenizer_share(es_tokenizer *t); /* one holder more */

/* The control or user-defined token of that exact name, -1 when there is none. */
int32_t es_tokenizer_special(const es_tokenizer *t, const char *name);
/* The token that text may become with exactly these bytes, -1 when there is none (or no such table). */
int32_t es_tokenizer_text(const es_tokenizer *t, const char *s, size_t n);
/* The entry of a pair; one of rank ES_NO_RANK when the pair does not merge. */
const es_merge *es_tokenizer_merge(const es_tokenizer *t, int32_t left, int32_t right);
uint64_t es_tokenizer_hash(const char *s, size_t n);
/* es_tokenize by the tokenizer itself. */
int es_tokenizer_ids(const es_tokenizer *t, const char *text, size_t n, bool special, es_ids *out, es_error *err);

#endif
