/* The ids of 16,000 real texts in 400 languages, code and prose, beside the peers' (tests/golden/make_token_hashes.py): SmolLM2's tokenizer over bytes and
 * Gemma 3's over characters. */
#include "model.h"
#include "support.h"
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

enum { REAL_TEXTS = 14448, LINES = 2000 };

typedef struct run {
    es_tokenizer *t;
    es_buf golden;
    size_t at, ids, wrong;
    es_ids l;
} run;

/* FNV-1a over the ids as little-endian numbers. */
static uint32_t hash_ids(const es_ids *l)
{
    uint32_t h = 0x811c9dc5u;
    for (size_t i = 0; i < l->n; i++)
        for (int k = 0; k < 4; k++)
            h = (h ^ ((uint32_t)l->id[i] >> 8 * k & 255)) * 0x01000193u;
    return h;
}

static void check(run *r, const char *s, size_t n)
{
    es_error err;
    uint32_t want;
    assert_true((r->at + 1) * 4 <= r->golden.len);
    memcpy(&want, r->golden.data + 4 * r->at, 4);
    r->l.n = 0;
    assert_ok(es_tokenizer_ids(r->t, s, n, false, &r->l, &err), &err);
    if (hash_ids(&r->l) != want && r->wrong++ < 10)
        print_error("text %zu differs: '%.*s'\n", r->at, (int)(n < 100 ? es_utf8_whole(s, n) : es_utf8_whole(s, 100)), s);
    r->ids += r->l.n;
    r->at++;
}

static int check_json(void *user, size_t line, json_t *value, es_error *err)
{
    const json_t *text = json_object_get(value, "text");
    (void)line, (void)err;
    assert_true(json_is_string(text));
    check(user, json_string_value(text), json_string_length(text));
    return 0;
}

static void check_lines(run *r, const char *path)
{
    es_buf b = {0};
    test_read(&b, path);
    for (const char *s = b.data, *end = b.data + b.len, *stop; s < end; s = stop + 1) {
        stop = memchr(s, '\n', (size_t)(end - s));
        stop = stop ? stop : end;
        check(r, s, (size_t)(stop - s));
    }
    es_buf_free(&b);
}

static void check_all(const char *model, const char *golden)
{
    run r = {0};
    char path[1100];
    es_gguf g;
    es_error err;
    if (!model)
        skip();
    assert_ok(es_gguf_open(&g, model, &err), &err);
    assert_ok(es_tokenizer_open(&r.t, &g, (int)es_gguf_find_tensor(&g, "token_embd.weight")->ne[1], &err), &err);
    test_read(&r.golden, test_golden(golden));
    assert_int_equal(r.golden.len, 4 * (REAL_TEXTS + LINES));
    if (test_data()) {
        snprintf(path, sizeof path, "%s/concepts/udhr_langid.jsonl", test_data());
        assert_ok(es_jsonl_each(path, check_json, &r, &err), &err);
        snprintf(path, sizeof path, "%s/general/general.dev.jsonl", test_data());
        assert_ok(es_jsonl_each(path, check_json, &r, &err), &err);
        snprintf(path, sizeof path, "%s/retention/wikitext2_valid.txt", test_data());
        check_lines(&r, path);
        assert_int_equal(r.at, REAL_TEXTS);
    } else {
        print_message("the public data is not here (ESPALIER_TEST_DATA): only the lines of tokenizer.txt\n");
        r.at = REAL_TEXTS;
    }
    check_lines(&r, test_golden("tokenizer.txt"));
    assert_int_equal(r.at, REAL_TEXTS + LINES);
    print_message("%zu ids, %zu texts differ\n", r.ids, r.wrong);
    assert_int_equal(r.wrong, 0);
    es_ids_free(&r.l);
    es_buf_free(&r.golden);
    es_tokenizer_free(r.t);
    es_gguf_close(&g);
}

static void smollm2(void **state)
{
    (void)state;
    check_all(test_real_model(), "tokens/smollm2.hash");
}

static void gemma3(void **state)
{
    (void)state;
    check_all(test_gemma(), "tokens/gemma3.hash");
}

int main(void)
{
    if (!test_real_model() && !test_gemma())
        test_skip("neither SmolLM2 (ESPALIER_TEST_MODEL) nor Gemma 3 270M (ESPALIER_TEST_GEMMA) is here");
    if (!test_gemma())
        print_message("Gemma 3 270M is not here (ESPALIER_TEST_GEMMA; espalier fetch gemma3-270m gets it): its part is skipped\n");
    const struct CMUnitTest tests[] = {cmocka_unit_test(smollm2), cmocka_unit_test(gemma3)};
    return cmocka_run_group_tests_name("tokens-golden", tests, NULL, NULL);
}
