/* dictionary_learning (Marks, Karvonen & Mueller): trainer_0/ae.pt, a state_dict, and config.json with the class of the dictionary. Source of names and
 * formulas: dictionary_learning/dictionary.py and trainers/{top_k,batch_top_k,matryoshka_batch_top_k}.py. Features are those of encode() on the weights
 * as they are stored: AutoEncoder.from_pretrained may scale them by the decoder's norms, which in dictionaries of the trainers are 1. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dictionary.h"
#include "pickle.h"

typedef struct class { /* a class of dictionary_learning: names of its arrays */
    const char *name;
    es_architecture architecture;
    bool linear;            /* encoder.weight [F, d] and decoder.weight [d, F]; else W_enc [d, F] and W_dec [F, d] */
    const char *b_enc, *b_dec;
    bool apply_b_dec;
} class;

static const class classes[] = { /* in the order of the names below */
    {"AutoEncoder", ES_SAE_STANDARD, true, "encoder.bias", "bias", true},
    {"AutoEncoderNew", ES_SAE_STANDARD, true, "encoder.bias", "decoder.bias", false},
    {"AutoEncoderTopK", ES_SAE_TOPK, true, "encoder.bias", "b_dec", true},
    {"BatchTopKSAE", ES_SAE_JUMPRELU, true, "encoder.bias", "b_dec", true},
    {"MatryoshkaBatchTopKSAE", ES_SAE_JUMPRELU, false, "b_enc", "b_dec", true},
    {"JumpReluAutoEncoder", ES_SAE_JUMPRELU, false, "b_enc", "b_dec", false},
    {"GatedAutoEncoder", ES_SAE_GATED, true, NULL, "decoder_bias", true},
};
enum { AUTO, AUTO_NEW, TOPK, BATCH_TOPK, MATRYOSHKA, JUMPRELU, GATED, N_CLASSES };

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

static bool recognises(const es_place *p)
{
    return p->file[0] ? ends_with(p->file, ".pt") || ends_with(p->file, ".pth") || (!strcmp(p->file, "config.json") && es_place_has(p, "ae.pt")) : es_place_has(p, "ae.pt");
}

static const class *class_named(const char *name)
{
    for (int i = 0; i < N_CLASSES; i++)
        if (!strcmp(classes[i].name, name))
            return &classes[i];
    return NULL;
}

/* Without a config.json: what the arrays' names say. NULL: TopK and BatchTopK have the same ones. */
static const class *class_of(const es_arrays *a)
{
    static const struct { const char *array; int class; } telling[] = {
        {"gate_bias", GATED}, {"group_sizes", MATRYOSHKA}, {"W_enc", JUMPRELU}, {"bias", AUTO}, {"decoder.bias", AUTO_NEW},
    };
    for (size_t i = 0; i < sizeof telling / sizeof *telling; i++)
        if (es_arrays_find(a, telling[i].array))
            return &classes[telling[i].class];
    return NULL;
}

/* The hook: "resid_post_layer_8" in submodule_name, or the residual after trainer.layer. */
static void take_hook(es_weights *w, json_t *trainer)
{
    char name[128];
    json_t *layer = json_object_get(trainer, "layer");
    es_copy_string(name, sizeof name, json_object_get(trainer, "submodule_name"));
    es_copy_string(w->info.model_name, sizeof w->info.model_name, json_object_get(trainer, "lm_name"));
    es_copy_string(w->info.model_hash, sizeof w->info.model_hash, json_object_get(trainer, "espalier_model_sha256"));
    w->info.hook = ES_HOOK_UNKNOWN;
    if (!json_is_integer(layer) || json_integer_value(layer) < 0 || json_integer_value(layer) > 9999)
        return;
    w->info.layer = (int)json_integer_value(layer);
    w->info.hook = !strncmp(name, "mlp", 3) ? ES_HOOK_MLP_OUT : !strncmp(name, "att", 3) ? ES_HOOK_ATTENTION_OUT : ES_HOOK_RESIDUAL;
    es_weights_hook_name(w, w->info.hook_name, sizeof w->info.hook_name);
}

static int take_config(es_weights *w, const es_place *p, const class **out, long long *k, es_error *err)
{
    char path[1300], name[80];
    json_t *cfg;
    w->info.hook = ES_HOOK_UNKNOWN;
    *out = NULL;
    *k = 0;
    if (!es_place_has(p, "config.json"))
        return ES_OK;
    snprintf(path, sizeof path, "%s/config.json", p->folder);
    int rc = es_json_file(&cfg, path, err);
    if (rc)
        return rc;
    json_t *trainer = json_object_get(cfg, "trainer");
    es_copy_string(name, sizeof name, json_object_get(trainer, "dict_class"));
    take_hook(w, trainer);
    *k = json_integer_value(json_object_get(trainer, "k"));
    if (*name && !(*out = class_named(name)))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: dict_class \"%s\" is not supported", path, name);
    json_decref(cfg);
    return rc;
}

static int read_arrays(es_weights *w, const class *c, long long k, es_error *err)
{
    const es_arrays *a = &w->arrays;
    const char *enc = c->linear ? "encoder.weight" : "W_enc", *dec = c->linear ? "decoder.weight" : "W_dec";
    const es_array *e = es_arrays_find(a, enc);
    if (!e || e->n_dims != 2)
        return es_fail(err, e ? ES_ERR_FORMAT : ES_ERR_MISSING, "%s: there is no matrix \"%s\", as %s has", a->what, enc, c->name);
    size_t d = e->dim[c->linear ? 1 : 0], F = e->dim[c->linear ? 0 : 1];
    int rc = es_weights_sizes(w, d, d, F, err);
    if (!rc)
        rc = es_weights_matrices(w, enc, !c->linear, dec, c->linear, err);
    if (!rc)
        rc = es_arrays_numbers(a, c->b_dec, d, false, &w->b_dec, err);
    if (!rc && c->b_enc)
        rc = es_arrays_numbers(a, c->b_enc, F, false, &w->b_enc, err);
    if (!rc && c->architecture == ES_SAE_JUMPRELU)
        rc = es_arrays_numbers(a, "threshold", F, true, &w->threshold, err);
    if (!rc && c->architecture == ES_SAE_GATED) {
        if (!(rc = es_arrays_numbers(a, "gate_bias", F, false, &w->b_gate, err)) && !(rc = es_arrays_numbers(a, "mag_bias", F, false, &w->b_mag, err)))
            rc = es_arrays_numbers(a, "r_mag", F, false, &w->r_mag, err);
    }
    if (!rc && c->architecture == ES_SAE_TOPK) {
        es_arrays_integer(a, "k", &k); /* the file's own goes before the configuration's */
        if (k < 1 || k > (long long)F)
            rc = es_fail(err, ES_ERR_FORMAT, "%s: a topk dictionary needs k between 1 and %zu", a->what, F);
        w->info.k = (int)k;
    }
    w->info.architecture = c->architecture;
    w->info.apply_b_dec_to_input = c->apply_b_dec;
    return rc;
}

static int read_folder(es_weights *w, const es_place *p, es_error *err)
{
    const class *c;
    long long k;
    int rc = take_config(w, p, &c, &k, err);
    if (rc)
        return rc;
    snprintf(w->file, sizeof w->file, "%s/%s", p->folder, ends_with(p->file, ".json") || !p->file[0] ? "ae.pt" : p->file);
    rc = es_arrays_torch(&w->arrays, w->file, err);
    if (!rc && !c && !(c = class_of(&w->arrays)))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: without config.json beside it, with trainer.dict_class, its kind is unknown", w->file);
    return rc ? rc : read_arrays(w, c, k, err);
}

/* ---- writing -------------------------------------------------------------------------------------------------------------------------------- */

static int put_matrix(void *user, const es_put *out, es_error *err)
{
    const es_named *a = user;
    return es_matrix_put(a->matrix, es_matrix_type(a->matrix), !a->transposed, out, err);
}

static int put_numbers(void *user, const es_put *out, es_error *err)
{
    const es_named *a = user;
    es_numbers v = *a->numbers;
    v.n = a->one ? 1 : v.n;
    return es_numbers_put(&v, v.type, out, err);
}

static int put_int(void *user, const es_put *out, es_error *err)
{
    (void)err;
    int32_t v = *(const int *)user;
    out->put(out->user, &v, sizeof v);
    return ES_OK;
}

static es_torch_entry entry_of(es_named *a)
{
    es_torch_entry e = {.name = a->name, .user = a};
    if (a->matrix) {
        e.type = es_matrix_type(a->matrix);
        e.n_dims = 2;
        e.dim[0] = a->transposed ? a->matrix->cols : a->matrix->rows;
        e.dim[1] = a->transposed ? a->matrix->rows : a->matrix->cols;
        e.bytes = es_matrix_bytes(a->matrix, e.type);
        e.put = put_matrix;
    } else {
        e.type = a->numbers->type;
        e.n_dims = a->one ? 0 : 1;
        e.dim[0] = a->one ? 1 : a->numbers->n;
        e.bytes = e.dim[0] * (e.type == ES_TENSOR_F32 ? 4 : 2);
        e.put = put_numbers;
    }
    return e;
}

static bool one_threshold(const es_weights *w)
{
    for (size_t j = 1; j < w->threshold.n; j++)
        if (w->threshold.v[j] != w->threshold.v[0])
            return false;
    return true;
}

static const class *class_for(const es_weights *w, es_error *err)
{
    const es_dictionary_info *i = &w->info;
    const char *why = "such a dictionary";
    int kind = N_CLASSES;
    if (w->norm != ES_NORM_NONE)
        why = "an input that is normalised token by token";
    else if (i->transcoder || i->skip)
        why = "a transcoder";
    else if (i->architecture == ES_SAE_STANDARD)
        kind = i->apply_b_dec_to_input ? AUTO : AUTO_NEW;
    else if (i->architecture == ES_SAE_JUMPRELU)
        kind = i->apply_b_dec_to_input && one_threshold(w) ? BATCH_TOPK : JUMPRELU;
    else if (i->architecture == ES_SAE_TOPK && i->apply_b_dec_to_input && !i->rescale_acts_by_decoder_norm)
        kind = TOPK;
    else if (i->architecture == ES_SAE_GATED && i->apply_b_dec_to_input)
        kind = GATED;
    if (kind == N_CLASSES)
        es_fail(err, ES_ERR_USAGE, "%s: dictionary_learning has no place for %s", i->name, why);
    return kind == N_CLASSES ? NULL : &classes[kind];
}

static int write_config(const es_weights *w, const class *c, const char *folder, es_error *err)
{
    const es_dictionary_info *i = &w->info;
    json_t *trainer = json_pack("{s:s, s:i, s:i, s:s}", "dict_class", c->name, "activation_dim", i->d, "dict_size", i->n_features, "lm_name", i->model_name);
    if (trainer && i->hook != ES_HOOK_UNKNOWN) {
        char name[60];
        snprintf(name, sizeof name, "%s_layer_%d", i->hook == ES_HOOK_MLP_OUT ? "mlp_out" : i->hook == ES_HOOK_RESIDUAL ? "resid_post" : "attention_out", i->layer);
        json_object_set_new(trainer, "layer", json_integer(i->layer));
        json_object_set_new(trainer, "submodule_name", json_string(name));
    }
    if (trainer && i->architecture == ES_SAE_TOPK)
        json_object_set_new(trainer, "k", json_integer(i->k));
    if (trainer && *i->model_hash)
        json_object_set_new(trainer, "espalier_model_sha256", json_string(i->model_hash));
    return es_write_json(folder, "config.json", json_pack("{s:o, s:{}}", "trainer", trainer, "buffer"), err);
}

static int write_folder(const es_weights *w, const char *folder, es_error *err)
{
    const class *c = class_for(w, err);
    if (!c)
        return ES_ERR_USAGE;
    es_numbers b_enc = {0}, threshold = {0}, none = {0};
    bool fold = c->architecture == ES_SAE_JUMPRELU && !c->apply_b_dec && w->info.apply_b_dec_to_input;
    int rc = fold ? es_weights_plain(w, "dictionary_learning", &b_enc, &threshold, err) : ES_OK;
    es_named a[8] = {{.name = c->linear ? "encoder.weight" : "W_enc", .matrix = &w->enc, .transposed = !c->linear},
                     {.name = c->linear ? "decoder.weight" : "W_dec", .matrix = &w->dec, .transposed = c->linear},
                     {.name = c->b_dec, .numbers = &w->b_dec}};
    es_torch_entry e[9];
    size_t n = 3;
    int k = w->info.k;
    if (c->b_enc)
        a[n++] = (es_named){.name = c->b_enc, .numbers = fold ? &b_enc : &w->b_enc};
    if (c->architecture == ES_SAE_JUMPRELU)
        a[n++] = (es_named){.name = "threshold", .numbers = fold ? &threshold : &w->threshold, .one = c->linear};
    if (c->architecture == ES_SAE_TOPK && !rc) { /* its encode() takes the k largest; the threshold it stores beside is for those who ask */
        rc = es_numbers_new(&none, 1, -1, err);
        a[n++] = (es_named){.name = "threshold", .numbers = &none, .one = true};
    }
    if (c->architecture == ES_SAE_GATED) {
        a[n++] = (es_named){.name = "gate_bias", .numbers = &w->b_gate};
        a[n++] = (es_named){.name = "mag_bias", .numbers = &w->b_mag};
        a[n++] = (es_named){.name = "r_mag", .numbers = &w->r_mag};
    }
    for (size_t j = 0; j < n && !rc; j++)
        e[j] = entry_of(&a[j]);
    if (c->architecture == ES_SAE_TOPK || c == &classes[BATCH_TOPK]) {
        if (k < 1)
            k = 1; /* BatchTopKSAE wants one, and uses it in training only */
        e[n++] = (es_torch_entry){.name = "k", .type = ES_TENSOR_I32, .bytes = sizeof(int32_t), .put = put_int, .user = &k};
    }
    char path[1300];
    snprintf(path, sizeof path, "%s/ae.pt", folder);
    if (!rc)
        rc = es_torch_write(path, e, n, err);
    free(b_enc.v);
    free(threshold.v);
    free(none.v);
    return rc ? rc : write_config(w, c, folder, err);
}

const es_dictionary_kind es_dictionary_learning = {
    .name = "dictionary-learning", .what = "dictionary_learning: ae.pt, config.json", .recognises = recognises, .read = read_folder, .write = write_folder,
};
