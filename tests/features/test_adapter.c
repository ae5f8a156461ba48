/* adapter: forms, patches, files, and what is refused. */
#include "fixture.h"

static es_model *model;
static es_dictionary *dictionary;

static const struct { es_form form; bool constrained; } KINDS[] = { /* in the order of the loops below */
    {ES_FORM_BIAS, true}, {ES_FORM_GAIN, true}, {ES_FORM_MAP, true}, {ES_FORM_LORA, true}, {ES_FORM_LORA, false}};
enum { N_KINDS = sizeof KINDS / sizeof *KINDS };

static es_adapter *make(es_form form, bool constrained)
{
    es_error err;
    es_adapter *a = NULL;
    es_basis b = fix_basis(10, 5);
    es_adapter_options o = es_adapter_default(dictionary, model);
    o.form = form;
    o.constrained = constrained;
    o.rank = 3;
    assert_ok(es_adapter_new(&a, model, dictionary, constrained ? &b : NULL, &o, &err), &err);
    es_basis_free(&b);
    es_rng rng;
    es_rng_seed(&rng, 2);
    for (size_t i = 0; i < a->n_param; i++)
        a->param[i] += 0.1f * es_rng_normal(&rng);
    for (size_t i = 0; i < a->n_mean; i++)
        a->mean_input[i] = es_rng_normal(&rng);
    a->steps = 5;
    es_adapter_refresh(a);
    return a;
}

/* Mean log-probabilities of a text under a patch. */
static void scores(const es_patch *patch, float *out, int n)
{
    es_error err;
    es_ids ids = {0};
    assert_ok(es_tokenize(model, "what the model says of this", 27, false, &ids, &err), &err);
    assert_true((int)ids.n >= n);
    assert_ok(es_score(model, ids.id, n, patch, 1, out, NULL, &err), &err);
    es_ids_free(&ids);
}

static void starts_as_nothing(void **s)
{
    (void)s;
    es_error err;
    float base[8], same[8];
    scores(NULL, base, 8);
    for (int kind = 0; kind < N_KINDS; kind++) {
        es_basis b = fix_basis(10, 5);
        es_adapter *a = NULL;
        es_adapter_options o = es_adapter_default(dictionary, model);
        assert_int_equal(o.first_layer, FIX_LAYER);
        assert_int_equal(o.last_layer, es_model_get_info(model)->n_layer - 1);
        o.form = KINDS[kind].form;
        o.constrained = KINDS[kind].constrained;
        assert_ok(es_adapter_new(&a, model, dictionary, &b, &o, &err), &err);
        es_patch patch;
        assert_ok(es_adapter_patch(a, 1, &patch, &err), &err);
        scores(&patch, same, 8);
        for (int i = 1; i < 8; i++)
            assert_true(fabsf(base[i] - same[i]) < 1e-6f);
        for (int i = 0; es_adapter_coefficients(a) && i < 10; i++)
            assert_true(es_adapter_coefficients(a)[i] == 0);
        es_adapter_free(a);
        a = make(o.form, o.constrained);
        assert_ok(es_adapter_patch(a, 1, &patch, &err), &err);
        scores(&patch, same, 8);
        bool differs = false;
        for (int i = 1; i < 8; i++)
            differs |= fabsf(base[i] - same[i]) > 1e-3f;
        assert_true(differs);
        assert_ok(es_adapter_patch(a, 0, &patch, &err), &err);
        scores(&patch, same, 8);
        assert_memory_equal(base + 1, same + 1, 7 * sizeof *base); /* scale 0: to the bit */
        assert_error(es_adapter_patch(a, NAN, &patch, &err), &err, "finite");
        es_adapter_free(a);
        es_basis_free(&b);
    }
}

/* What a constrained adapter adds never leaves the span of its basis. */
static void stays_in_span(void **s)
{
    (void)s;
    es_adapter *a = make(ES_FORM_LORA, true);
    es_error err;
    float *directions = calloc((size_t)(a->n_layer * a->d), sizeof *directions);
    assert_ok(es_adapter_directions(a, directions, &err), &err);
    es_basis b = fix_basis(10, 5);
    es_basis_report r;
    assert_ok(es_basis_measure(&b, dictionary, NULL, directions + FIX_LAYER * a->d, a->n_layer - FIX_LAYER, 1, &r, &err), &err);
    assert_true(r.energy > 0.9999);
    for (int j = 0; j < FIX_LAYER * a->d; j++)
        assert_true(directions[j] == 0);
    /* D^T c of the coefficients is the sum of the layers' directions */
    for (int j = 0; j < a->d; j++) {
        double sum = 0, dc = 0;
        for (int l = 0; l < a->n_layer; l++)
            sum += directions[l * a->d + j];
        for (int i = 0; i < 10; i++)
            dc += (double)a->coefficient[i] * a->D[i * a->d + j];
        assert_true(fabs(sum - dc) < 1e-3);
    }
    es_basis_free(&b);
    free(directions);
    es_adapter_free(a);
}

static void round_trip(void **s)
{
    (void)s;
    es_error err;
    for (int kind = 0; kind < N_KINDS; kind++) {
        es_form form = KINDS[kind].form;
        es_adapter *a = make(form, KINDS[kind].constrained), *b = NULL, *c = NULL;
        const char *path = test_path("adapter-%d.safetensors", kind);
        assert_ok(es_adapter_save(a, path, &err), &err);
        assert_ok(es_adapter_load(&b, model, KINDS[kind].constrained ? dictionary : NULL, path, &err), &err);
        assert_int_equal(b->n_param, a->n_param);
        assert_memory_equal(a->param, b->param, a->n_param * sizeof *a->param);
        assert_int_equal(es_adapter_steps(b), 5);
        assert_int_equal(b->n_mean, a->n_mean);
        if (a->n_mean)
            assert_memory_equal(a->mean_input, b->mean_input, a->n_mean * sizeof *a->mean_input);
        if (KINDS[kind].constrained)
            assert_memory_equal(es_adapter_coefficients(a), es_adapter_coefficients(b), 10 * sizeof(float));
        assert_ok(es_adapter_copy(&c, b, &err), &err);
        es_buf x = {0}, y = {0};
        assert_ok(es_adapter_to_bytes(a, &x, &err), &err);
        assert_ok(es_adapter_to_bytes(c, &y, &err), &err);
        assert_int_equal(x.len, y.len);
        assert_memory_equal(x.data, y.data, x.len);
        c->param[0] += 1; /* a copy of its own */
        es_adapter_refresh(c);
        assert_true(c->param[0] != b->param[0]);
        es_patch p, q;
        assert_ok(es_adapter_patch(b, 1, &p, &err), &err);
        assert_ok(es_adapter_patch(c, 1, &q, &err), &err);
        if (es_adapter_hooks(a)) {
            assert_true(p.n_hook == 1 && p.hook->user == &b->place[0] && q.hook->user == &c->place[0]);
            assert_true(b->enc != c->enc && b->input != c->input && b->param != c->param);
            assert_memory_equal(b->enc, c->enc, 10 * (size_t)a->d * sizeof *a->enc);
            assert_memory_equal(a->enc, b->enc, 10 * (size_t)a->d * sizeof *a->enc);
        } else
            assert_true(form == ES_FORM_BIAS ? p.addend[0].v != q.addend[0].v : p.lowrank[0].b != q.lowrank[0].b && p.lowrank[0].a != q.lowrank[0].a);
        /* cut anywhere, or with a byte changed in its header: refused or read, never worse */
        es_adapter *d = NULL;
        for (size_t n = 0; n < x.len; n += n < 2000 ? 37 : 4999)
            assert_error(es_adapter_from_bytes(&d, model, dictionary, x.data, n, "cut", &err), &err, NULL);
        for (size_t n = 8; n < 2000 && n < x.len; n += 3) {
            char keep = x.data[n];
            x.data[n] ^= 0x15;
            if (es_adapter_from_bytes(&d, model, dictionary, x.data, x.len, "spoilt", &err) == ES_OK)
                es_adapter_free(d);
            x.data[n] = keep;
        }
        es_buf_free(&x);
        es_buf_free(&y);
        es_adapter_free(a);
        es_adapter_free(b);
        es_adapter_free(c);
    }
}

/* ---- gain and map ------------------------------------------------------------------------------------------------------- */

/* What the hook says against the formulas, from the dictionary's own activations; a sequence's first token is left alone. */
static void hook_follows_formula(void **s)
{
    (void)s;
    es_error err;
    enum { T = 6, K = 10 };
    for (int form = ES_FORM_GAIN; form <= ES_FORM_MAP; form++) {
        es_adapter *a = make((es_form)form, true);
        size_t d = (size_t)a->d;
        float *h = malloc(2 * T * d * sizeof *h), *was = h + T * d, act[T * K];
        int pos[T] = {0, 1, 2, 3, 0, 1};
        es_rng rng;
        es_rng_seed(&rng, 8);
        for (size_t i = 0; i < T * d; i++)
            h[i] = was[i] = es_rng_normal(&rng);
        assert_ok(es_dictionary_encode_some(dictionary, NULL, was, T, a->part[0].basis.feature, K, act, &err), &err);
        es_patch p;
        assert_ok(es_adapter_patch(a, 0.5f, &p, &err), &err);
        p.hook->forward(p.hook->user, h, pos, T, a->d);
        assert_memory_equal(h, was, d * sizeof *h);
        assert_memory_equal(h + 4 * d, was + 4 * d, d * sizeof *h);
        for (int t = 0; t < T; t++) {
            double add[K] = {0};
            for (int i = 0; i < K && pos[t]; i++) {
                add[i] = form == ES_FORM_GAIN ? (double)a->param[i] * act[t * K + i] : a->param[i];
                for (int j = 0; form == ES_FORM_MAP && j < K; j++) {
                    double u = 0;
                    for (size_t x = 0; x < d; x++) /* the fixture's encoder is its decoder, without biases */
                        u += (double)a->D[(size_t)j * d + x] * was[(size_t)t * d + x];
                    add[i] += a->param[K + i * K + j] * u;
                }
            }
            for (size_t x = 0; x < d; x++) {
                double want = was[(size_t)t * d + x];
                for (int i = 0; i < K; i++)
                    want += 0.5 * add[i] * a->D[(size_t)i * d + x];
                assert_true(fabs(want - h[(size_t)t * d + x]) < 1e-4);
            }
        }
        free(h);
        es_adapter_free(a);
    }
}

/* Backward against finite differences of sum w h': by the input row, and by the parameters, each sequence's into its own slot. */
static void hook_has_its_gradient(void **s)
{
    (void)s;
    es_error err;
    enum { T = 5 };
    for (int form = ES_FORM_GAIN; form <= ES_FORM_MAP; form++) {
        es_adapter *a = make((es_form)form, true);
        size_t d = (size_t)a->d, n = a->n_param;
        float *h = malloc(4 * T * d * sizeof *h), *at = h + T * d, *w = at + T * d, *dh = w + T * d, *grad = calloc(2 * n, sizeof *grad);
        int pos[T] = {0, 1, 2, 0, 1}, start[3] = {0, 3, 5}, slot[2] = {1, 0};
        es_rng rng;
        es_rng_seed(&rng, 12);
        for (size_t i = 0; i < T * d; i++) {
            at[i] = es_rng_normal(&rng);
            w[i] = dh[i] = es_rng_normal(&rng);
        }
        for (int i = 0; i < a->K; i++) { /* as a dictionary of its own would have them */
            a->enc_bias[i] = 0.1f * es_rng_normal(&rng);
            a->threshold[i] = form == ES_FORM_GAIN ? 0.05f * (float)i : 0;
        }
        es_patch p;
        assert_ok(es_adapter_patch(a, 0.7f, &p, &err), &err);
        a->sink = (es_hook_sink){.grad = grad, .start = start, .slot = slot};
        p.hook->backward(p.hook->user, at, dh, pos, T, a->d);
        a->sink = (es_hook_sink){0};
        assert_memory_equal(dh, w, d * sizeof *dh);
        for (int turn = 0; turn < 24; turn++) {
            double seen[2], slope = 0, step = 1e-2;
            bool input = turn % 2;
            int sequence = turn / 2 % 2;
            size_t which = input ? (size_t)(sequence ? 4 : 1 + turn % 3 / 2) * d + es_rng_below(&rng, d) : es_rng_below(&rng, n);
            for (int side = 0; side < 2; side++) {
                memcpy(h, at, T * d * sizeof *h);
                float *x = input ? &h[which] : &a->param[which], keep = *x;
                *x += (float)(side ? step : -step);
                p.hook->forward(p.hook->user, h, pos, T, a->d);
                seen[side] = 0;
                for (size_t i = input ? 0 : (size_t)start[sequence] * d; i < (input ? T : (size_t)start[sequence + 1]) * d; i++)
                    seen[side] += (double)w[i] * h[i];
                if (!input)
                    *x = keep;
            }
            slope = input ? dh[which] : grad[(size_t)slot[sequence] * n + which];
            double by = (seen[1] - seen[0]) / (2 * step);
            if (fabs(by - slope) > 2e-3 + 0.01 * fabs(slope))
                fail_msg("%s, %s %zu: gradient %g, finite difference %g", es_form_name((es_form)form), input ? "input" : "parameter", which, slope, by);
        }
        free(grad);
        free(h);
        es_adapter_free(a);
    }
}

/* Where no chosen feature fires a gain leaves every bit of the logits; and what is fed one by one is what is fed at once. */
static void gain_is_silent(void **s)
{
    (void)s;
    es_error err;
    int n_vocab = es_model_get_info(model)->n_vocab;
    es_ids ids = {0};
    assert_ok(es_tokenize(model, "what the model says of this", 27, false, &ids, &err), &err);
    es_context_options o = {.n_ctx = 64, .threads = 1, .exact = true};
    es_context *c = NULL;
    assert_ok(es_context_open(&c, model, &o, &err), &err);
    float *logits = malloc(3 * (size_t)n_vocab * sizeof *logits), *base = logits, *once = base + n_vocab, *single = once + n_vocab;
    assert_ok(es_context_feed(c, ids.id, (int)ids.n, NULL, &err), &err);
    memcpy(base, es_context_logits(c), (size_t)n_vocab * sizeof *base);
    for (int form = ES_FORM_GAIN; form <= ES_FORM_MAP; form++) {
        es_adapter *a = make((es_form)form, true);
        es_patch p;
        assert_ok(es_adapter_patch(a, 1, &p, &err), &err);
        es_context_set_patch(c, &p);
        assert_ok(es_context_truncate(c, 0, &err), &err);
        assert_ok(es_context_feed(c, ids.id, (int)ids.n, NULL, &err), &err);
        memcpy(once, es_context_logits(c), (size_t)n_vocab * sizeof *once);
        assert_ok(es_context_truncate(c, 0, &err), &err);
        for (size_t i = 0; i < ids.n; i++)
            assert_ok(es_context_feed(c, ids.id + i, 1, NULL, &err), &err);
        memcpy(single, es_context_logits(c), (size_t)n_vocab * sizeof *single);
        float apart = 0, moved = 0;
        for (int i = 0; i < n_vocab; i++) {
            apart = fmaxf(apart, fabsf(once[i] - single[i]));
            moved = fmaxf(moved, fabsf(once[i] - base[i]));
        }
        assert_true(moved > 1e-2f);
        assert_true(apart < 1e-4f);
        if (form == ES_FORM_GAIN) {
            for (int i = 0; i < a->K; i++)
                a->threshold[i] = 1e6f;
            assert_ok(es_context_truncate(c, 0, &err), &err);
            assert_ok(es_context_feed(c, ids.id, (int)ids.n, NULL, &err), &err);
            assert_memory_equal(es_context_logits(c), base, (size_t)n_vocab * sizeof *base);
        }
        es_context_set_patch(c, NULL);
        es_adapter_free(a);
    }
    free(logits);
    es_context_free(c);
    es_ids_free(&ids);
}

/* A change of cfg.json makes another kind of dictionary of the fixture's. */
static es_dictionary *altered(const char *name, const char *key, json_t *value, const char *key2, json_t *value2)
{
    es_error err;
    es_dictionary *s = fix_dictionary(model, name, 3), *out = NULL;
    char path[1200];
    json_t *v = NULL;
    snprintf(path, sizeof path, "%s/cfg.json", es_dictionary_get_info(s)->folder);
    assert_ok(es_json_file(&v, path, &err), &err);
    json_object_set_new(v, key, value);
    if (key2)
        json_object_set_new(v, key2, value2);
    char *text = json_dumps(v, 0);
    assert_ok(es_file_write(path, text, strlen(text), &err), &err);
    assert_ok(es_dictionary_open(&out, es_dictionary_get_info(s)->folder, &err), &err);
    free(text);
    json_decref(v);
    es_dictionary_free(s);
    return out;
}

static void hooks_refuse(void **s)
{
    (void)s;
    es_error err;
    es_adapter *a = NULL;
    es_basis b = fix_basis(10, 5);
    es_adapter_options o = es_adapter_default(dictionary, model);
    es_dictionary *topk = altered("topk", "architecture", json_string("topk"), "k", json_integer(4));
    es_dictionary *normal = altered("normal", "normalize_activations", json_string("layer_norm"), NULL, NULL);
    o.form = ES_FORM_GAIN;
    assert_error(es_adapter_new(&a, model, topk, &b, &o, &err), &err, "topk");
    assert_error(es_adapter_new(&a, model, normal, &b, &o, &err), &err, "normalises");
    assert_error(es_adapter_new(&a, model, dictionary, NULL, &o, &err), &err, "needs a basis");
    o.form = ES_FORM_MAP;
    assert_error(es_adapter_new(&a, model, normal, &b, &o, &err), &err, "normalises");
    assert_ok(es_adapter_new(&a, model, topk, &b, &o, &err), &err);
    assert_int_equal(es_adapter_parameters(a), 10 + 10 * 10);
    assert_int_equal(es_adapter_lowest_layer(a), FIX_LAYER + 1);
    float *directions = calloc((size_t)(a->n_layer * a->d), sizeof *directions);
    assert_error(es_adapter_directions(a, directions, &err), &err, "not learned");
    free(directions);
    es_adapter_free(a);
    for (int i = 0; i < ES_MAP_MAX; i++)
        assert_ok(es_basis_add(&b, 1000 + i, -1, 1, &err), &err);
    assert_int_equal(es_adapter_new(&a, model, dictionary, &b, &o, &err), ES_ERR_LIMIT);
    assert_non_null(strstr(err.text, "at most 512"));
    assert_null(a);
    es_form form;
    assert_true(es_form_named("map", &form) && form == ES_FORM_MAP);
    assert_false(es_form_named("mapp", &form));
    es_basis_free(&b);
    es_dictionary_free(topk);
    es_dictionary_free(normal);
}

static void refusals(void **s)
{
    (void)s;
    es_error err;
    es_adapter *a = make(ES_FORM_LORA, true), *b = NULL;
    es_buf bytes = {0};
    assert_ok(es_adapter_to_bytes(a, &bytes, &err), &err);
    tiny_options o = tiny_default();
    o.seed = 99;
    es_model *other = open_tiny(&o);
    assert_int_equal(es_adapter_from_bytes(&b, other, dictionary, bytes.data, bytes.len, "mine", &err), ES_ERR_MISMATCH);
    char hash[65];
    assert_ok(es_model_hash(other, hash, &err), &err);
    assert_non_null(strstr(err.text, "mine"));
    assert_int_equal(es_adapter_from_bytes(&b, other, dictionary, bytes.data, bytes.len, "mine", &err), ES_ERR_MISMATCH);
    assert_non_null(strstr(err.text, hash)); /* both hashes are named */
    assert_non_null(strstr(err.text, a->model_hash));
    es_dictionary *stranger = fix_dictionary(model, "stranger", 8);
    assert_int_equal(es_adapter_from_bytes(&b, model, stranger, bytes.data, bytes.len, "mine", &err), ES_ERR_MISMATCH);
    assert_non_null(strstr(err.text, es_dictionary_get_info(stranger)->hash));
    assert_non_null(strstr(err.text, es_dictionary_get_info(dictionary)->hash));
    assert_int_equal(es_adapter_from_bytes(&b, model, NULL, bytes.data, bytes.len, "mine", &err), ES_ERR_MISMATCH);
    assert_null(b);
    assert_error(es_adapter_load(&b, model, dictionary, test_path("absent"), &err), &err, "absent");

    es_basis basis = fix_basis(4, 1);
    es_adapter_options bad = es_adapter_default(dictionary, model);
    bad.last_layer = 99;
    assert_error(es_adapter_new(&b, model, dictionary, &basis, &bad, &err), &err, "layers");
    bad = es_adapter_default(dictionary, model);
    bad.rank = 0;
    assert_error(es_adapter_new(&b, model, dictionary, &basis, &bad, &err), &err, "rank");
    bad = es_adapter_default(dictionary, model);
    assert_error(es_adapter_new(&b, model, dictionary, NULL, &bad, &err), &err, "basis");
    snprintf(basis.model_hash, sizeof basis.model_hash, "%064d", 1);
    assert_error(es_adapter_new(&b, model, dictionary, &basis, &bad, &err), &err, "model");
    es_basis_free(&basis);
    es_dictionary_free(stranger);
    es_model_free(other);
    es_buf_free(&bytes);
    es_adapter_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(starts_as_nothing), cmocka_unit_test(stays_in_span), cmocka_unit_test(round_trip), cmocka_unit_test(refusals),
        cmocka_unit_test(hook_follows_formula), cmocka_unit_test(hook_has_its_gradient), cmocka_unit_test(gain_is_silent), cmocka_unit_test(hooks_refuse),
    };
    model = open_tiny(NULL);
    dictionary = fix_dictionary(model, "dictionary", 3);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    es_dictionary_free(dictionary);
    es_model_free(model);
    return failed;
}
