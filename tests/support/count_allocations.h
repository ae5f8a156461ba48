/* Counts the allocations a test program makes and lets one fail on demand, by taking the place of malloc: include in one .c of the program. Under a sanitizer,
 * which has its own malloc, ALLOCATIONS_COUNT is 0. Only calls from the program's own text count, which has our libraries in it;
 * OpenBLAS's and the C library's do not. */
#ifndef ES_TEST_COUNT_ALLOCATIONS_H
#define ES_TEST_COUNT_ALLOCATIONS_H

#include <stdlib.h>

static long allocations;
static long allocation_fails; /* the count at which one fails; 0: none does */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ALLOCATIONS_COUNT 0
#else
#define ALLOCATIONS_COUNT 1
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);
extern const char __executable_start, etext;

/* false: this one is to fail. */
static int count(const void *caller)
{
    if ((const char *)caller < &__executable_start || (const char *)caller >= &etext)
        return 1;
    return __atomic_add_fetch(&allocations, 1, __ATOMIC_RELAXED) != allocation_fails;
}

void *malloc(size_t n)
{
    return count(__builtin_return_address(0)) ? __libc_malloc(n) : NULL;
}

void *calloc(size_t n, size_t size)
{
    return count(__builtin_return_address(0)) ? __libc_calloc(n, size) : NULL;
}

void *realloc(void *p, size_t n)
{
    return count(__builtin_return_address(0)) ? __libc_realloc(p, n) : NULL;
}

void *aligned_alloc(size_t align, size_t n)
{
    return count(__builtin_return_address(0)) ? __libc_memalign(align, n) : NULL;
}
#endif

#endif
