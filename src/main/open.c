/* Opening the model and what stands on it: dictionary, atlas, labels, adapters, workspace. */
#include "app.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int app_model(es_model **out, es_error *err)
{
    char path[1200];
    bool is_default;
    app_model_path(path, sizeof path, &is_default);
    *out = NULL;
    if (is_default && access(path, F_OK) != 0)
        return es_fail(err, ES_ERR_MISSING, "there is no model at %s: start with ./run, which gets it, or name one with --model FILE.gguf", path);
    return es_model_open_within(out, path, the_app.config_context, the_app.memory, err);
}

int app_features_open(app_features *f, es_model *m, es_error *err)
{
    *f = (app_features){0};
    char folder[1100], hash[65], path[1200];
    int rc = es_model_hash(m, hash, err);
    if (rc == ES_OK)
        rc = app_dictionary_path(folder, sizeof folder, hash, err);
    if (rc == ES_OK)
        rc = es_dictionary_open(&f->dictionary, folder, err);
    if (rc == ES_OK)
        rc = es_dictionary_check_model(f->dictionary, m, err);
    if (rc != ES_OK) {
        app_features_close(f);
        return rc;
    }
    const es_dictionary_info *info = es_dictionary_get_info(f->dictionary);
    snprintf(f->hash, sizeof f->hash, "%s", info->hash);
    f->n = info->n_features;
    if (the_app.labels_option) {
        snprintf(f->labels, sizeof f->labels, "%s", the_app.labels_option);
    } else {
        snprintf(f->labels, sizeof f->labels, "%s/labels.jsonl", info->folder); /* --dictionary may name a file */
        if (access(f->labels, F_OK) != 0)
            f->labels[0] = 0;
    }
    snprintf(path, sizeof path, "%s/" APP_ATLAS_NAME, info->folder);
    if (access(path, F_OK) == 0) {
        rc = es_atlas_open(&f->atlas, path, err);
        if (rc == ES_OK && strcmp(es_atlas_dictionary_hash(f->atlas), f->hash) != 0)
            rc = es_fail(err, ES_ERR_MISMATCH, "%s: made from dictionary %.12s..., but this one is %.12s...", path,
                         es_atlas_dictionary_hash(f->atlas), f->hash);
        if (rc != ES_OK)
            app_features_close(f);
    }
    return rc;
}

void app_features_close(app_features *f)
{
    if (f->atlas)
        es_atlas_free(f->atlas);
    if (f->dictionary)
        es_dictionary_free(f->dictionary);
    *f = (app_features){0};
}

int app_workspace(es_workspace **out, es_error *err)
{
    char path[1200];
    int rc = es_dir_make(the_app.home, err);
    app_path(path, sizeof path, "workspace.db");
    return rc == ES_OK ? es_workspace_open(out, path, err) : rc;
}

int app_workspace_for(es_workspace **out, const app_features *f, es_model *m, es_error *err)
{
    int rc = app_workspace(out, err);
    if (rc != ES_OK)
        return rc;
    es_progress progress = app_progress();
    rc = es_workspace_use_dictionary(*out, f->dictionary, f->atlas, m, *f->labels ? f->labels : NULL, &progress, err);
    app_progress_end();
    if (rc != ES_OK) {
        es_workspace_close(*out);
        *out = NULL;
    }
    return rc;
}

typedef struct starter {
    char **label;
    int n;
} starter;

static int take_starter(void *user, size_t line, json_t *v, es_error *err)
{
    (void)line;
    (void)err;
    starter *s = user;
    json_t *feature = json_object_get(v, "feature");
    const char *text = json_string_value(json_object_get(v, "text"));
    json_int_t i = json_integer_value(feature);
    if (json_is_integer(feature) && text && i >= 0 && i < s->n) {
        free(s->label[i]);
        s->label[i] = strdup(text);
    }
    return ES_OK;
}

char **app_labels_from(const app_features *f, es_workspace *w)
{
    char **label = es_calloc((size_t)f->n + 1, sizeof *label);
    if (label)
        es_workspace_labels_all(w, f->hash, f->n, label, NULL);
    return label;
}

char **app_labels(const app_features *f, es_model *m)
{
    char **label = es_calloc((size_t)f->n + 1, sizeof *label);
    if (!label)
        return NULL;
    es_workspace *w = NULL;
    char path[1200];
    app_path(path, sizeof path, "workspace.db");
    /* Looking up labels must not be what creates a workspace, nor fail because the workbench has it open. */
    if (access(path, F_OK) == 0 && app_workspace_for(&w, f, m, NULL) == ES_OK) {
        es_workspace_labels_all(w, f->hash, f->n, label, NULL);
        es_workspace_close(w);
    } else if (*f->labels) {
        starter s = {label, f->n};
        es_jsonl_each(f->labels, take_starter, &s, NULL);
    }
    return label;
}

void app_labels_free(char **labels, int n)
{
    for (int i = 0; labels && i < n; i++)
        free(labels[i]);
    free(labels);
}

int app_adapter(es_adapter **out, app_features *f, es_model *m, const char *path, es_error *err)
{
    *out = NULL;
    *f = (app_features){0};
    if (access(path, F_OK) != 0)
        return es_fail(err, ES_ERR_MISSING, "%s: there is no such adapter", path);
    es_error without = {0};
    int rc = app_features_open(f, m, &without);
    if (rc == ES_ERR_MISSING) /* a plain adapter needs none; a constrained one says itself what it wants */
        return es_adapter_load(out, m, NULL, path, err);
    if (rc != ES_OK)
        return es_fail(err, rc, "%s", without.text);
    rc = es_adapter_load(out, m, f->dictionary, path, err);
    if (rc != ES_OK)
        app_features_close(f);
    return rc;
}
