/* A dictionary for the tiny model, and experiences in its vocabulary: for the tests of bases, adapters and the learner. */
#ifndef ES_TEST_FIXTURE_H
#define ES_TEST_FIXTURE_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapter.h"
#include "dictionary.h"
#include "support.h"

enum { FIX_F = 96, FIX_LAYER = 1 };

/* Random unit directions, encoder = decoder. */
static inline es_dictionary *fix_dictionary(const es_model *m, const char *name, uint64_t seed)
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
    json_t *meta = json_pack("{s:s, s:s}", "model_name", "tiny", "hook_name", "blocks.1.hook_resid_post");
    assert_ok(es_dictionary_save(folder, d, FIX_F, w, w, zero, zero, 0, false, meta, &err), &err);
    assert_ok(es_dictionary_open(&s, folder, &err), &err);
    json_decref(meta);
    free(w);
    free(zero);
    return s;
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

#endif
