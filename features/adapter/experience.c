/* experience: what was learned from. One JSON object each: a conversation that ends with the person's turn, and a preferred reply,
 * a rejected one, or both. */
#include "learner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void es_experience_clear(es_experience *e)
{
    for (int i = 0; i < e->n_message; i++) {
        free((char *)e->message[i].role);
        free((char *)e->message[i].content);
    }
    free(e->message);
    free(e->preferred);
    free(e->rejected);
    free(e->source);
    free(e->time);
    *e = (es_experience){0};
}

void es_experiences_free(es_experiences *l)
{
    for (int i = 0; i < l->n; i++)
        es_experience_clear(&l->item[i]);
    free(l->item);
    *l = (es_experiences){0};
}

static int experience_check(const es_experience *e, es_error *err)
{
    if (e->n_message < 1)
        return es_fail(err, ES_ERR_FORMAT, "an experience needs \"messages\" with at least one turn");
    for (int i = 0; i < e->n_message; i++) {
        const char *role = e->message[i].role;
        if (strcmp(role, "user") && strcmp(role, "assistant") && (strcmp(role, "system") || i > 0))
            return es_fail(err, ES_ERR_FORMAT, "message %d has the role \"%.32s\" (user, assistant, or system as the first)", i + 1, role);
    }
    if (strcmp(e->message[e->n_message - 1].role, "user"))
        return es_fail(err, ES_ERR_FORMAT, "the last message must be the user's: the replies answer it");
    if (!e->preferred && !e->rejected)
        return es_fail(err, ES_ERR_FORMAT, "an experience needs a \"preferred\" or a \"rejected\" reply");
    if (!isfinite(e->weight) || e->weight < 0)
        return es_fail(err, ES_ERR_FORMAT, "the weight of an experience must be a number of at least 0");
    return ES_OK;
}

/* NULL stays NULL; *failed is set when there is no memory. */
static char *copy(const char *s, bool *failed)
{
    char *c = s ? strdup(s) : NULL;
    *failed |= s && !c;
    return c;
}

int es_experience_copy(es_experiences *l, const es_experience *e, es_error *err)
{
    int rc = experience_check(e, err);
    if (rc)
        return rc;
    if (l->n == l->cap) {
        int cap = l->cap ? 2 * l->cap : 16;
        es_experience *item = realloc(l->item, sizeof *item * (size_t)cap);
        if (!item)
            return es_fail(err, ES_ERR_MEMORY, "no memory for %d experiences", cap);
        l->item = item;
        l->cap = cap;
    }
    es_experience *to = &l->item[l->n];
    bool failed = false;
    *to = (es_experience){.id = e->id, .weight = e->weight};
    to->message = calloc((size_t)e->n_message, sizeof *to->message);
    if (to->message) {
        to->n_message = e->n_message;
        for (int i = 0; i < e->n_message; i++)
            to->message[i] = (es_message){copy(e->message[i].role, &failed), copy(e->message[i].content, &failed)};
    }
    to->preferred = copy(e->preferred, &failed);
    to->rejected = copy(e->rejected, &failed);
    to->source = copy(e->source, &failed);
    to->time = copy(e->time, &failed);
    if (!to->message || failed) {
        es_experience_clear(to);
        return es_fail(err, ES_ERR_MEMORY, "no memory for an experience");
    }
    l->n++;
    return ES_OK;
}

/* An optional text member: absent or null gives NULL. */
static int text_member(json_t *value, const char *key, char **out, es_error *err)
{
    json_t *v = json_object_get(value, key);
    *out = NULL;
    if (!v || json_is_null(v))
        return ES_OK;
    if (!json_is_string(v))
        return es_fail(err, ES_ERR_FORMAT, "\"%s\" must be a text", key);
    if (strlen(json_string_value(v)) != json_string_length(v))
        return es_fail(err, ES_ERR_FORMAT, "\"%s\" holds a NUL character", key);
    *out = (char *)json_string_value(v);
    return ES_OK;
}

int es_experience_from_json(es_experiences *l, json_t *value, es_error *err)
{
    if (!json_is_object(value))
        return es_fail(err, ES_ERR_FORMAT, "an experience is a JSON object {\"messages\":[...],\"preferred\":...}");
    json_t *messages = json_object_get(value, "messages"), *weight = json_object_get(value, "weight"), *id = json_object_get(value, "id");
    size_t n = json_array_size(messages); /* 0 when it is no array */
    if (n < 1 || n > 4096)
        return es_fail(err, ES_ERR_FORMAT, "\"messages\" must be an array of 1 to 4096 objects {\"role\",\"content\"}");
    es_experience e = {.weight = 1};
    if (weight && !json_is_null(weight)) {
        if (!json_is_number(weight))
            return es_fail(err, ES_ERR_FORMAT, "\"weight\" must be a number");
        e.weight = json_number_value(weight);
    }
    if (json_is_integer(id))
        e.id = json_integer_value(id);
    int rc = text_member(value, "preferred", &e.preferred, err);
    rc = rc ? rc : text_member(value, "rejected", &e.rejected, err);
    rc = rc ? rc : text_member(value, "source", &e.source, err);
    rc = rc ? rc : text_member(value, "time", &e.time, err);
    if (rc)
        return rc;
    e.message = calloc(n, sizeof *e.message);
    if (!e.message)
        return es_fail(err, ES_ERR_MEMORY, "no memory for an experience");
    e.n_message = (int)n;
    for (size_t i = 0; i < n && !rc; i++) {
        json_t *m = json_array_get(messages, i);
        char *role = NULL, *content = NULL;
        if (!json_is_object(m))
            rc = es_fail(err, ES_ERR_FORMAT, "message %zu is not an object {\"role\",\"content\"}", i + 1);
        rc = rc ? rc : text_member(m, "role", &role, err);
        rc = rc ? rc : text_member(m, "content", &content, err);
        if (!rc && (!role || !content))
            rc = es_fail(err, ES_ERR_FORMAT, "message %zu lacks \"role\" or \"content\"", i + 1);
        e.message[i] = (es_message){role, content};
    }
    if (!rc)
        rc = es_experience_copy(l, &e, err); /* checks and owns */
    free(e.message);
    return rc;
}

static int load_line(void *user, size_t line, json_t *value, es_error *err)
{
    (void)line;
    return es_experience_from_json(user, value, err);
}

int es_experiences_load(es_experiences *l, const char *path, es_error *err)
{
    int before = l->n;
    int rc = es_jsonl_each(path, load_line, l, err);
    if (rc) {
        while (l->n > before)
            es_experience_clear(&l->item[--l->n]);
        return rc;
    }
    if (l->n == before)
        return es_fail(err, ES_ERR_FORMAT, "%s: no experiences in it", path);
    return ES_OK;
}

json_t *es_experience_to_json(const es_experience *e)
{
    json_t *o = json_object(), *messages = json_array();
    for (int i = 0; i < e->n_message; i++)
        json_array_append_new(messages, json_pack("{s:s, s:s}", "role", e->message[i].role, "content", e->message[i].content));
    json_object_set_new(o, "messages", messages);
    if (e->id)
        json_object_set_new(o, "id", json_integer(e->id));
    if (e->preferred)
        json_object_set_new(o, "preferred", json_string(e->preferred));
    if (e->rejected)
        json_object_set_new(o, "rejected", json_string(e->rejected));
    if (e->source)
        json_object_set_new(o, "source", json_string(e->source));
    if (e->time)
        json_object_set_new(o, "time", json_string(e->time));
    if (e->weight != 1)
        json_object_set_new(o, "weight", json_real(e->weight));
    return o;
}
