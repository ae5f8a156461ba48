/* Reading an atlas. The file is a stranger's until checked: the index when it is opened, a record when its card is asked for. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "atlas_file.h"

struct es_atlas {
    es_map map;
    es_atlas_header h;
    char dictionary_hash[65];
    float *table; /* density, max, mean, p99: [F] each */
    es_atlas_block *block;
    uint8_t *bytes;  /* of the block last read */
    size_t n_bytes, cap_bytes;
    int64_t at;      /* its number; -1: none */
    /* of the card last read: its examples, then its random places */
    es_example example[ES_ATLAS_MAX_EXAMPLES + ES_ATLAS_MAX_SPREAD];
    int32_t id[ES_ATLAS_MAX_EXAMPLES + ES_ATLAS_MAX_SPREAD][ES_ATLAS_MAX_WINDOW];
    float value[ES_ATLAS_MAX_EXAMPLES + ES_ATLAS_MAX_SPREAD][ES_ATLAS_MAX_WINDOW];
};

void es_atlas_free(es_atlas *a)
{
    if (!a)
        return;
    es_map_close(&a->map);
    free(a->table);
    free(a->block);
    free(a->bytes);
    free(a);
}

static int damaged(const es_atlas *a, const char *what, es_error *err)
{
    return es_fail(err, ES_ERR_FORMAT, "%s: not an atlas, or damaged (%s): build it again", a->map.path, what);
}

static bool hex(const char s[64])
{
    for (int i = 0; i < 64; i++)
        if (!((s[i] >= '0' && s[i] <= '9') || (s[i] >= 'a' && s[i] <= 'f')))
            return false;
    return true;
}

static int check(es_atlas *a, es_error *err)
{
    es_atlas_header *h = &a->h;
    const uint8_t *bytes = a->map.data;
    if (a->map.size < sizeof *h || memcmp(bytes, ES_ATLAS_MAGIC, 8) != 0)
        return damaged(a, "its beginning", err);
    memcpy(h, bytes, sizeof *h);
    if (h->version < 1 || h->version > ES_ATLAS_VERSION)
        return es_fail(err, ES_ERR_FORMAT, "%s: an atlas of version %u; this program reads version 1 and %d", a->map.path, h->version, (int)ES_ATLAS_VERSION);
    if (h->n_features < 1 || h->n_features > 1 << 20 || h->block_features < 1 || h->block_features > 4096
        || h->n_block != (h->n_features - 1) / h->block_features + 1 || (h->id_bytes != 2 && h->id_bytes != 4) || h->n_vocab < 1
        || h->n_vocab > 1 << 24 || h->examples > ES_ATLAS_MAX_EXAMPLES || h->window < 1 || h->window > ES_ATLAS_MAX_WINDOW
        || !hex(h->dictionary_hash) || !hex(h->model_hash))
        return damaged(a, "its header", err);
    size_t F = h->n_features, tables = 4 * F * sizeof(float), index = h->n_block * sizeof *a->block, start = sizeof *h + tables + index;
    if (a->map.size < start)
        return damaged(a, "cut short", err);
    es_atlas_header plain = *h;
    plain.crc = 0;
    uLong crc = crc32(crc32(0, (const Bytef *)&plain, sizeof plain), bytes + sizeof *h, (uInt)(tables + index));
    if (crc != h->crc)
        return damaged(a, "the sum over its index", err);
    a->table = es_calloc(4 * F, sizeof(float));
    a->block = es_calloc(h->n_block, sizeof *a->block);
    if (!a->table || !a->block)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory for its index", a->map.path);
    memcpy(a->table, bytes + sizeof *h, tables);
    memcpy(a->block, bytes + sizeof *h + tables, index);
    for (size_t i = 0; i < 4 * F; i++)
        if (!isfinite(a->table[i]) || a->table[i] < 0)
            return damaged(a, "a figure", err);
    for (uint32_t i = 0; i < h->n_block; i++) {
        const es_atlas_block *b = &a->block[i];
        /* zlib packs at most about 1032 to 1, so a small block cannot ask for much memory */
        if (b->offset < start || b->offset > a->map.size || b->packed > a->map.size - b->offset || b->packed < 2 || b->size / 1100 > b->packed)
            return damaged(a, "a block leaves the file", err);
    }
    memcpy(a->dictionary_hash, h->dictionary_hash, 64);
    return ES_OK;
}

int es_atlas_open(es_atlas **out, const char *path, es_error *err)
{
    *out = NULL;
    es_atlas *a = es_calloc(1, sizeof *a);
    if (!a)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", path);
    a->at = -1;
    int rc = es_map_open(&a->map, path, err);
    if (!rc)
        rc = check(a, err);
    if (rc)
        es_atlas_free(a);
    else
        *out = a;
    return rc;
}

int es_atlas_features(const es_atlas *a)
{
    return (int)a->h.n_features;
}

const char *es_atlas_dictionary_hash(const es_atlas *a)
{
    return a->dictionary_hash;
}

const float *es_atlas_density(const es_atlas *a)
{
    return a->table;
}

const float *es_atlas_max(const es_atlas *a)
{
    return a->table + a->h.n_features;
}

const float *es_atlas_mean(const es_atlas *a)
{
    return a->table + 2 * (size_t)a->h.n_features;
}

uint64_t es_atlas_tokens(const es_atlas *a)
{
    return a->h.tokens;
}

const float *es_atlas_p99(const es_atlas *a)
{
    return a->table + 3 * (size_t)a->h.n_features;
}

static int load_block(es_atlas *a, uint32_t number, es_error *err)
{
    const es_atlas_block *b = &a->block[number];
    if (a->at == (int64_t)number)
        return ES_OK;
    a->at = -1;
    if (b->size > a->cap_bytes) {
        uint8_t *p = realloc(a->bytes, b->size);
        if (!p)
            return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory for a block of %u bytes", a->map.path, b->size);
        a->bytes = p;
        a->cap_bytes = b->size;
    }
    uLongf n = b->size;
    if (b->size == 0 || uncompress(a->bytes, &n, a->map.data + b->offset, b->packed) != Z_OK || n != b->size)
        return damaged(a, "a block", err);
    a->n_bytes = n;
    a->at = number;
    return ES_OK;
}

typedef struct cursor { const uint8_t *p, *end; bool bad; } cursor;

static uint32_t take(cursor *c, int bytes)
{
    uint32_t v = 0;
    if (c->end - c->p < bytes) {
        c->bad = true;
        return 0;
    }
    for (int i = 0; i < bytes; i++)
        v |= (uint32_t)c->p[i] << 8 * i;
    c->p += bytes;
    return v;
}

static uint32_t take_varint(cursor *c)
{
    uint32_t v = 0;
    for (int shift = 0; shift < 35; shift += 7) {
        uint32_t byte = take(c, 1);
        if (shift == 28 && byte > 15)
            break;
        v |= (byte & 127) << shift;
        if (byte < 128)
            return v;
    }
    c->bad = true;
    return 0;
}

static int take_tokens(es_atlas *a, cursor *c, int32_t *id, float *logit)
{
    uint32_t n = take(c, 1);
    if (n > ES_ATLAS_TOKENS)
        c->bad = true;
    for (uint32_t i = 0; i < n && !c->bad; i++) {
        uint32_t token = take_varint(c);
        uint16_t half = (uint16_t)take(c, 2);
        if (token >= a->h.n_vocab)
            c->bad = true;
        id[i] = (int32_t)token;
        es_f16_to_f32(&half, &logit[i], 1);
    }
    return c->bad ? 0 : (int)n;
}

static void take_example(es_atlas *a, cursor *c, int i)
{
    es_example *e = &a->example[i];
    uint32_t n = take(c, 1), peak = take(c, 1), bits = take(c, 4);
    memcpy(&e->max, &bits, 4);
    if (n < 1 || n > a->h.window || peak >= n || !isfinite(e->max))
        c->bad = true;
    for (uint32_t t = 0; t < n && !c->bad; t++) {
        uint32_t id = take(c, (int)a->h.id_bytes);
        if (id >= a->h.n_vocab)
            c->bad = true;
        a->id[i][t] = (int32_t)id;
    }
    for (uint32_t t = 0; t < n && !c->bad; t++)
        a->value[i][t] = (float)take(c, 1) / 255 * e->max;
    e->n = (int)n;
    e->peak = (int)peak;
    e->interval = 0;
    e->id = a->id[i];
    e->value = a->value[i];
}

static float take_float(cursor *c)
{
    uint32_t bits = take(c, 4);
    float v;
    memcpy(&v, &bits, 4);
    c->bad |= !isfinite(v);
    return v;
}

static float take_half(cursor *c)
{
    uint16_t half = (uint16_t)take(c, 2);
    float v;
    es_f16_to_f32(&half, &v, 1);
    c->bad |= !isfinite(v);
    return v;
}

/* What a record has since version 2. */
static void take_more(es_atlas *a, cursor *c, int feature, es_feature_card *out)
{
    uint32_t n = take(c, 1);
    c->bad |= n > ES_ATLAS_MAX_SPREAD;
    for (uint32_t i = 0; i < n && !c->bad; i++) {
        uint32_t interval = take(c, 1);
        take_example(a, c, ES_ATLAS_MAX_EXAMPLES + (int)i);
        c->bad |= interval >= ES_ATLAS_INTERVALS || (i && (int)interval > a->example[ES_ATLAS_MAX_EXAMPLES + (int)i - 1].interval);
        a->example[ES_ATLAS_MAX_EXAMPLES + (int)i].interval = (int)interval;
    }
    out->n_spread = c->bad ? 0 : (int)n;
    out->spread = a->example + ES_ATLAS_MAX_EXAMPLES;
    out->has_logits = true;
    out->logit_lo = take_float(c);
    out->logit_hi = take_float(c);
    for (int i = 0; i < ES_ATLAS_BINS; i++)
        out->logits[i] = take_varint(c);
    n = take(c, 1);
    c->bad |= n > ES_ATLAS_CORRELATED || out->logit_lo > out->logit_hi;
    for (uint32_t i = 0; i < n && !c->bad; i++) {
        uint32_t other = take_varint(c);
        c->bad |= other >= a->h.n_features || (int)other == feature;
        out->correlated[i] = (int32_t)other;
        out->pearson[i] = take_half(c);
        out->together[i] = take_half(c);
    }
    out->n_correlated = c->bad ? 0 : (int)n;
}

int es_atlas_card(es_atlas *a, int feature, es_feature_card *out, es_error *err)
{
    *out = (es_feature_card){.feature = feature};
    size_t F = a->h.n_features;
    if (feature < 0 || (size_t)feature >= F)
        return es_fail(err, ES_ERR_USAGE, "%s: there is no feature %d (0 to %zu)", a->map.path, feature, F - 1);
    uint32_t number = (uint32_t)feature / a->h.block_features, first = number * a->h.block_features, in_block = (uint32_t)feature - first;
    uint32_t count = F - first < a->h.block_features ? (uint32_t)(F - first) : a->h.block_features;
    int rc = load_block(a, number, err);
    if (rc)
        return rc;
    cursor c = {a->bytes, a->bytes + a->n_bytes, false};
    if (a->n_bytes < (size_t)(count + 1) * 4)
        return damaged(a, "a block", err);
    c.p += in_block * 4;
    uint32_t from = take(&c, 4), to = take(&c, 4);
    if (from > to || to > a->n_bytes)
        return damaged(a, "a record leaves its block", err);
    c = (cursor){a->bytes + from, a->bytes + to, false};

    out->density = (double)a->table[feature];
    out->max = a->table[F + (size_t)feature];
    out->mean = a->table[2 * F + (size_t)feature];
    out->p99 = a->table[3 * F + (size_t)feature];
    out->bin_width = out->max / ES_ATLAS_BINS;
    for (int i = 0; i < ES_ATLAS_BINS; i++)
        out->histogram[i] = take_varint(&c);
    out->n_promoted = take_tokens(a, &c, out->promoted, out->promoted_logit);
    out->n_suppressed = take_tokens(a, &c, out->suppressed, out->suppressed_logit);
    uint32_t examples = take(&c, 1);
    if (examples > ES_ATLAS_MAX_EXAMPLES)
        c.bad = true;
    for (uint32_t i = 0; i < examples && !c.bad; i++)
        take_example(a, &c, (int)i);
    if (a->h.version > 1 && !c.bad)
        take_more(a, &c, feature, out);
    if (c.bad || c.p != c.end) {
        *out = (es_feature_card){.feature = feature};
        return damaged(a, "a record", err);
    }
    out->n_example = (int)examples;
    out->example = a->example;
    return ES_OK;
}

void es_atlas_intervals(const es_feature_card *c, es_interval out[ES_ATLAS_INTERVALS])
{
    enum { WIDTH = ES_ATLAS_BINS / ES_ATLAS_INTERVALS };
    _Static_assert(WIDTH * ES_ATLAS_INTERVALS == ES_ATLAS_BINS, "an interval is whole bins");
    uint64_t all = 0;
    for (int i = 0; i < ES_ATLAS_BINS; i++)
        all += c->histogram[i];
    for (int i = 0, at = 0; i < ES_ATLAS_INTERVALS; i++) {
        int interval = ES_ATLAS_INTERVALS - 1 - i;
        uint64_t in = 0;
        for (int b = interval * WIDTH; b < (interval + 1) * WIDTH; b++)
            in += c->histogram[b];
        out[i] = (es_interval){.lo = c->max * (float)interval / ES_ATLAS_INTERVALS, .hi = c->max * (float)(interval + 1) / ES_ATLAS_INTERVALS,
                               .share = all ? (double)in / (double)all : 0, .first = at};
        while (at < c->n_spread && c->spread[at].interval == interval)
            at++;
        out[i].n = at - out[i].first;
    }
}

/* Adds a token's text for a list: quotes nothing, shows what a terminal would act on, marks spaces at the front as "_". */
static void add_token(const es_model *m, int32_t id, es_buf *out)
{
    size_t n = 0;
    if (id < 0 || id >= es_model_get_info(m)->n_vocab)
        return;
    const char *s = es_token_bytes(m, id, &n);
    if (!s)
        return;
    bool space = n > 1 && s[0] == ' ';
    es_text_show(out, s + space, n - space, false);
}

int es_atlas_tokens_text(es_atlas *a, const es_model *m, int feature, es_buf *out, es_error *err)
{
    enum { FIRED = 5, PROMOTED = 4 };
    es_feature_card card;
    int rc = es_atlas_card(a, feature, &card, err);
    if (rc)
        return rc;
    int32_t seen[FIRED];
    int n = 0;
    for (int i = 0; i < card.n_example && n < FIRED; i++) {
        int32_t id = card.example[i].id[card.example[i].peak];
        bool had = false;
        for (int k = 0; k < n; k++)
            had |= seen[k] == id;
        if (had)
            continue;
        seen[n++] = id;
        if (n > 1)
            es_buf_str(out, " ");
        add_token(m, id, out);
    }
    es_buf_str(out, n ? " -> " : "-> ");
    for (int i = 0; i < card.n_promoted && i < PROMOTED; i++) {
        if (i)
            es_buf_str(out, " ");
        add_token(m, card.promoted[i], out);
    }
    return out->failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory for a feature's tokens") : ES_OK;
}
