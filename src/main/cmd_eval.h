/* What the sub-commands of eval share. */
#ifndef ES_MAIN_CMD_EVAL_H
#define ES_MAIN_CMD_EVAL_H

#include "evaluate.h"
#include "opts.h"

int eval_adapt(int argc, char **argv);
int eval_readable(int argc, char **argv);
int eval_sequence(int argc, char **argv);
int dictionary_evaluate(int argc, char **argv); /* cmd_evaluate.c */

/* A task's file: a path, the name of one that comes with the program, or one in the data folder's tasks/. */
int eval_task_path(const char *name, char *out, size_t size, es_error *err);
int eval_task_open(es_task *out, const char *name, const es_task_split *split, es_error *err);

/* "M,LABEL=M" into spec[most]; basis_pairs > 0: of those that have a basis. Labels of the grids (curated, lora1, lora8) bring their options. */
int eval_specs_open(const char *methods, int basis_pairs, bool signs, es_eval_spec *spec, int most, int *n, es_error *err);
/* "LABEL.OPTION=VALUE", or "all.OPTION=VALUE"; strict: the label must be there. */
int eval_specs_set(const opt_texts *set, es_eval_spec *spec, int n, bool strict, es_error *err);

/* The work file of a command that names none: in the home folder's eval/, under a name made of the command's own words (less those that only say how
 * to run it or to show it), so that the same command goes on with it. Words: before opts_parse, which changes argv. File: makes the folder. */
void eval_work_words(int argc, char **argv, char hash[65]);
int eval_work_usual(const char *what, const char hash[65], char *out, size_t size, es_error *err);

#endif
