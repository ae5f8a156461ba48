/* neuronpedia: reading. What comes in is a stranger's: a line's and a file's length are bounded while they are unpacked, so that a small file that unpacks
 * without end costs its limit and no more. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <zlib.h>

#include "autolabel.h"
#include "neuronpedia.h"
#include "workspace.h"

enum {
    LINE_LIMIT = 16 << 20,     /* bytes of one record: with an embedding and long examples some 100 KB */
    FILES_MAX = 100000,
    TEXT_MAX = 4096,           /* of a label here */
};
#define TOTAL_LIMIT ((uint64_t)4 << 30) /* bytes of all files unpacked: a million features' explanations are 1 GB */

typedef struct found { int feature; bool person; double score; json_t *label, *scores; char author[64]; } found; /* the best so far of a feature */

typedef struct reader {
    const char *dictionary, *source;
    int n_features;
    found *best;           /* [n_features]; label NULL: none */
    char first[300];       /* MODEL/SOURCE that the records are of */
    uint64_t total;
    es_neuronpedia_taken *out;
} reader;

/* ---- a record -------------------------------------------------------------------------------------------------------------------------------- */

static bool feature_of(json_t *v, long long *out)
{
    if (json_is_integer(v)) {
        *out = json_integer_value(v);
        return true;
    }
    const char *s = json_string_value(v);
    if (!s || !*s || strlen(s) > 9 || strspn(s, "0123456789") != strlen(s))
        return false;
    *out = atoll(s);
    return true;
}

static const char *text_of(json_t *v, const char *key, const char *otherwise)
{
    const char *s = json_string_value(json_object_get(v, key));
    return s ? s : otherwise;
}

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

static bool is_of(reader *r, const char *model, const char *source, int *rc, const char *where, es_error *err)
{
    char of[300];
    if (r->source && strcmp(source, r->source) != 0)
        return false;
    snprintf(of, sizeof of, "%.140s/%.140s", model, source);
    if (!*r->first)
        snprintf(r->first, sizeof r->first, "%s", of);
    if (strcmp(r->first, of) != 0) {
        *rc = es_fail(err, ES_ERR_FORMAT, "%s: holds explanations of %s and of %s: --source names the one that is meant", where, r->first, of);
        return false;
    }
    return true;
}

/* Who says so: "espalier"'s author, the model, or whoever it was there. */
static void author_of(json_t *v, json_t *own, char out[64])
{
    const char *model = text_of(v, "explanationModelName", ""), *author = text_of(own, "author", "");
    int n = *author ? snprintf(out, 64, "%s", author) : *model ? snprintf(out, 64, "auto:%s", model) : snprintf(out, 64, "neuronpedia");
    if (n >= 64)
        out[es_utf8_whole(out, 63)] = 0;
}

static int take_explanation(reader *r, json_t *v, json_t *feature, const char *where, es_error *err)
{
    json_t *own = json_object_get(v, "espalier"), *index = json_object_get(v, "index"), *rating = json_object_get(own, "rating"), *tags = json_object_get(own, "tags");
    const char *text = text_of(v, "description", NULL), *hash = text_of(own, "dictionary", NULL);
    long long f = -1;
    int rc = ES_OK;
    if (!text)
        return es_fail(err, ES_ERR_FORMAT, "%s: an explanation without a \"description\"", where);
    if (!feature_of(index ? index : json_object_get(feature, "index"), &f))
        return es_fail(err, ES_ERR_FORMAT, "%s: an explanation without the \"index\" of its feature", where);
    if (!is_of(r, text_of(v, "modelId", text_of(feature, "modelId", "")), text_of(v, "layer", text_of(feature, "layer", "")), &rc, where, err))
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
static int take_record(reader *r, json_t *v, const char *where, es_error *err)
{
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

/* ---- a file ---------------------------------------------------------------------------------------------------------------------------------- */

static bool ends(const char *s, const char *with)
{
    size_t n = strlen(s), k = strlen(with);
    return n > k && !strcmp(s + n - k, with);
}

static int take_text(reader *r, const es_buf *b, const char *where, es_error *err)
{
    json_t *v = NULL, *x;
    size_t i = 0;
    while (i < b->len && isspace((unsigned char)b->data[i]))
        i++;
    if (i == b->len)
        return ES_OK;
    int rc = es_json_parse(&v, b->data, b->len, where, err);
    if (!rc && json_is_array(v))
        json_array_foreach(v, i, x)
            rc = rc ? rc : take_record(r, x, where, err);
    else if (!rc)
        rc = take_record(r, v, where, err);
    json_decref(v);
    return rc;
}

static int read_file(reader *r, const char *path, es_error *err)
{
    bool whole = ends(path, ".json") || ends(path, ".json.gz");
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode))
        return es_fail(err, errno == ENOENT ? ES_ERR_MISSING : ES_ERR_IO, "%s: is no file that can be read", path);
    gzFile f = gzopen(path, "rb"); /* also what is not packed */
    if (!f)
        return es_fail(err, ES_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    es_buf line = {0};
    char *chunk = malloc(1 << 16), where[1300];
    int rc = chunk ? ES_OK : es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", path), number = 1, n = 0;
    snprintf(where, sizeof where, "%s", path);
    while (!rc && (n = gzread(f, chunk, 1 << 16)) > 0) {
        r->total += (uint64_t)n;
        if (r->total > TOTAL_LIMIT)
            rc = es_fail(err, ES_ERR_LIMIT, "%s: unpacks to over %llu GB: not read", path, (unsigned long long)(TOTAL_LIMIT >> 30));
        for (int at = 0; !rc && at < n;) {
            const char *nl = whole ? NULL : memchr(chunk + at, '\n', (size_t)(n - at));
            size_t k = nl ? (size_t)(nl - (chunk + at)) : (size_t)(n - at);
            es_buf_add(&line, chunk + at, k);
            at += (int)k + (nl != NULL);
            if (line.failed)
                rc = es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", path);
            else if (line.len > LINE_LIMIT)
                rc = es_fail(err, ES_ERR_LIMIT, "%s: a record of over %d MB", where, LINE_LIMIT >> 20);
            else if (nl) {
                snprintf(where, sizeof where, "%s:%d", path, number++);
                rc = take_text(r, &line, where, err);
                es_buf_clear(&line);
            }
        }
    }
    if (!rc && n < 0)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: is packed and damaged", path);
    if (!whole)
        snprintf(where, sizeof where, "%s:%d", path, number);
    int closed = gzclose_r(f);
    if (!rc && closed == Z_BUF_ERROR)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: is packed and ends in the middle", path);
    rc = rc ? rc : take_text(r, &line, where, err);
    es_buf_free(&line);
    free(chunk);
    return rc;
}

/* ---- a folder --------------------------------------------------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* The files of explanations in a folder: in its explanations/, or those of its own that could be. */
static int read_folder(reader *r, const char *path, es_error *err)
{
    char folder[1200];
    struct stat st;
    snprintf(folder, sizeof folder, "%s/explanations", path);
    if (stat(folder, &st) != 0 || !S_ISDIR(st.st_mode))
        snprintf(folder, sizeof folder, "%s", path);
    DIR *d = opendir(folder);
    if (!d)
        return es_fail(err, ES_ERR_IO, "%s: cannot look into it: %s", folder, strerror(errno));
    char **name = NULL;
    int n = 0, cap = 0, rc = ES_OK;
    for (struct dirent *e; !rc && (e = readdir(d));) {
        static const char *const heads[] = {"model.jsonl", "release.jsonl", "source.jsonl", "sourceset.jsonl"};
        bool head = e->d_name[0] == '.' || !strncmp(e->d_name, "list-", 5) || !(ends(e->d_name, ".jsonl") || ends(e->d_name, ".jsonl.gz") || ends(e->d_name, ".json") || ends(e->d_name, ".json.gz"));
        for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
            head = head || !strcmp(e->d_name, heads[i]);
        if (head)
            continue;
        if (n == cap) {
            char **more = n < FILES_MAX ? realloc(name, sizeof *name * (size_t)(cap = cap ? 2 * cap : 64)) : NULL;
            rc = more ? ES_OK : es_fail(err, ES_ERR_LIMIT, "%s: over %d files", folder, (int)FILES_MAX);
            name = more ? more : name;
        }
        if (!rc && !(name[n++] = strdup(e->d_name)))
            rc = es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", folder);
    }
    closedir(d);
    if (!rc && !n)
        rc = es_fail(err, ES_ERR_MISSING, "%s: there are no explanations in it: a folder MODEL/SOURCE of an export is wanted", path);
    if (!rc)
        qsort(name, (size_t)n, sizeof *name, by_name);
    for (int i = 0; i < n; i++) {
        char file[1500];
        snprintf(file, sizeof file, "%s/%s", folder, name[i] ? name[i] : "");
        rc = rc ? rc : read_file(r, file, err);
        free(name[i]);
    }
    free(name);
    return rc;
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
        const char *kind = text_of(v, "explanationScoreTypeName", "");
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
    struct stat st;
    *out = (es_neuronpedia_taken){0};
    if (stat(path, &st) != 0)
        return es_fail(err, ES_ERR_MISSING, "%s: %s", path, strerror(errno));
    reader r = {.dictionary = dictionary, .source = source, .n_features = n_features, .out = out, .best = es_calloc((size_t)n_features + 1, sizeof *r.best)};
    if (!r.best)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for %d labels", n_features);
    int rc = S_ISDIR(st.st_mode) ? read_folder(&r, path, err) : read_file(&r, path, err);
    rc = rc ? rc : store(w, &r, err);
    for (int f = 0; f < n_features; f++) {
        json_decref(r.best[f].label);
        json_decref(r.best[f].scores);
    }
    free(r.best);
    return rc;
}
