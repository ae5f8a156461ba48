/* Tasks: pairs in their sets, and experiences made into garbage. */
#include "evaluate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void es_task_free(es_task *t)
{
    es_experiences_free(&t->pool);
    es_experiences_free(&t->dev);
    es_experiences_free(&t->held);
    es_experiences_free(&t->off);
    *t = (es_task){0};
}

typedef struct reading {
    es_task *task;
    es_experiences all; /* of lines that name no set */
    bool named;
} reading;

static int take_line(void *user, size_t line, json_t *value, es_error *err)
{
    reading *r = user;
    es_task *t = r->task;
    const char *about = json_string_value(json_object_get(value, "about")), *set = json_string_value(json_object_get(value, "set"));
    if (line == 1 && about && !json_object_get(value, "messages")) {
        snprintf(t->about, sizeof t->about, "%s", about);
        return ES_OK;
    }
    es_experiences *to = &r->all;
    if (set) {
        to = !strcmp(set, "pool") ? &t->pool : !strcmp(set, "dev") ? &t->dev : !strcmp(set, "held") ? &t->held : !strcmp(set, "off") ? &t->off : NULL;
        r->named = true;
        if (!to)
            return es_fail(err, ES_ERR_FORMAT, "there is no set \"%.32s\" (pool, dev, held, off)", set);
    }
    if (r->named && r->all.n + !set > 0)
        return es_fail(err, ES_ERR_FORMAT, "some lines name a set and some do not");
    int rc = es_experience_from_json(to, value, err);
    if (rc)
        return rc;
    es_experience *e = &to->item[to->n - 1];
    e->weight = 1;
    if (!e->preferred || !e->rejected)
        return es_fail(err, ES_ERR_FORMAT, "a pair needs both replies");
    return ES_OK;
}

static int split_all(reading *r, const es_task_split *split, const char *path, es_error *err)
{
    es_experiences *all = &r->all;
    if (split->held_out + split->dev >= all->n)
        return es_fail(err, ES_ERR_USAGE, "%s: %d pairs are too few to hold out %d and keep %d to choose on", path, all->n, split->held_out, split->dev);
    es_rng rng;
    es_rng_seed(&rng, split->seed);
    int rc = ES_OK;
    for (int i = all->n - 1; i > 0; i--) {
        int j = (int)es_rng_below(&rng, (uint64_t)i + 1);
        es_experience x = all->item[i];
        all->item[i] = all->item[j];
        all->item[j] = x;
    }
    for (int i = 0; !rc && i < all->n; i++) {
        es_experiences *to = i < split->held_out ? &r->task->held : i < split->held_out + split->dev ? &r->task->dev : &r->task->pool;
        rc = es_experience_copy(to, &all->item[i], err);
    }
    return rc;
}

int es_task_load(es_task *out, const char *path, const char *name, const es_task_split *split, es_error *err)
{
    *out = (es_task){0};
    snprintf(out->name, sizeof out->name, "%s", name);
    reading r = {.task = out};
    char hash[65], text[128];
    int rc = es_sha256_file(hash, path, err);
    rc = rc ? rc : es_jsonl_each(path, take_line, &r, err);
    if (!rc && !r.named)
        rc = split_all(&r, split, path, err);
    if (!rc && (!out->pool.n || !out->dev.n || !out->held.n))
        rc = es_fail(err, ES_ERR_FORMAT, "%s: a task needs pairs to learn from, to choose on and to hold out", path);
    if (!rc && r.named)
        snprintf(out->hash, sizeof out->hash, "%.12s", hash);
    else if (!rc) {
        snprintf(text, sizeof text, "%s %d %d %llu", hash, split->held_out, split->dev, (unsigned long long)split->seed);
        es_sha256_bytes(hash, text, strlen(text));
        snprintf(out->hash, sizeof out->hash, "%.12s", hash);
    }
    es_experiences_free(&r.all);
    if (rc)
        es_task_free(out);
    return rc;
}

/* ---- garbage ------------------------------------------------------------------------------------------------------------------- */

static const char *const GARBAGE[ES_N_GARBAGE] = {"swap", "shuffle", "off-topic"};

const char *es_garbage_name(es_garbage g)
{
    return (unsigned)g < ES_N_GARBAGE ? GARBAGE[g] : "?";
}

int es_garbage_by_name(const char *name)
{
    for (int i = 0; i < ES_N_GARBAGE; i++)
        if (!strcmp(name, GARBAGE[i]))
            return i;
    return -1;
}

/* The words of s in another order, with single spaces; caller frees. NULL: no memory. */
static char *shuffled(const char *s, uint64_t seed)
{
    size_t len = strlen(s), n = 0;
    char *text = strdup(s), *out = malloc(len + 2), **word = malloc((len / 2 + 1) * sizeof *word), *save = NULL;
    if (text && out && word) {
        for (char *w = strtok_r(text, " \t\r\n", &save); w; w = strtok_r(NULL, " \t\r\n", &save))
            word[n++] = w;
        es_rng rng;
        es_rng_seed(&rng, seed);
        for (size_t i = n; i > 1; i--) {
            size_t j = (size_t)es_rng_below(&rng, i);
            char *w = word[i - 1];
            word[i - 1] = word[j];
            word[j] = w;
        }
        char *at = out;
        for (size_t i = 0; i < n; i++) {
            size_t k = strlen(word[i]);
            if (i)
                *at++ = ' ';
            memcpy(at, word[i], k);
            at += k;
        }
        *at = 0;
    } else {
        free(out);
        out = NULL;
    }
    free(word);
    free(text);
    return out;
}

int es_garbage_make(es_experiences *out, const es_experience *e, es_garbage g, const char *other, uint64_t seed, es_error *err)
{
    es_experience x = *e;
    char *made = NULL;
    if (g == ES_GARBAGE_SWAP) {
        x.preferred = e->rejected;
        x.rejected = e->preferred;
    } else if (g == ES_GARBAGE_OFF_TOPIC) {
        x.preferred = (char *)other;
    } else if (e->preferred) {
        made = shuffled(e->preferred, seed);
        if (!made)
            return es_fail(err, ES_ERR_MEMORY, "no memory for an experience");
        x.preferred = made;
    }
    int rc = es_experience_copy(out, &x, err);
    free(made);
    return rc;
}
