/* Encoding on a card beside SAELens' figures and beside the processor: every architecture and format, lists that outgrow their room, an infinite
 * activation, a card too small and one that is lost. The card is the shim's. */
#include "card.h"
#include "dictionary.h"
#include "safetensors.h"

enum { D = 24, F = 40, T = 7 };
enum { BIG_D = 40, BIG_F = 700, BIG_T = 300, ROOM = 1 << 19 };

static const char *const cases[] = {
    "standard", "standard-no-b-dec", "standard-layer-norm", "standard-average", "standard-f16", "topk", "topk-rescaled", "jumprelu", "jumprelu-bf16",
    "jumprelu-constant-norm", "gated", "gated-layer-norm", "batchtopk", "matryoshka", "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
    "dictionary-learning/AutoEncoder/trainer_0", "dictionary-learning/AutoEncoderTopK/trainer_0", "dictionary-learning/JumpReluAutoEncoder/trainer_0",
    "dictionary-learning/GatedAutoEncoder/trainer_0",
};

static es_dictionary *open_on(const char *path, es_dictionary_options o)
{
    es_error err;
    es_dictionary *s;
    o.card = card;
    o.no_hash = true;
    assert_ok(es_dictionary_open_with(&s, path, &o, &err), &err);
    return s;
}

static void as_saelens(void **state)
{
    (void)state;
    const char *root = getenv("ESPALIER_TEST_DIR");
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int mapped = 0; mapped < 2; mapped++) {
            char folder[600], path[700];
            es_error err;
            es_safetensors *g;
            float x[T * D], want[T * F], got[T * F] = {0}, largest = 0;
            snprintf(folder, sizeof folder, "%s/golden/sae/%s", root ? root : "tests", cases[c]);
            snprintf(path, sizeof path, "%s/golden.safetensors", folder);
            assert_ok(es_safetensors_open(&g, path, &err), &err);
            assert_ok(es_safetensors_f32(g, "x", 2, (size_t[]){T, D}, x, &err), &err);
            assert_ok(es_safetensors_f32(g, "acts", 2, (size_t[]){T, F}, want, &err), &err);
            es_safetensors_free(g);
            es_dictionary *s = open_on(folder, (es_dictionary_options){.mapped = mapped, .card_workspace = ROOM, .card_least = 1});
            es_sparse acts = {0};
            const long before = shim_launches();
            assert_ok(es_dictionary_encode(s, NULL, x, T, &acts, &err), &err);
            if (shim_launches() == before)
                fail_msg("%s: was not encoded on the card", cases[c]);
            assert_int_equal(acts.n_rows, T);
            for (int t = 0; t < T; t++)
                for (size_t a = acts.start[t]; a < acts.start[t + 1]; a++)
                    got[t * F + acts.index[a]] = acts.value[a];
            for (int i = 0; i < T * F; i++)
                largest = fmaxf(largest, fabsf(want[i]));
            for (int i = 0; i < T * F; i++)
                if (!(fabsf(got[i] - want[i]) < 1e-4f * largest))
                    fail_msg("%s: token %d, feature %d: %g, not %g", cases[c], i / F, i % F, got[i], want[i]);
            es_sparse_free(&acts);
            es_dictionary_free(s);
        }
}

/* ---- beside the processor ------------------------------------------------------------------------------------------------------------ */

static const char *const kinds[] = {"standard", "topk", "jumprelu", "gated"};
static float x_of[BIG_T * BIG_D];

static float *random_floats(es_rng *rng, size_t n, float scale, float shift)
{
    float *v = es_calloc(n, sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i] = shift + scale * es_rng_normal(rng);
    return v;
}

static int make_dictionaries(void **state)
{
    open_card(state);
    es_rng rng;
    es_rng_seed(&rng, 3);
    for (int i = 0; i < BIG_T * BIG_D; i++)
        x_of[i] = es_rng_normal(&rng);
    for (int a = 0; a < 4; a++) {
        es_error err;
        float *v[7];
        const size_t size[7] = {(size_t)BIG_F * BIG_D, (size_t)BIG_F * BIG_D, BIG_F, BIG_D, BIG_F, BIG_F, BIG_F};
        for (int i = 0; i < 7; i++)
            v[i] = random_floats(&rng, size[i], i < 2 ? 0.16f : i == 4 ? 0.3f : 0.1f, i == 4 ? 1 : 0);
        es_trained t = {.architecture = (es_architecture)a, .d = BIG_D, .F = BIG_F, .k = 9, .enc = v[0], .dec = v[1], .b_enc = v[2], .b_dec = v[3],
                        .threshold = v[4], .b_mag = v[5], .r_mag = v[6]};
        json_t *meta = json_object();
        assert_ok(es_dictionary_save_trained(test_path("%s", kinds[a]), &t, false, meta, &err), &err);
        json_decref(meta);
        for (int i = 0; i < 7; i++)
            free(v[i]);
    }
    return 0;
}

/* Entries on the edge of a threshold may be on one side only: their values are then next to it. */
static void same(const char *label, const es_sparse *got, const es_sparse *want, double edge)
{
    static float a[BIG_F], b[BIG_F];
    assert_int_equal(got->n_rows, want->n_rows);
    for (int t = 0; t < want->n_rows; t++) {
        memset(a, 0, sizeof a);
        memset(b, 0, sizeof b);
        for (size_t i = got->start[t]; i < got->start[t + 1]; i++) {
            a[got->index[i]] = got->value[i];
            if (i > got->start[t] && !(got->value[i] <= got->value[i - 1]))
                fail_msg("%s: token %d is not in falling order", label, t);
        }
        for (size_t i = want->start[t]; i < want->start[t + 1]; i++)
            b[want->index[i]] = want->value[i];
        for (int f = 0; f < BIG_F; f++)
            if (!(fabsf(a[f] - b[f]) < 1e-4f) && !(edge && (a[f] == 0) != (b[f] == 0)))
                fail_msg("%s: token %d, feature %d: %g, not %g", label, t, f, a[f], b[f]);
        const long n = (long)(got->start[t + 1] - got->start[t]), m = (long)(want->start[t + 1] - want->start[t]);
        if (labs(n - m) > 1)
            fail_msg("%s: token %d has %ld features, not %ld", label, t, n, m);
    }
}

static void compare(const char *kind, const es_dictionary *s, int rows, es_pool *pool, bool on_card)
{
    es_error err;
    es_sparse got = {0}, want = {0};
    es_dictionary *plain;
    assert_ok(es_dictionary_open(&plain, test_path("%s", kind), &err), &err);
    const long before = shim_launches();
    assert_ok(es_dictionary_encode(s, pool, x_of, rows, &got, &err), &err);
    if ((shim_launches() > before) != on_card)
        fail_msg("%s: %d rows were encoded %s", kind, rows, on_card ? "on the processor" : "on the card");
    assert_ok(es_dictionary_encode(plain, pool, x_of, rows, &want, &err), &err);
    same(kind, &got, &want, strcmp(kind, "topk") != 0);
    es_sparse_free(&got);
    es_sparse_free(&want);
    es_dictionary_free(plain);
}

/* A workspace with room for fewer entries than a turn has: standard ReLU keeps half of all. */
static void as_the_processor(void **state)
{
    (void)state;
    es_error err;
    es_pool *pool;
    assert_ok(es_pool_open(&pool, 2, &err), &err);
    for (int a = 0; a < 4; a++) {
        es_dictionary *s = open_on(test_path("%s", kinds[a]), (es_dictionary_options){.card_workspace = ROOM, .card_least = 1});
        compare(kinds[a], s, BIG_T, pool, true);
        compare(kinds[a], s, 1, NULL, true);
        compare(kinds[a], s, 33, NULL, true);
        es_dictionary_free(s);
    }
    es_pool_free(pool);
    char text[300];
    assert_false(es_cuda_told(card, text, sizeof text));
}

/* Single rows of a small dictionary are not worth the way; nothing is taken on the card before one is. */
static void few_rows_stay(void **state)
{
    (void)state;
    es_dictionary *s = open_on(test_path("jumprelu"), (es_dictionary_options){.card_workspace = ROOM});
    compare("jumprelu", s, 1, NULL, false);
    compare("jumprelu", s, 149, NULL, false);
    assert_int_equal(shim_memory_used(), 0);
    compare("jumprelu", s, 150, NULL, true); /* 150 x 40 x 700 >= 2^22 */
    assert_true(shim_memory_used() > 0);
    es_dictionary_free(s);
}

/* An infinite pre-activation is passed over by the processor, and so it is with a card. */
static void infinite(void **state)
{
    (void)state;
    float was = x_of[5 * BIG_D];
    for (int a = 0; a < 2; a++) {
        es_dictionary *s = open_on(test_path("%s", kinds[a]), (es_dictionary_options){.card_workspace = ROOM, .card_least = 1});
        x_of[5 * BIG_D] = INFINITY;
        compare(kinds[a], s, 20, NULL, true);
        x_of[5 * BIG_D] = NAN;
        compare(kinds[a], s, 20, NULL, true);
        x_of[5 * BIG_D] = was;
        compare(kinds[a], s, 20, NULL, true);
        es_dictionary_free(s);
    }
}

static void told(const char *what, const char *why)
{
    char text[300];
    if (!es_cuda_told(card, text, sizeof text))
        fail_msg("%s: nothing was told", what);
    if (!strstr(text, what) || !strstr(text, why) || !strstr(text, "the processor"))
        fail_msg("told: %s", text);
    assert_false(es_cuda_told(card, text, sizeof text)); /* once */
}

static void no_memory(void **state)
{
    (void)state;
    const size_t enough = (size_t)BIG_F * (BIG_D + 2) * 4;
    for (int i = 0; i < 4; i++) {
        es_dictionary *s = open_on(test_path(kinds[i]), (es_dictionary_options){.card_workspace = ROOM, .card_least = 1});
        shim_memory(i == 0 ? 1000 : i == 1 ? ROOM + enough / 2 : i == 2 ? ROOM + enough + 4096 : (size_t)4 << 30);
        compare(kinds[i], s, 60, NULL, i == 3);
        if (i < 3) {
            told(kinds[i], "of the card's memory are wanted");
            assert_int_equal(shim_memory_used(), 0);
            shim_memory((size_t)4 << 30);
            compare(kinds[i], s, 60, NULL, false); /* and stays there */
        }
        es_dictionary_free(s);
    }
}

static void lost(void **state)
{
    (void)state;
    es_error err;
    es_dictionary *s = open_on(test_path("topk"), (es_dictionary_options){.card_workspace = ROOM, .card_least = 1}), *plain;
    es_sparse got = {0}, want = {0};
    compare("topk", s, 60, NULL, true);
    assert_ok(es_dictionary_open(&plain, test_path("topk"), &err), &err);
    assert_ok(es_dictionary_encode(plain, NULL, x_of, BIG_T, &want, &err), &err);
    shim_lose_after(3);
    assert_ok(es_dictionary_encode(s, NULL, x_of, BIG_T, &got, &err), &err);
    assert_true(es_cuda_lost(card));
    same("lost", &got, &want, 0);
    told("card 0", "was lost");
    shim_lose_card(0);
    es_sparse_free(&got);
    es_sparse_free(&want);
    es_dictionary_free(plain);
    es_dictionary_free(s);
    es_cuda_close(card);
    open_card(NULL);
}

/* The same text is told once, four at most wait, and any of them only until it was had. */
static void telling(void **state)
{
    (void)state;
    char text[300];
    es_cuda_tell(card, "first %d", 1);
    es_cuda_tell(card, "second");
    es_cuda_tell(card, "first %d", 1);
    assert_true(es_cuda_told(card, text, sizeof text));
    assert_string_equal(text, "first 1");
    es_cuda_tell(card, "first %d", 1);
    assert_true(es_cuda_told(card, text, sizeof text));
    assert_string_equal(text, "second");
    assert_false(es_cuda_told(card, text, sizeof text));
    for (int i = 0; i < 9; i++)
        es_cuda_tell(card, "number %d", i);
    for (int i = 0; i < 4; i++) {
        char want[20];
        snprintf(want, sizeof want, "number %d", i);
        assert_true(es_cuda_told(card, text, sizeof text));
        assert_string_equal(text, want);
    }
    assert_false(es_cuda_told(card, text, sizeof text));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(as_saelens), cmocka_unit_test(as_the_processor), cmocka_unit_test(few_rows_stay), cmocka_unit_test(infinite),
                                       cmocka_unit_test(no_memory), cmocka_unit_test(lost), cmocka_unit_test(telling)};
    return cmocka_run_group_tests(tests, make_dictionaries, close_card);
}
