/* A dictionary for the tiny model, and experiences in its vocabulary: for the tests of bases, adapters and the learner. */
#ifndef ES_TEST_FIXTURE_H
#define ES_TEST_FIXTURE_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dictionary.h"
#include "learner_internal.h"
#include "support.h"

enum { FIX_F = 96, FIX_LAYER = 1 };

/* Random unit directions, encoder = decoder, of the residual after a layer. */
static inline es_dictionary *fix_dictionary_at(const es_model *m, const char *name, int layer, uint64_t seed)
{
    int d = es_model_get_info(m)->d_model;
    size_t n = (size_t)FIX_F * (size_t)d;
    float *w = es_calloc(n, sizeof *w), *zero = es_calloc(FIX_F + (size_t)d, sizeof *zero);
    es_rng rng;
    es_rng_seed(&rng, seed);
    for (int f = 0; f < FIX_F; f++) {
        double sum = 0;
        for (int j = 0; j < d; j++) {
            w[f * d + j] = es_rng_normal(&rng);
            sum += (double)w[f * d + j] * w[f * d + j];
        }
        for (int j = 0; j < d; j++)
            w[f * d + j] /= (float)sqrt(sum);
    }
    es_error err;
    es_dictionary *s = NULL;
    const char *folder = test_path("%s", name);
    json_t *meta = json_pack("{s:s, s:s++}", "model_name", "tiny", "hook_name", "blocks.", (const char[]){(char)('0' + layer), 0}, ".hook_resid_post");
    assert_ok(es_dictionary_save(folder, d, FIX_F, w, w, zero, zero, 0, false, meta, &err), &err);
    assert_ok(es_dictionary_open(&s, folder, &err), &err);
    json_decref(meta);
    free(w);
    free(zero);
    return s;
}

static inline es_dictionary *fix_dictionary(const es_model *m, const char *name, uint64_t seed)
{
    return fix_dictionary_at(m, name, FIX_LAYER, seed);
}

static inline void fix_experience(es_experiences *l, const char *ask, const char *preferred, const char *rejected)
{
    es_error err;
    es_message message = {"user", ask};
    es_experience e = {.message = &message, .n_message = 1, .preferred = (char *)preferred, .rejected = (char *)rejected, .weight = 1};
    assert_ok(es_experience_copy(l, &e, &err), &err);
}

/* Three pairs, one preferred only, one rejected only. */
static inline es_experiences fix_experiences(void)
{
    es_experiences l = {0};
    fix_experience(&l, "How are you?", "Fine.", "I am very well, thank you.");
    fix_experience(&l, "What is two and two?", "4", "Two and two make four, of course.");
    fix_experience(&l, "Name a colour.", "Red", "There are many colours.");
    fix_experience(&l, "Is it late?", "Yes.", NULL);
    fix_experience(&l, "Shall we go?", NULL, "Perhaps we should wait a little.");
    return l;
}

static inline es_basis fix_basis(int n, float bound)
{
    es_error err;
    es_basis b = {.name = "fixture", .layer = FIX_LAYER};
    for (int i = 0; i < n; i++)
        assert_ok(es_basis_add(&b, 3 * i, -bound, bound, &err), &err);
    return b;
}

/* The learner's loss h along a way from a point in parameter space. */
static inline double fix_loss_at(es_learner *l, es_adapter *a, const float *at, const double *way, double h)
{
    es_error err;
    double loss = 0;
    for (size_t i = 0; i < a->n_param; i++)
        a->param[i] = at[i] + (float)(h * way[i]);
    es_adapter_refresh(a);
    assert_ok(es_learner_gradient(l, &loss, NULL, &err), &err);
    return loss;
}

/* es_learner_gradient against finite differences, at a random point `away` from where the adapter stands (where dA is zero), along random
 * directions, each over a quarter of the parameters. */
static inline void fix_check_gradient(es_learner *l, es_adapter *a, float away, const char *what)
{
    es_error err;
    es_rng rng;
    es_rng_seed(&rng, 5);
    for (size_t i = 0; i < a->n_param; i++)
        a->param[i] += away * es_rng_normal(&rng);
    es_adapter_refresh(a);
    size_t n = a->n_learned;
    float *at = malloc(a->n_param * sizeof *at), *g = calloc(a->n_param, sizeof *g);
    double *way = malloc(a->n_param * sizeof *way), loss;
    memcpy(at, a->param, a->n_param * sizeof *at);
    assert_ok(es_learner_gradient(l, &loss, g, &err), &err);
    assert_true(isfinite(loss) && loss > 0);
    for (int turn = 0; turn < 8; turn++) {
        size_t from = n * (size_t)(turn / 2) / 4, to = n * (size_t)(turn / 2 + 1) / 4;
        double slope = 0, size = 0;
        for (size_t i = 0; i < a->n_param; i++) {
            way[i] = i >= from && i < to ? es_rng_normal(&rng) : 0;
            if (turn % 2)
                way[i] = fabs(way[i]) * (g[i] > 0 ? 1 : -1); /* where the slope is surely large */
            size += way[i] * way[i];
        }
        for (size_t i = 0; i < a->n_param; i++) {
            way[i] /= sqrt(size);
            slope += way[i] * g[i];
        }
        double h = 2e-2, seen = (fix_loss_at(l, a, at, way, h) - fix_loss_at(l, a, at, way, -h)) / (2 * h);
        double seen2 = (fix_loss_at(l, a, at, way, 2 * h) - fix_loss_at(l, a, at, way, -2 * h)) / (4 * h);
        seen = (4 * seen - seen2) / 3; /* Richardson */
        if (fabs(seen - slope) > 1e-3 + 0.01 * fabs(slope))
            fail_msg("%s, direction %d: gradient %g, finite difference %g", what, turn, slope, seen);
    }
    free(at);
    free(g);
    free(way);
}

#endif
