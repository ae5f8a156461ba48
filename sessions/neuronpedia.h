/* neuronpedia: labels and dashboards in the layout of Neuronpedia's exports, both ways. A folder MODEL/SOURCE with model.jsonl, source.jsonl, sourceset.jsonl,
 * release.jsonl, and features/, explanations/ and activations/ of batch-N.jsonl.gz, the features 1024 N to 1024 N + 1023 in each (its tables Neuron, Explanation
 * and Activation, as utils/neuronpedia-utils of its repository writes them). Also read: one feature's JSON as its API gives it, and plain .jsonl. */
#ifndef ES_NEURONPEDIA_H
#define ES_NEURONPEDIA_H

#include "sessions.h"

typedef struct es_neuronpedia_options {
    const char *model;    /* its id of the model; NULL: made of the model's name. Letters, digits, ".", "-" and "_" */
    const char *source;   /* its id of the dictionary, such as "14-res-6k"; NULL: made of layer, hook and width */
    const int *feature;   /* [n_feature], only these; NULL: all */
    int n_feature;
    const char *list;     /* name of a list of those features, written as list-new.json and list-add-features-N.json; NULL: none */
    bool labels_only;     /* no features/ and activations/ */
} es_neuronpedia_options;

typedef struct es_neuronpedia_count { int labels, features, examples; char folder[1200]; } es_neuronpedia_count;
/* Writes FOLDER/MODEL/SOURCE. Dashboards hold what the atlas has (NULL: none are written). Beside Neuronpedia's members an explanation has "espalier": the label's
 * author, tags, rating, time, and the dictionary's hash, so that an import here has them again. */
int es_neuronpedia_export(es_workspace *w, es_model *m, const es_dictionary *s, es_atlas *a, const char *folder, const es_neuronpedia_options *o, es_neuronpedia_count *out,
                          const es_progress *progress, es_error *err);

typedef struct es_neuronpedia_taken {
    int labels;           /* taken in */
    int kept;             /* features that have a label of a person here, which stays */
    int more;             /* further explanations of features that got one: the best is taken: a person's, then the highest score, then the first */
    int other;            /* records that are no explanations (dashboards, activations) */
} es_neuronpedia_taken;
/* The explanations in a file (.json, .jsonl, either gzipped) or a folder (its explanations/, else its files) into the labels of a dictionary; all or nothing. A label's
 * author is who "espalier" names, else "auto:MODEL" for those that a model gave, else "neuronpedia". source (may be NULL): only of this one, where a file has
 * several; otherwise that is refused with their names. Refused too: a hash in "espalier" that is another dictionary's, a feature that the dictionary does not have,
 * what is no such record, and files that unpack to more than makes sense. */
int es_neuronpedia_import(es_workspace *w, const char *dictionary, int n_features, const char *path, const char *source, es_neuronpedia_taken *out, es_error *err);

typedef struct es_neuronpedia_dashboards {
    int features, examples; /* with a dashboard; activations that were taken or gave way to stronger ones */
    int empty;              /* activations in which nothing is active */
    int changed;            /* texts of tokens that the model has not as one token: the first of its tokens stands for them */
} es_neuronpedia_dashboards;
/* Dashboards of an export (a folder MODEL/SOURCE with features/ and activations/, or one feature's JSON) as the atlas of a dictionary, written to `atlas`: density,
 * histograms, promoted and suppressed tokens, the 20 strongest examples and up to 4 of each interval, in windows of 24 tokens. Correlations it has none; mean and 99th
 * percentile are by the histogram, and how many tokens were read is by the densities. Errors and source as above. */
int es_neuronpedia_atlas(es_model *m, const es_dictionary *s, const char *path, const char *source, const char *atlas, es_neuronpedia_dashboards *out, es_error *err);

#endif
