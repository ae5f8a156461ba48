/* A text as features: what the dictionary reads of its layer, encoded. */
#include "app.h"

#include <stdlib.h>
#include <string.h>

enum { WINDOW = 1024 };

typedef struct capture {
    float *h; /* [rows, d] */
    size_t rows;
} capture;

static void take_rows(void *user, int layer, int pos0, const float *h, int T, int d)
{
    (void)layer;
    capture *c = user;
    for (int t = 0; t < T; t++)
        if ((size_t)(pos0 + t) < c->rows)
            memcpy(c->h + ((size_t)pos0 + (size_t)t) * (size_t)d, h + (size_t)t * (size_t)d, (size_t)d * sizeof *h);
}

/* The activations at a point of `layer` for each token, in windows of the context that begin anew. */
static int activations(const es_model *m, const es_ids *ids, int layer, es_point point, float *out, es_error *err)
{
    const es_model_info *info = es_model_get_info(m);
    int window = info->n_ctx < WINDOW ? info->n_ctx : WINDOW;
    if (ids->n < (size_t)window)
        window = (int)ids->n;
    es_context_options o = {.n_ctx = window, .threads = the_app.threads, .exact = true};
    es_context *c = NULL;
    int rc = es_context_open(&c, m, &o, err);
    for (size_t at = 0; rc == ES_OK && at < ids->n; at += (size_t)window) {
        int n = ids->n - at < (size_t)window ? (int)(ids->n - at) : window;
        capture cap = {out + at * (size_t)es_point_width(m, point), (size_t)n};
        es_watch w = {.layer = layer, .fn = take_rows, .user = &cap, .point = point};
        es_context_set_watch(c, &w, 1);
        rc = es_context_truncate(c, 0, err);
        if (rc == ES_OK)
            rc = es_context_feed(c, ids->id + at, n, &app_cancel, err);
    }
    es_context_free(c);
    return rc;
}

int app_encode(const app_features *f, const es_model *m, const es_ids *ids, es_sparse *out, es_error *err)
{
    size_t cells, d = (size_t)es_dictionary_get_info(f->dictionary)->d;
    float *h = NULL;
    es_pool *pool = NULL;
    if (ids->n == 0)
        return es_fail(err, ES_ERR_USAGE, "there is no text to encode");
    if (ids->n > 1 << 24 || !es_mul(ids->n, d, &cells) || !(h = es_calloc(cells, sizeof *h)))
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for the activations of %zu tokens", ids->n);
    int rc = activations(m, ids, es_dictionary_get_info(f->dictionary)->layer, es_dictionary_point(f->dictionary), h, err);
    if (rc == ES_OK)
        rc = es_pool_open(&pool, the_app.threads, err);
    if (rc == ES_OK)
        rc = es_dictionary_encode(f->dictionary, pool, h, (int)ids->n, out, err);
    es_pool_free(pool);
    free(h);
    return rc;
}
