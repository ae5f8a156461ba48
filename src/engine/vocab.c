#include "vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { MAX_TOKEN = 65535 }; /* bytes of a token */

static const char SPACE_MARK[] = "\xe2\x96\x81"; /* U+2581, SentencePiece's way to write a space */

static int no_memory(const es_vocab *v)
{
    return es_fail(v->err, ES_ERR_MEMORY, "%s: not enough memory for its vocabulary", v->path);
}

int es_vocab_open(es_vocab *v, int n_vocab, const char *path, const char *tokens_name, const char *merges_name, es_error *err)
{
    *v = (es_vocab){.path = path, .tokens_name = tokens_name, .merges_name = merges_name, .err = err};
    es_tokenizer *t = v->t = es_calloc(1, sizeof *t);
    if (!t)
        return no_memory(v);
    size_t n = (size_t)n_vocab, size = 8;
    while (size < 2 * n)
        size *= 2;
    v->mask = size - 1;
    v->slot = es_calloc(size, sizeof *v->slot);
    v->word = es_calloc(n, sizeof *v->word);
    t->n_vocab = n_vocab;
    t->bos = t->eos = t->unknown = -1;
    t->at = es_calloc(n + 1, sizeof *t->at);
    t->type = es_calloc(n, 1);
    t->ends = es_calloc(n, 1);
    memset(t->byte_id, 0xff, sizeof t->byte_id);
    return v->slot && v->word && t->at && t->type && t->ends ? ES_OK : no_memory(v);
}

void es_vocab_close(es_vocab *v)
{
    es_tokenizer_free(v->t);
    free(v->slot);
    free(v->word);
    free(v->both);
    *v = (es_vocab){0};
}

int es_vocab_fail(const es_vocab *v, int id, const char *what)
{
    const es_word *w = &v->word[id];
    return es_fail(v->err, ES_ERR_FORMAT, "%s: %s: token %d ('%.*s') %s", v->path, v->tokens_name, id, (int)(w->n < 40 ? w->n : 40), w->n ? w->s : "", what);
}

/* ---- words ---- */

static size_t word_slot(const es_vocab *v, const char *s, size_t n)
{
    size_t at = es_tokenizer_hash(s, n) & v->mask;
    for (; v->slot[at]; at = (at + 1) & v->mask) {
        const es_word *w = &v->word[v->slot[at] - 1];
        if (w->n == n && memcmp(w->s, s, n) == 0)
            break;
    }
    return at;
}

int32_t es_vocab_find(const es_vocab *v, const char *s, size_t n)
{
    return (int32_t)v->slot[word_slot(v, s, n)] - 1;
}

int es_vocab_word(es_vocab *v, int id, const char *s, size_t n, int type)
{
    es_word *w = &v->word[id];
    *w = (es_word){s, (uint32_t)(n > MAX_TOKEN ? MAX_TOKEN : n)};
    if (type < ES_TOKEN_NORMAL || type > ES_TOKEN_BYTE)
        return es_vocab_fail(v, id, "has a type that is not known");
    v->t->type[id] = (uint8_t)type;
    if (n == 0)
        return es_vocab_fail(v, id, "is empty");
    if (n > MAX_TOKEN)
        return es_vocab_fail(v, id, "is over 65,535 bytes long");
    size_t slot = word_slot(v, s, n);
    if (v->slot[slot])
        return es_vocab_fail(v, id, "occurs twice");
    v->slot[slot] = (uint32_t)id + 1;
    return ES_OK;
}

/* ---- what a token stands for ---- */

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

/* Of bytes: GPT-2's alphabet read back. A token with characters outside the alphabet stands for itself, as the peers have it. */
static size_t decode_alphabet(const es_word *w, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < w->n;) {
        utf8proc_int32_t cp;
        i += (size_t)utf8proc_iterate((const utf8proc_uint8_t *)w->s + i, (utf8proc_ssize_t)(w->n - i), &cp); /* valid: checked before */
        int b = alphabet_byte(cp);
        if (b < 0) {
            memcpy(out, w->s, w->n);
            return w->n;
        }
        out[n++] = (char)b;
    }
    return n;
}

/* Of characters: the mark is a space. */
static size_t decode_marks(const es_word *w, char *out)
{
    size_t n = 0, mark = strlen(SPACE_MARK);
    for (size_t i = 0; i < w->n;) {
        bool space = w->n - i >= mark && memcmp(w->s + i, SPACE_MARK, mark) == 0;
        out[n++] = space ? ' ' : w->s[i];
        i += space ? mark : 1;
    }
    return n;
}

static int byte_named(const es_word *w)
{
    char hex[3] = {0};
    unsigned b;
    if (w->n == 6 && memcmp(w->s, "<0x", 3) == 0 && w->s[5] == '>')
        memcpy(hex, w->s + 3, 2);
    return strspn(hex, "0123456789abcdefABCDEF") == 2 && sscanf(hex, "%2x", &b) == 1 ? (int)b : -1;
}

static int check_utf8(const es_vocab *v, int id)
{
    const es_word *w = &v->word[id];
    if (memchr(w->s, 0, w->n))
        return es_vocab_fail(v, id, "holds a NUL");
    return es_utf8_whole(w->s, w->n) == w->n ? ES_OK : es_vocab_fail(v, id, "is not UTF-8");
}

/* Writes what token id stands for behind the tokens before it. */
static int decode_word(es_vocab *v, int id)
{
    es_tokenizer *t = v->t;
    const es_word *w = &v->word[id];
    char *out = t->bytes + t->at[id];
    size_t n = w->n;
    int b = -1, rc = n ? check_utf8(v, id) : ES_OK;
    if (rc != ES_OK)
        return rc;
    if (t->type[id] == ES_TOKEN_BYTE) {
        if ((b = byte_named(w)) < 0)
            return es_vocab_fail(v, id, "should be a byte written as <0x00> to <0xFF>");
        *out = (char)b;
        n = 1;
    } else if (t->type[id] != ES_TOKEN_NORMAL && t->type[id] != ES_TOKEN_UNUSED) {
        memcpy(out, w->s, n); /* its name */
    } else if (t->characters) {
        n = decode_marks(w, out);
    } else {
        n = decode_alphabet(w, out);
        if (n == 1 && t->type[id] == ES_TOKEN_NORMAL)
            b = (unsigned char)*out;
    }
    if (b >= 0)
        t->byte_id[b] = id;
    t->at[id + 1] = t->at[id] + (uint32_t)n;
    return ES_OK;
}

/* Whether text may become this token: not by its name if it is control, and not if it is written with a space as it is, which in a vocabulary of
 * characters only a user-defined token matched before has. */
static bool is_text(const es_vocab *v, int id)
{
    const es_tokenizer *t = v->t;
    int type = t->type[id];
    return v->word[id].n && (type == ES_TOKEN_NORMAL || type == ES_TOKEN_USER || type == ES_TOKEN_UNUSED) &&
           !(t->characters && memchr(v->word[id].s, ' ', v->word[id].n));
}

static int table_of_text(es_vocab *v)
{
    es_tokenizer *t = v->t;
    t->text_mask = v->mask;
    t->text_slot = es_calloc(t->text_mask + 1, sizeof *t->text_slot);
    t->neighbours = t->characters ? es_calloc(65536 / 8, 1) : NULL;
    if (!t->text_slot || (t->characters && !t->neighbours))
        return no_memory(v);
    for (int id = 0; id < t->n_vocab; id++) {
        const unsigned char *s = (const unsigned char *)t->bytes + t->at[id];
        uint32_t n = t->at[id + 1] - t->at[id];
        if (!is_text(v, id) || es_tokenizer_text(t, (const char *)s, n) >= 0)
            continue;
        size_t at = es_tokenizer_hash((const char *)s, n) & t->text_mask;
        while (t->text_slot[at])
            at = (at + 1) & t->text_mask;
        t->text_slot[at] = (uint32_t)id + 1;
        t->longest = n > t->longest ? n : t->longest;
        for (uint32_t i = 1; t->neighbours && i < n; i++)
            t->neighbours[(s[i - 1] * 256u + s[i]) / 8] |= (uint8_t)(1 << s[i] % 8);
    }
    return ES_OK;
}

int es_vocab_decode(es_vocab *v)
{
    es_tokenizer *t = v->t;
    size_t total = 0;
    int rc, known = 0;
    for (int id = 0; id < t->n_vocab; id++) {
        total += v->word[id].n;
        if (!v->word[id].n)
            t->type[id] = ES_TOKEN_UNUSED;
    }
    if (total > UINT32_MAX)
        return es_fail(v->err, ES_ERR_FORMAT, "%s: %s is over 4 GB", v->path, v->tokens_name);
    if (!(t->bytes = malloc(total + 1))) /* decoding never lengthens */
        return no_memory(v);
    for (int id = 0; id < t->n_vocab; id++)
        if ((rc = decode_word(v, id)) != ES_OK)
            return rc;
    if ((t->characters || t->whole_first) && (rc = table_of_text(v)) != ES_OK)
        return rc;
    for (int b = 0; b < 256; b++)
        known += t->byte_id[b] >= 0;
    if (known == 0 && !t->characters)
        return es_fail(v->err, ES_ERR_FORMAT, "%s: %s has no token for any single byte", v->path, v->tokens_name);
    return ES_OK;
}

/* ---- what merges first ---- */

int es_vocab_scores(es_vocab *v, const float *score)
{
    es_tokenizer *t = v->t;
    t->rank = es_calloc((size_t)t->n_vocab, sizeof *t->rank);
    if (!t->rank)
        return no_memory(v);
    for (int id = 0; id < t->n_vocab; id++) {
        float s = score[id] + 0.0f; /* no -0: it would lose to 0 */
        uint32_t bits;
        if (s != s)
            return es_vocab_fail(v, id, "has a score that is not a number");
        memcpy(&bits, &s, 4);
        t->rank[id] = bits >> 31 ? bits : 0x7fffffff - bits; /* IEEE 754 orders by its bits; never ES_NO_RANK, which would be a NaN */
    }
    return ES_OK;
}

int es_vocab_merges(es_vocab *v, size_t n)
{
    es_tokenizer *t = v->t;
    if (n >= ES_NO_RANK)
        return es_fail(v->err, ES_ERR_FORMAT, "%s: %s has %zu entries", v->path, v->merges_name, n);
    size_t size = 8;
    while (size < 2 * n)
        size *= 2;
    t->merge_mask = size - 1;
    t->merges = es_calloc(size, sizeof *t->merges);
    v->both = malloc(2 * MAX_TOKEN);
    if (!t->merges || !v->both)
        return no_memory(v);
    for (size_t i = 0; i < size; i++)
        t->merges[i] = (es_merge){-1, -1, -1, ES_NO_RANK};
    return ES_OK;
}

int es_vocab_merge(es_vocab *v, size_t i, const char *left, size_t n_left, const char *right, size_t n_right)
{
    es_tokenizer *t = v->t;
    int32_t l = n_left ? es_vocab_find(v, left, n_left) : -1, r = n_right ? es_vocab_find(v, right, n_right) : -1, made = -1;
    if (l >= 0 && r >= 0) { /* both at most MAX_TOKEN */
        memcpy(v->both, left, n_left);
        memcpy(v->both + n_left, right, n_right);
        made = es_vocab_find(v, v->both, n_left + n_right);
    }
    if (made < 0)
        return es_fail(v->err, ES_ERR_FORMAT, "%s: %s: merge %zu ('%.*s %.*s') %s a token that is not in the vocabulary", v->path, v->merges_name, i,
                       (int)(n_left < 30 ? n_left : 30), left, (int)(n_right < 30 ? n_right : 30), right, l < 0 || r < 0 ? "joins" : "makes");
    es_merge *m = &t->merges[es_tokenizer_merge(t, l, r) - t->merges];
    if (m->rank == ES_NO_RANK)
        *m = (es_merge){l, r, made, (uint32_t)i};
    return ES_OK;
}

/* ---- special tokens ---- */

static bool is_special(const es_tokenizer *t, int32_t id)
{
    return (t->type[id] == ES_TOKEN_CONTROL || t->type[id] == ES_TOKEN_USER || t->type[id] == ES_TOKEN_UNKNOWN) && t->at[id + 1] > t->at[id];
}

static int by_first_then_longer(const void *a, const void *b, void *user)
{
    const es_tokenizer *t = user;
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    uint32_t nx = t->at[x + 1] - t->at[x], ny = t->at[y + 1] - t->at[y];
    int cx = (unsigned char)t->bytes[t->at[x]], cy = (unsigned char)t->bytes[t->at[y]];
    return cx != cy ? cx - cy : nx != ny ? (nx < ny) - (nx > ny) : (x > y) - (x < y);
}

static int table_of_special(es_vocab *v)
{
    es_tokenizer *t = v->t;
    size_t n = 0;
    for (int i = 0; i < t->n_vocab; i++)
        n += is_special(t, i);
    t->special = es_calloc(n, sizeof *t->special);
    if (!t->special)
        return no_memory(v);
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

int es_vocab_finish(es_vocab *v, es_tokenizer **out)
{
    /* end a turn whatever the file's keys say: converters often name only one of them */
    static const char *const names[] = {"<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>"};
    es_tokenizer *t = v->t;
    int rc = table_of_special(v);
    if (rc != ES_OK)
        return rc;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int32_t k = es_tokenizer_special(t, names[i]);
        if (k >= 0 && t->type[k] == ES_TOKEN_CONTROL)
            t->ends[k] = 1;
    }
    if (t->eos >= 0)
        t->ends[t->eos] = 1;
    *out = t;
    v->t = NULL;
    return ES_OK;
}
