/* A basis as a file, and an adapter's matrices for other tools, read back here; tests/cli/test_exchange.sh has the tools themselves read them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapter.h"
#include "dictionary.h"
#include "sessions.h"
#include "support.h"

enum { F = 32, LAYER = 1, K = 5, LAYERS = 4, D = 64 };

static es_error err;
static es_model *model;
static es_dictionary *dictionary, *other;
static es_basis the_basis;

static es_dictionary *make_dictionary(const char *name, uint64_t seed)
{
    es_rng rng;
    es_dictionary *s;
    float *w = calloc(F * D, sizeof *w), *zero = calloc(F + D, sizeof *zero);
    es_rng_seed(&rng, seed);
    for (int i = 0; i < F * D; i++)
        w[i] = es_rng_normal(&rng) / 8;
    json_t *meta = json_pack("{s:s, s:s}", "model_name", "Tiny", "hook_name", "blocks.1.hook_resid_post");
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
    dictionary = make_dictionary("dictionary", 9);
    other = make_dictionary("other", 10);
    the_basis = (es_basis){.name = "tone", .version = 2, .layer = LAYER};
    snprintf(the_basis.model_hash, 65, "%s", hash);
    snprintf(the_basis.dictionary_hash, 65, "%s", es_dictionary_get_info(dictionary)->hash);
    for (int i = 0; i < K; i++)
        assert_ok(es_basis_add(&the_basis, 2 * i + 1, -3.3f, i == 2 ? 0 : 4, &err), &err);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    es_basis_free(&the_basis);
    es_dictionary_free(dictionary);
    es_dictionary_free(other);
    es_model_free(model);
    return 0;
}

static void a_basis_comes_back_from_its_file(void **state)
{
    (void)state;
    const char *path = test_path("tone.safetensors");
    es_workspace *w = NULL, *second = NULL;
    assert_ok(es_workspace_open(&w, test_path("w.db"), &err), &err);
    assert_ok(es_workspace_label_set(w, the_basis.dictionary_hash, 3, "hedging \"quoted\"", "tone", 4, "ann", &err), &err);
    assert_ok(es_workspace_label_set(w, the_basis.dictionary_hash, 4, "not in the basis", "", 0, "ann", &err), &err);
    assert_ok(es_basis_file_write(&the_basis, model, dictionary, w, "ann", path, &err), &err);
    es_basis got;
    json_t *about = NULL;
    float *rows = NULL, *own = NULL;
    assert_ok(es_basis_file_read(&got, &about, &rows, model, dictionary, path, &err), &err);
    assert_string_equal(got.name, "tone");
    assert_int_equal(got.n, K);
    assert_memory_equal(got.feature, the_basis.feature, K * sizeof(int));
    assert_memory_equal(got.lo, the_basis.lo, K * sizeof(float)); /* bounds survive JSON to the bit */
    assert_memory_equal(got.hi, the_basis.hi, K * sizeof(float));
    assert_ok(es_basis_matrix(&the_basis, dictionary, &own, &err), &err);
    assert_memory_equal(rows, own, K * D * sizeof(float));
    int taken;
    es_label l;
    assert_ok(es_workspace_open(&second, test_path("w2.db"), &err), &err);
    assert_ok(es_basis_file_labels(about, got.dictionary_hash, second, &taken, &err), &err);
    assert_int_equal(taken, 1);
    assert_ok(es_workspace_label_get(second, got.dictionary_hash, 3, &l, &err), &err);
    assert_string_equal(l.text, "hedging \"quoted\"");
    assert_string_equal(l.author, "ann");
    assert_int_equal(l.rating, 4);
    es_label_free(&l);
    assert_ok(es_basis_file_labels(about, got.dictionary_hash, second, &taken, &err), &err);
    assert_int_equal(taken, 0); /* what is there stays */
    es_workspace_close(w);
    es_workspace_close(second);
    json_decref(about);
    es_basis_free(&got);
    free(rows);
    free(own);
}

static void refused_file(const char *path, const es_dictionary *s, int code, const char *text)
{
    es_basis got;
    json_t *about = NULL;
    float *rows = NULL;
    int rc = es_basis_file_read(&got, &about, &rows, model, s, path, &err);
    if (rc != code || !strstr(err.text, text) || about || rows || got.feature)
        fail_msg("got %d \"%s\", wanted %d \"%s\"", rc, err.text, code, text);
}

static void a_basis_of_another_dictionary_or_of_lies_is_refused(void **state)
{
    (void)state;
    const char *path = test_path("lies.safetensors");
    assert_ok(es_basis_file_write(&the_basis, model, dictionary, NULL, "ann", path, &err), &err);
    refused_file(path, other, ES_ERR_MISMATCH, es_dictionary_get_info(other)->hash);
    refused_file(path, other, ES_ERR_MISMATCH, es_dictionary_get_info(dictionary)->hash);
    es_buf b = {0};
    test_read(&b, path);
    char *hash = memmem(b.data, b.len, the_basis.model_hash, 64); /* of another model */
    assert_non_null(hash);
    es_buf c = {0};
    es_buf_add(&c, b.data, b.len);
    for (char *at = c.data; (at = memmem(at, c.len - (size_t)(at - c.data), the_basis.model_hash, 64)); at += 64)
        at[0] = at[0] == '0' ? '1' : '0';
    test_write(path, c.data, c.len);
    refused_file(path, dictionary, ES_ERR_MISMATCH, the_basis.model_hash);
    es_buf_clear(&c);
    es_buf_add(&c, b.data, b.len);
    float half = 0.5f;
    memcpy(c.data + c.len - (K * D + 2 * K) * sizeof(float), &half, 4); /* a direction that is none of the dictionary's */
    test_write(path, c.data, c.len);
    refused_file(path, dictionary, ES_ERR_FORMAT, "not those of feature 1");
    test_write(path, b.data, b.len - 4);
    refused_file(path, dictionary, ES_ERR_FORMAT, "lies.safetensors");
    es_buf_clear(&c);
    es_buf_add(&c, b.data, b.len);
    memcpy(memmem(c.data, c.len, "espalier-basis-file", 19), "espalier-basis-fill", 19);
    test_write(path, c.data, c.len);
    refused_file(path, dictionary, ES_ERR_FORMAT, "another version");
    float x[4] = {0};
    es_tensor_spec t = {"directions", ES_TENSOR_F32, 2, {2, 2}, x};
    assert_ok(es_safetensors_write_file(path, &t, 1, NULL, &err), &err);
    refused_file(path, dictionary, ES_ERR_FORMAT, "is no basis");
    es_buf_free(&b);
    es_buf_free(&c);
}

static es_adapter *make_adapter(es_form form)
{
    es_adapter *a = NULL;
    es_adapter_options o = es_adapter_default(dictionary, model);
    o.form = form;
    o.rank = 3;
    assert_ok(es_adapter_new(&a, model, dictionary, &the_basis, &o, &err), &err);
    es_rng rng;
    es_rng_seed(&rng, 2);
    for (size_t i = 0; i < a->n_param; i++)
        a->param[i] = es_rng_normal(&rng) / 4;
    for (size_t i = 0; i < a->n_mean; i++)
        a->mean_input[i] = es_rng_normal(&rng);
    es_adapter_refresh(a);
    return a;
}

/* Of each of the adapter's matrices the PEFT file holds A and B with the scale in B. */
static void peft_holds_the_very_matrices(void **state)
{
    (void)state;
    es_adapter *a = make_adapter(ES_FORM_LORA), *copy;
    const char *folder = test_path("peft");
    char path[300], name[160];
    assert_ok(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_PEFT, folder, &err), &err);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
    es_safetensors *t;
    es_patch patch;
    assert_ok(es_safetensors_open(&t, path, &err), &err);
    assert_ok(es_adapter_copy(&copy, a, &err), &err);
    assert_ok(es_adapter_patch(copy, 1, &patch, &err), &err);
    assert_int_equal(es_safetensors_count(t), 2 * patch.n_lowrank);
    for (int e = 0; e < patch.n_lowrank; e++) {
        const es_lowrank *l = &patch.lowrank[e];
        size_t n_in = (size_t)es_site_n_in(model, l->site), n_out = (size_t)es_site_n_out(model, l->site), r = (size_t)l->rank;
        const char *module = l->site == ES_SITE_O ? "self_attn.o_proj" : "mlp.down_proj";
        float *got = calloc(r * (n_in + n_out), sizeof *got);
        snprintf(name, sizeof name, "base_model.model.model.layers.%d.%s.lora_A.weight", l->layer, module);
        assert_ok(es_safetensors_f32(t, name, 2, (size_t[]){r, n_in}, got, &err), &err);
        assert_memory_equal(got, l->a, r * n_in * sizeof *got);
        snprintf(name, sizeof name, "base_model.model.model.layers.%d.%s.lora_B.weight", l->layer, module);
        assert_ok(es_safetensors_f32(t, name, 2, (size_t[]){n_out, r}, got, &err), &err);
        for (size_t i = 0; i < n_out * r; i++)
            assert_true(got[i] == l->scale * l->b[i]);
        free(got);
    }
    es_safetensors_free(t);
    es_adapter_free(copy);
    es_adapter_free(a);
    a = make_adapter(ES_FORM_BIAS);
    assert_int_equal(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_PEFT, folder, &err), ES_ERR_USAGE);
    assert_int_equal(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_GGUF_LORA, path, &err), ES_ERR_USAGE);
    es_adapter_free(a);
}

/* Row L + 1 is our layer L's; as .safetensors and, the same numbers, in the zip of a .pt. */
static void persona_tensors_begin_with_the_embedding(void **state)
{
    (void)state;
    es_adapter *a = make_adapter(ES_FORM_BIAS);
    float want[LAYERS * D], got[(LAYERS + 1) * D];
    assert_ok(es_adapter_directions(a, want, &err), &err);
    const char *path = test_path("persona.safetensors"), *pt = test_path("persona.pt");
    assert_ok(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_PERSONA, path, &err), &err);
    assert_ok(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_PERSONA, pt, &err), &err);
    es_safetensors *t;
    assert_ok(es_safetensors_open(&t, path, &err), &err);
    assert_ok(es_safetensors_f32(t, "vector", 2, (size_t[]){LAYERS + 1, D}, got, &err), &err);
    for (int i = 0; i < D; i++)
        assert_true(got[i] == 0);
    assert_memory_equal(got + D, want, sizeof want);
    es_zip *z;
    assert_ok(es_zip_open(&z, pt, &err), &err);
    const es_zip_member *m = es_zip_find(z, "archive/data/0");
    assert_non_null(m);
    assert_int_equal(m->size, sizeof got);
    assert_memory_equal(m->data, got, sizeof got);
    es_zip_free(z);
    es_safetensors_free(t);
    assert_int_equal(es_export_adapter(a, model, dictionary, NULL, ES_EXPORT_PERSONA, test_path("persona.txt"), &err), ES_ERR_USAGE);
    es_adapter_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_basis_comes_back_from_its_file), cmocka_unit_test(a_basis_of_another_dictionary_or_of_lies_is_refused),
        cmocka_unit_test(peft_holds_the_very_matrices), cmocka_unit_test(persona_tensors_begin_with_the_embedding),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
