/* Concept sets: labelled texts from the public files and from one's own, and a probe for each label. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "quality.h"

const int es_probe_k[ES_PROBE_KS] = {1, 2, 5};

void es_concepts_free(es_concepts *c)
{
    for (int i = 0; i < c->n; i++)
        free(c->text[i]);
    for (int i = 0; i < c->n_label; i++)
        free(c->label_name[i]);
    free(c->text);
    free(c->label);
    free(c->test);
    free(c->label_name);
    *c = (es_concepts){0};
}

static int no_memory(es_error *err)
{
    return es_fail(err, ES_ERR_MEMORY, "not enough memory for the texts of a concept set");
}

/* The label's number, a new one when it is new; -1 and *failed when there is no memory. */
static int label_number(es_concepts *c, const char *name, bool *failed)
{
    for (int i = 0; i < c->n_label; i++)
        if (!strcmp(c->label_name[i], name))
            return i;
    char **more = realloc(c->label_name, ((size_t)c->n_label + 1) * sizeof *more), *own = strdup(name);
    if (more)
        c->label_name = more;
    if (!more || !own) {
        free(own);
        *failed = true;
        return -1;
    }
    c->label_name[c->n_label] = own;
    return c->n_label++;
}

/* label NULL: of no concept. */
static int add(es_concepts *c, const char *text, const char *label, bool test, es_error *err)
{
    if (c->n == c->cap) {
        int cap = c->cap ? 2 * c->cap : 256;
        char **t = realloc(c->text, (size_t)cap * sizeof *t);
        if (t)
            c->text = t;
        int *l = t ? realloc(c->label, (size_t)cap * sizeof *l) : NULL;
        if (l)
            c->label = l;
        uint8_t *e = l ? realloc(c->test, (size_t)cap) : NULL;
        if (!e)
            return no_memory(err);
        c->test = e;
        c->cap = cap;
    }
    bool failed = false;
    c->label[c->n] = label ? label_number(c, label, &failed) : -1;
    c->test[c->n] = test;
    c->text[c->n] = strdup(text);
    if (!c->text[c->n])
        return no_memory(err);
    c->n++;
    return failed ? no_memory(err) : ES_OK;
}

/* ---- what is taken of it -------------------------------------------------------------------------------------------------------------- */

static void swap(es_concepts *c, int i, int j)
{
    char *t = c->text[i];
    int l = c->label[i];
    uint8_t e = c->test[i];
    c->text[i] = c->text[j];
    c->label[i] = c->label[j];
    c->test[i] = c->test[j];
    c->text[j] = t;
    c->label[j] = l;
    c->test[j] = e;
}

/* A shuffled part of at most `limit` texts: as many of each label (texts of none count as one) as there are, up to its share. Without a split, of each
 * label every tenth text and two more are for test. */
static int settle(es_concepts *c, bool has_split, int limit, uint64_t seed, es_error *err)
{
    int groups = c->n_label + 1, kept = 0, *of = es_calloc((size_t)groups, sizeof *of), *all = es_calloc((size_t)groups, sizeof *all);
    if (!of || !all) {
        free(of);
        free(all);
        return no_memory(err);
    }
    es_rng rng;
    es_rng_seed(&rng, seed);
    for (int i = c->n - 1; i > 0; i--)
        swap(c, i, (int)es_rng_below(&rng, (uint64_t)i + 1));
    for (int i = 0; i < c->n; i++)
        all[c->label[i] + 1]++;
    for (bool less = true; limit > 0 && less;) { /* the largest group gives until they fit */
        int sum = 0, most = 0;
        for (int g = 0; g < groups; g++) {
            sum += all[g];
            most = all[g] > all[most] ? g : most;
        }
        less = sum > limit;
        all[most] -= less;
    }
    for (int i = 0; i < c->n; i++) {
        int g = c->label[i] + 1;
        if (of[g] == all[g])
            continue;
        if (!has_split)
            c->test[i] = of[g] % 10 >= 7;
        of[g]++;
        swap(c, kept++, i);
    }
    for (int i = kept; i < c->n; i++)
        free(c->text[i]);
    c->n = kept;
    free(of);
    free(all);
    return kept ? ES_OK : es_fail(err, ES_ERR_FORMAT, "%s holds no text", c->name);
}

/* ---- one's own file -------------------------------------------------------------------------------------------------------------------- */

typedef struct own_file {
    es_concepts *c;
    int with_set;
} own_file;

static int own_line(void *user, size_t line, json_t *v, es_error *err)
{
    own_file *f = user;
    const char *text = json_string_value(json_object_get(v, "text")), *set = json_string_value(json_object_get(v, "set"));
    json_t *label = json_object_get(v, "label");
    (void)line;
    if (!text || (label && !json_is_string(label) && !json_is_null(label)))
        return es_fail(err, ES_ERR_FORMAT, "needs \"text\", and a string or null as \"label\"");
    if (set && strcmp(set, "train") && strcmp(set, "test"))
        return es_fail(err, ES_ERR_FORMAT, "there is no set \"%.32s\" (train, test)", set);
    f->with_set += set != NULL;
    return add(f->c, text, json_string_value(label), set && !strcmp(set, "test"), err);
}

int es_concepts_file(es_concepts *out, const char *path, int limit, uint64_t seed, es_error *err)
{
    const char *name = strrchr(path, '/');
    *out = (es_concepts){0};
    snprintf(out->name, sizeof out->name, "%s", name ? name + 1 : path);
    own_file f = {out, 0};
    int rc = es_jsonl_each(path, own_line, &f, err);
    if (!rc && f.with_set && f.with_set != out->n)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: some lines name a set and some do not", path);
    rc = rc ? rc : settle(out, f.with_set > 0, limit, seed, err);
    if (rc)
        es_concepts_free(out);
    return rc;
}

/* ---- the public sets -------------------------------------------------------------------------------------------------------------------- */

typedef struct public_set {
    const char *name, *file, *test; /* file names below DIR/concepts; test: of its own, or NULL */
    int (*read)(es_concepts *c, const char *path, bool test, es_error *err);
} public_set;

typedef struct reading {
    es_concepts *c;
    bool test;
} reading;

static int labelled_line(void *user, size_t line, json_t *v, es_error *err)
{
    reading *r = user;
    const char *text = json_string_value(json_object_get(v, "text")), *label = json_string_value(json_object_get(v, "label"));
    (void)line;
    return text && label ? add(r->c, text, label, r->test, err) : es_fail(err, ES_ERR_FORMAT, "has no \"text\" and \"label\"");
}

static int read_labelled(es_concepts *c, const char *path, bool test, es_error *err)
{
    reading r = {c, test};
    return es_jsonl_each(path, labelled_line, &r, err);
}

/* Ten languages of five scripts, so that each has texts of its like beside it. */
static int language_line(void *user, size_t line, json_t *v, es_error *err)
{
    static const char *const TAKEN[] = {"eng", "deu_1901", "nld", "fra", "spa", "ita", "rus", "arb", "hin", "jpn"};
    reading *r = user;
    const char *text = json_string_value(json_object_get(v, "text")), *lang = json_string_value(json_object_get(v, "lang"));
    (void)line;
    if (!text || !lang)
        return es_fail(err, ES_ERR_FORMAT, "has no \"text\" and \"lang\"");
    for (size_t i = 0; i < sizeof TAKEN / sizeof *TAKEN; i++)
        if (!strcmp(lang, TAKEN[i]))
            return add(r->c, text, lang, r->test, err);
    return ES_OK;
}

static int read_languages(es_concepts *c, const char *path, bool test, es_error *err)
{
    reading r = {c, test};
    return es_jsonl_each(path, language_line, &r, err);
}

static int axbench_line(void *user, size_t line, json_t *v, es_error *err)
{
    reading *r = user;
    const char *text = json_string_value(json_object_get(v, "output")), *concept = json_string_value(json_object_get(v, "output_concept"));
    const char *category = json_string_value(json_object_get(v, "category"));
    (void)line;
    if (!text || !category)
        return es_fail(err, ES_ERR_FORMAT, "has no \"output\" and \"category\"");
    return add(r->c, text, !strcmp(category, "positive") ? concept : NULL, r->test, err);
}

static int read_axbench(es_concepts *c, const char *path, bool test, es_error *err)
{
    reading r = {c, test};
    return es_jsonl_each(path, axbench_line, &r, err);
}

/* "statement,label" with quotes around statements that hold commas or quotes, which are then doubled. */
static int read_facts(es_concepts *c, const char *path, bool test, es_error *err)
{
    es_buf b = {0}, field = {0};
    int rc = es_file_read(&b, path, (size_t)64 << 20, err), line = 0;
    for (size_t at = 0; !rc && at < b.len; line++) {
        es_buf_clear(&field);
        bool quoted = b.data[at] == '"';
        for (at += quoted; at < b.len && !(quoted ? b.data[at] == '"' && b.data[at + 1] != '"' : b.data[at] == ',' || b.data[at] == '\n'); at++) {
            at += quoted && b.data[at] == '"';
            es_buf_add(&field, b.data + at, 1);
        }
        at += quoted && at < b.len;
        const char *end = at < b.len ? memchr(b.data + at, '\n', b.len - at) : NULL;
        char label = at + 1 < b.len && b.data[at] == ',' ? b.data[at + 1] : 0;
        if (line > 0 && (field.failed || !field.len || (label != '0' && label != '1')))
            rc = es_fail(err, ES_ERR_FORMAT, "%s:%d: not \"statement,0\" or \"statement,1\"", path, line + 1);
        else if (line > 0)
            rc = add(c, field.data, label == '1' ? "true" : "false", test, err);
        at = end ? (size_t)(end - b.data) + 1 : b.len;
    }
    es_buf_free(&field);
    es_buf_free(&b);
    return rc;
}

static const public_set SETS[] = {
    {"sentence-polarity", "sentence_polarity.jsonl", NULL, read_labelled},
    {"subjectivity", "subjectivity.jsonl", NULL, read_labelled},
    {"facts", "facts_true_false.csv", NULL, read_facts},
    {"languages", "udhr_langid.jsonl", NULL, read_languages},
    {"axbench-2b-l10", "axbench/concept10_prod_2b_l10_v1_train.jsonl", "axbench/concept10_prod_2b_l10_v1_eval.jsonl", read_axbench},
    {"axbench-2b-l20", "axbench/concept10_prod_2b_l20_v1_train.jsonl", "axbench/concept10_prod_2b_l20_v1_eval.jsonl", read_axbench},
};
enum { N_SETS = sizeof SETS / sizeof *SETS };

const char *es_concepts_name(int i)
{
    return i >= 0 && i < N_SETS ? SETS[i].name : NULL;
}

int es_concepts_public(es_concepts *out, const char *dir, const char *name, int limit, uint64_t seed, es_error *err)
{
    const public_set *set = NULL;
    *out = (es_concepts){0};
    for (int i = 0; i < N_SETS && !set; i++)
        set = !strcmp(SETS[i].name, name) ? &SETS[i] : NULL;
    if (!set)
        return es_fail(err, ES_ERR_USAGE, "there is no concept set %s", name);
    snprintf(out->name, sizeof out->name, "%s", name);
    int rc = ES_OK;
    for (int part = 0; part < 2 && !rc; part++) {
        const char *file = part ? set->test : set->file;
        char path[1400];
        if (!file)
            continue;
        if (snprintf(path, sizeof path, "%s/concepts/%s", dir, file) >= (int)sizeof path || access(path, R_OK) != 0)
            rc = es_fail(err, ES_ERR_MISSING, "the concept set %s is not in %s/concepts (%s)", name, dir, file);
        else
            rc = set->read(out, path, part == 1, err);
    }
    rc = rc ? rc : settle(out, set->test != NULL, limit, seed, err);
    if (rc)
        es_concepts_free(out);
    return rc;
}

/* ---- probes ----------------------------------------------------------------------------------------------------------------------------- */

typedef struct probing {
    const es_concepts *c;
    const es_pooled *p;
    int F;
    int *row[2], n[2];  /* train, test: texts, half of them with the label */
    uint8_t *y[2];
    float *x, *w;       /* [texts, max(d, k)], [max(d, k)] */
} probing;

/* As many texts with the label as without it, in the set's order. */
static void balance(probing *b, int label, int part)
{
    const es_concepts *c = b->c;
    int of[2] = {0}, most;
    b->n[part] = 0;
    for (int i = 0; i < c->n; i++)
        if (c->test[i] == part)
            of[c->label[i] == label]++;
    most = of[0] < of[1] ? of[0] : of[1];
    of[0] = of[1] = 0;
    for (int i = 0; i < c->n; i++) {
        int y = c->label[i] == label;
        if (c->test[i] != part || of[y] == most)
            continue;
        of[y]++;
        b->row[part][b->n[part]] = i;
        b->y[part][b->n[part]++] = (uint8_t)y;
    }
}

/* The share of test that a probe on these columns gets right. feature NULL: on the residual. */
static int accuracy(probing *b, const int *feature, int k, double *out, es_error *err)
{
    size_t d = feature ? (size_t)k : b->p->d;
    float bias = 0;
    int right = 0, rc = ES_OK;
    for (int part = 0; part < 2 && !rc; part++) {
        if (feature)
            es_probe_gather(&b->p->acts, b->row[part], b->n[part], feature, k, b->x);
        for (int i = 0; i < b->n[part] && !feature; i++)
            memcpy(b->x + (size_t)i * d, b->p->x + (size_t)b->row[part][i] * d, d * sizeof *b->x);
        if (part == 0)
            rc = es_probe_fit(b->x, b->y[0], (size_t)b->n[0], d, b->w, &bias, err);
        for (int i = 0; i < b->n[part] && part == 1; i++)
            right += (es_probe_value(b->x + (size_t)i * d, b->w, bias, d) > 0) == b->y[1][i];
    }
    *out = (double)right / b->n[1];
    return rc;
}

static int probe_label(probing *b, int label, es_concept_probe *out, es_error *err)
{
    *out = (es_concept_probe){.label = label, .train = b->n[0], .test = b->n[1]};
    int n = es_probe_choose(&b->p->acts, b->row[0], b->y[0], b->n[0], b->F, ES_PROBE_K, out->feature, err), rc = n < 0 ? n : ES_OK;
    out->n_feature = n > 0 ? n : 0;
    for (int i = 0; i < ES_PROBE_KS && !rc; i++) {
        int k = es_probe_k[i] < n ? es_probe_k[i] : n;
        out->accuracy[i] = 0.5; /* nothing is active: a coin */
        if (k)
            rc = accuracy(b, out->feature, k, &out->accuracy[i], err);
    }
    return rc ? rc : accuracy(b, NULL, 0, &out->dense, err);
}

int es_concepts_probe(const es_concepts *c, const es_pooled *p, int F, es_concept_probe *out, int *n, es_error *err)
{
    size_t wide = p->d > ES_PROBE_K ? p->d : ES_PROBE_K, texts = (size_t)c->n + 1;
    probing b = {.c = c, .p = p, .F = F, .x = es_calloc(texts, wide * sizeof(float)), .w = es_calloc(wide, sizeof(float))};
    bool others = false, ok = b.x && b.w;
    for (int part = 0; part < 2; part++) {
        b.row[part] = es_calloc(texts, sizeof(int));
        b.y[part] = es_calloc(texts, 1);
        ok = ok && b.row[part] && b.y[part];
    }
    for (int i = 0; i < c->n; i++)
        others = others || c->label[i] < 0;
    int rc = ok ? ES_OK : no_memory(err);
    *n = 0;
    for (int label = c->n_label == 2 && !others; label < c->n_label && !rc; label++) {
        balance(&b, label, 0);
        balance(&b, label, 1);
        if (b.n[0] < 10 || b.n[1] < 10)
            continue;
        rc = probe_label(&b, label, &out[(*n)++], err);
    }
    for (int part = 0; part < 2; part++) {
        free(b.row[part]);
        free(b.y[part]);
    }
    free(b.x);
    free(b.w);
    return rc;
}
