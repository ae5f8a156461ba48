/* learner: taking an experience back. Plainly, its part of every step is subtracted. Where experiences overlap, and those of one person's
 * traits do, that also takes from the others what they had of it; so the other way takes only as much as leaves the others where they are.
 *
 * With G the metric, an experience's part is to first order G^-1 times its own gradient, so a change x moves what experience e asks for in
 * proportion to <part_e, x>_G. Of the part P that is to go, the nearest x in the metric with <v, x>_G = 0 for all v in V is
 * P - V (V^T G V)^-1 V^T G P. V holds the directions that are not its own and the others' parts: each of them, which keeps every experience's own noise
 * too and so holds back much of P, or only their sum.
 *
 * Balancing goes on from the latter, and not by what parts were when they were learned but by what the others' gains are now: the shortest change in the
 * metric brings the mean gain of each group of the others (those that went along the same direction most) back to what it was, while that of the
 * experiences that go stays where it came to. With g_i the gradient of group i's mean gain and r_i what it lacks, that is G^-1 sum a_i g_i,
 * <g_i, G^-1 g_j> a = r: a step of Gauss and Newton; a few of them. */
#include "learner_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int check(const es_learner *l, const int *experience, int n, es_error *err)
{
    for (int i = 0; i < n; i++)
        if (experience[i] < 0 || experience[i] >= l->n)
            return es_fail(err, ES_ERR_USAGE, "there is no experience %d to leave out", experience[i]);
    return ES_OK;
}

static bool listed(const int *which, int n, int i)
{
    while (n > 0 && which[n - 1] != i)
        n--;
    return n > 0;
}

/* out[n_learned] = the sum of the parts of the experiences listed. */
static void parts_of(const es_learner *l, const int *experience, int n, float *out)
{
    memset(out, 0, l->a->n_learned * sizeof *out);
    for (int i = 0; i < n; i++) {
        const float *moved = listed(experience, i, experience[i]) ? NULL : l->item[experience[i]]->moved; /* NULL too: held out, nothing moved by it */
        for (size_t j = 0; moved && j < l->a->n_learned; j++)
            out[j] += moved[j];
    }
}

/* The direction that a change goes along most; -1 without directions. */
static int main_direction(es_learner *l, const float *change)
{
    int best = -1;
    es_prior_read(l, change, l->prior.v);
    for (int i = 0; i < l->prior.n; i++)
        if (best < 0 || fabs(l->prior.v[i]) > fabs(l->prior.v[best]))
            best = i;
    return best;
}

/* V, borrowed: the parts of learning experiences that stay, or their sum (in sum[n_learned], when it is given), then the directions but `own`. */
static int kept_of(const es_learner *l, const int *experience, int n, int own, float *sum, const float **v)
{
    int n_v = 0, n_other = 0;
    for (int i = 0; i < l->n; i++) {
        const float *part = listed(experience, n, i) ? NULL : l->item[i]->moved;
        n_other += part != NULL;
        if (part && !sum)
            v[n_v++] = part;
        for (size_t j = 0; part && sum && j < l->a->n_learned; j++)
            sum[j] += part[j];
    }
    if (sum && n_other)
        v[n_v++] = sum;
    for (int i = 0; i < l->prior.n; i++)
        if (i != own)
            v[n_v++] = l->prior.unit + (size_t)i * l->a->n_learned;
    return n_v;
}

/* change -= V (V^T G V)^-1 V^T G change. Vectors are used at length 1, so that a small part counts like a large one. */
static int spare(es_learner *l, const float *const *v, int n_v, float *change, es_error *err)
{
    if (!n_v)
        return ES_OK; /* there are no others */
    size_t n = l->a->n_learned;
    float *dual = es_calloc(n, sizeof *dual);
    double *gram = es_calloc((size_t)n_v * (size_t)n_v + 2 * (size_t)n_v, sizeof *gram), *c = gram + (size_t)n_v * (size_t)n_v, *length = c + n_v;
    int rc = dual && gram ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory to take experiences away");
    for (int i = 0; !rc && i < n_v; i++) {
        rc = es_learner_metric(l, v[i], dual, err);
        length[i] = sqrt(fmax(es_learner_dot(v[i], dual, n), 0));
        for (int j = 0; !rc && j < n_v; j++)
            gram[i * n_v + j] = es_learner_dot(v[j], dual, n);
        c[i] = es_learner_dot(change, dual, n);
    }
    for (int i = 0; !rc && i < n_v; i++) {
        for (int j = 0; j < n_v; j++)
            gram[i * n_v + j] = length[i] > 0 && length[j] > 0 ? gram[i * n_v + j] / length[i] / length[j] : i == j;
        c[i] = length[i] > 0 ? c[i] / length[i] : 0;
    }
    if (!rc && !es_linear_cholesky(gram, n_v, 1e-4))
        rc = es_fail(err, ES_ERR_LIMIT, "the experiences' parts are not numbers");
    if (!rc)
        es_linear_solve(gram, n_v, c);
    for (int i = 0; !rc && i < n_v; i++)
        for (size_t j = 0; length[i] > 0 && j < n; j++)
            change[j] -= (float)(c[i] / length[i]) * v[i][j];
    free(dual);
    free(gram);
    return rc;
}

/* ---- balancing ----------------------------------------------------------------------------------------------------------------------------- */

typedef struct group { /* experiences that are looked at by their mean gain */
    int n, *which;
    double want, lacks;
    float *gradient, *step; /* [n_learned] of the mean gain, and G^-1 times it */
} group;

enum { ROUNDS = 3 };
static const double CLOSE = 0.01; /* of the largest gain that is to be kept: near enough */

/* group[0]: the experiences listed; then the others by the direction that their part went along most. Whoever moved nothing is in none. */
static void sort_out(es_learner *l, const int *experience, int n, group *g, int n_group)
{
    for (int i = 0; i < l->n; i++) {
        const es_item *e = l->item[i];
        bool moved = false;
        for (size_t j = 0; e->moved && !moved && j < l->a->n_learned; j++)
            moved = e->moved[j] != 0;
        if (!moved || e->target.n || !(e->weight > 0))
            continue;
        group *to = listed(experience, n, i) ? &g[0] : &g[n_group == 2 ? 1 : 1 + main_direction(l, e->moved)];
        to->which[to->n++] = i;
    }
}

static int group_gradient(es_learner *l, group *g, double *gain, const volatile bool *cancel, es_error *err)
{
    size_t size = l->a->n_learned;
    int rc = es_learner_gains(l, g->which, g->n, true, gain, cancel, err);
    memset(g->gradient, 0, size * sizeof *g->gradient);
    for (int i = 0; !rc && i < g->n; i++)
        for (size_t j = 0; j < size; j++)
            g->gradient[j] -= l->item[g->which[i]]->grad[j];
    if (!rc)
        es_learner_metric_square(l, g->gradient, g->step);
    return rc;
}

/* One step of all groups there are towards what they want. *most: what one lacks at most, before it. */
static int round_of(es_learner *l, group *g, int n_group, double *most, const volatile bool *cancel, es_error *err)
{
    size_t size = l->a->n_learned;
    double gram[ES_BALANCE_GROUPS * ES_BALANCE_GROUPS], a[ES_BALANCE_GROUPS];
    int there[ES_BALANCE_GROUPS], n = 0, rc = ES_OK;
    *most = 0;
    for (int i = 0; !rc && i < n_group; i++) {
        double gain;
        if (!g[i].n)
            continue;
        rc = group_gradient(l, &g[i], &gain, cancel, err);
        g[i].lacks = rc ? 0 : g[i].want - gain;
        *most = fmax(*most, fabs(g[i].lacks));
        there[n++] = i;
    }
    for (int i = 0; !rc && i < n; i++) {
        a[i] = g[there[i]].lacks;
        for (int j = 0; j < n; j++)
            gram[i * n + j] = es_learner_dot(g[there[i]].gradient, g[there[j]].step, size);
    }
    double trace = 0;
    for (int i = 0; i < n; i++)
        trace += rc ? 0 : gram[i * n + i];
    for (int i = 0; i < n; i++)
        gram[i * n + i] += 1e-3 * trace / n;
    if (!rc && (!(trace > 0) || !isfinite(trace) || !es_linear_cholesky(gram, n, 0)))
        rc = es_fail(err, ES_ERR_LIMIT, "the experiences' gradients are not numbers, or are zero");
    if (!rc)
        es_linear_solve(gram, n, a);
    for (int i = 0; !rc && i < n; i++)
        for (size_t j = 0; j < size; j++)
            l->a->param[j] += (float)a[i] * g[there[i]].step[j];
    if (!rc)
        es_adapter_refresh(l->a);
    return rc;
}

/* The adapter's own parameters, less `change` and brought into balance. */
static int balance(es_learner *l, const int *experience, int n, const float *change, const volatile bool *cancel, es_error *err)
{
    int n_group = l->prior.n > 1 ? l->prior.n + 1 : 2;
    size_t size = l->a->n_learned;
    if (n_group > ES_BALANCE_GROUPS)
        return es_fail(err, ES_ERR_LIMIT, "taking experiences away in balance is for at most %d directions", (int)ES_BALANCE_GROUPS - 1);
    group g[ES_BALANCE_GROUPS] = {{0}};
    int *which = es_calloc((size_t)n_group * (size_t)l->n + 1, sizeof *which), rc = ES_OK;
    float *vectors = es_calloc(2 * (size_t)n_group, size * sizeof *vectors);
    if (!which || !vectors)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory to take experiences away");
    for (int i = 0; !rc && i < n_group; i++) {
        g[i].which = which + (size_t)i * (size_t)l->n;
        g[i].gradient = vectors + 2 * (size_t)i * size;
        g[i].step = g[i].gradient + size;
    }
    if (!rc)
        sort_out(l, experience, n, g, n_group);
    double kept = 0, most = INFINITY;
    for (int i = 1; !rc && i < n_group; i++)
        if (g[i].n) {
            rc = es_learner_gains(l, g[i].which, g[i].n, false, &g[i].want, cancel, err);
            kept = fmax(kept, fabs(g[i].want));
        }
    for (size_t j = 0; !rc && j < size; j++)
        l->a->param[j] -= change[j];
    if (!rc) {
        es_adapter_refresh(l->a);
        if (g[0].n)
            rc = es_learner_gains(l, g[0].which, g[0].n, false, &g[0].want, cancel, err);
    }
    for (int i = 0; !rc && kept > 0 && i < ROUNDS && most > CLOSE * kept; i++)
        rc = round_of(l, g, n_group, &most, cancel, err);
    free(which);
    free(vectors);
    return rc;
}

/* ---- all ways ------------------------------------------------------------------------------------------------------------------------------- */

int es_learner_without(es_learner *l, const int *experience, int n, es_undo how, es_adapter **out, const volatile bool *cancel, es_error *err)
{
    const bool sparing = how != ES_UNDO_PLAIN, by_sum = how == ES_UNDO_SPARE_SUM || how == ES_UNDO_BALANCE;
    *out = NULL;
    int rc = check(l, experience, n, err);
    if (!rc && sparing && (es_learner_is_adam(l) || l->a->o.form != ES_FORM_LORA))
        rc = es_fail(err, ES_ERR_USAGE, "learner: sparing the others when experiences go is for the metric step of form lora");
    if (rc)
        return rc;
    float *change = es_calloc(l->a->n_learned, sizeof *change), *sum = by_sum ? es_calloc(l->a->n_learned, sizeof *sum) : NULL;
    const float **v = es_calloc((size_t)(l->n + l->prior.n) + 1, sizeof *v);
    rc = change && v && (sum || !by_sum) ? es_adapter_copy(out, l->a, err) : es_fail(err, ES_ERR_MEMORY, "no memory to take experiences away");
    if (!rc)
        parts_of(l, experience, n, change);
    if (!rc && sparing)
        rc = spare(l, v, kept_of(l, experience, n, main_direction(l, change), sum, v), change, err);
    if (!rc && how == ES_UNDO_BALANCE) {
        float *own = es_calloc(l->a->n_learned, sizeof *own);
        rc = own ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory to take experiences away");
        if (!rc) {
            memcpy(own, l->a->param, l->a->n_learned * sizeof *own);
            rc = balance(l, experience, n, change, cancel, err);
            for (size_t j = 0; j < l->a->n_learned; j++)
                change[j] = own[j] - l->a->param[j];
            memcpy(l->a->param, own, l->a->n_learned * sizeof *own);
            es_adapter_refresh(l->a);
            free(own);
        }
    }
    if (!rc) {
        for (size_t j = 0; j < l->a->n_learned; j++)
            (*out)->param[j] -= change[j];
        es_adapter_refresh(*out);
    } else {
        es_adapter_free(*out);
        *out = NULL;
    }
    free(change);
    free(sum);
    free(v);
    return rc;
}
