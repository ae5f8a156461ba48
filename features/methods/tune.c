/* tune: learning by gradient without the constraint (tune.h). A step: passes over packed sequences, each forward and backward, which
 * add into one gradient; its length is checked and cut; Adam moves the parameters. Up to that move nothing has changed, so an error
 * or a cancel on the way needs no repair. */
#include "tune.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ANCHOR_TOKENS = 512, ANCHOR_TEXT = 128, ANCHOR_BATCH = 2, LOGIT_ROWS = 32, PASS_MAX = 1024, PASS_MIN = 128 };
static const size_t PASS_BYTES = (size_t)600 << 20; /* what the trainer may take when nobody said how many tokens */

typedef struct es_item {
    es_sequence seq[2]; /* preferred, rejected; n 0: absent */
    double weight;
} es_item;

typedef struct es_anchor {
    es_sequence seq;
    uint16_t *p;            /* [seq.n, n_vocab] base probabilities, half */
    double *entropy, *mass; /* [seq.n] sum p log p; sum p, which rounding leaves near 1 */
} es_anchor;

struct es_tune {
    es_model *base, *m; /* m: what is run: base, or the thawed one */
    es_tune_options o;
    int d, n_vocab, lowest; /* lowest: the first layer that is run; the residual below is cached */
    es_trainer *trainer, *scorer; /* scorer: on the base; the trainer itself where that runs it */
    es_pack pack;
    es_pool *pool;

    float *param, *grad, *first, *second; /* [n_param] */
    size_t n_param, n_decay;              /* the first n_decay decay */
    es_lowrank *lowrank;                  /* [n_entry] into param */
    float **grad_a, **grad_b;             /* [n_entry] into grad */
    int n_entry, steps;
    es_arena arena;
    bool kept;              /* with a card: parameters, gradient and moments stay there between steps; the arrays here are a copy */
    bool ahead, handed_out; /* the copy is older; somebody has been given it and may have written there */
    int copied_steps;       /* steps behind the copy */

    es_item *item;
    int n, cap;
    int *order, n_order, at, *chosen; /* learning items in this epoch's order */
    es_rng rng;

    es_anchor *anchor;
    int n_anchor;
    float *p32; /* [n_vocab] */

    es_context *context; /* for samples; NULL until the first */
    es_context_options context_options; /* its */
};

es_tune_options es_tune_default(bool weights)
{
    return (es_tune_options){.weights = weights, .last_layer = -1, .rank = 32, .alpha = 32, .rate = weights ? 1e-5 : 1e-4, .beta1 = 0.9, .beta2 = 0.999,
                             .epsilon = 1e-8, .clip = 1, .beta = 5, .max_prompt = 128, .max_reply = 96, .seed = 1};
}

/* ---- opening ------------------------------------------------------------------------------------------------------------------ */

static bool has_site(const es_tune_options *o, int s)
{
    return o->sites >> s & 1;
}

static void carve(es_tune *t)
{
    es_arena *r = &t->arena;
    size_t n_entry = (size_t)t->n_entry;
    t->grad = es_arena_take(r, t->n_param, sizeof *t->grad);
    t->first = es_arena_take(r, t->n_param, sizeof *t->first);
    t->second = es_arena_take(r, t->n_param, sizeof *t->second);
    t->p32 = es_arena_take(r, (size_t)t->n_vocab, sizeof *t->p32);
    if (t->o.weights)
        return;
    t->param = es_arena_take(r, t->n_param, sizeof *t->param);
    t->lowrank = es_arena_take(r, n_entry, sizeof *t->lowrank);
    t->grad_a = es_arena_take(r, n_entry, sizeof *t->grad_a);
    t->grad_b = es_arena_take(r, n_entry, sizeof *t->grad_b);
}

/* Numbers of all entries; lowrank (may be NULL) is filled, with its arrays in param and grad. */
static size_t lay_entries(es_tune *t, int *n_entry)
{
    size_t at = 0;
    int n = 0, rank = t->o.rank;
    for (int l = t->o.first_layer; l <= t->o.last_layer; l++)
        for (int s = 0; s < ES_N_SITES; s++) {
            if (!has_site(&t->o, s))
                continue;
            size_t n_a = (size_t)rank * (size_t)es_site_n_in(t->m, (es_site)s), n_b = (size_t)rank * (size_t)es_site_n_out(t->m, (es_site)s);
            if (t->lowrank) {
                t->lowrank[n] = (es_lowrank){.layer = l, .site = (es_site)s, .rank = rank, .scale = (float)(t->o.alpha / rank), .a = t->param + at,
                                             .b = t->param + at + n_a};
                t->grad_a[n] = t->grad + at;
                t->grad_b[n] = t->grad + at + n_a;
            }
            at += n_a + n_b;
            n++;
        }
    *n_entry = n;
    return at;
}

static void start_entries(es_tune *t)
{
    es_rng rng;
    es_rng_seed(&rng, t->o.seed);
    lay_entries(t, &t->n_entry);
    for (int i = 0; i < t->n_entry; i++) {
        const es_lowrank *e = &t->lowrank[i];
        size_t n_in = (size_t)es_site_n_in(t->m, e->site);
        float *a = t->param + (e->a - t->param), bound = 1 / sqrtf((float)n_in);
        for (size_t j = 0; j < (size_t)e->rank * n_in; j++)
            a[j] = bound * (2 * (float)es_rng_uniform(&rng) - 1);
    }
}

static int check_options(const es_tune *t, es_error *err)
{
    const es_tune_options *o = &t->o;
    int n_layer = es_model_get_info(t->base)->n_layer;
    if (!o->weights && (o->first_layer < 0 || o->last_layer < o->first_layer || o->last_layer >= n_layer || o->rank < 1 || o->rank > 1 << 12 || !o->sites ||
                        o->sites >> ES_N_SITES))
        return es_fail(err, ES_ERR_USAGE, "low-rank updates of rank %d on layers %d to %d of %d cannot be", o->rank, o->first_layer, o->last_layer, n_layer);
    if (!(o->rate >= 0) || !isfinite(o->rate) || !(o->beta1 >= 0 && o->beta1 < 1) || !(o->beta2 >= 0 && o->beta2 < 1) || !(o->epsilon > 0) || !(o->decay >= 0) ||
        !(o->clip >= 0) || !(o->beta > 0) || !(o->anchor >= 0) || !isfinite(o->anchor) || !isfinite(o->alpha))
        return es_fail(err, ES_ERR_USAGE, "learning: an option is out of range (rate, decay, clip, anchor >= 0; epsilon, beta > 0; Adam's in [0,1))");
    if (o->max_prompt < 1 || o->max_reply < 1 || o->max_prompt > 1 << 16 || o->max_reply > 1 << 16 || o->max_tokens < 0 || o->max_tokens > 1 << 20)
        return es_fail(err, ES_ERR_USAGE, "learning: max_prompt %d, max_reply %d, max_tokens %d cannot be", o->max_prompt, o->max_reply, o->max_tokens);
    return ES_OK;
}

static es_trainer_options trainer_options(const es_tune *t, int tokens)
{
    return (es_trainer_options){.max_tokens = tokens, .from_layer = t->lowest, .backward = true, .threads = t->o.threads};
}

static es_trainer_options scorer_options(const es_tune *t, int tokens)
{
    return (es_trainer_options){.max_tokens = tokens, .threads = t->o.threads};
}

/* Tokens in a pass: a pair must fit, and a pair in one pass. */
static int choose_tokens(const es_tune *t)
{
    int least = 2 * (t->o.max_prompt + t->o.max_reply), n = PASS_MAX;
    if (t->o.max_tokens)
        n = t->o.max_tokens;
    else
        for (es_trainer_options o = trainer_options(t, n); n > PASS_MIN && es_trainer_bytes(t->m, &o) > PASS_BYTES; o = trainer_options(t, n))
            n -= PASS_MIN;
    return n < least ? least : n;
}

size_t es_tune_bytes(const es_tune *t)
{
    es_trainer_options o = trainer_options(t, t->pack.cap), so = scorer_options(t, t->pack.cap);
    size_t n = t->arena.size + t->pack.arena.size + es_trainer_bytes(t->m, &o) + (t->scorer != t->trainer ? es_trainer_bytes(t->base, &so) : 0);
    for (int i = 0; i < t->n; i++)
        n += sizeof *t->item + es_sequence_bytes(&t->item[i].seq[0], t->d) + es_sequence_bytes(&t->item[i].seq[1], t->d);
    for (int i = 0; i < t->n_anchor; i++)
        n += es_sequence_bytes(&t->anchor[i].seq, t->d) + (size_t)t->anchor[i].seq.n * ((size_t)t->n_vocab * sizeof *t->anchor[i].p + 2 * sizeof(double));
    return n + (t->context ? es_context_bytes(t->m, &t->context_options) : 0);
}

static int open_parts(es_tune *t, es_error *err)
{
    const es_tune_options *o = &t->o;
    int rc = check_options(t, err), cap;
    if (rc)
        return rc;
    if (o->weights) {
        t->param = es_model_numbers(t->m, &t->n_param, &t->n_decay);
        if (!t->param)
            return es_fail(err, ES_ERR_USAGE, "learning all weights needs a thawed model");
    } else {
        t->lowest = o->first_layer;
        t->n_param = t->n_decay = lay_entries(t, &t->n_entry);
    }
    cap = choose_tokens(t);
    carve(t);
    size_t size = t->arena.used, need;
    t->arena = (es_arena){0};
    es_trainer_options to = trainer_options(t, cap), so = scorer_options(t, cap);
    if (!es_add(size, es_trainer_bytes(t->m, &to), &need) || (o->weights && !es_add(need, es_trainer_bytes(t->base, &so), &need)) ||
        (o->anchor > 0 && !es_add(need, (size_t)ANCHOR_TOKENS * (size_t)t->n_vocab * sizeof(uint16_t), &need)))
        need = SIZE_MAX;
    rc = es_memory_check(need, o->memory, o->weights ? "learning all weights" : "learning low-rank updates", err);
    rc = rc ? rc : es_arena_open(&t->arena, size, err);
    if (!rc)
        carve(t);
    if (!rc && !o->weights)
        start_entries(t);
    rc = rc ? rc : es_pool_open(&t->pool, o->threads, err);
    rc = rc ? rc : es_trainer_open(&t->trainer, t->m, &to, err);
    t->scorer = t->trainer;
    if (!rc && o->weights) {
        t->scorer = NULL;
        rc = es_trainer_open(&t->scorer, t->base, &so, err);
    }
    return rc ? rc : es_pack_open(&t->pack, cap, t->d, err);
}

/* With a card the numbers stay there, if it has the room. */
static void keep_on_card(es_tune *t)
{
    const es_kept k = {.param = t->param, .grad = t->grad, .first = t->first, .second = t->second, .n = t->n_param};
    es_error why;
    int rc = es_trainer_keep(t->trainer, &k, &why);
    t->kept = rc == ES_OK;
    if (rc == ES_ERR_MEMORY && es_model_card(t->m))
        es_cuda_tell(es_model_card(t->m), "what is learned stays in this machine's memory and is moved by the processor: %.180s", why.text);
}

int es_tune_open(es_tune **out, es_model *base, es_model *own, const es_tune_options *o, es_error *err)
{
    *out = NULL;
    if (o->weights != (own != NULL))
        return es_fail(err, ES_ERR_USAGE, "learning all weights, and only that, needs a model of its own");
    es_tune *t = es_calloc(1, sizeof *t);
    if (!t)
        return es_fail(err, ES_ERR_MEMORY, "no memory to learn with");
    const es_model_info *info = es_model_get_info(base);
    t->base = base;
    t->m = own ? own : base;
    t->o = *o;
    t->d = info->d_model;
    t->n_vocab = info->n_vocab;
    t->o.last_layer = o->last_layer < 0 ? info->n_layer - 1 : o->last_layer;
    t->o.sites = o->sites ? o->sites : (1u << ES_N_SITES) - 1;
    t->o.anchor_batch = o->anchor_batch > 0 ? o->anchor_batch : ANCHOR_BATCH;
    es_rng_seed(&t->rng, o->seed ^ 0x7475ull);
    int rc = open_parts(t, err);
    if (rc) {
        es_tune_free(t);
        return rc;
    }
    keep_on_card(t);
    *out = t;
    return ES_OK;
}

static void item_clear(es_item *e)
{
    es_sequence_free(&e->seq[0]);
    es_sequence_free(&e->seq[1]);
}

static void anchors_free(es_tune *t)
{
    for (int i = 0; i < t->n_anchor; i++) {
        es_sequence_free(&t->anchor[i].seq);
        free(t->anchor[i].p);
        free(t->anchor[i].entropy);
    }
    free(t->anchor);
    t->anchor = NULL;
    t->n_anchor = 0;
}

void es_tune_free(es_tune *t)
{
    if (!t)
        return;
    for (int i = 0; i < t->n; i++)
        item_clear(&t->item[i]);
    free(t->item);
    free(t->order);
    free(t->chosen);
    anchors_free(t);
    es_context_free(t->context);
    if (t->scorer != t->trainer)
        es_trainer_free(t->scorer);
    es_trainer_free(t->trainer);
    es_pack_close(&t->pack);
    es_pool_free(t->pool);
    es_arena_close(&t->arena);
    free(t);
}

uint64_t es_tune_parameters(const es_tune *t)
{
    return t->n_param;
}

int es_tune_steps(const es_tune *t)
{
    return t->steps;
}

void es_tune_set_steps(es_tune *t, int steps)
{
    t->steps = t->copied_steps = steps > 0 ? steps : 0; /* with values and moments that were handed out */
}

/* The copy, for a caller who may write there. A card that is lost on the way leaves it as it was, and the next step tells. */
static void hand_out(es_tune *t)
{
    es_tune_settle(t, NULL);
    t->handed_out = true;
}

float *es_tune_moment(es_tune *t, int which)
{
    hand_out(t);
    return which ? t->second : t->first;
}

float *es_tune_values(es_tune *t)
{
    hand_out(t);
    return t->param;
}

int es_tune_count(const es_tune *t)
{
    return t->n;
}

/* ---- passes -------------------------------------------------------------------------------------------------------------------- */

static es_patch patch_of(const es_tune *t)
{
    return (es_patch){.lowrank = t->lowrank, .n_lowrank = t->n_entry};
}

/* The card is lost, and with it the steps since the copy was made: learning goes on from there, on the processor. */
static int lost(es_tune *t, es_error *err)
{
    int gone = t->steps - t->copied_steps;
    t->kept = t->ahead = false;
    t->steps = t->copied_steps;
    return es_fail(err, ES_ERR_DEVICE, "the card was lost, and %d step%s of learning with it; it goes on after step %d", gone, gone == 1 ? "" : "s", t->steps);
}

/* The copy becomes what the parameters are. */
int es_tune_settle(es_tune *t, es_error *err)
{
    if (!t->kept || !t->ahead)
        return ES_OK;
    int rc = es_trainer_kept_down(t->trainer, err);
    if (rc)
        return es_trainer_keeps(t->trainer) ? rc : lost(t, err);
    t->ahead = false;
    t->copied_steps = t->steps;
    return ES_OK;
}

/* Before the parameters are used there: what was written into the copy goes up. */
static int get_ready(es_tune *t, es_error *err)
{
    if (!t->kept || !t->handed_out)
        return ES_OK;
    int rc = es_trainer_kept_up(t->trainer, err);
    if (rc && !es_trainer_keeps(t->trainer))
        return lost(t, err);
    t->handed_out = rc != 0;
    t->copied_steps = t->steps;
    return rc;
}

/* The residual below the first layer that is run, where that is not the ids themselves. */
static int need_residual(es_tune *t, es_sequence *s, const volatile bool *cancel, es_error *err)
{
    return t->lowest > 0 && !s->resid ? es_sequence_residual(s, t->trainer, t->lowest - 1, t->d, cancel, err) : ES_OK;
}

/* Log-probabilities of what is packed. */
static int forward(es_tune *t, bool base, const volatile bool *cancel, es_error *err)
{
    es_batch b = es_pack_batch(&t->pack);
    es_patch patch = patch_of(t);
    es_trainer *use = base ? t->scorer : t->trainer;
    int rc = get_ready(t, err);
    rc = rc ? rc : es_trainer_forward(use, &b, t->lowest > 0 ? t->pack.resid : NULL, base ? NULL : &patch, NULL, 0, t->pack.logprob, cancel, err);
    if (t->kept && !es_trainer_keeps(t->trainer))
        return lost(t, err);
    if (!rc)
        es_pack_means(&t->pack);
    return rc;
}

/* Adds into t->grad. */
static int backward(es_tune *t, void (*dlogits)(void *user, int token, const float *p, float *dl), void *user, const volatile bool *cancel, es_error *err)
{
    es_batch b = es_pack_batch(&t->pack);
    es_patch patch = patch_of(t);
    es_grad g = {.a = t->grad_a, .b = t->grad_b};
    if (t->o.weights)
        g = (es_grad){.weights = t->grad};
    int rc = es_trainer_backward(t->trainer, &b, &patch, t->pack.dlogprob, dlogits, user, &g, t->o.weights ? -1 : t->lowest, cancel, err);
    return t->kept && !es_trainer_keeps(t->trainer) ? lost(t, err) : rc;
}

static int too_long(const es_tune *t, int n, es_error *err)
{
    return es_fail(err, ES_ERR_LIMIT, "%d tokens that belong together do not fit into a pass of %d", n, t->pack.cap);
}

int es_tune_score(es_tune *t, es_sequence *const *seq, int n, bool base, const volatile bool *cancel, es_error *err)
{
    int rc = ES_OK;
    for (int i = 0; !rc && i < n;) {
        es_pack_clear(&t->pack);
        for (; !rc && i < n && seq[i]->n <= t->pack.cap - t->pack.n; i++)
            if (!(rc = need_residual(t, seq[i], cancel, err)))
                es_pack_add(&t->pack, seq[i], 0);
        if (!rc && !t->pack.n_seq)
            rc = too_long(t, seq[i]->n, err);
        rc = rc ? rc : forward(t, base, cancel, err);
    }
    return rc;
}

static es_sequence *reply_of(es_item *e, int i)
{
    return e->seq[i].n ? &e->seq[i] : NULL;
}

/* The weighted mean loss of the items in which[], and (backward) its gradient, added. */
static int learn_items(es_tune *t, const int *which, int n, bool back, es_step_report *out, const volatile bool *cancel, es_error *err)
{
    double weights = 0;
    for (int i = 0; i < n; i++)
        weights += t->item[which[i]].weight;
    for (int first = 0; first < n;) {
        int end = first, s = 0;
        es_pack_clear(&t->pack);
        for (; end < n; end++) {
            es_item *e = &t->item[which[end]];
            if (e->seq[0].n + e->seq[1].n > t->pack.cap - t->pack.n)
                break;
            for (int j = 0; j < 2; j++)
                if (e->seq[j].n)
                    es_pack_add(&t->pack, &e->seq[j], 0);
        }
        if (end == first)
            return too_long(t, t->item[which[first]].seq[0].n + t->item[which[first]].seq[1].n, err);
        int rc = forward(t, false, cancel, err);
        if (rc)
            return rc;
        for (int i = first; i < end; i++) {
            es_item *e = &t->item[which[i]];
            double slope[2], share = e->weight / weights;
            out->loss += share * es_experience_loss(reply_of(e, 0), reply_of(e, 1), t->o.beta, &slope[0], &slope[1]);
            out->margin += es_experience_gain(reply_of(e, 0), reply_of(e, 1)) / n;
            for (int j = 0; j < 2; j++) {
                if (!e->seq[j].n)
                    continue;
                for (int k = t->pack.start[s + 1] - e->seq[j].n_reply; k < t->pack.start[s + 1]; k++)
                    t->pack.dlogprob[k] = (float)(share * slope[j] / e->seq[j].n_reply);
                s++;
            }
        }
        out->tokens += t->pack.n;
        rc = back ? backward(t, NULL, NULL, cancel, err) : ES_OK;
        if (rc)
            return rc;
        first = end;
    }
    return ES_OK;
}

typedef struct own_loss { /* es_tune_loss during one pass */
    es_tune *t;
    const es_tune_loss *loss;
    int first; /* sequence that lies first in the pack */
    double sum;
} own_loss;

/* The sequence in the pack that row `token` belongs to. */
static int sequence_at(const es_pack *p, int token)
{
    int s = 0;
    while (token >= p->start[s + 1])
        s++;
    return s;
}

static void own_token(void *user, int token, const float *p, float *dl)
{
    own_loss *l = user;
    const es_pack *pack = &l->t->pack;
    int s = sequence_at(pack, token);
    l->sum += l->loss->token(l->loss->user, l->first + s, token - (pack->start[s + 1] - pack->seq[s]->n_reply), p, dl);
}

static int learn_own(es_tune *t, const es_tune_loss *loss, es_step_report *out, const volatile bool *cancel, es_error *err)
{
    for (int i = 0; i < loss->n;) {
        own_loss l = {.t = t, .loss = loss, .first = i};
        es_pack *pack = &t->pack;
        int rc = ES_OK;
        es_pack_clear(pack);
        for (; i < loss->n && loss->seq[i]->n <= pack->cap - pack->n; i++) {
            if ((rc = need_residual(t, loss->seq[i], cancel, err)))
                return rc;
            es_pack_add(pack, loss->seq[i], 0);
        }
        if (!pack->n_seq)
            return too_long(t, loss->seq[i]->n, err);
        if ((rc = forward(t, false, cancel, err)))
            return rc;
        for (int s = 0; loss->slope && s < pack->n_seq; s++) {
            int n = pack->seq[s]->n_reply, from = pack->start[s + 1] - n;
            for (int k = 0; k < n; k++) {
                float slope = loss->slope[l.first + s][k];
                pack->dlogprob[from + k] = slope;
                out->loss += (double)slope * pack->logprob[from + k];
            }
        }
        out->tokens += pack->n;
        rc = backward(t, loss->token ? own_token : NULL, &l, cancel, err);
        if (rc)
            return rc;
        out->loss += l.sum;
    }
    return ES_OK;
}

/* ---- anchors -------------------------------------------------------------------------------------------------------------------- */

static int anchor_cache(es_tune *t, es_anchor *a, float *rows, const volatile bool *cancel, es_error *err)
{
    size_t V = (size_t)t->n_vocab, n = (size_t)a->seq.n;
    a->p = es_calloc(n, V * sizeof *a->p);
    a->entropy = es_calloc(2 * n, sizeof *a->entropy);
    if (!a->p || !a->entropy)
        return es_fail(err, ES_ERR_MEMORY, "no memory for the anchors' probabilities (%zu MB)", n * V * sizeof *a->p >> 20);
    a->mass = a->entropy + n;
    es_sequence *s = &a->seq;
    int rc = es_tune_score(t, &s, 1, true, cancel, err);
    for (int first = 0; !rc && first < a->seq.n; first += LOGIT_ROWS) {
        int many = a->seq.n - first < LOGIT_ROWS ? a->seq.n - first : LOGIT_ROWS;
        rc = es_trainer_logits_rows(t->scorer, first, many, rows, err);
        for (int i = first; !rc && i < first + many; i++) {
            float *p = rows + (size_t)(i - first) * V;
            uint16_t *half = a->p + (size_t)i * V;
            double lse = (double)p[a->seq.target[i]] - t->pack.logprob[i];
            for (size_t v = 0; v < V; v++)
                p[v] = expf((float)(p[v] - lse));
            es_f32_to_f16(p, half, V);
            es_f16_to_f32(half, p, V);
            for (size_t v = 0; v < V; v++) {
                a->mass[i] += p[v];
                a->entropy[i] += p[v] > 0 ? p[v] * log(p[v]) : 0;
            }
        }
    }
    return rc;
}

/* The texts, cut, and what the base model says of them; once. */
static int anchors_open(es_tune *t, const volatile bool *cancel, es_error *err)
{
    if (t->anchor)
        return ES_OK;
    int n = t->o.n_anchor, tokens = 0, rc = ES_OK;
    const char *const *text = t->o.anchor_text ? t->o.anchor_text : es_anchor_texts(&n);
    if (n < 1)
        return es_fail(err, ES_ERR_USAGE, "a KL on anchors needs at least one text");
    float *rows = es_calloc(LOGIT_ROWS, (size_t)t->n_vocab * sizeof *rows);
    t->anchor = es_calloc((size_t)n, sizeof *t->anchor);
    if (!rows || !t->anchor)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for anchors");
    int longest = t->pack.cap < ANCHOR_TEXT ? t->pack.cap : ANCHOR_TEXT;
    for (int i = 0; !rc && i < n && ANCHOR_TOKENS - tokens > 1; i++) {
        es_anchor *a = &t->anchor[t->n_anchor];
        int room = ANCHOR_TOKENS - tokens;
        rc = es_sequence_text(&a->seq, t->base, text[i], room < longest ? room : longest, err);
        if (rc)
            break;
        t->n_anchor++;
        tokens += a->seq.n;
        rc = anchor_cache(t, a, rows, cancel, err);
    }
    free(rows);
    if (rc)
        anchors_free(t);
    return rc;
}

typedef struct anchor_loss {
    es_tune *t;
    es_anchor *const *anchor; /* as they lie in the pack */
    double weight, sum;       /* weight of a token in the loss; sum of KL */
} anchor_loss;

/* KL(p || q) = sum p log p - sum p log q; by the logits of q: q sum(p) - p. */
static void anchor_token(void *user, int token, const float *q, float *dl)
{
    anchor_loss *l = user;
    const es_pack *pack = &l->t->pack;
    int s = sequence_at(pack, token), at = token - pack->start[s], V = l->t->n_vocab;
    const es_anchor *a = l->anchor[s];
    float *p = l->t->p32, w = (float)l->weight, mass = (float)a->mass[at];
    double cross = 0;
    es_f16_to_f32(a->p + (size_t)at * (size_t)V, p, (size_t)V);
    for (int v = 0; v < V; v += 64) {
        float part = 0;
        for (int j = v; j < v + 64 && j < V; j++)
            part += p[j] * logf(q[j] > 1e-37f ? q[j] : 1e-37f);
        cross += part;
    }
    for (int v = 0; v < V; v++)
        dl[v] += w * (mass * q[v] - p[v]);
    l->sum += a->entropy[at] - cross;
}

/* Mean KL over the tokens of n anchors; with a weight its gradient is added as well. */
static int anchor_pass(es_tune *t, es_anchor *const *anchor, int n, double weight, double *kl, const volatile bool *cancel, es_error *err)
{
    int tokens = 0, rc = ES_OK;
    double sum = 0;
    for (int i = 0; i < n; i++)
        tokens += anchor[i]->seq.n;
    for (int i = 0; !rc && i < n;) {
        anchor_loss l = {.t = t, .anchor = anchor + i, .weight = weight / tokens};
        es_pack_clear(&t->pack);
        for (; !rc && i < n && anchor[i]->seq.n <= t->pack.cap - t->pack.n; i++)
            if (!(rc = need_residual(t, &anchor[i]->seq, cancel, err)))
                es_pack_add(&t->pack, &anchor[i]->seq, 0);
        rc = rc ? rc : forward(t, false, cancel, err);
        if (!rc && weight > 0)
            rc = backward(t, anchor_token, &l, cancel, err);
        for (int s = 0; !rc && weight <= 0 && s < t->pack.n_seq; s++) /* the value alone */
            for (int k = t->pack.start[s]; !rc && k < t->pack.start[s + 1]; k++) {
                const es_anchor *a = l.anchor[s];
                int at = k - t->pack.start[s], V = t->n_vocab;
                float *q = t->p32;
                rc = es_trainer_logits(t->trainer, k, q, err);
                if (rc)
                    break;
                double cross = 0, lse = (double)q[t->pack.target[k]] - t->pack.logprob[k];
                enum { CHUNK = 1024 };
                float p[CHUNK];
                for (int v = 0; v < V; v += CHUNK) {
                    int many = V - v < CHUNK ? V - v : CHUNK;
                    double part = 0;
                    es_f16_to_f32(a->p + (size_t)at * (size_t)V + v, p, (size_t)many);
                    for (int j = 0; j < many; j++)
                        part += (double)p[j] * q[v + j];
                    cross += part;
                }
                l.sum += a->entropy[at] - cross + lse * a->mass[at];
            }
        sum += l.sum;
    }
    *kl = sum / tokens;
    return rc;
}

/* A few anchors drawn without repetition. */
static int learn_anchors(es_tune *t, es_step_report *out, const volatile bool *cancel, es_error *err)
{
    if (!(t->o.anchor > 0))
        return ES_OK;
    int rc = anchors_open(t, cancel, err);
    if (rc)
        return rc;
    int n = t->o.anchor_batch < t->n_anchor ? t->o.anchor_batch : t->n_anchor;
    es_anchor **drawn = es_calloc((size_t)t->n_anchor, sizeof *drawn);
    if (!drawn)
        return es_fail(err, ES_ERR_MEMORY, "no memory for anchors");
    for (int i = 0; i < t->n_anchor; i++)
        drawn[i] = &t->anchor[i];
    for (int i = 0; i < n; i++) {
        int j = i + (int)es_rng_below(&t->rng, (uint64_t)(t->n_anchor - i));
        es_anchor *a = drawn[i];
        drawn[i] = drawn[j];
        drawn[j] = a;
    }
    rc = anchor_pass(t, drawn, n, t->o.anchor, &out->kl, cancel, err);
    for (int i = 0; i < n; i++)
        out->tokens += drawn[i]->seq.n;
    free(drawn);
    return rc;
}

int es_tune_anchor_kl(es_tune *t, double *kl, const volatile bool *cancel, es_error *err)
{
    *kl = 0;
    int rc = anchors_open(t, cancel, err);
    if (rc)
        return rc;
    es_anchor **all = es_calloc((size_t)t->n_anchor, sizeof *all);
    if (!all)
        return es_fail(err, ES_ERR_MEMORY, "no memory for anchors");
    for (int i = 0; i < t->n_anchor; i++)
        all[i] = &t->anchor[i];
    rc = anchor_pass(t, all, t->n_anchor, 0, kl, cancel, err);
    free(all);
    return rc;
}

/* ---- the optimiser --------------------------------------------------------------------------------------------------------------- */

enum { MAX_PARTS = 256 };

typedef struct adam {
    float *p, *g, *m, *v;
    size_t n, n_decay;
    float b1, b2, scale, step, unbias, epsilon, keep;
    double square[MAX_PARTS];
} adam;

static void share(size_t n, int part, int parts, size_t *from, size_t *to)
{
    *from = n / 16 * (size_t)part / (size_t)parts * 16;
    *to = part + 1 == parts ? n : n / 16 * (size_t)(part + 1) / (size_t)parts * 16;
}

static void square_part(void *user, int part, int parts)
{
    adam *a = user;
    size_t i, to;
    double sum = 0;
    share(a->n, part, parts, &i, &to);
    for (; i + 512 <= to; i += 512) {
        float lane[16] = {0};
        for (size_t j = 0; j < 512; j += 16)
            for (size_t q = 0; q < 16; q++)
                lane[q] += a->g[i + j + q] * a->g[i + j + q];
        for (size_t q = 0; q < 16; q++)
            sum += lane[q];
    }
    for (; i < to; i++)
        sum += (double)a->g[i] * a->g[i];
    if (part < MAX_PARTS)
        a->square[part] = sum;
}

/* AdamW, Loshchilov & Hutter 2019, algorithm 2, with a constant rate. */
static void adam_range(const adam *a, size_t from, size_t to, float keep)
{
    float *restrict p = a->p, *restrict m = a->m, *restrict v = a->v;
    const float *restrict g = a->g;
    float b1 = a->b1, b2 = a->b2, scale = a->scale, step = a->step, unbias = a->unbias, epsilon = a->epsilon;
    for (size_t i = from; i < to; i++) {
        float x = g[i] * scale;
        m[i] = b1 * m[i] + (1 - b1) * x;
        v[i] = b2 * v[i] + (1 - b2) * x * x;
        p[i] = keep * p[i] - step * m[i] / (sqrtf(v[i] * unbias) + epsilon);
    }
}

static void adam_part(void *user, int part, int parts)
{
    const adam *a = user;
    size_t from, to;
    share(a->n, part, parts, &from, &to);
    size_t middle = to < a->n_decay ? to : from > a->n_decay ? from : a->n_decay;
    adam_range(a, from, middle, a->keep);
    adam_range(a, middle, to, 1);
}

/* What may move the parameters; *scale: what the gradient is cut to. */
static int check_step(const es_tune *t, double square, double *scale, es_step_report *out, es_error *err)
{
    *scale = 1;
    if (!isfinite(out->loss) || !isfinite(out->kl) || !isfinite(square))
        return es_fail(err, ES_ERR_LIMIT, "step %d refused: its %s is not a number; nothing has moved", t->steps + 1, isfinite(square) ? "loss" : "gradient");
    if (t->o.clip > 0 && square > t->o.clip * t->o.clip) {
        *scale = t->o.clip / sqrt(square);
        out->guard = "clip";
    }
    return ES_OK;
}

/* The same on the card. */
static int move_kept(es_tune *t, es_step_report *out, es_error *err)
{
    double square;
    es_adam a = {.rate = t->o.rate, .beta1 = t->o.beta1, .beta2 = t->o.beta2, .epsilon = t->o.epsilon, .decay = t->o.decay, .step = t->steps + 1, .n_decay = t->n_decay};
    int rc = es_trainer_kept_gradient(t->trainer, NULL, &square, err);
    rc = rc ? rc : check_step(t, square, &a.scale, out, err);
    rc = rc ? rc : es_trainer_kept_adam(t->trainer, &a, err);
    if (!es_trainer_keeps(t->trainer))
        return lost(t, err);
    if (rc)
        return rc;
    t->ahead = true;
    t->steps++;
    return ES_OK;
}

/* Moves the parameters by what lies in grad; refuses what is no number. */
static int move(es_tune *t, es_step_report *out, es_error *err)
{
    if (t->kept)
        return move_kept(t, out, err);
    double n = t->steps + 1, square = 0, scale;
    adam a = {.p = t->param, .g = t->grad, .m = t->first, .v = t->second, .n = t->n_param, .n_decay = t->n_decay, .b1 = (float)t->o.beta1,
              .b2 = (float)t->o.beta2, .scale = 1, .step = (float)(t->o.rate / (1 - pow(t->o.beta1, n))), .unbias = (float)(1 / (1 - pow(t->o.beta2, n))),
              .epsilon = (float)t->o.epsilon, .keep = (float)(1 - t->o.rate * t->o.decay)};
    if (es_pool_threads(t->pool) > MAX_PARTS)
        square_part(&a, 0, 1);
    else
        es_pool_run(t->pool, square_part, &a);
    for (int i = 0; i < MAX_PARTS; i++)
        square += a.square[i];
    int rc = check_step(t, square, &scale, out, err);
    if (rc)
        return rc;
    a.scale = (float)scale;
    es_pool_run(t->pool, adam_part, &a);
    if (t->o.weights)
        es_model_changed(t->m);
    t->steps++;
    return ES_OK;
}

static void clear_part(void *user, int part, int parts)
{
    es_tune *t = user;
    size_t from, to;
    share(t->n_param, part, parts, &from, &to);
    memset(t->grad + from, 0, (to - from) * sizeof *t->grad);
}

static void clear_gradient(es_tune *t)
{
    if (t->kept)
        es_trainer_kept_clear(t->trainer);
    else
        es_pool_run(t->pool, clear_part, t);
}

/* ---- steps ------------------------------------------------------------------------------------------------------------------------- */

int es_tune_add(es_tune *t, const es_experience *x, const volatile bool *cancel, es_error *err)
{
    if (!x->preferred && !x->rejected)
        return es_fail(err, ES_ERR_USAGE, "an experience needs a preferred or a rejected reply");
    if (!isfinite(x->weight) || x->weight < 0)
        return es_fail(err, ES_ERR_USAGE, "the weight of an experience must be a number of at least 0");
    if (t->n == t->cap) {
        int cap = t->cap ? 2 * t->cap : 16;
        es_item *item = realloc(t->item, sizeof *item * (size_t)cap);
        if (item)
            t->item = item;
        int *order = realloc(t->order, sizeof *order * (size_t)cap);
        if (order)
            t->order = order;
        int *chosen = realloc(t->chosen, sizeof *chosen * (size_t)cap);
        if (chosen)
            t->chosen = chosen;
        if (!item || !order || !chosen)
            return es_fail(err, ES_ERR_MEMORY, "no memory for %d experiences", cap);
        t->cap = cap;
    }
    es_item e = {.weight = x->weight};
    const char *reply[2] = {x->preferred, x->rejected};
    es_sequence *seq[2];
    int rc = ES_OK, n = 0;
    for (int i = 0; !rc && i < 2; i++)
        if (reply[i]) {
            rc = es_sequence_make(&e.seq[i], t->base, x->message, x->n_message, reply[i], t->o.max_prompt, t->o.max_reply, err);
            seq[n++] = &e.seq[i];
        }
    rc = rc ? rc : es_tune_score(t, seq, n, true, cancel, err);
    if (rc) {
        item_clear(&e);
        return rc;
    }
    for (int i = 0; i < n; i++)
        seq[i]->base = seq[i]->now;
    t->item[t->n++] = e;
    t->n_order = t->at = 0; /* a new epoch */
    return ES_OK;
}

/* The items of a step into chosen; how many. */
static int choose(es_tune *t, int batch)
{
    int n = 0;
    if (batch <= 0) {
        for (int i = 0; i < t->n; i++)
            if (t->item[i].weight > 0)
                t->chosen[n++] = i;
        return n;
    }
    if (t->at >= t->n_order) {
        t->n_order = t->at = 0;
        for (int i = 0; i < t->n; i++)
            if (t->item[i].weight > 0)
                t->order[t->n_order++] = i;
        for (int i = t->n_order - 1; i > 0; i--) {
            int j = (int)es_rng_below(&t->rng, (uint64_t)i + 1), x = t->order[i];
            t->order[i] = t->order[j];
            t->order[j] = x;
        }
    }
    while (t->at + n < t->n_order && n < batch) {
        t->chosen[n] = t->order[t->at + n];
        n++;
    }
    return n;
}

static int finish(es_tune *t, es_step_report *out, double started, const volatile bool *cancel, es_error *err)
{
    int rc = learn_anchors(t, out, cancel, err);
    rc = rc ? rc : move(t, out, err);
    out->seconds = es_seconds() - started;
    return rc;
}

int es_tune_step(es_tune *t, int batch, es_step_report *out, const volatile bool *cancel, es_error *err)
{
    double started = es_seconds();
    *out = (es_step_report){.step = t->steps + 1, .backtracked = 1};
    int n = choose(t, batch);
    if (!n)
        return es_fail(err, ES_ERR_USAGE, "there is nothing to learn from: no experience with a weight above 0");
    clear_gradient(t);
    int rc = learn_items(t, t->chosen, n, true, out, cancel, err);
    rc = rc ? rc : finish(t, out, started, cancel, err);
    if (!rc && batch > 0)
        t->at += n;
    return rc;
}

int es_tune_step_on(es_tune *t, const es_tune_loss *loss, es_step_report *out, const volatile bool *cancel, es_error *err)
{
    double started = es_seconds();
    *out = (es_step_report){.step = t->steps + 1, .backtracked = 1};
    if (loss->n < 1 || (!loss->slope && !loss->token))
        return es_fail(err, ES_ERR_USAGE, "there is nothing to learn from: no sequence, or no loss on it");
    clear_gradient(t);
    int rc = learn_own(t, loss, out, cancel, err);
    return rc ? rc : finish(t, out, started, cancel, err);
}

int es_tune_gradient(es_tune *t, double *loss, float *gradient, es_error *err)
{
    es_step_report out = {0};
    int n = choose(t, 0);
    if (!n)
        return es_fail(err, ES_ERR_USAGE, "there is nothing to learn from");
    clear_gradient(t);
    int rc = learn_items(t, t->chosen, n, gradient != NULL, &out, NULL, err);
    *loss = out.loss;
    if (!rc && gradient && t->kept)
        rc = es_trainer_kept_gradient(t->trainer, gradient, NULL, err);
    else if (!rc && gradient)
        memcpy(gradient, t->grad, t->n_param * sizeof *gradient);
    return rc;
}

int es_tune_gain(es_tune *t, double *gain, const volatile bool *cancel, es_error *err)
{
    es_step_report out = {0};
    int n = choose(t, 0);
    if (!n)
        return es_fail(err, ES_ERR_USAGE, "there is no experience to judge by");
    int rc = learn_items(t, t->chosen, n, false, &out, cancel, err);
    *gain = out.margin;
    return rc;
}

/* ---- samples ----------------------------------------------------------------------------------------------------------------------- */

/* A context with room for n prompts at once; what there is may do. */
static int sample_context(es_tune *t, int size, int n, es_error *err)
{
    n = n < ES_STREAMS ? n : ES_STREAMS;
    if (t->context && size <= es_context_size(t->context) && n <= es_context_sequences(t->context))
        return ES_OK;
    es_context_free(t->context);
    t->context = NULL;
    t->context_options = (es_context_options){.n_ctx = size, .threads = t->o.threads, .n_seq = n};
    return es_context_open(&t->context, t->m, &t->context_options, err);
}

int es_tune_sample(es_tune *t, const es_asked *asked, int n, int max_new, es_sequence *out, const volatile bool *cancel, es_error *err)
{
    memset(out, 0, (size_t)n * sizeof *out);
    if (max_new < 1 || max_new > 1 << 16)
        return es_fail(err, ES_ERR_USAGE, "a sample of %d tokens cannot be", max_new);
    es_ids *prompt = es_calloc((size_t)n, sizeof *prompt);
    es_reply *reply = es_calloc((size_t)n, sizeof *reply);
    int rc = prompt && reply ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for samples");
    for (int i = 0; !rc && i < n; i++) {
        rc = es_chat_render(t->base, asked[i].message, (size_t)asked[i].n_message, true, &prompt[i], err);
        size_t skip = prompt[i].n > (size_t)t->o.max_prompt ? prompt[i].n - (size_t)t->o.max_prompt : 0;
        if (!rc && prompt[i].n == 0)
            rc = es_fail(err, ES_ERR_USAGE, "a sample needs a prompt");
        if (!rc)
            reply[i] = (es_reply){.prompt = prompt[i].id + skip, .n_prompt = (int)(prompt[i].n - skip), .max_new = max_new,
                                  .sampling = {.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = es_rng_next(&t->rng)}};
    }
    es_patch patch = patch_of(t);
    rc = rc || t->o.weights ? rc : es_tune_settle(t, err); /* a model's weights are read where they are */
    rc = rc ? rc : sample_context(t, t->o.max_prompt + max_new, n, err);
    if (!rc) {
        es_context_set_patch(t->context, &patch);
        rc = es_generate(t->context, reply, n, NULL, NULL, cancel, err);
        es_context_set_patch(t->context, NULL); /* the patch ends with this call */
    }
    for (int i = 0; !rc && i < n; i++)
        rc = es_sequence_ids(&out[i], reply[i].prompt, reply[i].n_prompt, reply[i].ids.id, (int)reply[i].ids.n, err);
    for (int i = 0; prompt && reply && i < n; i++) {
        es_ids_free(&prompt[i]);
        es_ids_free(&reply[i].ids);
        if (rc)
            es_sequence_free(&out[i]);
    }
    free(prompt);
    free(reply);
    return rc;
}

/* ---- what answers ------------------------------------------------------------------------------------------------------------------ */

int es_tune_view(es_tune *t, es_variant *out, es_error *err)
{
    int rc = t->o.weights ? ES_OK : es_tune_settle(t, err);
    if (rc)
        return rc;
    out->model = t->m;
    out->patch = patch_of(t);
    out->lowest_layer = t->lowest;
    return ES_OK;
}

typedef struct copied {
    es_lowrank *lowrank;
    float *param;
} copied;

static void copied_free(void *owned)
{
    copied *c = owned;
    free(c->lowrank);
    free(c->param);
    free(c);
}

int es_tune_copy(es_tune *t, es_variant *out, es_error *err)
{
    if (t->o.weights)
        return es_fail(err, ES_ERR_USAGE, "a model's weights are copied by its owner");
    int rc = es_tune_settle(t, err);
    if (rc)
        return rc;
    copied *c = es_calloc(1, sizeof *c);
    if (c) {
        c->lowrank = es_calloc((size_t)t->n_entry, sizeof *c->lowrank);
        c->param = es_calloc(t->n_param, sizeof *c->param);
    }
    if (!c || !c->lowrank || !c->param) {
        if (c)
            copied_free(c);
        return es_fail(err, ES_ERR_MEMORY, "no memory for a copy of %.1f MB", (double)t->n_param * sizeof(float) / 1e6);
    }
    memcpy(c->param, t->param, t->n_param * sizeof *c->param);
    for (int i = 0; i < t->n_entry; i++) {
        c->lowrank[i] = t->lowrank[i];
        c->lowrank[i].a = c->param + (t->lowrank[i].a - t->param);
        c->lowrank[i].b = c->param + (t->lowrank[i].b - t->param);
    }
    out->model = t->m;
    out->patch = (es_patch){.lowrank = c->lowrank, .n_lowrank = t->n_entry};
    out->lowest_layer = t->lowest;
    out->owned = c;
    out->release = copied_free;
    return ES_OK;
}
