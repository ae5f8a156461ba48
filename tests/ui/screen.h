/* A workbench on a screen nobody sees: send bytes, draw, compare with tests/ui/golden/NAME.txt (ESPALIER_GOLDEN=write makes them anew). */
#ifndef SCREEN_H
#define SCREEN_H

#include "fake_studio.h"
#include "ui_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define F1 "\x1bOP"
#define F2 "\x1bOQ"
#define F3 "\x1bOR"
#define F4 "\x1bOS"
#define F5 "\x1b[15~"
#define F6 "\x1b[17~"
#define ESC "\x1b[27u" /* never sent by a key: replaced by screen_keys with Esc and its pause */
#define UP "\x1b[A"
#define DOWN "\x1b[B"
#define LEFT "\x1b[D"
#define RIGHT "\x1b[C"
#define PGUP "\x1b[5~"
#define PGDN "\x1b[6~"
#define ENTER "\r"

typedef struct screen {
    es_studio *studio;
    es_ui *u;
    es_buf text;
} screen;

void screen_open(screen *s, fake_kind kind, int h, int w);
void screen_open_as(screen *s, fake_kind kind, int h, int w, const char *term, bool unicode, bool colour);
void screen_close(screen *s);
void screen_keys(screen *s, const char *keys);  /* then takes the studio's view, as the loop would */
const char *screen_text(screen *s);             /* draws and dumps */
bool screen_shows(screen *s, const char *text);
void screen_golden(screen *s, const char *name);

#endif
