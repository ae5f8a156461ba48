/* learner: gradients against finite differences through the real loss, guards, gate, books that add up, and the peace of the
 * adapter when something fails. */
#include "fixture.h"
#include "learner_internal.h"
#include "linear.h"

static es_model *model;
static es_dictionary *dictionary;
static const char *const anchors[] = {"the cat sat on the mat", "one two three four five"};

static es_learner_options options(es_form form)
{
    es_learner_options o = es_learner_default(form);
    o.kappa = 0;
    o.rho = 0;
    o.enough = 0;
    o.hold_out = 0;
    o.threads = 1;
    o.exact = true;
    o.max_prompt = 64;
    o.max_reply = 24;
    o.anchor = anchors;
    o.n_anchor = 2;
    return o;
}

static es_adapter *adapter(es_form form, bool constrained, int n, float bound)
{
    es_error err;
    es_adapter *a = NULL;
    es_basis b = fix_basis(n, bound);
    es_adapter_options o = es_adapter_default(dictionary, model);
    o.form = form;
    o.constrained = constrained;
    o.rank = 3;
    assert_ok(es_adapter_new(&a, model, dictionary, constrained ? &b : NULL, &o, &err), &err);
    es_basis_free(&b);
    return a;
}

static es_learner *learner(es_adapter *a, const es_learner_options *o, const es_experiences *e)
{
    es_error err;
    es_learner *l = NULL;
    assert_ok(es_learner_open(&l, model, dictionary, a, o, &err), &err);
    for (int i = 0; i < e->n; i++)
        assert_ok(es_learner_add(l, &e->item[i], NULL, &err), &err);
    return l;
}

/* A reply and a teacher that would have had it otherwise. */
static void add_target(es_learner *l, es_distil_loss k)
{
    es_error err;
    es_sequence s;
    es_target t;
    es_message message = {"user", "Shall we go?"};
    int V = es_model_get_info(model)->n_vocab;
    assert_ok(es_sequence_make(&s, model, &message, 1, "Perhaps we should wait.", 64, 24, &err), &err);
    float *q = es_calloc((size_t)s.n_reply * (size_t)V, sizeof *q);
    es_rng rng;
    es_rng_seed(&rng, 11);
    for (int i = 0; i < s.n_reply * V; i++)
        q[i] = 2 * es_rng_normal(&rng);
    assert_ok(es_target_make(&t, k, s.n_reply, V, s.target + s.n - s.n_reply, q, 4, &err), &err);
    free(q);
    assert_ok(es_learner_add_target(l, &s, &t, 3, "teacher", NULL, &err), &err);
    assert_true(!s.ids && !t.sampled);
}

/* Neutral text of both kinds, more of it than one step takes. */
static const es_message ask_size = {"user", "How large is it?"};
static const es_neutral_text REPLAYED[] = {
    {.text = "the cat sat on the mat and looked at the moon for a while"}, {.text = "it is as large as a house by the sea", .message = &ask_size, .n_message = 1},
    {.text = "one two three four five six seven eight nine ten eleven twelve"}, {.text = "rivers rise in the hills and run to the sea, and so does the rain"},
    {.text = "a long road through the woods, a short one over the bridge"}, {.text = "rather small", .message = &ask_size, .n_message = 1}};
enum { N_REPLAYED = sizeof REPLAYED / sizeof *REPLAYED };

/* k 0: without a teacher's target. */
static void check_gradient_with(es_form form, bool constrained, es_distil_loss k, double replay)
{
    es_experiences e = fix_experiences();
    e.item[1].weight = 2.5;
    es_adapter *a = adapter(form, constrained, 20, 100);
    es_learner_options o = options(form);
    o.replay = replay;
    o.replay_text = REPLAYED;
    o.n_replay = N_REPLAYED;
    es_learner *l = learner(a, &o, &e);
    if (k)
        add_target(l, k);
    char what[80];
    snprintf(what, sizeof what, "%s%s %s%s", es_form_name(form), constrained ? "" : " free", k ? es_distil_name(k) : "", replay > 0 ? "replay" : "");
    fix_check_gradient(l, a, form == ES_FORM_BIAS || form == ES_FORM_GAIN ? 0.3f : 0.05f, what);
    es_learner_free(l);
    es_adapter_free(a);
    es_experiences_free(&e);
}

static void check_gradient(es_form form, bool constrained, es_distil_loss k)
{
    check_gradient_with(form, constrained, k, 0);
}

static void gradient_of_bias(void **s) { (void)s; check_gradient(ES_FORM_BIAS, true, 0); }
static void gradient_of_gain(void **s) { (void)s; check_gradient(ES_FORM_GAIN, true, 0); }
static void gradient_of_map(void **s) { (void)s; check_gradient(ES_FORM_MAP, true, 0); }
static void gradient_of_lora(void **s) { (void)s; check_gradient(ES_FORM_LORA, true, 0); }
static void gradient_of_free_lora(void **s) { (void)s; check_gradient(ES_FORM_LORA, false, 0); }

static void gradient_of_targets(void **s)
{
    (void)s;
    for (es_distil_loss k = ES_DISTIL_SAMPLED; k <= ES_DISTIL_FULL; k++) {
        check_gradient(ES_FORM_LORA, true, k);
        check_gradient(ES_FORM_BIAS, true, k);
    }
}

/* Most of the weight on replay, so that its gradient is what is seen. */
static void gradient_of_replay(void **s)
{
    (void)s;
    for (int form = ES_FORM_BIAS; form <= ES_FORM_LORA; form++)
        check_gradient_with((es_form)form, true, 0, 0.8);
    check_gradient_with(ES_FORM_LORA, false, 0, 0.8);
}

/* Replay holds neutral text where it was, at both optimisers; its part is in the books' last line, and the texts are others each step. */
static void replay_holds(void **s)
{
    (void)s;
    es_error err;
    es_experiences e = fix_experiences();
    for (int adam = 0; adam < 2; adam++) {
        double kl[2], gain[2], rest[2];
        for (int with = 0; with < 2; with++) {
            es_adapter *a = NULL;
            es_basis b = fix_basis(20, 1000);
            es_adapter_options ao = es_adapter_default(dictionary, model);
            ao.rank = 3;
            ao.fixed_inputs = !adam;
            assert_ok(es_adapter_new(&a, model, dictionary, &b, &ao, &err), &err);
            es_learner_options o = options(ES_FORM_LORA);
            o.optimiser = adam ? ES_OPTIMISER_ADAM : ES_OPTIMISER_METRIC;
            o.learning_rate = adam ? 0.02 : 0.05;
            o.replay = with ? 0.9 : 0;
            o.replay_text = REPLAYED;
            o.n_replay = N_REPLAYED;
            es_learner *l = learner(a, &o, &e);
            es_step_report r;
            int at = -1;
            double before, after;
            assert_ok(es_learner_gradient(l, &before, NULL, &err), &err);
            for (int i = 0; i < 10; i++) {
                assert_ok(es_learner_step(l, &r, NULL, &err), &err);
                assert_true(with ? i == 0 ? fabs(r.replay) < 1e-5 : r.replay > 0 : r.replay == 0); /* nothing to hold at the base model */
                assert_true(!with || l->replay.at != at);
                at = l->replay.at;
            }
            gain[with] = r.margin;
            float influence[6 * 20], *c = a->coefficient;
            es_learner_influence(l, influence);
            rest[with] = 0;
            for (int i = 0; i < 20; i++) {
                double sum = 0;
                for (int row = 0; row < 6; row++)
                    sum += influence[row * 20 + i];
                assert_true(fabs(sum - c[i]) < 1e-4 * (1 + fabs((double)c[i])));
                rest[with] += fabs((double)influence[5 * 20 + i]);
            }
            assert_ok(es_learner_gradient(l, &after, NULL, &err), &err);
            es_learner_free(l);
            /* how far neutral text went, of all texts */
            o.replay = 0.5;
            l = learner(a, &o, &(es_experiences){.item = e.item, .n = 1});
            kl[with] = 0;
            for (int i = 0; i < 4; i++) {
                assert_ok(es_replay_draw(l, NULL, &err), &err);
                assert_ok(es_replay_gradient(l, false, NULL, &err), &err);
                kl[with] += l->replay.kl / 4;
            }
            assert_true(es_learner_bytes(l) > 0);
            es_learner_free(l);
            es_adapter_free(a);
            es_basis_free(&b);
        }
        assert_true(kl[1] < 0.7 * kl[0]);
        assert_true(gain[1] > 0);
        assert_true(rest[1] > rest[0]);
    }
    es_adapter *a = adapter(ES_FORM_BIAS, true, 8, 100);
    es_learner_options o = options(ES_FORM_BIAS);
    es_learner *l = NULL;
    o.replay = 1;
    assert_error(es_learner_open(&l, model, dictionary, a, &o, &err), &err, "range");
    o.replay = 0.1; /* without texts: the built-in ones */
    l = learner(a, &o, &e);
    es_step_report r;
    for (int i = 0; i < 2; i++)
        assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    assert_true(r.replay > 0);
    volatile bool stopped = true;
    float c[8];
    memcpy(c, a->param, sizeof c);
    assert_int_equal(es_learner_step(l, &r, &stopped, &err), ES_ERR_CANCELLED);
    assert_memory_equal(c, a->param, sizeof c);
    es_learner_free(l);
    o.replay_text = REPLAYED;
    o.n_replay = 0;
    assert_error(es_learner_open(&l, model, dictionary, a, &o, &err), &err, "at least one");
    es_adapter_free(a);
    es_experiences_free(&e);
}

/* A teacher's target is learned, the gate counts it, and what is not one is refused. */
static void targets_are_learned(void **s)
{
    (void)s;
    es_error err;
    for (es_distil_loss k = ES_DISTIL_SAMPLED; k <= ES_DISTIL_FULL; k++) {
        es_adapter *a = adapter(ES_FORM_LORA, true, 20, 100);
        es_learner_options o = options(ES_FORM_LORA);
        es_experiences none = {0};
        o.learning_rate = 0.02;
        es_learner *l = learner(a, &o, &none);
        es_step_report r;
        es_gate_report g;
        double first = 0;
        add_target(l, k);
        for (int i = 0; i < 8; i++) {
            assert_ok(es_learner_step(l, &r, NULL, &err), &err);
            first = i ? first : r.loss;
        }
        assert_true(r.loss < 0.98 * first);
        assert_ok(es_learner_gate(l, &g, NULL, &err), &err);
        assert_true(g.passed && g.gain > first - r.loss - 1e-6);
        es_sequence q = {.n = 9, .n_reply = 5};
        es_target t = {.n = 4, .n_vocab = es_model_get_info(model)->n_vocab};
        assert_error(es_learner_add_target(l, &q, &t, 1, NULL, NULL, &err), &err, "none of a reply");
        es_learner_free(l);
        es_adapter_free(a);
    }
}


/* Loss falls, margin grows; columns of the influence add up to the coefficients; minibatches, experiences that come later. */
static void check_learning(es_form form, es_optimiser optimiser, float bound, int batch)
{
    es_error err;
    es_experiences e = fix_experiences();
    es_adapter *a = adapter(form, true, 20, bound);
    es_learner_options o = options(form);
    o.optimiser = optimiser;
    o.learning_rate = optimiser == ES_OPTIMISER_METRIC ? 0.05 : form == ES_FORM_BIAS || form == ES_FORM_GAIN ? 0.05 : 0.02;
    o.batch = batch;
    es_learner *l = NULL;
    assert_ok(es_learner_open(&l, model, dictionary, a, &o, &err), &err);
    es_step_report r, first;
    assert_error(es_learner_step(l, &r, NULL, &err), &err, "nothing to learn");
    for (int i = 0; i < 3; i++)
        assert_ok(es_learner_add(l, &e.item[i], NULL, &err), &err);
    double before, after;
    assert_ok(es_learner_gradient(l, &before, NULL, &err), &err);
    for (int i = 0; i < 12; i++)
        assert_ok(es_learner_step(l, i ? &r : &first, NULL, &err), &err);
    assert_ok(es_learner_gradient(l, &after, NULL, &err), &err);
    assert_true(after < before);
    assert_true(fabs(first.margin) < 1e-4);
    if (!batch)
        assert_true(r.margin > 0.02);
    assert_int_equal(r.step, 12);
    assert_int_equal(es_adapter_steps(a), 12);
    assert_true(r.n_moved > 0);
    for (int i = 1; i < r.n_moved; i++)
        assert_true(fabsf(r.by[i - 1]) >= fabsf(r.by[i]));
    for (int i = 3; i < e.n; i++)
        assert_ok(es_learner_add(l, &e.item[i], NULL, &err), &err);
    for (int i = 0; i < 4; i++)
        assert_ok(es_learner_step(l, &r, NULL, &err), &err);

    int K = 20, n = es_learner_count(l);
    float *influence = malloc((size_t)(n + 1) * (size_t)K * sizeof *influence), snr[20];
    es_learner_influence(l, influence);
    es_learner_snr(l, snr);
    const float *c = es_adapter_coefficients(a);
    double shares = 0, rests = 0;
    for (int i = 0; i < K; i++) {
        double sum = 0, size = fabs((double)c[i]);
        for (int row = 0; row <= n; row++) {
            sum += influence[row * K + i];
            size += fabs((double)influence[row * K + i]);
            *(row < n ? &shares : &rests) += fabs((double)influence[row * K + i]);
        }
        assert_true(fabs(sum - c[i]) <= 1e-5 * size);
        assert_true(c[i] <= bound * 1.0001f && c[i] >= -bound * 1.0001f);
        assert_true(isfinite(snr[i]));
    }
    assert_true(shares > 0);
    if (bound > 10)
        assert_true(form == ES_FORM_BIAS ? rests < 1e-5 * shares : rests < shares); /* elsewhere a new input set is nobody's doing */
    for (int row = 0; row < (batch ? 0 : n); row++) { /* each had a part */
        double part = 0;
        for (int i = 0; i < K; i++)
            part += fabs((double)influence[row * K + i]);
        assert_true(part > 0);
    }
    free(influence);
    es_learner_free(l);
    es_adapter_free(a);
    es_experiences_free(&e);
}

static void bias_learns(void **s)
{
    (void)s;
    check_learning(ES_FORM_BIAS, ES_OPTIMISER_METRIC, 100, 0);
    check_learning(ES_FORM_BIAS, ES_OPTIMISER_ADAM, 100, 2);
    check_learning(ES_FORM_BIAS, ES_OPTIMISER_METRIC, 0.05f, 0);
}

static void gain_learns(void **s)
{
    (void)s;
    check_learning(ES_FORM_GAIN, ES_OPTIMISER_ADAM, 100, 0);
    check_learning(ES_FORM_GAIN, ES_OPTIMISER_ADAM, 100, 2);
    check_learning(ES_FORM_GAIN, ES_OPTIMISER_ADAM, 0.02f, 0);
}

static void map_learns(void **s)
{
    (void)s;
    check_learning(ES_FORM_MAP, ES_OPTIMISER_ADAM, 100, 0);
    check_learning(ES_FORM_MAP, ES_OPTIMISER_ADAM, 100, 2);
    check_learning(ES_FORM_MAP, ES_OPTIMISER_ADAM, 0.02f, 0);
}

/* The mean input is the mean over the reply's tokens of what the dictionary says of the base model's residual there. */
static void inputs_of_hooks(void **s)
{
    (void)s;
    es_error err;
    es_experiences e = fix_experiences();
    es_learner_options o = options(ES_FORM_GAIN);
    es_adapter *a = adapter(ES_FORM_GAIN, true, 20, 100);
    o.optimiser = ES_OPTIMISER_METRIC;
    es_learner *l = NULL;
    assert_error(es_learner_open(&l, model, dictionary, a, &o, &err), &err, "metric step");
    o.optimiser = ES_OPTIMISER_ADAM;
    l = learner(a, &o, &e);
    double sum[20] = {0}, tokens = 0;
    for (int i = 0; i < l->n; i++)
        for (int j = 0; j < 2; j++) {
            es_sequence *q = &l->item[i]->seq[j];
            for (int t = q->n - q->n_reply; t < q->n; t++) {
                float act[20];
                assert_true(t > 0);
                assert_ok(es_dictionary_encode_some(dictionary, NULL, q->resid + (size_t)t * (size_t)a->d, 1, a->part[0].basis.feature, 20, act, &err), &err);
                for (int f = 0; f < 20; f++)
                    sum[f] += act[f];
                tokens++;
            }
        }
    bool fires = false;
    for (int f = 0; f < 20; f++) {
        assert_true(fabs(sum[f] / tokens - a->mean_input[f]) < 1e-4 * (1 + fabs(sum[f] / tokens)));
        fires |= sum[f] > 0;
    }
    assert_true(fires);
    es_step_report r;
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    for (int f = 0; f < 20; f++)
        assert_true(fabsf(a->coefficient[f] - a->param[f] * a->mean_input[f]) < 1e-6f);
    es_learner_free(l);
    es_adapter_free(a);
    es_experiences_free(&e);
}

static void lora_learns(void **s)
{
    (void)s;
    check_learning(ES_FORM_LORA, ES_OPTIMISER_ADAM, 100, 0);
    check_learning(ES_FORM_LORA, ES_OPTIMISER_ADAM, 100, 2);
    check_learning(ES_FORM_LORA, ES_OPTIMISER_ADAM, 0.02f, 0);
}

/* An experience that wants nothing because its weight is 0 leaves no trace; weights scale. */
static void weight_zero(void **s)
{
    (void)s;
    es_error err;
    es_experiences e = fix_experiences();
    e.item[2].weight = 0;
    es_adapter *a = adapter(ES_FORM_BIAS, true, 8, 100);
    es_learner_options o = options(ES_FORM_BIAS);
    es_learner *l = learner(a, &o, &e);
    es_step_report r;
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    float influence[6 * 8];
    es_learner_influence(l, influence);
    for (int i = 0; i < 8; i++)
        assert_true(influence[2 * 8 + i] == 0 && influence[0 * 8 + i] != 0);
    es_learner_free(l);
    es_adapter_free(a);
    es_experiences_free(&e);
}

static void guards(void **s)
{
    (void)s;
    es_error err;
    es_experiences e = fix_experiences();
    es_step_report r;
    /* KL: a rate far too large is cut back until it passes, or refused; never published over kappa */
    es_adapter *a = adapter(ES_FORM_LORA, true, 20, 1000);
    es_learner_options o = options(ES_FORM_LORA);
    o.kappa = 0.01;
    o.learning_rate = 1;
    es_learner *l = learner(a, &o, &e);
    bool cut = false;
    for (int i = 0; i < 5; i++) {
        assert_ok(es_learner_step(l, &r, NULL, &err), &err);
        assert_true(r.kl <= 0.01);
        cut |= r.backtracked < 1;
        if (r.backtracked < 1)
            assert_string_equal(r.guard, "kl");
    }
    assert_true(cut);
    es_learner_free(l);
    es_adapter_free(a);

    /* refused outright: the adapter keeps its bytes */
    a = adapter(ES_FORM_LORA, true, 20, 1000);
    o.kappa = 1e-9;
    l = learner(a, &o, &e);
    float *old = malloc(a->n_param * sizeof *old);
    memcpy(old, a->param, a->n_param * sizeof *old);
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    assert_true(r.backtracked == 0 && r.n_moved == 0 && es_adapter_steps(a) == 0);
    assert_memory_equal(old, a->param, a->n_param * sizeof *old);
    es_learner_free(l);
    es_adapter_free(a);
    free(old);

    /* norm */
    a = adapter(ES_FORM_BIAS, true, 20, 1000);
    o = options(ES_FORM_BIAS);
    o.learning_rate = 0.2;
    o.rho = 0.1;
    l = learner(a, &o, &e);
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    assert_string_equal(r.guard, "norm");
    assert_true(fabs(r.norm - 0.1) < 1e-3);
    es_learner_free(l);
    es_adapter_free(a);

    /* what is learned is left alone */
    a = adapter(ES_FORM_LORA, true, 20, 1000);
    o = options(ES_FORM_LORA);
    o.enough = 0.6; /* log 2 at the start */
    e.n = 3;        /* pairs only */
    l = learner(a, &o, &e);
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    assert_true(r.backtracked == 1 && r.guard == NULL);
    for (int i = 0; i < 30 && r.backtracked > 0; i++)
        assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    assert_true(r.backtracked == 0 && r.loss < 0.6 && r.n_moved == 0);
    assert_string_equal(r.guard, "learned");
    e.n = 5;
    es_learner_free(l);
    es_adapter_free(a);

    /* a one-sided bound is not crossed */
    a = adapter(ES_FORM_LORA, true, 20, 1000);
    for (int i = 0; i < 20; i++)
        a->part[0].basis.hi[i] = 0;
    o = options(ES_FORM_LORA);
    l = learner(a, &o, &e);
    for (int i = 0; i < 5; i++)
        assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    for (int i = 0; i < 20; i++)
        assert_true(es_adapter_coefficients(a)[i] <= 1e-6f);
    es_learner_free(l);
    es_adapter_free(a);
    es_experiences_free(&e);
}

static void gate(void **s)
{
    (void)s;
    es_error err;
    es_experiences e = fix_experiences();
    es_adapter *a = adapter(ES_FORM_LORA, true, 20, 1000);
    es_learner_options o = options(ES_FORM_LORA);
    o.kappa = 10;
    o.hold_out = 0.2;
    o.learning_rate = 0.02;
    es_learner *l = learner(a, &o, &e);
    es_gate_report g;
    assert_ok(es_learner_gate(l, &g, NULL, &err), &err);
    assert_false(g.passed); /* nothing learned: no gain */
    assert_int_equal(g.held_out, 1);
    assert_true(strstr(g.reason, "gain") != NULL);
    es_learner_free(l);
    es_adapter_free(a);

    /* fewer than four: judged by what it learned from */
    e.n = 3;
    a = adapter(ES_FORM_LORA, true, 20, 1000);
    l = learner(a, &o, &e);
    es_step_report r;
    for (int i = 0; i < 8; i++)
        assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    assert_ok(es_learner_gate(l, &g, NULL, &err), &err);
    assert_true(g.passed && g.held_out == 0 && g.gain > 0 && g.kl > 0 && g.kl <= 10);
    es_learner_free(l);
    e.n = 5;
    o.kappa = 1e-7; /* the same adapter fails a stricter guard */
    l = learner(a, &o, &e);
    assert_ok(es_learner_gate(l, &g, NULL, &err), &err);
    assert_false(g.passed);
    es_learner_free(l);
    es_adapter_free(a);
    es_experiences_free(&e);
}

static void faults(void **s)
{
    (void)s;
    es_error err;
    es_experiences e = fix_experiences();
    es_adapter *a = adapter(ES_FORM_LORA, true, 20, 1000);
    es_learner_options o = options(ES_FORM_LORA);
    o.kappa = 1;
    es_learner *l = learner(a, &o, &e);
    es_step_report r;
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    es_buf before = {0}, after = {0};
    assert_ok(es_adapter_to_bytes(a, &before, &err), &err);
    volatile bool cancel = true;
    assert_int_equal(es_learner_step(l, &r, &cancel, &err), ES_ERR_CANCELLED);
    assert_int_equal(es_learner_gate(l, &(es_gate_report){0}, &cancel, &err), ES_ERR_CANCELLED);
    assert_int_equal(es_learner_add(l, &e.item[0], &cancel, &err), ES_ERR_CANCELLED);
    assert_int_equal(es_learner_count(l), 5);
    assert_ok(es_adapter_to_bytes(a, &after, &err), &err);
    assert_int_equal(before.len, after.len);
    assert_memory_equal(before.data, after.data, before.len);
    assert_ok(es_learner_step(l, &r, NULL, &err), &err); /* and it goes on */

    float keep = a->param[a->n_param - 1]; /* a number that is not one */
    a->param[a->n_param - 1] = NAN;
    es_adapter_refresh(a);
    assert_error(es_learner_step(l, &r, NULL, &err), &err, "not a number");
    a->param[a->n_param - 1] = keep;
    es_adapter_refresh(a);
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);

    es_experience none = e.item[0];
    none.preferred = none.rejected = NULL;
    assert_error(es_learner_add(l, &none, NULL, &err), &err, "reply");
    assert_true(es_learner_bytes(l) > 1000);
    es_buf_free(&before);
    es_buf_free(&after);
    es_learner_free(l);

    o.optimiser = ES_OPTIMISER_METRIC;
    assert_error(es_learner_open(&l, model, dictionary, a, &o, &err), &err, "metric");
    o = options(ES_FORM_LORA);
    o.beta = 0;
    assert_error(es_learner_open(&l, model, dictionary, a, &o, &err), &err, "range");
    es_adapter_free(a);
    es_experiences_free(&e);
}

/* Mean over the tokens of (A x)(A x)^T, first entry; out[rank * rank]. */
static void second_moment(es_adapter *a, const char *const *text, int n, double *out)
{
    es_error err;
    es_adapter_entry *e = &a->entry[0];
    es_trainer *t = NULL;
    es_trainer_options o = {.max_tokens = 128, .backward = true, .threads = 1};
    int rank = a->o.rank, counted = 0;
    float *x = calloc(128 * (size_t)e->n_in, sizeof *x);
    assert_ok(es_trainer_open(&t, model, &o, &err), &err);
    for (int i = 0; i < n; i++) {
        es_ids ids = {0};
        assert_ok(es_tokenize(model, text[i], strlen(text[i]), false, &ids, &err), &err);
        int start[2] = {0, (int)ids.n - 1}; /* the last token predicts nothing, so it is no input */
        es_batch b = {.ids = ids.id, .n = start[1], .start = start, .n_seq = 1};
        float none[128];
        assert_ok(es_trainer_forward(t, &b, NULL, NULL, NULL, 0, none, NULL, &err), &err);
        assert_ok(es_trainer_site_input(t, e->layer, e->site, x, &err), &err);
        for (int k = 0; k < start[1]; k++, counted++)
            for (int p = 0; p < rank; p++)
                for (int q = 0; q < rank; q++) {
                    double u = 0, v = 0;
                    for (int j = 0; j < e->n_in; j++) {
                        u += (double)a->param[e->a + (size_t)(p * e->n_in + j)] * x[k * e->n_in + j];
                        v += (double)a->param[e->a + (size_t)(q * e->n_in + j)] * x[k * e->n_in + j];
                    }
                    out[p * rank + q] += u * v;
                }
        es_ids_free(&ids);
    }
    assert_true(counted > rank);
    for (int i = 0; i < rank * rank; i++)
        out[i] /= counted;
    es_trainer_free(t);
    free(x);
}

/* Fixed inputs: whitened on neutral text, A never moves, the metric step learns, within a basis and without; files keep the kind. */
static void white_inputs(void **state)
{
    (void)state;
    static const char *const text[] = {"the cat sat on the mat and looked at the moon", "one two three four five six seven eight nine ten",
                                       "rivers rise in the hills and run to the sea"};
    const es_neutral_text neutral[] = {{.text = text[0]}, {.text = text[1]}, {.text = text[2]}};
    for (int constrained = 0; constrained < 2; constrained++) {
        es_error err;
        es_experiences e = fix_experiences();
        es_adapter *a = NULL, *back = NULL;
        es_basis b = fix_basis(20, 100);
        es_adapter_options ao = es_adapter_default(dictionary, model);
        ao.rank = 3;
        ao.fixed_inputs = true;
        ao.constrained = constrained;
        assert_ok(es_adapter_new(&a, model, dictionary, constrained ? &b : NULL, &ao, &err), &err);
        assert_int_equal(es_adapter_parameters(a), (constrained ? 20 : a->d) * 3 * a->n_entry);
        es_learner_options o = options(ES_FORM_LORA);
        o.optimiser = ES_OPTIMISER_METRIC;
        o.learning_rate = 0.05;
        es_learner *l = NULL;
        assert_ok(es_learner_open(&l, model, dictionary, a, &o, &err), &err);
        double raw[9] = {0}, white[9] = {0};
        second_moment(a, text, 3, raw);
        double mean = (raw[0] + raw[4] + raw[8]) / 3;
        assert_error(es_learner_whiten(l, neutral, 0, NULL, &err), &err, "too few");
        assert_ok(es_learner_whiten(l, neutral, 3, NULL, &err), &err);
        /* L^-1 C L^-T with L L^T = C + 0.1 mean I: symmetric, eigenvalues c / (c + 0.1 mean), so their sum is known from C's */
        second_moment(a, text, 3, white);
        double A[9], w[3], sum = 0;
        memcpy(A, raw, sizeof A);
        assert_true(es_linear_eigenvalues(A, 3, w));
        for (int i = 0; i < 3; i++)
            sum += w[i] / (w[i] + 0.1 * mean);
        assert_true(fabs(white[0] + white[4] + white[8] - sum) < 1e-2 * sum);
        assert_true(fabs(raw[0] + raw[4] + raw[8] - sum) > 0.1 * sum);
        size_t n_a = a->n_param - a->n_learned;
        float *inputs = malloc(n_a * sizeof *inputs);
        memcpy(inputs, a->param + a->n_learned, n_a * sizeof *inputs);
        for (int i = 0; i < 3; i++)
            assert_ok(es_learner_add(l, &e.item[i], NULL, &err), &err);
        assert_error(es_learner_whiten(l, neutral, 3, NULL, &err), &err, "nothing was learned");
        double before, after;
        es_step_report r;
        assert_ok(es_learner_gradient(l, &before, NULL, &err), &err);
        for (int i = 0; i < 6; i++)
            assert_ok(es_learner_step(l, &r, NULL, &err), &err);
        assert_ok(es_learner_gradient(l, &after, NULL, &err), &err);
        assert_true(after < before && r.margin > 0);
        assert_memory_equal(inputs, a->param + a->n_learned, n_a * sizeof *inputs);
        if (constrained) {
            float part[4 * 20];
            es_learner_influence(l, part);
            for (int c = 0; c < 20; c++)
                assert_true(fabs(part[c] + part[20 + c] + part[40 + c] + part[60 + c] - es_adapter_coefficients(a)[c]) < 1e-4);
        }
        es_buf bytes = {0};
        assert_ok(es_adapter_to_bytes(a, &bytes, &err), &err);
        assert_ok(es_adapter_from_bytes(&back, model, dictionary, bytes.data, bytes.len, "back", &err), &err);
        assert_true(es_adapter_get_options(back)->fixed_inputs);
        assert_memory_equal(back->param, a->param, a->n_param * sizeof *a->param);
        es_buf_free(&bytes);
        free(inputs);
        es_learner_free(l);
        es_adapter_free(a);
        es_adapter_free(back);
        es_basis_free(&b);
        es_experiences_free(&e);
    }
}

/* KL between what token t predicts after `layer`'s residual h[n, d] and what it predicts when v is added to its row. */
static double kl_of_change(es_trainer *t, const es_batch *b, float *h, int d, int token, const float *v, float by)
{
    es_error err;
    int V = es_model_get_info(model)->n_vocab;
    float *z[2] = {calloc((size_t)V, sizeof **z), calloc((size_t)V, sizeof **z)}, none[64];
    double sum[2] = {0}, kl = 0;
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < d; j++)
            h[token * d + j] += i ? by * v[j] : 0;
        assert_ok(es_trainer_forward(t, b, h, NULL, NULL, 0, none, NULL, &err), &err);
        assert_ok(es_trainer_logits(t, token, z[i], &err), &err);
        for (int j = 0; j < V; j++)
            sum[i] += exp(z[i][j]);
    }
    for (int j = 0; j < d; j++)
        h[token * d + j] -= by * v[j];
    for (int j = 0; j < V; j++)
        kl += exp(z[0][j]) / sum[0] * (z[0][j] - log(sum[0]) - z[1][j] + log(sum[1]));
    free(z[0]);
    free(z[1]);
    return kl;
}

/* The Fisher information kept with inputs is the KL's second derivative; the metric made of it is D (F + 0.1 mean) D^T + lambda, per layer, and its
 * inverse is one; a step in it learns. */
static void natural(void **state)
{
    (void)state;
    enum { TIMES = 500, K = 20 };
    es_error err;
    es_ids ids = {0};
    char text[64];
    static const char *const words = "the cat sat on the mat and looked at the moon";
    for (size_t n = 1; n <= strlen(words) && ids.n != 2; n++) { /* the second token predicts nothing: one counts */
        snprintf(text, sizeof text, "%.*s", (int)n, words);
        es_ids_free(&ids);
        assert_ok(es_tokenize(model, text, strlen(text), false, &ids, &err), &err);
    }
    assert_int_equal(ids.n, 2);
    es_neutral_text neutral[TIMES + 2];
    for (int i = 0; i < TIMES; i++)
        neutral[i] = (es_neutral_text){.text = text};
    neutral[TIMES] = (es_neutral_text){.text = "rivers rise in the hills and run to the sea", .only_inputs = true};
    es_inputs *x = NULL, *back = NULL;
    assert_ok(es_inputs_make(&x, model, dictionary, 3, neutral, TIMES + 1, 1, 1, NULL, &err), &err);
    es_adapter_options ao = es_adapter_default(dictionary, model);
    int d = es_model_get_info(model)->d_model, layer = ao.first_layer, start[2] = {0, 1};
    assert_true(layer < ao.last_layer);
    assert_null(es_inputs_fisher(x, layer - 1));
    assert_null(es_inputs_fisher(x, ao.last_layer + 1));
    const float *F = es_inputs_fisher(x, layer);
    es_trainer *t = NULL;
    es_trainer_options to = {.max_tokens = 64, .from_layer = layer + 1, .threads = 1};
    float *h = calloc((size_t)d, sizeof *h), *v = calloc((size_t)d, sizeof *v);
    uint8_t wanted[1] = {1};
    es_batch batch = {.ids = ids.id, .n = 1, .start = start, .n_seq = 1, .target = ids.id + 1, .wanted = wanted};
    assert_ok(es_trainer_open(&t, model, &to, &err), &err);
    assert_ok(es_trainer_residual(t, &batch, layer, h, NULL, &err), &err);
    es_rng rng;
    es_rng_seed(&rng, 5);
    double ratio = 0;
    for (int k = 0; k < 8; k++) {
        double form = 0, length = 0;
        for (int j = 0; j < d; j++) {
            v[j] = es_rng_normal(&rng);
            length += (double)v[j] * v[j];
        }
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++)
                form += (double)v[i] * F[i * d + j] * v[j];
        float by = (float)(0.05 / sqrt(length));
        ratio += form / ((kl_of_change(t, &batch, h, d, 0, v, by) + kl_of_change(t, &batch, h, d, 0, v, -by)) / ((double)by * by)) / 8;
    }
    assert_true(fabs(ratio - 1) < 0.1); /* 500 draws */
    es_trainer_free(t);

    const char *path = test_path("natural.safetensors"); /* in files to bfloat16 */
    assert_ok(es_inputs_save(x, path, &err), &err);
    assert_ok(es_inputs_load(&back, model, path, &err), &err);
    for (int i = 0; i < d * d; i++)
        assert_true(fabsf(es_inputs_fisher(back, layer)[i] - F[i]) <= 0.004f * fabsf(F[i]));
    es_inputs_free(back);

    for (int constrained = 0; constrained < 2; constrained++) {
        es_experiences e = fix_experiences();
        es_basis b = fix_basis(K, 100);
        es_adapter *a = NULL;
        es_learner *l = NULL;
        es_learner_options o = options(ES_FORM_LORA);
        ao.rank = 3;
        ao.fixed_inputs = true;
        ao.constrained = constrained;
        assert_ok(es_adapter_new(&a, model, dictionary, constrained ? &b : NULL, &ao, &err), &err);
        assert_ok(es_adapter_set_inputs(a, x, &err), &err);
        assert_ok(es_learner_open(&l, model, dictionary, a, &o, &err), &err);
        assert_error(es_learner_natural(l, x, &err), &err, "metric step");
        es_learner_free(l);
        o.optimiser = ES_OPTIMISER_METRIC;
        o.learning_rate = 0.02;
        assert_ok(es_learner_open(&l, model, dictionary, a, &o, &err), &err);
        assert_ok(es_learner_natural(l, x, &err), &err);
        assert_error(es_learner_natural(l, x, &err), &err, "before directions");
        size_t n = a->n_learned;
        float *in = calloc(3 * n, sizeof *in), *there = in + n, *again = there + n;
        double mean = 0, trace, size;
        for (size_t i = 0; i < n; i++)
            in[i] = es_rng_normal(&rng);
        assert_ok(es_learner_metric(l, in, there, &err), &err);
        es_learner_inverse_metric(l, there, again);
        for (size_t i = 0; i < n; i++)
            assert_true(fabsf(again[i] - in[i]) < 2e-3f);
        for (int i = ao.first_layer; i <= ao.last_layer; i++)
            for (int j = 0; j < d; j++)
                mean += 1.1 * es_inputs_fisher(x, i)[j * d + j] / d / (ao.last_layer - ao.first_layer + 1);
        for (int i = 0; i < a->n_entry; i++) { /* the formula, for one column of each */
            const es_adapter_entry *at = &a->entry[i];
            const float *f = es_inputs_fisher(x, at->layer);
            trace = 0;
            for (int j = 0; j < d; j++)
                trace += f[j * d + j];
            size = 1.1 * trace / d / mean;
            double full[256] = {0}, moved[256] = {0};
            assert_true(d <= 256);
            for (int k = 0; k < (constrained ? K : d); k++)
                for (int j = 0; j < d; j++)
                    full[j] += (double)in[at->b + (size_t)(3 * k)] * (constrained ? a->D[k * d + j] : j == k);
            for (int j = 0; j < d; j++)
                for (int k = 0; k < d; k++)
                    moved[j] += (f[j * d + k] + (j == k ? 0.1 * trace / d : 0)) / mean * full[k];
            for (int k = 0; k < (constrained ? K : d); k++) {
                double want = constrained ? 0.1 * size * in[at->b + (size_t)(3 * k)] : moved[k];
                for (int j = 0; j < d && constrained; j++)
                    want += a->D[k * d + j] * moved[j];
                assert_true(fabs(want - there[at->b + (size_t)(3 * k)]) < 1e-3 * (1 + fabs(want)));
            }
        }
        es_step_report r;
        double before, after;
        for (int i = 0; i < 3; i++)
            assert_ok(es_learner_add(l, &e.item[i], NULL, &err), &err);
        assert_ok(es_learner_gradient(l, &before, NULL, &err), &err);
        for (int i = 0; i < 4; i++)
            assert_ok(es_learner_step(l, &r, NULL, &err), &err);
        assert_ok(es_learner_gradient(l, &after, NULL, &err), &err);
        assert_true(after < before && r.margin > 0);
        free(in);
        es_learner_free(l);
        es_adapter_free(a);
        es_basis_free(&b);
        es_experiences_free(&e);
    }
    free(h);
    free(v);
    es_ids_free(&ids);
    es_inputs_free(x);
}

/* A direction learned on one set of experiences as a prior for another: the preconditioner against its formula, one-sided directions, what is
 * thought of swapped experiences, and what is left when experiences are taken away. */
/* Cosine of what went from a with y, <x, y> = sum over matrices of tr (D^T x)^T (D^T y) + lambda x^T y, for 20 features and rank 3; *gone its length. */
static double cosine_gone(const es_adapter *a, const es_adapter *left, const float *y, double lambda, double *gone)
{
    double xy = 0, xx = 0, yy = 0;
    for (int i = 0; i < a->n_entry; i++)
        for (int c = 0; c < 3; c++) {
            for (int j = 0; j < a->d; j++) {
                double u = 0, v = 0;
                for (int k = 0; k < 20; k++) {
                    size_t at = a->entry[i].b + (size_t)(3 * k + c);
                    u += (double)a->D[k * a->d + j] * ((double)a->param[at] - left->param[at]);
                    v += (double)a->D[k * a->d + j] * y[at];
                }
                xy += u * v;
                xx += u * u;
                yy += v * v;
            }
            for (int k = 0; k < 20; k++) {
                size_t at = a->entry[i].b + (size_t)(3 * k + c);
                double u = (double)a->param[at] - left->param[at];
                xy += lambda * u * y[at];
                xx += lambda * u * u;
                yy += lambda * y[at] * y[at];
            }
        }
    *gone = sqrt(xx);
    return xy / sqrt(xx * yy);
}

static void prior(void **state)
{
    (void)state;
    es_error err;
    es_experiences e = fix_experiences(), swapped = {0};
    es_basis b = fix_basis(20, 100);
    es_adapter_options ao = es_adapter_default(dictionary, model);
    ao.rank = 3;
    ao.fixed_inputs = true;
    es_learner_options o = options(ES_FORM_LORA);
    o.optimiser = ES_OPTIMISER_METRIC;
    o.learning_rate = 0.02;
    es_adapter *first = NULL, *a = NULL, *left = NULL;
    es_learner *l = NULL;
    es_step_report r;
    es_experiences three = {.item = e.item, .n = 3};
    assert_ok(es_adapter_new(&first, model, dictionary, &b, &ao, &err), &err);
    es_direction direction = {"terse", first};
    assert_ok(es_adapter_new(&a, model, dictionary, &b, &ao, &err), &err);
    assert_ok(es_learner_open(&l, model, dictionary, a, &o, &err), &err);
    assert_error(es_learner_prior(l, &direction, 1, 5, false, &err), &err, "learned nothing");
    es_learner_free(l);
    l = learner(first, &o, &three);
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    es_learner_free(l);

    /* other inputs before, the direction's after; the preconditioner: P g = G^-1 g + 5 u <u, g>, with G^-1 from the learner without a prior */
    ao.seed = 9;
    es_adapter_free(a);
    assert_ok(es_adapter_new(&a, model, dictionary, &b, &ao, &err), &err);
    size_t n = a->n_learned, n_a = a->n_param - n;
    assert_int_not_equal(memcmp(a->param + n, first->param + n, n_a * sizeof *a->param), 0);
    assert_ok(es_learner_open(&l, model, dictionary, a, &o, &err), &err);
    float *g = calloc(n, sizeof *g), *plain = calloc(n, sizeof *g), *with = calloc(n, sizeof *g), *image = calloc(n, sizeof *g);
    es_rng rng;
    es_rng_seed(&rng, 5);
    for (size_t i = 0; i < n; i++)
        g[i] = es_rng_normal(&rng);
    double before, after;
    es_learner_precondition(l, g, plain, &before);
    assert_ok(es_learner_prior(l, &direction, 1, 5, false, &err), &err);
    assert_memory_equal(a->param + n, first->param + n, n_a * sizeof *a->param);
    assert_error(es_learner_prior(l, &direction, 1, 5, false, &err), &err, "before anything was learned");
    es_learner_precondition(l, g, with, &after);
    /* |M|^2_G = sum over matrices of |D^T M|^2 + lambda |M|^2, by hand */
    double square = 0, along = 0, worst = 0;
    for (int i = 0; i < a->n_entry; i++)
        for (int c = 0; c < 3; c++) {
            for (int j = 0; j < a->d; j++) {
                double sum = 0;
                for (int k = 0; k < 20; k++)
                    sum += (double)a->D[k * a->d + j] * first->param[a->entry[i].b + (size_t)(3 * k + c)];
                square += sum * sum;
            }
            for (int k = 0; k < 20; k++)
                square += o.metric_lambda * pow(first->param[a->entry[i].b + (size_t)(3 * k + c)], 2);
        }
    for (size_t i = 0; i < n; i++)
        along += first->param[i] / sqrt(square) * g[i];
    for (size_t i = 0; i < n; i++)
        worst = fmax(worst, fabs(plain[i] + 5 * along * first->param[i] / sqrt(square) - with[i]));
    assert_true(worst < 1e-3 * fabs(along));
    assert_true(fabs(after * after - (before * before + (10 + 25) * along * along)) < 0.02 * after * after);

    /* a direction of another basis: one that holds this one's features and others. Projected, it is this one's again but for lambda */
    es_basis wide = fix_basis(28, 100);
    es_adapter *other = NULL;
    assert_ok(es_adapter_new(&other, model, dictionary, &wide, &ao, &err), &err);
    memcpy(other->param + other->n_learned, first->param + n, n_a * sizeof *first->param);
    for (int i = 0; i < a->n_entry; i++)
        memcpy(other->param + other->entry[i].b, first->param + first->entry[i].b, 20 * 3 * sizeof *first->param);
    es_adapter_refresh(other);
    es_learner *l2 = NULL;
    es_adapter *a2 = NULL;
    es_direction both[] = {{"terse", first}, {"wide", other}};
    o.metric_lambda = 1e-4;
    assert_ok(es_adapter_new(&a2, model, dictionary, &b, &ao, &err), &err);
    assert_ok(es_learner_open(&l2, model, dictionary, a2, &o, &err), &err);
    assert_ok(es_learner_prior(l2, both, 2, 5, false, &err), &err);
    double apart = 0, longest = 0;
    for (size_t i = 0; i < n; i++) {
        apart = fmax(apart, fabs(l2->prior.unit[i] - l2->prior.unit[n + i]));
        longest = fmax(longest, fabs(l2->prior.unit[i]));
    }
    assert_true(apart < 0.02 * longest);
    es_learner_free(l2);
    es_adapter_free(a2);
    es_adapter_free(other);
    es_basis_free(&wide);
    o.metric_lambda = es_learner_default(ES_FORM_LORA).metric_lambda;

    /* the same experiences move the adapter along the direction, and nearly nowhere else */
    for (int i = 0; i < 3; i++)
        assert_ok(es_learner_add(l, &three.item[i], NULL, &err), &err);
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    double amplitude;
    es_learner_amplitudes(l, &amplitude);
    assert_int_equal(es_learner_directions(l), 1);
    assert_string_equal(es_learner_direction(l, 0), "terse");
    assert_true(amplitude > 0.9 * o.learning_rate && amplitude < 1.1 * o.learning_rate);

    /* without all of them nothing is left; without one the parts of the others are as they were */
    static const int all[] = {0, 1, 2};
    assert_ok(es_learner_without(l, all, 3, ES_UNDO_PLAIN, &left, NULL, &err), &err);
    double most = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        most = fmax(most, fabs(left->param[i]));
        size = fmax(size, fabs(a->param[i]));
    }
    assert_true(size > 0 && most < 1e-5 * size);
    es_adapter_free(left);
    assert_ok(es_learner_without(l, all, 3, ES_UNDO_SPARE_EACH, &left, NULL, &err), &err); /* no others to spare, and the one direction is their own */
    for (size_t i = 0; i < n; i++)
        assert_true(fabsf(left->param[i]) < 1e-5 * size);
    es_adapter_free(left);
    assert_ok(es_learner_without(l, all + 1, 1, ES_UNDO_PLAIN, &left, NULL, &err), &err);
    assert_int_not_equal(memcmp(left->param, a->param, n * sizeof *a->param), 0);
    es_adapter_free(left);
    /* sparing the others: what goes has no part along theirs, and is not nothing; along the sum alone more may go */
    float *sum = calloc(n, sizeof *sum);
    double each = 0, more = 0;
    assert_ok(es_learner_without(l, all + 1, 1, ES_UNDO_SPARE_EACH, &left, NULL, &err), &err);
    for (int stays = 0; stays < 3; stays += 2) {
        assert_true(fabs(cosine_gone(a, left, l->item[stays]->moved, o.metric_lambda, &each)) < 0.01);
        for (size_t i = 0; i < n; i++)
            sum[i] += l->item[stays]->moved[i];
    }
    es_adapter_free(left);
    assert_ok(es_learner_without(l, all + 1, 1, ES_UNDO_SPARE_SUM, &left, NULL, &err), &err);
    assert_true(fabs(cosine_gone(a, left, sum, o.metric_lambda, &more)) < 0.01);
    assert_true(each > 0 && more > each);
    es_adapter_free(left);
    free(sum);
    /* in balance: the others' mean gain is what it was, which it is not plainly; the learner stands where it stood */
    static const int others[] = {0, 2};
    float *own = calloc(a->n_param, sizeof *own);
    memcpy(own, a->param, a->n_param * sizeof *own);
    double whole, gain[2];
    assert_ok(es_learner_gains(l, others, 2, false, &whole, NULL, &err), &err);
    assert_true(whole > 0);
    for (int balanced = 0; balanced < 2; balanced++) {
        assert_ok(es_learner_without(l, all + 1, 1, balanced ? ES_UNDO_BALANCE : ES_UNDO_PLAIN, &left, NULL, &err), &err);
        assert_memory_equal(own, a->param, a->n_param * sizeof *own);
        memcpy(a->param, left->param, a->n_param * sizeof *own);
        es_adapter_refresh(a);
        assert_ok(es_learner_gains(l, others, 2, false, &gain[balanced], NULL, &err), &err);
        memcpy(a->param, own, a->n_param * sizeof *own);
        es_adapter_refresh(a);
        es_adapter_free(left);
    }
    assert_true(fabs(gain[1] - whole) < 0.02 * whole && fabs(gain[0] - whole) > 0.05 * whole);
    free(own);
    int none = 3;
    assert_error(es_learner_without(l, &none, 1, ES_UNDO_PLAIN, &left, NULL, &err), &err, "no experience 3");
    es_learner_free(l);

    /* swapped ones point away from the direction: left out when it is one-sided, and were they not, they could not push it below zero */
    for (int i = 0; i < 3; i++)
        fix_experience(&swapped, e.item[i].message[0].content, e.item[i].rejected, e.item[i].preferred);
    for (int weighting = 0; weighting < 2; weighting++) {
        es_adapter_free(a);
        assert_ok(es_adapter_new(&a, model, dictionary, &b, &ao, &err), &err);
        o.weighting = weighting;
        o.batch = weighting ? 2 : 0;
        assert_ok(es_learner_open(&l, model, dictionary, a, &o, &err), &err);
        assert_ok(es_learner_prior(l, &direction, 1, 5, true, &err), &err);
        for (int i = 0; i < 3; i++)
            assert_ok(es_learner_add(l, &swapped.item[i], NULL, &err), &err);
        for (int i = 0; weighting && i < 3; i++)
            assert_ok(es_learner_add(l, &three.item[i], NULL, &err), &err);
        assert_ok(es_learner_step(l, &r, NULL, &err), &err);
        es_learner_amplitudes(l, &amplitude);
        assert_true(amplitude > -1e-5);
        for (int i = 0; weighting && i < 6; i++) { /* also those that were not in the batch */
            const es_decision *d = es_learner_decision(l, i);
            assert_true(i < 3 ? d->weight == 0 && d->agreement < 0 : d->weight > 0 && d->agreement > 0);
            assert_non_null(strstr(d->reason, "terse"));
        }
        es_learner_free(l);
    }
    free(g);
    free(plain);
    free(with);
    free(image);
    es_adapter_free(a);
    es_adapter_free(first);
    es_basis_free(&b);
    es_experiences_free(&e);
    es_experiences_free(&swapped);
}

/* Inputs as a file: what was made comes back to f16, serves smaller ranks, and refuses what it does not fit. */
static void inputs(void **state)
{
    (void)state;
    es_error err;
    es_inputs *made = NULL, *read = NULL;
    es_adapter *a = NULL, *small = NULL;
    es_basis b = fix_basis(20, 100);
    es_adapter_options ao = es_adapter_default(dictionary, model);
    static const es_neutral_text text[] = {{.text = "the cat sat on the mat and looked at the moon"}, {.text = "one two three four five six seven eight nine ten"}};
    const char *path = test_path("inputs.safetensors");
    ao.fixed_inputs = true;
    ao.rank = 4;
    assert_ok(es_inputs_make(&made, model, dictionary, 4, text, 2, 3, 1, NULL, &err), &err);
    assert_ok(es_inputs_save(made, path, &err), &err);
    assert_ok(es_inputs_load(&read, model, path, &err), &err);
    assert_int_equal(es_inputs_rank(read), 4);
    assert_ok(es_adapter_new(&a, model, dictionary, &b, &ao, &err), &err);
    assert_ok(es_adapter_set_inputs(a, made, &err), &err);
    ao.rank = 2;
    assert_ok(es_adapter_new(&small, model, dictionary, &b, &ao, &err), &err);
    assert_ok(es_adapter_set_inputs(small, read, &err), &err);
    for (int i = 0; i < a->n_entry; i++)
        for (int j = 0; j < 2 * a->entry[i].n_in; j++) {
            float x = a->param[a->entry[i].a + (size_t)j], y = small->param[small->entry[i].a + (size_t)j];
            assert_true(x != 0 && fabsf(x - y) < 2e-3f * fabsf(x) + 1e-6f);
        }
    es_adapter_free(small);
    ao.rank = 5;
    assert_ok(es_adapter_new(&small, model, dictionary, &b, &ao, &err), &err);
    assert_error(es_adapter_set_inputs(small, read, &err), &err, "of rank 4, 5 are wanted");
    es_adapter_free(small);
    ao.rank = 2;
    ao.first_layer = 0;
    assert_ok(es_adapter_new(&small, model, dictionary, &b, &ao, &err), &err);
    assert_error(es_adapter_set_inputs(small, read, &err), &err, "layer 0");
    es_adapter_free(small);
    es_adapter_free(a);
    es_inputs_free(read);
    assert_ok(es_file_write(path, "nonsense, and more of it", 24, &err), &err);
    assert_int_not_equal(es_inputs_load(&read, model, path, &err), ES_OK);
    assert_null(read);
    es_inputs_free(made);
    es_basis_free(&b);
}

/* Text only for inputs is measured on by nobody and does not move the thirds; kept inputs are read again, and made again for other texts. */
static void inputs_of_texts(void **state)
{
    (void)state;
    es_error err;
    es_neutral_texts t = {0};
    es_neutral_text out[16];
    es_inputs *x = NULL;
    char first[65], line[256];
    const char *path = test_path("neutral.jsonl"), *folder = test_path("kept");
    es_buf file = {0};
    es_buf_str(&file, "{\"about\":\"neutral text\"}\n");
    for (int i = 0; i < 9; i++) { /* the thirds of the documents: 2, 5 and 8, whatever stands between */
        snprintf(line, sizeof line, "{\"text\":\"the cat sat on the mat %d and looked at the moon\"}\n", i);
        es_buf_str(&file, line);
        if (i % 4 == 0)
            es_buf_str(&file, "{\"messages\":[{\"role\":\"user\",\"content\":\"what is it\"}],\"reply\":\"it is a thing of many words\",\"inputs\":true}\n");
    }
    assert_ok(es_file_write(path, file.data, file.len, &err), &err);
    assert_ok(es_neutral_load(&t, path, &err), &err);
    assert_int_equal(t.n, 12);
    assert_int_equal(es_neutral_pick(t.item, t.n, ES_NEUTRAL_CHOOSE, out), 3);
    assert_non_null(strstr(out[0].text, "mat 2"));
    assert_non_null(strstr(out[2].text, "mat 8"));
    assert_int_equal(es_neutral_pick(t.item, t.n, ES_NEUTRAL_MEASURE, out), 6);
    for (int i = 0; i < 6; i++)
        assert_false(out[i].only_inputs);
    assert_int_equal(es_neutral_pick(t.item, t.n, ES_NEUTRAL_INPUTS, out), 6);
    es_neutral_texts_free(&t);

    assert_ok(es_inputs_kept(&x, model, dictionary, 2, path, folder, 1, NULL, &err), &err);
    snprintf(first, sizeof first, "%s", es_inputs_texts(x));
    assert_int_equal(strlen(first), 64);
    es_inputs_free(x);
    bool stop = true; /* what is kept is read: nothing is computed that could be cancelled */
    assert_ok(es_inputs_kept(&x, model, dictionary, 2, path, folder, 1, &stop, &err), &err);
    assert_string_equal(es_inputs_texts(x), first);
    es_inputs_free(x);
    es_buf_str(&file, "{\"text\":\"and something else that is long enough to be read\"}\n");
    assert_ok(es_file_write(path, file.data, file.len, &err), &err);
    assert_int_equal(es_inputs_kept(&x, model, dictionary, 2, path, folder, 1, &stop, &err), ES_ERR_CANCELLED);
    assert_null(x);
    assert_ok(es_inputs_kept(&x, model, dictionary, 2, path, folder, 1, NULL, &err), &err);
    assert_string_not_equal(es_inputs_texts(x), first);
    es_inputs_free(x);
    es_buf_free(&file);
}

/* What was read once is taken up, to the bit, by a learner that comes later; an experience that changed is read. */
static void readings(void **s)
{
    (void)s;
    es_error err;
    es_experiences e = fix_experiences();
    es_step_report r;
    es_learner_options o = options(ES_FORM_LORA);
    o.hold_out = 0.2;
    es_readings *kept = es_readings_new();
    float *first = NULL;
    for (int turn = 0; turn < 3; turn++) { /* without; read and kept; taken up */
        es_adapter *a = adapter(ES_FORM_LORA, true, 20, 100);
        es_learner *l;
        assert_ok(es_learner_open(&l, model, dictionary, a, &o, &err), &err);
        if (turn)
            es_learner_recall(l, kept);
        bool stopped = true;
        for (int i = 0; i < e.n; i++)
            assert_ok(es_learner_add(l, &e.item[i], turn == 2 ? &stopped : NULL, &err), &err); /* would be refused if it had to read */
        for (int i = 0; i < 3; i++)
            assert_ok(es_learner_step(l, &r, NULL, &err), &err);
        if (turn)
            assert_memory_equal(first, a->param, a->n_param * sizeof *first);
        else {
            first = malloc(a->n_param * sizeof *first);
            memcpy(first, a->param, a->n_param * sizeof *first);
        }
        if (turn == 2) {
            es_experience other = e.item[0];
            other.preferred = "No.";
            assert_int_equal(es_learner_add(l, &other, &stopped, &err), ES_ERR_CANCELLED);
            assert_ok(es_learner_add(l, &other, NULL, &err), &err);
        }
        es_learner_free(l);
        es_adapter_free(a);
    }
    free(first);
    es_readings_free(kept);
    es_experiences_free(&e);
}

/* A step that finds everything learned takes no gradients and changes nothing. Where the first batch alone looks learned, nothing is missed. */
static void learned_already(void **s)
{
    (void)s;
    es_error err;
    es_experiences e = fix_experiences();
    es_step_report r;
    es_learner_options o = options(ES_FORM_LORA);
    es_adapter *a = adapter(ES_FORM_LORA, true, 20, 100);
    es_learner *l = learner(a, &o, &e);
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    l->o.enough = 1e6;
    float *old = malloc(a->n_param * sizeof *old), *grad = malloc(a->n_learned * sizeof *grad);
    memcpy(old, a->param, a->n_param * sizeof *old);
    memcpy(grad, l->item[0]->grad, a->n_learned * sizeof *grad);
    double kl = r.kl;
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    assert_string_equal(r.guard, "learned");
    assert_true(r.backtracked == 0 && isfinite(r.loss) && r.loss > 0 && r.kl == kl);
    assert_memory_equal(old, a->param, a->n_param * sizeof *old);
    assert_memory_equal(grad, l->item[0]->grad, a->n_learned * sizeof *grad);
    l->o.enough = r.loss / 2;
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    assert_true(r.backtracked > 0 && memcmp(old, a->param, a->n_param * sizeof *old));
    free(old);
    free(grad);
    es_learner_free(l);
    es_adapter_free(a);

    float *by[2];
    for (int way = 0; way < 2; way++) {
        es_adapter *b = adapter(ES_FORM_LORA, true, 20, 100);
        es_learner *many = learner(b, &o, &e);
        while (es_learner_count(many) < LEARNER_SLOTS + 4)
            assert_ok(es_learner_add(many, &e.item[es_learner_count(many) % e.n], NULL, &err), &err);
        assert_ok(es_learner_step(many, &r, NULL, &err), &err);
        double loss;
        assert_ok(es_learner_gradient(many, &loss, NULL, &err), &err);
        many->o.enough = way ? 0.99 * loss : 0;
        assert_ok(es_learner_step(many, &r, NULL, &err), &err);
        assert_true(r.backtracked > 0);
        by[way] = malloc(b->n_param * sizeof *by[way]);
        memcpy(by[way], b->param, b->n_param * sizeof *by[way]);
        if (way)
            assert_memory_equal(by[0], by[1], b->n_param * sizeof *by[way]);
        es_learner_free(many);
        es_adapter_free(b);
    }
    free(by[0]);
    free(by[1]);
    es_experiences_free(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradient_of_bias), cmocka_unit_test(gradient_of_lora), cmocka_unit_test(gradient_of_free_lora),
        cmocka_unit_test(gradient_of_gain), cmocka_unit_test(gradient_of_map),  cmocka_unit_test(inputs_of_hooks),
        cmocka_unit_test(gradient_of_targets), cmocka_unit_test(gradient_of_replay), cmocka_unit_test(replay_holds), cmocka_unit_test(targets_are_learned),
        cmocka_unit_test(gain_learns),      cmocka_unit_test(map_learns),
        cmocka_unit_test(bias_learns),      cmocka_unit_test(lora_learns),      cmocka_unit_test(weight_zero),
        cmocka_unit_test(white_inputs), cmocka_unit_test(natural),     cmocka_unit_test(prior),            cmocka_unit_test(inputs), cmocka_unit_test(inputs_of_texts),
        cmocka_unit_test(readings),         cmocka_unit_test(learned_already),
        cmocka_unit_test(guards),           cmocka_unit_test(gate),             cmocka_unit_test(faults),
    };
    model = open_tiny(NULL);
    dictionary = fix_dictionary(model, "dictionary", 3);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    es_dictionary_free(dictionary);
    es_model_free(model);
    return failed;
}
