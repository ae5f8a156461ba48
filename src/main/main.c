#include "app.h"

#include <langinfo.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

app the_app = {.config_temperature = NAN, .mouse = true, .learn = true};
volatile bool app_cancel;
volatile sig_atomic_t app_signal;

const opt app_global_options[] = {
    {"home", "DIR", OPT_TEXT, &the_app.home_option, 0, 0, "where models, dictionaries and the workspace are", NULL},
    {"model", "FILE.gguf", OPT_TEXT, &the_app.model_option, 0, 0, "another model than the default one", NULL},
    {"dictionary", "PATH", OPT_TEXTS, &the_app.dictionaries, 0, 0, "another dictionary than the model's own, or its name (dictionary list); again: more, for adapters of several", NULL},
    {"threads", "N", OPT_INT, &the_app.threads, 0, 256, "processors to use (default: all)", NULL},
    {"device", "DEVICE", OPT_TEXT, &the_app.device_option, 0, 0, "auto (default: a card when there is one), cpu, cuda or cuda:N", NULL},
    {"memory", "BYTES", OPT_COUNT, &the_app.memory, 1, 9e18, "refuse a model that needs more, such as 4G (default: what is free)", NULL},
    {"json", NULL, OPT_FLAG, &the_app.json, 0, 0, "answer in JSON on standard output", NULL},
    {"quiet", NULL, OPT_FLAG, &the_app.quiet, 0, 0, "no progress on standard error", NULL},
    {0},
};

static const command commands[] = {
    {"chat", "chat, or one answer: chat --prompt TEXT", cmd_chat},
    {"answer", "the model's own answers to a file of prompts", cmd_answer},
    {"tokenize", "the tokens of a text", cmd_tokenize},
    {"score", "the log-probability of each token of a text", cmd_score},
    {"encode", "the strongest features at each token of a text", cmd_encode},
    {"features", "list, show, search, for-text, contrast", cmd_features},
    {"label", "add, auto, import, export, undo", cmd_label},
    {"basis", "new, add, remove, show, list, export", cmd_basis},
    {"adapt", "adapt to experiences within a basis", cmd_adapt},
    {"drift", "what an adapter has learned, feature by feature", cmd_drift},
    {"eval", "margin, neutral, adapt", cmd_eval},
    {"export", "an adapter for other tools", cmd_export},
    {"harvest", "activations of texts, for training dictionaries", cmd_harvest},
    {"train", "a dictionary from a harvest", cmd_train},
    {"dictionary", "info, stats, convert, map", cmd_dictionary},
    {"atlas", "examples and statistics of each feature", cmd_atlas},
    {"bench", "rates of the program's own work", cmd_bench},
    {"fetch", "get models: by name, from a URL, from the hub", cmd_fetch},
    {"doctor", "what is installed, and whether it is sound", cmd_doctor},
    {0},
};

static int help(void)
{
    printf("espalier: browse a language model's features, tie some into a basis, and chat while the model adapts along them only.\n\n"
           "Usage: espalier [OPTIONS]                  the workbench\n"
           "       espalier [OPTIONS] COMMAND [ARGUMENTS]\n\nCommands:\n");
    for (const command *c = commands; c->name; c++)
        printf("  %-11s %s\n", c->name, c->summary);
    printf("\nOptions of every command:\n");
    for (const opt *o = app_global_options; o->name; o++) {
        char left[40];
        snprintf(left, sizeof left, "--%s%s%s", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
        printf("  %-20s %s\n", left, o->help);
    }
    printf("  %-20s %s\n  %-20s %s\n", "--help", "this, or a command's own help", "--version", "the version");
    printf("\nExit status: 0 done, 1 failed, 2 wrong usage.\n\n"
           "Examples:\n"
           "  espalier\n"
           "  espalier chat --prompt \"Why is the sky blue?\" --temperature 0\n"
           "  espalier chat --help\n");
    return app_flush();
}

static void on_signal(int number)
{
    app_signal = number;
    __atomic_store_n(&app_cancel, true, __ATOMIC_RELAXED);
}

static void catch_signals(void)
{
    /* Reset on delivery: the second one ends a program that is too busy to notice the first. */
    struct sigaction s = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    sigemptyset(&s.sa_mask);
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct sigaction old;
        if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN) /* nohup stays nohup */
            sigaction(numbers[i], &s, NULL);
    }
}

/* An absolute folder from the environment, as the XDG specification wants it; others do not count. */
static const char *env_folder(const char *name)
{
    const char *v = getenv(name);
    return v && v[0] == '/' ? v : NULL;
}

static const char *env_text(const char *name)
{
    const char *v = getenv(name);
    return v && *v ? v : NULL;
}

/* The only place that reads the environment. */
int app_settle(app *a, es_error *err)
{
    const char *base = env_folder("HOME"), *given = getenv("ESPALIER_HOME"), *data = env_folder("XDG_DATA_HOME"),
               *config = env_folder("XDG_CONFIG_HOME");
    int n;
    if (a->home_option)
        n = snprintf(a->home, sizeof a->home, "%s", a->home_option);
    else if (given && *given)
        n = snprintf(a->home, sizeof a->home, "%s", given);
    else if (data)
        n = snprintf(a->home, sizeof a->home, "%s/espalier", data);
    else if (base)
        n = snprintf(a->home, sizeof a->home, "%s/.local/share/espalier", base);
    else
        return es_fail(err, ES_ERR_USAGE, "HOME is not set: name a folder for models and the workspace with --home DIR");
    if (n >= (int)sizeof a->home - 100)
        return es_fail(err, ES_ERR_USAGE, "the path of --home is too long");
    if (*a->home == 0)
        return es_fail(err, ES_ERR_USAGE, "--home wants a folder");
    if (config)
        n = snprintf(a->config_path, sizeof a->config_path, "%s/espalier/config.ini", config);
    else if (base)
        n = snprintf(a->config_path, sizeof a->config_path, "%s/.config/espalier/config.ini", base);
    if (n >= (int)sizeof a->config_path)
        a->config_path[0] = 0;

    a->tty_out = isatty(STDOUT_FILENO);
    a->tty_err = isatty(STDERR_FILENO);
    a->colour = !env_text("NO_COLOR");
    a->unicode = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    a->data_environment = getenv("ESPALIER_DATA");
    a->editor = env_text("VISUAL");
    if (!a->editor)
        a->editor = env_text("EDITOR");
    a->hub = env_text("HF_ENDPOINT");
    a->hub_token = env_text("HF_TOKEN");
    a->ca_file = env_text("SSL_CERT_FILE");
    a->api_key = env_text("ESPALIER_API_KEY");
    if (a->device_option && !app_device_valid(a->device_option))
        return es_fail(err, ES_ERR_USAGE, "--device wants auto, cpu, cuda or cuda:N, not '%.40s'", a->device_option);
    int rc = *a->config_path ? config_load(a, err) : ES_OK;
    if (a->threads == 0)
        a->threads = a->config_threads;
    return rc;
}

/* ./run asks this before it starts the program: where the default model must be put, or nothing when these arguments need none. */
static int missing_model(int argc, char **argv)
{
    static const char *const without[] = {"train", "fetch", "help", "version"};
    es_error err = {0};
    int at = 1;
    if (opts_parse_global(argc, argv, &at) != OPTS_GO)
        return EXIT_DONE;
    for (int i = at; i < argc; i++) {
        if (!strcmp(argv[i], "--"))
            break;
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h") || !strcmp(argv[i], "--version") || !strncmp(argv[i], "--model=", 8))
            return EXIT_DONE;
        if (i + 1 < argc && !strcmp(argv[i], "--model"))
            return EXIT_DONE;
        if (i + 1 < argc && !strcmp(argv[i], "--home"))
            the_app.home_option = argv[i + 1];
        if (!strncmp(argv[i], "--home=", 7))
            the_app.home_option = argv[i] + 7;
    }
    const command *c = commands;
    if (at < argc) {
        while (c->name && strcmp(c->name, argv[at]))
            c++;
        if (!c->name)
            return EXIT_DONE;
        for (size_t i = 0; i < sizeof without / sizeof *without; i++)
            if (!strcmp(without[i], c->name))
                return EXIT_DONE;
    }
    char path[1200];
    bool is_default;
    if (app_settle(&the_app, &err) != ES_OK)
        return EXIT_DONE;
    app_model_path(path, sizeof path, &is_default);
    if (is_default && access(path, F_OK) != 0)
        puts(path);
    return EXIT_DONE;
}

int app_subcommand(const char *name, const char *what, const command *table, int argc, char **argv)
{
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        FILE *to = argc < 2 ? stderr : stdout;
        fprintf(to, "Usage: espalier %s COMMAND [ARGUMENTS]\n\n%s\n\n", name, what);
        for (const command *c = table; c->name; c++)
            fprintf(to, "  %-10s %s\n", c->name, c->summary);
        fprintf(to, "\nespalier %s COMMAND --help tells more.\n", name);
        return argc < 2 ? EXIT_USAGE : app_flush();
    }
    for (const command *c = table; c->name; c++)
        if (!strcmp(c->name, argv[1]))
            return c->run(argc - 1, argv + 1);
    return opts_usage_error(name, "there is no command '%s'", argv[1]);
}

int main(int argc, char **argv)
{
    setlocale(LC_ALL, "");
    setlocale(LC_NUMERIC, "C"); /* numbers in files and JSON do not follow the language */
    if (argc > 1 && !strcmp(argv[1], "--missing-model"))
        return missing_model(argc - 1, argv + 1);
    es_error err = {0};
    int at = 1;
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")))
        return help();
    if (argc > 1 && (!strcmp(argv[1], "--version") || !strcmp(argv[1], "version"))) {
        puts("espalier " ESPALIER_VERSION);
        return app_flush();
    }
    int rc = opts_parse_global(argc, argv, &at);
    if (rc == EXIT_DONE)
        return help();
    if (rc != OPTS_GO)
        return rc;
    if (at == argc) {
        if (app_settle(&the_app, &err) != ES_OK)
            return app_fail(&err);
        rc = cmd_workbench();
        app_device_tell();
        return rc;
    }
    for (const command *c = commands; c->name; c++) {
        if (strcmp(c->name, argv[at]))
            continue;
        catch_signals();
        rc = c->run(argc - at, argv + at);
        app_device_tell();
        return rc;
    }
    return opts_usage_error("", "there is no command '%s'", argv[at]);
}
