/* dictionary evaluate: everything that is measured of a dictionary, in one table. */
#include "app.h"
#include "cmd_eval.h"
#include "dictionary_eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TASKS = 16 };
static const char USUAL_TASKS[] = "brevity,politeness,directness,formality,typehints,snakecase,guards";

/* ---- the table ------------------------------------------------------------------------------------------------------------------------ */

static double number(json_t *v, const char *name)
{
    json_t *x = json_object_get(v, name);
    return json_is_number(x) ? json_number_value(x) : NAN;
}

static const char *text_of(json_t *v, const char *name, char out[300])
{
    const char *s = json_string_value(json_object_get(v, name));
    return app_shown(s ? s : "", out, 300);
}

/* true, after saying so: the part was not measured. */
static bool was_skipped(json_t *v, const char *what)
{
    char a[300];
    if (!json_object_get(v, "skipped"))
        return false;
    printf("%s not measured: %s\n", what, text_of(v, "skipped", a));
    return true;
}

static void print_stats(json_t *v)
{
    printf("On %lld tokens: fvu %.4f, l0 %.2f, dead %.2f %%, dense %.2f %%, mean cosine %.4f, cross-entropy recovered %.2f %%\n",
           (long long)json_integer_value(json_object_get(v, "tokens")), number(v, "fvu"), number(v, "l0"), 100 * number(v, "dead"), 100 * number(v, "dense"),
           number(v, "mean_cosine"), 100 * number(v, "recovered"));
}

static void print_cosines(json_t *v)
{
    json_t *histogram = json_object_get(v, "histogram"), *bin;
    size_t i;
    double most = 1;
    printf("\nDecoder rows, cosine with the nearest: mean %.3f, median %.3f, 95 %% %.3f, 99 %% %.3f; above 0.9: %.2f %% of %d\n", number(v, "mean"), number(v, "median"),
           number(v, "p95"), number(v, "p99"), 100 * number(v, "over_0.9"), (int)number(v, "features"));
    json_array_foreach(histogram, i, bin)
        most = fmax(most, json_number_value(bin));
    json_array_foreach(histogram, i, bin)
        if (json_number_value(bin) > 0)
            printf("  %.2f %6.0f %.*s\n", (double)i / ES_COSINE_BINS, json_number_value(bin), (int)(40 * json_number_value(bin) / most),
                   "########################################");
}

static void print_probes(json_t *v)
{
    json_t *row, *sets = json_object_get(v, "sets"), *mean = json_object_get(v, "mean");
    size_t i;
    char a[300];
    printf("\nProbes, accuracy on test         concepts   k 1     2       5       residual\n");
    json_array_foreach(sets, i, row)
        if (!was_skipped(row, text_of(row, "set", a)))
            printf("  %-30.30s %8zu   %.3f   %.3f   %.3f   %.3f\n", text_of(row, "set", a), json_array_size(json_object_get(row, "concepts")), number(row, "k1"),
                   number(row, "k2"), number(row, "k5"), number(row, "dense"));
    printf("  %-30s %8s   %.3f   %.3f   %.3f   %.3f\n", "mean of the sets", "", number(mean, "k1"), number(mean, "k2"), number(mean, "k5"), number(mean, "dense"));
}

static void print_absorption(json_t *v)
{
    json_t *row, *letters = json_object_get(v, "letters"), *f;
    size_t i, k;
    char a[300];
    putchar('\n');
    if (was_skipped(v, "Absorption"))
        return;
    printf("Absorption on first letters: fraction %.3f, full %.3f; F1 of the residual's probe %.3f, of the main features' %.3f\n", number(v, "fraction"), number(v, "full"),
           number(v, "dense_f1"), number(v, "sparse_f1"));
    json_array_foreach(letters, i, row) {
        printf("  %s  fraction %.3f  full %.3f  F1 %.2f %.2f  main", text_of(row, "letter", a), number(row, "fraction"), number(row, "full"), number(row, "dense_f1"),
               number(row, "sparse_f1"));
        json_array_foreach(json_object_get(row, "main"), k, f)
            printf(" %lld", (long long)json_integer_value(f));
        putchar('\n');
    }
}

static void print_steering(json_t *v)
{
    json_t *task, *way, *point;
    size_t i, j, k;
    char a[300];
    printf("\nSteering, held-out pairs          strength  margin  +-     pairs up  KL      degenerate\n");
    json_array_foreach(v, i, task)
        json_array_foreach(json_object_get(task, "ways"), j, way) {
            double strength = number(way, "strength"), kl = NAN, bad = NAN;
            json_array_foreach(json_object_get(way, "points"), k, point)
                if (number(point, "strength") == strength) {
                    kl = number(point, "kl");
                    bad = number(point, "degenerate");
                }
            printf("  %-18.18s ", text_of(task, "task", a));
            if (isnan(strength))
                printf("%-10.10s   no strength was allowed and of use\n", text_of(way, "way", a));
            else
                printf("%-10.10s   %.3f     %6.3f  %.3f  %5.0f %%   %.4f  %3.0f %%\n", text_of(way, "way", a), strength, number(way, "margin"), number(way, "se"),
                       100 * number(way, "success"), kl, 100 * bad);
        }
}

static int print_all(json_t *v)
{
    static const struct { const char *part; void (*print)(json_t *); } TABLE[] = {
        {"stats", print_stats}, {"cosines", print_cosines}, {"probes", print_probes}, {"absorption", print_absorption}, {"steering", print_steering},
    };
    for (size_t i = 0; i < sizeof TABLE / sizeof *TABLE; i++)
        if (json_object_get(v, TABLE[i].part))
            TABLE[i].print(json_object_get(v, TABLE[i].part));
    json_decref(v);
    return app_flush();
}

/* ---- the command ------------------------------------------------------------------------------------------------------------------------- */

/* "stats,probes" as bits; 0: a word is none of them. */
static unsigned parts_of(const char *text)
{
    unsigned bits = 0;
    char word[32];
    for (const char *s = text; *s; s += strcspn(s, ","), s += *s == ',') {
        snprintf(word, sizeof word, "%.*s", (int)strcspn(s, ",") < 31 ? (int)strcspn(s, ",") : 31, s);
        int part = es_dictionary_eval_part(word);
        if (!part)
            return 0;
        bits |= (unsigned)part;
    }
    return bits;
}

static int open_tasks(const char *names, es_task *task, int *n, es_error *err)
{
    es_task_split split = {40, 16, 1};
    char name[1100];
    int rc = ES_OK;
    for (const char *s = names; *s && !rc; s += strcspn(s, ","), s += *s == ',') {
        if (*n == MAX_TASKS)
            return es_fail(err, ES_ERR_USAGE, "--task: at most %d tasks", (int)MAX_TASKS);
        snprintf(name, sizeof name, "%.*s", (int)strcspn(s, ","), s);
        rc = eval_task_open(&task[*n], name, &split, err);
        *n += !rc;
    }
    return rc;
}

static const char WHAT[] =
    "Everything that tells what a dictionary is worth, part by part (--parts). What is finished is kept in the work file, and the same\n"
    "command goes on from there. FILE...: held-out texts for stats, as dictionary stats takes them; without any, stats is left out.\n"
    "\n"
    "  stats       fvu, l0, dead and dense share, cross-entropy recovered, as dictionary stats has them\n"
    "  cosines     of each decoder row with its nearest neighbour's: mean, quantiles, histogram of 20 bins from 0 to 1\n"
    "  probes      concept sets of the data folder's concepts/ (and --concepts FILE): features are picked by difference of means on train,\n"
    "              a logistic probe on the best 1, 2 and 5 of them gives accuracy on test, beside one on the whole residual (\"dense\").\n"
    "              Activations are means over a text's first 128 tokens; as many texts with the concept as without it: a coin has 0.5\n"
    "  absorption  first letters of the vocabulary's own words: probes on the residual, the main features of each letter, and where the\n"
    "              main ones miss a word that the probe knows, how much of its projection other features have (fraction), and how often\n"
    "              a single one has (full); SAEBench's two scores, lower is better\n"
    "  steering    behaviour tasks: decoder rows added to the residual. way: the best \"feature\", 8 \"features\", 8 at \"random\", or the loss\n"
    "              \"gradient\" itself; strength (share of the residual's length) is chosen on dev pairs among those under --kl and without\n"
    "              degenerate replies; margin, its standard error and the share of pairs that rose (success) are of held-out pairs\n"
    "\n"
    "--concepts: JSONL of {\"text\":...,\"label\":... or null}, perhaps with \"set\" \"train\" or \"test\"; each label is a concept.\n"
    "--json: {\"dictionary\":{name,hash,features,layer}, \"stats\":{tokens,fvu,l0,dead,dense,mean_cosine,ce,ce_patched,ce_zero,recovered},\n"
    "\"cosines\":{features,mean,median,p95,p99,over_0.9,histogram}, \"probes\":{mean:{k1,k2,k5,dense}, sets:[{set,texts,k1,k2,k5,dense,\n"
    "concepts:[{concept,train,test,k1,k2,k5,dense,features}]}]}, \"absorption\":{fraction,full,dense_f1,sparse_f1,letters:[{letter,train,test,\n"
    "positives,dense_f1,sparse_f1,main,fraction,full,absorber}]}, \"steering\":[{task,train,dev,held,median_length,degenerate_base,\n"
    "ways:[{way,features,weights,strength,margin,se,success,points:[{strength,dev_margin,kl,degenerate,allowed}]}]}]}; what lacks its data\n"
    "has {skipped:why}. A work file has a line {\"is\":\"dictionary\",\"part\":...,\"key\":...,\"value\":...} for each piece, value as above.";

int dictionary_evaluate(int argc, char **argv)
{
    es_dictionary_eval o = es_dictionary_eval_default();
    const char *parts = NULL, *tasks = USUAL_TASKS, *work = NULL;
    opt_texts concepts = {0};
    char words[65], usual[4096], data[1100];
    const opt table[] = {
        {"parts", "P,P", OPT_TEXT, &parts, 0, 0, "stats, cosines, probes, absorption, steering (default: all)", NULL},
        {"tokens", "N", OPT_COUNT, &o.tokens, 100, 1e10, "stats: tokens to measure on (default 20k)", NULL},
        {"sample", "N", OPT_INT, &o.sample, 1, 1 << 20, "cosines: features to look at, each against all (default 16384)", NULL},
        {"concepts", "FILE", OPT_TEXTS, &concepts, 0, 0, "probes: a concept set of one's own; may be given again", NULL},
        {"texts", "N", OPT_INT, &o.texts, 40, 1 << 20, "probes: texts of a set, at most (default 1000)", NULL},
        {"words", "N", OPT_INT, &o.words, 200, 1 << 20, "absorption: words, at most (default 4000)", NULL},
        {"task", "T,T", OPT_TEXT, &tasks, 0, 0, "steering: tasks or files of pairs, as eval adapt takes them (default: the seven that come with it)", NULL},
        {"kl", "X", OPT_REAL, &o.steer.kl, 0, 100, "steering: the most KL on neutral text, nats a token (default 0.1)", NULL},
        {"replies", "N", OPT_INT, &o.steer.replies, 0, 1000, "steering: replies looked at for degeneration (default 8)", NULL},
        {"work", "FILE", OPT_TEXT, &work, 0, 0, "keep finished pieces here (default: in the home folder's eval/, by the command's words)", NULL},
        {"seed", "S", OPT_COUNT, &o.seed, 0, 1.8e19, "which texts, words and random features (default 1)", NULL},
        {"data", "DIR", OPT_TEXT, &the_app.data_option, 0, 0, "folder of public data, whose concepts/ has the sets (default: ESPALIER_DATA)", NULL},
        {0},
    };
    static const command_help help = {
        "dictionary evaluate", "FOLDER [FILE...]", WHAT,
        "  espalier dictionary evaluate dictionary-l15 held-out.jsonl --data DATA\n"
        "  espalier dictionary evaluate dictionary-l15 --parts probes,absorption --data DATA --json", 1, -1};
    eval_work_words(argc, argv, words);
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    o.n_file = n - 1;
    o.file = (const char *const *)argv + 2;
    if (parts && !(o.parts = parts_of(parts)))
        return opts_usage_error("dictionary evaluate", "--parts: stats, cosines, probes, absorption, steering, with commas");
    if ((o.parts & ES_PART_STATS) && o.n_file < 1) {
        if (parts)
            return opts_usage_error("dictionary evaluate", "stats needs a FILE of held-out texts");
        o.parts &= ~(unsigned)ES_PART_STATS;
    }
    o.threads = the_app.threads;
    o.data = app_data(data, sizeof data) ? data : NULL;
    o.concepts = concepts.value;
    o.n_concepts = concepts.n;

    es_error err = {0};
    es_model *m = NULL;
    es_dictionary *s = NULL;
    es_neutral_texts texts = {0};
    es_task *task = es_calloc(MAX_TASKS, sizeof *task);
    es_progress progress = app_progress();
    json_t *out = NULL;
    int n_task = 0;
    if (!task)
        return app_failf("not enough memory for the tasks");
    rc = !work ? eval_work_usual("dictionary", words, usual, sizeof usual, &err) : ES_OK;
    o.work = work ? work : usual;
    if (!rc && (o.parts & ES_PART_STEERING)) {
        rc = open_tasks(tasks, task, &n_task, &err);
        rc = rc ? rc : es_neutral_load(&texts, APP_NEUTRAL, &err);
    }
    rc = rc ? rc : app_model(&m, &err);
    rc = rc ? rc : es_dictionary_open_with(&s, argv[1], &(es_dictionary_options){.card = es_model_card(m)}, &err);
    o.task = task;
    o.n_task = n_task;
    o.steer.neutral = texts.item;
    o.steer.n_neutral = texts.n;
    rc = rc ? rc : es_dictionary_evaluate(m, s, &o, &progress, &out, &err);
    app_progress_end();
    for (int i = 0; i < n_task; i++)
        es_task_free(&task[i]);
    free(task);
    es_neutral_texts_free(&texts);
    es_dictionary_free(s);
    es_model_free(m);
    if (rc)
        return app_fail(&err);
    return the_app.json ? app_print_json(out) : print_all(out);
}
