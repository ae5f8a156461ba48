/* basis: the chosen features, their bounds, and how good a set of directions they are. */
#include "dictionary.h"
#include "learner.h"
#include "linear.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BASIS_MAX = 65536, RANDOM_BASES = 20 };

void es_basis_free(es_basis *b)
{
    free(b->feature);
    free(b->lo);
    free(b->hi);
    b->feature = NULL;
    b->lo = b->hi = NULL;
    b->n = 0;
    for (int i = 0; i < b->n_vector; i++)
        free(b->vector[i].unit);
    free(b->vector);
    b->vector = NULL;
    b->n_vector = 0;
}

static int basis_find(const es_basis *b, int feature)
{
    for (int i = 0; i < b->n; i++)
        if (b->feature[i] == feature)
            return i;
    return -1;
}

/* An entry by its number, which may be a vector's. */
static int add_entry(es_basis *b, int feature, float lo, float hi, es_error *err)
{
    if (!isfinite(lo) || !isfinite(hi) || lo > hi || lo > 0 || hi < 0)
        return es_fail(err, ES_ERR_USAGE, "basis: feature %d: bounds must be finite with lo <= 0 <= hi (%g, %g)", feature, (double)lo,
                       (double)hi);
    int i = basis_find(b, feature);
    if (i < 0) {
        if (b->n >= BASIS_MAX)
            return es_fail(err, ES_ERR_LIMIT, "basis: more than %d features", (int)BASIS_MAX);
        size_t n = (size_t)b->n + 1;
        int *f = realloc(b->feature, n * sizeof *f);
        if (f)
            b->feature = f;
        float *l = realloc(b->lo, n * sizeof *l);
        if (l)
            b->lo = l;
        float *h = realloc(b->hi, n * sizeof *h);
        if (h)
            b->hi = h;
        if (!f || !l || !h)
            return es_fail(err, ES_ERR_MEMORY, "basis: no memory for %zu features", n);
        i = b->n++;
    }
    b->feature[i] = feature;
    b->lo[i] = lo;
    b->hi[i] = hi;
    return ES_OK;
}

int es_basis_add(es_basis *b, int feature, float lo, float hi, es_error *err)
{
    if (feature < 0)
        return es_fail(err, ES_ERR_USAGE, "basis: there is no feature %d", feature);
    return add_entry(b, feature, lo, hi, err);
}

/* ---- vectors --------------------------------------------------------------------------------------------------------- */

const es_basis_vector *es_basis_vector_of(const es_basis *b, int number)
{
    for (int i = 0; number < 0 && i < b->n_vector; i++)
        if (b->vector[i].number == number)
            return &b->vector[i];
    return NULL;
}

const es_basis_vector *es_basis_vector_named(const es_basis *b, const char *name)
{
    for (int i = 0; i < b->n_vector; i++)
        if (!strcmp(b->vector[i].name, name))
            return &b->vector[i];
    return NULL;
}

/* A text for people and for command lines: shown as it is, and never taken for a feature. */
static bool good_name(const char *name)
{
    size_t n = strlen(name);
    bool number = true;
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return false;
        number = number && strchr("+-0123456789", name[i]);
    }
    return !number && es_utf8_whole(name, n) == n; /* "" is a number too */
}

static int check_vector(const es_basis_vector *v, es_error *err)
{
    double sum = 0;
    if (!good_name(v->name))
        return es_fail(err, ES_ERR_USAGE, "basis: '%s' is no name for a vector: letters are wanted", v->name);
    for (int j = 0; j < v->d; j++)
        sum += (double)v->unit[j] * v->unit[j];
    if (!(fabs(sum - 1) < 1e-3)) /* also what is not finite */
        return es_fail(err, ES_ERR_FORMAT, "basis: the vector %s is no unit vector: its squares sum to %g", v->name, sum);
    if (!(v->length > 0) || !isfinite(v->length))
        return es_fail(err, ES_ERR_FORMAT, "basis: the vector %s had the length %g", v->name, (double)v->length);
    return ES_OK;
}

/* The number that its name and file lead to, or the next that is free. */
static int free_number(const es_basis *b, const es_basis_vector *v)
{
    char text[140], hash[65];
    int span = ES_VECTOR_FIRST - ES_VECTOR_LAST + 1;
    snprintf(text, sizeof text, "%s %d %s", v->name, v->layer, v->hash);
    es_sha256_bytes(hash, text, strlen(text));
    hash[8] = 0;
    int at = (int)(strtoul(hash, NULL, 16) % (unsigned long)span);
    while (basis_find(b, ES_VECTOR_FIRST - at) >= 0)
        at = (at + 1) % span;
    return ES_VECTOR_FIRST - at;
}

int es_basis_add_vector(es_basis *b, const es_basis_vector *v, float lo, float hi, es_error *err)
{
    int rc = check_vector(v, err);
    es_basis_vector *same = (es_basis_vector *)es_basis_vector_named(b, v->name);
    if (!rc && !same && b->n_vector >= ES_VECTORS_MAX)
        rc = es_fail(err, ES_ERR_LIMIT, "basis: more than %d vectors", (int)ES_VECTORS_MAX);
    float *unit = rc ? NULL : es_calloc((size_t)v->d, sizeof *unit);
    es_basis_vector *all = rc || same ? b->vector : realloc(b->vector, ((size_t)b->n_vector + 1) * sizeof *all);
    if (!rc && all)
        b->vector = all;
    if (!rc && (!unit || !all))
        rc = es_fail(err, ES_ERR_MEMORY, "basis: no memory for a vector");
    es_basis_vector own = *v;
    own.number = same ? same->number : rc ? 0 : free_number(b, v);
    rc = rc ? rc : add_entry(b, own.number, lo, hi, err);
    if (rc) {
        free(unit);
        return rc;
    }
    own.unit = memcpy(unit, v->unit, (size_t)v->d * sizeof *unit);
    if (same)
        free(same->unit);
    *(same ? same : &b->vector[b->n_vector++]) = own;
    return ES_OK;
}

int es_basis_take(es_basis *b, const es_basis *from, int k, float lo, float hi, es_error *err)
{
    const es_basis_vector *v = es_basis_vector_of(from, from->feature[k]);
    return v ? es_basis_add_vector(b, v, lo, hi, err) : es_basis_add(b, from->feature[k], lo, hi, err);
}

int es_basis_copy(es_basis *out, const es_basis *b, es_error *err)
{
    *out = *b;
    out->n = out->n_vector = 0;
    out->feature = NULL;
    out->lo = out->hi = NULL;
    out->vector = NULL;
    for (int k = 0; k < b->n; k++) {
        int rc = es_basis_take(out, b, k, b->lo[k], b->hi[k], err);
        if (rc) {
            es_basis_free(out);
            return rc;
        }
        if (b->feature[k] < 0) { /* a copy keeps the numbers */
            out->vector[out->n_vector - 1].number = b->feature[k];
            out->feature[k] = b->feature[k];
        }
    }
    return ES_OK;
}

bool es_basis_remove(es_basis *b, int feature)
{
    int i = basis_find(b, feature);
    if (i < 0)
        return false;
    size_t rest = (size_t)(b->n - i - 1);
    memmove(b->feature + i, b->feature + i + 1, rest * sizeof *b->feature);
    memmove(b->lo + i, b->lo + i + 1, rest * sizeof *b->lo);
    memmove(b->hi + i, b->hi + i + 1, rest * sizeof *b->hi);
    b->n--;
    es_basis_vector *v = (es_basis_vector *)es_basis_vector_of(b, feature);
    if (v) {
        free(v->unit);
        *v = b->vector[--b->n_vector];
    }
    return true;
}

/* ---- JSON ------------------------------------------------------------------------------------------------------------ */

static json_t *vector_to_json(const es_basis_vector *v, float lo, float hi)
{
    json_t *unit = json_array();
    for (int j = 0; j < v->d; j++)
        json_array_append_new(unit, json_real((double)v->unit[j]));
    return json_pack("{s:s, s:i, s:i, s:s, s:f, s:o, s:f, s:f}", "vector", v->name, "number", v->number, "layer", v->layer, "sha256", v->hash, "length",
                     (double)v->length, "direction", unit, "lo", (double)lo, "hi", (double)hi);
}

/* One with vectors is of version 2, so that a program that knows features only refuses it by that. */
json_t *es_basis_to_json(const es_basis *b)
{
    json_t *features = json_array();
    for (int i = 0; i < b->n; i++) {
        const es_basis_vector *v = es_basis_vector_of(b, b->feature[i]);
        json_array_append_new(features, v ? vector_to_json(v, b->lo[i], b->hi[i]) :
                                            json_pack("{s:i, s:f, s:f}", "feature", b->feature[i], "lo", (double)b->lo[i], "hi", (double)b->hi[i]));
    }
    return json_pack("{s:s, s:i, s:s, s:i, s:s, s:s, s:s, s:i, s:o}", "format", "espalier-basis", "version", b->n_vector ? 2 : 1, "name", b->name,
                     "revision", b->version, "model_hash", b->model_hash, "dictionary_hash", b->dictionary_hash, "dictionary", b->dictionary,
                     "layer", b->layer, "features", features);
}

/* A text member of at most size-1 bytes; absent: "". */
static int text_member(json_t *o, const char *key, char *out, size_t size, es_error *err)
{
    json_t *v = json_object_get(o, key);
    out[0] = 0;
    if (!v || json_is_null(v))
        return ES_OK;
    if (!json_is_string(v) || json_string_length(v) >= size)
        return es_fail(err, ES_ERR_FORMAT, "basis: \"%s\" must be a text of at most %zu bytes", key, size - 1);
    memcpy(out, json_string_value(v), json_string_length(v) + 1);
    return ES_OK;
}

static int int_member(json_t *o, const char *key, int lo, int hi, int *out, es_error *err)
{
    json_t *v = json_object_get(o, key);
    if (!json_is_integer(v) || json_integer_value(v) < lo || json_integer_value(v) > hi)
        return es_fail(err, ES_ERR_FORMAT, "basis: \"%s\" must be a whole number from %d to %d", key, lo, hi);
    *out = (int)json_integer_value(v);
    return ES_OK;
}

static int vector_from_json(es_basis *out, json_t *o, float lo, float hi, es_error *err)
{
    es_basis_vector v = {0};
    json_t *direction = json_object_get(o, "direction"), *x;
    size_t j, d = json_array_size(direction);
    int number = 0, rc = text_member(o, "vector", v.name, sizeof v.name, err);
    rc = rc ? rc : int_member(o, "number", ES_VECTOR_LAST, ES_VECTOR_FIRST, &number, err);
    rc = rc ? rc : int_member(o, "layer", -1, 4096, &v.layer, err);
    rc = rc ? rc : text_member(o, "sha256", v.hash, sizeof v.hash, err);
    if (!rc && (d < 1 || d > ES_WIDTH_MAX || !json_is_number(json_object_get(o, "length"))))
        rc = es_fail(err, ES_ERR_FORMAT, "basis: the vector %s lacks its \"direction\" or its \"length\"", v.name);
    if (!rc && (es_basis_vector_named(out, v.name) || basis_find(out, number) >= 0))
        rc = es_fail(err, ES_ERR_FORMAT, "basis: the vector %s is in it twice", v.name);
    if (!rc && !(v.unit = es_calloc(d, sizeof *v.unit)))
        rc = es_fail(err, ES_ERR_MEMORY, "basis: no memory for a vector");
    v.d = (int)d;
    v.length = (float)json_number_value(json_object_get(o, "length"));
    json_array_foreach(direction, j, x) {
        if (!rc && !json_is_number(x))
            rc = es_fail(err, ES_ERR_FORMAT, "basis: \"direction\" of the vector %s holds what is no number", v.name);
        if (!rc)
            v.unit[j] = (float)json_number_value(x);
    }
    rc = rc ? rc : es_basis_add_vector(out, &v, lo, hi, err);
    if (!rc) /* the number that it had */
        out->feature[out->n - 1] = out->vector[out->n_vector - 1].number = number;
    free(v.unit);
    return rc;
}

int es_basis_from_json(es_basis *out, json_t *value, es_error *err)
{
    *out = (es_basis){0};
    const char *format = json_string_value(json_object_get(value, "format"));
    int version = 0;
    if (!format || strcmp(format, "espalier-basis"))
        return es_fail(err, ES_ERR_FORMAT, "not a basis: \"format\" must be \"espalier-basis\"");
    int rc = int_member(value, "version", 1, 2, &version, err);
    rc = rc ? rc : text_member(value, "name", out->name, sizeof out->name, err);
    rc = rc || !json_object_get(value, "revision") ? rc : int_member(value, "revision", 0, 1 << 30, &out->version, err);
    rc = rc ? rc : text_member(value, "model_hash", out->model_hash, sizeof out->model_hash, err);
    rc = rc ? rc : text_member(value, "dictionary_hash", out->dictionary_hash, sizeof out->dictionary_hash, err);
    rc = rc ? rc : text_member(value, "dictionary", out->dictionary, sizeof out->dictionary, err);
    rc = rc ? rc : int_member(value, "layer", -1, 4096, &out->layer, err);
    json_t *features = json_object_get(value, "features");
    if (!rc && (!json_is_array(features) || json_array_size(features) > BASIS_MAX))
        rc = es_fail(err, ES_ERR_FORMAT, "basis: \"features\" must be an array of at most %d objects", (int)BASIS_MAX);
    for (size_t i = 0; !rc && i < json_array_size(features); i++) {
        json_t *f = json_array_get(features, i), *lo = json_object_get(f, "lo"), *hi = json_object_get(f, "hi");
        int feature = 0;
        if (version == 2 && json_object_get(f, "vector")) {
            rc = json_is_number(lo) && json_is_number(hi) ? vector_from_json(out, f, (float)json_number_value(lo), (float)json_number_value(hi), err) :
                                                            es_fail(err, ES_ERR_FORMAT, "basis: a vector lacks its bounds \"lo\" and \"hi\"");
            continue;
        }
        rc = int_member(f, "feature", 0, 1 << 24, &feature, err);
        if (!rc && (!json_is_number(lo) || !json_is_number(hi)))
            rc = es_fail(err, ES_ERR_FORMAT, "basis: feature %d lacks its bounds \"lo\" and \"hi\"", feature);
        if (!rc && basis_find(out, feature) >= 0)
            rc = es_fail(err, ES_ERR_FORMAT, "basis: feature %d is in it twice", feature);
        if (!rc)
            rc = es_basis_add(out, feature, (float)json_number_value(lo), (float)json_number_value(hi), err);
    }
    if (rc)
        es_basis_free(out);
    return rc;
}

/* ---- as directions --------------------------------------------------------------------------------------------------- */

/* Unit decoder rows of the n features into out[n,d]. */
static int unit_rows(const es_dictionary *s, const int *feature, int n, float *out, es_error *err)
{
    const es_dictionary_info *info = es_dictionary_get_info(s);
    int d = info->d;
    for (int i = 0; i < n; i++) {
        if (feature[i] < 0 || feature[i] >= info->n_features)
            return es_fail(err, ES_ERR_MISMATCH, "basis: feature %d, but the dictionary %s has %d", feature[i], info->name, info->n_features);
        float *row = out + (size_t)i * d;
        es_dictionary_rows(s, feature[i], 1, row);
        double sum = 0;
        for (int j = 0; j < d; j++)
            sum += (double)row[j] * row[j];
        if (!(sum > 0) || !isfinite(sum))
            return es_fail(err, ES_ERR_FORMAT, "basis: the decoder direction of feature %d is zero or not finite", feature[i]);
        float scale = (float)(1 / sqrt(sum));
        for (int j = 0; j < d; j++)
            row[j] *= scale;
    }
    return ES_OK;
}

int es_basis_matrix(const es_basis *b, const es_dictionary *s, float **out, es_error *err)
{
    const es_dictionary_info *info = es_dictionary_get_info(s);
    *out = NULL;
    if (b->dictionary_hash[0] && strcmp(b->dictionary_hash, info->hash))
        return es_fail(err, ES_ERR_MISMATCH, "basis %s was made from the dictionary %s (%.12s), this one is %s (%.12s)", b->name,
                       b->dictionary[0] ? b->dictionary : "?", b->dictionary_hash, info->name, info->hash);
    if (b->n < 1)
        return es_fail(err, ES_ERR_USAGE, "basis %s holds no features", b->name);
    *out = es_calloc((size_t)b->n * (size_t)info->d, sizeof **out);
    if (!*out)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a basis of %d features", b->n);
    int rc = ES_OK;
    for (int k = 0; k < b->n && !rc; k++) {
        const es_basis_vector *v = es_basis_vector_of(b, b->feature[k]);
        float *row = *out + (size_t)k * (size_t)info->d;
        if (v && v->d != info->d)
            rc = es_fail(err, ES_ERR_MISMATCH, "basis: the vector %s has width %d, the dictionary %s %d", v->name, v->d, info->name, info->d);
        else if (v)
            memcpy(row, v->unit, (size_t)info->d * sizeof *row);
        else
            rc = unit_rows(s, &b->feature[k], 1, row, err);
    }
    if (rc) {
        free(*out);
        *out = NULL;
    }
    return rc;
}

/* Share of the rows' energy inside the span of D's rows: sum |P g|^2 / sum |g|^2, |P g|^2 = (D g)^T (D D^T)^-1 (D g). A ridge of
 * 1e-6 stands for the pseudo-inverse. gram is [K,K] scratch. */
static double energy_share(const float *D, int K, int d, const float *gram, const float *gradient, int n, double *l, double *p)
{
    for (size_t i = 0; i < (size_t)K * (size_t)K; i++)
        l[i] = gram[i];
    if (!es_linear_cholesky(l, K, 1e-6))
        return NAN;
    double inside = 0, all = 0;
    for (int e = 0; e < n; e++) {
        const float *g = gradient + (size_t)e * d;
        for (int i = 0; i < K; i++) {
            const float *row = D + (size_t)i * d;
            double sum = 0;
            for (int j = 0; j < d; j++)
                sum += (double)row[j] * g[j];
            p[i] = sum;
        }
        es_linear_solve_half(l, K, p);
        for (int i = 0; i < K; i++)
            inside += p[i] * p[i];
        for (int j = 0; j < d; j++)
            all += (double)g[j] * g[j];
    }
    return all > 0 ? inside / all : NAN;
}

int es_basis_measure(const es_basis *b, const es_dictionary *s, const es_atlas *a, const float *gradient, int n, uint64_t seed,
                     es_basis_report *out, es_error *err)
{
    const es_dictionary_info *info = es_dictionary_get_info(s);
    int K = b->n, d = info->d, n_alive = 0;
    size_t kk;
    *out = (es_basis_report){.energy = NAN, .random_mean = NAN, .random_min = NAN, .random_max = NAN, .overlap_a = -1, .overlap_b = -1};
    float *D = NULL;
    int rc = es_basis_matrix(b, s, &D, err);
    if (rc)
        return rc;
    if (!es_mul((size_t)K, (size_t)K, &kk))
        kk = SIZE_MAX;
    float *gram = es_calloc(kk, sizeof *gram);
    double *l = es_calloc(kk, sizeof *l), *w = es_calloc((size_t)K, sizeof *w);
    int *alive = es_calloc((size_t)info->n_features, sizeof *alive);
    es_pool *pool = NULL;
    rc = gram && l && w && alive ? es_pool_open(&pool, 1, err) : es_fail(err, ES_ERR_MEMORY, "no memory to measure a basis of %d features", K);
    if (rc)
        goto done;

    es_linear_gram(pool, D, K, d, gram);
    for (int i = 0; i < K; i++)
        for (int j = 0; j < i; j++) {
            double overlap = fabs((double)gram[(size_t)i * K + j]);
            if (overlap > out->max_overlap) {
                out->max_overlap = overlap;
                out->overlap_a = b->feature[j];
                out->overlap_b = b->feature[i];
            }
        }
    if (gradient && n > 0)
        out->energy = energy_share(D, K, d, gram, gradient, n, l, w);
    for (size_t i = 0; i < kk; i++)
        l[i] = gram[i];
    if (!es_linear_eigenvalues(l, K, w)) {
        rc = es_fail(err, ES_ERR_FORMAT, "the eigenvalues of the basis %s do not converge", b->name);
        goto done;
    }
    double sum = 0, entropy = 0, largest = w[K - 1], least = w[0] > 1e-12 * largest ? w[0] : 1e-12 * largest;
    for (int i = 0; i < K; i++)
        sum += w[i] > 0 ? w[i] : 0;
    for (int i = 0; i < K; i++)
        if (w[i] > 0)
            entropy -= w[i] / sum * log(w[i] / sum);
    out->condition = largest / least;
    out->effective_rank = exp(entropy);

    const float *max = a ? es_atlas_max(a) : NULL;
    for (int f = 0; f < info->n_features; f++)
        if (!max || (f < es_atlas_features(a) && max[f] > 0))
            alive[n_alive++] = f;
    if (!gradient || n < 1 || n_alive < K)
        goto done;
    es_rng rng;
    es_rng_seed(&rng, seed);
    double mean = 0;
    for (int turn = 0; turn < RANDOM_BASES && !rc; turn++) {
        for (int i = 0; i < K; i++) { /* the first K of a shuffle */
            int j = i + (int)es_rng_below(&rng, (uint64_t)(n_alive - i)), f = alive[i];
            alive[i] = alive[j];
            alive[j] = f;
        }
        rc = unit_rows(s, alive, K, D, err);
        if (rc)
            break;
        es_linear_gram(pool, D, K, d, gram);
        double share = energy_share(D, K, d, gram, gradient, n, l, w);
        mean += share / RANDOM_BASES;
        out->random_min = turn == 0 || share < out->random_min ? share : out->random_min;
        out->random_max = turn == 0 || share > out->random_max ? share : out->random_max;
    }
    out->random_mean = mean;
done:
    es_pool_free(pool);
    free(alive);
    free(w);
    free(l);
    free(gram);
    free(D);
    return rc;
}
