/* Harvest: text to activation shards, and reading them back.
 *
 * DIR/harvest.json says what was done and how far: "rows", "ids", "sequences" and "next_document" of the last checkpoint. The other
 * files only grow, so a harvest that was interrupted is cut back to these counts and goes on; a reader sees no more than them. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "reading.h"
#include "vector.h"

enum { SHARD_ROWS = 65536, CHECKPOINT_SECONDS = 20 };

es_harvest_options es_harvest_default(void)
{
    return (es_harvest_options){.context = 256, .skip_first = true, .seed = 1};
}

typedef struct slot { /* the shard being written of a place */
    FILE *shard;
    uint64_t shard_open; /* its number + 1; 0: none */
} slot;

typedef struct harvest {
    es_model *m;
    es_harvest_options o;
    const char *dir;
    char model_hash[65];
    es_documents docs;
    json_t *info;
    es_reading r;
    slot slot[ES_PLACES_MAX]; /* [r.n_place] */
    /* done and on disk, or in the batch */
    uint64_t rows, n_id, n_sequence, next_document;
    FILE *ids, *sequences;
    double began;
    uint64_t began_rows;
} harvest;

static int fail_write(const harvest *h, const char *name, es_error *err)
{
    return es_fail(err, ES_ERR_IO, "%s/%s: cannot write: %s", h->dir, name, strerror(errno));
}

static int open_at(const harvest *h, FILE **out, const char *name, uint64_t bytes, es_error *err)
{
    char path[1300];
    snprintf(path, sizeof path, "%s/%s", h->dir, name);
    *out = fopen(path, "ab");
    struct stat st;
    if (!*out || fstat(fileno(*out), &st) != 0)
        return fail_write(h, name, err);
    if ((uint64_t)st.st_size < bytes)
        return es_fail(err, ES_ERR_FORMAT, "%s is shorter than harvest.json says: start again in an empty folder", path);
    if (ftruncate(fileno(*out), (off_t)bytes) != 0)
        return fail_write(h, name, err);
    return ES_OK;
}

static void shard_name(char *out, size_t size, es_hook_place place, uint64_t shard)
{
    char folder[32];
    es_hook_place_name(place, folder);
    snprintf(out, size, "%s/shard-%04llu.f16", folder, (unsigned long long)shard);
}

/* Appends rows (from h->rows on) to a place's shards. */
static int add_rows(void *user, int place, const uint16_t *half, size_t n, es_error *err)
{
    harvest *h = user;
    slot *s = &h->slot[place];
    const size_t d = (size_t)h->r.place[place].d;
    uint64_t row = h->rows;
    while (n) {
        uint64_t number = row / SHARD_ROWS, at = row % SHARD_ROWS;
        size_t m = SHARD_ROWS - at < n ? (size_t)(SHARD_ROWS - at) : n;
        char name[64];
        shard_name(name, sizeof name, h->r.place[place].at, number);
        if (s->shard_open != number + 1) {
            if (s->shard && fclose(s->shard) != 0) {
                s->shard = NULL;
                return fail_write(h, name, err);
            }
            s->shard = NULL;
            int rc = open_at(h, &s->shard, name, at * (uint64_t)d * 2, err);
            if (rc)
                return rc;
            s->shard_open = number + 1;
        }
        if (fwrite(half, d * 2, m, s->shard) != m)
            return fail_write(h, name, err);
        half += m * d;
        row += m;
        n -= m;
    }
    return ES_OK;
}

static int run_batch(harvest *h, es_error *err)
{
    const es_reading *b = &h->r;
    size_t n = (size_t)b->start[b->n_seq];
    int rc = es_reading_run(&h->r, err);
    if (rc)
        return rc;
    if (fwrite(b->id, sizeof *b->id, n, h->ids) != n)
        return fail_write(h, "ids.bin", err);
    for (int s = 0; s < b->n_seq; s++) {
        uint32_t length = (uint32_t)(b->start[s + 1] - b->start[s]);
        es_harvest_sequence r = {h->n_id, h->rows, length, b->document[s]};
        if (fwrite(&r, sizeof r, 1, h->sequences) != 1)
            return fail_write(h, "sequences.bin", err);
        h->n_id += length;
        h->rows += length - (uint32_t)b->skip;
        h->n_sequence++;
    }
    es_reading_clear(&h->r);
    return ES_OK;
}

static int flush(FILE *f)
{
    return !f || (fflush(f) == 0 && fdatasync(fileno(f)) == 0) ? 0 : -1;
}

static int checkpoint(harvest *h, bool complete, es_error *err)
{
    int bad = flush(h->ids) | flush(h->sequences);
    for (int i = 0; i < h->r.n_place; i++)
        bad |= flush(h->slot[i].shard);
    if (bad)
        return fail_write(h, "*", err);
    json_object_set_new(h->info, "rows", json_integer((json_int_t)h->rows));
    json_object_set_new(h->info, "ids", json_integer((json_int_t)h->n_id));
    json_object_set_new(h->info, "sequences", json_integer((json_int_t)h->n_sequence));
    json_object_set_new(h->info, "next_document", json_integer((json_int_t)h->next_document));
    json_object_set_new(h->info, "complete", json_boolean(complete));
    char path[1300], *text = json_dumps(h->info, JSON_INDENT(1));
    if (!text)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to write harvest.json");
    snprintf(path, sizeof path, "%s/harvest.json", h->dir);
    int rc = es_file_write(path, text, strlen(text), err);
    free(text);
    return rc;
}

static bool only_residual(const es_harvest_options *o)
{
    return o->n_site == 0 || (o->n_site == 1 && o->site[0] == ES_HOOK_RESIDUAL);
}

static void describe_sites(const harvest *h, json_t *v)
{
    json_t *sites = json_array();
    json_object_set_new(v, "sites", sites);
    for (int i = 0; i < h->o.n_site; i++) {
        json_array_append_new(sites, json_string(es_hook_site(h->o.site[i])));
        if (h->o.site[i] == ES_HOOK_ATTENTION)
            json_object_set_new(v, "d_z", json_integer(es_point_width(h->m, ES_POINT_ATTENTION)));
    }
}

/* What products are made of, as harvest.json has it; NULL: f32. */
static const char *products(const es_harvest_options *o)
{
    if (o->exact || es_kernels_half() == es_kernels_cpu())
        return NULL;
    return o->bfloat16 || es_kernels_eight() == es_kernels_half() ? "bfloat16" : "int8";
}

/* harvest.json of a new harvest: everything that must be the same for a resumed one to be one harvest. */
static json_t *describe(harvest *h, es_error *err)
{
    json_t *files = es_documents_files(&h->docs), *layers = json_array();
    for (int i = 0; i < h->o.n_layer; i++)
        json_array_append_new(layers, json_integer(h->o.layer[i]));
    json_t *v = json_pack("{s:s, s:i, s:{s:s, s:s}, s:o, s:o, s:i, s:i, s:b, s:I, s:i}", "format", "espalier-harvest", "version", 1, "model", "name",
                          es_model_get_info(h->m)->name, "sha256", h->model_hash, "files", files, "layers", layers, "d", es_model_get_info(h->m)->d_model, "context",
                          h->o.context, "skip_first", h->o.skip_first, "seed", (json_int_t)h->o.seed, "shard_rows", SHARD_ROWS);
    if (v && !only_residual(&h->o)) /* a harvest of the residual says nothing of sites, as before there were others */
        describe_sites(h, v);
    if (v && products(&h->o)) /* a harvest is of one kind */
        json_object_set_new(v, "products", json_string(products(&h->o)));
    if (!v)
        es_fail(err, ES_ERR_MEMORY, "not enough memory to describe the harvest");
    return v;
}

static bool get_count(json_t *v, const char *key, uint64_t *out)
{
    json_t *n = json_object_get(v, key);
    if (!json_is_integer(n) || json_integer_value(n) < 0)
        return false;
    *out = (uint64_t)json_integer_value(n);
    return true;
}

/* Takes over the counts of an earlier run with the same settings, if there is one. */
static int resume(harvest *h, bool *complete, es_error *err)
{
    char path[1300];
    json_t *old;
    *complete = false;
    snprintf(path, sizeof path, "%s/harvest.json", h->dir);
    if (access(path, F_OK) != 0)
        return ES_OK;
    int rc = es_json_file(&old, path, err);
    if (rc)
        return rc;
    const char *key;
    json_t *want;
    json_object_foreach(h->info, key, want)
        if (strcmp(key, "products") && !json_equal(want, json_object_get(old, key))) {
            json_decref(old);
            return es_fail(err, ES_ERR_MISMATCH, "%s: there is a harvest with another \"%s\": give another folder, or remove this one", path, key);
        }
    if (!json_object_get(h->info, "sites") && json_object_get(old, "sites")) {
        json_decref(old);
        return es_fail(err, ES_ERR_MISMATCH, "%s: there is a harvest with other \"sites\": give another folder, or remove this one", path);
    }
    const char *before = json_string_value(json_object_get(old, "products")), *now = products(&h->o);
    if (before && now && !strcmp(before, "bfloat16") && strcmp(now, before)) { /* it goes on as it began */
        h->o.bfloat16 = true;
        json_object_set_new(h->info, "products", json_string(now = before));
    }
    if (!before != !now || (now && strcmp(before, now))) {
        rc = es_fail(err, ES_ERR_MISMATCH, "%s: there is a harvest with products on %.20s, not on %s: go on with it so (harvest --exact, or without), give another folder, or remove this one",
                     path, before ? before : "f32", now ? now : "f32");
        json_decref(old);
        return rc;
    }
    if (!get_count(old, "rows", &h->rows) || !get_count(old, "ids", &h->n_id) || !get_count(old, "sequences", &h->n_sequence)
        || !get_count(old, "next_document", &h->next_document))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: lacks its counts", path);
    *complete = h->next_document >= h->docs.n || (h->o.max_tokens && h->rows >= h->o.max_tokens);
    json_decref(old);
    return rc;
}

static int open_all(harvest *h, es_error *err)
{
    char name[64], folder[32], path[1300];
    for (int i = 0; i < h->r.n_place; i++) {
        slot *s = &h->slot[i];
        es_hook_place_name(h->r.place[i].at, folder);
        snprintf(path, sizeof path, "%s/%s", h->dir, folder);
        int rc = es_dir_make(path, err);
        if (rc)
            return rc;
        if (h->rows % SHARD_ROWS == 0)
            continue; /* the next shard is a new one */
        shard_name(name, sizeof name, h->r.place[i].at, h->rows / SHARD_ROWS);
        rc = open_at(h, &s->shard, name, h->rows % SHARD_ROWS * (uint64_t)h->r.place[i].d * 2, err);
        if (rc)
            return rc;
        s->shard_open = h->rows / SHARD_ROWS + 1;
    }
    int rc = open_at(h, &h->ids, "ids.bin", h->n_id * sizeof(int32_t), err);
    if (!rc)
        rc = open_at(h, &h->sequences, "sequences.bin", h->n_sequence * sizeof(es_harvest_sequence), err);
    return rc ? rc : es_reading_open(&h->r, err);
}

static void report(harvest *h, const es_progress *progress, double total)
{
    char what[80];
    double seconds = es_seconds() - h->began;
    snprintf(what, sizeof what, "harvest, %.0f tokens/s", seconds > 0 ? (double)(h->rows - h->began_rows) / seconds : 0);
    es_progress_report(progress, what, (double)h->rows, total, "tokens");
}

static int run(harvest *h, const es_progress *progress, es_error *err)
{
    es_ids ids = {0};
    int rc = ES_OK;
    double last = es_seconds();
    bool full = false;
    h->began = last;
    h->began_rows = h->rows;
    for (; h->next_document < h->docs.n && !full && !rc; h->next_document++) {
        if (es_progress_cancelled(progress)) {
            rc = run_batch(h, err);
            if (!rc)
                rc = checkpoint(h, false, err);
            if (!rc)
                rc = es_fail(err, ES_ERR_CANCELLED, "the harvest was cancelled after %llu tokens; the same command goes on with it", (unsigned long long)h->rows);
            break;
        }
        if (es_seconds() - last > CHECKPOINT_SECONDS) { /* between documents, nothing pending */
            rc = run_batch(h, err);
            if (!rc)
                rc = checkpoint(h, false, err);
            if (rc)
                break;
            last = es_seconds();
        }
        rc = es_documents_ids(&h->docs, (size_t)h->next_document, h->m, &ids, err);
        for (size_t at = 0; at < ids.n && !rc && !full; at += (size_t)h->o.context) {
            size_t n = ids.n - at < (size_t)h->o.context ? ids.n - at : (size_t)h->o.context;
            uint64_t stored = h->rows + es_reading_rows(&h->r), skip = (uint64_t)h->r.skip;
            if (h->o.max_tokens && stored + n - skip >= h->o.max_tokens) {
                n = (size_t)(h->o.max_tokens - stored + skip);
                full = true;
            }
            if (n <= skip || es_reading_add(&h->r, ids.id + at, n, (uint32_t)h->next_document))
                continue;
            rc = run_batch(h, err);
            report(h, progress, (double)h->o.max_tokens);
            if (!rc)
                es_reading_add(&h->r, ids.id + at, n, (uint32_t)h->next_document);
        }
    }
    es_ids_free(&ids);
    if (!rc)
        rc = run_batch(h, err);
    if (!rc)
        rc = checkpoint(h, true, err);
    if (!rc)
        report(h, progress, (double)h->rows);
    return rc;
}

int es_harvest(es_model *m, const char *const *file, int n_file, const char *dir, const es_harvest_options *o, const es_progress *progress,
               es_error *err)
{
    int rc = es_reading_check(m, o, err);
    if (rc)
        return rc;
    if (strlen(dir) > 1000)
        return es_fail(err, ES_ERR_USAGE, "%.80s...: the path is too long", dir);
    harvest *h = es_calloc(1, sizeof *h);
    if (!h)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to harvest");
    h->m = m;
    h->o = *o;
    h->dir = dir;
    es_reading_set(&h->r, m, &h->o, add_rows, h);
    bool complete = false;
    rc = es_documents_open(&h->docs, file, n_file, o->seed, err);
    if (!rc)
        rc = es_model_hash(m, h->model_hash, err);
    if (!rc && !(h->info = describe(h, err)))
        rc = ES_ERR_MEMORY;
    if (!rc)
        rc = es_dir_make(dir, err);
    if (!rc)
        rc = resume(h, &complete, err);
    if (!rc && !complete)
        rc = open_all(h, err);
    if (!rc && !complete)
        rc = run(h, progress, err);
    for (int i = 0; i < h->r.n_place; i++)
        if (h->slot[i].shard)
            fclose(h->slot[i].shard);
    if (h->ids)
        fclose(h->ids);
    if (h->sequences)
        fclose(h->sequences);
    es_reading_close(&h->r);
    es_documents_close(&h->docs);
    json_decref(h->info);
    free(h);
    return rc;
}

/* ---- reading ----------------------------------------------------------------------------------------------------------------------- */

void es_harvest_reader_close(es_harvest_reader *h)
{
    for (size_t i = 0; h->shard && i < h->n_shard; i++)
        es_map_close(&h->shard[i]);
    free(h->shard);
    es_map_close(&h->ids);
    es_map_close(&h->sequences);
    json_decref(h->info);
    *h = (es_harvest_reader){0};
}

static int open_map(es_map *m, const char *path, uint64_t count, size_t size, es_error *err)
{
    int rc = es_map_open(m, path, err);
    size_t bytes;
    if (!rc && (!es_mul((size_t)count, size, &bytes) || m->size < bytes))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: %zu bytes are fewer than harvest.json says", path, m->size);
    return rc;
}

static int read_info(es_harvest_reader *h, const char *dir, es_error *err)
{
    char path[1300];
    snprintf(path, sizeof path, "%s/harvest.json", dir);
    int rc = es_json_file(&h->info, path, err);
    if (rc)
        return rc;
    uint64_t rows, ids, sequences, d, shard_rows, version, context;
    const char *format = json_string_value(json_object_get(h->info, "format"));
    json_t *model = json_object_get(h->info, "model");
    h->model_name = json_string_value(json_object_get(model, "name"));
    h->model_hash = json_string_value(json_object_get(model, "sha256"));
    if (!format || strcmp(format, "espalier-harvest") != 0 || !get_count(h->info, "version", &version) || version != 1 || !h->model_name
        || !h->model_hash || !get_count(h->info, "rows", &rows) || !get_count(h->info, "ids", &ids)
        || !get_count(h->info, "sequences", &sequences) || !get_count(h->info, "d", &d) || d < 1 || d > 1 << 16
        || !get_count(h->info, "shard_rows", &shard_rows) || shard_rows < 1 || !get_count(h->info, "context", &context)
        || rows > ids || sequences > ids || context > 1 << 20)
        return es_fail(err, ES_ERR_FORMAT, "%s: is not the description of a harvest of version 1", path);
    if (rows == 0)
        return es_fail(err, ES_ERR_MISSING, "%s: the harvest has no tokens yet", path);
    h->n_row = (size_t)rows;
    h->n_id = (size_t)ids;
    h->n_sequence = (size_t)sequences;
    h->d = (int)d;
    h->context = (int)context;
    h->shard_rows = (size_t)shard_rows;
    h->n_shard = (h->n_row - 1) / h->shard_rows + 1;
    h->skip = json_is_true(json_object_get(h->info, "skip_first"));
    if (h->site != ES_HOOK_ATTENTION)
        return ES_OK;
    if (!get_count(h->info, "d_z", &d) || d < 1 || d > 1 << 16)
        return es_fail(err, ES_ERR_MISSING, "%s: the harvest has no site %s", path, es_hook_site(h->site));
    h->d = (int)d;
    return ES_OK;
}

int es_harvest_reader_open(es_harvest_reader *h, const char *dir, int layer, es_error *err)
{
    return es_harvest_reader_open_at(h, dir, (es_hook_place){layer, ES_HOOK_RESIDUAL}, err);
}

int es_harvest_reader_open_at(es_harvest_reader *h, const char *dir, es_hook_place place, es_error *err)
{
    *h = (es_harvest_reader){.layer = place.layer, .site = place.hook};
    char path[1300], where[32];
    es_hook_place_name(place, where);
    if (strlen(dir) > 1000)
        return es_fail(err, ES_ERR_USAGE, "%.80s...: the path is too long", dir);
    int rc = read_info(h, dir, err);
    if (!rc) {
        snprintf(path, sizeof path, "%s/ids.bin", dir);
        rc = open_map(&h->ids, path, h->n_id, sizeof(int32_t), err);
    }
    if (!rc) {
        snprintf(path, sizeof path, "%s/sequences.bin", dir);
        rc = open_map(&h->sequences, path, h->n_sequence, sizeof(es_harvest_sequence), err);
    }
    if (!rc) { /* the files are now known to be there, so the counts are bounded by something real */
        h->id = (const int32_t *)(const void *)h->ids.data;
        h->sequence = (const es_harvest_sequence *)(const void *)h->sequences.data;
        for (size_t i = 0; i < h->n_sequence && !rc; i++) {
            const es_harvest_sequence *s = &h->sequence[i];
            if (s->n <= (uint32_t)h->skip || s->id > h->n_id || s->n > h->n_id - s->id || s->row > h->n_row || s->n - (uint32_t)h->skip > h->n_row - s->row)
                rc = es_fail(err, ES_ERR_FORMAT, "%s: sequence %zu leaves the harvest", path, i);
        }
        h->shard = rc ? NULL : es_calloc(h->n_shard, sizeof *h->shard);
        if (!rc && !h->shard)
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for %zu shards", h->n_shard);
    }
    for (size_t i = 0; !rc && i < h->n_shard; i++) {
        char name[64];
        shard_name(name, sizeof name, place, i);
        snprintf(path, sizeof path, "%s/%s", dir, name);
        size_t rows = i + 1 < h->n_shard ? h->shard_rows : h->n_row - i * h->shard_rows;
        rc = open_map(&h->shard[i], path, rows, (size_t)h->d * 2, err);
    }
    if (!rc) {
        size_t n = h->n_row < ES_NORM_ROWS ? h->n_row : ES_NORM_ROWS, d = (size_t)h->d;
        float *norm = es_calloc(n + d, sizeof *norm), *row = norm + n;
        if (!norm)
            rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to read the harvest");
        for (size_t i = 0; i < n && !rc; i++) {
            double sum = 0;
            es_harvest_reader_rows(h, h->n_row / n * i, 1, row);
            for (size_t k = 0; k < d; k++)
                sum += (double)row[k] * (double)row[k];
            norm[i] = (float)sqrt(sum);
        }
        if (!rc)
            h->norm_limit = es_norm_limit(norm, n);
        free(norm);
    }
    if (rc) {
        if (rc == ES_ERR_IO && err && h->info)
            es_fail_prefix(err, "%s of harvest %s", where, dir);
        es_harvest_reader_close(h);
    }
    return rc;
}

void es_harvest_reader_rows(const es_harvest_reader *h, size_t first, size_t n, float *out)
{
    size_t d = (size_t)h->d;
    while (n) {
        size_t shard = first / h->shard_rows, at = first % h->shard_rows, m = h->shard_rows - at < n ? h->shard_rows - at : n;
        es_f16_to_f32((const uint16_t *)(const void *)h->shard[shard].data + at * d, out, m * d);
        out += m * d;
        first += m;
        n -= m;
    }
}

static int rising(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

float es_norm_limit(float *norm, size_t n)
{
    if (n == 0)
        return INFINITY;
    qsort(norm, n, sizeof *norm, rising);
    return norm[n / 2] > 0 ? 6 * norm[n / 2] : INFINITY;
}

void es_sequence_norms(const float *x, size_t d, const int *start, int n_seq, float *norm, float *limit)
{
    float some[ES_NORM_ROWS];
    size_t k = 0;
    for (int s = 0; s < n_seq; s++)
        for (int t = start[s]; t < start[s + 1]; t++) {
            norm[t] = sqrtf(es_vector()->dot(x + (size_t)t * d, x + (size_t)t * d, d));
            if (t > start[s])
                some[k++] = norm[t];
        }
    if (!(*limit > 0) && k)
        *limit = es_norm_limit(some, k);
}
