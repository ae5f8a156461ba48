/* What features are called: labels read once for all, token texts from the atlas as rows come into sight. */
#include "ui_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void ui_names_free(es_ui *u)
{
    ui_names *m = &u->names;
    for (int i = 0; i < m->n; i++) {
        free(m->label[i]);
        free(m->tokens[i]);
    }
    free(m->label);
    free(m->tokens);
    free(m->max);
    *m = (ui_names){.serial = m->serial + 1};
}

void ui_names_refresh(es_ui *u)
{
    ui_names *m = &u->names;
    const char *hash = es_studio_dictionary_hash(u->studio);
    int n = u->v ? u->v->n_features : 0;
    if (!hash || !*hash || n <= 0 || (n == m->n && !strcmp(hash, m->hash)))
        return;
    ui_names_free(u);
    m->label = calloc((size_t)n, sizeof *m->label);
    m->tokens = calloc((size_t)n, sizeof *m->tokens);
    m->max = malloc((size_t)n * sizeof *m->max);
    if (!m->label || !m->tokens || !m->max) {
        free(m->label);
        free(m->tokens);
        free(m->max);
        *m = (ui_names){.serial = m->serial + 1};
        return;
    }
    m->n = n;
    for (int i = 0; i < n; i++)
        m->max[i] = NAN;
    strncpy(m->hash, hash, sizeof m->hash - 1);
    es_error err;
    es_workspace *w = es_studio_workspace(u->studio);
    if (w && es_workspace_labels_all(w, hash, n, m->label, &err) < 0)
        ui_say(u, UI_BAD, "%s", err.text);
}

void ui_names_changed(es_ui *u, int feature)
{
    ui_names *m = &u->names;
    es_label l;
    es_error err;
    if (feature < 0 || feature >= m->n)
        return;
    free(m->label[feature]);
    m->label[feature] = NULL;
    if (es_workspace_label_get(es_studio_workspace(u->studio), m->hash, feature, &l, &err) == 0) {
        if (l.text && *l.text)
            m->label[feature] = strdup(l.text);
        es_label_free(&l);
    }
    m->serial++;
}

const char *ui_label(es_ui *u, int feature)
{
    const ui_names *m = &u->names;
    for (int i = 0; feature < 0 && u->v && i < u->v->n_vector; i++)
        if (u->v->vector[i].number == feature)
            return u->v->vector[i].name;
    return feature >= 0 && feature < m->n && m->label[feature] && *m->label[feature] ? m->label[feature] : NULL;
}

void ui_token_list(es_ui *u, const int32_t *id, int n, es_buf *out)
{
    for (int i = 0; i < n; i++) {
        char text[80];
        if (es_studio_token_text(u->studio, id[i], text, sizeof text) > 0)
            es_buf_printf(out, "%s%s", out->len ? ui_sign(u, " · ", " , ") : "", text[0] == ' ' ? text + 1 : text);
    }
}

/* What a feature without a label goes by: the tokens it fires on most, each once; without examples, those it promotes. */
static void peaks(es_ui *u, const es_feature_card *c, es_buf *out)
{
    char seen[6][40];
    int n = 0;
    for (int i = 0; i < c->n_example && n < 6; i++) {
        const es_example *e = &c->example[i];
        char text[40];
        if (e->peak < 0 || e->peak >= e->n || es_studio_token_text(u->studio, e->id[e->peak], text, sizeof text) <= 0)
            continue;
        const char *word = text + strspn(text, " ");
        bool had = !*word;
        for (int j = 0; j < n; j++)
            had = had || !strcasecmp(seen[j], word);
        if (had)
            continue;
        memmove(seen[n++], word, strlen(word) + 1);
        es_buf_printf(out, "%s%s", out->len ? ui_sign(u, " · ", " , ") : "", word);
    }
    if (!out->len)
        ui_token_list(u, c->promoted, c->n_promoted < 6 ? c->n_promoted : 6, out);
}

static void card(es_ui *u, int feature)
{
    ui_names *m = &u->names;
    es_card_copy c;
    es_error err;
    if (feature < 0 || feature >= m->n || m->tokens[feature])
        return;
    es_buf b = {0};
    m->max[feature] = 0;
    if (es_studio_card(u->studio, feature, &c, &err) == 0) {
        m->max[feature] = c.card.max;
        peaks(u, &c.card, &b);
        es_card_copy_free(&c);
    }
    m->tokens[feature] = b.data ? b.data : strdup("");
}

const char *ui_tokens(es_ui *u, int feature)
{
    card(u, feature);
    return feature >= 0 && feature < u->names.n && u->names.tokens[feature] ? u->names.tokens[feature] : "";
}

float ui_max(es_ui *u, int feature)
{
    card(u, feature);
    return feature >= 0 && feature < u->names.n ? u->names.max[feature] : NAN;
}

const char *ui_name(es_ui *u, int feature)
{
    const char *label = ui_label(u, feature);
    return label ? label : ui_tokens(u, feature);
}
