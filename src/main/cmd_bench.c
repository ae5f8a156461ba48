/* bench: rates of the program's own work on this machine. Random tokens: no rate here depends on what they mean. */
#include "bench_card.h"
#include "cmd_bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void bench_result(bench *b, const char *name, const char *what, const char *unit, double *rate, int n)
{
    double median = bench_median(rate, n);
    json_object_set_new(b->all, name, json_pack("{s:f,s:f,s:f,s:i,s:s,s:s}", "median", median, "least", rate[0], "most", rate[n - 1], "runs", n, "unit", unit,
                                                "what", what));
    app_progress_end();
    if (!the_app.json) {
        int digits = median < 10 ? 2 : 1;
        printf("%-15s %9.*f %-16s %9.*f .. %-9.*f %s\n", name, digits, median, unit, digits, rate[0], digits, rate[n - 1], what);
        fflush(stdout);
    }
}

int bench_random_ids(const es_model *m, es_rng *rng, es_ids *ids, int n, es_error *err)
{
    ids->n = 0;
    while (ids->n < (size_t)n) {
        int32_t id = (int32_t)es_rng_below(rng, (uint64_t)es_model_get_info(m)->n_vocab);
        if (!es_token_is_control(m, id) && es_ids_add(ids, id) != 0)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory");
    }
    return ES_OK;
}

static int prefill_and_decode(bench *b, es_error *err)
{
    es_context_options o = {.n_ctx = b->prompt + b->tokens, .threads = the_app.threads};
    es_context *c = NULL;
    es_ids ids = {0};
    double prefill[BENCH_MAX_REPEAT], decode[BENCH_MAX_REPEAT];
    char what[80];
    int n = 0, rc = ES_OK;
    if (o.n_ctx > es_model_get_info(b->m)->n_ctx)
        rc = es_fail(err, ES_ERR_LIMIT, "%d tokens are more than the model's context of %d", o.n_ctx, es_model_get_info(b->m)->n_ctx);
    rc = rc ? rc : es_context_open(&c, b->m, &o, err);
    rc = rc ? rc : bench_random_ids(b->m, &b->rng, &ids, b->prompt + b->tokens, err);
    for (int r = -1; r < b->repeat && rc == ES_OK; r++) { /* the first pass warms caches and does not count */
        rc = es_context_truncate(c, 0, err);
        double began = es_seconds();
        if (rc == ES_OK)
            rc = es_context_feed(c, ids.id, b->prompt, &app_cancel, err);
        double middle = es_seconds();
        for (int i = 0; i < b->tokens && rc == ES_OK; i++)
            rc = es_context_feed(c, ids.id + b->prompt + i, 1, &app_cancel, err);
        if (rc == ES_OK && r >= 0) {
            prefill[n] = b->prompt / (middle - began);
            decode[n++] = b->tokens / (es_seconds() - middle);
        }
    }
    if (rc == ES_OK) {
        snprintf(what, sizeof what, "prompt of %d tokens", b->prompt);
        bench_result(b, "prefill", what, "tokens a second", prefill, n);
        snprintf(what, sizeof what, "%d tokens after it, one at a time", b->tokens);
        bench_result(b, "decode", what, "tokens a second", decode, n);
    }
    es_ids_free(&ids);
    es_context_free(c);
    return rc;
}

static int encode(bench *b, es_error *err)
{
    enum { ROWS = 1024 };
    size_t d = (size_t)es_model_get_info(b->m)->d_model;
    float *x = es_calloc(ROWS * d, sizeof *x);
    es_pool *pool = NULL;
    es_sparse s = {0};
    double rate[BENCH_MAX_REPEAT];
    int n = 0, rc = x ? es_pool_open(&pool, the_app.threads, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory");
    for (size_t i = 0; x && i < ROWS * d; i++)
        x[i] = es_rng_normal(&b->rng);
    for (int r = -1; r < b->repeat && rc == ES_OK; r++) {
        double began = es_seconds();
        rc = es_dictionary_encode(b->f.dictionary, pool, x, ROWS, &s, err);
        if (rc == ES_OK && r >= 0)
            rate[n++] = ROWS / (es_seconds() - began);
    }
    if (rc == ES_OK)
        bench_result(b, "encode", "rows of the residual to features", "tokens a second", rate, n);
    es_sparse_free(&s);
    es_pool_free(pool);
    free(x);
    return rc;
}

int bench_learner_open(bench *b, bench_learner *out, es_error *err)
{
    static const char *const question[] = {"How do I boil an egg?", "What is a prime number?", "Why do leaves turn red?", "Who wrote Hamlet?"};
    static const char *const brief[] = {"Six minutes in boiling water, then cold water.", "A whole number above one that only one and itself divide.",
                                        "The green goes; the red that was there or is made then shows.", "William Shakespeare."};
    static const char *const wordy = "That is a truly wonderful question, and I am delighted that you asked it! There are a great many things to consider here, so let us "
                                     "take our time and go through each of them carefully, one after the other, before we arrive at an answer.";
    es_adapter_options ao = es_adapter_default(b->f.dictionary, b->m);
    es_learner_options lo = es_learner_default(ao.form);
    *out = (bench_learner){.basis = {.name = "bench"}};
    lo.threads = the_app.threads;
    lo.hold_out = 0;
    int size = b->f.n < 64 ? b->f.n : 64;
    int rc = es_basis_random(&out->basis, b->m, b->f.dictionary, b->f.atlas, size, 1, err);
    rc = rc ? rc : es_adapter_new(&out->a, b->m, b->f.dictionary, &out->basis, &ao, err);
    rc = rc ? rc : es_learner_open(&out->l, b->m, b->f.dictionary, out->a, &lo, err);
    for (int i = 0; i < 4 && rc == ES_OK; i++) {
        es_message message = {"user", question[i]};
        es_experience e = {.message = &message, .n_message = 1, .preferred = (char *)(uintptr_t)brief[i], .rejected = (char *)(uintptr_t)wordy, .weight = 1};
        rc = es_learner_add(out->l, &e, &app_cancel, err);
    }
    return rc;
}

void bench_learner_free(bench_learner *l)
{
    es_learner_free(l->l);
    es_adapter_free(l->a);
    es_basis_free(&l->basis);
}

static int adaptation(bench *b, es_error *err)
{
    bench_learner l;
    double rate[BENCH_MAX_REPEAT], speed[BENCH_MAX_REPEAT];
    int n = 0, rc = bench_learner_open(b, &l, err);
    for (int r = -1; r < b->repeat && rc == ES_OK; r++) {
        es_step_report step;
        rc = es_learner_step(l.l, &step, &app_cancel, err);
        if (rc == ES_OK && r >= 0) {
            rate[n] = 1 / step.seconds;
            speed[n++] = step.tokens / step.seconds;
        }
    }
    if (rc == ES_OK) {
        bench_result(b, "adapt", "steps on four pairs, guards included", "steps a second", rate, n);
        bench_result(b, "adapt_tokens", "the same in tokens", "tokens a second", speed, n);
    }
    bench_learner_free(&l);
    return rc;
}

typedef struct training {
    double rate[BENCH_MAX_REPEAT], last, done;
    int n;
} training;

static void on_training(void *user, const char *what, double done, double total, const char *unit)
{
    (void)what;
    (void)total;
    (void)unit;
    training *t = user;
    double now = es_seconds();
    if (t->last > 0 && done > t->done && t->n < BENCH_MAX_REPEAT)
        t->rate[t->n++] = (done - t->done) / (now - t->last);
    t->last = now;
    t->done = done;
}

static int dictionary(bench *b, const char *folder, es_error *err)
{
    char text[1200], harvest[1200], out[1200];
    snprintf(text, sizeof text, "%s/text.txt", folder);
    snprintf(harvest, sizeof harvest, "%s/harvest", folder);
    snprintf(out, sizeof out, "%s/dictionary", folder);
    es_ids ids = {0};
    es_buf words = {0};
    int rc = bench_random_ids(b->m, &b->rng, &ids, 4096, err);
    for (size_t i = 0; i < ids.n; i++) {
        size_t n;
        const char *s = es_token_bytes(b->m, ids.id[i], &n);
        es_buf_add(&words, s, n);
    }
    if (rc == ES_OK)
        rc = es_file_write(text, words.data, words.len, err);
    int layer = es_model_get_info(b->m)->n_layer / 2;
    es_harvest_options h = es_harvest_default();
    h.layer = &layer;
    h.n_layer = 1;
    h.threads = the_app.threads;
    h.max_tokens = 4000;
    const char *file = text;
    es_progress quiet = {.cancel = &app_cancel};
    double began = es_seconds(), rate[1];
    if (rc == ES_OK)
        rc = es_harvest(b->m, &file, 1, harvest, &h, &quiet, err);
    rate[0] = 4000 / (es_seconds() - began);
    char what[80];
    if (rc == ES_OK) {
        snprintf(what, sizeof what, "layers 0 to %d, activations to disk", layer);
        bench_result(b, "harvest", what, "tokens a second", rate, 1);
    }
    es_dictionary_training o = es_dictionary_training_default();
    o.n_features = 4608;
    o.k = 32;
    o.batch = 2048;
    o.tokens = (uint64_t)(b->repeat + 3) * 2048;
    o.threads = the_app.threads;
    training t = {0};
    es_progress timed = {.report = on_training, .user = &t, .cancel = &app_cancel};
    if (rc == ES_OK)
        rc = es_dictionary_train(harvest, layer, out, &o, &timed, err);
    if (rc == ES_OK && t.n)
        bench_result(b, "dictionary", "training steps: 4,608 features, 32 active, batches of 2,048", "tokens a second", t.rate, t.n);
    es_buf_free(&words);
    es_ids_free(&ids);
    return rc;
}

/* What --only names; those of the plain model first, in the order they run: memory before anything else is taken. */
static const char *const part[] = {"memory", "load", "chat", "context", "batch", "encode", "adapt", "learning", "dictionary", "card"};

static bool known_part(const char *name)
{
    for (size_t i = 0; i < sizeof part / sizeof *part; i++)
        if (!strcmp(name, part[i]))
            return true;
    return false;
}

static void take_row(void *user, const bench_card_row *r)
{
    json_t *row = json_pack("{s:s,s:s,s:f,s:s}", "name", r->name, "what", r->what, "rate", r->rate, "unit", r->unit);
    if (r->of)
        json_object_update_new(row, json_pack("{s:f,s:s}", "share", r->share, "of", r->of));
    json_array_append_new(user, row);
    app_progress_end();
    if (the_app.json)
        return;
    printf("%-18s %12.1f %-9s ", r->name, r->rate, r->unit);
    if (r->of)
        printf("%5.1f %% of %-15s", 100 * r->share, r->of);
    printf(" %s\n", r->what);
    fflush(stdout);
}

/* The card, with models of random weights made for it. */
static int card_bench(bool small, const char *python, int repeat)
{
    es_error err = {0};
    json_t *beside = python ? json_object() : NULL;
    es_cuda *card = NULL;
    int rc = app_device(&card, &err);
    if (rc == ES_OK && !card)
        rc = es_fail(&err, ES_ERR_MISSING, "bench --only card: there is no card that could be measured; espalier doctor tells why");
    json_t *rows = json_array();
    rc = rc ? rc : python ? bench_against_card(card, python, small, repeat, beside, &err) : bench_card(card, 400, small, take_row, rows, &err);
    if (rc != ES_OK || !the_app.json) {
        json_decref(rows);
        json_decref(beside);
        return rc ? app_fail(&err) : app_flush();
    }
    char line[300];
    es_cuda_describe(card, line, sizeof line);
    if (!beside)
        return app_print_json(json_pack("{s:s,s:o}", "device", line, "rows", rows));
    json_decref(rows);
    json_object_set_new(beside, "device", json_string(line));
    return app_print_json(beside);
}

int cmd_bench(int argc, char **argv)
{
    bool small = false;
    bench b = {.repeat = 5, .prompt = 512, .tokens = 64};
    const char *only = NULL, *against = NULL, *python = NULL, *model_hf = NULL;
    const opt table[] = {
        {"repeat", "N", OPT_INT, &b.repeat, 1, BENCH_MAX_REPEAT, "runs of each; the median counts (default 5)", NULL},
        {"prompt", "N", OPT_INT, &b.prompt, 1, 4096, "tokens of the prompt (default 512)", NULL},
        {"tokens", "N", OPT_INT, &b.tokens, 1, 4096, "tokens decoded after it (default 64)", NULL},
        {"context", "N", OPT_INT, &b.context, 16, 1 << 20, "positions that --only context goes through (default 8192, or what the model was trained for)", NULL},
        {"only", "NAME", OPT_TEXT, &only, 0, 0, "memory, load, chat, context, batch, encode, adapt, learning, dictionary or card", NULL},
        {"small", NULL, OPT_FLAG, &small, 0, 0, "with --only card: tiny models, to see that it works", NULL},
        {"against", "PEER", OPT_TEXT, &against, 0, 0, "instead of all this: llama.cpp, prefill, decode and load beside its; peft, a learning step on 4 x 256 tokens beside PEFT's; torch, a dictionary's training step and the residual beside PyTorch's", NULL},
        {"python", "FILE", OPT_TEXT, &python, 0, 0, "a Python with llama-cpp-python, or with torch, transformers, gguf and (for peft) peft (default python3). With --device cuda: the same work by PyTorch, transformers and PEFT on the card beside it", NULL},
        {"model-hf", "DIR", OPT_TEXT, &model_hf, 0, 0, "the model for PEFT or PyTorch, as transformers saves it (default: the GGUF file)", NULL},
        {0},
    };
    static const command_help help = {"bench", "", "How fast this machine loads, prefills, decodes, encodes, adapts and trains dictionaries: medians, with the range. What needs a\n"
                                      "dictionary is left out where there is none, and decoding far into a text (--only context) where it is not asked for: it takes\n"
                                      "a minute. With --against, the same work on the same tokens, the two in turns. With --device cuda, or --only card: models of random\n"
                                      "weights of 135M to 8B parameters on the card, as shares of the copies and products it does; and --python: a dictionary's training, speech and\n"
                                      "learning on the card beside PyTorch's, transformers' and PEFT's there, in turns.",
                                      "  espalier bench\n  espalier bench --only chat --repeat 9 --json\n  espalier bench --only context --context 8192\n"
                                      "  espalier bench --against llama.cpp --python venv/bin/python --json\n  espalier bench --against peft --python venv/bin/python", 0, 0};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (only && !known_part(only))
        return opts_usage_error("bench", "--only is memory, load, chat, context, batch, encode, adapt, learning, dictionary or card, not '%s'", only);
    if (against && strcmp(against, "peft") && strcmp(against, "llama.cpp") && strcmp(against, "torch"))
        return opts_usage_error("bench", "--against is llama.cpp, peft or torch, not '%s'", against);
    if (against && only)
        return opts_usage_error("bench", "--only and --against do not go together");
    bool peft = against && !strcmp(against, "peft"), torch = against && !strcmp(against, "torch");
    bool on_card = only ? !strcmp(only, "card") : !against && the_app.device_option && !strncmp(the_app.device_option, "cuda", 4);
    if ((python && !against && !on_card) || (model_hf && !peft && !torch))
        return opts_usage_error("bench", "%s is for --against%s", python && !against ? "--python" : "--model-hf", python && !against ? ", or with --device cuda" : " peft or torch");
    if (on_card)
        return card_bench(small, python, b.repeat);
    es_error err = {0}, missing = {0};
    b.all = json_object();
    es_rng_seed(&b.rng, 1);
    rc = app_model(&b.m, &err);
    if (rc == ES_OK && torch)
        rc = bench_against_torch(&b, python ? python : "python3", model_hf, b.all, &err);
    if (rc == ES_OK && against && !peft && !torch)
        rc = bench_against_llama(es_model_get_info(b.m)->path, python ? python : "python3", b.repeat, b.prompt, b.tokens, b.all, &err);
    if (peft) {
        rc = rc ? rc : app_features_open(&b.f, b.m, &err);
        rc = rc ? rc : bench_against_peft(b.m, &b.f, python ? python : "python3", model_hf, b.repeat, b.all, &err);
    }
    bool own = !against;
    static int (*const plain[])(bench *, es_error *) = {bench_memory, bench_load, prefill_and_decode, bench_context, bench_batch};
    for (int i = 0; i < 5 && rc == ES_OK && own; i++)
        if (only ? !strcmp(only, part[i]) : plain[i] != bench_context)
            rc = plain[i](&b, &err);
    bool needs = own && (!only || !strcmp(only, "encode") || !strcmp(only, "adapt") || !strcmp(only, "learning"));
    if (rc == ES_OK && needs) {
        int got = app_features_open(&b.f, b.m, &missing);
        if (got != ES_OK && (only || got != ES_ERR_MISSING)) {
            err = missing;
            rc = got;
        }
    }
    if (rc == ES_OK && needs && b.f.dictionary && (!only || !strcmp(only, "encode")))
        rc = encode(&b, &err);
    if (rc == ES_OK && needs && b.f.dictionary && (!only || !strcmp(only, "adapt")))
        rc = adaptation(&b, &err);
    if (rc == ES_OK && needs && b.f.dictionary && (!only || !strcmp(only, "learning")))
        rc = bench_learning(&b, &err);
    if (rc == ES_OK && own && (!only || !strcmp(only, "dictionary"))) {
        char folder[] = "/tmp/espalier-bench-XXXXXX";
        if (!mkdtemp(folder))
            rc = es_fail(&err, ES_ERR_IO, "cannot make a folder in /tmp");
        else {
            rc = dictionary(&b, folder, &err);
            app_remove_tree(folder);
        }
    }
    int code = EXIT_DONE;
    if (rc != ES_OK) {
        code = app_fail(&err);
        json_decref(b.all);
    } else if (the_app.json) {
        char kernels[400];
        es_kernels_describe(kernels, sizeof kernels);
        json_object_set_new(b.all, "kernels", json_string(kernels));
        json_object_set_new(b.all, "threads", json_integer(the_app.threads ? the_app.threads : sysconf(_SC_NPROCESSORS_ONLN)));
        code = app_print_json(b.all);
    } else {
        json_decref(b.all);
        code = app_flush();
    }
    app_features_close(&b.f);
    es_model_free(b.m);
    return code;
}
