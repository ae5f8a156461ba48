/* Texts run through the model, batch by batch: what a harvest and a training from a stream have in common. Sequences are gathered until a batch is full;
 * run, it gives the rows of each place as f16, those of every sequence's first token left out where the options say so. */
#ifndef ES_READING_H
#define ES_READING_H

#include "harvest.h"

enum { ES_READING_TOKENS = 2048, ES_PLACES_MAX = 64 };

typedef struct es_reading es_reading;
typedef struct es_reading_place { es_reading *r; es_hook_place at; int d, number; } es_reading_place; /* d: width of its rows */

/* n rows [n, d] of place `number`, in order; borrowed for the call. Called once a place and batch. */
typedef int es_reading_take(void *user, int number, const uint16_t *rows, size_t n, es_error *err);

struct es_reading {
    es_model *m;
    const es_harvest_options *o;
    es_trainer *trainer;
    int skip; /* 0 or 1 */
    es_reading_place place[ES_PLACES_MAX];
    es_watch watch[ES_PLACES_MAX];
    int n_place, top; /* top: the highest layer */
    es_reading_take *take;
    void *user;
    /* the batch: readable after a run, until it is cleared */
    int32_t id[ES_READING_TOKENS];
    int start[ES_READING_TOKENS + 1], n_seq;
    uint32_t document[ES_READING_TOKENS];
    uint16_t *half; /* [ES_READING_TOKENS, the widest d] */
    float *clamped; /* [the widest d] */
    bool stop;      /* read by the engine as its cancel flag: raised once the highest layer has been entered */
    int failed;
    es_error *err;
};

int es_reading_check(const es_model *m, const es_harvest_options *o, es_error *err); /* layers, sites, context */
/* Sets the places; o (checked, borrowed) says which. The model is not run yet: take may be used for sizes only. */
void es_reading_set(es_reading *r, es_model *m, const es_harvest_options *o, es_reading_take *take, void *user);
int es_reading_open(es_reading *r, es_error *err); /* takes the memory to run */
void es_reading_close(es_reading *r);
/* A sequence into the batch. false: it does not fit, run and clear first. n at most ES_READING_TOKENS. */
bool es_reading_add(es_reading *r, const int32_t *id, size_t n, uint32_t document);
size_t es_reading_rows(const es_reading *r); /* that the batch will give */
int es_reading_run(es_reading *r, es_error *err); /* nothing in the batch: nothing happens */
void es_reading_clear(es_reading *r);

#endif
