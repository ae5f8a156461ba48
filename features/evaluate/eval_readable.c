/* Can a reader who sees only a coefficient table and the labels tell which trait was trained? Here the reader is a count of common words: each
 * feature's label and promoted tokens against what a task says of itself and the words in which its two sides differ.
 *
 * A word is kept by its first five letters, without case. A task has a weight for each: how much likelier it is in preferred than in
 * rejected replies or the other way, and its description's words on both sides. A word that is common to several tasks counts less (inverse task
 * frequency). A feature that was raised is matched with the preferred side, a lowered one with the rejected. The score of a task is the sum
 * of the moved features' matches, each less the mean over all features, weighted by their coefficients, in units of its spread over random
 * features with these coefficients: chance is 0 with spread 1 for every task, however wordy it is. */
#include "evaluate.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEM = 5 };

typedef struct bag { /* word -> real */
    json_t *words;
} bag;

static void bag_add(json_t *b, const char *word, double x)
{
    json_object_set_new(b, word, json_real(json_number_value(json_object_get(b, word)) + x));
}

static bool letter(char c)
{
    return isalpha((unsigned char)c);
}

/* fn for each word of s: letters, by their first ones in small; runs of other signs as they are ("->", "_", "\"\"\""). */
static void each_word(const char *s, void (*fn)(void *user, const char *word), void *user)
{
    static const char *const STOP[] = {"the", "a", "an", "of", "to", "in", "and", "or", "is", "are", "that", "with", "for", "on", "as", "it", "by", "such", "no", "not",
                                       "instea", "instead", "this", "be", "its", "from", "at", "i", "you", "was", NULL};
    char word[16];
    while (*s) {
        size_t n = 0;
        if (letter(*s)) {
            for (; letter(*s); s++)
                if (n < STEM)
                    word[n++] = (char)tolower((unsigned char)*s);
        } else if (ispunct((unsigned char)*s)) {
            for (; ispunct((unsigned char)*s); s++)
                if (n < STEM)
                    word[n++] = *s;
        } else {
            s++;
            continue;
        }
        word[n] = 0;
        bool stop = n == 1 && strchr(".,;:()!?'\"", *word);
        for (int i = 0; !stop && STOP[i]; i++)
            stop = !strncmp(word, STOP[i], STEM) && strlen(STOP[i]) >= n;
        if (!stop)
            fn(user, word);
    }
}

static void count_word(void *user, const char *word)
{
    bag_add(((bag *)user)->words, word, 1);
}

static json_t *count(const char *text)
{
    bag b = {json_object()};
    each_word(text, count_word, &b);
    return b.words;
}

/* Words of one side's replies; how many they are. */
static double count_side(json_t *into, const es_experiences *e, bool preferred)
{
    double n = 0;
    for (int i = 0; i < e->n; i++) {
        const char *text = preferred ? e->item[i].preferred : e->item[i].rejected, *word;
        json_t *words = text ? count(text) : NULL, *x;
        json_object_foreach(words, word, x) {
            bag_add(into, word, json_number_value(x));
            n += json_number_value(x);
        }
        json_decref(words);
    }
    return n;
}

/* side[0], side[1]: words of the preferred and of the rejected side. The log odds of a word among all words of its side, so that a longer side
 * is no wordier, in units of its standard error (Monroe, Colaresi & Quinn 2008, "Fightin' Words", with a flat prior). */
static void task_words(const es_task *t, json_t *side[2])
{
    json_t *seen[2] = {json_object(), json_object()}, *x;
    const char *word;
    double n[2];
    for (int k = 0; k < 2; k++) {
        n[k] = count_side(seen[k], &t->pool, k == 0);
        side[k] = count(t->about);
        json_object_foreach(side[k], word, x)
            json_object_set_new(side[k], word, json_real(1));
    }
    for (int k = 0; k < 2; k++)
        json_object_foreach(seen[k], word, x) {
            double here = json_number_value(x) + 0.5, there = json_number_value(json_object_get(seen[1 - k], word)) + 0.5;
            double odds = log(here / (n[k] + 1 - here)) - log(there / (n[1 - k] + 1 - there)), z = odds / sqrt(1 / here + 1 / there);
            if (z > 2)
                bag_add(side[k], word, fmin(z, 10) / 5);
        }
    json_decref(seen[0]);
    json_decref(seen[1]);
}

/* Divides by how many tasks have a word and makes each side one long. */
static void weigh(json_t **side, int n_side)
{
    json_t *common = json_object(), *x;
    const char *word;
    for (int i = 0; i < n_side; i += 2) {
        json_t *both = json_object();
        for (int k = 0; k < 2; k++)
            json_object_foreach(side[i + k], word, x)
                json_object_set_new(both, word, json_integer(1));
        json_object_foreach(both, word, x)
            bag_add(common, word, 1);
        json_decref(both);
    }
    for (int i = 0; i < n_side; i++) {
        double square = 0;
        void *next;
        json_object_foreach_safe(side[i], next, word, x) {
            double w = json_number_value(x) * log(1 + n_side / 2 / json_number_value(json_object_get(common, word)));
            json_object_set_new(side[i], word, json_real(w));
            square += w * w;
        }
        json_object_foreach_safe(side[i], next, word, x)
            json_object_set_new(side[i], word, json_real(json_number_value(x) / sqrt(square)));
    }
    json_decref(common);
}

static json_t *feature_words(const es_readable_feature *f)
{
    json_t *words = f->label ? count(f->label) : json_object(), *x;
    const char *word;
    json_object_foreach(words, word, x)
        json_object_set_new(words, word, json_real(1));
    for (int i = 0; i < f->n_token; i++) {
        json_t *token = count(f->token[i]);
        json_object_foreach(token, word, x)
            if (!json_object_get(words, word))
                json_object_set_new(words, word, json_real(0.5));
        json_decref(token);
    }
    return words;
}

static double match(json_t *words, json_t *side)
{
    double dot = 0, square = 0;
    const char *word;
    json_t *x;
    json_object_foreach(words, word, x) {
        double w = json_number_value(x);
        dot += w * json_number_value(json_object_get(side, word));
        square += w * w;
    }
    return square > 0 ? dot / sqrt(square) : 0;
}

int es_eval_readable(const es_task *const *task, int n_task, const es_readable_feature *moved, int n_moved, const es_readable_feature *all, int n_all,
                     double *score, es_error *err)
{
    json_t **side = es_calloc(2 * (size_t)n_task + 1, sizeof *side);
    double *sum = es_calloc(6 * (size_t)n_task + 1, sizeof *sum), *square = sum + 2 * n_task, *got = sum + 4 * n_task, size2 = 0;
    if (!side || !sum) {
        free(side);
        free(sum);
        return es_fail(err, ES_ERR_MEMORY, "no memory to rank tasks");
    }
    for (int i = 0; i < n_task; i++)
        task_words(task[i], side + 2 * i);
    weigh(side, 2 * n_task);
    for (int i = 0; i < n_all; i++) {
        json_t *words = feature_words(&all[i]);
        for (int k = 0; k < 2 * n_task; k++) {
            double x = match(words, side[k]);
            sum[k] += x / n_all;
            square[k] += x * x / n_all;
        }
        json_decref(words);
    }
    for (int i = 0; i < n_moved; i++) {
        json_t *words = feature_words(&moved[i]);
        double c = fabs(moved[i].coefficient);
        for (int t = 0; t < n_task; t++) {
            int k = 2 * t + (moved[i].coefficient < 0);
            double sd = n_all > 1 ? sqrt(fmax(square[k] - sum[k] * sum[k], 0)) : 1, mean = n_all > 1 ? sum[k] : 0;
            got[t] += c * (match(words, side[k]) - mean) / (sd > 0 ? sd : 1);
        }
        size2 += c * c;
        json_decref(words);
    }
    for (int t = 0; t < n_task; t++) { /* in units of its own spread over random features with these coefficients */
        score[t] = size2 > 0 ? got[t] / sqrt(size2) : 0;
        json_decref(side[2 * t]);
        json_decref(side[2 * t + 1]);
    }
    free(side);
    free(sum);
    return ES_OK;
}
