/* The parts of a dictionary's evaluation as JSON, each piece kept as soon as it is measured. */
#include "dictionary_eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eval_internal.h"

static const struct { const char *name; int part; } PART[] = {
    {"stats", ES_PART_STATS}, {"cosines", ES_PART_COSINES}, {"probes", ES_PART_PROBES}, {"absorption", ES_PART_ABSORPTION}, {"steering", ES_PART_STEERING},
};

int es_dictionary_eval_part(const char *name)
{
    for (size_t i = 0; i < sizeof PART / sizeof *PART; i++)
        if (!strcmp(PART[i].name, name))
            return PART[i].part;
    return 0;
}

es_dictionary_eval es_dictionary_eval_default(void)
{
    return (es_dictionary_eval){.parts = ES_PARTS_ALL, .tokens = 20000, .sample = 16384, .texts = 1000, .words = 4000, .steer = es_steer_default(), .seed = 1};
}

typedef struct evaluating {
    es_model *m;
    const es_dictionary *s;
    const es_dictionary_eval *o;
    const es_progress *progress;
    char model[65];
    json_t *done;
} evaluating;

/* The key of a piece: everything that it depends on, hashed. */
static void key_of(const evaluating *e, const char *what, char key[65])
{
    es_buf b = {0};
    es_buf_printf(&b, "1 %s %s %llu %s", e->model, es_dictionary_get_info(e->s)->hash, (unsigned long long)e->o->seed, what);
    es_sha256_bytes(key, b.data ? b.data : "", b.len);
    es_buf_free(&b);
}

/* A piece that is kept already: a new reference; NULL: it is not. */
static json_t *kept(const evaluating *e, const char *what)
{
    char key[65];
    key_of(e, what, key);
    return json_incref(json_object_get(json_object_get(e->done, key), "value"));
}

static int keep(evaluating *e, const char *part, const char *what, json_t *value, es_error *err)
{
    char key[65];
    if (!value)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for the figures");
    if (!e->o->work)
        return ES_OK;
    key_of(e, what, key);
    return es_work_keep(e->done, e->o->work, key, json_pack("{s:s,s:s,s:O}", "is", "dictionary", "part", part, "value", value), err);
}

static json_t *real(double v) /* JSON has no NaN */
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *skipped(const es_error *err)
{
    return json_pack("{s:s}", "skipped", err->text);
}

/* ---- stats, cosines ------------------------------------------------------------------------------------------------------------------- */

static int stats(evaluating *e, json_t **out, es_error *err)
{
    es_buf what = {0};
    es_dictionary_stats st;
    int rc = ES_OK;
    es_buf_printf(&what, "stats %llu", (unsigned long long)e->o->tokens);
    for (int i = 0; i < e->o->n_file && !rc; i++) {
        char hash[65];
        rc = es_sha256_file(hash, e->o->file[i], err);
        es_buf_printf(&what, " %s", hash);
    }
    if (!rc && !(*out = kept(e, what.data))) {
        rc = es_dictionary_measure(e->m, e->s, e->o->file, e->o->n_file, e->o->tokens, e->o->threads, &st, e->progress, err);
        if (!rc) {
            *out = json_pack("{s:I,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "tokens", (json_int_t)st.tokens, "fvu", real(st.fvu), "l0", real(st.l0), "dead", real(st.dead),
                             "dense", real(st.dense), "mean_cosine", real(st.mean_cosine), "ce", real(st.ce), "ce_patched", real(st.ce_patched), "ce_zero",
                             real(st.ce_zero), "recovered", real(st.recovered));
            rc = keep(e, "stats", what.data, *out, err);
        }
    }
    es_buf_free(&what);
    return rc;
}

static int cosines(evaluating *e, json_t **out, es_error *err)
{
    char what[64];
    es_cosines c;
    snprintf(what, sizeof what, "cosines %d", e->o->sample);
    if ((*out = kept(e, what)))
        return ES_OK;
    int rc = es_cosines_measure(e->s, e->o->sample, e->o->seed, e->o->threads, &c, e->progress, err);
    if (rc)
        return rc;
    json_t *histogram = json_array();
    for (int i = 0; i < ES_COSINE_BINS; i++)
        json_array_append_new(histogram, json_integer(c.histogram[i]));
    *out = json_pack("{s:i,s:f,s:f,s:f,s:f,s:f,s:o}", "features", c.looked_at, "mean", c.mean, "median", c.median, "p95", c.p95, "p99", c.p99, "over_0.9", c.over_90,
                     "histogram", histogram);
    return keep(e, "cosines", what, *out, err);
}

/* ---- probes --------------------------------------------------------------------------------------------------------------------------- */

static json_t *probe_json(const es_concepts *c, const es_concept_probe *p)
{
    json_t *v = json_pack("{s:s,s:i,s:i,s:f}", "concept", c->label_name[p->label], "train", p->train, "test", p->test, "dense", p->dense), *features = json_array();
    for (int i = 0; i < ES_PROBE_KS; i++) {
        char name[16];
        snprintf(name, sizeof name, "k%d", es_probe_k[i]);
        json_object_set_new(v, name, json_real(p->accuracy[i]));
    }
    for (int i = 0; i < p->n_feature; i++)
        json_array_append_new(features, json_integer(p->feature[i]));
    json_object_set_new(v, "features", features);
    return v;
}

/* Means of the numbers `name` over an array's objects, skipped ones left out. */
static double mean_of(json_t *rows, const char *name)
{
    double sum = 0;
    int n = 0;
    size_t i;
    json_t *row;
    json_array_foreach(rows, i, row) {
        json_t *v = json_object_get(row, name);
        if (json_is_number(v)) {
            sum += json_number_value(v);
            n++;
        }
    }
    return n ? sum / n : NAN;
}

static json_t *probe_means(json_t *rows)
{
    return json_pack("{s:o,s:o,s:o,s:o}", "k1", real(mean_of(rows, "k1")), "k2", real(mean_of(rows, "k2")), "k5", real(mean_of(rows, "k5")), "dense",
                     real(mean_of(rows, "dense")));
}

static int probe_set(evaluating *e, const es_concepts *c, json_t **out, es_error *err)
{
    es_concept_probe *probe = es_calloc((size_t)c->n_label + 1, sizeof *probe);
    es_ids *ids = es_calloc((size_t)c->n + 1, sizeof *ids);
    es_pooled p = {0};
    char what[200];
    int n = 0, rc = probe && ids ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for the texts of %s", c->name);
    snprintf(what, sizeof what, "reading %.100s", c->name);
    for (int i = 0; i < c->n && !rc; i++)
        rc = es_tokenize_text(e->m, c->text[i], strlen(c->text[i]), &ids[i], err);
    rc = rc ? rc : es_pooled_make(&p, e->m, e->s, ids, c->n, ES_POOL_MEAN, e->o->threads, what, e->progress, err);
    rc = rc ? rc : es_concepts_probe(c, &p, es_dictionary_get_info(e->s)->n_features, probe, &n, err);
    if (!rc) {
        json_t *rows = json_array();
        for (int i = 0; i < n; i++)
            json_array_append_new(rows, probe_json(c, &probe[i]));
        *out = probe_means(rows);
        json_object_set_new(*out, "set", json_string(c->name));
        json_object_set_new(*out, "texts", json_integer(c->n));
        json_object_set_new(*out, "concepts", rows);
    }
    for (int i = 0; ids && i < c->n; i++)
        es_ids_free(&ids[i]);
    free(ids);
    free(probe);
    es_pooled_free(&p);
    return rc;
}

/* What a set's figures depend on besides the dictionary. */
static void describe_set(const es_concepts *c, const es_dictionary_eval *o, char what[200])
{
    es_buf b = {0};
    char hash[65];
    for (int i = 0; i < c->n; i++)
        es_buf_printf(&b, "%s%c%d%c%d%c", c->text[i], 0, c->label[i], 0, c->test[i], 0);
    es_sha256_bytes(hash, b.data ? b.data : "", b.len);
    es_buf_free(&b);
    snprintf(what, 200, "probes %.80s %d %s", c->name, o->texts, hash);
}

/* i: a public set, and behind those the files of one's own. NULL in *out and ES_OK: there are no more. */
static int next_set(evaluating *e, int i, json_t **out, es_error *err)
{
    const es_dictionary_eval *o = e->o;
    int n_public = 0;
    while (es_concepts_name(n_public))
        n_public++;
    es_concepts c = {0};
    char what[200];
    int rc;
    if (i < n_public && !o->data)
        rc = es_fail(err, ES_ERR_MISSING, "no data folder is set (--data DIR, or ESPALIER_DATA)");
    else if (i < n_public)
        rc = es_concepts_public(&c, o->data, es_concepts_name(i), o->texts, o->seed, err);
    else if (i - n_public < o->n_concepts)
        rc = es_concepts_file(&c, o->concepts[i - n_public], o->texts, o->seed, err);
    else
        return ES_OK;
    if (rc == ES_ERR_MISSING && i < n_public) {
        *out = skipped(err);
        json_object_set_new(*out, "set", json_string(es_concepts_name(i)));
        return ES_OK;
    }
    if (rc)
        return rc;
    describe_set(&c, o, what);
    if (!(*out = kept(e, what))) {
        rc = probe_set(e, &c, out, err);
        rc = rc ? rc : keep(e, "probes", what, *out, err);
    }
    es_concepts_free(&c);
    return rc;
}

static int probes(evaluating *e, json_t **out, es_error *err)
{
    json_t *sets = json_array();
    int rc = ES_OK;
    for (int i = 0; !rc; i++) {
        json_t *set = NULL;
        rc = next_set(e, i, &set, err);
        if (!set)
            break;
        json_array_append_new(sets, set);
    }
    if (!rc)
        *out = json_pack("{s:o,s:O}", "mean", probe_means(sets), "sets", sets);
    json_decref(sets);
    return rc;
}

/* ---- absorption ------------------------------------------------------------------------------------------------------------------------- */

static int absorption(evaluating *e, json_t **out, es_error *err)
{
    es_absorption letter[26];
    char what[64];
    int n;
    snprintf(what, sizeof what, "absorption %d", e->o->words);
    if ((*out = kept(e, what)))
        return ES_OK;
    int rc = es_absorption_measure(e->m, e->s, e->o->words, e->o->seed, e->o->threads, letter, &n, e->progress, err);
    if (rc == ES_ERR_MISSING) {
        *out = skipped(err);
        return ES_OK;
    }
    if (rc)
        return rc;
    json_t *rows = json_array();
    for (int i = 0; i < n; i++) {
        const es_absorption *a = &letter[i];
        json_t *main = json_array();
        for (int k = 0; k < a->n_main; k++)
            json_array_append_new(main, json_integer(a->main[k]));
        json_array_append_new(rows, json_pack("{s:s#,s:i,s:i,s:i,s:f,s:f,s:o,s:o,s:o,s:o}", "letter", &a->letter, 1, "train", a->train, "test", a->test, "positives",
                                              a->positives, "dense_f1", a->dense_f1, "sparse_f1", a->sparse_f1, "main", main, "fraction",
                                              real(a->positives ? a->fraction : NAN), "full", real(a->positives ? a->full : NAN), "absorber",
                                              a->absorber < 0 ? json_null() : json_integer(a->absorber)));
    }
    *out = json_pack("{s:o,s:o,s:o,s:o,s:O}", "fraction", real(mean_of(rows, "fraction")), "full", real(mean_of(rows, "full")), "dense_f1",
                     real(mean_of(rows, "dense_f1")), "sparse_f1", real(mean_of(rows, "sparse_f1")), "letters", rows);
    json_decref(rows);
    return keep(e, "absorption", what, *out, err);
}

/* ---- steering ----------------------------------------------------------------------------------------------------------------------------- */

static json_t *way_json(const es_steered *w)
{
    json_t *features = json_array(), *weights = json_array(), *points = json_array();
    for (int i = 0; i < w->n_feature; i++) {
        json_array_append_new(features, json_integer(w->feature[i]));
        json_array_append_new(weights, json_real(w->weight[i]));
    }
    for (int i = 0; i < w->n_point; i++) {
        const es_steer_point *p = &w->point[i];
        json_array_append_new(points, json_pack("{s:f,s:o,s:o,s:o,s:b}", "strength", p->strength, "dev_margin", real(p->margin), "kl", real(p->kl), "degenerate",
                                                real(p->degenerate), "allowed", p->allowed));
    }
    return json_pack("{s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "way", w->way, "features", features, "weights", weights, "points", points, "strength",
                     w->chosen < 0 ? json_null() : json_real(w->point[w->chosen].strength), "margin", real(w->margin), "se", real(w->se), "success", real(w->success));
}

static int steering(evaluating *e, json_t **out, es_error *err)
{
    es_steer_options o = e->o->steer;
    int rc = ES_OK;
    if (es_dictionary_check_steers(e->s, err)) { /* the other parts are worth having */
        *out = skipped(err);
        return ES_OK;
    }
    o.threads = e->o->threads;
    o.seed = e->o->seed;
    *out = json_array();
    for (int i = 0; i < e->o->n_task && !rc; i++) {
        const es_task *t = &e->o->task[i];
        es_steering *st = es_calloc(1, sizeof *st);
        es_buf what = {0};
        if (!st)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory to steer");
        es_buf_printf(&what, "steering %s %s %g %g %d %d %d %d %d %d %d", t->name, t->hash, o.kl, o.degenerate, o.train, o.dev, o.held, o.replies, o.reply_tokens,
                      o.neutral_tokens, o.n_neutral);
        for (int k = 0; k < o.n_strength; k++)
            es_buf_printf(&what, " %g", o.strength[k]);
        json_t *v = kept(e, what.data);
        if (!v && !(rc = es_steer_measure(e->m, e->s, t, &o, st, e->progress, err))) {
            json_t *ways = json_array();
            for (int k = 0; k < st->n_way; k++)
                json_array_append_new(ways, way_json(&st->way[k]));
            v = json_pack("{s:s,s:i,s:i,s:i,s:f,s:f,s:o}", "task", t->name, "train", st->train, "dev", st->dev, "held", st->held, "median_length", st->median,
                          "degenerate_base", st->degenerate, "ways", ways);
            rc = keep(e, "steering", what.data, v, err);
        }
        if (v)
            json_array_append_new(*out, v);
        es_buf_free(&what);
        free(st);
    }
    return rc;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------------------------ */

int es_dictionary_evaluate(es_model *m, const es_dictionary *s, const es_dictionary_eval *o, const es_progress *progress, json_t **out, es_error *err)
{
    static int (*const RUN[])(evaluating *, json_t **, es_error *) = {stats, cosines, probes, absorption, steering};
    const es_dictionary_info *info = es_dictionary_get_info(s);
    evaluating e = {.m = m, .s = s, .o = o, .progress = progress, .done = json_object()};
    *out = NULL;
    int rc = es_dictionary_check_model(s, m, err);
    rc = rc ? rc : es_model_hash(m, e.model, err);
    if (!rc && o->work)
        rc = es_work_load(e.done, o->work, err);
    json_t *all = json_pack("{s:{s:s,s:s,s:i,s:i}}", "dictionary", "name", info->name, "hash", info->hash, "features", info->n_features, "layer", info->layer);
    for (size_t i = 0; i < sizeof PART / sizeof *PART && !rc; i++) {
        json_t *value = NULL;
        if (!(o->parts & (unsigned)PART[i].part))
            continue;
        if (PART[i].part == ES_PART_STATS && o->n_file < 1)
            rc = es_fail(err, ES_ERR_USAGE, "stats needs a file of texts to measure on");
        rc = rc ? rc : RUN[i](&e, &value, err);
        if (value)
            json_object_set_new(all, PART[i].name, value);
    }
    json_decref(e.done);
    if (rc)
        json_decref(all);
    else
        *out = all;
    return rc;
}
