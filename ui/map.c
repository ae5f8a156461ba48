/* The map of the dictionary: a point a feature, near those whose decoder rows point the same way (layout.h). Places are named by what their features'
 * labels have in common. */
#include "view_features.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NEAR = 4, SAMPLE = 4096, CELL_W = 22, CELL_H = 5, WORDS = 4, EDGE = 4 /* dots */ };

void ui_map_free(ui_map *m)
{
    for (int i = 0; i < m->n_word; i++)
        free(m->text[i]);
    free(m->text);
    free(m->in);
    free(m->labelled);
    free(m->word);
    m->text = NULL;
    m->in = NULL;
    m->labelled = NULL;
    m->word = NULL;
    m->n_word = m->cap_word = m->n_labelled = 0;
    m->named = false;
}

/* ---- where things are ------------------------------------------------------------------------------------------------------ */

static const float *points(es_ui *u, es_map_state *state, double *done)
{
    const float *xy = NULL;
    double share = 0;
    es_map_state s = es_studio_map(u->studio, &xy, &share);
    if (state)
        *state = s;
    if (done)
        *done = share;
    return s == ES_MAP_READY ? xy : NULL;
}

/* From points to dots from the left and the top of the box last drawn: x * sx + ox, y * sy + oy. A hundred thousand points go through it for a key. */
typedef struct scale { float sx, ox, sy, oy; } scale;

static scale scale_of(const ui_map *m)
{
    double sy = 1 / m->unit, sx = sy * m->wide;
    return (scale){(float)sx, (float)(m->w - m->x * sx), (float)sy, (float)(2 * m->h - m->y * sy)};
}

static void dot_of(const ui_map *m, const float *p, double *x, double *y)
{
    scale s = scale_of(m);
    *x = (double)(p[0] * s.sx + s.ox);
    *y = (double)(p[1] * s.sy + s.oy);
}

static void fit_all(es_ui *u, ui_map *m, const float *xy)
{
    double lo[2] = {INFINITY, INFINITY}, hi[2] = {-INFINITY, -INFINITY};
    for (int i = 0; i < u->names.n; i++)
        for (int c = 0; c < 2; c++) {
            lo[c] = fmin(lo[c], (double)xy[2 * i + c]);
            hi[c] = fmax(hi[c], (double)xy[2 * i + c]);
        }
    int w = m->w > 0 ? m->w : 78, h = m->h > 0 ? m->h : 16;
    m->x = (lo[0] + hi[0]) / 2;
    m->y = (lo[1] + hi[1]) / 2;
    double across = (hi[0] - lo[0]) / (2 * w - 4), down = (hi[1] - lo[1]) / (4 * h - 4);
    m->unit = fmax(fmax(across / 2, down), 1e-6);
    m->wide = across > 0 ? fmin(fmax(m->unit / across, 1), 2) : 1;
    m->unit = fmax(m->unit, across); /* no wider than the screen */
    m->whole = true;
    m->dot_x = w;
    m->dot_y = 2 * h;
}

static void choose(es_ui *u, ui_map *m, const float *xy)
{
    scale s = scale_of(m);
    float best = INFINITY, ox = s.ox - (float)m->dot_x, oy = s.oy - (float)m->dot_y;
    m->feature = -1;
    for (int i = 0; i < u->names.n; i++) {
        float x = xy[2 * (size_t)i] * s.sx + ox, y = xy[2 * (size_t)i + 1] * s.sy + oy, r = x * x + y * y;
        if (r < best) {
            best = r;
            m->feature = i;
        }
    }
}

/* The cursor onto a feature, and the screen so that it shows. */
static void go_to(ui_map *m, const float *p)
{
    double x, y;
    dot_of(m, p, &x, &y);
    if (x < 0 || y < 0 || x >= 2 * m->w || y >= 4 * m->h) {
        m->x = (double)p[0];
        m->y = (double)p[1];
        dot_of(m, p, &x, &y);
    }
    m->dot_x = x;
    m->dot_y = y;
}

void ui_map_open(es_ui *u, int feature)
{
    ui_map *m = &ui_features_of(u)->map;
    const float *xy = points(u, NULL, NULL);
    m->feature = feature;
    if (!xy || m->w <= 0)
        return; /* drawing goes on from here */
    if (!(m->unit > 0))
        fit_all(u, m, xy);
    if (feature >= 0 && feature < u->names.n)
        go_to(m, xy + 2 * (size_t)feature);
}

static void zoom(ui_map *m, double by)
{
    double cx = m->x + (m->dot_x - m->w) * m->unit / m->wide, cy = m->y + (m->dot_y - 2 * m->h) * m->unit; /* what is under the cursor stays there */
    double unit = fmin(fmax(m->unit * by, 1e-5), 1e3);
    m->x = cx + (m->x - cx) * unit / m->unit;
    m->y = cy + (m->y - cy) * unit / m->unit;
    m->unit = unit;
    m->whole = false;
}

void ui_map_key(es_ui *u, int key)
{
    ui_map *m = &ui_features_of(u)->map;
    const float *xy = points(u, NULL, NULL);
    if (!xy || !(m->unit > 0))
        return;
    switch (key) {
    case '+': case UI_WHEEL_UP: zoom(m, 1 / 1.5); break;
    case '-': case UI_WHEEL_DOWN: zoom(m, 1.5); break;
    case UI_HOME: fit_all(u, m, xy); break;
    case UI_LEFT: m->dot_x -= 4; break;
    case UI_RIGHT: m->dot_x += 4; break;
    case UI_UP: m->dot_y -= 4; break;
    case UI_DOWN: m->dot_y += 4; break;
    case 'H': m->x -= m->w * m->unit / m->wide; break;
    case 'L': m->x += m->w * m->unit / m->wide; break;
    case 'K': case UI_PAGE_UP: m->y -= 2 * m->h * m->unit; break;
    case 'J': case UI_PAGE_DOWN: m->y += 2 * m->h * m->unit; break;
    }
    double left = fmin(m->dot_x - EDGE, 0), right = fmax(m->dot_x - (2 * m->w - EDGE), 0); /* beyond the edge the map moves */
    double up = fmin(m->dot_y - EDGE, 0), below = fmax(m->dot_y - (4 * m->h - EDGE), 0);
    m->dot_x -= left + right;
    m->dot_y -= up + below;
    m->x += (left + right) * m->unit / m->wide;
    m->y += (up + below) * m->unit;
    choose(u, m, xy);
}

/* ---- names of places ------------------------------------------------------------------------------------------------------------ */

static bool dull(const char *s, size_t n) /* says nothing of a place */
{
    static const char *const of[] = {"the", "and", "for", "with", "from", "that", "this", "after", "before", "into", "over", "words", "word", "token", "tokens", "other", "various"};
    for (size_t i = 0; i < sizeof of / sizeof *of; i++)
        if (strlen(of[i]) == n && !strncasecmp(of[i], s, n))
            return true;
    return false;
}

/* The number of a word, by a table of open addresses over their texts; -1: no memory. */
static int number_of(ui_map *m, int *table, size_t size, const char *s, size_t n)
{
    char low[40];
    n = n < sizeof low - 1 ? n : es_utf8_whole(s, sizeof low - 1);
    for (size_t i = 0; i < n; i++)
        low[i] = (char)tolower((unsigned char)s[i]);
    low[n] = 0;
    size_t at = ui_hash(low, n) & (size - 1);
    for (; table[at] >= 0; at = (at + 1) & (size - 1))
        if (!strcmp(m->text[table[at]], low))
            return table[at];
    if ((size_t)m->n_word * 2 > size)
        return -1; /* full enough: rarer words go without */
    if (m->n_word == m->cap_word) {
        int cap = m->cap_word ? 2 * m->cap_word : 1024;
        char **text = realloc(m->text, (size_t)cap * sizeof *text);
        m->text = text ? text : m->text;
        int *in = realloc(m->in, (size_t)cap * sizeof *in);
        m->in = in ? in : m->in;
        if (!text || !in)
            return -1;
        m->cap_word = cap;
    }
    char *copy = strdup(low);
    if (!copy)
        return -1;
    m->text[m->n_word] = copy;
    m->in[m->n_word] = 0;
    return table[at] = m->n_word++;
}

static bool letter(unsigned char c)
{
    return isalnum(c) || c >= 0x80 || c == '\'';
}

static void read_label(ui_map *m, int *table, size_t size, const char *label, int32_t word[WORDS])
{
    int n = 0;
    memset(word, -1, WORDS * sizeof *word);
    for (const char *p = label; *p && n < WORDS;) {
        if (!letter((unsigned char)*p)) {
            p++;
            continue;
        }
        size_t k = 0;
        while (letter((unsigned char)p[k]))
            k++;
        int w = k >= 3 && !dull(p, k) ? number_of(m, table, size, p, k) : -1;
        for (int i = 0; i < n; i++)
            w = word[i] == w ? -1 : w;
        if (w >= 0) {
            word[n++] = w;
            m->in[w]++;
        }
        p += k;
    }
}

/* Words of all labels, once for each state of the labels. */
static void read_labels(es_ui *u, ui_map *m)
{
    enum { TABLE = 1 << 15 };
    if (m->named && m->serial == u->names.serial)
        return;
    ui_map_free(m);
    int n = 0;
    for (int i = 0; i < u->names.n; i++)
        n += ui_label(u, i) != NULL;
    int *table = malloc(TABLE * sizeof *table);
    m->labelled = calloc((size_t)n + 1, sizeof *m->labelled);
    m->word = calloc((size_t)n + 1, sizeof *m->word);
    if (table && m->labelled && m->word) {
        memset(table, -1, TABLE * sizeof *table);
        for (int i = 0; i < u->names.n; i++)
            if (ui_label(u, i)) {
                m->labelled[m->n_labelled] = i;
                read_label(m, table, TABLE, ui_label(u, i), m->word[m->n_labelled++]);
            }
    }
    free(table);
    m->named = true;
    m->serial = u->names.serial;
}

typedef struct place { int32_t cell, word; } place; /* a word of a label in a cell of the screen */

static int by_cell(const void *a, const void *b)
{
    const place *x = a, *y = b;
    return x->cell != y->cell ? x->cell - y->cell : x->word - y->word;
}

static bool free_room(const uint8_t *taken, int w, int y, int x, int n)
{
    for (int i = x > 0 ? x - 1 : 0; i < x + n + 1 && i < w; i++)
        if (taken[(size_t)y * (size_t)w + (size_t)i])
            return false;
    return true;
}

static void put_name(es_ui *u, ui_box b, uint8_t *taken, int y, int x, const char *name)
{
    int n = (int)ui_fit(u->o.unicode, name, strlen(name), CELL_W), columns = ui_width(u->o.unicode, name, (size_t)n);
    x -= columns / 2;
    x = x < 0 ? 0 : x > b.w - columns ? b.w - columns : x;
    for (int down = 0; down < 3; down++) { /* here, or the row below or above */
        int row = y + (down == 2 ? -1 : down);
        if (x < 0 || row < 0 || row >= b.h || !free_room(taken, b.w, row, x, columns))
            continue;
        ui_putn(u, b, row, x, UI_BOLD, name, (size_t)n);
        memset(taken + (size_t)row * (size_t)b.w + (size_t)x, 1, (size_t)columns);
        return;
    }
}

/* A few in sight: each its own label. */
static void name_each(es_ui *u, ui_box b, uint8_t *taken, const float *xy, const int *seen, int n)
{
    const ui_map *m = &ui_features_of(u)->map;
    for (int i = 0; i < n; i++) {
        double x, y;
        int feature = m->labelled[seen[i]];
        dot_of(m, xy + 2 * (size_t)feature, &x, &y);
        put_name(u, b, taken, (int)(y / 4), (int)(x / 2), ui_label(u, feature));
    }
}

typedef struct named { double score; int x, y; char text[64]; } named;

static int by_score(const void *a, const void *b)
{
    const named *x = a, *y = b;
    return x->score < y->score ? 1 : x->score > y->score ? -1 : 0;
}

/* The one or two words of place[0..n), all of one cell, that are over-represented there: n log(share here / share of all labels). */
static bool name_cell(const ui_map *m, const place *p, int n, int in_cell, named *out)
{
    double best[2] = {0, 0};
    int word[2] = {-1, -1};
    for (int i = 0, k; i < n; i += k) {
        for (k = 1; i + k < n && p[i + k].word == p[i].word; k++)
            ;
        double score = k * log(((double)k / in_cell) / ((double)m->in[p[i].word] / m->n_labelled));
        int at = k < 2 ? 2 : score > best[0] ? 0 : score > best[1] ? 1 : 2;
        if (at == 0) {
            best[1] = best[0];
            word[1] = word[0];
        }
        if (at < 2) {
            best[at] = score;
            word[at] = p[i].word;
        }
    }
    if (word[0] < 0)
        return false;
    snprintf(out->text, sizeof out->text, "%.28s%s%.28s", m->text[word[0]], word[1] >= 0 && best[1] > 0.6 * best[0] ? " " : "",
             word[1] >= 0 && best[1] > 0.6 * best[0] ? m->text[word[1]] : "");
    out->score = best[0];
    return true;
}

static void draw_names(es_ui *u, ui_box b, const float *xy)
{
    ui_map *m = &ui_features_of(u)->map;
    read_labels(u, m);
    int step = m->n_labelled / SAMPLE + 1, n = 0, n_seen = 0, across = b.w / CELL_W + 1, down = b.h / CELL_H + 1, cells = across * down;
    int *seen = malloc(((size_t)m->n_labelled + 1) * sizeof *seen), *in = calloc((size_t)cells, sizeof *in);
    double *sum = calloc(2 * (size_t)cells, sizeof *sum);
    place *p = malloc((SAMPLE + 1) * WORDS * sizeof *p);
    named *name = calloc((size_t)cells, sizeof *name);
    uint8_t *taken = calloc((size_t)b.w * (size_t)b.h, 1);
    if (seen && in && sum && p && name && taken) {
        for (int i = 0; i < m->n_labelled; i += step) {
            double x, y;
            dot_of(m, xy + 2 * (size_t)m->labelled[i], &x, &y);
            if (x < 0 || y < 0 || x >= 2 * b.w || y >= 4 * b.h)
                continue;
            int cell = (int)(y / 4) / CELL_H * across + (int)(x / 2) / CELL_W;
            seen[n_seen++] = i;
            in[cell]++;
            sum[2 * cell] += x / 2;
            sum[2 * cell + 1] += y / 4;
            for (int k = 0; k < WORDS && m->word[i][k] >= 0 && n < SAMPLE * WORDS; k++)
                p[n++] = (place){cell, m->word[i][k]};
        }
        int names = 0;
        if (n_seen * 3 <= cells * 2 || n_seen <= 12) {
            name_each(u, b, taken, xy, seen, n_seen);
        } else {
            qsort(p, (size_t)n, sizeof *p, by_cell);
            for (int i = 0, k; i < n; i += k) {
                int cell = p[i].cell;
                for (k = 1; i + k < n && p[i + k].cell == cell; k++)
                    ;
                if (name_cell(m, p + i, k, in[cell], &name[names])) {
                    name[names].x = (int)(sum[2 * cell] / in[cell]);
                    name[names++].y = (int)(sum[2 * cell + 1] / in[cell]);
                }
            }
            qsort(name, (size_t)names, sizeof *name, by_score);
            for (int i = 0; i < names; i++) {
                bool twice = false; /* a place that lies across two cells is named once */
                for (int k = 0; k < i && !twice; k++)
                    twice = !strcmp(name[k].text, name[i].text) && abs(name[k].x - name[i].x) < 2 * CELL_W && abs(name[k].y - name[i].y) < 2 * CELL_H;
                if (!twice)
                    put_name(u, b, taken, name[i].y, name[i].x, name[i].text);
            }
        }
    }
    void *all[] = {seen, in, sum, p, name, taken};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* ---- drawing ------------------------------------------------------------------------------------------------------------------------- */

enum { ORDINARY, LABELLED, IN_BASIS, MATCHED };

/* Of what kind each point is: the more telling is drawn over the less. */
static uint8_t *kinds(es_ui *u)
{
    const ui_features_state *f = ui_features_of(u);
    uint8_t *k = calloc((size_t)u->names.n + 1, 1);
    for (int i = 0; k && i < u->names.n; i++)
        k[i] = ui_label(u, i) ? LABELLED : ORDINARY;
    for (int i = 0; k && i < u->v->n_basis; i++)
        if (u->v->basis_feature[i] >= 0 && u->v->basis_feature[i] < u->names.n)
            k[u->v->basis_feature[i]] = IN_BASIS;
    for (int i = 0; k && ui_filtered(u) && i < f->found.n; i++)
        if (f->found.feature[i] >= 0 && f->found.feature[i] < u->names.n)
            k[f->found.feature[i]] = MATCHED;
    return k;
}

static void draw_points(es_ui *u, ui_box b, const float *xy)
{
    static const ui_style of[] = {[ORDINARY] = UI_DIM, [LABELLED] = UI_ACCENT, [IN_BASIS] = UI_GOOD, [MATCHED] = UI_WARN};
    const ui_map *m = &ui_features_of(u)->map;
    size_t cells = (size_t)b.w * (size_t)b.h;
    uint8_t *dots = calloc(cells, 1), *kind = calloc(cells, 1), *style = calloc(cells, 1), *each = kinds(u);
    scale s = scale_of(m);
    for (int i = 0; dots && kind && style && each && i < u->names.n; i++) {
        float x = xy[2 * (size_t)i] * s.sx + s.ox, y = xy[2 * (size_t)i + 1] * s.sy + s.oy;
        if (!(x >= 0 && y >= 0 && x < (float)(2 * b.w) && y < (float)(4 * b.h)))
            continue;
        size_t at = (size_t)(y / 4) * (size_t)b.w + (size_t)(x / 2);
        ui_dot(dots, b.w, b.h, (int)x, (int)y);
        if (each[i] >= kind[at]) {
            kind[at] = each[i];
            style[at] = (uint8_t)of[each[i]];
        }
    }
    if (dots && style)
        ui_dots(u, b, dots, style);
    free(dots);
    free(kind);
    free(style);
    free(each);
}

typedef struct near { float r; int feature; } near;

/* The features nearest to the cursor, a line each. */
static void draw_near(es_ui *u, ui_box b, const float *xy)
{
    const ui_map *m = &ui_features_of(u)->map;
    near list[NEAR];
    int n = 0, most = b.h < NEAR ? b.h : NEAR;
    scale s = scale_of(m);
    float ox = s.ox - (float)m->dot_x, oy = s.oy - (float)m->dot_y;
    for (int i = 0; i < u->names.n; i++) {
        float x = xy[2 * (size_t)i] * s.sx + ox, y = xy[2 * (size_t)i + 1] * s.sy + oy, r = x * x + y * y;
        if (n == most && !(r < list[n - 1].r))
            continue;
        int at = n < most ? n++ : n - 1;
        for (; at > 0 && r < list[at - 1].r; at--)
            list[at] = list[at - 1];
        list[at] = (near){r, i};
    }
    const float *density = es_studio_density(u->studio);
    for (int i = 0; i < n; i++) {
        int feature = list[i].feature;
        const char *label = ui_label(u, feature);
        ui_style st = i == 0 ? UI_SELECTED : UI_PLAIN;
        if (i == 0)
            ui_row_fill(u, b, i, st);
        ui_printf(u, b, i, 1, st, "%7d", feature);
        if (density)
            ui_printf(u, b, i, 9, i == 0 ? st : UI_DIM, "%6.2f%%", 100 * (double)density[feature]);
        ui_put_cut(u, b, i, 18, b.w - 19, i == 0 ? st : label ? UI_PLAIN : UI_DIM, label ? label : ui_tokens(u, feature));
    }
}

static void draw_wait(es_ui *u, ui_box b, es_map_state state, double done)
{
    if (state == ES_MAP_MAKING) {
        ui_printf(u, b, 2, 2, UI_PLAIN, "The map of %d features is being made: %.0f%%", u->names.n, 100 * done);
        ui_bar(u, b, 3, 2, b.w - 4 < 50 ? b.w - 4 : 50, UI_ACCENT, done);
        ui_put_cut(u, b, 4, 2, b.w - 3, UI_DIM, "Made once and kept. Go on meanwhile: Esc goes back, Jobs (F6) can end it.");
    } else if (state == ES_MAP_FAILED) {
        ui_put_cut(u, b, 2, 2, b.w - 3, UI_BAD, "The map could not be made; Jobs (F6) says why.");
    } else {
        ui_put_cut(u, b, 2, 2, b.w - 3, UI_DIM, "There is no map yet.");
    }
}

void ui_map_draw(es_ui *u, ui_box b)
{
    ui_features_state *f = ui_features_of(u);
    ui_map *m = &f->map;
    es_map_state state;
    double done;
    const float *xy = points(u, &state, &done);
    if (!xy) {
        draw_wait(u, b, state, done);
        return;
    }
    int foot = b.h >= 14 ? NEAR : b.h >= 8 ? 2 : 1;
    ui_box in = {b.y + 1, b.x, b.h - foot - 2, b.w};
    bool resized = in.h != m->h || in.w != m->w, first = !(m->unit > 0);
    m->h = in.h;
    m->w = in.w;
    if (in.h < 1 || in.w < 4)
        return;
    if (first || (resized && m->whole))
        fit_all(u, m, xy);
    if (resized || first) {
        if (m->feature >= 0 && m->feature < u->names.n)
            go_to(m, xy + 2 * (size_t)m->feature);
        else
            m->dot_x = in.w, m->dot_y = 2 * in.h;
    }
    if (m->feature < 0 || m->feature >= u->names.n)
        choose(u, m, xy);
    char head[300];
    if (ui_filtered(u))
        snprintf(head, sizeof head, "map: %d of %d match %.200s", f->found.n, u->names.n, f->filter ? f->filter : f->contrast ? f->contrast : "");
    else
        snprintf(head, sizeof head, "map of %d features", u->names.n);
    ui_put_cut(u, b, 0, 1, b.w - 2, UI_BOLD, head);
    draw_points(u, in, xy);
    draw_names(u, in, xy);
    int row = (int)(m->dot_y / 4), column = (int)(m->dot_x / 2);
    ui_put(u, in, row, column, UI_SELECTED, "+");
    ui_cursor(u, in, row, column);
    ui_rule(u, b, b.h - foot - 1, "nearest");
    draw_near(u, ui_inside(b, b.h - foot, 0, 0, 0), xy);
}
