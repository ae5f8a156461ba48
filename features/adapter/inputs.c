/* inputs: fixed input projections as a thing of their own: made white once for a model and a band of layers, kept beside the dictionary, given
 * to every adapter that wants them. */
#include "everyday.h"
#include "learner_internal.h"
#include "safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const FORMAT = "espalier-inputs";

struct es_inputs {
    char model_hash[65], text_hash[65]; /* of the file of texts that they are white on; empty: not said */
    int rank, n;
    struct entry { int layer; es_site site; int n_in; size_t at; } *entry; /* [n] */
    float *a;                                                              /* at entry.at: [rank, n_in] */
    int d;
    float *neutral[2]; /* [n][d, rank] the gradient of neutral documents' and replies' mean loss by B, at B = 0 */
    float *fisher;     /* [n / 2][d, d] of each layer: es_learner_fisher */
};

void es_inputs_free(es_inputs *x)
{
    if (!x)
        return;
    free(x->entry);
    free(x->a);
    free(x->neutral[0]);
    free(x->neutral[1]);
    free(x->fisher);
    free(x);
}

const float *es_inputs_fisher(const es_inputs *x, int layer)
{
    int at = x->n ? layer - x->entry[0].layer : -1;
    return at >= 0 && at < x->n / 2 ? x->fisher + (size_t)at * (size_t)x->d * (size_t)x->d : NULL;
}

int es_inputs_rank(const es_inputs *x)
{
    return x->rank;
}

const char *es_inputs_texts(const es_inputs *x)
{
    return x->text_hash;
}

void es_inputs_set_texts(es_inputs *x, const char hash[65])
{
    snprintf(x->text_hash, sizeof x->text_hash, "%.64s", hash);
}

static int new_inputs(es_inputs **out, const es_model *m, int first, int last, int rank, es_error *err)
{
    static const es_site SITE[] = {ES_SITE_O, ES_SITE_DOWN};
    size_t floats = 0;
    es_inputs *x = *out = es_calloc(1, sizeof *x);
    if (x)
        x->entry = es_calloc(2 * (size_t)(last - first + 1), sizeof *x->entry);
    for (int layer = first; x && x->entry && layer <= last; layer++)
        for (int s = 0; s < 2; s++) {
            int n_in = es_site_n_in(m, SITE[s]);
            x->entry[x->n++] = (struct entry){layer, SITE[s], n_in, floats};
            floats += (size_t)rank * (size_t)n_in;
        }
    if (x) {
        x->rank = rank;
        x->d = es_model_get_info(m)->d_model;
        x->a = es_calloc(floats + 1, sizeof *x->a);
        x->fisher = es_calloc((size_t)(last - first + 1) * (size_t)x->d * (size_t)x->d + 1, sizeof *x->fisher);
        for (int kind = 0; kind < 2; kind++)
            x->neutral[kind] = es_calloc((size_t)x->n * (size_t)x->d * (size_t)rank + 1, sizeof **x->neutral);
    }
    if (!x || !x->entry || !x->a || !x->neutral[0] || !x->neutral[1] || !x->fisher) {
        es_inputs_free(x);
        *out = NULL;
        return es_fail(err, ES_ERR_MEMORY, "no memory for inputs of rank %d", rank);
    }
    return ES_OK;
}

static const es_adapter_entry *entry_of(const es_adapter *a, int layer, es_site site)
{
    for (int i = 0; i < a->n_entry; i++)
        if (a->entry[i].layer == layer && a->entry[i].site == site)
            return &a->entry[i];
    return NULL;
}

static int copy_out(es_inputs **out, const es_model *m, const es_adapter *a, es_error *err)
{
    int rc = new_inputs(out, m, a->o.first_layer, a->o.last_layer, a->o.rank, err);
    for (int i = 0; !rc && i < (*out)->n; i++) {
        const struct entry *e = &(*out)->entry[i];
        const es_adapter_entry *from = entry_of(a, e->layer, e->site);
        memcpy((*out)->a + e->at, a->param + from->a, (size_t)a->o.rank * (size_t)e->n_in * sizeof(float));
    }
    if (!rc)
        memcpy((*out)->model_hash, a->model_hash, sizeof (*out)->model_hash);
    return rc;
}

enum { BUILTIN_DOCUMENTS = 64, BUILTIN = BUILTIN_DOCUMENTS + ES_EVERYDAY_ANSWERED };

/* The program's own neutral text, for those who bring none: how many. text, ask: [BUILTIN]. */
static int builtin(es_neutral_text *text, es_message *ask)
{
    int n;
    const char *const *document = es_anchor_texts(&n);
    n = n < BUILTIN_DOCUMENTS ? n : BUILTIN_DOCUMENTS;
    for (int i = 0; i < n; i++)
        text[i] = (es_neutral_text){.text = document[i]};
    for (int i = 0; i < ES_EVERYDAY_ANSWERED; i++) {
        ask[i] = (es_message){"user", es_everyday_item[i].question};
        text[n + i] = (es_neutral_text){es_everyday_item[i].answer, &ask[i], 1, false};
    }
    return n + ES_EVERYDAY_ANSWERED;
}

int es_inputs_make(es_inputs **out, es_model *m, const es_dictionary *s, int rank, const es_neutral_text *text, int n, uint64_t seed, int threads,
                   const volatile bool *cancel, es_error *err)
{
    es_adapter_options ao = es_adapter_default(s, m);
    es_learner_options lo = es_learner_default(ES_FORM_LORA);
    es_adapter *a = NULL;
    es_learner *l = NULL;
    es_neutral_text own[BUILTIN];
    es_message ask[BUILTIN];
    *out = NULL;
    if (!text) {
        n = builtin(own, ask);
        text = own;
    }
    ao.rank = rank;
    ao.constrained = false;
    ao.fixed_inputs = true;
    ao.seed = seed;
    lo.optimiser = ES_OPTIMISER_METRIC;
    lo.kappa = lo.rho = 0;
    lo.threads = threads;
    int rc = es_adapter_new(&a, m, NULL, NULL, &ao, err);
    rc = rc ? rc : es_learner_open(&l, m, NULL, a, &lo, err);
    rc = rc ? rc : es_learner_whiten(l, text, n, cancel, err);
    rc = rc ? rc : copy_out(out, m, a, err);
    for (int kind = 0; !rc && kind < 2; kind++) /* the unconstrained adapter's B lie one after another, as ours do */
        rc = es_learner_neutral_gradient(l, text, n, kind, (*out)->neutral[kind], cancel, err);
    rc = rc ? rc : es_learner_fisher(l, text, n, (*out)->fisher, cancel, err);
    if (rc) {
        es_inputs_free(*out);
        *out = NULL;
    }
    es_learner_free(l);
    es_adapter_free(a);
    return rc;
}

static int find(const es_inputs *x, const es_adapter_entry *e)
{
    for (int j = 0; j < x->n; j++)
        if (x->entry[j].layer == e->layer && x->entry[j].site == e->site && x->entry[j].n_in == e->n_in)
            return j;
    return -1;
}

int es_adapter_set_inputs(es_adapter *a, const es_inputs *x, es_error *err)
{
    if (!a->o.fixed_inputs || a->steps)
        return es_fail(err, ES_ERR_USAGE, "inputs are for an adapter with fixed inputs that has not learned yet");
    if (strcmp(a->model_hash, x->model_hash))
        return es_fail(err, ES_ERR_MISMATCH, "the inputs were made for the model %.12s, this one is %.12s", x->model_hash, a->model_hash);
    if (a->o.rank > x->rank)
        return es_fail(err, ES_ERR_MISMATCH, "the inputs are of rank %d, %d are wanted", x->rank, a->o.rank);
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < a->n_entry; i++) {
            const es_adapter_entry *to = &a->entry[i];
            int from = find(x, to);
            if (from < 0)
                return es_fail(err, ES_ERR_MISMATCH, "the inputs have nothing for %s of layer %d", es_site_name(to->site), to->layer);
            if (pass) /* the first rows of a whitened projection are one themselves */
                memcpy(a->param + to->a, x->a + x->entry[from].at, (size_t)a->o.rank * (size_t)to->n_in * sizeof *a->param);
        }
    es_adapter_refresh(a);
    return ES_OK;
}

int es_learner_spare(es_learner *l, const es_inputs *x, es_error *err)
{
    es_adapter *a = l->a;
    size_t n = a->n_learned, rank = (size_t)a->o.rank, d = (size_t)a->d;
    if (es_learner_is_adam(l) || a->o.form != ES_FORM_LORA || l->shield[0])
        return es_fail(err, ES_ERR_USAGE, "learner: neutral text is spared in the metric step of form lora");
    int rc = ES_OK;
    float *db = es_calloc(d * rank, sizeof *db);
    for (int kind = 0; !rc && kind < 2; kind++) {
        l->shield[kind] = es_calloc(n, sizeof **l->shield);
        l->shield_step[kind] = es_calloc(n, sizeof **l->shield);
        if (!db || !l->shield[kind] || !l->shield_step[kind])
            rc = es_fail(err, ES_ERR_MEMORY, "no memory for neutral gradients");
        for (int i = 0; !rc && i < a->n_entry; i++) {
            const es_adapter_entry *e = &a->entry[i];
            int from = find(x, e);
            bool same = from >= 0 && a->o.rank <= x->rank && !memcmp(a->param + e->a, x->a + x->entry[from].at, rank * (size_t)e->n_in * sizeof *x->a);
            if (from >= 0 && a->o.rank <= x->rank && !same) {
                rc = es_fail(err, ES_ERR_MISMATCH, "these neutral gradients were taken with other inputs than the adapter's");
                break;
            }
            if (!same) {
                rc = es_fail(err, ES_ERR_MISMATCH, "the inputs have nothing for %s of layer %d at rank %zu", es_site_name(e->site), e->layer, rank);
                break;
            }
            const float *all = x->neutral[kind] + (size_t)from * d * (size_t)x->rank;
            float *to = l->shield[kind] + e->b;
            for (size_t j = 0; j < d; j++)
                memcpy(db + j * rank, all + j * (size_t)x->rank, rank * sizeof *db);
            if (a->o.constrained) /* B = D^T M */
                l->k->gemm(a->pool, false, false, e->rows, a->o.rank, a->d, 1, es_adapter_rows(a, e->first), a->d, db, a->o.rank, 0, to, a->o.rank);
            else
                memcpy(to, db, d * rank * sizeof *to);
        }
    }
    free(db);
    for (int kind = 0; rc && kind < 2; kind++) {
        free(l->shield[kind]);
        free(l->shield_step[kind]);
        l->shield[kind] = l->shield_step[kind] = NULL;
    }
    if (!rc)
        es_learner_shield_open(l);
    return rc;
}

/* ---- files ------------------------------------------------------------------------------------------------------------------- */

static const char *const WHAT[] = {"neutral_documents", "neutral_replies", "a"}; /* the gradients by B [d, rank] first, A [rank, n_in] */

static void entry_name(const struct entry *e, int what, char *out, size_t size)
{
    snprintf(out, size, "layers.%d.%s.%s", e->layer, es_site_name(e->site), WHAT[what]);
}

static void fisher_name(const es_inputs *x, int at, char *out, size_t size)
{
    snprintf(out, size, "layers.%d.fisher", x->entry[2 * at].layer);
}

int es_inputs_save(const es_inputs *x, const char *path, es_error *err)
{
    es_tensor_spec *t = es_calloc(4 * (size_t)x->n + 1, sizeof *t);
    char(*name)[64] = es_calloc(4 * (size_t)x->n + 1, sizeof *name);
    size_t n = 0, each = (size_t)x->d * (size_t)x->rank;
    json_t *meta = json_pack("{s:s,s:s,s:s,s:s}", "format", FORMAT, "version", "1", "model_hash", x->model_hash, "text_hash", x->text_hash);
    int rc = t && name && meta ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory to write inputs");
    for (int what = 0; !rc && what < 3; what++)
        for (int i = 0; i < x->n; i++, n++) {
            bool a = what == 2;
            entry_name(&x->entry[i], what, name[n], sizeof name[n]);
            t[n] = (es_tensor_spec){.name = name[n], .type = a ? ES_TENSOR_F16 : ES_TENSOR_BF16, .n_dims = 2,
                                    .data = a ? x->a + x->entry[i].at : x->neutral[what] + (size_t)i * each};
            t[n].dim[0] = (size_t)(a ? x->rank : x->d);
            t[n].dim[1] = (size_t)(a ? x->entry[i].n_in : x->rank);
        }
    for (int i = 0; !rc && i < x->n / 2; i++, n++) {
        size_t d = (size_t)x->d;
        fisher_name(x, i, name[n], sizeof name[n]);
        t[n] = (es_tensor_spec){.name = name[n], .type = ES_TENSOR_BF16, .n_dims = 2, .dim = {d, d}, .data = x->fisher + (size_t)i * d * d};
    }
    rc = rc ? rc : es_safetensors_write_file(path, t, n, meta, err);
    json_decref(meta);
    free(name);
    free(t);
    return rc;
}

static int all_finite(const float *x, size_t n, const char *path, const char *name, es_error *err)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return es_fail(err, ES_ERR_FORMAT, "%s: %s holds a number that is not finite", path, name);
    return ES_OK;
}

int es_inputs_load(es_inputs **out, es_model *m, const char *path, es_error *err)
{
    es_safetensors *f = NULL;
    char hash[65], name[64];
    int first = -1, last = -1, rank = 0;
    *out = NULL;
    int rc = es_safetensors_open(&f, path, err);
    rc = rc ? rc : es_model_hash(m, hash, err);
    const char *format = rc ? NULL : es_safetensors_metadata(f, "format"), *made_for = rc ? NULL : es_safetensors_metadata(f, "model_hash");
    const char *texts = rc ? NULL : es_safetensors_metadata(f, "text_hash");
    if (!rc && (!format || strcmp(format, FORMAT)))
        rc = es_fail(err, ES_ERR_FORMAT, "%s holds no inputs: its metadata lacks \"format\": \"%s\"", path, FORMAT);
    if (!rc && (!made_for || strcmp(made_for, hash)))
        rc = es_fail(err, ES_ERR_MISMATCH, "%s was made for the model %.64s, this one is %s", path, made_for ? made_for : "?", hash);
    for (int i = 0; !rc && i < es_model_get_info(m)->n_layer; i++) {
        struct entry e = {.layer = i, .site = ES_SITE_O};
        entry_name(&e, 2, name, sizeof name);
        const es_tensor *t = es_safetensors_find(f, name);
        if (!t)
            continue;
        if (t->n_dims != 2 || t->dim[0] < 1 || t->dim[0] > 1024 || (last >= 0 && last != i - 1))
            rc = es_fail(err, ES_ERR_FORMAT, "%s: %s is no projection, or a layer below it is missing", path, name);
        first = first < 0 ? i : first;
        last = i;
        rank = rc ? 0 : (int)t->dim[0];
    }
    if (!rc && first < 0)
        rc = es_fail(err, ES_ERR_FORMAT, "%s holds no projections", path);
    rc = rc ? rc : new_inputs(out, m, first, last, rank, err);
    for (int i = 0; !rc && i < 3 * (*out)->n; i++) {
        const struct entry *e = &(*out)->entry[i / 3];
        bool a = i % 3 == 2;
        size_t dim[2] = {(size_t)(a ? rank : (*out)->d), (size_t)(a ? e->n_in : rank)};
        float *to = a ? (*out)->a + e->at : (*out)->neutral[i % 3] + (size_t)(i / 3) * dim[0] * dim[1];
        entry_name(e, i % 3, name, sizeof name);
        rc = es_safetensors_f32(f, name, 2, dim, to, err);
        rc = rc ? rc : all_finite(to, dim[0] * dim[1], path, name, err);
    }
    for (int i = 0; !rc && i < (*out)->n / 2; i++) {
        size_t dim[2] = {(size_t)(*out)->d, (size_t)(*out)->d};
        float *to = (*out)->fisher + (size_t)i * dim[0] * dim[1];
        fisher_name(*out, i, name, sizeof name);
        rc = es_safetensors_f32(f, name, 2, dim, to, err);
        rc = rc ? rc : all_finite(to, dim[0] * dim[1], path, name, err);
    }
    if (rc) {
        es_inputs_free(*out);
        *out = NULL;
    } else {
        memcpy((*out)->model_hash, hash, sizeof hash);
        es_inputs_set_texts(*out, texts ? texts : "");
    }
    es_safetensors_free(f);
    return rc;
}
