/* The worker: turns experiences into an adapter while the chat goes on. It works on its own copy and publishes whole snapshots. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "prefer.h"
#include "studio.h"

enum { AUTO_FEATURES = 256, PRIOR = 10 }; /* the weight of directions: as adapt has it */

static void learning(es_studio *s, es_learning_state state, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void learning(es_studio *s, es_learning_state state, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    pthread_mutex_lock(&s->lock);
    s->learning = state;
    vsnprintf(s->learning_text, sizeof s->learning_text, fmt, ap);
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
    va_end(ap);
}

/* ---- what there is to learn from ------------------------------------------------------------------------------------------- */

typedef struct lessons {
    es_experience_line *line; /* owned */
    int n_line;
    es_experiences e; /* copies of the included ones, in order; item[i].id is the workspace's */
} lessons;

static void lessons_free(lessons *l)
{
    es_experience_lines_free(l->line, l->n_line);
    es_experiences_free(&l->e);
}

static int lessons_read(es_studio *s, lessons *l, es_error *err)
{
    memset(l, 0, sizeof *l);
    int rc = es_workspace_experience_list(s->workspace, &l->line, &l->n_line, err);
    for (int i = 0; !rc && i < l->n_line; i++)
        if (l->line[i].included && l->line[i].e.weight > 0 && !(rc = es_experience_copy(&l->e, &l->line[i].e, err)))
            l->e.item[l->e.n - 1].id = l->line[i].id;
    return rc;
}

static int gradients(es_studio *s, const es_experiences *e, float **out, es_error *err)
{
    *out = es_calloc((size_t)e->n * (size_t)s->d_model, sizeof **out);
    if (!*out)
        return es_fail(err, ES_ERR_MEMORY, "no memory for the gradients of %d experiences", e->n);
    es_progress p = {.cancel = &s->cancel_work};
    return es_attribute(s->model, s->dictionary, e, s->o.threads, *out, &p, err);
}

static int current_basis(es_studio *s, es_basis *b)
{
    pthread_mutex_lock(&s->lock);
    int rc = es_studio_basis_copy(b, &s->basis);
    pthread_mutex_unlock(&s->lock);
    return rc;
}

static void measure(es_studio *s, const float *gradient, int n)
{
    es_basis b;
    es_basis_report r;
    if (current_basis(s, &b))
        return;
    pthread_mutex_lock(&s->atlas_lock);
    bool ok = b.n && es_basis_measure(&b, s->dictionary, s->atlas, gradient, n, 1, &r, NULL) == 0;
    pthread_mutex_unlock(&s->atlas_lock);
    pthread_mutex_lock(&s->lock);
    if (ok && b.n == s->basis.n && b.version == s->basis.version) {
        s->report = r;
        s->report_ready = true;
        es_studio_changed(s);
    }
    pthread_mutex_unlock(&s->lock);
    es_basis_free(&b);
}

static int auto_size(const es_studio *s)
{
    return s->n_features < AUTO_FEATURES ? s->n_features : AUTO_FEATURES;
}

/* The basis that comes with the dictionary at hand; false: there is none. */
static bool starter_basis(const es_studio *s, es_basis *out)
{
    json_t *j = NULL;
    es_error why;
    bool good = s->o.starter_basis && es_json_file(&j, s->o.starter_basis, &why) == 0 && es_basis_from_json(out, j, &why) == 0;
    json_decref(j);
    if (good && strcmp(out->dictionary_hash, s->dictionary_hash)) {
        es_basis_free(out);
        good = false;
    }
    return good;
}

/* The starter basis (curated, labelled) and the features that these experiences' gradient points at. Features that the basis in use
 * already has stay, so that what was learned keeps its names. */
static int basis_by_itself(es_studio *s, const float *gradient, int n, es_error *err)
{
    es_basis b = {0};
    int rc = current_basis(s, &b), size = auto_size(s);
    if (rc)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a basis");
    es_basis starter = {0};
    if (!b.n && starter_basis(s, &starter))
        for (int i = 0; !rc && i < starter.n; i++)
            rc = es_basis_take(&b, &starter, i, starter.lo[i], starter.hi[i], err);
    es_basis_free(&starter);
    es_basis by = {0};
    if (!rc && b.n < size) {
        pthread_mutex_lock(&s->atlas_lock);
        for (int want = size; (rc = es_basis_suggest(&by, s->model, s->dictionary, s->atlas, gradient, n, want, false, NULL, err)) == ES_ERR_LIMIT && want > 1;)
            want /= 2; /* not that many are alive */
        pthread_mutex_unlock(&s->atlas_lock);
        for (int i = 0; !rc && i < by.n && b.n < size; i++) {
            bool has = false;
            for (int k = 0; k < b.n && !has; k++)
                has = b.feature[k] == by.feature[i];
            if (!has)
                rc = es_basis_add(&b, by.feature[i], by.lo[i], by.hi[i], err);
        }
    }
    if (!rc) {
        snprintf(b.name, sizeof b.name, "auto");
        memcpy(b.model_hash, s->model_hash, sizeof b.model_hash);
        memcpy(b.dictionary_hash, s->dictionary_hash, sizeof b.dictionary_hash);
        snprintf(b.dictionary, sizeof b.dictionary, "%s", s->dictionary_name);
        b.layer = s->layer;
        rc = es_workspace_basis_save(s->workspace, &b, &b.version, err);
    }
    if (!rc)
        rc = es_studio_set_basis(s, &b, err);
    es_basis_free(&by);
    es_basis_free(&b);
    return rc;
}

/* ---- one round -------------------------------------------------------------------------------------------------------------- */

static bool same_features(const es_basis *a, const es_basis *b)
{
    if (!a || a->n != b->n)
        return false;
    return !memcmp(a->feature, b->feature, (size_t)a->n * sizeof *a->feature);
}

/* The adapter to go on from: the one in use when it was learned in this basis and nothing was taken back, else a fresh one.
 * rank: of white inputs; 0: as many as there are. */
static int start_adapter(es_studio *s, const es_basis *b, bool restart, int rank, es_adapter **out, int64_t *parent, es_error *err)
{
    *parent = 0;
    pthread_mutex_lock(&s->lock);
    int64_t current = s->snapshot;
    pthread_mutex_unlock(&s->lock);
    if (current && !restart) {
        es_buf bytes = {0};
        es_adapter *a = NULL;
        int rc = es_workspace_snapshot_bytes(s->workspace, current, &bytes, err);
        if (!rc)
            rc = es_adapter_from_bytes(&a, s->model, s->dictionary, bytes.data, bytes.len, "the snapshot in use", err);
        es_buf_free(&bytes);
        if (rc)
            return rc;
        if (same_features(es_adapter_basis(a), b) && es_adapter_get_options(a)->fixed_inputs == (s->white != NULL)) {
            *out = a;
            *parent = current;
            return 0;
        }
        es_adapter_free(a);
    }
    es_adapter_options o = es_adapter_default(s->dictionary, s->model);
    o.fixed_inputs = s->white != NULL;
    o.rank = s->white ? rank ? rank : es_inputs_rank(s->white) : o.rank;
    int rc = es_adapter_new(out, s->model, s->dictionary, b, &o, err);
    rc = rc || !s->white ? rc : es_adapter_set_inputs(*out, s->white, err);
    if (rc) {
        es_adapter_free(*out);
        *out = NULL;
    }
    return rc;
}

/* The sign that a person gave, when the other reply of the pair was drawn; 0: none. */
static char sign_of(const es_experience *e)
{
    size_t n = e->source ? strlen(e->source) : 0;
    return n > 3 && e->source[n - 3] == ':' && e->source[n - 2] == ' ' && strchr("+-", e->source[n - 1]) ? e->source[n - 1] : 0;
}

static int pair_mark(es_studio *s, es_experience *e, es_context *c, es_adapter *a, es_rng *rng, es_error *err)
{
    enum { REPLY = 128 }; /* more than the learner takes of one: it is not to learn where the drawing was cut */
    es_buf again = {0}, source = {0};
    bool liked = e->preferred != NULL;
    char *given = liked ? e->preferred : e->rejected;
    int rc = es_reply_again(s->model, c, a, e->message, e->n_message, given, REPLY, &s->o.sampling, rng, &again, &s->cancel_work, err);
    es_buf_printf(&source, "%s: %c", e->source ? e->source : "", liked ? '+' : '-');
    if (!rc && source.failed)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for a reply");
    if (!rc)
        rc = es_workspace_experience_pair(s->workspace, e->id, liked ? given : again.data, liked ? again.data : given, source.data,
                                          "marked; paired with a reply drawn again", err);
    if (!rc) {
        *(liked ? &e->rejected : &e->preferred) = again.data;
        free(e->source);
        e->source = source.data;
        again.data = source.data = NULL;
    }
    es_buf_free(&again);
    es_buf_free(&source);
    return rc;
}

/* A mark says something of one reply; what it is compared with is another one that the model in use gives to the same conversation. */
static int pair_marks(es_studio *s, lessons *in, es_error *err)
{
    es_context_options co = {.n_ctx = s->n_ctx, .threads = s->o.threads};
    es_context *c = NULL;
    es_adapter *a = NULL;
    es_buf bytes = {0};
    es_rng rng;
    int rc = ES_OK, drawn = 0;
    pthread_mutex_lock(&s->lock);
    int64_t current = s->method == ES_METHOD_FEATURES ? s->snapshot : 0;
    pthread_mutex_unlock(&s->lock);
    for (int i = 0; !rc && i < in->e.n; i++) {
        es_experience *e = &in->e.item[i];
        if (!e->preferred == !e->rejected)
            continue;
        learning(s, ES_LEARN_PREPARING, "answering again, to compare with the marked reply");
        if (!c) {
            rc = es_context_open(&c, s->model, &co, err);
            if (!rc && current && es_workspace_snapshot_bytes(s->workspace, current, &bytes, NULL) == 0)
                rc = es_adapter_from_bytes(&a, s->model, s->dictionary, bytes.data, bytes.len, "the snapshot in use", err);
        }
        es_rng_seed(&rng, 0x9e3779b97f4a7c15u * (uint64_t)e->id); /* not the chat's own */
        rc = rc ? rc : pair_mark(s, e, c, a, &rng, err);
        drawn += !rc;
        if (rc == ES_ERR_MISSING || rc == ES_ERR_LIMIT)
            rc = ES_OK; /* the sign alone */
    }
    if (drawn) {
        pthread_mutex_lock(&s->lock);
        s->stale = true;
        es_studio_changed(s);
        pthread_mutex_unlock(&s->lock);
    }
    es_buf_free(&bytes);
    es_adapter_free(a);
    es_context_free(c);
    return rc;
}

/* What was made of each experience, where the person sees it. */
static void tell_decisions(es_studio *s, const es_learner *l, const lessons *in)
{
    for (int i = 0; i < in->e.n; i++) {
        const es_decision *d = es_learner_decision(l, i);
        char reason[240], sign = sign_of(&in->e.item[i]);
        snprintf(reason, sizeof reason, "%s%s", !d ? "held out: the release gate judges by it" : d->reason,
                 sign == '+' ? "; liked, beside a reply drawn again" : sign ? "; disliked, beside a reply drawn again" : "");
        es_workspace_experience_reason(s->workspace, in->e.item[i].id, reason, NULL);
    }
    pthread_mutex_lock(&s->lock);
    s->stale = true;
    pthread_mutex_unlock(&s->lock);
}

static void mark(es_studio *s, int64_t experience)
{
    for (int i = 0; i < s->n_mark; i++)
        if (s->mark_experience[i] == experience)
            return;
    int *m = realloc(s->mark_step, (size_t)(s->n_mark + 1) * sizeof *m);
    if (m)
        s->mark_step = m;
    int64_t *e = realloc(s->mark_experience, (size_t)(s->n_mark + 1) * sizeof *e);
    if (e)
        s->mark_experience = e;
    if (!m || !e)
        return;
    m[s->n_mark] = s->n_step;
    e[s->n_mark++] = experience;
}

static void record_step(es_studio *s, const es_adapter *a, const es_step_report *r, const float *snr)
{
    int k = es_adapter_basis(a)->n;
    pthread_mutex_lock(&s->lock);
    if (s->basis.n == k) {
        float *h = s->n_step < ES_HISTORY ? realloc(s->history, (size_t)(s->n_step + 1) * (size_t)k * sizeof *h) : s->history;
        if (h) {
            s->history = h;
            if (s->n_step == ES_HISTORY) {
                memmove(h, h + k, (size_t)(ES_HISTORY - 1) * (size_t)k * sizeof *h);
                memmove(s->step_loss, s->step_loss + 1, (ES_HISTORY - 1) * sizeof *s->step_loss);
                memmove(s->step_kl, s->step_kl + 1, (ES_HISTORY - 1) * sizeof *s->step_kl);
                for (int i = 0; i < s->n_mark; i++)
                    if (s->mark_step[i] > 0)
                        s->mark_step[i]--;
                s->n_step--;
            }
            memcpy(h + (size_t)s->n_step * (size_t)k, es_adapter_coefficients(a), (size_t)k * sizeof *h);
            s->step_loss[s->n_step] = (float)r->loss;
            s->step_kl[s->n_step] = (float)r->kl;
            s->n_step++;
        }
        float *to = realloc(s->snr, (size_t)k * sizeof *to);
        if (to) {
            memcpy(to, snr, (size_t)k * sizeof *to);
            s->snr = to;
            s->n_snr = k;
        }
    }
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

/* Waits while paused. false: the round is to end. */
static bool may_go_on(es_studio *s)
{
    pthread_mutex_lock(&s->lock);
    while (s->paused && !s->quit && !__atomic_load_n(&s->cancel_work, __ATOMIC_RELAXED)) {
        s->learning = ES_LEARN_PAUSED;
        es_studio_changed(s);
        pthread_cond_wait(&s->work_wake, &s->lock);
    }
    bool on = !s->quit && !__atomic_load_n(&s->cancel_work, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&s->lock);
    return on;
}

/* Influence since the base model: the parent's rows by experience, and this round's on top. What the parent's experiences did that are
 * no longer here goes to the line of no single experience. */
static float *total_influence(es_studio *s, int64_t parent, const es_learner *l, const lessons *in, int k)
{
    int n = in->e.n;
    float *now = es_calloc((size_t)(n + 1) * (size_t)k, sizeof *now);
    if (!now)
        return NULL;
    es_learner_influence(l, now);
    int64_t *id = NULL;
    float *was = NULL;
    int m = 0, kk = 0;
    if (parent && es_workspace_snapshot_influence(s->workspace, parent, &id, &was, &m, &kk, NULL) == 0 && kk == k)
        for (int i = 0; i <= m; i++) {
            int to = n;
            for (int j = 0; i < m && j < n; j++)
                if (in->e.item[j].id == id[i])
                    to = j;
            for (int c = 0; c < k; c++)
                now[(size_t)to * (size_t)k + c] += was[(size_t)i * (size_t)k + c];
        }
    free(id);
    free(was);
    return now;
}

static int publish(es_studio *s, es_adapter *a, const es_learner *l, const lessons *in, int64_t parent, uint64_t epoch, const es_gate_report *g, es_error *err)
{
    const es_basis *b = es_adapter_basis(a);
    es_buf bytes = {0};
    es_adapter *copy = NULL;
    int64_t *who = es_calloc((size_t)in->e.n, sizeof *who), id = 0;
    float *influence = total_influence(s, parent, l, in, b->n);
    es_snapshot_line line = {.parent = parent, .basis_version = b->version, .steps = es_adapter_steps(a), .experiences = in->e.n, .n = b->n, .passed = g->passed,
                             .gain = g->gain, .kl = g->kl};
    snprintf(line.basis, sizeof line.basis, "%s", b->name);
    snprintf(line.form, sizeof line.form, "%s", es_form_name(es_adapter_get_options(a)->form));
    snprintf(line.note, sizeof line.note, "%.159s", g->reason);
    line.coefficient = es_calloc((size_t)b->n, sizeof *line.coefficient);
    int rc = es_adapter_to_bytes(a, &bytes, err);
    if (!rc && (!who || !influence || !line.coefficient))
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for a snapshot");
    if (!rc)
        rc = es_adapter_copy(&copy, a, err);
    pthread_mutex_lock(&s->swap);
    if (!rc && (s->epoch != epoch || __atomic_load_n(&s->cancel_work, __ATOMIC_RELAXED)))
        rc = es_fail(err, ES_ERR_CANCELLED, "cancelled");
    if (!rc) {
        memcpy(line.coefficient, es_adapter_coefficients(a), (size_t)b->n * sizeof *line.coefficient);
        for (int i = 0; i < in->e.n; i++)
            who[i] = in->e.item[i].id;
        rc = es_workspace_snapshot_add(s->workspace, &line, bytes.data, bytes.len, es_adapter_shared_bytes(a), who, influence, in->e.n, &id, err);
    }
    if (!rc) {
        rc = es_studio_publish(s, copy, id, err);
        copy = NULL;
    }
    pthread_mutex_unlock(&s->swap);
    es_adapter_free(copy);
    free(line.coefficient);
    free(influence);
    free(who);
    es_buf_free(&bytes);
    return rc;
}

/* Replies of the person's go in as they are; where a preference was stated, pairs or, where the studio is set so, what the model draws now. */
static int take_in(es_studio *s, es_learner *l, es_adapter *a, const lessons *in, es_error *err)
{
    es_onpolicy *drawn = NULL;
    bool ahead = false;
    int rc = ES_OK;
    for (int i = 0; !rc && i < in->e.n; i++) {
        const es_experience *e = &in->e.item[i];
        bool stated = s->o.prefer_loss && es_prefer_of(e);
        learning(s, ES_LEARN_PREPARING, "%s %d of %d", stated ? "answering and scoring" : "reading experience", i + 1, in->e.n);
        if (stated && !drawn)
            rc = es_onpolicy_open(&drawn, s->model, s->o.prefer_loss, 0, s->n_ctx, s->o.threads, (uint64_t)es_adapter_steps(a) + 1, err);
        if (!rc && stated && !ahead) {
            ahead = true;
            rc = es_onpolicy_ahead(drawn, a, &in->e, &s->cancel_work, err);
        }
        if (!rc)
            rc = stated ? es_onpolicy_add(drawn, l, a, e, &s->cancel_work, err) : es_learner_add(l, e, &s->cancel_work, err);
    }
    es_onpolicy_free(drawn);
    return rc;
}

/* ---- directions learned beforehand ------------------------------------------------------------------------------------------------ */

typedef struct directions {
    es_direction_line *line;
    es_direction *item; /* [n] those in use, their adapters owned */
    int n;
} directions;

static void directions_free(directions *d)
{
    for (int i = 0; i < d->n; i++)
        es_adapter_free((es_adapter *)(uintptr_t)d->item[i].adapter);
    free(d->item);
    free(d->line);
}

static int directions_read(es_studio *s, directions *d, es_error *err)
{
    int n = 0;
    *d = (directions){0};
    int rc = s->white ? es_workspace_direction_list(s->workspace, s->dictionary_hash, &d->line, &n, err) : ES_OK;
    d->item = rc ? NULL : es_calloc((size_t)n + 1, sizeof *d->item);
    if (!rc && !d->item)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for %d directions", n);
    for (int i = 0; !rc && i < n; i++) {
        es_buf bytes = {0};
        es_adapter *a = NULL;
        if (!d->line[i].used)
            continue;
        rc = es_workspace_direction_bytes(s->workspace, d->line[i].name, s->dictionary_hash, &bytes, err);
        rc = rc ? rc : es_adapter_from_bytes(&a, s->model, s->dictionary, bytes.data, bytes.len, d->line[i].name, err);
        es_buf_free(&bytes);
        if (!rc)
            d->item[d->n++] = (es_direction){d->line[i].name, a};
    }
    return rc;
}

/* How far the adapter that was published went along each. */
static void tell_directions(es_studio *s, es_learner *l, int64_t snapshot)
{
    int n = es_learner_directions(l);
    double *went = es_calloc((size_t)n + 1, sizeof *went);
    if (went && n)
        es_learner_amplitudes(l, went);
    for (int i = 0; went && i < n; i++)
        es_workspace_direction_went(s->workspace, es_learner_direction(l, i), s->dictionary_hash, went[i], snapshot, NULL);
    free(went);
    pthread_mutex_lock(&s->lock);
    s->stale = true;
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

static int keep_direction(es_studio *s, const char *path, char name[64], es_error *err)
{
    es_adapter *a = NULL;
    es_buf bytes = {0};
    const char *slash = strrchr(path, '/'), *from = slash ? slash + 1 : path, *dot = strrchr(from, '.');
    size_t n = dot && dot > from ? (size_t)(dot - from) : strlen(from);
    snprintf(name, 64, "%.*s", n < 64 ? (int)n : 63, from);
    name[es_utf8_whole(name, strlen(name))] = 0;
    int rc = es_adapter_load(&a, s->model, s->dictionary, path, err);
    if (!rc && (es_adapter_get_options(a)->form != ES_FORM_LORA || !es_adapter_get_options(a)->fixed_inputs || !s->white ||
                es_adapter_get_options(a)->rank > es_inputs_rank(s->white)))
        rc = es_fail(err, ES_ERR_USAGE, "%.100s is no direction: make one with espalier adapt --direction", path);
    rc = rc ? rc : es_adapter_to_bytes(a, &bytes, err);
    rc = rc ? rc : es_workspace_direction_save(s->workspace, name, s->dictionary_hash, bytes.data, bytes.len, es_adapter_shared_bytes(a), err);
    es_buf_free(&bytes);
    es_adapter_free(a);
    return rc;
}

static void direction(es_studio *s, const char *what, bool on)
{
    char name[64];
    es_error err;
    snprintf(name, sizeof name, "%.63s", what);
    int rc = es_workspace_direction_use(s->workspace, what, s->dictionary_hash, on, &err);
    if (rc == ES_ERR_MISSING && on && !access(what, R_OK))
        rc = keep_direction(s, what, name, &err);
    if (rc) {
        es_studio_say_status(s, "%.230s", err.text);
        return;
    }
    es_studio_say_status(s, on ? "learning goes more readily along %s; the Drift view tells how far" : "%s is kept, and no longer learned along", name);
    pthread_mutex_lock(&s->lock);
    s->stale = true;
    pthread_mutex_unlock(&s->lock);
    es_studio_learn_dirty(s, true);
}

static int learn(es_studio *s, const lessons *in, const es_basis *b, bool restart, uint64_t epoch, int job, es_error *err)
{
    es_adapter *a = NULL;
    es_learner *l = NULL;
    int64_t parent = 0;
    es_learner_options o = s->white ? es_learner_white() : es_learner_default(es_adapter_default(s->dictionary, s->model).form);
    o.threads = s->o.threads;
    directions d;
    int rc = directions_read(s, &d, err);
    int rank = !rc && d.n ? es_adapter_get_options(d.item[0].adapter)->rank : 0; /* directions bring their inputs along, which may be older than these */
    rc = rc ? rc : start_adapter(s, b, restart || d.n, rank, &a, &parent, err);
    if (!rc)
        rc = es_learner_open(&l, s->model, s->dictionary, a, &o, err);
    rc = rc || !s->white ? rc : es_learner_natural(l, s->white, err);
    if (!rc && d.n)
        rc = es_learner_prior(l, d.item, d.n, PRIOR, false, err);
    if (!rc && s->white && es_learner_spare(l, s->white, NULL) == ES_ERR_MEMORY) /* an adapter with other inputs is not spared, and learns */
        rc = es_fail(err, ES_ERR_MEMORY, "no memory to learn");
    if (!rc && (s->readings || (s->readings = es_readings_new())))
        es_learner_recall(l, s->readings);
    rc = rc ? rc : take_in(s, l, a, in, err);
    float *snr = rc ? NULL : es_calloc((size_t)b->n, sizeof *snr);
    if (!rc && !snr)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory to learn");
    if (!rc) {
        pthread_mutex_lock(&s->lock);
        if (!parent)
            es_studio_clear_history(s);
        for (int i = 0; i < in->e.n; i++)
            mark(s, in->e.item[i].id);
        pthread_mutex_unlock(&s->lock);
    }
    int steps = 0;
    es_step_report r = {0};
    for (; !rc && steps < o.steps; steps++) {
        if (!may_go_on(s)) {
            rc = es_fail(err, ES_ERR_CANCELLED, "cancelled");
            break;
        }
        if ((rc = es_learner_step(l, &r, &s->cancel_work, err)))
            break;
        es_learner_snr(l, snr);
        record_step(s, a, &r, snr);
        learning(s, ES_LEARN_STEPPING, "step %d of %d: loss %.3f, margin %+.2f, KL %.4f%s%s", r.step, o.steps, r.loss, r.margin, r.kl,
                 r.guard ? ", held by " : "", r.guard ? r.guard : "");
        es_studio_job_step(s, job, steps + 1, o.steps, NULL);
        if (r.backtracked == 0)
            break; /* the guards leave nothing to gain */
    }
    es_gate_report g = {0};
    if (!rc && o.weighting)
        tell_decisions(s, l, in);
    if (!rc) {
        learning(s, ES_LEARN_CHECKING, "checking before release");
        rc = es_learner_gate(l, &g, &s->cancel_work, err);
    }
    if (!rc && g.passed)
        rc = publish(s, a, l, in, parent, epoch, &g, err);
    if (!rc) {
        pthread_mutex_lock(&s->lock);
        int64_t now = s->snapshot;
        pthread_mutex_unlock(&s->lock);
        if (g.passed && d.n)
            tell_directions(s, l, now);
        if (g.passed)
            learning(s, ES_LEARN_IDLE, "#%lld %s%.150s", (long long)now, restart ? "learned again from what is left; " : "", g.reason);
        else
            learning(s, ES_LEARN_IDLE, "%.170s", g.reason);
    }
    free(snr);
    es_learner_free(l);
    es_adapter_free(a);
    directions_free(&d);
    return rc;
}

static void to_base(es_studio *s, uint64_t epoch)
{
    es_error err;
    pthread_mutex_lock(&s->swap);
    if (s->epoch == epoch && es_studio_publish(s, NULL, 0, &err))
        es_studio_say_status(s, "%.230s", err.text);
    pthread_mutex_unlock(&s->swap);
}

/* ---- another method than features --------------------------------------------------------------------------------------------- */

static void method_text(es_studio *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void method_text(es_studio *s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    pthread_mutex_lock(&s->lock);
    vsnprintf(s->method_text, sizeof s->method_text, fmt, ap);
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
    va_end(ap);
}

/* distil's: the newest stated preference with these words in it (NULL: any); where there is none such, the model of that name. */
static int teacher_of(es_studio *s, const char *named, const lessons *in, const char **preference, es_model **model, es_error *err)
{
    char path[1200];
    const char *slash = strrchr(s->o.model, '/');
    for (int i = in->e.n - 1; i >= 0 && !*preference; i--) {
        const char *stated = es_prefer_of(&in->e.item[i]);
        *preference = stated && (!named || strcasestr(stated, named)) ? stated : NULL;
    }
    if (*preference || !named)
        return ES_OK;
    snprintf(path, sizeof path, "%s", named);
    if (access(path, R_OK))
        snprintf(path, sizeof path, "%.*s/%.600s", slash ? (int)(slash - s->o.model) : 1, slash ? s->o.model : ".", named);
    if (access(path, R_OK))
        return es_fail(err, ES_ERR_MISSING, "no teacher: \"%.60s\" is no preference that was stated, and no model's file", named);
    learning(s, ES_LEARN_PREPARING, "opening the teacher %.100s", path);
    int rc = es_model_open(model, path, err);
    return rc ? rc : es_model_use_card(*model, s->o.card, NULL, err);
}

/* Learns from all experiences anew, from the base model, and lets the result answer. */
static int learn_method(es_studio *s, es_method_kind k, const lessons *in, uint64_t epoch, int job, es_error *err)
{
    es_method_options o = es_method_default(k);
    es_method *m = NULL;
    es_variant v = {0};
    int steps = 0, most = es_learner_default(ES_FORM_LORA).steps;
    o.s = s->dictionary;
    o.inputs = s->white;
    o.threads = s->o.threads;
    if (s->dictionary && s->white)
        o.rank = k == ES_METHOD_RANDOM || k == ES_METHOD_FREE ? es_inputs_rank(s->white) : o.rank;
    es_model *teacher = NULL;
    pthread_mutex_lock(&s->lock);
    char *named = s->teacher ? strdup(s->teacher) : NULL;
    pthread_mutex_unlock(&s->lock);
    int rc = k == ES_METHOD_DISTIL ? teacher_of(s, named, in, &o.preference, &teacher, err) : ES_OK;
    o.teacher = teacher;
    rc = rc ? rc : es_method_open(&m, k, s->model, &o, err);
    for (int i = 0; !rc && i < in->e.n; i++) {
        if (k == ES_METHOD_DISTIL && es_prefer_of(&in->e.item[i]))
            continue; /* the model's own replies: no measure of a teacher */
        learning(s, ES_LEARN_PREPARING, "%s: reading experience %d of %d", es_method_name(k), i + 1, in->e.n);
        rc = es_method_add(m, &in->e.item[i], &s->cancel_work, err);
    }
    es_step_report r = {0};
    for (; !rc && steps < most; steps++) {
        if (!may_go_on(s))
            rc = es_fail(err, ES_ERR_CANCELLED, "cancelled");
        rc = rc ? rc : es_method_step(m, &r, &s->cancel_work, err);
        if (rc)
            break;
        learning(s, ES_LEARN_STEPPING, "%s: step %d of %d: loss %.3f", es_method_name(k), steps + 1, most, r.loss);
        es_studio_job_step(s, job, steps + 1, most, NULL);
        if ((r.guard && !strcmp(r.guard, "learned")) || (r.loss > 0 && r.loss < 0.05))
            break; /* as the features' learner stops */
    }
    rc = rc ? rc : es_method_copy(m, &v, err);
    pthread_mutex_lock(&s->swap);
    if (!rc && (s->epoch != epoch || __atomic_load_n(&s->cancel_work, __ATOMIC_RELAXED)))
        rc = es_fail(err, ES_ERR_CANCELLED, "cancelled");
    int tokens = v.context_tokens;
    rc = rc ? rc : es_studio_publish_method(s, k, &v, err);
    pthread_mutex_unlock(&s->swap);
    es_variant_clear(&v);
    if (!rc && (teacher || o.preference))
        method_text(s, "%.100s as teacher, %d step%s", teacher ? es_model_get_info(teacher)->name : o.preference, steps, steps == 1 ? "" : "s");
    else if (!rc && tokens)
        method_text(s, "%d experience%s, %d tokens of every prompt", in->e.n, in->e.n == 1 ? "" : "s", tokens);
    else if (!rc)
        method_text(s, "%d experience%s, %d step%s, %llu numbers", in->e.n, in->e.n == 1 ? "" : "s", steps, steps == 1 ? "" : "s",
                    (unsigned long long)es_method_parameters(m));
    es_method_free(m);
    es_model_free(teacher);
    free(named);
    return rc;
}

static void round_of_method(es_studio *s, es_method_kind k, uint64_t epoch)
{
    lessons in;
    es_error err;
    int rc = lessons_read(s, &in, &err);
    if (!rc && !in.e.n && k != ES_METHOD_DISTIL) {
        learning(s, ES_LEARN_IDLE, "nothing to learn from yet: rate or edit a reply");
        lessons_free(&in);
        return;
    }
    char what[80];
    snprintf(what, sizeof what, "%s learns the experiences", es_method_name(k));
    int job = es_studio_job_begin(s, es_method_name(k), what, "steps");
    rc = rc ? rc : pair_marks(s, &in, &err);
    rc = rc ? rc : learn_method(s, k, &in, epoch, job, &err);
    if (rc == ES_ERR_CANCELLED)
        learning(s, ES_LEARN_IDLE, "cancelled");
    else if (rc) {
        learning(s, ES_LEARN_FAILED, "%.190s", err.text);
        es_studio_say_status(s, "%.230s", err.text);
        method_text(s, "did not learn: the base model answers");
    } else
        learning(s, ES_LEARN_IDLE, "%s answers", es_method_name(k));
    es_studio_job_end(s, job, rc && rc != ES_ERR_CANCELLED, rc == ES_ERR_CANCELLED, NULL);
    lessons_free(&in);
}

/* ---- a stated preference ------------------------------------------------------------------------------------------------------ */

static void report_rows(void *user, const char *what, double done, double total, const char *unit);

static void prefer(es_studio *s, const char *text)
{
    lessons in;
    es_error err;
    es_experiences pairs = {0};
    es_advantage advantage = {0};
    struct { es_studio *s; int job; } r = {s, es_studio_job_begin(s, "prefer", text, "pairs")};
    es_progress p = {.report = report_rows, .user = &r, .cancel = &s->cancel_work};
    int rc = lessons_read(s, &in, &err), added = 0;
    es_prefer_options o = {.own = rc ? NULL : &in.e, .n_ctx = s->n_ctx, .threads = s->o.threads};
    learning(s, ES_LEARN_PREPARING, "asking the model with the preference and without");
    rc = rc ? rc : es_prefer_pairs(s->model, text, &o, &pairs, &advantage, &p, &err);
    for (; !rc && added < pairs.n; added++)
        rc = es_workspace_experience_add(s->workspace, &pairs.item[added], s->session, NULL, &err);
    es_studio_job_end(s, r.job, rc && rc != ES_ERR_CANCELLED, rc == ES_ERR_CANCELLED, NULL);
    if (rc && rc != ES_ERR_CANCELLED)
        es_studio_say_status(s, "%.230s", err.text);
    else if (!rc && advantage.replies)
        es_studio_say_status(s, "%d pairs from the preference: the Experiences view has them; %.120s", added, advantage.reason);
    else if (!rc)
        es_studio_say_status(s, "%d pairs from the preference: the Experiences view has them; no corrections yet to measure it on", added);
    pthread_mutex_lock(&s->lock);
    s->stale |= added > 0;
    pthread_mutex_unlock(&s->lock);
    if (added)
        es_studio_learn_dirty(s, false);
    learning(s, ES_LEARN_IDLE, "%s", rc ? "" : "the preference is to be learned");
    es_experiences_free(&pairs);
    lessons_free(&in);
}

/* ---- a round ------------------------------------------------------------------------------------------------------------------- */

static void round_of_learning(es_studio *s, bool restart)
{
    lessons in;
    es_error err;
    float *gradient = NULL;
    es_basis b = {0};
    pthread_mutex_lock(&s->swap);
    uint64_t epoch = s->epoch;
    pthread_mutex_unlock(&s->swap);
    pthread_mutex_lock(&s->lock);
    es_method_kind k = s->method;
    pthread_mutex_unlock(&s->lock);
    if (k == ES_METHOD_NONE)
        return;
    if (k != ES_METHOD_FEATURES) {
        round_of_method(s, k, epoch);
        return;
    }
    int rc = lessons_read(s, &in, &err);
    if (!rc && !in.e.n) {
        bool had;
        pthread_mutex_lock(&s->lock);
        had = s->snapshot != 0;
        pthread_mutex_unlock(&s->lock);
        if (had && restart)
            to_base(s, epoch);
        learning(s, ES_LEARN_IDLE, had && restart ? "nothing left to learn from: back to the base model" : "nothing to learn from yet: rate or edit a reply");
        lessons_free(&in);
        return;
    }
    int job = es_studio_job_begin(s, "learn", "adapting to the experiences", "steps");
    pthread_mutex_lock(&s->lock);
    bool choose = !s->basis.n || (s->basis_auto && s->basis.n < auto_size(s));
    pthread_mutex_unlock(&s->lock);
    rc = rc ? rc : pair_marks(s, &in, &err);
    if (!rc && choose) {
        learning(s, ES_LEARN_PREPARING, "reading %d experience%s", in.e.n, in.e.n == 1 ? "" : "s");
        rc = gradients(s, &in.e, &gradient, &err);
        rc = rc ? rc : basis_by_itself(s, gradient, in.e.n, &err);
    }
    if (!rc)
        rc = current_basis(s, &b);
    if (!rc)
        rc = learn(s, &in, &b, restart, epoch, job, &err);
    if (!rc && !gradient && gradients(s, &in.e, &gradient, NULL)) { /* only the Basis view waits for this: after what was learned answers */
        free(gradient);
        gradient = NULL;
    }
    if (!rc && gradient)
        measure(s, gradient, in.e.n);
    if (rc == ES_ERR_CANCELLED)
        learning(s, ES_LEARN_IDLE, "cancelled: the adapter is as it was");
    else if (rc)
        learning(s, ES_LEARN_FAILED, "%.190s", err.text);
    es_studio_job_end(s, job, rc && rc != ES_ERR_CANCELLED, rc == ES_ERR_CANCELLED, NULL);
    es_basis_free(&b);
    free(gradient);
    lessons_free(&in);
}

/* ---- suggestions ------------------------------------------------------------------------------------------------------------------ */

static void suggest(es_studio *s, int size)
{
    lessons in;
    es_error err;
    float *gradient = NULL, *score = NULL;
    es_basis by = {0};
    int rc = lessons_read(s, &in, &err);
    if (!rc && !in.e.n)
        rc = es_fail(&err, ES_ERR_MISSING, "there are no experiences to suggest features from: rate or edit a reply first");
    if (!rc)
        rc = gradients(s, &in.e, &gradient, &err);
    if (!rc && !(score = es_calloc((size_t)size, sizeof *score)))
        rc = es_fail(&err, ES_ERR_MEMORY, "no memory for %d suggestions", size);
    if (!rc) {
        pthread_mutex_lock(&s->atlas_lock);
        rc = es_basis_suggest(&by, s->model, s->dictionary, s->atlas, gradient, in.e.n, size, false, score, &err);
        pthread_mutex_unlock(&s->atlas_lock);
    }
    if (!rc) {
        measure(s, gradient, in.e.n);
        pthread_mutex_lock(&s->lock);
        free(s->suggested);
        free(s->suggested_score);
        s->suggested = by.feature;
        s->suggested_score = score;
        s->n_suggested = by.n;
        by.feature = NULL;
        score = NULL;
        es_studio_changed(s);
        pthread_mutex_unlock(&s->lock);
    } else {
        es_studio_say_status(s, "%.230s", err.text);
    }
    es_basis_free(&by);
    free(score);
    free(gradient);
    lessons_free(&in);
}

/* The figures of the basis after it changed by hand. */
static void measure_again(es_studio *s)
{
    lessons in;
    es_error err;
    float *gradient = NULL;
    if (lessons_read(s, &in, &err) == 0) {
        if (in.e.n && gradients(s, &in.e, &gradient, &err)) {
            free(gradient);
            gradient = NULL;
        }
        measure(s, gradient, gradient ? in.e.n : 0);
    }
    free(gradient);
    lessons_free(&in);
}

/* ---- search rows and starter labels --------------------------------------------------------------------------------------------------- */

static void report_rows(void *user, const char *what, double done, double total, const char *unit)
{
    (void)unit;
    const struct { es_studio *s; int job; } *r = user;
    es_studio_job_step(r->s, r->job, done, total, what);
}

/* The starter basis stands among the saved ones of its dictionary, unless one of that name does. */
static void offer_starter(es_studio *s)
{
    es_error err;
    es_basis starter = {0};
    es_basis_line *line = NULL;
    int n = 0;
    if (!starter_basis(s, &starter))
        return;
    bool there = es_workspace_basis_list(s->workspace, s->dictionary_hash, &line, &n, &err) != 0;
    for (int i = 0; i < n; i++)
        there |= !strcmp(line[i].name, starter.name);
    if (!there && es_workspace_basis_save(s->workspace, &starter, &starter.version, &err))
        es_studio_say_status(s, "%.230s", err.text);
    free(line);
    es_basis_free(&starter);
}

/* Only the first time a dictionary is seen it takes a moment; with an atlas of its own, so that dashboards can be drawn meanwhile. */
static void prepare_labels(es_studio *s)
{
    es_error err;
    es_atlas *a = NULL;
    char path[1200];
    snprintf(path, sizeof path, "%s/atlas.esa", s->o.dictionary);
    struct { es_studio *s; int job; } r = {s, es_studio_job_begin(s, "search", "making the features searchable", "features")};
    es_progress p = {.report = report_rows, .user = &r, .cancel = &s->cancel_work};
    int rc = s->atlas ? es_atlas_open(&a, path, &err) : 0;
    if (!rc)
        rc = es_workspace_use_dictionary(s->workspace, s->dictionary, a, s->model, s->o.labels, &p, &err);
    es_studio_job_end(s, r.job, rc && rc != ES_ERR_CANCELLED, rc == ES_ERR_CANCELLED, NULL);
    if (rc && rc != ES_ERR_CANCELLED)
        es_studio_say_status(s, "%.230s", err.text);
    else if (!rc)
        offer_starter(s);
    es_atlas_free(a);
    pthread_mutex_lock(&s->lock);
    s->labels_read++; /* whoever read the labels before has none of the starter's */
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

/* A minute the first time a model is seen; without them Adam learns. */
static void prepare_inputs(es_studio *s)
{
    es_error err;
    if (!s->o.neutral || !s->o.inputs)
        return;
    int job = es_studio_job_begin(s, "inputs", "measuring neutral text, once for this model", "texts");
    learning(s, ES_LEARN_PREPARING, "measuring neutral text, once for this model");
    int rc = es_inputs_kept(&s->white, s->model, s->dictionary, ES_WHITE_RANK, s->o.neutral, s->o.inputs, s->o.threads, &s->cancel_work, &err);
    es_studio_job_end(s, job, rc && rc != ES_ERR_CANCELLED, rc == ES_ERR_CANCELLED, NULL);
    learning(s, ES_LEARN_IDLE, "%s", "");
    if (rc && rc != ES_ERR_CANCELLED)
        es_studio_say_status(s, "%.230s", err.text);
}

/* ---- the thread ------------------------------------------------------------------------------------------------------------------- */

void *es_studio_work_main(void *studio)
{
    es_studio *s = studio;
    es_thread_give_way(); /* speech goes first */
    pthread_mutex_lock(&s->lock);
    while (!s->ready && !s->failed && !s->quit)
        pthread_cond_wait(&s->work_wake, &s->lock);
    if (s->ready && s->dictionary && !s->quit) {
        pthread_mutex_unlock(&s->lock);
        prepare_labels(s);
        if (s->steers)
            prepare_inputs(s);
        pthread_mutex_lock(&s->lock);
    }
    while (!s->failed && !s->quit) {
        es_command *c = s->work_queue.head;
        bool go = s->dirty && !s->paused && s->steers;
        if (!c && !go) {
            if (s->steers && s->learning != ES_LEARN_FAILED)
                s->learning = s->paused ? ES_LEARN_PAUSED : ES_LEARN_IDLE;
            pthread_cond_wait(&s->work_wake, &s->lock);
            continue;
        }
        bool restart = s->restart;
        __atomic_store_n(&s->cancel_work, false, __ATOMIC_RELAXED);
        if (c) {
            if (!(s->work_queue.head = c->next))
                s->work_queue.tail = NULL;
        } else {
            s->dirty = s->restart = false;
        }
        pthread_mutex_unlock(&s->lock);
        if (!c)
            round_of_learning(s, restart);
        else if (c->kind == ES_CMD_SUGGEST)
            suggest(s, c->a);
        else if (c->kind == ES_CMD_PREFER)
            prefer(s, c->text);
        else if (c->kind == ES_CMD_DIRECTION)
            direction(s, c->text, c->a);
        else
            measure_again(s);
        es_studio_command_free(c);
        es_studio_hear_card(s);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}
