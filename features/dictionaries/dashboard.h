/* What a dashboard shows beside the card of the atlas: things that need the whole dictionary, or the model's weights. As SAEDashboard has them. */
#ifndef ES_DASHBOARD_H
#define ES_DASHBOARD_H

#include "dictionaries.h"

enum { ES_DASHBOARD_LIST = 10 };

typedef struct es_neuron { int layer, neuron; float cosine; } es_neuron;

typedef struct es_dashboard { /* plain: may be copied */
    int feature;
    int n_neighbour;   /* by cosine of decoder rows */
    int32_t neighbour[ES_DASHBOARD_LIST];
    float cosine[ES_DASHBOARD_LIST];
    /* MLP neurons of the blocks up to the dictionary's layer whose output direction (column of ffn_down, times the norm after it where there is one) has the
     * largest |cosine| with the decoder row; best first */
    int n_neuron;
    es_neuron neuron[ES_DASHBOARD_LIST];
    /* the logits that a unit of the feature adds (decoder row times the final norm's weight, times the unembedding): range, equal bins as numpy.histogram */
    bool has_logits;
    float logit_lo, logit_hi;
    uint32_t logits[ES_ATLAS_BINS];
} es_dashboard;

/* card: the feature's, whose logits are taken where it has them; NULL: there is no atlas. m: NULL leaves neurons and logits out. Some milliseconds on a small
 * model; its time is that of reading the dictionary's decoder and the ffn_down matrices once. ES_ERR_USAGE: no such feature; ES_ERR_MEMORY. */
int es_dashboard_make(es_dashboard *out, const es_model *m, const es_dictionary *s, const es_feature_card *card, int feature, es_pool *p, es_error *err);
/* The neurons alone, for any direction[d_model] in the residual after `layer`. */
int es_aligned_neurons(const es_model *m, int layer, const float *direction, int n, es_neuron *out, int *found, es_error *err);

#endif
