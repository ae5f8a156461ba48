/* Exports read back: the bytes by hand, and by numpy and gguf where ESPALIER_TEST_PYTHON names a Python that has them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zlib.h>

#include "adapter.h"
#include "dictionary.h"
#include "sessions.h"
#include "support.h"

enum { F = 32, LAYER = 1, K = 5, LAYERS = 4, D = 64 };

static es_error err;
static es_model *model;
static es_dictionary *dictionary;
static es_basis the_basis;

static es_dictionary *make_dictionary(const char *name, const char *hook, const char *hash, uint64_t seed)
{
    es_rng rng;
    es_dictionary *s = NULL;
    float *w = calloc(F * D, sizeof *w), *zero = calloc(F + D, sizeof *zero);
    es_rng_seed(&rng, seed);
    for (int i = 0; i < F * D; i++)
        w[i] = es_rng_normal(&rng) / 8;
    json_t *meta = json_pack("{s:s, s:s, s:s}", "model_name", "Tiny", "hook_name", hook, "espalier_model_sha256", hash);
    const char *folder = test_path("%s", name);
    assert_ok(es_dictionary_save(folder, D, F, w, w, zero, zero, 0, false, meta, &err), &err);
    assert_ok(es_dictionary_open(&s, folder, &err), &err);
    json_decref(meta);
    free(w);
    free(zero);
    return s;
}

static int set_up(void **state)
{
    (void)state;
    char hash[65];
    model = open_tiny(NULL);
    assert_ok(es_model_hash(model, hash, &err), &err);
    dictionary = make_dictionary("dictionary", "blocks.1.hook_resid_post", hash, 9);
    the_basis = (es_basis){.name = "tone", .version = 2, .layer = LAYER};
    snprintf(the_basis.model_hash, 65, "%s", hash);
    snprintf(the_basis.dictionary_hash, 65, "%s", es_dictionary_get_info(dictionary)->hash);
    for (int i = 0; i < K; i++)
        assert_ok(es_basis_add(&the_basis, 2 * i + 1, -3, 4, &err), &err);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    es_basis_free(&the_basis);
    es_dictionary_free(dictionary);
    es_model_free(model);
    return 0;
}

/* learned: random parameters, as if it had. */
static es_adapter *make_adapter(es_form form, bool learned)
{
    es_adapter *a = NULL;
    es_adapter_options o = es_adapter_default(dictionary, model);
    o.form = form;
    o.rank = 3;
    assert_ok(es_adapter_new(&a, model, dictionary, &the_basis, &o, &err), &err);
    es_rng rng;
    es_rng_seed(&rng, 2);
    for (size_t i = 0; learned && i < a->n_param; i++)
        a->param[i] = es_rng_normal(&rng) / 4;
    for (size_t i = 0; learned && i < a->n_mean; i++)
        a->mean_input[i] = es_rng_normal(&rng);
    a->steps = learned ? 7 : 0;
    es_adapter_refresh(a);
    return a;
}

static uint64_t number_at(const es_buf *b, size_t at, int bytes)
{
    uint64_t v = 0;
    assert_true(at + (size_t)bytes <= b->len);
    for (int i = bytes - 1; i >= 0; i--)
        v = v << 8 | (uint8_t)b->data[at + (size_t)i];
    return v;
}

static size_t text_at(const es_buf *b, size_t at, char *out, size_t size)
{
    size_t n = number_at(b, at, 8);
    assert_true(n < size && at + 8 + n <= b->len);
    memcpy(out, b->data + at + 8, n);
    out[n] = 0;
    return at + 8 + n;
}

static void control_vector(void **state)
{
    (void)state;
    float want[LAYERS * D];
    for (int form = ES_FORM_BIAS; form <= ES_FORM_LORA; form++) {
        es_adapter *a = make_adapter(form, true);
        const char *path = test_path("v%d.gguf", form);
        assert_ok(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_CONTROL_VECTOR, path, &err), &err);
        assert_ok(es_adapter_directions(a, want, &err), &err);
        es_buf b = {0};
        char text[200], architecture[64] = "", hint[64] = "";
        test_read(&b, path);
        assert_memory_equal(b.data, "GGUF", 4);
        assert_int_equal(number_at(&b, 4, 4), 3);
        int n = (int)number_at(&b, 8, 8), kv = (int)number_at(&b, 16, 8);
        assert_int_equal(n, form == ES_FORM_LORA ? LAYERS - LAYER : 1);
        size_t at = 24;
        for (int i = 0; i < kv; i++) {
            at = text_at(&b, at, text, sizeof text);
            uint64_t type = number_at(&b, at, 4);
            at += 4;
            if (type == 4) {
                assert_string_equal(text, "controlvector.layer_count");
                assert_int_equal(number_at(&b, at, 4), n);
                at += 4;
            } else {
                char value[200];
                assert_int_equal(type, 8);
                at = text_at(&b, at, value, sizeof value);
                if (!strcmp(text, "general.architecture"))
                    snprintf(architecture, sizeof architecture, "%.60s", value);
                if (!strcmp(text, "controlvector.model_hint"))
                    snprintf(hint, sizeof hint, "%.60s", value);
            }
        }
        assert_string_equal(architecture, "controlvector");
        assert_string_equal(hint, "llama");
        size_t offset[LAYERS], data;
        int layer[LAYERS];
        for (int i = 0; i < n; i++) {
            at = text_at(&b, at, text, sizeof text);
            assert_int_equal(sscanf(text, "direction.%d", &layer[i]), 1);
            assert_int_equal(layer[i], LAYER + i); /* the residual after our layer L is llama.cpp's direction.L */
            assert_int_equal(number_at(&b, at, 4), 1);
            assert_int_equal(number_at(&b, at + 4, 8), D);
            assert_int_equal(number_at(&b, at + 12, 4), 0); /* f32 */
            offset[i] = number_at(&b, at + 16, 8);
            assert_int_equal(offset[i] % 32, 0);
            at += 24;
        }
        data = (at + 31) / 32 * 32;
        for (int i = 0; i < n; i++) {
            assert_true(data + offset[i] + D * sizeof(float) <= b.len);
            assert_memory_equal(b.data + data + offset[i], want + layer[i] * D, D * sizeof(float));
        }
        es_buf_free(&b);
        es_adapter_free(a);
    }
    es_adapter *a = make_adapter(ES_FORM_BIAS, false);
    const char *path = test_path("none.gguf");
    assert_error(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_CONTROL_VECTOR, path, &err), &err, "nothing yet");
    assert_int_not_equal(access(path, F_OK), 0);
    es_adapter_free(a);
    a = make_adapter(ES_FORM_LORA, false); /* never learned: its mean directions are unknown */
    assert_error(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_CONTROL_VECTOR, path, &err), &err, NULL);
    assert_error(es_export_adapter(a, model, dictionary, NULL, (es_export_kind)9, path, &err), &err, "kind");
    es_adapter_free(a);
    a = make_adapter(ES_FORM_BIAS, true);
    assert_error(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_JSON, test_path("no/folder/a.json"), &err), &err, "no/folder");
    a->v[3] = NAN;
    assert_error(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_CONTROL_VECTOR, path, &err), &err, "finite");
    es_adapter_free(a);
}

/* Local headers, the directory and its end agree; returns the bytes of the named member's array. */
static const char *member(const es_buf *b, const char *name, const char *head, size_t *n)
{
    size_t end = b->len - 22;
    assert_int_equal(number_at(b, end, 4), 0x06054b50);
    int entries = (int)number_at(b, end + 10, 2);
    size_t at = number_at(b, end + 16, 4);
    assert_int_equal(at + number_at(b, end + 12, 4), end);
    const char *found = NULL;
    for (int i = 0; i < entries; i++) {
        assert_int_equal(number_at(b, at, 4), 0x02014b50);
        size_t len = number_at(b, at + 28, 2), local = number_at(b, at + 42, 4), size = number_at(b, at + 24, 4);
        assert_int_equal(number_at(b, at + 10, 2), 0);
        assert_int_equal(number_at(b, at + 20, 4), size);
        assert_int_equal(number_at(b, local, 4), 0x04034b50);
        assert_memory_equal(b->data + local + 14, b->data + at + 16, 12); /* crc, sizes */
        const char *data = b->data + local + 30 + len;
        assert_true(local + 30 + len + size <= end);
        assert_int_equal(crc32(0, (const Bytef *)data, (uInt)size), number_at(b, at + 16, 4));
        if (len == strlen(name) && !memcmp(b->data + at + 46, name, len)) {
            size_t skip = 10 + number_at(b, local + 30 + len + 8, 2);
            assert_memory_equal(data, "\x93NUMPY\x01\x00", 8);
            assert_int_equal(skip % 64, 0);
            assert_int_equal(data[skip - 1], '\n');
            assert_non_null(strstr(data + 10, head));
            *n = size - skip;
            found = data + skip;
        }
        at += 46 + len;
    }
    assert_int_equal(at, end);
    if (!found)
        fail_msg("%s is not in the npz", name);
    return found;
}

static void npz(void **state)
{
    (void)state;
    es_adapter *a = make_adapter(ES_FORM_LORA, true);
    es_patch p;
    const char *path = test_path("a.npz");
    es_buf b = {0}, again = {0};
    size_t n;
    assert_ok(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_NPZ, path, &err), &err);
    test_read(&b, path);
    const char *data = member(&b, "coefficient.npy", "'<f4', 'fortran_order': False, 'shape': (5,)", &n);
    assert_int_equal(n, K * sizeof(float));
    assert_memory_equal(data, es_adapter_coefficients(a), n);
    data = member(&b, "feature.npy", "'<i4'", &n);
    assert_int_equal(data[4], 3);
    member(&b, "basis.npy", "(5, 64)", &n);
    member(&b, "direction.npy", "(4, 64)", &n);
    data = member(&b, "model_sha256.npy", "'|S64'", &n);
    assert_memory_equal(data, the_basis.model_hash, 64);
    assert_ok(es_adapter_patch(a, 1, &p, &err), &err);
    data = member(&b, "blk.1.attn_output.lora_a.npy", "(3, 64)", &n);
    assert_memory_equal(data, p.lowrank[0].a, n);
    data = member(&b, "blk.1.attn_output.lora_b.npy", "(64, 3)", &n);
    assert_memory_equal(data, p.lowrank[0].b, n);
    assert_ok(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_NPZ, path, &err), &err);
    test_read(&again, path);
    assert_int_equal(again.len, b.len); /* the same adapter, the same file */
    assert_memory_equal(again.data, b.data, b.len);
    es_buf_free(&b);
    es_buf_free(&again);
    es_adapter_free(a);
    a = make_adapter(ES_FORM_LORA, false);
    assert_ok(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_NPZ, test_path("unlearned.npz"), &err), &err);
    es_adapter_free(a);
    a = make_adapter(ES_FORM_MAP, true);
    assert_ok(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_NPZ, path, &err), &err);
    es_buf map = {0};
    test_read(&map, path);
    data = member(&map, "bias.npy", "(5,)", &n);
    assert_memory_equal(data, es_adapter_table(a), n);
    data = member(&map, "map.npy", "(5, 5)", &n);
    assert_memory_equal(data, es_adapter_table(a) + K, n);
    es_buf_free(&map);
    es_adapter_free(a);
}

/* Of two dictionaries: what each number is of, and a map for each layer. */
static void parts(void **state)
{
    (void)state;
    es_dictionary *late = make_dictionary("late", "blocks.2.hook_resid_post", the_basis.model_hash, 10);
    es_basis other = {.name = "late", .layer = 2};
    for (int i = 0; i < 4; i++)
        assert_ok(es_basis_add(&other, 7 * i, -1, (float)i, &err), &err);
    es_part part[2] = {{late, &other}, {dictionary, &the_basis}};
    es_adapter_options o = es_adapter_default(dictionary, model);
    es_adapter *a = NULL;
    const char *path = test_path("parts.out");
    o.form = ES_FORM_MAP;
    assert_ok(es_adapter_new_parts(&a, model, part, 2, &o, &err), &err);
    for (size_t i = 0; i < a->n_param; i++)
        a->param[i] = (float)i / 64;
    for (size_t i = 0; i < a->n_mean; i++)
        a->mean_input[i] = 1;
    a->steps = 1;
    es_adapter_refresh(a);
    es_buf b = {0};
    const char *data;
    size_t n;
    assert_ok(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_NPZ, path, &err), &err);
    test_read(&b, path);
    int32_t number[K + 4];
    memcpy(number, member(&b, "feature.npy", "(9,)", &n), sizeof number);
    assert_true(number[K] == 0 && number[K + 1] == 7);
    memcpy(number, member(&b, "layer.npy", "(9,)", &n), sizeof number);
    assert_true(number[0] == 1 && number[K - 1] == 1 && number[K] == 2);
    memcpy(number, member(&b, "part.npy", "(9,)", &n), sizeof number);
    assert_true(number[K - 1] == 0 && number[K] == 1);
    data = member(&b, "bias.npy", "(9,)", &n);
    assert_memory_equal(data, es_adapter_table(a), n);
    data = member(&b, "map.1.npy", "(5, 5)", &n);
    assert_memory_equal(data, es_adapter_table(a) + K + 4, n);
    data = member(&b, "map.2.npy", "(4, 4)", &n);
    assert_memory_equal(data, es_adapter_table(a) + K + 4 + K * K, n);
    data = member(&b, "basis.npy", "(9, 64)", &n);
    assert_memory_equal(data, es_adapter_matrix(a), n);
    const char *hash = member(&b, "dictionary_sha256.npy", "(2,)", &n);
    assert_memory_equal(hash, es_dictionary_get_info(dictionary)->hash, 64);
    assert_memory_equal(hash + 64, es_dictionary_get_info(late)->hash, 64);
    es_buf_free(&b);
    json_t *v = NULL;
    assert_ok(es_export_adapter(a, model, NULL, NULL, ES_EXPORT_JSON, path, &err), &err);
    assert_ok(es_json_file(&v, path, &err), &err);
    json_t *f = json_array_get(json_object_get(v, "features"), K + 3), *p = json_array_get(json_object_get(v, "parts"), 1);
    assert_int_equal(json_integer_value(json_object_get(f, "feature")), 21);
    assert_int_equal(json_integer_value(json_object_get(f, "layer")), 2);
    assert_true(json_number_value(json_object_get(f, "hi")) == 3);
    assert_string_equal(json_string_value(json_object_get(p, "sha256")), es_dictionary_get_info(late)->hash);
    assert_int_equal(json_integer_value(json_object_get(p, "first")), K);
    json_decref(v);
    es_adapter_free(a);
    /* a control vector holds both layers */
    o.form = ES_FORM_BIAS;
    assert_ok(es_adapter_new_parts(&a, model, part, 2, &o, &err), &err);
    for (size_t i = 0; i < a->n_param; i++)
        a->param[i] = 1 + (float)i;
    es_adapter_refresh(a);
    assert_ok(es_export_adapter(a, model, NULL, NULL, ES_EXPORT_CONTROL_VECTOR, path, &err), &err);
    test_read(&b, path);
    assert_int_equal(number_at(&b, 8, 8), 2);
    size_t at = number_at(&b, 16, 8);
    assert_int_equal(at, 8); /* pairs: six, and a hash for each dictionary */
    assert_memory_equal(b.data + b.len - 64 * sizeof(float), a->v + 64, 64 * sizeof(float));
    es_buf_free(&b);
    es_adapter_free(a);
    es_basis_free(&other);
    es_dictionary_free(late);
}

static void json(void **state)
{
    (void)state;
    es_adapter *a = make_adapter(ES_FORM_BIAS, true);
    const char *path = test_path("a.json");
    es_workspace *w = NULL;
    int64_t id, who[2] = {11, 12};
    float influence[3 * K] = {0};
    assert_ok(es_workspace_open(&w, test_path("w.db"), &err), &err);
    assert_ok(es_workspace_label_set(w, the_basis.dictionary_hash, 3, "hedging \"quoted\"\n", "tone", 0, "me", &err), &err);
    for (int k = 0; k < 2 * K; k++)
        influence[k] = (float)k;
    es_snapshot_line line = {.basis = "tone", .form = "bias", .n = K, .coefficient = (float *)es_adapter_coefficients(a)};
    assert_ok(es_workspace_snapshot_add(w, &line, "x", 1, 0, who, influence, 2, &id, &err), &err);
    assert_ok(es_export_adapter(a, model, dictionary, w, ES_EXPORT_JSON, path, &err), &err);
    json_t *v = NULL;
    assert_ok(es_json_file(&v, path, &err), &err);
    assert_string_equal(json_string_value(json_object_get(v, "form")), "bias");
    assert_string_equal(json_string_value(json_object_get(json_object_get(v, "model"), "sha256")), the_basis.model_hash);
    json_t *f = json_object_get(v, "features"), *one = json_array_get(f, 1);
    assert_int_equal(json_array_size(f), K);
    assert_int_equal(json_integer_value(json_object_get(one, "feature")), 3);
    assert_string_equal(json_string_value(json_object_get(one, "label")), "hedging \"quoted\"\n");
    assert_float_equal((float)json_real_value(json_object_get(one, "coefficient")), es_adapter_coefficients(a)[1], 0); /* to the bit */
    json_t *rows = json_object_get(v, "influence");
    assert_int_equal(json_array_size(rows), 3);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(rows, 1), "experience")), 12);
    assert_true(json_is_null(json_object_get(json_array_get(rows, 2), "experience")));
    json_decref(v);
    es_workspace_close(w);
    es_adapter_free(a);
}

/* The packages that others use read the same numbers. */
static void peers(void **state)
{
    (void)state;
    const char *python = getenv("ESPALIER_TEST_PYTHON");
    if (!python || !*python) {
        print_message("ESPALIER_TEST_PYTHON is not set: numpy and gguf were not asked\n");
        return;
    }
    es_adapter *a = make_adapter(ES_FORM_LORA, true);
    const char *gguf = test_path("peer.gguf"), *zip = test_path("peer.npz"), *script = test_path("peer.py"), *raw = test_path("peer.f32");
    float want[LAYERS * D];
    assert_ok(es_adapter_directions(a, want, &err), &err);
    test_write(raw, want, sizeof want);
    assert_ok(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_CONTROL_VECTOR, gguf, &err), &err);
    assert_ok(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_NPZ, zip, &err), &err);
    static const char text[] =
        "import sys, numpy as np, gguf\n"
        "want = np.fromfile(sys.argv[3], '<f4').reshape(4, 64)\n"
        "z = np.load(sys.argv[2], allow_pickle=False)\n"
        "assert np.array_equal(z['direction'], want), 'npz'\n"
        "assert z['feature'].tolist() == [1, 3, 5, 7, 9] and z['basis'].shape == (5, 64)\n"
        "assert len(z['model_sha256'][0]) == 64\n"
        "d = z['blk.1.attn_output.lora_b'].shape, z['blk.3.ffn_down.lora_a'].shape\n"
        "assert d == ((64, 3), (3, 128)), d\n"
        "r = gguf.GGUFReader(sys.argv[1])\n"
        "text = lambda k: bytes(r.fields[k].parts[-1]).decode()\n"
        "assert text('general.architecture') == 'controlvector' and text('controlvector.model_hint') == 'llama'\n"
        "t = {x.name: np.array(x.data) for x in r.tensors}\n"
        "assert sorted(t) == ['direction.1', 'direction.2', 'direction.3'], sorted(t)\n"
        "assert all(np.array_equal(t['direction.%d' % i], want[i]) for i in (1, 2, 3)), 'gguf'\n";
    test_write(script, text, sizeof text - 1);
    char command[4096];
    snprintf(command, sizeof command, "'%s' '%s' '%s' '%s' '%s'", python, script, gguf, zip, raw);
    assert_int_equal(system(command), 0);
    es_adapter_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(control_vector), cmocka_unit_test(npz), cmocka_unit_test(parts), cmocka_unit_test(json), cmocka_unit_test(peers)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
