#include "app.h"

#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <math.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- reporting ---------------------------------------------------------------------------------------------------- */

static struct {
    double last, began, first, done, total; /* first: done when it began; done, total: as last said */
    char what[64];
    int width; /* columns of the line now on the terminal */
} shown;

static void wipe_progress(void)
{
    if (shown.width) {
        fprintf(stderr, "\r%*s\r", shown.width, "");
        shown.width = 0;
    }
}

int app_fail(const es_error *err)
{
    app_progress_end();
    if (err->code == ES_ERR_CANCELLED && app_signal) {
        fprintf(stderr, "espalier: interrupted\n");
        return 128 + (int)app_signal;
    }
    fprintf(stderr, "espalier: %s\n", *err->text ? err->text : "failed");
    return EXIT_FAILED;
}

int app_failf(const char *fmt, ...)
{
    es_error err = {0};
    char text[600];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    es_fail(&err, ES_ERR_USAGE, "%s", text);
    return app_fail(&err);
}

void app_note(const char *fmt, ...)
{
    if (the_app.quiet)
        return;
    wipe_progress();
    char text[900], safe[1200];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    fprintf(stderr, "%s\n", app_shown(text, safe, sizeof safe));
}

static void duration(char *out, size_t size, double s)
{
    if (s < 90)
        snprintf(out, size, "%.0f s", s);
    else if (s < 5400)
        snprintf(out, size, "%.0f min", s / 60);
    else
        snprintf(out, size, "%.1f h", s / 3600);
}

static void amount(char *out, size_t size, double v)
{
    if (v >= 1e7)
        snprintf(out, size, "%.1fM", v / 1e6);
    else if (v >= 1e5)
        snprintf(out, size, "%.0fk", v / 1e3);
    else
        snprintf(out, size, "%.0f", v);
}

/* A line that is redrawn on a terminal; a plain line every ten seconds otherwise. */
static void report(void *user, const char *what, double done, double total, const char *unit)
{
    (void)user;
    double now = es_seconds();
    const bool goes_on = total > 0 && total == shown.total && done >= shown.done; /* of several places in turn: one job too */
    shown.total = total;
    shown.done = done;
    if (shown.began == 0 || (!goes_on && strncmp(what, shown.what, strcspn(what, "=")) != 0)) { /* "fvu=0.3" and "fvu=0.2" are one job */
        snprintf(shown.what, sizeof shown.what, "%s", what);
        shown.began = now;
        shown.first = done;
        shown.last = the_app.tty_err ? 0 : now;
    }
    if (now - shown.last < (the_app.tty_err ? 0.1 : 10.0))
        return;
    shown.last = now;
    char a[32], b[32], left[32] = "", line[200], safe[240];
    amount(a, sizeof a, done);
    amount(b, sizeof b, total);
    double seconds = now - shown.began, rate = seconds > 0.5 ? (done - shown.first) / seconds : 0;
    if (rate > 0 && total > done)
        duration(left, sizeof left, (total - done) / rate);
    char speed[64] = "";
    if (rate > 0 && rate < 10)
        snprintf(speed, sizeof speed, ", %.1f a second", rate);
    else if (rate > 0) {
        char r[32];
        amount(r, sizeof r, rate);
        snprintf(speed, sizeof speed, ", %s a second", r);
    }
    snprintf(line, sizeof line, "%.90s  %s%s%s %s%s%s%s", what, a, total > 0 ? "/" : "", total > 0 ? b : "", unit ? unit : "", speed,
             *left ? ", left " : "", left);
    app_shown(line, safe, sizeof safe);
    if (!the_app.tty_err) {
        fprintf(stderr, "%s\n", safe);
        return;
    }
    size_t n = strlen(safe);
    if (n > 78) /* a line that wraps could not be redrawn */
        n = es_utf8_whole(safe, 78);
    int width = es_text_width(safe, n);
    fprintf(stderr, "\r%.*s%*s", (int)n, safe, shown.width > width ? shown.width - width : 0, "");
    shown.width = width;
    fflush(stderr);
}

es_progress app_progress(void)
{
    es_progress p = {.report = the_app.quiet ? NULL : report, .cancel = &app_cancel};
    return p;
}

void app_progress_end(void)
{
    wipe_progress();
    shown.what[0] = 0;
    shown.began = shown.last = 0;
}

int app_flush(void)
{
    if (fflush(stdout) != 0 || ferror(stdout))
        return app_failf("cannot write to standard output: %s", strerror(errno));
    return EXIT_DONE;
}

int app_print_json(json_t *value)
{
    app_progress_end();
    if (!value)
        return app_failf("not enough memory for the answer");
    int bad = json_dumpf(value, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9) | JSON_ENCODE_ANY);
    json_decref(value);
    if (bad && !ferror(stdout))
        return app_failf("the answer cannot be written as JSON");
    putchar('\n');
    return app_flush();
}

void app_print_text(const char *s, size_t n)
{
    if (!the_app.tty_out) {
        fwrite(s, 1, n, stdout);
        return;
    }
    es_buf b = {0};
    es_text_show(&b, s, n, true);
    if (b.data && !b.failed)
        fwrite(b.data, 1, b.len, stdout);
    es_buf_free(&b);
}

const char *app_shown(const char *s, char *out, size_t size)
{
    es_buf b = {0};
    es_text_show(&b, s, strlen(s), false);
    size_t n = b.failed ? 0 : b.len;
    if (n >= size)
        n = es_utf8_whole(b.data, size - 1);
    if (n)
        memcpy(out, b.data, n);
    out[n] = 0;
    es_buf_free(&b);
    return out;
}

json_t *app_json_text(const char *s, size_t n)
{
    es_buf b = {0};
    es_utf8_mend(&b, s, n);
    json_t *v = b.failed ? NULL : json_stringn(b.data ? b.data : "", b.len);
    es_buf_free(&b);
    return v;
}

/* ---- where things are ------------------------------------------------------------------------------------------------ */

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st;
    (void)kind;
    (void)at;
    return remove(path);
}

void app_remove_tree(const char *folder)
{
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

void app_path(char *out, size_t size, const char *fmt, ...)
{
    int n = snprintf(out, size, "%s/", the_app.home);
    if (n < 0 || (size_t)n >= size)
        return;
    va_list args;
    va_start(args, fmt);
    vsnprintf(out + n, size - (size_t)n, fmt, args);
    va_end(args);
}

bool app_data(char *out, size_t size)
{
    const app *a = &the_app;
    const char *from = a->data_option ? a->data_option : a->data_environment && *a->data_environment ? a->data_environment : a->config_data;
    snprintf(out, size, "%s", from ? from : "");
    return from && *from;
}

void app_model_path(char *out, size_t size, bool *is_default)
{
    const char *named = the_app.model_option ? the_app.model_option : the_app.config_model;
    *is_default = !named;
    if (named)
        snprintf(out, size, "%s", named);
    else
        app_path(out, size, "models/%s", APP_MODEL_NAME);
}

void app_dictionary_model(const char *folder, char out[65])
{
    out[0] = 0;
    char path[1300];
    snprintf(path, sizeof path, "%s/cfg.json", folder);
    json_t *cfg = NULL;
    if (es_json_file(&cfg, path, NULL) != ES_OK)
        return;
    const char *hash = json_string_value(json_object_get(json_object_get(cfg, "metadata"), "espalier_model_sha256"));
    if (hash)
        snprintf(out, 65, "%s", hash);
    json_decref(cfg);
}

static bool find_dictionary(const char *parent, const char *model_hash, char *out, size_t size)
{
    DIR *d = opendir(parent);
    if (!d)
        return false;
    char best[1200] = "";
    for (struct dirent *e; (e = readdir(d));) {
        char folder[1200], hash[65];
        if (e->d_name[0] == '.' || snprintf(folder, sizeof folder, "%s/%s", parent, e->d_name) >= (int)sizeof folder)
            continue;
        app_dictionary_model(folder, hash);
        if (!strcmp(hash, model_hash) && (!*best || strcmp(folder, best) < 0)) /* readdir has no order: take the first by name */
            snprintf(best, sizeof best, "%s", folder);
    }
    closedir(d);
    if (*best)
        snprintf(out, size, "%s", best);
    return *best;
}

void app_dictionary_named(char *out, size_t size, const char *name)
{
    char folder[1200];
    snprintf(out, size, "%s", name);
    if (!*name || *name == '.' || strchr(name, '/') || access(name, F_OK) == 0)
        return;
    app_path(folder, sizeof folder, "dictionaries/%s", name);
    if (access(folder, F_OK) != 0)
        snprintf(folder, sizeof folder, ESPALIER_SHARE "/dictionaries/%s", name);
    if (access(folder, F_OK) == 0)
        snprintf(out, size, "%s", folder);
}

int app_dictionary_path(char *out, size_t size, const char *model_hash, es_error *err)
{
    const char *named = the_app.dictionaries.n ? the_app.dictionaries.value[0] : the_app.config_dictionary;
    if (named) {
        app_dictionary_named(out, size, named);
        return ES_OK;
    }
    char own[1200];
    app_path(own, sizeof own, "dictionaries");
    if (find_dictionary(own, model_hash, out, size) || find_dictionary(ESPALIER_SHARE "/dictionaries", model_hash, out, size))
        return ES_OK;
    return es_fail(err, ES_ERR_MISSING, "there is no dictionary for this model (SHA-256 %.12s...) in %s; name one with --dictionary FOLDER",
                   model_hash, own);
}

const char *app_author(void)
{
    if (the_app.config_author)
        return the_app.config_author;
    struct passwd *p = getpwuid(geteuid());
    return p && *p->pw_name ? p->pw_name : "me";
}

int app_inputs(es_inputs **out, const app_features *f, es_model *m, int rank, es_error *err)
{
    char folder[1200];
    app_path(folder, sizeof folder, "inputs");
    return es_inputs_kept(out, m, f->dictionary, rank, APP_NEUTRAL, folder, the_app.threads, &app_cancel, err);
}

int app_sites_of(const char *of, const char *text, app_sites *out)
{
    *out = (app_sites){0};
    for (const char *at = text; at && *at;) {
        size_t n = strcspn(at, ",");
        char name[32];
        es_hook_kind k;
        es_point point;
        snprintf(name, sizeof name, "%.*s", n < sizeof name ? (int)n : (int)sizeof name - 1, at);
        if (!es_hook_site_named(name, &k) || !es_hook_point(k, &point))
            return opts_usage_error(of, "--site: resid, attn, mlp or z, with commas; not '%s'", name);
        for (int i = 0; i < out->n; i++)
            if (out->site[i] == k)
                return opts_usage_error(of, "--site names %s twice", es_hook_site(k));
        if (out->n == APP_SITES)
            return opts_usage_error(of, "--site: at most %d", (int)APP_SITES);
        out->site[out->n++] = k;
        at += n + (at[n] == ',');
    }
    return OPTS_GO;
}
