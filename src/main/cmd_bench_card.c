/* bench --device cuda --python: the card's work beside PyTorch's, transformers' and PEFT's on the same card (tools/bench_card.py does one thing when it
 * is asked to). The sides take turns, each times its own work, the median counts, and the first turn warms up. */
#include "cmd_bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_card.h"
#include "es_cuda.h"
#include "train.h"
#include "weights.h"

enum { MAX_TURNS = BENCH_MAX_REPEAT + 1, LOOKED_AT = 256, PEFT_RANK = 32 };

typedef struct against {
    es_cuda *card;
    peer p;
    int repeat;
    bool small;
    json_t *rows;
    es_error *err;
    es_rng rng;
} against;

typedef struct figures { double v[MAX_TURNS]; int n; } figures; /* rates, the first of them warming up */

/* ---- rows -------------------------------------------------------------------------------------------------------------------------------- */

static json_t *side_of(figures *f)
{
    double median = bench_median(f->v + 1, f->n - 1);
    return json_pack("{s:f,s:f,s:f,s:i}", "median", median, "least", f->v[1], "most", f->v[f->n - 1], "runs", f->n - 1);
}

static void add_row(against *a, const char *name, const char *what, const char *unit, figures *ours, figures *theirs)
{
    json_t *us = side_of(ours), *them = side_of(theirs);
    double x = json_real_value(json_object_get(us, "median")), y = json_real_value(json_object_get(them, "median"));
    json_array_append_new(a->rows, json_pack("{s:s,s:s,s:s,s:o,s:o,s:f}", "name", name, "what", what, "unit", unit, "ours", us, "theirs", them, "ratio", x / y));
    app_progress_end();
    if (the_app.json)
        return;
    printf("%-18s %10.1f beside %10.1f %-9s %6.2f times  %s\n", name, x, y, unit, x / y, what);
    fflush(stdout);
}

static void add_skipped(against *a, const char *name, const char *what, const char *why)
{
    json_array_append_new(a->rows, json_pack("{s:s,s:s,s:s}", "name", name, "what", what, "skipped", why));
    if (!the_app.json)
        printf("%-18s left out (%s): %s\n", name, what, why);
}

/* What was answered; *skipped: why the other side's memory does not do, the caller's. */
static int ask(against *a, json_t *question, json_t **answer, char **skipped)
{
    int rc = peer_ask(&a->p, question, answer, a->err);
    const char *why = rc ? NULL : json_string_value(json_object_get(*answer, "skipped"));
    *skipped = why ? strdup(why) : NULL;
    return rc;
}

/* The same where only the seconds count; a skip comes as ES_ERR_MEMORY. */
static int ask_seconds(against *a, json_t *question, double *seconds)
{
    json_t *answer = NULL;
    char *skipped = NULL;
    int rc = ask(a, question, &answer, &skipped);
    if (skipped)
        rc = es_fail(a->err, ES_ERR_MEMORY, "%.300s", skipped);
    *seconds = rc ? 0 : json_number_value(json_object_get(answer, "seconds"));
    free(skipped);
    json_decref(answer);
    return rc;
}

static int close_theirs(against *a)
{
    double unused;
    return ask_seconds(a, json_string("close"), &unused);
}

/* No room on either side is a row that says so. */
static int or_skipped(against *a, int rc, const char *name, const char *what)
{
    if (rc != ES_ERR_MEMORY)
        return rc;
    add_skipped(a, name, what, a->err->text);
    return ES_OK;
}

/* ---- a dictionary's training step ------------------------------------------------------------------------------------------------------- */

typedef struct rows_of { const float *x; size_t d; } rows_of;

static void read_row(const void *user, size_t row, float *out)
{
    const rows_of *r = user;
    memcpy(out, r->x + row * r->d, r->d * sizeof *out);
}

static int train_open(against *a, const rows_of *r, int features, int k, int batch, double rate, es_train **t)
{
    es_dictionary_training o = es_dictionary_training_default();
    o.n_features = features;
    o.k = k;
    o.batch = batch;
    o.learning_rate = rate;
    o.warmup = o.decay = 0;
    o.aux_k = 0; /* the other side has none */
    o.threads = the_app.threads;
    o.card = a->card;
    if (a->small)
        o.card_workspace = 2 << 20;
    es_train_rows rows = {(size_t)batch, r->d, read_row, r, INFINITY};
    int rc = es_train_open(t, &o, &rows, a->err);
    rc = rc ? rc : es_train_start(*t, a->err);
    if (!rc) {
        (*t)->scale = 1;
        memset((*t)->p[ES_P_B_DEC].w, 0, r->d * sizeof(float));
    }
    return rc;
}

static int train_turns(against *a, es_train *t, int batch, const char *name, const char *what)
{
    figures ours = {0}, theirs = {0};
    int rc = ES_OK;
    for (int i = 0; i <= a->repeat && !rc; i++) {
        json_t *answer = NULL;
        char *skipped = NULL;
        double began = es_seconds();
        rc = es_train_step(t, a->err);
        ours.v[ours.n++] = batch / (es_seconds() - began);
        rc = rc ? rc : ask(a, json_string("step"), &answer, &skipped);
        if (skipped)
            rc = es_fail(a->err, ES_ERR_MEMORY, "%.300s", skipped);
        free(skipped);
        if (!rc) {
            theirs.v[theirs.n++] = batch / json_number_value(json_object_get(answer, "seconds"));
            double fvu = json_number_value(json_object_get(answer, "fvu"));
            if (i == 0 && !(fabs(fvu - t->fvu) < 0.01 * fvu))
                rc = es_fail(a->err, ES_ERR_MISMATCH, "the two sides do not start from the same error (%.4f and %.4f): not the same batch", t->fvu, fvu);
        }
        json_decref(answer);
    }
    if (!rc)
        add_row(a, name, what, "tokens/s", &ours, &theirs);
    return rc;
}

/* The first batch in the order in which t goes through its rows, so that both sides look at the same rows' error. */
static int write_in_order(const es_train *t, const char *folder, size_t batch, size_t d, es_error *err)
{
    float *x = es_calloc(batch * d, sizeof *x);
    if (!x)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a batch");
    for (size_t i = 0; i < batch; i++)
        es_train_take(t, i, x + i * d);
    int rc = bench_write_numbers(folder, "x.f32", x, batch * d, err);
    free(x);
    return rc;
}

static int dictionary(against *a)
{
    const int d = a->small ? 32 : 2048, features = a->small ? 256 : 65536, k = a->small ? 8 : 64, batch = a->small ? 2 * LOOKED_AT : 4096;
    const double rate = 1e-4;
    const char *name = "dictionary", *what = "a training step, d 2048, 65,536 features, BatchTopK 64, batch 4,096, beside dense operations in TF32";
    char folder[] = "/tmp/espalier-bench-XXXXXX", x_path[1200], enc_path[1200];
    rows_of r = {.d = (size_t)d};
    float *x = NULL;
    es_train *t = NULL;
    double unused;
    if (!mkdtemp(folder))
        return es_fail(a->err, ES_ERR_IO, "cannot make a folder in /tmp");
    snprintf(x_path, sizeof x_path, "%s/x.f32", folder);
    snprintf(enc_path, sizeof enc_path, "%s/enc.f32", folder);
    int rc = bench_features_batch(&a->rng, (size_t)batch, (size_t)d, (size_t)features, k, &x, a->err);
    r.x = x;
    rc = rc ? rc : train_open(a, &r, features, k, batch, rate, &t);
    rc = rc ? rc : write_in_order(t, folder, (size_t)batch, (size_t)d, a->err);
    rc = rc ? rc : bench_write_numbers(folder, "enc.f32", t->p[ES_P_ENC].w, (size_t)features * (size_t)d, a->err);
    rc = rc ? rc : ask_seconds(a, json_pack("{s:s,s:s,s:s,s:i,s:i,s:i,s:i,s:f,s:i}", "open", "dictionary", "x", x_path, "enc", enc_path, "d", d, "features", features, "k", k,
                                            "batch", batch, "rate", rate, "looked_at", LOOKED_AT), &unused);
    app_remove_tree(folder);
    rc = rc ? rc : train_turns(a, t, batch, name, what);
    es_train_close(t);
    free(x);
    rc = or_skipped(a, rc, name, what);
    return rc ? rc : close_theirs(a);
}

/* ---- models ----------------------------------------------------------------------------------------------------------------------------- */

static const es_model_info one_b = {.architecture = "llama", .n_layer = 16, .d_model = 2048, .n_head = 32, .n_kv = 8, .head_dim = 64, .d_ff = 8192, .n_vocab = 128256,
                                    .n_ctx = 8192, .rope_base = 10000, .norm_eps = 1e-5f},
                           eight_b = {.architecture = "llama", .n_layer = 32, .d_model = 4096, .n_head = 32, .n_kv = 8, .head_dim = 128, .d_ff = 14336, .n_vocab = 128256,
                                      .n_ctx = 8192, .rope_base = 10000, .norm_eps = 1e-5f},
                           tiny = {.architecture = "llama", .n_layer = 2, .d_model = 64, .n_head = 4, .n_kv = 2, .head_dim = 16, .d_ff = 96, .n_vocab = 300, .n_ctx = 512,
                                   .rope_base = 10000, .norm_eps = 1e-5f};

static json_t *model_question(const es_model_info *i)
{
    return json_pack("{s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:f,s:f}", "open", "model", "layers", i->n_layer, "width", i->d_model, "heads", i->n_head, "kv", i->n_kv, "head",
                     i->head_dim, "ff", i->d_ff, "vocab", i->n_vocab, "context", i->n_ctx, "rope_base", (double)i->rope_base, "eps", (double)i->norm_eps);
}

typedef int rate_of(const es_model *m, int n, double *rate, es_error *err);

static int speech_turns(against *a, const es_model *m, const char *name, const char *what, const char *theirs_key, rate_of *rate, int n)
{
    figures ours = {0}, theirs = {0};
    int rc = ES_OK;
    for (int i = 0; i <= a->repeat && !rc; i++) {
        double seconds;
        rc = rate(m, n, &ours.v[ours.n], a->err);
        ours.n++;
        rc = rc ? rc : ask_seconds(a, json_pack("{s:i}", theirs_key, n), &seconds);
        if (!rc)
            theirs.v[theirs.n++] = n / seconds;
    }
    if (!rc)
        add_row(a, name, what, "tokens/s", &ours, &theirs);
    return or_skipped(a, rc, name, what);
}

static int learning_turns(against *a, const es_model *m, const char *name, const char *what, bench_card_learning kind)
{
    const int sequences = a->small ? 2 : 8, length = a->small ? 16 : 512;
    bench_card_steps *s = NULL;
    figures ours = {0}, theirs = {0};
    int rc = bench_card_steps_open(&s, m, kind, sequences, length, a->err);
    for (int i = 0; i <= a->repeat && !rc; i++) {
        double seconds;
        rc = bench_card_step(s, &seconds, a->err);
        ours.v[ours.n++] = 1 / seconds;
        rc = rc ? rc : ask_seconds(a, json_string("step"), &seconds);
        if (!rc)
            theirs.v[theirs.n++] = 1 / seconds;
    }
    bench_card_steps_close(s);
    if (!rc)
        add_row(a, name, what, "steps/s", &ours, &theirs);
    return or_skipped(a, rc, name, what);
}

static int model(against *a, const char *name, const es_model_info *info)
{
    es_model *m = NULL;
    double unused;
    const es_card_options o = {.workspace = a->small ? 1 << 20 : (size_t)256 << 20};
    int rc = es_model_random(&m, info, ES_BF16, 1, a->err);
    rc = rc ? rc : es_model_use_card(m, a->card, &o, a->err);
    rc = rc ? rc : ask_seconds(a, model_question(info), &unused);
    if (!rc) {
        rc = speech_turns(a, m, name, "decoding, one sequence, beside transformers", "decode", bench_card_decode, a->small ? 8 : 64);
        rc = rc ? rc : speech_turns(a, m, name, "a prompt, beside transformers", "prompt", bench_card_prompt, a->small ? 40 : 2048);
        /* as large as what learns here */
        int opened = rc ? rc : ask_seconds(a, json_pack("{s:s,s:i,s:i,s:i}", "open", "peft", "rank", PEFT_RANK, "sequences", a->small ? 2 : 8, "length", a->small ? 16 : 512), &unused);
        if (!opened) {
            rc = learning_turns(a, m, name, "a step above the middle layer of 8 x 512 tokens, updates of rank 32 of o and down, beside PEFT's LoRA of rank 32", BENCH_CONSTRAINED);
            rc = rc ? rc : learning_turns(a, m, name, "a step of LoRA of rank 32 on 8 x 512 tokens, all matrices, beside PEFT's", BENCH_LORA);
        } else
            rc = opened;
    }
    es_model_free(m);
    rc = or_skipped(a, rc, name, "all of it");
    return rc ? rc : close_theirs(a);
}

int bench_against_card(es_cuda *card, const char *python, bool small, int repeat, json_t *into, es_error *err)
{
    against a = {.card = card, .repeat = repeat, .small = small, .rows = json_array(), .err = err};
    json_t *about = NULL;
    char line[300], device[20] = "cpu";
    int index = 0;
    es_rng_seed(&a.rng, 1);
    es_cuda_describe(card, line, sizeof line);
    if (!small && sscanf(line, "cuda:%d", &index) == 1)
        snprintf(device, sizeof device, "cuda:%d", index);
    long threads = the_app.threads ? the_app.threads : sysconf(_SC_NPROCESSORS_ONLN);
    int rc = peer_open(&a.p, python, "bench_card.py", "torch, transformers and peft", err);
    rc = rc ? rc : peer_ask(&a.p, json_pack("{s:s,s:I}", "device", device, "threads", (json_int_t)threads), &about, err);
    rc = rc ? rc : dictionary(&a);
    if (small)
        rc = rc ? rc : model(&a, "tiny BF16", &tiny);
    else {
        rc = rc ? rc : model(&a, "1b BF16", &one_b);
        rc = rc ? rc : model(&a, "8b BF16", &eight_b);
    }
    app_progress_end();
    if (!rc && !the_app.json)
        printf("medians of %d, in turns; torch %s, transformers %s, peft %s, on %s\n", repeat, json_string_value(json_object_get(about, "torch")),
               json_string_value(json_object_get(about, "transformers")), json_string_value(json_object_get(about, "peft")), json_string_value(json_object_get(about, "device")));
    json_object_set_new(into, "rows", a.rows);
    json_object_set_new(into, "versions", about ? about : json_null());
    peer_close(&a.p, rc != ES_OK);
    return rc;
}
