/* dictionary_eval: everything that `espalier dictionary evaluate` measures of a dictionary, part by part, kept in a work file. */
#ifndef ES_DICTIONARY_EVAL_H
#define ES_DICTIONARY_EVAL_H

#include "quality.h"
#include "steer.h"

enum { /* parts */
    ES_PART_STATS = 1, ES_PART_COSINES = 2, ES_PART_PROBES = 4, ES_PART_ABSORPTION = 8, ES_PART_STEERING = 16, ES_PARTS_ALL = 31,
};
int es_dictionary_eval_part(const char *name); /* "stats", "cosines", "probes", "absorption", "steering"; 0: none of them */

typedef struct es_dictionary_eval {
    unsigned parts;
    const char *const *file; int n_file; uint64_t tokens;   /* stats: documents as es_dictionary_measure takes them; at least one */
    int sample;                                             /* cosines: at most so many features against all */
    const char *data;                                       /* probes: folder with concepts/, or NULL */
    const char *const *concepts; int n_concepts; int texts; /* ... files of one's own, and texts of a set at most */
    int words;                                              /* absorption: at most */
    const es_task *task; int n_task; es_steer_options steer;
    int threads;
    uint64_t seed;
    const char *work; /* JSONL, one finished piece a line, made when it is not there; NULL: nothing is kept */
} es_dictionary_eval;
es_dictionary_eval es_dictionary_eval_default(void);

/* Pieces that the work file has, measured with the same model, dictionary, options and input files, are taken from it. *out, the caller's reference:
 * {"dictionary":{...},"stats":{...},"cosines":{...},"probes":{"sets":[...],"mean":{...}},"absorption":{...},"steering":[...]}, the parts that were asked for; the
 * fields are in `espalier dictionary evaluate --help`. What cannot be measured for lack of its data is {"skipped": why}. */
int es_dictionary_evaluate(es_model *m, const es_dictionary *s, const es_dictionary_eval *o, const es_progress *progress, json_t **out, es_error *err);

#endif
