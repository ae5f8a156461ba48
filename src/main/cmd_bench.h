/* What the files of bench share. */
#ifndef ES_MAIN_CMD_BENCH_H
#define ES_MAIN_CMD_BENCH_H

#include "app.h"

/* A learning step beside that of PEFT, which `python` runs. model_hf: a transformers folder of the model, NULL: the GGUF file itself.
 * into: gets "ratios", "ours", "peft" and what they were measured with; a table is printed unless --json. */
int bench_against_peft(es_model *m, const app_features *f, const char *python, const char *model_hf, int repeat, json_t *into, es_error *err);

#endif
