#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/evp.h>

static int fail_errno(es_error *err, const char *path, const char *doing)
{
    int code = errno == ENOENT ? ES_ERR_MISSING : errno == ENOMEM ? ES_ERR_MEMORY : ES_ERR_IO;
    return es_fail(err, code, "%s: cannot %s: %s", path, doing, strerror(errno));
}

int es_map_open(es_map *m, const char *path, es_error *err)
{
    *m = (es_map){0};
    if (snprintf(m->path, sizeof m->path, "%s", path) >= (int)sizeof m->path)
        return es_fail(err, ES_ERR_USAGE, "%.80s...: the path is over %zu bytes", path, sizeof m->path - 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block us: it is refused below */
    if (fd < 0)
        return fail_errno(err, path, "open");
    struct stat st;
    int rc = ES_OK;
    if (fstat(fd, &st) != 0) {
        rc = fail_errno(err, path, "look at it");
    } else if (!S_ISREG(st.st_mode)) {
        rc = es_fail(err, ES_ERR_USAGE, "%s: is not a regular file", path);
    } else if (st.st_size == 0) {
        m->data = (const uint8_t *)"";
    } else {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            rc = fail_errno(err, path, "map");
        } else {
            m->data = p;
            m->size = (size_t)st.st_size;
        }
    }
    close(fd);
    return rc;
}

void es_map_close(es_map *m)
{
    if (m->size)
        munmap((void *)(uintptr_t)m->data, m->size);
    *m = (es_map){0};
}

int es_file_read(es_buf *out, const char *path, size_t limit, es_error *err)
{
    bool is_stdin = strcmp(path, "-") == 0;
    const char *name = is_stdin ? "standard input" : path;
    int fd = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(err, name, "open");
    char block[65536];
    size_t total = 0;
    int rc = ES_OK;
    for (;;) {
        ssize_t n = read(fd, block, sizeof block);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            rc = fail_errno(err, name, "read");
            break;
        }
        if (n == 0)
            break;
        total += (size_t)n;
        if (total > limit) {
            rc = es_fail(err, ES_ERR_LIMIT, "%s: is over the limit of %zu bytes for such a file", name, limit);
            break;
        }
        es_buf_add(out, block, (size_t)n);
    }
    if (rc == ES_OK) {
        es_buf_add(out, "", 0); /* an empty file gives "" and not NULL */
        if (out->failed)
            rc = es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to read it", name);
    }
    if (!is_stdin)
        close(fd);
    return rc;
}

static int write_all(int fd, const char *p, size_t n)
{
    while (n > 0) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return -1;
        p += k;
        n -= (size_t)k;
    }
    return 0;
}

struct es_sink {
    int fd, why; /* errno of the first write that failed; 0: none */
};

bool es_sink_put(es_sink *s, const void *bytes, size_t n)
{
    if (!s->why && write_all(s->fd, bytes, n) != 0)
        s->why = errno ? errno : EIO;
    return !s->why;
}

static int fill(int fd, const char *path, int (*fn)(void *user, es_sink *out, es_error *err), void *user, es_error *err)
{
    es_sink sink = {.fd = fd};
    int rc = fn(user, &sink, err);
    errno = sink.why;
    return sink.why ? fail_errno(err, path, "write") : rc;
}

/* Pipes and devices cannot be replaced by a rename and must not be (root writing to /dev/stdout). */
static int write_in_place(const char *path, int (*fn)(void *user, es_sink *out, es_error *err), void *user, es_error *err)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(err, path, "open for writing");
    int rc = fill(fd, path, fn, user, err);
    if (close(fd) != 0 && rc == ES_OK)
        rc = fail_errno(err, path, "write");
    return rc;
}

int es_file_move(const char *from, const char *path, es_error *err)
{
    es_buf dir = {0};
    es_buf_str(&dir, path);
    int rc = dir.failed ? es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to write it", path) : ES_OK;
    if (rc == ES_OK && rename(from, path) != 0)
        rc = fail_errno(err, path, "replace");
    if (rc == ES_OK) { /* the new name itself must survive a power cut; where folders cannot be synced that is no error */
        int d = open(dirname(dir.data), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (d >= 0) {
            fsync(d);
            close(d);
        }
    }
    es_buf_free(&dir);
    return rc;
}

int es_file_write_by(const char *path, int (*fn)(void *user, es_sink *out, es_error *err), void *user, es_error *err)
{
    struct stat st;
    bool exists = stat(path, &st) == 0;
    if (exists && S_ISDIR(st.st_mode))
        return es_fail(err, ES_ERR_USAGE, "%s: is a folder, not a file to write", path);
    if (exists && !S_ISREG(st.st_mode))
        return write_in_place(path, fn, user, err);

    es_buf tmp = {0};
    es_buf_printf(&tmp, "%s.tmp-%ld", path, (long)getpid());
    if (tmp.failed) {
        es_buf_free(&tmp);
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory to write it", path);
    }
    int rc = ES_OK;
    unlink(tmp.data); /* left by a killed process of the same number */
    int fd = open(tmp.data, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, exists ? st.st_mode & 0777 : 0666);
    if (fd < 0) {
        rc = fail_errno(err, path, "create");
    } else {
        rc = fill(fd, path, fn, user, err);
        if (rc == ES_OK && fsync(fd) != 0)
            rc = fail_errno(err, path, "write to disk");
        if (close(fd) != 0 && rc == ES_OK)
            rc = fail_errno(err, path, "write");
        if (rc == ES_OK)
            rc = es_file_move(tmp.data, path, err);
        if (rc != ES_OK)
            unlink(tmp.data);
    }
    es_buf_free(&tmp);
    return rc;
}

typedef struct piece {
    const void *bytes;
    size_t n;
} piece;

static int put_piece(void *user, es_sink *out, es_error *err)
{
    const piece *p = user;
    (void)err;
    es_sink_put(out, p->bytes, p->n);
    return ES_OK;
}

int es_file_write(const char *path, const void *bytes, size_t n, es_error *err)
{
    return es_file_write_by(path, put_piece, &(piece){bytes, n}, err);
}

int es_dir_make(const char *path, es_error *err)
{
    char part[1024];
    if (!*path || snprintf(part, sizeof part, "%s", path) >= (int)sizeof part)
        return es_fail(err, ES_ERR_USAGE, "%.80s: is no usable folder name", path);
    for (char *p = part + 1;; p++) {
        if (*p && *p != '/')
            continue;
        char was = *p;
        *p = 0;
        struct stat st;
        if (mkdir(part, 0700) != 0) {
            int why = errno; /* EROFS and EACCES come even for folders that are there */
            if (stat(part, &st) != 0) {
                errno = why;
                return fail_errno(err, part, "make the folder");
            }
            if (!S_ISDIR(st.st_mode))
                return es_fail(err, ES_ERR_IO, "%s: is in the way: not a folder", part);
        }
        *p = was;
        if (!was)
            return ES_OK;
    }
}

static void hex_digest(char out[65], const unsigned char *md)
{
    for (int i = 0; i < 32; i++) {
        out[2 * i] = "0123456789abcdef"[md[i] >> 4];
        out[2 * i + 1] = "0123456789abcdef"[md[i] & 15];
    }
    out[64] = 0;
}

int es_sha256_file(char out[65], const char *path, es_error *err)
{
    enum { BLOCK = 1 << 18 };
    out[0] = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(err, path, "open");
    unsigned char *block = malloc(BLOCK), md[EVP_MAX_MD_SIZE];
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    int rc = ES_OK;
    bool ok = block && ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1;
    while (ok) {
        ssize_t n = read(fd, block, BLOCK);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            rc = fail_errno(err, path, "read");
        if (n <= 0)
            break;
        ok = EVP_DigestUpdate(ctx, block, (size_t)n) == 1;
    }
    if (rc == ES_OK && !(ok && EVP_DigestFinal_ex(ctx, md, NULL) == 1)) {
        ERR_clear_error(); /* it is told here and must not turn up in a later TLS call of this thread */
        rc = es_fail(err, ES_ERR_MEMORY, "%s: SHA-256 is not available or there is no memory for it", path);
    }
    if (rc == ES_OK)
        hex_digest(out, md);
    EVP_MD_CTX_free(ctx);
    free(block);
    close(fd);
    return rc;
}

void es_sha256_bytes(char out[65], const void *bytes, size_t n)
{
    unsigned char md[EVP_MAX_MD_SIZE] = {0};
    out[0] = 0; /* "" when the library cannot hash: equal to no digest */
    if (EVP_Digest(bytes, n, md, NULL, EVP_sha256(), NULL) == 1)
        hex_digest(out, md);
    else
        ERR_clear_error();
}

size_t es_disk_free(const char *path)
{
    char at[1200];
    struct statvfs st;
    snprintf(at, sizeof at, "%s", path);
    while (statvfs(at, &st) != 0) {
        char *slash = strrchr(at, '/');
        if (!slash) {
            if (statvfs(".", &st) != 0)
                return SIZE_MAX;
            break;
        }
        slash[slash == at] = 0;
        if (slash == at && statvfs(at, &st) != 0)
            return SIZE_MAX;
    }
    return (size_t)st.f_bavail * (size_t)st.f_frsize;
}
