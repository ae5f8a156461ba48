// What is done with a row of logits: its log-sum and gradient, and its largest for sampling. All of it waits for memory.
#include "device.cuh"

enum { THREADS = 512, TOP_THREADS = 1024 };

// max and sum of e^(x - max), over pieces in any order: (m, s) and (m', s') make (M, s e^(m-M) + s' e^(m'-M)). A NaN makes the sum one.
struct log_sum { float max, sum; };

static __device__ __forceinline__ log_sum joined(log_sum a, log_sum b)
{
    const float max = fmaxf(a.max, b.max);
    if (max == -INFINITY)
        return {max, a.sum + b.sum}; // nothing yet, or a NaN
    return {max, a.sum * expf(a.max - max) + b.sum * expf(b.max - max)};
}

// red: 64 floats.
static __device__ log_sum row_log_sum(const float *x, int n, float *red)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    log_sum all = {-INFINITY, 0};
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        all = joined(all, log_sum{x[i], isnan(x[i]) ? x[i] : x[i] == -INFINITY ? 0.0f : 1.0f});
    for (int turn = 0; turn < 2; turn++) { // over the warp, then over the warps' results
        for (int step = 16; step > 0; step >>= 1) {
            log_sum other = {__shfl_xor_sync(0xffffffffu, all.max, step), __shfl_xor_sync(0xffffffffu, all.sum, step)};
            all = joined(all, other);
        }
        if (turn)
            break;
        if (lane == 0) {
            red[2 * warp] = all.max;
            red[2 * warp + 1] = all.sum;
        }
        __syncthreads();
        all = lane < warps ? log_sum{red[2 * lane], red[2 * lane + 1]} : log_sum{-INFINITY, 0};
    }
    return all;
}

static __global__ void pick_rows(const float *logits, const int32_t *target, int V, float *logprob, float *logsum)
{
    ES_SHARED(float, red);
    const float *row = logits + (size_t)blockIdx.x * V;
    const log_sum all = row_log_sum(row, V, red);
    if (threadIdx.x == 0) {
        const float log_all = all.max + logf(all.sum);
        logsum[blockIdx.x] = log_all;
        logprob[blockIdx.x] = row[target[blockIdx.x]] - log_all;
    }
}

static __global__ void pick_rows_back(float *logits, const int32_t *target, const float *logsum, const float *dlogprob, int V)
{
    float *row = logits + (size_t)blockIdx.y * V;
    const float d = dlogprob[blockIdx.y], all = logsum[blockIdx.y];
    const int hit = target[blockIdx.y];
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < V; i += gridDim.x * blockDim.x)
        row[i] = (i == hit ? d : 0) - d * expf(row[i] - all);
}

static void log_softmax_pick(es_pool *p, const float *logits, const int32_t *target, int T, int V, float *logprob, float *logsum)
{
    es_stream *s = es_stream_of(p);
    if (T > 0)
        ES_LAUNCH(s, pick_rows, T, THREADS, 64 * sizeof(float), logits, target, V, logprob, logsum);
}

enum { ROWS_AT_ONCE = 32768 }; // a grid's height is at most 65535

static void log_softmax_pick_back(es_pool *p, float *logits, const int32_t *target, const float *logsum, const float *dlogprob, int T, int V)
{
    es_stream *s = es_stream_of(p);
    for (int t = 0; t < T; t += ROWS_AT_ONCE) {
        dim3 grid(es_ceil_div(V, THREADS * 8), T - t < ROWS_AT_ONCE ? T - t : ROWS_AT_ONCE);
        ES_LAUNCH(s, pick_rows_back, grid, THREADS, 0, logits + (size_t)t * V, target + t, logsum + t, dlogprob + t, V);
    }
}

// ---- the k largest --------------------------------------------------------------------------------------------------------------------

// Larger floats are larger keys; a NaN is the least, as -infinity; -0 and 0 are one.
static __device__ __forceinline__ uint32_t key_of(float x)
{
    if (isnan(x))
        x = -INFINITY;
    const uint32_t bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ float value_of(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// The k largest of x[n], in order, to index and value; named: what index says of a place (NULL: the place itself). By all threads of a block.
// The k-th largest key is found a byte at a time, from the top: a histogram of the byte among the keys that agree above it.
// Then the larger keys and, in order of place, as many equal ones as are left over are collected and put in order by their ranks.
static __device__ void choose(const float *x, const int32_t *named, int n, int k, int32_t *index, float *value)
{
    ES_SHARED(uint32_t, count);                     // [256] histogram; later [32] places of warps, twice
    uint32_t *state = count + 256;                  // [4] prefix, how many of the equal are wanted, taken, taken of the equal
    uint32_t *keys = state + 4;                     // [k]
    int32_t *place = (int32_t *)(keys + ES_TOP_MAX); // [k]
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (threadIdx.x == 0) {
        state[0] = 0;
        state[1] = (uint32_t)k;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        const uint32_t prefix = state[0], wanted = state[1], above = shift == 24 ? 0 : 0xffffffffu << (shift + 8);
        if (threadIdx.x < 256)
            count[threadIdx.x] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += TOP_THREADS) {
            const uint32_t key = key_of(x[i]);
            if ((key & above) == prefix)
                atomicAdd(&count[key >> shift & 255], 1u);
        }
        __syncthreads();
        if (warp == 0) { // the byte of the k-th: lane l has the bytes 255 - 8l down to 248 - 8l
            const int first = 255 - 8 * lane;
            uint32_t mine = 0, until;
            for (int i = 0; i < 8; i++)
                mine += count[first - i];
            until = mine;
            for (int step = 1; step < 32; step <<= 1) {
                const uint32_t before = __shfl_up_sync(0xffffffffu, until, step);
                until += lane >= step ? before : 0;
            }
            uint32_t seen = until - mine;
            if (seen < wanted && until >= wanted) { // one lane
                int byte = first;
                while (seen + count[byte] < wanted)
                    seen += count[byte--];
                state[0] = prefix | (uint32_t)byte << shift;
                state[1] = wanted - seen;
            }
        }
    }
    __syncthreads();
    const uint32_t least = state[0], equal = state[1];
    __syncthreads(); // all have read them
    if (threadIdx.x == 0)
        state[2] = state[3] = 0;
    __syncthreads();
    for (int from = 0; from < n; from += TOP_THREADS) { // in order of place, a block's width at a time
        const int i = from + threadIdx.x;
        const uint32_t key = i < n ? key_of(x[i]) : 0;
        const unsigned over = __ballot_sync(0xffffffffu, i < n && key > least), same = __ballot_sync(0xffffffffu, i < n && key == least);
        if (lane == 0) {
            count[warp] = __popc(over);
            count[32 + warp] = __popc(same);
        }
        __syncthreads();
        uint32_t before = state[2], before_same = state[3], all = 0, all_same = 0;
        for (int w = 0; w < TOP_THREADS / 32; w++) {
            before += w < warp ? count[w] : 0;
            before_same += w < warp ? count[32 + w] : 0;
            all += count[w];
            all_same += count[32 + w];
        }
        const unsigned lower = (1u << lane) - 1;
        before += __popc(over & lower);
        before_same += __popc(same & lower);
        // The larger ones fill from the front, the equal ones behind all of those: there are k - equal of them.
        if (i < n && (key > least || (key == least && before_same < equal))) {
            const uint32_t at = key > least ? before : (uint32_t)k - equal + before_same;
            keys[at] = key;
            place[at] = i;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            state[2] += all;
            state[3] += all_same;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < k; i += TOP_THREADS) {
        int rank = 0;
        for (int j = 0; j < k; j++)
            rank += keys[j] > keys[i] || (keys[j] == keys[i] && place[j] < place[i]);
        index[rank] = named ? named[place[i]] : place[i];
        value[rank] = value_of(keys[i]);
    }
}

// value[0] is the largest of x[n]: the sum of e^(x - largest) over what is no NaN, in every thread.
static __device__ float sum_above(const float *x, int n, float largest)
{
    ES_SHARED(float, red);
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += TOP_THREADS)
        sum += largest == -INFINITY || isnan(x[i]) ? 0 : expf(x[i] - largest);
    return es_block_sum(sum, red);
}

struct top_part { // of `parts` pieces of a row, each `length` long but for the last: their own k largest, one piece behind another
    int32_t *index;
    float *value;
    log_sum *sum; // [parts]
    int parts, length;
};

static __global__ void __launch_bounds__(TOP_THREADS) top_of_part(const float *x, int n, int k, top_part to)
{
    es_turn();
    const int from = blockIdx.x * to.length, m = n - from < to.length ? n - from : to.length, most = k < m ? k : m;
    int32_t *index = to.index + (size_t)blockIdx.x * k;
    float *value = to.value + (size_t)blockIdx.x * k;
    choose(x + from, NULL, m, most, index, value);
    __syncthreads(); // value[0] is there
    const float sum = sum_above(x + from, m, value[0]);
    for (int i = threadIdx.x; i < most; i += TOP_THREADS)
        index[i] += from;
    if (threadIdx.x == 0)
        to.sum[blockIdx.x] = log_sum{value[0], sum};
}

// n: of x, or of what the parts hold. Equal values of two parts are in order of place there too.
static __global__ void __launch_bounds__(TOP_THREADS) top_of(const float *x, int n, int k, top_part from, int32_t *index, float *value, float *logsum)
{
    es_turn();
    choose(from.parts ? from.value : x, from.parts ? from.index : NULL, n, k, index, value);
    if (!logsum)
        return;
    __syncthreads();
    const float largest = value[0];
    float sum = 0;
    if (!from.parts)
        sum = sum_above(x, n, largest);
    else if (largest != -INFINITY)
        for (int i = 0; i < from.parts; i++)
            sum += from.sum[i].sum * expf(from.sum[i].max - largest);
    if (threadIdx.x == 0)
        *logsum = sum > 0 ? largest + logf(sum) : largest;
}

// One block goes over a row of a vocabulary five times; so the row is cut, each piece's k largest are found side by side, and those of all of them then.
static void top(es_pool *p, const float *x, int n, int k, int32_t *index, float *value, float *logsum)
{
    es_stream *s = es_stream_of(p);
    if (k < 1 || k > n || k > ES_TOP_MAX) {
        es_stream_fail(s, ES_ERR_USAGE, "the %d largest of %d numbers: 1 to %d go", k, n, n < ES_TOP_MAX ? n : (int)ES_TOP_MAX);
        return;
    }
    enum { SHARED = (256 + 4 + 2 * ES_TOP_MAX) * sizeof(uint32_t) };
    top_part part = {};
    part.length = k * 8 < TOP_THREADS ? TOP_THREADS : k * 8;
    const int parts = es_ceil_div((size_t)n, part.length);
    const size_t each = es_align256(sizeof(float) * (size_t)parts * k);
    int m = n;
    if (parts > 4 && 2 * each + sizeof(log_sum) * parts <= s->o.workspace) {
        part.parts = parts;
        part.index = (int32_t *)s->work;
        part.value = (float *)(s->work + each);
        part.sum = (log_sum *)(s->work + 2 * each);
        ES_LAUNCH_SOON(s, top_of_part, parts, TOP_THREADS, SHARED, x, n, k, part);
        const int last = n - (parts - 1) * part.length;
        m = (parts - 1) * k + (last < k ? last : k);
    }
    ES_LAUNCH_SOON(s, top_of, 1, TOP_THREADS, SHARED, x, m, k, part, index, value, logsum);
}

void es_loss_ops(es_kernels *k)
{
    k->log_softmax_pick = log_softmax_pick;
    k->log_softmax_pick_back = log_softmax_pick_back;
    k->top = top;
}
