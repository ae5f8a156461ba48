/* features next: which feature is most worth labelling now. */
#include "cmd_label.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the gradient of the experiences asks for, as basis new --suggest finds it. */
static int suggest(labels_open *o, const char *path, es_basis *b, float **score, es_error *err)
{
    enum { SIZE = 512 };
    es_experiences e = {0};
    es_progress progress = app_progress();
    size_t cells;
    float *gradient = NULL;
    int rc = es_experiences_load(&e, path, err), size = o->f.n < SIZE ? o->f.n : SIZE;
    if (rc == ES_OK && e.n == 0)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: holds no experiences", path);
    *score = es_calloc((size_t)size, sizeof **score);
    if (rc == ES_OK && (!*score || !es_mul((size_t)e.n, (size_t)es_dictionary_get_info(o->f.dictionary)->d, &cells) || !(gradient = es_calloc(cells, sizeof *gradient))))
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for %d gradients", e.n);
    if (rc == ES_OK)
        rc = es_attribute(o->m, o->f.dictionary, &e, the_app.threads, gradient, &progress, err);
    app_progress_end();
    if (rc == ES_OK)
        rc = es_basis_suggest(b, o->m, o->f.dictionary, o->f.atlas, gradient, e.n, size, false, *score, err);
    free(gradient);
    es_experiences_free(&e);
    return rc;
}

static void print_one(labels_open *o, const es_next *x, char **labels, json_t *list)
{
    es_buf tokens = {0};
    const char *label = labels ? labels[x->feature] : NULL;
    if (o->f.atlas)
        es_atlas_tokens_text(o->f.atlas, o->m, x->feature, &tokens, NULL);
    if (list) {
        json_array_append_new(list, json_pack("{s:i,s:f,s:f,s:f,s:f,s:s?,s:o}", "feature", x->feature, "value", x->value, "effect", x->effect, "use", x->use, "doubt", x->doubt,
                                              "label", label, "tokens", app_json_text(tokens.data ? tokens.data : "", tokens.len)));
    } else {
        char a[120], b[160];
        printf("%7d  %6.4f  %5.2f  %5.2f  %5.2f  %-28s  %s\n", x->feature, x->value, x->effect, x->use, x->doubt, app_shown(label ? label : "", a, 29),
               app_shown(tokens.data ? tokens.data : "", b, 60));
    }
    es_buf_free(&tokens);
}

int features_next(int argc, char **argv)
{
    int count = 20;
    const char *experiences = NULL;
    const opt table[] = {
        {"n", "N", OPT_INT, &count, 1, 1 << 20, "so many (default 20)", NULL},
        {"experiences", "E.jsonl", OPT_TEXT, &experiences, 0, 0, "those first that their gradient asks for", NULL},
        {0},
    };
    static const command_help help = {"features next", "",
                                      "The features most worth labelling now, best first: value = effect x use x doubt. effect: how strongly the feature moves the output, as\n"
                                      "a share of all features (with --experiences, those that their gradient asks for come first); use: how much text it explains, by its\n"
                                      "density; doubt: 1 without a label, less where an automatic one passed its test. People's labels and skipped features are left out.",
                                      "  espalier features next --n 20 --json\n  espalier features next --experiences pairs.jsonl", 0, 0};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    es_error err = {0};
    labels_open o;
    es_basis b = {0};
    float *score = NULL;
    es_next *next = NULL;
    rc = labels_open_all(&o, &err);
    if (rc == ES_OK && !(next = es_calloc((size_t)count, sizeof *next)))
        rc = es_fail(&err, ES_ERR_MEMORY, "not enough memory");
    if (rc == ES_OK && experiences)
        rc = suggest(&o, experiences, &b, &score, &err);
    n = 0;
    if (rc == ES_OK)
        rc = es_workspace_next(o.w, o.f.hash, &(es_next_options){b.feature, score, b.n}, next, count, &n, &err);
    int code;
    if (rc != ES_OK) {
        code = app_fail(&err);
    } else {
        char **labels = app_labels_from(&o.f, o.w);
        json_t *list = the_app.json ? json_array() : NULL;
        if (!list && n)
            printf("feature   value  effect  use   doubt\n");
        for (int i = 0; i < n; i++)
            print_one(&o, &next[i], labels, list);
        code = list ? app_print_json(list) : app_flush();
        app_labels_free(labels, o.f.n);
    }
    free(next);
    free(score);
    es_basis_free(&b);
    labels_close(&o);
    return code;
}
