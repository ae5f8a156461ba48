/* What the files of bench share. */
#ifndef ES_MAIN_CMD_BENCH_H
#define ES_MAIN_CMD_BENCH_H

#include <sys/types.h>

#include "app.h"

/* ---- the other side: a process that answers a line of JSON with a line of JSON ---- */

typedef struct peer {
    pid_t pid;
    int fd;
    const char *python, *modules;
    es_buf in; /* what has come in and is not yet a line */
} peer;

/* python: a name or a path; script: in tools/; modules: what that Python must have, in words for errors. Close it also after an error. */
int peer_open(peer *p, const char *python, const char *script, const char *modules, es_error *err);
void peer_close(peer *p, bool at_once);
/* Sends a value (takes the reference) and waits for the answer, an object, the caller's. */
int peer_ask(peer *p, json_t *value, json_t **out, es_error *err);

/* Of n > 0 numbers; sorts them. */
double bench_median(double *x, int n);

/* n tokens that are no control tokens into ids, whatever was there. */
int bench_random_ids(const es_model *m, es_rng *rng, es_ids *ids, int n, es_error *err);

/* ---- comparisons ---- */

/* A learning step beside that of PEFT, which `python` runs. model_hf: a transformers folder of the model, NULL: the GGUF file itself.
 * into: gets "ratios", "ours", "peft" and what they were measured with; a table is printed unless --json. */
int bench_against_peft(es_model *m, const app_features *f, const char *python, const char *model_hf, int repeat, json_t *into, es_error *err);

/* Prefill, decode and load beside llama.cpp's, on the same file and the same tokens, and what bounds decoding on this machine.
 * into: gets "ratios", "ours", "llama.cpp", "bound". */
int bench_against_llama(const char *path, const char *python, int repeat, int prompt, int tokens, json_t *into, es_error *err);

#endif
