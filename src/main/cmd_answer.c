/* answer: the model's own answers to many prompts, several at a time, resumable. */
#include "app.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 256 }; /* prompts read at once: at a block's end not all streams have work */

typedef struct question {
    size_t line;
    es_message *message; /* contents owned */
    int n;
} question;

typedef struct answering {
    question *list;
    size_t n, cap, next, done;
    uint8_t *answered; /* [line]: 1 when the output has it already */
    size_t n_lines;
    uint64_t limit;
    const es_model *m;
    int max_tokens;
    es_sampling sampling;
    int out;
    uint64_t tokens;
    double began;
    es_progress progress;
} answering;

static int add_message(question *q, const char *role, const char *content, es_error *err)
{
    es_message *more = realloc(q->message, ((size_t)q->n + 1) * sizeof *more);
    if (more)
        q->message = more;
    char *r = strdup(role), *c = strdup(content);
    if (!more || !r || !c) {
        free(r);
        free(c);
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for the prompts");
    }
    q->message[q->n++] = (es_message){r, c};
    return ES_OK;
}

static void question_free(question *q)
{
    for (int i = 0; i < q->n; i++) {
        free((char *)(uintptr_t)q->message[i].role);
        free((char *)(uintptr_t)q->message[i].content);
    }
    free(q->message);
}

/* The messages of a prompt line up to the last user turn. */
static int question_read(question *q, json_t *v, es_error *err)
{
    static const char *const field[] = {"prompt", "instruction", "question", "text"};
    json_t *messages = json_object_get(v, "messages");
    if (json_is_array(messages)) {
        size_t n = json_array_size(messages), last = 0;
        for (size_t i = 0; i < n; i++) {
            const char *role = json_string_value(json_object_get(json_array_get(messages, i), "role"));
            if (role && !strcmp(role, "user"))
                last = i + 1;
        }
        for (size_t i = 0; i < last; i++) {
            json_t *one = json_array_get(messages, i);
            const char *role = json_string_value(json_object_get(one, "role")), *content = json_string_value(json_object_get(one, "content"));
            if (!role || !content)
                return es_fail(err, ES_ERR_FORMAT, "message %zu has no role or no content", i + 1);
            int rc = add_message(q, role, content, err);
            if (rc != ES_OK)
                return rc;
        }
        return last ? ES_OK : es_fail(err, ES_ERR_FORMAT, "no message is a user's");
    }
    for (size_t i = 0; i < sizeof field / sizeof *field; i++) {
        const char *s = json_string_value(json_object_get(v, field[i]));
        if (s && *s)
            return add_message(q, "user", s, err);
    }
    return es_fail(err, ES_ERR_FORMAT, "holds no prompt: one of messages, prompt, instruction, question or text is wanted");
}

static int read_answered(void *user, size_t line, json_t *v, es_error *err)
{
    (void)line;
    answering *a = user;
    json_int_t at = json_integer_value(json_object_get(v, "line"));
    if (at <= 0 || at > 100000000)
        return es_fail(err, ES_ERR_FORMAT, "is not an answer of this command (no \"line\"): name another --out");
    if ((size_t)at >= a->n_lines) {
        size_t n = (size_t)at * 2 + 1024;
        uint8_t *more = realloc(a->answered, n);
        if (!more)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory");
        memset(more + a->n_lines, 0, n - a->n_lines);
        a->answered = more;
        a->n_lines = n;
    }
    a->answered[at] = 1;
    return ES_OK;
}

static int read_question(void *user, size_t line, json_t *v, es_error *err)
{
    answering *a = user;
    if (a->limit && a->n + a->done >= a->limit)
        return 1;
    if (line < a->n_lines && a->answered[line]) {
        a->done++;
        return ES_OK;
    }
    if (a->n == a->cap) {
        size_t cap = a->cap ? 2 * a->cap : 1024;
        question *more = realloc(a->list, cap * sizeof *more);
        if (!more)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory for the prompts");
        a->list = more;
        a->cap = cap;
    }
    question q = {.line = line};
    int rc = question_read(&q, v, err);
    if (rc != ES_OK) {
        question_free(&q);
        return rc;
    }
    a->list[a->n++] = q;
    return ES_OK;
}

static int write_answer(answering *a, const question *q, const es_reply *r, es_error *err)
{
    es_buf said = {0};
    int rc = es_reply_text(a->m, r, &said, err);
    json_t *messages = json_array();
    for (int i = 0; i < q->n; i++)
        json_array_append_new(messages, json_pack("{s:s,s:s}", "role", q->message[i].role, "content", q->message[i].content));
    json_array_append_new(messages, json_pack("{s:s,s:o}", "role", "assistant", "content", app_json_text(said.data ? said.data : "", said.len)));
    json_t *v = json_pack("{s:I,s:b,s:o}", "line", (json_int_t)q->line, "ended", r->ended, "messages", messages);
    char *text = v ? json_dumps(v, JSON_COMPACT) : NULL;
    size_t n = text ? strlen(text) : 0;
    if (!text)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for an answer");
    else
        text[n++] = '\n'; /* in the NUL's place */
    for (size_t k = 0; k < n && rc == ES_OK;) {
        ssize_t w = write(a->out, text + k, n - k);
        if (w < 0 && errno != EINTR)
            rc = es_fail(err, ES_ERR_IO, "cannot write an answer: %s", strerror(errno));
        k += w > 0 ? (size_t)w : 0;
    }
    free(text);
    json_decref(v);
    es_buf_free(&said);
    return rc;
}

/* A block of prompts on their way through es_generate. */
typedef struct prompts {
    answering *a;
    es_ids prompt[BLOCK];
    es_reply reply[BLOCK];
    const question *asked[BLOCK];
    int n;
} prompts;

static int answered(void *user, int i, es_error *err)
{
    const prompts *b = user;
    answering *a = b->a;
    const es_reply *r = &b->reply[i];
    const size_t said = r->ids.n - r->ended;
    int rc = said ? write_answer(a, b->asked[i], r, err) : ES_OK;
    a->tokens += said;
    a->done++;
    if (rc == ES_OK)
        es_progress_report(&a->progress, "answering", (double)a->done, (double)a->n, "prompts");
    return rc;
}

static int answer_block(prompts *b, es_context *c, es_error *err)
{
    answering *a = b->a;
    int rc = ES_OK;
    for (b->n = 0; rc == ES_OK && b->n < BLOCK && a->next < a->n; a->next++) {
        const question *q = &a->list[a->next];
        es_ids *ids = &b->prompt[b->n];
        ids->n = 0;
        rc = es_chat_render(a->m, q->message, (size_t)q->n, true, ids, err);
        if (rc == ES_OK && ids->n + 16 > (size_t)es_context_size(c)) {
            a->done++;
            continue; /* too long for the context: left out */
        }
        es_reply *r = &b->reply[b->n];
        r->prompt = ids->id;
        r->n_prompt = (int)ids->n;
        r->max_new = a->max_tokens;
        r->sampling = a->sampling;
        r->sampling.seed += q->line; /* the same answer whatever the order */
        b->asked[b->n++] = q;
    }
    return rc ? rc : es_generate(c, b->reply, b->n, answered, b, &app_cancel, err);
}

static int answer_all(answering *a, int streams, es_error *err)
{
    es_context_options o = {.n_ctx = es_model_get_info(a->m)->n_ctx, .threads = the_app.threads, .n_seq = streams};
    if (o.n_ctx > 1024 + a->max_tokens)
        o.n_ctx = 1024 + a->max_tokens;
    es_context *c = NULL;
    prompts *b = es_calloc(1, sizeof *b);
    int rc = b ? es_context_open(&c, a->m, &o, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory");
    if (b)
        b->a = a;
    while (rc == ES_OK && a->next < a->n)
        rc = answer_block(b, c, err);
    for (int i = 0; b && i < BLOCK; i++) {
        es_ids_free(&b->prompt[i]);
        es_ids_free(&b->reply[i].ids);
    }
    free(b);
    es_context_free(c);
    return rc;
}

/* Opens the output for appending; a last line that a kill cut short is taken off. */
static int open_output(const char *path, es_error *err)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        return es_fail(err, ES_ERR_IO, "%s: cannot open: %s", path, strerror(errno));
    off_t end = lseek(fd, 0, SEEK_END), keep = end;
    char block[4096];
    while (keep > 0) {
        off_t from = keep > (off_t)sizeof block ? keep - (off_t)sizeof block : 0;
        ssize_t n = pread(fd, block, (size_t)(keep - from), from);
        if (n <= 0)
            break;
        const char *line = memrchr(block, '\n', (size_t)n);
        keep = line ? from + (line - block) + 1 : from;
        if (line)
            break;
    }
    if ((keep < end && ftruncate(fd, keep) != 0) || lseek(fd, 0, SEEK_END) < 0) {
        es_fail(err, ES_ERR_IO, "%s: cannot go on with it: %s", path, strerror(errno));
        close(fd);
        return ES_ERR_IO;
    }
    return fd;
}

int cmd_answer(int argc, char **argv)
{
    const char *out = NULL;
    int jobs = 0;
    answering a = {.sampling = es_sampling_unset(), .max_tokens = 256, .out = -1};
    const opt table[] = {
        {"out", "FILE", OPT_TEXT, &out, 0, 0, "where the answers go; what it holds already is not asked again", NULL},
        {"max-tokens", "N", OPT_INT, &a.max_tokens, 1, 100000, "longest answer (default 256)", NULL},
        {"limit", "N", OPT_COUNT, &a.limit, 0, 1e9, "only the first N prompts", NULL},
        {"temperature", "T", OPT_REALF, &a.sampling.temperature, 0, 10, "0 is greedy (default: the model's own, else 0.7)", NULL},
        {"seed", "S", OPT_COUNT, &a.sampling.seed, 0, 1.8e19, "same seed, same answers (default 0)", NULL},
        {"jobs", "N", OPT_INT, &jobs, 1, ES_MAX_SEQUENCES, "answers at a time (default 8)", NULL},
        {0},
    };
    static const command_help help = {
        "answer", "PROMPTS.jsonl --out FILE",
        "The model's own answers to the prompts of a JSONL file, as chats {\"line\",\"ended\",\"messages\":[...]}, one a line: text to harvest\n"
        "activations from. A prompt is the field messages (up to its last user turn), prompt, instruction, question or text. Started again\n"
        "after an interruption it goes on where it was. Prompts too long for the context are left out.",
        "  espalier answer prompts.jsonl --out answers.jsonl --max-tokens 200 --limit 5000", 1, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (!out)
        return opts_usage_error("answer", "--out FILE is missing");
    es_error err = {0};
    es_model *m = NULL;
    a.out = open_output(out, &err);
    rc = a.out < 0 ? a.out : es_jsonl_each(out, read_answered, &a, &err);
    if (rc == ES_OK)
        rc = es_jsonl_each(argv[1], read_question, &a, &err);
    if (rc >= 0)
        rc = app_model(&m, &err);
    size_t before = a.done;
    if (rc == ES_OK) {
        a.m = m;
        a.sampling = es_model_sampling(m, a.sampling);
        if (es_chat_warning(m))
            app_note("%s", es_chat_warning(m));
        a.progress = app_progress();
        a.began = es_seconds();
        a.done = 0;
        if (before)
            app_note("%zu are answered already, %zu to do", before, a.n);
        rc = answer_all(&a, jobs ? jobs : ES_STREAMS, &err);
        if (rc == ES_ERR_CANCELLED)
            es_fail(&err, rc, "interrupted");
    }
    app_progress_end();
    double seconds = es_seconds() - a.began;
    int code = rc != ES_OK ? app_fail(&err) : EXIT_DONE;
    if (rc == ES_OK && the_app.json)
        code = app_print_json(json_pack("{s:I,s:I,s:I,s:f,s:f}", "answered", (json_int_t)a.done, "before", (json_int_t)before, "tokens",
                                        (json_int_t)a.tokens, "seconds", seconds, "tokens_per_second", (double)a.tokens / seconds));
    else if (rc == ES_OK)
        app_note("%zu prompts, %llu tokens, %.0f a second", a.done, (unsigned long long)a.tokens, (double)a.tokens / seconds);
    if (a.out >= 0)
        close(a.out);
    for (size_t i = 0; i < a.n; i++)
        question_free(&a.list[i]);
    free(a.list);
    free(a.answered);
    es_model_free(m);
    return code;
}
