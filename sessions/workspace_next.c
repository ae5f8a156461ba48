/* Which feature to label next. */
#include "workspace.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TOP = 10 }; /* tokens each way in the logit effect, as dashboards show */

double ws_logit_effect(const es_feature_card *c)
{
    double up = 0, down = 0;
    int n_up = c->n_promoted < TOP ? c->n_promoted : TOP, n_down = c->n_suppressed < TOP ? c->n_suppressed : TOP;
    for (int i = 0; i < n_up; i++)
        up += (double)c->promoted_logit[i] / n_up;
    for (int i = 0; i < n_down; i++)
        down += (double)c->suppressed_logit[i] / n_down;
    return (double)c->mean * (up - down) / 2;
}

static double use_of(double density)
{
    double use = log1p(density / 1e-5) / log1p(0.1 / 1e-5);
    return density <= 0 ? 0 : density > 0.1 ? 0.1 / density : use;
}

static double doubt_of(bool labelled, double score /* NAN: not tested */)
{
    double s = isfinite(score) ? score : 0.7;
    if (!labelled || s <= 0.5)
        return 1;
    return s >= 1 ? 0 : -(s * log2(s) + (1 - s) * log2(1 - s));
}

typedef struct row { es_next next; double effect; } row;
typedef struct place { double key; size_t row; } place; /* small, so that a hundred thousand are sorted soon */

static int rising(const void *a, const void *b)
{
    const place *x = a, *y = b;
    return x->key < y->key ? -1 : x->key > y->key ? 1 : x->row < y->row ? -1 : x->row > y->row;
}

/* Every feature with its effect, how much it is used, and doubt: -1 for those that are not asked for. */
static int read_rows(es_workspace *w, int64_t id, es_buf *out, es_error *err)
{
    sqlite3_stmt *q = ws_query(w, err,
                               "SELECT feature.feature, feature.density, feature.effect, label.skipped, label.text, label.author, label.score FROM feature"
                               " LEFT JOIN label ON label.dictionary = feature.dictionary AND label.feature = feature.feature"
                               " WHERE feature.dictionary = ? AND feature.effect IS NOT NULL ORDER BY feature.feature",
                               "i", id);
    int rc = q ? ES_OK : w->failed;
    while (q && (rc = ws_step(w, q, err)) > 0) {
        const char *text = (const char *)sqlite3_column_text(q, 4), *author = (const char *)sqlite3_column_text(q, 5);
        bool labelled = text && *text, person = labelled && !es_author_automatic(author ? author : "");
        double score = sqlite3_column_type(q, 6) == SQLITE_NULL ? NAN : sqlite3_column_double(q, 6);
        row r = {.next = {.feature = sqlite3_column_int(q, 0), .use = use_of(sqlite3_column_double(q, 1)), .doubt = doubt_of(labelled, score)},
                 .effect = sqlite3_column_double(q, 2)};
        if (person || sqlite3_column_int(q, 3))
            r.next.doubt = -1;
        es_buf_add(out, &r, sizeof r);
    }
    sqlite3_finalize(q);
    if (!rc && out->failed)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for the queue");
    if (!rc && out->len == 0)
        rc = es_fail(err, ES_ERR_MISSING, "nothing is known of these features yet: a queue needs the dictionary's atlas");
    return rc;
}

/* Rows are by rising number. */
static row *row_of(row *r, size_t n, int feature)
{
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t middle = (lo + hi) / 2;
        if (r[middle].next.feature < feature)
            lo = middle + 1;
        else
            hi = middle;
    }
    return lo < n && r[lo].next.feature == feature ? &r[lo] : NULL;
}

static void take_suggested(row *r, size_t n, const es_next_options *o)
{
    float most = 0;
    for (int i = 0; i < o->n_suggested; i++)
        most = fabsf(o->score[i]) > most ? fabsf(o->score[i]) : most;
    if (!(most > 0))
        return;
    for (size_t i = 0; i < n; i++)
        r[i].next.effect /= 2;
    for (int i = 0; i < o->n_suggested; i++) {
        row *at = row_of(r, n, o->suggested[i]);
        if (at)
            at->next.effect = 0.5 + 0.5 * (double)(fabsf(o->score[i]) / most);
    }
}

/* The share of all whose logit effect is smaller: equal ones have equal shares. */
static void rank_effects(row *r, place *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (place){r[i].effect, i};
    qsort(p, n, sizeof *p, rising);
    for (size_t i = 0, first = 0; i < n; i++) {
        if (i && p[i].key > p[i - 1].key)
            first = i;
        r[p[i].row].next.effect = n > 1 ? (double)first / (double)(n - 1) : 1;
    }
}

int es_workspace_next(es_workspace *w, const char *dictionary, const es_next_options *o, es_next *out, int max, int *n, es_error *err)
{
    es_buf list = {0};
    int64_t id = 0;
    *n = 0;
    ws_enter(w);
    int rc = ws_dictionary_id(w, dictionary, false, &id, NULL, err);
    rc = rc == ES_ERR_MISSING ? es_fail(err, rc, "nothing is known of that dictionary") : rc ? rc : read_rows(w, id, &list, err);
    ws_leave(w);
    row *r = (row *)(void *)list.data;
    size_t count = list.len / sizeof *r, some = 0;
    place *p = rc ? NULL : malloc((count + 1) * sizeof *p);
    if (!rc && !p)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for the queue");
    if (!rc) {
        rank_effects(r, p, count);
        if (o && o->n_suggested > 0)
            take_suggested(r, count, o);
        for (size_t i = 0; i < count; i++) {
            r[i].next.value = r[i].next.effect * r[i].next.use * r[i].next.doubt;
            if (r[i].next.value > 0)
                p[some++] = (place){-r[i].next.value, i};
        }
        qsort(p, some, sizeof *p, rising);
        for (size_t i = 0; i < some && *n < max; i++)
            out[(*n)++] = r[p[i].row].next;
    }
    free(p);
    es_buf_free(&list);
    return rc;
}
