// A dictionary on the card (sparse.h). Pre-activations are made a tile of features at a time, for all tokens, in the workspace, and each tile is
// read for what it adds to the kept entries before the next one takes its place.
//
// An entry is a key of 64 bits: its pre-activation, turned into a number that orders as floats do, above the complement of token * F + feature.
// Keys are distinct, so the largest n of them are one set whatever order the threads come in; and equal values go to the lower place.
//
// BatchTopK: candidates above the cut are appended to a list. The cut is raised after each tile, by a histogram of the keys' upper 16 bits, to what
// surely lies below the T*k-th largest so far, so that of F features far from all become candidates. The exact T*k are chosen at the end. Limits:
// the encoder's product (tensor cores when the pool allows bfloat16), then reading each tile back once.
#include "device.cuh"

extern "C" {
#include "sparse.h"
}

typedef unsigned long long key64; // what atomicAdd and friends want

enum { THREADS = 256, WIDE = 1024, BINS = 1 << 16 };

struct list { // candidates, in the workspace
    key64 *keys, *other; // [room]
    uint32_t *bins;      // [BINS]
    key64 *least;        // [1] candidates are above it
    uint32_t *n;         // [4] how many keys; found; wanted of the digit; to be selected
    uint32_t room;
};

static __device__ __forceinline__ uint32_t ordered(float x)
{
    const uint32_t bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ float from_ordered(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

static __device__ __forceinline__ key64 key_of(float z, uint32_t place)
{
    return (key64)ordered(z) << 32 | (uint32_t)~place;
}

// ---- candidates ---------------------------------------------------------------------------------------------------------------------

// One tile z[T, width] of features f0 .. : what is above its threshold and the cut goes to the list. count: whether the histogram is kept.
static __global__ void append(const float *z, int T, int width, int F, int f0, const float *bias, const float *threshold, list l, bool count)
{
    const key64 least = *l.least;
    ES_EACH(e, (size_t)T * width) {
        const int f = f0 + (int)(e % width);
        const float v = z[e] + (bias ? bias[f] : 0);
        if (!(v > (threshold ? threshold[f] : 0)))
            continue;
        const key64 key = key_of(v, (uint32_t)(e / width) * (uint32_t)F + (uint32_t)f);
        if (key <= least)
            continue;
        const uint32_t at = atomicAdd(l.n, 1u);
        if (at < l.room)
            l.keys[at] = key;
        if (count)
            atomicAdd(&l.bins[key >> 48], 1u);
    }
}

// By a block of WIDE threads, in every one of them: the bin that holds the want-th largest, or the lowest when there are fewer; over: how many are
// in higher bins. sum: WIDE + 32 numbers of shared memory.
static __device__ int bin_of(const uint32_t *bins, uint32_t want, uint32_t *sum, uint32_t *over)
{
    const int each = BINS / WIDE;
    uint32_t mine = 0;
    for (int i = 0; i < each; i++)
        mine += bins[threadIdx.x * each + i];
    sum[threadIdx.x] = mine;
    for (int step = 16; step > 0; step >>= 1)
        mine += __shfl_xor_sync(0xffffffffu, mine, step);
    if (threadIdx.x % 32 == 0)
        sum[WIDE + threadIdx.x / 32] = mine;
    __syncthreads();
    uint32_t above = 0;
    int warp = WIDE / 32 - 1;
    while (warp > 0 && above + sum[WIDE + warp] < want)
        above += sum[WIDE + warp--];
    int part = warp * 32 + 31;
    while (part > warp * 32 && above + sum[part] < want)
        above += sum[part--];
    int bin = part * each + each - 1;
    while (bin > part * each && above + bins[bin] < want)
        above += bins[bin--];
    *over = above;
    return bin;
}

// One block. All of that bin and what is above stays, so the cut is right below it.
static __global__ void __launch_bounds__(WIDE) raise(list l, uint32_t want)
{
    ES_SHARED(uint32_t, sum);
    uint32_t over;
    const int bin = bin_of(l.bins, want, sum, &over);
    const key64 cut = (key64)bin << 48;
    if (threadIdx.x == 0 && over + l.bins[bin] >= want && cut > 0 && cut - 1 > *l.least)
        *l.least = cut - 1;
}

// ---- the exact choice: the want-th largest key, 16 bits at a time ---------------------------------------------------------------------

static __global__ void select_start(list l, uint32_t want)
{
    if (threadIdx.x == 0) {
        *l.least = 0;
        l.n[1] = 0;
        l.n[2] = want;
        l.n[3] = *l.n > want; // else all stay
    }
}

static __global__ void clear_bins(list l)
{
    ES_EACH(i, (size_t)BINS) l.bins[i] = 0;
}

// Those that agree with the part found so far are counted by their next 16 bits.
static __global__ void select_count(list l, int shift)
{
    if (!l.n[3])
        return;
    const key64 found = *l.least, above = shift == 48 ? 0 : ~(key64)0 << (shift + 16);
    ES_EACH(i, (size_t)*l.n) if ((l.keys[i] & above) == found) atomicAdd(&l.bins[l.keys[i] >> shift & 0xffff], 1u);
}

static __global__ void __launch_bounds__(WIDE) select_digit(list l, int shift)
{
    ES_SHARED(uint32_t, sum);
    uint32_t over;
    if (!l.n[3])
        return;
    const uint32_t want = l.n[2]; // read by all before bin_of's barrier
    const int bin = bin_of(l.bins, want, sum, &over);
    if (threadIdx.x == 0) {
        *l.least |= (key64)bin << shift;
        l.n[2] = want - over;
    }
}

// The chosen ones to the other array, and into a fresh histogram.
static __global__ void select_move(list l)
{
    const key64 least = *l.least;
    ES_EACH(i, (size_t)*l.n) {
        const key64 key = l.keys[i];
        if (l.n[3] && key < least)
            continue;
        l.other[atomicAdd(&l.n[1], 1u)] = key;
        atomicAdd(&l.bins[key >> 48], 1u);
    }
}

static __global__ void select_end(list l)
{
    if (threadIdx.x == 0) {
        *l.n = l.n[1];
        *l.least = l.n[3] ? *l.least - 1 : 0; // a later candidate must be above the least that is kept: equal to it none can be
    }
}

static void start(es_stream *s, void (*kernel)(list), list l)
{
    ES_LAUNCH(s, kernel, 1, 32, 0, l);
}

static void select_largest(es_stream *s, list *l, uint32_t want)
{
    const int grid = es_grid_for(s, l->room, THREADS);
    ES_LAUNCH(s, select_start, 1, 32, 0, *l, want);
    for (int shift = 48; shift >= 0; shift -= 16) {
        ES_LAUNCH(s, clear_bins, es_grid_for(s, BINS, THREADS), THREADS, 0, *l);
        ES_LAUNCH(s, select_count, grid, THREADS, 0, *l, shift);
        ES_LAUNCH(s, select_digit, 1, WIDE, (WIDE + 32) * sizeof(uint32_t), *l, shift);
    }
    ES_LAUNCH(s, clear_bins, es_grid_for(s, BINS, THREADS), THREADS, 0, *l);
    ES_LAUNCH(s, select_move, grid, THREADS, 0, *l);
    start(s, select_end, *l);
    key64 *keys = l->keys;
    l->keys = l->other;
    l->other = keys;
}

// Before a tile that might fill the list: the same choice by one block, all in one kernel, because it all but never comes to it. The raised cut
// lets about want / i candidates of the i-th tile through; only features in an unlucky order bring more.
static __global__ void __launch_bounds__(WIDE) squeeze(list l, uint32_t want, uint32_t adds)
{
    ES_SHARED(uint32_t, sum);
    const uint32_t n = *l.n;
    if (n + adds <= l.room)
        return;
    key64 found = 0;
    uint32_t wanted = want;
    for (int shift = 48; shift >= 0; shift -= 16) {
        const key64 above = shift == 48 ? 0 : ~(key64)0 << (shift + 16);
        for (int i = threadIdx.x; i < BINS; i += WIDE)
            l.bins[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n; i += WIDE)
            if ((l.keys[i] & above) == found)
                atomicAdd(&l.bins[l.keys[i] >> shift & 0xffff], 1u);
        __syncthreads();
        uint32_t over;
        const int bin = bin_of(l.bins, wanted, sum, &over);
        found |= (key64)bin << shift;
        wanted -= over;
        __syncthreads();
    }
    for (int i = threadIdx.x; i < BINS; i += WIDE)
        l.bins[i] = 0;
    if (threadIdx.x == 0)
        l.n[1] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += WIDE)
        if (l.keys[i] >= found) {
            l.other[atomicAdd(&l.n[1], 1u)] = l.keys[i];
            atomicAdd(&l.bins[l.keys[i] >> 48], 1u);
        }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < want; i += WIDE)
        l.keys[i] = l.other[i];
    if (threadIdx.x == 0) {
        *l.n = want;
        *l.least = found - 1;
    }
}

// ---- each token's own k largest ---------------------------------------------------------------------------------------------------------

// One block a token. What it has kept so far, ordered by feature, and the tile's row, whose features all come later, are one sequence; its k
// largest that are above 0 go to `to` in their order. As top_of in loss.cu, a byte at a time.
static __global__ void __launch_bounds__(THREADS) merge_row(const float *z, int width, int f0, const float *bias, int k, const float *value,
                                                            const int32_t *feature, const int32_t *count, float *to_value, int32_t *to_feature,
                                                            int32_t *to_count)
{
    ES_SHARED(uint32_t, bins); // [256]; later places of the warps, [8] twice
    uint32_t *state = bins + 256;
    const int t = blockIdx.x, had = count[t], n = had + width, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    value += (size_t)t * k, feature += (size_t)t * k, to_value += (size_t)t * k, to_feature += (size_t)t * k;
    z += (size_t)t * width;
    auto at = [&](int i) {
        const float v = i < had ? value[i] : z[i - had] + (bias ? bias[f0 + i - had] : 0);
        return v > 0 ? ordered(v) : 0; // 0: no candidate
    };
    if (threadIdx.x == 0) {
        state[0] = 0;
        state[1] = (uint32_t)k;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        const uint32_t prefix = state[0], above = shift == 24 ? 0 : 0xffffffffu << (shift + 8);
        bins[threadIdx.x] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += THREADS) {
            const uint32_t key = at(i);
            if (key && (key & above) == prefix)
                atomicAdd(&bins[key >> shift & 255], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0 && state[1]) {
            uint32_t seen = 0;
            int byte = 255;
            while (byte >= 0 && seen + bins[byte] < state[1])
                seen += bins[byte--];
            if (byte < 0) { // there are no more than k: all of them
                state[0] = 0;
                state[1] = 0;
            } else {
                state[0] = prefix | (uint32_t)byte << shift;
                state[1] -= seen;
            }
        }
    }
    __syncthreads();
    const uint32_t least = state[0], equal = state[1];
    if (threadIdx.x == 0)
        state[2] = state[3] = 0;
    for (int from = 0; from < n; from += THREADS) {
        const int i = from + threadIdx.x;
        const uint32_t key = i < n ? at(i) : 0;
        const bool over = key > least, same = key == least && key;
        const unsigned all_same = __ballot_sync(0xffffffffu, same);
        __syncthreads();
        if (lane == 0)
            bins[warp] = __popc(all_same);
        __syncthreads();
        uint32_t before_same = state[3], total_same = 0;
        for (int w = 0; w < THREADS / 32; w++) {
            before_same += w < warp ? bins[w] : 0;
            total_same += bins[w];
        }
        before_same += __popc(all_same & ((1u << lane) - 1));
        const bool stays = over || (same && before_same < equal);
        const unsigned all = __ballot_sync(0xffffffffu, stays);
        __syncthreads();
        if (lane == 0)
            bins[warp] = __popc(all);
        __syncthreads();
        uint32_t place = state[2], total = 0;
        for (int w = 0; w < THREADS / 32; w++) {
            place += w < warp ? bins[w] : 0;
            total += bins[w];
        }
        place += __popc(all & ((1u << lane) - 1));
        if (stays) {
            to_value[place] = from_ordered(key);
            to_feature[place] = i < had ? feature[i] : f0 + i - had;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            state[2] += total;
            state[3] += total_same;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0)
        to_count[t] = (int32_t)state[2];
}

// ---- lists in order -----------------------------------------------------------------------------------------------------------------------

static __global__ void fill(int32_t *x, size_t n, int32_t value)
{
    ES_EACH(i, n) x[i] = value;
}

// One block: start[i] = the sum of what stood before i, start[n] = all of it.
static __global__ void __launch_bounds__(WIDE) running_sums(int32_t *start, int n)
{
    ES_SHARED(int32_t, part); // [32]
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int32_t carry = 0;
    for (int from = 0; from <= n; from += WIDE) {
        const int i = from + threadIdx.x;
        const int32_t own = i < n ? start[i] : 0;
        int32_t sum = own;
        for (int step = 1; step < 32; step <<= 1) {
            const int32_t other = __shfl_up_sync(0xffffffffu, sum, step);
            sum += lane >= step ? other : 0;
        }
        __syncthreads();
        if (lane == 31)
            part[warp] = sum;
        __syncthreads();
        int32_t before = carry, all = 0;
        for (int w = 0; w < WIDE / 32; w++) {
            before += w < warp ? part[w] : 0;
            all += part[w];
        }
        if (i <= n)
            start[i] = before + sum - own;
        carry += all;
    }
}

static __global__ void count_tokens(list l, uint32_t cap, int F, int32_t *count, int32_t *start)
{
    const uint32_t n = *l.n < cap ? *l.n : cap;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        count[0] = (int32_t)n;
        count[1] = *l.n > 0x7fffffffu ? 0x7fffffff : (int32_t)*l.n;
    }
    ES_EACH(i, (size_t)n) atomicAdd(&start[(uint32_t)~(uint32_t)l.keys[i] / (uint32_t)F], 1);
}

static __global__ void place_tokens(list l, uint32_t cap, int F, int32_t *cursor, key64 *to)
{
    const uint32_t n = *l.n < cap ? *l.n : cap;
    ES_EACH(i, (size_t)n) to[atomicAdd(&cursor[(uint32_t)~(uint32_t)l.keys[i] / (uint32_t)F], 1)] = l.keys[i];
}

// One block a token: its entries by feature, whose place is how many features are lower.
static __global__ void rank_token(const key64 *keys, const int32_t *start, int F, int32_t *token, int32_t *feature, float *value)
{
    const int t = blockIdx.x, from = start[t], until = start[t + 1];
    for (int i = from + (int)threadIdx.x; i < until; i += blockDim.x) {
        const uint32_t place = ~(uint32_t)keys[i];
        int rank = from;
        for (int j = from; j < until; j++)
            rank += (uint32_t)~(uint32_t)keys[j] < place;
        token[rank] = t;
        feature[rank] = (int32_t)(place - (uint32_t)t * (uint32_t)F);
        value[rank] = from_ordered((uint32_t)(keys[i] >> 32));
    }
}

static __global__ void copy_rows_of(const float *value, const int32_t *feature, const int32_t *count, int k, int cap, const int32_t *start,
                                    int T, es_entries out)
{
    const int t = blockIdx.x;
    for (int i = threadIdx.x; i < count[t]; i += blockDim.x) {
        const int at = start[t] + i;
        if (at >= cap)
            break;
        out.token[at] = t;
        out.feature[at] = feature[(size_t)t * k + i];
        out.value[at] = value[(size_t)t * k + i];
    }
    if (t == 0 && threadIdx.x == 0) {
        out.count[0] = start[T] < cap ? start[T] : cap;
        out.count[1] = start[T];
    }
}

// ---- encode -------------------------------------------------------------------------------------------------------------------------------

struct bench { // the workspace, cut up
    char *at, *end;
};

static void *take(bench *b, size_t n, size_t size)
{
    char *p = b->at;
    const size_t bytes = es_align256(n * size);
    if ((size_t)(b->end - p) < bytes)
        return NULL;
    b->at += bytes;
    return p;
}

static bool too_small(es_stream *s, const es_encoder *e, int T)
{
    es_stream_fail(s, ES_ERR_LIMIT, "encoding %d tokens with %d features wants a larger workspace than %zu bytes, or fewer tokens at once", T, e->F,
                   s->o.workspace);
    return false;
}

struct tiles { // z, and what its product is made of
    es_product kind;
    const void *x;
    __nv_bfloat16 *rows;
    float *z;
    int width;
};

// What is left of the workspace after `each` more bytes for every pre-activation of a tile are set aside.
static bool tiles_for(es_stream *s, const es_encoder *e, const float *x, int T, size_t each, bench *b, tiles *out)
{
    out->kind = s->o.precision == ES_CUDA_BF16 ? ES_PRODUCT_BF16 : s->o.precision == ES_CUDA_TF32 ? ES_PRODUCT_TF32 : ES_PRODUCT_F32;
    out->x = x;
    if (out->kind == ES_PRODUCT_BF16) {
        __nv_bfloat16 *rounded = (__nv_bfloat16 *)take(b, (size_t)T * e->d, sizeof *rounded);
        if (!rounded)
            return too_small(s, e, T);
        es_to_bf16(s, x, rounded, (size_t)T * e->d);
        out->x = rounded;
    }
    const size_t feature = (size_t)T * (sizeof(float) + each) + (out->kind == ES_PRODUCT_BF16 ? 2 * (size_t)e->d : 0), spare = 4 * 256;
    const size_t left = (size_t)(b->end - b->at);
    const size_t width = left > spare ? (left - spare) / feature : 0;
    if (width < 1)
        return too_small(s, e, T);
    out->width = width < (size_t)e->F ? (int)width : e->F;
    if (out->width > 64)
        out->width = out->width / 64 * 64; // what tensor cores like
    out->rows = out->kind == ES_PRODUCT_BF16 ? (__nv_bfloat16 *)take(b, (size_t)out->width * e->d, 2) : NULL;
    out->z = (float *)take(b, (size_t)T * out->width, sizeof(float));
    return true;
}

static void make_tile(es_stream *s, const tiles *t, const es_encoder *e, int T, int f0, int width)
{
    const float *enc = e->enc + (size_t)f0 * e->d;
    if (t->rows)
        es_to_bf16(s, enc, t->rows, (size_t)width * e->d);
    es_product_do(s, t->kind, false, true, T, width, e->d, 1, t->x, e->d, t->rows ? (const void *)t->rows : enc, e->d, 0, t->z, width);
}

static void order_list(es_stream *s, const list *l, int T, int F, const es_entries *out)
{
    const int grid = es_grid_for(s, l->room, THREADS);
    int32_t *cursor = (int32_t *)l->bins; // [T] of what has been used up by now; the caller saw to its size
    ES_LAUNCH(s, fill, es_grid_for(s, T + 1, THREADS), THREADS, 0, out->token_start, (size_t)T + 1, 0);
    ES_LAUNCH(s, count_tokens, grid, THREADS, 0, *l, (uint32_t)out->cap, F, out->count, out->token_start);
    ES_LAUNCH(s, running_sums, 1, WIDE, 32 * sizeof(int32_t), out->token_start, T);
    if (es_stream_ready(s))
        es_stream_check(s, cudaMemcpyAsync(cursor, out->token_start, sizeof(int32_t) * (size_t)T, cudaMemcpyDeviceToDevice, s->stream), "copy");
    ES_LAUNCH(s, place_tokens, grid, THREADS, 0, *l, (uint32_t)out->cap, F, cursor, l->other);
    ES_LAUNCH(s, rank_token, T, THREADS, 0, (const key64 *)l->other, (const int32_t *)out->token_start, F, out->token, out->feature, out->value);
}

static void encode_list(es_stream *s, const es_encoder *e, const float *x, int T, const es_entries *out)
{
    const bool batch = e->keep == ES_KEEP_BATCH;
    const size_t want = batch ? (size_t)T * e->k : (size_t)out->cap;
    bench b = {s->work, s->work + s->o.workspace};
    list l;
    l.bins = (uint32_t *)take(&b, T > BINS ? T : BINS, sizeof *l.bins);
    l.least = (key64 *)take(&b, 1, sizeof *l.least);
    l.n = (uint32_t *)take(&b, 4, sizeof *l.n);
    // Room: for a batch, four times what is kept, and whatever one tile can add; twice, to move from one to the other. Else, what there is to keep.
    const size_t kept = batch ? 4 * want : want, copies = 2 * sizeof(key64);
    tiles t;
    if (!l.bins || !l.least || !l.n || (size_t)(b.end - b.at) < copies * kept) {
        too_small(s, e, T);
        return;
    }
    b.end -= copies * kept;
    if (!tiles_for(s, e, x, T, batch ? copies : 0, &b, &t))
        return;
    b.end += copies * kept;
    l.room = (uint32_t)(kept + (batch ? (size_t)T * t.width : 0));
    l.keys = (key64 *)take(&b, l.room, sizeof *l.keys);
    l.other = (key64 *)take(&b, l.room, sizeof *l.other);
    if (!l.keys || !l.other) {
        too_small(s, e, T);
        return;
    }
    ES_LAUNCH(s, fill, 1, 32, 0, (int32_t *)l.n, (size_t)4, 0);
    ES_LAUNCH(s, fill, 1, 32, 0, (int32_t *)l.least, (size_t)2, 0);
    ES_LAUNCH(s, clear_bins, es_grid_for(s, BINS, THREADS), THREADS, 0, l);
    for (int f = 0; f < e->F; f += t.width) {
        const int width = e->F - f < t.width ? e->F - f : t.width;
        const size_t adds = (size_t)T * width;
        if (batch && f > 0)
            ES_LAUNCH(s, squeeze, 1, WIDE, (WIDE + 32) * sizeof(uint32_t), l, (uint32_t)want, (uint32_t)adds);
        make_tile(s, &t, e, T, f, width);
        ES_LAUNCH(s, append, es_grid_for(s, adds, THREADS), THREADS, 0, (const float *)t.z, T, width, e->F, f, e->bias,
                  batch ? (const float *)NULL : e->threshold, l, batch);
        if (batch && f > 0 && f + width < e->F)
            ES_LAUNCH(s, raise, 1, WIDE, (WIDE + 32) * sizeof(uint32_t), l, (uint32_t)want);
        else if (batch && f == 0) // nothing was known of the cut, so about half of the tile is on the list
            select_largest(s, &l, (uint32_t)want);
    }
    if (batch && e->F > t.width)
        select_largest(s, &l, (uint32_t)want);
    order_list(s, &l, T, e->F, out);
}

static void encode_tokens(es_stream *s, const es_encoder *e, const float *x, int T, const es_entries *out)
{
    const size_t each = (size_t)T * e->k;
    bench b = {s->work, s->work + s->o.workspace};
    float *value[2];
    int32_t *feature[2], *count[2];
    tiles t;
    for (int i = 0; i < 2; i++) {
        value[i] = (float *)take(&b, each, sizeof(float));
        feature[i] = (int32_t *)take(&b, each, sizeof(int32_t));
        count[i] = (int32_t *)take(&b, T, sizeof(int32_t));
    }
    if (!value[1] || !feature[1] || !count[1]) {
        too_small(s, e, T);
        return;
    }
    if (!tiles_for(s, e, x, T, 0, &b, &t))
        return;
    ES_LAUNCH(s, fill, es_grid_for(s, T, THREADS), THREADS, 0, count[0], (size_t)T, 0);
    int now = 0;
    for (int f = 0; f < e->F; f += t.width, now ^= 1) {
        const int width = e->F - f < t.width ? e->F - f : t.width;
        make_tile(s, &t, e, T, f, width);
        ES_LAUNCH(s, merge_row, T, THREADS, (256 + 4) * sizeof(uint32_t), (const float *)t.z, width, f, e->bias, e->k, (const float *)value[now],
                  (const int32_t *)feature[now], (const int32_t *)count[now], value[now ^ 1], feature[now ^ 1], count[now ^ 1]);
    }
    if (es_stream_ready(s))
        es_stream_check(s, cudaMemcpyAsync(out->token_start, count[now], sizeof(int32_t) * (size_t)T, cudaMemcpyDeviceToDevice, s->stream), "copy");
    ES_LAUNCH(s, running_sums, 1, WIDE, 32 * sizeof(int32_t), out->token_start, T);
    ES_LAUNCH(s, copy_rows_of, T, 128, 0, (const float *)value[now], (const int32_t *)feature[now], (const int32_t *)count[now], e->k, out->cap,
              (const int32_t *)out->token_start, T, *out);
}

static void encode(es_pool *p, const es_encoder *e, const float *x, int T, const es_entries *out)
{
    es_stream *s = es_stream_of(p);
    if (T < 1 || e->F < 1 || !es_stream_ready(s)) {
        ES_LAUNCH(s, fill, 1, 32, 0, out->count, (size_t)2, 0);
        ES_LAUNCH(s, fill, es_grid_for(s, (size_t)T + 1, THREADS), THREADS, 0, out->token_start, (size_t)(T < 1 ? 1 : T + 1), 0);
        return;
    }
    if ((uint64_t)T * (uint64_t)e->F > 0xffffffffu) { // a place has 32 bits
        es_stream_fail(s, ES_ERR_LIMIT, "%d tokens times %d features at once: at most 2^32", T, e->F);
        return;
    }
    (e->keep == ES_KEEP_TOKEN ? encode_tokens : encode_list)(s, e, x, T, out);
}

// ---- lists by feature ------------------------------------------------------------------------------------------------------------------------

static __global__ void count_features(es_entries l)
{
    ES_EACH(i, (size_t)l.count[0]) atomicAdd(&l.feature_start[l.feature[i]], 1);
}

static __global__ void place_features(es_entries l, int32_t *cursor, int32_t *to)
{
    ES_EACH(i, (size_t)l.count[0]) to[atomicAdd(&cursor[l.feature[i]], 1)] = (int32_t)i;
}

// A warp a feature: its places in order.
static __global__ void rank_features(const int32_t *places, es_entries l, int F)
{
    const int lane = threadIdx.x % 32;
    for (size_t f = (blockIdx.x * (size_t)blockDim.x + threadIdx.x) / 32; f < (size_t)F; f += (size_t)gridDim.x * blockDim.x / 32) {
        const int from = l.feature_start[f], until = l.feature_start[f + 1];
        for (int i = from + lane; i < until; i += 32) {
            int rank = from;
            for (int j = from; j < until; j++)
                rank += places[j] < places[i];
            l.by_feature[rank] = places[i];
        }
    }
}

static void index_features(es_pool *p, const es_entries *l, int T, int F)
{
    es_stream *s = es_stream_of(p);
    (void)T;
    bench b = {s->work, s->work + s->o.workspace};
    int32_t *cursor = (int32_t *)take(&b, F, sizeof *cursor), *places = (int32_t *)take(&b, l->cap, sizeof *places);
    if (!es_stream_ready(s))
        return;
    if (!cursor || !places) {
        es_stream_fail(s, ES_ERR_LIMIT, "%d entries of %d features want a larger workspace than %zu bytes", l->cap, F, s->o.workspace);
        return;
    }
    const int grid = es_grid_for(s, l->cap, THREADS);
    ES_LAUNCH(s, fill, es_grid_for(s, F + 1, THREADS), THREADS, 0, l->feature_start, (size_t)F + 1, 0);
    ES_LAUNCH(s, count_features, grid, THREADS, 0, *l);
    ES_LAUNCH(s, running_sums, 1, WIDE, 32 * sizeof(int32_t), l->feature_start, F);
    es_stream_check(s, cudaMemcpyAsync(cursor, l->feature_start, sizeof(int32_t) * (size_t)F, cudaMemcpyDeviceToDevice, s->stream), "copy");
    ES_LAUNCH(s, place_features, grid, THREADS, 0, *l, cursor, places);
    ES_LAUNCH(s, rank_features, es_grid_for(s, (size_t)F * 32, THREADS), THREADS, 0, (const int32_t *)places, *l, F);
}

// ---- decode, and gradients ---------------------------------------------------------------------------------------------------------------------

// One block a token, a piece of d.
static __global__ void decode_token(es_entries l, const float *dec, const float *bias, int d, float *out)
{
    const int t = blockIdx.x, from = l.token_start[t], until = l.token_start[t + 1];
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < d; i += gridDim.y * blockDim.x) {
        float sum = bias ? bias[i] : 0;
        for (int e = from; e < until; e++)
            sum += l.value[e] * dec[(size_t)l.feature[e] * d + i];
        out[(size_t)t * d + i] = sum;
    }
}

// A warp an entry.
static __global__ void dot_entries(es_entries l, const float *rows, const float *dec, int d, float scale, float *grad)
{
    const size_t warps = (size_t)gridDim.x * blockDim.x / 32;
    for (size_t e = (blockIdx.x * (size_t)blockDim.x + threadIdx.x) / 32; e < (size_t)l.count[0]; e += warps) {
        const float *a = rows + (size_t)l.token[e] * d, *b = dec + (size_t)l.feature[e] * d;
        float sum = 0;
        for (int i = threadIdx.x % 32; i < d; i += 32)
            sum += a[i] * b[i];
        sum = es_warp_sum(sum);
        if (threadIdx.x % 32 == 0)
            grad[e] = scale * sum;
    }
}

// One block a feature; most have no entry.
static __global__ void add_feature(es_entries l, const float *rows, const float *weight, int d, float scale, float *dw, float *dbias)
{
    const int f = blockIdx.x, from = l.feature_start[f], until = l.feature_start[f + 1];
    if (from == until)
        return;
    for (int i = threadIdx.x; rows && i < d; i += blockDim.x) {
        float sum = 0;
        for (int e = from; e < until; e++)
            sum += weight[l.by_feature[e]] * rows[(size_t)l.token[l.by_feature[e]] * d + i];
        dw[(size_t)f * d + i] += scale * sum;
    }
    if (dbias && threadIdx.x == 0) {
        float sum = 0;
        for (int e = from; e < until; e++)
            sum += weight[l.by_feature[e]];
        dbias[f] += scale * sum;
    }
}

static __device__ __forceinline__ int group_of(const es_prefixes &by, int32_t feature)
{
    int g = 0;
    while (feature >= by.end[g])
        g++;
    return g;
}

static __global__ void split_entries(es_entries l, es_prefixes by, int32_t *token)
{
    ES_EACH(i, (size_t)l.count[0]) token[i] = l.token[i] * by.n + group_of(by, l.feature[i]);
}

// The first entry of each group: a token's are ordered by feature.
static __global__ void split_starts(es_entries l, es_prefixes by, int T, int32_t *token_start)
{
    ES_EACH(e, (size_t)T * by.n + 1) {
        const int t = (int)(e / by.n), g = (int)(e % by.n);
        int from = l.token_start[t], until = t < T ? l.token_start[t + 1] : from;
        while (g > 0 && from < until) {
            const int middle = from + (until - from) / 2;
            if (l.feature[middle] < by.end[g - 1])
                from = middle + 1;
            else
                until = middle;
        }
        token_start[e] = from;
    }
}

static __global__ void prefix_rows(const float *x, int groups, size_t n, int d, float *rows, float *last, float *sum)
{
    ES_EACH(e, n) {
        float *at = rows + e / d * groups * d + e % d, error = x[e], above = 0;
        for (int g = 0; g < groups; g++)
            at[(size_t)g * d] = error -= at[(size_t)g * d];
        last[e] = error;
        for (int g = groups - 1; g >= 0; g--)
            at[(size_t)g * d] = above += at[(size_t)g * d];
        sum[e] = above;
    }
}

static __global__ void project_row(const float *w, float *g, int d)
{
    ES_SHARED(float, red);
    w += (size_t)blockIdx.x * d;
    g += (size_t)blockIdx.x * d;
    float along = 0;
    for (int i = threadIdx.x; i < d; i += blockDim.x)
        along += g[i] * w[i];
    along = es_block_sum(along, red);
    for (int i = threadIdx.x; i < d; i += blockDim.x)
        g[i] -= along * w[i];
}

static __global__ void unit_row(float *w, int d)
{
    ES_SHARED(float, red);
    w += (size_t)blockIdx.x * d;
    float square = 0;
    for (int i = threadIdx.x; i < d; i += blockDim.x)
        square += w[i] * w[i];
    const float size = sqrtf(es_block_sum(square, red));
    for (int i = threadIdx.x; size > 0 && i < d; i += blockDim.x)
        w[i] /= size;
}

static void decode(es_pool *p, const es_entries *l, const float *dec, const float *bias, int T, int d, float *out)
{
    es_stream *s = es_stream_of(p);
    dim3 grid(T, es_ceil_div(d, 4 * THREADS));
    if (T > 0 && d > 0)
        ES_LAUNCH(s, decode_token, grid, THREADS, 0, *l, dec, bias, d, out);
}

static void value_back(es_pool *p, const es_entries *l, const float *rows, const float *dec, int T, int d, float scale, float *grad)
{
    es_stream *s = es_stream_of(p);
    (void)T;
    ES_LAUNCH(s, dot_entries, es_grid_for(s, (size_t)l->cap * 32, THREADS), THREADS, 0, *l, rows, dec, d, scale, grad);
}

static void feature_back(es_pool *p, const es_entries *l, const float *rows, const float *weight, int F, int d, float scale, float *dw, float *dbias)
{
    es_stream *s = es_stream_of(p);
    if (F > 0)
        ES_LAUNCH(s, add_feature, F, THREADS, 0, *l, rows, weight, d, scale, dw, dbias);
}

static void split(es_pool *p, const es_entries *l, const es_prefixes *by, int T, int32_t *token, int32_t *token_start)
{
    es_stream *s = es_stream_of(p);
    ES_LAUNCH(s, split_entries, es_grid_for(s, l->cap, THREADS), THREADS, 0, *l, *by, token);
    ES_LAUNCH(s, split_starts, es_grid_for(s, (size_t)T * by->n + 1, THREADS), THREADS, 0, *l, *by, T, token_start);
}

static void prefix_errors(es_pool *p, const float *x, const es_prefixes *by, int T, int d, float *rows, float *last, float *sum)
{
    es_stream *s = es_stream_of(p);
    const size_t n = (size_t)T * d;
    if (n)
        ES_LAUNCH(s, prefix_rows, es_grid_for(s, n, THREADS), THREADS, 0, x, by->n, n, d, rows, last, sum);
}

static void project_rows(es_pool *p, const float *w, float *g, int n, int d)
{
    es_stream *s = es_stream_of(p);
    if (n > 0)
        ES_LAUNCH(s, project_row, n, THREADS, 32 * sizeof(float), w, g, d);
}

static void unit_rows(es_pool *p, float *w, int n, int d)
{
    es_stream *s = es_stream_of(p);
    if (n > 0)
        ES_LAUNCH(s, unit_row, n, THREADS, 32 * sizeof(float), w, d);
}

static const es_sparse_kernels table = {"cuda", encode, index_features, decode, value_back, feature_back, split, prefix_errors, project_rows, unit_rows};

const es_sparse_kernels *es_cuda_sparse(void)
{
    return &table;
}
