/* learner: taking an experience back. Plainly, its part of every step is subtracted. Where experiences overlap, and those of one person's
 * traits do, that also takes from the others what they had of it; so the other way takes only as much as leaves the others where they are.
 *
 * With G the metric, an experience's part is to first order G^-1 times its own gradient, so a change x moves what experience e asks for in
 * proportion to <part_e, x>_G. Of the part P that is to go, the nearest x in the metric with <v, x>_G = 0 for all v in V is
 * P - V (V^T G V)^-1 V^T G P. V holds the directions that are not its own and the others' parts: each of them, which keeps every experience's own noise
 * too and so holds back much of P, or only their sum. */
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

int es_learner_without(es_learner *l, const int *experience, int n, es_undo how, es_adapter **out, es_error *err)
{
    bool sparing = how != ES_UNDO_PLAIN;
    *out = NULL;
    int rc = check(l, experience, n, err);
    if (!rc && sparing && (es_learner_is_adam(l) || l->a->o.form != ES_FORM_LORA))
        rc = es_fail(err, ES_ERR_USAGE, "learner: sparing the others when experiences go is for the metric step of form lora");
    if (rc)
        return rc;
    float *change = es_calloc(l->a->n_learned, sizeof *change), *sum = how == ES_UNDO_SPARE_SUM ? es_calloc(l->a->n_learned, sizeof *sum) : NULL;
    const float **v = es_calloc((size_t)(l->n + l->prior.n) + 1, sizeof *v);
    rc = change && v && (sum || how != ES_UNDO_SPARE_SUM) ? es_adapter_copy(out, l->a, err) : es_fail(err, ES_ERR_MEMORY, "no memory to take experiences away");
    if (!rc)
        parts_of(l, experience, n, change);
    if (!rc && sparing)
        rc = spare(l, v, kept_of(l, experience, n, main_direction(l, change), sum, v), change, err);
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
