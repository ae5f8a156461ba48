#include "dashboard.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "atlas_file.h"
#include "vector.h"

static void offer_neuron(es_neuron *list, int *n, int cap, es_neuron x)
{
    int i = *n;
    if (i == cap && !(fabsf(x.cosine) > fabsf(list[i - 1].cosine)))
        return;
    if (i < cap)
        ++*n;
    else
        i--;
    for (; i > 0 && fabsf(x.cosine) > fabsf(list[i - 1].cosine); i--)
        list[i] = list[i - 1];
    list[i] = x;
}

int es_aligned_neurons(const es_model *m, int layer, const float *direction, int n, es_neuron *out, int *found, es_error *err)
{
    const es_model_info *info = es_model_get_info(m);
    size_t d = (size_t)info->d_model, ff = (size_t)info->d_ff;
    double length = sqrt((double)es_vector()->dot(direction, direction, d));
    float *row = es_calloc(ff, sizeof *row), *dot = es_calloc(ff, sizeof *dot), *square = es_calloc(ff, sizeof *square);
    int rc = row && dot && square ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for the neurons of a feature");
    *found = 0;
    for (int l = 0; l <= layer && l < info->n_layer && !rc; l++) {
        es_weight w = es_model_site(m, l, ES_SITE_DOWN); /* [d_model, d_ff]: a neuron is a column, so rows are added up */
        const es_type_info *type = es_type_get(w.type);
        const float *norm = es_model_post_norm(m, l);
        size_t bytes = ff / (size_t)type->block * (size_t)type->bytes;
        memset(dot, 0, ff * sizeof *dot);
        memset(square, 0, ff * sizeof *square);
        for (size_t i = 0; i < d; i++) {
            float scale = norm ? norm[i] : 1, a = direction[i] * scale, b = scale * scale;
            es_dequant(w.type, (const uint8_t *)w.data + i * bytes, row, ff);
            for (size_t k = 0; k < ff; k++) {
                dot[k] += a * row[k];
                square[k] += b * row[k] * row[k];
            }
        }
        for (size_t k = 0; k < ff; k++) {
            double size = length * sqrt((double)square[k]);
            if (size > 0)
                offer_neuron(out, found, n, (es_neuron){l, (int)k, (float)((double)dot[k] / size)});
        }
    }
    free(row);
    free(dot);
    free(square);
    return rc;
}

static int logits(es_dashboard *out, const es_model *m, const float *direction, es_pool *p, es_error *err)
{
    const es_model_info *info = es_model_get_info(m);
    const float *norm = es_model_final_norm(m);
    es_weight head = es_model_head(m);
    float *x = es_calloc((size_t)info->d_model, sizeof *x), *logit = es_calloc((size_t)info->n_vocab, sizeof *logit);
    int rc = x && logit ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for the logits of a feature");
    if (!rc) {
        for (int i = 0; i < info->d_model; i++)
            x[i] = direction[i] * norm[i];
        es_kernels_cpu()->matmul(p, &head, x, 1, logit, false, true);
        es_atlas_logits(logit, info->n_vocab, &out->logit_lo, &out->logit_hi, out->logits);
        out->has_logits = true;
    }
    free(x);
    free(logit);
    return rc;
}

int es_dashboard_make(es_dashboard *out, const es_model *m, const es_dictionary *s, const es_feature_card *card, int feature, es_pool *p, es_error *err)
{
    const es_dictionary_info *info = es_dictionary_get_info(s);
    memset(out, 0, sizeof *out);
    out->feature = feature;
    if (feature < 0 || feature >= info->n_features)
        return es_fail(err, ES_ERR_USAGE, "there is no feature %d (0 to %d)", feature, info->n_features - 1);
    out->n_neighbour = info->n_features > ES_DASHBOARD_LIST ? ES_DASHBOARD_LIST : info->n_features - 1;
    int near[ES_DASHBOARD_LIST];
    if (out->n_neighbour > 0)
        es_dictionary_neighbours(s, feature, out->n_neighbour, near, out->cosine);
    for (int i = 0; i < out->n_neighbour; i++)
        out->neighbour[i] = near[i];
    if (card && card->has_logits) {
        out->has_logits = true;
        out->logit_lo = card->logit_lo;
        out->logit_hi = card->logit_hi;
        memcpy(out->logits, card->logits, sizeof out->logits);
    }
    if (!m || !es_dictionary_has_directions(s, m))
        return ES_OK;
    float *direction = es_calloc((size_t)es_model_get_info(m)->d_model, sizeof *direction);
    if (!direction)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a dashboard");
    int rc = es_dictionary_directions(s, m, p, feature, 1, direction, err);
    if (!rc)
        rc = es_aligned_neurons(m, info->layer, direction, ES_DASHBOARD_LIST, out->neuron, &out->n_neuron, err);
    if (!rc && !out->has_logits)
        rc = logits(out, m, direction, p, err);
    free(direction);
    return rc;
}
