/* sample: from logits to one token. The order is penalty, temperature, top-k, top-p (as in Hugging Face's generate). Candidates
 * are drawn from a heap, best first, so that only as many are ordered as top-k and top-p let through; ties go to the lower id,
 * which makes the result a function of (logits, history, rng). */
#include "context.h"

#include <math.h>

es_sampling es_sampling_default(void)
{
    return (es_sampling){.temperature = 0.7f, .top_k = 50, .top_p = 0.95f, .repeat_penalty = 1.1f, .repeat_window = 64};
}

static bool better(es_candidate a, es_candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static void sift_down(es_candidate *heap, int n, int at)
{
    es_candidate moving = heap[at];
    for (int child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && better(heap[child + 1], heap[child]))
            child++;
        if (!better(heap[child], moving))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

/* Once for each distinct token of the last `window`: CTRL's penalty (Keskar et al. 2019, eq. 2), sign-aware. */
static void penalise(es_candidate *all, const int32_t *history, int n, int window, float penalty)
{
    int first = n > window ? n - window : 0;
    for (int i = first; i < n; i++) {
        bool seen = false;
        for (int j = first; j < i && !seen; j++)
            seen = history[j] == history[i];
        if (!seen)
            all[history[i]].logit *= all[history[i]].logit > 0 ? 1 / penalty : penalty;
    }
}

int32_t es_sample(es_context *c, const es_sampling *s, es_rng *rng)
{
    es_candidate *all = c->candidate;
    int n = c->model->info.n_vocab;
    for (int i = 0; i < n; i++)
        all[i] = (es_candidate){isnan(c->logits[i]) ? -INFINITY : c->logits[i], i};
    if (s->repeat_penalty > 0 && s->repeat_penalty != 1)
        penalise(all, c->ids, c->length, s->repeat_window, s->repeat_penalty);

    es_candidate best = all[0];
    for (int i = 1; i < n; i++)
        if (all[i].logit > best.logit)
            best = all[i];
    if (!(s->temperature > 0) || !isfinite(best.logit))
        return best.id;

    /* Weights relative to the best: exp((logit - best) / temperature), so the largest is 1. */
    double u = es_rng_uniform(rng), inverse = 1 / (double)s->temperature, total = 0;
    bool cut_k = s->top_k > 0 && s->top_k < n, cut_p = s->top_p < 1;
    if (!cut_k)
        for (int i = 0; i < n; i++)
            total += exp((all[i].logit - best.logit) * inverse);
    int kept = n;
    if (cut_k || cut_p) {
        /* Pops end up at the back of the array, best last: all[n-1], all[n-2], ... */
        int k = cut_k ? s->top_k : n, heap = n;
        double mass = 0;
        for (int i = n / 2 - 1; i >= 0; i--)
            sift_down(all, n, i);
        for (kept = 0; kept < k && (cut_k || mass < s->top_p * total || !kept); kept++) {
            es_candidate top = all[0];
            all[0] = all[--heap];
            sift_down(all, heap, 0);
            all[heap] = top;
            mass += exp((top.logit - best.logit) * inverse);
        }
        total = mass;
        if (cut_k && cut_p) { /* top-p among the k */
            int p_kept = 0;
            for (mass = 0; p_kept < kept && (mass < s->top_p * total || !p_kept); p_kept++)
                mass += exp((all[n - 1 - p_kept].logit - best.logit) * inverse);
            kept = p_kept;
            total = mass;
        }
    }
    double reach = 0;
    for (int i = 0; i < kept; i++) {
        reach += exp((all[n - 1 - i].logit - best.logit) * inverse);
        if (u * total < reach)
            return all[n - 1 - i].id;
    }
    return best.id; /* only rounding leads here */
}
