/* What harvest, training, statistics and atlas share: documents as token ids, and a harvest read back. */
#ifndef ES_HARVEST_H
#define ES_HARVEST_H

#include "dictionaries.h"

/* ---- documents ------------------------------------------------------------------------------------------------------------------ */

typedef struct es_documents { /* slices of mapped files: a whole .txt, or a line of a .jsonl */
    es_map *map;
    int n_map;
    struct es_document { const char *text; size_t n; uint32_t file; uint32_t line; } *item; /* line 0: a .txt */
    size_t n, cap;
} es_documents;

/* seed: shuffled order when not 0. */
int es_documents_open(es_documents *l, const char *const *file, int n_file, uint64_t seed, es_error *err);
void es_documents_close(es_documents *l);
json_t *es_documents_files(const es_documents *l); /* [{"name","bytes","sha256"}]; NULL: no memory */
/* Replaces what out held with document i's ids. */
int es_documents_ids(const es_documents *l, size_t i, const es_model *m, es_ids *out, es_error *err);

es_trainer_options es_harvest_trainer(const es_harvest_options *o); /* what the model is run with */

/* ---- a harvest on disk ------------------------------------------------------------------------------------------------------------ */

typedef struct es_harvest_sequence { /* a record of sequences.bin, little-endian */
    uint64_t id;    /* first of its ids in ids.bin */
    uint64_t row;   /* first of its rows */
    uint32_t n;     /* ids; the rows are those of the ids from `skip` (0 or 1) on */
    uint32_t document;
} es_harvest_sequence;

typedef struct es_harvest_reader {
    json_t *info;   /* harvest.json */
    int d, layer, skip, context;
    es_hook_kind site;
    size_t n_row, n_id, n_sequence, shard_rows, n_shard;
    const char *model_name, *model_hash; /* in info */
    es_map ids, sequences, *shard;
    const int32_t *id;
    const es_harvest_sequence *sequence;
    float norm_limit; /* rows longer than this are attention sinks, see es_norm_limit */
} es_harvest_reader;

/* Sizes are checked against the files; a harvest that is still being written is read as far as its last checkpoint. */
int es_harvest_reader_open(es_harvest_reader *h, const char *dir, int layer, es_error *err); /* of the residual */
int es_harvest_reader_open_at(es_harvest_reader *h, const char *dir, es_hook_place place, es_error *err);
void es_harvest_reader_close(es_harvest_reader *h);
void es_harvest_reader_rows(const es_harvest_reader *h, size_t first, size_t n, float *out); /* [n, d] */

/* A few tokens besides each sequence's first (one in some thousands) become attention sinks as well: their residual is about a
 * hundred times as long as the others', so that they alone would be most of the variance. Six times the median norm of the n rows
 * tells them apart; training, statistics and the atlas leave them out. Reorders norm. */
float es_norm_limit(float *norm, size_t n);
/* The same for sequences as they lie in a batch: norm[t] of each row x[n, d], n = start[n_seq] <= ES_NORM_ROWS; and where *limit is not above 0, it becomes
 * that of these rows without each sequence's first. */
enum { ES_NORM_ROWS = 2048 };
void es_sequence_norms(const float *x, size_t d, const int *start, int n_seq, float *norm, float *limit);

#endif
