/* Feature absorption on the first-letter task. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quality.h"
#include "vector.h"

enum { LETTERS = 26, ABSORBERS = 3, WORDS_MIN = 200 };
static const double COSINE_FULL = 0.025, COSINE_PART = 0.1, PROPORTION = 0.4, F1_JUMP = 0.03; /* SAEBench's, and Chanin et al.'s */

void es_absorption_of(const es_dictionary *s, const float *x, const es_sparse *acts, int row, const float *p, const int *main, int n_main, float *buf,
                      double *fraction, bool *full, int *top)
{
    const es_vector_ops *ops = es_vector();
    size_t d = (size_t)es_dictionary_get_info(s)->d_out;
    double whole = (double)ops->dot(x, p, d) - (double)ops->dot(es_dictionary_decoder_bias(s), p, d), by_main = 0, best[ABSORBERS] = {0}, highest = 0, cosine_of_highest = 0;
    bool main_active = false;
    *fraction = 0;
    *full = false;
    *top = -1;
    if (!(whole > 0))
        return;
    for (size_t a = acts->start[row]; a < acts->start[row + 1]; a++) {
        int j = acts->index[a];
        bool is_main = false;
        for (int i = 0; i < n_main; i++)
            is_main = is_main || main[i] == j;
        es_dictionary_rows(s, j, 1, buf);
        double along = (double)ops->dot(buf, p, d), length = sqrt((double)ops->dot(buf, buf, d));
        double projection = along * (double)acts->value[a], cosine = length > 0 ? along / length : 0;
        if (projection > highest) {
            highest = projection;
            cosine_of_highest = cosine;
            *top = j;
        }
        if (is_main) {
            main_active = true;
            by_main += projection;
        } else if (cosine >= COSINE_PART && projection > 0) {
            int i = ABSORBERS;
            while (i > 0 && projection > best[i - 1])
                i--;
            if (i < ABSORBERS) {
                memmove(best + i + 1, best + i, (size_t)(ABSORBERS - 1 - i) * sizeof *best);
                best[i] = projection;
            }
        }
    }
    double others = best[0] + best[1] + best[2];
    *full = !main_active && *top >= 0 && cosine_of_highest >= COSINE_FULL && highest / whole >= PROPORTION;
    if (by_main >= whole || others / whole < PROPORTION)
        return;
    if (by_main <= 0) {
        *fraction = 1;
        return;
    }
    double absorbed = others < whole - by_main ? others : whole - by_main;
    *fraction = absorbed / (absorbed + by_main);
}

/* ---- letters ------------------------------------------------------------------------------------------------------------------------------- */

typedef struct letters {
    const es_dictionary *s;
    const es_pooled *p;
    int *row[2], n[2];  /* train, test */
    uint8_t *y[2];
    bool *known;        /* [test] the dense probe says yes */
    float *x, *w, *buf; /* [rows, max(d, main)], [max(d, main)], [d] */
} letters;

static double f1(int both, int said, int are)
{
    return said + are > 0 ? 2.0 * both / (said + are) : 0;
}

/* Fits on train, returns the F1 on `part`; the answers on test go to `yes` when it is not NULL. feature NULL: on the residual. */
static int fit_letter(letters *l, const int *feature, int k, int part, double *out, bool *yes, es_error *err)
{
    size_t d = feature ? (size_t)k : l->p->d;
    float bias = 0;
    int both = 0, said = 0, are = 0, rc = ES_OK;
    for (int turn = 0; turn < 2 && !rc; turn++) { /* fit, then ask */
        int q = turn ? part : 0;
        if (feature)
            es_probe_gather(&l->p->acts, l->row[q], l->n[q], feature, k, l->x);
        for (int i = 0; i < l->n[q] && !feature; i++)
            memcpy(l->x + (size_t)i * d, l->p->x + (size_t)l->row[q][i] * d, d * sizeof *l->x);
        if (!turn)
            rc = es_probe_fit(l->x, l->y[0], (size_t)l->n[0], d, l->w, &bias, err);
        for (int i = 0; turn && !rc && i < l->n[q]; i++) {
            bool is = es_probe_value(l->x + (size_t)i * d, l->w, bias, d) > 0;
            if (yes)
                yes[i] = is;
            said += is;
            are += l->y[q][i];
            both += is && l->y[q][i];
        }
    }
    *out = f1(both, said, are);
    return rc;
}

/* The features that stand for the letter: the one that tells it best, and as many more as each raise F1 by a jump ("feature splitting"). */
static int main_features(letters *l, es_absorption *out, es_error *err)
{
    int chosen[ES_ABSORB_MAIN], F = es_dictionary_get_info(l->s)->n_features;
    int n = es_probe_choose(&l->p->acts, l->row[0], l->y[0], l->n[0], F, ES_ABSORB_MAIN, chosen, err), rc = n < 0 ? n : ES_OK;
    double before = 0, now;
    for (int k = 1; k <= n && !rc; k++) {
        rc = fit_letter(l, chosen, k, 0, &now, NULL, err);
        if (rc || (k > 1 && now - before <= F1_JUMP))
            break;
        before = now;
        out->n_main = k;
        out->main[k - 1] = chosen[k - 1];
    }
    if (!rc && out->n_main)
        rc = fit_letter(l, out->main, out->n_main, 1, &out->sparse_f1, NULL, err);
    return rc;
}

static void absorb_letter(letters *l, es_absorption *out, int *count)
{
    int F = es_dictionary_get_info(l->s)->n_features, most = 0;
    size_t d = l->p->d;
    memset(count, 0, (size_t)F * sizeof *count);
    out->absorber = -1;
    for (int i = 0; i < l->n[1]; i++) {
        double fraction;
        bool full;
        int top;
        if (!l->y[1][i] || !l->known[i])
            continue;
        es_absorption_of(l->s, l->p->x + (size_t)l->row[1][i] * d, &l->p->acts, l->row[1][i], l->w, out->main, out->n_main, l->buf, &fraction, &full, &top);
        out->positives++;
        out->fraction += fraction;
        out->full += full;
        if (full && ++count[top] > most) {
            most = count[top];
            out->absorber = top;
        }
    }
    if (out->positives) {
        out->fraction /= out->positives;
        out->full /= out->positives;
    }
}

/* The dense probe's direction stays in l->w, as a unit vector. */
static int measure_letter(letters *l, es_absorption *out, int *count, es_error *err)
{
    size_t d = l->p->d;
    int rc = main_features(l, out, err);
    rc = rc ? rc : fit_letter(l, NULL, 0, 1, &out->dense_f1, l->known, err);
    double length = 0;
    for (size_t j = 0; j < d; j++)
        length += (double)l->w[j] * (double)l->w[j];
    for (size_t j = 0; j < d && length > 0; j++)
        l->w[j] = (float)((double)l->w[j] / sqrt(length));
    if (!rc)
        absorb_letter(l, out, count);
    return rc;
}

int es_absorption_letters(const es_dictionary *s, const es_pooled *p, const uint8_t *letter, const uint8_t *test, es_absorption *out, int *n, es_error *err)
{
    size_t rows = (size_t)p->n + 1, wide = p->d > ES_ABSORB_MAIN ? p->d : ES_ABSORB_MAIN;
    letters l = {.s = s, .p = p, .known = es_calloc(rows, 1), .x = es_calloc(rows, wide * sizeof(float)), .w = es_calloc(wide, sizeof(float)),
                 .buf = es_calloc(p->d, sizeof(float))};
    int *count = es_calloc((size_t)es_dictionary_get_info(s)->n_features, sizeof *count), rc = ES_OK;
    bool ok = l.known && l.x && l.w && l.buf && count;
    for (int part = 0; part < 2; part++) {
        l.row[part] = es_calloc(rows, sizeof(int));
        l.y[part] = es_calloc(rows, 1);
        ok = ok && l.row[part] && l.y[part];
    }
    for (int i = 0; ok && i < p->n; i++)
        l.row[test[i] != 0][l.n[test[i] != 0]++] = i;
    *n = 0;
    if (!ok)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory for the letters of %d words", p->n);
    for (int a = 0; a < LETTERS && !rc; a++) {
        int of[2] = {0};
        for (int part = 0; part < 2; part++)
            for (int i = 0; i < l.n[part]; i++)
                of[part] += l.y[part][i] = letter[l.row[part][i]] == a;
        if (of[0] < 10 || of[1] < 3 || of[0] == l.n[0] || of[1] == l.n[1])
            continue;
        es_absorption *x = &out[(*n)++];
        *x = (es_absorption){.letter = (char)('a' + a), .train = of[0], .test = of[1]};
        rc = measure_letter(&l, x, count, err);
    }
    for (int part = 0; part < 2; part++) {
        free(l.row[part]);
        free(l.y[part]);
    }
    free(l.known);
    free(l.x);
    free(l.w);
    free(l.buf);
    free(count);
    return rc;
}

/* ---- the model's words ------------------------------------------------------------------------------------------------------------------------ */

/* A vocabulary entry that is a word: a space and lower-case letters. */
static bool is_word(const es_model *m, int32_t id)
{
    size_t n;
    const char *b = es_token_bytes(m, id, &n);
    if (es_token_is_control(m, id) || n < 4 || b[0] != ' ')
        return false;
    for (size_t i = 1; i < n; i++)
        if (b[i] < 'a' || b[i] > 'z')
            return false;
    return true;
}

int es_absorption_measure(es_model *m, const es_dictionary *s, int limit, uint64_t seed, int threads, es_absorption *out, int *n,
                          const es_progress *progress, es_error *err)
{
    static const char BEFORE[] = "Spell the word";
    int n_vocab = es_model_get_info(m)->n_vocab, words = 0, rc = ES_OK;
    int32_t *word = es_calloc((size_t)n_vocab, sizeof *word);
    es_ids before = {0}, *text = NULL;
    es_pooled p = {0};
    uint8_t *letter = NULL, *test = NULL;
    *n = 0;
    for (int id = 0; word && id < n_vocab; id++)
        if (is_word(m, id))
            word[words++] = id;
    es_rng rng;
    es_rng_seed(&rng, seed);
    for (int i = words - 1; i > 0; i--) {
        int j = (int)es_rng_below(&rng, (uint64_t)i + 1);
        int32_t x = word[i];
        word[i] = word[j];
        word[j] = x;
    }
    if (words < WORDS_MIN)
        rc = word ? es_fail(err, ES_ERR_MISSING, "the vocabulary has %d entries that are whole words; the first-letter task needs %d", words, WORDS_MIN)
                  : es_fail(err, ES_ERR_MEMORY, "not enough memory for the vocabulary");
    words = limit > 0 && words > limit ? limit : words;
    if (!rc) {
        text = es_calloc((size_t)words, sizeof *text);
        letter = es_calloc((size_t)words, 1);
        test = es_calloc((size_t)words, 1);
        rc = text && letter && test ? es_tokenize_text(m, BEFORE, strlen(BEFORE), &before, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory for the words");
    }
    for (int i = 0; i < words && !rc; i++) {
        size_t length;
        for (size_t j = 0; j < before.n && !rc; j++)
            rc = es_ids_add(&text[i], before.id[j]);
        rc = rc ? rc : es_ids_add(&text[i], word[i]);
        if (rc)
            es_fail(err, rc, "not enough memory for the words");
        letter[i] = (uint8_t)(es_token_bytes(m, word[i], &length)[1] - 'a');
        test[i] = i % 4 == 3;
    }
    rc = rc ? rc : es_pooled_make(&p, m, s, text, words, ES_POOL_LAST, threads, "reading words", progress, err);
    rc = rc ? rc : es_absorption_letters(s, &p, letter, test, out, n, err);
    for (int i = 0; text && i < words; i++)
        es_ids_free(&text[i]);
    es_ids_free(&before);
    es_pooled_free(&p);
    free(text);
    free(word);
    free(letter);
    free(test);
    return rc;
}
