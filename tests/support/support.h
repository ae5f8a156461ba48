/* support: what the tests share. Every helper fails the test program at once (prints and exits 1) when it cannot do its work. */
#ifndef ES_TEST_SUPPORT_H
#define ES_TEST_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine.h"

/* ---- places ---- */

/* A path inside this program's own temporary folder, which is removed at exit. Borrowed; the last 16 stay valid. */
const char *test_path(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void test_write(const char *path, const void *bytes, size_t n);
void test_read(es_buf *out, const char *path);
/* tests/golden/NAME in the source. */
const char *test_golden(const char *name);
/* The real model (ESPALIER_TEST_MODEL, or where the program puts it) and the unpacked public data (ESPALIER_TEST_DATA); NULL when
 * they are not on this machine. */
const char *test_real_model(void);
const char *test_gemma(void); /* Gemma 3 270M: ESPALIER_TEST_GEMMA, or where the program puts it */
const char *test_data(void);
/* Says why and leaves with 77: the whole program counts as skipped. */
void test_skip(const char *why) __attribute__((noreturn));
#define TEST_SKIP 77

/* ---- errors ---- */

/* rc negative, err filled with one printable line that says what (contains `part`, when not NULL). */
#define assert_error(rc, err, part) test_error(rc, err, part, __FILE__, __LINE__)
void test_error(int rc, const es_error *err, const char *part, const char *file, int line);
/* rc 0; prints the error's text otherwise. */
#define assert_ok(rc, err) test_ok(rc, err, __FILE__, __LINE__)
void test_ok(int rc, const es_error *err, const char *file, int line);

/* ---- a tiny model ---- */

/* A llama with seeded random weights, scaled so that its logits are lively (a standard deviation of some 2) and its attention is
 * not uniform. Vocabulary: 3 ChatML control tokens, the 256 bytes, TINY_MERGES merged pieces. */
enum { TINY_MERGES = 64, TINY_VOCAB = 3 + 256 + TINY_MERGES };

typedef struct tiny_options {
    int n_layer, d_model, n_head, n_kv, d_ff, n_ctx;
    int head_dim;   /* 0: d_model / n_head */
    es_type type;   /* of all matrices. Rows must be whole blocks: 32, for Q6_K 256 */
    bool untied;    /* an output.weight of its own */
    uint64_t seed;
} tiny_options;

tiny_options tiny_default(void); /* 4 layers, d 64, 4 heads, 2 kv, ff 128, n_ctx 512, F32, tied, seed 1 */
void make_tiny_gguf(const char *path, const tiny_options *o); /* o NULL: the default */
es_model *open_tiny(const tiny_options *o);                   /* made, opened, file kept until exit; the caller frees it */

/* Quantises n values (a whole number of blocks) by plain rounding; appends to out. */
void test_quantize(es_buf *out, es_type type, const float *x, size_t n);

/* ---- a GGUF file taken apart, to be spoilt before it is written ---- */

typedef struct tiny_kv {
    es_buf key;
    uint64_t key_len; /* as it will be written; key.len when honest */
    uint32_t type;
    es_buf value; /* as in the file */
} tiny_kv;

typedef struct tiny_tensor {
    es_buf name;
    uint64_t name_len, ne[8], offset;
    uint32_t n_dims, type; /* ne beyond the 8th is written as 1 */
    es_buf data;
} tiny_tensor;

typedef struct tiny_file {
    char magic[4];
    uint32_t version;
    uint64_t said_tensor, said_kv; /* the counts in the header */
    size_t n_kv, n_tensor, alignment;
    tiny_kv *kv;
    tiny_tensor *tensor;
} tiny_file;

tiny_file *tiny_build(const tiny_options *o);
tiny_file *tiny_build_olmo2(const tiny_options *o); /* the same sizes as an OLMo 2, untied */
void tiny_free(tiny_file *f);
void tiny_pack(es_buf *out, const tiny_file *f);           /* the bytes of the file */
size_t tiny_header(const tiny_file *f);                    /* where its data section begins */
void tiny_write(const char *path, const tiny_file *f);
tiny_kv *tiny_find_kv(tiny_file *f, const char *key);      /* fails when absent */
tiny_tensor *tiny_find_tensor(tiny_file *f, const char *name);
tiny_kv *tiny_add_kv(tiny_file *f, const char *key, uint32_t type, const void *value, size_t n);
tiny_tensor *tiny_add_tensor(tiny_file *f, const char *name, es_type type, size_t ne0, size_t ne1, const float *x);
void tiny_drop_kv(tiny_file *f, const char *key);
void tiny_drop_tensor(tiny_file *f, const char *name);
void tiny_set(tiny_kv *kv, uint32_t type, const void *value, size_t n);
void tiny_set_u32(tiny_file *f, const char *key, uint32_t v);
void tiny_set_str(tiny_file *f, const char *key, const char *s);
/* Strings of an array value: entry i becomes s[0..n). */
void tiny_set_entry(tiny_file *f, const char *key, size_t i, const char *s, size_t n);

#endif
