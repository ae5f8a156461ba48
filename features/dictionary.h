/* What the files of dictionaries share. */
#ifndef ES_DICTIONARY_H
#define ES_DICTIONARY_H

#include "features.h"

/* Writes FOLDER/cfg.json and sae_weights.safetensors, architecture jumprelu, b_dec taken off the input. enc, dec: [F, d];
 * threshold: one number for all. metadata: JSON object that becomes cfg.json's "metadata"; borrowed. */
int es_dictionary_save(const char *folder, int d, int F, const float *enc, const float *dec, const float *b_enc, const float *b_dec, float threshold,
                       bool half, json_t *metadata, es_error *err);

#endif
