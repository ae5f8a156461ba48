/* Options of a command: one table gives parsing, usage errors (exit 2) and --help. */
#ifndef ES_MAIN_OPTS_H
#define ES_MAIN_OPTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum opt_type {
    OPT_FLAG,   /* bool *: becomes true */
    OPT_NOFLAG, /* bool *: becomes false */
    OPT_TEXT,   /* const char ** into argv */
    OPT_INT,    /* int *, lo..hi */
    OPT_COUNT,  /* uint64_t *, lo..hi; 2k, 3M and 1e6 are understood */
    OPT_REAL,   /* double *, lo..hi */
    OPT_REALF,  /* float *, lo..hi */
    OPT_TEXTS,  /* opt_texts *: may be given again */
    OPT_LIST,   /* opt_ints *: comma-separated whole numbers and ranges (10,15,20 or 16-29), each lo..hi */
} opt_type;

enum { OPT_LIST_MAX = 256, OPT_TEXTS_MAX = 64 };
typedef struct opt_texts {
    int n;
    const char *value[OPT_TEXTS_MAX]; /* into argv */
} opt_texts;
typedef struct opt_ints {
    int n, value[OPT_LIST_MAX];
} opt_ints;

typedef struct opt {
    const char *name; /* without the dashes */
    const char *arg;  /* what it takes, for --help; NULL for flags */
    opt_type type;
    void *to;
    double lo, hi;
    const char *help;
    bool *given; /* may be NULL: becomes true when the option was there */
} opt;

typedef struct command_help {
    const char *name;  /* "basis new" */
    const char *usage; /* "NAME": what follows the name; the options need not be repeated */
    const char *what;  /* some lines: what it does */
    const char *examples; /* whole lines, indented by two */
    int min_args, max_args; /* max_args < 0: any number */
} command_help;

enum { OPTS_GO = -1 }; /* go on; anything else is the exit code to return at once (0 after --help, 2 after a usage error) */

/* Parses argv (argv[0] is the command's own name) by the command's table, which ends with a row without a name, and by the
 * global one. Options and arguments may be mixed; "--" ends the options. The arguments are left at argv[1..*n_args]; the configuration has been read. */
int opts_parse(const command_help *help, const opt *table, int argc, char **argv, int *n_args);
/* The global options alone, up to the first argument that is not one: *at is its index. EXIT_DONE when --help was asked for. */
int opts_parse_global(int argc, char **argv, int *at);
/* One line "espalier: COMMAND: ..." on stderr; returns 2. */
int opts_usage_error(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
