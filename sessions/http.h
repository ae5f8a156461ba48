/* http: what the users of curl share (fetch, endpoint; no others): URLs for messages, origins, and where a secret may go. */
#ifndef ES_HTTP_H
#define ES_HTTP_H

#include <curl/curl.h>

#include "base.h"

void es_http_show(const char *url, char out[300]);                   /* for messages: without its query */
bool es_http_part_is(CURLU *u, CURLUPart what, const char *is);      /* whatever its case */
void es_http_origin(CURLU *u, char out[300]);                        /* scheme://host:port; "" where it has none */
bool es_http_is_loopback(CURLU *u);
bool es_http_is_token(const char *s);                                /* can be sent in a header line as it is */
/* l with "name: value" added. *failed: no memory. */
struct curl_slist *es_http_add_header(struct curl_slist *l, const char *name, const char *value, bool *failed);

#endif
