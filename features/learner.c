/* learner: adapts an adapter to experiences, a step at a time.
 *
 * A step: forward and backward over the experiences (packed end to end, from the cached residual below the adapter up), with a
 * gradient of its own for each experience; a step of the optimiser; guards, which shorten the step or refuse it; and the books: what
 * part of each coefficient's movement is whose. Until the step is accepted only trial numbers are in the adapter, and the old ones
 * come back on any error.
 *
 * The books. With Adam the step is -lr sum_e m_e / (sqrt(v) + eps), m_e the momentum of experience e alone, and m = sum_e m_e: so it
 * is a sum over experiences exactly. A coefficient of form bias is a parameter; one of form lora is (M A xbar)_i, whose change by
 * e is dM_e A xbar + M dA_e xbar to first order. The rest, products of two changes and what the guards project, belongs to no one. */
#include "adapter.h"
#include "linear.h"
#include "pack.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 16, TRIES = 6, ANCHOR_TOKENS = 512, MEDIAN_MAX = 1 << 16 };
static const size_t TRAINER_BYTES = (size_t)400 << 20; /* what the trainer may take: its batches are sized by this */

typedef struct es_item { /* an experience */
    es_sequence seq[2];     /* preferred, rejected; n 0: absent */
    double weight;
    bool held;
    float *grad, *momentum; /* [n_learned] of this step's gradient; Adam's, of this experience alone. One block; NULL when held */
    float *wish;            /* [K] what a plain gradient step of this experience alone would do to the coefficients */
    bool has_wish;
    double *influence;      /* [K] */
} es_item;

struct es_learner {
    es_model *m;
    es_adapter *a;
    es_learner_options o;
    const es_kernels *k;
    es_trainer *trainer;
    es_pack pack, anchors;
    es_sequence *anchor;
    int n_anchor;
    float *anchor_p;         /* [anchors.n, n_vocab] base probabilities */
    double *anchor_entropy, *anchor_mass; /* [anchors.n] sum p log p; sum p, which rounding leaves near 1 */
    float *logits;           /* [n_vocab] */

    es_item **item;
    int n, cap, n_held;
    int *order, n_order, at; /* learning items in this epoch's order (batch > 0) */
    int *chosen, n_chosen;   /* of this step */
    es_rng rng;

    float *old, *delta, *total; /* [n_learned] before the step; the step; the gradient */
    float *second, *rate;       /* [n_learned] Adam's second moment; this step's rate of each parameter; or NULL */
    double *rest, *old_coefficient, *coefficient_sum; /* [K] */
    float *new_coefficient, *dc; /* [K], [d] */
    int updates;                /* Adam's t */
    double longest;             /* metric: the longest |D u| so far */
    double *cholesky, *u;       /* metric: of D D^T + lambda I [K,K]; [K] */
    float *inverse, *swap;      /* metric, lora: (D D^T + lambda I)^-1 [K,K]; [K, rank] */
    float *slot_a, *slot_b;     /* gradients as the engine gives them: per entry [SLOTS][rank, n_in], [SLOTS][d, rank]; bias: slot_b [SLOTS][d] */
    float **grad_a, **grad_b;   /* [n_entry] into them */
    float *grad_v[1];
    size_t slot_a_size, slot_b_size; /* floats in all */
    double *mean_sum;           /* [n_mean] sums of inputs over reply tokens */
    double mean_tokens;
    float *site_input;          /* [cap, largest n_in] */
    float *norms;               /* |h| at the dictionary's layer, of reply tokens */
    int n_norms;
    double median;
    es_arena arena;
};

es_learner_options es_learner_default(es_form form)
{
    es_learner_options o = {.optimiser = ES_OPTIMISER_ADAM, .learning_rate = 0.002, .steps = 8, .momentum = 0.9, .decay = 0.99, .beta = 5,
                            .metric_lambda = 0.1, .enough = 0.05, .kappa = 0.03, .rho = 1, .max_reply = 96, .max_prompt = 128, .hold_out = 0.2, .seed = 1};
    if (form == ES_FORM_BIAS) {
        o.optimiser = ES_OPTIMISER_METRIC;
        o.learning_rate = 0.02;
    }
    return o;
}

/* ---- opening ------------------------------------------------------------------------------------------------------------ */

static bool is_adam(const es_learner *l)
{
    return l->o.optimiser == ES_OPTIMISER_ADAM;
}

static int largest_input(const es_adapter *a)
{
    int n = 0;
    for (int i = 0; i < a->n_entry; i++)
        n = a->entry[i].n_in > n ? a->entry[i].n_in : n;
    return n;
}

static void carve(es_learner *l, int cap)
{
    es_arena *r = &l->arena;
    const es_adapter *a = l->a;
    size_t n = a->n_learned, K = (size_t)a->K, d = (size_t)a->d, rank = (size_t)a->o.rank;
    bool bias = a->o.form == ES_FORM_BIAS;
    l->old = es_arena_take(r, n, sizeof *l->old);
    l->delta = es_arena_take(r, n, sizeof *l->delta);
    l->total = es_arena_take(r, n, sizeof *l->total);
    l->second = is_adam(l) ? es_arena_take(r, n, sizeof *l->second) : NULL;
    l->rate = is_adam(l) ? es_arena_take(r, n, sizeof *l->rate) : NULL;
    l->rest = es_arena_take(r, K, sizeof *l->rest);
    l->old_coefficient = es_arena_take(r, K, sizeof *l->old_coefficient);
    l->coefficient_sum = es_arena_take(r, K, sizeof *l->coefficient_sum);
    l->new_coefficient = es_arena_take(r, K, sizeof *l->new_coefficient);
    l->dc = es_arena_take(r, d, sizeof *l->dc);
    l->cholesky = is_adam(l) ? NULL : es_arena_take(r, K * K, sizeof *l->cholesky);
    l->u = es_arena_take(r, K, sizeof *l->u);
    l->inverse = is_adam(l) || bias ? NULL : es_arena_take(r, K * K, sizeof *l->inverse);
    l->swap = is_adam(l) || bias ? NULL : es_arena_take(r, K * rank, sizeof *l->swap);
    l->mean_sum = es_arena_take(r, a->n_mean, sizeof *l->mean_sum);
    l->site_input = es_arena_take(r, (size_t)cap * (size_t)largest_input(a), sizeof *l->site_input);
    l->logits = es_arena_take(r, (size_t)es_model_get_info(l->m)->n_vocab, sizeof *l->logits);
    l->norms = es_arena_take(r, MEDIAN_MAX, sizeof *l->norms);
    l->grad_a = es_arena_take(r, (size_t)a->n_entry, sizeof *l->grad_a);
    l->grad_b = es_arena_take(r, (size_t)a->n_entry, sizeof *l->grad_b);
    l->slot_a_size = SLOTS * rank * (bias || a->o.fixed_inputs ? 0 : a->n_mean);
    l->slot_b_size = SLOTS * d * (bias ? 1 : rank * (size_t)a->n_entry);
    l->slot_a = es_arena_take(r, l->slot_a_size, sizeof *l->slot_a);
    l->slot_b = es_arena_take(r, l->slot_b_size, sizeof *l->slot_b);
    for (int i = 0; l->grad_a && i < a->n_entry; i++) {
        l->grad_a[i] = l->slot_a && !a->o.fixed_inputs ? l->slot_a + SLOTS * rank * a->entry[i].mean : NULL;
        l->grad_b[i] = l->slot_b + SLOTS * rank * d * (size_t)i;
    }
    l->grad_v[0] = l->slot_b;
}

/* The largest batch whose trainer fits; at least `least` tokens. */
static int choose_tokens(const es_model *m, es_trainer_options *o, int least)
{
    static const int sizes[] = {2048, 1536, 1024, 768, 640, 512, 384, 256};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        o->max_tokens = sizes[i];
        if (sizes[i] <= least || es_trainer_bytes(m, o) <= TRAINER_BYTES)
            break;
    }
    if (o->max_tokens < least)
        o->max_tokens = least;
    return o->max_tokens;
}

static int anchors_open(es_learner *l, const volatile bool *cancel, es_error *err)
{
    int n = l->o.n_anchor, d = l->a->d, below = es_adapter_lowest_layer(l->a) - 1;
    const char *const *text = l->o.anchor ? l->o.anchor : es_anchor_texts(&n);
    int room = l->pack.cap < ANCHOR_TOKENS ? l->pack.cap : ANCHOR_TOKENS;
    size_t n_vocab = (size_t)es_model_get_info(l->m)->n_vocab;
    if (n < 1)
        return es_fail(err, ES_ERR_USAGE, "the KL guard needs at least one anchor text");
    l->anchor = es_calloc((size_t)n, sizeof *l->anchor);
    if (!l->anchor)
        return es_fail(err, ES_ERR_MEMORY, "no memory for anchors");
    int rc = es_pack_open(&l->anchors, room, d, err);
    if (rc)
        return rc;
    es_pack_clear(&l->anchors);
    for (int i = 0; !rc && i < n && room - l->anchors.n > 1; i++) {
        es_sequence *s = &l->anchor[l->n_anchor];
        rc = es_sequence_text(s, l->m, text[i], room - l->anchors.n, err);
        rc = rc ? rc : es_sequence_residual(s, l->trainer, below, d, cancel, err);
        if (rc)
            break;
        l->n_anchor++;
        es_pack_add(&l->anchors, s, 0);
    }
    if (rc)
        return rc;
    l->anchor_p = es_calloc((size_t)l->anchors.n, n_vocab * sizeof *l->anchor_p);
    l->anchor_entropy = es_calloc(2 * (size_t)l->anchors.n, sizeof *l->anchor_entropy);
    l->anchor_mass = l->anchor_entropy + l->anchors.n;
    if (!l->anchor_p || !l->anchor_entropy)
        return es_fail(err, ES_ERR_MEMORY, "no memory for the anchors' probabilities (%zu MB)", (size_t)l->anchors.n * n_vocab * 4 >> 20);
    es_batch b = es_pack_batch(&l->anchors);
    rc = es_trainer_forward(l->trainer, &b, l->anchors.resid, NULL, NULL, 0, l->anchors.logprob, cancel, err);
    for (int t = 0; !rc && t < l->anchors.n; t++) {
        float *p = l->anchor_p + (size_t)t * n_vocab;
        rc = es_trainer_logits(l->trainer, t, p, err);
        double lse = (double)p[l->anchors.target[t]] - l->anchors.logprob[t], entropy = 0, mass = 0;
        for (size_t i = 0; !rc && i < n_vocab; i++) {
            double logp = p[i] - lse;
            p[i] = expf((float)logp);
            entropy += p[i] * logp;
            mass += p[i];
        }
        l->anchor_entropy[t] = entropy;
        l->anchor_mass[t] = mass;
    }
    return rc;
}

int es_learner_open(es_learner **out, es_model *m, const es_dictionary *s, es_adapter *a, const es_learner_options *o, es_error *err)
{
    *out = NULL;
    const es_model_info *info = es_model_get_info(m);
    if (o->max_reply < 1 || o->max_prompt < 1 || o->max_reply > 1 << 16 || o->max_prompt > 1 << 16 || o->batch < 0)
        return es_fail(err, ES_ERR_USAGE, "learner: max_reply %d, max_prompt %d, batch %d cannot be", o->max_reply, o->max_prompt, o->batch);
    if (!isfinite(o->learning_rate) || o->learning_rate < 0 || !(o->beta > 0) || !(o->hold_out >= 0 && o->hold_out < 1) || !(o->kappa >= 0) || !(o->enough >= 0) ||
        !(o->rho >= 0) || !(o->momentum >= 0 && o->momentum < 1) || !(o->decay >= 0 && o->decay < 1) || !(o->metric_lambda >= 0))
        return es_fail(err, ES_ERR_USAGE, "learner: an option is out of range (rate, beta > 0, kappa, rho, lambda >= 0; shares in [0,1))");
    if (o->optimiser == ES_OPTIMISER_METRIC && a->o.form != ES_FORM_BIAS && !a->o.fixed_inputs)
        return es_fail(err, ES_ERR_USAGE, "learner: the metric step is for the form bias, and for lora with fixed inputs");
    if (s && a->has_basis && strcmp(es_dictionary_get_info(s)->hash, a->basis.dictionary_hash))
        return es_fail(err, ES_ERR_MISMATCH, "learner: the adapter's dictionary is %.12s, not %.12s", a->basis.dictionary_hash,
                       es_dictionary_get_info(s)->hash);
    es_learner *l = es_calloc(1, sizeof *l);
    if (!l)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a learner");
    l->m = m;
    l->a = a;
    l->o = *o;
    l->k = es_kernels_cpu();
    if (l->o.learning_rate == 0)
        l->o.learning_rate = o->optimiser == ES_OPTIMISER_METRIC ? es_learner_default(ES_FORM_BIAS).learning_rate
                                                                 : es_learner_default(ES_FORM_LORA).learning_rate;
    es_rng_seed(&l->rng, o->seed);
    es_trainer_options t = {.from_layer = es_adapter_lowest_layer(a), .backward = true, .max_hooks = 1, .threads = o->threads};
    int cap = choose_tokens(m, &t, 2 * (o->max_prompt + o->max_reply));
    carve(l, cap);
    size_t size = l->arena.used;
    l->arena = (es_arena){0};
    int rc = es_arena_open(&l->arena, size, err);
    if (!rc)
        carve(l, cap);
    rc = rc ? rc : es_trainer_open(&l->trainer, m, &t, err);
    rc = rc ? rc : es_pack_open(&l->pack, cap, info->d_model, err);
    if (!rc && o->kappa > 0)
        rc = anchors_open(l, NULL, err);
    if (!rc && !is_adam(l) && a->K) {
        size_t K = (size_t)a->K;
        float *gram = es_calloc(K * K, sizeof *gram);
        if (!gram)
            rc = es_fail(err, ES_ERR_MEMORY, "no memory for a metric of %zu features", K);
        else {
            es_linear_gram(a->pool, a->D, a->K, a->d, gram);
            for (size_t i = 0; i < K * K; i++)
                l->cholesky[i] = gram[i];
            if (!es_linear_cholesky(l->cholesky, a->K, o->metric_lambda > 1e-6 ? o->metric_lambda : 1e-6))
                rc = es_fail(err, ES_ERR_USAGE, "learner: the metric of this basis is singular; raise its lambda");
            free(gram);
        }
        for (int i = 0; !rc && l->inverse && i < a->K; i++) {
            for (int j = 0; j < a->K; j++)
                l->u[j] = i == j;
            es_linear_solve(l->cholesky, a->K, l->u);
            for (int j = 0; j < a->K; j++)
                l->inverse[(size_t)i * K + (size_t)j] = (float)l->u[j];
        }
    }
    if (rc) {
        es_learner_free(l);
        return rc;
    }
    *out = l;
    return ES_OK;
}

static void item_free(es_item *e)
{
    if (!e)
        return;
    es_sequence_free(&e->seq[0]);
    es_sequence_free(&e->seq[1]);
    free(e->grad);
    free(e->wish);
    free(e->influence);
    free(e);
}

void es_learner_free(es_learner *l)
{
    if (!l)
        return;
    for (int i = 0; i < l->n; i++)
        item_free(l->item[i]);
    for (int i = 0; i < l->n_anchor; i++)
        es_sequence_free(&l->anchor[i]);
    free(l->item);
    free(l->order);
    free(l->chosen);
    free(l->anchor);
    free(l->anchor_p);
    free(l->anchor_entropy);
    es_pack_close(&l->pack);
    if (l->anchors.arena.base)
        es_pack_close(&l->anchors);
    es_trainer_free(l->trainer);
    es_arena_close(&l->arena);
    free(l);
}

int es_learner_count(const es_learner *l)
{
    return l->n;
}

size_t es_learner_bytes(const es_learner *l)
{
    const es_adapter *a = l->a;
    es_trainer_options t = {.max_tokens = l->pack.cap, .from_layer = es_adapter_lowest_layer(a), .backward = true, .max_hooks = 1};
    size_t n = l->arena.size + l->pack.arena.size + l->anchors.arena.size + es_trainer_bytes(l->m, &t);
    if (l->anchor_p)
        n += (size_t)l->anchors.n * ((size_t)es_model_get_info(l->m)->n_vocab * sizeof *l->anchor_p + 2 * sizeof *l->anchor_entropy);
    for (int i = 0; i < l->n_anchor; i++)
        n += es_sequence_bytes(&l->anchor[i], a->d);
    for (int i = 0; i < l->n; i++) {
        n += es_sequence_bytes(&l->item[i]->seq[0], a->d) + es_sequence_bytes(&l->item[i]->seq[1], a->d) + sizeof *l->item[i];
        n += (size_t)a->K * (sizeof(float) + sizeof(double));
        if (l->item[i]->grad)
            n += (is_adam(l) ? 2 : 1) * a->n_learned * sizeof(float);
    }
    return n;
}

/* ---- fixed inputs become white ------------------------------------------------------------------------------------------- */

enum { SINKS = 4 }; /* the first tokens of a text, whose norms are a hundred times the others' */

/* Adds u u^T, u = A x, of the pack's counted rows to moment. rows: [cap, rank] of scratch. */
static int add_moments(es_learner *l, double *moment, float *rows, const volatile bool *cancel, es_error *err)
{
    const es_adapter *a = l->a;
    size_t rank = (size_t)a->o.rank;
    es_batch b = es_pack_batch(&l->pack);
    memset(l->pack.wanted, 0, (size_t)l->pack.n); /* the head is not needed */
    int rc = es_trainer_forward(l->trainer, &b, l->pack.resid, NULL, NULL, 0, l->pack.logprob, cancel, err);
    for (int i = 0; !rc && i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        double *to = moment + (size_t)i * rank * rank;
        rc = es_trainer_site_input(l->trainer, e->layer, e->site, l->site_input, err);
        if (rc)
            break;
        l->k->gemm(a->pool, false, true, l->pack.n, a->o.rank, e->n_in, 1, l->site_input, e->n_in, a->param + e->a, e->n_in, 0, rows, a->o.rank);
        for (int s = 0; s < l->pack.n_seq; s++)
            for (int t = l->pack.start[s] + SINKS; t < l->pack.start[s + 1]; t++)
                for (size_t x = 0; x < rank; x++)
                    for (size_t y = 0; y <= x; y++)
                        to[x * rank + y] += (double)rows[(size_t)t * rank + x] * rows[(size_t)t * rank + y];
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

int es_learner_whiten(es_learner *l, const es_neutral_text *text, int n, const volatile bool *cancel, es_error *err)
{
    es_adapter *a = l->a;
    size_t rank = (size_t)a->o.rank, square = rank * rank;
    int below = es_adapter_lowest_layer(a) - 1, rc = ES_OK;
    if (!a->o.fixed_inputs || l->n || a->steps)
        return es_fail(err, ES_ERR_USAGE, "learner: only fixed inputs that nothing was learned with can be whitened");
    double *moment = es_calloc((size_t)a->n_entry, square * sizeof *moment), counted = 0;
    float *rows = es_calloc((size_t)l->pack.cap, rank * sizeof *rows);
    if (!moment || !rows)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for the inputs' moments");
    es_pack_clear(&l->pack);
    for (int i = 0; !rc && i <= n; i++) {
        es_sequence s = {0};
        bool last = i == n, fits = false;
        if (!last) {
            int room = l->pack.cap < 256 ? l->pack.cap : 256;
            rc = text[i].n_message ? es_sequence_make(&s, l->m, text[i].message, text[i].n_message, text[i].text, room / 4, room / 2, err)
                                   : es_sequence_text(&s, l->m, text[i].text, room, err);
            rc = rc ? rc : es_sequence_residual(&s, l->trainer, below, a->d, cancel, err);
            fits = !rc && es_pack_add(&l->pack, &s, 0);
        }
        if (!rc && !fits && l->pack.n)
            rc = add_moments(l, moment, rows, cancel, err);
        if (!rc && !fits) {
            es_pack_clear(&l->pack);
            if (!last)
                es_pack_add(&l->pack, &s, 0);
        }
        counted += !rc && !last && s.n > SINKS ? s.n - SINKS : 0;
        es_sequence_free(&s);
    }
    es_pack_clear(&l->pack);
    if (!rc && counted < (double)rank)
        rc = es_fail(err, ES_ERR_USAGE, "learner: %.0f tokens of neutral text are too few to whiten %d inputs", counted, a->o.rank);
    for (int i = 0; !rc && i < a->n_entry; i++) {
        for (size_t j = 0; j < square; j++)
            moment[(size_t)i * square + j] /= counted;
        if (!whiten_entry(a, &a->entry[i], moment + (size_t)i * square))
            rc = es_fail(err, ES_ERR_LIMIT, "learner: the inputs' second moment in layer %d is not a number or is zero", a->entry[i].layer);
    }
    free(moment);
    free(rows);
    if (!rc)
        es_adapter_refresh(a);
    return rc;
}

/* ---- experiences come in ---------------------------------------------------------------------------------------------------- */

typedef struct norm_watch {
    es_learner *l;
    int count; /* taken in this pass; the learner's own count follows when it has succeeded */
} norm_watch;

static void watch_norms(void *user, int layer, int pos0, const float *h, int T, int d)
{
    norm_watch *w = user;
    (void)layer;
    (void)pos0;
    for (int t = 0; t < T && w->l->n_norms + w->count < MEDIAN_MAX; t++) {
        if (!w->l->pack.wanted[t])
            continue;
        double sum = 0;
        for (int j = 0; j < d; j++)
            sum += (double)h[(size_t)t * d + j] * h[(size_t)t * d + j];
        w->l->norms[w->l->n_norms + w->count++] = (float)sqrt(sum);
    }
}

static int float_order(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Base log-probabilities, |h| at the dictionary's layer, and the sum of the adapted matrices' inputs over the reply's tokens. */
static int measure_base(es_learner *l, es_item *e, double *sum, double *tokens, int *norms, const volatile bool *cancel, es_error *err)
{
    const es_adapter *a = l->a;
    int below = es_adapter_lowest_layer(a) - 1, rc = ES_OK;
    es_pack_clear(&l->pack);
    for (int i = 0; !rc && i < 2; i++) {
        if (!e->seq[i].n)
            continue;
        rc = es_sequence_residual(&e->seq[i], l->trainer, below, a->d, cancel, err);
        if (!rc)
            es_pack_add(&l->pack, &e->seq[i], 0); /* the pack holds at least two sequences of the longest kind */
    }
    if (rc)
        return rc;
    norm_watch norm = {.l = l};
    es_watch watch = {.layer = a->layer >= below ? a->layer : below, .fn = watch_norms, .user = &norm};
    es_batch b = es_pack_batch(&l->pack);
    rc = es_trainer_forward(l->trainer, &b, l->pack.resid, NULL, &watch, 1, l->pack.logprob, cancel, err);
    if (rc)
        return rc;
    es_pack_means(&l->pack);
    for (int i = 0; i < 2; i++)
        e->seq[i].base = e->seq[i].now;
    for (int i = 0; !rc && !e->held && i < a->n_entry; i++) {
        const es_adapter_entry *entry = &a->entry[i];
        rc = es_trainer_site_input(l->trainer, entry->layer, entry->site, l->site_input, err);
        for (int t = 0; !rc && t < l->pack.n; t++)
            for (int j = 0; l->pack.wanted[t] && j < entry->n_in; j++)
                sum[entry->mean + (size_t)j] += l->site_input[(size_t)t * (size_t)entry->n_in + (size_t)j];
    }
    for (int t = 0; !e->held && t < l->pack.n; t++)
        *tokens += l->pack.wanted[t];
    *norms = norm.count;
    return rc;
}

/* An item without sequences, and room for it in the lists. */
static int new_item(es_learner *l, double weight, bool held, es_item **out, es_error *err)
{
    size_t K = (size_t)l->a->K, n = l->a->n_learned;
    *out = NULL;
    if (l->n == l->cap) {
        int cap = l->cap ? 2 * l->cap : 16;
        es_item **item = realloc(l->item, sizeof *item * (size_t)cap);
        if (item)
            l->item = item;
        int *order = realloc(l->order, sizeof *order * (size_t)cap);
        if (order)
            l->order = order;
        int *chosen = realloc(l->chosen, sizeof *chosen * (size_t)cap);
        if (chosen)
            l->chosen = chosen;
        if (!item || !order || !chosen)
            return es_fail(err, ES_ERR_MEMORY, "no memory for %d experiences", cap);
        l->cap = cap;
    }
    es_item *e = es_calloc(1, sizeof *e);
    if (!e)
        return es_fail(err, ES_ERR_MEMORY, "no memory for an experience");
    e->held = held;
    e->weight = weight;
    if (!held)
        e->grad = es_calloc(n, (is_adam(l) ? 2 : 1) * sizeof *e->grad);
    e->momentum = e->grad && is_adam(l) ? e->grad + n : NULL;
    e->wish = es_calloc(K + 1, sizeof *e->wish);
    e->influence = es_calloc(K + 1, sizeof *e->influence);
    if ((!held && !e->grad) || !e->wish || !e->influence) {
        item_free(e);
        return es_fail(err, ES_ERR_MEMORY, "no memory for an experience");
    }
    *out = e;
    return ES_OK;
}

int es_learner_add(es_learner *l, const es_experience *x, const volatile bool *cancel, es_error *err)
{
    es_adapter *a = l->a;
    size_t K = (size_t)a->K;
    if (!x->preferred && !x->rejected)
        return es_fail(err, ES_ERR_USAGE, "an experience needs a preferred or a rejected reply");
    if (!isfinite(x->weight) || x->weight < 0)
        return es_fail(err, ES_ERR_USAGE, "the weight of an experience must be a number of at least 0");
    int due = l->n + 1 >= 4 && l->o.hold_out > 0 ? (int)(l->o.hold_out * (l->n + 1)) : 0;
    due = due < 1 && l->n + 1 >= 4 && l->o.hold_out > 0 ? 1 : due;
    es_item *e = NULL;
    double *sum = es_calloc(a->n_mean + 1, sizeof *sum), tokens = 0;
    int norms = 0, rc = sum ? new_item(l, x->weight, l->n_held < due, &e, err) : es_fail(err, ES_ERR_MEMORY, "no memory for an experience");
    const char *reply[2] = {x->preferred, x->rejected};
    for (int i = 0; !rc && i < 2; i++)
        if (reply[i])
            rc = es_sequence_make(&e->seq[i], l->m, x->message, x->n_message, reply[i], l->o.max_prompt, l->o.max_reply, err);
    rc = rc ? rc : measure_base(l, e, sum, &tokens, &norms, cancel, err);
    if (rc) {
        free(sum);
        item_free(e);
        return rc;
    }
    /* From here on nothing fails. */
    for (size_t i = 0; i < a->n_mean; i++)
        l->mean_sum[i] += sum[i];
    l->mean_tokens += tokens;
    free(sum);
    l->n_norms += norms;
    if (l->n_norms) {
        qsort(l->norms, (size_t)l->n_norms, sizeof *l->norms, float_order);
        l->median = l->norms[l->n_norms / 2];
    }
    l->item[l->n++] = e;
    l->n_held += e->held;
    l->n_order = l->at = 0; /* a new epoch */
    if (!e->held && a->n_mean && l->mean_tokens > 0) { /* another input set: the coefficients are read anew, and nobody's step did it */
        for (size_t i = 0; i < K; i++)
            l->old_coefficient[i] = a->coefficient[i];
        for (size_t i = 0; i < a->n_mean; i++)
            a->mean_input[i] = (float)(l->mean_sum[i] / l->mean_tokens);
        es_adapter_read(a, a->param, a->coefficient);
        for (size_t i = 0; i < K; i++)
            l->rest[i] += a->coefficient[i] - l->old_coefficient[i];
    }
    return ES_OK;
}

static int sequence_copy(es_sequence *to, const es_sequence *from, int d, es_error *err)
{
    size_t n = (size_t)from->n;
    *to = *from;
    to->ids = es_calloc(2 * n + 1, sizeof *to->ids);
    to->resid = es_calloc(n * (size_t)d + 1, sizeof *to->resid);
    to->target = to->ids + n;
    if (!to->ids || !to->resid)
        return es_fail(err, ES_ERR_MEMORY, "no memory for an experience");
    if (n) {
        memcpy(to->ids, from->ids, 2 * n * sizeof *to->ids);
        memcpy(to->resid, from->resid, n * (size_t)d * sizeof *to->resid);
    }
    return ES_OK;
}

int es_learner_share(es_learner *l, const es_learner *from, es_error *err)
{
    es_adapter *a = l->a;
    const es_adapter *b = from->a;
    if (l->n || l->m != from->m || a->o.form != ES_FORM_LORA || b->o.form != ES_FORM_LORA || a->n_mean != b->n_mean ||
        a->o.first_layer != b->o.first_layer || a->d != b->d)
        return es_fail(err, ES_ERR_USAGE, "learners of different bands or models share nothing");
    for (int i = 0; i < from->n; i++) {
        es_item *e = NULL;
        int rc = new_item(l, from->item[i]->weight, from->item[i]->held, &e, err);
        for (int j = 0; !rc && j < 2; j++)
            rc = sequence_copy(&e->seq[j], &from->item[i]->seq[j], a->d, err);
        if (rc) {
            item_free(e);
            return rc;
        }
        l->item[l->n++] = e;
        l->n_held += e->held;
    }
    memcpy(l->mean_sum, from->mean_sum, a->n_mean * sizeof *l->mean_sum);
    memcpy(l->norms, from->norms, (size_t)from->n_norms * sizeof *l->norms);
    l->mean_tokens = from->mean_tokens;
    l->n_norms = from->n_norms;
    l->median = from->median;
    for (size_t i = 0; l->mean_tokens > 0 && i < a->n_mean; i++)
        a->mean_input[i] = (float)(l->mean_sum[i] / l->mean_tokens);
    es_adapter_read(a, a->param, a->coefficient);
    return ES_OK;
}

/* ---- gradients ---------------------------------------------------------------------------------------------------------------- */

static es_sequence *reply_of(es_item *e, int i)
{
    return e->seq[i].n ? &e->seq[i] : NULL;
}

static int item_tokens(const es_item *e)
{
    return e->seq[0].n + e->seq[1].n;
}

/* The engine's gradient of slot s into the parameters' own shape. */
static void slot_gradient(es_learner *l, int s, float *out)
{
    const es_adapter *a = l->a;
    int d = a->d, rank = a->o.rank;
    if (a->o.form == ES_FORM_BIAS) { /* v = D^T c */
        l->k->gemm(a->pool, false, false, a->K, 1, d, 1, a->D, d, l->slot_b + (size_t)s * (size_t)d, 1, 0, out, 1);
        return;
    }
    for (int i = 0; i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        size_t n_a = (size_t)rank * (size_t)e->n_in, n_b = (size_t)d * (size_t)rank;
        const float *db = l->grad_b[i] + (size_t)s * n_b;
        if (!a->o.fixed_inputs)
            memcpy(out + e->a, l->grad_a[i] + (size_t)s * n_a, n_a * sizeof *out);
        if (a->o.constrained) /* B = D^T M */
            l->k->gemm(a->pool, false, false, a->K, rank, d, 1, a->D, d, db, rank, 0, out + e->b, rank);
        else
            memcpy(out + e->b, db, n_b * sizeof *out);
    }
}

/* To first order, what a change of the parameters does to the coefficients: out[K] += scale * that. */
static void coefficient_change(const es_adapter *a, const float *param, const float *change, double scale, double *out)
{
    if (a->o.form == ES_FORM_BIAS) {
        for (int i = 0; i < a->K; i++)
            out[i] += scale * change[i];
        return;
    }
    int rank = a->o.rank;
    for (int i = 0; a->K && i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        const float *x = a->mean_input + e->mean;
        for (int r = 0; r < rank; r++) {
            size_t at_a = e->a + (size_t)r * (size_t)e->n_in;
            const float *row = (a->o.fixed_inputs ? a->param : param) + at_a, *drow = a->o.fixed_inputs ? NULL : change + at_a;
            double u = 0, du = 0;
            for (int j = 0; j < e->n_in; j++)
                u += (double)row[j] * x[j];
            for (int j = 0; drow && j < e->n_in; j++)
                du += (double)drow[j] * x[j];
            for (int c = 0; c < a->K; c++) {
                size_t at = e->b + (size_t)c * (size_t)rank + (size_t)r;
                out[c] += scale * (change[at] * u + param[at] * du);
            }
        }
    }
}

/* Forward and, with backward, the gradients (item->grad) of the n items in which[], of weights summing to 1 as share says. */
static int pass(es_learner *l, const int *which, int n, bool backward, double weights, double *loss, int *tokens, const volatile bool *cancel,
                es_error *err)
{
    es_adapter *a = l->a;
    es_patch patch;
    int rc = es_adapter_patch(a, 1, &patch, err);
    *loss = 0;
    for (int first = 0; !rc && first < n;) {
        int end = first;
        es_pack_clear(&l->pack);
        while (end < n && end - first < SLOTS && item_tokens(l->item[which[end]]) <= l->pack.cap - l->pack.n) {
            for (int i = 0; i < 2; i++)
                if (l->item[which[end]]->seq[i].n)
                    es_pack_add(&l->pack, &l->item[which[end]]->seq[i], end - first);
            end++;
        }
        if (end == first)
            return es_fail(err, ES_ERR_LIMIT, "an experience of %d tokens does not fit into a batch of %d", item_tokens(l->item[which[first]]),
                           l->pack.cap);
        es_batch b = es_pack_batch(&l->pack);
        rc = es_trainer_forward(l->trainer, &b, l->pack.resid, &patch, NULL, 0, l->pack.logprob, cancel, err);
        if (rc)
            return rc;
        es_pack_means(&l->pack);
        *tokens += l->pack.n;
        for (int i = first, s = 0; i < end; i++) {
            es_item *e = l->item[which[i]];
            double slope[2], share = e->weight / weights;
            *loss += share * es_experience_loss(reply_of(e, 0), reply_of(e, 1), l->o.beta, &slope[0], &slope[1]);
            for (int j = 0; j < 2; j++) {
                if (!e->seq[j].n)
                    continue;
                for (int t = l->pack.start[s + 1] - e->seq[j].n_reply; t < l->pack.start[s + 1]; t++)
                    l->pack.dlogprob[t] = (float)(share * slope[j] / e->seq[j].n_reply);
                s++;
            }
        }
        if (backward) {
            memset(l->slot_a, 0, l->slot_a_size * sizeof *l->slot_a);
            memset(l->slot_b, 0, l->slot_b_size * sizeof *l->slot_b);
            bool bias = a->o.form == ES_FORM_BIAS;
            es_grad g = {.a = bias || a->o.fixed_inputs ? NULL : l->grad_a, .b = bias ? NULL : l->grad_b, .addend = bias ? l->grad_v : NULL,
                         .seq_slot = l->pack.slot, .n_slot = end - first};
            rc = es_trainer_backward(l->trainer, &b, &patch, l->pack.dlogprob, NULL, NULL, &g, bias ? a->layer : a->o.first_layer, cancel, err);
            for (int i = first; !rc && i < end; i++)
                slot_gradient(l, i - first, l->item[which[i]]->grad);
        }
        first = end;
    }
    return rc;
}

/* ---- guards ------------------------------------------------------------------------------------------------------------------------ */

/* Mean KL(base || adapted) over the anchors' tokens. */
static int anchors_kl(es_learner *l, double *kl, const volatile bool *cancel, es_error *err)
{
    *kl = 0;
    if (!l->anchor_p)
        return ES_OK;
    es_patch patch;
    es_batch b = es_pack_batch(&l->anchors);
    size_t n_vocab = (size_t)es_model_get_info(l->m)->n_vocab;
    int rc = es_adapter_patch(l->a, 1, &patch, err);
    rc = rc ? rc : es_trainer_forward(l->trainer, &b, l->anchors.resid, &patch, NULL, 0, l->anchors.logprob, cancel, err);
    for (int t = 0; !rc && t < l->anchors.n; t++) {
        const float *p = l->anchor_p + (size_t)t * n_vocab;
        rc = es_trainer_logits(l->trainer, t, l->logits, err);
        if (rc)
            break;
        /* sum p (log p - logit + lse), and lse = logit of the target - its log-probability */
        double cross = 0, lse = (double)l->logits[l->anchors.target[t]] - l->anchors.logprob[t];
        for (size_t i = 0; i < n_vocab; i += 64) {
            float part[8] = {0};
            size_t end = i + 64 < n_vocab ? i + 64 : n_vocab, j = i;
            for (; j + 8 <= end; j += 8)
                for (int q = 0; q < 8; q++)
                    part[q] += p[j + (size_t)q] * l->logits[j + (size_t)q];
            for (; j < end; j++)
                part[0] += p[j] * l->logits[j];
            cross += (double)part[0] + part[1] + part[2] + part[3] + part[4] + part[5] + part[6] + part[7];
        }
        *kl += (l->anchor_entropy[t] - cross + lse * l->anchor_mass[t]) / l->anchors.n;
    }
    return rc;
}

/* |D c| of the coefficients over the median |h|. */
static double relative_norm(es_learner *l, const float *coefficient)
{
    const es_adapter *a = l->a;
    if (!a->K || !(l->median > 0))
        return 0;
    l->k->gemm(a->pool, true, false, a->d, 1, a->K, 1, a->D, a->d, coefficient, 1, 0, l->dc, 1);
    double sum = 0;
    for (int j = 0; j < a->d; j++)
        sum += (double)l->dc[j] * l->dc[j];
    return sqrt(sum) / l->median;
}

/* Multiplies what feature i (or all, i < 0) gets from the adapter. */
static void scale_rows(es_adapter *a, int i, float factor)
{
    int from = i < 0 ? 0 : i, to = i < 0 ? (a->o.constrained ? a->K : a->d) : i + 1;
    if (a->o.form == ES_FORM_BIAS) {
        for (int c = from; c < to; c++)
            a->param[c] *= factor;
        return;
    }
    size_t rank = (size_t)a->o.rank;
    for (int e = 0; e < a->n_entry; e++)
        for (size_t j = (size_t)from * rank; j < (size_t)to * rank; j++)
            a->param[a->entry[e].b + j] *= factor;
}

/* Puts the coefficients back inside the bounds and |D c| inside rho. Sets *guard when it had to. */
static void project(es_learner *l, const char **guard)
{
    es_adapter *a = l->a;
    if (!a->K)
        return;
    es_adapter_read(a, a->param, l->new_coefficient);
    for (int i = 0; i < a->K; i++) {
        float c = l->new_coefficient[i], bound = c < a->basis.lo[i] ? a->basis.lo[i] : c > a->basis.hi[i] ? a->basis.hi[i] : c;
        if (bound == c)
            continue;
        *guard = "bounds";
        scale_rows(a, i, bound / c);
        l->new_coefficient[i] = bound;
    }
    double norm = relative_norm(l, l->new_coefficient);
    if (l->o.rho > 0 && norm > l->o.rho) {
        *guard = "norm";
        scale_rows(a, -1, (float)(l->o.rho / norm));
    }
}

/* ---- the step ---------------------------------------------------------------------------------------------------------------------- */

static void choose_items(es_learner *l)
{
    l->n_chosen = 0;
    if (l->o.batch > 0 && l->at >= l->n_order) {
        l->n_order = l->at = 0;
        for (int i = 0; i < l->n; i++)
            if (!l->item[i]->held && l->item[i]->weight > 0)
                l->order[l->n_order++] = i;
        for (int i = l->n_order - 1; i > 0; i--) {
            int j = (int)es_rng_below(&l->rng, (uint64_t)i + 1), t = l->order[i];
            l->order[i] = l->order[j];
            l->order[j] = t;
        }
    }
    if (l->o.batch > 0)
        while (l->at < l->n_order && l->n_chosen < l->o.batch)
            l->chosen[l->n_chosen++] = l->order[l->at++];
    else
        for (int i = 0; i < l->n; i++)
            if (!l->item[i]->held && l->item[i]->weight > 0)
                l->chosen[l->n_chosen++] = i;
}

static bool is_chosen(const es_learner *l, int i)
{
    for (int j = 0; j < l->n_chosen; j++)
        if (l->chosen[j] == i)
            return true;
    return false;
}

/* Fills delta, and turns the chosen items' grad (others': zeros) into their part of it. Commits nothing. */
static void adam_delta(es_learner *l)
{
    size_t n = l->a->n_learned;
    double b1 = l->o.momentum, b2 = l->o.decay, t = l->updates + 1;
    float scale = (float)(l->o.learning_rate / (1 - pow(b1, t))), unbias = (float)(1 / (1 - pow(b2, t)));
    memset(l->delta, 0, n * sizeof *l->delta);
    for (int e = 0; e < l->n; e++) {
        es_item *it = l->item[e];
        if (!it->grad)
            continue;
        if (!is_chosen(l, e))
            memset(it->grad, 0, n * sizeof *it->grad);
        for (size_t i = 0; i < n; i++) {
            float m = (float)b1 * it->momentum[i] + (float)(1 - b1) * it->grad[i];
            it->grad[i] = m; /* from here on: the momentum after this step */
            l->delta[i] += m;
        }
    }
    for (size_t i = 0; i < n; i++) {
        float v = (float)b2 * l->second[i] + (1 - (float)b2) * l->total[i] * l->total[i];
        l->rate[i] = -scale / (sqrtf(v * unbias) + 1e-8f);
        l->delta[i] *= l->rate[i];
    }
}

/* out = (D D^T + lambda I)^-1 in, both [n_learned] and possibly one; without a basis the metric is that of d itself. */
static void apply_metric(es_learner *l, const float *in, float *out)
{
    es_adapter *a = l->a;
    size_t rank = (size_t)a->o.rank;
    if (a->o.form == ES_FORM_BIAS) {
        for (int i = 0; i < a->K; i++)
            l->u[i] = in[i];
        es_linear_solve(l->cholesky, a->K, l->u);
        for (int i = 0; i < a->K; i++)
            out[i] = (float)l->u[i];
        return;
    }
    if (!a->K && in != out)
        memcpy(out, in, a->n_learned * sizeof *out);
    for (int i = 0; a->K && i < a->n_entry; i++) {
        l->k->gemm(a->pool, false, false, a->K, a->o.rank, a->K, 1, l->inverse, a->K, in + a->entry[i].b, a->o.rank, 0, l->swap, a->o.rank);
        memcpy(out + a->entry[i].b, l->swap, (size_t)a->K * rank * sizeof *out);
    }
}

/* What a change adds to the residual in mean square: |D dc|; or root sum |D^T dM|^2, the inputs of M being white. With g the gradient and
 * P g the change that is root <g, P g> but for lambda, so it needs no second product. */
static double metric_length(es_learner *l, const float *gradient, const float *change)
{
    double sum = 0;
    for (size_t i = 0; i < l->a->n_learned; i++)
        sum += (double)gradient[i] * change[i];
    return sqrt(sum > 0 ? sum : 0);
}

/* delta = -s (D D^T + lambda I)^-1 g: its length is the learning rate times the median |h| when the gradient is as long as the longest so
 * far, and shorter in proportion after that. */
static void metric_delta(es_learner *l)
{
    es_adapter *a = l->a;
    size_t n = a->n_learned;
    apply_metric(l, l->total, l->delta);
    double length = a->o.form == ES_FORM_BIAS ? relative_norm(l, l->delta) * l->median : metric_length(l, l->total, l->delta);
    if (length > l->longest)
        l->longest = length;
    float scale = l->longest > 0 ? (float)(l->o.learning_rate * l->median / l->longest) : 0;
    for (size_t i = 0; i < n; i++)
        l->delta[i] *= -scale;
    for (int e = 0; e < l->n_chosen; e++) { /* the same of each experience's gradient */
        float *g = l->item[l->chosen[e]]->grad;
        apply_metric(l, g, g);
        for (size_t i = 0; i < n; i++)
            g[i] *= -scale;
    }
}

/* Share out the accepted step of length t. */
static void keep_books(es_learner *l, double t)
{
    es_adapter *a = l->a;
    size_t n = a->n_learned, K = (size_t)a->K;
    if (!K)
        return;
    for (size_t i = 0; i < K; i++)
        l->coefficient_sum[i] = 0;
    for (int e = 0; e < l->n; e++) {
        es_item *it = l->item[e];
        if (!it->grad || (!is_adam(l) && !is_chosen(l, e)))
            continue;
        const float *part = it->grad;
        if (is_adam(l)) { /* delta is free by now: this experience's part of it */
            for (size_t i = 0; i < n; i++)
                l->delta[i] = l->rate[i] * it->grad[i];
            part = l->delta;
        }
        for (size_t i = 0; i < K; i++)
            l->u[i] = 0;
        coefficient_change(a, l->old, part, t, l->u);
        for (size_t i = 0; i < K; i++) {
            it->influence[i] += l->u[i];
            l->coefficient_sum[i] += l->u[i];
        }
    }
    for (size_t i = 0; i < K; i++)
        l->rest[i] += a->coefficient[i] - l->old_coefficient[i] - l->coefficient_sum[i];
}

static void trial(es_learner *l, double t, double shrink, const char **guard)
{
    es_adapter *a = l->a;
    for (size_t i = 0; i < a->n_learned; i++)
        a->param[i] = l->old[i] + (float)t * l->delta[i];
    if (shrink < 1)
        scale_rows(a, -1, (float)shrink);
    project(l, guard);
    es_adapter_expand(a);
}

static void restore(es_learner *l)
{
    memcpy(l->a->param, l->old, l->a->n_learned * sizeof *l->old);
    es_adapter_expand(l->a);
}

/* Brings the KL on the anchors to at most kappa. A step that leads far out is shortened; one that ends a little outside is kept and the whole
 * adapter shrunk until it fits, so that at the border it can still turn towards what is new. KL grows like the square of both. *t: the
 * factor on the step in all; 0 when it had to be refused. */
static int accept(es_learner *l, double *t, double *kl, const char **guard, const volatile bool *cancel, es_error *err)
{
    double length = 1, shrink = 1, kappa = l->o.kappa;
    for (int try = 0; try <= TRIES && length > 0.01; try++) {
        const char *projected = NULL;
        trial(l, length, shrink, &projected);
        *guard = try ? "kl" : projected;
        int rc = anchors_kl(l, kl, cancel, err);
        if (rc)
            return rc;
        if (isfinite(*kl) && (kappa == 0 || *kl <= kappa)) {
            *t = length * shrink;
            return ES_OK;
        }
        double to = isfinite(*kl) ? sqrt(kappa / *kl) : 0;
        if (to >= 0.5 && shrink * to >= 0.5) {
            shrink *= 0.97 * to;
        } else {
            length *= to < 0.1 ? 0.1 : to < 0.5 ? to : 0.5;
            shrink = 1;
        }
    }
    *guard = "kl";
    *t = 0;
    return ES_OK;
}

static void report_moves(es_learner *l, es_step_report *out)
{
    const es_adapter *a = l->a;
    for (int c = 0; c < a->K; c++) {
        float by = (float)(a->coefficient[c] - l->old_coefficient[c]);
        int i = out->n_moved;
        if (by == 0)
            continue;
        if (i == 8 && fabsf(by) <= fabsf(out->by[7]))
            continue;
        i = i == 8 ? 7 : i;
        for (; i > 0 && fabsf(out->by[i - 1]) < fabsf(by); i--) {
            out->by[i] = out->by[i - 1];
            out->moved[i] = out->moved[i - 1];
        }
        out->by[i] = by;
        out->moved[i] = c;
        out->n_moved += out->n_moved < 8;
    }
}

int es_learner_gradient(es_learner *l, double *loss, float *gradient, es_error *err)
{
    int n = 0, tokens = 0;
    double weights = 0;
    for (int i = 0; i < l->n; i++)
        if (!l->item[i]->held && l->item[i]->weight > 0) {
            l->chosen[n++] = i;
            weights += l->item[i]->weight;
        }
    int rc = pass(l, l->chosen, n, gradient != NULL, weights, loss, &tokens, NULL, err);
    for (size_t j = 0; !rc && gradient && j < l->a->n_learned; j++) {
        gradient[j] = 0;
        for (int i = 0; i < n; i++)
            gradient[j] += l->item[l->chosen[i]]->grad[j];
    }
    return rc;
}

int es_learner_step(es_learner *l, es_step_report *out, const volatile bool *cancel, es_error *err)
{
    es_adapter *a = l->a;
    size_t n = a->n_learned;
    double started = es_seconds(), weights = 0, t = 0;
    *out = (es_step_report){.step = a->steps + 1, .backtracked = 1};
    choose_items(l);
    if (!l->n_chosen)
        return es_fail(err, ES_ERR_USAGE, "there is nothing to learn from: no experience with a weight above 0");
    for (int i = 0; i < l->n_chosen; i++)
        weights += l->item[l->chosen[i]]->weight;
    int rc = pass(l, l->chosen, l->n_chosen, true, weights, &out->loss, &out->tokens, cancel, err);
    if (rc)
        return rc;

    memset(l->total, 0, n * sizeof *l->total);
    for (int i = 0; i < l->n_chosen; i++) {
        es_item *it = l->item[l->chosen[i]];
        for (size_t j = 0; j < n; j++)
            l->total[j] += it->grad[j];
        out->margin += es_experience_gain(reply_of(it, 0), reply_of(it, 1)) / l->n_chosen;
    }
    double square = 0;
    for (size_t i = 0; i < n; i++)
        square += (double)l->total[i] * l->total[i];
    if (!isfinite(out->loss) || !isfinite(square))
        return es_fail(err, ES_ERR_LIMIT, "step %d refused: its %s is not a number; the adapter is as before", out->step,
                       isfinite(out->loss) ? "gradient" : "loss");
    if (out->loss < l->o.enough) {
        out->backtracked = 0;
        out->guard = "learned";
        rc = anchors_kl(l, &out->kl, cancel, err);
        out->norm = relative_norm(l, a->coefficient);
        out->seconds = es_seconds() - started;
        return rc;
    }
    for (int i = 0; i < l->n_chosen; i++) { /* what each experience alone asks for, at its weight */
        es_item *it = l->item[l->chosen[i]];
        for (int c = 0; c < a->K; c++)
            l->u[c] = 0;
        coefficient_change(a, a->param, it->grad, -weights / it->weight, l->u);
        for (int c = 0; c < a->K; c++)
            it->wish[c] = (float)l->u[c];
        it->has_wish = true;
    }

    memcpy(l->old, a->param, n * sizeof *l->old);
    for (int c = 0; c < a->K; c++)
        l->old_coefficient[c] = a->coefficient[c];
    if (is_adam(l))
        adam_delta(l);
    else
        metric_delta(l);
    rc = accept(l, &t, &out->kl, &out->guard, cancel, err);
    if (rc) {
        restore(l);
        return rc;
    }
    out->backtracked = t;
    if (t == 0) { /* refused; forget the momentum that led here, so that the next step may turn */
        restore(l);
        for (int e = 0; is_adam(l) && e < l->n; e++)
            if (l->item[e]->momentum)
                memset(l->item[e]->momentum, 0, n * sizeof *l->item[e]->momentum);
        rc = anchors_kl(l, &out->kl, cancel, err);
    } else {
        es_adapter_read(a, a->param, a->coefficient);
        float b2 = (float)l->o.decay;
        for (size_t i = 0; is_adam(l) && i < n; i++)
            l->second[i] = b2 * l->second[i] + (1 - b2) * l->total[i] * l->total[i];
        keep_books(l, t);
        for (int e = 0; is_adam(l) && e < l->n; e++)
            if (l->item[e]->momentum)
                memcpy(l->item[e]->momentum, l->item[e]->grad, n * sizeof *l->item[e]->grad);
        l->updates++;
        a->steps++;
        report_moves(l, out);
    }
    out->norm = relative_norm(l, a->coefficient);
    out->seconds = es_seconds() - started;
    return rc;
}

int es_learner_gate(es_learner *l, es_gate_report *out, const volatile bool *cancel, es_error *err)
{
    bool held = l->n_held > 0;
    int n = 0, tokens = 0;
    double loss;
    *out = (es_gate_report){.held_out = l->n_held};
    for (int i = 0; i < l->n; i++)
        if (l->item[i]->held == held && l->item[i]->weight > 0)
            l->chosen[n++] = i;
    if (!n)
        return es_fail(err, ES_ERR_USAGE, "the gate has no experience to judge by");
    int rc = pass(l, l->chosen, n, false, 1, &loss, &tokens, cancel, err);
    for (int i = 0; !rc && i < n; i++)
        out->gain += es_experience_gain(reply_of(l->item[l->chosen[i]], 0), reply_of(l->item[l->chosen[i]], 1)) / n;
    rc = rc ? rc : anchors_kl(l, &out->kl, cancel, err);
    if (rc)
        return rc;
    bool gains = out->gain > 0, close = l->o.kappa == 0 || out->kl <= l->o.kappa; /* NaN fails both */
    out->passed = gains && close;
    const char *whose = held ? "held-out" : "learning";
    if (!gains)
        snprintf(out->reason, sizeof out->reason, "not published: %d %s experience%s gain %+.4f nats a token", n, whose, n == 1 ? "" : "s",
                 out->gain);
    else if (!close)
        snprintf(out->reason, sizeof out->reason, "not published: KL %.4f on neutral text is over %.4f", out->kl, l->o.kappa);
    else
        snprintf(out->reason, sizeof out->reason, "published: %d %s experience%s gain %+.4f nats a token, KL %.4f", n, whose,
                 n == 1 ? "" : "s", out->gain, out->kl);
    return ES_OK;
}

void es_learner_influence(const es_learner *l, float *out)
{
    size_t K = (size_t)l->a->K;
    for (int e = 0; e < l->n; e++)
        for (size_t i = 0; i < K; i++)
            out[(size_t)e * K + i] = (float)l->item[e]->influence[i];
    for (size_t i = 0; i < K; i++)
        out[(size_t)l->n * K + i] = (float)l->rest[i];
}

void es_learner_snr(const es_learner *l, float *out)
{
    for (int i = 0; i < l->a->K; i++) {
        double sum = 0, square = 0;
        int n = 0;
        for (int e = 0; e < l->n; e++) {
            if (!l->item[e]->has_wish)
                continue;
            n++;
            sum += l->item[e]->wish[i];
            square += (double)l->item[e]->wish[i] * l->item[e]->wish[i];
        }
        double mean = n ? sum / n : 0, variance = n > 1 ? (square - n * mean * mean) / (n - 1) : 0;
        out[i] = n < 2 ? NAN : variance > 0 ? (float)(mean / sqrt(variance / n)) : mean == 0 ? 0 : (float)copysign(1e6, mean);
    }
}
