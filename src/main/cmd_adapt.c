/* adapt, drift, export: learning from experiences within a basis, what was learned, and handing it on. */
#include "app.h"
#include "prefer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- adapt ------------------------------------------------------------------------------------------------------------------ */

typedef struct adapting {
    es_model *m;
    app_features f;
    es_basis basis[ES_PARTS_MAX]; /* [n_basis], as they were named; the adapter has its own in its order */
    int n_basis;
    es_experiences e;
    es_adapter *adapter;
    es_learner *learner;
    es_inputs *inputs;
    es_neutral_texts neutral; /* for replay */
    es_neutral_text *replay;
    es_direction *direction; /* [n_direction]: adapters of ours, file names */
    int n_direction;
    char ***labels; /* app_part_labels */
    es_error err;
} adapting;

/* Feature and label, with its layer before it where there are several dictionaries. */
static const char *label_of(const adapting *a, int position, char *out, size_t size)
{
    char safe[200], where[16] = "";
    int feature;
    const char *s = app_part_label(a->labels, &a->f, a->adapter, position, &feature);
    if (es_adapter_parts(a->adapter) > 1)
        snprintf(where, sizeof where, "L%d:", es_adapter_layer_of(a->adapter, position));
    if (s)
        snprintf(out, size, "%s%d %s", where, feature, app_shown(s, safe, sizeof safe < size - 12 ? sizeof safe : size - 12));
    else
        snprintf(out, size, "%s%d", where, feature);
    return out;
}

static int print_step(const adapting *a, const es_step_report *r)
{
    if (the_app.json) {
        json_t *moved = json_array();
        for (int i = 0; i < r->n_moved; i++) {
            int feature, part = es_adapter_part_of(a->adapter, r->moved[i], &feature);
            const char *label = app_part_label(a->labels, &a->f, a->adapter, r->moved[i], &feature);
            json_t *row = json_pack("{s:i,s:f,s:s?}", "feature", feature, "by", (double)r->by[i], "label", label);
            if (es_adapter_parts(a->adapter) > 1)
                json_object_set_new(row, "part", json_integer(part));
            json_array_append_new(moved, row);
        }
        return app_print_json(json_pack("{s:i,s:f,s:o,s:f,s:f,s:f,s:f,s:s?,s:f,s:i,s:o}", "step", r->step, "loss", r->loss, "margin",
                                        isfinite(r->margin) ? json_real(r->margin) : json_null(), "kl", r->kl, "replay", r->replay, "norm", r->norm, "backtracked",
                                        r->backtracked, "guard", r->guard, "seconds", r->seconds, "tokens", r->tokens, "moved", moved));
    }
    printf("step %3d  loss %.4f  margin %+.4f  KL %.5f", r->step, r->loss, r->margin, r->kl);
    if (r->replay != 0)
        printf("  replay %.5f", r->replay);
    if (r->guard)
        printf("  (%s: %.2f of the step)", r->guard, r->backtracked);
    for (int i = 0; i < r->n_moved && i < 3; i++) {
        char text[60];
        printf("%s %s %+.3g", i ? "," : "  |", label_of(a, r->moved[i], text, sizeof text), (double)r->by[i]);
    }
    putchar('\n');
    return app_flush();
}

/* What drift wants to know and the adapter's file does not hold: which experience moved what. Beside it, as FILE.json. */
static int save_history(const adapting *a, const char *path, const es_gate_report *g, json_t *steps, es_error *err)
{
    int n = es_learner_count(a->learner), K = es_adapter_features(a->adapter), parts = es_adapter_parts(a->adapter);
    const es_basis *basis = es_adapter_basis(a->adapter);
    char name[1200];
    if (snprintf(name, sizeof name, "%s.json", path) >= (int)sizeof name)
        return es_fail(err, ES_ERR_USAGE, "%s: the path is too long", path);
    float *influence = es_calloc(((size_t)n + 1) * (size_t)K + 1, sizeof *influence);
    if (!influence)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory");
    json_t *rows = json_array(), *experiences = json_array(), *features = json_array();
    if (K)
        es_learner_influence(a->learner, influence);
    for (int i = 0; i <= n && K; i++) {
        json_t *row = json_array();
        for (int k = 0; k < K; k++)
            json_array_append_new(row, json_real((double)influence[(size_t)i * (size_t)K + (size_t)k]));
        json_array_append_new(rows, row);
    }
    for (int i = 0; i < n && i < a->e.n; i++) {
        json_t *v = es_experience_to_json(&a->e.item[i]);
        json_array_append_new(experiences, v ? v : json_null());
    }
    for (int k = 0; k < K; k++) {
        int feature;
        es_adapter_part_of(a->adapter, k, &feature);
        json_array_append_new(features, json_integer(feature));
    }
    json_t *gate = json_pack("{s:b,s:f,s:f,s:i,s:s}", "passed", g->passed, "gain", g->gain, "kl", g->kl, "held_out", g->held_out, "reason", g->reason);
    json_t *v = json_pack("{s:s,s:s,s:i,s:o,s:o,s:o,s:o,s:O}", "format", "espalier-history", "basis", basis ? basis->name : "",
                          "basis_version", basis ? basis->version : 0, "features", features, "influence", rows, "experiences", experiences, "gate", gate, "steps", steps);
    json_t *list = v && parts > 1 ? json_array() : NULL;
    for (int i = 0; list && i < parts; i++) {
        int first;
        const es_basis *b = es_adapter_part_basis(a->adapter, i, &first);
        json_array_append_new(list, json_pack("{s:s,s:i,s:s,s:i,s:i,s:i}", "basis", b->name, "basis_version", b->version, "dictionary_hash", b->dictionary_hash, "layer",
                                              es_adapter_layer_of(a->adapter, first), "first", first, "n", b->n));
    }
    if (list)
        json_object_set_new(v, "parts", list);
    char *text = v ? json_dumps(v, JSON_COMPACT | JSON_REAL_PRECISION(7)) : NULL;
    int rc = text ? es_file_write(name, text, strlen(text), err) : es_fail(err, ES_ERR_MEMORY, "not enough memory");
    free(text);
    json_decref(v);
    free(influence);
    return rc;
}

/* The directions of --prior, within the basis that the first of them has unless one was named. */
static int open_directions(adapting *a, const opt_texts *prior, es_adapter_options *o, es_error *err)
{
    int rc = ES_OK;
    a->direction = es_calloc((size_t)prior->n + 1, sizeof *a->direction);
    if (!a->direction)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory");
    for (int i = 0; rc == ES_OK && i < prior->n; i++) {
        es_adapter *d = NULL;
        rc = app_adapter_beside(&d, &a->f, a->m, prior->value[i], err);
        const char *slash = strrchr(prior->value[i], '/');
        a->direction[i] = (es_direction){slash ? slash + 1 : prior->value[i], d};
        a->n_direction += rc == ES_OK;
    }
    if (rc == ES_OK && prior->n) {
        const es_adapter_options *first = es_adapter_get_options(a->direction[0].adapter);
        o->rank = first->rank;
        o->first_layer = first->first_layer;
        o->last_layer = first->last_layer;
    }
    return rc;
}

/* The bases, each with its dictionary: one alone is the dictionary's in use, of several each is looked for. */
static int open_bases(adapting *a, const opt_texts *name)
{
    int rc = ES_OK;
    if (name->n > ES_PARTS_MAX)
        return es_fail(&a->err, ES_ERR_USAGE, "%d bases are named, at most %d go", name->n, (int)ES_PARTS_MAX);
    for (int i = 0; rc == ES_OK && i < name->n; i++) {
        rc = name->n == 1 ? app_basis(&a->basis[i], &a->f, NULL, name->value[i], &a->err) : app_basis_beside(&a->basis[i], &a->f, a->m, name->value[i], &a->err);
        a->n_basis += rc == ES_OK;
    }
    return rc;
}

/* The dictionary of a basis. */
static const app_features *features_of(const adapting *a, int i)
{
    const app_features *x = app_features_of(&a->f, a->basis[i].dictionary_hash);
    return x ? x : &a->f;
}

/* Of the dictionaries in the adapter that of the lowest layer, where the band begins. */
static const app_features *lowest(const adapting *a)
{
    const app_features *low = &a->f;
    for (int i = 0; i < a->n_basis; i++) {
        const app_features *x = features_of(a, i);
        if (!i || es_dictionary_get_info(x->dictionary)->layer < es_dictionary_get_info(low->dictionary)->layer)
            low = x;
    }
    return low;
}

static int new_adapter(adapting *a, const es_adapter_options *o)
{
    es_part part[ES_PARTS_MAX] = {{a->f.dictionary, NULL}};
    for (int i = 0; o->constrained && i < a->n_basis; i++)
        part[i] = (es_part){features_of(a, i)->dictionary, &a->basis[i]};
    return es_adapter_new_parts(&a->adapter, a->m, part, o->constrained ? a->n_basis : 1, o, &a->err);
}

/* The neutral texts that harm is not measured on, for replay. */
static int open_replay(adapting *a, es_learner_options *o)
{
    int rc = es_neutral_load(&a->neutral, APP_NEUTRAL, &a->err);
    if (rc == ES_OK && !(a->replay = es_calloc((size_t)a->neutral.n + 1, sizeof *a->replay)))
        rc = es_fail(&a->err, ES_ERR_MEMORY, "not enough memory");
    if (rc == ES_OK) {
        o->n_replay = es_neutral_pick(a->neutral.item, a->neutral.n, ES_NEUTRAL_CHOOSE, a->replay);
        o->replay_text = a->replay;
    }
    return rc;
}

/* What was thought of each experience that does not count in full, and how far the adapter went along each direction. */
static int print_decisions(const adapting *a)
{
    for (int i = 0; i < es_learner_count(a->learner); i++) {
        const es_decision *d = es_learner_decision(a->learner, i);
        if (!d || !*d->reason)
            continue;
        if (the_app.json) {
            int code = app_print_json(json_pack("{s:{s:i,s:f,s:f,s:f,s:f,s:s}}", "experience", "number", i + 1, "weight", d->weight, "agreement", d->agreement,
                                                "surprise", d->surprise, "trust", d->trust, "reason", d->reason));
            if (code != EXIT_DONE)
                return code;
        } else if (d->weight < 1)
            printf("experience %d %s\n", i + 1, d->reason);
    }
    int n = es_learner_directions(a->learner);
    double *amplitude = es_calloc((size_t)n + 1, sizeof *amplitude);
    if (amplitude)
        es_learner_amplitudes(a->learner, amplitude);
    for (int i = 0; amplitude && i < n; i++) {
        if (the_app.json)
            app_print_json(json_pack("{s:s,s:f}", "direction", es_learner_direction(a->learner, i), "amplitude", amplitude[i]));
        else
            printf("direction %-24s %+.4f of |h|\n", es_learner_direction(a->learner, i), amplitude[i]);
    }
    free(amplitude);
    return app_flush();
}

static int state_preference(adapting *a, const char *text)
{
    es_experiences own = a->e; /* as it was: pairs go behind */
    es_advantage advantage;
    es_experiences pairs = {0};
    es_progress progress = app_progress();
    es_prefer_options o = {.own = &own, .n_ctx = 1024, .threads = the_app.threads};
    int rc = es_prefer_pairs(a->m, text, &o, &pairs, &advantage, &progress, &a->err);
    app_progress_end();
    for (int i = 0; rc == ES_OK && i < pairs.n; i++)
        rc = es_experience_copy(&a->e, &pairs.item[i], &a->err);
    if (rc == ES_OK)
        app_note("%d pairs from the preference; %s", pairs.n, advantage.replies ? advantage.reason : "no corrections to measure it on");
    es_experiences_free(&pairs);
    return rc;
}

int cmd_adapt(int argc, char **argv)
{
    opt_texts basis = {0};
    const char *experiences = NULL, *out = NULL, *form = "lora", *prefer = NULL, *prefer_loss = "pairs";
    int steps = 0, rank = 0, batch = -1;
    opt_ints layers = {0};
    bool unconstrained = false, force = false, seeded = false, plain = false, one_sided = false, weighting = true, direction = false;
    opt_texts prior = {0};
    double prior_weight = 10;
    double rate = -1, beta = -1, kappa = -1, hold_out = -1, replay = 0;
    uint64_t seed = 1;
    const opt table[] = {
        {"basis", "B", OPT_TEXTS, &basis, 0, 0, "NAME, NAME@VERSION, FILE.json, or starter; again, of another dictionary: a part of its own, after that one's layer", NULL},
        {"experiences", "E.jsonl", OPT_TEXT, &experiences, 0, 0, "what to learn from", NULL},
        {"out", "FILE", OPT_TEXT, &out, 0, 0, "where the adapter goes (safetensors); FILE.json beside it tells its history", NULL},
        {"form", "FORM", OPT_TEXT, &form, 0, 0, "bias: one coefficient a feature; gain: a factor on what it fires; map: feature to feature; lora (default)", NULL},
        {"prefer", "TEXT", OPT_TEXT, &prefer, 0, 0, "a stated preference, learned from what the model itself says with it in its context", NULL},
        {"prefer-loss", "LOSS", OPT_TEXT, &prefer_loss, 0, 0, "of it: pairs (default), or token by token on the model's own replies: sampled, top-20, forward", NULL},
        {"steps", "N", OPT_INT, &steps, 1, 100000, "learning steps", NULL},
        {"rate", "R", OPT_REAL, &rate, 0, 100, "learning rate", NULL},
        {"rank", "R", OPT_INT, &rank, 1, 1024, "lora: rank", NULL},
        {"layers", "A-B", OPT_LIST, &layers, 0, 511, "lora: the band of layers (default: from the dictionary's to the last)", NULL},
        {"unconstrained", NULL, OPT_FLAG, &unconstrained, 0, 0, "lora: leave the basis out: plain LoRA on the same matrices", NULL},
        {"batch", "N", OPT_INT, &batch, 0, 1000000, "experiences a step; 0: all", NULL},
        {"beta", "B", OPT_REAL, &beta, 0, 1000, "steepness of the pair loss", NULL},
        {"kappa", "K", OPT_REAL, &kappa, 0, 100, "guard: highest mean KL from the base model on neutral text", NULL},
        {"replay", "SHARE", OPT_REAL, &replay, 0, 0.99, "share of each step that keeps neutral text as the base model has it (default 0: none)", NULL},
        {"hold-out", "SHARE", OPT_REAL, &hold_out, 0, 0.9, "share of the experiences kept for the gate", NULL},
        {"adam", NULL, OPT_FLAG, &plain, 0, 0, "lora: Adam with learned inputs, instead of the metric step with white ones (docs/adapting.md)", NULL},
        {"prior", "FILE", OPT_TEXTS, &prior, 0, 0, "a direction learned beforehand (--direction), in whose way steps go more readily; may be given again", NULL},
        {"prior-weight", "W", OPT_REAL, &prior_weight, 0, 1e9, "how much more (default 10)", NULL},
        {"one-sided", NULL, OPT_FLAG, &one_sided, 0, 0, "never against any of them", NULL},
        {"direction", NULL, OPT_FLAG, &direction, 0, 0, "write the direction that all experiences together ask for, to be a --prior for others: one step, no gate", NULL},
        {"no-weighting", NULL, OPT_NOFLAG, &weighting, 0, 0, "every experience counts in full, whatever is thought of it", NULL},
        {"seed", "S", OPT_COUNT, &seed, 0, 1.8e19, "of the start and the order", &seeded},
        {"force", NULL, OPT_FLAG, &force, 0, 0, "write the adapter even when the release gate refuses it", NULL},
        {0},
    };
    static const command_help help = {
        "adapt", "--basis B [--experiences E.jsonl] [--prefer TEXT] --out FILE",
        "Learns an adapter from experiences, only along the features of a basis. A line a step: loss, margin over the learning pairs, KL from\n"
        "the base model on neutral text, and the coefficients that moved most; last, the release gate's verdict. An adapter that the gate\n"
        "refuses is not written (exit 1). Experiences are JSONL: {\"messages\":[{\"role\",\"content\"}...],\"preferred\",\"rejected\",\"source\",\n"
        "\"time\"}; either reply may be absent. With --json a JSON object a line.",
        "  espalier adapt --basis brief --experiences pairs.jsonl --out brief.safetensors\n"
        "  espalier adapt --basis brief --experiences many.jsonl --direction --out terse.safetensors\n"
        "  espalier adapt --basis brief --experiences few.jsonl --prior terse.safetensors --out mine.safetensors\n"
        "  espalier adapt --basis brief --basis brief-late --experiences pairs.jsonl --out both.safetensors\n"
        "  espalier adapt --basis starter --prefer \"Answer in one short sentence.\" --out short.safetensors\n"
        "  espalier adapt --basis starter --experiences pairs.jsonl --form bias --steps 20 --out a.safetensors --json", 0, 0};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    if ((!experiences && !prefer) || !out || (!basis.n && !unconstrained))
        return opts_usage_error("adapt", "%s is missing", !experiences && !prefer ? "--experiences E.jsonl" : !out ? "--out FILE" : "--basis B");
    es_form which = ES_FORM_LORA;
    if (!es_form_named(form, &which))
        return opts_usage_error("adapt", "--form is bias, gain, map or lora, not '%s'", form);
    es_distil_loss loss = 0;
    if (strcmp(prefer_loss, "pairs") && !es_distil_named(prefer_loss, &loss))
        return opts_usage_error("adapt", "--prefer-loss is pairs, sampled, top-20 or forward, not '%s'", prefer_loss);
    bool lora = which == ES_FORM_LORA;
    if ((!lora || plain) && (prior.n || direction))
        return opts_usage_error("adapt", "--prior and --direction are for the form lora with white inputs");
    if (prior.n && !(prior_weight > 0))
        return opts_usage_error("adapt", "--prior-weight must be above 0");
    if (!lora && unconstrained)
        return opts_usage_error("adapt", "--unconstrained is for the form lora");

    adapting a = {0};
    json_t *history = json_array();
    es_gate_report gate = {0};
    rc = app_model(&a.m, &a.err);
    if (rc == ES_OK)
        rc = app_features_open(&a.f, a.m, &a.err);
    if (rc == ES_OK && !unconstrained)
        rc = open_bases(&a, &basis);
    if (rc == ES_OK && experiences)
        rc = es_experiences_load(&a.e, experiences, &a.err);
    if (rc == ES_OK && prefer)
        rc = state_preference(&a, prefer);
    if (rc == ES_OK && a.e.n == 0)
        rc = es_fail(&a.err, ES_ERR_FORMAT, "%s: holds no experiences", experiences);
    bool white = lora && !plain;
    es_adapter_options ao = {0};
    if (rc == ES_OK) {
        ao = es_adapter_default(lowest(&a)->dictionary, a.m);
        ao.fixed_inputs = white;
        ao.rank = white ? ES_WHITE_RANK : ao.rank;
        rc = open_directions(&a, &prior, &ao, &a.err);
    }
    if (rc == ES_OK && white) {
        int want = rank > ao.rank ? rank : ao.rank;
        rc = app_inputs(&a.inputs, lowest(&a), a.m, want > ES_WHITE_RANK ? want : ES_WHITE_RANK, &a.err);
    }
    if (rc == ES_OK) {
        ao.form = which;
        ao.constrained = !unconstrained;
        if (rank)
            ao.rank = rank;
        if (layers.n) {
            ao.first_layer = layers.value[0];
            ao.last_layer = layers.value[layers.n - 1];
        }
        if (seeded)
            ao.seed = seed;
        rc = new_adapter(&a, &ao);
    }
    if (rc == ES_OK && white && !prior.n)
        rc = es_adapter_set_inputs(a.adapter, a.inputs, &a.err);
    es_learner_options lo = white ? es_learner_white() : es_learner_default(which);
    lo.weighting = lo.weighting && weighting;
    if (direction) { /* all of them, as they are, one step from the base model */
        lo.weighting = false;
        lo.kappa = lo.rho = lo.hold_out = lo.enough = 0;
        lo.batch = 0;
        steps = 1;
    }
    lo.threads = the_app.threads;
    if (rate >= 0)
        lo.learning_rate = rate;
    if (beta >= 0)
        lo.beta = beta;
    if (kappa >= 0)
        lo.kappa = kappa;
    if (batch >= 0)
        lo.batch = batch;
    if (hold_out >= 0)
        lo.hold_out = hold_out;
    if (seeded)
        lo.seed = seed;
    if (steps == 0)
        steps = lo.steps;
    lo.replay = replay;
    if (rc == ES_OK && replay > 0)
        rc = open_replay(&a, &lo);
    if (rc == ES_OK) {
        a.labels = app_part_labels(&a.f, a.m, a.adapter);
        rc = es_learner_open(&a.learner, a.m, lowest(&a)->dictionary, a.adapter, &lo, &a.err);
    }
    if (rc == ES_OK && white)
        rc = es_learner_natural(a.learner, a.inputs, &a.err);
    if (rc == ES_OK && prior.n)
        rc = es_learner_prior(a.learner, a.direction, a.n_direction, prior_weight, one_sided, &a.err);
    if (rc == ES_OK && white && !direction)
        rc = es_learner_spare(a.learner, a.inputs, &a.err);
    es_progress progress = app_progress();
    es_onpolicy *drawn = NULL;
    if (rc == ES_OK && loss)
        rc = es_onpolicy_open(&drawn, a.m, (int)loss, 0, 1024, the_app.threads, seed, &a.err);
    if (rc == ES_OK && drawn)
        rc = es_onpolicy_ahead(drawn, a.adapter, &a.e, &app_cancel, &a.err);
    for (int i = 0; i < a.e.n && rc == ES_OK; i++) {
        bool stated = drawn && es_prefer_of(&a.e.item[i]);
        rc = stated ? es_onpolicy_add(drawn, a.learner, a.adapter, &a.e.item[i], &app_cancel, &a.err) : es_learner_add(a.learner, &a.e.item[i], &app_cancel, &a.err);
        es_progress_report(&progress, "reading experiences", i + 1, a.e.n, "experiences");
    }
    es_onpolicy_free(drawn);
    app_progress_end();
    if (rc == ES_OK)
        app_note("%d experiences, %llu parameters, %.0f MB for learning", a.e.n, (unsigned long long)es_adapter_parameters(a.adapter),
                 (double)es_learner_bytes(a.learner) / 1e6);
    for (int i = 0; i < steps && rc == ES_OK; i++) {
        es_step_report r = {0};
        rc = es_learner_step(a.learner, &r, &app_cancel, &a.err);
        if (rc != ES_OK)
            break;
        json_array_append_new(history, json_pack("{s:f,s:f}", "loss", r.loss, "kl", r.kl));
        if (print_step(&a, &r) != EXIT_DONE)
            rc = es_fail(&a.err, ES_ERR_IO, "cannot write to standard output");
        if (r.guard && !strcmp(r.guard, "learned"))
            break;
    }
    if (rc == ES_OK && print_decisions(&a) != EXIT_DONE)
        rc = es_fail(&a.err, ES_ERR_IO, "cannot write to standard output");
    force |= direction;
    if (rc == ES_OK)
        rc = es_learner_gate(a.learner, &gate, &app_cancel, &a.err);
    if (rc == ES_OK && (gate.passed || force)) {
        rc = save_history(&a, out, &gate, history, &a.err);
        if (rc == ES_OK)
            rc = es_adapter_save(a.adapter, out, &a.err);
    }
    int code;
    if (rc != ES_OK) {
        code = app_fail(&a.err);
    } else {
        bool written = gate.passed || force;
        if (the_app.json)
            code = app_print_json(json_pack("{s:{s:b,s:i,s:f,s:f,s:s},s:s?}", "gate", "passed", gate.passed, "held_out", gate.held_out, "gain",
                                            gate.gain, "kl", gate.kl, "reason", gate.reason, "adapter", written ? out : NULL));
        else {
            printf("gate: %s; %d held out, gain %+.4f, KL %.5f%s%s\n", gate.passed ? "passed" : "refused", gate.held_out, gate.gain, gate.kl,
                   *gate.reason ? "; " : "", gate.reason);
            code = app_flush();
        }
        if (!written)
            code = app_failf("the release gate refused the adapter, so %s was not written (--force writes it all the same)", out);
    }
    json_decref(history);
    app_part_labels_free(a.labels, &a.f, a.adapter);
    es_learner_free(a.learner);
    es_adapter_free(a.adapter);
    for (int i = 0; i < a.n_direction; i++)
        es_adapter_free((es_adapter *)a.direction[i].adapter);
    free(a.direction);
    es_inputs_free(a.inputs);
    free(a.replay);
    es_neutral_texts_free(&a.neutral);
    es_experiences_free(&a.e);
    for (int i = 0; i < a.n_basis; i++)
        es_basis_free(&a.basis[i]);
    app_features_close(&a.f);
    es_model_free(a.m);
    return code;
}

/* ---- drift -------------------------------------------------------------------------------------------------------------------- */

typedef struct story { /* influence, from FILE.json or the workspace; n experiences, (n+1) x K */
    int n, K;
    float *influence;
    char (*name)[64];
} story;

static void story_free(story *s)
{
    free(s->influence);
    free(s->name);
}

static bool story_make(story *s, int n, int K)
{
    s->n = n;
    s->K = K;
    s->influence = es_calloc(((size_t)n + 1) * (size_t)K + 1, sizeof *s->influence);
    s->name = es_calloc((size_t)n + 1, sizeof *s->name);
    return s->influence && s->name;
}

/* A few words that remind of an experience: the beginning of its last question. */
static void remind(json_t *e, char out[64])
{
    json_t *messages = json_object_get(e, "messages");
    size_t n = json_array_size(messages);
    const char *s = n ? json_string_value(json_object_get(json_array_get(messages, n - 1), "content")) : NULL;
    char safe[256];
    app_shown(s ? s : "", safe, 44);
    snprintf(out, 64, "%s%s", safe, s && strlen(s) > strlen(safe) ? "..." : "");
}

static int story_file(story *s, const char *adapter, int K, es_error *err)
{
    char path[1200];
    snprintf(path, sizeof path, "%s.json", adapter);
    if (access(path, F_OK) != 0)
        return ES_OK;
    json_t *v = NULL;
    int rc = es_json_file(&v, path, err);
    if (rc != ES_OK)
        return rc;
    json_t *rows = json_object_get(v, "influence"), *experiences = json_object_get(v, "experiences");
    size_t n = json_array_size(experiences);
    if (json_array_size(rows) == n + 1 && n < 1 << 20 && story_make(s, (int)n, K)) {
        for (size_t i = 0; i <= n; i++)
            for (int k = 0; k < K; k++)
                s->influence[i * (size_t)K + (size_t)k] = (float)json_number_value(json_array_get(json_array_get(rows, i), (size_t)k));
        for (size_t i = 0; i < n; i++)
            remind(json_array_get(experiences, i), s->name[i]);
    }
    json_decref(v);
    return ES_OK;
}

typedef struct row {
    int position;
    float value;
} row;

static int by_size(const void *a, const void *b)
{
    float x = fabsf(((const row *)a)->value), y = fabsf(((const row *)b)->value);
    return x < y ? 1 : x > y ? -1 : ((const row *)a)->position - ((const row *)b)->position;
}

static int print_drift(const es_adapter *a, const app_features *f, char ***labels, const story *s, int top)
{
    const es_basis *b = es_adapter_basis(a);
    if (!b)
        return app_failf("this adapter is not constrained: it has no coefficients to show");
    const float *c = es_adapter_coefficients(a);
    const es_adapter_options *o = es_adapter_get_options(a);
    int K = es_adapter_features(a), parts = es_adapter_parts(a);
    row *r = es_calloc((size_t)K + 1, sizeof *r);
    if (!r)
        return app_failf("not enough memory");
    for (int k = 0; k < K; k++)
        r[k] = (row){k, c[k]};
    qsort(r, (size_t)K, sizeof *r, by_size);
    int shown = top && top < K ? top : K;
    json_t *list = the_app.json ? json_array() : NULL;
    if (!the_app.json && parts > 1)
        printf("%s, %d steps, %d parts:\n", es_form_name(o->form), es_adapter_steps(a), parts);
    for (int i = 0; !the_app.json && i < parts; i++) {
        int first;
        b = es_adapter_part_basis(a, i, &first);
        if (parts > 1)
            printf("layer %d of %s (%.12s), basis %s version %d (%d features)\n", es_adapter_layer_of(a, first), b->dictionary, b->dictionary_hash, b->name, b->version, b->n);
        else
            printf("%s, %d steps, basis %s version %d (%d features), layer %d of %s\n", es_form_name(o->form), es_adapter_steps(a), b->name, b->version, b->n,
                   b->layer, b->dictionary);
    }
    for (int i = 0; i < shown; i++) {
        int k = r[i].position, best = -1, first, feature, part = es_adapter_part_of(a, k, &feature);
        char label[120], text[64] = "";
        const char *l = app_part_label(labels, f, a, k, &feature);
        b = es_adapter_part_basis(a, part, &first);
        for (int e = 0; s->influence && e < s->n; e++)
            if (best < 0 || fabsf(s->influence[(size_t)e * (size_t)s->K + (size_t)k]) > fabsf(s->influence[(size_t)best * (size_t)s->K + (size_t)k]))
                best = e;
        float most = best >= 0 ? s->influence[(size_t)best * (size_t)s->K + (size_t)k] : 0;
        if (the_app.json) {
            json_t *by = json_array();
            for (int e = 0; s->influence && e <= s->n; e++)
                json_array_append_new(by, json_real((double)s->influence[(size_t)e * (size_t)s->K + (size_t)k]));
            json_t *v = json_pack("{s:i,s:f,s:f,s:f,s:s?,s:o}", "feature", feature, "coefficient", (double)c[k], "lo", (double)b->lo[k - first], "hi",
                                  (double)b->hi[k - first], "label", l, "influence", by);
            if (v && parts > 1) {
                json_object_set_new(v, "part", json_integer(part));
                json_object_set_new(v, "layer", json_integer(es_adapter_layer_of(a, k)));
            }
            json_array_append_new(list, v);
            continue;
        }
        if (best >= 0 && most != 0)
            snprintf(text, sizeof text, "%+.3g", (double)most);
        if (parts > 1)
            printf("L%-3d", es_adapter_layer_of(a, k));
        printf("%7d  %+9.4f  %-38s", feature, (double)c[k], l ? app_shown(l, label, 39) : "");
        if (*text)
            printf("  %s by %d: %s", text, best + 1, s->name[best]);
        putchar('\n');
    }
    free(r);
    if (the_app.json) {
        json_t *names = json_array(), *each = parts > 1 ? json_array() : NULL;
        for (int e = 0; s->name && e < s->n; e++)
            json_array_append_new(names, json_string(s->name[e]));
        b = es_adapter_basis(a);
        json_t *v = json_pack("{s:s,s:i,s:s,s:i,s:o,s:o}", "form", es_form_name(o->form), "steps", es_adapter_steps(a), "basis", b->name, "basis_version", b->version,
                              "features", list, "experiences", names);
        for (int i = 0; each && i < parts; i++) {
            int first;
            b = es_adapter_part_basis(a, i, &first);
            json_array_append_new(each, json_pack("{s:s,s:i,s:s,s:s,s:i,s:i}", "basis", b->name, "basis_version", b->version, "dictionary", b->dictionary, "dictionary_hash",
                                                  b->dictionary_hash, "layer", es_adapter_layer_of(a, first), "n", b->n));
        }
        if (v && each)
            json_object_set_new(v, "parts", each);
        return app_print_json(v);
    }
    if (shown < K)
        printf("and %d more (--top 0 shows all)\n", K - shown);
    return app_flush();
}

/* A snapshot of the workspace: its number, or the one in use. */
static int open_snapshot(es_adapter **out, app_features *f, es_model *m, int64_t id, story *s, char ****labels, es_error *err)
{
    es_workspace *w = NULL;
    es_buf bytes = {0};
    int rc = app_features_open(f, m, err);
    if (rc == ES_OK)
        rc = app_workspace_for(&w, f, m, err);
    if (rc == ES_OK && id == 0)
        rc = es_workspace_snapshot_current(w, &id);
    if (rc == ES_OK && id == 0)
        rc = es_fail(err, ES_ERR_MISSING, "the base model is in use: nothing has been learned, or it was rolled back");
    if (rc == ES_OK)
        rc = es_workspace_snapshot_bytes(w, id, &bytes, err);
    char what[40];
    snprintf(what, sizeof what, "snapshot %lld", (long long)id);
    if (rc == ES_OK)
        rc = es_adapter_from_bytes(out, m, f->dictionary, bytes.data, bytes.len, what, err);
    int64_t *experience = NULL;
    int n = 0, K = 0;
    if (rc == ES_OK && es_workspace_snapshot_influence(w, id, &experience, &s->influence, &n, &K, NULL) == ES_OK && s->influence) {
        const es_basis *b = es_adapter_basis(*out);
        s->name = es_calloc((size_t)n + 1, sizeof *s->name);
        if (!s->name || !b || K != b->n) {
            story_free(s);
            *s = (story){0};
        } else {
            s->n = n;
            s->K = K;
            for (int i = 0; i < n; i++)
                snprintf(s->name[i], sizeof s->name[i], "experience %lld", (long long)experience[i]);
        }
    }
    free(experience);
    if (rc == ES_OK && (*labels = es_calloc((size_t)es_adapter_parts(*out) + 1, sizeof **labels)) && es_adapter_parts(*out))
        (*labels)[0] = app_labels_from(f, w);
    es_buf_free(&bytes);
    es_workspace_close(w);
    return rc;
}

int cmd_drift(int argc, char **argv)
{
    int top = 20;
    const opt table[] = {
        {"top", "N", OPT_INT, &top, 0, 65536, "the N largest (default 20); 0: all", NULL},
        {0},
    };
    static const command_help help = {
        "drift", "[FILE|SNAPSHOT]",
        "What an adapter has learned: its coefficients, largest first, with labels, and the experience that moved each most. An adapter file,\n"
        "or a snapshot of the workspace by number; without either, the one in use.",
        "  espalier drift brief.safetensors\n  espalier drift 12 --json\n  espalier drift", 0, 1};
    int n;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    es_error err = {0};
    es_model *m = NULL;
    es_adapter *adapter = NULL;
    app_features f = {0};
    story s = {0};
    char ***labels = NULL;
    char *end = NULL;
    long long id = n ? strtoll(argv[1], &end, 10) : 0;
    bool snapshot = n == 0 || (*argv[1] && !*end && id > 0);
    rc = app_model(&m, &err);
    if (rc == ES_OK && snapshot) {
        rc = open_snapshot(&adapter, &f, m, id, &s, &labels, &err);
    } else if (rc == ES_OK) {
        rc = app_adapter(&adapter, &f, m, argv[1], &err);
        if (rc == ES_OK && es_adapter_parts(adapter))
            rc = story_file(&s, argv[1], es_adapter_features(adapter), &err);
        if (rc == ES_OK)
            labels = app_part_labels(&f, m, adapter);
    }
    int code = rc == ES_OK ? print_drift(adapter, &f, labels, &s, top) : app_fail(&err);
    if (adapter)
        app_part_labels_free(labels, &f, adapter);
    story_free(&s);
    es_adapter_free(adapter);
    app_features_close(&f);
    es_model_free(m);
    return code;
}

/* ---- export --------------------------------------------------------------------------------------------------------------------- */

int cmd_export(int argc, char **argv)
{
    const char *to = NULL;
    const opt table[] = {
        {"to", "KIND", OPT_TEXT, &to, 0, 0, "control-vector or gguf-lora (GGUF, as llama.cpp reads them), peft (a folder), persona (.pt, .safetensors), npz or json", NULL},
        {0},
    };
    static const command_help help = {
        "export", "ADAPTER --to KIND FILE",
        "Writes an adapter for other tools. A control vector holds the adapter's mean effect on each layer's residual: what it does to\n"
        "single tokens beyond the mean is not in it. The same holds of persona, a tensor [layers + 1, width] whose row L + 1 is added after our\n"
        "layer L. peft and gguf-lora hold the very matrices of an adapter of the form lora.",
        "  espalier export brief.safetensors --to control-vector brief.gguf\n  espalier export brief.safetensors --to peft brief-lora\n  espalier export brief.safetensors --to npz brief.npz", 2, 2};
    static const struct { const char *name; es_export_kind kind; } kinds[] = {
        {"control-vector", ES_EXPORT_CONTROL_VECTOR}, {"npz", ES_EXPORT_NPZ}, {"json", ES_EXPORT_JSON},
        {"peft", ES_EXPORT_PEFT}, {"gguf-lora", ES_EXPORT_GGUF_LORA}, {"persona", ES_EXPORT_PERSONA}};
    const int n_kinds = sizeof kinds / sizeof *kinds;
    int n, kind = -1;
    int rc = opts_parse(&help, table, argc, argv, &n);
    if (rc != OPTS_GO)
        return rc;
    for (int i = 0; to && i < n_kinds; i++)
        if (!strcmp(to, kinds[i].name))
            kind = i;
    if (kind < 0)
        return to ? opts_usage_error("export", "--to is control-vector, npz or json, or gguf-lora, peft or persona; not '%s'", to) : opts_usage_error("export", "--to KIND is missing");
    es_error err = {0};
    es_model *m = NULL;
    es_adapter *adapter = NULL;
    app_features f = {0};
    es_workspace *w = NULL;
    char path[1200];
    rc = app_model(&m, &err);
    if (rc == ES_OK)
        rc = app_adapter(&adapter, &f, m, argv[1], &err);
    app_path(path, sizeof path, "workspace.db");
    if (rc == ES_OK && f.dictionary && access(path, F_OK) == 0 && app_workspace_for(&w, &f, m, NULL) != ES_OK)
        w = NULL; /* labels are an extra */
    if (rc == ES_OK)
        rc = es_export_adapter(adapter, m, f.dictionary, w, kinds[kind].kind, argv[2], &err);
    es_workspace_close(w);
    es_adapter_free(adapter);
    app_features_close(&f);
    es_model_free(m);
    if (rc != ES_OK)
        return app_fail(&err);
    if (the_app.json)
        return app_print_json(json_pack("{s:s,s:s}", "kind", to, "file", argv[2]));
    app_note("wrote %s", argv[2]);
    return EXIT_DONE;
}
