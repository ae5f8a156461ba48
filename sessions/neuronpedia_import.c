/* neuronpedia: explanations into labels. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "autolabel.h"
#include "neuronpedia_files.h"
#include "workspace.h"

enum { TEXT_MAX = 4096 }; /* of a label here */

typedef struct found { int feature; bool person; double score; json_t *label, *scores; char author[64]; } found; /* the best so far of a feature */

typedef struct reader {
    const char *dictionary;
    np_origin origin;
    int n_features;
    found *best;           /* [n_features]; label NULL: none */
    es_neuronpedia_taken *out;
} reader;

/* ---- a record -------------------------------------------------------------------------------------------------------------------------------- */

/* On one line, at most what a label here may have. */
static json_t *tidy(const char *s)
{
    es_buf b = {0};
    bool space = false;
    for (; *s; s++) {
        if ((unsigned char)*s <= 0x20 || *s == 0x7f) {
            space = b.len > 0;
            continue;
        }
        if (space)
            es_buf_str(&b, " ");
        space = false;
        es_buf_add(&b, s, 1);
    }
    size_t n = b.len > TEXT_MAX ? es_utf8_whole(b.data, TEXT_MAX) : b.len;
    json_t *v = b.failed ? NULL : json_stringn(b.data ? b.data : "", n);
    es_buf_free(&b);
    return v;
}

static double best_score(json_t *scores)
{
    double most = -1;
    size_t i;
    json_t *s;
    json_array_foreach(scores, i, s) {
        double x = json_is_number(json_object_get(s, "value")) ? json_number_value(json_object_get(s, "value")) : -1;
        most = isfinite(x) && x > most ? x : most;
    }
    return most;
}

/* Who says so: "espalier"'s author, the model, or whoever it was there. */
static void author_of(json_t *v, json_t *own, char out[64])
{
    const char *model = np_text_of(v, "explanationModelName", ""), *author = np_text_of(own, "author", "");
    int n = *author ? snprintf(out, 64, "%s", author) : *model ? snprintf(out, 64, "auto:%s", model) : snprintf(out, 64, "neuronpedia");
    if (n >= 64)
        out[es_utf8_whole(out, 63)] = 0;
}

static int take_explanation(reader *r, json_t *v, json_t *feature, const char *where, es_error *err)
{
    json_t *own = json_object_get(v, "espalier"), *index = json_object_get(v, "index"), *rating = json_object_get(own, "rating"), *tags = json_object_get(own, "tags");
    const char *text = np_text_of(v, "description", NULL), *hash = np_text_of(own, "dictionary", NULL);
    long long f = -1;
    int rc = ES_OK;
    if (!text)
        return es_fail(err, ES_ERR_FORMAT, "%s: an explanation without a \"description\"", where);
    if (!np_feature_of(index ? index : json_object_get(feature, "index"), &f))
        return es_fail(err, ES_ERR_FORMAT, "%s: an explanation without the \"index\" of its feature", where);
    if (!np_is_of(&r->origin, np_text_of(v, "modelId", np_text_of(feature, "modelId", "")), np_text_of(v, "layer", np_text_of(feature, "layer", "")), &rc, where, err))
        return rc;
    if (f < 0 || f >= r->n_features)
        return es_fail(err, ES_ERR_FORMAT, "%s: is about feature %lld, and the dictionary has 0 to %d: is it of another one?", where, f, r->n_features - 1);
    if (hash && strcmp(hash, r->dictionary) != 0)
        return es_fail(err, ES_ERR_MISMATCH, "%s: is of the dictionary with SHA-256 %.64s, this one is %s", where, hash, r->dictionary);
    if (rating && (!json_is_integer(rating) || json_integer_value(rating) < 0 || json_integer_value(rating) > 5))
        return es_fail(err, ES_ERR_FORMAT, "%s: \"rating\" is no number from 0 to 5", where);
    found x = {.feature = (int)f, .score = best_score(json_object_get(v, "scores"))};
    author_of(v, own, x.author);
    x.person = !es_label_is_automatic(x.author);
    json_t *line = tidy(text);
    if (!line || !json_string_length(line)) {
        json_decref(line);
        r->out->other++;
        return line ? ES_OK : es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", where);
    }
    found *best = &r->best[f];
    r->out->more += best->label != NULL;
    if (best->label && (best->person > x.person || (best->person == x.person && best->score >= x.score))) {
        json_decref(line);
        return ES_OK;
    }
    x.label = json_pack("{s:i,s:o,s:s}", "feature", (int)f, "text", line, "author", x.author);
    if (x.label && json_is_array(tags))
        json_object_set(x.label, "tags", tags);
    if (x.label && rating)
        json_object_set(x.label, "rating", rating);
    x.scores = json_incref(json_object_get(v, "scores"));
    json_decref(best->label);
    json_decref(best->scores);
    *best = x;
    return x.label ? ES_OK : es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", where);
}

/* A row of their tables, or one feature with all that is known of it. */
static int take_record(void *user, json_t *v, const char *where, es_error *err)
{
    reader *r = user;
    json_t *list = json_object_get(v, "explanations"), *x;
    size_t i;
    int rc = ES_OK;
    if (!json_is_object(v))
        return es_fail(err, ES_ERR_FORMAT, "%s: a record is a JSON object", where);
    if (json_is_array(list)) {
        json_array_foreach(list, i, x)
            if (!rc)
                rc = json_is_object(x) ? take_explanation(r, x, v, where, err) : es_fail(err, ES_ERR_FORMAT, "%s: an explanation is a JSON object", where);
        return rc;
    }
    if (json_object_get(v, "description") && json_object_get(v, "index"))
        return take_explanation(r, v, NULL, where, err);
    if (json_object_get(v, "index") && (json_object_get(v, "tokens") || json_object_get(v, "frac_nonzero") || json_object_get(v, "maxActApprox"))) {
        r->out->other++;
        return ES_OK;
    }
    return es_fail(err, ES_ERR_FORMAT, "%s: is no explanation, feature or activation of Neuronpedia", where);
}

/* ---- into the workspace ------------------------------------------------------------------------------------------------------------------------ */

static const char *kind_of(const char *theirs)
{
    return !strcmp(theirs, "eleuther_recall") ? "detection" : !strcmp(theirs, "eleuther_fuzz") ? "fuzzing" : theirs;
}

static int store_scores(es_workspace *w, const char *dictionary, const found *x, es_error *err)
{
    es_label_score s[ES_LABEL_SCORES];
    int n = 0;
    size_t i;
    json_t *v;
    bool stored;
    json_array_foreach(x->scores, i, v) {
        const char *kind = np_text_of(v, "explanationScoreTypeName", "");
        json_t *value = json_object_get(v, "value"), *count = json_object_get(v, "n");
        if (n == ES_LABEL_SCORES || !*kind || strlen(kind) >= sizeof s->kind || !json_is_number(value) || !(fabs(json_number_value(value)) <= 1))
            continue;
        bool twice = false;
        for (int k = 0; k < n; k++)
            twice = twice || !strcmp(s[k].kind, kind_of(kind));
        if (twice)
            continue;
        s[n] = (es_label_score){.value = json_number_value(value), .n = json_is_integer(count) && json_integer_value(count) > 0 && json_integer_value(count) < 1 << 30 ? (int)json_integer_value(count) : 0};
        snprintf(s[n++].kind, sizeof s->kind, "%s", kind_of(kind));
    }
    return n ? es_workspace_label_auto(w, dictionary, x->feature, json_string_value(json_object_get(x->label, "text")), x->author, s, n, &stored, err) : ES_OK;
}

static int store(es_workspace *w, reader *r, es_error *err)
{
    json_t *list = json_array();
    int rc = list ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for the labels");
    for (int f = 0; !rc && f < r->n_features; f++) {
        found *x = &r->best[f];
        es_label l = {0};
        if (!x->label)
            continue;
        if (es_workspace_label_get(w, r->dictionary, f, &l, NULL) == ES_OK && *l.text && !es_label_is_automatic(l.author)) {
            r->out->kept++;
            json_decref(x->label);
            x->label = NULL;
        }
        es_label_free(&l);
        if (x->label && json_array_append(list, x->label) != 0)
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for the labels");
    }
    rc = rc ? rc : es_workspace_label_import_json(w, r->dictionary, r->n_features, list, "neuronpedia", &r->out->labels, err);
    for (int f = 0; !rc && f < r->n_features; f++)
        if (r->best[f].label && !r->best[f].person)
            rc = store_scores(w, r->dictionary, &r->best[f], err);
    json_decref(list);
    return rc;
}

int es_neuronpedia_import(es_workspace *w, const char *dictionary, int n_features, const char *path, const char *source, es_neuronpedia_taken *out, es_error *err)
{
    *out = (es_neuronpedia_taken){0};
    reader r = {.dictionary = dictionary, .origin = {.source = source}, .n_features = n_features, .out = out, .best = es_calloc((size_t)n_features + 1, sizeof *r.best)};
    if (!r.best)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for %d labels", n_features);
    int rc = np_read(path, "explanations", take_record, &r, err);
    rc = rc ? rc : store(w, &r, err);
    for (int f = 0; f < n_features; f++) {
        json_decref(r.best[f].label);
        json_decref(r.best[f].scores);
    }
    free(r.best);
    return rc;
}
