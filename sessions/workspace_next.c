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

static int by_effect(const void *a, const void *b)
{
    double x = ((const row *)a)->effect, y = ((const row *)b)->effect;
    return x < y ? -1 : x > y ? 1 : 0;
}

static int by_feature(const void *a, const void *b)
{
    return ((const row *)a)->next.feature - ((const row *)b)->next.feature;
}

static int by_worth(const void *a, const void *b)
{
    const row *x = a, *y = b;
    return x->next.value < y->next.value ? 1 : x->next.value > y->next.value ? -1 : x->next.feature - y->next.feature;
}

/* Every feature with its effect, how much it is used, and doubt: -1 for those that are not asked for. */
static int read_rows(es_workspace *w, int64_t id, es_buf *out, es_error *err)
{
    sqlite3_stmt *q = ws_query(w, err,
                               "SELECT feature.feature, feature.density, feature.effect, label.skipped, label.text, label.author, label.score FROM feature"
                               " LEFT JOIN label ON label.dictionary = feature.dictionary AND label.feature = feature.feature"
                               " WHERE feature.dictionary = ? AND feature.effect IS NOT NULL",
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

static void take_suggested(row *r, size_t n, const es_next_options *o)
{
    float most = 0;
    for (int i = 0; i < o->n_suggested; i++)
        most = fabsf(o->score[i]) > most ? fabsf(o->score[i]) : most;
    if (!(most > 0))
        return;
    for (size_t i = 0; i < n; i++)
        r[i].next.effect /= 2;
    qsort(r, n, sizeof *r, by_feature);
    for (int i = 0; i < o->n_suggested; i++) {
        row key = {.next = {.feature = o->suggested[i]}}, *at = bsearch(&key, r, n, sizeof *r, by_feature);
        if (at)
            at->next.effect = 0.5 + 0.5 * (double)(fabsf(o->score[i]) / most);
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
    size_t count = list.len / sizeof *r;
    if (!rc) {
        qsort(r, count, sizeof *r, by_effect);
        for (size_t i = 0, first = 0; i < count; i++) { /* the share that is smaller: equal ones have equal shares */
            if (i && r[i].effect > r[i - 1].effect)
                first = i;
            r[i].next.effect = count > 1 ? (double)first / (double)(count - 1) : 1;
        }
        if (o && o->n_suggested > 0)
            take_suggested(r, count, o);
        for (size_t i = 0; i < count; i++)
            r[i].next.value = r[i].next.effect * r[i].next.use * r[i].next.doubt;
        qsort(r, count, sizeof *r, by_worth);
        for (size_t i = 0; i < count && *n < max && r[i].next.value > 0; i++)
            out[(*n)++] = r[i].next;
    }
    es_buf_free(&list);
    return rc;
}
