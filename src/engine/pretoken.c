/* The patterns, as the models' own tokenizer.json files and llama.cpp's llama-vocab.cpp have them, as loops over character
 * classes. A regular expression engine would cost more time than the merging.
 *
 * GPT-2:   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * smollm:  each \p{N} alone (Digits, individual_digits), then GPT-2's pattern inside what is between them
 * cl100k:  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 */
#include "pretoken.h"

#include <stdint.h>
#include <string.h>
#include <utf8proc.h>

enum { LETTER, NUMBER, SPACE, OTHER, END };

bool es_pretoken_named(es_pretoken *p, const char *name, size_t n)
{
    static const struct {
        const char *name;
        es_pretoken pattern;
    } known[] = {
        {"smollm", {.digits = 1, .alone = true}},
        {"starcoder", {.digits = 1, .alone = true}},
        {"refact", {.digits = 1, .alone = true}},
        {"command-r", {.digits = 1, .alone = true}},
        {"codeshell", {.digits = 1, .alone = true}},
        {"exaone", {.digits = 1, .alone = true}},
        {"dbrx", {.cl100k = true, .digits = 3}}, /* OLMo 2 and 3 */
        {"smaug-bpe", {.cl100k = true, .digits = 3}},
        {"gpt-2", {0}},
        {"gpt2", {0}},
        {"olmo", {0}},
        {"default", {0}},
        {"llama-bpe", {.cl100k = true, .digits = 3, .whole_first = true}},
        {"llama3", {.cl100k = true, .digits = 3, .whole_first = true}},
        {"llama-v3", {.cl100k = true, .digits = 3, .whole_first = true}},
        {"qwen2", {.cl100k = true, .digits = 1, .nfc = true}},
        {"deepseek-r1-qwen", {.cl100k = true, .digits = 1, .nfc = true}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].name) == n && memcmp(known[i].name, name, n) == 0) {
            *p = known[i].pattern;
            return true;
        }
    return false;
}

bool es_pretoken_regex(es_pretoken *p, const char *s, size_t n)
{
#define CL100K_BEGIN "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define CL100K_END "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
    static const struct {
        const char *regex;
        es_pretoken pattern;
    } known[] = {
        {CL100K_BEGIN "\\p{N}{1,3}" CL100K_END, {.cl100k = true, .digits = 3}},
        {CL100K_BEGIN "\\p{N}" CL100K_END, {.cl100k = true, .digits = 1}},
        {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", {0}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].regex) == n && memcmp(known[i].regex, s, n) == 0) {
            *p = known[i].pattern;
            return true;
        }
    return false;
}

bool es_pretoken_space(int32_t c)
{
    if (c < 0x80)
        return c == ' ' || (c >= '\t' && c <= '\r');
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

/* Class of the character at s, and its bytes in *step; END and 0 when n is 0. */
static int class_at(const char *s, size_t n, size_t *step)
{
    if (n == 0) {
        *step = 0;
        return END;
    }
    unsigned char c = (unsigned char)*s;
    *step = 1;
    if (c < 0x80) {
        if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z')
            return LETTER;
        if (c >= '0' && c <= '9')
            return NUMBER;
        return c == ' ' || (c >= '\t' && c <= '\r') ? SPACE : OTHER;
    }
    utf8proc_int32_t cp;
    utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)s, n < 4 ? (utf8proc_ssize_t)n : 4, &cp);
    if (k <= 0)
        return OTHER;
    *step = (size_t)k;
    switch (utf8proc_category(cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: return LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return NUMBER;
    default: return es_pretoken_space(cp) ? SPACE : OTHER;
    }
}

/* Bytes of the run of class c at s; at most `most` characters when most > 0. */
static size_t run(const char *s, size_t n, int c, int most)
{
    size_t at = 0, step;
    for (int count = 0; (most == 0 || count < most) && class_at(s + at, n - at, &step) == c; count++)
        at += step;
    return at;
}

/* Bytes of 's 't 'm 'd 're 've 'll at s, 0 when there is none. */
static size_t contraction(const char *s, size_t n, bool any_case)
{
    if (n < 2 || *s != '\'')
        return 0;
    char fold = any_case ? 0x20 : 0, a = (char)(s[1] | fold), b = n > 2 ? (char)(s[2] | fold) : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return 2;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \s+(?!\S)|\s+ : a run of spaces; before something else its last character is left, to go with what follows. */
static size_t spaces(const es_pretoken *p, const char *s, size_t n)
{
    size_t at = 0, last = 0, step;
    int c;
    while ((c = class_at(s + at, n - at, &step)) == SPACE) {
        last = at;
        at += step;
    }
    return c == END || (p->alone && c == NUMBER) || last == 0 ? at : last;
}

static size_t next_gpt2(const es_pretoken *p, const char *s, size_t n)
{
    size_t step, len = contraction(s, n, false);
    if (len)
        return len;
    size_t lead = *s == ' ';
    int c = class_at(s + lead, n - lead, &step);
    if (c == NUMBER && p->alone && lead)
        return 1;
    if (c == LETTER || c == OTHER || c == NUMBER)
        return lead + run(s + lead, n - lead, c, c == NUMBER ? p->digits : 0);
    return spaces(p, s, n);
}

static size_t next_cl100k(const es_pretoken *p, const char *s, size_t n)
{
    size_t step, len = contraction(s, n, true);
    if (len)
        return len;
    int c = class_at(s, n, &step), after;
    if (c == LETTER)
        return run(s, n, LETTER, 0);
    if (c == NUMBER)
        return run(s, n, NUMBER, p->digits);
    size_t unused;
    after = class_at(s + step, n - step, &unused);
    if (*s != '\r' && *s != '\n' && after == LETTER)
        return step + run(s + step, n - step, LETTER, 0);
    size_t lead = *s == ' ' && after == OTHER;
    if (c == OTHER || lead) {
        size_t at = lead + run(s + lead, n - lead, OTHER, 0);
        while (at < n && (s[at] == '\r' || s[at] == '\n'))
            at++;
        return at;
    }
    size_t end = run(s, n, SPACE, 0);
    for (size_t at = end; at > 0; at--) /* \s*[\r\n]+ : up to the run's last newline */
        if (s[at - 1] == '\r' || s[at - 1] == '\n')
            return at;
    return spaces(p, s, n);
}

size_t es_pretoken_next(const es_pretoken *p, const char *s, size_t n)
{
    return p->cl100k ? next_cl100k(p, s, n) : next_gpt2(p, s, n);
}
