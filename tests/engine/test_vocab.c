/* Vocabularies of every kind that is read, from GGUF and from tokenizer.json, beside SentencePiece's and tokenizers' ids
 * (tests/golden/make_tokenizers.py); and what is wrong with them said in one line. */
#include "model.h"
#include "support.h"
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { BYTES_ROWS = 600, CHARACTER_ROWS = 1400, LINES = 2000, SPARE = 5 };

static const char *golden(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static const char *golden(const char *fmt, ...)
{
    static char ring[4][1024];
    static int at;
    char name[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    char *out = ring[at++ % 4];
    snprintf(out, sizeof ring[0], "%s", test_golden(name));
    return out;
}

static es_tokenizer *open_gguf(const char *name)
{
    es_gguf g;
    es_error err;
    es_tokenizer *t;
    assert_ok(es_gguf_open(&g, golden("tokenizers/%s.gguf", name), &err), &err);
    assert_ok(es_tokenizer_open(&t, &g, CHARACTER_ROWS, &err), &err);
    es_gguf_close(&g);
    return t;
}

/* Of a folder with more rows than tokens, as models have them. */
static es_tokenizer *open_folder(const char *path, int rows)
{
    es_error err;
    es_tokenizer *t;
    assert_ok(es_tokenizer_open_folder(&t, path, rows + SPARE, &err), &err);
    assert_non_null(t);
    return t;
}

/* ---- the same ids as the peers ---- */

static uint32_t hash_ids(const es_ids *l)
{
    uint32_t h = 0x811c9dc5u;
    for (size_t i = 0; i < l->n; i++)
        for (int k = 0; k < 4; k++)
            h = (h ^ ((uint32_t)l->id[i] >> 8 * k & 255)) * 0x01000193u;
    return h;
}

/* Each line of tokenizer.txt, 1 to 5 newlines, the next line, a newline: what make_tokenizers.py hashed. */
static void check_texts(es_tokenizer *t, const char *name)
{
    es_buf lines = {0}, want = {0}, text = {0};
    const char *line[LINES + 1];
    es_ids l = {0};
    es_error err;
    size_t ids = 0, skipped = 0; /* texts that the peers disagree about */
    test_read(&lines, golden("tokenizer.txt"));
    test_read(&want, golden("tokenizers/%s.hash", name));
    assert_int_equal(want.len, 4 * (LINES - 1));
    line[0] = lines.data;
    for (int i = 0; i < LINES; i++)
        line[i + 1] = (const char *)memchr(line[i], '\n', (size_t)(lines.data + lines.len - line[i])) + 1;
    for (int i = 0; i + 1 < LINES; i++) {
        uint32_t h;
        es_buf_clear(&text);
        es_buf_add(&text, line[i], (size_t)(line[i + 1] - line[i] - 1));
        es_buf_add(&text, "\n\n\n\n\n", (size_t)(1 + i % 5));
        es_buf_add(&text, line[i + 1], (size_t)(line[i + 2] - line[i + 1]));
        l.n = 0;
        assert_ok(es_tokenizer_ids(t, text.data, text.len, false, &l, &err), &err);
        memcpy(&h, want.data + 4 * i, 4);
        skipped += h == 0;
        if (h && h != hash_ids(&l))
            fail_msg("%s: the ids of text %d differ: '%s'", name, i, text.data);
        ids += l.n;
    }
    print_message("%-12s %zu ids, %zu texts not compared\n", name, ids, skipped);
    assert_true(skipped <= 4);
    es_ids_free(&l);
    es_buf_free(&lines);
    es_buf_free(&want);
    es_buf_free(&text);
}

static void equals_sentencepiece(void **state)
{
    (void)state;
    static const char *const names[] = {"gemma", "llama"};
    for (int i = 0; i < 2; i++) {
        es_tokenizer *t = open_gguf(names[i]);
        check_texts(t, names[i]);
        assert_true(t->bos == 2 && t->eos == 1 && t->unknown == 3 && t->bos_first && t->ends[1] && !t->ends[2]);
        es_tokenizer_free(t);
    }
}

static void equals_tokenizers(void **state)
{
    (void)state;
    static const struct {
        const char *folder, *hash;
        int rows;
        bool first;
    } cases[] = {{"gemma", "gemma.json", CHARACTER_ROWS, true}, {"llama", "llama.json", CHARACTER_ROWS, true}, {"llama3", "llama3", BYTES_ROWS, true},
                 {"qwen", "qwen", BYTES_ROWS, false},           {"smollm", "smollm", BYTES_ROWS, false},       {"gpt2", "gpt2", BYTES_ROWS, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        es_tokenizer *t = open_folder(golden("tokenizers/%s", cases[i].folder), cases[i].rows);
        check_texts(t, cases[i].hash);
        assert_int_equal(t->bos_first, cases[i].first);
        assert_true(t->eos >= 0 && t->ends[t->eos]);
        es_tokenizer_free(t);
    }
}

/* ---- characters ---- */

static void assert_ids(const es_tokenizer *t, const char *s, size_t n, bool special, const char *const *want)
{
    es_ids l = {0};
    es_error err;
    size_t i = 0;
    assert_ok(es_tokenizer_ids(t, s, n, special, &l, &err), &err);
    for (; want[i] && i < l.n; i++) {
        char got[64];
        int32_t id = l.id[i];
        snprintf(got, sizeof got, "%s%.*s", t->type[id] == ES_TOKEN_CONTROL ? "#" : t->type[id] == ES_TOKEN_USER ? "+" : "", (int)(t->at[id + 1] - t->at[id]), t->bytes + t->at[id]);
        assert_string_equal(got, want[i]);
    }
    assert_null(want[i]);
    assert_int_equal(l.n, i);
    es_ids_free(&l);
}

#define IDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void special_tokens(void **state)
{
    (void)state;
    es_tokenizer *t = open_gguf("gemma");
    assert_ids(t, "<start_of_turn>\n\n\n\n<b>", 22, true, IDS("#<start_of_turn>", "+\n\n\n", "+\n", "+<b>"));
    assert_ids(t, "         <b>", 12, false, IDS("+        ", " ", "+<b>")); /* nine spaces */
    assert_ids(t, "\xe2\x96\x81\xe2\x96\x81", 6, false, IDS(" ", " ")); /* the mark, written: two spaces, but not the user-defined token */
    es_ids l = {0};
    es_error err;
    assert_ok(es_tokenizer_ids(t, "<bos><end_of_turn><0x0A><unk>", 29, false, &l, &err), &err);
    for (size_t i = 0; i < l.n; i++)
        assert_true(t->type[l.id[i]] == ES_TOKEN_NORMAL);
    es_ids_free(&l);
    es_tokenizer_free(t);
    t = open_gguf("llama"); /* a space in front of each plain text */
    assert_ids(t, "<bos> the<bos>the", 17, true, IDS("#<bos>", " ", " the", "#<bos>", " the"));
    es_tokenizer_free(t);
}

/* Any bytes come back; what is not UTF-8 as bytes. */
static void any_bytes(void **state)
{
    (void)state;
    es_rng r;
    es_rng_seed(&r, 5);
    es_tokenizer *t = open_gguf("gemma");
    static const char *const pieces[] = {"the ", "  ", "\n\n", "\xff", "\xf0\x9f", "\xf0\x9f\x98\x80", "\xc0\x80", "12", "\xed\xa0\x80", "\xe6\xbc\xa2", "<b>", "<bos>", "", "\xc2\xa0"};
    for (int round = 0; round < 2000; round++) {
        es_buf b = {0}, back = {0};
        es_ids l = {0};
        es_error err;
        es_buf_add(&b, "", 0);
        for (uint64_t k = es_rng_below(&r, 60); k > 0; k--) {
            const char *p = pieces[es_rng_below(&r, sizeof pieces / sizeof *pieces)];
            es_buf_add(&b, p, *p ? strlen(p) : 1);
            char c = (char)es_rng_next(&r);
            es_buf_add(&b, &c, es_rng_below(&r, 4) == 0);
        }
        assert_ok(es_tokenizer_ids(t, b.data, b.len, false, &l, &err), &err);
        for (size_t i = 0; i < l.n; i++)
            es_buf_add(&back, t->bytes + t->at[l.id[i]], t->at[l.id[i] + 1] - t->at[l.id[i]]);
        assert_int_equal(back.len, b.len);
        assert_true(b.len == 0 || memcmp(back.data, b.data, b.len) == 0);
        es_ids_free(&l);
        es_buf_free(&b);
        es_buf_free(&back);
    }
    es_tokenizer_free(t);
}

/* A quadratic merge would take hours and run into the test's time limit. */
static void is_not_quadratic(void **state)
{
    (void)state;
    enum { N = 1000000 };
    static const char fill[] = {' ', 'a', '\n', '=', '0', '\xff', '\x80'};
    static char s[N];
    for (int k = 0; k < 2; k++) {
        es_tokenizer *t = open_gguf(k ? "llama" : "gemma");
        for (size_t i = 0; i < sizeof fill; i++) {
            es_ids l = {0};
            es_error err;
            memset(s, fill[i], N);
            double began = es_seconds();
            assert_ok(es_tokenizer_ids(t, s, N, false, &l, &err), &err);
            print_message("%s, 1 MB of 0x%02x: %zu tokens in %.2f s\n", k ? "llama" : "gemma", (unsigned char)fill[i], l.n, es_seconds() - began);
            assert_true(l.n > 0 && l.n <= N + 1);
            es_ids_free(&l);
        }
        es_tokenizer_free(t);
    }
}

/* ---- a GGUF's faults ---- */

#define TOKENS "tokenizer.ggml.tokens"
#define TYPES "tokenizer.ggml.token_type"
#define SCORES "tokenizer.ggml.scores"

static void set_type(tiny_file *f, size_t i, int32_t type) { memcpy(tiny_find_kv(f, TYPES)->value.data + 12 + 4 * i, &type, 4); }

static void add_scores(tiny_file *f, uint32_t type, uint64_t count, float first)
{
    es_buf b = {0};
    es_buf_add(&b, &type, 4);
    es_buf_add(&b, &count, 8);
    for (uint64_t i = 0; i < count; i++) {
        float s = i == 0 ? first : -(float)i;
        es_buf_add(&b, &s, 4);
    }
    tiny_add_kv(f, SCORES, 9, b.data, b.len);
    es_buf_free(&b);
}

/* The tiny model with a vocabulary of characters: three control tokens, 256 bytes, and what the merges made. */
static tiny_file *build(void)
{
    tiny_file *f = tiny_build(NULL);
    tiny_set_str(f, "tokenizer.ggml.model", "llama");
    tiny_drop_kv(f, "tokenizer.ggml.merges");
    for (size_t i = 0; i < 256; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)i);
        tiny_set_entry(f, TOKENS, 3 + i, name, 6);
        set_type(f, 3 + i, 6);
    }
    tiny_set_entry(f, TOKENS, 259, "\xe2\x96\x81t", 4);
    tiny_set_entry(f, TOKENS, 322, "t", 1);
    tiny_set_entry(f, TOKENS, 321, "\xe2\x96\x81", 3);
    return f;
}

static void sound(tiny_file *f) { add_scores(f, 6, TINY_VOCAB, 0); }
static void no_scores(tiny_file *f) { (void)f; }
static void scores_of_i32(tiny_file *f) { add_scores(f, 5, TINY_VOCAB, 0); }
static void few_scores(tiny_file *f) { add_scores(f, 6, 7, 0); }
static void nan_score(tiny_file *f) { add_scores(f, 6, TINY_VOCAB, (float)strtod("nan", NULL)); }
static void no_types(tiny_file *f) { sound(f), tiny_drop_kv(f, TYPES); }
static void byte_minus_1(tiny_file *f) { sound(f), tiny_set_entry(f, TOKENS, 3, "<0x-1>", 6); }
static void byte_zz(tiny_file *f) { sound(f), tiny_set_entry(f, TOKENS, 3, "<0xZZ>", 6); }
static void byte_twice(tiny_file *f) { sound(f), tiny_set_entry(f, TOKENS, 3, "<0x01>", 6); }
static void empty(tiny_file *f) { sound(f), tiny_set_entry(f, TOKENS, 300, "", 0); }
static void nul(tiny_file *f) { sound(f), tiny_set_entry(f, TOKENS, 300, "a\0b", 3); }
static void not_utf8(tiny_file *f) { sound(f), tiny_set_entry(f, TOKENS, 300, "\xe2\x96", 2); }
static void overlong(tiny_file *f)
{
    static char s[70000];
    sound(f);
    memset(s, 'x', sizeof s);
    tiny_set_entry(f, TOKENS, 300, s, sizeof s);
}
static void bos_over(tiny_file *f) { sound(f), tiny_set_u32(f, "tokenizer.ggml.bos_token_id", TINY_VOCAB); }
static void eos_over(tiny_file *f) { sound(f), tiny_set_u32(f, "tokenizer.ggml.eos_token_id", UINT32_MAX); }
static void prefix_a_number(tiny_file *f) { sound(f), tiny_add_kv(f, "tokenizer.ggml.add_space_prefix", 4, "\1\0\0\0", 4); }
static void hot(tiny_file *f)
{
    float t = 1e9f;
    sound(f);
    tiny_add_kv(f, "general.sampling.temp", 6, &t, 4);
}

static void faults(void **state)
{
    (void)state;
    static const struct {
        const char *says; /* NULL: it opens */
        void (*spoil)(tiny_file *f);
    } list[] = {{NULL, sound},
                {"scores is missing", no_scores},
                {"scores", scores_of_i32},
                {"scores has 7", few_scores},
                {"score that is not a number", nan_score},
                {"token_type is missing", no_types},
                {"<0x00> to <0xFF>", byte_minus_1},
                {"<0x00> to <0xFF>", byte_zz},
                {"occurs twice", byte_twice},
                {"is empty", empty},
                {"holds a NUL", nul},
                {"is not UTF-8", not_utf8},
                {"over 65,535", overlong},
                {"bos_token_id", bos_over},
                {"eos_token_id", eos_over},
                {"add_space_prefix", prefix_a_number},
                {"temperature", hot}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        tiny_file *f = build();
        es_model *m;
        es_error err = {0};
        const char *path = test_path("fault.gguf");
        list[i].spoil(f);
        tiny_write(path, f);
        tiny_free(f);
        int rc = es_model_open(&m, path, &err);
        if (list[i].says) {
            print_message("%s\n", err.text);
            assert_error(rc, &err, list[i].says);
            assert_null(m);
            continue;
        }
        assert_ok(rc, &err);
        assert_ids(m->tokenizer, "t t", 3, false, IDS(" t", " t")); /* the first space is the prefix */
        es_model_free(m);
    }
}

/* ---- folders ---- */

static void write_text(const char *folder, const char *name, const char *text)
{
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    test_write(path, text, strlen(text));
}

static void beginnings_and_ends(void **state)
{
    (void)state;
    const char *folder = test_path("ends");
    es_buf b = {0};
    es_error err;
    assert_int_equal(mkdir(folder, 0700), 0);
    test_read(&b, golden("tokenizers/gpt2/tokenizer.json"));
    write_text(folder, "tokenizer.json", b.data);
    write_text(folder, "config.json", "{\"eos_token_id\": 7, \"bos_token_id\": 9}");
    es_tokenizer *t = open_folder(folder, BYTES_ROWS);
    assert_true(t->eos == 7 && t->bos == 9 && !t->bos_first && t->ends[7] && t->chat.warning);
    es_tokenizer_free(t);
    write_text(folder, "generation_config.json", "{\"eos_token_id\": [5, 6], \"temperature\": 0.6, \"top_k\": 20}");
    write_text(folder, "tokenizer_config.json", "{\"bos_token\": \"<bos>\", \"eos_token\": {\"content\": \"<eos>\"}, \"add_bos_token\": true,"
                                                " \"chat_template\": [{\"name\": \"tools\", \"template\": \"?\"}, {\"name\": \"default\", \"template\": \"<|im_start|><|im_end|>\"}]}");
    t = open_folder(folder, BYTES_ROWS);
    assert_true(t->bos == es_tokenizer_special(t, "<bos>") && t->eos == es_tokenizer_special(t, "<eos>") && t->bos_first);
    assert_true(t->ends[t->eos] && t->ends[5] && t->ends[6] && t->ends[7] && !t->ends[8]);
    assert_true(t->chat.style == ES_CHAT_CHATML && !t->chat.warning);
    es_tokenizer_free(t);
    write_text(folder, "chat_template.jinja", "unheard of"); /* goes before the one inside */
    t = open_folder(folder, BYTES_ROWS);
    assert_non_null(strstr(t->chat.warning, "unheard of"));
    es_tokenizer_free(t);
    write_text(folder, "generation_config.json", "{\"eos_token_id\": [5, 100000]}");
    assert_error(es_tokenizer_open_folder(&t, folder, BYTES_ROWS, &err), &err, "generation_config.json: eos_token_id");
    write_text(folder, "generation_config.json", "{\"eos_token_id\": \"</s>\"}");
    assert_error(es_tokenizer_open_folder(&t, folder, BYTES_ROWS, &err), &err, "generation_config.json: eos_token_id");
    write_text(folder, "generation_config.json", "{\"eos_token_id\": null}");
    assert_error(es_tokenizer_open_folder(&t, folder, 300, &err), &err, "under 300");
    assert_ok(es_tokenizer_open_folder(&t, test_path("none"), 300, &err), &err);
    assert_null(t);
    es_buf_free(&b);
}

/* From, to: the first of it in the sound file is replaced. */
static void json_faults(void **state)
{
    (void)state;
    static const struct {
        const char *kind, *from, *to, *says;
    } list[] = {
        {"gpt2", "\"type\":\"BPE\"", "\"type\":\"Unigram\"", "'Unigram'"},
        {"gpt2", "\"type\":\"BPE\"", "\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\",\"x\":1,\"y\":[", "tokenizer.json"},
        {"gpt2", "\"end_of_word_suffix\":null", "\"end_of_word_suffix\":\"</w>\"", "'</w>'"},
        {"gpt2", "\"normalizer\":null", "\"normalizer\":{\"type\":\"Lowercase\"}", "'Lowercase'"},
        {"gpt2", "\"use_regex\":true", "\"use_regex\":false", "'nowhere'"},
        {"gpt2", "\"add_prefix_space\":false", "\"add_prefix_space\":true", "add_prefix_space"},
        {"gpt2", "\"pre_tokenizer\":{\"type\":\"ByteLevel\"", "\"pre_tokenizer\":{\"type\":\"Whitespace\"", "'Whitespace'"},
        {"llama3", "\\\\p{N}{1,3}", "\\\\p{N}{1,4}", "pattern"},
        {"gpt2", "\"vocab\":{", "\"vocabulary\":{", "\"vocab\" is missing"},
        {"gpt2", "\"merges\":[", "\"mergers\":[", "\"merges\" is missing"},
        {"gpt2", "\"merges\":[[", "\"merges\":[[\"\",\"a\"],[", "merge 0"},
        {"gpt2", "\"merges\":[[", "\"merges\":[[\"a\"],[", "merge 0"},
        {"gpt2", "\"merges\":[[", "\"merges\":[\"a b c\",[", "not two tokens"},
        {"gpt2", "\"merges\":[[", "\"merges\":[7,[", "not two tokens"},
        {"gpt2", "\"merges\":[[", "\"merges\":[[\"zz\",\"qq\"],[", "joins a token"},
        {"gpt2", "\"merges\":[[", "\"merges\":[[\"q\",\"z\"],[", "makes a token"},
        {"gpt2", "\"vocab\":{", "\"vocab\":{\"neg\":-1,", "'neg'"},
        {"gpt2", "\"vocab\":{", "\"vocab\":{\"far\":99999,", "'far'"},
        {"gpt2", "\"vocab\":{", "\"vocab\":{\"half\":1.5,", "'half'"},
        {"gpt2", "\"vocab\":{", "\"vocab\":{\"twin\":40,", "shares its id"},
        {"gpt2", "\"vocab\":{", "\"vocab\":{\"\":601,", "is empty"},
        {"gpt2", "\"vocab\":{", "\"vocab\":{\"n\\u0000l\":601,", "tokenizer.json"},
        {"gpt2", "\"added_tokens\":[", "\"added_tokens\":[{\"id\":602},", "no \"content\""},
        {"gpt2", "\"added_tokens\":[", "\"added_tokens\":[{\"id\":-2,\"content\":\"q\"},", "'q'"},
        {"gemma", "\"pre_tokenizer\":{\"type\":\"Split\"", "\"pre_tokenizer\":{\"type\":\"ByteLevel\"", "both kinds"},
    };
    const char *folder = test_path("json");
    assert_int_equal(mkdir(folder, 0700), 0);
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        es_buf b = {0}, spoilt = {0};
        es_tokenizer *t;
        es_error err = {0};
        test_read(&b, golden("tokenizers/%s/tokenizer.json", list[i].kind));
        char *at = strstr(b.data, list[i].from);
        if (!at)
            fail_msg("%s is not in the file", list[i].from);
        es_buf_add(&spoilt, b.data, (size_t)(at - b.data));
        es_buf_str(&spoilt, list[i].to);
        es_buf_str(&spoilt, at + strlen(list[i].from));
        write_text(folder, "tokenizer.json", spoilt.data);
        int rc = es_tokenizer_open_folder(&t, folder, list[i].kind[1] == 'e' ? CHARACTER_ROWS : BYTES_ROWS + SPARE, &err);
        print_message("%s\n", err.text);
        assert_error(rc, &err, list[i].says);
        assert_null(t);
        es_buf_free(&b);
        es_buf_free(&spoilt);
    }
}

/* Some bytes of a sound file changed: it is refused in one line, or it opens and can be used. */
static void damage(void **state)
{
    (void)state;
    enum { ROUNDS = 600 };
    const char *folder = test_path("damaged"), *gguf = test_path("damaged.gguf");
    static const char text[] = "the <b>\n\n  \xf0\x9f\x98\x80\xff <bos> token";
    es_rng r;
    es_rng_seed(&r, 11);
    assert_int_equal(mkdir(folder, 0700), 0);
    int opened[2] = {0};
    for (int kind = 0; kind < 2; kind++) {
        es_buf b = {0}, spoilt = {0};
        test_read(&b, golden(kind ? "tokenizers/gemma/tokenizer.json" : "tokenizers/gemma.gguf"));
        for (int i = 0; i < ROUNDS; i++) {
            es_tokenizer *t = NULL;
            es_gguf g;
            es_error err = {0};
            es_ids l = {0};
            es_buf_clear(&spoilt);
            es_buf_add(&spoilt, b.data, b.len);
            for (uint64_t k = es_rng_below(&r, 3) + 1; k > 0; k--)
                spoilt.data[es_rng_below(&r, es_rng_below(&r, 2) ? b.len : 900)] = (char)es_rng_next(&r);
            int rc;
            if (kind) {
                char path[1200];
                snprintf(path, sizeof path, "%s/tokenizer.json", folder);
                test_write(path, spoilt.data, spoilt.len);
                rc = es_tokenizer_open_folder(&t, folder, CHARACTER_ROWS, &err);
            } else {
                test_write(gguf, spoilt.data, spoilt.len);
                rc = es_gguf_open(&g, gguf, &err);
                if (rc == ES_OK) {
                    rc = es_tokenizer_open(&t, &g, CHARACTER_ROWS, &err);
                    es_gguf_close(&g);
                }
            }
            if (rc != ES_OK) {
                assert_error(rc, &err, NULL);
                assert_null(t);
                continue;
            }
            opened[kind]++;
            assert_ok(es_tokenizer_ids(t, text, sizeof text - 1, true, &l, &err), &err);
            for (size_t k = 0; k < l.n; k++)
                assert_in_range(l.id[k], 0, CHARACTER_ROWS - 1);
            es_ids_free(&l);
            es_tokenizer_free(t);
        }
        es_buf_free(&b);
        es_buf_free(&spoilt);
    }
    print_message("of %d damaged files %d GGUFs and %d tokenizer.json open\n", (int)ROUNDS, opened[0], opened[1]);
    assert_true(opened[0] > 0 && opened[0] < ROUNDS && opened[1] < ROUNDS);
}

/* The whole way: a folder with weights and a tokenizer. */
static void folder_model(void **state)
{
    (void)state;
    static const char *const files[] = {"config.json", "model.safetensors"};
    const char *folder = test_path("model");
    es_buf b = {0};
    es_model *m;
    es_error err;
    assert_int_equal(mkdir(folder, 0700), 0);
    for (int i = 0; i < 2; i++) {
        char path[1200];
        es_buf_clear(&b);
        test_read(&b, golden("families/qwen3/%s", files[i]));
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        test_write(path, b.data, b.len);
    }
    write_text(folder, "tokenizer.json", "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"\\u0120\":3,\"<|im_start|>\":4,\"<|im_end|>\":5},\"merges\":[\"a b\"]},"
                                         "\"added_tokens\":[{\"id\":4,\"content\":\"<|im_start|>\",\"special\":true},{\"id\":5,\"content\":\"<|im_end|>\",\"special\":true}],"
                                         "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}}");
    write_text(folder, "generation_config.json", "{\"eos_token_id\": [0, 5], \"temperature\": 0.6, \"top_k\": 20, \"top_p\": 0.8}");
    assert_ok(es_model_open(&m, folder, &err), &err);
    es_ids l = {0};
    assert_ok(es_tokenize(m, "ab a", 4, false, &l, &err), &err);
    assert_true(l.n == 3 && l.id[0] == 2 && l.id[1] == 3 && l.id[2] == 0);
    assert_true(es_token_ends(m, 5) && es_token_ends(m, 0) && !es_token_ends(m, 1));
    es_sampling s = es_model_sampling(m, es_sampling_unset()), asked = es_sampling_unset();
    assert_true(s.temperature == 0.6f && s.top_k == 20 && s.top_p == 0.8f && s.repeat_penalty == es_sampling_default().repeat_penalty);
    asked.temperature = 0;
    assert_true(es_model_sampling(m, asked).temperature == 0);
    es_ids_free(&l);
    es_model_free(m);
    es_buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_sentencepiece), cmocka_unit_test(equals_tokenizers), cmocka_unit_test(special_tokens),      cmocka_unit_test(any_bytes),
        cmocka_unit_test(is_not_quadratic),     cmocka_unit_test(faults),            cmocka_unit_test(beginnings_and_ends), cmocka_unit_test(json_faults),
        cmocka_unit_test(damage),               cmocka_unit_test(folder_model),
    };
    return cmocka_run_group_tests_name("vocab", tests, NULL, NULL);
}
