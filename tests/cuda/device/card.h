/* card: what the tests of the engine on the shim's card share. */
#ifndef ES_TEST_CARD_H
#define ES_TEST_CARD_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shim.h"
#include "support.h"

static es_cuda *card;
enum { WORKSPACE = 1 << 18 }; /* small: tiles are many, and little is to be protected around each kernel */

static int open_card(void **state)
{
    (void)state;
    es_error err;
    assert_ok(es_cuda_open(0, &card, &err), &err);
    return 0;
}

/* All memory of the card must have come back. */
static int close_card(void **state)
{
    (void)state;
    es_cuda_close(card);
    assert_int_equal(shim_memory_used(), 0);
    return 0;
}

static inline void use_card(es_model *m, bool exact)
{
    es_error err;
    assert_ok(es_model_use_card(m, card, &(es_card_options){.workspace = WORKSPACE, .exact = exact}, &err), &err);
    assert_ptr_equal(es_model_card(m), card);
}

/* The largest difference as a share of want's range. */
static inline double off(const float *got, const float *want, size_t n)
{
    double most = 0, low = want[0], high = want[0];
    for (size_t i = 0; i < n; i++) {
        if (!(fabs((double)got[i] - want[i]) <= most))
            most = fabs((double)got[i] - want[i]);
        low = fmin(low, want[i]);
        high = fmax(high, want[i]);
    }
    return most / (high > low ? high - low : 1);
}

static inline void near(const char *label, const char *what, const float *got, const float *want, size_t n, double bound)
{
    double d = off(got, want, n);
    if (!(d <= bound))
        fail_msg("%s: %s is off by %.2g of its range, %.2g is allowed", label, what, d, bound);
}

#endif
