/* learner: fixed inputs become white on neutral text. */
#include "learner_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct moments { double *moment; float *rows, *square; } moments; /* [n_entry, rank, rank]; scratch: [cap, rank], [rank, rank] */

/* Adds u u^T, u = A x, of the pack's counted rows to the lower triangles of moment. */
static int moments_of_pack(es_learner *l, void *user, const volatile bool *cancel, es_error *err)
{
    moments *m = user;
    const es_adapter *a = l->a;
    size_t rank = (size_t)a->o.rank;
    es_batch b = es_pack_batch(&l->pack);
    memset(l->pack.wanted, 0, (size_t)l->pack.n); /* the head is not needed */
    int rc = es_trainer_forward(l->trainer, &b, l->pack.resid, NULL, NULL, 0, l->pack.logprob, cancel, err);
    for (int i = 0; !rc && i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        double *to = m->moment + (size_t)i * rank * rank;
        rc = es_trainer_site_input(l->trainer, e->layer, e->site, l->site_input, err);
        if (rc)
            break;
        l->k->gemm(a->pool, false, true, l->pack.n, a->o.rank, e->n_in, 1, l->site_input, e->n_in, a->param + e->a, e->n_in, 0, m->rows, a->o.rank);
        l->k->gemm(a->pool, true, false, a->o.rank, a->o.rank, l->pack.n, 1, m->rows, a->o.rank, m->rows, a->o.rank, 0, m->square, a->o.rank);
        for (size_t x = 0; x < rank; x++)
            for (size_t y = 0; y <= x; y++)
                to[x * rank + y] += m->square[x * rank + y];
    }
    return rc;
}

/* A = L^-1 A, row by row: a_i = (a_i - sum_j<i L_ij a_j) / L_ii. */
static bool whiten_entry(es_adapter *a, const es_adapter_entry *e, double *moment)
{
    size_t rank = (size_t)a->o.rank, n_in = (size_t)e->n_in;
    double trace = 0;
    for (size_t i = 0; i < rank; i++)
        trace += moment[i * rank + i];
    if (!(trace > 0) || !isfinite(trace) || !es_linear_cholesky(moment, a->o.rank, 0.1 * trace / (double)rank))
        return false;
    for (size_t i = 0; i < rank; i++) {
        float *row = a->param + e->a + i * n_in;
        for (size_t j = 0; j < i; j++) {
            float c = (float)moment[i * rank + j];
            const float *other = a->param + e->a + j * n_in;
            for (size_t x = 0; x < n_in; x++)
                row[x] -= c * other[x];
        }
        for (size_t x = 0; x < n_in; x++)
            row[x] /= (float)moment[i * rank + i];
    }
    return true;
}

/* Packs the texts (kind 0: documents, 1: replies, without those that are for inputs alone; -1: all) and calls each with l->pack full. *counted: their tokens. */
static int each_pack(es_learner *l, const es_neutral_text *text, int n, int kind, int (*each)(es_learner *l, void *user, const volatile bool *cancel, es_error *err),
                     void *user, double *counted, const volatile bool *cancel, es_error *err)
{
    int below = es_adapter_lowest_layer(l->a) - 1, rc = ES_OK, room = l->pack.cap < 256 ? l->pack.cap : 256;
    *counted = 0;
    es_pack_clear(&l->pack);
    for (int i = 0; !rc && i <= n; i++) {
        es_sequence s = {0};
        bool last = i == n, fits = false;
        if (!last && kind >= 0 && ((text[i].n_message > 0) != kind || text[i].only_inputs))
            continue;
        if (!last) {
            rc = text[i].n_message ? es_sequence_make(&s, l->m, text[i].message, text[i].n_message, text[i].text, room / 4, room / 2, err)
                                   : es_sequence_text(&s, l->m, text[i].text, room, err);
            rc = rc ? rc : es_sequence_residual(&s, l->trainer, below, l->a->d, cancel, err);
            fits = !rc && es_pack_add(&l->pack, &s, 0);
        }
        if (!rc && !fits && l->pack.n)
            rc = each(l, user, cancel, err);
        if (!rc && !fits) {
            es_pack_clear(&l->pack);
            if (!last)
                es_pack_add(&l->pack, &s, 0);
        }
        *counted += !rc && !last ? s.n : 0;
        es_sequence_free(&s);
    }
    es_pack_clear(&l->pack);
    return rc;
}

int es_learner_whiten(es_learner *l, const es_neutral_text *text, int n, const volatile bool *cancel, es_error *err)
{
    es_adapter *a = l->a;
    size_t rank = (size_t)a->o.rank, square = rank * rank;
    if (!a->o.fixed_inputs || l->n || a->steps)
        return es_fail(err, ES_ERR_USAGE, "learner: only fixed inputs that nothing was learned with can be whitened");
    moments m = {es_calloc((size_t)a->n_entry, square * sizeof *m.moment), es_calloc((size_t)l->pack.cap, rank * sizeof *m.rows),
                 es_calloc(rank, rank * sizeof *m.square)};
    double counted = 0;
    int rc = m.moment && m.rows && m.square ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for the inputs' moments");
    rc = rc ? rc : each_pack(l, text, n, -1, moments_of_pack, &m, &counted, cancel, err);
    if (!rc && counted < (double)rank)
        rc = es_fail(err, ES_ERR_USAGE, "learner: %.0f tokens of neutral text are too few to whiten %d inputs", counted, a->o.rank);
    for (int i = 0; !rc && i < a->n_entry; i++) {
        for (size_t j = 0; j < square; j++)
            m.moment[(size_t)i * square + j] /= counted;
        if (!whiten_entry(a, &a->entry[i], m.moment + (size_t)i * square))
            rc = es_fail(err, ES_ERR_LIMIT, "learner: the inputs' second moment in layer %d is not a number or is zero", a->entry[i].layer);
    }
    free(m.moment);
    free(m.rows);
    free(m.square);
    if (!rc)
        es_adapter_refresh(a);
    return rc;
}

/* ---- what neutral text would lose ---------------------------------------------------------------------------------------------- */

static int gradient_of_pack(es_learner *l, void *user, const volatile bool *cancel, es_error *err)
{
    double *tokens = user;
    es_adapter *a = l->a;
    es_patch patch;
    es_batch b = es_pack_batch(&l->pack);
    es_grad g = {.b = l->grad_b, .seq_slot = l->pack.slot, .n_slot = 1};
    int rc = es_adapter_patch(a, 1, &patch, err);
    rc = rc ? rc : es_trainer_forward(l->trainer, &b, l->pack.resid, &patch, NULL, 0, l->pack.logprob, cancel, err);
    for (int t = 0; !rc && t < l->pack.n; t++) {
        l->pack.dlogprob[t] = l->pack.wanted[t] ? -1 : 0;
        *tokens += l->pack.wanted[t];
    }
    return rc ? rc : es_trainer_backward(l->trainer, &b, &patch, l->pack.dlogprob, NULL, NULL, &g, a->o.first_layer, cancel, err);
}

/* ---- how the residual is minded ------------------------------------------------------------------------------------------------- */

typedef struct scores { float **resid, *out; int n_vocab; es_rng rng; } scores; /* resid[n_layer of the model]: NULL, or [cap, d] */

/* The gradient of the log-likelihood of a token drawn from p. */
static void draw_target(void *user, int token, const float *p, float *dl)
{
    scores *s = user;
    int n = s->n_vocab, at = 0;
    double left = es_rng_uniform(&s->rng);
    (void)token;
    for (int i = 0; i < n; i++)
        dl[i] -= p[i];
    while (at + 1 < n && (left -= p[at]) >= 0)
        at++;
    dl[at] += 1;
}

static int scores_of_pack(es_learner *l, void *user, const volatile bool *cancel, es_error *err)
{
    scores *s = user;
    const es_adapter *a = l->a;
    size_t d = (size_t)a->d;
    es_batch b = es_pack_batch(&l->pack);
    es_grad g = {.resid = s->resid};
    int rc = es_trainer_forward(l->trainer, &b, l->pack.resid, NULL, NULL, 0, l->pack.logprob, cancel, err);
    rc = rc ? rc : es_trainer_backward(l->trainer, &b, NULL, NULL, draw_target, s, &g, a->o.first_layer, cancel, err);
    for (int layer = a->o.first_layer; !rc && layer <= a->o.last_layer; layer++) {
        float *x = s->resid[layer];
        l->k->gemm(a->pool, true, false, a->d, a->d, l->pack.n, 1, x, a->d, x, a->d, 1, s->out + (size_t)(layer - a->o.first_layer) * d * d, a->d);
    }
    return rc;
}

int es_learner_fisher(es_learner *l, const es_neutral_text *text, int n, float *out, const volatile bool *cancel, es_error *err)
{
    const es_adapter *a = l->a;
    size_t d = (size_t)a->d, layers = (size_t)(a->o.last_layer - a->o.first_layer + 1);
    scores s = {.resid = es_calloc((size_t)es_model_get_info(l->m)->n_layer, sizeof *s.resid), .out = out, .n_vocab = es_model_get_info(l->m)->n_vocab};
    float *rows = es_calloc(layers * (size_t)l->pack.cap, d * sizeof *rows);
    double tokens = 0;
    int rc = s.resid && rows ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for the gradients of %zu layers", layers);
    memset(out, 0, layers * d * d * sizeof *out);
    es_rng_seed(&s.rng, l->o.seed);
    for (size_t i = 0; !rc && i < layers; i++)
        s.resid[a->o.first_layer + (int)i] = rows + i * (size_t)l->pack.cap * d;
    for (int kind = 0; !rc && kind < 2; kind++) {
        double counted;
        rc = each_pack(l, text, n, kind, scores_of_pack, &s, &counted, cancel, err);
        tokens += counted;
    }
    for (size_t i = 0; !rc && tokens > 0 && i < layers * d * d; i++)
        out[i] = (float)(out[i] / tokens);
    free(rows);
    free(s.resid);
    return rc;
}

int es_learner_neutral_gradient(es_learner *l, const es_neutral_text *text, int n, int kind, float *out, const volatile bool *cancel, es_error *err)
{
    es_adapter *a = l->a;
    double tokens = 0, counted;
    if (a->o.constrained || !a->o.fixed_inputs)
        return es_fail(err, ES_ERR_USAGE, "learner: the neutral gradient is taken of an unconstrained adapter with fixed inputs");
    memset(l->slot_b, 0, l->slot_b_size * sizeof *l->slot_b);
    int rc = each_pack(l, text, n, kind, gradient_of_pack, &tokens, &counted, cancel, err);
    size_t each = (size_t)a->d * (size_t)a->o.rank;
    for (int i = 0; !rc && i < a->n_entry; i++)
        for (size_t j = 0; j < each; j++)
            out[a->entry[i].b + j] = tokens > 0 ? (float)(l->grad_b[i][j] / tokens) : 0;
    return rc;
}
