/* Shared by the files of base only. */
#ifndef ES_BASE_INTERNAL_H
#define ES_BASE_INTERNAL_H

#include "base.h"

/* Looks at the first character of s[0..n), n > 0; returns how many bytes it takes. When a terminal must not get it as it is,
 * esc (>= 12 bytes) receives a visible escape, else esc[0] is 0 and the bytes may be copied. */
size_t es_show_step(const char *s, size_t n, bool keep_space, char *esc);

#endif
