/* Reading a work file: rows, what they are at equal effect, tables with intervals. A path starts at (0, 0); between its points sqrt(KL) and
 * d(nll) are taken as linear in the margin (the KL of a small step grows with its square). */
#include "eval_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double number(json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static const char *string(json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static bool has(json_t *o, const char *key)
{
    return json_is_number(json_object_get(o, key));
}

double es_eval_t95(const double *x, int n, double *mean)
{
    static const double T[] = {0, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
                               2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042};
    double sum = 0, square = 0;
    for (int i = 0; i < n; i++)
        sum += x[i];
    *mean = n ? sum / n : NAN;
    for (int i = 0; i < n; i++)
        square += (x[i] - *mean) * (x[i] - *mean);
    return n < 2 ? NAN : (n - 1 <= 30 ? T[n - 1] : 1.96) * sqrt(square / (n - 1) / n);
}

/* ---- paths -------------------------------------------------------------------------------------------------------------------- */

/* Mean KL on documents and on assistant turns, as far as they were measured. */
static double point_harm(json_t *p)
{
    double kl = number(p, "kl");
    return has(p, "kl_chat") ? (kl + number(p, "kl_chat")) / 2 : kl;
}

static double best_margin(json_t *line)
{
    double best = 0;
    size_t i;
    json_t *p;
    json_array_foreach(json_object_get(line, "path"), i, p)
        best = fmax(best, number(p, "margin"));
    return best;
}

enum { READ_KL, READ_DNLL, READ_KL_CHAT, READ_DNLL_CHAT, N_READ };
static const char *const READ[N_READ] = {"kl", "dnll", "kl_chat", "dnll_chat"};
static const char *const READ_AT[N_READ] = {"kl_at_equal", "dnll_at_equal", "kl_chat_at_equal", "dnll_chat_at_equal"};

/* What the path has where it first reaches the margin. false: it never does. */
static bool read_at_margin(json_t *line, double margin, double out[N_READ])
{
    double m0 = 0, v0[N_READ] = {0};
    size_t i;
    json_t *p;
    json_array_foreach(json_object_get(line, "path"), i, p) {
        double m = number(p, "margin"), v[N_READ];
        for (int k = 0; k < N_READ; k++)
            v[k] = k % 2 ? number(p, READ[k]) : sqrt(fmax(number(p, READ[k]), 0));
        if (m >= margin && m > m0) {
            double t = (margin - m0) / (m - m0);
            for (int k = 0; k < N_READ; k++) {
                out[k] = v0[k] + t * (v[k] - v0[k]);
                out[k] *= k % 2 ? 1 : out[k];
            }
            return true;
        }
        m0 = m;
        memcpy(v0, v, sizeof v0);
    }
    return false;
}

/* What a margin can be read at: the mean KL on documents and in assistant turns, or on documents alone the KL or what the log-likelihood loses. */
typedef enum harm_kind { HARM_KL, HARM_KL_DOCUMENTS, HARM_DNLL, N_HARM } harm_kind;
static const char *const EQUAL[N_HARM] = {"equal_kl", "equal_kl_documents", "equal_dnll"};
static const char *const MARGIN_AT[N_HARM] = {"margin_at_equal_kl", "margin_at_equal_kl_documents", "margin_at_equal_dnll"};
static const double HARM_LEAST[N_HARM] = {0, 0, 0.001}; /* below it d(nll) is noise of the texts: nothing is read there */

/* In a scale in which it grows about as the margin does: the root of a KL. */
static double harm_of(json_t *p, harm_kind kind)
{
    return kind == HARM_DNLL ? number(p, "dnll") : sqrt(fmax(kind == HARM_KL ? point_harm(p) : number(p, "kl"), 0));
}

static double harm_scale(harm_kind kind, double harm)
{
    return kind == HARM_DNLL ? harm : sqrt(fmax(harm, 0));
}

static double most_harm(json_t *line, harm_kind kind)
{
    double most = 0;
    size_t i;
    json_t *p;
    json_array_foreach(json_object_get(line, "path"), i, p)
        most = fmax(most, harm_of(p, kind));
    return kind == HARM_DNLL ? most : most * most;
}

/* The margin where the path first has so much harm; the last one when it never has. */
static double margin_at_harm(json_t *line, harm_kind kind, double harm)
{
    double m0 = 0, h0 = 0, want = harm_scale(kind, harm);
    size_t i;
    json_t *p;
    json_array_foreach(json_object_get(line, "path"), i, p) {
        double m = number(p, "margin"), h = harm_of(p, kind);
        if (h >= want && h > h0)
            return m0 + (want - h0) / (h - h0) * (m - m0);
        m0 = m;
        h0 = h;
    }
    return m0;
}

/* ---- rows ----------------------------------------------------------------------------------------------------------------------- */

static bool same_setting(json_t *a, json_t *b) /* but for the method and the order */
{
    return !strcmp(string(a, "task"), string(b, "task")) && number(a, "experiences") == number(b, "experiences") &&
           number(a, "garbage") == number(b, "garbage") && !strcmp(string(a, "garbage_kind"), string(b, "garbage_kind"));
}

static int collect(void *user, size_t at, json_t *value, es_error *err)
{
    (void)at;
    if (!*string(value, "is"))
        return es_fail(err, ES_ERR_FORMAT, "not a line of an evaluation");
    if (!strcmp(string(value, "is"), "run"))
        json_array_append(user, value);
    return ES_OK;
}

static bool is_one_of(const char *label, const char *const *list, int n)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(label, list[i]))
            return true;
    return false;
}

/* The largest margin, and the largest harm, that all compared methods reach in this setting and order; 0: they do not all reach any, or
 * some are missing. */
static void common_reach(json_t *lines, json_t *like, const char *const *compared, int n, double *margin, double harm[N_HARM])
{
    size_t i;
    json_t *x;
    int seen = 0;
    *margin = INFINITY;
    for (int k = 0; k < N_HARM; k++)
        harm[k] = INFINITY;
    json_array_foreach(lines, i, x)
        if (same_setting(x, like) && number(x, "order") == number(like, "order") && is_one_of(string(x, "method"), compared, n)) {
            *margin = fmin(*margin, best_margin(x));
            for (int k = 0; k < N_HARM; k++)
                harm[k] = fmin(harm[k], most_harm(x, (harm_kind)k));
            seen++;
        }
    if (seen < n || n < 1) {
        *margin = 0;
        memset(harm, 0, N_HARM * sizeof *harm);
    }
}

static json_t *row_of(json_t *lines, json_t *x, const char *const *compared, int n_compared)
{
    static const char *const COPY[] = {"task", "method", "kind", "experiences", "garbage", "garbage_kind", "order", "rate", "parameters", "bytes", "seconds",
                                       "tokens", "context_tokens", "kl_off", "margin_off", "behaviour", "behaviour_base", "choice", "void", "broken", "refused", "path"};
    static const char *const LAST[] = {"gain", "margin", "margin_se", "kl", "dnll", "kl_chat", "dnll_chat"};
    json_t *path = json_object_get(x, "path"), *last = json_array_get(path, json_array_size(path) - 1), *row = json_object();
    if (!last)
        last = path; /* a run that broke before its first point: everything is 0 */
    for (size_t i = 0; i < sizeof COPY / sizeof *COPY; i++) {
        json_t *v = json_object_get(x, COPY[i]);
        if (v)
            json_object_set(row, COPY[i], v);
    }
    for (size_t i = 0; i < sizeof LAST / sizeof *LAST; i++)
        json_object_set_new(row, LAST[i], json_real(number(last, LAST[i])));
    json_object_set_new(row, "steps", json_integer((json_int_t)number(last, "step")));
    bool is_void = json_is_true(json_object_get(x, "void")) || json_is_true(json_object_get(x, "broken"));
    if (is_void) { /* degenerate text: no gain */
        json_object_set_new(row, "margin_voided", json_real(number(last, "margin")));
        json_object_set_new(row, "margin", json_real(0));
        json_object_set_new(row, "gain", json_real(0));
    }
    double harm = point_harm(last), margin, most[N_HARM], at[N_READ];
    json_object_set_new(row, "margin_per_sqrt_kl", harm > 0 ? json_real(number(row, "margin") / sqrt(harm)) : json_null());
    common_reach(lines, x, compared, n_compared, &margin, most);
    bool reaches = margin > 0 && read_at_margin(x, margin, at);
    json_object_set_new(row, "equal_margin", margin > 0 ? json_real(margin) : json_null());
    for (int k = 0; k < N_READ; k++)
        json_object_set_new(row, READ_AT[k], reaches ? json_real(at[k]) : json_null());
    for (int k = 0; k < N_HARM; k++) {
        bool there = most[k] > HARM_LEAST[k];
        json_object_set_new(row, EQUAL[k], there ? json_real(most[k]) : json_null());
        json_object_set_new(row, MARGIN_AT[k], there ? json_real(margin_at_harm(x, (harm_kind)k, most[k])) : json_null());
    }
    return row;
}

int es_eval_rows(const char *work, const char *const *compared, int n_compared, json_t **rows, es_error *err)
{
    json_t *lines = json_array(), *x, *out = json_array();
    size_t i;
    *rows = NULL;
    int rc = lines && out ? es_jsonl_each(work, collect, lines, err) : es_fail(err, ES_ERR_MEMORY, "no memory for rows");
    if (!rc)
        json_array_foreach(lines, i, x)
            json_array_append_new(out, row_of(lines, x, compared, n_compared));
    json_decref(lines);
    if (rc)
        json_decref(out);
    else
        *rows = out;
    return rc;
}

/* ---- tables --------------------------------------------------------------------------------------------------------------------- */

typedef struct picked { double *x; int n, missing; } picked;

static bool same_line(json_t *a, json_t *b, bool any_task)
{
    return (any_task || !strcmp(string(a, "task"), string(b, "task"))) && number(a, "experiences") == number(b, "experiences") &&
           number(a, "garbage") == number(b, "garbage") && !strcmp(string(a, "garbage_kind"), string(b, "garbage_kind")) &&
           !strcmp(string(a, "method"), string(b, "method"));
}

/* A member of the rows like this one; with any_task the tasks' means. inner: a member of that object, or NULL. */
static picked pick(json_t *rows, json_t *like, const char *inner, const char *key, bool any_task)
{
    picked p = {es_calloc(json_array_size(rows) + 1, sizeof(double)), 0, 0};
    size_t i, j;
    json_t *x, *y;
    json_array_foreach(rows, i, x) {
        if (!p.x || !same_line(x, like, any_task))
            continue;
        if (!any_task) {
            json_t *v = json_object_get(inner ? json_object_get(x, inner) : x, key);
            if (json_is_number(v))
                p.x[p.n++] = json_number_value(v);
            else
                p.missing++;
            continue;
        }
        bool first = true;
        double sum = 0;
        int n = 0;
        json_array_foreach(rows, j, y)
            if (same_line(y, x, false)) {
                json_t *v = json_object_get(inner ? json_object_get(y, inner) : y, key);
                first &= j >= i;
                if (json_is_number(v)) {
                    sum += json_number_value(v);
                    n++;
                }
            }
        if (!first)
            continue;
        if (n)
            p.x[p.n++] = sum / n;
        else
            p.missing++;
    }
    return p;
}

static void cell(json_t *rows, json_t *like, const char *inner, const char *key, const char *fmt, bool any_task, es_buf *out)
{
    picked p = pick(rows, like, inner, key, any_task);
    double mean, half = es_eval_t95(p.x, p.n, &mean);
    char text[2][40];
    if (!p.n)
        es_buf_str(out, " - |");
    else {
        snprintf(text[0], sizeof text[0], fmt, mean);
        snprintf(text[1], sizeof text[1], *fmt == '%' && fmt[1] == '+' ? "%.4f" : fmt, half);
        es_buf_printf(out, " %s", text[0]);
        if (isfinite(half))
            es_buf_printf(out, " ± %s", text[1]);
        if (p.missing)
            es_buf_printf(out, " (%d of %d)", p.n, p.n + p.missing);
        es_buf_str(out, " |");
    }
    free(p.x);
}

static bool seen_before(json_t *rows, size_t i, bool any_task)
{
    for (size_t j = 0; j < i; j++)
        if (same_line(json_array_get(rows, j), json_array_get(rows, i), any_task))
            return true;
    return false;
}

static void setting_text(json_t *x, bool any_task, es_buf *out)
{
    es_buf_printf(out, "| %s | %.0f |", any_task ? "all tasks" : string(x, "task"), number(x, "experiences"));
    if (number(x, "garbage") > 0)
        es_buf_printf(out, " %.0f %% %s |", 100 * number(x, "garbage"), string(x, "garbage_kind"));
    else
        es_buf_str(out, " none |");
    es_buf_printf(out, " `%s` |", string(x, "method"));
}

static int count_void(json_t *rows, json_t *like, bool any_task)
{
    size_t i;
    json_t *x;
    int n = 0;
    json_array_foreach(rows, i, x)
        n += same_line(x, like, any_task) && (json_is_true(json_object_get(x, "void")) || json_is_true(json_object_get(x, "broken")));
    return n;
}

static void effect_table(json_t *rows, bool any_task, es_buf *out)
{
    size_t i;
    json_t *x;
    es_buf_str(out, "| task | pairs | garbage | method | margin | gain | KL raw | d(nll) raw | KL chat | d(nll) chat | KL off-domain | margin / sqrt(KL) | "
                    "void | equal margin | KL there | d(nll) there | KL chat there | d(nll) chat there | margin at equal KL | at equal KL raw | at equal d(nll) raw |\n"
                    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    json_array_foreach(rows, i, x) {
        if (seen_before(rows, i, any_task))
            continue;
        setting_text(x, any_task, out);
        cell(rows, x, NULL, "margin", "%.3f", any_task, out);
        cell(rows, x, NULL, "gain", "%+.3f", any_task, out);
        cell(rows, x, NULL, "kl", "%.4f", any_task, out);
        cell(rows, x, NULL, "dnll", "%+.4f", any_task, out);
        cell(rows, x, NULL, "kl_chat", "%.4f", any_task, out);
        cell(rows, x, NULL, "dnll_chat", "%+.4f", any_task, out);
        cell(rows, x, NULL, "kl_off", "%.4f", any_task, out);
        cell(rows, x, NULL, "margin_per_sqrt_kl", "%.2f", any_task, out);
        es_buf_printf(out, " %d |", count_void(rows, x, any_task));
        cell(rows, x, NULL, "equal_margin", "%.3f", any_task, out);
        for (int k = 0; k < N_READ; k++)
            cell(rows, x, NULL, READ_AT[k], k % 2 ? "%+.4f" : "%.4f", any_task, out);
        for (int k = 0; k < N_HARM; k++)
            cell(rows, x, NULL, MARGIN_AT[k], "%.3f", any_task, out);
        es_buf_str(out, "\n");
    }
}

static void cost_table(json_t *rows, es_buf *out)
{
    size_t i;
    json_t *x;
    es_buf_str(out, "\n| task | pairs | garbage | method | rate | steps | parameters | MB | seconds | tokens trained | context tokens |\n|---|---|---|---|---|---|---|---|---|---|---|\n");
    json_array_foreach(rows, i, x) {
        if (seen_before(rows, i, false))
            continue;
        setting_text(x, false, out);
        es_buf_printf(out, " %g | %.0f | %.0f | %.0f |", number(x, "rate"), number(x, "steps"), number(x, "parameters"), number(x, "bytes") / 1e6);
        cell(rows, x, NULL, "seconds", "%.1f", false, out);
        cell(rows, x, NULL, "tokens", "%.0f", false, out);
        cell(rows, x, NULL, "context_tokens", "%.0f", false, out);
        es_buf_str(out, "\n");
    }
}

void es_eval_refused(json_t *rows, es_buf *out)
{
    size_t i;
    json_t *x;
    bool any = false;
    json_array_foreach(rows, i, x) {
        const char *why = json_string_value(json_object_get(x, "refused"));
        if (!why)
            continue;
        es_buf_printf(out, "%s- %s, `%s`, ", any ? "" : "\nRefused, so that nothing was learned:\n\n", string(x, "task"), string(x, "method"));
        if (json_object_get(x, "experiences"))
            es_buf_printf(out, "%.0f pairs, ", number(x, "experiences"));
        es_buf_printf(out, "order %.0f: %s\n", number(x, "order"), why);
        any = true;
    }
}

/* A member of an object that some rows have. */
static bool any_has(json_t *rows, const char *key)
{
    size_t i;
    json_t *x;
    json_array_foreach(rows, i, x)
        if (json_is_object(json_object_get(x, key)))
            return true;
    return false;
}

static void behaviour_table(json_t *rows, es_buf *out)
{
    static const char *const FMT[ES_BEHAVIOUR_FIELDS] = {"%.1f", "%.2f", "%.2f", "%.2f", "%.2f", "%.2f", "%.2f", "%.2f",
                                                         "%.2f", "%.2f", "%.2f", "%.2f", "%.2f", "%.2f", "%.2f", "%.0f"};
    size_t i;
    json_t *x;
    es_buf_str(out, "\nReplies at temperature 0; `base`: the base model's.\n\n| task | pairs | garbage | method |");
    for (int k = 0; k < ES_BEHAVIOUR_FIELDS; k++)
        es_buf_printf(out, " %s |", es_behaviour_name(k));
    es_buf_str(out, "\n|---|---|---|---|");
    for (int k = 0; k < ES_BEHAVIOUR_FIELDS; k++)
        es_buf_str(out, "---|");
    es_buf_str(out, "\n");
    for (int base = 1; base >= 0; base--)
        json_array_foreach(rows, i, x) {
            if (!json_object_get(x, "behaviour") || (base ? 0 : seen_before(rows, i, false)))
                continue;
            bool first = true;
            for (size_t j = 0; base && j < i; j++)
                first &= strcmp(string(json_array_get(rows, j), "task"), string(x, "task")) != 0 || !json_object_get(json_array_get(rows, j), "behaviour");
            if (!first)
                continue;
            if (base)
                es_buf_printf(out, "| %s | 0 | none | `base` |", string(x, "task"));
            else
                setting_text(x, false, out);
            for (int k = 0; k < ES_BEHAVIOUR_FIELDS; k++)
                if (base) {
                    json_t *b = json_object_get(x, "behaviour_base");
                    if (has(b, es_behaviour_name(k))) {
                        es_buf_str(out, " ");
                        char text[40];
                        snprintf(text, sizeof text, FMT[k], number(b, es_behaviour_name(k)));
                        es_buf_printf(out, "%s |", text);
                    } else
                        es_buf_str(out, " - |");
                } else
                    cell(rows, x, "behaviour", es_behaviour_name(k), FMT[k], false, out);
            es_buf_str(out, "\n");
        }
}

static void choice_table(json_t *rows, es_buf *out)
{
    size_t i;
    json_t *x, *c;
    const char *set;
    es_buf_str(out, "\nPaired change from the base model; in brackets the standard error over items.\n\n"
                    "| task | pairs | order | method | items | set | accuracy, base | accuracy | likelihood a token |\n|---|---|---|---|---|---|---|---|---|\n");
    json_array_foreach(rows, i, x)
        json_object_foreach(json_object_get(x, "choice"), set, c) {
            es_buf_printf(out, "| %s | %.0f | %.0f | `%s` | %.0f | %s |", string(x, "task"), number(x, "experiences"), number(x, "order"), string(x, "method"),
                          number(c, "items"), set);
            if (has(c, "accuracy"))
                es_buf_printf(out, " %.2f | %+.3f (%.3f) |", number(c, "base_accuracy"), number(c, "accuracy"), number(c, "accuracy_se"));
            else
                es_buf_str(out, " - | - |");
            es_buf_printf(out, " %+.4f (%.4f) |\n", number(c, "likelihood"), number(c, "likelihood_se"));
        }
}

int es_eval_table(json_t *rows, es_buf *out, es_error *err)
{
    bool several = false;
    size_t i;
    json_t *x;
    json_array_foreach(rows, i, x)
        several |= strcmp(string(x, "task"), string(json_array_get(rows, 0), "task")) != 0;
    es_buf_str(out, "Held-out pairs; mean ± half of the 95 % interval (t) over orders. KL and d(nll): nats a token, from the base model, on raw documents and on "
                    "assistant turns.\n\n");
    effect_table(rows, false, out);
    if (several) {
        es_buf_str(out, "\nMean ± half of the 95 % interval (t) over tasks.\n\n");
        effect_table(rows, true, out);
    }
    cost_table(rows, out);
    es_eval_refused(rows, out);
    if (any_has(rows, "behaviour"))
        behaviour_table(rows, out);
    if (any_has(rows, "choice"))
        choice_table(rows, out);
    return out->failed ? es_fail(err, ES_ERR_MEMORY, "no memory for a table") : ES_OK;
}

/* ---- ratios ---------------------------------------------------------------------------------------------------------------------- */

/* Sums over a resample of tasks and of orders within them. own and other: [task][order], NAN where there is none. */
typedef struct grid { int tasks, orders; double *own, *other; } grid;

static double ratio_of(const grid *g, es_rng *rng)
{
    double own = 0, other = 0;
    for (int i = 0; i < g->tasks; i++) {
        int t = rng ? (int)es_rng_below(rng, (uint64_t)g->tasks) : i;
        for (int j = 0; j < g->orders; j++) {
            size_t at = (size_t)t * (size_t)g->orders + (rng ? (size_t)es_rng_below(rng, (uint64_t)g->orders) : (size_t)j);
            if (isfinite(g->own[at]) && isfinite(g->other[at])) {
                own += g->own[at];
                other += g->other[at];
            }
        }
    }
    return own / other;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static json_t *finite_or_null(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static void add_ratio(json_t *out, json_t *like, const char *label, const char *against, const char *what, const grid *g, uint64_t seed)
{
    enum { DRAWS = 2000 };
    double *draw = es_calloc(DRAWS, sizeof *draw), sum[2] = {0};
    es_rng rng;
    es_rng_seed(&rng, seed);
    int n = 0, cells = 0;
    for (int i = 0; i < g->tasks * g->orders; i++)
        if (isfinite(g->own[i]) && isfinite(g->other[i])) {
            sum[0] += g->own[i];
            sum[1] += g->other[i];
            cells++;
        }
    for (int i = 0; draw && cells && i < DRAWS; i++) {
        double r = ratio_of(g, &rng);
        if (!isnan(r))
            draw[n++] = r;
    }
    if (n)
        qsort(draw, (size_t)n, sizeof *draw, by_value);
    json_t *line = json_pack("{s:s,s:s,s:s,s:O,s:O,s:i,s:f,s:f}", "what", what, "method", label, "against", against, "experiences", json_object_get(like, "experiences"),
                             "garbage", json_object_get(like, "garbage"), "runs", cells, "mean", cells ? sum[0] / cells : 0.0, "mean_against",
                             cells ? sum[1] / cells : 0.0);
    json_object_set_new(line, "garbage_kind", *string(like, "garbage_kind") ? json_string(string(like, "garbage_kind")) : json_null());
    json_object_set_new(line, "ratio", finite_or_null(cells ? ratio_of(g, NULL) : NAN));
    json_object_set_new(line, "low", finite_or_null(n ? draw[n * 25 / 1000] : NAN));
    json_object_set_new(line, "high", finite_or_null(n ? draw[n * 975 / 1000] : NAN));
    json_array_append_new(out, line);
    free(draw);
}

static json_t *find_row(json_t *rows, json_t *like, const char *task, const char *method, int order)
{
    size_t i;
    json_t *x;
    json_array_foreach(rows, i, x)
        if (!strcmp(string(x, "task"), task) && !strcmp(string(x, "method"), method) && (int)number(x, "order") == order &&
            number(x, "experiences") == number(like, "experiences") && number(x, "garbage") == number(like, "garbage") &&
            !strcmp(string(x, "garbage_kind"), string(like, "garbage_kind")))
            return x;
    return NULL;
}

static double member_of(json_t *x, const char *key)
{
    json_t *v = json_object_get(x, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

int es_eval_ratios(json_t *rows, const char *label, const char *const *others, int n_others, uint64_t seed, json_t **out, es_error *err)
{
    static const struct { const char *what; bool more; } WHAT[] = {
        {"dnll_at_equal", false}, {"dnll_chat_at_equal", false}, {"kl_at_equal", false}, {"kl_chat_at_equal", false}, {"margin_at_equal_kl", true},
        {"margin_at_equal_kl_documents", true}, {"margin_at_equal_dnll", true}};
    size_t i, j;
    json_t *x, *tasks = json_array();
    int orders = 0, rc = ES_OK;
    *out = json_array();
    json_array_foreach(rows, i, x) {
        bool known = false;
        for (j = 0; j < json_array_size(tasks); j++)
            known |= json_equal(json_array_get(tasks, j), json_object_get(x, "task"));
        if (!known)
            json_array_append(tasks, json_object_get(x, "task"));
        orders = fmax(orders, number(x, "order") + 1);
    }
    size_t cells = json_array_size(tasks) * (size_t)orders;
    grid g = {(int)json_array_size(tasks), orders, es_calloc(cells + 1, sizeof *g.own), es_calloc(cells + 1, sizeof *g.other)};
    if (!g.own || !g.other)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for ratios");
    json_array_foreach(rows, i, x) {
        bool first = !strcmp(string(x, "method"), label);
        for (j = 0; first && j < i; j++)
            first = !same_line(json_array_get(rows, j), x, true);
        if (rc || !first)
            continue;
        for (size_t w = 0; w < sizeof WHAT / sizeof *WHAT; w++) {
            for (int t = 0; t < g.tasks; t++) {
                const char *task = json_string_value(json_array_get(tasks, (size_t)t)), *best = NULL;
                double best_mean = 0;
                for (int k = 0; k < n_others; k++) { /* the best of the others on this task, by its mean over orders */
                    double sum = 0;
                    int n = 0;
                    for (int o = 0; o < orders; o++) {
                        double v = member_of(find_row(rows, x, task, others[k], o), WHAT[w].what);
                        if (isfinite(v)) {
                            sum += v;
                            n++;
                        }
                    }
                    if (n && (!best || (WHAT[w].more ? sum / n > best_mean : sum / n < best_mean))) {
                        best = others[k];
                        best_mean = sum / n;
                    }
                }
                for (int o = 0; o < orders; o++) {
                    size_t at = (size_t)t * (size_t)orders + (size_t)o;
                    g.own[at] = member_of(find_row(rows, x, task, label, o), WHAT[w].what);
                    g.other[at] = best ? member_of(find_row(rows, x, task, best, o), WHAT[w].what) : NAN;
                }
            }
            add_ratio(*out, x, label, "best of the others", WHAT[w].what, &g, seed);
        }
    }
    /* What garbage leaves of a method's own clean margin, at the largest harm that both paths have. */
    json_array_foreach(rows, i, x) {
        if (rc || number(x, "garbage") <= 0 || seen_before(rows, i, true) ||
            (strcmp(string(x, "method"), label) && !is_one_of(string(x, "method"), others, n_others)))
            continue;
        json_t *clean = json_pack("{s:O,s:i}", "experiences", json_object_get(x, "experiences"), "garbage", 0);
        for (int t = 0; t < g.tasks; t++)
            for (int o = 0; o < orders; o++) {
                const char *task = json_string_value(json_array_get(tasks, (size_t)t));
                json_t *bad = find_row(rows, x, task, string(x, "method"), o), *good = find_row(rows, clean, task, string(x, "method"), o);
                size_t at = (size_t)t * (size_t)orders + (size_t)o;
                double harm = bad && good ? fmin(most_harm(bad, HARM_KL), most_harm(good, HARM_KL)) : NAN;
                g.own[at] = bad && good ? margin_at_harm(bad, HARM_KL, harm) : NAN;
                g.other[at] = bad && good ? margin_at_harm(good, HARM_KL, harm) : NAN;
            }
        json_decref(clean);
        add_ratio(*out, x, string(x, "method"), "itself, clean", "margin_kept", &g, seed);
    }
    free(g.own);
    free(g.other);
    json_decref(tasks);
    if (rc) {
        json_decref(*out);
        *out = NULL;
    }
    return rc;
}

int es_eval_ratios_text(json_t *ratios, es_buf *out, es_error *err)
{
    size_t i;
    json_t *x;
    es_buf_str(out, "\nRatios of sums over tasks and orders, 95 % intervals by bootstrap over both.\n\n"
                    "| pairs | garbage | method | against | what | runs | mean | against | ratio | interval |\n|---|---|---|---|---|---|---|---|---|---|\n");
    json_array_foreach(ratios, i, x) {
        es_buf_printf(out, "| %.0f | %.0f %% %s | `%s` | %s | %s | %.0f | %.4f | %.4f |", number(x, "experiences"), 100 * number(x, "garbage"),
                      string(x, "garbage_kind"), string(x, "method"), string(x, "against"), string(x, "what"), number(x, "runs"), number(x, "mean"),
                      number(x, "mean_against"));
        if (has(x, "ratio"))
            es_buf_printf(out, " %.2f |", number(x, "ratio"));
        else
            es_buf_str(out, " - |");
        if (has(x, "low") && has(x, "high"))
            es_buf_printf(out, " %.2f to %.2f |\n", number(x, "low"), number(x, "high"));
        else
            es_buf_str(out, " - |\n");
    }
    return out->failed ? es_fail(err, ES_ERR_MEMORY, "no memory for a table") : ES_OK;
}
