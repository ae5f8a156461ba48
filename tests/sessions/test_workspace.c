/* The workspace: every call, undo across restarts, and what happens to it when the world is unkind. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sqlite3.h>

#include "sessions.h"
#include "support.h"

#define D "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"

static es_error err;
static int next_path;

static const char *fresh(void) { return test_path("w%d.db", next_path++); }

static es_workspace *open_ok(const char *path)
{
    es_workspace *w = NULL;
    assert_ok(es_workspace_open(&w, path, &err), &err);
    return w;
}

/* Runs SQL on the file as a stranger would. */
static void stranger(const char *path, const char *sql)
{
    sqlite3 *db;
    char *message = NULL;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    if (sqlite3_exec(db, sql, NULL, NULL, &message) != SQLITE_OK)
        fail_msg("%s", message);
    sqlite3_close(db);
}

static void expect_label(es_workspace *w, int feature, const char *text, const char *tags, int rating)
{
    es_label l;
    assert_ok(es_workspace_label_get(w, D, feature, &l, &err), &err);
    assert_string_equal(l.text, text);
    assert_string_equal(l.tags, tags);
    assert_int_equal(l.rating, rating);
    assert_int_equal(l.feature, feature);
    es_label_free(&l);
}

static void labels_and_undo(void **state)
{
    (void)state;
    const char *path = fresh();
    es_workspace *w = open_ok(path);
    es_label l;
    int f;
    assert_int_equal(es_workspace_label_get(w, D, 3, &l, &err), ES_ERR_MISSING);
    assert_int_equal(es_workspace_label_undo(w, D, &f, &err), ES_ERR_MISSING);
    assert_ok(es_workspace_label_set(w, D, 3, "hedging", " tone  hedge tone", 4, "ann", &err), &err);
    expect_label(w, 3, "hedging", "tone hedge", 4);
    assert_ok(es_workspace_label_get(w, D, 3, &l, &err), &err);
    assert_string_equal(l.author, "ann");
    assert_int_equal(strlen(l.time), 24);
    assert_int_equal(l.time[23], 'Z');
    es_label_free(&l);
    assert_ok(es_workspace_label_set(w, D, 3, "perhaps, maybe", NULL, -1, "bob", &err), &err);
    expect_label(w, 3, "perhaps, maybe", "tone hedge", 4);
    assert_ok(es_workspace_label_set(w, D, 3, "perhaps, maybe", NULL, -1, "bob", &err), &err); /* no change: nothing to undo */
    assert_ok(es_workspace_label_skip(w, D, 9, true, "ann", &err), &err);
    assert_int_equal(es_workspace_label_count(w, D), 1);
    es_workspace_close(w);

    w = open_ok(path); /* undo goes on after a restart, to the very beginning */
    assert_ok(es_workspace_label_undo(w, D, &f, &err), &err);
    assert_int_equal(f, 9);
    assert_int_equal(es_workspace_label_get(w, D, 9, &l, &err), ES_ERR_MISSING);
    assert_ok(es_workspace_label_undo(w, D, &f, &err), &err);
    assert_int_equal(f, 3);
    expect_label(w, 3, "hedging", "tone hedge", 4);
    assert_ok(es_workspace_label_set(w, D, 3, "after an undo", NULL, -1, "bob", &err), &err);
    assert_ok(es_workspace_label_undo(w, D, &f, &err), &err);
    expect_label(w, 3, "hedging", "tone hedge", 4);
    assert_ok(es_workspace_label_undo(w, D, &f, &err), &err);
    assert_int_equal(es_workspace_label_get(w, D, 3, &l, &err), ES_ERR_MISSING);
    assert_error(es_workspace_label_undo(w, D, &f, &err), &err, "left to undo");

    assert_error(es_workspace_label_set(w, D, -1, "x", NULL, 0, "a", &err), &err, "no feature -1");
    assert_error(es_workspace_label_set(w, D, 1, "bad \xff", NULL, 0, "a", &err), &err, "UTF-8");
    assert_error(es_workspace_label_set(w, D, 1, "x", NULL, 6, "a", &err), &err, "rating");
    assert_ok(es_workspace_check(w, &err), &err);
    es_workspace_close(w);
}

static void import_export(void **state)
{
    (void)state;
    es_workspace *w = open_ok(fresh());
    const char *good = test_path("good.jsonl"), *bad = test_path("bad.jsonl");
    const char text[] = "{\"feature\":1,\"text\":\"lists\",\"tags\":[\"format\",\"lists\"],\"author\":\"zoe\"}\n\n{\"feature\":2,\"text\":\"sorry\",\"rating\":5}\n";
    test_write(good, text, sizeof text - 1);
    int n = 0, f;
    assert_ok(es_workspace_label_import(w, D, 100, good, "me", &n, &err), &err);
    assert_int_equal(n, 2);
    expect_label(w, 1, "lists", "format lists", 0);
    expect_label(w, 2, "sorry", "", 5);
    json_t *out = NULL;
    assert_ok(es_workspace_label_export(w, D, &out, &err), &err);
    assert_int_equal(json_array_size(out), 2);
    json_t *first = json_array_get(out, 0);
    assert_string_equal(json_string_value(json_object_get(first, "text")), "lists");
    assert_string_equal(json_string_value(json_object_get(first, "author")), "zoe");
    assert_int_equal(json_array_size(json_object_get(first, "tags")), 2);
    json_decref(out);
    assert_ok(es_workspace_label_undo(w, D, &f, &err), &err); /* one import is one step */
    assert_int_equal(es_workspace_label_count(w, D), 0);

    static const char *const lines[] = {
        "{\"feature\":100,\"text\":\"x\"}", "{\"feature\":-1,\"text\":\"x\"}", "{\"feature\":1}", "{\"feature\":\"1\",\"text\":\"x\"}", "[1]", "{\"feature\":1,",
        "{\"feature\":1,\"text\":\"x\",\"tags\":\"a\"}", "{\"feature\":1,\"text\":\"x\",\"tags\":[1]}", "{\"feature\":1,\"text\":\"x\",\"rating\":9}",
        "{\"feature\":1,\"text\":\"a\\u0000b\"}", "{\"feature\":4294967297,\"text\":\"x\"}",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) { /* all or nothing, and the line is named */
        es_buf b = {0};
        es_buf_printf(&b, "{\"feature\":5,\"text\":\"five\"}\n%s\n", lines[i]);
        test_write(bad, b.data, b.len);
        es_buf_free(&b);
        assert_error(es_workspace_label_import(w, D, 100, bad, "me", &n, &err), &err, "bad.jsonl:2");
        assert_int_equal(n, 0);
        assert_int_equal(es_workspace_label_count(w, D), 0);
    }
    assert_error(es_workspace_label_import(w, D, 100, test_path("absent.jsonl"), "me", &n, &err), &err, "absent.jsonl");
    char *all[10];
    assert_ok(es_workspace_label_set(w, D, 7, "seven", "", 0, "me", &err), &err);
    assert_ok(es_workspace_labels_all(w, D, 10, all, &err), &err);
    for (int i = 0; i < 10; i++) {
        assert_true((all[i] != NULL) == (i == 7));
        free(all[i]);
    }
    es_workspace_close(w);
}

static void expect_found(es_workspace *w, const char *query, int n, const int *want)
{
    int found[16], k = -1;
    assert_ok(es_workspace_search(w, D, query, found, 16, &k, &err), &err);
    if (k != n)
        fail_msg("\"%s\" found %d, not %d", query, k, n);
    for (int i = 0; i < n; i++)
        if (found[i] != want[i])
            fail_msg("\"%s\": result %d is %d, not %d", query, i, found[i], want[i]);
}
#define FOUND(w, query, ...) expect_found(w, query, (int)(sizeof(int[]){__VA_ARGS__} / sizeof(int)), (int[]){__VA_ARGS__})
#define NONE(w, query) expect_found(w, query, 0, NULL)

static void search(void **state)
{
    (void)state;
    es_workspace *w = open_ok(fresh());
    int found[4], n = 7;
    NONE(w, "anything"); /* a dictionary nobody has seen */
    assert_ok(es_workspace_search(w, D, "", found, 4, &n, &err), &err);
    assert_int_equal(n, 0);
    static const struct { int f; const char *text, *tags; int rating; } rows[] = {
        {1, "polite requests", "tone polite", 0}, {2, "apologies", "tone requests", 3}, {3, "Python C++ code-review", "code", 0},
        {4, "café au lait", "food", 0}, {5, "日本語の文", "script", 0}, {6, "", "later", 0}, {7, "braces { } and * NEAR OR", "code", 5},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_ok(es_workspace_label_set(w, D, rows[i].f, rows[i].text, rows[i].tags, rows[i].rating, "a", &err), &err);
    FOUND(w, "requests", 1, 2); /* the label counts more than the tag */
    FOUND(w, "req", 1, 2);      /* still typing */
    NONE(w, "req ");            /* a whole word that nobody used */
    FOUND(w, "polite req", 1);
    FOUND(w, "tag:tone", 1, 2);
    FOUND(w, "tag:code is:rated", 7);
    FOUND(w, "is:unlabelled", 6);
    FOUND(w, "tag:to requests", 1, 2);
    FOUND(w, "cafe", 4);
    FOUND(w, "CAFÉ", 4);
    FOUND(w, "本語", 5);
    FOUND(w, "{", 7);
    FOUND(w, "*", 7);
    FOUND(w, "++", 3);
    FOUND(w, "code-rev", 3);
    FOUND(w, "5", 5);
    FOUND(w, "near", 7);
    NONE(w, "density<0.5"); /* no rows from an atlas yet */
    static const char *const typed[] = { /* FTS5's syntax, typed by the user: text like any other */
        "\"", "\"\"\"", "a\"b", "(", "a OR b", "NOT", "AND AND", "NEAR(a b, 3)", "label:", "label:x", "{label tags}: x", "^a", "a*", "*", "-", "- -", "+a",
        "a AND (b", "'; DROP TABLE label; --", "tag:", "tag:\"", "density<", "density<x", "density>1e999", "is:", "is:x", "\x01", "%s%n", "99999999999999999999",
        ":", "a:b:c", "\\", "�", "🙂", "a\tb\nc", "search MATCH 'x'", "-5", "0x10", "?1", "$x", "@y",
    };
    for (size_t i = 0; i < sizeof typed / sizeof *typed; i++)
        assert_ok(es_workspace_search(w, D, typed[i], found, 4, &n, &err), &err);
    FOUND(w, "or", 7);
    assert_int_equal(es_workspace_label_count(w, D), 6);
    char *longer = malloc(100001);
    memset(longer, 'a', 100000);
    longer[100000] = 0;
    assert_error(es_workspace_search(w, D, longer, found, 4, &n, &err), &err, "over");
    free(longer);
    es_rng rng;
    es_rng_seed(&rng, 5);
    for (int i = 0; i < 2000; i++) { /* any bytes at all */
        char q[24];
        size_t k = es_rng_below(&rng, sizeof q - 1);
        for (size_t j = 0; j < k; j++)
            q[j] = "ab\"*():^-+ \xc3\xa9\xff{},.tagis:density<0"[es_rng_below(&rng, 34)];
        q[k] = 0;
        assert_ok(es_workspace_search(w, D, q, found, 4, &n, &err), &err);
    }
    assert_ok(es_workspace_check(w, &err), &err);
    es_workspace_close(w);
}

/* The shipped dictionary: every feature can be found by what it fires on, and by its density. */
static void search_rows(void **state)
{
    (void)state;
    const char *source = getenv("ESPALIER_SOURCE"), *model = test_real_model();
    char folder[1024], path[1100];
    snprintf(folder, sizeof folder, "%s/data/dictionaries/smollm2-135m-l14", source ? source : ".");
    snprintf(path, sizeof path, "%s/atlas.esa", folder);
    if (!model || access(path, R_OK) != 0) {
        print_message("no real model or no shipped dictionary: not tried\n");
        return;
    }
    es_model *m = NULL;
    es_dictionary *s = NULL;
    es_atlas *a = NULL;
    const char *db = fresh(), *starter = test_path("starter.jsonl");
    static const char text[] = "{\"feature\":17,\"text\":\"something zygomorphic\",\"tags\":[\"odd\"]}\n";
    test_write(starter, text, sizeof text - 1);
    es_workspace *w = open_ok(db);
    assert_ok(es_model_open(&m, model, &err), &err);
    assert_ok(es_dictionary_open(&s, folder, &err), &err);
    assert_ok(es_atlas_open(&a, path, &err), &err);
    const char *hash = es_dictionary_get_info(s)->hash;
    int n_features = es_dictionary_get_info(s)->n_features, n = 0, f;
    int *found = calloc((size_t)n_features, sizeof *found);
    double start = es_seconds();
    assert_ok(es_workspace_use_dictionary(w, s, a, m, starter, NULL, &err), &err);
    print_message("search rows of %d features: %.0f ms\n", n_features, 1e3 * (es_seconds() - start));
    start = es_seconds();
    assert_ok(es_workspace_use_dictionary(w, s, a, m, starter, NULL, &err), &err);
    assert_true(es_seconds() - start < 0.5); /* made once */
    assert_int_equal(es_workspace_label_count(w, hash), 1);
    assert_int_equal(es_workspace_label_undo(w, hash, &f, &err), ES_ERR_MISSING); /* starter labels are nobody's change */
    assert_ok(es_workspace_search(w, hash, "", found, n_features, &n, &err), &err);
    assert_int_equal(n, n_features);
    assert_ok(es_workspace_search(w, hash, "density<0.01", found, n_features, &n, &err), &err);
    const float *density = es_atlas_density(a);
    int want = 0;
    for (int i = 0; i < n_features; i++)
        want += (double)density[i] < 0.01;
    assert_int_equal(n, want);
    assert_ok(es_workspace_search(w, hash, "zygom", found, n_features, &n, &err), &err);
    assert_true(n == 1 && found[0] == 17);
    es_buf tokens = {0};
    assert_ok(es_atlas_tokens_text(a, m, 100, &tokens, &err), &err);
    start = es_seconds();
    for (int i = 0; i < 20; i++)
        assert_ok(es_workspace_search(w, hash, i % 2 ? "th" : "the", found, n_features, &n, &err), &err);
    print_message("a search: %.2f ms, %d found\n", 50 * (es_seconds() - start), n);
    assert_true(n > 0);
    assert_ok(es_workspace_label_set(w, hash, 17, "", "", 0, "me", &err), &err); /* tokens stay searchable when the label goes */
    assert_ok(es_workspace_search(w, hash, "is:labelled", found, n_features, &n, &err), &err);
    assert_int_equal(n, 0);
    assert_ok(es_workspace_check(w, &err), &err);
    es_buf_free(&tokens);
    free(found);
    es_atlas_free(a);
    es_dictionary_free(s);
    es_model_free(m);
    es_workspace_close(w);
}

static void bases(void **state)
{
    (void)state;
    const char *path = fresh();
    es_workspace *w = open_ok(path);
    es_basis b = {.model_hash = "mm", .dictionary_hash = D, .dictionary = "tiny", .layer = 2}, got;
    snprintf(b.name, sizeof b.name, "tone");
    assert_ok(es_basis_add(&b, 5, -1, 2.5f, &err), &err);
    assert_ok(es_basis_add(&b, 3, 0, 4, &err), &err);
    int v = 0, n;
    assert_ok(es_workspace_basis_save(w, &b, &v, &err), &err);
    assert_int_equal(v, 1);
    assert_ok(es_basis_add(&b, 9, -1, 1, &err), &err);
    assert_ok(es_workspace_basis_save(w, &b, &v, &err), &err);
    assert_int_equal(v, 2);
    es_workspace_close(w);
    w = open_ok(path);
    assert_ok(es_workspace_basis_load(w, "tone", 0, &got, &err), &err);
    assert_int_equal(got.version, 2);
    assert_int_equal(got.n, 3);
    es_basis_free(&got);
    assert_ok(es_workspace_basis_load(w, "tone", 1, &got, &err), &err);
    assert_int_equal(got.n, 2);
    assert_int_equal(got.feature[0], 5);
    assert_float_equal(got.hi[0], 2.5, 0);
    assert_int_equal(got.feature[1], 3);
    assert_int_equal(got.layer, 2);
    assert_string_equal(got.dictionary_hash, D);
    es_basis_free(&got);
    assert_error(es_workspace_basis_load(w, "tone", 3, &got, &err), &err, "version 3");
    assert_error(es_workspace_basis_load(w, "none", 0, &got, &err), &err, "none");
    es_basis_line *list;
    assert_ok(es_workspace_basis_list(w, D, &list, &n, &err), &err);
    assert_int_equal(n, 2);
    assert_int_equal(list[1].n, 3);
    free(list);
    assert_ok(es_workspace_basis_list(w, "other", &list, &n, &err), &err);
    assert_int_equal(n, 0);
    assert_ok(es_workspace_basis_list(w, NULL, &list, &n, &err), &err);
    assert_int_equal(n, 2);
    free(list);
    es_basis_free(&b);
    es_workspace_close(w);
}

static void experiences_and_snapshots(void **state)
{
    (void)state;
    const char *path = fresh();
    es_workspace *w = open_ok(path);
    es_message m[] = {{"system", "be kind"}, {"user", "hi \"there\"\n"}};
    es_experience e = {.message = m, .n_message = 2, .preferred = "short", .rejected = "long", .source = "edit", .weight = 1}, no = {.message = m, .n_message = 2};
    int64_t a = 0, b = 0, id = 0;
    assert_ok(es_workspace_experience_add(w, &e, 0, &a, &err), &err);
    e.rejected = NULL;
    assert_ok(es_workspace_experience_add(w, &e, 0, &b, &err), &err);
    assert_error(es_workspace_experience_add(w, &no, 0, NULL, &err), &err, NULL);
    assert_ok(es_workspace_experience_set(w, b, false, 0.5, "too long", &err), &err);
    assert_error(es_workspace_experience_set(w, 99, false, 0.5, NULL, &err), &err, "99");
    es_experience_line *l;
    int n;
    assert_ok(es_workspace_experience_list(w, &l, &n, &err), &err);
    assert_int_equal(n, 2);
    assert_string_equal(l[0].e.message[1].content, "hi \"there\"\n");
    assert_string_equal(l[0].e.rejected, "long");
    assert_true(l[0].included && !l[1].included);
    assert_null(l[1].e.rejected);
    assert_float_equal(l[1].e.weight, 0.5, 0);
    assert_string_equal(l[1].reason, "too long");
    assert_int_equal(l[0].e.id, a);
    es_experience_lines_free(l, n);
    assert_ok(es_workspace_experience_remove(w, b, &err), &err);
    assert_ok(es_workspace_experience_list(w, &l, &n, &err), &err);
    assert_int_equal(n, 1);
    es_experience_lines_free(l, n);

    float c[3] = {1, -2, 0.5f}, influence[6] = {1, 2, 3, 4, 5, 6};
    es_snapshot_line s = {.basis = "tone", .form = "bias", .note = "first", .basis_version = 1, .steps = 4, .experiences = 1, .n = 3, .passed = true, .gain = 0.25, .kl = 0.01, .coefficient = c};
    assert_ok(es_workspace_snapshot_add(w, &s, "bytes\0more", 10, 0, &a, influence, 1, &id, &err), &err);
    assert_ok(es_workspace_snapshot_use(w, id, &err), &err);
    assert_error(es_workspace_snapshot_use(w, 77, &err), &err, "77");
    es_workspace_close(w);
    w = open_ok(path);
    int64_t current = 0;
    es_workspace_snapshot_current(w, &current);
    assert_int_equal(current, id);
    es_snapshot_line *list;
    assert_ok(es_workspace_snapshot_list(w, &list, &n, &err), &err);
    assert_int_equal(n, 1);
    assert_int_equal(list[0].n, 3);
    assert_memory_equal(list[0].coefficient, c, sizeof c);
    assert_string_equal(list[0].note, "first");
    assert_true(list[0].passed);
    es_snapshot_lines_free(list, n);
    es_buf bytes = {0};
    assert_ok(es_workspace_snapshot_bytes(w, id, &bytes, &err), &err);
    assert_int_equal(bytes.len, 10);
    assert_memory_equal(bytes.data, "bytes\0more", 10);
    es_buf_free(&bytes);
    int64_t *who;
    float *table;
    int n_who, n_c;
    assert_ok(es_workspace_snapshot_influence(w, id, &who, &table, &n_who, &n_c, &err), &err);
    assert_int_equal(n_who, 1);
    assert_int_equal(n_c, 3);
    assert_int_equal(who[0], a);
    assert_memory_equal(table, influence, sizeof influence);
    free(who);
    free(table);
    assert_error(es_workspace_snapshot_bytes(w, 9, &bytes, &err), &err, "9");
    assert_ok(es_workspace_snapshot_use(w, 0, &err), &err);
    assert_ok(es_workspace_check(w, &err), &err);
    es_workspace_close(w);
}

static void hashes(void **state)
{
    (void)state;
    es_workspace *w = open_ok(fresh());
    const char *file = test_path("some.bin");
    char hash[65];
    test_write(file, "abc", 3);
    assert_int_equal(es_workspace_file_hash(w, file, hash), ES_ERR_MISSING);
    assert_ok(es_workspace_remember_hash(w, file, D, &err), &err);
    assert_int_equal(es_workspace_file_hash(w, file, hash), ES_OK);
    assert_string_equal(hash, D);
    test_write(file, "abcd", 4); /* another size: forgotten */
    assert_int_equal(es_workspace_file_hash(w, file, hash), ES_ERR_MISSING);
    assert_error(es_workspace_remember_hash(w, test_path("absent"), D, &err), &err, "absent");
    es_workspace_close(w);
}

/* A child labels features one after another and reports each success; it is killed at a random moment. Every reported label must be
 * there, and the file must be whole. */
static void kill_in_a_loop(void **state)
{
    (void)state;
    const char *path = fresh();
    es_rng rng;
    es_rng_seed(&rng, 11);
    int reported = -1;
    for (int round = 0; round < 25; round++) {
        int fd[2];
        assert_int_equal(pipe(fd), 0);
        pid_t child = fork();
        if (child == 0) {
            es_workspace *w;
            close(fd[0]);
            if (es_workspace_open(&w, path, NULL) != ES_OK)
                _exit(3);
            for (int i = reported + 1;; i++) {
                char text[64];
                snprintf(text, sizeof text, "label number %d", i);
                if (es_workspace_label_set(w, D, i, text, "tag", i % 6, "child", NULL) != ES_OK || write(fd[1], &i, sizeof i) != sizeof i)
                    _exit(4);
            }
        }
        close(fd[1]);
        usleep(3000 + (useconds_t)es_rng_below(&rng, 25000));
        kill(child, SIGKILL);
        int status, i;
        waitpid(child, &status, 0);
        assert_true(WIFSIGNALED(status));
        while (read(fd[0], &i, sizeof i) == sizeof i)
            reported = i;
        close(fd[0]);
        es_workspace *w = open_ok(path);
        assert_ok(es_workspace_check(w, &err), &err);
        for (int k = 0; k <= reported; k++) {
            char text[64];
            snprintf(text, sizeof text, "label number %d", k);
            expect_label(w, k, text, "tag", k % 6);
        }
        es_workspace_close(w);
    }
    assert_true(reported > 10); /* it did write in between */
}

static void newer_and_foreign(void **state)
{
    (void)state;
    const char *path = fresh();
    es_workspace *w = open_ok(path);
    es_workspace_close(w);
    stranger(path, "PRAGMA user_version = 9999");
    assert_error(es_workspace_open(&w, path, &err), &err, "newer");
    stranger(path, "PRAGMA user_version = -3");
    assert_error(es_workspace_open(&w, path, &err), &err, "damaged");
    path = fresh();
    stranger(path, "CREATE TABLE other(x)");
    assert_error(es_workspace_open(&w, path, &err), &err, "another program");
    path = fresh();
    test_write(path, "this is not a database, it is a letter to my aunt, and rather a long one, more than a hundred bytes as it has to be", 110);
    assert_error(es_workspace_open(&w, path, &err), &err, "damaged");
    assert_null(w);
    assert_error(es_workspace_open(&w, test_path("."), &err), &err, "not a file");
    assert_error(es_workspace_open(&w, test_path("no/such/folder/w.db"), &err), &err, "folder");
}

static void hostile_schema(void **state)
{
    (void)state;
    const char *path = fresh();
    es_workspace *w = open_ok(path);
    assert_ok(es_workspace_label_set(w, D, 1, "kept", NULL, 0, "a", &err), &err);
    es_workspace_close(w);
    stranger(path, "CREATE TRIGGER evil AFTER INSERT ON label BEGIN DELETE FROM label; DELETE FROM dictionary; END;"
                   "CREATE TRIGGER worse BEFORE UPDATE ON label_change BEGIN SELECT load_extension('/tmp/x'); END;");
    w = open_ok(path);
    assert_ok(es_workspace_label_set(w, D, 2, "new", NULL, 0, "a", &err), &err);
    expect_label(w, 1, "kept", "", 0);
    expect_label(w, 2, "new", "", 0);
    int f;
    assert_ok(es_workspace_label_undo(w, D, &f, &err), &err);
    es_workspace_close(w);
    stranger(path, "DROP TABLE label; CREATE VIEW label AS SELECT 1 AS dictionary, 2 AS feature, 'x' AS text");
    w = open_ok(path);
    es_label l;
    assert_error(es_workspace_label_get(w, D, 1, &l, &err), &err, NULL);
    es_workspace_close(w);
}

static void second_instance(void **state)
{
    (void)state;
    const char *path = fresh();
    es_workspace *w = open_ok(path), *other = NULL;
    assert_error(es_workspace_open(&other, path, &err), &err, "another espalier");
    assert_non_null(strstr(err.text, "process"));
    assert_null(other);
    assert_ok(es_workspace_label_set(w, D, 1, "still works", NULL, 0, "a", &err), &err);
    es_workspace_close(w);
    w = open_ok(path);
    es_workspace_close(w);
}

/* Damage anywhere gives an error or an answer, never a crash (run under ASan as well). */
static void flipped_bytes(void **state)
{
    (void)state;
    const char *path = fresh(), *copy = fresh();
    es_workspace *w = open_ok(path);
    for (int i = 0; i < 40; i++)
        assert_ok(es_workspace_label_set(w, D, i, "a label that is here", "tag", 1, "a", &err), &err);
    es_message m = {"user", "hello"};
    es_experience e = {.message = &m, .n_message = 1, .preferred = "short", .weight = 1};
    float c[2] = {1, 2};
    es_snapshot_line s = {.basis = "b", .form = "bias", .n = 2, .coefficient = c};
    int64_t id;
    assert_ok(es_workspace_experience_add(w, &e, 0, NULL, &err), &err);
    assert_ok(es_workspace_snapshot_add(w, &s, "bytes", 5, 0, NULL, NULL, 0, &id, &err), &err);
    es_workspace_close(w);
    es_buf good = {0};
    test_read(&good, path);
    es_rng rng;
    es_rng_seed(&rng, 3);
    int refused = 0, seen = 0;
    for (int round = 0; round < 150; round++) {
        es_buf b = {0};
        es_buf_add(&b, good.data, good.len);
        for (int k = 0; k < 4; k++)
            b.data[es_rng_below(&rng, round % 3 ? b.len : 4096)] ^= (char)(1 + es_rng_below(&rng, 255));
        if (round % 10 == 9)
            b.len = es_rng_below(&rng, b.len);
        unlink(test_path("%s-wal", strrchr(copy, '/') + 1));
        unlink(test_path("%s-shm", strrchr(copy, '/') + 1));
        test_write(copy, b.data, b.len);
        es_buf_free(&b);
        err = (es_error){0};
        if (es_workspace_open(&w, copy, &err) != ES_OK) {
            assert_true(err.text[0] != 0);
            refused++;
            continue;
        }
        es_label l;
        es_experience_line *el;
        es_snapshot_line *sl;
        int n, found[8];
        for (int i = 0; i < 40; i++)
            if (es_workspace_label_get(w, D, i, &l, &err) == ES_OK)
                es_label_free(&l);
        es_workspace_search(w, D, "label", found, 8, &n, &err);
        if (es_workspace_experience_list(w, &el, &n, &err) == ES_OK)
            es_experience_lines_free(el, n);
        if (es_workspace_snapshot_list(w, &sl, &n, &err) == ES_OK)
            es_snapshot_lines_free(sl, n);
        es_workspace_label_set(w, D, 3, "new", NULL, 2, "a", &err);
        seen += es_workspace_check(w, &err) != ES_OK;
        es_workspace_close(w);
    }
    assert_true(refused > 5 && seen > 5);
    es_buf_free(&good);
}

static void read_only_folder(void **state)
{
    (void)state;
    if (geteuid() == 0)
        return; /* root writes anywhere */
    const char *dir = test_path("ro%d", next_path++);
    es_workspace *w;
    assert_int_equal(mkdir(dir, 0500), 0);
    char path[1100];
    snprintf(path, sizeof path, "%s/w.db", dir);
    assert_error(es_workspace_open(&w, path, &err), &err, "writable");
    chmod(dir, 0700);
}

/* No room: the call says so, nothing is half done, and it goes on when there is room again. */
static void no_room(void **state)
{
    (void)state;
    const char *path = fresh();
    es_workspace *w = open_ok(path);
    assert_ok(es_workspace_label_set(w, D, 1, "before", NULL, 0, "a", &err), &err);
    struct rlimit was, small;
    getrlimit(RLIMIT_FSIZE, &was);
    signal(SIGXFSZ, SIG_IGN);
    struct stat st;
    assert_int_equal(stat(test_path("%s-wal", strrchr(path, '/') + 1), &st), 0);
    small = was;
    small.rlim_cur = (rlim_t)st.st_size + 3000;
    setrlimit(RLIMIT_FSIZE, &small);
    int rc = es_workspace_label_set(w, D, 2, "too much", NULL, 0, "a", &err);
    setrlimit(RLIMIT_FSIZE, &was);
    assert_error(rc, &err, NULL);
    es_label l;
    assert_int_equal(es_workspace_label_get(w, D, 2, &l, &err), ES_ERR_MISSING);
    expect_label(w, 1, "before", "", 0);
    assert_ok(es_workspace_label_set(w, D, 2, "room again", NULL, 0, "a", &err), &err);
    expect_label(w, 2, "room again", "", 0);
    assert_ok(es_workspace_check(w, &err), &err);
    es_workspace_close(w);
    w = open_ok(path);
    expect_label(w, 2, "room again", "", 0);
    es_workspace_close(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(labels_and_undo), cmocka_unit_test(import_export), cmocka_unit_test(search), cmocka_unit_test(search_rows), cmocka_unit_test(bases),
        cmocka_unit_test(experiences_and_snapshots), cmocka_unit_test(hashes), cmocka_unit_test(kill_in_a_loop), cmocka_unit_test(newer_and_foreign),
        cmocka_unit_test(hostile_schema), cmocka_unit_test(second_instance), cmocka_unit_test(flipped_bytes), cmocka_unit_test(read_only_folder),
        cmocka_unit_test(no_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
