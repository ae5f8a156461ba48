/* method (internal): what a method_*.c fills. */
#ifndef ES_METHOD_INTERNAL_H
#define ES_METHOD_INTERNAL_H

#include "method.h"

typedef struct es_method_ops { /* self: what open made. step, copy and add may be NULL: nothing to do, the view serves, ignored */
    int (*open)(void **self, es_method_kind k, es_model *base, const es_method_options *o, es_error *err);
    void (*free)(void *self);
    int (*add)(void *self, const es_experience *e, const volatile bool *cancel, es_error *err);
    int (*step)(void *self, es_step_report *out, const volatile bool *cancel, es_error *err);
    int (*view)(void *self, es_variant *out, es_error *err);
    int (*copy)(void *self, es_variant *out, es_error *err);
    uint64_t (*parameters)(const void *self);
    size_t (*bytes)(const void *self);
    const char *(*note)(const void *self); /* may be NULL */
    int (*without)(void *self, const int *experience, int n, es_undo how, es_variant *out, const volatile bool *cancel, es_error *err); /* may be NULL */
    const es_decision *(*decision)(const void *self, int experience); /* may be NULL */
} es_method_ops;

extern const es_method_ops es_method_features_ops; /* features, random, free, bias */
extern const es_method_ops es_method_lora_ops, es_method_full_ops, es_method_self_ops;
extern const es_method_ops es_method_context_ops, es_method_titans_ops, es_method_distil_ops;

/* For methods whose struct begins with an es_tune of low-rank updates: what it shows is what they show. */
int es_tuned_view(void *self, es_variant *out, es_error *err);
int es_tuned_copy(void *self, es_variant *out, es_error *err);
uint64_t es_tuned_parameters(const void *self);
size_t es_tuned_bytes(const void *self);

#endif
