/* The workbench's session on a card that is lost, or too small for the dictionary: the chat goes on and the person hears of it once. The card is the shim's. */
#include <poll.h>

#include "card.h"
#include "dictionary.h"
#include "sessions.h"

enum { F = 65536, PATIENCE = 40 }; /* F so large that a single row is worth the way */

static int make_files(void **state)
{
    open_card(state);
    es_error err;
    char hash[65];
    tiny_options o = tiny_default();
    o.n_layer = 2;
    make_tiny_gguf(test_path("tiny.gguf"), &o);
    es_model *m = NULL;
    assert_ok(es_model_open(&m, test_path("tiny.gguf"), &err), &err);
    assert_ok(es_model_hash(m, hash, &err), &err);
    int d = es_model_get_info(m)->d_model;
    es_model_free(m);
    es_rng rng;
    es_rng_seed(&rng, 4);
    float *w = es_calloc((size_t)F * (size_t)d, sizeof *w), *zero = es_calloc(F + (size_t)d, sizeof *zero);
    for (int i = 0; i < F * d; i++)
        w[i] = es_rng_normal(&rng) / sqrtf((float)d);
    json_t *meta = json_pack("{s:s, s:s, s:s}", "model_name", "Tiny", "hook_name", "blocks.1.hook_resid_post", "espalier_model_sha256", hash);
    assert_ok(es_dictionary_save(test_path("dictionary"), d, F, w, w, zero, zero, 0.5f, false, meta, &err), &err);
    json_decref(meta);
    free(w);
    free(zero);
    return 0;
}

static es_studio *opened(const char *workspace, es_cuda *on)
{
    es_error err;
    es_studio *s = NULL;
    static char model[300], dictionary[300], path[300];
    snprintf(model, sizeof model, "%s", test_path("tiny.gguf"));
    snprintf(dictionary, sizeof dictionary, "%s", test_path("dictionary"));
    snprintf(path, sizeof path, "%s", test_path("%s", workspace));
    es_studio_options o = es_studio_default();
    o.model = model;
    o.dictionary = dictionary;
    o.workspace = path;
    o.sampling.temperature = 0;
    o.sampling.repeat_penalty = 1;
    o.max_tokens = 12;
    o.n_ctx = 512;
    o.threads = 1;
    o.learn = false;
    o.author = "tester";
    o.card = on;
    assert_ok(es_studio_open(&s, &o, &err), &err);
    return s;
}

typedef bool wanted(const es_view *v);
static bool ready(const es_view *v) { return !v->loading; }
static bool answered(const es_view *v) { return !v->generating && v->n_turn && v->turn[v->n_turn - 1].role == 'a' && !v->turn[v->n_turn - 1].streaming; }
static bool no_turn(const es_view *v) { return !v->generating && v->n_turn == 0; }
static const char *expected;
static bool told(const es_view *v) { return answered(v) && strstr(v->status, expected); }

static es_view *wait_for(es_studio *s, wanted *is, const char *what)
{
    es_view *v = NULL;
    for (double end = es_seconds() + PATIENCE; es_seconds() < end; es_view_free(v)) {
        struct pollfd p = {.fd = es_studio_fd(s), .events = POLLIN};
        v = es_studio_view(s);
        if (is(v) && !v->failed)
            return v;
        poll(&p, 1, 50);
        es_studio_ack(s);
    }
    v = es_studio_view(s);
    fail_msg("waited in vain for: %s (status \"%s\")", what, v->status);
    return v;
}

static char *ask(es_studio *s, const char *text, wanted *until)
{
    es_view_free(wait_for(s, ready, "the model"));
    es_studio_new_chat(s);
    es_view_free(wait_for(s, no_turn, "a new chat"));
    es_studio_say(s, text);
    es_view *v = wait_for(s, until, "an answer");
    char *reply = strdup(v->turn[v->n_turn - 1].text);
    assert_true(v->turn[v->n_turn - 1].n_token > 0);
    es_view_free(v);
    return reply;
}

static const char question[] = "say something about the cat that sat on the mat and looked at the moon";

static void same(const char *what, char *got, char *want)
{
    if (strcmp(got, want) != 0)
        fail_msg("%s: \"%s\", not \"%s\"", what, got, want);
    free(got);
    free(want);
}

static void no_memory(void **state)
{
    (void)state;
    es_studio *s = opened("small.db", card);
    es_view_free(wait_for(s, ready, "the model"));
    shim_memory(shim_memory_used() + (1 << 20)); /* no room for the dictionary */
    expected = "is encoded on the processor";
    char *first = ask(s, question, told);
    shim_memory((size_t)4 << 30);
    same("without memory", ask(s, question, answered), first);
    es_view *v = es_studio_view(s);
    assert_null(strstr(v->status, expected)); /* told once */
    es_view_free(v);
    es_studio_close(s);
}

static void lost(void **state)
{
    (void)state;
    es_studio *s = opened("lost.db", card);
    es_view_free(wait_for(s, ready, "the model"));
    shim_lose_after(150); /* in the middle of the prompt or the reply */
    expected = "was lost";
    char *first = ask(s, question, told);
    assert_true(es_cuda_lost(card));
    same("after the card was lost", ask(s, question, answered), first);
    es_view *v = es_studio_view(s);
    assert_null(strstr(v->status, expected));
    es_view_free(v);
    es_studio_close(s);
    shim_lose_card(0);
    es_cuda_close(card);
    open_card(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(no_memory), cmocka_unit_test(lost)};
    return cmocka_run_group_tests(tests, make_files, close_card);
}
