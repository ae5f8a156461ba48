/* One step: what was kept is decoded, the gradients of train_loss.h go through it, Adam moves the numbers.
 *
 * With entries (t, j, f), errors e and B tokens: dL/df = -2/B e_t . dec_j, ddec_j = -2/B sum_t f e_t, denc_j = sum_t dz (x_t - b_dec).
 * Of matryoshka the error of entry j is the sum of those of all prefixes that j is in. */
#include <math.h>
#include <string.h>

#include "train.h"

/* ---- the batch ---------------------------------------------------------------------------------------------------------------------- */

static void load_part(void *user, int part, int parts)
{
    es_train *t = user;
    for (size_t i = (size_t)part; i < t->B; i += (size_t)parts) {
        float *x = t->x + i * t->d;
        if (es_train_take(t, t->tokens + i, x)) /* otherwise it stands where b_dec is */
            for (size_t k = 0; k < t->d; k++)
                x[k] -= t->p[ES_P_B_DEC].w[k];
    }
}

/* ---- decoding, and what the values' gradients are ----------------------------------------------------------------------------------- */

static const float *row(const es_train *t, int which, int32_t feature)
{
    return t->p[which].w + (size_t)feature * t->d;
}

/* The error of every prefix, summed from the last on: what an entry of prefix g sees is e[g]. Returns the last one's square. */
static double decode_token(es_train *t, size_t i)
{
    const es_vector_ops *ops = es_vector();
    size_t d = t->d, a = t->main.token_start[i], end = t->main.token_start[i + 1], stride = t->B * d;
    float *e = t->e + i * d, *last = e + (size_t)(t->n_prefix - 1) * stride;
    memcpy(last, t->x + i * d, d * sizeof *e);
    for (int g = 0; g < t->n_prefix; g++) {
        size_t first = a;
        while (a < end && (size_t)t->main.feature[a] < t->prefix[g])
            a++;
        ops->axpys(last, t->main.value + first, -1, t->p[ES_P_DEC].w, t->main.feature + first, NULL, a - first, d);
        if (g < t->n_prefix - 1)
            memcpy(e + (size_t)g * stride, last, d * sizeof *e);
    }
    double square = (double)ops->dot(last, last, d);
    for (int g = t->n_prefix - 2; g >= 0; g--)
        ops->axpy(e + (size_t)g * stride, 1, e + (size_t)(g + 1) * stride, d);
    return square;
}

static int prefix_of(const es_train *t, int32_t feature)
{
    int g = 0;
    while ((size_t)feature >= t->prefix[g])
        g++;
    return g;
}

/* dL/df of entry a by the reconstruction. */
static float value_gradient(const es_train *t, size_t a)
{
    size_t i = (size_t)t->main.token[a];
    const float *e = t->e + ((size_t)(t->n_prefix > 1 ? prefix_of(t, t->main.feature[a]) : 0) * t->B + i) * t->d;
    return -2 / (float)t->B * es_vector()->dot(e, row(t, ES_P_DEC, t->main.feature[a]), t->d);
}

static void jumprelu_gradient(es_train *t, size_t a, float dvalue)
{
    es_train_entries *l = &t->main;
    float theta = t->p[ES_P_THETA].w[l->feature[a]], eps = (float)t->o.bandwidth;
    l->grad[a] = l->value[a] > 0 ? dvalue : 0;
    l->extra[a] = fabsf((l->z[a] - theta) / eps) < 0.5f ? -(t->penalty / (float)t->B + theta * dvalue) / eps : 0;
}

static void standard_gradient(es_train *t, size_t a, float dvalue)
{
    const float *dec = row(t, ES_P_DEC, t->main.feature[a]);
    t->main.grad[a] = dvalue + t->penalty / (float)t->B * sqrtf(es_vector()->dot(dec, dec, t->d));
}

/* The gates' own reconstruction of a token, and what both send to the encoder. */
static void gated_gradients(es_train *t, size_t i)
{
    es_train_entries *l = &t->main;
    const es_vector_ops *ops = es_vector();
    size_t first = l->token_start[i], end = l->token_start[i + 1];
    float *e = t->gate_e + i * t->d;
    memcpy(e, t->x + i * t->d, t->d * sizeof *e);
    ops->axpys(e, l->z + first, -1, t->p[ES_P_DEC].w, l->feature + first, NULL, end - first, t->d);
    for (size_t a = first; a < end; a++) {
        float dgate = t->penalty / (float)t->B - 2 / (float)t->B * ops->dot(e, row(t, ES_P_DEC, l->feature[a]), t->d);
        l->extra[a] = l->value[a] > 0 ? value_gradient(t, a) : 0;
        l->grad[a] = dgate + expf(t->p[ES_P_R_MAG].w[l->feature[a]]) * l->extra[a];
    }
}

static void decode_part(void *user, int part, int parts)
{
    es_train *t = user;
    double total = 0;
    size_t from = t->B * (size_t)part / (size_t)parts, to = t->B * ((size_t)part + 1) / (size_t)parts;
    for (size_t i = from; i < to; i++) {
        total += decode_token(t, i);
        if (t->o.recipe == ES_TRAIN_GATED) {
            gated_gradients(t, i);
            continue;
        }
        for (size_t a = t->main.token_start[i]; a < t->main.token_start[i + 1]; a++) {
            float dvalue = value_gradient(t, a);
            if (t->o.recipe == ES_TRAIN_JUMPRELU)
                jumprelu_gradient(t, a, dvalue);
            else if (t->o.recipe == ES_TRAIN_STANDARD)
                standard_gradient(t, a, dvalue);
            else
                t->main.grad[a] = dvalue;
        }
    }
    t->part_error[part] = total;
}

/* ---- dead features reconstruct the error of the batch's first A tokens with the aux_k of them that fire most on each ------------------- */

static void auxiliary_token(es_train *t, size_t i, size_t want)
{
    const es_vector_ops *ops = es_vector();
    es_train_entries *l = &t->aux;
    size_t d = t->d, first = l->n;
    float *pre = t->pre + i * t->n_dead, *e = t->aux_e + i * d, weight = (float)(t->o.aux_weight * 2 / (double)t->A);
    for (size_t a = 0; a < t->n_dead; a++)
        t->select[a] = pre[a] += t->p[ES_P_B_ENC].w[t->dead[a]];
    float least = fmaxf(es_train_nth_largest(t->select, t->n_dead, want - 1), 1e-12f);
    for (size_t a = 0; a < t->n_dead && l->n - first < want; a++)
        if (pre[a] >= least) {
            l->token[l->n] = (int32_t)i;
            l->feature[l->n] = t->dead[a];
            l->value[l->n++] = pre[a];
        }
    memcpy(e, t->e + ((size_t)(t->n_prefix - 1) * t->B + i) * d, d * sizeof *e);
    ops->axpys(e, l->value + first, -1, t->p[ES_P_DEC].w, l->feature + first, NULL, l->n - first, d);
    for (size_t a = first; a < l->n; a++)
        l->grad[a] = -weight * ops->dot(e, row(t, ES_P_DEC, l->feature[a]), d);
}

static int auxiliary(es_train *t, es_error *err)
{
    size_t d = t->d;
    t->n_dead = 0;
    t->aux.n = 0;
    for (size_t j = 0; j < t->F && t->o.aux_k > 0; j++)
        if (t->age[j] >= (float)t->o.dead_tokens)
            t->dead[t->n_dead++] = (int32_t)j;
    size_t want = (size_t)t->o.aux_k < (t->n_dead + 1) / 2 ? (size_t)t->o.aux_k : (t->n_dead + 1) / 2;
    if (want == 0)
        return ES_OK;
    int rc = es_train_entries_room(&t->aux, t->A * (size_t)t->o.aux_k, err);
    rc = rc ? rc : es_train_select_room(t, t->F, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < t->n_dead; i++)
        memcpy(t->dead_enc + i * d, row(t, ES_P_ENC, t->dead[i]), d * sizeof(float));
    es_kernels_cpu()->gemm(t->pool, false, true, (int)t->A, (int)t->n_dead, (int)d, 1, t->x, (int)d, t->dead_enc, (int)d, 0, t->pre, (int)t->n_dead);
    for (size_t i = 0; i < t->A; i++)
        auxiliary_token(t, i, want);
    es_train_index(&t->aux, t->A, t->F);
    return ES_OK;
}

/* ---- features: gradients and Adam ---------------------------------------------------------------------------------------------------- */

typedef struct gradients { float *enc, *dec, b_enc, theta, r_mag, b_mag; bool active; } gradients;

static void add_main(const es_train *t, size_t j, gradients *g)
{
    const es_vector_ops *ops = es_vector();
    const es_train_entries *l = &t->main;
    const size_t *at = l->by_feature + l->feature_start[j], n = l->feature_start[j + 1] - l->feature_start[j];
    const float *e = t->e + (t->n_prefix > 1 ? (size_t)prefix_of(t, (int32_t)j) * t->B * t->d : 0), *norm_of = t->p[ES_P_DEC].w + j * t->d;
    ops->axpys(g->dec, l->value, -2 / (float)t->B, e, l->token, at, n, t->d);
    ops->axpys(g->enc, l->grad, 1, t->x, l->token, at, n, t->d);
    float sum = 0;
    for (size_t p = 0; p < n; p++) {
        g->b_enc += l->grad[at[p]];
        g->active |= l->value[at[p]] > 0;
        sum += l->value[at[p]];
    }
    if (t->o.recipe == ES_TRAIN_STANDARD && sum > 0)
        ops->axpy(g->dec, t->penalty / (float)t->B * sum / sqrtf(ops->dot(norm_of, norm_of, t->d)), norm_of, t->d);
    for (size_t p = 0; p < n && t->o.recipe == ES_TRAIN_JUMPRELU; p++)
        g->theta += l->extra[at[p]];
}

/* Of the gated recipe: the encoder's gradient was dgate + exp(r) dvalue; only dgate is the gate bias's. */
static void split_gated(const es_train *t, size_t j, gradients *g)
{
    const es_train_entries *l = &t->main;
    float scale = expf(t->p[ES_P_R_MAG].w[j]), bias = t->p[ES_P_B_ENC].w[j];
    for (size_t p = l->feature_start[j]; p < l->feature_start[j + 1]; p++) {
        size_t a = l->by_feature[p];
        g->b_enc -= scale * l->extra[a];
        g->b_mag += l->extra[a];
        g->r_mag += l->extra[a] * scale * (l->z[a] - bias);
    }
}

static void add_auxiliary(const es_train *t, size_t j, gradients *g)
{
    const es_vector_ops *ops = es_vector();
    const es_train_entries *l = &t->aux;
    const size_t *at = l->by_feature + l->feature_start[j], n = l->feature_start[j + 1] - l->feature_start[j];
    ops->axpys(g->dec, l->value, (float)(-t->o.aux_weight * 2 / (double)t->A), t->aux_e, l->token, at, n, t->d);
    ops->axpys(g->enc, l->grad, 1, t->x, l->token, at, n, t->d);
    for (size_t p = 0; p < n; p++)
        g->b_enc += l->grad[at[p]];
}

static void move(const es_train *t, int which, size_t from, const float *g, size_t n)
{
    const es_train_parameter *p = &t->p[which];
    es_vector()->adam(p->w + from, g, p->m + from, p->v + from, n, 0.9f, 0.999f, t->rate, t->eps);
}

static void update_feature(es_train *t, size_t j, gradients *g, float *g_b_dec)
{
    const es_vector_ops *ops = es_vector();
    size_t d = t->d;
    float *enc = t->p[ES_P_ENC].w + j * d, *dec = t->p[ES_P_DEC].w + j * d;
    memset(g->enc, 0, 2 * d * sizeof *g->enc);
    g->b_enc = g->theta = g->r_mag = g->b_mag = 0;
    g->active = false;
    add_main(t, j, g);
    if (t->aux.n)
        add_auxiliary(t, j, g);
    if (g->b_enc != 0) /* b_dec is taken off the encoder's input */
        ops->axpy(g_b_dec, -g->b_enc, enc, d);
    if (t->o.recipe == ES_TRAIN_GATED)
        split_gated(t, j, g);
    t->age[j] = g->active ? 0 : t->age[j] + (float)t->B;
    bool unit = t->o.recipe != ES_TRAIN_STANDARD;
    if (unit)
        ops->axpy(g->dec, -ops->dot(g->dec, dec, d), dec, d);
    move(t, ES_P_DEC, j * d, g->dec, d);
    move(t, ES_P_ENC, j * d, g->enc, d);
    move(t, ES_P_B_ENC, j, &g->b_enc, 1);
    if (t->o.recipe == ES_TRAIN_JUMPRELU) {
        float *theta = &t->p[ES_P_THETA].w[j];
        move(t, ES_P_THETA, j, &g->theta, 1);
        *theta = fmaxf(*theta, 0);
    }
    if (t->o.recipe == ES_TRAIN_GATED) {
        move(t, ES_P_R_MAG, j, &g->r_mag, 1);
        move(t, ES_P_B_MAG, j, &g->b_mag, 1);
    }
    float norm = unit ? sqrtf(ops->dot(dec, dec, d)) : 0;
    for (size_t k = 0; norm > 0 && k < d; k++)
        dec[k] /= norm;
}

static void update_part(void *user, int part, int parts)
{
    es_train *t = user;
    size_t d = t->d, from = t->F * (size_t)part / (size_t)parts, to = t->F * ((size_t)part + 1) / (size_t)parts;
    gradients g = {.enc = t->part_row + (size_t)part * 2 * d};
    float *g_b_dec = t->part_b_dec + (size_t)part * d;
    g.dec = g.enc + d;
    memset(g_b_dec, 0, d * sizeof *g_b_dec);
    for (size_t j = from; j < to; j++)
        update_feature(t, j, &g, g_b_dec);
    size_t first = t->B * (size_t)part / (size_t)parts, last = t->B * ((size_t)part + 1) / (size_t)parts;
    for (size_t i = first; i < last; i++) /* e[0]: all prefixes have b_dec */
        es_vector()->axpy(g_b_dec, -2 / (float)t->B, t->e + i * d, d);
}

/* ---- schedules ------------------------------------------------------------------------------------------------------------------------ */

double es_train_base_rate(const es_train *t)
{
    return t->o.learning_rate > 0 ? t->o.learning_rate : 8e-4 * sqrt(6144.0 / (double)t->F);
}

static double learning_rate(const es_train *t)
{
    double base = es_train_base_rate(t), at = (double)t->tokens / (double)t->o.tokens, one = (double)t->B / (double)t->o.tokens, rate = base;
    if (t->o.warmup > 0 && at < t->o.warmup)
        rate = base * (at + one) / (t->o.warmup + one);
    if (t->o.decay > 0 && at > 1 - t->o.decay)
        rate = base * (1 - at) / t->o.decay;
    return fmax(rate, base * 0.01);
}

static double penalty(const es_train *t)
{
    double at = (double)t->tokens / (double)t->o.tokens, rise = t->o.sparsity_warmup;
    return t->coefficient * (rise > 0 && at < rise ? at / rise : 1);
}

/* Without a given weight the penalty is turned up or down, a little a step, until k activations are left: its logarithm follows how far the number is away
 * (summed up) and how it changes (which keeps it from swinging). before: l0 before this step. */
static void steer(es_train *t, double before)
{
    if (!es_train_penalised(t->o.recipe) || t->o.sparsity > 0)
        return;
    double away = log((t->l0 + 0.01) / (double)t->o.k), change = t->steps ? log((t->l0 + 0.01) / (before + 0.01)) : 0;
    t->coefficient *= exp(0.02 * fmax(-1, fmin(1, away)) + 0.3 * fmax(-1, fmin(1, change)));
    t->coefficient = fmax(1e-9, fmin(1e9, t->coefficient));
}

double es_train_running_share(const es_train *t)
{
    return fmax(0.05, 1 / ((double)t->steps + 1));
}

void es_train_rate(es_train *t)
{
    double n = (double)t->steps + 1, c1 = 1 - pow(0.9, n), c2 = sqrt(1 - pow(0.999, n));
    t->rate = (float)(learning_rate(t) * c2 / c1);
    t->eps = (float)(1e-8 * c2);
}

/* ---- the step --------------------------------------------------------------------------------------------------------------------------- */

static double variance(const es_train *t)
{
    const es_vector_ops *ops = es_vector();
    float *mean = t->part_row; /* not yet in use */
    double sum = 0;
    memset(mean, 0, t->d * sizeof *mean);
    for (size_t i = 0; i < t->B; i++) {
        sum += (double)ops->dot(t->x + i * t->d, t->x + i * t->d, t->d);
        ops->axpy(mean, 1 / (float)t->B, t->x + i * t->d, t->d);
    }
    return sum - (double)t->B * (double)ops->dot(mean, mean, t->d);
}

int es_train_out_of_bounds(const es_train *t, es_error *err)
{
    return es_fail(err, ES_ERR_FORMAT, "training went out of bounds at step %llu (the error is no number): try a smaller learning rate",
                   (unsigned long long)t->steps);
}

int es_train_step(es_train *t, es_error *err)
{
    if (t->o.card)
        return es_train_card_step(t, err);
    const es_vector_ops *ops = es_vector();
    const double before = t->l0;
    es_pool_run(t->pool, load_part, t);
    t->penalty = (float)penalty(t);
    int rc = es_train_select(t, err);
    if (rc)
        return rc;
    es_pool_run(t->pool, decode_part, t);
    rc = auxiliary(t, err);
    if (rc)
        return rc;
    double error = 0, spread = variance(t);
    for (int i = 0; i < es_pool_threads(t->pool); i++)
        error += t->part_error[i];
    if (!isfinite(error))
        return es_train_out_of_bounds(t, err);
    t->fvu += ((spread > 0 ? error / spread : 0) - t->fvu) * es_train_running_share(t);

    es_train_rate(t);
    es_pool_run(t->pool, update_part, t);
    for (int i = 1; i < es_pool_threads(t->pool); i++)
        ops->axpy(t->part_b_dec, 1, t->part_b_dec + (size_t)i * t->d, t->d);
    move(t, ES_P_B_DEC, 0, t->part_b_dec, t->d);
    steer(t, before);
    t->tokens += t->B;
    t->steps++;
    return ES_OK;
}

/* ---- figures ------------------------------------------------------------------------------------------------------------------------------ */

double es_train_dead(const es_train *t)
{
    size_t dead = 0;
    for (size_t j = 0; j < t->F; j++)
        dead += t->age[j] >= (float)t->o.dead_tokens;
    return (double)dead / (double)t->F;
}

int es_train_near(es_train *t, double *out, es_error *err)
{
    enum { LOOKED_AT = 256 };
    const es_vector_ops *ops = es_vector();
    size_t d = t->d, n = t->F < LOOKED_AT ? t->F : LOOKED_AT;
    double sum = 0;
    if (t->F < 2)
        return es_fail(err, ES_ERR_USAGE, "one feature has no neighbours");
    int rc = es_train_card_fetch_decoder(t, err);
    if (rc)
        return rc;
    float *rows = t->dead_enc, *norm = t->screen; /* both are of a step only */
    for (size_t j = 0; j < t->F; j++)
        norm[j] = sqrtf(ops->dot(t->p[ES_P_DEC].w + j * d, t->p[ES_P_DEC].w + j * d, d));
    for (size_t i = 0; i < n; i++)
        memcpy(rows + i * d, t->p[ES_P_DEC].w + i * t->F / n * d, d * sizeof *rows);
    es_kernels_cpu()->gemm(t->pool, false, true, (int)n, (int)t->F, (int)d, 1, rows, (int)d, t->p[ES_P_DEC].w, (int)d, 0, t->pre, (int)t->F);
    for (size_t i = 0; i < n; i++) {
        size_t self = i * t->F / n;
        float best = -1;
        for (size_t j = 0; j < t->F; j++)
            if (j != self && norm[j] > 0)
                best = fmaxf(best, t->pre[i * t->F + j] / norm[j]);
        sum += norm[self] > 0 ? best / norm[self] : 0;
    }
    *out = sum / (double)n;
    return ES_OK;
}
