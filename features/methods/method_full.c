/* Full fine-tuning: every weight of a thawed copy of the model moves, by Adam.
 *
 * With a folder for checkpoints what answers is not what is being learned but the last checkpoint that passed a gate: held-out
 * experiences (a fifth of them, at least one of four) must gain on the base model, and the mean KL on the anchors must stay within
 * kappa. In the folder:
 *   step-N.safetensors   weights (f32) and Adam's moments (bf16) after N steps: of the last checkpoint and of the released one
 *   full.json            {"model_hash", "latest", "released" (or null), "experiences", "checkpoints": [{"steps", "experiences", "gain",
 *                        "held_out", "kl", "passed", "reason"}]}: written after the file it speaks of is whole
 * so that a kill at any moment leaves a state that open resumes from. */
#include "method_internal.h"
#include "tune.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { EVERY = 32, LOG_MAX = 100 };
static const double KAPPA = 0.03, HOLD_OUT = 0.2;

typedef struct answer { /* a model that no longer moves; whoever shows it holds it */
    es_model *m;
    int holders, steps;
} answer;

typedef struct held {
    es_sequence seq[2];
} held;

typedef struct full {
    es_model *base, *own;
    es_tune *tune;
    char *folder; /* NULL: no checkpoints */
    int batch, every;
    double hours, kappa;
    int max_prompt, max_reply;
    answer *shown; /* with checkpoints the released one, or NULL; else a copy of the weights after shown->steps, made on demand */
    held *held;
    int n_held, cap_held, seen;
    int experiences, since; /* taken in by steps: in all, since the last checkpoint */
    int checkpoint_steps;   /* of the last checkpoint */
    double last;            /* when that was */
    json_t *log;
    char note[240];
} full;

static void answer_drop(void *owned)
{
    answer *a = owned;
    if (a && __atomic_sub_fetch(&a->holders, 1, __ATOMIC_ACQ_REL) == 0) {
        es_model_free(a->m);
        free(a);
    }
}

static int answer_new(answer **out, full *m, es_error *err)
{
    answer *a = es_calloc(1, sizeof *a);
    if (!a)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a model that answers");
    int rc = es_model_thaw(&a->m, m->base, 0, err);
    if (rc) {
        free(a);
        return rc;
    }
    a->holders = 1;
    *out = a;
    return ES_OK;
}

static void full_free(void *self)
{
    full *m = self;
    es_tune_free(m->tune);
    answer_drop(m->shown);
    es_model_free(m->own);
    for (int i = 0; i < m->n_held; i++) {
        es_sequence_free(&m->held[i].seq[0]);
        es_sequence_free(&m->held[i].seq[1]);
    }
    free(m->held);
    free(m->folder);
    json_decref(m->log);
    free(m);
}

/* ---- the folder ---------------------------------------------------------------------------------------------------------------- */

enum { PATH = 1200 };

static int path_of(const full *m, char out[PATH], int steps, es_error *err)
{
    int n = steps < 0 ? snprintf(out, PATH, "%s/full.json", m->folder) : snprintf(out, PATH, "%s/step-%d.safetensors", m->folder, steps);
    return n < PATH ? ES_OK : es_fail(err, ES_ERR_USAGE, "%.80s...: the path is too long", m->folder);
}

static void more_of(full *m, es_weights_more more[2], bool read)
{
    more[0] = (es_weights_more){"first", ES_TENSOR_BF16, read ? es_tune_moment(m->tune, 0) : NULL};
    more[1] = (es_weights_more){"second", ES_TENSOR_BF16, read ? es_tune_moment(m->tune, 1) : NULL};
}

/* Removes checkpoints that full.json does not speak of, and what a killed writer left. */
static void sweep(const full *m)
{
    DIR *d = opendir(m->folder);
    int released = m->shown ? m->shown->steps : -1;
    for (struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        int steps = -1, end = 0;
        bool ours = sscanf(e->d_name, "step-%d.safetensors%n", &steps, &end) == 1 && end > 0;
        char path[PATH];
        if (!ours || (!e->d_name[end] && (steps == m->checkpoint_steps || steps == released)) || (e->d_name[end] && strncmp(e->d_name + end, ".tmp-", 5) != 0))
            continue;
        if (snprintf(path, sizeof path, "%s/%s", m->folder, e->d_name) < (int)sizeof path)
            unlink(path);
    }
    if (d)
        closedir(d);
}

static int write_state(full *m, int released, es_error *err)
{
    char path[PATH], hash[65];
    int rc = es_model_hash(m->base, hash, err);
    rc = rc ? rc : path_of(m, path, -1, err);
    if (rc)
        return rc;
    while (json_array_size(m->log) > LOG_MAX)
        json_array_remove(m->log, 0);
    json_t *state = json_pack("{s:s, s:i, s:o, s:i, s:O}", "model_hash", hash, "latest", es_tune_steps(m->tune), "released",
                              released < 0 ? json_null() : json_integer(released), "experiences", m->experiences, "checkpoints", m->log);
    char *text = state ? json_dumps(state, JSON_INDENT(1)) : NULL;
    rc = text ? es_file_write(path, text, strlen(text), err) : es_fail(err, ES_ERR_MEMORY, "no memory for a checkpoint");
    free(text);
    json_decref(state);
    return rc;
}

static bool get_count(json_t *o, const char *key, int *out)
{
    json_t *v = json_object_get(o, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX)
        return false;
    *out = (int)json_integer_value(v);
    return true;
}

static int load_state(full *m, json_t *state, const char *json_path, es_error *err)
{
    char path[PATH], hash[65];
    es_weights_more more[2];
    json_t *was = json_object_get(state, "released"), *log = json_object_get(state, "checkpoints");
    const char *of = json_string_value(json_object_get(state, "model_hash"));
    int latest, released = -1, rc = es_model_hash(m->base, hash, err);
    if (rc)
        return rc;
    if (!of || !get_count(state, "latest", &latest) || !get_count(state, "experiences", &m->experiences) || (!json_is_null(was) && !get_count(state, "released", &released)) ||
        !json_is_array(log))
        return es_fail(err, ES_ERR_FORMAT, "%s: is not the state of a full fine-tuning", json_path);
    if (strcmp(of, hash) != 0)
        return es_fail(err, ES_ERR_MISMATCH, "%s: these checkpoints were learned from the model %.12s, this one is %.12s", json_path, of, hash);
    if (released >= 0) { /* first, so that an error leaves nothing half loaded in what will answer */
        rc = answer_new(&m->shown, m, err);
        rc = rc ? rc : path_of(m, path, released, err);
        more_of(m, more, false);
        rc = rc ? rc : es_weights_load(m->shown->m, path, more, 2, NULL, err);
        if (!rc)
            m->shown->steps = released;
    }
    more_of(m, more, true);
    rc = rc ? rc : path_of(m, path, latest, err);
    rc = rc ? rc : es_weights_load(m->own, path, more, 2, NULL, err);
    if (rc)
        return rc;
    es_tune_set_steps(m->tune, latest);
    m->checkpoint_steps = latest;
    json_decref(m->log);
    m->log = json_incref(log);
    snprintf(m->note, sizeof m->note, "resumed after %d steps on %d experiences; %s", latest, m->experiences,
             released < 0 ? "none of its checkpoints has passed the gate" : "its last released checkpoint answers");
    return ES_OK;
}

static int resume(full *m, es_error *err)
{
    char path[PATH];
    struct stat st;
    json_t *state = NULL;
    int rc = es_dir_make(m->folder, err);
    rc = rc ? rc : path_of(m, path, -1, err);
    if (rc)
        return rc;
    if (stat(path, &st) == 0) {
        rc = es_json_file(&state, path, err);
        rc = rc ? rc : load_state(m, state, path, err);
        json_decref(state);
    }
    if (!rc)
        sweep(m);
    return rc;
}

/* ---- the gate ------------------------------------------------------------------------------------------------------------------ */

static int judge(full *m, bool *passed, double *gain, double *kl, char *reason, size_t size, const volatile bool *cancel, es_error *err)
{
    es_sequence *list[2];
    int rc = ES_OK;
    *gain = 0;
    for (int i = 0; !rc && i < m->n_held; i++) {
        int n = 0;
        for (int j = 0; j < 2; j++)
            if (m->held[i].seq[j].n)
                list[n++] = &m->held[i].seq[j];
        rc = es_tune_score(m->tune, list, n, false, cancel, err);
        if (!rc)
            *gain += es_experience_gain(m->held[i].seq[0].n ? &m->held[i].seq[0] : NULL, m->held[i].seq[1].n ? &m->held[i].seq[1] : NULL) / m->n_held;
    }
    if (!m->n_held)
        rc = es_tune_gain(m->tune, gain, cancel, err);
    rc = rc ? rc : es_tune_anchor_kl(m->tune, kl, cancel, err);
    if (rc)
        return rc;
    const char *whose = m->n_held ? "held-out" : "learning";
    int n = m->n_held ? m->n_held : es_tune_count(m->tune);
    *passed = *gain > 0 && *kl <= m->kappa; /* NaN fails both */
    if (!(*gain > 0))
        snprintf(reason, size, "not released: %d %s experience%s gain %+.4f nats a token", n, whose, n == 1 ? "" : "s", *gain);
    else if (!*passed)
        snprintf(reason, size, "not released: KL %.4f on neutral text is over %.4f", *kl, m->kappa);
    else
        snprintf(reason, size, "released: %d %s experience%s gain %+.4f nats a token, KL %.4f", n, whose, n == 1 ? "" : "s", *gain, *kl);
    return ES_OK;
}

/* Writes the state, judges it, and shows it if it passes. On an error what answers is as before, and so is full.json. */
static int checkpoint(full *m, es_step_report *out, const volatile bool *cancel, es_error *err)
{
    char path[PATH], reason[200];
    es_weights_more more[2];
    int steps = es_tune_steps(m->tune);
    bool passed = false;
    double gain = 0, kl = 0;
    int rc = judge(m, &passed, &gain, &kl, reason, sizeof reason, cancel, err);
    rc = rc ? rc : es_tune_settle(m->tune, err);
    rc = rc ? rc : path_of(m, path, steps, err);
    more_of(m, more, true);
    rc = rc ? rc : es_weights_save(m->own, path, ES_TENSOR_F32, more, 2, NULL, err);
    answer *next = NULL;
    if (!rc && passed) {
        rc = answer_new(&next, m, err);
        rc = rc ? rc : es_model_assign(next->m, m->own, err);
        if (next)
            next->steps = steps;
    }
    if (!rc) {
        json_t *line = json_pack("{s:i, s:i, s:f, s:i, s:f, s:b, s:s}", "steps", steps, "experiences", m->experiences, "gain", isfinite(gain) ? gain : 0, "held_out",
                                 m->n_held, "kl", isfinite(kl) ? kl : -1, "passed", passed, "reason", reason);
        if (!line || json_array_append_new(m->log, line) != 0)
            rc = es_fail(err, ES_ERR_MEMORY, "no memory for a checkpoint");
        else if ((rc = write_state(m, passed ? steps : m->shown ? m->shown->steps : -1, err)))
            json_array_remove(m->log, json_array_size(m->log) - 1);
    }
    if (rc) {
        answer_drop(next);
        if (steps != m->checkpoint_steps)
            unlink(path);
        return rc;
    }
    if (next) {
        answer_drop(m->shown);
        m->shown = next;
    }
    m->checkpoint_steps = steps;
    m->since = 0;
    m->last = es_seconds();
    snprintf(m->note, sizeof m->note, "%s", reason);
    out->kl = kl;
    out->guard = passed ? "released" : "not released";
    sweep(m);
    return ES_OK;
}

/* ---- the method ---------------------------------------------------------------------------------------------------------------- */

static int open_parts(full *m, const es_method_options *o, es_error *err)
{
    size_t need;
    es_tune_options t = es_method_tune(o, true);
    m->max_prompt = t.max_prompt;
    m->max_reply = t.max_reply;
    /* weights, gradient, two moments, and the model that answers */
    if (!es_mul(es_model_thaw_bytes(m->base), 5, &need))
        need = SIZE_MAX;
    int rc = es_memory_check(need, o->memory, "full fine-tuning", err);
    if (!rc && o->checkpoints && !(m->folder = strdup(o->checkpoints)))
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for a method");
    if (!rc && !(m->log = json_array()))
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for a method");
    rc = rc ? rc : es_model_thaw(&m->own, m->base, o->memory, err);
    rc = rc ? rc : es_tune_open(&m->tune, m->base, m->own, &t, err);
    return rc || !m->folder ? rc : resume(m, err);
}

static int full_open(void **self, es_method_kind k, es_model *base, const es_method_options *o, es_error *err)
{
    (void)k;
    full *m = es_calloc(1, sizeof *m);
    if (!m)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a method");
    m->base = base;
    m->batch = o->batch;
    m->every = o->checkpoint_every > 0 ? o->checkpoint_every : EVERY;
    m->hours = o->checkpoint_hours > 0 ? o->checkpoint_hours : 1;
    m->kappa = o->kappa > 0 ? o->kappa : KAPPA;
    m->last = es_seconds();
    int rc = open_parts(m, o, err);
    if (rc)
        full_free(m);
    else
        *self = m;
    return rc;
}

static int hold(full *m, const es_experience *e, const volatile bool *cancel, es_error *err)
{
    if (!e->preferred && !e->rejected)
        return es_fail(err, ES_ERR_USAGE, "an experience needs a preferred or a rejected reply");
    if (m->n_held == m->cap_held) {
        int cap = m->cap_held ? 2 * m->cap_held : 8;
        held *list = realloc(m->held, sizeof *list * (size_t)cap);
        if (!list)
            return es_fail(err, ES_ERR_MEMORY, "no memory for %d experiences", cap);
        m->held = list;
        m->cap_held = cap;
    }
    held h = {0};
    es_sequence *list[2];
    const char *reply[2] = {e->preferred, e->rejected};
    int rc = ES_OK, n = 0;
    for (int i = 0; !rc && i < 2; i++)
        if (reply[i]) {
            rc = es_sequence_make(&h.seq[i], m->base, e->message, e->n_message, reply[i], m->max_prompt, m->max_reply, err);
            list[n++] = &h.seq[i];
        }
    rc = rc ? rc : es_tune_score(m->tune, list, n, true, cancel, err);
    for (int i = 0; i < 2; i++)
        if (rc)
            es_sequence_free(&h.seq[i]);
        else
            h.seq[i].base = h.seq[i].now;
    if (!rc)
        m->held[m->n_held++] = h;
    return rc;
}

static int full_add(void *self, const es_experience *e, const volatile bool *cancel, es_error *err)
{
    full *m = self;
    int n = m->seen + 1, due = m->folder && n >= 4 ? (int)(HOLD_OUT * n) : 0;
    due = m->folder && n >= 4 && due < 1 ? 1 : due;
    int rc = m->n_held < due ? hold(m, e, cancel, err) : es_tune_add(m->tune, e, cancel, err);
    m->seen += !rc;
    return rc;
}

static int full_step(void *self, es_step_report *out, const volatile bool *cancel, es_error *err)
{
    full *m = self;
    int count = es_tune_count(m->tune), rc = es_tune_step(m->tune, m->batch, out, cancel, err);
    if (rc)
        return rc;
    count = m->batch > 0 && m->batch < count ? m->batch : count;
    m->experiences += count;
    m->since += count;
    if (m->folder && (m->since >= m->every || es_seconds() - m->last >= m->hours * 3600))
        rc = checkpoint(m, out, cancel, err);
    return rc;
}

static int full_view(void *self, es_variant *out, es_error *err)
{
    full *m = self;
    if (m->folder && !m->shown)
        return ES_OK;
    int rc = m->folder ? ES_OK : es_tune_settle(m->tune, err); /* some read a model's numbers in host memory */
    if (rc)
        return rc;
    out->model = m->folder ? m->shown->m : m->own;
    out->lowest_layer = 0;
    return ES_OK;
}

static int full_copy(void *self, es_variant *out, es_error *err)
{
    full *m = self;
    if (!m->folder && (!m->shown || m->shown->steps != es_tune_steps(m->tune))) {
        answer *next = NULL;
        int rc = es_tune_settle(m->tune, err);
        rc = rc ? rc : answer_new(&next, m, err);
        rc = rc ? rc : es_model_assign(next->m, m->own, err);
        if (rc) {
            answer_drop(next);
            return rc;
        }
        next->steps = es_tune_steps(m->tune);
        answer_drop(m->shown);
        m->shown = next;
    }
    if (!m->shown)
        return ES_OK;
    __atomic_add_fetch(&m->shown->holders, 1, __ATOMIC_RELAXED);
    out->model = m->shown->m;
    out->lowest_layer = 0;
    out->owned = m->shown;
    out->release = answer_drop;
    return ES_OK;
}

static uint64_t full_parameters(const void *self)
{
    return es_tune_parameters(((const full *)self)->tune);
}

static size_t full_bytes(const void *self)
{
    const full *m = self;
    size_t n = es_tune_bytes(m->tune) + es_model_thaw_bytes(m->base) * (m->shown ? 2 : 1);
    for (int i = 0; i < m->n_held; i++)
        n += es_sequence_bytes(&m->held[i].seq[0], 0) + es_sequence_bytes(&m->held[i].seq[1], 0);
    return n;
}

static const char *full_note(const void *self)
{
    return ((const full *)self)->note;
}

const es_method_ops es_method_full_ops = {
    .open = full_open, .free = full_free, .add = full_add, .step = full_step, .view = full_view, .copy = full_copy, .parameters = full_parameters,
    .bytes = full_bytes, .note = full_note,
};
