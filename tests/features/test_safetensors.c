/* safetensors: what the writer makes is read back, and every way a file can lie is refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "safetensors.h"

/* A file in memory: header as given, n bytes of zeros behind it. */
static void make(es_buf *b, const char *header, size_t n)
{
    es_buf_clear(b);
    uint64_t length = strlen(header);
    es_buf_add(b, &length, 8);
    es_buf_add(b, header, (size_t)length);
    for (size_t i = 0; i < n; i++)
        es_buf_add(b, "", 1);
}

static void expect(const void *bytes, size_t n, const char *text)
{
    es_error err = {0};
    es_safetensors *s = (es_safetensors *)&err;
    /* a copy of exactly that size, so that a sanitizer sees a read past the end */
    uint8_t *copy = malloc(n ? n : 1);
    if (n)
        memcpy(copy, bytes, n);
    int rc = es_safetensors_parse(&s, copy, n, "some.safetensors", &err);
    free(copy);
    if (rc != ES_ERR_FORMAT || s || !strstr(err.text, "some.safetensors") || !strstr(err.text, text) || strchr(err.text, '\n') || strchr(err.text, '\x1b'))
        fail_msg("got %d \"%s\", wanted \"%s\"", rc, err.text, text);
}

static void reads_what_it_writes(void **state)
{
    (void)state;
    es_error err = {0};
    es_buf b = {0};
    const float a[6] = {0, 1, -2.5f, 65504, 1e-8f, 0.1f}, c[1] = {3.14159265f};
    es_tensor_spec t[] = {{"a", ES_TENSOR_F32, 2, {2, 3}, a}, {"half", ES_TENSOR_F16, 1, {6}, a}, {"brain", ES_TENSOR_BF16, 1, {6}, a},
                          {"one", ES_TENSOR_F32, 0, {0}, c},  {"none", ES_TENSOR_F32, 2, {0, 4}, a}};
    json_t *metadata = json_pack("{s:s, s:s}", "k", "v", "format", "pt");
    assert_int_equal(es_safetensors_write(&b, t, 5, metadata, &err), 0);
    json_decref(metadata);
    assert_int_equal(b.len % 4, 0);
    es_safetensors *s;
    if (es_safetensors_parse(&s, b.data, b.len, "mine", &err))
        fail_msg("%s", err.text);
    assert_int_equal(es_safetensors_count(s), 5);
    assert_string_equal(es_safetensors_metadata(s, "k"), "v");
    assert_null(es_safetensors_metadata(s, "other"));
    assert_null(es_safetensors_find(s, "other"));
    assert_string_equal(es_safetensors_at(s, 0)->name, "a");
    assert_null(es_safetensors_at(s, 5));
    float out[6];
    assert_int_equal(es_safetensors_f32(s, "a", 2, (size_t[]){2, 3}, out, &err), 0);
    assert_memory_equal(out, a, sizeof a);
    assert_int_equal(es_safetensors_f32(s, "half", 1, (size_t[]){6}, out, &err), 0);
    for (int i = 0; i < 6; i++)
        assert_true(fabsf(out[i] - a[i]) <= fabsf(a[i]) / 2000 + 6e-8f);
    assert_int_equal(es_safetensors_f32(s, "brain", 1, (size_t[]){6}, out, &err), 0);
    for (int i = 0; i < 6; i++)
        assert_true(fabsf(out[i] - a[i]) <= fabsf(a[i]) / 250);
    assert_int_equal(es_safetensors_f32(s, "one", 0, NULL, out, &err), 0);
    assert_true(out[0] == c[0]);
    assert_int_equal(es_safetensors_f32(s, "none", 2, (size_t[]){0, 4}, out, &err), 0);
    assert_int_equal(es_safetensors_f32(s, "other", 1, (size_t[]){6}, out, &err), ES_ERR_MISSING);
    assert_int_equal(es_safetensors_f32(s, "a", 2, (size_t[]){3, 2}, out, &err), ES_ERR_FORMAT);
    assert_non_null(strstr(err.text, "[2, 3] where [3, 2]"));
    const es_tensor *ta = es_safetensors_find(s, "a");
    assert_true(es_tensor_f32(ta, 4, 2, out) && out[1] == a[5]);
    assert_false(es_tensor_f32(ta, 5, 2, out));
    assert_false(es_tensor_f32(ta, (size_t)-1, 2, out));
    es_safetensors_free(s);
    /* every truncation is an error */
    for (size_t n = 0; n < b.len; n++) {
        uint8_t *cut = malloc(n ? n : 1);
        memcpy(cut, b.data, n);
        assert_int_equal(es_safetensors_parse(&s, cut, n, "cut", &err), ES_ERR_FORMAT);
        free(cut);
    }
    /* a flipped byte is an error or another valid file, never a crash */
    es_rng r;
    es_rng_seed(&r, 5);
    for (int round = 0; round < 20000; round++) {
        uint8_t *spoilt = malloc(b.len);
        memcpy(spoilt, b.data, b.len);
        for (int k = 0; k < 1 + round % 3; k++)
            spoilt[es_rng_below(&r, b.len)] = (uint8_t)es_rng_next(&r);
        if (es_safetensors_parse(&s, spoilt, b.len, "spoilt", &err) == 0) {
            for (size_t i = 0; i < es_safetensors_count(s); i++)
                es_tensor_f32(es_safetensors_at(s, i), 0, es_safetensors_at(s, i)->n < 6 ? es_safetensors_at(s, i)->n : 6, out);
            es_safetensors_free(s);
        }
        free(spoilt);
    }
    es_buf_free(&b);
}

static void refuses_bad_headers(void **state)
{
    (void)state;
    static const struct { const char *header; size_t data; const char *text; } bad[] = {
        {"", 0, "not a JSON object"},
        {"  ", 0, "not a JSON object"},
        {"[]", 0, "not a JSON object"},
        {"{\"a\":1", 0, "JSON"},
        {"{}x", 0, "JSON"},
        {"{\"\xff\xfe\":{}}", 0, "JSON"},
        {"{\"a\":1}", 0, "lacks"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "lacks"},
        {"{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "unknown type"},
        {"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "lacks"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "dimension 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, "dimension 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[\"1\"],\"data_offsets\":[0,4]}}", 4, "dimension 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]}}", 0, "too large"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, "bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,4]}}", 4, "JSON"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "dimensions"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "reversed"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, "reversed"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}", 4, "leave the file"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 8, "lacks"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "needs 8"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "hole"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}", 12, "hole"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "overlaps"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "overlaps"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 5, "belong to no tensor"},
        {"{}", 1, "belong to no tensor"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "JSON"},
        {"{\"__metadata__\":[]}", 0, "__metadata__"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "not a string"},
        {"{\"\\u001b[2J\":{\"dtype\":\"F32\"}}", 0, "lacks"},
    };
    es_buf b = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        make(&b, bad[i].header, bad[i].data);
        expect(b.data, b.len, bad[i].text);
    }
    static const uint64_t lengths[] = {0, 1, 3, 100 << 20, (uint64_t)1 << 31, (uint64_t)1 << 63, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        make(&b, "{}", 0);
        memcpy(b.data, &lengths[i], 8);
        expect(b.data, b.len, "safetensors");
    }
    for (size_t n = 0; n < 8; n++)
        expect("\2\0\0\0\0\0\0\0", n, "header takes 8");
    /* nested 100,000 deep */
    es_buf deep = {0};
    es_buf_str(&deep, "{\"a\":");
    for (int i = 0; i < 100000; i++)
        es_buf_str(&deep, "[");
    make(&b, deep.data, 0);
    expect(b.data, b.len, "nested");
    es_buf_free(&deep);
    es_buf_free(&b);
}

static void an_empty_file_is_valid_and_padding_may_follow(void **state)
{
    (void)state;
    es_buf b = {0};
    es_error err = {0};
    es_safetensors *s;
    make(&b, "{}", 0);
    assert_int_equal(es_safetensors_parse(&s, b.data, b.len, "empty", &err), 0);
    assert_int_equal(es_safetensors_count(s), 0);
    assert_null(es_safetensors_find(s, "a"));
    es_safetensors_free(s);
    make(&b, "{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}     ", 3);
    assert_int_equal(es_safetensors_parse(&s, b.data, b.len, "padded", &err), 0);
    float out[3];
    assert_int_equal(es_safetensors_f32(s, "a", 1, (size_t[]){3}, out, &err), ES_ERR_FORMAT); /* not a floating type */
    assert_non_null(strstr(err.text, "U8"));
    es_safetensors_free(s);
    es_buf_free(&b);
}

static void a_hundred_thousand_tensors_are_quick(void **state)
{
    (void)state;
    es_buf h = {0}, b = {0};
    es_error err = {0};
    enum { N = 100000 };
    es_buf_str(&h, "{");
    for (int i = 0; i < N; i++) /* against the order of the data */
        es_buf_printf(&h, "%s\"t%d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}", i ? "," : "", i, N - 1 - i, N - i);
    es_buf_str(&h, "}");
    make(&b, h.data, N);
    double began = es_seconds();
    es_safetensors *s;
    if (es_safetensors_parse(&s, b.data, b.len, "many", &err))
        fail_msg("%s", err.text);
    assert_int_equal(es_safetensors_count(s), N);
    for (int i = 0; i < N; i += 7) {
        char name[20];
        snprintf(name, sizeof name, "t%d", i);
        assert_non_null(es_safetensors_find(s, name));
    }
    assert_true(es_seconds() - began < 10);
    es_safetensors_free(s);
    es_buf_free(&h);
    es_buf_free(&b);
}

static void shard_names_stay_in_their_folder(void **state)
{
    (void)state;
    char dir[] = "/tmp/espalier-shards-XXXXXX", path[100], command[100];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    static const struct { const char *text; int code; size_t n; } cases[] = {
        {"{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-2.safetensors\",\"c\":\"m-1.safetensors\"}}", 0, 2},
        {"{\"weight_map\":{\"a\":\"../../x\"}}", ES_ERR_FORMAT, 0},
        {"{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"/etc/passwd\"}}", ES_ERR_FORMAT, 0},
        {"{\"weight_map\":{\"a\":\"..\"}}", ES_ERR_FORMAT, 0},
        {"{\"weight_map\":{\"a\":\"\"}}", ES_ERR_FORMAT, 0},
        {"{\"weight_map\":{\"a\":7}}", ES_ERR_FORMAT, 0},
        {"{\"weight_map\":[]}", ES_ERR_FORMAT, 0},
        {"[]", ES_ERR_FORMAT, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        es_error err = {0};
        char **name;
        size_t n;
        assert_int_equal(es_file_write(path, cases[i].text, strlen(cases[i].text), &err), 0);
        assert_int_equal(es_safetensors_shards(&name, &n, path, &err), cases[i].code);
        assert_int_equal(n, cases[i].n);
        for (size_t k = 0; k < n; k++)
            free(name[k]);
        free(name);
    }
    snprintf(command, sizeof command, "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_it_writes), cmocka_unit_test(refuses_bad_headers), cmocka_unit_test(an_empty_file_is_valid_and_padding_may_follow),
        cmocka_unit_test(a_hundred_thousand_tensors_are_quick), cmocka_unit_test(shard_names_stay_in_their_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
