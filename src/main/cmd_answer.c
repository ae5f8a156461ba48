/* answer: the model's own answers to many prompts, resumable. */
#include "generate.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
    /* shared by the threads */
    pthread_mutex_t lock;
    const es_model *m;
    int threads, max_tokens;
    es_sampling sampling;
    int out;
    uint64_t tokens;
    double began;
    es_error err;
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

static int answer_one(answering *a, es_context *c, const question *q, es_error *err)
{
    es_ids ids = {0};
    reply r = {0};
    int rc = es_chat_render(a->m, q->message, (size_t)q->n, true, &ids, err);
    if (rc == ES_OK && ids.n + 16 > (size_t)es_context_size(c)) {
        es_ids_free(&ids);
        return ES_OK; /* too long for the context: left out */
    }
    es_sampling s = a->sampling;
    s.seed += q->line; /* the same answer whatever the order and the number of threads */
    if (rc == ES_OK)
        rc = generate_reply(c, a->m, &ids, &s, a->max_tokens, NULL, &r, err);
    if (rc == ES_OK && app_cancel)
        rc = es_fail(err, ES_ERR_CANCELLED, "interrupted");
    if (rc == ES_OK && r.ids.n > 0) {
        json_t *messages = json_array();
        for (int i = 0; i < q->n; i++)
            json_array_append_new(messages, json_pack("{s:s,s:s}", "role", q->message[i].role, "content", q->message[i].content));
        json_array_append_new(messages,
                              json_pack("{s:s,s:o}", "role", "assistant", "content", app_json_text(r.text.data ? r.text.data : "", r.text.len)));
        json_t *v = json_pack("{s:I,s:b,s:o}", "line", (json_int_t)q->line, "ended", r.ended, "messages", messages);
        char *text = v ? json_dumps(v, JSON_COMPACT) : NULL;
        size_t n = text ? strlen(text) : 0;
        if (!text) {
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for an answer");
        } else {
            text[n++] = '\n'; /* in the NUL's place */
            pthread_mutex_lock(&a->lock);
            for (size_t k = 0; k < n && rc == ES_OK;) {
                ssize_t w = write(a->out, text + k, n - k);
                if (w < 0 && errno != EINTR)
                    rc = es_fail(err, ES_ERR_IO, "cannot write an answer: %s", strerror(errno));
                k += w > 0 ? (size_t)w : 0;
            }
            pthread_mutex_unlock(&a->lock);
        }
        free(text);
        json_decref(v);
    }
    pthread_mutex_lock(&a->lock);
    a->tokens += r.ids.n;
    a->done++;
    if (rc == ES_OK)
        es_progress_report(&a->progress, "answering", (double)a->done, (double)(a->n), "prompts");
    pthread_mutex_unlock(&a->lock);
    reply_free(&r);
    es_ids_free(&ids);
    return rc;
}

static void *answer_thread(void *user)
{
    answering *a = user;
    es_error err = {0};
    es_context *c = NULL;
    es_context_options o = {.n_ctx = es_model_get_info(a->m)->n_ctx, .threads = a->threads};
    if (o.n_ctx > 1024 + a->max_tokens)
        o.n_ctx = 1024 + a->max_tokens;
    int rc = es_context_open(&c, a->m, &o, &err);
    while (rc == ES_OK && !app_cancel) {
        pthread_mutex_lock(&a->lock);
        bool stop = a->next >= a->n || a->err.code;
        const question *q = stop ? NULL : &a->list[a->next++];
        pthread_mutex_unlock(&a->lock);
        if (stop)
            break;
        rc = answer_one(a, c, q, &err);
    }
    if (rc != ES_OK) {
        pthread_mutex_lock(&a->lock);
        if (!a->err.code)
            a->err = err;
        pthread_mutex_unlock(&a->lock);
    }
    es_context_free(c);
    return NULL;
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
        {"jobs", "N", OPT_INT, &jobs, 1, 64, "answers at a time (default: one a processor)", NULL},
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
        int processors = the_app.threads ? the_app.threads : (int)sysconf(_SC_NPROCESSORS_ONLN);
        if (jobs == 0)
            jobs = processors;
        if (jobs > 64)
            jobs = 64;
        a.threads = processors / jobs > 1 ? processors / jobs : 1;
        a.m = m;
        a.sampling = es_model_sampling(m, a.sampling);
        if (es_chat_warning(m))
            app_note("%s", es_chat_warning(m));
        a.progress = app_progress();
        a.began = es_seconds();
        a.done = 0;
        if (before)
            app_note("%zu are answered already, %zu to do", before, a.n);
        pthread_mutex_init(&a.lock, NULL);
        pthread_t thread[64];
        int started = 0;
        for (; started < jobs; started++)
            if (pthread_create(&thread[started], NULL, answer_thread, &a) != 0)
                break;
        if (started == 0)
            answer_thread(&a);
        for (int i = 0; i < started; i++)
            pthread_join(thread[i], NULL);
        pthread_mutex_destroy(&a.lock);
        err = a.err;
        rc = err.code;
        if (rc == ES_OK && app_cancel)
            rc = es_fail(&err, ES_ERR_CANCELLED, "interrupted");
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
