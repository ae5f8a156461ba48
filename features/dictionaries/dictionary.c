/* Dictionaries in use: encoding and decoding. Formulas: SAELens 6, sae_lens/saes/{sae,standard_sae,topk_sae,jumprelu_sae,gated_sae}.py. The encoder is kept
 * transposed, [F, d], so that a feature is a row everywhere; above IN_MEMORY bytes both matrices stay in the mapped file as they are. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "dictionary.h"
#include "encode_card.h"
#include "vector.h"

enum { TILE = 256, BLOCK = 16384, ROWS = 256, COLUMNS = 32, KEEP_HASH = 16 << 20 };
#define IN_MEMORY ((size_t)1 << 30)
#define RELEASE ((size_t)192 << 20) /* read so much of a mapped matrix, then give its pages back */
#define RELEASED ((size_t)48 << 20) /* the same in numbers, of a decoder read row after row */

struct es_dictionary {
    es_dictionary_info info;
    es_norm norm;
    es_weights w;     /* its matrices, when they are not in memory */
    float *enc;       /* [F, d]; NULL: mapped */
    float *dec;       /* [F, d_out]; NULL: mapped */
    float *b_dec;     /* [d_out] */
    float *bias;      /* [F] b_enc; gated: b_mag */
    float *mag;       /* [F] gated: exp(r_mag), by which the encoder's rows are multiplied; NULL: by 1 */
    float *threshold; /* [F]; zeros for standard and topk */
    float *dec_norm;  /* [F]; NULL: mapped, and not needed to encode */
    float *skip;      /* [d, d_out]; NULL: none */
    es_encode_card *card; /* NULL: none was asked for */
};

void es_dictionary_free(es_dictionary *s)
{
    if (!s)
        return;
    es_encode_card_free(s->card);
    es_weights_free(&s->w);
    free(s->enc);
    free(s->dec);
    free(s->b_dec);
    free(s->bias);
    free(s->mag);
    free(s->threshold);
    free(s->dec_norm);
    free(s->skip);
    free(s);
}

const es_dictionary_info *es_dictionary_get_info(const es_dictionary *s)
{
    return &s->info;
}

bool es_dictionary_is_mapped(const es_dictionary *s)
{
    return !s->enc;
}

const float *es_dictionary_decoder(const es_dictionary *s)
{
    return s->dec;
}

const float *es_dictionary_decoder_bias(const es_dictionary *s)
{
    return s->b_dec;
}

static bool all_finite(const float *v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(v[i]))
            return false;
    return true;
}

void es_dictionary_rows(const es_dictionary *s, int first, int n, float *out)
{
    size_t d = (size_t)s->info.d_out;
    if (s->dec) {
        memcpy(out, s->dec + (size_t)first * d, (size_t)n * d * sizeof *out);
        return;
    }
    es_matrix_rows(&s->w.dec, (size_t)first, (size_t)n, out);
    for (int j = 0; j < n; j++)
        if (!all_finite(out + (size_t)j * d, d))
            memset(out + (size_t)j * d, 0, d * sizeof *out);
}

void es_dictionary_release(const es_dictionary *s)
{
    if (!s->dec)
        es_matrix_release(&s->w.dec);
}

/* Decoder row j, where it lies or in buf [d_out]. */
static const float *decoder_row(const es_dictionary *s, int j, float *buf)
{
    if (s->dec)
        return s->dec + (size_t)j * (size_t)s->info.d_out;
    es_dictionary_rows(s, j, 1, buf);
    return buf;
}

/* Encoder row j without the gate's factor. */
static const float *encoder_row(const es_dictionary *s, int j, float *buf)
{
    if (s->enc)
        return s->enc + (size_t)j * (size_t)s->info.d;
    es_matrix_rows(&s->w.enc, (size_t)j, 1, buf);
    return buf;
}

void es_dictionary_encoder(const es_dictionary *s, int feature, float *out, float *bias, float *threshold)
{
    size_t d = (size_t)s->info.d;
    const float *row = encoder_row(s, feature, out);
    if (row != out)
        memcpy(out, row, d * sizeof *out);
    for (size_t i = 0; s->mag && i < d; i++)
        out[i] *= s->mag[feature];
    if (bias)
        *bias = s->bias[feature];
    if (threshold)
        *threshold = s->threshold[feature];
}

void es_dictionary_encoder_rows(const es_dictionary *s, int first, int n, float *out, float *bias, float *threshold)
{
    size_t d = (size_t)s->info.d;
    bool rescale = s->info.architecture == ES_SAE_TOPK && s->info.rescale_acts_by_decoder_norm;
    if (s->enc)
        memcpy(out, s->enc + (size_t)first * d, (size_t)n * d * sizeof *out);
    else
        es_matrix_rows(&s->w.enc, (size_t)first, (size_t)n, out);
    for (int i = 0; i < n; i++) {
        int j = first + i;
        float by = (s->mag ? s->mag[j] : 1) * (rescale ? s->dec_norm[j] : 1);
        for (size_t k = 0; by != 1 && k < d; k++)
            out[(size_t)i * d + k] *= by;
        bias[i] = s->bias[j] * (rescale ? s->dec_norm[j] : 1);
        threshold[i] = fmaxf(s->threshold[j], 0);
    }
    if (!s->enc)
        es_matrix_release(&s->w.enc);
}

/* ---- opening ------------------------------------------------------------------------------------------------------------------- */

/* A vector of the weights becomes the dictionary's, which frees it. */
static float *take(es_numbers *v)
{
    float *p = v->v;
    *v = (es_numbers){0};
    return p;
}

/* A gated feature as the jumprelu one that equals it. */
static int take_gates(es_dictionary *s, es_error *err)
{
    es_weights *w = &s->w;
    for (int j = 0; j < s->info.n_features; j++) {
        float m = expf(w->r_mag.v[j]);
        if (!isfinite(m))
            return es_fail(err, ES_ERR_FORMAT, "%s: exp(r_mag) of feature %d is infinite", w->file, j);
        w->b_gate.v[j] = w->b_mag.v[j] - m * w->b_gate.v[j];
        w->r_mag.v[j] = m;
    }
    s->threshold = take(&w->b_gate);
    s->mag = take(&w->r_mag);
    s->bias = take(&w->b_mag);
    return ES_OK;
}

static int take_vectors(es_dictionary *s, es_error *err)
{
    size_t F = (size_t)s->info.n_features;
    s->b_dec = take(&s->w.b_dec);
    if (s->info.architecture == ES_SAE_GATED)
        return take_gates(s, err);
    s->bias = take(&s->w.b_enc);
    s->threshold = s->info.architecture == ES_SAE_JUMPRELU ? take(&s->w.threshold) : es_calloc(F, sizeof *s->threshold);
    return s->threshold ? ES_OK : es_fail(err, ES_ERR_MEMORY, "not enough memory for a dictionary of %zu features", F);
}

static int matrix_to_memory(const es_matrix *m, float **out, const char *name, const char *file, es_error *err)
{
    *out = es_calloc(m->rows * m->cols, sizeof **out);
    if (!*out)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for %zu features of width %zu (%zu MB)", m->rows, m->cols, m->rows * m->cols * 4 >> 20);
    es_matrix_rows(m, 0, m->rows, *out);
    return all_finite(*out, m->rows * m->cols) ? ES_OK : es_fail(err, ES_ERR_FORMAT, "%s: %s holds a value that is not a number or infinite", file, name);
}

static int measure_decoder(es_dictionary *s, es_error *err)
{
    size_t d = (size_t)s->info.d_out, F = (size_t)s->info.n_features;
    float *rows = es_calloc(ROWS * d, sizeof *rows);
    s->dec_norm = es_calloc(F, sizeof *s->dec_norm);
    if (!rows || !s->dec_norm) {
        free(rows);
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for a dictionary of %zu features", F);
    }
    for (size_t j = 0; j < F; j += ROWS) {
        size_t n = F - j < ROWS ? F - j : ROWS;
        es_dictionary_rows(s, (int)j, (int)n, rows);
        for (size_t k = 0; k < n; k++) {
            double norm = 0;
            for (size_t i = 0; i < d; i++)
                norm += (double)rows[k * d + i] * (double)rows[k * d + i];
            s->dec_norm[j + k] = (float)sqrt(norm);
        }
        if (j * d / RELEASED != (j + n) * d / RELEASED)
            es_dictionary_release(s);
    }
    free(rows);
    return ES_OK;
}

/* Where the hash of this very state of the file is kept: named by all that changes when its bytes do. false: it is not kept. */
static bool kept_path(char *out, size_t size, const char *file, const char *folder)
{
    struct stat st;
    char key[65];
    char *whole = realpath(file, NULL);
    es_buf b = {0};
    if (!whole || stat(whole, &st) != 0 || st.st_size < KEEP_HASH) {
        free(whole);
        return false;
    }
    es_buf_printf(&b, "%s|%lld|%lld|%lld|%lld.%09ld|%lld.%09ld", whole, (long long)st.st_dev, (long long)st.st_ino, (long long)st.st_size,
                  (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec, (long long)st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
    es_sha256_bytes(key, b.data, b.len);
    bool ok = !b.failed && snprintf(out, size, "%s/%.32s", folder, key) < (int)size;
    es_buf_free(&b);
    free(whole);
    return ok;
}

static int hash_file(es_dictionary *s, const char *folder, es_error *err)
{
    char path[1300];
    es_buf b = {0};
    bool keep = folder && kept_path(path, sizeof path, s->w.file, folder);
    bool known = keep && es_file_read(&b, path, 64, NULL) == ES_OK && b.len == 64 && strspn(b.data, "0123456789abcdef") == 64;
    if (known)
        memcpy(s->info.hash, b.data, 64);
    es_buf_free(&b);
    if (known)
        return ES_OK;
    int rc = es_sha256_file(s->info.hash, s->w.file, err);
    if (!rc && keep && es_dir_make(folder, NULL) == ES_OK)
        es_file_write(path, s->info.hash, 64, NULL); /* next time it is computed again where that failed */
    return rc;
}

int es_dictionary_open_with(es_dictionary **out, const char *path, const es_dictionary_options *o, es_error *err)
{
    *out = NULL;
    es_dictionary *s = es_calloc(1, sizeof *s);
    if (!s)
        return es_fail(err, ES_ERR_MEMORY, "%s: not enough memory", path);
    int rc = es_weights_read(&s->w, path, err);
    s->info = s->w.info;
    s->norm = s->w.norm;
    size_t cells = (size_t)s->info.n_features * ((size_t)s->info.d + (size_t)s->info.d_out);
    bool mapped = o->mapped || cells * sizeof(float) > IN_MEMORY;
    if (!rc)
        rc = take_vectors(s, err);
    if (!rc && s->w.skip.data)
        rc = matrix_to_memory(&s->w.skip, &s->skip, "the skip connection", s->w.file, err);
    if (!rc && !mapped && !(rc = matrix_to_memory(&s->w.enc, &s->enc, "W_enc", s->w.file, err)))
        rc = matrix_to_memory(&s->w.dec, &s->dec, "W_dec", s->w.file, err);
    if (!rc && (!mapped || s->info.rescale_acts_by_decoder_norm))
        rc = measure_decoder(s, err);
    if (!rc && !o->no_hash)
        rc = hash_file(s, o->hashes, err);
    if (!mapped)
        es_weights_free(&s->w);
    if (!rc && o->card)
        rc = es_encode_card_open(&s->card, s, o, err);
    if (rc)
        es_dictionary_free(s);
    else
        *out = s;
    return rc;
}

int es_dictionary_open(es_dictionary **out, const char *path, es_error *err)
{
    return es_dictionary_open_with(out, path, &(es_dictionary_options){0}, err);
}

/* ---- encoding -------------------------------------------------------------------------------------------------------------------- */

void es_sparse_free(es_sparse *s)
{
    free(s->start);
    free(s->index);
    free(s->value);
    *s = (es_sparse){0};
}

int es_sparse_room(es_sparse *s, size_t rows, size_t n, es_error *err)
{
    if (rows + 1 > s->cap_rows) {
        size_t *p = realloc(s->start, (rows + 1) * sizeof *p);
        if (!p)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory for the activations of %zu tokens", rows);
        s->start = p;
        s->cap_rows = rows + 1;
    }
    if (n > s->cap) {
        size_t cap = s->cap * 2 > n ? s->cap * 2 : n + 64;
        int32_t *a = realloc(s->index, cap * sizeof *a);
        if (a)
            s->index = a;
        float *v = a ? realloc(s->value, cap * sizeof *v) : NULL;
        if (!v)
            return es_fail(err, ES_ERR_MEMORY, "not enough memory for %zu activations", cap);
        s->value = v;
        s->cap = cap;
    }
    return ES_OK;
}

/* The row as the encoder sees it. Returns what x was divided by and, in *mean, what was taken off. */
static float normalise(const es_dictionary *s, const float *x, float *out, float *mean)
{
    size_t d = (size_t)s->info.d;
    double sum = 0, square = 0;
    float scale = 1, mu = 0;
    if (s->norm == ES_NORM_CONSTANT) {
        for (size_t i = 0; i < d; i++)
            square += (double)x[i] * (double)x[i];
        scale = (float)(sqrt(square) / sqrt((double)d));
    } else if (s->norm == ES_NORM_LAYER) { /* torch's std: over d - 1; eps is added to it */
        for (size_t i = 0; i < d; i++)
            sum += (double)x[i];
        mu = (float)(sum / (double)d);
        for (size_t i = 0; i < d; i++)
            square += (double)(x[i] - mu) * (double)(x[i] - mu);
        scale = d > 1 ? (float)sqrt(square / (double)(d - 1)) : 0;
    }
    *mean = mu;
    if (out) {
        float by = s->norm == ES_NORM_LAYER ? scale + 1e-5f : scale;
        for (size_t i = 0; i < d; i++)
            out[i] = (s->norm == ES_NORM_NONE ? x[i] : by == 0 ? 0 : (x[i] - mu) / by) - (s->info.apply_b_dec_to_input ? s->b_dec[i] : 0);
    }
    return scale;
}

typedef struct entry { float v; int32_t j; } entry;

static int falling(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->v != y->v)
        return x->v > y->v ? -1 : 1;
    return (x->j > y->j) - (x->j < y->j);
}

/* Keeps the k largest of what is offered, as a heap with the smallest on top. */
static void heap_offer(entry *e, int *n, int k, entry new)
{
    int i;
    if (*n < k) {
        for (i = (*n)++; i > 0 && e[(i - 1) / 2].v > new.v; i = (i - 1) / 2)
            e[i] = e[(i - 1) / 2];
    } else {
        if (new.v <= e[0].v)
            return;
        for (i = 0;;) {
            int c = 2 * i + 1;
            if (c + 1 < k && e[c + 1].v < e[c].v)
                c++;
            if (c >= k || e[c].v >= new.v)
                break;
            e[i] = e[c];
            i = c;
        }
    }
    e[i] = new;
}

/* What a token's features are so far; for topk a heap. */
typedef struct found {
    entry *e;
    int n, cap;
} found;

typedef struct encode_job {
    const es_dictionary *s;
    const float *x;     /* [T, d] as the encoder sees them */
    float *pre;         /* [T, n]: of the block's features */
    float *panel;       /* the block's encoder as f32: [d, n], or [n, d] where a feature's numbers lie together */
    found *found;       /* [T] */
    int T;
    size_t first, n;    /* the block */
    volatile bool failed;
} encode_job;

static bool keep(found *f, entry new)
{
    if (f->n == f->cap) {
        int cap = f->cap ? 2 * f->cap : 64;
        entry *e = realloc(f->e, (size_t)cap * sizeof *e);
        if (!e)
            return false;
        f->e = e;
        f->cap = cap;
    }
    f->e[f->n++] = new;
    return true;
}

/* The block's active features of one token. What is not a finite number activates nothing. */
static bool collect_row(const encode_job *b, const float *pre, found *f)
{
    const es_dictionary *s = b->s;
    const float *bias = s->bias + b->first, *threshold = s->threshold + b->first, *mag = s->mag ? s->mag + b->first : NULL;
    bool topk = s->info.architecture == ES_SAE_TOPK, rescale = topk && s->info.rescale_acts_by_decoder_norm;
    for (size_t j = 0; j < b->n; j++) {
        float v = mag ? pre[j] * mag[j] + bias[j] : pre[j] + bias[j];
        if (rescale)
            v *= s->dec_norm[b->first + j];
        if (!(v > 0) || !(v > threshold[j]) || !(v < INFINITY))
            continue; /* of topk those at or below 0 would be selected only to become 0 */
        entry new = {v, (int32_t)(b->first + j)};
        if (topk)
            heap_offer(f->e, &f->n, s->info.k, new);
        else if (!keep(f, new))
            return false;
    }
    return true;
}

static void collect_part(void *user, int part, int parts)
{
    encode_job *b = user;
    for (int t = part; t < b->T; t += parts)
        if (!collect_row(b, b->pre + (size_t)t * b->n, &b->found[t]))
            b->failed = true;
}

static void sort_part(void *user, int part, int parts)
{
    encode_job *b = user;
    for (int t = part; t < b->T; t += parts)
        if (b->found[t].n)
            qsort(b->found[t].e, (size_t)b->found[t].n, sizeof(entry), falling);
}

/* One or few rows: dot products by rows of the encoder, read once. */
static void dots_part(void *user, int part, int parts)
{
    encode_job *b = user;
    size_t d = (size_t)b->s->info.d, from = b->n * (size_t)part / (size_t)parts, to = b->n * ((size_t)part + 1) / (size_t)parts;
    const es_vector_ops *ops = es_vector();
    for (size_t f = from; f < to; f++)
        for (int t = 0; t < b->T; t++)
            b->pre[(size_t)t * b->n + f] = ops->dot(b->s->enc + (b->first + f) * d, b->x + (size_t)t * d, d);
}

static void panel_part(void *user, int part, int parts)
{
    encode_job *b = user;
    const es_matrix *m = &b->s->w.enc;
    size_t all = m->by_row ? b->n : m->cols, from = all * (size_t)part / (size_t)parts, to = all * ((size_t)part + 1) / (size_t)parts;
    if (m->by_row) {
        es_matrix_rows(m, b->first + from, to - from, b->panel + from * m->cols);
        return;
    }
    for (size_t c = from, some; c < to; c += some) { /* a bit of every column; around each the kernel maps up to a megabyte more */
        some = to - c < COLUMNS ? to - c : COLUMNS;
        es_matrix_columns(m, b->first, b->n, c, c + some, b->panel + c * b->n);
        es_matrix_release_lines(m, c, some);
    }
}

static void run(es_pool *p, void (*fn)(void *, int, int), void *user)
{
    if (p)
        es_pool_run(p, fn, user);
    else
        fn(user, 0, 1);
}

/* pre = x (the block's encoder)^T */
static void block_product(encode_job *b, es_pool *p)
{
    const es_kernels *k = es_kernels_cpu();
    const es_dictionary *s = b->s;
    int d = s->info.d, n = (int)b->n;
    if (s->enc) {
        if (b->T <= 4)
            run(p, dots_part, b);
        else
            k->gemm(p, false, true, b->T, n, d, 1, b->x, d, s->enc + b->first * (size_t)d, d, 0, b->pre, n);
        return;
    }
    const es_matrix *m = &s->w.enc;
    const float *w = es_matrix_f32(m);
    if (!w)
        run(p, panel_part, b);
    if (m->by_row)
        k->gemm(p, false, true, b->T, n, d, 1, b->x, d, w ? w + b->first * (size_t)d : b->panel, d, 0, b->pre, n);
    else
        k->gemm(p, false, false, b->T, n, d, 1, b->x, d, w ? w + b->first : b->panel, w ? (int)m->rows : n, 0, b->pre, n);
}

/* All blocks of the encoder for job.T rows. */
static int encode_tile(encode_job *b, es_pool *p, size_t block, es_error *err)
{
    const es_dictionary *s = b->s;
    size_t F = (size_t)s->info.n_features, read = 0;
    for (b->first = 0; b->first < F && !b->failed; b->first += b->n) {
        b->n = F - b->first < block ? F - b->first : block;
        block_product(b, p);
        run(p, collect_part, b);
        read += b->n * (size_t)s->info.d * sizeof(float);
        if (!s->enc && (read > RELEASE || !s->w.enc.by_row)) { /* where a product reads a bit of every column of the file itself */
            es_matrix_release(&s->w.enc);
            read = 0;
        }
    }
    if (!s->enc)
        es_matrix_release(&s->w.enc);
    if (b->failed)
        return es_fail(err, ES_ERR_MEMORY, "not enough memory for the activations of %d tokens", b->T);
    run(p, sort_part, b);
    return ES_OK;
}

static int take_found(es_sparse *out, int t0, int T, const encode_job *b, es_error *err)
{
    size_t at = out->start[t0], need = at;
    for (int t = 0; t < b->T; t++)
        need += (size_t)b->found[t].n;
    int rc = es_sparse_room(out, (size_t)T, need, err);
    for (int t = 0; t < b->T && !rc; t++) {
        for (int i = 0; i < b->found[t].n; i++, at++) {
            out->index[at] = b->found[t].e[i].j;
            out->value[at] = b->found[t].e[i].v;
        }
        out->start[t0 + t + 1] = at;
        b->found[t].n = 0;
    }
    return rc;
}

const float *es_dictionary_input(const es_dictionary *s, const float *x, int n, float *in)
{
    size_t d = (size_t)s->info.d;
    float mean;
    for (int t = 0; in && t < n; t++)
        normalise(s, x + (size_t)t * d, in + (size_t)t * d, &mean);
    return in ? in : x;
}

bool es_dictionary_changes_input(const es_dictionary *s)
{
    return s->norm != ES_NORM_NONE || s->info.apply_b_dec_to_input;
}

int es_dictionary_encode(const es_dictionary *s, es_pool *p, const float *x, int T, es_sparse *out, es_error *err)
{
    size_t d = (size_t)s->info.d, F = (size_t)s->info.n_features;
    int tile = T < TILE ? T : TILE, rc = es_sparse_room(out, (size_t)T, (size_t)T * 48, err);
    if (rc)
        return rc;
    out->n_rows = T;
    out->start[0] = 0;
    if (T == 0 || es_encode_card_does(s->card, p, x, T, out))
        return ES_OK;
    size_t block = s->enc ? (size_t)(1 << 22) / (size_t)tile : BLOCK;
    if (block > F)
        block = F;
    bool panel = !s->enc && !es_matrix_f32(&s->w.enc), topk = s->info.architecture == ES_SAE_TOPK;
    encode_job job = {.s = s, .pre = es_calloc((size_t)tile * block, sizeof(float)), .panel = panel ? es_calloc(block * d, sizeof(float)) : NULL,
                      .found = es_calloc((size_t)tile, sizeof(found))};
    float *in = es_dictionary_changes_input(s) ? es_calloc((size_t)tile * d, sizeof *in) : NULL;
    bool ok = job.pre && job.found && (job.panel || !panel) && (in || !es_dictionary_changes_input(s));
    for (int t = 0; t < tile && topk && ok; t++) {
        job.found[t].cap = s->info.k;
        job.found[t].e = es_calloc((size_t)s->info.k, sizeof(entry));
        ok = job.found[t].e;
    }
    if (!ok)
        rc = es_fail(err, ES_ERR_MEMORY, "not enough memory to encode %d tokens", T);
    for (int t0 = 0; t0 < T && !rc; t0 += tile) {
        job.T = T - t0 < tile ? T - t0 : tile;
        job.x = es_dictionary_input(s, x + (size_t)t0 * d, job.T, in);
        rc = encode_tile(&job, p, block, err);
        if (!rc)
            rc = take_found(out, t0, T, &job, err);
    }
    for (int t = 0; job.found && t < tile; t++)
        free(job.found[t].e);
    free(job.found);
    free(job.pre);
    free(job.panel);
    free(in);
    if (rc)
        out->n_rows = 0;
    return rc;
}

int es_dictionary_encode_some(const es_dictionary *s, es_pool *p, const float *x, int T, const int *feature, int n, float *act, es_error *err)
{
    size_t d = (size_t)s->info.d;
    for (int i = 0; i < n; i++)
        if (feature[i] < 0 || feature[i] >= s->info.n_features)
            return es_fail(err, ES_ERR_USAGE, "there is no feature %d: %s has %d", feature[i], s->info.name, s->info.n_features);
    if (s->info.architecture == ES_SAE_TOPK) { /* whether one is among the k depends on all */
        es_sparse all = {0};
        int rc = es_dictionary_encode(s, p, x, T, &all, err);
        for (int t = 0; t < T && !rc; t++)
            for (int i = 0; i < n; i++) {
                float *v = act + (size_t)t * (size_t)n + i;
                *v = 0;
                for (size_t a = all.start[t]; a < all.start[t + 1]; a++)
                    if (all.index[a] == feature[i])
                        *v = all.value[a];
            }
        es_sparse_free(&all);
        return rc;
    }
    int tile = T < TILE ? T : TILE;
    float *in = es_calloc((size_t)tile * d + 1, sizeof *in), *row = es_calloc(d, sizeof *row);
    if (!in || !row) {
        free(in);
        free(row);
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to encode %d tokens", T);
    }
    const es_vector_ops *ops = es_vector();
    for (int t0 = 0; t0 < T; t0 += tile) {
        int rows = T - t0 < tile ? T - t0 : tile;
        const float *from = es_dictionary_input(s, x + (size_t)t0 * d, rows, in);
        for (int i = 0; i < n; i++) {
            int j = feature[i];
            const float *e = encoder_row(s, j, row);
            for (int t = 0; t < rows; t++) {
                float v = ops->dot(e, from + (size_t)t * d, d) * (s->mag ? s->mag[j] : 1) + s->bias[j];
                act[(size_t)(t0 + t) * (size_t)n + i] = v > 0 && v > s->threshold[j] && v < INFINITY ? v : 0;
            }
        }
    }
    free(in);
    free(row);
    return ES_OK;
}

int es_dictionary_decode(const es_dictionary *s, const es_sparse *acts, const float *x, float *xhat, es_error *err)
{
    size_t d = (size_t)s->info.d, d_out = (size_t)s->info.d_out;
    if ((s->norm != ES_NORM_NONE || s->skip) && !x)
        return es_fail(err, ES_ERR_USAGE, "%s %s: decoding needs the input rows", s->info.name,
                       s->skip ? "adds its input times a matrix" : "normalises its input");
    const es_vector_ops *ops = es_vector();
    float *buf = es_calloc(d_out, sizeof *buf), *sum = es_calloc(d_out, sizeof *sum);
    if (!buf || !sum) {
        free(buf);
        free(sum);
        return es_fail(err, ES_ERR_MEMORY, "not enough memory to decode");
    }
    for (int t = 0; t < acts->n_rows; t++) {
        float mean = 0, scale = 1;
        const float *from = x ? x + (size_t)t * d : NULL;
        if (s->norm != ES_NORM_NONE)
            scale = normalise(s, from, NULL, &mean);
        memcpy(sum, s->b_dec, d_out * sizeof *sum);
        for (size_t a = acts->start[t]; a < acts->start[t + 1]; a++) {
            int j = acts->index[a];
            float v = acts->value[a];
            if (s->info.architecture == ES_SAE_TOPK && s->info.rescale_acts_by_decoder_norm)
                v = s->dec_norm[j] > 0 ? v / s->dec_norm[j] : 0;
            ops->axpy(sum, v, decoder_row(s, j, buf), d_out);
        }
        for (size_t i = 0; s->skip && i < d; i++)
            ops->axpy(sum, from[i], s->skip + i * d_out, d_out);
        for (size_t i = 0; s->norm != ES_NORM_NONE && i < d_out; i++)
            sum[i] = sum[i] * scale + mean;
        memcpy(xhat + (size_t)t * d_out, sum, d_out * sizeof *sum); /* last: x and xhat may be the same rows */
    }
    free(buf);
    free(sum);
    return ES_OK;
}

static void offer_neighbour(int j, float c, int n, int *out, float *cosine)
{
    int i = n;
    while (i > 0 && c > cosine[i - 1])
        i--;
    if (i == n)
        return;
    memmove(out + i + 1, out + i, (size_t)(n - 1 - i) * sizeof *out);
    memmove(cosine + i + 1, cosine + i, (size_t)(n - 1 - i) * sizeof *cosine);
    out[i] = j;
    cosine[i] = c;
}

void es_dictionary_neighbours(const es_dictionary *s, int feature, int n, int *out, float *cosine)
{
    size_t d = (size_t)s->info.d_out;
    const es_vector_ops *ops = es_vector();
    for (int i = 0; i < n; i++) {
        out[i] = -1;
        cosine[i] = -2;
    }
    float *own = es_calloc(d, sizeof *own), *rows = s->dec ? NULL : es_calloc(ROWS * d, sizeof *rows);
    if (!own || (!rows && !s->dec)) {
        free(own);
        free(rows);
        return; /* nobody is told of no neighbours */
    }
    es_dictionary_rows(s, feature, 1, own);
    double length = sqrt((double)ops->dot(own, own, d));
    for (int j0 = 0; j0 < s->info.n_features; j0 += ROWS) {
        int some = s->info.n_features - j0 < ROWS ? s->info.n_features - j0 : ROWS;
        const float *from = s->dec ? s->dec + (size_t)j0 * d : rows;
        if (rows)
            es_dictionary_rows(s, j0, some, rows);
        for (int k = 0; k < some; k++) {
            const float *w = from + (size_t)k * d;
            double norm = length * (s->dec_norm ? (double)s->dec_norm[j0 + k] : sqrt((double)ops->dot(w, w, d)));
            if (j0 + k != feature)
                offer_neighbour(j0 + k, norm > 0 ? (float)((double)ops->dot(own, w, d) / norm) : 0, n, out, cosine);
        }
        if (rows && (size_t)j0 * d / RELEASED != (size_t)(j0 + some) * d / RELEASED)
            es_dictionary_release(s);
    }
    es_dictionary_release(s);
    free(own);
    free(rows);
}
