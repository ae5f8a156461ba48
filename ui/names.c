/* What features are called: labels read once for all, token texts from the atlas as rows come into sight. */
#include "view_features.h"

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
    *m = (ui_names){.serial = m->serial + 1, .made = m->made + 1};
}

void ui_names_refresh(es_ui *u)
{
    ui_names *m = &u->names;
    const char *hash = es_studio_dictionary_hash(u->studio);
    int n = u->v ? u->v->n_features : 0;
    if (!hash || !*hash || n <= 0)
        return;
    if (n == m->n && !strcmp(hash, m->hash)) {
        if (u->v->labels_read != m->labels_read)
            ui_names_changed_many(u);
        m->labels_read = u->v->labels_read;
        return;
    }
    ui_names_free(u);
    m->label = calloc((size_t)n, sizeof *m->label);
    m->tokens = calloc((size_t)n, sizeof *m->tokens);
    if (!m->label || !m->tokens) {
        free(m->label);
        free(m->tokens);
        *m = (ui_names){.serial = m->serial + 1, .made = m->made + 1};
        return;
    }
    m->n = n;
    m->labels_read = u->v->labels_read;
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
    ui_meta *meta = ui_features_of(u) ? &ui_features_of(u)->cache[feature % UI_META_CACHE] : NULL;
    if (meta && meta->feature == feature)
        meta->feature = -1;
}

void ui_names_changed_many(es_ui *u)
{
    ui_names *m = &u->names;
    es_error err;
    for (int i = 0; i < m->n; i++) {
        free(m->label[i]);
        m->label[i] = NULL;
    }
    if (m->n && es_workspace_labels_all(es_studio_workspace(u->studio), m->hash, m->n, m->label, &err) < 0)
        ui_say(u, UI_BAD, "%s", err.text);
    m->serial++;
    m->made++;
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

/* What a feature without a label goes by: the tokens it fires on most, each once; without examples, those it promotes. Asked for, and "" until they come. */
const char *ui_tokens(es_ui *u, int feature)
{
    enum { PEAKS = 6 };
    ui_names *m = &u->names;
    char seen[PEAKS][40];
    int32_t id[PEAKS];
    if (feature < 0 || feature >= m->n)
        return "";
    if (m->tokens[feature])
        return m->tokens[feature];
    int n = es_studio_peaks(u->studio, feature, id, PEAKS), had = 0;
    if (n < 0)
        return "";
    es_buf b = {0};
    for (int i = 0; i < n; i++) {
        char text[40];
        if (es_studio_token_text(u->studio, id[i], text, sizeof text) <= 0)
            continue;
        const char *word = text + strspn(text, " ");
        bool twice = !*word;
        for (int j = 0; j < had; j++)
            twice = twice || !strcasecmp(seen[j], word);
        if (twice)
            continue;
        memmove(seen[had++], word, strlen(word) + 1);
        es_buf_printf(&b, "%s%s", b.len ? ui_sign(u, " · ", " , ") : "", word);
    }
    m->tokens[feature] = b.data ? b.data : strdup("");
    return m->tokens[feature] ? m->tokens[feature] : "";
}

float ui_max(es_ui *u, int feature)
{
    const float *max = es_studio_max(u->studio);
    return max && feature >= 0 && feature < u->names.n ? max[feature] : NAN;
}

const char *ui_name(es_ui *u, int feature)
{
    const char *label = ui_label(u, feature);
    return label ? label : ui_tokens(u, feature);
}
