/* Files of dictionaries that lie: zips, arrays of numpy, pickles. Each gives one clear line and nothing else happens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zlib.h>

#include "arrays.h"
#include "features.h"
#include "npy.h"
#include "zip.h"

static char root[64], path[200];

/* ---- building --------------------------------------------------------------------------------------------------------------------------- */

static void put(es_buf *b, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        es_buf_add(b, (uint8_t[]){(uint8_t)(v >> 8 * i)}, 1);
}

typedef struct member { /* of a zip, with what is said of it apart from what it is */
    const char *name;
    const void *data; size_t n;
    const char *local_name;      /* NULL: the same */
    uint32_t method, flags;
    bool wrong_crc, saturated;   /* saturated: sizes are in a zip64 extra field */
    uint64_t size;               /* 0: n */
    uint64_t size64;             /* what the extra field says */
    bool at_first;               /* the directory's entry points at the first member */
} member;

typedef struct end_lies { int n_more; uint64_t directory_more; bool zip64; uint64_t n64, at64, locator; } end_lies;

static void build_zip(es_buf *out, const member *m, int n, const end_lies *lies)
{
    es_buf dir = {0};
    for (int i = 0; i < n; i++) {
        size_t at = m[i].at_first ? 0 : out->len;
        const char *local = m[i].local_name ? m[i].local_name : m[i].name;
        uint32_t crc = (uint32_t)crc32_z(0, m[i].data, m[i].n) ^ (m[i].wrong_crc ? 1 : 0);
        uint64_t size = m[i].size ? m[i].size : m[i].n;
        put(out, 0x04034b50, 4);
        put(out, 20, 2);
        put(out, m[i].flags, 2);
        put(out, m[i].method, 2);
        put(out, 0, 4);
        put(out, crc, 4);
        put(out, m[i].n, 4);
        put(out, size, 4);
        put(out, strlen(local), 2);
        put(out, 0, 2);
        es_buf_str(out, local);
        es_buf_add(out, m[i].data, m[i].n);
        put(&dir, 0x02014b50, 4);
        put(&dir, 20, 2);
        put(&dir, 20, 2);
        put(&dir, m[i].flags, 2);
        put(&dir, m[i].method, 2);
        put(&dir, 0, 4);
        put(&dir, crc, 4);
        put(&dir, m[i].saturated ? 0xffffffff : m[i].n, 4);
        put(&dir, m[i].saturated ? 0xffffffff : size, 4);
        put(&dir, strlen(m[i].name), 2);
        put(&dir, m[i].saturated && m[i].size64 ? 20 : 0, 2);
        put(&dir, 0, 2);
        put(&dir, 0, 4);
        put(&dir, 0, 4);
        put(&dir, at, 4);
        es_buf_str(&dir, m[i].name);
        if (m[i].saturated && m[i].size64) {
            put(&dir, 1, 2);
            put(&dir, 16, 2);
            put(&dir, m[i].size64, 8);
            put(&dir, m[i].size64, 8);
        }
    }
    size_t from = out->len, end = from + dir.len;
    es_buf_add(out, dir.data, dir.len);
    if (lies && lies->zip64) {
        put(out, 0x06064b50, 4);
        put(out, 44, 8);
        put(out, 45, 2);
        put(out, 45, 2);
        put(out, 0, 8);
        put(out, lies->n64, 8);
        put(out, lies->n64, 8);
        put(out, dir.len, 8);
        put(out, lies->at64 ? lies->at64 : from, 8);
        put(out, 0x07064b50, 4);
        put(out, 0, 4);
        put(out, lies->locator ? lies->locator : end, 8);
        put(out, 1, 4);
    }
    put(out, 0x06054b50, 4);
    put(out, 0, 4);
    put(out, (uint64_t)(n + (lies ? lies->n_more : 0)), 2);
    put(out, (uint64_t)(n + (lies ? lies->n_more : 0)), 2);
    put(out, dir.len, 4);
    put(out, from + (lies ? lies->directory_more : 0), 4);
    put(out, 0, 2);
    es_buf_free(&dir);
}

static void build_npy(es_buf *out, const char *header, const void *data, size_t n)
{
    es_buf_add(out, "\x93NUMPY\x01\x00", 8);
    put(out, strlen(header), 2);
    es_buf_str(out, header);
    es_buf_add(out, data, n);
}

typedef int opener(es_arrays *a, const char *path, es_error *err);

static int open_bytes(opener *fn, const es_buf *b, es_error *err)
{
    es_arrays a = {0};
    *err = (es_error){0};
    assert_false(b->failed);
    FILE *f = fopen(path, "wb"); /* not es_file_write: thousands of files need not survive a power cut */
    assert_non_null(f);
    assert_int_equal(fwrite(b->data, 1, b->len, f), b->len);
    assert_int_equal(fclose(f), 0);
    int rc = fn(&a, path, err);
    es_arrays_close(&a);
    return rc;
}

static void expect(opener *fn, es_buf *b, const char *text)
{
    es_error err;
    int rc = open_bytes(fn, b, &err);
    if (rc != ES_ERR_FORMAT || !strstr(err.text, text) || !strstr(err.text, root) || strchr(err.text, '\n'))
        fail_msg("got %d \"%s\", wanted \"%s\"", rc, err.text, text);
    es_buf_free(b);
}

static void expect_npy(const char *header, const char *text)
{
    es_buf npy = {0}, zip = {0};
    static const uint8_t data[80];
    build_npy(&npy, header, data, sizeof data);
    build_zip(&zip, &(member){.name = "W_enc.npy", .data = npy.data, .n = npy.len}, 1, NULL);
    expect(es_arrays_npz, &zip, text);
    es_buf_free(&npy);
}

static void expect_zip(const member *m, int n, const end_lies *lies, const char *text)
{
    es_buf zip = {0};
    build_zip(&zip, m, n, lies);
    expect(es_arrays_npz, &zip, text);
}

#define GOOD "{'descr': '<f4', 'fortran_order': False, 'shape': (20,), }\n"

static es_buf good_npy(void)
{
    es_buf b = {0};
    static const uint8_t data[80];
    build_npy(&b, GOOD, data, sizeof data);
    return b;
}

/* ---- npz ---------------------------------------------------------------------------------------------------------------------------------- */

static void a_sound_npz_opens(void **state)
{
    (void)state;
    es_buf npy = good_npy(), zip = {0};
    es_error err;
    build_zip(&zip, &(member){.name = "b.npy", .data = npy.data, .n = npy.len}, 1, NULL);
    if (open_bytes(es_arrays_npz, &zip, &err))
        fail_msg("%s", err.text);
    es_buf_free(&zip);
    es_buf_free(&npy);
}

static void npy_header_of_4_gib(void **state)
{
    (void)state;
    es_buf npy = {0}, zip = {0};
    es_buf_add(&npy, "\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr': '<f4'", 28);
    build_zip(&zip, &(member){.name = "W_enc.npy", .data = npy.data, .n = npy.len}, 1, NULL);
    expect(es_arrays_npz, &zip, "npy header would take 4294967295 bytes");
    es_buf_free(&npy);
}

static void npy_object_dtype(void **state)
{
    (void)state;
    expect_npy("{'descr': '|O', 'fortran_order': False, 'shape': (10,), }", "Python objects");
    expect_npy("{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (10,), }", "records");
}

static void npy_big_endian(void **state)
{
    (void)state;
    expect_npy("{'descr': '>f4', 'fortran_order': False, 'shape': (20,), }", "big-endian");
}

static void npy_unknown_type(void **state)
{
    (void)state;
    expect_npy("{'descr': '<c16', 'fortran_order': False, 'shape': (5,), }", "is unknown");
    expect_npy("{'descr': 'xf4', 'fortran_order': False, 'shape': (20,), }", "is unknown");
    expect_npy("{'descr': '', 'fortran_order': False, 'shape': (20,), }", "is unknown");
}

static void npy_shape_beyond_its_bytes(void **state)
{
    (void)state;
    expect_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (65536, 65536), }", "80 bytes of data where its shape needs 17179869184");
    expect_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }", "shape is too large");
    expect_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }", "damaged");
    expect_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-20,), }", "damaged");
    expect_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (19,), }", "80 bytes of data");
}

static void npy_header_that_is_no_dict(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "", "{", "__import__('os').system('x')", "{'descr': '<f4'}", "{'descr': '<f4', 'fortran_order': 1, 'shape': (20,), }",
        "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (20,), }", GOOD "x",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1, 1, 20), }",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_npy(bad[i], "damaged");
}

static void npz_member_that_is_no_array(void **state)
{
    (void)state;
    expect_zip(&(member){.name = "W_enc.npy", .data = "hello world", .n = 11}, 1, NULL, "no npy file");
    expect_zip(&(member){.name = "W_enc.txt", .data = "hello world", .n = 11}, 1, NULL, "is no .npy");
}

static void zip_bomb(void **state)
{
    (void)state;
    es_buf npy = good_npy();
    /* a kilobyte that says it unpacks to a terabyte; a stored one that says it is longer than it is */
    static uint8_t zeros[1024];
    expect_zip(&(member){.name = "W.npy", .data = zeros, .n = sizeof zeros, .method = 8, .saturated = true, .size64 = 1ull << 40}, 1, NULL, "leaves the file");
    expect_zip(&(member){.name = "W.npy", .data = zeros, .n = sizeof zeros, .method = 8, .size = 0xfffffff0}, 1, NULL, "cannot have 4294967280 bytes");
    expect_zip(&(member){.name = "W.npy", .data = npy.data, .n = npy.len, .size = npy.len + 1}, 1, NULL, "cannot have");
    /* streams that go on after, or end before, what is announced */
    uint8_t packed[4096];
    es_buf long_npy = {0};
    static const uint8_t data[2000];
    build_npy(&long_npy, GOOD, data, sizeof data);
    z_stream s = {0};
    assert_int_equal(deflateInit2(&s, 9, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY), Z_OK);
    s.next_in = (Bytef *)long_npy.data;
    s.avail_in = (uInt)long_npy.len;
    s.next_out = packed;
    s.avail_out = sizeof packed;
    assert_int_equal(deflate(&s, Z_FINISH), Z_STREAM_END);
    size_t n = s.total_out;
    deflateEnd(&s);
    expect_zip(&(member){.name = "W.npy", .data = packed, .n = n, .method = 8, .size = npy.len}, 1, NULL, "does not unpack");
    size_t longer = 10 + strlen(GOOD) + 80 + 4000;
    es_buf lie = {0}; /* its header, too, speaks of more than there is */
    build_npy(&lie, "{'descr': '<f4', 'fortran_order': False, 'shape': (1020,), }", data, sizeof data);
    assert_int_equal(deflateInit2(&s, 9, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY), Z_OK);
    s.next_in = (Bytef *)lie.data;
    s.avail_in = (uInt)lie.len;
    s.next_out = packed;
    s.avail_out = sizeof packed;
    assert_int_equal(deflate(&s, Z_FINISH), Z_STREAM_END);
    n = s.total_out;
    deflateEnd(&s);
    longer = lie.len + 4080 - 2000;
    expect_zip(&(member){.name = "W.npy", .data = packed, .n = n, .method = 8, .size = longer}, 1, NULL, "does not unpack");
    es_buf_free(&lie);
    es_buf_free(&long_npy);
    es_buf_free(&npy);
}

static void zip64_lies(void **state)
{
    (void)state;
    es_buf npy = good_npy();
    const member m = {.name = "W.npy", .data = npy.data, .n = npy.len};
    expect_zip(&m, 1, &(end_lies){.zip64 = true, .n64 = 1, .locator = 1ull << 60}, "zip64 end record is not where");
    expect_zip(&m, 1, &(end_lies){.zip64 = true, .n64 = 2}, "contradict");
    expect_zip(&m, 1, &(end_lies){.zip64 = true, .n64 = 1, .at64 = 1ull << 63}, "contradict");
    expect_zip(&m, 1, &(end_lies){.n_more = 0xfffe}, "without its zip64 end record");
    expect_zip(&m, 1, &(end_lies){.zip64 = true, .n_more = 0xfffe, .n64 = 1ull << 60}, "does not fit");
    expect_zip(&m, 1, &(end_lies){.n_more = 1}, "does not fit");
    expect_zip(&m, 1, &(end_lies){.directory_more = 1 << 20}, "does not fit");
    expect_zip(&(member){.name = "W.npy", .data = npy.data, .n = npy.len, .saturated = true}, 1, NULL, "zip64 sizes");
    expect_zip(&(member){.name = "W.npy", .data = npy.data, .n = npy.len, .saturated = true, .size64 = UINT64_MAX}, 1, NULL, "leaves the file");
    es_buf_free(&npy);
}

static void zip_overlapping_members(void **state)
{
    (void)state;
    es_buf npy = good_npy();
    expect_zip((const member[]){{.name = "W.npy", .data = npy.data, .n = npy.len}, {.name = "W.npy", .data = npy.data, .n = npy.len, .at_first = true}}, 2, NULL, "overlap");
    es_buf_free(&npy);
}

static void zip_names_that_lead_out(void **state)
{
    (void)state;
    static const char *const bad[] = {"../W.npy", "a/../../W.npy", "/etc/W.npy", "a\\W.npy", "C:W.npy", "..", ""};
    es_buf npy = good_npy();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_zip(&(member){.name = bad[i], .data = npy.data, .n = npy.len}, 1, NULL, "no plain name");
    es_buf_free(&npy);
}

static void zip_bad_crc(void **state)
{
    (void)state;
    es_buf npy = good_npy();
    expect_zip(&(member){.name = "W.npy", .data = npy.data, .n = npy.len, .wrong_crc = true}, 1, NULL, "checksum");
    es_buf_free(&npy);
}

static void zip_of_other_kinds(void **state)
{
    (void)state;
    es_buf npy = good_npy();
    const member twice[] = {{.name = "W.npy", .data = npy.data, .n = npy.len}, {.name = "W.npy", .data = npy.data, .n = npy.len}};
    expect_zip(twice, 2, NULL, "two members");
    expect_zip(&(member){.name = "W.npy", .data = npy.data, .n = npy.len, .flags = 1}, 1, NULL, "encrypted");
    expect_zip(&(member){.name = "W.npy", .data = npy.data, .n = npy.len, .method = 12}, 1, NULL, "packed by method 12");
    expect_zip(&(member){.name = "W.npy", .data = npy.data, .n = npy.len, .local_name = "V.npy"}, 1, NULL, "contradicts its directory");
    es_buf none = {0};
    es_buf_str(&none, "no zip at all");
    expect(es_arrays_npz, &none, "no zip file");
    es_buf_free(&npy);
}

static void golden(es_buf *b, const char *name)
{
    char from[600];
    es_error err = {0};
    const char *dir = getenv("ESPALIER_TEST_DIR");
    snprintf(from, sizeof from, "%s/golden/sae/%s", dir ? dir : "tests", name);
    if (es_file_read(b, from, 1 << 20, &err))
        fail_msg("%s", err.text);
}

static const struct { const char *name; opener *fn; } whole[] = {
    {"gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz", es_arrays_npz},
    {"gemma-scope-2b-pt-mlp/layer_5/width_16k/average_l0_30/params.npz", es_arrays_npz},
    {"dictionary-learning/MatryoshkaBatchTopKSAE/trainer_0/ae.pt", es_arrays_torch},
};

static void cut_short_anywhere(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
        es_buf b = {0};
        es_error err;
        golden(&b, whole[i].name);
        size_t n = b.len;
        assert_int_equal(open_bytes(whole[i].fn, &b, &err), 0);
        for (b.len = 0; b.len < n; b.len += b.len + 700 < n ? 97 : 1) { /* every byte of the directory, and places before it */
            int rc = open_bytes(whole[i].fn, &b, &err);
            if (rc != ES_ERR_FORMAT)
                fail_msg("%s cut at %zu: %d \"%s\"", whole[i].name, b.len, rc, err.text);
        }
        es_buf_free(&b);
    }
}

/* Some bytes changed at random, from fixed seeds: what opens is sound, what does not says why. */
static void bytes_changed_at_random(void **state)
{
    (void)state;
    es_rng r;
    es_rng_seed(&r, 7);
    int opened = 0, refused = 0;
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
        es_buf b = {0};
        golden(&b, whole[i].name);
        for (int round = 0; round < 1000; round++) {
            size_t at[4];
            char old[4];
            for (int k = 0; k < 4; k++) { /* half of them in what describes the file: its end and its beginning */
                at[k] = (size_t)es_rng_below(&r, b.len);
                if (k < 2)
                    at[k] = es_rng_below(&r, 2) ? b.len - 1 - (size_t)es_rng_below(&r, 900) : (size_t)es_rng_below(&r, 1500);
                old[k] = b.data[at[k]];
                b.data[at[k]] = (char)es_rng_next(&r);
            }
            es_error err = {0};
            int rc = open_bytes(whole[i].fn, &b, &err);
            if (rc)
                refused++;
            else
                opened++;
            if (rc && (!err.text[0] || strchr(err.text, '\n')))
                fail_msg("an error without its line");
            for (int k = 3; k >= 0; k--)
                b.data[at[k]] = old[k];
        }
        es_buf_free(&b);
    }
    assert_true(refused > 500); /* else nothing was tried */
    (void)opened;
}

/* ---- pickles -------------------------------------------------------------------------------------------------------------------------------- */

static void build_pt(es_buf *out, const void *pickle, size_t n)
{
    static const uint8_t numbers[16];
    const member m[] = {{.name = "archive/data.pkl", .data = pickle, .n = n}, {.name = "archive/data/0", .data = numbers, .n = sizeof numbers}};
    build_zip(out, m, 2, NULL);
}

static void expect_pickle(const void *pickle, size_t n, const char *text)
{
    es_buf zip = {0};
    build_pt(&zip, pickle, n);
    expect(es_arrays_torch, &zip, text);
}

#define PICKLE(bytes, text) expect_pickle(bytes, sizeof(bytes) - 1, text)
#define REBUILD "ctorch._utils\n_rebuild_tensor_v2\n"
/* A tensor of `size` numbers with `stride`, from `offset`, of a storage that says it has `count`. All below 256. */
#define STORAGE(count) "(X\x07\0\0\0storage" "ctorch\nFloatStorage\n" "X\x01\0\0\0" "0" "X\x03\0\0\0" "cpu" "K" count "tQ"
#define TENSOR(count, offset, size, stride) REBUILD "(" STORAGE(count) "K" offset size stride "\x89" "ccollections\nOrderedDict\n)RtR"
#define NAMED "\x80\x02}(X\x01\0\0\0w"

static void a_sound_pickle_opens(void **state)
{
    (void)state;
    static const char good[] = NAMED TENSOR("\x04", "\x01", "K\x03\x85", "K\x01\x85") "u.";
    es_buf zip = {0};
    es_error err;
    build_pt(&zip, good, sizeof good - 1);
    if (open_bytes(es_arrays_torch, &zip, &err))
        fail_msg("%s", err.text);
    es_buf_free(&zip);
}

static void pickle_that_calls_anything(void **state)
{
    (void)state;
    PICKLE("\x80\x02" "cos\nsystem\n(X\x08\0\0\0touch /xtR.", "wants to use os.system, which is not run");
    PICKLE("\x80\x02" "cbuiltins\neval\n(X\x01\0\0\0" "1tR.", "wants to use builtins.eval");
    PICKLE("\x80\x02" "cposix\nsystem\n.", "posix.system");
    PICKLE("\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.", "os.system"); /* STACK_GLOBAL */
    PICKLE("\x80\x02" "ctorch\nload\n.", "torch.load");
    PICKLE("\x80\x02" "ctorch._utils\n_rebuild_tensor_v2_\n.", "_rebuild_tensor_v2_");
    PICKLE("\x80\x02" "ccollections\nOrderedDict.__init__\n.", "OrderedDict.__init__");
    PICKLE("\x80\x02(ios\nsystem\n.", "opcode 0x69");   /* INST */
    PICKLE("\x80\x02(cos\nsystem\no.", "os.system");    /* OBJ */
    PICKLE("\x80\x02}}\x81.", "opcode 0x81");           /* NEWOBJ */
    PICKLE("\x80\x02\x82\x01.", "opcode 0x82");         /* EXT1 */
    PICKLE("\x80\x02P1\n.", "opcode 0x50");             /* PERSID */
    PICKLE("\x80\x02" "ctorch\nFloatStorage\n)R.", "calls something");
    PICKLE("\x80\x02" "ccollections\nOrderedDict\n(]]tR.", "makes a dict of something");
    PICKLE("\x80\x02]}b.", "builds something");
    PICKLE("\x80\x02X\x01\0\0\0x)R.", "calls something");
    PICKLE("\x80\x02" "cx\x1b[2J\ny\n.", "wants to use x\\x1b[2J.y"); /* and nothing reaches the terminal */
}

static void pickle_of_another_form(void **state)
{
    (void)state;
    PICKLE("\x80\x09}.", "unknown version");
    PICKLE("\x80\x02].", "no dict of tensors");
    PICKLE("\x80\x02}}.", "no dict of tensors");
    PICKLE("\x80\x02.", "no dict of tensors");
    PICKLE("\x80\x02}", "cut short");
    PICKLE("", "cut short");
    PICKLE("\x80\x02X\xff\xff\xff\xff" "a", "cut short");
    PICKLE("\x80\x02\x8a\xff", "over 64 bits");
    PICKLE("\x80\x02\x8b\xff\xff\xff\xff", "opcode 0x8b");
    PICKLE("\x80\x02}r\xff\xff\xff\xff.", "numbers its values wildly");
    PICKLE("\x80\x02h\x05.", "refers to a value");
    PICKLE("\x80\x02j\xff\xff\xff\xff.", "refers to a value");
    PICKLE("\x80\x02" "0.", "opcode 0x30");
    PICKLE("\x80\x02\x87.", "takes more values");
    PICKLE("\x80\x02(\x85.", "takes more values");
    PICKLE("\x80\x02t.", "no mark");
    PICKLE("\x80\x02}K\x01u.", "no mark");
    PICKLE("\x80\x02}(K\x01u.", "fills what is no list or dict");
    PICKLE("\x80\x02K\x01(K\x01K\x01u.", "fills what is no list or dict");
    PICKLE("\x80\x02K\x01" "a.", "fills what is no list or dict");
    PICKLE("\x80\x02s.", "fills what is no list or dict");
    PICKLE("\x80\x02K\x01Q.", "storage of another form");
    PICKLE("\x80\x02" "cx", "cut short");
}

static void pickle_whose_tensors_lie(void **state)
{
    (void)state;
    PICKLE(NAMED TENSOR("\x05", "\x00", "K\x03\x85", "K\x01\x85") "u.", "missing or not as many");
    PICKLE(NAMED TENSOR("\x04", "\x02", "K\x03\x85", "K\x01\x85") "u.", "leaves its numbers");
    PICKLE(NAMED TENSOR("\x04", "\x00", "K\x02\x85", "K\x02\x85") "u.", "with gaps");
    PICKLE(NAMED TENSOR("\x04", "\x00", "K\x05\x85", "K\x00\x85") "u.", "leaves its numbers");
    PICKLE(NAMED TENSOR("\x04", "\x00", "J\xff\xff\xff\xff\x85", "K\x01\x85") "u.", "makes no sense");
    PICKLE(NAMED TENSOR("\x04", "\x00", "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x86", "K\x01K\x01\x86") "u.", "makes no sense");
    PICKLE(NAMED TENSOR("\x04", "\x00", "K\x04\x85", "K\x01K\x01\x86") "u.", "another form");
    PICKLE(NAMED REBUILD "(K\x01K\x00K\x01\x85K\x01\x85\x89}tRu.", "another form");
    PICKLE(NAMED "(X\x07\0\0\0storage" "ctorch\nFloatStorage\n" "X\x04\0\0\0" "../x" "X\x03\0\0\0" "cpu" "K\x04tQu.", "storage of another form");
    PICKLE(NAMED "(X\x07\0\0\0storage" "ccollections\nOrderedDict\n" "X\x01\0\0\0" "0" "X\x03\0\0\0" "cpu" "K\x04tQu.", "storage of another form");
    PICKLE("\x80\x02}(X\x01\0\0\0w" TENSOR("\x04", "\x00", "K\x03\x85", "K\x01\x85") "X\x01\0\0\0w" TENSOR("\x04", "\x00", "K\x03\x85", "K\x01\x85") "u.", "two tensors of one name");
}

/* A value that holds itself, and values nested a hundred thousand deep: nothing here follows them down. */
static void pickle_recursion(void **state)
{
    (void)state;
    static const char self[] = "\x80\x02}q\x00(X\x01\0\0\0ah\x00u.";
    es_buf zip = {0}, deep = {0};
    es_error err;
    build_pt(&zip, self, sizeof self - 1);
    assert_int_equal(open_bytes(es_arrays_torch, &zip, &err), 0); /* a dict without tensors */
    es_buf_free(&zip);
    es_buf_add(&deep, "\x80\x02}", 3);
    for (int i = 0; i < 100000; i++)
        es_buf_add(&deep, "\x85", 1);
    es_buf_str(&deep, ".");
    expect_pickle(deep.data, deep.len, "no dict of tensors");
    es_buf_clear(&deep);
    for (int i = 0; i < 100000; i++)
        es_buf_str(&deep, "(");
    es_buf_str(&deep, ".");
    expect_pickle(deep.data, deep.len, "no dict of tensors");
    es_buf_free(&deep);
}

static void pickle_of_too_many_tensors(void **state)
{
    (void)state;
    static const char tensor[] = TENSOR("\x04", "\x00", "K\x03\x85", "K\x01\x85");
    es_buf b = {0};
    es_buf_add(&b, "\x80\x02}(", 4);
    for (int i = 0; i < 65; i++) {
        es_buf_add(&b, "X\x02\0\0\0", 5);
        es_buf_printf(&b, "%02d", i);
        es_buf_add(&b, tensor, sizeof tensor - 1);
    }
    es_buf_str(&b, "u.");
    expect_pickle(b.data, b.len, "over 64 tensors");
    es_buf_clear(&b);
    while (b.len <= 1 << 20)
        es_buf_str(&b, "NNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNNN");
    expect_pickle(b.data, b.len, "its pickle has 1048"); /* values take more memory than their opcodes */
    es_buf_free(&b);
}

static void torch_file_that_is_none(void **state)
{
    (void)state;
    es_buf zip = {0}, old = {0};
    es_error err;
    build_zip(&zip, &(member){.name = "archive/other.pkl", .data = "x", .n = 1}, 1, NULL);
    expect(es_arrays_torch, &zip, "no data.pkl");
    es_buf_add(&old, "\x80\x02\x8a\nl\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15); /* how torch.save began before 1.6 */
    assert_int_equal(open_bytes(es_arrays_torch, &old, &err), ES_ERR_FORMAT);
    assert_non_null(strstr(err.text, "no file of torch.save since 1.6"));
    es_buf_free(&old);
    const member big[] = {{.name = "archive/data.pkl", .data = "\x80\x02}.", .n = 4}, {.name = "archive/byteorder", .data = "big", .n = 3}};
    build_zip(&zip, big, 2, NULL);
    expect(es_arrays_torch, &zip, "big-endian");
}

/* A real state_dict whose pickle is cut at every byte. */
static void pickle_cut_short(void **state)
{
    (void)state;
    es_buf b = {0};
    es_error err = {0};
    es_zip *z;
    golden(&b, "dictionary-learning/MatryoshkaBatchTopKSAE/trainer_0/ae.pt");
    assert_int_equal(es_zip_parse(&z, b.data, b.len, "golden", &err), 0);
    const es_zip_member *pickle = NULL;
    for (size_t i = 0; i < es_zip_count(z); i++)
        if (strstr(es_zip_at(z, i)->name, "data.pkl"))
            pickle = es_zip_at(z, i);
    assert_non_null(pickle);
    for (size_t n = 0; n < pickle->size; n++) {
        es_buf zip = {0};
        build_pt(&zip, pickle->data, n);
        assert_int_equal(open_bytes(es_arrays_torch, &zip, &err), ES_ERR_FORMAT);
        es_buf_free(&zip);
    }
    es_zip_free(z);
    es_buf_free(&b);
}

static int make_root(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "/tmp/espalier-untrusted-XXXXXX");
    if (!mkdtemp(root))
        return -1;
    snprintf(path, sizeof path, "%s/file", root);
    return 0;
}

static int remove_root(void **state)
{
    (void)state;
    char command[200];
    snprintf(command, sizeof command, "rm -rf %s", root);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sound_npz_opens), cmocka_unit_test(npy_header_of_4_gib), cmocka_unit_test(npy_object_dtype), cmocka_unit_test(npy_big_endian),
        cmocka_unit_test(npy_unknown_type), cmocka_unit_test(npy_shape_beyond_its_bytes), cmocka_unit_test(npy_header_that_is_no_dict),
        cmocka_unit_test(npz_member_that_is_no_array), cmocka_unit_test(zip_bomb), cmocka_unit_test(zip64_lies), cmocka_unit_test(zip_overlapping_members),
        cmocka_unit_test(zip_names_that_lead_out), cmocka_unit_test(zip_bad_crc), cmocka_unit_test(zip_of_other_kinds), cmocka_unit_test(cut_short_anywhere),
        cmocka_unit_test(bytes_changed_at_random), cmocka_unit_test(a_sound_pickle_opens), cmocka_unit_test(pickle_that_calls_anything),
        cmocka_unit_test(pickle_of_another_form), cmocka_unit_test(pickle_whose_tensors_lie), cmocka_unit_test(pickle_recursion),
        cmocka_unit_test(pickle_of_too_many_tensors), cmocka_unit_test(torch_file_that_is_none), cmocka_unit_test(pickle_cut_short),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
