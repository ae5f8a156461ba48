/* Stand-in for cmocka where it is not to be had for the processor tests are built for: what test_ops.c and test_pool.c use of it. A
 * failure ends the program, as nothing here jumps out of a test. */
#ifndef STANDIN_CMOCKA_H
#define STANDIN_CMOCKA_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct standin_test {
    const char *name;
    void (*run)(void **state);
} standin_test;

#define CMUnitTest standin_test /* struct CMUnitTest becomes struct standin_test */
#define cmocka_unit_test(f) {#f, f}

#define fail_msg(...) (fprintf(stderr, "%s:%d: ", __FILE__, __LINE__), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))
#define skip() return /* of a test, which is void */
#define assert_true(c) ((c) ? (void)0 : fail_msg("%s does not hold", #c))
#define assert_false(c) assert_true(!(c))
#define assert_null(p) assert_true((p) == NULL)
#define assert_non_null(p) assert_true((p) != NULL)
#define assert_int_equal(a, b) standin_int_equal((long long)(a), (long long)(b), #a, __FILE__, __LINE__)
#define assert_string_equal(a, b) (strcmp(a, b) == 0 ? (void)0 : fail_msg("%s is \"%s\", not \"%s\"", #a, a, b))
#define assert_memory_equal(a, b, n) assert_true(memcmp(a, b, n) == 0)
#define cmocka_run_group_tests(tests, setup, teardown) standin_run(tests, (int)(sizeof(tests) / sizeof *(tests)))

static inline void standin_int_equal(long long a, long long b, const char *what, const char *file, int line)
{
    if (a != b) {
        fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", file, line, what, a, b);
        exit(1);
    }
}

static inline int standin_run(const standin_test *t, int n)
{
    for (int i = 0; i < n; i++) {
        void *state = NULL;
        printf("%s\n", t[i].name);
        fflush(stdout);
        t[i].run(&state);
    }
    printf("all %d passed\n", n);
    return 0;
}

#endif
