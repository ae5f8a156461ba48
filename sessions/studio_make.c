/* The thread that trains dictionaries beside the chat. It touches the model only to run it; everything else it works with is its own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "studio.h"

enum { LAYERS = 32, SITES = 4, TRY_STEPS = 3 };

struct es_maker { /* [the studio's lock], but for what the thread works with */
    pthread_t thread; /* one a request */
    bool started;
    bool cancel;      /* a flag */
    enum doing { NOTHING, PLAN, MAKE } doing;
    es_making wanted, last; /* wanted: the thread's while it is doing; last: of last_job */
    int job, last_job;
};

typedef struct asked { /* an es_making that makes sense */
    const es_making *m;
    const char *file;
    int layer[LAYERS];
    es_hook_kind site[SITES];
    es_hook_place place[LAYERS * SITES];
    int n_place;
    bool folder;
    es_harvest_options h;
    es_dictionary_training o;
} asked;

void es_making_default(es_making *m)
{
    es_dictionary_training o = es_dictionary_training_default();
    *m = (es_making){.features = o.n_features, .k = o.k, .tokens = o.tokens};
    snprintf(m->recipe, sizeof m->recipe, "%s", es_recipe_name(o.recipe));
    snprintf(m->sites, sizeof m->sites, "resid");
}

static int read_layers(asked *a, es_error *err)
{
    const char *at = a->m->layers;
    while (*at) {
        char *end;
        long v = strtol(at, &end, 10);
        if (end == at || v < 0 || v > 511 || (*end && *end != ',') || a->h.n_layer == LAYERS)
            return es_fail(err, ES_ERR_USAGE, "layers: numbers with commas, at most %d, not '%.20s'", (int)LAYERS, at);
        a->layer[a->h.n_layer++] = (int)v;
        at = end + (*end == ',');
    }
    return a->h.n_layer ? ES_OK : es_fail(err, ES_ERR_USAGE, "which layers? 14, or 10,14");
}

static int read_sites(asked *a, es_error *err)
{
    const char *at = a->m->sites;
    while (*at) {
        char name[32];
        es_hook_kind k;
        es_point point;
        size_t n = strcspn(at, ",");
        snprintf(name, sizeof name, "%.*s", n < sizeof name ? (int)n : (int)sizeof name - 1, at);
        if (!es_hook_site_named(name, &k) || !es_hook_point(k, &point) || a->h.n_site == SITES)
            return es_fail(err, ES_ERR_USAGE, "sites: resid, attn, mlp, z with commas, not '%s'", name);
        a->site[a->h.n_site++] = k;
        at += n + (at[n] == ',');
    }
    return ES_OK;
}

static int read_asked(const es_studio *s, const es_making *m, asked *a, es_error *err)
{
    struct stat st;
    int r = 0;
    *a = (asked){.m = m, .file = m->texts, .h = es_harvest_default(), .o = es_dictionary_training_default()};
    a->h.layer = a->layer;
    a->h.site = a->site;
    int rc = read_layers(a, err);
    rc = rc ? rc : read_sites(a, err);
    if (!rc && (!*m->texts || stat(m->texts, &st) != 0))
        rc = es_fail(err, ES_ERR_MISSING, *m->texts ? "%.150s: there is no such file" : "which texts? a .jsonl or .txt file, or the folder of a harvest%.0s", m->texts);
    if (!rc && !*m->out)
        rc = es_fail(err, ES_ERR_USAGE, "into which folder?");
    while (es_recipe_name((es_recipe)r) && strcmp(es_recipe_name((es_recipe)r), m->recipe))
        r++;
    if (!rc && !es_recipe_name((es_recipe)r))
        rc = es_fail(err, ES_ERR_USAGE, "'%s' is no recipe: batchtopk, topk, matryoshka, jumprelu, gated or standard", m->recipe);
    if (rc)
        return rc;
    a->folder = S_ISDIR(st.st_mode);
    if (a->folder && m->harvest_only)
        return es_fail(err, ES_ERR_USAGE, "%.150s: is a folder; a harvest takes texts", m->texts);
    for (int i = 0; i < a->h.n_layer; i++)
        for (int k = 0; k < (a->h.n_site ? a->h.n_site : 1); k++)
            a->place[a->n_place++] = (es_hook_place){a->layer[i], a->h.n_site ? a->site[k] : ES_HOOK_RESIDUAL};
    a->h.threads = a->o.threads = s->o.threads;
    a->h.max_tokens = m->harvest_only ? m->tokens : 0;
    a->o.recipe = (es_recipe)r;
    a->o.n_features = m->harvest_only ? 64 : m->features; /* a harvest trains nothing: its plan tries something small */
    a->o.k = m->harvest_only ? 1 : m->k;
    a->o.tokens = m->tokens;
    a->o.site = a->place[0].hook;
    if (a->o.aux_k > a->o.n_features / 2)
        a->o.aux_k = a->o.n_features / 2;
    return ES_OK;
}

/* A short training waits for a short buffer. */
static es_stream stream_of(const asked *a)
{
    const uint64_t some = a->m->tokens / 8, least = 2 * (uint64_t)a->o.batch;
    const size_t buffer = some < least ? (size_t)least : some < ES_STREAM_BUFFER ? (size_t)some : ES_STREAM_BUFFER;
    return (es_stream){.file = &a->file, .n_file = 1, .reading = a->h, .buffer = buffer, .itself = a->n_place == 1};
}

/* ---- the plan ------------------------------------------------------------------------------------------------------------------------------- */

static double mb(size_t bytes)
{
    return (double)bytes / (1 << 20);
}

/* Of all that will be there: memory, disk for good and for the while, seconds. try_steps as es_dictionary_train_plan. */
static int plan(es_studio *s, const asked *a, int try_steps, es_training_plan *out, es_error *err)
{
    const es_stream stream = stream_of(a);
    *out = (es_training_plan){0};
    if (a->folder) {
        int rc = ES_OK;
        for (int i = 0; i < a->n_place && !rc; i++) {
            es_dictionary_training o = a->o;
            es_training_plan one;
            o.site = a->place[i].hook;
            rc = es_dictionary_train_plan(a->file, a->place[i].layer, &o, try_steps, &one, err);
            out->memory = one.memory > out->memory ? one.memory : out->memory;
            out->disk_checkpoint = one.disk_checkpoint > out->disk_checkpoint ? one.disk_checkpoint : out->disk_checkpoint;
            out->disk += one.disk;
            out->seconds += one.seconds;
        }
        return rc;
    }
    int rc = es_dictionary_stream_plan(s->model, &stream, &a->o, try_steps, out, err);
    if (!rc && a->m->harvest_only) { /* the model's part alone, and rows on disk */
        size_t row = sizeof(int32_t);
        for (int i = 0; i < a->n_place; i++) {
            es_point point;
            es_hook_point(a->place[i].hook, &point);
            row += 2 * (size_t)es_point_width(s->model, point);
        }
        out->memory = out->memory_reading;
        out->disk = row * (size_t)a->m->tokens;
        out->disk_checkpoint = 0;
        out->seconds = out->seconds_reading;
    }
    return rc;
}

static int check_room(const es_studio *s, const asked *a, const es_training_plan *p, es_error *err)
{
    size_t disk = p->disk + 2 * p->disk_checkpoint, have = es_disk_free(a->m->out); /* a checkpoint is written beside the old one */
    int rc = es_memory_check(p->memory, s->o.memory, a->m->harvest_only ? "the harvest" : "the training", err);
    if (!rc && disk > have)
        rc = es_fail(err, ES_ERR_LIMIT, "%.150s: %.0f MB of disk are needed, %.0f are free", a->m->out, mb(disk), mb(have));
    return rc;
}

static void plan_text(const es_training_plan *p, const char *out, char *text, size_t size)
{
    char time[48], more[48] = "";
    double minutes = p->seconds / 60;
    snprintf(time, sizeof time, minutes < 1 ? "%.0f s" : minutes < 100 ? "%.0f min" : "%.1f h", minutes < 1 ? p->seconds : minutes < 100 ? minutes : minutes / 60);
    if (p->disk_checkpoint)
        snprintf(more, sizeof more, " and %.0f MB while it trains", mb(2 * p->disk_checkpoint));
    snprintf(text, size, "Time: about %s, with nothing else running. Memory: %.0f MB of %.0f. Disk: %.0f MB%s of %.0f.", time, mb(p->memory), mb(es_memory_available()), mb(p->disk),
             more, mb(es_disk_free(out)));
}

static void make_plan(es_studio *s, const es_making *m)
{
    asked a;
    es_error err = {0};
    es_training_plan p;
    char text[320] = "";
    int rc = read_asked(s, m, &a, &err);
    rc = rc ? rc : plan(s, &a, 0, &p, &err);
    rc = rc ? rc : check_room(s, &a, &p, &err); /* before any of that memory is taken */
    rc = rc ? rc : plan(s, &a, TRY_STEPS, &p, &err);
    if (!rc)
        plan_text(&p, m->out, text, sizeof text);
    pthread_mutex_lock(&s->lock);
    snprintf(s->plan_text, sizeof s->plan_text, "%.319s", rc ? err.text : text);
    s->plan_ok = !rc;
    s->plan_running = false;
    s->plan_serial++;
    s->maker->doing = NOTHING; /* whoever sees the plan may begin at once */
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

/* ---- what was stopped or killed is offered again by the next session -------------------------------------------------------------------- */

static const char unfinished[] = "making"; /* its place among the workspace's settings */

/* The next session may be in another folder. */
static void absolute(const char *path, char *out, size_t size)
{
    char here[1024] = "";
    bool relative = *path && *path != '/' && getcwd(here, sizeof here);
    if (snprintf(out, size, relative ? "%s/%s" : "%s%s", here, path) >= (int)size)
        snprintf(out, size, "%s", path);
}

/* NULL: there is nothing to go on with. What cannot be written down is not offered. */
static void remember(es_studio *s, const es_making *m)
{
    char texts[2048], out[2048], *line = NULL;
    if (m) {
        absolute(m->texts, texts, sizeof texts);
        absolute(m->out, out, sizeof out);
        json_t *v = json_pack("{s:s, s:s, s:s, s:b, s:s, s:i, s:i, s:I, s:s}", "texts", texts, "layers", m->layers, "sites", m->sites, "harvest_only", m->harvest_only, "recipe",
                              m->recipe, "features", m->features, "k", m->k, "tokens", (json_int_t)m->tokens, "out", out);
        line = v ? json_dumps(v, JSON_COMPACT) : NULL;
        json_decref(v);
    }
    ws_state_set(s->workspace, unfinished, line ? line : "", NULL);
    free(line);
}

static bool take_text(json_t *v, const char *key, char *out, size_t size)
{
    const char *text = json_string_value(json_object_get(v, key));
    return text && snprintf(out, size, "%s", text) < (int)size;
}

static bool recall(es_studio *s, es_making *m)
{
    char line[6000];
    if (ws_state_get(s->workspace, unfinished, line, sizeof line) || !*line)
        return false;
    json_t *v = json_loads(line, 0, NULL);
    *m = (es_making){.harvest_only = json_is_true(json_object_get(v, "harvest_only")), .features = (int)json_integer_value(json_object_get(v, "features")),
                     .k = (int)json_integer_value(json_object_get(v, "k")), .tokens = (uint64_t)json_integer_value(json_object_get(v, "tokens"))};
    bool good = take_text(v, "texts", m->texts, sizeof m->texts) && take_text(v, "layers", m->layers, sizeof m->layers) && take_text(v, "sites", m->sites, sizeof m->sites)
        && take_text(v, "recipe", m->recipe, sizeof m->recipe) && take_text(v, "out", m->out, sizeof m->out) && m->features > 0 && m->k > 0 && m->tokens > 0;
    json_decref(v);
    return good;
}

static void stopped_text(const es_making *m, char *what, size_t size)
{
    snprintf(what, size, "stopped: r goes on with it (%.100s)", m->out);
}

void es_maker_recall(es_studio *s)
{
    es_making m;
    if (!recall(s, &m))
        return;
    char what[160];
    stopped_text(&m, what, sizeof what);
    const int job = es_studio_job_begin(s, m.harvest_only ? "harvest" : "train", what, "tokens");
    es_studio_job_end(s, job, false, true, what);
    pthread_mutex_lock(&s->lock);
    if (!s->maker)
        s->maker = es_calloc(1, sizeof *s->maker);
    if (s->maker && !s->maker->job && !s->maker->last_job) {
        s->maker->last = m;
        s->maker->last_job = job;
    }
    pthread_mutex_unlock(&s->lock);
    es_studio_say_status(s, "a %s was stopped: Jobs (F6), r goes on with it, x forgets it", m.harvest_only ? "harvest" : "training");
}

/* ---- the work ------------------------------------------------------------------------------------------------------------------------------- */

typedef struct reporting { es_studio *s; int job; } reporting;

static void report(void *user, const char *what, double done, double total, const char *unit)
{
    const reporting *r = user;
    (void)unit;
    es_studio_job_step(r->s, r->job, done, total, what);
}

static int work(es_studio *s, const asked *a, const es_progress *p, es_error *err)
{
    es_training_plan room;
    int rc = plan(s, a, 0, &room, err);
    rc = rc ? rc : check_room(s, a, &room, err);
    if (rc)
        return rc;
    if (a->m->harvest_only)
        return es_harvest(s->model, &a->file, 1, a->m->out, &a->h, p, err);
    if (!a->folder) {
        const es_stream stream = stream_of(a);
        return es_dictionary_train_stream(s->model, &stream, a->m->out, &a->o, p, err);
    }
    return a->n_place == 1 ? es_dictionary_train(a->file, a->place[0].layer, a->m->out, &a->o, p, err)
                           : es_dictionary_train_places(a->file, a->place, a->n_place, a->m->out, &a->o, p, err);
}

static void make(es_studio *s, const es_making *m)
{
    struct es_maker *k = s->maker;
    asked a;
    es_error err = {0};
    char what[160];
    snprintf(what, sizeof what, "%s %.120s", m->harvest_only ? "harvest into" : "train into", m->out);
    reporting r = {s, es_studio_job_begin(s, m->harvest_only ? "harvest" : "train", what, "tokens")};
    es_progress p = {.report = report, .user = &r, .cancel = &k->cancel};
    pthread_mutex_lock(&s->lock);
    k->job = k->last_job = r.job;
    k->last = *m;
    pthread_mutex_unlock(&s->lock);
    int rc = read_asked(s, m, &a, &err);
    if (!rc)
        remember(s, m);
    rc = rc ? rc : work(s, &a, &p, &err);
    if (rc == ES_ERR_CANCELLED) {
        stopped_text(m, what, sizeof what);
    } else {
        snprintf(what, sizeof what, "%.150s", rc ? err.text : m->out);
        remember(s, NULL);
    }
    if (rc && rc != ES_ERR_CANCELLED)
        es_studio_say_status(s, "%.230s", err.text);
    else if (!rc)
        es_studio_say_status(s, "%s is there: %.180s", m->harvest_only ? "the harvest" : "the dictionary", m->out);
    es_studio_job_step(s, r.job, 0, 0, what);
    pthread_mutex_lock(&s->lock);
    es_studio_job_ended(s, r.job, rc && rc != ES_ERR_CANCELLED, rc == ES_ERR_CANCELLED);
    k->job = 0;
    k->doing = NOTHING; /* whoever sees the end may begin another at once */
    pthread_mutex_unlock(&s->lock);
}

/* One request. A plan is waited for, so only the work itself gives way. */
static void *maker_main(void *studio)
{
    es_studio *s = studio;
    struct es_maker *k = s->maker;
    if (k->doing == PLAN) {
        make_plan(s, &k->wanted);
    } else {
        es_thread_give_way(); /* and so do the threads of its pools */
        make(s, &k->wanted);
    }
    return NULL;
}

/* ---- what the workbench calls ------------------------------------------------------------------------------------------------------------------ */

/* With the lock held: why nothing can be begun now, or NULL. */
static const char *obstacle(es_studio *s)
{
    if (!s->ready)
        return "the model is still being opened";
    if (!s->maker && !(s->maker = es_calloc(1, sizeof *s->maker)))
        return "there is no memory for that";
    return s->maker->doing == PLAN ? "a plan is being made" : s->maker->doing == MAKE ? "one is being made already: Jobs (F6) can stop it" : NULL;
}

static void ask(es_studio *s, const es_making *m, enum doing what)
{
    pthread_mutex_lock(&s->lock);
    const char *why = obstacle(s);
    struct es_maker *k = s->maker;
    if (!why) {
        if (k->started)
            pthread_join(k->thread, NULL); /* it has said that it is done, and takes no lock any more */
        k->wanted = *m;
        k->doing = what;
        __atomic_store_n(&k->cancel, false, __ATOMIC_RELAXED);
        s->plan_running = what == PLAN;
        k->started = pthread_create(&k->thread, NULL, maker_main, s) == 0;
        if (!k->started) {
            k->doing = NOTHING;
            s->plan_running = false;
            why = "there is no memory for another thread";
        }
    }
    if (why) {
        snprintf(s->status, sizeof s->status, "%s", why);
        if (what == PLAN) { /* the reason takes the plan's place */
            snprintf(s->plan_text, sizeof s->plan_text, "%s", why);
            s->plan_ok = false;
            s->plan_serial++;
        }
    }
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

void es_studio_make_plan(es_studio *s, const es_making *m)
{
    ask(s, m, PLAN);
}

void es_studio_make(es_studio *s, const es_making *m)
{
    ask(s, m, MAKE);
}

void es_studio_make_again(es_studio *s, int job)
{
    pthread_mutex_lock(&s->lock);
    struct es_maker *k = s->maker;
    bool can = k && job > 0 && k->last_job == job && !k->job;
    es_making m = can ? k->last : (es_making){0};
    pthread_mutex_unlock(&s->lock);
    if (can)
        es_studio_make(s, &m);
    else
        es_studio_say_status(s, "only what was made last can be gone on with here; n with the same folder goes on too");
}

bool es_maker_cancel(es_studio *s, int job)
{
    pthread_mutex_lock(&s->lock);
    struct es_maker *k = s->maker;
    const bool its = k && job > 0 && k->job == job, stopped = k && job > 0 && k->last_job == job && !k->job;
    if (its)
        __atomic_store_n(&k->cancel, true, __ATOMIC_RELAXED);
    if (stopped)
        k->last_job = 0;
    pthread_mutex_unlock(&s->lock);
    if (stopped) {
        remember(s, NULL);
        es_studio_job_step(s, job, 1, 1, "stopped, and not to be gone on with here; what it left in its folder is there");
    }
    return its || stopped;
}

void es_maker_stop(es_studio *s)
{
    struct es_maker *k = s->maker;
    if (!k)
        return;
    pthread_mutex_lock(&s->lock);
    __atomic_store_n(&k->cancel, true, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&s->lock);
    if (k->started)
        pthread_join(k->thread, NULL);
    free(k);
    s->maker = NULL;
}
