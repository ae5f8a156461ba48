/* A studio without a model: canned answers at a steady pace, so that screens can be compared and the workbench looked at. It defines
 * the whole studio and workspace API that ui/ uses, so the linker takes none of the real one. */
#ifndef FAKE_STUDIO_H
#define FAKE_STUDIO_H

#include "sessions.h"

typedef enum fake_kind {
    FAKE_LOADING, /* the model is being opened */
    FAKE_FAILED,  /* it could not be */
    FAKE_NEW,     /* nothing said, nothing learned */
    FAKE_BARE,    /* a model without a dictionary */
    FAKE_USED,    /* a chat, a basis, experiences, steps, snapshots */
    FAKE_HOSTILE, /* as used, with escape sequences, wide and combining characters everywhere */
} fake_kind;

es_studio *fake_studio(fake_kind kind, int n_features);
void fake_studio_free(es_studio *s);
const char *fake_log(es_studio *s);   /* the commands given so far, a line each; taken: the next call starts anew */
void fake_tick(es_studio *s);         /* one more token, one more step */
void fake_clock(es_studio *s);        /* ticks by itself through its file descriptor */
void fake_map_done(es_studio *s, double done); /* below 1: the map is being made */
void fake_turn(es_studio *s, char role, const char *text); /* appends a turn as it is */

#endif
