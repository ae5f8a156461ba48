/* basis: chosen features with bounds, kept by name and version in the workspace. */
#include "cmd_label.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- loading, shared with adapt ----------------------------------------------------------------------------------------------- */

float app_default_bound(const app_features *f, int feature)
{
    if (!f->atlas)
        return 1e3f;
    const es_dictionary_info *info = es_dictionary_get_info(f->dictionary);
    float *row = es_calloc((size_t)info->d, sizeof *row);
    double sum = 0;
    if (!row)
        return 1e3f;
    es_dictionary_rows(f->dictionary, feature, 1, row);
    for (int j = 0; j < info->d; j++)
        sum += (double)row[j] * row[j];
    free(row);
    float p99 = es_atlas_p99(f->atlas)[feature], most = es_atlas_max(f->atlas)[feature];
    return (p99 > 0 ? p99 : most) * (float)sqrt(sum);
}

static int from_file(es_basis *out, const char *path, es_error *err)
{
    json_t *v = NULL;
    size_t len = strlen(path);
    if (len > 12 && !strcmp(path + len - 12, ".safetensors"))
        return es_basis_file_read(out, NULL, NULL, NULL, NULL, path, err);
    int rc = es_json_file(&v, path, err);
    if (rc == ES_OK) {
        rc = es_basis_from_json(out, v, err);
        if (rc != ES_OK)
            es_fail_prefix(err, "%s", path);
    }
    json_decref(v);
    return rc;
}

/* NAME@VERSION into its parts; version 0: the newest. */
static int split_name(const char *s, char name[64], int *version, es_error *err)
{
    const char *at = strrchr(s, '@');
    size_t n = at ? (size_t)(at - s) : strlen(s);
    *version = 0;
    if (at) {
        char *end;
        long v = strtol(at + 1, &end, 10);
        if (*end || end == at + 1 || v < 1 || v > 1 << 30)
            return es_fail(err, ES_ERR_USAGE, "'%s': a version is a number, as in brief@3", s);
        *version = (int)v;
    }
    if (n == 0 || n >= 64)
        return es_fail(err, ES_ERR_USAGE, "'%s' is no name for a basis: 1 to 63 bytes are", s);
    memcpy(name, s, n);
    name[n] = 0;
    return ES_OK;
}

/* A basis of whichever dictionary. */
static int read_basis(es_basis *out, es_workspace *w, const char *name, es_error *err)
{
    *out = (es_basis){0};
    size_t len = strlen(name);
    if ((len > 5 && !strcmp(name + len - 5, ".json")) || (len > 12 && !strcmp(name + len - 12, ".safetensors")) || strchr(name, '/'))
        return from_file(out, name, err);
    char base[64], path[1200];
    int version, rc = split_name(name, base, &version, err);
    if (rc != ES_OK)
        return rc;
    app_path(path, sizeof path, "workspace.db");
    es_workspace *own = NULL;
    rc = ES_ERR_MISSING;
    if (w || access(path, F_OK) == 0) {
        rc = w ? ES_OK : es_workspace_open(&own, path, err);
        if (rc == ES_OK)
            rc = es_workspace_basis_load(w ? w : own, base, version, out, err);
        es_workspace_close(own);
    } else {
        es_fail(err, rc, "there is no basis '%s': make one with espalier basis new", base);
    }
    if (rc == ES_ERR_MISSING && !strcmp(name, "starter") && access(ESPALIER_SHARE "/bases/starter.json", R_OK) == 0)
        rc = from_file(out, ESPALIER_SHARE "/bases/starter.json", err);
    return rc;
}

int app_basis(es_basis *out, const app_features *f, es_workspace *w, const char *name, es_error *err)
{
    int rc = read_basis(out, w, name, err);
    if (rc == ES_OK && *out->dictionary_hash && strcmp(out->dictionary_hash, f->hash)) {
        rc = es_fail(err, ES_ERR_MISMATCH, "basis %s was made from the dictionary %s (%.12s), this one is %s (%.12s)", name, out->dictionary,
                     out->dictionary_hash, es_dictionary_get_info(f->dictionary)->name, f->hash);
        es_basis_free(out);
    }
    return rc;
}

int app_basis_beside(es_basis *out, app_features *f, es_model *m, const char *name, es_error *err)
{
    es_error why = {0};
    int rc = read_basis(out, NULL, name, err);
    if (rc != ES_OK)
        return rc;
    if (!*out->dictionary_hash)
        snprintf(out->dictionary_hash, sizeof out->dictionary_hash, "%s", f->hash);
    rc = app_features_add(f, m, out->dictionary_hash, &why);
    if (rc != ES_OK) {
        es_fail(err, rc, "basis %s, of the dictionary %s: %s", name, out->dictionary, why.text);
        es_basis_free(out);
    }
    return rc;
}

/* ---- a command's common state ----------------------------------------------------------------------------------------------- */

static int open_all(labels_open *o)
{
    int rc = labels_open_all(o, &o->err);
    return rc == ES_OK ? es_dictionary_check_steers(o->f.dictionary, &o->err) : rc;
}

static int save(labels_open *o, es_basis *b)
{
    return es_workspace_basis_save(o->w, b, &b->version, &o->err);
}

/* What entry i goes by: a feature's label, a vector's name; NULL: nothing. */
static const char *name_of(const es_basis *b, int i, char **labels)
{
    const es_basis_vector *v = es_basis_vector_of(b, b->feature[i]);
    return v ? v->name : labels && b->feature[i] >= 0 ? labels[b->feature[i]] : NULL;
}

static int print_basis(labels_open *o, const es_basis *b, const float *score, const float *gradient, int n_gradient)
{
    es_basis_report r = {0};
    bool measured = b->n > 0 && es_basis_measure(b, o->f.dictionary, o->f.atlas, gradient, n_gradient, 1, &r, &o->err) == ES_OK;
    if (b->n > 0 && !measured)
        return app_fail(&o->err);
    char **labels = app_labels_from(&o->f, o->w);
    int code;
    if (the_app.json) {
        json_t *list = json_array();
        for (int i = 0; i < b->n; i++) {
            const es_basis_vector *x = es_basis_vector_of(b, b->feature[i]);
            json_t *one = json_pack("{s:i,s:f,s:f,s:s?}", "feature", b->feature[i], "lo", (double)b->lo[i], "hi", (double)b->hi[i], "label",
                                    name_of(b, i, labels));
            if (x)
                json_object_set_new(one, "vector", json_pack("{s:s,s:i,s:f,s:s}", "name", x->name, "layer", x->layer, "length", (double)x->length, "sha256", x->hash));
            if (score)
                json_object_set_new(one, "score", json_real((double)score[i]));
            json_array_append_new(list, one);
        }
        json_t *v = json_pack("{s:s,s:i,s:s,s:i,s:o}", "name", b->name, "version", b->version, "dictionary", b->dictionary, "layer", b->layer,
                              "features", list);
        if (measured) {
            json_object_set_new(v, "condition", isfinite(r.condition) ? json_real(r.condition) : json_null());
            json_object_set_new(v, "effective_rank", json_real(r.effective_rank));
            json_object_set_new(v, "max_overlap", json_real(r.max_overlap));
            if (gradient)
                json_object_set_new(v, "energy", json_pack("{s:f,s:f,s:f,s:f}", "basis", r.energy, "random_mean", r.random_mean, "random_min",
                                                           r.random_min, "random_max", r.random_max));
        }
        code = app_print_json(v);
    } else {
        char shown[240];
        printf("%s, version %d: %d features of %s, layer %d\n", app_shown(b->name, shown, sizeof shown), b->version, b->n, b->dictionary, b->layer);
        for (int i = 0; i < b->n; i++) {
            printf("%7d  %9.3f .. %8.3f  ", b->feature[i], (double)b->lo[i], (double)b->hi[i]);
            if (score)
                printf("%+9.4f  ", (double)score[i]);
            const char *name = name_of(b, i, labels);
            printf("%s%s\n", name ? app_shown(name, shown, sizeof shown) : "", b->feature[i] < 0 ? "  (vector)" : "");
        }
        if (measured) {
            printf("condition %.1f, effective rank %.1f of %d", r.condition, r.effective_rank, b->n);
            if (b->n > 1)
                printf(", largest overlap %.2f (%d and %d)", r.max_overlap, r.overlap_a, r.overlap_b);
            printf("\n");
        }
        if (measured && gradient)
            printf("share of the experiences' gradient energy: %.1f %%; random bases of this size: %.1f %% (%.1f to %.1f)\n", 100 * r.energy,
                   100 * r.random_mean, 100 * r.random_min, 100 * r.random_max);
        code = app_flush();
    }
    app_labels_free(labels, o->f.n);
    return code;
}

/* The gradient of the experiences in a file, [n, d]; the caller frees it. */
static int gradients(labels_open *o, const char *path, float **out, int *n)
{
    es_experiences e = {0};
    size_t d = (size_t)es_dictionary_get_info(o->f.dictionary)->d, cells;
    es_progress progress = app_progress();
    *out = NULL;
    int rc = es_experiences_load(&e, path, &o->err);
    if (rc == ES_OK && e.n == 0)
        rc = es_fail(&o->err, ES_ERR_FORMAT, "%s: holds no experiences", path);
    if (rc == ES_OK && (!es_mul((size_t)e.n, d, &cells) || !(*out = es_calloc(cells, sizeof **out))))
        rc = es_fail(&o->err, ES_ERR_MEMORY, "not enough memory for %d gradients", e.n);
    if (rc == ES_OK)
        rc = es_attribute(o->m, o->f.dictionary, &e, the_app.threads, *out, &progress, &o->err);
    app_progress_end();
    *n = e.n;
    es_experiences_free(&e);
    return rc;
}

/* ---- commands ------------------------------------------------------------------------------------------------------------------ */

static int basis_new(int argc, char **argv)
{
    const char *suggest = NULL;
    int size = 64;
    bool signs = false;
    const opt table[] = {
        {"suggest", "E.jsonl", OPT_TEXT, &suggest, 0, 0, "choose features by the gradient of these experiences", NULL},
        {"size", "K", OPT_INT, &size, 1, 65536, "how many (default 64)", NULL},
        {"signs", NULL, OPT_FLAG, &signs, 0, 0, "let each move only the way that lowers the loss", NULL},
        {0},
    };
    static const command_help help = {"basis new", "NAME [FEATURE...]",
                                      "Makes a basis of the features named, or of those that experiences suggest, and saves it in the workspace.",
                                      "  espalier basis new brief --suggest pairs.jsonl --size 128\n  espalier basis new tone 17 512 4031", 1, -1};
    int n, n_gradient = 0;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (suggest && n > 1)
        return opts_usage_error("basis new", "features by name and --suggest do not go together");
    labels_open o = {0};
    es_basis b = {0};
    float *gradient = NULL, *score = NULL;
    char name[64];
    int version;
    rc = split_name(argv[1], name, &version, &o.err);
    if (rc == ES_OK && version)
        rc = es_fail(&o.err, ES_ERR_USAGE, "'%s': the version of a new basis comes by itself", argv[1]);
    if (rc == ES_OK)
        rc = open_all(&o);
    if (rc == ES_OK && suggest) {
        rc = gradients(&o, suggest, &gradient, &n_gradient);
        if (rc == ES_OK && !(score = es_calloc((size_t)size, sizeof *score)))
            rc = es_fail(&o.err, ES_ERR_MEMORY, "not enough memory");
        if (rc == ES_OK)
            rc = es_basis_suggest(&b, o.m, o.f.dictionary, o.f.atlas, gradient, n_gradient, size, signs, score, &o.err);
    } else if (rc == ES_OK) {
        const es_dictionary_info *info = es_dictionary_get_info(o.f.dictionary);
        b.layer = info->layer;
        snprintf(b.dictionary, sizeof b.dictionary, "%s", info->name);
        snprintf(b.dictionary_hash, sizeof b.dictionary_hash, "%s", info->hash);
        rc = es_model_hash(o.m, b.model_hash, &o.err);
        for (int i = 1; i < n && rc == ES_OK; i++) {
            int feature = 0;
            rc = labels_feature(&o, argv[1 + i], &feature, &o.err);
            float bound = rc == ES_OK ? app_default_bound(&o.f, feature) : 0;
            if (rc == ES_OK)
                rc = es_basis_add(&b, feature, -bound, bound, &o.err);
        }
    }
    if (rc == ES_OK) {
        snprintf(b.name, sizeof b.name, "%s", name);
        rc = save(&o, &b);
    }
    int code = rc == ES_OK ? print_basis(&o, &b, score, gradient, n_gradient) : app_fail(&o.err);
    free(score);
    free(gradient);
    es_basis_free(&b);
    labels_close(&o);
    return code;
}

/* A vector out of FILE or FILE:LAYER; without a layer the one after which the basis acts. */
static int add_vector(labels_open *o, es_basis *b, const char *from, const char *name, double lo, double hi)
{
    es_basis_vector v = {0};
    char path[1024];
    const char *colon = strrchr(from, ':');
    int layer = b->layer;
    bool given = colon && colon[1] && strspn(colon + 1, "0123456789") == strlen(colon + 1);
    size_t n = given ? (size_t)(colon - from) : strlen(from);
    if (n >= sizeof path)
        return es_fail(&o->err, ES_ERR_USAGE, "the path of the vector is too long");
    memcpy(path, from, n);
    path[n] = 0;
    if (given)
        layer = strlen(colon + 1) < 6 ? atoi(colon + 1) : 1 << 20;
    int rc = es_steering_read(&v, path, layer, es_dictionary_get_info(o->f.dictionary)->d, name, &o->err);
    if (rc == ES_OK && isnan(lo) && isnan(hi) && fabs((double)v.length - 1) < 1e-3)
        app_note("%s has length 1, so its file says nothing of how far one may go along it: the bounds are 1 as well; --lo and --hi set others", v.name);
    if (rc == ES_OK)
        rc = es_basis_add_vector(b, &v, isnan(lo) ? -v.length : (float)lo, isnan(hi) ? v.length : (float)hi, &o->err);
    free(v.unit);
    return rc;
}

static int change(int argc, char **argv, bool add)
{
    double lo = NAN, hi = NAN;
    const char *vector = NULL, *as = NULL;
    const opt adding[] = {
        {"vector", "FILE[:LAYER]", OPT_TEXT, &vector, 0, 0, "a steering vector of another tool: GGUF control vector, or persona-style .pt or .safetensors", NULL},
        {"as", "NAME", OPT_TEXT, &as, 0, 0, "the vector's name in the basis (default: the file's)", NULL},
        {"lo", "C", OPT_REAL, &lo, -1e6, 0, "lowest coefficient", NULL},
        {"hi", "C", OPT_REAL, &hi, 0, 1e6, "highest coefficient; both default to the 99th percentile of its activation, or the vector's length", NULL},
        {0},
    };
    static const command_help help_add = {"basis add", "NAME [FEATURE...]",
                                          "Adds features to a basis, or gives those in it other bounds; saved as a new version. --vector adds a direction that someone else\n"
                                          "made: a row of the basis like a feature's. A file with several layers gives the one after which the basis acts, or LAYER's.",
                                          "  espalier basis add brief 1234 --lo 0\n  espalier basis add brief --vector sycophancy.pt\n"
                                          "  espalier basis add brief --vector happy.gguf:12 --as happy --lo -4 --hi 4", 1, -1};
    static const command_help help_remove = {"basis remove", "NAME FEATURE|VECTOR...", "Takes features, or vectors by their names, out of a basis; saved as a new version.",
                                             "  espalier basis remove brief 1234 happy", 2, -1};
    int n;
    int rc = opts_parse(add ? &help_add : &help_remove, add ? adding : NULL, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (add && n < 2 && !vector)
        return opts_usage_error("basis add", "neither a feature nor --vector FILE is named");
    if (as && !vector)
        return opts_usage_error("basis add", "--as names a vector: --vector FILE is missing");
    labels_open o = {0};
    es_basis b = {0};
    rc = open_all(&o);
    if (rc == ES_OK)
        rc = app_basis(&b, &o.f, o.w, argv[1], &o.err);
    if (rc == ES_OK && vector)
        rc = add_vector(&o, &b, vector, as, lo, hi);
    for (int i = 1; i < n && rc == ES_OK; i++) {
        int feature = 0;
        const es_basis_vector *named = add ? NULL : es_basis_vector_named(&b, argv[1 + i]);
        if (named) {
            es_basis_remove(&b, named->number);
            continue;
        }
        rc = labels_feature(&o, argv[1 + i], &feature, &o.err);
        if (rc != ES_OK)
            break;
        float bound = app_default_bound(&o.f, feature);
        if (add)
            rc = es_basis_add(&b, feature, isnan(lo) ? -bound : (float)lo, isnan(hi) ? bound : (float)hi, &o.err);
        else if (!es_basis_remove(&b, feature))
            rc = es_fail(&o.err, ES_ERR_MISSING, "feature %d is not in the basis %s", feature, b.name);
    }
    if (rc == ES_OK)
        rc = save(&o, &b);
    int code = rc == ES_OK ? print_basis(&o, &b, NULL, NULL, 0) : app_fail(&o.err);
    es_basis_free(&b);
    labels_close(&o);
    return code;
}

static int basis_add(int argc, char **argv)
{
    return change(argc, argv, true);
}

static int basis_remove(int argc, char **argv)
{
    return change(argc, argv, false);
}

static int basis_show(int argc, char **argv)
{
    const char *experiences = NULL;
    const opt table[] = {
        {"experiences", "E.jsonl", OPT_TEXT, &experiences, 0, 0, "what share of their gradient the basis holds, beside random bases", NULL},
        {0},
    };
    static const command_help help = {"basis show", "NAME[@VERSION]|FILE.json",
                                      "The features of a basis with bounds and labels, its conditioning and effective rank.",
                                      "  espalier basis show brief\n  espalier basis show brief@2 --experiences pairs.jsonl --json", 1, 1};
    int n, n_gradient = 0;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    labels_open o = {0};
    es_basis b = {0};
    float *gradient = NULL;
    rc = open_all(&o);
    if (rc == ES_OK)
        rc = app_basis(&b, &o.f, o.w, argv[1], &o.err);
    if (rc == ES_OK && experiences)
        rc = gradients(&o, experiences, &gradient, &n_gradient);
    int code = rc == ES_OK ? print_basis(&o, &b, NULL, gradient, n_gradient) : app_fail(&o.err);
    free(gradient);
    es_basis_free(&b);
    labels_close(&o);
    return code;
}

static int basis_list(int argc, char **argv)
{
    static const command_help help = {"basis list", "", "The bases in the workspace.", "  espalier basis list --json", 0, 0};
    int n;
    int rc = opts_parse(&help, NULL, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    es_error err = {0};
    es_workspace *w = NULL;
    es_basis_line *line = NULL;
    n = 0;
    rc = app_workspace(&w, &err);
    if (rc == ES_OK)
        rc = es_workspace_basis_list(w, NULL, &line, &n, &err);
    int code;
    if (rc != ES_OK) {
        code = app_fail(&err);
    } else if (the_app.json) {
        json_t *list = json_array();
        for (int i = 0; i < n; i++)
            json_array_append_new(list, json_pack("{s:s,s:i,s:i,s:s}", "name", line[i].name, "version", line[i].version, "features", line[i].n,
                                                  "time", line[i].time));
        code = app_print_json(list);
    } else {
        for (int i = 0; i < n; i++) {
            char shown[130];
            printf("%-24s version %-4d %5d features  %s\n", app_shown(line[i].name, shown, sizeof shown), line[i].version, line[i].n, line[i].time);
        }
        code = app_flush();
    }
    free(line);
    es_workspace_close(w);
    return code;
}

static int export_json(const es_basis *b, const char *path, es_error *err)
{
    json_t *v = es_basis_to_json(b);
    char *text = v ? json_dumps(v, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) : NULL;
    int rc = text ? es_file_write(path, text, strlen(text), err) : es_fail(err, ES_ERR_MEMORY, "not enough memory");
    free(text);
    json_decref(v);
    return rc;
}

/* The features alone as a dictionary, with how often they are active where that is known. */
static int export_saelens(labels_open *o, const es_basis *b, const char *folder)
{
    int rc = es_dictionary_select(es_dictionary_get_info(o->f.dictionary)->folder, b->feature, b->n, folder, &o->err);
    float *density = rc == ES_OK && o->f.density ? es_calloc((size_t)b->n + 1, sizeof *density) : NULL;
    for (int k = 0; density && k < b->n; k++)
        density[k] = o->f.density[b->feature[k]];
    if (density)
        rc = es_sparsity_write(folder, density, b->n, &o->err);
    free(density);
    return rc;
}

static int basis_export(int argc, char **argv)
{
    const char *to = NULL, *vector = NULL;
    int feature = -1;
    float strength = 1;
    const opt table[] = {
        {"to", "KIND", OPT_TEXT, &to, 0, 0, "safetensors, json, saelens, npz or control-vector (default: by the file's name)", NULL},
        {"feature", "N", OPT_INT, &feature, 0, 1 << 24, "control-vector: which feature's direction", NULL},
        {"vector", "NAME", OPT_TEXT, &vector, 0, 0, "control-vector: or which vector of the basis", NULL},
        {"strength", "X", OPT_REALF, &strength, -1e6, 1e6, "control-vector: its length (default 1)", NULL},
        {0},
    };
    static const command_help help = {
        "basis export", "NAME[@VERSION] FILE",
        "Writes a basis for others. FILE.safetensors holds its directions, bounds, labels with authors, and the hashes of model and dictionary:\n"
        "basis import takes it in on another machine. FILE.json holds features and bounds, for --basis FILE.json. saelens: a folder with these\n"
        "features alone, as a dictionary. control-vector: a GGUF with one direction, as llama.cpp reads it. npz: directions and bounds for numpy.",
        "  espalier basis export brief brief.safetensors\n  espalier basis export brief brief-sae --to saelens\n"
        "  espalier basis export brief terse.gguf --to control-vector --feature 4989 --strength 6", 2, 2};
    static const char *const kinds[] = {"safetensors", "json", "saelens", "npz", "control-vector"};
    int n, kind = -1;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    const char *end = strrchr(argv[2], '.');
    if (!to)
        to = end && !strcmp(end, ".safetensors") ? "safetensors" : end && !strcmp(end, ".npz") ? "npz" : end && !strcmp(end, ".gguf") ? "control-vector" : "json";
    for (int i = 0; i < 5; i++)
        if (!strcmp(to, kinds[i]))
            kind = i;
    if (kind < 0)
        return opts_usage_error("basis export", "--to is safetensors, json, saelens, npz or control-vector, not '%s'", to);
    if (kind == 4 && (feature < 0) == !vector)
        return opts_usage_error("basis export", "--feature N or --vector NAME is missing: a control vector holds one direction");
    labels_open o = {0};
    es_basis b = {0};
    rc = open_all(&o);
    if (rc == ES_OK)
        rc = app_basis(&b, &o.f, o.w, argv[1], &o.err);
    int which = -1;
    const es_basis_vector *v = rc == ES_OK && vector ? es_basis_vector_named(&b, vector) : NULL;
    for (int k = 0; k < b.n; k++)
        if (vector ? v && b.feature[k] == v->number : b.feature[k] == feature)
            which = k;
    if (rc == ES_OK && kind == 4 && which < 0 && vector)
        rc = es_fail(&o.err, ES_ERR_USAGE, "there is no vector '%s' in the basis %s", vector, b.name);
    if (rc == ES_OK && kind == 4 && which < 0)
        rc = es_fail(&o.err, ES_ERR_USAGE, "feature %d is not in the basis %s", feature, b.name);
    if (rc == ES_OK && kind == 2 && b.n_vector)
        rc = es_fail(&o.err, ES_ERR_USAGE, "the basis %s holds the vector %s, which has no encoder: a SAELens folder holds features only; basis remove takes it out", b.name,
                     b.vector[0].name);
    if (rc == ES_OK)
        rc = kind == 0   ? es_basis_file_write(&b, o.m, o.f.dictionary, o.w, app_author(), argv[2], &o.err)
             : kind == 1 ? export_json(&b, argv[2], &o.err)
             : kind == 2 ? export_saelens(&o, &b, argv[2])
             : kind == 3 ? es_basis_npz(&b, o.f.dictionary, argv[2], &o.err)
                         : es_basis_control_vector(&b, o.m, o.f.dictionary, which, strength, argv[2], &o.err);
    int code = rc == ES_OK ? EXIT_DONE : app_fail(&o.err);
    if (rc == ES_OK && the_app.json)
        code = app_print_json(json_pack("{s:s,s:i,s:s,s:s}", "name", b.name, "version", b.version, "file", argv[2], "kind", to));
    else if (rc == ES_OK)
        app_note("wrote %s", argv[2]);
    es_basis_free(&b);
    labels_close(&o);
    return code;
}

static int basis_import(int argc, char **argv)
{
    const char *name = NULL;
    const opt table[] = {
        {"name", "NAME", OPT_TEXT, &name, 0, 0, "under this name (default: the one it has)", NULL},
        {0},
    };
    static const command_help help = {
        "basis import", "FILE.safetensors",
        "Takes in a basis that someone exported, with the labels of features that have none here, under their authors. A file of another model or\n"
        "another dictionary is refused with both hashes.",
        "  espalier basis import brief.safetensors --name brief-from-ann", 1, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (name && (!*name || strlen(name) >= 64 || strchr(name, '@') || strchr(name, '/')))
        return opts_usage_error("basis import", "'%s' is no name for a basis", name);
    labels_open o = {0};
    es_basis b = {0};
    json_t *about = NULL;
    int version = 0, taken = 0;
    rc = open_all(&o);
    if (rc == ES_OK)
        rc = es_basis_file_read(&b, &about, NULL, o.m, o.f.dictionary, argv[1], &o.err);
    if (rc == ES_OK && name)
        snprintf(b.name, sizeof b.name, "%s", name);
    if (rc == ES_OK)
        rc = es_workspace_basis_save(o.w, &b, &version, &o.err);
    if (rc == ES_OK)
        rc = es_basis_file_labels(about, o.f.hash, o.w, &taken, &o.err);
    int code = rc == ES_OK ? EXIT_DONE : app_fail(&o.err);
    if (rc == ES_OK && the_app.json)
        code = app_print_json(json_pack("{s:s,s:i,s:i,s:i}", "name", b.name, "version", version, "features", b.n, "labels", taken));
    else if (rc == ES_OK)
        app_note("%s, version %d: %d features, %d labels taken in", b.name, version, b.n, taken);
    json_decref(about);
    es_basis_free(&b);
    labels_close(&o);
    return code;
}

int cmd_basis(int argc, char **argv)
{
    static const command table[] = {
        {"new", "a basis of named features, or of those that experiences suggest", basis_new},
        {"add", "features with bounds", basis_add},
        {"remove", "features", basis_remove},
        {"show", "features, bounds, labels, conditioning", basis_show},
        {"list", "all bases", basis_list},
        {"export", "as one file with its labels, as JSON, or for other tools", basis_export},
        {"import", "a file of basis export", basis_import},
        {"report", "with its evidence, as Markdown, CSV or JSONL", basis_report},
        {0},
    };
    return app_subcommand("basis", "Chosen features with bounds: the directions along which the model may adapt.", table, argc, argv);
}
