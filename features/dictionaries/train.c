/* Training from a harvest: the run, its checkpoints, several layers, and what it will take. */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "safetensors.h"
#include "train.h"

typedef struct source { /* a harvest's layer, and the training on it */
    es_harvest_reader h;
    es_train *t;
    es_train_about what;
    char about[160];
} source;

static void read_row(const void *user, size_t row, float *out)
{
    es_harvest_reader_rows(user, row, 1, out);
}

static int source_open(source *s, const char *harvest, int layer, const es_dictionary_training *o, es_error *err)
{
    *s = (source){0};
    int rc = es_harvest_reader_open_at(&s->h, harvest, (es_hook_place){layer, o->site}, err);
    if (rc)
        return rc;
    s->what = (es_train_about){{layer, o->site}, s->h.model_name, s->h.model_hash, s->h.context, s->h.n_row, json_array()};
    es_train_settings(&s->what, s->about, sizeof s->about);
    json_t *file;
    size_t i;
    json_array_foreach(json_object_get(s->h.info, "files"), i, file)
        json_array_append(s->what.files, json_object_get(file, "name"));
    es_train_rows rows = {.n = s->h.n_row, .d = s->h.d, .read = read_row, .user = &s->h, .norm_limit = s->h.norm_limit};
    return es_train_open(&s->t, o, &rows, err);
}

static void source_close(source *s)
{
    es_train_close(s->t);
    json_decref(s->what.files);
    es_harvest_reader_close(&s->h);
}

/* ---- the run --------------------------------------------------------------------------------------------------------------------------- */

void es_train_report(es_train *t, const char *name, double tokens_per_second, const es_progress *progress)
{
    char what[160], near[24] = "", weight[32] = "";
    if (t->near >= 0)
        snprintf(near, sizeof near, " near=%.2f", t->near);
    if (es_train_penalised(t->o.recipe))
        snprintf(weight, sizeof weight, " penalty=%.3g", (double)t->penalty);
    snprintf(what, sizeof what, "%s, fvu=%.4f l0=%.1f dead=%.1f%%%s%s, %.0f tokens/s", name, t->fvu, t->l0, 100 * es_train_dead(t), near, weight, tokens_per_second);
    es_progress_report(progress, what, (double)t->tokens, (double)t->o.tokens, "tokens");
}

static int run(source *s, const char *checkpoint, const char *name, const es_progress *progress, es_error *err)
{
    es_train *t = s->t;
    double last = es_seconds(), shown = 0, looked = 0, began = last;
    uint64_t before = t->tokens;
    while (t->tokens < t->o.tokens) {
        int rc = ES_OK;
        double now = es_seconds();
        if (es_progress_cancelled(progress)) {
            rc = es_train_save(t, checkpoint, s->about, err);
            return rc ? rc
                      : es_fail(err, ES_ERR_CANCELLED, "training was cancelled after %llu tokens; the same command goes on with it",
                                (unsigned long long)t->tokens);
        }
        if (t->o.checkpoint_seconds > 0 && now - last > t->o.checkpoint_seconds) {
            rc = es_train_save(t, checkpoint, s->about, err);
            last = now;
        }
        rc = rc ? rc : es_train_step(t, err);
        if (!rc && t->F > 1 && now - looked > 5 && progress && progress->report) { /* some hundredth of the time */
            rc = es_train_near(t, &t->near, err);
            looked = now;
        }
        if (rc)
            return rc;
        if (now - shown > 0.2) {
            es_train_report(t, name, (double)(t->tokens - before) / (es_seconds() - began), progress);
            shown = now;
        }
    }
    return ES_OK;
}

void es_train_settings(const es_train_about *a, char *out, size_t size)
{
    const bool residual = a->at.hook == ES_HOOK_RESIDUAL;
    snprintf(out, size, "layer=%d%s%s model=%s", a->at.layer, residual ? "" : " site=", residual ? "" : es_hook_site(a->at.hook), a->model_hash);
}

void es_train_name(es_hook_place at, char *out, size_t size)
{
    const bool residual = at.hook == ES_HOOK_RESIDUAL;
    snprintf(out, size, "train layer %d%s%s", at.layer, residual ? "" : " ", residual ? "" : es_hook_site(at.hook));
}

int es_train_finish(es_train *t, const char *dir, const es_train_about *a, es_error *err)
{
    const es_dictionary_training *o = &t->o;
    char hook[80];
    es_hook_place_hook(a->at, hook, sizeof hook);
    json_t *m = json_pack("{s:s, s:s, s:i, s:n, s:i, s:b, s:s, s:I, s:I, s:s, s:i, s:f, s:I, s:I, s:O}", "model_name", a->model_name, "hook_name", hook, "hook_layer",
                          a->at.layer, "hook_head_index", "context_size", a->context, "prepend_bos", 0, "espalier_model_sha256", a->model_hash, "tokens",
                          (json_int_t)t->tokens, "distinct_tokens", (json_int_t)a->distinct, "recipe", es_recipe_name(o->recipe), "recipe_k", o->k, "learning_rate",
                          es_train_base_rate(t), "batch", (json_int_t)o->batch, "seed", (json_int_t)o->seed, "harvested_from", a->files);
    if (!m)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to write the dictionary");
    if (es_train_penalised(o->recipe))
        json_object_set_new(m, "penalty", json_real(t->coefficient));
    if (t->n_prefix > 1) {
        json_t *prefixes = json_array();
        for (int p = 0; p < t->n_prefix; p++)
            json_array_append_new(prefixes, json_integer((json_int_t)t->prefix[p]));
        json_object_set_new(m, "prefixes", prefixes);
    }
    int rc = es_train_write(t, dir, m, err);
    json_decref(m);
    return rc;
}

int es_train_home_of(es_train_home *p, const char *dir, es_error *err)
{
    if (strlen(dir) > 1000)
        return es_fail(err, ES_ERR_USAGE, "%.80s...: the path is too long", dir);
    snprintf(p->folder, sizeof p->folder, "%s/checkpoint", dir);
    snprintf(p->checkpoint, sizeof p->checkpoint, "%s/state.safetensors", p->folder);
    snprintf(p->weights, sizeof p->weights, "%s/sae_weights.safetensors", dir);
    return ES_OK;
}

bool es_train_finished(const es_train_home *p)
{
    return access(p->checkpoint, F_OK) != 0 && access(p->weights, F_OK) == 0;
}

void es_train_drop_checkpoint(const es_train_home *p)
{
    static const char state[] = "state.safetensors";
    DIR *d = opendir(p->folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[sizeof p->folder + sizeof e->d_name + 1];
        const char *end = e->d_name + sizeof state - 1;
        if (strncmp(e->d_name, state, sizeof state - 1) || (*end && strncmp(end, ".tmp-", 5)))
            continue;
        snprintf(path, sizeof path, "%s/%s", p->folder, e->d_name);
        unlink(path);
    }
    if (d)
        closedir(d);
    rmdir(p->folder);
}

static int train_one(const char *harvest, int layer, const char *dir, const es_dictionary_training *o, const char *name, const es_progress *progress, es_error *err)
{
    es_train_home p;
    int rc = es_train_home_of(&p, dir, err);
    if (rc)
        return rc;
    if (es_train_finished(&p))
        return es_fail(err, ES_ERR_USAGE, "%s: there is a finished dictionary already: give another folder", dir);
    source s;
    rc = source_open(&s, harvest, layer, o, err);
    rc = rc ? rc : es_dir_make(p.folder, err);
    if (!rc)
        rc = access(p.checkpoint, F_OK) == 0 ? es_train_load(s.t, p.checkpoint, s.about, err) : es_train_start(s.t, err);
    rc = rc ? rc : run(&s, p.checkpoint, name, progress, err);
    rc = rc ? rc : es_train_finish(s.t, dir, &s.what, err);
    if (!rc)
        es_train_drop_checkpoint(&p);
    source_close(&s);
    return rc;
}

int es_dictionary_train(const char *harvest_dir, int layer, const char *dir, const es_dictionary_training *o, const es_progress *progress,
                        es_error *err)
{
    return train_one(harvest_dir, layer, dir, o, "train", progress, err);
}

/* ---- several layers ---------------------------------------------------------------------------------------------------------------------- */

typedef struct share { const es_progress *whole; int at, of; } share; /* one layer's progress as a part of all */

static void report_share(void *user, const char *what, double done, double total, const char *unit)
{
    const share *s = user;
    es_progress_report(s->whole, what, s->at * total + done, s->of * total, unit);
}

int es_dictionary_train_places(const char *harvest_dir, const es_hook_place *at, int n_place, const char *dir, const es_dictionary_training *o,
                               const es_progress *progress, es_error *err)
{
    int rc = ES_OK, made = 0;
    for (int i = 0; i < n_place && !rc; i++) {
        char folder[1100], where[32], name[60];
        es_train_home p;
        es_dictionary_training one = *o;
        one.site = at[i].hook;
        es_hook_place_name(at[i], where);
        if (snprintf(folder, sizeof folder, "%s/%s", dir, where) > 1000)
            return es_fail(err, ES_ERR_USAGE, "%.80s...: the path is too long", dir);
        es_train_name(at[i], name, sizeof name);
        rc = es_train_home_of(&p, folder, err);
        if (rc)
            break;
        if (es_train_finished(&p)) {
            es_train_drop_checkpoint(&p); /* killed just before it did that itself */
            continue;
        }
        share s = {progress, i, n_place};
        es_progress part = {report_share, &s, progress ? progress->cancel : NULL};
        rc = train_one(harvest_dir, at[i].layer, folder, &one, name, progress && progress->report ? &part : progress, err);
        made++;
    }
    return rc || made ? rc : es_fail(err, ES_ERR_USAGE, "%s: all its dictionaries are finished: give another folder", dir);
}

/* ---- the plan ------------------------------------------------------------------------------------------------------------------------------- */

int es_dictionary_plan_width(const es_dictionary_training *o, int d, es_training_plan *out, es_error *err)
{
    *out = (es_training_plan){0};
    int rc = es_train_check(o, d, err);
    if (rc)
        return rc;
    out->memory = es_train_bytes(o, d, o->threads > 0 ? o->threads : (int)sysconf(_SC_NPROCESSORS_ONLN));
    out->disk = 2 * (size_t)o->n_features * (size_t)d * (o->half ? 2 : 4) + 4 * (size_t)o->n_features * sizeof(float);
    out->disk_checkpoint = es_train_checkpoint_bytes(o, d);
    return ES_OK;
}

int es_dictionary_train_plan(const char *harvest_dir, int layer, const es_dictionary_training *o, int try_steps, es_training_plan *out, es_error *err)
{
    es_harvest_reader h = {0};
    int rc = es_harvest_reader_open_at(&h, harvest_dir, (es_hook_place){layer, o->site}, err), d = h.d;
    es_harvest_reader_close(&h);
    rc = rc ? rc : es_dictionary_plan_width(o, d, out, err);
    if (rc)
        return rc;
    if (try_steps < 1)
        return ES_OK;
    source s;
    rc = source_open(&s, harvest_dir, layer, o, err);
    rc = rc ? rc : es_train_start(s.t, err);
    rc = rc ? rc : es_train_step(s.t, err); /* finds the cut, takes its memory */
    double began = es_seconds();
    for (int i = 0; i < try_steps && !rc; i++)
        rc = es_train_step(s.t, err);
    if (!rc) {
        out->tokens_per_second = (double)try_steps * (double)s.t->B / (es_seconds() - began);
        out->seconds = (double)o->tokens / out->tokens_per_second;
    }
    source_close(&s);
    return rc;
}
