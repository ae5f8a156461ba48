/* chat: one answer on the command line, or the workbench. */
#include "generate.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PROMPT_LIMIT = 16 << 20 };

static void stream_out(const char *s, size_t n)
{
    app_print_text(s, n);
    fflush(stdout);
}

static json_t *reply_json(const reply *r)
{
    json_t *tokens = json_array();
    for (size_t i = 0; i < r->ids.n; i++)
        json_array_append_new(tokens, json_integer(r->ids.id[i]));
    double seconds = r->first + r->seconds;
    return json_pack("{s:o,s:I,s:o,s:I,s:s,s:f,s:f,s:f}", "text", app_json_text(r->text.data ? r->text.data : "", r->text.len), "tokens",
                     (json_int_t)r->ids.n, "ids", tokens, "prompt_tokens", (json_int_t)r->prompt_tokens, "stopped",
                     r->ended ? "end" : app_cancel ? "interrupt" : "limit", "seconds", seconds, "first_token_seconds", r->first,
                     "tokens_per_second", r->seconds > 0 ? (double)r->ids.n / r->seconds : 0.0);
}

typedef struct chat_options {
    const char *prompt, *system, *adapter;
    es_sampling sampling;
    int max_tokens, context;
    bool exact, temperature_given;
} chat_options;

static int one_answer(const chat_options *o)
{
    es_error err = {0};
    es_buf typed = {0};
    es_ids ids = {0};
    es_model *m = NULL;
    es_context *c = NULL;
    es_adapter *adapter = NULL;
    app_features f = {0};
    es_patch patch;
    reply r = {0};
    const char *prompt = o->prompt;
    int rc = ES_OK;
    if (!strcmp(prompt, "-")) {
        rc = es_file_read(&typed, "-", PROMPT_LIMIT, &err);
        prompt = typed.data;
        while (rc == ES_OK && typed.len && typed.data[typed.len - 1] == '\n')
            typed.data[--typed.len] = 0;
        if (rc == ES_OK && strlen(prompt) != typed.len)
            rc = es_fail(&err, ES_ERR_FORMAT, "standard input: holds a zero byte: not text");
    }
    if (rc == ES_OK)
        rc = app_model(&m, &err);
    if (rc == ES_OK && o->adapter)
        rc = app_adapter(&adapter, &f, m, o->adapter, &err);
    if (rc == ES_OK) {
        es_message message[2];
        size_t n = 0;
        if (o->system)
            message[n++] = (es_message){"system", o->system};
        message[n++] = (es_message){"user", prompt};
        if (es_chat_warning(m))
            app_note("%s", es_chat_warning(m));
        rc = es_chat_render(m, message, n, true, &ids, &err);
    }
    if (rc == ES_OK) {
        /* A context just long enough: its memory is most of what a short answer takes beside the model. */
        int trained = es_model_get_info(m)->n_ctx;
        size_t want = ids.n + (size_t)o->max_tokens;
        int limit = o->context ? o->context : trained;
        int n_ctx = want < (size_t)limit ? (int)want : limit;
        es_context_options co = {.n_ctx = n_ctx, .threads = the_app.threads, .exact = o->exact};
        if (ids.n >= (size_t)n_ctx)
            rc = es_fail(&err, ES_ERR_LIMIT, "the prompt has %zu tokens and the context %d", ids.n, n_ctx);
        else
            rc = es_memory_check(es_model_get_info(m)->file_bytes + es_context_bytes(m, &co), the_app.memory, "the model with this context", &err);
        if (rc == ES_OK)
            rc = es_context_open(&c, m, &co, &err);
    }
    if (rc == ES_OK && adapter) {
        rc = es_adapter_patch(adapter, 1, &patch, &err);
        if (rc == ES_OK)
            es_context_set_patch(c, &patch);
    }
    es_sampling sampling = rc == ES_OK ? es_model_sampling(m, o->sampling) : o->sampling;
    if (rc == ES_OK)
        rc = generate_reply(c, m, &ids, &sampling, o->max_tokens, the_app.json ? NULL : stream_out, &r, &err);
    int code;
    if (rc != ES_OK) {
        code = app_fail(&err);
    } else if (the_app.json) {
        code = app_print_json(reply_json(&r));
    } else {
        putchar('\n');
        code = app_flush();
    }
    if (rc == ES_OK && app_cancel)
        code = 128 + (int)app_signal;
    reply_free(&r);
    es_context_free(c);
    es_adapter_free(adapter);
    app_features_close(&f);
    es_ids_free(&ids);
    es_model_free(m);
    es_buf_free(&typed);
    return code;
}

/* ---- the workbench --------------------------------------------------------------------------------------------------------- */

static int workbench(const chat_options *o)
{
    es_error err = {0};
    char model[1200], dictionary[1200] = "", workspace[1200], labels[1300] = "", inputs[1200], hashes[1200], maps[1200], starter[] = ESPALIER_SHARE "/bases/starter.json", hash[65] = "";
    bool is_default;
    if (!the_app.tty_out || !isatty(STDIN_FILENO))
        return opts_usage_error("chat", "the workbench needs a terminal; for one answer: espalier chat --prompt TEXT");
    app_model_path(model, sizeof model, &is_default);
    if (access(model, R_OK) != 0)
        return is_default ? app_failf("there is no model at %s: start with ./run, which gets it, or name one with --model FILE.gguf", model)
                          : app_failf("%s: cannot open: %s", model, strerror(errno));
    /* The default model's hash is known, so the first screen need not wait for 100 MB to be read; the studio checks it all the same. */
    int rc = ES_OK;
    if (is_default)
        snprintf(hash, sizeof hash, "%s", APP_MODEL_SHA256);
    else if (!the_app.dictionaries.n && !the_app.config_dictionary)
        rc = es_sha256_file(hash, model, &err);
    if (rc != ES_OK)
        return app_fail(&err);
    if (app_dictionary_path(dictionary, sizeof dictionary, hash, NULL) == ES_OK) {
        snprintf(labels, sizeof labels, "%s/labels.jsonl", dictionary);
        if (access(labels, R_OK) != 0)
            labels[0] = 0;
    }
    rc = es_dir_make(the_app.home, &err);
    if (rc != ES_OK)
        return app_fail(&err);
    app_path(workspace, sizeof workspace, "workspace.db");
    es_studio_options so = es_studio_default();
    so.model = model;
    so.dictionary = *dictionary ? dictionary : NULL;
    so.workspace = workspace;
    so.labels = the_app.labels_option ? the_app.labels_option : *labels ? labels : NULL;
    so.starter_basis = access(starter, R_OK) == 0 ? starter : NULL;
    app_path(inputs, sizeof inputs, "inputs");
    app_path(hashes, sizeof hashes, "hashes");
    app_path(maps, sizeof maps, "maps");
    so.neutral = access(APP_NEUTRAL, R_OK) == 0 ? APP_NEUTRAL : NULL;
    so.inputs = inputs;
    so.hashes = hashes;
    so.maps = maps;
    so.system = o->system;
    so.author = app_author();
    so.sampling = o->sampling;
    so.max_tokens = o->max_tokens;
    if (o->context)
        so.n_ctx = o->context;
    so.threads = the_app.threads;
    so.memory = the_app.memory;
    so.learn = the_app.learn;
    so.prefer_loss = the_app.prefer_loss;
    rc = app_device(&so.card, &err);
    if (rc != ES_OK)
        return app_fail(&err);
    es_studio *studio = NULL;
    rc = es_studio_open(&studio, &so, &err);
    if (rc != ES_OK)
        return app_fail(&err);
    es_ui_options uo = {.colour = the_app.colour, .unicode = the_app.unicode, .mouse = the_app.mouse, .editor = the_app.editor, .home = the_app.home, .author = so.author};
    rc = es_ui_run(studio, &uo, &err);
    es_studio_close(studio);
    return rc == ES_OK ? EXIT_DONE : app_fail(&err);
}

static void chat_defaults(chat_options *o)
{
    o->sampling = es_sampling_unset();
    if (!isnan(the_app.config_temperature) && !o->temperature_given)
        o->sampling.temperature = (float)the_app.config_temperature;
    o->max_tokens = the_app.config_max_tokens ? the_app.config_max_tokens : 512;
    o->context = the_app.config_context;
    o->system = the_app.config_system;
}

int cmd_workbench(void)
{
    chat_options o = {0};
    chat_defaults(&o);
    return workbench(&o);
}

int cmd_chat(int argc, char **argv)
{
    chat_options o = {.sampling = es_sampling_unset()};
    int max_tokens = 0, context = 0;
    const opt table[] = {
        {"prompt", "TEXT", OPT_TEXT, &o.prompt, 0, 0, "one question, one answer; - reads it from standard input", NULL},
        {"system", "TEXT", OPT_TEXT, &o.system, 0, 0, "the system message", NULL},
        {"adapter", "FILE", OPT_TEXT, &o.adapter, 0, 0, "answer with this adapter", NULL},
        {"temperature", "T", OPT_REALF, &o.sampling.temperature, 0, 10, "0 is greedy (default: the model's own, else 0.7)", &o.temperature_given},
        {"top-k", "K", OPT_INT, &o.sampling.top_k, 0, 1000000, "only the K likeliest tokens; 0: all (default: the model's own, else 50)", NULL},
        {"top-p", "P", OPT_REALF, &o.sampling.top_p, 0, 1, "only the likeliest that make up P (default: the model's own, else 0.95)", NULL},
        {"repeat-penalty", "R", OPT_REALF, &o.sampling.repeat_penalty, 0.1, 10, "1: none (default: the model's own, else 1.1)", NULL},
        {"seed", "S", OPT_COUNT, &o.sampling.seed, 0, 1.8e19, "same seed, same answer (default 0)", NULL},
        {"max-tokens", "N", OPT_INT, &max_tokens, 1, 1000000, "longest answer (default 512)", NULL},
        {"context", "N", OPT_INT, &context, 16, 1000000, "tokens of prompt and answer together", NULL},
        {"exact", NULL, OPT_FLAG, &o.exact, 0, 0, "f32 activations throughout: slower", NULL},
        {0},
    };
    static const command_help help = {
        "chat", "[--prompt TEXT|-]",
        "Answers one prompt; the text streams to standard output. Without --prompt, on a terminal, opens the workbench.\n"
        "With --json: {\"text\",\"tokens\",\"ids\",\"prompt_tokens\",\"stopped\",\"seconds\",\"first_token_seconds\",\"tokens_per_second\"}.",
        "  espalier chat --prompt \"Why is the sky blue?\"\n"
        "  git diff | espalier chat --prompt - --system \"Write a commit message.\" --temperature 0\n"
        "  espalier chat --prompt Hi --adapter brief.safetensors --json",
        0, 0};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    chat_options d = {0};
    chat_defaults(&d);
    o.max_tokens = max_tokens ? max_tokens : d.max_tokens;
    o.context = context ? context : d.context;
    if (!o.system)
        o.system = d.system;
    if (!o.temperature_given)
        o.sampling.temperature = d.sampling.temperature;
    return o.prompt ? one_answer(&o) : workbench(&o);
}
