/* basis report: a basis with the evidence for each of its features, for people and for tables. */
#include "cmd_label.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXAMPLES = 2, TOKENS = 10, EACH_SIDE = 12 }; /* tokens of an example before and after its peak */

typedef struct line { /* what is told of one feature */
    int feature, n_example;
    float lo, hi, max[EXAMPLES];
    es_label label;          /* text NULL: none */
    es_label_score score;
    bool scored, carded;
    double density, most;
    es_buf tokens, example[EXAMPLES]; /* tokens it fires on and promotes; the peak in double angle brackets */
} line;

static void line_free(line *l)
{
    es_label_free(&l->label);
    es_buf_free(&l->tokens);
    for (int i = 0; i < EXAMPLES; i++)
        es_buf_free(&l->example[i]);
}

static void add_token(es_buf *out, const es_model *m, int32_t id)
{
    size_t n = 0;
    const char *s = es_token_bytes(m, id, &n);
    es_text_show(out, s, n, true);
}

static void add_example(es_buf *out, const es_model *m, const es_example *e)
{
    int from = e->peak > EACH_SIDE ? e->peak - EACH_SIDE : 0, to = e->peak + EACH_SIDE < e->n ? e->peak + EACH_SIDE : e->n - 1;
    es_buf text = {0};
    for (int t = from; t <= to; t++) { /* bytes of neighbouring tokens make whole characters */
        size_t n = 0;
        const char *s = es_token_bytes(m, e->id[t], &n);
        if (t == e->peak)
            es_buf_str(&text, "\xc2\xab");
        es_buf_add(&text, s, n);
        if (t == e->peak)
            es_buf_str(&text, "\xc2\xbb");
    }
    es_text_show(out, text.data ? text.data : "", text.len, true);
    out->failed = out->failed || text.failed;
    es_buf_free(&text);
}

static int line_of(line *l, labels_open *o, const es_basis *b, int i, es_error *err)
{
    *l = (line){.feature = b->feature[i], .lo = b->lo[i], .hi = b->hi[i], .density = NAN, .most = NAN};
    if (l->feature < 0 || l->feature >= o->f.n)
        return ES_OK;
    int rc = es_workspace_label_get(o->w, o->f.hash, l->feature, &l->label, err);
    if (rc == ES_OK && *l->label.text)
        l->scored = es_workspace_score_get(o->w, o->f.hash, l->feature, l->label.text, &l->score, NULL) == ES_OK;
    rc = rc == ES_ERR_MISSING ? ES_OK : rc;
    es_feature_card c;
    if (rc == ES_OK && o->f.atlas && (rc = es_atlas_card(o->f.atlas, l->feature, &c, err)) == ES_OK) {
        l->carded = true;
        l->density = c.density;
        l->most = (double)c.max;
        for (int t = 0; t < c.n_promoted && t < TOKENS; t++) {
            es_buf_str(&l->tokens, t ? " \xc2\xb7 " : "");
            add_token(&l->tokens, o->m, c.promoted[t]);
        }
        for (; l->n_example < EXAMPLES && l->n_example < c.n_example; l->n_example++) {
            l->max[l->n_example] = c.example[l->n_example].max;
            add_example(&l->example[l->n_example], o->m, &c.example[l->n_example]);
        }
    }
    return rc;
}

static const char *text(const es_buf *b)
{
    return b->data ? b->data : "";
}

/* ---- JSONL -------------------------------------------------------------------------------------------------------------------------- */

static void as_jsonl(es_buf *out, const line *l, const es_basis *b)
{
    json_t *examples = json_array();
    for (int i = 0; i < l->n_example; i++)
        json_array_append_new(examples, json_pack("{s:o,s:f}", "text", app_json_text(text(&l->example[i]), l->example[i].len), "max", (double)l->max[i]));
    json_t *v = json_pack("{s:s,s:i,s:i,s:f,s:f,s:s,s:s,s:s,s:s,s:i,s:i,s:s,s:o,s:o}", "basis", b->name, "version", b->version, "feature", l->feature, "lo", (double)l->lo, "hi",
                          (double)l->hi, "label", l->label.text ? l->label.text : "", "tags", l->label.tags ? l->label.tags : "", "note", l->label.note ? l->label.note : "",
                          "author", l->label.author, "rating", l->label.rating, "confidence", l->label.confidence, "time", l->label.time, "promoted",
                          app_json_text(text(&l->tokens), l->tokens.len), "examples", examples);
    if (v && l->scored)
        json_object_set_new(v, "score", json_pack("{s:f,s:f,s:f,s:i,s:s,s:s}", "value", l->score.value, "lo", l->score.lo, "hi", l->score.hi, "n", l->score.n, "kind",
                                                  l->score.kind, "judge", l->score.judge));
    if (v && l->carded) {
        json_object_set_new(v, "density", json_real(l->density));
        json_object_set_new(v, "max", json_real(l->most));
    }
    es_buf_json_line(out, v, JSON_REAL_PRECISION(9));
    json_decref(v);
}

/* ---- CSV (RFC 4180) ------------------------------------------------------------------------------------------------------------------ */

static void csv_text(es_buf *out, const char *s, bool last)
{
    es_buf_str(out, "\"");
    for (; *s; s++) {
        if (*s == '"')
            es_buf_str(out, "\"");
        es_buf_add(out, s, 1);
    }
    es_buf_str(out, last ? "\"\r\n" : "\",");
}

static void csv_number(es_buf *out, bool there, double x)
{
    if (there)
        es_buf_printf(out, "%.9g", x);
    es_buf_str(out, ",");
}

static void as_csv(es_buf *out, const line *l)
{
    es_buf_printf(out, "%d,%.9g,%.9g,", l->feature, (double)l->lo, (double)l->hi);
    csv_text(out, l->label.text ? l->label.text : "", false);
    csv_text(out, l->label.tags ? l->label.tags : "", false);
    csv_text(out, l->label.author, false);
    csv_number(out, l->label.rating > 0, l->label.rating);
    csv_number(out, l->label.confidence > 0, l->label.confidence);
    csv_number(out, l->scored, l->score.value);
    csv_number(out, l->scored, l->score.lo);
    csv_number(out, l->scored, l->score.hi);
    csv_number(out, l->scored, l->score.n);
    csv_number(out, l->carded, l->density);
    csv_number(out, l->carded, l->most);
    csv_text(out, text(&l->tokens), false);
    for (int i = 0; i < EXAMPLES; i++)
        csv_text(out, text(&l->example[i]), i == EXAMPLES - 1);
}

/* ---- Markdown ------------------------------------------------------------------------------------------------------------------------ */

static void md_text(es_buf *out, const char *s)
{
    for (; *s; s++) {
        if (strchr("\\`*_{}[]<>#|~&!", *s))
            es_buf_str(out, "\\");
        es_buf_add(out, *s == '\n' || *s == '\r' ? " " : s, 1);
    }
}

static void as_markdown(es_buf *out, const line *l)
{
    es_buf_printf(out, "## %d", l->feature);
    if (l->label.text && *l->label.text) {
        es_buf_str(out, " ");
        md_text(out, l->label.text);
    }
    es_buf_str(out, "\n\n");
    if (l->label.text && *l->label.author) {
        es_buf_str(out, "- label by ");
        md_text(out, l->label.author);
        es_buf_printf(out, ", %.10s", l->label.time);
        if (l->label.rating)
            es_buf_printf(out, ", rated %d of 5", l->label.rating);
        if (l->label.confidence)
            es_buf_printf(out, ", %d %% sure", l->label.confidence);
        es_buf_str(out, "\n");
    }
    if (l->scored) {
        es_buf_printf(out, "- score %.2f (%.2f to %.2f, %d answers, %s test by ", l->score.value, l->score.lo, l->score.hi, l->score.n, l->score.kind);
        md_text(out, l->score.judge);
        es_buf_str(out, ")\n");
    }
    if (l->label.tags && *l->label.tags) {
        es_buf_str(out, "- tags: ");
        md_text(out, l->label.tags);
        es_buf_str(out, "\n");
    }
    es_buf_printf(out, "- bounds %.4g to %.4g\n", (double)l->lo, (double)l->hi);
    if (l->carded) {
        es_buf_printf(out, "- fires on %.3g %% of tokens, largest activation %.3g\n- promotes: ", 100 * l->density, l->most);
        md_text(out, text(&l->tokens));
        es_buf_str(out, "\n");
    }
    for (int i = 0; i < l->n_example; i++) {
        es_buf_printf(out, "- %.1f: ", (double)l->max[i]);
        md_text(out, text(&l->example[i]));
        es_buf_str(out, "\n");
    }
    if (l->label.note && *l->label.note) {
        es_buf_str(out, "\n");
        for (const char *s = l->label.note; *s;) { /* a quotation, line by line */
            size_t n = strcspn(s, "\n");
            char *one = strndup(s, n);
            es_buf_str(out, "> ");
            md_text(out, one ? one : "");
            es_buf_str(out, "\n");
            free(one);
            s += n + (s[n] == '\n');
        }
    }
    es_buf_str(out, "\n");
}

static int write_all(es_buf *out, labels_open *o, const es_basis *b, const char *format, es_error *err)
{
    int rc = ES_OK;
    if (*format == 'c')
        es_buf_str(out, "feature,lo,hi,label,tags,author,rating,confidence,score,score_lo,score_hi,answers,density,max,promoted,example_1,example_2\r\n");
    if (*format == 'm') {
        es_buf_str(out, "# ");
        md_text(out, b->name);
        es_buf_printf(out, ", version %d\n\n%d features of ", b->version, b->n);
        md_text(out, b->dictionary);
        es_buf_printf(out, ", layer %d. Model `%.12s`, dictionary `%.12s`.\n\n", b->layer, b->model_hash, b->dictionary_hash);
    }
    for (int i = 0; i < b->n && rc == ES_OK; i++) {
        line l;
        rc = line_of(&l, o, b, i, err);
        if (rc == ES_OK && *format == 'j')
            as_jsonl(out, &l, b);
        else if (rc == ES_OK && *format == 'c')
            as_csv(out, &l);
        else if (rc == ES_OK)
            as_markdown(out, &l);
        line_free(&l);
    }
    return rc == ES_OK && out->failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory for the report") : rc;
}

int basis_report(int argc, char **argv)
{
    const char *format = "md", *path = "-";
    const opt table[] = {
        {"format", "F", OPT_TEXT, &format, 0, 0, "md (default), csv or jsonl", NULL},
        {"out", "FILE", OPT_TEXT, &path, 0, 0, "where to (default: standard output)", NULL},
        {0},
    };
    static const command_help help = {"basis report", "NAME[@VERSION]|FILE",
                                      "The features of a basis with bounds, labels, authors, scores of blind tests, density, promoted tokens and two examples each (the peak\n"
                                      "between \xc2\xab and \xc2\xbb).",
                                      "  espalier basis report brief --out brief.md\n  espalier basis report brief --format csv --out brief.csv", 1, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (strcmp(format, "md") && strcmp(format, "csv") && strcmp(format, "jsonl"))
        return opts_usage_error("basis report", "--format is md, csv or jsonl, not '%s'", format);
    es_error err = {0};
    labels_open o;
    es_basis b = {0};
    es_buf out = {0};
    rc = labels_open_all(&o, &err);
    if (rc == ES_OK)
        rc = app_basis(&b, &o.f, o.w, argv[1], &err);
    if (rc == ES_OK)
        rc = write_all(&out, &o, &b, format, &err);
    if (rc == ES_OK && strcmp(path, "-"))
        rc = es_file_write(path, text(&out), out.len, &err);
    int code = rc == ES_OK ? EXIT_DONE : app_fail(&err);
    if (rc == ES_OK && !strcmp(path, "-")) {
        fwrite(text(&out), 1, out.len, stdout);
        code = app_flush();
    } else if (rc == ES_OK && the_app.json) {
        code = app_print_json(json_pack("{s:s,s:s,s:i}", "file", path, "format", format, "features", b.n));
    } else if (rc == ES_OK) {
        app_note("%d features written to %s", b.n, path);
    }
    es_buf_free(&out);
    es_basis_free(&b);
    labels_close(&o);
    return code;
}
