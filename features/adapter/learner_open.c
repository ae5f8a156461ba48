/* learner: what it takes in memory, and the neutral anchors its guard measures on. */
#include "learner_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ANCHOR_TOKENS = 512 };
static const size_t TRAINER_BYTES = (size_t)400 << 20; /* what the trainer may take: its batches are sized by this */

es_learner_options es_learner_default(es_form form)
{
    es_learner_options o = {.optimiser = ES_OPTIMISER_ADAM, .learning_rate = 0.002, .steps = 8, .momentum = 0.9, .decay = 0.99, .beta = 5,
                            .metric_lambda = 0.1, .enough = 0.05, .kappa = 0.03, .rho = 1, .max_reply = 96, .max_prompt = 128, .hold_out = 0.2, .seed = 1};
    if (form == ES_FORM_BIAS) {
        o.optimiser = ES_OPTIMISER_METRIC;
        o.learning_rate = 0.02;
    }
    if (form == ES_FORM_GAIN) /* a factor on what fires, and most of what was chosen fires seldom */
        o.learning_rate = 0.2;
    if (form == ES_FORM_MAP) /* every feature reads all others, whose sum is large */
        o.learning_rate = 0.0005;
    return o;
}

/* ---- opening ------------------------------------------------------------------------------------------------------------ */

es_learner_options es_learner_white(void)
{
    es_learner_options o = es_learner_default(ES_FORM_LORA);
    o.optimiser = ES_OPTIMISER_METRIC;
    o.learning_rate = 0.016;
    o.weighting = true;
    return o;
}

static int largest_input(const es_adapter *a)
{
    int n = 0;
    for (int i = 0; i < a->n_entry; i++)
        n = a->entry[i].n_in > n ? a->entry[i].n_in : n;
    return n;
}

static void carve(es_learner *l, int cap)
{
    es_arena *r = &l->arena;
    const es_adapter *a = l->a;
    size_t n = a->n_learned, K = (size_t)a->K, d = (size_t)a->d, rank = (size_t)a->o.rank;
    bool lora = a->o.form == ES_FORM_LORA, bias = a->o.form == ES_FORM_BIAS;
    const es_adapter_place *last = &a->place[a->n_place - 1];
    size_t squares = last->square + (size_t)last->K * (size_t)last->K;
    l->old = es_arena_take(r, n, sizeof *l->old);
    l->delta = es_arena_take(r, n, sizeof *l->delta);
    l->total = es_arena_take(r, n, sizeof *l->total);
    l->second = es_learner_is_adam(l) ? es_arena_take(r, n, sizeof *l->second) : NULL;
    l->rate = es_learner_is_adam(l) ? es_arena_take(r, n, sizeof *l->rate) : NULL;
    l->rest = es_arena_take(r, K, sizeof *l->rest);
    l->old_coefficient = es_arena_take(r, K, sizeof *l->old_coefficient);
    l->coefficient_sum = es_arena_take(r, K, sizeof *l->coefficient_sum);
    l->kl_at = l->o.kappa > 0 ? es_arena_take(r, n, sizeof *l->kl_at) : NULL;
    l->new_coefficient = es_arena_take(r, K, sizeof *l->new_coefficient);
    l->dc = es_arena_take(r, d, sizeof *l->dc);
    l->cholesky = es_learner_is_adam(l) ? NULL : es_arena_take(r, squares, sizeof *l->cholesky);
    l->u = es_arena_take(r, K, sizeof *l->u);
    l->inverse = es_learner_is_adam(l) || !lora ? NULL : es_arena_take(r, squares, sizeof *l->inverse);
    l->swap = es_learner_is_adam(l) || !lora ? NULL : es_arena_take(r, K * rank, sizeof *l->swap);
    l->keep = !lora || !l->o.shrink ? NULL : es_arena_take(r, a->o.constrained ? K : d, sizeof *l->keep);
    l->mean_sum = es_arena_take(r, a->n_mean, sizeof *l->mean_sum);
    l->site_input = es_arena_take(r, (size_t)cap * (size_t)largest_input(a), sizeof *l->site_input);
    l->logits = es_arena_take(r, (size_t)es_model_get_info(l->m)->n_vocab, sizeof *l->logits);
    l->norms = es_arena_take(r, (size_t)a->n_place * LEARNER_NORMS, sizeof *l->norms);
    l->grad_a = es_arena_take(r, (size_t)a->n_entry, sizeof *l->grad_a);
    l->grad_b = es_arena_take(r, (size_t)a->n_entry, sizeof *l->grad_b);
    l->slot_a_size = LEARNER_SLOTS * rank * (!lora || a->o.fixed_inputs ? 0 : a->n_mean);
    l->slot_b_size = LEARNER_SLOTS * (bias ? d * (size_t)a->n_place : lora ? d * rank * (size_t)a->n_entry : n);
    l->slot_a = es_arena_take(r, l->slot_a_size, sizeof *l->slot_a);
    l->slot_b = es_arena_take(r, l->slot_b_size, sizeof *l->slot_b);
    for (int i = 0; l->grad_a && i < a->n_entry; i++) {
        l->grad_a[i] = l->slot_a && !a->o.fixed_inputs ? l->slot_a + LEARNER_SLOTS * rank * a->entry[i].mean : NULL;
        l->grad_b[i] = l->slot_b + LEARNER_SLOTS * rank * d * (size_t)i;
    }
    for (int i = 0; i < a->n_place && bias; i++)
        l->grad_v[i] = l->slot_b + LEARNER_SLOTS * d * (size_t)i;
}

/* The largest batch whose trainer fits; at least `least` tokens. */
static int choose_tokens(const es_model *m, es_trainer_options *o, int least)
{
    static const int sizes[] = {2048, 1536, 1024, 768, 640, 512, 384, 256};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        o->max_tokens = sizes[i];
        if (sizes[i] <= least || es_trainer_bytes(m, o) <= TRAINER_BYTES)
            break;
    }
    if (o->max_tokens < least)
        o->max_tokens = least;
    return o->max_tokens;
}

static int anchors_open(es_learner *l, const volatile bool *cancel, es_error *err)
{
    int n = l->o.n_anchor, d = l->a->d, below = es_adapter_lowest_layer(l->a) - 1;
    const char *const *text = l->o.anchor ? l->o.anchor : es_anchor_texts(&n);
    int room = l->pack.cap < ANCHOR_TOKENS ? l->pack.cap : ANCHOR_TOKENS;
    size_t n_vocab = (size_t)es_model_get_info(l->m)->n_vocab;
    if (n < 1)
        return es_fail(err, ES_ERR_USAGE, "the KL guard needs at least one anchor text");
    l->anchor = es_calloc((size_t)n, sizeof *l->anchor);
    if (!l->anchor)
        return es_fail(err, ES_ERR_MEMORY, "no memory for anchors");
    int rc = es_pack_open(&l->anchors, room, d, err);
    if (rc)
        return rc;
    es_pack_clear(&l->anchors);
    for (int i = 0; !rc && i < n && room - l->anchors.n > 1; i++) {
        es_sequence *s = &l->anchor[l->n_anchor];
        rc = es_sequence_text(s, l->m, text[i], room - l->anchors.n, err);
        rc = rc ? rc : es_sequence_residual(s, l->trainer, below, d, cancel, err);
        if (rc)
            break;
        l->n_anchor++;
        es_pack_add(&l->anchors, s, 0);
    }
    if (rc)
        return rc;
    l->anchor_p = es_calloc((size_t)l->anchors.n, n_vocab * sizeof *l->anchor_p);
    l->anchor_entropy = es_calloc(2 * (size_t)l->anchors.n, sizeof *l->anchor_entropy);
    l->anchor_mass = l->anchor_entropy + l->anchors.n;
    if (!l->anchor_p || !l->anchor_entropy)
        return es_fail(err, ES_ERR_MEMORY, "no memory for the anchors' probabilities (%zu MB)", (size_t)l->anchors.n * n_vocab * 4 >> 20);
    es_batch b = es_pack_batch(&l->anchors);
    rc = es_trainer_forward(l->trainer, &b, l->anchors.resid, NULL, NULL, 0, l->anchors.logprob, cancel, err);
    for (int t = 0; !rc && t < l->anchors.n; t++) {
        float *p = l->anchor_p + (size_t)t * n_vocab;
        rc = es_trainer_logits(l->trainer, t, p, err);
        double lse = (double)p[l->anchors.target[t]] - l->anchors.logprob[t], entropy = 0, mass = 0;
        for (size_t i = 0; !rc && i < n_vocab; i++) {
            double logp = p[i] - lse;
            p[i] = expf((float)logp);
            entropy += p[i] * logp;
            mass += p[i];
        }
        l->anchor_entropy[t] = entropy;
        l->anchor_mass[t] = mass;
    }
    return rc;
}

static bool has_dictionary(const es_adapter *a, const char *hash)
{
    for (int i = 0; i < a->n_part; i++)
        if (!strcmp(a->part[i].basis.dictionary_hash, hash))
            return true;
    return false;
}

int es_learner_open(es_learner **out, es_model *m, const es_dictionary *s, es_adapter *a, const es_learner_options *o, es_error *err)
{
    *out = NULL;
    const es_model_info *info = es_model_get_info(m);
    if (o->max_reply < 1 || o->max_prompt < 1 || o->max_reply > 1 << 16 || o->max_prompt > 1 << 16 || o->batch < 0)
        return es_fail(err, ES_ERR_USAGE, "learner: max_reply %d, max_prompt %d, batch %d cannot be", o->max_reply, o->max_prompt, o->batch);
    if (!isfinite(o->learning_rate) || o->learning_rate < 0 || !(o->beta > 0) || !(o->hold_out >= 0 && o->hold_out < 1) || !(o->kappa >= 0) || !(o->enough >= 0) ||
        !(o->replay >= 0 && o->replay < 1) || !(o->rho >= 0) || !(o->momentum >= 0 && o->momentum < 1) || !(o->decay >= 0 && o->decay < 1) || !(o->metric_lambda >= 0))
        return es_fail(err, ES_ERR_USAGE, "learner: an option is out of range (rate, beta > 0, kappa, rho, lambda >= 0; shares in [0,1))");
    if (o->optimiser == ES_OPTIMISER_METRIC && a->o.form != ES_FORM_BIAS && !a->o.fixed_inputs)
        return es_fail(err, ES_ERR_USAGE, "learner: the metric step is for the form bias, and for lora with fixed inputs");
    if (s && a->n_part && !has_dictionary(a, es_dictionary_get_info(s)->hash))
        return es_fail(err, ES_ERR_MISMATCH, "learner: the adapter's dictionary is %.12s, not %.12s", a->part[0].basis.dictionary_hash,
                       es_dictionary_get_info(s)->hash);
    es_learner *l = es_calloc(1, sizeof *l);
    if (!l)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a learner");
    l->m = m;
    l->a = a;
    l->o = *o;
    l->k = es_kernels_cpu();
    l->kl_there = NAN;
    if (l->o.learning_rate == 0)
        l->o.learning_rate = o->optimiser == ES_OPTIMISER_METRIC ? es_learner_default(ES_FORM_BIAS).learning_rate
                                                                 : es_learner_default(a->o.form == ES_FORM_BIAS ? ES_FORM_LORA : a->o.form).learning_rate;
    es_rng_seed(&l->rng, o->seed);
    es_trainer_options t = {.from_layer = es_adapter_lowest_layer(a), .backward = true, .max_hooks = a->n_place, .threads = o->threads,
                            .rough = !o->exact}; /* 1.7 times as fast with AVX-512 BF16; the same without */
    int cap = choose_tokens(m, &t, 2 * (o->max_prompt + o->max_reply));
    carve(l, cap);
    size_t size = l->arena.used;
    l->arena = (es_arena){0};
    int rc = es_arena_open(&l->arena, size, err);
    if (!rc)
        carve(l, cap);
    rc = rc ? rc : es_trainer_open(&l->trainer, m, &t, err);
    rc = rc ? rc : es_pack_open(&l->pack, cap, info->d_model, err);
    if (!rc && o->kappa > 0)
        rc = anchors_open(l, NULL, err);
    rc = rc ? rc : es_replay_open(l, err);
    for (int i = 0; !rc && !es_learner_is_adam(l) && i < a->n_place; i++)
        rc = es_metric_open(l, &a->place[i], err);
    if (rc) {
        es_learner_free(l);
        return rc;
    }
    *out = l;
    return ES_OK;
}

void es_learner_free(es_learner *l)
{
    if (!l)
        return;
    for (int i = 0; i < l->n; i++)
        es_item_free(l->item[i]);
    for (int i = 0; i < l->n_anchor; i++)
        es_sequence_free(&l->anchor[i]);
    free(l->item);
    free(l->order);
    free(l->chosen);
    free(l->anchor);
    free(l->anchor_p);
    free(l->anchor_entropy);
    es_pack_close(&l->pack);
    if (l->anchors.arena.base)
        es_pack_close(&l->anchors);
    es_trainer_free(l->trainer);
    es_prior_free(&l->prior);
    es_natural_free(&l->natural);
    es_replay_free(&l->replay);
    for (int i = 0; i < 2; i++) {
        free(l->shield[i]);
        free(l->shield_step[i]);
    }
    es_arena_close(&l->arena);
    free(l);
}

int es_learner_count(const es_learner *l)
{
    return l->n;
}

size_t es_learner_bytes(const es_learner *l)
{
    const es_adapter *a = l->a;
    es_trainer_options t = {.max_tokens = l->pack.cap, .from_layer = es_adapter_lowest_layer(a), .backward = true, .max_hooks = a->n_place};
    size_t n = l->arena.size + l->pack.arena.size + l->anchors.arena.size + es_trainer_bytes(l->m, &t);
    n += es_replay_bytes(l) + l->natural.bytes;
    if (l->anchor_p)
        n += (size_t)l->anchors.n * ((size_t)es_model_get_info(l->m)->n_vocab * sizeof *l->anchor_p + 2 * sizeof *l->anchor_entropy);
    for (int i = 0; i < l->n_anchor; i++)
        n += es_sequence_bytes(&l->anchor[i], a->d);
    for (int i = 0; i < l->n; i++) {
        n += es_sequence_bytes(&l->item[i]->seq[0], a->d) + es_sequence_bytes(&l->item[i]->seq[1], a->d) + sizeof *l->item[i];
        n += (size_t)a->K * (sizeof(float) + sizeof(double)) + es_target_bytes(&l->item[i]->target);
        if (l->item[i]->grad)
            n += (es_learner_is_adam(l) ? 3 : 2) * a->n_learned * sizeof(float);
    }
    return n;
}
