/* config.ini:
 *   model = FILE.gguf          [chat]
 *   dictionary = FOLDER        system = TEXT
 *   author = NAME              temperature = 0.7
 *   threads = 2                max_tokens = 512
 *   device = auto              (or cpu, cuda, cuda:0)
 *   mouse = no                 context = 2048
 *   data = FOLDER              learn = yes
 *                              prefer_loss = pairs   (or sampled, top-20, forward)
 *   [endpoint]                 of label auto
 *   url = https://HOST/v1      key_file = FILE       price_in, price_out = of a million tokens
 *   model = NAME               concurrency = 4
 * A long system text goes on in indented lines. An unknown key, a bad value or an overlong line is an error that names the line: a setting that silently does nothing is worse. */
#include "app.h"
#include "distil.h"

#include <ini.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_LIMIT = 1 << 20, LINE_LIMIT = 190 }; /* inih cuts lines at 200 bytes and would read the rest as another line */

typedef struct loading {
    app *a;
    char why[300]; /* of the first bad line, which is the one that ini_parse returns */
} loading;

static bool real(const char *s, double lo, double hi, double *out)
{
    char *end;
    double v = strtod(s, &end);
    if (end == s || *end || !(v >= lo && v <= hi))
        return false;
    *out = v;
    return true;
}

static bool whole(const char *s, int lo, int hi, int *out)
{
    double v;
    if (!real(s, lo, hi, &v) || v != floor(v))
        return false;
    *out = (int)v;
    return true;
}

static bool yes_no(const char *s, bool *out)
{
    if (!strcmp(s, "yes") || !strcmp(s, "true") || !strcmp(s, "1"))
        return *out = true;
    if (!strcmp(s, "no") || !strcmp(s, "false") || !strcmp(s, "0")) {
        *out = false;
        return true;
    }
    return false;
}

static bool text(const char *s, char **out)
{
    free(*out);
    return (*out = strdup(s)) != NULL;
}

static bool add_line(const char *s, char **out)
{
    char *both = NULL;
    if (asprintf(&both, "%s%s%s", *out ? *out : "", *out ? "\n" : "", s) < 0)
        return false;
    free(*out);
    *out = both;
    return true;
}

static bool prefer_loss(const char *value, int *out)
{
    es_distil_loss k = 0;
    bool ok = !strcmp(value, "pairs") || es_distil_named(value, &k);
    *out = (int)k;
    return ok;
}

static int take(void *user, const char *section, const char *name, const char *value)
{
    loading *l = user;
    app *a = l->a;
    bool chat = !strcmp(section, "chat"), endpoint = !strcmp(section, "endpoint"), ok;
    if (*l->why)
        return 0;
    if (*section && !chat && !endpoint) {
        snprintf(l->why, sizeof l->why, "there is no section [%.60s]", section);
        return 0;
    }
    if (endpoint) {
        ok = !strcmp(name, "url")         ? text(value, &a->endpoint_url) :
             !strcmp(name, "model")       ? text(value, &a->endpoint_model) :
             !strcmp(name, "key_file")    ? text(value, &a->endpoint_key_file) :
             !strcmp(name, "price_in")    ? real(value, 0, 1e6, &a->endpoint_price_in) :
             !strcmp(name, "price_out")   ? real(value, 0, 1e6, &a->endpoint_price_out) :
             !strcmp(name, "concurrency") ? whole(value, 1, 64, &a->endpoint_concurrency) :
                                            (snprintf(l->why, sizeof l->why, "there is no setting '%.60s' in [endpoint]", name), false);
        if (*l->why)
            return 0;
    } else if (!chat && !strcmp(name, "model"))
        ok = text(value, &a->config_model);
    else if (!chat && !strcmp(name, "dictionary"))
        ok = text(value, &a->config_dictionary);
    else if (!chat && !strcmp(name, "author"))
        ok = text(value, &a->config_author);
    else if (!chat && !strcmp(name, "data"))
        ok = text(value, &a->config_data);
    else if (!chat && !strcmp(name, "device"))
        ok = app_device_valid(value) && text(value, &a->config_device);
    else if (!chat && !strcmp(name, "threads"))
        ok = whole(value, 0, 256, &a->config_threads);
    else if (!chat && !strcmp(name, "mouse"))
        ok = yes_no(value, &a->mouse);
    else if (chat && !strcmp(name, "system"))
        ok = add_line(value, &a->config_system);
    else if (chat && !strcmp(name, "temperature"))
        ok = real(value, 0, 10, &a->config_temperature);
    else if (chat && !strcmp(name, "max_tokens"))
        ok = whole(value, 1, 1000000, &a->config_max_tokens);
    else if (chat && !strcmp(name, "context"))
        ok = whole(value, 64, 1000000, &a->config_context);
    else if (chat && !strcmp(name, "prefer_loss"))
        ok = prefer_loss(value, &a->prefer_loss);
    else if (chat && !strcmp(name, "learn"))
        ok = yes_no(value, &a->learn);
    else {
        snprintf(l->why, sizeof l->why, "there is no setting '%.60s'%s", name, chat ? " in [chat]" : "");
        return 0;
    }
    if (!ok)
        snprintf(l->why, sizeof l->why, "'%.60s' is no value for %s", value, name);
    return ok;
}

int config_load(app *a, es_error *err)
{
    es_buf b = {0};
    es_error read_error = {0};
    int rc = es_file_read(&b, a->config_path, CONFIG_LIMIT, &read_error);
    if (rc == ES_ERR_MISSING) {
        es_buf_free(&b);
        return ES_OK;
    }
    if (rc != ES_OK) {
        es_buf_free(&b);
        return es_fail(err, rc, "%s", read_error.text);
    }
    int line = 1;
    for (const char *s = b.data, *end = b.data + b.len; rc == ES_OK && s < end; line++) {
        const char *stop = memchr(s, '\n', (size_t)(end - s));
        size_t n = (size_t)((stop ? stop : end) - s);
        if (n > LINE_LIMIT)
            rc = es_fail(err, ES_ERR_FORMAT, "%s:%d: the line is over %d bytes", a->config_path, line, (int)LINE_LIMIT);
        else if (memchr(s, 0, n))
            rc = es_fail(err, ES_ERR_FORMAT, "%s:%d: holds a zero byte: not a text file", a->config_path, line);
        s += n + 1;
    }
    if (rc == ES_OK) {
        loading l = {.a = a};
        int bad = ini_parse_string(b.data, take, &l);
        if (bad > 0)
            rc = es_fail(err, ES_ERR_FORMAT, "%s:%d: %s", a->config_path, bad, *l.why ? l.why : "not a 'name = value' line");
        else if (bad < 0)
            rc = es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to read it", a->config_path);
    }
    es_buf_free(&b);
    return rc;
}
