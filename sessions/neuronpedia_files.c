#include "neuronpedia_files.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <zlib.h>

enum {
    LINE_LIMIT = 16 << 20,     /* bytes of one record: with an embedding and long examples some 100 KB */
    FILES_MAX = 100000,
};
#define TOTAL_LIMIT ((uint64_t)4 << 30) /* bytes of all files unpacked: a million features' explanations are 1 GB */

typedef struct reading {
    int (*take)(void *user, json_t *record, const char *where, es_error *err);
    void *user;
    uint64_t total;
} reading;

bool np_feature_of(json_t *v, long long *out)
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

const char *np_text_of(json_t *v, const char *key, const char *otherwise)
{
    const char *s = json_string_value(json_object_get(v, key));
    return s ? s : otherwise;
}

bool np_is_of(np_origin *o, const char *model, const char *source, int *rc, const char *where, es_error *err)
{
    char of[300];
    if (o->source && strcmp(source, o->source) != 0)
        return false;
    snprintf(of, sizeof of, "%.140s/%.140s", model, source);
    if (!*o->first)
        snprintf(o->first, sizeof o->first, "%s", of);
    if (strcmp(o->first, of) != 0) {
        *rc = es_fail(err, ES_ERR_FORMAT, "%s: holds records of %s and of %s: --source names the one that is meant", where, o->first, of);
        return false;
    }
    return true;
}

/* ---- a file ---------------------------------------------------------------------------------------------------------------------------------- */

static bool ends(const char *s, const char *with)
{
    size_t n = strlen(s), k = strlen(with);
    return n > k && !strcmp(s + n - k, with);
}

static int take_text(const reading *r, const es_buf *b, const char *where, es_error *err)
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
            rc = rc ? rc : r->take(r->user, x, where, err);
    else if (!rc)
        rc = r->take(r->user, v, where, err);
    json_decref(v);
    return rc;
}

static int read_file(reading *r, const char *path, es_error *err)
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

/* The files in a folder's folder `part`, or those of its own that could be. */
static int read_folder(reading *r, const char *path, const char *part, es_error *err)
{
    char folder[1200];
    struct stat st;
    snprintf(folder, sizeof folder, "%s/%s", path, part);
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
        rc = es_fail(err, ES_ERR_MISSING, "%s: there are no %s in it: a folder MODEL/SOURCE of an export is wanted", path, part);
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

int np_read(const char *path, const char *part, int (*take)(void *user, json_t *record, const char *where, es_error *err), void *user, es_error *err)
{
    struct stat st;
    reading r = {.take = take, .user = user};
    if (stat(path, &st) != 0)
        return es_fail(err, ES_ERR_MISSING, "%s: %s", path, strerror(errno));
    return S_ISDIR(st.st_mode) ? read_folder(&r, path, part, err) : read_file(&r, path, err);
}
