/* How far annotators agree. */
#include "workspace.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RESAMPLES = 1000 };

/* ---- kappa ------------------------------------------------------------------------------------------------------------------------------ */

static int by_number(const void *a, const void *b)
{
    return (*(const int *)a > *(const int *)b) - (*(const int *)a < *(const int *)b);
}

/* Position among the k sorted categories. */
static int place(const int *category, int k, int x)
{
    const int *at = bsearch(&x, category, (size_t)k, sizeof *category, by_number);
    return (int)(at - category);
}

void es_kappa_of(es_kappa *out, const int *a, const int *b, int n)
{
    *out = (es_kappa){.n = n, .observed = NAN, .expected = NAN, .kappa = NAN, .error = NAN, .lo = NAN, .hi = NAN};
    if (n <= 0)
        return;
    int *category = malloc((size_t)n * 2 * sizeof *category), k = 0;
    double *row = calloc((size_t)n * 4, sizeof *row), *column = row ? row + 2 * (size_t)n : NULL; /* shares of each category with a, with b */
    if (!category || !row) {
        free(category);
        free(row);
        return;
    }
    memcpy(category, a, (size_t)n * sizeof *a);
    memcpy(category + n, b, (size_t)n * sizeof *b);
    qsort(category, (size_t)n * 2, sizeof *category, by_number);
    for (int i = 0; i < 2 * n; i++)
        if (!k || category[k - 1] != category[i])
            category[k++] = category[i];
    double agree = 0, expected = 0;
    for (int i = 0; i < n; i++) {
        row[place(category, k, a[i])] += 1.0 / n;
        column[place(category, k, b[i])] += 1.0 / n;
        agree += a[i] == b[i];
    }
    agree /= n;
    for (int i = 0; i < k; i++)
        expected += row[i] * column[i];
    out->observed = agree;
    out->expected = expected;
    if (k > 1) { /* one category: expected is 1, and nothing can be said */
        double kappa = (agree - expected) / (1 - expected), on = 0, off = 0, last = kappa - expected * (1 - kappa);
        /* Fleiss, Cohen and Everitt (1969), equation 13: sums over the cells of the table, here over the units in them */
        for (int i = 0; i < n; i++) {
            int p = place(category, k, a[i]), q = place(category, k, b[i]);
            if (p == q) {
                double t = 1 - (row[p] + column[p]) * (1 - kappa);
                on += t * t / n;
            } else {
                double t = column[p] + row[q];
                off += t * t / n;
            }
        }
        double v = on + (1 - kappa) * (1 - kappa) * off - last * last;
        out->kappa = kappa;
        out->error = sqrt(v > 0 ? v : 0) / ((1 - expected) * sqrt(n));
        out->lo = kappa - 1.959963984540054 * out->error;
        out->hi = kappa + 1.959963984540054 * out->error;
    }
    free(category);
    free(row);
}

/* Kappa of two-by-two counts: both, only a, only b, neither. */
static double kappa_of_counts(const double c[4])
{
    double n = c[0] + c[1] + c[2] + c[3], agree = (c[0] + c[3]) / n, a = (c[0] + c[1]) / n, b = (c[0] + c[2]) / n, expected = a * b + (1 - a) * (1 - b);
    return (agree - expected) / (1 - expected);
}

static int by_value(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

/* ---- two annotators ---------------------------------------------------------------------------------------------------------------------- */

typedef struct shared { int feature; char *text[2], *tags[2]; } shared; /* a feature of which both say something */

typedef struct pair {
    shared *item;
    size_t n;
    char **tag; /* used by either on a feature that both tagged, sorted */
    int n_tag;
} pair;

static void pair_free(pair *p)
{
    for (size_t i = 0; i < p->n; i++)
        for (int k = 0; k < 2; k++) {
            free(p->item[i].text[k]);
            free(p->item[i].tags[k]);
        }
    free(p->item);
    for (int i = 0; i < p->n_tag; i++)
        free(p->tag[i]);
    free(p->tag);
}

static int load(es_workspace *w, int64_t dictionary, const char *a, const char *b, pair *p, es_error *err)
{
    es_buf list = {0};
    sqlite3_stmt *q = ws_query(w, err,
                               "SELECT x.feature, x.text, y.text, x.tags, y.tags FROM opinion x JOIN opinion y ON y.dictionary = x.dictionary AND y.feature = x.feature"
                               " WHERE x.dictionary = ? AND x.author = ? AND y.author = ? ORDER BY x.feature",
                               "iss", dictionary, a, b);
    int rc = q ? ES_OK : w->failed;
    while (q && (rc = ws_step(w, q, err)) > 0) {
        shared s = {sqlite3_column_int(q, 0), {ws_text(q, 1), ws_text(q, 2)}, {ws_text(q, 3), ws_text(q, 4)}};
        es_buf_add(&list, &s, sizeof s);
    }
    sqlite3_finalize(q);
    p->item = (shared *)(void *)list.data;
    p->n = list.len / sizeof *p->item;
    return !rc && list.failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory to compare annotators") : rc;
}

static bool both(char *const s[2])
{
    return s[0] && *s[0] && s[1] && *s[1];
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int collect_tags(pair *p, es_error *err)
{
    es_buf list = {0};
    bool failed = false;
    for (size_t i = 0; i < p->n; i++)
        for (int k = 0; k < 2 && both(p->item[i].tags); k++)
            for (const char *t = p->item[i].tags[k]; *t;) {
                size_t n = strcspn(t, " ");
                char *tag = strndup(t, n);
                failed = failed || !tag;
                es_buf_add(&list, &tag, sizeof tag);
                t += n + (t[n] == ' ');
            }
    char **tag = (char **)(void *)list.data;
    size_t n = list.len / sizeof *tag, distinct = 0;
    if (failed || list.failed) {
        for (size_t i = 0; i < n; i++)
            free(tag[i]);
        free(tag);
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to compare annotators");
    }
    if (n)
        qsort(tag, n, sizeof *tag, by_text);
    for (size_t i = 0; i < n; i++) {
        if (distinct && !strcmp(tag[distinct - 1], tag[i]))
            free(tag[i]);
        else
            tag[distinct++] = tag[i];
    }
    p->tag = tag;
    p->n_tag = (int)distinct;
    return ES_OK;
}

/* 1 for each of the pair's tags that is among these. */
static void mark(const pair *p, const char *tags, int *out)
{
    memset(out, 0, (size_t)p->n_tag * sizeof *out);
    for (const char *t = tags; *t;) {
        size_t n = strcspn(t, " ");
        for (int lo = 0, hi = p->n_tag; lo < hi;) {
            int middle = (lo + hi) / 2, c = strncmp(p->tag[middle], t, n);
            if (c == 0 && !p->tag[middle][n]) {
                out[middle] = 1;
                break;
            }
            if (c < 0)
                lo = middle + 1;
            else
                hi = middle;
        }
        t += n + (t[n] == ' ');
    }
}

static int by_units(const void *a, const void *b)
{
    const struct es_agreement_tag *x = a, *y = b;
    double p = x->kappa.expected, q = y->kappa.expected; /* the less is expected by chance, the more it is used */
    return p < q ? -1 : p > q ? 1 : strcmp(x->tag, y->tag);
}

/* Percentiles of kappa over resamples of the features. count: [n][4]. */
static int resample(es_kappa *k, const double (*count)[4], int n, es_error *err)
{
    double *value = malloc(RESAMPLES * sizeof *value);
    es_rng rng;
    int have = 0;
    if (!value)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to compare annotators");
    es_rng_seed(&rng, 1);
    for (int r = 0; r < RESAMPLES; r++) {
        double sum[4] = {0};
        for (int i = 0; i < n; i++) {
            const double *c = count[es_rng_below(&rng, (uint64_t)n)];
            for (int j = 0; j < 4; j++)
                sum[j] += c[j];
        }
        double x = kappa_of_counts(sum);
        if (isfinite(x))
            value[have++] = x;
    }
    qsort(value, (size_t)have, sizeof *value, by_value);
    if (have) {
        k->lo = value[(int)(0.025 * (have - 1) + 0.5)];
        k->hi = value[(int)(0.975 * (have - 1) + 0.5)];
    }
    free(value);
    return ES_OK;
}

static int compare_tags(const pair *p, es_agreement *out, es_error *err)
{
    int n = 0, T = p->n_tag, rc = ES_OK;
    size_t cells;
    for (size_t i = 0; i < p->n; i++)
        n += both(p->item[i].tags);
    out->tagged = n;
    es_kappa_of(&out->tags, NULL, NULL, 0);
    if (!n || !T)
        return ES_OK;
    if (!es_mul((size_t)n, (size_t)T, &cells) || cells > 1 << 28)
        return es_fail(err, ES_ERR_LIMIT, "%d features with %d different tags are too many to compare", n, T);
    int *a = malloc(cells * sizeof *a), *b = malloc(cells * sizeof *b), *column = malloc((size_t)n * 2 * sizeof *column);
    double(*count)[4] = calloc((size_t)n, sizeof *count);
    out->tag = calloc((size_t)T, sizeof *out->tag);
    if (!a || !b || !column || !count || !out->tag)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to compare annotators");
    int at = 0;
    for (size_t i = 0; i < p->n && !rc; i++)
        if (both(p->item[i].tags)) {
            int *x = a + (size_t)at * (size_t)T, *y = b + (size_t)at * (size_t)T;
            mark(p, p->item[i].tags[0], x);
            mark(p, p->item[i].tags[1], y);
            for (int t = 0; t < T; t++)
                count[at][x[t] ? (y[t] ? 0 : 1) : y[t] ? 2 : 3]++;
            at++;
        }
    if (!rc) {
        es_kappa_of(&out->tags, a, b, (int)cells);
        out->tags.error = out->tags.lo = out->tags.hi = NAN; /* units of a feature hang together: its own interval is too narrow */
        if (isfinite(out->tags.kappa))
            rc = resample(&out->tags, (const double(*)[4])count, n, err);
    }
    for (int t = 0; t < T && !rc; t++) {
        for (int i = 0; i < n; i++) {
            column[i] = a[(size_t)i * (size_t)T + (size_t)t];
            column[n + i] = b[(size_t)i * (size_t)T + (size_t)t];
        }
        struct es_agreement_tag *g = &out->tag[out->n_tag++];
        snprintf(g->tag, sizeof g->tag, "%s", p->tag[t]);
        g->tag[es_utf8_whole(g->tag, strlen(g->tag))] = 0;
        es_kappa_of(&g->kappa, column, column + n, n);
    }
    if (!rc)
        qsort(out->tag, (size_t)out->n_tag, sizeof *out->tag, by_units);
    free(a);
    free(b);
    free(column);
    free(count);
    return rc;
}

static int compare_texts(const pair *p, es_agreement *out, es_error *err)
{
    int n = 0, *a = malloc((p->n + 1) * sizeof *a), *b = malloc((p->n + 1) * sizeof *b);
    const char **seen = malloc((2 * p->n + 1) * sizeof *seen);
    int n_seen = 0, rc = a && b && seen ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory to compare annotators");
    for (size_t i = 0; i < p->n && !rc; i++) {
        if (!both(p->item[i].text))
            continue;
        int category[2];
        for (int k = 0; k < 2; k++) { /* quadratic in what two people labelled by hand: thousands at most */
            int c = 0;
            while (c < n_seen && !ws_same_text(seen[c], p->item[i].text[k]))
                c++;
            if (c == n_seen)
                seen[n_seen++] = p->item[i].text[k];
            category[k] = c;
        }
        out->same += category[0] == category[1];
        a[n] = category[0];
        b[n++] = category[1];
    }
    if (!rc) {
        out->labelled = n;
        es_kappa_of(&out->text, a, b, n);
    }
    free(a);
    free(b);
    free(seen);
    return rc;
}

static int compare(es_workspace *w, int64_t dictionary, es_agreement *out, es_error *err)
{
    pair p = {0};
    int rc = load(w, dictionary, out->a, out->b, &p, err);
    if (!rc)
        rc = collect_tags(&p, err);
    if (!rc)
        rc = compare_tags(&p, out, err);
    if (!rc)
        rc = compare_texts(&p, out, err);
    pair_free(&p);
    return rc;
}

void es_agreements_free(es_agreement *a, int n)
{
    for (int i = 0; i < n; i++)
        free(a[i].tag);
    free(a);
}

int es_workspace_agreement(es_workspace *w, const char *dictionary, es_agreement **out, int *n, es_error *err)
{
    es_buf list = {0};
    int64_t id = 0;
    *out = NULL;
    *n = 0;
    ws_enter(w);
    int rc = ws_dictionary_id(w, dictionary, false, &id, NULL, err);
    if (rc == ES_ERR_MISSING) {
        ws_leave(w);
        return ES_OK;
    }
    sqlite3_stmt *q = rc ? NULL :
                           ws_query(w, err,
                                    "SELECT x.author, y.author FROM opinion x JOIN opinion y ON y.dictionary = x.dictionary AND y.feature = x.feature AND y.author > x.author"
                                    " WHERE x.dictionary = ? GROUP BY x.author, y.author",
                                    "i", id);
    if (!rc)
        rc = q ? ES_OK : w->failed;
    while (q && (rc = ws_step(w, q, err)) > 0) {
        es_agreement a = {0};
        ws_copy(a.a, sizeof a.a, q, 0);
        ws_copy(a.b, sizeof a.b, q, 1);
        es_buf_add(&list, &a, sizeof a);
    }
    sqlite3_finalize(q);
    es_agreement *a = (es_agreement *)(void *)list.data;
    int count = (int)(list.len / sizeof *a), people = 0;
    if (!rc && list.failed)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to compare annotators");
    for (int i = 0; i < count && !rc; i++) { /* people first, otherwise in order */
        if (es_author_automatic(a[i].a) || es_author_automatic(a[i].b))
            continue;
        es_agreement one = a[i];
        memmove(&a[people + 1], &a[people], (size_t)(i - people) * sizeof *a);
        a[people++] = one;
    }
    for (int i = 0; i < count && !rc; i++)
        rc = compare(w, id, &a[i], err);
    ws_leave(w);
    if (rc) {
        es_agreements_free(a, count);
        return rc;
    }
    *out = a;
    *n = count;
    return ES_OK;
}
