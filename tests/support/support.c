#include "support.h"

#include <dirent.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static void die(const char *what)
{
    fprintf(stderr, "test support: %s\n", what);
    exit(1);
}

static char temp_dir[512];

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static pid_t owner;

static void remove_dir(void)
{
    if (getpid() == owner) /* not in a forked child */
        nftw(temp_dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

const char *test_path(const char *fmt, ...)
{
    static char ring[16][1024];
    static int at;
    if (!temp_dir[0]) {
        const char *tmp = getenv("TMPDIR");
        struct statvfs room; /* memory where there is plenty: the damage tests write thousands of small files */
        if (!tmp || !*tmp)
            tmp = access("/dev/shm", W_OK | X_OK) == 0 && statvfs("/dev/shm", &room) == 0 && room.f_bavail > ((1ul << 30) / room.f_frsize)
                      ? "/dev/shm" : "/tmp";
        snprintf(temp_dir, sizeof temp_dir, "%s/espalier-test-XXXXXX", tmp);
        if (!mkdtemp(temp_dir))
            die("cannot make a temporary folder");
        owner = getpid();
        atexit(remove_dir);
    }
    char *p = ring[at++ % 16];
    int n = snprintf(p, sizeof ring[0], "%s/", temp_dir);
    va_list args;
    va_start(args, fmt);
    vsnprintf(p + n, sizeof ring[0] - (size_t)n, fmt, args);
    va_end(args);
    return p;
}

void test_write(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (!f || (n && fwrite(bytes, 1, n, f) != n) || fclose(f) != 0)
        die("cannot write a test file");
}

void test_read(es_buf *out, const char *path)
{
    es_error err;
    if (es_file_read(out, path, (size_t)1 << 32, &err) != ES_OK)
        die(err.text);
}

const char *test_golden(const char *name)
{
    static char path[1024];
    const char *dir = getenv("ESPALIER_TEST_DIR");
    snprintf(path, sizeof path, "%s/golden/%s", dir ? dir : "tests", name);
    return path;
}

/* The file that the variable names, else the one of that name where the program puts models; NULL: not here. */
static const char *find_model(char path[1024], const char *variable, const char *name)
{
    const char *s = getenv(variable), *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    if (s && *s)
        snprintf(path, 1024, "%s", s);
    else if (data && *data)
        snprintf(path, 1024, "%s/espalier/models/%s", data, name);
    else
        snprintf(path, 1024, "%s/.local/share/espalier/models/%s", home ? home : "", name);
    return access(path, R_OK) == 0 ? path : NULL;
}

const char *test_real_model(void)
{
    static char path[1024];
    return find_model(path, "ESPALIER_TEST_MODEL", "SmolLM2-135M-Instruct.Q4_1.gguf");
}

const char *test_gemma(void)
{
    static char path[1024];
    return find_model(path, "ESPALIER_TEST_GEMMA", "gemma-3-270m-q4_k_m.gguf");
}

const char *test_data(void)
{
    const char *s = getenv("ESPALIER_TEST_DATA");
    return s && *s && access(s, R_OK) == 0 ? s : NULL;
}

void test_skip(const char *why)
{
    printf("skipped: %s\n", why);
    fflush(stdout);
    exit(TEST_SKIP);
}

void test_error(int rc, const es_error *err, const char *part, const char *file, int line)
{
    if (rc >= 0) {
        print_error("expected an error%s%s, got success\n", part ? " about: " : "", part ? part : "");
        _fail(file, line);
    }
    bool ok = err->code == rc && err->text[0] && memchr(err->text, 0, sizeof err->text) &&
              es_utf8_whole(err->text, strlen(err->text)) == strlen(err->text);
    for (const char *p = err->text; ok && *p; p++)
        ok = (unsigned char)*p >= 0x20 && *p != 0x7f;
    if (!ok) {
        print_error("error %d without one printable line (code %d): %s\n", rc, err->code, err->text);
        _fail(file, line);
    }
    if (part && !strstr(err->text, part)) {
        print_error("the error does not say \"%s\": %s\n", part, err->text);
        _fail(file, line);
    }
}

void test_ok(int rc, const es_error *err, const char *file, int line)
{
    if (rc == ES_OK)
        return;
    print_error("error %d: %s\n", rc, err->text);
    _fail(file, line);
}
