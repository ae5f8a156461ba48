/* Opcodes: Python's Lib/pickletools.py; the tensors' layout: torch/serialization.py and torch/_utils.py (_rebuild_tensor_v2). */
#include "pickle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PICKLE_LIMIT = 1 << 20, TENSORS_MAX = 64, NO_NODE = -1 };

typedef enum kind { K_NONE, K_MARK, K_BOOL, K_INT, K_FLOAT, K_TEXT, K_LIST, K_DICT, K_NAME, K_STORAGE, K_TENSOR } kind; /* K_LIST: tuples too */

typedef struct node {
    kind kind;
    long long i;      /* K_BOOL, K_INT; K_NAME and K_STORAGE: which of names[] */
    const char *s;    /* K_TEXT: in the pickle, n bytes */
    size_t n;
    int first, last;  /* K_LIST, K_DICT: a chain of links; a dict's alternate between key and value */
    es_array tensor;  /* K_STORAGE: data, bytes; K_TENSOR */
} node;

typedef struct link { int node, next; } link;

typedef struct machine {
    es_arrays *a;
    const char *prefix;
    const uint8_t *p, *end;
    size_t size;
    node *node; int n_node, cap_node;
    link *link; int n_link, cap_link;
    int *stack; int n_stack, cap_stack;
    int *memo;  size_t n_memo, cap_memo;
    es_error *err;
    int rc;
} machine;

enum { NAME_DICT, NAME_TENSOR, NAME_STORAGE };
static const struct { const char *module, *name; int what; es_tensor_type type; size_t bytes; } names[] = {
    {"collections", "OrderedDict", NAME_DICT, 0, 0},
    {"torch._utils", "_rebuild_tensor_v2", NAME_TENSOR, 0, 0},
    {"torch", "FloatStorage", NAME_STORAGE, ES_TENSOR_F32, 4},
    {"torch", "HalfStorage", NAME_STORAGE, ES_TENSOR_F16, 2},
    {"torch", "BFloat16Storage", NAME_STORAGE, ES_TENSOR_BF16, 2},
    {"torch", "DoubleStorage", NAME_STORAGE, ES_TENSOR_F64, 8},
    {"torch", "LongStorage", NAME_STORAGE, ES_TENSOR_I64, 8},
    {"torch", "IntStorage", NAME_STORAGE, ES_TENSOR_I32, 4},
    {"torch", "ShortStorage", NAME_STORAGE, ES_TENSOR_I16, 2},
    {"torch", "CharStorage", NAME_STORAGE, ES_TENSOR_I8, 1},
    {"torch", "ByteStorage", NAME_STORAGE, ES_TENSOR_U8, 1},
    {"torch", "BoolStorage", NAME_STORAGE, ES_TENSOR_BOOL, 1},
};

/* The first fault is kept; what follows it does nothing. */
static int bad(machine *m, const char *why)
{
    if (!m->rc)
        m->rc = es_fail(m->err, ES_ERR_FORMAT, "%s: its pickle %s; only what torch.save writes of a state_dict is read", m->a->what, why);
    return NO_NODE;
}

static bool room(machine *m, void **list, int n, int *cap, size_t each)
{
    if (n < *cap)
        return true;
    int more = *cap ? 2 * *cap : 256; /* bounded by the pickle's bytes */
    void *p = realloc(*list, (size_t)more * each);
    if (!p) {
        if (!m->rc)
            m->rc = es_fail(m->err, ES_ERR_MEMORY, "%s: not enough memory for its pickle", m->a->what);
        return false;
    }
    *list = p;
    *cap = more;
    return true;
}

static int make(machine *m, kind k)
{
    if (!room(m, (void **)&m->node, m->n_node, &m->cap_node, sizeof *m->node))
        return NO_NODE;
    m->node[m->n_node] = (node){.kind = k, .first = NO_NODE, .last = NO_NODE};
    return m->n_node++;
}

static void push(machine *m, int n)
{
    if (n != NO_NODE && room(m, (void **)&m->stack, m->n_stack, &m->cap_stack, sizeof *m->stack))
        m->stack[m->n_stack++] = n;
}

/* A value, not a mark. */
static int pop(machine *m)
{
    if (m->rc)
        return NO_NODE;
    if (!m->n_stack || m->node[m->stack[m->n_stack - 1]].kind == K_MARK)
        return bad(m, "takes more values than it made");
    return m->stack[--m->n_stack];
}

static void chain(machine *m, int list, int value)
{
    if (value == NO_NODE || !room(m, (void **)&m->link, m->n_link, &m->cap_link, sizeof *m->link))
        return;
    m->link[m->n_link] = (link){value, NO_NODE};
    node *l = &m->node[list];
    if (l->first == NO_NODE)
        l->first = m->n_link;
    else
        m->link[l->last].next = m->n_link;
    l->last = m->n_link++;
    l->n++;
}

/* Where the values above the topmost mark begin; the mark is at that place less one. */
static int above_mark(machine *m)
{
    int at = m->n_stack;
    while (at > 0 && m->node[m->stack[at - 1]].kind != K_MARK)
        at--;
    return at > 0 ? at : bad(m, "has no mark where it needs one");
}

static int item(const machine *m, int list, int i)
{
    int l = m->node[list].first;
    for (; l != NO_NODE && i > 0; i--)
        l = m->link[l].next;
    return l == NO_NODE ? NO_NODE : m->link[l].node;
}

static bool is(const machine *m, int n, kind k)
{
    return n != NO_NODE && m->node[n].kind == k;
}

static bool text_is(const node *n, const char *s)
{
    return n->kind == K_TEXT && n->n == strlen(s) && !memcmp(n->s, s, n->n);
}

/* count numbers little-endian into *out; false: the pickle ends. */
static bool take(machine *m, int count, uint64_t *out)
{
    *out = 0;
    if (m->end - m->p < count) {
        bad(m, "is cut short");
        return false;
    }
    for (int i = 0; i < count; i++)
        *out |= (uint64_t)m->p[i] << 8 * i;
    m->p += count;
    return true;
}

static void text(machine *m, int length_bytes)
{
    uint64_t n;
    if (!take(m, length_bytes, &n))
        return;
    if (n > (uint64_t)(m->end - m->p)) {
        bad(m, "is cut short");
        return;
    }
    int k = make(m, K_TEXT);
    if (k == NO_NODE)
        return;
    m->node[k].s = (const char *)m->p;
    m->node[k].n = (size_t)n;
    m->p += n;
    push(m, k);
}

static void name_of(machine *m, const char *module, size_t n_module, const char *name, size_t n_name)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (n_module == strlen(names[i].module) && !memcmp(module, names[i].module, n_module) && n_name == strlen(names[i].name)
            && !memcmp(name, names[i].name, n_name)) {
            int k = make(m, K_NAME);
            if (k != NO_NODE)
                m->node[k].i = (long long)i;
            push(m, k);
            return;
        }
    char why[200];
    snprintf(why, sizeof why, "wants to use %.*s.%.*s, which is not run", (int)(n_module < 60 ? n_module : 60), module, (int)(n_name < 60 ? n_name : 60), name);
    bad(m, why);
}

static void global(machine *m)
{
    const uint8_t *a = m->p, *b = memchr(a, '\n', (size_t)(m->end - a)), *c = b ? memchr(b + 1, '\n', (size_t)(m->end - b - 1)) : NULL;
    if (!c) {
        bad(m, "is cut short");
        return;
    }
    m->p = c + 1;
    name_of(m, (const char *)a, (size_t)(b - a), (const char *)b + 1, (size_t)(c - b - 1));
}

/* ('storage', torch.FloatStorage, '0', 'cpu', 4096) */
static void storage(machine *m)
{
    int t = pop(m);
    if (m->rc)
        return;
    int type = item(m, t, 1), key = item(m, t, 2), count = item(m, t, 4);
    if (!is(m, t, K_LIST) || !is(m, item(m, t, 0), K_TEXT) || !text_is(&m->node[item(m, t, 0)], "storage") || !is(m, type, K_NAME) || !is(m, key, K_TEXT)
        || !is(m, count, K_INT) || names[m->node[type].i].what != NAME_STORAGE) {
        bad(m, "has a storage of another form");
        return;
    }
    char member[400];
    const node *k = &m->node[key];
    if (k->n > 64 || memchr(k->s, 0, k->n) || memchr(k->s, '/', k->n)
        || snprintf(member, sizeof member, "%sdata/%.*s", m->prefix, (int)k->n, k->s) >= (int)sizeof member) {
        bad(m, "has a storage of another form");
        return;
    }
    const es_zip_member *z = es_zip_find(m->a->zip, member);
    size_t i = (size_t)m->node[type].i, bytes;
    long long n = m->node[count].i;
    if (!z || n < 0 || !es_mul((size_t)n, names[i].bytes, &bytes) || bytes != z->size) {
        if (!m->rc)
            m->rc = es_fail(m->err, ES_ERR_FORMAT, "%s: the numbers \"%s\" are missing or not as many as its pickle says", m->a->what, member);
        return;
    }
    int s = make(m, K_STORAGE);
    if (s == NO_NODE)
        return;
    m->node[s].i = (long long)i;
    m->node[s].tensor.name = z->name; /* whose member; its bytes are read when all is known to be in order */
    m->node[s].tensor.bytes = bytes;
    push(m, s);
}

/* (storage, offset, size, stride, requires_grad, hooks): the numbers must lie without gaps, in one order or the other. */
static void rebuild(machine *m, int args)
{
    int s = item(m, args, 0), offset = item(m, args, 1), size = item(m, args, 2), stride = item(m, args, 3);
    if (!is(m, s, K_STORAGE) || !is(m, offset, K_INT) || !is(m, size, K_LIST) || !is(m, stride, K_LIST) || m->node[size].n != m->node[stride].n
        || m->node[size].n > ES_TENSOR_DIMS || m->node[offset].i < 0) {
        bad(m, "has a tensor of another form");
        return;
    }
    es_array x = {.type = names[m->node[s].i].type, .n_dims = (int)m->node[size].n, .n = 1, .name = m->node[s].tensor.name};
    size_t each = names[m->node[s].i].bytes, step[ES_TENSOR_DIMS];
    for (int i = 0; i < x.n_dims; i++) {
        int a = item(m, size, i), b = item(m, stride, i);
        if (!is(m, a, K_INT) || !is(m, b, K_INT) || m->node[a].i < 0 || m->node[b].i < 0 || !es_mul(x.n, (size_t)m->node[a].i, &x.n)) {
            bad(m, "has a tensor whose shape makes no sense");
            return;
        }
        x.dim[i] = (size_t)m->node[a].i;
        step[i] = (size_t)m->node[b].i;
    }
    bool plain = true, fortran = true;
    size_t run = 1;
    for (int i = x.n_dims - 1; i >= 0; i--) {
        plain = plain && (x.dim[i] <= 1 || step[i] == run);
        run *= x.dim[i]; /* its factors' product fits: checked above */
    }
    run = 1;
    for (int i = 0; i < x.n_dims; i++) {
        fortran = fortran && (x.dim[i] <= 1 || step[i] == run);
        run *= x.dim[i];
    }
    size_t from, to;
    if (!es_mul((size_t)m->node[offset].i, each, &from) || !es_mul(x.n, each, &x.bytes) || !es_add(from, x.bytes, &to) || to > m->node[s].tensor.bytes) {
        bad(m, "has a tensor that leaves its numbers");
        return;
    }
    if (!plain && !fortran) {
        bad(m, "has a tensor with gaps (save tensor.contiguous())");
        return;
    }
    x.fortran = !plain;
    int t = make(m, K_TENSOR);
    if (t == NO_NODE)
        return;
    m->node[t].tensor = x;
    m->node[t].n = from;
    push(m, t);
}

static void reduce(machine *m)
{
    int args = pop(m), fn = pop(m);
    if (m->rc)
        return;
    if (!is(m, fn, K_NAME) || !is(m, args, K_LIST) || names[m->node[fn].i].what == NAME_STORAGE)
        bad(m, "calls something");
    else if (names[m->node[fn].i].what == NAME_TENSOR)
        rebuild(m, args);
    else if (m->node[args].n)
        bad(m, "makes a dict of something");
    else
        push(m, make(m, K_DICT));
}

static void tuple(machine *m, int n)
{
    if (m->n_stack < n) {
        bad(m, "takes more values than it made");
        return;
    }
    int t = make(m, K_LIST), from = m->n_stack - n;
    for (int i = from; t != NO_NODE && i < m->n_stack && !m->rc; i++) {
        if (m->node[m->stack[i]].kind == K_MARK)
            bad(m, "takes more values than it made");
        else
            chain(m, t, m->stack[i]);
    }
    m->n_stack = from;
    push(m, t);
}

/* What lies above the mark goes into the list or dict below it. */
static void fill(machine *m, kind k, int from, int below)
{
    if (m->rc)
        return;
    if (from < 0 || below < 1 || !is(m, m->stack[below - 1], k) || (k == K_DICT && (m->n_stack - from) % 2)) {
        bad(m, "fills what is no list or dict");
        return;
    }
    for (int i = from; i < m->n_stack; i++)
        chain(m, m->stack[below - 1], m->stack[i]);
    m->n_stack = below;
}

static void remember(machine *m, uint64_t at)
{
    if (!m->n_stack || at > m->size) { /* picklers count up: no more than there are opcodes */
        bad(m, "numbers its values wildly");
        return;
    }
    if (at >= m->cap_memo) {
        size_t cap = (size_t)at * 2 + 64;
        int *p = realloc(m->memo, cap * sizeof *p);
        if (!p) {
            m->rc = es_fail(m->err, ES_ERR_MEMORY, "%s: not enough memory for its pickle", m->a->what);
            return;
        }
        m->memo = p;
        m->cap_memo = cap;
    }
    for (; m->n_memo <= at; m->n_memo++)
        m->memo[m->n_memo] = NO_NODE;
    m->memo[at] = m->stack[m->n_stack - 1];
}

static void recall(machine *m, uint64_t at)
{
    if (at >= m->n_memo || m->memo[at] == NO_NODE)
        bad(m, "refers to a value that it did not make");
    else
        push(m, m->memo[at]);
}

static void number(machine *m, kind k, long long v)
{
    int n = make(m, k);
    if (n != NO_NODE)
        m->node[n].i = v;
    push(m, n);
}

/* One opcode. false: the last one, or a fault. */
static bool step(machine *m)
{
    uint64_t v;
    if (!take(m, 1, &v))
        return false;
    int at, code = (int)v;
    switch (code) {
    case '.': return false;
    case 0x80: if (take(m, 1, &v) && v > 5) bad(m, "has an unknown version"); break;
    case 0x95: take(m, 8, &v); break; /* FRAME: how many bytes could be read at once */
    case '(': push(m, make(m, K_MARK)); break;
    case 'N': push(m, make(m, K_NONE)); break;
    case 0x88: case 0x89: number(m, K_BOOL, code == 0x88); break;
    case 'K': if (take(m, 1, &v)) number(m, K_INT, (long long)v); break;
    case 'M': if (take(m, 2, &v)) number(m, K_INT, (long long)v); break;
    case 'J': if (take(m, 4, &v)) number(m, K_INT, (int32_t)v); break;
    case 0x8a: /* LONG1: a number of up to 8 bytes with its sign */
        if (!take(m, 1, &v))
            break;
        at = (int)v;
        if (at > 8) {
            bad(m, "has a number over 64 bits");
        } else if (take(m, at, &v)) {
            if (at && at < 8 && v >> (8 * at - 1))
                v |= ~0ull << 8 * at;
            number(m, K_INT, (long long)v);
        }
        break;
    case 'G': if (take(m, 8, &v)) push(m, make(m, K_FLOAT)); break;
    case 'X': text(m, 4); break;
    case 0x8c: text(m, 1); break;
    case ')': case ']': push(m, make(m, K_LIST)); break;
    case '}': push(m, make(m, K_DICT)); break;
    case 0x85: tuple(m, 1); break;
    case 0x86: tuple(m, 2); break;
    case 0x87: tuple(m, 3); break;
    case 't':
        at = above_mark(m);
        if (at != NO_NODE) {
            int n = m->n_stack - at;
            tuple(m, n);
            if (!m->rc && m->n_stack >= 2) { /* the mark lies below the tuple */
                m->stack[m->n_stack - 2] = m->stack[m->n_stack - 1];
                m->n_stack--;
            }
        }
        break;
    case 'a': fill(m, K_LIST, m->n_stack - 1, m->n_stack - 1); break;
    case 's': fill(m, K_DICT, m->n_stack - 2, m->n_stack - 2); break;
    case 'e': at = above_mark(m); fill(m, K_LIST, at, at - 1); break;
    case 'u': at = above_mark(m); fill(m, K_DICT, at, at - 1); break;
    case 'q': if (take(m, 1, &v)) remember(m, v); break;
    case 'r': if (take(m, 4, &v)) remember(m, v); break;
    case 0x94: remember(m, m->n_memo); break;
    case 'h': if (take(m, 1, &v)) recall(m, v); break;
    case 'j': if (take(m, 4, &v)) recall(m, v); break;
    case 'c': global(m); break;
    case 0x93: { /* STACK_GLOBAL */
        int name = pop(m), module = pop(m);
        if (!m->rc && is(m, name, K_TEXT) && is(m, module, K_TEXT))
            name_of(m, m->node[module].s, m->node[module].n, m->node[name].s, m->node[name].n);
        else
            bad(m, "names what is no text");
        break;
    }
    case 'Q': storage(m); break;
    case 'R': reduce(m); break;
    case 'b': /* BUILD: an OrderedDict's attributes (_metadata), which say nothing of tensors */
        pop(m);
        if (!m->rc && (!m->n_stack || !is(m, m->stack[m->n_stack - 1], K_DICT)))
            bad(m, "builds something");
        break;
    default: {
        char why[60];
        snprintf(why, sizeof why, "has the opcode 0x%02x", (unsigned)code);
        bad(m, why);
    }
    }
    return !m->rc;
}

/* A tensor becomes an array of that name. */
static void add_tensor(machine *m, const char *s, size_t n, const node *v)
{
    char *name = strndup(s, n);
    const es_zip_member *z = es_zip_find(m->a->zip, v->tensor.name);
    const uint8_t *bytes = NULL;
    void *owned = NULL;
    m->rc = name ? es_arrays_own(m->a, name, m->err) : es_fail(m->err, ES_ERR_MEMORY, "%s: not enough memory", m->a->what);
    if (!m->rc && es_arrays_find(m->a, name))
        bad(m, "has two tensors of one name");
    if (!m->rc && m->a->n == TENSORS_MAX) /* each is checked by its CRC, and they may share their bytes */
        bad(m, "has over 64 tensors");
    if (!m->rc)
        m->rc = es_zip_read(m->a->zip, z, &bytes, &owned, m->err);
    if (!m->rc && owned)
        m->rc = es_arrays_own(m->a, owned, m->err);
    if (m->rc)
        return;
    es_array x = v->tensor;
    x.name = name;
    x.data = bytes + v->n;
    x.mapped = !owned;
    m->rc = es_arrays_add(m->a, &x, m->err);
}

/* The top of the stack must be a dict, each of whose tensors becomes an array; or one tensor, which becomes the array "". */
static void collect(machine *m)
{
    if (m->n_stack == 1 && is(m, m->stack[0], K_TENSOR)) {
        add_tensor(m, "", 0, &m->node[m->stack[0]]);
        return;
    }
    if (m->n_stack != 1 || !is(m, m->stack[0], K_DICT)) {
        bad(m, "holds no dict of tensors");
        return;
    }
    for (int l = m->node[m->stack[0]].first; l != NO_NODE && !m->rc; l = m->link[l].next) {
        const node *key = &m->node[m->link[l].node];
        l = m->link[l].next; /* dicts hold pairs */
        const node *v = &m->node[m->link[l].node];
        if (key->kind != K_TEXT || v->kind != K_TENSOR || memchr(key->s, 0, key->n))
            continue;
        add_tensor(m, key->s, key->n, v);
    }
}

int es_pickle_tensors(es_arrays *a, const uint8_t *pickle, size_t n, const char *prefix, es_error *err)
{
    machine m = {.a = a, .prefix = prefix, .p = pickle, .end = pickle + n, .size = n, .err = err};
    while (step(&m))
        ;
    if (!m.rc)
        collect(&m);
    free(m.node);
    free(m.link);
    free(m.stack);
    free(m.memo);
    return m.rc;
}

int es_arrays_torch(es_arrays *a, const char *path, es_error *err)
{
    snprintf(a->what, sizeof a->what, "%s", path);
    int rc = es_zip_open(&a->zip, path, err);
    if (rc)
        return rc == ES_ERR_FORMAT ? es_fail_prefix(err, "no file of torch.save since 1.6") : rc;
    const es_zip_member *data = NULL;
    char prefix[300] = "", order[400];
    for (size_t i = 0; i < es_zip_count(a->zip); i++) {
        const char *name = es_zip_at(a->zip, i)->name, *slash = strchr(name, '/');
        if (slash && !strcmp(slash, "/data.pkl") && snprintf(prefix, sizeof prefix, "%.*s/", (int)(slash - name), name) < (int)sizeof prefix)
            data = es_zip_at(a->zip, i);
    }
    if (!data)
        return es_fail(err, ES_ERR_FORMAT, "%s: no file of torch.save: there is no data.pkl in it", path);
    if (data->size > PICKLE_LIMIT)
        return es_fail(err, ES_ERR_FORMAT, "%s: its pickle has %zu bytes; a state_dict's has a few thousand", path, data->size);
    snprintf(order, sizeof order, "%sbyteorder", prefix);
    const es_zip_member *o = es_zip_find(a->zip, order);
    if (o && (o->size != 6 || o->deflated || memcmp(o->data, "little", 6) != 0))
        return es_fail(err, ES_ERR_FORMAT, "%s: was saved on a big-endian machine", path);
    const uint8_t *bytes;
    void *owned;
    rc = es_zip_read(a->zip, data, &bytes, &owned, err);
    if (!rc && owned)
        rc = es_arrays_own(a, owned, err);
    return rc ? rc : es_pickle_tensors(a, bytes, data->size, prefix, err);
}

/* ---- writing ------------------------------------------------------------------------------------------------------------------------------ */

static void put_text(es_buf *b, const char *s)
{
    size_t n = strlen(s);
    es_buf_add(b, (uint8_t[]){'X', (uint8_t)n, (uint8_t)(n >> 8), (uint8_t)(n >> 16), (uint8_t)(n >> 24)}, 5);
    es_buf_str(b, s);
}

static void put_int(es_buf *b, size_t v)
{
    if (v < 1u << 31) {
        es_buf_add(b, (uint8_t[]){'J', (uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)}, 5);
        return;
    }
    es_buf_add(b, (uint8_t[]){0x8a, 8}, 2);
    for (int i = 0; i < 8; i++)
        es_buf_add(b, (uint8_t[]){(uint8_t)((uint64_t)v >> 8 * i)}, 1);
}

static void put_pickle(es_buf *b, const es_torch_entry *e, size_t n)
{
    bool bare = n == 1 && !e[0].name;
    es_buf_add(b, "\x80\x02}(", bare ? 2 : 4);
    for (size_t i = 0; i < n; i++) {
        const char *type = e[i].type == ES_TENSOR_F16 ? "HalfStorage" : e[i].type == ES_TENSOR_BF16 ? "BFloat16Storage" : e[i].type == ES_TENSOR_I32 ? "IntStorage" : "FloatStorage";
        size_t count = e[i].n_dims > 0 ? e[i].dim[0] : 1;
        if (e[i].n_dims > 1)
            count *= e[i].dim[1];
        char key[24];
        snprintf(key, sizeof key, "%zu", i);
        if (!bare)
            put_text(b, e[i].name);
        es_buf_str(b, "ctorch._utils\n_rebuild_tensor_v2\n((");
        put_text(b, "storage");
        es_buf_printf(b, "ctorch\n%s\n", type);
        put_text(b, key);
        put_text(b, "cpu");
        put_int(b, count);
        es_buf_str(b, "tQ");
        put_int(b, 0);
        es_buf_str(b, "(");
        for (int k = 0; k < e[i].n_dims; k++)
            put_int(b, e[i].dim[k]);
        es_buf_str(b, "t(");
        for (int k = 0; k < e[i].n_dims; k++)
            put_int(b, k + 1 < e[i].n_dims ? e[i].dim[1] : 1);
        es_buf_str(b, "t\x89""ccollections\nOrderedDict\n)RtR");
    }
    es_buf_str(b, bare ? "." : "u.");
}

typedef struct to_file { const es_torch_entry *e; size_t n; } to_file;

static int write_members(void *user, es_sink *out, es_error *err)
{
    const to_file *f = user;
    es_zip_writer w = {.out = out};
    es_buf pickle = {0};
    put_pickle(&pickle, f->e, f->n);
    int rc = pickle.failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory for a pickle") : es_zip_add_bytes(&w, "archive/data.pkl", pickle.data, pickle.len, err);
    es_buf_free(&pickle);
    if (!rc)
        rc = es_zip_add_bytes(&w, "archive/byteorder", "little", 6, err);
    for (size_t i = 0; i < f->n && !rc; i++) {
        char name[40];
        snprintf(name, sizeof name, "archive/data/%zu", i);
        rc = es_zip_add(&w, name, f->e[i].bytes, f->e[i].put, f->e[i].user, err);
    }
    if (!rc)
        rc = es_zip_add_bytes(&w, "archive/version", "3\n", 2, err);
    int rc2 = es_zip_end(&w, rc ? NULL : err);
    return rc ? rc : rc2;
}

int es_torch_write(const char *path, const es_torch_entry *e, size_t n, es_error *err)
{
    return es_file_write_by(path, write_members, &(to_file){e, n}, err);
}
