#include "compare.h"
#include "adapter.h"
#include "pack.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COMPARE_TOKENS = 1024, NEUTRAL_DOCUMENT = 256, LOGIT_ROWS = 128 };
static const es_method LORAS[] = {ES_METHOD_FEATURES, ES_METHOD_LORA, ES_METHOD_RANDOM};

const char *es_compare_method_name(es_method m)
{
    static const char *const name[] = {"features", "lora", "random", "bias"};
    return (unsigned)m < ES_N_METHODS ? name[m] : "?";
}

es_compare_options es_compare_default(const es_dictionary *s, const es_model *m)
{
    es_adapter_options a = es_adapter_default(s, m);
    es_compare_options o = {.task = "task", .neutral_tokens = 3000, .size = {8, 32}, .n_size = 2, .orders = 3, .held_out = 40, .dev = 16,
                            .method = {true, true, true, true}, .basis_size = 256, .rank = a.rank, .first_layer = a.first_layer,
                            .last_layer = a.last_layer, .steps = 12, .batch = 8, .every = 6, .max_prompt = 64, .max_reply = 48, .seed = 1,
                            .rate = {{0.01}, {0.01}, {0.01}, {0.02}}};
    return o;
}

/* ---- one measuring set-up for all runs --------------------------------------------------------------------------------- */

typedef struct bench {
    es_model *m;
    const es_dictionary *s;
    const es_atlas *a;
    const es_compare_options *o;
    const es_progress *progress;
    const volatile bool *cancel;
    int d, below;            /* the residual that is cached */
    es_trainer *t;
    es_pack pack;
    int *split;              /* all pairs in the split's order: held-out, dev, pool */
    es_sequence *held, *dev; /* 2 a pair */
    es_sequence *neutral;
    int n_neutral, neutral_tokens;
    float *base;             /* [neutral_tokens, n_vocab] base logits */
    float *base_logprob;     /* [neutral_tokens] of the next token */
    double *base_entropy, *base_mass; /* [neutral_tokens] sum p log p, sum p */
    float *base_p;           /* base, exponentiated in place */
    float *rows;             /* [LOGIT_ROWS, n_vocab] */
    json_t *done;            /* key -> line of the work file */
    double at, total;        /* progress in runs */
} bench;

static void bench_close(bench *b)
{
    for (int i = 0; b->held && i < 2 * b->o->held_out; i++)
        es_sequence_free(&b->held[i]);
    for (int i = 0; b->dev && i < 2 * b->o->dev; i++)
        es_sequence_free(&b->dev[i]);
    for (int i = 0; i < b->n_neutral; i++)
        es_sequence_free(&b->neutral[i]);
    free(b->held);
    free(b->dev);
    free(b->neutral);
    free(b->split);
    free(b->base);
    free(b->base_logprob);
    free(b->base_entropy);
    free(b->rows);
    if (b->pack.arena.base)
        es_pack_close(&b->pack);
    es_trainer_free(b->t);
    json_decref(b->done);
}

static void say(bench *b, double part, const char *fmt, const char *method, int n, int order)
{
    char what[160];
    snprintf(what, sizeof what, fmt, b->o->task, method, n, order);
    es_progress_report(b->progress, what, b->at + part, b->total, "runs");
}

/* Forward over sequences with cached residuals; each one's `now` is filled. */
static int score(bench *b, es_sequence *s, int n, const es_patch *patch, es_error *err)
{
    int rc = ES_OK;
    for (int i = 0; !rc && i < n;) {
        es_pack_clear(&b->pack);
        while (i < n && es_pack_add(&b->pack, &s[i], 0))
            i++;
        es_batch batch = es_pack_batch(&b->pack);
        rc = es_trainer_forward(b->t, &batch, b->pack.resid, patch, NULL, 0, b->pack.logprob, b->cancel, err);
        if (!rc)
            es_pack_means(&b->pack);
    }
    return rc;
}

static int open_pairs(bench *b, const int *which, int n, es_sequence **out, es_error *err)
{
    *out = es_calloc(2 * (size_t)n + 1, sizeof **out);
    int rc = *out ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for %d pairs", n);
    for (int i = 0; !rc && i < n; i++) {
        const es_experience *x = &b->o->pairs->item[which[i]];
        const char *reply[2] = {x->preferred, x->rejected};
        for (int j = 0; !rc && j < 2; j++) {
            es_sequence *s = &(*out)[2 * i + j];
            rc = es_sequence_make(s, b->m, x->message, x->n_message, reply[j], b->o->max_prompt, b->o->max_reply, err);
            rc = rc ? rc : es_sequence_residual(s, b->t, b->below, b->d, b->cancel, err);
        }
        es_progress_report(b->progress, "preparing pairs", i + 1, n, "pairs");
    }
    rc = rc ? rc : score(b, *out, 2 * n, NULL, err);
    for (int i = 0; !rc && i < 2 * n; i++)
        (*out)[i].base = (*out)[i].now;
    return rc;
}

/* Fills kl and dnll (NULL patch: the base's own rows are remembered). */
static int neutral_pass(bench *b, const es_patch *patch, double *kl, double *dnll, es_error *err)
{
    size_t n_vocab = (size_t)es_model_get_info(b->m)->n_vocab;
    int rc = ES_OK, token = 0;
    double sum_kl = 0, sum_nll = 0;
    for (int i = 0; !rc && i < b->n_neutral;) {
        es_pack_clear(&b->pack);
        while (i < b->n_neutral && es_pack_add(&b->pack, &b->neutral[i], 0))
            i++;
        es_batch batch = es_pack_batch(&b->pack);
        memset(b->pack.wanted, 0, (size_t)b->pack.n); /* the head runs here, on rows that are kept */
        rc = es_trainer_forward(b->t, &batch, b->pack.resid, patch, NULL, 0, b->pack.logprob, b->cancel, err);
        for (int first = 0; !rc && first < b->pack.n; first += LOGIT_ROWS) {
            int n = b->pack.n - first < LOGIT_ROWS ? b->pack.n - first : LOGIT_ROWS;
            rc = es_trainer_logits_rows(b->t, first, n, b->rows, err);
            for (int j = 0; !rc && j < n; j++, token++) {
                float *q = b->rows + (size_t)j * n_vocab, *p = b->base_p + (size_t)token * n_vocab, most = -INFINITY;
                int target = b->pack.target[first + j];
                double sum = 0, cross = 0;
                for (size_t v = 0; v < n_vocab; v++)
                    most = q[v] > most ? q[v] : most;
                for (size_t v = 0; v < n_vocab; v += 256) {
                    float part = 0, dot = 0;
                    for (size_t w = v; w < v + 256 && w < n_vocab; w++) {
                        part += expf(q[w] - most);
                        dot += p[w] * q[w];
                    }
                    sum += part;
                    cross += dot;
                }
                double lse = most + log(sum), logprob = q[target] - lse;
                if (patch) {
                    sum_kl += b->base_entropy[token] - cross + lse * b->base_mass[token];
                    sum_nll -= logprob - b->base_logprob[token];
                    continue;
                }
                b->base_logprob[token] = (float)logprob;
                for (size_t v = 0; v < n_vocab; v++) {
                    double lp = q[v] - lse;
                    p[v] = expf((float)lp);
                    b->base_entropy[token] += p[v] * lp;
                    b->base_mass[token] += p[v];
                }
            }
        }
    }
    if (patch) {
        *kl = sum_kl / token;
        *dnll = sum_nll / token;
    }
    return rc;
}

static int open_neutral(bench *b, es_error *err)
{
    const es_compare_options *o = b->o;
    size_t n_vocab = (size_t)es_model_get_info(b->m)->n_vocab;
    b->neutral = es_calloc((size_t)o->n_neutral + 1, sizeof *b->neutral);
    int rc = b->neutral ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for neutral text");
    for (int i = 0; !rc && i < o->n_neutral && b->neutral_tokens < o->neutral_tokens; i++) {
        es_sequence *s = &b->neutral[b->n_neutral];
        int room = o->neutral_tokens - b->neutral_tokens;
        rc = es_sequence_text(s, b->m, o->neutral[i], room < NEUTRAL_DOCUMENT ? room : NEUTRAL_DOCUMENT, err);
        rc = rc ? rc : es_sequence_residual(s, b->t, b->below, b->d, b->cancel, err);
        if (rc)
            es_sequence_free(s);
        else {
            b->neutral_tokens += s->n;
            b->n_neutral++;
        }
    }
    if (!rc && !b->neutral_tokens)
        rc = es_fail(err, ES_ERR_USAGE, "there is no neutral text to measure harm on");
    if (rc)
        return rc;
    size_t n = (size_t)b->neutral_tokens;
    b->base = b->base_p = es_calloc(n, n_vocab * sizeof *b->base);
    b->base_logprob = es_calloc(n, sizeof *b->base_logprob);
    b->base_entropy = es_calloc(2 * n, sizeof *b->base_entropy);
    b->base_mass = b->base_entropy + n;
    b->rows = es_calloc(LOGIT_ROWS, n_vocab * sizeof *b->rows);
    if (!b->base || !b->base_logprob || !b->base_entropy || !b->rows)
        return es_fail(err, ES_ERR_MEMORY, "no memory for the base model's logits of %zu tokens", n);
    return neutral_pass(b, NULL, NULL, NULL, err);
}

/* ---- runs ------------------------------------------------------------------------------------------------------------------ */

/* What a run is, as a text: two runs with one key are one run. */
static void key_of(const bench *b, char *out, size_t size, const char *kind, es_method m, int n, int order, double rate)
{
    const es_compare_options *o = b->o;
    snprintf(out, size, "%s %s %s n%d order%d garbage%g rate%g K%d from%d r%d layers%d-%d steps%d/%d batch%d cut%d+%d held%d dev%d neutral%d seed%llu %.12s",
             kind, o->task, es_compare_method_name(m), n, order, o->garbage, rate, o->basis_size, o->basis_pairs, o->rank, o->first_layer,
             o->last_layer, o->steps, o->every, o->batch, o->max_prompt, o->max_reply, o->held_out, o->dev, b->neutral_tokens,
             (unsigned long long)o->seed, es_dictionary_get_info(b->s)->hash);
}

static int append_line(const bench *b, json_t *line, es_error *err)
{
    char *text = json_dumps(line, JSON_COMPACT);
    FILE *f = text ? fopen(b->o->work, "ae") : NULL;
    bool ok = f && fprintf(f, "%s\n", text) > 0;
    ok = f && fclose(f) == 0 && ok;
    free(text);
    return ok ? ES_OK : es_fail(err, ES_ERR_IO, "%s: cannot append a finished run", b->o->work);
}

/* The n pairs that order `order` learns from, and after them `other` pairs for the basis, as indices; disjoint. */
static int draw(const bench *b, int order, int n, int other, int *out, es_error *err)
{
    int first = b->o->held_out + b->o->dev, pool = b->o->pairs->n - first;
    if (n + other > pool)
        return es_fail(err, ES_ERR_USAGE, "%s: %d pairs to learn from and %d for the basis, the pool has %d", b->o->task, n, other, pool);
    int *order_of = es_calloc((size_t)pool, sizeof *order_of);
    if (!order_of)
        return es_fail(err, ES_ERR_MEMORY, "no memory for the pool");
    es_rng rng;
    es_rng_seed(&rng, b->o->seed * 1000 + (uint64_t)order);
    for (int i = 0; i < pool; i++)
        order_of[i] = b->split[first + i];
    for (int i = 0; i < n + other; i++) {
        int j = i + (int)es_rng_below(&rng, (uint64_t)(pool - i)), t = order_of[i];
        order_of[i] = order_of[j];
        order_of[j] = t;
    }
    /* sizes are prefixes of one another: the basis pairs come from the far end */
    for (int i = 0; i < n; i++)
        out[i] = order_of[i];
    for (int i = 0; i < other; i++)
        out[n + i] = order_of[pool - 1 - i];
    free(order_of);
    return ES_OK;
}

static int take_pairs(const bench *b, const int *which, int n, double garbage, es_experiences *out, es_error *err)
{
    int swapped = (int)(garbage * n + 0.5), rc = ES_OK;
    for (int i = 0; !rc && i < n; i++) {
        es_experience e = b->o->pairs->item[which[i]];
        e.weight = 1;
        if (i < swapped) {
            char *t = e.preferred;
            e.preferred = e.rejected;
            e.rejected = t;
        }
        rc = es_experience_copy(out, &e, err);
    }
    return rc;
}

static int measure_point(bench *b, es_adapter *a, es_sequence *pairs, int n, int step, json_t *path, es_error *err)
{
    es_patch patch;
    double margin = 0, kl = 0, dnll = 0;
    int rc = es_adapter_patch(a, 1, &patch, err);
    rc = rc ? rc : score(b, pairs, 2 * n, &patch, err);
    for (int i = 0; i < n; i++)
        margin += es_experience_gain(&pairs[2 * i], &pairs[2 * i + 1]) / n;
    rc = rc ? rc : neutral_pass(b, &patch, &kl, &dnll, err);
    if (!rc && (!isfinite(margin) || !isfinite(kl) || !isfinite(dnll)))
        return rc; /* a path that left the numbers ends where it was last seen */
    if (!rc)
        json_array_append_new(path, json_pack("{s:i, s:f, s:f, s:f}", "step", step, "margin", margin, "kl", kl, "dnll", dnll));
    return rc;
}

typedef struct task_data { /* what the runs of one order and size have in common */
    es_experiences learn;
    es_basis basis, random;
    es_learner *first;       /* a lora learner that has everything cached, and its adapter */
    es_adapter *first_adapter;
    int order, n;
} task_data;

static void task_clear(task_data *d)
{
    es_experiences_free(&d->learn);
    es_basis_free(&d->basis);
    es_basis_free(&d->random);
    es_learner_free(d->first);
    es_adapter_free(d->first_adapter);
    *d = (task_data){.order = -1};
}

static int task_prepare(bench *b, task_data *d, int order, int n, es_error *err)
{
    if (d->order == order && d->n == n)
        return ES_OK;
    task_clear(d);
    const es_compare_options *o = b->o;
    int other = o->basis_pairs, *which = es_calloc((size_t)(n + other), sizeof *which);
    es_experiences sense = {0};
    float *gradient = NULL;
    int rc = which ? draw(b, order, n, other, which, err) : es_fail(err, ES_ERR_MEMORY, "no memory for a draw");
    rc = rc ? rc : take_pairs(b, which, n, o->garbage, &d->learn, err);
    rc = rc ? rc : take_pairs(b, other ? which + n : which, other ? other : n, other ? 0 : o->garbage, &sense, err);
    if (!rc) {
        gradient = es_calloc((size_t)sense.n, (size_t)b->d * sizeof *gradient);
        rc = gradient ? es_attribute(b->m, b->s, &sense, o->threads, gradient, b->progress, err) : es_fail(err, ES_ERR_MEMORY, "no memory for gradients");
    }
    rc = rc ? rc : es_basis_suggest(&d->basis, b->m, b->s, b->a, gradient, sense.n, o->basis_size, false, NULL, err);
    rc = rc ? rc : es_basis_random(&d->random, b->m, b->s, b->a, o->basis_size, o->seed * 77 + (uint64_t)order, err);
    if (!rc) {
        d->order = order;
        d->n = n;
    }
    free(gradient);
    free(which);
    es_experiences_free(&sense);
    return rc;
}

/* One adaptation, measured along its path on `pairs`. */
static int run_one(bench *b, task_data *d, es_method method, double rate, es_sequence *pairs, int n_pairs, json_t **line, double *seconds,
                   uint64_t *parameters, es_error *err)
{
    const es_compare_options *o = b->o;
    bool bias = method == ES_METHOD_BIAS;
    es_adapter_options ao = {.form = bias ? ES_FORM_BIAS : ES_FORM_LORA, .first_layer = o->first_layer, .last_layer = o->last_layer, .rank = o->rank,
                             .constrained = method != ES_METHOD_LORA, .seed = o->seed + (uint64_t)d->order};
    es_learner_options lo = es_learner_default(ao.form);
    lo.learning_rate = rate;
    lo.kappa = lo.rho = lo.hold_out = lo.enough = 0; /* the whole path is wanted, and what it costs is measured */
    lo.batch = o->batch;
    lo.max_prompt = o->max_prompt;
    lo.max_reply = o->max_reply;
    lo.threads = o->threads;
    lo.seed = o->seed + (uint64_t)d->order;
    const es_basis *basis = method == ES_METHOD_RANDOM ? &d->random : &d->basis;
    es_adapter *a = NULL;
    es_learner *l = NULL;
    json_t *path = json_array();
    *seconds = 0;
    int rc = es_adapter_new(&a, b->m, b->s, ao.constrained ? basis : NULL, &ao, err);
    rc = rc ? rc : es_learner_open(&l, b->m, b->s, a, &lo, err);
    if (!rc && !bias && d->first)
        rc = es_learner_share(l, d->first, err);
    else
        for (int i = 0; !rc && i < d->learn.n; i++)
            rc = es_learner_add(l, &d->learn.item[i], b->cancel, err);
    for (int step = 1; !rc && step <= o->steps; step++) {
        es_step_report r;
        rc = es_learner_step(l, &r, b->cancel, err);
        if (rc == ES_ERR_LIMIT) { /* not a number: the path ends */
            rc = ES_OK;
            break;
        }
        *seconds += r.seconds;
        if (!rc && (step % o->every == 0 || step == o->steps))
            rc = measure_point(b, a, pairs, n_pairs, step, path, err);
        say(b, (double)step / (o->steps + 1), "%s %s, %d pairs, order %d", es_compare_method_name(method), d->n, d->order);
    }
    *parameters = a ? es_adapter_parameters(a) : 0;
    if (!rc && !bias && !d->first) { /* the next ones take over what this one cached */
        d->first = l;
        d->first_adapter = a;
    } else {
        es_learner_free(l);
        es_adapter_free(a);
    }
    if (rc) {
        json_decref(path);
        return rc;
    }
    *line = path;
    return ES_OK;
}

/* One run, unless the work file has it: *line borrowed from b->done. */
static int run_once(bench *b, task_data *d, const char *kind, es_method method, int n, int order, double rate, json_t **line, es_error *err)
{
    char key[512];
    key_of(b, key, sizeof key, kind, method, n, order, rate);
    *line = json_object_get(b->done, key);
    b->at++;
    if (*line)
        return ES_OK;
    bool sweep = !strcmp(kind, "sweep");
    json_t *path = NULL;
    double seconds = 0;
    uint64_t parameters = 0;
    int rc = task_prepare(b, d, order, n, err);
    rc = rc ? rc : run_one(b, d, method, rate, sweep ? b->dev : b->held, sweep ? b->o->dev : b->o->held_out, &path, &seconds, &parameters, err);
    if (rc)
        return rc;
    *line = json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:f, s:f, s:I, s:f, s:o}", "key", key, "kind", kind, "task", b->o->task, "method",
                      es_compare_method_name(method), "experiences", n, "order", order, "garbage", b->o->garbage, "rate", rate, "parameters",
                      (json_int_t)parameters, "seconds", seconds, "path", path);
    rc = append_line(b, *line, err);
    json_object_set_new(b->done, key, *line);
    return rc;
}

/* margin / sqrt(KL) of the path's point of largest margin; at most 0 when it went the wrong way. */
static double best_ratio(json_t *line)
{
    size_t i;
    json_t *p;
    double margin = 0, ratio = 0;
    json_array_foreach(json_object_get(line, "path"), i, p) {
        double m = json_number_value(json_object_get(p, "margin")), kl = json_number_value(json_object_get(p, "kl"));
        if (m > margin && kl > 0) {
            margin = m;
            ratio = m / sqrt(kl);
        }
    }
    return ratio;
}

static double best_margin(json_t *line)
{
    size_t i;
    json_t *p;
    double margin = 0;
    json_array_foreach(json_object_get(line, "path"), i, p) {
        double m = json_number_value(json_object_get(p, "margin"));
        margin = m > margin ? m : margin;
    }
    return margin;
}

static int rates_of(const es_compare_options *o, es_method m)
{
    int n = 0;
    while (n < ES_COMPARE_RATES && o->rate[m][n] > 0)
        n++;
    return n;
}

/* The rate whose path has the best margin / sqrt(KL) on dev, among those that reach at least half of the best margin: a rate too small to
 * move anything is efficient too. */
static int choose_rate(bench *b, task_data *d, es_method m, double *rate, es_error *err)
{
    const es_compare_options *o = b->o;
    int n = rates_of(o, m), rc = ES_OK;
    double ratio[ES_COMPARE_RATES] = {0}, margin[ES_COMPARE_RATES] = {0}, most = 0;
    *rate = o->rate[m][0];
    for (int i = 0; !rc && n > 1 && i < n; i++) {
        json_t *line = NULL;
        rc = run_once(b, d, "sweep", m, o->size[0], 0, o->rate[m][i], &line, err);
        if (rc)
            return rc;
        ratio[i] = best_ratio(line);
        margin[i] = best_margin(line);
        most = margin[i] > most ? margin[i] : most;
    }
    double best = -1;
    for (int i = 0; n > 1 && i < n; i++)
        if (margin[i] >= most / 2 && ratio[i] > best) {
            best = ratio[i];
            *rate = o->rate[m][i];
        }
    return rc;
}

static int read_done(void *user, size_t number, json_t *value, es_error *err)
{
    bench *b = user;
    const char *key = json_string_value(json_object_get(value, "key"));
    (void)number;
    if (!key || !json_is_array(json_object_get(value, "path")))
        return es_fail(err, ES_ERR_FORMAT, "not a line of a comparison");
    json_object_set(b->done, key, value);
    return ES_OK;
}

/* Work file lines may be cut by a kill: the last one is dropped when it is no JSON. */
static int load_work(bench *b, es_error *err)
{
    es_buf text = {0};
    FILE *f = fopen(b->o->work, "re");
    if (!f)
        return ES_OK;
    fclose(f);
    int rc = es_file_read(&text, b->o->work, (size_t)64 << 20, err);
    if (!rc && text.len && text.data[text.len - 1] != '\n') {
        while (text.len && text.data[text.len - 1] != '\n')
            text.len--;
        rc = es_file_write(b->o->work, text.data, text.len, err);
    }
    if (!rc && text.len)
        rc = es_jsonl_each(b->o->work, read_done, b, err);
    es_buf_free(&text);
    return rc;
}

int es_compare_run(es_model *m, const es_dictionary *s, const es_atlas *a, const es_compare_options *o, const es_progress *progress, es_error *err)
{
    const es_model_info *info = es_model_get_info(m);
    int layer = es_dictionary_get_info(s)->layer;
    if (!o->work || !o->task || o->n_size < 1 || o->n_size > ES_COMPARE_SIZES || o->orders < 1 || o->held_out < 1 || o->dev < 1 || o->steps < 1 ||
        o->every < 1 || !(o->garbage >= 0 && o->garbage <= 1) || o->basis_pairs < 0)
        return es_fail(err, ES_ERR_USAGE, "compare: its options make no sense");
    if (o->held_out + o->dev >= o->pairs->n)
        return es_fail(err, ES_ERR_USAGE, "%s: %d pairs are too few to hold out %d and keep %d for the rate", o->task, o->pairs->n, o->held_out, o->dev);
    for (int i = 0; i < o->pairs->n; i++)
        if (!o->pairs->item[i].preferred || !o->pairs->item[i].rejected)
            return es_fail(err, ES_ERR_USAGE, "%s: experience %d is no pair: it lacks a reply", o->task, i + 1);
    for (int i = 0; i < ES_N_METHODS; i++)
        if (o->method[i] && rates_of(o, (es_method)i) < 1)
            return es_fail(err, ES_ERR_USAGE, "compare: no learning rate for %s", es_compare_method_name((es_method)i));

    /* The lowest residual that any method needs, so that one cache serves all. */
    int lowest = o->first_layer < layer + 1 ? o->first_layer : layer + 1;
    lowest = lowest < info->n_layer - 1 ? lowest : info->n_layer - 1;
    bench b = {.m = m, .s = s, .a = a, .o = o, .progress = progress, .cancel = progress ? progress->cancel : NULL, .d = info->d_model,
               .below = lowest - 1, .done = json_object()};
    task_data d = {.order = -1};
    es_trainer_options t = {.max_tokens = COMPARE_TOKENS, .from_layer = lowest, .threads = o->threads};
    if (t.max_tokens < o->max_prompt + o->max_reply)
        t.max_tokens = o->max_prompt + o->max_reply;
    int rc = load_work(&b, err);
    rc = rc ? rc : es_trainer_open(&b.t, m, &t, err);
    rc = rc ? rc : es_pack_open(&b.pack, t.max_tokens, b.d, err);
    b.split = es_calloc((size_t)o->pairs->n, sizeof *b.split);
    if (!rc && (!b.split || !b.done))
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for a split");
    if (!rc) {
        es_rng rng;
        es_rng_seed(&rng, o->seed);
        for (int i = 0; i < o->pairs->n; i++)
            b.split[i] = i;
        for (int i = o->pairs->n - 1; i > 0; i--) {
            int j = (int)es_rng_below(&rng, (uint64_t)i + 1), x = b.split[i];
            b.split[i] = b.split[j];
            b.split[j] = x;
        }
        rc = open_pairs(&b, b.split, o->held_out, &b.held, err);
        rc = rc ? rc : open_pairs(&b, b.split + o->held_out, o->dev, &b.dev, err);
        rc = rc ? rc : open_neutral(&b, err);
    }
    for (int i = 0; i < ES_N_METHODS; i++)
        if (o->method[i])
            b.total += o->n_size * o->orders + (rates_of(o, (es_method)i) > 1 ? rates_of(o, (es_method)i) : 0);
    double rate[ES_N_METHODS] = {0};
    for (int i = 0; !rc && i < ES_N_METHODS; i++)
        if (o->method[i])
            rc = choose_rate(&b, &d, (es_method)i, &rate[i], err);
    for (int n = 0; !rc && n < o->n_size; n++)
        for (int order = 0; !rc && order < o->orders; order++)
            for (int i = 0; !rc && i < ES_N_METHODS; i++) {
                json_t *line = NULL;
                if (o->method[i])
                    rc = run_once(&b, &d, "run", (es_method)i, o->size[n], order, rate[i], &line, err);
            }
    task_clear(&d);
    bench_close(&b);
    return rc;
}

/* ---- reading the results ----------------------------------------------------------------------------------------------------- */

static int collect(void *user, size_t number, json_t *value, es_error *err)
{
    (void)number;
    const char *kind = json_string_value(json_object_get(value, "kind"));
    if (!kind || !json_is_array(json_object_get(value, "path")))
        return es_fail(err, ES_ERR_FORMAT, "not a line of a comparison");
    if (!strcmp(kind, "run"))
        json_array_append(user, value);
    return ES_OK;
}

static double number(json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static bool same_setting(json_t *a, json_t *b)
{
    return json_equal(json_object_get(a, "task"), json_object_get(b, "task")) && number(a, "experiences") == number(b, "experiences") &&
           number(a, "garbage") == number(b, "garbage");
}

/* KL and d(nll) where the path first reaches the margin: sqrt(KL) and d(nll) are taken as linear in the margin between points, from
 * (0,0,0). false: it never does. */
static bool harm_at(json_t *line, double margin, double *kl, double *dnll)
{
    double m0 = 0, k0 = 0, d0 = 0;
    size_t i;
    json_t *p;
    json_array_foreach(json_object_get(line, "path"), i, p) {
        double m = number(p, "margin"), k = sqrt(fmax(number(p, "kl"), 0)), dn = number(p, "dnll");
        if (m >= margin && m > m0) {
            double t = (margin - m0) / (m - m0);
            *kl = (k0 + t * (k - k0)) * (k0 + t * (k - k0));
            *dnll = d0 + t * (dn - d0);
            return true;
        }
        m0 = m;
        k0 = k;
        d0 = dn;
    }
    return false;
}

/* The largest margin that the three loras all reach in this setting and order. */
static double equal_margin(json_t *lines, json_t *like)
{
    size_t i;
    json_t *x;
    double least = INFINITY;
    json_array_foreach(lines, i, x) {
        const char *method = json_string_value(json_object_get(x, "method"));
        for (size_t j = 0; method && same_setting(x, like) && number(x, "order") == number(like, "order") && j < sizeof LORAS / sizeof *LORAS; j++)
            if (!strcmp(method, es_compare_method_name(LORAS[j])))
                least = fmin(least, best_margin(x));
    }
    return isfinite(least) ? least : 0;
}

int es_compare_rows(const char *work, json_t **rows, es_error *err)
{
    json_t *lines = json_array(), *x, *out = json_array();
    int rc = es_jsonl_each(work, collect, lines, err);
    size_t i, j;
    *rows = NULL;
    json_array_foreach(lines, i, x) {
        json_t *p, *best = NULL;
        if (rc)
            break;
        json_array_foreach(json_object_get(x, "path"), j, p)
            best = !best || number(p, "margin") > number(best, "margin") ? p : best;
        double equal = equal_margin(lines, x), kl = 0, dnll = 0;
        bool reaches = equal > 0 && harm_at(x, equal, &kl, &dnll);
        double m = best ? number(best, "margin") : 0, k = best ? number(best, "kl") : 0;
        json_t *row = json_pack("{s:O, s:O, s:O, s:O, s:O, s:O, s:O, s:O, s:f, s:f, s:f, s:f, s:f}", "task", json_object_get(x, "task"), "method",
                                json_object_get(x, "method"), "experiences", json_object_get(x, "experiences"), "garbage",
                                json_object_get(x, "garbage"), "order", json_object_get(x, "order"), "rate", json_object_get(x, "rate"),
                                "parameters", json_object_get(x, "parameters"), "seconds", json_object_get(x, "seconds"), "margin", m, "kl", k,
                                "dnll", best ? number(best, "dnll") : 0, "margin_per_sqrt_kl", k > 0 ? m / sqrt(k) : 0, "equal_margin", equal);
        if (!row) {
            rc = es_fail(err, ES_ERR_FORMAT, "%s: a run lacks one of its members", work);
            break;
        }
        json_object_set_new(row, "kl_at_equal", reaches ? json_real(kl) : json_null());
        json_object_set_new(row, "dnll_at_equal", reaches ? json_real(dnll) : json_null());
        json_array_append_new(out, row);
    }
    json_decref(lines);
    if (rc)
        json_decref(out);
    else
        *rows = out;
    return rc;
}

/* "mean (least to most)" of a member over the rows like this one. */
static void spread(json_t *rows, json_t *like, const char *key, const char *fmt, es_buf *out)
{
    double sum = 0, least = INFINITY, most = -INFINITY;
    int n = 0, missing = 0;
    size_t i;
    json_t *x;
    char one[3][32];
    json_array_foreach(rows, i, x) {
        if (!same_setting(x, like) || !json_equal(json_object_get(x, "method"), json_object_get(like, "method")))
            continue;
        if (!json_is_number(json_object_get(x, key))) {
            missing++;
            continue;
        }
        double v = number(x, key);
        sum += v;
        least = fmin(least, v);
        most = fmax(most, v);
        n++;
    }
    if (!n) {
        es_buf_str(out, " not reached |");
        return;
    }
    snprintf(one[0], sizeof one[0], fmt, sum / n);
    snprintf(one[1], sizeof one[1], fmt, least);
    snprintf(one[2], sizeof one[2], fmt, most);
    es_buf_printf(out, " %s", one[0]);
    if (n > 1)
        es_buf_printf(out, " (%s to %s)", one[1], one[2]);
    if (missing)
        es_buf_printf(out, ", %d of %d", n, n + missing);
    es_buf_str(out, " |");
}

int es_compare_text(json_t *rows, es_buf *out, es_error *err)
{
    size_t i, j;
    json_t *x, *y;
    es_buf_str(out, "| task | pairs | method | rate | parameters | margin | KL | d(nll) | margin / sqrt(KL) | equal margin | KL there | d(nll) there |\n"
                    "|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    json_array_foreach(rows, i, x) {
        bool seen = false;
        json_array_foreach(rows, j, y)
            seen |= j < i && same_setting(x, y) && json_equal(json_object_get(x, "method"), json_object_get(y, "method"));
        if (seen)
            continue;
        const char *task = json_string_value(json_object_get(x, "task")), *method = json_string_value(json_object_get(x, "method"));
        es_buf_printf(out, "| %s%s | %d | `%s` | %g | %.0f |", task ? task : "?", number(x, "garbage") > 0 ? " (noisy)" : "",
                      (int)number(x, "experiences"), method ? method : "?", number(x, "rate"), number(x, "parameters"));
        spread(rows, x, "margin", "%.3f", out);
        spread(rows, x, "kl", "%.4f", out);
        spread(rows, x, "dnll", "%+.4f", out);
        spread(rows, x, "margin_per_sqrt_kl", "%.2f", out);
        spread(rows, x, "equal_margin", "%.3f", out);
        spread(rows, x, "kl_at_equal", "%.4f", out);
        spread(rows, x, "dnll_at_equal", "%+.4f", out);
        es_buf_str(out, "\n");
    }
    return out->failed ? es_fail(err, ES_ERR_MEMORY, "no memory for a table") : ES_OK;
}
