/* doctor: what is installed, and whether it is sound. */
#include "app.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

typedef struct checkup {
    json_t *all; /* [{name, ok, text}] */
    bool ill;
} checkup;

static void finding(checkup *c, const char *name, bool ok, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static void finding(checkup *c, const char *name, bool ok, const char *fmt, ...)
{
    char text[900], safe[1200];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (!ok)
        c->ill = true;
    app_shown(text, safe, sizeof safe);
    json_array_append_new(c->all, json_pack("{s:s,s:b,s:s}", "name", name, "ok", ok, "text", safe));
    if (!the_app.json) {
        printf("%-2s %-11s %s\n", ok ? "ok" : "!!", name, safe);
        fflush(stdout);
    }
}

static double memory(const char *name) /* of /proc/meminfo, GiB; 0 when it is not there */
{
    FILE *f = fopen("/proc/meminfo", "re");
    char line[200];
    double kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, name, strlen(name)))
            kib = strtod(line + strlen(name) + 1, NULL);
    if (f)
        fclose(f);
    return kib / (1 << 20);
}

static void look_at_dictionary(checkup *c, es_model *m)
{
    es_error err = {0};
    app_features f = {0};
    if (app_features_look(&f, m, &err) != ES_OK) {
        finding(c, "dictionary", err.code == ES_ERR_MISSING, "%s", err.text); /* chat works without one */
        return;
    }
    const es_dictionary_info *i = es_dictionary_get_info(f.dictionary);
    finding(c, "dictionary", true, "%s: %d features of %s, layer %d, SHA-256 %.16s...", i->name, i->n_features, es_hook_words(i->hook), i->layer, i->hash);
    if (f.atlas)
        finding(c, "atlas", true, "%d features", es_atlas_features(f.atlas));
    else
        finding(c, "atlas", true, "none beside the dictionary: features have no examples");
    app_features_close(&f);
}

static void look_at_workspace(checkup *c)
{
    es_error err = {0};
    char path[1200];
    app_path(path, sizeof path, "workspace.db");
    if (access(path, F_OK) != 0) {
        finding(c, "workspace", true, "none yet; it will be %s", path);
        return;
    }
    es_workspace *w = NULL;
    int rc = es_workspace_open(&w, path, &err);
    if (rc == ES_OK)
        rc = es_workspace_check(w, &err);
    if (rc == ES_OK)
        finding(c, "workspace", true, "%s is sound", path);
    else
        finding(c, "workspace", false, "%s", err.text);
    es_workspace_close(w);
}

int cmd_doctor(int argc, char **argv)
{
    static const command_help help = {"doctor", "", "Looks at everything the program needs: processor, memory, model, dictionary, workspace, terminal. Exit 1 when something is ill.",
                                      "  espalier doctor\n  espalier doctor --json", 0, 0};
    int n;
    int rc = opts_parse(&help, NULL, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    checkup c = {.all = json_array()};
    es_error err = {0};
    struct utsname u;
    char text[400] = "";
    uname(&u);
    finding(&c, "program", true, "espalier %s, %s %s", ESPALIER_VERSION, u.sysname, u.machine);
    es_kernels_describe(text, sizeof text);
    finding(&c, "kernels", true, "%s, %ld processors", text, sysconf(_SC_NPROCESSORS_ONLN));
    bool usable;
    app_device_describe(text, sizeof text, &usable);
    finding(&c, "device", usable, "%s", text);
    double total = memory("MemTotal"), available = memory("MemAvailable");
    finding(&c, "memory", total == 0 || available > 0.6, "%.1f GiB, %.1f GiB free", total, available);
    finding(&c, "home", true, "%s", the_app.home);
    finding(&c, "config", true, "%s%s", the_app.config_path, access(the_app.config_path, F_OK) == 0 ? "" : " (none)");

    es_model *m = NULL;
    char path[1200], hash[65];
    bool is_default;
    app_model_path(path, sizeof path, &is_default);
    if (!usable)
        the_app.device_option = "cpu"; /* the rest is looked at all the same */
    rc = app_model(&m, &err);
    if (rc == ES_OK)
        rc = es_model_hash(m, hash, &err);
    if (rc != ES_OK) {
        finding(&c, "model", false, "%s", err.text);
    } else {
        const es_model_info *i = es_model_get_info(m);
        bool same = !is_default || !strcmp(hash, APP_MODEL_SHA256);
        finding(&c, "model", same, "%s: %s, %d layers, width %d, %.0f M parameters, %.0f MB", i->path, i->architecture, i->n_layer, i->d_model,
                (double)i->n_params / 1e6, (double)i->file_bytes / 1e6);
        finding(&c, "model hash", same, "%s%s", hash, same ? "" : ": the default model's is another; remove the file and start with ./run");
        finding(&c, "template", true, "%s%s", es_chat_warning(m) ? "" : "conversations are written as ", es_chat_warning(m) ? es_chat_warning(m) : es_chat_name(m));
        es_context_options o = {.threads = the_app.threads};
        finding(&c, "chat", true, "%.0f MB of memory: %.0f for the weights, %.0f for keys and values, %.0f for the rest", (double)(i->file_bytes + es_context_bytes(m, &o)) / 1e6,
                (double)i->file_bytes / 1e6, (double)es_model_cache_bytes(m, 0) / 1e6, (double)(es_context_bytes(m, &o) - es_model_cache_bytes(m, 0)) / 1e6);
        look_at_dictionary(&c, m);
    }
    look_at_workspace(&c);
    finding(&c, "terminal", true, "%s, %s, colour %s", the_app.tty_out ? "yes" : "output is not a terminal", the_app.unicode ? "UTF-8" : "not UTF-8: plain characters",
            the_app.colour ? "on" : "off (NO_COLOR)");
    es_model_free(m);
    if (the_app.json) {
        int code = app_print_json(json_pack("{s:b,s:o}", "ok", !c.ill, "findings", c.all));
        return code == EXIT_DONE && c.ill ? EXIT_FAILED : code;
    }
    json_decref(c.all);
    int code = app_flush();
    return code == EXIT_DONE && c.ill ? EXIT_FAILED : code;
}
