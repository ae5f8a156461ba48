#include "http.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

void es_http_show(const char *url, char out[300])
{
    snprintf(out, 300, "%.*s", (int)strcspn(url, "?#"), url);
}

bool es_http_part_is(CURLU *u, CURLUPart what, const char *is)
{
    char *s = NULL;
    bool same = curl_url_get(u, what, &s, 0) == CURLUE_OK && !strcasecmp(s, is);
    curl_free(s);
    return same;
}

void es_http_origin(CURLU *u, char out[300])
{
    char *scheme = NULL, *host = NULL, *port = NULL;
    out[0] = 0;
    if (!curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) && !curl_url_get(u, CURLUPART_HOST, &host, 0) &&
        !curl_url_get(u, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT))
        snprintf(out, 300, "%s://%s:%s", scheme, host, port);
    curl_free(scheme);
    curl_free(host);
    curl_free(port);
}

bool es_http_is_loopback(CURLU *u)
{
    return es_http_part_is(u, CURLUPART_HOST, "localhost") || es_http_part_is(u, CURLUPART_HOST, "127.0.0.1") || es_http_part_is(u, CURLUPART_HOST, "[::1]");
}

bool es_http_is_token(const char *s)
{
    for (const char *c = s; *c; c++)
        if (!isgraph((unsigned char)*c))
            return false;
    return *s != 0;
}

struct curl_slist *es_http_add_header(struct curl_slist *l, const char *name, const char *value, bool *failed)
{
    es_buf b = {0};
    es_buf_printf(&b, "%s: %s", name, value);
    struct curl_slist *next = b.failed ? NULL : curl_slist_append(l, b.data);
    es_buf_free(&b);
    *failed = *failed || !next;
    return next ? next : l;
}
