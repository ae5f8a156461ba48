/* Files in Neuronpedia's layout, for those who take records out of them. What comes in is a stranger's: a line's and a file's length are bounded while they are
 * unpacked, so that a small file that unpacks without end costs its limit and no more. */
#ifndef ES_NEURONPEDIA_FILES_H
#define ES_NEURONPEDIA_FILES_H

#include "neuronpedia.h"

typedef struct np_origin {
    const char *source; /* only records of this one; NULL: of all, which must be one */
    char first[300];    /* MODEL/SOURCE that the records so far are of */
} np_origin;
/* Whether a record is to be taken. *rc: ES_ERR_FORMAT where it is of another source than those before and none was named. */
bool np_is_of(np_origin *o, const char *model, const char *source, int *rc, const char *where, es_error *err);

bool np_feature_of(json_t *v, long long *out); /* an index as a number or as its digits */
const char *np_text_of(json_t *v, const char *key, const char *otherwise);

/* Calls take with each record of a file (.json, .jsonl, either gzipped), or of the files in a folder: in its folder `part` where it has that, else its own. where:
 * the file and its line, for messages. ES_ERR_MISSING, _IO, _FORMAT, _LIMIT; what take returns ends it. */
int np_read(const char *path, const char *part, int (*take)(void *user, json_t *record, const char *where, es_error *err), void *user, es_error *err);

#endif
