/* The table of formats, and what their readers and writers share. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "dictionary.h"
#include "npy.h"

static const es_dictionary_kind *const kinds[] = {&es_saelens, &es_gemma_scope_2, &es_llama_scope, &es_dictionary_learning, &es_gemma_scope};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

const char *es_dictionary_format(int i, const char **what, bool *writes)
{
    if (i < 0 || i >= N_KINDS)
        return NULL;
    if (what)
        *what = kinds[i]->what;
    if (writes)
        *writes = kinds[i]->write;
    return kinds[i]->name;
}

const char *es_architecture_name(es_architecture a)
{
    static const char *const name[] = {[ES_SAE_STANDARD] = "standard", [ES_SAE_TOPK] = "topk", [ES_SAE_JUMPRELU] = "jumprelu", [ES_SAE_GATED] = "gated"};
    return name[a];
}

const char *es_hook_words(es_hook_kind h)
{
    static const char *const words[] = {
        [ES_HOOK_RESIDUAL] = "the residual", [ES_HOOK_ATTENTION] = "the input of the attention's output projection",
        [ES_HOOK_ATTENTION_OUT] = "the attention's output", [ES_HOOK_MLP_IN] = "the MLP's input", [ES_HOOK_MLP_OUT] = "the MLP's output",
        [ES_HOOK_UNKNOWN] = "something its files do not name",
    };
    return words[h];
}

void es_weights_free(es_weights *w)
{
    es_numbers *all[] = {&w->b_enc, &w->b_dec, &w->threshold, &w->b_gate, &w->b_mag, &w->r_mag};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]->v);
    es_arrays_close(&w->arrays);
    *w = (es_weights){0};
}

/* ---- places ------------------------------------------------------------------------------------------------------------------------------ */

static bool is_file(const char *folder, const char *name)
{
    char path[1400];
    struct stat st;
    return snprintf(path, sizeof path, "%s/%s", folder, name) < (int)sizeof path && stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

bool es_place_has(const es_place *p, const char *name)
{
    return is_file(p->folder, name);
}

const char *es_place_part(const es_place *p, const char *start, bool inside, char *out, size_t size)
{
    const char *end = p->whole + strlen(p->whole);
    while (end > p->whole) {
        const char *from = end;
        while (from > p->whole && from[-1] != '/')
            from--;
        char part[300];
        snprintf(part, sizeof part, "%.*s", (int)(end - from), from);
        const char *hit = inside ? strstr(part, start) : strncmp(part, start, strlen(start)) == 0 ? part : NULL;
        if (hit) {
            snprintf(out, size, "%s", hit + strlen(start));
            return out;
        }
        end = from > p->whole ? from - 1 : from;
    }
    return NULL;
}

static int find_place(es_place *p, const char *path, es_error *err)
{
    struct stat st;
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    if (n >= sizeof p->folder)
        return es_fail(err, ES_ERR_USAGE, "%.80s...: the path is too long", path);
    memcpy(p->folder, path, n);
    p->folder[n] = 0;
    if (stat(p->folder, &st) == 0 && !S_ISDIR(st.st_mode)) {
        char *slash = strrchr(p->folder, '/');
        const char *file = slash ? slash + 1 : p->folder;
        if (strlen(file) >= sizeof p->file)
            return es_fail(err, ES_ERR_USAGE, "%.80s...: the path is too long", path);
        memcpy(p->file, file, strlen(file) + 1);
        if (!slash)
            memcpy(p->folder, ".", 2);
        else if (slash == p->folder)
            slash[1] = 0;
        else
            *slash = 0;
    }
    char *whole = realpath(p->folder, NULL);
    snprintf(p->whole, sizeof p->whole, "%s", whole ? whole : p->folder);
    free(whole);
    return ES_OK;
}

int es_weights_read(es_weights *out, const char *path, es_error *err)
{
    es_place p = {0};
    *out = (es_weights){0};
    int rc = find_place(&p, path, err);
    if (rc)
        return rc;
    int i = 0;
    while (i < N_KINDS && !kinds[i]->recognises(&p))
        i++;
    if (i == N_KINDS)
        return es_fail(err, ES_ERR_MISSING, "%s/%s: no dictionary is here, nor params.npz, params.safetensors, ae.pt or hyperparams.json (the folder above it, or one below it?)",
                       p.folder, p.file[0] ? p.file : "cfg.json");
    es_dictionary_info *info = &out->info;
    memcpy(info->folder, p.folder, sizeof info->folder);
    const char *base = strrchr(p.whole, '/');
    snprintf(info->name, sizeof info->name, "%.127s", base && base[1] ? base + 1 : p.folder);
    info->format = kinds[i]->name;
    rc = kinds[i]->read(out, &p, err);
    if (rc)
        es_weights_free(out);
    return rc;
}

/* ---- for readers ------------------------------------------------------------------------------------------------------------------------- */

void es_copy_string(char *out, size_t size, json_t *v)
{
    const char *s = json_string_value(v);
    snprintf(out, size, "%s", s ? s : "");
}

int es_weights_sizes(es_weights *w, size_t d, size_t d_out, size_t F, es_error *err)
{
    if (d < 1 || d > ES_WIDTH_MAX || d_out < 1 || d_out > ES_WIDTH_MAX || F < 1 || F > ES_FEATURES_MAX)
        return es_fail(err, ES_ERR_FORMAT, "%s: %zu features of width %zu make no sense (at most %d and %d)", w->arrays.what, F, d, (int)ES_FEATURES_MAX, (int)ES_WIDTH_MAX);
    w->info.d = (int)d;
    w->info.d_out = (int)d_out;
    w->info.n_features = (int)F;
    return ES_OK;
}

int es_weights_matrices(es_weights *w, const char *enc, bool enc_T, const char *dec, bool dec_T, es_error *err)
{
    size_t d = (size_t)w->info.d, d_out = (size_t)w->info.d_out, F = (size_t)w->info.n_features;
    int rc = es_arrays_matrix(&w->arrays, dec, dec_T, F, d_out, &w->dec, err);
    return rc ? rc : es_arrays_matrix(&w->arrays, enc, enc_T, F, d, &w->enc, err);
}

bool es_weights_hook(es_weights *w, const char *hook)
{
    static const struct { const char *form; es_hook_kind hook; int off; } known[] = {
        {"blocks.%d.hook_resid_post%n", ES_HOOK_RESIDUAL, 0},
        {"blocks.%d.hook_resid_pre%n", ES_HOOK_RESIDUAL, -1},
        {"model.layers.%d%n", ES_HOOK_RESIDUAL, 0},
        {"model.layers.%d.output%n", ES_HOOK_RESIDUAL, 0},
        {"blocks.%d.attn.hook_z%n", ES_HOOK_ATTENTION, 0},
        {"model.layers.%d.self_attn.o_proj.input%n", ES_HOOK_ATTENTION, 0},
        {"blocks.%d.hook_attn_out%n", ES_HOOK_ATTENTION_OUT, 0},
        {"model.layers.%d.post_attention_layernorm.output%n", ES_HOOK_ATTENTION_OUT, 0},
        {"blocks.%d.hook_mlp_out%n", ES_HOOK_MLP_OUT, 0},
        {"model.layers.%d.post_feedforward_layernorm.output%n", ES_HOOK_MLP_OUT, 0},
        {"model.layers.%d.mlp.output%n", ES_HOOK_MLP_OUT, 0},
        {"blocks.%d.hook_mlp_in%n", ES_HOOK_MLP_IN, 0},
        {"blocks.%d.ln2.hook_normalized%n", ES_HOOK_MLP_IN, 0},
        {"model.layers.%d.pre_feedforward_layernorm.output%n", ES_HOOK_MLP_IN, 0},
    };
    if (!strcmp(hook, "hook_embed")) {
        w->info.hook = ES_HOOK_RESIDUAL;
        w->info.layer = -1;
        return true;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        int n = -1, end = 0;
        if (sscanf(hook, known[i].form, &n, &end) == 1 && end && !hook[end] && n >= 0 && n < 10000) {
            w->info.hook = known[i].hook;
            w->info.layer = n + known[i].off;
            return true;
        }
    }
    w->info.hook = ES_HOOK_UNKNOWN;
    return false;
}

/* ---- for writers --------------------------------------------------------------------------------------------------------------------------- */

void es_hook_place_hook(es_hook_place p, char *out, size_t size)
{
    static const char *const form[] = {
        [ES_HOOK_RESIDUAL] = "blocks.%d.hook_resid_post", [ES_HOOK_ATTENTION] = "blocks.%d.attn.hook_z", [ES_HOOK_ATTENTION_OUT] = "blocks.%d.hook_attn_out",
        [ES_HOOK_MLP_IN] = "blocks.%d.hook_mlp_in", [ES_HOOK_MLP_OUT] = "blocks.%d.hook_mlp_out", [ES_HOOK_UNKNOWN] = "",
    };
    if (p.hook == ES_HOOK_RESIDUAL && p.layer < 0)
        snprintf(out, size, "hook_embed");
    else
        snprintf(out, size, form[p.hook], p.layer);
}

const char *es_weights_hook_name(const es_weights *w, char *out, size_t size)
{
    es_hook_place_hook((es_hook_place){w->info.layer, w->info.hook}, out, size);
    return out;
}

static int refuse(const es_weights *w, const char *format, const char *why, es_error *err)
{
    return es_fail(err, ES_ERR_USAGE, "%s: %s has no place for %s", w->info.name, format, why);
}

int es_weights_plain(const es_weights *w, const char *format, es_numbers *b_enc, es_numbers *threshold, es_error *err)
{
    const es_dictionary_info *i = &w->info;
    size_t d = (size_t)i->d, F = (size_t)i->n_features;
    *b_enc = *threshold = (es_numbers){0};
    if (i->architecture == ES_SAE_TOPK || i->architecture == ES_SAE_GATED)
        return refuse(w, format, i->architecture == ES_SAE_TOPK ? "topk" : "gates", err);
    if (w->norm != ES_NORM_NONE)
        return refuse(w, format, "an input that is normalised token by token", err);
    int rc = es_numbers_new(b_enc, F, 0, err);
    if (!rc)
        rc = es_numbers_new(threshold, F, 0, err);
    if (rc)
        return rc;
    b_enc->type = w->b_enc.type;
    memcpy(b_enc->v, w->b_enc.v, F * sizeof(float));
    if (i->architecture == ES_SAE_JUMPRELU) {
        threshold->type = w->threshold.type;
        memcpy(threshold->v, w->threshold.v, F * sizeof(float));
    }
    if (!i->apply_b_dec_to_input)
        return ES_OK;
    enum { ROWS = 64 };
    float *rows = es_calloc(ROWS * d, sizeof *rows);
    if (!rows)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to fold b_dec");
    b_enc->type = ES_TENSOR_F32;
    for (size_t j = 0; j < F; j += ROWS) {
        size_t n = F - j < ROWS ? F - j : ROWS;
        es_matrix_rows(&w->enc, j, n, rows);
        for (size_t k = 0; k < n; k++) {
            double shift = 0;
            for (size_t c = 0; c < d; c++)
                shift += (double)rows[k * d + c] * (double)w->b_dec.v[c];
            b_enc->v[j + k] = (float)((double)b_enc->v[j + k] - shift);
        }
    }
    free(rows);
    return ES_OK;
}

static es_tensor_type type_of(const es_named *a)
{
    return a->matrix ? es_matrix_type(a->matrix) : a->numbers->type;
}

static int dims_of(const es_named *a, size_t dim[2])
{
    if (a->matrix) {
        dim[0] = a->transposed ? a->matrix->cols : a->matrix->rows;
        dim[1] = a->transposed ? a->matrix->rows : a->matrix->cols;
        return 2;
    }
    dim[0] = a->numbers->n;
    return a->one ? 0 : 1;
}

static size_t bytes_of(const es_named *a)
{
    if (a->matrix)
        return es_matrix_bytes(a->matrix, type_of(a));
    return (a->one ? 1 : a->numbers->n) * (type_of(a) == ES_TENSOR_F32 ? 4 : 2);
}

static int put_named(void *user, const es_put *out, es_error *err)
{
    const es_named *a = user;
    if (a->matrix)
        return es_matrix_put(a->matrix, type_of(a), !a->transposed, out, err);
    es_numbers v = *a->numbers;
    v.n = a->one ? 1 : v.n;
    return es_numbers_put(&v, type_of(a), out, err);
}

typedef struct writing { const es_named *a; size_t n; } writing;

static bool to_sink(void *user, const void *bytes, size_t n)
{
    return es_sink_put(user, bytes, n);
}

static int put_safetensors(void *user, es_sink *out, es_error *err)
{
    const writing *w = user;
    json_t *header = json_object();
    size_t at = 0;
    bool ok = header;
    for (size_t i = 0; i < w->n && ok; i++) {
        const es_named *a = &w->a[i];
        size_t dim[2], bytes = bytes_of(a);
        int n_dims = dims_of(a, dim);
        json_t *shape = n_dims == 2 ? json_pack("[I, I]", (json_int_t)dim[0], (json_int_t)dim[1]) : n_dims ? json_pack("[I]", (json_int_t)dim[0]) : json_array();
        json_t *v = json_pack("{s:s, s:o, s:[I, I]}", "dtype", es_tensor_type_name(type_of(a)), "shape", shape, "data_offsets", (json_int_t)at,
                              (json_int_t)(at + bytes));
        ok = v && json_object_set_new(header, a->name, v) == 0;
        at += bytes;
    }
    char *text = ok ? json_dumps(header, JSON_COMPACT) : NULL;
    json_decref(header);
    if (!text)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a safetensors header");
    size_t length = strlen(text), padded = (length + 8 + 63) / 64 * 64 - 8; /* data begins at a multiple of 64: it can be used where it is mapped */
    uint8_t size[8];
    for (int i = 0; i < 8; i++)
        size[i] = (uint8_t)((uint64_t)padded >> 8 * i);
    es_sink_put(out, size, 8);
    es_sink_put(out, text, length);
    for (; length < padded; length++)
        es_sink_put(out, " ", 1);
    free(text);
    int rc = ES_OK;
    for (size_t i = 0; i < w->n && !rc; i++)
        rc = put_named((void *)(uintptr_t)&w->a[i], &(es_put){to_sink, out}, err);
    return rc;
}

int es_named_safetensors(const char *path, const es_named *a, size_t n, es_error *err)
{
    return es_file_write_by(path, put_safetensors, &(writing){a, n}, err);
}

typedef struct npy_member { es_buf head; const es_named *a; } npy_member;

static int put_npy(void *user, const es_put *out, es_error *err)
{
    npy_member *m = user;
    out->put(out->user, m->head.data, m->head.len);
    return put_named((void *)(uintptr_t)m->a, out, err);
}

static int put_npz(void *user, es_sink *out, es_error *err)
{
    const writing *w = user;
    es_zip_writer z = {.out = out};
    int rc = ES_OK;
    for (size_t i = 0; i < w->n && !rc; i++) {
        char name[80];
        size_t dim[2];
        npy_member m = {.a = &w->a[i]};
        int n_dims = dims_of(m.a, dim);
        es_npy_header(&m.head, type_of(m.a), n_dims, dim);
        snprintf(name, sizeof name, "%s.npy", m.a->name);
        rc = m.head.failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory for an npz") : es_zip_add(&z, name, m.head.len + bytes_of(m.a), put_npy, &m, err);
        es_buf_free(&m.head);
    }
    int rc2 = es_zip_end(&z, rc ? NULL : err);
    return rc ? rc : rc2;
}

int es_named_npz(const char *path, const es_named *a, size_t n, es_error *err)
{
    return es_file_write_by(path, put_npz, &(writing){a, n}, err);
}

int es_write_json(const char *folder, const char *name, json_t *v, es_error *err)
{
    char path[1300];
    char *text = v ? json_dumps(v, JSON_INDENT(2)) : NULL;
    json_decref(v);
    if (!text)
        return es_fail(err, ES_ERR_MEMORY, "%s/%s: not enough memory, or a name in it is not UTF-8", folder, name);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int rc = es_file_write(path, text, strlen(text), err);
    free(text);
    return rc;
}

/* ---- converting ------------------------------------------------------------------------------------------------------------------------------ */

int es_dictionary_convert(const char *path, const char *folder, const char *format, es_error *err)
{
    int i = 0;
    while (i < N_KINDS && strcmp(kinds[i]->name, format) != 0)
        i++;
    if (i == N_KINDS || !kinds[i]->write)
        return es_fail(err, ES_ERR_USAGE, "\"%.40s\" is no format that is written", format);
    es_weights w;
    int rc = es_weights_read(&w, path, err);
    if (rc)
        return rc;
    rc = es_dir_make(folder, err);
    if (!rc)
        rc = kinds[i]->write(&w, folder, err);
    es_weights_free(&w);
    return rc;
}

/* Row j of `out` is row feature[j] of m; its memory is the arrays' from now on. */
static int pick_rows(es_arrays *a, es_matrix *m, const int *feature, int n, es_error *err)
{
    es_matrix picked = {.type = ES_TENSOR_F32, .rows = (size_t)n, .cols = m->cols, .by_row = true, .scale = 1};
    float *rows = es_calloc((size_t)n * m->cols + 1, sizeof *rows);
    if (!rows)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for %d features", n);
    for (int j = 0; j < n; j++)
        es_matrix_rows(m, (size_t)feature[j], 1, rows + (size_t)j * m->cols);
    picked.data = (const uint8_t *)rows;
    *m = picked;
    return es_arrays_own(a, rows, err);
}

static void pick_numbers(es_numbers *v, const int *feature, int n)
{
    if (!v->v)
        return;
    es_numbers picked;
    if (es_numbers_new(&picked, (size_t)n, 0, NULL)) {
        v->n = 0; /* told by the caller: a vector of another length */
        return;
    }
    for (int j = 0; j < n; j++)
        picked.v[j] = v->v[feature[j]];
    picked.type = v->type;
    free(v->v);
    *v = picked;
}

int es_dictionary_select(const char *path, const int *feature, int n, const char *folder, es_error *err)
{
    es_weights w;
    int rc = es_weights_read(&w, path, err);
    if (rc)
        return rc;
    if (n < 1)
        rc = es_fail(err, ES_ERR_USAGE, "a dictionary of no features");
    for (int j = 0; j < n && !rc; j++)
        if (feature[j] < 0 || feature[j] >= w.info.n_features)
            rc = es_fail(err, ES_ERR_USAGE, "there is no feature %d: %s has %d", feature[j], w.info.name, w.info.n_features);
    if (!rc && w.info.architecture == ES_SAE_TOPK)
        rc = es_fail(err, ES_ERR_USAGE, "%s: a topk dictionary cannot be cut: which features are among the k depends on all", w.info.name);
    if (!rc)
        rc = pick_rows(&w.arrays, &w.enc, feature, n, err);
    if (!rc)
        rc = pick_rows(&w.arrays, &w.dec, feature, n, err);
    es_numbers *all[] = {&w.b_enc, &w.threshold, &w.b_gate, &w.b_mag, &w.r_mag};
    for (size_t i = 0; i < sizeof all / sizeof *all && !rc; i++) {
        pick_numbers(all[i], feature, n);
        if (all[i]->v && all[i]->n != (size_t)n)
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for %d features", n);
    }
    w.info.n_features = n;
    if (!rc)
        rc = es_dir_make(folder, err);
    if (!rc)
        rc = es_saelens.write(&w, folder, err);
    es_weights_free(&w);
    return rc;
}
