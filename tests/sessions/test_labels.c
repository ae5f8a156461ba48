/* Labels of several annotators: kept apart, put together, merged, compared, tested, queued; and a workspace from before there were several. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sqlite3.h>

#include "dictionary.h"
#include "harvest.h"
#include "sessions.h"
#include "support.h"

#define D "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
#define OLD "22493dfc9fd7ac9bcfb16553a9e5702c1dcbc57aaab4e8a4de1b525a806050e9"

static es_error err;
static int next_path;

static const char *fresh(void) { return test_path("l%d.db", next_path++); }

static es_workspace *open_ok(const char *path)
{
    es_workspace *w = NULL;
    assert_ok(es_workspace_open(&w, path, &err), &err);
    return w;
}

static void shown(es_workspace *w, const char *d, int feature, const char *text, const char *tags, const char *author)
{
    es_label l;
    int rc = es_workspace_label_get(w, d, feature, &l, &err);
    if (!text) {
        assert_int_equal(rc, ES_ERR_MISSING);
        return;
    }
    assert_ok(rc, &err);
    assert_string_equal(l.text, text);
    assert_string_equal(l.tags, tags);
    assert_string_equal(l.author, author);
    es_label_free(&l);
}

static void undo(es_workspace *w, const char *d, int feature, int n)
{
    int f = -1, k = 0;
    assert_ok(es_workspace_label_step_back(w, d, &f, &k, &err), &err);
    assert_int_equal(f, feature);
    assert_int_equal(k, n);
}

static void redo(es_workspace *w, const char *d, int feature, int n)
{
    int f = -1, k = 0;
    assert_ok(es_workspace_label_redo(w, d, &f, &k, &err), &err);
    assert_int_equal(f, feature);
    assert_int_equal(k, n);
}

static void set(es_workspace *w, int feature, const char *text, const char *tags, const char *author)
{
    assert_ok(es_workspace_label_set(w, D, feature, text, tags, -1, author, &err), &err);
}

/* ---- a workspace of layout 3: one label a feature ------------------------------------------------------------------------------------- */

static void migrates(void **state)
{
    (void)state;
    const char *path = fresh();
    es_buf sql = {0};
    sqlite3 *db;
    char *message = NULL;
    test_read(&sql, test_golden("workspace-v3.sql"));
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    if (sqlite3_exec(db, sql.data, NULL, NULL, &message) != SQLITE_OK)
        fail_msg("%s", message);
    sqlite3_close(db);
    es_buf_free(&sql);

    es_workspace *w = open_ok(path);
    assert_ok(es_workspace_check(w, &err), &err);
    shown(w, OLD, 3, "perhaps, maybe", "tone hedge", "bob");
    shown(w, OLD, 5, "five, by ann", "s", "ann");
    shown(w, OLD, 6, "starter six", "", "starter");
    shown(w, OLD, 9, "", "later", "ann");
    shown(w, OLD, 21, "twenty-one", "n", "zoe");
    assert_int_equal(es_workspace_label_count(w, OLD), 5);
    int found[4], n = 0;
    assert_ok(es_workspace_search(w, OLD, "by:zoe", found, 4, &n, &err), &err);
    assert_int_equal(n, 2);
    /* what bob says now is kept beside what ann said */
    assert_ok(es_workspace_label_set(w, OLD, 5, "five, by bob", NULL, -1, "bob", &err), &err);
    es_label *l = NULL;
    assert_ok(es_workspace_label_opinions(w, OLD, 5, &l, &n, &err), &err);
    assert_int_equal(n, 2);
    assert_string_equal(l[0].text, "five, by bob");
    assert_string_equal(l[1].text, "five, by ann");
    es_labels_free(l, n);
    es_workspace_close(w);

    w = open_ok(path); /* undo goes on into the time before, and to its beginning */
    undo(w, OLD, 5, 1);
    shown(w, OLD, 5, "five, by ann", "s", "ann");
    undo(w, OLD, 20, 2);
    shown(w, OLD, 21, NULL, NULL, NULL);
    undo(w, OLD, 9, 1);
    shown(w, OLD, 9, NULL, NULL, NULL);
    undo(w, OLD, 5, 1);
    shown(w, OLD, 5, "starter five", "s", "starter");
    undo(w, OLD, 3, 1);
    shown(w, OLD, 3, "hedging", "tone hedge", "ann");
    undo(w, OLD, 3, 1);
    shown(w, OLD, 3, NULL, NULL, NULL);
    assert_error(es_workspace_label_step_back(w, OLD, &n, NULL, &err), &err, "left to undo");
    redo(w, OLD, 3, 1);
    redo(w, OLD, 3, 1);
    redo(w, OLD, 5, 1);
    redo(w, OLD, 9, 1);
    shown(w, OLD, 3, "perhaps, maybe", "tone hedge", "bob");
    shown(w, OLD, 5, "five, by ann", "s", "ann");
    shown(w, OLD, 6, "starter six", "", "starter");
    assert_ok(es_workspace_check(w, &err), &err);
    es_workspace_close(w);
}

/* ---- opinions --------------------------------------------------------------------------------------------------------------------------- */

static void opinions(void **state)
{
    (void)state;
    const char *path = fresh();
    es_workspace *w = open_ok(path);
    int found[8], n = 0;
    set(w, 1, "lists", "format", "starter");
    set(w, 1, "enumerations", NULL, "auto:llm");
    shown(w, D, 1, "enumerations", "format", "auto:llm"); /* a part nobody before said: the next one's */
    set(w, 1, "numbered lists", NULL, "ann");
    shown(w, D, 1, "numbered lists", "format", "ann");
    set(w, 1, "dashes", "dash", "bob");
    shown(w, D, 1, "dashes", "dash", "bob"); /* people: the newest text */
    assert_ok(es_workspace_label_set(w, D, 1, NULL, NULL, 3, "ann", &err), &err);
    shown(w, D, 1, "dashes", "dash", "bob"); /* a rating is no new text */
    assert_ok(es_workspace_search(w, D, "is:conflict", found, 8, &n, &err), &err);
    assert_int_equal(n, 1);
    assert_ok(es_workspace_label_prefer(w, "ann", &err), &err);
    shown(w, D, 1, "numbered lists", "dash", "ann");
    assert_ok(es_workspace_search(w, D, "numbered", found, 8, &n, &err), &err);
    assert_int_equal(n, 1);
    assert_ok(es_workspace_search(w, D, "dashes", found, 8, &n, &err), &err);
    assert_int_equal(n, 0); /* what is not shown is not found */
    assert_error(es_workspace_label_choose(w, D, 1, "carl", &err), &err, "carl said nothing of feature 1");
    assert_ok(es_workspace_label_choose(w, D, 1, "bob", &err), &err);
    shown(w, D, 1, "dashes", "dash", "bob");
    assert_ok(es_workspace_search(w, D, "is:conflict", found, 8, &n, &err), &err);
    assert_int_equal(n, 0);
    undo(w, D, 1, 1);
    shown(w, D, 1, "numbered lists", "dash", "ann");
    redo(w, D, 1, 1);
    shown(w, D, 1, "dashes", "dash", "bob");
    set(w, 1, "", NULL, "bob"); /* bob says there is none: that is not nothing */
    shown(w, D, 1, "", "dash", "bob");
    assert_error(es_workspace_label_redo(w, D, &n, NULL, &err), &err, "left to redo");
    undo(w, D, 1, 1);
    set(w, 2, "", "", "ann"); /* nothing where there is nothing */
    shown(w, D, 2, NULL, NULL, NULL);
    set(w, 3, "same", NULL, "ann");
    set(w, 3, " Same ", NULL, "bob");
    assert_ok(es_workspace_search(w, D, "is:conflict", found, 8, &n, &err), &err);
    assert_int_equal(n, 0);
    es_label_edit e = ES_LABEL_EDIT;
    e.note = "first line\nsecond \"line\"";
    e.confidence = 70;
    int f = 3;
    assert_ok(es_workspace_label_edit(w, D, &f, 1, &e, "ann", NULL, &err), &err);
    es_workspace_close(w);
    w = open_ok(path);
    es_label l;
    assert_ok(es_workspace_label_get(w, D, 3, &l, &err), &err);
    assert_string_equal(l.note, "first line\nsecond \"line\"");
    assert_int_equal(l.confidence, 70); /* ann is preferred */
    assert_int_equal(l.opinions, 2);
    es_label_free(&l);
    e.confidence = 101;
    assert_error(es_workspace_label_edit(w, D, &f, 1, &e, "ann", NULL, &err), &err, "confidence");
    char name[80];
    memset(name, 'x', sizeof name);
    name[79] = 0;
    e.confidence = -1;
    assert_error(es_workspace_label_edit(w, D, &f, 1, &e, name, NULL, &err), &err, "author");
    es_buf tags = {0};
    assert_ok(es_workspace_label_tags(w, D, &tags, &err), &err);
    assert_string_equal(tags.data, "dash");
    assert_int_equal(tags.len, 5);
    es_buf_free(&tags);
    assert_ok(es_workspace_check(w, &err), &err);
    es_workspace_close(w);
}

static void batches(void **state)
{
    (void)state;
    enum { N = 300 };
    es_workspace *w = open_ok(fresh());
    int list[N], changed = 0, n = 0, f = 0;
    for (int i = 0; i < N; i++)
        list[i] = 2 * i;
    set(w, 4, "four", "old keep", "ann");
    es_label_edit e = ES_LABEL_EDIT;
    e.add_tags = "new  keep";
    e.remove_tags = "old none";
    assert_ok(es_workspace_label_edit(w, D, list, N, &e, "ann", &changed, &err), &err);
    assert_int_equal(changed, N);
    shown(w, D, 4, "four", "keep new", "ann");
    shown(w, D, 598, "", "new keep", "ann");
    assert_ok(es_workspace_label_edit(w, D, list, N, &e, "ann", &changed, &err), &err);
    assert_int_equal(changed, 0);
    assert_ok(es_workspace_label_edit(w, D, list, N, &e, "bob", &changed, &err), &err); /* it is there, whoever said it */
    assert_int_equal(changed, 0);
    list[N - 1] = -1; /* all or nothing */
    e.add_tags = "more";
    assert_error(es_workspace_label_edit(w, D, list, N, &e, "ann", &changed, &err), &err, "no feature -1");
    shown(w, D, 0, "", "new keep", "ann");
    undo(w, D, 0, N); /* one step */
    shown(w, D, 4, "four", "old keep", "ann");
    shown(w, D, 598, NULL, NULL, NULL);
    redo(w, D, 0, N);
    shown(w, D, 598, "", "new keep", "ann");
    undo(w, D, 0, N);
    undo(w, D, 4, 1);
    assert_int_equal(es_workspace_label_redo(w, D, &f, &n, &err), ES_OK);
    set(w, 7, "seven", NULL, "ann"); /* a new change: what was undone is history */
    assert_int_equal(es_workspace_label_redo(w, D, &f, &n, &err), ES_ERR_MISSING);
    es_workspace_close(w);
}

/* ---- merging ------------------------------------------------------------------------------------------------------------------------------ */

static void merging(void **state)
{
    (void)state;
    const char *path = fresh(), *ann = test_path("ann.jsonl"), *bob = test_path("bob.jsonl"), *bad = test_path("bad.jsonl");
    static const char a[] = "{\"feature\":1,\"text\":\"lists\",\"tags\":[\"t\"],\"author\":\"ann\",\"time\":\"2026-01-02T00:00:00.000Z\"}\n"
                            "{\"feature\":2,\"text\":\"code\",\"author\":\"ann\",\"time\":\"2026-01-02T00:00:00.000Z\"}\n"
                            "{\"feature\":3,\"text\":\"\",\"tags\":[\"dull\"],\"author\":\"ann\",\"note\":\"n\",\"confidence\":40}\n";
    static const char b[] = "{\"feature\":1,\"text\":\"enumerations\",\"author\":\"bob\",\"dictionary\":\"" D "\"}\n{\"feature\":2,\"text\":\" CODE\",\"author\":\"bob\"}\n";
    test_write(ann, a, sizeof a - 1);
    test_write(bob, b, sizeof b - 1);
    const char *both[] = {ann, bob};
    es_workspace *w = open_ok(path);
    es_merge m;
    json_t *conflicts = NULL;
    set(w, 1, "mine", NULL, "me");
    assert_ok(es_workspace_label_merge(w, D, 100, both, 2, "x", &m, &err), &err);
    assert_int_equal(m.read, 5);
    assert_int_equal(m.added, 5);
    assert_int_equal(m.changed + m.same + m.older, 0);
    assert_ok(es_workspace_label_conflicts(w, D, &conflicts, &err), &err);
    assert_int_equal(json_array_size(conflicts), 1); /* 2 is the same but for case and spaces */
    json_t *one = json_array_get(conflicts, 0);
    assert_int_equal(json_integer_value(json_object_get(one, "feature")), 1);
    assert_int_equal(json_array_size(json_object_get(one, "labels")), 3);
    json_decref(conflicts);
    assert_ok(es_workspace_label_choose(w, D, 1, "ann", &err), &err);
    shown(w, D, 1, "lists", "t", "ann");
    assert_ok(es_workspace_label_conflicts(w, D, &conflicts, &err), &err);
    assert_int_equal(json_array_size(conflicts), 0);
    json_decref(conflicts);

    static const char older[] = "{\"feature\":1,\"text\":\"old word\",\"author\":\"ann\",\"time\":\"2025-01-02T00:00:00.000Z\"}\n"
                                "{\"feature\":2,\"text\":\"newer\",\"author\":\"ann\",\"time\":\"2027-01-02T00:00:00.000Z\"}\n"
                                "{\"feature\":2,\"text\":\"undated\",\"author\":\"ann\",\"time\":\"tomorrow\"}\n";
    test_write(ann, older, sizeof older - 1);
    assert_ok(es_workspace_label_merge(w, D, 100, both, 1, "x", &m, &err), &err);
    assert_int_equal(m.older, 2);
    assert_int_equal(m.changed, 1);
    es_label *l = NULL;
    int n = 0;
    assert_ok(es_workspace_label_opinions(w, D, 2, &l, &n, &err), &err);
    for (int i = 0; i < n; i++)
        assert_string_equal(l[i].text, strcmp(l[i].author, "ann") ? " CODE" : "newer");
    es_labels_free(l, n);
    undo(w, D, 2, 1);
    undo(w, D, 1, 1); /* the choice */
    undo(w, D, 1, 5); /* both files */
    shown(w, D, 1, "mine", "", "me");
    shown(w, D, 3, NULL, NULL, NULL);

    static const char *const wrong[] = {
        "{\"feature\":1,\"text\":\"x\",\"dictionary\":\"eeee\"}", "{\"feature\":100,\"text\":\"x\"}", "{\"feature\":1}", "[]", "{\"feature\":1,\"text\":\"x\",\"note\":1}",
        "{\"feature\":1,\"text\":\"x\",\"confidence\":101}", "{\"feature\":1,\"text\":\"x\",\"confidence\":-1}", "{\"feature\":1,\"text\":\"x\",\"note\":\"a\\u0000b\"}",
        "{\"feature\":1,\"text\":\"x\",\"author\":\"0123456789012345678901234567890123456789012345678901234567890123\"}",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) { /* all or nothing, and the line is named */
        es_buf t = {0};
        es_buf_printf(&t, "{\"feature\":5,\"text\":\"five\"}\n%s\n", wrong[i]);
        test_write(bad, t.data, t.len);
        es_buf_free(&t);
        const char *files[] = {bob, bad};
        assert_error(es_workspace_label_merge(w, D, 100, files, 2, "x", &m, &err), &err, "bad.jsonl:2");
        assert_int_equal(es_workspace_label_count(w, D), 1);
    }
    /* what one exports, another merges to the same */
    json_t *out = NULL;
    assert_ok(es_workspace_label_merge(w, D, 100, both + 1, 1, "x", &m, &err), &err);
    assert_ok(es_workspace_label_export(w, D, &out, &err), &err);
    es_buf lines = {0};
    for (size_t i = 0; i < json_array_size(out); i++) {
        char *s = json_dumps(json_array_get(out, i), JSON_COMPACT);
        es_buf_printf(&lines, "%s\n", s);
        free(s);
    }
    test_write(ann, lines.data, lines.len);
    es_workspace *second = open_ok(fresh());
    json_t *again = NULL;
    assert_ok(es_workspace_label_merge(second, D, 100, both, 1, "x", &m, &err), &err);
    assert_ok(es_workspace_label_export(second, D, &again, &err), &err);
    assert_int_equal(json_array_size(again), json_array_size(out));
    assert_int_equal(m.read, 3);
    es_workspace_close(second);
    json_decref(out);
    json_decref(again);
    es_buf_free(&lines);
    es_workspace_close(w);
}

/* ---- agreement ------------------------------------------------------------------------------------------------------------------------------ */

static int *ints(json_t *list)
{
    int *x = malloc((json_array_size(list) + 1) * sizeof *x);
    for (size_t i = 0; i < json_array_size(list); i++)
        x[i] = (int)json_integer_value(json_array_get(list, i));
    return x;
}

static void kappa_golden(void **state)
{
    (void)state;
    json_t *cases = NULL;
    es_kappa k;
    assert_ok(es_json_file(&cases, test_golden("kappa.json"), &err), &err);
    assert_true(json_array_size(cases) >= 5);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        json_t *c = json_array_get(cases, i);
        int n = (int)json_array_size(json_object_get(c, "a")), *a = ints(json_object_get(c, "a")), *b = ints(json_object_get(c, "b"));
        es_kappa_of(&k, a, b, n);
        assert_int_equal(k.n, n);
        assert_true(fabs(k.observed - json_real_value(json_object_get(c, "observed"))) < 1e-12);
        assert_true(fabs(k.expected - json_real_value(json_object_get(c, "expected"))) < 1e-12);
        assert_true(fabs(k.kappa - json_real_value(json_object_get(c, "kappa"))) < 1e-12);
        assert_true(fabs(k.error - json_real_value(json_object_get(c, "error"))) < 1e-12);
        assert_true(fabs(k.hi - k.kappa - 1.959963984540054 * k.error) < 1e-12);
        free(a);
        free(b);
    }
    json_decref(cases);
    int a[50], b[50]; /* 20 both yes, 5 only a, 10 only b, 15 neither: by hand 0.7 - 0.5 of 0.5 */
    for (int i = 0; i < 50; i++) {
        a[i] = i < 25;
        b[i] = i < 20 || (i >= 25 && i < 35);
    }
    es_kappa_of(&k, a, b, 50);
    assert_true(fabs(k.kappa - 0.4) < 1e-12);
    es_kappa_of(&k, a, a, 50);
    assert_true(fabs(k.kappa - 1) < 1e-12 && k.error < 1e-6);
    es_kappa_of(&k, a, b, 20); /* both always say yes */
    assert_true(isnan(k.kappa) && k.observed == 1);
    es_kappa_of(&k, a, b, 0);
    assert_true(isnan(k.kappa) && isnan(k.observed));
}

static void agreement(void **state)
{
    (void)state;
    es_workspace *w = open_ok(fresh());
    es_agreement *a = NULL;
    int n = 7;
    assert_ok(es_workspace_agreement(w, D, &a, &n, &err), &err);
    assert_int_equal(n, 0);
    /* Tags x and y over four features: x by ann on 1 2 3, by bob on 1 2; y by ann on 3, by bob on 3 4; 4 has z by ann. Three tags, twelve units: both 1x 2x
     * 3y, only ann 3x 4z, only bob 4y, neither six. Observed 9/12, expected (5*4 + 7*8)/144. */
    set(w, 1, "one", "x", "ann");
    set(w, 1, "One ", "x", "bob");
    set(w, 2, "two", "x", "ann");
    set(w, 2, "deux", "x", "bob");
    set(w, 3, "three", "x y", "ann");
    set(w, 3, NULL, "y", "bob");
    set(w, 4, NULL, "z", "ann");
    set(w, 4, "four", "y", "bob");
    set(w, 5, "five", NULL, "ann"); /* bob says nothing of it */
    set(w, 1, "uno", "x", "starter");
    assert_ok(es_workspace_agreement(w, D, &a, &n, &err), &err);
    assert_int_equal(n, 3);
    assert_string_equal(a[0].a, "ann");
    assert_string_equal(a[0].b, "bob"); /* people first */
    assert_int_equal(a[0].tagged, 4);
    assert_int_equal(a[0].labelled, 2);
    assert_int_equal(a[0].same, 1);
    assert_int_equal(a[0].tags.n, 12);
    double expected = (5 * 4 + 7 * 8) / 144.0;
    assert_true(fabs(a[0].tags.observed - 9 / 12.0) < 1e-12);
    assert_true(fabs(a[0].tags.kappa - (9 / 12.0 - expected) / (1 - expected)) < 1e-12);
    assert_true(a[0].tags.lo <= a[0].tags.kappa && a[0].tags.kappa <= a[0].tags.hi && isnan(a[0].tags.error));
    assert_int_equal(a[0].n_tag, 3);
    for (int i = 0; i < 3; i++)
        if (!strcmp(a[0].tag[i].tag, "x")) /* 2 both, 1 only ann, 1 neither: observed 3/4, expected (3*2 + 1*2)/16 */
            assert_true(fabs(a[0].tag[i].kappa.kappa - 0.5) < 1e-12);
    es_agreements_free(a, n);
    es_workspace_close(w);
}

/* ---- scores ------------------------------------------------------------------------------------------------------------------------------------ */

static void scores(void **state)
{
    (void)state;
    const char *path = fresh();
    es_workspace *w = open_ok(path);
    es_label_score s = {.kind = "blind", .judge = "ann", .hit = 5, .rejection = 4, .alarm = 1}, got;
    es_label_score_of(&s);
    assert_int_equal(s.n, 10);
    assert_true(fabs(s.value - 0.9) < 1e-12);
    /* Wilson by hand: 5 of 5 is 0.56552 to 1, 4 of 5 is 0.37553 to 0.96379 */
    assert_true(fabs(s.lo - (0.9 - hypot(1 - 0.56552, 0.8 - 0.37553) / 2)) < 2e-5);
    assert_true(fabs(s.hi - (0.9 + (0.96379 - 0.8) / 2)) < 2e-5);
    assert_int_equal(es_workspace_score_get(w, D, 1, "lists", &got, &err), ES_ERR_MISSING);
    set(w, 1, "lists", NULL, "ann");
    es_label_score judge = {.kind = "blind", .judge = "auto:tiny", .hit = 1, .miss = 4, .rejection = 5};
    es_label_score_of(&judge);
    assert_ok(es_workspace_score_add(w, D, 1, "lists", &judge, &err), &err);
    es_label l;
    assert_ok(es_workspace_label_get(w, D, 1, &l, &err), &err);
    assert_true(fabs(l.score - 0.6) < 1e-12);
    es_label_free(&l);
    assert_ok(es_workspace_score_add(w, D, 1, "lists", &s, &err), &err); /* a person's counts, not the program's */
    assert_ok(es_workspace_score_add(w, D, 1, "lists", &s, &err), &err);
    assert_ok(es_workspace_label_get(w, D, 1, &l, &err), &err);
    assert_true(fabs(l.score - 0.9) < 1e-12);
    assert_int_equal(l.tested, 20);
    es_label_free(&l);
    int found[4], n = 0;
    assert_ok(es_workspace_search(w, D, "score>0.8", found, 4, &n, &err), &err);
    assert_int_equal(n, 1);
    assert_ok(es_workspace_search(w, D, "score<0.8", found, 4, &n, &err), &err);
    assert_int_equal(n, 0);
    set(w, 1, "numbered lists", NULL, "ann"); /* another text has not been tested */
    assert_ok(es_workspace_search(w, D, "score>0", found, 4, &n, &err), &err);
    assert_int_equal(n, 0);
    undo(w, D, 1, 1);
    es_workspace_close(w);
    w = open_ok(path);
    assert_ok(es_workspace_search(w, D, "score>0.8", found, 4, &n, &err), &err);
    assert_int_equal(n, 1);
    s.value = NAN;
    assert_error(es_workspace_score_add(w, D, 1, "lists", &s, &err), &err, "score");
    es_label_score other = {.kind = "detection", .judge = "auto:x", .value = 0.7, .lo = 0.6, .hi = 0.8, .n = 100};
    assert_ok(es_workspace_score_add(w, D, 2, "else", &other, &err), &err);
    assert_ok(es_workspace_score_get(w, D, 2, "else", &got, &err), &err);
    assert_string_equal(got.kind, "detection");
    assert_true(got.value == 0.7 && got.n == 100);
    es_workspace_close(w);
}

/* ---- blind test and queue, on a dictionary with an atlas ------------------------------------------------------------------------------------------ */

enum { F = 96, LAYER = 1 };
static es_model *model;
static es_dictionary *dictionary;
static es_atlas *atlas;

static int set_up(void **state)
{
    (void)state;
    static const char *const word[] = {"the", "of", "and", "list", "sorry", "code", "king", "river", "number", "please", "because", "letter"};
    const char *text = test_path("text.jsonl"), *folder = test_path("dictionary"), *harvest = test_path("harvest"), *path = test_path("tiny.gguf");
    char file[1100], hash[65];
    es_rng r;
    es_rng_seed(&r, 3);
    es_buf b = {0};
    for (int i = 0; i < 80; i++) {
        es_buf_str(&b, "{\"text\":\"");
        for (int k = 0; k < 30; k++)
            es_buf_printf(&b, "%s ", word[es_rng_below(&r, 12)]);
        es_buf_str(&b, "\"}\n");
    }
    test_write(text, b.data, b.len);
    es_buf_free(&b);
    make_tiny_gguf(path, NULL);
    assert_ok(es_model_open(&model, path, &err), &err);
    assert_ok(es_model_hash(model, hash, &err), &err);
    int d = es_model_get_info(model)->d_model, layer = LAYER;
    es_harvest_options ho = es_harvest_default();
    ho.layer = &layer;
    ho.n_layer = 1;
    ho.skip_first = true;
    assert_ok(es_harvest(model, &text, 1, harvest, &ho, NULL, &err), &err);
    float *w = calloc((size_t)F * (size_t)d, sizeof *w), *zero = calloc(F + (size_t)d, sizeof *zero);
    for (int f = 0; f < F; f++) {
        double norm = 0;
        for (int i = 0; i < d; i++) {
            w[f * d + i] = es_rng_normal(&r);
            norm += (double)w[f * d + i] * (double)w[f * d + i];
        }
        for (int i = 0; i < d; i++)
            w[f * d + i] /= (float)sqrt(norm);
    }
    json_t *meta = json_pack("{s:s, s:s, s:s}", "model_name", "Tiny", "hook_name", "blocks.1.hook_resid_post", "espalier_model_sha256", hash);
    assert_ok(es_dictionary_save(folder, d, F, w, w, zero, zero, 2.2f, false, meta, &err), &err);
    json_decref(meta);
    free(w);
    free(zero);
    assert_ok(es_dictionary_open(&dictionary, folder, &err), &err);
    snprintf(file, sizeof file, "%s/atlas.esa", folder);
    es_atlas_options ao = es_atlas_default();
    assert_ok(es_atlas_build(model, dictionary, harvest, file, &ao, NULL, &err), &err);
    assert_ok(es_atlas_open(&atlas, file, &err), &err);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    es_atlas_free(atlas);
    es_dictionary_free(dictionary);
    es_model_free(model);
    return 0;
}

static int make(es_blind *b, int feature, uint64_t seed)
{
    es_blind_pool *p = NULL;
    int rc = es_blind_gather(&p, atlas, dictionary, feature, seed, &err);
    if (!rc)
        rc = es_blind_make(b, p, model, dictionary, 2, NULL, &err);
    es_blind_pool_free(p);
    return rc;
}

/* The largest activation of a feature on a window, by the exact forward pass of training. */
static float largest(const es_blind_window *w, int feature)
{
    int d = es_model_get_info(model)->d_model, n = w->n + 1, start[2] = {0, n};
    int32_t id[ES_BLIND_TOKENS + 1], first = es_token_bos(model) >= 0 ? es_token_bos(model) : es_token_eos(model);
    id[0] = first;
    memcpy(id + 1, w->id, (size_t)w->n * sizeof *id);
    es_trainer *t = NULL;
    es_batch b = {.ids = id, .n = n, .start = start, .n_seq = 1};
    float *h = calloc((size_t)n * (size_t)d, sizeof *h), most = 0;
    es_sparse acts = {0};
    es_pool *pool = NULL;
    assert_true(first >= 0);
    assert_ok(es_pool_open(&pool, 1, &err), &err);
    assert_ok(es_trainer_open(&t, model, &(es_trainer_options){.max_tokens = n, .threads = 1}, &err), &err);
    assert_ok(es_trainer_residual(t, &b, LAYER, h, NULL, &err), &err);
    assert_ok(es_dictionary_encode(dictionary, pool, h, n, &acts, &err), &err);
    for (int r = 1; r < n; r++)
        for (size_t i = acts.start[r]; i < acts.start[r + 1]; i++)
            if (acts.index[i] == feature && acts.value[i] > most)
                most = acts.value[i];
    es_sparse_free(&acts);
    es_trainer_free(t);
    es_pool_free(pool);
    free(h);
    return most;
}

static void blind(void **state)
{
    (void)state;
    int tests = 0, near = 0, most_fifths = 0;
    for (int f = 0; f < F && tests < 12; f++) {
        es_blind b, again, other;
        es_feature_card c;
        if (make(&b, f, 5)) {
            assert_int_equal(err.code, ES_ERR_MISSING);
            continue;
        }
        if (b.n < ES_BLIND)
            continue;
        tests++;
        assert_ok(make(&again, f, 5), &err);
        assert_memory_equal(&b, &again, sizeof b);
        assert_ok(make(&other, f, 6), &err);
        assert_int_not_equal(memcmp(&b, &other, sizeof b), 0);
        assert_ok(es_atlas_card(atlas, f, &c, &err), &err);
        int active = 0, fifths = 0;
        bool in[5] = {0};
        for (int i = 0; i < b.n; i++) {
            const es_blind_window *w = &b.window[i];
            active += w->active;
            near += w->near && !w->active;
            if (w->active) {
                assert_true(w->activation >= 0.1f * c.max && w->activation <= c.max && w->quantile > 0 && w->quantile <= 1);
                in[w->activation >= c.max ? 4 : (int)(5 * (w->activation / c.max))] = true;
            }
            if (w->source != f) { /* what the test says of a window that is another feature's */
                float x = largest(w, f);
                assert_false(w->active);
                assert_true(x < 2.3f); /* the threshold, and rounding */
            }
            for (int k = 0; k < i; k++)
                assert_true(b.window[k].n != w->n || memcmp(b.window[k].id, w->id, (size_t)w->n * sizeof *w->id));
        }
        for (int i = 0; i < 5; i++)
            fifths += in[i];
        most_fifths = fifths > most_fifths ? fifths : most_fifths;
        assert_int_equal(active, b.n_active);
        assert_int_equal(active, 5);
        es_label_score s;
        unsigned truth = 0;
        for (int i = 0; i < b.n; i++)
            truth |= b.window[i].active ? 1u << i : 0;
        es_blind_score(&b, truth, &s);
        assert_true(s.value == 1 && s.hit == 5 && s.rejection == 5 && s.n == 10);
        es_blind_score(&b, ~truth, &s);
        assert_true(s.value == 0 && s.miss == 5 && s.alarm == 5);
        es_blind_score(&b, 0, &s);
        assert_true(s.value == 0.5);
    }
    assert_true(tests >= 5);
    assert_true(near > 0);
    assert_true(most_fifths > 1);
    es_blind b;
    assert_error(make(&b, F, 1), &err, "no feature");
}

static void judge(void **state)
{
    (void)state;
    es_blind b;
    int f = 0;
    while (f < F && (make(&b, f, 1) || b.n < ES_BLIND))
        f++;
    assert_true(f < F);
    unsigned answer = 0, again = 0;
    double odds[ES_BLIND], mean = 0;
    assert_ok(es_blind_judge(&b, model, "the word list", 2, &answer, odds, NULL, &err), &err);
    assert_ok(es_blind_judge(&b, model, "the word list", 2, &again, NULL, NULL, &err), &err);
    assert_int_equal(answer, again);
    assert_true(answer != 0 && answer < 1u << b.n);
    for (int i = 0; i < b.n; i++) {
        assert_true(isfinite(odds[i]) && (odds[i] > 0) == (answer >> i & 1));
        mean += odds[i];
    }
    assert_true(fabs(mean) < 1e-9);
    bool stop = true;
    assert_int_equal(es_blind_judge(&b, model, "x", 2, &answer, NULL, &stop, &err), ES_ERR_CANCELLED);
}

static void queue(void **state)
{
    (void)state;
    es_workspace *w = open_ok(fresh());
    const char *hash = es_dictionary_get_info(dictionary)->hash;
    es_next next[F], again[F];
    int n = 0, m = 0;
    assert_int_equal(es_workspace_next(w, hash, NULL, next, F, &n, &err), ES_ERR_MISSING);
    assert_ok(es_workspace_use_dictionary(w, dictionary, NULL, model, NULL, NULL, &err), &err);
    assert_error(es_workspace_next(w, hash, NULL, next, F, &n, &err), &err, "atlas");
    assert_ok(es_workspace_use_dictionary(w, dictionary, atlas, model, NULL, NULL, &err), &err);
    assert_ok(es_workspace_next(w, hash, NULL, next, F, &n, &err), &err);
    assert_true(n > 10);
    const float *density = es_atlas_density(atlas);
    double effect[F];
    for (int f = 0; f < F; f++) { /* the formula of labels.h, the long way */
        es_feature_card c;
        double up = 0, down = 0;
        assert_ok(es_atlas_card(atlas, f, &c, &err), &err);
        for (int i = 0; i < 10; i++) {
            up += (double)c.promoted_logit[i] / 10;
            down += (double)c.suppressed_logit[i] / 10;
        }
        effect[f] = (double)c.mean * (up - down) / 2;
    }
    for (int i = 0; i < n; i++) {
        int f = next[i].feature, below = 0;
        for (int k = 0; k < F; k++)
            below += effect[k] < effect[f];
        double p = (double)density[f], use = p > 0.1 ? 0.1 / p : log(1 + p / 1e-5) / log(1 + 0.1 / 1e-5);
        assert_true(fabs(next[i].effect - below / (F - 1.0)) < 1e-9);
        assert_true(fabs(next[i].use - use) < 1e-9);
        assert_true(next[i].doubt == 1 && fabs(next[i].value - next[i].effect * next[i].use) < 1e-12);
        assert_true(!i || next[i].value <= next[i - 1].value);
    }
    /* labelled by a person, skipped: gone; by a program: less, by how sure it is */
    assert_ok(es_workspace_label_set(w, hash, next[0].feature, "a", NULL, -1, "ann", &err), &err);
    assert_ok(es_workspace_label_skip(w, hash, next[1].feature, true, "ann", &err), &err);
    assert_ok(es_workspace_label_set(w, hash, next[2].feature, "b", NULL, -1, "auto:x", &err), &err);
    assert_ok(es_workspace_label_set(w, hash, next[3].feature, "c", NULL, -1, "starter", &err), &err);
    es_label_score s = {.kind = "blind", .judge = "ann", .hit = 5, .rejection = 4, .alarm = 1};
    es_label_score_of(&s);
    assert_ok(es_workspace_score_add(w, hash, next[3].feature, "c", &s, &err), &err);
    assert_ok(es_workspace_next(w, hash, NULL, again, F, &m, &err), &err);
    assert_int_equal(m, n - 2);
    for (int i = 0; i < m; i++) {
        assert_true(again[i].feature != next[0].feature && again[i].feature != next[1].feature);
        if (again[i].feature == next[2].feature)
            assert_true(fabs(again[i].doubt - 0.8812908992) < 1e-9); /* entropy of 0.7 */
        if (again[i].feature == next[3].feature)
            assert_true(fabs(again[i].doubt - 0.4689955936) < 1e-9); /* of 0.9 */
    }
    /* what the experiences ask for comes first */
    int asked[2] = {next[n - 1].feature, next[n - 2].feature};
    float score[2] = {2, -1};
    assert_ok(es_workspace_next(w, hash, &(es_next_options){asked, score, 2}, again, F, &m, &err), &err);
    for (int i = 0; i < m; i++) {
        double want = again[i].feature == asked[0] ? 1 : again[i].feature == asked[1] ? 0.75 : -1;
        assert_true(want < 0 ? again[i].effect <= 0.5 : fabs(again[i].effect - want) < 1e-9);
    }
    assert_ok(es_workspace_next(w, hash, NULL, again, 3, &m, &err), &err);
    assert_int_equal(m, 3);
    es_workspace_close(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(migrates), cmocka_unit_test(opinions), cmocka_unit_test(batches), cmocka_unit_test(merging), cmocka_unit_test(kappa_golden),
        cmocka_unit_test(agreement), cmocka_unit_test(scores), cmocka_unit_test(blind), cmocka_unit_test(judge), cmocka_unit_test(queue),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
