#include "autolabel_windows.h"

#include <stdlib.h>
#include <string.h>

enum { ATLAS_TRIES = 20 };
#define MARK_SHARE 0.3f /* of the strongest (Paulo et al.'s threshold) */

void es_windows_free(es_windows *w)
{
    free(w->memory);
    free(w->item);
    *w = (es_windows){0};
}

/* An example into a window that has room for it; value NULL: left at 0. */
static void take_example(es_window *w, const es_example *e, bool values)
{
    int n = e->n < ES_WINDOW_MAX ? e->n : ES_WINDOW_MAX, from = e->peak - 3 * n / 4;
    from = from < 0 ? 0 : from > e->n - n ? e->n - n : from;
    w->n = n;
    memcpy(w->id, e->id + from, (size_t)n * sizeof *w->id);
    if (values) {
        memcpy(w->value, e->value + from, (size_t)n * sizeof *w->value);
        w->max = e->max;
    }
}

int es_windows_of_card(es_windows *out, const es_feature_card *c, es_error *err)
{
    size_t tokens = (size_t)c->n_example * ES_WINDOW_MAX;
    *out = (es_windows){0};
    out->item = es_calloc((size_t)c->n_example + 1, sizeof *out->item);
    char *memory = out->memory = es_calloc(tokens + 1, sizeof(float) + sizeof(int32_t));
    if (!out->item || !memory) {
        es_windows_free(out);
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a feature's examples");
    }
    int32_t *id = (int32_t *)memory;
    float *value = (float *)(memory + tokens * sizeof *id);
    for (int i = 0; i < c->n_example; i++) {
        size_t at = (size_t)out->n * ES_WINDOW_MAX;
        out->item[out->n] = (es_window){.id = id + at, .value = value + at};
        take_example(&out->item[out->n++], &c->example[i], true);
    }
    return ES_OK;
}

/* ---- where a feature is silent ---------------------------------------------------------------------------------------------------- */

void es_window_pool_free(es_window_pool *p)
{
    es_windows_free(&p->w);
    es_sparse_free(&p->acts);
    free(p->row);
    p->row = NULL;
}

/* n windows: an example each of features drawn at random. */
static int draw(es_window_pool *p, es_atlas *a, int n, uint64_t seed, es_error *err)
{
    es_rng rng;
    int F = es_atlas_features(a), rc = ES_OK;
    es_rng_seed(&rng, seed);
    p->w.item = es_calloc((size_t)n + 1, sizeof *p->w.item);
    char *memory = p->w.memory = es_calloc((size_t)n * ES_WINDOW_MAX, sizeof(float) + sizeof(int32_t));
    if (!p->w.item || !memory)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for %d windows", n);
    int32_t *id = (int32_t *)memory;
    float *value = (float *)(memory + (size_t)n * ES_WINDOW_MAX * sizeof *id);
    for (int tries = 0; !rc && p->w.n < n && tries < n * ATLAS_TRIES; tries++) {
        es_feature_card c;
        rc = es_atlas_card(a, (int)es_rng_below(&rng, (uint64_t)F), &c, err);
        if (rc || c.n_example < 1)
            continue;
        const es_example *e = &c.example[es_rng_below(&rng, (uint64_t)c.n_example)];
        if (e->n < 2)
            continue;
        size_t at = (size_t)p->w.n * ES_WINDOW_MAX;
        p->w.item[p->w.n] = (es_window){.id = id + at, .value = value + at};
        take_example(&p->w.item[p->w.n++], e, false); /* values stay 0: of the features that are silent in it */
    }
    return rc;
}

int es_window_pool_open(es_window_pool *p, es_model *m, const es_dictionary *s, es_atlas *a, int n, uint64_t seed, int threads, const es_progress *progress, es_error *err)
{
    size_t d = (size_t)es_dictionary_get_info(s)->d;
    *p = (es_window_pool){0};
    int rc = draw(p, a, n, seed, err), total = 0;
    for (int i = 0; i < p->w.n; i++)
        total += p->w.item[i].n;
    es_trainer *t = NULL;
    es_pool *pool = NULL;
    int32_t *id = es_calloc((size_t)total + 1, sizeof *id);
    int *start = es_calloc((size_t)p->w.n + 1, sizeof *start);
    float *h = es_calloc((size_t)total + 1, d * sizeof *h);
    p->row = es_calloc((size_t)p->w.n + 1, sizeof *p->row);
    if (!rc && (!id || !start || !h || !p->row))
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for %d windows", n);
    es_trainer_options o = {.max_tokens = 512, .threads = threads};
    rc = rc ? rc : es_trainer_open(&t, m, &o, err);
    rc = rc ? rc : es_pool_open(&pool, threads, err);
    for (int i = 0, done = 0; !rc && i < p->w.n;) { /* as many whole windows as a batch takes */
        int k = 0, tokens = 0;
        for (; i + k < p->w.n && tokens + p->w.item[i + k].n <= o.max_tokens; k++) {
            memcpy(id + tokens, p->w.item[i + k].id, (size_t)p->w.item[i + k].n * sizeof *id);
            p->row[i + k] = done + tokens;
            tokens += p->w.item[i + k].n;
            start[k + 1] = tokens;
        }
        es_batch b = {.ids = id, .n = tokens, .start = start, .n_seq = k};
        rc = es_trainer_point(t, &b, es_dictionary_get_info(s)->layer, es_dictionary_point(s), h + (size_t)done * d, progress ? progress->cancel : NULL, err);
        done += tokens;
        i += k;
        es_progress_report(progress, "reading windows to test on", done, total, "tokens");
    }
    rc = rc ? rc : es_dictionary_encode(s, pool, h, total, &p->acts, err);
    es_pool_free(pool);
    es_trainer_free(t);
    free(h);
    free(start);
    free(id);
    if (rc)
        es_window_pool_free(p);
    return rc;
}

bool es_window_is_silent(const es_window_pool *p, int i, int feature)
{
    for (int t = 1; t < p->w.item[i].n; t++) { /* a text's first token is unlike all others */
        size_t row = (size_t)(p->row[i] + t);
        for (size_t k = p->acts.start[row]; k < p->acts.start[row + 1]; k++)
            if (p->acts.index[k] == feature)
                return false;
    }
    return true;
}

/* ---- as text ---------------------------------------------------------------------------------------------------------------------- */

void es_window_marks(const es_window *w, bool *mark)
{
    for (int t = 0; t < w->n; t++)
        mark[t] = w->value[t] > 0 && w->value[t] >= MARK_SHARE * w->max;
}

/* A token's bytes, on one line; what would look like our own marks does not: the second bracket of two becomes another one. */
static void plain(es_buf *out, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '\n' || s[i] == '\r')
            es_buf_str(out, "\xe2\x86\xb5"); /* ↵ */
        else if ((s[i] == '<' || s[i] == '>') && out->len && out->data[out->len - 1] == s[i])
            es_buf_str(out, s[i] == '<' ? "\xe2\x80\xb9" : "\xe2\x80\xba"); /* ‹ › */
        else if ((unsigned char)s[i] < 0x20 && s[i] != '\t')
            es_buf_str(out, " ");
        else
            es_buf_add(out, s + i, 1);
    }
}

void es_window_text(es_buf *out, const es_model *m, const es_window *w, const bool *mark)
{
    es_buf raw = {0};
    bool open = false;
    for (int t = 0; t < w->n; t++) {
        size_t n;
        const char *s = es_token_bytes(m, w->id[t], &n);
        bool begins = n > 0 && ((unsigned char)s[0] & 0xC0) != 0x80; /* a mark stands between characters, not within one */
        if (begins && open != (mark && mark[t])) {
            es_buf_str(&raw, open ? ">>" : "<<");
            open = !open;
        }
        plain(&raw, s, n);
    }
    if (open)
        es_buf_str(&raw, ">>");
    es_utf8_mend(out, raw.data ? raw.data : "", raw.len);
    out->failed = out->failed || raw.failed;
    es_buf_free(&raw);
}

void es_window_tokens(es_buf *out, const es_model *m, const es_window *w)
{
    for (int t = 0; t < w->n; t++) {
        size_t n;
        const char *s = es_token_bytes(m, w->id[t], &n);
        es_buf raw = {0};
        plain(&raw, s, n);
        es_buf_printf(out, "%s%d: ", t ? "\n" : "", t + 1);
        es_utf8_mend(out, raw.data ? raw.data : "", raw.len);
        out->failed = out->failed || raw.failed;
        es_buf_free(&raw);
    }
}
