/* tune: gradients of low-rank updates and of all weights against finite differences through the real losses, the optimiser by hand,
 * anchors, samples, and that an error moves nothing. */
#include "fixture.h"
#include "tune.h"

static es_model *model;
static const char *const anchors[] = {"the cat sat on the mat", "one two three four five"};

static es_tune_options options(bool weights)
{
    es_tune_options o = es_tune_default(weights);
    o.rank = 3;
    o.alpha = 6;
    o.threads = 2;
    o.max_prompt = 64;
    o.max_reply = 24;
    o.max_tokens = 200; /* so that the experiences take several passes */
    o.anchor_text = anchors;
    o.n_anchor = 2;
    return o;
}

static es_tune *open_tune(const es_tune_options *o, es_model *own)
{
    es_error err;
    es_tune *t = NULL;
    assert_ok(es_tune_open(&t, model, own, o, &err), &err);
    return t;
}

static es_tune *with_experiences(const es_tune_options *o, es_model *own)
{
    es_error err;
    es_experiences e = fix_experiences();
    e.item[1].weight = 2.5;
    es_tune *t = open_tune(o, own);
    for (int i = 0; i < e.n; i++)
        assert_ok(es_tune_add(t, &e.item[i], NULL, &err), &err);
    es_experiences_free(&e);
    assert_int_equal(es_tune_count(t), 5);
    return t;
}

static es_model *thawed(void)
{
    es_error err;
    es_model *m = NULL;
    assert_ok(es_model_thaw(&m, model, 0, &err), &err);
    return m;
}

static void shake(es_tune *t, float by)
{
    es_rng rng;
    es_rng_seed(&rng, 5);
    float *x = es_tune_values(t);
    for (size_t i = 0; i < es_tune_parameters(t); i++)
        x[i] += by * es_rng_normal(&rng);
}

static double plain_loss(es_tune *t)
{
    es_error err;
    double loss;
    assert_ok(es_tune_gradient(t, &loss, NULL, &err), &err);
    return loss;
}

static double anchor_loss(es_tune *t)
{
    es_error err;
    double kl;
    assert_ok(es_tune_anchor_kl(t, &kl, NULL, &err), &err);
    return kl;
}

/* Along random directions over parts of the parameters, and along the gradient's own signs. */
static void differences(es_tune *t, const float *g, double (*loss)(es_tune *), double h, const char *what)
{
    size_t n = es_tune_parameters(t);
    float *x = es_tune_values(t), *at = malloc(n * sizeof *at);
    double *way = malloc(n * sizeof *way);
    es_rng rng;
    es_rng_seed(&rng, 7);
    memcpy(at, x, n * sizeof *x);
    for (int turn = 0; turn < 8; turn++) {
        size_t from = n * (size_t)(turn / 2) / 4, to = n * (size_t)(turn / 2 + 1) / 4;
        double slope = 0, size = 0, seen[2];
        for (size_t i = 0; i < n; i++) {
            way[i] = i >= from && i < to && g[i] != 0 ? es_rng_normal(&rng) : 0;
            if (turn % 2)
                way[i] = fabs(way[i]) * (g[i] > 0 ? 1 : -1);
            size += way[i] * way[i];
        }
        assert_true(size > 0);
        for (size_t i = 0; i < n; i++)
            slope += (way[i] /= sqrt(size)) * g[i];
        for (int k = 0; k < 2; k++) {
            double side[2];
            for (int s = 0; s < 2; s++) {
                for (size_t i = 0; i < n; i++)
                    x[i] = at[i] + (float)((s ? -h : h) * (k + 1) * way[i]);
                side[s] = loss(t);
            }
            seen[k] = (side[0] - side[1]) / (2 * h * (k + 1));
        }
        memcpy(x, at, n * sizeof *x);
        double difference = (4 * seen[0] - seen[1]) / 3; /* Richardson */
        if (fabs(difference - slope) > 1e-3 + 0.01 * fabs(slope))
            fail_msg("%s, direction %d: gradient %g, finite difference %g", what, turn, slope, difference);
    }
    free(at);
    free(way);
}

static void check_gradient(bool weights)
{
    es_error err;
    es_tune_options o = options(weights);
    es_model *own = weights ? thawed() : NULL;
    es_tune *t = with_experiences(&o, own);
    shake(t, weights ? 0.01f : 0.05f);
    float *g = malloc(es_tune_parameters(t) * sizeof *g);
    double loss;
    assert_ok(es_tune_gradient(t, &loss, g, &err), &err);
    assert_true(isfinite(loss) && loss > 0);
    differences(t, g, plain_loss, 2e-2, weights ? "all weights" : "low-rank");
    free(g);
    es_tune_free(t);
    es_model_free(own);
}

static void gradient_of_lowrank(void **s) { (void)s; check_gradient(false); }
static void gradient_of_weights(void **s) { (void)s; check_gradient(true); }

/* The parameters' place of a site's update in a tune of the given band and sites. */
static const es_lowrank *find(const es_patch *p, int layer, es_site site)
{
    for (int i = 0; i < p->n_lowrank; i++)
        if (p->lowrank[i].layer == layer && p->lowrank[i].site == site)
            return &p->lowrank[i];
    fail_msg("no update on layer %d, site %d", layer, site);
    return NULL;
}

/* From the middle up, over cached residuals: the same numbers as from the ids. */
static void test_band(void **state)
{
    (void)state;
    es_error err;
    es_tune_options all = options(false), part = all;
    part.first_layer = 2;
    part.last_layer = 3;
    part.sites = 1u << ES_SITE_O | 1u << ES_SITE_DOWN;
    es_tune *a = with_experiences(&all, NULL), *b = with_experiences(&part, NULL);
    assert_true(es_tune_parameters(b) < es_tune_parameters(a));
    es_variant va = {0}, vb = {0};
    assert_ok(es_tune_view(a, &va, &err), &err);
    assert_ok(es_tune_view(b, &vb, &err), &err);
    assert_int_equal(va.lowest_layer, 0);
    assert_int_equal(vb.lowest_layer, 2);
    shake(b, 0.05f);
    for (int i = 0; i < vb.patch.n_lowrank; i++) { /* a: the same there; its other updates are zero as B begins */
        const es_lowrank *to = find(&va.patch, vb.patch.lowrank[i].layer, vb.patch.lowrank[i].site), *from = &vb.patch.lowrank[i];
        memcpy((float *)(uintptr_t)to->a, from->a, sizeof(float) * (size_t)from->rank * (size_t)es_site_n_in(model, from->site));
        memcpy((float *)(uintptr_t)to->b, from->b, sizeof(float) * (size_t)from->rank * (size_t)es_site_n_out(model, from->site));
    }
    float *ga = malloc(es_tune_parameters(a) * sizeof *ga), *gb = malloc(es_tune_parameters(b) * sizeof *gb);
    double la, lb;
    assert_ok(es_tune_gradient(a, &la, ga, &err), &err);
    assert_ok(es_tune_gradient(b, &lb, gb, &err), &err);
    assert_true(fabs(la - lb) < 1e-5);
    for (int i = 0; i < vb.patch.n_lowrank; i++) {
        const es_lowrank *from = &vb.patch.lowrank[i], *same = find(&va.patch, from->layer, from->site);
        size_t n = (size_t)from->rank * (size_t)(es_site_n_in(model, from->site) + es_site_n_out(model, from->site));
        const float *x = ga + (same->a - es_tune_values(a)), *y = gb + (from->a - es_tune_values(b));
        for (size_t j = 0; j < n; j++)
            if (fabsf(x[j] - y[j]) > 1e-4f * (1 + fabsf(x[j])))
                fail_msg("layer %d, %s: %g from the ids, %g from the residual", from->layer, es_site_name(from->site), x[j], y[j]);
    }
    free(ga);
    free(gb);
    es_tune_free(a);
    es_tune_free(b);
}

/* ---- losses of one's own ------------------------------------------------------------------------------------------------- */

static es_sequence said[2];
static float slopes[2][8];

static double quadratic(void *user, int s, int i, const float *p, float *dl)
{
    int n = es_model_get_info(model)->n_vocab; /* sum p^2, weighted by place */
    double w = 0.5 + s + 0.1 * i, sum = 0;
    (void)user;
    assert_true(s >= 0 && s < 2 && i >= 0 && i < said[s].n_reply);
    for (int v = 0; v < n; v++)
        sum += (double)p[v] * p[v];
    for (int v = 0; v < n; v++)
        dl[v] += (float)(w * 2 * p[v] * (p[v] - sum));
    return w * sum;
}

static es_tune_loss own_loss(void)
{
    static es_sequence *list[2] = {&said[0], &said[1]};
    static const float *const slope[2] = {slopes[0], slopes[1]};
    return (es_tune_loss){.seq = list, .n = 2, .slope = slope, .token = quadratic};
}

static double report_loss(es_tune *t)
{
    es_error err;
    es_step_report r;
    es_tune_loss l = own_loss();
    assert_ok(es_tune_step_on(t, &l, &r, NULL, &err), &err); /* at rate 0: nothing moves */
    return r.loss;
}

static void test_own_loss(void **state)
{
    (void)state;
    es_error err;
    int32_t ids[] = {3, 80, 90, 100, 110, 120, 130, 140, 150};
    assert_ok(es_sequence_ids(&said[0], ids, 4, ids + 4, 5, &err), &err);
    assert_ok(es_sequence_ids(&said[1], ids + 2, 3, ids, 3, &err), &err);
    assert_int_equal(said[0].n, 8);
    assert_int_equal(said[0].target[3], 110);
    for (int i = 0; i < 8; i++)
        slopes[0][i] = slopes[1][i] = 0.3f - 0.1f * (float)i;
    es_tune_options o = options(false);
    o.rate = 0;
    o.clip = 0;
    o.max_tokens = 1; /* raised to what a pair needs */
    es_tune *t = open_tune(&o, NULL);
    shake(t, 0.05f);
    report_loss(t);
    size_t n = es_tune_parameters(t);
    float *g = malloc(n * sizeof *g);
    for (size_t i = 0; i < n; i++)
        g[i] = es_tune_moment(t, 0)[i] / 0.1f; /* the first step's momentum is (1 - beta1) of the gradient */
    differences(t, g, report_loss, 2e-2, "a loss of one's own");
    free(g);
    es_step_report r;
    es_tune_loss none = own_loss();
    none.slope = NULL;
    none.token = NULL;
    assert_error(es_tune_step_on(t, &none, &r, NULL, &err), &err, "nothing to learn from");
    es_tune_free(t);
    es_sequence_free(&said[0]);
    es_sequence_free(&said[1]);
}

static void test_anchors(void **state)
{
    (void)state;
    es_error err;
    es_step_report r;
    es_tune_options o = options(false);
    o.rate = 0;
    o.clip = 0;
    o.anchor = 1;
    o.anchor_batch = 2;
    es_tune *t = with_experiences(&o, NULL);
    assert_true(fabs(anchor_loss(t)) < 1e-5);
    shake(t, 0.05f);
    double kl = anchor_loss(t);
    assert_true(kl > 1e-3);
    size_t n = es_tune_parameters(t);
    float *g = malloc(n * sizeof *g);
    double loss;
    assert_ok(es_tune_gradient(t, &loss, g, &err), &err);
    assert_ok(es_tune_step(t, 0, &r, NULL, &err), &err);
    assert_true(fabs(r.kl - kl) < 1e-4 * (1 + kl) && fabs(r.loss - loss) < 1e-5);
    for (size_t i = 0; i < n; i++)
        g[i] = es_tune_moment(t, 0)[i] / 0.1f - g[i]; /* what the anchors added */
    differences(t, g, anchor_loss, 2e-2, "anchors");
    free(g);
    es_tune_free(t);

    double end[2];
    for (int with = 0; with < 2; with++) { /* and it holds the model near */
        o.rate = 0.01;
        o.clip = 1;
        o.anchor = with ? 5 : 0;
        t = with_experiences(&o, NULL);
        for (int i = 0; i < 12; i++)
            assert_ok(es_tune_step(t, 0, &r, NULL, &err), &err);
        assert_true(with ? r.kl > 0 : r.kl == 0);
        end[with] = anchor_loss(t);
        es_tune_free(t);
    }
    if (!(end[1] < 0.5 * end[0]))
        fail_msg("KL on anchors %g with them in the loss, %g without", end[1], end[0]);
}

/* ---- the optimiser ------------------------------------------------------------------------------------------------------------- */

static void check_adam(bool weights)
{
    es_error err;
    es_step_report r;
    es_tune_options o = options(weights);
    o.rate = 0.01;
    o.decay = 0.5;
    o.clip = 0.3;
    es_model *own = weights ? thawed() : NULL;
    es_tune *t = with_experiences(&o, own);
    size_t n = es_tune_parameters(t), n_decay = n;
    if (weights)
        es_model_numbers(own, &n, &n_decay);
    float *x = es_tune_values(t), *g = malloc(n * sizeof *g);
    double *p = malloc(n * sizeof *p), *m = calloc(n, sizeof *m), *v = calloc(n, sizeof *v), loss;
    for (size_t i = 0; i < n; i++)
        p[i] = x[i];
    for (int step = 1; step <= 3; step++) {
        double square = 0;
        assert_ok(es_tune_gradient(t, &loss, g, &err), &err);
        for (size_t i = 0; i < n; i++)
            square += (double)g[i] * g[i];
        double scale = fmin(1, 0.3 / sqrt(square));
        for (size_t i = 0; i < n; i++) {
            double y = scale * g[i];
            m[i] = 0.9 * m[i] + 0.1 * y;
            v[i] = 0.999 * v[i] + 0.001 * y * y;
            p[i] -= 0.01 * (m[i] / (1 - pow(0.9, step))) / (sqrt(v[i] / (1 - pow(0.999, step))) + 1e-8) + (i < n_decay ? 0.01 * 0.5 * p[i] : 0);
        }
        assert_ok(es_tune_step(t, 0, &r, NULL, &err), &err);
        assert_int_equal(r.step, step);
        assert_true(fabs(r.loss - loss) < 1e-5 && (scale < 1) == (r.guard && !strcmp(r.guard, "clip")));
        for (size_t i = 0; i < n; i++)
            if (fabs(x[i] - p[i]) > 2e-5 + 0.02 * 0.01 * (fabs(g[i]) < 1e-6)) /* near a zero gradient rounding decides the direction */
                fail_msg("step %d, parameter %zu: %g, by hand %g (gradient %g)", step, i, x[i], p[i], g[i]);
        for (size_t i = 0; i < n; i++)
            p[i] = x[i];
    }
    free(g);
    free(p);
    free(m);
    free(v);
    es_tune_free(t);
    es_model_free(own);
}

static void adam_of_lowrank(void **s) { (void)s; check_adam(false); }
static void adam_of_weights(void **s) { (void)s; check_adam(true); }

static void check_learning(bool weights, int batch)
{
    es_error err;
    es_step_report r;
    es_tune_options o = options(weights);
    o.rate = weights ? 3e-4 : 3e-3;
    es_model *own = weights ? thawed() : NULL;
    es_tune *t = with_experiences(&o, own);
    double before = plain_loss(t), gain;
    for (int i = 0; i < (batch ? 30 : 15); i++)
        assert_ok(es_tune_step(t, batch, &r, NULL, &err), &err);
    double after = plain_loss(t);
    if (!(after < 0.7 * before))
        fail_msg("%s, batch %d: loss %g after steps, %g before", weights ? "all weights" : "low-rank", batch, after, before);
    assert_ok(es_tune_gain(t, &gain, NULL, &err), &err);
    assert_true(gain > 0);
    assert_true(es_tune_bytes(t) > es_tune_parameters(t) * 3 * sizeof(float));
    es_tune_free(t);
    es_model_free(own);
}

static void learning_of_lowrank(void **s) { (void)s; check_learning(false, 0); check_learning(false, 2); }
static void learning_of_weights(void **s) { (void)s; check_learning(true, 0); check_learning(true, 2); }

/* ---- samples, scores ------------------------------------------------------------------------------------------------------------ */

static void test_samples(void **state)
{
    (void)state;
    es_error err;
    es_tune_options o = options(false);
    es_message ask = {"user", "How are you?"};
    es_asked asked[3] = {{&ask, 1}, {&ask, 1}, {&ask, 1}};
    es_sequence s[2], again, *list[2] = {&s[0], &s[1]};
    es_tune *t = open_tune(&o, NULL), *u = open_tune(&o, NULL);
    for (int i = 0; i < 2; i++) {
        assert_ok(es_tune_sample(t, asked, 1, 12, &s[i], NULL, &err), &err);
        assert_ok(es_tune_sample(u, asked, 1, 12, &again, NULL, &err), &err);
        assert_true(s[i].n_reply >= 1 && s[i].n_reply <= 12 && again.n_reply == s[i].n_reply);
        assert_true(!memcmp(again.target, s[i].target, sizeof *s[i].target * (size_t)s[i].n)); /* a function of the seed */
        for (int j = s[i].n - s[i].n_reply; j < s[i].n - 1; j++)
            assert_false(es_token_ends(model, s[i].target[j]));
        es_sequence_free(&again);
    }
    assert_true(s[0].n != s[1].n || memcmp(s[0].target, s[1].target, sizeof *s[0].target * (size_t)s[0].n)); /* and not always the same */
    assert_ok(es_tune_score(t, list, 2, true, NULL, &err), &err);
    double base = s[0].now;
    assert_ok(es_tune_score(t, list, 2, false, NULL, &err), &err);
    assert_true(base == s[0].now && base < 0); /* B is zero: bit by bit the base model */
    shake(t, 0.1f);
    assert_ok(es_tune_score(t, list, 2, false, NULL, &err), &err);
    assert_true(fabs(base - s[0].now) > 1e-4);
    bool cancel = true;
    assert_int_equal(es_tune_sample(t, asked, 1, 12, &again, &cancel, &err), ES_ERR_CANCELLED);
    assert_null(again.ids);
    assert_error(es_tune_sample(t, asked, 1, 0, &again, NULL, &err), &err, "cannot be");
    es_sequence three[3]; /* together: each its own reply */
    assert_ok(es_tune_sample(t, asked, 3, 12, three, NULL, &err), &err);
    assert_true(three[0].n != three[1].n || memcmp(three[0].target, three[1].target, sizeof *three[0].target * (size_t)three[0].n));
    for (int i = 0; i < 3; i++) {
        assert_true(three[i].n_reply >= 1 && three[i].n_reply <= 12);
        es_sequence_free(&three[i]);
    }
    es_sequence_free(&s[0]);
    es_sequence_free(&s[1]);
    es_tune_free(t);
    es_tune_free(u);
}

/* ---- errors --------------------------------------------------------------------------------------------------------------------------- */

typedef struct snapshot {
    float *p, *m, *v;
    int steps;
} snapshot;

static snapshot take(es_tune *t)
{
    size_t bytes = es_tune_parameters(t) * sizeof(float);
    snapshot s = {malloc(bytes), malloc(bytes), malloc(bytes), es_tune_steps(t)};
    memcpy(s.p, es_tune_values(t), bytes);
    memcpy(s.m, es_tune_moment(t, 0), bytes);
    memcpy(s.v, es_tune_moment(t, 1), bytes);
    return s;
}

static void same(es_tune *t, snapshot *s)
{
    size_t bytes = es_tune_parameters(t) * sizeof(float);
    assert_true(!memcmp(s->p, es_tune_values(t), bytes) && !memcmp(s->m, es_tune_moment(t, 0), bytes) && !memcmp(s->v, es_tune_moment(t, 1), bytes));
    assert_int_equal(s->steps, es_tune_steps(t));
    free(s->p);
    free(s->m);
    free(s->v);
}

static double not_a_number(void *user, int s, int i, const float *p, float *dl)
{
    (void)user, (void)s, (void)p;
    dl[7] += i == 1 ? NAN : 0;
    return 0;
}

static void test_errors(void **state)
{
    (void)state;
    es_error err = {0};
    es_step_report r;
    for (int weights = 0; weights < 2; weights++) {
        es_tune_options o = options(weights);
        es_model *own = weights ? thawed() : NULL;
        es_tune *t = with_experiences(&o, own);
        assert_ok(es_tune_step(t, 2, &r, NULL, &err), &err);
        snapshot s = take(t);
        bool cancel = true;
        assert_int_equal(es_tune_step(t, 2, &r, &cancel, &err), ES_ERR_CANCELLED);
        same(t, &s);
        s = take(t);
        int32_t ids[] = {3, 80, 90, 100};
        es_sequence one, *list = &one;
        assert_ok(es_sequence_ids(&one, ids, 2, ids + 2, 2, &err), &err);
        es_tune_loss bad = {.seq = &list, .n = 1, .token = not_a_number};
        assert_int_equal(es_tune_step_on(t, &bad, &r, NULL, &err), ES_ERR_LIMIT);
        assert_error(err.code, &err, "not a number");
        es_sequence_free(&one);
        same(t, &s);
        float was = es_tune_values(t)[0];
        for (size_t i = 0; i < es_tune_parameters(t); i++)
            if (i % 3 == 0)
                es_tune_values(t)[i] = NAN;
        s = take(t);
        assert_int_equal(es_tune_step(t, 0, &r, NULL, &err), ES_ERR_LIMIT);
        same(t, &s);
        es_tune_values(t)[0] = was;

        es_message ask = {"user", "Hm?"};
        es_experience e = {.message = &ask, .n_message = 1, .weight = 1};
        assert_error(es_tune_add(t, &e, NULL, &err), &err, "preferred or a rejected");
        e.preferred = "";
        e.weight = NAN;
        assert_error(es_tune_add(t, &e, NULL, &err), &err, "weight");
        e.weight = 1;
        e.preferred = "Yes.";
        assert_int_equal(es_tune_add(t, &e, &cancel, &err), ES_ERR_CANCELLED);
        assert_int_equal(es_tune_count(t), 5);
        es_tune_free(t);

        t = NULL;
        o.memory = 1000;
        assert_int_equal(es_tune_open(&t, model, own, &o, &err), ES_ERR_MEMORY);
        assert_error(err.code, &err, "needs");
        o = options(weights);
        o.rate = NAN;
        assert_error(es_tune_open(&t, model, own, &o, &err), &err, "out of range");
        o = options(!weights);
        assert_error(es_tune_open(&t, model, own, &o, &err), &err, "model of its own");
        assert_null(t);
        es_model_free(own);
    }
    es_tune_options o = options(false);
    es_tune *t;
    o.last_layer = 9;
    assert_error(es_tune_open(&t, model, NULL, &o, &err), &err, "cannot be");
    o = options(true);
    assert_error(es_tune_open(&t, model, model, &o, &err), &err, "thawed");
    o = options(false);
    t = open_tune(&o, NULL);
    assert_error(es_tune_step(t, 0, &r, NULL, &err), &err, "nothing to learn from");
    es_tune_free(t);
}

static int setup(void **state)
{
    (void)state;
    model = open_tiny(NULL);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    es_model_free(model);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradient_of_lowrank), cmocka_unit_test(gradient_of_weights), cmocka_unit_test(test_band),
        cmocka_unit_test(test_own_loss),       cmocka_unit_test(test_anchors),        cmocka_unit_test(adam_of_lowrank),
        cmocka_unit_test(adam_of_weights),     cmocka_unit_test(learning_of_lowrank), cmocka_unit_test(learning_of_weights),
        cmocka_unit_test(test_samples),        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
