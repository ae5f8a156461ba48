#include "atlas_write.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "atlas_file.h"

static void put(es_buf *out, uint32_t v, int bytes)
{
    uint8_t b[4];
    for (int i = 0; i < bytes; i++)
        b[i] = (uint8_t)(v >> 8 * i);
    es_buf_add(out, b, (size_t)bytes);
}

static void put_varint(es_buf *out, uint32_t v)
{
    for (; v > 127; v >>= 7)
        put(out, v | 128, 1);
    put(out, v, 1);
}

static void put_float(es_buf *out, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, 4);
    put(out, bits, 4);
}

static void put_half(es_buf *out, float v)
{
    uint16_t half;
    es_f32_to_f16(&v, &half, 1);
    put(out, half, 2);
}

static void put_tokens(es_buf *out, int n, const int32_t *id, const float *v)
{
    put(out, (uint32_t)n, 1);
    for (int i = 0; i < n; i++) {
        put_varint(out, (uint32_t)id[i]);
        put_half(out, v[i]);
    }
}

static void put_example(es_buf *out, const es_example *e, int id_bytes)
{
    put(out, (uint32_t)e->n, 1);
    put(out, (uint32_t)e->peak, 1);
    put_float(out, e->max);
    for (int t = 0; t < e->n; t++)
        put(out, (uint32_t)e->id[t], id_bytes);
    for (int t = 0; t < e->n; t++) { /* what is active at all stays so */
        long v = e->max > 0 ? lrintf(e->value[t] / e->max * 255) : 0;
        put(out, (uint32_t)(e->value[t] <= 0 || v < 0 ? 0 : v < 1 ? 1 : v > 255 ? 255 : v), 1);
    }
}

static void put_record(es_buf *out, const es_feature_card *c, int id_bytes)
{
    for (int i = 0; i < ES_ATLAS_BINS; i++)
        put_varint(out, c->histogram[i]);
    put_tokens(out, c->n_promoted, c->promoted, c->promoted_logit);
    put_tokens(out, c->n_suppressed, c->suppressed, c->suppressed_logit);
    put(out, (uint32_t)c->n_example, 1);
    for (int i = 0; i < c->n_example; i++)
        put_example(out, &c->example[i], id_bytes);
    put(out, (uint32_t)c->n_spread, 1);
    for (int i = 0; i < c->n_spread; i++) {
        put(out, (uint32_t)c->spread[i].interval, 1);
        put_example(out, &c->spread[i], id_bytes);
    }
    put_float(out, c->logit_lo);
    put_float(out, c->logit_hi);
    for (int i = 0; i < ES_ATLAS_BINS; i++)
        put_varint(out, c->logits[i]);
    put(out, (uint32_t)c->n_correlated, 1);
    for (int i = 0; i < c->n_correlated; i++) {
        put_varint(out, (uint32_t)c->correlated[i]);
        put_half(out, c->pearson[i]);
        put_half(out, c->together[i]);
    }
}

static bool ids_are(const int32_t *id, int n, int vocab)
{
    for (int i = 0; i < n; i++)
        if (id[i] < 0 || id[i] >= vocab)
            return false;
    return true;
}

static bool examples_fit(const es_atlas_source *s, const es_example *e, int n, int most)
{
    bool ok = n >= 0 && n <= most;
    for (int i = 0; ok && i < n; i++)
        ok = e[i].n >= 1 && e[i].n <= s->window && e[i].peak >= 0 && e[i].peak < e[i].n && isfinite(e[i].max) && e[i].interval >= 0 && e[i].interval < ES_ATLAS_INTERVALS
             && ids_are(e[i].id, e[i].n, s->n_vocab);
    return ok;
}

static bool fits(const es_atlas_source *s, int feature, const es_feature_card *c)
{
    bool ok = isfinite(c->density) && c->density >= 0 && isfinite(c->max) && c->max >= 0 && isfinite(c->mean) && c->mean >= 0 && isfinite(c->p99) && c->p99 >= 0
              && c->n_promoted >= 0 && c->n_promoted <= ES_ATLAS_TOKENS && c->n_suppressed >= 0 && c->n_suppressed <= ES_ATLAS_TOKENS
              && ids_are(c->promoted, c->n_promoted, s->n_vocab) && ids_are(c->suppressed, c->n_suppressed, s->n_vocab)
              && examples_fit(s, c->example, c->n_example, s->examples) && examples_fit(s, c->spread, c->n_spread, ES_ATLAS_MAX_SPREAD) && isfinite(c->logit_lo)
              && isfinite(c->logit_hi) && c->logit_lo <= c->logit_hi && c->n_correlated >= 0 && c->n_correlated <= ES_ATLAS_CORRELATED;
    for (int i = 1; ok && i < c->n_spread; i++)
        ok = c->spread[i].interval <= c->spread[i - 1].interval;
    for (int i = 0; ok && i < c->n_correlated; i++)
        ok = c->correlated[i] >= 0 && c->correlated[i] < s->n_features && c->correlated[i] != feature && isfinite(c->pearson[i]) && isfinite(c->together[i]);
    return ok;
}

/* One block of features, packed at the end of `out`; their figures into the table [4, F]. */
static int put_block(const es_atlas_source *s, int first, int id_bytes, float *table, es_buf *out, es_atlas_block *index, es_error *err)
{
    size_t F = (size_t)s->n_features;
    int n = s->n_features - first < ES_ATLAS_BLOCK ? s->n_features - first : ES_ATLAS_BLOCK, rc = ES_OK;
    es_buf records = {0}, raw = {0};
    for (int i = 0; i < n && !rc; i++) {
        es_feature_card c = {.feature = first + i};
        size_t j = (size_t)(first + i);
        rc = s->card(s->user, first + i, &c, err);
        if (!rc && !fits(s, first + i, &c))
            rc = es_fail(err, ES_ERR_FORMAT, "feature %d has what an atlas cannot hold", first + i);
        if (rc)
            break;
        table[j] = (float)c.density;
        table[F + j] = c.max;
        table[2 * F + j] = c.mean;
        table[3 * F + j] = c.p99;
        put(&raw, (uint32_t)((size_t)(n + 1) * 4 + records.len), 4);
        put_record(&records, &c, id_bytes);
    }
    put(&raw, (uint32_t)((size_t)(n + 1) * 4 + records.len), 4);
    es_buf_add(&raw, records.data, records.len);
    uLongf packed = compressBound(raw.len);
    Bytef *bytes = rc || raw.failed || records.failed ? NULL : malloc(packed);
    if (!rc && !(bytes && compress2(bytes, &packed, (const Bytef *)raw.data, raw.len, 9) == Z_OK))
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to write the atlas");
    if (!rc) {
        *index = (es_atlas_block){.offset = out->len, .packed = (uint32_t)packed, .size = (uint32_t)raw.len};
        es_buf_add(out, bytes, packed);
    }
    free(bytes);
    es_buf_free(&records);
    es_buf_free(&raw);
    return rc;
}

int es_atlas_write(const char *path, const es_atlas_source *s, es_error *err)
{
    if (s->n_features < 1 || s->examples < 0 || s->examples > ES_ATLAS_MAX_EXAMPLES || s->window < 1 || s->window > ES_ATLAS_MAX_WINDOW || strlen(s->dictionary_hash) != 64
        || strlen(s->model_hash) != 64)
        return es_fail(err, ES_ERR_USAGE, "no such atlas can be written");
    size_t F = (size_t)s->n_features;
    es_atlas_header h = {.magic = ES_ATLAS_MAGIC, .version = ES_ATLAS_VERSION, .n_features = (uint32_t)F, .block_features = ES_ATLAS_BLOCK, .n_vocab = (uint32_t)s->n_vocab,
                         .id_bytes = s->n_vocab <= 65536 ? 2 : 4, .examples = (uint32_t)s->examples, .window = (uint32_t)s->window, .layer = s->layer, .tokens = s->tokens};
    h.n_block = (h.n_features - 1) / h.block_features + 1;
    memcpy(h.dictionary_hash, s->dictionary_hash, 64);
    memcpy(h.model_hash, s->model_hash, 64);
    float *table = es_calloc(4 * F, sizeof *table);
    es_atlas_block *index = es_calloc(h.n_block, sizeof *index);
    es_buf blocks = {0}, out = {0};
    int rc = table && index ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory to write the atlas");
    for (uint32_t i = 0; i < h.n_block && !rc; i++)
        rc = put_block(s, (int)i * ES_ATLAS_BLOCK, (int)h.id_bytes, table, &blocks, &index[i], err);
    if (!rc) {
        size_t start = sizeof h + 4 * F * sizeof *table + h.n_block * sizeof *index;
        for (uint32_t i = 0; i < h.n_block; i++)
            index[i].offset += start;
        uLong crc = crc32(0, (const Bytef *)&h, sizeof h);
        crc = crc32(crc, (const Bytef *)table, (uInt)(4 * F * sizeof *table));
        h.crc = (uint32_t)crc32(crc, (const Bytef *)index, (uInt)(h.n_block * sizeof *index));
        es_buf_add(&out, &h, sizeof h);
        es_buf_add(&out, table, 4 * F * sizeof *table);
        es_buf_add(&out, index, h.n_block * sizeof *index);
        es_buf_add(&out, blocks.data, blocks.len);
        rc = out.failed || blocks.failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory to write the atlas") : es_file_write(path, out.data, out.len, err);
    }
    free(table);
    free(index);
    es_buf_free(&blocks);
    es_buf_free(&out);
    return rc;
}
