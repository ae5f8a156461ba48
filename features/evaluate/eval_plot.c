/* Two plots of rows: margin against sqrt(KL) along paths, and margin against the number of experiences. As SVG, and as braille dots. */
#include "evaluate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_METHODS = 16, MOST_POINTS = 64 };

typedef struct series {
    const char *label;
    double x[MOST_POINTS], y[MOST_POINTS];
    int n;
} series;

typedef struct plot {
    const char *x_name;
    series line[MOST_METHODS];
    int n;
    double x0, x1, y0, y1;
} plot;

static double number(json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static series *line_of(plot *p, const char *label)
{
    for (int i = 0; i < p->n; i++)
        if (!strcmp(p->line[i].label, label))
            return &p->line[i];
    if (p->n == MOST_METHODS)
        return NULL;
    p->line[p->n].label = label;
    return &p->line[p->n++];
}

static void bounds(plot *p)
{
    p->x0 = p->y0 = 0;
    p->x1 = p->y1 = 1e-9;
    for (int i = 0; i < p->n; i++)
        for (int j = 0; j < p->line[i].n; j++) {
            p->x1 = fmax(p->x1, p->line[i].x[j]);
            p->y1 = fmax(p->y1, p->line[i].y[j]);
            p->y0 = fmin(p->y0, p->line[i].y[j]);
        }
}

/* Means over tasks and orders of clean runs: along the path by its points, at the largest size; and by size at the path's end. */
static void fill(json_t *rows, plot *along, plot *sizes)
{
    size_t i, j;
    json_t *x, *p;
    double largest = 0;
    *along = (plot){.x_name = "sqrt(KL)"};
    *sizes = (plot){.x_name = "experiences"};
    json_array_foreach(rows, i, x)
        largest = fmax(largest, number(x, "experiences"));
    int count[MOST_METHODS][MOST_POINTS] = {{0}}, size_count[MOST_METHODS][MOST_POINTS] = {{0}};
    json_array_foreach(rows, i, x) {
        const char *label = json_string_value(json_object_get(x, "method"));
        if (!label || number(x, "garbage") > 0)
            continue;
        series *s = number(x, "experiences") == largest ? line_of(along, label) : NULL;
        if (s && !s->n)
            count[s - along->line][s->n++] = 1; /* starts at the origin */
        json_array_foreach(json_object_get(x, "path"), j, p) {
            if (!s || j + 1 >= MOST_POINTS)
                break;
            double kl = json_is_number(json_object_get(p, "kl_chat")) ? (number(p, "kl") + number(p, "kl_chat")) / 2 : number(p, "kl");
            s->n = s->n > (int)j + 2 ? s->n : (int)j + 2;
            s->x[j + 1] += sqrt(fmax(kl, 0));
            s->y[j + 1] += number(p, "margin");
            count[s - along->line][j + 1]++;
        }
        series *by = line_of(sizes, label);
        if (!by)
            continue;
        int at = 0;
        while (at < by->n && by->x[at] != number(x, "experiences"))
            at++;
        if (at == MOST_POINTS)
            continue;
        if (at == by->n)
            by->x[by->n++] = number(x, "experiences");
        by->y[at] += number(x, "margin");
        size_count[by - sizes->line][at]++;
    }
    for (int k = 0; k < along->n; k++)
        for (int q = 1; q < along->line[k].n; q++) {
            along->line[k].x[q] /= count[k][q] ? count[k][q] : 1;
            along->line[k].y[q] /= count[k][q] ? count[k][q] : 1;
        }
    for (int k = 0; k < sizes->n; k++) {
        series *s = &sizes->line[k];
        for (int q = 0; q < s->n; q++)
            s->y[q] /= size_count[k][q] ? size_count[k][q] : 1;
        for (int q = 1; q < s->n; q++) /* by rising size */
            for (int r = q; r > 0 && s->x[r - 1] > s->x[r]; r--) {
                double t = s->x[r];
                s->x[r] = s->x[r - 1];
                s->x[r - 1] = t;
                t = s->y[r];
                s->y[r] = s->y[r - 1];
                s->y[r - 1] = t;
            }
    }
    bounds(along);
    bounds(sizes);
}

/* ---- SVG --------------------------------------------------------------------------------------------------------------------------- */

static const char *const COLOUR[MOST_METHODS] = {"#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#7b4fa3", "#00798c", "#8d5a2b", "#e76fa1",
                                                 "#5c6b73", "#9bc53d", "#3d348b", "#f35b04", "#118ab2", "#6a994e", "#bc4749", "#444444"};

static void svg_plot(const plot *p, double left, double top, double w, double h, es_buf *out)
{
    double sx = w / (p->x1 - p->x0), sy = h / (p->y1 - p->y0);
    es_buf_printf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"none\" stroke=\"#999\"/>\n", left, top, w, h);
    for (int i = 0; i <= 4; i++) {
        double x = p->x0 + (p->x1 - p->x0) * i / 4, y = p->y0 + (p->y1 - p->y0) * i / 4;
        es_buf_printf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%.3g</text>\n", left + w * i / 4, top + h + 16, x);
        es_buf_printf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%.2f</text>\n", left - 6, top + h - h * i / 4 + 4, y);
    }
    es_buf_printf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n", left + w / 2, top + h + 34, p->x_name);
    es_buf_printf(out, "<text x=\"%.1f\" y=\"%.1f\">margin, nats a token</text>\n", left, top - 8);
    for (int i = 0; i < p->n; i++) {
        const series *s = &p->line[i];
        es_buf_printf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"", COLOUR[i]);
        for (int j = 0; j < s->n; j++)
            es_buf_printf(out, "%.1f,%.1f ", left + (s->x[j] - p->x0) * sx, top + h - (s->y[j] - p->y0) * sy);
        es_buf_str(out, "\"/>\n");
        for (int j = 0; j < s->n; j++)
            es_buf_printf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", left + (s->x[j] - p->x0) * sx, top + h - (s->y[j] - p->y0) * sy, COLOUR[i]);
        es_buf_printf(out, "<text x=\"%.1f\" y=\"%.1f\" fill=\"%s\">%s</text>\n", left + w + 8, top + 14 + 16.0 * i, COLOUR[i], s->label);
    }
}

int es_eval_svg(json_t *rows, es_buf *out, es_error *err)
{
    plot *p = es_calloc(2, sizeof *p);
    if (!p)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a plot");
    fill(rows, &p[0], &p[1]);
    es_buf_str(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1000\" height=\"420\" font-family=\"sans-serif\" font-size=\"12\">\n"
                    "<rect width=\"1000\" height=\"420\" fill=\"white\"/>\n");
    svg_plot(&p[0], 60, 40, 320, 320, out);
    svg_plot(&p[1], 560, 40, 320, 320, out);
    es_buf_str(out, "</svg>\n");
    free(p);
    return out->failed ? es_fail(err, ES_ERR_MEMORY, "no memory for a plot") : ES_OK;
}

/* ---- braille ------------------------------------------------------------------------------------------------------------------------- */

/* Lines of dots; where a series ends its letter stands. */
static void braille_plot(const plot *p, int width, int height, es_buf *out)
{
    static const uint8_t DOT[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    uint8_t *dots = es_calloc((size_t)width, (size_t)height);
    char *letter = es_calloc((size_t)width, (size_t)height);
    for (int i = 0; dots && letter && i < p->n; i++) {
        const series *s = &p->line[i];
        for (int j = 0; j < s->n; j++) {
            int k = j ? j - 1 : 0, steps = 4 * width;
            for (int t = 0; t <= steps; t++) {
                double x = s->x[k] + (s->x[j] - s->x[k]) * t / steps, y = s->y[k] + (s->y[j] - s->y[k]) * t / steps;
                int cx = (int)((x - p->x0) / (p->x1 - p->x0) * (2 * width - 1) + 0.5), cy = (int)((p->y1 - y) / (p->y1 - p->y0) * (4 * height - 1) + 0.5);
                size_t at = (size_t)(cy / 4) * (size_t)width + (size_t)(cx / 2);
                dots[at] |= DOT[cy % 4][cx % 2];
                if (t == steps && j == s->n - 1)
                    letter[at] = (char)('a' + i);
            }
        }
    }
    for (int r = 0; dots && letter && r < height; r++) {
        es_buf_printf(out, r == 0 ? "%7.2f " : r == height - 1 ? "%7.2f " : "        ", r == 0 ? p->y1 : p->y0);
        for (int c = 0; c < width; c++) {
            size_t at = (size_t)r * (size_t)width + (size_t)c;
            unsigned code = 0x2800u + dots[at];
            char utf8[4] = {(char)(0xe0 | (code >> 12)), (char)(0x80 | ((code >> 6) & 0x3f)), (char)(0x80 | (code & 0x3f)), 0};
            if (letter[at])
                es_buf_add(out, &letter[at], 1);
            else
                es_buf_str(out, utf8);
        }
        es_buf_str(out, "\n");
    }
    es_buf_printf(out, "        0%*.3g  margin against %s:", width - 1, p->x1, p->x_name);
    for (int i = 0; i < p->n; i++)
        es_buf_printf(out, " %c %s", 'a' + i, p->line[i].label);
    es_buf_str(out, "\n");
    free(dots);
    free(letter);
}

int es_eval_braille(json_t *rows, int width, int height, es_buf *out, es_error *err)
{
    plot *p = es_calloc(2, sizeof *p);
    if (!p || width < 2 || height < 2) {
        free(p);
        return es_fail(err, ES_ERR_USAGE, "no room for a plot");
    }
    fill(rows, &p[0], &p[1]);
    braille_plot(&p[0], width, height, out);
    if (p[1].x1 > 0 && p[1].n && p[1].line[0].n > 1)
        braille_plot(&p[1], width, height, out);
    free(p);
    return out->failed ? es_fail(err, ES_ERR_MEMORY, "no memory for a plot") : ES_OK;
}
