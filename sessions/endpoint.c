/* endpoint: chat completions of any OpenAI-compatible server, several at once, each streamed (server-sent events). Format: OpenAI's API reference, "Create
 * chat completion", which llama.cpp's server, vLLM, Ollama and the hosted ones follow.
 *
 * Not trusted is what comes: where it redirects (nowhere), how long and how slow it is (bounded), its numbers, its JSON, its UTF-8. An answer that makes
 * no sense is asked for again, then given up; FAILURES of them one after another end the run. What the server says of the key or of the model ends it at
 * once, since it would say so to every request. */
#include "ask.h"
#include "http.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum {
    MAX_SLOTS = 64,
    FAILURES = 5,             /* questions in a row without an answer */
    HEADER_LIMIT = 128 << 10, /* bytes of an answer's header */
    LINE_LIMIT = 1 << 20,     /* bytes of one event */
    BODY_BASE = 1 << 20,      /* bytes of an answer, events and all ... */
    BODY_TOKEN = 16 << 10,    /* ... and for each token that was asked for: twenty alternatives take 2 KB */
    TEXT_TOKEN = 64,          /* bytes of text for each token; more is no answer to what was asked */
    WHY_LIMIT = 8 << 10,      /* bytes of an error's body that are read */
    TOP = 20,
};

/* What a server may refuse to know; left out from then on. */
typedef struct dialect { bool no_usage, no_logprobs, no_temperature, new_limit; } dialect;

typedef struct endpoint endpoint;

typedef struct slot { /* one question on its way */
    endpoint *e;
    CURL *curl;
    bool busy, running;   /* has a question; the transfer is under way (else it waits until `when`) */
    dialect sent;         /* how it was asked */
    es_question q;
    char *body;
    struct curl_slist *headers;
    int tries;
    double when;
    /* the answer as it comes */
    long status;
    char type[64], location[300];
    es_buf line, text, why;
    size_t bytes;
    json_t *logprobs;
    int64_t prompt_tokens, answer_tokens;
    bool counted, json, finished, cut;
    int rc;               /* what a callback found; 0: nothing */
    bool again;           /* it may pass */
    bool fatal;           /* it will be so for all */
    es_error err;
    char curl_why[CURL_ERROR_SIZE];
} slot;

struct endpoint {
    es_answerer base;
    char *url, *shown, *model, *key, *ca_file, *identity;
    int n, tries, stall, seconds, max_wait;
    CURLM *multi;
    slot slot[MAX_SLOTS];
    dialect d;
    double pause;         /* no request before that: the server wants it so */
    bool answered;        /* it has, once: a connection that fails now may come back */
    int failures;
};

/* ---- what comes in --------------------------------------------------------------------------------------------------------------- */

static int bad(slot *s, bool again, const char *what)
{
    s->again = again;
    return s->rc = es_fail(&s->err, ES_ERR_FORMAT, "%s: %s", s->e->shown, what);
}

static int64_t count_of(json_t *usage, const char *key)
{
    json_t *v = json_object_get(usage, key);
    return json_is_integer(v) && json_integer_value(v) > 0 && json_integer_value(v) < 1 << 30 ? (int64_t)json_integer_value(v) : 0;
}

static double logprob_of(json_t *v) { return json_is_number(v) ? json_number_value(v) : NAN; }

/* {"content":[{"token","logprob","top_logprobs":[{"token","logprob"}]}]} into rows of our own. */
static void take_logprobs(slot *s, json_t *from)
{
    json_t *content = json_object_get(from, "content"), *t, *x;
    size_t i, k;
    json_array_foreach(content, i, t) {
        json_t *token = json_object_get(t, "token"), *top = json_array();
        if (!json_is_string(token) || json_array_size(s->logprobs) > (size_t)s->q.max_tokens) {
            json_decref(top);
            return;
        }
        json_array_foreach(json_object_get(t, "top_logprobs"), k, x) {
            double p = logprob_of(json_object_get(x, "logprob"));
            if (k < TOP && p <= 0 && isfinite(p) && json_is_string(json_object_get(x, "token")))
                json_array_append_new(top, json_pack("[O,f]", json_object_get(x, "token"), p));
        }
        if (!s->logprobs)
            s->logprobs = json_array();
        json_array_append_new(s->logprobs, json_pack("{s:O, s:o}", "token", token, "top", top));
    }
}

/* What a server says may repeat the key, whole or as its error messages like to, with its end cut off. */
static void hide_key(const endpoint *e, char *text)
{
    size_t len = e->key ? strlen(e->key) : 0, least = len < 8 ? len : 8;
    for (size_t n = len; n >= least && n > 0; n--)
        for (char *at; (at = memmem(text, strlen(text), e->key, n));)
            memset(at, '*', n);
}

static int server_error(slot *s, json_t *error)
{
    json_t *message = json_is_object(error) ? json_object_get(error, "message") : error;
    char what[300];
    snprintf(what, sizeof what, "the server says: %.200s", json_is_string(message) ? json_string_value(message) : "error");
    hide_key(s->e, what);
    return bad(s, true, what);
}

/* A piece of the answer: an event's object, or the whole in one. */
static int take_object(slot *s, json_t *v)
{
    json_t *error = json_object_get(v, "error"), *choices = json_object_get(v, "choices"), *usage = json_object_get(v, "usage");
    if (error && !json_is_null(error))
        return server_error(s, error);
    if (json_is_object(usage)) {
        s->counted = true;
        s->prompt_tokens = count_of(usage, "prompt_tokens");
        s->answer_tokens = count_of(usage, "completion_tokens");
    }
    if (!json_array_size(choices))
        return json_is_object(usage) || !s->json ? ES_OK : bad(s, true, "the answer has no choices");
    json_t *c = json_array_get(choices, 0), *delta = json_object_get(c, s->json ? "message" : "delta");
    json_t *content = json_object_get(delta, "content"), *finish = json_object_get(c, "finish_reason");
    if (json_is_string(content)) { /* no NUL in it: the parser refuses those */
        es_buf_add(&s->text, json_string_value(content), json_string_length(content));
    } else if (s->json && !json_is_string(finish)) {
        return bad(s, true, "the answer has no text");
    }
    if (s->text.len > (size_t)s->q.max_tokens * TEXT_TOKEN + 1024)
        return bad(s, false, "the answer goes on and on: over what was asked for");
    take_logprobs(s, json_object_get(c, "logprobs"));
    if (json_is_string(finish)) {
        s->finished = true;
        s->cut = !strcmp(json_string_value(finish), "length");
    }
    return s->text.failed ? bad(s, false, "not enough memory for the answer") : ES_OK;
}

static int take_json(slot *s, const char *text, size_t n)
{
    json_t *v = NULL;
    if (es_json_parse(&v, text, n, "answer", NULL) != ES_OK || !json_is_object(v)) {
        json_decref(v);
        return bad(s, true, es_utf8_whole(text, n) < n ? "the answer is no UTF-8" : "the answer is no JSON");
    }
    int rc = take_object(s, v);
    json_decref(v);
    return rc;
}

/* One line of server-sent events: "data: {...}", "data: [DONE]"; fields of other names and comments say nothing to us. Whole lines only, so a character or a
 * number that two packets share is whole too. */
static int take_line(slot *s)
{
    const char *p = s->line.data ? s->line.data : "";
    size_t n = s->line.len;
    if (n && p[n - 1] == '\r')
        n--;
    if (n < 5 || memcmp(p, "data:", 5) != 0)
        return ES_OK;
    p += 5;
    n -= 5;
    while (n && *p == ' ') {
        p++;
        n--;
    }
    if (n == 6 && !memcmp(p, "[DONE]", 6)) {
        s->finished = true;
        return s->rc = 1; /* nothing more is read */
    }
    return n ? take_json(s, p, n) : ES_OK;
}

static size_t on_header(char *line, size_t one, size_t n, void *user)
{
    slot *s = user;
    (void)one;
    struct { const char *name; char *out; size_t size; } want[] = {{"content-type:", s->type, sizeof s->type}, {"location:", s->location, sizeof s->location}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        size_t k = strlen(want[i].name), at = k, end = n;
        if (n <= k || strncasecmp(line, want[i].name, k) != 0)
            continue;
        while (at < end && (line[at] == ' ' || line[at] == '\t'))
            at++;
        while (end > at && (unsigned char)line[end - 1] <= ' ')
            end--;
        size_t len = end - at < want[i].size ? end - at : want[i].size - 1;
        memcpy(want[i].out, line + at, len);
        want[i].out[len] = 0;
    }
    s->bytes += n;
    return s->bytes > HEADER_LIMIT ? (bad(s, false, "the answer's header has no end"), 0) : n;
}

static size_t on_body(char *p, size_t one, size_t n, void *user)
{
    slot *s = user;
    (void)one;
    if (s->rc)
        return 0;
    if (!s->status) {
        curl_easy_getinfo(s->curl, CURLINFO_RESPONSE_CODE, &s->status);
        s->json = !strncasecmp(s->type, "application/json", 16);
    }
    if (s->status != 200) { /* what an error says; as much as one would read */
        size_t room = s->why.len < WHY_LIMIT ? WHY_LIMIT - s->why.len : 0;
        es_buf_add(&s->why, p, n < room ? n : room);
        return room ? n : 0;
    }
    s->bytes += n;
    if (!strncasecmp(s->type, "text/html", 9))
        return bad(s, false, "answers with a web page and not with a model's words: is the URL right?"), 0;
    if (s->bytes > (size_t)BODY_BASE + (size_t)s->q.max_tokens * BODY_TOKEN)
        return bad(s, false, "the answer has no end"), 0;
    for (size_t i = 0; i < n && !s->rc;) {
        const char *nl = s->json ? NULL : memchr(p + i, '\n', n - i);
        size_t k = nl ? (size_t)(nl - (p + i)) : n - i;
        es_buf_add(&s->line, p + i, k);
        i += k + (nl != NULL);
        if (s->line.failed)
            bad(s, false, "not enough memory for the answer");
        else if (!s->json && s->line.len > LINE_LIMIT)
            bad(s, false, "one line of the answer has no end");
        else if (nl) {
            take_line(s);
            es_buf_clear(&s->line);
        }
    }
    return s->rc ? 0 : n;
}

/* ---- a request ------------------------------------------------------------------------------------------------------------------- */

static char *body_of(const endpoint *e, const es_question *q)
{
    json_t *v = json_pack("{s:s, s:O, s:i, s:b}", "model", e->model, "messages", q->messages, e->d.new_limit ? "max_completion_tokens" : "max_tokens", q->max_tokens, "stream", 1);
    if (v && !e->d.no_temperature)
        json_object_set_new(v, "temperature", json_integer(0));
    if (v && !e->d.no_usage)
        json_object_set_new(v, "stream_options", json_pack("{s:b}", "include_usage", 1));
    if (v && q->logprobs && !e->d.no_logprobs) {
        json_object_set_new(v, "logprobs", json_true());
        json_object_set_new(v, "top_logprobs", json_integer(TOP));
    }
    char *text = v ? json_dumps(v, JSON_COMPACT) : NULL;
    json_decref(v);
    return text;
}

static void forget(slot *s)
{
    es_buf_clear(&s->line);
    es_buf_clear(&s->text);
    es_buf_clear(&s->why);
    s->line.failed = s->text.failed = s->why.failed = false;
    json_decref(s->logprobs);
    s->logprobs = NULL;
    s->status = 0;
    s->type[0] = s->location[0] = s->curl_why[0] = 0;
    s->bytes = 0;
    s->prompt_tokens = s->answer_tokens = 0;
    s->counted = s->json = s->finished = s->cut = s->again = s->fatal = false;
    s->rc = 0;
}

static int send_it(slot *s, es_error *err)
{
    endpoint *e = s->e;
    bool failed = false;
    forget(s);
    s->sent = e->d;
    free(s->body);
    s->body = body_of(e, &s->q);
    curl_slist_free_all(s->headers);
    s->headers = es_http_add_header(NULL, "Content-Type", "application/json", &failed);
    s->headers = es_http_add_header(s->headers, "Accept", "text/event-stream, application/json", &failed);
    s->headers = es_http_add_header(s->headers, "Expect", "", &failed);
    if (e->key) {
        es_buf b = {0};
        es_buf_printf(&b, "Bearer %s", e->key);
        failed = failed || b.failed;
        s->headers = b.failed ? s->headers : es_http_add_header(s->headers, "Authorization", b.data, &failed);
        es_buf_free(&b);
    }
    if (!s->curl)
        s->curl = curl_easy_init();
    CURLcode c = s->curl && s->body && !failed ? CURLE_OK : CURLE_OUT_OF_MEMORY;
    CURL *h = s->curl;
#define SET(option, value) c = c ? c : curl_easy_setopt(h, option, value)
    SET(CURLOPT_URL, e->url);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 0L); /* a key and a prompt go where they were meant to go, and nowhere else */
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_USERAGENT, "espalier");
    SET(CURLOPT_ERRORBUFFER, s->curl_why);
    SET(CURLOPT_CONNECTTIMEOUT, (long)(e->stall < 30 ? e->stall : 30));
    SET(CURLOPT_LOW_SPEED_LIMIT, 1L);
    SET(CURLOPT_LOW_SPEED_TIME, (long)e->stall);
    SET(CURLOPT_TIMEOUT, (long)e->seconds);
    SET(CURLOPT_HTTPHEADER, s->headers);
    SET(CURLOPT_POST, 1L);
    SET(CURLOPT_POSTFIELDS, s->body);
    SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(s->body));
    SET(CURLOPT_HEADERFUNCTION, on_header);
    SET(CURLOPT_HEADERDATA, s);
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, s);
    SET(CURLOPT_PRIVATE, s);
    if (e->ca_file)
        SET(CURLOPT_CAINFO, e->ca_file);
#undef SET
    if (c || curl_multi_add_handle(e->multi, h) != CURLM_OK)
        return es_fail(err, c == CURLE_OUT_OF_MEMORY ? ES_ERR_MEMORY : ES_ERR_IO, "%s: cannot set up a request: %s", e->shown, curl_easy_strerror(c ? c : CURLE_FAILED_INIT));
    s->running = true;
    s->tries++;
    return ES_OK;
}

/* ---- what became of it ----------------------------------------------------------------------------------------------------------- */

static bool holds(const es_buf *b, const char *word)
{
    return b->len && memmem(b->data, b->len, word, strlen(word)) != NULL;
}

/* A refusal that names a member which not all servers know: once more without; or another request found that out meanwhile. */
static bool other_dialect(slot *s)
{
    dialect *d = &s->e->d;
    if (s->status != 400 && s->status != 422)
        return false;
    if (holds(&s->why, "max_completion_tokens"))
        d->new_limit = true;
    else if (holds(&s->why, "stream_options"))
        d->no_usage = true;
    else if (holds(&s->why, "logprobs"))
        d->no_logprobs = true;
    else if (holds(&s->why, "temperature"))
        d->no_temperature = true;
    return memcmp(d, &s->sent, sizeof *d) != 0;
}

/* The message of {"error":{"message"}} or the body's beginning. */
static void said(slot *s, char out[240])
{
    json_t *v = NULL;
    out[0] = 0;
    if (s->why.len && es_json_parse(&v, s->why.data, s->why.len, "error", NULL) == ES_OK) {
        json_t *e = json_object_get(v, "error"), *m = json_is_object(e) ? json_object_get(e, "message") : json_is_string(e) ? e : json_object_get(v, "message");
        if (json_is_string(m))
            snprintf(out, 240, ": %.200s", json_string_value(m));
    }
    json_decref(v);
    hide_key(s->e, out);
}

static void refuse_status(slot *s)
{
    endpoint *e = s->e;
    curl_off_t wait = 0;
    char what[240];
    long status = s->status;
    curl_easy_getinfo(s->curl, CURLINFO_RETRY_AFTER, &wait); /* seconds, whether the header has them or a date */
    said(s, what);
    s->again = status == 408 || status == 409 || status == 429 || status >= 500;
    if (other_dialect(s)) {
        s->again = true;
        s->tries--; /* it is another request */
        s->rc = es_fail(&s->err, ES_ERR_IO, "%s: HTTP %ld%s", e->shown, status, what);
        return;
    }
    if (s->again && wait > e->max_wait) {
        s->again = false;
        s->fatal = true;
        s->rc = es_fail(&s->err, ES_ERR_IO, "%s: the server asks to wait %lld s (HTTP %ld): the same command goes on then", e->shown, (long long)wait, status);
        return;
    }
    if (s->again && wait > 0 && es_seconds() + (double)wait > e->pause)
        e->pause = es_seconds() + (double)wait;
    if (status >= 300 && status < 400) {
        char to[300];
        es_http_show(s->location, to);
        hide_key(e, to);
        s->fatal = true;
        s->rc = es_fail(&s->err, ES_ERR_FORMAT, "%s: the server redirects to %.150s, which is not followed: a key goes nowhere else; give that URL if it is right", e->shown,
                        *to ? to : "nowhere");
        return;
    }
    s->fatal = status == 401 || status == 403 || status == 404 || status == 402;
    const char *hint = status == 401 || status == 403 ? (e->key ? ", the key is not taken" : ", a key is wanted: --key-file FILE") :
                       status == 404 ? ", there is no such address or model" : "";
    s->rc = es_fail(&s->err, ES_ERR_IO, "%s: HTTP %ld%s%s", e->shown, status, hint, what);
}

static void judge(slot *s, CURLcode c)
{
    endpoint *e = s->e;
    if (!s->status)
        curl_easy_getinfo(s->curl, CURLINFO_RESPONSE_CODE, &s->status);
    if (s->rc == 1) /* [DONE]: what followed was not read */
        s->rc = 0, c = CURLE_OK;
    if (s->rc)
        return;
    if (s->status && s->status != 200 && (c == CURLE_OK || c == CURLE_WRITE_ERROR)) {
        refuse_status(s);
        return;
    }
    if (c != CURLE_OK && !(s->finished && s->text.len)) {
        bool there = e->answered || s->status;
        bool refused = c == CURLE_COULDNT_CONNECT || c == CURLE_COULDNT_RESOLVE_HOST || c == CURLE_COULDNT_RESOLVE_PROXY;
        bool untrusted = c == CURLE_PEER_FAILED_VERIFICATION || c == CURLE_SSL_ISSUER_ERROR || c == CURLE_SSL_CACERT_BADFILE;
        s->again = !untrusted && (there || !refused);
        s->fatal = !s->again;
        if (c == CURLE_OPERATION_TIMEDOUT)
            s->rc = es_fail(&s->err, ES_ERR_IO, "%s: no whole answer came within %d s, or none of it for %d s", e->shown, e->seconds, e->stall);
        else
            s->rc = es_fail(&s->err, ES_ERR_IO, "%s: %s%s", e->shown, refused ? "no connection: " : untrusted ? "the server's certificate cannot be trusted: " : "the answer was cut: ",
                            *s->curl_why ? s->curl_why : curl_easy_strerror(c));
        return;
    }
    if (s->json && !s->finished)
        take_json(s, s->line.data ? s->line.data : "", s->line.len);
    else if (!s->json && s->line.len) /* a last line without its end */
        take_line(s);
    s->rc = s->rc == 1 ? 0 : s->rc;
    if (!s->rc && !s->finished && !s->json)
        bad(s, true, "the answer stopped in the middle: it has no end");
    if (!s->rc && !s->text.len)
        bad(s, true, "the answer is empty");
    if (!s->rc && e->key && strstr(s->text.data, e->key))
        bad(s, false, "the answer repeats the key: not kept");
}

/* Hands the answer, or why there is none, to who asked; or lets the request wait for another try. */
static int settle(slot *s, const es_asking *who, es_error *err)
{
    endpoint *e = s->e;
    if (!s->rc) {
        e->answered = true;
        e->failures = 0;
        es_answer a = {.text = s->text.data, .cut = s->cut, .logprobs = s->logprobs, .prompt_tokens = s->prompt_tokens, .answer_tokens = s->answer_tokens};
        if (!s->counted || !a.prompt_tokens)
            a.prompt_tokens = es_prompt_tokens(s->q.messages);
        if (!s->counted || a.answer_tokens > s->q.max_tokens * 2 || !a.answer_tokens)
            a.answer_tokens = s->q.max_tokens < (int)(s->text.len / 3) + 1 ? s->q.max_tokens : (int64_t)(s->text.len / 3) + 1;
        int rc = who->done(who->user, &s->q, &a, NULL, err);
        s->busy = false;
        es_question_clear(&s->q);
        return rc;
    }
    if (s->again && s->tries < e->tries) {
        double wait = 0.25 * (double)(1 << (s->tries < 7 ? s->tries : 7));
        s->when = es_seconds() + wait;
        return ES_OK;
    }
    e->failures++;
    bool end = s->fatal || e->failures >= FAILURES;
    int rc = end ? es_fail(err, s->rc, "%s", s->err.text) : who->done(who->user, &s->q, NULL, &s->err, err);
    s->busy = false;
    es_question_clear(&s->q);
    return rc;
}

/* ---- the run ------------------------------------------------------------------------------------------------------------------------ */

static int fill(endpoint *e, const es_asking *who, es_error *err)
{
    double now = es_seconds();
    if (now < e->pause)
        return ES_OK;
    bool more = true;
    for (int i = 0; i < e->n; i++) {
        slot *s = &e->slot[i];
        int rc = ES_OK;
        if (s->running || (s->busy && now < s->when))
            continue;
        if (!s->busy) {
            rc = more ? who->next(who->user, &s->q, err) : 0;
            if (rc <= 0) {
                more = false;
                if (rc < 0)
                    return rc;
                continue;
            }
            s->busy = true;
            s->tries = 0;
        }
        if ((rc = send_it(s, err)))
            return rc;
    }
    return ES_OK;
}

static void stop(endpoint *e)
{
    for (int i = 0; i < e->n; i++) {
        slot *s = &e->slot[i];
        if (s->running)
            curl_multi_remove_handle(e->multi, s->curl);
        s->running = s->busy = false;
        es_question_clear(&s->q);
    }
}

static int endpoint_run(es_answerer *a, const es_asking *who, const es_progress *progress, es_error *err)
{
    endpoint *e = (endpoint *)a;
    int rc = ES_OK, running = 0;
    e->failures = 0;
    while (!rc) {
        if (es_progress_cancelled(progress)) {
            rc = es_fail(err, ES_ERR_CANCELLED, "cancelled");
            break;
        }
        rc = fill(e, who, err);
        bool busy = false;
        for (int i = 0; i < e->n; i++)
            busy = busy || e->slot[i].busy;
        if (rc || !busy)
            break;
        if (curl_multi_perform(e->multi, &running) != CURLM_OK) {
            rc = es_fail(err, ES_ERR_IO, "%s: the requests cannot go on", e->shown);
            break;
        }
        bool some = false;
        CURLMsg *m;
        for (int left; !rc && (m = curl_multi_info_read(e->multi, &left));) {
            slot *s = NULL;
            CURLcode c = m->data.result;
            if (m->msg != CURLMSG_DONE || curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&s) != CURLE_OK || !s)
                continue;
            judge(s, c);
            curl_multi_remove_handle(e->multi, s->curl);
            s->running = false;
            some = true;
            rc = settle(s, who, err);
        }
        if (!some && !rc)
            curl_multi_poll(e->multi, NULL, 0, 50, NULL);
    }
    stop(e);
    return rc;
}

static void endpoint_free(es_answerer *a)
{
    endpoint *e = (endpoint *)a;
    for (int i = 0; i < e->n; i++) {
        slot *s = &e->slot[i];
        forget(s);
        curl_easy_cleanup(s->curl);
        curl_slist_free_all(s->headers);
        es_buf_free(&s->line);
        es_buf_free(&s->text);
        es_buf_free(&s->why);
        free(s->body);
    }
    curl_multi_cleanup(e->multi);
    if (e->key)
        explicit_bzero(e->key, strlen(e->key));
    free(e->key);
    free(e->url);
    free(e->shown);
    free(e->model);
    free(e->ca_file);
    free(e->identity);
    free(e);
    curl_global_cleanup();
}

/* The URL of the completions, or why it is none. */
static int check_url(endpoint *e, const es_endpoint_options *o, es_error *err)
{
    CURLU *u = curl_url();
    char *user = NULL, *path = NULL, shown[300];
    es_http_show(o->url, shown);
    bool ok = u && curl_url_set(u, CURLUPART_URL, o->url, CURLU_NON_SUPPORT_SCHEME) == CURLUE_OK;
    bool https = ok && es_http_part_is(u, CURLUPART_SCHEME, "https"), http = ok && es_http_part_is(u, CURLUPART_SCHEME, "http");
    bool secret = ok && (!curl_url_get(u, CURLUPART_USER, &user, 0) || strpbrk(o->url, "?#"));
    bool loopback = ok && es_http_is_loopback(u);
    int rc = ES_OK;
    if (!https && !http)
        rc = es_fail(err, ES_ERR_USAGE, "%.200s: is no http or https URL", shown);
    else if (secret)
        rc = es_fail(err, ES_ERR_USAGE, "an endpoint's URL has no user, password or query: others see it; put the key into a file");
    else if (o->key && !es_http_is_token(o->key))
        rc = es_fail(err, ES_ERR_USAGE, "the key is not one: it is empty or holds a byte that is no letter, digit or sign");
    else if (o->key && !https && !loopback)
        rc = es_fail(err, ES_ERR_USAGE, "%.200s: a key is sent over https only", shown);
    if (!rc && !curl_url_get(u, CURLUPART_PATH, &path, 0)) {
        es_buf whole = {0};
        size_t n = strlen(path), k = strlen(o->url);
        while (k > 8 && o->url[k - 1] == '/')
            k--;
        bool full = n >= 17 && !strcmp(path + n - 17, "/chat/completions");
        es_buf_add(&whole, o->url, k);
        es_buf_str(&whole, full ? "" : "/chat/completions");
        e->url = whole.failed ? NULL : whole.data;
    }
    e->shown = strdup(shown);
    curl_free(user);
    curl_free(path);
    curl_url_cleanup(u);
    return rc ? rc : e->url && e->shown ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for an endpoint");
}

int es_endpoint_open(es_answerer **out, const es_endpoint_options *o, es_error *err)
{
    *out = NULL;
    endpoint *e = es_calloc(1, sizeof *e);
    if (!e)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for an endpoint");
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        free(e);
        return es_fail(err, ES_ERR_MEMORY, "curl cannot be used here");
    }
    e->n = o->concurrency > 0 ? o->concurrency < MAX_SLOTS ? o->concurrency : MAX_SLOTS : 4;
    e->tries = o->tries > 0 ? o->tries : 5;
    e->stall = o->stall_seconds > 0 ? o->stall_seconds : 60;
    e->seconds = o->seconds > 0 ? o->seconds : 300;
    e->max_wait = o->max_wait > 0 ? o->max_wait : 120;
    for (int i = 0; i < e->n; i++)
        e->slot[i].e = e;
    int rc = o->url && o->model && *o->model ? check_url(e, o, err) : es_fail(err, ES_ERR_USAGE, "an endpoint has a URL and a model's name");
    if (!rc) {
        e->multi = curl_multi_init();
        e->model = strdup(o->model);
        e->key = o->key ? strdup(o->key) : NULL;
        e->ca_file = o->ca_file ? strdup(o->ca_file) : NULL;
        if (asprintf(&e->identity, "%s %s", e->url, o->model) < 0)
            e->identity = NULL;
        if (!e->multi || !e->model || !e->identity || (o->key && !e->key) || (o->ca_file && !e->ca_file))
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for an endpoint");
    }
    e->base = (es_answerer){e->model, e->identity, endpoint_run, endpoint_free};
    if (rc)
        endpoint_free(&e->base);
    else
        *out = &e->base;
    return rc;
}
