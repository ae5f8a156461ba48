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

/* ---- what the parts of a bench share ---- */

enum { BENCH_MAX_REPEAT = 50 };

typedef struct bench {
    es_model *m;
    app_features f;
    es_rng rng;
    int repeat, prompt, tokens, context;
    json_t *all;
} bench;

/* One line, and an entry in all: the median of n rates, and the range. Sorts them. */
void bench_result(bench *b, const char *name, const char *what, const char *unit, double *rate, int n);
/* Memory of this process that is no file's, in bytes; 0 where it cannot be told. */
double bench_anonymous_bytes(void);
/* A learner of four short pairs, as the adaptation bench runs it. */
typedef struct bench_learner {
    es_basis basis;
    es_adapter *a;
    es_learner *l;
} bench_learner;
int bench_learner_open(bench *b, bench_learner *out, es_error *err);
void bench_learner_free(bench_learner *l);

/* cmd_bench_context.c */
int bench_load(bench *b, es_error *err);
int bench_memory(bench *b, es_error *err);
int bench_context(bench *b, es_error *err);
int bench_batch(bench *b, es_error *err);
int bench_learning(bench *b, es_error *err);

/* Of n > 0 numbers; sorts them. */
double bench_median(double *x, int n);

/* n tokens that are no control tokens into ids, whatever was there. */
int bench_random_ids(const es_model *m, es_rng *rng, es_ids *ids, int n, es_error *err);

/* ---- comparisons ---- */

/* A learning step beside that of PEFT, which `python` runs. model_hf: a transformers folder of the model, NULL: the GGUF file itself.
 * into: gets "ratios", "ours", "peft" and what they were measured with; a table is printed unless --json. */
int bench_against_peft(es_model *m, const app_features *f, const char *python, const char *model_hf, int repeat, json_t *into, es_error *err);

/* A step of training a dictionary beside PyTorch's dense TopK, and the residual after half the layers beside its in bfloat16. into: gets "ratios" and each
 * side's rates. */
int bench_against_torch(bench *b, const char *python, const char *model_hf, json_t *into, es_error *err);

/* A batch for training a dictionary, *out [batch, d], the caller's also after an error: rows are sums of k of `features` directions, and noise. */
int bench_features_batch(es_rng *rng, size_t batch, size_t d, size_t features, int k, float **out, es_error *err);
int bench_write_numbers(const char *folder, const char *name, const float *x, size_t n, es_error *err); /* as a file of f32 */

/* Work on a card beside PyTorch's, transformers' and PEFT's on the same card: into gets "rows" and "versions"; printed unless --json. small: tiny
 * shapes, and the other side on the processor, to see that it works. */
int bench_against_card(es_cuda *card, const char *python, bool small, int repeat, json_t *into, es_error *err);

/* Prefill, decode and load beside llama.cpp's, on the same file and the same tokens, and what bounds decoding on this machine.
 * into: gets "ratios", "ours", "llama.cpp", "bound". */
int bench_against_llama(const char *path, const char *python, int repeat, int prompt, int tokens, json_t *into, es_error *err);

#endif
