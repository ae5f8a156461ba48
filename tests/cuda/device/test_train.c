/* Training a dictionary on a card beside the processor, dead features included; recipes it does not have, a card too small, and one that is lost.
 * The card is the shim's. */
#include <unistd.h>

#include "card.h"
#include "dictionary.h"
#include "harvest.h"
#include "train.h"

enum { LAYER = 1, F = 160, D = 64 };

static int make_harvest(void **state)
{
    es_error err;
    static const int layers[] = {LAYER};
    es_buf text = {0};
    open_card(state);
    for (int i = 0; i < 24; i++)
        es_buf_printf(&text, "{\"text\": \"the cat number %d sat on the mat and looked at %d moons while the rain fell on house %d\"}\n", i, i * 7 % 10, 24 - i);
    const char *path = test_path("texts.jsonl");
    test_write(path, text.data, text.len);
    es_buf_free(&text);
    tiny_options o = tiny_default();
    o.n_layer = 2;
    es_model *m = open_tiny(&o);
    es_harvest_options h = {.layer = layers, .n_layer = 1, .context = 64, .skip_first = true, .seed = 1, .threads = 1};
    assert_ok(es_harvest(m, &path, 1, test_path("harvest"), &h, NULL, &err), &err);
    es_model_free(m);
    return 0;
}

static void read_row(const void *user, size_t row, float *out)
{
    es_harvest_reader_rows(user, row, 1, out);
}

static es_recipe recipe; /* of all that follows */
static const es_recipe recipes[] = {ES_TRAIN_BATCHTOPK, ES_TRAIN_TOPK, ES_TRAIN_MATRYOSHKA};
#define EACH_RECIPE for (int r_ = 0; r_ < 3 && (recipe = recipes[r_], true); r_++)

static es_dictionary_training options(int steps)
{
    es_dictionary_training o = es_dictionary_training_default();
    o.recipe = recipe;
    o.n_features = F;
    o.k = 4;
    o.batch = 64;
    o.tokens = (uint64_t)steps * 64;
    o.learning_rate = 1e-3;
    o.dead_tokens = 128; /* many are, from the third step on */
    o.aux_k = 12;
    o.threads = 1;
    o.half = false;
    o.card_workspace = 2 << 20;
    o.card_exact = true;
    return o;
}

static es_dictionary *trained(const char *name, int steps, es_cuda *on)
{
    es_error err;
    es_dictionary *s = NULL;
    es_dictionary_training o = options(steps);
    o.card = on;
    assert_ok(es_dictionary_train(test_path("harvest"), LAYER, test_path("%s", name), &o, NULL, &err), &err);
    assert_ok(es_dictionary_open(&s, test_path("%s", name), &err), &err);
    return s;
}

/* Adam's first steps go by the sign of a gradient: where that is next to nothing, both signs come, and numbers are steps apart. They are few. */
static void nearly(const char *label, const char *what, const float *got, const float *want, size_t n, int steps)
{
    size_t apart = 0;
    for (size_t i = 0; i < n; i++) {
        const float d = fabsf(got[i] - want[i]);
        apart += !(d < 2e-4f);
        if (!(d < 2.5e-3f * (float)steps))
            fail_msg("%s: %s: %g, not %g", label, what, got[i], want[i]);
    }
    if (apart * 50 > n * (size_t)steps)
        fail_msg("%s: %s: %zu of %zu numbers are apart", label, what, apart, n);
}

static void compare(const es_dictionary *got, const es_dictionary *want, const char *label, int steps)
{
    static float a[F * D], b[F * D], ba[F], bb[F], ta, tb;
    nearly(label, "decoder", es_dictionary_decoder(got), es_dictionary_decoder(want), F * D, steps);
    nearly(label, "decoder's bias", es_dictionary_decoder_bias(got), es_dictionary_decoder_bias(want), D, steps);
    for (int f = 0; f < F; f++) {
        es_dictionary_encoder(got, f, a + f * D, &ba[f], &ta);
        es_dictionary_encoder(want, f, b + f * D, &bb[f], &tb);
    }
    nearly(label, "encoder", a, b, F * D, steps);
    nearly(label, "encoder's bias", ba, bb, F, steps);
    assert_int_equal(es_dictionary_get_info(got)->architecture, recipe == ES_TRAIN_TOPK ? ES_SAE_TOPK : ES_SAE_JUMPRELU);
    if (!(fabsf(ta - tb) <= 5e-3f * fabsf(tb)))
        fail_msg("%s: threshold %g, not %g", label, ta, tb);
}

static void as_on_the_processor(void **state)
{
    (void)state;
    const int steps[] = {1, 3, 8};
    EACH_RECIPE for (int i = 0; i < 3; i++) {
        char label[40];
        snprintf(label, sizeof label, "%s, %d steps", es_recipe_name(recipe), steps[i]);
        char on[40], off_name[40];
        snprintf(on, sizeof on, "%s-card-%d", es_recipe_name(recipe), i);
        snprintf(off_name, sizeof off_name, "%s-cpu-%d", es_recipe_name(recipe), i);
        es_dictionary *want = trained(off_name, steps[i], NULL), *got = trained(on, steps[i], card);
        compare(got, want, label, steps[i]);
        es_dictionary_free(want);
        es_dictionary_free(got);
    }
}

/* After n kernels; the run ends with what to do, and the same call, on the processor or another card, goes on. */
static void lost_after(long n, bool on_another, const es_dictionary *want)
{
    es_error err;
    char name[40];
    snprintf(name, sizeof name, "lost-%ld-%d", n, on_another);
    es_dictionary_training o = options(6);
    o.card = card;
    o.checkpoint_seconds = 1e-9; /* at each step */
    shim_lose_after(n);
    assert_int_equal(es_dictionary_train(test_path("harvest"), LAYER, test_path("%s", name), &o, NULL, &err), ES_ERR_DEVICE);
    assert_non_null(strstr(err.text, "goes on from the last checkpoint"));
    assert_true(es_cuda_lost(card));
    assert_int_equal(access(test_path("%s/checkpoint/state.safetensors", name), F_OK), 0);
    shim_lose_card(0);
    es_cuda_close(card);
    open_card(NULL);
    o.card = on_another ? card : NULL;
    assert_ok(es_dictionary_train(test_path("harvest"), LAYER, test_path("%s", name), &o, NULL, &err), &err);
    es_dictionary *got = NULL;
    assert_ok(es_dictionary_open(&got, test_path("%s", name), &err), &err);
    compare(got, want, name, 6);
    es_dictionary_free(got);
}

static void lost(void **state)
{
    (void)state;
    recipe = ES_TRAIN_BATCHTOPK;
    es_dictionary *want = trained("whole", 6, NULL);
    lost_after(5, false, want);
    lost_after(120, false, want);
    lost_after(120, true, want);
    es_dictionary_free(want);
}

static es_train *opened(const es_dictionary_training *o, es_harvest_reader *h)
{
    es_error err;
    es_train *t;
    assert_ok(es_harvest_reader_open(h, test_path("harvest"), LAYER, &err), &err);
    es_train_rows rows = {h->n_row, h->d, read_row, h, h->norm_limit};
    assert_ok(es_train_open(&t, o, &rows, &err), &err);
    assert_ok(es_train_start(t, &err), &err);
    return t;
}

/* After one step Adam's first moment is a tenth of the gradient; without dead features, and with. */
static void gradients(void **state)
{
    (void)state;
    es_error err;
    EACH_RECIPE for (int dead = 0; dead < 2; dead++) {
        es_train *t[2];
        es_harvest_reader h[2];
        for (int i = 0; i < 2; i++) {
            es_dictionary_training o = options(200);
            o.card = i ? card : NULL;
            o.aux_weight = 1;
            t[i] = opened(&o, &h[i]);
            for (int j = 0; j < F; j += 3)
                t[i]->age[j] = dead ? (float)o.dead_tokens : 0;
            assert_ok(es_train_step(t[i], &err), &err);
            assert_int_equal(t[i]->n_dead, dead ? (F + 2) / 3 : 0);
        }
        assert_ok(es_train_card_fetch(t[1], &err), &err);
        for (int p = 0; p < ES_TRAIN_PARAMETERS; p++) {
            double size = 0, away = 0;
            for (size_t i = 0; i < t[0]->p[p].n; i++) {
                size += pow((double)t[0]->p[p].m[i], 2);
                away += pow((double)t[0]->p[p].m[i] - (double)t[1]->p[p].m[i], 2);
            }
            if (t[0]->p[p].n && !(size > 0 && sqrt(away / size) < 1e-4))
                fail_msg("%s: the gradient of %s is away by %.2g of its size, dead features %d", es_recipe_name(recipe), t[0]->p[p].name, sqrt(away / size), dead);
        }
        if (!(fabs(t[0]->fvu - t[1]->fvu) < 1e-3 && (recipe != ES_TRAIN_TOPK || t[0]->l0 == t[1]->l0))) /* of a batch no larger than what is looked at */
            fail_msg("%s: fvu %g and l0 %g on the card, not %g and %g", es_recipe_name(recipe), t[1]->fvu, t[1]->l0, t[0]->fvu, t[0]->l0);
        for (int i = 0; i < 2; i++) {
            es_train_close(t[i]);
            es_harvest_reader_close(&h[i]);
        }
    }
}

/* The figure comes of the card's decoder, not of the one that the processor started with. */
static void neighbours(void **state)
{
    (void)state;
    es_error err;
    recipe = ES_TRAIN_BATCHTOPK;
    double near[2], first[2];
    es_harvest_reader h;
    for (int i = 0; i < 2; i++) {
        es_dictionary_training o = options(200);
        o.learning_rate = 0.03;
        o.card = i ? card : NULL;
        es_train *t = opened(&o, &h);
        assert_ok(es_train_near(t, &first[i], &err), &err);
        for (int s = 0; s < 4; s++)
            assert_ok(es_train_step(t, &err), &err);
        assert_ok(es_train_near(t, &near[i], &err), &err);
        es_train_close(t);
        es_harvest_reader_close(&h);
    }
    assert_true(first[0] == first[1] && fabs(near[0] - first[0]) > 0.01);
    if (!(fabs(near[0] - near[1]) < 0.1 * fabs(near[0] - first[0])))
        fail_msg("%g on the processor, %g on the card, %g at first", near[0], near[1], first[0]);
}

/* Before anything is done or left behind. */
static void refused(void **state)
{
    (void)state;
    es_error err;
    for (int r = 0; r < ES_RECIPES; r++) {
        if (es_recipe_on_card((es_recipe)r))
            continue;
        es_dictionary_training o = options(2);
        es_training_plan plan;
        o.card = card;
        o.recipe = (es_recipe)r;
        assert_int_equal(es_dictionary_train(test_path("harvest"), LAYER, test_path("refused"), &o, NULL, &err), ES_ERR_USAGE);
        assert_non_null(strstr(err.text, es_recipe_name((es_recipe)r)));
        assert_non_null(strstr(err.text, "--device cpu"));
        assert_int_equal(es_dictionary_train_plan(test_path("harvest"), LAYER, &o, 1, &plan, &err), ES_ERR_USAGE);
        assert_int_equal(access(test_path("refused"), F_OK), -1);
    }
    es_dictionary_training o = options(2);
    o.card = card;
    o.recipe = ES_TRAIN_TOPK;
    o.n_features = 4000;
    o.k = 1025;
    assert_error(es_dictionary_train(test_path("harvest"), LAYER, test_path("refused"), &o, NULL, &err), &err, "at most 1024");
}

/* The plan's steps are the card's. */
static void planned(void **state)
{
    (void)state;
    es_error err;
    es_training_plan plan;
    es_dictionary_training o = options(2);
    o.card = card;
    const long before = shim_launches();
    assert_ok(es_dictionary_train_plan(test_path("harvest"), LAYER, &o, 2, &plan, &err), &err);
    assert_true(plan.tokens_per_second > 0);
    assert_true(shim_launches() > before);
    assert_int_equal(shim_memory_used(), 0);
}

static void no_memory(void **state)
{
    (void)state;
    recipe = ES_TRAIN_MATRYOSHKA;
    es_error err;
    for (size_t room = 0; room < 3; room++) {
        es_dictionary_training o = options(2);
        o.card = card;
        shim_memory((2 << 20) * (1 + room) / 3);
        assert_error(es_dictionary_train(test_path("harvest"), LAYER, test_path("small"), &o, NULL, &err), &err, "lower the context or the batch");
        shim_memory((size_t)4 << 30);
        assert_int_equal(shim_memory_used(), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(gradients), cmocka_unit_test(as_on_the_processor), cmocka_unit_test(neighbours),
                                       cmocka_unit_test(refused), cmocka_unit_test(planned), cmocka_unit_test(lost), cmocka_unit_test(no_memory)};
    return cmocka_run_group_tests(tests, make_harvest, close_card);
}
