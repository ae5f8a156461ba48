/* --device: auto, cpu, cuda or cuda:N. The card is opened once, at the first model, and stays until the program ends. */
#include "app.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *asked(void)
{
    return the_app.device_option ? the_app.device_option : the_app.config_device ? the_app.config_device : "auto";
}

bool app_device_valid(const char *s)
{
    if (!strcmp(s, "auto") || !strcmp(s, "cpu") || !strcmp(s, "cuda"))
        return true;
    return !strncmp(s, "cuda:", 5) && s[5] && strspn(s + 5, "0123456789") == strlen(s + 5) && strlen(s + 5) < 4;
}

bool app_device_auto(void)
{
    return !strcmp(asked(), "auto");
}

static es_cuda *card; /* NULL: the processor, or nobody has asked yet */

int app_device(es_cuda **out, es_error *err)
{
    static bool settled;
    const char *device = asked();
    if (!settled && strcmp(device, "cpu") != 0) {
        es_error why;
        int rc = es_cuda_open(device[4] == ':' ? atoi(device + 5) : 0, &card, &why);
        if (rc != ES_OK && strcmp(device, "auto") != 0)
            return es_fail(err, rc, "--device %s: %s; --device auto takes the processor where there is no card", device, why.text);
    }
    settled = true;
    *out = card;
    return ES_OK;
}

void app_device_tell(void)
{
    char text[300];
    while (card && es_cuda_told(card, text, sizeof text))
        app_note("%s", text);
}

int app_on_device(es_model *m, es_error *err)
{
    es_cuda *on = NULL;
    int rc = app_device(&on, err);
    return rc ? rc : es_model_use_card(m, on, NULL, err);
}

void app_device_describe(char *out, size_t size, bool *ok)
{
    es_cuda *on = NULL;
    es_error err;
    *ok = app_device(&on, &err) == ES_OK;
    if (!*ok) {
        snprintf(out, size, "%s", err.text);
        return;
    }
    char text[300];
    es_cuda_describe(on, text, sizeof text);
    if (on)
        snprintf(out, size, "%s", text);
    else if (strcmp(asked(), "cpu") == 0)
        snprintf(out, size, "the processor, as --device cpu asks (%s)", text);
    else
        snprintf(out, size, "the processor (%s)", text);
}
