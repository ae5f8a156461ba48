/* Runs the suite: cuda_suite [GROUP...]. Exit 0: all passed; 1: one failed; 77: there is no card. */
#include "suite.h"

#include <setjmp.h>
#include <stdarg.h>

#ifdef ES_SHIM
#include "shim.h"
#endif

es_cuda *card;
es_pool *pool;
const es_kernels *k, *ref;
es_rng rng;

static jmp_buf out_of_test;

static struct { void *p; bool on_card; } *held;
static size_t n_held, cap_held;
static uint64_t *bits; /* of each result, in the order of down() */
static size_t n_bits, cap_bits, at_bits;
static bool first_time;

static void hold(void *p, bool on_card)
{
    if (n_held == cap_held)
        held = realloc(held, (cap_held = 2 * cap_held + 64) * sizeof *held);
    held[n_held].p = p;
    held[n_held++].on_card = on_card;
}

void free_all(void)
{
    while (n_held) {
        n_held--;
        if (held[n_held].on_card)
            k->release(pool, held[n_held].p);
        else
            free(held[n_held].p);
    }
}

void fail_test(const char *file, int line, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    longjmp(out_of_test, 1);
}

void *host(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p)
        abort();
    hold(p, false);
    return p;
}

float *noise(size_t n, float scale)
{
    float *x = host(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = scale * es_rng_normal(&rng);
    return x;
}

float *same(const float *x, size_t n)
{
    return memcpy(host(n * sizeof *x), x, n * sizeof *x);
}

int32_t *below(size_t n, int limit)
{
    int32_t *x = host(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (int32_t)es_rng_below(&rng, (uint64_t)limit);
    return x;
}

void *room(size_t bytes)
{
    void *p;
    es_error err;
    if (k->alloc(pool, &p, bytes, &err))
        FAIL("%s", err.text);
    hold(p, true);
    return p;
}

void *up(const void *host_data, size_t bytes)
{
    void *p = room(bytes);
    k->upload(pool, p, host_data, bytes);
    return p;
}

static uint64_t hash(const void *p, size_t bytes)
{
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ ((const uint8_t *)p)[i]) * 1099511628211u;
    return h;
}

void *down(const void *device, size_t bytes)
{
    void *p = host(bytes);
    k->download(pool, p, device, bytes);
    synced();
    if (first_time) {
        if (n_bits == cap_bits)
            bits = realloc(bits, (cap_bits = 2 * cap_bits + 64) * sizeof *bits);
        bits[n_bits++] = hash(p, bytes);
    } else if (at_bits >= n_bits || bits[at_bits++] != hash(p, bytes))
        FAIL("other bits than the first time: the result depends on the order of the threads");
    return p;
}

void synced(void)
{
    es_error err;
    if (k->sync(pool, &err))
        FAIL("%s", err.text);
}

void on_pool(const es_cuda_pool_options *o, void (*fn)(void))
{
    es_pool *const before = pool;
    es_error err;
    if (es_cuda_pool_open(&pool, card, o, &err)) {
        pool = before;
        FAIL("%s", err.text);
    }
    fn();
    free_all();
    es_pool_free(pool);
    pool = before;
}

double norm(const float *x, size_t n)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += (double)x[i] * x[i];
    return sqrt(s);
}

void near_sized(const char *what, const float *device, const float *want, size_t n, double bound, double usual)
{
    const float *got = DOWN(device, n);
    double diff = 0, size = 0, worst = 0, most = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - want[i];
        diff += d * d;
        size += (double)want[i] * want[i];
        worst = !(fabs(d) <= worst) ? fabs(d) : worst;
        most = fabs(want[i]) > most ? fabs(want[i]) : most;
    }
    size = fmax(size, usual * usual * (double)n);
    most = fmax(most, usual);
    if (!(sqrt(diff) <= bound * sqrt(size) + 1e-12) || !(worst <= 10 * bound * most + 1e-12))
        FAIL("%s: relative error %.2g, largest %.2g of %.2g; allowed %.2g", what, sqrt(diff / (size + 1e-30)), worst, most, bound);
}

/* ---- weights ---------------------------------------------------------------------------------------------------------------------- */

const es_type all_types[] = {ES_F32, ES_F16, ES_BF16, ES_Q4_0, ES_Q4_1, ES_Q5_0, ES_Q5_1, ES_Q8_0,
                             ES_Q2_K, ES_Q3_K, ES_Q4_K, ES_Q5_K, ES_Q6_K, ES_IQ4_NL};
const int n_types = LENGTH(all_types);

static void put_half(uint8_t *at, float f)
{
    uint16_t h;
    es_f32_to_f16(&f, &h, 1);
    memcpy(at, &h, 2);
}

es_weight random_weight(es_type type, int n_out, int n_in)
{
    const es_type_info *t = es_type_get((int)type);
    size_t blocks = (size_t)n_out * (size_t)n_in / (size_t)t->block;
    uint8_t *data = host(blocks * (size_t)t->bytes);
    for (size_t i = 0; i < blocks * (size_t)t->bytes; i++)
        data[i] = (uint8_t)es_rng_below(&rng, 256);
    for (size_t i = 0; i < blocks; i++) {
        uint8_t *b = data + i * (size_t)t->bytes;
        float d = 0.01f * es_rng_normal(&rng);
        switch (type) {
        case ES_F32: memcpy(b, &d, 4); break;
        case ES_BF16: memcpy(b, (const char *)&d + 2, 2); break;
        case ES_F16:
        case ES_Q4_0:
        case ES_Q5_0:
        case ES_Q8_0: put_half(b, d); break;
        case ES_IQ4_NL: put_half(b, 0.1f * d); break;
        case ES_Q4_1: put_half(b, d), put_half(b + 2, -7 * d); break;
        case ES_Q5_1: put_half(b, d), put_half(b + 2, -15 * d); break;
        case ES_Q2_K: put_half(b + 80, 0.1f * d), put_half(b + 82, 0.2f * d); break;
        case ES_Q3_K: put_half(b + 108, 0.1f * d); break;
        case ES_Q4_K: put_half(b, 0.03f * d), put_half(b + 2, 0.2f * d); break;
        case ES_Q5_K: put_half(b, 0.03f * d), put_half(b + 2, 0.4f * d); break;
        case ES_Q6_K: put_half(b + 208, 0.01f * d); break;
        }
    }
    return (es_weight){type, n_out, n_in, data};
}

es_weight on_card(const es_weight *w)
{
    return (es_weight){w->type, w->n_out, w->n_in, up(w->data, (size_t)w->n_out * es_row_bytes(w->type, w->n_in))};
}

/* ---- running ------------------------------------------------------------------------------------------------------------------------- */

static int failed, passed;

static int times(const char *group)
{
    if (strcmp(group, "engine") == 0)
        return 1; /* it compares no bits; its ops are each tested in every order */
#ifdef ES_SHIM
    return 3; /* as numbered, backwards, shuffled */
#else
    return 2;
#endif
}

static void run(const char *group, const suite_test *t)
{
    es_pool *const own = pool;
    n_bits = 0;
    for (volatile int time = 0; time < times(group); time++) {
#ifdef ES_SHIM
        shim_order(time);
#endif
        first_time = time == 0;
        at_bits = 0;
        es_rng_seed(&rng, 7);
        if (setjmp(out_of_test)) {
            fprintf(stderr, "FAILED %s.%s (time %d)\n", group, t->name, time + 1);
            free_all();
            if (pool != own) /* one that the test opened */
                es_pool_free(pool);
            pool = own;
            k->sync(pool, NULL);
            failed++;
            return;
        }
        t->run();
        free_all();
        synced();
    }
    passed++;
    fprintf(stderr, "ok %s.%s\n", group, t->name);
}

int main(int argc, char **argv)
{
    static const struct { const char *name; const suite_test *tests; } groups[] = {
        {"device", device_tests}, {"rows", rows_tests}, {"matmul", matmul_tests}, {"attention", attention_tests}, {"sparse", sparse_tests},
        {"model", model_tests}, {"engine", engine_tests},
    };
    char line[256];
    es_error err;
    es_cuda_describe(NULL, line, sizeof line);
    if (es_cuda_count() == 0) {
        fprintf(stderr, "skipped: %s\n", line);
        return 77;
    }
    const es_cuda_pool_options options = {.precision = ES_CUDA_F32, .workspace = 1 << 16};
    if (es_cuda_open(0, &card, &err) || es_cuda_pool_open(&pool, card, &options, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    k = es_cuda_table();
    ref = es_kernels_scalar();
    es_cuda_describe(card, line, sizeof line);
    fprintf(stderr, "%s\n", line);
    int known = 0;
    for (int g = 0; g < LENGTH(groups); g++) {
        bool wanted = argc == 1;
        for (int i = 1; i < argc; i++)
            wanted |= strcmp(argv[i], groups[g].name) == 0;
        known += wanted;
        for (const suite_test *t = groups[g].tests; wanted && t->name; t++)
            run(groups[g].name, t);
    }
    es_pool_free(pool);
    es_cuda_close(card);
    free(held);
    free(bits);
#ifdef ES_SHIM
    if (shim_memory_used() != 0) {
        fprintf(stderr, "FAILED: %zu bytes of the card's memory were not given back\n", shim_memory_used());
        failed++;
    }
#endif
    fprintf(stderr, "%d passed, %d failed\n", passed, failed);
    return failed || !known || !passed ? 1 : 0;
}
