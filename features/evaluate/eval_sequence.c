/* Several traits learned one after another, and each undone: taken away by the stored parts of its experiences (es_method_without; plainly, and in three ways that
 * spare the others), or, where a method keeps none, by the same stages without them, which is what removing them from a workspace and learning again amounts to. */
#include "eval_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct sequence {
    es_model *m;
    const es_dictionary *s;
    const es_atlas *a;
    const es_sequence_options *o;
    const es_progress *progress;
    const volatile bool *cancel;
    es_bench bench;
    bool open;
    es_set *held, raw, chat; /* held: one a task */
    es_inputs *inputs;       /* white, for specs that want them */
    es_adapter **direction;  /* [n_task] of directions_of's order */
    const es_eval_spec *directions_of;
    int directions_order;
    json_t *done;
    char hashes[40];
    double at, total;        /* traits learned or taken away */
} sequence;

static int open_sets(sequence *q, es_error *err)
{
    const es_sequence_options *o = q->o;
    if (q->open)
        return ES_OK;
    q->open = true;
    q->held = es_calloc((size_t)o->n_task, sizeof *q->held);
    int rc = q->held ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for %d traits", o->n_task);
    rc = rc ? rc : es_bench_open(&q->bench, q->m, o->max_prompt, o->max_reply, o->threads, q->cancel, err);
    for (int i = 0; !rc && i < o->n_task; i++) {
        es_progress_report(q->progress, "the base model on the traits' pairs", q->at, q->total, "traits");
        rc = es_set_pairs(&q->held[i], &q->bench, &o->task[i]->held, false, err);
    }
    rc = rc ? rc : es_set_neutral(&q->raw, &q->bench, o->neutral, o->n_neutral, false, false, o->raw_tokens, err);
    return rc ? rc : es_set_neutral(&q->chat, &q->bench, o->neutral, o->n_neutral, true, false, o->chat_tokens, err);
}

static void close_sets(sequence *q)
{
    if (!q->open)
        return;
    for (int i = 0; q->held && i < q->o->n_task; i++)
        es_set_close(&q->held[i], &q->bench);
    es_set_close(&q->raw, &q->bench);
    es_set_close(&q->chat, &q->bench);
    es_bench_close(&q->bench);
    free(q->held);
}

/* A task's pool in this order: the learning pairs come from its beginning, a basis' from its end. */
static int pool_of(const sequence *q, int task, int order, int **out, es_error *err)
{
    int n = q->o->task[task]->pool.n, *which = es_calloc((size_t)n + 1, sizeof *which);
    es_rng rng;
    if (!which)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a pool");
    es_rng_seed(&rng, q->o->seed * 1000 + (uint64_t)order);
    for (int i = 0; i < n; i++)
        which[i] = i;
    for (int i = n - 1; i > 0; i--) {
        int j = (int)es_rng_below(&rng, (uint64_t)i + 1), x = which[i];
        which[i] = which[j];
        which[j] = x;
    }
    *out = which;
    return ES_OK;
}

/* A basis of an equal part for each trait, chosen on other pairs of its pool. A feature that two traits want both ways has both bounds. */
static int joint_basis(sequence *q, const es_eval_spec *spec, int order, es_basis *out, es_error *err)
{
    int rc = ES_OK, d = es_model_get_info(q->m)->d_model;
    *out = (es_basis){0};
    for (int t = 0; !rc && t < q->o->n_task; t++) {
        const es_experiences *pool = &q->o->task[t]->pool;
        es_experiences e = {0};
        es_basis part = {0};
        int *which = NULL;
        float *gradient = es_calloc((size_t)spec->basis_pairs, (size_t)d * sizeof *gradient);
        es_progress quiet = {.cancel = q->cancel};
        rc = gradient ? pool_of(q, t, order, &which, err) : es_fail(err, ES_ERR_MEMORY, "no memory for gradients");
        for (int i = 0; !rc && i < spec->basis_pairs; i++)
            rc = es_experience_copy(&e, &pool->item[which[pool->n - 1 - i]], err);
        rc = rc ? rc : es_attribute(q->m, q->s, &e, q->o->threads, gradient, &quiet, err);
        rc = rc ? rc : es_basis_suggest(&part, q->m, q->s, q->a, gradient, e.n, (spec->o.basis_size + q->o->n_task - 1) / q->o->n_task, spec->signs, NULL, err);
        if (!rc && !t)
            *out = part;
        for (int i = 0; !rc && t && i < part.n; i++) {
            float lo = part.lo[i], hi = part.hi[i];
            for (int j = 0; j < out->n; j++)
                if (out->feature[j] == part.feature[i]) {
                    lo = fminf(lo, out->lo[j]);
                    hi = fmaxf(hi, out->hi[j]);
                }
            rc = es_basis_take(out, &part, i, lo, hi, err);
        }
        if (t || rc)
            es_basis_free(&part);
        es_experiences_free(&e);
        free(gradient);
        free(which);
    }
    return rc;
}

static void free_directions(sequence *q)
{
    for (int i = 0; q->direction && i < q->o->n_task; i++)
        es_adapter_free(q->direction[i]);
    free(q->direction);
    q->direction = NULL;
}

/* A direction a trait, learned on the pairs that the joint basis was chosen on. */
static int open_directions(sequence *q, const es_eval_spec *spec, int order, const es_method_options *o, es_error *err)
{
    if (q->direction && q->directions_of == spec && q->directions_order == order)
        return ES_OK;
    free_directions(q);
    q->directions_of = spec;
    q->directions_order = order;
    q->direction = es_calloc((size_t)q->o->n_task, sizeof *q->direction);
    int rc = q->direction ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for directions");
    for (int t = 0; !rc && t < q->o->n_task; t++) {
        const es_experiences *pool = &q->o->task[t]->pool;
        es_experiences e = {0};
        int *which = NULL;
        es_progress_report(q->progress, "directions", q->at, q->total, "traits");
        rc = pool_of(q, t, order, &which, err);
        for (int i = 0; !rc && i < spec->basis_pairs; i++)
            rc = es_experience_copy(&e, &pool->item[which[pool->n - 1 - i]], err);
        rc = rc ? rc : es_direction_learn(&q->direction[t], spec->kind, q->m, o, &e, q->cancel, err);
        es_experiences_free(&e);
        free(which);
    }
    if (rc)
        free_directions(q);
    return rc;
}

static int margins_of(sequence *q, const es_variant *x, json_t *stages, es_error *err)
{
    int rc = ES_OK;
    json_t *row = json_array();
    for (int i = 0; !rc && i < q->o->n_task; i++) {
        double margin, se, gain;
        rc = es_set_measure(&q->held[i], &q->bench, x, NULL, err);
        es_set_margins(&q->held[i], &margin, &se, &gain);
        if (!rc && !isfinite(margin))
            rc = es_fail(err, ES_ERR_LIMIT, "the margin of %s is no longer a number", q->o->task[i]->name);
        json_array_append_new(row, json_real(margin));
    }
    json_array_append_new(stages, row);
    return rc;
}

static int margins_now(sequence *q, es_method *method, json_t *stages, es_error *err)
{
    es_variant x = {0};
    int rc = es_method_view(method, &x, err);
    return rc ? rc : margins_of(q, &x, stages, err);
}

/* The ways of taking away by parts that a run of this spec tries, the first of es_undo; 0: it learns again without them. */
static int ways_to_undo(const es_eval_spec *spec)
{
    return !es_method_keeps_parts(spec->kind) ? 0 : spec->o.white ? ES_UNDO_BALANCE + 1 : ES_UNDO_PLAIN + 1;
}

/* Runs after the first of an order, each without one of the traits. */
static int runs_after(const sequence *q, const es_eval_spec *spec)
{
    return ways_to_undo(spec) ? 0 : q->o->n_task;
}

/* What a run counts for: traits learned and taken away. */
static double traits_in(const sequence *q, const es_eval_spec *spec, int undone)
{
    return undone < 0 ? q->o->n_task * (1 + ways_to_undo(spec)) : q->o->n_task - 1;
}

static const char *const UNDO_KEY[] = {[ES_UNDO_PLAIN] = "without", [ES_UNDO_SPARE_EACH] = "spared", [ES_UNDO_SPARE_SUM] = "spared_sum", [ES_UNDO_BALANCE] = "balanced"};

/* Each trait taken away from what has been learned, by its experiences' parts: [[margins] a trait]. */
static int take_away(sequence *q, const es_eval_spec *spec, es_method *method, es_undo how, json_t *line, es_error *err)
{
    static const char *const HOW[] = {[ES_UNDO_PLAIN] = "plainly", [ES_UNDO_SPARE_EACH] = "sparing each other part", [ES_UNDO_SPARE_SUM] = "sparing their sum", [ES_UNDO_BALANCE] = "in balance"};
    const es_sequence_options *o = q->o;
    int *which = es_calloc((size_t)o->experiences, sizeof *which), rc = which ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for experiences");
    json_t *without = json_array();
    for (int t = 0; !rc && t < o->n_task; t++) {
        es_variant x = {0};
        char what[240];
        snprintf(what, sizeof what, "%s: %s undone %s", spec->label, o->task[t]->name, HOW[how]);
        es_progress_report(q->progress, what, q->at, q->total, "traits");
        for (int i = 0; i < o->experiences; i++)
            which[i] = t * o->experiences + i;
        rc = es_method_without(method, which, o->experiences, how, &x, q->cancel, err);
        rc = rc ? rc : margins_of(q, &x, without, err);
        es_variant_clear(&x);
        q->at++;
    }
    json_object_set_new(line, UNDO_KEY[how], without);
    free(which);
    return rc;
}

static int run_through(sequence *q, const es_eval_spec *spec, int order, int undone, json_t *line, es_error *err)
{
    const es_sequence_options *o = q->o;
    es_method_options mo = spec->o;
    es_method *method = NULL;
    es_basis basis = {0};
    es_variant x = {0};
    es_harm raw = {0}, chat = {0};
    json_t *stages = json_array();
    es_direction *direction = NULL;
    int rc = open_sets(q, err);
    mo.s = q->s;
    mo.a = q->a;
    mo.rate = spec->n_rate ? spec->rate[0] : 0;
    mo.threads = o->threads;
    mo.seed = spec->o.seed + (uint64_t)order;
    mo.preference = *spec->preference ? spec->preference : NULL;
    if (!rc && spec->basis_pairs > 0) {
        rc = joint_basis(q, spec, order, &basis, err);
        mo.basis = &basis;
    }
    if (!rc && spec->o.white) {
        rc = q->inputs && es_inputs_rank(q->inputs) >= mo.rank ? ES_OK : (es_inputs_free(q->inputs), es_inputs_neutral(&q->inputs, q->m, q->s, mo.rank > 0 ? mo.rank : 8, o->neutral, o->n_neutral, o->threads, q->cancel, err));
        mo.inputs = q->inputs;
    }
    if (!rc && spec->prior) {
        rc = open_directions(q, spec, order, &mo, err);
        direction = es_calloc((size_t)o->n_task, sizeof *direction);
        if (!rc && !direction)
            rc = es_fail(err, ES_ERR_MEMORY, "no memory for directions");
        for (int t = 0; !rc && t < o->n_task; t++)
            direction[t] = (es_direction){o->task[t]->name, q->direction[t]};
        mo.direction = direction;
        mo.n_direction = o->n_task;
    }
    rc = rc ? rc : es_method_open(&method, spec->kind, q->m, &mo, err);
    json_object_set_new(line, "after", stages);
    for (int t = 0; !rc && t < o->n_task; t++) {
        if (t == undone) {
            json_array_append_new(stages, json_null());
            continue;
        }
        int *which = NULL;
        char what[240];
        snprintf(what, sizeof what, "%s: %s, order %d%s%s", spec->label, o->task[t]->name, order, undone < 0 ? "" : ", without ", undone < 0 ? "" : o->task[undone]->name);
        rc = pool_of(q, t, order, &which, err);
        for (int i = 0; !rc && i < o->experiences; i++)
            rc = es_method_add(method, &o->task[t]->pool.item[which[i]], q->cancel, err);
        for (int i = 0; !rc && i < o->steps; i++) {
            es_step_report report;
            es_progress_report(q->progress, what, q->at + (double)i / o->steps, q->total, "traits");
            rc = es_method_step(method, &report, q->cancel, err);
            if (rc == ES_ERR_REFUSED) { /* the trait stays unlearned, and the others go on */
                json_t *refused = json_object_get(line, "refused");
                if (!refused)
                    json_object_set_new(line, "refused", refused = json_object());
                json_object_set_new(refused, o->task[t]->name, json_string(err ? err->text : ""));
                rc = ES_OK;
                break;
            }
            if (!rc && report.guard && !strcmp(report.guard, "learned"))
                break;
        }
        free(which);
        rc = rc ? rc : margins_now(q, method, stages, err);
        q->at++;
    }
    for (int how = 0; !rc && undone < 0 && how < ways_to_undo(spec); how++)
        rc = take_away(q, spec, method, (es_undo)how, line, err);
    rc = rc ? rc : es_method_view(method, &x, err);
    rc = rc ? rc : es_set_measure(&q->raw, &q->bench, &x, &raw, err);
    rc = rc ? rc : es_set_measure(&q->chat, &q->bench, &x, &chat, err);
    json_object_set_new(line, "kl", json_real(raw.kl));
    json_object_set_new(line, "dnll", json_real(raw.dnll));
    json_object_set_new(line, "kl_chat", json_real(chat.kl));
    json_object_set_new(line, "dnll_chat", json_real(chat.dnll));
    if (q->open && q->bench.trainer_model != q->m) {
        es_trainer_free(q->bench.trainer);
        q->bench.trainer = NULL;
        q->bench.trainer_model = NULL;
    }
    es_method_free(method);
    es_basis_free(&basis);
    free(direction);
    return rc;
}

static int one_run(sequence *q, const es_eval_spec *spec, int order, int undone, es_error *err)
{
    const es_sequence_options *o = q->o;
    es_buf key = {0};
    es_buf_str(&key, "sequence");
    for (int i = 0; i < o->n_task; i++)
        es_buf_printf(&key, " %s/%s", o->task[i]->name, o->task[i]->hash);
    es_buf_printf(&key, " n%d steps%d order%d undone%d cut%d+%d neutral%d+%d seed%llu rate%g %s ", o->experiences, o->steps, order, undone, o->max_prompt, o->max_reply,
                  o->raw_tokens, o->chat_tokens, (unsigned long long)o->seed, spec->n_rate ? spec->rate[0] : 0, q->hashes);
    es_eval_spec_text(spec, &key);
    int rc = key.failed ? es_fail(err, ES_ERR_MEMORY, "no memory for a run's key") : ES_OK;
    const double end = q->at + traits_in(q, spec, undone);
    if (!rc && !json_object_get(q->done, key.data)) {
        json_t *line = json_pack("{s:s,s:s,s:s,s:i,s:i}", "is", "sequence", "method", spec->label, "kind", es_method_name(spec->kind), "order", order, "undone", undone);
        json_t *names = json_array();
        for (int i = 0; i < o->n_task; i++)
            json_array_append_new(names, json_string(o->task[i]->name));
        json_object_set_new(line, "tasks", names);
        rc = run_through(q, spec, order, undone, line, err);
        if (rc) {
            es_fail_prefix(err, "%s", spec->label);
            json_decref(line);
        } else
            rc = es_work_keep(q->done, o->work, key.data, line, err);
    }
    q->at = end;
    es_buf_free(&key);
    return rc;
}

int es_eval_sequence(es_model *m, const es_dictionary *s, const es_atlas *a, const es_sequence_options *o, const es_progress *progress, es_error *err)
{
    sequence q = {.m = m, .s = s, .a = a, .o = o, .progress = progress, .cancel = progress ? progress->cancel : NULL, .done = json_object()};
    char hash[65];
    int rc = ES_OK;
    if (!o->work || o->n_task < 2 || o->n_spec < 1 || o->experiences < 1 || o->steps < 1 || o->orders < 1)
        rc = es_fail(err, ES_ERR_USAGE, "sequence: at least two traits, a method, experiences, steps and a work file are needed");
    for (int i = 0; !rc && i < o->n_task; i++)
        for (int k = 0; !rc && k < o->n_spec; k++) {
            if (o->experiences + o->spec[k].basis_pairs > o->task[i]->pool.n)
                rc = es_fail(err, ES_ERR_USAGE, "%s: %d pairs to learn from and %d for a basis, the pool has %d", o->task[i]->name, o->experiences,
                             o->spec[k].basis_pairs, o->task[i]->pool.n);
            else if (o->spec[k].basis_pairs > 0 && !s)
                rc = es_fail(err, ES_ERR_USAGE, "%s: a basis needs a dictionary", o->spec[k].label);
        }
    rc = rc ? rc : es_model_hash(m, hash, err);
    if (!rc)
        snprintf(q.hashes, sizeof q.hashes, "%.12s/%.12s", hash, s ? es_dictionary_get_info(s)->hash : "-");
    rc = rc ? rc : es_work_load(q.done, o->work, err);
    for (int k = 0; k < o->n_spec; k++)
        for (int undone = -1; undone < runs_after(&q, &o->spec[k]); undone++)
            q.total += o->orders * traits_in(&q, &o->spec[k], undone);
    for (int k = 0; !rc && k < o->n_spec; k++)
        for (int order = 0; !rc && order < o->orders; order++)
            for (int undone = -1; !rc && undone < runs_after(&q, &o->spec[k]); undone++)
                rc = one_run(&q, &o->spec[k], order, undone, err);
    close_sets(&q);
    free_directions(&q);
    es_inputs_free(q.inputs);
    json_decref(q.done);
    return rc;
}

/* ---- reading ---------------------------------------------------------------------------------------------------------------------- */

static int collect(void *user, size_t at, json_t *value, es_error *err)
{
    const char *is = json_string_value(json_object_get(value, "is"));
    (void)at;
    if (!is)
        return es_fail(err, ES_ERR_FORMAT, "not a line of an evaluation");
    if (!strcmp(is, "sequence"))
        json_array_append(user, value);
    return ES_OK;
}

static double at_stage(json_t *line, int stage, int task)
{
    json_t *v = json_array_get(json_array_get(json_object_get(line, "after"), (size_t)stage), (size_t)task);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static json_t *with_undone(json_t *lines, json_t *like, int undone)
{
    size_t i;
    json_t *x;
    json_array_foreach(lines, i, x)
        if (json_equal(json_object_get(x, "method"), json_object_get(like, "method")) && json_equal(json_object_get(x, "order"), json_object_get(like, "order")) &&
            json_equal(json_object_get(x, "tasks"), json_object_get(like, "tasks")) && json_integer_value(json_object_get(x, "undone")) == undone)
            return x;
    return NULL;
}

static json_t *real_or_null(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

/* The last stage that was run of a line: that before it when the last trait is the one undone. */
static int last_stage(int n, int undone)
{
    return undone == n - 1 ? n - 2 : n - 1;
}

/* What undoing did to trait t: *left of it once its own experiences are gone, and the largest relative change when another's are. taken: margins of each
 * trait without the stored parts of each; NULL: read from the lines that were learned again without them, if any. */
static void undone_effect(json_t *lines, json_t *x, json_t *taken, int n, int t, double *left, double *worst)
{
    double end = at_stage(x, n - 1, t);
    *left = *worst = NAN;
    for (int u = 0; u < n; u++) {
        json_t *y = taken || !lines ? NULL : with_undone(lines, x, u), *v = json_array_get(json_array_get(taken, (size_t)u), (size_t)t);
        double now = y ? at_stage(y, last_stage(n, u), t) : json_is_number(v) ? json_number_value(v) : NAN;
        if (u == t)
            *left = now;
        else if (isfinite(now) && !(fabs(now - end) / fabs(end) <= *worst))
            *worst = fabs(now - end) / fabs(end);
    }
}

int es_sequence_rows(const char *work, json_t **rows, es_error *err)
{
    json_t *lines = json_array(), *x;
    size_t i;
    *rows = NULL;
    int rc = es_jsonl_each(work, collect, lines, err);
    json_t *out = rc ? NULL : json_array();
    json_array_foreach(lines, i, x) {
        json_t *tasks = json_object_get(x, "tasks");
        int n = (int)json_array_size(tasks);
        if (rc || json_integer_value(json_object_get(x, "undone")) >= 0)
            continue;
        for (int t = 0; t < n; t++) {
            double learned = at_stage(x, t, t), end = at_stage(x, n - 1, t), worst, left, worst_spared, left_spared, worst_sum, left_sum, worst_balanced, left_balanced;
            json_t *without = json_object_get(x, "without"), *spared = json_object_get(x, "spared"), *sum = json_object_get(x, "spared_sum");
            undone_effect(lines, x, without, n, t, &left, &worst);
            undone_effect(NULL, x, spared, n, t, &left_spared, &worst_spared);
            undone_effect(NULL, x, sum, n, t, &left_sum, &worst_sum);
            undone_effect(NULL, x, json_object_get(x, "balanced"), n, t, &left_balanced, &worst_balanced);
            json_t *row = json_pack("{s:O,s:O,s:O,s:i}", "method", json_object_get(x, "method"), "order", json_object_get(x, "order"), "task",
                                    json_array_get(tasks, (size_t)t), "place", t);
            json_object_set_new(row, "undone_by", json_string(without ? "stored parts" : "replay"));
            json_object_set_new(row, "margin_learned", real_or_null(learned));
            json_object_set_new(row, "margin_end", real_or_null(end));
            json_object_set_new(row, "kept", real_or_null(end / learned));
            json_object_set_new(row, "margin_undone", real_or_null(left));
            json_object_set_new(row, "largest_change_by_undoing_another", real_or_null(worst));
            json_object_set_new(row, "margin_undone_sparing", real_or_null(left_spared));
            json_object_set_new(row, "largest_change_sparing", real_or_null(worst_spared));
            json_object_set_new(row, "margin_undone_sparing_sum", real_or_null(left_sum));
            json_object_set_new(row, "largest_change_sparing_sum", real_or_null(worst_sum));
            json_object_set_new(row, "margin_undone_balanced", real_or_null(left_balanced));
            json_object_set_new(row, "largest_change_balanced", real_or_null(worst_balanced));
            json_object_set(row, "kl", json_object_get(x, "kl"));
            json_object_set(row, "dnll", json_object_get(x, "dnll"));
            json_object_set(row, "kl_chat", json_object_get(x, "kl_chat"));
            json_object_set(row, "dnll_chat", json_object_get(x, "dnll_chat"));
            json_t *refused = json_object_get(json_object_get(x, "refused"), json_string_value(json_array_get(tasks, (size_t)t)));
            if (refused)
                json_object_set(row, "refused", refused);
            json_array_append_new(out, row);
        }
    }
    json_decref(lines);
    *rows = out;
    return rc;
}

int es_sequence_table(json_t *rows, es_buf *out, es_error *err)
{
    static const char *const KEY[] = {"margin_learned", "margin_end", "kept", "margin_undone", "largest_change_by_undoing_another", "margin_undone_sparing", "largest_change_sparing", "margin_undone_sparing_sum", "largest_change_sparing_sum", "margin_undone_balanced", "largest_change_balanced", "kl", "dnll"};
    size_t i;
    json_t *x;
    es_buf_str(out, "| method | order | trait | margin when learned | at the end | kept | with its experiences gone | largest change by undoing another | sparing each other experience: with its experiences gone | largest change | sparing their sum: with its experiences gone | largest change | in balance: with its experiences gone | largest change | KL at the end | d(nll) |\n"
                    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    json_array_foreach(rows, i, x) {
        es_buf_printf(out, "| `%s` | %d | %s |", json_string_value(json_object_get(x, "method")), (int)json_integer_value(json_object_get(x, "order")),
                      json_string_value(json_object_get(x, "task")));
        for (size_t k = 0; k < sizeof KEY / sizeof *KEY; k++) {
            json_t *v = json_object_get(x, KEY[k]);
            if (json_is_number(v))
                es_buf_printf(out, k + 2 < sizeof KEY / sizeof *KEY ? " %.3f |" : " %+.4f |", json_number_value(v));
            else
                es_buf_str(out, " - |");
        }
        es_buf_str(out, "\n");
    }
    es_eval_refused(rows, out);
    return out->failed ? es_fail(err, ES_ERR_MEMORY, "no memory for a table") : ES_OK;
}
