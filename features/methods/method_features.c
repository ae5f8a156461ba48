/* The constrained adapter and its ablations (random basis, no constraint, bias) as a method. The learner is opened at the first step:
 * a basis that nobody gave is chosen then, by the gradient of the experiences that there are. */
#include "method_internal.h"

#include <stdlib.h>

typedef struct features_method {
    es_method_kind kind;
    es_model *base;
    es_method_options o;
    es_experiences seen;
    int taken;               /* of seen, by the learner */
    es_basis basis;
    es_adapter *adapter;
    es_learner *learner;
} features_method;

static void features_free(void *self)
{
    features_method *m = self;
    es_learner_free(m->learner);
    es_adapter_free(m->adapter);
    es_basis_free(&m->basis);
    es_experiences_free(&m->seen);
    free(m);
}

static int features_open(void **self, es_method_kind k, es_model *base, const es_method_options *o, es_error *err)
{
    if (!o->s && k != ES_METHOD_FREE)
        return es_fail(err, ES_ERR_USAGE, "%s needs a dictionary", es_method_name(k));
    if (k == ES_METHOD_FREE && o->form != ES_FORM_LORA)
        return es_fail(err, ES_ERR_USAGE, "%s has the form lora only", es_method_name(k));
    features_method *m = es_calloc(1, sizeof *m);
    if (!m)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a method");
    m->kind = k;
    m->base = base;
    m->o = *o;
    *self = m;
    return ES_OK;
}

static int features_add(void *self, const es_experience *e, const volatile bool *cancel, es_error *err)
{
    features_method *m = self;
    (void)cancel;
    return es_experience_copy(&m->seen, e, err);
}

static int choose_basis(features_method *m, es_error *err)
{
    if (m->kind == ES_METHOD_RANDOM)
        return es_basis_random(&m->basis, m->base, m->o.s, m->o.a, m->o.basis ? m->o.basis->n : m->o.basis_size, m->o.seed * 77, err);
    float *gradient = es_calloc((size_t)m->seen.n, (size_t)es_model_get_info(m->base)->d_model * sizeof *gradient);
    int rc = gradient ? es_attribute(m->base, m->o.s, &m->seen, m->o.threads, gradient, NULL, err) : es_fail(err, ES_ERR_MEMORY, "no memory for gradients");
    rc = rc ? rc : es_basis_suggest(&m->basis, m->base, m->o.s, m->o.a, gradient, m->seen.n, m->o.basis_size, false, NULL, err);
    free(gradient);
    return rc;
}

static int set_inputs(features_method *m, const volatile bool *cancel, es_error *err)
{
    es_inputs *made = NULL;
    int rc = m->o.inputs ? ES_OK : es_inputs_make(&made, m->base, m->o.s, es_adapter_get_options(m->adapter)->rank, NULL, 0, m->o.seed, m->o.threads, cancel, err);
    rc = rc ? rc : es_adapter_set_inputs(m->adapter, made ? made : m->o.inputs, err);
    es_inputs_free(made);
    return rc;
}

static int start(features_method *m, const volatile bool *cancel, es_error *err)
{
    es_adapter_options ao = es_adapter_default(m->o.s, m->base);
    ao.form = m->o.form;
    ao.constrained = m->kind != ES_METHOD_FREE;
    ao.rank = m->o.rank > 0 ? m->o.rank : ao.rank;
    ao.seed = m->o.seed;
    ao.fixed_inputs = m->o.white && ao.form == ES_FORM_LORA;
    es_learner_options lo = es_learner_default(ao.form);
    lo.learning_rate = m->o.rate;
    lo.kappa = lo.rho = lo.hold_out = lo.enough = 0; /* guards and the gate are the caller's, who sees every method alike */
    lo.batch = m->o.batch;
    if (ao.fixed_inputs)
        lo.optimiser = ES_OPTIMISER_METRIC;
    lo.beta = m->o.beta > 0 ? m->o.beta : lo.beta;
    lo.max_prompt = m->o.max_prompt > 0 ? m->o.max_prompt : lo.max_prompt;
    lo.max_reply = m->o.max_reply > 0 ? m->o.max_reply : lo.max_reply;
    lo.threads = m->o.threads;
    lo.seed = m->o.seed;
    lo.weighting = m->o.weighting;
    lo.shrink = m->o.shrink && ao.fixed_inputs;
    lo.replay = m->o.replay;
    lo.replay_text = m->o.replay_text;
    lo.n_replay = m->o.n_replay;
    const es_basis *basis = m->kind == ES_METHOD_RANDOM ? NULL : m->o.basis;
    int rc = ES_OK;
    if (ao.constrained && !basis) {
        rc = choose_basis(m, err);
        basis = &m->basis;
    }
    rc = rc ? rc : es_adapter_new(&m->adapter, m->base, m->o.s, ao.constrained ? basis : NULL, &ao, err);
    rc = rc ? rc : es_learner_open(&m->learner, m->base, m->o.s, m->adapter, &lo, err);
    if (!rc && ao.fixed_inputs && m->o.inputs && m->o.natural)
        rc = es_learner_natural(m->learner, m->o.inputs, err);
    if (!rc && ao.fixed_inputs && m->o.n_direction)
        rc = es_learner_prior(m->learner, m->o.direction, m->o.n_direction, m->o.prior > 0 ? m->o.prior : 10, m->o.one_sided, err);
    else if (!rc && ao.fixed_inputs)
        rc = set_inputs(m, cancel, err);
    if (!rc && ao.fixed_inputs && m->o.inputs && m->o.spare)
        rc = es_learner_spare(m->learner, m->o.inputs, err);
    if (rc) { /* the next step begins again */
        es_learner_free(m->learner);
        es_adapter_free(m->adapter);
        es_basis_free(&m->basis);
        m->learner = NULL;
        m->adapter = NULL;
        m->basis = (es_basis){0};
    }
    return rc;
}

static int features_step(void *self, es_step_report *out, const volatile bool *cancel, es_error *err)
{
    features_method *m = self;
    if (!m->seen.n)
        return es_fail(err, ES_ERR_USAGE, "there is nothing to learn from");
    int rc = m->learner ? ES_OK : start(m, cancel, err);
    for (; !rc && m->taken < m->seen.n; m->taken++)
        if ((rc = es_learner_add(m->learner, &m->seen.item[m->taken], cancel, err)))
            break;
    return rc ? rc : es_learner_step(m->learner, out, cancel, err);
}

static int features_view(void *self, es_variant *out, es_error *err)
{
    features_method *m = self;
    if (!m->adapter)
        return ES_OK;
    out->lowest_layer = es_adapter_lowest_layer(m->adapter);
    return es_adapter_patch(m->adapter, 1, &out->patch, err);
}

static void release_adapter(void *owned)
{
    es_adapter_free(owned);
}

/* Takes a over. */
static int own(es_adapter *a, es_variant *out, es_error *err)
{
    out->owned = a;
    out->release = release_adapter;
    out->lowest_layer = es_adapter_lowest_layer(a);
    int rc = es_adapter_patch(a, 1, &out->patch, err);
    if (rc)
        es_variant_clear(out);
    return rc;
}

static int features_copy(void *self, es_variant *out, es_error *err)
{
    features_method *m = self;
    es_adapter *a = NULL;
    int rc = m->adapter ? es_adapter_copy(&a, m->adapter, err) : ES_OK;
    return rc || !a ? rc : own(a, out, err);
}

static int features_without(void *self, const int *experience, int n, es_undo how, es_variant *out, const volatile bool *cancel, es_error *err)
{
    features_method *m = self;
    es_adapter *a = NULL;
    int rc = m->learner ? es_learner_without(m->learner, experience, n, how, &a, cancel, err) : ES_OK;
    return rc || !a ? rc : own(a, out, err);
}

static uint64_t features_parameters(const void *self)
{
    const features_method *m = self;
    return m->adapter ? es_adapter_parameters(m->adapter) : 0;
}

static size_t features_bytes(const void *self)
{
    const features_method *m = self;
    return m->learner ? es_learner_bytes(m->learner) : 0;
}

static const es_decision *features_decision(const void *self, int experience)
{
    const features_method *m = self;
    return m->o.weighting && m->learner ? es_learner_decision(m->learner, experience) : NULL;
}

int es_direction_learn(es_adapter **out, es_method_kind k, es_model *base, const es_method_options *o, const es_experiences *e, const volatile bool *cancel,
                       es_error *err)
{
    es_method_options plain = *o;
    void *self = NULL;
    es_step_report report;
    *out = NULL;
    plain.white = true;
    plain.weighting = plain.shrink = false;
    plain.n_direction = plain.batch = 0;
    plain.spare = false;
    if (k != ES_METHOD_FEATURES && k != ES_METHOD_RANDOM && k != ES_METHOD_FREE)
        return es_fail(err, ES_ERR_USAGE, "%s learns no directions", es_method_name(k));
    int rc = features_open(&self, k, base, &plain, err);
    for (int i = 0; !rc && i < e->n; i++)
        rc = features_add(self, &e->item[i], cancel, err);
    rc = rc ? rc : features_step(self, &report, cancel, err);
    if (!rc) {
        features_method *m = self;
        *out = m->adapter;
        m->adapter = NULL;
    }
    if (self)
        features_free(self);
    return rc;
}

int es_experiences_weigh(es_experiences *e, es_model *base, const es_method_options *o, es_decision *out, const volatile bool *cancel, es_error *err)
{
    es_method_options weigh = *o;
    void *self = NULL;
    es_step_report report;
    weigh.white = weigh.weighting = true;
    weigh.batch = 0;
    int rc = features_open(&self, ES_METHOD_FEATURES, base, &weigh, err);
    for (int i = 0; !rc && i < e->n; i++)
        rc = features_add(self, &e->item[i], cancel, err);
    rc = rc ? rc : features_step(self, &report, cancel, err);
    for (int i = 0; !rc && i < e->n; i++) {
        const es_decision *d = es_learner_decision(((features_method *)self)->learner, i);
        e->item[i].weight *= d->weight;
        if (out)
            out[i] = *d;
    }
    if (self)
        features_free(self);
    return rc;
}

const es_method_ops es_method_features_ops = {
    .open = features_open, .free = features_free, .add = features_add, .step = features_step, .view = features_view, .copy = features_copy, .without = features_without,
    .parameters = features_parameters, .bytes = features_bytes, .decision = features_decision,
};
