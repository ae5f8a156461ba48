/* Looking at features: maps, places drawn from intervals, features that are active together, dashboards, what fires on a text. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "atlas_file.h"
#include "atlas_spread.h"
#include "coactive.h"
#include "dashboard.h"
#include "fires.h"
#include "match.h"
#include "fixture.h"
#include "layout.h"

static es_error err;

/* ---- maps ---------------------------------------------------------------------------------------------------------------------- */

enum { FAMILIES = 24, EACH = 25, WIDTH = 48, N = FAMILIES * EACH };

/* Rows in families around random directions. */
static float *families(uint64_t seed)
{
    es_rng r;
    es_rng_seed(&r, seed);
    float *rows = calloc((size_t)N * WIDTH, sizeof *rows), base[WIDTH];
    for (int i = 0; i < N; i++)
        for (int k = 0; k < WIDTH; k++) {
            if (i % EACH == 0)
                base[k] = es_rng_normal(&r);
            rows[i * WIDTH + k] = base[k] + 0.7f * es_rng_normal(&r);
        }
    return rows;
}

static double apart(const float *xy, int i, int j)
{
    return hypot((double)(xy[2 * i] - xy[2 * j]), (double)(xy[2 * i + 1] - xy[2 * j + 1]));
}

static void neighbours_stay_near(void **state)
{
    (void)state;
    es_layout_options o = es_layout_default();
    o.threads = 2;
    float *rows = families(3), *again = families(3), *xy = calloc(2 * N, sizeof *xy), *xy2 = calloc(2 * N, sizeof *xy2);
    assert_ok(es_layout_rows(rows, N, WIDTH, &o, xy, NULL, &err), &err);
    es_rng r;
    es_rng_seed(&r, 11);
    double near = 0, random = 0;
    int closer = 0;
    for (int i = 0; i < N; i++) { /* the nearest by brute force, against any other */
        int best = -1, other = (int)es_rng_below(&r, N);
        float most = -2;
        for (int j = 0; j < N; j++) {
            float c = 0;
            for (int k = 0; k < WIDTH; k++)
                c += rows[i * WIDTH + k] * rows[j * WIDTH + k];
            if (j != i && c > most) {
                most = c;
                best = j;
            }
        }
        assert_true(isfinite(xy[2 * i]) && isfinite(xy[2 * i + 1]));
        near += apart(xy, i, best) / N;
        random += apart(xy, i, other) / N;
        closer += apart(xy, i, best) < apart(xy, i, other);
    }
    assert_true(near < random / 4);
    assert_true(closer > N * 9 / 10);
    /* the same again with another number of threads; another with another seed */
    o.threads = 1;
    assert_ok(es_layout_rows(again, N, WIDTH, &o, xy2, NULL, &err), &err);
    assert_memory_equal(xy, xy2, 2 * N * sizeof *xy);
    o.seed = 2;
    assert_ok(es_layout_rows(again, N, WIDTH, &o, xy2, NULL, &err), &err);
    assert_memory_not_equal(xy, xy2, 2 * N * sizeof *xy);
    free(rows);
    free(again);
    free(xy);
    free(xy2);
}

static void few_and_strange_rows(void **state)
{
    (void)state;
    es_layout_options o = es_layout_default();
    o.threads = 1;
    for (int n = 1; n <= 5; n++) { /* fewer than neighbours; zeros; the same twice */
        float rows[5 * 3] = {1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, -1, 0, 0}, xy[10];
        assert_ok(es_layout_rows(rows, n, 3, &o, xy, NULL, &err), &err);
        for (int i = 0; i < 2 * n; i++)
            assert_true(isfinite(xy[i]));
    }
    float one[3] = {1, 2, 3}, xy[2];
    assert_error(es_layout_rows(one, 0, 3, &o, xy, NULL, &err), &err, "at least one");
    o.neighbours = 1;
    assert_error(es_layout_rows(one, 1, 3, &o, xy, NULL, &err), &err, "neighbours");
    bool stop = true;
    o = es_layout_default();
    float *rows = families(1), *all = calloc(2 * N, sizeof *all);
    assert_int_equal(es_layout_rows(rows, N, WIDTH, &o, all, &(es_progress){.cancel = &stop}, &err), ES_ERR_CANCELLED);
    free(rows);
    free(all);
}

/* Above 16,384 rows neighbours come from trees: most of them are the right ones. */
static void neighbours_of_many(void **state)
{
    (void)state;
    enum { MANY = 17000, D = 24, K = 10, LOOK = 60 };
    es_rng r;
    es_rng_seed(&r, 5);
    float *rows = calloc((size_t)MANY * D, sizeof *rows), *cosine = calloc((size_t)MANY * K, sizeof *cosine), base[D];
    int *id = calloc((size_t)MANY * K, sizeof *id), right = 0;
    for (int i = 0; i < MANY; i++) {
        double norm = 0;
        for (int k = 0; k < D; k++) {
            if (i % 20 == 0)
                base[k] = es_rng_normal(&r);
            rows[i * D + k] = base[k] + 0.5f * es_rng_normal(&r);
            norm += (double)rows[i * D + k] * (double)rows[i * D + k];
        }
        for (int k = 0; k < D; k++)
            rows[i * D + k] /= (float)sqrt(norm);
    }
    es_layout_options o = es_layout_default();
    o.threads = 2;
    assert_ok(es_layout_neighbours(rows, MANY, D, K, &o, id, cosine, NULL, &err), &err);
    for (int t = 0; t < LOOK; t++) {
        int i = t * (MANY / LOOK);
        float least = cosine[(size_t)i * K + K - 1];
        int better = 0;
        for (int k = 1; k < K; k++) {
            assert_true(cosine[(size_t)i * K + (size_t)k] <= cosine[(size_t)i * K + (size_t)k - 1]);
            for (int q = 0; q < k; q++)
                assert_int_not_equal(id[(size_t)i * K + (size_t)k], id[(size_t)i * K + (size_t)q]);
        }
        for (int j = 0; j < MANY; j++) {
            float c = 0;
            for (int k = 0; k < D; k++)
                c += rows[i * D + k] * rows[j * D + k];
            better += j != i && c > least + 1e-6f;
        }
        right += K - (better - (K - 1) > 0 ? better - (K - 1) : 0); /* of a full list K - 1 are better than its last */
    }
    assert_true(right > LOOK * K * 85 / 100);
    free(rows);
    free(cosine);
    free(id);
}

static void maps_are_kept(void **state)
{
    (void)state;
    es_model *m = open_tiny(NULL);
    es_dictionary *s = fix_dictionary(m, "map", 4), *other = fix_dictionary(m, "other", 5);
    es_layout_options o = es_layout_default();
    float xy[2 * FIX_F], kept[2 * FIX_F];
    const char *folder = test_path("maps"), *path = test_path("map.esm");
    assert_ok(es_layout_kept(folder, s, &o, xy, NULL, &err), &err);
    bool stop = true; /* it is there: nothing is made that could be cancelled */
    assert_ok(es_layout_kept(folder, s, &o, kept, &(es_progress){.cancel = &stop}, &err), &err);
    assert_memory_equal(xy, kept, sizeof xy);
    assert_ok(es_layout_write(path, s, &o, xy, &err), &err);
    assert_error(es_layout_read(path, other, &o, kept, &err), &err, "made from dictionary");
    o.seed = 9;
    assert_error(es_layout_read(path, s, &o, kept, &err), &err, "other options");
    o.seed = 1;
    es_buf file = {0};
    test_read(&file, path);
    for (size_t at = 0; at < file.len; at += at < 104 ? 1 : 37) { /* no byte may change without being noticed, but for the reserved ones at the end of the header */
        if (at >= 100 && at < 104)
            continue;
        file.data[at] ^= 0x41;
        test_write(path, file.data, file.len);
        assert_true(es_layout_read(path, s, &o, kept, &err) < 0);
        file.data[at] ^= 0x41;
    }
    for (size_t n = 0; n < file.len; n += 13) {
        test_write(path, file.data, n);
        assert_true(es_layout_read(path, s, &o, kept, &err) < 0);
    }
    es_buf_free(&file);
    es_dictionary_free(s);
    es_dictionary_free(other);
    es_model_free(m);
}

/* ---- places from intervals -------------------------------------------------------------------------------------------------------- */

/* Values up to `max` in a random order, so that the range doubles on the way. */
static void places_come_from_their_intervals(void **state)
{
    (void)state;
    enum { PLACES = 4000, PER = 4, WINDOW = 3 };
    es_spread *s;
    es_rng r;
    es_rng_seed(&r, 8);
    assert_ok(es_spread_open(&s, 2, PER, WINDOW, &err), &err);
    float max = 0, range = 0;
    static float v[PLACES];
    static uint32_t priority[PLACES];
    int count[ES_ATLAS_INTERVALS] = {0};
    for (int i = 0; i < PLACES; i++) {
        float u = (float)es_rng_uniform(&r);
        v[i] = i % 500 == 0 ? 0.03f * (float)(i + 1) : 0.2f + 2 * u * u;
        priority[i] = (uint32_t)es_rng_next(&r);
        max = fmaxf(max, v[i]);
        while (range < v[i])
            range = range > 0 ? range * 2 : 0.25f;
        uint8_t *value;
        es_place_at *p = es_spread_offer(s, 1, v[i], range, priority[i], &value);
        if (p) {
            *p = (es_place_at){.priority = priority[i], .v = v[i], .max = v[i], .id = (uint64_t)i, .n = WINDOW, .peak = 1};
            memset(value, i % 251, WINDOW);
        }
    }
    for (int i = 0; i < ES_ATLAS_INTERVALS; i++) {
        for (int k = 0; k < PLACES; k++)
            count[i] += v[k] > max * (float)i / ES_ATLAS_INTERVALS && v[k] <= max * (float)(i + 1) / ES_ATLAS_INTERVALS;
        const es_place_at *p[PER];
        const uint8_t *value[PER];
        int n = es_spread_interval(s, 1, i, max, p, value);
        assert_int_equal(n, count[i] < PER ? count[i] : PER);
        for (int k = 0; k < n; k++) {
            assert_true(p[k]->v > max * (float)i / ES_ATLAS_INTERVALS && p[k]->v <= max * (float)(i + 1) / ES_ATLAS_INTERVALS);
            assert_true(k == 0 || p[k]->v <= p[k - 1]->v);
            assert_true(p[k]->v == v[p[k]->id]);
            assert_int_equal(value[k][2], (int)(p[k]->id % 251));
        }
    }
    assert_true(count[0] > 3000 && count[4] > 0);
    const es_place_at *none[PER];
    const uint8_t *value[PER];
    assert_int_equal(es_spread_interval(s, 0, 0, 1, none, value), 0);
    es_spread_free(s);
}

/* The draw is even: over many features each half of an interval's places is drawn about as often. */
static void the_draw_is_even(void **state)
{
    (void)state;
    enum { FEATURES = 800, PLACES = 200, PER = 3 };
    es_spread *s;
    es_rng r;
    es_rng_seed(&r, 2);
    assert_ok(es_spread_open(&s, FEATURES, PER, 1, &err), &err);
    for (size_t j = 0; j < FEATURES; j++)
        for (int i = 0; i < PLACES; i++) {
            uint8_t *value;
            uint32_t priority = (uint32_t)es_rng_next(&r);
            es_place_at *p = es_spread_offer(s, j, (float)(i + 1) / PLACES, 1, priority, &value);
            if (p)
                *p = (es_place_at){.priority = priority, .v = (float)(i + 1) / PLACES, .id = (uint64_t)i, .n = 1};
        }
    int early = 0, all = 0;
    for (size_t j = 0; j < FEATURES; j++)
        for (int i = 0; i < ES_ATLAS_INTERVALS; i++) {
            const es_place_at *p[PER];
            const uint8_t *value[PER];
            int n = es_spread_interval(s, j, i, 1, p, value);
            assert_int_equal(n, PER);
            for (int k = 0; k < n; k++, all++)
                early += (int)p[k]->id % (PLACES / ES_ATLAS_INTERVALS) < PLACES / ES_ATLAS_INTERVALS / 2;
        }
    assert_true(early > all * 48 / 100 && early < all * 52 / 100);
    es_spread_free(s);
}

static void shares_of_intervals(void **state)
{
    (void)state;
    es_example spread[3] = {{.interval = 4}, {.interval = 4}, {.interval = 0}};
    es_feature_card c = {.max = 10, .n_spread = 3, .spread = spread};
    for (int i = 0; i < ES_ATLAS_BINS; i++)
        c.histogram[i] = (uint32_t)(i / 10 + 1); /* 10, 20, 30, 40, 50 in the five */
    es_interval in[ES_ATLAS_INTERVALS];
    es_atlas_intervals(&c, in);
    for (int i = 0; i < ES_ATLAS_INTERVALS; i++) { /* the highest first */
        assert_float_equal(in[i].share, (5 - i) / 15.0, 1e-9);
        assert_float_equal(in[i].lo, 8 - 2 * i, 1e-5);
        assert_float_equal(in[i].hi, 10 - 2 * i, 1e-5);
    }
    assert_true(in[0].first == 0 && in[0].n == 2 && in[1].n == 0 && in[4].first == 2 && in[4].n == 1);
}

/* ---- against numpy ------------------------------------------------------------------------------------------------------------------- */

static json_t *golden(void)
{
    json_t *v = NULL;
    assert_ok(es_json_file(&v, test_golden("looks.json"), &err), &err);
    return v;
}

static void correlations_are_numpys(void **state)
{
    (void)state;
    enum { TOP = 5 };
    json_t *v = golden(), *tokens = json_object_get(v, "tokens"), *top = json_object_get(v, "top"), *row, *a;
    int F = (int)json_integer_value(json_object_get(v, "features"));
    es_coactive *c;
    es_pool *pool;
    size_t t, i;
    assert_ok(es_pool_open(&pool, 2, &err), &err);
    assert_ok(es_coactive_open(&c, F, 0, &err), &err);
    json_array_foreach(tokens, t, row) {
        int32_t id[64];
        float value[64];
        json_array_foreach(row, i, a) {
            id[i] = (int32_t)json_integer_value(json_array_get(a, 0));
            value[i] = (float)json_real_value(json_array_get(a, 1));
        }
        assert_ok(es_coactive_add(c, t, id, value, json_array_size(row), &err), &err);
    }
    assert_int_equal(es_coactive_tokens(c), json_array_size(tokens));
    int32_t *id = calloc((size_t)F * TOP, sizeof *id);
    float *pearson = calloc((size_t)F * TOP, sizeof *pearson), *cosine = calloc((size_t)F * TOP, sizeof *cosine);
    assert_ok(es_coactive_top(c, pool, TOP, id, pearson, cosine, &err), &err);
    for (int j = 0; j < F; j++) {
        json_t *want = json_array_get(top, (size_t)j);
        size_t n = json_array_size(want);
        for (size_t k = 0; k < TOP; k++) {
            size_t at = (size_t)j * TOP + k;
            if (k >= n) {
                assert_int_equal(id[at], -1);
                continue;
            }
            json_t *one = json_array_get(want, k);
            assert_int_equal(id[at], json_integer_value(json_array_get(one, 0)));
            assert_float_equal(pearson[at], json_real_value(json_array_get(one, 1)), 1e-5);
            assert_float_equal(cosine[at], json_real_value(json_array_get(one, 2)), 1e-5);
        }
    }
    assert_int_equal(id[4 * TOP], 5);
    assert_int_equal(id[11 * TOP], -1); /* it never fires */
    es_coactive_free(c);
    free(id);
    free(pearson);
    free(cosine);
    es_pool_free(pool);
    json_decref(v);
}

/* With too little room for all tokens an even sample is kept, and features that always go together still do. */
static void correlations_of_a_sample(void **state)
{
    (void)state;
    enum { TOKENS = 6000, LIMIT = 4000 };
    es_coactive *c;
    es_pool *pool;
    es_rng r;
    es_rng_seed(&r, 3);
    assert_ok(es_pool_open(&pool, 1, &err), &err);
    assert_ok(es_coactive_open(&c, 4, LIMIT, &err), &err);
    for (int t = 0; t < TOKENS; t++) {
        float a = 1 + (float)es_rng_uniform(&r);
        int32_t pair[3] = {0, 1, 3}, alone[1] = {2};
        float both[3] = {a, 2 * a, 0.5f};
        if (es_rng_below(&r, 2))
            assert_ok(es_coactive_add(c, (uint64_t)t, pair, both, 3, &err), &err);
        else
            assert_ok(es_coactive_add(c, (uint64_t)t, alone, both, 1, &err), &err);
    }
    assert_true(es_coactive_tokens(c) > LIMIT / 8 && es_coactive_tokens(c) < LIMIT);
    int32_t id[4];
    float pearson[4], cosine[4];
    assert_ok(es_coactive_top(c, pool, 1, id, pearson, cosine, &err), &err);
    assert_int_equal(id[0], 1);
    assert_float_equal(pearson[0], 1, 1e-4);
    assert_float_equal(cosine[0], 1, 1e-4);
    assert_int_equal(id[2], -1); /* alone */
    int32_t many[LIMIT] = {0};
    float ones[LIMIT] = {0};
    assert_error(es_coactive_add(c, 1, many, ones, LIMIT, &err), &err, "too dense");
    es_coactive_free(c);
    es_pool_free(pool);
}

static void logits_are_numpys_histogram(void **state)
{
    (void)state;
    json_t *v = golden(), *logits = json_object_get(v, "logits"), *range = json_object_get(v, "logit_range"), *count = json_object_get(v, "logit_histogram");
    size_t n = json_array_size(logits);
    float *x = calloc(n, sizeof *x), lo, hi;
    uint32_t have[ES_ATLAS_BINS];
    for (size_t i = 0; i < n; i++)
        x[i] = (float)json_real_value(json_array_get(logits, i));
    es_atlas_logits(x, (int)n, &lo, &hi, have);
    assert_float_equal(lo, json_real_value(json_array_get(range, 0)), 1e-6);
    assert_float_equal(hi, json_real_value(json_array_get(range, 1)), 1e-6);
    int off = 0, all = 0;
    for (int i = 0; i < ES_ATLAS_BINS; i++) {
        off += abs((int)have[i] - (int)json_integer_value(json_array_get(count, (size_t)i)));
        all += (int)have[i];
    }
    assert_int_equal(all, n);
    assert_true(off <= 2); /* one on an edge may fall to the other side of it */
    float same[3] = {1, 1, 1};
    es_atlas_logits(same, 3, &lo, &hi, have);
    assert_int_equal(have[0], 3);
    free(x);
    json_decref(v);
}

/* ---- dashboards and texts ----------------------------------------------------------------------------------------------------------------- */

static void neurons_and_logits_by_brute_force(void **state)
{
    (void)state;
    es_model *m = open_tiny(NULL);
    const es_model_info *info = es_model_get_info(m);
    es_dictionary *s = fix_dictionary(m, "dashboard", 6);
    es_pool *pool;
    es_dashboard d;
    assert_ok(es_pool_open(&pool, 2, &err), &err);
    for (int feature = 0; feature < FIX_F; feature += 19) {
        const float *dec = es_dictionary_decoder(s) + feature * info->d_model;
        assert_ok(es_dashboard_make(&d, m, s, NULL, feature, pool, &err), &err);
        assert_int_equal(d.n_neuron, ES_DASHBOARD_LIST);
        double most[ES_DASHBOARD_LIST] = {0};
        for (int l = 0; l <= FIX_LAYER; l++) {
            es_weight w = es_model_site(m, l, ES_SITE_DOWN);
            assert_int_equal(w.type, ES_F32);
            for (int k = 0; k < info->d_ff; k++) {
                double dot = 0, a = 0, b = 0;
                for (int i = 0; i < info->d_model; i++) {
                    double x = (double)((const float *)w.data)[i * info->d_ff + k];
                    dot += x * (double)dec[i];
                    a += x * x;
                    b += (double)dec[i] * (double)dec[i];
                }
                double cosine = dot / sqrt(a * b);
                for (int n = 0; n < d.n_neuron; n++)
                    if (d.neuron[n].layer == l && d.neuron[n].neuron == k)
                        assert_float_equal(d.neuron[n].cosine, cosine, 1e-5);
                for (int n = 0; n < ES_DASHBOARD_LIST; n++)
                    if (fabs(cosine) > most[n]) {
                        memmove(most + n + 1, most + n, (size_t)(ES_DASHBOARD_LIST - 1 - n) * sizeof *most);
                        most[n] = fabs(cosine);
                        break;
                    }
            }
        }
        for (int n = 0; n < ES_DASHBOARD_LIST; n++)
            assert_float_equal(fabsf(d.neuron[n].cosine), most[n], 1e-5);
        assert_true(d.has_logits);
        uint32_t all = 0;
        for (int i = 0; i < ES_ATLAS_BINS; i++)
            all += d.logits[i];
        assert_int_equal(all, info->n_vocab);
        double hi = -1e9;
        for (int v = 0; v < info->n_vocab; v++) {
            float row[256];
            double logit = 0;
            es_model_unembed_row(m, v, row);
            for (int i = 0; i < info->d_model; i++)
                logit += (double)row[i] * (double)es_model_final_norm(m)[i] * (double)dec[i];
            hi = fmax(hi, logit);
        }
        assert_float_equal(d.logit_hi, hi, 1e-4);
        assert_true(d.n_neighbour == ES_DASHBOARD_LIST && d.cosine[0] >= d.cosine[1] && d.neighbour[0] != feature);
    }
    assert_error(es_dashboard_make(&d, m, s, NULL, FIX_F, pool, &err), &err, "no feature");
    assert_ok(es_dashboard_make(&d, NULL, s, NULL, 1, pool, &err), &err);
    assert_true(d.n_neuron == 0 && !d.has_logits && d.n_neighbour > 0);
    es_pool_free(pool);
    es_dictionary_free(s);
    es_model_free(m);
}

static void surprise_is_what_it_says(void **state)
{
    (void)state;
    es_feature_card c = {.density = 0.01, .max = 5, .bin_width = 0.1f};
    for (int i = 0; i < ES_ATLAS_BINS; i++)
        c.histogram[i] = 20; /* even over (0, 5] */
    /* q = 0.01 * (5 - 4) / 5 = 0.002; 1 - 0.998^10 = 0.0198 */
    assert_float_equal(es_surprise(&c, 1000000, 4, 10), -log2(1 - pow(0.998, 10)), 1e-3);
    assert_float_equal(es_surprise(&c, 1000000, 0, 1), -log2(0.01), 1e-3);
    assert_float_equal(es_surprise(&c, 1000000, 9, 1), -log2(0.5e-6), 1e-2); /* never seen: half of one token */
    assert_true(es_surprise(&c, 1000, 0, 1000) < 0.01f);                     /* usual */
}

static void what_fires_on_a_text(void **state)
{
    (void)state;
    es_model *m = open_tiny(NULL);
    es_dictionary *s = fix_dictionary(m, "fires", 7);
    es_firing *f;
    const char *text = "some words to read here";
    assert_ok(es_firing_open(&f, m, s, 2, &err), &err);
    assert_error(es_firing_read(f, "", 0, false, NULL, &err), &err, "no text");
    assert_ok(es_firing_read(f, text, strlen(text), false, NULL, &err), &err);
    int skip, n;
    const es_sparse *acts = es_firing_acts(f, &skip);
    assert_int_equal(skip, 1);
    assert_int_equal(acts->n_rows, es_firing_ids(f)->n);
    for (int order = ES_FIRE_MAX; order <= ES_FIRE_TOKEN; order++) {
        es_fire *fire;
        float most[FIX_F] = {0};
        int seen = 0;
        for (int t = skip; t < acts->n_rows; t++)
            for (size_t i = acts->start[t]; i < acts->start[t + 1]; i++)
                most[acts->index[i]] = fmaxf(most[acts->index[i]], acts->value[i]);
        for (int j = 0; j < FIX_F; j++)
            seen += most[j] > 0;
        assert_ok(es_firing_list(f, NULL, (es_fire_order)order, &fire, &n, &err), &err);
        assert_int_equal(n, seen);
        for (int i = 0; i < n; i++) {
            assert_true(fire[i].max == most[fire[i].feature] && isnan(fire[i].surprise) && fire[i].token >= skip);
            float at = 0;
            for (size_t k = acts->start[fire[i].token]; k < acts->start[fire[i].token + 1]; k++)
                at = acts->index[k] == fire[i].feature ? acts->value[k] : at;
            assert_true(at == fire[i].max);
            if (i)
                assert_true(order == ES_FIRE_MAX ? fire[i].max <= fire[i - 1].max : fire[i].token >= fire[i - 1].token);
        }
        free(fire);
    }
    /* a token in front: none of the text's own is left out */
    size_t own = es_firing_ids(f)->n;
    assert_ok(es_firing_read(f, text, strlen(text), true, NULL, &err), &err);
    assert_int_equal(es_firing_ids(f)->n, own + 1);
    bool stop = true;
    assert_int_equal(es_firing_read(f, text, strlen(text), true, &stop, &err), ES_ERR_CANCELLED);

    /* two sets: the difference of means over texts in units of deviation, by brute force */
    char *a[] = {"red green", "red blue", "red red red"}, *b[] = {"one two", "two three four"};
    static float score[FIX_F];
    double mean[5][FIX_F] = {{0}}, largest = 0;
    assert_ok(es_contrast(f, a, 3, b, 2, score, NULL, &err), &err);
    for (int i = 0; i < 5; i++) {
        const char *one = i < 3 ? a[i] : b[i - 3];
        assert_ok(es_firing_read(f, one, strlen(one), false, NULL, &err), &err);
        acts = es_firing_acts(f, &skip);
        for (size_t k = acts->start[skip]; k < acts->start[acts->n_rows]; k++)
            mean[i][acts->index[k]] += (double)acts->value[k] / (acts->n_rows - skip);
    }
    for (int pass = 0; pass < 2; pass++)
        for (int j = 0; j < FIX_F; j++) {
            double ma = (mean[0][j] + mean[1][j] + mean[2][j]) / 3, mb = (mean[3][j] + mean[4][j]) / 2, va = 0, vb = 0;
            for (int i = 0; i < 5; i++)
                *(i < 3 ? &va : &vb) += i < 3 ? (mean[i][j] - ma) * (mean[i][j] - ma) / 3 : (mean[i][j] - mb) * (mean[i][j] - mb) / 2;
            double sd = sqrt((va + vb) / 2);
            if (pass == 0)
                largest = fmax(largest, sd);
            else
                assert_float_equal(score[j], (ma - mb) / (sd + 0.02 * largest + 1e-9), 1e-3 + 1e-3 * fabs((double)score[j]));
        }
    assert_error(es_contrast(f, a, 3, b, 0, score, NULL, &err), &err, "second");
    es_firing_free(f);
    es_dictionary_free(s);
    es_model_free(m);
}

/* The same features in another order, and each some share longer, are found again; of another layer, by brute force over the same tokens. */
static void features_of_another_dictionary(void **state)
{
    (void)state;
    es_model *m = open_tiny(NULL);
    int d = es_model_get_info(m)->d_model, order[FIX_F];
    es_dictionary *s = fix_dictionary(m, "match-from", 8), *t = NULL, *far = fix_dictionary_at(m, "match-far", 0, 9);
    float *w = calloc((size_t)FIX_F * (size_t)d, sizeof *w), *zero = calloc((size_t)FIX_F + (size_t)d, sizeof *zero);
    const char *file = test_path("match.jsonl");
    FILE *f = fopen(file, "w");
    for (int i = 0; i < 30; i++)
        fprintf(f, "{\"text\":\"document %d says %c%c and %d then %c again\"}\n", i, 'a' + i % 26, 'z' - i % 20, i * 7919, 'A' + i % 13);
    fclose(f);
    for (int j = 0; j < FIX_F; j++) {
        order[j] = (j * 35 + 11) % FIX_F; /* 35 and 96 have no factor in common */
        for (int k = 0; k < d; k++)
            w[order[j] * d + k] = es_dictionary_decoder(s)[j * d + k] * (1 + 0.01f * (float)j);
    }
    json_t *meta = json_pack("{s:s, s:s}", "model_name", "tiny", "hook_name", "blocks.1.hook_resid_post");
    assert_int_equal(FIX_LAYER, 1);
    assert_ok(es_dictionary_save(test_path("match-to"), d, FIX_F, w, w, zero, zero, 0, false, meta, &err), &err);
    assert_ok(es_dictionary_open(&t, test_path("match-to"), &err), &err);
    int asked[] = {3, 17, 40, 41, 95};
    es_match got[5];
    assert_ok(es_dictionary_match(m, s, t, &file, 1, 0, 2, asked, 5, got, NULL, &err), &err);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(got[i].from, asked[i]);
        assert_int_equal(got[i].to, order[asked[i]]);
        assert_float_equal(got[i].pearson, 1, 1e-5);
        assert_float_equal(got[i].cosine, 1, 1e-5);
        assert_true(got[i].mutual && got[i].together > 0);
    }
    /* another layer: what es_firing says of the same texts, with numpy's formula */
    es_firing *a, *b;
    double *x = calloc(2 * 20000, sizeof *x), n = 0, best = -2, sx = 0, sxx = 0;
    static double sy[FIX_F], syy[FIX_F], sxy[FIX_F];
    assert_ok(es_firing_open(&a, m, s, 2, &err), &err);
    assert_ok(es_firing_open(&b, m, far, 2, &err), &err);
    for (int i = 0; i < 30; i++) {
        char text[200];
        int skip;
        snprintf(text, sizeof text, "document %d says %c%c and %d then %c again", i, 'a' + i % 26, 'z' - i % 20, i * 7919, 'A' + i % 13);
        assert_ok(es_firing_read(a, text, strlen(text), false, NULL, &err), &err);
        assert_ok(es_firing_read(b, text, strlen(text), false, NULL, &err), &err);
        const es_sparse *p = es_firing_acts(a, &skip), *q = es_firing_acts(b, NULL);
        for (int r = skip; r < p->n_rows; r++, n++) {
            double v = 0;
            for (size_t k = p->start[r]; k < p->start[r + 1]; k++)
                v = p->index[k] == 17 ? (double)p->value[k] : v;
            sx += v;
            sxx += v * v;
            for (size_t k = q->start[r]; k < q->start[r + 1]; k++) {
                double u = (double)q->value[k];
                sy[q->index[k]] += u;
                syy[q->index[k]] += u * u;
                sxy[q->index[k]] += u * v;
            }
        }
    }
    for (int j = 0; j < FIX_F; j++) {
        double spread = sqrt((sxx - sx * sx / n) * (syy[j] - sy[j] * sy[j] / n));
        best = spread > 0 && sxy[j] > 0 ? fmax(best, (sxy[j] - sx * sy[j] / n) / spread) : best;
    }
    assert_ok(es_dictionary_match(m, s, far, &file, 1, 0, 2, asked, 5, got, NULL, &err), &err);
    assert_float_equal(got[1].pearson, best, 1e-4);
    int twice[] = {3, 3}, absent[] = {FIX_F};
    assert_error(es_dictionary_match(m, s, t, &file, 1, 0, 2, twice, 2, got, NULL, &err), &err, "twice");
    assert_error(es_dictionary_match(m, s, t, &file, 1, 0, 2, absent, 1, got, NULL, &err), &err, "no feature 96");
    es_firing_free(a);
    es_firing_free(b);
    json_decref(meta);
    free(w);
    free(zero);
    free(x);
    es_dictionary_free(s);
    es_dictionary_free(t);
    es_dictionary_free(far);
    es_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(neighbours_stay_near), cmocka_unit_test(few_and_strange_rows), cmocka_unit_test(neighbours_of_many), cmocka_unit_test(maps_are_kept),
        cmocka_unit_test(places_come_from_their_intervals), cmocka_unit_test(the_draw_is_even), cmocka_unit_test(shares_of_intervals),
        cmocka_unit_test(correlations_are_numpys), cmocka_unit_test(correlations_of_a_sample), cmocka_unit_test(logits_are_numpys_histogram),
        cmocka_unit_test(neurons_and_logits_by_brute_force), cmocka_unit_test(surprise_is_what_it_says), cmocka_unit_test(what_fires_on_a_text),
        cmocka_unit_test(features_of_another_dictionary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
