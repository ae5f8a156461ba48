/* eval adapt: every way of adapting on the same experiences. */
#include "app.h"
#include "cmd_eval.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_TASKS = 16, MAX_SPECS = 24 };

/* ---- tasks, neutral text, items ------------------------------------------------------------------------------------------------- */

int eval_task_path(const char *name, char *out, size_t size, es_error *err)
{
    char data[1100] = "";
    size_t n = strlen(name);
    if (strchr(name, '/') || (n > 6 && !strcmp(name + n - 6, ".jsonl"))) {
        snprintf(out, size, "%s", name);
        return ES_OK;
    }
    snprintf(out, size, "%s/tasks/%s.jsonl", ESPALIER_SHARE, name);
    if (access(out, R_OK) == 0)
        return ES_OK;
    bool some = app_data(data, sizeof data);
    snprintf(out, size, "%s/tasks/%s.jsonl", data, name);
    if (some && access(out, R_OK) == 0)
        return ES_OK;
    return es_fail(err, ES_ERR_MISSING,
                   "there is no task %s: it is none of those that come with the program, and %s%s (tools/make_pairs.py makes tasks from public data; "
                   "--data DIR names the folder whose tasks/ they are in)", name, some ? "there is no " : "no data folder is set", some ? out : "");
}

int eval_task_open(es_task *out, const char *name, const es_task_split *split, es_error *err)
{
    char path[1400], label[256];
    int rc = eval_task_path(name, path, sizeof path, err);
    const char *slash = strrchr(path, '/');
    snprintf(label, sizeof label, "%.200s", slash ? slash + 1 : path);
    if (strrchr(label, '.') > label)
        *strrchr(label, '.') = 0;
    return rc ? rc : es_task_load(out, path, label, split, err);
}

typedef struct choices {
    json_t *keep;
    es_choice *item;
    int n, cap, each; /* each: items of one set */
} choices;

static int choice_line(void *user, size_t line, json_t *value, es_error *err)
{
    choices *c = user;
    const char *set = json_string_value(json_object_get(value, "set")), *begin = json_string_value(json_object_get(value, "begin"));
    json_t *options = json_object_get(value, "options");
    size_t n = json_array_size(options), right = (size_t)json_integer_value(json_object_get(value, "right"));
    (void)line;
    if (json_object_get(value, "about"))
        return ES_OK;
    if (!set || !begin || n < 1 || n > 8 || right >= n)
        return es_fail(err, ES_ERR_FORMAT, "an item is {\"set\",\"begin\",\"options\":[1 to 8],\"right\"}");
    int same = 0;
    for (int i = 0; i < c->n; i++)
        same += !strcmp(c->item[i].set, set);
    if (same >= c->each)
        return ES_OK;
    if (c->n == c->cap) {
        int cap = c->cap ? 2 * c->cap : 64;
        es_choice *item = realloc(c->item, (size_t)cap * sizeof *item);
        if (!item)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory for items");
        c->item = item;
        c->cap = cap;
    }
    es_choice *to = &c->item[c->n];
    *to = (es_choice){.begin = begin, .n = (int)n, .right = (int)right};
    snprintf(to->set, sizeof to->set, "%s", set);
    for (size_t i = 0; i < n; i++)
        if (!(to->option[i] = json_string_value(json_array_get(options, i))))
            return es_fail(err, ES_ERR_FORMAT, "an option must be a text");
    json_array_append(c->keep, value);
    c->n++;
    return ES_OK;
}

/* ---- lists on the command line --------------------------------------------------------------------------------------------------- */

/* Cuts a copy of text at commas into part[]; -1: too many, or an empty one. The copy is part[0]'s memory: free(part[0]). */
static int cut(const char *text, char **part, int most)
{
    char *copy = strdup(text), *save = NULL;
    int n = 0;
    part[0] = copy;
    for (char *p = copy ? strtok_r(copy, ",", &save) : NULL; p; p = strtok_r(NULL, ",", &save)) {
        if (n == most)
            return -1;
        part[n++] = p;
    }
    return n ? n : -1;
}

static int read_shares(const char *text, double *out, int most)
{
    int n = 0;
    for (;;) {
        char *end;
        double v = strtod(text, &end);
        if (n == most || end == text || !(v >= 0 && v <= 1) || (*end && *end != ','))
            return -1;
        out[n++] = v;
        if (!*end)
            return n;
        text = end + 1;
    }
}

/* ---- the grids ---------------------------------------------------------------------------------------------------------------------- */

#define ALL_TASKS "brevity,politeness,directness,formality,typehints,snakecase,guards"
#define ALL_METHODS "none,context,titans,self,lora1=lora,lora8=lora,lora,full,distil,features,curated=features"

static const struct grid {
    const char *name;
    struct { const char *tasks, *methods, *sizes, *garbage, *kinds; int orders; } part[4]; /* one after another, into one work file */
    const char *at, *sweep;  /* where the command line says nothing */
    int batch, raw_tokens, chat_tokens, max_prompt, max_reply, behaviour_orders;
} GRIDS[] = {
    {"published", /* what docs/results.md shows, in about four hours on two cores; what is not asked about itself has one order */
     {{ALL_TASKS, "none,features,curated=features,lora1=lora,lora8=lora,lora,full", "8,32", "0", "swap", 1},
      {ALL_TASKS, "features,curated=features,lora,full", "8,32", "0", "swap", 3},
      {"politeness,directness,snakecase", "curated=features,lora,full,full-weighed=full", "8,32", "0,0.375", "swap,shuffle,off-topic", 1},
      {ALL_TASKS, "context,titans,self,distil", "8", "0", "swap", 1}},
     "4,8", "politeness,snakecase", 4, 1000, 600, 40, 40, 1},
    {"few", /* a handful of experiences, with and without what was learned beforehand */
     {{ALL_TASKS, "features,curated=features,curated-free=free,lora8=lora,lora,full", "1,2,4", "0", "swap", 3}},
     "4,8", "politeness,snakecase", 4, 1000, 600, 40, 40, 1},
    {"selection", /* what the chosen features are worth against random ones, and against no constraint */
     {{ALL_TASKS, "features,curated=features,chosen4=features,random4=random,chosen16=features,random16=random,chosen64=features,random64=random,free,curated-free=free", "8,32", "0", "swap", 3}},
     "4,8", "politeness,snakecase", 4, 1000, 600, 40, 40, 1},
    {"whole", {{ALL_TASKS, ALL_METHODS ",free,bias,random", "1,2,4,8,16,32", "0,0.2,0.4", "swap,shuffle,off-topic", 3}}, "2,4,8", NULL, 0, 1500, 1000, 64, 64, 3},
    {0},
};
enum { GRID_PARTS = sizeof GRIDS->part / sizeof *GRIDS->part, GRID_RESERVE = 64 }; /* reserve: so that all parts draw from the same pairs */

/* What a label stands for in the grids, beyond its method; --set goes further. */
static void usual_options(es_eval_spec *s)
{
    size_t n = strlen(s->label);
    bool curated = !strncmp(s->label, "curated", 7), weighed = n > 8 && !strcmp(s->label + n - 8, "-weighed");
    if (curated || weighed) {
        s->basis_pairs = s->basis_pairs ? s->basis_pairs : GRID_RESERVE;
        s->prior = s->o.white = s->o.weighting = true;
        s->o.one_sided = curated;
    }
    bool chosen = !strncmp(s->label, "chosen", 6), drawn = !strncmp(s->label, "random", 6);
    int size = chosen || drawn ? atoi(s->label + 6) : 0; /* chosen16, random16 */
    if (size > 0)
        s->o.basis_size = size;
    if (size > 0 && chosen)
        s->basis_pairs = s->basis_pairs ? s->basis_pairs : GRID_RESERVE;
    if (!strcmp(s->label, "lora8"))
        s->o.rank = 8;
    if (!strcmp(s->label, "lora1")) {
        s->o.rank = 1;
        for (int i = 0; i < s->n_rate; i++) /* fewer numbers, longer steps */
            s->rate[i] *= 2;
    }
}

/* ---- the command ---------------------------------------------------------------------------------------------------------------------- */

typedef struct asked { /* what the command line says, as texts */
    const char *tasks, *methods, *garbage, *kinds, *compare, *sweep, *work, *plot, *neutral, *choices, *teacher;
    opt_ints sizes, at;
    opt_texts set;
    int basis_pairs, batch; /* batch: the grid's, 0: none */
    bool signs;
} asked;

static bool needs_dictionary(const es_eval_spec *s)
{
    return s->prior || s->kind == ES_METHOD_FEATURES || s->kind == ES_METHOD_RANDOM || s->kind == ES_METHOD_BIAS || s->kind == ES_METHOD_FREE;
}

int eval_specs_open(const char *methods, int basis_pairs, bool signs, es_eval_spec *spec, int most, int *n, es_error *err)
{
    char *part[MAX_SPECS + 1];
    int count = cut(methods, part, most < MAX_SPECS ? most : MAX_SPECS), rc = ES_OK;
    *n = 0;
    if (count < 0)
        rc = es_fail(err, ES_ERR_USAGE, "--methods: 1 to %d names with commas", most);
    for (int i = 0; !rc && i < count; i++) {
        rc = es_eval_spec_new(&spec[i], part[i], err);
        if (!rc && basis_pairs && (spec[i].kind == ES_METHOD_FEATURES || spec[i].kind == ES_METHOD_BIAS)) {
            spec[i].basis_pairs = basis_pairs;
            spec[i].signs = signs;
        }
        if (!rc)
            usual_options(&spec[i]);
    }
    free(part[0]);
    *n = rc ? 0 : count;
    return rc;
}

int eval_specs_set(const opt_texts *set, es_eval_spec *spec, int n, bool strict, es_error *err)
{
    int rc = ES_OK;
    for (int i = 0; !rc && i < set->n; i++) {
        const char *text = set->value[i], *dot = strchr(text, '.'), *equals = strchr(text, '=');
        char option[64];
        bool found = false;
        if (!dot || !equals || equals < dot || (size_t)(equals - dot) > sizeof option)
            return es_fail(err, ES_ERR_USAGE, "--set wants METHOD.OPTION=VALUE, not \"%s\"", text);
        memcpy(option, dot + 1, (size_t)(equals - dot - 1));
        option[equals - dot - 1] = 0;
        for (int j = 0; !rc && j < n; j++)
            if ((strlen(spec[j].label) == (size_t)(dot - text) && !strncmp(spec[j].label, text, (size_t)(dot - text))) || (dot == text + 3 && !strncmp(text, "all", 3))) {
                rc = es_eval_spec_set(&spec[j], option, equals + 1, err);
                found = true;
            }
        if (!rc && !found && strict)
            rc = es_fail(err, ES_ERR_USAGE, "--set %s: that method is not among those compared", text);
    }
    return rc;
}

/* One pass of the evaluation: tasks, methods, sizes and garbage given as texts. */
static int pass(es_model *m, const app_features *f, const asked *a, const es_eval_options *common, const es_task_split *split, const char *tasks,
                const char *methods, const char *garbage, const char *kinds, bool strict, es_error *err)
{
    es_task task[MAX_TASKS];
    const es_task *which[MAX_TASKS];
    es_eval_spec spec[MAX_SPECS];
    char *part[MAX_TASKS + 1];
    int sweep[MAX_TASKS], opened = 0, n_task = cut(tasks, part, MAX_TASKS), rc = ES_OK;
    es_eval_options o = *common;
    if (n_task < 0)
        rc = es_fail(err, ES_ERR_USAGE, "--task: 1 to %d names with commas", (int)MAX_TASKS);
    for (; !rc && opened < n_task; opened++) {
        which[opened] = &task[opened];
        if ((rc = eval_task_open(&task[opened], part[opened], split, err)))
            break;
    }
    free(part[0]);
    rc = rc ? rc : eval_specs_open(methods, a->basis_pairs, a->signs, spec, MAX_SPECS, &o.n_spec, err);
    for (int i = 0; !rc && a->batch && i < o.n_spec; i++)
        spec[i].o.batch = a->batch;
    rc = rc ? rc : eval_specs_set(&a->set, spec, o.n_spec, strict, err);
    if (!rc && a->sweep) {
        int n = cut(a->sweep, part, MAX_TASKS);
        for (int i = 0; i < n; i++) {
            sweep[i] = -1;
            for (int j = 0; j < opened; j++)
                if (!strcmp(task[j].name, part[i]))
                    sweep[i] = j;
            if (sweep[i] < 0 && strict)
                rc = es_fail(err, ES_ERR_USAGE, "--sweep-tasks: %s is not among the tasks", part[i]);
            if (sweep[i] < 0) { /* a part of a grid without it: each task for itself */
                n = 0;
                break;
            }
        }
        o.n_sweep = n > 0 ? n : 0;
        free(part[0]);
    }
    if (!rc && (o.n_garbage = read_shares(garbage, o.garbage, ES_EVAL_SHARES)) < 0)
        rc = es_fail(err, ES_ERR_USAGE, "--garbage: \"%s\" is no list of at most %d shares from 0 to 1", garbage, (int)ES_EVAL_SHARES);
    if (!rc) {
        o.n_garbage_kind = cut(kinds, part, ES_N_GARBAGE);
        if (o.n_garbage_kind < 0)
            rc = es_fail(err, ES_ERR_USAGE, "--garbage-kind: swap, shuffle, off-topic");
        for (int i = 0; !rc && i < o.n_garbage_kind; i++) {
            int k = es_garbage_by_name(part[i]);
            o.garbage_kind[i] = (es_garbage)k;
            if (k < 0)
                rc = es_fail(err, ES_ERR_USAGE, "--garbage-kind: there is no \"%s\" (swap, shuffle, off-topic)", part[i]);
        }
        free(part[0]);
    }
    o.task = which;
    o.n_task = n_task;
    o.sweep_task = sweep;
    o.spec = spec;
    for (int i = 0; !rc && i < o.n_spec; i++)
        if (needs_dictionary(&spec[i]) && !f->dictionary)
            rc = es_fail(err, ES_ERR_MISSING, "%s needs a dictionary", spec[i].label);
    es_progress progress = app_progress();
    rc = rc ? rc : es_eval_adapt(m, f->dictionary, f->atlas, &o, &progress, err);
    app_progress_end();
    for (int i = 0; i < opened; i++)
        es_task_free(&task[i]);
    return rc;
}

/* Labels whose harm is compared: --compare, else what of features, curated, lora..., full is in the work file. */
static int compared_of(const asked *a, const char *work, char **part, int most, es_error *err)
{
    static const char *const USUAL[] = {"features", "lora", "full"};
    if (a->compare) {
        int n = cut(a->compare, part, most);
        return n > 0 ? n : es_fail(err, ES_ERR_USAGE, "--compare: names of methods with commas");
    }
    json_t *rows = NULL;
    size_t i;
    json_t *x;
    int rc = es_eval_rows(work, NULL, 0, &rows, err), n = 0;
    part[0] = NULL;
    if (rc)
        return rc;
    char *text = es_calloc(64, sizeof USUAL / sizeof *USUAL);
    for (size_t k = 0; text && k < sizeof USUAL / sizeof *USUAL; k++)
        json_array_foreach(rows, i, x)
            if (!strcmp(json_string_value(json_object_get(x, "method")), USUAL[k])) {
                part[n] = text + 64 * n;
                strcpy(part[n++], USUAL[k]);
                break;
            }
    if (!n)
        free(text);
    json_decref(rows);
    return n;
}

static int report(const asked *a, uint64_t seed, es_error *err)
{
    char *part[MAX_SPECS + 1] = {0};
    json_t *rows = NULL, *ratios = NULL;
    es_buf text = {0}, svg = {0};
    int n = compared_of(a, a->work, part, MAX_SPECS, err), rc = n < 0 ? n : ES_OK;
    rc = rc ? rc : es_eval_rows(a->work, (const char *const *)part, n, &rows, err);
    if (!rc && n > 1)
        rc = es_eval_ratios(rows, part[0], (const char *const *)part + 1, n - 1, seed, &ratios, err);
    if (!rc && a->plot) {
        rc = es_eval_svg(rows, &svg, err);
        rc = rc ? rc : es_file_write(a->plot, svg.data, svg.len, err);
    }
    if (!rc && !the_app.json) {
        rc = es_eval_table(rows, &text, err);
        if (!rc && ratios)
            rc = es_eval_ratios_text(ratios, &text, err);
        if (!rc && the_app.tty_out && the_app.unicode) {
            es_buf_str(&text, "\n");
            rc = es_eval_braille(rows, 60, 14, &text, err);
        }
    }
    int code;
    if (rc)
        code = app_fail(err);
    else if (the_app.json) {
        code = app_print_json(json_pack("{s:o,s:o}", "rows", rows, "ratios", ratios ? ratios : json_array()));
        rows = ratios = NULL;
    } else {
        fputs(text.data ? text.data : "", stdout);
        code = app_flush();
    }
    free(part[0]);
    json_decref(rows);
    json_decref(ratios);
    es_buf_free(&text);
    es_buf_free(&svg);
    return code;
}

int eval_adapt(int argc, char **argv)
{
    asked a = {0};
    es_eval_options o = es_eval_default();
    es_task_split split = {40, 16, 1};
    const char *grid_name = NULL;
    int choice_items = 24;
    bool table_only = false, tokens_given = false, chat_given = false, prompt_given = false, reply_given = false, behaviour_given = false, orders_given = false;
    const opt table[] = {
        {"task", "T,T", OPT_TEXT, &a.tasks, 0, 0, "tasks: brevity politeness directness formality typehints snakecase guards, or JSONL files of pairs", NULL},
        {"methods", "M,M", OPT_TEXT, &a.methods, 0, 0, "none context titans self lora full distil features free bias random; LABEL=METHOD for one under other options", NULL},
        {"set", "M.OPTION=V", OPT_TEXTS, &a.set, 0, 0, "an option of a method, such as lora.rate=1e-4,3e-4 or features.basis_size=64, of all.batch=4; may be given again", NULL},
        {"experiences", "N,N", OPT_LIST, &a.sizes, 1, 100000, "pairs to learn from (default 8,32)", NULL},
        {"garbage", "SHARE,SHARE", OPT_TEXT, &a.garbage, 0, 0, "shares of them made garbage (default 0)", NULL},
        {"garbage-kind", "KIND,KIND", OPT_TEXT, &a.kinds, 0, 0, "swap, shuffle, off-topic (default swap)", NULL},
        {"orders", "N", OPT_INT, &o.orders, 1, 100, "draws of the pairs (default 3)", &orders_given},
        {"grid", "NAME", OPT_TEXT, &grid_name, 0, 0, "published, few, selection: tasks, methods, sizes and garbage of what docs/results.md shows; whole: of everything", NULL},
        {"work", "FILE", OPT_TEXT, &a.work, 0, 0, "where finished runs are kept; the same command goes on with it (default: in the home folder's eval/, named after the command)", NULL},
        {"table", NULL, OPT_FLAG, &table_only, 0, 0, "run nothing: show what the work file holds", NULL},
        {"plot", "FILE.svg", OPT_TEXT, &a.plot, 0, 0, "draw margin against sqrt(KL) and against experiences", NULL},
        {"compare", "M,M", OPT_TEXT, &a.compare, 0, 0, "methods whose harm is read at the margin they all reach; the first against the best of the others (default features,lora,full)", NULL},
        {"at", "N,N", OPT_LIST, &a.at, 1, 100000, "steps after which a path is measured; the last is the most (default 2,4,8)", NULL},
        {"harm", "KL", OPT_REAL, &o.harm, 0, 100, "a stop is chosen among points whose KL on dev is at most this (default 0.02)", NULL},
        {"sweep-tasks", "T,T", OPT_TEXT, &a.sweep, 0, 0, "choose rates and stops over these tasks together (default: each task for itself)", NULL},
        {"basis-pairs", "N", OPT_INT, &a.basis_pairs, 0, 100000, "features, bias: choose the basis beforehand on so many other pairs", NULL},
        {"signs", NULL, OPT_FLAG, &a.signs, 0, 0, "with one-sided bounds", NULL},
        {"neutral", "FILE", OPT_TEXT, &a.neutral, 0, 0, "text that should stay as it is: .jsonl with \"text\", or \"messages\" and \"reply\" (default: what comes with the program)", NULL},
        {"neutral-tokens", "N", OPT_INT, &o.raw_tokens, 3, 1000000, "of documents (default 1500)", &tokens_given},
        {"chat-tokens", "N", OPT_INT, &o.chat_tokens, 0, 1000000, "of assistant turns (default 1000)", &chat_given},
        {"choices", "N", OPT_INT, &choice_items, 0, 100000, "items of each multiple-choice set at the end of a run (default 24; 0: none)", NULL},
        {"choice-orders", "N", OPT_INT, &o.choice_orders, 0, 100, "in so many orders (default 1)", NULL},
        {"choice-file", "FILE", OPT_TEXT, &a.choices, 0, 0, ".jsonl with \"set\", \"begin\", \"options\", \"right\" (default: what comes with the program)", NULL},
        {"behaviour", "N", OPT_INT, &o.behaviour_replies, 0, 1000, "replies generated at the end of a run (default 10; 0: none)", NULL},
        {"behaviour-orders", "N", OPT_INT, &o.behaviour_orders, 0, 100, "in so many orders (default 3)", &behaviour_given},
        {"behaviour-tokens", "N", OPT_INT, &o.behaviour_tokens, 1, 2000, "of a reply (default 48)", NULL},
        {"max-reply", "N", OPT_INT, &o.max_reply, 1, 65536, "tokens of a measured reply (default 64)", &reply_given},
        {"max-prompt", "N", OPT_INT, &o.max_prompt, 1, 65536, "tokens of a prompt that are kept (default 64)", &prompt_given},
        {"held-out", "N", OPT_INT, &split.held_out, 1, 100000, "pairs held out of a file that names no sets (default 40)", NULL},
        {"dev", "N", OPT_INT, &split.dev, 1, 100000, "and kept to choose on (default 16)", NULL},
        {"teacher", "FILE.gguf", OPT_TEXT, &a.teacher, 0, 0, "distil: a second model with the same tokenizer (default: the model itself with the experiences in its context)", NULL},
        {"data", "DIR", OPT_TEXT, &the_app.data_option, 0, 0, "folder whose tasks/ holds tasks that cannot come with the program (default: ESPALIER_DATA)", NULL},
        {"seed", "S", OPT_COUNT, &o.seed, 0, 1e12, "of splits and draws (default 1)", NULL},
        {0},
    };
    static const command_help help = {
        "eval adapt", "--task T,T --methods M,M",
        "Adapts to the same experiences in several ways, several orders and sizes, with some of the experiences made garbage, and measures each along\n"
        "its path: the margin between preferred and rejected replies on held-out pairs; KL and change of log-likelihood on documents, assistant turns and\n"
        "off-domain pairs; at its end replies of its own and multiple-choice items. Rates and numbers of steps are chosen on dev pairs. Each finished\n"
        "run is a line of the work file: stop it and start it again as you like. Prints tables with intervals; --json: {\"rows\":[...],\"ratios\":[...]}.",
        "  espalier eval adapt --task politeness --methods none,features,lora --experiences 8 --orders 1 --json\n"
        "  espalier eval adapt --task pairs.jsonl --methods features,lora8=lora --set lora8.rank=8 --set features.rate=0.001,0.002 --work w.jsonl\n"
        "  espalier eval adapt --grid published --work published.jsonl --plot results.svg", 0, 0};
    int n;
    char words[65], usual[4096];
    eval_work_words(argc, argv, words);
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    const struct grid *grid = NULL;
    for (int i = 0; grid_name && GRIDS[i].name; i++)
        grid = !strcmp(GRIDS[i].name, grid_name) ? &GRIDS[i] : grid;
    if (grid_name && !grid)
        return opts_usage_error("eval adapt", "--grid: there is no %s (published, few, selection, whole)", grid_name);
    if ((!table_only || !a.work) && !grid && (!a.tasks || !a.methods))
        return opts_usage_error("eval adapt", "--%s is missing", !a.tasks ? "task" : "methods");
    if (a.sizes.n > ES_EVAL_SIZES || a.at.n > ES_EVAL_POINTS)
        return opts_usage_error("eval adapt", "--%s: at most %d", a.at.n > ES_EVAL_POINTS ? "at" : "experiences", (int)ES_EVAL_SIZES);
    if (grid) { /* what the command line leaves open */
        o.raw_tokens = tokens_given ? o.raw_tokens : grid->raw_tokens;
        o.chat_tokens = chat_given ? o.chat_tokens : grid->chat_tokens;
        o.max_prompt = prompt_given ? o.max_prompt : grid->max_prompt;
        o.max_reply = reply_given ? o.max_reply : grid->max_reply;
        o.behaviour_orders = behaviour_given ? o.behaviour_orders : grid->behaviour_orders;
        a.sweep = a.sweep ? a.sweep : grid->sweep;
        a.batch = grid->batch;
        o.reserve = GRID_RESERVE;
        o.n_at = 0;
        for (const char *s = grid->at; *s; s += strcspn(s, ","), s += *s == ',')
            o.at[o.n_at++] = atoi(s);
    }
    for (int i = 0; i < a.sizes.n; i++)
        o.size[i] = a.sizes.value[i];
    o.n_size = a.sizes.n ? a.sizes.n : o.n_size;
    for (int i = 0; i < a.at.n; i++)
        o.at[i] = a.at.value[i];
    o.n_at = a.at.n ? a.at.n : o.n_at;
    o.threads = the_app.threads;
    es_error err = {0};
    if (!a.work && eval_work_usual("adapt", words, usual, sizeof usual, &err))
        return app_fail(&err);
    a.work = o.work = a.work ? a.work : usual;
    split.seed = o.seed;
    if (table_only)
        return report(&a, o.seed, &err);

    es_model *m = NULL;
    app_features f = {0};
    es_neutral_texts texts = {0};
    choices items = {.keep = json_array(), .each = choice_items};
    rc = es_neutral_load(&texts, a.neutral ? a.neutral : APP_NEUTRAL, &err);
    if (!rc && choice_items > 0)
        rc = es_jsonl_each(a.choices ? a.choices : ESPALIER_SHARE "/tasks/choices.jsonl", choice_line, &items, &err);
    rc = rc ? rc : app_model(&m, &err);
    if (!rc) {
        rc = app_features_open(&f, m, &err);
        if (rc == ES_ERR_MISSING) /* methods that need one say so */
            rc = ES_OK;
    }
    if (!rc && a.teacher)
        rc = es_model_open(&o.teacher, a.teacher, &err);
    if (!rc && a.teacher)
        rc = app_on_device(o.teacher, &err);
    o.neutral = texts.item;
    o.n_neutral = texts.n;
    o.choice = items.item;
    o.n_choice = items.n;
    for (int i = 0; i < o.n_size; i++)
        o.choice_size = o.size[i] > o.choice_size ? o.size[i] : o.choice_size;
    if (!rc && !grid)
        rc = pass(m, &f, &a, &o, &split, a.tasks, a.methods, a.garbage ? a.garbage : "0", a.kinds ? a.kinds : "swap", true, &err);
    for (int i = 0; !rc && grid && i < GRID_PARTS && grid->part[i].tasks; i++) {
        opt_ints sizes = a.sizes;
        if (!sizes.n) {
            es_eval_options *p = &o;
            p->n_size = 0;
            for (const char *s = grid->part[i].sizes; *s; s += strcspn(s, ","), s += *s == ',')
                p->size[p->n_size++] = atoi(s);
            o.choice_size = p->size[p->n_size - 1];
        }
        o.orders = orders_given ? o.orders : grid->part[i].orders;
        rc = pass(m, &f, &a, &o, &split, a.tasks ? a.tasks : grid->part[i].tasks, a.methods ? a.methods : grid->part[i].methods,
                  a.garbage ? a.garbage : grid->part[i].garbage, a.kinds ? a.kinds : grid->part[i].kinds, false, &err);
    }
    int code = rc ? app_fail(&err) : report(&a, o.seed, &err);
    free(items.item);
    json_decref(items.keep);
    es_neutral_texts_free(&texts);
    app_features_close(&f);
    es_model_free(o.teacher);
    es_model_free(m);
    return code;
}
