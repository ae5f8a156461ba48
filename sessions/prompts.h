/* prompts: what a language model is asked, as files that a person may change. Lines before the first section are a comment. A section begins with a line
 * "=== system", "=== user" or "=== assistant" and is a message; the last one is the user's. {name} in it stands for a value. */
#ifndef ES_PROMPTS_H
#define ES_PROMPTS_H

#include "base.h"

typedef struct es_prompt_value { const char *name, *value; } es_prompt_value; /* value: UTF-8 */

/* Reads OWN/NAME.txt, or where that is not there (or own is NULL) SHIPPED/NAME.txt, as [{"role","content"}...]. wants: the names that must occur in it, ended
 * by NULL. ES_ERR_FORMAT names the file and the line. */
int es_prompt_load(json_t **out, const char *name, const char *own, const char *shipped, const char *const *wants, es_error *err);
/* A new array with the values in their places. A value is not looked into for more of them: what is in a text is only text. NULL: no memory. */
json_t *es_prompt_fill(const json_t *prompt, const es_prompt_value *v, int n);

#endif
