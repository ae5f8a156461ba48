/* learner: what each experience is worth, and which features they agree about. Decided from the gradients of the step at hand. */
#include "learner_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double GIBBERISH = 4; /* nats a token, and half as much again as is usual among the experiences */

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* agreement[N] of the items in which[], by the prior: in *about the direction that the experiences concern most. */
static void agree_with_prior(es_learner *l, const int *which, int N, const double *length, double *agreement, int *about)
{
    es_prior *p = &l->prior;
    size_t n = l->a->n_learned;
    double most = -1, sign = 1;
    for (int pass = 0; pass < 2; pass++)
        for (int i = pass ? *about : 0; i < (pass ? *about + 1 : p->n); i++) {
            const float *unit = p->unit + (size_t)i * n;
            double sum = 0;
            for (int e = 0; e < N; e++) {
                const float *g = l->item[which[e]]->grad;
                double with = 0;
                for (size_t j = 0; j < n; j++)
                    with -= (double)unit[j] * g[j];
                with = length[e] > 0 ? with / length[e] : 0;
                sum += with;
                if (pass)
                    agreement[e] = sign * with;
            }
            if (!pass && fabs(sum) > most) {
                most = fabs(sum);
                *about = i;
                sign = sum < 0 && !p->one_sided ? -1 : 1;
            }
        }
}

/* agreement[N] of each with the sum of the others, each at length 1. */
static int agree_with_others(es_learner *l, const int *which, int N, const double *length, double *agreement, es_error *err)
{
    size_t n = l->a->n_learned;
    float *sum = es_calloc(n, sizeof *sum), *image = es_calloc(n, sizeof *image);
    int rc = sum && image ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory to weigh experiences");
    for (int e = 0; !rc && e < N; e++)
        for (size_t j = 0; length[e] > 0 && j < n; j++)
            sum[j] += (float)(l->item[which[e]]->grad[j] / length[e]);
    double total = rc ? 0 : es_learner_metric_square(l, sum, image); /* image = G^-1 sum */
    for (int e = 0; !rc && e < N; e++) {
        double with = 0;
        for (size_t j = 0; length[e] > 0 && j < n; j++)
            with += (double)image[j] * l->item[which[e]]->grad[j] / length[e];
        double rest = total - 2 * with + 1; /* |sum of the others|^2 */
        agreement[e] = rest > 1e-12 ? (with - 1) / sqrt(rest) : 0;
    }
    free(sum);
    free(image);
    return rc;
}

/* Mean of Beta(2 + agreed, 1 + disagreed) over the experiences of the same source. */
static double trust_of(const es_learner *l, const int *which, int N, const char *source, const double *agreement)
{
    double agreed = 2, disagreed = 1;
    for (int e = 0; source && e < N; e++) {
        const char *other = l->item[which[e]]->source;
        if (!other || strcmp(other, source))
            continue;
        agreed += agreement[e] > 0;
        disagreed += agreement[e] <= 0;
    }
    return agreed / (agreed + disagreed);
}

static const char OTHERS[] = "the others";

static double surprise_of(const es_item *it)
{
    return it->seq[0].n ? -it->seq[0].base : 0;
}

/* Above this a preferred reply is taken for gibberish. */
static double gibberish(const es_learner *l, const int *which, int N, double *scratch)
{
    for (int e = 0; e < N; e++)
        scratch[e] = surprise_of(l->item[which[e]]);
    qsort(scratch, (size_t)N, sizeof *scratch, by_size);
    return fmax(GIBBERISH, 1.5 * scratch[N / 2]);
}

static void decide(es_item *it, double bound, double agreement, double usual, double trust, double best_trust, const char *with)
{
    es_decision *d = &it->decision;
    *d = (es_decision){.weight = 1, .agreement = agreement, .surprise = surprise_of(it), .trust = trust};
    if (d->surprise > bound) {
        d->weight = 0;
        snprintf(d->reason, sizeof d->reason, "left out: the preferred reply is gibberish to the model (%.1f nats a token)", d->surprise);
        return;
    }
    if (!(usual > 0)) {
        snprintf(d->reason, sizeof d->reason, "counts in full: there is nothing to compare it with yet");
        return;
    }
    if (!strcmp(with, OTHERS)) { /* told, not used: among a few experiences a minority need not be wrong */
        snprintf(d->reason, sizeof d->reason, "counts in full: cosine %+.3f with %s", agreement, with);
        return;
    }
    double share = agreement / usual;
    d->weight = share <= 0 ? 0 : fmin(share, 1) * fmin(trust / best_trust, 1);
    if (d->weight == 0)
        snprintf(d->reason, sizeof d->reason, "left out: it points away from %s (cosine %+.3f)", with, agreement);
    else if (d->weight < 0.995)
        snprintf(d->reason, sizeof d->reason, "counts %.0f %%: cosine %+.3f with %s%s", 100 * d->weight, agreement, with,
                 trust < best_trust ? ", and its source disagrees more often" : "");
    else
        snprintf(d->reason, sizeof d->reason, "counts in full: cosine %+.3f with %s", agreement, with);
}

/* Decides about the items in which[], whose gradients are in grad. */
static int decide_all(es_learner *l, const int *which, int N, float *scratch, es_error *err)
{
    int about = 0, rc = ES_OK, n_good = 0;
    double *length = es_calloc(3 * (size_t)N, sizeof *length), *agreement = length + N, *good = agreement + N, usual = 0, best_trust = 0;
    bool metric = !es_learner_is_adam(l);
    char with[80];
    snprintf(with, sizeof with, "%s", OTHERS);
    if (!length)
        return es_fail(err, ES_ERR_MEMORY, "no memory to weigh experiences");
    double bound = gibberish(l, which, N, good);
    for (int e = 0; metric && e < N; e++)
        length[e] = sqrt(fmax(es_learner_metric_square(l, l->item[which[e]]->grad, scratch), 0));
    if (metric && l->prior.n) {
        agree_with_prior(l, which, N, length, agreement, &about);
        snprintf(with, sizeof with, "%s", l->prior.name[about]);
    } else if (metric && N >= 4)
        rc = agree_with_others(l, which, N, length, agreement, err);
    for (int e = 0; !rc && e < N; e++)
        if (agreement[e] > 0 && surprise_of(l->item[which[e]]) <= bound)
            good[n_good++] = agreement[e];
    if (n_good && (l->prior.n || N >= 4)) { /* half of the median of those that agree is enough to count in full */
        qsort(good, (size_t)n_good, sizeof *good, by_size);
        usual = good[n_good / 2] / 2;
    }
    for (int e = 0; !rc && e < N; e++)
        best_trust = fmax(best_trust, trust_of(l, which, N, l->item[which[e]]->source, agreement));
    for (int e = 0; !rc && e < N; e++) {
        es_item *it = l->item[which[e]];
        decide(it, bound, agreement[e], usual, trust_of(l, which, N, it->source, agreement), best_trust, with);
        it->decided = true;
    }
    free(length);
    return rc;
}

/* The chosen gradients hold each one's share of the mean; from here on the mean is over what is kept. */
static void rescale(es_learner *l)
{
    double kept = 0, all = 0;
    for (int e = 0; e < l->n_chosen; e++) {
        const es_item *it = l->item[l->chosen[e]];
        kept += it->weight * it->decision.weight;
        all += it->weight;
    }
    for (int e = 0; e < l->n_chosen; e++) {
        es_item *it = l->item[l->chosen[e]];
        float by = kept > 0 ? (float)(it->decision.weight * all / kept) : 0;
        for (size_t j = 0; j < l->a->n_learned; j++)
            it->grad[j] *= by;
    }
}

/* max(0, 1 - 1/snr^2), snr^2 = |mean|^2 / (sum of squared deviations / (n (n - 1))). sum, square: of the n vectors. */
static float james_stein(double sum_square, double square, int n)
{
    double mean_square = sum_square / ((double)n * n), noise = (square - sum_square / n) / ((double)n * (n - 1));
    return mean_square > 0 ? (float)fmax(0, 1 - fmax(noise, 0) / mean_square) : 0;
}

static int set_shrinkage(es_learner *l, es_error *err)
{
    const es_adapter *a = l->a;
    size_t rank = (size_t)a->o.rank, rows = (size_t)(a->o.constrained ? a->K : a->d), n = a->n_learned;
    int N = l->n_chosen;
    for (size_t c = 0; c < rows; c++)
        l->keep[c] = 1;
    for (int i = 0; i < l->prior.n; i++)
        l->prior.keep[i] = 1;
    if (N < 3)
        return ES_OK;
    double *square = es_calloc(2 * rows, sizeof *square), *sum_square = square + rows;
    if (!square)
        return es_fail(err, ES_ERR_MEMORY, "no memory to weigh experiences");
    for (int i = 0; i < a->n_entry; i++)
        for (size_t k = 0; k < (size_t)a->entry[i].rows; k++)
            for (size_t r = 0; r < rank; r++) {
                size_t at = a->entry[i].b + k * rank + r, c = (size_t)a->entry[i].first + k;
                double sum = 0;
                for (int e = 0; e < N; e++) {
                    double g = l->item[l->chosen[e]]->grad[at];
                    sum += g;
                    square[c] += g * g;
                }
                sum_square[c] += sum * sum;
            }
    for (size_t c = 0; c < rows; c++)
        l->keep[c] = james_stein(sum_square[c], square[c], N);
    free(square);
    for (int i = 0; i < l->prior.n; i++) {
        double sum = 0, squares = 0;
        for (int e = 0; e < N; e++) {
            const float *g = l->item[l->chosen[e]]->grad;
            double with = 0;
            for (size_t j = 0; j < n; j++)
                with += (double)l->prior.unit[(size_t)i * n + j] * g[j];
            sum += with;
            squares += with * with;
        }
        l->prior.keep[i] = james_stein(sum * sum, squares, N);
    }
    return ES_OK;
}

int es_learner_weigh(es_learner *l, const int *which, int n, float *scratch, es_error *err)
{
    int rc = n ? decide_all(l, which, n, scratch, err) : ES_OK;
    if (!rc && l->o.weighting)
        rescale(l);
    return rc || !l->keep ? rc : set_shrinkage(l, err);
}

const es_decision *es_learner_decision(const es_learner *l, int experience)
{
    return experience >= 0 && experience < l->n && !l->item[experience]->held ? &l->item[experience]->decision : NULL;
}
