/* weights: models whose numbers are their own and may be changed, and their files. A thawed model goes wherever a model goes
 * (context, trainer, scores); nobody may be reading it while its numbers move. */
#ifndef ES_WEIGHTS_H
#define ES_WEIGHTS_H

#include "engine.h"
#include "safetensors.h"

/* A copy of base in f32, dequantised: 4 bytes a parameter. Refused with both numbers when that is more than limit bytes (0: what the
 * machine has available). base may be freed before it. es_model_hash is base's: what fits base (dictionaries, adapters) fits it. */
int es_model_thaw(es_model **out, es_model *base, size_t limit, es_error *err);
size_t es_model_thaw_bytes(const es_model *base); /* what thaw would take */
/* All numbers as one array, in an order that depends on the shapes alone (GGUF's rows; q and k laid out as there); NULL when m is
 * not thawed. *n: how many; *n_matrix (may be NULL): the first so many are of matrices, the others of norms. Padding between
 * arrays is zero and stays so when what is added there is zero, as es_grad's weights is. */
float *es_model_numbers(es_model *m, size_t *n, size_t *n_matrix);
/* to's numbers become from's. Both thawed, of the same shapes. */
int es_model_assign(es_model *to, const es_model *from, es_error *err);

/* One safetensors file: the weights under their GGUF names, [n_out, n_in] or [n], and `more` arrays of the same length as
 * es_model_numbers (an optimiser's), each as "NAME:" before those names. Metadata: "format" "espalier-weights", "model_hash" of the
 * base, and meta's strings (may be NULL). Replaced whole or not at all. */
typedef struct es_weights_more { const char *name; es_tensor_type type; float *number; } es_weights_more;
int es_weights_save(es_model *m, const char *path, es_tensor_type type, const es_weights_more *more, int n_more, json_t *meta, es_error *err);
/* Reads them back; of a more whose number is NULL only that it is there and sound is checked. Everything (hash, names, shapes, types, finiteness) is checked before a number is touched: on an error m and more
 * are as before. meta (may be NULL) receives the file's own strings, caller's. */
int es_weights_load(es_model *m, const char *path, const es_weights_more *more, int n_more, json_t **meta, es_error *err);

#endif
