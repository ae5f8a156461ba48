/* harvest, dictionary, atlas: from texts to activations, and what a dictionary and its features look like. */
#include "app.h"
#include "cmd_eval.h"
#include "neuronpedia.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cmd_harvest(int argc, char **argv)
{
    es_harvest_options o = es_harvest_default();
    const char *out = NULL, *site = NULL;
    opt_ints layers = {0};
    app_sites sites;
    bool with_first = false;
    const opt table[] = {
        {"layers", "L,L,...", OPT_LIST, &layers, 0, 511, "of these layers, counted from 0", NULL},
        {"site", "S,S", OPT_TEXT, &site, 0, 0, "what is stored of each: resid (default), attn, mlp, z", NULL},
        {"out", "DIR", OPT_TEXT, &out, 0, 0, "where the shards go; an interrupted harvest goes on", NULL},
        {"tokens", "N", OPT_COUNT, &o.max_tokens, 0, 1e12, "stop after N stored tokens; 0: all (2M is two million)", NULL},
        {"context", "N", OPT_INT, &o.context, 8, 8192, "tokens in a sequence (default 256)", NULL},
        {"seed", "S", OPT_COUNT, &o.seed, 0, 1.8e19, "read the documents in a shuffled order; 0: as they are", NULL},
        {"exact", NULL, OPT_FLAG, &o.exact, 0, 0, "products in f32, not on integers of 8 bits and bfloat16 where the processor has these", NULL},
        {"with-first", NULL, OPT_FLAG, &with_first, 0, 0, "keep each sequence's first token, whose norm is unlike all others", NULL},
        {0},
    };
    static const command_help help = {
        "harvest", "FILE... --layers L,L --out DIR",
        "Runs the model over texts and stores the residual after the named layers as f16 shards. Files: .txt (one document), .jsonl with\n"
        "\"text\", or chats ({\"messages\":[...]} or {\"prompt\",\"response\"}), rendered in the model's own template. Other sites of a layer:\n"
        "attn and mlp, what its attention and its MLP add to the residual (hook_attn_out, hook_mlp_out); z, the attention's heads side by side\n"
        "before their output matrix (hook_z). All layers and sites are taken in one pass.",
        "  espalier harvest docs.jsonl chats.jsonl --layers 10,15,20 --tokens 2M --out harvest\n"
        "  espalier harvest docs.jsonl --layers 14 --site resid,attn,mlp --tokens 2M --out harvest", 1, -1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (!layers.n || !out)
        return opts_usage_error("harvest", "%s is missing", layers.n ? "--out DIR" : "--layers L,L");
    if ((rc = app_sites_of("harvest", site, &sites)) != OPTS_GO)
        return rc;
    o.layer = layers.value;
    o.n_layer = layers.n;
    o.site = sites.site;
    o.n_site = sites.n;
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

/* ---- dictionary list ------------------------------------------------------------------------------------------------------------------------ */

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* Those of a folder that can be opened; what cannot is passed over. */
static void list_folder(json_t *list, const char *parent)
{
    struct dirent **entry = NULL;
    int n = scandir(parent, &entry, NULL, by_name);
    for (int k = 0; k < n; k++) {
        char folder[1300];
        es_dictionary *s = NULL;
        const es_dictionary_options o = {.mapped = true, .no_hash = true};
        if (entry[k]->d_name[0] != '.' && snprintf(folder, sizeof folder, "%s/%s", parent, entry[k]->d_name) < (int)sizeof folder
            && es_dictionary_open_with(&s, folder, &o, NULL) == ES_OK) {
            const es_dictionary_info *i = es_dictionary_get_info(s);
            json_array_append_new(list, json_pack("{s:s,s:s,s:s,s:i,s:i,s:i,s:s,s:s}", "name", entry[k]->d_name, "folder", folder, "reads", es_hook_words(i->hook), "layer", i->layer,
                                                  "features", i->n_features, "d", i->d, "model", i->model_name, "model_hash", i->model_hash));
            es_dictionary_free(s);
        }
        free(entry[k]);
    }
    free(entry);
}

static int dictionary_list(int argc, char **argv)
{
    static const command_help help = {"dictionary list", "", "The dictionaries at hand: those in home's folder dictionaries, and those that come with the program. --dictionary takes their names.",
                                      "  espalier dictionary list\n  espalier features list --dictionary smollm2-135m-l20", 0, 0};
    int n;
    int rc = opts_parse(&help, NULL, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    char own[1200];
    size_t k;
    json_t *list = json_array(), *v;
    app_path(own, sizeof own, "dictionaries");
    list_folder(list, own);
    list_folder(list, ESPALIER_SHARE "/dictionaries");
    if (the_app.json)
        return app_print_json(list);
    json_array_foreach(list, k, v) {
        char name[80], model[200];
        printf("%-28s %8d features   %s, layer %d   %s\n", app_shown(json_string_value(json_object_get(v, "name")), name, sizeof name),
               (int)json_integer_value(json_object_get(v, "features")), json_string_value(json_object_get(v, "reads")), (int)json_integer_value(json_object_get(v, "layer")),
               app_shown(json_string_value(json_object_get(v, "model")), model, sizeof model));
    }
    json_decref(list);
    return app_flush();
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
        "reconstruction replaces what it reads (against putting zero there). At attention that share is not measured (null).",
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
        rc = es_dictionary_open_with(&s, argv[1], &(es_dictionary_options){.card = es_model_card(m)}, &err);
    if (rc == ES_OK)
        rc = es_dictionary_check_model(s, m, &err);
    if (rc == ES_OK)
        rc = es_dictionary_measure(m, s, (const char *const *)argv + 2, n - 1, tokens, the_app.threads, &st, &progress, &err);
    app_progress_end();
    int code;
    if (rc != ES_OK) {
        code = app_fail(&err);
    } else if (the_app.json) {
        json_t *v = json_pack("{s:I,s:f,s:f,s:f,s:f,s:f}", "tokens", (json_int_t)st.tokens, "fvu", st.fvu, "l0", st.l0, "dead", st.dead, "dense", st.dense, "mean_cosine",
                              st.mean_cosine);
        const struct { const char *name; double x; } ce[] = {{"ce", st.ce}, {"ce_patched", st.ce_patched}, {"ce_zero", st.ce_zero}, {"recovered", st.recovered}};
        for (size_t i = 0; i < sizeof ce / sizeof *ce; i++)
            json_object_set_new(v, ce[i].name, isfinite(ce[i].x) ? json_real(ce[i].x) : json_null());
        code = app_print_json(v);
    } else {
        printf("tokens       %llu\nfvu          %.4f\nl0           %.2f\ndead         %.2f %%\ndense        %.2f %%\nmean cosine  %.4f\n",
               (unsigned long long)st.tokens, st.fvu, st.l0, 100 * st.dead, 100 * st.dense, st.mean_cosine);
        if (isfinite(st.ce))
            printf("ce           %.4f nats a token; with the reconstruction %.4f, with zero %.4f\nrecovered    %.2f %%\n", st.ce, st.ce_patched, st.ce_zero, 100 * st.recovered);
        else
            printf("ce           not measured: of the residual and the MLP's output only, and not in the last layer\n");
        code = app_flush();
    }
    es_dictionary_free(s);
    es_model_free(m);
    return code;
}

/* What is known of how often features are active goes along: of the atlas beside the dictionary, or of its sparsity.safetensors. */
static int convert_density(const char *from, const char *folder, es_error *err)
{
    es_dictionary *s = NULL;
    es_dictionary_options o = {.mapped = true};
    char path[1200];
    int rc = es_dictionary_open_with(&s, from, &o, err);
    if (rc != ES_OK)
        return rc;
    const es_dictionary_info *i = es_dictionary_get_info(s);
    es_atlas *a = NULL;
    float *own = NULL;
    snprintf(path, sizeof path, "%s/" APP_ATLAS_NAME, i->folder);
    bool its = es_atlas_open(&a, path, NULL) == ES_OK && !strcmp(es_atlas_dictionary_hash(a), i->hash) && es_atlas_features(a) == i->n_features;
    const float *density = es_dictionary_density(s, its ? a : NULL, &own);
    if (density)
        rc = es_sparsity_write(folder, density, i->n_features, err);
    free(own);
    if (a)
        es_atlas_free(a);
    es_dictionary_free(s);
    return rc;
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
    if (es_dictionary_convert(argv[1], argv[2], to, &err) != ES_OK || (!strcmp(to, "saelens") && convert_density(argv[1], argv[2], &err) != ES_OK))
        return app_fail(&err);
    if (the_app.json)
        return app_print_json(json_pack("{s:s,s:s}", "dictionary", argv[2], "format", to));
    app_note("wrote %s", argv[2]);
    return EXIT_DONE;
}

static int dictionary_map(int argc, char **argv)
{
    es_layout_options o = es_layout_default();
    bool again = false;
    const opt table[] = {
        {"neighbours", "K", OPT_INT, &o.neighbours, 2, 64, "nearest decoder rows that hold a feature in place (default 15)", NULL},
        {"epochs", "N", OPT_INT, &o.epochs, 0, 100000, "rounds of placing; 0: 500 up to 10,000 features, 200 above", NULL},
        {"seed", "S", OPT_COUNT, &o.seed, 0, 1.8e19, "of the start and the draws (default 1)", NULL},
        {"again", NULL, OPT_FLAG, &again, 0, 0, "make it though it is kept", NULL},
        {0},
    };
    static const command_help help = {
        "dictionary map", "PATH",
        "A map of a dictionary: a point a feature, near those whose decoder rows point the same way (neighbours by cosine, laid out as UMAP and\n"
        "LargeVis do). Made once and kept in home; the workbench shows it (m in Features). --json gives the coordinates.",
        "  espalier dictionary map dictionary-l15\n  espalier dictionary map dictionary-l15 --json > map.json", 1, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    es_error err = {0};
    es_dictionary *s = NULL;
    float *xy = NULL;
    char hashes[1200], maps[1200];
    app_path(hashes, sizeof hashes, "hashes");
    app_path(maps, sizeof maps, "maps");
    o.threads = the_app.threads;
    es_progress progress = app_progress();
    double began = es_seconds();
    rc = es_dictionary_open_with(&s, argv[1], &(es_dictionary_options){.hashes = hashes}, &err);
    if (rc == ES_OK && !(xy = es_calloc(2 * (size_t)es_dictionary_get_info(s)->n_features, sizeof *xy)))
        rc = es_fail(&err, ES_ERR_MEMORY, "not enough memory for a map");
    if (rc == ES_OK && again)
        rc = es_layout_again(maps, s, &o, xy, &progress, &err);
    else if (rc == ES_OK)
        rc = es_layout_kept(maps, s, &o, xy, &progress, &err);
    app_progress_end();
    int code;
    if (rc != ES_OK) {
        code = app_fail(&err);
    } else if (the_app.json) {
        json_t *points = json_array();
        for (int i = 0; i < es_dictionary_get_info(s)->n_features; i++)
            json_array_append_new(points, json_pack("[f,f]", (double)xy[2 * i], (double)xy[2 * i + 1]));
        code = app_print_json(json_pack("{s:s,s:i,s:i,s:I,s:o}", "dictionary", es_dictionary_get_info(s)->hash, "features", es_dictionary_get_info(s)->n_features,
                                        "neighbours", o.neighbours, "seed", (json_int_t)o.seed, "points", points));
    } else {
        printf("%d features, %.1f s; kept in %s\n", es_dictionary_get_info(s)->n_features, es_seconds() - began, maps);
        code = app_flush();
    }
    free(xy);
    es_dictionary_free(s);
    return code;
}

int cmd_dictionary(int argc, char **argv)
{
    static const command table[] = {
        {"list", "those at hand", dictionary_list},
        {"info", "what a dictionary says of itself", dictionary_info},
        {"stats", "its figures on texts", dictionary_stats},
        {"evaluate", "the same, and probes, absorption, neighbours, steering", dictionary_evaluate},
        {"convert", "write it in another format", dictionary_convert},
        {"map", "its features in the plane", dictionary_map},
        {0},
    };
    return app_subcommand("dictionary", "Sparse autoencoders: folders or files of SAELens, Gemma Scope 1 and 2, dictionary_learning and Llama Scope.", table, argc, argv);
}

int cmd_atlas(int argc, char **argv)
{
    es_atlas_options o = es_atlas_default();
    const char *harvest = NULL, *out = NULL, *export = NULL, *source = NULL;
    const opt table[] = {
        {"harvest", "DIR", OPT_TEXT, &harvest, 0, 0, "a harvest that has the dictionary's layer and site", NULL},
        {"neuronpedia", "EXPORT", OPT_TEXT, &export, 0, 0, "no harvest: the dashboards of a Neuronpedia export (a folder MODEL/SOURCE), or of one feature's JSON", NULL},
        {"source", "ID", OPT_TEXT, &source, 0, 0, "neuronpedia: of this source, where there are several", NULL},
        {"out", "FILE", OPT_TEXT, &out, 0, 0, "default: " APP_ATLAS_NAME " in the dictionary's folder", NULL},
        {"examples", "N", OPT_INT, &o.examples, 1, 1000, "examples a feature (default 20)", NULL},
        {"window", "N", OPT_INT, &o.window, 4, 256, "tokens an example (default 24)", NULL},
        {"intervals", "N", OPT_INT, &o.spread, 0, 12, "places drawn at random from each fifth of a feature's activation (default 4)", NULL},
        {"tokens", "N", OPT_COUNT, &o.max_tokens, 0, 1e12, "read so many of the harvest's tokens; 0: all", NULL},
        {0},
    };
    static const command_help help = {
        "atlas", "FOLDER --harvest DIR | --neuronpedia EXPORT",
        "Examples, places drawn from each interval of activation, histogram, density, correlated features, promoted and suppressed tokens and the\n"
        "histogram of logits of every feature of a dictionary, in one compressed file. From a Neuronpedia export: what it has of that.",
        "  espalier atlas dictionary-l15 --harvest harvest\n  espalier atlas layer_20/width_16k/average_l0_71 --neuronpedia gemma-2-2b/20-gemmascope-res-16k", 1, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if (!harvest == !export)
        return opts_usage_error("atlas", "%s", harvest ? "--harvest and --neuronpedia do not go together" : "--harvest DIR is missing (or --neuronpedia EXPORT)");
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
        rc = es_dictionary_open_with(&s, argv[1], &(es_dictionary_options){.card = es_model_card(m)}, &err);
    if (rc == ES_OK)
        rc = es_dictionary_check_model(s, m, &err);
    es_neuronpedia_dashboards d = {0};
    if (rc == ES_OK)
        rc = export ? es_neuronpedia_atlas(m, s, export, source, path, &d, &err) : es_atlas_build(m, s, harvest, path, &o, &progress, &err);
    app_progress_end();
    es_dictionary_free(s);
    es_model_free(m);
    if (rc != ES_OK)
        return app_fail(&err);
    if (the_app.json && export)
        return app_print_json(json_pack("{s:s,s:i,s:i,s:i,s:i}", "atlas", path, "features", d.features, "examples", d.examples, "empty", d.empty, "changed", d.changed));
    if (the_app.json)
        return app_print_json(json_pack("{s:s}", "atlas", path));
    if (export)
        app_note("wrote %s: %d features, %d examples; %d texts that are no token of the model were replaced", path, d.features, d.examples, d.changed);
    else
        app_note("wrote %s", path);
    return EXIT_DONE;
}
