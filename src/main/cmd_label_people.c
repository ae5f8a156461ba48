/* label merge, conflicts, choose, show-first, agreement, redo: the labels of several annotators. */
#include "cmd_label.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int labels_open_features(labels_open *o, es_error *err)
{
    *o = (labels_open){0};
    int rc = app_model(&o->m, err);
    return rc == ES_OK ? app_features_look(&o->f, o->m, err) : rc;
}

int labels_open_all(labels_open *o, es_error *err)
{
    int rc = labels_open_features(o, err);
    return rc == ES_OK ? app_workspace_for(&o->w, &o->f, o->m, err) : rc;
}

void labels_close(labels_open *o)
{
    app_labels_free(o->labels, o->f.n);
    es_workspace_close(o->w);
    app_features_close(&o->f);
    es_model_free(o->m);
}

int labels_feature(const labels_open *o, const char *s, int *out, es_error *err)
{
    char *end;
    long v = strtol(s, &end, 10);
    if (end == s || *end || v < 0 || v >= o->f.n)
        return es_fail(err, ES_ERR_MISSING, "there is no feature '%s': the dictionary has 0 to %d", s, o->f.n - 1);
    *out = (int)v;
    return ES_OK;
}

int label_redo(int argc, char **argv)
{
    static const command_help help = {"label redo", "", "Does the change again that was undone last, unless something was changed since.", "  espalier label redo", 0, 0};
    int n, feature = -1, count = 0;
    int rc = opts_parse(&help, NULL, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    es_error err = {0};
    labels_open o;
    rc = labels_open_all(&o, &err);
    if (rc == ES_OK)
        rc = es_workspace_label_redo(o.w, o.f.hash, &feature, &count, &err);
    int code = rc == ES_OK ? EXIT_DONE : app_fail(&err);
    if (rc == ES_OK && the_app.json)
        code = app_print_json(json_pack("{s:i,s:i}", "feature", feature, "features", count));
    else if (rc == ES_OK)
        app_note("did the change of feature %d again", feature);
    labels_close(&o);
    return code;
}

/* ---- merging ----------------------------------------------------------------------------------------------------------------------------- */

static int print_conflicts(json_t *list)
{
    size_t i, k;
    json_t *v, *label;
    json_array_foreach(list, i, v) {
        printf("%d\n", (int)json_integer_value(json_object_get(v, "feature")));
        json_t *labels = json_object_get(v, "labels");
        json_array_foreach(labels, k, label) {
            char who[80], text[200];
            printf("  %s %-16s  %s\n", k ? " " : "*", app_shown(json_string_value(json_object_get(label, "author")), who, sizeof who),
                   app_shown(json_string_value(json_object_get(label, "text")), text, sizeof text));
        }
    }
    return app_flush();
}

int label_merge(int argc, char **argv)
{
    const char *author = NULL;
    const opt table[] = {
        {"author", "NAME", OPT_TEXT, &author, 0, 0, "of labels that name none", NULL},
        {0},
    };
    static const command_help help = {"label merge", "FILE.jsonl...",
                                      "Takes in what other people exported (label export), each one's labels kept apart under their name; where an annotator's own are\n"
                                      "here already, the newer ones stay. All files or nothing, one step of undo. Then lists the features that people label differently;\n"
                                      "* is what is shown. If nobody's labels were preferred yet (label show-first), yours are from now on.",
                                      "  espalier label merge ann.jsonl bob.jsonl\n  espalier label choose 1234 ann", 1, -1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    es_error err = {0};
    labels_open o;
    es_merge m = {0};
    json_t *conflicts = NULL;
    char preferred[64] = "";
    rc = labels_open_all(&o, &err);
    if (rc == ES_OK)
        rc = es_workspace_label_merge(o.w, o.f.hash, o.f.n, (const char *const *)(argv + 1), n, author ? author : app_author(), &m, &err);
    if (rc == ES_OK)
        es_workspace_label_preferred(o.w, preferred);
    if (rc == ES_OK && !*preferred)
        rc = es_workspace_label_prefer(o.w, app_author(), &err);
    if (rc == ES_OK)
        rc = es_workspace_label_conflicts(o.w, o.f.hash, &conflicts, &err);
    int code;
    if (rc != ES_OK) {
        code = app_fail(&err);
    } else if (the_app.json) {
        code = app_print_json(json_pack("{s:i,s:i,s:i,s:i,s:i,s:o}", "read", m.read, "added", m.added, "changed", m.changed, "same", m.same, "older", m.older, "conflicts",
                                        conflicts));
        conflicts = NULL;
    } else {
        app_note("%d labels: %d new, %d changed, %d as they were, %d older than what is here; %zu conflicts", m.read, m.added, m.changed, m.same, m.older,
                 json_array_size(conflicts));
        code = print_conflicts(conflicts);
    }
    json_decref(conflicts);
    labels_close(&o);
    return code;
}

int label_conflicts(int argc, char **argv)
{
    static const command_help help = {"label conflicts", "", "The features that people label differently and of which none is chosen; * is what is shown.",
                                      "  espalier label conflicts --json", 0, 0};
    int n;
    int rc = opts_parse(&help, NULL, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    es_error err = {0};
    labels_open o;
    json_t *conflicts = NULL;
    rc = labels_open_all(&o, &err);
    if (rc == ES_OK)
        rc = es_workspace_label_conflicts(o.w, o.f.hash, &conflicts, &err);
    int code;
    if (rc != ES_OK) {
        code = app_fail(&err);
    } else if (the_app.json) {
        code = app_print_json(conflicts);
    } else {
        code = print_conflicts(conflicts);
        json_decref(conflicts);
    }
    labels_close(&o);
    return code;
}

int label_choose(int argc, char **argv)
{
    bool none = false;
    const opt table[] = {
        {"none", NULL, OPT_FLAG, &none, 0, 0, "nobody's any longer: the usual order decides", NULL},
        {0},
    };
    static const command_help help = {"label choose", "FEATURE AUTHOR", "Whose label of a feature is shown, which settles a conflict. Can be undone.",
                                      "  espalier label choose 1234 ann\n  espalier label choose 1234 --none", 1, 2};
    int n, feature = 0;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (none == (n == 2))
        return opts_usage_error("label choose", none ? "AUTHOR and --none do not go together" : "AUTHOR is missing");
    es_error err = {0};
    labels_open o;
    es_label l = {0};
    rc = labels_open_all(&o, &err);
    if (rc == ES_OK)
        rc = labels_feature(&o, argv[1], &feature, &err);
    if (rc == ES_OK)
        rc = es_workspace_label_choose(o.w, o.f.hash, feature, none ? "" : argv[2], &err);
    if (rc == ES_OK && es_workspace_label_get(o.w, o.f.hash, feature, &l, &err) == ES_ERR_MISSING)
        l = (es_label){.text = strdup(""), .tags = strdup(""), .note = strdup("")};
    int code = rc == ES_OK ? EXIT_DONE : app_fail(&err);
    if (rc == ES_OK && the_app.json)
        code = app_print_json(json_pack("{s:i,s:s?,s:s}", "feature", feature, "label", l.text, "author", l.author));
    else if (rc == ES_OK)
        app_note("%d: %s (%s)", feature, l.text ? l.text : "", l.author);
    es_label_free(&l);
    labels_close(&o);
    return code;
}

int label_show_first(int argc, char **argv)
{
    bool none = false;
    const opt table[] = {
        {"none", NULL, OPT_FLAG, &none, 0, 0, "nobody's in particular: the newest", NULL},
        {0},
    };
    static const command_help help = {"label show-first", "[AUTHOR]", "Whose labels are shown where several people labelled a feature and none was chosen. Without a name: says whose.",
                                      "  espalier label show-first ann", 0, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (none && n)
        return opts_usage_error("label show-first", "AUTHOR and --none do not go together");
    es_error err = {0};
    es_workspace *w = NULL;
    char preferred[64] = "";
    rc = app_workspace(&w, &err);
    if (rc == ES_OK && (n || none))
        rc = es_workspace_label_prefer(w, none ? "" : argv[1], &err);
    int code = rc == ES_OK ? EXIT_DONE : app_fail(&err);
    if (rc == ES_OK)
        es_workspace_label_preferred(w, preferred);
    if (rc == ES_OK && the_app.json) {
        code = app_print_json(json_pack("{s:s}", "author", preferred));
    } else if (rc == ES_OK) {
        char shown[80];
        printf("%s\n", *preferred ? app_shown(preferred, shown, sizeof shown) : "nobody's in particular: the newest");
        code = app_flush();
    }
    es_workspace_close(w);
    return code;
}

/* ---- agreement ---------------------------------------------------------------------------------------------------------------------------- */

static json_t *real_or_null(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *kappa_json(const es_kappa *k)
{
    return json_pack("{s:i,s:o,s:o,s:o,s:o,s:o,s:o}", "n", k->n, "observed", real_or_null(k->observed), "expected", real_or_null(k->expected), "kappa",
                     real_or_null(k->kappa), "error", real_or_null(k->error), "lo", real_or_null(k->lo), "hi", real_or_null(k->hi));
}

static void print_kappa(const char *what, const es_kappa *k)
{
    char shown[80];
    printf("    %-24s ", app_shown(what, shown, 25));
    if (!isfinite(k->kappa))
        printf("kappa not defined: %s", k->n ? "both always say the same one thing" : "nothing in common");
    else if (isfinite(k->lo))
        printf("kappa %5.2f (%5.2f to %5.2f)", k->kappa, k->lo, k->hi);
    else
        printf("kappa %5.2f", k->kappa);
    printf("%s\n", "");
}

static json_t *agreement_json(const es_agreement *a)
{
    json_t *tags = json_object();
    for (int i = 0; i < a->n_tag; i++)
        json_object_set_new(tags, a->tag[i].tag, kappa_json(&a->tag[i].kappa));
    return json_pack("{s:s,s:s,s:i,s:i,s:i,s:o,s:o,s:o}", "a", a->a, "b", a->b, "tagged", a->tagged, "labelled", a->labelled, "same", a->same, "tags", kappa_json(&a->tags),
                     "text", kappa_json(&a->text), "tag", tags);
}

int label_agreement(int argc, char **argv)
{
    static const command_help help = {"label agreement", "",
                                      "How far each two annotators agree, beyond chance: Cohen's kappa. On tags: over the features that both tagged, each with each tag that\n"
                                      "either uses is one decision, has it or has it not; the interval is of 1,000 resamples of features; then each tag alone. On texts: over\n"
                                      "the features that both labelled, the text (case and spaces apart) is the category.",
                                      "  espalier label agreement\n  espalier label agreement --json", 0, 0};
    int n, count = 0;
    int rc = opts_parse(&help, NULL, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    es_error err = {0};
    labels_open o;
    es_agreement *a = NULL;
    rc = labels_open_all(&o, &err);
    if (rc == ES_OK)
        rc = es_workspace_agreement(o.w, o.f.hash, &a, &count, &err);
    int code;
    if (rc != ES_OK) {
        code = app_fail(&err);
    } else if (the_app.json) {
        json_t *list = json_array();
        for (int i = 0; i < count; i++)
            json_array_append_new(list, agreement_json(&a[i]));
        code = app_print_json(list);
    } else {
        if (!count)
            app_note("no two annotators said something of the same feature");
        for (int i = 0; i < count; i++) {
            char x[80], y[80];
            printf("%s and %s: %d features tagged by both, %d labelled by both, %d of these with the same text\n", app_shown(a[i].a, x, sizeof x),
                   app_shown(a[i].b, y, sizeof y), a[i].tagged, a[i].labelled, a[i].same);
            print_kappa("tags", &a[i].tags);
            print_kappa("texts", &a[i].text);
            for (int k = 0; k < a[i].n_tag && k < 10; k++) {
                char tag[80];
                snprintf(tag, sizeof tag, "tag %s", a[i].tag[k].tag);
                print_kappa(tag, &a[i].tag[k].kappa);
            }
        }
        code = app_flush();
    }
    es_agreements_free(a, count);
    labels_close(&o);
    return code;
}
