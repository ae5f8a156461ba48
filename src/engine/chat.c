#include "chat.h"
#include "model.h"
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static const char NO_FUNCTIONS[] = "You do not currently have access to any functions. <functions></functions>";
static const char NO_THOUGHTS[] = "<think>\n\n</think>\n\n";

/* ---- recognising ---- */

static const char *find(const char *s, size_t n, const char *what)
{
    return n ? memmem(s, n, what, strlen(what)) : NULL;
}

static bool has(const es_tokenizer *t, const char *name)
{
    return es_tokenizer_special(t, name) >= 0;
}

static int keep(char **out, const char *s, size_t n, const char *more, const char *path, es_error *err)
{
    free(*out);
    *out = es_calloc(n + strlen(more) + 1, 1);
    if (!*out)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory for its chat template", path);
    memcpy(*out, s, n);
    strcpy(*out + n, more);
    return ES_OK;
}

/* Finds in the template a quoted '<|im_start|>system\nTEXT<|im_end|>': the prompt of SmolLM2's, Qwen 2's and OLMo 3's templates, given when
 * there is no system message. The newline may be a real one or written \n. OLMo 3's is in two literals; the second is NO_FUNCTIONS. */
static int find_default_system(es_chat *c, const char *s, size_t n, const char *path, es_error *err)
{
    static const char opening[] = "<|im_start|>system";
    const char *end = s + n, *p = s;
    c->system_anywhere = find(s, n, "has_system");
    if (!find(s, n, "messages[0]") && !c->system_anywhere)
        return ES_OK;
    while ((p = find(p, (size_t)(end - p), opening))) {
        const char *text = p + strlen(opening);
        size_t left = (size_t)(end - text);
        p = text;
        if (left > 1 && text[0] == '\n')
            text += 1;
        else if (left > 2 && memcmp(text, "\\n", 2) == 0)
            text += 2;
        else
            continue;
        const char *stop = find(text, (size_t)(end - text), "<|im_end|>");
        if (!stop)
            return ES_OK;
        size_t len = 0;
        while (text + len < stop && !strchr("'\"\\{", text[len]))
            len++;
        bool whole = text + len == stop;
        if (len > 0 && (whole || (c->system_anywhere && find(s, n, NO_FUNCTIONS))))
            return keep(&c->system, text, len, whole ? "" : NO_FUNCTIONS, path, err);
        /* else the literal ended before: the content comes from a message */
    }
    return ES_OK;
}

static int read_chatml(es_chat *c, const char *s, size_t n, const char *path, es_error *err)
{
    c->no_functions = find(s, n, "' You do not currently have access to any functions.");
    c->end_last = find(s, n, "eos_token") && find(s, n, "loop.last") && find(s, n, "function_calls");
    c->forget_thoughts = find(s, n, "last_query_index");
    if (find(s, n, "enable_thinking"))
        c->opening = NO_THOUGHTS;
    else if (find(s, n, "<|im_start|>assistant\n<think>\n") || find(s, n, "<|im_start|>assistant\\n<think>\\n"))
        c->opening = "<think>\n";
    else if (find(s, n, "<|im_start|>assistant\n<think>") || find(s, n, "<|im_start|>assistant\\n<think>"))
        c->opening = "<think>";
    return find_default_system(c, s, n, path, err);
}

/* The day in `date_string = "26 Jul 2024"`, what the template says when nobody tells it the date: a prompt that changes from day to day would make two
 * conversations of one. */
static int read_llama3(es_chat *c, const char *s, size_t n, const char *path, es_error *err)
{
    const char *end = s + n, *p = s;
    if (!find(s, n, "Cutting Knowledge Date: December 2023"))
        return ES_OK;
    while ((p = find(p, (size_t)(end - p), "date_string = \""))) {
        p += strlen("date_string = \"");
        const char *quote = find(p, (size_t)(end - p), "\"");
        if (quote && quote > p && quote - p < 32)
            return keep(&c->date, p, (size_t)(quote - p), "", path, err);
    }
    return keep(&c->date, "26 Jul 2024", 11, "", path, err);
}

/* A user's turn closed by the end token: Zephyr's; OLMo 2 closes the assistant's only. */
static bool user_is_closed(const char *s, size_t n)
{
    const char *user = find(s, n, "<|user|>"), *next = user ? find(user, (size_t)(s + n - user), "%}") : NULL;
    return next && find(user, (size_t)(next - user), "eos_token");
}

static bool recognise(es_chat *c, const es_tokenizer *t, const char *s, size_t n)
{
    bool turns = has(t, "<|im_start|>") && has(t, "<|im_end|>"), roles = find(s, n, "<|user|>") && find(s, n, "<|assistant|>") && !find(s, n, "<|end|>");
    if (turns && find(s, n, "<|im_start|>") && find(s, n, "<|im_end|>") && !find(s, n, "<|im_sep|>"))
        c->style = ES_CHAT_CHATML;
    else if (find(s, n, "<|start_header_id|>") && find(s, n, "<|eot_id|>") && has(t, "<|start_header_id|>") && has(t, "<|end_header_id|>") && has(t, "<|eot_id|>"))
        c->style = ES_CHAT_LLAMA3;
    else if (find(s, n, "<start_of_turn>") && has(t, "<start_of_turn>") && has(t, "<end_of_turn>"))
        c->style = ES_CHAT_GEMMA;
    else if (roles && find(s, n, "eos_token") && t->eos >= 0)
        c->style = user_is_closed(s, n) ? ES_CHAT_ZEPHYR : ES_CHAT_OLMO2;
    else if (find(s, n, "[INST]") && find(s, n, "<<SYS>>") && t->eos >= 0)
        c->style = ES_CHAT_LLAMA2;
    else
        return false;
    return true;
}

/* No template, or one that is not known: what the vocabulary's own tokens suggest. */
static int guess(es_chat *c, const es_tokenizer *t, const char *s, size_t n, const char *path, es_error *err)
{
    const char *as = "lines that begin with User: and Assistant:";
    c->style = ES_CHAT_LINES;
    c->bos = t->bos_first;
    if (has(t, "<|im_start|>") && has(t, "<|im_end|>")) {
        c->style = ES_CHAT_CHATML;
        as = "ChatML, whose tokens it has";
    } else if (has(t, "<|start_header_id|>") && has(t, "<|end_header_id|>") && has(t, "<|eot_id|>")) {
        c->style = ES_CHAT_LLAMA3;
        as = "Llama 3's turns, whose tokens it has";
    } else if (has(t, "<start_of_turn>") && has(t, "<end_of_turn>")) {
        c->style = ES_CHAT_GEMMA;
        as = "Gemma's turns, whose tokens it has";
    }
    es_buf b = {0}, shown = {0};
    es_text_show(&shown, s ? s : "", n < 60 ? es_utf8_whole(s ? s : "", n) : es_utf8_whole(s, 60), false);
    if (n)
        es_buf_printf(&b, "%s: has a chat template that is not known here (it begins '%s'); conversations are written as %s", path, shown.data ? shown.data : "", as);
    else
        es_buf_printf(&b, "%s: has no chat template, so it is hardly trained to chat; conversations are written as %s", path, as);
    int rc = b.failed || shown.failed ? es_fail(err, ES_ERR_MEMORY, "%s: not enough memory for its chat template", path) : keep(&c->warning, b.data, b.len, "", path, err);
    es_buf_free(&b);
    es_buf_free(&shown);
    return rc;
}

int es_chat_open(es_chat *c, const es_tokenizer *t, const char *s, size_t n, const char *path, es_error *err)
{
    *c = (es_chat){.opening = ""};
    if (!n || !recognise(c, t, s, n))
        return guess(c, t, s, n, path, err);
    c->bos = t->bos >= 0 && (find(s, n, "bos_token") || (c->style == ES_CHAT_LLAMA3 && find(s, n, "<|begin_of_text|>")) || (c->style == ES_CHAT_GEMMA && find(s, n, "<bos>")));
    return c->style == ES_CHAT_CHATML ? read_chatml(c, s, n, path, err) : c->style == ES_CHAT_LLAMA3 ? read_llama3(c, s, n, path, err) : ES_OK;
}

void es_chat_free(es_chat *c)
{
    free(c->system);
    free(c->date);
    free(c->warning);
    *c = (es_chat){0};
}

/* ---- writing ---- */

/* Text between two control tokens is tokenized in one go, so that merges across what the template and the messages say are the template's own. */
typedef struct writer {
    const es_tokenizer *t;
    es_buf text;
    es_ids *out;
    int rc;
    es_error *err;
} writer;

static void flush(writer *w)
{
    if (w->text.failed && !w->rc)
        w->rc = es_fail(w->err, ES_ERR_MEMORY, "not enough memory for the conversation");
    if (!w->rc && w->text.len)
        w->rc = es_tokenizer_ids(w->t, w->text.data, w->text.len, false, w->out, w->err);
    es_buf_clear(&w->text);
}

static void control_id(writer *w, int32_t id)
{
    flush(w);
    if (!w->rc && es_ids_add(w->out, id) != ES_OK)
        w->rc = es_fail(w->err, ES_ERR_MEMORY, "not enough memory for the conversation");
}

static void control(writer *w, const char *name)
{
    control_id(w, es_tokenizer_special(w->t, name));
}

static void end(writer *w)
{
    if (w->t->eos >= 0)
        control_id(w, w->t->eos);
}

static void text(writer *w, const char *s)
{
    es_buf_str(&w->text, s);
}

/* Jinja's trim is Python's strip: Unicode's white space and four control characters more. */
static bool is_strippable(int32_t cp)
{
    return es_pretoken_space(cp) || (cp >= 0x1c && cp <= 0x1f);
}

static void text_trimmed(writer *w, const char *s)
{
    size_t n = strlen(s), step;
    utf8proc_int32_t cp;
    for (utf8proc_ssize_t k; n > 0 && (k = utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, &cp)) > 0 && is_strippable(cp); s += k, n -= (size_t)k)
        ;
    for (; n > 0; n -= step) {
        for (step = 1; step < n && step < 4 && ((unsigned char)s[n - step] & 0xc0) == 0x80; step++)
            ;
        if (utf8proc_iterate((const utf8proc_uint8_t *)s + n - step, (utf8proc_ssize_t)step, &cp) != (utf8proc_ssize_t)step || !is_strippable(cp))
            break;
    }
    es_buf_add(&w->text, s, n);
}

static bool is(const es_message *m, const char *role)
{
    return strcmp(m->role, role) == 0;
}

static bool any_system(const es_message *m, size_t n)
{
    bool any = false;
    for (size_t i = 0; i < n; i++)
        any = any || is(&m[i], "system");
    return any;
}

/* ---- the styles ---- */

/* Qwen 3: thoughts stand before the answer, as <think>...</think>; those of turns before the last question are forgotten. */
static void write_thoughtful(writer *w, const char *s, bool recent, bool last)
{
    const char *close = strstr(s, "</think>"), *answer = s, *thoughts = s, *stop = s;
    if (close) {
        for (const char *p = close; p; p = strstr(answer, "</think>"))
            answer = p + strlen("</think>");
        for (const char *p; (p = strstr(thoughts, "<think>")) && p < close;)
            thoughts = p + strlen("<think>");
        for (stop = close; stop > thoughts && stop[-1] == '\n';)
            stop--;
        answer += strspn(answer, "\n");
        thoughts += strspn(thoughts, "\n");
        stop = stop < thoughts ? thoughts : stop;
    }
    if (recent && (last || stop > thoughts)) {
        text(w, "<think>\n");
        es_buf_add(&w->text, thoughts, (size_t)(stop - thoughts));
        text(w, "\n</think>\n\n");
        answer += strspn(answer, "\n");
    }
    text(w, answer);
}

static void write_chatml(writer *w, const es_chat *c, const es_message *m, size_t n, bool generation)
{
    size_t question = n ? n - 1 : 0; /* the last one */
    for (size_t i = n; i-- > 0;)
        if (is(&m[i], "user")) {
            question = i;
            break;
        }
    if (c->system && n && !(c->system_anywhere ? any_system(m, n) : is(m, "system"))) {
        control(w, "<|im_start|>");
        text(w, "system\n");
        text(w, c->system);
        control(w, "<|im_end|>");
        text(w, "\n");
    }
    for (size_t i = 0; i < n; i++) {
        control(w, "<|im_start|>");
        text(w, m[i].role);
        text(w, "\n");
        if (c->forget_thoughts && is(&m[i], "assistant"))
            write_thoughtful(w, m[i].content, i > question, i + 1 == n);
        else
            text(w, m[i].content);
        if (c->no_functions && is(&m[i], "system")) {
            text(w, " ");
            text(w, NO_FUNCTIONS);
        }
        if (c->end_last && i + 1 == n && is(&m[i], "assistant")) {
            end(w);
        } else {
            control(w, "<|im_end|>");
            text(w, "\n");
        }
    }
    if (generation) {
        control(w, "<|im_start|>");
        text(w, "assistant\n");
        text(w, c->opening);
    }
}

static void open_llama3(writer *w, const char *role)
{
    control(w, "<|start_header_id|>");
    text(w, role);
    control(w, "<|end_header_id|>");
    text(w, "\n\n");
}

static void write_llama3(writer *w, const es_chat *c, const es_message *m, size_t n, bool generation)
{
    if (c->date) { /* 3.1 and later: always a system turn, which begins with two dates */
        open_llama3(w, "system");
        text(w, "Cutting Knowledge Date: December 2023\nToday Date: ");
        text(w, c->date);
        text(w, "\n\n");
        if (n && is(m, "system")) {
            text_trimmed(w, m->content);
            m++;
            n--;
        }
        control(w, "<|eot_id|>");
    }
    for (size_t i = 0; i < n; i++) {
        open_llama3(w, m[i].role);
        text_trimmed(w, m[i].content);
        control(w, "<|eot_id|>");
    }
    if (generation)
        open_llama3(w, "assistant");
}

static void write_gemma(writer *w, const es_message *m, size_t n, bool generation)
{
    const char *system = n && is(m, "system") ? m->content : NULL;
    for (size_t i = system ? 1 : 0; i < n; i++) {
        control(w, "<start_of_turn>");
        text(w, is(&m[i], "assistant") ? "model\n" : "user\n"); /* there is no third role */
        if (system && i == 1) {
            text(w, system);
            text(w, "\n\n");
        }
        text_trimmed(w, m[i].content);
        control(w, "<end_of_turn>");
        text(w, "\n");
    }
    if (generation) {
        control(w, "<start_of_turn>");
        text(w, "model\n");
    }
}

/* The roles' names are ordinary text here. */
static void write_roles(writer *w, const es_chat *c, const es_message *m, size_t n, bool generation)
{
    for (size_t i = 0; i < n; i++) {
        bool assistant = is(&m[i], "assistant");
        text(w, "<|");
        text(w, m[i].role);
        text(w, "|>\n");
        text(w, m[i].content);
        if (c->style == ES_CHAT_ZEPHYR || assistant)
            end(w);
        if (c->style == ES_CHAT_ZEPHYR || !assistant || i + 1 < n)
            text(w, "\n");
    }
    if (generation)
        text(w, "<|assistant|>\n");
}

static void write_llama2(writer *w, const es_chat *c, const es_message *m, size_t n)
{
    const char *system = n && is(m, "system") ? m->content : NULL;
    for (size_t i = system ? 1 : 0; i < n; i++) {
        if (is(&m[i], "assistant")) {
            text(w, " ");
            text_trimmed(w, m[i].content);
            text(w, " ");
            end(w);
            continue;
        }
        if (c->bos)
            control_id(w, w->t->bos);
        text(w, "[INST] ");
        es_buf both = {0};
        if (system && i == 1) {
            es_buf_printf(&both, "<<SYS>>\n%s\n<</SYS>>\n\n", system);
            w->text.failed = w->text.failed || both.failed;
        }
        es_buf_str(&both, m[i].content);
        text_trimmed(w, both.data ? both.data : "");
        text(w, " [/INST]");
        es_buf_free(&both);
    }
}

static void write_lines(writer *w, const es_message *m, size_t n, bool generation)
{
    for (size_t i = 0; i < n; i++) {
        text(w, is(&m[i], "user") ? "User: " : is(&m[i], "assistant") ? "Assistant: " : "");
        text(w, m[i].content);
        if (is(&m[i], "assistant"))
            end(w);
        text(w, "\n\n");
    }
    if (generation)
        text(w, "Assistant:");
}

/* ---- what others call ---- */

static int check_messages(const es_message *m, size_t n, es_error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (!m[i].role || !(is(&m[i], "system") || is(&m[i], "user") || is(&m[i], "assistant")))
            return es_fail(err, ES_ERR_USAGE, "message %zu has the role '%.40s': it must be system, user or assistant", i + 1, m[i].role ? m[i].role : "");
        if (!m[i].content)
            return es_fail(err, ES_ERR_USAGE, "message %zu has no content", i + 1);
    }
    return ES_OK;
}

static int begin(writer *w, const es_model *m, es_ids *out, es_error *err)
{
    *w = (writer){.t = m->tokenizer, .out = out, .err = err};
    return w->t ? ES_OK : es_fail(err, ES_ERR_MISSING, "%s: has no tokenizer", m->info.path);
}

static int done(writer *w, size_t had)
{
    flush(w);
    es_buf_free(&w->text);
    if (w->rc)
        w->out->n = had;
    return w->rc;
}

int es_chat_render(const es_model *model, const es_message *m, size_t n, bool add_generation, es_ids *out, es_error *err)
{
    writer w;
    size_t had = out->n;
    int rc = begin(&w, model, out, err);
    rc = rc ? rc : check_messages(m, n, err);
    if (rc != ES_OK)
        return rc;
    const es_chat *c = &w.t->chat;
    if (c->bos && c->style != ES_CHAT_LLAMA2)
        control_id(&w, w.t->bos);
    switch (c->style) {
    case ES_CHAT_CHATML: write_chatml(&w, c, m, n, add_generation); break;
    case ES_CHAT_LLAMA3: write_llama3(&w, c, m, n, add_generation); break;
    case ES_CHAT_GEMMA: write_gemma(&w, m, n, add_generation); break;
    case ES_CHAT_OLMO2:
    case ES_CHAT_ZEPHYR: write_roles(&w, c, m, n, add_generation); break;
    case ES_CHAT_LLAMA2: write_llama2(&w, c, m, n); break;
    case ES_CHAT_LINES: write_lines(&w, m, n, add_generation); break;
    }
    return done(&w, had);
}

int es_chat_close(const es_model *model, es_ids *out, es_error *err)
{
    writer w;
    size_t had = out->n;
    int rc = begin(&w, model, out, err);
    if (rc != ES_OK)
        return rc;
    switch (w.t->chat.style) {
    case ES_CHAT_CHATML:
        control(&w, "<|im_end|>");
        text(&w, "\n");
        break;
    case ES_CHAT_LLAMA3: control(&w, "<|eot_id|>"); break;
    case ES_CHAT_GEMMA:
        control(&w, "<end_of_turn>");
        text(&w, "\n");
        break;
    case ES_CHAT_OLMO2:
    case ES_CHAT_ZEPHYR:
        end(&w);
        text(&w, "\n");
        break;
    case ES_CHAT_LLAMA2: end(&w); break;
    case ES_CHAT_LINES:
        end(&w);
        text(&w, "\n\n");
        break;
    }
    return done(&w, had);
}

const char *es_chat_name(const es_model *m)
{
    static const char *const names[] = {"plain lines", "ChatML", "Llama 3", "Gemma", "OLMo 2", "Zephyr", "Llama 2"};
    return m->tokenizer ? names[m->tokenizer->chat.style] : "none";
}

const char *es_chat_warning(const es_model *m)
{
    return m->tokenizer ? m->tokenizer->chat.warning : NULL;
}
