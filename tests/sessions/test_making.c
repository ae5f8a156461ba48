/* Training and harvest started from a studio, beside the chat; and a dictionary of another site than the residual, which is for looking. */
#include <sys/stat.h>
#include <unistd.h>

#include "harvest.h"
#include "with_studio.h"

static uint64_t plan_before;
static bool planned(const es_view *v) { return v->plan_serial != plan_before && !v->plan_running; }
static const es_job *newest(const es_view *v, const char *kind)
{
    for (int i = v->n_job - 1; i >= 0; i--)
        if (!strcmp(v->job[i].kind, kind))
            return &v->job[i];
    return NULL;
}
static bool steps(const es_view *v) { return newest(v, "train") && newest(v, "train")->running && strstr(newest(v, "train")->what, "fvu="); }
static bool trained(const es_view *v) { return newest(v, "train") && !newest(v, "train")->running; }
static bool finished(const es_view *v) { return trained(v) && !newest(v, "train")->cancelled; }
static bool harvested(const es_view *v) { return newest(v, "harvest") && !newest(v, "harvest")->running; }
static bool refused(const es_view *v) { return strstr(v->status, "one is being made"); }

static bool refused_again(const es_view *v) { return strstr(v->status, "only what was made last"); }

static es_making making(const char *texts, const char *out)
{
    es_making m;
    es_making_default(&m);
    snprintf(m.texts, sizeof m.texts, "%s", texts);
    snprintf(m.out, sizeof m.out, "%s", out);
    snprintf(m.layers, sizeof m.layers, "1,2");
    snprintf(m.sites, sizeof m.sites, "resid,mlp");
    m.features = 64;
    m.k = 8;
    m.tokens = 200000;
    return m;
}

static es_view *plan(es_studio *s, const es_making *m)
{
    es_view *v = es_studio_view(s);
    plan_before = v->plan_serial;
    es_view_free(v);
    es_studio_make_plan(s, m);
    return WAIT(s, planned);
}

static char *texts_file(const char *name)
{
    es_buf b = {0};
    for (int i = 0; i < 150; i++)
        es_buf_printf(&b, "{\"text\":\"Document %d says %s and %d more things about %s.\"}\n", i, i % 3 ? "little" : "a lot of words", i * i, i % 2 ? "the sea" : "a hill");
    char *path = strdup(test_path("%s", name));
    test_write(path, b.data, b.len);
    es_buf_free(&b);
    return path;
}

static void trains_beside_the_chat(void **state)
{
    (void)state;
    char *texts = texts_file("texts.jsonl"), *out = strdup(test_path("made")), *workspace = strdup(fresh());
    es_studio *s = open_ready(workspace);
    es_making m = making(texts, out);
    es_view *v = plan(s, &m);
    assert_true(v->plan_ok && strstr(v->plan_text, "Time: about") && strstr(v->plan_text, "Memory: ") && strstr(v->plan_text, "Disk: "));
    es_view_free(v);
    assert_int_not_equal(access(out, F_OK), 0); /* a plan leaves nothing */

    m.tokens = 40000000; /* more than it will see */
    es_studio_make(s, &m);
    WAIT_FREE(s, steps);
    es_studio_say(s, "which way?"); /* meanwhile */
    WAIT_FREE(s, two_turns);
    es_studio_make(s, &m);
    v = WAIT(s, refused);
    int job = newest(v, "train")->id;
    assert_true(newest(v, "train")->running && newest(v, "train")->done > 0);
    es_view_free(v);
    es_studio_job_cancel(s, job);
    v = WAIT(s, trained);
    assert_true(newest(v, "train")->cancelled && strstr(newest(v, "train")->what, "r goes on"));
    es_view_free(v);
    assert_int_equal(access(test_path("made/stream.json"), F_OK), 0);
    es_studio_make_again(s, job);
    WAIT_FREE(s, steps);
    es_studio_close(s); /* in the middle of it: its state is saved */
    struct stat before, after;
    assert_int_equal(stat(test_path("made/stream.json"), &before), 0);

    s = open_ready(workspace); /* another day: it is known that there is one; and another to its end in another folder */
    v = WAIT(s, trained);
    assert_true(newest(v, "train")->cancelled && strstr(newest(v, "train")->what, "r goes on"));
    job = newest(v, "train")->id;
    es_view_free(v);
    es_studio_make_again(s, job);
    WAIT_FREE(s, steps);
    v = es_studio_view(s);
    es_studio_job_cancel(s, newest(v, "train")->id);
    es_view_free(v);
    WAIT_FREE(s, trained);
    assert_int_equal(stat(test_path("made/stream.json"), &after), 0);
    assert_true(after.st_ino != before.st_ino);
    m.tokens = 30000;
    snprintf(m.out, sizeof m.out, "%s-short", out);
    v = es_studio_view(s);
    job = newest(v, "train")->id;
    es_view_free(v);
    es_studio_job_cancel(s, job); /* once more: it is forgotten */
    es_studio_make_again(s, job);
    WAIT_FREE(s, refused_again);
    es_studio_make(s, &m);
    v = WAIT(s, finished);
    assert_false(newest(v, "train")->failed);
    es_view_free(v);
    es_dictionary *d = NULL;
    assert_ok(es_dictionary_open(&d, test_path("made-short/layer-02-mlp_out"), &err), &err);
    assert_int_equal(es_dictionary_get_info(d)->n_features, 64);
    es_dictionary_free(d);
    es_studio_close(s);
    s = open_ready(workspace); /* what came to its end, or was forgotten, is not offered */
    v = es_studio_view(s);
    assert_null(newest(v, "train"));
    es_view_free(v);
    es_studio_close(s);
    free(texts);
    free(out);
    free(workspace);
}

static void harvests_and_trains_on_it(void **state)
{
    (void)state;
    char *texts = texts_file("more.jsonl"), *folder = strdup(test_path("stored"));
    es_studio *s = open_ready(fresh());
    es_making m = making(texts, folder);
    m.harvest_only = true;
    m.tokens = 4000;
    es_view *v = plan(s, &m);
    assert_true(v->plan_ok && strstr(v->plan_text, "Disk: "));
    es_view_free(v);
    es_studio_make(s, &m);
    v = WAIT(s, harvested);
    assert_false(newest(v, "harvest")->failed || newest(v, "harvest")->cancelled);
    es_view_free(v);
    es_harvest_reader h;
    assert_ok(es_harvest_reader_open_at(&h, folder, (es_hook_place){2, ES_HOOK_MLP_OUT}, &err), &err);
    assert_int_equal(h.n_row, 4000);
    es_harvest_reader_close(&h);
    m = making(folder, test_path("of-stored"));
    m.tokens = 20000;
    snprintf(m.layers, sizeof m.layers, "2");
    snprintf(m.sites, sizeof m.sites, "mlp");
    snprintf(m.recipe, sizeof m.recipe, "topk");
    v = plan(s, &m);
    assert_true(v->plan_ok);
    es_view_free(v);
    es_studio_make(s, &m);
    v = WAIT(s, trained);
    assert_false(newest(v, "train")->failed);
    es_view_free(v);
    assert_int_equal(access(test_path("of-stored/sae_weights.safetensors"), F_OK), 0); /* one place: the folder itself */
    static const struct { const char *layers, *sites, *recipe, *says; } wrong[] = {
        {"", "mlp", "topk", "which layers"}, {"2;3", "mlp", "topk", "numbers with commas"}, {"2", "mlp,inside", "topk", "not 'inside'"}, {"2", "mlp", "best", "is no recipe"},
        {"3", "mlp", "topk", "layer-03-mlp_out"}, {"2", "mlp", "jumprelu", NULL},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        snprintf(m.layers, sizeof m.layers, "%s", wrong[i].layers);
        snprintf(m.sites, sizeof m.sites, "%s", wrong[i].sites);
        snprintf(m.recipe, sizeof m.recipe, "%s", wrong[i].recipe);
        v = plan(s, &m);
        assert_true(v->plan_ok == !wrong[i].says);
        if (wrong[i].says && !strstr(v->plan_text, wrong[i].says))
            fail_msg("says \"%s\", not \"%s\"", v->plan_text, wrong[i].says);
        es_view_free(v);
    }
    m = making(test_path("none.jsonl"), test_path("x"));
    v = plan(s, &m);
    assert_true(!v->plan_ok && strstr(v->plan_text, "there is no such file"));
    es_view_free(v);
    m = making(texts, test_path("x"));
    m.features = 1 << 20; /* memory and disk that it has not */
    m.k = 65536;
    v = plan(s, &m);
    assert_true(!v->plan_ok && strstr(v->plan_text, "memory"));
    es_view_free(v);
    m.tokens = UINT64_C(1) << 50;
    m.harvest_only = true;
    v = plan(s, &m);
    assert_true(!v->plan_ok && strstr(v->plan_text, "of disk are needed"));
    es_view_free(v);
    es_studio_close(s);
    free(texts);
    free(folder);
}

static void another_site_is_for_looking(void **state)
{
    (void)state;
    char *folder = strdup(test_path("of-mlp"));
    make_dictionary(folder, "blocks.1.hook_mlp_out");
    es_studio_options o = options(fresh());
    o.dictionary = folder;
    o.learn = true;
    es_studio *s = open_with(&o);
    es_view *v = WAIT(s, says);
    assert_non_null(strstr(v->status, "for looking"));
    assert_int_equal(v->learning, ES_LEARN_OFF);
    es_view_free(v);
    es_studio_say(s, "which way?");
    v = WAIT(s, two_turns);
    assert_true(v->n_active > 0); /* what the MLP's output says of the reply */
    es_view_free(v);
    es_studio_steer(s, 3, 10, "which way?");
    v = WAIT(s, says);
    assert_non_null(strstr(v->status, "for looking"));
    assert_int_equal(v->n_side, 0);
    es_view_free(v);
    es_studio_basis_add(s, 3, 1, 0);
    v = es_studio_view(s);
    assert_int_equal(v->n_basis, 0);
    es_view_free(v);
    es_studio_close(s);
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(trains_beside_the_chat), cmocka_unit_test(harvests_and_trains_on_it), cmocka_unit_test(another_site_is_for_looking),
    };
    return cmocka_run_group_tests_name("making", tests, set_up, NULL);
}
