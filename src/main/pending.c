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
WEAK int es_export_adapter(const es_adapter *a, es_model *m, const es_dictionary *s, es_workspace *l, es_export_kind k, const char *p, es_error *err)
{
    (void)a; (void)m; (void)s; (void)l; (void)k; (void)p;
    REFUSE;
}
WEAK const float *es_atlas_density(const es_atlas *a) { (void)a; return NULL; }
WEAK int es_atlas_card(es_atlas *a, int f, es_feature_card *out, es_error *err) { (void)a; (void)f; (void)out; REFUSE; }
WEAK int es_atlas_tokens_text(es_atlas *a, const es_model *m, int f, es_buf *out, es_error *err) { (void)a; (void)m; (void)f; (void)out; REFUSE; }
