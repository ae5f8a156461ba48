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

int cmd_score(int argc, char **argv)
{
    const char *adapter_path = NULL;
    const opt table[] = {
        {"adapter", "FILE", OPT_TEXT, &adapter_path, 0, 0, "with this adapter", NULL},
        {0},
    };
    static const command_help help = {
        "score", "FILE|-",
        "The log-probability (nats) of each token of a text given those before it: the text as it is, no template; before it the token that the\n"
        "model's file wants in front of every text, if any (Gemma's and Llama 3's do). Exact: f32 activations, dequantised weights. With --json: {\"tokens\":[ids],\"logprobs\":[null,...],\"mean\":...}.",
        "  espalier score letter.txt\n  espalier score letter.txt --adapter brief.safetensors --json", 1, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    es_error err = {0};
    es_model *m = NULL;
    es_ids ids = {0};
    app_features f = {0};
    es_adapter *adapter = NULL;
    es_patch patch;
    float *logprob = NULL;
    rc = app_model(&m, &err);
    if (rc == ES_OK)
        rc = read_ids(m, argv[1], true, false, &ids, &err);
    if (rc == ES_OK && adapter_path)
        rc = app_adapter(&adapter, &f, m, adapter_path, &err);
    if (rc == ES_OK && adapter)
        rc = es_adapter_patch(adapter, 1, &patch, &err);
    if (rc == ES_OK && !(logprob = es_calloc(ids.n + 1, sizeof *logprob)))
        rc = es_fail(&err, ES_ERR_MEMORY, "not enough memory for %zu tokens", ids.n);
    es_progress progress = app_progress();
    if (rc == ES_OK && ids.n > 0)
        rc = es_score(m, ids.id, (int)ids.n, adapter ? &patch : NULL, the_app.threads, logprob, &progress, &err);
    app_progress_end();
    int code;
    if (rc != ES_OK) {
        code = app_fail(&err);
    } else {
        double sum = 0;
        for (size_t i = 1; i < ids.n; i++)
            sum += logprob[i];
        double mean = ids.n > 1 ? sum / (double)(ids.n - 1) : 0;
        if (the_app.json) {
            json_t *tokens = json_array(), *values = json_array();
            for (size_t i = 0; i < ids.n; i++) {
                json_array_append_new(tokens, json_integer(ids.id[i]));
                json_array_append_new(values, i == 0 || !isfinite(logprob[i]) ? json_null() : json_real(logprob[i]));
            }
            code = app_print_json(json_pack("{s:o,s:o,s:f}", "tokens", tokens, "logprobs", values, "mean", mean));
        } else {
            es_buf p = {0};
            for (size_t i = 0; i < ids.n; i++) {
                piece(m, ids.id[i], &p);
                if (i == 0)
                    printf("%10s  %s\n", "-", p.data ? p.data : "");
                else
                    printf("%10.4f  %s\n", (double)logprob[i], p.data ? p.data : "");
            }
            es_buf_free(&p);
            printf("%zu tokens, mean %.4f nats, perplexity %.3f\n", ids.n, mean, exp(-mean));
            code = app_flush();
        }
    }
    free(logprob);
    es_adapter_free(adapter);
    app_features_close(&f);
    es_ids_free(&ids);
    es_model_free(m);
    return code;
}

/* ---- encode ---------------------------------------------------------------------------------------------------------------- */

int cmd_encode(int argc, char **argv)
{
    int top = 5;
    const opt table[] = {
        {"top", "N", OPT_INT, &top, 1, 1000, "features a token (default 5)", NULL},
        {0},
    };
    static const command_help help = {
        "encode", "FILE|-",
        "The strongest features at each token of a text. With --json: {\"layer\",\"tokens\":[{\"id\",\"piece\",\"active\",\"features\":[{\"feature\",\n"
        "\"value\",\"label\"}]}]}. A text's first token is unlike all others and says little.",
        "  espalier encode letter.txt --top 3\n  echo \"Thank you so much\" | espalier encode - --json", 1, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    es_error err = {0};
    es_model *m = NULL;
    es_ids ids = {0};
    app_features f = {0};
    es_sparse sparse = {0};
    rc = app_model(&m, &err);
    if (rc == ES_OK)
        rc = app_features_open(&f, m, &err);
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
