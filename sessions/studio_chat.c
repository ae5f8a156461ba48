/* The chat thread: opens the model, then answers. It alone touches the context. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "studio.h"

/* ---- loading --------------------------------------------------------------------------------------------------------- */

static int load_dictionary(es_studio *s, es_error *err)
{
    if (!s->o.dictionary)
        return 0;
    int rc = es_dictionary_open_with(&s->dictionary, s->o.dictionary, &(es_dictionary_options){.hashes = s->o.hashes, .card = s->o.card}, err);
    if (rc || (rc = es_dictionary_check_model(s->dictionary, s->model, err)))
        return rc;
    const es_dictionary_info *i = es_dictionary_get_info(s->dictionary);
    char path[1200];
    snprintf(path, sizeof path, "%s/atlas.esa", i->folder); /* the option may name a file in it */
    es_error atlas_error;
    if (es_atlas_open(&s->atlas, path, &atlas_error))
        es_studio_say_status(s, "no atlas: %.180s", atlas_error.text);
    else if (strcmp(es_atlas_dictionary_hash(s->atlas), i->hash))
        return es_fail(err, ES_ERR_MISMATCH, "%s was made for dictionary %.12s, this one is %.12s: build the atlas again", path,
                       es_atlas_dictionary_hash(s->atlas), i->hash);
    s->density = es_dictionary_density(s->dictionary, s->atlas, &s->own_density);
    pthread_mutex_lock(&s->lock);
    snprintf(s->dictionary_name, sizeof s->dictionary_name, "%s", i->name);
    snprintf(s->dictionary_hash, sizeof s->dictionary_hash, "%s", i->hash);
    s->layer = i->layer;
    s->n_features = i->n_features;
    s->steers = es_dictionary_check_steers(s->dictionary, &atlas_error) == ES_OK;
    pthread_mutex_unlock(&s->lock);
    if (!s->steers)
        es_studio_say_status(s, "%.230s", atlas_error.text);
    return 0;
}

static int load_model(es_studio *s, es_error *err)
{
    int rc = es_model_open_within(&s->model, s->o.model, s->o.n_ctx, s->o.memory, err);
    rc = rc ? rc : es_model_use_card(s->model, s->o.card, NULL, err);
    if (rc)
        return rc;
    const es_model_info *i = es_model_get_info(s->model);
    char hash[65];
    if (es_workspace_file_hash(s->workspace, s->o.model, hash) == 0)
        es_model_set_hash(s->model, hash);
    else if ((rc = es_model_hash(s->model, hash, err)) || (rc = es_workspace_remember_hash(s->workspace, s->o.model, hash, err)))
        return rc;
    es_context_options co = {.n_ctx = s->o.n_ctx, .threads = s->o.threads};
    if ((rc = es_context_open(&s->context, s->model, &co, err)) || (rc = es_pool_open(&s->pool, s->o.threads, err)))
        return rc;
    pthread_mutex_lock(&s->lock);
    s->o.sampling = es_model_sampling(s->model, s->o.sampling);
    memcpy(s->model_hash, hash, sizeof hash);
    snprintf(s->model_name, sizeof s->model_name, "%s", i->name[0] ? i->name : i->architecture);
    s->d_model = i->d_model;
    s->n_ctx = es_context_size(s->context);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

/* The basis and the snapshot that were in use when the workspace was closed. */
static int restore(es_studio *s, es_error *err)
{
    int64_t current = 0;
    int rc = es_workspace_snapshot_current(s->workspace, &current);
    if (rc)
        return es_fail(err, rc, "the workspace does not say which snapshot is in use");
    char name[96], *at = NULL;
    if (ws_state_get(s->workspace, "basis", name, sizeof name) == 0 && (at = strrchr(name, '@'))) {
        *at = 0;
        es_basis b = {0};
        if (es_workspace_basis_load(s->workspace, name, atoi(at + 1), &b, NULL) == 0 && !strcmp(b.dictionary_hash, s->dictionary_hash))
            rc = es_studio_set_basis(s, &b, err);
        es_basis_free(&b);
    }
    if (rc || !current)
        return rc;
    es_buf bytes = {0};
    es_error why;
    es_adapter *a = NULL;
    if (es_workspace_snapshot_bytes(s->workspace, current, &bytes, &why) == 0 &&
        es_adapter_from_bytes(&a, s->model, s->dictionary, bytes.data, bytes.len, "the snapshot in use", &why) == 0) {
        pthread_mutex_lock(&s->swap);
        rc = es_studio_publish(s, a, current, err);
        pthread_mutex_unlock(&s->swap);
    } else {
        es_studio_say_status(s, "speaking with the base model: %.180s", why.text);
    }
    es_buf_free(&bytes);
    return rc;
}

static void restore_history(es_studio *s)
{
    es_snapshot_line *line = NULL;
    int n = 0;
    if (es_workspace_snapshot_list(s->workspace, &line, &n, NULL))
        return;
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < n; i++) {
        if (strcmp(line[i].basis, s->basis.name) || line[i].basis_version != s->basis.version || line[i].n != s->basis.n ||
            s->n_step == ES_HISTORY || !s->basis.n)
            continue;
        float *h = realloc(s->history, (size_t)(s->n_step + 1) * (size_t)s->basis.n * sizeof *h);
        if (!h)
            break;
        s->history = h;
        memcpy(h + (size_t)s->n_step * (size_t)s->basis.n, line[i].coefficient, (size_t)s->basis.n * sizeof *h);
        s->step_loss[s->n_step] = NAN;
        s->step_kl[s->n_step] = (float)line[i].kl;
        s->n_step++;
    }
    pthread_mutex_unlock(&s->lock);
    es_snapshot_lines_free(line, n);
}

/* ---- who speaks, swapped whole --------------------------------------------------------------------------------------------- */

/* boundary: between replies, where also a speaker with a model or messages of its own may come or go. */
static int take_incoming(es_studio *s, bool boundary, es_error *err)
{
    es_speaker *old = NULL;
    bool swapped = false;
    pthread_mutex_lock(&s->lock);
    if (s->incoming_set && (boundary || (!es_speaker_whole(s, s->incoming) && !es_speaker_whole(s, s->speaking)))) {
        old = s->speaking;
        s->speaking = s->incoming;
        s->incoming = NULL;
        s->incoming_set = false;
        swapped = true;
    }
    pthread_mutex_unlock(&s->lock);
    if (!swapped)
        return 0;
    es_context_free(s->own);
    s->own = NULL;
    es_speaker_free(old);
    if (!s->speaking || s->speaking->v.model == s->model)
        return 0;
    es_context_options co = {.n_ctx = s->o.n_ctx, .threads = s->o.threads};
    int rc = es_context_open(&s->own, s->speaking->v.model, &co, err);
    if (!rc && s->dictionary)
        es_context_set_watch(s->own, &s->watch, 1);
    if (rc) { /* the base model answers */
        es_speaker_free(s->speaking);
        s->speaking = NULL;
    }
    return rc;
}

static es_context *context_for(const es_studio *s, bool adapted)
{
    return adapted && s->own ? s->own : s->context;
}

static uint64_t speaker_id(const es_studio *s, bool adapted)
{
    return adapted && s->speaking ? s->speaking->id : 0;
}

/* What the next tokens are computed with: the patch of who speaks, or an addend for steering (shown against the base model). */
static es_patch patch_for(const es_studio *s, bool adapted, const es_addend *extra)
{
    if (extra)
        return (es_patch){.addend = extra, .n_addend = 1};
    return adapted && s->speaking ? s->speaking->v.patch : (es_patch){0};
}

/* ---- active features of the tokens that are fed ----------------------------------------------------------------------------- */

static bool reserve_row(es_turn_state *t, size_t values)
{
    if (t->n_row + 2 > t->cap_row) {
        int cap = t->cap_row ? 2 * t->cap_row : 64;
        size_t *row = realloc(t->row, (size_t)(cap + 1) * sizeof *row);
        if (!row)
            return false;
        if (!t->row)
            row[0] = 0;
        t->row = row;
        t->cap_row = cap;
    }
    size_t need = t->row[t->n_row] + values;
    if (need > t->cap_value) {
        size_t cap = 2 * need + 256;
        int32_t *f = realloc(t->feature, cap * sizeof *f);
        if (f)
            t->feature = f;
        float *v = realloc(t->value, cap * sizeof *v);
        if (v)
            t->value = v;
        if (!f || !v)
            return false;
        t->cap_value = cap;
    }
    return true;
}

static void listen(void *user, int layer, int pos0, const float *h, int T, int d)
{
    (void)layer;
    (void)pos0;
    (void)d;
    es_studio *s = user;
    es_turn_state *t = s->listening;
    if (!t || es_dictionary_encode(s->dictionary, s->pool, h, T, &s->sparse, NULL))
        return;
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < T; i++) {
        size_t a = s->sparse.start[i], n = s->sparse.start[i + 1] - a;
        if (!reserve_row(t, n))
            break;
        size_t at = t->row[t->n_row];
        if (n) { /* until a feature is active there is no room for any */
            memcpy(t->feature + at, s->sparse.index + a, n * sizeof *t->feature);
            memcpy(t->value + at, s->sparse.value + a, n * sizeof *t->value);
        }
        t->row[++t->n_row] = at + n;
    }
    pthread_mutex_unlock(&s->lock);
}

static int by_activation(const void *a, const void *b)
{
    float x = ((const es_active *)a)->activation, y = ((const es_active *)b)->activation;
    return (x < y) - (x > y);
}

/* The strongest features over a turn's rows: the peak relative to what the feature usually reaches would favour rare ones; the peak
 * itself is what the person sees shaded, so that orders the list. */
static int strongest(const es_studio *s, const es_turn_state *t, es_active *out, int max)
{
    if (!t->n_row)
        return 0;
    es_active *all = calloc((size_t)s->n_features, sizeof *all);
    if (!all)
        return 0;
    for (size_t i = 0; i < t->row[t->n_row]; i++) {
        es_active *a = &all[t->feature[i]];
        a->feature = t->feature[i];
        a->mean += t->value[i] / (float)t->n_row;
        if (t->value[i] > a->activation)
            a->activation = t->value[i];
    }
    int n = 0;
    for (int f = 0; f < s->n_features; f++)
        if (all[f].activation > 0)
            all[n++] = all[f];
    qsort(all, (size_t)n, sizeof *all, by_activation);
    if (n > max)
        n = max;
    memcpy(out, all, (size_t)n * sizeof *out);
    free(all);
    return n;
}

/* ---- generating ------------------------------------------------------------------------------------------------------------------- */

typedef struct sink { /* where tokens go */
    es_turn_state *turn; /* or */
    es_side_state *side;
} sink;

static int said_length(unsigned char c)
{
    return c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;
}

static void settle(es_whole *w, es_buf *out, bool end)
{
    while (w->n > 0) {
        int want = said_length((unsigned char)w->byte[0]), have = 1, take = 1;
        while (have < w->n && have < want && ((unsigned char)w->byte[have] & 0xc0) == 0x80)
            have++;
        if (want && have == want && w->byte[0] && es_utf8_whole(w->byte, (size_t)want) == (size_t)want)
            es_buf_add(out, w->byte, (size_t)(take = want));
        else if (!end && want && have < want && have == w->n)
            return; /* the rest may come with the next token */
        else
            es_buf_str(out, "\xef\xbf\xbd");
        memmove(w->byte, w->byte + take, (size_t)(w->n -= take));
    }
}

void es_whole_add(es_whole *w, const char *bytes, size_t n, es_buf *out)
{
    for (size_t i = 0; i < n; i++) {
        w->byte[w->n++] = bytes[i];
        settle(w, out, false); /* leaves at most 3 bytes */
    }
}

void es_whole_end(es_whole *w, es_buf *out)
{
    settle(w, out, true);
}

static void put(es_studio *s, sink *k, es_whole *w, const char *bytes, size_t n)
{
    pthread_mutex_lock(&s->lock);
    if (k->turn) {
        es_turn_state *t = k->turn;
        es_whole_add(w, bytes, n, &t->text);
        if (t->n_token == t->cap_token) {
            int cap = t->cap_token ? 2 * t->cap_token : 128;
            int *e = realloc(t->token_end, (size_t)cap * sizeof *e);
            if (e) {
                t->token_end = e;
                t->cap_token = cap;
            }
        }
        if (t->n_token < t->cap_token)
            t->token_end[t->n_token++] = (int)t->text.len;
    } else {
        es_whole_add(w, bytes, n, &k->side->text);
        k->side->tokens++;
    }
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

/* Generates after what the cache holds. follow: adapter swaps are taken between tokens (a chat), otherwise `patch` stays. Returns 0,
 * ES_ERR_CANCELLED when it was stopped, ES_ERR_LIMIT when the cache is full, or another error. */
static int generate(es_studio *s, sink *k, bool follow, bool adapted, const es_sampling *how, bool *cut, es_error *err)
{
    es_whole w = {0};
    es_context *c = context_for(s, adapted);
    int rc = 0, n = 0;
    double start = es_seconds();
    int64_t spoke = 0;
    *cut = true;
    for (; n < s->o.max_tokens; n++) {
        if (__atomic_load_n(&s->stop, __ATOMIC_RELAXED) || es_studio_quitting(s)) {
            rc = ES_ERR_CANCELLED;
            break;
        }
        int32_t id = es_sample(c, how, &s->rng);
        if (es_token_ends(s->model, id)) {
            *cut = false;
            break;
        }
        size_t len = 0;
        const char *b = es_token_bytes(s->model, id, &len);
        put(s, k, &w, b, es_token_is_control(s->model, id) ? 0 : len);
        if (follow) {
            if ((rc = take_incoming(s, false, err)))
                break;
            es_patch p = patch_for(s, adapted, NULL);
            es_context_set_patch(c, &p);
            rc = es_context_feed(c, &id, 1, NULL, err);
            es_context_set_patch(c, NULL);
            spoke = adapted && s->speaking ? s->speaking->snapshot : 0;
            if (speaker_id(s, adapted) != s->cached)
                s->cached = UINT64_MAX; /* a swap in the middle: the next turn builds the cache again */
        } else {
            rc = es_context_feed(c, &id, 1, NULL, err);
        }
        if (rc)
            break;
        pthread_mutex_lock(&s->lock);
        s->tokens_per_second = (n + 1) / (es_seconds() - start + 1e-9);
        s->context_used = es_context_length(c);
        if (k->turn && k->turn->snapshot != spoke)
            k->turn->snapshot = spoke;
        pthread_mutex_unlock(&s->lock);
    }
    pthread_mutex_lock(&s->lock);
    es_buf *text = k->turn ? &k->turn->text : &k->side->text;
    es_whole_end(&w, text);
    if (k->turn && k->turn->n_token)
        k->turn->token_end[k->turn->n_token - 1] = (int)text->len;
    if (text->failed && !rc)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for the reply");
    pthread_mutex_unlock(&s->lock);
    return rc;
}

/* With the messages of who speaks before the conversation. */
static int render(es_studio *s, bool adapted, const es_message *m, size_t n, es_ids *ids, es_error *err)
{
    if (!adapted || !s->speaking || !s->speaking->v.n_prefix)
        return es_chat_render(s->model, m, n, true, ids, err);
    es_message *all = NULL;
    int n_all = 0, rc = es_variant_conversation(&s->speaking->v, m, (int)n, &all, &n_all, err);
    rc = rc ? rc : es_chat_render(s->model, all, (size_t)n_all, true, ids, err);
    free(all);
    return rc;
}

/* The conversation as messages: what the person corrected is what the model is shown as said. Oldest turns are left out until there is
 * room for a reply. ids is filled. */
static int prompt_of(es_studio *s, bool adapted, int n_turn, es_ids *ids, int *dropped, es_error *err)
{
    int rc = 0;
    *dropped = 0;
    int room = s->o.max_tokens < s->n_ctx / 2 ? s->o.max_tokens : s->n_ctx / 2;
    for (int first = 0; first < n_turn; first++) {
        if (first && s->turn[first].role != 'u')
            continue;
        es_message *m = calloc((size_t)(n_turn - first) + 1, sizeof *m);
        if (!m)
            return es_fail(err, ES_ERR_MEMORY, "no memory for the conversation");
        size_t n = 0;
        if (s->o.system && s->o.system[0])
            m[n++] = (es_message){"system", s->o.system};
        pthread_mutex_lock(&s->lock); /* an edit may free a text that is being read */
        for (int i = first; i < n_turn; i++) {
            const es_turn_state *t = &s->turn[i];
            m[n++] = (es_message){t->role == 'u' ? "user" : "assistant", t->edited ? t->edited : t->text.data ? t->text.data : ""};
        }
        ids->n = 0;
        rc = render(s, adapted, m, n, ids, err);
        pthread_mutex_unlock(&s->lock);
        free(m);
        if (rc || (int)ids->n + room <= s->n_ctx)
            return rc;
        *dropped = first + 1;
    }
    return es_fail(err, ES_ERR_LIMIT, "the question has %zu tokens and the context only %d: shorten it", ids->n, s->n_ctx);
}

/* Makes the cache hold ids under what now speaks. The cache belongs to one snapshot: after a swap it is built again from nothing, at
 * this turn's boundary. */
static int load_prompt(es_studio *s, const es_ids *ids, bool adapted, es_error *err)
{
    es_context *c = context_for(s, adapted);
    uint64_t speaker = speaker_id(s, adapted);
    int rc = speaker != s->cached ? es_context_truncate(c, 0, err) : 0;
    if (rc)
        return rc;
    s->cached = speaker;
    es_patch p = patch_for(s, adapted, NULL);
    es_context_set_patch(c, &p);
    s->listening = NULL;
    rc = es_context_sync(c, ids->id, (int)ids->n, NULL, &s->stop, err);
    es_context_set_patch(c, NULL);
    return rc;
}

static es_turn_state *add_turn(es_studio *s, char role, const char *text, es_error *err)
{
    pthread_mutex_lock(&s->lock);
    if (s->n_turn == s->cap_turn) {
        int cap = s->cap_turn ? 2 * s->cap_turn : 16;
        es_turn_state *t = realloc(s->turn, (size_t)cap * sizeof *t);
        if (!t) {
            pthread_mutex_unlock(&s->lock);
            es_fail(err, ES_ERR_MEMORY, "no memory for another turn");
            return NULL;
        }
        s->turn = t;
        s->cap_turn = cap;
    }
    es_turn_state *t = &s->turn[s->n_turn++];
    memset(t, 0, sizeof *t);
    t->role = role;
    es_buf_str(&t->text, text);
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
    return t;
}

static void drop_last_turn(es_studio *s)
{
    pthread_mutex_lock(&s->lock);
    es_studio_turn_free(&s->turn[--s->n_turn]);
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

/* Answers the conversation as it stands (its last turn is the person's). */
static void answer(es_studio *s)
{
    es_error err;
    es_ids ids = {0};
    int dropped = 0;
    pthread_mutex_lock(&s->lock);
    s->generating = true;
    bool adapted = s->adapter_on;
    es_sampling how = s->o.sampling;
    how.temperature = s->temperature;
    int n_turn = s->n_turn;
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
    es_rng_seed(&s->rng, how.seed + (uint64_t)n_turn + 1000003u * s->again);

    int rc = take_incoming(s, true, &err);
    rc = rc ? rc : prompt_of(s, adapted, n_turn, &ids, &dropped, &err);
    es_turn_state *t = NULL;
    if (!rc && !(t = add_turn(s, 'a', "", &err)))
        rc = err.code;
    if (t) {
        pthread_mutex_lock(&s->lock);
        t->streaming = true;
        pthread_mutex_unlock(&s->lock);
    }
    if (!rc)
        rc = load_prompt(s, &ids, adapted, &err);
    bool cut = false;
    if (!rc) {
        s->listening = t;
        sink k = {.turn = t};
        rc = generate(s, &k, true, adapted, &how, &cut, &err);
        s->listening = NULL;
    }
    bool cancelled = rc == ES_ERR_CANCELLED;
    if (t) {
        int64_t id = 0;
        es_error saving;
        pthread_mutex_lock(&s->lock);
        int64_t snapshot = t->snapshot;
        pthread_mutex_unlock(&s->lock);
        if (t->text.len || !rc) {
            if (ws_message_add(s->workspace, s->session, 'a', t->text.data ? t->text.data : "", cut, snapshot, &id, &saving))
                es_studio_say_status(s, "the reply is not saved: %.180s", saving.text);
        }
        pthread_mutex_lock(&s->lock);
        t->id = id;
        t->streaming = false;
        t->stopped = cut;
        s->n_active = s->dictionary ? strongest(s, t, s->active, ES_ACTIVE) : 0;
        pthread_mutex_unlock(&s->lock);
        if (!t->text.len && rc)
            drop_last_turn(s);
    }
    es_ids_free(&ids);
    if (rc && !cancelled)
        es_studio_say_status(s, "%.230s", err.text);
    else if (cancelled)
        es_studio_say_status(s, "stopped");
    else if (dropped)
        es_studio_say_status(s, "the context is full: the oldest %d turn%s left out", dropped, dropped == 1 ? " is" : "s are");
    pthread_mutex_lock(&s->lock);
    s->generating = false;
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

static void say(es_studio *s, const char *text)
{
    es_error err;
    es_turn_state *t = add_turn(s, 'u', text, &err);
    int64_t id = 0;
    if (!t || ws_message_add(s->workspace, s->session, 'u', text, false, 0, &id, &err)) {
        es_studio_say_status(s, "%.230s", err.text);
        if (t)
            drop_last_turn(s);
        return;
    }
    pthread_mutex_lock(&s->lock);
    t->id = id;
    pthread_mutex_unlock(&s->lock);
    answer(s);
}

static void regenerate(es_studio *s)
{
    pthread_mutex_lock(&s->lock);
    bool has = s->n_turn && s->turn[s->n_turn - 1].role == 'a';
    bool can = s->n_turn > (has ? 1 : 0);
    pthread_mutex_unlock(&s->lock);
    if (!can) {
        es_studio_say_status(s, "there is no reply to make again");
        return;
    }
    if (has) {
        es_error err;
        int64_t id = s->turn[s->n_turn - 1].id;
        if (id && ws_message_drop(s->workspace, id, &err)) {
            es_studio_say_status(s, "%.230s", err.text);
            return;
        }
        drop_last_turn(s);
    }
    s->again++;
    answer(s);
}

/* ---- side by side ------------------------------------------------------------------------------------------------------------------ */

static void side_open(es_studio *s, const char *left, const char *right)
{
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < 2; i++) {
        es_buf_clear(&s->side[i].text);
        s->side[i].tokens = 0;
        s->side[i].streaming = false;
        snprintf(s->side[i].title, sizeof s->side[i].title, "%s", i ? right : left);
    }
    s->n_side = 2;
    s->generating = true;
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

/* One of two replies to a fresh question. The cache starts from nothing each time, so the same question under the same snapshot gives
 * the same bytes at temperature 0. */
static int side_run(es_studio *s, int which, const char *text, bool adapted, const es_addend *extra, es_error *err)
{
    es_message m[2];
    size_t n = 0;
    if (s->o.system && s->o.system[0])
        m[n++] = (es_message){"system", s->o.system};
    m[n++] = (es_message){"user", text};
    es_ids ids = {0};
    int rc = take_incoming(s, true, err);
    rc = rc ? rc : render(s, adapted, m, n, &ids, err);
    es_patch p = patch_for(s, adapted, extra);
    es_context *c = context_for(s, adapted);
    if (!rc)
        rc = es_context_truncate(c, 0, err);
    if (!rc && (int)ids.n + 1 >= s->n_ctx)
        rc = es_fail(err, ES_ERR_LIMIT, "the question has %zu tokens and the context only %d: shorten it", ids.n, s->n_ctx);
    pthread_mutex_lock(&s->lock);
    s->side[which].streaming = true;
    es_sampling how = s->o.sampling;
    how.temperature = s->temperature;
    pthread_mutex_unlock(&s->lock);
    es_rng_seed(&s->rng, how.seed);
    if (!rc) {
        es_context_set_patch(c, &p);
        rc = es_context_sync(c, ids.id, (int)ids.n, NULL, &s->stop, err);
        bool cut = false;
        sink k = {.side = &s->side[which]};
        if (!rc)
            rc = generate(s, &k, false, adapted, &how, &cut, err);
        es_context_set_patch(c, NULL);
    }
    pthread_mutex_lock(&s->lock);
    s->side[which].streaming = false;
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
    es_ids_free(&ids);
    return rc;
}

static void side_by_side(es_studio *s, const char *text, bool second_adapted, const es_addend *extra, const char *left, const char *right)
{
    es_error err;
    side_open(s, left, right);
    s->listening = NULL;
    int rc = side_run(s, 0, text, false, NULL, &err);
    if (!rc)
        rc = side_run(s, 1, text, second_adapted, extra, &err);
    es_error ignored;
    es_context_truncate(s->context, 0, &ignored); /* the chat's own turn builds its cache again */
    if (s->own)
        es_context_truncate(s->own, 0, &ignored);
    s->cached = 0;
    if (rc)
        es_studio_say_status(s, "%.230s", rc == ES_ERR_CANCELLED ? "stopped" : err.text);
    pthread_mutex_lock(&s->lock);
    s->generating = false;
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
}

static void compare(es_studio *s, const char *text)
{
    char right[160];
    pthread_mutex_lock(&s->lock);
    if (s->method != ES_METHOD_FEATURES)
        snprintf(right, sizeof right, "%s", es_method_name(s->method));
    else if (s->snapshot)
        snprintf(right, sizeof right, "adapted, snapshot %lld", (long long)s->snapshot);
    else
        snprintf(right, sizeof right, "nothing learned yet: base again");
    pthread_mutex_unlock(&s->lock);
    side_by_side(s, text, true, NULL, "base", right);
}

static void steer(es_studio *s, int feature, float strength, const char *text)
{
    if (!s->dictionary || feature < 0 || feature >= s->n_features) {
        es_studio_say_status(s, "there is no feature %d to steer with", feature);
        return;
    }
    es_error err;
    if (es_dictionary_check_steers(s->dictionary, &err)) {
        es_studio_say_status(s, "%.230s", err.text);
        return;
    }
    char right[160];
    snprintf(right, sizeof right, "feature %d, strength %.3g", feature, strength);
    float *row = es_calloc((size_t)s->d_model, sizeof *row);
    if (!row) {
        es_studio_say_status(s, "not enough memory to steer");
        return;
    }
    es_dictionary_rows(s->dictionary, feature, 1, row);
    es_addend extra = {.layer = s->layer, .scale = strength, .v = row};
    side_by_side(s, text, false, &extra, "base", right);
    free(row);
}

/* ---- a blind test ------------------------------------------------------------------------------------------------------------------- */

/* A context of its own: the conversation's cache stays as it is. */
static void blind(es_studio *s, int feature, uint64_t seed)
{
    es_error err = {0};
    es_blind_pool *p = NULL;
    es_blind *b = calloc(1, sizeof *b);
    pthread_mutex_lock(&s->lock);
    s->blind_running = true;
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
    int rc = b ? ES_OK : es_fail(&err, ES_ERR_MEMORY, "no memory for a test");
    if (!rc && (!s->dictionary || !s->atlas))
        rc = es_fail(&err, ES_ERR_MISSING, "a blind test needs the dictionary's atlas of examples");
    if (!rc) {
        pthread_mutex_lock(&s->atlas_lock);
        rc = es_blind_gather(&p, s->atlas, s->dictionary, feature, seed, &err);
        pthread_mutex_unlock(&s->atlas_lock);
    }
    if (!rc)
        rc = es_blind_make(b, p, s->model, s->dictionary, s->o.threads, &s->stop, &err);
    es_blind_pool_free(p);
    pthread_mutex_lock(&s->lock);
    free(s->blind);
    s->blind = rc ? NULL : b;
    s->blind_running = false;
    s->blind_serial++;
    snprintf(s->blind_text, sizeof s->blind_text, "%.199s", rc == ES_ERR_CANCELLED ? "stopped" : rc ? err.text : "");
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
    if (rc)
        free(b);
}

/* ---- the thread ------------------------------------------------------------------------------------------------------------------------- */

static void new_chat(es_studio *s)
{
    es_error err;
    int64_t id = 0;
    if (ws_session_new(s->workspace, s->model_hash, &id, &err)) {
        es_studio_say_status(s, "%.230s", err.text);
        return;
    }
    pthread_mutex_lock(&s->lock);
    s->session = id;
    for (int i = 0; i < s->n_turn; i++)
        es_studio_turn_free(&s->turn[i]);
    s->n_turn = 0;
    s->n_active = 0;
    s->n_side = 0;
    s->status[0] = 0;
    es_studio_changed(s);
    pthread_mutex_unlock(&s->lock);
    if (s->own)
        es_context_truncate(s->own, 0, &err);
    es_context_truncate(s->context, 0, &err); /* the same question in a new chat is computed the same way, to the byte */
}

static void obey(es_studio *s, const es_command *c)
{
    switch (c->kind) {
    case ES_CMD_SAY: say(s, c->text); break;
    case ES_CMD_NEW_CHAT: new_chat(s); break;
    case ES_CMD_REGENERATE: regenerate(s); break;
    case ES_CMD_COMPARE: compare(s, c->text); break;
    case ES_CMD_STEER: steer(s, c->a, c->x, c->text); break;
    case ES_CMD_BLIND: blind(s, c->a, strtoull(c->text, NULL, 10)); break;
    default: break;
    }
}

static int load(es_studio *s, es_error *err)
{
    int rc = load_model(s, err);
    if (!rc)
        rc = load_dictionary(s, err);
    if (!rc && s->dictionary) {
        s->watch = (es_watch){.layer = s->layer, .fn = listen, .user = s, .point = es_dictionary_point(s->dictionary)};
        es_context_set_watch(s->context, &s->watch, 1);
    }
    if (!rc)
        rc = ws_session_new(s->workspace, s->model_hash, &s->session, err);
    if (!rc)
        rc = restore(s, err);
    return rc || !s->dictionary ? rc : es_looks_start(s, err);
}

void *es_studio_chat_main(void *studio)
{
    es_studio *s = studio;
    es_error err;
    int rc = load(s, &err);
    if (!rc && s->dictionary)
        restore_history(s);
    if (!rc)
        es_maker_recall(s);
    pthread_mutex_lock(&s->lock);
    s->ready = !rc;
    s->stale = true; /* directions are the dictionary's: a view drawn before found none */
    s->failed = rc != 0;
    if (rc || es_chat_warning(s->model))
        snprintf(s->status, sizeof s->status, "%.239s", rc ? err.text : es_chat_warning(s->model));
    es_studio_changed(s);
    pthread_cond_broadcast(&s->work_wake);
    while (!rc && !s->quit) {
        es_command *c = s->chat_queue.head;
        if (!c) {
            pthread_cond_wait(&s->chat_wake, &s->lock);
            continue;
        }
        if (!(s->chat_queue.head = c->next))
            s->chat_queue.tail = NULL;
        __atomic_store_n(&s->stop, false, __ATOMIC_RELAXED);
        pthread_mutex_unlock(&s->lock);
        obey(s, c);
        es_studio_command_free(c);
        es_studio_hear_card(s);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}
