/* eval adapt: methods of adaptation on the same pairs, with their harm at equal effect. */
#include "app.h"
#include "cmd_eval_adapt.h"
#include "compare.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "0.003,0.006" into rates; 0 alone leaves the method out. */
static bool parse_rates(const char *text, double *rate, bool *use)
{
    memset(rate, 0, ES_COMPARE_RATES * sizeof *rate);
    for (int n = 0;; n++) {
        char *end;
        double v = strtod(text, &end);
        if (n >= ES_COMPARE_RATES || end == text || !(v >= 0 && v <= 10) || (*end && *end != ','))
            return false;
        rate[n] = v;
        if (!*end)
            break;
        text = end + 1;
    }
    *use = rate[0] > 0;
    return true;
}

int eval_adapt(int argc, char **argv)
{
    es_compare_options o = {0};
    const char *pairs = NULL, *neutral = NULL, *task = NULL, *work = NULL, *rates[ES_N_METHODS] = {0};
    opt_ints sizes = {0};
    int orders = 0, held_out = 0, dev = 0, steps = 0, every = 0, batch = 0, features = 0, rank = 0, basis_pairs = 0, first = -1, last = -1, reply = 0,
        prompt = 0, neutral_tokens = 0;
    uint64_t seed = 0;
    const opt table[] = {
        {"pairs", "E.jsonl", OPT_TEXT, &pairs, 0, 0, "experiences with both replies; tools/make_pairs.py makes some", NULL},
        {"neutral", "FILE", OPT_TEXT, &neutral, 0, 0, "text that should stay as it is: .jsonl with \"text\"", NULL},
        {"work", "FILE", OPT_TEXT, &work, 0, 0, "where finished runs are kept; the same command goes on with it", NULL},
        {"task", "NAME", OPT_TEXT, &task, 0, 0, "what the rows are called (default: the pairs' file)", NULL},
        {"sizes", "N,N", OPT_LIST, &sizes, 1, 100000, "pairs to learn from (default 8,32)", NULL},
        {"orders", "N", OPT_INT, &orders, 1, 100, "draws of those pairs (default 3)", NULL},
        {"held-out", "N", OPT_INT, &held_out, 1, 100000, "pairs the margin is measured on (default 40)", NULL},
        {"dev", "N", OPT_INT, &dev, 1, 100000, "pairs the rates are chosen on (default 16)", NULL},
        {"steps", "N", OPT_INT, &steps, 1, 100000, "learning steps (default 12)", NULL},
        {"every", "N", OPT_INT, &every, 1, 100000, "steps from one point of the path to the next (default 6)", NULL},
        {"batch", "N", OPT_INT, &batch, 1, 100000, "pairs in a step (default 8)", NULL},
        {"size", "K", OPT_INT, &features, 1, 65536, "features in a basis (default 256)", NULL},
        {"basis-pairs", "N", OPT_INT, &basis_pairs, 1, 100000, "choose the basis on so many other pairs, not on those learned from", NULL},
        {"rank", "R", OPT_INT, &rank, 1, 1024, "rank of the low-rank updates (default 8)", NULL},
        {"first-layer", "L", OPT_INT, &first, 0, 1000, "of the adapted band (default: the dictionary's)", NULL},
        {"last-layer", "L", OPT_INT, &last, 0, 1000, "(default: the last)", NULL},
        {"max-reply", "N", OPT_INT, &reply, 1, 65536, "tokens of a reply that count (default 48)", NULL},
        {"max-prompt", "N", OPT_INT, &prompt, 1, 65536, "tokens of a prompt that are kept (default 64)", NULL},
        {"neutral-tokens", "N", OPT_INT, &neutral_tokens, 1, 1000000, "of neutral text (default 3000)", NULL},
        {"garbage", "SHARE", OPT_REAL, &o.garbage, 0, 1, "swap the replies of this share of the pairs", NULL},
        {"seed", "S", OPT_COUNT, &seed, 0, 9e15, "of the split and the draws (default 1)", NULL},
        {"features-rate", "R,R", OPT_TEXT, &rates[ES_METHOD_FEATURES], 0, 0, "learning rates to choose from on dev; 0 leaves the method out", NULL},
        {"lora-rate", "R,R", OPT_TEXT, &rates[ES_METHOD_LORA], 0, 0, "the same", NULL},
        {"random-rate", "R,R", OPT_TEXT, &rates[ES_METHOD_RANDOM], 0, 0, "the same", NULL},
        {"bias-rate", "R,R", OPT_TEXT, &rates[ES_METHOD_BIAS], 0, 0, "the same", NULL},
        {0},
    };
    static const command_help help = {
        "eval adapt", "--pairs E.jsonl --neutral FILE --work FILE",
        "Adapts to the same pairs in four ways and measures each along its path: margin on held-out pairs, KL and change of log-likelihood on\n"
        "neutral text. features: low-rank updates within a basis chosen by the pairs' gradient; lora: the same matrices, free; random: within as\n"
        "many random features; bias: a vector within the basis. Prints a table (--json: one object a run); harm is also given where the paths of the\n"
        "first three have the same margin. Each finished run is a line of the work file: stop it and start it again as you like.",
        "  tools/make_pairs.py bluntness polite_vs_impolite_pairs.jsonl > bluntness.jsonl\n"
        "  espalier eval adapt --pairs bluntness.jsonl --neutral general.dev.jsonl --work bluntness.work.jsonl", 0, 0};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (!pairs || !neutral || !work)
        return opts_usage_error("eval adapt", "--%s is missing", !pairs ? "pairs" : !neutral ? "neutral" : "work");
    if (sizes.n > ES_COMPARE_SIZES)
        return opts_usage_error("eval adapt", "--sizes: at most %d", (int)ES_COMPARE_SIZES);
    es_error err = {0};
    es_model *m = NULL;
    app_features f = {0};
    es_experiences e = {0};
    app_texts texts = {.limit = 400};
    json_t *rows = NULL;
    es_buf text = {0};
    int code = -1;
    rc = app_texts_read(&texts, neutral, false, &err);
    rc = rc ? rc : es_experiences_load(&e, pairs, &err);
    rc = rc ? rc : app_model(&m, &err);
    rc = rc ? rc : app_features_open(&f, m, &err);
    if (!rc) {
        double garbage = o.garbage;
        o = es_compare_default(f.dictionary, m);
        o.garbage = garbage;
        for (int i = 0; i < ES_N_METHODS && code < 0; i++)
            if (rates[i] && !parse_rates(rates[i], o.rate[i], &o.method[i]))
                code = opts_usage_error("eval adapt", "--%s-rate: \"%s\" is no list of at most %d rates", es_compare_method_name((es_method)i), rates[i],
                                        (int)ES_COMPARE_RATES);
        const char *slash = strrchr(pairs, '/');
        char name[128];
        snprintf(name, sizeof name, "%s", task ? task : slash ? slash + 1 : pairs);
        if (!task && strrchr(name, '.') > name)
            *strrchr(name, '.') = 0;
        o.task = name;
        o.pairs = &e;
        o.neutral = (const char *const *)texts.text;
        o.n_neutral = texts.n;
        o.work = work;
        o.threads = the_app.threads;
        o.orders = orders ? orders : o.orders;
        o.held_out = held_out ? held_out : o.held_out;
        o.dev = dev ? dev : o.dev;
        o.steps = steps ? steps : o.steps;
        o.every = every ? every : o.every;
        o.batch = batch ? batch : o.batch;
        o.basis_size = features ? features : o.basis_size;
        o.basis_pairs = basis_pairs;
        o.rank = rank ? rank : o.rank;
        o.first_layer = first >= 0 ? first : o.first_layer;
        o.last_layer = last >= 0 ? last : o.last_layer;
        o.max_reply = reply ? reply : o.max_reply;
        o.max_prompt = prompt ? prompt : o.max_prompt;
        o.neutral_tokens = neutral_tokens ? neutral_tokens : o.neutral_tokens;
        o.seed = seed ? seed : o.seed;
        if (sizes.n) {
            o.n_size = sizes.n;
            for (int i = 0; i < sizes.n; i++)
                o.size[i] = sizes.value[i];
        }
        es_progress progress = app_progress();
        if (code < 0)
            rc = es_compare_run(m, f.dictionary, f.atlas, &o, &progress, &err);
        app_progress_end();
    }
    if (!rc && code < 0)
        rc = es_compare_rows(work, &rows, &err);
    if (!rc && code < 0 && !the_app.json)
        rc = es_compare_text(rows, &text, &err);
    if (code < 0) {
        if (rc != ES_OK) {
            code = app_fail(&err);
        } else if (the_app.json) {
            code = app_print_json(rows);
            rows = NULL;
        } else {
            fputs(text.data ? text.data : "", stdout);
            code = app_flush();
        }
    }
    es_buf_free(&text);
    json_decref(rows);
    es_experiences_free(&e);
    app_texts_free(&texts);
    app_features_close(&f);
    es_model_free(m);
    return code;
}
