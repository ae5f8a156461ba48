/* bench --against peft: a step of the constrained adapter and a step of PEFT's LoRA on all linear layers, on the same tokens.
 *
 * The two take turns (tools/bench_peft.py runs a step when it is asked to), so that what else the machine does meets both. Each times
 * its own step: starting up, loading and talking to each other are not in it. Ours is the workbench's: its learner with all it does in a
 * step, once with its guard on neutral text and once without. */
#include "cmd_bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd_eval.h"

enum { SEQUENCES = 4, PROMPT = 32, REPLY = 225, BASIS = 256, PEFT_RANK = 32, MAX_STEPS = 51 }; /* a sequence: PROMPT + REPLY - 1 tokens go in */

/* ---- what is learned: four replies that fill most of their sequences ---------------------------------------------------------------- */

typedef struct material {
    es_model *m;
    es_experiences e;
    es_buf reply;
    es_ids ids;
    json_t *sequences; /* their tokens, as the other side is told them */
} material;

/* Replies of a task one after another until they are long enough; the first one's question asks for them all. */
static int add_line(void *user, size_t line, json_t *value, es_error *err)
{
    material *t = user;
    const char *text = json_string_value(json_object_get(value, "rejected"));
    (void)line;
    if (!text || json_array_size(t->sequences) == SEQUENCES)
        return ES_OK;
    if (!t->reply.len) {
        int rc = es_experience_from_json(&t->e, value, err);
        if (rc)
            return rc;
    } else
        es_buf_str(&t->reply, "\n\n");
    es_buf_str(&t->reply, text);
    t->ids.n = 0;
    int rc = t->reply.failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory") : es_tokenize(t->m, t->reply.data, t->reply.len, false, &t->ids, err);
    if (rc || t->ids.n < REPLY)
        return rc;
    es_experience *e = &t->e.item[t->e.n - 1];
    free(e->preferred);
    free(e->rejected);
    free(e->source);
    e->preferred = strndup(t->reply.data, t->reply.len);
    e->rejected = e->source = NULL;
    e->weight = 1;
    t->reply.len = 0;
    t->reply.data[0] = 0;
    if (!e->preferred)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory");
    es_ids prompt = {0};
    rc = es_chat_render(t->m, e->message, (size_t)e->n_message, true, &prompt, err);
    if (!rc && prompt.n < PROMPT) { /* too short a question: the next one */
        es_experience_clear(e);
        t->e.n--;
    } else if (!rc) {
        json_t *one = json_array();
        for (size_t i = prompt.n - PROMPT; i < prompt.n; i++)
            json_array_append_new(one, json_integer(prompt.id[i]));
        for (int i = 0; i < REPLY; i++)
            json_array_append_new(one, json_integer(t->ids.id[i]));
        json_array_append_new(t->sequences, one);
    }
    es_ids_free(&prompt);
    return rc;
}

static int material_open(material *t, es_model *m, es_error *err)
{
    *t = (material){.m = m, .sequences = json_array()};
    char path[1200];
    int rc = eval_task_path("brevity", path, sizeof path, err);
    rc = rc ? rc : es_jsonl_each(path, add_line, t, err);
    if (!rc && json_array_size(t->sequences) < SEQUENCES)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: not enough text for %d sequences", path, SEQUENCES);
    return rc;
}

static void material_close(material *t)
{
    es_experiences_free(&t->e);
    es_buf_free(&t->reply);
    es_ids_free(&t->ids);
    json_decref(t->sequences);
}

/* ---- ours ------------------------------------------------------------------------------------------------------------------------------ */

typedef struct contender {
    const char *name, *what;
    es_adapter *a;
    es_learner *l;
    double seconds[MAX_STEPS], loss; /* loss: before the first step */
    int n;
} contender;

static int side_open(contender *s, es_model *m, const app_features *f, const es_inputs *inputs, const material *t, bool guarded, es_error *err)
{
    es_adapter_options ao = es_adapter_default(f->dictionary, m);
    es_learner_options lo = es_learner_white();
    es_basis basis = {.name = "bench"};
    ao.fixed_inputs = true;
    ao.rank = es_inputs_rank(inputs);
    lo.threads = the_app.threads;
    lo.hold_out = lo.enough = 0; /* all of it, and every step moves something */
    lo.max_prompt = PROMPT;
    lo.max_reply = REPLY;
    lo.kappa = guarded ? lo.kappa : 0;
    int rc = es_basis_random(&basis, m, f->dictionary, f->atlas, f->n < BASIS ? f->n : BASIS, 1, err);
    rc = rc ? rc : es_adapter_new(&s->a, m, f->dictionary, &basis, &ao, err);
    rc = rc ? rc : es_adapter_set_inputs(s->a, inputs, err);
    rc = rc ? rc : es_learner_open(&s->l, m, f->dictionary, s->a, &lo, err);
    rc = rc ? rc : es_learner_natural(s->l, inputs, err);
    rc = rc ? rc : es_learner_spare(s->l, inputs, err);
    for (int i = 0; !rc && i < SEQUENCES; i++)
        rc = es_learner_add(s->l, &t->e.item[i], &app_cancel, err);
    es_basis_free(&basis);
    return rc;
}

static int side_step(contender *s, es_error *err)
{
    es_step_report r;
    int rc = es_learner_step(s->l, &r, &app_cancel, err);
    if (rc)
        return rc;
    if (r.tokens != SEQUENCES * (PROMPT + REPLY - 1) || r.backtracked == 0)
        return es_fail(err, ES_ERR_LIMIT, "step %d of %s took %d tokens%s: it is no measure", r.step, s->name, r.tokens, r.backtracked == 0 ? " and moved nothing" : "");
    if (s->n == 0)
        s->loss = r.loss;
    s->seconds[s->n++] = r.seconds;
    return ES_OK;
}

/* ---- both ------------------------------------------------------------------------------------------------------------------------------- */

/* Of all steps but the first, which warms up: {"median","least","most"} in seconds. Sorts them. */
static json_t *summary(contender *s, double *median)
{
    double *t = s->seconds + 1;
    int n = s->n - 1;
    *median = bench_median(t, n);
    return json_pack("{s:f,s:f,s:f,s:i,s:s,s:f}", "median", *median, "least", t[0], "most", t[n - 1], "runs", n, "what", s->what, "loss", s->loss);
}

int bench_against_peft(es_model *m, const app_features *f, const char *python, const char *model_hf, int repeat, json_t *into, es_error *err)
{
    contender side[3] = {{.name = "adapt", .what = "espalier, as the workbench learns: KL guard on neutral text included"},
                    {.name = "adapt_unguarded", .what = "espalier without the KL guard"},
                    {.name = "peft", .what = "PEFT, LoRA of rank 32 on all linear layers, forward, backward and AdamW, f32"}};
    peer p = {.fd = -1};
    material t = {0};
    es_inputs *inputs = NULL;
    json_t *about = NULL, *answer = NULL;
    long threads = the_app.threads ? the_app.threads : sysconf(_SC_NPROCESSORS_ONLN);
    es_progress progress = app_progress();
    int rc = peer_open(&p, python, "bench_peft.py", "torch, transformers, peft and gguf", err);
    rc = rc ? rc : material_open(&t, m, err);
    if (!rc) {
        es_progress_report(&progress, "loading PEFT", 0, 0, NULL);
        const char *path = model_hf ? model_hf : es_model_get_info(m)->path;
        rc = peer_ask(&p, json_pack("{s:s,s:I,s:i,s:i,s:O}", "model", path, "threads", (json_int_t)threads, "rank", PEFT_RANK, "n_reply", REPLY, "sequences", t.sequences),
                      &about, err);
    }
    rc = rc ? rc : app_inputs(&inputs, f, m, ES_WHITE_RANK, err);
    for (int i = 0; !rc && i < 2; i++)
        rc = side_open(&side[i], m, f, inputs, &t, i == 0, err);
    for (int r = 0; !rc && r <= repeat; r++) {
        for (int i = 0; !rc && i < 2; i++)
            rc = side_step(&side[i], err);
        rc = rc ? rc : peer_ask(&p, json_string("step"), &answer, err);
        if (rc)
            break;
        if (r == 0)
            side[2].loss = json_number_value(json_object_get(answer, "loss"));
        side[2].seconds[side[2].n++] = json_number_value(json_object_get(answer, "seconds"));
        json_decref(answer);
        es_progress_report(&progress, "steps of each", r + 1, repeat + 1, "steps");
    }
    app_progress_end();
    const char *weights = json_string_value(json_object_get(about, "weights"));
    bool random = weights && !strncmp(weights, "random", 6);
    /* Nothing learned yet, the same model, the same tokens: the same loss. */
    if (!rc && !random && !(fabs(side[0].loss - side[2].loss) < 0.02))
        rc = es_fail(err, ES_ERR_MISMATCH, "the two sides do not start from the same loss (%.4f and %.4f): not the same model or not the same tokens", side[0].loss,
                     side[2].loss);
    if (!rc) {
        double median[3];
        json_t *all[3], *ratios = json_object();
        for (int i = 0; i < 3; i++)
            all[i] = summary(&side[i], &median[i]);
        for (int i = 0; i < 2; i++)
            json_object_set_new(ratios, side[i].name, json_real(median[2] / median[i]));
        json_object_update_missing(all[2], about);
        for (int i = 0; i < 3 && !the_app.json; i++) {
            double *s = side[i].seconds + 1;
            printf("%-16s %8.3f seconds a step %8.3f .. %-8.3f %s\n", side[i].name, median[i], s[0], s[side[i].n - 2], side[i].what);
        }
        if (!the_app.json) {
            printf("%d sequences of %d tokens each; %ld threads each; medians of %d, in turns; torch %s, peft %s, transformers %s; its numbers: %s\n", SEQUENCES,
                   PROMPT + REPLY - 1, threads, repeat, json_string_value(json_object_get(about, "torch")), json_string_value(json_object_get(about, "peft")),
                   json_string_value(json_object_get(about, "transformers")), weights ? weights : "?");
            printf("PEFT takes %.2f times as long as adapt, %.2f times as long as adapt_unguarded\n", median[2] / median[0], median[2] / median[1]);
        }
        json_object_set_new(into, "ratios", ratios);
        json_object_set_new(into, "ours", all[0]);
        json_object_set_new(into, "ours_unguarded", all[1]);
        json_object_set_new(into, "peft", all[2]);
        json_object_set_new(into, "sequences", json_integer(SEQUENCES));
        json_object_set_new(into, "tokens", json_integer(SEQUENCES * (PROMPT + REPLY - 1)));
        json_object_set_new(into, "learned_tokens", json_integer(SEQUENCES * REPLY));
        for (const char *const *k = (const char *const[]){"torch", "peft", "transformers", NULL}; *k; k++) {
            char name[40];
            snprintf(name, sizeof name, "%s_version", *k);
            json_object_set(into, name, json_object_get(about, *k));
        }
    }
    for (int i = 0; i < 2; i++) {
        es_learner_free(side[i].l);
        es_adapter_free(side[i].a);
    }
    es_inputs_free(inputs);
    json_decref(about);
    material_close(&t);
    peer_close(&p, rc != ES_OK);
    return rc;
}
