/* The studio from outside: opening, closing, and the commands. Commands note what is wanted and return; what a person said of a reply
 * is written to the workspace before the view shows it. */
#include "studio.h"

#include "es_cuda.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

es_studio_options es_studio_default(void)
{
    return (es_studio_options){.sampling = es_sampling_default(), .max_tokens = 512, .n_ctx = 2048, .learn = true};
}

/* ---- waking the reader ---------------------------------------------------------------------------------------------------- */

void es_studio_changed(es_studio *s)
{
    s->serial++;
    if (s->pipe_full)
        return;
    ssize_t n = write(s->pipe[1], "!", 1);
    s->pipe_full = n == 1 || errno == EAGAIN;
}

int es_studio_fd(const es_studio *s)
{
    return s->pipe[0];
}

void es_studio_ack(es_studio *s)
{
    char byte[16];
    pthread_mutex_lock(&s->lock);
    while (read(s->pipe[0], byte, sizeof byte) > 0)
        ;
    s->pipe_full = false;
    pthread_mutex_unlock(&s->lock);
}

void es_studio_say_status(es_studio *s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    pthread_mutex_lock(&s->lock);
    vsnprintf(s->status, sizeof s->status, fmt, ap);
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
    va_end(ap);
}

void es_studio_hear_card(es_studio *s)
{
    char text[240];
    if (s->o.card && es_cuda_told(s->o.card, text, sizeof text))
        es_studio_say_status(s, "%s", text);
}

bool es_studio_quitting(const es_studio *s)
{
    return __atomic_load_n(&s->quit, __ATOMIC_RELAXED);
}

es_workspace *es_studio_workspace(es_studio *s)
{
    return s->workspace;
}

const char *es_studio_dictionary_hash(es_studio *s)
{
    pthread_mutex_lock(&s->lock);
    const char *h = s->ready ? s->dictionary_hash : "";
    pthread_mutex_unlock(&s->lock);
    return h;
}

/* ---- small owned things ----------------------------------------------------------------------------------------------------- */

void es_studio_command_free(es_command *c)
{
    if (!c)
        return;
    free(c->text);
    free(c);
}

void es_studio_turn_free(es_turn_state *t)
{
    es_buf_free(&t->text);
    free(t->edited);
    free(t->token_end);
    free(t->row);
    free(t->feature);
    free(t->value);
    memset(t, 0, sizeof *t);
}

int es_studio_basis_copy(es_basis *out, const es_basis *b)
{
    return es_basis_copy(out, b, NULL);
}

void es_studio_clear_history(es_studio *s)
{
    s->n_step = 0;
    s->n_mark = 0;
    s->n_snr = 0;
}

int es_studio_set_basis(es_studio *s, const es_basis *b, es_error *err)
{
    es_basis copy;
    if (es_studio_basis_copy(&copy, b))
        return es_fail(err, ES_ERR_MEMORY, "no memory for basis %s", b->name);
    char name[96];
    snprintf(name, sizeof name, "%s@%d", b->name, b->version);
    int rc = ws_state_set(s->workspace, "basis", name, err);
    if (rc) {
        es_basis_free(&copy);
        return rc;
    }
    pthread_mutex_lock(&s->lock);
    bool same = copy.n == s->basis.n && (!copy.n || !memcmp(copy.feature, s->basis.feature, (size_t)copy.n * sizeof *copy.feature));
    es_basis_free(&s->basis);
    s->basis = copy;
    s->basis_auto = !strcmp(copy.name, "auto");
    if (!same) {
        es_studio_clear_history(s);
        s->report_ready = false;
    }
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

/* ---- jobs --------------------------------------------------------------------------------------------------------------------- */

int es_studio_job_begin(es_studio *s, const char *kind, const char *what, const char *unit)
{
    pthread_mutex_lock(&s->lock);
    int at = s->n_job;
    if (at == ES_JOBS) { /* the oldest is forgotten */
        memmove(s->job, s->job + 1, (ES_JOBS - 1) * sizeof *s->job);
        memmove(s->job_start, s->job_start + 1, (ES_JOBS - 1) * sizeof *s->job_start);
        at = ES_JOBS - 1;
    } else {
        s->n_job++;
    }
    s->job[at] = (es_job){.id = ++s->next_job, .running = true};
    snprintf(s->job[at].kind, sizeof s->job[at].kind, "%s", kind);
    snprintf(s->job[at].what, sizeof s->job[at].what, "%s", what);
    snprintf(s->job[at].unit, sizeof s->job[at].unit, "%s", unit);
    s->job_start[at] = es_seconds();
    int id = s->next_job;
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
    return id;
}

static int job_at(const es_studio *s, int id)
{
    for (int i = 0; i < s->n_job; i++)
        if (s->job[i].id == id)
            return i;
    return -1;
}

void es_studio_job_step(es_studio *s, int id, double done, double total, const char *what)
{
    pthread_mutex_lock(&s->lock);
    int i = job_at(s, id);
    if (i >= 0) {
        s->job[i].done = done;
        s->job[i].total = total;
        s->job[i].seconds = es_seconds() - s->job_start[i];
        if (what)
            snprintf(s->job[i].what, sizeof s->job[i].what, "%s", what);
    }
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

void es_studio_job_ended(es_studio *s, int id, bool failed, bool cancelled)
{
    int i = job_at(s, id);
    if (i >= 0) {
        s->job[i].running = false;
        s->job[i].failed = failed;
        s->job[i].cancelled = cancelled;
        s->job[i].done = s->job[i].total = 1;
    }
    es_studio_changed(s);
}

void es_studio_job_end(es_studio *s, int id, bool failed, bool cancelled, const char *what)
{
    es_studio_job_step(s, id, 0, 0, what);
    pthread_mutex_lock(&s->lock);
    es_studio_job_ended(s, id, failed, cancelled);
    pthread_mutex_unlock(&s->lock);
}

void es_studio_job_cancel(es_studio *s, int id)
{
    if (es_looks_cancel(s, id) || es_maker_cancel(s, id))
        return;
    pthread_mutex_lock(&s->lock);
    int i = job_at(s, id);
    if (i >= 0 && s->job[i].running) {
        __atomic_store_n(&s->cancel_work, true, __ATOMIC_RELAXED); /* every other job there is runs in the worker */
        pthread_cond_broadcast(&s->work_wake);
    }
    pthread_mutex_unlock(&s->lock);
}

/* ---- opening and closing ---------------------------------------------------------------------------------------------------------- */

static const char *copy(const char *text, bool *failed)
{
    if (!text)
        return NULL;
    char *c = strdup(text);
    *failed |= !c;
    return c;
}

static void queue_free(es_queue *q)
{
    while (q->head) {
        es_command *c = q->head;
        q->head = c->next;
        es_studio_command_free(c);
    }
}

static void studio_free(es_studio *s)
{
    for (int i = 0; i < s->n_turn; i++)
        es_studio_turn_free(&s->turn[i]);
    free(s->turn);
    for (int i = 0; i < 2; i++) {
        es_buf_free(&s->side[i].text);
        if (s->pipe[i] >= 0)
            close(s->pipe[i]);
    }
    queue_free(&s->chat_queue);
    queue_free(&s->work_queue);
    es_speaker_free(s->incoming);
    es_context_free(s->own);
    es_speaker_free(s->speaking);
    es_context_free(s->context);
    es_pool_free(s->pool);
    es_sparse_free(&s->sparse);
    es_basis_free(&s->basis);
    es_atlas_free(s->atlas);
    free(s->own_density);
    es_dictionary_free(s->dictionary);
    es_model_free(s->model);
    es_workspace_close(s->workspace);
    free(s->blind);
    free(s->suggested);
    free(s->suggested_score);
    free(s->history);
    free(s->step_loss);
    free(s->step_kl);
    free(s->mark_step);
    free(s->mark_experience);
    free(s->snr);
    es_inputs_free(s->white);
    es_readings_free(s->readings);
    const char *owned[] = {s->o.model, s->o.dictionary, s->o.workspace, s->o.labels, s->o.starter_basis, s->o.system, s->o.author, s->o.neutral, s->o.inputs, s->o.hashes, s->o.maps, s->teacher};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        free((char *)(uintptr_t)owned[i]);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->atlas_lock);
    pthread_mutex_destroy(&s->swap);
    pthread_mutex_destroy(&s->reading);
    pthread_mutex_destroy(&s->shown_lock);
    es_atlas_free(s->shown);
    es_stored_drop(s->stored);
    pthread_cond_destroy(&s->chat_wake);
    pthread_cond_destroy(&s->work_wake);
    free(s);
}

int es_studio_open(es_studio **out, const es_studio_options *o, es_error *err)
{
    *out = NULL;
    if (access(o->model, R_OK))
        return es_fail(err, ES_ERR_IO, "cannot read the model %s: %s", o->model, strerror(errno));
    if (o->dictionary && access(o->dictionary, R_OK))
        return es_fail(err, ES_ERR_IO, "cannot read the dictionary %s: %s", o->dictionary, strerror(errno));
    es_studio *s = es_calloc(1, sizeof *s);
    if (!s)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a session");
    s->pipe[0] = s->pipe[1] = -1;
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->swap, NULL);
    pthread_mutex_init(&s->reading, NULL);
    pthread_mutex_init(&s->shown_lock, NULL);
    s->stale = true;
    pthread_mutex_init(&s->atlas_lock, NULL);
    pthread_cond_init(&s->chat_wake, NULL);
    pthread_cond_init(&s->work_wake, NULL);
    s->shade = -1;
    s->adapter_on = true;
    s->method = ES_METHOD_FEATURES;
    bool failed = false;
    s->o = *o;
    s->o.model = copy(o->model, &failed);
    s->o.dictionary = copy(o->dictionary, &failed);
    s->o.workspace = copy(o->workspace, &failed);
    s->o.labels = copy(o->labels, &failed);
    s->o.starter_basis = copy(o->starter_basis, &failed);
    s->o.neutral = copy(o->neutral, &failed);
    s->o.inputs = copy(o->inputs, &failed);
    s->o.hashes = copy(o->hashes, &failed);
    s->o.maps = copy(o->maps, &failed);
    s->o.system = copy(o->system, &failed);
    s->o.author = copy(o->author ? o->author : "me", &failed);
    s->temperature = o->sampling.temperature;
    s->paused = !o->learn;
    s->learning = o->dictionary ? (o->learn ? ES_LEARN_IDLE : ES_LEARN_PAUSED) : ES_LEARN_OFF;
    s->step_loss = es_calloc(ES_HISTORY, sizeof *s->step_loss);
    s->step_kl = es_calloc(ES_HISTORY, sizeof *s->step_kl);
    int rc = 0;
    if (failed || !s->step_loss || !s->step_kl)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for a session");
    else if (pipe2(s->pipe, O_NONBLOCK | O_CLOEXEC))
        rc = es_fail(err, ES_ERR_IO, "cannot make a pipe: %s", strerror(errno));
    else
        rc = es_workspace_open(&s->workspace, o->workspace, err);
    if (!rc && pthread_create(&s->chat_thread, NULL, es_studio_chat_main, s))
        rc = es_fail(err, ES_ERR_MEMORY, "cannot start the chat thread");
    else if (!rc)
        s->chat_started = true;
    if (!rc && pthread_create(&s->work_thread, NULL, es_studio_work_main, s))
        rc = es_fail(err, ES_ERR_MEMORY, "cannot start the worker");
    else if (!rc)
        s->work_started = true;
    if (rc) {
        es_studio_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

void es_studio_close(es_studio *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    __atomic_store_n(&s->quit, true, __ATOMIC_RELAXED);
    __atomic_store_n(&s->stop, true, __ATOMIC_RELAXED);
    __atomic_store_n(&s->cancel_work, true, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&s->chat_wake);
    pthread_cond_broadcast(&s->work_wake);
    pthread_mutex_unlock(&s->lock);
    if (s->chat_started)
        pthread_join(s->chat_thread, NULL);
    if (s->work_started)
        pthread_join(s->work_thread, NULL);
    es_looks_stop(s);
    es_maker_stop(s);
    studio_free(s);
}

/* ---- commands for the threads -------------------------------------------------------------------------------------------------------- */

void es_studio_post(es_studio *s, es_queue *q, pthread_cond_t *wake, es_command_kind kind, int a, float x, const char *text)
{
    es_command *c = calloc(1, sizeof *c);
    if (c)
        *c = (es_command){.kind = kind, .a = a, .x = x, .text = text ? strdup(text) : NULL};
    if (!c || (text && !c->text)) {
        es_studio_command_free(c);
        es_studio_say_status(s, "no memory for that");
        return;
    }
    pthread_mutex_lock(&s->lock);
    s->status[0] = 0;
    if (q->tail)
        q->tail->next = c;
    else
        q->head = c;
    q->tail = c;
    pthread_cond_broadcast(wake);
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

static void to_chat(es_studio *s, es_command_kind kind, int a, float x, const char *text)
{
    es_studio_post(s, &s->chat_queue, &s->chat_wake, kind, a, x, text);
}

void es_studio_say(es_studio *s, const char *text)
{
    if (text && text[0])
        to_chat(s, ES_CMD_SAY, 0, 0, text);
}

/* The reply that is running ends at the next token; what was asked after it is forgotten too. */
void es_studio_stop(es_studio *s)
{
    pthread_mutex_lock(&s->lock);
    queue_free(&s->chat_queue);
    s->chat_queue.tail = NULL;
    __atomic_store_n(&s->stop, true, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&s->lock);
}

void es_studio_new_chat(es_studio *s)
{
    es_studio_stop(s);
    to_chat(s, ES_CMD_NEW_CHAT, 0, 0, NULL);
}

void es_studio_regenerate(es_studio *s)
{
    to_chat(s, ES_CMD_REGENERATE, 0, 0, NULL);
}

void es_studio_compare(es_studio *s, const char *text)
{
    if (text && text[0])
        to_chat(s, ES_CMD_COMPARE, 0, 0, text);
}

void es_studio_steer(es_studio *s, int feature, float strength, const char *text)
{
    if (text && text[0])
        to_chat(s, ES_CMD_STEER, feature, strength, text);
}

void es_studio_blind(es_studio *s, int feature, uint64_t seed)
{
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)seed);
    to_chat(s, ES_CMD_BLIND, feature, 0, text);
}

void es_studio_sides_close(es_studio *s)
{
    pthread_mutex_lock(&s->lock);
    bool running = s->n_side && (s->side[0].streaming || s->side[1].streaming);
    s->n_side = 0;
    if (running)
        __atomic_store_n(&s->stop, true, __ATOMIC_RELAXED);
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

void es_studio_shade(es_studio *s, int feature)
{
    pthread_mutex_lock(&s->lock);
    s->shade = feature >= 0 && feature < s->n_features ? feature : -1;
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

void es_studio_temperature(es_studio *s, float t)
{
    pthread_mutex_lock(&s->lock);
    if (t >= 0 && t <= 10)
        s->temperature = t;
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

/* ---- what a person says of a reply --------------------------------------------------------------------------------------------------------- */

void es_studio_learn_dirty(es_studio *s, bool restart)
{
    pthread_mutex_lock(&s->lock);
    s->dirty = true;
    s->restart |= restart;
    if (s->learning == ES_LEARN_FAILED)
        s->learning = ES_LEARN_IDLE;
    pthread_cond_broadcast(&s->work_wake);
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

static es_turn_state *turn_by_id(es_studio *s, int64_t id, int *at)
{
    for (int i = 0; i < s->n_turn; i++)
        if (s->turn[i].id == id && id) {
            *at = i;
            return &s->turn[i];
        }
    return NULL;
}

/* The conversation before turn `at`, as an experience without replies. Lock held. */
static int context_of(es_studio *s, int at, es_experience *e)
{
    e->message = calloc((size_t)at + 1, sizeof *e->message);
    if (!e->message)
        return ES_ERR_MEMORY;
    bool failed = false;
    if (s->o.system && s->o.system[0])
        e->message[e->n_message++] = (es_message){copy("system", &failed), copy(s->o.system, &failed)};
    for (int i = 0; i < at; i++) {
        const es_turn_state *t = &s->turn[i];
        const char *text = t->edited ? t->edited : t->text.data ? t->text.data : "";
        e->message[e->n_message++] = (es_message){copy(t->role == 'u' ? "user" : "assistant", &failed), copy(text, &failed)};
    }
    return failed ? ES_ERR_MEMORY : 0;
}

/* rating and correction of a turn as they are to be; the experience follows from them. */
static void judge(es_studio *s, int64_t id, int rating, const char *edited)
{
    es_error err;
    es_experience e = {.weight = 1};
    int at = 0, rc = 0;
    pthread_mutex_lock(&s->lock);
    es_turn_state *t = turn_by_id(s, id, &at);
    if (!t || t->role != 'a' || t->streaming) {
        rc = es_fail(&err, ES_ERR_MISSING, t && t->streaming ? "wait until the reply is finished" : "there is no reply to judge");
    } else if (!s->ready) {
        rc = es_fail(&err, ES_ERR_MISSING, "the model is still loading");
    } else {
        bool failed = false;
        const char *said = t->text.data ? t->text.data : "";
        if (edited && !strcmp(edited, said))
            edited = NULL;
        if (edited) {
            e.preferred = (char *)(uintptr_t)copy(edited, &failed);
            e.rejected = (char *)(uintptr_t)copy(said, &failed);
        } else if (rating > 0) {
            e.preferred = (char *)(uintptr_t)copy(said, &failed);
        } else if (rating < 0) {
            e.rejected = (char *)(uintptr_t)copy(said, &failed);
        }
        e.source = (char *)(uintptr_t)copy(s->o.author, &failed);
        rc = failed ? ES_ERR_MEMORY : context_of(s, at, &e);
        if (rc)
            es_fail(&err, ES_ERR_MEMORY, "no memory to keep that");
    }
    int64_t session = s->session, snapshot = s->snapshot, made = 0;
    bool had = t && (t->rating || t->edited), has = e.preferred || e.rejected;
    pthread_mutex_unlock(&s->lock);
    if (!rc) /* saved first, shown afterwards */
        rc = ws_judge(s->workspace, session, id, rating, edited, has ? &e : NULL, snapshot, &made, &err);
    if (!rc) {
        char *keep = edited ? strdup(edited) : NULL;
        pthread_mutex_lock(&s->lock);
        if ((t = turn_by_id(s, id, &at))) {
            t->rating = rating;
            free(t->edited);
            t->edited = keep;
            keep = NULL;
        }
        s->stale = true;
        s->status[0] = 0;
        es_studio_changed(s);
        pthread_mutex_unlock(&s->lock);
        free(keep);
        if (had || has)
            es_studio_learn_dirty(s, had);
    } else {
        es_studio_say_status(s, "%.230s", err.text);
    }
    es_experience_clear(&e);
}

static char *edited_of(es_studio *s, int64_t id, int *rating)
{
    int at;
    pthread_mutex_lock(&s->lock);
    es_turn_state *t = turn_by_id(s, id, &at);
    char *e = t && t->edited ? strdup(t->edited) : NULL;
    *rating = t ? t->rating : 0;
    pthread_mutex_unlock(&s->lock);
    return e;
}

void es_studio_rate(es_studio *s, int64_t turn, int sign)
{
    int was;
    char *edited = edited_of(s, turn, &was);
    judge(s, turn, sign > 0 ? 1 : sign < 0 ? -1 : 0, edited);
    free(edited);
}

void es_studio_edit(es_studio *s, int64_t turn, const char *text)
{
    int was;
    free(edited_of(s, turn, &was));
    if (!text || !text[0])
        es_studio_say_status(s, "an empty reply cannot be learned from");
    else
        judge(s, turn, was, text);
}

static void release_adapter(void *a)
{
    es_adapter_free(a);
}

void es_speaker_free(es_speaker *p)
{
    if (p)
        es_variant_clear(&p->v);
    free(p);
}

bool es_speaker_whole(const es_studio *s, const es_speaker *p)
{
    return p && (p->v.model != s->model || p->v.n_prefix > 0);
}

/* p (NULL: the base model) is what the chat thread takes next. */
static void hand_over(es_studio *s, es_speaker *p)
{
    pthread_mutex_lock(&s->lock);
    es_speaker_free(s->incoming);
    if (p)
        p->id = ++s->n_speaker;
    s->incoming = p;
    s->incoming_set = true;
    s->stale = true;
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

/* a is taken over. */
static int adapter_speaker(es_studio *s, es_adapter *a, int64_t id, es_speaker **out, es_error *err)
{
    *out = es_calloc(1, sizeof **out);
    if (!*out) {
        es_adapter_free(a);
        return es_fail(err, ES_ERR_MEMORY, "no memory for an adapter");
    }
    **out = (es_speaker){.v = {.model = s->model, .owned = a, .release = release_adapter, .lowest_layer = es_adapter_lowest_layer(a)}, .snapshot = id};
    int rc = es_adapter_patch(a, 1, &(*out)->v.patch, err);
    if (rc) {
        es_speaker_free(*out);
        *out = NULL;
    }
    return rc;
}

int es_studio_publish(es_studio *s, es_adapter *a, int64_t id, es_error *err)
{
    es_speaker *p = NULL;
    int rc = es_workspace_snapshot_use(s->workspace, id, err);
    if (rc) {
        es_adapter_free(a);
        return rc;
    }
    rc = a ? adapter_speaker(s, a, id, &p, err) : 0;
    if (rc)
        return rc;
    pthread_mutex_lock(&s->lock);
    s->snapshot = id;
    bool guest = s->method != ES_METHOD_FEATURES; /* it speaks when features is chosen again */
    s->stale = true;
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
    if (guest)
        es_speaker_free(p);
    else
        hand_over(s, p);
    return 0;
}

int es_studio_publish_method(es_studio *s, es_method_kind k, es_variant *v, es_error *err)
{
    es_speaker *p = es_calloc(1, sizeof *p);
    if (!p)
        return es_fail(err, ES_ERR_MEMORY, "no memory for what has been learned");
    p->v = *v;
    p->snapshot = ES_BY_METHOD - (int64_t)k;
    *v = (es_variant){0};
    hand_over(s, p);
    return 0;
}

/* With swap held: back to a snapshot of the workspace. A round that is running is not to be published after this. */
static int go_back(es_studio *s, int64_t id, es_error *err)
{
    es_adapter *a = NULL;
    int rc = 0;
    s->epoch++;
    __atomic_store_n(&s->cancel_work, true, __ATOMIC_RELAXED);
    if (id) {
        es_buf bytes = {0};
        rc = es_workspace_snapshot_bytes(s->workspace, id, &bytes, err);
        if (!rc)
            rc = es_adapter_from_bytes(&a, s->model, s->dictionary, bytes.data, bytes.len, "the snapshot", err);
        es_buf_free(&bytes);
    }
    return rc ? rc : es_studio_publish(s, a, id, err);
}

bool es_studio_knows(es_studio *s, int64_t experience)
{
    es_stored *d = es_studio_stored(s);
    bool yes = false;
    for (int i = 0; d && i < d->n_influence; i++)
        yes |= d->influence_id[i] == experience;
    es_stored_drop(d);
    return yes;
}

/* There is something that the snapshot in use has not learned from. */
static bool has_new(es_studio *s)
{
    bool more = false;
    es_stored *d = es_studio_stored(s);
    for (int i = 0; d && i < d->n_experience; i++)
        more |= d->experience[i].included && !es_studio_knows(s, d->experience[i].id);
    es_stored_drop(d);
    return more;
}

void es_studio_undo(es_studio *s)
{
    ws_undone u = {0};
    es_error err;
    pthread_mutex_lock(&s->lock);
    bool ready = s->ready;
    pthread_mutex_unlock(&s->lock);
    if (!ready)
        return;
    pthread_mutex_lock(&s->swap);
    if (ws_judgement_undo(s->workspace, &u, &err)) {
        pthread_mutex_unlock(&s->swap);
        es_studio_say_status(s, "%.230s", err.text);
        return;
    }
    s->epoch++; /* a round that learns from it now is not to be published */
    int at;
    pthread_mutex_lock(&s->lock);
    __atomic_store_n(&s->cancel_work, true, __ATOMIC_RELAXED);
    s->dirty = s->restart = false;
    s->stale = true;
    es_turn_state *t = turn_by_id(s, u.message, &at);
    if (t) {
        t->rating = u.rating;
        free(t->edited);
        t->edited = u.edited;
        u.edited = NULL;
    }
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
    free(u.edited);
    bool knew = u.experience && es_studio_knows(s, u.experience); /* otherwise what speaks never learned from it */
    int rc = knew ? go_back(s, u.snapshot, &err) : 0;
    pthread_mutex_unlock(&s->swap);
    /* What the adapter it went back to has not learned yet is learned again, without this one. */
    bool more = rc != 0 || has_new(s);
    if (more)
        es_studio_learn_dirty(s, rc != 0);
    if (!knew)
        es_studio_say_status(s, "undone");
    else if (rc) /* that snapshot is gone */
        es_studio_say_status(s, "undone; learning again without it");
    else if (u.snapshot)
        es_studio_say_status(s, "undone: back to snapshot #%lld%s", (long long)u.snapshot, more ? ", which learns the rest again" : "");
    else
        es_studio_say_status(s, "undone: back to the base model%s", more ? ", which learns the rest again" : "");
}

/* ---- basis ----------------------------------------------------------------------------------------------------------------------------------- */

static void basis_saved(es_studio *s, es_basis *b)
{
    es_error err;
    int rc = es_workspace_basis_save(s->workspace, b, &b->version, &err);
    if (!rc)
        rc = es_studio_set_basis(s, b, &err);
    if (rc)
        es_studio_say_status(s, "%.230s", err.text);
    else
        es_studio_post(s, &s->work_queue, &s->work_wake, ES_CMD_MEASURE, 0, 0, NULL);
}

/* The basis in use as a copy that names this model and dictionary; false (and a status) when there is nothing to tie features of. */
static bool basis_draft(es_studio *s, es_basis *b)
{
    pthread_mutex_lock(&s->lock);
    bool looks = s->ready && s->dictionary && !s->steers, ok = s->ready && s->steers && !es_studio_basis_copy(b, &s->basis);
    if (ok) {
        if (!b->name[0] || !strcmp(b->name, "auto")) /* the hand takes over from here */
            snprintf(b->name, sizeof b->name, "%s", b->name[0] ? "mine" : "first");
        memcpy(b->model_hash, s->model_hash, sizeof b->model_hash);
        memcpy(b->dictionary_hash, s->dictionary_hash, sizeof b->dictionary_hash);
        snprintf(b->dictionary, sizeof b->dictionary, "%s", s->dictionary_name);
        b->layer = s->layer;
    }
    pthread_mutex_unlock(&s->lock);
    if (!ok)
        es_studio_say_status(s, looks ? "this dictionary is for looking: a basis takes features of the residual" : "no dictionary is open yet");
    return ok;
}

void es_studio_basis_use(es_studio *s, const char *name, int version)
{
    es_basis b = {0};
    es_error err;
    int rc = es_workspace_basis_load(s->workspace, name, version, &b, &err);
    if (!rc && strcmp(b.dictionary_hash, es_studio_dictionary_hash(s)))
        rc = es_fail(&err, ES_ERR_MISMATCH, "basis %s belongs to dictionary %.12s, open is %.12s", name, b.dictionary_hash, es_studio_dictionary_hash(s));
    if (!rc)
        rc = es_studio_set_basis(s, &b, &err);
    if (rc)
        es_studio_say_status(s, "%.230s", err.text);
    else
        es_studio_post(s, &s->work_queue, &s->work_wake, ES_CMD_MEASURE, 0, 0, NULL);
    es_basis_free(&b);
}

void es_studio_basis_new(es_studio *s, const char *name)
{
    es_basis b;
    if (!basis_draft(s, &b))
        return;
    es_basis_free(&b);
    b.n = 0;
    b.feature = NULL;
    b.lo = b.hi = NULL;
    snprintf(b.name, sizeof b.name, "%s", name);
    basis_saved(s, &b);
    es_basis_free(&b);
}

void es_studio_basis_add(es_studio *s, int feature, float lo, float hi)
{
    es_basis b;
    es_error err;
    if (!basis_draft(s, &b))
        return;
    const es_basis_vector *v = es_basis_vector_of(&b, feature);
    if (!v && (feature < 0 || feature >= s->n_features)) {
        es_studio_say_status(s, "there is no feature %d", feature);
    } else {
        if (lo > hi) {
            float most = v ? v->length : s->atlas ? es_atlas_p99(s->atlas)[feature] : 0;
            hi = most > 0 ? most : 1000;
            lo = -hi;
        }
        if (v ? es_basis_add_vector(&b, v, lo, hi, &err) : es_basis_add(&b, feature, lo, hi, &err))
            es_studio_say_status(s, "%.230s", err.text);
        else
            basis_saved(s, &b);
    }
    es_basis_free(&b);
}

void es_studio_basis_remove(es_studio *s, int feature)
{
    es_basis b;
    if (!basis_draft(s, &b))
        return;
    if (es_basis_remove(&b, feature))
        basis_saved(s, &b);
    else
        es_studio_say_status(s, "feature %d is not in the basis", feature);
    es_basis_free(&b);
}

void es_studio_basis_suggest(es_studio *s, int size)
{
    if (size < 1 || size > 4096)
        es_studio_say_status(s, "suggest between 1 and 4096 features");
    else
        es_studio_post(s, &s->work_queue, &s->work_wake, ES_CMD_SUGGEST, size, 0, NULL);
}

void es_studio_basis_take_suggested(es_studio *s, int n)
{
    es_basis b;
    es_error err;
    if (!basis_draft(s, &b))
        return;
    int rc = 0, taken = 0;
    pthread_mutex_lock(&s->lock);
    for (int i = 0; !rc && i < s->n_suggested && i < n; i++, taken++) {
        float most = s->atlas ? es_atlas_p99(s->atlas)[s->suggested[i]] : 1000;
        rc = es_basis_add(&b, s->suggested[i], -most, most, &err);
    }
    pthread_mutex_unlock(&s->lock);
    if (rc)
        es_studio_say_status(s, "%.230s", err.text);
    else if (!taken)
        es_studio_say_status(s, "nothing is suggested yet");
    else
        basis_saved(s, &b);
    es_basis_free(&b);
}

/* ---- learning --------------------------------------------------------------------------------------------------------------------------------- */

void es_studio_learn_pause(es_studio *s, bool pause)
{
    pthread_mutex_lock(&s->lock);
    s->paused = pause;
    pthread_cond_broadcast(&s->work_wake);
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

void es_studio_learn_now(es_studio *s)
{
    es_studio_learn_pause(s, false); /* a round that waits at once is not what was asked for */
    es_studio_learn_dirty(s, false);
}

void es_studio_learn_cancel(es_studio *s)
{
    pthread_mutex_lock(&s->lock);
    __atomic_store_n(&s->cancel_work, true, __ATOMIC_RELAXED);
    s->dirty = s->restart = false;
    pthread_cond_broadcast(&s->work_wake);
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

void es_studio_experience_include(es_studio *s, int64_t id, bool included)
{
    es_error err;
    es_stored *d = es_studio_stored(s);
    double weight = 1;
    for (int i = 0; d && i < d->n_experience; i++)
        if (d->experience[i].id == id)
            weight = d->experience[i].e.weight;
    es_stored_drop(d);
    if (es_workspace_experience_set(s->workspace, id, included, weight, included ? "included by hand" : "left out by hand", &err)) {
        es_studio_say_status(s, "%.230s", err.text);
        return;
    }
    pthread_mutex_lock(&s->lock);
    s->stale = true;
    pthread_mutex_unlock(&s->lock);
    es_studio_learn_dirty(s, !included);
}

void es_studio_adapter(es_studio *s, bool on)
{
    pthread_mutex_lock(&s->lock);
    s->adapter_on = on;
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

void es_studio_rollback(es_studio *s, int64_t snapshot)
{
    es_error err;
    pthread_mutex_lock(&s->lock);
    bool ready = s->ready;
    pthread_mutex_unlock(&s->lock);
    if (!ready)
        return;
    pthread_mutex_lock(&s->swap);
    int rc = go_back(s, snapshot, &err);
    pthread_mutex_lock(&s->lock);
    if (!rc)
        s->dirty = s->restart = false; /* learning goes on with the next experience, or when asked */
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&s->swap);
    if (rc)
        es_studio_say_status(s, "%.230s", err.text);
    else if (snapshot)
        es_studio_say_status(s, "rolled back to snapshot #%lld", (long long)snapshot);
    else
        es_studio_say_status(s, "rolled back to the base model");
}

/* ---- methods --------------------------------------------------------------------------------------------------------------------------------- */

void es_studio_method(es_studio *s, const char *name_and_teacher)
{
    char name[32];
    size_t n = strcspn(name_and_teacher, " ");
    const char *teacher = name_and_teacher + n + strspn(name_and_teacher + n, " ");
    snprintf(name, sizeof name, "%.*s", n < sizeof name ? (int)n : (int)sizeof name - 1, name_and_teacher);
    int k = es_method_by_name(name);
    es_error err;
    if (k < 0) {
        es_buf all = {0};
        for (int i = 0; i < ES_N_METHODS; i++)
            es_buf_printf(&all, " %s", es_method_name((es_method_kind)i));
        es_studio_say_status(s, "there is no method %.40s; there are%s", name, all.data ? all.data : "");
        es_buf_free(&all);
        return;
    }
    if (*teacher && k != ES_METHOD_DISTIL) {
        es_studio_say_status(s, "only distil has a teacher: /method distil PREFERENCE or MODEL.gguf");
        return;
    }
    pthread_mutex_lock(&s->lock);
    bool ready = s->ready, same = s->method == (es_method_kind)k && k != ES_METHOD_DISTIL; /* that one may have another teacher now */
    pthread_mutex_unlock(&s->lock);
    if (!ready || same) {
        es_studio_say_status(s, ready ? "%s answers already" : "the model is still being opened", name);
        return;
    }
    pthread_mutex_lock(&s->swap);
    s->epoch++; /* a round of the other method is not to be published */
    pthread_mutex_lock(&s->lock);
    __atomic_store_n(&s->cancel_work, true, __ATOMIC_RELAXED);
    s->method = (es_method_kind)k;
    free(s->teacher);
    s->teacher = *teacher ? strdup(teacher) : NULL;
    int64_t snapshot = s->snapshot;
    snprintf(s->method_text, sizeof s->method_text, "%s", k == ES_METHOD_FEATURES || k == ES_METHOD_NONE ? "" : "has not learned yet: the base model answers");
    s->dirty = k != ES_METHOD_NONE && k != ES_METHOD_FEATURES;
    if (s->learning == ES_LEARN_IDLE)
        *s->learning_text = '\0'; /* it says that the method before answers */
    es_studio_changed(s);
    pthread_cond_broadcast(&s->work_wake);
    pthread_mutex_unlock(&s->lock);
    int rc = 0;
    if (k == ES_METHOD_FEATURES)
        rc = go_back(s, snapshot, &err);
    else
        hand_over(s, NULL);
    pthread_mutex_unlock(&s->swap);
    if (k == ES_METHOD_FEATURES && has_new(s))
        es_studio_learn_dirty(s, false);
    if (rc)
        es_studio_say_status(s, "%.230s", err.text);
    else
        es_studio_say_status(s, "%s: %s", name, es_method_about((es_method_kind)k));
}

void es_studio_prefer(es_studio *s, const char *text)
{
    if (!text || !text[strspn(text, " \t")])
        es_studio_say_status(s, "what do you prefer? /prefer be more direct");
    else {
        es_studio_post(s, &s->work_queue, &s->work_wake, ES_CMD_PREFER, 0, 0, text);
        es_studio_say_status(s, "noted: the model is asked as soon as learning is free"); /* it may wait behind other work, and a person would ask twice */
    }
}

void es_studio_direction(es_studio *s, const char *file_or_name, bool on)
{
    if (!file_or_name || !*file_or_name)
        es_studio_say_status(s, "which direction? /direction FILE, or the name of one that is kept; /direction off NAME");
    else
        es_studio_post(s, &s->work_queue, &s->work_wake, ES_CMD_DIRECTION, on, 0, file_or_name);
}
