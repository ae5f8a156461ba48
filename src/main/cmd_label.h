/* Commands of label, features and basis that have files of their own: rows in those commands' tables. */
#ifndef ES_MAIN_CMD_LABEL_H
#define ES_MAIN_CMD_LABEL_H

#include "app.h"

int label_redo(int argc, char **argv);       /* cmd_label_people.c */
int label_merge(int argc, char **argv);
int label_conflicts(int argc, char **argv);
int label_choose(int argc, char **argv);
int label_show_first(int argc, char **argv);
int label_agreement(int argc, char **argv);
int label_carry(int argc, char **argv);      /* cmd_label_carry.c */
int label_test(int argc, char **argv);       /* cmd_label_test.c */
int features_next(int argc, char **argv);    /* cmd_features_next.c */
int basis_report(int argc, char **argv);     /* cmd_basis_report.c */

/* A model, its dictionary and the workspace, opened together; close it also after an error. */
typedef struct labels_open {
    es_model *m;
    app_features f;
    es_workspace *w;
    char **labels; /* app_labels, of who has asked for them */
    es_error err;  /* of who wants it kept here: err below may be this */
} labels_open;
int labels_open_features(labels_open *o, es_error *err); /* without the workspace */
int labels_open_all(labels_open *o, es_error *err);
void labels_close(labels_open *o);
int labels_feature(const labels_open *o, const char *s, int *out, es_error *err); /* a number that names one of the features */

#endif
