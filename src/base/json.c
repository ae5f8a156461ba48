#include "base.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { JSON_DEPTH = 128 };
#define JSON_FILE_LIMIT ((size_t)256 << 20)
#define JSON_LINE_LIMIT ((size_t)64 << 20)

/* true when no place in text is nested deeper than JSON_DEPTH; else *line is where it is. Knows strings, nothing more: the
 * parser judges the rest. */
static bool depth_ok(const char *text, size_t n, size_t *line)
{
    int depth = 0;
    bool in_string = false;
    *line = 1;
    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if (c == '\n')
            ++*line;
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > JSON_DEPTH)
                return false;
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return true;
}

/* line: of the text's first line in its file, less one. */
static int parse(json_t **out, const char *text, size_t n, const char *what, size_t line, es_error *err)
{
    *out = NULL;
    size_t deep_line;
    if (!depth_ok(text, n, &deep_line))
        return es_fail(err, ES_ERR_FORMAT, "%s:%zu: JSON nested deeper than %d", what, line + deep_line, (int)JSON_DEPTH);
    json_error_t e;
    *out = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
    if (*out)
        return ES_OK;
    if (json_error_code(&e) == json_error_out_of_memory)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory for its JSON", what);
    size_t at = e.line > 0 ? (size_t)e.line : 1;
    return es_fail(err, ES_ERR_FORMAT, "%s:%zu: not valid JSON (column %d): %s", what, line + at, e.column, e.text);
}

int es_json_parse(json_t **out, const char *text, size_t n, const char *what, es_error *err)
{
    return parse(out, text, n, what, 0, err);
}

static size_t bom(const char *s, size_t n)
{
    return n >= 3 && memcmp(s, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
}

int es_json_file(json_t **out, const char *path, es_error *err)
{
    es_buf b = {0};
    *out = NULL;
    int rc = es_file_read(&b, path, JSON_FILE_LIMIT, err);
    if (rc == ES_OK) {
        size_t skip = bom(b.data, b.len);
        rc = parse(out, b.data + skip, b.len - skip, strcmp(path, "-") == 0 ? "standard input" : path, 0, err);
    }
    es_buf_free(&b);
    return rc;
}

/* One line without its newline into b. 1: got one, 0: end of file, negative: failed. Unlike getline it stops at the limit. */
static int read_line(FILE *f, es_buf *b, const char *name, size_t line, es_error *err)
{
    es_buf_clear(b);
    char block[8192];
    for (;;) {
        size_t n = 0;
        int c = EOF;
        while (n < sizeof block && (c = getc_unlocked(f)) != EOF && c != '\n')
            block[n++] = (char)c;
        es_buf_add(b, block, n);
        if (b->failed)
            return es_fail(err, ES_ERR_MEMORY, "%s:%zu: not enough memory for the line", name, line);
        if (b->len > JSON_LINE_LIMIT)
            return es_fail(err, ES_ERR_LIMIT, "%s:%zu: the line is over %zu bytes", name, line, JSON_LINE_LIMIT);
        if (c == '\n')
            return 1;
        if (c == EOF) {
            if (ferror(f))
                return es_fail(err, ES_ERR_IO, "%s:%zu: cannot read: %s", name, line, strerror(errno));
            return b->len > 0;
        }
    }
}

int es_jsonl_each(const char *path, int (*fn)(void *user, size_t line, json_t *value, es_error *err), void *user, es_error *err)
{
    bool is_stdin = strcmp(path, "-") == 0;
    const char *name = is_stdin ? "standard input" : path;
    FILE *f = is_stdin ? stdin : fopen(path, "re");
    if (!f)
        return es_fail(err, errno == ENOENT ? ES_ERR_MISSING : ES_ERR_IO, "%s: cannot open: %s", name, strerror(errno));
    es_buf b = {0};
    int rc = ES_OK;
    for (size_t line = 1; rc == ES_OK; line++) {
        int got = read_line(f, &b, name, line, err);
        if (got <= 0) {
            rc = got;
            break;
        }
        size_t skip = line == 1 ? bom(b.data, b.len) : 0;
        if (strspn(b.data + skip, " \t\r") == b.len - skip)
            continue;
        json_t *value;
        rc = parse(&value, b.data + skip, b.len - skip, name, line - 1, err);
        if (rc != ES_OK)
            break;
        if (err)
            *err = (es_error){0};
        rc = fn(user, line, value, err);
        if (rc < 0 && rc != ES_ERR_CANCELLED && err && err->code == rc)
            es_fail_prefix(err, "%s:%zu", name, line);
        json_decref(value);
    }
    es_buf_free(&b);
    if (!is_stdin)
        fclose(f);
    return rc;
}
