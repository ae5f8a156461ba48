/* A row of the comparison: a method under a name of its own, with its options set by name. A new option is a line in OPTION. */
#include "evaluate.h"

#include <ctype.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum option_type { OPTION_INT, OPTION_REAL, OPTION_BOOL, OPTION_SEED } option_type;

static const struct {
    const char *name;
    option_type type;
    size_t at; /* in es_eval_spec */
    double lo, hi;
    bool later; /* came after results were published: told where it is not 0, so that those are still found */
} OPTION[] = {
    {"basis_size", OPTION_INT, offsetof(es_eval_spec, o.basis_size), 1, 1 << 20, false},
    {"rank", OPTION_INT, offsetof(es_eval_spec, o.rank), 0, 4096, false},
    {"batch", OPTION_INT, offsetof(es_eval_spec, o.batch), 0, 1 << 20, false},
    {"beta", OPTION_REAL, offsetof(es_eval_spec, o.beta), 0, 1000, false},
    {"anchor", OPTION_REAL, offsetof(es_eval_spec, o.anchor), 0, 1e6, false},
    {"white", OPTION_BOOL, offsetof(es_eval_spec, o.white), 0, 1, false},
    {"spare", OPTION_BOOL, offsetof(es_eval_spec, o.spare), 0, 1, false},
    {"natural", OPTION_BOOL, offsetof(es_eval_spec, o.natural), 0, 1, true},
    {"shrink", OPTION_BOOL, offsetof(es_eval_spec, o.shrink), 0, 1, false},
    {"prior_weight", OPTION_REAL, offsetof(es_eval_spec, o.prior), 0, 1e9, false},
    {"one_sided", OPTION_BOOL, offsetof(es_eval_spec, o.one_sided), 0, 1, false},
    {"prior", OPTION_BOOL, offsetof(es_eval_spec, prior), 0, 1, false},
    {"weighting", OPTION_BOOL, offsetof(es_eval_spec, o.weighting), 0, 1, false},
    {"max_prompt", OPTION_INT, offsetof(es_eval_spec, o.max_prompt), 0, 1 << 20, false},
    {"max_reply", OPTION_INT, offsetof(es_eval_spec, o.max_reply), 0, 1 << 20, false},
    {"max_new", OPTION_INT, offsetof(es_eval_spec, o.max_new), 0, 1 << 20, false},
    {"context_tokens", OPTION_INT, offsetof(es_eval_spec, o.context_tokens), 0, 1 << 20, false},
    {"seed", OPTION_SEED, offsetof(es_eval_spec, o.seed), 0, 1e15, false},
    {"basis_pairs", OPTION_INT, offsetof(es_eval_spec, basis_pairs), 0, 1 << 20, false},
    {"signs", OPTION_BOOL, offsetof(es_eval_spec, signs), 0, 1, false},
    {"replay", OPTION_REAL, offsetof(es_eval_spec, o.replay), 0, 0.99, true},
};
enum { N_OPTION = sizeof OPTION / sizeof *OPTION };

static void usual_rates(es_eval_spec *s)
{
    s->rate[0] = s->o.rate / 2;
    s->rate[1] = s->o.rate;
    s->rate[2] = s->o.rate * 2;
    s->n_rate = 3;
}

int es_eval_spec_new(es_eval_spec *out, const char *text, es_error *err)
{
    const char *equals = strchr(text, '='), *method = equals ? equals + 1 : text;
    size_t n = equals ? (size_t)(equals - text) : strlen(text);
    int kind = es_method_by_name(method);
    *out = (es_eval_spec){0};
    if (kind < 0)
        return es_fail(err, ES_ERR_USAGE, "there is no method \"%.32s\"", method);
    if (n < 1 || n >= sizeof out->label)
        return es_fail(err, ES_ERR_USAGE, "\"%.64s\" is no name for a method", text);
    memcpy(out->label, text, n);
    for (const char *c = out->label; *c; c++)
        if (!isalnum((unsigned char)*c) && !strchr("-_", *c))
            return es_fail(err, ES_ERR_USAGE, "\"%.64s\": a name is made of letters, digits, - and _", out->label);
    out->kind = (es_method_kind)kind;
    out->o = es_method_default(out->kind);
    out->o.max_prompt = 64;
    out->o.max_reply = 64;
    if (out->o.rate > 0)
        usual_rates(out);
    return ES_OK;
}

static bool real(const char *s, const char **end, double *out)
{
    char *e;
    *out = strtod(s, &e);
    *end = e;
    return e > s && isfinite(*out);
}

int es_eval_spec_set(es_eval_spec *s, const char *option, const char *value, es_error *err)
{
    const char *end;
    double v;
    if (!strcmp(option, "rate")) {
        s->n_rate = 0;
        for (;; value = end + 1) {
            if (s->n_rate == ES_EVAL_RATES || !real(value, &end, &v) || !(v > 0) || (*end && *end != ','))
                return es_fail(err, ES_ERR_USAGE, "%s.rate: not 1 to %d rates above 0 with commas", s->label, (int)ES_EVAL_RATES);
            s->rate[s->n_rate++] = v;
            if (!*end)
                return ES_OK;
        }
    }
    if (!strcmp(option, "form")) {
        if (!es_form_named(value, &s->o.form))
            return es_fail(err, ES_ERR_USAGE, "%s.form: there is no form \"%.32s\" (bias, gain, map, lora)", s->label, value);
        s->o.rate = es_learner_default(s->o.form).learning_rate;
        usual_rates(s);
        return ES_OK;
    }
    if (!strcmp(option, "preference")) {
        if (snprintf(s->preference, sizeof s->preference, "%s", value) >= (int)sizeof s->preference)
            return es_fail(err, ES_ERR_USAGE, "%s.preference: at most %zu bytes", s->label, sizeof s->preference - 1);
        return ES_OK;
    }
    for (int i = 0; i < N_OPTION; i++) {
        if (strcmp(option, OPTION[i].name))
            continue;
        if (!real(value, &end, &v) || *end || v < OPTION[i].lo || v > OPTION[i].hi || (OPTION[i].type != OPTION_REAL && v != floor(v)))
            return es_fail(err, ES_ERR_USAGE, "%s.%s: \"%.32s\" is no number from %g to %g", s->label, option, value, OPTION[i].lo, OPTION[i].hi);
        void *to = (char *)s + OPTION[i].at;
        switch (OPTION[i].type) {
        case OPTION_INT: *(int *)to = (int)v; break;
        case OPTION_REAL: *(double *)to = v; break;
        case OPTION_BOOL: *(bool *)to = v != 0; break;
        case OPTION_SEED: *(uint64_t *)to = (uint64_t)v; break;
        }
        return ES_OK;
    }
    es_buf names = {0};
    for (int i = 0; i < N_OPTION; i++)
        es_buf_printf(&names, " %s", OPTION[i].name);
    int rc = es_fail(err, ES_ERR_USAGE, "%s has no option \"%.32s\"; there are rate form preference%s", s->label, option, names.data ? names.data : "");
    es_buf_free(&names);
    return rc;
}

void es_eval_spec_text(const es_eval_spec *s, es_buf *out)
{
    es_buf_printf(out, "%s=%s", s->label, es_method_name(s->kind));
    for (int i = 0; i < N_OPTION; i++) {
        const void *at = (const char *)s + OPTION[i].at;
        double v = OPTION[i].type == OPTION_INT    ? *(const int *)at
                   : OPTION[i].type == OPTION_REAL ? *(const double *)at
                   : OPTION[i].type == OPTION_BOOL ? *(const bool *)at
                                                   : (double)*(const uint64_t *)at;
        if (v != 0 || !OPTION[i].later)
            es_buf_printf(out, " %s=%.10g", OPTION[i].name, v);
    }
    if (s->o.form != es_method_default(s->kind).form)
        es_buf_printf(out, " form=%s", es_form_name(s->o.form));
    if (s->o.basis)
        es_buf_printf(out, " basis=%s@%d/%d", s->o.basis->name, s->o.basis->version, s->o.basis->n);
    if (*s->preference)
        es_buf_printf(out, " preference=%s", s->preference);
}
