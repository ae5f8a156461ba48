#include "ui_internal.h"

static void draw(es_ui *u, ui_box b)
{
    ui_put(u, b, 1, 2, UI_DIM, "not there yet");
}

static const ui_key keys[] = {{0}};

const ui_view ui_features = {.name = "Features", .letter = 'f', .keys = keys, .draw = draw};

void ui_open_feature(es_ui *u, int feature) { (void)feature; ui_show(u, UI_FEATURES); }
void ui_features_for_text(es_ui *u, const char *text) { es_studio_probe(u->studio, text); ui_show(u, UI_FEATURES); }
