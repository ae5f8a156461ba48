/* What the exports share: little-endian numbers and GGUF's strings into a buffer, and the exports of their own files. */
#ifndef ES_EXPORT_INTERNAL_H
#define ES_EXPORT_INTERNAL_H

#include <string.h>

#include "sessions.h"

static inline void put_u16(es_buf *b, uint16_t v) { es_buf_add(b, (uint8_t[]){(uint8_t)v, (uint8_t)(v >> 8)}, 2); }
static inline void put_u32(es_buf *b, uint32_t v)
{
    put_u16(b, (uint16_t)v);
    put_u16(b, (uint16_t)(v >> 16));
}
static inline void put_u64(es_buf *b, uint64_t v)
{
    put_u32(b, (uint32_t)v);
    put_u32(b, (uint32_t)(v >> 32));
}

enum { GGUF_U32 = 4, GGUF_F32 = 6, GGUF_STRING = 8, GGUF_ALIGN = 32 };

static inline void es_gguf_text(es_buf *b, const char *s)
{
    put_u64(b, strlen(s));
    es_buf_str(b, s);
}

static inline void es_gguf_string(es_buf *b, const char *key, const char *value)
{
    es_gguf_text(b, key);
    put_u32(b, GGUF_STRING);
    es_gguf_text(b, value);
}

/* [n_layer, d] mean change after each layer; the caller frees. */
int es_export_directions(const es_adapter *a, es_model *m, float **out, es_error *err);

int es_export_peft(const es_adapter *a, es_model *m, const char *folder, es_error *err);
int es_export_gguf_lora(es_buf *b, const es_adapter *a, es_model *m, es_error *err);
int es_export_persona(const es_adapter *a, es_model *m, const char *path, es_error *err);

#endif
