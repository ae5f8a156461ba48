/* The suite of the CUDA table: one set of tests, in C, for the card and for the shim. It needs neither cmocka nor the engine.
 *
 * Each test runs several times. Every time its results must be within bounds of the scalar reference, and the later times they must have the
 * bits of the first: on the shim the threads then run in another order. */
#ifndef SUITE_H
#define SUITE_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "es_cuda.h"
#include "internal.h"

typedef struct suite_test {
    const char *name;
    void (*run)(void);
} suite_test;
extern const suite_test device_tests[], rows_tests[], matmul_tests[], attention_tests[], sparse_tests[], model_tests[], engine_tests[];

extern es_cuda *card;
extern es_pool *pool;            /* of the card; F32, a workspace of 64 KiB, so that tiles are many */
extern const es_kernels *k, *ref; /* the card's table and the reference */
extern es_rng rng;

/* All of these are freed when the test ends. */
void *host(size_t bytes);
float *noise(size_t n, float scale);
float *same(const float *x, size_t n); /* a copy */
int32_t *below(size_t n, int limit);   /* random numbers */
void *up(const void *host_data, size_t bytes); /* on the card */
#define UP(x, n) up((x), sizeof *(x) * (size_t)(n))
void *room(size_t bytes);              /* on the card, never written */
void *down(const void *device, size_t bytes); /* its bits are compared with those of the first time */
#define DOWN(x, n) down((x), sizeof *(x) * (size_t)(n))
void free_all(void);
void on_pool(const es_cuda_pool_options *o, void (*fn)(void)); /* fn with another pool of the card as `pool`; what it took is freed */

void fail_test(const char *file, int line, const char *fmt, ...) __attribute__((format(printf, 3, 4), noreturn));
#define FAIL(...) fail_test(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(x)                                                                                                                       \
    do {                                                                                                                               \
        if (!(x))                                                                                                                      \
            FAIL("%s does not hold", #x);                                                                                              \
    } while (0)
void synced(void); /* sync must find nothing */

/* Downloads got[n]. |got - want| <= bound * |want| over the whole array, no element off by more than 10 * bound * its largest; usual: the size of an
 * element when terms do not cancel, |want| counts as no less. */
void near_sized(const char *what, const float *got, const float *want, size_t n, double bound, double usual);
static inline void near_to(const char *what, const float *got, const float *want, size_t n, double bound)
{
    near_sized(what, got, want, n, bound, 0);
}
double norm(const float *x, size_t n);
es_weight random_weight(es_type type, int n_out, int n_in); /* in host memory */
es_weight on_card(const es_weight *w);
extern const es_type all_types[];
extern const int n_types;
#define LENGTH(a) ((int)(sizeof(a) / sizeof *(a)))

#endif
