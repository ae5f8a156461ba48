#include "base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGN = 64 };
#define ARENA_MAP ((size_t)1 << 20) /* from this size on an arena is mapped: its pages are zero and cost nothing until touched */

bool es_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

bool es_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static bool round_up(size_t n, size_t *out)
{
    if (!es_add(n, ALIGN - 1, out))
        return false;
    *out &= ~(size_t)(ALIGN - 1);
    return true;
}

void *es_calloc(size_t n, size_t size)
{
    size_t bytes;
    if (!es_mul(n, size, &bytes) || !round_up(bytes ? bytes : 1, &bytes) || bytes > PTRDIFF_MAX)
        return NULL;
    void *p = aligned_alloc(ALIGN, bytes);
    if (p)
        memset(p, 0, bytes);
    return p;
}

int es_arena_open(es_arena *a, size_t size, es_error *err)
{
    *a = (es_arena){0};
    if (!round_up(size ? size : 1, &size))
        return es_fail(err, ES_ERR_MEMORY, "not enough memory: the size asked for is over what can be addressed");
    void *p;
    if (size >= ARENA_MAP) {
        p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            p = NULL;
    } else {
        p = es_calloc(size, 1);
    }
    if (!p)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory: %.1f MB asked for", (double)size / 1e6);
    a->base = p;
    a->size = size;
    return ES_OK;
}

void *es_arena_take(es_arena *a, size_t n, size_t size)
{
    size_t bytes, end;
    if (!es_mul(n, size, &bytes) || !round_up(bytes, &bytes) || !es_add(a->used, bytes, &end)) {
        if (!a->base)
            a->used = SIZE_MAX - (ALIGN - 1); /* opening that will fail cleanly */
        return NULL;
    }
    if (!a->base) {
        a->used = end;
        return NULL;
    }
    if (end > a->size)
        return NULL;
    void *p = a->base + a->used;
    a->used = end;
    return p;
}

void es_arena_close(es_arena *a)
{
    if (a->base && a->size >= ARENA_MAP)
        munmap(a->base, a->size);
    else
        free(a->base);
    *a = (es_arena){0};
}

size_t es_memory_available(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    char line[200];
    unsigned long long kib = 0;
    bool found = false;
    while (f && !found && fgets(line, sizeof line, f))
        found = sscanf(line, "MemAvailable: %llu kB", &kib) == 1;
    if (f)
        fclose(f);
    size_t bytes;
    return found && es_mul((size_t)kib, 1024, &bytes) ? bytes : SIZE_MAX;
}

int es_memory_check(size_t bytes, size_t limit, const char *what, es_error *err)
{
    size_t most = limit ? limit : es_memory_available();
    if (bytes <= most)
        return ES_OK;
    return es_fail(err, ES_ERR_MEMORY, "%s needs %.2f GB of memory; %s %.2f GB", what, (double)bytes / 1e9, limit ? "it may take" : "the machine has", (double)most / 1e9);
}
