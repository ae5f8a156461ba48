/* autolabel: features in turn through a language model: a label, then the questions that test it, then both into the workspace. Some features are under way
 * at once, so that several requests can be; what is asked depends on the feature and the seed alone, not on what else is under way. */
#include "autolabel.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "autolabel_scores.h"
#include "autolabel_windows.h"
#include "prompts.h"

enum {
    AT_ONCE = 16,       /* features under way */
    POOL = 128,         /* windows in which silence is looked for */
    LEAST = 2,          /* windows of a kind, under which nothing is tested */
    SIMULATED = 5,      /* windows of each kind that are simulated */
    TESTS_MAX = 100, BATCH_MAX = 20, SHOWN_MAX = 64,
};

typedef enum kind { EXPLAIN, DETECT, FUZZ, SIMULATE, KINDS } kind;

typedef struct item { const es_window *w; bool active; bool mark[ES_WINDOW_MAX]; } item; /* a window to be judged */

typedef struct job { /* a feature under way */
    int feature;
    bool begun;
    es_windows own;     /* the atlas' examples */
    int shown[SHOWN_MAX], n_shown; /* of them: those that the label is made of */
    char *promoted;
    es_buf label;
    item *tested[KINDS];
    int n_tested[KINDS];
    int asked[KINDS], questions[KINDS]; /* of so many */
    int waiting;
    es_tally tally[KINDS];
    int unsaid[KINDS];  /* questions without a usable answer */
    double *simulated, *real;
    int n_simulated;
    char why[300];
} job;

typedef struct work {
    const es_autolabel *a;
    const es_autolabel_options *o;
    const int *feature;
    int n, at, done;
    json_t *prompt[KINDS];
    es_window_pool pool;
    job job[AT_ONCE];
    bool without_logprobs;
    const es_progress *progress;
} work;

static bool wanted(const work *w, kind k)
{
    static const unsigned flag[KINDS] = {[DETECT] = ES_SCORE_DETECTION, [FUZZ] = ES_SCORE_FUZZING, [SIMULATE] = ES_SCORE_SIMULATION};
    return (w->o->scores & flag[k]) != 0;
}

/* ---- a feature begins ---------------------------------------------------------------------------------------------------------------- */

static void end_job(job *j)
{
    es_windows_free(&j->own);
    free(j->promoted);
    es_buf_free(&j->label);
    for (int k = 0; k < KINDS; k++)
        free(j->tested[k]);
    free(j->simulated);
    free(j->real);
    *j = (job){0};
}

static void report(work *w, const es_autolabel_result *r)
{
    w->done++;
    if (w->a->report)
        w->a->report(w->a->user, r);
    es_progress_report(w->progress, "labelling", w->done, w->n, "features");
}

/* Why a feature needs no label; false: it does. */
static bool passed_over(work *w, int feature, char why[200])
{
    es_label l = {0};
    why[0] = 0;
    if (es_workspace_label_get(w->a->workspace, es_dictionary_get_info(w->a->dictionary)->hash, feature, &l, NULL) != ES_OK)
        return false;
    bool automatic = es_label_is_automatic(l.author);
    if (*l.text && !automatic)
        snprintf(why, 200, "has a label of %s", l.author);
    else if (*l.text && !w->o->again)
        snprintf(why, 200, "has an automatic label");
    es_label_free(&l);
    return *why != 0;
}

static int promoted_text(const work *w, const es_feature_card *c, char **out)
{
    es_buf b = {0};
    for (int i = 0; i < c->n_promoted && i < 10; i++) {
        es_window one = {1, (int32_t[]){c->promoted[i]}, NULL, 0};
        es_buf_str(&b, i ? ", " : "");
        es_window_text(&b, w->a->model, &one, NULL);
    }
    es_buf_add(&b, "", 0);
    *out = b.failed ? NULL : b.data;
    return *out ? ES_OK : ES_ERR_MEMORY;
}

/* The windows of a test, shuffled: held-out ones, and as many where the feature is silent. */
static int make_test(work *w, job *j, kind k, int most)
{
    es_rng rng;
    int F = j->feature, n = 0, marked = 0;
    es_rng_seed(&rng, w->o->seed ^ (uint64_t)F << 20 ^ (uint64_t)k);
    j->tested[k] = es_calloc((size_t)(2 * most) + 1, sizeof *j->tested[k]);
    if (!j->tested[k])
        return ES_ERR_MEMORY;
    item *t = j->tested[k];
    for (int i = 0; i < j->own.n && n < most; i++) {
        bool seen = false;
        for (int s = 0; s < j->n_shown; s++)
            seen = seen || j->shown[s] == i;
        if (seen)
            continue;
        t[n] = (item){.w = &j->own.item[i], .active = true};
        es_window_marks(t[n].w, t[n].mark);
        for (int x = 0; x < t[n].w->n; x++)
            marked += t[n].mark[x];
        n++;
    }
    int active = n, begin = w->pool.w.n ? (int)es_rng_below(&rng, (uint64_t)w->pool.w.n) : 0;
    for (int i = 0; i < w->pool.w.n && n < 2 * active; i++) {
        const es_window *s = &w->pool.w.item[(begin + i) % w->pool.w.n];
        if (!es_window_is_silent(&w->pool, (begin + i) % w->pool.w.n, F))
            continue;
        t[n] = (item){.w = s};
        for (int left = active ? (marked + active / 2) / active : 0, tries = 0; left > 0 && tries < 1000; tries++) {
            int at = (int)es_rng_below(&rng, (uint64_t)s->n);
            left -= !t[n].mark[at];
            t[n].mark[at] = true;
            if (left > 0 && tries >= s->n * 8)
                break;
        }
        n++;
    }
    if (active < LEAST || n - active < LEAST)
        n = 0;
    for (int i = n - 1; i > 0; i--) {
        int other = (int)es_rng_below(&rng, (uint64_t)i + 1);
        item x = t[i];
        t[i] = t[other];
        t[other] = x;
    }
    j->n_tested[k] = n;
    j->questions[k] = k == SIMULATE ? n : (n + w->o->batch - 1) / w->o->batch;
    return ES_OK;
}

static int begin_job(work *w, job *j, int feature, es_error *err)
{
    es_feature_card c;
    *j = (job){.feature = feature, .begun = true};
    int rc = es_atlas_card(w->a->atlas, feature, &c, err);
    rc = rc ? rc : es_windows_of_card(&j->own, &c, err);
    if (!rc && promoted_text(w, &c, &j->promoted))
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for a label");
    if (rc)
        return rc;
    bool held = j->own.n >= 2 * LEAST; /* else all of what little there is */
    for (int i = 0; i < j->own.n && j->n_shown < w->o->examples; i += held ? 2 : 1)
        j->shown[j->n_shown++] = i;
    for (kind k = DETECT; !rc && k < KINDS; k++)
        if (wanted(w, k) && make_test(w, j, k, k == SIMULATE && w->o->tests > SIMULATED ? SIMULATED : w->o->tests))
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for a label's tests");
    j->questions[EXPLAIN] = j->n_shown > 0;
    if (!j->n_shown)
        snprintf(j->why, sizeof j->why, "the atlas has no example of it");
    return rc;
}

/* ---- its questions ---------------------------------------------------------------------------------------------------------------------- */

static int question(const work *w, job *j, kind k, int number, es_question *out, es_error *err)
{
    es_buf examples = {0};
    char count[16];
    int n = 0, room = 0;
    if (k == EXPLAIN) {
        room = w->o->answer_tokens;
        for (; n < j->n_shown; n++) {
            const es_window *s = &j->own.item[j->shown[n]];
            bool mark[ES_WINDOW_MAX] = {0};
            es_window_marks(s, mark);
            es_buf_printf(&examples, "%s%d. ", n ? "\n" : "", n + 1);
            es_window_text(&examples, w->a->model, s, mark);
        }
    } else if (k == SIMULATE) {
        n = j->tested[k][number].w->n;
        room = 12 * n + 32;
        es_window_tokens(&examples, w->a->model, j->tested[k][number].w);
    } else {
        int first = number * w->o->batch;
        for (; n < w->o->batch && first + n < j->n_tested[k]; n++) {
            const item *t = &j->tested[k][first + n];
            es_buf_printf(&examples, "%s%d. ", n ? "\n" : "", n + 1);
            es_window_text(&examples, w->a->model, t->w, k == FUZZ ? t->mark : NULL);
        }
        room = 8 * n + 64;
    }
    es_buf_add(&examples, "", 0);
    snprintf(count, sizeof count, "%d", n);
    es_prompt_value v[] = {{"examples", examples.data}, {"tokens", examples.data}, {"count", count}, {"promoted", j->promoted}, {"label", j->label.data ? j->label.data : ""}};
    *out = (es_question){.messages = examples.failed ? NULL : es_prompt_fill(w->prompt[k], v, sizeof v / sizeof *v), .max_tokens = room, .logprobs = k == SIMULATE,
                         .tag = (int64_t)k << 32 | number, .user = j};
    es_buf_free(&examples);
    return out->messages ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for a question");
}

/* The next that can be asked of a feature under way: the label first, the tests when it is there. */
static bool pending(const work *w, const job *j, kind *k)
{
    if (!j->begun)
        return false;
    for (*k = EXPLAIN; *k < KINDS; *k = *k + 1) {
        if (*k == SIMULATE && w->without_logprobs)
            continue;
        if (j->asked[*k] < j->questions[*k])
            return *k == EXPLAIN || j->label.len;
    }
    return false;
}

/* ---- a feature is done --------------------------------------------------------------------------------------------------------------- */

static void add_score(es_autolabel_result *r, const char *name, double value, int n)
{
    if (!isfinite(value))
        return;
    es_label_score *s = &r->score[r->n_score++];
    *s = (es_label_score){.value = value, .n = n};
    snprintf(s->kind, sizeof s->kind, "%s", name);
}

/* At most a quarter of a test's questions may have come to nothing. */
static bool counts(const job *j, kind k)
{
    return j->questions[k] > 0 && j->asked[k] == j->questions[k] && 4 * j->unsaid[k] <= j->questions[k];
}

static int finish(work *w, job *j, es_error *err)
{
    es_autolabel_result r = {.feature = j->feature, .label = j->label.len ? j->label.data : NULL, .why = *j->why ? j->why : NULL};
    int rc = ES_OK;
    static const char *const names[KINDS] = {[DETECT] = "detection", [FUZZ] = "fuzzing"}, *const f1[KINDS] = {[DETECT] = "detection_f1", [FUZZ] = "fuzzing_f1"};
    for (kind k = DETECT; r.label && k <= FUZZ; k++) {
        const es_tally *t = &j->tally[k];
        int n = t->hit + t->miss + t->right + t->wrong;
        if (!counts(j, k))
            continue;
        add_score(&r, names[k], es_tally_balanced(t), n);
        add_score(&r, f1[k], es_tally_f1(t), n);
    }
    if (r.label && counts(j, SIMULATE))
        add_score(&r, "simulation", es_correlation(j->simulated, j->real, j->n_simulated), j->n_simulated);
    if (r.label && !w->o->dry)
        rc = es_workspace_label_auto(w->a->workspace, es_dictionary_get_info(w->a->dictionary)->hash, j->feature, r.label, w->a->author, r.score, r.n_score, &r.stored, err);
    if (!rc && r.label && !r.stored && !w->o->dry)
        r.why = "a person labelled it meanwhile";
    if (!rc)
        report(w, &r);
    end_job(j);
    return rc;
}

/* ---- the run ---------------------------------------------------------------------------------------------------------------------------- */

/* A feature that needs a label into a free place. 0: there is none left. */
static int start_one(work *w, job *j, es_error *err)
{
    while (w->at < w->n) {
        int feature = w->feature[w->at++], rc;
        char why[200];
        if (passed_over(w, feature, why)) {
            report(w, &(es_autolabel_result){.feature = feature, .why = why});
            continue;
        }
        rc = begin_job(w, j, feature, err);
        if (!rc && j->questions[EXPLAIN])
            return 1;
        rc = rc ? rc : finish(w, j, err);
        if (rc)
            return rc;
    }
    return 0;
}

static int next(void *user, es_question *out, es_error *err)
{
    work *w = user;
    for (int i = 0; i < AT_ONCE; i++) {
        job *j = &w->job[i];
        kind k;
        int rc = 0;
        if (j->begun && !j->waiting && !pending(w, j, &k)) /* what was left of it turned out not to be had */
            rc = finish(w, j, err);
        if (!rc)
            rc = j->begun ? 1 : start_one(w, j, err);
        if (rc < 0)
            return rc;
        if (!rc || !pending(w, j, &k))
            continue;
        rc = question(w, j, k, j->asked[k], out, err);
        if (rc)
            return rc;
        j->asked[k]++;
        j->waiting++;
        return 1;
    }
    return 0;
}

static int take_activations(work *w, job *j, const item *t, const es_answer *a, es_error *err)
{
    int n = t->w->n;
    double *x = realloc(j->simulated, sizeof *x * (size_t)(j->n_simulated + n)), *y = NULL;
    if (x)
        j->simulated = x;
    y = realloc(j->real, sizeof *y * (size_t)(j->n_simulated + n));
    if (y)
        j->real = y;
    if (!x || !y)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a simulation");
    if (!a->logprobs) {
        w->without_logprobs = true; /* this server gives none: nothing more is simulated */
        j->unsaid[SIMULATE]++;
    } else if (!es_answer_activations(a->logprobs, n, x + j->n_simulated)) {
        j->unsaid[SIMULATE]++;
    } else {
        for (int i = 0; i < n; i++)
            y[j->n_simulated + i] = (double)t->w->value[i];
        j->n_simulated += n;
    }
    return ES_OK;
}

/* Small models repeat what they were asked instead of answering: the prompt's example answer, or a piece of the texts too long to be a name found anew. */
static bool repeats_prompt(const es_question *q, const char *label)
{
    enum { LONG = 24 }; /* bytes: a label may well be a word or two that the texts hold */
    size_t i;
    json_t *m;
    json_array_foreach(q->messages, i, m) {
        bool answer = !strcmp(json_string_value(json_object_get(m, "role")), "assistant");
        if ((answer || strlen(label) >= LONG) && strcasestr(json_string_value(json_object_get(m, "content")), label))
            return true;
    }
    return false;
}

static int done(void *user, const es_question *q, const es_answer *a, const es_error *why, es_error *err)
{
    work *w = user;
    job *j = q->user;
    kind k = (kind)(q->tag >> 32);
    int number = (int)(q->tag & 0x7fffffff), rc = ES_OK;
    j->waiting--;
    if (k == EXPLAIN) {
        if (!a)
            snprintf(j->why, sizeof j->why, "%.290s", why->text);
        else if (!es_answer_label(a->text, &j->label))
            snprintf(j->why, sizeof j->why, "there is no label in the answer");
        else if (repeats_prompt(q, j->label.data)) { /* as small models do */
            snprintf(j->why, sizeof j->why, "the answer repeats the prompt");
            es_buf_clear(&j->label);
        }
    } else if (!a) {
        j->unsaid[k]++;
    } else if (k == SIMULATE) {
        rc = take_activations(w, j, &j->tested[k][number], a, err);
    } else {
        bool said[BATCH_MAX];
        int first = number * w->o->batch, n = j->n_tested[k] - first < w->o->batch ? j->n_tested[k] - first : w->o->batch;
        bool good = es_answer_judgements(a->text, n, said);
        j->unsaid[k] += !good;
        for (int i = 0; good && i < n; i++)
            es_tally_add(&j->tally[k], j->tested[k][first + i].active, said[i]);
    }
    kind more;
    if (!rc && !j->waiting && !pending(w, j, &more))
        rc = finish(w, j, err);
    return rc;
}

static int load_prompts(work *w, es_error *err)
{
    static const char *const names[KINDS] = {"explain", "detect", "fuzz", "simulate"};
    static const char *const wants[KINDS][4] = {{"examples"}, {"label", "examples", "count"}, {"label", "examples", "count"}, {"label", "tokens", "count"}};
    int rc = ES_OK;
    for (kind k = EXPLAIN; !rc && k < KINDS; k++)
        rc = es_prompt_load(&w->prompt[k], names[k], w->o->prompts, w->o->shipped, wants[k], err);
    return rc;
}

int es_autolabel_run(const es_autolabel *a, const int *feature, int n, es_answerer *who, es_work *memory, es_budget *budget, const es_autolabel_options *options,
                     const es_progress *progress, es_error *err)
{
    es_autolabel_options o = *options;
    o.examples = o.examples > 0 ? o.examples < SHOWN_MAX ? o.examples : SHOWN_MAX : 10;
    o.tests = o.tests > 0 ? o.tests < TESTS_MAX ? o.tests : TESTS_MAX : 10;
    o.batch = o.batch > 0 ? o.batch < BATCH_MAX ? o.batch : BATCH_MAX : 5;
    o.answer_tokens = o.answer_tokens > 0 ? o.answer_tokens : 256;
    work *w = es_calloc(1, sizeof *w);
    if (!w)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to label");
    w->a = a;
    w->o = &o;
    w->feature = feature;
    w->n = n;
    w->progress = progress;
    int rc = load_prompts(w, err), F = es_atlas_features(a->atlas);
    for (int i = 0; !rc && i < n; i++)
        if (feature[i] < 0 || feature[i] >= F)
            rc = es_fail(err, ES_ERR_MISSING, "there is no feature %d: the atlas has 0 to %d", feature[i], F - 1);
    if (!rc && o.scores && n)
        rc = es_window_pool_open(&w->pool, a->model, a->dictionary, a->atlas, POOL, o.seed, o.threads, progress, err);
    es_asking asking = {next, done, w};
    rc = rc ? rc : es_ask(who, &asking, memory, budget, progress, err);
    for (int i = 0; i < AT_ONCE; i++)
        end_job(&w->job[i]);
    for (int k = 0; k < KINDS; k++)
        json_decref(w->prompt[k]);
    es_window_pool_free(&w->pool);
    free(w);
    return rc;
}
