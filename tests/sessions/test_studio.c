/* The studio on a tiny model: what a person does in the workbench, and what is cruel to threads. Runs under ThreadSanitizer. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sqlite3.h>

#include "method.h"
#include "with_studio.h"

static bool four_turns(const es_view *v) { return answered(v) && v->n_turn == 4; }
static int wanted_turns;
static bool so_many_turns(const es_view *v) { return answered(v) && v->n_turn == wanted_turns; }
static bool no_turn(const es_view *v) { return idle(v) && v->n_turn == 0; }
static bool some_tokens(const es_view *v) { return v->n_turn && v->turn[v->n_turn - 1].role == 'a' && v->turn[v->n_turn - 1].n_token > 2; }
static bool one_experience(const es_view *v) { return v->n_experience == 1; }
static bool no_experience(const es_view *v) { return v->n_experience == 0; }
static bool learned(const es_view *v) { return v->snapshot && v->learning == ES_LEARN_IDLE; }
static bool base(const es_view *v) { return v->snapshot == 0; }
static bool stepped(const es_view *v) { return v->n_step > 0; }
static bool resting(const es_view *v) { return v->learning == ES_LEARN_IDLE || v->learning == ES_LEARN_PAUSED; }
static bool paused(const es_view *v) { return v->learning == ES_LEARN_PAUSED; }
static bool both_sides(const es_view *v) { return idle(v) && v->n_side == 2 && !v->side[0].streaming && !v->side[1].streaming && v->side[1].tokens; }
static bool no_side(const es_view *v) { return v->n_side == 0; }
static bool has_basis(const es_view *v) { return v->n_basis == 2; }
static bool smaller_basis(const es_view *v) { return v->n_basis == 1; }
static bool suggested(const es_view *v) { return v->n_suggested > 0; }
static bool reported(const es_view *v) { return v->report_ready; }

static char *last_text(es_studio *s)
{
    es_view *v = es_studio_view(s);
    char *t = strdup(v->turn[v->n_turn - 1].text);
    es_view_free(v);
    return t;
}

static int64_t last_id(es_studio *s)
{
    es_view *v = es_studio_view(s);
    int64_t id = v->turn[v->n_turn - 1].id;
    es_view_free(v);
    return id;
}

static char *ask(es_studio *s, const char *text)
{
    es_studio_new_chat(s);
    WAIT_FREE(s, no_turn);
    es_studio_say(s, text);
    WAIT_FREE(s, two_turns);
    return last_text(s);
}

/* Asks, corrects the answer and waits for the snapshot. */
static void teach(es_studio *s, const char *question, const char *answer)
{
    free(ask(s, question));
    es_studio_edit(s, last_id(s), answer);
    es_studio_learn_pause(s, false);
    WAIT_FREE(s, learned);
}

static void opening(void **state)
{
    (void)state;
    es_studio_options o = options(fresh());
    es_studio *s = NULL;
    double start = es_seconds();
    assert_ok(es_studio_open(&s, &o, &err), &err);
    es_view *v = es_studio_view(s); /* there is something to draw at once */
    assert_true(es_seconds() - start < 5); /* a loose bound: the machine may be busy and instrumented */
    es_view_free(v);
    v = WAIT(s, ready);
    assert_false(v->failed);
    assert_int_equal(v->n_features, F);
    assert_int_equal(v->layer, LAYER);
    assert_int_equal(v->d_model, 64);
    assert_int_equal(v->n_ctx, 512);
    assert_int_equal(strlen(es_studio_dictionary_hash(s)), 64);
    assert_int_equal(v->learning, ES_LEARN_PAUSED);
    es_view_free(v);
    char text[16];
    int near[3];
    float cosine[3];
    assert_true(es_studio_token_text(s, 70, text, sizeof text) > 0);
    assert_int_equal(es_studio_token_text(s, -1, text, sizeof text), 0);
    assert_int_equal(es_studio_neighbours(s, 5, 3, near, cosine), 3);
    assert_true(cosine[0] >= cosine[1] && near[0] != 5);
    assert_int_equal(es_studio_neighbours(s, F, 3, near, cosine), 0);
    es_card_copy card;
    assert_error(es_studio_card(s, 1, &card, &err), &err, "atlas");
    es_studio_close(s);
    o.model = test_path("absent.gguf");
    assert_error(es_studio_open(&s, &o, &err), &err, "absent.gguf");
    o.model = model_path;
    o.dictionary = test_path("nowhere");
    assert_error(es_studio_open(&s, &o, &err), &err, "nowhere");
    o.dictionary = NULL; /* chat only */
    s = open_with(&o);
    free(ask(s, "hello"));
    es_studio_rate(s, last_id(s), -1);
    WAIT_FREE(s, one_experience);
    v = es_studio_view(s);
    assert_int_equal(v->learning, ES_LEARN_OFF);
    es_view_free(v);
    es_studio_close(s);
    o.model = dictionary_path; /* no model at all: the view says why */
    o.workspace = fresh();
    if (es_studio_open(&s, &o, &err) == 0) {
        v = WAIT(s, ready);
        assert_true(v->failed && v->status[0]);
        es_view_free(v);
        es_studio_say(s, "anybody?");
        es_studio_close(s);
    }
}

static void saying(void **state)
{
    (void)state;
    const char *path = fresh();
    es_studio *s = open_ready(path);
    es_studio_say(s, "hello there");
    es_view *v = WAIT(s, two_turns);
    const es_turn *t = &v->turn[1];
    assert_int_equal(v->turn[0].role, 'u');
    assert_string_equal(v->turn[0].text, "hello there");
    assert_true(t->id > v->turn[0].id && v->turn[0].id > 0);
    assert_true(t->n > 0 && t->n_token > 0 && t->n_token <= 24);
    assert_int_equal(es_utf8_whole(t->text, (size_t)t->n), t->n);
    for (int i = 0, before = 0; i < t->n_token; i++) {
        assert_true(t->token_end[i] >= before && t->token_end[i] <= t->n);
        assert_int_equal(es_utf8_whole(t->text, (size_t)t->token_end[i]), t->token_end[i]);
        before = t->token_end[i];
    }
    assert_int_equal(t->token_end[t->n_token - 1], t->n);
    assert_int_equal(t->snapshot, 0);
    assert_true(v->n_active > 0 && v->active[0].activation > 0 && v->active[0].feature < F);
    for (int i = 1; i < v->n_active; i++)
        assert_true(v->active[i - 1].activation >= v->active[i].activation);
    assert_null(t->shade);
    int most = v->active[0].feature;
    float peak = v->active[0].activation;
    es_view_free(v);
    es_studio_shade(s, most); /* what was heard is coloured at once */
    v = es_studio_view(s);
    assert_non_null(v->turn[1].shade);
    assert_float_equal(v->shade_max, peak, 1e-5);
    es_view_free(v);
    es_studio_shade(s, -1);
    char *first = last_text(s);
    es_studio_say(s, "and then?");
    WAIT_FREE(s, four_turns);
    es_studio_regenerate(s);
    WAIT_FREE(s, four_turns);
    char *again = ask(s, "hello there"); /* the same question in a new chat: the same answer */
    assert_string_equal(first, again);
    free(first);
    free(again);
    es_studio_close(s);
    es_workspace *w = NULL; /* and all of it is in the workspace */
    assert_ok(es_workspace_open(&w, path, &err), &err);
    assert_ok(es_workspace_check(w, &err), &err);
    es_workspace_close(w);
}

static void stopping(void **state)
{
    (void)state;
    es_studio_options o = options(fresh());
    o.max_tokens = 100000; /* the context ends it otherwise */
    es_studio *s = open_with(&o);
    es_studio_say(s, "go on for ever");
    WAIT_FREE(s, some_tokens);
    double start = es_seconds();
    es_studio_stop(s);
    es_view *v = WAIT(s, answered);
    assert_true(es_seconds() - start < 10);
    if (v->turn[1].n_token < 300) /* it may have ended by itself */
        assert_true(v->turn[1].stopped || v->turn[1].n_token > 0);
    es_view_free(v);
    es_studio_stop(s); /* of nothing: the next answer comes all the same */
    free(ask(s, "again"));
    es_studio_close(s);
}

/* More than the context holds: old turns go, nothing crashes, a message that is too long is refused. */
static void full_context(void **state)
{
    (void)state;
    es_studio_options o = options(fresh());
    o.n_ctx = 160;
    o.max_tokens = 30;
    es_studio *s = open_with(&o);
    for (int i = 0; i < 5; i++) {
        es_studio_say(s, "a question of some length that fills the context");
        wanted_turns = 2 * i + 2;
        es_view *v = WAIT(s, so_many_turns);
        assert_true(v->context_used <= 160);
        es_view_free(v);
    }
    char longer[2000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    es_studio_say(s, longer);
    es_view *v = WAIT(s, says);
    es_view_free(v);
    WAIT_FREE(s, idle);
    free(ask(s, "short"));
    es_studio_close(s);
}

static void judging(void **state)
{
    (void)state;
    const char *path = fresh();
    es_studio *s = open_ready(path);
    char *said = ask(s, "what is it?");
    int64_t id = last_id(s);
    es_studio_rate(s, id, -1);
    es_view *v = WAIT(s, one_experience);
    assert_int_equal(v->turn[1].rating, -1);
    assert_null(v->experience[0].e.preferred);
    assert_string_equal(v->experience[0].e.rejected, said);
    assert_string_equal(v->experience[0].e.message[v->experience[0].e.n_message - 1].content, "what is it?");
    es_view_free(v);
    es_studio_rate(s, id, 1);
    v = WAIT(s, one_experience);
    assert_string_equal(v->experience[0].e.preferred, said);
    assert_null(v->experience[0].e.rejected);
    es_view_free(v);
    es_studio_edit(s, id, "It."); /* the pair takes the rating's place */
    v = WAIT(s, one_experience);
    assert_string_equal(v->experience[0].e.preferred, "It.");
    assert_string_equal(v->experience[0].e.rejected, said);
    assert_string_equal(v->turn[1].edited, "It.");
    es_view_free(v);
    es_studio_undo(s);
    v = WAIT(s, one_experience);
    assert_null(v->turn[1].edited);
    assert_int_equal(v->turn[1].rating, 1);
    assert_string_equal(v->experience[0].e.preferred, said);
    es_view_free(v);
    es_studio_undo(s);
    es_studio_undo(s);
    v = WAIT(s, no_experience);
    assert_int_equal(v->turn[1].rating, 0);
    es_view_free(v);
    es_studio_undo(s); /* nothing left: it says so */
    v = es_studio_view(s);
    assert_non_null(strstr(v->status, "undo"));
    es_view_free(v);
    es_studio_rate(s, 999999, 1);
    v = es_studio_view(s);
    assert_true(v->status[0] != 0);
    es_view_free(v);
    es_studio_rate(s, id, -1);
    WAIT_FREE(s, one_experience);
    es_studio_close(s);
    s = open_ready(path); /* a fresh chat; the experience is there, and undo still reaches it */
    v = es_studio_view(s);
    assert_int_equal(v->n_turn, 0);
    assert_int_equal(v->n_experience, 1);
    es_view_free(v);
    es_studio_undo(s);
    WAIT_FREE(s, no_experience);
    es_studio_close(s);
    free(said);
}

static void learning(void **state)
{
    (void)state;
    const char *path = fresh();
    es_studio *s = open_ready(path);
    char *before = ask(s, "tell me something");
    teach(s, "tell me something", "no");
    es_view *v = es_studio_view(s);
    assert_int_equal(v->n_snapshot, 1);
    assert_true(v->snapshots[0].passed && v->snapshots[0].id == v->snapshot);
    assert_true(v->n_basis > 0 && v->n_step > 0 && v->n_mark == 1);
    assert_string_equal(v->basis_name, "auto");
    double sum = 0;
    for (int i = 0; i < v->n_basis; i++)
        sum += fabs((double)v->coefficient[i]);
    assert_true(sum > 0);
    assert_int_equal(v->n_influence, 1);
    assert_int_equal(v->influence_experience[0], v->experience[0].id);
    for (int i = 0; i < v->n_basis; i++) /* who moved what adds up to the coefficients */
        assert_float_equal(v->influence[i] + v->influence[v->n_basis + i], v->coefficient[i], 1e-3 + 1e-3 * fabs((double)v->coefficient[i]));
    int64_t first = v->snapshot;
    es_view_free(v);

    es_studio_compare(s, "tell me something");
    v = WAIT(s, both_sides);
    assert_string_equal(v->side[0].text, before); /* the base model, to the byte */
    char *adapted = strdup(v->side[1].text);
    es_view_free(v);
    es_studio_sides_close(s);
    WAIT_FREE(s, no_side);
    char *now = ask(s, "tell me something"); /* the chat speaks as compared */
    assert_string_equal(now, adapted);
    v = es_studio_view(s);
    assert_int_equal(v->turn[1].snapshot, first);
    es_view_free(v);
    free(now);
    es_studio_adapter(s, false);
    now = ask(s, "tell me something");
    assert_string_equal(now, before);
    free(now);
    es_studio_adapter(s, true);

    es_studio_rollback(s, 0);
    WAIT_FREE(s, base);
    now = ask(s, "tell me something");
    assert_string_equal(now, before); /* rolled back, to the byte */
    free(now);
    v = es_studio_view(s);
    for (int i = 0; i < v->n_basis; i++)
        assert_true(v->coefficient[i] == 0);
    es_view_free(v);
    es_studio_rollback(s, first);
    WAIT_FREE(s, learned);
    now = ask(s, "tell me something");
    assert_string_equal(now, adapted);
    free(now);
    es_studio_rollback(s, 12345); /* there is none: it says so, and nothing changes */
    v = es_studio_view(s);
    assert_true(v->snapshot == first && strstr(v->status, "12345"));
    es_view_free(v);
    es_studio_close(s);

    s = open_ready(path); /* and after a restart the same snapshot speaks */
    v = es_studio_view(s);
    assert_int_equal(v->snapshot, first);
    assert_string_equal(v->basis_name, "auto");
    assert_true(v->n_step > 0 && v->n_influence == 1);
    es_view_free(v);
    now = ask(s, "tell me something");
    assert_string_equal(now, adapted);
    free(now);
    es_studio_undo(s); /* takes the experience back, and the adapter with it */
    v = WAIT(s, base);
    assert_int_equal(v->n_experience, 0);
    assert_non_null(strstr(v->status, "base model"));
    es_view_free(v);
    now = ask(s, "tell me something");
    assert_string_equal(now, before);
    free(now);
    free(before);
    free(adapted);
    es_studio_close(s);
}

/* Undo of something that the adapter in use never learned leaves the adapter alone. */
static void undo_leaves_alone(void **state)
{
    (void)state;
    es_studio *s = open_ready(fresh());
    teach(s, "one", "no");
    es_studio_learn_pause(s, true);
    es_view *v = es_studio_view(s);
    int64_t first = v->snapshot;
    es_view_free(v);
    free(ask(s, "two"));
    es_studio_rollback(s, 0); /* by hand */
    WAIT_FREE(s, base);
    es_studio_rate(s, last_id(s), -1);
    es_studio_rollback(s, first);
    es_studio_undo(s);
    WAIT_FREE(s, one_experience);
    v = es_studio_view(s);
    assert_int_equal(v->snapshot, first);
    es_view_free(v);
    es_studio_close(s);
}

static void basis(void **state)
{
    (void)state;
    const char *path = fresh();
    es_studio *s = open_ready(path);
    es_studio_basis_new(s, "mine");
    es_studio_basis_add(s, 3, -1, 2);
    es_studio_basis_add(s, 7, 1, 0); /* default bounds */
    es_view *v = WAIT(s, has_basis);
    assert_string_equal(v->basis_name, "mine");
    assert_int_equal(v->basis_version, 3);
    assert_int_equal(v->basis_feature[0], 3);
    assert_float_equal(v->basis_hi[0], 2, 0);
    assert_true(v->basis_lo[1] < 0 && v->basis_hi[1] > 0);
    es_view_free(v);
    v = WAIT(s, reported);
    assert_true(v->report.effective_rank > 1 && v->report.effective_rank <= 2.001);
    es_view_free(v);
    es_studio_basis_add(s, F, 0, 1);
    v = WAIT(s, says);
    es_view_free(v);
    es_studio_basis_remove(s, 7);
    WAIT_FREE(s, smaller_basis);
    es_studio_basis_use(s, "mine", 3);
    WAIT_FREE(s, has_basis);
    es_studio_basis_use(s, "nobody's", 0);
    v = WAIT(s, says);
    assert_non_null(strstr(v->status, "nobody"));
    es_view_free(v);
    free(ask(s, "hm?"));
    es_studio_edit(s, last_id(s), "ok");
    es_studio_basis_suggest(s, 5);
    v = WAIT(s, suggested);
    assert_int_equal(v->n_suggested, 5);
    assert_true(fabs((double)v->suggested_score[0]) >= fabs((double)v->suggested_score[4]));
    es_view_free(v);
    es_studio_basis_take_suggested(s, 2);
    es_studio_close(s);
    s = open_ready(path);
    v = es_studio_view(s);
    assert_string_equal(v->basis_name, "mine");
    assert_true(v->n_basis >= 2);
    es_view_free(v);
    es_studio_close(s);
}

static void steering_and_finding(void **state)
{
    (void)state;
    es_studio *s = open_ready(fresh());
    char *plain = ask(s, "which way?");
    es_studio_steer(s, 4, 30, "which way?");
    es_view *v = WAIT(s, both_sides);
    assert_string_equal(v->side[0].text, plain);
    assert_string_not_equal(v->side[1].text, plain);
    es_view_free(v);
    es_studio_sides_close(s);
    es_studio_steer(s, F, 1, "x");
    v = WAIT(s, says);
    es_view_free(v);
    es_found found;
    char why[240];
    double end = es_seconds() + PATIENCE;
    es_studio_find(s, "text:\"some words to look at\"", ES_FIND_BEST);
    while (!es_studio_found(s, &found, why) && es_seconds() < end)
        usleep(10000);
    assert_string_equal(why, "");
    assert_true(found.n > 0);
    es_found_free(&found);
    es_studio_say(s, "go on"); /* the chat was not hurt */
    WAIT_FREE(s, four_turns);
    es_studio_close(s);
    free(plain);
}

static void pause_cancel_quit(void **state)
{
    (void)state;
    const char *path = fresh();
    es_studio *s = open_ready(path);
    free(ask(s, "one"));
    es_studio_rate(s, last_id(s), -1);
    es_studio_learn_pause(s, false);
    WAIT_FREE(s, stepped);
    es_studio_learn_pause(s, true);
    WAIT_FREE(s, resting);
    es_studio_learn_cancel(s);
    es_studio_learn_pause(s, false);
    WAIT_FREE(s, resting);
    for (int i = 0; i < 4; i++) { /* left in the middle of whatever it was doing */
        es_studio_learn_now(s);
        es_studio_say(s, "and while it learns, speak");
        usleep(7000u * (unsigned)i);
        es_studio_close(s);
        s = open_ready(path);
        es_view *v = es_studio_view(s);
        assert_int_equal(v->n_experience, 1);
        es_view_free(v);
        es_studio_learn_pause(s, false);
    }
    es_studio_learn_pause(s, true);
    WAIT_FREE(s, paused);
    es_studio_close(s);
    es_workspace *w = NULL;
    assert_ok(es_workspace_open(&w, path, &err), &err);
    assert_ok(es_workspace_check(w, &err), &err);
    es_workspace_close(w);
}

typedef struct shown { int experiences, snapshots; int64_t turn; char text[200]; } shown; /* what a view said was there */

static void talk_and_report(const char *path, int fd)
{
    es_studio_options o = options(path);
    es_studio *s = NULL;
    o.learn = true;
    if (es_studio_open(&s, &o, NULL))
        _exit(3);
    for (int i = 0;; i++) {
        shown r = {0};
        es_view *v = es_studio_view(s);
        bool idle_now = !v->loading && !v->generating, done = false;
        if (idle_now && v->n_turn && v->turn[v->n_turn - 1].role == 'a' && v->turn[v->n_turn - 1].id) {
            const es_turn *t = &v->turn[v->n_turn - 1];
            r = (shown){v->n_experience, v->n_snapshot, t->id, ""};
            snprintf(r.text, sizeof r.text, "%.150s", t->edited ? t->edited : t->text);
            r.text[es_utf8_whole(r.text, strlen(r.text))] = 0;
            done = write(fd, &r, sizeof r) == sizeof r;
            if (i % 4 == 1)
                es_studio_rate(s, t->id, -1);
            else if (i % 4 == 2)
                es_studio_edit(s, t->id, "better");
        }
        es_view_free(v);
        if (idle_now && (!done || i % 4 == 3))
            es_studio_say(s, "and now?");
        usleep(2000);
    }
}

/* Whatever a view had shown as there is there after kill -9, and the file is whole. */
static void killed(void **state)
{
    (void)state;
    const char *path = fresh();
    es_rng rng;
    es_rng_seed(&rng, 8);
    for (int round = 0; round < 8; round++) {
        int fd[2], status;
        shown r, last = {0};
        assert_int_equal(pipe(fd), 0);
        pid_t child = fork();
        if (child == 0) {
            close(fd[0]);
            talk_and_report(path, fd[1]);
        }
        close(fd[1]);
        for (int i = 0; i < 1 + (int)es_rng_below(&rng, 12) && read(fd[0], &r, sizeof r) == sizeof r; i++)
            last = r;
        usleep((useconds_t)es_rng_below(&rng, 8000));
        kill(child, SIGKILL);
        while (read(fd[0], &r, sizeof r) == sizeof r)
            last = r;
        waitpid(child, &status, 0);
        close(fd[0]);
        assert_true(WIFSIGNALED(status) && last.turn > 0);
        es_workspace *w = NULL;
        es_experience_line *e;
        es_snapshot_line *l;
        int n;
        assert_ok(es_workspace_open(&w, path, &err), &err);
        assert_ok(es_workspace_check(w, &err), &err);
        assert_ok(es_workspace_experience_list(w, &e, &n, &err), &err);
        assert_true(n >= last.experiences);
        es_experience_lines_free(e, n);
        assert_ok(es_workspace_snapshot_list(w, &l, &n, &err), &err);
        assert_true(n >= last.snapshots);
        es_snapshot_lines_free(l, n);
        es_workspace_close(w);
        sqlite3 *db;
        sqlite3_stmt *q;
        assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
        assert_int_equal(sqlite3_prepare_v2(db, "SELECT coalesce(edited, content), content FROM message WHERE id = ?", -1, &q, NULL), SQLITE_OK);
        sqlite3_bind_int64(q, 1, last.turn);
        assert_int_equal(sqlite3_step(q), SQLITE_ROW);
        const char *now = (const char *)sqlite3_column_text(q, 0); /* it may have been corrected after the last report */
        assert_true(!strncmp(now, last.text, strlen(last.text)) || !strcmp(now, "better"));
        sqlite3_finalize(q);
        sqlite3_close(db);
    }
}

/* Snapshots change hands while a reply streams, views are drawn, and a round of learning runs. */
static void swap_storm(void **state)
{
    (void)state;
    es_studio_options o = options(fresh());
    o.max_tokens = 60;
    es_studio *s = open_with(&o);
    char *before = ask(s, "who speaks?");
    teach(s, "who speaks?", "me");
    es_view *v = es_studio_view(s);
    int64_t a = v->snapshot;
    es_view_free(v);
    es_studio_learn_now(s);
    for (int round = 0; round < 3; round++) {
        es_studio_say(s, "talk");
        for (int i = 0; i < 40; i++) {
            es_studio_rollback(s, i % 2 ? a : 0);
            es_studio_adapter(s, i % 3 != 0);
            es_studio_shade(s, i);
            if (i % 10 == 5)
                es_studio_basis_add(s, i, 1, 0);
            if (i % 10 == 7)
                es_studio_learn_now(s);
            v = es_studio_view(s);
            assert_true(v->n_turn >= 2);
            es_view_free(v);
            usleep(500);
        }
        WAIT_FREE(s, answered);
    }
    es_studio_learn_cancel(s);
    es_studio_rollback(s, 0);
    es_studio_adapter(s, true);
    WAIT_FREE(s, base);
    char *after = ask(s, "who speaks?");
    assert_string_equal(after, before);
    es_studio_close(s);
    free(before);
    free(after);
}

static bool method_answers(const es_view *v) { return resting(v) && strstr(v->method_text, "experience") && strstr(v->learning_text, v->method); }
static bool unknown_method(const es_view *v) { return strstr(v->status, "there is no method") != NULL; }
static bool many_experiences(const es_view *v) { return v->n_experience > 2; }
static bool white_prepared(const es_view *v) { return v->n_job > 1 && !v->job[v->n_job - 1].running && !strcmp(v->job[v->n_job - 1].kind, "inputs"); }

static bool told(const es_view *v)
{
    return v->n_experience == 1 && strstr(v->experience[0].reason, "reply drawn again") && strcmp(v->experience[0].reason, "marked; paired with a reply drawn again");
}

static void with_inputs(es_studio_options *o)
{
    o->neutral = test_path("neutral-few.jsonl");
    o->inputs = test_path("inputs-few");
    FILE *f = fopen(o->neutral, "w");
    for (int i = 0; i < 30; i++)
        fprintf(f, "{\"text\":\"the cat sat on the mat %d and looked at the moon, and one two three four five six\"}\n"
                   "{\"messages\":[{\"role\":\"user\",\"content\":\"what is it %d\"}],\"reply\":\"it is a thing of which many words can be said\"}\n", i, i);
    fclose(f);
}

static bool no_direction(const es_view *v) { return strstr(v->status, "there is no direction sorcery") != NULL; }
static bool bad_direction(const es_view *v) { return strstr(v->status, "bad.safetensors") != NULL; }
static bool along(const es_view *v) { return v->n_direction == 1 && v->direction[0].used && v->snapshot && v->direction[0].snapshot == v->snapshot && resting(v); }
static bool along_older(const es_view *v)
{
    for (int i = 0; i < v->n_direction; i++)
        if (!strcmp(v->direction[i].name, "older") && v->direction[i].used && v->snapshot && v->direction[i].snapshot == v->snapshot && v->direction[i].amplitude != 0)
            return resting(v);
    return false;
}
static bool not_along(const es_view *v) { return v->n_direction == 1 && !v->direction[0].used && v->direction[0].snapshot != v->snapshot && resting(v); }

/* A direction of fewer inputs than there are now, as an older program made them; in the basis of the adapter in `like`. */
static void write_older_direction(const char *like, const char *to)
{
    es_model *m = NULL;
    es_dictionary *d = NULL;
    es_adapter *from = NULL, *a = NULL;
    es_learner *l = NULL;
    es_step_report r;
    es_experience e = {.message = &(es_message){"user", "tell me something"}, .n_message = 1, .preferred = (char *)(uintptr_t)"no", .rejected = (char *)(uintptr_t)"yes yes", .weight = 1};
    assert_ok(es_model_open(&m, model_path, &err), &err);
    assert_ok(es_dictionary_open(&d, dictionary_path, &err), &err);
    assert_ok(es_adapter_load(&from, m, d, like, &err), &err);
    es_adapter_options ao = *es_adapter_get_options(from);
    es_learner_options lo = es_learner_white();
    assert_true(ao.rank > 2);
    ao.rank = 2;
    lo.kappa = lo.rho = lo.hold_out = 0;
    assert_ok(es_adapter_new(&a, m, d, es_adapter_basis(from), &ao, &err), &err);
    assert_ok(es_learner_open(&l, m, d, a, &lo, &err), &err);
    assert_ok(es_learner_add(l, &e, NULL, &err), &err);
    assert_ok(es_learner_step(l, &r, NULL, &err), &err);
    assert_ok(es_adapter_save(a, to, &err), &err);
    es_learner_free(l);
    es_adapter_free(a);
    es_adapter_free(from);
    es_dictionary_free(d);
    es_model_free(m);
}

/* A direction is taken in from its file, learned along, told of, kept over a restart, and let go. */
static void directions(void **state)
{
    (void)state;
    const char *path = fresh(), *file = test_path("terse.safetensors"), *bad = test_path("bad.safetensors");
    es_studio_options o = options(path);
    es_buf bytes = {0};
    with_inputs(&o);
    es_studio *s = open_with(&o);
    WAIT_FREE(s, white_prepared);
    teach(s, "tell me something", "no");
    es_view *v = es_studio_view(s);
    assert_ok(es_workspace_snapshot_bytes(es_studio_workspace(s), v->snapshot, &bytes, &err), &err);
    es_view_free(v);
    assert_ok(es_file_write(file, bytes.data, bytes.len, &err), &err);
    assert_ok(es_file_write(bad, bytes.data, 100, &err), &err);
    es_buf_free(&bytes);
    es_studio_direction(s, "sorcery", true);
    WAIT_FREE(s, no_direction);
    es_studio_direction(s, bad, true);
    WAIT_FREE(s, bad_direction);
    es_studio_direction(s, file, true);
    v = WAIT(s, along);
    assert_string_equal(v->direction[0].name, "terse");
    assert_true(v->direction[0].amplitude > 0);
    es_view_free(v);
    es_studio_close(s);
    s = open_with(&o);
    WAIT_FREE(s, white_prepared);
    v = WAIT(s, along);
    es_view_free(v);
    es_studio_learn_pause(s, false);
    es_studio_direction(s, "terse", false);
    WAIT_FREE(s, not_along);
    const char *older = test_path("older.safetensors");
    write_older_direction(file, older);
    es_studio_direction(s, older, true);
    v = WAIT(s, along_older);
    es_view_free(v);
    es_studio_close(s);
}

/* A mark becomes a pair with a reply drawn anew, once; the person sees which of the two is whose, and undo takes the whole back. */
static void marking(void **state)
{
    (void)state;
    for (int sign = -1; sign <= 1; sign += 2) {
        es_studio_options o = options(fresh());
        with_inputs(&o);
        es_studio *s = open_with(&o);
        WAIT_FREE(s, white_prepared);
        char *said = ask(s, "what is it?");
        es_studio_rate(s, last_id(s), sign);
        WAIT_FREE(s, one_experience);
        es_studio_learn_pause(s, false);
        es_view *v = WAIT(s, told);
        const es_experience *e = &v->experience[0].e;
        assert_string_equal(sign > 0 ? e->preferred : e->rejected, said);
        assert_true(e->preferred && e->rejected && strcmp(e->preferred, e->rejected));
        assert_string_equal(e->source, sign > 0 ? "tester: +" : "tester: -");
        assert_non_null(strstr(v->experience[0].reason, sign > 0 ? "; liked" : "; disliked"));
        char *drawn = strdup(sign > 0 ? e->rejected : e->preferred);
        es_view_free(v);
        es_studio_learn_now(s);
        v = WAIT(s, told);
        assert_string_equal(sign > 0 ? v->experience[0].e.rejected : v->experience[0].e.preferred, drawn);
        es_view_free(v);
        es_studio_undo(s);
        WAIT_FREE(s, no_experience);
        es_studio_close(s);
        free(drawn);
        free(said);
    }
}

static bool no_teacher(const es_view *v) { return strstr(v->status, "no teacher: \"sorcery.gguf\"") != NULL; }
static bool other_tokens(const es_view *v) { return strstr(v->learning_text, "has another tokenizer") != NULL; } /* the status may say what came after it */
static bool distilled(const es_view *v) { return resting(v) && strstr(v->method_text, "as teacher") != NULL; }
static bool by_preference(const es_view *v) { return distilled(v) && strstr(v->method_text, "say it twice") != NULL; }
static bool not_for_others(const es_view *v) { return strstr(v->status, "only distil has a teacher") != NULL; }

/* A second model beside the first one teaches, a stated preference does, and what is neither is refused, as is a model with other tokens. */
static void teachers(void **state)
{
    (void)state;
    const char *other = test_path("tokens.gguf");
    tiny_file *f = tiny_build(NULL);
    tiny_set_entry(f, "tokenizer.ggml.tokens", 4, "\xc4\x82", 2); /* bytes 1 and 2 change places */
    tiny_set_entry(f, "tokenizer.ggml.tokens", 5, "\xc4\x81", 2);
    tiny_write(other, f);
    tiny_free(f);
    es_studio_options o = options(fresh());
    o.learn = true;
    es_studio *s = open_with(&o);
    WAIT_FREE(s, resting); /* what learning says of its beginning would hide the answers */
    es_studio_method(s, "lora sorcery.gguf");
    WAIT_FREE(s, not_for_others);
    es_studio_method(s, "distil sorcery.gguf");
    WAIT_FREE(s, no_teacher);
    es_studio_method(s, "distil tokens.gguf");
    WAIT_FREE(s, other_tokens);
    char own[1100];
    snprintf(own, sizeof own, "distil %s", o.model);
    es_studio_method(s, own);
    WAIT_FREE(s, distilled);
    es_experience e = {.message = &(es_message){"user", "how are you"}, .n_message = 1, .preferred = (char *)(uintptr_t)"yes yes", .rejected = (char *)(uintptr_t)"no",
                       .source = (char *)(uintptr_t)"prefer: yes, and say it twice", .weight = 1};
    assert_ok(es_workspace_experience_add(es_studio_workspace(s), &e, 0, NULL, &err), &err);
    es_studio_method(s, "distil Say it");
    WAIT_FREE(s, by_preference);
    es_studio_close(s);
}

/* Each method takes over from the same experience and hands back: features answers to the byte as before, the base model too. */
static void methods(void **state)
{
    (void)state;
    static const char *const NAMES[] = {"context", "lora", "full", "titans"};
    es_studio *s = open_ready(fresh());
    char *base_says = ask(s, "tell me something");
    teach(s, "tell me something", "no");
    char *features_say = ask(s, "tell me something");
    es_studio_method(s, "sorcery");
    es_view *v = WAIT(s, unknown_method);
    assert_non_null(strstr(v->status, "titans"));
    assert_string_equal(v->method, "features");
    es_view_free(v);
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        es_studio_method(s, NAMES[i]);
        v = WAIT(s, method_answers);
        assert_string_equal(v->method, NAMES[i]);
        assert_non_null(strstr(v->method_text, "1 experience"));
        if (!i)
            assert_non_null(strstr(v->method_text, "tokens of every prompt"));
        es_view_free(v);
        free(ask(s, "tell me something"));
        v = es_studio_view(s);
        assert_int_equal(v->turn[1].snapshot, ES_BY_METHOD - es_method_by_name(NAMES[i]));
        es_view_free(v);
    }
    es_studio_compare(s, "tell me something");
    v = WAIT(s, both_sides);
    assert_string_equal(v->side[0].text, base_says);
    assert_string_equal(v->side[1].title, "titans");
    es_view_free(v);
    es_studio_sides_close(s);
    WAIT_FREE(s, no_side);
    es_studio_method(s, "none");
    char *now = ask(s, "tell me something");
    assert_string_equal(now, base_says);
    free(now);
    v = es_studio_view(s);
    assert_string_equal(v->learning_text, ""); /* no longer that titans answers */
    es_view_free(v);
    es_studio_method(s, "features");
    now = ask(s, "tell me something");
    assert_string_equal(now, features_say);
    v = es_studio_view(s);
    assert_int_equal(v->n_snapshot, 1); /* there was nothing new to learn */
    es_view_free(v);
    free(now);
    free(features_say);
    free(base_says);
    es_studio_close(s);
}

/* A preference becomes experiences that name it. White inputs are made once and kept; what is learned with them comes back after closing. */
static void preferring(void **state)
{
    (void)state;
    const char *path = fresh(), *neutral = test_path("neutral.jsonl");
    FILE *f = fopen(neutral, "w");
    for (int i = 0; i < 30; i++)
        fprintf(f, "{\"text\":\"the cat sat on the mat %d and looked at the moon, and one two three four five six\"}\n"
                   "{\"messages\":[{\"role\":\"user\",\"content\":\"what is it %d\"}],\"reply\":\"it is a thing of which many words can be said\"}\n", i, i);
    fclose(f);
    es_studio_options o = options(path);
    o.neutral = neutral;
    o.inputs = test_path("inputs%d", next_path);
    es_studio *s = open_with(&o);
    WAIT_FREE(s, white_prepared);
    es_studio_prefer(s, " ");
    WAIT_FREE(s, says);
    es_studio_prefer(s, "say nothing but yes, whatever is asked, and say it twice");
    es_view *v = WAIT(s, many_experiences);
    for (int i = 0; i < v->n_experience; i++) {
        const es_experience *e = &v->experience[i].e;
        assert_non_null(strstr(e->source, "prefer: say nothing but yes"));
        assert_string_not_equal(e->preferred, e->rejected);
    }
    es_view_free(v);
    es_studio_close(s);

    path = fresh();
    o = options(path);
    o.neutral = neutral;
    o.inputs = test_path("inputs%d", next_path - 1);
    s = open_with(&o);
    WAIT_FREE(s, white_prepared);
    teach(s, "tell me something", "no");
    char *adapted = ask(s, "tell me something");
    v = es_studio_view(s);
    assert_true(*v->experience[0].reason);
    es_view_free(v);
    es_studio_close(s);
    s = open_with(&o);
    char *again = ask(s, "tell me something");
    assert_string_equal(again, adapted);
    free(again);
    free(adapted);
    es_studio_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opening), cmocka_unit_test(saying), cmocka_unit_test(stopping), cmocka_unit_test(full_context), cmocka_unit_test(judging),
        cmocka_unit_test(learning), cmocka_unit_test(undo_leaves_alone), cmocka_unit_test(basis), cmocka_unit_test(steering_and_finding),
        cmocka_unit_test(pause_cancel_quit), cmocka_unit_test(killed), cmocka_unit_test(methods), cmocka_unit_test(marking), cmocka_unit_test(directions), cmocka_unit_test(teachers), cmocka_unit_test(preferring), cmocka_unit_test(swap_storm),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
