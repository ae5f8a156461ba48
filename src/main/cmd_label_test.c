/* label test: the blind test of a label, for people, programs and the model itself. */
#include "cmd_label.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void window_text(const es_model *m, const es_blind_window *w, es_buf *out)
{
    es_buf text = {0};
    for (int i = 0; i < w->n; i++) {
        size_t n = 0;
        const char *s = es_token_bytes(m, w->id[i], &n);
        es_buf_add(&text, s, n);
    }
    es_text_show(out, text.data ? text.data : "", text.len, false);
    out->failed = out->failed || text.failed;
    es_buf_free(&text);
}

static json_t *windows_json(const es_model *m, const es_blind *b, bool truth)
{
    json_t *list = json_array();
    for (int i = 0; i < b->n; i++) {
        const es_blind_window *w = &b->window[i];
        es_buf text = {0};
        window_text(m, w, &text);
        json_t *v = json_pack("{s:i,s:o}", "n", i + 1, "text", app_json_text(text.data ? text.data : "", text.len));
        if (truth)
            json_object_update_new(v, json_pack("{s:b,s:b,s:i,s:f,s:f}", "active", w->active, "near", w->near, "source", w->source, "activation", (double)w->activation,
                                                "quantile", (double)w->quantile));
        json_array_append_new(list, v);
        es_buf_free(&text);
    }
    return list;
}

/* Numbers of windows, whatever stands between them: "1 4 7", "[1,4,7]", "none". */
static int read_answer(const char *s, int n, unsigned *out, es_error *err)
{
    *out = 0;
    while (*s) {
        if (*s < '0' || *s > '9') {
            if (!strchr(" ,;[]\t\r\nnoe", *s))
                return es_fail(err, ES_ERR_USAGE, "'%.40s' is no answer: say the numbers of the windows, as in 1 4 7, or none", s);
            s++;
            continue;
        }
        char *end;
        long v = strtol(s, &end, 10);
        if (v < 1 || v > n)
            return es_fail(err, ES_ERR_USAGE, "there is no window %ld: they are 1 to %d", v, n);
        *out |= 1u << (v - 1);
        s = end;
    }
    return ES_OK;
}

/* 1: an answer came; 0: the input ended without one, which is no error. */
static int ask(const labels_open *o, const es_blind *b, const char *label, unsigned *answer, es_error *err)
{
    if (the_app.json) {
        int code = app_print_json(json_pack("{s:i,s:s,s:I,s:o}", "feature", b->feature, "label", label, "seed", (json_int_t)b->seed, "windows", windows_json(o->m, b, false)));
        if (code != EXIT_DONE)
            return es_fail(err, ES_ERR_IO, "the test cannot be written");
    } else {
        char shown[400];
        printf("%d: %s\n\n", b->feature, app_shown(label, shown, sizeof shown));
        for (int i = 0; i < b->n; i++) {
            es_buf text = {0};
            window_text(o->m, &b->window[i], &text);
            printf("%3d  %s\n", i + 1, text.data ? text.data : "");
            es_buf_free(&text);
        }
        printf("\nWhich of them activate it? (numbers; none) ");
        fflush(stdout);
    }
    char line[400];
    if (!fgets(line, sizeof line, stdin))
        return 0;
    int rc = read_answer(line, b->n, answer, err);
    return rc ? rc : 1;
}

static json_t *result_json(const es_model *m, const es_blind *b, const char *label, unsigned answer, const es_label_score *s, const double *odds)
{
    json_t *said = json_array(), *truth = json_array();
    for (int i = 0; i < b->n; i++) {
        if (answer >> i & 1)
            json_array_append_new(said, json_integer(i + 1));
        if (b->window[i].active)
            json_array_append_new(truth, json_integer(i + 1));
    }
    json_t *windows = windows_json(m, b, true);
    for (int i = 0; i < b->n && odds; i++)
        json_object_set_new(json_array_get(windows, (size_t)i), "odds", json_real(odds[i]));
    return json_pack("{s:i,s:s,s:I,s:s,s:o,s:o,s:f,s:f,s:f,s:i,s:i,s:i,s:i,s:i,s:o}", "feature", b->feature, "label", label, "seed", (json_int_t)b->seed, "judge", s->judge,
                     "said", said, "active", truth, "score", s->value, "lo", s->lo, "hi", s->hi, "n", s->n, "hit", s->hit, "miss", s->miss, "rejection", s->rejection, "alarm",
                     s->alarm, "windows", windows);
}

static void print_result(const es_blind *b, unsigned answer, const es_label_score *s)
{
    for (int i = 0; i < b->n; i++) {
        const es_blind_window *w = &b->window[i];
        bool said = answer >> i & 1;
        printf("%3d  %-5s  ", i + 1, said == w->active ? "right" : "wrong");
        if (w->active)
            printf("activates it: %.2f, quantile %.2f\n", (double)w->activation, (double)w->quantile);
        else
            printf("does not%s\n", w->near ? ": a near miss" : "");
    }
    printf("%d of %d right: score %.2f (%.2f to %.2f)\n", s->hit + s->rejection, s->n, s->value, s->lo, s->hi);
}

typedef struct wish { const char *answers, *author; uint64_t seed; bool automatic, keep; } wish;

static int make_test(labels_open *o, es_blind *b, int feature, uint64_t seed, es_error *err)
{
    es_blind_pool *p = NULL;
    if (!o->f.atlas)
        return es_fail(err, ES_ERR_MISSING, "there is no atlas beside the dictionary, so there are no windows of text: see espalier atlas");
    int rc = es_blind_gather(&p, o->f.atlas, o->f.dictionary, feature, seed, err);
    if (rc == ES_OK)
        rc = es_blind_make(b, p, o->m, o->f.dictionary, the_app.threads, &app_cancel, err);
    es_blind_pool_free(p);
    return rc;
}

/* One feature's test. results NULL: print. */
static int test_one(labels_open *o, int feature, const wish *x, json_t *results, es_error *err)
{
    es_label l = {0};
    es_blind b;
    es_label_score s;
    double odds[ES_BLIND];
    char shown[200];
    unsigned answer = 0;
    int rc = es_workspace_label_get(o->w, o->f.hash, feature, &l, err);
    if (rc == ES_ERR_MISSING || (rc == ES_OK && !*l.text))
        rc = es_fail(err, ES_ERR_MISSING, "feature %d has no label to test: espalier label add", feature);
    if (rc == ES_OK)
        rc = make_test(o, &b, feature, x->seed, err);
    bool answered = rc == ES_OK;
    if (rc == ES_OK && x->automatic) {
        rc = es_blind_judge(&b, o->m, l.text, the_app.threads, &answer, odds, &app_cancel, err);
    } else if (rc == ES_OK && x->answers) {
        rc = read_answer(x->answers, b.n, &answer, err);
    } else if (rc == ES_OK) {
        int got = ask(o, &b, l.text, &answer, err);
        rc = got < 0 ? got : ES_OK;
        answered = got > 0;
    }
    if (rc == ES_OK && answered) {
        es_blind_score(&b, answer, &s);
        if (x->automatic)
            snprintf(s.judge, sizeof s.judge, "auto:%.58s", es_model_get_info(o->m)->name);
        else
            snprintf(s.judge, sizeof s.judge, "%.63s", x->author ? x->author : app_author());
        s.judge[es_utf8_whole(s.judge, strlen(s.judge))] = 0;
        if (x->keep)
            rc = es_workspace_score_add(o->w, o->f.hash, feature, l.text, &s, err);
        if (rc == ES_OK && results)
            json_array_append_new(results, result_json(o->m, &b, l.text, answer, &s, x->automatic ? odds : NULL));
        else if (rc == ES_OK && x->automatic)
            printf("%7d  %.2f (%.2f to %.2f)  %s\n", feature, s.value, s.lo, s.hi, app_shown(l.text, shown, sizeof shown));
        else if (rc == ES_OK)
            print_result(&b, answer, &s);
    }
    es_label_free(&l);
    return rc;
}

int label_test(int argc, char **argv)
{
    wish x = {.keep = true};
    bool seeded = false;
    const opt table[] = {
        {"seed", "N", OPT_COUNT, &x.seed, 0, 9e15, "which windows and in which order (default: new ones each time)", &seeded},
        {"answers", "LIST", OPT_TEXT, &x.answers, 0, 0, "the numbers of the windows that activate it, instead of asking; needs --seed", NULL},
        {"auto", NULL, OPT_FLAG, &x.automatic, 0, 0, "the model answers; several features may be named", NULL},
        {"author", "NAME", OPT_TEXT, &x.author, 0, 0, "who answers (a program: auto:NAME); default: the configured name, else the account's", NULL},
        {"dry", NULL, OPT_NOFLAG, &x.keep, 0, 0, "the score is told, not kept", NULL},
        {0},
    };
    static const command_help help = {"label test", "FEATURE...",
                                      "The blind test of a label: ten windows of text, five of which activate the feature at strengths from all over its range; the others do\n"
                                      "not, and some of them are near misses. Say which do, by their numbers on one line. The label's score is the balanced accuracy, with a\n"
                                      "95 % interval; all tests of a text count together. With --json the test is one line, an answer is read from standard input (\"1 4 7\" or\n"
                                      "[1,4,7]), and the result is the next line; without an answer nothing is kept.",
                                      "  espalier label test 1234\n  espalier label test 1234 --seed 7 --answers \"1 4 7\"\n  espalier label test 12 34 56 --auto --json", 1, -1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (x.automatic && x.answers)
        return opts_usage_error("label test", "--auto and --answers do not go together");
    if (x.answers && !seeded)
        return opts_usage_error("label test", "--answers are to the windows of a --seed");
    if (n > 1 && !x.automatic)
        return opts_usage_error("label test", "several features go with --auto only");
    if (x.author && strlen(x.author) > ES_AUTHOR_BYTES)
        return opts_usage_error("label test", "an author's name has at most %d bytes", ES_AUTHOR_BYTES);
    if (!seeded) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        x.seed = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    }
    es_error err = {0};
    labels_open o;
    json_t *results = the_app.json ? json_array() : NULL;
    rc = labels_open_all(&o, &err);
    for (int i = 1; i <= n && rc == ES_OK; i++) {
        int feature = 0;
        rc = labels_feature(&o, argv[i], &feature, &err);
        if (rc == ES_OK)
            rc = test_one(&o, feature, &x, results, &err);
    }
    int code = rc == ES_OK ? EXIT_DONE : app_fail(&err);
    if (rc == ES_OK && results && n > 1) {
        code = app_print_json(json_incref(results));
    } else if (rc == ES_OK && results) {
        json_t *one = json_array_get(results, 0);
        code = one ? app_print_json(json_incref(one)) : EXIT_DONE;
    } else if (rc == ES_OK) {
        code = app_flush();
    }
    json_decref(results);
    labels_close(&o);
    return code;
}
