/* Training from texts without a harvest on disk. The steps are those of every training (train_step.c); here is where their rows come from. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reading.h"
#include "train.h"

typedef struct lane { /* a place: its rows, its training, its dictionary */
    struct stream *s;
    int d;
    uint16_t *rows;  /* [capacity, d]: the buffer */
    uint16_t *fresh; /* [ES_READING_TOKENS, d]: what was read last and has no place in it yet */
    float norm_limit;
    es_train *t;     /* NULL: it was finished before */
    char folder[1100], about[160];
    es_train_home home;
    es_train_about what;
} lane;

typedef struct stream {
    es_model *m;
    const es_stream *from;
    const es_dictionary_training *o;
    char model_hash[65], path[1200]; /* of stream.json */
    json_t *about;
    es_documents docs;
    es_reading r;
    lane lane[ES_PLACES_MAX]; /* [r.n_place] */
    size_t capacity, batch;
    uint32_t *order; /* [capacity] of the buffer's rows: first those of this step's batch, then the next one's, which a card loads ahead */
    es_rng rng;
    size_t fresh, taken; /* of each lane's fresh rows: how many there are, and have a place */
    /* where the text is: documents are read in another order each pass */
    uint64_t pass, document, at, of_pass, distinct; /* at: token of it; of_pass: rows of this pass; distinct: rows of the first pass */
    es_ids ids;
    bool tokenized; /* ids are the document's */
} stream;

/* ---- text to rows ---------------------------------------------------------------------------------------------------------------------- */

static int take(void *user, int number, const uint16_t *rows, size_t n, es_error *err)
{
    (void)err;
    stream *s = user;
    memcpy(s->lane[number].fresh, rows, n * (size_t)s->lane[number].d * sizeof *rows);
    s->fresh = n;
    s->taken = 0;
    return ES_OK;
}

static int begin_pass(stream *s, es_error *err)
{
    es_documents_close(&s->docs);
    s->tokenized = false;
    uint64_t seed = s->from->reading.seed;
    return es_documents_open(&s->docs, s->from->file, s->from->n_file, seed ? seed + s->pass : 0, err);
}

static bool at_end(const stream *s)
{
    const uint64_t most = s->from->reading.max_tokens;
    return s->document >= s->docs.n || (most && s->of_pass >= most);
}

static int turn_over(stream *s, es_error *err)
{
    if (s->of_pass == 0)
        return es_fail(err, ES_ERR_USAGE, "the files hold no text to train on");
    s->pass++;
    s->document = s->at = s->of_pass = 0;
    return begin_pass(s, err);
}

/* Sequences into the batch until one does not fit; that one is the next's first. *full: so it is. */
static int gather(stream *s, bool *full, es_error *err)
{
    const size_t context = (size_t)s->from->reading.context, skip = (size_t)s->r.skip;
    const uint64_t most = s->from->reading.max_tokens;
    int rc = s->tokenized ? ES_OK : es_documents_ids(&s->docs, (size_t)s->document, s->m, &s->ids, err);
    s->tokenized = !rc;
    while (!rc && s->at < s->ids.n && !(most && s->of_pass >= most)) {
        size_t n = s->ids.n - s->at < context ? s->ids.n - (size_t)s->at : context;
        if (most && s->of_pass + n - skip > most)
            n = (size_t)(most - s->of_pass) + skip;
        if (n > skip && !es_reading_add(&s->r, s->ids.id + s->at, n, (uint32_t)s->document)) {
            *full = true;
            return ES_OK;
        }
        s->of_pass += n > skip ? n - skip : 0;
        s->distinct += s->pass == 0 && n > skip ? n - skip : 0;
        s->at += context;
    }
    s->document++;
    s->at = 0;
    s->tokenized = false;
    return rc;
}

/* A batch of text through the model: fresh rows. */
static int read_batch(stream *s, es_error *err)
{
    bool full = false;
    int rc = ES_OK;
    while (!full && !rc) {
        if (at_end(s) && es_reading_rows(&s->r))
            break;
        rc = at_end(s) ? turn_over(s, err) : gather(s, &full, err);
    }
    rc = rc ? rc : es_reading_run(&s->r, err);
    es_reading_clear(&s->r);
    return rc;
}

/* New rows in the places of the first n of the order. */
static int refill(stream *s, size_t n, const es_progress *progress, es_error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (s->taken == s->fresh) {
            if (es_progress_cancelled(progress))
                return es_fail(err, ES_ERR_CANCELLED, "training was cancelled while its buffer was filled; the same command goes on with it");
            int rc = read_batch(s, err);
            if (rc)
                return rc;
            if (n == s->capacity)
                es_progress_report(progress, "filling the buffer", (double)i, (double)n, "tokens");
        }
        for (int k = 0; k < s->r.n_place; k++) {
            const lane *l = &s->lane[k];
            memcpy(l->rows + (size_t)s->order[i] * (size_t)l->d, l->fresh + s->taken * (size_t)l->d, (size_t)l->d * sizeof *l->rows);
        }
        s->taken++;
    }
    return ES_OK;
}

static void exchange(stream *s, size_t i, size_t k)
{
    uint32_t was = s->order[i];
    s->order[i] = s->order[k];
    s->order[k] = was;
}

/* The n from `from` on become a random choice of all from there on. */
static void mix(stream *s, size_t from, size_t n)
{
    for (size_t i = from; i < from + n && i + 1 < s->capacity; i++)
        exchange(s, i, i + (size_t)es_rng_below(&s->rng, s->capacity - i));
}

/* The next batch comes to the front, and another is chosen behind it. */
static void move_on(stream *s)
{
    for (size_t i = 0; i < s->batch; i++)
        exchange(s, i, s->batch + i);
    mix(s, s->batch, s->batch);
}

static void read_row(const void *user, size_t row, float *out)
{
    const lane *l = user;
    es_f16_to_f32(l->rows + (size_t)l->s->order[row] * (size_t)l->d, out, (size_t)l->d);
}

static int find_limit(lane *l, es_error *err)
{
    size_t n = l->s->capacity < ES_NORM_ROWS ? l->s->capacity : ES_NORM_ROWS, d = (size_t)l->d;
    float *norm = es_calloc(n + d, sizeof *norm);
    if (!norm)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to train");
    for (size_t i = 0; i < n; i++) {
        read_row(l, i, norm + n);
        norm[i] = sqrtf(es_vector()->dot(norm + n, norm + n, d));
    }
    l->norm_limit = es_norm_limit(norm, n);
    free(norm);
    return ES_OK;
}

/* ---- what stream.json says ----------------------------------------------------------------------------------------------------------------- */

/* What must be the same for a run to go on. */
static int describe(stream *s, es_error *err)
{
    const es_harvest_options *h = &s->from->reading;
    json_t *places = json_array();
    for (int i = 0; i < s->r.n_place; i++) {
        char name[32];
        es_hook_place_name(s->r.place[i].at, name);
        json_array_append_new(places, json_string(name));
    }
    s->about = json_pack("{s:s, s:i, s:s, s:o, s:o, s:I, s:i, s:b, s:I, s:I, s:b}", "format", "espalier-stream", "version", 1, "model", s->model_hash, "files",
                         es_documents_files(&s->docs), "places", places, "buffer", (json_int_t)s->capacity, "context", h->context, "skip_first", h->skip_first, "seed",
                         (json_int_t)h->seed, "max_tokens", (json_int_t)h->max_tokens, "exact", h->exact || es_kernels_half() == es_kernels_cpu());
    return s->about ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory to describe the stream");
}

static int save(stream *s, es_error *err)
{
    int rc = ES_OK;
    json_t *v = json_deep_copy(s->about), *limits = json_array();
    for (int i = 0; i < s->r.n_place && !rc; i++) {
        const lane *l = &s->lane[i];
        rc = l->t ? es_train_save(l->t, l->home.checkpoint, l->about, err) : ES_OK;
        json_array_append_new(limits, isfinite(l->norm_limit) ? json_real((double)l->norm_limit) : json_null());
    }
    json_object_set_new(v, "norm_limit", limits);
    const struct { const char *name; uint64_t n; } count[] = {{"pass", s->pass}, {"document", s->document}, {"at", s->at}, {"of_pass", s->of_pass}, {"distinct", s->distinct}};
    for (size_t i = 0; i < sizeof count / sizeof *count; i++)
        json_object_set_new(v, count[i].name, json_integer((json_int_t)count[i].n));
    char *text = rc ? NULL : json_dumps(v, JSON_INDENT(1));
    if (!rc && !text)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to write stream.json");
    rc = rc ? rc : es_file_write(s->path, text, strlen(text), err);
    free(text);
    json_decref(v);
    return rc;
}

static int take_counts(stream *s, json_t *v, es_error *err)
{
    const struct { const char *name; uint64_t *n; } count[] = {{"pass", &s->pass}, {"document", &s->document}, {"at", &s->at}, {"of_pass", &s->of_pass}, {"distinct", &s->distinct}};
    json_t *limits = json_object_get(v, "norm_limit"), *x;
    for (size_t i = 0; i < sizeof count / sizeof *count; i++) {
        x = json_object_get(v, count[i].name);
        if (!json_is_integer(x) || json_integer_value(x) < 0)
            return es_fail(err, ES_ERR_FORMAT, "%s: lacks its counts", s->path);
        *count[i].n = (uint64_t)json_integer_value(x);
    }
    if (json_array_size(limits) != (size_t)s->r.n_place)
        return es_fail(err, ES_ERR_FORMAT, "%s: lacks its limits", s->path);
    for (int i = 0; i < s->r.n_place; i++) {
        x = json_array_get(limits, (size_t)i);
        s->lane[i].norm_limit = json_is_number(x) && json_number_value(x) > 0 ? (float)json_number_value(x) : INFINITY;
    }
    return ES_OK;
}

/* Takes over where an earlier run with the same settings was. *found: there was one. */
static int resume(stream *s, bool *found, es_error *err)
{
    json_t *old = NULL, *want;
    const char *key;
    *found = access(s->path, F_OK) == 0;
    int rc = *found ? es_json_file(&old, s->path, err) : ES_OK;
    if (rc || !*found)
        return rc;
    json_object_foreach(s->about, key, want)
        if (!rc && !json_equal(want, json_object_get(old, key)))
            rc = es_fail(err, ES_ERR_MISMATCH, "%s: there is a training with another \"%s\": use that, give another folder, or remove this one", s->path, key);
    rc = rc ? rc : take_counts(s, old, err);
    json_decref(old);
    return rc;
}

/* ---- opening -------------------------------------------------------------------------------------------------------------------------------- */

static int open_lane(stream *s, int i, const char *dir, es_error *err)
{
    lane *l = &s->lane[i];
    char name[32];
    *l = (lane){.s = s, .d = s->r.place[i].d, .norm_limit = INFINITY};
    es_hook_place_name(s->r.place[i].at, name);
    if ((size_t)snprintf(l->folder, sizeof l->folder, "%s%s%s", dir ? dir : "", s->from->itself ? "" : "/", s->from->itself ? "" : name) >= 1000)
        return es_fail(err, ES_ERR_USAGE, "%.80s...: the path is too long", dir);
    int rc = es_train_home_of(&l->home, l->folder, err);
    if (rc)
        return rc;
    l->rows = es_calloc(s->capacity, (size_t)l->d * sizeof *l->rows);
    l->fresh = es_calloc(ES_READING_TOKENS, (size_t)l->d * sizeof *l->fresh);
    if (!l->rows || !l->fresh)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a buffer of %zu rows of %d numbers (%zu MB)", s->capacity, l->d, s->capacity * (size_t)l->d * 2 >> 20);
    l->what = (es_train_about){s->r.place[i].at, es_model_get_info(s->m)->name, s->model_hash, s->from->reading.context, 0, NULL};
    char what[120];
    es_train_settings(&l->what, what, sizeof what);
    snprintf(l->about, sizeof l->about, "stream=%zu %s", s->capacity, what);
    if (dir && es_train_finished(&l->home)) {
        es_train_drop_checkpoint(&l->home); /* killed just before it did that itself */
        return ES_OK;
    }
    es_dictionary_training o = *s->o;
    o.site = l->what.at.hook;
    rc = es_train_open(&l->t, &o, &(es_train_rows){.n = s->capacity, .d = l->d, .read = read_row, .user = l, .norm_limit = INFINITY}, err);
    if (!rc)
        l->t->queue = true;
    return rc;
}

/* dir NULL: for a plan, nothing is looked for on disk. */
static int open_stream(stream *s, es_model *m, const es_stream *from, size_t capacity, const char *dir, const es_dictionary_training *o, es_error *err)
{
    int rc = es_reading_check(m, &from->reading, err);
    if (!rc && capacity < 2 * (size_t)o->batch)
        rc = es_fail(err, ES_ERR_USAGE, "a buffer of %zu rows: it takes two batches at least (%d)", capacity, 2 * o->batch);
    if (!rc && capacity > UINT32_MAX)
        rc = es_fail(err, ES_ERR_USAGE, "a buffer of %zu rows is too large", capacity);
    if (rc)
        return rc;
    s->m = m;
    s->from = from;
    s->o = o;
    s->capacity = capacity;
    s->batch = (size_t)o->batch;
    es_rng_seed(&s->rng, o->seed);
    es_reading_set(&s->r, m, &from->reading, take, s);
    if (from->itself && s->r.n_place != 1)
        return es_fail(err, ES_ERR_USAGE, "%d dictionaries do not fit one folder", s->r.n_place);
    if (dir && snprintf(s->path, sizeof s->path, "%s/stream.json", dir) > 1000)
        return es_fail(err, ES_ERR_USAGE, "%.80s...: the path is too long", dir);
    rc = es_model_hash(m, s->model_hash, err);
    rc = rc ? rc : begin_pass(s, err);
    rc = rc ? rc : describe(s, err);
    s->order = rc ? NULL : es_calloc(capacity, sizeof *s->order);
    if (!rc && !s->order)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for a buffer");
    for (size_t i = 0; i < capacity && !rc; i++)
        s->order[i] = (uint32_t)i;
    for (int i = 0; i < s->r.n_place && !rc; i++)
        rc = open_lane(s, i, dir, err);
    return rc ? rc : es_reading_open(&s->r, err);
}

static void close_stream(stream *s)
{
    for (int i = 0; i < s->r.n_place; i++) {
        es_train_close(s->lane[i].t);
        free(s->lane[i].rows);
        free(s->lane[i].fresh);
    }
    es_reading_close(&s->r);
    es_documents_close(&s->docs);
    es_ids_free(&s->ids);
    json_decref(s->about);
    free(s->order);
}

/* The buffer is filled, and each training begins or goes on. */
static int begin(stream *s, bool found, const es_progress *progress, es_error *err)
{
    uint64_t tokens = 0;
    int rc = refill(s, s->capacity, progress, err);
    for (int i = 0; i < s->r.n_place && !rc; i++) {
        lane *l = &s->lane[i];
        rc = found ? ES_OK : find_limit(l, err);
        if (l->t)
            l->t->rows.norm_limit = l->norm_limit;
    }
    mix(s, 0, s->capacity);
    for (int i = 0; i < s->r.n_place && !rc; i++) {
        lane *l = &s->lane[i];
        if (!l->t)
            continue;
        rc = es_dir_make(l->home.folder, err);
        if (!rc)
            rc = access(l->home.checkpoint, F_OK) == 0 ? es_train_load(l->t, l->home.checkpoint, l->about, err) : es_train_start(l->t, err);
        tokens = rc || l->t->tokens < tokens ? tokens : l->t->tokens;
    }
    es_rng_seed(&s->rng, s->o->seed * 0x9e3779b97f4a7c15u + tokens + 1);
    return rc;
}

/* ---- the run -------------------------------------------------------------------------------------------------------------------------------- */

static bool learns(const lane *l)
{
    return l->t && l->t->tokens < l->t->o.tokens;
}

static int step(stream *s, es_error *err)
{
    int rc = ES_OK;
    for (int i = 0; i < s->r.n_place && !rc; i++)
        if (learns(&s->lane[i])) {
            s->lane[i].t->queue_from = s->lane[i].t->tokens;
            rc = es_train_step(s->lane[i].t, err);
        }
    return rc;
}

/* One place after another, a few seconds each. */
static int report(stream *s, double now, double began, uint64_t done, double *looked, const es_progress *progress, es_error *err)
{
    int n = 0, rc = ES_OK;
    lane *shown[ES_PLACES_MAX];
    char name[60];
    for (int i = 0; i < s->r.n_place; i++)
        if (s->lane[i].t)
            shown[n++] = &s->lane[i];
    lane *l = shown[(int)(fmod(now / 3, n))];
    if (l->t->F > 1 && now - *looked > 5) {
        for (int i = 0; i < n && !rc; i++)
            rc = es_train_near(shown[i]->t, &shown[i]->t->near, err);
        *looked = now;
    }
    es_train_name(l->what.at, name, sizeof name);
    es_train_report(l->t, name, (double)done / (now - began + 1e-9), progress);
    return rc;
}

static int run(stream *s, const es_progress *progress, es_error *err)
{
    double last = es_seconds(), shown = 0, looked = 0, began = last;
    uint64_t done = 0;
    for (;;) {
        bool any = false;
        for (int i = 0; i < s->r.n_place; i++)
            any |= learns(&s->lane[i]);
        if (!any)
            return ES_OK;
        double now = es_seconds();
        bool stop = es_progress_cancelled(progress), due = s->o->checkpoint_seconds > 0 && now - last > s->o->checkpoint_seconds;
        int rc = stop || due ? save(s, err) : ES_OK;
        if (!rc && stop)
            return es_fail(err, ES_ERR_CANCELLED, "training was cancelled; the same command goes on with it");
        last = due ? now : last;
        rc = rc ? rc : step(s, err);
        done += s->batch;
        if (!rc && progress && progress->report && now - shown > 0.2) {
            rc = report(s, es_seconds(), began, done, &looked, progress, err);
            shown = now;
        }
        rc = rc ? rc : refill(s, s->batch, NULL, err); /* a few rows: a cancel is seen at the next step */
        if (rc)
            return rc;
        move_on(s);
    }
}

static int finish(stream *s, es_error *err)
{
    int rc = ES_OK;
    json_t *files = json_array(), *file;
    size_t k;
    json_array_foreach(json_object_get(s->about, "files"), k, file)
        json_array_append(files, json_object_get(file, "name"));
    for (int i = 0; i < s->r.n_place && !rc; i++) {
        lane *l = &s->lane[i];
        if (!l->t)
            continue;
        l->what.distinct = (size_t)s->distinct;
        l->what.files = files;
        rc = es_train_finish(l->t, l->folder, &l->what, err);
        if (!rc)
            es_train_drop_checkpoint(&l->home);
    }
    json_decref(files);
    if (!rc)
        unlink(s->path);
    return rc;
}

int es_dictionary_train_stream(es_model *m, const es_stream *from, const char *dir, const es_dictionary_training *o, const es_progress *progress, es_error *err)
{
    bool found = false, any = false;
    stream *s = es_calloc(1, sizeof *s);
    if (!s)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to train");
    int rc = open_stream(s, m, from, from->buffer, dir, o, err);
    for (int i = 0; i < s->r.n_place; i++)
        any |= s->lane[i].t != NULL;
    if (!rc && !any)
        rc = es_fail(err, ES_ERR_USAGE, "%s: all its dictionaries are finished: give another folder", dir);
    rc = rc ? rc : es_dir_make(dir, err);
    rc = rc ? rc : resume(s, &found, err);
    if (!rc && found)
        rc = begin_pass(s, err);
    rc = rc ? rc : begin(s, found, progress, err);
    rc = rc ? rc : run(s, progress, err);
    rc = rc ? rc : finish(s, err);
    close_stream(s);
    free(s);
    return rc;
}

/* ---- the plan ------------------------------------------------------------------------------------------------------------------------------- */

int es_dictionary_stream_plan(es_model *m, const es_stream *from, const es_dictionary_training *o, int try_steps, es_training_plan *out, es_error *err)
{
    *out = (es_training_plan){0};
    stream *s = es_calloc(1, sizeof *s);
    if (!s)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to train");
    int rc = es_reading_check(m, &from->reading, err);
    if (!rc)
        es_reading_set(&s->r, m, &from->reading, take, s);
    es_trainer_options to = es_harvest_trainer(&from->reading);
    for (int i = 0; i < s->r.n_place && !rc; i++) {
        es_training_plan one;
        rc = es_dictionary_plan_width(o, s->r.place[i].d, &one, err);
        out->memory += one.memory + (from->buffer + ES_READING_TOKENS) * (size_t)s->r.place[i].d * sizeof(uint16_t);
        out->disk += one.disk;
        out->disk_checkpoint += one.disk_checkpoint;
    }
    out->memory_reading = rc ? 0 : es_trainer_bytes(m, &to);
    out->memory += rc ? 0 : out->memory_reading + from->buffer * sizeof(uint32_t);
    s->r.n_place = 0;
    if (!rc && try_steps > 0) {
        size_t few = 2 * (size_t)o->batch;
        rc = open_stream(s, m, from, few, NULL, o, err);
        double began = es_seconds(), read = 0;
        rc = rc ? rc : refill(s, few, NULL, err);
        read = (es_seconds() - began) / (double)few;
        for (int i = 0; i < s->r.n_place && !rc; i++)
            rc = es_train_start(s->lane[i].t, err);
        rc = rc ? rc : step(s, err); /* finds the cut, takes its memory */
        move_on(s);
        began = es_seconds();
        for (int i = 0; i < try_steps && !rc; i++) {
            rc = step(s, err);
            move_on(s);
        }
        if (!rc) {
            double learn = (es_seconds() - began) / ((double)try_steps * (double)s->batch);
            out->tokens_per_second = 1 / (read + learn);
            out->seconds_reading = (double)o->tokens * read;
            out->seconds = ((double)o->tokens + (double)from->buffer) * read + (double)o->tokens * learn;
        }
    }
    close_stream(s);
    free(s);
    return rc;
}
