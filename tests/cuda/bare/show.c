/* In the place of text.c, which needs utf8proc: error texts here are plain ASCII; all else is escaped. */
#include <stdio.h>

#include "base_internal.h"

size_t es_show_step(const char *s, size_t n, bool keep_space, char *esc)
{
    (void)n;
    unsigned char c = (unsigned char)*s;
    esc[0] = 0;
    if ((c < 32 && !(keep_space && (c == '\n' || c == '\t'))) || c > 126)
        snprintf(esc, 12, "\\x%02x", c);
    return 1;
}
