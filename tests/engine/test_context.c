/* The context: a KV cache gives what a whole batch gives, and every way to change it keeps that true. */
#include "count_allocations.h"
#include "model.h"
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = 150, CTX = 200, VOCAB = TINY_VOCAB };

typedef struct fixture {
    es_model *m;
    es_context *c;
    int32_t ids[N];
    float want[N][VOCAB]; /* the logits after each token, from one batch */
} fixture;

static const es_kernels *table(void **state)
{
    return *state ? es_kernels_cpu() : es_kernels_scalar();
}

static fixture *make(const es_kernels *k, const es_patch *patch)
{
    fixture *f = calloc(1, sizeof *f);
    es_error err;
    es_rng rng;
    tiny_options small = tiny_default();
    f->m = open_tiny(&small);
    es_context_options o = {.n_ctx = CTX, .threads = 2, .exact = true, .kernels = k};
    assert_ok(es_context_open(&f->c, f->m, &o, &err), &err);
    es_rng_seed(&rng, 3);
    for (int i = 0; i < N; i++)
        f->ids[i] = (int32_t)es_rng_below(&rng, VOCAB);
    es_trainer *t;
    es_trainer_options to = {.max_tokens = N, .threads = 1, .kernels = k};
    assert_ok(es_trainer_open(&t, f->m, &to, &err), &err);
    es_batch b = {.ids = f->ids, .n = N, .start = (int[]){0, N}, .n_seq = 1};
    assert_ok(es_trainer_forward(t, &b, NULL, patch, NULL, 0, NULL, NULL, &err), &err);
    assert_ok(es_trainer_logits_rows(t, 0, N, f->want[0], &err), &err);
    es_trainer_free(t);
    return f;
}

static void free_fixture(fixture *f)
{
    es_context_free(f->c);
    es_model_free(f->m);
    free(f);
}

static void near(const float *got, const float *want, size_t n, double tolerance)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabs(got[i] - want[i]) <= tolerance))
            fail_msg("[%zu] is %g, not %g", i, got[i], want[i]);
}

static void feed(fixture *f, int from, int n)
{
    es_error err;
    assert_int_equal(es_context_length(f->c), from);
    assert_ok(es_context_feed(f->c, f->ids + from, n, NULL, &err), &err);
    assert_int_equal(es_context_length(f->c), from + n);
    assert_memory_equal(es_context_ids(f->c), f->ids, sizeof(int32_t) * (from + n));
    near(es_context_logits(f->c), f->want[from + n - 1], VOCAB, 1e-3);
}

/* In pieces of any size, over the border of a chunk too, the logits are those of the whole. */
static void test_same_as_batch(void **state)
{
    fixture *f = make(table(state), NULL);
    es_error err;
    feed(f, 0, 1);
    feed(f, 1, 1);
    feed(f, 2, 5);
    feed(f, 7, 30);
    for (int i = 37; i < 45; i++)
        feed(f, i, 1);
    assert_ok(es_context_truncate(f->c, 3, &err), &err);
    feed(f, 3, N - 3);
    assert_ok(es_context_truncate(f->c, 0, &err), &err);
    feed(f, 0, N);
    assert_error(es_context_truncate(f->c, N + 1, &err), &err, "keep");
    assert_error(es_context_truncate(f->c, -1, &err), &err, "keep");
    free_fixture(f);
}

static void test_sync(void **state)
{
    fixture *f = make(table(state), NULL);
    es_error err;
    int reused;
    int32_t other[N];
    assert_ok(es_context_sync(f->c, f->ids, 60, &reused, NULL, &err), &err);
    assert_int_equal(reused, 0);
    near(es_context_logits(f->c), f->want[59], VOCAB, 1e-3);
    assert_ok(es_context_sync(f->c, f->ids, 80, &reused, NULL, &err), &err); /* a turn longer */
    assert_int_equal(reused, 60);
    near(es_context_logits(f->c), f->want[79], VOCAB, 1e-3);
    assert_ok(es_context_sync(f->c, f->ids, 80, &reused, NULL, &err), &err); /* the same: the last is fed again for its logits */
    assert_int_equal(reused, 79);
    near(es_context_logits(f->c), f->want[79], VOCAB, 1e-3);
    memcpy(other, f->ids, sizeof other);
    other[50] ^= 1;
    assert_ok(es_context_sync(f->c, other, 70, &reused, NULL, &err), &err); /* another history */
    assert_int_equal(reused, 50);
    assert_ok(es_context_sync(f->c, f->ids, 70, &reused, NULL, &err), &err); /* and back */
    assert_int_equal(reused, 50);
    near(es_context_logits(f->c), f->want[69], VOCAB, 1e-3);
    assert_ok(es_context_sync(f->c, f->ids, 40, &reused, NULL, &err), &err); /* shorter */
    assert_int_equal(reused, 39);
    assert_int_equal(es_context_length(f->c), 40);
    near(es_context_logits(f->c), f->want[39], VOCAB, 1e-3);
    assert_error(es_context_sync(f->c, f->ids, 0, &reused, NULL, &err), &err, NULL);
    assert_int_equal(es_context_length(f->c), 40);
    free_fixture(f);
}

static void raise_flag(void *user, int layer, int pos0, const float *h, int T, int d)
{
    (void)layer, (void)pos0, (void)h, (void)T, (void)d;
    *(bool *)user = true;
}

/* After an error the cache goes on as if nothing had been asked. */
static void test_errors_leave_the_cache(void **state)
{
    fixture *f = make(table(state), NULL);
    es_error err;
    int32_t many[CTX] = {0}, bad[3] = {1, VOCAB, 2}, negative = -1;
    feed(f, 0, 10);
    assert_int_equal(es_context_feed(f->c, many, CTX - 9, NULL, &err), ES_ERR_LIMIT);
    assert_error(ES_ERR_LIMIT, &err, "context");
    assert_int_equal(es_context_sync(f->c, many, CTX + 1, NULL, NULL, &err), ES_ERR_LIMIT);
    assert_int_equal(es_context_feed(f->c, bad, 3, NULL, &err), ES_ERR_USAGE);
    assert_int_equal(es_context_feed(f->c, &negative, 1, NULL, &err), ES_ERR_USAGE);
    assert_int_equal(es_context_feed(f->c, bad, 0, NULL, &err), ES_ERR_USAGE);
    bool cancel = false;
    es_watch w = {.layer = 0, .fn = raise_flag, .user = &cancel}; /* raised in the middle of the first chunk */
    es_context_set_watch(f->c, &w, 1);
    assert_int_equal(es_context_feed(f->c, f->ids + 10, N - 10, &cancel, &err), ES_ERR_CANCELLED);
    es_context_set_watch(f->c, NULL, 0);
    near(es_context_logits(f->c), f->want[9], VOCAB, 1e-3);
    es_lowrank wrong = {.layer = 99, .site = ES_SITE_Q, .rank = 1, .scale = 1};
    es_context_set_patch(f->c, &(es_patch){.lowrank = &wrong, .n_lowrank = 1});
    assert_error(es_context_feed(f->c, f->ids + 10, 1, NULL, &err), &err, "layer 99");
    es_context_set_patch(f->c, NULL);
    feed(f, 10, 20);
    feed(f, 30, 1);
    assert_ok(es_context_truncate(f->c, 0, &err), &err);
    assert_ok(es_context_feed(f->c, many, CTX, NULL, &err), &err); /* full to the brim */
    assert_int_equal(es_context_feed(f->c, many, 1, NULL, &err), ES_ERR_LIMIT);
    free_fixture(f);
}

static void shift(void *user, float *h, const int *pos, int T, int d)
{
    const float *by = user;
    for (int t = 0; t < T; t++)
        if (pos[t] >= 4)
            h[t * d] += *by;
}

/* A patch does in a cache what it does in a batch; with scale 0 it does nothing, to the bit. */
static void test_patch(void **state)
{
    float a[2 * 128], b[2 * 128], v[64], by = 0.5f, plain[VOCAB];
    es_rng rng;
    es_error err;
    es_rng_seed(&rng, 1);
    for (int i = 0; i < 256; i++) {
        a[i] = 0.1f * es_rng_normal(&rng);
        b[i] = 0.1f * es_rng_normal(&rng);
    }
    for (int i = 0; i < 64; i++)
        v[i] = 0.2f * es_rng_normal(&rng);
    es_lowrank low[2] = {{.layer = 1, .site = ES_SITE_DOWN, .rank = 2, .scale = 1, .a = a, .b = b},
                         {.layer = 3, .site = ES_SITE_V, .rank = 2, .scale = 2, .a = a, .b = b}};
    es_addend add = {.layer = 2, .scale = 1, .v = v, .min_pos = 7};
    es_hook hook = {.layer = 0, .forward = shift, .user = &by};
    es_patch patch = {.lowrank = low, .n_lowrank = 2, .addend = &add, .n_addend = 1, .hook = &hook, .n_hook = 1};
    fixture *f = make(table(state), &patch);
    es_context_set_patch(f->c, &patch);
    feed(f, 0, 6);
    feed(f, 6, 1);
    feed(f, 7, 1);
    feed(f, 8, 40);

    es_context_set_patch(f->c, NULL);
    assert_ok(es_context_truncate(f->c, 0, &err), &err);
    assert_ok(es_context_feed(f->c, f->ids, 20, NULL, &err), &err);
    memcpy(plain, es_context_logits(f->c), sizeof plain);
    low[0].scale = low[1].scale = add.scale = 0;
    patch.n_hook = 0;
    es_context_set_patch(f->c, &patch);
    assert_ok(es_context_truncate(f->c, 0, &err), &err);
    assert_ok(es_context_feed(f->c, f->ids, 20, NULL, &err), &err);
    assert_memory_equal(plain, es_context_logits(f->c), sizeof plain);
    low[1].scale = 1;
    assert_ok(es_context_truncate(f->c, 0, &err), &err);
    assert_ok(es_context_feed(f->c, f->ids, 20, NULL, &err), &err);
    assert_memory_not_equal(plain, es_context_logits(f->c), sizeof plain);
    free_fixture(f);
}

typedef struct seen {
    int rows, layer;
    float first[N];
} seen;

static void look(void *user, int layer, int pos0, const float *h, int T, int d)
{
    seen *s = user;
    assert_int_equal(layer, s->layer);
    assert_int_equal(pos0, s->rows);
    for (int t = 0; t < T; t++)
        s->first[s->rows++] = h[t * d];
}

/* Watches see each row once, in order, and see what the trainer calls the residual. */
static void test_watch(void **state)
{
    fixture *f = make(table(state), NULL);
    es_error err;
    seen s[2] = {{.layer = 2}, {.layer = -1}};
    es_watch w[2] = {{.layer = 2, .fn = look, .user = &s[0]}, {.layer = -1, .fn = look, .user = &s[1]}};
    es_context_set_watch(f->c, w, 2);
    feed(f, 0, 140);
    feed(f, 140, 1);
    assert_int_equal(s[0].rows, 141);
    assert_int_equal(s[1].rows, 141);
    es_trainer *t;
    es_trainer_options o = {.max_tokens = N, .threads = 1, .kernels = table(state)};
    float *residual = calloc(N * f->m->info.d_model, sizeof *residual);
    assert_ok(es_trainer_open(&t, f->m, &o, &err), &err);
    es_batch b = {.ids = f->ids, .n = N, .start = (int[]){0, N}, .n_seq = 1};
    for (int i = 0; i < 2; i++) {
        assert_ok(es_trainer_residual(t, &b, s[i].layer, residual, NULL, &err), &err);
        for (int r = 0; r < 141; r++)
            assert_float_equal(s[i].first[r], residual[r * f->m->info.d_model], 1e-4);
    }
    es_trainer_free(t);
    free(residual);
    free_fixture(f);
}

static void test_no_allocation(void **state)
{
    if (!ALLOCATIONS_COUNT)
        skip();
    fixture *f = make(table(state), NULL);
    es_sampling s = es_sampling_default();
    es_rng rng;
    es_rng_seed(&rng, 0);
    feed(f, 0, 20);
    long before = allocations;
    int code = 0;
    for (int i = 0; i < 20; i++) {
        int32_t id = es_sample(f->c, &s, &rng);
        code |= es_context_feed(f->c, &id, 1, NULL, NULL);
    }
    long made = allocations - before;
    assert_int_equal(code, 0);
    assert_int_equal(made, 0);
    assert_true(before > 0);
    free_fixture(f);
}

/* The fast path may round, but the tokens it prefers stay much the same. */
static void test_not_exact(void **state)
{
    fixture *f = make(table(state), NULL);
    es_error err;
    es_context *c;
    es_context_options o = {.n_ctx = CTX, .threads = 2, .kernels = table(state)};
    assert_ok(es_context_open(&c, f->m, &o, &err), &err);
    for (int i = 0; i < 40; i++) {
        assert_ok(es_context_feed(c, f->ids + i, 1, NULL, &err), &err);
        near(es_context_logits(c), f->want[i], VOCAB, 0.5);
    }
    es_context_free(c);
    free_fixture(f);
}

static void test_open(void **state)
{
    es_error err;
    es_model *m = open_tiny(NULL);
    es_context *c;
    es_context_options o = {.kernels = table(state)};
    assert_ok(es_context_open(&c, m, &o, &err), &err);
    assert_int_equal(es_context_size(c), 512); /* trained */
    assert_int_equal(es_context_length(c), 0);
    es_context_free(c);
    es_context_free(NULL);
    o.n_ctx = 1 << 30;
    assert_error(es_context_open(&c, m, &o, &err), &err, "context");
    assert_null(c);
    o.n_ctx = 64;
    size_t small = es_context_bytes(m, &o);
    o.n_ctx = 128;
    assert_int_equal(es_context_bytes(m, &o) - small, 64 * (4 * 2 * 32 * 2 + 16 * 4 + 4)); /* k, v in half precision; rope's tables; ids */
    o.exact = true;
    size_t exact = es_context_bytes(m, &o);
    o.n_ctx = 64;
    assert_int_equal(exact - es_context_bytes(m, &o), 64 * (4 * 2 * 32 * 4 + 16 * 4 + 4)); /* in f32 */
    es_model_free(m);
}

/* Whichever allocation of opening fails, it says so and gives back what it had. */
static void test_no_memory(void **state)
{
    (void)state;
    if (!ALLOCATIONS_COUNT)
        skip();
    es_model *m = open_tiny(NULL);
    es_context *x;
    es_error err;
    int n = 0, code = ES_ERR_MEMORY;
    while (code && n < 20) {
        allocation_fails = allocations + ++n;
        code = es_context_open(&x, m, &(es_context_options){.n_ctx = 16, .threads = 2}, &err);
        allocation_fails = 0;
        assert_true(code == ES_OK || (code == ES_ERR_MEMORY && !x));
    }
    assert_true(n > 2 && n < 20);
    es_context_free(x);
    es_model_free(m);
}

/* ---- several sequences --------------------------------------------------------------------------------------------------------- */

enum { SEQUENCES = 5, PROMPT = 9 };

static es_context *open_several(const fixture *f, const es_kernels *k, bool exact, int n_seq)
{
    es_error err;
    es_context *c;
    es_context_options o = {.n_ctx = 40, .threads = 2, .kernels = k, .exact = exact, .n_seq = n_seq};
    assert_ok(es_context_open(&c, f->m, &o, &err), &err);
    assert_int_equal(es_context_sequences(c), n_seq);
    return c;
}

static void feed_one(es_context *c, int seq, const int32_t *ids, int n)
{
    es_error err;
    es_context_select(c, seq);
    assert_ok(es_context_feed(c, ids, n, NULL, &err), &err);
}

/* Sequences of different lengths, of which a step takes some in any order, have the logits that each has alone: to the bit in an exact
 * context. */
static void steps_as_alone(const es_kernels *k, bool exact)
{
    fixture *f = make(k, NULL);
    es_error err;
    es_context *c = open_several(f, k, exact, SEQUENCES), *alone[SEQUENCES];
    int fed[SEQUENCES];
    for (int s = 0; s < SEQUENCES; s++) {
        alone[s] = open_several(f, k, exact, 1);
        fed[s] = 1 + 3 * s;
        feed_one(c, s, f->ids + s, fed[s]);
        feed_one(alone[s], 0, f->ids + s, fed[s]);
    }
    static const int order[][SEQUENCES + 1] = {{5, 4, 2, 0, 1, 3}, {2, 1, 4}, {1, 3}, {3, 0, 1, 2}, {5, 0, 1, 2, 3, 4}};
    for (int i = 0; i < 5; i++) {
        int32_t id[SEQUENCES];
        const int n = order[i][0], *seq = order[i] + 1;
        for (int j = 0; j < n; j++)
            id[j] = f->ids[(seq[j] + fed[seq[j]]) % N];
        assert_ok(es_context_step(c, seq, id, n, NULL, &err), &err);
        for (int j = 0; j < n; j++) {
            int s = seq[j];
            feed_one(alone[s], 0, &id[j], 1);
            fed[s]++;
        }
        for (int s = 0; s < SEQUENCES; s++) {
            es_context_select(c, s);
            assert_int_equal(es_context_length(c), fed[s]);
            assert_memory_equal(es_context_ids(c), es_context_ids(alone[s]), sizeof(int32_t) * (size_t)fed[s]);
            if (exact)
                assert_memory_equal(es_context_logits(c), es_context_logits(alone[s]), VOCAB * sizeof(float));
            else
                near(es_context_logits(c), es_context_logits(alone[s]), VOCAB, 5e-3);
        }
    }
    for (int s = 0; s < SEQUENCES; s++)
        es_context_free(alone[s]);
    es_context_free(c);
    free_fixture(f);
}

static void test_steps(void **state)
{
    steps_as_alone(table(state), true);
    steps_as_alone(table(state), false);
}

static void test_step_errors(void **state)
{
    fixture *f = make(table(state), NULL);
    es_error err;
    for (int exact = 0; exact < 2; exact++) {
        es_context *c = open_several(f, table(state), exact, 3);
        bool cancel = true;
        const int32_t id[4] = {1, 2, VOCAB, 3};
        for (int s = 0; s < 3; s++)
            feed_one(c, s, f->ids, 4 + s);
        assert_error(es_context_step(c, (int[]){0, 1, 0}, id, 3, NULL, &err), &err, "twice");
        assert_error(es_context_step(c, (int[]){0, 3}, id, 2, NULL, &err), &err, "no sequence 3");
        assert_error(es_context_step(c, (int[]){0, -1}, id, 2, NULL, &err), &err, "no sequence -1");
        assert_error(es_context_step(c, (int[]){0, 1, 2, 0}, id, 4, NULL, &err), &err, "4 of 3");
        assert_error(es_context_step(c, (int[]){0}, id, 0, NULL, &err), &err, NULL);
        assert_error(es_context_step(c, (int[]){0, 1, 2}, id, 3, NULL, &err), &err, "vocabulary");
        assert_int_equal(es_context_step(c, (int[]){0, 1}, id, 2, &cancel, &err), ES_ERR_CANCELLED);
        for (int s = 0; s < 3; s++) {
            es_context_select(c, s);
            assert_int_equal(es_context_length(c), 4 + s);
        }
        es_context_select(c, 7); /* not listened to */
        assert_int_equal(es_context_length(c), 6);
        feed_one(c, 2, f->ids, 34);
        assert_int_equal(es_context_step(c, (int[]){1, 2}, id, 2, NULL, &err), ES_ERR_LIMIT);
        assert_error(es_context_share(c, 0, 5, &err), &err, "share");
        assert_error(es_context_share(c, 3, 1, &err), &err, "share");
        es_context_free(c);
    }
    es_context *c;
    es_context_options o = {.n_ctx = 8, .n_seq = ES_MAX_SEQUENCES + 1};
    assert_error(es_context_open(&c, f->m, &o, &err), &err, "sequences");
    free_fixture(f);
}

/* What is copied from another sequence is as good as fed. */
static void test_share(void **state)
{
    fixture *f = make(table(state), NULL);
    es_error err;
    for (int exact = 0; exact < 2; exact++) {
        es_context *c = open_several(f, table(state), exact, 3);
        feed_one(c, 1, f->ids, 20);
        es_context_select(c, 2);
        assert_ok(es_context_share(c, 1, 15, &err), &err);
        assert_int_equal(es_context_length(c), 15);
        feed_one(c, 2, f->ids + 15, 5);
        near(es_context_logits(c), f->want[19], VOCAB, exact ? 1e-3 : 0.1);
        assert_ok(es_context_share(c, 2, 3, &err), &err); /* with itself: a truncation */
        feed_one(c, 2, f->ids + 3, 4);
        near(es_context_logits(c), f->want[6], VOCAB, exact ? 1e-3 : 0.1);
        es_context_select(c, 1);
        assert_int_equal(es_context_length(c), 20);
        es_context_free(c);
    }
    free_fixture(f);
}

typedef struct ends {
    int n, order[20], stop_at;
} ends;

static int count_end(void *user, int i, es_error *err)
{
    ends *e = user;
    e->order[e->n++] = i;
    return e->n == e->stop_at ? es_fail(err, ES_ERR_IO, "enough") : ES_OK;
}

/* More prompts than sequences, of several lengths, some as others begin: each reply is what it is alone, in an exact context id by id,
 * sampled ones too; each is announced once. */
static void test_generate(void **state)
{
    enum { REPLIES = 11 };
    fixture *f = make(table(state), NULL);
    es_error err;
    es_reply all[REPLIES] = {0}, one[REPLIES] = {0};
    for (int i = 0; i < REPLIES; i++) {
        all[i] = (es_reply){.prompt = f->ids + (i % 3 ? 0 : i), .n_prompt = 1 + 2 * i, .max_new = i == 4 ? 1 : 3 + 5 * (i % 4),
                            .sampling = {.temperature = i % 2 ? 1 : 0, .top_p = 1, .repeat_penalty = 1, .seed = (uint64_t)i}};
        one[i] = all[i];
    }
    es_context *c = open_several(f, table(state), true, 4), *alone = open_several(f, table(state), true, 1);
    ends e = {0};
    feed_one(c, 2, f->ids, 5); /* gone when it starts */
    assert_ok(es_generate(c, all, REPLIES, count_end, &e, NULL, &err), &err);
    assert_int_equal(e.n, REPLIES);
    uint32_t came = 0;
    for (int i = 0; i < REPLIES; i++) {
        came |= 1u << e.order[i];
        assert_ok(es_generate(alone, &one[i], 1, NULL, NULL, NULL, &err), &err);
        assert_int_equal(all[i].ids.n, one[i].ids.n);
        assert_memory_equal(all[i].ids.id, one[i].ids.id, sizeof(int32_t) * one[i].ids.n);
        assert_int_equal(all[i].ended, one[i].ended);
        assert_true(all[i].ids.n >= 1 && all[i].ids.n <= (size_t)all[i].max_new);
        assert_true(all[i].ended == es_token_ends(f->m, all[i].ids.id[all[i].ids.n - 1]));
        assert_true(all[i].ended || all[i].ids.n == (size_t)all[i].max_new || all[i].n_prompt + (int)all[i].ids.n > 40);
    }
    assert_int_equal(came, (1u << REPLIES) - 1);
    assert_int_equal(e.order[0], 0), assert_int_equal(e.order[1], 4); /* in the order of their ends */
    es_buf text = {0};
    assert_ok(es_reply_text(f->m, &all[1], &text, &err), &err);
    assert_true(text.len > 0);
    es_buf_free(&text);

    e = (ends){.stop_at = 3};
    assert_error(es_generate(c, all, REPLIES, count_end, &e, NULL, &err), &err, "enough");
    assert_int_equal(e.n, 3);
    bool cancel = true;
    assert_int_equal(es_generate(c, all, REPLIES, NULL, NULL, &cancel, &err), ES_ERR_CANCELLED);
    one[0].max_new = 0;
    assert_error(es_generate(c, one, 1, NULL, NULL, NULL, &err), &err, "cannot be");
    one[0].max_new = 5, one[0].n_prompt = 41;
    assert_int_equal(es_generate(c, one, 1, NULL, NULL, NULL, &err), ES_ERR_LIMIT);
    assert_ok(es_generate(c, one, 0, NULL, NULL, NULL, &err), &err);
    for (int i = 0; i < REPLIES; i++)
        es_ids_free(&all[i].ids), es_ids_free(&one[i].ids);
    es_context_free(c);
    es_context_free(alone);
    free_fixture(f);
}

/* A step allocates nothing. */
static void test_step_allocates_nothing(void **state)
{
    if (!ALLOCATIONS_COUNT)
        skip();
    fixture *f = make(table(state), NULL);
    es_context *c = open_several(f, table(state), false, SEQUENCES);
    const int seq[SEQUENCES] = {0, 1, 2, 3, 4};
    for (int s = 0; s < SEQUENCES; s++)
        feed_one(c, s, f->ids, PROMPT);
    long before = allocations;
    int code = 0;
    for (int i = 0; i < 20; i++)
        code |= es_context_step(c, seq, f->ids + i, SEQUENCES, NULL, NULL);
    assert_int_equal(allocations - before, 0);
    assert_int_equal(code, 0);
    es_context_free(c);
    free_fixture(f);
}

int main(void)
{
    static int cpu = 1;
#define BOTH(f) {#f " (scalar)", f, NULL, NULL, NULL}, {#f " (cpu)", f, NULL, NULL, &cpu}
    const struct CMUnitTest tests[] = {
        BOTH(test_same_as_batch), BOTH(test_sync), BOTH(test_errors_leave_the_cache), BOTH(test_patch), BOTH(test_watch),
        BOTH(test_no_allocation), cmocka_unit_test(test_no_memory), BOTH(test_not_exact), BOTH(test_open),
        BOTH(test_steps), BOTH(test_step_errors), BOTH(test_share), BOTH(test_generate), BOTH(test_step_allocates_nothing),
    };
    return cmocka_run_group_tests_name("context", tests, NULL, NULL);
}
