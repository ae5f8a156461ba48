/* Which activations a batch keeps: screen all pre-activations, compute again those that pass, choose among them.
 *
 * Screening is the one dense product of a step. Where the processor has products on bfloat16 it takes them (its rounding is some 0.002 in units
 * where inputs have norm sqrt(d)); what comes within MARGIN of being kept is computed again in f32, and the choice is made on that. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train.h"

#define MARGIN 0.02f

/* ---- room ------------------------------------------------------------------------------------------------------------------------- */

int es_train_entries_room(es_train_entries *l, size_t n, es_error *err)
{
    if (n <= l->cap)
        return ES_OK;
    void **all[] = {(void **)&l->token, (void **)&l->feature, (void **)&l->value, (void **)&l->z, (void **)&l->grad, (void **)&l->by_feature, (void **)&l->extra};
    size_t size[] = {sizeof *l->token, sizeof *l->feature, sizeof *l->value, sizeof *l->z, sizeof *l->grad, sizeof *l->by_feature, sizeof *l->extra};
    bool ok = true;
    l->cap = n + n / 8;
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        free(*all[i]);
        *all[i] = NULL;
        if (all[i] != (void **)&l->extra || l->more)
            ok = (*all[i] = es_calloc(l->cap, size[i])) && ok;
    }
    if (ok)
        return ES_OK;
    l->cap = 0;
    return es_fail(err, ES_ERR_MEMORY, "not enough memory for a batch's %zu activations", n);
}

int es_train_select_room(es_train *t, size_t n, es_error *err)
{
    if (n <= t->select_cap)
        return ES_OK;
    free(t->select);
    t->select_cap = n + n / 4;
    t->select = es_calloc(t->select_cap, sizeof *t->select);
    if (t->select)
        return ES_OK;
    t->select_cap = 0;
    return es_fail(err, ES_ERR_MEMORY, "not enough memory for %zu candidates", n);
}

void es_train_index(es_train_entries *l, size_t rows, size_t F)
{
    memset(l->feature_start, 0, (F + 1) * sizeof(size_t));
    memset(l->token_start, 0, (rows + 1) * sizeof(size_t));
    for (size_t i = 0; i < l->n; i++) {
        l->feature_start[l->feature[i] + 1]++;
        l->token_start[l->token[i] + 1]++;
    }
    for (size_t j = 0; j < F; j++)
        l->feature_start[j + 1] += l->feature_start[j];
    for (size_t i = 0; i < rows; i++)
        l->token_start[i + 1] += l->token_start[i];
    for (size_t i = 0; i < l->n; i++) /* feature_start[j] walks to the end of j ... */
        l->by_feature[l->feature_start[l->feature[i]]++] = i;
    for (size_t j = F; j > 0; j--)    /* ... and is moved back */
        l->feature_start[j] = l->feature_start[j - 1];
    l->feature_start[0] = 0;
}

float es_train_nth_largest(float *a, size_t n, size_t rank)
{
    ptrdiff_t lo = 0, hi = (ptrdiff_t)n - 1, k = (ptrdiff_t)rank;
    while (lo < hi) {
        float pivot = a[lo + (hi - lo) / 2];
        ptrdiff_t i = lo, j = hi;
        while (i <= j) {
            while (a[i] > pivot)
                i++;
            while (a[j] < pivot)
                j--;
            if (i <= j) {
                float swap = a[i];
                a[i++] = a[j];
                a[j--] = swap;
            }
        }
        if (k <= j)
            hi = j;
        else if (k >= i)
            lo = i;
        else
            break;
    }
    return a[k];
}

/* ---- screening -------------------------------------------------------------------------------------------------------------------- */

static void scan_part(void *user, int part, int parts)
{
    es_train *t = user;
    es_hits *l = &t->list[part];
    const float *screen = t->screen;
    int from = t->tile_n * part / parts, to = t->tile_n * (part + 1) / parts;
    for (int i = from; i < to; i++) {
        const float *pre = t->pre + (size_t)i * t->F;
        size_t j = 0;
        for (; j + 16 <= t->F; j += 16) { /* most groups hold nothing */
            int any = 0;
            for (size_t k = 0; k < 16; k++)
                any |= pre[j + k] > screen[j + k];
            if (any)
                for (size_t k = j; k < j + 16; k++)
                    if (pre[k] > screen[k])
                        es_hits_add(l, t->tile_first + i, (int)k, pre[k]);
        }
        for (; j < t->F; j++)
            if (pre[j] > screen[j])
                es_hits_add(l, t->tile_first + i, (int)j, pre[j]);
    }
}

static size_t listed(const es_train *t)
{
    size_t n = 0;
    for (int i = 0; i < es_pool_threads(t->pool); i++)
        n += t->list[i].n;
    return n;
}

static void product(es_train *t, size_t first, int n)
{
    const es_weight enc = {ES_F32, (int)t->F, (int)t->d, t->p[ES_P_ENC].w};
    es_kernels_half()->matmul(t->pool, &enc, t->x + first * t->d, n, t->pre, false, false);
}

/* No idea of the cut yet: what keeps three times as many of the first rows. */
static int guess_cut(es_train *t, es_error *err)
{
    size_t rows = t->B < 64 ? t->B : 64, want = rows * (size_t)t->o.k * 3, n = 0;
    int rc = es_train_select_room(t, rows * t->F, err);
    if (rc)
        return rc;
    product(t, 0, (int)rows);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < t->F; j++)
            t->select[n++] = t->pre[i * t->F + j] + t->p[ES_P_B_ENC].w[j];
    t->cut = want < n ? fmaxf(1e-30f, es_train_nth_largest(t->select, n, want)) : 1e-30f;
    return ES_OK;
}

/* A pre-activation less its bias must be above screen[j] to be looked at again. */
static void set_screen(es_train *t)
{
    const float *bias = t->p[ES_P_B_ENC].w, *theta = t->p[ES_P_THETA].w;
    for (size_t j = 0; j < t->F; j++) {
        float least = 0;
        if (t->o.recipe == ES_TRAIN_JUMPRELU)
            least = theta[j] - (float)t->o.bandwidth / 2;
        else if (!es_train_penalised(t->o.recipe))
            least = t->cut;
        t->screen[j] = least - MARGIN - bias[j];
    }
}

static int check_lists(const es_train *t, es_error *err)
{
    for (int i = 0; i < es_pool_threads(t->pool); i++)
        if (t->list[i].failed)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory for a batch's activations");
    return ES_OK;
}

/* All that passes the screen, its bias not in it yet. Without products on bfloat16 the product is made a tile at a time and looked through. */
static int scan(es_train *t, es_error *err)
{
    for (int i = 0; i < es_pool_threads(t->pool); i++)
        t->list[i].n = 0;
    set_screen(t);
    if (es_screen(t->pool, t->p[ES_P_ENC].w, (int)t->F, (int)t->d, t->x, (int)t->B, t->screen, t->list))
        return check_lists(t, err);
    for (size_t first = 0; first < t->B; first += ES_TRAIN_TILE) {
        t->tile_first = (int)first;
        t->tile_n = (int)(t->B - first < ES_TRAIN_TILE ? t->B - first : ES_TRAIN_TILE);
        product(t, first, t->tile_n);
        es_pool_run(t->pool, scan_part, t);
    }
    return check_lists(t, err);
}

/* The parts' lists as one, by token; features within a token keep their order. with_bias: it is to be added. */
static int gather(es_train *t, bool with_bias, es_error *err)
{
    size_t n = listed(t), *start = t->candidate_start;
    if (n > t->candidate_cap) {
        free(t->candidate);
        t->candidate_cap = n + n / 4;
        t->candidate = es_calloc(t->candidate_cap, sizeof *t->candidate);
        if (!t->candidate) {
            t->candidate_cap = 0;
            return es_fail(err, ES_ERR_MEMORY, "not enough memory for %zu candidates", n);
        }
    }
    t->n_candidate = n;
    memset(start, 0, (t->B + 1) * sizeof *start);
    for (int i = 0; i < es_pool_threads(t->pool); i++)
        for (size_t a = 0; a < t->list[i].n; a++)
            start[t->list[i].e[a].row + 1]++;
    for (size_t i = 0; i < t->B; i++)
        start[i + 1] += start[i];
    for (int i = 0; i < es_pool_threads(t->pool); i++)
        for (size_t a = 0; a < t->list[i].n; a++)
            t->candidate[start[t->list[i].e[a].row]++] = t->list[i].e[a];
    for (size_t a = 0; a < n && with_bias; a++)
        t->candidate[a].value += t->p[ES_P_B_ENC].w[t->candidate[a].column];
    for (size_t i = t->B; i > 0; i--)
        start[i] = start[i - 1];
    start[0] = 0;
    return ES_OK;
}

/* ---- computing again -------------------------------------------------------------------------------------------------------------- */

/* Values of a token's candidates of which some approximate value is above bound, exactly; -INFINITY for the others. */
static void refine_token(es_train *t, size_t token, float bound)
{
    const es_vector_ops *ops = es_vector();
    for (size_t a = t->candidate_start[token]; a < t->candidate_start[token + 1]; a++) {
        es_hit *c = &t->candidate[a];
        c->value = c->value > bound ? ops->dot(t->x + token * t->d, t->p[ES_P_ENC].w + (size_t)c->column * t->d, t->d) + t->p[ES_P_B_ENC].w[c->column] : -INFINITY;
    }
}

/* A token of which too few passed: all its features. */
static void all_of_token(es_train *t, size_t token, float *value)
{
    const es_vector_ops *ops = es_vector();
    for (size_t j = 0; j < t->F; j++)
        value[j] = ops->dot(t->x + token * t->d, t->p[ES_P_ENC].w + j * t->d, t->d) + t->p[ES_P_B_ENC].w[j];
}

/* TopK keeps a token's k largest, those above 0, and marks the others with -INFINITY. Returns the least kept. */
static float refine_topk(es_train *t, size_t token, float *scratch)
{
    size_t first = t->candidate_start[token], n = t->candidate_start[token + 1] - first, k = (size_t)t->o.k, left = k;
    es_hit *c = t->candidate + first;
    float bound = -INFINITY;
    if (n > k) {
        for (size_t a = 0; a < n; a++)
            scratch[a] = c[a].value;
        bound = es_train_nth_largest(scratch, n, k - 1) - 2 * MARGIN;
    }
    refine_token(t, token, bound);
    float least = 0;
    if (n > k) {
        for (size_t a = 0; a < n; a++)
            scratch[a] = c[a].value;
        least = es_train_nth_largest(scratch, n, k - 1);
    }
    for (size_t a = 0; a < n; a++)
        if (left && c[a].value > 0 && c[a].value >= least)
            left--;
        else
            c[a].value = -INFINITY;
    return least;
}

static void refine_part(void *user, int part, int parts)
{
    es_train *t = user;
    size_t from = t->B * (size_t)part / (size_t)parts, to = t->B * ((size_t)part + 1) / (size_t)parts;
    float *scratch = t->part_select + (size_t)part * t->F, least = INFINITY;
    for (size_t i = from; i < to; i++)
        if (t->o.recipe == ES_TRAIN_TOPK) {
            float now = refine_topk(t, i, scratch);
            least = now > 0 ? fminf(least, now) : least;
        } else {
            refine_token(t, i, t->bound);
        }
    t->part_least[part] = least;
}

/* ---- choosing --------------------------------------------------------------------------------------------------------------------- */

static void take(es_train_entries *l, const es_hit *c, float value)
{
    l->token[l->n] = c->row;
    l->feature[l->n] = c->column;
    l->z[l->n] = c->value;
    l->value[l->n++] = value;
}

void es_train_smallest(es_train *t, float smallest)
{
    t->threshold = t->steps ? t->threshold + fmax(0.01, 4 / ((double)t->steps + 4)) * ((double)smallest - t->threshold) : (double)smallest;
    t->cut = 0.9f * smallest;
}

/* The batch's largest. */
static void choose_batch(es_train *t, size_t want)
{
    size_t n = 0, over = 0;
    for (size_t a = 0; a < t->n_candidate; a++)
        if (t->candidate[a].value > 0)
            t->select[n++] = t->candidate[a].value;
    float least = n > want ? es_train_nth_largest(t->select, n, want - 1) : 0, smallest = INFINITY;
    for (size_t a = 0; a < t->n_candidate; a++) {
        const es_hit *c = &t->candidate[a];
        over += (double)c->value > t->threshold;
        if (!(c->value > 0) || c->value < least || t->main.n >= want)
            continue;
        take(&t->main, c, c->value);
        smallest = fminf(smallest, c->value);
    }
    if (t->main.n)
        es_train_smallest(t, smallest);
    t->l0 += ((double)over / (double)t->B - t->l0) * es_train_running_share(t);
}

static void choose_each(es_train *t)
{
    const float *theta = t->p[ES_P_THETA].w, *bias = t->p[ES_P_B_ENC].w, *r_mag = t->p[ES_P_R_MAG].w, *b_mag = t->p[ES_P_B_MAG].w;
    size_t active = 0;
    for (size_t a = 0; a < t->n_candidate; a++) {
        const es_hit *c = &t->candidate[a];
        float value = 0;
        switch (t->o.recipe) {
        case ES_TRAIN_JUMPRELU:
            if (c->value <= theta[c->column] - (float)t->o.bandwidth / 2)
                continue;
            value = c->value > theta[c->column] ? c->value : 0;
            break;
        case ES_TRAIN_GATED:
            if (c->value <= 0)
                continue;
            value = fmaxf(0, expf(r_mag[c->column]) * (c->value - bias[c->column]) + b_mag[c->column]);
            break;
        default:
            if (!(c->value > 0))
                continue;
            value = c->value;
        }
        active += value > 0;
        take(&t->main, c, value);
    }
    t->l0 += ((double)active / (double)t->B - t->l0) * es_train_running_share(t);
}

static size_t short_tokens(const es_train *t)
{
    size_t n = 0;
    for (size_t i = 0; i < t->B; i++)
        n += t->candidate_start[i + 1] - t->candidate_start[i] < (size_t)t->o.k;
    return n;
}

/* Tokens of which fewer than k passed the screen, though there may be more above 0, are looked at whole; where they are many, all are screened
 * again, lower. */
static int complete_tokens(es_train *t, es_error *err)
{
    size_t k = (size_t)t->o.k, n_short = short_tokens(t);
    for (; n_short > t->B / 64 && t->cut > 1e-30f; n_short = short_tokens(t)) {
        t->cut = t->cut > 1e-6f ? t->cut * 0.7f : 1e-30f;
        int rc = scan(t, err);
        rc = rc ? rc : gather(t, true, err);
        if (rc)
            return rc;
    }
    if (!n_short || t->cut <= 1e-30f)
        return ES_OK;
    for (int i = 0; i < es_pool_threads(t->pool); i++)
        t->list[i].n = 0;
    es_hits *l = &t->list[0];
    for (size_t i = 0; i < t->B; i++) {
        size_t first = t->candidate_start[i], n = t->candidate_start[i + 1] - first;
        if (n >= k) {
            for (size_t a = first; a < first + n; a++)
                es_hits_add(l, t->candidate[a].row, t->candidate[a].column, t->candidate[a].value);
            continue;
        }
        float *value = t->part_select, *sorted = t->pre;
        all_of_token(t, i, value);
        memcpy(sorted, value, t->F * sizeof *value);
        float least = fmaxf(0, es_train_nth_largest(sorted, t->F, k - 1));
        for (size_t j = 0; j < t->F; j++)
            if (value[j] >= least && value[j] > 0)
                es_hits_add(l, (int)i, (int)j, value[j]);
    }
    if (l->failed)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a batch's activations");
    return gather(t, false, err);
}

int es_train_select(es_train *t, es_error *err)
{
    size_t want = (size_t)t->o.k * t->B;
    bool top = !es_train_penalised(t->o.recipe);
    int rc = top && t->cut == 0 ? guess_cut(t, err) : ES_OK;
    rc = rc ? rc : scan(t, err);
    while (!rc && es_train_by_batch(t->o.recipe) && t->cut > 1e-30f && listed(t) < want) { /* rare: the batch is unlike the one before */
        t->cut = t->cut > 1e-6f ? t->cut * 0.5f : 1e-30f;
        rc = scan(t, err);
    }
    rc = rc ? rc : gather(t, true, err);
    if (!rc && t->o.recipe == ES_TRAIN_TOPK)
        rc = complete_tokens(t, err);
    rc = rc ? rc : es_train_select_room(t, t->n_candidate, err);
    rc = rc ? rc : es_train_entries_room(&t->main, top && t->n_candidate > want ? want : t->n_candidate, err);
    if (rc)
        return rc;
    t->bound = -INFINITY;
    if (es_train_by_batch(t->o.recipe) && t->n_candidate > want) {
        for (size_t a = 0; a < t->n_candidate; a++)
            t->select[a] = t->candidate[a].value;
        t->bound = es_train_nth_largest(t->select, t->n_candidate, want - 1) - 2 * MARGIN;
    }
    es_pool_run(t->pool, refine_part, t);
    t->main.n = 0;
    if (es_train_by_batch(t->o.recipe))
        choose_batch(t, want);
    else
        choose_each(t);
    if (t->o.recipe == ES_TRAIN_TOPK) {
        float least = INFINITY;
        for (int i = 0; i < es_pool_threads(t->pool); i++)
            least = fminf(least, t->part_least[i]);
        if (isfinite(least)) /* a token's cut moves much between tokens: follow the least of them slowly */
            t->cut += 0.2f * (0.9f * least - t->cut);
    }
    es_train_index(&t->main, t->B, t->F);
    return ES_OK;
}
