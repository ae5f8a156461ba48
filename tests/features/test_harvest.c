/* Harvest: what is stored is what the model computes, an interrupted one ends like a whole one, and a damaged one is refused. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "features.h"
#include "harvest.h"
#include "support.h"

static es_model *model;
static char *text_path, *chat_path, *plain_path;
static const int layers[] = {2, 0};

static int set_up(void **state)
{
    (void)state;
    model = open_tiny(NULL);
    es_buf b = {0};
    for (int i = 0; i < 60; i++)
        es_buf_printf(&b, "{\"text\":\"Document %d says %s and %d more things about \\u00e9t\\u00e9.\",\"lic\":\"none\"}\n%s", i, i % 3 ? "little" : "a lot of words",
                      i * i, i == 10 ? "\n" : "");
    text_path = strdup(test_path("some.jsonl")); /* test_path keeps the last 16 only */
    test_write(text_path, b.data, b.len);
    es_buf_clear(&b);
    for (int i = 0; i < 20; i++)
        es_buf_printf(&b, i % 2 ? "{\"prompt\":\"Ask %d\",\"response\":\"Answer %d\"}\n"
                                : "{\"messages\":[{\"role\":\"user\",\"content\":\"Ask %d\"},{\"role\":\"assistant\",\"content\":\"Answer %d\"}]}\n", i, i);
    chat_path = strdup(test_path("chats.jsonl"));
    test_write(chat_path, b.data, b.len);
    plain_path = strdup(test_path("plain.txt"));
    test_write(plain_path, "{not json} but text\nof two lines", 32);
    es_buf_free(&b);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    es_model_free(model);
    free(text_path);
    free(chat_path);
    free(plain_path);
    return 0;
}

static es_harvest_options options(void)
{
    es_harvest_options o = es_harvest_default();
    o.layer = layers;
    o.n_layer = 2;
    o.context = 24;
    o.threads = 1;
    return o;
}

static void stores_what_the_model_computes(void **state)
{
    (void)state;
    es_error err = {0};
    const char *files[] = {text_path, chat_path, plain_path};
    for (int kind = 0; kind < 3; kind++) { /* exactly, on bfloat16 and in 8 bits, where the processor has these */
        const char *dir = test_path("harvest-%d", kind);
        const bool skip = kind == 0;
        es_harvest_options o = options();
        o.skip_first = skip;
        o.exact = kind == 0;
        o.bfloat16 = kind == 1;
        assert_ok(es_harvest(model, files, 3, dir, &o, NULL, &err), &err);
        int d = es_model_get_info(model)->d_model;
        es_trainer *t;
        assert_ok(es_trainer_open(&t, model, &(es_trainer_options){.max_tokens = 64, .threads = 1}, &err), &err);
        for (int l = 0; l < 2; l++) {
            es_harvest_reader h;
            assert_ok(es_harvest_reader_open(&h, dir, layers[l], &err), &err);
            assert_int_equal(h.d, d);
            assert_int_equal(h.skip, skip);
            assert_int_equal(h.n_row, h.n_id - (size_t)skip * h.n_sequence);
            uint32_t documents = 0;
            for (size_t s = 0; s < h.n_sequence; s++) {
                const es_harvest_sequence *q = &h.sequence[s];
                documents = q->document + 1 > documents ? q->document + 1 : documents;
                assert_true(q->n <= 24);
                float want[24 * 64], got[24 * 64];
                int start[] = {0, (int)q->n};
                es_batch b = {.ids = h.id + q->id, .n = (int)q->n, .start = start, .n_seq = 1};
                assert_ok(es_trainer_residual(t, &b, layers[l], want, NULL, &err), &err);
                es_harvest_reader_rows(&h, q->row, q->n - (uint32_t)skip, got);
                double size = 0, away = 0;
                for (int i = 0; i < ((int)q->n - (int)skip) * d; i++) {
                    double w = (double)want[i + (int)skip * d], off = fabs((double)got[i] - w);
                    size += w * w;
                    away += off * off;
                    if (o.exact)
                        assert_true(off <= fabs(w) / 1000 + 1e-4);
                }
                assert_true(sqrt(away) <= (o.exact ? 0.001 : 0.02) * sqrt(size));
            }
            assert_true(documents > 60); /* nearly all of the 81: the shortest may be too short */
            es_harvest_reader_close(&h);
        }
        es_trainer_free(t);
    }
}

static void documents_are_read_as_they_are_meant(void **state)
{
    (void)state;
    es_error err = {0};
    const char *files[] = {text_path, chat_path, plain_path};
    es_documents docs;
    assert_ok(es_documents_open(&docs, files, 3, 0, &err), &err);
    assert_int_equal(docs.n, 81); /* the empty line is none */
    es_ids got = {0}, want = {0};
    assert_ok(es_documents_ids(&docs, 60, model, &got, &err), &err);
    es_message m[] = {{"user", "Ask 0"}, {"assistant", "Answer 0"}};
    assert_ok(es_chat_render(model, m, 2, false, &want, &err), &err);
    assert_int_equal(got.n, want.n);
    assert_memory_equal(got.id, want.id, want.n * sizeof *want.id);
    assert_ok(es_documents_ids(&docs, 80, model, &got, &err), &err);
    want.n = 0;
    assert_ok(es_tokenize(model, "{not json} but text\nof two lines", 32, false, &want, &err), &err);
    assert_int_equal(got.n, want.n);
    assert_memory_equal(got.id, want.id, want.n * sizeof *want.id);
    es_documents_close(&docs);

    static const char *const bad[] = {"{\"text\":", "{\"text\":7}", "{\"messages\":[{\"role\":\"user\"}]}", "[]", "{\"messages\":[]}", "{\"prompt\":\"a\"}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *path = test_path("bad-%zu.jsonl", i);
        es_buf b = {0};
        es_buf_printf(&b, "{\"text\":\"fine\"}\n%s\n", bad[i]);
        test_write(path, b.data, b.len);
        es_buf_free(&b);
        es_harvest_options o = options();
        o.seed = 0;
        assert_error(es_harvest(model, &path, 1, test_path("never-%zu", i), &o, NULL, &err), &err, "jsonl:2");
    }
    es_ids_free(&got);
    es_ids_free(&want);
}

static volatile bool cancel;
static int reports;
static void cancel_soon(void *user, const char *what, double done, double total, const char *unit)
{
    (void)user, (void)total;
    assert_non_null(strstr(what, "tokens/s"));
    assert_string_equal(unit, "tokens");
    if (done > 2500)
        __atomic_store_n(&cancel, true, __ATOMIC_RELEASE);
    reports++;
}

static void goes_on_where_it_was_stopped(void **state)
{
    (void)state;
    es_error err = {0};
    es_buf b = {0};
    for (int i = 0; i < 300; i++)
        es_buf_printf(&b, "{\"text\":\"Number %d: %0*d and so on to the end of this line.\"}\n", i, 8 + i % 40, i);
    char *file = strdup(test_path("long.jsonl")), *stopped = strdup(test_path("stopped")), *whole = strdup(test_path("whole"));
    test_write(file, b.data, b.len);
    es_harvest_options o = options();
    o.exact = true;
    es_progress p = {cancel_soon, NULL, &cancel};
    assert_error(es_harvest(model, (const char *const *)&file, 1, stopped, &o, &p, &err), &err, "goes on");
    assert_true(reports > 0);
    es_harvest_reader part, full;
    assert_ok(es_harvest_reader_open(&part, stopped, 0, &err), &err);
    size_t before = part.n_row;
    es_harvest_reader_close(&part);

    /* what was written after the last checkpoint is cut off again */
    FILE *f = fopen(test_path("stopped/ids.bin"), "ab");
    fwrite("xxxxxxx", 1, 7, f);
    fclose(f);
    o.context = 25;
    assert_error(es_harvest(model, (const char *const *)&file, 1, stopped, &o, NULL, &err), &err, "context");
    o.context = 24;
    if (es_kernels_half() != es_kernels_cpu()) {
        o.exact = false; /* one harvest has numbers of one kind */
        assert_error(es_harvest(model, (const char *const *)&file, 1, stopped, &o, NULL, &err), &err, "f32");
        o.exact = true;
    }
    assert_ok(es_harvest(model, (const char *const *)&file, 1, stopped, &o, NULL, &err), &err);
    assert_ok(es_harvest(model, (const char *const *)&file, 1, whole, &o, NULL, &err), &err);
    for (int l = 0; l < 2; l++) {
        assert_ok(es_harvest_reader_open(&part, stopped, layers[l], &err), &err);
        assert_ok(es_harvest_reader_open(&full, whole, layers[l], &err), &err);
        assert_true(part.n_row > before);
        assert_int_equal(part.n_row, full.n_row);
        assert_int_equal(part.n_sequence, full.n_sequence);
        assert_memory_equal(part.id, full.id, full.n_id * sizeof *full.id);
        assert_memory_equal(part.sequence, full.sequence, full.n_sequence * sizeof *full.sequence);
        float a[64], c[64];
        for (size_t i = 0; i < full.n_row; i++) {
            es_harvest_reader_rows(&part, i, 1, a);
            es_harvest_reader_rows(&full, i, 1, c);
            for (int k = 0; k < 64; k++)
                assert_true(fabsf(a[k] - c[k]) <= fabsf(c[k]) / 500 + 1e-3f);
        }
        es_harvest_reader_close(&part);
        es_harvest_reader_close(&full);
    }
    /* one that began on bfloat16 goes on so, and then says that it is of this kind */
    es_harvest_options narrow = options();
    narrow.bfloat16 = true;
    cancel = false;
    reports = 0;
    const char *older = test_path("older");
    assert_error(es_harvest(model, (const char *const *)&file, 1, older, &narrow, &p, &err), &err, "goes on");
    narrow.bfloat16 = false;
    assert_ok(es_harvest(model, (const char *const *)&file, 1, older, &narrow, NULL, &err), &err);
    es_buf said = {0};
    test_read(&said, test_path("older/harvest.json"));
    assert_true(es_kernels_half() == es_kernels_cpu() || strstr(said.data, "\"bfloat16\""));
    es_buf_free(&said);
    /* a finished one is left as it is */
    assert_ok(es_harvest(model, (const char *const *)&file, 1, whole, &o, NULL, &err), &err);
    /* a stated number of tokens is met exactly */
    o.max_tokens = 1000;
    assert_ok(es_harvest(model, (const char *const *)&file, 1, test_path("thousand"), &o, NULL, &err), &err);
    assert_ok(es_harvest_reader_open(&part, test_path("thousand"), 2, &err), &err);
    assert_int_equal(part.n_row, 1000);
    es_harvest_reader_close(&part);
    es_buf_free(&b);
    free(file);
    free(stopped);
    free(whole);
}

static void refuses_what_is_damaged(void **state)
{
    (void)state;
    es_error err = {0};
    es_harvest_options o = options();
    char *dir = strdup(test_path("damaged"));
    assert_ok(es_harvest(model, (const char *const *)&text_path, 1, dir, &o, NULL, &err), &err);
    es_harvest_reader h;
    assert_error(es_harvest_reader_open(&h, dir, 1, &err), &err, "layer"); /* was not harvested */
    es_buf json = {0}, file = {0};
    test_read(&json, test_path("damaged/harvest.json"));
    static const char *const keys[] = {"\"rows\": ", "\"ids\": ", "\"sequences\": ", "\"d\": ", "\"shard_rows\": ", "\"version\": "};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) { /* each count, said to be huge, negative and a string */
        static const char *const lies[] = {"9223372036854775807", "-1", "\"1\"", "4611686018427387904"};
        for (size_t l = 0; l < sizeof lies / sizeof *lies; l++) {
            const char *at = strstr(json.data, keys[i]);
            assert_non_null(at);
            at += strlen(keys[i]);
            es_buf b = {0};
            es_buf_add(&b, json.data, (size_t)(at - json.data));
            es_buf_str(&b, lies[l]);
            es_buf_str(&b, at + strspn(at, "0123456789"));
            test_write(test_path("damaged/harvest.json"), b.data, b.len);
            es_buf_free(&b);
            int rc = es_harvest_reader_open(&h, dir, 2, &err);
            if (rc == 0) /* a huge shard_rows only means one shard */
                es_harvest_reader_close(&h);
            else
                assert_error(rc, &err, NULL);
            assert_true(rc != 0 || i == 4);
        }
    }
    test_write(test_path("damaged/harvest.json"), json.data, json.len);
    test_read(&file, test_path("damaged/layer-02/shard-0000.f16"));
    test_write(test_path("damaged/layer-02/shard-0000.f16"), file.data, file.len - 2);
    assert_error(es_harvest_reader_open(&h, dir, 2, &err), &err, "shard-0000");
    test_write(test_path("damaged/layer-02/shard-0000.f16"), file.data, file.len);
    es_buf_clear(&file);
    test_read(&file, test_path("damaged/sequences.bin"));
    for (int i = 0; i < 24; i += 8) { /* id, row and n of the first record */
        es_buf b = {0};
        es_buf_add(&b, file.data, file.len);
        memset(b.data + i, 0xff, 8);
        test_write(test_path("damaged/sequences.bin"), b.data, b.len);
        es_buf_free(&b);
        assert_error(es_harvest_reader_open(&h, dir, 2, &err), &err, "sequence 0");
    }
    es_buf_free(&file);
    es_buf_free(&json);

    const int wrong[] = {4}, twice[] = {1, 1};
    o = options();
    o.layer = wrong;
    o.n_layer = 1;
    assert_error(es_harvest(model, (const char *const *)&text_path, 1, test_path("x"), &o, NULL, &err), &err, "no layer 4");
    o.layer = twice;
    o.n_layer = 2;
    assert_error(es_harvest(model, (const char *const *)&text_path, 1, test_path("x"), &o, NULL, &err), &err, "twice");
    free(dir);
    const char *none = test_path("none.jsonl");
    assert_error(es_harvest(model, &none, 1, test_path("x"), &(es_harvest_options){.layer = layers, .n_layer = 1, .context = 24}, NULL, &err), &err, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stores_what_the_model_computes), cmocka_unit_test(documents_are_read_as_they_are_meant),
        cmocka_unit_test(goes_on_where_it_was_stopped), cmocka_unit_test(refuses_what_is_damaged),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
