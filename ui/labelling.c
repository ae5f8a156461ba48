/* Labelling in the Features view: what is said of the chosen feature, or of all that are marked, and going on to the next. Every change is one step of undo. */
#include "view_features.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FEW = 64 /* labels read one by one after a change; of more, all are read */ };

static ui_labelling *lab(const es_ui *u)
{
    return &ui_features_of(u)->lab;
}

static const char *author(const es_ui *u)
{
    return u->o.author ? u->o.author : "";
}

void ui_labelling_free(ui_labelling *l)
{
    free(l->mark);
    free(l->said.text);
    free(l->said.tags);
    free(l->test.label);
    es_buf_free(&l->tags);
    es_buf_free(&l->page.text);
    *l = (ui_labelling){.last = -1};
}

/* ---- marks ----------------------------------------------------------------------------------------------------------------------------- */

bool ui_marked(const es_ui *u, int feature)
{
    const ui_labelling *l = lab(u);
    return feature >= 0 && feature < l->cap && l->mark[feature];
}

void ui_marks_drop(es_ui *u)
{
    ui_labelling *l = lab(u);
    free(l->mark);
    l->mark = NULL;
    l->n_mark = l->cap = 0;
    l->last = -1;
}

static void mark(es_ui *u, int feature, bool on)
{
    ui_labelling *l = lab(u);
    if (l->cap != u->names.n) {
        ui_marks_drop(u);
        l->mark = u->names.n > 0 ? calloc((size_t)u->names.n, 1) : NULL;
        l->cap = l->mark ? u->names.n : 0;
    }
    if (feature < 0 || feature >= l->cap || l->mark[feature] == on)
        return;
    l->mark[feature] = on;
    l->n_mark += on ? 1 : -1;
}

ui_result ui_key_mark(es_ui *u, int key)
{
    int feature = ui_features_selected(u);
    (void)key;
    if (feature < 0)
        return UI_REDRAW;
    mark(u, feature, !ui_marked(u, feature));
    lab(u)->last = feature;
    ui_list_key(&ui_features_of(u)->list, 'j');
    u->message[0] = 0; /* the hint says how many are marked and what can be done to them */
    return UI_REDRAW;
}

ui_result ui_key_mark_range(es_ui *u, int key)
{
    int here = ui_features_of(u)->list.at, from = here, last = lab(u)->last;
    (void)key;
    for (int i = 0; last >= 0 && i < ui_features_rows(u); i++)
        if (ui_features_row(u, i) == last) {
            from = i;
            break;
        }
    for (int i = from < here ? from : here; i <= (from < here ? here : from); i++)
        mark(u, ui_features_row(u, i), true);
    lab(u)->last = ui_features_selected(u);
    u->message[0] = 0;
    return UI_REDRAW;
}

ui_result ui_key_mark_all(es_ui *u, int key)
{
    (void)key;
    for (int i = 0; i < ui_features_rows(u); i++)
        mark(u, ui_features_row(u, i), true);
    u->message[0] = 0;
    return UI_REDRAW;
}

/* What an action is about: the marked ones, or the chosen one. The caller frees it; NULL: nothing. */
static int *targets(es_ui *u, int *n)
{
    const ui_labelling *l = lab(u);
    int chosen = ui_features_selected(u), *list = malloc((size_t)(l->n_mark + 1) * sizeof *list);
    *n = 0;
    if (list && l->n_mark) {
        for (int f = 0; f < l->cap; f++)
            if (l->mark[f])
                list[(*n)++] = f;
    } else if (list && chosen >= 0) {
        list[(*n)++] = chosen;
    }
    if (*n == 0) {
        free(list);
        list = NULL;
    }
    return list;
}

/* ---- a change ----------------------------------------------------------------------------------------------------------------------------- */

static void read_again(es_ui *u, const int *feature, int n)
{
    if (n > FEW)
        ui_names_changed_many(u);
    for (int i = 0; i < n && n <= FEW; i++)
        ui_names_changed(u, feature[i]);
}

static void keep(char **to, const char *s)
{
    if (!s)
        return;
    free(*to);
    *to = strdup(s);
}

/* For '.': what was said of the same feature counts together. */
static void remember(es_ui *u, int feature, const es_label_edit *e)
{
    ui_labelling *l = lab(u);
    if (!l->said.any || l->said.feature != feature) {
        free(l->said.text);
        free(l->said.tags);
        l->said.text = l->said.tags = NULL;
        l->said.rating = l->said.confidence = -1;
        l->said.feature = feature;
    }
    keep(&l->said.text, e->text);
    keep(&l->said.tags, e->tags);
    l->said.rating = e->rating >= 0 ? e->rating : l->said.rating;
    l->said.confidence = e->confidence >= 0 ? e->confidence : l->said.confidence;
    l->said.any = l->said.text || l->said.tags || l->said.rating >= 0 || l->said.confidence >= 0;
}

/* Says it of what is marked or chosen. what: in words, for one feature; NULL: nothing is said of it here. */
static bool apply(es_ui *u, const es_label_edit *e, const char *what)
{
    es_error err;
    int n = 0, changed = 0, *feature = targets(u, &n);
    if (!feature)
        return false;
    bool many = lab(u)->n_mark > 0;
    int rc = es_workspace_label_edit(es_studio_workspace(u->studio), u->names.hash, feature, n, e, author(u), &changed, &err);
    if (rc < 0) {
        ui_say(u, UI_BAD, "%s", err.text);
    } else {
        read_again(u, feature, n);
        lab(u)->tags_read = lab(u)->tags_read && !e->tags && !e->add_tags;
        if (many)
            ui_say(u, UI_GOOD, "%d of %d features changed, in one step: u takes it back", changed, n);
        else
            ui_say(u, UI_GOOD, "%d: %s", feature[0], what);
        if (!many)
            remember(u, feature[0], e);
    }
    free(feature);
    return rc >= 0;
}

/* ---- labels and tags ------------------------------------------------------------------------------------------------------------------------ */

static void label_done(es_ui *u, const char *text)
{
    es_label_edit e = ES_LABEL_EDIT;
    e.text = text;
    if (text)
        apply(u, &e, *text ? "label saved; u takes it back, n goes on" : "label removed; u takes it back");
}

static void offer(es_buf *out, const char *before, size_t n, const char *s, int *found)
{
    es_buf line = {0};
    es_buf_add(&line, before, n);
    es_buf_str(&line, s);
    bool twice = !line.data;
    for (size_t at = 0; at < out->len && !twice; at += strlen(out->data + at) + 1)
        twice = !strcmp(out->data + at, line.data);
    if (!twice) {
        es_buf_add(out, line.data, line.len + 1);
        (*found)++;
    }
    es_buf_free(&line);
}

static void label_complete(es_ui *u, const char *text, es_buf *out)
{
    size_t n = strlen(text);
    int found = 0;
    for (int i = 0; i < u->names.n && n > 0 && found < 50; i++) {
        const char *l = ui_label(u, i);
        if (l && !strncasecmp(l, text, n))
            offer(out, "", 0, l, &found);
    }
}

static void about(es_ui *u, char *out, size_t n, const char *one, const char *many)
{
    if (lab(u)->n_mark)
        snprintf(out, n, many, lab(u)->n_mark);
    else
        snprintf(out, n, one, ui_features_selected(u));
}

ui_result ui_key_label(es_ui *u, int key)
{
    char label[60];
    (void)key;
    if (ui_features_selected(u) < 0 && !lab(u)->n_mark)
        return UI_REDRAW;
    about(u, label, sizeof label, "Label of %d: ", "One label for %d features: ");
    ui_prompt(u, label, lab(u)->n_mark ? NULL : ui_label(u, ui_features_selected(u)), UI_HISTORY_TEXT, label_done, NULL, label_complete);
    return UI_REDRAW;
}

static void tag_done(es_ui *u, const char *text)
{
    es_label_edit e = ES_LABEL_EDIT;
    if (!text)
        return;
    if (!lab(u)->n_mark) {
        e.tags = text;
        apply(u, &e, "tags saved; u takes it back");
        return;
    }
    es_buf add = {0}, remove = {0};
    es_buf_str(&add, "");
    es_buf_str(&remove, "");
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, " \t");
        bool away = n > 1 && *p == '-';
        es_buf *to = away ? &remove : &add;
        es_buf_add(to, p + away, n - away);
        es_buf_str(to, " ");
        p += n + (p[n] != 0);
    }
    e.add_tags = add.data;
    e.remove_tags = remove.data;
    apply(u, &e, NULL);
    es_buf_free(&add);
    es_buf_free(&remove);
}

static void tag_complete(es_ui *u, const char *text, es_buf *out)
{
    ui_labelling *l = lab(u);
    es_error err;
    const char *word = strrchr(text, ' ');
    word = word ? word + 1 : text;
    word += *word == '-' && l->n_mark;
    int found = 0;
    if (!l->tags_read) {
        es_buf_clear(&l->tags);
        l->tags_read = es_workspace_label_tags(es_studio_workspace(u->studio), u->names.hash, &l->tags, &err) >= 0;
    }
    for (size_t at = 0; at < l->tags.len && found < 50; at += strlen(l->tags.data + at) + 1)
        if (!strncasecmp(l->tags.data + at, word, strlen(word)))
            offer(out, text, (size_t)(word - text), l->tags.data + at, &found);
}

ui_result ui_key_tag(es_ui *u, int key)
{
    char label[80];
    (void)key;
    if (ui_features_selected(u) < 0 && !lab(u)->n_mark)
        return UI_REDRAW;
    es_label l = {0};
    es_error err;
    if (!lab(u)->n_mark) /* the whole of them: a list shows only the first */
        es_workspace_label_get(es_studio_workspace(u->studio), u->names.hash, ui_features_selected(u), &l, &err);
    about(u, label, sizeof label, "Tags of %d (separated by blanks): ", "Tags to add to %d features (-TAG takes away): ");
    ui_prompt(u, label, l.tags, -1, tag_done, NULL, tag_complete);
    es_label_free(&l);
    return UI_REDRAW;
}

/* ---- rating, confidence, skip ------------------------------------------------------------------------------------------------------------------ */

ui_result ui_key_rate(es_ui *u, int key)
{
    es_label_edit e = ES_LABEL_EDIT;
    char what[40];
    e.rating = key - '0';
    snprintf(what, sizeof what, key == '0' ? "rating removed" : "rated %c of 5", key);
    apply(u, &e, what);
    return UI_REDRAW;
}

static void confidence_done(es_ui *u, const char *text)
{
    es_label_edit e = ES_LABEL_EDIT;
    char *end, what[60];
    if (!text || !*text)
        return;
    double v = strtod(text, &end);
    bool cent = *end == '%';
    if (end == text || end[cent] || !(v >= 0 && v <= 100)) {
        ui_say(u, UI_BAD, "a number: 1 to 5, or a percentage such as 70%%; 0: unsaid");
        return;
    }
    e.confidence = (int)(v <= 5 && !cent ? 20 * v : v);
    snprintf(what, sizeof what, e.confidence ? "%d %% sure" : "confidence unsaid", e.confidence);
    apply(u, &e, what);
}

ui_result ui_key_confidence(es_ui *u, int key)
{
    (void)key;
    if (ui_features_selected(u) >= 0 || lab(u)->n_mark)
        ui_prompt(u, "How sure are you (1 to 5, or per cent): ", NULL, -1, confidence_done, NULL, NULL);
    return UI_REDRAW;
}

ui_result ui_key_skip(es_ui *u, int key)
{
    es_label_edit e = ES_LABEL_EDIT;
    int feature = ui_features_selected(u);
    (void)key;
    if (feature < 0)
        return UI_REDRAW;
    bool many = lab(u)->n_mark > 0;
    e.skip = many || !ui_meta_of(u, feature)->skipped;
    if (apply(u, &e, e.skip ? "skipped; u takes it back" : "no longer skipped") && e.skip && !many)
        ui_list_key(&ui_features_of(u)->list, 'j');
    return UI_REDRAW;
}

ui_result ui_key_repeat(es_ui *u, int key)
{
    const ui_labelling *l = lab(u);
    es_label_edit e = ES_LABEL_EDIT;
    char what[120];
    (void)key;
    if (!l->said.any) {
        ui_say(u, UI_PLAIN, "nothing was said yet that could be said again");
        return UI_REDRAW;
    }
    char *text = l->said.text ? strdup(l->said.text) : NULL, *tags = l->said.tags ? strdup(l->said.tags) : NULL; /* what is remembered changes meanwhile */
    e.text = text;
    e.tags = tags;
    e.rating = l->said.rating;
    e.confidence = l->said.confidence;
    if (text)
        snprintf(what, sizeof what, "%.*s", (int)es_utf8_whole(text, strlen(text) < 90 ? strlen(text) : 90), text);
    else
        snprintf(what, sizeof what, "the same again; u takes it back");
    apply(u, &e, what);
    free(text);
    free(tags);
    return UI_REDRAW;
}

/* ---- notes ---------------------------------------------------------------------------------------------------------------------------------------- */

/* The editor keeps a draft by a number of what it is about: replies have positive ones. */
static int64_t draft_of(int feature) { return -1000 - (int64_t)feature; }

static void note_save(es_ui *u, int64_t turn, const char *text)
{
    es_label_edit e = ES_LABEL_EDIT;
    es_error err;
    int feature = (int)(-1000 - turn);
    e.note = text;
    if (es_workspace_label_edit(es_studio_workspace(u->studio), u->names.hash, &feature, 1, &e, author(u), NULL, &err) < 0) {
        ui_say(u, UI_BAD, "%s", err.text);
    } else {
        ui_names_changed(u, feature);
        ui_say(u, UI_GOOD, "%d: %s", feature, *text ? "note saved; u takes it back" : "note removed; u takes it back");
    }
}

static char *note_of(es_ui *u, int feature)
{
    es_label l;
    es_error err;
    char *note = NULL;
    if (es_workspace_label_get(es_studio_workspace(u->studio), u->names.hash, feature, &l, &err) == 0) {
        note = l.note;
        l.note = NULL;
        es_label_free(&l);
    }
    return note ? note : strdup("");
}

ui_result ui_key_note(es_ui *u, int key)
{
    int feature = ui_features_selected(u);
    char title[120];
    (void)key;
    if (feature < 0)
        return UI_REDRAW;
    char *note = note_of(u, feature);
    snprintf(title, sizeof title, "Note on %d: Enter saves, Alt-Enter a new line, Esc gives up", feature);
    ui_edit(u, title, note ? note : "", draft_of(feature), note_save);
    free(note);
    return UI_REDRAW;
}

ui_result ui_key_note_outside(es_ui *u, int key)
{
    int feature = ui_features_selected(u);
    es_buf text = {0};
    es_error err;
    if (feature < 0 || !u->o.editor)
        return feature < 0 ? UI_REDRAW : ui_key_note(u, key);
    char *note = note_of(u, feature);
    if (ui_edit_outside(u, note ? note : "", &text, &err) < 0)
        ui_say(u, UI_BAD, "%s", err.text);
    else
        note_save(u, draft_of(feature), text.data ? text.data : "");
    free(note);
    es_buf_free(&text);
    return UI_REDRAW;
}

/* ---- undo ------------------------------------------------------------------------------------------------------------------------------------------- */

static void travelled(es_ui *u, int rc, int feature, int n, const es_error *err, const char *none, const char *one, const char *many)
{
    if (rc == ES_ERR_MISSING) {
        ui_say(u, UI_PLAIN, "%s", none);
    } else if (rc < 0) {
        ui_say(u, UI_BAD, "%s", err->text);
    } else {
        read_again(u, &feature, n == 1 ? 1 : FEW + 1);
        lab(u)->tags_read = false;
        ui_features_go(u, feature);
        if (n == 1)
            ui_say(u, UI_GOOD, "%d: %s", feature, one);
        else
            ui_say(u, UI_GOOD, many, n);
    }
}

ui_result ui_key_undo(es_ui *u, int key)
{
    es_error err;
    int feature = -1, n = 0;
    (void)key;
    int rc = es_workspace_label_step_back(es_studio_workspace(u->studio), u->names.hash, &feature, &n, &err);
    travelled(u, rc, feature, n, &err, "no change of a label to take back", "last change taken back", "the change of %d features taken back");
    return UI_REDRAW;
}

ui_result ui_key_redo(es_ui *u, int key)
{
    es_error err;
    int feature = -1, n = 0;
    (void)key;
    int rc = es_workspace_label_redo(es_studio_workspace(u->studio), u->names.hash, &feature, &n, &err);
    travelled(u, rc, feature, n, &err, "nothing that was taken back is left to do again", "done again", "the change of %d features done again");
    return UI_REDRAW;
}

/* ---- second opinions ------------------------------------------------------------------------------------------------------------------------------------ */

static int by_author(const void *a, const void *b)
{
    return strcmp(((const es_label *)a)->author, ((const es_label *)b)->author);
}

ui_result ui_key_whose(es_ui *u, int key)
{
    es_error err;
    es_label *l = NULL;
    int n = 0, feature = ui_features_selected(u), have = 0, at = -1;
    (void)key;
    if (feature < 0)
        return UI_REDRAW;
    if (es_workspace_label_opinions(es_studio_workspace(u->studio), u->names.hash, feature, &l, &n, &err) < 0) {
        ui_say(u, UI_BAD, "%s", err.text);
        return UI_REDRAW;
    }
    char shown[64];
    snprintf(shown, sizeof shown, "%s", ui_meta_of(u, feature)->author);
    for (int i = 0; i < n; i++) /* those with a text, in the order of names */
        if (*l[i].text) {
            es_label t = l[have];
            l[have++] = l[i];
            l[i] = t;
        }
    if (have)
        qsort(l, (size_t)have, sizeof *l, by_author);
    for (int i = 0; i < have; i++)
        if (!strcmp(l[i].author, shown))
            at = i;
    if (have < 2) {
        ui_say(u, UI_PLAIN, have ? "only %s labelled it" : "nobody labelled it yet", have ? *l[0].author ? l[0].author : "one person" : "");
    } else {
        int next = (at + 1) % have;
        if (es_workspace_label_choose(es_studio_workspace(u->studio), u->names.hash, feature, l[next].author, &err) < 0) {
            ui_say(u, UI_BAD, "%s", err.text);
        } else {
            ui_names_changed(u, feature);
            ui_say(u, UI_GOOD, "%d: shown is the label by %s (%d of %d); w: the next, u takes it back", feature, l[next].author, next + 1, have);
        }
    }
    es_labels_free(l, n);
    return UI_REDRAW;
}

/* One line for each of several annotators. */
static int draw_opinions(es_ui *u, ui_box b, int y, int feature)
{
    enum { MOST = 4 };
    es_error err;
    es_label *l = NULL;
    int n = 0;
    if (es_workspace_label_opinions(es_studio_workspace(u->studio), u->names.hash, feature, &l, &n, &err) < 0)
        return y;
    for (int i = 0; i < n && i < MOST; i++) {
        char tail[60] = "";
        int len = 0;
        if (l[i].tested)
            len = snprintf(tail, sizeof tail, " %.2f", l[i].score);
        if (l[i].confidence)
            snprintf(tail + len, sizeof tail - (size_t)len, " %d%% sure", l[i].confidence);
        ui_put_cut(u, b, y, 1, 12, UI_ACCENT, *l[i].author ? l[i].author : "?");
        int room = b.w - 14 - ui_width(u->o.unicode, tail, strlen(tail));
        int x = ui_put_cut(u, b, y, 14, room, i ? UI_DIM : UI_PLAIN, *l[i].text ? l[i].text : *l[i].tags ? l[i].tags : "(no label)");
        ui_put(u, b, y, x, UI_DIM, tail);
        y++;
    }
    es_labels_free(l, n);
    return y;
}

int ui_labelled_draw(es_ui *u, ui_box b, int y, int feature)
{
    const ui_meta *m = ui_meta_of(u, feature);
    if (m->rating || *m->tags || m->skipped || m->tested || m->confidence || m->conflict) {
        int x = 0;
        if (m->rating)
            x = ui_printf(u, b, y, x, UI_ACCENT, "rated %d  ", m->rating);
        if (m->skipped)
            x = ui_put(u, b, y, x, UI_WARN, "skipped  ");
        if (m->conflict)
            x = ui_put(u, b, y, x, UI_WARN, "conflict: w chooses  ");
        if (m->confidence)
            x = ui_printf(u, b, y, x, UI_PLAIN, "%d%% sure  ", m->confidence);
        if (m->tested)
            x = ui_printf(u, b, y, x, UI_GOOD, "score %.2f of %d  ", m->score, m->tested);
        ui_put_cut(u, b, y, x, b.w - x, UI_DIM, m->tags);
        y++;
    }
    if (m->opinions > 1)
        y = draw_opinions(u, b, y, feature);
    if (m->noted) {
        char *note = note_of(u, feature);
        es_buf line = {0};
        ui_oneline(&line, note ? note : "", note ? strlen(note) : 0);
        int x = ui_put(u, b, y, 0, UI_DIM, "note ");
        ui_put_cut(u, b, y, x, b.w - x, UI_PLAIN, line.data ? line.data : "");
        es_buf_free(&line);
        free(note);
        y++;
    }
    return y;
}

/* ---- on to the next --------------------------------------------------------------------------------------------------------------------------------------- */

ui_result ui_key_next(es_ui *u, int key)
{
    (void)key;
    if (!ui_features_unlabelled(u))
        ui_say(u, UI_PLAIN, ui_features_of(u)->queue ? "the queue ends here; N makes it anew" : "nothing unlabelled below");
    return UI_REDRAW;
}

void ui_features_next(es_ui *u)
{
    if (u->names.n == 0) {
        ui_say(u, UI_BAD, "there is no dictionary, so no features");
        return;
    }
    ui_features_queue(u);
    if (u->v->n_suggested)
        ui_say(u, UI_PLAIN, "first those that your experiences ask for (Basis view, s)");
}

ui_result ui_key_queue(es_ui *u, int key)
{
    (void)key;
    ui_features_next(u);
    return UI_REDRAW;
}
