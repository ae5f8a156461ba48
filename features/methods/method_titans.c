/* The memory module (titans.h) as a method. Reading an experience is one forward and backward pass and one write.
 *
 * What is stored. With no outer loop to learn a value projection, the value says what should have been added at that token:
 *     v_t = M k_t - w g_t / G,   g_t = dLoss/dh'_t at the site with the memory as it is, at the tokens that predict a reply,
 * w the experience's weight, G the root mean square of |g_t| at its first reading. So the surprise |M k - v|^2 is w^2 (|g| / G)^2: 1 at a
 * first reading, near 0 once the loss (pairs: es_experience_loss) has nothing left to ask, and the memory then only forgets; its gradient,
 * 2 w g_t k_t' / G, is the loss' own by M up to a factor, as in test-time training (Sun et al. 2024, arXiv 2407.04620). G keeps one
 * experience of huge gradients (gibberish) from outshouting the rest. A fixed value -g_t/G of the base model was measured too and is
 * about level (docs/adapting.md), but cannot notice that it has been learned. One experience is one chunk: forgetting of 0.05 a token would leave nothing of
 * anything 100 tokens back.
 *
 * The first step reads what has not been read yet; a step with nothing new reads everything once more. */
#include "everyday.h"
#include "method_internal.h"
#include "pack.h"
#include "titans.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CALIBRATION = 1024 };
static const double ETA = 0.7, ALPHA = 0.05, GATE = 1, LEARNED = 0.02;

typedef struct item {
    es_sequence seq[2]; /* preferred, rejected; n 0: absent */
    double weight;
    float norm;         /* G; 0: not read yet */
    bool read;
} item;

typedef struct titans_method {
    es_model *base;
    es_method_options o;
    int layer, d, n, cap, cap_tokens, steps;
    item *item;
    es_titans *memory;
    float *saved;             /* M, S before a step */
    es_trainer *trainer;
    es_pack pack;
    float *h, *g, *k, *v;     /* [cap_tokens, d]: residual and its gradient; keys and values of a chunk */
} titans_method;

static void titans_free(void *self)
{
    titans_method *m = self;
    for (int i = 0; i < m->n; i++)
        for (int j = 0; j < 2; j++)
            es_sequence_free(&m->item[i].seq[j]);
    free(m->item);
    es_titans_free(m->memory);
    es_trainer_free(m->trainer);
    if (m->pack.arena.base)
        es_pack_close(&m->pack);
    free(m->saved);
    free(m->h);
    free(m->g);
    free(m->k);
    free(m->v);
    free(m);
}

/* The usual residual of neutral chat, and with it the memory. */
static int calibrate(titans_method *m, es_error *err)
{
    size_t d = (size_t)m->d;
    int n = 0, rc = ES_OK;
    for (int i = 0; !rc && i < ES_EVERYDAY_ANSWERED; i++) {
        es_message ask = {"user", es_everyday_item[i].question};
        es_sequence s;
        rc = es_sequence_make(&s, m->base, &ask, 1, es_everyday_item[i].answer, m->o.max_prompt, m->o.max_reply, err);
        rc = rc ? rc : es_sequence_residual(&s, m->trainer, m->layer, m->d, NULL, err);
        if (!rc && s.n - 1 <= CALIBRATION - n) { /* without the first token, whose residual is out of proportion */
            memcpy(m->h + (size_t)n * d, s.resid + d, (size_t)(s.n - 1) * d * sizeof *m->h);
            n += s.n - 1;
        }
        es_sequence_free(&s);
    }
    es_titans_options o = {.layer = m->layer, .theta = m->o.rate, .eta = ETA, .alpha = ALPHA, .gate = GATE};
    return rc ? rc : es_titans_new(&m->memory, m->d, &o, m->h, n, err);
}

static int titans_open(void **self, es_method_kind k, es_model *base, const es_method_options *o, es_error *err)
{
    const es_model_info *info = es_model_get_info(base);
    es_method_options usual = es_method_default(k);
    titans_method *m = es_calloc(1, sizeof *m);
    if (!m)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a method");
    m->base = base;
    m->o = *o;
    m->o.rate = o->rate > 0 ? o->rate : usual.rate;
    m->o.beta = o->beta > 0 ? o->beta : usual.beta;
    m->o.max_prompt = o->max_prompt > 0 ? o->max_prompt : usual.max_prompt;
    m->o.max_reply = o->max_reply > 0 ? o->max_reply : usual.max_reply;
    m->d = info->d_model;
    m->layer = info->n_layer * 3 / 5; /* measured: docs/adapting.md */
    if (m->layer > info->n_layer - 2) {
        free(m);
        return es_fail(err, ES_ERR_USAGE, "a model of %d layers has no place for a memory", info->n_layer);
    }
    m->cap_tokens = 2 * (m->o.max_prompt + m->o.max_reply);
    size_t rows = (size_t)(m->cap_tokens > CALIBRATION ? m->cap_tokens : CALIBRATION), d = (size_t)m->d;
    es_trainer_options t = {.max_tokens = m->cap_tokens, .from_layer = m->layer + 1, .backward = true, .max_hooks = 1, .threads = o->threads};
    m->saved = es_calloc(2 * d * d, sizeof *m->saved);
    m->h = es_calloc(rows * d, sizeof *m->h);
    m->g = es_calloc((size_t)m->cap_tokens * d, sizeof *m->g);
    m->k = es_calloc((size_t)m->cap_tokens * d, sizeof *m->k);
    m->v = es_calloc((size_t)m->cap_tokens * d, sizeof *m->v);
    bool none = !m->saved || !m->h || !m->g || !m->k || !m->v;
    int rc = none ? es_fail(err, ES_ERR_MEMORY, "no memory for the passes of a memory module") : es_pack_open(&m->pack, m->cap_tokens, m->d, err);
    rc = rc ? rc : es_trainer_open(&m->trainer, base, &t, err);
    rc = rc ? rc : calibrate(m, err);
    if (rc)
        titans_free(m);
    else
        *self = m;
    return rc;
}

/* ---- reading ------------------------------------------------------------------------------------------------------------------ */

static es_sequence *reply_of(item *it, int j)
{
    return it->seq[j].n ? &it->seq[j] : NULL;
}

static void keep_forward(void *user, float *h, const int *pos, int T, int d)
{
    titans_method *m = user;
    memcpy(m->h, h, (size_t)T * (size_t)d * sizeof *h);
    es_titans_forward(m->memory, h, pos, T, d);
}

static void keep_backward(void *user, const float *h_in, float *dh, const int *pos, int T, int d)
{
    titans_method *m = user;
    (void)h_in;
    (void)pos;
    memcpy(m->g, dh, (size_t)T * (size_t)d * sizeof *dh);
}

/* Forward over the experience's replies, with the memory or in the base model. */
static int pass(titans_method *m, item *it, bool memory, const es_patch *patch, const volatile bool *cancel, es_error *err)
{
    int rc = ES_OK;
    es_pack_clear(&m->pack);
    for (int j = 0; !rc && j < 2; j++)
        if (it->seq[j].n) {
            rc = es_sequence_residual(&it->seq[j], m->trainer, m->layer, m->d, cancel, err);
            if (!rc && !es_pack_add(&m->pack, &it->seq[j], 0))
                rc = es_fail(err, ES_ERR_LIMIT, "an experience has more tokens than a pass of %d", m->cap_tokens);
        }
    if (rc)
        return rc;
    es_batch b = es_pack_batch(&m->pack);
    rc = es_trainer_forward(m->trainer, &b, m->pack.resid, memory ? patch : NULL, NULL, 0, m->pack.logprob, cancel, err);
    if (!rc)
        es_pack_means(&m->pack);
    return rc;
}

static void forget_residuals(item *it)
{
    for (int j = 0; j < 2; j++) {
        free(it->seq[j].resid);
        it->seq[j].resid = NULL;
    }
}

/* The keys and values of the last pass into m->k, m->v; returns how many. */
static int associations(titans_method *m, item *it)
{
    size_t d = (size_t)m->d;
    double square = 0;
    int n = 0;
    for (int s = 0; s < m->pack.n_seq; s++)
        for (int i = m->pack.start[s + 1] - m->pack.seq[s]->n_reply; i < m->pack.start[s + 1]; i++) {
            if (i == m->pack.start[s]) /* the hook leaves the first token alone */
                continue;
            es_titans_key(m->memory, m->h + (size_t)i * d, m->k + (size_t)n * d);
            memcpy(m->v + (size_t)n * d, m->g + (size_t)i * d, d * sizeof *m->v);
            for (size_t j = 0; j < d; j++)
                square += (double)m->g[(size_t)i * d + j] * m->g[(size_t)i * d + j];
            n++;
        }
    if (it->norm == 0 && n)
        it->norm = (float)fmax(sqrt(square / n), 1e-20);
    for (int i = 0; i < n; i++) {
        float *v = m->v + (size_t)i * d, *y = m->memory->t;
        es_titans_read(m->memory, m->k + (size_t)i * d, y);
        for (size_t j = 0; j < d; j++)
            v[j] = y[j] - (float)it->weight * v[j] / it->norm;
    }
    return n;
}

static int read_item(titans_method *m, item *it, es_step_report *out, double *surprise, const volatile bool *cancel, es_error *err)
{
    es_hook hook = {.layer = m->layer, .forward = keep_forward, .backward = keep_backward, .user = m};
    es_patch patch = {.hook = &hook, .n_hook = 1};
    int rc = pass(m, it, true, &patch, cancel, err);
    if (!rc) {
        double slope[2];
        out->loss += es_experience_loss(reply_of(it, 0), reply_of(it, 1), m->o.beta, &slope[0], &slope[1]);
        out->margin += es_experience_gain(reply_of(it, 0), reply_of(it, 1));
        out->tokens += m->pack.n;
        for (int s = 0; s < m->pack.n_seq; s++) {
            es_sequence *q = m->pack.seq[s];
            for (int i = m->pack.start[s + 1] - q->n_reply; i < m->pack.start[s + 1]; i++)
                m->pack.dlogprob[i] = (float)(slope[q == &it->seq[1]] / q->n_reply);
        }
        es_batch b = es_pack_batch(&m->pack);
        rc = es_trainer_backward(m->trainer, &b, &patch, m->pack.dlogprob, NULL, NULL, NULL, m->layer, cancel, err);
    }
    if (!rc) {
        int n = associations(m, it);
        double l = n ? es_titans_write(m->memory, m->k, m->v, n) : 0;
        *surprise += l;
        if (!isfinite(l))
            rc = es_fail(err, ES_ERR_LIMIT, "reading refused: its gradient is not a number; the memory is as before");
    }
    forget_residuals(it);
    return rc;
}

static int titans_add(void *self, const es_experience *e, const volatile bool *cancel, es_error *err)
{
    titans_method *m = self;
    const char *reply[2] = {e->preferred, e->rejected};
    item it = {.weight = e->weight};
    int rc = ES_OK;
    if (!reply[0] && !reply[1])
        return es_fail(err, ES_ERR_USAGE, "an experience without a reply cannot be learned from");
    if (m->n == m->cap) {
        int cap = m->cap ? 2 * m->cap : 16;
        item *more = realloc(m->item, (size_t)cap * sizeof *more);
        if (!more)
            return es_fail(err, ES_ERR_MEMORY, "no memory for an experience");
        m->item = more;
        m->cap = cap;
    }
    for (int j = 0; !rc && j < 2; j++)
        if (reply[j])
            rc = es_sequence_make(&it.seq[j], m->base, e->message, e->n_message, reply[j], m->o.max_prompt, m->o.max_reply, err);
    rc = rc ? rc : pass(m, &it, false, NULL, cancel, err);
    forget_residuals(&it);
    for (int j = 0; j < 2; j++)
        if (rc)
            es_sequence_free(&it.seq[j]);
        else
            it.seq[j].base = it.seq[j].now;
    if (!rc)
        m->item[m->n++] = it;
    return rc;
}

static int titans_step(void *self, es_step_report *out, const volatile bool *cancel, es_error *err)
{
    titans_method *m = self;
    es_titans *t = m->memory;
    size_t block = (size_t)m->d * (size_t)m->d;
    uint64_t writes = t->writes;
    double started = es_seconds(), surprise = 0;
    int n = 0, unread = 0, rc = ES_OK;
    *out = (es_step_report){.step = m->steps + 1, .backtracked = 1};
    memcpy(m->saved, t->m, block * sizeof *t->m);
    memcpy(m->saved + block, t->s, block * sizeof *t->s);
    for (int i = 0; i < m->n; i++)
        unread += m->item[i].weight > 0 && !m->item[i].read;
    for (int i = 0; !rc && i < m->n; i++)
        if (m->item[i].weight > 0 && !(unread && m->item[i].read)) {
            rc = read_item(m, &m->item[i], out, &surprise, cancel, err);
            n++;
        }
    if (!rc && !n)
        return es_fail(err, ES_ERR_USAGE, "there is nothing to learn from: no experience with a weight above 0");
    if (rc || (!unread && surprise < LEARNED * n)) { /* reading again what says nothing new would only forget */
        memcpy(t->m, m->saved, block * sizeof *t->m);
        memcpy(t->s, m->saved + block, block * sizeof *t->s);
        t->writes = writes;
        out->guard = "learned";
        out->backtracked = 0;
    } else {
        for (int i = 0; i < m->n; i++)
            m->item[i].read |= m->item[i].weight > 0;
        m->steps++;
    }
    if (n) {
        out->loss /= n;
        out->margin /= n;
    }
    out->seconds = es_seconds() - started;
    return rc;
}

/* ---- what answers ---------------------------------------------------------------------------------------------------------------- */

static void show(es_titans *t, es_variant *out)
{
    out->patch = (es_patch){.hook = &t->hook, .n_hook = 1};
    out->lowest_layer = t->o.layer + 1; /* the hook acts on the cached residual */
}

static int titans_view(void *self, es_variant *out, es_error *err)
{
    titans_method *m = self;
    (void)err;
    if (m->memory->writes)
        show(m->memory, out);
    return ES_OK;
}

static void release_memory(void *owned)
{
    es_titans_free(owned);
}

static int titans_copy(void *self, es_variant *out, es_error *err)
{
    titans_method *m = self;
    es_titans *t;
    if (!m->memory->writes)
        return ES_OK;
    int rc = es_titans_copy(&t, m->memory, err);
    if (rc)
        return rc;
    out->owned = t;
    out->release = release_memory;
    show(t, out);
    return ES_OK;
}

static uint64_t titans_parameters(const void *self)
{
    const titans_method *m = self;
    return (uint64_t)m->d * (uint64_t)m->d;
}

static size_t titans_bytes(const void *self)
{
    const titans_method *m = self;
    size_t d = (size_t)m->d, sum = m->memory->arena.size + 2 * d * d * sizeof(float);
    for (int i = 0; i < m->n; i++)
        for (int j = 0; j < 2; j++)
            sum += es_sequence_bytes(&m->item[i].seq[j], m->d);
    return sum;
}

const es_method_ops es_method_titans_ops = {
    .open = titans_open, .free = titans_free, .add = titans_add, .step = titans_step, .view = titans_view, .copy = titans_copy, .parameters = titans_parameters, .bytes = titans_bytes,
};
