#include "distil.h"
#include "method_internal.h"

#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name, *about;
    const es_method_ops *ops; /* NULL: the base model answers */
    double rate;
    int rank;
} KIND[ES_N_METHODS] = {
    [ES_METHOD_NONE] = {"none", "the base model", NULL, 0, 0},
    [ES_METHOD_CONTEXT] = {"context", "the experiences, or the stated preference, in the prompt", &es_method_context_ops, 0, 0},
    [ES_METHOD_TITANS] = {"titans", "a memory module written by surprise", &es_method_titans_ops, 0.3, 0},
    [ES_METHOD_SELF] = {"self", "optimisation on the model's own trajectories", &es_method_self_ops, 1e-4, 32},
    [ES_METHOD_LORA] = {"lora", "low-rank updates on every linear map", &es_method_lora_ops, 5e-4, 32},
    [ES_METHOD_FULL] = {"full", "all weights", &es_method_full_ops, 2e-5, 0},
    [ES_METHOD_DISTIL] = {"distil", "on-policy distillation into low-rank updates", &es_method_distil_ops, 1e-4, 32},
    [ES_METHOD_FEATURES] = {"features", "low-rank updates within chosen features", &es_method_features_ops, 0.008, ES_WHITE_RANK},
    [ES_METHOD_RANDOM] = {"random", "the same within as many random features", &es_method_features_ops, 0.008, ES_WHITE_RANK},
    [ES_METHOD_FREE] = {"free", "the same matrices without the constraint", &es_method_features_ops, 0.008, ES_WHITE_RANK},
    [ES_METHOD_BIAS] = {"bias", "a constant vector within chosen features", &es_method_features_ops, 0.02, 0},
};

struct es_method {
    es_method_kind kind;
    es_model *base;
    void *self;
};

const char *es_method_name(es_method_kind k)
{
    return (unsigned)k < ES_N_METHODS ? KIND[k].name : "?";
}

const char *es_method_about(es_method_kind k)
{
    return (unsigned)k < ES_N_METHODS ? KIND[k].about : "?";
}

int es_method_by_name(const char *name)
{
    for (int i = 0; i < ES_N_METHODS; i++)
        if (!strcmp(name, KIND[i].name))
            return i;
    return -1;
}

es_method_options es_method_default(es_method_kind k)
{
    bool white = k == ES_METHOD_FEATURES || k == ES_METHOD_RANDOM || k == ES_METHOD_FREE; /* docs/research.md: a tenth of Adam's KL at equal margin */
    return (es_method_options){.basis_size = 256, .form = k == ES_METHOD_BIAS ? ES_FORM_BIAS : ES_FORM_LORA, .white = white, .spare = white, .natural = white, .rate = KIND[k].rate, .rank = KIND[k].rank, .beta = 5, .max_prompt = 128, .max_reply = 96, .max_new = 48, .distil_loss = ES_DISTIL_TOP, .seed = 1};
}

static const es_method_ops *ops(const es_method *m)
{
    return KIND[m->kind].ops;
}

int es_method_open(es_method **out, es_method_kind k, es_model *base, const es_method_options *o, es_error *err)
{
    *out = NULL;
    if ((unsigned)k >= ES_N_METHODS || (k != ES_METHOD_NONE && !KIND[k].ops))
        return es_fail(err, ES_ERR_USAGE, "there is no method %s", es_method_name(k));
    es_method *m = es_calloc(1, sizeof *m);
    if (!m)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a method");
    m->kind = k;
    m->base = base;
    int rc = ops(m) ? ops(m)->open(&m->self, k, base, o, err) : ES_OK;
    if (rc) {
        free(m);
        return rc;
    }
    *out = m;
    return ES_OK;
}

void es_method_free(es_method *m)
{
    if (m && ops(m))
        ops(m)->free(m->self);
    free(m);
}

es_method_kind es_method_get_kind(const es_method *m)
{
    return m->kind;
}

int es_method_add(es_method *m, const es_experience *e, const volatile bool *cancel, es_error *err)
{
    return ops(m) && ops(m)->add ? ops(m)->add(m->self, e, cancel, err) : ES_OK;
}

int es_method_step(es_method *m, es_step_report *out, const volatile bool *cancel, es_error *err)
{
    *out = (es_step_report){.guard = "learned"};
    return ops(m) && ops(m)->step ? ops(m)->step(m->self, out, cancel, err) : ES_OK;
}

int es_method_view(es_method *m, es_variant *out, es_error *err)
{
    *out = (es_variant){.model = m->base, .lowest_layer = es_model_get_info(m->base)->n_layer - 1};
    return ops(m) ? ops(m)->view(m->self, out, err) : ES_OK;
}

int es_method_copy(es_method *m, es_variant *out, es_error *err)
{
    *out = (es_variant){.model = m->base, .lowest_layer = es_model_get_info(m->base)->n_layer - 1};
    return !ops(m) ? ES_OK : ops(m)->copy ? ops(m)->copy(m->self, out, err) : ops(m)->view(m->self, out, err);
}

bool es_method_keeps_parts(es_method_kind k)
{
    return (unsigned)k < ES_N_METHODS && KIND[k].ops && KIND[k].ops->without;
}

int es_method_without(es_method *m, const int *experience, int n, es_undo how, es_variant *out, const volatile bool *cancel, es_error *err)
{
    *out = (es_variant){.model = m->base, .lowest_layer = es_model_get_info(m->base)->n_layer - 1};
    if (!ops(m) || !ops(m)->without)
        return es_fail(err, ES_ERR_USAGE, "%s keeps no part of each experience: learn again without them", es_method_name(m->kind));
    return ops(m)->without(m->self, experience, n, how, out, cancel, err);
}

void es_variant_clear(es_variant *v)
{
    if (v->release)
        v->release(v->owned);
    *v = (es_variant){0};
}

static bool is_system(const es_message *message, int n)
{
    return n > 0 && message->role && !strcmp(message->role, "system");
}

int es_variant_conversation(const es_variant *v, const es_message *message, int n, es_message **out, int *n_out, es_error *err)
{
    bool ours = is_system(v->prefix, v->n_prefix), theirs = is_system(message, n);
    size_t head = ((size_t)v->n_prefix + (size_t)n + 1) * sizeof **out, a = theirs ? strlen(message->content) : 0;
    size_t b = ours ? strlen(v->prefix->content) : 0;
    char *block = es_calloc(1, head + a + b + 3);
    if (!block)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a conversation of %d messages", n);
    es_message *m = *out = (es_message *)(void *)block;
    int k = 0;
    if (ours && theirs) {
        char *text = block + head;
        memcpy(text, message->content, a);
        memcpy(text + a, "\n\n", 2);
        memcpy(text + a + 2, v->prefix->content, b);
        m[k++] = (es_message){"system", text};
    } else if (ours || theirs) {
        m[k++] = ours ? *v->prefix : *message;
    }
    for (int i = ours; i < v->n_prefix; i++)
        m[k++] = v->prefix[i];
    for (int i = theirs; i < n; i++)
        m[k++] = message[i];
    *n_out = k;
    return ES_OK;
}

uint64_t es_method_parameters(const es_method *m)
{
    return ops(m) && ops(m)->parameters ? ops(m)->parameters(m->self) : 0;
}

const char *es_method_note(const es_method *m)
{
    return ops(m) && ops(m)->note ? ops(m)->note(m->self) : "";
}

const es_decision *es_method_decision(const es_method *m, int experience)
{
    return ops(m) && ops(m)->decision ? ops(m)->decision(m->self, experience) : NULL;
}

size_t es_method_bytes(const es_method *m)
{
    return ops(m) && ops(m)->bytes ? ops(m)->bytes(m->self) : 0;
}
