/* The workbench on a studio without a model, to look at: demo [new|used|hostile|loading|failed|bare] [FEATURES] */
#include "fake_studio.h"
#include "ui.h"

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    static const char *const kinds[] = {"loading", "failed", "new", "bare", "used", "hostile"};
    int kind = FAKE_USED;
    setlocale(LC_ALL, "");
    for (int i = 0; i < 6; i++)
        if (argc > 1 && !strcmp(argv[1], kinds[i]))
            kind = i;
    es_studio *s = fake_studio((fake_kind)kind, argc > 2 ? atoi(argv[2]) : 600);
    fake_clock(s);
    es_error err;
    bool unicode = MB_CUR_MAX > 1;
    int r = es_ui_run(s, &(es_ui_options){.colour = !getenv("NO_COLOR"), .unicode = unicode, .editor = getenv("EDITOR")}, &err);
    if (r < 0)
        fprintf(stderr, "%s\n", err.text);
    fake_studio_free(s);
    return r < 0;
}
