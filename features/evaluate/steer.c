/* Steering by features: directions from the train pairs, a ladder of strengths on dev, the margin on held. */
#include "steer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval_internal.h"
#include "quality.h"

enum { NEUTRAL_DOCUMENT = 128, MEDIAN_TEXTS = 8 };

es_steer_options es_steer_default(void)
{
    return (es_steer_options){.strength = {0.05, 0.1, 0.2, 0.4}, .n_strength = 4, .kl = 0.1, .degenerate = 0.1, .train = 48, .dev = 16, .held = 40,
                              .replies = 8, .reply_tokens = 40, .neutral_tokens = 900, .seed = 1};
}

typedef struct steering {
    es_model *m;
    const es_dictionary *s;
    const es_task *task;
    const es_steer_options *o;
    es_steering *out;
    size_t d;
    int F, layer;
    float *gradient;  /* [d] mean over the train pairs */
    float *along;     /* [F] its product with unit decoder rows; NAN: never active on the pairs */
    float *direction; /* [d] */
    es_bench bench;
    es_set dev, held, raw, chat;
    es_source *prompt; int n_prompt;
} steering;

/* ---- directions ----------------------------------------------------------------------------------------------------------------------- */

/* fires[F]: which features fire anywhere on the replies of the train pairs. */
static int find_active(steering *x, uint8_t *fires, const es_progress *progress, es_error *err)
{
    int n = 2 * x->out->train, rc = ES_OK;
    es_ids *text = es_calloc((size_t)n + 1, sizeof *text);
    es_pooled p = {0};
    if (!text)
        return es_fail(err, ES_ERR_MEMORY, "no memory for %d replies", n);
    for (int i = 0; i < n && !rc; i++) {
        const es_experience *e = &x->task->pool.item[i / 2];
        const char *reply = i % 2 ? e->rejected : e->preferred;
        rc = es_tokenize_text(x->m, reply, strlen(reply), &text[i], err);
    }
    rc = rc ? rc : es_pooled_make(&p, x->m, x->s, text, n, ES_POOL_MEAN, x->o->threads, "reading replies", progress, err);
    for (size_t a = 0; !rc && a < p.acts.start[n]; a++)
        fires[p.acts.index[a]] = 1;
    for (int i = 0; i < n; i++)
        es_ids_free(&text[i]);
    free(text);
    es_pooled_free(&p);
    return rc;
}

static int attribute(steering *x, const es_progress *progress, es_error *err)
{
    es_experiences train = {.item = x->task->pool.item, .n = x->out->train};
    float *each = es_calloc((size_t)train.n, x->d * sizeof *each), *row = es_calloc(x->d, sizeof *row);
    uint8_t *fires = es_calloc((size_t)x->F, 1);
    int rc = each && row && fires ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for the gradients of %d pairs", train.n);
    rc = rc ? rc : es_attribute(x->m, x->s, &train, x->o->threads, each, progress, err);
    for (int i = 0; i < train.n && !rc; i++)
        for (size_t j = 0; j < x->d; j++)
            x->gradient[j] += each[(size_t)i * x->d + j] / (float)train.n;
    rc = rc ? rc : find_active(x, fires, progress, err);
    for (int f = 0; f < x->F && !rc; f++) {
        double product = 0, square = 0;
        x->along[f] = NAN;
        if (!fires[f])
            continue;
        es_dictionary_rows(x->s, f, 1, row);
        for (size_t j = 0; j < x->d; j++) {
            product += (double)x->gradient[j] * (double)row[j];
            square += (double)row[j] * (double)row[j];
        }
        if (square > 0)
            x->along[f] = (float)(product / sqrt(square));
    }
    free(each);
    free(row);
    free(fires);
    return rc;
}

static void take_largest(const steering *x, es_steered *way, int k)
{
    while (way->n_feature < k) {
        int best = -1;
        for (int f = 0; f < x->F; f++) {
            bool used = isnan(x->along[f]);
            for (int i = 0; i < way->n_feature; i++)
                used = used || way->feature[i] == f;
            if (!used && (best < 0 || fabsf(x->along[f]) > fabsf(x->along[best])))
                best = f;
        }
        if (best < 0)
            return;
        way->feature[way->n_feature++] = best;
    }
}

static void take_random(const steering *x, es_steered *way, int k)
{
    es_rng rng;
    int active = 0;
    es_rng_seed(&rng, x->o->seed);
    for (int f = 0; f < x->F; f++) /* a reservoir of k */
        if (!isnan(x->along[f])) {
            int at = active < k ? active : (int)es_rng_below(&rng, (uint64_t)active + 1);
            active++;
            if (at < k)
                way->feature[at] = f;
        }
    way->n_feature = active < k ? active : k;
}

/* Features' unit rows by their weights, or the gradient, as a unit vector. false: there is nothing to add. */
static bool make_direction(steering *x, es_steered *way)
{
    double square = 0;
    if (!strcmp(way->way, "gradient"))
        memcpy(x->direction, x->gradient, x->d * sizeof *x->direction);
    else
        memset(x->direction, 0, x->d * sizeof *x->direction);
    float *row = es_calloc(x->d, sizeof *row);
    for (int i = 0; row && i < way->n_feature; i++) {
        double length = 0;
        way->weight[i] = (double)x->along[way->feature[i]];
        es_dictionary_rows(x->s, way->feature[i], 1, row);
        for (size_t j = 0; j < x->d; j++)
            length += (double)row[j] * (double)row[j];
        for (size_t j = 0; j < x->d; j++)
            x->direction[j] += (float)(way->weight[i] * (double)row[j] / sqrt(length));
    }
    for (size_t j = 0; j < x->d; j++)
        square += (double)x->direction[j] * (double)x->direction[j];
    for (size_t j = 0; j < x->d && square > 0; j++)
        x->direction[j] = (float)((double)x->direction[j] / sqrt(square));
    free(row);
    return row && square > 0;
}

/* ---- measures -------------------------------------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    const float *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* The median length of the residual over some neutral documents, first tokens left out. */
static int median_length(steering *x, es_error *err)
{
    float *length = es_calloc((size_t)MEDIAN_TEXTS * NEUTRAL_DOCUMENT, sizeof *length);
    es_trainer *t = NULL;
    int n = 0, texts = 0, rc = length ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for residuals");
    rc = rc ? rc : es_trainer_open(&t, x->m, &(es_trainer_options){.max_tokens = NEUTRAL_DOCUMENT, .threads = x->o->threads}, err);
    for (int i = 0; i < x->o->n_neutral && texts < MEDIAN_TEXTS && !rc; i++) {
        es_sequence s = {0};
        if (x->o->neutral[i].n_message)
            continue;
        texts++;
        rc = es_sequence_text(&s, x->m, x->o->neutral[i].text, NEUTRAL_DOCUMENT, err);
        rc = rc ? rc : es_sequence_residual(&s, t, x->layer, (int)x->d, x->bench.cancel, err);
        for (int p = 1; p < s.n && !rc; p++) {
            double square = 0;
            for (size_t j = 0; j < x->d; j++)
                square += (double)s.resid[(size_t)p * x->d + j] * (double)s.resid[(size_t)p * x->d + j];
            length[n++] = (float)sqrt(square);
        }
        es_sequence_free(&s);
    }
    if (!rc && !n)
        rc = es_fail(err, ES_ERR_USAGE, "there is no neutral document to measure on");
    if (!rc) {
        qsort(length, (size_t)n, sizeof *length, by_value);
        x->out->median = (double)length[n / 2];
    }
    es_trainer_free(t);
    free(length);
    return rc;
}

/* The share of greedy replies that are empty or repeat themselves. */
static int degenerate_share(steering *x, const es_variant *v, double *out, es_error *err)
{
    char **text = es_calloc((size_t)x->n_prompt + 1, sizeof *text);
    bool *ended = es_calloc((size_t)x->n_prompt + 1, sizeof *ended);
    int bad = 0, rc = text && ended ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for %d replies", x->n_prompt);
    rc = rc || !x->n_prompt ? rc : es_bench_replies(&x->bench, v, x->prompt, x->n_prompt, x->o->reply_tokens, text, ended, err);
    for (int i = 0; text && i < x->n_prompt; i++) {
        if (!rc)
            bad += !text[i] || !text[i][strspn(text[i], " \t\r\n")] || es_text_loops(text[i]);
        free(text[i]);
    }
    *out = x->n_prompt ? (double)bad / x->n_prompt : 0;
    free(text);
    free(ended);
    return rc;
}

static int measure_point(steering *x, const es_variant *v, es_steer_point *out, es_error *err)
{
    es_harm raw = {0}, chat = {0};
    double se, gain;
    int rc = es_set_measure(&x->raw, &x->bench, v, &raw, err);
    rc = rc ? rc : es_set_measure(&x->chat, &x->bench, v, &chat, err);
    if (rc)
        return rc;
    int tokens = x->raw.tokens + x->chat.tokens;
    out->kl = tokens ? (raw.kl * x->raw.tokens + chat.kl * x->chat.tokens) / tokens : 0;
    rc = es_set_measure(&x->dev, &x->bench, v, NULL, err);
    es_set_margins(&x->dev, &out->margin, &se, &gain);
    out->allowed = !rc && out->kl <= x->o->kl;
    out->degenerate = NAN; /* not looked at where the KL decides already */
    if (out->allowed)
        rc = degenerate_share(x, v, &out->degenerate, err);
    out->allowed = out->allowed && out->degenerate <= x->out->degenerate + x->o->degenerate;
    return rc;
}

static int measure_held(steering *x, const es_variant *v, es_steered *way, es_error *err)
{
    double gain;
    int up = 0, rc = es_set_measure(&x->held, &x->bench, v, NULL, err), n = x->held.n / 2;
    es_set_margins(&x->held, &way->margin, &way->se, &gain);
    for (int i = 0; i < n; i++)
        up += es_experience_gain(&x->held.seq[2 * i], &x->held.seq[2 * i + 1]) > 0;
    way->success = n ? (double)up / n : 0;
    return rc;
}

static int measure_way(steering *x, es_steered *way, es_error *err)
{
    way->chosen = -1;
    if (!make_direction(x, way))
        return ES_OK;
    es_addend a = {.layer = x->layer, .v = x->direction};
    es_variant v = {.model = x->m, .patch = {.addend = &a, .n_addend = 1}, .lowest_layer = x->layer + 1 < es_model_get_info(x->m)->n_layer ? x->layer + 1 : 0};
    int rc = ES_OK;
    for (int i = 0; i < x->o->n_strength && !rc; i++) {
        es_steer_point *p = &way->point[way->n_point++];
        *p = (es_steer_point){.strength = x->o->strength[i]};
        a.scale = (float)(p->strength * x->out->median);
        rc = measure_point(x, &v, p, err);
        if (!rc && p->allowed && p->margin > 0 && (way->chosen < 0 || p->margin > way->point[way->chosen].margin))
            way->chosen = i;
        if (p->kl > x->o->kl)
            break;
    }
    if (rc || way->chosen < 0)
        return rc;
    a.scale = (float)(way->point[way->chosen].strength * x->out->median);
    return measure_held(x, &v, way, err);
}

/* ---- the whole --------------------------------------------------------------------------------------------------------------------------- */

static int open_sets(steering *x, es_error *err)
{
    const es_task *t = x->task;
    es_experiences dev = {.item = t->dev.item, .n = x->out->dev}, held = {.item = t->held.item, .n = x->out->held};
    const es_steer_options *o = x->o;
    x->n_prompt = held.n < o->replies ? held.n : o->replies;
    x->prompt = es_calloc((size_t)x->n_prompt + 1, sizeof *x->prompt);
    if (!x->prompt)
        return es_fail(err, ES_ERR_MEMORY, "no memory for %d prompts", x->n_prompt);
    for (int i = 0; i < x->n_prompt; i++)
        x->prompt[i] = (es_source){held.item[i].message, held.item[i].n_message, held.item[i].preferred};
    int rc = es_set_pairs(&x->dev, &x->bench, &dev, false, err);
    rc = rc ? rc : es_set_pairs(&x->held, &x->bench, &held, false, err);
    rc = rc ? rc : es_set_neutral(&x->raw, &x->bench, o->neutral, o->n_neutral, false, false, o->neutral_tokens * 2 / 3, err);
    rc = rc ? rc : es_set_neutral(&x->chat, &x->bench, o->neutral, o->n_neutral, true, false, o->neutral_tokens / 3, err);
    rc = rc ? rc : median_length(x, err);
    return rc ? rc : degenerate_share(x, &(es_variant){.model = x->m}, &x->out->degenerate, err);
}

static int less(int a, int b)
{
    return a < b ? a : b;
}

int es_steer_measure(es_model *m, const es_dictionary *s, const es_task *task, const es_steer_options *o, es_steering *out, const es_progress *progress,
                     es_error *err)
{
    static const char *const WAY[ES_STEER_WAYS] = {"feature", "features", "random", "gradient"};
    const es_dictionary_info *info = es_dictionary_get_info(s);
    steering x = {.m = m, .s = s, .task = task, .o = o, .out = out, .d = (size_t)info->d, .F = info->n_features, .layer = info->layer};
    *out = (es_steering){.train = less(task->pool.n, o->train), .dev = less(task->dev.n, o->dev), .held = less(task->held.n, o->held)};
    int rc = es_dictionary_check_model(s, m, err);
    rc = rc ? rc : es_dictionary_check_steers(s, err);
    if (!rc && (out->train < 1 || out->dev < 1 || out->held < 1 || o->n_strength < 1 || o->n_strength > ES_STEER_STRENGTHS))
        rc = es_fail(err, ES_ERR_USAGE, "steering on %s needs pairs to learn from, to choose on and to hold out, and 1 to %d strengths", task->name,
                     (int)ES_STEER_STRENGTHS);
    if (rc)
        return rc;
    x.gradient = es_calloc(x.d, sizeof *x.gradient);
    x.direction = es_calloc(x.d, sizeof *x.direction);
    x.along = es_calloc((size_t)x.F, sizeof *x.along);
    if (!x.gradient || !x.direction || !x.along)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory to steer");
    rc = rc ? rc : es_bench_open(&x.bench, m, 256, 96, o->threads, progress ? progress->cancel : NULL, err);
    rc = rc ? rc : open_sets(&x, err);
    rc = rc ? rc : attribute(&x, progress, err);
    for (; out->n_way < ES_STEER_WAYS && !rc; out->n_way++) {
        es_steered *way = &out->way[out->n_way];
        way->way = WAY[out->n_way];
        if (out->n_way < 2)
            take_largest(&x, way, out->n_way == 0 ? 1 : ES_STEER_FEATURES);
        else if (out->n_way == 2)
            take_random(&x, way, ES_STEER_FEATURES);
        rc = measure_way(&x, way, err);
        es_progress_report(progress, "steering", out->n_way + 1, ES_STEER_WAYS, "directions");
    }
    es_set *set[] = {&x.dev, &x.held, &x.raw, &x.chat};
    for (size_t i = 0; i < sizeof set / sizeof *set; i++)
        if (set[i]->seq)
            es_set_close(set[i], &x.bench);
    es_bench_close(&x.bench);
    free(x.prompt);
    free(x.gradient);
    free(x.direction);
    free(x.along);
    return rc;
}
