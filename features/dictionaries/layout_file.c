/* Maps on disk. */
#include "layout.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#define MAGIC "ESMAP\0\0"

typedef struct es_layout_header {
    char magic[8];
    uint32_t version, n_features, neighbours, epochs;
    uint64_t seed;
    char dictionary_hash[64];
    uint32_t crc, zero;
} es_layout_header;
_Static_assert(sizeof(es_layout_header) == 104, "the file's layout");

static es_layout_header header(const es_dictionary *s, const es_layout_options *o, const float *xy)
{
    const es_dictionary_info *info = es_dictionary_get_info(s);
    es_layout_header h = {.magic = MAGIC, .version = 1, .n_features = (uint32_t)info->n_features, .neighbours = (uint32_t)o->neighbours,
                          .epochs = (uint32_t)o->epochs, .seed = o->seed};
    memcpy(h.dictionary_hash, info->hash, 64);
    h.crc = (uint32_t)crc32_z(0, (const Bytef *)xy, 2 * (size_t)info->n_features * sizeof *xy);
    return h;
}

int es_layout_write(const char *path, const es_dictionary *s, const es_layout_options *o, const float *xy, es_error *err)
{
    es_layout_header h = header(s, o, xy);
    es_buf b = {0};
    es_buf_add(&b, &h, sizeof h);
    es_buf_add(&b, xy, 2 * (size_t)h.n_features * sizeof *xy);
    int rc = b.failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory to write a map") : es_file_write(path, b.data, b.len, err);
    es_buf_free(&b);
    return rc;
}

int es_layout_read(const char *path, const es_dictionary *s, const es_layout_options *o, float *xy, es_error *err)
{
    es_map map = {0};
    int rc = es_map_open(&map, path, err);
    if (rc)
        return rc;
    size_t F = (size_t)es_dictionary_get_info(s)->n_features, points = 2 * F * sizeof *xy;
    es_layout_header h = {0};
    if (map.size >= sizeof h)
        memcpy(&h, map.data, sizeof h);
    if (map.size < sizeof h || memcmp(h.magic, MAGIC, 8) != 0 || h.version != 1)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: not a map of this program's", path);
    else if (memcmp(h.dictionary_hash, es_dictionary_get_info(s)->hash, 64) != 0)
        rc = es_fail(err, ES_ERR_MISMATCH, "%s: made from dictionary %.12s..., but this one is %.12s...", path, h.dictionary_hash, es_dictionary_get_info(s)->hash);
    else if (h.n_features != F || map.size - sizeof h != points)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: cut short, or of another number of features", path);
    else if (h.neighbours != (uint32_t)o->neighbours || h.epochs != (uint32_t)o->epochs || h.seed != o->seed)
        rc = es_fail(err, ES_ERR_MISMATCH, "%s: made with other options", path);
    else
        memcpy(xy, map.data + sizeof h, points);
    es_map_close(&map);
    if (!rc && header(s, o, xy).crc != h.crc)
        rc = es_fail(err, ES_ERR_FORMAT, "%s: damaged", path);
    for (size_t i = 0; i < 2 * F && !rc; i++)
        if (!isfinite(xy[i]))
            rc = es_fail(err, ES_ERR_FORMAT, "%s: damaged (a point is not finite)", path);
    return rc;
}

static void kept_path(char *out, size_t size, const char *folder, const es_dictionary *s)
{
    snprintf(out, size, "%s/%.16s.esm", folder, es_dictionary_get_info(s)->hash);
}

int es_layout_again(const char *folder, const es_dictionary *s, const es_layout_options *o, float *xy, const es_progress *progress, es_error *err)
{
    char path[1400];
    kept_path(path, sizeof path, folder, s);
    int rc = es_layout_make(s, o, xy, progress, err);
    if (!rc)
        rc = es_dir_make(folder, err);
    return rc ? rc : es_layout_write(path, s, o, xy, err);
}

int es_layout_kept(const char *folder, const es_dictionary *s, const es_layout_options *o, float *xy, const es_progress *progress, es_error *err)
{
    char path[1400];
    kept_path(path, sizeof path, folder, s);
    if (access(path, R_OK) == 0 && es_layout_read(path, s, o, xy, NULL) == ES_OK)
        return ES_OK;
    return es_layout_again(folder, s, o, xy, progress, err);
}
