/* ui: the workbench on a terminal. The only folder that knows curses. */
#ifndef ES_UI_H
#define ES_UI_H

#include "sessions.h"

typedef struct es_ui_options {
    bool colour;   /* false: NO_COLOR was set */
    bool unicode;  /* the locale shows UTF-8: braille and box drawing; otherwise ASCII */
    bool mouse;
    const char *editor; /* $VISUAL or $EDITOR, or NULL: edit in place only */
    const char *home;   /* a folder for the file that $EDITOR is given, or NULL: /tmp */
    const char *author; /* who labels, or NULL */
} es_ui_options;

/* Runs the workbench until the person leaves. Restores the terminal on return and on fatal signals. 0, or an error (no terminal...). */
int es_ui_run(es_studio *studio, const es_ui_options *o, es_error *err);

#endif
