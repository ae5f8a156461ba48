/* failing: memory that runs out. Included by the one source of a test program: the functions below then replace libc's. They
 * count, and fail when told to; under a sanitizer, which owns the allocator, they do nothing. */
#ifndef ES_TEST_FAILING_H
#define ES_TEST_FAILING_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>

/* From now on the (n+1)th allocation fails; for_good: and all after it. n < 0: none. */
void test_fail_malloc(long n, bool for_good);
bool test_malloc_failed(void); /* since the last test_fail_malloc */
long test_malloc_live(void);   /* blocks allocated and not freed by the whole program: equal before and after, nothing leaked */
bool test_malloc_hooked(void); /* false under a sanitizer */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

void test_fail_malloc(long n, bool for_good)
{
    (void)n, (void)for_good;
}

bool test_malloc_failed(void) { return false; }
long test_malloc_live(void) { return 0; }
bool test_malloc_hooked(void) { return false; }

#else

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);
void *aligned_alloc(size_t align, size_t n);
void *malloc(size_t n);
void *calloc(size_t n, size_t size);
void *realloc(void *p, size_t n);
void free(void *p);

static long malloc_left = -1, malloc_live;
static bool malloc_every, malloc_failed;

void test_fail_malloc(long n, bool for_good)
{
    malloc_failed = false;
    malloc_every = for_good;
    __atomic_store_n(&malloc_left, n, __ATOMIC_SEQ_CST);
}

bool test_malloc_failed(void) { return malloc_failed; }
long test_malloc_live(void) { return __atomic_load_n(&malloc_live, __ATOMIC_SEQ_CST); }
bool test_malloc_hooked(void) { return true; }

static bool refuse(void)
{
    long n = __atomic_load_n(&malloc_left, __ATOMIC_SEQ_CST);
    if (n < 0)
        return false;
    if (n > 0) {
        __atomic_store_n(&malloc_left, n - 1, __ATOMIC_SEQ_CST);
        return false;
    }
    if (!malloc_every)
        __atomic_store_n(&malloc_left, -1, __ATOMIC_SEQ_CST);
    malloc_failed = true;
    errno = ENOMEM;
    return true;
}

static void *count(void *p)
{
    if (p)
        __atomic_add_fetch(&malloc_live, 1, __ATOMIC_SEQ_CST);
    return p;
}

void *malloc(size_t n) { return refuse() ? NULL : count(__libc_malloc(n)); }
void *calloc(size_t n, size_t size) { return refuse() ? NULL : count(__libc_calloc(n, size)); }
void *aligned_alloc(size_t align, size_t n) { return refuse() ? NULL : count(__libc_memalign(align, n)); }

void *realloc(void *p, size_t n)
{
    if (refuse())
        return NULL;
    void *q = __libc_realloc(p, n);
    return p ? q : count(q);
}

void free(void *p)
{
    if (p)
        __atomic_sub_fetch(&malloc_live, 1, __ATOMIC_SEQ_CST);
    __libc_free(p);
}

#endif

#endif
