/* attribute: which features the experiences ask for. The gradient of each experience's loss by the residual at the dictionary's
 * layer, and the basis of the features whose directions it points along. */
#include "pack.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ATTRIBUTE_PROMPT = 96, ATTRIBUTE_REPLY = 64 };
#define ATTRIBUTE_BETA 5.0

int es_attribute(es_model *m, const es_dictionary *s, const es_experiences *e, int threads, float *gradient,
                 const es_progress *progress, es_error *err)
{
    const es_model_info *info = es_model_get_info(m);
    const es_dictionary_info *dictionary = es_dictionary_get_info(s);
    int d = info->d_model, layer = dictionary->layer, cap = 2 * (ATTRIBUTE_PROMPT + ATTRIBUTE_REPLY);
    int steers = es_dictionary_check_steers(s, err);
    if (steers)
        return steers;
    if (dictionary->d != d || layer < 0 || layer >= info->n_layer)
        return es_fail(err, ES_ERR_MISMATCH, "dictionary %s reads layer %d of width %d; the model has %d layers of width %d",
                       dictionary->name, layer, dictionary->d, info->n_layer, d);
    if (e->n < 1)
        return es_fail(err, ES_ERR_USAGE, "attribution needs at least one experience");
    es_trainer_options o = {.max_tokens = cap, .from_layer = layer + 1 < info->n_layer ? layer + 1 : layer, .backward = true, .max_hooks = 1,
                            .threads = threads};
    es_trainer *t = NULL;
    es_pack pack = {0};
    const volatile bool *cancel = progress ? progress->cancel : NULL;
    float *dh = es_calloc((size_t)cap * (size_t)d, sizeof *dh), **where = es_calloc((size_t)info->n_layer, sizeof *where);
    int rc = dh && where ? es_trainer_open(&t, m, &o, err) : es_fail(err, ES_ERR_MEMORY, "no memory for attribution");
    rc = rc ? rc : es_pack_open(&pack, cap, d, err);
    if (!rc)
        where[layer] = dh;
    for (int i = 0; !rc && i < e->n; i++) {
        const es_experience *x = &e->item[i];
        const char *reply[2] = {x->preferred, x->rejected};
        es_sequence seq[2] = {0};
        double slope[2];
        es_pack_clear(&pack);
        for (int j = 0; !rc && j < 2; j++) {
            if (!reply[j])
                continue;
            rc = es_sequence_make(&seq[j], m, x->message, x->n_message, reply[j], ATTRIBUTE_PROMPT, ATTRIBUTE_REPLY, err);
            rc = rc ? rc : es_sequence_residual(&seq[j], t, o.from_layer - 1, d, cancel, err);
            if (!rc)
                es_pack_add(&pack, &seq[j], 0);
        }
        es_batch b = es_pack_batch(&pack);
        rc = rc ? rc : es_trainer_forward(t, &b, pack.resid, NULL, NULL, 0, pack.logprob, cancel, err);
        if (!rc) {
            es_pack_means(&pack);
            for (int j = 0; j < 2; j++)
                seq[j].base = seq[j].now; /* the model is its own base */
            es_experience_loss(seq[0].n ? &seq[0] : NULL, seq[1].n ? &seq[1] : NULL, ATTRIBUTE_BETA, &slope[0], &slope[1]);
            for (int j = 0, k = 0; j < 2; j++)
                if (seq[j].n) {
                    for (int p = pack.start[k + 1] - seq[j].n_reply; p < pack.start[k + 1]; p++)
                        pack.dlogprob[p] = (float)(slope[j] / seq[j].n_reply);
                    k++;
                }
            es_grad g = {.resid = where};
            rc = es_trainer_backward(t, &b, NULL, pack.dlogprob, NULL, NULL, &g, layer, cancel, err);
        }
        if (!rc) {
            float *out = gradient + (size_t)i * (size_t)d;
            int tokens = 0;
            memset(out, 0, sizeof *out * (size_t)d);
            for (int p = 0; p < pack.n; p++) {
                tokens += pack.wanted[p];
                for (int j = 0; pack.wanted[p] && j < d; j++)
                    out[j] -= dh[(size_t)p * (size_t)d + (size_t)j];
            }
            for (int j = 0; j < d; j++) {
                out[j] /= (float)tokens;
                if (!isfinite(out[j]))
                    rc = es_fail(err, ES_ERR_LIMIT, "the gradient of experience %d is not a number", i + 1);
            }
        }
        es_sequence_free(&seq[0]);
        es_sequence_free(&seq[1]);
        es_progress_report(progress, "attributing experiences to features", i + 1, e->n, "experiences");
        if (!rc && es_progress_cancelled(progress))
            rc = es_fail(err, ES_ERR_CANCELLED, "attribution was cancelled");
    }
    if (pack.arena.base)
        es_pack_close(&pack);
    es_trainer_free(t);
    free(where);
    free(dh);
    return rc;
}

/* ---- bases from it ------------------------------------------------------------------------------------------------------- */

/* Names what the basis belongs to; empties it. */
static int basis_start(es_basis *b, es_model *m, const es_dictionary *s, es_error *err)
{
    const es_dictionary_info *info = es_dictionary_get_info(s);
    int rc = es_dictionary_check_steers(s, err);
    if (rc)
        return rc;
    es_basis_free(b);
    b->layer = info->layer;
    snprintf(b->dictionary, sizeof b->dictionary, "%s", info->name);
    snprintf(b->dictionary_hash, sizeof b->dictionary_hash, "%s", info->hash);
    return es_model_hash(m, b->model_hash, err);
}

static bool alive(const es_atlas *a, int f)
{
    return !a || (f < es_atlas_features(a) && es_atlas_max(a)[f] > 0);
}

static float row_norm(const float *row, int d)
{
    double sum = 0;
    for (int j = 0; j < d; j++)
        sum += (double)row[j] * row[j];
    return (float)sqrt(sum);
}

/* Bounds +- the feature's 99th percentile, in units of the unit direction; sign: one-sided. */
static int add_with_bounds(es_basis *b, const es_dictionary *s, const es_atlas *a, int f, int sign, es_error *err)
{
    int d = es_dictionary_get_info(s)->d;
    float bound = 1e3f;
    if (a) {
        float *row = es_calloc((size_t)d, sizeof *row);
        if (!row)
            return es_fail(err, ES_ERR_MEMORY, "no memory for a suggestion");
        es_dictionary_rows(s, f, 1, row);
        float p99 = es_atlas_p99(a)[f], max = es_atlas_max(a)[f];
        bound = (p99 > 0 ? p99 : max) * row_norm(row, d);
        free(row);
    }
    return es_basis_add(b, f, sign > 0 ? 0 : -bound, sign < 0 ? 0 : bound, err);
}

int es_basis_suggest(es_basis *b, es_model *m, const es_dictionary *s, const es_atlas *a, const float *gradient, int n, int size, bool signs,
                     float *score, es_error *err)
{
    const es_dictionary_info *info = es_dictionary_get_info(s);
    int F = info->n_features, d = info->d, taken = 0;
    if (n < 1 || size < 1 || size > F)
        return es_fail(err, ES_ERR_USAGE, "a suggestion of %d features from %d gradients cannot be made", size, n);
    if (a && strcmp(es_atlas_dictionary_hash(a), info->hash))
        return es_fail(err, ES_ERR_MISMATCH, "the atlas belongs to the dictionary %.12s, not to %s (%.12s)", es_atlas_dictionary_hash(a),
                       info->name, info->hash);
    int rc = basis_start(b, m, s, err);
    if (rc)
        return rc;
    double *mean = es_calloc((size_t)d, sizeof *mean);
    float *p = es_calloc((size_t)F, sizeof *p);
    float *row = es_calloc((size_t)d, sizeof *row);
    bool *used = es_calloc((size_t)F, sizeof *used);
    if (!mean || !p || !row || !used)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for a suggestion");
    for (int e = 0; !rc && e < n; e++)
        for (int j = 0; j < d; j++)
            mean[j] += (double)gradient[(size_t)e * (size_t)d + (size_t)j] / n;
    for (int f = 0; !rc && f < F; f++) {
        es_dictionary_rows(s, f, 1, row);
        float norm = row_norm(row, d);
        double sum = 0;
        for (int j = 0; j < d; j++)
            sum += mean[j] * row[j];
        used[f] = !(norm > 0) || !alive(a, f);
        p[f] = norm > 0 ? (float)(sum / norm) : 0;
        if (f % 65536 == 65535)
            es_dictionary_release(s);
    }
    for (; !rc && taken < size; taken++) {
        int best = -1;
        for (int f = 0; f < F; f++)
            if (!used[f] && (best < 0 || fabsf(p[f]) > fabsf(p[best])))
                best = f;
        if (best < 0) {
            rc = es_fail(err, ES_ERR_LIMIT, "only %d of the dictionary's features are alive, %d were asked for", taken, size);
            break;
        }
        used[best] = true;
        rc = add_with_bounds(b, s, a, best, signs ? (p[best] > 0 ? 1 : -1) : 0, err);
        if (score)
            score[taken] = p[best];
    }
    free(row);
    free(used);
    free(p);
    free(mean);
    if (rc)
        es_basis_free(b);
    return rc;
}

int es_basis_random(es_basis *b, es_model *m, const es_dictionary *s, const es_atlas *a, int size, uint64_t seed, es_error *err)
{
    int F = es_dictionary_get_info(s)->n_features, n = 0;
    int rc = basis_start(b, m, s, err);
    int *f = rc ? NULL : es_calloc((size_t)F, sizeof *f);
    if (!rc && !f)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for a random basis");
    for (int i = 0; !rc && i < F; i++)
        if (alive(a, i))
            f[n++] = i;
    if (!rc && (size < 1 || size > n))
        rc = es_fail(err, ES_ERR_USAGE, "a random basis of %d from %d features that are alive cannot be made", size, n);
    es_rng rng;
    es_rng_seed(&rng, seed);
    for (int i = 0; !rc && i < size; i++) {
        int j = i + (int)es_rng_below(&rng, (uint64_t)(n - i)), pick = f[j];
        f[j] = f[i];
        f[i] = pick;
        rc = add_with_bounds(b, s, a, pick, 0, err);
    }
    free(f);
    if (rc)
        es_basis_free(b);
    return rc;
}
