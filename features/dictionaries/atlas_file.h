/* The atlas on disk, shared by its writer and its reader. Little-endian.
 *
 * header | density f32[F] | max f32[F] | mean f32[F] | p99 f32[F] | blocks[n_block] | zlib blocks
 * crc: CRC-32 of everything before the zlib blocks, with crc itself 0. zlib checks the blocks.
 * A block holds block_features features (the last one fewer): u32 offset of each record and of the end, then the records:
 *   varint histogram[50]; 2 x (u8 n, n x (varint token, f16 logit)): promoted, suppressed;
 *   u8 examples, each: u8 n, u8 peak, f32 max, n x id (u16, or u32 when id_bytes is 4), n x u8 value/max*255;
 *   since version 2: u8 random places, each: u8 interval (0 the lowest), then as an example;
 *     f32 lo, f32 hi, varint logits[50];  u8 correlated, each: varint feature, f16 Pearson's r, f16 cosine */
#ifndef ES_ATLAS_FILE_H
#define ES_ATLAS_FILE_H

#include "dictionaries.h"

#define ES_ATLAS_MAGIC "ESATLAS1"

typedef struct es_atlas_header {
    char magic[8];
    uint32_t version, n_features, n_block, block_features, n_vocab, id_bytes, examples, window;
    int32_t layer;
    uint32_t crc;
    uint64_t tokens;
    char dictionary_hash[64], model_hash[64];
} es_atlas_header;

typedef struct es_atlas_block { uint64_t offset; uint32_t packed, size; } es_atlas_block;

enum { ES_ATLAS_VERSION = 2, ES_ATLAS_BLOCK = 32, ES_ATLAS_MAX_WINDOW = 64, ES_ATLAS_MAX_EXAMPLES = 64, ES_ATLAS_MAX_SPREAD = ES_ATLAS_INTERVALS * 12 };

/* The histogram of logits that numpy.histogram(logit, 50) has, but for rounding at the edges. */
void es_atlas_logits(const float *logit, int n, float *lo, float *hi, uint32_t out[ES_ATLAS_BINS]);

_Static_assert(sizeof(es_atlas_header) == 184 && sizeof(es_atlas_block) == 16, "the file's layout");

#endif
