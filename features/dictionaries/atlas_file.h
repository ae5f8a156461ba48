/* The atlas on disk, shared by its writer and its reader. Little-endian.
 *
 * header | density f32[F] | max f32[F] | mean f32[F] | p99 f32[F] | blocks[n_block] | zlib blocks
 * crc: CRC-32 of everything before the zlib blocks, with crc itself 0. zlib checks the blocks.
 * A block holds block_features features (the last one fewer): u32 offset of each record and of the end, then the records:
 *   varint histogram[50]; 2 x (u8 n, n x (varint token, f16 logit)): promoted, suppressed;
 *   u8 examples, each: u8 n, u8 peak, f32 max, n x id (u16, or u32 when id_bytes is 4), n x u8 value/max*255 */
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

enum { ES_ATLAS_BLOCK = 64, ES_ATLAS_MAX_WINDOW = 64, ES_ATLAS_MAX_EXAMPLES = 64 };

_Static_assert(sizeof(es_atlas_header) == 184 && sizeof(es_atlas_block) == 16, "the file's layout");

#endif
