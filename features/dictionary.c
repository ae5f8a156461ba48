/* Dictionaries: SAELens folders in memory, encoding and decoding. Formulas: SAELens 6, sae_lens/saes/{sae,standard_sae,topk_sae,
 * jumprelu_sae}.py. The encoder is kept transposed, [F, d], so that a feature is a row everywhere. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dictionary.h"
#include "safetensors.h"
#include "vector.h"

enum { TILE = 256, MAX_FEATURES = 1 << 20, MAX_WIDTH = 1 << 16 };

typedef enum norm_kind { NORM_NONE, NORM_CONSTANT, NORM_LAYER } norm_kind;

struct es_dictionary {
    es_dictionary_info info;
    norm_kind norm;
    float *enc;       /* [F, d] */
    float *dec;       /* [F, d] */
    float *b_dec;     /* [d] */
    float *b_enc;     /* [F] as stored */
    float *threshold; /* [F]; zeros unless jumprelu */
    float *bias;      /* [F] b_enc - b_dec W_enc where the input has b_dec taken off: what encoding adds */
    float *dec_norm;  /* [F] */
};

void es_dictionary_free(es_dictionary *s)
{
    if (!s)
        return;
    free(s->enc);
    free(s->dec);
    free(s->b_dec);
    free(s->b_enc);
    free(s->threshold);
    free(s->bias);
    free(s->dec_norm);
    free(s);
}

const es_dictionary_info *es_dictionary_get_info(const es_dictionary *s)
{
    return &s->info;
}

const float *es_dictionary_decoder(const es_dictionary *s)
{
    return s->dec;
}

const float *es_dictionary_decoder_bias(const es_dictionary *s)
{
    return s->b_dec;
}

void es_dictionary_encoder(const es_dictionary *s, int feature, float *out, float *bias, float *threshold)
{
    memcpy(out, s->enc + (size_t)feature * (size_t)s->info.d, (size_t)s->info.d * sizeof *out);
    if (bias)
        *bias = s->b_enc[feature];
    if (threshold)
        *threshold = s->threshold[feature];
}

/* ---- opening ------------------------------------------------------------------------------------------------------------------- */

static json_t *field(json_t *cfg, const char *key)
{
    json_t *v = json_object_get(cfg, key);
    return v ? v : json_object_get(json_object_get(cfg, "metadata"), key);
}

static void copy_string(char *out, size_t size, json_t *v)
{
    const char *s = json_string_value(v);
    snprintf(out, size, "%s", s ? s : "");
}

/* "blocks.15.hook_resid_post" (after layer 15), "blocks.15.hook_resid_pre" (after 14), "model.layers.15" (Hugging Face). */
static bool hook_layer(const char *hook, int *layer)
{
    int n, end = 0;
    if (sscanf(hook, "blocks.%d.hook_resid_%n", &n, &end) == 1 && end && n >= 0 && n < 10000) {
        *layer = n;
        if (strcmp(hook + end, "post") == 0)
            return true;
        *layer = n - 1;
        return strcmp(hook + end, "pre") == 0;
    }
    end = 0;
    if (sscanf(hook, "model.layers.%d%n", &n, &end) == 1 && end && n >= 0 && n < 10000) {
        *layer = n;
        return hook[end] == 0 || strcmp(hook + end, ".output") == 0;
    }
    return false;
}

static int read_config(es_dictionary *s, const char *path, es_error *err)
{
    es_dictionary_info *i = &s->info;
    json_t *cfg;
    int rc = es_json_file(&cfg, path, err);
    if (rc)
        return rc;
    json_t *d = json_object_get(cfg, "d_in"), *f = json_object_get(cfg, "d_sae"), *v;
    char architecture[64], reshape[40];
    copy_string(architecture, sizeof architecture, json_object_get(cfg, "architecture"));
    copy_string(reshape, sizeof reshape, json_object_get(cfg, "reshape_activations"));
    copy_string(i->normalize_activations, sizeof i->normalize_activations, json_object_get(cfg, "normalize_activations"));
    copy_string(i->model_name, sizeof i->model_name, field(cfg, "model_name"));
    copy_string(i->model_hash, sizeof i->model_hash, field(cfg, "espalier_model_sha256"));
    v = field(cfg, "hook_name");
    copy_string(i->hook_name, sizeof i->hook_name, v ? v : field(cfg, "hook_point"));
    v = json_object_get(cfg, "apply_b_dec_to_input");
    i->apply_b_dec_to_input = !v || json_is_true(v);
    i->rescale_acts_by_decoder_norm = json_is_true(json_object_get(cfg, "rescale_acts_by_decoder_norm"));
    json_t *k = json_object_get(cfg, "k"), *activation = json_object_get(cfg, "activation_fn_str");
    if (!k) { /* keys before 6.0 */
        k = json_object_get(json_object_get(cfg, "activation_fn_kwargs"), "k");
        if (json_is_string(activation) && strcmp(json_string_value(activation), "topk") == 0)
            snprintf(architecture, sizeof architecture, "topk");
    }
    if (!*architecture)
        snprintf(architecture, sizeof architecture, "standard");
    if (!json_is_object(cfg))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: is not a JSON object", path);
    else if (!json_is_integer(d) || json_integer_value(d) < 1 || json_integer_value(d) > MAX_WIDTH || !json_is_integer(f)
             || json_integer_value(f) < 1 || json_integer_value(f) > MAX_FEATURES)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: d_in and d_sae must be sizes (at most %d and %d)", path, (int)MAX_WIDTH, (int)MAX_FEATURES);
    else if (strcmp(architecture, "standard") != 0 && strcmp(architecture, "topk") != 0 && strcmp(architecture, "jumprelu") != 0)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: architecture \"%s\" is not supported (standard, topk and jumprelu are)", path, architecture);
    else if (*reshape && strcmp(reshape, "none") != 0)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: reshape_activations \"%s\" is not supported", path, reshape);
    else if (*i->hook_name && !hook_layer(i->hook_name, &i->layer))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: hook \"%s\" is not supported: the residual after a layer is (blocks.N.hook_resid_post)", path, i->hook_name);
    else if (!*i->hook_name && !json_is_integer(field(cfg, "hook_layer")))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: there is no hook_name: which layer's residual it reads is unknown", path);
    if (!rc) {
        const char *n = i->normalize_activations;
        i->d = (int)json_integer_value(d);
        i->n_features = (int)json_integer_value(f);
        if (!*i->hook_name)
            i->layer = (int)json_integer_value(field(cfg, "hook_layer"));
        i->architecture = architecture[0] == 's' ? ES_SAE_STANDARD : architecture[0] == 't' ? ES_SAE_TOPK : ES_SAE_JUMPRELU;
        /* expected_average_only_in: SAELens folds its factor into the weights when it saves and applies nothing when it runs */
        s->norm = strcmp(n, "constant_norm_rescale") == 0 ? NORM_CONSTANT : strcmp(n, "layer_norm") == 0 ? NORM_LAYER : NORM_NONE;
        if (s->norm == NORM_NONE && *n && strcmp(n, "none") != 0 && strcmp(n, "expected_average_only_in") != 0)
            rc = es_fail(err, ES_ERR_FORMAT, "%s: normalize_activations \"%s\" is not supported", path, n);
        else if (i->layer < -1 || i->layer > 9999)
            rc = es_fail(err, ES_ERR_FORMAT, "%s: layer %d makes no sense", path, i->layer);
        else if (i->architecture == ES_SAE_TOPK && (!json_is_integer(k) || json_integer_value(k) < 1 || json_integer_value(k) > i->n_features))
            rc = es_fail(err, ES_ERR_FORMAT, "%s: a topk dictionary needs k between 1 and d_sae", path);
        else if (i->architecture == ES_SAE_TOPK)
            i->k = (int)json_integer_value(k);
    }
    json_decref(cfg);
    return rc;
}

/* Sizes are known to fit: d and F are bounded. */
static int take_memory(es_dictionary *s, es_error *err)
{
    size_t d = (size_t)s->info.d, F = (size_t)s->info.n_features;
    s->enc = es_calloc(F * d, sizeof(float));
    s->dec = es_calloc(F * d, sizeof(float));
    s->b_dec = es_calloc(d, sizeof(float));
    s->b_enc = es_calloc(F, sizeof(float));
    s->threshold = es_calloc(F, sizeof(float));
    s->bias = es_calloc(F, sizeof(float));
    s->dec_norm = es_calloc(F, sizeof(float));
    if (!s->enc || !s->dec || !s->b_dec || !s->b_enc || !s->threshold || !s->bias || !s->dec_norm)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a dictionary of %zu features of width %zu (%zu MB)", F, d, F * d * 8 >> 20);
    return ES_OK;
}

static int check_finite(const float *v, size_t n, const char *what, const char *path, es_error *err)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(v[i]))
            return es_fail(err, ES_ERR_FORMAT, "%s: %s holds a value that is not a number or infinite", path, what);
    return ES_OK;
}

static void prepare(es_dictionary *s)
{
    size_t d = (size_t)s->info.d;
    for (int j = 0; j < s->info.n_features; j++) {
        const float *e = s->enc + (size_t)j * d, *w = s->dec + (size_t)j * d;
        double norm = 0, shift = 0;
        for (size_t i = 0; i < d; i++) {
            norm += (double)w[i] * (double)w[i];
            shift += (double)s->b_dec[i] * (double)e[i];
        }
        s->dec_norm[j] = (float)sqrt(norm);
        s->bias[j] = s->b_enc[j] - (s->info.apply_b_dec_to_input ? (float)shift : 0);
    }
}

static int read_weights(es_dictionary *s, const char *path, es_error *err)
{
    es_safetensors *t;
    int rc = es_safetensors_open(&t, path, err);
    if (rc)
        return rc;
    size_t d = (size_t)s->info.d, F = (size_t)s->info.n_features;
    const es_tensor *w = es_safetensors_find(t, "W_dec"), *b = es_safetensors_find(t, "b_enc");
    /* bounded by the file before anything of that size is allocated */
    if (!w || w->n_dims != 2 || w->dim[0] != F || w->dim[1] != d)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: there is no W_dec [%zu, %zu], which cfg.json announces", path, F, d);
    if (!rc)
        rc = take_memory(s, err);
    if (!rc)
        rc = es_safetensors_f32(t, "W_enc", 2, (size_t[]){d, F}, s->dec, err); /* here for a moment, to be transposed */
    if (!rc)
        for (size_t j0 = 0; j0 < F; j0 += 64)
            for (size_t i = 0; i < d; i++)
                for (size_t j = j0; j < F && j < j0 + 64; j++)
                    s->enc[j * d + i] = s->dec[i * F + j];
    if (!rc)
        rc = es_safetensors_f32(t, "W_dec", 2, (size_t[]){F, d}, s->dec, err);
    if (!rc)
        rc = es_safetensors_f32(t, "b_dec", 1, &d, s->b_dec, err);
    if (!rc && (b || s->info.architecture != ES_SAE_STANDARD))
        rc = es_safetensors_f32(t, "b_enc", 1, &F, s->b_enc, err);
    if (!rc && s->info.architecture == ES_SAE_JUMPRELU)
        rc = es_safetensors_f32(t, "threshold", 1, &F, s->threshold, err);
    es_safetensors_free(t);
    if (rc
        || (rc = check_finite(s->enc, F * d, "W_enc", path, err)) || (rc = check_finite(s->dec, F * d, "W_dec", path, err))
        || (rc = check_finite(s->b_dec, d, "b_dec", path, err)) || (rc = check_finite(s->b_enc, F, "b_enc", path, err))
        || (rc = check_finite(s->threshold, F, "threshold", path, err)))
        return rc;
    prepare(s);
    return es_sha256_file(s->info.hash, path, err);
}

int es_dictionary_open(es_dictionary **out, const char *folder, es_error *err)
{
    *out = NULL;
    char path[1100];
    es_dictionary *s = es_calloc(1, sizeof *s);
    if (!s)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", folder);
    int rc = ES_OK;
    size_t n = strlen(folder);
    while (n > 1 && folder[n - 1] == '/')
        n--;
    if (n >= sizeof s->info.folder) {
        free(s);
        return es_fail(err, ES_ERR_USAGE, "%.80s...: the path is too long", folder);
    }
    memcpy(s->info.folder, folder, n);
    const char *base = strrchr(s->info.folder, '/');
    snprintf(s->info.name, sizeof s->info.name, "%.127s", base && base[1] ? base + 1 : s->info.folder);
    snprintf(path, sizeof path, "%s/cfg.json", s->info.folder);
    rc = read_config(s, path, err);
    snprintf(path, sizeof path, "%s/sae_weights.safetensors", s->info.folder);
    if (!rc)
        rc = read_weights(s, path, err);
    if (rc)
        es_dictionary_free(s);
    else
        *out = s;
    return rc;
}

int es_dictionary_check_model(const es_dictionary *s, es_model *m, es_error *err)
{
    const es_dictionary_info *i = &s->info;
    const es_model_info *mi = es_model_get_info(m);
    if (i->d != mi->d_model || i->layer >= mi->n_layer)
        return es_fail(err, ES_ERR_MISMATCH, "dictionary %s reads width %d after layer %d; the model %s has width %d and %d layers", i->name, i->d, i->layer,
                       mi->name, mi->d_model, mi->n_layer);
    char hash[65];
    int rc = *i->model_hash ? es_model_hash(m, hash, err) : ES_OK;
    if (rc || !*i->model_hash)
        return rc;
    if (strcmp(hash, i->model_hash) != 0)
        return es_fail(err, ES_ERR_MISMATCH, "dictionary %s was made from the model with SHA-256 %s; this one has %s", i->name, i->model_hash, hash);
    return ES_OK;
}

/* ---- encoding -------------------------------------------------------------------------------------------------------------------- */

void es_sparse_free(es_sparse *s)
{
    free(s->start);
    free(s->index);
    free(s->value);
    *s = (es_sparse){0};
}

static int sparse_room(es_sparse *s, size_t rows, size_t n, es_error *err)
{
    if (rows + 1 > s->cap_rows) {
        size_t *p = realloc(s->start, (rows + 1) * sizeof *p);
        if (!p)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory for the activations of %zu tokens", rows);
        s->start = p;
        s->cap_rows = rows + 1;
    }
    if (n > s->cap) {
        size_t cap = s->cap * 2 > n ? s->cap * 2 : n + 64;
        int32_t *a = realloc(s->index, cap * sizeof *a);
        if (a)
            s->index = a;
        float *v = a ? realloc(s->value, cap * sizeof *v) : NULL;
        if (!v)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory for %zu activations", cap);
        s->value = v;
        s->cap = cap;
    }
    return ES_OK;
}

/* The row as the encoder sees it (b_dec is in the bias). Returns what x was divided by and, in *mean, what was taken off. */
static float normalise(const es_dictionary *s, const float *x, float *out, float *mean)
{
    size_t d = (size_t)s->info.d;
    double sum = 0, square = 0;
    float scale = 1, mu = 0;
    if (s->norm == NORM_CONSTANT) {
        for (size_t i = 0; i < d; i++)
            square += (double)x[i] * (double)x[i];
        scale = (float)(sqrt(square) / sqrt((double)d));
    } else if (s->norm == NORM_LAYER) { /* torch's std: over d - 1; eps is added to it */
        for (size_t i = 0; i < d; i++)
            sum += (double)x[i];
        mu = (float)(sum / (double)d);
        for (size_t i = 0; i < d; i++)
            square += (double)(x[i] - mu) * (double)(x[i] - mu);
        scale = d > 1 ? (float)sqrt(square / (double)(d - 1)) : 0;
    }
    *mean = mu;
    if (out) {
        float by = s->norm == NORM_LAYER ? scale + 1e-5f : scale;
        for (size_t i = 0; i < d; i++)
            out[i] = s->norm == NORM_NONE ? x[i] : by == 0 ? 0 : (x[i] - mu) / by;
    }
    return scale;
}

typedef struct entry { float v; int32_t j; } entry;

static int falling(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->v != y->v)
        return x->v > y->v ? -1 : 1;
    return (x->j > y->j) - (x->j < y->j);
}

/* Keeps the k largest of what is offered, as a heap with the smallest on top. */
static void heap_offer(entry *e, int *n, int k, entry new)
{
    int i;
    if (*n < k) {
        for (i = (*n)++; i > 0 && e[(i - 1) / 2].v > new.v; i = (i - 1) / 2)
            e[i] = e[(i - 1) / 2];
    } else {
        if (new.v <= e[0].v)
            return;
        for (i = 0;;) {
            int c = 2 * i + 1;
            if (c + 1 < k && e[c + 1].v < e[c].v)
                c++;
            if (c >= k || e[c].v >= new.v)
                break;
            e[i] = e[c];
            i = c;
        }
    }
    e[i] = new;
}

typedef struct encode_job {
    const es_dictionary *s;
    const float *x;
    float *pre; /* [T, F] */
    entry *e;   /* [T, F] room; only the first count[t] of a row are used */
    int *count;
    int T;
} encode_job;

static int encode_row(const es_dictionary *s, const float *pre, entry *e)
{
    int F = s->info.n_features, n = 0;
    if (s->info.architecture == ES_SAE_TOPK) {
        bool rescale = s->info.rescale_acts_by_decoder_norm;
        for (int j = 0; j < F; j++) {
            float v = pre[j] + s->bias[j];
            if (rescale)
                v *= s->dec_norm[j];
            if (v > 0) /* those at or below 0 would be selected only to become 0 */
                heap_offer(e, &n, s->info.k, (entry){v, j});
        }
    } else {
        const float *bias = s->bias, *threshold = s->threshold;
        for (int j = 0; j < F; j++) {
            float v = pre[j] + bias[j];
            if (v > 0 && v > threshold[j])
                e[n++] = (entry){v, j};
        }
    }
    qsort(e, (size_t)n, sizeof *e, falling);
    return n;
}

static void encode_part(void *user, int part, int parts)
{
    encode_job *j = user;
    size_t F = (size_t)j->s->info.n_features;
    for (int t = part; t < j->T; t += parts)
        j->count[t] = encode_row(j->s, j->pre + (size_t)t * F, j->e + (size_t)t * F);
}

/* One or few rows: dot products by rows of the encoder, read once. */
static void dots_part(void *user, int part, int parts)
{
    encode_job *j = user;
    size_t d = (size_t)j->s->info.d, F = (size_t)j->s->info.n_features;
    size_t from = F * (size_t)part / (size_t)parts, to = F * ((size_t)part + 1) / (size_t)parts;
    const es_vector_ops *ops = es_vector();
    for (size_t f = from; f < to; f++)
        for (int t = 0; t < j->T; t++)
            j->pre[(size_t)t * F + f] = ops->dot(j->s->enc + f * d, j->x + (size_t)t * d, d);
}

static void run(es_pool *p, void (*fn)(void *, int, int), void *user)
{
    if (p)
        es_pool_run(p, fn, user);
    else
        fn(user, 0, 1);
}

int es_dictionary_encode(const es_dictionary *s, es_pool *p, const float *x, int T, es_sparse *out, es_error *err)
{
    size_t d = (size_t)s->info.d, F = (size_t)s->info.n_features;
    int tile = T < TILE ? T : TILE, rc = sparse_room(out, (size_t)T, (size_t)T * 48, err);
    if (rc)
        return rc;
    out->n_rows = T;
    out->start[0] = 0;
    if (T == 0)
        return ES_OK;
    const es_kernels *k = es_kernels_cpu();
    float *pre = es_calloc((size_t)tile * F, sizeof *pre), *in = s->norm != NORM_NONE ? es_calloc((size_t)tile * d, sizeof *in) : NULL;
    entry *e = es_calloc((size_t)tile * F, sizeof *e);
    int *count = es_calloc((size_t)tile, sizeof *count);
    if (!pre || !e || !count || (s->norm != NORM_NONE && !in))
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to encode %d tokens", T);
    for (int t0 = 0; t0 < T && !rc; t0 += tile) {
        int n = T - t0 < tile ? T - t0 : tile;
        const float *rows = x + (size_t)t0 * d;
        if (in) {
            float mean;
            for (int t = 0; t < n; t++)
                normalise(s, rows + (size_t)t * d, in + (size_t)t * d, &mean);
            rows = in;
        }
        encode_job job = {.s = s, .x = rows, .pre = pre, .e = e, .count = count, .T = n};
        if (n <= 4)
            run(p, dots_part, &job);
        else
            k->gemm(p, false, true, n, (int)F, (int)d, 1, rows, (int)d, s->enc, (int)d, 0, pre, (int)F);
        run(p, encode_part, &job);
        size_t at = out->start[t0], need = at;
        for (int t = 0; t < n; t++)
            need += (size_t)count[t];
        rc = sparse_room(out, (size_t)T, need, err);
        for (int t = 0; t < n && !rc; t++) {
            const entry *row = e + (size_t)t * F;
            for (int i = 0; i < count[t]; i++, at++) {
                out->index[at] = row[i].j;
                out->value[at] = row[i].v;
            }
            out->start[t0 + t + 1] = at;
        }
    }
    free(pre);
    free(in);
    free(e);
    free(count);
    if (rc)
        out->n_rows = 0;
    return rc;
}

int es_dictionary_encode_some(const es_dictionary *s, es_pool *p, const float *x, int T, const int *feature, int n, float *act, es_error *err)
{
    size_t d = (size_t)s->info.d;
    for (int i = 0; i < n; i++)
        if (feature[i] < 0 || feature[i] >= s->info.n_features)
            return es_fail(err, ES_ERR_USAGE, "there is no feature %d: %s has %d", feature[i], s->info.name, s->info.n_features);
    if (s->info.architecture == ES_SAE_TOPK) { /* whether one is among the k depends on all */
        es_sparse all = {0};
        int rc = es_dictionary_encode(s, p, x, T, &all, err);
        for (int t = 0; t < T && !rc; t++)
            for (int i = 0; i < n; i++) {
                float *v = act + (size_t)t * (size_t)n + i;
                *v = 0;
                for (size_t a = all.start[t]; a < all.start[t + 1]; a++)
                    if (all.index[a] == feature[i])
                        *v = all.value[a];
            }
        es_sparse_free(&all);
        return rc;
    }
    float *in = es_calloc(d, sizeof *in);
    if (!in)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to encode %d tokens", T);
    const es_vector_ops *ops = es_vector();
    for (int t = 0; t < T; t++) {
        float mean;
        const float *row = x + (size_t)t * d;
        if (s->norm != NORM_NONE) {
            normalise(s, row, in, &mean);
            row = in;
        }
        for (int i = 0; i < n; i++) {
            int j = feature[i];
            float v = ops->dot(s->enc + (size_t)j * d, row, d) + s->bias[j];
            act[(size_t)t * (size_t)n + i] = v > 0 && v > s->threshold[j] ? v : 0;
        }
    }
    free(in);
    return ES_OK;
}

int es_dictionary_decode(const es_dictionary *s, const es_sparse *acts, const float *x, float *xhat, es_error *err)
{
    size_t d = (size_t)s->info.d;
    if (s->norm != NORM_NONE && !x)
        return es_fail(err, ES_ERR_USAGE, "%s normalises its input (%s): decoding needs the input rows", s->info.name, s->info.normalize_activations);
    const es_vector_ops *ops = es_vector();
    for (int t = 0; t < acts->n_rows; t++) {
        float *y = xhat + (size_t)t * d, mean = 0, scale = 1;
        if (s->norm != NORM_NONE) /* before y is written: x and xhat may be the same rows */
            scale = normalise(s, x + (size_t)t * d, NULL, &mean);
        memcpy(y, s->b_dec, d * sizeof *y);
        for (size_t a = acts->start[t]; a < acts->start[t + 1]; a++) {
            int j = acts->index[a];
            float v = acts->value[a];
            if (s->info.architecture == ES_SAE_TOPK && s->info.rescale_acts_by_decoder_norm)
                v = s->dec_norm[j] > 0 ? v / s->dec_norm[j] : 0;
            ops->axpy(y, v, s->dec + (size_t)j * d, d);
        }
        if (s->norm != NORM_NONE)
            for (size_t i = 0; i < d; i++)
                y[i] = y[i] * scale + mean;
    }
    return ES_OK;
}

void es_dictionary_neighbours(const es_dictionary *s, int feature, int n, int *out, float *cosine)
{
    size_t d = (size_t)s->info.d;
    const float *w = s->dec + (size_t)feature * d;
    const es_vector_ops *ops = es_vector();
    for (int i = 0; i < n; i++) {
        out[i] = -1;
        cosine[i] = -2;
    }
    for (int j = 0; j < s->info.n_features; j++) {
        double norm = (double)s->dec_norm[j] * (double)s->dec_norm[feature];
        if (j == feature)
            continue;
        float c = norm > 0 ? (float)((double)ops->dot(w, s->dec + (size_t)j * d, d) / norm) : 0;
        int i = n;
        while (i > 0 && c > cosine[i - 1])
            i--;
        if (i == n)
            continue;
        memmove(out + i + 1, out + i, (size_t)(n - 1 - i) * sizeof *out);
        memmove(cosine + i + 1, cosine + i, (size_t)(n - 1 - i) * sizeof *cosine);
        out[i] = j;
        cosine[i] = c;
    }
}
