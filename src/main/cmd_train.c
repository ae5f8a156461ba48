/* train: dictionaries from a harvest, or from texts in one go. */
#include "app.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct training {
    es_dictionary_training o;
    es_harvest_options h; /* of texts */
    opt_ints layers;
    app_sites sites;
    es_hook_place place[OPT_LIST_MAX * APP_SITES];
    int n_place;
    const char *out;
    char harvest[1200];
    bool one;             /* --layer: the dictionary is the folder itself */
    bool stream;          /* of texts: no harvest on disk */
    uint64_t buffer;      /* its rows in memory */
} training;

static bool is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static int recipe_named(const char *name, es_recipe *out)
{
    for (int r = 0; r < ES_RECIPES; r++)
        if (!strcmp(name, es_recipe_name((es_recipe)r))) {
            *out = (es_recipe)r;
            return 0;
        }
    return -1;
}

/* ---- the plan -------------------------------------------------------------------------------------------------------------------------- */

static double mb(size_t bytes)
{
    return (double)bytes / (1 << 20);
}

/* What the harvest of texts will take on disk: at most as many tokens as the text has bytes, usually a quarter. */
static size_t harvest_bytes(const training *t, char **file, int n_file, const es_model *m)
{
    size_t row = sizeof(int32_t);
    for (int i = 0; i < t->n_place; i++) {
        es_point point;
        es_hook_point(t->place[i].hook, &point);
        row += 2 * (size_t)es_point_width(m, point);
    }
    double tokens = (double)t->h.max_tokens;
    if (tokens < 1)
        for (int i = 0; i < n_file; i++) {
            struct stat st;
            tokens += stat(file[i], &st) == 0 ? (double)st.st_size / 4 : 0;
        }
    return (size_t)(tokens * (double)row);
}

/* How many times the plan's figures are wanted: it is of one layer, but of a stream of all. */
static size_t times(const training *t)
{
    return t->stream ? 1 : (size_t)t->n_place;
}

static int check_room(const training *t, const es_training_plan *p, size_t harvest, es_error *err)
{
    size_t disk = harvest + times(t) * p->disk + 2 * p->disk_checkpoint, have = es_disk_free(t->out); /* a checkpoint is written beside the old one */
    int rc = es_memory_check(p->memory, the_app.memory, "the training", err);
    if (!rc && disk > have)
        rc = es_fail(err, ES_ERR_LIMIT, "%s: the training needs %.0f MB of disk, %.0f are free", t->out, mb(disk), mb(have));
    return rc;
}

static json_t *plan_json(const training *t, const es_training_plan *p, size_t harvest)
{
    json_t *v = json_pack("{s:i,s:I,s:I,s:I,s:I}", "layers", t->n_place, "memory", (json_int_t)p->memory, "disk", (json_int_t)(p->disk * times(t)), "disk_checkpoint",
                          (json_int_t)(2 * p->disk_checkpoint), "disk_harvest", (json_int_t)harvest);
    if (v && p->seconds > 0) {
        json_object_set_new(v, "tokens_per_second", json_real(p->tokens_per_second));
        json_object_set_new(v, "seconds", json_real(p->seconds * (double)times(t)));
    }
    return v;
}

static void plan_note(const training *t, const es_training_plan *p, size_t harvest)
{
    char time[80] = "", text[80] = "";
    if (p->seconds > 0)
        snprintf(time, sizeof time, "; about %.0f min at %.0f tokens a second", ceil(p->seconds * (double)times(t) / 60), p->tokens_per_second);
    if (harvest)
        snprintf(text, sizeof text, ", %.0f MB for the harvest", mb(harvest));
    app_note("%s, %d features, %d active, %d place%s: %.0f MB of memory, %.0f MB of disk (%.0f more while it trains%s)%s", es_recipe_name(t->o.recipe),
             t->o.n_features, t->o.k, t->n_place, t->n_place == 1 ? "" : "s", mb(p->memory), mb(p->disk * times(t)), mb(2 * p->disk_checkpoint), text, time);
}

static int show_plan(const training *t, const es_training_plan *p, size_t harvest)
{
    if (the_app.json)
        return app_print_json(plan_json(t, p, harvest));
    printf("memory      %.0f MB, of %.0f available\ndisk        %.0f MB, and %.0f while it trains; %.0f are free\n", mb(p->memory), mb(es_memory_available()),
           mb(p->disk * times(t)), mb(2 * p->disk_checkpoint), mb(es_disk_free(t->out)));
    if (t->stream)
        printf("buffer      %llu rows a place, in that memory\n", (unsigned long long)t->buffer);
    if (harvest)
        printf("harvest     %.0f MB of disk\n", mb(harvest));
    if (p->seconds > 0)
        printf("time        %.1f min (%.0f tokens a second in a few steps)\n", p->seconds * (double)times(t) / 60, p->tokens_per_second);
    else
        printf(t->stream ? "time        not tried: the memory is not there\n" : "time        known once there is a harvest\n");
    return app_flush();
}

/* ---- the run -------------------------------------------------------------------------------------------------------------------------------- */

/* Texts: their activations go to OUT/harvest first; one that is complete is used as it is. */
static int harvest_texts(training *t, es_model *m, char **file, int n_file, const es_progress *progress, es_error *err)
{
    return es_harvest(m, (const char *const *)file, n_file, t->harvest, &t->h, progress, err);
}

static es_stream stream_of(const training *t, char **file, int n_file)
{
    return (es_stream){.file = (const char *const *)file, .n_file = n_file, .reading = t->h, .buffer = (size_t)t->buffer, .itself = t->one};
}

static int train(training *t, const es_progress *progress, es_error *err)
{
    if (t->one)
        return es_dictionary_train(t->harvest, t->layers.value[0], t->out, &t->o, progress, err);
    return es_dictionary_train_places(t->harvest, t->place, t->n_place, t->out, &t->o, progress, err);
}

static int report(const training *t, double seconds)
{
    json_t *all = json_array();
    for (int i = 0; i < t->n_place; i++) {
        char folder[1300], name[32];
        es_hook_place_name(t->place[i], name);
        snprintf(folder, sizeof folder, t->one ? "%s" : "%s/%s", t->out, name);
        json_array_append_new(all, json_pack("{s:s,s:i,s:s}", "dictionary", folder, "layer", t->place[i].layer, "site", es_hook_site(t->place[i].hook)));
    }
    if (the_app.json)
        return app_print_json(json_pack("{s:s,s:i,s:s,s:i,s:f,s:o}", "dictionary", t->out, "layer", t->layers.value[0], "recipe", es_recipe_name(t->o.recipe), "features",
                                        t->o.n_features, "seconds", seconds, "dictionaries", all));
    json_decref(all);
    app_note("trained %s in %.0f s", t->out, seconds);
    return EXIT_DONE;
}

/* The harvest at hand: its plan first, which must fit; then harvest (of texts) and training. */
static int work(training *t, char **file, int n_file, bool plan_only, es_error *err)
{
    bool texts = !is_folder(file[0]) && !t->stream;
    const es_stream stream = stream_of(t, file, n_file);
    es_training_plan p = {0};
    es_model *m = NULL;
    size_t harvest = 0;
    int rc = ES_OK;
    es_progress progress = app_progress();
    if (t->stream) {
        rc = app_model(&m, err);
        rc = rc ? rc : es_dictionary_stream_plan(m, &stream, &t->o, 0, &p, err);
        if (!rc && plan_only && es_memory_check(p.memory, the_app.memory, "", NULL) == ES_OK) /* what does not fit is not tried */
            rc = es_dictionary_stream_plan(m, &stream, &t->o, 4, &p, err);
    } else if (texts) {
        rc = app_model(&m, err);
        rc = rc ? rc : es_dictionary_plan_width(&t->o, rc ? 1 : es_model_get_info(m)->d_model, &p, err);
        harvest = rc ? 0 : harvest_bytes(t, file, n_file, m);
    } else {
        for (int i = 0; i < t->n_place && !rc; i++) {
            t->o.site = t->place[i].hook;
            rc = es_dictionary_train_plan(t->harvest, t->place[i].layer, &t->o, i == 0 && plan_only ? 6 : 0, i == 0 ? &p : &(es_training_plan){0}, err);
        }
        t->o.site = t->place[0].hook;
    }
    int code = EXIT_DONE;
    if (!rc && plan_only) {
        code = show_plan(t, &p, harvest);
        es_model_free(m);
        return code;
    }
    rc = rc ? rc : check_room(t, &p, harvest, err);
    if (!rc)
        plan_note(t, &p, harvest);
    double began = es_seconds();
    if (!rc && texts)
        rc = harvest_texts(t, m, file, n_file, &progress, err);
    if (!rc && t->stream)
        rc = es_dictionary_train_stream(m, &stream, t->out, &t->o, &progress, err);
    es_model_free(m);
    rc = rc || t->stream ? rc : train(t, &progress, err);
    app_progress_end();
    return rc ? app_fail(err) : report(t, es_seconds() - began);
}

/* Every layer's sites; with --layer one site only. */
static int take_places(training *t, const char *site)
{
    int rc = app_sites_of("train", site, &t->sites), n_site = t->sites.n ? t->sites.n : 1;
    if (rc != OPTS_GO)
        return rc;
    if (t->one && n_site > 1)
        return opts_usage_error("train", "several sites go with --layers, into folders of their own");
    for (int i = 0; i < t->layers.n; i++)
        for (int k = 0; k < n_site; k++)
            t->place[t->n_place++] = (es_hook_place){t->layers.value[i], t->sites.n ? t->sites.site[k] : ES_HOOK_RESIDUAL};
    t->o.site = t->place[0].hook;
    t->h.layer = t->layers.value;
    t->h.n_layer = t->layers.n;
    t->h.site = t->sites.site;
    t->h.n_site = t->sites.n;
    t->h.threads = t->o.threads = the_app.threads;
    return OPTS_GO;
}

static int take_recipe(training *t, const char *recipe, const opt_ints *prefixes)
{
    if (recipe && recipe_named(recipe, &t->o.recipe) != 0)
        return opts_usage_error("train", "'%s' is no recipe: batchtopk, topk, matryoshka, jumprelu, gated or standard", recipe);
    if (prefixes->n && t->o.recipe != ES_TRAIN_MATRYOSHKA)
        return opts_usage_error("train", "--prefixes is for --recipe matryoshka");
    if (prefixes->n > ES_PREFIXES_MAX)
        return opts_usage_error("train", "at most %d prefixes", (int)ES_PREFIXES_MAX);
    for (int i = 0; i < prefixes->n; i++)
        t->o.prefix[i] = prefixes->value[i];
    t->o.n_prefix = prefixes->n;
    return OPTS_GO;
}

/* What a card does not train is refused there (by the plan), unless the program was free to choose. */
static int take_device(training *t, es_error *err)
{
    int rc = app_device(&t->o.card, err);
    if (!rc && t->o.card && !es_recipe_on_card(t->o.recipe) && app_device_auto()) {
        t->o.card = NULL;
        app_note("the recipe %s is trained on the processor: batchtopk, topk and matryoshka are on a card", es_recipe_name(t->o.recipe));
    }
    return rc;
}

int cmd_train(int argc, char **argv)
{
    training t = {.o = es_dictionary_training_default(), .h = es_harvest_default(), .buffer = ES_STREAM_BUFFER};
    const char *recipe = NULL, *site = NULL;
    opt_ints prefixes = {0};
    int layer = -2;
    bool f32 = false, aux_given = false, plan = false, buffer_given = false;
    const opt table[] = {
        {"layer", "L", OPT_INT, &layer, -1, 511, "one of the harvest's layers: the dictionary goes into DIR itself", NULL},
        {"layers", "L,L,...", OPT_LIST, &t.layers, 0, 511, "several, into DIR/layer-NN", NULL},
        {"site", "S,S", OPT_TEXT, &site, 0, 0, "what of a layer: resid (default), attn, mlp, z; several go into DIR/layer-NN-SITE", NULL},
        {"out", "DIR", OPT_TEXT, &t.out, 0, 0, "where it goes; an interrupted training goes on", NULL},
        {"recipe", "NAME", OPT_TEXT, &recipe, 0, 0, "batchtopk (default), topk, matryoshka, jumprelu, gated or standard", NULL},
        {"features", "F", OPT_INT, &t.o.n_features, 2, 1 << 20, "features", NULL},
        {"k", "K", OPT_INT, &t.o.k, 1, 65536, "active features a token, on average", NULL},
        {"tokens", "N", OPT_COUNT, &t.o.tokens, 1, 1e12, "tokens to see in all; more than the harvest's: several times over", NULL},
        {"batch", "N", OPT_INT, &t.o.batch, 16, 1 << 16, "tokens a step", NULL},
        {"rate", "R", OPT_REAL, &t.o.learning_rate, 0, 1, "learning rate; 0: from the number of features", NULL},
        {"aux-k", "K", OPT_INT, &t.o.aux_k, 0, 65536, "dead features that reconstruct the error", &aux_given},
        {"aux-weight", "W", OPT_REAL, &t.o.aux_weight, 0, 10, "weight of that loss", NULL},
        {"dead-tokens", "N", OPT_COUNT, &t.o.dead_tokens, 1, 1e12, "a feature silent for so many tokens is dead", NULL},
        {"warmup", "SHARE", OPT_REAL, &t.o.warmup, 0, 1, "share of the run in which the rate rises", NULL},
        {"decay", "SHARE", OPT_REAL, &t.o.decay, 0, 1, "share of the run in which it falls", NULL},
        {"sparsity", "W", OPT_REAL, &t.o.sparsity, 0, 1e6, "jumprelu, gated, standard: weight of the penalty; 0: steered towards --k (default)", NULL},
        {"sparsity-warmup", "SHARE", OPT_REAL, &t.o.sparsity_warmup, 0, 1, "share of the run in which that weight rises", NULL},
        {"bandwidth", "W", OPT_REAL, &t.o.bandwidth, 1e-6, 100, "jumprelu: how near its threshold an activation teaches it, inputs having norm sqrt(d)", NULL},
        {"prefixes", "N,N,...", OPT_LIST, &prefixes, 1, 1 << 20, "matryoshka: features that reconstruct by themselves; default F/16, F/8, F/4, F/2, F", NULL},
        {"checkpoint", "SECONDS", OPT_REAL, &t.o.checkpoint_seconds, 0.01, 1e6, "how often the state is saved", NULL},
        {"seed", "S", OPT_COUNT, &t.o.seed, 0, 1.8e19, "of the initial weights and the order", NULL},
        {"f32", NULL, OPT_FLAG, &f32, 0, 0, "write f32 weights, not f16", NULL},
        {"harvest-tokens", "N", OPT_COUNT, &t.h.max_tokens, 0, 1e12, "texts: stop after so many stored tokens; 0: all", NULL},
        {"context", "N", OPT_INT, &t.h.context, 8, 8192, "texts: tokens in a sequence (default 256)", NULL},
        {"stream", NULL, OPT_FLAG, &t.stream, 0, 0, "texts: no harvest on disk; the model's activations are mixed in memory, all layers are trained at once", NULL},
        {"buffer", "N", OPT_COUNT, &t.buffer, 1, 1e9, "stream: activations of each layer that are mixed (default 64k); memory, see --plan", &buffer_given},
        {"plan", NULL, OPT_FLAG, &plan, 0, 0, "only say what it would take: time (by a few steps), memory, disk", NULL},
        {0},
    };
    static const command_help help = {
        "train", "HARVEST|FILE... --layer L|--layers L,L --out DIR",
        "Trains sparse autoencoders on layers of a harvest and writes each as a SAELens folder. Recipes: batchtopk and matryoshka (saved as\n"
        "jumprelu), topk, jumprelu, gated, standard (ReLU with L1); the last three are steered so that --k features are active. Of texts\n"
        "instead of a harvest, one pass stores the activations of all the layers in DIR/harvest first. What was interrupted, or killed, goes on.\n"
        "With --stream nothing is harvested: the model runs while they are trained, so text and time bound it and not the disk. What a run that\n"
        "was killed had in its buffer is dropped, and it goes on with the text behind it.\n"
        "Dictionaries of other sites than the residual (--site, as of harvest) are for looking: they do not steer and nothing is adapted with them.\n"
        "On a card (--device) batchtopk, topk and matryoshka are trained.",
        "  espalier train harvest --layer 15 --features 6144 --k 32 --tokens 4M --out dictionary-l15\n"
        "  espalier train harvest --layers 10,15,20 --recipe jumprelu --out dictionaries --plan\n"
        "  espalier train docs.jsonl --layers 12,14 --harvest-tokens 2M --tokens 5M --out mine\n"
        "  espalier train docs.jsonl --stream --layers 14 --site resid,mlp --tokens 50M --out mine", 1, -1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if ((layer == -2) == (t.layers.n == 0))
        return opts_usage_error("train", layer == -2 ? "--layer L or --layers L,L is missing" : "--layer and --layers do not go together");
    if (!t.out)
        return opts_usage_error("train", "--out DIR is missing");
    if (t.stream && is_folder(argv[1]))
        return opts_usage_error("train", "--stream is of texts: %.80s is a folder", argv[1]);
    if (buffer_given && !t.stream)
        return opts_usage_error("train", "--buffer goes with --stream");
    if (n > 1 && is_folder(argv[1]))
        return opts_usage_error("train", "one harvest at a time, or texts");
    if (layer != -2) {
        t.one = true;
        t.layers = (opt_ints){.n = 1, .value = {layer}};
    }
    if ((rc = take_places(&t, site)) != OPTS_GO || (rc = take_recipe(&t, recipe, &prefixes)) != OPTS_GO)
        return rc;
    if (snprintf(t.harvest, sizeof t.harvest, "%s%s", is_folder(argv[1]) ? argv[1] : t.out, is_folder(argv[1]) ? "" : "/harvest") >= 1000)
        return opts_usage_error("train", "the path is too long");
    if (!aux_given && t.o.aux_k > t.o.n_features / 2)
        t.o.aux_k = t.o.n_features / 2;
    if (f32)
        t.o.half = false;
    es_error err = {0};
    if (take_device(&t, &err))
        return app_fail(&err);
    return work(&t, argv + 1, n, plan, &err);
}
