/* The command line: one table makes a command work, complete, and show in the help. */
#include "ui_internal.h"

#include "method.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct command {
    const char *name, *usage, *help;
    void (*run)(es_ui *u, const char *argument);
    ui_complete *complete; /* of the whole line */
} command;

static bool number(es_ui *u, const char *s, const char **rest, int *out)
{
    char *end;
    long value = strtol(s, &end, 10);
    if (end == s || value < 0 || value >= (u->v->n_features ? u->v->n_features : 1)) {
        ui_say(u, UI_BAD, u->v->n_features ? "a feature is a number from 0 to %d" : "there is no dictionary, so no features", u->v->n_features - 1);
        return false;
    }
    while (*end == ' ')
        end++;
    if (rest)
        *rest = end;
    *out = (int)value;
    return true;
}

static void run_view(es_ui *u, const char *a, int view) { (void)a; ui_show(u, view); }
static void run_chat(es_ui *u, const char *a) { run_view(u, a, UI_CHAT); }
static void run_features(es_ui *u, const char *a) { run_view(u, a, UI_FEATURES); }
static void run_basis_view(es_ui *u, const char *a) { run_view(u, a, UI_BASIS); }
static void run_drift(es_ui *u, const char *a) { run_view(u, a, UI_DRIFT); }
static void run_experiences(es_ui *u, const char *a) { run_view(u, a, UI_EXPERIENCES); }
static void run_jobs(es_ui *u, const char *a) { run_view(u, a, UI_JOBS); }
static void run_quit(es_ui *u, const char *a) { (void)a; ui_leave(u); }
static void run_help(es_ui *u, const char *a) { (void)a; u->help.open = true; u->help.top = 0; }
static void run_new(es_ui *u, const char *a) { (void)a; es_studio_new_chat(u->studio); ui_show(u, UI_CHAT); }
static void run_stop(es_ui *u, const char *a) { (void)a; es_studio_stop(u->studio); }
static void run_undo(es_ui *u, const char *a) { (void)a; es_studio_undo(u->studio); }
static void run_again(es_ui *u, const char *a) { (void)a; es_studio_regenerate(u->studio); }
static void run_pause(es_ui *u, const char *a) { (void)a; es_studio_learn_pause(u->studio, true); }
static void run_resume(es_ui *u, const char *a) { (void)a; es_studio_learn_pause(u->studio, false); }
static void run_learn(es_ui *u, const char *a) { (void)a; es_studio_learn_now(u->studio); }
static void run_cancel(es_ui *u, const char *a) { (void)a; es_studio_learn_cancel(u->studio); }

static void run_compare(es_ui *u, const char *a)
{
    if (*a)
        es_studio_compare(u->studio, a);
    else
        ui_compare_prompt(u);
}

static void run_shade(es_ui *u, const char *a)
{
    int f;
    if (!strcmp(a, "off"))
        es_studio_shade(u->studio, -1);
    else if (number(u, a, NULL, &f)) {
        es_studio_shade(u->studio, f);
        ui_show(u, UI_CHAT);
    }
}

static void run_steer(es_ui *u, const char *a)
{
    int f;
    if (!number(u, a, &a, &f))
        return;
    char *end;
    double strength = strtod(a, &end);
    while (*end == ' ')
        end++;
    if (end == a || !*end || !isfinite(strength)) {
        ui_steer_prompt(u, f);
        return;
    }
    es_studio_steer(u->studio, f, (float)strength, end);
}

static void run_temperature(es_ui *u, const char *a)
{
    char *end;
    double t = strtod(a, &end);
    if (end == a || !(t >= 0 && t <= 5)) {
        ui_say(u, UI_BAD, "a temperature is a number from 0 (always the likeliest) to 5");
        return;
    }
    es_studio_temperature(u->studio, (float)t);
    ui_say(u, UI_GOOD, "temperature %g", t);
}

static void run_basis(es_ui *u, const char *a)
{
    char name[64];
    int version = 0;
    if (sscanf(a, "%63s %d", name, &version) < 1) {
        ui_show(u, UI_BASIS);
        return;
    }
    es_studio_basis_use(u->studio, name, version);
}

static void run_new_basis(es_ui *u, const char *a)
{
    if (!*a || strlen(a) > 63 || strchr(a, ' '))
        ui_say(u, UI_BAD, "a basis needs a name of one word, at most 63 letters");
    else {
        es_studio_basis_new(u->studio, a);
        ui_show(u, UI_BASIS);
    }
}

static void run_add(es_ui *u, const char *a)
{
    int f;
    float lo = 1, hi = -1;
    if (!number(u, a, &a, &f))
        return;
    if (*a && (sscanf(a, "%f %f", &lo, &hi) != 2 || !(lo <= hi))) {
        ui_say(u, UI_BAD, "bounds are two numbers, the lower one first: :add %d -4 4", f);
        return;
    }
    es_studio_basis_add(u->studio, f, lo, hi);
    ui_say(u, UI_GOOD, "%d is in the basis", f);
}

static void run_remove(es_ui *u, const char *a)
{
    int f;
    if (number(u, a, NULL, &f))
        es_studio_basis_remove(u->studio, f);
}

static void run_suggest(es_ui *u, const char *a)
{
    int size = *a ? atoi(a) : 64;
    if (size < 1 || size > 4096)
        ui_say(u, UI_BAD, "a size is a number from 1 to 4096");
    else {
        es_studio_basis_suggest(u->studio, size);
        ui_show(u, UI_BASIS);
    }
}

static void run_feature(es_ui *u, const char *a)
{
    int f;
    if (number(u, a, NULL, &f))
        ui_open_feature(u, f);
}

static void run_probe(es_ui *u, const char *a)
{
    if (*a)
        ui_features_for_text(u, a);
    else
        ui_say(u, UI_BAD, "which text? :probe TEXT");
}

static void run_find(es_ui *u, const char *a)
{
    ui_features_find(u, a);
}

static void run_contrast(es_ui *u, const char *a)
{
    char first[1024];
    const char *rest = a;
    size_t n = 0;
    bool quoted = *rest == '"';
    for (rest += quoted; *rest && (quoted ? *rest != '"' : *rest != ' '); rest++)
        if (n < sizeof first - 1)
            first[n++] = *rest;
    first[n] = 0;
    rest += quoted && *rest;
    rest += strspn(rest, " ");
    if (!n || !*rest)
        ui_say(u, UI_BAD, "which two files of texts? :contrast A.txt B.txt, a text a line, or .jsonl with \"text\"");
    else if (u->names.n == 0)
        ui_say(u, UI_BAD, "there is no dictionary to look with");
    else
        ui_features_contrast(u, first, rest);
}

static void run_map(es_ui *u, const char *a)
{
    (void)a;
    ui_features_map(u);
}

static void run_adapter(es_ui *u, const char *a)
{
    if (!strcmp(a, "on") || !strcmp(a, "off"))
        es_studio_adapter(u->studio, a[1] == 'n');
    else
        ui_say(u, UI_BAD, ":adapter on or :adapter off");
}

static void run_method(es_ui *u, const char *a)
{
    if (*a)
        es_studio_method(u->studio, a);
    else if (*u->v->method_text)
        ui_say(u, UI_PLAIN, "%s answers: %s", u->v->method, u->v->method_text);
    else
        ui_say(u, UI_PLAIN, "%s answers; Tab after :method lists the others", u->v->method);
}

static void run_prefer(es_ui *u, const char *a)
{
    es_studio_prefer(u->studio, a);
}

static void run_direction(es_ui *u, const char *a)
{
    bool off = !strncmp(a, "off ", 4);
    if (!*a)
        ui_show(u, UI_DRIFT);
    else
        es_studio_direction(u->studio, off ? a + 4 + strspn(a + 4, " ") : a, !off);
}

static void run_rollback(es_ui *u, const char *a)
{
    char *end;
    long long id = strtoll(*a == '#' ? a + 1 : a, &end, 10);
    if (!strcmp(a, "base"))
        es_studio_rollback(u->studio, 0);
    else if (!*a || *end || id < 0)
        ui_say(u, UI_BAD, "to which snapshot? :rollback base, or its number in the Drift view");
    else
        es_studio_rollback(u->studio, id);
}

static void run_import(es_ui *u, const char *a)
{
    es_error err;
    int n = 0;
    if (!*a)
        ui_say(u, UI_BAD, "which file? :import-labels FILE.jsonl");
    else if (u->names.n == 0)
        ui_say(u, UI_BAD, "there is no dictionary, so no features to label");
    else if (es_workspace_label_import(es_studio_workspace(u->studio), u->names.hash, u->names.n, a, u->o.author ? u->o.author : "", &n, &err) < 0)
        ui_say(u, UI_BAD, "%s", err.text);
    else {
        ui_names_free(u);
        ui_names_refresh(u);
        ui_say(u, UI_GOOD, "%d labels imported", n);
    }
}

static void run_merge(es_ui *u, const char *a)
{
    es_error err;
    es_merge n;
    char preferred[64];
    es_workspace *w = es_studio_workspace(u->studio);
    const char *author = u->o.author ? u->o.author : "";
    if (!*a || u->names.n == 0) {
        ui_say(u, UI_BAD, *a ? "there is no dictionary, so no features to label" : "which file? :merge FILE.jsonl");
        return;
    }
    int rc = es_workspace_label_merge(w, u->names.hash, u->names.n, &a, 1, author, &n, &err);
    if (rc >= 0) {
        es_workspace_label_preferred(w, preferred);
        if (!*preferred && *author) /* one's own stay in sight */
            rc = es_workspace_label_prefer(w, author, &err);
        ui_names_changed_many(u);
    }
    if (rc < 0)
        ui_say(u, UI_BAD, "%s", err.text);
    else
        ui_say(u, UI_GOOD, "%d new, %d changed, %d as they were, %d older than what is here; :conflicts lists where people differ", n.added, n.changed, n.same, n.older);
}

static void run_conflicts(es_ui *u, const char *a)
{
    (void)a;
    ui_features_find(u, "is:conflict");
}

static void run_next(es_ui *u, const char *a)
{
    (void)a;
    ui_features_next(u);
}

static void run_whose(es_ui *u, const char *a)
{
    es_error err;
    char preferred[64];
    es_workspace *w = es_studio_workspace(u->studio);
    es_workspace_label_preferred(w, preferred);
    if (!*a) {
        ui_say(u, UI_PLAIN, *preferred ? "%s's labels are shown first" : "the newest labels are shown first; :whose NAME, :whose off", preferred);
    } else if (es_workspace_label_prefer(w, strcmp(a, "off") ? a : "", &err) < 0) {
        ui_say(u, UI_BAD, "%s", err.text);
    } else {
        ui_names_changed_many(u);
        ui_say(u, UI_GOOD, strcmp(a, "off") ? "%s's labels are shown first, where none is chosen" : "the newest labels are shown first", a);
    }
}

static void run_export(es_ui *u, const char *a)
{
    es_error err;
    json_t *all = NULL;
    if (!*a || u->names.n == 0) {
        ui_say(u, UI_BAD, *a ? "there is no dictionary, so no labels" : "to which file? :export-labels FILE.jsonl");
        return;
    }
    if (es_workspace_label_export(es_studio_workspace(u->studio), u->names.hash, &all, &err) < 0) {
        ui_say(u, UI_BAD, "%s", err.text);
        return;
    }
    size_t len = strlen(a);
    es_buf lines = {0};
    for (size_t i = 0; len > 6 && !strcmp(a + len - 6, ".jsonl") && i < json_array_size(all); i++) { /* as :merge and :import-labels read it */
        char *one = json_dumps(json_array_get(all, i), JSON_COMPACT);
        es_buf_printf(&lines, "%s\n", one ? one : "");
        lines.failed = lines.failed || !one;
        free(one);
    }
    char *text = lines.len ? strdup(lines.failed ? "" : lines.data) : json_dumps(all, JSON_INDENT(1));
    es_buf_free(&lines);
    if (!text)
        ui_say(u, UI_BAD, "no memory for the labels");
    else if (es_file_write(a, text, strlen(text), &err) < 0)
        ui_say(u, UI_BAD, "%s", err.text);
    else
        ui_say(u, UI_GOOD, "%zu labels written to %s", json_array_size(all), a);
    free(text);
    json_decref(all);
}

static void add_line(es_buf *out, const char *a, const char *b)
{
    es_buf_printf(out, "%s%s", a, b);
    es_buf_add(out, "", 1);
}

static void complete_basis(es_ui *u, const char *line, es_buf *out)
{
    es_basis_line *l = NULL;
    int n = 0;
    es_error err;
    const char *typed = strchr(line, ' ') + 1;
    if (es_workspace_basis_list(es_studio_workspace(u->studio), u->names.n ? u->names.hash : NULL, &l, &n, &err) < 0)
        return;
    for (int i = 0; i < n; i++) {
        bool seen = false;
        for (int j = 0; j < i; j++)
            seen = seen || !strcmp(l[i].name, l[j].name);
        if (!seen && !strncmp(l[i].name, typed, strlen(typed)))
            add_line(out, "basis ", l[i].name);
    }
    free(l);
}

static void complete_method(es_ui *u, const char *line, es_buf *out)
{
    (void)u, (void)line;
    for (int i = 0; i < ES_N_METHODS; i++)
        add_line(out, "method ", es_method_name((es_method_kind)i));
}

static void complete_direction(es_ui *u, const char *line, es_buf *out)
{
    (void)line;
    for (int i = 0; i < u->v->n_direction; i++)
        add_line(out, u->v->direction[i].used ? "direction off " : "direction ", u->v->direction[i].name);
}

static void complete_on_off(es_ui *u, const char *line, es_buf *out)
{
    (void)u, (void)line;
    add_line(out, "adapter ", "on");
    add_line(out, "adapter ", "off");
}

static void complete_rollback(es_ui *u, const char *line, es_buf *out)
{
    (void)line;
    add_line(out, "rollback ", "base");
    for (int i = u->v->n_snapshot - 1; i >= 0; i--) {
        char id[24];
        snprintf(id, sizeof id, "%lld", (long long)u->v->snapshots[i].id);
        add_line(out, "rollback ", id);
    }
}

/* Features of the last reply: what one is likely to mean. */
static void complete_active(es_ui *u, const char *line, es_buf *out)
{
    int word = (int)(strchr(line, ' ') - line) + 1;
    const char *typed = line + word;
    for (int i = 0; i < u->v->n_active; i++) {
        char id[24];
        snprintf(id, sizeof id, "%d", u->v->active[i].feature);
        if (!strncmp(id, typed, strlen(typed)))
            es_buf_printf(out, "%.*s%s", word, line, id), es_buf_add(out, "", 1);
    }
}

static const command commands[] = {
    {"adapter", "on|off", "answer with or without what was learned", run_adapter, complete_on_off},
    {"add", "N [LO HI]", "put feature N into the basis", run_add, complete_active},
    {"basis", "[NAME [VERSION]]", "use a saved basis, or look at the one in use", run_basis, complete_basis},
    {"basis-view", "", "the Basis view", run_basis_view, NULL},
    {"cancel", "", "give up the learning that runs", run_cancel, NULL},
    {"chat", "", "the Chat view", run_chat, NULL},
    {"compare", "[QUESTION]", "base and adapted replies side by side", run_compare, NULL},
    {"conflicts", "", "features that people label differently", run_conflicts, NULL},
    {"contrast", "A B", "which features tell two files of texts apart", run_contrast, NULL},
    {"direction", "[FILE|NAME|off NAME]", "learn more readily along a direction made with adapt --direction", run_direction, complete_direction},
    {"drift", "", "the Drift view", run_drift, NULL},
    {"experiences", "", "the Experiences view", run_experiences, NULL},
    {"export-labels", "FILE", "write all labels: .jsonl for :merge and :import-labels, else JSON", run_export, NULL},
    {"feature", "N", "open a feature's dashboard", run_feature, complete_active},
    {"features", "", "the Features view", run_features, NULL},
    {"find", "FILTER", "features, by the filter language of the Features view", run_find, NULL},
    {"help", "", "keys and commands", run_help, NULL},
    {"import-labels", "FILE", "take labels in from JSONL, all or none", run_import, NULL},
    {"jobs", "", "the Jobs view", run_jobs, NULL},
    {"learn", "", "a round of learning on what there is, now", run_learn, NULL},
    {"map", "", "the map of the dictionary", run_map, NULL},
    {"merge", "FILE", "take another person's labels in, kept apart under their name", run_merge, NULL},
    {"method", "[NAME [TEACHER]]", "which way of learning answers: features, context, lora, ...; distil: by a stated preference or MODEL.gguf", run_method, complete_method},
    {"new", "", "a new chat; what was learned stays", run_new, NULL},
    {"new-basis", "NAME", "an empty basis, then in use", run_new_basis, NULL},
    {"next", "", "the queue of features most worth labelling", run_next, NULL},
    {"pause", "", "learning waits", run_pause, NULL},
    {"prefer", "TEXT", "learn a stated preference: /prefer be more direct", run_prefer, NULL},
    {"probe", "TEXT", "which features fire on a text", run_probe, NULL},
    {"quit", "", "leave", run_quit, NULL},
    {"regenerate", "", "drop the last reply and answer again", run_again, NULL},
    {"remove", "N", "take feature N out of the basis", run_remove, NULL},
    {"resume", "", "learning goes on", run_resume, NULL},
    {"rollback", "base|N", "go back to the base model or a snapshot", run_rollback, complete_rollback},
    {"shade", "N|off", "colour the replies by a feature", run_shade, complete_active},
    {"steer", "N STRENGTH QUESTION", "the same answer without and with a feature", run_steer, complete_active},
    {"stop", "", "stop generating", run_stop, NULL},
    {"suggest", "[SIZE]", "features the experiences' gradient asks for", run_suggest, NULL},
    {"temperature", "T", "0: always the likeliest token", run_temperature, NULL},
    {"undo", "", "take back the newest rating or correction", run_undo, NULL},
    {"whose", "[NAME|off]", "whose labels are shown first, where several people labelled a feature", run_whose, NULL},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

const char *ui_command_line(int i, char *usage, size_t n)
{
    if (i < 0 || i >= COMMANDS)
        return NULL;
    snprintf(usage, n, ":%s %s", commands[i].name, commands[i].usage);
    return commands[i].help;
}

void ui_command(es_ui *u, const char *line)
{
    while (*line == ' ' || *line == ':')
        line++;
    size_t n = strcspn(line, " ");
    if (n == 0)
        return;
    const command *found = NULL;
    int matches = 0;
    for (int i = 0; i < COMMANDS; i++) { /* a name, or the beginning of just one */
        if (strncmp(commands[i].name, line, n))
            continue;
        if (commands[i].name[n] == 0) {
            found = &commands[i];
            matches = 1;
            break;
        }
        found = &commands[i];
        matches++;
    }
    if (n == 1 && *line == 'q') {
        found = NULL;
        matches = 0;
        ui_leave(u);
        return;
    }
    if (matches != 1) {
        ui_say(u, UI_BAD, matches ? "'%.*s' could be several commands; Tab completes" : "there is no command '%.*s'; Tab lists them", (int)n, line);
        return;
    }
    line += n;
    while (*line == ' ')
        line++;
    char *argument = strdup(line);
    if (!argument)
        return;
    for (size_t k = strlen(argument); k > 0 && argument[k - 1] == ' ';)
        argument[--k] = 0;
    found->run(u, argument);
    free(argument);
}

void ui_command_complete(es_ui *u, const char *text, es_buf *candidates)
{
    size_t n = strcspn(text, " ");
    for (int i = 0; i < COMMANDS; i++) {
        if (text[n] == ' ') {
            if (strlen(commands[i].name) == n && !strncmp(commands[i].name, text, n) && commands[i].complete)
                commands[i].complete(u, text, candidates);
        } else if (!strncmp(commands[i].name, text, n)) {
            add_line(candidates, commands[i].name, *commands[i].usage ? " " : "");
        }
    }
}

static void done(es_ui *u, const char *text)
{
    if (text)
        ui_command(u, text);
}

void ui_command_prompt(es_ui *u)
{
    ui_prompt(u, ":", NULL, UI_HISTORY_COMMAND, done, NULL, ui_command_complete);
}
