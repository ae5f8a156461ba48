/* The blind test of a label: ten windows of text, some of which activate the feature; whoever answers sees the label and the texts only. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "labels.h"

enum { NEAR = 6, NEAR_EACH = 2, OTHERS = 14, OTHER_EACH = 1, OWN = 128, MOST = OWN + NEAR * NEAR_EACH + OTHERS * OTHER_EACH, ACTIVE = 5, NEAR_MISSES = 3 };

struct es_blind_pool {
    int feature, n, n_own; /* the first n_own are the feature's own examples */
    uint64_t seed;
    es_rng rng;
    float max;
    uint32_t histogram[ES_ATLAS_BINS];
    es_blind_window item[MOST];
};

void es_blind_pool_free(es_blind_pool *p)
{
    free(p);
}

/* ---- candidates -------------------------------------------------------------------------------------------------------------------------- */

/* Of the same place in the same document: a run of tokens in common. */
static bool same_place(const es_blind_window *a, const es_blind_window *b)
{
    enum { RUN = 8 };
    for (int shift = 1 - b->n; shift < a->n; shift++) { /* b's first token beside a's token `shift` */
        int run = 0;
        for (int i = shift > 0 ? shift : 0; i < a->n && i - shift < b->n; i++) {
            run = a->id[i] == b->id[i - shift] ? run + 1 : 0;
            if (run == RUN || (run == a->n && a->n == b->n))
                return true;
        }
    }
    return false;
}

static void add(es_blind_pool *p, const es_example *e, int source, bool own, bool near)
{
    if (p->n == MOST || e->n < 2)
        return;
    es_blind_window *w = &p->item[p->n];
    int first = e->n > ES_BLIND_TOKENS ? e->peak - ES_BLIND_TOKENS / 2 : 0; /* what is too long is cut around its peak */
    first = first < 0 ? 0 : first > e->n - ES_BLIND_TOKENS && e->n > ES_BLIND_TOKENS ? e->n - ES_BLIND_TOKENS : first;
    *w = (es_blind_window){.n = e->n < ES_BLIND_TOKENS ? e->n : ES_BLIND_TOKENS, .active = own, .near = near, .source = source, .activation = own ? e->max : 0};
    memcpy(w->id, e->id + first, (size_t)w->n * sizeof *w->id);
    for (int i = 0; i < p->n; i++)
        if (same_place(&p->item[i], w))
            return;
    p->n++;
}

/* Some examples of another feature, spread over their strengths. */
static int add_others(es_blind_pool *p, es_atlas *a, int feature, int each, bool near, es_error *err)
{
    es_feature_card card;
    int rc = es_atlas_card(a, feature, &card, err);
    for (int i = 0; i < each && i < card.n_example && !rc; i++)
        add(p, &card.example[i * card.n_example / each < card.n_example ? i * card.n_example / each : i], feature, false, near);
    return rc;
}

int es_blind_gather(es_blind_pool **out, es_atlas *a, const es_dictionary *s, int feature, uint64_t seed, es_error *err)
{
    es_feature_card card;
    *out = NULL;
    int F = es_atlas_features(a), rc = es_atlas_card(a, feature, &card, err), near[NEAR], n_near = 0;
    if (rc)
        return rc;
    if (card.n_example == 0)
        return es_fail(err, ES_ERR_MISSING, "feature %d never fired on the texts of the atlas, so there is nothing to test its label on", feature);
    es_blind_pool *p = es_calloc(1, sizeof *p);
    if (!p)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a test");
    p->feature = feature;
    p->seed = seed;
    p->max = card.max;
    memcpy(p->histogram, card.histogram, sizeof p->histogram);
    es_rng_seed(&p->rng, seed * 0x9E3779B97F4A7C15u + (uint64_t)feature);
    for (int i = 0; i < card.n_example && p->n < OWN; i++)
        add(p, &card.example[i], feature, true, false);
    for (int i = 0; i < card.n_spread && p->n < OWN; i++)
        add(p, &card.spread[i], feature, true, false);
    p->n_own = p->n;
    /* near: what fires together with it, then what points the same way */
    for (int i = 0; i < card.n_correlated && i < NEAR / 2; i++)
        near[n_near++] = card.correlated[i];
    float cosine[NEAR];
    int by_cosine[NEAR], n_cosine = F - 1 < NEAR ? F - 1 : NEAR;
    if (n_cosine > 0)
        es_dictionary_neighbours(s, feature, n_cosine, by_cosine, cosine);
    for (int i = 0; i < n_cosine && n_near < NEAR; i++) {
        bool had = false;
        for (int k = 0; k < n_near; k++)
            had = had || near[k] == by_cosine[i];
        if (!had)
            near[n_near++] = by_cosine[i];
    }
    for (int i = 0; i < n_near && !rc; i++)
        rc = add_others(p, a, near[i], NEAR_EACH, true, err);
    for (int i = 0; i < OTHERS && F > 1 && !rc; i++) {
        int other = (int)es_rng_below(&p->rng, (uint64_t)F);
        bool used = other == feature;
        for (int k = 0; k < n_near; k++)
            used = used || near[k] == other;
        if (!used)
            rc = add_others(p, a, other, OTHER_EACH, false, err);
    }
    if (rc)
        es_blind_pool_free(p);
    else
        *out = p;
    return rc;
}

/* ---- does it fire there? ---------------------------------------------------------------------------------------------------------------- */

typedef struct capture { float *h; int rows, d; } capture;

static void take_rows(void *user, int layer, int pos0, const float *h, int T, int d)
{
    (void)layer;
    capture *c = user;
    for (int t = 0; t < T && pos0 + t < c->rows && d == c->d; t++)
        memcpy(c->h + (size_t)(pos0 + t) * (size_t)d, h + (size_t)t * (size_t)d, (size_t)d * sizeof *h);
}

/* A text that begins in the middle can make one of its tokens the one that attention rests on: its residual is many times as long as the others', and what
 * features say of it means nothing. */
static bool has_sink(const float *h, int n, int d)
{
    double norm[ES_BLIND_TOKENS + 1], most = 0, sum = 0;
    for (int t = 1; t < n; t++) {
        norm[t] = 0;
        for (int i = 0; i < d; i++)
            norm[t] += (double)h[(size_t)t * (size_t)d + (size_t)i] * (double)h[(size_t)t * (size_t)d + (size_t)i];
        most = norm[t] > most ? norm[t] : most;
        sum += sqrt(norm[t]);
    }
    double rest = n > 2 ? (sum - sqrt(most)) / (n - 2) : 0; /* mean length of the others */
    return n > 2 && sqrt(most) > 8 * rest;
}

/* The largest activation on the windows of others. The first position holds the token that begins a text: it is unlike all others and is not counted. */
static int measure(es_blind_pool *p, const es_model *m, const es_dictionary *s, int threads, const volatile bool *cancel, es_error *err)
{
    int d = es_dictionary_get_info(s)->d;
    int32_t first = es_token_bos(m) >= 0 ? es_token_bos(m) : es_token_eos(m);
    es_context *c = NULL;
    es_pool *pool = NULL;
    es_context_options o = {.n_ctx = ES_BLIND_TOKENS + 1, .threads = threads};
    float *h = es_calloc((size_t)(ES_BLIND_TOKENS + 1) * (size_t)d, sizeof *h), act[ES_BLIND_TOKENS + 1];
    int rc = h ? es_context_open(&c, m, &o, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory for a test");
    if (!rc)
        rc = es_pool_open(&pool, threads, err);
    for (int i = p->n_own; i < p->n && !rc; i++) {
        es_blind_window *w = &p->item[i];
        int32_t id[ES_BLIND_TOKENS + 1];
        int n = 0;
        if (first >= 0)
            id[n++] = first;
        memcpy(id + n, w->id, (size_t)w->n * sizeof *id);
        n += w->n;
        capture cap = {h, n, d};
        es_watch watch = {.layer = es_dictionary_get_info(s)->layer, .fn = take_rows, .user = &cap, .point = es_dictionary_point(s)};
        es_context_set_watch(c, &watch, 1);
        rc = es_context_truncate(c, 0, err);
        if (!rc)
            rc = es_context_feed(c, id, n, cancel, err);
        if (!rc)
            rc = es_dictionary_encode_some(s, pool, h, n, &p->feature, 1, act, err);
        for (int t = 1; t < n && !rc; t++)
            w->activation = act[t] > w->activation ? act[t] : w->activation;
        w->unsound = has_sink(h, n, d) || w->activation > 0; /* what it does on a text cut out of another is no proof that it does so in the whole */
    }
    es_pool_free(pool);
    es_context_free(c);
    free(h);
    return rc;
}

/* ---- choosing ten ------------------------------------------------------------------------------------------------------------------------ */

static void shuffle(es_blind_window *w, int n, es_rng *rng)
{
    for (int i = n - 1; i > 0; i--) {
        int k = (int)es_rng_below(rng, (uint64_t)i + 1);
        es_blind_window t = w[i];
        w[i] = w[k];
        w[k] = t;
    }
}

/* Share of the feature's active values that are no larger: whole bins below, and of its own bin the part below. */
static float quantile(const es_blind_pool *p, float x)
{
    double below = 0, all = 0, at = p->max > 0 ? (double)x / (double)p->max * ES_ATLAS_BINS : ES_ATLAS_BINS;
    for (int i = 0; i < ES_ATLAS_BINS; i++) {
        double part = at - i;
        all += p->histogram[i];
        below += p->histogram[i] * (part < 0 ? 0 : part > 1 ? 1 : part);
    }
    return all > 0 ? (float)(below / all) : 1;
}

/* Active windows into the test: one of each fifth of (0, largest], as far as there are any, then more of any strength. */
static void choose_active(es_blind *out, es_blind_pool *p, es_blind_window *list, int n)
{
    enum { FIFTHS = 5 };
    shuffle(list, n, &p->rng);
    for (int k = FIFTHS; k-- > 0;)
        for (int i = 0; i < n && out->n < ACTIVE; i++) {
            double share = p->max > 0 ? (double)(list[i].activation / p->max) : 0;
            if (list[i].activation < 0)
                continue;
            int fifth = share >= 1 ? FIFTHS - 1 : (int)(share * FIFTHS);
            if (fifth == k) {
                out->window[out->n++] = list[i];
                list[i].activation = -1; /* taken */
                break;
            }
        }
    for (int i = 0; i < n && out->n < ACTIVE; i++)
        if (list[i].activation >= 0)
            out->window[out->n++] = list[i];
    for (int i = 0; i < out->n; i++)
        out->window[i].quantile = quantile(p, out->window[i].activation);
    out->n_active = out->n;
}

int es_blind_make(es_blind *out, es_blind_pool *p, const es_model *m, const es_dictionary *s, int threads, const volatile bool *cancel, es_error *err)
{
    *out = (es_blind){.feature = p->feature, .seed = p->seed};
    int rc = measure(p, m, s, threads, cancel, err);
    es_blind_window *list = rc ? NULL : es_calloc((size_t)p->n * 3, sizeof *list), *near = list ? list + p->n : NULL, *far = list ? list + 2 * p->n : NULL;
    if (!rc && !list)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for a test");
    if (rc)
        return rc;
    int n_active = 0, n_near = 0, n_far = 0;
    for (int i = 0; i < p->n; i++) {
        const es_blind_window *w = &p->item[i];
        if (w->unsound || (w->active && w->activation < 0.1f * p->max))
            continue; /* or too weak to blame anyone for */
        if (w->active)
            list[n_active++] = *w;
        else if (w->near)
            near[n_near++] = *w;
        else
            far[n_far++] = *w;
    }
    shuffle(near, n_near, &p->rng);
    shuffle(far, n_far, &p->rng);
    choose_active(out, p, list, n_active);
    int want = ES_BLIND - ACTIVE, miss = n_near < NEAR_MISSES ? n_near : NEAR_MISSES, rest = want - miss;
    if (rest > n_far) {
        rest = n_far;
        miss = want - rest < n_near ? want - rest : n_near;
    }
    for (int i = 0; i < miss; i++)
        out->window[out->n++] = near[i];
    for (int i = 0; i < rest; i++)
        out->window[out->n++] = far[i];
    shuffle(out->window, out->n, &p->rng);
    free(list);
    return out->n_active < out->n ? ES_OK : es_fail(err, ES_ERR_MISSING, "feature %d fires on every window at hand, so there is nothing to tell apart", p->feature);
}

/* ---- the score ------------------------------------------------------------------------------------------------------------------------------- */

/* Wilson's interval of k of n, at 95 % (Wilson 1927). */
static void wilson(int k, int n, double *p, double *lo, double *hi)
{
    const double z = 1.959963984540054;
    *p = (double)k / n;
    double middle = *p + z * z / (2 * n), half = z * sqrt(*p * (1 - *p) / n + z * z / (4.0 * n * n)), scale = 1 + z * z / n;
    *lo = (middle - half) / scale;
    *hi = (middle + half) / scale;
    *lo = *lo > 0 ? *lo : 0;
    *hi = *hi < 1 ? *hi : 1;
}

void es_label_score_of(es_label_score *s)
{
    int active = s->hit + s->miss, rest = s->rejection + s->alarm;
    double p[2], lo[2], hi[2];
    s->n = active + rest;
    s->value = s->lo = 0;
    s->hi = 1;
    if (active)
        wilson(s->hit, active, &p[0], &lo[0], &hi[0]);
    if (rest)
        wilson(s->rejection, rest, &p[1], &lo[1], &hi[1]);
    if (active && rest) {
        s->value = (p[0] + p[1]) / 2;
        s->lo = s->value - hypot(p[0] - lo[0], p[1] - lo[1]) / 2;
        s->hi = s->value + hypot(hi[0] - p[0], hi[1] - p[1]) / 2;
    } else if (s->n) {
        int which = active ? 0 : 1;
        s->value = p[which];
        s->lo = lo[which];
        s->hi = hi[which];
    }
}

void es_blind_score(const es_blind *b, unsigned answer, es_label_score *out)
{
    *out = (es_label_score){.kind = "blind"};
    for (int i = 0; i < b->n; i++) {
        bool yes = answer >> i & 1;
        if (b->window[i].active)
            *(yes ? &out->hit : &out->miss) += 1;
        else
            *(yes ? &out->alarm : &out->rejection) += 1;
    }
    es_label_score_of(out);
}

/* ---- the model as judge -------------------------------------------------------------------------------------------------------------------- */

/* log-probability of token id under these logits. */
static double log_probability(const float *logits, int n_vocab, int32_t id)
{
    double most = -INFINITY, sum = 0;
    for (int i = 0; i < n_vocab; i++)
        most = (double)logits[i] > most ? (double)logits[i] : most;
    for (int i = 0; i < n_vocab; i++)
        sum += exp((double)logits[i] - most);
    return (double)logits[id] - most - log(sum);
}

/* The log-probability of the label as the model's answer to what the text shows. */
static int ask(es_context *c, const es_model *m, const es_blind_window *w, const char *label, double *odds, const volatile bool *cancel, es_error *err)
{
    es_buf text = {0}, shown = {0}, prompt = {0};
    es_ids ids = {0}, answer = {0};
    for (int i = 0; i < w->n; i++) {
        size_t n = 0;
        const char *bytes = es_token_bytes(m, w->id[i], &n);
        es_buf_add(&text, bytes, n);
    }
    es_text_show(&shown, text.data ? text.data : "", text.len, true);
    es_buf_printf(&prompt, "What does this text contain?\n\n%s", shown.data ? shown.data : "");
    es_message message = {"user", prompt.data};
    int rc = text.failed || prompt.failed || shown.failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory for a test") : es_chat_render(m, &message, 1, true, &ids, err);
    if (!rc)
        rc = es_tokenize(m, label, strlen(label), false, &answer, err);
    if (!rc)
        rc = es_context_sync(c, ids.id, (int)ids.n, NULL, cancel, err); /* what all begin with is read once */
    *odds = 0;
    for (size_t i = 0; i < answer.n && !rc; i++) {
        *odds += log_probability(es_context_logits(c), es_model_get_info(m)->n_vocab, answer.id[i]);
        if (i + 1 < answer.n)
            rc = es_context_feed(c, &answer.id[i], 1, cancel, err);
    }
    es_buf_free(&text);
    es_buf_free(&shown);
    es_buf_free(&prompt);
    es_ids_free(&ids);
    es_ids_free(&answer);
    return rc;
}

int es_blind_judge(const es_blind *b, const es_model *m, const char *label, int threads, unsigned *answer, double *odds, const volatile bool *cancel, es_error *err)
{
    double own[ES_BLIND], mean = 0;
    es_context *c = NULL;
    es_context_options o = {.threads = threads};
    int rc = es_context_open(&c, m, &o, err);
    for (int i = 0; i < b->n && !rc; i++) {
        rc = ask(c, m, &b->window[i], label, &own[i], cancel, err);
        mean += own[i] / b->n;
    }
    es_context_free(c);
    *answer = 0;
    for (int i = 0; i < b->n && !rc; i++) {
        *answer |= own[i] > mean ? 1u << i : 0;
        if (odds)
            odds[i] = own[i] - mean;
    }
    return rc;
}
