/* harvest, train, dictionary, atlas: from texts to a dictionary and what its features look like. */
#include "app.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cmd_harvest(int argc, char **argv)
{
    es_harvest_options o = es_harvest_default();
    const char *out = NULL;
    opt_ints layers = {0};
    bool with_first = false;
    const opt table[] = {
        {"layers", "L,L,...", OPT_LIST, &layers, 0, 511, "the residual after these layers, counted from 0", NULL},
        {"out", "DIR", OPT_TEXT, &out, 0, 0, "where the shards go; an interrupted harvest goes on", NULL},
        {"tokens", "N", OPT_COUNT, &o.max_tokens, 0, 1e12, "stop after N stored tokens; 0: all (2M is two million)", NULL},
        {"context", "N", OPT_INT, &o.context, 8, 8192, "tokens in a sequence (default 256)", NULL},
        {"seed", "S", OPT_COUNT, &o.seed, 0, 1.8e19, "read the documents in a shuffled order; 0: as they are", NULL},
        {"with-first", NULL, OPT_FLAG, &with_first, 0, 0, "keep each sequence's first token, whose norm is unlike all others", NULL},
        {0},
    };
    static const command_help help = {
        "harvest", "FILE... --layers L,L --out DIR",
        "Runs the model over texts and stores the residual after the named layers as f16 shards. Files: .txt (one document), .jsonl with\n"
        "\"text\", or chats ({\"messages\":[...]} or {\"prompt\",\"response\"}), rendered in the model's own template.",
        "  espalier harvest docs.jsonl chats.jsonl --layers 10,15,20 --tokens 2M --out harvest", 1, -1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (!layers.n || !out)
        return opts_usage_error("harvest", "%s is missing", layers.n ? "--out DIR" : "--layers L,L");
    o.layer = layers.value;
    o.n_layer = layers.n;
    o.threads = the_app.threads;
    if (with_first)
        o.skip_first = false;
    es_error err = {0};
    es_model *m = NULL;
    es_progress progress = app_progress();
    double began = es_seconds();
    rc = app_model(&m, &err);
    if (rc == ES_OK)
        rc = es_harvest(m, (const char *const *)argv + 1, n, out, &o, &progress, &err);
    app_progress_end();
    es_model_free(m);
    if (rc != ES_OK)
        return app_fail(&err);
    if (!the_app.json) {
        app_note("harvested into %s in %.0f s", out, es_seconds() - began);
        return EXIT_DONE;
    }
    char path[1200];
    json_t *about = NULL;
    snprintf(path, sizeof path, "%s/harvest.json", out);
    return es_json_file(&about, path, &err) == ES_OK ? app_print_json(about) : app_fail(&err);
}

int cmd_train(int argc, char **argv)
{
    es_dictionary_training o = es_dictionary_training_default();
    const char *out = NULL;
    int layer = -2;
    bool f32 = false, aux_given = false;
    const opt table[] = {
        {"layer", "L", OPT_INT, &layer, -1, 511, "which of the harvest's layers", NULL},
        {"out", "DIR", OPT_TEXT, &out, 0, 0, "the dictionary's folder; an interrupted training goes on", NULL},
        {"features", "F", OPT_INT, &o.n_features, 2, 1 << 22, "features", NULL},
        {"k", "K", OPT_INT, &o.k, 1, 65536, "active features a token, on average", NULL},
        {"tokens", "N", OPT_COUNT, &o.tokens, 1, 1e12, "tokens to see in all; more than the harvest's: several times over", NULL},
        {"batch", "N", OPT_INT, &o.batch, 16, 1 << 20, "tokens a step", NULL},
        {"rate", "R", OPT_REAL, &o.learning_rate, 0, 1, "learning rate; 0: from the number of features", NULL},
        {"aux-k", "K", OPT_INT, &o.aux_k, 0, 65536, "dead features that reconstruct the error", &aux_given},
        {"aux-weight", "W", OPT_REAL, &o.aux_weight, 0, 10, "weight of that loss", NULL},
        {"dead-tokens", "N", OPT_COUNT, &o.dead_tokens, 1, 1e12, "a feature silent for so many tokens is dead", NULL},
        {"warmup", "SHARE", OPT_REAL, &o.warmup, 0, 1, "share of the run in which the rate rises", NULL},
        {"decay", "SHARE", OPT_REAL, &o.decay, 0, 1, "share of the run in which it falls", NULL},
        {"checkpoint", "SECONDS", OPT_REAL, &o.checkpoint_seconds, 1, 1e6, "how often the state is saved", NULL},
        {"seed", "S", OPT_COUNT, &o.seed, 0, 1.8e19, "of the initial weights and the order", NULL},
        {"f32", NULL, OPT_FLAG, &f32, 0, 0, "write f32 weights, not f16", NULL},
        {0},
    };
    static const command_help help = {
        "train", "HARVEST --layer L --out DIR",
        "Trains a BatchTopK dictionary on one layer of a harvest and writes it as a SAELens folder (jumprelu).",
        "  espalier train harvest --layer 15 --features 6144 --k 32 --tokens 4M --out dictionary-l15", 1, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (layer == -2 || !out)
        return opts_usage_error("train", "%s is missing", out ? "--layer L" : "--out DIR");
    o.threads = the_app.threads;
    if (!aux_given && o.aux_k > o.n_features / 2)
        o.aux_k = o.n_features / 2;
    if (f32)
        o.half = false;
    es_error err = {0};
    es_progress progress = app_progress();
    double began = es_seconds();
    rc = app_device(&o.card, &err);
    if (rc != ES_OK)
        return app_fail(&err);
    rc = es_dictionary_train(argv[1], layer, out, &o, &progress, &err);
    app_progress_end();
    if (rc != ES_OK)
        return app_fail(&err);
    double seconds = es_seconds() - began;
    if (the_app.json)
        return app_print_json(json_pack("{s:s,s:i,s:i,s:f}", "dictionary", out, "layer", layer, "features", o.n_features, "seconds", seconds));
    app_note("trained %s in %.0f s", out, seconds);
    return EXIT_DONE;
}

/* ---- dictionary stats, info ----------------------------------------------------------------------------------------------- */

static int dictionary_info(int argc, char **argv)
{
    static const command_help help = {"dictionary info", "PATH", "What a dictionary's files say of it.", "  espalier dictionary info dictionary-l15", 1, 1};
    int n;
    int rc = opts_parse(&help, NULL, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    es_error err = {0};
    es_dictionary *s = NULL;
    if (es_dictionary_open(&s, argv[1], &err) != ES_OK)
        return app_fail(&err);
    const es_dictionary_info *i = es_dictionary_get_info(s);
    int code;
    if (the_app.json) {
        code = app_print_json(json_pack("{s:s,s:s,s:s,s:s,s:s,s:i,s:i,s:i,s:i,s:s,s:s,s:s,s:b,s:s}", "name", i->name, "format", i->format, "l0", i->l0, "architecture", es_architecture_name(i->architecture),
                                        "hook", i->hook_name, "layer", i->layer, "d", i->d, "d_out", i->d_out, "features", i->n_features, "hash", i->hash, "model", i->model_name,
                                        "model_hash", i->model_hash, "apply_b_dec_to_input", i->apply_b_dec_to_input, "normalize",
                                        i->normalize_activations));
    } else {
        char a[300], b[300];
        printf("name          %s\nformat        %s\narchitecture  %s%s\nreads         %s", app_shown(i->name, a, sizeof a), i->format,
               es_architecture_name(i->architecture), i->transcoder ? " transcoder" : "", es_hook_words(i->hook));
        if (i->hook != ES_HOOK_UNKNOWN)
            printf(", layer %d (%s)", i->layer, app_shown(i->hook_name, a, sizeof a));
        if (*i->l0)
            printf("\nl0            %s", app_shown(i->l0, a, sizeof a));
        printf("\nwidth         %d\nfeatures      %d\nhash          %s\nmodel         %s\nmodel hash    %s\n", i->d, i->n_features, i->hash,
               app_shown(i->model_name, b, sizeof b), *i->model_hash ? i->model_hash : "not named");
        code = app_flush();
    }
    es_dictionary_free(s);
    return code;
}

static int dictionary_stats(int argc, char **argv)
{
    uint64_t tokens = 20000;
    const opt table[] = {
        {"tokens", "N", OPT_COUNT, &tokens, 100, 1e10, "tokens to measure on (default 20k)", NULL},
        {0},
    };
    static const command_help help = {
        "dictionary stats", "FOLDER FILE...",
        "A dictionary's figures on texts: fraction of variance unexplained (fvu), active features a token (l0), share of features that never\n"
        "fire (dead) or fire on more than a tenth of tokens (dense), and the share of the model's cross-entropy recovered when the\n"
        "reconstruction replaces the residual (against putting zero there).",
        "  espalier dictionary stats dictionary-l15 held-out.jsonl --tokens 50k --json", 2, -1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    es_error err = {0};
    es_model *m = NULL;
    es_dictionary *s = NULL;
    es_dictionary_stats st = {0};
    es_progress progress = app_progress();
    rc = app_model(&m, &err);
    if (rc == ES_OK)
        rc = es_dictionary_open(&s, argv[1], &err);
    if (rc == ES_OK)
        rc = es_dictionary_check_model(s, m, &err);
    if (rc == ES_OK)
        rc = es_dictionary_measure(m, s, (const char *const *)argv + 2, n - 1, tokens, the_app.threads, &st, &progress, &err);
    app_progress_end();
    int code;
    if (rc != ES_OK) {
        code = app_fail(&err);
    } else if (the_app.json) {
        code = app_print_json(json_pack("{s:I,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f}", "tokens", (json_int_t)st.tokens, "fvu", st.fvu, "l0", st.l0,
                                        "dead", st.dead, "dense", st.dense, "mean_cosine", st.mean_cosine, "ce", st.ce, "ce_patched",
                                        st.ce_patched, "ce_zero", st.ce_zero, "recovered", st.recovered));
    } else {
        printf("tokens       %llu\nfvu          %.4f\nl0           %.2f\ndead         %.2f %%\ndense        %.2f %%\nmean cosine  %.4f\n"
               "ce           %.4f nats a token; with the reconstruction %.4f, with zero %.4f\nrecovered    %.2f %%\n",
               (unsigned long long)st.tokens, st.fvu, st.l0, 100 * st.dead, 100 * st.dense, st.mean_cosine, st.ce, st.ce_patched, st.ce_zero,
               100 * st.recovered);
        code = app_flush();
    }
    es_dictionary_free(s);
    es_model_free(m);
    return code;
}

static int dictionary_convert(int argc, char **argv)
{
    const char *to = NULL;
    const opt table[] = {
        {"to", "FORMAT", OPT_TEXT, &to, 0, 0, "saelens, gemma-scope, gemma-scope-2, dictionary-learning or llama-scope", NULL},
        {0},
    };
    static const command_help help = {
        "dictionary convert", "PATH FOLDER --to FORMAT",
        "Writes a dictionary in another format. Numbers stay as they are, to the bit; where a format has no place for a decoder bias taken off\n"
        "the input, that is folded into the encoder's. What a format cannot say (gates, topk, normalised inputs) is refused.",
        "  espalier dictionary convert layer_20/width_16k/average_l0_71 gemma-l20 --to saelens", 2, 2};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    bool known = false, writes = false;
    const char *name;
    for (int i = 0; to && !known && (name = es_dictionary_format(i, NULL, &writes)); i++)
        known = writes && !strcmp(name, to);
    if (!known)
        return to ? opts_usage_error("dictionary convert", "'%s' is no format that is written: --help names them", to)
                  : opts_usage_error("dictionary convert", "--to FORMAT is missing");
    es_error err = {0};
    if (es_dictionary_convert(argv[1], argv[2], to, &err) != ES_OK)
        return app_fail(&err);
    if (the_app.json)
        return app_print_json(json_pack("{s:s,s:s}", "dictionary", argv[2], "format", to));
    app_note("wrote %s", argv[2]);
    return EXIT_DONE;
}

int cmd_dictionary(int argc, char **argv)
{
    static const command table[] = {
        {"info", "what a dictionary says of itself", dictionary_info},
        {"stats", "its figures on texts", dictionary_stats},
        {"convert", "write it in another format", dictionary_convert},
        {0},
    };
    return app_subcommand("dictionary", "Sparse autoencoders: folders or files of SAELens, Gemma Scope 1 and 2, dictionary_learning and Llama Scope.", table, argc, argv);
}

int cmd_atlas(int argc, char **argv)
{
    es_atlas_options o = es_atlas_default();
    const char *harvest = NULL, *out = NULL;
    const opt table[] = {
        {"harvest", "DIR", OPT_TEXT, &harvest, 0, 0, "a harvest that has the dictionary's layer", NULL},
        {"out", "FILE", OPT_TEXT, &out, 0, 0, "default: " APP_ATLAS_NAME " in the dictionary's folder", NULL},
        {"examples", "N", OPT_INT, &o.examples, 1, 1000, "examples a feature (default 20)", NULL},
        {"window", "N", OPT_INT, &o.window, 4, 256, "tokens an example (default 24)", NULL},
        {"tokens", "N", OPT_COUNT, &o.max_tokens, 0, 1e12, "read so many of the harvest's tokens; 0: all", NULL},
        {0},
    };
    static const command_help help = {
        "atlas", "FOLDER --harvest DIR",
        "Examples, histogram, density, promoted and suppressed tokens of every feature of a dictionary, in one compressed file.",
        "  espalier atlas dictionary-l15 --harvest harvest", 1, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (!harvest)
        return opts_usage_error("atlas", "--harvest DIR is missing");
    o.threads = the_app.threads;
    char path[1200];
    if (snprintf(path, sizeof path, "%s%s", out ? out : argv[1], out ? "" : "/" APP_ATLAS_NAME) >= (int)sizeof path)
        return opts_usage_error("atlas", "the path is too long");
    es_error err = {0};
    es_model *m = NULL;
    es_dictionary *s = NULL;
    es_progress progress = app_progress();
    rc = app_model(&m, &err);
    if (rc == ES_OK)
        rc = es_dictionary_open(&s, argv[1], &err);
    if (rc == ES_OK)
        rc = es_dictionary_check_model(s, m, &err);
    if (rc == ES_OK)
        rc = es_atlas_build(m, s, harvest, path, &o, &progress, &err);
    app_progress_end();
    es_dictionary_free(s);
    es_model_free(m);
    if (rc != ES_OK)
        return app_fail(&err);
    if (the_app.json)
        return app_print_json(json_pack("{s:s}", "atlas", path));
    app_note("wrote %s", path);
    return EXIT_DONE;
}
