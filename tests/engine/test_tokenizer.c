#include "pretoken.h"
#include "support.h"

#include <stdlib.h>
#include <string.h>

static es_model *real; /* NULL: not on this machine */
static es_model *tiny;

static es_ids ids_of(const es_model *m, const char *s, size_t n, bool special)
{
    es_ids l = {0};
    es_error err;
    assert_ok(es_tokenize(m, s, n, special, &l, &err), &err);
    return l;
}

/* The tokens' bytes together are the text. */
static void assert_round_trip(const es_model *m, const char *s, size_t n)
{
    es_ids l = ids_of(m, s, n, false);
    es_buf b = {0};
    for (size_t i = 0; i < l.n; i++) {
        size_t len;
        const char *p = es_token_bytes(m, l.id[i], &len);
        assert_false(es_token_is_control(m, l.id[i]));
        es_buf_add(&b, p, len);
    }
    assert_int_equal(b.len, n);
    if (n)
        assert_memory_equal(b.data, s, n);
    es_buf_free(&b);
    es_ids_free(&l);
}

/* ---- the real vocabulary ---- */

/* Control bytes that SmolLM2's vocabulary lacks are not in the golden text: it comes back whole. */
static void equals_the_peer(void **state)
{
    (void)state;
    if (!real)
        skip();
    es_buf text = {0}, want = {0};
    test_read(&text, test_golden("tokenizer.txt"));
    test_read(&want, test_golden("tokenizer.ids"));
    es_ids l = ids_of(real, text.data, text.len, false);
    size_t at = 0; /* byte, for the message */
    for (size_t i = 0; i < l.n && i < want.len / 2; i++) {
        uint16_t id;
        size_t n;
        memcpy(&id, want.data + 2 * i, 2);
        if (l.id[i] != id) {
            print_error("token %zu (byte %zu, after \"%.*s\"): %d and not %d\n", i, at, 20, text.data + (at > 20 ? at - 20 : 0),
                        l.id[i], id);
            fail();
        }
        es_token_bytes(real, id, &n);
        at += n;
    }
    assert_int_equal(l.n, want.len / 2);
    assert_round_trip(real, text.data, text.len);
    es_ids_free(&l);
    es_buf_free(&text);
    es_buf_free(&want);
}

static void control_tokens_only_when_trusted(void **state)
{
    (void)state;
    if (!real)
        skip();
    static const char s[] = "<|im_start|>user\nHi<|im_end|>";
    es_ids plain = ids_of(real, s, strlen(s), false), special = ids_of(real, s, strlen(s), true);
    static const int32_t want[] = {1, 4093, 198, 26843, 2};
    assert_int_equal(special.n, 5);
    assert_memory_equal(special.id, want, sizeof want);
    assert_true(plain.n > 5);
    for (size_t i = 0; i < plain.n; i++)
        assert_false(es_token_is_control(real, plain.id[i]));
    size_t n;
    assert_string_equal(es_token_bytes(real, 49152, &n), "");
    assert_int_equal(n, 0);
    assert_int_equal(es_token_bos(real), 1);
    assert_int_equal(es_token_eos(real), 2);
    assert_true(es_token_ends(real, 2) && es_token_ends(real, 0) && !es_token_ends(real, 1) && !es_token_ends(real, -1));
    es_ids_free(&plain);
    es_ids_free(&special);
}

/* Bytes without a token (control bytes here) are left out and break nothing. */
static void bytes_without_a_token(void **state)
{
    (void)state;
    if (!real)
        skip();
    es_ids l = ids_of(real, "a\x04\x06\xff\xfe", 5, false), a = ids_of(real, "a", 1, false);
    assert_int_equal(l.n, 1);
    assert_int_equal(l.id[0], a.id[0]);
    es_ids_free(&l);
    es_ids_free(&a);
}

static void is_not_quadratic(void **state)
{
    (void)state;
    es_model *m = real ? real : tiny;
    size_t n = 1000000;
    static const char fill[] = {' ', 'a', '\n', '=', '0', '\xff', '\''};
    char *s = malloc(n);
    for (size_t i = 0; i < sizeof fill; i++) {
        memset(s, fill[i], n);
        double t = es_seconds();
        es_ids l = ids_of(m, s, n, false);
        t = es_seconds() - t;
        print_message("1 MB of 0x%02x: %zu tokens in %.2f s\n", (unsigned char)fill[i], l.n, t);
        assert_true(t < 20); /* linear: well under a second; quadratic: hours */
        es_ids_free(&l);
    }
    free(s);
}

static void speed(void **state)
{
    (void)state;
    if (!real)
        skip();
    es_buf text = {0}, all = {0};
    test_read(&text, test_golden("tokenizer.txt"));
    while (all.len < 4000000)
        es_buf_add(&all, text.data, text.len);
    double t = es_seconds();
    es_ids l = ids_of(real, all.data, all.len, false);
    t = es_seconds() - t;
    print_message("golden text: %.1f MB/s\n", (double)all.len / 1e6 / t);
    es_ids_free(&l);
    es_buf_free(&text);
    es_buf_free(&all);
}

/* ---- any bytes ---- */

static void any_bytes_come_back(void **state)
{
    (void)state;
    es_rng r;
    es_rng_seed(&r, 3);
    static const char *const pieces[] = {"the ", " and", "  ", "\n", "\xff", "\xf0\x9f", "\xe2\x80\x8d", "\xf0\x9f\x98\x80", "\xc0\x80", "a", "''s",
                                         "12", "\xed\xa0\x80", "\xe6\xbc\xa2", "<|im_end|>", "\x00", "\xc2\xa0", "thin"};
    for (int round = 0; round < 2000; round++) {
        es_buf b = {0};
        es_buf_add(&b, "", 0);
        for (uint64_t k = es_rng_below(&r, 60); k > 0; k--) {
            const char *p = pieces[es_rng_below(&r, sizeof pieces / sizeof *pieces)];
            es_buf_add(&b, p, *p ? strlen(p) : 1);
            if (es_rng_below(&r, 4) == 0) {
                char c = (char)es_rng_next(&r);
                es_buf_add(&b, &c, 1);
            }
        }
        assert_round_trip(tiny, b.data, b.len);
        es_buf_free(&b);
    }
    assert_round_trip(tiny, "", 0);
}

/* A piece longer than the plain scan handles goes through the heap: it must merge the same way. Spaces cut "thethe" nowhere, so
 * the tokens of a long run are those of its first part over and over. */
static void heap_and_scan_agree(void **state)
{
    (void)state;
    es_buf b = {0};
    es_ids unit = ids_of(tiny, "these", 5, false);
    for (int k = 1; k < 60; k++) {
        es_buf_str(&b, "these");
        es_ids l = ids_of(tiny, b.data, b.len, false);
        assert_int_equal(l.n, (size_t)k * unit.n);
        for (size_t i = 0; i < l.n; i++)
            assert_int_equal(l.id[i], unit.id[i % unit.n]);
        es_ids_free(&l);
    }
    es_ids_free(&unit);
    es_buf_free(&b);
}

/* ---- the cutting patterns of the other families ---- */

/* What Hugging Face's Split gives for the published patterns. */
static const struct {
    const char *pre, *pieces; /* pieces of the text between | */
} cuts[] = {
    {"smollm", "It|'s| THEY|'|LL| don|'t| ''|s"},
    {"smollm", "  |1|2|3|4|5| x|  |6|  "},
    {"smollm", "\r\n\r\n | x|\n\n \n|\t|y"},
    {"smollm", ":)| (|say|)| ...|\n|\n|x|\t|=|1"},
    {"smollm", " |\302\240|a|\343\200\200|\346\274\242\345\255\227|\331\242|\302\275|!"},
    {"smollm", "a| \r\n| b|   \n"},
    {"gpt-2", "It|'s| THEY|'|LL| don|'t| ''|s"},
    {"gpt-2", " | 12345| x| | 6|  "},
    {"gpt-2", "\r\n\r\n | x|\n\n \n|\t|y"},
    {"gpt-2", ":)| (|say|)| ...|\n|\n|x|\t|=|1"},
    {"gpt-2", " |\302\240|a|\343\200\200|\346\274\242\345\255\227|\331\242\302\275|!"},
    {"gpt-2", "a| \r\n| b|   \n"},
    {"llama-bpe", "It|'s| THEY|'LL| don|'t| ''|s"},
    {"llama-bpe", " | |123|45| x| | |6|  "},
    {"llama-bpe", "\r\n\r\n| | x|\n\n \n|\ty"},
    {"llama-bpe", ":)| (|say|)| ...\n\n|x|\t|=|1"},
    {"llama-bpe", " |\302\240a|\343\200\200\346\274\242\345\255\227|\331\242\302\275|!"},
    {"llama-bpe", "a| \r\n| b|   \n"},
    {"qwen2", "It|'s| THEY|'LL| don|'t| ''|s"},
    {"qwen2", " | |1|2|3|4|5| x| | |6|  "},
    {"qwen2", "\r\n\r\n| | x|\n\n \n|\ty"},
    {"qwen2", ":)| (|say|)| ...\n\n|x|\t|=|1"},
    {"qwen2", " |\302\240a|\343\200\200\346\274\242\345\255\227|\331\242|\302\275|!"},
    {"qwen2", "a| \r\n| b|   \n"},
};

static void patterns(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        es_pretoken p;
        es_buf text = {0}, got = {0};
        assert_true(es_pretoken_named(&p, cuts[i].pre, strlen(cuts[i].pre)));
        for (const char *s = cuts[i].pieces; *s; s++)
            if (*s != '|')
                es_buf_add(&text, s, 1);
        for (size_t at = 0; at < text.len;) {
            size_t n = es_pretoken_next(&p, text.data + at, text.len - at);
            assert_true(n > 0 && n <= text.len - at);
            es_buf_str(&got, at ? "|" : "");
            es_buf_add(&got, text.data + at, n);
            at += n;
        }
        assert_string_equal(got.data, cuts[i].pieces);
        es_buf_free(&text);
        es_buf_free(&got);
    }
}

/* ---- faults: one clear line, no crash ---- */

typedef struct fault {
    const char *name, *says;
    void (*spoil)(tiny_file *f);
} fault;

#define TOKENS "tokenizer.ggml.tokens"
#define TYPES "tokenizer.ggml.token_type"
#define MERGES "tokenizer.ggml.merges"

static void add_array_u32(tiny_file *f, const char *key, uint32_t type, uint64_t count)
{
    es_buf b = {0};
    es_buf_add(&b, &type, 4);
    es_buf_add(&b, &count, 8);
    for (uint64_t i = 0; i < count; i++)
        es_buf_add(&b, "\0\0\0", 4);
    tiny_add_kv(f, key, 9, b.data, b.len);
    es_buf_free(&b);
}

static void set_type(tiny_file *f, size_t i, int32_t type)
{
    memcpy(tiny_find_kv(f, TYPES)->value.data + 12 + 4 * i, &type, 4);
}

static void scores_wrong_type(tiny_file *f) { add_array_u32(f, "tokenizer.ggml.scores", 5, TINY_VOCAB); }
static void scores_too_few(tiny_file *f) { add_array_u32(f, "tokenizer.ggml.scores", 6, 7); }
static void token_over_2_31(tiny_file *f)
{
    uint64_t n = ((uint64_t)1 << 31) + 1;
    memcpy(tiny_find_kv(f, TOKENS)->value.data + 12, &n, 8);
}
static void token_minus_1(tiny_file *f) { memset(tiny_find_kv(f, TOKENS)->value.data + 12, 0xff, 8); }
static void token_overlong(tiny_file *f)
{
    char *s = malloc(70000);
    memset(s, 'x', 70000);
    tiny_set_entry(f, TOKENS, 300, s, 70000);
    free(s);
}
static void token_empty(tiny_file *f) { tiny_set_entry(f, TOKENS, 300, "", 0); }
static void token_nul(tiny_file *f) { tiny_set_entry(f, TOKENS, 300, "a\0b", 3); }
static void token_twice(tiny_file *f) { tiny_set_entry(f, TOKENS, 300, "a", 1); }
static void token_not_utf8(tiny_file *f) { tiny_set_entry(f, TOKENS, 300, "\xff\xfe", 2); }
static void token_escape(tiny_file *f) { tiny_set_entry(f, TOKENS, 4, "\x1b[31m", 5); }
static void byte_minus_1(tiny_file *f) { tiny_set_entry(f, TOKENS, 2, "<0x-1>", 6); set_type(f, 2, 6); }
static void byte_zz(tiny_file *f) { tiny_set_entry(f, TOKENS, 2, "<0xZZ>", 6); set_type(f, 2, 6); }
static void byte_long(tiny_file *f) { tiny_set_entry(f, TOKENS, 2, "<0x100>", 7); set_type(f, 2, 6); }
static void type_unknown(tiny_file *f) { set_type(f, 9, 77); }
static void type_negative(tiny_file *f) { set_type(f, 9, -1); }
static void types_strings(tiny_file *f) { tiny_set_str(f, TYPES, "normal"); }
static void types_too_few(tiny_file *f) { tiny_drop_kv(f, TYPES); add_array_u32(f, TYPES, 5, 3); }
static void bos_over(tiny_file *f) { tiny_set_u32(f, "tokenizer.ggml.bos_token_id", TINY_VOCAB); }
static void eos_over(tiny_file *f) { tiny_set_u32(f, "tokenizer.ggml.eos_token_id", 0xffffffffu); }
static void eos_string(tiny_file *f) { tiny_set_str(f, "tokenizer.ggml.eos_token_id", "2"); }
static void merge_absent(tiny_file *f) { tiny_set_entry(f, MERGES, 5, "zz qq", 5); }
static void merge_makes_absent(tiny_file *f) { tiny_set_entry(f, MERGES, 5, "q z", 3); }
static void merge_no_space(tiny_file *f) { tiny_set_entry(f, MERGES, 5, "qz", 2); }
static void merge_three(tiny_file *f) { tiny_set_entry(f, MERGES, 5, "a b c", 5); }
static void merge_half(tiny_file *f) { tiny_set_entry(f, MERGES, 5, "ab ", 3); }
static void merge_empty(tiny_file *f) { tiny_set_entry(f, MERGES, 5, "", 0); }
static void merges_missing(tiny_file *f) { tiny_drop_kv(f, MERGES); }
static void merges_numbers(tiny_file *f) { tiny_drop_kv(f, MERGES); add_array_u32(f, MERGES, 5, 3); }
static void tokens_missing(tiny_file *f) { tiny_drop_kv(f, TOKENS); }
static void tokens_number(tiny_file *f) { tiny_set_u32(f, TOKENS, 5); }
static void no_bytes(tiny_file *f)
{
    for (size_t i = 3; i < 259; i++)
        set_type(f, i, 4);
}
static void kind_unknown(tiny_file *f) { tiny_set_str(f, "tokenizer.ggml.model", "t5"); }
static void kind_missing(tiny_file *f) { tiny_drop_kv(f, "tokenizer.ggml.model"); }
static void pre_unknown(tiny_file *f) { tiny_set_str(f, "tokenizer.ggml.pre", "\x1b]52;c;!\x07"); }

static const fault faults[] = {
    {"scores of the wrong type", "tokenizer.ggml.scores", scores_wrong_type},
    {"too few scores", "tokenizer.ggml.scores has 7", scores_too_few},
    {"token over 2^31", "ends inside", token_over_2_31},
    {"token of 2^64-1", "ends inside", token_minus_1},
    {"token over 64 KiB", "over 65,535", token_overlong},
    {"empty token", "is empty", token_empty},
    {"token with NUL", "NUL", token_nul},
    {"token twice", "occurs twice", token_twice},
    {"token not UTF-8", "not UTF-8", token_not_utf8},
    {"byte <0x-1>", "<0x00> to <0xFF>", byte_minus_1},
    {"byte <0xZZ>", "<0x00> to <0xFF>", byte_zz},
    {"byte <0x100>", "<0x00> to <0xFF>", byte_long},
    {"unknown token type", "unknown type 77", type_unknown},
    {"negative token type", "unknown type", type_negative},
    {"token types a string", TYPES, types_strings},
    {"too few token types", "token_type has 3", types_too_few},
    {"BOS out of range", "bos_token_id", bos_over},
    {"EOS out of range", "eos_token_id", eos_over},
    {"EOS a string", "eos_token_id", eos_string},
    {"merge of an unknown token", "joins a token", merge_absent},
    {"merge into an unknown token", "makes a token", merge_makes_absent},
    {"merge without a space", "is not two tokens", merge_no_space},
    {"merge of three", "is not two tokens", merge_three},
    {"merge of a half", "is not two tokens", merge_half},
    {"empty merge", "is not two tokens", merge_empty},
    {"no merges", "merges is missing", merges_missing},
    {"merges of numbers", "merges", merges_numbers},
    {"no tokens", "tokens is missing", tokens_missing},
    {"tokens a number", "tokens", tokens_number},
    {"no single bytes", "any single byte", no_bytes},
    {"unknown kind", "'t5'", kind_unknown},
    {"no tokenizer", "tokenizer.ggml.model is missing", kind_missing},
    {"hostile pre-tokenizer name", "\\x1b]52", pre_unknown},
};

static void faults_give_one_line(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        tiny_file *f = tiny_build(NULL);
        faults[i].spoil(f);
        const char *path = test_path("fault.gguf");
        tiny_write(path, f);
        tiny_free(f);
        es_model *m;
        es_error err = {0};
        int rc = es_model_open(&m, path, &err);
        print_message("%-30s %s\n", faults[i].name, err.text);
        assert_error(rc, &err, faults[i].says);
        assert_null(m);
    }
}

/* Odd, but a model can be used with it. */
static void harmless_oddities(void **state)
{
    (void)state;
    es_error err;
    es_model *m;
    tiny_file *f = tiny_build(NULL);
    tiny_drop_kv(f, "tokenizer.ggml.bos_token_id");
    tiny_drop_kv(f, "tokenizer.ggml.eos_token_id");
    token_escape(f);
    set_type(f, 4, 4);
    const char *path = test_path("odd.gguf");
    tiny_write(path, f);
    tiny_free(f);
    assert_ok(es_model_open(&m, path, &err), &err);
    assert_int_equal(es_token_bos(m), -1);
    assert_int_equal(es_token_eos(m), -1);
    assert_true(es_token_ends(m, 2)); /* <|im_end|> by its name */
    es_ids l = ids_of(m, "a\x1b[31mb", 7, false); /* user-defined tokens are taken in any text */
    assert_int_equal(l.n, 3);
    assert_int_equal(l.id[1], 4);
    es_ids_free(&l);
    es_model_free(m);
}

int main(void)
{
    es_error err;
    if (test_real_model() && es_model_open(&real, test_real_model(), &err) != ES_OK) {
        print_error("%s\n", err.text);
        return 1;
    }
    if (!real)
        print_message("the real model is not here: its part is skipped\n");
    tiny = open_tiny(NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_peer),       cmocka_unit_test(control_tokens_only_when_trusted),
        cmocka_unit_test(bytes_without_a_token), cmocka_unit_test(is_not_quadratic),
        cmocka_unit_test(speed),                 cmocka_unit_test(any_bytes_come_back),
        cmocka_unit_test(heap_and_scan_agree),   cmocka_unit_test(patterns),
        cmocka_unit_test(faults_give_one_line),  cmocka_unit_test(harmless_oddities),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    es_model_free(real);
    es_model_free(tiny);
    return rc;
}
