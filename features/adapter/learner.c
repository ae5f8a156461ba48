/* learner: adapts an adapter to experiences, a step at a time.
 *
 * A step: forward and backward over the experiences (packed end to end, from the cached residual below the adapter up), with a
 * gradient of its own for each experience; a step of the optimiser; guards, which shorten the step or refuse it; and the books: what
 * part of each coefficient's movement is whose. Until the step is accepted only trial numbers are in the adapter, and the old ones
 * come back on any error.
 *
 * The books. With Adam the step is -lr sum_e m_e / (sqrt(v) + eps), m_e the momentum of experience e alone, and m = sum_e m_e: so it
 * is a sum over experiences exactly. A coefficient of form bias is a parameter, one of form gain or map linear in them; one of form lora is (M A xbar)_i, whose change by
 * e is dM_e A xbar + M dA_e xbar to first order. The rest, products of two changes, what the guards project and what replay moves, belongs to no one. */
#include "learner_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TRIES = 6 }; /* of a step, against the KL guard */

/* ---- gradients ---------------------------------------------------------------------------------------------------------------- */

static int item_tokens(const es_item *e)
{
    return e->seq[0].n + e->seq[1].n;
}

double es_learner_dot(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t at = 0; at < n;) {
        float part[8] = {0};
        size_t end = at + 512 < n ? at + 512 : n;
        for (; at + 8 <= end; at += 8)
            for (int q = 0; q < 8; q++)
                part[q] += a[at + (size_t)q] * b[at + (size_t)q];
        for (; at < end; at++)
            part[0] += a[at] * b[at];
        sum += (double)part[0] + part[1] + part[2] + part[3] + part[4] + part[5] + part[6] + part[7];
    }
    return sum;
}

int es_learner_backward(es_learner *l, const es_pack *p, const es_patch *patch, int n_slot, void (*dlogits)(void *user, int token, const float *p, float *dl),
                        void *user, const volatile bool *cancel, es_error *err)
{
    es_adapter *a = l->a;
    bool lora = a->o.form == ES_FORM_LORA;
    memset(l->slot_a, 0, l->slot_a_size * sizeof *l->slot_a);
    memset(l->slot_b, 0, l->slot_b_size * sizeof *l->slot_b);
    es_grad g = {.a = lora && !a->o.fixed_inputs ? l->grad_a : NULL, .b = lora ? l->grad_b : NULL,
                 .addend = a->o.form == ES_FORM_BIAS ? l->grad_v : NULL, .seq_slot = p->slot, .n_slot = n_slot};
    if (es_adapter_hooks(a))
        a->sink = (es_hook_sink){.grad = l->slot_b, .n = a->n_param, .start = p->start, .slot = p->slot};
    es_batch b = es_pack_batch(p);
    int rc = es_trainer_backward(l->trainer, &b, patch, p->dlogprob, dlogits, user, &g, lora ? a->o.first_layer : es_adapter_lowest(a), cancel, err);
    a->sink = (es_hook_sink){0};
    return rc;
}

void es_learner_slot_gradient(es_learner *l, int s, float *out)
{
    const es_adapter *a = l->a;
    int d = a->d, rank = a->o.rank;
    if (es_adapter_hooks(a)) {
        memcpy(out, l->slot_b + (size_t)s * a->n_param, a->n_param * sizeof *out);
        return;
    }
    for (int i = 0; a->o.form == ES_FORM_BIAS && i < a->n_place; i++) { /* v = D^T c */
        const es_adapter_place *p = &a->place[i];
        l->k->gemm(a->pool, false, false, p->K, 1, d, 1, es_adapter_rows(a, p->first), d, l->grad_v[i] + (size_t)s * (size_t)d, 1, 0, out + p->first, 1);
    }
    for (int i = 0; i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        size_t n_a = (size_t)rank * (size_t)e->n_in, n_b = (size_t)d * (size_t)rank;
        const float *db = l->grad_b[i] + (size_t)s * n_b;
        if (!a->o.fixed_inputs)
            memcpy(out + e->a, l->grad_a[i] + (size_t)s * n_a, n_a * sizeof *out);
        if (a->o.constrained) /* B = D^T M */
            l->k->gemm(a->pool, false, false, e->rows, rank, d, 1, es_adapter_rows(a, e->first), d, db, rank, 0, out + e->b, rank);
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
    for (int at = 0; es_adapter_hooks(a) && at < a->n_place; at++) {
        size_t first = (size_t)a->place[at].first, K = (size_t)a->place[at].K, map = (size_t)a->K + a->place[at].square;
        for (size_t i = 0; i < K; i++) {
            double sum = a->o.form == ES_FORM_GAIN ? (double)change[first + i] * a->mean_input[first + i] : change[first + i];
            for (size_t j = 0; a->o.form == ES_FORM_MAP && j < K; j++)
                sum += (double)change[map + i * K + j] * a->mean_input[first + j];
            out[first + i] += scale * sum;
        }
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
            for (int c = 0; c < e->rows; c++) {
                size_t at = e->b + (size_t)c * (size_t)rank + (size_t)r;
                out[e->first + c] += scale * (change[at] * u + param[at] * du);
            }
        }
    }
}

double es_item_loss(const es_learner *l, es_item *e, double slope[2])
{
    slope[0] = slope[1] = 0;
    if (l->gains) {
        slope[0] = e->seq[0].n ? -1 : 0;
        slope[1] = e->seq[1].n ? 1 : 0;
        return -es_item_gain(e);
    }
    return e->target.n ? e->loss : es_experience_loss(es_item_reply(e, 0), es_item_reply(e, 1), l->o.beta, &slope[0], &slope[1]);
}

double es_item_gain(es_item *e)
{
    return e->target.n ? e->from - e->loss : es_experience_gain(es_item_reply(e, 0), es_item_reply(e, 1));
}

double es_item_token(const es_item *e, int i, const float *p, double scale, float *dl)
{
    double each = 1.0 / es_target_counted(&e->target), grow = scale * each;
    const es_sequence *s = &e->seq[0];
    double loss = es_distil_token(&e->target, i, s->target[s->n - s->n_reply + i], p, grow, dl) / scale;
    return e->target.loss == ES_DISTIL_SAMPLED ? loss * loss / (2 * each) : loss;
}

int es_item_score(es_learner *l, es_item *e, int first, es_error *err)
{
    int rc = ES_OK, n_vocab = e->target.n_vocab;
    e->loss = 0;
    for (int i = e->target.masked; !rc && i < e->target.n; i++) {
        rc = es_trainer_logits(l->trainer, first + i, l->logits, err);
        float most = -INFINITY;
        double sum = 0;
        for (int v = 0; !rc && v < n_vocab; v++)
            most = l->logits[v] > most ? l->logits[v] : most;
        for (int v = 0; !rc && v < n_vocab; v++)
            sum += l->logits[v] = expf(l->logits[v] - most);
        for (int v = 0; !rc && v < n_vocab; v++)
            l->logits[v] = (float)(l->logits[v] / sum);
        e->loss += rc ? 0 : es_item_token(e, i, l->logits, 1, NULL);
    }
    return rc;
}

typedef struct opinions { /* of the teachers, in the pack at hand */
    es_learner *l;
    const int *which; /* of its slots */
    double weights;
} opinions;

static void token_opinion(void *user, int token, const float *p, float *dl)
{
    const opinions *o = user;
    const es_pack *k = &o->l->pack;
    int s = 0;
    while (token >= k->start[s + 1])
        s++;
    const es_item *e = o->l->item[o->which[k->slot[s]]];
    if (e->target.n && e->weight > 0)
        es_item_token(e, token - (k->start[s + 1] - e->target.n), p, e->weight / o->weights, dl);
}

/* An experience's weight by what was decided of it. */
static double weight_of(const es_learner *l, const es_item *e)
{
    return e->weight * (l->o.weighting ? e->decision.weight : 1);
}

/* A loss at which an experience counts as learned: of a target the same share of what it began with as of a pair, which begins with log 2. */
static double learned_at(const es_learner *l, const es_item *e)
{
    return l->o.enough * (e->target.n ? e->from / M_LN2 : 1);
}

/* Forward and, with backward, the gradients (item->grad) of the n items in which[], of weights summing to 1 as share says. learned: whether
 * all of them together are, which is known after the forward passes, and then there are no gradients; NULL: they are wanted anyhow. */
static int pass(es_learner *l, const int *which, int n, bool backward, bool *learned, double weights, double *loss, int *tokens, const volatile bool *cancel,
                es_error *err)
{
    es_adapter *a = l->a;
    es_patch patch;
    int rc = es_adapter_patch(a, 1, &patch, err), passed_by = 0; /* so many at the front have no gradient yet */
    double still = 0, enough = 0;                                 /* what is left to learn in the batches so far, and how much of it may be left */
    *loss = 0;
    for (int i = 0; i < n; i++)
        enough += weight_of(l, l->item[which[i]]) * learned_at(l, l->item[which[i]]);
    for (int first = 0; !rc && first < n;) {
        int end = first;
        es_pack_clear(&l->pack);
        while (end < n && end - first < LEARNER_SLOTS && item_tokens(l->item[which[end]]) <= l->pack.cap - l->pack.n) {
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
        bool taught = false;
        for (int i = first, s = 0; i < end; i++) {
            es_item *e = l->item[which[i]];
            double slope[2], share = e->weight / weights;
            if (e->target.n && (rc = es_item_score(l, e, l->pack.start[s + 1] - e->target.n, err)))
                return rc;
            taught |= e->target.n > 0;
            double e_loss = es_item_loss(l, e, slope);
            *loss += share * e_loss;
            still += weight_of(l, e) * e_loss;
            for (int j = 0; j < 2; j++) {
                if (!e->seq[j].n)
                    continue;
                for (int t = l->pack.start[s + 1] - e->seq[j].n_reply; t < l->pack.start[s + 1]; t++)
                    l->pack.dlogprob[t] = (float)(share * slope[j] / e->seq[j].n_reply);
                s++;
            }
        }
        if (learned && passed_by == first && still < enough)
            passed_by = end;
        else if (backward) {
            opinions of = {.l = l, .which = which + first, .weights = weights};
            rc = es_learner_backward(l, &l->pack, &patch, end - first, taught ? token_opinion : NULL, &of, cancel, err);
            for (int i = first; !rc && i < end; i++)
                es_learner_slot_gradient(l, i - first, l->item[which[i]]->grad);
        }
        first = end;
    }
    if (learned)
        *learned = passed_by == n;
    if (!rc && passed_by && passed_by < n) { /* learned as far as the first batches told */
        double again;
        int twice = 0;
        rc = pass(l, which, passed_by, true, NULL, weights, &again, &twice, cancel, err);
    }
    return rc;
}

int es_learner_gains(es_learner *l, const int *which, int n, bool backward, double *gain, const volatile bool *cancel, es_error *err)
{
    double weights = 0, loss = 0;
    int tokens = 0;
    for (int i = 0; i < n; i++)
        weights += l->item[which[i]]->weight;
    if (!(weights > 0))
        return es_fail(err, ES_ERR_USAGE, "experiences that weigh nothing have no mean gain");
    l->gains = true;
    int rc = pass(l, which, n, backward, NULL, weights, &loss, &tokens, cancel, err);
    l->gains = false;
    *gain = -loss;
    return rc;
}

/* ---- guards ------------------------------------------------------------------------------------------------------------------------ */

/* Mean KL(base || adapted) over the anchors' tokens. */
int es_learner_anchors_kl(es_learner *l, double *kl, const volatile bool *cancel, es_error *err)
{
    *kl = 0;
    if (!l->anchor_p)
        return ES_OK;
    size_t size = l->a->n_learned * sizeof *l->kl_at;
    if (!isnan(l->kl_there) && !memcmp(l->kl_at, l->a->param, size)) {
        *kl = l->kl_there;
        return ES_OK;
    }
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
    l->kl_there = rc ? NAN : *kl;
    memcpy(l->kl_at, l->a->param, size);
    return rc;
}

/* |D c| of a place's coefficients over the median |h| of its layer. */
static double place_norm(es_learner *l, int place, const float *coefficient)
{
    const es_adapter *a = l->a;
    const es_adapter_place *p = &a->place[place];
    if (!p->K || !(l->median[place] > 0))
        return 0;
    l->k->gemm(a->pool, true, false, a->d, 1, p->K, 1, es_adapter_rows(a, p->first), a->d, coefficient + p->first, 1, 0, l->dc, 1);
    double sum = 0;
    for (int j = 0; j < a->d; j++)
        sum += (double)l->dc[j] * l->dc[j];
    return sqrt(sum) / l->median[place];
}

/* The largest of the places'. */
static double relative_norm(es_learner *l, const float *coefficient)
{
    double most = 0;
    for (int i = 0; i < l->a->n_place; i++) {
        double each = place_norm(l, i, coefficient);
        most = i == 0 || each > most ? each : most;
    }
    return most;
}

/* Multiplies what the features from .. to - 1 get from the adapter. */
static void scale_rows(es_adapter *a, int from, int to, float factor)
{
    for (int c = from; a->o.form != ES_FORM_LORA && c < to; c++)
        a->param[c] *= factor;
    for (int at = 0; a->o.form == ES_FORM_MAP && at < a->n_place; at++) {
        const es_adapter_place *p = &a->place[at];
        float *map = a->param + a->K + p->square;
        for (int c = from > p->first ? from : p->first; c < to && c < p->first + p->K; c++)
            for (int j = 0; j < p->K; j++)
                map[(size_t)(c - p->first) * (size_t)p->K + (size_t)j] *= factor;
    }
    size_t rank = (size_t)a->o.rank;
    for (int i = 0; i < a->n_entry; i++) {
        const es_adapter_entry *e = &a->entry[i];
        int begin = from > e->first ? from - e->first : 0, end = to - e->first < e->rows ? to - e->first : e->rows;
        for (size_t j = (size_t)begin * rank; end > begin && j < (size_t)end * rank; j++)
            a->param[e->b + j] *= factor;
    }
}

static void scale_all(es_adapter *a, float factor)
{
    scale_rows(a, 0, a->o.constrained ? a->K : a->d, factor);
}

/* Puts the coefficients back inside the bounds and |D c| of each place inside rho. Sets *guard when it had to. */
static void project(es_learner *l, const char **guard)
{
    es_adapter *a = l->a;
    if (!a->K)
        return;
    es_adapter_read(a, a->param, l->new_coefficient);
    for (int p = 0; p < a->n_part; p++)
        for (int k = 0; k < a->part[p].basis.n; k++) {
            const es_basis *b = &a->part[p].basis;
            int i = a->part[p].first + k;
            float c = l->new_coefficient[i], bound = c < b->lo[k] ? b->lo[k] : c > b->hi[k] ? b->hi[k] : c;
            if (bound == c)
                continue;
            *guard = "bounds";
            scale_rows(a, i, i + 1, bound / c);
            l->new_coefficient[i] = bound;
        }
    for (int i = 0; i < a->n_place && l->o.rho > 0; i++) {
        double norm = place_norm(l, i, l->new_coefficient);
        if (!(norm > l->o.rho))
            continue;
        *guard = "norm";
        scale_rows(a, a->place[i].first, a->place[i].first + a->place[i].K, (float)(l->o.rho / norm));
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
    es_replay *r = &l->replay;
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
    for (size_t i = 0; r->momentum && i < n; i++) {
        r->grad[i] = (float)b1 * r->momentum[i] + (float)(1 - b1) * r->grad[i];
        l->delta[i] += r->grad[i];
    }
    for (size_t i = 0; i < n; i++) {
        float v = (float)b2 * l->second[i] + (1 - (float)b2) * l->total[i] * l->total[i];
        l->rate[i] = -scale / (sqrtf(v * unbias) + 1e-8f);
        l->delta[i] *= l->rate[i];
    }
}

/* delta = -s P g: its length is the learning rate times the median |h| when the gradient is as long as the longest so far, and shorter in
 * proportion after that. */
static void metric_delta(es_learner *l)
{
    es_adapter *a = l->a;
    size_t n = a->n_learned;
    double length;
    es_learner_precondition(l, l->total, l->delta, &length);
    if (a->o.form == ES_FORM_BIAS) {
        double square = 0;
        for (int i = 0; i < a->n_place; i++) {
            double each = place_norm(l, i, l->delta) * l->median[i];
            square += each * each;
        }
        length = sqrt(square);
    }
    if (length > l->longest)
        l->longest = length;
    es_learner_shield(l, l->delta, true);
    float scale = l->longest > 0 ? (float)(l->o.learning_rate * l->median[0] / l->longest) : 0;
    for (size_t i = 0; i < n; i++)
        l->delta[i] *= -scale;
    es_prior_clamp(l, l->old, l->delta);
    for (int e = 0; e < l->n_chosen; e++) { /* the same of each experience's gradient */
        float *g = l->item[l->chosen[e]]->grad;
        es_learner_precondition(l, g, g, NULL);
        es_learner_shield(l, g, false);
        for (size_t i = 0; i < n; i++)
            g[i] *= -scale;
    }
}

/* Share out the accepted step: (old + length * delta), of which what is not A was then multiplied by shrink. */
static void keep_books(es_learner *l, double length, double shrink)
{
    es_adapter *a = l->a;
    size_t n = a->n_learned, K = (size_t)a->K, shrunk = a->n_entry ? a->entry[0].a : n;
    double t = length * shrink;
    shrunk = shrunk < n ? shrunk : n;
    for (size_t i = 0; i < K; i++)
        l->coefficient_sum[i] = 0;
    for (int e = 0; e < l->n; e++) {
        es_item *it = l->item[e];
        for (size_t i = 0; it->moved && shrink < 1 && i < shrunk; i++)
            it->moved[i] *= (float)shrink;
        if (!it->grad || (!es_learner_is_adam(l) && !is_chosen(l, e)))
            continue;
        const float *part = it->grad;
        if (es_learner_is_adam(l)) { /* delta is free by now: this experience's part of it */
            for (size_t i = 0; i < n; i++)
                l->delta[i] = l->rate[i] * it->grad[i];
            part = l->delta;
        }
        for (size_t i = 0; i < n; i++)
            it->moved[i] += (float)(i < shrunk ? t : length) * part[i];
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
        scale_all(a, (float)shrink);
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
 * factor on the step in all, *shrunk of it that on everything; 0 when it had to be refused. */
static int accept(es_learner *l, double *t, double *shrunk, double *kl, const char **guard, const volatile bool *cancel, es_error *err)
{
    double length = 1, shrink = 1, kappa = l->o.kappa;
    for (int try = 0; try <= TRIES && length > 0.01; try++) {
        const char *projected = NULL;
        trial(l, length, shrink, &projected);
        *guard = try ? "kl" : projected;
        int rc = es_learner_anchors_kl(l, kl, cancel, err);
        if (rc)
            return rc;
        if (isfinite(*kl) && (kappa == 0 || *kl <= kappa)) {
            *t = length * shrink;
            *shrunk = shrink;
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
    int rc = pass(l, l->chosen, n, gradient != NULL, NULL, weights, loss, &tokens, NULL, err);
    if (!rc && !l->replay.pack.n)
        rc = es_replay_draw(l, NULL, err);
    rc = rc ? rc : es_replay_gradient(l, gradient != NULL, NULL, err);
    *loss += l->replay.weight * l->replay.kl;
    for (size_t j = 0; !rc && gradient && j < l->a->n_learned; j++) {
        gradient[j] = l->replay.grad ? l->replay.grad[j] : 0;
        for (int i = 0; i < n; i++)
            gradient[j] += l->item[l->chosen[i]]->grad[j];
    }
    return rc;
}

/* Experiences that came in since the last step are decided about together, also those that are not in this step's batch. */
static int weigh(es_learner *l, const volatile bool *cancel, es_error *err)
{
    int *which = es_calloc((size_t)l->n + 1, sizeof *which), n = 0, others = 0, tokens = 0, rc = which ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory to weigh experiences");
    double weights = 0, loss;
    for (int i = 0; !rc && l->o.weighting && i < l->n; i++) {
        es_item *it = l->item[i];
        if (it->held || it->decided || !(it->weight > 0))
            continue;
        if (!is_chosen(l, i)) {
            which[others++] = i;
            weights += it->weight;
        }
    }
    if (!rc && others)
        rc = pass(l, which, others, true, NULL, weights, &loss, &tokens, cancel, err);
    n = others;
    for (int i = 0; !rc && l->o.weighting && i < l->n_chosen; i++)
        if (!l->item[l->chosen[i]]->decided)
            which[n++] = l->chosen[i];
    rc = rc ? rc : es_learner_weigh(l, which, n, l->delta, err);
    free(which);
    return rc;
}

int es_learner_step(es_learner *l, es_step_report *out, const volatile bool *cancel, es_error *err)
{
    es_adapter *a = l->a;
    size_t n = a->n_learned;
    double started = es_seconds(), weights = 0, t = 0, shrink = 1;
    *out = (es_step_report){.step = a->steps + 1, .backtracked = 1};
    choose_items(l);
    if (!l->n_chosen)
        return es_fail(err, ES_ERR_USAGE, "there is nothing to learn from: no experience with a weight above 0");
    for (int i = 0; i < l->n_chosen; i++)
        weights += l->item[l->chosen[i]]->weight;
    bool learned = false, decided = true;
    for (int i = 0; i < l->n && l->o.weighting; i++)
        decided &= l->item[i]->held || l->item[i]->decided || !(l->item[i]->weight > 0);
    int rc = pass(l, l->chosen, l->n_chosen, true, decided ? &learned : NULL, weights, &out->loss, &out->tokens, cancel, err);
    if (!rc && !learned && (l->o.weighting || l->o.shrink))
        rc = weigh(l, cancel, err);
    if (rc)
        return rc;
    double kept = 0, enough = 0, slope[2];
    out->loss = 0;
    for (int i = 0; i < l->n_chosen; i++) { /* the loss, too, is of what is kept */
        es_item *it = l->item[l->chosen[i]];
        out->loss += weight_of(l, it) * es_item_loss(l, it, slope);
        enough += weight_of(l, it) * learned_at(l, it);
        kept += weight_of(l, it);
        out->margin += es_item_gain(it) / l->n_chosen;
    }
    out->loss = kept > 0 ? out->loss / kept : 0;
    enough = kept > 0 ? enough / kept : l->o.enough;

    memset(l->total, 0, n * sizeof *l->total);
    for (int i = 0; !learned && i < l->n_chosen; i++)
        for (size_t j = 0; j < n; j++)
            l->total[j] += l->item[l->chosen[i]]->grad[j];
    double square = 0;
    for (size_t i = 0; i < n; i++)
        square += (double)l->total[i] * l->total[i];
    if (!isfinite(out->loss) || !isfinite(square))
        return es_fail(err, ES_ERR_LIMIT, "step %d refused: its %s is not a number; the adapter is as before", out->step,
                       isfinite(out->loss) ? "gradient" : "loss");
    if (learned || out->loss < enough) {
        out->backtracked = 0;
        out->guard = "learned";
        rc = es_learner_anchors_kl(l, &out->kl, cancel, err);
        out->norm = relative_norm(l, a->coefficient);
        out->seconds = es_seconds() - started;
        return rc;
    }
    rc = es_replay_draw(l, cancel, err);
    rc = rc ? rc : es_replay_gradient(l, true, cancel, err);
    if (rc)
        return rc;
    out->replay = l->replay.kl;
    for (size_t j = 0; l->replay.grad && j < n; j++) /* nobody's: what it moves is in the books' last line */
        l->total[j] += l->replay.grad[j];
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
    if (es_learner_is_adam(l))
        adam_delta(l);
    else
        metric_delta(l);
    rc = accept(l, &t, &shrink, &out->kl, &out->guard, cancel, err);
    if (rc) {
        restore(l);
        return rc;
    }
    out->backtracked = t;
    if (t == 0) { /* refused; forget the momentum that led here, so that the next step may turn */
        restore(l);
        for (int e = 0; es_learner_is_adam(l) && e < l->n; e++)
            if (l->item[e]->momentum)
                memset(l->item[e]->momentum, 0, n * sizeof *l->item[e]->momentum);
        if (l->replay.momentum)
            memset(l->replay.momentum, 0, n * sizeof *l->replay.momentum);
        rc = es_learner_anchors_kl(l, &out->kl, cancel, err);
    } else {
        es_adapter_read(a, a->param, a->coefficient);
        float b2 = (float)l->o.decay;
        for (size_t i = 0; es_learner_is_adam(l) && i < n; i++)
            l->second[i] = b2 * l->second[i] + (1 - b2) * l->total[i] * l->total[i];
        keep_books(l, t / shrink, shrink);
        for (int e = 0; es_learner_is_adam(l) && e < l->n; e++)
            if (l->item[e]->momentum)
                memcpy(l->item[e]->momentum, l->item[e]->grad, n * sizeof *l->item[e]->grad);
        if (l->replay.momentum)
            memcpy(l->replay.momentum, l->replay.grad, n * sizeof *l->replay.grad);
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
    int rc = pass(l, l->chosen, n, false, NULL, 1, &loss, &tokens, cancel, err);
    for (int i = 0; !rc && i < n; i++)
        out->gain += es_item_gain(l->item[l->chosen[i]]) / n;
    rc = rc ? rc : es_learner_anchors_kl(l, &out->kl, cancel, err);
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
