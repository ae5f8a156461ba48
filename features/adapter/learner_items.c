/* learner: experiences come in, are measured in the base model, and are kept with a gradient each. */
#include "learner_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void es_item_free(es_item *e)
{
    if (!e)
        return;
    es_sequence_free(&e->seq[0]);
    es_sequence_free(&e->seq[1]);
    free(e->grad);
    free(e->wish);
    free(e->influence);
    free(e->source);
    es_target_free(&e->target);
    free(e);
}

typedef struct norm_watch {
    es_learner *l;
    int place;
    int count;   /* taken in this pass; the learner's own count follows when it has succeeded */
    double *sum; /* gain, map: += what the adapter's hook reads of the reply's tokens; or NULL */
} norm_watch;

/* A sequence's first token counts as a token that nothing was read of, as the hook has it. */
static void sum_inputs(norm_watch *w, const float *h, int d)
{
    es_learner *l = w->l;
    for (int s = 0; s < l->pack.n_seq; s++)
        for (int t = l->pack.start[s] + 1; t < l->pack.start[s + 1]; t++) {
            if (!l->pack.wanted[t])
                continue;
            const es_adapter_place *p = &l->a->place[w->place];
            es_adapter_input(l->a, p, h + (size_t)t * (size_t)d, l->a->input);
            for (int i = 0; i < p->K; i++)
                w->sum[p->first + i] += l->a->input[i];
        }
}

static void watch_norms(void *user, int layer, int pos0, const float *h, int T, int d)
{
    norm_watch *w = user;
    if (w->sum)
        sum_inputs(w, h, d);
    (void)layer;
    (void)pos0;
    for (int t = 0; t < T && w->l->n_norms + w->count < LEARNER_NORMS; t++) {
        if (!w->l->pack.wanted[t])
            continue;
        double sum = 0;
        for (int j = 0; j < d; j++)
            sum += (double)h[(size_t)t * d + j] * h[(size_t)t * d + j];
        es_learner_norms(w->l, w->place)[w->l->n_norms + w->count++] = (float)sqrt(sum);
    }
}

static int float_order(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Where |h| of a place is measured: below the adapter the residual is not at hand. */
static int watched(const es_adapter *a, int place)
{
    int below = es_adapter_lowest_layer(a) - 1;
    return a->place[place].layer >= below ? a->place[place].layer : below;
}

/* Base log-probabilities, |h| at the dictionaries' layers, and the sum of the adapted matrices' inputs over the reply's tokens. */
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
    norm_watch norm[ES_PARTS_MAX];
    es_watch watch[ES_PARTS_MAX];
    for (int i = 0; i < a->n_place; i++) {
        norm[i] = (norm_watch){.l = l, .place = i, .sum = es_adapter_hooks(a) && !e->held ? sum : NULL};
        watch[i] = (es_watch){.layer = watched(a, i), .fn = watch_norms, .user = &norm[i]};
    }
    es_batch b = es_pack_batch(&l->pack);
    rc = es_trainer_forward(l->trainer, &b, l->pack.resid, NULL, watch, a->n_place, l->pack.logprob, cancel, err);
    if (rc)
        return rc;
    es_pack_means(&l->pack);
    for (int i = 0; i < 2; i++)
        e->seq[i].base = e->seq[i].now;
    if (e->target.n) {
        rc = es_item_score(l, e, l->pack.n - e->target.n, err);
        e->from = e->loss;
    }
    for (int i = 0; !rc && !e->held && i < a->n_entry; i++) {
        const es_adapter_entry *entry = &a->entry[i];
        rc = es_trainer_site_input(l->trainer, entry->layer, entry->site, l->site_input, err);
        for (int t = 0; !rc && t < l->pack.n; t++)
            for (int j = 0; l->pack.wanted[t] && j < entry->n_in; j++)
                sum[entry->mean + (size_t)j] += l->site_input[(size_t)t * (size_t)entry->n_in + (size_t)j];
    }
    for (int t = 0; !e->held && t < l->pack.n; t++)
        *tokens += l->pack.wanted[t];
    *norms = norm[0].count; /* all saw the same tokens */
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
        e->grad = es_calloc(n, (es_learner_is_adam(l) ? 3 : 2) * sizeof *e->grad);
    e->moved = e->grad ? e->grad + n : NULL;
    e->momentum = e->grad && es_learner_is_adam(l) ? e->grad + 2 * n : NULL;
    e->wish = es_calloc(K + 1, sizeof *e->wish);
    e->influence = es_calloc(K + 1, sizeof *e->influence);
    if ((!held && !e->grad) || !e->wish || !e->influence) {
        es_item_free(e);
        return es_fail(err, ES_ERR_MEMORY, "no memory for an experience");
    }
    *out = e;
    return ES_OK;
}

static bool hold_next(const es_learner *l)
{
    int due = l->n + 1 >= 4 && l->o.hold_out > 0 ? (int)(l->o.hold_out * (l->n + 1)) : 0;
    due = due < 1 && l->n + 1 >= 4 && l->o.hold_out > 0 ? 1 : due;
    return l->n_held < due;
}

/* ---- readings -------------------------------------------------------------------------------------------------------------------------- */

typedef struct reading { /* what measuring an experience in the base model gave */
    es_sequence seq[2];
    double *sum, tokens; /* [n_mean]; NULL: it was held out, whose inputs are not summed */
    float *norms;        /* [n_place][n_norms] */
    int n_norms;
} reading;

struct es_readings {
    int d, lowest, n, n_place;
    int watched[ES_PARTS_MAX]; /* the layers whose |h| it has */
    size_t n_mean;
    reading item[64];
};

es_readings *es_readings_new(void)
{
    return es_calloc(1, sizeof(es_readings));
}

static void reading_clear(reading *r)
{
    es_sequence_free(&r->seq[0]);
    es_sequence_free(&r->seq[1]);
    free(r->sum);
    free(r->norms);
    *r = (reading){0};
}

void es_readings_free(es_readings *r)
{
    for (int i = 0; r && i < r->n; i++)
        reading_clear(&r->item[i]);
    free(r);
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

static bool same_sequence(const es_sequence *a, const es_sequence *b)
{
    return a->n == b->n && a->n_reply == b->n_reply && (!a->n || !memcmp(a->ids, b->ids, 2 * (size_t)a->n * sizeof *a->ids));
}

void es_learner_recall(es_learner *l, es_readings *r)
{
    const es_adapter *a = l->a;
    l->readings = es_adapter_hooks(a) ? NULL : r; /* gain and map sum what their own basis reads */
    if (!l->readings)
        return;
    int lowest = es_adapter_lowest_layer(a);
    bool same = r->d == a->d && r->lowest == lowest && r->n_mean == a->n_mean && r->n_place == a->n_place;
    for (int i = 0; same && i < a->n_place; i++)
        same = r->watched[i] == watched(a, i);
    if (!same) {
        for (int i = 0; i < r->n; i++)
            reading_clear(&r->item[i]);
        r->n = 0;
    }
    r->d = a->d;
    r->lowest = lowest;
    r->n_mean = a->n_mean;
    r->n_place = a->n_place;
    for (int i = 0; i < a->n_place; i++)
        r->watched[i] = watched(a, i);
}

/* e as it was read before; false: it was not. */
static bool recall(es_learner *l, es_item *e, double *sum, double *tokens, int *norms)
{
    es_readings *r = l->readings;
    for (int i = 0; r && !e->target.n && i < r->n; i++) {
        reading *x = &r->item[i];
        es_sequence copy[2] = {0};
        es_error err;
        if (!same_sequence(&x->seq[0], &e->seq[0]) || !same_sequence(&x->seq[1], &e->seq[1]) || (!e->held && !x->sum))
            continue;
        for (int j = 0; j < 2; j++)
            if (x->seq[j].n && sequence_copy(&copy[j], &x->seq[j], r->d, &err)) {
                es_sequence_free(&copy[0]);
                es_sequence_free(&copy[1]);
                return false;
            }
        for (int j = 0; j < 2; j++) {
            es_sequence_free(&e->seq[j]);
            e->seq[j] = copy[j];
        }
        if (!e->held) {
            memcpy(sum, x->sum, r->n_mean * sizeof *sum);
            *tokens = x->tokens;
        }
        *norms = x->n_norms < LEARNER_NORMS - l->n_norms ? x->n_norms : LEARNER_NORMS - l->n_norms;
        for (int j = 0; j < r->n_place; j++)
            memcpy(es_learner_norms(l, j) + l->n_norms, x->norms + (size_t)j * (size_t)x->n_norms, (size_t)*norms * sizeof *x->norms);
        return true;
    }
    return false;
}

/* Keeps what was read of e, in the place of the oldest where all are taken. Without memory nothing is kept. */
static void remember(es_learner *l, const es_item *e, const double *sum, double tokens, int norms)
{
    es_readings *r = l->readings;
    es_error err;
    if (!r || e->target.n)
        return;
    if (r->n == (int)(sizeof r->item / sizeof *r->item)) {
        reading_clear(&r->item[0]);
        memmove(r->item, r->item + 1, (size_t)--r->n * sizeof *r->item);
    }
    reading *x = &r->item[r->n];
    bool ok = true;
    for (int j = 0; j < 2; j++)
        ok = ok && (!e->seq[j].n || !sequence_copy(&x->seq[j], &e->seq[j], r->d, &err));
    x->norms = es_calloc((size_t)r->n_place * (size_t)norms + 1, sizeof *x->norms);
    x->sum = e->held ? NULL : es_calloc(r->n_mean + 1, sizeof *x->sum);
    if (!ok || !x->norms || (!e->held && !x->sum)) {
        reading_clear(x);
        return;
    }
    for (int j = 0; j < r->n_place; j++)
        memcpy(x->norms + (size_t)j * (size_t)norms, es_learner_norms(l, j) + l->n_norms, (size_t)norms * sizeof *x->norms);
    x->n_norms = norms;
    x->tokens = tokens;
    if (x->sum)
        memcpy(x->sum, sum, r->n_mean * sizeof *sum);
    r->n++;
}

/* Measures e, an item with its sequences, and takes it in. On an error nothing is as if it had been there. */
static int take_in(es_learner *l, es_item *e, const char *source, const volatile bool *cancel, es_error *err)
{
    es_adapter *a = l->a;
    size_t K = (size_t)a->K;
    double *sum = es_calloc(a->n_mean + 1, sizeof *sum), tokens = 0;
    int norms = 0, rc = sum ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for an experience");
    if (!rc && source && !(e->source = strdup(source)))
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for an experience");
    if (!rc && !recall(l, e, sum, &tokens, &norms)) {
        rc = measure_base(l, e, sum, &tokens, &norms, cancel, err);
        if (!rc)
            remember(l, e, sum, tokens, norms);
    }
    if (rc) {
        free(sum);
        return rc;
    }
    /* From here on nothing fails. */
    for (size_t i = 0; i < a->n_mean; i++)
        l->mean_sum[i] += sum[i];
    l->mean_tokens += tokens;
    free(sum);
    l->n_norms += norms;
    for (int i = 0; l->n_norms && i < a->n_place; i++) {
        float *norm = es_learner_norms(l, i);
        qsort(norm, (size_t)l->n_norms, sizeof *norm, float_order);
        l->median[i] = norm[l->n_norms / 2];
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

int es_learner_add(es_learner *l, const es_experience *x, const volatile bool *cancel, es_error *err)
{
    if (!x->preferred && !x->rejected)
        return es_fail(err, ES_ERR_USAGE, "an experience needs a preferred or a rejected reply");
    if (!isfinite(x->weight) || x->weight < 0)
        return es_fail(err, ES_ERR_USAGE, "the weight of an experience must be a number of at least 0");
    es_item *e = NULL;
    int rc = new_item(l, x->weight, hold_next(l), &e, err);
    const char *reply[2] = {x->preferred, x->rejected};
    for (int i = 0; !rc && i < 2; i++)
        if (reply[i])
            rc = es_sequence_make(&e->seq[i], l->m, x->message, x->n_message, reply[i], l->o.max_prompt, l->o.max_reply, err);
    rc = rc ? rc : take_in(l, e, x->source, cancel, err);
    if (rc)
        es_item_free(e);
    return rc;
}

int es_learner_add_target(es_learner *l, es_sequence *reply, es_target *target, double weight, const char *source, const volatile bool *cancel, es_error *err)
{
    if (target->n != reply->n_reply || !es_target_counted(target) || target->n_vocab != es_model_get_info(l->m)->n_vocab)
        return es_fail(err, ES_ERR_USAGE, "a teacher's opinion of %d tokens is none of a reply of %d", target->n, reply->n_reply);
    if (!isfinite(weight) || weight < 0)
        return es_fail(err, ES_ERR_USAGE, "the weight of an experience must be a number of at least 0");
    if (reply->n > l->pack.cap)
        return es_fail(err, ES_ERR_LIMIT, "an experience of %d tokens does not fit into a batch of %d", reply->n, l->pack.cap);
    es_item *e = NULL;
    int rc = new_item(l, weight, hold_next(l), &e, err);
    if (rc)
        return rc;
    e->seq[0] = *reply;
    e->target = *target;
    rc = take_in(l, e, source, cancel, err);
    if (rc) { /* the caller's again */
        *reply = e->seq[0];
        e->seq[0] = (es_sequence){0};
        e->target = (es_target){0};
        es_item_free(e);
        return rc;
    }
    *reply = (es_sequence){0};
    *target = (es_target){0};
    return ES_OK;
}

int es_learner_share(es_learner *l, const es_learner *from, es_error *err)
{
    es_adapter *a = l->a;
    const es_adapter *b = from->a;
    if (l->n || l->m != from->m || a->o.form != ES_FORM_LORA || b->o.form != ES_FORM_LORA || a->n_mean != b->n_mean ||
        a->o.first_layer != b->o.first_layer || a->d != b->d || a->n_place != b->n_place)
        return es_fail(err, ES_ERR_USAGE, "learners of different bands, parts or models share nothing");
    for (int i = 0; i < from->n; i++) {
        es_item *e = NULL;
        if (from->item[i]->target.n)
            return es_fail(err, ES_ERR_USAGE, "a teacher's opinion of replies is not shared: draw them anew");
        int rc = new_item(l, from->item[i]->weight, from->item[i]->held, &e, err);
        for (int j = 0; !rc && j < 2; j++)
            rc = sequence_copy(&e->seq[j], &from->item[i]->seq[j], a->d, err);
        if (rc) {
            es_item_free(e);
            return rc;
        }
        l->item[l->n++] = e;
        l->n_held += e->held;
    }
    memcpy(l->mean_sum, from->mean_sum, a->n_mean * sizeof *l->mean_sum);
    for (int i = 0; i < a->n_place; i++)
        memcpy(es_learner_norms(l, i), es_learner_norms(from, i), (size_t)from->n_norms * sizeof *l->norms);
    l->mean_tokens = from->mean_tokens;
    l->n_norms = from->n_norms;
    memcpy(l->median, from->median, sizeof l->median);
    for (size_t i = 0; l->mean_tokens > 0 && i < a->n_mean; i++)
        a->mean_input[i] = (float)(l->mean_sum[i] / l->mean_tokens);
    es_adapter_read(a, a->param, a->coefficient);
    return ES_OK;
}
