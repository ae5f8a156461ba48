#include "prompts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PROMPT_LIMIT = 64 << 10, MESSAGES_MAX = 32 };

/* The message gathered so far, without the empty lines around it. */
static int end_section(json_t *list, const char *role, const es_buf *text, const char *path, es_error *err)
{
    const char *s = text->data ? text->data : "";
    size_t n = text->len;
    while (n && (*s == '\n' || *s == '\r')) {
        s++;
        n--;
    }
    while (n && strchr(" \t\r\n", s[n - 1]))
        n--;
    if (!n)
        return es_fail(err, ES_ERR_FORMAT, "%s: the section \"%s\" is empty", path, role);
    if (json_array_size(list) >= MESSAGES_MAX)
        return es_fail(err, ES_ERR_FORMAT, "%s: more than %d sections", path, (int)MESSAGES_MAX);
    json_t *content = json_stringn(s, n); /* NULL for what is no UTF-8 */
    if (!content || json_array_append_new(list, json_pack("{s:s, s:o}", "role", role, "content", content)) != 0)
        return es_fail(err, ES_ERR_FORMAT, "%s: the section \"%s\" is no UTF-8", path, role);
    return ES_OK;
}

static const char *role_of(const char *line, size_t n)
{
    static const char *const roles[] = {"system", "user", "assistant"};
    while (n && strchr(" \t\r", line[n - 1]))
        n--;
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (n == 4 + strlen(roles[i]) && !memcmp(line + 4, roles[i], n - 4))
            return roles[i];
    return NULL;
}

static int sections(json_t *list, const es_buf *file, const char *path, es_error *err)
{
    const char *role = NULL;
    es_buf text = {0};
    int rc = ES_OK, number = 1;
    for (size_t at = 0; !rc && at < file->len; number++) {
        const char *line = file->data + at, *nl = memchr(line, '\n', file->len - at);
        size_t n = nl ? (size_t)(nl - line) : file->len - at;
        at += n + 1;
        if (n >= 4 && !memcmp(line, "=== ", 4)) {
            rc = role ? end_section(list, role, &text, path, err) : ES_OK;
            es_buf_clear(&text);
            role = role_of(line, n);
            if (!rc && !role)
                rc = es_fail(err, ES_ERR_FORMAT, "%s:%d: a section is \"=== system\", \"=== user\" or \"=== assistant\"", path, number);
        } else if (role) {
            es_buf_add(&text, line, n);
            es_buf_str(&text, "\n");
        }
    }
    if (!rc && (!role || strcmp(role, "user")))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: its last section must be \"=== user\"", path);
    if (!rc && text.failed)
        rc = es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", path);
    rc = rc ? rc : end_section(list, role, &text, path, err);
    es_buf_free(&text);
    return rc;
}

int es_prompt_load(json_t **out, const char *name, const char *own, const char *shipped, const char *const *wants, es_error *err)
{
    char path[1300];
    es_buf file = {0};
    json_t *list = json_array();
    snprintf(path, sizeof path, "%s/%s.txt", own ? own : shipped, name);
    if (own && access(path, F_OK) != 0)
        snprintf(path, sizeof path, "%s/%s.txt", shipped, name);
    int rc = list ? es_file_read(&file, path, PROMPT_LIMIT, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory");
    rc = rc ? rc : sections(list, &file, path, err);
    for (int i = 0; !rc && wants[i]; i++) {
        char place[40];
        size_t k;
        json_t *m;
        bool there = false;
        snprintf(place, sizeof place, "{%s}", wants[i]);
        json_array_foreach(list, k, m)
            there = there || strstr(json_string_value(json_object_get(m, "content")), place);
        if (!there)
            rc = es_fail(err, ES_ERR_FORMAT, "%s: %s does not occur in it", path, place);
    }
    es_buf_free(&file);
    if (rc)
        json_decref(list);
    *out = rc ? NULL : list;
    return rc;
}

static void fill_one(es_buf *b, const char *s, const es_prompt_value *v, int n)
{
    while (*s) {
        size_t plain = strcspn(s, "{");
        es_buf_add(b, s, plain);
        s += plain;
        if (!*s)
            break;
        int which = -1;
        for (int i = 0; i < n; i++) {
            size_t k = strlen(v[i].name);
            if (!strncmp(s + 1, v[i].name, k) && s[1 + k] == '}')
                which = i;
        }
        if (which < 0) {
            es_buf_str(b, "{");
            s++;
            continue;
        }
        es_buf_str(b, v[which].value);
        s += strlen(v[which].name) + 2;
    }
    es_buf_add(b, "", 0);
}

json_t *es_prompt_fill(const json_t *prompt, const es_prompt_value *v, int n)
{
    json_t *list = json_array(), *m;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)prompt, i, m) {
        es_buf b = {0};
        fill_one(&b, json_string_value(json_object_get(m, "content")), v, n);
        json_t *content = b.failed ? NULL : json_stringn(b.data, b.len);
        es_buf_free(&b);
        json_t *one = content ? json_pack("{s:O, s:o}", "role", json_object_get(m, "role"), "content", content) : NULL;
        if (!one || json_array_append_new(list, one) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}
