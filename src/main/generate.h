/* One reply of the model, for the commands that generate. */
#ifndef ES_MAIN_GENERATE_H
#define ES_MAIN_GENERATE_H

#include "app.h"

typedef struct reply {
    es_buf text;
    es_ids ids;       /* without the token that ended it */
    int prompt_tokens;
    bool ended;       /* by the model, not by a limit */
    double first, seconds; /* from the start of the prompt's pass to the first token; decoding alone */
} reply;

void reply_free(reply *r);

/* Feeds the prompt and samples until the model ends, the limit, a full context or a cancel (which is no error here: what there
 * is stays). stream may be NULL: called with the text's new whole characters. */
int generate_reply(es_context *c, const es_model *m, const es_ids *prompt, const es_sampling *sampling, int max_tokens,
                   void (*stream)(const char *s, size_t n), reply *r, es_error *err);

#endif
