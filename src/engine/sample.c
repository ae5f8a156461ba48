/* sample: from logits to one token. The order is penalty, temperature, top-k, top-p (as in Hugging Face's generate). Only as
 * many candidates are put in order as top-k and top-p need; ties go to the lower id, which makes the result a function of
 * (logits, history, rng). */
#include "context.h"

#include <math.h>
#include <string.h>

enum { SORT_FIRST = 256 };

es_sampling es_sampling_default(void)
{
    return (es_sampling){.temperature = 0.7f, .top_k = 50, .top_p = 0.95f, .repeat_penalty = 1.1f, .repeat_window = 64};
}

es_sampling es_sampling_unset(void)
{
    return (es_sampling){.temperature = -1, .top_k = -1, .top_p = -1, .repeat_penalty = -1, .repeat_window = 64};
}

static bool better(es_candidate a, es_candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* A heap whose root is its worst: moves all[at] down to where it belongs. */
static void sift_down(es_candidate *heap, int n, int at)
{
    es_candidate moving = heap[at];
    for (int child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && better(heap[child], heap[child + 1]))
            child++;
        if (!better(moving, heap[child]))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

static void swap(es_candidate *a, es_candidate *b)
{
    es_candidate c = *a;
    *a = *b;
    *b = c;
}

/* Reorders all[n] so that the k best come first, best of all at 0. One pass; nearly all candidates fail its first comparison. */
static void best_first(es_candidate *all, int n, int k)
{
    for (int i = k / 2 - 1; i >= 0; i--)
        sift_down(all, k, i);
    for (int i = k; i < n; i++)
        if (better(all[i], all[0])) {
            swap(&all[i], &all[0]);
            sift_down(all, k, 0);
        }
    for (int end = k - 1; end > 0; end--) {
        swap(&all[0], &all[end]);
        sift_down(all, end, 0);
    }
}

/* Once for each distinct token of the last `window`: CTRL's penalty (Keskar et al. 2019, eq. 2), sign-aware. */
/* all: every token at its own place, or some of them. */
static void penalise(es_candidate *all, int n_all, bool every, const int32_t *history, int n, int window, float penalty)
{
    int first = n > window ? n - window : 0;
    for (int i = first; i < n; i++) {
        bool seen = false;
        for (int j = first; j < i && !seen; j++)
            seen = history[j] == history[i];
        int at = every ? history[i] : 0;
        while (!every && at < n_all && all[at].id != history[i])
            at++;
        if (!seen && at < n_all)
            all[at].logit *= all[at].logit > 0 ? 1 / penalty : penalty;
    }
}

/* How many of the largest logits hold all that can be drawn; 0: all are needed. A penalty above 1 only lowers, at most one logit a token of its window. */
static int enough(const es_context *c, const es_sampling *s)
{
    bool penalty = s->repeat_penalty > 0 && s->repeat_penalty != 1;
    int k = s->temperature > 0 ? s->top_k : 1, n = c->model->info.n_vocab;
    if (k < 1 || (penalty && s->repeat_penalty < 1))
        return 0;
    int more = !penalty ? 0 : s->repeat_window < c->now->length ? s->repeat_window : c->now->length;
    return k > ES_TOP_MAX || more < 0 || more > ES_TOP_MAX - k || k + more >= n ? 0 : k + more;
}

/* The k largest, from the card to all[k]: only these come down. false: something failed there. */
static bool top_from_card(es_context *c, int k)
{
    es_slot *s = c->now;
    const es_kernels *ops = c->pass.k;
    float *value = (float *)(void *)(c->top_on + k);
    ops->top(c->pass.pool, s->logits_on, c->model->info.n_vocab, k, c->top_on, value, NULL);
    ops->download(c->pass.pool, c->top, c->top_on, 2 * (size_t)k * sizeof *c->top);
    if (ops->sync(c->pass.pool, NULL))
        return false;
    for (int i = 0; i < k; i++) {
        float logit;
        memcpy(&logit, c->top + k + i, sizeof logit);
        c->candidate[i] = (es_candidate){logit, c->top[i]};
    }
    return true;
}

/* What may be drawn, with the penalty, in c->candidate; how many. */
static int gather(es_context *c, const es_sampling *s)
{
    es_candidate *all = c->candidate;
    int n = c->model->info.n_vocab, k = c->now->behind ? enough(c, s) : 0;
    bool penalty = s->repeat_penalty > 0 && s->repeat_penalty != 1;
    if (k && top_from_card(c, k))
        n = k;
    else {
        const float *logits = es_context_logits(c);
        for (int i = 0; i < n; i++)
            all[i] = (es_candidate){isnan(logits[i]) ? -INFINITY : logits[i], i};
    }
    if (penalty)
        penalise(all, n, n == c->model->info.n_vocab, c->now->ids, c->now->length, s->repeat_window, s->repeat_penalty);
    return n;
}

int32_t es_sample(es_context *c, const es_sampling *s, es_rng *rng)
{
    es_candidate *all = c->candidate;
    int n = gather(c, s);

    es_candidate best = all[0];
    for (int i = 1; i < n; i++)
        if (better(all[i], best))
            best = all[i];
    if (!(s->temperature > 0) || !isfinite(best.logit))
        return best.id;

    /* Weights relative to the best, so the largest is 1. total: of those that top-k lets through; kept: how many top-p leaves. */
    bool cut_k = s->top_k > 0 && s->top_k < n, cut_p = s->top_p < 1;
    int k = cut_k ? s->top_k : n, sorted = 0, kept = k;
    double u = es_rng_uniform(rng), inverse = 1 / (double)s->temperature, total = 0, mass = 0, reach = 0;
    if (cut_k)
        best_first(all, n, sorted = k);
    for (int i = 0; i < k; i++)
        total += exp((all[i].logit - best.logit) * inverse);
    if (cut_p) {
        for (kept = 0; kept < k && (!kept || mass < s->top_p * total); kept++) {
            if (kept == sorted) { /* without top-k: as many as turn out to be needed */
                sorted = sorted ? 4 * sorted : SORT_FIRST;
                best_first(all, n, sorted = sorted < k ? sorted : k);
            }
            mass += exp((all[kept].logit - best.logit) * inverse);
        }
        total = mass;
    }
    for (int i = 0; i < kept; i++) {
        reach += exp((all[i].logit - best.logit) * inverse);
        if (u * total < reach)
            return all[i].id;
    }
    return best.id; /* only rounding leads here */
}
