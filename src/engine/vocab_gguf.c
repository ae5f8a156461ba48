/* A vocabulary from a GGUF's metadata. */
#include "vocab.h"

#include <stdlib.h>
#include <string.h>

static int add_tokens(es_vocab *v, const es_gguf *g, es_error *err)
{
    es_tokenizer *t = v->t;
    const es_gguf_kv *tokens, *kv = es_gguf_find(g, "tokenizer.ggml.token_type");
    int rc = es_gguf_array(g, "tokenizer.ggml.token_type", t->characters, kv && kv->type == ES_GGUF_U32 ? ES_GGUF_U32 : ES_GGUF_I32, &kv, err);
    rc = rc ? rc : es_gguf_array(g, "tokenizer.ggml.tokens", true, ES_GGUF_STRING, &tokens, err);
    if (rc != ES_OK)
        return rc;
    if (tokens->count != (size_t)t->n_vocab)
        return es_fail(err, ES_ERR_FORMAT, "%s: tokenizer.ggml.tokens has %zu tokens and token_embd.weight %d rows", v->path, tokens->count, t->n_vocab);
    if (kv && kv->count != (size_t)t->n_vocab)
        return es_fail(err, ES_ERR_FORMAT, "%s: tokenizer.ggml.token_type has %zu entries for %d tokens", v->path, kv->count, t->n_vocab);
    const uint8_t *p = tokens->data;
    for (int i = 0; i < t->n_vocab; i++) {
        int32_t type = ES_TOKEN_NORMAL;
        size_t n;
        if (kv)
            memcpy(&type, kv->data + 4 * (size_t)i, 4);
        if (type < 0 || type > ES_TOKEN_BYTE)
            return es_fail(err, ES_ERR_FORMAT, "%s: tokenizer.ggml.token_type: token %d has the unknown type %d", v->path, i, type);
        const char *s = es_gguf_next_str(&p, &n);
        if ((rc = es_vocab_word(v, i, s, n, type ? type : ES_TOKEN_NORMAL)) != ES_OK)
            return rc;
    }
    return es_vocab_decode(v);
}

static int add_scores(es_vocab *v, const es_gguf *g, es_error *err)
{
    es_tokenizer *t = v->t;
    const es_gguf_kv *kv; /* a tokenizer of bytes has no use for scores, but wrong ones show that the file is not what it says */
    int rc = es_gguf_array(g, "tokenizer.ggml.scores", t->characters, ES_GGUF_F32, &kv, err);
    if (rc != ES_OK || !kv)
        return rc;
    if (kv->count != (size_t)t->n_vocab)
        return es_fail(err, ES_ERR_FORMAT, "%s: tokenizer.ggml.scores has %zu entries for %d tokens", v->path, kv->count, t->n_vocab);
    if (!t->characters)
        return ES_OK;
    float *score = malloc(4 * kv->count + 1); /* those in the map need not be aligned */
    if (!score)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory for its vocabulary", v->path);
    memcpy(score, kv->data, 4 * kv->count);
    rc = es_vocab_scores(v, score);
    free(score);
    return rc;
}

static int add_merges(es_vocab *v, const es_gguf *g, es_error *err)
{
    const es_gguf_kv *kv;
    int rc = es_gguf_array(g, "tokenizer.ggml.merges", true, ES_GGUF_STRING, &kv, err);
    if (rc == ES_OK)
        rc = es_vocab_merges(v, kv->count);
    const uint8_t *p = rc == ES_OK ? kv->data : NULL;
    for (size_t i = 0; rc == ES_OK && i < kv->count; i++) {
        size_t n;
        const char *s = es_gguf_next_str(&p, &n), *space = n > 2 ? memchr(s + 1, ' ', n - 1) : NULL;
        if (!space || space + 1 == s + n || memchr(space + 1, ' ', (size_t)(s + n - space - 1)))
            return es_fail(err, ES_ERR_FORMAT, "%s: tokenizer.ggml.merges: merge %zu ('%.*s') is not two tokens with a space between", v->path, i,
                           (int)(n < 60 ? n : 60), s);
        rc = es_vocab_merge(v, i, s, (size_t)(space - s), space + 1, (size_t)(s + n - space - 1));
    }
    return rc;
}

static int add_ends(es_tokenizer *t, const es_gguf *g, es_error *err)
{
    static const char *const keys[] = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id", "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id"};
    int64_t id[6];
    for (int i = 0; i < 6; i++) {
        id[i] = -1;
        int rc = es_gguf_int(g, keys[i], false, 0, t->n_vocab - 1, &id[i], err);
        if (rc != ES_OK)
            return rc;
        if (i >= 1 && i <= 3 && id[i] >= 0)
            t->ends[id[i]] = 1;
    }
    t->bos = (int32_t)id[0];
    t->eos = (int32_t)id[1];
    t->unknown = (int32_t)id[4];
    bool first = t->characters || t->whole_first; /* when the file does not say: SentencePiece's and Llama 3's do */
    int rc = es_gguf_bool(g, "tokenizer.ggml.add_bos_token", false, &first, err);
    t->bos_first = first && t->bos >= 0;
    return rc;
}

static int read_kind(es_tokenizer *t, const es_gguf *g, es_error *err)
{
    const char *s = NULL, *path = g->map.path;
    size_t n = 0;
    int rc = es_gguf_str(g, "tokenizer.ggml.model", true, &s, &n, err);
    if (rc != ES_OK)
        return rc;
    t->characters = n == 5 && memcmp(s, "llama", 5) == 0;
    if (!t->characters && (n != 4 || memcmp(s, "gpt2", 4) != 0))
        return es_fail(err, ES_ERR_FORMAT, "%s: has a tokenizer of kind '%.*s'; known are BPE over bytes ('gpt2') and over characters ('llama')", path,
                       (int)(n < 40 ? n : 40), s);
    bool space = true;
    rc = es_gguf_bool(g, "tokenizer.ggml.add_space_prefix", false, &space, err);
    t->prefix = space ? ES_PREFIX_ALWAYS : ES_PREFIX_NEVER;
    s = "default";
    n = 7;
    rc = rc ? rc : es_gguf_str(g, "tokenizer.ggml.pre", false, &s, &n, err);
    if (rc != ES_OK || t->characters)
        return rc;
    if (!es_pretoken_named(&t->pre, s, n))
        return es_fail(err, ES_ERR_FORMAT, "%s: cuts text by the pattern '%.*s' (tokenizer.ggml.pre), which is not known here", path, (int)(n < 40 ? n : 40), s);
    t->whole_first = t->pre.whole_first;
    t->nfc = t->pre.nfc;
    return ES_OK;
}

static int read_chat(es_tokenizer *t, const es_gguf *g, es_error *err)
{
    const char *s = NULL;
    size_t n = 0;
    int rc = es_gguf_str(g, "tokenizer.chat_template", false, &s, &n, err);
    return rc ? rc : es_chat_open(&t->chat, t, s, n, g->map.path, err);
}

int es_tokenizer_open(es_tokenizer **out, const es_gguf *g, int n_vocab, es_error *err)
{
    es_vocab v;
    *out = NULL;
    int rc = es_vocab_open(&v, n_vocab, g->map.path, "tokenizer.ggml.tokens", "tokenizer.ggml.merges", err);
    rc = rc ? rc : read_kind(v.t, g, err);
    rc = rc ? rc : add_tokens(&v, g, err);
    rc = rc ? rc : add_scores(&v, g, err);
    rc = rc || v.t->characters ? rc : add_merges(&v, g, err);
    rc = rc ? rc : add_ends(v.t, g, err);
    rc = rc ? rc : es_vocab_finish(&v, out);
    es_vocab_close(&v);
    rc = rc ? rc : read_chat(*out, g, err);
    if (rc) {
        es_tokenizer_free(*out);
        *out = NULL;
    }
    return rc;
}
