/* label carry: labels of one dictionary, written anew for another of the same model. */
#include "cmd_label.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "match.h"

typedef struct carrying {
    json_t *lines;       /* what was read */
    int32_t *place;      /* [features of the old one]: 1 + its place in `feature`, or 0 */
    int *feature, n, n_features;
    const char *hash;    /* of the old one */
    es_match *match;     /* [n] */
} carrying;

static void carrying_free(carrying *c)
{
    json_decref(c->lines);
    free(c->place);
    free(c->feature);
    free(c->match);
}

static int take_line(void *user, size_t line, json_t *value, es_error *err)
{
    (void)line;
    carrying *c = user;
    json_t *feature = json_object_get(value, "feature");
    const char *of = json_string_value(json_object_get(value, "dictionary"));
    if (!json_is_integer(feature) || json_integer_value(feature) < 0 || json_integer_value(feature) >= c->n_features)
        return es_fail(err, ES_ERR_FORMAT, "no label of one of the %d features of the dictionary that is named first", c->n_features);
    if (of && *of && *c->hash && strcmp(of, c->hash))
        return es_fail(err, ES_ERR_MISMATCH, "a label of the dictionary %.64s; the one named first is %.64s", of, c->hash);
    int f = (int)json_integer_value(feature);
    if (!c->place[f]) {
        c->feature[c->n] = f;
        c->place[f] = ++c->n;
    }
    return json_array_append(c->lines, value) == 0 ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for the labels");
}

static int read_labels(carrying *c, const es_dictionary *from, const char *path, es_error *err)
{
    c->n_features = es_dictionary_get_info(from)->n_features;
    c->hash = es_dictionary_get_info(from)->hash;
    c->lines = json_array();
    c->place = es_calloc((size_t)c->n_features, sizeof *c->place);
    c->feature = es_calloc((size_t)c->n_features, sizeof *c->feature);
    if (!c->lines || !c->place || !c->feature)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for the labels");
    int rc = es_jsonl_each(path, take_line, c, err);
    if (rc < 0)
        return rc;
    c->match = es_calloc((size_t)c->n + 1, sizeof *c->match);
    if (!c->match)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for the labels");
    return c->n ? ES_OK : es_fail(err, ES_ERR_FORMAT, "%s: holds no label", path);
}

/* The line with its new feature, or with none (NULL) where nothing says the same. */
static json_t *carried_line(const carrying *c, json_t *old, double least, const char *hash)
{
    const es_match *x = &c->match[c->place[json_integer_value(json_object_get(old, "feature"))] - 1];
    if (!x->mutual || (double)x->pearson < least)
        return NULL;
    json_t *line = json_copy(old);
    json_object_set_new(line, "feature", json_integer(x->to));
    json_object_del(line, "id");
    if (*hash)
        json_object_set_new(line, "dictionary", json_string(hash));
    json_object_set_new(line, "carried", json_pack("{s:i,s:f,s:i}", "feature", x->from, "pearson", (double)x->pearson, "tokens", x->together));
    return line;
}

static int write_lines(json_t *lines, const char *path, es_error *err)
{
    es_buf b = {0};
    size_t i;
    json_t *line;
    json_array_foreach(lines, i, line)
        es_buf_json_line(&b, line, 0);
    int rc = b.failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory for the labels") : es_file_write(path, b.data ? b.data : "", b.len, err);
    es_buf_free(&b);
    return rc;
}

static json_t *matches_json(const carrying *c)
{
    json_t *list = json_array();
    for (int i = 0; i < c->n; i++) {
        const es_match *x = &c->match[i];
        json_array_append_new(list, json_pack("{s:i,s:o,s:f,s:o,s:i,s:b}", "from", x->from, "to", x->to < 0 ? json_null() : json_integer(x->to), "pearson", (double)x->pearson,
                                              "cosine", isfinite(x->cosine) ? json_real((double)x->cosine) : json_null(), "tokens", x->together, "mutual", x->mutual));
    }
    return list;
}

int label_carry(int argc, char **argv)
{
    const char *out = NULL;
    double least = 0.7;
    uint64_t tokens = 100000;
    const opt table[] = {
        {"out", "FILE", OPT_TEXT, &out, 0, 0, "where the labels go that were carried, for label import", NULL},
        {"least", "R", OPT_REAL, &least, 0, 1, "smallest correlation that still means the same feature (default 0.7)", NULL},
        {"tokens", "N", OPT_COUNT, &tokens, 100, 1e10, "tokens to compare on (default 100k)", NULL},
        {0},
    };
    static const command_help help = {"label carry", "OLD NEW LABELS.jsonl FILE...",
                                      "Labels outlive a dictionary: what was said of the features of OLD is written anew for those of NEW, another dictionary of the same model\n"
                                      "(trained again, wider, of another layer), that are active on the same tokens. The two dictionaries read the texts (.txt, .jsonl); a label is\n"
                                      "carried where its feature's activations correlate (Pearson, over tokens) with one new feature's by --least or more, and no other labelled\n"
                                      "feature's do so better. What is not carried is counted, and with --json listed.",
                                      "  espalier label carry old-l14 new-l14 labels.jsonl held-out.jsonl --out carried.jsonl", 4, -1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (!out)
        return opts_usage_error("label carry", "--out FILE is missing");
    es_error err = {0};
    es_model *m = NULL;
    es_dictionary *from = NULL, *to = NULL;
    carrying c = {0};
    json_t *lines = json_array();
    size_t i;
    json_t *old;
    es_progress progress = app_progress();
    rc = app_model(&m, &err);
    if (rc == ES_OK)
        rc = es_dictionary_open(&from, argv[1], &err);
    if (rc == ES_OK)
        rc = es_dictionary_open(&to, argv[2], &err);
    if (rc == ES_OK)
        rc = read_labels(&c, from, argv[3], &err);
    if (rc == ES_OK)
        rc = es_dictionary_match(m, from, to, (const char *const *)argv + 4, n - 3, tokens, the_app.threads, c.feature, c.n, c.match, &progress, &err);
    app_progress_end();
    json_array_foreach(c.lines, i, old) {
        json_t *line = rc == ES_OK ? carried_line(&c, old, least, es_dictionary_get_info(to)->hash) : NULL;
        if (line)
            json_array_append_new(lines, line);
    }
    if (rc == ES_OK)
        rc = write_lines(lines, out, &err);
    int code = rc == ES_OK ? EXIT_DONE : app_fail(&err);
    if (rc == ES_OK && the_app.json)
        code = app_print_json(json_pack("{s:I,s:I,s:o}", "read", (json_int_t)json_array_size(c.lines), "carried", (json_int_t)json_array_size(lines), "features", matches_json(&c)));
    else if (rc == ES_OK)
        app_note("%zu of %zu labels carried to %s", json_array_size(lines), json_array_size(c.lines), out);
    json_decref(lines);
    carrying_free(&c);
    es_dictionary_free(from);
    es_dictionary_free(to);
    es_model_free(m);
    return code;
}
