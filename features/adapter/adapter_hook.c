/* adapter: the forms that act on the residual after each dictionary's layer by what its features say of it. For each token but a sequence's
 * first, whose residual is out of proportion and which dictionaries are not trained on:
 *     gain  h' = h + D (s * f)        f_i = u_i [u_i > max(0, threshold_i)]: the activations of the chosen features
 *     map   h' = h + D (c + M u)      u: the same before the threshold
 * u = E h + b, E the chosen features' encoder rows, b with what is taken off the encoder's input folded in; of a vector E is the vector, b 0. With p = D^T dh':
 *     gain  ds = f * p                dh = dh' + E^T (1[f > 0] * s * p)
 *     map   dc = p, dM = p u^T        dh = dh' + E^T M^T p
 * A row at a time, so that a token's result does not depend on what it was fed with. */
#include "adapter.h"
#include "vector.h"

#include <string.h>

int es_adapter_encoder(es_adapter *a, const es_adapter_part *p, const es_dictionary *s, es_error *err)
{
    const es_dictionary_info *info = es_dictionary_get_info(s);
    const char *norm = info->normalize_activations;
    if (!strcmp(norm, "constant_norm_rescale") || !strcmp(norm, "layer_norm"))
        return es_fail(err, ES_ERR_USAGE, "adapter: the form %s reads the residual as it is, but dictionary %s normalises each token (%s)",
                       es_form_name(a->o.form), info->name, norm);
    if (a->o.form == ES_FORM_GAIN && info->architecture == ES_SAE_TOPK)
        return es_fail(err, ES_ERR_USAGE, "adapter: the form gain needs features that fire each by itself; in the topk dictionary %s all compete",
                       info->name);
    const float *off = es_dictionary_decoder_bias(s);
    for (int k = 0; k < p->basis.n; k++) {
        int i = p->first + k;
        float *row = a->enc + (size_t)i * (size_t)a->d, threshold;
        double shift = 0;
        const es_basis_vector *v = es_basis_vector_of(&p->basis, p->basis.feature[k]);
        if (v && a->o.form == ES_FORM_GAIN)
            return es_fail(err, ES_ERR_USAGE, "adapter: the form gain scales what fires; the vector %s is a direction without an encoder: bias, map and lora take it", v->name);
        if (v) { /* its width was checked with D */
            memcpy(row, v->unit, (size_t)a->d * sizeof *row);
            a->enc_bias[i] = a->threshold[i] = 0;
            continue;
        }
        es_dictionary_encoder(s, p->basis.feature[k], row, &a->enc_bias[i], &threshold);
        a->threshold[i] = threshold > 0 ? threshold : 0;
        for (int j = 0; info->apply_b_dec_to_input && j < a->d; j++)
            shift += (double)off[j] * row[j];
        a->enc_bias[i] -= (float)shift;
    }
    return ES_OK;
}

void es_adapter_input(const es_adapter *a, const es_adapter_place *p, const float *h, float *out)
{
    for (int k = 0; k < p->K; k++) {
        int i = p->first + k;
        float u = es_vector()->dot(a->enc + (size_t)i * (size_t)a->d, h, (size_t)a->d) + a->enc_bias[i];
        out[k] = a->o.form == ES_FORM_MAP || u > a->threshold[i] ? u : 0;
    }
}

/* map: M of the place; NULL: another form. */
static float *map_of(const es_adapter *a, const es_adapter_place *p, float *param)
{
    return a->o.form == ES_FORM_MAP ? param + (size_t)a->K + p->square : NULL;
}

static void hook_forward(void *user, float *h, const int *pos, int T, int d)
{
    const es_adapter_place *at = user;
    es_adapter *a = at->owner;
    const es_vector_ops *v = es_vector();
    size_t K = (size_t)at->K, n = (size_t)d;
    const float *D = es_adapter_rows(a, at->first), *param = a->param + at->first, *map = map_of(a, at, a->param);
    for (int t = 0; t < T; t++) {
        if (pos[t] == 0)
            continue;
        float *row = h + (size_t)t * n;
        es_adapter_input(a, at, row, a->input);
        for (size_t i = 0; i < K; i++) {
            if (a->o.form == ES_FORM_GAIN)
                a->through[i] = param[i] * a->input[i];
            else
                a->through[i] = param[i] + v->dot(map + i * K, a->input, K);
        }
        for (size_t i = 0; i < K; i++)
            if (a->through[i] != 0) /* what does not fire leaves every bit as it was */
                v->axpy(row, a->scale * a->through[i], D + i * n, n);
    }
}

static void hook_backward(void *user, const float *h_in, float *dh, const int *pos, int T, int d)
{
    const es_adapter_place *at = user;
    es_adapter *a = at->owner;
    const es_vector_ops *v = es_vector();
    const es_hook_sink *sink = &a->sink;
    size_t K = (size_t)at->K, n = (size_t)d;
    const float *D = es_adapter_rows(a, at->first), *enc = a->enc + (size_t)at->first * n, *param = a->param + at->first, *map = map_of(a, at, a->param);
    for (int t = 0, s = 0; t < T; t++) {
        while (sink->grad && t >= sink->start[s + 1])
            s++;
        if (pos[t] == 0)
            continue;
        float *row = dh + (size_t)t * n, *slot = sink->grad ? sink->grad + (size_t)sink->slot[s] * a->n_param : NULL, *p = a->through;
        float *grad = slot ? slot + at->first : NULL;
        es_adapter_input(a, at, h_in + (size_t)t * n, a->input);
        for (size_t i = 0; i < K; i++)
            p[i] = a->scale * v->dot(D + i * n, row, n);
        if (a->o.form == ES_FORM_GAIN) {
            for (size_t i = 0; i < K; i++) {
                if (a->input[i] == 0)
                    continue;
                if (grad)
                    grad[i] += a->input[i] * p[i];
                v->axpy(row, param[i] * p[i], enc + i * n, n);
            }
            continue;
        }
        for (size_t i = 0; grad && i < K; i++) {
            grad[i] += p[i];
            v->axpy(map_of(a, at, slot) + i * K, p[i], a->input, K);
        }
        memset(a->input, 0, K * sizeof *a->input); /* from here on: M^T p */
        for (size_t i = 0; i < K; i++)
            v->axpy(a->input, p[i], map + i * K, K);
        for (size_t i = 0; i < K; i++)
            v->axpy(row, a->input[i], enc + i * n, n);
    }
}

const es_hook *es_adapter_hook(es_adapter *a, float scale)
{
    a->scale = scale;
    for (int i = 0; i < a->n_place; i++) {
        const es_adapter_place *at = &a->place[i];
        a->place[i].owner = a;
        a->numbers[i] = (es_hook_numbers){.K = at->K, .enc = a->enc + (size_t)at->first * (size_t)a->d, .dec = es_adapter_rows(a, at->first), .bias = a->enc_bias + at->first,
                                          .threshold = a->threshold + at->first, .coef = a->param + at->first, .map = map_of(a, at, a->param), .scale = scale,
                                          .sink = &a->sink, .coef_at = (size_t)at->first, .map_at = (size_t)a->K + at->square};
        a->hook[i] = (es_hook){.layer = at->layer, .forward = hook_forward, .backward = hook_backward, .user = &a->place[i], .numbers = &a->numbers[i]};
    }
    return a->hook;
}
