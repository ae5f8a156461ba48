/* adapters of several parts: two dictionaries at two layers, and two at one; against the adapters of one part each, formulas and finite differences. */
#include "fixture.h"

enum { HIGH = 3, K0 = 12, K1 = 9, K = K0 + K1 };

static es_model *model;
static es_dictionary *low, *beside, *high; /* layers FIX_LAYER, FIX_LAYER, HIGH */

static const es_form FORMS[] = {ES_FORM_BIAS, ES_FORM_GAIN, ES_FORM_MAP, ES_FORM_LORA};

static es_basis basis(int n, int first, float bound)
{
    es_error err;
    es_basis b = {.name = "fixture"};
    for (int i = 0; i < n; i++)
        assert_ok(es_basis_add(&b, first + 2 * i, -bound, bound, &err), &err);
    return b;
}

static es_adapter_options shape(es_form form)
{
    es_adapter_options o = es_adapter_default(low, model);
    o.form = form;
    o.rank = 3;
    return o;
}

static es_adapter *one(const es_dictionary *s, const es_basis *b, const es_adapter_options *o)
{
    es_error err;
    es_adapter *a = NULL;
    assert_ok(es_adapter_new(&a, model, s, b, o, &err), &err);
    return a;
}

/* Of K0 features of low and K1 of the other, given in the wrong order where the layers differ. */
static es_adapter *pair(es_form form, const es_dictionary *other, float bound)
{
    es_error err;
    es_adapter *a = NULL;
    es_basis b0 = basis(K0, 0, bound), b1 = basis(K1, 1, bound);
    es_part part[2] = {{low, &b0}, {other, &b1}}, turned[2] = {{other, &b1}, {low, &b0}};
    es_adapter_options o = shape(form);
    assert_ok(es_adapter_new_parts(&a, model, other == high ? turned : part, 2, &o, &err), &err);
    es_basis_free(&b0);
    es_basis_free(&b1);
    return a;
}

static void shake(es_adapter *a, float by)
{
    es_rng rng;
    es_rng_seed(&rng, 21);
    for (size_t i = 0; i < a->n_param; i++)
        a->param[i] += by * es_rng_normal(&rng);
    es_adapter_refresh(a);
}

static void scores(const es_patch *patch, float out[8])
{
    es_error err;
    es_ids ids = {0};
    assert_ok(es_tokenize(model, "what the model says of this", 27, false, &ids, &err), &err);
    assert_ok(es_score(model, ids.id, 8, patch, 1, out, NULL, &err), &err);
    es_ids_free(&ids);
}

static void parts_are_told(void **s)
{
    (void)s;
    es_adapter *a = pair(ES_FORM_LORA, high, 5);
    int first, n, feature;
    assert_int_equal(es_adapter_parts(a), 2);
    assert_int_equal(es_adapter_features(a), K);
    assert_string_equal(es_adapter_part_basis(a, 0, &first)->dictionary_hash, es_dictionary_get_info(low)->hash);
    assert_int_equal(first, 0);
    assert_string_equal(es_adapter_part_basis(a, 1, &first)->dictionary_hash, es_dictionary_get_info(high)->hash);
    assert_int_equal(first, K0);
    assert_ptr_equal(es_adapter_basis(a), es_adapter_part_basis(a, 0, NULL));
    assert_int_equal(es_adapter_part_of(a, K0 - 1, &feature), 0);
    assert_int_equal(feature, 2 * (K0 - 1));
    assert_int_equal(es_adapter_part_of(a, K0, &feature), 1);
    assert_int_equal(feature, 1);
    assert_int_equal(es_adapter_layers(a), 2);
    assert_int_equal(es_adapter_layer(a, 1, &first, &n), HIGH);
    assert_true(first == K0 && n == K1);
    for (int i = 0; i < a->n_entry; i++) { /* the highest dictionary that is not above */
        assert_int_equal(a->entry[i].first, a->entry[i].layer < HIGH ? 0 : K0);
        assert_int_equal(a->entry[i].rows, a->entry[i].layer < HIGH ? K0 : K1);
    }
    assert_int_equal(es_adapter_parameters(a), a->n_param);
    es_adapter_free(a);
    a = pair(ES_FORM_LORA, beside, 5); /* one layer: D is both */
    assert_int_equal(es_adapter_parts(a), 2);
    assert_int_equal(es_adapter_layers(a), 1);
    for (int i = 0; i < a->n_entry; i++)
        assert_int_equal(a->entry[i].rows, K);
    es_adapter_free(a);

    es_error err;
    es_basis b = basis(4, 0, 5), other = basis(4, 1, 5);
    es_part same[2] = {{low, &b}, {low, &other}};
    es_adapter_options o = shape(ES_FORM_LORA);
    assert_error(es_adapter_new_parts(&a, model, same, 2, &o, &err), &err, "one basis");
    assert_error(es_adapter_new_parts(&a, model, same, 0, &o, &err), &err, "parts");
    same[1].dictionary = high;
    snprintf(other.dictionary_hash, sizeof other.dictionary_hash, "%064d", 3);
    assert_error(es_adapter_new_parts(&a, model, same, 2, &o, &err), &err, "000000000000");
    same[1].basis = NULL;
    assert_error(es_adapter_new_parts(&a, model, same, 2, &o, &err), &err, "needs a basis");
    o.first_layer = 0; /* below every dictionary: through the lowest one's */
    other.dictionary_hash[0] = 0;
    same[1].basis = &other;
    assert_ok(es_adapter_new_parts(&a, model, same, 2, &o, &err), &err);
    assert_true(a->entry[0].layer == 0 && a->entry[0].first == 0 && a->entry[0].rows == 4);
    es_adapter_free(a);
    es_basis_free(&b);
    es_basis_free(&other);
}

/* At two layers it is what the adapters of each part do together. */
static void is_both_together(void **s)
{
    (void)s;
    es_error err;
    float base[8], got[8], want[8];
    scores(NULL, base);
    for (size_t f = 0; f < sizeof FORMS / sizeof *FORMS; f++) {
        es_adapter *a = pair(FORMS[f], high, 5);
        shake(a, 0.1f);
        es_basis b0 = basis(K0, 0, 5), b1 = basis(K1, 1, 5);
        es_adapter_options o0 = shape(FORMS[f]), o1 = o0;
        o0.last_layer = HIGH - 1;
        o1.first_layer = HIGH;
        es_adapter *below = one(low, &b0, &o0), *above = one(high, &b1, &o1), *each[2] = {below, above};
        if (FORMS[f] == ES_FORM_LORA) {
            for (int i = 0; i < a->n_entry; i++) {
                es_adapter *to = a->entry[i].layer < HIGH ? below : above;
                const es_adapter_entry *x = &a->entry[i], *y = &to->entry[i - (to == above ? below->n_entry : 0)];
                assert_true(x->layer == y->layer && x->site == y->site && x->rows == y->rows);
                memcpy(to->param + y->a, a->param + x->a, 3 * (size_t)x->n_in * sizeof(float));
                memcpy(to->param + y->b, a->param + x->b, 3 * (size_t)x->rows * sizeof(float));
            }
        } else {
            memcpy(below->param, a->param, K0 * sizeof(float));
            memcpy(above->param, a->param + K0, K1 * sizeof(float));
            if (FORMS[f] == ES_FORM_MAP) {
                memcpy(below->param + K0, a->param + K, K0 * K0 * sizeof(float));
                memcpy(above->param + K1, a->param + K + K0 * K0, K1 * K1 * sizeof(float));
            }
        }
        es_patch both, p[2], joint = {0};
        es_addend addend[2];
        es_hook hook[2];
        es_lowrank *lowrank = calloc((size_t)a->n_entry, sizeof *lowrank);
        int n = 0;
        for (int i = 0; i < 2; i++) {
            es_adapter_refresh(each[i]);
            assert_ok(es_adapter_patch(each[i], 0.8f, &p[i], &err), &err);
            if (p[i].n_addend)
                addend[i] = p[i].addend[0];
            if (p[i].n_hook)
                hook[i] = p[i].hook[0];
            for (int j = 0; j < p[i].n_lowrank; j++)
                lowrank[n++] = p[i].lowrank[j];
        }
        joint = (es_patch){.lowrank = lowrank, .n_lowrank = n, .addend = addend, .n_addend = p[0].n_addend * 2, .hook = hook, .n_hook = p[0].n_hook * 2};
        assert_ok(es_adapter_patch(a, 0.8f, &both, &err), &err);
        assert_true(both.n_addend == joint.n_addend && both.n_hook == joint.n_hook && both.n_lowrank == joint.n_lowrank);
        scores(&both, got);
        scores(&joint, want);
        bool differs = false;
        for (int i = 1; i < 8; i++) {
            assert_true(fabsf(got[i] - want[i]) < 1e-5f);
            differs |= fabsf(got[i] - base[i]) > 1e-3f;
        }
        assert_true(differs);
        assert_ok(es_adapter_patch(a, 0, &both, &err), &err);
        scores(&both, got);
        assert_memory_equal(base + 1, got + 1, 7 * sizeof *base);

        /* mean directions: each where its part acts, and D^T c of the coefficients is their sum (bias, gain and map: layer by layer) */
        float *directions = calloc((size_t)(a->n_layer * a->d), sizeof *directions);
        es_rng rng;
        es_rng_seed(&rng, 4);
        for (size_t i = 0; i < a->n_mean; i++)
            a->mean_input[i] = es_rng_normal(&rng);
        es_adapter_refresh(a);
        assert_ok(es_adapter_directions(a, directions, &err), &err);
        for (int j = 0; j < a->d; j++) {
            double low_sum = 0, high_sum = 0, c0 = 0, c1 = 0;
            for (int l = 0; l < a->n_layer; l++)
                *(l < HIGH ? &low_sum : &high_sum) += directions[l * a->d + j];
            for (int i = 0; i < K; i++)
                *(i < K0 ? &c0 : &c1) += (double)a->coefficient[i] * a->D[i * a->d + j];
            assert_true(fabs(low_sum - c0) < 1e-3 && fabs(high_sum - c1) < 1e-3);
        }
        free(directions);
        free(lowrank);
        es_adapter_free(below);
        es_adapter_free(above);
        es_adapter_free(a);
        es_basis_free(&b0);
        es_basis_free(&b1);
    }
}

/* At one layer D is what both have: the formulas on rows, with features of one read and those of the other added to. */
static void one_layer_is_a_sum(void **s)
{
    (void)s;
    es_error err;
    enum { T = 3 };
    for (int form = ES_FORM_GAIN; form <= ES_FORM_MAP; form++) {
        es_adapter *a = pair((es_form)form, beside, 5);
        shake(a, 0.2f);
        size_t d = (size_t)a->d;
        float *h = malloc(2 * T * d * sizeof *h), *was = h + T * d, act[K];
        int pos[T] = {0, 1, 2};
        es_rng rng;
        es_rng_seed(&rng, 8);
        for (size_t i = 0; i < T * d; i++)
            h[i] = was[i] = es_rng_normal(&rng);
        es_patch p;
        assert_ok(es_adapter_patch(a, 0.5f, &p, &err), &err);
        assert_int_equal(p.n_hook, 1);
        p.hook->forward(p.hook->user, h, pos, T, a->d);
        for (int t = 1; t < T; t++) {
            for (int part = 0; part < 2; part++)
                assert_ok(es_dictionary_encode_some(part ? beside : low, NULL, was + (size_t)t * d, 1, a->part[part].basis.feature, part ? K1 : K0, act + part * K0, &err), &err);
            for (size_t x = 0; x < d; x++) {
                double want = was[(size_t)t * d + x];
                for (int i = 0; i < K; i++) {
                    double add = form == ES_FORM_GAIN ? (double)a->param[i] * act[i] : a->param[i];
                    for (int j = 0; form == ES_FORM_MAP && j < K; j++) {
                        double u = 0;
                        for (size_t y = 0; y < d; y++)
                            u += (double)a->D[(size_t)j * d + y] * was[(size_t)t * d + y];
                        add += a->param[K + i * K + j] * u;
                    }
                    want += 0.5 * add * a->D[(size_t)i * d + x];
                }
                assert_true(fabs(want - h[(size_t)t * d + x]) < 1e-4);
            }
        }
        free(h);
        es_adapter_free(a);
    }
}

/* ---- learning ------------------------------------------------------------------------------------------------------------ */

static const char *const anchors[] = {"the cat sat on the mat", "one two three four"};

static es_learner_options options(es_form form)
{
    es_learner_options o = es_learner_default(form);
    o.exact = true;
    o.kappa = 0;
    o.enough = 0;
    o.rho = 100;
    o.hold_out = 0;
    o.threads = 1;
    o.max_prompt = 64;
    o.max_reply = 24;
    o.anchor = anchors;
    o.n_anchor = 2;
    return o;
}

static es_learner *learner(es_adapter *a, const es_learner_options *o, const es_experiences *e)
{
    es_error err;
    es_learner *l = NULL;
    assert_ok(es_learner_open(&l, model, low, a, o, &err), &err);
    for (int i = 0; i < e->n; i++)
        assert_ok(es_learner_add(l, &e->item[i], NULL, &err), &err);
    return l;
}

static void gradients(void **s)
{
    (void)s;
    es_experiences e = fix_experiences();
    for (size_t f = 0; f < sizeof FORMS / sizeof *FORMS; f++)
        for (int where = 0; where < 2; where++) {
            es_adapter *a = pair(FORMS[f], where ? beside : high, 100);
            es_learner_options o = options(FORMS[f]);
            o.replay = 0.5; /* of the built-in texts: another term of the same sum */
            es_learner *l = learner(a, &o, &e);
            char what[80];
            snprintf(what, sizeof what, "%s, two dictionaries at %s", es_form_name(FORMS[f]), where ? "one layer" : "two layers");
            fix_check_gradient(l, a, FORMS[f] == ES_FORM_BIAS || FORMS[f] == ES_FORM_GAIN ? 0.3f : 0.05f, what);
            es_learner_free(l);
            es_adapter_free(a);
        }
    es_experiences_free(&e);
}

/* P g by the definition: (D D^T + lambda I) x = g for the D of each layer. */
static void metric(void **s)
{
    (void)s;
    es_error err;
    es_experiences none = {0};
    for (int lora = 0; lora < 2; lora++)
        for (int where = 0; where < 2; where++) {
            es_adapter *a = NULL;
            es_basis b0 = basis(K0, 0, 5), b1 = basis(K1, 1, 5);
            es_part part[2] = {{low, &b0}, {where ? beside : high, &b1}};
            es_adapter_options ao = shape(lora ? ES_FORM_LORA : ES_FORM_BIAS);
            ao.fixed_inputs = lora;
            assert_ok(es_adapter_new_parts(&a, model, part, 2, &ao, &err), &err);
            es_learner_options o = options(ao.form);
            o.optimiser = ES_OPTIMISER_METRIC;
            es_learner *l = learner(a, &o, &none);
            size_t n = a->n_learned;
            float *g = malloc(2 * n * sizeof *g), *x = g + n;
            es_rng rng;
            es_rng_seed(&rng, 6);
            for (size_t i = 0; i < n; i++)
                g[i] = es_rng_normal(&rng);
            double length, along = 0;
            es_learner_precondition(l, g, x, &length);
            for (size_t i = 0; i < n; i++)
                along += (double)g[i] * x[i];
            assert_true(fabs(length - sqrt(along)) < 1e-4 * length);
            int blocks = lora ? a->n_entry : a->n_place, rank = lora ? 3 : 1;
            for (int b = 0; b < blocks; b++) {
                int first = lora ? a->entry[b].first : a->place[b].first, rows = lora ? a->entry[b].rows : a->place[b].K;
                size_t at = lora ? a->entry[b].b : (size_t)first;
                assert_int_equal(rows, where ? K : first ? K1 : K0);
                for (int i = 0; i < rows; i++)
                    for (int r = 0; r < rank; r++) {
                        double sum = 0;
                        for (int j = 0; j < rows; j++) {
                            double gram = i == j ? o.metric_lambda : 0;
                            for (int y = 0; y < a->d; y++)
                                gram += (double)a->D[(first + i) * a->d + y] * a->D[(first + j) * a->d + y];
                            sum += gram * x[at + (size_t)(j * rank + r)];
                        }
                        assert_true(fabs(sum - g[at + (size_t)(i * rank + r)]) < 1e-3);
                    }
            }
            free(g);
            es_learner_free(l);
            es_adapter_free(a);
            es_basis_free(&b0);
            es_basis_free(&b1);
        }
}

/* It learns, within each part's bounds; the table of influence adds up; without an experience its part is gone; all of it comes back from a file. */
static void learns(void **s)
{
    (void)s;
    es_error err;
    es_experiences e = fix_experiences();
    for (size_t f = 0; f < sizeof FORMS / sizeof *FORMS; f++)
        for (int where = 0; where < 2; where++) {
            float bound = FORMS[f] == ES_FORM_BIAS ? 2 : 0.2f;
            const es_dictionary *other = where ? beside : high;
            es_adapter *a = pair(FORMS[f], other, bound), *left = NULL, *back = NULL;
            a->part[1].basis.lo[2] = 0; /* one-sided */
            es_learner_options o = options(FORMS[f]);
            o.learning_rate = FORMS[f] == ES_FORM_MAP ? 0.005 : FORMS[f] == ES_FORM_LORA ? 0.02 : 0.05;
            es_learner *l = learner(a, &o, &e);
            es_step_report r;
            double before, after;
            assert_ok(es_learner_gradient(l, &before, NULL, &err), &err);
            for (int i = 0; i < 8; i++)
                assert_ok(es_learner_step(l, &r, NULL, &err), &err);
            assert_ok(es_learner_gradient(l, &after, NULL, &err), &err);
            assert_true(after < before);
            float influence[6 * K], snr[K];
            es_learner_influence(l, influence);
            es_learner_snr(l, snr);
            const float *c = es_adapter_coefficients(a);
            double moved[2] = {0};
            for (int i = 0; i < K; i++) {
                double sum = 0, size = fabs((double)c[i]);
                for (int row = 0; row < 6; row++) {
                    sum += influence[row * K + i];
                    size += fabs((double)influence[row * K + i]);
                }
                assert_true(fabs(sum - c[i]) <= 1e-5 * size + 1e-7);
                assert_true(c[i] <= bound * 1.0001f && c[i] >= -bound * 1.0001f);
                assert_true(isfinite(snr[i]));
                moved[i >= K0] += fabs((double)c[i]);
            }
            assert_true(c[K0 + 2] >= -1e-6f);
            assert_true(moved[0] > 0 && moved[1] > 0); /* both parts took part */
            static const int third = 2;
            assert_ok(es_learner_without(l, &third, 1, ES_UNDO_PLAIN, &left, NULL, &err), &err);
            for (size_t i = 0; i < a->n_learned; i++)
                assert_true(left->param[i] == a->param[i] - l->item[2]->moved[i]);

            es_buf x = {0}, y = {0};
            const es_dictionary *s3[3] = {other, where ? high : beside, low}, *lacking[2] = {low, where ? high : beside};
            assert_ok(es_adapter_to_bytes(a, &x, &err), &err);
            assert_ok(es_adapter_from_bytes_parts(&back, model, s3, 3, x.data, x.len, "mine", &err), &err);
            assert_int_equal(es_adapter_parts(back), 2);
            assert_memory_equal(back->param, a->param, a->n_param * sizeof *a->param);
            assert_memory_equal(back->coefficient, a->coefficient, K * sizeof(float));
            assert_memory_equal(back->D, a->D, (size_t)K * (size_t)a->d * sizeof *a->D);
            assert_true(es_adapter_part_basis(back, 1, NULL)->lo[2] == 0);
            assert_ok(es_adapter_to_bytes(back, &y, &err), &err);
            assert_true(x.len == y.len && !memcmp(x.data, y.data, x.len));
            es_adapter_free(back);
            /* a dictionary that is missing is named, beside those that are there */
            assert_int_equal(es_adapter_from_bytes_parts(&back, model, lacking, 2, x.data, x.len, "mine", &err), ES_ERR_MISMATCH);
            assert_non_null(strstr(err.text, es_dictionary_get_info(other)->hash));
            assert_non_null(strstr(err.text, es_dictionary_get_info(low)->hash));
            assert_int_equal(es_adapter_from_bytes(&back, model, low, x.data, x.len, "mine", &err), ES_ERR_MISMATCH); /* whoever knows one only */
            assert_non_null(strstr(err.text, es_dictionary_get_info(other)->hash));
            assert_int_equal(es_adapter_from_bytes(&back, model, NULL, x.data, x.len, "mine", &err), ES_ERR_MISMATCH);
            const char *path = test_path("parts.safetensors");
            char hash[ES_PARTS_MAX][65];
            int n;
            assert_ok(es_adapter_save(a, path, &err), &err);
            assert_ok(es_adapter_wants(path, hash, &n, &err), &err);
            assert_int_equal(n, 2);
            assert_string_equal(hash[0], es_dictionary_get_info(low)->hash);
            assert_string_equal(hash[1], es_dictionary_get_info(other)->hash);
            /* cut anywhere, or with a byte changed in its header: refused or read, never worse */
            for (size_t k = 0; k < x.len; k += k < 3000 ? 61 : 4999)
                assert_error(es_adapter_from_bytes_parts(&back, model, s3, 3, x.data, k, "cut", &err), &err, NULL);
            for (size_t k = 8; k < 3000 && k < x.len; k += 5) {
                char keep = x.data[k];
                x.data[k] ^= 0x15;
                if (es_adapter_from_bytes_parts(&back, model, s3, 3, x.data, x.len, "spoilt", &err) == ES_OK)
                    es_adapter_free(back);
                x.data[k] = keep;
            }
            es_buf_free(&x);
            es_buf_free(&y);
            es_learner_free(l);
            es_adapter_free(a);
            es_adapter_free(left);
        }
    es_experiences_free(&e);
}

/* rho is of each layer's own median, and only the part that is over it is shortened. */
static void guards_are_each_parts(void **s)
{
    (void)s;
    es_error err;
    es_experiences e = fix_experiences();
    es_adapter *a = pair(ES_FORM_BIAS, high, 1000), *plain = NULL;
    assert_ok(es_adapter_copy(&plain, a, &err), &err);
    es_learner_options o = options(ES_FORM_BIAS);
    o.learning_rate = 0.2;
    o.rho = 0;
    es_learner *l = learner(plain, &o, &e);
    es_step_report r;
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    double norm[2] = {0};
    for (int p = 0; p < 2; p++) {
        assert_true(l->median[p] > 0);
        for (int j = 0; j < a->d; j++)
            norm[p] += (double)plain->v[p * a->d + j] * plain->v[p * a->d + j];
        norm[p] = sqrt(norm[p]) / l->median[p];
    }
    assert_true(l->median[0] != l->median[1]);
    assert_true(fabs(r.norm - fmax(norm[0], norm[1])) < 1e-5);
    int over = norm[1] > norm[0];
    assert_true(norm[over] > 1.05 * norm[!over]);
    es_learner_free(l);
    o.rho = sqrt(norm[0] * norm[1]);
    l = learner(a, &o, &e);
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    assert_string_equal(r.guard, "norm");
    assert_true(fabs(r.norm - o.rho) < 1e-3 * o.rho);
    double kept = o.rho / norm[over];
    for (int i = 0; i < K; i++)
        assert_true(fabs(a->param[i] - ((i >= K0) == over ? kept : 1) * plain->param[i]) < 1e-4);
    es_learner_free(l);
    es_adapter_free(a);
    es_adapter_free(plain);
    es_experiences_free(&e);
}

/* White inputs, neutral text spared, weighing and shrinking, and what one learner read serving the next; a direction of the same parts is taken as it
 * is, one of other parts as near as these come. */
static void white_and_directions(void **s)
{
    (void)s;
    es_error err;
    es_experiences e = fix_experiences();
    static const es_message ask = {"user", "What is it?"};
    static const es_neutral_text text[] = {{.text = "the cat sat on the mat and looked at the moon"}, {.text = "it is a small house by the sea", .message = &ask, .n_message = 1}};
    es_inputs *inputs = NULL;
    es_adapter_options ao = shape(ES_FORM_LORA), free_o;
    ao.fixed_inputs = true;
    assert_ok(es_inputs_make(&inputs, model, low, 3, text, 2, 3, 1, NULL, &err), &err);
    es_basis b0 = basis(K0, 0, 100), b1 = basis(K1, 1, 100);
    es_part part[2] = {{low, &b0}, {high, &b1}};
    es_adapter *first = NULL, *a = NULL, *other = NULL, *unbound = NULL;
    assert_ok(es_adapter_new_parts(&first, model, part, 2, &ao, &err), &err);
    assert_ok(es_adapter_set_inputs(first, inputs, &err), &err);
    es_learner_options o = options(ES_FORM_LORA);
    o.optimiser = ES_OPTIMISER_METRIC;
    o.learning_rate = 0.05;
    o.weighting = o.shrink = true;
    es_learner *l = NULL, *u = NULL;
    es_readings *kept = es_readings_new();
    assert_ok(es_learner_open(&l, model, high, first, &o, &err), &err);
    es_learner_recall(l, kept);
    assert_ok(es_learner_spare(l, inputs, &err), &err);
    /* the neutral gradient within the parts is D of each matrix times the free one */
    free_o = ao;
    free_o.constrained = false;
    assert_ok(es_adapter_new(&unbound, model, low, NULL, &free_o, &err), &err);
    assert_ok(es_adapter_set_inputs(unbound, inputs, &err), &err);
    assert_ok(es_learner_open(&u, model, low, unbound, &o, &err), &err);
    assert_ok(es_learner_spare(u, inputs, &err), &err);
    for (int i = 0; i < first->n_entry; i++)
        for (int k = 0; k < first->entry[i].rows; k++)
            for (int r = 0; r < 3; r++) {
                double sum = 0;
                for (int j = 0; j < first->d; j++)
                    sum += (double)first->D[(first->entry[i].first + k) * first->d + j] * u->shield[0][unbound->entry[i].b + (size_t)(3 * j + r)];
                double got = l->shield[0][first->entry[i].b + (size_t)(3 * k + r)];
                assert_true(fabs(got - sum) < 1e-4 * (1 + fabs(sum)));
            }
    es_learner_free(u);
    es_adapter_free(unbound);
    es_step_report r;
    for (int i = 0; i < 3; i++)
        assert_ok(es_learner_add(l, &e.item[i], NULL, &err), &err);
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    assert_true(r.margin > 0);
    size_t n = first->n_learned;
    double medians[2] = {l->median[0], l->median[1]};
    es_learner_free(l);

    /* taken up where the layers are the same, read anew where they are others */
    volatile bool stopped = true;
    assert_ok(es_adapter_new_parts(&a, model, part, 2, &ao, &err), &err);
    es_direction direction = {"terse", first};
    assert_ok(es_learner_open(&l, model, low, a, &o, &err), &err);
    assert_ok(es_learner_prior(l, &direction, 1, 5, false, &err), &err);
    double square = 0;
    for (size_t i = 0; i < n; i++)
        square += (double)l->prior.unit[i] * l->prior.unit[i];
    for (size_t i = 0; i < n; i++) {
        double length = 0;
        for (size_t j = 0; j < n && i == 0; j++)
            length += (double)first->param[j] * first->param[j];
        if (i == 0)
            square = sqrt(square / length);
        assert_true(fabs(l->prior.unit[i] - square * first->param[i]) < 1e-5);
    }
    es_learner_recall(l, kept);
    for (int i = 0; i < 3; i++)
        assert_ok(es_learner_add(l, &e.item[i], &stopped, &err), &err);
    assert_true(l->median[0] == medians[0] && l->median[1] == medians[1]);
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    double amplitude;
    es_learner_amplitudes(l, &amplitude);
    assert_true(amplitude > 0);
    es_learner_free(l);
    es_adapter_free(a);

    assert_ok(es_adapter_new(&other, model, low, &b0, &ao, &err), &err); /* one part only: the higher matrices' share is what low's D can do of it */
    o.shrink = false;
    assert_ok(es_learner_open(&l, model, low, other, &o, &err), &err);
    assert_ok(es_learner_prior(l, &direction, 1, 5, false, &err), &err);
    es_learner_recall(l, kept);
    assert_int_equal(es_learner_add(l, &e.item[0], &stopped, &err), ES_ERR_CANCELLED);
    es_learner_free(l);
    es_adapter_free(other);
    es_readings_free(kept);
    es_adapter_free(first);
    es_inputs_free(inputs);
    es_basis_free(&b0);
    es_basis_free(&b1);
    es_experiences_free(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_are_told), cmocka_unit_test(is_both_together), cmocka_unit_test(one_layer_is_a_sum), cmocka_unit_test(gradients), cmocka_unit_test(metric),
        cmocka_unit_test(learns), cmocka_unit_test(guards_are_each_parts), cmocka_unit_test(white_and_directions),
    };
    model = open_tiny(NULL);
    low = fix_dictionary(model, "low", 3);
    beside = fix_dictionary(model, "beside", 4);
    high = fix_dictionary_at(model, "high", HIGH, 5);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    es_dictionary_free(low);
    es_dictionary_free(beside);
    es_dictionary_free(high);
    es_model_free(model);
    return failed;
}
