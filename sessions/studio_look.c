/* Looking: two threads beside those that speak and learn, so that a person who leafs through features waits for neither. The quick one reads tokens for
 * lists, makes dashboards and finds; the slow one makes maps and contrasts. Each has its own atlas and its own connection to the workspace. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "studio.h"

enum { PEAKS = 6, WANTED = 256, DASHBOARDS = 64, WANT_DASHBOARDS = 4, TEXTS = 500, CONTRAST = 100 };
enum { UNREAD, ASKED, READ };

typedef struct es_looks {
    pthread_mutex_t lock; /* of all that is below; nobody holds it while computing. Never together with the studio's */
    pthread_cond_t quick_wake, slow_wake;
    pthread_t quick, slow;
    bool quick_started, slow_started, quit;
    /* the quick thread's own */
    es_atlas *atlas;
    es_workspace *reader;
    es_pool *pool;
    es_finder finder;
    es_basis basis;
    /* tokens for lists */
    int32_t *peak;        /* [F, PEAKS], -1 after the last */
    uint8_t *peak_state;  /* [F] */
    int wanted[WANTED], n_wanted;
    /* dashboards */
    es_dashboard dashboard[DASHBOARDS];
    int n_dashboard;      /* made so far; the newest DASHBOARDS are there */
    int want[WANT_DASHBOARDS], n_want;
    /* finding */
    char *query;          /* NULL: nothing is wanted */
    es_find_order order;
    bool finding, have, cancel;
    es_found found;
    char error[240];
    /* slow */
    char *contrast[2];
    bool want_map, slow_cancel;
    int job;              /* that runs now, 0: none */
    es_map_state map_state;
    double map_done;
    float *xy;
} es_looks;

static void changed(es_studio *s)
{
    pthread_mutex_lock(&s->lock);
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

/* ---- the quick thread ------------------------------------------------------------------------------------------------------------ */

/* Tokens of an example's peaks, each once; of none, those promoted. */
static void peaks_of(const es_feature_card *c, int32_t *out)
{
    int n = 0;
    memset(out, -1, PEAKS * sizeof *out);
    for (int i = 0; i < c->n_example && n < PEAKS; i++) {
        int32_t id = c->example[i].id[c->example[i].peak];
        bool had = false;
        for (int k = 0; k < n; k++)
            had |= out[k] == id;
        if (!had)
            out[n++] = id;
    }
    for (int i = 0; !c->n_example && i < c->n_promoted && i < PEAKS; i++)
        out[i] = c->promoted[i];
}

static void read_peaks(es_studio *s, es_looks *l, const int *feature, int n)
{
    for (int i = 0; i < n; i++) {
        es_feature_card c = {0};
        int32_t peak[PEAKS];
        if (l->atlas)
            es_atlas_card(l->atlas, feature[i], &c, NULL);
        peaks_of(&c, peak);
        pthread_mutex_lock(&l->lock);
        memcpy(l->peak + (size_t)feature[i] * PEAKS, peak, sizeof peak);
        l->peak_state[feature[i]] = READ;
        pthread_mutex_unlock(&l->lock);
    }
    changed(s);
}

static void make_dashboard(es_studio *s, es_looks *l, int feature)
{
    es_dashboard d;
    es_feature_card c;
    bool card = l->atlas && es_atlas_card(l->atlas, feature, &c, NULL) == 0;
    es_dashboard_make(&d, s->model, s->dictionary, card ? &c : NULL, feature, l->pool, NULL); /* without memory it is shown with what it has */
    pthread_mutex_lock(&l->lock);
    l->dashboard[l->n_dashboard++ % DASHBOARDS] = d;
    pthread_mutex_unlock(&l->lock);
    changed(s);
}

#define QUEUE "\1next" /* no query: what es_studio_next puts in its place */
enum { QUEUE_LENGTH = 1000 };

static int next(es_studio *s, es_looks *l, es_found *out, es_error *err)
{
    *out = (es_found){.measure = "worth"};
    pthread_mutex_lock(&s->lock);
    int n = s->n_suggested, *suggested = calloc((size_t)n + 1, sizeof *suggested);
    float *score = calloc((size_t)n + 1, sizeof *score);
    if (suggested && score && n) {
        memcpy(suggested, s->suggested, (size_t)n * sizeof *suggested);
        memcpy(score, s->suggested_score, (size_t)n * sizeof *score);
    }
    pthread_mutex_unlock(&s->lock);
    es_next *list = calloc(QUEUE_LENGTH, sizeof *list);
    out->feature = calloc(QUEUE_LENGTH, sizeof *out->feature);
    out->value = calloc(QUEUE_LENGTH, sizeof *out->value);
    int rc = suggested && score && list && out->feature && out->value ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for the queue");
    if (!rc)
        rc = es_workspace_next(l->reader, s->dictionary_hash, &(es_next_options){suggested, score, n}, list, QUEUE_LENGTH, &out->n, err);
    for (int i = 0; i < out->n && !rc; i++) {
        out->feature[i] = list[i].feature;
        out->value[i] = (float)list[i].value;
    }
    free(suggested);
    free(score);
    free(list);
    if (rc)
        es_found_free(out);
    return rc;
}

/* With the lock held: what was found is there to be taken; l owns it. */
static void leave_found(es_looks *l, es_found found, const char *error)
{
    es_found_free(&l->found);
    l->found = found;
    l->have = true;
    l->finding = false;
    snprintf(l->error, sizeof l->error, "%.230s", error);
}

static void find(es_studio *s, es_looks *l, const char *query, es_find_order order)
{
    es_found found;
    es_error err = {0};
    es_basis_free(&l->basis);
    l->basis = (es_basis){0};
    pthread_mutex_lock(&s->lock);
    es_studio_basis_copy(&l->basis, &s->basis);
    pthread_mutex_unlock(&s->lock);
    int rc = !strcmp(query, QUEUE) ? next(s, l, &found, &err) : es_find(&l->finder, query, order, &found, &l->cancel, &err);
    pthread_mutex_lock(&l->lock);
    if (l->query) { /* a newer one is wanted: nobody is interested */
        es_found_free(&found);
    } else {
        leave_found(l, found, rc ? err.text : "");
    }
    pthread_mutex_unlock(&l->lock);
    changed(s);
}

static void *quick_main(void *studio)
{
    es_studio *s = studio;
    es_looks *l = s->looks;
    pthread_mutex_lock(&l->lock);
    while (!l->quit) {
        if (l->n_wanted) {
            int feature[WANTED], n = l->n_wanted;
            memcpy(feature, l->wanted, (size_t)n * sizeof *feature);
            l->n_wanted = 0;
            pthread_mutex_unlock(&l->lock);
            read_peaks(s, l, feature, n);
            pthread_mutex_lock(&l->lock);
        } else if (l->n_want) {
            int feature = l->want[--l->n_want];
            pthread_mutex_unlock(&l->lock);
            make_dashboard(s, l, feature);
            pthread_mutex_lock(&l->lock);
        } else if (l->query) {
            char *query = l->query;
            es_find_order order = l->order;
            l->query = NULL;
            __atomic_store_n(&l->cancel, false, __ATOMIC_RELAXED);
            pthread_mutex_unlock(&l->lock);
            find(s, l, query, order);
            free(query);
            es_studio_hear_card(s);
            pthread_mutex_lock(&l->lock);
        } else {
            pthread_cond_wait(&l->quick_wake, &l->lock);
        }
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* ---- the slow thread -------------------------------------------------------------------------------------------------------------- */

typedef struct job { es_studio *s; int id; } job;

static void report(void *user, const char *what, double done, double total, const char *unit)
{
    const job *j = user;
    es_looks *l = j->s->looks;
    (void)unit;
    pthread_mutex_lock(&l->lock);
    if (l->map_state == ES_MAP_MAKING && total > 0)
        l->map_done = strstr(what, "nearest") ? 0.5 * done / total : 0.5 + 0.5 * done / total;
    pthread_mutex_unlock(&l->lock);
    es_studio_job_step(j->s, j->id, done, total, what);
}

static int slow_begin(es_studio *s, const char *kind, const char *what)
{
    es_looks *l = s->looks;
    int id = es_studio_job_begin(s, kind, what, "");
    pthread_mutex_lock(&l->lock);
    l->job = id;
    pthread_mutex_unlock(&l->lock);
    return id;
}

static void slow_end(es_studio *s, int id, int rc, const es_error *err, const char *done)
{
    es_looks *l = s->looks;
    es_studio_job_end(s, id, rc && rc != ES_ERR_CANCELLED, rc == ES_ERR_CANCELLED, rc ? err->text : done);
    if (rc)
        es_studio_say_status(s, "%.230s", err->text);
    pthread_mutex_lock(&l->lock);
    l->job = 0;
    pthread_mutex_unlock(&l->lock);
}

static void make_map(es_studio *s, es_looks *l)
{
    es_error err = {0};
    es_layout_options o = es_layout_default();
    o.threads = s->o.threads;
    job j = {s, slow_begin(s, "map", "the map of the dictionary")};
    es_progress p = {.report = report, .user = &j, .cancel = &l->slow_cancel};
    float *xy = es_calloc(2 * (size_t)s->n_features, sizeof *xy);
    int rc = !xy          ? es_fail(&err, ES_ERR_MEMORY, "not enough memory for a map")
             : s->o.maps ? es_layout_kept(s->o.maps, s->dictionary, &o, xy, &p, &err)
                          : es_layout_make(s->dictionary, &o, xy, &p, &err);
    pthread_mutex_lock(&l->lock);
    l->map_state = rc == 0 ? ES_MAP_READY : rc == ES_ERR_CANCELLED ? ES_MAP_NONE : ES_MAP_FAILED;
    if (!rc) {
        l->xy = xy;
        xy = NULL;
    }
    pthread_mutex_unlock(&l->lock);
    free(xy);
    slow_end(s, j.id, rc, &err, "the map of the dictionary");
}

/* The strongest CONTRAST each way. */
static int contrast_found(const float *score, int F, es_found *out, es_error *err)
{
    *out = (es_found){.measure = "score"};
    out->feature = es_calloc(2 * CONTRAST, sizeof *out->feature);
    out->value = es_calloc(2 * CONTRAST, sizeof *out->value);
    if (!out->feature || !out->value)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory");
    for (int way = 1; way >= -1; way -= 2) {
        int first = out->n;
        for (int j = 0; j < F; j++) {
            float v = score[j] * (float)way;
            int n = out->n - first;
            if (!(v > 0) || (n == CONTRAST && v <= out->value[out->n - 1] * (float)way))
                continue;
            int at = n < CONTRAST ? out->n++ : out->n - 1;
            for (; at > first && out->value[at - 1] * (float)way < v; at--) {
                out->value[at] = out->value[at - 1];
                out->feature[at] = out->feature[at - 1];
            }
            out->value[at] = score[j];
            out->feature[at] = j;
        }
    }
    return ES_OK;
}

static void contrast(es_studio *s, es_looks *l, const char *a, const char *b)
{
    es_error err = {0};
    es_texts texts[2] = {{.limit = TEXTS}, {.limit = TEXTS}};
    es_firing *firing = NULL;
    es_found found = {0};
    job j = {s, slow_begin(s, "contrast", "reading two sets of texts")};
    es_progress p = {.report = report, .user = &j, .cancel = &l->slow_cancel};
    float *score = es_calloc((size_t)s->n_features, sizeof *score);
    int rc = score ? es_texts_read(&texts[0], a, true, &err) : es_fail(&err, ES_ERR_MEMORY, "not enough memory");
    if (!rc)
        rc = es_texts_read(&texts[1], b, true, &err);
    if (!rc)
        rc = es_firing_open(&firing, s->model, s->dictionary, s->o.threads, &err);
    if (!rc)
        rc = es_contrast(firing, texts[0].text, texts[0].n, texts[1].text, texts[1].n, score, &p, &err);
    if (!rc)
        rc = contrast_found(score, s->n_features, &found, &err);
    pthread_mutex_lock(&l->lock);
    if (rc)
        es_found_free(&found);
    leave_found(l, found, rc ? err.text : "");
    pthread_mutex_unlock(&l->lock);
    slow_end(s, j.id, rc, &err, "two sets of texts contrasted");
    changed(s);
    es_firing_free(firing);
    es_texts_free(&texts[0]);
    es_texts_free(&texts[1]);
    free(score);
}

static void *slow_main(void *studio)
{
    es_studio *s = studio;
    es_looks *l = s->looks;
    es_thread_give_way();
    pthread_mutex_lock(&l->lock);
    while (!l->quit) {
        __atomic_store_n(&l->slow_cancel, false, __ATOMIC_RELAXED);
        if (l->contrast[0]) {
            char *a = l->contrast[0], *b = l->contrast[1];
            l->contrast[0] = l->contrast[1] = NULL;
            pthread_mutex_unlock(&l->lock);
            contrast(s, l, a, b);
            free(a);
            free(b);
            es_studio_hear_card(s);
            pthread_mutex_lock(&l->lock);
        } else if (l->want_map) {
            l->want_map = false;
            pthread_mutex_unlock(&l->lock);
            make_map(s, l);
            pthread_mutex_lock(&l->lock);
        } else {
            pthread_cond_wait(&l->slow_wake, &l->lock);
        }
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* ---- starting and stopping ---------------------------------------------------------------------------------------------------------- */

static void looks_free(es_looks *l)
{
    es_finder_free(&l->finder);
    es_basis_free(&l->basis);
    es_atlas_free(l->atlas);
    es_workspace_close(l->reader);
    es_pool_free(l->pool);
    es_found_free(&l->found);
    free(l->query);
    free(l->contrast[0]);
    free(l->contrast[1]);
    free(l->peak);
    free(l->peak_state);
    free(l->xy);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->quick_wake);
    pthread_cond_destroy(&l->slow_wake);
    free(l);
}

int es_looks_start(es_studio *s, es_error *err)
{
    es_looks *l = es_calloc(1, sizeof *l);
    if (!l)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to look at features");
    size_t F = (size_t)s->n_features;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->quick_wake, NULL);
    pthread_cond_init(&l->slow_wake, NULL);
    l->peak = es_calloc(F * PEAKS, sizeof *l->peak);
    l->peak_state = es_calloc(F, 1);
    int rc = l->peak && l->peak_state ? es_pool_open(&l->pool, 1, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory to look at %zu features", F);
    if (!rc)
        rc = ws_reader(&l->reader, s->workspace, err);
    if (!rc && s->atlas) {
        char path[1200];
        snprintf(path, sizeof path, "%s/atlas.esa", es_dictionary_get_info(s->dictionary)->folder);
        rc = es_atlas_open(&l->atlas, path, err);
        if (!rc)
            rc = es_atlas_open(&s->shown, path, err);
    }
    l->finder = (es_finder){.workspace = l->reader, .hash = s->dictionary_hash, .model = s->model, .dictionary = s->dictionary, .atlas = l->atlas,
                            .density = s->density, .basis = &l->basis, .n_features = s->n_features, .threads = s->o.threads};
    s->looks = l;
    if (!rc && pthread_create(&l->quick, NULL, quick_main, s))
        rc = es_fail(err, ES_ERR_MEMORY, "cannot start the looking threads");
    else if (!rc)
        l->quick_started = true;
    if (!rc && pthread_create(&l->slow, NULL, slow_main, s))
        rc = es_fail(err, ES_ERR_MEMORY, "cannot start the looking threads");
    else if (!rc)
        l->slow_started = true;
    if (rc)
        es_looks_stop(s);
    return rc;
}

void es_looks_stop(es_studio *s)
{
    es_looks *l = s->looks;
    if (!l)
        return;
    pthread_mutex_lock(&l->lock);
    l->quit = true;
    __atomic_store_n(&l->cancel, true, __ATOMIC_RELAXED);
    __atomic_store_n(&l->slow_cancel, true, __ATOMIC_RELAXED);
    if (l->reader)
        sqlite3_interrupt(l->reader->db);
    pthread_cond_broadcast(&l->quick_wake);
    pthread_cond_broadcast(&l->slow_wake);
    pthread_mutex_unlock(&l->lock);
    if (l->quick_started)
        pthread_join(l->quick, NULL);
    if (l->slow_started)
        pthread_join(l->slow, NULL);
    s->looks = NULL;
    looks_free(l);
}

bool es_looks_cancel(es_studio *s, int id)
{
    es_looks *l = s->looks;
    if (!l)
        return false;
    pthread_mutex_lock(&l->lock);
    bool own = l->job == id && id;
    if (own)
        __atomic_store_n(&l->slow_cancel, true, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&l->lock);
    return own;
}

/* ---- what the workbench asks ---------------------------------------------------------------------------------------------------------- */

static es_looks *looks(es_studio *s)
{
    pthread_mutex_lock(&s->lock);
    es_looks *l = s->ready ? s->looks : NULL;
    pthread_mutex_unlock(&s->lock);
    return l;
}

int es_studio_dashboard(es_studio *s, int feature, es_dashboard *out)
{
    es_looks *l = looks(s);
    if (!l || feature < 0 || feature >= s->n_features)
        return 0;
    pthread_mutex_lock(&l->lock);
    int there = 0;
    for (int i = 0; i < DASHBOARDS && i < l->n_dashboard && !there; i++)
        if (l->dashboard[i].feature == feature) {
            *out = l->dashboard[i];
            there = 1;
        }
    bool asked = there;
    for (int i = 0; i < l->n_want && !asked; i++)
        asked = l->want[i] == feature;
    if (!asked) {
        if (l->n_want == WANT_DASHBOARDS) /* the oldest wish has been left behind */
            memmove(l->want, l->want + 1, (size_t)--l->n_want * sizeof *l->want);
        l->want[l->n_want++] = feature;
        pthread_cond_signal(&l->quick_wake);
    }
    pthread_mutex_unlock(&l->lock);
    return there;
}

int es_studio_peaks(es_studio *s, int feature, int32_t *id, int n)
{
    es_looks *l = looks(s);
    int found = -1;
    if (!l || feature < 0 || feature >= s->n_features)
        return -1;
    pthread_mutex_lock(&l->lock);
    if (l->peak_state[feature] == READ) {
        const int32_t *p = l->peak + (size_t)feature * PEAKS;
        for (found = 0; found < PEAKS && found < n && p[found] >= 0; found++)
            id[found] = p[found];
    } else if (l->peak_state[feature] == UNREAD) {
        if (l->n_wanted == WANTED) { /* rows that went by long ago */
            l->peak_state[l->wanted[0]] = UNREAD;
            memmove(l->wanted, l->wanted + 1, (size_t)--l->n_wanted * sizeof *l->wanted);
        }
        l->wanted[l->n_wanted++] = feature;
        l->peak_state[feature] = ASKED;
        pthread_cond_signal(&l->quick_wake);
    }
    pthread_mutex_unlock(&l->lock);
    return found;
}

const float *es_studio_max(es_studio *s)
{
    pthread_mutex_lock(&s->lock);
    bool ready = s->ready && s->atlas;
    pthread_mutex_unlock(&s->lock);
    return ready ? es_atlas_max(s->atlas) : NULL;
}

int es_studio_window_text(es_studio *s, const int32_t *id, int n, es_buf *text, int *token_end)
{
    es_whole w = {0};
    pthread_mutex_lock(&s->lock);
    bool ready = s->ready;
    pthread_mutex_unlock(&s->lock);
    if (!ready)
        return ES_ERR_MISSING;
    for (int i = 0; i < n; i++) {
        size_t len = 0;
        const char *bytes = id[i] >= 0 && id[i] < es_model_get_info(s->model)->n_vocab ? es_token_bytes(s->model, id[i], &len) : NULL;
        if (bytes)
            es_whole_add(&w, bytes, len, text);
        token_end[i] = (int)text->len;
    }
    es_whole_end(&w, text);
    if (n)
        token_end[n - 1] = (int)text->len;
    return ES_OK;
}

void es_studio_find(es_studio *s, const char *query, es_find_order order)
{
    es_looks *l = looks(s);
    char *copy = strdup(query);
    if (!l || !copy) {
        free(copy);
        return;
    }
    pthread_mutex_lock(&l->lock);
    free(l->query);
    l->query = copy;
    l->order = order;
    if (l->finding) { /* an older one runs, or waits */
        __atomic_store_n(&l->cancel, true, __ATOMIC_RELAXED);
        sqlite3_interrupt(l->reader->db);
    }
    l->finding = true;
    pthread_cond_signal(&l->quick_wake);
    pthread_mutex_unlock(&l->lock);
}

void es_studio_contrast(es_studio *s, const char *file_a, const char *file_b)
{
    es_looks *l = looks(s);
    char *a = strdup(file_a), *b = strdup(file_b);
    if (!l || !a || !b) {
        free(a);
        free(b);
        es_studio_say_status(s, l ? "no memory for that" : "no dictionary is open yet");
        return;
    }
    pthread_mutex_lock(&l->lock);
    free(l->contrast[0]);
    free(l->contrast[1]);
    l->contrast[0] = a;
    l->contrast[1] = b;
    l->finding = true;
    pthread_cond_signal(&l->slow_wake);
    pthread_mutex_unlock(&l->lock);
}

void es_studio_next(es_studio *s)
{
    es_studio_find(s, QUEUE, ES_FIND_BEST);
}

bool es_studio_finding(es_studio *s)
{
    es_looks *l = looks(s);
    if (!l)
        return false;
    pthread_mutex_lock(&l->lock);
    bool yes = l->finding;
    pthread_mutex_unlock(&l->lock);
    return yes;
}

bool es_studio_found(es_studio *s, es_found *out, char error[240])
{
    es_looks *l = looks(s);
    *out = (es_found){0};
    error[0] = 0;
    if (!l)
        return false;
    pthread_mutex_lock(&l->lock);
    bool have = l->have;
    if (have) {
        *out = l->found;
        l->found = (es_found){0};
        memcpy(error, l->error, sizeof l->error);
        l->have = false;
    }
    pthread_mutex_unlock(&l->lock);
    return have;
}

es_map_state es_studio_map(es_studio *s, const float **xy, double *done)
{
    es_looks *l = looks(s);
    *xy = NULL;
    *done = 0;
    if (!l)
        return ES_MAP_NONE;
    pthread_mutex_lock(&l->lock);
    if (l->map_state == ES_MAP_NONE && !l->want_map) {
        l->map_state = ES_MAP_MAKING;
        l->want_map = true;
        pthread_cond_signal(&l->slow_wake);
    }
    es_map_state state = l->map_state;
    *xy = l->xy;
    *done = l->map_done;
    pthread_mutex_unlock(&l->lock);
    return state;
}
