/* What every command shares: settings from options, configuration and environment; opening things; progress; JSON. */
#ifndef ES_MAIN_APP_H
#define ES_MAIN_APP_H

#include <signal.h>

#include "opts.h"
#include "ui.h"

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

typedef struct app {
    /* global options */
    const char *home_option, *model_option, *labels_option, *data_option, *device_option;
    opt_texts dictionaries; /* --dictionary: the first is the one in use, the others are at hand for adapters that want several */
    uint64_t memory; /* 0: what the machine has available */
    int threads; /* 0: the processors there are */
    bool json, quiet;
    /* resolved */
    char home[1024];
    char config_path[1100];
    bool colour, unicode, tty_out, tty_err;
    const char *editor, *data_environment;
    const char *hub, *hub_token, *ca_file; /* HF_ENDPOINT, HF_TOKEN, SSL_CERT_FILE; NULL: not set */
    const char *api_key; /* ESPALIER_API_KEY, of the endpoint for automatic labels; NULL: not set */
    /* config.ini, see config.c */
    char *config_model, *config_dictionary, *config_system, *config_author, *config_data, *config_device;
    char *endpoint_url, *endpoint_model, *endpoint_key_file;
    double endpoint_price_in, endpoint_price_out; /* of a million tokens */
    int endpoint_concurrency; /* 0: not set */
    double config_temperature; /* NAN: not set */
    int prefer_loss; /* es_studio_options */
    int config_max_tokens, config_context, config_threads; /* 0: not set */
    bool mouse, learn;
} app;
extern app the_app;
extern const opt app_global_options[];

/* Raised by SIGINT, SIGTERM and SIGHUP; a second signal ends the program at once. */
extern volatile bool app_cancel;
extern volatile sig_atomic_t app_signal;

/* Where home and the configuration are, from options and environment; reads the configuration. opts_parse does it. */
int app_settle(app *a, es_error *err);
int config_load(app *a, es_error *err); /* a missing file is no error */

/* ---- reporting ---- */
int app_fail(const es_error *err);            /* "espalier: text" on stderr; EXIT_FAILED, or 128 + signal after a cancel */
int app_failf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void app_note(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* a plain line on stderr unless --quiet */
es_progress app_progress(void);               /* draws on stderr; call app_progress_end when the job is over */
void app_progress_end(void);
int app_print_json(json_t *value);            /* takes the reference; one line on stdout; EXIT_DONE or EXIT_FAILED */
void app_print_text(const char *s, size_t n); /* on a terminal only shown, to a pipe as it is */
const char *app_shown(const char *s, char *out, size_t size); /* s made harmless and cut to fit, for tables */
/* A JSON string of bytes that may not be UTF-8: what is not whole becomes U+FFFD. */
json_t *app_json_text(const char *s, size_t n);
int app_flush(void); /* EXIT_DONE, or EXIT_FAILED when stdout could not be written */

/* ---- the device (device.c) ---- */
bool app_device_valid(const char *s);              /* auto, cpu, cuda or cuda:N */
int app_device(es_cuda **out, es_error *err);      /* borrowed; NULL: the processor. ES_ERR_MISSING when a card was asked for and there is none */
bool app_device_auto(void);                        /* whether nothing in particular was asked for */
void app_device_tell(void);                        /* what was left to the processor, and why: a line each on stderr, once */
int app_on_device(es_model *m, es_error *err);     /* what is opened on m from now on works there */
void app_device_describe(char *out, size_t size, bool *ok);

/* ---- where things are ---- */
void app_remove_tree(const char *folder); /* a temporary folder of ours, with what is in it */
void app_path(char *out, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4))); /* under home */
/* The folder of public data that cannot come with the program: --data, ESPALIER_DATA, the configuration. false: none is set. */
bool app_data(char *out, size_t size);
/* The model in use: --model, the configuration, else the default one in home. */
void app_model_path(char *out, size_t size, bool *is_default);
#define APP_MODEL_NAME "SmolLM2-135M-Instruct.Q4_1.gguf"
#define APP_MODEL_SHA256 "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
#define APP_MODEL_FETCH "smollm2" /* its name for espalier fetch */
#define APP_NEUTRAL ESPALIER_SHARE "/tasks/neutral.jsonl" /* text that should stay as it is */
#define APP_ATLAS_NAME "atlas.esa" /* in a dictionary's folder, beside labels.jsonl */
/* The dictionary in use: --dictionary, the configuration, else one beside the program or in home that names the model's hash.
 * ES_ERR_MISSING when there is none. */
int app_dictionary_path(char *out, size_t size, const char *model_hash, es_error *err);
/* What --dictionary names: a path, or the name of a folder in home's dictionaries or among those that come with the program. */
void app_dictionary_named(char *out, size_t size, const char *name);
/* The model hash that a dictionary folder's cfg.json names, "" when it names none. */
void app_dictionary_model(const char *folder, char out[65]);

/* ---- opening ---- */
int app_model(es_model **out, es_error *err);

enum { APP_SITES = 8 };
typedef struct app_sites { int n; es_hook_kind site[APP_SITES]; } app_sites; /* n 0: the residual */
/* "resid,attn,mlp" (also z); NULL: none. OPTS_GO, or the code of a usage error. */
int app_sites_of(const char *of, const char *text, app_sites *out);

typedef struct app_features { /* a dictionary with what belongs to it */
    es_dictionary *dictionary;
    es_atlas *atlas;      /* NULL when its folder holds none */
    const float *density; /* [n] of the atlas, else of its sparsity.safetensors; NULL: nobody says */
    float *own_density;   /* that memory, when it is not the atlas' */
    char labels[1200];    /* starter labels, "" when there are none */
    char hash[65];
    int n;
    struct app_features *more; /* [n_more] further ones, of adapters with several; their own more: none */
    int n_more;
} app_features;
int app_features_open(app_features *f, es_model *m, es_error *err); /* of the residual, as steering and adapting want it */
int app_features_look(app_features *f, es_model *m, es_error *err); /* of any site that a running model gives */
void app_features_close(app_features *f);
/* Opens a further dictionary beside f's, by its hash: one named by --dictionary, or beside f's, the program's or home's. ES_ERR_MISSING when there is
 * none; nothing happens when it is open. */
int app_features_add(app_features *f, es_model *m, const char *hash, es_error *err);
const app_features *app_features_of(const app_features *f, const char *hash); /* f or one of more; NULL: none of them */
int app_features_dictionaries(const app_features *f, const es_dictionary *out[ES_PARTS_MAX]); /* how many */
/* White inputs for this model, kept in home (es_inputs_kept). */
int app_inputs(es_inputs **out, const app_features *f, es_model *m, int rank, es_error *err);
int app_workspace(es_workspace **out, es_error *err);
/* The workspace with this dictionary's label space ready (starter labels taken in on first use). */
int app_workspace_for(es_workspace **out, const app_features *f, es_model *m, es_error *err);
/* Labels by feature [n], from the workspace, or where that cannot be had, the starter labels; never fails. app_labels_free. */
char **app_labels(const app_features *f, es_model *m);
char **app_labels_from(const app_features *f, es_workspace *w); /* the same, of an open workspace */
void app_labels_free(char **labels, int n);
/* An adapter file, with the dictionary it needs opened as it must be (*f is left closed when it needs none), and the others when it is of several. */
int app_adapter(es_adapter **out, app_features *f, es_model *m, const char *path, es_error *err);
/* The same where f is open. */
int app_adapter_beside(es_adapter **out, app_features *f, es_model *m, const char *path, es_error *err);
/* The labels of an adapter's parts [es_adapter_parts], by feature each (NULL where there are none); app_part_labels_free. */
char ***app_part_labels(const app_features *f, es_model *m, const es_adapter *a);
void app_part_labels_free(char ***labels, const app_features *f, const es_adapter *a);
/* The label of an adapter's coefficient k, or NULL; *feature its number. */
const char *app_part_label(char **const *labels, const app_features *f, const es_adapter *a, int k, int *feature);
const char *app_author(void);

/* Encodes each token's residual with the dictionary; rows as tokens. A text's first token is unlike all others. */
int app_encode(const app_features *f, const es_model *m, const es_ids *ids, es_sparse *out, es_error *err);

/* A basis: a .json file, NAME or NAME@VERSION in the workspace, or "starter", the one that comes with the program. w: the
 * open workspace, or NULL: it is opened for the moment (there is one writer at a time). */
int app_basis(es_basis *out, const app_features *f, es_workspace *w, const char *name, es_error *err);
/* The same of whichever dictionary, which is opened beside f's. */
int app_basis_beside(es_basis *out, app_features *f, es_model *m, const char *name, es_error *err);
/* Bounds as the suggestions have them: the 99th percentile of the feature's activation, both ways; wide without an atlas. */
float app_default_bound(const app_features *f, int feature);

/* ---- commands: argv[0] is the name; the exit code comes back ---- */
typedef struct command {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
} command;
/* Runs the sub-command that argv[1] names. */
int app_subcommand(const char *name, const char *what, const command *table, int argc, char **argv);

int cmd_workbench(void);
int cmd_chat(int argc, char **argv);
int cmd_answer(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_score(int argc, char **argv);
int cmd_encode(int argc, char **argv);
int cmd_features(int argc, char **argv);
int cmd_label(int argc, char **argv);
int cmd_label_auto(int argc, char **argv);
/* label import and export in the layout of Neuronpedia */
typedef struct app_neuronpedia { const char *folder, *model, *source, *basis; bool labels_only; } app_neuronpedia;
int app_neuronpedia_import(const char *path, const char *source);
int app_neuronpedia_export(const app_neuronpedia *to);
int cmd_basis(int argc, char **argv);
int cmd_adapt(int argc, char **argv);
int cmd_drift(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_export(int argc, char **argv);
int cmd_harvest(int argc, char **argv);
int cmd_train(int argc, char **argv);
int cmd_dictionary(int argc, char **argv);
int cmd_atlas(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_fetch(int argc, char **argv);

#endif
