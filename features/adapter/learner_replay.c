/* learner: replay. A share r of a step's weight goes to neutral text with the base model's own distributions as targets: where experiences ask for the
 * gradient of their mean loss L, a step starts from that of L + r / (1 - r) KL(base || adapted), the mean over the tokens of a few texts (rehearsal by
 * pseudo-patterns, Robins 1995; "replay" of pretraining text in continual learning). At the base model that gradient is zero: what replay holds back is
 * what earlier steps did to neutral text, not the first step.
 *
 * With logits z of the adapted model, q the base model's distribution: KL = sum q log q - sum q log p, dKL/dz = p - q. */
#include "everyday.h"
#include "learner_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { REPLAY_TOKENS = 192, REPLAY_TEXT = 64, REPLAY_TEXTS = 1024 }; /* tokens a step, and of one text; texts in all */

static int make_sequence(es_learner *l, const es_neutral_text *t, es_sequence *out, es_error *err)
{
    int room = l->replay.pack.cap < REPLAY_TEXT ? l->replay.pack.cap : REPLAY_TEXT;
    return t->n_message ? es_sequence_make(out, l->m, t->message, t->n_message, t->text, room / 2, room / 2, err) : es_sequence_text(out, l->m, t->text, room, err);
}

/* The texts as sequences: those of the options, else answers to everyday questions. */
static int make_texts(es_learner *l, es_error *err)
{
    es_replay *r = &l->replay;
    int n = l->o.replay_text ? l->o.n_replay : ES_EVERYDAY_ANSWERED, rc = ES_OK;
    n = n < REPLAY_TEXTS ? n : REPLAY_TEXTS;
    if (n < 1)
        return es_fail(err, ES_ERR_USAGE, "replay needs at least one neutral text");
    r->seq = es_calloc((size_t)n, sizeof *r->seq);
    if (!r->seq)
        return es_fail(err, ES_ERR_MEMORY, "no memory for neutral texts");
    for (; !rc && r->n < n; r->n += !rc) {
        es_message ask = {"user", l->o.replay_text ? "" : es_everyday_item[r->n].question};
        es_neutral_text own = {l->o.replay_text ? "" : es_everyday_item[r->n].answer, &ask, 1, false};
        rc = make_sequence(l, l->o.replay_text ? &l->o.replay_text[r->n] : &own, &r->seq[r->n], err);
    }
    return rc;
}

int es_replay_open(es_learner *l, es_error *err)
{
    es_replay *r = &l->replay;
    size_t n = l->a->n_learned, n_vocab = (size_t)es_model_get_info(l->m)->n_vocab;
    if (!(l->o.replay > 0))
        return ES_OK;
    r->weight = l->o.replay / (1 - l->o.replay);
    int cap = l->pack.cap < REPLAY_TOKENS ? l->pack.cap : REPLAY_TOKENS;
    r->grad = es_calloc(n, (es_learner_is_adam(l) ? 2 : 1) * sizeof *r->grad);
    r->momentum = r->grad && es_learner_is_adam(l) ? r->grad + n : NULL;
    r->p = es_calloc((size_t)cap, n_vocab * sizeof *r->p);
    r->entropy = es_calloc(2 * (size_t)cap, sizeof *r->entropy);
    if (!r->grad || !r->p || !r->entropy)
        return es_fail(err, ES_ERR_MEMORY, "no memory for replay (%zu MB)", (size_t)cap * n_vocab * sizeof *r->p >> 20);
    r->mass = r->entropy + cap;
    int rc = es_pack_open(&r->pack, cap, l->a->d, err);
    return rc ? rc : make_texts(l, err);
}

void es_replay_free(es_replay *r)
{
    for (int i = 0; i < r->n; i++)
        es_sequence_free(&r->seq[i]);
    free(r->seq);
    free(r->grad);
    free(r->p);
    free(r->entropy);
    if (r->pack.arena.base)
        es_pack_close(&r->pack);
    *r = (es_replay){0};
}

size_t es_replay_bytes(const es_learner *l)
{
    const es_replay *r = &l->replay;
    size_t n = r->grad ? (es_learner_is_adam(l) ? 2 : 1) * l->a->n_learned * sizeof *r->grad : 0;
    n += r->pack.arena.size + (size_t)r->pack.cap * ((size_t)es_model_get_info(l->m)->n_vocab * sizeof *r->p + 2 * sizeof *r->entropy);
    for (int i = 0; i < r->n; i++)
        n += es_sequence_bytes(&r->seq[i], l->a->d);
    return r->grad ? n : 0;
}

/* What the base model says of the texts in the pack. */
static int ask_base(es_learner *l, const volatile bool *cancel, es_error *err)
{
    es_replay *r = &l->replay;
    size_t n_vocab = (size_t)es_model_get_info(l->m)->n_vocab;
    es_batch b = es_pack_batch(&r->pack);
    int rc = es_trainer_forward(l->trainer, &b, r->pack.resid, NULL, NULL, 0, r->pack.logprob, cancel, err);
    for (int t = 0; !rc && t < r->pack.n; t++) {
        float *p = r->p + (size_t)t * n_vocab;
        r->entropy[t] = r->mass[t] = 0;
        if (!r->pack.wanted[t])
            continue;
        rc = es_trainer_logits(l->trainer, t, p, err);
        double lse = (double)p[r->pack.target[t]] - r->pack.logprob[t];
        for (size_t i = 0; !rc && i < n_vocab; i++) {
            double log_p = p[i] - lse;
            p[i] = expf((float)log_p);
            r->entropy[t] += p[i] * log_p;
            r->mass[t] += p[i];
        }
    }
    return rc;
}

int es_replay_draw(es_learner *l, const volatile bool *cancel, es_error *err)
{
    es_replay *r = &l->replay;
    int below = es_adapter_lowest_layer(l->a) - 1, rc = ES_OK, taken = 0;
    if (!r->n || (r->pack.n && r->pack.n_seq == r->n)) /* all of them are there already */
        return ES_OK;
    es_pack_clear(&r->pack);
    for (; !rc && taken < r->n; taken++) {
        es_sequence *s = &r->seq[(r->at + taken) % r->n];
        if (s->n > r->pack.cap - r->pack.n)
            break;
        if (!s->resid)
            rc = es_sequence_residual(s, l->trainer, below, l->a->d, cancel, err);
        if (!rc)
            es_pack_add(&r->pack, s, 0);
    }
    rc = rc ? rc : ask_base(l, cancel, err);
    r->at = (r->at + taken) % r->n;
    if (rc)
        es_pack_clear(&r->pack); /* drawn anew */
    return rc;
}

static int counted(const es_pack *p)
{
    int n = 0;
    for (int t = 0; t < p->n; t++)
        n += p->wanted[t];
    return n;
}

typedef struct kept { /* of the base model's opinion, in the pack at hand */
    es_replay *r;
    size_t n_vocab;
    float weight; /* of a token in the loss */
} kept;

static void token_kept(void *user, int token, const float *p, float *dl)
{
    const kept *k = user;
    const float *q = k->r->p + (size_t)token * k->n_vocab, mass = (float)k->r->mass[token];
    for (size_t i = 0; i < k->n_vocab; i++)
        dl[i] += k->weight * (mass * p[i] - q[i]);
}

/* Mean KL of the last forward over the pack's tokens. */
static int kl_of_pack(es_learner *l, int n, double *kl, es_error *err)
{
    es_replay *r = &l->replay;
    size_t n_vocab = (size_t)es_model_get_info(l->m)->n_vocab;
    int rc = ES_OK;
    *kl = 0;
    for (int t = 0; !rc && t < r->pack.n; t++) {
        if (!r->pack.wanted[t])
            continue;
        rc = es_trainer_logits(l->trainer, t, l->logits, err);
        double lse = rc ? 0 : (double)l->logits[r->pack.target[t]] - r->pack.logprob[t];
        if (!rc)
            *kl += (r->entropy[t] - es_learner_dot(r->p + (size_t)t * n_vocab, l->logits, n_vocab) + lse * r->mass[t]) / n;
    }
    return rc;
}

int es_replay_gradient(es_learner *l, bool backward, const volatile bool *cancel, es_error *err)
{
    es_replay *r = &l->replay;
    es_patch patch;
    if (!r->pack.n)
        return ES_OK;
    int n = counted(&r->pack);
    es_batch b = es_pack_batch(&r->pack);
    int rc = es_adapter_patch(l->a, 1, &patch, err);
    rc = rc ? rc : es_trainer_forward(l->trainer, &b, r->pack.resid, &patch, NULL, 0, r->pack.logprob, cancel, err);
    rc = rc ? rc : kl_of_pack(l, n, &r->kl, err);
    if (!rc && !isfinite(r->kl))
        rc = es_fail(err, ES_ERR_LIMIT, "step refused: its KL on replayed text is not a number; the adapter is as before");
    if (rc || !backward)
        return rc;
    kept k = {r, (size_t)es_model_get_info(l->m)->n_vocab, (float)(r->weight / n)};
    memset(r->pack.dlogprob, 0, (size_t)r->pack.n * sizeof *r->pack.dlogprob);
    rc = es_learner_backward(l, &r->pack, &patch, 1, token_kept, &k, cancel, err);
    if (!rc)
        es_learner_slot_gradient(l, 0, r->grad);
    return rc;
}
