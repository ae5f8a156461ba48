/* What a dictionary reads, and where a running model gives it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dictionaries.h"

static const char *const names[] = {
    [ES_HOOK_RESIDUAL] = "resid_post", [ES_HOOK_ATTENTION] = "z", [ES_HOOK_ATTENTION_OUT] = "attn_out", [ES_HOOK_MLP_IN] = "mlp_in", [ES_HOOK_MLP_OUT] = "mlp_out",
    [ES_HOOK_UNKNOWN] = "",
};

const char *es_hook_site(es_hook_kind h)
{
    return (unsigned)h < sizeof names / sizeof *names ? names[h] : "";
}

bool es_hook_site_named(const char *name, es_hook_kind *out)
{
    static const struct { const char *name; es_hook_kind hook; } more[] = {
        {"resid", ES_HOOK_RESIDUAL}, {"attn", ES_HOOK_ATTENTION_OUT}, {"mlp", ES_HOOK_MLP_OUT}, {"hook_z", ES_HOOK_ATTENTION},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (*names[i] && !strcmp(name, names[i])) {
            *out = (es_hook_kind)i;
            return true;
        }
    for (size_t i = 0; i < sizeof more / sizeof *more; i++)
        if (!strcmp(name, more[i].name)) {
            *out = more[i].hook;
            return true;
        }
    return false;
}

bool es_hook_point(es_hook_kind h, es_point *out)
{
    switch (h) {
    case ES_HOOK_RESIDUAL: *out = ES_POINT_RESIDUAL; return true;
    case ES_HOOK_ATTENTION: *out = ES_POINT_ATTENTION; return true;
    case ES_HOOK_ATTENTION_OUT: *out = ES_POINT_ATTENTION_OUT; return true;
    case ES_HOOK_MLP_OUT: *out = ES_POINT_MLP_OUT; return true;
    default: *out = ES_POINT_RESIDUAL; return false;
    }
}

void es_hook_place_name(es_hook_place p, char out[32])
{
    snprintf(out, 32, p.hook == ES_HOOK_RESIDUAL ? "layer-%02d" : "layer-%02d-%s", p.layer, es_hook_site(p.hook));
}

es_point es_dictionary_point(const es_dictionary *s)
{
    es_point p;
    es_hook_point(es_dictionary_get_info(s)->hook, &p);
    return p;
}

/* ---- beside a model -------------------------------------------------------------------------------------------------------------------- */

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}

/* The names of transformers mean another point in families with a norm behind the two halves of a block than in those without. */
static bool another_point(const es_dictionary_info *i, const es_model *m)
{
    const bool post = i->layer >= 0 && es_model_post_norm(m, i->layer);
    return post ? ends_with(i->hook_name, ".mlp.output") || ends_with(i->hook_name, ".o_proj.output")
                : ends_with(i->hook_name, ".post_attention_layernorm.output") || ends_with(i->hook_name, ".post_feedforward_layernorm.output");
}

int es_dictionary_check_model(const es_dictionary *s, es_model *m, es_error *err)
{
    const es_dictionary_info *i = es_dictionary_get_info(s);
    const es_model_info *mi = es_model_get_info(m);
    es_point point;
    if (i->hook == ES_HOOK_UNKNOWN)
        return es_fail(err, ES_ERR_MISMATCH,
                       "dictionary %s reads %s%s%s; in a running model the residual after a layer, attention's and the MLP's output can be read (hook_name, or layer_N in its path)", i->name,
                       *i->hook_name ? "the hook \"" : es_hook_words(i->hook), i->hook_name, *i->hook_name ? "\"" : "");
    if (!es_hook_point(i->hook, &point) || i->transcoder)
        return es_fail(err, ES_ERR_MISMATCH,
                       "dictionary %s reads %s%s; in a running model the residual after a layer, attention's and the MLP's output can be read (encode FILE.npy takes any activations)",
                       i->name, es_hook_words(i->hook), i->transcoder ? " and writes something else" : "");
    if (i->d != es_point_width(m, point) || i->layer >= mi->n_layer || (i->layer < 0 && point != ES_POINT_RESIDUAL))
        return es_fail(err, ES_ERR_MISMATCH, "dictionary %s reads %s, width %d, layer %d; of the model %s that has width %d, and there are %d layers", i->name,
                       es_hook_words(i->hook), i->d, i->layer, mi->name, es_point_width(m, point), mi->n_layer);
    if (another_point(i, m))
        return es_fail(err, ES_ERR_MISMATCH, "dictionary %s reads \"%s\", which in models as %s is not what its layer adds to the residual: that alone can be read", i->name, i->hook_name,
                       mi->name);
    char hash[65];
    int rc = *i->model_hash ? es_model_hash(m, hash, err) : ES_OK;
    if (rc || !*i->model_hash)
        return rc;
    if (strcmp(hash, i->model_hash) != 0)
        return es_fail(err, ES_ERR_MISMATCH, "dictionary %s was made from the model with SHA-256 %s; this one has %s", i->name, i->model_hash, hash);
    return ES_OK;
}

int es_dictionary_check_steers(const es_dictionary *s, es_error *err)
{
    const es_dictionary_info *i = es_dictionary_get_info(s);
    if (i->hook == ES_HOOK_RESIDUAL && !i->transcoder)
        return ES_OK;
    return es_fail(err, ES_ERR_MISMATCH, "dictionary %s reads %s: it is for looking; steering and adapting take dictionaries of the residual after a layer", i->name,
                   es_hook_words(i->hook));
}

bool es_dictionary_has_directions(const es_dictionary *s, const es_model *m)
{
    const es_dictionary_info *i = es_dictionary_get_info(s);
    const es_model_info *mi = es_model_get_info(m);
    if (i->hook == ES_HOOK_ATTENTION && !i->transcoder)
        return i->layer >= 0 && i->layer < mi->n_layer && i->d_out == es_point_width(m, ES_POINT_ATTENTION);
    return (i->hook == ES_HOOK_RESIDUAL || i->hook == ES_HOOK_ATTENTION_OUT || i->hook == ES_HOOK_MLP_OUT) && i->d_out == mi->d_model;
}

int es_dictionary_directions(const es_dictionary *s, const es_model *m, es_pool *p, int first, int n, float *out, es_error *err)
{
    if (es_dictionary_get_info(s)->hook != ES_HOOK_ATTENTION) {
        es_dictionary_rows(s, first, n, out);
        return ES_OK;
    }
    const size_t d = (size_t)es_model_get_info(m)->d_model;
    const float *norm = es_model_attention_post_norm(m, es_dictionary_get_info(s)->layer);
    es_weight w = es_model_site(m, es_dictionary_get_info(s)->layer, ES_SITE_O);
    float *rows = es_calloc((size_t)n * (size_t)es_dictionary_get_info(s)->d_out, sizeof *rows);
    if (!rows)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for %d directions", n);
    es_dictionary_rows(s, first, n, rows);
    es_kernels_cpu()->matmul(p, &w, rows, n, out, false, true);
    for (size_t i = 0; norm && i < (size_t)n * d; i++)
        out[i] *= norm[i % d];
    free(rows);
    return ES_OK;
}
