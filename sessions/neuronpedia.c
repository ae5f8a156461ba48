/* neuronpedia: writing. */
#include "neuronpedia.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <zlib.h>

#include "autolabel.h"

enum { BATCH = 1024, NEIGHBOURS = 10 };
#define NEIGHBOUR_WORK 5e7 /* pairs of features compared at most: a minute */

typedef struct writer {
    es_workspace *w;
    es_model *m;
    const es_dictionary *s;
    es_atlas *a;
    const es_neuronpedia_options *o;
    char model[128], source[128], folder[1200];
    json_t *label;  /* by feature's number as text: label objects */
    bool *wanted;   /* [F] */
    int F;
    es_neuronpedia_count *count;
} writer;

/* ---- names ------------------------------------------------------------------------------------------------------------------------------- */

static bool is_id(const char *s)
{
    size_t n = strlen(s);
    if (!n || n > 100 || s[0] == '.')
        return false;
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)s[i]) && !strchr("._-", s[i]))
            return false;
    return true;
}

/* "SmolLM2 135M Instruct" -> "smollm2-135m-instruct" */
static void id_of(const char *name, char out[128])
{
    size_t n = 0;
    for (const char *p = name; *p && n < 90; p++) {
        if (isalnum((unsigned char)*p) || (strchr("._", *p) && n))
            out[n++] = (char)tolower((unsigned char)*p);
        else if (n && out[n - 1] != '-')
            out[n++] = '-';
    }
    while (n && out[n - 1] == '-')
        n--;
    out[n] = 0;
    if (!n)
        snprintf(out, 128, "model");
}

static int names(writer *w, const char *folder, es_error *err)
{
    const es_dictionary_info *i = es_dictionary_get_info(w->s);
    static const char *const kind[] = {[ES_HOOK_RESIDUAL] = "res", [ES_HOOK_ATTENTION] = "att", [ES_HOOK_ATTENTION_OUT] = "att", [ES_HOOK_MLP_IN] = "mlp", [ES_HOOK_MLP_OUT] = "mlp",
                                       [ES_HOOK_UNKNOWN] = "sae"};
    if (w->o->model)
        snprintf(w->model, sizeof w->model, "%s", w->o->model);
    else
        id_of(es_model_get_info(w->m)->name, w->model);
    if (w->o->source)
        snprintf(w->source, sizeof w->source, "%s", w->o->source);
    else if (i->n_features >= 1000)
        snprintf(w->source, sizeof w->source, "%d-espalier-%s-%dk", i->layer, kind[i->hook], (i->n_features + 500) / 1000);
    else
        snprintf(w->source, sizeof w->source, "%d-espalier-%s-%d", i->layer, kind[i->hook], i->n_features);
    if (!is_id(w->model) || !is_id(w->source))
        return es_fail(err, ES_ERR_USAGE, "'%.80s' and '%.80s' must be ids of letters, digits, '.', '-' and '_'", w->model, w->source);
    if (snprintf(w->folder, sizeof w->folder, "%s/%s/%s", folder, w->model, w->source) >= (int)sizeof w->folder - 64)
        return es_fail(err, ES_ERR_USAGE, "%.80s...: the path is too long", folder);
    return ES_OK;
}

/* ---- files ------------------------------------------------------------------------------------------------------------------------------- */

static void add_line(es_buf *b, json_t *v)
{
    es_buf_json_line(b, v, JSON_REAL_PRECISION(9));
    json_decref(v);
}

static int put_plain(const writer *w, const char *name, json_t *v, es_error *err)
{
    char path[1300];
    es_buf b = {0};
    add_line(&b, v);
    snprintf(path, sizeof path, "%s/%s", w->folder, name);
    int rc = b.failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory for %s, or a name in it is not UTF-8", path) : es_file_write(path, b.data, b.len, err);
    es_buf_free(&b);
    return rc;
}

/* Nothing of the time or the machine in its header: the same content is the same file. */
static int put_gz(const writer *w, const char *what, int batch, const es_buf *b, es_error *err)
{
    char path[1300];
    snprintf(path, sizeof path, "%s/%s/batch-%d.jsonl.gz", w->folder, what, batch);
    if (b->failed)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for %s, or a text in it is not UTF-8", path);
    if (!b->len)
        return ES_OK;
    z_stream z = {0};
    if (deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for %s", path);
    size_t room = deflateBound(&z, b->len);
    void *out = malloc(room);
    int rc = out && b->len <= UINT32_MAX && room <= UINT32_MAX ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for %s", path);
    if (!rc) {
        z.next_in = (Bytef *)b->data;
        z.avail_in = (uInt)b->len;
        z.next_out = out;
        z.avail_out = (uInt)room;
        rc = deflate(&z, Z_FINISH) == Z_STREAM_END ? es_file_write(path, out, z.total_out, err) : es_fail(err, ES_ERR_MEMORY, "%s: cannot be packed", path);
    }
    deflateEnd(&z);
    free(out);
    return rc;
}

static void now_text(char out[32])
{
    time_t t = time(NULL);
    struct tm utc;
    out[0] = 0;
    if (gmtime_r(&t, &utc))
        strftime(out, 32, "%Y-%m-%dT%H:%M:%S", &utc);
}

static int put_heads(const writer *w, es_error *err)
{
    const es_dictionary_info *i = es_dictionary_get_info(w->s);
    const es_model_info *m = es_model_get_info(w->m);
    char now[32], set[128], hash[65];
    now_text(now);
    const char *dash = strchr(w->source, '-');
    snprintf(set, sizeof set, "%s", dash && dash[1] ? dash + 1 : w->source);
    int rc = es_model_hash(w->m, hash, err);
    rc = rc ? rc : put_plain(w, "model.jsonl", json_pack("{s:s,s:s,s:s,s:s,s:i,s:s,s:s,s:s}", "id", w->model, "instruct", "", "displayName", m->name, "displayNameShort", m->name, "layers",
                                                         m->n_layer, "createdAt", now, "updatedAt", now, "espalierSha256", hash), err);
    rc = rc ? rc : put_plain(w, "release.jsonl", json_pack("{s:s,s:s,s:s,s:s}", "name", set, "description", i->name, "defaultSourceSetName", set, "createdAt", now), err);
    rc = rc ? rc : put_plain(w, "sourceset.jsonl", json_pack("{s:s,s:s,s:s,s:s,s:s}", "modelId", w->model, "name", set, "description", i->name, "releaseName", set, "createdAt", now), err);
    rc = rc ? rc : put_plain(w, "source.jsonl", json_pack("{s:s,s:s,s:s,s:s,s:s,s:i,s:s,s:s}", "id", w->source, "modelId", w->model, "setName", set, "dataset", "", "saelensHookName",
                                                          i->hook_name, "numFeatures", i->n_features, "createdAt", now, "espalierSha256", i->hash), err);
    return rc;
}

/* ---- records ------------------------------------------------------------------------------------------------------------------------------ */

static json_t *index_text(int feature)
{
    char s[16];
    snprintf(s, sizeof s, "%d", feature);
    return json_string(s);
}

static json_t *token_json(const es_model *m, int32_t id)
{
    size_t n;
    const char *s = es_token_bytes(m, id, &n);
    return es_json_mended(s, n);
}

static json_t *number(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static json_t *tokens_json(const es_model *m, const int32_t *id, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, token_json(m, id[i]));
    return list;
}

static json_t *numbers_json(const float *v, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, number((double)v[i]));
    return list;
}

/* An id like theirs, that the same thing has again. */
static void record_id(const writer *w, const char *kind, int feature, int number_of, char out[26])
{
    char text[400], hash[65];
    snprintf(text, sizeof text, "%s %s %s %d %d", kind, w->model, w->source, feature, number_of);
    es_sha256_bytes(hash, text, strlen(text));
    snprintf(out, 26, "c%.24s", hash);
}

static json_t *feature_record(const writer *w, int feature, const es_feature_card *c)
{
    json_t *heights = json_array(), *middles = json_array(), *near = json_array(), *cosines = json_array(), *logits = json_array(), *at = json_array();
    for (int i = 0; i < ES_ATLAS_BINS; i++) {
        json_array_append_new(heights, json_integer((json_int_t)c->histogram[i]));
        json_array_append_new(middles, number((double)c->bin_width * (i + 0.5)));
    }
    for (int i = 0; c->has_logits && i < ES_ATLAS_BINS; i++) {
        json_array_append_new(logits, json_integer((json_int_t)c->logits[i]));
        json_array_append_new(at, number((double)c->logit_lo + (double)(c->logit_hi - c->logit_lo) * (i + 0.5) / ES_ATLAS_BINS));
    }
    if ((double)w->F * (w->o->feature ? w->o->n_feature : w->F) <= NEIGHBOUR_WORK) {
        int k = w->F > NEIGHBOURS ? NEIGHBOURS : w->F - 1, which[NEIGHBOURS];
        float cosine[NEIGHBOURS];
        if (k > 0)
            es_dictionary_neighbours(w->s, feature, k, which, cosine);
        for (int i = 0; i < k; i++) {
            json_array_append_new(near, json_integer(which[i]));
            json_array_append_new(cosines, number((double)cosine[i]));
        }
    }
    const char *dash = strchr(w->source, '-');
    return json_pack("{s:s,s:s,s:o,s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:s,s:b,s:[]}", "modelId", w->model, "layer", w->source, "index", index_text(feature),
                     "sourceSetName", dash && dash[1] ? dash + 1 : w->source, "maxActApprox", number((double)c->max), "frac_nonzero", number(c->density),
                     "freq_hist_data_bar_heights", heights, "freq_hist_data_bar_values", middles, "logits_hist_data_bar_heights", logits, "logits_hist_data_bar_values", at, "pos_str",
                     tokens_json(w->m, c->promoted, c->n_promoted), "pos_values", numbers_json(c->promoted_logit, c->n_promoted), "neg_str",
                     tokens_json(w->m, c->suppressed, c->n_suppressed), "neg_values", numbers_json(c->suppressed_logit, c->n_suppressed), "topkCosSimIndices", near, "topkCosSimValues",
                     cosines, "hookName", es_dictionary_get_info(w->s)->hook_name, "hasVector", 0, "vector");
}

/* from: the interval that a random place is of; NULL: one of the strongest, which they mark with -1. */
static json_t *activation_record(const writer *w, int feature, int which, const es_example *e, const es_interval *from)
{
    char id[26];
    float least = e->n ? e->value[0] : 0;
    int most = 0;
    record_id(w, "activation", feature, which, id);
    for (int t = 1; t < e->n; t++) {
        least = fminf(least, e->value[t]);
        most = e->value[t] > e->value[most] ? t : most;
    }
    return json_pack("{s:s,s:s,s:s,s:o,s:n,s:o,s:o,s:o,s:o,s:i,s:o,s:o,s:o,s:o}", "id", id, "modelId", w->model, "layer", w->source, "index", index_text(feature), "dataSource", "tokens",
                     tokens_json(w->m, e->id, e->n), "values", numbers_json(e->value, e->n), "maxValue", number((double)e->max), "minValue", number((double)least), "maxValueTokenIndex",
                     from ? most : e->peak, "qualifyingTokenIndex", from ? json_integer(e->peak) : json_null(), "binMin", from ? number((double)from->lo) : json_integer(-1), "binMax", from ? number((double)from->hi) : json_integer(-1), "binContains",
                     from ? number(from->share) : json_integer(-1));
}

static void put_activations(writer *w, es_buf *out, int feature, const es_feature_card *c)
{
    es_interval in[ES_ATLAS_INTERVALS];
    es_atlas_intervals(c, in);
    for (int i = 0; i < c->n_example; i++)
        add_line(out, activation_record(w, feature, i, &c->example[i], NULL));
    for (int i = 0; i < ES_ATLAS_INTERVALS; i++)
        for (int k = in[i].first; k < in[i].first + in[i].n; k++)
            add_line(out, activation_record(w, feature, c->n_example + k, &c->spread[k], &in[i]));
    w->count->examples += c->n_example + c->n_spread;
}

/* Theirs for what we call detection and fuzzing; simulation has no counterpart that means the same. */
static const char *score_name(const char *kind)
{
    return !strcmp(kind, "detection") ? "eleuther_recall" : !strcmp(kind, "fuzzing") ? "eleuther_fuzz" : kind;
}

static json_t *explanation_record(const writer *w, int feature, json_t *label)
{
    char id[26];
    const char *author = json_string_value(json_object_get(label, "author")), *hash = es_dictionary_get_info(w->s)->hash;
    bool automatic = author && es_label_is_automatic(author);
    record_id(w, "explanation", feature, 0, id);
    json_t *scores = json_array();
    es_label_score s[ES_LABEL_SCORES];
    int n = 0;
    es_workspace_scores(w->w, hash, feature, s, ES_LABEL_SCORES, &n, NULL);
    for (int i = 0; i < n; i++)
        json_array_append_new(scores, json_pack("{s:f,s:s,s:s,s:i}", "value", s[i].value, "explanationScoreTypeName", score_name(s[i].kind), "explanationScoreModelName",
                                                automatic ? author + 5 : "", "n", s[i].n));
    json_t *own = json_pack("{s:O,s:O,s:O,s:O,s:s}", "author", json_object_get(label, "author"), "tags", json_object_get(label, "tags"), "rating", json_object_get(label, "rating"),
                            "time", json_object_get(label, "time"), "dictionary", hash);
    return json_pack("{s:s,s:s,s:s,s:o,s:n,s:O,s:n,s:o,s:o,s:o,s:o}", "id", id, "modelId", w->model, "layer", w->source, "index", index_text(feature), "authorId", "description",
                     json_object_get(label, "text"), "embedding", "typeName", automatic ? json_string("np_max-act-logits") : json_null(), "explanationModelName",
                     automatic ? json_string(author + 5) : json_null(), "scores", scores, "espalier", own);
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------------------------ */

static int put_batch(writer *w, int batch, es_error *err)
{
    es_buf features = {0}, explanations = {0}, activations = {0};
    int rc = ES_OK;
    for (int f = batch * BATCH; !rc && f < w->F && f < (batch + 1) * BATCH; f++) {
        char key[16];
        es_feature_card c;
        snprintf(key, sizeof key, "%d", f);
        json_t *label = json_object_get(w->label, key);
        if (!w->wanted[f])
            continue;
        if (label && *json_string_value(json_object_get(label, "text"))) {
            add_line(&explanations, explanation_record(w, f, label));
            w->count->labels++;
        }
        if (!w->a || w->o->labels_only)
            continue;
        if ((rc = es_atlas_card(w->a, f, &c, err)))
            break;
        add_line(&features, feature_record(w, f, &c));
        w->count->features++;
        put_activations(w, &activations, f, &c);
    }
    rc = rc ? rc : put_gz(w, "features", batch, &features, err);
    rc = rc ? rc : put_gz(w, "explanations", batch, &explanations, err);
    rc = rc ? rc : put_gz(w, "activations", batch, &activations, err);
    es_buf_free(&features);
    es_buf_free(&explanations);
    es_buf_free(&activations);
    return rc;
}

/* The bodies of the two requests that make a list of one's own there: POST /api/list/new, then /api/list/add-features, which takes a hundred at a time and
 * wants the id that the first one answers with. */
static int put_list(const writer *w, es_error *err)
{
    enum { AT_ONCE = 100 };
    int rc = put_plain(w, "list-new.json", json_pack("{s:s,s:s}", "name", w->o->list, "description", ""), err);
    for (int first = 0, k = 0; !rc && first < w->o->n_feature; first += AT_ONCE, k++) {
        json_t *list = json_array();
        char name[40];
        for (int i = first; i < w->o->n_feature && i < first + AT_ONCE; i++) {
            char key[16];
            snprintf(key, sizeof key, "%d", w->o->feature[i]);
            json_t *text = json_object_get(json_object_get(w->label, key), "text");
            json_array_append_new(list, json_pack("{s:s,s:s,s:o,s:O*}", "modelId", w->model, "layer", w->source, "index", index_text(w->o->feature[i]), "description", text));
        }
        snprintf(name, sizeof name, "list-add-features-%d.json", k);
        rc = put_plain(w, name, json_pack("{s:s,s:o}", "listId", "", "featuresToAdd", list), err);
    }
    return rc;
}

static int gather(writer *w, es_error *err)
{
    json_t *all = NULL, *l;
    size_t i;
    int rc = es_workspace_label_export(w->w, es_dictionary_get_info(w->s)->hash, &all, err);
    json_array_foreach(all, i, l) {
        char key[16];
        snprintf(key, sizeof key, "%lld", (long long)json_integer_value(json_object_get(l, "feature")));
        json_object_set(w->label, key, l);
    }
    json_decref(all);
    for (int f = 0; !w->o->feature && f < w->F; f++)
        w->wanted[f] = true;
    for (int k = 0; !rc && w->o->feature && k < w->o->n_feature; k++) {
        if (w->o->feature[k] < 0 || w->o->feature[k] >= w->F)
            return es_fail(err, ES_ERR_MISSING, "there is no feature %d: the dictionary has 0 to %d", w->o->feature[k], w->F - 1);
        w->wanted[w->o->feature[k]] = true;
    }
    return rc;
}

int es_neuronpedia_export(es_workspace *workspace, es_model *m, const es_dictionary *s, es_atlas *a, const char *folder, const es_neuronpedia_options *o, es_neuronpedia_count *out,
                          const es_progress *progress, es_error *err)
{
    writer w = {.w = workspace, .m = m, .s = s, .a = a, .o = o, .F = es_dictionary_get_info(s)->n_features, .count = out};
    static const char *const parts[] = {"features", "explanations", "activations"};
    *out = (es_neuronpedia_count){0};
    int rc = names(&w, folder, err);
    w.label = json_object();
    w.wanted = es_calloc((size_t)w.F + 1, sizeof *w.wanted);
    if (!rc && (!w.label || !w.wanted))
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to export");
    rc = rc ? rc : gather(&w, err);
    for (int i = 0; !rc && i < 3; i++) {
        char path[1300];
        snprintf(path, sizeof path, "%s/%s", w.folder, parts[i]);
        rc = es_dir_make(path, err);
    }
    rc = rc ? rc : put_heads(&w, err);
    for (int b = 0; !rc && b * BATCH < w.F; b++) {
        rc = es_progress_cancelled(progress) ? es_fail(err, ES_ERR_CANCELLED, "cancelled") : put_batch(&w, b, err);
        es_progress_report(progress, "exporting", b * BATCH, w.F, "features");
    }
    if (!rc && o->list && o->feature)
        rc = put_list(&w, err);
    snprintf(out->folder, sizeof out->folder, "%s", w.folder);
    json_decref(w.label);
    free(w.wanted);
    return rc;
}
