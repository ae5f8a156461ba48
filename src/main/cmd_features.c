/* features, label: browsing a dictionary and naming what is in it, without the workbench. */
#include "app.h"
#include "autolabel.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct opened {
    es_model *m;
    app_features f;
    es_workspace *w;
    char **labels;
    es_error err;
} opened;

static int open_all(opened *o)
{
    int rc = app_model(&o->m, &o->err);
    if (rc == ES_OK)
        rc = app_features_open(&o->f, o->m, &o->err);
    return rc;
}

static int open_workspace(opened *o)
{
    int rc = open_all(o);
    return rc == ES_OK ? app_workspace_for(&o->w, &o->f, o->m, &o->err) : rc;
}

static void close_all(opened *o)
{
    app_labels_free(o->labels, o->f.n);
    es_workspace_close(o->w);
    app_features_close(&o->f);
    es_model_free(o->m);
}

static int feature_number(const char *s, int n, int *out, es_error *err)
{
    char *end;
    long v = strtol(s, &end, 10);
    if (end == s || *end || v < 0 || v >= n)
        return es_fail(err, ES_ERR_MISSING, "there is no feature '%s': the dictionary has 0 to %d", s, n - 1);
    *out = (int)v;
    return ES_OK;
}

/* One feature as a line or an object: number, density, strongest activation, label, tokens it fires on. */
typedef struct lister {
    opened *o;
    json_t *list; /* NULL: print lines */
} lister;

static void list_one(lister *l, int feature, const char *key, double value)
{
    opened *o = l->o;
    const char *label = o->labels ? o->labels[feature] : NULL;
    double density = o->f.density ? (double)o->f.density[feature] : NAN, most = o->f.atlas ? (double)es_atlas_max(o->f.atlas)[feature] : NAN;
    es_buf tokens = {0};
    if (o->f.atlas)
        es_atlas_tokens_text(o->f.atlas, o->m, feature, &tokens, NULL);
    if (l->list) {
        json_t *v = json_pack("{s:i,s:s?,s:o,s:o,s:o}", "feature", feature, "label", label, "density", isfinite(density) ? json_real(density) : json_null(),
                              "max", isfinite(most) ? json_real(most) : json_null(), "tokens", app_json_text(tokens.data ? tokens.data : "", tokens.len));
        if (key)
            json_object_set_new(v, key, json_real(value));
        json_array_append_new(l->list, v);
    } else {
        char a[120], b[160];
        printf("%7d  ", feature);
        if (key)
            printf("%9.3f  ", value);
        if (o->f.density)
            printf("%7.3f %%  ", 100 * density);
        printf("%-36s  %s\n", app_shown(label ? label : "", a, 37), app_shown(tokens.data ? tokens.data : "", b, 60));
    }
    es_buf_free(&tokens);
}

/* ---- list, search ---------------------------------------------------------------------------------------------------------- */

static const float *sort_key;

static int by_key(const void *a, const void *b)
{
    int i = *(const int *)a, j = *(const int *)b;
    return sort_key[i] < sort_key[j] ? 1 : sort_key[i] > sort_key[j] ? -1 : i - j;
}

static int features_list(int argc, char **argv)
{
    const char *sort = "number";
    int limit = 50, from = 0;
    bool labelled = false;
    const opt table[] = {
        {"sort", "KEY", OPT_TEXT, &sort, 0, 0, "number (default), density or max", NULL},
        {"limit", "N", OPT_INT, &limit, 0, 1 << 24, "so many (default 50); 0: all", NULL},
        {"from", "N", OPT_INT, &from, 0, 1 << 24, "leave out the first N", NULL},
        {"labelled", NULL, OPT_FLAG, &labelled, 0, 0, "only those with a label", NULL},
        {0},
    };
    static const command_help help = {"features list", "", "The features of the dictionary: number, density, label, tokens they fire on and promote.",
                                      "  espalier features list --labelled --limit 0\n  espalier features list --sort density --json", 0, 0};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    bool density = !strcmp(sort, "density"), most = !strcmp(sort, "max");
    if (!density && !most && strcmp(sort, "number"))
        return opts_usage_error("features list", "--sort is number, density or max, not '%s'", sort);
    opened o = {0};
    int *order = NULL;
    rc = open_all(&o);
    if (rc == ES_OK && ((density && !o.f.density) || (most && !o.f.atlas)))
        rc = es_fail(&o.err, ES_ERR_MISSING, "there is no atlas beside the dictionary, so nothing is known to sort by: see espalier atlas");
    if (rc == ES_OK && !(order = es_calloc((size_t)o.f.n + 1, sizeof *order)))
        rc = es_fail(&o.err, ES_ERR_MEMORY, "not enough memory");
    int code;
    if (rc != ES_OK) {
        code = app_fail(&o.err);
    } else {
        for (int i = 0; i < o.f.n; i++)
            order[i] = i;
        sort_key = density ? o.f.density : most ? es_atlas_max(o.f.atlas) : NULL;
        if (sort_key)
            qsort(order, (size_t)o.f.n, sizeof *order, by_key);
        o.labels = app_labels(&o.f, o.m);
        lister l = {&o, the_app.json ? json_array() : NULL};
        int seen = 0, shown = 0;
        for (int i = 0; i < o.f.n && !app_cancel && (limit == 0 || shown < limit); i++) {
            if (labelled && !(o.labels && o.labels[order[i]] && *o.labels[order[i]]))
                continue;
            if (seen++ < from)
                continue;
            list_one(&l, order[i], NULL, 0);
            shown++;
        }
        code = the_app.json ? app_print_json(l.list) : app_flush();
    }
    free(order);
    close_all(&o);
    return code;
}

static int features_search(int argc, char **argv)
{
    int limit = 20;
    const opt table[] = {
        {"limit", "N", OPT_INT, &limit, 1, 100000, "so many (default 20)", NULL},
        {0},
    };
    static const command_help help = {"features search", "WORDS",
                                      "Features whose labels, tags or tokens hold the words, best first; the last word may be a beginning. \"tag:x\",\n"
                                      "\"is:labelled\", \"is:unlabelled\" and \"density<0.01\" filter.",
                                      "  espalier features search polite\n  espalier features search \"tag:tone density<0.01\" --json", 1, -1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    es_buf query = {0};
    for (int i = 1; i <= n; i++) {
        es_buf_str(&query, i > 1 ? " " : "");
        es_buf_str(&query, argv[i]);
    }
    opened o = {0};
    int *found = NULL;
    rc = open_workspace(&o);
    if (rc == ES_OK && (query.failed || !(found = es_calloc((size_t)limit, sizeof *found))))
        rc = es_fail(&o.err, ES_ERR_MEMORY, "not enough memory");
    if (rc == ES_OK)
        rc = es_workspace_search(o.w, o.f.hash, query.data, found, limit, &n, &o.err);
    int code;
    if (rc != ES_OK) {
        code = app_fail(&o.err);
    } else {
        o.labels = app_labels_from(&o.f, o.w);
        lister l = {&o, the_app.json ? json_array() : NULL};
        for (int i = 0; i < n; i++)
            if (found[i] >= 0 && found[i] < o.f.n)
                list_one(&l, found[i], NULL, 0);
        code = the_app.json ? app_print_json(l.list) : app_flush();
    }
    free(found);
    es_buf_free(&query);
    close_all(&o);
    return code;
}

/* ---- show ------------------------------------------------------------------------------------------------------------------- */

static json_t *token_json(const es_model *m, int32_t id)
{
    size_t n;
    const char *s = es_token_bytes(m, id, &n);
    es_buf b = {0};
    es_text_show(&b, s, n, false);
    json_t *v = json_stringn(b.data ? b.data : "", b.len);
    es_buf_free(&b);
    return v;
}

static void print_token(const es_model *m, int32_t id)
{
    size_t n;
    const char *s = es_token_bytes(m, id, &n);
    es_buf b = {0};
    es_text_show(&b, s, n, false);
    if (b.data)
        fwrite(b.data, 1, b.len, stdout);
    es_buf_free(&b);
}

static json_t *logits_json(const es_model *m, int n, const int32_t *id, const float *logit)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_pack("{s:o,s:f}", "token", token_json(m, id[i]), "logit", (double)logit[i]));
    return list;
}

/* The scores of an automatic label; those of which the workspace cannot be opened now are not told. */
static int label_scores(opened *o, int feature, es_label_score out[ES_LABEL_SCORES])
{
    int n = 0;
    es_error why;
    if (app_workspace(&o->w, &why) == ES_OK)
        es_workspace_scores(o->w, o->f.hash, feature, out, ES_LABEL_SCORES, &n, &why);
    return n;
}

static json_t *card_json(opened *o, int feature, const es_feature_card *c, const es_label *label, const int *near, const float *cosine, int n_near)
{
    json_t *examples = json_array(), *histogram = json_array(), *neighbours = json_array();
    for (int i = 0; c && i < c->n_example; i++) {
        const es_example *e = &c->example[i];
        json_t *tokens = json_array(), *values = json_array();
        for (int t = 0; t < e->n; t++) {
            json_array_append_new(tokens, token_json(o->m, e->id[t]));
            json_array_append_new(values, json_real((double)e->value[t]));
        }
        json_array_append_new(examples, json_pack("{s:o,s:o,s:i,s:f}", "tokens", tokens, "values", values, "peak", e->peak, "max", (double)e->max));
    }
    for (int i = 0; c && i < ES_ATLAS_BINS; i++)
        json_array_append_new(histogram, json_integer((json_int_t)c->histogram[i]));
    for (int i = 0; i < n_near; i++)
        json_array_append_new(neighbours, json_pack("{s:i,s:f}", "feature", near[i], "cosine", (double)cosine[i]));
    json_t *v = json_pack("{s:i,s:s?,s:s?,s:o}", "feature", feature, "label", label ? label->text : NULL, "tags", label ? label->tags : NULL, "neighbours",
                          neighbours);
    if (c) {
        json_object_update_new(v, json_pack("{s:f,s:f,s:f,s:f,s:f,s:O,s:O,s:o,s:o}", "density", c->density, "max", (double)c->max, "mean", (double)c->mean,
                                            "p99", (double)c->p99, "bin_width", (double)c->bin_width, "histogram", histogram, "examples", examples,
                                            "promoted", logits_json(o->m, c->n_promoted, c->promoted, c->promoted_logit), "suppressed",
                                            logits_json(o->m, c->n_suppressed, c->suppressed, c->suppressed_logit)));
    }
    json_decref(histogram);
    json_decref(examples);
    return v;
}

static void print_card(opened *o, int feature, const es_feature_card *c, const es_label *label, const int *near, const float *cosine, int n_near, int examples)
{
    char shown[400];
    printf("feature %d", feature);
    if (label && label->text && *label->text)
        printf(": %s", app_shown(label->text, shown, sizeof shown));
    printf("\n");
    if (label && label->tags && *label->tags)
        printf("tags        %s\n", app_shown(label->tags, shown, sizeof shown));
    if (c) {
        printf("active on   %.4f %% of tokens; mean %.3f, 99 %% below %.3f, most %.3f\n", 100 * c->density, (double)c->mean, (double)c->p99, (double)c->max);
        printf("promotes   ");
        for (int i = 0; i < c->n_promoted && i < 10; i++) {
            putchar(' ');
            print_token(o->m, c->promoted[i]);
        }
        printf("\nsuppresses ");
        for (int i = 0; i < c->n_suppressed && i < 10; i++) {
            putchar(' ');
            print_token(o->m, c->suppressed[i]);
        }
        printf("\n");
    }
    printf("near       ");
    for (int i = 0; i < n_near; i++)
        printf(" %d (%.2f)", near[i], (double)cosine[i]);
    printf("\n");
    if (!c)
        printf("There is no atlas beside this dictionary, so nothing is known of where it fires.\n");
    for (int i = 0; c && i < c->n_example && i < examples; i++) {
        const es_example *e = &c->example[i];
        printf("%8.3f  ", (double)e->max);
        for (int t = 0; t < e->n; t++) {
            if (t == e->peak)
                printf("[");
            print_token(o->m, e->id[t]);
            if (t == e->peak)
                printf("]");
        }
        printf("\n");
    }
}

static int features_show(int argc, char **argv)
{
    int examples = 8;
    const opt table[] = {
        {"examples", "N", OPT_INT, &examples, 0, 1000, "so many of the strongest examples (default 8)", NULL},
        {0},
    };
    static const command_help help = {"features show", "FEATURE",
                                      "A feature's dashboard: label, density, promoted and suppressed tokens, nearest decoder directions, strongest examples with\n"
                                      "the peak in brackets.",
                                      "  espalier features show 1234\n  espalier features show 1234 --json", 1, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    opened o = {0};
    es_feature_card card;
    es_label label = {0};
    int feature = 0, near[8], n_near = 0;
    float cosine[8];
    rc = open_all(&o);
    if (rc == ES_OK)
        rc = feature_number(argv[1], o.f.n, &feature, &o.err);
    if (rc == ES_OK && o.f.atlas)
        rc = es_atlas_card(o.f.atlas, feature, &card, &o.err);
    int code;
    if (rc != ES_OK) {
        code = app_fail(&o.err);
    } else {
        n_near = o.f.n > 8 ? 8 : o.f.n - 1;
        if (n_near > 0)
            es_dictionary_neighbours(o.f.dictionary, feature, n_near, near, cosine);
        o.labels = app_labels(&o.f, o.m);
        label.text = o.labels ? o.labels[feature] : NULL;
        const es_feature_card *c = o.f.atlas ? &card : NULL;
        es_label_score score[ES_LABEL_SCORES];
        int n_score = label_scores(&o, feature, score);
        if (the_app.json) {
            json_t *v = card_json(&o, feature, c, &label, near, cosine, n_near), *all = json_object();
            for (int i = 0; i < n_score; i++)
                json_object_set_new(all, score[i].kind, json_real(score[i].value));
            json_object_set_new(v, "scores", all);
            code = app_print_json(v);
        } else {
            print_card(&o, feature, c, &label, near, cosine, n_near, examples);
            for (int i = 0; i < n_score; i++)
                printf("%s%s %.2f%s", i ? ", " : "scores      ", score[i].kind, score[i].value, i + 1 == n_score ? "\n" : "");
            code = app_flush();
        }
    }
    close_all(&o);
    return code;
}

/* ---- for-text, contrast -------------------------------------------------------------------------------------------------------- */

/* Adds to each feature's mean and maximum over the tokens of a text, its first left out unless it is all there is. */
static int summarise(opened *o, const char *text, size_t n, float *mean, float *most, es_sparse *acts, es_error *err)
{
    es_ids ids = {0};
    int rc = es_tokenize_text(o->m, text, n, &ids, err);
    if (rc == ES_OK && ids.n > 1024)
        ids.n = 1024;
    if (rc == ES_OK)
        rc = app_encode(&o->f, o->m, &ids, acts, err);
    if (rc == ES_OK) {
        int first = acts->n_rows > 1;
        for (int t = first; t < acts->n_rows; t++)
            for (size_t i = acts->start[t]; i < acts->start[t + 1]; i++) {
                mean[acts->index[i]] += acts->value[i] / (float)(acts->n_rows - first);
                if (most && acts->value[i] > most[acts->index[i]])
                    most[acts->index[i]] = acts->value[i];
            }
    }
    es_ids_free(&ids);
    return rc;
}

static int features_for_text(int argc, char **argv)
{
    int top = 15;
    const opt table[] = {
        {"top", "N", OPT_INT, &top, 1, 100000, "so many (default 15)", NULL},
        {0},
    };
    static const command_help help = {"features for-text", "TEXT|-", "The features that fire most strongly on a text (its first 1,024 tokens, less the very first).",
                                      "  espalier features for-text \"I'm so sorry to hear that.\"", 1, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    opened o = {0};
    es_buf text = {0};
    es_sparse acts = {0};
    float *mean = NULL, *most = NULL;
    int *order = NULL;
    rc = open_all(&o);
    if (rc == ES_OK && !strcmp(argv[1], "-"))
        rc = es_file_read(&text, "-", 16 << 20, &o.err);
    else
        es_buf_str(&text, argv[1]);
    if (rc == ES_OK && (text.failed || !(mean = es_calloc((size_t)o.f.n, sizeof *mean)) || !(most = es_calloc((size_t)o.f.n, sizeof *most)) ||
                        !(order = es_calloc((size_t)o.f.n, sizeof *order))))
        rc = es_fail(&o.err, ES_ERR_MEMORY, "not enough memory");
    if (rc == ES_OK)
        rc = summarise(&o, text.data, text.len, mean, most, &acts, &o.err);
    int code;
    if (rc != ES_OK) {
        code = app_fail(&o.err);
    } else {
        for (int i = 0; i < o.f.n; i++)
            order[i] = i;
        sort_key = most;
        qsort(order, (size_t)o.f.n, sizeof *order, by_key);
        o.labels = app_labels(&o.f, o.m);
        lister l = {&o, the_app.json ? json_array() : NULL};
        for (int i = 0; i < top && i < o.f.n && most[order[i]] > 0; i++)
            list_one(&l, order[i], "activation", (double)most[order[i]]);
        code = the_app.json ? app_print_json(l.list) : app_flush();
    }
    free(order);
    free(most);
    free(mean);
    es_sparse_free(&acts);
    es_buf_free(&text);
    close_all(&o);
    return code;
}

static int features_contrast(int argc, char **argv)
{
    int top = 15;
    app_texts texts[2] = {{.limit = 500}, {.limit = 500}};
    const opt table[] = {
        {"top", "N", OPT_INT, &top, 1, 100000, "so many each way (default 15)", NULL},
        {"limit", "N", OPT_INT, &texts[0].limit, 1, 1000000, "so many texts of each (default 500)", NULL},
        {0},
    };
    static const command_help help = {
        "features contrast", "A B",
        "Features that are more active in one set of texts than in the other: the difference of their mean activation, in units of its\n"
        "standard deviation over texts; positive means more in A. Files: .jsonl with \"text\", otherwise a text a line.",
        "  espalier features contrast polite.txt rude.txt --json", 2, 2};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    opened o = {0};
    es_sparse acts = {0};
    float *mean = NULL, *score = NULL;
    double *sum = NULL; /* [2][2][F]: of means, of their squares */
    int *order = NULL;
    texts[1].limit = texts[0].limit;
    rc = ES_OK;
    for (int i = 0; i < 2 && rc == ES_OK; i++)
        rc = app_texts_read(&texts[i], argv[1 + i], true, &o.err);
    if (rc == ES_OK)
        rc = open_all(&o);
    size_t F = (size_t)o.f.n;
    if (rc == ES_OK && (!(mean = es_calloc(F, sizeof *mean)) || !(score = es_calloc(F, sizeof *score)) || !(sum = es_calloc(4 * F, sizeof *sum)) ||
                        !(order = es_calloc(F, sizeof *order))))
        rc = es_fail(&o.err, ES_ERR_MEMORY, "not enough memory");
    es_progress progress = app_progress();
    for (int set = 0, done = 0; set < 2 && rc == ES_OK; set++)
        for (int i = 0; i < texts[set].n && rc == ES_OK; i++) {
            memset(mean, 0, F * sizeof *mean);
            rc = summarise(&o, texts[set].text[i], strlen(texts[set].text[i]), mean, NULL, &acts, &o.err);
            for (size_t j = 0; rc == ES_OK && j < F; j++) {
                sum[(size_t)(2 * set) * F + j] += (double)mean[j];
                sum[(size_t)(2 * set + 1) * F + j] += (double)mean[j] * (double)mean[j];
            }
            es_progress_report(&progress, "encoding", ++done, texts[0].n + texts[1].n, "texts");
        }
    app_progress_end();
    int code;
    if (rc != ES_OK) {
        code = app_fail(&o.err);
    } else {
        double a = texts[0].n, b = texts[1].n, largest = 0;
        for (int pass = 0; pass < 2; pass++) /* the floor under the deviation keeps rare features from looking certain */
            for (size_t j = 0; j < F; j++) {
                double ma = sum[j] / a, mb = sum[2 * F + j] / b, va = sum[F + j] / a - ma * ma, vb = sum[3 * F + j] / b - mb * mb;
                double sd = sqrt(fmax(0, (va + vb) / 2));
                if (pass == 0)
                    largest = fmax(largest, sd);
                else
                    score[j] = largest > 0 || ma != mb ? (float)((ma - mb) / (sd + 0.02 * largest + 1e-9)) : 0;
            }
        for (int i = 0; i < o.f.n; i++)
            order[i] = i;
        sort_key = score;
        qsort(order, F, sizeof *order, by_key);
        o.labels = app_labels(&o.f, o.m);
        lister l = {&o, the_app.json ? json_array() : NULL};
        for (int i = 0; i < top && i < o.f.n && score[order[i]] > 0; i++)
            list_one(&l, order[i], "score", (double)score[order[i]]);
        int last = o.f.n - top < 0 ? 0 : o.f.n - top;
        for (int i = last; i < o.f.n; i++)
            if (score[order[i]] < 0)
                list_one(&l, order[i], "score", (double)score[order[i]]);
        code = the_app.json ? app_print_json(l.list) : app_flush();
    }
    free(order);
    free(sum);
    free(score);
    free(mean);
    es_sparse_free(&acts);
    app_texts_free(&texts[0]);
    app_texts_free(&texts[1]);
    close_all(&o);
    return code;
}

int cmd_features(int argc, char **argv)
{
    static const command table[] = {
        {"list", "all, or the labelled ones", features_list},
        {"show", "one feature's dashboard", features_show},
        {"search", "by words in labels, tags and tokens", features_search},
        {"for-text", "which fire on a text", features_for_text},
        {"contrast", "which tell two sets of texts apart", features_contrast},
        {0},
    };
    return app_subcommand("features", "The features of the model's dictionary.", table, argc, argv);
}

/* ---- label ------------------------------------------------------------------------------------------------------------------------ */

static int label_add(int argc, char **argv)
{
    int feature = -1, rating = -1;
    const char *text = NULL, *tags = NULL, *author = NULL;
    const opt table[] = {
        {"feature", "N", OPT_INT, &feature, 0, 1 << 24, "which", NULL},
        {"text", "T", OPT_TEXT, &text, 0, 0, "the label", NULL},
        {"tags", "T", OPT_TEXT, &tags, 0, 0, "tags, separated by spaces", NULL},
        {"rating", "R", OPT_INT, &rating, 0, 5, "how well the label fits, 1 to 5; 0: none", NULL},
        {"author", "NAME", OPT_TEXT, &author, 0, 0, "default: the configured name, else the account's", NULL},
        {0},
    };
    static const command_help help = {"label add", "--feature N --text T", "Labels a feature, or changes its label, tags or rating. Every change is kept and can be undone.",
                                      "  espalier label add --feature 1234 --text \"apologies\" --tags \"tone politeness\"", 0, 0};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (feature < 0 || (!text && !tags && rating < 0))
        return opts_usage_error("label add", "%s is missing", feature < 0 ? "--feature N" : "--text T");
    opened o = {0};
    rc = open_workspace(&o);
    if (rc == ES_OK && feature >= o.f.n)
        rc = es_fail(&o.err, ES_ERR_MISSING, "there is no feature %d: the dictionary has 0 to %d", feature, o.f.n - 1);
    if (rc == ES_OK)
        rc = es_workspace_label_set(o.w, o.f.hash, feature, text, tags, rating, author ? author : app_author(), &o.err);
    es_label l = {0};
    if (rc == ES_OK)
        rc = es_workspace_label_get(o.w, o.f.hash, feature, &l, &o.err);
    int code = rc == ES_OK ? EXIT_DONE : app_fail(&o.err);
    if (rc == ES_OK && the_app.json)
        code = app_print_json(json_pack("{s:i,s:s,s:s,s:i,s:s,s:s}", "feature", feature, "text", l.text ? l.text : "", "tags", l.tags ? l.tags : "", "rating",
                                        l.rating, "author", l.author, "time", l.time));
    es_label_free(&l);
    close_all(&o);
    return code;
}

static int label_undo(int argc, char **argv)
{
    static const command_help help = {"label undo", "", "Undoes the newest change of a label that is not undone yet.", "  espalier label undo", 0, 0};
    int n, feature = -1;
    int rc = opts_parse(&help, NULL, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    opened o = {0};
    rc = open_workspace(&o);
    if (rc == ES_OK)
        rc = es_workspace_label_undo(o.w, o.f.hash, &feature, &o.err);
    int code = rc == ES_OK ? EXIT_DONE : app_fail(&o.err);
    if (rc == ES_OK && the_app.json)
        code = app_print_json(json_pack("{s:i}", "feature", feature));
    else if (rc == ES_OK)
        app_note("undid the last change of feature %d", feature);
    close_all(&o);
    return code;
}

static int label_import(int argc, char **argv)
{
    const char *author = NULL, *format = "jsonl", *source = NULL;
    const opt table[] = {
        {"author", "NAME", OPT_TEXT, &author, 0, 0, "of labels that name none", NULL},
        {"format", "KIND", OPT_TEXT, &format, 0, 0, "jsonl (default) or neuronpedia", NULL},
        {"source", "ID", OPT_TEXT, &source, 0, 0, "neuronpedia: of this source, where there are several", NULL},
        {0},
    };
    static const command_help help = {"label import", "FILE|FOLDER",
                                      "Takes in labels, one a line: {\"feature\",\"text\",\"tags\":[...],\"author\"}. All of the file or nothing. neuronpedia: the explanations of an\n"
                                      "export (a folder MODEL/SOURCE, or its files .jsonl.gz) or of one feature's JSON; labels that people gave here stay.",
                                      "  espalier label import labels.jsonl\n  espalier label import smollm2/14-res-6k --format neuronpedia", 1, 1};
    int n, imported = 0;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (!strcmp(format, "neuronpedia"))
        return app_neuronpedia_import(argv[1], source);
    if (strcmp(format, "jsonl"))
        return opts_usage_error("label import", "--format is jsonl or neuronpedia, not '%s'", format);
    opened o = {0};
    rc = open_workspace(&o);
    if (rc == ES_OK)
        rc = es_workspace_label_import(o.w, o.f.hash, o.f.n, argv[1], author ? author : app_author(), &imported, &o.err);
    int code = rc == ES_OK ? EXIT_DONE : app_fail(&o.err);
    if (rc == ES_OK && the_app.json)
        code = app_print_json(json_pack("{s:i}", "imported", imported));
    else if (rc == ES_OK)
        app_note("imported %d labels", imported);
    close_all(&o);
    return code;
}

static int label_export(int argc, char **argv)
{
    app_neuronpedia to = {0};
    const char *format = "jsonl";
    const opt table[] = {
        {"format", "KIND", OPT_TEXT, &format, 0, 0, "jsonl (default) or neuronpedia", NULL},
        {"to", "FOLDER", OPT_TEXT, &to.folder, 0, 0, "neuronpedia: where MODEL/SOURCE is made", NULL},
        {"model-id", "ID", OPT_TEXT, &to.model, 0, 0, "neuronpedia: its id of the model (default: made of its name)", NULL},
        {"source", "ID", OPT_TEXT, &to.source, 0, 0, "neuronpedia: its id of the dictionary (default: layer, kind and width)", NULL},
        {"basis", "NAME", OPT_TEXT, &to.basis, 0, 0, "neuronpedia: the features of this basis only, and as a list", NULL},
        {"labels-only", NULL, OPT_FLAG, &to.labels_only, 0, 0, "neuronpedia: no dashboards", NULL},
        {0},
    };
    static const command_help help = {"label export", "",
                                      "The labels of the dictionary on standard output, one a line as label import reads them; with --json one array. neuronpedia: a folder in the\n"
                                      "layout of Neuronpedia's exports, labels with scores, and dashboards from the atlas.",
                                      "  espalier label export > labels.jsonl\n  espalier label export --json\n  espalier label export --format neuronpedia --to exports --basis brief", 0, 0};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (!strcmp(format, "neuronpedia"))
        return to.folder ? app_neuronpedia_export(&to) : opts_usage_error("label export", "--to FOLDER is missing");
    if (strcmp(format, "jsonl"))
        return opts_usage_error("label export", "--format is jsonl or neuronpedia, not '%s'", format);
    opened o = {0};
    json_t *all = NULL;
    rc = open_workspace(&o);
    if (rc == ES_OK)
        rc = es_workspace_label_export(o.w, o.f.hash, &all, &o.err);
    int code;
    if (rc != ES_OK) {
        code = app_fail(&o.err);
    } else if (the_app.json) {
        code = app_print_json(all);
    } else {
        for (size_t i = 0; i < json_array_size(all); i++) {
            json_dumpf(json_array_get(all, i), stdout, JSON_COMPACT);
            putchar('\n');
        }
        json_decref(all);
        code = app_flush();
    }
    close_all(&o);
    return code;
}

int cmd_label(int argc, char **argv)
{
    static const command table[] = {
        {"add", "or change a label", label_add},
        {"auto", "labels and scores from a language model", cmd_label_auto},
        {"import", "a JSONL file of labels", label_import},
        {"export", "all labels", label_export},
        {"undo", "the newest change", label_undo},
        {0},
    };
    return app_subcommand("label", "Names for features, kept in the workspace with author, time and history.", table, argc, argv);
}
