#include "fetch.h"
#include "http.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>


enum {
    REDIRECTS = 8,
    RESTARTS = 3,               /* as often a file may turn out to have changed */
    MAX_WAIT = 120,             /* seconds that a server may ask for */
    HEADER_LIMIT = 256 << 10,   /* bytes of an answer's header */
    STEP = 64 << 10,            /* a try that brings less counts as one that brought nothing: a drip is no progress */
    ROOM_STEP = 64 << 20,       /* how often the disk is looked at when the size is not known ... */
    ROOM = 256 << 20,           /* ... and what stays free then */
    SLOW = 1000,                /* bytes a second */
    MOVED = 1,                  /* beside the error codes: the answer was a redirect */
};

typedef struct answer { /* what the header says that comes in */
    size_t bytes;
    bool judged, chunked;
    char location[4096], etag[256], modified[64], type[64], encoding[32], range[80], length[32], linked[80];
} answer;

typedef struct fetch {
    const es_fetch_options *o;
    const char *path;
    char part[1200], state[1210];
    char shown[300];      /* the URL for messages, without its query */
    char origin[300];     /* where the token may go */
    char url_hash[65];
    char sha256[65];      /* the file must have; "": not known */
    int fd;               /* of the part */
    CURL *curl;
    CURLU *at;            /* where the request goes */
    const char *url;
    char why[CURL_ERROR_SIZE];
    uint64_t have, size;  /* bytes in the part; of the file, when sized */
    uint64_t looked;      /* have when the disk was looked at last */
    bool sized;
    char tag[256];        /* what If-Range says; "": nothing that would do */
    bool ranged;          /* this request asks for a range */
    bool spliced;         /* the part holds pieces of several answers */
    bool again;           /* the error may pass */
    long wait;            /* seconds the server wants; 0: none said */
    int restarts;
    answer a;
    int rc;               /* the error that a callback filled */
    es_error *err;
} fetch;

/* ---- the part and what is remembered of it ------------------------------------------------------------------------------------- */

static int drop_part(fetch *f, es_error *err)
{
    unlink(f->state);
    f->have = f->size = f->looked = 0;
    f->sized = f->spliced = false;
    f->tag[0] = 0;
    if (ftruncate(f->fd, 0) != 0 || lseek(f->fd, 0, SEEK_SET) < 0)
        return es_fail(err, ES_ERR_IO, "%s: cannot empty it: %s", f->part, strerror(errno));
    return ES_OK;
}

static int save_state(fetch *f, es_error *err)
{
    json_t *v = json_pack("{s:s,s:s,s:I}", "url_sha256", f->url_hash, "tag", f->tag, "size", f->sized ? (json_int_t)f->size : (json_int_t)-1);
    char *text = v ? json_dumps(v, JSON_COMPACT) : NULL;
    int rc = text ? es_file_write(f->state, text, strlen(text), err) : es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", f->state);
    free(text);
    json_decref(v);
    return rc;
}

/* Opens the part, and takes up what is in it if one can go on from there. */
static int open_part(fetch *f, es_error *err)
{
    f->fd = open(f->part, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (f->fd < 0)
        return es_fail(err, ES_ERR_IO, "%s: cannot open for writing: %s", f->part, strerror(errno));
    struct stat st;
    if (flock(f->fd, LOCK_EX | LOCK_NB) != 0)
        return es_fail(err, ES_ERR_IO, "%s: another espalier is fetching it", f->path);
    if (fstat(f->fd, &st) != 0 || !S_ISREG(st.st_mode))
        return es_fail(err, ES_ERR_IO, "%s: is not a regular file", f->part);
    json_t *v = NULL;
    es_json_file(&v, f->state, NULL);
    const char *url = json_string_value(json_object_get(v, "url_sha256")), *tag = json_string_value(json_object_get(v, "tag"));
    json_int_t size = json_integer_value(json_object_get(v, "size"));
    bool good = url && tag && !strcmp(url, f->url_hash) && strlen(tag) < sizeof f->tag && (*tag || f->sha256[0]) && (size < 0 || size >= st.st_size);
    for (const char *c = good ? tag : ""; *c; c++)
        good = good && isprint((unsigned char)*c);
    if (good) {
        f->have = (uint64_t)st.st_size;
        f->sized = size >= 0;
        f->size = f->sized ? (uint64_t)size : 0;
        f->spliced = f->have > 0;
        snprintf(f->tag, sizeof f->tag, "%s", tag);
    }
    json_decref(v);
    if (good && lseek(f->fd, 0, SEEK_END) >= 0)
        return ES_OK;
    return drop_part(f, err);
}

/* ---- where a request may go ------------------------------------------------------------------------------------------------------ */

/* Moves f->at to the URL, or to where a redirect from there leads. */
static int go_to(fetch *f, const char *url, bool redirect, es_error *err)
{
    bool was_https = redirect && es_http_part_is(f->at, CURLUPART_SCHEME, "https");
    char *user = NULL, *password = NULL, *whole = NULL, to[300] = "";
    CURLUcode c = curl_url_set(f->at, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME | CURLU_URLENCODE);
    bool secret = !c && (!curl_url_get(f->at, CURLUPART_USER, &user, 0) || !curl_url_get(f->at, CURLUPART_PASSWORD, &password, 0));
    if (!c && !secret && !curl_url_get(f->at, CURLUPART_URL, &whole, 0))
        es_http_show(whole, to);
    curl_free(user);
    curl_free(password);
    curl_free(whole);
    bool https = !c && es_http_part_is(f->at, CURLUPART_SCHEME, "https"), http = !c && es_http_part_is(f->at, CURLUPART_SCHEME, "http");
    if (redirect) {
        if (c || secret || !(https || http))
            return es_fail(err, ES_ERR_FORMAT, "%s: the server redirects to %s, which is no place for a file: not followed", f->shown,
                           secret ? "a URL with a password" : *to ? to : "something that is no URL");
        if (was_https && !https)
            return es_fail(err, ES_ERR_FORMAT, "%s: the server redirects to %s, without encryption: not followed", f->shown, to);
        return ES_OK;
    }
    if (secret)
        return es_fail(err, ES_ERR_USAGE, "a URL with a user or a password in it is not taken: others see it; put a token into a file");
    if (c || !(https || http))
        return es_fail(err, ES_ERR_USAGE, "%s: is no http or https URL", f->shown);
    if (f->o->token && !https && !es_http_is_loopback(f->at))
        return es_fail(err, ES_ERR_USAGE, "%s: a token is sent over https only", f->shown);
    return ES_OK;
}

/* ---- an answer's header ---------------------------------------------------------------------------------------------------------- */

static void take_value(const char *line, size_t n, const char *name, char *out, size_t size)
{
    size_t k = strlen(name);
    if (n <= k || line[k] != ':' || strncasecmp(line, name, k) != 0)
        return;
    const char *s = line + k + 1, *end = line + n;
    while (s < end && (*s == ' ' || *s == '\t'))
        s++;
    while (end > s && isspace((unsigned char)end[-1]))
        end--;
    out[0] = 0;
    if ((size_t)(end - s) < size && !memchr(s, 0, (size_t)(end - s))) { /* an overlong one counts as none */
        memcpy(out, s, (size_t)(end - s));
        out[end - s] = 0;
    }
}

static bool whole_number(const char *s, const char *end, uint64_t *out)
{
    char *stop;
    errno = 0;
    if (!isdigit((unsigned char)*s))
        return false;
    *out = strtoull(s, &stop, 10);
    return !errno && stop == end && *out <= INT64_MAX;
}

static bool take_range(const char *s, uint64_t *from, uint64_t *total) /* bytes 5-9/10 */
{
    const char *dash = strchr(s, '-'), *slash = strchr(s, '/');
    uint64_t to;
    return !strncasecmp(s, "bytes ", 6) && dash && slash && dash < slash && whole_number(s + 6, dash, from) &&
           whole_number(dash + 1, slash, &to) && whole_number(slash + 1, s + strlen(s), total) && *from <= to && to < *total;
}

static int refuse_status(fetch *f, long status)
{
    curl_off_t wait = 0;
    curl_easy_getinfo(f->curl, CURLINFO_RETRY_AFTER, &wait);
    f->again = status == 408 || status == 429 || status == 500 || status == 502 || status == 503 || status == 504;
    f->wait = wait > 0 ? (long)wait : 0;
    if (f->again && wait > MAX_WAIT) {
        f->again = false;
        return es_fail(f->err, ES_ERR_IO, "%s: the server asks to wait %ld s (HTTP %ld): try again then", f->shown, (long)wait, status);
    }
    if (status == 401 || status == 403)
        return es_fail(f->err, ES_ERR_IO, f->o->token ? "%s: the token does not give access to it (HTTP %ld)" : "%s: the server wants a token (HTTP %ld): --token-file FILE",
                       f->shown, status);
    if (status == 404 || status == 410)
        return es_fail(f->err, ES_ERR_MISSING, "%s: there is no such file (HTTP %ld)", f->shown, status);
    return es_fail(f->err, ES_ERR_IO, "%s: the server answers with HTTP %ld%s", f->shown, status, f->again ? ", an error of its own or too many requests" : "");
}

/* The part does not go with what the server has. */
static int start_anew(fetch *f)
{
    f->again = f->restarts++ < RESTARTS;
    int rc = drop_part(f, f->err);
    return rc ? rc : es_fail(f->err, ES_ERR_FORMAT, "%s: it changed each time that it was gone on with", f->shown);
}

static bool free_bytes(fetch *f, uint64_t *out)
{
    struct statvfs s;
    return fstatvfs(f->fd, &s) == 0 && !__builtin_mul_overflow((uint64_t)s.f_bavail, (uint64_t)s.f_frsize, out);
}

static int too_long(fetch *f)
{
    if (drop_part(f, f->err))
        return ES_ERR_IO;
    return es_fail(f->err, ES_ERR_LIMIT, "%s: is over the limit of %.1f MB; what came is removed", f->shown, (double)f->o->max_bytes / 1e6);
}

static int check_room(fetch *f)
{
    uint64_t room;
    if (f->o->max_bytes && f->size > f->o->max_bytes)
        return es_fail(f->err, ES_ERR_LIMIT, "%s: has %.1f MB, over the limit of %.1f MB", f->shown, (double)f->size / 1e6, (double)f->o->max_bytes / 1e6);
    if (f->sized && free_bytes(f, &room) && f->size - f->have > room)
        return es_fail(f->err, ES_ERR_LIMIT, "%s: %.1f MB are to come and the disk has %.1f MB free", f->shown, (double)(f->size - f->have) / 1e6, (double)room / 1e6);
    return ES_OK;
}

static bool same_origin(fetch *f)
{
    char now[300];
    es_http_origin(f->at, now);
    return *now && !strcasecmp(now, f->origin);
}

static bool is_sha256(const char *s, size_t n)
{
    return n == 64 && strspn(s, "0123456789abcdef") >= 64;
}

/* The whole header is there: ES_OK when its body is to be written behind what the part has. */
static int judge(fetch *f)
{
    answer *a = &f->a;
    long status = 0;
    curl_easy_getinfo(f->curl, CURLINFO_RESPONSE_CODE, &status);
    if (a->linked[0] == '"' && is_sha256(a->linked + 1, strcspn(a->linked + 1, "\"")) && !f->sha256[0] && same_origin(f))
        snprintf(f->sha256, sizeof f->sha256, "%.64s", a->linked + 1); /* the hub's name for a large file's content */
    if ((status >= 301 && status <= 303) || status == 307 || status == 308)
        return a->location[0] ? MOVED : es_fail(f->err, ES_ERR_FORMAT, "%s: the server redirects without saying where to (HTTP %ld)", f->shown, status);
    if (f->ranged && status == 416)
        return start_anew(f);
    if (status != 200 && !(f->ranged && status == 206))
        return refuse_status(f, status);
    if (a->encoding[0] && strcasecmp(a->encoding, "identity"))
        return es_fail(f->err, ES_ERR_FORMAT, "%s: the server sends it encoded as %s, which was not asked for", f->shown, a->encoding);
    size_t n = strlen(f->shown);
    if (!strncasecmp(a->type, "text/html", 9) && !(n > 5 && !strcasecmp(f->shown + n - 5, ".html")))
        return es_fail(f->err, ES_ERR_FORMAT, "%s: the server answers with a web page and not with a file: is a sign-in needed?", f->shown);
    char *tag = a->etag[0] == '"' ? a->etag : a->modified; /* a weak tag does not tell bytes apart */
    uint64_t from = 0, total = 0;
    int rc;
    if (status == 206) {
        if (!take_range(a->range, &from, &total) || from != f->have || (f->sized && total != f->size) || (*tag && *f->tag && strcmp(tag, f->tag) != 0))
            return start_anew(f);
        f->sized = true;
        f->size = total;
        f->spliced = true;
        return check_room(f);
    }
    if (f->have && (rc = drop_part(f, f->err)) != ES_OK)
        return rc;
    f->sized = !a->chunked && whole_number(a->length, a->length + strlen(a->length), &total);
    f->size = total;
    snprintf(f->tag, sizeof f->tag, "%s", tag);
    rc = check_room(f);
    return rc ? rc : save_state(f, f->err);
}

static size_t on_header(char *line, size_t one, size_t n, void *user)
{
    fetch *f = user;
    answer *a = &f->a;
    (void)one;
    if (a->judged) /* a trailer */
        return n;
    if (n >= 5 && !memcmp(line, "HTTP/", 5))
        *a = (answer){.bytes = a->bytes};
    a->bytes += n;
    if (a->bytes > HEADER_LIMIT) {
        f->rc = es_fail(f->err, ES_ERR_FORMAT, "%s: the answer's header has no end", f->shown);
        return 0;
    }
    if (n > 2 || (n > 0 && line[0] != '\r' && line[0] != '\n')) {
        char coding[64] = "";
        take_value(line, n, "location", a->location, sizeof a->location);
        take_value(line, n, "etag", a->etag, sizeof a->etag);
        take_value(line, n, "last-modified", a->modified, sizeof a->modified);
        take_value(line, n, "content-type", a->type, sizeof a->type);
        take_value(line, n, "content-encoding", a->encoding, sizeof a->encoding);
        take_value(line, n, "content-range", a->range, sizeof a->range);
        take_value(line, n, "content-length", a->length, sizeof a->length);
        take_value(line, n, "x-linked-etag", a->linked, sizeof a->linked);
        take_value(line, n, "transfer-encoding", coding, sizeof coding);
        a->chunked = a->chunked || *coding;
        return n;
    }
    long status = 0;
    curl_easy_getinfo(f->curl, CURLINFO_RESPONSE_CODE, &status);
    if (status < 200) /* 100 Continue and its like: the answer follows */
        return n;
    a->judged = true;
    f->rc = judge(f);
    return f->rc ? 0 : n;
}

static size_t on_body(char *p, size_t one, size_t n, void *user)
{
    fetch *f = user;
    uint64_t room;
    (void)one;
    if (!f->a.judged || f->rc)
        return 0;
    if (f->o->max_bytes && n > f->o->max_bytes - f->have) {
        f->rc = too_long(f);
        return 0;
    }
    if (f->sized && n > f->size - f->have) { /* more than it said */
        f->rc = start_anew(f);
        return 0;
    }
    if (!f->sized && f->have >= f->looked + ROOM_STEP) {
        f->looked = f->have;
        if (free_bytes(f, &room) && room < ROOM) {
            f->rc = es_fail(f->err, ES_ERR_LIMIT, "%s: has no end in sight and the disk has %.1f MB left; what came is in %s", f->shown, (double)room / 1e6, f->part);
            return 0;
        }
    }
    for (size_t done = 0; done < n;) {
        ssize_t k = write(f->fd, p + done, n - done);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0) {
            f->rc = es_fail(f->err, ES_ERR_IO, "%s: cannot write: %s", f->part, strerror(errno));
            return 0;
        }
        done += (size_t)k;
        f->have += (uint64_t)k;
    }
    return n;
}

static int on_progress(void *user, curl_off_t down_total, curl_off_t down, curl_off_t up_total, curl_off_t up)
{
    fetch *f = user;
    (void)down_total, (void)down, (void)up_total, (void)up;
    const char *slash = strrchr(f->path, '/');
    es_progress_report(f->o->progress, slash ? slash + 1 : f->path, (double)f->have, f->sized ? (double)f->size : 0, "bytes");
    return es_progress_cancelled(f->o->progress);
}

/* ---- a request, a try, the whole --------------------------------------------------------------------------------------------------- */

static int explain(fetch *f, CURLcode c)
{
    int stall = f->o->stall_seconds;
    f->again = true;
    switch (c) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_CONNECT:
        f->again = f->have > 0; /* there was a net before */
        return es_fail(f->err, ES_ERR_IO, "%s: no connection: %s", f->shown, *f->why ? f->why : curl_easy_strerror(c));
    case CURLE_OPERATION_TIMEDOUT:
        return es_fail(f->err, ES_ERR_IO, "%s: nothing came for %d s", f->shown, stall);
    case CURLE_PARTIAL_FILE:
    case CURLE_GOT_NOTHING:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
        return es_fail(f->err, ES_ERR_IO, "%s: the connection was cut at %.1f MB%s", f->shown, (double)f->have / 1e6, f->sized ? "" : " of an unknown size");
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_ISSUER_ERROR:
        f->again = false;
        return es_fail(f->err, ES_ERR_IO, "%s: the server's certificate cannot be trusted: %s", f->shown, *f->why ? f->why : curl_easy_strerror(c));
    default:
        f->again = false;
        return es_fail(f->err, c == CURLE_OUT_OF_MEMORY ? ES_ERR_MEMORY : ES_ERR_IO, "%s: %s", f->shown, *f->why ? f->why : curl_easy_strerror(c));
    }
}

static int request(fetch *f)
{
    char range[40];
    bool failed = false;
    struct curl_slist *headers = NULL;
    f->a = (answer){0};
    f->rc = ES_OK;
    f->again = false;
    f->wait = 0;
    f->why[0] = 0;
    f->ranged = f->have > 0;
    if (f->o->token && same_origin(f)) {
        es_buf b = {0};
        es_buf_printf(&b, "Bearer %s", f->o->token);
        failed = b.failed;
        headers = b.failed ? NULL : es_http_add_header(headers, "Authorization", b.data, &failed);
        es_buf_free(&b);
    }
    if (f->ranged && *f->tag)
        headers = es_http_add_header(headers, "If-Range", f->tag, &failed);
    snprintf(range, sizeof range, "%llu-", (unsigned long long)f->have);
    curl_easy_setopt(f->curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(f->curl, CURLOPT_RANGE, f->ranged ? range : NULL);
    CURLcode c = failed ? CURLE_OUT_OF_MEMORY : curl_easy_perform(f->curl);
    curl_easy_setopt(f->curl, CURLOPT_HTTPHEADER, NULL);
    curl_slist_free_all(headers);
    if (f->rc)
        return f->rc;
    if (c == CURLE_ABORTED_BY_CALLBACK)
        return es_fail(f->err, ES_ERR_CANCELLED, "cancelled");
    if (c != CURLE_OK)
        return explain(f, c);
    if (f->sized && f->have != f->size) {
        f->again = true;
        return es_fail(f->err, ES_ERR_IO, "%s: %llu bytes came and the server said %llu", f->shown, (unsigned long long)f->have, (unsigned long long)f->size);
    }
    return ES_OK;
}

static int try_once(fetch *f, es_error *err)
{
    int rc = go_to(f, f->url, false, err);
    for (int hops = 0; !rc; hops++) {
        rc = request(f);
        if (rc != MOVED)
            return rc;
        if (hops == REDIRECTS)
            return es_fail(err, ES_ERR_FORMAT, "%s: more than %d redirects: a loop?", f->shown, REDIRECTS);
        char to[sizeof f->a.location];
        memcpy(to, f->a.location, sizeof to);
        rc = go_to(f, to, true, err);
    }
    return rc;
}

static int pause_before(fetch *f, int failed_tries)
{
    double seconds = f->wait ? (double)f->wait : 0.25 * (1 << (failed_tries < 6 ? failed_tries : 5)), begin = es_seconds();
    es_error why = *f->err;
    for (double gone = 0; gone < seconds; gone = es_seconds() - begin) {
        if (es_progress_cancelled(f->o->progress))
            return es_fail(f->err, ES_ERR_CANCELLED, "cancelled");
        es_progress_report(f->o->progress, "waiting for the server", gone, seconds, "s");
        usleep(50000);
    }
    *f->err = why;
    return ES_OK;
}

/* The part is whole, as far as the server's word goes: does it have the hash? */
static int check_hash(fetch *f, es_fetch_result *out, es_error *err)
{
    if (fsync(f->fd) != 0)
        return es_fail(err, ES_ERR_IO, "%s: cannot write to disk: %s", f->part, strerror(errno));
    int rc = es_sha256_file(out->sha256, f->part, err);
    if (rc || !f->sha256[0] || !strcmp(out->sha256, f->sha256))
        return rc;
    bool spliced = f->spliced;
    rc = drop_part(f, err);
    f->again = spliced && f->restarts++ < 1; /* pieces of two files that passed for one? */
    return rc ? rc : es_fail(err, ES_ERR_FORMAT, "%s: its SHA-256 is %s and should be %s: not kept", f->shown, out->sha256, f->sha256);
}

static int get_all(fetch *f, es_fetch_result *out, es_error *err)
{
    int rc, failed_tries = 0, tries = f->o->tries;
    out->kept = f->have;
    for (;;) {
        uint64_t before = f->have;
        int restarts = f->restarts;
        f->again = false;
        rc = f->sized && f->have == f->size ? ES_OK : try_once(f, err); /* it may have been killed just before the last step */
        if (!rc)
            rc = check_hash(f, out, err);
        if (f->have < out->kept)
            out->kept = 0;
        if (!rc || !f->again)
            break;
        if (f->restarts != restarts)
            continue;
        failed_tries = f->have >= before + STEP ? 0 : failed_tries + 1;
        if (failed_tries >= tries)
            break;
        int cut = pause_before(f, failed_tries);
        if (cut)
            return cut;
    }
    if (rc && rc != ES_ERR_CANCELLED && f->have) {
        char text[sizeof err->text];
        snprintf(text, sizeof text, "%s", f->err->text);
        es_fail(err, rc, "%.300s; %.1f MB are kept, the same command goes on from there", text, (double)f->have / 1e6);
    }
    return rc;
}

static int set_up(fetch *f, es_error *err)
{
    const es_fetch_options *o = f->o;
    f->at = curl_url();
    f->curl = curl_easy_init();
    if (!f->at || !f->curl)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a connection");
    int rc = go_to(f, f->url, false, err);
    es_http_origin(f->at, f->origin);
    CURLcode c = CURLE_OK;
    CURL *h = f->curl;
#define SET(option, value) c = c ? c : curl_easy_setopt(h, option, value)
    SET(CURLOPT_CURLU, f->at);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 0L); /* done here: where to, with what and how often is ours to say */
    SET(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_USERAGENT, "espalier");
    SET(CURLOPT_ERRORBUFFER, f->why);
    SET(CURLOPT_CONNECTTIMEOUT, (long)o->stall_seconds);
    SET(CURLOPT_LOW_SPEED_LIMIT, (long)SLOW);
    SET(CURLOPT_LOW_SPEED_TIME, (long)o->stall_seconds);
    SET(CURLOPT_HEADERFUNCTION, on_header);
    SET(CURLOPT_HEADERDATA, f);
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, f);
    SET(CURLOPT_XFERINFOFUNCTION, on_progress);
    SET(CURLOPT_XFERINFODATA, f);
    SET(CURLOPT_NOPROGRESS, 0L);
    if (o->ca_file)
        SET(CURLOPT_CAINFO, o->ca_file);
#undef SET
    return rc ? rc : c ? es_fail(err, ES_ERR_IO, "cannot set up a connection: %s", curl_easy_strerror(c)) : ES_OK;
}

/* path is there already: it stays, whatever it is. */
static int look_at_old(fetch *f, es_fetch_result *out, es_error *err)
{
    struct stat st;
    if (lstat(f->path, &st) != 0)
        return errno == ENOENT ? ES_OK : es_fail(err, ES_ERR_IO, "%s: cannot look at it: %s", f->path, strerror(errno));
    int rc = es_sha256_file(out->sha256, f->path, err);
    if (!rc && f->sha256[0] && strcmp(out->sha256, f->sha256) != 0)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: is there already and is another file: its SHA-256 is %.16s... and not %.16s...; move it away first", f->path, out->sha256, f->sha256);
    out->there = true;
    out->stated = true;
    out->checked = f->sha256[0] != 0;
    out->bytes = (uint64_t)st.st_size;
    return rc;
}

int es_fetch(const char *url, const char *path, const es_fetch_options *o, es_fetch_result *out, es_error *err)
{
    es_error own;
    es_fetch_options full = *o;
    full.tries = o->tries > 0 ? o->tries : 5;
    full.stall_seconds = o->stall_seconds > 0 ? o->stall_seconds : 30;
    fetch f = {.o = &full, .path = path, .url = url, .fd = -1, .err = err ? err : &own};
    err = f.err;
    *out = (es_fetch_result){0};
    es_http_show(url, f.shown);
    if (o->token && !es_http_is_token(o->token))
        return es_fail(err, ES_ERR_USAGE, "the token is not one: it holds a byte that is no letter, digit or sign");
    if (o->sha256 && !is_sha256(o->sha256, strlen(o->sha256)))
        return es_fail(err, ES_ERR_USAGE, "'%.80s' is no SHA-256 of 64 lower-case hex digits", o->sha256);
    snprintf(f.sha256, sizeof f.sha256, "%s", o->sha256 ? o->sha256 : "");
    if (snprintf(f.part, sizeof f.part, "%s.part", path) >= (int)sizeof f.part - 10)
        return es_fail(err, ES_ERR_USAGE, "%.80s...: the path is too long", path);
    snprintf(f.state, sizeof f.state, "%s.json", f.part);
    es_sha256_bytes(f.url_hash, url, strlen(url));
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        return es_fail(err, ES_ERR_MEMORY, "curl cannot be used here");
    int rc = set_up(&f, err);
    rc = rc ? rc : look_at_old(&f, out, err);
    bool fetching = !rc && !out->there;
    rc = fetching ? open_part(&f, err) : rc;
    bool opened = fetching && !rc;
    rc = opened ? get_all(&f, out, err) : rc;
    if (opened && !rc) {
        out->bytes = f.have;
        out->checked = f.sha256[0] != 0;
        out->stated = f.sized || out->checked;
        rc = es_file_move(f.part, path, err);
    }
    if (opened && (!rc || !f.have)) { /* nothing to go on from */
        unlink(f.state);
        if (rc)
            unlink(f.part);
    }
    if (f.fd >= 0)
        close(f.fd);
    curl_easy_cleanup(f.curl);
    curl_url_cleanup(f.at);
    curl_global_cleanup();
    return rc;
}

int es_fetch_name(const char *url, char *out, size_t size, es_error *err)
{
    CURLU *u = curl_url();
    char *path = NULL, shown[300];
    es_http_show(url, shown);
    bool ok = u && !curl_url_set(u, CURLUPART_URL, url, CURLU_URLENCODE) && !curl_url_get(u, CURLUPART_PATH, &path, 0);
    const char *slash = ok ? strrchr(path, '/') : NULL;
    int n = 0;
    char *name = slash ? curl_easy_unescape(NULL, slash + 1, 0, &n) : NULL;
    ok = name && n > 0 && (size_t)n < size && n < 200 && name[0] != '.' && strlen(name) == (size_t)n && es_utf8_whole(name, (size_t)n) == (size_t)n;
    for (int i = 0; ok && i < n; i++)
        ok = name[i] != '/' && !iscntrl((unsigned char)name[i]);
    if (ok)
        snprintf(out, size, "%s", name);
    curl_free(name);
    curl_free(path);
    curl_url_cleanup(u);
    return ok ? ES_OK : es_fail(err, ES_ERR_USAGE, "%s: names no file that could be kept under that name", shown);
}
