/* The protocol. For each task and method: learning rate and number of steps are chosen on dev pairs and dev neutral text (the largest margin
 * among the points of all paths whose KL is within the bound), then each size, order and share of garbage is run to that stop, and the
 * held-out pairs are read along the way. Every finished run is a line of the work file under a key that names every setting. */
#include "eval_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OFF_TOPIC = 240, WEIGHER_RANK = 64 };

typedef struct evaluation {
    es_model *m;
    const es_dictionary *s;
    const es_atlas *a;
    const es_eval_options *o;
    const es_progress *progress;
    const volatile bool *cancel;
    es_bench bench;
    bool bench_open;
    es_set raw, chat, raw_dev, chat_dev;
    int task;                  /* whose sets are open; -1: none */
    es_set held, dev, off;
    int *pool; int n_pool;     /* the task's pool in the split's order: learned from; behind it the reserve for bases */
    int reserve;
    float **gradient;          /* [n_task] each [reserve, d], once a basis was wanted */
    es_basis basis;
    struct kept_direction { es_buf key; es_adapter *adapter; } *direction; /* of tasks' reserves: as many as tasks and kinds of specs */
    int n_direction;
    double *choice_base, *choice_now; /* [n_choice * 8] */
    int *choice_tokens;
    json_t *done;              /* key -> line */
    char hashes[40];           /* of model and dictionary */
    char teacher[65];          /* hash of distil's own, or "" */
    double at, total;          /* runs */
    int max_reserve;
    es_inputs *inputs;         /* white on the dev third's documents and replies, of the largest rank asked for */
    int white_rank;
} evaluation;

es_eval_options es_eval_default(void)
{
    return (es_eval_options){.size = {8, 32}, .n_size = 2, .garbage = {0}, .n_garbage = 1, .garbage_kind = {ES_GARBAGE_SWAP}, .n_garbage_kind = 1, .orders = 3,
                             .at = {2, 4, 8}, .n_at = 3, .harm = 0.02, .raw_tokens = 1500, .chat_tokens = 1000, .behaviour_replies = 10,
                             .behaviour_tokens = 48, .choice_orders = 1, .behaviour_orders = 3, .max_prompt = 64, .max_reply = 64, .seed = 1};
}

/* ---- what is measured on --------------------------------------------------------------------------------------------------------- */

static int open_bench(evaluation *v, es_error *err)
{
    const es_eval_options *o = v->o;
    if (v->bench_open)
        return ES_OK;
    v->bench_open = true;
    es_progress_report(v->progress, "the base model on neutral text", v->at, v->total, "runs");
    int rc = es_bench_open(&v->bench, v->m, o->max_prompt, o->max_reply, o->threads, v->cancel, err);
    rc = rc ? rc : es_set_neutral(&v->raw, &v->bench, o->neutral, o->n_neutral, false, false, o->raw_tokens, err);
    rc = rc ? rc : es_set_neutral(&v->chat, &v->bench, o->neutral, o->n_neutral, true, false, o->chat_tokens, err);
    rc = rc ? rc : es_set_neutral(&v->raw_dev, &v->bench, o->neutral, o->n_neutral, false, true, o->raw_tokens / 3, err);
    rc = rc ? rc : es_set_neutral(&v->chat_dev, &v->bench, o->neutral, o->n_neutral, true, true, o->chat_tokens / 3, err);
    if (!rc && (!v->raw.n || !v->raw_dev.n))
        rc = es_fail(err, ES_ERR_USAGE, "there are no neutral documents to measure harm on (at least 3 are needed)");
    return rc;
}

static int open_pairs(evaluation *v, es_set *s, const es_experiences *e, bool kl, es_error *err)
{
    if (s->seq)
        return ES_OK;
    es_progress_report(v->progress, "the base model on the task's pairs", v->at, v->total, "runs");
    return es_set_pairs(s, &v->bench, e, kl, err);
}

static void close_task(evaluation *v)
{
    es_set_close(&v->held, &v->bench);
    es_set_close(&v->dev, &v->bench);
    es_set_close(&v->off, &v->bench);
    free(v->pool);
    v->pool = NULL;
    v->task = -1;
}

static int open_task(evaluation *v, int task, es_error *err)
{
    int rc = open_bench(v, err);
    if (rc || v->task == task)
        return rc;
    close_task(v);
    const es_task *t = v->o->task[task];
    v->pool = es_calloc((size_t)t->pool.n, sizeof *v->pool);
    if (!v->pool)
        return es_fail(err, ES_ERR_MEMORY, "no memory for the pool");
    es_rng rng;
    es_rng_seed(&rng, v->o->seed);
    for (int i = 0; i < t->pool.n; i++)
        v->pool[i] = i;
    for (int i = t->pool.n - 1; i > 0; i--) {
        int j = (int)es_rng_below(&rng, (uint64_t)i + 1), x = v->pool[i];
        v->pool[i] = v->pool[j];
        v->pool[j] = x;
    }
    v->reserve = v->max_reserve;
    v->n_pool = t->pool.n - v->reserve;
    v->task = task;
    return ES_OK;
}

/* The first n pairs of the reserve. */
static int reserve(evaluation *v, int n, es_experiences *out, es_error *err)
{
    int rc = ES_OK;
    for (int i = 0; !rc && i < n; i++)
        rc = es_experience_copy(out, &v->o->task[v->task]->pool.item[v->pool[v->n_pool + i]], err);
    return rc;
}

/* The basis that a spec has chosen beforehand, into v->basis. */
static int open_basis(evaluation *v, const es_eval_spec *spec, es_error *err)
{
    int d = es_model_get_info(v->m)->d_model, rc = ES_OK;
    es_basis_free(&v->basis);
    v->basis = (es_basis){0};
    float **gradient = &v->gradient[v->task];
    if (!*gradient) {
        es_experiences e = {0};
        *gradient = es_calloc((size_t)v->reserve, (size_t)d * sizeof **gradient);
        if (!*gradient)
            return es_fail(err, ES_ERR_MEMORY, "no memory for gradients");
        rc = reserve(v, v->reserve, &e, err);
        es_progress inner = {.cancel = v->cancel};
        rc = rc ? rc : es_attribute(v->m, v->s, &e, v->o->threads, *gradient, &inner, err);
        es_experiences_free(&e);
        if (rc) {
            free(*gradient);
            *gradient = NULL;
            return rc;
        }
    }
    return es_basis_suggest(&v->basis, v->m, v->s, v->a, *gradient, spec->basis_pairs, spec->o.basis_size, spec->signs, NULL, err);
}

static bool learns_directions(es_method_kind k)
{
    return k == ES_METHOD_FEATURES || k == ES_METHOD_RANDOM || k == ES_METHOD_FREE;
}

/* The direction that a spec's reserved pairs ask for; *o is the spec's, with its basis. */
static int open_direction(evaluation *v, const es_eval_spec *spec, es_method_options *o, es_direction *out, es_error *err)
{
    es_buf key = {0};
    es_experiences e = {0};
    es_method_kind kind = learns_directions(spec->kind) ? spec->kind : ES_METHOD_FEATURES;
    es_buf_printf(&key, "%d: %d %d %d %d %d", v->task, kind, spec->basis_pairs, o->rank, o->basis_size, spec->signs);
    es_adapter *a = NULL;
    for (int i = 0; i < v->n_direction && !key.failed; i++)
        if (!strcmp(v->direction[i].key.data, key.data))
            a = v->direction[i].adapter;
    int rc = key.failed ? es_fail(err, ES_ERR_MEMORY, "no memory for a key") : ES_OK;
    if (!rc && !a) {
        es_method_options first = *o;
        struct kept_direction *more = realloc(v->direction, ((size_t)v->n_direction + 1) * sizeof *more);
        if (more)
            v->direction = more;
        else
            rc = es_fail(err, ES_ERR_MEMORY, "no memory for a direction");
        first.seed = spec->o.seed;
        rc = rc ? rc : reserve(v, spec->basis_pairs, &e, err);
        rc = rc ? rc : es_direction_learn(&a, kind, v->m, &first, &e, v->cancel, err);
        es_experiences_free(&e);
        if (!rc) {
            v->direction[v->n_direction++] = (struct kept_direction){key, a};
            key = (es_buf){0};
        }
    }
    es_buf_free(&key);
    *out = (es_direction){v->o->task[v->task]->name, a};
    o->direction = out;
    o->n_direction = 1;
    return rc;
}

/* The n experiences of an order (-1: that of the sweep), some of them garbage: (*garbage)[n], the caller's to free(). */
static int draw(evaluation *v, int order, int n, double share, es_garbage kind, es_experiences *out, uint8_t **garbage, es_error *err)
{
    const es_task *t = v->o->task[v->task];
    int *which = es_calloc((size_t)v->n_pool, sizeof *which), bad = (int)floor(share * n + 1e-9), rc = ES_OK;
    uint8_t *is_bad = es_calloc((size_t)n + 1, 1);
    es_rng rng;
    if (!which || !is_bad)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for a draw");
    es_rng_seed(&rng, v->o->seed * 1000 + (uint64_t)(order + 1));
    for (int i = 0; !rc && i < v->n_pool; i++)
        which[i] = v->pool[i];
    for (int i = 0; !rc && i < n; i++) { /* sizes are prefixes of one another */
        int j = i + (int)es_rng_below(&rng, (uint64_t)(v->n_pool - i)), x = which[i];
        which[i] = which[j];
        which[j] = x;
    }
    es_rng_seed(&rng, v->o->seed * 1000003 + (uint64_t)(order + 1) * 131 + (uint64_t)n);
    for (int left = bad; !rc && left > 0;) {
        size_t i = (size_t)es_rng_below(&rng, (uint64_t)n);
        left -= !is_bad[i];
        is_bad[i] = 1;
    }
    for (int i = 0; !rc && i < n; i++) {
        const es_experience *e = &t->pool.item[which[i]];
        if (!is_bad[i]) {
            rc = es_experience_copy(out, e, err);
            continue;
        }
        char other[OFF_TOPIC + 1];
        const es_set *from = &v->raw_dev;
        const char *text = from->from[es_rng_below(&rng, (uint64_t)from->n)].text;
        size_t whole = es_utf8_whole(text, strnlen(text, OFF_TOPIC));
        memcpy(other, text, whole);
        other[whole] = 0;
        rc = es_garbage_make(out, e, kind, other, v->o->seed + (uint64_t)i, err);
    }
    free(which);
    *garbage = is_bad;
    return rc;
}

/* What a method made of each experience, beside whether it is garbage. */
static json_t *decisions(const es_method *m, int n, const uint8_t *garbage)
{
    json_t *all = json_array();
    for (int i = 0; i < n; i++) {
        const es_decision *d = es_method_decision(m, i);
        if (d)
            json_array_append_new(all, json_pack("{s:b,s:f,s:f,s:f}", "garbage", garbage[i], "weight", d->weight, "agreement", d->agreement, "surprise", d->surprise));
    }
    return all;
}

/* ---- measuring a variant ----------------------------------------------------------------------------------------------------------- */

/* A point of a path; *finite false: the variant has left the numbers. */
static int measure_point(evaluation *v, const es_variant *x, bool dev, int step, json_t **point, bool *finite, es_error *err)
{
    double margin, se, gain;
    es_harm raw = {0}, chat = {0};
    es_set *pairs = dev ? &v->dev : &v->held;
    int rc = es_set_measure(pairs, &v->bench, x, NULL, err);
    rc = rc ? rc : es_set_measure(dev ? &v->raw_dev : &v->raw, &v->bench, x, &raw, err);
    rc = rc ? rc : es_set_measure(dev ? &v->chat_dev : &v->chat, &v->bench, x, &chat, err);
    if (rc)
        return rc;
    es_set_margins(pairs, &margin, &se, &gain);
    *finite = isfinite(margin) && isfinite(gain) && isfinite(raw.kl) && isfinite(raw.dnll) && isfinite(chat.kl) && isfinite(chat.dnll);
    *point = !*finite ? NULL
                      : json_pack("{s:i,s:f,s:f,s:f,s:f,s:f,s:f,s:f}", "step", step, "gain", gain, "margin", margin, "margin_se", se, "kl", raw.kl, "dnll",
                                  raw.dnll, "kl_chat", chat.kl, "dnll_chat", chat.dnll);
    return *finite && !*point ? es_fail(err, ES_ERR_MEMORY, "no memory for a point") : ES_OK;
}

static json_t *real_or_null(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *behaviour_json(const es_behaviour *b)
{
    json_t *out = json_object();
    for (int i = 0; i < ES_BEHAVIOUR_FIELDS; i++)
        json_object_set_new(out, es_behaviour_name(i), real_or_null(es_behaviour_get(b, i)));
    return out;
}

static int measure_behaviour(evaluation *v, const es_variant *x, es_behaviour *out, es_error *err)
{
    const es_experiences *e = &v->o->task[v->task]->held;
    int n = e->n < v->o->behaviour_replies ? e->n : v->o->behaviour_replies;
    es_source *from = es_calloc((size_t)n + 1, sizeof *from);
    char **text = es_calloc((size_t)n + 1, sizeof *text);
    bool *ended = es_calloc((size_t)n + 1, sizeof *ended);
    int rc = from && text && ended ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for replies");
    for (int i = 0; !rc && i < n; i++)
        from[i] = (es_source){e->item[i].message, e->item[i].n_message, ""};
    rc = rc ? rc : es_bench_replies(&v->bench, x, from, n, v->o->behaviour_tokens, text, ended, err);
    if (!rc)
        es_behaviour_of((const char *const *)text, ended, n, out);
    for (int i = 0; text && i < n; i++)
        free(text[i]);
    free(text);
    free(ended);
    free(from);
    return rc;
}

/* The base model's behaviour on a task: what degenerate is compared with. */
static int base_behaviour(evaluation *v, json_t **out, es_error *err)
{
    char key[256];
    const es_task *t = v->o->task[v->task];
    snprintf(key, sizeof key, "base %s %s replies%d/%d %s", t->name, t->hash, v->o->behaviour_replies, v->o->behaviour_tokens, v->hashes);
    json_t *line = json_object_get(v->done, key);
    if (!line) {
        es_variant base = {.model = v->m, .lowest_layer = es_model_get_info(v->m)->n_layer - 1};
        es_behaviour b;
        int rc = measure_behaviour(v, &base, &b, err);
        rc = rc ? rc : es_work_keep(v->done, v->o->work, key, json_pack("{s:s,s:s,s:o}", "is", "base", "task", t->name, "behaviour", behaviour_json(&b)), err);
        if (rc)
            return rc;
        line = json_object_get(v->done, key);
    }
    *out = json_object_get(line, "behaviour");
    return ES_OK;
}

/* Of an item: whether the right option is the likeliest a token, and the likelihood of the right one over the best other's (a lone
 * option's own), both a token. */
static void choice_score(const es_choice *c, const double *logp, const int *tokens, double *right, double *score)
{
    double own = logp[c->right] / tokens[c->right], other = -INFINITY;
    for (int j = 0; j < c->n; j++)
        if (j != c->right)
            other = fmax(other, logp[j] / tokens[j]);
    *right = c->n > 1 ? own > other : NAN;
    *score = c->n > 1 ? own - other : own;
}

/* Per set of items the paired change from the base model: accuracy and likelihood, each with its standard error. */
static int measure_choices(evaluation *v, const es_variant *x, json_t **out, es_error *err)
{
    const es_eval_options *o = v->o;
    size_t n = 8 * (size_t)o->n_choice + 1;
    int rc = ES_OK;
    if (!v->choice_base) {
        v->choice_base = es_calloc(n, sizeof *v->choice_base);
        v->choice_now = es_calloc(n, sizeof *v->choice_now);
        v->choice_tokens = es_calloc(n, sizeof *v->choice_tokens);
        if (!v->choice_base || !v->choice_now || !v->choice_tokens)
            return es_fail(err, ES_ERR_MEMORY, "no memory for items");
        rc = es_bench_choices(&v->bench, NULL, o->choice, o->n_choice, v->choice_base, v->choice_tokens, err);
        if (rc) {
            free(v->choice_base);
            v->choice_base = NULL; /* so that it is tried again */
            free(v->choice_now);
            free(v->choice_tokens);
            return rc;
        }
    }
    rc = es_bench_choices(&v->bench, x, o->choice, o->n_choice, v->choice_now, v->choice_tokens, err);
    if (rc)
        return rc;
    *out = json_object();
    for (int i = 0; i <= o->n_choice; i++) { /* i == n_choice: all of them */
        const char *set = i < o->n_choice ? o->choice[i].set : "all";
        if (json_object_get(*out, set))
            continue;
        double acc[3] = {0}, like[2] = {0}; /* accuracy: base, sum and sum of squares of the change; likelihood's change */
        int n_acc = 0, n_like = 0;
        for (int j = 0; j < o->n_choice; j++) {
            if (i < o->n_choice && strcmp(o->choice[j].set, set))
                continue;
            double right[2], score[2];
            choice_score(&o->choice[j], v->choice_base + 8 * j, v->choice_tokens + 8 * j, &right[0], &score[0]);
            choice_score(&o->choice[j], v->choice_now + 8 * j, v->choice_tokens + 8 * j, &right[1], &score[1]);
            double da = right[1] - right[0], dl = score[1] - score[0];
            if (isfinite(da)) {
                acc[0] += right[0];
                acc[1] += da;
                acc[2] += da * da;
                n_acc++;
            }
            if (isfinite(dl)) {
                like[0] += dl;
                like[1] += dl * dl;
                n_like++;
            }
        }
        json_t *line = json_pack("{s:i}", "items", n_like);
        json_object_set_new(line, "base_accuracy", n_acc ? json_real(acc[0] / n_acc) : json_null());
        json_object_set_new(line, "accuracy", n_acc ? json_real(acc[1] / n_acc) : json_null());
        json_object_set_new(line, "accuracy_se", n_acc > 1 ? json_real(sqrt(fmax(acc[2] - acc[1] * acc[1] / n_acc, 0) / (n_acc - 1) / n_acc)) : json_null());
        json_object_set_new(line, "likelihood", n_like ? json_real(like[0] / n_like) : json_null());
        json_object_set_new(line, "likelihood_se",
                            n_like > 1 ? json_real(sqrt(fmax(like[1] - like[0] * like[0] / n_like, 0) / (n_like - 1) / n_like)) : json_null());
        json_object_set_new(*out, set, line);
    }
    return ES_OK;
}

/* ---- a run ------------------------------------------------------------------------------------------------------------------------- */

typedef struct run {
    const es_eval_spec *spec;
    int task, n, order;   /* order -1: the sweep's draw, measured on dev */
    double share, rate;
    es_garbage kind;
    int stop;             /* steps */
} run;

static void key_of(const evaluation *v, const run *r, es_buf *out)
{
    const es_eval_options *o = v->o;
    const es_task *t = o->task[r->task];
    es_buf_printf(out, "%s %s %s n%d order%d garbage%g%s%s rate%g stop%d at", r->order < 0 ? "sweep" : "run", t->name, t->hash, r->n, r->order, r->share,
                  r->share > 0 ? "/" : "", r->share > 0 ? es_garbage_name(r->kind) : "", r->rate, r->stop);
    for (int i = 0; i < o->n_at; i++)
        es_buf_printf(out, "%s%d", i ? "," : "", o->at[i]);
    es_buf_printf(out, " cut%d+%d neutral%d+%d reserve%d seed%llu %s ", o->max_prompt, o->max_reply, o->raw_tokens, o->chat_tokens, v->max_reserve,
                  (unsigned long long)o->seed, v->hashes);
    es_eval_spec_text(r->spec, out);
    if (r->spec->kind == ES_METHOD_DISTIL && *v->teacher)
        es_buf_printf(out, " teacher=%.12s", v->teacher);
}

static void say(evaluation *v, const run *r, double part)
{
    char what[200];
    if (r->order < 0)
        snprintf(what, sizeof what, "%s: %s at rate %g, %d pairs, on dev", v->o->task[r->task]->name, r->spec->label, r->rate, r->n);
    else
        snprintf(what, sizeof what, "%s: %s, %d pairs%s%s, order %d", v->o->task[r->task]->name, r->spec->label, r->n, r->share > 0 ? ", " : "",
                 r->share > 0 ? es_garbage_name(r->kind) : "", r->order);
    es_progress_report(v->progress, what, v->at - 1 + part, v->total, "runs");
}

/* What only the end of a run is measured for. */
static int measure_end(evaluation *v, const run *r, const es_variant *x, json_t *line, es_error *err)
{
    const es_eval_options *o = v->o;
    int rc = ES_OK;
    if (o->task[r->task]->off.n) {
        double margin, se, gain;
        es_harm harm;
        rc = open_pairs(v, &v->off, &o->task[r->task]->off, true, err);
        rc = rc ? rc : es_set_measure(&v->off, &v->bench, x, &harm, err);
        if (!rc) {
            es_set_margins(&v->off, &margin, &se, &gain);
            json_object_set_new(line, "kl_off", real_or_null(harm.kl));
            json_object_set_new(line, "margin_off", real_or_null(margin));
        }
    }
    if (!rc && r->order < o->behaviour_orders && o->behaviour_replies > 0) {
        es_behaviour b;
        json_t *base = NULL;
        rc = measure_behaviour(v, x, &b, err);
        rc = rc ? rc : base_behaviour(v, &base, err);
        if (!rc) {
            double bad = json_number_value(json_object_get(base, "loops")) + json_number_value(json_object_get(base, "empty"));
            json_object_set_new(line, "behaviour", behaviour_json(&b));
            json_object_set(line, "behaviour_base", base);
            json_object_set_new(line, "void", json_boolean(b.loops + b.empty > bad + 0.25));
        }
    }
    if (!rc && o->n_choice > 0 && r->order < o->choice_orders && (!o->choice_size || o->choice_size == r->n)) {
        json_t *choices = NULL;
        rc = measure_choices(v, x, &choices, err);
        if (!rc)
            json_object_set_new(line, "choice", choices);
    }
    return rc;
}

static int learn(evaluation *v, const run *r, json_t *line, es_error *err)
{
    const es_eval_options *o = v->o;
    es_method_options mo = r->spec->o;
    es_experiences e = {0};
    es_method *method = NULL;
    es_variant x = {0};
    es_direction direction = {0};
    uint8_t *garbage = NULL;
    es_neutral_text *dev_text = NULL;
    int rank = 0;
    json_t *path = json_array();
    bool dev = r->order < 0, measured = false, finite = true;
    double seconds = 0;
    long tokens = 0;
    int rc = draw(v, r->order, r->n, r->share, r->kind, &e, &garbage, err), step = 0;
    mo.s = v->s;
    mo.a = v->a;
    mo.rate = r->rate;
    mo.teacher = r->spec->kind == ES_METHOD_DISTIL ? o->teacher : NULL;
    mo.threads = o->threads;
    mo.seed = r->spec->o.seed + (uint64_t)(r->order + 1);
    if (!rc && v->white_rank > 0) {
        if (!v->inputs)
            es_progress_report(v->progress, "white inputs", v->at, v->total, "runs");
        rc = v->inputs ? ES_OK : es_inputs_neutral(&v->inputs, v->m, v->s, v->white_rank, o->neutral, o->n_neutral, o->threads, v->cancel, err);
        mo.inputs = v->inputs;
    }
    if (!rc && mo.replay > 0 && o->n_neutral && !(dev_text = es_calloc((size_t)o->n_neutral, sizeof *dev_text)))
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for neutral texts");
    if (dev_text) { /* those that harm is not measured on */
        mo.n_replay = es_neutral_pick(o->neutral, o->n_neutral, ES_NEUTRAL_CHOOSE, dev_text);
        mo.replay_text = dev_text;
    }
    mo.preference = *r->spec->preference ? r->spec->preference : NULL;
    if (!rc && r->spec->basis_pairs > 0 && r->spec->kind != ES_METHOD_FREE) {
        rc = open_basis(v, r->spec, err);
        mo.basis = &v->basis;
    }
    bool weigh = r->spec->o.weighting && !learns_directions(r->spec->kind);
    if (!rc && weigh)
        rank = mo.rank, mo.rank = WEIGHER_RANK;
    if (!rc && r->spec->prior)
        rc = open_direction(v, r->spec, &mo, &direction, err);
    if (!rc && weigh) { /* the same weighting is offered to those that have no gradient of each experience */
        double start = es_seconds();
        rc = es_experiences_weigh(&e, v->m, &mo, NULL, v->cancel, err);
        seconds += es_seconds() - start;
        mo.rank = rank;
    }
    double began = es_seconds();
    rc = rc ? rc : es_method_open(&method, r->spec->kind, v->m, &mo, err);
    for (int i = 0; !rc && i < e.n; i++)
        rc = es_method_add(method, &e.item[i], v->cancel, err);
    seconds += es_seconds() - began;
    for (int at = 0; !rc && finite && at < o->n_at && o->at[at] <= r->stop; at++) {
        bool still = false, moved = false;
        for (; !rc && step < o->at[at] && !still; step++) {
            es_step_report report;
            began = es_seconds();
            rc = es_method_step(method, &report, v->cancel, err);
            seconds += es_seconds() - began;
            if (rc == ES_ERR_LIMIT) { /* not a number */
                finite = false;
                rc = ES_OK;
                break;
            }
            if (rc == ES_ERR_REFUSED) { /* what such a method makes of these experiences: the base model goes on */
                json_object_set_new(line, "refused", json_string(err ? err->text : ""));
                still = true;
                rc = ES_OK;
                break;
            }
            tokens += rc ? 0 : report.tokens;
            still = !rc && report.guard && !strcmp(report.guard, "learned");
            moved |= !still;
            say(v, r, (double)step / (r->stop + 1));
        }
        if (rc || !finite || (still && !moved && measured))
            break;
        json_t *point = NULL;
        rc = es_method_view(method, &x, err);
        rc = rc ? rc : measure_point(v, &x, dev, measured || moved ? step : 0, &point, &finite, err);
        if (point)
            json_array_append_new(path, point);
        measured = true;
        if (still)
            break;
    }
    if (!rc && !dev && json_array_size(path) && finite)
        rc = measure_end(v, r, &x, line, err);
    json_object_set_new(line, "path", path);
    if (!rc && method && r->spec->o.weighting)
        json_object_set_new(line, "decisions", decisions(method, e.n, garbage));
    free(garbage);
    free(dev_text);
    json_object_set_new(line, "broken", json_boolean(!finite));
    json_object_set_new(line, "seconds", json_real(seconds));
    json_object_set_new(line, "tokens", json_integer(tokens));
    json_object_set_new(line, "parameters", json_integer(method ? (json_int_t)es_method_parameters(method) : 0));
    json_object_set_new(line, "bytes", json_integer(method ? (json_int_t)es_method_bytes(method) : 0));
    json_object_set_new(line, "context_tokens", json_integer(x.context_tokens));
    if (v->bench.trainer_model != v->m) { /* the method's own model ends with it */
        es_trainer_free(v->bench.trainer);
        v->bench.trainer = NULL;
        v->bench.trainer_model = NULL;
    }
    es_method_free(method);
    es_experiences_free(&e);
    return rc;
}

/* A run, unless the work file has it; *line is borrowed from v->done. */
static int run_once(evaluation *v, const run *r, json_t **line, es_error *err)
{
    es_buf key = {0};
    key_of(v, r, &key);
    if (key.failed)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a run's key");
    v->at++;
    *line = json_object_get(v->done, key.data);
    int rc = ES_OK;
    if (!*line) {
        double began = es_seconds();
        json_t *made = json_pack("{s:s,s:s,s:s,s:s,s:i,s:i,s:f,s:f,s:i}", "is", r->order < 0 ? "sweep" : "run", "task", v->o->task[r->task]->name, "method",
                                 r->spec->label, "kind", es_method_name(r->spec->kind), "experiences", r->n, "order", r->order, "garbage", r->share, "rate",
                                 r->rate, "stop", r->stop);
        json_object_set_new(made, "garbage_kind", r->share > 0 ? json_string(es_garbage_name(r->kind)) : json_null());
        say(v, r, 0);
        rc = open_task(v, r->task, err);
        rc = rc ? rc : open_pairs(v, r->order < 0 ? &v->dev : &v->held, r->order < 0 ? &v->o->task[r->task]->dev : &v->o->task[r->task]->held, false, err);
        rc = rc ? rc : learn(v, r, made, err);
        json_object_set_new(made, "wall", json_real(es_seconds() - began));
        if (rc) {
            es_fail_prefix(err, "%s, %s", v->o->task[r->task]->name, r->spec->label);
            json_decref(made);
        } else
            rc = es_work_keep(v->done, v->o->work, key.data, made, err);
        *line = rc ? NULL : json_object_get(v->done, key.data);
    }
    es_buf_free(&key);
    return rc;
}

/* ---- choosing on dev ------------------------------------------------------------------------------------------------------------------ */

static double number(json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

/* The best point of some rates' paths, each a mean over the sweep's tasks. Missing points of a path that had learned everything are its
 * last one; those of a broken one rule the point out. */
static int choose(evaluation *v, const es_eval_spec *spec, const int *task, int n_task, int n, const double *rate, int n_rate, double *best_rate, int *stop,
                  es_error *err)
{
    const es_eval_options *o = v->o;
    double best = -INFINITY, least = INFINITY;
    for (int i = 0; i < n_rate; i++) {
        double margin[ES_EVAL_POINTS] = {0}, kl[ES_EVAL_POINTS] = {0};
        for (int k = 0; k < n_task; k++) {
            run r = {.spec = spec, .task = task[k], .n = n, .order = -1, .rate = rate[i], .stop = o->at[o->n_at - 1]};
            json_t *line = NULL, *path;
            int rc = run_once(v, &r, &line, err);
            if (rc)
                return rc;
            path = json_object_get(line, "path");
            size_t have = json_array_size(path);
            bool broken = json_is_true(json_object_get(line, "broken"));
            for (int p = 0; p < o->n_at; p++) {
                json_t *point = have ? json_array_get(path, (size_t)p < have ? (size_t)p : have - 1) : NULL;
                if (!point || (broken && (size_t)p >= have)) {
                    kl[p] = INFINITY;
                    continue;
                }
                margin[p] += number(point, "margin") / n_task;
                kl[p] += (json_object_get(point, "kl_chat") && v->o->chat_tokens > 0 ? (number(point, "kl") + number(point, "kl_chat")) / 2 : number(point, "kl")) / n_task;
            }
        }
        for (int p = 0; p < o->n_at; p++) {
            bool within = kl[p] <= o->harm;
            if (within ? margin[p] > best : best == -INFINITY && kl[p] < least) { /* none within the bound: the least harmful */
                *best_rate = rate[i];
                *stop = o->at[p];
            }
            best = within && margin[p] > best ? margin[p] : best;
            least = kl[p] < least ? kl[p] : least;
        }
    }
    return ES_OK;
}

/* Rate and stop of a spec for each size: the rate at the size nearest to 8, stops at each. */
static int choose_all(evaluation *v, const es_eval_spec *spec, int for_task, double *rate, int *stop, es_error *err)
{
    const es_eval_options *o = v->o;
    const int *task = o->n_sweep ? o->sweep_task : &for_task;
    int n_task = o->n_sweep ? o->n_sweep : 1, middle = 0, rc = ES_OK;
    for (int i = 0; i < o->n_size; i++) {
        stop[i] = o->at[o->n_at - 1];
        middle = abs(o->size[i] - 8) < abs(o->size[middle] - 8) ? i : middle;
    }
    *rate = 0;
    if (!spec->n_rate)
        return ES_OK;
    *rate = spec->rate[0];
    rc = choose(v, spec, task, n_task, o->size[middle], spec->rate, spec->n_rate, rate, &stop[middle], err);
    for (int i = 0; !rc && i < o->n_size; i++) {
        double only = *rate;
        if (i != middle)
            rc = choose(v, spec, task, n_task, o->size[i], &only, 1, &only, &stop[i], err);
    }
    return rc;
}

/* ---- all ---------------------------------------------------------------------------------------------------------------------------------- */

static int check(evaluation *v, es_error *err)
{
    const es_eval_options *o = v->o;
    int most = 0;
    v->max_reserve = o->reserve;
    bool good = o->work && o->n_task > 0 && o->n_spec > 0 && o->n_size > 0 && o->n_size <= ES_EVAL_SIZES && o->orders > 0 && o->n_at > 0 &&
                o->n_at <= ES_EVAL_POINTS && o->n_garbage > 0 && o->n_garbage <= ES_EVAL_SHARES && o->max_prompt > 0 && o->max_reply > 0 && o->raw_tokens > 0;
    for (int i = 0; good && i < o->n_at; i++)
        good = o->at[i] > (i ? o->at[i - 1] : 0);
    for (int i = 0; good && i < o->n_size; i++) {
        good = o->size[i] > 0;
        most = o->size[i] > most ? o->size[i] : most;
    }
    for (int i = 0; good && i < o->n_garbage; i++)
        good = o->garbage[i] >= 0 && o->garbage[i] <= 1 && (o->garbage[i] == 0 || o->n_garbage_kind > 0);
    if (!good)
        return es_fail(err, ES_ERR_USAGE, "eval: its options make no sense");
    for (int i = 0; i < o->n_spec; i++) {
        for (int j = 0; j < i; j++)
            if (!strcmp(o->spec[i].label, o->spec[j].label))
                return es_fail(err, ES_ERR_USAGE, "two methods are called %s", o->spec[i].label);
        if (o->spec[i].prior && (o->spec[i].basis_pairs < 1 || !o->spec[i].o.white))
            return es_fail(err, ES_ERR_USAGE, "%s: a prior needs white inputs (white=1), and pairs to learn it from (basis_pairs)", o->spec[i].label);
        if (o->spec[i].o.weighting && !learns_directions(o->spec[i].kind) && (!o->spec[i].prior || !v->s))
            return es_fail(err, ES_ERR_USAGE, "%s: its experiences are weighed by a prior (prior=1, white=1, basis_pairs) within a dictionary's features", o->spec[i].label);
        int rank = !o->spec[i].o.white ? 0 : !learns_directions(o->spec[i].kind) ? WEIGHER_RANK : o->spec[i].o.rank > 0 ? o->spec[i].o.rank : 8;
        v->white_rank = rank > v->white_rank ? rank : v->white_rank;
        v->max_reserve = o->spec[i].basis_pairs > v->max_reserve ? o->spec[i].basis_pairs : v->max_reserve;
        if (o->spec[i].basis_pairs > 0 && !v->s)
            return es_fail(err, ES_ERR_USAGE, "%s: a basis needs a dictionary", o->spec[i].label);
    }
    for (int i = 0; i < o->n_task; i++)
        if (most + v->max_reserve > o->task[i]->pool.n)
            return es_fail(err, ES_ERR_USAGE, "%s: %d pairs to learn from and %d to choose bases on, the pool has %d", o->task[i]->name, most, v->max_reserve,
                           o->task[i]->pool.n);
    return ES_OK;
}

static double count_runs(const es_eval_options *o)
{
    int shares = 0;
    for (int i = 0; i < o->n_garbage; i++)
        shares += o->garbage[i] > 0 ? o->n_garbage_kind : 1;
    double n = (double)o->n_task * o->n_spec * o->n_size * o->orders * shares;
    for (int i = 0; i < o->n_spec; i++)
        if (o->spec[i].n_rate)
            n += (double)(o->spec[i].n_rate + o->n_size - 1) * (o->n_sweep ? o->n_sweep : o->n_task);
    return n;
}

static int run_task(evaluation *v, int task, const double *rates, const int *stops, es_error *err)
{
    const es_eval_options *o = v->o;
    int rc = ES_OK;
    for (int g = 0; !rc && g < o->n_garbage; g++)
        for (int k = 0; !rc && k < (o->garbage[g] > 0 ? o->n_garbage_kind : 1); k++)
            for (int order = 0; !rc && order < o->orders; order++)
                for (int n = 0; !rc && n < o->n_size; n++)
                    for (int i = 0; !rc && i < o->n_spec; i++) {
                        run r = {.spec = &o->spec[i], .task = task, .n = o->size[n], .order = order, .share = o->garbage[g], .rate = rates[i],
                                 .kind = o->garbage_kind[k], .stop = stops[i * ES_EVAL_SIZES + n]};
                        json_t *line;
                        rc = run_once(v, &r, &line, err);
                    }
    return rc;
}

int es_eval_adapt(es_model *m, const es_dictionary *s, const es_atlas *a, const es_eval_options *o, const es_progress *progress, es_error *err)
{
    evaluation v = {.m = m, .s = s, .a = a, .o = o, .progress = progress, .cancel = progress ? progress->cancel : NULL, .task = -1};
    char hash[65];
    double *rate = es_calloc((size_t)o->n_spec + 1, sizeof *rate);
    int *stop = es_calloc((size_t)(o->n_spec + 1) * ES_EVAL_SIZES, sizeof *stop);
    v.done = json_object();
    v.gradient = es_calloc((size_t)o->n_task + 1, sizeof *v.gradient);
    int rc = rate && stop && v.done && v.gradient ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for an evaluation");
    rc = rc ? rc : check(&v, err);
    rc = rc ? rc : es_model_hash(m, hash, err);
    if (!rc)
        snprintf(v.hashes, sizeof v.hashes, "%.12s/%.12s", hash, s ? es_dictionary_get_info(s)->hash : "-");
    if (!rc && o->teacher)
        rc = es_model_hash(o->teacher, v.teacher, err);
    rc = rc ? rc : es_work_load(v.done, o->work, err);
    v.total = count_runs(o);
    for (int t = 0; !rc && t < o->n_task; t++) {
        for (int i = 0; !rc && i < o->n_spec && (t == 0 || !o->n_sweep); i++)
            rc = choose_all(&v, &o->spec[i], t, &rate[i], &stop[i * ES_EVAL_SIZES], err);
        rc = rc ? rc : run_task(&v, t, rate, stop, err);
    }
    if (v.bench_open) {
        close_task(&v);
        es_set_close(&v.raw, &v.bench);
        es_set_close(&v.chat, &v.bench);
        es_set_close(&v.raw_dev, &v.bench);
        es_set_close(&v.chat_dev, &v.bench);
        es_bench_close(&v.bench);
    }
    es_basis_free(&v.basis);
    for (int i = 0; i < v.n_direction; i++) {
        es_buf_free(&v.direction[i].key);
        es_adapter_free(v.direction[i].adapter);
    }
    free(v.direction);
    for (int t = 0; v.gradient && t < o->n_task; t++)
        free(v.gradient[t]);
    free(v.gradient);
    es_inputs_free(v.inputs);
    free(v.choice_base);
    free(v.choice_now);
    free(v.choice_tokens);
    json_decref(v.done);
    free(rate);
    free(stop);
    return rc;
}
