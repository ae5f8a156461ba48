/* ask: between who asks and who answers: the work file, which answers what was answered before, and the budget. */
#include "ask.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WORK_LIMIT = 1 << 30, MESSAGE_OVERHEAD = 8 };

void es_question_clear(es_question *q)
{
    json_decref(q->messages);
    q->messages = NULL;
}

void es_answerer_free(es_answerer *a)
{
    if (a)
        a->free(a);
}

double es_budget_money(const es_budget *b)
{
    return ((double)b->prompt_tokens * b->price_prompt + (double)b->answer_tokens * b->price_answer) / 1e6;
}

/* Three bytes a token: more than tokenizers make of English, so that an estimate is not too low. */
int64_t es_prompt_tokens(const json_t *messages)
{
    int64_t n = MESSAGE_OVERHEAD;
    size_t i;
    json_t *m;
    json_array_foreach((json_t *)messages, i, m)
        n += MESSAGE_OVERHEAD + (int64_t)json_string_length(json_object_get(m, "content")) / 3;
    return n;
}

/* ---- the work file ---------------------------------------------------------------------------------------------------------------- */

struct es_work {
    char path[1200];
    int fd;
    json_t *answers; /* by key */
    bool torn;       /* the file ends within a line */
};

static void key_of(const char *identity, const es_question *q, char out[65])
{
    char *messages = json_dumps(q->messages, JSON_COMPACT | JSON_SORT_KEYS), head[80];
    es_buf b = {0};
    snprintf(head, sizeof head, "%d %d\n", q->max_tokens, q->logprobs);
    es_buf_str(&b, identity);
    es_buf_str(&b, "\n");
    es_buf_str(&b, head);
    es_buf_str(&b, messages ? messages : "");
    es_sha256_bytes(out, b.data ? b.data : "", b.len);
    es_buf_free(&b);
    free(messages);
}

/* One line: {"key","text","cut","logprobs"}. */
static void take_line(es_work *w, const char *s, size_t n)
{
    json_t *v = NULL;
    if (n == 0 || es_json_parse(&v, s, n, w->path, NULL) != ES_OK)
        return;
    const char *key = json_string_value(json_object_get(v, "key"));
    json_t *text = json_object_get(v, "text");
    if (key && json_is_string(text))
        json_object_set(w->answers, key, v);
    json_decref(v);
}

int es_work_open(es_work **out, const char *path, es_error *err)
{
    es_buf b = {0};
    *out = NULL;
    es_work *w = es_calloc(1, sizeof *w);
    if (!w)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", path);
    w->fd = -1;
    int rc = ES_OK;
    struct stat st;
    if (snprintf(w->path, sizeof w->path, "%s", path) >= (int)sizeof w->path)
        rc = es_fail(err, ES_ERR_USAGE, "%.80s...: the path is too long", path);
    if (!rc && ((w->fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600)) < 0 || fstat(w->fd, &st) != 0))
        rc = es_fail(err, ES_ERR_IO, "%s: cannot open the work file: %s", path, strerror(errno));
    if (!rc && !S_ISREG(st.st_mode))
        rc = es_fail(err, ES_ERR_USAGE, "%s: is not a file", path);
    if (!rc && flock(w->fd, LOCK_EX | LOCK_NB) != 0)
        rc = es_fail(err, ES_ERR_IO, "%s: another espalier is at this work", path);
    if (!rc && !(w->answers = json_object()))
        rc = es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", path);
    if (!rc)
        rc = es_file_read(&b, path, WORK_LIMIT, err);
    for (size_t at = 0; !rc && at < b.len;) {
        const char *s = b.data + at, *end = memchr(s, '\n', b.len - at);
        size_t n = end ? (size_t)(end - s) : b.len - at;
        w->torn = !end;
        take_line(w, s, n);
        at += n + 1;
    }
    es_buf_free(&b);
    if (rc) {
        es_work_close(w);
        return rc;
    }
    *out = w;
    return ES_OK;
}

void es_work_close(es_work *w)
{
    if (!w)
        return;
    json_decref(w->answers);
    if (w->fd >= 0)
        close(w->fd);
    free(w);
}

int64_t es_work_count(const es_work *w)
{
    return (int64_t)json_object_size(w->answers);
}

static int keep(es_work *w, const char *key, const es_answer *a, es_error *err)
{
    json_t *v = json_pack("{s:s, s:s, s:b}", "key", key, "text", a->text, "cut", a->cut);
    if (v && a->logprobs)
        json_object_set(v, "logprobs", a->logprobs);
    es_buf line = {0};
    es_buf_str(&line, w->torn ? "\n" : "");
    es_buf_json_line(&line, v, JSON_REAL_PRECISION(9));
    int rc = !line.failed ? ES_OK : es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", w->path);
    if (!rc) /* in the file only: nothing is asked twice in one run */
        for (size_t done = 0; !rc && done < line.len;) {
            ssize_t n = write(w->fd, line.data + done, line.len - done);
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                rc = es_fail(err, ES_ERR_IO, "%s: cannot keep an answer: %s", w->path, strerror(errno));
            done += n > 0 ? (size_t)n : 0;
        }
    w->torn = rc != ES_OK;
    es_buf_free(&line);
    json_decref(v);
    return rc;
}

/* ---- the run ------------------------------------------------------------------------------------------------------------------------ */

typedef struct run {
    es_answerer *a;
    const es_asking *who;
    es_work *work;
    es_budget *budget;
    int64_t waiting;                                 /* questions on their way ... */
    int64_t waiting_prompt, waiting_answer;          /* ... and what they may cost */
    bool spent;                                      /* nothing more is asked */
    es_error why;                                    /* of that */
} run;

static bool fits(run *r, const es_question *q)
{
    es_budget *b = r->budget;
    if (!b)
        return true;
    int64_t prompt = es_prompt_tokens(q->messages) + r->waiting_prompt, answer = q->max_tokens + r->waiting_answer;
    es_budget then = *b;
    then.prompt_tokens += prompt;
    then.answer_tokens += answer;
    if (b->max_requests && b->requests + r->waiting + 1 > b->max_requests)
        es_fail(&r->why, ES_ERR_LIMIT, "the budget of %lld requests is spent", (long long)b->max_requests);
    else if (b->max_tokens && then.prompt_tokens + then.answer_tokens > b->max_tokens)
        es_fail(&r->why, ES_ERR_LIMIT, "the budget of %lld tokens is spent: %lld are, and the next request may take %lld", (long long)b->max_tokens,
                (long long)(b->prompt_tokens + b->answer_tokens), (long long)(prompt + answer));
    else if (b->max_money > 0 && es_budget_money(&then) > b->max_money)
        es_fail(&r->why, ES_ERR_LIMIT, "the budget of %.4g is spent: %.4g are, and the next request may cost %.4g", b->max_money, es_budget_money(b),
                es_budget_money(&then) - es_budget_money(b));
    else
        return true;
    return false;
}

static int next(void *user, es_question *out, es_error *err)
{
    run *r = user;
    for (;;) {
        char key[65];
        int rc = r->spent ? 0 : r->who->next(r->who->user, out, err);
        if (rc != 1)
            return rc;
        json_t *kept = NULL;
        if (r->work) {
            key_of(r->a->identity, out, key);
            kept = json_object_get(r->work->answers, key);
        }
        if (kept) {
            json_t *logprobs = json_object_get(kept, "logprobs");
            es_answer a = {.text = json_string_value(json_object_get(kept, "text")), .cut = json_is_true(json_object_get(kept, "cut")), .kept = true,
                           .logprobs = json_is_array(logprobs) ? logprobs : NULL};
            if (r->budget)
                r->budget->kept++;
            rc = r->who->done(r->who->user, out, &a, NULL, err);
            es_question_clear(out);
            if (rc)
                return rc;
            continue;
        }
        if (!fits(r, out)) {
            es_question_clear(out);
            r->spent = true;
            return 0;
        }
        r->waiting++;
        r->waiting_prompt += es_prompt_tokens(out->messages);
        r->waiting_answer += out->max_tokens;
        return 1;
    }
}

static int done(void *user, const es_question *q, const es_answer *a, const es_error *why, es_error *err)
{
    run *r = user;
    int64_t prompt = es_prompt_tokens(q->messages);
    r->waiting--;
    r->waiting_prompt -= prompt;
    r->waiting_answer -= q->max_tokens;
    if (r->budget) { /* one without an answer may have been paid for */
        r->budget->requests++;
        r->budget->prompt_tokens += a ? a->prompt_tokens : prompt;
        r->budget->answer_tokens += a ? a->answer_tokens : 0;
    }
    if (a && r->work) {
        char key[65];
        key_of(r->a->identity, q, key);
        int rc = keep(r->work, key, a, err);
        if (rc)
            return rc;
    }
    return r->who->done(r->who->user, q, a, why, err);
}

int es_ask(es_answerer *a, const es_asking *who, es_work *work, es_budget *budget, const es_progress *progress, es_error *err)
{
    run r = {.a = a, .who = who, .work = work, .budget = budget};
    es_asking through = {next, done, &r};
    int rc = a->run(a, &through, progress, err);
    return !rc && r.spent ? es_fail(err, ES_ERR_LIMIT, "%s", r.why.text) : rc;
}
