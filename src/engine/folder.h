/* folder (internal): a model as Hugging Face's transformers saves it: config.json and model.safetensors, or shards and their index. */
#ifndef ES_FOLDER_H
#define ES_FOLDER_H

#include "model.h"

/* Fills *m (zeroed before). F32 and F16 stay where the files are mapped; other types become F32 in memory. On an error es_model_free
 * takes what was filled. There is no tokenizer yet: m->tokenizer stays NULL. */
int es_folder_open(es_model *m, const char *path, es_error *err);
/* SHA-256 over the SHA-256 of config.json and of each file of weights, in the index's order. */
int es_folder_hash(const es_model *m, char out[65], es_error *err);

#endif
