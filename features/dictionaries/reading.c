#include "reading.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

es_trainer_options es_harvest_trainer(const es_harvest_options *o)
{
    return (es_trainer_options){.max_tokens = ES_READING_TOKENS, .threads = o->threads, .rough = !o->exact, .eight_bits = !o->bfloat16};
}

int es_reading_check(const es_model *m, const es_harvest_options *o, es_error *err)
{
    const es_model_info *mi = es_model_get_info(m);
    es_point point;
    if (o->n_layer < 1 || o->n_site < 0 || o->n_layer * (o->n_site ? o->n_site : 1) > ES_PLACES_MAX || o->context < 2 || o->context > ES_READING_TOKENS)
        return es_fail(err, ES_ERR_USAGE, "a harvest takes 1 to %d layers (times sites) and contexts of 2 to %d tokens", (int)ES_PLACES_MAX, (int)ES_READING_TOKENS);
    for (int i = 0; i < o->n_layer; i++) {
        if (o->layer[i] < 0 || o->layer[i] >= mi->n_layer)
            return es_fail(err, ES_ERR_USAGE, "there is no layer %d: the model has 0 to %d", o->layer[i], mi->n_layer - 1);
        for (int j = 0; j < i; j++)
            if (o->layer[i] == o->layer[j])
                return es_fail(err, ES_ERR_USAGE, "layer %d is named twice", o->layer[i]);
    }
    for (int i = 0; i < o->n_site; i++) {
        if (!es_hook_point(o->site[i], &point))
            return es_fail(err, ES_ERR_USAGE, "%s cannot be harvested", es_hook_words(o->site[i]));
        for (int j = 0; j < i; j++)
            if (o->site[i] == o->site[j])
                return es_fail(err, ES_ERR_USAGE, "the site %s is named twice", es_hook_site(o->site[i]));
    }
    return ES_OK;
}

static void watch(void *user, int layer, int pos0, const float *x, int T, int d)
{
    (void)pos0;
    const es_reading_place *at = user;
    es_reading *r = at->r;
    size_t n = 0, width = (size_t)d;
    for (int s = 0; s < r->n_seq; s++)
        for (int t = r->start[s] + r->skip; t < r->start[s + 1] && t < T; t++, n++) {
            for (size_t i = 0; i < width; i++) /* f16 ends at 65504 */
                r->clamped[i] = fmaxf(-65504, fminf(65504, x[(size_t)t * width + i]));
            es_f32_to_f16(r->clamped, r->half + n * width, width);
        }
    if (!r->failed)
        r->failed = r->take(r->user, at->number, r->half, n, r->err);
    if (layer == r->top) /* it is looked at between layers: the other places of this one are still seen */
        __atomic_store_n(&r->stop, true, __ATOMIC_RELEASE);
}

void es_reading_set(es_reading *r, es_model *m, const es_harvest_options *o, es_reading_take *take, void *user)
{
    static const es_hook_kind residual[] = {ES_HOOK_RESIDUAL};
    const es_hook_kind *site = o->n_site ? o->site : residual;
    r->m = m;
    r->o = o;
    r->skip = o->skip_first;
    r->take = take;
    r->user = user;
    r->top = -1;
    for (int i = 0; i < o->n_layer; i++)
        for (int k = 0; k < (o->n_site ? o->n_site : 1); k++) {
            es_reading_place *p = &r->place[r->n_place];
            es_point point;
            es_hook_point(site[k], &point);
            *p = (es_reading_place){r, {o->layer[i], site[k]}, es_point_width(m, point), r->n_place};
            r->watch[r->n_place++] = (es_watch){o->layer[i], watch, p, point};
            r->top = o->layer[i] > r->top ? o->layer[i] : r->top;
        }
}

int es_reading_open(es_reading *r, es_error *err)
{
    int widest = 0;
    es_trainer_options o = es_harvest_trainer(r->o);
    for (int i = 0; i < r->n_place; i++)
        widest = r->place[i].d > widest ? r->place[i].d : widest;
    r->half = es_calloc((size_t)ES_READING_TOKENS * (size_t)widest, sizeof *r->half);
    r->clamped = es_calloc((size_t)widest, sizeof *r->clamped);
    if (!r->half || !r->clamped)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to harvest");
    return es_trainer_open(&r->trainer, r->m, &o, err);
}

void es_reading_close(es_reading *r)
{
    es_trainer_free(r->trainer);
    free(r->half);
    free(r->clamped);
    r->trainer = NULL;
    r->half = NULL;
    r->clamped = NULL;
}

bool es_reading_add(es_reading *r, const int32_t *id, size_t n, uint32_t document)
{
    size_t at = (size_t)r->start[r->n_seq];
    if (at + n > ES_READING_TOKENS)
        return false;
    memcpy(r->id + at, id, n * sizeof *id);
    r->document[r->n_seq++] = document;
    r->start[r->n_seq] = (int)(at + n);
    return true;
}

size_t es_reading_rows(const es_reading *r)
{
    return (size_t)(r->start[r->n_seq] - r->n_seq * r->skip);
}

int es_reading_run(es_reading *r, es_error *err)
{
    const es_batch b = {.ids = r->id, .n = r->start[r->n_seq], .start = r->start, .n_seq = r->n_seq};
    if (b.n == 0)
        return ES_OK;
    r->err = err;
    r->failed = 0;
    r->stop = false;
    int rc = es_trainer_forward(r->trainer, &b, NULL, NULL, r->watch, r->n_place, NULL, &r->stop, err);
    if (r->failed)
        return r->failed;
    return rc == ES_ERR_CANCELLED && r->stop ? ES_OK : rc; /* all that was wanted has been seen */
}

void es_reading_clear(es_reading *r)
{
    r->n_seq = 0;
    r->start[0] = 0;
}
