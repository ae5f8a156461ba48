/* generate: many replies, as many at a time as the context has sequences. A sequence whose reply has ended takes the next prompt at
 * once, so that a step nearly always has all of them; what a prompt begins with and another sequence holds already is copied from there. */
#include "context.h"

#include <stdlib.h>

enum { FREE = -1 };

typedef struct generation {
    es_context *c;
    es_reply *reply;
    int at[ES_MAX_SEQUENCES]; /* the reply that a sequence works on, or FREE */
    es_rng rng[ES_MAX_SEQUENCES];
    int (*done)(void *user, int i, es_error *err);
    void *user;
} generation;

static int finish(generation *g, int seq, es_error *err)
{
    int i = g->at[seq];
    g->at[seq] = FREE;
    return g->done ? g->done(g->user, i, err) : ES_OK;
}

/* Draws the next token of the sequence's reply, which may be its last. */
static int draw(generation *g, int seq, es_error *err)
{
    es_reply *r = &g->reply[g->at[seq]];
    es_context_select(g->c, seq);
    int32_t id = es_sample(g->c, &r->sampling, &g->rng[seq]);
    if (es_ids_add(&r->ids, id))
        return es_fail(err, ES_ERR_MEMORY, "no memory for a reply");
    r->ended = es_token_ends(g->c->model, id);
    bool last = r->ended || r->ids.n >= (size_t)r->max_new || es_context_length(g->c) >= es_context_size(g->c);
    return last ? finish(g, seq, err) : ES_OK;
}

/* The sequence takes reply i: its prompt, as far as possible from a sequence that has its beginning, and the first token. */
static int begin(generation *g, int seq, int i, const volatile bool *cancel, es_error *err)
{
    es_context *c = g->c;
    es_reply *r = &g->reply[i];
    int best = 0, from = seq;
    r->ids.n = 0;
    r->ended = false;
    if (r->max_new < 1)
        return es_fail(err, ES_ERR_USAGE, "a reply of %d tokens cannot be", r->max_new);
    for (int s = 0; s < c->n_seq; s++) {
        int same = 0;
        while (same < r->n_prompt - 1 && same < c->slot[s].length && c->slot[s].ids[same] == r->prompt[same])
            same++;
        if (same > best || (same == best && s == seq))
            best = same, from = s;
    }
    es_context_select(c, seq);
    int code = es_context_share(c, from, best, err);
    code = code ? code : es_context_sync(c, r->prompt, r->n_prompt, NULL, cancel, err);
    if (code)
        return code;
    g->at[seq] = i;
    es_rng_seed(&g->rng[seq], r->sampling.seed);
    return draw(g, seq, err);
}

/* A token for every sequence that is at work; *n: how many those are. */
static int step(generation *g, int *n, const volatile bool *cancel, es_error *err)
{
    int seq[ES_MAX_SEQUENCES];
    int32_t id[ES_MAX_SEQUENCES];
    *n = 0;
    for (int s = 0; s < g->c->n_seq; s++)
        if (g->at[s] != FREE) {
            const es_ids *ids = &g->reply[g->at[s]].ids;
            seq[*n] = s;
            id[(*n)++] = ids->id[ids->n - 1];
        }
    int code = *n ? es_context_step(g->c, seq, id, *n, cancel, err) : ES_OK;
    for (int i = 0; i < *n && !code; i++)
        code = draw(g, seq[i], err);
    return code;
}

int es_reply_text(const es_model *m, const es_reply *r, es_buf *out, es_error *err)
{
    for (size_t i = 0; i + r->ended < r->ids.n; i++) {
        size_t n = 0;
        const char *bytes = es_token_bytes(m, r->ids.id[i], &n);
        es_buf_add(out, bytes, es_token_is_control(m, r->ids.id[i]) ? 0 : n);
    }
    return out->failed ? es_fail(err, ES_ERR_MEMORY, "no memory for a reply") : ES_OK;
}

int es_generate(es_context *c, es_reply *reply, int n, int (*done)(void *user, int i, es_error *err), void *user, const volatile bool *cancel, es_error *err)
{
    generation g = {.c = c, .reply = reply, .done = done, .user = user};
    int code = ES_OK, next = 0, working = 1;
    for (int s = 0; s < c->n_seq; s++) {
        g.at[s] = FREE;
        c->slot[s].length = 0; /* of another patch, perhaps */
    }
    while (!code && working) {
        for (int s = 0; s < c->n_seq && !code; s++)
            while (!code && g.at[s] == FREE && next < n) /* a reply of one token leaves the sequence free */
                code = begin(&g, s, next++, cancel, err);
        code = code ? code : step(&g, &working, cancel, err);
    }
    es_context_select(c, 0);
    return code;
}
