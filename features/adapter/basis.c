/* basis: the chosen features, their bounds, and how good a set of directions they are. */
#include "learner.h"
#include "linear.h"

#include <math.h>
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
}

static int basis_find(const es_basis *b, int feature)
{
    for (int i = 0; i < b->n; i++)
        if (b->feature[i] == feature)
            return i;
    return -1;
}

int es_basis_add(es_basis *b, int feature, float lo, float hi, es_error *err)
{
    if (feature < 0)
        return es_fail(err, ES_ERR_USAGE, "basis: there is no feature %d", feature);
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
    return true;
}

/* ---- JSON ------------------------------------------------------------------------------------------------------------ */

json_t *es_basis_to_json(const es_basis *b)
{
    json_t *features = json_array();
    for (int i = 0; i < b->n; i++)
        json_array_append_new(features, json_pack("{s:i, s:f, s:f}", "feature", b->feature[i], "lo", (double)b->lo[i], "hi", (double)b->hi[i]));
    return json_pack("{s:s, s:i, s:s, s:i, s:s, s:s, s:s, s:i, s:o}", "format", "espalier-basis", "version", 1, "name", b->name,
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

int es_basis_from_json(es_basis *out, json_t *value, es_error *err)
{
    *out = (es_basis){0};
    const char *format = json_string_value(json_object_get(value, "format"));
    int version = 0;
    if (!format || strcmp(format, "espalier-basis"))
        return es_fail(err, ES_ERR_FORMAT, "not a basis: \"format\" must be \"espalier-basis\"");
    int rc = int_member(value, "version", 1, 1, &version, err);
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
    int rc = unit_rows(s, b->feature, b->n, *out, err);
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
