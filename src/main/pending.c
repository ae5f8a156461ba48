/* Stand-ins, weak, for what the folders to the left do not have yet; each goes when the real one comes. */
#include "app.h"

#define WEAK __attribute__((weak))
#define REFUSE return es_fail(err, ES_ERR_MISSING, "this part is not built yet")

WEAK const char *es_atlas_dictionary_hash(const es_atlas *a) { (void)a; return ""; }
WEAK void es_atlas_free(es_atlas *a) { (void)a; }
WEAK const float *es_atlas_max(const es_atlas *a) { (void)a; return NULL; }
WEAK const float *es_atlas_p99(const es_atlas *a) { (void)a; return NULL; }
WEAK int es_atlas_features(const es_atlas *a) { (void)a; return 0; }
WEAK int es_atlas_open(es_atlas **out, const char *path, es_error *err) { (void)path; *out = NULL; REFUSE; }
WEAK void es_workspace_close(es_workspace *w) { (void)w; }
WEAK int es_workspace_open(es_workspace **out, const char *path, es_error *err) { (void)path; *out = NULL; REFUSE; }
WEAK int es_workspace_labels_all(es_workspace *w, const char *d, int n, char **out, es_error *err) { (void)w; (void)d; (void)n; (void)out; REFUSE; }
WEAK int es_workspace_use_dictionary(es_workspace *w, const es_dictionary *s, es_atlas *a, const es_model *m, const char *import_path,
                                     const es_progress *progress, es_error *err)
{
    (void)w; (void)s; (void)a; (void)m; (void)import_path; (void)progress;
    REFUSE;
}
WEAK es_studio_options es_studio_default(void) { return (es_studio_options){0}; }
WEAK int es_studio_open(es_studio **out, const es_studio_options *o, es_error *err) { (void)o; *out = NULL; REFUSE; }
WEAK void es_studio_close(es_studio *s) { (void)s; }
WEAK int es_ui_run(es_studio *s, const es_ui_options *o, es_error *err) { (void)s; (void)o; REFUSE; }
WEAK es_atlas_options es_atlas_default(void) { return (es_atlas_options){0}; }
WEAK int es_atlas_build(es_model *m, const es_dictionary *s, const char *h, const char *path, const es_atlas_options *o, const es_progress *p, es_error *err)
{
    (void)m; (void)s; (void)h; (void)path; (void)o; (void)p;
    REFUSE;
}
WEAK int es_dictionary_measure(es_model *m, const es_dictionary *s, const char *const *file, int n_file, uint64_t max_tokens, int threads,
                               es_dictionary_stats *out, const es_progress *p, es_error *err)
{
    (void)m; (void)s; (void)file; (void)n_file; (void)max_tokens; (void)threads; (void)out; (void)p;
    REFUSE;
}
WEAK int es_workspace_basis_save(es_workspace *w, const es_basis *b, int *v, es_error *err) { (void)w; (void)b; (void)v; REFUSE; }
WEAK int es_workspace_basis_load(es_workspace *w, const char *name, int v, es_basis *out, es_error *err) { (void)w; (void)name; (void)v; (void)out; REFUSE; }
WEAK int es_workspace_basis_list(es_workspace *w, const char *d, es_basis_line **out, int *n, es_error *err) { (void)w; (void)d; (void)out; (void)n; REFUSE; }
WEAK int es_workspace_snapshot_bytes(es_workspace *w, int64_t id, es_buf *out, es_error *err) { (void)w; (void)id; (void)out; REFUSE; }
WEAK int es_workspace_snapshot_current(es_workspace *w, int64_t *id) { (void)w; *id = 0; return 0; }
WEAK int es_workspace_snapshot_influence(es_workspace *w, int64_t id, int64_t **e, float **i, int *n, int *k, es_error *err)
{
    (void)w; (void)id; (void)e; (void)i; (void)n; (void)k;
    REFUSE;
}
WEAK int es_export_adapter(const es_adapter *a, es_model *m, const es_dictionary *s, es_workspace *l, es_export_kind k, const char *p, es_error *err)
{
    (void)a; (void)m; (void)s; (void)l; (void)k; (void)p;
    REFUSE;
}
WEAK const float *es_atlas_density(const es_atlas *a) { (void)a; return NULL; }
WEAK int es_atlas_card(es_atlas *a, int f, es_feature_card *out, es_error *err) { (void)a; (void)f; (void)out; REFUSE; }
WEAK int es_atlas_tokens_text(es_atlas *a, const es_model *m, int f, es_buf *out, es_error *err) { (void)a; (void)m; (void)f; (void)out; REFUSE; }
WEAK int es_workspace_check(es_workspace *w, es_error *err) { (void)w; REFUSE; }
WEAK int es_workspace_search(es_workspace *w, const char *d, const char *q, int *f, int max, int *n, es_error *err) { (void)w; (void)d; (void)q; (void)f; (void)max; (void)n; REFUSE; }
WEAK int es_workspace_label_get(es_workspace *w, const char *d, int f, es_label *out, es_error *err) { (void)w; (void)d; (void)f; (void)out; REFUSE; }
WEAK int es_workspace_label_set(es_workspace *w, const char *d, int f, const char *t, const char *g, int r, const char *a, es_error *err)
{
    (void)w; (void)d; (void)f; (void)t; (void)g; (void)r; (void)a;
    REFUSE;
}
WEAK int es_workspace_label_undo(es_workspace *w, const char *d, int *f, es_error *err) { (void)w; (void)d; (void)f; REFUSE; }
WEAK int es_workspace_label_import(es_workspace *w, const char *d, int n, const char *p, const char *a, int *i, es_error *err) { (void)w; (void)d; (void)n; (void)p; (void)a; (void)i; REFUSE; }
WEAK int es_workspace_label_export(es_workspace *w, const char *d, json_t **out, es_error *err) { (void)w; (void)d; (void)out; REFUSE; }
WEAK void es_label_free(es_label *l) { (void)l; }
