/* eval readable and eval sequence. */
#include "app.h"
#include "cmd_eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TASKS = 16, MAX_SPECS = 12, TOKENS = 8 };

typedef struct tasks {
    es_task item[MAX_TASKS];
    const es_task *which[MAX_TASKS];
    int n;
} tasks;

static int tasks_open(tasks *t, const char *names, uint64_t seed, es_error *err)
{
    es_task_split split = {40, 16, seed};
    char *copy = strdup(names), *save = NULL;
    int rc = copy ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory");
    for (char *name = copy ? strtok_r(copy, ",", &save) : NULL; !rc && name; name = strtok_r(NULL, ",", &save)) {
        if (t->n == MAX_TASKS)
            rc = es_fail(err, ES_ERR_USAGE, "--task: at most %d", (int)MAX_TASKS);
        else if (!(rc = eval_task_open(&t->item[t->n], name, &split, err))) {
            t->which[t->n] = &t->item[t->n];
            t->n++;
        }
    }
    free(copy);
    return rc;
}

static void tasks_close(tasks *t)
{
    for (int i = 0; i < t->n; i++)
        es_task_free(&t->item[i]);
}

/* ---- readable --------------------------------------------------------------------------------------------------------------------- */

typedef struct tables { /* of every feature of a dictionary that has a label or an atlas entry */
    es_readable_feature *all; /* [F] */
    char **token;             /* [F * TOKENS] */
    const char **list;        /* the same, as es_readable_feature wants it */
    int n;
} tables;

static int tables_open(tables *t, const app_features *f, const es_model *m, char **labels, es_error *err)
{
    t->n = f->n;
    t->all = es_calloc((size_t)f->n + 1, sizeof *t->all);
    t->token = es_calloc((size_t)f->n * TOKENS + 1, sizeof *t->token);
    t->list = es_calloc((size_t)f->n * TOKENS + 1, sizeof *t->list);
    int rc = t->all && t->token && t->list ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory");
    for (int i = 0; !rc && i < f->n; i++) {
        t->all[i] = (es_readable_feature){.coefficient = 1, .label = labels[i], .token = t->list + (size_t)i * TOKENS};
        es_feature_card card;
        if (!f->atlas)
            continue;
        rc = es_atlas_card(f->atlas, i, &card, err);
        for (int k = 0; !rc && k < TOKENS && k < card.n_promoted; k++) {
            size_t n, at = (size_t)i * TOKENS + (size_t)k;
            const char *bytes = es_token_bytes(m, card.promoted[k], &n);
            t->token[at] = strndup(bytes, n);
            if (!t->token[at])
                rc = es_fail(err, ES_ERR_MEMORY, "not enough memory");
            t->list[at] = t->token[at];
            t->all[i].n_token = k + 1;
        }
    }
    return rc;
}

static void tables_close(tables *t)
{
    for (size_t i = 0; t->token && i < (size_t)t->n * TOKENS; i++)
        free(t->token[i]);
    free(t->token);
    free(t->list);
    free(t->all);
}

/* Scores of an adapter's `top` largest coefficients. */
static int rank_adapter(const es_adapter *a, const tables *t, const tasks *ts, int top, double *score, es_error *err)
{
    const es_basis *b = es_adapter_basis(a);
    if (!b)
        return es_fail(err, ES_ERR_USAGE, "an unconstrained adapter has no coefficient table");
    if (es_adapter_parts(a) > 1)
        return es_fail(err, ES_ERR_USAGE, "an adapter of several dictionaries is not ranked: its coefficients are not measured alike");
    const float *c = es_adapter_coefficients(a);
    es_readable_feature *moved = es_calloc((size_t)b->n + 1, sizeof *moved);
    if (!moved)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory");
    for (int i = 0; i < b->n; i++) {
        if (b->feature[i] < 0) {
            free(moved);
            return es_fail(err, ES_ERR_USAGE, "the vector %s has no label to rank by", es_basis_vector_of(b, b->feature[i])->name);
        }
        moved[i] = t->all[b->feature[i]];
        moved[i].coefficient = c[i];
        for (int j = i; j > 0 && fabs(moved[j].coefficient) > fabs(moved[j - 1].coefficient); j--) {
            es_readable_feature x = moved[j];
            moved[j] = moved[j - 1];
            moved[j - 1] = x;
        }
    }
    int rc = es_eval_readable(ts->which, ts->n, moved, b->n < top ? b->n : top, t->all, t->n, score, err);
    free(moved);
    return rc;
}

/* The direction that each task's `other` last pairs ask for, free of any basis; their learning pairs are others. */
static int learn_directions(es_direction *out, es_model *m, const app_features *f, const es_inputs *inputs, const tasks *ts, int other, es_progress *progress,
                            es_error *err)
{
    es_method_options o = es_method_default(ES_METHOD_FREE);
    int rc = ES_OK;
    o.s = f->dictionary;
    o.inputs = inputs;
    o.max_prompt = o.max_reply = 64;
    o.threads = the_app.threads;
    for (int i = 0; !rc && i < ts->n; i++) {
        const es_experiences *pool = &ts->item[i].pool;
        es_experiences e = {0};
        es_adapter *a = NULL;
        char what[96];
        snprintf(what, sizeof what, "direction of %s", ts->item[i].name);
        es_progress_report(progress, what, i, ts->n, "tasks");
        if (other > pool->n)
            rc = es_fail(err, ES_ERR_USAGE, "%s: the pool has %d pairs", ts->item[i].name, pool->n);
        for (int k = 0; !rc && k < other; k++)
            rc = es_experience_copy(&e, &pool->item[pool->n - 1 - k], err);
        rc = rc ? rc : es_direction_learn(&a, ES_METHOD_FREE, m, &o, &e, &app_cancel, err);
        out[i] = (es_direction){ts->item[i].name, a};
        es_experiences_free(&e);
    }
    return rc;
}

typedef struct lesson { /* what --learn asks for */
    int n, other, steps, size; /* pairs to learn from; further ones that choose the basis (0: the same); learning steps; features */
    bool signs;
    const es_inputs *inputs;
    const es_direction *direction; /* of every task, as a prior; NULL: none */
} lesson;

/* What `adapt` would make of a task's first pairs, without its guards, so that every task goes equally far. With directions score[] is how far the adapter
 * went along each. */
static int learn_task(es_adapter **out, es_model *m, const app_features *f, const tasks *ts, int task, const lesson *k, double *score, es_error *err)
{
    const es_task *t = &ts->item[task];
    es_experiences e = {0}, other = {0};
    es_basis basis = {0};
    es_learner *l = NULL;
    es_adapter_options ao = es_adapter_default(f->dictionary, m);
    es_learner_options lo = es_learner_white();
    es_progress quiet = {.cancel = &app_cancel};
    int rc = k->n + k->other <= t->pool.n ? ES_OK : es_fail(err, ES_ERR_USAGE, "%s: the pool has %d pairs", t->name, t->pool.n);
    for (int i = 0; !rc && i < k->n + k->other; i++)
        rc = es_experience_copy(i < k->n ? &e : &other, &t->pool.item[i], err);
    const es_experiences *from = k->other ? &other : &e;
    float *gradient = es_calloc((size_t)from->n + 1, (size_t)es_model_get_info(m)->d_model * sizeof *gradient);
    ao.fixed_inputs = true;
    ao.rank = es_inputs_rank(k->inputs);
    lo.threads = the_app.threads;
    lo.hold_out = lo.enough = lo.kappa = lo.rho = 0;
    lo.max_prompt = lo.max_reply = 64;
    rc = rc ? rc : gradient ? es_attribute(m, f->dictionary, from, the_app.threads, gradient, &quiet, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory");
    rc = rc ? rc : es_basis_suggest(&basis, m, f->dictionary, f->atlas, gradient, from->n, k->size, k->signs, NULL, err);
    rc = rc ? rc : es_adapter_new(out, m, f->dictionary, &basis, &ao, err);
    rc = rc ? rc : es_learner_open(&l, m, f->dictionary, *out, &lo, err);
    rc = rc ? rc : es_learner_natural(l, k->inputs, err);
    if (!rc && k->direction)
        rc = es_learner_prior(l, k->direction, ts->n, 10, false, err);
    for (int i = 0; !rc && i < e.n; i++)
        rc = es_learner_add(l, &e.item[i], &app_cancel, err);
    for (int i = 0; !rc && i < k->steps; i++) {
        es_step_report r;
        rc = es_learner_step(l, &r, &app_cancel, err);
    }
    if (!rc && k->direction)
        es_learner_amplitudes(l, score);
    es_learner_free(l);
    es_basis_free(&basis);
    free(gradient);
    es_experiences_free(&e);
    es_experiences_free(&other);
    return rc;
}

static void show_ranking(json_t *out, const char *name, const char *truth, const tasks *ts, const double *score, int *right)
{
    int order[MAX_TASKS], place = 0;
    json_t *ranking = json_array();
    for (int i = 0; i < ts->n; i++) {
        order[i] = i;
        for (int j = i; j > 0 && score[order[j]] > score[order[j - 1]]; j--) {
            int x = order[j];
            order[j] = order[j - 1];
            order[j - 1] = x;
        }
    }
    if (!the_app.json)
        printf("%s%s\n", name, truth ? " (learned here)" : "");
    for (int i = 0; i < ts->n; i++) {
        const char *task = ts->item[order[i]].name;
        place = truth && !strcmp(task, truth) ? i + 1 : place;
        json_array_append_new(ranking, json_pack("{s:s,s:f}", "task", task, "score", score[order[i]]));
        if (!the_app.json)
            printf("  %d  %-14s %+.4f%s\n", i + 1, task, score[order[i]], truth && !strcmp(task, truth) ? "  <- trained" : "");
    }
    *right += place == 1;
    json_t *line = json_pack("{s:s,s:o}", "adapter", name, "ranking", ranking);
    if (truth)
        json_object_set_new(line, "place", json_integer(place));
    json_array_append_new(out, line);
}

int eval_readable(int argc, char **argv)
{
    const char *names = "brevity,politeness,directness,formality,typehints,snakecase,guards";
    int learn = 0, steps = 8, size = 64, other = 0, top = 20, along = 0;
    bool signs = false;
    const opt table[] = {
        {"task", "T,T", OPT_TEXT, &names, 0, 0, "tasks to rank (default: the seven that come with the program)", NULL},
        {"learn", "N", OPT_INT, &learn, 1, 100000, "learn each task from so many pairs here, and rank those adapters", NULL},
        {"steps", "N", OPT_INT, &steps, 1, 100000, "with --learn: learning steps (default 8)", NULL},
        {"size", "K", OPT_INT, &size, 1, 65536, "with --learn: features in the basis (default 64)", NULL},
        {"basis-pairs", "N", OPT_INT, &other, 1, 100000, "with --learn: choose the basis on so many other pairs", NULL},
        {"signs", NULL, OPT_FLAG, &signs, 0, 0, "with --learn: one-sided bounds", NULL},
        {"directions", "N", OPT_INT, &along, 1, 100000, "with --learn: every adapter has the directions of all tasks, learned on so many other pairs of each, and is read by how far it went along each", NULL},
        {"top", "N", OPT_INT, &top, 1, 65536, "coefficients that the reader sees (default 20)", NULL},
        {0},
    };
    static const command_help help = {
        "eval readable", "[ADAPTER...]",
        "Ranks tasks by how well the labels and promoted tokens of an adapter's most moved features match them: what a reader of the coefficient\n"
        "table could tell of the trait. 0 is chance, 1 its spread. With --json: [{\"adapter\",\"ranking\":[{\"task\",\"score\"}],\"place\"}].",
        "  espalier eval readable brief.safetensors\n  espalier eval readable --learn 32 --json\n  espalier eval readable --learn 8 --directions 64 --steps 2", 0, -1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (!n == !learn)
        return opts_usage_error("eval readable", "adapters, or --learn N, are wanted");
    if (along && !learn)
        return opts_usage_error("eval readable", "--directions is for --learn");
    es_direction direction[MAX_TASKS] = {0};
    es_inputs *inputs = NULL;
    es_error err = {0};
    es_model *m = NULL;
    app_features f = {0};
    tasks ts = {0};
    tables t = {0};
    char **labels = NULL;
    json_t *out = json_array();
    int right = 0, code = -1;
    double score[MAX_TASKS];
    rc = tasks_open(&ts, names, 1, &err);
    rc = rc ? rc : app_model(&m, &err);
    rc = rc ? rc : app_features_open(&f, m, &err);
    if (!rc) {
        labels = app_labels(&f, m);
        rc = tables_open(&t, &f, m, labels, &err);
    }
    es_progress progress = app_progress();
    if (!rc && learn)
        rc = app_inputs(&inputs, &f, m, ES_WHITE_RANK, &err);
    if (!rc && along) {
        for (int i = 0; !rc && i < ts.n; i++)
            if (learn + other + along > ts.item[i].pool.n)
                rc = es_fail(&err, ES_ERR_USAGE, "%s: the pool has %d pairs", ts.item[i].name, ts.item[i].pool.n);
        rc = rc ? rc : learn_directions(direction, m, &f, inputs, &ts, along, &progress, &err);
    }
    const lesson asked = {learn, other, steps, size, signs, inputs, along ? direction : NULL};
    for (int i = 0; !rc && i < (learn ? ts.n : n); i++) {
        es_adapter *a = NULL;
        app_features own = {0};
        if (learn)
            es_progress_report(&progress, ts.item[i].name, i, ts.n, "tasks");
        rc = learn ? learn_task(&a, m, &f, &ts, i, &asked, score, &err) : app_adapter(&a, &own, m, argv[1 + i], &err);
        if (!rc && own.dictionary && strcmp(own.hash, f.hash))
            rc = es_fail(&err, ES_ERR_MISMATCH, "%s: made in another dictionary (%.12s, not %.12s)", argv[1 + i], own.hash, f.hash);
        if (!rc && !along)
            rc = rank_adapter(a, &t, &ts, top, score, &err);
        if (learn)
            app_progress_end();
        if (!rc)
            show_ranking(out, learn ? ts.item[i].name : argv[1 + i], learn ? ts.item[i].name : NULL, &ts, score, &right);
        es_adapter_free(a);
        app_features_close(&own);
    }
    if (rc)
        code = app_fail(&err);
    else if (the_app.json) {
        code = app_print_json(out);
        out = NULL;
    } else {
        if (learn)
            printf("%d of %d told apart; chance would be 1\n", right, ts.n);
        code = app_flush();
    }
    json_decref(out);
    for (int i = 0; i < ts.n; i++)
        es_adapter_free((es_adapter *)direction[i].adapter);
    es_inputs_free(inputs);
    tables_close(&t);
    app_labels_free(labels, f.n);
    tasks_close(&ts);
    app_features_close(&f);
    es_model_free(m);
    return code;
}

/* ---- sequence --------------------------------------------------------------------------------------------------------------------- */

int eval_sequence(int argc, char **argv)
{
    const char *names = "politeness,directness,brevity,typehints,snakecase", *methods = "features,lora", *neutral = NULL;
    opt_texts set = {0};
    int basis_pairs = 0;
    bool signs = false, table_only = false;
    es_sequence_options o = {.experiences = 8, .steps = 4, .orders = 1, .raw_tokens = 1000, .chat_tokens = 600, .max_prompt = 64, .max_reply = 64, .seed = 1};
    const opt table[] = {
        {"task", "T,T", OPT_TEXT, &names, 0, 0, "traits, in the order in which they are learned (default politeness,directness,brevity,typehints,snakecase)", NULL},
        {"methods", "M,M", OPT_TEXT, &methods, 0, 0, "as in eval adapt (default features,lora)", NULL},
        {"set", "M.OPTION=V", OPT_TEXTS, &set, 0, 0, "as in eval adapt; the first rate is taken", NULL},
        {"experiences", "N", OPT_INT, &o.experiences, 1, 100000, "pairs of each trait (default 8)", NULL},
        {"steps", "N", OPT_INT, &o.steps, 1, 100000, "after each trait's pairs were added (default 4)", NULL},
        {"orders", "N", OPT_INT, &o.orders, 1, 100, "draws of the pairs (default 1)", NULL},
        {"basis-pairs", "N", OPT_INT, &basis_pairs, 1, 100000, "features, bias: a basis of an equal part for each trait, chosen on so many other pairs of each", NULL},
        {"signs", NULL, OPT_FLAG, &signs, 0, 0, "with one-sided bounds", NULL},
        {"neutral", "FILE", OPT_TEXT, &neutral, 0, 0, "as in eval adapt", NULL},
        {"work", "FILE", OPT_TEXT, &o.work, 0, 0, "where finished runs are kept; the same command goes on with it (default: in the home folder's eval/, named after the command)", NULL},
        {"table", NULL, OPT_FLAG, &table_only, 0, 0, "run nothing: show what the work file holds", NULL},
        {"data", "DIR", OPT_TEXT, &the_app.data_option, 0, 0, "as in eval adapt", NULL},
        {"seed", "S", OPT_COUNT, &o.seed, 0, 1e12, "of the draws (default 1)", NULL},
        {0},
    };
    static const command_help help = {
        "eval sequence", "",
        "Learns several traits one after another and measures the held-out margin of all of them after each; then undoes each: by the stored parts of its\n"
        "experiences, plainly and sparing the others, or where a method keeps none by learning again without them. Says what earlier traits keep while\n"
        "later ones are learned, and how much undoing one changes the others. With --json: {\"rows\":[{\"method\",\"order\",\"task\",\"margin_learned\",\"margin_end\",\"kept\",\"margin_undone\",...}]}.",
        "  espalier eval sequence --methods features,lora,full --work sequence.jsonl", 0, 0};
    int n;
    char words[65], usual[4096];
    eval_work_words(argc, argv, words);
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    es_error err = {0};
    if (!o.work && eval_work_usual("sequence", words, usual, sizeof usual, &err))
        return app_fail(&err);
    o.work = o.work ? o.work : usual;
    es_model *m = NULL;
    app_features f = {0};
    tasks ts = {0};
    es_neutral_texts texts = {0};
    es_eval_spec spec[MAX_SPECS];
    json_t *rows = NULL;
    es_buf text = {0};
    if (!table_only) {
        rc = tasks_open(&ts, names, o.seed, &err);
        rc = rc ? rc : eval_specs_open(methods, basis_pairs, signs, spec, MAX_SPECS, &o.n_spec, &err);
        rc = rc ? rc : eval_specs_set(&set, spec, o.n_spec, true, &err);
        rc = rc ? rc : es_neutral_load(&texts, neutral ? neutral : APP_NEUTRAL, &err);
        rc = rc ? rc : app_model(&m, &err);
        rc = rc ? rc : app_features_open(&f, m, &err);
        if (rc == ES_ERR_MISSING && m && ts.n)
            rc = ES_OK; /* methods that need a dictionary say so */
        for (int i = 0; i < o.n_spec && !rc; i++)
            if (spec[i].n_rate > 1) { /* the method's own default is the second of the usual three */
                spec[i].rate[0] = spec[i].n_rate == 3 && spec[i].rate[1] == spec[i].o.rate ? spec[i].rate[1] : spec[i].rate[0];
                spec[i].n_rate = 1;
            }
        o.task = ts.which;
        o.n_task = ts.n;
        o.spec = spec;
        o.neutral = texts.item;
        o.n_neutral = texts.n;
        o.threads = the_app.threads;
        es_progress progress = app_progress();
        rc = rc ? rc : es_eval_sequence(m, f.dictionary, f.atlas, &o, &progress, &err);
        app_progress_end();
    } else
        rc = ES_OK;
    rc = rc ? rc : es_sequence_rows(o.work, &rows, &err);
    if (!rc && !the_app.json)
        rc = es_sequence_table(rows, &text, &err);
    int code;
    if (rc)
        code = app_fail(&err);
    else if (the_app.json) {
        code = app_print_json(json_pack("{s:o}", "rows", rows));
        rows = NULL;
    } else {
        fputs(text.data ? text.data : "", stdout);
        code = app_flush();
    }
    es_buf_free(&text);
    json_decref(rows);
    es_neutral_texts_free(&texts);
    tasks_close(&ts);
    app_features_close(&f);
    es_model_free(m);
    return code;
}
