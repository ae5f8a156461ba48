/* label auto: labels from a language model, behind an endpoint or the one that is open here, with their scores. */
#include "app.h"
#include "autolabel.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_LIMIT = 64 << 10, SHOWN_PROMPTS = 4 };

typedef struct settings {
    const char *endpoint, *with, *key_file, *basis, *filter, *prompts, *work, *scores;
    bool local, dry, again;
    int limit, concurrency, tries, seconds, stall, max_wait;
    es_autolabel_options o;
    es_budget budget;
} settings;

typedef struct labelling {
    const settings *s;
    es_model *m;
    app_features f;
    es_workspace *w;
    es_model *other; /* that answers, when it is not the one whose features they are */
    es_answerer *who;
    es_work *work;
    char key[4096];
    char author[64];
    int *feature, n;
    json_t *list; /* --json */
    int labelled, passed;
    int printed;  /* --dry-run: prompts */
    es_error err;
} labelling;

/* ---- which features ------------------------------------------------------------------------------------------------------------------- */

static int named_features(labelling *l, char **names, int n)
{
    for (int i = 0; i < n; i++) {
        char *end;
        long v = strtol(names[i], &end, 10);
        if (end == names[i] || *end || v < 0 || v >= l->f.n)
            return es_fail(&l->err, ES_ERR_MISSING, "there is no feature '%s': the dictionary has 0 to %d", names[i], l->f.n - 1);
        l->feature[l->n++] = (int)v;
    }
    return ES_OK;
}

static int features_of_basis(labelling *l)
{
    es_basis b = {0};
    int rc = app_basis(&b, &l->f, l->w, l->s->basis, &l->err);
    for (int k = 0; !rc && k < b.n; k++)
        if (b.feature[k] >= 0) /* a vector has no examples */
            l->feature[l->n++] = b.feature[k];
    es_basis_free(&b);
    return rc;
}

/* All that have no label and fire at all, those that fire most often first. */
static const float *sort_density;
static int by_density(const void *a, const void *b)
{
    int i = *(const int *)a, j = *(const int *)b;
    return sort_density[i] < sort_density[j] ? 1 : sort_density[i] > sort_density[j] ? -1 : i - j;
}

static void unlabelled(labelling *l)
{
    char **labels = app_labels_from(&l->f, l->w);
    sort_density = es_atlas_density(l->f.atlas);
    for (int i = 0; i < l->f.n; i++)
        if (sort_density[i] > 0 && (l->s->again || !labels || !labels[i] || !*labels[i]))
            l->feature[l->n++] = i;
    qsort(l->feature, (size_t)l->n, sizeof *l->feature, by_density);
    app_labels_free(labels, l->f.n);
}

static int choose(labelling *l, char **names, int n)
{
    int rc = ES_OK;
    size_t room = (size_t)l->f.n + (size_t)n + 65536;
    if (!(l->feature = es_calloc(room, sizeof *l->feature)))
        return es_fail(&l->err, ES_ERR_MEMORY, "not enough memory");
    if (n)
        rc = named_features(l, names, n);
    else if (l->s->basis)
        rc = features_of_basis(l);
    else if (l->s->filter)
        rc = es_workspace_search(l->w, l->f.hash, l->s->filter, l->feature, l->f.n, &l->n, &l->err);
    else
        unlabelled(l);
    if (l->s->limit && l->n > l->s->limit)
        l->n = l->s->limit;
    return rc;
}

/* ---- who answers ---------------------------------------------------------------------------------------------------------------------- */

static int read_key(labelling *l, const char *path)
{
    es_buf b = {0};
    int rc = es_file_read(&b, path, KEY_LIMIT, &l->err);
    size_t n = b.data ? strcspn(b.data, "\r\n") : 0;
    if (!rc && (n == 0 || n >= sizeof l->key || (b.data[n] && strspn(b.data + n, "\r\n \t") != strlen(b.data + n))))
        rc = es_fail(&l->err, ES_ERR_FORMAT, "%s: holds no key: one line is wanted", path);
    if (!rc)
        memcpy(l->key, b.data, n);
    if (b.data)
        explicit_bzero(b.data, b.len);
    es_buf_free(&b);
    return rc;
}

/* What would be asked, without asking: prints the first prompts and answers with a stand-in, so that the tests of the label are seen as well. */
static int dry_run(es_answerer *a, const es_asking *who, const es_progress *progress, es_error *err);
static void dry_free(es_answerer *a) { (void)a; }
static labelling *dry_labelling;
static es_answerer dry = {"dry", "dry", dry_run, dry_free};

static void print_question(const es_question *q)
{
    size_t i;
    json_t *m;
    printf("---- at most %d tokens of answer%s\n", q->max_tokens, q->logprobs ? ", with log-probabilities" : "");
    json_array_foreach(q->messages, i, m) {
        const char *s = json_string_value(json_object_get(m, "content"));
        printf("[%s]\n", json_string_value(json_object_get(m, "role")));
        app_print_text(s, strlen(s));
        putchar('\n');
    }
}

static int dry_run(es_answerer *a, const es_asking *who, const es_progress *progress, es_error *err)
{
    labelling *l = dry_labelling;
    es_question q = {0};
    int rc;
    (void)a;
    while ((rc = who->next(who->user, &q, err)) == 1) {
        if (!the_app.json && l->printed++ < SHOWN_PROMPTS)
            print_question(&q);
        es_answer stand_in = {.text = "LABEL: (the label)", .prompt_tokens = es_prompt_tokens(q.messages), .answer_tokens = q.max_tokens};
        rc = es_progress_cancelled(progress) ? es_fail(err, ES_ERR_CANCELLED, "cancelled") : who->done(who->user, &q, &stand_in, NULL, err);
        es_question_clear(&q);
        if (rc)
            return rc;
    }
    return rc;
}

static int open_answerer(labelling *l)
{
    const settings *s = l->s;
    const char *url = s->local ? NULL : s->endpoint ? s->endpoint : the_app.endpoint_url, *key_file = s->key_file ? s->key_file : the_app.endpoint_key_file;
    int rc = ES_OK;
    if (url && key_file)
        rc = read_key(l, key_file);
    else if (url && the_app.api_key && snprintf(l->key, sizeof l->key, "%s", the_app.api_key) >= (int)sizeof l->key)
        rc = es_fail(&l->err, ES_ERR_USAGE, "ESPALIER_API_KEY is too long for a key");
    es_endpoint_options o = {.url = url, .model = s->with ? s->with : the_app.endpoint_model, .key = *l->key ? l->key : NULL, .ca_file = the_app.ca_file,
                             .concurrency = s->concurrency ? s->concurrency : the_app.endpoint_concurrency, .tries = s->tries, .stall_seconds = s->stall,
                             .seconds = s->seconds, .max_wait = s->max_wait};
    if (!rc && url && !o.model)
        rc = es_fail(&l->err, ES_ERR_USAGE, "which of the endpoint's models? --with NAME, or model in [endpoint] of the configuration");
    if (!rc && !url && s->with)
        rc = es_model_open_within(&l->other, s->with, 0, the_app.memory, &l->err);
    if (!rc)
        rc = url ? es_endpoint_open(&l->who, &o, &l->err) : es_local_open(&l->who, l->other ? l->other : l->m, the_app.threads, 0, &l->err);
    explicit_bzero(l->key, sizeof l->key);
    if (!rc) {
        size_t n = (size_t)snprintf(l->author, sizeof l->author, "auto:%s", l->who->name);
        if (n >= sizeof l->author)
            l->author[es_utf8_whole(l->author, sizeof l->author - 1)] = 0;
    }
    return rc;
}

static int open_work(labelling *l)
{
    char path[1300], hash[65], folder[1200];
    es_buf b = {0};
    if (l->s->work)
        return es_work_open(&l->work, l->s->work, &l->err);
    es_buf_printf(&b, "%s\n%s", l->who->identity, l->f.hash);
    es_sha256_bytes(hash, b.data ? b.data : "", b.len);
    es_buf_free(&b);
    app_path(folder, sizeof folder, "autolabel");
    app_path(path, sizeof path, "autolabel/%.16s.jsonl", hash);
    int rc = es_dir_make(folder, &l->err);
    return rc ? rc : es_work_open(&l->work, path, &l->err);
}

/* ---- what comes of it ------------------------------------------------------------------------------------------------------------------ */

static void print_one(void *user, const es_autolabel_result *r)
{
    labelling *l = user;
    char shown[400];
    l->labelled += r->stored;
    l->passed += !r->stored;
    if (l->s->dry)
        return;
    if (l->list) {
        json_t *scores = json_object(), *v;
        for (int i = 0; i < r->n_score; i++)
            json_object_set_new(scores, r->score[i].kind, json_real(r->score[i].value));
        v = json_pack("{s:i,s:s?,s:b,s:o,s:s?}", "feature", r->feature, "label", r->label, "stored", r->stored, "scores", scores, "why", r->why);
        json_array_append_new(l->list, v);
        return;
    }
    app_progress_end();
    printf("%7d  ", r->feature);
    if (r->label)
        printf("%s", app_shown(r->label, shown, sizeof shown));
    for (int i = 0; i < r->n_score; i++)
        printf("%s%s %.2f", i ? ", " : "  | ", r->score[i].kind, r->score[i].value);
    if (r->why)
        printf("%s%s", r->label ? "  | not kept: " : "no label: ", app_shown(r->why, shown, sizeof shown));
    putchar('\n');
    fflush(stdout);
}

static json_t *spent_json(const es_budget *b)
{
    return json_pack("{s:I,s:I,s:I,s:I,s:f}", "requests", (json_int_t)b->requests, "kept", (json_int_t)b->kept, "prompt_tokens", (json_int_t)b->prompt_tokens, "answer_tokens",
                     (json_int_t)b->answer_tokens, "cost", es_budget_money(b));
}

static int tell(labelling *l, const es_budget *b, int rc)
{
    const settings *s = l->s;
    int code = EXIT_DONE;
    app_progress_end();
    if (the_app.json)
        code = app_print_json(json_pack("{s:O?,s:i,s:b,s:o,s:s}", "features", l->list, "labelled", l->labelled, "dry_run", s->dry, "spent", spent_json(b), "author", l->author));
    else if (s->dry && !rc)
        printf("%d features: %lld requests, about %lld tokens of prompts and at most %lld of answers", l->n, (long long)b->requests, (long long)b->prompt_tokens,
               (long long)b->answer_tokens);
    if (!the_app.json && s->dry && !rc) {
        if (b->price_prompt > 0 || b->price_answer > 0)
            printf(", at most about %.4g", es_budget_money(b));
        putchar('\n');
        code = app_flush();
    } else if (!the_app.json) {
        code = app_flush();
        app_note("%d labelled, %d not; %lld requests (%lld answers were kept from before), %lld tokens of prompts, %lld of answers", l->labelled, l->passed,
                 (long long)b->requests, (long long)b->kept, (long long)b->prompt_tokens, (long long)b->answer_tokens);
    }
    return rc ? app_fail(&l->err) : code;
}

static bool score_set(const char *list, unsigned *out)
{
    static const struct { const char *name; unsigned flag; } names[] = {
        {"detection", ES_SCORE_DETECTION}, {"fuzzing", ES_SCORE_FUZZING}, {"simulation", ES_SCORE_SIMULATION}, {"none", 0}};
    *out = 0;
    for (const char *p = list; *p;) {
        size_t n = strcspn(p, ","), i = 0;
        while (i < 4 && (strlen(names[i].name) != n || memcmp(names[i].name, p, n)))
            i++;
        if (i == 4)
            return false;
        *out |= names[i].flag;
        p += n + (p[n] == ',');
    }
    return true;
}

static int run(labelling *l, settings *s, char **names, int n)
{
    int rc = app_model(&l->m, &l->err);
    rc = rc ? rc : app_features_look(&l->f, l->m, &l->err);
    if (!rc && !l->f.atlas)
        rc = es_fail(&l->err, ES_ERR_MISSING, "there is no atlas beside the dictionary, so there are no examples to label by: see espalier atlas");
    rc = rc ? rc : app_workspace_for(&l->w, &l->f, l->m, &l->err);
    rc = rc ? rc : choose(l, names, n);
    rc = rc ? rc : open_answerer(l);
    if (!rc && !s->dry)
        rc = open_work(l);
    if (rc)
        return app_fail(&l->err);
    char own[1200];
    const char *slash = strrchr(the_app.config_path, '/');
    snprintf(own, sizeof own, "%.*s/prompts", slash ? (int)(slash - the_app.config_path) : 0, the_app.config_path);
    s->o.prompts = s->prompts ? s->prompts : slash ? own : NULL;
    s->o.shipped = ESPALIER_SHARE "/prompts";
    s->o.threads = the_app.threads;
    s->o.dry = s->dry;
    es_autolabel a = {.workspace = l->w, .model = l->m, .dictionary = l->f.dictionary, .atlas = l->f.atlas, .author = l->author, .report = print_one, .user = l};
    es_progress progress = app_progress();
    dry_labelling = l;
    rc = es_autolabel_run(&a, l->feature, l->n, s->dry ? &dry : l->who, l->work, &s->budget, &s->o, &progress, &l->err);
    return tell(l, &s->budget, rc);
}

int cmd_label_auto(int argc, char **argv)
{
    settings s = {.scores = "detection,fuzzing,simulation"};
    uint64_t max_requests = 0, max_tokens = 0, seed = 1;
    double price_in = -1, price_out = -1;
    const opt table[] = {
        {"basis", "NAME", OPT_TEXT, &s.basis, 0, 0, "the features of this basis", NULL},
        {"filter", "QUERY", OPT_TEXT, &s.filter, 0, 0, "the features that features search finds", NULL},
        {"limit", "N", OPT_INT, &s.limit, 0, 1 << 24, "at most so many features (default: all)", NULL},
        {"again", NULL, OPT_FLAG, &s.again, 0, 0, "also those with an automatic label; labels that people gave always stay", NULL},
        {"endpoint", "URL", OPT_TEXT, &s.endpoint, 0, 0, "an OpenAI-compatible endpoint, such as http://localhost:8080/v1", NULL},
        {"with", "MODEL", OPT_TEXT, &s.with, 0, 0, "which of its models; without an endpoint the file of a model that answers", NULL},
        {"key-file", "FILE", OPT_TEXT, &s.key_file, 0, 0, "its key; else the environment's ESPALIER_API_KEY", NULL},
        {"local", NULL, OPT_FLAG, &s.local, 0, 0, "the local model answers, whatever endpoint is configured", NULL},
        {"scores", "LIST", OPT_TEXT, &s.scores, 0, 0, "of detection,fuzzing,simulation (default: all); none", NULL},
        {"examples", "N", OPT_INT, &s.o.examples, 1, 64, "windows of text that a label is made of (default 10)", NULL},
        {"tests", "N", OPT_INT, &s.o.tests, 2, 100, "held-out windows of each kind that it is tested on (default 10)", NULL},
        {"batch", "N", OPT_INT, &s.o.batch, 1, 20, "windows in one question (default 5)", NULL},
        {"answer", "TOKENS", OPT_INT, &s.o.answer_tokens, 16, 65536, "room to think and say the label (default 256)", NULL},
        {"prompts", "DIR", OPT_TEXT, &s.prompts, 0, 0, "prompts of your own (default: the folder prompts beside config.ini)", NULL},
        {"seed", "N", OPT_COUNT, &seed, 0, 1e9, "of the windows drawn (default 1)", NULL},
        {"max-requests", "N", OPT_COUNT, &max_requests, 1, 1e12, "stop before more requests than that", NULL},
        {"max-tokens", "N", OPT_COUNT, &max_tokens, 1, 1e15, "stop before more tokens, of prompts and answers, such as 2M", NULL},
        {"max-cost", "X", OPT_REAL, &s.budget.max_money, 0, 1e9, "stop before a higher cost; needs prices", NULL},
        {"price-in", "X", OPT_REAL, &price_in, 0, 1e6, "of a million tokens of prompts", NULL},
        {"price-out", "X", OPT_REAL, &price_out, 0, 1e6, "of a million tokens of answers", NULL},
        {"concurrency", "N", OPT_INT, &s.concurrency, 1, 64, "requests at once (default 4)", NULL},
        {"tries", "N", OPT_INT, &s.tries, 1, 100, "of a request that fails (default 5)", NULL},
        {"stall", "S", OPT_INT, &s.stall, 1, 3600, "seconds without a byte after which it has failed (default 60)", NULL},
        {"timeout", "S", OPT_INT, &s.seconds, 1, 86400, "seconds for a whole answer (default 300)", NULL},
        {"max-wait", "S", OPT_INT, &s.max_wait, 1, 86400, "stop when the server asks to wait longer (default 120)", NULL},
        {"work", "FILE", OPT_TEXT, &s.work, 0, 0, "where answers are kept (default: a file in home for this model and dictionary)", NULL},
        {"dry-run", NULL, OPT_FLAG, &s.dry, 0, 0, "show the first prompts, and what all would cost; ask nothing", NULL},
        {0},
    };
    static const command_help help = {
        "label auto", "[FEATURE...]",
        "Labels features with a language model, from the atlas' examples, and scores each label by detection, fuzzing and, where log-probabilities come\n"
        "back, simulation, on examples held out. Without an endpoint the local model answers, or the one that --with names; small ones do it badly, and\n"
        "the scores say so. Without features: all that have no label, those that fire most often first. A run that was stopped goes on with the same\n"
        "command, and asks nothing twice. Labels that people gave are never replaced. A key is read from a file or the environment only, and is sent to the\n"
        "endpoint's own address only.",
        "  espalier label auto --limit 20\n  espalier label auto --basis brief --endpoint https://HOST/v1 --with NAME --key-file key --max-cost 2 --price-in 0.15 --price-out 0.6\n"
        "  espalier label auto --filter \"is:unlabelled density<0.01\" --dry-run", 0, -1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if ((n > 0) + (s.basis != NULL) + (s.filter != NULL) > 1)
        return opts_usage_error("label auto", "features by number, --basis and --filter do not go together");
    if (!score_set(s.scores, &s.o.scores))
        return opts_usage_error("label auto", "--scores is a list of detection, fuzzing and simulation, or none, not '%s'", s.scores);
    s.budget.max_requests = (int64_t)max_requests;
    s.budget.max_tokens = (int64_t)max_tokens;
    s.budget.price_prompt = price_in >= 0 ? price_in : the_app.endpoint_price_in;
    s.budget.price_answer = price_out >= 0 ? price_out : the_app.endpoint_price_out;
    if (s.budget.max_money > 0 && s.budget.price_prompt <= 0 && s.budget.price_answer <= 0)
        return opts_usage_error("label auto", "--max-cost needs --price-in and --price-out");
    s.o.seed = seed;
    s.o.again = s.again;
    labelling l = {.s = &s, .list = the_app.json && !s.dry ? json_array() : NULL};
    int code = run(&l, &s, argv + 1, n);
    json_decref(l.list);
    es_work_close(l.work);
    es_answerer_free(l.who);
    es_model_free(l.other);
    free(l.feature);
    es_workspace_close(l.w);
    app_features_close(&l.f);
    es_model_free(l.m);
    return code;
}
