#include "fake_studio.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { TURNS = 64, EXPERIENCES = 8, STEPS = 48, BASIS = 12, LABELS = 40, UNDO = 64 };

static const char *const words[] = {
    " the", " a", " sorry", " I", " think", " please", " list", " of", " short", " answer", ".", ",", " thank", " you", " very", " much",
    " maybe", " perhaps", " certainly", " code", " def", "(", ")", ":", "\\n", " return", " function", " water", " boils", " at",
    " degrees", " because", " hot", " cold", " kind", " regards", " dear", " friend", "!", "?", " haha", " great", " awful", " angry",
};
enum { WORDS = sizeof words / sizeof *words };
static const char *const starter[LABELS] = {
    "apologies and regrets", "polite requests", "hedging: perhaps, maybe", "numbered lists", "Python function bodies", "exclamations of joy",
    "formal letter closings", "temperature and heat", "short direct answers", "thanking the reader", NULL, "first person opinions",
    NULL, NULL, "anger and insults", "lists with dashes", NULL, "questions back to the user", "code comments", "weather talk",
};
static const char *const hostile[6] = {
    "\x1b]52;c;ZXZpbA==\x07 clipboard", "\x1b[2J\x1b[31mred", "日本語のラベル幅", "e\xcc\x81 combining \xcc\x81\xcc\x82", "👨‍👩‍👧 family ❤️", "\xc2\x9b" "5m C1 \xff bad",
};

typedef struct label { char text[128], tags[64], note[128], chosen[64]; int rating, confidence, tested; bool skipped; double score; } label;

struct es_studio {
    fake_kind kind;
    int n_features, pipe[2], timer;
    es_buf log;
    char *taken;
    es_view v;
    es_turn turn[TURNS];
    int n_turn;
    char *text[TURNS], *edited[TURNS];
    int *token_end[TURNS];
    float *shade[TURNS];
    const char *answer;
    size_t streamed;
    int basis_feature[64];
    float lo[64], hi[64], coefficient[64], snr[64];
    float history[STEPS * 64], loss[STEPS], kl[STEPS];
    int mark_step[EXPERIENCES];
    int64_t mark_experience[EXPERIENCES];
    es_experience_line experience[EXPERIENCES];
    es_message message[EXPERIENCES];
    float influence[(EXPERIENCES + 1) * 64];
    es_snapshot_line snapshot[4];
    es_active active[16];
    int suggested[64];
    float suggested_score[64];
    es_job job[3];
    char side_text[2][600];
    label label[LABELS], undo_label[UNDO];
    int undo_feature[UNDO], n_undo;
    float *density, *max, *map;
    es_blind blind;
    es_found found;
    bool have;
    char find_error[240];
    double map_done; /* below 1: being made */
};

static void note(es_studio *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void note(es_studio *s, const char *fmt, ...)
{
    char text[4096];
    va_list a;
    va_start(a, fmt);
    vsnprintf(text, sizeof text, fmt, a);
    va_end(a);
    es_buf_printf(&s->log, "%s\n", text);
}

const char *fake_log(es_studio *s)
{
    free(s->taken);
    s->taken = strdup(s->log.data ? s->log.data : "");
    es_buf_clear(&s->log);
    return s->taken;
}

void fake_turn(es_studio *s, char role, const char *text)
{
    if (s->n_turn == TURNS)
        return;
    int i = s->n_turn++;
    s->text[i] = strdup(text);
    s->turn[i] = (es_turn){.id = i + 1, .role = role, .text = s->text[i], .n = (int)strlen(text)};
    if (role == 'a') {
        int n = (int)strlen(text);
        s->token_end[i] = malloc((size_t)(n + 1) * sizeof(int));
        s->shade[i] = calloc((size_t)n + 1, sizeof(float));
        int k = 0;
        for (int j = 1; j <= n; j++)
            if (j == n || text[j] == ' ')
                s->token_end[i][k++] = j;
        for (int j = 0; j < k; j++)
            s->shade[i][j] = (float)(j % 7) * 1.5f;
        s->turn[i].token_end = s->token_end[i];
        s->turn[i].shade = s->shade[i];
        s->turn[i].n_token = k;
        s->turn[i].snapshot = s->v.snapshot;
    }
}

static void learned(es_studio *s)
{
    es_view *v = &s->v;
    static const int chosen[BASIS] = {0, 1, 2, 8, 9, 14, 17, 5, 101, 233, 347, 412};
    v->n_basis = BASIS;
    strcpy(v->basis_name, "directness");
    v->basis_version = 3;
    v->n_step = STEPS;
    for (int i = 0; i < BASIS; i++) {
        s->basis_feature[i] = chosen[i];
        s->lo[i] = i == 3 ? 0 : -4 - (float)i * .25f;
        s->hi[i] = i == 0 ? 0 : 4 + (float)i * .25f;
        s->coefficient[i] = (i % 2 ? 1.f : -1.f) * 2.2f / (float)(i + 1);
        s->snr[i] = 6.f / (float)(i + 1);
        for (int t = 0; t < STEPS; t++)
            s->history[t * BASIS + i] = s->coefficient[i] * (1 - expf(-(float)t / (6 + (float)i)));
    }
    for (int t = 0; t < STEPS; t++) {
        s->loss[t] = .7f * expf(-(float)t / 20);
        s->kl[t] = .0002f * (float)t;
    }
    v->report = (es_basis_report){.condition = 3.42, .effective_rank = 11.3, .max_overlap = .31, .overlap_a = 0, .overlap_b = 1, .energy = .187,
                                  .random_mean = .021, .random_min = .014, .random_max = .029};
    v->report_ready = true;
    v->n_experience = 5;
    for (int i = 0; i < 5; i++) {
        static const char *const question[5] = {"Why is the sky blue?", "How do I boil an egg?", "Name three primes.", "What is a monad?", "Write me a haiku about rain."};
        static const char *const good[5] = {"Sunlight scatters off air; blue scatters most.", "Boil it eight minutes.", "2, 3 and 5.", NULL, "Rain on the window"};
        static const char *const bad[5] = {"Well, that is a great question! The sky appears blue because of a phenomenon called Rayleigh scattering.",
                                           "I'd be happy to help you boil an egg! First, take a pot of water.", NULL, "A monad is a monoid in the category of endofunctors.", "As a language model I cannot feel rain."};
        s->message[i] = (es_message){.role = "user", .content = (char *)(uintptr_t)question[i]};
        s->experience[i] = (es_experience_line){.id = i + 1, .included = i != 3};
        s->experience[i].e = (es_experience){.id = i + 1, .message = &s->message[i], .n_message = 1, .preferred = (char *)(uintptr_t)good[i],
            .rejected = (char *)(uintptr_t)bad[i], .source = "chat", .time = "2026-11-23T20:15:00Z", .weight = i == 3 ? 0 : 1 - .1 * i};
        strcpy(s->experience[i].reason, i == 3 ? "disagrees with the others" : "agrees with the others");
        s->mark_step[i] = i * 9;
        s->mark_experience[i] = i + 1;
    }
    v->n_mark = 5;
    v->n_influence = 5;
    for (int j = 0; j < BASIS; j++) {
        float rest = s->coefficient[j];
        for (int i = 0; i < 5; i++) {
            s->influence[i * BASIS + j] = i == 3 ? 0 : s->coefficient[j] * (.45f - .1f * (float)i);
            rest -= s->influence[i * BASIS + j];
        }
        s->influence[5 * BASIS + j] = rest;
    }
    v->n_snapshot = 3;
    for (int i = 0; i < 3; i++) {
        s->snapshot[i] = (es_snapshot_line){.id = i + 1, .parent = i, .basis_version = 3, .steps = 16 * (i + 1), .experiences = i + 2, .n = BASIS,
                                            .passed = i != 1, .gain = .04 * (i + 1), .kl = .003 * (i + 1)};
        snprintf(s->snapshot[i].time, sizeof s->snapshot[i].time, "2026-11-23T20:%02d:00Z", 10 + i);
        strcpy(s->snapshot[i].basis, "directness");
        strcpy(s->snapshot[i].form, "bias");
        strcpy(s->snapshot[i].note, i == 1 ? "held-out experiences lost: not published" : "passed");
        s->snapshot[i].coefficient = &s->history[(16 * (i + 1) - 1) * BASIS];
    }
    v->snapshot = 3;
    v->adapter_on = true;
    v->n_job = 2;
    s->job[0] = (es_job){.id = 1, .kind = "learning", .what = "round 4 on 5 experiences", .done = 12, .total = 48, .unit = "steps", .seconds = 6, .running = true};
    s->job[1] = (es_job){.id = 2, .kind = "suggest", .what = "gradient of 5 experiences", .done = 5, .total = 5, .unit = "items", .seconds = 3.5};
}

es_studio *fake_studio(fake_kind kind, int n_features)
{
    es_studio *s = calloc(1, sizeof *s);
    es_view *v = &s->v;
    s->kind = kind;
    s->timer = -1;
    if (pipe(s->pipe))
        abort();
    s->n_features = kind == FAKE_LOADING || kind == FAKE_FAILED || kind == FAKE_BARE ? 0 : n_features;
    v->shade_feature = -1;
    v->learning = kind == FAKE_BARE ? ES_LEARN_OFF : ES_LEARN_IDLE;
    if (kind == FAKE_LOADING) {
        v->loading = true;
        strcpy(v->status, "opening SmolLM2-135M-Instruct.Q4_1.gguf");
    } else if (kind == FAKE_FAILED) {
        v->failed = true;
        strcpy(v->status, "/models/smol.gguf: bad magic at byte 0: not a GGUF file; --model FILE.gguf takes another");
    } else {
        strcpy(v->model, "SmolLM2-135M-Instruct");
        v->n_ctx = 2048;
    }
    if (s->n_features) {
        strcpy(v->dictionary, "smollm2-l15-4k");
        v->layer = 15;
        v->d_model = 576;
        v->n_features = n_features;
        s->density = malloc((size_t)n_features * sizeof(float));
        s->max = malloc((size_t)n_features * sizeof(float));
        s->map = malloc(2 * (size_t)n_features * sizeof(float));
        s->map_done = 1;
        for (int i = 0; i < n_features; i++) {
            s->density[i] = .05f / (float)(1 + (i * 37) % 100);
            s->max[i] = 12.5f - (float)(i % 9);
            int group = i % 7; /* seven rings around seven places */
            s->map[2 * i] = 6 * cosf((float)group) * (1 + .2f * (float)group) + .8f * cosf((float)i * 2.4f) * sqrtf((float)(i % 53) / 53);
            s->map[2 * i + 1] = 4 * sinf((float)group) + .8f * sinf((float)i * 2.4f) * sqrtf((float)(i % 53) / 53);
        }
        for (int i = 0; i < LABELS && i < n_features; i++)
            if (starter[i]) {
                snprintf(s->label[i].text, sizeof s->label[i].text, "%s", starter[i]);
                snprintf(s->label[i].tags, sizeof s->label[i].tags, "%s", i < 3 ? "tone polite" : "");
                s->label[i].rating = i % 6;
            }
    }
    if (kind == FAKE_HOSTILE)
        for (int i = 0; i < 6; i++)
            snprintf(s->label[i].text, sizeof s->label[i].text, "%s", hostile[i]);
    if (kind == FAKE_USED || kind == FAKE_HOSTILE) {
        learned(s);
        v->tokens_per_second = 41;
        v->context_used = 312;
        fake_turn(s, 'u', "What is the boiling point of water?");
        fake_turn(s, 'a', "Water boils at **100 degrees Celsius** at sea level. Some things to know:\n\n- at altitude it boils at a lower temperature, because the "
                          "pressure of the air is lower\n- salt raises it a little\n\n```python\ndef boils(t):\n    return t >= 100\n```\nUse `boils(99)` to try.");
        fake_turn(s, 'u', "And on Mount Everest?");
        fake_turn(s, 'a', kind == FAKE_USED ? "About 71 degrees." : "\x1b[2J日本語 👨‍👩‍👧 \x1b]0;owned\x07 e\xcc\x81 and \xff end\nمرحبا");
        v->n_active = 12;
        static const int feature[12] = {8, 0, 7, 1, 101, 2, 5, 17, 14, 233, 412, 4};
        for (int i = 0; i < 12; i++)
            s->active[i] = (es_active){feature[i], 9.5f - .7f * (float)i, 1};
    }
    return s;
}

void fake_studio_free(es_studio *s)
{
    for (int i = 0; i < s->n_turn; i++) {
        free(s->text[i]);
        free(s->edited[i]);
        free(s->token_end[i]);
        free(s->shade[i]);
    }
    close(s->pipe[0]);
    close(s->pipe[1]);
    if (s->timer >= 0)
        close(s->timer);
    es_buf_free(&s->log);
    free(s->taken);
    free(s->density);
    free(s->max);
    free(s->map);
    es_found_free(&s->found);
    free(s);
}

void fake_map_done(es_studio *s, double done)
{
    s->map_done = done;
}

void fake_clock(es_studio *s)
{
    s->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    timerfd_settime(s->timer, 0, &(struct itimerspec){{0, 30000000}, {0, 30000000}}, NULL);
}

static void poke(es_studio *s)
{
    s->v.serial++;
    ssize_t ignored = write(s->pipe[1], "x", 1);
    (void)ignored;
}

static void stream(es_studio *s, const char *answer)
{
    fake_turn(s, 'a', answer);
    s->turn[s->n_turn - 1].streaming = true;
    s->turn[s->n_turn - 1].n = 0;
    s->turn[s->n_turn - 1].n_token = 0;
    s->v.generating = true;
    s->v.tokens_per_second = 38;
}

void fake_tick(es_studio *s)
{
    es_turn *t = s->n_turn ? &s->turn[s->n_turn - 1] : NULL;
    if (s->kind == FAKE_LOADING)
        return;
    if (t && t->streaming) {
        t->n = t->token_end[t->n_token++];
        s->v.context_used++;
        if (!t->text[t->n]) {
            t->streaming = s->v.generating = false;
            for (int i = 0; i < 8 && s->n_features > 20; i++)
                s->active[i] = (es_active){(i * 3 + s->n_turn) % 20, 8 - (float)i * .8f, 1};
            s->v.n_active = s->n_features ? 8 : 0;
        }
    }
    for (int i = 0; i < s->v.n_side; i++)
        if (s->v.side[i].streaming) {
            s->v.side[i].n++;
            s->v.side[i].tokens++;
            s->v.side[i].streaming = s->side_text[i][s->v.side[i].n] != 0;
            break;
        }
    s->v.serial++;
}

/* ---- the studio's API ---- */

static void *copied(es_buf *list, const void *from, size_t n)
{
    void *p = n ? malloc(n) : NULL;
    if (p) {
        memcpy(p, from, n);
        es_buf_add(list, &p, sizeof p);
    }
    return p;
}

typedef struct owned { es_view v; es_buf list; } owned;
#define COPY(field, from, n) (o->v.field = copied(&o->list, from, (size_t)(n) * sizeof *(from)))

es_view *es_studio_view(es_studio *s)
{
    owned *o = calloc(1, sizeof *o);
    o->v = s->v;
    int k = s->v.n_basis;
    es_turn turn[TURNS];
    memcpy(turn, s->turn, sizeof turn);
    for (int i = 0; i < s->n_turn; i++) { /* real copies, so that the sanitizer sees who keeps a pointer too long */
        turn[i].text = copied(&o->list, turn[i].text, (size_t)turn[i].n + 1);
        if (turn[i].edited)
            turn[i].edited = copied(&o->list, turn[i].edited, strlen(turn[i].edited) + 1);
        turn[i].token_end = copied(&o->list, turn[i].token_end, (size_t)turn[i].n_token * sizeof(int));
        turn[i].shade = s->v.shade_feature >= 0 ? copied(&o->list, turn[i].shade, (size_t)turn[i].n_token * sizeof(float)) : NULL;
    }
    o->v.n_turn = s->n_turn;
    o->v.shade_max = 10;
    COPY(turn, turn, s->n_turn);
    COPY(active, s->active, s->v.n_active);
    if (s->blind.n)
        COPY(blind, &s->blind, 1);
    for (int i = 0; i < s->v.n_side; i++)
        o->v.side[i].text = copied(&o->list, s->side_text[i], strlen(s->side_text[i]) + 1);
    COPY(basis_feature, s->basis_feature, k);
    COPY(basis_lo, s->lo, k);
    COPY(basis_hi, s->hi, k);
    COPY(coefficient, s->coefficient, k);
    COPY(snr, s->snr, k);
    COPY(history, s->history, s->v.n_step * k);
    COPY(step_loss, s->loss, s->v.n_step);
    COPY(step_kl, s->kl, s->v.n_step);
    COPY(mark_step, s->mark_step, s->v.n_mark);
    COPY(mark_experience, s->mark_experience, s->v.n_mark);
    COPY(experience, s->experience, s->v.n_experience);
    if (s->v.n_influence)
        COPY(influence, s->influence, (s->v.n_influence + 1) * k);
    COPY(influence_experience, s->mark_experience, s->v.n_influence);
    COPY(snapshots, s->snapshot, s->v.n_snapshot);
    COPY(suggested, s->suggested, s->v.n_suggested);
    COPY(suggested_score, s->suggested_score, s->v.n_suggested);
    COPY(job, s->job, s->v.n_job);
    return &o->v;
}

void es_view_free(es_view *v)
{
    if (!v)
        return;
    owned *o = (owned *)(void *)v;
    for (size_t i = 0; i < o->list.len; i += sizeof(void *)) {
        void *p;
        memcpy(&p, o->list.data + i, sizeof p);
        free(p);
    }
    es_buf_free(&o->list);
    free(o);
}

int es_studio_fd(const es_studio *s) { return s->timer >= 0 ? s->timer : s->pipe[0]; }
void es_studio_ack(es_studio *s)
{
    char b[64];
    uint64_t n;
    if (s->timer >= 0 && read(s->timer, &n, sizeof n) > 0)
        fake_tick(s);
    else if (s->timer < 0 && read(s->pipe[0], b, sizeof b) < 0)
        return;
}
es_workspace *es_studio_workspace(es_studio *s) { return (es_workspace *)(void *)s; }
const char *es_studio_dictionary_hash(es_studio *s) { return s->n_features ? "0123456789abcdef" : ""; }

void es_studio_say(es_studio *s, const char *text)
{
    note(s, "say %s", text);
    fake_turn(s, 'u', text);
    stream(s, "Well, that is a good question. I think the short answer is yes, though there is more to say about it: it depends on what you want, on how "
              "much time you have, and on whom you ask. In short: **yes**.");
    poke(s);
}
void es_studio_stop(es_studio *s)
{
    note(s, "stop");
    if (s->v.generating) {
        s->turn[s->n_turn - 1].streaming = s->v.generating = false;
        s->turn[s->n_turn - 1].stopped = true;
    }
    poke(s);
}
void es_studio_new_chat(es_studio *s) { note(s, "new"); s->n_turn = 0; poke(s); }
void es_studio_regenerate(es_studio *s) { note(s, "regenerate"); poke(s); }
void es_studio_rate(es_studio *s, int64_t turn, int sign) { note(s, "rate %d %d", (int)turn, sign); s->turn[turn - 1].rating = sign; poke(s); }
void es_studio_edit(es_studio *s, int64_t turn, const char *text)
{
    note(s, "edit %d %s", (int)turn, text);
    free(s->edited[turn - 1]);
    s->turn[turn - 1].edited = s->edited[turn - 1] = strdup(text);
    poke(s);
}
void es_studio_undo(es_studio *s) { note(s, "undo"); strcpy(s->v.status, "the rating of turn 4 was taken back"); poke(s); }
static void sides(es_studio *s, const char *a, const char *b)
{
    s->v.n_side = 2;
    for (int i = 0; i < 2; i++)
        s->v.side[i] = (es_side){.title = i ? b : a, .streaming = true};
    snprintf(s->side_text[0], sizeof s->side_text[0], "Certainly! I would be very happy to help you with that. The capital of France is Paris, a city on the river Seine that is known for its many museums, its food and its light. If you have any other question, please ask me.");
    snprintf(s->side_text[1], sizeof s->side_text[1], "Paris.");
    poke(s);
}
void es_studio_compare(es_studio *s, const char *text) { note(s, "compare %s", text); sides(s, "base", "adapter #3"); }
void es_studio_steer(es_studio *s, int feature, float strength, const char *text) { note(s, "steer %d %g %s", feature, (double)strength, text); sides(s, "unsteered", "steered"); }
void es_studio_sides_close(es_studio *s) { note(s, "close"); s->v.n_side = 0; poke(s); }
void es_studio_shade(es_studio *s, int feature) { note(s, "shade %d", feature); s->v.shade_feature = feature; poke(s); }
void es_studio_temperature(es_studio *s, float t) { note(s, "temperature %g", (double)t); }
void es_studio_basis_use(es_studio *s, const char *name, int version) { note(s, "basis %s %d", name, version); poke(s); }
void es_studio_basis_new(es_studio *s, const char *name) { note(s, "new-basis %s", name); s->v.n_basis = 0; s->v.n_step = s->v.n_mark = s->v.n_influence = 0; s->v.report_ready = false; snprintf(s->v.basis_name, 64, "%s", name); s->v.basis_version = 1; poke(s); }
void es_studio_basis_add(es_studio *s, int feature, float lo, float hi)
{
    note(s, "add %d %g %g", feature, (double)lo, (double)hi);
    int i = 0;
    while (i < s->v.n_basis && s->basis_feature[i] != feature)
        i++;
    if (i == s->v.n_basis && i < 63) {
        s->v.n_basis++;
        s->v.n_step = s->v.n_influence = s->v.n_mark = 0;
        s->coefficient[i] = 0;
    }
    s->basis_feature[i] = feature;
    s->lo[i] = lo > hi ? -5 : lo;
    s->hi[i] = lo > hi ? 5 : hi;
    poke(s);
}
void es_studio_basis_remove(es_studio *s, int feature) { note(s, "remove %d", feature); if (s->v.n_basis) s->v.n_basis--; s->v.n_step = s->v.n_influence = s->v.n_mark = 0; poke(s); }
void es_studio_basis_suggest(es_studio *s, int size)
{
    note(s, "suggest %d", size);
    s->v.n_suggested = size < 20 ? size : 20;
    for (int i = 0; i < s->v.n_suggested; i++) {
        s->suggested[i] = 3 + i;
        s->suggested_score[i] = (i % 3 ? 1.f : -1.f) / (float)(i + 1);
    }
    poke(s);
}
void es_studio_basis_take_suggested(es_studio *s, int n) { note(s, "take %d", n); s->v.n_suggested = 0; poke(s); }
void es_studio_learn_pause(es_studio *s, bool pause) { note(s, "pause %d", pause); s->v.learning = pause ? ES_LEARN_PAUSED : ES_LEARN_IDLE; poke(s); }
void es_studio_learn_now(es_studio *s) { note(s, "learn"); s->v.learning = ES_LEARN_STEPPING; poke(s); }
void es_studio_learn_cancel(es_studio *s) { note(s, "cancel"); s->v.learning = ES_LEARN_IDLE; poke(s); }
void es_studio_experience_include(es_studio *s, int64_t id, bool included) { note(s, "include %d %d", (int)id, included); s->experience[id - 1].included = included; poke(s); }
void es_studio_method(es_studio *s, const char *name) { note(s, "method %s", name); snprintf(s->v.method, sizeof s->v.method, "%s", name); poke(s); }
void es_studio_prefer(es_studio *s, const char *text) { note(s, "prefer %s", text); poke(s); }
void es_studio_direction(es_studio *s, const char *text, bool on) { note(s, "direction %s %d", text, on); poke(s); }
void es_studio_adapter(es_studio *s, bool on) { note(s, "adapter %d", on); s->v.adapter_on = on; poke(s); }
void es_studio_rollback(es_studio *s, int64_t id) { note(s, "rollback %d", (int)id); s->v.snapshot = id; poke(s); }
void es_studio_job_cancel(es_studio *s, int id) { note(s, "job-cancel %d", id); poke(s); }

void es_making_default(es_making *m)
{
    *m = (es_making){.features = 6144, .k = 32, .tokens = 5000000, .recipe = "batchtopk", .sites = "resid"};
}

static void note_making(es_studio *s, const char *what, const es_making *m)
{
    note(s, "%s %s layers %s sites %s %s features %d k %d tokens %llu into %s%s", what, m->texts, m->layers, m->sites, m->recipe, m->features, m->k, (unsigned long long)m->tokens, m->out,
         m->harvest_only ? " harvest" : "");
}

/* Files that begin with "no" are not there. */
void es_studio_make_plan(es_studio *s, const es_making *m)
{
    note_making(s, "plan", m);
    s->v.plan_ok = strncmp(m->texts, "no", 2) != 0;
    snprintf(s->v.plan_text, sizeof s->v.plan_text, s->v.plan_ok ? "Time: about 42 min, with nothing else running. Memory: 656 MB of 23000. Disk: 41 MB and 487 MB while it trains of 63000."
                                                                 : "%.100s: there is no such file", m->texts);
    s->v.plan_serial++;
    poke(s);
}

void es_studio_make(es_studio *s, const es_making *m)
{
    note_making(s, "make", m);
    s->job[1] = (es_job){.id = 9, .kind = "train", .what = "train layer 14, fvu=0.1825 l0=31.9 dead=0.4% near=0.31, 5321 tokens/s", .done = 600000, .total = 2000000, .unit = "tokens", .seconds = 120,
                         .running = true};
    poke(s);
}

void es_studio_make_again(es_studio *s, int job) { note(s, "make-again %d", job); poke(s); }

int es_studio_card(es_studio *s, int feature, es_card_copy *out, es_error *err)
{
    if (feature < 0 || feature >= s->n_features)
        return es_fail(err, ES_ERR_USAGE, "no feature %d", feature);
    enum { EXAMPLES = 20, WINDOW = 24 };
    struct memory { es_example e[EXAMPLES], spread[10]; float drawn[10][WINDOW]; int32_t id[EXAMPLES][WINDOW]; float value[EXAMPLES][WINDOW]; } *m = calloc(1, sizeof *m);
    es_feature_card *c = &out->card;
    memset(c, 0, sizeof *c);
    out->memory = m;
    c->feature = feature;
    c->density = (double)s->density[feature];
    c->max = 12.5f - (float)(feature % 9);
    c->mean = 3.1f;
    c->p99 = c->max * .8f;
    c->bin_width = c->max / ES_ATLAS_BINS;
    for (int i = 0; i < ES_ATLAS_BINS; i++)
        c->histogram[i] = (uint32_t)(4000 * exp(-i / (6.0 + feature % 5)));
    c->n_example = EXAMPLES;
    c->example = m->e;
    for (int i = 0; i < EXAMPLES; i++) {
        m->e[i] = (es_example){.n = WINDOW, .peak = 8 + (i * 5 + feature) % 12, .id = m->id[i], .value = m->value[i], .max = c->max - (float)i * .2f};
        for (int j = 0; j < WINDOW; j++) {
            m->id[i][j] = (i * 7 + j * (3 + feature % 5) + feature) % WORDS;
            int away = abs(j - m->e[i].peak);
            m->value[i][j] = away < 3 ? m->e[i].max * (away == 0 ? 1 : away == 1 ? .5f : .2f) : 0;
        }
    }
    if (feature % 4 != 3) { /* the others are of an atlas of version 1 */
        c->n_spread = 10;
        c->spread = m->spread;
        for (int i = 0; i < 10; i++) {
            m->spread[i] = m->e[(i * 3 + 1) % EXAMPLES];
            m->spread[i].interval = ES_ATLAS_INTERVALS - 1 - i / 2;
            float want = c->max * ((float)m->spread[i].interval + .7f - .3f * (float)(i % 2)) / ES_ATLAS_INTERVALS;
            for (int j = 0; j < WINDOW; j++)
                m->drawn[i][j] = m->spread[i].value[j] * want / m->spread[i].max;
            m->spread[i].value = m->drawn[i];
            m->spread[i].max = want;
        }
        c->has_logits = true;
        c->n_correlated = 4;
        for (int i = 0; i < 4; i++) {
            c->correlated[i] = (feature + 11 * (i + 1)) % s->n_features;
            c->pearson[i] = .44f - .1f * (float)i;
            c->together[i] = .5f - .1f * (float)i;
        }
    }
    c->n_promoted = c->n_suppressed = 10;
    for (int i = 0; i < 10; i++) {
        c->promoted[i] = (feature * 3 + i) % WORDS;
        c->suppressed[i] = (feature * 5 + i + 11) % WORDS;
        c->promoted_logit[i] = 2 - .1f * (float)i;
        c->suppressed_logit[i] = -1.5f + .1f * (float)i;
    }
    return 0;
}
void es_card_copy_free(es_card_copy *c) { free(c->memory); c->memory = NULL; }
int es_studio_token_text(es_studio *s, int32_t id, char *out, size_t n)
{
    const char *text = s->kind == FAKE_HOSTILE && id % 11 == 3 ? "\x1b[31m漢" : words[(unsigned)id % WORDS];
    snprintf(out, n, "%s", text);
    return (int)strlen(out);
}
int es_studio_neighbours(es_studio *s, int feature, int n, int *out, float *cosine)
{
    for (int i = 0; i < n; i++) {
        out[i] = (feature + 1 + i * 3) % s->n_features;
        cosine[i] = .62f - .07f * (float)i;
    }
    return n;
}
const float *es_studio_density(es_studio *s) { return s->density; }
const float *es_studio_max(es_studio *s) { return s->max; }

/* ---- looking ---- */

int es_studio_dashboard(es_studio *s, int feature, es_dashboard *out)
{
    *out = (es_dashboard){.feature = feature, .n_neighbour = 5, .n_neuron = 6, .has_logits = true, .logit_lo = -1.62f, .logit_hi = 2.05f};
    int near[5];
    es_studio_neighbours(s, feature, 5, near, out->cosine);
    for (int i = 0; i < 5; i++)
        out->neighbour[i] = near[i];
    for (int i = 0; i < 6; i++)
        out->neuron[i] = (es_neuron){14 - i % 3, (feature * 31 + i * 97) % 1536, (i % 2 ? -1.f : 1.f) * (.31f - .03f * (float)i)};
    for (int i = 0; i < ES_ATLAS_BINS; i++)
        out->logits[i] = (uint32_t)(5000 * exp(-(i - 22) * (i - 22) / 40.0));
    return 1;
}

int es_studio_peaks(es_studio *s, int feature, int32_t *id, int n)
{
    es_card_copy c;
    int found = 0;
    if (es_studio_card(s, feature, &c, NULL) < 0)
        return 0;
    for (int i = 0; i < c.card.n_example; i++) {
        int32_t peak = c.card.example[i].id[c.card.example[i].peak];
        bool had = false;
        for (int k = 0; k < found; k++)
            had |= id[k] == peak;
        if (!had && found < n)
            id[found++] = peak;
    }
    es_card_copy_free(&c);
    return found;
}

int es_studio_window_text(es_studio *s, const int32_t *id, int n, es_buf *text, int *token_end)
{
    for (int i = 0; i < n; i++) {
        char token[64];
        es_studio_token_text(s, id[i], token, sizeof token);
        if (s->kind == FAKE_HOSTILE && id[i] % 11 == 5)
            es_buf_str(text, "\xcc\x81"); /* sits on what the token before it ends with */
        es_buf_str(text, strcmp(token, "\\n") ? token : "\n");
        token_end[i] = (int)text->len;
    }
    return 0;
}

static void found(es_studio *s, es_found f)
{
    es_found_free(&s->found);
    s->found = f;
    s->have = true;
    poke(s);
}

void es_studio_find(es_studio *s, const char *query, es_find_order order)
{
    es_found f = {0};
    note(s, "find %s by %s", query, es_find_order_name(order));
    s->find_error[0] = 0;
    f.feature = calloc((size_t)s->n_features + 1, sizeof(int));
    if (!strncmp(query, "text:", 5)) {
        f.measure = "activation";
        f.n = f.n_text = 6;
        f.value = calloc(6, sizeof(float));
        f.surprise = calloc(6, sizeof(float));
        f.token = calloc(6, sizeof(int));
        f.text_id = calloc(6, sizeof(int32_t));
        for (int i = 0; i < 6; i++) {
            int at = order == ES_FIND_TOKEN ? 5 - i : i;
            f.feature[i] = at * 4;
            f.value[i] = 7 - (float)at;
            f.surprise[i] = 3 + (float)((at * 5) % 7);
            f.token[i] = 5 - at;
            f.text_id[i] = i + 2;
        }
    } else if (!strncmp(query, "density<", 8) && !query[8]) {
        snprintf(s->find_error, sizeof s->find_error, "'density<': what follows is not a number");
    } else if (!*query) {
        for (f.n = 0; f.n < s->n_features; f.n++)
            f.feature[f.n] = order == ES_FIND_DENSITY ? s->n_features - 1 - f.n : f.n;
    } else {
        es_workspace_search((es_workspace *)(void *)s, "", query, f.feature, s->n_features, &f.n, NULL);
        if (!strncmp(query, "like:", 5)) {
            f.measure = "cosine";
            f.value = calloc((size_t)s->n_features, sizeof(float));
            for (f.n = 0; f.n < 5; f.n++) {
                f.feature[f.n] = (atoi(query + 5) + 1 + f.n) % s->n_features;
                f.value[f.n] = .6f - .1f * (float)f.n;
            }
        }
    }
    found(s, f);
}

/* 10 and 12 first, then from the last on those without a label. */
void es_studio_next(es_studio *s)
{
    es_found f = {.measure = "worth", .feature = calloc(30, sizeof(int)), .value = calloc(30, sizeof(float))};
    s->find_error[0] = 0;
    for (int i = s->n_features - 1; i >= 0 && f.n < 30; i--)
        if (i >= LABELS || !*s->label[i].text) {
            f.feature[f.n] = f.n < 2 ? 10 + 2 * f.n : i;
            f.value[f.n] = .9f - .01f * (float)f.n;
            f.n++;
        }
    found(s, f);
}

void es_studio_contrast(es_studio *s, const char *a, const char *b)
{
    es_found f = {.measure = "score", .n = 4};
    note(s, "contrast %s %s", a, b);
    f.feature = calloc(4, sizeof(int));
    f.value = calloc(4, sizeof(float));
    for (int i = 0; i < 4; i++) {
        f.feature[i] = i;
        f.value[i] = i < 2 ? 3 - (float)i : (float)i - 5;
    }
    found(s, f);
}

bool es_studio_finding(es_studio *s) { return s->have; }
bool es_studio_found(es_studio *s, es_found *out, char error[240])
{
    bool have = s->have;
    *out = s->found;
    s->found = (es_found){0};
    s->have = false;
    memcpy(error, s->find_error, sizeof s->find_error);
    return have;
}

es_map_state es_studio_map(es_studio *s, const float **xy, double *done)
{
    *done = s->map_done;
    *xy = s->map_done < 1 ? NULL : s->map;
    return !s->map ? ES_MAP_NONE : s->map_done < 1 ? ES_MAP_MAKING : ES_MAP_READY;
}

/* Two windows: the first activates it. */
void es_studio_blind(es_studio *s, int feature, uint64_t seed)
{
    (void)seed;
    note(s, "blind %d", feature);
    s->blind = (es_blind){.feature = feature, .n = 2, .n_active = 1, .seed = 1};
    for (int i = 0; i < 2; i++) {
        s->blind.window[i] = (es_blind_window){.n = 20, .active = i == 0, .near = i == 1, .activation = i ? 0 : 7.5f};
        for (int t = 0; t < 20; t++)
            s->blind.window[i].id[t] = feature + 3 * t + 7 * i;
    }
    s->v.blind_serial++;
}

/* ---- the workspace ---- */

static es_studio *of(es_workspace *w) { return (es_studio *)(void *)w; }

void es_label_free(es_label *l) { free(l->text); free(l->tags); free(l->note); l->text = l->tags = l->note = NULL; }
bool es_author_automatic(const char *author) { return !strncmp(author, "auto", 4) || !strcmp(author, "starter"); }
/* Feature 1 is of two minds: ann and bob call it different things, until one is chosen. */
enum { TORN = 1 };
static const char *const torn_by[2] = {"ann", "bob"}, *const torn_text[2] = {"polite requests", "asking for things"};
int es_workspace_label_get(es_workspace *w, const char *d, int f, es_label *out, es_error *err)
{
    (void)d;
    const label *l = f < LABELS ? &of(w)->label[f] : NULL;
    if (!l || (!*l->text && !*l->tags && !l->rating && !l->skipped && !*l->note))
        return es_fail(err, ES_ERR_MISSING, "no label");
    *out = (es_label){.feature = f, .text = strdup(l->text), .tags = strdup(l->tags), .note = strdup(l->note), .author = "starter", .time = "2026-11-20T10:00:00Z",
                      .rating = l->rating, .confidence = l->confidence, .skipped = l->skipped, .opinions = 1, .score = l->score, .tested = l->tested};
    if (*l->chosen)
        memcpy(out->author, l->chosen, sizeof out->author);
    return 0;
}
static void keep(es_studio *s, int f)
{
    if (s->n_undo < UNDO) {
        s->undo_feature[s->n_undo] = f;
        s->undo_label[s->n_undo++] = s->label[f];
    }
}
static void say(char *to, size_t n, const char *text)
{
    if (text)
        snprintf(to, n, "%s", text);
}
int es_workspace_label_edit(es_workspace *w, const char *d, const int *feature, int n, const es_label_edit *e, const char *author, int *changed, es_error *err)
{
    (void)d, (void)author;
    es_studio *s = of(w);
    for (int i = 0; i < n; i++) {
        int f = feature[i];
        if (f >= LABELS)
            return es_fail(err, ES_ERR_LIMIT, "the fake has labels for %d features only", LABELS);
        keep(s, f);
        label *l = &s->label[f];
        say(l->text, sizeof l->text, e->text);
        say(l->tags, sizeof l->tags, e->tags);
        say(l->note, sizeof l->note, e->note);
        if (e->add_tags)
            say(l->tags, sizeof l->tags, e->add_tags);
        l->rating = e->rating >= 0 ? e->rating : l->rating;
        l->confidence = e->confidence >= 0 ? e->confidence : l->confidence;
        if (e->skip >= 0)
            l->skipped = e->skip;
        if (e->skip >= 0)
            note(s, "skip %d %d", f, e->skip);
        else if (e->add_tags)
            note(s, "tag %d +%s-%s", f, e->add_tags, e->remove_tags);
        else if (e->note)
            note(s, "note %d %s", f, e->note);
        else if (e->confidence >= 0 && !e->text)
            note(s, "sure %d %d", f, e->confidence);
        else
            note(s, "label %d %s|%s|%d", f, e->text ? e->text : "=", e->tags ? e->tags : "=", e->rating);
    }
    if (changed)
        *changed = n;
    return 0;
}
int es_workspace_label_step_back(es_workspace *w, const char *d, int *f, int *n, es_error *err)
{
    (void)d;
    es_studio *s = of(w);
    *n = 1;
    if (!s->n_undo)
        return es_fail(err, ES_ERR_MISSING, "nothing to undo");
    *f = s->undo_feature[--s->n_undo];
    s->label[*f] = s->undo_label[s->n_undo];
    note(s, "label-undo %d", *f);
    return 0;
}
int es_workspace_label_redo(es_workspace *w, const char *d, int *f, int *n, es_error *err)
{
    (void)w, (void)d, (void)f, (void)n;
    return es_fail(err, ES_ERR_MISSING, "nothing to redo");
}
int es_workspace_label_opinions(es_workspace *w, const char *d, int f, es_label **out, int *n, es_error *err)
{
    es_label shown;
    *n = 0;
    *out = calloc(2, sizeof **out);
    if (es_workspace_label_get(w, d, f, &shown, err) < 0)
        return 0;
    for (int i = 0; i < (f == TORN ? 2 : 1); i++) {
        es_label *l = &(*out)[(*n)++];
        *l = (es_label){.feature = f, .text = strdup(f == TORN ? torn_text[i] : shown.text), .tags = strdup(shown.tags), .note = strdup(""), .score = NAN};
        snprintf(l->author, sizeof l->author, "%s", f == TORN ? torn_by[i] : shown.author);
    }
    es_label_free(&shown);
    return 0;
}
void es_labels_free(es_label *l, int n)
{
    for (int i = 0; i < n; i++)
        es_label_free(&l[i]);
    free(l);
}
int es_workspace_label_choose(es_workspace *w, const char *d, int f, const char *author, es_error *err)
{
    (void)d, (void)err;
    label *l = &of(w)->label[f];
    keep(of(w), f);
    snprintf(l->chosen, sizeof l->chosen, "%s", author);
    for (int i = 0; i < 2; i++)
        if (!strcmp(author, torn_by[i]))
            snprintf(l->text, sizeof l->text, "%s", torn_text[i]);
    note(of(w), "choose %d %s", f, author);
    return 0;
}
void es_workspace_label_preferred(es_workspace *w, char out[64]) { (void)w; out[0] = 0; }
int es_workspace_label_prefer(es_workspace *w, const char *author, es_error *err)
{
    (void)err;
    note(of(w), "prefer %s", author);
    return 0;
}
int es_workspace_label_tags(es_workspace *w, const char *d, es_buf *out, es_error *err)
{
    (void)w, (void)d, (void)err;
    static const char tags[] = "tone\0polite\0code";
    es_buf_add(out, tags, sizeof tags);
    return 0;
}
int es_workspace_label_merge(es_workspace *w, const char *d, int n_features, const char *const *path, int n, const char *author, es_merge *out, es_error *err)
{
    (void)w, (void)d, (void)n_features, (void)n, (void)author;
    *out = (es_merge){0};
    return es_fail(err, ES_ERR_IO, "%s: no such file", path[0]);
}
int es_workspace_agreement(es_workspace *w, const char *d, es_agreement **out, int *n, es_error *err)
{
    (void)w, (void)d, (void)err;
    *n = 1;
    *out = calloc(1, sizeof **out);
    (*out)[0] = (es_agreement){.a = "ann", .b = "bob", .tagged = 40, .labelled = 52, .same = 31, .tags = {120, .9, .6, .75, NAN, .61, .86},
                               .text = {52, .6, .04, .58, .07, .44, .72}, .n_tag = 1};
    (*out)[0].tag = calloc(1, sizeof *(*out)[0].tag);
    strcpy((*out)[0].tag[0].tag, "tone");
    (*out)[0].tag[0].kappa = (es_kappa){40, .85, .5, .7, .11, .48, .92};
    return 0;
}
void es_agreements_free(es_agreement *a, int n)
{
    for (int i = 0; i < n; i++)
        free(a[i].tag);
    free(a);
}
int es_workspace_score_add(es_workspace *w, const char *d, int f, const char *text, const es_label_score *score, es_error *err)
{
    (void)d, (void)err;
    if (f < LABELS) {
        of(w)->label[f].score = score->value;
        of(w)->label[f].tested = score->n;
    }
    note(of(w), "score %d %s %d %d %d %d by %s", f, text, score->hit, score->miss, score->rejection, score->alarm, score->judge);
    return 0;
}
int es_workspace_label_import(es_workspace *w, const char *d, int n, const char *path, const char *author, int *imported, es_error *err)
{
    (void)w, (void)d, (void)n, (void)author;
    *imported = 0;
    return es_fail(err, ES_ERR_IO, "%s: no such file", path);
}
int es_workspace_label_export(es_workspace *w, const char *d, json_t **out, es_error *err)
{
    (void)w, (void)d, (void)err;
    *out = json_array();
    return 0;
}
int es_workspace_labels_all(es_workspace *w, const char *d, int n, char **out, es_error *err)
{
    (void)d, (void)err;
    for (int i = 0; i < n; i++)
        out[i] = i < LABELS && *of(w)->label[i].text ? strdup(of(w)->label[i].text) : NULL;
    return 0;
}
int es_workspace_search(es_workspace *w, const char *d, const char *query, int *feature, int max, int *n, es_error *err)
{
    (void)d, (void)err;
    es_studio *s = of(w);
    *n = 0;
    for (int f = 0; f < s->n_features && *n < max; f++) {
        const label *l = f < LABELS ? &s->label[f] : NULL;
        bool hit = !strncmp(query, "tag:", 4) ? l && strstr(l->tags, query + 4) : l && strcasestr(l->text, query);
        if (hit)
            feature[(*n)++] = f;
    }
    return 0;
}
int es_workspace_basis_list(es_workspace *w, const char *d, es_basis_line **out, int *n, es_error *err)
{
    (void)d, (void)err, (void)w;
    *n = 3;
    *out = calloc(3, sizeof **out);
    (*out)[0] = (es_basis_line){"directness", 3, 12, "2026-11-23T20:11:00Z"};
    (*out)[1] = (es_basis_line){"directness", 2, 11, "2026-11-23T19:50:00Z"};
    (*out)[2] = (es_basis_line){"starter", 1, 64, "2026-11-20T10:00:00Z"};
    return 0;
}
