/* A stand-in, weak, until export comes. */
#include "app.h"

__attribute__((weak)) int es_export_adapter(const es_adapter *a, es_model *m, const es_dictionary *s, es_workspace *l, es_export_kind k, const char *p, es_error *err)
{
    (void)a; (void)m; (void)s; (void)l; (void)k; (void)p;
    return es_fail(err, ES_ERR_MISSING, "this part is not built yet");
}
