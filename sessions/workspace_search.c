/* Search over labels, tags and tokens: what was typed becomes quoted words (never FTS5 syntax), pieces and filters. */
#include "workspace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_QUERY = 4096 };

typedef struct wanted {
    es_buf match;        /* an FTS5 expression made of quoted words only */
    char *tag[8], *part[8]; /* tags to have; pieces the tokenizer would drop, looked for as they are */
    char *author;        /* who said something of it */
    int n_tag, n_part, labelled /* -1 no, 0 either, 1 yes */, rated, skipped, conflict;
    int score_sign;      /* 0: any */
    double score;
    int64_t feature;     /* -1: any */
    bool has_density;
    int density_sign;
    double density;
} wanted;

/* Words of letters are the tokenizer's; punctuation, symbols and scripts without spaces between words are looked for as pieces. */
static bool is_word(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if ((c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || (c >= 0xc3 && c < 0xe2) || c == 0xea || c == 0xeb || c == 0xec || c == 0xed)
            return true; /* U+00C0..U+1FFF, and Hangul */
    }
    return false;
}

static bool is_number(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (s[i] < '0' || s[i] > '9')
            return false;
    return n > 0 && n < 9;
}

static void parse(wanted *q, const char *text)
{
    *q = (wanted){.feature = -1};
    bool open_word = *text && !strchr(" \t\n", text[strlen(text) - 1]); /* the last word is still being typed */
    size_t words = 0;
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, " \t\r\n");
        if (n == 0) {
            p++;
            continue;
        }
        double number;
        char *end, word[64];
        snprintf(word, sizeof word, "%.*s", (int)(n < 60 ? n : 60), p);
        if (n > 4 && !strncmp(p, "tag:", 4)) {
            if (q->n_tag < 8)
                q->tag[q->n_tag++] = strndup(p + 4, n - 4);
        } else if (!strcmp(word, "is:labelled") || !strcmp(word, "is:labeled")) {
            q->labelled = 1;
        } else if (!strcmp(word, "is:unlabelled") || !strcmp(word, "is:unlabeled")) {
            q->labelled = -1;
        } else if (!strcmp(word, "is:rated")) {
            q->rated = 1;
        } else if (!strcmp(word, "is:skipped")) {
            q->skipped = 1;
        } else if (!strcmp(word, "is:conflict")) {
            q->conflict = 1;
        } else if (n > 3 && !strncmp(p, "by:", 3) && !q->author) {
            q->author = strndup(p + 3, n - 3);
        } else if (!strncmp(word, "score", 5) && (word[5] == '<' || word[5] == '>') && (number = strtod(word + 6 + (word[6] == '='), &end), end > word + 6 && !*end)) {
            q->score_sign = word[5] == '<' ? -1 : 1;
            q->score = number;
        } else if (!strncmp(word, "density", 7) && (word[7] == '<' || word[7] == '>') && (number = strtod(word + 8, &end), end > word + 8 && !*end)) {
            q->has_density = true;
            q->density_sign = word[7] == '<' ? -1 : 1;
            q->density = number;
        } else if (is_number(p, n) && p == text && !p[n]) { /* alone: a feature's number */
            q->feature = strtoll(word, NULL, 10);
        } else if (is_word(p, n)) {
            if (words++)
                es_buf_str(&q->match, " AND ");
            es_buf_str(&q->match, "\"");
            for (size_t i = 0; i < n; i++) {
                if (p[i] == '"')
                    es_buf_str(&q->match, "\"");
                es_buf_add(&q->match, p + i, 1);
            }
            es_buf_str(&q->match, "\"");
            if (open_word && !p[n])
                es_buf_str(&q->match, "*");
        } else if (q->n_part < 8) {
            q->part[q->n_part++] = strndup(p, n);
        }
        p += n;
    }
}

int es_workspace_search(es_workspace *w, const char *dictionary, const char *query, int *feature, int max, int *n, es_error *err)
{
    *n = 0;
    if (strlen(query) > MAX_QUERY)
        return es_fail(err, ES_ERR_USAGE, "what is searched for is over %d bytes", MAX_QUERY);
    wanted q;
    parse(&q, query);
    ws_enter(w);
    int64_t id = 0;
    int rc = ws_dictionary_id(w, dictionary, false, &id, NULL, err);
    if (rc) { /* nothing is known of it: nothing is found */
        rc = rc == ES_ERR_MISSING ? ES_OK : rc;
    } else {
        es_buf sql = {0};
        int64_t first = id << WS_FEATURE_BITS, last = first + ((1 << WS_FEATURE_BITS) - 1);
        es_buf_str(&sql, "SELECT search.rowid - ?1 FROM search LEFT JOIN label ON label.dictionary = ?2 AND label.feature = search.rowid - ?1"
                         " LEFT JOIN feature ON feature.dictionary = ?2 AND feature.feature = search.rowid - ?1"
                         " WHERE search.rowid BETWEEN ?1 AND ?3");
        if (q.match.len)
            es_buf_str(&sql, " AND search MATCH ?4");
        if (q.labelled)
            es_buf_str(&sql, q.labelled > 0 ? " AND coalesce(label.text, '') <> ''" : " AND coalesce(label.text, '') = ''");
        if (q.rated)
            es_buf_str(&sql, " AND label.rating > 0");
        if (q.skipped)
            es_buf_str(&sql, " AND label.skipped <> 0");
        if (q.conflict)
            es_buf_str(&sql, " AND label.conflict <> 0");
        if (q.score_sign) /* of labels that were tested */
            es_buf_str(&sql, q.score_sign < 0 ? " AND label.score < ?8" : " AND label.score > ?8");
        if (q.author)
            es_buf_str(&sql, " AND EXISTS (SELECT 1 FROM opinion WHERE opinion.dictionary = ?2 AND opinion.feature = search.rowid - ?1 AND opinion.author = ?9)");
        if (q.feature >= 0)
            es_buf_str(&sql, " AND search.rowid = ?1 + ?5");
        if (q.has_density)
            es_buf_str(&sql, q.density_sign < 0 ? " AND feature.density < ?6" : " AND feature.density > ?6");
        for (int i = 0; i < q.n_tag; i++) /* a tag's beginning is enough */
            es_buf_printf(&sql, " AND instr(' ' || lower(label.tags), ' ' || lower(?%d))", 10 + i);
        for (int i = 0; i < q.n_part; i++)
            es_buf_printf(&sql, " AND instr(search.label || ' ' || search.tags || ' ' || search.tokens, ?%d)", 20 + i);
        es_buf_str(&sql, q.match.len ? " ORDER BY bm25(search, 10.0, 5.0, 1.0), search.rowid LIMIT ?7" : " ORDER BY search.rowid LIMIT ?7");
        sqlite3_stmt *s = sql.failed || q.match.failed ? NULL : ws_query(w, err, sql.data, "");
        rc = s ? ES_OK : w->failed;
        if (s) { /* names that the text does not use cannot be bound: SQLITE_RANGE is no error here */
            sqlite3_bind_int64(s, 1, first);
            sqlite3_bind_int64(s, 2, id);
            sqlite3_bind_int64(s, 3, last);
            sqlite3_bind_text(s, 4, q.match.data, -1, SQLITE_STATIC);
            sqlite3_bind_int64(s, 5, q.feature);
            sqlite3_bind_double(s, 6, q.density);
            sqlite3_bind_int64(s, 7, max);
            sqlite3_bind_double(s, 8, q.score);
            sqlite3_bind_text(s, 9, q.author, -1, SQLITE_STATIC);
            for (int i = 0; i < q.n_tag; i++)
                sqlite3_bind_text(s, 10 + i, q.tag[i], -1, SQLITE_STATIC);
            for (int i = 0; i < q.n_part; i++)
                sqlite3_bind_text(s, 20 + i, q.part[i], -1, SQLITE_STATIC);
            while (*n < max && (rc = ws_step(w, s, err)) > 0)
                feature[(*n)++] = sqlite3_column_int(s, 0);
            rc = rc > 0 ? ES_OK : rc;
        }
        sqlite3_finalize(s);
        es_buf_free(&sql);
    }
    ws_leave(w);
    es_buf_free(&q.match);
    free(q.author);
    for (int i = 0; i < 8; i++) {
        free(q.tag[i]);
        free(q.part[i]);
    }
    return rc;
}
