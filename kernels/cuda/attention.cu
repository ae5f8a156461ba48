// Attention forward, for prompts and for decoding, by tiles of positions with a running maximum and sum (Milakov & Gimelshein 2018; Dao et
// al. 2022). For few tokens the positions are shared out among blocks, whose results are then joined, because one block a head would leave
// most of the card idle; single tokens of the usual head sizes have a kernel of their own. Limits: decoding reads the cache once (bandwidth); a
// prompt does its products in f32 without tensor cores, unless the pool is of lower precision: then attention_products.cu does.
#include "attention.cuh"
#include "attention_products.cuh"

enum { SEQUENCES = 64, MAX_SPLITS = 64 };

struct sequence {
    const void *k, *v; // rows of n_kv * D from position 0
    int pos0, T, row;  // row: of q and out, its first
    const int *at;     // where the card finds pos0; NULL: it is above
};
struct sequences {
    sequence s[SEQUENCES];
};
struct result { // where it goes: out, or parts to be joined, or what the backward pass needs
    float *out;
    float *part; // [row, head, split][D + 2]: sum, maximum, numbers; NULL: not split
    float *logsum, *delta; // [row, head]; NULL: not wanted. delta = dout . out
    const float *dout;
};

// Grid: rows of queries / R, key-value heads, sequences * splits.
template <class KV, int R, int EACH>
static __global__ void attend(es_attend a, sequences all, const float *q, result to, int splits)
{
    sequence seq = all.s[blockIdx.z / splits];
    if (seq.at)
        seq.pos0 = *seq.at;
    const int D = a.D, split = blockIdx.z % splits, row0 = blockIdx.x * R, rows = seq.T * a.group;
    if (row0 >= rows)
        return;
    ES_SHARED(float, qs);                // [R][D]
    float *ss = qs + R * D;              // [R][ES_POSITIONS]
    float *top = ss + R * ES_POSITIONS;  // [R] running maximum, sum, factor of what is there
    float *mass = top + R, *shrink = mass + R, *red = shrink + R;
    const int threads = blockDim.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32, head0 = blockIdx.y * a.group;
    const int last = row0 + R < rows ? row0 + R - 1 : rows - 1;
    // positions that some row here sees, and this block's share of them in whole tiles
    const int first = es_first_seen(a, seq.pos0 + row0 / a.group) / ES_POSITIONS, end = seq.pos0 + last / a.group + 1;
    const int tiles = (end + ES_POSITIONS - 1) / ES_POSITIONS - first;
    const int from = first + tiles * split / splits, until = first + tiles * (split + 1) / splits;
    const KV *k = (const KV *)seq.k + (size_t)blockIdx.y * D, *v = (const KV *)seq.v + (size_t)blockIdx.y * D;
    const size_t step = (size_t)a.n_kv * D;

    for (int e = threadIdx.x; e < R * D; e += threads) {
        const int row = row0 + e / D;
        qs[e] = row < rows ? q[((size_t)(seq.row + row / a.group) * a.n_head + head0 + row % a.group) * D + e % D] : 0;
    }
    if (threadIdx.x < R) {
        top[threadIdx.x] = -INFINITY;
        mass[threadIdx.x] = 0;
    }
    float sum[EACH][R] = {};
    __syncthreads();
    for (int tile = from; tile < until; tile++) {
        const int p0 = tile * ES_POSITIONS;
        for (int j = threadIdx.x / ES_LANES; j < ES_POSITIONS; j += threads / ES_LANES) {
            const int p = p0 + j;
            float dot[R];
            es_dots<R>(qs, k + (size_t)p * step, D, p < end, dot);
            if (threadIdx.x % ES_LANES == 0)
#pragma unroll
                for (int r = 0; r < R; r++) {
                    const int row = row0 + r, pos = seq.pos0 + row / a.group;
                    const bool seen = row < rows && p <= pos && p >= es_first_seen(a, pos);
                    ss[r * ES_POSITIONS + j] = seen ? es_score(a, dot[r]) : -INFINITY;
                }
        }
        __syncthreads();
        for (int r = warp; r < R; r += threads / 32) {
            float *s = ss + r * ES_POSITIONS;
            const float s0 = s[lane], s1 = s[lane + 32], old = top[r], max = fmaxf(old, es_warp_max(fmaxf(s0, s1)));
            const float p_0 = s0 == -INFINITY ? 0 : expf(s0 - max), p_1 = s1 == -INFINITY ? 0 : expf(s1 - max), both = es_warp_sum(p_0 + p_1);
            s[lane] = p_0;
            s[lane + 32] = p_1;
            __syncwarp(); // every lane has read top[r]
            if (lane == 0) {
                const float f = old == -INFINITY ? 0 : expf(old - max);
                shrink[r] = f;
                mass[r] = mass[r] * f + both;
                top[r] = max;
            }
        }
        __syncthreads();
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            const int d = threadIdx.x + e * threads;
            if (d >= D)
                continue;
#pragma unroll
            for (int r = 0; r < R; r++)
                sum[e][r] *= shrink[r];
            for (int j = 0; j < ES_POSITIONS && p0 + j < end; j += 4) {
                float x[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    x[i] = p0 + j + i < end ? es_as_float(v[(size_t)(p0 + j + i) * step + d]) : 0;
#pragma unroll
                for (int r = 0; r < R; r++) {
                    const float4 w = *(const float4 *)(ss + r * ES_POSITIONS + j);
                    sum[e][r] += w.x * x[0] + w.y * x[1] + w.z * x[2] + w.w * x[3];
                }
            }
        }
        __syncthreads(); // before the next tile's scores
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int row = row0 + r;
        if (row >= rows) // the same for the whole block
            break;
        const size_t at = (size_t)(seq.row + row / a.group) * a.n_head + head0 + row % a.group;
        if (to.logsum) {
            float along = 0;
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                const int d = threadIdx.x + e * threads;
                along += d < D ? to.dout[at * D + d] * sum[e][r] : 0;
            }
            along = es_block_sum(along, red);
            if (threadIdx.x == 0) {
                to.delta[at] = along / mass[r];
                to.logsum[at] = top[r] + logf(mass[r]);
            }
            continue;
        }
        float *part = to.part ? to.part + (at * splits + split) * (D + 2) : NULL;
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            const int d = threadIdx.x + e * threads;
            if (d < D)
                *(part ? part + 2 + d : to.out + at * D + d) = part ? sum[e][r] : sum[e][r] / mass[r];
        }
        if (part && threadIdx.x == 0) {
            part[0] = top[r];
            part[1] = mass[r];
        }
    }
}

enum { ONE_THREADS = 128, ONE_WARPS = ONE_THREADS / 32 };

// One token a sequence. D / 8 lanes have a position, 8 numbers of a key and of a value each, for the G query heads of its group, so that a warp's turns wait for
// nothing but their loads; each such group of lanes has a running maximum and sum of its own, and they are joined at the end.
// Grid: splits, key-value heads, sequences.
template <int D, int G, int TURNS>
static __global__ void __launch_bounds__(ONE_THREADS) attend_one(es_attend a, sequences all, const float *q, result to)
{
    es_turn();
    enum { LANES = D / 8, GROUPS = ONE_THREADS / LANES, TILE = GROUPS * TURNS };
    ES_SHARED(float, joint); // [ONE_WARPS][G][D + 2]: maximum, sum, numbers
    sequence seq = all.s[blockIdx.z];
    if (seq.at)
        seq.pos0 = *seq.at;
    const int sub = threadIdx.x % LANES, mine = threadIdx.x / LANES, warp = threadIdx.x / 32, splits = gridDim.x, split = blockIdx.x;
    const int first = es_first_seen(a, seq.pos0), end = seq.pos0 + 1, tiles = (end - first + TILE - 1) / TILE;
    const int from = first + tiles * split / splits * TILE, until_tile = first + tiles * (split + 1) / splits * TILE, until = until_tile < end ? until_tile : end;
    const __half *k = (const __half *)seq.k + (size_t)blockIdx.y * D + 8 * sub, *v = (const __half *)seq.v + (size_t)blockIdx.y * D + 8 * sub;
    const size_t step = (size_t)a.n_kv * D, at0 = (size_t)seq.row * a.n_head + (size_t)blockIdx.y * a.group;
    float top[G], mass[G], x[G][8], sum[G][8];
#pragma unroll
    for (int g = 0; g < G; g++) {
        top[g] = -INFINITY;
        mass[g] = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            x[g][i] = g < a.group ? q[(at0 + g) * D + 8 * sub + i] : 0;
            sum[g][i] = 0;
        }
    }
    for (int p0 = from; p0 < until; p0 += TILE) {
        es_eight key[TURNS], value[TURNS];
#pragma unroll
        for (int u = 0; u < TURNS; u++) {
            const int p = p0 + u * GROUPS + mine;
            if (p < until) {
                key[u] = es_load8(k + (size_t)p * step);
                value[u] = es_load8(v + (size_t)p * step);
            } else
                key[u] = value[u] = es_eight{};
        }
#pragma unroll
        for (int g = 0; g < G; g++) {
            float score[TURNS], most = top[g];
#pragma unroll
            for (int u = 0; u < TURNS; u++) {
                float dot = 0;
#pragma unroll
                for (int i = 0; i < 8; i++)
                    dot += x[g][i] * es_number(key[u], i);
#pragma unroll
                for (int other = LANES / 2; other > 0; other >>= 1)
                    dot += __shfl_xor_sync(0xffffffffu, dot, other);
                score[u] = p0 + u * GROUPS + mine < until ? es_score(a, dot) : -INFINITY;
                most = fmaxf(most, score[u]);
            }
            const float shrink = top[g] == -INFINITY ? 0 : expf(top[g] - most);
            float w[TURNS], all_w = 0;
#pragma unroll
            for (int u = 0; u < TURNS; u++) {
                w[u] = score[u] == -INFINITY ? 0 : expf(score[u] - most);
                all_w += w[u];
            }
            mass[g] = mass[g] * shrink + all_w;
            top[g] = most;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float more = 0;
#pragma unroll
                for (int u = 0; u < TURNS; u++)
                    more += w[u] * es_number(value[u], i);
                sum[g][i] = sum[g][i] * shrink + more;
            }
        }
    }
    // the positions of a warp, then the warps of the block
#pragma unroll
    for (int g = 0; g < G; g++) {
#pragma unroll
        for (int other = LANES; other < 32; other <<= 1) {
            const float top2 = __shfl_xor_sync(0xffffffffu, top[g], other), most = fmaxf(top[g], top2);
            const float f = top[g] == -INFINITY ? 0 : expf(top[g] - most), f2 = top2 == -INFINITY ? 0 : expf(top2 - most);
            mass[g] = mass[g] * f + __shfl_xor_sync(0xffffffffu, mass[g], other) * f2;
            top[g] = most;
#pragma unroll
            for (int i = 0; i < 8; i++)
                sum[g][i] = sum[g][i] * f + __shfl_xor_sync(0xffffffffu, sum[g][i], other) * f2;
        }
        float *mark = joint + (warp * G + g) * (D + 2);
        if (threadIdx.x % 32 < LANES) {
            if (sub == 0) {
                mark[0] = top[g];
                mark[1] = mass[g];
            }
#pragma unroll
            for (int i = 0; i < 8; i++)
                mark[2 + 8 * sub + i] = sum[g][i];
        }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < G * D; e += ONE_THREADS) {
        const int g = e / D, d = e % D;
        if (g >= a.group)
            continue;
        float most = -INFINITY, all_mass = 0, number = 0;
        for (int w = 0; w < ONE_WARPS; w++)
            most = fmaxf(most, joint[(w * G + g) * (D + 2)]);
        for (int w = 0; w < ONE_WARPS; w++) {
            const float *mark = joint + (w * G + g) * (D + 2), f = mark[0] == -INFINITY ? 0 : expf(mark[0] - most);
            all_mass += f * mark[1];
            number += f * mark[2 + d];
        }
        if (!to.part) {
            to.out[(at0 + g) * D + d] = number / all_mass;
            continue;
        }
        float *part = to.part + ((at0 + g) * splits + split) * (D + 2);
        part[2 + d] = number;
        if (d == 0) {
            part[0] = most;
            part[1] = all_mass;
        }
    }
}

// Grid: rows * heads.
static __global__ void join_parts(const float *part, float *out, int D, int splits)
{
    es_turn();
    ES_SHARED(float, weight); // [MAX_SPLITS]
    const float *p = part + (size_t)blockIdx.x * splits * (D + 2);
    if (threadIdx.x < 32) {
        float top[MAX_SPLITS / 32], max = -INFINITY, mass = 0;
        for (int j = 0; j < MAX_SPLITS / 32; j++) {
            const int i = j * 32 + threadIdx.x;
            top[j] = i < splits ? p[(size_t)i * (D + 2)] : -INFINITY;
            max = fmaxf(max, top[j]);
        }
        max = es_warp_max(max);
        for (int j = 0; j < MAX_SPLITS / 32; j++) {
            const int i = j * 32 + threadIdx.x;
            top[j] = top[j] == -INFINITY ? 0 : expf(top[j] - max);
            mass += i < splits ? top[j] * p[(size_t)i * (D + 2) + 1] : 0;
        }
        mass = es_warp_sum(mass);
        for (int j = 0; j < MAX_SPLITS / 32; j++)
            weight[j * 32 + threadIdx.x] = top[j] / mass;
    }
    __syncthreads();
    for (int d = threadIdx.x; d < D; d += blockDim.x) {
        float sum = 0;
#pragma unroll 8
        for (int i = 0; i < splits; i++)
            sum += weight[i] * p[(size_t)i * (D + 2) + 2 + d];
        out[(size_t)blockIdx.x * D + d] = sum;
    }
}

template <class KV, int R, int EACH>
static void launch(es_stream *s, const es_attend &a, const sequences &all, int n_seq, int tiles, const float *q, const result &to, int splits)
{
    const int threads = es_attend_threads(a.D);
    dim3 grid(tiles, a.n_kv, n_seq * splits);
    ES_LAUNCH(s, (attend<KV, R, EACH>), grid, threads, (R * (a.D + ES_POSITIONS + 3) + 32) * sizeof(float), a, all, q, to, splits);
}

// At most `splits`, and as many as the workspace has room for.
static size_t parts_that_fit(const es_stream *s, const es_attend &a, int n_rows, size_t splits)
{
    const size_t each = sizeof(float) * (size_t)n_rows * a.n_head * (a.D + 2), most = s->o.workspace / each;
    splits = splits > MAX_SPLITS ? (size_t)MAX_SPLITS : splits;
    splits = splits > most ? most : splits;
    return splits < 2 ? 1 : splits;
}

static void join(es_stream *s, const es_attend &a, int n_rows, const result &to, int splits)
{
    if (to.part)
        ES_LAUNCH_SOON(s, join_parts, n_rows * a.n_head, a.D <= 64 ? 64 : 128, MAX_SPLITS * sizeof(float), (const float *)to.part, to.out, a.D, splits);
}

template <class KV>
static void run(es_stream *s, const es_attend &a, const sequences &all, int n_seq, int most_rows, int most_positions, int n_rows, const float *q,
                result to)
{
    // 16 rows a block reuse a key 16 times; few rows waste less with 4.
    const bool wide = most_rows > 8 && a.D <= 256;
    const int R = wide ? 16 : 4, tiles = (most_rows + R - 1) / R;
    const size_t blocks = (size_t)tiles * a.n_kv * n_seq, want = (size_t)s->card->sms * 2;
    size_t splits = to.logsum ? 1 : blocks >= want ? 1 : (want + blocks - 1) / blocks, longest = (size_t)most_positions / (2 * ES_POSITIONS);
    splits = parts_that_fit(s, a, n_rows, splits > longest ? longest : splits);
    to.part = splits > 1 ? (float *)s->work : NULL;
    if (wide)
        launch<KV, 16, 1>(s, a, all, n_seq, tiles, q, to, (int)splits);
    else if (a.D <= 256)
        launch<KV, 4, 1>(s, a, all, n_seq, tiles, q, to, (int)splits);
    else
        launch<KV, 4, 2>(s, a, all, n_seq, tiles, q, to, (int)splits);
    join(s, a, n_rows, to, (int)splits);
}

template <int D, int G>
static void launch_one(es_stream *s, const es_attend &a, const sequences &all, int n_seq, const float *q, const result &to, int splits)
{
    enum { TURNS = G > 4 ? 2 : 4 };
    dim3 grid(splits, a.n_kv, n_seq);
    ES_LAUNCH_SOON(s, (attend_one<D, G, TURNS>), grid, ONE_THREADS, ONE_WARPS * G * (D + 2) * sizeof(float), a, all, q, to);
}

template <int D> static void start_one(es_stream *s, const es_attend &a, const sequences &all, int n_seq, const float *q, const result &to, int splits)
{
    (a.group == 1 ? launch_one<D, 1> : a.group == 2 ? launch_one<D, 2> : a.group <= 4 ? launch_one<D, 4> : launch_one<D, 8>)(s, a, all, n_seq, q, to, splits);
}

// One token of each sequence, where attend_one can: false where it cannot.
static bool run_one(es_stream *s, const es_attend &a, const sequences &all, int n_seq, int most_positions, const float *q, result to)
{
    if ((a.D != 64 && a.D != 128 && a.D != 256) || a.group > 8)
        return false;
    for (int i = 0; i < n_seq; i++)
        if ((size_t)all.s[i].k % 16 || (size_t)all.s[i].v % 16) // a key and a value are read in pieces of 16 bytes
            return false;
    const int tile = ONE_THREADS / (a.D / 8) * (a.group > 4 ? 2 : 4);
    const size_t blocks = (size_t)a.n_kv * n_seq, want = ((size_t)s->card->sms * 4 + blocks - 1) / blocks, tiles = (size_t)es_ceil_div((size_t)most_positions, tile);
    const size_t splits = parts_that_fit(s, a, n_seq, want < tiles ? want : tiles);
    to.part = splits > 1 ? (float *)s->work : NULL;
    (a.D == 64 ? start_one<64> : a.D == 128 ? start_one<128> : start_one<256>)(s, a, all, n_seq, q, to, (int)splits);
    join(s, a, n_seq, to, (int)splits);
    return true;
}

static int span(const es_attn *a) // positions that the tokens see
{
    return a->pos0 + a->T - es_attn_first(a, a->pos0);
}

static void attention(es_pool *p, const es_attn *a, const float *q, const float *k, const float *v, float *out)
{
    es_stream *s = es_stream_of(p);
    sequences one = {};
    if (a->T < 1 || !es_attend_can(s, a) || !es_stream_ready(s) || es_attention_by_products(s, a, q, k, v, false, out))
        return;
    one.s[0] = sequence{k, v, a->pos0, a->T, 0, NULL};
    result to = {};
    to.out = out;
    run<float>(s, es_attend_of(a), one, 1, a->T * (a->n_head / a->n_kv), span(a), a->T, q, to);
}

static void attention_half(es_pool *p, const es_attn *a, int n_seq, const float *q, const uint16_t *const *k, const uint16_t *const *v,
                           float *out)
{
    es_stream *s = es_stream_of(p);
    for (int from = 0; from < n_seq;) {
        sequences some = {};
        int n = 0, rows = 0, most_rows = 0, most = 0;
        const es_attn *shape = &a[from];
        if (!es_attend_can(s, shape) || !es_stream_ready(s))
            return;
        if (shape->T > 0 && es_attention_by_products(s, shape, q, k[from], v[from], true, out)) { // a prompt, by itself
            const size_t done = (size_t)shape->T * shape->n_head * shape->head_dim;
            q += done;
            out += done;
            from++;
            continue;
        }
        // those of one shape together; a sequence without tokens takes no place
        for (; from < n_seq && n < SEQUENCES && a[from].n_head == shape->n_head && a[from].n_kv == shape->n_kv &&
               a[from].head_dim == shape->head_dim && a[from].scale == shape->scale && a[from].cap == shape->cap && a[from].window == shape->window;
             from++) {
            const es_attn *one = &a[from];
            if (one->T < 1)
                continue;
            some.s[n++] = sequence{k[from], v[from], one->pos0, one->T, rows, NULL};
            rows += one->T;
            most_rows = one->T > most_rows ? one->T : most_rows;
            most = span(one) > most ? span(one) : most;
        }
        result to = {};
        to.out = out;
        if (n > 0 && !(most_rows == 1 && run_one(s, es_attend_of(shape), some, n, most, q, to)))
            run<__half>(s, es_attend_of(shape), some, n, most_rows * (shape->n_head / shape->n_kv), most, rows, q, to);
        const size_t done = (size_t)rows * shape->n_head * shape->head_dim;
        q += done;
        out += done;
    }
}

void es_cuda_attention_at(es_pool *p, const es_attn *a, int n_ctx, const float *q, const uint16_t *k, const uint16_t *v, const int *pos, float *out)
{
    es_stream *s = es_stream_of(p);
    sequences one = {};
    if (!es_attend_can(s, a) || !es_stream_ready(s))
        return;
    one.s[0] = sequence{k, v, 0, 1, 0, pos};
    result to = {};
    to.out = out;
    const int most = a->window > 0 && a->window < n_ctx ? a->window : n_ctx; // parts for the longest there may be: some of them are empty until then
    if (!run_one(s, es_attend_of(a), one, 1, most, q, to))
        run<__half>(s, es_attend_of(a), one, 1, a->n_head / a->n_kv, most, 1, q, to);
}

// For attention_back.cu: logsum and delta [T, n_head].
void es_attention_stats(es_stream *s, const es_attn *a, const float *q, const float *k, const float *v, const float *dout, float *logsum,
                        float *delta)
{
    sequences one = {};
    one.s[0] = sequence{k, v, a->pos0, a->T, 0, NULL};
    result to = {};
    to.logsum = logsum;
    to.delta = delta;
    to.dout = dout;
    run<float>(s, es_attend_of(a), one, 1, a->T * (a->n_head / a->n_kv), span(a), a->T, q, to);
}

void es_attention_ops(es_kernels *k)
{
    k->attention = attention;
    k->attention_half = attention_half;
}
