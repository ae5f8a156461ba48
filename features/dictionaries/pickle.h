/* What torch.save writes of a state_dict: a zip with a pickle (data.pkl) that names tensors, and a member for each one's numbers (data/0, data/1, ...).
 * A pickle is a program. This reader runs none: of the opcodes it knows those that build plain values, of names only collections.OrderedDict,
 * torch._utils._rebuild_tensor_v2 and torch's storage types, and it calls nothing but makes an empty dict and a tensor's description of them. */
#ifndef ES_PICKLE_H
#define ES_PICKLE_H

#include "arrays.h"

/* The pickle's tensors into a, under the names that a dict has them by, or one that is alone under ""; their numbers lie in a->zip. prefix: of the members ("archive/"). */
int es_pickle_tensors(es_arrays *a, const uint8_t *pickle, size_t n, const char *prefix, es_error *err);

typedef struct es_torch_entry { /* an array to be written; I32: one whole number */
    const char *name;
    es_tensor_type type;
    int n_dims;
    size_t dim[2];
    size_t bytes;
    int (*put)(void *user, const es_put *out, es_error *err);
    void *user;
} es_torch_entry;
/* A file that torch.load(path, weights_only=True) reads as a dict of tensors; or, of one without a name, as that tensor. */
int es_torch_write(const char *path, const es_torch_entry *e, size_t n, es_error *err);

#endif
