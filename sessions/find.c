/* Finding features: a query is taken apart into words, which the workspace's index answers, and filters over figures, tokens, directions and texts, each
 * of which strikes out what does not pass. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "looks.h"
#include "workspace.h"

enum { MAX_TERMS = 32, MAX_QUERY = 4096, LIKE = 200, TOKENS = ES_ATLAS_TOKENS };

/* ---- the query's terms ------------------------------------------------------------------------------------------------------- */

typedef enum term_kind { T_WORD, T_INDEX /* the workspace's own filters */, T_TOKEN, T_FIGURE, T_LIKE, T_TEXT, T_BASIS } term_kind;
typedef enum figure { F_DENSITY, F_MAX, F_MEAN, F_P99, F_RATING, FIGURES } figure;
static const char *const figure_name[FIGURES] = {"density", "max", "mean", "p99", "rating"};
enum { UP, DOWN, PEAK, LISTS };
static const char *const list_name[LISTS] = {"promotes:", "suppresses:", "fires:"};

typedef struct term {
    term_kind kind;
    bool not, open; /* open: still being typed */
    char *text;     /* of its value */
    int which;      /* figure, list, feature */
    double lo, hi;
    bool lo_in, hi_in;
} term;

typedef struct query { term t[MAX_TERMS]; int n; } query;

static void query_free(query *q)
{
    for (int i = 0; i < q->n; i++)
        free(q->t[i].text);
}

static bool figure_term(term *t, const char *s, es_error *err, int *rc)
{
    for (int f = 0; f < FIGURES; f++) {
        size_t n = strlen(figure_name[f]);
        if (strncmp(s, figure_name[f], n) || !strchr("<>=:", s[n]) || !s[n])
            continue;
        *t = (term){.kind = T_FIGURE, .not = t->not, .which = f, .lo = -INFINITY, .hi = INFINITY};
        char *end;
        const char *p = s + n;
        if (*p == ':') {
            const char *dots = strstr(p, "..");
            char low[32] = "";
            if (dots && dots - p < 32)
                snprintf(low, sizeof low, "%.*s", (int)(dots - p - 1), p + 1); /* by itself: "3." is a number too */
            t->lo = strtod(low, &end);
            if (end == low || *end) {
                *rc = es_fail(err, ES_ERR_USAGE, "'%.60s': a range is %s:LO..HI", s, figure_name[f]);
                return true;
            }
            p = dots + 2;
            t->hi = strtod(p, &end);
            t->lo_in = t->hi_in = true;
        } else {
            bool less = *p == '<', equal = *p == '=';
            p++;
            bool also = !equal && *p == '=';
            p += also;
            double v = strtod(p, &end);
            t->lo = less ? -INFINITY : v;
            t->hi = less || equal ? v : INFINITY;
            t->lo_in = t->hi_in = also || equal;
        }
        if (end == p || *end)
            *rc = es_fail(err, ES_ERR_USAGE, "'%.60s': what follows is not a number", s);
        return true;
    }
    return false;
}

/* s: one term without its minus, quotes taken off its value. */
static int term_read(term *t, const char *s, es_error *err)
{
    int rc = ES_OK;
    const char *value = NULL;
    if (figure_term(t, s, err, &rc))
        return rc;
    for (int i = 0; i < LISTS && !value; i++)
        if (!strncmp(s, list_name[i], strlen(list_name[i]))) {
            t->kind = T_TOKEN;
            t->which = i;
            value = s + strlen(list_name[i]);
        }
    if (!strncmp(s, "text:", 5) || !strncmp(s, "basis:", 6)) {
        t->kind = *s == 't' ? T_TEXT : T_BASIS;
        value = strchr(s, ':') + 1;
    } else if (!strcmp(s, "is:basis")) {
        t->kind = T_BASIS;
        value = "";
    } else if (!strncmp(s, "like:", 5)) {
        char *end;
        long f = strtol(s + 5, &end, 10);
        t->kind = T_LIKE;
        t->which = f > INT32_MAX || f < 0 ? -1 : (int)f;
        if (t->not)
            return es_fail(err, ES_ERR_USAGE, "like: is an order by nearness; it has no opposite");
        if (end == s + 5 || *end)
            return es_fail(err, ES_ERR_USAGE, "'%.60s': like: wants the number of a feature", s);
        value = s + 5;
    } else if (!strncmp(s, "tag:", 4) || !strncmp(s, "is:", 3) || !strncmp(s, "by:", 3) || !strncmp(s, "score<", 6) || !strncmp(s, "score>", 6)) {
        static const char *const is[] = {"labelled", "labeled", "unlabelled", "unlabeled", "rated", "skipped", "conflict"};
        bool known = *s != 'i';
        for (size_t i = 0; i < sizeof is / sizeof *is; i++)
            known |= !strcmp(s + 3, is[i]);
        t->kind = known ? T_INDEX : T_WORD;
    }
    if (value && !*value && strcmp(s, "is:basis"))
        return es_fail(err, ES_ERR_USAGE, "'%.60s': nothing follows the colon", s);
    t->text = strdup(value ? value : s);
    return t->text ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory to search");
}

static int query_read(query *q, const char *text, es_error *err)
{
    *q = (query){0};
    if (strlen(text) > MAX_QUERY)
        return es_fail(err, ES_ERR_USAGE, "what is searched for is over %d bytes", (int)MAX_QUERY);
    for (const char *p = text; *p;) {
        if (strchr(" \t\r\n", *p)) {
            p++;
            continue;
        }
        es_buf word = {0};
        bool not = *p == '-' && p[1] && !strchr(" \t\r\n", p[1]), quoted = false, had = false;
        for (p += not; *p && (quoted || !strchr(" \t\r\n", *p)); p++) {
            if (quoted && *p == '\\' && p[1] == '"') {
                es_buf_add(&word, ++p, 1);
                continue;
            }
            bool quote = *p == '"' && (quoted || word.len == 0 || word.data[word.len - 1] == ':');
            quoted ^= quote;
            had |= quote;
            if (!quote)
                es_buf_add(&word, p, 1);
        }
        if (had && word.len == 0) {
            es_buf_free(&word);
            continue;
        }
        int rc = q->n == MAX_TERMS ? es_fail(err, ES_ERR_USAGE, "a search takes at most %d words and filters", (int)MAX_TERMS)
                 : word.failed || !word.data ? es_fail(err, ES_ERR_MEMORY, "not enough memory to search") : ES_OK;
        if (!rc) {
            q->t[q->n] = (term){.not = not, .open = !*p && !had};
            rc = term_read(&q->t[q->n], word.data, err);
        }
        es_buf_free(&word);
        if (rc)
            return rc;
        q->n++;
    }
    return ES_OK;
}

/* ---- what is kept between calls ---------------------------------------------------------------------------------------------- */

struct es_finder_kept {
    es_firing *firing;
    int32_t *list[LISTS]; /* [F, TOKENS], -1 after the last */
    float *rating;        /* [F], read anew by each search that wants it */
};

void es_finder_free(es_finder *f)
{
    if (!f->kept)
        return;
    es_firing_free(f->kept->firing);
    for (int i = 0; i < LISTS; i++)
        free(f->kept->list[i]);
    free(f->kept->rating);
    free(f->kept);
    f->kept = NULL;
}

static int lists_read(es_finder *f, const volatile bool *cancel, es_error *err)
{
    struct es_finder_kept *k = f->kept;
    if (k->list[UP])
        return ES_OK;
    if (!f->atlas)
        return es_fail(err, ES_ERR_MISSING, "there is no atlas beside the dictionary, so nothing is known of its features' tokens");
    int rc = ES_OK;
    int32_t *list[LISTS];
    size_t cells = (size_t)f->n_features * TOKENS;
    for (int i = 0; i < LISTS; i++)
        if (!(list[i] = es_calloc(cells, sizeof **list)))
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for the tokens of %d features", f->n_features);
        else
            memset(list[i], -1, cells * sizeof **list);
    for (int j = 0; j < f->n_features && !rc; j++) {
        es_feature_card c;
        if (cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED))
            rc = es_fail(err, ES_ERR_CANCELLED, "cancelled");
        else if (!(rc = es_atlas_card(f->atlas, j, &c, err))) {
            size_t at = (size_t)j * TOKENS;
            memcpy(list[UP] + at, c.promoted, (size_t)c.n_promoted * sizeof(int32_t));
            memcpy(list[DOWN] + at, c.suppressed, (size_t)c.n_suppressed * sizeof(int32_t));
            for (int e = 0; e < c.n_example && e < TOKENS; e++)
                list[PEAK][at + (size_t)e] = c.example[e].id[c.example[e].peak];
        }
    }
    for (int i = 0; i < LISTS; i++)
        if (rc)
            free(list[i]);
        else
            k->list[i] = list[i];
    return rc;
}

static int ratings_read(es_finder *f, es_error *err)
{
    struct es_finder_kept *k = f->kept;
    if (!f->workspace)
        return es_fail(err, ES_ERR_MISSING, "there is no workspace, so no ratings");
    if (!k->rating && !(k->rating = es_calloc((size_t)f->n_features, sizeof *k->rating)))
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for the ratings");
    memset(k->rating, 0, (size_t)f->n_features * sizeof *k->rating);
    ws_enter(f->workspace);
    sqlite3_stmt *q = ws_query(f->workspace, err, "SELECT feature, rating FROM label JOIN dictionary ON dictionary.id = label.dictionary WHERE hash = ? AND rating > 0", "s", f->hash);
    int rc = q ? ES_OK : f->workspace->failed;
    while (q && (rc = ws_step(f->workspace, q, err)) > 0) {
        int j = sqlite3_column_int(q, 0);
        if (j >= 0 && j < f->n_features)
            k->rating[j] = (float)sqlite3_column_int(q, 1);
    }
    sqlite3_finalize(q);
    ws_leave(f->workspace);
    return rc;
}

/* ---- one search ---------------------------------------------------------------------------------------------------------------- */

typedef struct search {
    es_finder *f;
    size_t F;
    uint8_t *in;     /* [F]: passes so far */
    float *key;      /* [F]: what "best" sorts by, the larger the better; NULL: by number */
    int *scratch;    /* [F] */
    float *value;    /* [F] or NULL */
    float *surprise;
    int *token;
    const char *measure;
    const volatile bool *cancel;
} search;

static bool stopped(const search *s)
{
    return s->cancel && __atomic_load_n(s->cancel, __ATOMIC_RELAXED);
}

static int keyed(search *s, es_error *err)
{
    if (!s->key && !(s->key = es_calloc(s->F, sizeof *s->key)))
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to search");
    return ES_OK;
}

/* Asks the workspace for text; ok[j] becomes 1 where it finds j, order[j] its rank from the top (NULL: not wanted). */
static int ask(search *s, const char *text, uint8_t *ok, float *key, es_error *err)
{
    int n = 0;
    if (!s->f->workspace)
        return es_fail(err, ES_ERR_MISSING, "there is no workspace to search in");
    int rc = es_workspace_search(s->f->workspace, s->f->hash, text, s->scratch, (int)s->F, &n, err);
    for (int i = 0; i < n && !rc; i++)
        if (s->scratch[i] >= 0 && (size_t)s->scratch[i] < s->F) {
            ok[s->scratch[i]] = 1;
            if (key)
                key[s->scratch[i]] = 2 - (float)i / (float)s->F;
        }
    return rc;
}

/* Labels and tags that hold every word somewhere: what words and beginnings have not found comes after those. */
static int ask_inside(search *s, const query *q, uint8_t *ok, es_error *err)
{
    es_buf sql = {0};
    int words = 0, at = 2;
    es_buf_str(&sql, "SELECT feature FROM label JOIN dictionary ON dictionary.id = label.dictionary WHERE hash = ?1");
    for (int i = 0; i < q->n; i++)
        if (q->t[i].kind == T_WORD && !q->t[i].not) {
            if (strlen(q->t[i].text) < 3) { /* would be inside of nearly everything */
                es_buf_free(&sql);
                return ES_OK;
            }
            es_buf_printf(&sql, " AND instr(lower(text || ' ' || tags), lower(?%d))", at++);
            words++;
        }
    ws_enter(s->f->workspace);
    sqlite3_stmt *st = !words || sql.failed ? NULL : ws_query(s->f->workspace, err, sql.data, "");
    int rc = st || !words ? ES_OK : s->f->workspace->failed;
    if (st) {
        sqlite3_bind_text(st, 1, s->f->hash, -1, SQLITE_STATIC);
        at = 2;
        for (int i = 0; i < q->n; i++)
            if (q->t[i].kind == T_WORD && !q->t[i].not)
                sqlite3_bind_text(st, at++, q->t[i].text, -1, SQLITE_STATIC);
        while ((rc = ws_step(s->f->workspace, st, err)) > 0) {
            int j = sqlite3_column_int(st, 0);
            if (j >= 0 && (size_t)j < s->F)
                ok[j] = 1;
        }
    }
    sqlite3_finalize(st);
    ws_leave(s->f->workspace);
    es_buf_free(&sql);
    return rc;
}

static void strike(search *s, const uint8_t *ok, bool not)
{
    for (size_t j = 0; j < s->F; j++)
        s->in[j] &= ok[j] != not;
}

static int words(search *s, const query *q, es_error *err)
{
    es_buf all = {0};
    uint8_t *ok = es_calloc(s->F, 1);
    bool open = false;
    int rc = ok ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory to search");
    for (int i = 0; i < q->n && !rc; i++) {
        const term *t = &q->t[i];
        if (t->kind == T_WORD && !t->not) {
            es_buf_printf(&all, "%s%s", all.len ? " " : "", t->text);
            open = t->open;
        } else if (t->kind == T_INDEX || t->kind == T_WORD) { /* by themselves */
            memset(ok, 0, s->F);
            rc = ask(s, t->text, ok, NULL, err);
            strike(s, ok, t->not);
        }
    }
    if (!rc && all.len) {
        if (!open)
            es_buf_str(&all, " "); /* ended: whole words */
        bool number = q->n == 1 && strspn(q->t[0].text, "0123456789") == strlen(q->t[0].text);
        if (number) {
            long f = strtol(q->t[0].text, NULL, 10);
            memset(ok, 0, s->F);
            if (f >= 0 && (size_t)f < s->F)
                ok[f] = 1;
        } else {
            memset(ok, 0, s->F);
            rc = all.failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory to search") : keyed(s, err);
            if (!rc)
                rc = ask(s, all.data, ok, s->key, err);
            if (!rc)
                rc = ask_inside(s, q, ok, err);
        }
        strike(s, ok, false);
    }
    es_buf_free(&all);
    free(ok);
    return rc;
}

static const float *figures(search *s, int which, es_error *err, int *rc)
{
    es_finder *f = s->f;
    *rc = ES_OK;
    if (which == F_RATING) {
        *rc = ratings_read(f, err);
        return f->kept->rating;
    }
    if (which == F_DENSITY && f->density)
        return f->density;
    if (!f->atlas) {
        *rc = es_fail(err, ES_ERR_MISSING, "there is no atlas beside the dictionary, so nothing is known of %s: see espalier atlas", figure_name[which]);
        return NULL;
    }
    return which == F_DENSITY ? es_atlas_density(f->atlas) : which == F_MAX ? es_atlas_max(f->atlas) : which == F_MEAN ? es_atlas_mean(f->atlas) : es_atlas_p99(f->atlas);
}

static int by_figure(search *s, const term *t, es_error *err)
{
    int rc;
    const float *v = figures(s, t->which, err, &rc);
    for (size_t j = 0; j < s->F && !rc; j++) {
        float lo = (float)t->lo, hi = (float)t->hi; /* as the table has it: 0.01 equals 0.01 */
        bool ok = (t->lo_in ? v[j] >= lo : v[j] > lo || isinf(t->lo)) && (t->hi_in ? v[j] <= hi : v[j] < hi || isinf(t->hi));
        s->in[j] &= ok != t->not;
    }
    return rc;
}

/* A token is the word: the same letters but for case and blanks before it; or, with a star, begins so. */
static bool same_token(const char *s, size_t n, const char *word, size_t k, bool beginning)
{
    while (n && (*s == ' ' || *s == '\n' || *s == '\t')) {
        s++;
        n--;
    }
    return (beginning ? n >= k : n == k) && !strncasecmp(s, word, k);
}

static int by_token(search *s, const term *t, es_error *err)
{
    if (!s->f->model)
        return es_fail(err, ES_ERR_MISSING, "there is no model to take tokens from");
    int rc = lists_read(s->f, s->cancel, err), V = es_model_get_info(s->f->model)->n_vocab;
    const char *word = t->text + strspn(t->text, " ");
    size_t k = strlen(word);
    bool beginning = k > 1 && word[k - 1] == '*';
    k -= beginning;
    uint8_t *is = rc ? NULL : es_calloc((size_t)V, 1);
    if (!rc && !is)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to search");
    if (!rc)
        rc = keyed(s, err);
    for (int v = 0; v < V && !rc; v++) {
        size_t n;
        const char *text = es_token_bytes(s->f->model, v, &n);
        is[v] = text && same_token(text, n, word, k, beginning);
    }
    const int32_t *list = rc ? NULL : s->f->kept->list[t->which];
    for (size_t j = 0; j < s->F && !rc; j++) {
        int rank = -1;
        for (int i = 0; i < TOKENS && rank < 0; i++) {
            int32_t id = list[j * TOKENS + (size_t)i];
            if (id >= 0 && id < V && is[id])
                rank = i;
        }
        s->in[j] &= (rank >= 0) != t->not;
        if (rank >= 0 && !t->not)
            s->key[j] += 1 - (float)rank / TOKENS;
    }
    free(is);
    return rc;
}

static int by_basis(search *s, const term *t, es_error *err)
{
    es_basis loaded = {0};
    const es_basis *b = s->f->basis;
    int rc = ES_OK;
    if (*t->text) {
        char name[64];
        const char *at = strrchr(t->text, '@');
        char *end = NULL;
        long version = at ? strtol(at + 1, &end, 10) : 0;
        size_t n = at && end && end > at + 1 && !*end ? (size_t)(at - t->text) : strlen(t->text);
        snprintf(name, sizeof name, "%.*s", (int)(n < 63 ? n : 63), t->text);
        if (!s->f->workspace)
            return es_fail(err, ES_ERR_MISSING, "there is no workspace, so no saved basis");
        rc = es_workspace_basis_load(s->f->workspace, name, n < strlen(t->text) ? (int)version : 0, &loaded, err);
        if (!rc && strcmp(loaded.dictionary_hash, s->f->hash))
            rc = es_fail(err, ES_ERR_MISMATCH, "basis %s belongs to dictionary %.12s, open is %.12s", name, loaded.dictionary_hash, s->f->hash);
        b = &loaded;
    }
    uint8_t *ok = rc ? NULL : es_calloc(s->F, 1);
    if (!rc && !ok)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to search");
    for (int i = 0; b && i < b->n && !rc; i++)
        if (b->feature[i] >= 0 && (size_t)b->feature[i] < s->F)
            ok[b->feature[i]] = 1;
    if (!rc)
        strike(s, ok, t->not);
    free(ok);
    es_basis_free(&loaded);
    return rc;
}

static int valued(search *s, const char *measure, es_error *err)
{
    s->measure = measure;
    if (!s->value && !(s->value = es_calloc(s->F, sizeof *s->value)))
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to search");
    return keyed(s, err);
}

static int by_text(search *s, const term *t, es_found *out, es_error *err)
{
    es_finder *f = s->f;
    struct es_finder_kept *k = f->kept;
    es_fire *fire = NULL;
    int n = 0, rc = ES_OK;
    if (!f->model || !f->dictionary)
        return es_fail(err, ES_ERR_MISSING, "there is no model to read a text with");
    if (!k->firing)
        rc = es_firing_open(&k->firing, f->model, f->dictionary, f->threads, err);
    if (!rc)
        rc = es_firing_read(k->firing, t->text, strlen(t->text), true, s->cancel, err);
    if (!rc)
        rc = es_firing_list(k->firing, f->atlas, ES_FIRE_MAX, &fire, &n, err);
    uint8_t *ok = es_calloc(s->F, 1);
    if (!rc && !ok)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to search");
    if (!rc && !t->not) {
        rc = valued(s, "activation", err);
        s->surprise = s->surprise ? s->surprise : es_calloc(s->F, sizeof *s->surprise);
        s->token = s->token ? s->token : es_calloc(s->F, sizeof *s->token);
        const es_ids *ids = es_firing_ids(k->firing);
        free(out->text_id);
        out->n_text = 0;
        out->text_id = es_calloc(ids->n + 1, sizeof *out->text_id);
        if (!rc && (!s->surprise || !s->token || !out->text_id))
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to search");
        if (!rc) {
            memcpy(out->text_id, ids->id, ids->n * sizeof *ids->id);
            out->n_text = (int)ids->n;
        }
    }
    for (int i = 0; i < n && !rc; i++) {
        int j = fire[i].feature;
        ok[j] = 1;
        if (!t->not) {
            s->value[j] = s->key[j] = fire[i].max;
            s->surprise[j] = fire[i].surprise;
            s->token[j] = fire[i].token;
        }
    }
    if (!rc)
        strike(s, ok, t->not);
    free(ok);
    free(fire);
    return rc;
}

static int by_float_falling(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

static int by_like(search *s, const term *t, es_error *err)
{
    enum { ROWS = 512 };
    const es_dictionary *dict = s->f->dictionary;
    if (!dict)
        return es_fail(err, ES_ERR_MISSING, "there is no dictionary to compare with");
    if (t->which < 0 || (size_t)t->which >= s->F)
        return es_fail(err, ES_ERR_MISSING, "there is no feature %s: the dictionary has 0 to %zu", t->text, s->F - 1);
    size_t d = (size_t)es_dictionary_get_info(dict)->d_out, n = 0;
    int rc = valued(s, "cosine", err);
    float *own = es_calloc(d, sizeof *own), *rows = es_calloc(ROWS * d, sizeof *rows), *passed = es_calloc(s->F, sizeof *passed);
    if (!rc && (!own || !rows || !passed))
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to search");
    if (!rc)
        es_dictionary_rows(dict, t->which, 1, own);
    for (size_t first = 0; first < s->F && !rc; first += ROWS) {
        size_t some = s->F - first < ROWS ? s->F - first : ROWS;
        es_dictionary_rows(dict, (int)first, (int)some, rows);
        for (size_t j = 0; j < some; j++) {
            float dot = 0, a = 0, b = 0;
            for (size_t i = 0; i < d; i++) {
                dot += own[i] * rows[j * d + i];
                a += own[i] * own[i];
                b += rows[j * d + i] * rows[j * d + i];
            }
            float cosine = a > 0 && b > 0 ? dot / sqrtf(a * b) : 0;
            s->value[first + j] = s->key[first + j] = cosine;
            if (s->in[first + j] && first + j != (size_t)t->which)
                passed[n++] = cosine;
        }
        if (stopped(s))
            rc = es_fail(err, ES_ERR_CANCELLED, "cancelled");
    }
    if (!rc && n > LIKE)
        qsort(passed, n, sizeof *passed, by_float_falling);
    float least = !rc && n > LIKE ? passed[LIKE - 1] : -2;
    for (size_t j = 0; j < s->F && !rc; j++)
        s->in[j] &= s->value[j] >= least && j != (size_t)t->which;
    free(own);
    free(rows);
    free(passed);
    return rc;
}

/* ---- order ------------------------------------------------------------------------------------------------------------------------ */

typedef struct ordering { const float *key; const int *token; char *const *label; } ordering;

static int compare(const void *a, const void *b, void *user)
{
    const ordering *o = user;
    int i = *(const int *)a, j = *(const int *)b;
    if (o->token && o->token[i] != o->token[j])
        return o->token[i] - o->token[j];
    if (o->label) {
        const char *x = o->label[i], *y = o->label[j];
        if (!x != !y)
            return x ? -1 : 1;
        int c = x ? strcasecmp(x, y) : 0;
        return c ? c : i - j;
    }
    if (o->key && o->key[i] != o->key[j])
        return o->key[i] < o->key[j] ? 1 : -1;
    return i - j;
}

static int put_in_order(search *s, es_find_order order, int *row, int n, es_error *err)
{
    es_finder *f = s->f;
    ordering o = {0};
    char **label = NULL;
    int rc = ES_OK;
    switch (order) {
    case ES_FIND_DENSITY: o.key = figures(s, F_DENSITY, err, &rc); break;
    case ES_FIND_MAX: o.key = s->surprise ? s->value : figures(s, F_MAX, err, &rc); break;
    case ES_FIND_LABEL:
        label = es_calloc(s->F, sizeof *label);
        rc = !label ? es_fail(err, ES_ERR_MEMORY, "not enough memory to sort") : f->workspace ? es_workspace_labels_all(f->workspace, f->hash, (int)s->F, label, err) : ES_OK;
        o.label = label;
        break;
    case ES_FIND_TOKEN:
    case ES_FIND_SURPRISE:
        if (!s->surprise)
            return es_fail(err, ES_ERR_USAGE, "order %s is of what fires on a text: it wants text:\"...\"", es_find_order_name(order));
        if (order == ES_FIND_SURPRISE && !f->atlas)
            return es_fail(err, ES_ERR_MISSING, "there is no atlas beside the dictionary, so nothing is known of what is usual");
        o.token = order == ES_FIND_TOKEN ? s->token : NULL;
        o.key = order == ES_FIND_TOKEN ? s->value : s->surprise;
        break;
    case ES_FIND_BEST: o.key = s->key; break;
    default: break;
    }
    if (!rc && (o.key || o.label))
        qsort_r(row, (size_t)n, sizeof *row, compare, &o);
    for (size_t j = 0; label && j < s->F; j++)
        free(label[j]);
    free(label);
    return rc;
}

static float *picked(const float *from, const int *row, int n)
{
    float *v = from ? es_calloc((size_t)n + 1, sizeof *v) : NULL;
    for (int i = 0; v && i < n; i++)
        v[i] = from[row[i]];
    return v;
}

static int gather(search *s, es_find_order order, es_found *out, es_error *err)
{
    int n = 0;
    for (size_t j = 0; j < s->F; j++)
        if (s->in[j])
            s->scratch[n++] = (int)j;
    int rc = put_in_order(s, order, s->scratch, n, err);
    if (rc)
        return rc;
    out->n = n;
    out->feature = s->scratch;
    s->scratch = NULL;
    out->measure = s->measure;
    out->value = picked(s->value, out->feature, n);
    out->surprise = picked(s->surprise, out->feature, n);
    out->token = s->token ? es_calloc((size_t)n + 1, sizeof *out->token) : NULL;
    for (int i = 0; out->token && i < n; i++)
        out->token[i] = s->token[out->feature[i]];
    if ((s->value && !out->value) || (s->surprise && !out->surprise) || (s->token && !out->token))
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to search");
    return ES_OK;
}

int es_find(es_finder *f, const char *text, es_find_order order, es_found *out, const volatile bool *cancel, es_error *err)
{
    query q;
    *out = (es_found){0};
    search s = {.f = f, .F = (size_t)f->n_features, .cancel = cancel};
    if (!f->kept && !(f->kept = es_calloc(1, sizeof *f->kept)))
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to search");
    int rc = query_read(&q, text, err);
    s.in = es_calloc(s.F + 1, 1);
    s.scratch = es_calloc(s.F + 1, sizeof *s.scratch);
    if (!rc && (!s.in || !s.scratch))
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to search");
    if (!rc) {
        memset(s.in, 1, s.F);
        rc = words(&s, &q, err);
    }
    for (int turn = 0; turn < 2; turn++) /* like: last: it takes the nearest of what is left */
        for (int i = 0; i < q.n && !rc; i++) {
            const term *t = &q.t[i];
            if (stopped(&s))
                rc = es_fail(err, ES_ERR_CANCELLED, "cancelled");
            else if ((t->kind == T_LIKE) != (turn == 1))
                continue;
            else
                rc = t->kind == T_FIGURE ? by_figure(&s, t, err) : t->kind == T_TOKEN ? by_token(&s, t, err) : t->kind == T_BASIS ? by_basis(&s, t, err)
                     : t->kind == T_TEXT ? by_text(&s, t, out, err) : t->kind == T_LIKE ? by_like(&s, t, err) : ES_OK;
        }
    if (!rc)
        rc = gather(&s, order, out, err);
    if (rc)
        es_found_free(out);
    query_free(&q);
    free(s.in);
    free(s.key);
    free(s.scratch);
    free(s.value);
    free(s.surprise);
    free(s.token);
    return rc;
}
