#include "autolabel_scores.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- a label ------------------------------------------------------------------------------------------------------------------------ */

static bool around(char c) { return c == '"' || c == '\'' || c == '*' || c == '`' || c == '[' || c == ']' || c == ' ' || c == '\t' || c == '\r'; }

static void take_text(const char *s, size_t n, es_buf *out)
{
    while (n && around(*s)) {
        s++;
        n--;
    }
    while (n && (around(s[n - 1]) || s[n - 1] == '.'))
        n--;
    if (n > ES_AUTO_LABEL_MAX)
        n = es_utf8_whole(s, ES_AUTO_LABEL_MAX);
    bool space = false;
    for (size_t i = 0; i < n; i++) { /* control characters and runs of spaces are one space */
        if ((unsigned char)s[i] <= 0x20 || s[i] == 0x7f) {
            space = true;
            continue;
        }
        if (space && out->len)
            es_buf_str(out, " ");
        space = false;
        es_buf_add(out, s + i, 1);
    }
    es_buf_add(out, "", 0);
}

bool es_answer_label(const char *answer, es_buf *out)
{
    const char *from = NULL;
    es_buf_clear(out);
    for (const char *p = answer; (p = strcasestr(p, "LABEL:")); p += 6)
        from = p + 6;
    for (const char *p = from ? from : answer; *p;) {
        size_t n = strcspn(p, "\n");
        es_buf one = {0};
        take_text(p, n, &one);
        if (one.len) {
            es_buf_clear(out);
            es_buf_str(out, one.data);
        }
        es_buf_free(&one);
        p += n + (p[n] == '\n');
        if (from && out->len)
            break; /* the first line behind the word; without it the last of all */
    }
    es_buf_add(out, "", 0);
    return out->len > 0 && !out->failed;
}

/* ---- judgements --------------------------------------------------------------------------------------------------------------------- */

static bool list_at(const char *p, int n, bool *out)
{
    int k = 0;
    for (p++; *p && *p != ']'; p++) {
        if (*p == '0' || *p == '1') {
            if (k == n || isdigit((unsigned char)p[1]) || p[1] == '.')
                return false;
            out[k++] = *p == '1';
        } else if (!strchr(", \t\r\n", *p)) {
            return false;
        }
    }
    return *p == ']' && k == n;
}

bool es_answer_judgements(const char *answer, int n, bool *out)
{
    for (size_t i = strlen(answer); i > 0; i--)
        if (answer[i - 1] == '[' && list_at(answer + i - 1, n, out))
            return true;
    return false;
}

/* ---- activations --------------------------------------------------------------------------------------------------------------------- */

/* 0 to 10 and nothing else but spaces around it; -1: something else. */
static int whole(const char *s)
{
    while (*s == ' ')
        s++;
    int v = isdigit((unsigned char)s[0]) ? s[0] - '0' : -1;
    size_t k = v >= 0;
    if (v == 1 && s[1] == '0') {
        v = 10;
        k = 2;
    }
    while (v >= 0 && (s[k] == ' ' || s[k] == '\n' || s[k] == '\r'))
        k++;
    return v >= 0 && !s[k] ? v : -1;
}

/* Over the alternatives that are numbers, of a token that is one. NAN: none are. */
static double expected(json_t *top)
{
    double sum = 0, mean = 0;
    size_t i;
    json_t *x;
    json_array_foreach(top, i, x) {
        const char *s = json_string_value(json_array_get(x, 0));
        int v = s ? whole(s) : -1;
        double p = v >= 0 ? exp(json_number_value(json_array_get(x, 1))) : 0;
        if (isfinite(p)) {
            sum += p;
            mean += p * v;
        }
    }
    return sum > 0 ? mean / sum : NAN;
}

bool es_answer_activations(const json_t *logprobs, int n, double *out)
{
    es_buf text = {0};
    size_t k, tokens = json_array_size(logprobs), *end = es_calloc(tokens + 1, sizeof *end);
    json_t *t;
    int got = 0;
    json_array_foreach((json_t *)(uintptr_t)logprobs, k, t) {
        const char *s = json_string_value(json_object_get(t, "token"));
        es_buf_str(&text, s ? s : "");
        if (end)
            end[k] = text.len;
    }
    es_buf_add(&text, "", 0);
    for (const char *p = text.data; end && !text.failed && got < n && *p;) {
        size_t line = strcspn(p, "\n");
        char *stop;
        long number = strtol(p, &stop, 10);
        const char *colon = stop + strspn(stop, " ");
        if (stop > p && colon < p + line && *colon == ':' && number == got + 1) {
            const char *v = colon + 1 + strspn(colon + 1, " ");
            size_t at = (size_t)(v - text.data), digits = strspn(v, "0123456789");
            for (k = 0; k < tokens && end[k] <= at; k++)
                ;
            char said[3] = "";
            memcpy(said, v, digits < 2 ? digits : 2);
            int value = digits && digits <= 2 ? whole(said) : -1;
            if (value < 0 || v >= p + line || k == tokens)
                break;
            bool in_one = end[k] >= at + digits; /* "10" in two tokens: its first is no number of its own */
            json_t *top = json_object_get(json_array_get(logprobs, k), "top");
            if (!json_array_size(top))
                break;
            double e = in_one ? expected(top) : NAN;
            out[got++] = isfinite(e) ? e : value;
        }
        p += line + (p[line] == '\n');
    }
    free(end);
    es_buf_free(&text);
    return got == n;
}

/* ---- figures --------------------------------------------------------------------------------------------------------------------------- */

void es_tally_add(es_tally *t, bool active, bool said)
{
    *(active ? said ? &t->hit : &t->miss : said ? &t->wrong : &t->right) += 1;
}

double es_tally_balanced(const es_tally *t)
{
    double active = t->hit + t->miss, silent = t->right + t->wrong;
    return active > 0 && silent > 0 ? (t->hit / active + t->right / silent) / 2 : NAN;
}

double es_tally_f1(const es_tally *t)
{
    return t->hit + t->miss > 0 ? 2.0 * t->hit / (2.0 * t->hit + t->miss + t->wrong) : NAN;
}

double es_correlation(const double *x, const double *y, int n)
{
    double mx = 0, my = 0, xx = 0, yy = 0, xy = 0;
    for (int i = 0; i < n; i++) {
        mx += x[i] / n;
        my += y[i] / n;
    }
    for (int i = 0; i < n; i++) {
        xx += (x[i] - mx) * (x[i] - mx);
        yy += (y[i] - my) * (y[i] - my);
        xy += (x[i] - mx) * (y[i] - my);
    }
    return n > 1 && xx > 1e-12 && yy > 1e-12 ? xy / sqrt(xx * yy) : NAN;
}
