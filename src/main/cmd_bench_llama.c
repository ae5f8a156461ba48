/* bench --against llama.cpp: prefill, decode and load on the same file and the same tokens, the two in turns, and how near decoding
 * comes to what the machine's memory allows: every token reads all weights once. */
#include "cmd_bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_RUNS = 50, PREFILL = 0, DECODE, LOAD, N_WHAT };

/* ---- the bound ---------------------------------------------------------------------------------------------------------------------- */

typedef uint64_t wide __attribute__((vector_size(64)));
typedef struct reading {
    const wide *data;
    size_t n;
    uint64_t sum[64]; /* so that the reading is not left out */
} reading;

static void read_part(void *user, int part, int parts)
{
    reading *r = user;
    size_t from = r->n * (size_t)part / (size_t)parts, to = r->n * (size_t)(part + 1) / (size_t)parts;
    wide s[4] = {{0}};
    for (size_t i = from; i + 4 <= to; i += 4)
        for (size_t j = 0; j < 4; j++)
            s[j] += r->data[i + j];
    s[0] += s[1] + s[2] + s[3];
    r->sum[part % 64] += s[0][0] + s[0][7];
}

/* Bytes a second that all threads together read from memory: the best of five passes over a quarter of a gigabyte. */
static int read_bandwidth(double *out, es_error *err)
{
    enum { BYTES = 256 << 20 };
    reading r = {.n = BYTES / sizeof(wide)};
    wide *data = aligned_alloc(64, BYTES);
    es_pool *pool = NULL;
    int rc = data ? es_pool_open(&pool, the_app.threads, err) : es_fail(err, ES_ERR_MEMORY, "not enough memory");
    *out = 0;
    if (!rc) {
        memset(data, 1, BYTES);
        r.data = data;
        for (int i = 0; i < 5; i++) {
            double began = es_seconds();
            es_pool_run(pool, read_part, &r);
            double rate = BYTES / (es_seconds() - began);
            *out = rate > *out ? rate : *out;
        }
    }
    es_pool_free(pool);
    free(data);
    return rc;
}

double bench_anonymous_bytes(void)
{
    FILE *f = fopen("/proc/self/smaps_rollup", "re");
    char line[200];
    double kb = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "Anonymous: %lf kB", &kb) == 1)
            break;
    if (f)
        fclose(f);
    return kb * 1024;
}

/* ---- ours ------------------------------------------------------------------------------------------------------------------------------ */

typedef struct ours {
    const char *path;
    es_model *m;
    es_context *c;
    es_ids prompt, tokens;
    int n_ctx;
} ours;

static int open_ours(ours *o, es_model **m, es_context **c, es_error *err)
{
    es_context_options options = {.n_ctx = o->n_ctx, .threads = the_app.threads};
    int rc = es_model_open(m, o->path, err);
    return rc ? rc : es_context_open(c, *m, &options, err);
}

static int load_ours(ours *o, double *seconds, es_error *err)
{
    es_model *m = NULL;
    es_context *c = NULL;
    double began = es_seconds();
    int rc = open_ours(o, &m, &c, err);
    rc = rc ? rc : es_context_feed(c, o->tokens.id, 1, &app_cancel, err);
    *seconds = es_seconds() - began;
    es_context_free(c);
    es_model_free(m);
    return rc;
}

static int run_ours(ours *o, double *prefill, double *decode, es_error *err)
{
    int rc = es_context_truncate(o->c, 0, err);
    double began = es_seconds();
    rc = rc ? rc : es_context_feed(o->c, o->prompt.id, (int)o->prompt.n, &app_cancel, err);
    double middle = es_seconds();
    for (size_t i = 0; !rc && i < o->tokens.n; i++)
        rc = es_context_feed(o->c, o->tokens.id + i, 1, &app_cancel, err);
    *prefill = middle - began;
    *decode = es_seconds() - middle;
    return rc;
}

/* ---- both ------------------------------------------------------------------------------------------------------------------------------- */

static json_t *ids_json(const es_ids *ids)
{
    json_t *list = json_array();
    for (size_t i = 0; i < ids->n; i++)
        json_array_append_new(list, json_integer(ids->id[i]));
    return list;
}

static int number_of(json_t *answer, const char *key, double *out, es_error *err)
{
    json_t *v = json_object_get(answer, key);
    *out = json_number_value(v);
    return *out > 0 ? ES_OK : es_fail(err, ES_ERR_FORMAT, "llama.cpp's side told no %s", key);
}

static int run_peer(peer *p, double *prefill, double *decode, es_error *err)
{
    json_t *answer = NULL;
    int rc = peer_ask(p, json_string("run"), &answer, err);
    rc = rc ? rc : number_of(answer, "prefill", prefill, err);
    rc = rc ? rc : number_of(answer, "decode", decode, err);
    json_decref(answer);
    return rc;
}

static int load_peer(peer *p, double *seconds, es_error *err)
{
    json_t *answer = NULL;
    int rc = peer_ask(p, json_string("load"), &answer, err);
    rc = rc ? rc : number_of(answer, "load", seconds, err);
    json_decref(answer);
    return rc;
}

int bench_against_llama(const char *path, const char *python, int repeat, int prompt, int tokens, json_t *into, es_error *err)
{
    static const char *const name[N_WHAT] = {"prefill", "decode", "load"}, *const unit[N_WHAT] = {"tokens a second", "tokens a second", "seconds"};
    double seconds[2][N_WHAT][MAX_RUNS], rate[2][N_WHAT], bandwidth = 0, before = bench_anonymous_bytes();
    ours o = {.path = path, .n_ctx = prompt + tokens < 2048 ? 2048 : prompt + tokens};
    peer p = {.fd = -1};
    json_t *about = NULL;
    es_rng rng;
    es_rng_seed(&rng, 1);
    long threads = the_app.threads ? the_app.threads : sysconf(_SC_NPROCESSORS_ONLN);
    es_progress progress = app_progress();
    int rc = open_ours(&o, &o.m, &o.c, err);
    if (!rc && prompt + tokens > es_model_get_info(o.m)->n_ctx)
        rc = es_fail(err, ES_ERR_LIMIT, "%d tokens are more than the model's context of %d", prompt + tokens, es_model_get_info(o.m)->n_ctx);
    rc = rc ? rc : bench_random_ids(o.m, &rng, &o.prompt, prompt, err);
    rc = rc ? rc : bench_random_ids(o.m, &rng, &o.tokens, tokens, err);
    double x, y, memory = 0;
    rc = rc ? rc : run_ours(&o, &x, &y, err); /* warms up */
    memory = bench_anonymous_bytes() - before;
    rc = rc ? rc : read_bandwidth(&bandwidth, err);
    rc = rc ? rc : peer_open(&p, python, "bench_llama.py", "llama-cpp-python", err);
    rc = rc ? rc
            : peer_ask(&p, json_pack("{s:s,s:I,s:i,s:o,s:o}", "model", path, "threads", (json_int_t)threads, "n_ctx", o.n_ctx, "prompt", ids_json(&o.prompt), "tokens",
                                     ids_json(&o.tokens)),
                       &about, err);
    rc = rc ? rc : run_peer(&p, &x, &y, err);
    for (int r = 0; !rc && r < repeat; r++) {
        rc = run_ours(&o, &seconds[0][PREFILL][r], &seconds[0][DECODE][r], err);
        rc = rc ? rc : run_peer(&p, &seconds[1][PREFILL][r], &seconds[1][DECODE][r], err);
        rc = rc ? rc : load_ours(&o, &seconds[0][LOAD][r], err);
        rc = rc ? rc : load_peer(&p, &seconds[1][LOAD][r], err);
        es_progress_report(&progress, "runs of each", r + 1, repeat, "runs");
    }
    app_progress_end();
    if (!rc) {
        json_t *side[2] = {json_object(), json_object()}, *ratios = json_object();
        for (int s = 0; s < 2; s++)
            for (int w = 0; w < N_WHAT; w++) {
                double work = w == PREFILL ? prompt : w == DECODE ? tokens : 0, *t = seconds[s][w], median = bench_median(t, repeat);
                rate[s][w] = work ? work / median : median;
                double low = work ? work / t[repeat - 1] : t[0], high = work ? work / t[0] : t[repeat - 1];
                json_object_set_new(side[s], name[w], json_pack("{s:f,s:f,s:f,s:s}", "median", rate[s][w], "least", low, "most", high, "unit", unit[w]));
                if (!the_app.json)
                    printf("%-8s %-10s %9.*f %-16s %9.*f .. %.*f\n", name[w], s ? "llama.cpp" : "espalier", work ? 1 : 3, rate[s][w], unit[w], work ? 1 : 3, low,
                           work ? 1 : 3, high);
            }
        for (int w = 0; w < N_WHAT; w++)
            json_object_set_new(ratios, name[w], json_real(w == LOAD ? rate[1][w] / rate[0][w] : rate[0][w] / rate[1][w]));
        double bytes = (double)es_model_decode_bytes(o.m), bound = bandwidth / bytes;
        json_object_set_new(into, "ratios", ratios);
        json_object_set_new(into, "ours", side[0]);
        json_object_set_new(into, "llama.cpp", side[1]);
        json_object_set_new(into, "bound", json_pack("{s:f,s:f,s:f,s:f}", "read_bytes_a_second", bandwidth, "bytes_a_token", bytes, "tokens_a_second", bound, "share_reached",
                                                     rate[0][DECODE] / bound));
        json_object_set_new(into, "memory_beyond_file", json_real(memory));
        json_object_set(into, "llama.cpp_version", json_object_get(about, "llama.cpp"));
        json_object_set_new(into, "prompt", json_integer(prompt));
        json_object_set_new(into, "tokens", json_integer(tokens));
        if (!the_app.json) {
            printf("prompt of %d tokens, %d after it one at a time; %ld threads each; medians of %d, in turns; llama-cpp-python %s\n", prompt, tokens, threads, repeat,
                   json_string_value(json_object_get(about, "llama.cpp")));
            printf("espalier is %.2f times as fast in prefill, %.2f in decode, %.2f in loading\n", rate[0][PREFILL] / rate[1][PREFILL], rate[0][DECODE] / rate[1][DECODE],
                   rate[1][LOAD] / rate[0][LOAD]);
            printf("memory reads %.1f GB/s, a token %.1f MB of weights: at most %.0f tokens a second, of which it reaches %.0f %%; %.0f MB beyond the file with a context of %d\n",
                   bandwidth / 1e9, bytes / 1e6, bound, 100 * rate[0][DECODE] / bound, memory / 1e6, o.n_ctx);
        }
    }
    json_decref(about);
    peer_close(&p, rc != ES_OK);
    es_ids_free(&o.prompt);
    es_ids_free(&o.tokens);
    es_context_free(o.c);
    es_model_free(o.m);
    return rc;
}
