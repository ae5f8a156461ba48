/* eval: what an adapter gains on pairs, and what it does to other text. */
#include "app.h"
#include "fires.h"
#include "cmd_eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Options that change nothing of what is measured, and whether a value follows. */
static bool only_shown(const char *word, bool *value)
{
    static const char *const FLAG[] = {"--json", "--quiet", "--table"}, *const VALUE[] = {"--plot", "--compare", "--threads", "--memory", "--home"};
    *value = false;
    for (size_t i = 0; i < sizeof FLAG / sizeof *FLAG; i++)
        if (!strcmp(word, FLAG[i]))
            return true;
    for (size_t i = 0; i < sizeof VALUE / sizeof *VALUE; i++) {
        size_t n = strlen(VALUE[i]);
        if (!strncmp(word, VALUE[i], n) && (!word[n] || word[n] == '=')) {
            *value = !word[n];
            return true;
        }
    }
    return false;
}

void eval_work_words(int argc, char **argv, char hash[65])
{
    es_buf words = {0};
    for (int i = 1; i < argc; i++) {
        bool value;
        if (only_shown(argv[i], &value))
            i += value;
        else
            es_buf_printf(&words, "%s\n", argv[i]);
    }
    es_sha256_bytes(hash, words.data ? words.data : "", words.len);
    es_buf_free(&words);
}

int eval_work_usual(const char *what, const char hash[65], char *out, size_t size, es_error *err)
{
    char folder[4096];
    app_path(folder, sizeof folder, "eval");
    app_path(out, size, "eval/%s-%.12s.jsonl", what, hash);
    int rc = es_dir_make(folder, err);
    if (!rc && !the_app.quiet)
        fprintf(stderr, "Finished runs are kept in %s: the same command goes on with them.\n", out);
    return rc;
}

static int eval_margin(int argc, char **argv)
{
    const char *experiences = NULL, *adapter_path = NULL;
    int max_reply = 0;
    bool each = false;
    const opt table[] = {
        {"experiences", "E.jsonl", OPT_TEXT, &experiences, 0, 0, "pairs: experiences with both replies", NULL},
        {"adapter", "FILE", OPT_TEXT, &adapter_path, 0, 0, "with this adapter", NULL},
        {"max-reply", "N", OPT_INT, &max_reply, 1, 100000, "tokens of a reply that count (default 512)", NULL},
        {"each", NULL, OPT_FLAG, &each, 0, 0, "with --json: every pair's margin as well", NULL},
        {0},
    };
    static const command_help help = {
        "eval margin", "--experiences E.jsonl",
        "The mean over pairs of the preferred reply's mean log-probability a token minus the rejected one's.\n"
        "With --json: {\"margin\",\"preferred\",\"rejected\",\"pairs\"}.",
        "  espalier eval margin --experiences held-out.jsonl\n  espalier eval margin --experiences held-out.jsonl --adapter brief.safetensors --json", 0, 0};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (!experiences)
        return opts_usage_error("eval margin", "--experiences E.jsonl is missing");
    es_error err = {0};
    es_model *m = NULL;
    app_features f = {0};
    es_adapter *adapter = NULL;
    es_patch patch;
    es_experiences e = {0};
    es_margin r = {0};
    double *per_pair = NULL;
    rc = app_model(&m, &err);
    if (rc == ES_OK && adapter_path)
        rc = app_adapter(&adapter, &f, m, adapter_path, &err);
    if (rc == ES_OK && adapter)
        rc = es_adapter_patch(adapter, 1, &patch, &err);
    if (rc == ES_OK)
        rc = es_experiences_load(&e, experiences, &err);
    if (rc == ES_OK && e.n == 0)
        rc = es_fail(&err, ES_ERR_FORMAT, "%s: holds no experiences", experiences);
    if (rc == ES_OK && !(per_pair = es_calloc((size_t)e.n, sizeof *per_pair)))
        rc = es_fail(&err, ES_ERR_MEMORY, "not enough memory");
    es_progress progress = app_progress();
    if (rc == ES_OK)
        rc = es_eval_margin(m, adapter ? &patch : NULL, &e, the_app.threads, max_reply, &r, per_pair, &progress, &err);
    app_progress_end();
    int code;
    if (rc != ES_OK) {
        code = app_fail(&err);
    } else if (the_app.json) {
        json_t *v = json_pack("{s:f,s:f,s:f,s:i}", "margin", r.margin, "preferred", r.preferred, "rejected", r.rejected, "pairs", r.pairs);
        if (each) {
            json_t *list = json_array();
            for (int i = 0; i < e.n; i++)
                json_array_append_new(list, isfinite(per_pair[i]) ? json_real(per_pair[i]) : json_null());
            json_object_set_new(v, "each", list);
        }
        code = app_print_json(v);
    } else {
        printf("margin     %+.4f nats a token over %d pairs\npreferred  %.4f\nrejected   %.4f\n", r.margin, r.pairs, r.preferred, r.rejected);
        code = app_flush();
    }
    free(per_pair);
    es_experiences_free(&e);
    es_adapter_free(adapter);
    app_features_close(&f);
    es_model_free(m);
    return code;
}

static int eval_neutral(int argc, char **argv)
{
    const char *adapter_path = NULL, *file = NULL;
    es_texts texts = {0};
    const opt table[] = {
        {"text", "FILE", OPT_TEXT, &file, 0, 0, "a text, or .jsonl with \"text\"; the first 256 tokens of each count", NULL},
        {"adapter", "FILE", OPT_TEXT, &adapter_path, 0, 0, "with this adapter", NULL},
        {"limit", "N", OPT_INT, &texts.limit, 0, 1000000, "the first N texts; 0: all", NULL},
        {0},
    };
    static const command_help help = {
        "eval neutral", "--text FILE",
        "What an adapter does to text it was not taught on: negative log-likelihood a token without and with it, and the mean KL from the\n"
        "base model over the vocabulary. With --json: {\"tokens\",\"nll_base\",\"nll\",\"kl\"}.",
        "  espalier eval neutral --text articles.jsonl --limit 40 --adapter brief.safetensors --json", 0, 0};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (!file)
        return opts_usage_error("eval neutral", "--text FILE is missing");
    es_error err = {0};
    es_model *m = NULL;
    app_features f = {0};
    es_adapter *adapter = NULL;
    es_patch patch;
    es_neutral r = {0};
    rc = es_texts_read(&texts, file, false, &err);
    if (rc == ES_OK)
        rc = app_model(&m, &err);
    if (rc == ES_OK && adapter_path)
        rc = app_adapter(&adapter, &f, m, adapter_path, &err);
    if (rc == ES_OK && adapter)
        rc = es_adapter_patch(adapter, 1, &patch, &err);
    es_progress progress = app_progress();
    if (rc == ES_OK)
        rc = es_eval_neutral(m, adapter ? &patch : NULL, (const char *const *)texts.text, texts.n, the_app.threads, &r, &progress, &err);
    app_progress_end();
    int code;
    if (rc != ES_OK) {
        code = app_fail(&err);
    } else if (the_app.json) {
        code = app_print_json(json_pack("{s:i,s:f,s:f,s:f}", "tokens", r.tokens, "nll_base", r.nll_base, "nll", r.nll, "kl", r.kl));
    } else {
        printf("tokens    %d\nnll       %.4f nats a token; base %.4f; change %+.4f\nKL        %.5f from the base\n", r.tokens, r.nll, r.nll_base,
               r.nll - r.nll_base, r.kl);
        code = app_flush();
    }
    es_texts_free(&texts);
    es_adapter_free(adapter);
    app_features_close(&f);
    es_model_free(m);
    return code;
}

int cmd_eval(int argc, char **argv)
{
    static const command table[] = {
        {"margin", "how much likelier preferred replies are than rejected ones", eval_margin},
        {"neutral", "what an adapter does to other text", eval_neutral},
        {"adapt", "methods of adaptation compared on the same experiences", eval_adapt},
        {"sequence", "traits learned one after another, and each undone", eval_sequence},
        {"readable", "whether a coefficient table tells which trait was trained", eval_readable},
        {0},
    };
    return app_subcommand("eval", "What an adapter gains and what it harms.", table, argc, argv);
}
