/* A real studio on a tiny model, for the tests of what a person does in it. */
#ifndef WITH_STUDIO_H
#define WITH_STUDIO_H

#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "dictionary.h"
#include "sessions.h"
#include "support.h"

enum { F = 96, LAYER = 1, PATIENCE = 120 };

static es_error err;
static const char *model_path, *dictionary_path;
static int next_path;

/* A random dictionary of unit rows, made for the tiny model. */
static inline void make_dictionary_at(const char *folder, const char *hook, float threshold)
{
    es_model *m = NULL;
    es_rng rng;
    char hash[65];
    assert_ok(es_model_open(&m, model_path, &err), &err);
    int d = es_model_get_info(m)->d_model;
    assert_ok(es_model_hash(m, hash, &err), &err);
    es_model_free(m);
    float *w = calloc((size_t)F * (size_t)d, sizeof *w), *zero = calloc(F + (size_t)d, sizeof *zero);
    es_rng_seed(&rng, 4);
    for (int f = 0; f < F; f++) {
        double norm = 0;
        for (int i = 0; i < d; i++) {
            w[f * d + i] = es_rng_normal(&rng);
            norm += (double)w[f * d + i] * (double)w[f * d + i];
        }
        for (int i = 0; i < d; i++)
            w[f * d + i] /= (float)sqrt(norm);
    }
    json_t *meta = json_pack("{s:s, s:s, s:s}", "model_name", "Tiny", "hook_name", hook, "espalier_model_sha256", hash);
    assert_ok(es_dictionary_save(folder, d, F, w, w, zero, zero, threshold, false, meta, &err), &err);
    json_decref(meta);
    free(w);
    free(zero);
}

static inline void make_dictionary(const char *folder, const char *hook)
{
    make_dictionary_at(folder, hook, 0.05f);
}

static inline int set_up(void **state)
{
    (void)state;
    model_path = strdup(test_path("tiny.gguf"));
    dictionary_path = strdup(test_path("dictionary"));
    make_tiny_gguf(model_path, NULL);
    make_dictionary(dictionary_path, "blocks.1.hook_resid_post");
    return 0;
}

static inline const char *fresh(void) { return test_path("s%d.db", next_path++); }

static inline es_studio_options options(const char *workspace)
{
    es_studio_options o = es_studio_default();
    o.model = model_path;
    o.dictionary = dictionary_path;
    o.workspace = workspace;
    o.sampling.temperature = 0;
    o.sampling.repeat_penalty = 1;
    o.max_tokens = 24;
    o.n_ctx = 512;
    o.threads = 2;
    o.learn = false;
    o.author = "tester";
    return o;
}

/* Waits until the view is as wanted; the caller frees it. */
typedef bool wanted(const es_view *v);
static inline es_view *wait_for(es_studio *s, wanted *is, const char *what)
{
    double end = es_seconds() + PATIENCE;
    es_view *v = NULL;
    while (es_seconds() < end) {
        struct pollfd p = {.fd = es_studio_fd(s), .events = POLLIN};
        v = es_studio_view(s);
        if (is(v))
            return v;
        es_view_free(v);
        poll(&p, 1, 50);
        es_studio_ack(s);
    }
    v = es_studio_view(s);
    fail_msg("waited in vain for: %s (status \"%s\", learning %d \"%s\")", what, v->status, v->learning, v->learning_text);
    return v;
}
#define WAIT(s, is) wait_for(s, is, #is)
#define WAIT_FREE(s, is) es_view_free(WAIT(s, is))

static inline bool ready(const es_view *v) { return !v->loading; }
static inline bool idle(const es_view *v) { return !v->loading && !v->generating; }
static inline bool answered(const es_view *v) { return idle(v) && v->n_turn && v->turn[v->n_turn - 1].role == 'a' && !v->turn[v->n_turn - 1].streaming; }
static inline bool two_turns(const es_view *v) { return answered(v) && v->n_turn == 2; }
static inline bool says(const es_view *v) { return v->status[0] != 0; }

static inline es_studio *open_with(const es_studio_options *o)
{
    es_studio *s = NULL;
    assert_ok(es_studio_open(&s, o, &err), &err);
    es_view *v = WAIT(s, ready);
    if (v->failed)
        fail_msg("%s", v->status);
    es_view_free(v);
    return s;
}

static inline es_studio *open_ready(const char *workspace)
{
    es_studio_options o = options(workspace);
    return open_with(&o);
}

#endif
