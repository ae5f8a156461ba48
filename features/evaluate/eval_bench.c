/* What a variant does to sequences: log-probabilities of replies, KL from the base model over the whole vocabulary, replies of its own.
 * The residual below the lowest layer that any variant so far has touched is cached with each sequence; a variant that starts lower has the
 * caches made again for it, one that touches everything runs from the ids. Behind a prefix (context) the cache of keys and values is
 * shared by all sequences, and the head runs on the residuals that a watch sees. */
#include "eval_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 128, PACK = 1024 };

int es_bench_open(es_bench *b, es_model *m, int max_prompt, int max_reply, int threads, const volatile bool *cancel, es_error *err)
{
    const es_model_info *info = es_model_get_info(m);
    size_t d = (size_t)info->d_model;
    *b = (es_bench){.m = m, .k = es_kernels_cpu(), .threads = threads, .max_prompt = max_prompt, .max_reply = max_reply, .cancel = cancel};
    b->max_tokens = max_prompt + max_reply > PACK ? max_prompt + max_reply : PACK;
    int rc = es_pool_open(&b->pool, threads, err);
    rc = rc ? rc : es_pack_open(&b->pack, b->max_tokens, info->d_model, err);
    if (rc)
        return rc;
    b->rows = es_calloc(ROWS, (size_t)info->n_vocab * sizeof *b->rows);
    b->norm = es_calloc(ROWS, d * sizeof *b->norm);
    b->picked = es_calloc(ROWS, d * sizeof *b->picked);
    b->resid = es_calloc((size_t)b->max_tokens, d * sizeof *b->resid);
    return b->rows && b->norm && b->picked && b->resid ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory to measure with");
}

void es_bench_close(es_bench *b)
{
    es_trainer_free(b->trainer);
    if (b->pack.arena.base)
        es_pack_close(&b->pack);
    es_pool_free(b->pool);
    free(b->rows);
    free(b->norm);
    free(b->picked);
    free(b->resid);
    free(b->set);
    *b = (es_bench){0};
}

static int trainer_for(es_bench *b, const es_model *m, int from, es_error *err)
{
    if (b->trainer && b->trainer_model == m && b->trainer_from == from)
        return ES_OK;
    es_trainer_free(b->trainer);
    es_trainer_options o = {.max_tokens = b->max_tokens, .from_layer = from, .threads = b->threads};
    b->trainer_model = m;
    b->trainer_from = from;
    return es_trainer_open(&b->trainer, m, &o, err);
}

/* ---- sets ---------------------------------------------------------------------------------------------------------------------- */

static int cache_set(es_set *s, es_bench *b, es_error *err)
{
    int rc = ES_OK, d = es_model_get_info(b->m)->d_model;
    if (b->cached < 1)
        return ES_OK;
    rc = trainer_for(b, b->m, b->cached, err);
    for (int i = 0; !rc && i < s->n; i++)
        rc = es_sequence_residual(&s->seq[i], b->trainer, b->cached - 1, d, b->cancel, err);
    return rc;
}

/* Makes every cache serve a variant that starts at `layer`. */
static int cache_down_to(es_bench *b, int layer, es_error *err)
{
    if (layer < 1 || (b->cached > 0 && b->cached <= layer))
        return ES_OK;
    b->cached = layer;
    int rc = ES_OK;
    for (int i = 0; !rc && i < b->n_set; i++)
        rc = cache_set(b->set[i], b, err);
    if (rc)
        b->cached = 0;
    return rc;
}

static int make_sequence(es_sequence *out, const es_bench *b, const es_source *from, int max_tokens, es_error *err)
{
    return from->n_message ? es_sequence_make(out, b->m, from->message, from->n_message, from->text, b->max_prompt, max_tokens, err)
                           : es_sequence_text(out, b->m, from->text, max_tokens, err);
}

int es_set_open(es_set *s, es_bench *b, const es_source *from, int n, int max_tokens, bool kl, es_error *err)
{
    size_t n_vocab = (size_t)es_model_get_info(b->m)->n_vocab;
    es_set **set = realloc(b->set, ((size_t)b->n_set + 1) * sizeof *set);
    *s = (es_set){.kl = kl};
    if (!set)
        return es_fail(err, ES_ERR_MEMORY, "no memory for a set");
    b->set = set;
    s->seq = es_calloc((size_t)n + 1, sizeof *s->seq);
    s->from = es_calloc((size_t)n + 1, sizeof *s->from);
    int rc = s->seq && s->from ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for %d sequences", n);
    for (int i = 0; !rc && i < n; i++) {
        rc = make_sequence(&s->seq[s->n], b, &from[i], max_tokens, err);
        if (rc)
            break;
        s->tokens += s->seq[s->n].n_reply;
        s->from[s->n++] = from[i];
    }
    if (!rc && kl) {
        s->p = es_calloc((size_t)s->tokens + 1, n_vocab * sizeof *s->p);
        s->entropy = es_calloc(2 * (size_t)s->tokens + 1, sizeof *s->entropy);
        s->mass = s->entropy ? s->entropy + s->tokens : NULL;
        if (!s->p || !s->entropy)
            rc = es_fail(err, ES_ERR_MEMORY, "no memory for the base model's rows of %d tokens", s->tokens);
    }
    if (rc) {
        es_set_close(s, b);
        return rc;
    }
    b->set[b->n_set++] = s;
    rc = cache_set(s, b, err);
    rc = rc ? rc : es_set_measure(s, b, NULL, NULL, err);
    for (int i = 0; i < s->n; i++)
        s->seq[i].base = s->seq[i].now;
    return rc;
}

void es_set_close(es_set *s, es_bench *b)
{
    for (int i = 0; i < b->n_set; i++)
        if (b->set[i] == s) {
            b->set[i] = b->set[--b->n_set];
            break;
        }
    for (int i = 0; i < s->n; i++)
        es_sequence_free(&s->seq[i]);
    free(s->seq);
    free(s->from);
    free(s->p);
    free(s->entropy);
    *s = (es_set){0};
}

/* ---- rows of logits -------------------------------------------------------------------------------------------------------------- */

typedef struct row_sums { /* of one call of es_set_measure */
    bool base;            /* the rows are the base model's: keep them */
    int token;            /* next of the set's predicted ones */
    double kl;
    int n;                /* rows gathered for the head, whose they are and what they predict */
    int32_t target[ROWS];
    es_sequence *seq[ROWS];
} row_sums;

/* Rows of logits of the set's next n predicted tokens, in b->rows. logsum, logprob: theirs. */
static void take_rows(es_set *s, const es_bench *b, int n, const float *logsum, row_sums *sums)
{
    size_t n_vocab = (size_t)es_model_get_info(b->m)->n_vocab;
    for (int j = 0; j < n; j++, sums->token++) {
        const float *q = b->rows + (size_t)j * n_vocab;
        float *p = s->p + (size_t)sums->token * n_vocab;
        if (sums->base) {
            double entropy = 0, mass = 0;
            for (size_t v = 0; v < n_vocab; v++) {
                double lp = (double)q[v] - logsum[j];
                p[v] = expf((float)lp);
                entropy += p[v] * lp;
                mass += p[v];
            }
            s->entropy[sums->token] = entropy;
            s->mass[sums->token] = mass;
            continue;
        }
        double cross = 0;
        for (size_t v = 0; v < n_vocab; v += 512) {
            float part[16] = {0}; /* lanes, so that the sum vectorises */
            size_t end = v + 512 < n_vocab ? v + 512 : n_vocab, w = v;
            for (; w + 16 <= end; w += 16)
                for (int l = 0; l < 16; l++)
                    part[l] += p[w + (size_t)l] * q[w + (size_t)l];
            for (; w < end; w++)
                part[0] += p[w] * q[w];
            for (int l = 0; l < 16; l++)
                cross += part[l];
        }
        sums->kl += s->entropy[sums->token] - cross + logsum[j] * s->mass[sums->token];
    }
}

/* The head on the rows that were gathered. */
static void flush_rows(es_set *s, es_bench *b, const es_model *m, row_sums *sums)
{
    const es_model_info *info = es_model_get_info(m);
    es_weight head = es_model_head(m);
    float logprob[ROWS], logsum[ROWS];
    int n = sums->n;
    if (!n)
        return;
    b->k->rmsnorm(b->pool, b->picked, es_model_final_norm(m), b->norm, n, info->d_model, info->norm_eps);
    b->k->matmul(b->pool, &head, b->norm, n, b->rows, false, true);
    b->k->log_softmax_pick(b->pool, b->rows, sums->target, n, info->n_vocab, logprob, logsum);
    for (int i = 0; i < n; i++)
        sums->seq[i]->now += logprob[i] / sums->seq[i]->n_reply;
    if (s->kl)
        take_rows(s, b, n, logsum, sums);
    sums->n = 0;
}

/* A sequence's predicted tokens, the first of them at row `first` of b->resid, into the next product of the head. */
static void gather_rows(es_set *s, es_bench *b, const es_model *m, es_sequence *seq, int first, row_sums *sums)
{
    size_t d = (size_t)es_model_get_info(m)->d_model;
    seq->now = 0;
    for (int i = 0; i < seq->n_reply; i++) {
        memcpy(b->picked + (size_t)sums->n * d, b->resid + (size_t)(first + i) * d, d * sizeof *b->picked);
        sums->target[sums->n] = seq->target[seq->n - seq->n_reply + i];
        sums->seq[sums->n++] = seq;
        if (sums->n == ROWS)
            flush_rows(s, b, m, sums);
    }
}

/* ---- measuring ------------------------------------------------------------------------------------------------------------------- */

bool es_variant_is_base(const es_variant *v, const es_model *base)
{
    return !v || (v->model == base && !v->n_prefix && !v->patch.n_lowrank && !v->patch.n_addend && !v->patch.n_hook);
}

static void see_rows(void *user, int layer, int pos0, const float *h, int T, int d)
{
    es_bench *b = user;
    (void)layer;
    for (int i = 0; i < T; i++) {
        int row = pos0 + i - b->resid_first;
        if (row >= 0 && row < b->resid_n)
            memcpy(b->resid + (size_t)row * (size_t)d, h + (size_t)i * (size_t)d, (size_t)d * sizeof *h);
    }
}

static int measure_packed(es_set *s, es_bench *b, const es_variant *v, row_sums *sums, es_error *err)
{
    const es_model *m = v ? v->model : b->m;
    es_watch watch = {.layer = es_model_get_info(m)->n_layer - 1, .fn = see_rows, .user = b};
    bool cached = b->cached > 0 && m == b->m && (!v || v->lowest_layer >= b->cached);
    int rc = trainer_for(b, m, cached ? b->cached : 0, err);
    for (int i = 0; !rc && i < s->n;) {
        es_pack_clear(&b->pack);
        while (i < s->n && es_pack_add(&b->pack, &s->seq[i], 0))
            i++;
        es_batch batch = es_pack_batch(&b->pack);
        if (s->kl)
            memset(b->pack.wanted, 0, (size_t)b->pack.n); /* the head runs here, on rows that are looked at */
        b->resid_first = 0;
        b->resid_n = b->pack.n;
        rc = es_trainer_forward(b->trainer, &batch, cached ? b->pack.resid : NULL, v ? &v->patch : NULL, &watch, s->kl, b->pack.logprob, b->cancel, err);
        if (!rc && !s->kl)
            es_pack_means(&b->pack);
        for (int j = 0; !rc && s->kl && j < b->pack.n_seq; j++)
            gather_rows(s, b, m, b->pack.seq[j], b->pack.start[j + 1] - b->pack.seq[j]->n_reply, sums);
    }
    if (!rc)
        flush_rows(s, b, m, sums);
    return rc;
}

/* Behind a prefix: what two sequences have in common stays in the cache. */
static int measure_behind(es_set *s, es_bench *b, const es_variant *v, row_sums *sums, es_error *err)
{
    const es_model_info *info = es_model_get_info(v->model);
    es_context *c = NULL;
    es_watch watch = {.layer = info->n_layer - 1, .fn = see_rows, .user = b};
    int room = 0, rc = ES_OK;
    es_sequence *seq = es_calloc((size_t)s->n + 1, sizeof *seq);
    if (!seq)
        return es_fail(err, ES_ERR_MEMORY, "no memory for %d sequences", s->n);
    for (int i = 0; !rc && i < s->n; i++) {
        es_message *messages = NULL;
        int n;
        rc = es_variant_conversation(v, s->from[i].message, s->from[i].n_message, &messages, &n, err);
        rc = rc ? rc : es_sequence_make(&seq[i], b->m, messages, n, s->from[i].text, 1 << 20, s->seq[i].n_reply, err);
        if (!rc && seq[i].n_reply != s->seq[i].n_reply)
            rc = es_fail(err, ES_ERR_FORMAT, "a reply has another length behind the prefix");
        room = seq[i].n > room ? seq[i].n : room;
        free(messages);
    }
    es_context_options o = {.n_ctx = room + 1, .threads = b->threads, .exact = true};
    rc = rc ? rc : es_context_open(&c, v->model, &o, err);
    if (!rc) {
        es_context_set_patch(c, &v->patch);
        es_context_set_watch(c, &watch, 1);
    }
    for (int i = 0; !rc && i < s->n; i++) {
        int n_prompt = seq[i].n - seq[i].n_reply, same = 0; /* the row of token n_prompt predicts the first of the reply */
        while (same < n_prompt && same < es_context_length(c) && es_context_ids(c)[same] == seq[i].ids[same])
            same++;
        b->resid_first = n_prompt;
        b->resid_n = seq[i].n_reply < b->max_tokens ? seq[i].n_reply : b->max_tokens;
        rc = es_context_truncate(c, same, err);
        rc = rc ? rc : es_context_feed(c, seq[i].ids + same, seq[i].n - same, b->cancel, err);
        if (!rc)
            gather_rows(s, b, v->model, &seq[i], 0, sums);
    }
    if (!rc)
        flush_rows(s, b, v->model, sums);
    for (int i = 0; i < s->n; i++)
        s->seq[i].now = seq[i].now;
    for (int i = 0; i < s->n; i++)
        es_sequence_free(&seq[i]);
    free(seq);
    es_context_free(c);
    return rc;
}

int es_set_measure(es_set *s, es_bench *b, const es_variant *v, es_harm *harm, es_error *err)
{
    row_sums sums = {.base = v == NULL};
    if (harm)
        *harm = (es_harm){0};
    if (v && es_variant_is_base(v, b->m)) {
        for (int i = 0; i < s->n; i++)
            s->seq[i].now = s->seq[i].base;
        return ES_OK;
    }
    if (!s->n)
        return ES_OK;
    bool chat = s->from[0].n_message > 0;
    int rc = v && v->model == b->m && !(v->n_prefix && chat) ? cache_down_to(b, v->lowest_layer, err) : ES_OK;
    rc = rc ? rc : v && v->n_prefix && chat ? measure_behind(s, b, v, &sums, err) : measure_packed(s, b, v, &sums, err);
    if (rc || !harm || !s->kl)
        return rc;
    harm->kl = sums.kl / s->tokens;
    for (int i = 0; i < s->n; i++)
        harm->dnll -= (s->seq[i].now - s->seq[i].base) * s->seq[i].n_reply / s->tokens;
    return ES_OK;
}

/* ---- replies --------------------------------------------------------------------------------------------------------------------- */

int es_bench_replies(es_bench *b, const es_variant *v, const es_source *from, int n, int max_new, char **text, bool *ended, es_error *err)
{
    es_ids *prompt = es_calloc((size_t)n + 1, sizeof *prompt);
    es_reply *reply = es_calloc((size_t)n + 1, sizeof *reply);
    es_context *c = NULL;
    int room = 0, rc = prompt && reply ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for %d prompts", n);
    for (int i = 0; !rc && i < n; i++) {
        es_message *messages = NULL;
        int count;
        rc = es_variant_conversation(v, from[i].message, from[i].n_message, &messages, &count, err);
        rc = rc ? rc : es_chat_render(b->m, messages, (size_t)count, true, &prompt[i], err);
        reply[i] = (es_reply){.prompt = prompt[i].id, .n_prompt = (int)prompt[i].n, .max_new = max_new, .sampling = {.temperature = 0, .top_p = 1, .repeat_penalty = 1}};
        room = reply[i].n_prompt > room ? reply[i].n_prompt : room;
        free(messages);
    }
    es_context_options o = {.n_ctx = room + max_new + 1, .threads = b->threads, .n_seq = n < ES_STREAMS ? n : ES_STREAMS};
    rc = rc ? rc : es_context_open(&c, v->model, &o, err);
    if (!rc) {
        es_context_set_patch(c, &v->patch);
        rc = es_generate(c, reply, n, NULL, NULL, b->cancel, err);
    }
    for (int i = 0; !rc && i < n; i++) {
        es_buf out = {0};
        ended[i] = reply[i].ended;
        rc = es_reply_text(b->m, &reply[i], &out, err);
        text[i] = out.data ? out.data : strdup("");
        if (!rc && !text[i])
            rc = es_fail(err, ES_ERR_MEMORY, "no memory for a reply");
    }
    for (int i = 0; prompt && reply && i < n; i++) {
        es_ids_free(&prompt[i]);
        es_ids_free(&reply[i].ids);
    }
    free(prompt);
    free(reply);
    es_context_free(c);
    return rc;
}

/* ---- choices --------------------------------------------------------------------------------------------------------------------- */

/* begin + option as raw text; the option's tokens are those behind what begin and the whole have in common. */
static int choice_sequence(es_sequence *out, const es_bench *b, const es_choice *c, int option, es_error *err)
{
    es_buf text = {0};
    es_ids begin = {0};
    es_buf_str(&text, "\n"); /* so that the first token of an option without a beginning is predicted too */
    es_buf_str(&text, c->begin);
    int rc = es_tokenize_text(b->m, text.data, text.len, &begin, err);
    es_buf_str(&text, c->option[option]);
    rc = rc ? rc : text.failed ? es_fail(err, ES_ERR_MEMORY, "no memory for an item") : es_sequence_text(out, b->m, text.data, b->max_tokens, err);
    if (!rc) {
        int same = 0;
        while (same < (int)begin.n && same < out->n && out->ids[same] == begin.id[same])
            same++;
        same = same < out->n ? same : out->n;
        out->n_reply = out->n - (same > 0 ? same - 1 : 0);
        if (out->n_reply < 1)
            out->n_reply = 1;
    }
    es_buf_free(&text);
    es_ids_free(&begin);
    return rc;
}

int es_bench_choices(es_bench *b, const es_variant *v, const es_choice *c, int n, double *out, int *option_tokens, es_error *err)
{
    const es_model *m = v ? v->model : b->m;
    es_sequence *seq = es_calloc(8 * (size_t)n + 1, sizeof *seq);
    int rc = seq ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for %d items", n);
    for (int i = 0; !rc && i < n; i++)
        for (int j = 0; !rc && j < c[i].n; j++)
            rc = choice_sequence(&seq[8 * i + j], b, &c[i], j, err);
    rc = rc ? rc : trainer_for(b, m, 0, err);
    for (int i = 0; !rc && i < 8 * n;) {
        es_pack_clear(&b->pack);
        while (i < 8 * n && (!seq[i].n || es_pack_add(&b->pack, &seq[i], 0)))
            i++;
        if (!b->pack.n)
            continue;
        es_batch batch = es_pack_batch(&b->pack);
        rc = es_trainer_forward(b->trainer, &batch, NULL, v ? &v->patch : NULL, NULL, 0, b->pack.logprob, b->cancel, err);
        if (!rc)
            es_pack_means(&b->pack);
    }
    for (int i = 0; seq && i < 8 * n; i++) {
        out[i] = seq[i].n ? seq[i].now * seq[i].n_reply : NAN;
        option_tokens[i] = seq[i].n_reply;
        es_sequence_free(&seq[i]);
    }
    free(seq);
    return rc;
}
