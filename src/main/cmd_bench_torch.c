/* bench --against torch: a dictionary's training step beside the dense TopK step of PyTorch on the same batch, and the residual after half the
 * model's layers beside PyTorch's in bfloat16 on the same tokens.
 *
 * The sides take turns (tools/bench_torch.py does one thing when it is asked to), so that what else the machine does meets both. Each times its own
 * work: starting up, loading and talking to each other are not in it. */
#include "cmd_bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train.h"

enum { D = 576, FEATURES = 9216, K = 32, BATCH = 4096, SEQUENCES = 16, LENGTH = 256, AT_ONCE = 8, SIDES = 5, MAX_TURNS = BENCH_MAX_REPEAT + 1 };
static const double rate = 5e-4;

typedef struct side {
    const char *name, *what;
    double seconds[MAX_TURNS], work; /* tokens of a turn */
    int n;
} side;

/* ---- the batch: sums of K of FEATURES directions, and noise ------------------------------------------------------------------------------- */

int bench_features_batch(es_rng *rng, size_t batch, size_t d, size_t features, int k, float **out, es_error *err)
{
    float *x = es_calloc(batch * d, sizeof *x), *way = es_calloc(features * d, sizeof *way);
    *out = x;
    if (!x || !way) {
        free(way);
        return es_fail(err, ES_ERR_MEMORY, "not enough memory");
    }
    for (size_t i = 0; i < features * d; i++)
        way[i] = es_rng_normal(rng) / sqrtf((float)d);
    for (size_t t = 0; t < batch; t++) {
        float *row = x + t * d;
        for (int a = 0; a < k; a++) { /* some are commoner than others */
            double u = es_rng_uniform(rng);
            es_vector()->axpy(row, 3 * (float)-log(1 - es_rng_uniform(rng)), way + (size_t)(u * u * (double)features) * d, d);
        }
        for (size_t i = 0; i < d; i++)
            row[i] += 0.3f * es_rng_normal(rng);
    }
    free(way);
    return ES_OK;
}

static void read_row(const void *user, size_t row, float *out)
{
    memcpy(out, (const float *)user + row * D, D * sizeof *out);
}

/* The same start as the other side: no scale, no biases. */
static int ours_open(es_train **t, es_recipe recipe, const float *x, es_error *err)
{
    es_dictionary_training o = es_dictionary_training_default();
    o.recipe = recipe;
    o.n_features = FEATURES;
    o.k = K;
    o.batch = BATCH;
    o.learning_rate = rate;
    o.warmup = o.decay = 0;
    o.threads = the_app.threads;
    es_train_rows rows = {BATCH, D, read_row, x, INFINITY};
    int rc = es_train_open(t, &o, &rows, err);
    rc = rc ? rc : es_train_start(*t, err);
    if (!rc) {
        (*t)->scale = 1;
        memset((*t)->p[ES_P_B_DEC].w, 0, D * sizeof(float));
    }
    return rc;
}

static int our_step(es_train *t, side *s, double *loss, es_error *err)
{
    double began = es_seconds();
    int rc = es_train_step(t, err);
    s->seconds[s->n++] = es_seconds() - began;
    *loss = 0;
    for (int i = 0; i < es_pool_threads(t->pool); i++)
        *loss += t->part_error[i] / BATCH;
    return rc;
}

/* ---- the residual ---------------------------------------------------------------------------------------------------------------------------- */

typedef struct reader {
    es_trainer *trainer;
    int layer, d;
    es_ids ids;
    float *x;       /* [AT_ONCE * LENGTH, d] */
    uint16_t *half; /* all of it, as a harvest stores it */
} reader;

static int reader_open(reader *r, bench *b, es_error *err)
{
    const es_model_info *mi = es_model_get_info(b->m);
    es_harvest_options h = es_harvest_default();
    h.threads = the_app.threads;
    r->layer = mi->n_layer / 2;
    r->d = mi->d_model;
    r->x = es_calloc((size_t)AT_ONCE * LENGTH * (size_t)r->d, sizeof *r->x);
    r->half = es_calloc((size_t)SEQUENCES * LENGTH * (size_t)r->d, sizeof *r->half);
    if (!r->x || !r->half)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory");
    int rc = bench_random_ids(b->m, &b->rng, &r->ids, SEQUENCES * LENGTH, err);
    es_trainer_options o = es_harvest_trainer(&h);
    return rc ? rc : es_trainer_open(&r->trainer, b->m, &o, err);
}

static void reader_close(reader *r)
{
    es_trainer_free(r->trainer);
    es_ids_free(&r->ids);
    free(r->x);
    free(r->half);
}

static int our_states(reader *r, side *s, es_error *err)
{
    int start[AT_ONCE + 1], rc = ES_OK;
    size_t n = (size_t)AT_ONCE * LENGTH * (size_t)r->d;
    for (int i = 0; i <= AT_ONCE; i++)
        start[i] = i * LENGTH;
    double began = es_seconds();
    for (int i = 0; i < SEQUENCES / AT_ONCE && !rc; i++) {
        es_batch batch = {.ids = r->ids.id + (size_t)i * AT_ONCE * LENGTH, .n = AT_ONCE * LENGTH, .start = start, .n_seq = AT_ONCE};
        rc = es_trainer_residual(r->trainer, &batch, r->layer, r->x, &app_cancel, err);
        if (!rc)
            es_f32_to_f16(r->x, r->half + (size_t)i * n, n);
    }
    s->seconds[s->n++] = es_seconds() - began;
    return rc;
}

/* The mean over the first sequence's tokens of how far the two norms are apart, as a share. */
static int compare_states(const reader *r, peer *p, double *away, es_error *err)
{
    json_t *answer;
    int rc = peer_ask(p, json_string("check"), &answer, err);
    if (rc)
        return rc;
    float *row = r->x;
    *away = 0;
    for (size_t t = 0; t < LENGTH; t++) {
        es_f16_to_f32(r->half + t * (size_t)r->d, row, (size_t)r->d);
        double ours = sqrt((double)es_vector()->dot(row, row, (size_t)r->d)), theirs = json_number_value(json_array_get(json_object_get(answer, "norms"), t));
        *away += fabs(ours - theirs) / (theirs + 1e-9) / LENGTH;
    }
    json_decref(answer);
    return ES_OK;
}

/* ---- both ------------------------------------------------------------------------------------------------------------------------------------- */

static int ask(peer *p, const char *what, side *s, double *loss, es_error *err)
{
    json_t *answer;
    int rc = peer_ask(p, json_string(what), &answer, err);
    if (rc)
        return rc;
    s->seconds[s->n++] = json_number_value(json_object_get(answer, "seconds"));
    if (loss)
        *loss = json_number_value(json_object_get(answer, "loss"));
    json_decref(answer);
    return ES_OK;
}

static json_t *question(const char *folder, const reader *r, const char *model, long threads)
{
    char x[1200], enc[1200];
    snprintf(x, sizeof x, "%s/x.f32", folder);
    snprintf(enc, sizeof enc, "%s/enc.f32", folder);
    json_t *sequences = json_array();
    for (size_t s = 0; s < SEQUENCES; s++) {
        json_t *one = json_array();
        for (size_t i = 0; i < LENGTH; i++)
            json_array_append_new(one, json_integer(r->ids.id[s * LENGTH + i]));
        json_array_append_new(sequences, one);
    }
    return json_pack("{s:s,s:I,s:s,s:s,s:i,s:i,s:i,s:i,s:f,s:i,s:o}", "model", model, "threads", (json_int_t)threads, "x", x, "enc", enc, "d", D, "features", FEATURES, "k", K,
                     "batch", BATCH, "rate", rate, "layer", r->layer, "sequences", sequences);
}

int bench_write_numbers(const char *folder, const char *name, const float *x, size_t n, es_error *err)
{
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return es_file_write(path, x, n * sizeof *x, err);
}

/* Tokens a second, of all turns but the first, which warms up. */
static json_t *summary(side *s, double *median)
{
    double *t = s->seconds + 1;
    int n = s->n - 1;
    for (int i = 0; i < n; i++)
        t[i] = s->work / t[i];
    *median = bench_median(t, n);
    if (!the_app.json)
        printf("%-16s %9.0f tokens a second %9.0f .. %-9.0f %s\n", s->name, *median, t[0], t[n - 1], s->what);
    return json_pack("{s:f,s:f,s:f,s:i,s:s}", "median", *median, "least", t[0], "most", t[n - 1], "runs", n, "what", s->what);
}

static void show(side s[SIDES], json_t *about, const double loss[2], double away, long threads, json_t *into)
{
    double median[SIDES];
    json_t *ratios = json_object();
    for (int i = 0; i < SIDES; i++)
        json_object_set_new(into, s[i].name, summary(&s[i], &median[i]));
    json_object_set_new(ratios, "topk", json_real(median[0] / median[2]));
    json_object_set_new(ratios, "batchtopk", json_real(median[1] / median[2]));
    json_object_set_new(ratios, "harvest", json_real(median[3] / median[4]));
    if (!the_app.json) {
        printf("width %d, %d features, %d active, batches of %d; %d sequences of %d tokens; %ld threads each; medians of %d, in turns; torch %s, transformers %s; its numbers: %s\n", D,
               FEATURES, K, BATCH, SEQUENCES, LENGTH, threads, s[0].n - 1, json_string_value(json_object_get(about, "torch")),
               json_string_value(json_object_get(about, "transformers")), json_string_value(json_object_get(about, "weights")));
        printf("the first step's loss: %.4f here, %.4f there; norms of the residual are %.2f %% apart\n", loss[0], loss[1], 100 * away);
        printf("training: %.2f times PyTorch (topk), %.2f (batchtopk); harvest: %.2f times PyTorch in bfloat16\n", median[0] / median[2], median[1] / median[2],
               median[3] / median[4]);
    }
    json_object_set_new(into, "ratios", ratios);
    json_object_set_new(into, "norms_apart", json_real(away));
    json_object_set_new(into, "threads", json_integer(threads));
    json_object_set(into, "torch_version", json_object_get(about, "torch"));
    json_object_set(into, "transformers_version", json_object_get(about, "transformers"));
    json_object_set(into, "weights", json_object_get(about, "weights"));
}

static int turns(side s[SIDES], es_train *t[2], reader *r, peer *p, int repeat, double loss[2], es_error *err)
{
    es_progress progress = app_progress();
    int rc = ES_OK;
    for (int i = 0; i <= repeat && !rc; i++) {
        double ours, theirs, unused;
        rc = our_step(t[0], &s[0], &ours, err);
        rc = rc ? rc : our_step(t[1], &s[1], &unused, err);
        rc = rc ? rc : ask(p, "step", &s[2], &theirs, err);
        rc = rc ? rc : our_states(r, &s[3], err);
        rc = rc ? rc : ask(p, "harvest", &s[4], NULL, err);
        if (i == 0) {
            loss[0] = ours;
            loss[1] = theirs;
        }
        es_progress_report(&progress, "turns", i + 1, repeat + 1, "turns");
    }
    return rc;
}

int bench_against_torch(bench *b, const char *python, const char *model_hf, json_t *into, es_error *err)
{
    side s[SIDES] = {{.name = "topk", .what = "espalier, TopK", .work = BATCH}, {.name = "batchtopk", .what = "espalier, BatchTopK, the default", .work = BATCH},
                     {.name = "torch", .what = "PyTorch, dense TopK: forward, backward, Adam, f32", .work = BATCH},
                     {.name = "harvest", .what = "espalier, the residual after half the layers, as f16", .work = SEQUENCES * LENGTH},
                     {.name = "torch_harvest", .what = "PyTorch, the same in bfloat16", .work = SEQUENCES * LENGTH}};
    char folder[] = "/tmp/espalier-bench-XXXXXX";
    peer p = {.fd = -1};
    reader r = {0};
    es_train *t[2] = {NULL, NULL};
    float *x = NULL;
    json_t *about = NULL;
    double loss[2] = {0}, away = 0;
    long threads = the_app.threads ? the_app.threads : sysconf(_SC_NPROCESSORS_ONLN);
    if (!mkdtemp(folder))
        return es_fail(err, ES_ERR_IO, "cannot make a folder in /tmp");
    int rc = peer_open(&p, python, "bench_torch.py", "torch, transformers and gguf", err);
    rc = rc ? rc : bench_features_batch(&b->rng, BATCH, D, FEATURES, K, &x, err);
    rc = rc ? rc : ours_open(&t[0], ES_TRAIN_TOPK, x, err);
    rc = rc ? rc : ours_open(&t[1], ES_TRAIN_BATCHTOPK, x, err);
    rc = rc ? rc : reader_open(&r, b, err);
    rc = rc ? rc : bench_write_numbers(folder, "x.f32", x, (size_t)BATCH * D, err);
    rc = rc ? rc : bench_write_numbers(folder, "enc.f32", t[0]->p[ES_P_ENC].w, (size_t)FEATURES * D, err);
    rc = rc ? rc : peer_ask(&p, question(folder, &r, model_hf ? model_hf : es_model_get_info(b->m)->path, threads), &about, err);
    app_remove_tree(folder);
    rc = rc ? rc : turns(s, t, &r, &p, b->repeat, loss, err);
    rc = rc ? rc : compare_states(&r, &p, &away, err);
    app_progress_end();
    const char *weights = json_string_value(json_object_get(about, "weights"));
    if (!rc && !(fabs(loss[0] - loss[1]) < 1e-3 * loss[1]))
        rc = es_fail(err, ES_ERR_MISMATCH, "the two sides do not start from the same loss (%.4f and %.4f): not the same batch", loss[0], loss[1]);
    if (!rc && !(weights && !strncmp(weights, "random", 6)) && !(away < 0.03))
        rc = es_fail(err, ES_ERR_MISMATCH, "the two sides' residuals are %.1f %% apart: not the same model or not the same tokens", 100 * away);
    if (!rc)
        show(s, about, loss, away, threads, into);
    for (int i = 0; i < 2; i++)
        es_train_close(t[i]);
    reader_close(&r);
    free(x);
    json_decref(about);
    peer_close(&p, rc != ES_OK);
    return rc;
}
