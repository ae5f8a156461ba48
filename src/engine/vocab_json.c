/* A vocabulary from a Hugging Face folder: tokenizer.json, and beside it what says where texts begin and end and how a chat is written. Of the
 * normalizers and pre-tokenizers that tokenizer.json can name, those of the models read here are known by what they do; another is an error. */
#include "vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH = 1300, TEMPLATE_LIMIT = 1 << 20 };

static const char MARK[] = "\xe2\x96\x81";

typedef struct source {
    const char *folder;
    char path[PATH];            /* of tokenizer.json */
    json_t *root, *config;      /* tokenizer.json; tokenizer_config.json, NULL: none */
    bool split, bytes, replaced; /* seen: a known cut, ByteLevel, spaces that become MARK */
    es_error *err;
} source;

static int fail(const source *s, const char *what, const char *name)
{
    return es_fail(s->err, ES_ERR_FORMAT, "%s: %s '%.60s', which is not known here", s->path, what, name ? name : "");
}

static const char *str(const json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

static bool equals(const json_t *o, const char *key, const char *what)
{
    const char *s = str(o, key);
    return s && strcmp(s, what) == 0;
}

/* A file that may be absent: *out NULL. */
static int open_beside(json_t **out, const char *folder, const char *name, es_error *err)
{
    char path[PATH];
    *out = NULL;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return access(path, F_OK) == 0 ? es_json_file(out, path, err) : ES_OK;
}

/* ---- what is done to a text before the merges ---- */

static int read_normalizer(source *s, es_tokenizer *t, const json_t *o)
{
    const char *type = str(o, "type");
    json_t *list = json_object_get(o, "normalizers"), *pattern = json_object_get(o, "pattern");
    int rc = ES_OK;
    if (!o || json_is_null(o))
        return ES_OK;
    if (equals(o, "type", "Sequence")) {
        for (size_t i = 0; rc == ES_OK && i < json_array_size(list); i++)
            rc = read_normalizer(s, t, json_array_get(list, i));
        return rc;
    }
    if (equals(o, "type", "NFC"))
        t->nfc = true;
    else if (equals(o, "type", "Prepend") && equals(o, "prepend", MARK))
        t->prefix = ES_PREFIX_ALWAYS;
    else if (equals(o, "type", "Replace") && equals(pattern, "String", " ") && equals(o, "content", MARK))
        s->replaced = true;
    else
        return fail(s, "has the normalizer", type);
    return ES_OK;
}

static int read_metaspace(source *s, es_tokenizer *t, const json_t *o)
{
    const char *scheme = str(o, "prepend_scheme");
    if (json_object_get(o, "replacement") && !equals(o, "replacement", MARK))
        return fail(s, "replaces spaces by", str(o, "replacement"));
    if (!scheme) /* before it had a scheme */
        scheme = json_is_false(json_object_get(o, "add_prefix_space")) ? "never" : "always";
    t->prefix = !strcmp(scheme, "never") ? ES_PREFIX_NEVER : !strcmp(scheme, "first") ? ES_PREFIX_FIRST : ES_PREFIX_EACH;
    t->cut_spaces = !json_is_false(json_object_get(o, "split"));
    s->replaced = true;
    return ES_OK;
}

static int read_split(source *s, es_tokenizer *t, const json_t *o)
{
    const json_t *pattern = json_object_get(o, "pattern");
    const char *regex = str(pattern, "Regex");
    if (equals(pattern, "String", " ") && s->replaced)
        return ES_OK; /* Gemma: there are no spaces left */
    if (!regex || s->split || !es_pretoken_regex(&t->pre, regex, strlen(regex)))
        return fail(s, "cuts text by the pattern", regex);
    s->split = true;
    return ES_OK;
}

static int read_pre_tokenizer(source *s, es_tokenizer *t, const json_t *o)
{
    json_t *list = json_object_get(o, "pretokenizers");
    int rc = ES_OK;
    if (!o || json_is_null(o))
        return ES_OK;
    if (equals(o, "type", "Sequence")) {
        for (size_t i = 0; rc == ES_OK && i < json_array_size(list); i++)
            rc = read_pre_tokenizer(s, t, json_array_get(list, i));
        return rc;
    }
    if (equals(o, "type", "Metaspace"))
        return read_metaspace(s, t, o);
    if (equals(o, "type", "Split"))
        return read_split(s, t, o);
    if (equals(o, "type", "Digits") && json_is_true(json_object_get(o, "individual_digits")) && !s->split) {
        t->pre.alone = true;
        t->pre.digits = 1;
        return ES_OK;
    }
    if (!equals(o, "type", "ByteLevel"))
        return fail(s, "has the pre-tokenizer", str(o, "type"));
    bool regex = !json_is_false(json_object_get(o, "use_regex"));
    if (json_is_true(json_object_get(o, "add_prefix_space")))
        return fail(s, "has a pre-tokenizer with", "add_prefix_space");
    if (regex == s->split)
        return fail(s, "cuts text", regex ? "twice" : "nowhere");
    s->bytes = true;
    return ES_OK;
}

static int read_kind(source *s, es_tokenizer *t)
{
    const json_t *model = json_object_get(s->root, "model");
    const char *type = str(model, "type"), *prefix = str(model, "continuing_subword_prefix"), *suffix = str(model, "end_of_word_suffix");
    if (!json_is_object(model) || (type && strcmp(type, "BPE") != 0))
        return fail(s, "has a model of type", type);
    if ((prefix && *prefix) || (suffix && *suffix))
        return fail(s, "marks parts of words by", prefix && *prefix ? prefix : suffix);
    t->prefix = ES_PREFIX_NEVER;
    int rc = read_normalizer(s, t, json_object_get(s->root, "normalizer"));
    rc = rc ? rc : read_pre_tokenizer(s, t, json_object_get(s->root, "pre_tokenizer"));
    if (rc != ES_OK)
        return rc;
    t->characters = !s->bytes;
    if (s->bytes == s->replaced || s->split > s->bytes || (t->characters && t->nfc))
        return fail(s, "has a normalizer or pre-tokenizer", s->bytes ? "of both kinds" : "of neither kind");
    t->whole_first = json_is_true(json_object_get(model, "ignore_merges"));
    t->fuse_unknown = json_is_true(json_object_get(model, "fuse_unk"));
    return ES_OK;
}

/* ---- tokens ---- */

static int id_of(const source *s, const es_vocab *v, const json_t *value, const char *name)
{
    json_int_t id = json_integer_value(value);
    if (json_is_integer(value) && id >= 0 && id < v->t->n_vocab)
        return (int)id;
    es_fail(s->err, ES_ERR_FORMAT, "%s: the token '%.40s' has an id that is not a whole number under %d, the rows of the embedding", s->path, name, v->t->n_vocab);
    return -1;
}

static int add_special_tokens(source *s, es_vocab *v)
{
    const json_t *list = json_object_get(s->root, "added_tokens");
    int rc = ES_OK;
    for (size_t i = 0; rc == ES_OK && i < json_array_size(list); i++) {
        const json_t *o = json_array_get(list, i), *content = json_object_get(o, "content");
        const char *name = json_string_value(content);
        if (!name)
            return es_fail(s->err, ES_ERR_FORMAT, "%s: entry %zu of \"added_tokens\" has no \"content\"", s->path, i);
        int id = id_of(s, v, json_object_get(o, "id"), name);
        if (id < 0)
            return ES_ERR_FORMAT;
        if (v->word[id].n)
            return es_vocab_fail(v, id, "shares its id with another");
        /* a run of MARKs is made of its parts; text has spaces there */
        int type = json_is_true(json_object_get(o, "special")) ? ES_TOKEN_CONTROL : v->t->characters && strstr(name, MARK) ? ES_TOKEN_NORMAL : ES_TOKEN_USER;
        rc = es_vocab_word(v, id, name, json_string_length(content), type);
    }
    return rc;
}

static bool is_byte(const char *s, size_t n)
{
    return n == 6 && memcmp(s, "<0x", 3) == 0 && s[5] == '>' && strspn(s + 3, "0123456789ABCDEF") == 2;
}

static int add_tokens(source *s, es_vocab *v)
{
    json_t *model = json_object_get(s->root, "model"), *vocab = json_object_get(model, "vocab"), *value;
    bool fallback = json_is_true(json_object_get(model, "byte_fallback"));
    const char *name;
    int rc = json_object_size(vocab) ? ES_OK : es_fail(s->err, ES_ERR_FORMAT, "%s: \"vocab\" is missing or empty", s->path);
    rc = rc ? rc : add_special_tokens(s, v);
    if (rc != ES_OK)
        return rc;
    json_object_foreach(vocab, name, value) {
        size_t n = strlen(name);
        int id = id_of(s, v, value, name);
        if (id < 0)
            return ES_ERR_FORMAT;
        if (v->word[id].n && v->word[id].n == n && memcmp(v->word[id].s, name, n) == 0)
            continue; /* added as well */
        if (v->word[id].n)
            return es_vocab_fail(v, id, "shares its id with another");
        rc = es_vocab_word(v, id, name, n, v->t->characters && fallback && is_byte(name, n) ? ES_TOKEN_BYTE : ES_TOKEN_NORMAL);
        if (rc != ES_OK)
            return rc;
    }
    const char *unknown = str(model, "unk_token");
    v->t->unknown = unknown ? es_vocab_find(v, unknown, strlen(unknown)) : -1;
    return es_vocab_decode(v);
}

static int add_merge(source *s, es_vocab *v, size_t i, const json_t *m)
{
    const json_t *a = json_array_get(m, 0), *b = json_array_get(m, 1);
    if (json_array_size(m) == 2 && json_is_string(a) && json_is_string(b))
        return es_vocab_merge(v, i, json_string_value(a), json_string_length(a), json_string_value(b), json_string_length(b));
    const char *both = json_string_value(m), *space = both ? strchr(both, ' ') : NULL;
    if (!space || strchr(space + 1, ' '))
        return es_fail(s->err, ES_ERR_FORMAT, "%s: merge %zu ('%.60s') is not two tokens", s->path, i, both ? both : "");
    return es_vocab_merge(v, i, both, (size_t)(space - both), space + 1, strlen(space + 1));
}

static int add_merges(source *s, es_vocab *v)
{
    const json_t *list = json_object_get(json_object_get(s->root, "model"), "merges");
    if (!json_is_array(list))
        return es_fail(s->err, ES_ERR_FORMAT, "%s: \"merges\" is missing", s->path);
    int rc = es_vocab_merges(v, json_array_size(list));
    for (size_t i = 0; rc == ES_OK && i < json_array_size(list); i++)
        rc = add_merge(s, v, i, json_array_get(list, i));
    return rc;
}

/* ---- beginnings and ends ---- */

/* The id of a token named in tokenizer_config.json, as a string or as an object with its content; -1: none. */
static int32_t named(const source *s, const es_vocab *v, const char *key)
{
    const json_t *o = json_object_get(s->config, key);
    const char *name = json_is_object(o) ? str(o, "content") : json_string_value(o);
    return name ? es_vocab_find(v, name, strlen(name)) : -1;
}

/* The token that a post-processor puts before a text, -1: none. */
static int32_t put_first(const es_vocab *v, const json_t *o)
{
    const json_t *list = json_object_get(o, "processors"), *single = json_object_get(o, "single");
    int32_t id = -1;
    for (size_t i = 0; id < 0 && i < json_array_size(list); i++)
        id = put_first(v, json_array_get(list, i));
    const char *name = str(json_object_get(json_array_get(single, 0), "SpecialToken"), "id");
    return id < 0 && name ? es_vocab_find(v, name, strlen(name)) : id;
}

static int add_end(const source *s, es_vocab *v, const json_t *value, const char *file)
{
    json_int_t id = json_integer_value(value);
    if (!json_is_integer(value) || id < 0 || id >= v->t->n_vocab)
        return es_fail(s->err, ES_ERR_FORMAT, "%s/%s: eos_token_id is not a token's id", s->folder, file);
    v->t->ends[id] = 1;
    if (v->t->eos < 0)
        v->t->eos = (int32_t)id;
    return ES_OK;
}

/* eos_token_id: one, or a list, the first of which counts as eos. */
static int add_ends_of(const source *s, es_vocab *v, const char *file)
{
    json_t *root;
    int rc = open_beside(&root, s->folder, file, s->err);
    const json_t *eos = json_object_get(root, "eos_token_id"), *bos = json_object_get(root, "bos_token_id");
    if (rc == ES_OK && json_is_integer(eos))
        rc = add_end(s, v, eos, file);
    else if (rc == ES_OK && eos && !json_is_array(eos) && !json_is_null(eos))
        rc = add_end(s, v, eos, file); /* says what is wrong */
    for (size_t i = 0; rc == ES_OK && i < json_array_size(eos); i++)
        rc = add_end(s, v, json_array_get(eos, i), file);
    if (rc == ES_OK && v->t->bos < 0 && json_is_integer(bos) && json_integer_value(bos) >= 0 && json_integer_value(bos) < v->t->n_vocab)
        v->t->bos = (int32_t)json_integer_value(bos);
    json_decref(root);
    return rc;
}

static int add_ends(source *s, es_vocab *v)
{
    es_tokenizer *t = v->t;
    const json_t *add = json_object_get(s->config, "add_bos_token");
    int32_t first = put_first(v, json_object_get(s->root, "post_processor"));
    t->bos = first >= 0 ? first : named(s, v, "bos_token");
    t->eos = named(s, v, "eos_token");
    int rc = add_ends_of(s, v, "generation_config.json");
    rc = rc ? rc : add_ends_of(s, v, "config.json");
    t->bos_first = t->bos >= 0 && (json_is_boolean(add) ? json_is_true(add) : first >= 0);
    return rc;
}

/* ---- the chat template ---- */

static int read_chat(source *s, es_tokenizer *t)
{
    char path[PATH];
    es_buf file = {0};
    const json_t *inside = json_object_get(s->config, "chat_template"), *one;
    const char *template = json_string_value(inside);
    size_t i, n = json_string_length(inside);
    json_array_foreach(inside, i, one) /* several, by name */
        if (equals(one, "name", "default") && (template = str(one, "template")))
            n = strlen(template);
    snprintf(path, sizeof path, "%s/chat_template.jinja", s->folder);
    int rc = access(path, F_OK) == 0 ? es_file_read(&file, path, TEMPLATE_LIMIT, s->err) : ES_OK;
    if (file.len) {
        template = file.data;
        n = file.len;
    }
    rc = rc ? rc : es_chat_open(&t->chat, t, template, n, s->folder, s->err);
    es_buf_free(&file);
    return rc;
}

int es_tokenizer_open_folder(es_tokenizer **out, const char *folder, int n_vocab, es_error *err)
{
    source s = {.folder = folder, .err = err};
    es_vocab v;
    *out = NULL;
    snprintf(s.path, sizeof s.path, "%s/tokenizer.json", folder);
    if (access(s.path, F_OK) != 0)
        return ES_OK;
    int rc = es_vocab_open(&v, n_vocab, s.path, "\"vocab\"", "\"merges\"", err);
    rc = rc ? rc : es_json_file(&s.root, s.path, err);
    rc = rc ? rc : open_beside(&s.config, folder, "tokenizer_config.json", err);
    rc = rc ? rc : read_kind(&s, v.t);
    rc = rc ? rc : add_tokens(&s, &v);
    rc = rc ? rc : add_merges(&s, &v);
    rc = rc ? rc : add_ends(&s, &v);
    rc = rc ? rc : es_vocab_finish(&v, out);
    es_vocab_close(&v);
    rc = rc ? rc : read_chat(&s, *out);
    json_decref(s.root);
    json_decref(s.config);
    if (rc) {
        es_tokenizer_free(*out);
        *out = NULL;
    }
    return rc;
}
