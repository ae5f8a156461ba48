#include "failing.h"
#include "support.h"

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- errors ---- */

static void errors_are_one_printable_line(void **state)
{
    (void)state;
    es_error err;
    assert_int_equal(es_fail(&err, ES_ERR_IO, "%s: %d", "a\x1b]52;c;x\x07\nb\xc2\x9b" "c\x7f\xff\xe2\x80\xae", 7), ES_ERR_IO);
    assert_int_equal(err.code, ES_ERR_IO);
    assert_string_equal(err.text, "a\\x1b]52;c;x\\x07\\nb\\u009bc\\x7f\\xff\\u202e: 7");
    assert_int_equal(es_fail_prefix(&err, "file %d", 3), ES_ERR_IO);
    assert_string_equal(err.text, "file 3: a\\x1b]52;c;x\\x07\\nb\\u009bc\\x7f\\xff\\u202e: 7");
    assert_int_equal(es_fail(NULL, ES_ERR_MEMORY, "x"), ES_ERR_MEMORY);

    /* its own text as an argument, and more than fits: cut between characters, the cause of a prefix kept */
    es_fail(&err, ES_ERR_USAGE, "cause");
    es_fail(&err, ES_ERR_USAGE, "again: %s", err.text);
    assert_string_equal(err.text, "again: cause");
    char longer[2000];
    for (size_t i = 0; i < sizeof longer - 1; i++)
        longer[i] = "\xe6\xbc\xa2"[i % 3];
    longer[sizeof longer - 1] = 0;
    es_fail_prefix(&err, "%s", longer);
    assert_non_null(strstr(err.text, "cause"));
    es_fail(&err, ES_ERR_USAGE, "%s", longer);
    size_t n = strlen(err.text);
    assert_true(n < sizeof err.text && n > sizeof err.text - 16);
    assert_int_equal(es_utf8_whole(err.text, n), n);
}

/* ---- memory ---- */

static void sizes_are_checked(void **state)
{
    (void)state;
    size_t out = 0;
    assert_true(es_mul(1 << 20, 1 << 20, &out) && out == (size_t)1 << 40);
    assert_false(es_mul((size_t)1 << 33, (size_t)1 << 31, &out));
    assert_true(es_mul(0, SIZE_MAX, &out) && out == 0);
    assert_true(es_add(SIZE_MAX, 0, &out) && out == SIZE_MAX);
    assert_false(es_add(SIZE_MAX, 1, &out));
    assert_null(es_calloc((size_t)1 << 33, (size_t)1 << 31));
    assert_null(es_calloc(SIZE_MAX, 1));
    assert_null(es_calloc(SIZE_MAX - 63, 1));
    for (size_t n = 0; n < 200; n++) {
        char *p = es_calloc(n, 3);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 64, 0);
        for (size_t i = 0; i < 3 * n; i++)
            assert_int_equal(p[i], 0);
        memset(p, 1, 3 * n);
        free(p);
    }
}

static void arenas(void **state)
{
    (void)state;
    static const size_t counts[] = {3, 400000};
    for (size_t k = 0; k < 2; k++) { /* a small one and a mapped one */
        es_arena measure = {0}, a;
        es_error err;
        assert_null(es_arena_take(&measure, counts[k], 7));
        assert_null(es_arena_take(&measure, 0, 7));
        assert_null(es_arena_take(&measure, 1, 100));
        assert_ok(es_arena_open(&a, measure.used, &err), &err);
        char *p = es_arena_take(&a, counts[k], 7), *q = es_arena_take(&a, 0, 7), *r = es_arena_take(&a, 1, 100);
        assert_non_null(p);
        assert_non_null(q);
        assert_non_null(r);
        assert_int_equal((uintptr_t)p % 64 + (uintptr_t)r % 64, 0);
        assert_true(r >= p + 7 * counts[k]);
        for (size_t i = 0; i < 7 * counts[k]; i += 1 + k * 99)
            assert_int_equal(p[i], 0);
        memset(p, 1, 7 * counts[k]);
        memset(r, 2, 100);
        assert_int_equal(a.used, measure.used);
        assert_null(es_arena_take(&a, 1, 1)); /* full */
        es_arena_close(&a);
        es_arena_close(&a);
    }
    es_arena measure = {0}, a;
    es_error err;
    es_arena_take(&measure, SIZE_MAX, 2); /* what overflows while measuring must not open */
    assert_error(es_arena_open(&a, measure.used, &err), &err, "not enough memory");
    assert_error(es_arena_open(&a, SIZE_MAX, &err), &err, "not enough memory");
}

static void buffers(void **state)
{
    (void)state;
    es_buf b = {0};
    es_buf_add(&b, "a\0b", 3);
    es_buf_str(&b, "cd");
    es_buf_printf(&b, "%05d", 42);
    assert_int_equal(b.len, 10);
    assert_memory_equal(b.data, "a\0bcd00042", 11);
    for (int i = 0; i < 1000; i++)
        es_buf_printf(&b, "%d,", i);
    assert_int_equal(b.len, 10 + 3890);
    es_buf_clear(&b);
    assert_string_equal(b.data, "");
    es_buf_add(&b, "x", SIZE_MAX - 1); /* cannot be: nothing is copied */
    assert_true(b.failed);
    es_buf_str(&b, "y");
    assert_int_equal(b.len, 0);
    es_buf_free(&b);
    es_buf_free(&b);
}

/* ---- text ---- */

static void assert_shown(const char *s, size_t n, bool keep, const char *want)
{
    es_buf b = {0};
    es_text_show(&b, s, n, keep);
    assert_string_equal(b.data, want);
    es_buf_free(&b);
}

static void shown_never_sent(void **state)
{
    (void)state;
    assert_shown("", 0, false, "");
    assert_shown("plain \xc3\xa9 \xe6\xbc\xa2 \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x9a\x80", 24, false,
                 "plain \xc3\xa9 \xe6\xbc\xa2 \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x9a\x80");
    assert_shown("a\x1b[2Jb\0c", 8, false, "a\\x1b[2Jb\\x00c");
    assert_shown("a\tb\nc\r", 6, false, "a\\tb\\nc\\r");
    assert_shown("a\tb\nc\r", 6, true, "a\tb\nc\\r");
    assert_shown("\xc2\x9b\x9b\x7f", 4, true, "\\u009b\\x9b\\x7f");
    assert_shown("\xe2\x80\xae\xe2\x81\xa6\xe2\x80\xa8\xd8\x9c", 11, true, "\\u202e\\u2066\\u2028\\u061c");
    assert_shown("\xf0\x9f\x98", 3, true, "\\xf0\\x9f\\x98");                       /* cut character */
    assert_shown("\xc0\x80\xed\xa0\x80\xf5\x80\x80\x80", 9, true, "\\xc0\\x80\\xed\\xa0\\x80\\xf5\\x80\\x80\\x80"); /* overlong, surrogate, too far */

    es_rng r; /* whatever the bytes: what comes out is whole UTF-8 without controls */
    es_rng_seed(&r, 5);
    for (int round = 0; round < 3000; round++) {
        char s[64];
        size_t n = es_rng_below(&r, sizeof s);
        for (size_t i = 0; i < n; i++)
            s[i] = es_rng_below(&r, 3) ? (char)es_rng_next(&r) : "\xc2\xe2\x80\xf0\x9f\x1b"[es_rng_below(&r, 6)];
        es_buf b = {0};
        es_text_show(&b, s, n, false);
        assert_int_equal(es_utf8_whole(b.data, b.len), b.len);
        for (size_t i = 0; i < b.len; i++)
            assert_true((unsigned char)b.data[i] >= 0x20 && b.data[i] != 0x7f);
        for (size_t i = 0; i + 1 < b.len; i++)
            assert_false((unsigned char)b.data[i] == 0xc2 && (unsigned char)b.data[i + 1] < 0xa0);
        es_buf_free(&b);
    }
}

static void widths(void **state)
{
    (void)state;
    assert_int_equal(es_text_width("abc", 3), 3);
    assert_int_equal(es_text_width("e\xcc\x81", 3), 1);          /* combining */
    assert_int_equal(es_text_width("\xe6\xbc\xa2\xe5\xad\x97", 6), 4); /* wide */
    assert_int_equal(es_text_width("\xf0\x9f\x98\x80", 4), 2);
    assert_int_equal(es_text_width("", 0), 0);
    assert_int_equal(es_utf8_whole("ab\xf0\x9f\x98", 5), 2);
    es_buf mended = {0};
    es_utf8_mend(&mended, "a\0b\xe6\xbc\0\xff" "c\xe6", 9);
    es_buf_add(&mended, "", 1);
    assert_string_equal(mended.data, "a\xef\xbf\xbd" "b\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" "c\xef\xbf\xbd");
    es_buf_free(&mended);
    json_t *text = es_json_mended("\0\xc3", 2);
    assert_string_equal(json_string_value(text), "\xef\xbf\xbd\xef\xbf\xbd");
    json_decref(text);
    assert_int_equal(es_utf8_whole("\xf0\x9f\x98\x80x", 5), 5);
    assert_int_equal(es_utf8_whole("\x80x", 2), 0);
    assert_int_equal(es_utf8_whole("a\0b", 3), 3);
}

/* ---- files ---- */

static void maps(void **state)
{
    (void)state;
    es_map m;
    es_error err;
    test_write(test_path("m"), "hello", 5);
    assert_ok(es_map_open(&m, test_path("m"), &err), &err);
    assert_int_equal(m.size, 5);
    assert_memory_equal(m.data, "hello", 5);
    es_map_close(&m);
    es_map_close(&m);
    test_write(test_path("e"), "", 0);
    assert_ok(es_map_open(&m, test_path("e"), &err), &err);
    assert_int_equal(m.size, 0);
    es_map_close(&m);
    assert_error(es_map_open(&m, test_path("none"), &err), &err, "No such file");
    const char *fifo = test_path("fifo");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_error(es_map_open(&m, fifo, &err), &err, "not a regular file"); /* and does not wait for a writer */
}

static void reads_and_writes(void **state)
{
    (void)state;
    es_error err;
    es_buf b = {0};
    const char *path = test_path("w");
    assert_ok(es_file_write(path, "one", 3, &err), &err);
    chmod(path, 0640);
    assert_ok(es_file_write(path, "three", 5, &err), &err);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640); /* replaced, with its permissions */
    assert_ok(es_file_read(&b, path, 5, &err), &err);
    assert_string_equal(b.data, "three");
    es_buf_free(&b);
    assert_error(es_file_read(&b, path, 4, &err), &err, "over the limit of 4 bytes");
    assert_int_equal(err.code, ES_ERR_LIMIT);
    es_buf_free(&b);
    test_write(test_path("e"), "", 0);
    assert_ok(es_file_read(&b, test_path("e"), 0, &err), &err);
    assert_string_equal(b.data, "");
    es_buf_free(&b);
    assert_error(es_file_read(&b, test_path("none"), 9, &err), &err, "No such file");
    assert_int_equal(err.code, ES_ERR_MISSING);
    assert_error(es_file_read(&b, test_path("."), 9, &err), &err, "cannot read");
    es_buf_free(&b);
    assert_error(es_file_write(test_path("."), "x", 1, &err), &err, "is a folder");
    assert_error(es_file_write(test_path("no/such/w"), "x", 1, &err), &err, "cannot create");
    assert_ok(es_file_write("/dev/null", "x", 1, &err), &err); /* a device is written to, never replaced */
    assert_int_equal(stat("/dev/null", &st), 0);
    assert_true(S_ISCHR(st.st_mode));
    assert_error(es_file_write("/dev/full", "x", 1, &err), &err, "No space left");
}

/* A write that fails half-way (here: over the process's file size limit) leaves the old content and no litter. */
static void failed_write_keeps_the_old(void **state)
{
    (void)state;
    const char *path = test_path("limited");
    es_error err;
    assert_ok(es_file_write(path, "old", 3, &err), &err);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGXFSZ, SIG_IGN);
        struct rlimit limit = {1000, 1000};
        setrlimit(RLIMIT_FSIZE, &limit);
        char *big = calloc(1, 5000);
        int rc = es_file_write(path, big, 5000, &err);
        free(big);
        _exit(rc == ES_ERR_IO && strstr(err.text, "cannot write") ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    es_buf b = {0}, tmp = {0};
    test_read(&b, path);
    assert_string_equal(b.data, "old");
    es_buf_printf(&tmp, "%s.tmp-%ld", path, (long)child);
    assert_int_not_equal(access(tmp.data, F_OK), 0);
    es_buf_free(&b);
    es_buf_free(&tmp);
}

static void folders(void **state)
{
    (void)state;
    es_error err;
    struct stat st;
    const char *deep = test_path("a/b/c/");
    assert_ok(es_dir_make(deep, &err), &err);
    assert_int_equal(stat(test_path("a/b"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_ok(es_dir_make(deep, &err), &err);
    assert_ok(es_dir_make("/", &err), &err);
    test_write(test_path("a/file"), "", 0);
    assert_error(es_dir_make(test_path("a/file/d"), &err), &err, "in the way");
    assert_error(es_dir_make("", &err), &err, "no usable folder");
    assert_error(es_dir_make("/proc/espalier", &err), &err, "cannot make the folder");
}

static void digests(void **state)
{
    (void)state;
    char hex[65];
    es_error err;
    es_sha256_bytes(hex, "abc", 3);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    es_sha256_bytes(hex, "", 0);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    char *million = malloc(1000000); /* FIPS 180-2: a million times "a" */
    memset(million, 'a', 1000000);
    test_write(test_path("million"), million, 1000000);
    free(million);
    assert_ok(es_sha256_file(hex, test_path("million"), &err), &err);
    assert_string_equal(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    assert_error(es_sha256_file(hex, test_path("none"), &err), &err, "No such file");
    assert_string_equal(hex, "");
}

/* ---- JSON ---- */

static void assert_json_fault(const char *text, size_t n, const char *says)
{
    json_t *v = (json_t *)text;
    es_error err = {0};
    assert_error(es_json_parse(&v, text, n, "in\x1b.json", &err), &err, says);
    assert_null(v);
    assert_non_null(strstr(err.text, "in\\x1b.json:"));
}

static void json_faults(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } faults[] = {
        {"", "in\\x1b.json:1:"},      {"{", "not valid JSON"},       {"{\"a\":1,\n\"a\":2}", "json:2: not valid JSON"},
        {"[1,]", "not valid JSON"},   {"[1] x", "not valid JSON"},   {"[1e999]", "not valid JSON"},
        {"[NaN]", "not valid JSON"},  {"[\"\xff\"]", "0xff"},       {"[\"\\u0000\"]", "not valid JSON"},
        {"[\"a\nb\"]", "json:1:"},    {"[\"\\ud800\"]", "not valid JSON"}, {"{\"\x1b[2J\":}", "not valid JSON"},
        {"[99999999999999999999]", "not valid JSON"}, {"\"text\"", "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        assert_json_fault(faults[i].text, strlen(faults[i].text), faults[i].says);
    assert_json_fault("[1]\0", 4, "not valid JSON");

    es_buf b = {0};
    for (int depth = 127; depth <= 129; depth++) {
        es_buf_clear(&b);
        es_buf_str(&b, "{\"x\":\"[[[[\\\"[[[[{{{{\",\n\"y\":"); /* brackets in strings do not count */
        for (int i = 1; i < depth; i++)
            es_buf_str(&b, "[");
        es_buf_str(&b, "1");
        for (int i = 1; i < depth; i++)
            es_buf_str(&b, "]");
        es_buf_str(&b, "}");
        json_t *v;
        es_error err;
        if (depth <= 128) {
            assert_ok(es_json_parse(&v, b.data, b.len, "x", &err), &err);
            json_decref(v);
        } else {
            assert_json_fault(b.data, b.len, "json:2: JSON nested deeper than 128");
        }
    }
    es_buf_clear(&b);
    for (int i = 0; i < 100000; i++)
        es_buf_str(&b, "[");
    assert_json_fault(b.data, b.len, "deeper than 128");
    es_buf_free(&b);
}

static void json_files(void **state)
{
    (void)state;
    json_t *v;
    es_error err;
    test_write(test_path("j"), "\xef\xbb\xbf{\"a\": [1, 2]}\r\n", 18);
    assert_ok(es_json_file(&v, test_path("j"), &err), &err);
    assert_int_equal(json_array_size(json_object_get(v, "a")), 2);
    json_decref(v);
    test_write(test_path("j"), "{\n\n]", 4);
    assert_error(es_json_file(&v, test_path("j"), &err), &err, "/j:3: not valid JSON");
    assert_error(es_json_file(&v, test_path("none"), &err), &err, "No such file");
    assert_null(v);
}

static int add_line(void *user, size_t line, json_t *value, es_error *err)
{
    es_buf *b = user;
    es_buf_printf(b, "%zu:%lld ", line, (long long)json_integer_value(json_object_get(value, "n")));
    long long n = json_integer_value(json_object_get(value, "n"));
    return n == 99 ? es_fail(err, ES_ERR_FORMAT, "n is 99") : n == 7 ? 7 : ES_OK;
}

static int each(es_buf *b, const char *text, es_error *err)
{
    es_buf_clear(b);
    test_write(test_path("l"), text, strlen(text));
    *err = (es_error){0};
    return es_jsonl_each(test_path("l"), add_line, b, err);
}

static void json_lines(void **state)
{
    (void)state;
    es_buf b = {0};
    es_error err;
    assert_ok(each(&b, "\xef\xbb\xbf{\"n\":1}\n\n  \t\r\n{\"n\":2}\r\n{\"n\":3}", &err), &err);
    assert_string_equal(b.data, "1:1 4:2 5:3 ");
    assert_ok(each(&b, "", &err), &err);
    assert_int_equal(each(&b, "{\"n\":7}\n{\"n\":1}\n", &err), 7); /* stopped, no error */
    assert_string_equal(b.data, "1:7 ");
    assert_int_equal(err.code, 0);
    assert_error(each(&b, "{\"n\":1}\n\n{\"n\":99}\n", &err), &err, "/l:3: n is 99");
    assert_error(each(&b, "{\"n\":1}\n{\"n\":\n2}\n", &err), &err, "/l:2: not valid JSON");
    assert_string_equal(b.data, "1:1 ");
    assert_error(es_jsonl_each(test_path("none"), add_line, &b, &err), &err, "No such file");
    assert_error(es_jsonl_each(test_path("."), add_line, &b, &err), &err, "cannot read");
    es_buf_clear(&b);
    es_buf_str(&b, "{\"n\":1, \"s\": \"");
    for (int i = 0; i < 20000; i++)
        es_buf_str(&b, "long line ");
    es_buf_str(&b, "\"}\n{\"n\":2}");
    test_write(test_path("long"), b.data, b.len);
    es_buf_clear(&b);
    assert_ok(es_jsonl_each(test_path("long"), add_line, &b, &err), &err);
    assert_string_equal(b.data, "1:1 2:2 ");
    es_buf_free(&b);
}

/* ---- random numbers ---- */

static void random_numbers(void **state)
{
    (void)state;
    es_rng r = {{1, 2, 3, 4}};
    static const uint64_t reference[] = {11520, 0, 1509978240, 1215971899390074240}; /* of the authors' C code from that state */
    for (size_t i = 0; i < 4; i++)
        assert_true(es_rng_next(&r) == reference[i]);
    es_rng_seed(&r, 0);
    assert_true(r.s[0] == 0xe220a8397b1dcdafu); /* splitmix64's first value from 0 */

    double sum = 0, square = 0, uniform = 0;
    enum { N = 200000 };
    int count[7] = {0};
    for (int i = 0; i < N; i++) {
        double x = es_rng_normal(&r), u = es_rng_uniform(&r);
        assert_true(isfinite(x) && u >= 0 && u < 1);
        sum += x;
        square += x * x;
        uniform += u;
        count[es_rng_below(&r, 7)]++;
    }
    assert_true(fabs(sum / N) < 0.01 && fabs(square / N - 1) < 0.02 && fabs(uniform / N - 0.5) < 0.005);
    for (int i = 0; i < 7; i++)
        assert_true(abs(count[i] - N / 7) < 800);
    assert_int_equal(es_rng_below(&r, 1), 0);
}

/* ---- progress ---- */

static int reports;

static void on_report(void *user, const char *what, double done, double total, const char *unit)
{
    (void)user, (void)done, (void)total, (void)unit;
    assert_string_equal(what, "job");
    reports++;
}

static void progress(void **state)
{
    (void)state;
    bool cancel = false;
    es_progress p = {.report = on_report, .cancel = &cancel}, none = {0};
    es_progress_report(&p, "job", 1, 2, "tokens");
    es_progress_report(&none, "job", 1, 2, "tokens");
    es_progress_report(NULL, "job", 1, 2, "tokens");
    assert_int_equal(reports, 1);
    assert_false(es_progress_cancelled(&p) || es_progress_cancelled(&none) || es_progress_cancelled(NULL));
    cancel = true;
    assert_true(es_progress_cancelled(&p));
    double t = es_seconds();
    assert_true(es_seconds() >= t && t > 0);
}

/* ---- memory that runs out ---- */

static int no_memory_round(void)
{
    es_error err = {0};
    es_buf b = {0};
    json_t *v;
    char hex[65];
    int rc = es_file_read(&b, test_path("nth"), 1 << 20, &err);
    es_buf_free(&b);
    if (rc == ES_OK)
        rc = es_file_write(test_path("nth-out"), "x", 1, &err);
    if (rc == ES_OK && (rc = es_json_file(&v, test_path("nth"), &err)) == ES_OK)
        json_decref(v);
    if (rc == ES_OK)
        rc = es_jsonl_each(test_path("nth"), add_line, &b, &err);
    es_buf_free(&b);
    if (rc == ES_OK)
        rc = es_sha256_file(hex, test_path("nth"), &err);
    if (rc != ES_OK && (err.code != rc || !err.text[0]))
        return 1; /* failed without saying so */
    return rc;
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    if (!test_malloc_hooked())
        skip();
    static const char text[] = "{\"n\":1,\"a\":[1,2,{\"b\":\"c\"}]}";
    test_write(test_path("nth"), text, strlen(text));
    for (int round = 0; round < 4; round++) /* in the first two libcrypto sets up what it keeps for ever, its error queue too */
        for (long n = 0;; n++) {
            long live = test_malloc_live();
            test_fail_malloc(n, round % 2);
            int rc = no_memory_round();
            bool failed = test_malloc_failed();
            test_fail_malloc(-1, false);
            if (!failed) {
                assert_int_equal(rc, ES_OK);
                assert_true(n > 10);
                break;
            }
            assert_true(rc <= 0);
            if (round >= 2)
                assert_int_equal(test_malloc_live(), live);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_are_one_printable_line), cmocka_unit_test(sizes_are_checked), cmocka_unit_test(arenas),
        cmocka_unit_test(buffers),  cmocka_unit_test(shown_never_sent), cmocka_unit_test(widths), cmocka_unit_test(maps),
        cmocka_unit_test(reads_and_writes), cmocka_unit_test(failed_write_keeps_the_old), cmocka_unit_test(folders),
        cmocka_unit_test(digests), cmocka_unit_test(json_faults), cmocka_unit_test(json_files), cmocka_unit_test(json_lines),
        cmocka_unit_test(random_numbers), cmocka_unit_test(progress), cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
