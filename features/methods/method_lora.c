/* Low-rank updates on every linear map, learned by gradient without a constraint (LoRA, Hu et al. 2021): the strong, plain alternative. */
#include "method_internal.h"
#include "tune.h"

#include <stdlib.h>

es_tune_options es_method_tune(const es_method_options *o, bool weights)
{
    es_tune_options t = es_tune_default(weights);
    t.rate = o->rate > 0 ? o->rate : t.rate;
    if (o->rank > 0)
        t.alpha = t.rank = o->rank;
    t.beta = o->beta > 0 ? o->beta : t.beta;
    t.anchor = o->anchor + (o->replay > 0 && o->replay < 1 ? o->replay / (1 - o->replay) : 0);
    t.anchor_text = o->anchor_text;
    t.n_anchor = o->n_anchor;
    t.max_prompt = o->max_prompt > 0 ? o->max_prompt : t.max_prompt;
    t.max_reply = o->max_reply > 0 ? o->max_reply : t.max_reply;
    t.memory = o->memory;
    t.threads = o->threads;
    t.seed = o->seed;
    return t;
}

typedef struct lora {
    es_tune *tune; /* first: es_tuned_* */
    int batch;
} lora;

static void lora_free(void *self)
{
    lora *m = self;
    es_tune_free(m->tune);
    free(m);
}

static int lora_open(void **self, es_method_kind k, es_model *base, const es_method_options *o, es_error *err)
{
    (void)k;
    lora *m = es_calloc(1, sizeof *m);
    if (!m)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a method");
    m->batch = o->batch;
    es_tune_options t = es_method_tune(o, false);
    int rc = es_tune_open(&m->tune, base, NULL, &t, err);
    if (rc)
        free(m);
    else
        *self = m;
    return rc;
}

static int lora_add(void *self, const es_experience *e, const volatile bool *cancel, es_error *err)
{
    return es_tune_add(((lora *)self)->tune, e, cancel, err);
}

static int lora_step(void *self, es_step_report *out, const volatile bool *cancel, es_error *err)
{
    lora *m = self;
    return es_tune_step(m->tune, m->batch, out, cancel, err);
}

/* ---- what lora, self and distil show: their tune, which each of them begins with -------------------------------------------------- */

static es_tune *tune_of(const void *self)
{
    return *(es_tune *const *)self;
}

int es_tuned_view(void *self, es_variant *out, es_error *err)
{
    return es_tune_view(tune_of(self), out, err);
}

int es_tuned_copy(void *self, es_variant *out, es_error *err)
{
    return es_tune_copy(tune_of(self), out, err);
}

uint64_t es_tuned_parameters(const void *self)
{
    return es_tune_parameters(tune_of(self));
}

size_t es_tuned_bytes(const void *self)
{
    return es_tune_bytes(tune_of(self));
}

const es_method_ops es_method_lora_ops = {
    .open = lora_open, .free = lora_free, .add = lora_add, .step = lora_step, .view = es_tuned_view, .copy = es_tuned_copy, .parameters = es_tuned_parameters,
    .bytes = es_tuned_bytes,
};
