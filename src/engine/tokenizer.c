/* Text to ids. Special tokens are cut out first; what is between is plain text. Of bytes: plain text is cut into pieces (pretoken.c) and each byte of a
 * piece is a symbol (Sennrich et al. 2016; GPT-2's byte alphabet). Of characters: each character is a symbol and pieces are cut only where no token
 * could join (Kudo and Richardson 2018, "SentencePiece"; a character without a token falls back to its bytes'). Then, in each piece, the two neighbours
 * that merge first are joined until none merge. */
#include "tokenizer.h"
#include "model.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { SHORT_PIECE = 40 }; /* up to this many bytes a plain scan for the best pair beats a heap */

static uint64_t mix(uint64_t h)
{
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93u;
    return h ^ h >> 32;
}

uint64_t es_tokenizer_hash(const char *s, size_t n)
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

int32_t es_tokenizer_text(const es_tokenizer *t, const char *s, size_t n)
{
    if (!t->text_slot || n == 0)
        return -1;
    for (size_t at = es_tokenizer_hash(s, n) & t->text_mask; t->text_slot[at]; at = (at + 1) & t->text_mask) {
        int32_t id = (int32_t)t->text_slot[at] - 1;
        if (t->at[id + 1] - t->at[id] == n && memcmp(t->bytes + t->at[id], s, n) == 0)
            return id;
    }
    return -1;
}

const es_merge *es_tokenizer_merge(const es_tokenizer *t, int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    for (size_t at = (h >> 32) & t->merge_mask;; at = (at + 1) & t->merge_mask) {
        const es_merge *m = &t->merges[at];
        if ((m->left == left && m->right == right) || m->rank == ES_NO_RANK)
            return m; /* a free entry is the answer "no such pair": its rank says so */
    }
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
    free(t->rank);
    free(t->text_slot);
    free(t->neighbours);
    free(t->special);
    es_chat_free(&t->chat);
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
    return t && id >= 0 && id < t->n_vocab && (t->type[id] == ES_TOKEN_CONTROL || t->type[id] == ES_TOKEN_UNKNOWN);
}

int32_t es_token_bos(const es_model *m)
{
    return m->tokenizer ? m->tokenizer->bos : -1;
}

int32_t es_token_first(const es_model *m)
{
    return m->tokenizer && m->tokenizer->bos_first ? m->tokenizer->bos : -1;
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
        if (len <= n && memcmp(t->bytes + t->at[id], s, len) == 0 && (control || t->type[id] == ES_TOKEN_USER))
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

/* ---- symbols of a piece ---- */

typedef struct symbol { /* s[at .. at+n) of the piece; id -1: it has no token of its own */
    int32_t id;
    uint32_t at, n;
} symbol;

typedef struct joint { /* what two neighbours become */
    uint32_t rank; /* ES_NO_RANK: nothing */
    int32_t made;
} joint;

/* The symbol that begins at s[at]. A byte (of bytes) that has no token is left out, as the peers do. */
static symbol symbol_at(const es_tokenizer *t, const char *s, size_t at, size_t n)
{
    if (!t->characters)
        return (symbol){t->byte_id[(unsigned char)s[at]], (uint32_t)at, 1};
    utf8proc_int32_t cp;
    utf8proc_ssize_t len = utf8proc_iterate((const utf8proc_uint8_t *)s + at, n - at < 4 ? (utf8proc_ssize_t)(n - at) : 4, &cp);
    size_t k = len > 0 ? (size_t)len : 1;
    return (symbol){es_tokenizer_text(t, s + at, k), (uint32_t)at, (uint32_t)k};
}

static joint join(const es_tokenizer *t, const char *s, symbol left, symbol right)
{
    if (t->merges) {
        const es_merge *m = left.id < 0 || right.id < 0 ? NULL : es_tokenizer_merge(t, left.id, right.id);
        return m ? (joint){m->rank, m->made} : (joint){ES_NO_RANK, -1};
    }
    int32_t id = left.n + right.n > t->longest ? -1 : es_tokenizer_text(t, s + left.at, left.n + right.n);
    return (joint){id < 0 ? ES_NO_RANK : t->rank[id], id};
}

/* A symbol's id; of one without a token its bytes', or the unknown token. */
static int add_symbol(const es_tokenizer *t, const char *s, symbol y, es_ids *out)
{
    if (y.id >= 0)
        return es_ids_add(out, y.id);
    bool all = true;
    int rc = ES_OK;
    for (uint32_t i = 0; i < y.n; i++)
        all = all && t->byte_id[(unsigned char)s[y.at + i]] >= 0;
    if (!all && t->unknown >= 0 && !(t->fuse_unknown && out->n && out->id[out->n - 1] == t->unknown))
        return es_ids_add(out, t->unknown);
    for (uint32_t i = 0; all && rc == ES_OK && i < y.n; i++)
        rc = es_ids_add(out, t->byte_id[(unsigned char)s[y.at + i]]);
    return rc;
}

static int add_short(const es_tokenizer *t, const char *s, size_t n, es_ids *out)
{
    symbol y[SHORT_PIECE];
    joint pair[SHORT_PIECE]; /* of symbols i and i + 1 */
    int k = 0;
    for (size_t i = 0; i < n; i += y[k].n, k += t->characters || y[k].id >= 0)
        y[k] = symbol_at(t, s, i, n);
    for (int i = 0; i + 1 < k; i++)
        pair[i] = join(t, s, y[i], y[i + 1]);
    while (k > 1) {
        int best = 0;
        for (int i = 1; i + 1 < k; i++)
            if (pair[i].rank < pair[best].rank)
                best = i;
        if (pair[best].rank == ES_NO_RANK)
            break;
        y[best] = (symbol){pair[best].made, y[best].at, y[best].n + y[best + 1].n};
        k--;
        for (int i = best + 1; i < k; i++) {
            y[i] = y[i + 1];
            pair[i - 1] = pair[i];
        }
        if (best > 0)
            pair[best - 1] = join(t, s, y[best - 1], y[best]);
        if (best + 1 < k)
            pair[best] = join(t, s, y[best], y[best + 1]);
    }
    int rc = ES_OK;
    for (int i = 0; i < k && rc == ES_OK; i++)
        rc = add_symbol(t, s, y[i], out);
    return rc;
}

/* ---- long pieces ---- */

typedef struct node { /* a symbol of a long piece, in a list; n 0: merged away */
    symbol y;
    int32_t prev, next;
} node;

typedef struct candidate {
    joint joint;
    int32_t at;
    uint32_t left_n, right_n; /* outdated unless node `at` and the one that follows it still have these lengths: a symbol changes only by growing */
} candidate;

typedef struct long_piece {
    const char *s;
    node *node;
    candidate *heap; /* the lowest (rank, at) first */
    size_t n_heap, cap_heap;
} long_piece;

static bool before(candidate a, candidate b)
{
    return a.joint.rank < b.joint.rank || (a.joint.rank == b.joint.rank && a.at < b.at);
}

static int push(const es_tokenizer *t, long_piece *p, int32_t at)
{
    if (at < 0 || p->node[at].next < 0)
        return ES_OK;
    symbol left = p->node[at].y, right = p->node[p->node[at].next].y;
    candidate c = {join(t, p->s, left, right), at, left.n, right.n};
    if (c.joint.rank == ES_NO_RANK)
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
    long_piece p = {.s = s, .node = malloc(n * sizeof(node))};
    int rc = p.node ? ES_OK : ES_ERR_MEMORY;
    int32_t k = 0;
    symbol y;
    for (size_t i = 0; rc == ES_OK && i < n; i += y.n) {
        y = symbol_at(t, s, i, n);
        if (t->characters || y.id >= 0) {
            p.node[k] = (node){y, k - 1, k + 1};
            k++;
        }
    }
    if (k > 0)
        p.node[k - 1].next = -1;
    for (int32_t i = 0; i < k && rc == ES_OK; i++)
        rc = push(t, &p, i);
    while (rc == ES_OK && p.n_heap > 0) {
        candidate c = pop(&p);
        node *left = &p.node[c.at];
        if (left->y.n != c.left_n || left->next < 0 || p.node[left->next].y.n != c.right_n)
            continue;
        node *right = &p.node[left->next];
        left->y.id = c.joint.made;
        left->y.n += right->y.n;
        right->y.n = 0;
        left->next = right->next;
        if (left->next >= 0)
            p.node[left->next].prev = c.at;
        rc = push(t, &p, left->prev);
        if (rc == ES_OK)
            rc = push(t, &p, c.at);
    }
    for (int32_t i = k > 0 ? 0 : -1; i >= 0 && rc == ES_OK; i = p.node[i].next)
        rc = add_symbol(t, s, p.node[i].y, out);
    free(p.node);
    free(p.heap);
    return rc;
}

/* ---- plain text ---- */

/* Bytes of the first piece of characters: up to where no token joins the two bytes, or where spaces cut. */
static size_t characters_next(const es_tokenizer *t, const char *s, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        unsigned pair = (unsigned char)s[i - 1] * 256u + (unsigned char)s[i];
        bool inside = ((unsigned char)s[i] & 0xc0) == 0x80; /* of a character, or not UTF-8 */
        if (!inside && (!(t->neighbours[pair / 8] >> pair % 8 & 1) || (t->cut_spaces && s[i] == ' ')))
            return i;
    }
    return n;
}

static int add_pieces(const es_tokenizer *t, const char *s, size_t n, es_ids *out)
{
    int rc = ES_OK;
    while (n > 0 && rc == ES_OK) {
        size_t piece = t->characters ? characters_next(t, s, n) : es_pretoken_next(&t->pre, s, n);
        int32_t whole = t->whole_first ? es_tokenizer_text(t, s, piece) : -1;
        rc = whole >= 0 ? es_ids_add(out, whole) : piece <= SHORT_PIECE ? add_short(t, s, piece, out) : add_long(t, s, piece, out);
        s += piece;
        n -= piece;
    }
    return rc;
}

/* Normal form C; a text that is not UTF-8 stays as it is. */
static int add_composed(const es_tokenizer *t, const char *s, size_t n, es_ids *out)
{
    bool ascii = true;
    for (size_t i = 0; ascii && i < n; i++)
        ascii = (unsigned char)s[i] < 0x80;
    if (ascii)
        return add_pieces(t, s, n, out);
    utf8proc_uint8_t *composed = NULL;
    utf8proc_ssize_t len = utf8proc_map((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, &composed, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (len == UTF8PROC_ERROR_NOMEM)
        return ES_ERR_MEMORY;
    int rc = len < 0 ? add_pieces(t, s, n, out) : add_pieces(t, (const char *)composed, (size_t)len, out);
    free(composed);
    return rc;
}

/* Of characters: the mark of a space written in the text is a space like any other; one more goes in front where the vocabulary wants it. */
static int add_marked(const es_tokenizer *t, const char *s, size_t n, bool first, es_ids *out)
{
    static const char mark[] = "\xe2\x96\x81";
    bool spaced = *s == ' ' || (n >= 3 && memcmp(s, mark, 3) == 0);
    bool prefix = t->prefix == ES_PREFIX_ALWAYS || (!spaced && (t->prefix == ES_PREFIX_EACH || (t->prefix == ES_PREFIX_FIRST && first)));
    const char *p = memmem(s, n, mark, 3), *from = s, *end = s + n;
    if (!prefix && !p)
        return add_pieces(t, s, n, out);
    es_buf b = {0};
    es_buf_add(&b, " ", prefix);
    for (; p; p = memmem(from, (size_t)(end - from), mark, 3)) {
        es_buf_add(&b, from, (size_t)(p - from));
        es_buf_add(&b, " ", 1);
        from = p + 3;
    }
    es_buf_add(&b, from, (size_t)(end - from));
    int rc = b.failed ? ES_ERR_MEMORY : add_pieces(t, b.data, b.len, out);
    es_buf_free(&b);
    return rc;
}

static int add_plain(const es_tokenizer *t, const char *s, size_t n, bool first, es_ids *out)
{
    if (n == 0)
        return ES_OK;
    return t->characters ? add_marked(t, s, n, first, out) : t->nfc ? add_composed(t, s, n, out) : add_pieces(t, s, n, out);
}

int es_tokenizer_ids(const es_tokenizer *t, const char *text, size_t n, bool special, es_ids *out, es_error *err)
{
    size_t had = out->n, plain = 0, i = 0;
    int rc = ES_OK;
    if (n > INT32_MAX)
        return es_fail(err, ES_ERR_LIMIT, "a text of %zu bytes is over the 2 GB that can be tokenized at once", n);
    while (i < n && rc == ES_OK) {
        unsigned char c = (unsigned char)text[i];
        int32_t id = t->special_at[c] < t->special_at[c + 1] ? special_at(t, text + i, n - i, special) : -1;
        if (id < 0) {
            i++;
            continue;
        }
        rc = add_plain(t, text + plain, i - plain, plain == 0, out);
        if (rc == ES_OK)
            rc = es_ids_add(out, id);
        plain = i += t->at[id + 1] - t->at[id];
    }
    if (rc == ES_OK)
        rc = add_plain(t, text + plain, n - plain, plain == 0, out);
    if (rc != ES_OK) {
        out->n = had;
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to tokenize %zu bytes", n);
    }
    return ES_OK;
}

int es_tokenize(const es_model *m, const char *text, size_t n, bool special, es_ids *out, es_error *err)
{
    if (!m->tokenizer)
        return es_fail(err, ES_ERR_MISSING, "%s: has no tokenizer", m->info.path);
    return es_tokenizer_ids(m->tokenizer, text, n, special, out, err);
}

int es_tokenize_text(const es_model *m, const char *text, size_t n, es_ids *out, es_error *err)
{
    size_t had = out->n;
    int32_t first = es_token_first(m);
    if (first >= 0 && es_ids_add(out, first) != ES_OK)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to tokenize %zu bytes", n);
    int rc = es_tokenize(m, text, n, false, out, err);
    if (rc != ES_OK)
        out->n = had;
    return rc;
}
