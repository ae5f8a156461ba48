/* Views: one consistent copy of what there is to draw. Everything is copied under the lock into pieces that the view owns. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "studio.h"

typedef struct view {
    es_view v; /* first: es_view_free gets its address */
    void **piece;
    int n_piece, cap_piece;
    es_stored *stored;
} view;

static void *keep(view *w, const void *from, size_t n, size_t size)
{
    if (!n)
        return NULL;
    if (w->n_piece == w->cap_piece) {
        int cap = w->cap_piece ? 2 * w->cap_piece : 32;
        void **p = realloc(w->piece, (size_t)cap * sizeof *p);
        if (!p)
            return NULL;
        w->piece = p;
        w->cap_piece = cap;
    }
    void *p = es_calloc(n, size);
    if (!p)
        return NULL;
    if (from)
        memcpy(p, from, n * size);
    w->piece[w->n_piece++] = p;
    return p;
}

static const char *keep_text(view *w, const char *s, size_t n)
{
    char *p = keep(w, NULL, n + 1, 1);
    if (p && n)
        memcpy(p, s, n);
    return p ? p : "";
}

static float shade_of(const es_turn_state *t, int row, int feature)
{
    for (size_t i = t->row[row]; i < t->row[row + 1]; i++)
        if (t->feature[i] == feature)
            return t->value[i];
    return 0;
}

static void copy_turns(es_studio *s, view *w)
{
    es_turn *out = keep(w, NULL, (size_t)s->n_turn, sizeof *out);
    if (!out)
        return;
    for (int i = 0; i < s->n_turn; i++) {
        const es_turn_state *t = &s->turn[i];
        out[i] = (es_turn){.id = t->id, .role = t->role, .text = keep_text(w, t->text.data, t->text.len), .n = (int)t->text.len, .n_token = t->n_token,
                           .token_end = keep(w, t->token_end, (size_t)t->n_token, sizeof *t->token_end),
                           .edited = t->edited ? keep_text(w, t->edited, strlen(t->edited)) : NULL, .rating = t->rating, .streaming = t->streaming,
                           .stopped = t->stopped, .snapshot = t->snapshot};
        if (!out[i].token_end)
            out[i].n_token = 0;
        if (s->shade < 0 || !t->n_row || !out[i].n_token)
            continue;
        float *shade = keep(w, NULL, (size_t)out[i].n_token, sizeof *shade);
        for (int k = 0; shade && k < out[i].n_token && k < t->n_row; k++) {
            shade[k] = shade_of(t, k, s->shade);
            if (shade[k] > w->v.shade_max)
                w->v.shade_max = shade[k];
        }
        out[i].shade = shade;
    }
    w->v.turn = out;
    w->v.n_turn = s->n_turn;
}

static void copy_basis(es_studio *s, view *w)
{
    es_view *v = &w->v;
    size_t k = (size_t)s->basis.n;
    snprintf(v->basis_name, sizeof v->basis_name, "%s", s->basis.name);
    v->basis_version = s->basis.version;
    v->basis_feature = keep(w, s->basis.feature, k, sizeof(int));
    v->basis_lo = keep(w, s->basis.lo, k, sizeof(float));
    v->basis_hi = keep(w, s->basis.hi, k, sizeof(float));
    float *coefficient = keep(w, NULL, k, sizeof(float));
    es_vector_name *vector = s->basis.n_vector ? keep(w, NULL, (size_t)s->basis.n_vector, sizeof *vector) : NULL;
    for (int i = 0; vector && i < s->basis.n_vector; i++) {
        vector[i].number = s->basis.vector[i].number;
        memcpy(vector[i].name, s->basis.vector[i].name, sizeof vector[i].name);
    }
    v->vector = vector;
    v->n_vector = vector ? s->basis.n_vector : 0;
    v->coefficient = coefficient;
    v->n_basis = v->basis_feature && v->basis_lo && v->basis_hi && coefficient ? s->basis.n : 0;
    v->report = s->report;
    v->report_ready = s->report_ready;
    v->labels_read = s->labels_read;
    v->suggested = keep(w, s->suggested, (size_t)s->n_suggested, sizeof(int));
    v->suggested_score = keep(w, s->suggested_score, (size_t)s->n_suggested, sizeof(float));
    v->n_suggested = v->suggested && v->suggested_score ? s->n_suggested : 0;
    if (s->n_snr == s->basis.n)
        v->snr = keep(w, s->snr, k, sizeof(float));
    v->history = keep(w, s->history, (size_t)s->n_step * k, sizeof(float));
    v->step_loss = keep(w, s->step_loss, (size_t)s->n_step, sizeof(float));
    v->step_kl = keep(w, s->step_kl, (size_t)s->n_step, sizeof(float));
    v->n_step = v->history ? s->n_step : 0;
    v->mark_step = keep(w, s->mark_step, (size_t)s->n_mark, sizeof(int));
    v->mark_experience = keep(w, s->mark_experience, (size_t)s->n_mark, sizeof(int64_t));
    v->n_mark = v->mark_step && v->mark_experience ? s->n_mark : 0;
}

void es_stored_drop(es_stored *d)
{
    if (!d || __atomic_sub_fetch(&d->refs, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    es_experience_lines_free(d->experience, d->n_experience);
    es_snapshot_lines_free(d->snapshot, d->n_snapshot);
    es_basis_free(&d->basis);
    free(d->influence_id);
    free(d->influence);
    free(d->direction);
    free(d);
}

static es_stored *read_stored(es_studio *s)
{
    es_stored *d = es_calloc(1, sizeof *d);
    if (!d)
        return NULL;
    d->refs = 1;
    es_workspace_experience_list(s->workspace, &d->experience, &d->n_experience, NULL);
    es_workspace_snapshot_list(s->workspace, &d->snapshot, &d->n_snapshot, NULL);
    es_workspace_snapshot_current(s->workspace, &d->current);
    es_workspace_direction_list(s->workspace, es_studio_dictionary_hash(s), &d->direction, &d->n_direction, NULL);
    for (int i = 0; i < d->n_snapshot; i++) {
        const es_snapshot_line *l = &d->snapshot[i];
        int n = 0, k = 0;
        if (l->id != d->current || es_workspace_basis_load(s->workspace, l->basis, l->basis_version, &d->basis, NULL))
            continue;
        if (d->basis.n != l->n) {
            es_basis_free(&d->basis);
            d->basis = (es_basis){0};
            continue;
        }
        d->coefficient = l->coefficient;
        if (es_workspace_snapshot_influence(s->workspace, l->id, &d->influence_id, &d->influence, &n, &k, NULL) == 0 && k == l->n) {
            d->n_influence = n;
        } else {
            free(d->influence);
            d->influence = NULL;
        }
    }
    return d;
}

es_stored *es_studio_stored(es_studio *s)
{
    pthread_mutex_lock(&s->reading);
    pthread_mutex_lock(&s->lock);
    bool stale = s->stale;
    s->stale = false;
    pthread_mutex_unlock(&s->lock);
    es_stored *now = stale ? read_stored(s) : NULL, *old = NULL;
    pthread_mutex_lock(&s->lock);
    if (stale && !now)
        s->stale = true;
    if (now) {
        old = s->stored;
        s->stored = now;
    }
    es_stored *d = s->stored;
    if (d)
        __atomic_add_fetch(&d->refs, 1, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&s->reading);
    es_stored_drop(old);
    return d;
}

/* What lies in the workspace, at the places of the basis in use: the adapter may be of another version of it. */
static void copy_stored(es_studio *s, view *w)
{
    es_view *v = &w->v;
    es_stored *d = w->stored = es_studio_stored(s);
    if (!d)
        return;
    v->experience = d->experience;
    v->n_experience = d->n_experience;
    v->snapshots = d->snapshot;
    v->n_snapshot = d->n_snapshot;
    v->direction = d->direction;
    v->n_direction = d->n_direction;
    if (d->current != v->snapshot || !d->coefficient)
        return;
    size_t rows = (size_t)d->n_influence + 1, k = (size_t)v->n_basis, from = (size_t)d->basis.n;
    float *table = d->influence ? keep(w, NULL, rows * k, sizeof *table) : NULL;
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < from; j++)
            if (d->basis.feature[j] == v->basis_feature[i]) {
                ((float *)(uintptr_t)v->coefficient)[i] = d->coefficient[j];
                for (size_t r = 0; table && r < rows; r++)
                    table[r * k + i] = d->influence[r * from + j];
                break;
            }
    v->influence = table;
    v->influence_experience = d->influence_id;
    v->n_influence = table ? d->n_influence : 0;
}

es_view *es_studio_view(es_studio *s)
{
    view *w = es_calloc(1, sizeof *w);
    if (!w)
        return NULL;
    es_view *v = &w->v;
    pthread_mutex_lock(&s->lock);
    v->serial = s->serial;
    v->loading = !s->ready && !s->failed;
    v->failed = s->failed;
    v->generating = s->generating;
    memcpy(v->status, s->status, sizeof v->status);
    memcpy(v->model, s->model_name, sizeof v->model);
    memcpy(v->dictionary, s->dictionary_name, sizeof v->dictionary);
    v->layer = s->layer;
    v->d_model = s->d_model;
    v->n_features = s->n_features;
    v->n_ctx = s->n_ctx;
    v->context_used = s->context_used;
    v->tokens_per_second = s->tokens_per_second;
    v->shade_feature = s->shade;
    copy_turns(s, w);
    v->active = keep(w, s->active, (size_t)s->n_active, sizeof *s->active);
    v->n_active = v->active ? s->n_active : 0;
    for (int i = 0; i < s->n_side; i++)
        v->side[i] = (es_side){.title = keep_text(w, s->side[i].title, strlen(s->side[i].title)), .text = keep_text(w, s->side[i].text.data, s->side[i].text.len),
                               .n = (int)s->side[i].text.len, .streaming = s->side[i].streaming, .tokens = s->side[i].tokens};
    v->n_side = s->n_side;
    v->blind = s->blind && !s->blind_running ? keep(w, s->blind, 1, sizeof *s->blind) : NULL;
    v->blind_running = s->blind_running;
    v->blind_serial = s->blind_serial;
    memcpy(v->blind_text, s->blind_text, sizeof v->blind_text);
    copy_basis(s, w);
    v->learning = v->loading || s->steers ? s->learning : ES_LEARN_OFF;
    memcpy(v->learning_text, s->learning_text, sizeof v->learning_text);
    v->adapter_on = s->adapter_on;
    v->snapshot = s->snapshot;
    snprintf(v->method, sizeof v->method, "%s", es_method_name(s->method));
    memcpy(v->method_text, s->method_text, sizeof v->method_text);
    memcpy(v->plan_text, s->plan_text, sizeof v->plan_text);
    v->plan_ok = s->plan_ok;
    v->plan_running = s->plan_running;
    v->plan_serial = s->plan_serial;
    v->job = keep(w, s->job, (size_t)s->n_job, sizeof *s->job);
    v->n_job = v->job ? s->n_job : 0;
    for (int i = 0; i < v->n_job; i++)
        if (s->job[i].running)
            ((es_job *)(uintptr_t)v->job)[i].seconds = es_seconds() - s->job_start[i];
    pthread_mutex_unlock(&s->lock);
    copy_stored(s, w);
    return v;
}

void es_view_free(es_view *v)
{
    if (!v)
        return;
    view *w = (view *)v;
    for (int i = 0; i < w->n_piece; i++)
        free(w->piece[i]);
    free(w->piece);
    es_stored_drop(w->stored);
    free(w);
}

/* ---- synchronous looks ------------------------------------------------------------------------------------------------------ */

int es_studio_card(es_studio *s, int feature, es_card_copy *out, es_error *err)
{
    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&s->lock);
    bool there = s->ready && s->shown;
    pthread_mutex_unlock(&s->lock);
    if (!there)
        return es_fail(err, ES_ERR_MISSING, "there is no atlas of examples yet");
    pthread_mutex_lock(&s->shown_lock);
    es_feature_card card;
    int rc = es_atlas_card(s->shown, feature, &card, err);
    size_t tokens = 0;
    int all = rc ? 0 : card.n_example + card.n_spread;
    for (int i = 0; i < all; i++)
        tokens += (size_t)(i < card.n_example ? card.example[i] : card.spread[i - card.n_example]).n;
    char *block = rc ? NULL : es_calloc(1, (size_t)all * sizeof(es_example) + tokens * (sizeof(int32_t) + sizeof(float)) + 1);
    if (!rc && !block)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for the dashboard of feature %d", feature);
    if (!rc) {
        es_example *e = (es_example *)(void *)block;
        float *value = (float *)(void *)(e + all);
        int32_t *id = (int32_t *)(void *)(value + tokens);
        for (int i = 0; i < all; i++) {
            const es_example *from = i < card.n_example ? &card.example[i] : &card.spread[i - card.n_example];
            size_t n = (size_t)from->n;
            e[i] = *from;
            e[i].id = memcpy(id, from->id, n * sizeof *id);
            e[i].value = memcpy(value, from->value, n * sizeof *value);
            id += n;
            value += n;
        }
        out->card = card;
        out->card.example = e;
        out->card.spread = e + card.n_example;
        out->memory = block;
    }
    pthread_mutex_unlock(&s->shown_lock);
    return rc;
}

void es_card_copy_free(es_card_copy *c)
{
    free(c->memory);
    memset(c, 0, sizeof *c);
}

int es_studio_token_text(es_studio *s, int32_t id, char *out, size_t n)
{
    out[0] = 0;
    pthread_mutex_lock(&s->lock);
    bool ready = s->ready;
    pthread_mutex_unlock(&s->lock);
    size_t len = 0;
    if (!ready || id < 0 || id >= es_model_get_info(s->model)->n_vocab)
        return 0;
    const char *bytes = es_token_bytes(s->model, id, &len);
    es_buf b = {0};
    es_text_show(&b, bytes, len, true);
    size_t m = b.len < n - 1 ? b.len : n - 1;
    m = es_utf8_whole(b.data ? b.data : "", m);
    if (m)
        memcpy(out, b.data, m);
    out[m] = 0;
    es_buf_free(&b);
    return (int)m;
}

int es_studio_neighbours(es_studio *s, int feature, int n, int *out, float *cosine)
{
    pthread_mutex_lock(&s->lock);
    bool ready = s->ready && s->dictionary;
    pthread_mutex_unlock(&s->lock);
    if (!ready || feature < 0 || feature >= s->n_features)
        return 0;
    if (n > s->n_features - 1)
        n = s->n_features - 1;
    es_dictionary_neighbours(s->dictionary, feature, n, out, cosine);
    return n;
}

const float *es_studio_density(es_studio *s)
{
    pthread_mutex_lock(&s->lock);
    bool ready = s->ready;
    pthread_mutex_unlock(&s->lock);
    return ready ? s->density : NULL;
}
