/* Byte-level BPE: text is cut into pieces (pretoken.c), each byte of a piece becomes its token, and the neighbouring pair of the
 * lowest rank is merged until no pair has one (Sennrich et al. 2016; GPT-2's byte alphabet). */
#include "tokenizer.h"
#include "model.h"
#include "pretoken.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { NORMAL = 1, UNKNOWN, CONTROL, USER, UNUSED, BYTE }; /* token_type, as in GGUF */
enum { MAX_TOKEN = 65535 }; /* bytes of a token */
enum { SHORT_PIECE = 40 };  /* up to this many symbols a plain scan for the best pair beats a heap */
#define NO_RANK UINT32_MAX

typedef struct merge { /* an entry of the hash table of pairs; rank NO_RANK: free */
    int32_t left, right, made;
    uint32_t rank;
} merge;

struct es_tokenizer {
    int n_vocab, more_holders; /* besides the first */
    es_pretoken pre;
    char *bytes;   /* what the tokens stand for, one after another */
    uint32_t *at;  /* [n_vocab + 1] where each begins */
    uint8_t *type; /* [n_vocab] */
    uint8_t *ends; /* [n_vocab] */
    int32_t byte_id[256]; /* -1: the vocabulary has no token for that byte */
    merge *merges;
    uint64_t merge_mask;
    int32_t *special; /* control, unknown and user-defined tokens by first byte, the longer first */
    int special_at[257];
    int32_t bos, eos;
};

/* ---- loading ---- */

typedef struct word { /* a token as the file writes it */
    const char *s;
    uint32_t n;
} word;

typedef struct loader {
    es_tokenizer *t;
    const es_gguf *g;
    es_error *err;
    word *word;
    uint32_t *slot; /* hash table of word: index + 1 */
    size_t mask;
} loader;

static uint64_t mix(uint64_t h)
{
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93u;
    return h ^ h >> 32;
}

static uint64_t hash_word(const char *s, size_t n)
{
    uint64_t h = n, w;
    for (; n >= 8; s += 8, n -= 8) {
        memcpy(&w, s, 8);
        h = mix(h ^ w);
    }
    w = 0;
    for (size_t i = 0; i < n; i++)
        w |= (uint64_t)(unsigned char)s[i] << 8 * i;
    return mix(h ^ w);
}

/* Id of a token as written, -1 when there is none; *slot is where it would go. */
static int32_t find_word(const loader *l, const char *s, size_t n, size_t *slot)
{
    size_t at = hash_word(s, n) & l->mask;
    for (; l->slot[at]; at = (at + 1) & l->mask) {
        const word *w = &l->word[l->slot[at] - 1];
        if (w->n == n && memcmp(w->s, s, n) == 0)
            return (int32_t)(l->slot[at] - 1);
    }
    *slot = at;
    return -1;
}

static int fail_token(loader *l, int id, const char *what)
{
    const word *w = &l->word[id];
    return es_fail(l->err, ES_ERR_FORMAT, "%s: tokenizer.ggml.tokens: token %d ('%.*s') %s", l->g->map.path, id,
                   (int)(w->n < 40 ? w->n : 40), w->s, what);
}

/* The byte that code point cp of GPT-2's alphabet stands for, -1 when it is not in it: printable Latin-1 stands for itself, the 68
 * others follow from U+0100 on in order. */
static int alphabet_byte(int32_t cp)
{
    static const struct {
        int from, to;
    } others[] = {{0, 32}, {127, 160}, {173, 173}};
    if ((cp >= 33 && cp <= 126) || (cp >= 161 && cp <= 172) || (cp >= 174 && cp <= 255))
        return cp;
    int k = cp - 256;
    for (size_t i = 0; k >= 0 && i < sizeof others / sizeof *others; i++) {
        int n = others[i].to - others[i].from + 1;
        if (k < n)
            return others[i].from + k;
        k -= n;
    }
    return -1;
}

/* Writes what token id stands for behind the tokens before it. A normal token with characters outside the alphabet stands for
 * itself, as the peers have it. */
static int decode_word(loader *l, int id)
{
    es_tokenizer *t = l->t;
    const word *w = &l->word[id];
    char *out = t->bytes + t->at[id];
    size_t n = 0;
    bool raw = t->type[id] != NORMAL && t->type[id] != UNUSED;
    for (size_t i = 0; i < w->n;) {
        utf8proc_int32_t cp = (unsigned char)w->s[i];
        utf8proc_ssize_t step = 1;
        if (cp >= 0x80)
            step = utf8proc_iterate((const utf8proc_uint8_t *)w->s + i, (utf8proc_ssize_t)(w->n - i), &cp);
        if (step <= 0)
            return fail_token(l, id, "is not UTF-8");
        if (cp == 0)
            return fail_token(l, id, "holds a NUL");
        int b = raw ? -1 : alphabet_byte(cp);
        if (b < 0)
            raw = true;
        else
            out[n++] = (char)b;
        i += (size_t)step;
    }
    if (t->type[id] == BYTE) {
        unsigned b;
        char hex[3] = {0};
        if (w->n == 6 && memcmp(w->s, "<0x", 3) == 0 && w->s[5] == '>')
            memcpy(hex, w->s + 3, 2);
        if (strspn(hex, "0123456789abcdefABCDEF") != 2 || sscanf(hex, "%2x", &b) != 1)
            return fail_token(l, id, "should be a byte written as <0x00> to <0xFF>");
        out[0] = (char)b;
        n = 1;
    } else if (raw) {
        memcpy(out, w->s, w->n);
        n = w->n;
    } else if (n == 1 && t->type[id] == NORMAL) {
        t->byte_id[(unsigned char)out[0]] = id;
    }
    t->at[id + 1] = t->at[id] + (uint32_t)n;
    return ES_OK;
}

static int load_types(loader *l)
{
    es_tokenizer *t = l->t;
    const es_gguf_kv *kv = es_gguf_find(l->g, "tokenizer.ggml.token_type"), *scores;
    int rc = es_gguf_array(l->g, "tokenizer.ggml.token_type", false, kv && kv->type == ES_GGUF_U32 ? ES_GGUF_U32 : ES_GGUF_I32, &kv,
                           l->err);
    if (rc == ES_OK) /* this kind of tokenizer has no use for scores, but wrong ones show that the file is not what it says */
        rc = es_gguf_array(l->g, "tokenizer.ggml.scores", false, ES_GGUF_F32, &scores, l->err);
    if (rc != ES_OK)
        return rc;
    if ((kv && kv->count != (size_t)t->n_vocab) || (scores && scores->count != (size_t)t->n_vocab))
        return es_fail(l->err, ES_ERR_FORMAT, "%s: tokenizer.ggml.%s has %zu entries for %d tokens", l->g->map.path,
                       kv && kv->count != (size_t)t->n_vocab ? "token_type" : "scores",
                       kv && kv->count != (size_t)t->n_vocab ? kv->count : scores->count, t->n_vocab);
    for (int i = 0; i < t->n_vocab; i++) {
        uint32_t type = NORMAL;
        if (kv)
            memcpy(&type, kv->data + 4 * (size_t)i, 4);
        if (type > BYTE)
            return es_fail(l->err, ES_ERR_FORMAT, "%s: tokenizer.ggml.token_type: token %d has the unknown type %u", l->g->map.path, i,
                           type);
        t->type[i] = type == 0 ? NORMAL : (uint8_t)type;
    }
    return ES_OK;
}

static int load_words(loader *l, const es_gguf_kv *tokens)
{
    es_tokenizer *t = l->t;
    size_t size = 8, total = 0;
    while (size < 2 * (size_t)t->n_vocab)
        size *= 2;
    l->mask = size - 1;
    l->slot = es_calloc(size, sizeof *l->slot);
    l->word = es_calloc((size_t)t->n_vocab, sizeof *l->word);
    t->at = es_calloc((size_t)t->n_vocab + 1, sizeof *t->at);
    t->type = es_calloc((size_t)t->n_vocab, 1);
    t->ends = es_calloc((size_t)t->n_vocab, 1);
    if (!l->slot || !l->word || !t->at || !t->type || !t->ends)
        return es_fail(l->err, ES_ERR_MEMORY, "%s: not enough memory for its vocabulary", l->g->map.path);
    int rc = load_types(l);
    if (rc != ES_OK)
        return rc;
    const uint8_t *p = tokens->data;
    for (int i = 0; i < t->n_vocab; i++) {
        size_t n, slot = 0;
        const char *s = es_gguf_next_str(&p, &n);
        l->word[i] = (word){s, (uint32_t)(n > MAX_TOKEN ? MAX_TOKEN : n)};
        if (n == 0)
            return fail_token(l, i, "is empty");
        if (n > MAX_TOKEN)
            return fail_token(l, i, "is over 65,535 bytes long");
        int32_t twin = find_word(l, s, n, &slot);
        if (twin >= 0)
            return fail_token(l, i, "occurs twice");
        l->slot[slot] = (uint32_t)i + 1;
        total += n;
    }
    if (total > UINT32_MAX)
        return es_fail(l->err, ES_ERR_FORMAT, "%s: tokenizer.ggml.tokens is over 4 GB", l->g->map.path);
    t->bytes = malloc(total + 1); /* decoding never lengthens */
    if (!t->bytes)
        return es_fail(l->err, ES_ERR_MEMORY, "%s: not enough memory for its vocabulary", l->g->map.path);
    int known = 0;
    memset(t->byte_id, 0xff, sizeof t->byte_id);
    for (int i = 0; i < t->n_vocab; i++)
        if ((rc = decode_word(l, i)) != ES_OK)
            return rc;
    for (int b = 0; b < 256; b++)
        known += t->byte_id[b] >= 0;
    if (known == 0)
        return es_fail(l->err, ES_ERR_FORMAT, "%s: tokenizer.ggml.tokens has no token for any single byte", l->g->map.path);
    return ES_OK;
}

static size_t pair_slot(const es_tokenizer *t, int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    return (h >> 32) & t->merge_mask;
}

static const merge *find_merge(const es_tokenizer *t, int32_t left, int32_t right)
{
    const merge *m;
    for (size_t at = pair_slot(t, left, right);; at = (at + 1) & t->merge_mask) {
        m = &t->merges[at];
        if ((m->left == left && m->right == right) || m->rank == NO_RANK)
            return m; /* a free entry is the answer "no such pair": its rank says so */
    }
}

static int fail_merge(loader *l, size_t i, const char *s, size_t n, const char *what)
{
    return es_fail(l->err, ES_ERR_FORMAT, "%s: tokenizer.ggml.merges: merge %zu ('%.*s') %s", l->g->map.path, i,
                   (int)(n < 60 ? n : 60), s, what);
}

static int load_merges(loader *l)
{
    es_tokenizer *t = l->t;
    const es_gguf_kv *kv;
    int rc = es_gguf_array(l->g, "tokenizer.ggml.merges", true, ES_GGUF_STRING, &kv, l->err);
    if (rc != ES_OK)
        return rc;
    if (kv->count >= NO_RANK)
        return es_fail(l->err, ES_ERR_FORMAT, "%s: tokenizer.ggml.merges has %zu entries", l->g->map.path, kv->count);
    size_t size = 8;
    while (size < 2 * kv->count)
        size *= 2;
    t->merge_mask = size - 1;
    t->merges = es_calloc(size, sizeof *t->merges);
    if (!t->merges)
        return es_fail(l->err, ES_ERR_MEMORY, "%s: not enough memory for its vocabulary", l->g->map.path);
    for (size_t i = 0; i < size; i++)
        t->merges[i] = (merge){-1, -1, -1, NO_RANK};
    const uint8_t *p = kv->data;
    char *both = malloc(2 * MAX_TOKEN);
    if (!both)
        return es_fail(l->err, ES_ERR_MEMORY, "%s: not enough memory for its vocabulary", l->g->map.path);
    for (size_t i = 0; i < kv->count && rc == ES_OK; i++) {
        size_t n, slot;
        const char *s = es_gguf_next_str(&p, &n), *space = n > 2 ? memchr(s + 1, ' ', n - 1) : NULL;
        if (!space || n > 2 * MAX_TOKEN || space + 1 == s + n || memchr(space + 1, ' ', (size_t)(s + n - space - 1))) {
            rc = fail_merge(l, i, s, n, "is not two tokens with a space between");
            break;
        }
        size_t n_left = (size_t)(space - s);
        memcpy(both, s, n_left);
        memcpy(both + n_left, space + 1, n - n_left - 1);
        int32_t left = find_word(l, s, n_left, &slot), right = find_word(l, space + 1, n - n_left - 1, &slot);
        int32_t made = left < 0 || right < 0 ? -1 : find_word(l, both, n - 1, &slot);
        if (made < 0) {
            rc = fail_merge(l, i, s, n, left < 0 || right < 0 ? "joins a token that is not in the vocabulary"
                                                              : "makes a token that is not in the vocabulary");
            break;
        }
        merge *m = &t->merges[find_merge(t, left, right) - t->merges];
        if (m->rank == NO_RANK)
            *m = (merge){left, right, made, (uint32_t)i};
    }
    free(both);
    return rc;
}

static bool is_special(const es_tokenizer *t, int32_t id)
{
    return t->type[id] == CONTROL || t->type[id] == USER || t->type[id] == UNKNOWN;
}

static int by_first_then_longer(const void *a, const void *b, void *user)
{
    const es_tokenizer *t = user;
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    uint32_t nx = t->at[x + 1] - t->at[x], ny = t->at[y + 1] - t->at[y];
    int cx = (unsigned char)t->bytes[t->at[x]], cy = (unsigned char)t->bytes[t->at[y]];
    return cx != cy ? cx - cy : nx != ny ? (nx < ny) - (nx > ny) : (x > y) - (x < y);
}

static int load_special(loader *l)
{
    es_tokenizer *t = l->t;
    size_t n = 0;
    for (int i = 0; i < t->n_vocab; i++)
        n += is_special(t, i);
    t->special = es_calloc(n, sizeof *t->special);
    if (!t->special)
        return es_fail(l->err, ES_ERR_MEMORY, "%s: not enough memory for its vocabulary", l->g->map.path);
    n = 0;
    for (int i = 0; i < t->n_vocab; i++)
        if (is_special(t, i))
            t->special[n++] = i;
    qsort_r(t->special, n, sizeof *t->special, by_first_then_longer, t);
    size_t k = 0;
    for (int c = 0; c < 256; c++) {
        t->special_at[c] = (int)k;
        while (k < n && (unsigned char)t->bytes[t->at[t->special[k]]] == c)
            k++;
    }
    t->special_at[256] = (int)k;
    return ES_OK;
}

static int load_ends(loader *l)
{
    static const char *const keys[] = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id", "tokenizer.ggml.unknown_token_id",
                                       "tokenizer.ggml.padding_token_id"};
    /* end a turn whatever the keys say: converters often name only one of them */
    static const char *const names[] = {"<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>"};
    es_tokenizer *t = l->t;
    int64_t id[6];
    for (int i = 0; i < 6; i++) {
        id[i] = -1;
        int rc = es_gguf_int(l->g, keys[i], false, 0, t->n_vocab - 1, &id[i], l->err);
        if (rc != ES_OK)
            return rc;
        if (i >= 1 && i <= 3 && id[i] >= 0)
            t->ends[id[i]] = 1;
    }
    t->bos = (int32_t)id[0];
    t->eos = (int32_t)id[1];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int32_t k = es_tokenizer_special(t, names[i]);
        if (k >= 0 && t->type[k] == CONTROL)
            t->ends[k] = 1;
    }
    return ES_OK;
}

static int load(loader *l)
{
    es_tokenizer *t = l->t;
    const char *s = NULL;
    size_t n = 0;
    const es_gguf_kv *tokens;
    int rc = es_gguf_str(l->g, "tokenizer.ggml.model", true, &s, &n, l->err);
    if (rc != ES_OK)
        return rc;
    if (n != 4 || memcmp(s, "gpt2", 4) != 0)
        return es_fail(l->err, ES_ERR_FORMAT, "%s: has a tokenizer of kind '%.*s'; only byte-level BPE ('gpt2') is supported",
                       l->g->map.path, (int)(n < 40 ? n : 40), s);
    s = "default";
    n = 7;
    if ((rc = es_gguf_str(l->g, "tokenizer.ggml.pre", false, &s, &n, l->err)) != ES_OK)
        return rc;
    if (!es_pretoken_named(&t->pre, s, n))
        return es_fail(l->err, ES_ERR_FORMAT, "%s: cuts text by the pattern '%.*s' (tokenizer.ggml.pre), which is not known here",
                       l->g->map.path, (int)(n < 40 ? n : 40), s);
    if ((rc = es_gguf_array(l->g, "tokenizer.ggml.tokens", true, ES_GGUF_STRING, &tokens, l->err)) != ES_OK)
        return rc;
    if (tokens->count != (size_t)t->n_vocab)
        return es_fail(l->err, ES_ERR_FORMAT, "%s: tokenizer.ggml.tokens has %zu tokens and token_embd.weight %d rows",
                       l->g->map.path, tokens->count, t->n_vocab);
    if ((rc = load_words(l, tokens)) != ES_OK || (rc = load_merges(l)) != ES_OK || (rc = load_special(l)) != ES_OK)
        return rc;
    return load_ends(l);
}

int es_tokenizer_open(es_tokenizer **out, const es_gguf *g, int n_vocab, es_error *err)
{
    *out = NULL;
    es_tokenizer *t = es_calloc(1, sizeof *t);
    if (!t)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory for its vocabulary", g->map.path);
    t->n_vocab = n_vocab;
    loader l = {.t = t, .g = g, .err = err};
    int rc = load(&l);
    free(l.slot);
    free(l.word);
    if (rc == ES_OK)
        *out = t;
    else
        es_tokenizer_free(t);
    return rc;
}

es_tokenizer *es_tokenizer_share(es_tokenizer *t)
{
    if (t)
        __atomic_add_fetch(&t->more_holders, 1, __ATOMIC_RELAXED);
    return t;
}

void es_tokenizer_free(es_tokenizer *t)
{
    if (!t || __atomic_fetch_sub(&t->more_holders, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    free(t->bytes);
    free(t->at);
    free(t->type);
    free(t->ends);
    free(t->merges);
    free(t->special);
    free(t);
}

/* ---- questions about a token ---- */

const char *es_token_bytes(const es_model *m, int32_t id, size_t *n)
{
    const es_tokenizer *t = m->tokenizer;
    if (!t || id < 0 || id >= t->n_vocab) {
        *n = 0;
        return "";
    }
    *n = t->at[id + 1] - t->at[id];
    return t->bytes + t->at[id];
}

bool es_token_is_control(const es_model *m, int32_t id)
{
    const es_tokenizer *t = m->tokenizer;
    return t && id >= 0 && id < t->n_vocab && (t->type[id] == CONTROL || t->type[id] == UNKNOWN);
}

int32_t es_token_bos(const es_model *m)
{
    return m->tokenizer ? m->tokenizer->bos : -1;
}

int32_t es_token_eos(const es_model *m)
{
    return m->tokenizer ? m->tokenizer->eos : -1;
}

bool es_token_ends(const es_model *m, int32_t id)
{
    return m->tokenizer && id >= 0 && id < m->tokenizer->n_vocab && m->tokenizer->ends[id];
}

/* The longest special token at s; control ones only when asked for. -1: none. */
static int32_t special_at(const es_tokenizer *t, const char *s, size_t n, bool control)
{
    unsigned char c = (unsigned char)*s;
    for (int k = t->special_at[c]; k < t->special_at[c + 1]; k++) {
        int32_t id = t->special[k];
        uint32_t len = t->at[id + 1] - t->at[id];
        if (len <= n && memcmp(t->bytes + t->at[id], s, len) == 0 && (control || t->type[id] == USER))
            return id;
    }
    return -1;
}

int32_t es_tokenizer_special(const es_tokenizer *t, const char *name)
{
    size_t n = strlen(name);
    int32_t id = t && n ? special_at(t, name, n, true) : -1; /* the longest that fits is the whole name, if that is one */
    return id >= 0 && t->at[id + 1] - t->at[id] == n ? id : -1;
}

/* ---- text to ids ---- */

int es_ids_add(es_ids *l, int32_t id)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap + l->cap / 2 : 64, bytes;
        int32_t *p = es_mul(cap, sizeof *p, &bytes) ? realloc(l->id, bytes) : NULL;
        if (!p)
            return ES_ERR_MEMORY;
        l->id = p;
        l->cap = cap;
    }
    l->id[l->n++] = id;
    return ES_OK;
}

void es_ids_free(es_ids *l)
{
    free(l->id);
    *l = (es_ids){0};
}

static int add_short(const es_tokenizer *t, const char *s, size_t n, es_ids *out)
{
    int32_t id[SHORT_PIECE];
    const merge *pair[SHORT_PIECE]; /* of symbols i and i + 1 */
    int k = 0;
    for (size_t i = 0; i < n; i++) /* bytes without a token are left out, as the peers do */
        if (t->byte_id[(unsigned char)s[i]] >= 0)
            id[k++] = t->byte_id[(unsigned char)s[i]];
    for (int i = 0; i + 1 < k; i++)
        pair[i] = find_merge(t, id[i], id[i + 1]);
    while (k > 1) {
        int best = 0;
        for (int i = 1; i + 1 < k; i++)
            if (pair[i]->rank < pair[best]->rank)
                best = i;
        if (pair[best]->rank == NO_RANK)
            break;
        id[best] = pair[best]->made;
        k--;
        for (int i = best + 1; i < k; i++) {
            id[i] = id[i + 1];
            pair[i - 1] = pair[i];
        }
        if (best > 0)
            pair[best - 1] = find_merge(t, id[best - 1], id[best]);
        if (best + 1 < k)
            pair[best] = find_merge(t, id[best], id[best + 1]);
    }
    for (int i = 0; i < k; i++)
        if (es_ids_add(out, id[i]) != ES_OK)
            return ES_ERR_MEMORY;
    return ES_OK;
}

typedef struct node { /* a symbol of a long piece, in a list; id -1: merged away */
    int32_t id, prev, next;
} node;

typedef struct candidate {
    uint32_t rank;
    int32_t at, left, right; /* outdated unless node `at` is still left, and right follows it */
} candidate;

typedef struct long_piece {
    node *node;
    candidate *heap; /* the lowest (rank, at) first */
    size_t n_heap, cap_heap;
} long_piece;

static bool before(candidate a, candidate b)
{
    return a.rank < b.rank || (a.rank == b.rank && a.at < b.at);
}

static int push(const es_tokenizer *t, long_piece *p, int32_t at)
{
    if (at < 0 || p->node[at].next < 0)
        return ES_OK;
    candidate c = {.at = at, .left = p->node[at].id, .right = p->node[p->node[at].next].id};
    c.rank = find_merge(t, c.left, c.right)->rank;
    if (c.rank == NO_RANK)
        return ES_OK;
    if (p->n_heap == p->cap_heap) {
        size_t cap = p->cap_heap ? 2 * p->cap_heap : 256, bytes;
        candidate *h = es_mul(cap, sizeof *h, &bytes) ? realloc(p->heap, bytes) : NULL;
        if (!h)
            return ES_ERR_MEMORY;
        p->heap = h;
        p->cap_heap = cap;
    }
    size_t i = p->n_heap++;
    for (; i > 0 && before(c, p->heap[(i - 1) / 2]); i = (i - 1) / 2)
        p->heap[i] = p->heap[(i - 1) / 2];
    p->heap[i] = c;
    return ES_OK;
}

static candidate pop(long_piece *p)
{
    candidate top = p->heap[0], last = p->heap[--p->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < p->n_heap; i = child) {
        if (child + 1 < p->n_heap && before(p->heap[child + 1], p->heap[child]))
            child++;
        if (!before(p->heap[child], last))
            break;
        p->heap[i] = p->heap[child];
    }
    p->heap[i] = last;
    return top;
}

/* n log n in the piece's bytes. */
static int add_long(const es_tokenizer *t, const char *s, size_t n, es_ids *out)
{
    long_piece p = {.node = malloc(n * sizeof(node))};
    int rc = p.node ? ES_OK : ES_ERR_MEMORY;
    int32_t k = 0;
    for (size_t i = 0; rc == ES_OK && i < n; i++)
        if (t->byte_id[(unsigned char)s[i]] >= 0) {
            p.node[k] = (node){t->byte_id[(unsigned char)s[i]], k - 1, k + 1};
            k++;
        }
    if (k > 0)
        p.node[k - 1].next = -1;
    for (int32_t i = 0; i < k && rc == ES_OK; i++)
        rc = push(t, &p, i);
    while (rc == ES_OK && p.n_heap > 0) {
        candidate c = pop(&p);
        node *left = &p.node[c.at];
        if (left->id != c.left || left->next < 0 || p.node[left->next].id != c.right)
            continue;
        node *right = &p.node[left->next];
        left->id = find_merge(t, c.left, c.right)->made;
        right->id = -1;
        left->next = right->next;
        if (left->next >= 0)
            p.node[left->next].prev = c.at;
        rc = push(t, &p, left->prev);
        if (rc == ES_OK)
            rc = push(t, &p, c.at);
    }
    for (int32_t i = k > 0 ? 0 : -1; i >= 0 && rc == ES_OK; i = p.node[i].next)
        rc = es_ids_add(out, p.node[i].id);
    free(p.node);
    free(p.heap);
    return rc;
}

static int add_plain(const es_tokenizer *t, const char *s, size_t n, es_ids *out)
{
    int rc = ES_OK;
    while (n > 0 && rc == ES_OK) {
        size_t piece = es_pretoken_next(&t->pre, s, n);
        rc = piece <= SHORT_PIECE ? add_short(t, s, piece, out) : add_long(t, s, piece, out);
        s += piece;
        n -= piece;
    }
    return rc;
}

int es_tokenize(const es_model *m, const char *text, size_t n, bool special, es_ids *out, es_error *err)
{
    const es_tokenizer *t = m->tokenizer;
    size_t had = out->n, plain = 0, i = 0;
    int rc = ES_OK;
    if (!t)
        return es_fail(err, ES_ERR_MISSING, "%s: has no tokenizer", m->info.path);
    if (n > INT32_MAX)
        return es_fail(err, ES_ERR_LIMIT, "a text of %zu bytes is over the 2 GB that can be tokenized at once", n);
    while (i < n && rc == ES_OK) {
        unsigned char c = (unsigned char)text[i];
        int32_t id = t->special_at[c] < t->special_at[c + 1] ? special_at(t, text + i, n - i, special) : -1;
        if (id < 0) {
            i++;
            continue;
        }
        rc = add_plain(t, text + plain, i - plain, out);
        if (rc == ES_OK)
            rc = es_ids_add(out, id);
        plain = i += t->at[id + 1] - t->at[id];
    }
    if (rc == ES_OK)
        rc = add_plain(t, text + plain, n - plain, out);
    if (rc != ES_OK) {
        out->n = had;
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to tokenize %zu bytes", n);
    }
    return ES_OK;
}
