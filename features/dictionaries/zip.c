/* Format: PKWARE's APPNOTE 6.3. Sizes are taken from the central directory, as Python's zipfile and torch's miniz do. */
#include "zip.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>

enum {
    END_BYTES = 22, END64_BYTES = 56, LOCATOR_BYTES = 20, ENTRY_BYTES = 46, LOCAL_BYTES = 30, COMMENT_MAX = 65535,
    EXTRA_ZIP64 = 1, EXTRA_PADDING = 0x4246, ALIGN = 64, DEFLATE_MOST = 1032,
};
#define SAT32 0xffffffffu

struct es_zip {
    es_map map; /* owned when from a file */
    char what[1024];
    const uint8_t *bytes;
    size_t size, n;
    es_zip_member *member; /* in the directory's order */
    char *names;           /* what their names point into */
    const es_zip_member **by_name;
};

static uint32_t u16(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
static uint32_t u32(const uint8_t *p) { return u16(p) | u16(p + 2) << 16; }
static uint64_t u64(const uint8_t *p) { return u32(p) | (uint64_t)u32(p + 4) << 32; }

void es_zip_free(es_zip *z)
{
    if (!z)
        return;
    free(z->member);
    free(z->names);
    free(z->by_name);
    es_map_close(&z->map);
    free(z);
}

size_t es_zip_count(const es_zip *z)
{
    return z->n;
}

const es_zip_member *es_zip_at(const es_zip *z, size_t i)
{
    return i < z->n ? &z->member[i] : NULL;
}

static int by_name(const void *a, const void *b)
{
    const es_zip_member *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

const es_zip_member *es_zip_find(const es_zip *z, const char *name)
{
    es_zip_member key = {.name = name};
    const es_zip_member *k = &key, **hit = z->n ? bsearch(&k, z->by_name, z->n, sizeof *z->by_name, by_name) : NULL;
    return hit ? *hit : NULL;
}

/* ---- the directory --------------------------------------------------------------------------------------------------------------------- */

typedef struct end { size_t directory, bytes, n; } end;

/* The end record: the last one whose comment reaches to the file's end; with zip64 the numbers of its longer kind. */
static int find_end(const es_zip *z, end *out, es_error *err)
{
    const uint8_t *b = z->bytes;
    size_t at = z->size;
    for (size_t back = END_BYTES; back <= z->size && back <= END_BYTES + COMMENT_MAX; back++)
        if (u32(b + z->size - back) == 0x06054b50 && u16(b + z->size - back + 20) == back - END_BYTES) {
            at = z->size - back;
            break;
        }
    if (at == z->size)
        return es_fail(err, ES_ERR_FORMAT, "%s: no zip file, or cut short: there is no end record", z->what);
    const uint8_t *e = b + at;
    if (u16(e + 4) || u16(e + 6) || u16(e + 8) != u16(e + 10))
        return es_fail(err, ES_ERR_FORMAT, "%s: a zip file in several parts", z->what);
    uint64_t n = u16(e + 10), bytes = u32(e + 12), from = u32(e + 16);
    size_t limit = at;
    if (at >= LOCATOR_BYTES && u32(e - LOCATOR_BYTES) == 0x07064b50) {
        uint64_t where = u64(e - LOCATOR_BYTES + 8);
        size_t room = at - LOCATOR_BYTES;
        if (where > room || room - where < END64_BYTES || u32(b + where) != 0x06064b50)
            return es_fail(err, ES_ERR_FORMAT, "%s: its zip64 end record is not where the file says", z->what);
        const uint8_t *l = b + where;
        if (u32(l + 16) || u32(l + 20) || u64(l + 24) != u64(l + 32))
            return es_fail(err, ES_ERR_FORMAT, "%s: a zip file in several parts", z->what);
        uint64_t n64 = u64(l + 32), bytes64 = u64(l + 40), from64 = u64(l + 48);
        if ((n != 0xffff && n != n64) || (bytes != SAT32 && bytes != bytes64) || (from != SAT32 && from != from64))
            return es_fail(err, ES_ERR_FORMAT, "%s: its two end records contradict each other", z->what);
        n = n64;
        bytes = bytes64;
        from = from64;
        limit = (size_t)where;
    } else if (n == 0xffff || bytes == SAT32 || from == SAT32) {
        return es_fail(err, ES_ERR_FORMAT, "%s: a zip64 file without its zip64 end record", z->what);
    }
    if (from > limit || bytes > limit - from || n > bytes / ENTRY_BYTES)
        return es_fail(err, ES_ERR_FORMAT, "%s: a directory of %llu members in %llu bytes at %llu does not fit in the file's %zu bytes", z->what,
                       (unsigned long long)n, (unsigned long long)bytes, (unsigned long long)from, z->size);
    *out = (end){(size_t)from, (size_t)bytes, (size_t)n};
    return ES_OK;
}

static bool plain_name(const char *s)
{
    if (!*s || *s == '/' || strchr(s, '\\') || strchr(s, ':'))
        return false;
    for (; s; s = strchr(s, '/'), s = s ? s + 1 : NULL)
        if (!strncmp(s, "../", 3) || !strcmp(s, ".."))
            return false;
    return true;
}

/* The numbers of a zip64 extra field stand for those of the entry that are saturated, in this order. */
static bool take_zip64(const uint8_t *extra, size_t n, uint64_t *size, uint64_t *packed, uint64_t *where)
{
    uint64_t *want[] = {size, packed, where};
    while (n >= 4) {
        size_t id = u16(extra), len = u16(extra + 2);
        if (len > n - 4)
            return false;
        if (id == EXTRA_ZIP64) {
            const uint8_t *p = extra + 4;
            for (int i = 0; i < 3; i++)
                if (*want[i] == SAT32) {
                    if (len < 8)
                        return false;
                    *want[i] = u64(p);
                    p += 8;
                    len -= 8;
                }
            return true;
        }
        extra += 4 + len;
        n -= 4 + len;
    }
    return *size != SAT32 && *packed != SAT32 && *where != SAT32;
}

/* One entry of the directory at e, `left` bytes of it; *used: its length. name: where its name goes. */
static int read_entry(const es_zip *z, const uint8_t *e, size_t left, size_t limit, es_zip_member *m, char *name, size_t *used, es_error *err)
{
    if (left < ENTRY_BYTES || u32(e) != 0x02014b50)
        return es_fail(err, ES_ERR_FORMAT, "%s: its directory is damaged", z->what);
    size_t n_name = u16(e + 28), n_extra = u16(e + 30), n_comment = u16(e + 32);
    if (n_name + n_extra + n_comment > left - ENTRY_BYTES)
        return es_fail(err, ES_ERR_FORMAT, "%s: its directory is damaged", z->what);
    *used = ENTRY_BYTES + n_name + n_extra + n_comment;
    memcpy(name, e + ENTRY_BYTES, n_name);
    name[n_name] = 0;
    m->name = name;
    if (strlen(name) != n_name || !plain_name(name))
        return es_fail(err, ES_ERR_FORMAT, "%s: the member \"%.100s\" has no plain name", z->what, name);
    uint32_t flags = u16(e + 8), method = u16(e + 10);
    uint64_t packed = u32(e + 20), size = u32(e + 24), where = u32(e + 42);
    if (flags & 1)
        return es_fail(err, ES_ERR_FORMAT, "%s: the member \"%.100s\" is encrypted", z->what, name);
    if (method != 0 && method != 8)
        return es_fail(err, ES_ERR_FORMAT, "%s: the member \"%.100s\" is packed by method %u; stored and deflated ones are read", z->what, name, method);
    if (!take_zip64(e + ENTRY_BYTES + n_name, n_extra, &size, &packed, &where))
        return es_fail(err, ES_ERR_FORMAT, "%s: the zip64 sizes of the member \"%.100s\" are missing", z->what, name);
    m->deflated = method == 8;
    m->crc = u32(e + 16);
    if (where > limit || limit - where < LOCAL_BYTES || u32(z->bytes + where) != 0x04034b50)
        return es_fail(err, ES_ERR_FORMAT, "%s: the member \"%.100s\" is not where its directory says", z->what, name);
    const uint8_t *l = z->bytes + where;
    size_t from = (size_t)where + LOCAL_BYTES + u16(l + 26) + u16(l + 28);
    if (from > limit || packed > limit - from)
        return es_fail(err, ES_ERR_FORMAT, "%s: the member \"%.100s\" of %llu bytes leaves the file's %zu", z->what, name, (unsigned long long)packed, z->size);
    if (u16(l + 26) != n_name || memcmp(l + LOCAL_BYTES, name, n_name) != 0 || u16(l + 8) != method)
        return es_fail(err, ES_ERR_FORMAT, "%s: the member \"%.100s\" contradicts its directory", z->what, name);
    m->data = z->bytes + from;
    m->packed = (size_t)packed;
    if (m->deflated ? size / DEFLATE_MOST > packed : size != packed)
        return es_fail(err, ES_ERR_FORMAT, "%s: the member \"%.100s\" cannot have %llu bytes: %zu are in the file", z->what, name, (unsigned long long)size, m->packed);
    m->size = (size_t)size;
    return ES_OK;
}

static int by_place(const void *a, const void *b)
{
    const es_zip_member *const *x = a, *const *y = b;
    return ((*x)->data > (*y)->data) - ((*x)->data < (*y)->data);
}

static int parse(es_zip *z, es_error *err)
{
    end e = {0};
    size_t names;
    int rc = find_end(z, &e, err);
    if (rc)
        return rc;
    z->member = es_calloc(e.n + 1, sizeof *z->member);
    z->by_name = es_calloc(e.n + 1, sizeof *z->by_name);
    z->names = es_add(e.bytes, e.n + 1, &names) ? es_calloc(names, 1) : NULL;
    if (!z->member || !z->by_name || !z->names)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory for its list of members", z->what);
    const uint8_t *at = z->bytes + e.directory;
    char *name = z->names;
    for (size_t left = e.bytes, used = 0; z->n < e.n; at += used, left -= used) {
        es_zip_member *m = &z->member[z->n];
        rc = read_entry(z, at, left, e.directory, m, name, &used, err);
        if (rc)
            return rc;
        name += strlen(name) + 1;
        z->by_name[z->n++] = m;
    }
    /* A member's data must end before the next one's header, which holds at least the next one's name. */
    qsort(z->by_name, z->n, sizeof *z->by_name, by_place);
    for (size_t i = 1; i < z->n; i++) {
        const es_zip_member *a = z->by_name[i - 1], *b = z->by_name[i];
        if ((size_t)(b->data - a->data) < a->packed + LOCAL_BYTES + strlen(b->name))
            return es_fail(err, ES_ERR_FORMAT, "%s: the members \"%.100s\" and \"%.100s\" overlap", z->what, a->name, b->name);
    }
    qsort(z->by_name, z->n, sizeof *z->by_name, by_name);
    for (size_t i = 1; i < z->n; i++)
        if (!strcmp(z->by_name[i - 1]->name, z->by_name[i]->name))
            return es_fail(err, ES_ERR_FORMAT, "%s: there are two members \"%.100s\"", z->what, z->by_name[i]->name);
    return ES_OK;
}

static int parse_new(es_zip **out, const es_map *map, const void *bytes, size_t n, const char *what, es_error *err)
{
    *out = NULL;
    es_zip *z = es_calloc(1, sizeof *z);
    if (!z) {
        if (map)
            es_map_close(&(es_map){.data = map->data, .size = map->size});
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", what);
    }
    if (map)
        z->map = *map;
    z->bytes = bytes;
    z->size = n;
    snprintf(z->what, sizeof z->what, "%s", what);
    int rc = parse(z, err);
    if (rc)
        es_zip_free(z);
    else
        *out = z;
    return rc;
}

int es_zip_open(es_zip **out, const char *path, es_error *err)
{
    es_map map;
    *out = NULL;
    int rc = es_map_open(&map, path, err);
    return rc ? rc : parse_new(out, &map, map.data, map.size, path, err);
}

int es_zip_parse(es_zip **out, const void *bytes, size_t n, const char *what, es_error *err)
{
    return parse_new(out, NULL, bytes, n, what, err);
}

/* ---- members ----------------------------------------------------------------------------------------------------------------------------- */

/* Inflates up to n bytes; *got: how many came. whole: it must be n exactly, and the end of the stream. */
static int inflate_into(const es_zip *z, const es_zip_member *m, uint8_t *out, size_t n, bool whole, size_t *got, es_error *err)
{
    z_stream s = {0};
    if (inflateInit2(&s, -15) != Z_OK)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to unpack \"%.100s\"", z->what, m->name);
    const size_t most = 1 << 30; /* zlib counts in unsigned int */
    size_t in = 0, done = 0;
    int state = Z_OK;
    uint8_t beyond;
    while (state == Z_OK) {
        if (s.avail_in == 0 && in < m->packed) {
            s.next_in = (Bytef *)(uintptr_t)(m->data + in);
            s.avail_in = (uInt)(m->packed - in < most ? m->packed - in : most);
            in += s.avail_in;
        }
        if (done == n && !whole)
            break;
        /* with nothing left to fill, one byte of room tells a stream that goes on from one that ends here */
        s.next_out = done == n ? &beyond : out + done;
        uInt room = done == n ? 1 : (uInt)(n - done < most ? n - done : most);
        s.avail_out = room;
        state = inflate(&s, Z_NO_FLUSH);
        if (done == n && s.avail_out == 0)
            state = Z_DATA_ERROR;
        else if (done < n)
            done += room - s.avail_out;
        if (state == Z_OK && s.avail_in == 0 && in == m->packed && s.avail_out)
            state = Z_BUF_ERROR; /* the file ends before the stream does */
    }
    bool exact = done == n && s.avail_in == 0 && in == m->packed;
    inflateEnd(&s);
    *got = done;
    if (whole ? state == Z_STREAM_END && exact : state == Z_OK || state == Z_STREAM_END)
        return ES_OK;
    return es_fail(err, state == Z_MEM_ERROR ? ES_ERR_MEMORY : ES_ERR_FORMAT, "%s: the member \"%.100s\" does not unpack to the %zu bytes it should have", z->what, m->name, m->size);
}

int es_zip_peek(const es_zip *z, const es_zip_member *m, void *out, size_t n, size_t *got, es_error *err)
{
    if (n > m->size)
        n = m->size;
    if (m->deflated)
        return inflate_into(z, m, out, n, false, got, err);
    memcpy(out, m->data, n);
    *got = n;
    return ES_OK;
}

int es_zip_read(const es_zip *z, const es_zip_member *m, const uint8_t **bytes, void **owned, es_error *err)
{
    *owned = NULL;
    *bytes = m->data;
    if (m->deflated) {
        char what[160];
        snprintf(what, sizeof what, "the member \"%.100s\"", m->name);
        int rc = es_memory_check(m->size, 0, what, err);
        if (rc)
            return es_fail_prefix(err, "%s", z->what);
        uint8_t *p = es_calloc(m->size + 1, 1);
        size_t got;
        if (!p)
            return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory for %s", z->what, what);
        rc = inflate_into(z, m, p, m->size, true, &got, err);
        if (rc) {
            free(p);
            return rc;
        }
        *bytes = p;
        *owned = p;
    }
    if ((uint32_t)crc32_z(crc32_z(0, NULL, 0), *bytes, m->size) == m->crc)
        return ES_OK;
    free(*owned);
    *owned = NULL;
    return es_fail(err, ES_ERR_FORMAT, "%s: the checksum of the member \"%.100s\" is wrong: the file is damaged", z->what, m->name);
}

/* ---- writing ------------------------------------------------------------------------------------------------------------------------------ */

static void put16(es_buf *b, uint32_t v) { es_buf_add(b, (uint8_t[]){(uint8_t)v, (uint8_t)(v >> 8)}, 2); }
static void put32(es_buf *b, uint32_t v)
{
    put16(b, v);
    put16(b, v >> 16);
}
static void put64(es_buf *b, uint64_t v)
{
    put32(b, (uint32_t)v);
    put32(b, (uint32_t)(v >> 32));
}

/* What the local header and the directory's entry have in common. */
static void put_common(es_buf *b, uint32_t crc, uint64_t size, size_t n_name, size_t n_extra, bool big)
{
    put16(b, big ? 45 : 20); /* version needed */
    put16(b, 0);
    put16(b, 0); /* stored */
    put16(b, 0);
    put16(b, 0x21); /* 1980-01-01 */
    put32(b, crc);
    put32(b, big ? SAT32 : (uint32_t)size);
    put32(b, big ? SAT32 : (uint32_t)size);
    put16(b, (uint32_t)n_name);
    put16(b, (uint32_t)n_extra);
}

typedef struct counting { uint32_t crc; uint64_t n; es_sink *out; } counting;

static bool count_bytes(void *user, const void *bytes, size_t n)
{
    counting *c = user;
    if (!c->out)
        c->crc = (uint32_t)crc32_z(c->crc, bytes, n);
    c->n += n;
    return c->out ? es_sink_put(c->out, bytes, n) : true;
}

int es_zip_add(es_zip_writer *w, const char *name, uint64_t size, int (*fn)(void *user, const es_put *out, es_error *err), void *user, es_error *err)
{
    es_buf head = {0};
    size_t n_name = strlen(name);
    bool big = size >= SAT32, far = w->at >= SAT32;
    counting c = {.crc = (uint32_t)crc32_z(0, NULL, 0)};
    int rc = fn(user, &(es_put){count_bytes, &c}, err);
    if (rc)
        return rc;
    size_t n_extra = big ? 20 : 0;
    uint64_t data = w->at + LOCAL_BYTES + n_name + n_extra + 4;
    size_t padding = (size_t)((ALIGN - data % ALIGN) % ALIGN);
    n_extra += 4 + padding;
    put32(&head, 0x04034b50);
    put_common(&head, c.crc, size, n_name, n_extra, big);
    es_buf_str(&head, name);
    if (big) {
        put16(&head, EXTRA_ZIP64);
        put16(&head, 16);
        put64(&head, size);
        put64(&head, size);
    }
    put16(&head, EXTRA_PADDING);
    put16(&head, (uint32_t)padding);
    static const char zeros[ALIGN];
    es_buf_add(&head, zeros, padding);

    es_buf *d = &w->directory;
    size_t n64 = (big ? 16u : 0u) + (far ? 8u : 0u);
    put32(d, 0x02014b50);
    put16(d, 45); /* made by */
    put_common(d, c.crc, size, n_name, n64 ? 4 + n64 : 0, big);
    put16(d, 0);
    put16(d, 0);
    put16(d, 0);
    put32(d, 0);
    put32(d, far ? SAT32 : (uint32_t)w->at);
    es_buf_str(d, name);
    if (n64) {
        put16(d, EXTRA_ZIP64);
        put16(d, (uint32_t)n64);
        if (big) {
            put64(d, size);
            put64(d, size);
        }
        if (far)
            put64(d, w->at);
    }
    if (head.failed || d->failed || c.n != size) {
        es_buf_free(&head);
        return es_fail(err, c.n != size ? ES_ERR_FORMAT : ES_ERR_MEMORY, c.n != size ? "\"%s\" came out at another size" : "not enough memory to write \"%s\"", name);
    }
    es_sink_put(w->out, head.data, head.len);
    w->at += head.len + size;
    es_buf_free(&head);
    w->n++;
    c.out = w->out;
    return fn(user, &(es_put){count_bytes, &c}, err);
}

typedef struct some_bytes { const void *bytes; size_t n; } some_bytes;

static int put_bytes(void *user, const es_put *out, es_error *err)
{
    (void)err;
    const some_bytes *b = user;
    out->put(out->user, b->bytes, b->n);
    return ES_OK;
}

int es_zip_add_bytes(es_zip_writer *w, const char *name, const void *bytes, size_t n, es_error *err)
{
    return es_zip_add(w, name, n, put_bytes, &(some_bytes){bytes, n}, err);
}

int es_zip_end(es_zip_writer *w, es_error *err)
{
    es_buf *d = &w->directory;
    uint64_t bytes = d->len, from = w->at;
    bool big = from >= SAT32 || bytes >= SAT32 || w->n >= 0xffff;
    if (big) {
        put32(d, 0x06064b50);
        put64(d, END64_BYTES - 12);
        put16(d, 45);
        put16(d, 45);
        put32(d, 0);
        put32(d, 0);
        put64(d, w->n);
        put64(d, w->n);
        put64(d, bytes);
        put64(d, from);
        put32(d, 0x07064b50);
        put32(d, 0);
        put64(d, from + bytes);
        put32(d, 1);
    }
    put32(d, 0x06054b50);
    put32(d, 0);
    put16(d, big ? 0xffff : (uint32_t)w->n);
    put16(d, big ? 0xffff : (uint32_t)w->n);
    put32(d, big ? SAT32 : (uint32_t)bytes);
    put32(d, big ? SAT32 : (uint32_t)from);
    put16(d, 0);
    bool failed = d->failed;
    if (!failed)
        es_sink_put(w->out, d->data, d->len);
    es_buf_free(d);
    return failed ? es_fail(err, ES_ERR_MEMORY, "not enough memory for a zip's directory") : ES_OK;
}
