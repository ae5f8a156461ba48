/* Opening the model and what stands on it: dictionary, atlas, labels, adapters, workspace. */
#include "app.h"

#include <dirent.h>
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
    es_cuda *card = NULL;
    int rc = app_device(&card, err); /* before anything is read */
    rc = rc ? rc : es_model_open_within(out, path, the_app.config_context, the_app.memory, err);
    return rc ? rc : es_model_use_card(*out, card, NULL, err);
}

/* A dictionary's folder with what lies in it. labels: instead of those in the folder; NULL: those. */
static int open_folder(app_features *f, es_model *m, const char *folder, const char *labels, es_error *err)
{
    char path[1200], hashes[1200];
    *f = (app_features){0};
    app_path(hashes, sizeof hashes, "hashes");
    int rc = es_dictionary_open_with(&f->dictionary, folder, &(es_dictionary_options){.hashes = hashes, .card = es_model_card(m)}, err);
    if (rc == ES_OK)
        rc = es_dictionary_check_model(f->dictionary, m, err);
    if (rc != ES_OK) {
        app_features_close(f);
        return rc;
    }
    const es_dictionary_info *info = es_dictionary_get_info(f->dictionary);
    snprintf(f->hash, sizeof f->hash, "%s", info->hash);
    f->n = info->n_features;
    if (labels) {
        snprintf(f->labels, sizeof f->labels, "%s", labels);
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
        if (rc != ES_OK) {
            app_features_close(f);
            return rc;
        }
    }
    f->density = es_dictionary_density(f->dictionary, f->atlas, &f->own_density);
    return rc;
}

int app_features_look(app_features *f, es_model *m, es_error *err)
{
    char folder[1100], hash[65];
    *f = (app_features){0};
    int rc = es_model_hash(m, hash, err);
    if (rc == ES_OK)
        rc = app_dictionary_path(folder, sizeof folder, hash, err);
    return rc == ES_OK ? open_folder(f, m, folder, the_app.labels_option, err) : rc;
}

int app_features_open(app_features *f, es_model *m, es_error *err)
{
    int rc = app_features_look(f, m, err);
    if (rc == ES_OK && (rc = es_dictionary_check_steers(f->dictionary, err)) != ES_OK)
        app_features_close(f);
    return rc;
}

const app_features *app_features_of(const app_features *f, const char *hash)
{
    for (int i = -1; i < f->n_more; i++) {
        const app_features *x = i < 0 ? f : &f->more[i];
        if (x->dictionary && !strcmp(x->hash, hash))
            return x;
    }
    return NULL;
}

int app_features_dictionaries(const app_features *f, const es_dictionary *out[ES_PARTS_MAX])
{
    int n = 0;
    if (f->dictionary)
        out[n++] = f->dictionary;
    for (int i = 0; i < f->n_more && n < ES_PARTS_MAX; i++)
        out[n++] = f->more[i].dictionary;
    return n;
}

/* out: the folder's dictionary when it has this hash; false: it has another, or cannot be opened. */
static bool open_if(app_features *out, es_model *m, const char *folder, const char *hash)
{
    es_error other;
    if (open_folder(out, m, folder, NULL, &other) != ES_OK)
        return false;
    if (!strcmp(out->hash, hash))
        return true;
    app_features_close(out);
    return false;
}

/* The same among a folder's folders, of those that name the model. */
static bool open_among(app_features *out, es_model *m, const char *parent, const char *hash)
{
    char model[65], named[65], folder[1200];
    DIR *d = es_model_hash(m, model, NULL) == ES_OK ? opendir(parent) : NULL;
    bool found = false;
    for (struct dirent *e; d && !found && (e = readdir(d));) {
        if (e->d_name[0] == '.' || snprintf(folder, sizeof folder, "%s/%s", parent, e->d_name) >= (int)sizeof folder)
            continue;
        app_dictionary_model(folder, named);
        found = !strcmp(named, model) && open_if(out, m, folder, hash);
    }
    if (d)
        closedir(d);
    return found;
}

int app_features_add(app_features *f, es_model *m, const char *hash, es_error *err)
{
    app_features x = {0};
    char own[1200], beside[1100];
    bool found = false;
    if (app_features_of(f, hash))
        return ES_OK;
    if (f->n_more >= ES_PARTS_MAX - 1)
        return es_fail(err, ES_ERR_LIMIT, "more than %d dictionaries", (int)ES_PARTS_MAX);
    for (int i = 0; !found && i < the_app.dictionaries.n; i++) {
        app_dictionary_named(own, sizeof own, the_app.dictionaries.value[i]);
        found = open_if(&x, m, own, hash);
    }
    if (!found && f->dictionary) {
        snprintf(beside, sizeof beside, "%s/..", es_dictionary_get_info(f->dictionary)->folder);
        found = open_among(&x, m, beside, hash);
    }
    app_path(own, sizeof own, "dictionaries");
    found = found || open_among(&x, m, own, hash) || open_among(&x, m, ESPALIER_SHARE "/dictionaries", hash);
    if (!found)
        return es_fail(err, ES_ERR_MISSING, "there is no dictionary %.12s... beside the one in use nor in %s; name it with a further --dictionary FOLDER", hash, own);
    app_features *more = realloc(f->more, sizeof *more * (size_t)(f->n_more + 1));
    if (!more) {
        app_features_close(&x);
        return es_fail(err, ES_ERR_MEMORY, "not enough memory");
    }
    f->more = more;
    f->more[f->n_more++] = x;
    return ES_OK;
}

void app_features_close(app_features *f)
{
    for (int i = 0; i < f->n_more; i++)
        app_features_close(&f->more[i]);
    free(f->more);
    if (f->atlas)
        es_atlas_free(f->atlas);
    free(f->own_density);
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

char ***app_part_labels(const app_features *f, es_model *m, const es_adapter *a)
{
    int n = es_adapter_parts(a);
    char ***labels = es_calloc((size_t)n + 1, sizeof *labels);
    for (int i = 0; labels && i < n; i++) {
        const app_features *x = app_features_of(f, es_adapter_part_basis(a, i, NULL)->dictionary_hash);
        labels[i] = x ? app_labels(x, m) : NULL;
    }
    return labels;
}

void app_part_labels_free(char ***labels, const app_features *f, const es_adapter *a)
{
    for (int i = 0; labels && i < es_adapter_parts(a); i++) {
        const app_features *x = app_features_of(f, es_adapter_part_basis(a, i, NULL)->dictionary_hash);
        if (x)
            app_labels_free(labels[i], x->n);
    }
    free(labels);
}

const char *app_part_label(char **const *labels, const app_features *f, const es_adapter *a, int k, int *feature)
{
    int part = es_adapter_part_of(a, k, feature);
    const es_basis *b = es_adapter_part_basis(a, part, NULL);
    const es_basis_vector *v = es_basis_vector_of(b, *feature);
    const app_features *x = app_features_of(f, b->dictionary_hash);
    return v ? v->name : labels && labels[part] && x && *feature >= 0 && *feature < x->n ? labels[part][*feature] : NULL;
}

int app_adapter_beside(es_adapter **out, app_features *f, es_model *m, const char *path, es_error *err)
{
    char hash[ES_PARTS_MAX][65];
    const es_dictionary *s[ES_PARTS_MAX];
    es_error missing;
    int n = 0, rc = es_adapter_wants(path, hash, &n, err);
    for (int i = 0; rc == ES_OK && n > 1 && i < n; i++) {
        int found = app_features_add(f, m, hash[i], &missing); /* loading names what is wanted and what there is */
        rc = found == ES_OK || found == ES_ERR_MISSING ? ES_OK : es_fail(err, found, "%s", missing.text);
    }
    return rc == ES_OK ? es_adapter_load_parts(out, m, s, app_features_dictionaries(f, s), path, err) : rc;
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
    rc = app_adapter_beside(out, f, m, path, err);
    if (rc != ES_OK)
        app_features_close(f);
    return rc;
}
