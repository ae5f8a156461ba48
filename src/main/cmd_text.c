/* tokenize, score, encode: what the model and the dictionary make of a text. */
#include "app.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_LIMIT = 64 << 20 };

/* A token's text for people: what is not whole UTF-8 or would act on a terminal is written as an escape. */
static void piece(const es_model *m, int32_t id, es_buf *out)
{
    size_t n;
    const char *s = es_token_bytes(m, id, &n);
    es_buf_clear(out);
    es_text_show(out, s, n, false);
}

/* The tokens of a file; whole: with the one that the model wants in front of every text, if it wants one. */
static int read_ids(const es_model *m, const char *path, bool whole, bool special, es_ids *ids, es_error *err)
{
    es_buf text = {0};
    int rc = es_file_read(&text, path, TEXT_LIMIT, err);
    if (rc == ES_OK)
        rc = whole ? es_tokenize_text(m, text.data, text.len, ids, err) : es_tokenize(m, text.data, text.len, special, ids, err);
    es_buf_free(&text);
    if (rc == ES_OK && ids->n > 100000000)
        rc = es_fail(err, ES_ERR_LIMIT, "%s: has too many tokens", path);
    return rc;
}

int cmd_tokenize(int argc, char **argv)
{
    const char *file = NULL;
    bool special = false;
    const opt table[] = {
        {"file", "FILE", OPT_TEXT, &file, 0, 0, "the text of a file", NULL},
        {"special", NULL, OPT_FLAG, &special, 0, 0, "control tokens written in the text, such as <|im_start|>, become their ids", NULL},
        {0},
    };
    static const command_help help = {
        "tokenize", "TEXT|-",
        "The tokens of a text: one a line, id and piece. With --json: {\"tokens\":[ids],\"pieces\":[...]}; a piece that is part of a\n"
        "character or holds control bytes shows them as \\xNN.",
        "  espalier tokenize \"Hello, world\"\n  espalier tokenize --file README.md --json", 0, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if ((n == 1) == (file != NULL))
        return opts_usage_error("tokenize", n ? "a text and --file are one too many" : "a text or --file FILE is missing");
    es_error err = {0};
    es_model *m = NULL;
    es_ids ids = {0};
    es_buf p = {0};
    rc = app_model(&m, &err);
    if (rc == ES_OK && (file || !strcmp(argv[1], "-")))
        rc = read_ids(m, file ? file : "-", false, special, &ids, &err);
    else if (rc == ES_OK)
        rc = es_tokenize(m, argv[1], strlen(argv[1]), special, &ids, &err);
    int code;
    if (rc != ES_OK) {
        code = app_fail(&err);
    } else if (the_app.json) {
        json_t *tokens = json_array(), *pieces = json_array();
        for (size_t i = 0; i < ids.n; i++) {
            piece(m, ids.id[i], &p);
            json_array_append_new(tokens, json_integer(ids.id[i]));
            json_array_append_new(pieces, json_stringn(p.data ? p.data : "", p.len));
        }
        code = app_print_json(json_pack("{s:o,s:o}", "tokens", tokens, "pieces", pieces));
    } else {
        for (size_t i = 0; i < ids.n; i++) {
            piece(m, ids.id[i], &p);
            printf("%6d  %s\n", ids.id[i], p.data ? p.data : "");
        }
        code = app_flush();
    }
    es_buf_free(&p);
    es_ids_free(&ids);
    es_model_free(m);
    return code;
}

typedef struct scores { /* of a text; decoded and kl NULL: not asked for */
    const es_model *m;
    es_ids ids;
    float *exact, *decoded, *kl;
} scores;

static double mean_of(const float *x, const float *less, size_t n)
{
    double sum = 0;
    for (size_t i = 1; i < n; i++)
        sum += less ? fabs((double)x[i] - less[i]) : x[i];
    return n > 1 ? sum / (double)(n - 1) : 0;
}

static json_t *numbers(const float *x, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, i == 0 || !isfinite(x[i]) ? json_null() : json_real(x[i]));
    return list;
}

static int scores_json(const scores *s)
{
    size_t n = s->ids.n;
    json_t *tokens = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(tokens, json_integer(s->ids.id[i]));
    json_t *out = json_pack("{s:o,s:o,s:f}", "tokens", tokens, "logprobs", numbers(s->exact, n), "mean", mean_of(s->exact, NULL, n));
    if (out && s->decoded) {
        json_object_set_new(out, "decoded", numbers(s->decoded, n));
        json_object_set_new(out, "kls", numbers(s->kl, n));
        json_object_set_new(out, "difference", json_real(mean_of(s->decoded, s->exact, n)));
        json_object_set_new(out, "kl", json_real(mean_of(s->kl, NULL, n)));
    }
    return app_print_json(out);
}

static int scores_print(const scores *s)
{
    size_t n = s->ids.n;
    es_buf p = {0};
    for (size_t i = 0; i < n; i++) {
        piece(s->m, s->ids.id[i], &p);
        if (i == 0)
            printf("%10s%*s  %s\n", "-", s->decoded ? 12 : 0, "", p.data ? p.data : "");
        else if (s->decoded)
            printf("%10.4f  %10.4f  %s\n", (double)s->exact[i], (double)s->decoded[i], p.data ? p.data : "");
        else
            printf("%10.4f  %s\n", (double)s->exact[i], p.data ? p.data : "");
    }
    es_buf_free(&p);
    double mean = mean_of(s->exact, NULL, n);
    printf("%zu tokens, mean %.4f nats, perplexity %.3f\n", n, mean, exp(-mean));
    if (s->decoded)
        printf("as a chat reads: %.4f nats off a token, KL %.6f\n", mean_of(s->decoded, s->exact, n), mean_of(s->kl, NULL, n));
    return app_flush();
}

static int score(scores *s, const es_patch *patch, bool decoded, es_error *err)
{
    size_t n = s->ids.n;
    es_progress progress = app_progress();
    s->exact = es_calloc(n + 1, sizeof *s->exact);
    s->decoded = decoded ? es_calloc(n + 1, sizeof *s->decoded) : NULL;
    s->kl = decoded ? es_calloc(n + 1, sizeof *s->kl) : NULL;
    if (!s->exact || (decoded && (!s->decoded || !s->kl)))
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for %zu tokens", n);
    int rc = n ? es_score(s->m, s->ids.id, (int)n, patch, the_app.threads, s->exact, &progress, err) : ES_OK;
    if (rc == ES_OK && n && decoded)
        rc = es_score_decoded(s->m, s->ids.id, (int)n, patch, the_app.threads, s->decoded, s->kl, &progress, err);
    app_progress_end();
    return rc;
}

int cmd_score(int argc, char **argv)
{
    const char *adapter_path = NULL;
    bool decoded = false;
    const opt table[] = {
        {"adapter", "FILE", OPT_TEXT, &adapter_path, 0, 0, "with this adapter", NULL},
        {"decoded", NULL, OPT_FLAG, &decoded, 0, 0, "beside it the same as a chat reads, token by token with rounded activations, and how far that is off", NULL},
        {0},
    };
    static const command_help help = {
        "score", "FILE|-",
        "The log-probability (nats) of each token of a text given those before it: the text as it is, no template; before it the token that the\n"
        "model's file wants in front of every text, if any (Gemma's and Llama 3's do). Exact: f32 activations, dequantised weights.\n"
        "With --json: {\"tokens\":[ids],\"logprobs\":[null,...],\"mean\"}, with --decoded also {\"decoded\":[...],\"kls\":[...],\"difference\",\"kl\"}: the mean\n"
        "absolute difference a token, and the mean KL divergence of the predictions from the exact ones.",
        "  espalier score letter.txt\n  espalier score letter.txt --adapter brief.safetensors --json", 1, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    es_error err = {0};
    es_model *m = NULL;
    scores s = {0};
    app_features f = {0};
    es_adapter *adapter = NULL;
    es_patch patch;
    rc = app_model(&m, &err);
    s.m = m;
    if (rc == ES_OK)
        rc = read_ids(m, argv[1], true, false, &s.ids, &err);
    if (rc == ES_OK && adapter_path)
        rc = app_adapter(&adapter, &f, m, adapter_path, &err);
    if (rc == ES_OK && adapter)
        rc = es_adapter_patch(adapter, 1, &patch, &err);
    if (rc == ES_OK)
        rc = score(&s, adapter ? &patch : NULL, decoded, &err);
    int code = rc != ES_OK ? app_fail(&err) : the_app.json ? scores_json(&s) : scores_print(&s);
    free(s.exact);
    free(s.decoded);
    free(s.kl);
    es_adapter_free(adapter);
    app_features_close(&f);
    es_ids_free(&s.ids);
    es_model_free(m);
    return code;
}

/* ---- encode ---------------------------------------------------------------------------------------------------------------- */

enum { MATRIX_ROWS = 256, ROWS_ON_CARD = 2048 };

static void print_row(size_t token, const es_sparse *s, int row, int top)
{
    size_t from = s->start[row], stop = s->start[row + 1] - from > (size_t)top ? from + (size_t)top : s->start[row + 1];
    if (the_app.json)
        printf("%s{\"features\":[", token ? "," : "");
    else
        printf("token %zu: %zu active\n", token, s->start[row + 1] - from);
    for (size_t i = from; i < stop; i++)
        if (the_app.json)
            printf("%s{\"index\":%d,\"activation\":%.9g}", i > from ? "," : "", s->index[i], (double)s->value[i]);
        else
            printf("    %7d %10.4g\n", s->index[i], (double)s->value[i]);
    if (the_app.json)
        printf("]}");
}

/* Activations from a file, some rows at a time: neither they nor the answer need to fit in memory. */
static int encode_matrix(const char *path, int top)
{
    const char *named = the_app.dictionaries.n ? the_app.dictionaries.value[0] : the_app.config_dictionary;
    char folder[1200];
    if (!named)
        return opts_usage_error("encode", "activations need --dictionary PATH: the dictionary to encode them with");
    app_dictionary_named(folder, sizeof folder, named);
    es_error err = {0};
    es_activations *a = NULL;
    es_dictionary *s = NULL;
    es_pool *pool = NULL;
    es_sparse sparse = {0};
    float *x = NULL;
    size_t rows = 0;
    int d = 0;
    int rc = es_activations_open(&a, path, &rows, &d, &err);
    es_cuda *card = NULL;
    if (rc == ES_OK)
        rc = app_device(&card, &err);
    if (rc == ES_OK)
        rc = es_dictionary_open_with(&s, folder, &(es_dictionary_options){.no_hash = true, .card = card}, &err);
    if (rc == ES_OK && es_dictionary_get_info(s)->d != d)
        rc = es_fail(&err, ES_ERR_MISMATCH, "%s: has activations of width %d; the dictionary %s reads width %d", path, d, es_dictionary_get_info(s)->name,
                     es_dictionary_get_info(s)->d);
    if (rc == ES_OK)
        rc = es_pool_open(&pool, the_app.threads, &err);
    const size_t turn = card ? ROWS_ON_CARD : MATRIX_ROWS;
    if (rc == ES_OK && !(x = es_calloc(turn * (size_t)d, sizeof *x)))
        rc = es_fail(&err, ES_ERR_MEMORY, "not enough memory for %zu activations", turn);
    if (rc == ES_OK && the_app.json)
        printf("{\"tokens\":[");
    for (size_t at = 0; at < rows && rc == ES_OK; at += turn) {
        size_t n = rows - at < turn ? rows - at : turn;
        es_activations_read(a, at, n, x);
        rc = es_dictionary_encode(s, pool, x, (int)n, &sparse, &err);
        for (size_t t = 0; t < n && rc == ES_OK; t++)
            print_row(at + t, &sparse, (int)t, top);
        if (rc == ES_OK && __atomic_load_n(&app_cancel, __ATOMIC_RELAXED))
            rc = es_fail(&err, ES_ERR_CANCELLED, "encoding was cancelled");
    }
    if (rc == ES_OK && the_app.json)
        printf("]}\n");
    es_sparse_free(&sparse);
    es_pool_free(pool);
    es_dictionary_free(s);
    es_activations_free(a);
    free(x);
    return rc == ES_OK ? app_flush() : app_fail(&err);
}

int cmd_encode(int argc, char **argv)
{
    int top = 5;
    const opt table[] = {
        {"top", "N", OPT_INT, &top, 1, 1 << 20, "features a token (default 5)", NULL},
        {0},
    };
    static const command_help help = {
        "encode", "FILE|-",
        "The strongest features at each token of a text. With --json: {\"layer\",\"tokens\":[{\"id\",\"piece\",\"active\",\"features\":[{\"feature\",\n"
        "\"value\",\"label\"}]}]}. A text's first token is unlike all others and says little.\n"
        "FILE.npy holds activations [tokens, width] of whatever --dictionary reads; no model is needed. With --json:\n"
        "{\"tokens\":[{\"features\":[{\"index\",\"activation\"}]}]}.",
        "  espalier encode letter.txt --top 3\n  echo \"Thank you so much\" | espalier encode - --json\n"
        "  espalier encode acts.npy --dictionary layer_20/width_16k/average_l0_71 --top 20 --json", 1, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    size_t len = strlen(argv[1]);
    if (len > 4 && !strcmp(argv[1] + len - 4, ".npy"))
        return encode_matrix(argv[1], top);
    es_error err = {0};
    es_model *m = NULL;
    es_ids ids = {0};
    app_features f = {0};
    es_sparse sparse = {0};
    rc = app_model(&m, &err);
    if (rc == ES_OK)
        rc = app_features_look(&f, m, &err);
    if (rc == ES_OK)
        rc = read_ids(m, argv[1], true, false, &ids, &err);
    if (rc == ES_OK)
        rc = app_encode(&f, m, &ids, &sparse, &err);
    int code;
    if (rc != ES_OK) {
        code = app_fail(&err);
    } else {
        char **labels = app_labels(&f, m);
        es_buf p = {0};
        json_t *list = the_app.json ? json_array() : NULL;
        for (size_t t = 0; t < ids.n; t++) {
            size_t from = sparse.start[t], to = sparse.start[t + 1];
            size_t stop = to - from > (size_t)top ? from + (size_t)top : to;
            piece(m, ids.id[t], &p);
            if (the_app.json) {
                json_t *some = json_array();
                for (size_t i = from; i < stop; i++) {
                    const char *label = labels ? labels[sparse.index[i]] : NULL;
                    json_array_append_new(some, json_pack("{s:i,s:f,s:s?}", "feature", sparse.index[i], "value", (double)sparse.value[i], "label", label));
                }
                json_array_append_new(list, json_pack("{s:i,s:s,s:I,s:o}", "id", ids.id[t], "piece", p.data ? p.data : "", "active",
                                                      (json_int_t)(to - from), "features", some));
            } else {
                printf("%s\n", p.data ? p.data : "");
                for (size_t i = from; i < stop; i++) {
                    char label[200];
                    printf("    %6d %8.3f  %s\n", sparse.index[i], (double)sparse.value[i],
                           app_shown(labels && labels[sparse.index[i]] ? labels[sparse.index[i]] : "", label, sizeof label));
                }
            }
        }
        code = the_app.json ? app_print_json(json_pack("{s:i,s:o}", "layer", es_dictionary_get_info(f.dictionary)->layer, "tokens", list)) : app_flush();
        es_buf_free(&p);
        app_labels_free(labels, f.n);
    }
    es_sparse_free(&sparse);
    app_features_close(&f);
    es_ids_free(&ids);
    es_model_free(m);
    return code;
}
