/* label import, label export --format neuronpedia. */
#include "neuronpedia.h"

#include <stdlib.h>

#include "cmd_label.h"

int app_neuronpedia_import(const char *path, const char *source)
{
    labels_open o;
    es_error err = {0};
    es_neuronpedia_taken t = {0};
    int rc = labels_open_all(&o, &err);
    rc = rc ? rc : es_neuronpedia_import(o.w, o.f.hash, o.f.n, path, source, &t, &err);
    int code = rc ? app_fail(&err) : EXIT_DONE;
    if (!rc && the_app.json)
        code = app_print_json(json_pack("{s:i,s:i,s:i,s:i}", "imported", t.labels, "kept", t.kept, "more", t.more, "other", t.other));
    else if (!rc)
        app_note("imported %d labels; %d features keep what a person said here; %d further explanations and %d other records were left out", t.labels, t.kept, t.more, t.other);
    labels_close(&o);
    return code;
}

int app_neuronpedia_export(const app_neuronpedia *to)
{
    labels_open o;
    es_error err = {0};
    es_basis b = {0};
    es_neuronpedia_count c = {0};
    int *feature = NULL, n = 0;
    int rc = labels_open_all(&o, &err);
    if (!rc && to->basis)
        rc = app_basis(&b, &o.f, o.w, to->basis, &err);
    if (!rc && to->basis && !(feature = es_calloc((size_t)b.n + 1, sizeof *feature)))
        rc = es_fail(&err, ES_ERR_MEMORY, "not enough memory");
    for (int k = 0; !rc && k < b.n; k++)
        if (b.feature[k] >= 0) /* vectors are no features of the dictionary */
            feature[n++] = b.feature[k];
    es_neuronpedia_options options = {.model = to->model, .source = to->source, .feature = feature, .n_feature = n, .list = to->basis ? b.name : NULL, .labels_only = to->labels_only};
    es_progress progress = app_progress();
    rc = rc ? rc : es_neuronpedia_export(o.w, o.m, o.f.dictionary, o.f.atlas, to->folder, &options, &c, &progress, &err);
    app_progress_end();
    int code = rc ? app_fail(&err) : EXIT_DONE;
    if (!rc && the_app.json)
        code = app_print_json(json_pack("{s:s,s:i,s:i,s:i}", "folder", c.folder, "labels", c.labels, "features", c.features, "examples", c.examples));
    else if (!rc)
        app_note("wrote %s: %d labels, %d dashboards", c.folder, c.labels, c.features);
    free(feature);
    es_basis_free(&b);
    labels_close(&o);
    return code;
}
