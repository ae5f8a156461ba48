/* device (internal): a model's weights on a card, and how a pass comes to work there. engine.h, "cards", says what callers see. */
#ifndef ES_DEVICE_H
#define ES_DEVICE_H

#include "es_cuda.h"
#include "model.h"

typedef struct es_pass es_pass;
typedef struct es_on es_on; /* what a model has on its card */

/* The card that passes of m are to use now, or NULL: none was asked for, or it was lost. */
es_cuda *es_on_card(const es_model *m);
void es_on_free(es_on *on);
int es_on_inherit(es_model *m, const es_model *base, es_error *err); /* m works where base does */

/* Opens the pass's pool: on the model's card when it has one and no table is asked for by name, else on the processor. Sets card, k, pool and
 * model (on a card: the same model with its matrices there, uploaded now unless they are). table: NULL or the caller's wish. */
int es_pass_open(es_pass *p, const es_model *m, const es_kernels *table, int threads, const es_cuda_pool_options *o, es_error *err);
void es_pass_close(es_pass *p);
/* What a thawed model's numbers have become goes to the card, if they have changed since. First thing in a call. */
int es_pass_refresh(es_pass *p, const es_model *m, es_error *err);
int es_pass_send_numbers(es_pass *p, const es_model *m, es_error *err); /* whether they have or not */
/* bytes of the table's memory, zeroed, as an arena for layout; closed by es_pass_release. Not for the processor. */
int es_pass_take(es_pass *p, es_arena *a, size_t bytes, es_error *err);
void es_pass_release(es_pass *p, es_arena *a);
/* The tables for n_pos positions into rope, which lie in the pass's memory. */
int es_pass_fill_rope(es_pass *p, int n_pos, es_error *err);

#endif
