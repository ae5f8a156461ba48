/* bench: what a context takes and how it speaks: load to the first token, memory, decoding far into a text, several replies at once, and
 * decoding while something is learned. */
#include "cmd_bench.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FILLED = 2048, STREAMS = ES_STREAMS, SPOKEN = 512 };

static int open_context(const bench *b, es_context **c, int n_ctx, int n_seq, es_error *err)
{
    es_context_options o = {.n_ctx = n_ctx, .threads = the_app.threads, .n_seq = n_seq};
    return es_context_open(c, b->m, &o, err);
}

/* A model that is not open yet, its file in memory: until the first token's logits are there. */
int bench_load(bench *b, es_error *err)
{
    const char *path = es_model_get_info(b->m)->path;
    double seconds[BENCH_MAX_REPEAT];
    int rc = ES_OK;
    for (int r = -1; r < b->repeat && rc == ES_OK; r++) {
        es_model *m = NULL;
        es_context *c = NULL;
        es_context_options o = {.threads = the_app.threads};
        int32_t id = 1;
        double began = es_seconds();
        rc = es_model_open(&m, path, err);
        rc = rc ? rc : es_context_open(&c, m, &o, err);
        rc = rc ? rc : es_context_feed(c, &id, 1, &app_cancel, err);
        if (r >= 0)
            seconds[r] = 1000 * (es_seconds() - began);
        es_context_free(c);
        es_model_free(m);
    }
    if (rc == ES_OK)
        bench_result(b, "load", "open the file, and the first token", "milliseconds", seconds, b->repeat);
    return rc;
}

/* What a chat takes beside the file's pages when its context is full: this process has little else, when asked for first. */
int bench_memory(bench *b, es_error *err)
{
    const int trained = es_model_get_info(b->m)->n_ctx, n = trained < FILLED ? trained : FILLED;
    es_context *c = NULL;
    es_ids ids = {0};
    int rc = open_context(b, &c, n, 1, err);
    rc = rc ? rc : bench_random_ids(b->m, &b->rng, &ids, n, err);
    rc = rc ? rc : es_context_feed(c, ids.id, n - 1, &app_cancel, err);
    rc = rc ? rc : es_context_feed(c, ids.id + n - 1, 1, &app_cancel, err);
    if (rc == ES_OK) {
        char what[80];
        double megabytes = bench_anonymous_bytes() / 1e6;
        snprintf(what, sizeof what, "beyond the file, a context of %d tokens full", n);
        bench_result(b, "memory", what, "MB", &megabytes, 1);
    }
    es_ids_free(&ids);
    es_context_free(c);
    return rc;
}

/* Decoding at the beginning of a text, behind 2,048 tokens and at the end of the context. */
int bench_context(bench *b, es_error *err)
{
    const int trained = es_model_get_info(b->m)->n_ctx, n_ctx = b->context ? b->context : trained < 8192 ? trained : 8192;
    int depth[3] = {0, FILLED, n_ctx - b->tokens}, rc = ES_OK;
    double rate[3][BENCH_MAX_REPEAT], prefill;
    es_context *c = NULL;
    es_ids ids = {0};
    char name[32], what[80];
    if (n_ctx > trained || b->tokens >= n_ctx)
        rc = es_fail(err, ES_ERR_LIMIT, "%d tokens at the end of a context of %d do not go with a model of %d", b->tokens, n_ctx, trained);
    rc = rc ? rc : open_context(b, &c, n_ctx, 1, err);
    rc = rc ? rc : bench_random_ids(b->m, &b->rng, &ids, n_ctx, err);
    double began = es_seconds();
    rc = rc ? rc : es_context_feed(c, ids.id, depth[2], &app_cancel, err);
    prefill = depth[2] / (es_seconds() - began);
    if (rc == ES_OK) {
        snprintf(what, sizeof what, "prompt of %d tokens", depth[2]);
        bench_result(b, "prefill_long", what, "tokens a second", &prefill, 1);
    }
    for (int i = 2; i >= 0; i--)
        for (int r = 0; r < b->repeat && rc == ES_OK && (i != 1 || n_ctx > FILLED + b->tokens); r++) {
            rc = es_context_truncate(c, depth[i], err);
            double start = es_seconds();
            for (int t = 0; t < b->tokens && rc == ES_OK; t++)
                rc = es_context_feed(c, ids.id + depth[i] + t, 1, &app_cancel, err);
            rate[i][r] = b->tokens / (es_seconds() - start);
        }
    for (int i = 0; i < 3 && rc == ES_OK; i++)
        if (i != 1 || n_ctx > FILLED + b->tokens) {
            snprintf(name, sizeof name, "decode_%d", depth[i]);
            snprintf(what, sizeof what, "%d tokens, one at a time, after %d", b->tokens, depth[i]);
            bench_result(b, name, what, "tokens a second", rate[i], b->repeat);
        }
    es_ids_free(&ids);
    es_context_free(c);
    return rc;
}

static int decode_streams(bench *b, es_context *c, const es_ids *ids, int n, double *rate, es_error *err)
{
    int seq[STREAMS], rc = ES_OK;
    int32_t id[STREAMS];
    for (int s = 0; s < n && rc == ES_OK; s++) {
        seq[s] = s;
        es_context_select(c, s);
        rc = es_context_truncate(c, 32, err);
    }
    double began = es_seconds();
    for (int t = 0; t < b->tokens && rc == ES_OK; t++) {
        for (int s = 0; s < n; s++)
            id[s] = ids->id[32 + (t * n + s) % 64];
        rc = es_context_step(c, seq, id, n, &app_cancel, err);
    }
    *rate = n * b->tokens / (es_seconds() - began);
    return rc;
}

/* Tokens of eight sequences together beside those of one alone, in turns, each behind 32 tokens. */
int bench_batch(bench *b, es_error *err)
{
    double one[BENCH_MAX_REPEAT], many[BENCH_MAX_REPEAT], ratio[BENCH_MAX_REPEAT];
    es_context *c = NULL;
    es_ids ids = {0};
    char what[80];
    int rc = open_context(b, &c, 32 + b->tokens, STREAMS, err);
    rc = rc ? rc : bench_random_ids(b->m, &b->rng, &ids, 96, err);
    for (int s = 0; s < STREAMS && rc == ES_OK; s++) {
        es_context_select(c, s);
        rc = es_context_feed(c, ids.id, 32, &app_cancel, err);
    }
    for (int r = -1; r < b->repeat && rc == ES_OK; r++) {
        double x = 0, y = 0;
        rc = decode_streams(b, c, &ids, 1, &x, err);
        rc = rc ? rc : decode_streams(b, c, &ids, STREAMS, &y, err);
        if (r >= 0)
            one[r] = x, many[r] = y, ratio[r] = y / x;
    }
    if (rc == ES_OK) {
        snprintf(what, sizeof what, "%d tokens, one sequence", b->tokens);
        bench_result(b, "stream", what, "tokens a second", one, b->repeat);
        snprintf(what, sizeof what, "%d tokens for each of %d sequences at once", b->tokens, STREAMS);
        bench_result(b, "batch", what, "tokens a second", many, b->repeat);
        bench_result(b, "batch_ratio", "these together beside one alone", "times", ratio, b->repeat);
    }
    es_ids_free(&ids);
    es_context_free(c);
    return rc;
}

/* ---- speech while learning ------------------------------------------------------------------------------------------------------ */

typedef struct teaching {
    bench *b;
    bool stop, began;
    int steps, rc;
    double seconds;
    es_error err;
} teaching;

static void *teach(void *user)
{
    teaching *t = user;
    bench_learner l;
    es_thread_give_way();
    t->rc = bench_learner_open(t->b, &l, &t->err);
    double began = es_seconds();
    while (!t->rc && !__atomic_load_n(&t->stop, __ATOMIC_RELAXED)) {
        es_step_report step;
        __atomic_store_n(&t->began, true, __ATOMIC_RELAXED);
        t->rc = es_learner_step(l.l, &step, &t->stop, &t->err);
        t->steps += !t->rc;
    }
    t->seconds = es_seconds() - began;
    __atomic_store_n(&t->began, true, __ATOMIC_RELAXED);
    bench_learner_free(&l);
    if (t->rc == ES_ERR_CANCELLED)
        t->rc = ES_OK;
    return NULL;
}

/* Seconds of each of SPOKEN tokens, in order of size. */
static int speak(es_context *c, const es_ids *ids, double *seconds, double *rate, es_error *err)
{
    int rc = es_context_truncate(c, 0, err);
    double began = es_seconds(), last = began;
    for (int t = 0; t < SPOKEN && rc == ES_OK; t++) {
        rc = es_context_feed(c, ids->id + t, 1, &app_cancel, err);
        double now = es_seconds();
        seconds[t] = now - last;
        last = now;
    }
    *rate = SPOKEN / (last - began);
    bench_median(seconds, SPOKEN);
    return rc;
}

/* As the studio has it: one thread speaks, another, which gives way, takes one learning step after the other. */
int bench_learning(bench *b, es_error *err)
{
    double alone[BENCH_MAX_REPEAT], beside[BENCH_MAX_REPEAT], share[BENCH_MAX_REPEAT], wait[BENCH_MAX_REPEAT], steps[BENCH_MAX_REPEAT], seconds[SPOKEN];
    es_context *c = NULL;
    es_ids ids = {0};
    int rc = open_context(b, &c, SPOKEN, 1, err);
    rc = rc ? rc : bench_random_ids(b->m, &b->rng, &ids, SPOKEN, err);
    rc = rc ? rc : speak(c, &ids, seconds, &alone[0], err);
    for (int r = 0; r < b->repeat && rc == ES_OK; r++) {
        teaching t = {.b = b};
        pthread_t thread;
        rc = speak(c, &ids, seconds, &alone[r], err);
        if (rc == ES_OK && pthread_create(&thread, NULL, teach, &t) != 0)
            rc = es_fail(err, ES_ERR_IO, "cannot start a thread");
        if (rc != ES_OK)
            break;
        while (!__atomic_load_n(&t.began, __ATOMIC_RELAXED))
            usleep(1000);
        rc = speak(c, &ids, seconds, &beside[r], err);
        __atomic_store_n(&t.stop, true, __ATOMIC_RELAXED);
        pthread_join(thread, NULL);
        if (rc == ES_OK && t.rc != ES_OK)
            *err = t.err, rc = t.rc;
        share[r] = beside[r] / alone[r];
        wait[r] = seconds[SPOKEN - 1] / seconds[SPOKEN / 2];
        steps[r] = t.steps / t.seconds;
    }
    if (rc == ES_OK) {
        bench_result(b, "speech", "tokens one at a time, nothing else", "tokens a second", alone, b->repeat);
        bench_result(b, "speech_learning", "the same while a learner steps", "tokens a second", beside, b->repeat);
        bench_result(b, "speech_share", "of the rate alone", "times", share, b->repeat);
        bench_result(b, "speech_wait", "the longest wait for a token, beside the median then", "times", wait, b->repeat);
        bench_result(b, "steps_beside", "the learner's meanwhile", "steps a second", steps, b->repeat);
    }
    es_ids_free(&ids);
    es_context_free(c);
    return rc;
}
