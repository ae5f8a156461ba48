#include "app.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_OPTIONS = 64, FIRST = 1000 }; /* getopt gives FIRST + index in the joined table */

int opts_usage_error(const char *name, const char *fmt, ...)
{
    char text[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    char shown[600];
    fprintf(stderr, "espalier: %s%s%s (see espalier%s%s --help)\n", name, *name ? ": " : "", app_shown(text, shown, sizeof shown),
            *name ? " " : "", name);
    return EXIT_USAGE;
}

/* A number with an optional k, M or G; the whole of s. */
static bool number(const char *s, double *out)
{
    char *end;
    errno = 0;
    if (*s == 0 || strchr(" \t\n", *s))
        return false;
    *out = strtod(s, &end);
    if (end == s || errno == ERANGE)
        return false;
    if (*end && !end[1]) {
        double scale = *end == 'k' ? 1e3 : *end == 'M' ? 1e6 : *end == 'G' ? 1e9 : 0;
        if (scale > 0) {
            *out *= scale;
            end++;
        }
    }
    return *end == 0 && isfinite(*out);
}

static bool integer(const char *s, double lo, double hi, int *out)
{
    char *end;
    errno = 0;
    long v = strtol(s, &end, 10);
    if (end == s || *end || errno || (double)v < lo || (double)v > hi)
        return false;
    *out = (int)v;
    return true;
}

static bool list(const char *s, double lo, double hi, opt_ints *out)
{
    out->n = 0;
    char part[32];
    while (*s) {
        size_t n = strcspn(s, ",");
        if (n == 0 || n >= sizeof part)
            return false;
        memcpy(part, s, n);
        part[n] = 0;
        char *dash = strchr(part + 1, '-');
        if (dash)
            *dash = 0;
        int a, b;
        if (!integer(part, lo, hi, &a) || (dash && !integer(dash + 1, lo, hi, &b)))
            return false;
        if (!dash)
            b = a;
        for (; a <= b; a++) {
            if (out->n == OPT_LIST_MAX)
                return false;
            out->value[out->n++] = a;
        }
        s += n;
        if (*s == ',' && !*++s)
            return false;
    }
    return out->n > 0;
}

static int set(const char *name, const opt *o, const char *value)
{
    if (o->given)
        *o->given = true;
    double x;
    switch (o->type) {
    case OPT_FLAG:
    case OPT_NOFLAG:
        *(bool *)o->to = o->type == OPT_FLAG;
        return OPTS_GO;
    case OPT_TEXT:
        *(const char **)o->to = value;
        return OPTS_GO;
    case OPT_TEXTS: {
        opt_texts *l = o->to;
        if (l->n == OPT_TEXTS_MAX)
            return opts_usage_error(name, "--%s: given more than %d times", o->name, (int)OPT_TEXTS_MAX);
        l->value[l->n++] = value;
        return OPTS_GO;
    }
    case OPT_INT:
        if (integer(value, o->lo, o->hi, o->to))
            return OPTS_GO;
        return opts_usage_error(name, "--%s wants a whole number from %.0f to %.0f, not '%s'", o->name, o->lo, o->hi, value);
    case OPT_COUNT: {
        char *end;
        errno = 0;
        unsigned long long v = strtoull(value, &end, 10); /* exact where it can be: seeds use all 64 bits */
        if (*value >= '0' && *value <= '9' && !*end && !errno && (double)v >= o->lo && (double)v <= o->hi) {
            *(uint64_t *)o->to = v;
            return OPTS_GO;
        }
        if (number(value, &x) && x >= o->lo && x <= o->hi && x < 1.8e19 && x == floor(x)) {
            *(uint64_t *)o->to = (uint64_t)x;
            return OPTS_GO;
        }
        return opts_usage_error(name, "--%s wants a count from %.0f to %.4g, not '%s'", o->name, o->lo, o->hi, value);
    }
    case OPT_REAL:
    case OPT_REALF:
        if (number(value, &x) && x >= o->lo && x <= o->hi) {
            if (o->type == OPT_REAL)
                *(double *)o->to = x;
            else
                *(float *)o->to = (float)x;
            return OPTS_GO;
        }
        return opts_usage_error(name, "--%s wants a number from %g to %g, not '%s'", o->name, o->lo, o->hi, value);
    case OPT_LIST:
        if (list(value, o->lo, o->hi, o->to))
            return OPTS_GO;
        return opts_usage_error(name, "--%s wants numbers from %.0f to %.0f such as 10,15,20 or 16-29, not '%s'", o->name, o->lo, o->hi,
                                value);
    }
    return OPTS_GO;
}

static void help_options(const opt *o)
{
    for (; o->name; o++) {
        char left[64];
        snprintf(left, sizeof left, "--%s%s%s", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
        printf("  %-26s %s\n", left, o->help);
    }
}

static void help_print(const command_help *h, const opt *table)
{
    printf("Usage: espalier %s%s%s\n\n%s\n", h->name, *h->usage ? " " : "", h->usage, h->what);
    if (table && table->name) {
        printf("\nOptions:\n");
        help_options(table);
    }
    printf("\nFor every command:\n");
    help_options(app_global_options);
    if (h->examples)
        printf("\nExamples:\n%s\n", h->examples);
}

static int parse(const command_help *h, const opt *table, const char *mode, int argc, char **argv)
{
    const char *name = h ? h->name : "";
    const opt *joined[MAX_OPTIONS];
    struct option longs[MAX_OPTIONS + 2] = {0};
    int n = 0;
    for (int pass = 0; pass < 2; pass++)
        for (const opt *o = pass ? app_global_options : table; o && o->name && n < MAX_OPTIONS; o++, n++) {
            joined[n] = o;
            longs[n] = (struct option){o->name, o->type == OPT_FLAG || o->type == OPT_NOFLAG ? no_argument : required_argument, NULL, FIRST + n};
        }
    longs[n] = (struct option){"help", no_argument, NULL, 'h'};
    opterr = 0;
    optind = 0; /* glibc: begin anew */
    for (;;) {
        int c = getopt_long(argc, argv, mode, longs, NULL);
        if (c == -1)
            return OPTS_GO;
        if (c == 'h') {
            if (h)
                help_print(h, table);
            return EXIT_DONE;
        }
        if (c >= FIRST) {
            int rc = set(name, joined[c - FIRST], optarg);
            if (rc != OPTS_GO)
                return rc;
            continue;
        }
        const char *bad = argv[optind - 1];
        if (c == ':')
            return opts_usage_error(name, "%s wants a value", bad);
        if (optopt >= FIRST)
            return opts_usage_error(name, "--%s takes no value", joined[optopt - FIRST]->name);
        if (optopt && optopt < 256)
            return opts_usage_error(name, "there is no option -%c", optopt);
        return opts_usage_error(name, "there is no option %s", bad);
    }
}

int opts_parse(const command_help *help, const opt *table, int argc, char **argv, int *n_args)
{
    int rc = parse(help, table, ":h", argc, argv);
    if (rc != OPTS_GO)
        return rc;
    int n = argc - optind;
    memmove(argv + 1, argv + optind, (size_t)n * sizeof *argv);
    *n_args = n;
    if (n < help->min_args)
        return opts_usage_error(help->name, n == 0 ? "something is missing; usage: espalier %s %s" : "more is needed; usage: espalier %s %s",
                                help->name, help->usage);
    if (help->max_args >= 0 && n > help->max_args)
        return opts_usage_error(help->name, "'%s' is one argument too many", argv[1 + help->max_args]);
    es_error err = {0};
    return app_settle(&the_app, &err) == ES_OK ? OPTS_GO : app_fail(&err);
}

int opts_parse_global(int argc, char **argv, int *at)
{
    int rc = parse(NULL, NULL, "+:h", argc, argv);
    *at = optind;
    return rc;
}
