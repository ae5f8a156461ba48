#include "ui_internal.h"

static void draw(es_ui *u, ui_box b)
{
    ui_put(u, b, 1, 2, UI_DIM, "not there yet");
}

static const ui_key keys[] = {{0}};

const ui_view ui_jobs = {.name = "Jobs", .letter = 'j', .keys = keys, .draw = draw};
