/* The words around finding: what orders are called, how queries are explained. */
#include <stdlib.h>

#include "looks.h"

const char *es_find_order_name(es_find_order o)
{
    static const char *const name[ES_FIND_ORDERS] = {"best", "number", "density", "max", "label", "token", "surprise"};
    return name[o];
}

const char *es_find_help(int i)
{
    static const char *const line[] = {
        "WORD            in labels, tags, tokens; the last may be a beginning",
        "tag:T  is:labelled  is:unlabelled  is:rated  is:skipped  is:basis",
        "by:NAME  is:conflict  score>0.8         annotators; tested labels",
        "promotes:T  suppresses:T  fires:T     tokens; T* a beginning",
        "density<0.01  max>=5  rating:3..5     and mean, p99; < <= > >= = :LO..HI",
        "like:N          the decoder rows nearest to that of feature N",
        "text:\"T\"        what fires on a text",
        "basis:NAME      in a saved basis; a number alone: that feature",
        "-FILTER         what does not pass it",
    };
    return i >= 0 && i < (int)(sizeof line / sizeof *line) ? line[i] : NULL;
}

void es_found_free(es_found *f)
{
    free(f->feature);
    free(f->value);
    free(f->surprise);
    free(f->token);
    free(f->text_id);
    *f = (es_found){0};
}
