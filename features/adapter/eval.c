/* eval: how far a patch moves the model towards preferred replies, and how far away from itself on other text. */
#include "pack.h"

#include <math.h>
#include <stdlib.h>

enum { EVAL_TOKENS = 1024, EVAL_PROMPT = 512, NEUTRAL_TOKENS = 256, LOGIT_ROWS = 64 };

int es_eval_margin(es_model *m, const es_patch *patch, const es_experiences *e, int threads, int max_reply, es_margin *out, double *per_pair,
                   const es_progress *progress, es_error *err)
{
    es_trainer *t = NULL;
    es_pack pack = {0};
    es_sequence *seq = es_calloc(2 * (size_t)e->n + 1, sizeof *seq);
    const volatile bool *cancel = progress ? progress->cancel : NULL;
    int d = es_model_get_info(m)->d_model, n_seq = 0, cap = EVAL_TOKENS, done = 0, rc = ES_OK;
    *out = (es_margin){0};
    max_reply = max_reply > 0 ? max_reply : 512;
    if (!seq)
        rc = es_fail(err, ES_ERR_MEMORY, "no memory for %d pairs", e->n);
    for (int i = 0; !rc && i < e->n; i++) {
        const es_experience *x = &e->item[i];
        if (per_pair)
            per_pair[i] = NAN;
        if (!x->preferred || !x->rejected)
            continue;
        rc = es_sequence_make(&seq[2 * i], m, x->message, x->n_message, x->preferred, EVAL_PROMPT, max_reply, err);
        rc = rc ? rc : es_sequence_make(&seq[2 * i + 1], m, x->message, x->n_message, x->rejected, EVAL_PROMPT, max_reply, err);
        for (int j = 0; j < 2; j++)
            cap = seq[2 * i + j].n > cap ? seq[2 * i + j].n : cap;
        n_seq += 2;
    }
    if (!rc && !n_seq)
        rc = es_fail(err, ES_ERR_USAGE, "none of the %d experiences is a pair with both replies", e->n);
    es_trainer_options o = {.max_tokens = cap, .threads = threads};
    rc = rc ? rc : es_pack_open(&pack, cap, d, err);
    rc = rc ? rc : es_trainer_open(&t, m, &o, err);
    for (int i = 0; !rc && i < 2 * e->n;) {
        es_pack_clear(&pack);
        while (i < 2 * e->n && (!seq[i].n || es_pack_add(&pack, &seq[i], 0)))
            i++;
        if (!pack.n)
            continue;
        es_batch b = es_pack_batch(&pack);
        rc = es_trainer_forward(t, &b, NULL, patch, NULL, 0, pack.logprob, cancel, err);
        if (!rc)
            es_pack_means(&pack);
        done += pack.n_seq;
        es_progress_report(progress, "scoring pairs", done / 2, n_seq / 2, "pairs");
    }
    for (int i = 0; !rc && i < e->n; i++) {
        if (!seq[2 * i].n)
            continue;
        double margin = seq[2 * i].now - seq[2 * i + 1].now;
        out->pairs++;
        out->preferred += seq[2 * i].now;
        out->rejected += seq[2 * i + 1].now;
        if (per_pair)
            per_pair[i] = margin;
    }
    if (!rc) {
        out->preferred /= out->pairs;
        out->rejected /= out->pairs;
        out->margin = out->preferred - out->rejected;
    }
    for (int i = 0; seq && i < 2 * e->n; i++)
        es_sequence_free(&seq[i]);
    free(seq);
    if (pack.arena.base)
        es_pack_close(&pack);
    es_trainer_free(t);
    return rc;
}

/* KL(p || q) of two rows of logits, in double. */
static double row_kl(const float *p, const float *q, int n, double lse_p, double lse_q)
{
    double kl = 0;
    for (int i = 0; i < n; i++) {
        double lp = p[i] - lse_p;
        if (lp > -40)
            kl += expf((float)lp) * (lp - (q[i] - lse_q));
    }
    return kl;
}

int es_eval_neutral(es_model *m, const es_patch *patch, const char *const *text, int n, int threads, es_neutral *out,
                    const es_progress *progress, es_error *err)
{
    const es_model_info *info = es_model_get_info(m);
    size_t n_vocab = (size_t)info->n_vocab;
    const volatile bool *cancel = progress ? progress->cancel : NULL;
    es_trainer_options o = {.max_tokens = NEUTRAL_TOKENS, .threads = threads};
    es_trainer *t = NULL;
    es_pack pack = {0};
    float *base = es_calloc(NEUTRAL_TOKENS, n_vocab * sizeof *base), *rows = es_calloc(LOGIT_ROWS, n_vocab * sizeof *rows);
    float *logprob = es_calloc(NEUTRAL_TOKENS, sizeof *logprob);
    int rc = base && rows && logprob ? ES_OK : es_fail(err, ES_ERR_MEMORY, "no memory for the logits of %d tokens", (int)NEUTRAL_TOKENS);
    *out = (es_neutral){0};
    rc = rc ? rc : es_pack_open(&pack, NEUTRAL_TOKENS, info->d_model, err);
    rc = rc ? rc : es_trainer_open(&t, m, &o, err);
    if (!rc && n < 1)
        rc = es_fail(err, ES_ERR_USAGE, "there is no neutral text to measure on");
    for (int i = 0; !rc && i < n; i++) {
        es_sequence s = {0};
        rc = es_sequence_text(&s, m, text[i], NEUTRAL_TOKENS, err);
        if (!rc) {
            es_pack_clear(&pack);
            es_pack_add(&pack, &s, 0);
            es_batch b = es_pack_batch(&pack);
            rc = es_trainer_forward(t, &b, NULL, NULL, NULL, 0, logprob, cancel, err);
            rc = rc ? rc : es_trainer_logits_rows(t, 0, pack.n, base, err);
            rc = rc ? rc : es_trainer_forward(t, &b, NULL, patch, NULL, 0, pack.logprob, cancel, err);
        }
        for (int first = 0; !rc && first < pack.n; first += LOGIT_ROWS) {
            int count = pack.n - first < LOGIT_ROWS ? pack.n - first : LOGIT_ROWS;
            rc = es_trainer_logits_rows(t, first, count, rows, err);
            for (int j = 0; !rc && j < count; j++) {
                int token = first + j, target = pack.target[token];
                const float *p = base + (size_t)token * n_vocab, *q = rows + (size_t)j * n_vocab;
                out->kl += row_kl(p, q, info->n_vocab, (double)p[target] - logprob[token], (double)q[target] - pack.logprob[token]);
                out->nll_base -= logprob[token];
                out->nll -= pack.logprob[token];
                out->tokens++;
            }
        }
        es_sequence_free(&s);
        es_progress_report(progress, "measuring neutral text", i + 1, n, "texts");
    }
    if (!rc) {
        out->kl /= out->tokens;
        out->nll /= out->tokens;
        out->nll_base /= out->tokens;
    }
    if (pack.arena.base)
        es_pack_close(&pack);
    es_trainer_free(t);
    free(logprob);
    free(rows);
    free(base);
    return rc;
}
