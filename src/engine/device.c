/* device: one copy of a model's weights a card, quantised as they lie in the file, shared by all its contexts and trainers. A view is the model's own
 * struct with other pointers, so that forward.c and backward.c know no difference. */
#include "forward.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct es_on {
    es_cuda *card;
    es_card_options o;
    bool off;             /* the card was given up: what is opened from now on works on the processor */
    pthread_mutex_t lock; /* of all below */
    bool there;
    es_model view;
    es_pool *pool;        /* for uploads, and to give memory back */
    void *memory;
    uint64_t version;     /* of a thawed model's numbers, as they are on the card */
};

enum { ALIGN_ON = 256 };

static size_t aligned(size_t n)
{
    return (n + ALIGN_ON - 1) & ~(size_t)(ALIGN_ON - 1);
}

static size_t weight_bytes(const es_weight *w)
{
    const es_type_info *t = es_type_get((int)w->type);
    return (size_t)w->n_out * ((size_t)w->n_in / (size_t)t->block * (size_t)t->bytes);
}

/* ---- what callers see ---------------------------------------------------------------------------------------------------------- */

int es_model_use_card(es_model *m, es_cuda *card, const es_card_options *o, es_error *err)
{
    if (m->on && (!card || m->on->card == card)) {
        __atomic_store_n(&m->on->off, !card, __ATOMIC_RELAXED);
        return ES_OK;
    }
    if (!card)
        return ES_OK;
    if (m->on)
        return es_fail(err, ES_ERR_USAGE, "a model works on one card; it cannot be moved to another");
    es_on *on = es_calloc(1, sizeof *on);
    if (!on)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a model's card");
    on->card = card;
    on->o = o ? *o : (es_card_options){0};
    pthread_mutex_init(&on->lock, NULL);
    m->on = on;
    return ES_OK;
}

es_cuda *es_model_card(const es_model *m)
{
    return es_on_card(m);
}

void es_model_changed(es_model *m)
{
    m->version++;
}

es_cuda *es_on_card(const es_model *m)
{
    const es_on *on = m->on;
    return on && !__atomic_load_n(&on->off, __ATOMIC_RELAXED) && !es_cuda_lost(on->card) ? on->card : NULL;
}

int es_on_inherit(es_model *m, const es_model *base, es_error *err)
{
    return es_on_card(base) ? es_model_use_card(m, base->on->card, &base->on->o, err) : ES_OK;
}

void es_on_free(es_on *on)
{
    if (!on)
        return;
    if (on->memory)
        es_cuda_table()->release(on->pool, on->memory);
    es_pool_free(on->pool);
    free(on->view.layer);
    pthread_mutex_destroy(&on->lock);
    free(on);
}

/* ---- the view ------------------------------------------------------------------------------------------------------------------- */

typedef struct sending {
    es_on *on;
    size_t at; /* bytes used so far; memory NULL: only counted */
} sending;

static const void *send(sending *s, const void *from, size_t bytes)
{
    char *to = s->on->memory ? (char *)s->on->memory + s->at : NULL;
    s->at += aligned(bytes);
    if (to)
        es_cuda_table()->upload(s->on->pool, to, from, bytes);
    return to;
}

/* Every array of m goes over, one after the other, and the view gets its new place. */
static void send_all(sending *s, const es_model *m)
{
    es_model *v = &s->on->view;
    v->token_embd.data = send(s, m->token_embd.data, weight_bytes(&m->token_embd));
    v->head.data = m->head.data == m->token_embd.data ? v->token_embd.data : send(s, m->head.data, weight_bytes(&m->head));
    v->final_norm = send(s, m->final_norm, sizeof(float) * (size_t)m->info.d_model);
    for (int l = 0; l < m->info.n_layer; l++) {
        for (int i = 0; i < ES_N_SITES; i++)
            v->layer[l].site[i].data = send(s, m->layer[l].site[i].data, weight_bytes(&m->layer[l].site[i]));
        for (int i = 0; i < ES_N_NORMS; i++)
            if (m->layer[l].norm[i])
                v->layer[l].norm[i] = send(s, m->layer[l].norm[i], sizeof(float) * (size_t)es_norm_width(m, (es_norm)i));
    }
}

/* A thawed model's numbers are one block and stay one, so that places in it mean the same on the card. */
static const void *moved(const es_model *m, const void *to, const void *p)
{
    return p ? (const char *)to + ((const char *)p - m->own.base) : NULL;
}

static void send_own(sending *s, const es_model *m)
{
    es_model *v = &s->on->view;
    const void *to = send(s, m->own.base, m->n_own * sizeof(float));
    if (!to)
        return;
    v->own.base = (char *)(uintptr_t)to;
    v->token_embd.data = moved(m, to, m->token_embd.data);
    v->head.data = moved(m, to, m->head.data);
    v->final_norm = moved(m, to, m->final_norm);
    for (int l = 0; l < m->info.n_layer; l++) {
        for (int i = 0; i < ES_N_SITES; i++)
            v->layer[l].site[i].data = moved(m, to, m->layer[l].site[i].data);
        for (int i = 0; i < ES_N_NORMS; i++)
            v->layer[l].norm[i] = moved(m, to, m->layer[l].norm[i]);
    }
}

static void send_model(sending *s, const es_model *m)
{
    (m->own.base ? send_own : send_all)(s, m);
}

static int make_view(es_on *on, const es_model *m, es_error *err)
{
    const es_cuda_pool_options o = {.workspace = 1 << 16};
    int code = on->pool ? ES_OK : es_cuda_pool_open(&on->pool, on->card, &o, err);
    es_layer *layer = code ? NULL : es_calloc((size_t)m->info.n_layer, sizeof *layer);
    if (code || !layer)
        return code ? code : es_fail(err, ES_ERR_MEMORY, "no memory for a model's view");
    on->view = *m;
    on->view.layer = layer;
    memcpy(layer, m->layer, sizeof *layer * (size_t)m->info.n_layer);
    sending s = {.on = on};
    send_model(&s, m); /* counts */
    code = es_cuda_table()->alloc(on->pool, &on->memory, s.at, err);
    if (code && err)
        es_fail_prefix(err, "the weights of %.300s", m->info.path);
    s.at = 0;
    if (!code) {
        send_model(&s, m);
        code = es_cuda_table()->sync(on->pool, err);
    }
    if (code) {
        es_cuda_table()->release(on->pool, on->memory);
        on->memory = NULL;
        free(layer);
        on->view.layer = NULL;
        return code;
    }
    on->version = m->version;
    on->there = true;
    return ES_OK;
}

/* ---- passes --------------------------------------------------------------------------------------------------------------------- */

int es_pass_open(es_pass *p, const es_model *m, const es_kernels *table, int threads, const es_cuda_pool_options *o, es_error *err)
{
    es_on *on = m->on;
    p->model = m;
    p->card = table ? NULL : es_on_card(m);
    if (!p->card) {
        p->k = table ? table : es_kernels_cpu();
        return es_pool_open(&p->pool, threads, err);
    }
    pthread_mutex_lock(&on->lock);
    int code = on->there ? ES_OK : make_view(on, m, err);
    pthread_mutex_unlock(&on->lock);
    if (code)
        return code;
    es_cuda_pool_options own = *o;
    own.workspace = on->o.workspace;
    if (on->o.exact) {
        own.precision = ES_CUDA_F32;
        own.exact_too = false;
    }
    p->model = &on->view;
    p->k = es_cuda_table();
    return es_cuda_pool_open(&p->pool, p->card, &own, err);
}

void es_pass_close(es_pass *p)
{
    if (p->card && p->on.memory)
        p->k->release(p->pool, p->on.memory);
    free(p->on.lowrank);
    free(p->on.addend);
    free(p->on.hook);
    p->on = (es_patch_on){0};
    es_pool_free(p->pool);
    p->pool = NULL;
}

int es_pass_refresh(es_pass *p, const es_model *m, es_error *err)
{
    return !p->card || m->on->version == m->version ? ES_OK : es_pass_send_numbers(p, m, err);
}

int es_pass_send_numbers(es_pass *p, const es_model *m, es_error *err)
{
    es_on *on = m->on;
    pthread_mutex_lock(&on->lock);
    p->k->upload(p->pool, on->memory, m->own.base, m->n_own * sizeof(float));
    int code = p->k->sync(p->pool, err);
    if (!code)
        on->version = m->version;
    pthread_mutex_unlock(&on->lock);
    return code;
}

int es_pass_take(es_pass *p, es_arena *a, size_t bytes, es_error *err)
{
    void *memory = NULL;
    *a = (es_arena){0};
    int code = p->k->alloc(p->pool, &memory, bytes, err);
    if (code)
        return code;
    p->k->clear(p->pool, memory, bytes);
    *a = (es_arena){.base = memory, .size = bytes};
    return ES_OK;
}

void es_pass_release(es_pass *p, es_arena *a)
{
    if (a->base)
        p->k->release(p->pool, a->base);
    *a = (es_arena){0};
}

int es_pass_fill_rope(es_pass *p, int n_pos, es_error *err)
{
    if (!p->card) {
        es_rope_fill(p->model, n_pos, p->rope);
        return ES_OK;
    }
    es_arena a = {0}, held;
    es_rope_table host[2] = {0};
    es_rope_layout(p->model, (size_t)n_pos, &a, host);
    int code = es_arena_open(&held, a.used, err);
    if (code)
        return code;
    es_rope_layout(p->model, (size_t)n_pos, &held, host);
    es_rope_fill(p->model, n_pos, host);
    size_t bytes = sizeof(float) * (size_t)n_pos * (size_t)(p->model->info.head_dim / 2);
    for (int i = 0; i < 2 && host[i].cos; i++) {
        p->k->upload(p->pool, p->rope[i].cos, host[i].cos, bytes);
        p->k->upload(p->pool, p->rope[i].sin, host[i].sin, bytes);
    }
    es_arena_close(&held);
    return p->k->sync(p->pool, err);
}

/* ---- patches -------------------------------------------------------------------------------------------------------------------- */

/* Room for a patch of these sizes; what was there is gone. */
static int patch_room(es_pass *p, size_t entries, size_t bytes, es_error *err)
{
    es_patch_on *on = &p->on;
    if (entries > on->cap_entries) {
        es_lowrank *lowrank = realloc(on->lowrank, entries * sizeof *lowrank);
        on->lowrank = lowrank ? lowrank : on->lowrank;
        es_addend *addend = realloc(on->addend, entries * sizeof *addend);
        on->addend = addend ? addend : on->addend;
        es_hook_numbers *hook = realloc(on->hook, entries * sizeof *hook);
        on->hook = hook ? hook : on->hook;
        if (!lowrank || !addend || !hook)
            return es_fail(err, ES_ERR_MEMORY, "no memory for a patch of %zu entries", entries);
        on->cap_entries = entries;
    }
    if (bytes <= on->cap_bytes)
        return ES_OK;
    p->k->release(p->pool, on->memory);
    on->memory = NULL;
    on->cap_bytes = 0;
    void *memory = NULL;
    int code = p->k->alloc(p->pool, &memory, bytes, err);
    if (code && err)
        es_fail_prefix(err, "the adapter's matrices");
    if (!code) {
        on->memory = memory;
        on->cap_bytes = bytes;
    }
    return code;
}

static const float *send_floats(es_pass *p, size_t *at, const float *from, size_t n)
{
    float *to = (float *)(void *)(p->on.memory + *at);
    *at += aligned(n * sizeof *to);
    p->k->upload(p->pool, to, from, n * sizeof *to);
    return to;
}

static size_t lowrank_size(const es_pass *p, const es_lowrank *e, bool b)
{
    const es_weight *w = &p->model->layer[e->layer].site[e->site];
    return (size_t)e->rank * (size_t)(b ? w->n_out : w->n_in);
}

/* The hook's numbers there; bytes: NULL, or what they take is added to it and nothing is sent. */
static es_hook_numbers send_hook(es_pass *p, const es_hook_numbers *e, size_t *at, size_t *bytes)
{
    const size_t K = (size_t)e->K, d = (size_t)p->model->info.d_model;
    es_hook_numbers to = *e;
    const float **place[] = {&to.enc, &to.dec, &to.bias, &to.threshold, &to.coef, &to.map};
    const float *from[] = {e->enc, e->dec, e->bias, e->threshold, e->coef, e->map};
    const size_t n[] = {K * d, K * d, K, K, K, K * K};
    for (int i = 0; i < 6; i++) {
        if (bytes)
            *bytes += from[i] ? aligned(n[i] * sizeof(float)) : 0;
        else if (from[i])
            *place[i] = send_floats(p, at, from[i], n[i]);
    }
    return to;
}

int es_pass_upload_patch(es_pass *p, es_error *err)
{
    const es_patch *patch = p->patch;
    size_t d = (size_t)p->model->info.d_model, bytes = 0, at = 0;
    if (!p->card || !patch)
        return ES_OK;
    p->lowrank = p->on.lowrank;
    p->addend = p->on.addend;
    if (p->on.current)
        return ES_OK;
    for (int i = 0; i < patch->n_lowrank; i++) {
        const es_lowrank *e = &patch->lowrank[i];
        if (e->scale != 0 && !es_kept_param(p, e->a))
            bytes += aligned(lowrank_size(p, e, false) * sizeof(float));
        if (e->scale != 0 && !es_kept_param(p, e->b))
            bytes += aligned(lowrank_size(p, e, true) * sizeof(float));
    }
    bytes += (size_t)patch->n_addend * aligned(d * sizeof(float));
    int widest = 0;
    for (int i = 0; i < patch->n_hook; i++)
        if (patch->hook[i].numbers) {
            send_hook(p, patch->hook[i].numbers, NULL, &bytes);
            widest = patch->hook[i].numbers->K > widest ? patch->hook[i].numbers->K : widest;
        }
    bytes += aligned(3 * (size_t)ES_HOOK_ROWS * (size_t)widest * sizeof(float));
    int code = patch_room(p, (size_t)(patch->n_lowrank + patch->n_addend + patch->n_hook), bytes, err);
    if (code)
        return code;
    for (int i = 0; i < patch->n_hook; i++)
        p->on.hook[i] = patch->hook[i].numbers ? send_hook(p, patch->hook[i].numbers, &at, NULL) : (es_hook_numbers){0};
    p->on.read = (float *)(void *)(p->on.memory + at);
    at += aligned(3 * (size_t)ES_HOOK_ROWS * (size_t)widest * sizeof(float));
    for (int i = 0; i < patch->n_lowrank; i++) {
        es_lowrank *e = &p->on.lowrank[i];
        *e = patch->lowrank[i];
        if (e->scale == 0)
            continue;
        const float *a = es_kept_param(p, e->a), *b = es_kept_param(p, e->b);
        e->a = a ? a : send_floats(p, &at, e->a, lowrank_size(p, e, false));
        e->b = b ? b : send_floats(p, &at, e->b, lowrank_size(p, e, true));
    }
    for (int i = 0; i < patch->n_addend; i++) {
        es_addend *e = &p->on.addend[i];
        *e = patch->addend[i];
        if (e->scale != 0)
            e->v = send_floats(p, &at, e->v, d);
    }
    p->lowrank = p->on.lowrank; /* which may have moved */
    p->addend = p->on.addend;
    p->on.current = true;
    return ES_OK;
}
