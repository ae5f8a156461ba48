/* features, label: browsing a dictionary and naming what is in it, without the workbench. */
#include "autolabel.h"
#include "cmd_label.h"
#include "fires.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* One feature as a line or an object: number, density, strongest activation, label, tokens it fires on. */
typedef struct lister {
    labels_open *o;
    json_t *list; /* NULL: print lines */
} lister;

static void list_one(lister *l, int feature, const char *key, double value)
{
    labels_open *o = l->o;
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

#define FILTERS                                                                                                                              \
    "Words in labels, tags or tokens (the last may be a beginning; labels that have them inside a word come after), and filters, all of\n"    \
    "which must hold: tag:T is:labelled is:unlabelled is:rated is:skipped is:conflict by:NAME "                         \
    "is:basis basis:NAME; score>0.8 (of tested labels); promotes:T suppresses:T fires:T (tokens; T* a\n" \
    "beginning); density, max, mean, p99, rating with < <= > >= = or :LO..HI; like:N (the nearest decoder rows); text:\"T\" (what fires on a\n" \
    "text); a number alone. -FILTER turns one round."

static void list_found(labels_open *o, lister *l, const es_found *f, int from, int limit)
{
    for (int i = from; i < f->n && !app_cancel && (limit == 0 || i < from + limit); i++) {
        size_t before = l->list ? json_array_size(l->list) : 0;
        list_one(l, f->feature[i], f->value ? f->measure : NULL, f->value ? (double)f->value[i] : 0);
        json_t *v = l->list ? json_array_get(l->list, before) : NULL;
        if (v && f->surprise)
            json_object_set_new(v, "surprise", isfinite(f->surprise[i]) ? json_real((double)f->surprise[i]) : json_null());
        if (v && f->token && f->token[i] < f->n_text) {
            json_object_set_new(v, "position", json_integer(f->token[i]));
            json_object_set_new(v, "token", token_json(o->m, f->text_id[f->token[i]]));
        }
    }
}

static int find_order(const char *name)
{
    for (int i = 0; i < ES_FIND_ORDERS; i++)
        if (!strcmp(name, es_find_order_name((es_find_order)i)))
            return i;
    return -1;
}

/* The features that a query finds, from..from+limit of them. workspace: it is needed (for labels, ratings, bases); else it is read where that is possible. */
static int find_and_list(const char *query, int order, int from, int limit, bool workspace)
{
    labels_open o = {0};
    es_found found = {0};
    es_finder finder = {0};
    es_basis basis = {0};
    char current[96], *at;
    int rc = workspace ? labels_open_all(&o, &o.err) : labels_open_features(&o, &o.err);
    if (rc == ES_OK) {
        /* is:basis: the one that the workbench has in use */
        if (o.w && es_workspace_basis_current(o.w, current, sizeof current) == 0 && (at = strrchr(current, '@'))) {
            *at = 0;
            if (es_workspace_basis_load(o.w, current, atoi(at + 1), &basis, NULL) == 0 && strcmp(basis.dictionary_hash, o.f.hash)) {
                es_basis_free(&basis);
                basis = (es_basis){0};
            }
        }
        finder = (es_finder){.workspace = o.w, .hash = o.f.hash, .model = o.m, .dictionary = o.f.dictionary, .atlas = o.f.atlas, .density = o.f.density, .basis = &basis,
                             .n_features = o.f.n, .threads = the_app.threads};
        rc = es_find(&finder, query, (es_find_order)order, &found, &app_cancel, &o.err);
    }
    int code;
    if (rc != ES_OK) {
        code = app_fail(&o.err);
    } else {
        o.labels = o.w ? app_labels_from(&o.f, o.w) : app_labels(&o.f, o.m);
        lister l = {&o, the_app.json ? json_array() : NULL};
        list_found(&o, &l, &found, from, limit);
        code = the_app.json ? app_print_json(l.list) : app_flush();
    }
    es_finder_free(&finder);
    es_found_free(&found);
    es_basis_free(&basis);
    labels_close(&o);
    return code;
}

/* argv[1..n] as one query. A shell takes the quotes off text:"A B": they are put back. */
static void query_of(es_buf *query, int n, char **argv)
{
    for (int i = 1; i <= n; i++) {
        const char *a = argv[i];
        if (!strncmp(a, "text:", 5) && strpbrk(a, " \t") && !strchr(a, '"'))
            es_buf_printf(query, "text:\"%s\" ", a + 5);
        else
            es_buf_printf(query, "%s%s", a, i < n ? " " : "");
    }
    es_buf_str(query, "");
}

static int features_list(int argc, char **argv)
{
    const char *sort = NULL;
    int limit = 50, from = 0;
    bool labelled = false;
    const opt table[] = {
        {"sort", "KEY", OPT_TEXT, &sort, 0, 0, "number (default), density, max, label or best; of a text: also token or surprise", NULL},
        {"limit", "N", OPT_INT, &limit, 0, 1 << 24, "so many (default 50); 0: all", NULL},
        {"from", "N", OPT_INT, &from, 0, 1 << 24, "leave out the first N", NULL},
        {"labelled", NULL, OPT_FLAG, &labelled, 0, 0, "only those with a label", NULL},
        {0},
    };
    static const command_help help = {"features list", "[FILTER...]",
                                      "The features of the dictionary, or those that pass filters: number, density, label, tokens they fire on and promote.\n" FILTERS,
                                      "  espalier features list --labelled --limit 0\n  espalier features list \"density<0.001\" promotes:sorry --sort density --json\n"
                                      "  espalier features list 'text:\"I am so sorry\"' --sort surprise", 0, -1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    int order = sort ? find_order(sort) : n ? ES_FIND_BEST : ES_FIND_NUMBER;
    if (order < 0)
        return opts_usage_error("features list", "--sort is number, density, max, label, best, token or surprise, not '%s'", sort);
    es_buf query = {0};
    query_of(&query, n, argv);
    if (labelled)
        es_buf_str(&query, " is:labelled ");
    int code = query.failed ? app_failf("not enough memory") : find_and_list(query.data, order, from, limit, n > 0 || labelled || order == ES_FIND_LABEL);
    es_buf_free(&query);
    return code;
}

static int features_search(int argc, char **argv)
{
    const char *sort = "best";
    int limit = 20;
    const opt table[] = {
        {"sort", "KEY", OPT_TEXT, &sort, 0, 0, "best (default), number, density, max or label; of a text: also token or surprise", NULL},
        {"limit", "N", OPT_INT, &limit, 1, 100000, "so many (default 20)", NULL},
        {0},
    };
    static const command_help help = {"features search", "WORDS|FILTER...", "Features, best first. " FILTERS,
                                      "  espalier features search polite\n  espalier features search tag:tone \"density<0.01\" --json\n  espalier features search like:1234 is:unlabelled",
                                      1, -1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    int order = find_order(sort);
    if (order < 0)
        return opts_usage_error("features search", "--sort is best, number, density, max, label, token or surprise, not '%s'", sort);
    es_buf query = {0};
    query_of(&query, n, argv);
    int code = query.failed ? app_failf("not enough memory") : find_and_list(query.data, order, 0, limit, true);
    es_buf_free(&query);
    return code;
}

/* ---- show ------------------------------------------------------------------------------------------------------------------- */

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
static int label_scores(labels_open *o, int feature, es_label_score out[ES_LABEL_SCORES])
{
    int n = 0;
    es_error why;
    if (o->w || app_workspace(&o->w, &why) == ES_OK)
        es_workspace_scores(o->w, o->f.hash, feature, out, ES_LABEL_SCORES, &n, &why);
    return n;
}

static json_t *example_json(const es_model *m, const es_example *e)
{
    json_t *tokens = json_array(), *values = json_array();
    for (int t = 0; t < e->n; t++) {
        json_array_append_new(tokens, token_json(m, e->id[t]));
        json_array_append_new(values, json_real((double)e->value[t]));
    }
    return json_pack("{s:o,s:o,s:i,s:f}", "tokens", tokens, "values", values, "peak", e->peak, "max", (double)e->max);
}

static json_t *counts_json(const uint32_t *count, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_integer((json_int_t)count[i]));
    return list;
}

/* What the atlas knows of it. */
static void card_json(const es_model *m, const es_feature_card *c, json_t *v)
{
    json_t *examples = json_array(), *intervals = json_array(), *correlated = json_array();
    es_interval in[ES_ATLAS_INTERVALS];
    for (int i = 0; i < c->n_example; i++)
        json_array_append_new(examples, example_json(m, &c->example[i]));
    es_atlas_intervals(c, in);
    for (int i = 0; i < ES_ATLAS_INTERVALS; i++) {
        json_t *places = json_array();
        for (int k = 0; k < in[i].n; k++)
            json_array_append_new(places, example_json(m, &c->spread[in[i].first + k]));
        json_array_append_new(intervals, json_pack("{s:f,s:f,s:f,s:o}", "from", (double)in[i].lo, "to", (double)in[i].hi, "share", in[i].share, "examples", places));
    }
    for (int i = 0; i < c->n_correlated; i++)
        json_array_append_new(correlated, json_pack("{s:i,s:f,s:f}", "feature", (int)c->correlated[i], "pearson", (double)c->pearson[i], "cosine", (double)c->together[i]));
    json_object_update_new(v, json_pack("{s:f,s:f,s:f,s:f,s:f,s:o,s:o,s:o,s:o,s:o,s:o}", "density", c->density, "max", (double)c->max, "mean", (double)c->mean,
                                        "p99", (double)c->p99, "bin_width", (double)c->bin_width, "histogram", counts_json(c->histogram, ES_ATLAS_BINS),
                                        "examples", examples, "intervals", intervals, "correlated", correlated, "promoted",
                                        logits_json(m, c->n_promoted, c->promoted, c->promoted_logit), "suppressed",
                                        logits_json(m, c->n_suppressed, c->suppressed, c->suppressed_logit)));
}

static json_t *dashboard_json(labels_open *o, const es_dashboard *d, const es_feature_card *c, const es_label *label)
{
    json_t *neighbours = json_array(), *neurons = json_array();
    for (int i = 0; i < d->n_neighbour; i++)
        json_array_append_new(neighbours, json_pack("{s:i,s:f}", "feature", (int)d->neighbour[i], "cosine", (double)d->cosine[i]));
    for (int i = 0; i < d->n_neuron; i++)
        json_array_append_new(neurons, json_pack("{s:i,s:i,s:f}", "layer", d->neuron[i].layer, "neuron", d->neuron[i].neuron, "cosine", (double)d->neuron[i].cosine));
    json_t *v = json_pack("{s:i,s:s?,s:s?,s:s?,s:o,s:o}", "feature", d->feature, "label", label->text, "tags", label->tags, "note", label->note, "neighbours", neighbours, "neurons", neurons);
    if (label->text && *label->text)
        json_object_set_new(v, "author", json_string(label->author));
    if (d->has_logits)
        json_object_set_new(v, "logits", json_pack("{s:f,s:f,s:o}", "from", (double)d->logit_lo, "to", (double)d->logit_hi, "histogram", counts_json(d->logits, ES_ATLAS_BINS)));
    if (c)
        card_json(o->m, c, v);
    return v;
}

static void print_example(const es_model *m, const es_example *e)
{
    printf("%8.3f  ", (double)e->value[e->peak]);
    for (int t = 0; t < e->n; t++) {
        if (t == e->peak)
            printf("[");
        print_token(m, e->id[t]);
        if (t == e->peak)
            printf("]");
    }
    printf("\n");
}

static void print_card(labels_open *o, const es_dashboard *d, const es_feature_card *c, const es_label *label, int examples)
{
    int feature = d->feature;
    char shown[400];
    printf("feature %d", feature);
    if (label && label->text && *label->text)
        printf(": %s", app_shown(label->text, shown, sizeof shown));
    printf("\n");
    if (label && label->tags && *label->tags)
        printf("tags        %s\n", app_shown(label->tags, shown, sizeof shown));
    if (label && label->note && *label->note)
        printf("note        %s\n", app_shown(label->note, shown, sizeof shown));
    if (label && label->text && *label->text && *label->author)
        printf("label by    %s\n", app_shown(label->author, shown, sizeof shown));
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
    for (int i = 0; i < d->n_neighbour; i++)
        printf(" %d (%.2f)", (int)d->neighbour[i], (double)d->cosine[i]);
    if (c && c->n_correlated)
        printf("\nactive with");
    for (int i = 0; c && i < c->n_correlated; i++)
        printf(" %d (%.2f)", (int)c->correlated[i], (double)c->pearson[i]);
    printf("\nneurons    ");
    for (int i = 0; i < d->n_neuron; i++)
        printf(" L%d.%d (%+.2f)", d->neuron[i].layer, d->neuron[i].neuron, (double)d->neuron[i].cosine);
    printf("\n");
    if (!c) {
        printf("There is no atlas beside this dictionary, so nothing is known of where it fires.\n");
        return;
    }
    for (int i = 0; i < c->n_example && i < examples; i++)
        print_example(o->m, &c->example[i]);
    es_interval in[ES_ATLAS_INTERVALS];
    es_atlas_intervals(c, in);
    for (int i = 0; examples && c->n_spread && i < ES_ATLAS_INTERVALS; i++) {
        printf("%.3f to %.3f: %.3f %% of active tokens\n", (double)in[i].lo, (double)in[i].hi, 100 * in[i].share);
        for (int k = 0; k < in[i].n; k++)
            print_example(o->m, &c->spread[in[i].first + k]);
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
                                      "A feature's dashboard: label, density, promoted and suppressed tokens, nearest decoder directions, features active together with\n"
                                      "it (Pearson's correlation), MLP neurons that write along it (cosine), strongest examples with the peak in brackets, and places\n"
                                      "drawn at random from each fifth of its activation. --json has the histograms too.",
                                      "  espalier features show 1234\n  espalier features show 1234 --json", 1, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    labels_open o = {0};
    es_feature_card card;
    es_label label = {0};
    es_dashboard dashboard;
    es_pool *pool = NULL;
    es_label_score score[ES_LABEL_SCORES];
    int feature = 0, n_score = 0;
    rc = labels_open_features(&o, &o.err);
    if (rc == ES_OK)
        rc = labels_feature(&o, argv[1], &feature, &o.err);
    if (rc == ES_OK) { /* before the card: a workspace that has not seen the dictionary yet goes through the atlas, and the card lives until its next use */
        es_error why;
        o.labels = app_labels(&o.f, o.m);
        if (app_workspace(&o.w, &why) == ES_OK)
            es_workspace_label_get(o.w, o.f.hash, feature, &label, &why); /* none, or no workspace: nothing is shown */
        n_score = label_scores(&o, feature, score);
    }
    if (rc == ES_OK && o.f.atlas)
        rc = es_atlas_card(o.f.atlas, feature, &card, &o.err);
    if (rc == ES_OK)
        rc = es_pool_open(&pool, the_app.threads, &o.err);
    if (rc == ES_OK)
        rc = es_dashboard_make(&dashboard, o.m, o.f.dictionary, o.f.atlas ? &card : NULL, feature, pool, &o.err);
    es_pool_free(pool);
    int code;
    if (rc != ES_OK) {
        code = app_fail(&o.err);
    } else {
        const es_feature_card *c = o.f.atlas ? &card : NULL;
        if (the_app.json) {
            json_t *v = dashboard_json(&o, &dashboard, c, &label), *all = json_object();
            for (int i = 0; i < n_score; i++)
                json_object_set_new(all, score[i].kind, json_real(score[i].value));
            json_object_set_new(v, "scores", all);
            code = app_print_json(v);
        } else {
            print_card(&o, &dashboard, c, &label, examples);
            for (int i = 0; i < n_score; i++)
                printf("%s%s %.2f%s", i ? ", " : "scores      ", score[i].kind, score[i].value, i + 1 == n_score ? "\n" : "");
            code = app_flush();
        }
    }
    es_label_free(&label);
    labels_close(&o);
    return code;
}

/* ---- for-text, contrast -------------------------------------------------------------------------------------------------------- */

static void list_fires(labels_open *o, const es_firing *firing, const es_fire *fire, int n)
{
    lister l = {o, the_app.json ? json_array() : NULL};
    for (int i = 0; i < n; i++) {
        int32_t id = es_firing_ids(firing)->id[fire[i].token];
        list_one(&l, fire[i].feature, "activation", (double)fire[i].max);
        if (l.list) {
            json_t *v = json_array_get(l.list, (size_t)i);
            json_object_update_new(v, json_pack("{s:i,s:o,s:i,s:f,s:o}", "position", fire[i].token, "token", token_json(o->m, id), "times", fire[i].times, "mean",
                                                (double)fire[i].mean, "surprise", isfinite(fire[i].surprise) ? json_real((double)fire[i].surprise) : json_null()));
        }
    }
    if (l.list)
        app_print_json(l.list);
}

static int features_for_text(int argc, char **argv)
{
    int top = 15;
    const char *sort = "max";
    const opt table[] = {
        {"top", "N", OPT_INT, &top, 1, 100000, "so many (default 15)", NULL},
        {"sort", "KEY", OPT_TEXT, &sort, 0, 0, "max (default), token (where in the text) or surprise (against the usual)", NULL},
        {0},
    };
    static const command_help help = {"features for-text", "TEXT|-",
                                      "The features that fire most strongly on a text (its first 1,024 tokens, less the very first). Surprise is in bits: how unlikely that\n"
                                      "one of so many tokens of usual text reaches that activation, by the atlas' histogram.",
                                      "  espalier features for-text \"I'm so sorry to hear that.\"\n  espalier features for-text - --sort surprise --json < text.txt", 1, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    int order = !strcmp(sort, "max") ? ES_FIRE_MAX : !strcmp(sort, "token") ? ES_FIRE_TOKEN : !strcmp(sort, "surprise") ? ES_FIRE_SURPRISE : -1;
    if (order < 0)
        return opts_usage_error("features for-text", "--sort is max, token or surprise, not '%s'", sort);
    labels_open o = {0};
    es_buf text = {0};
    es_firing *firing = NULL;
    es_fire *fire = NULL;
    rc = labels_open_features(&o, &o.err);
    if (rc == ES_OK && !strcmp(argv[1], "-"))
        rc = es_file_read(&text, "-", 16 << 20, &o.err);
    else
        es_buf_str(&text, argv[1]);
    if (rc == ES_OK && text.failed)
        rc = es_fail(&o.err, ES_ERR_MEMORY, "not enough memory");
    if (rc == ES_OK && order == ES_FIRE_SURPRISE && !o.f.atlas)
        rc = es_fail(&o.err, ES_ERR_MISSING, "there is no atlas beside the dictionary, so nothing is known of what is usual: see espalier atlas");
    if (rc == ES_OK)
        rc = es_firing_open(&firing, o.m, o.f.dictionary, the_app.threads, &o.err);
    if (rc == ES_OK)
        rc = es_firing_read(firing, text.data ? text.data : "", text.len, false, &app_cancel, &o.err);
    if (rc == ES_OK)
        rc = es_firing_list(firing, o.f.atlas, (es_fire_order)order, &fire, &n, &o.err);
    int code;
    if (rc != ES_OK) {
        code = app_fail(&o.err);
    } else {
        o.labels = app_labels(&o.f, o.m);
        list_fires(&o, firing, fire, n < top ? n : top);
        code = app_flush();
    }
    free(fire);
    es_firing_free(firing);
    es_buf_free(&text);
    labels_close(&o);
    return code;
}

static const float *sort_key;

static int by_key(const void *a, const void *b)
{
    int i = *(const int *)a, j = *(const int *)b;
    return sort_key[i] < sort_key[j] ? 1 : sort_key[i] > sort_key[j] ? -1 : i - j;
}

static int features_contrast(int argc, char **argv)
{
    int top = 15;
    es_texts texts[2] = {{.limit = 500}, {.limit = 500}};
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
    labels_open o = {0};
    es_firing *firing = NULL;
    float *score = NULL;
    int *order = NULL;
    texts[1].limit = texts[0].limit;
    rc = ES_OK;
    for (int i = 0; i < 2 && rc == ES_OK; i++)
        rc = es_texts_read(&texts[i], argv[1 + i], true, &o.err);
    if (rc == ES_OK)
        rc = labels_open_features(&o, &o.err);
    size_t F = (size_t)o.f.n;
    if (rc == ES_OK && (!(score = es_calloc(F, sizeof *score)) || !(order = es_calloc(F, sizeof *order))))
        rc = es_fail(&o.err, ES_ERR_MEMORY, "not enough memory");
    if (rc == ES_OK)
        rc = es_firing_open(&firing, o.m, o.f.dictionary, the_app.threads, &o.err);
    es_progress progress = app_progress();
    if (rc == ES_OK)
        rc = es_contrast(firing, texts[0].text, texts[0].n, texts[1].text, texts[1].n, score, &progress, &o.err);
    app_progress_end();
    int code;
    if (rc != ES_OK) {
        code = app_fail(&o.err);
    } else {
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
    free(score);
    es_firing_free(firing);
    es_texts_free(&texts[0]);
    es_texts_free(&texts[1]);
    labels_close(&o);
    return code;
}

int cmd_features(int argc, char **argv)
{
    static const command table[] = {
        {"list", "all, or those that pass filters", features_list},
        {"show", "one feature's dashboard", features_show},
        {"search", "by words in labels, tags and tokens, and filters; best first", features_search},
        {"for-text", "which fire on a text", features_for_text},
        {"contrast", "which tell two sets of texts apart", features_contrast},
        {"next", "which to label next", features_next},
        {0},
    };
    return app_subcommand("features", "The features of the model's dictionary.", table, argc, argv);
}

/* ---- label ------------------------------------------------------------------------------------------------------------------------ */

static int label_add(int argc, char **argv)
{
    int feature = -1;
    es_label_edit e = ES_LABEL_EDIT;
    const char *author = NULL;
    const opt table[] = {
        {"feature", "N", OPT_INT, &feature, 0, 1 << 24, "which", NULL},
        {"text", "T", OPT_TEXT, &e.text, 0, 0, "the label", NULL},
        {"tags", "T", OPT_TEXT, &e.tags, 0, 0, "tags, separated by spaces", NULL},
        {"rating", "R", OPT_INT, &e.rating, 0, 5, "how well the label fits, 1 to 5; 0: none", NULL},
        {"confidence", "P", OPT_INT, &e.confidence, 0, 100, "how sure you are, in per cent; 0: unsaid", NULL},
        {"note", "T", OPT_TEXT, &e.note, 0, 0, "a note of any length", NULL},
        {"author", "NAME", OPT_TEXT, &author, 0, 0, "default: the configured name, else the account's", NULL},
        {0},
    };
    static const command_help help = {"label add", "--feature N --text T", "Labels a feature, or changes its label, tags or rating. Every change is kept and can be undone; what several annotators say is kept apart.",
                                      "  espalier label add --feature 1234 --text \"apologies\" --tags \"tone politeness\"", 0, 0};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (feature < 0 || (!e.text && !e.tags && !e.note && e.rating < 0 && e.confidence < 0))
        return opts_usage_error("label add", "%s is missing", feature < 0 ? "--feature N" : "--text T");
    labels_open o = {0};
    rc = labels_open_all(&o, &o.err);
    if (rc == ES_OK && feature >= o.f.n)
        rc = es_fail(&o.err, ES_ERR_MISSING, "there is no feature %d: the dictionary has 0 to %d", feature, o.f.n - 1);
    if (rc == ES_OK)
        rc = es_workspace_label_edit(o.w, o.f.hash, &feature, 1, &e, author ? author : app_author(), NULL, &o.err);
    es_label l = {0};
    if (rc == ES_OK)
        rc = es_workspace_label_get(o.w, o.f.hash, feature, &l, &o.err);
    int code = rc == ES_OK ? EXIT_DONE : app_fail(&o.err);
    if (rc == ES_OK && the_app.json)
        code = app_print_json(json_pack("{s:i,s:s,s:s,s:i,s:s,s:s}", "feature", feature, "text", l.text ? l.text : "", "tags", l.tags ? l.tags : "", "rating",
                                        l.rating, "author", l.author, "time", l.time));
    es_label_free(&l);
    labels_close(&o);
    return code;
}

static int label_undo(int argc, char **argv)
{
    static const command_help help = {"label undo", "", "Undoes the newest change of a label that is not undone yet.", "  espalier label undo", 0, 0};
    int n, feature = -1;
    int rc = opts_parse(&help, NULL, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    labels_open o = {0};
    rc = labels_open_all(&o, &o.err);
    if (rc == ES_OK)
        rc = es_workspace_label_undo(o.w, o.f.hash, &feature, &o.err);
    int code = rc == ES_OK ? EXIT_DONE : app_fail(&o.err);
    if (rc == ES_OK && the_app.json)
        code = app_print_json(json_pack("{s:i}", "feature", feature));
    else if (rc == ES_OK)
        app_note("undid the last change of feature %d", feature);
    labels_close(&o);
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
    labels_open o = {0};
    rc = labels_open_all(&o, &o.err);
    if (rc == ES_OK)
        rc = es_workspace_label_import(o.w, o.f.hash, o.f.n, argv[1], author ? author : app_author(), &imported, &o.err);
    int code = rc == ES_OK ? EXIT_DONE : app_fail(&o.err);
    if (rc == ES_OK && the_app.json)
        code = app_print_json(json_pack("{s:i}", "imported", imported));
    else if (rc == ES_OK)
        app_note("imported %d labels", imported);
    labels_close(&o);
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
    labels_open o = {0};
    json_t *all = NULL;
    rc = labels_open_all(&o, &o.err);
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
    labels_close(&o);
    return code;
}

int cmd_label(int argc, char **argv)
{
    static const command table[] = {
        {"add", "or change a label", label_add},
        {"auto", "labels and scores from a language model", cmd_label_auto},
        {"import", "a JSONL file of labels", label_import},
        {"export", "all labels", label_export},
        {"carry", "the labels of another dictionary of the same model", label_carry},
        {"undo", "the newest change", label_undo},
        {"redo", "what was undone last", label_redo},
        {"merge", "the labels of several people, each kept apart", label_merge},
        {"conflicts", "features that people label differently", label_conflicts},
        {"choose", "whose label of a feature is shown", label_choose},
        {"show-first", "whose labels are shown where none is chosen", label_show_first},
        {"agreement", "how far annotators agree: Cohen's kappa", label_agreement},
        {"test", "of a label: ten windows, which of them activate the feature?", label_test},
        {0},
    };
    return app_subcommand("label", "Names for features, kept in the workspace with author, time and history.", table, argc, argv);
}
